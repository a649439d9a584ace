"""Files -> pictures, for files of one model: pixels alone, with everything beside them, or the latents alone."""

from __future__ import annotations

import contextlib
import hashlib
import time
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c import images
from l2c.arrays import Symbols, UInt8Array
from l2c.codec.conceal import fill
from l2c.codec.latent_stage import LatentStage, crc_holds
from l2c.codec.options import Mode, Output
from l2c.codec.results import Decoded, DecodeSeconds, Verified
from l2c.codec.support import naming, parts
from l2c.codec.transform_stage import TransformStage
from l2c.codec.views import View
from l2c.errors import BitstreamError, UnsupportedError
from l2c.format import lossless_section, lossy_alpha_section
from l2c.format.adapt_section import PatchChanges
from l2c.format.alpha_section import unpack_alpha
from l2c.format.bitstream import ALPHA, DPI, EXIF, ICC, LOSSLESS, LOSSY_ALPHA, PIXELS, XMP, Bitstream, Header
from l2c.format.levels import METRICS, Metric, metric_name
from l2c.format.metadata_sections import unpack_dpi, unpack_xmp

_QUEUED_PIXELS = 1 << 26  # of the pictures that lie on a GPU at the same time


class Restored(NamedTuple):
    """A decoded picture, or a view of one.

    Attributes:
        pixels: uint8 [H, W, 3] here or [3, H, W] on the device.
        symbols: of the whole picture [c, h, w], likewise; None where not all were read; or the kept pixels.
        damaged: tiles that are no part of it, or only in part, and were concealed.
    """

    pixels: Any
    symbols: Symbols | Tensor | None
    damaged: tuple[int, ...] = ()


