"""The pictures of one call, read and checked, with what lies beside them in their files."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from l2c import images
from l2c.adapt.effort import RECEIVER_STEPS, Effort
from l2c.codec.importance import Importance, one_for_each, quality_map_of
from l2c.codec.support import names_of, naming
from l2c.errors import L2CWarning, LimitError
from l2c.format import lossy_alpha_section
from l2c.format.adapt_section import PatchChanges
from l2c.format.bitstream import (
    ADAPT,
    DPI,
    EXIF,
    ICC,
    PIXEL_TYPES,
    PIXELS,
    QUALITY_MAP,
    SECTION_OVERHEAD,
    XMP,
    Limits,
    file_size,
)
from l2c.format.metadata_sections import pack_dpi, pack_xmp
from l2c.format.quality_map_section import QualityMap
from l2c.images.transparent import fill_transparent

_LEAST_FILE = file_size([0], [])  # bytes of a file whose only tile is empty

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Settings:
    """How the pictures of a call are encoded.

    Attributes:
        mu: metric mix 0..8. bits: of a latent. tile: side in pixels. effort: the adaptation.
        receivers: metric mixes for which conditions are searched when the latents are chosen (`adapt_for`), rising.
    """

    mu: int
    bits: int
    tile: int
    effort: Effort
    receivers: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """Of the search for receivers."""
        return self.effort.steps or RECEIVER_STEPS

    @property
    def sought(self) -> tuple[int, ...]:
        """The metric mixes that are searched for them: an effort's own steps have found the set for the file's own."""
        return tuple(mix for mix in self.receivers if mix != self.mu or not self.effort.steps)

    @property
    def share_for_receivers(self) -> float:
        """Of all the work of adapting, about."""
        units = len(self.sought) * (self.steps + 8)
        return units / max(1, units + self.effort.units * self.effort.tries)


@dataclass
class Batch:
    """What one call encodes, and how.

    Attributes:
        names: what errors call each.
        pictures: as their decoder will show them, what is transparent filled in.
        sections: of each file, by type.
        clock: seconds per stage. deadline: of the adaptation, as `time.perf_counter` counts.
        progress: told the share that is done, never falling.
        quality_maps: which parts of each picture are coded coarser; None: none.
    """

    names: list[str]
    pictures: list[images.Picture]
    sections: list[dict[int, bytes]]
    settings: Settings
    clock: dict[str, float]
    deadline: float
    progress: Progress
    quality_maps: list[QualityMap | None]

    @property
    def mu(self) -> int:
        return self.settings.mu

    @property
    def bits(self) -> int:
        return self.settings.bits

    @property
    def tile(self) -> int:
        return self.settings.tile

    @property
    def effort(self) -> Effort:
        return self.settings.effort

    def without(self, done: Collection[int]) -> Batch:
        """The batch of the other pictures; they keep their names."""
        if not done:
            return self
        rest = [i for i in range(len(self.pictures)) if i not in done]
        return replace(
            self,
            names=[self.names[i] for i in rest],
            pictures=[self.pictures[i] for i in rest],
            sections=[self.sections[i] for i in rest],
            quality_maps=[self.quality_maps[i] for i in rest],
        )

    def with_nearer(self, steps: int) -> Batch:
        """The batch with the unimportant parts of pictures nearer to the important ones; see `QualityMap.raised`."""
        maps = [None if here is None else here.raised(steps) for here in self.quality_maps]
        return replace(self, quality_maps=maps)

    def unchanged(self, i: int) -> PatchChanges:
        """What is changed in D for a picture before any adaptation."""
        return PatchChanges(quality_map=self.quality_maps[i])

    def sections_with(self, i: int, change: PatchChanges) -> dict[int, bytes]:
        """Those of a picture's file, by type, where D is changed so."""
        bodies = {ADAPT: change.pack()}
        if change.quality_map is not None:
            bodies[QUALITY_MAP] = change.quality_map.pack()
        return self.sections[i] | {kind: body for kind, body in bodies.items() if body}

    def late(self) -> bool:
        """Whether the time for the adaptation is over."""
        return time.perf_counter() > self.deadline

    def overhead(self, i: int) -> float:
        """Bytes of a picture's file that no quality changes, about: metadata and alpha, the header, a coder's flush."""
        bodies = self.sections_with(i, self.unchanged(i)).values()
        return _LEAST_FILE + sum(len(body) + SECTION_OVERHEAD for body in bodies)


