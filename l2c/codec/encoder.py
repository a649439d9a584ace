"""Pictures -> coded latents -> files: one step each, for a search to put together (`l2c.codec.search`)."""

from __future__ import annotations

import functools
import hashlib
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from l2c import guard, images
from l2c.adapt.effort import EFFORTS, Effort
from l2c.adapt.encoder import Adapted, Subject, adapt
from l2c.arrays import UInt8Array
from l2c.codec.latent_stage import Latents, LatentStage
from l2c.codec.options import DEFAULT_TILE
from l2c.codec.results import Encoded
from l2c.codec.support import names_of, naming
from l2c.codec.transform_stage import TransformStage
from l2c.errors import L2CWarning, LimitError
from l2c.format import lossy_alpha_section
from l2c.format.adapt_section import PatchChanges
from l2c.format.bitstream import (
    ADAPT,
    ALPHA_TYPES,
    DPI,
    EXIF,
    ICC,
    SECTION_OVERHEAD,
    XMP,
    Header,
    Limits,
    file_size,
    write_bitstream,
)
from l2c.format.levels import MAX_QUALITY, OperatingPoint
from l2c.format.metadata_sections import pack_dpi, pack_xmp
from l2c.format.tiles import grid, latent_tiles
from l2c.images.transparent import fill_transparent
from l2c.metrics import msssim as msssim_of
from l2c.metrics import psnr as psnr_of
from l2c.models import Model
from l2c.objective import Blend, distortion
from l2c.rate_control import dissimilarity_db

_ADAPT_PIXELS = 1 << 23  # pictures are adapted together up to this many pixels, at about 80 bytes each
_LEAST_FILE = file_size([0], [])  # bytes of a file whose only tile is empty


@dataclass
class Batch:
    """What one call encodes, and how; `clock` collects seconds per stage, `deadline` is of `time.perf_counter`."""

    pictures: list[images.Picture]
    sections: list[dict[int, bytes]]
    mu: int
    bits: int
    tile: int
    effort: Effort
    clock: dict[str, float]
    deadline: float
    progress: Callable[[float, str], None]
    guards: list[guard.QualityGuard]

    def only(self, *members: int) -> Batch:
        """The same for one of the pictures alone, or for some of them."""
        pictures, sections = [self.pictures[i] for i in members], [self.sections[i] for i in members]
        return replace(self, pictures=pictures, sections=sections, guards=[self.guards[i] for i in members])

    def settled(self, i: int, level: int) -> int:
        """The quality at which a picture is encoded where this one (0..1000) is asked for, as far as is known."""
        return self.guards[i].settled.get(level, level)

    def overhead(self, i: int) -> float:
        """Bytes of a picture's file that no quality changes, about: metadata and alpha, the header, a coder's flush."""
        return _LEAST_FILE + sum(len(body) + SECTION_OVERHEAD for body in self.sections[i].values())


@dataclass(frozen=True)
class Coded:
    """A picture's coded latents: all of its file but the head.

    Attributes:
        latents: what was coded. changes: what D changes for them.
        payloads, used: of each tile, with the channels in use.
        sections: what lies beside them in the file, ADAPT included.
    """

    latents: Latents
    changes: PatchChanges
    payloads: list[bytes]
    used: list[int]
    sections: dict[int, bytes]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return file_size([len(payload) for payload in self.payloads], [len(body) for body in self.sections.values()])


@dataclass(frozen=True)
class Trial:
    """A way to code a picture, and what led to it.

    Attributes:
        report: of the adaptation, see `Adapted.report`. corrections: see `Encoded`.
    """

    coded: Coded
    report: dict[str, float | int] = field(default_factory=dict)
    corrections: int = 0

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.coded.size

    @property
    def quality(self) -> float:
        """0..100."""
        return 100.0 * self.coded.latents.point.quality_tenths / MAX_QUALITY