class Decoder:
    """Files of one model on a device; `names` are what errors call them."""

    def __init__(self, transform_stage: TransformStage, latent_stage: LatentStage) -> None:
        self._transform_stage, self._latent_stage = transform_stage, latent_stage

    def tiles(self, header: Header, view: View) -> list[int]:
        """Which tiles of a file are needed for a view."""
        reach = self._transform_stage.reach((header.height, header.width), view)
        return [n for n, box in enumerate(self._latent_stage.tile_boxes(header)) if box.touches(reach)]

    def restore(
        self,
        streams: Sequence[Bitstream],
        names: Sequence[str],
        views: Sequence[View],
        *,
        metric: Metric | None = None,
        conceal: bool = False,
        keep_on_device: bool = False,
        queue: bool = True,
    ) -> tuple[list[Restored], dict[str, float]]:
        """What is wanted of files, decoded together.

        Args:
            streams: a file of which several views are wanted is the same object each time: what they share of its
                latents is decoded once.
            metric: whose receivers they are for, None: as each file says by default.
            conceal: fill in damaged tiles instead of raising.
            keep_on_device: pixels stay there, see `Restored`.
            queue: True: where the device can, P and D are queued on it together. False: one after the other.
        Returns:
            the pictures, and the seconds of "entropy" (P and coder) and "decoder" (D); those of a queue are all D's.
        """
        kept = [i for i, stream in enumerate(streams) if stream.index.keeps_pixels]
        if kept:
            return self._restore_with_kept(
                kept, streams, names, views, metric=metric, conceal=conceal, keep_on_device=keep_on_device, queue=queue
            )
        changes = []
        for name, stream in zip(names, streams):
            header = stream.header
            with naming(name):
                self._latent_stage.check_limits(header.width, header.height, header.tile_size)
                changes.append(self._transform_stage.changes(stream, metric))
        restored: dict[int, Restored] = {}
        seconds = {"entropy": 0.0, "decoder": 0.0}
        whole = [i for i, s in enumerate(streams) if views[i].area is None and not (s.damaged_tiles or s.skipped)]
        with contextlib.suppress(*([BitstreamError] if conceal else [])):  # which file it is, the other way finds out
            found = self._restore_whole(
                [streams[i] for i in whole],
                [names[i] for i in whole],
                [views[i] for i in whole],
                [changes[i] for i in whole],
                keep_on_device,
                queue,
                seconds,
            )
            restored = dict(zip(whole, found))
        groups: dict[int, list[int]] = {}
        for i in range(len(streams)):
            if i not in restored:
                groups.setdefault(id(streams[i]), []).append(i)
        for members in groups.values():
            with naming(names[members[0]]):
                stream, mine = streams[members[0]], [changes[i] for i in members]
                wanted = [views[i] for i in members]
                restored |= zip(members, self._restore_views(stream, wanted, mine, conceal, keep_on_device, seconds))
        return [restored[i] for i in range(len(streams))], seconds

    def _restore_with_kept(
        self,
        kept: Sequence[int],
        streams: Sequence[Bitstream],
        names: Sequence[str],
        views: Sequence[View],
        *,
        keep_on_device: bool,
        **options: Any,
    ) -> tuple[list[Restored], dict[str, float]]:
        """`restore` of files of which those in `kept` keep pixels."""
        start, restored = time.perf_counter(), {}
        for i in kept:
            with naming(names[i]):
                pixels = kept_pixels(streams[i])
            seen: Any = view_of(pixels, views[i])
            if keep_on_device:
                seen = torch.from_numpy(seen.transpose(2, 0, 1).copy()).to(self._transform_stage.device)
            restored[i] = Restored(seen, pixels)
        mine = time.perf_counter() - start
        rest = [i for i in range(len(streams)) if i not in restored]
        found, seconds = self.restore(
            [streams[i] for i in rest],
            [names[i] for i in rest],
            [views[i] for i in rest],
            keep_on_device=keep_on_device,
            **options,
        )
        restored |= zip(rest, found)
        return [restored[i] for i in range(len(streams))], seconds | {"decoder": seconds["decoder"] + mine}

    def _restore_whole(
        self,
        streams: Sequence[Bitstream],
        names: Sequence[str],
        views: Sequence[View],
        changes: Sequence[PatchChanges],
        keep_on_device: bool,
        queue: bool,
        seconds: dict[str, float],
    ) -> list[Restored]:
        """Whole pictures of files that are whole, as far as their CRCs tell."""
        start = time.perf_counter()
        restored = self.queued(streams, views, changes, keep_on_device) if queue else None
        if restored is not None:
            seconds["decoder"] += time.perf_counter() - start
            return restored
        symbols = self._latent_stage.read(streams, names)
        middle = time.perf_counter()
        pixels = self._synthesise(streams, views, symbols, changes, keep_on_device)
        seconds["entropy"] += middle - start
        seconds["decoder"] += time.perf_counter() - middle
        return [Restored(*pair) for pair in zip(pixels, symbols)]

    def _restore_views(
        self,
        stream: Bitstream,
        views: Sequence[View],
        changes: Sequence[PatchChanges],
        conceal: bool,
        keep_on_device: bool,
        seconds: dict[str, float],
    ) -> list[Restored]:
        """Views of one file from the tiles that they need."""
        start, header = time.perf_counter(), stream.header
        size, boxes = (header.height, header.width), self._latent_stage.tile_boxes(header)
        needed = [self.tiles(header, view) for view in views]
        tiles = self._latent_stage.read_tiles(stream, sorted({n for part in needed for n in part}), conceal=conceal)
        seconds["entropy"] += time.perf_counter() - start
        results = []
        for view, numbers, change in zip(views, needed, changes):
            start = time.perf_counter()
            reach = self._transform_stage.reach(size, view)
            canvas = self._latent_stage.canvas(reach, header.latent_bits)
            for number in numbers:
                if number in tiles.symbols:
                    common = boxes[number].common(reach)
                    part = tiles.symbols[number][(slice(None), *common.within(boxes[number]).slices)]
                    canvas[(slice(None), *common.within(reach).slices)] = part
            fill(canvas, [boxes[n].common(reach).within(reach) for n in numbers if n in tiles.lost])
            (pixels,) = self._synthesise([stream], [view], [canvas], [change], keep_on_device)
            damaged = tuple(n for n in numbers if n in tiles.lost or n in tiles.partial)
            symbols = canvas if view.area is None and not damaged else None
            if symbols is not None and not crc_holds(stream, symbols):
                raise BitstreamError("the decoded latents do not match the CRC of the header")
            results.append(Restored(pixels, symbols, damaged))
            seconds["decoder"] += time.perf_counter() - start
        return results

    def detailed(
        self,
        streams: Sequence[Bitstream],
        names: Sequence[str],
        views: Sequence[View],
        opened: Sequence[float],
        *,
        metric: Metric | None = None,
        conceal: bool = False,
        queue: bool,
    ) -> list[Decoded]:
        """Files with everything that was kept beside the pixels, and how it went; times are shared by pixels.

        Args:
            opened: seconds that reading each container took.
            metric, conceal, queue: as in `restore`.
        """
        start = time.perf_counter()
        restored, seconds = self.restore(streams, names, views, metric=metric, conceal=conceal, queue=queue)
        found = []
        for name, stream, view, part in zip(names, streams, views, restored):
            symbols = part.symbols.cpu().numpy() if isinstance(part.symbols, Tensor) else part.symbols
            with naming(name):
                digest = "" if symbols is None else hashlib.sha256(symbols).hexdigest()
                found.append((picture_of(stream, view, part.pixels), digest))
        total = time.perf_counter() - start
        pixels, results = sum(stream.header.pixels for stream in streams), []
        for (picture, digest), stream, part, container in zip(found, streams, restored, opened):
            share = stream.header.pixels / pixels
            mine = DecodeSeconds(
                container, share * seconds["entropy"], share * seconds["decoder"], container + share * total
            )
            applied = stream.header.metric_mix
            if metric is not None and self._transform_stage.alternative(stream, metric) is not None:
                applied = METRICS[metric]
            results.append(Decoded(picture, digest, mine, metric_name(applied), part.damaged, stream.damaged_sections))
        return results

    def verify(self, streams: Sequence[Bitstream], names: Sequence[str], pixels: bool) -> list[Verified]:
        """Decode all of files, with or without their pixels."""
        for name, stream in zip(names, streams):
            with naming(name):
                self._transform_stage.changes(stream)
                self._transform_stage.alternatives(stream)
        coded = [i for i, stream in enumerate(streams) if not stream.index.keeps_pixels]
        symbols: dict[int, Any] = dict(
            zip(coded, self._latent_stage.read([streams[i] for i in coded], [names[i] for i in coded]))
        )
        for i, (name, stream) in enumerate(zip(names, streams)):
            with naming(name):
                if i not in symbols:
                    symbols[i] = kept_pixels(stream)
                alpha_of(stream)
        checks = [self._pixels_crc(*part, symbols[i]) if pixels else None for i, part in enumerate(zip(streams, names))]
        return [Verified(hashlib.sha256(symbols[i]).hexdigest(), check) for i, check in enumerate(checks)]

    def _pixels_crc(self, stream: Bitstream, name: str, symbols: Any) -> int:
        """CRC-32 of a file's colours. Raises where the file states another one."""
        stated = stream.metadata.get(PIXELS)
        with naming(name):
            if stream.index.keeps_pixels:
                colours = symbols
            elif stated is not None and self._transform_stage.exact is None:
                raise UnsupportedError(
                    "the file states a CRC of pixels: it can be checked with precision 'exact' alone"
                )
            else:
                changes = self._transform_stage.changes(stream)
                colours = self._synthesise([stream], [View()], [symbols], [changes], False)[0]
            crc = zlib.crc32(np.ascontiguousarray(colours))
            if stated is not None and bytes(stated) != crc.to_bytes(4, "little"):
                raise BitstreamError(
                    f"section PIXELS: the colours' CRC-32 is {crc:08x}, not the one that the file states"
                )
        return crc

    def _synthesise(
        self,
        streams: Sequence[Bitstream],
        views: Sequence[View],
        symbols: Any,
        changes: Sequence[PatchChanges],
        keep_on_device: bool,
    ) -> list[Any]:
        headers = [stream.header for stream in streams]
        sizes, points = [(h.height, h.width) for h in headers], [h.point for h in headers]
        return self._transform_stage.synthesise(sizes, points, symbols, changes, views, keep_on_device=keep_on_device)

    def queued(
        self,
        streams: Sequence[Bitstream],
        views: Sequence[View],
        changes: Sequence[PatchChanges],
        keep_on_device: bool,
    ) -> list[Restored] | None:
        """Pixels, latents and all of whole pictures on the device; the host checks while D runs there.

        None: another backend, a tile too large, a check that failed or a device that did: `LatentStage.read` finds out
        what is wrong.
        """
        restored: list[Restored] = []
        for members in parts([stream.header.pixels for stream in streams], _QUEUED_PIXELS):
            try:
                part = self._queued_part(streams[members], views[members], changes[members], keep_on_device)
            except BitstreamError:
                return None
            except RuntimeError as error:
                self._latent_stage.warn_of_device(error, "decoding in smaller steps")
                return None
            if part is None:
                return None
            restored += part
        return restored

    def _queued_part(
        self,
        streams: Sequence[Bitstream],
        views: Sequence[View],
        changes: Sequence[PatchChanges],
        keep_on_device: bool,
    ) -> list[Restored] | None:
        """`queued` of streams that the device holds at the same time."""
        queued = self._latent_stage.read_queued(streams)
        if queued is None:
            return None
        symbols, holds = queued
        pixels = self._synthesise(streams, views, symbols, changes, keep_on_device=True)
        if not holds():
            return None
        if not keep_on_device:
            pixels = [np.ascontiguousarray(part.permute(1, 2, 0).cpu().numpy()) for part in pixels]
        return [Restored(*pair) for pair in zip(pixels, symbols)]