def read_batch(
    sources: Iterable[Any],
    limits: Limits,
    check_limits: Callable[[int, int, int], None],
    settings: Settings,
    *,
    metadata: images.Metadata,
    alpha_quality: float | None,
    truncated: bool,
    max_seconds: float | None,
    progress: Progress | None,
    importance: Importance | Sequence[Importance | None] | None = None,
    least_side: int = 16,
    pixels_crc: bool = False,
) -> Batch:
    """Read the pictures and what is kept beside them; refuse what the codec would not decode.

    Args:
        sources: as `images.load_picture` takes them.
        limits: the codec's. check_limits: of width, height and tile, see `LatentStage`.
        least_side: of the patches of a quality map, in pixels.
        others: as for `Codec.encode_detailed`.
    """
    start = time.perf_counter()
    sources = list(sources)
    names, pictures, sections = names_of(len(sources)), [], []
    wanted = one_for_each(importance, len(sources))
    for name, source in zip(names, sources):
        with naming(name):
            picture = images.load_picture(source, max_pixels=limits.max_pixels, truncated=truncated)
            alpha: dict[int, bytes] = {}
            if picture.alpha is not None:
                kind, body, seen = lossy_alpha_section.pack(picture.alpha, alpha_quality)
                alpha[kind] = body
                if picture.alpha.dtype != seen.dtype:
                    what = f"{name}16-bit alpha is reduced to 8 bits (alpha_quality)"
                    warnings.warn(what, L2CWarning, stacklevel=6)
                # From here on also what distortion and targets are measured against.
                picture = replace(picture, rgb=fill_transparent(picture.rgb, seen))
            pictures.append(images.keep(picture, metadata))
            crc = {PIXELS: bytes(4)} if pixels_crc else {}  # known when the file is written
            sections.append(sections_of(pictures[-1]) | alpha | crc)
    for name, picture, kept in zip(names, pictures, sections):
        with naming(name):
            check_limits(picture.width, picture.height, settings.tile)
            _check_file(picture, kept, settings.tile, limits)
    quality_maps = []
    for name, picture, here in zip(names, pictures, wanted):
        with naming(name):
            quality_maps.append(quality_map_of(here, picture.height, picture.width, least_side))
    return Batch(
        names,
        pictures,
        sections,
        settings,
        {"load": time.perf_counter() - start, "encoder": 0.0, "adapt": 0.0, "entropy": 0.0},
        float("inf") if max_seconds is None else start + max_seconds,
        _rising(progress) if progress is not None else silent,
        quality_maps,
    )


def _check_file(picture: images.Picture, sections: dict[int, bytes], tile: int, limits: Limits) -> None:
    """Raises LimitError: larger tiles, or more of them or of metadata, than the codec would decode."""
    largest = min(picture.width, tile) * min(picture.height, tile)
    if limits.max_tile_pixels is not None and largest > limits.max_tile_pixels:
        raise LimitError(f"tile is {tile}: more pixels than {limits.max_tile_pixels} in a tile")
    size = sum(len(body) for kind, body in sections.items() if kind not in PIXEL_TYPES)
    tiles = -(-picture.height // tile) * -(-picture.width // tile)
    for name, value in (("max_metadata_bytes", size), ("max_tiles", tiles)):
        limit = getattr(limits, name)
        if limit is not None and value > limit:
            raise LimitError(f"the file would have {value} of what Limits.{name} allows {limit} of")


def sections_of(picture: images.Picture) -> dict[int, bytes]:
    """What is kept beside the pixels, alpha excepted."""
    sections: dict[int, bytes] = {}
    if picture.icc:
        sections[ICC] = picture.icc
    if picture.exif:
        sections[EXIF] = picture.exif
    if picture.xmp:
        sections[XMP] = pack_xmp(picture.xmp)
    if picture.dpi:
        sections[DPI] = pack_dpi(picture.dpi)
    return sections


def silent(share: float, stage: str) -> None:
    """Progress that nobody asked for."""


def _rising(progress: Progress) -> Progress:
    """The same progress, never falling: what is adapted once more was not in the plan."""
    most = 0.0

    def tell(share: float, stage: str) -> None:
        nonlocal most
        most = max(most, share)
        progress(most, stage)

    return tell