class Encoder:
    """What an encoding search is made of, for a model on a device."""

    def __init__(
        self, model: Model, transform_stage: TransformStage, latent_stage: LatentStage, limits: Limits
    ) -> None:
        self.model, self.limits = model, limits
        self.transform_stage, self.latent_stage = transform_stage, latent_stage

    def batch(
        self,
        sources: Iterable[Any],
        *,
        mu: int,
        bits: int | None = None,
        tile: int = DEFAULT_TILE,
        effort: Effort = EFFORTS[0],
        metadata: images.Metadata = True,
        alpha_quality: float | None = None,
        truncated: bool = False,
        max_seconds: float | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> Batch:
        """Read the pictures and what is kept beside them; refuse what this codec would not decode.

        Args:
            sources: as `images.load_picture` takes them.
            mu: the metric mix 0..8. Others: as for `Codec.encode_detailed`.
        """
        start, bits = time.perf_counter(), self.model.config.bits if bits is None else bits
        sources = list(sources)
        names, pictures, sections = names_of(len(sources)), [], []
        for name, image in zip(names, sources):
            with naming(name):
                picture = images.load_picture(image, max_pixels=self.limits.max_pixels, truncated=truncated)
                alpha: dict[int, bytes] = {}
                if picture.alpha is not None:
                    kind, body, seen = lossy_alpha_section.pack(picture.alpha, alpha_quality)
                    alpha[kind] = body
                    if picture.alpha.dtype != seen.dtype:
                        what = f"{name}16-bit alpha is reduced to 8 bits (alpha_quality)"
                        warnings.warn(what, L2CWarning, stacklevel=5)
                    # From here on also what distortion and targets are measured against.
                    picture = replace(picture, rgb=fill_transparent(picture.rgb, seen))
                pictures.append(images.keep(picture, metadata))
                sections.append(sections_of(pictures[-1]) | alpha)
        for name, picture, kept in zip(names, pictures, sections):
            with naming(name):
                self.latent_stage.check_limits(picture.width, picture.height, tile)
                largest = min(picture.width, tile) * min(picture.height, tile)
                if self.limits.max_tile_pixels is not None and largest > self.limits.max_tile_pixels:
                    raise LimitError(f"tile is {tile}: more pixels than {self.limits.max_tile_pixels} in a tile")
                self._check_parts(picture, kept, tile)
        return Batch(
            pictures,
            sections,
            mu,
            bits,
            tile,
            effort,
            {"load": time.perf_counter() - start, "encoder": 0.0, "adapt": 0.0, "entropy": 0.0},
            float("inf") if max_seconds is None else start + max_seconds,
            _rising(progress) if progress is not None else _silent,
            [self._guard(picture.rgb, mu, bits) for picture in pictures],
        )

    def _check_parts(self, picture: images.Picture, sections: dict[int, bytes], tile: int) -> None:
        """Raises LimitError: more metadata or tiles than this codec would decode."""
        size = sum(len(body) for kind, body in sections.items() if kind not in ALPHA_TYPES)
        tiles = -(-picture.height // tile) * -(-picture.width // tile)
        for name, value in (("max_metadata_bytes", size), ("max_tiles", tiles)):
            limit = getattr(self.limits, name)
            if limit is not None and value > limit:
                raise LimitError(f"the file would have {value} of what Limits.{name} allows {limit} of")

    def _guard(self, pixels: UInt8Array, mu: int, bits: int) -> guard.QualityGuard:
        """What decides whether a quality serves a picture, uint8 [H, W, 3]."""
        return guard.QualityGuard(functools.partial(self.transform_stage.look, pixels, mu, bits))

    def encode_at(self, batch: Batch, members: Sequence[int], levels: list[int]) -> list[Coded]:
        """Some pictures, unadapted, at given qualities 0..1000, or at lower ones that serve them better."""
        coded, clipped = self._encode_exactly(batch, members, [batch.settled(i, q) for i, q in zip(members, levels)])
        for place, (i, level, loss) in enumerate(zip(members, levels, clipped)):
            if level in batch.guards[i].settled:
                continue
            payload = coded[place].size - batch.overhead(i)
            pixels = batch.pictures[i].height * batch.pictures[i].width
            simple = guard.is_small(8.0 * payload / pixels, level, self.model.rate_curve)
            simple = simple or guard.is_flat(batch.pictures[i].rgb)
            if simple or loss > guard.CLIPPED:
                start = time.perf_counter()
                settled = batch.guards[i].settle(level, simple)
                batch.clock["encoder"] += time.perf_counter() - start
                if settled != level:
                    ((coded[place],), _) = self._encode_exactly(batch, [i], [settled])
        return coded

    def _encode_exactly(
        self, batch: Batch, members: Sequence[int], levels: list[int]
    ) -> tuple[list[Coded], list[float]]:
        """Some pictures, unadapted, at these very qualities, and how much their latents clip."""
        start = time.perf_counter()
        pixels = [batch.pictures[i].rgb for i in members]
        analysed = self.transform_stage.analyse(pixels, levels, batch.mu, batch.bits)
        batch.clock["encoder"] += time.perf_counter() - start
        points = [OperatingPoint(level, batch.mu, batch.bits) for level in levels]
        latents = [Latents(part.symbols, point) for part, point in zip(analysed, points)]
        return self._code(batch, members, latents, [PatchChanges()] * len(latents)), [part.clipped for part in analysed]

    def code_adapted(self, batch: Batch, i: int, adapted: Adapted) -> Coded:
        """An adapted picture as it is now."""
        latents = Latents(adapted.symbols(), adapted.subject.point)
        return self._code(batch, [i], [latents], [adapted.changes])[0]

    def _code(
        self, batch: Batch, members: Sequence[int], latents: list[Latents], changes: list[PatchChanges]
    ) -> list[Coded]:
        start = time.perf_counter()
        pictures = [batch.pictures[i] for i in members]
        coded = self.latent_stage.write([(p.height, p.width) for p in pictures], latents, batch.tile)
        results = []
        for i, part, (payloads, used), change in zip(members, latents, coded, changes):
            adaptation = change.pack()
            sections = batch.sections[i] | ({ADAPT: adaptation} if adaptation else {})
            results.append(Coded(part, change, payloads, used, sections))
        batch.clock["entropy"] += time.perf_counter() - start
        return results

    def write(self, batch: Batch, i: int, trial: Trial) -> Encoded:
        """The file of a picture, and what `Encoded` says of it."""
        start = time.perf_counter()
        picture, coded = batch.pictures[i], trial.coded
        symbols, point = coded.latents.symbols, coded.latents.point
        header = Header(
            width=picture.width,
            height=picture.height,
            model_id=self.model.model_id,
            latents_crc32=zlib.crc32(symbols),
            quality=point.quality_tenths,
            latent_bits=point.bits,
            metric_mix=point.mix,
            mode=picture.mode,
            bit_depth=picture.bit_depth,
            tile_size=batch.tile,
        )
        data = write_bitstream(header, coded.payloads, coded.used, coded.sections)
        digest = hashlib.sha256(symbols).hexdigest()
        batch.clock["entropy"] += time.perf_counter() - start
        return Encoded(
            data,
            8.0 * len(data) / (picture.height * picture.width),
            100.0 * point.quality_tenths / MAX_QUALITY,
            corrections=trial.corrections,
            latents_sha256=digest,
            adaptation=trial.report,
        )

    def decoded(self, batch: Batch, i: int, coded: Coded) -> UInt8Array:
        """What a decoder makes of a picture's latents in hand: uint8 [H, W, 3]."""
        size = batch.pictures[i].height, batch.pictures[i].width
        latents = coded.latents
        return self.transform_stage.synthesise([size], [latents.point], [latents.symbols], [coded.changes])[0]

    def measured(self, batch: Batch, i: int, coded: Coded, name: str) -> float:
        """PSNR, or MS-SSIM in dB, of what a decoder makes of a picture."""
        # Not from_numpy of the pictures themselves: a caller's array may be read-only, which PyTorch warns about.
        pair = (part.astype(np.float32) for part in (batch.pictures[i].rgb, self.decoded(batch, i, coded)))
        x, x_hat = (torch.from_numpy(part).permute(2, 0, 1)[None] / 255.0 for part in pair)
        return float(psnr_of(x, x_hat)) if name == "PSNR" else dissimilarity_db(float(msssim_of(x, x_hat)))

    def cost(self, batch: Batch, i: int, coded: Coded, level: int) -> float:
        """J of a picture in bits, its distortion weighed as at a quality 0..1000: what the encoder keeps low."""
        pixels, cost = self.decoded(batch, i, coded), 0.0
        lmbda = self.model.config.lmbda(level / MAX_QUALITY)
        blend = Blend.of(torch.tensor([batch.mu], device="cpu"), torch.tensor([lmbda], device="cpu"))
        for box in grid(pixels.shape[0], pixels.shape[1], batch.tile):
            pair = (part[box.slices].astype(np.float32) for part in (batch.pictures[i].rgb, pixels))
            x, x_hat = (torch.from_numpy(part).permute(2, 0, 1)[None] / 255.0 for part in pair)
            cost += float(distortion(x, x_hat, blend)) * box.height * box.width
        return lmbda * cost + 8.0 * coded.size

    def adapt(self, batch: Batch, levels: list[int], aims: list[float] | None = None) -> Iterator[tuple[int, Adapted]]:
        """Search latents and decoder changes of all pictures at given qualities; yields each picture when it is done.

        `aims` are shares of their unadapted sizes that the pictures should come to; None: what J says.
        Pictures are taken together up to _ADAPT_PIXELS; a larger one is taken alone, about 80 bytes a pixel.
        """
        groups: list[list[int]] = []
        weights = [p.height * p.width for p in batch.pictures]
        for i, weight in enumerate(weights):
            if not groups or sum(weights[k] for k in groups[-1]) + weight > _ADAPT_PIXELS:
                groups.append([])
            groups[-1].append(i)
        done = 0
        for members in groups:
            mine = sum(weights[i] for i in members)

            def tell(share: float, stage: str, before: int = done, mine: int = mine) -> None:
                batch.progress((before + share * mine) / sum(weights), stage)

            start = time.perf_counter()
            with torch.inference_mode(False):  # gradients are needed, whatever the caller has set
                subjects = self.subjects(batch, members, levels)
                for i, subject in zip(members, subjects):
                    subject.aim = aims[i] if aims is not None else None
                middle = time.perf_counter()
                results = adapt(
                    self.transform_stage.transform, self.latent_stage.float_probability(), self.model.bias_sets,
                    subjects, batch.effort, self.transform_stage.device,
                    tell, lambda: time.perf_counter() > batch.deadline,
                )  # fmt: skip
            batch.clock["encoder"] += middle - start
            batch.clock["adapt"] += time.perf_counter() - middle
            done += mine
            yield from zip(members, results)

    def subjects(self, batch: Batch, members: Sequence[int], levels: list[int]) -> list[Subject]:
        """Some of the pictures as the adaptation takes them, E's latents included; levels are of all pictures."""
        pictures = [batch.pictures[i] for i in members]
        chosen = [batch.settled(i, levels[i]) for i in members]
        analysed = self.transform_stage.analyse([p.rgb for p in pictures], chosen, batch.mu, batch.bits, keep=True)
        return [
            Subject(
                picture.rgb,
                torch.from_numpy(part.y),
                None if part.mask is None else torch.from_numpy(part.mask),
                latent_tiles(picture.height, picture.width, batch.tile, self.transform_stage.s),
                self.transform_stage.condition(level, batch.mu),
                self.model.config.lmbda(level / MAX_QUALITY),
                OperatingPoint(level, batch.mu, batch.bits),
            )
            for picture, part, level in zip(pictures, analysed, chosen)
        ]


def _silent(share: float, stage: str) -> None:
    """Progress that nobody asked for."""


def _rising(progress: Callable[[float, str], None]) -> Callable[[float, str], None]:
    """The same progress, never falling: what is adapted once more was not in the plan."""
    most = 0.0

    def tell(share: float, stage: str) -> None:
        nonlocal most
        most = max(most, share)
        progress(most, stage)

    return tell


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