def picture_of(stream: Bitstream, view: View, rgb: UInt8Array) -> images.Picture:
    """A view's pixels uint8 [H, W, 3] with everything that a file keeps beside them. Raises BitstreamError."""
    header, sections = stream.header, stream.metadata
    return images.Picture(
        rgb=rgb,
        mode=header.mode,
        bit_depth=header.bit_depth,
        alpha=alpha_of(stream, view),
        icc=bytes(sections[ICC]) if ICC in sections else None,
        exif=bytes(sections[EXIF]) if EXIF in sections else None,
        xmp=unpack_xmp(sections[XMP]) if XMP in sections else None,
        dpi=unpack_dpi(sections[DPI]) if DPI in sections else None,
    )


def alpha_of(stream: Bitstream, view: View = View()) -> npt.NDArray[Any] | None:
    """A view of the alpha plane of a file, or None. Raises BitstreamError."""
    for kind, unpack in ((ALPHA, unpack_alpha), (LOSSY_ALPHA, lossy_alpha_section.unpack)):
        if kind in stream.metadata:
            return view_of(unpack(stream.metadata[kind], stream.header.height, stream.header.width), view)
    return None


def kept_pixels(stream: Bitstream) -> UInt8Array:
    """The pixels that a file keeps, uint8 [H, W, 3]. Raises BitstreamError."""
    if LOSSLESS not in stream.metadata:
        raise BitstreamError("section LOSSLESS is damaged, and there is nothing else of the picture")
    return lossless_section.unpack(stream.metadata[LOSSLESS], stream.header.height, stream.header.width)


def view_of(values: npt.NDArray[Any], view: View) -> npt.NDArray[Any]:
    """A view of integers [H, W] or [H, W, C] that are at hand: averages, rounded."""
    part = values[view.snapped(*values.shape[:2]).slices]
    if view.scale == 1:
        return part
    planes = torch.from_numpy(np.atleast_3d(part).astype(np.float64)).permute(2, 0, 1)
    averages = F.avg_pool2d(planes, view.scale, ceil_mode=True).round_().permute(1, 2, 0)
    return averages.reshape(*averages.shape[:2], *values.shape[2:]).numpy().astype(values.dtype)


def present(
    pixels: Any, stream: Bitstream, view: View, as_: Output, mode: Mode
) -> UInt8Array | PIL.Image.Image | Tensor:
    """Bring decoded pixels into the form that was asked for."""
    original, kept_mode = mode == "original", stream.header.mode
    alpha = alpha_of(stream, view) if original else None
    if as_ == "torch":
        if not original:
            return pixels
        array = images.to_original(pixels.permute(1, 2, 0).contiguous().cpu().numpy(), alpha, kept_mode)
        array = array[:, :, None] if array.ndim == 2 else array
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).to(pixels.device)
    if as_ == "numpy":
        return images.to_original(pixels, alpha, kept_mode) if original else pixels
    picture = images.to_pil(pixels, alpha, kept_mode if original else "RGB")
    kept = stream.metadata
    return images.with_metadata(
        picture,
        icc=bytes(kept[ICC]) if ICC in kept else None,
        exif=bytes(kept[EXIF]) if EXIF in kept else None,
        xmp=unpack_xmp(kept[XMP]) if XMP in kept else None,
        dpi=unpack_dpi(kept[DPI]) if DPI in kept else None,
    )
