"""Files -> pictures, for files of one model: pixels alone, with everything beside them, or the latents alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from l2c import images
from l2c.arrays import Symbols, UInt8Array
from l2c.codec.latent_stage import LatentStage
from l2c.codec.options import Mode, Output
from l2c.codec.results import Decoded, DecodeSeconds
from l2c.codec.support import naming, parts
from l2c.codec.transform_stage import TransformStage
from l2c.errors import BitstreamError
from l2c.format import lossy_alpha_section
from l2c.format.adapt_section import PatchChanges
from l2c.format.alpha_section import unpack_alpha
from l2c.format.bitstream import ALPHA, DPI, EXIF, ICC, LOSSY_ALPHA, XMP, Bitstream
from l2c.format.levels import METRICS, Metric, metric_name
from l2c.format.metadata_sections import unpack_dpi, unpack_xmp

_QUEUED_PIXELS = 1 << 26  # of the pictures that lie on a GPU at the same time


class Restored(NamedTuple):
    """A decoded picture: uint8 [H, W, 3] here or [3, H, W] on the device, and symbols [c, h, w], likewise."""

    pixels: Any
    symbols: Symbols | Tensor


class Decoder:
    """Files of one model on a device; `names` are what errors call them."""

    def __init__(self, transform_stage: TransformStage, latent_stage: LatentStage) -> None:
        self._transform_stage, self._latent_stage = transform_stage, latent_stage

    def restore(
        self,
        streams: Sequence[Bitstream],
        names: Sequence[str],
        *,
        metric: Metric | None = None,
        keep_on_device: bool = False,
        queue: bool = True,
    ) -> tuple[list[Restored], dict[str, float]]:
        """Pixels and symbols of files, decoded together.

        Args:
            metric: whose receivers they are for, None: as each file says by default.
            keep_on_device: pixels stay there, see `Restored`.
            queue: True: where the device can, P and D are queued on it together. False: one after the other.
        Returns:
            the pictures, and the seconds of "entropy" (P and coder) and "decoder" (D); those of a queue are all D's.
        """
        changes, start = [], time.perf_counter()
        for name, stream in zip(names, streams):
            header = stream.header
            with naming(name):
                self._latent_stage.check_limits(header.width, header.height, header.tile_size)
                changes.append(self._transform_stage.changes(stream, metric))
        restored = self.queued(streams, changes, keep_on_device) if queue else None
        if restored is not None:
            return restored, {"entropy": 0.0, "decoder": time.perf_counter() - start}
        symbols = self._latent_stage.read(streams, names)
        middle = time.perf_counter()
        pixels = self._synthesise(streams, symbols, changes, keep_on_device)
        seconds = {"entropy": middle - start, "decoder": time.perf_counter() - middle}
        return [Restored(*pair) for pair in zip(pixels, symbols)], seconds

    def detailed(
        self,
        streams: Sequence[Bitstream],
        names: Sequence[str],
        opened: Sequence[float],
        *,
        metric: Metric | None = None,
        queue: bool,
    ) -> list[Decoded]:
        """Files with everything that was kept beside the pixels, and how it went; times are shared by pixels.

        Args:
            opened: seconds that reading each container took.
            metric, queue: as in `restore`.
        """
        start = time.perf_counter()
        restored, seconds = self.restore(streams, names, metric=metric, queue=queue)
        found = []
        for name, stream, part in zip(names, streams, restored):
            symbols = part.symbols.cpu().numpy() if isinstance(part.symbols, Tensor) else part.symbols
            with naming(name):
                found.append((picture_of(stream, part.pixels), hashlib.sha256(symbols).hexdigest()))
        total = time.perf_counter() - start
        pixels, results = sum(stream.header.pixels for stream in streams), []
        for (picture, digest), stream, container in zip(found, streams, opened):
            share = stream.header.pixels / pixels
            mine = DecodeSeconds(
                container, share * seconds["entropy"], share * seconds["decoder"], container + share * total
            )
            applied = stream.header.metric_mix
            if metric is not None and self._transform_stage.alternative(stream, metric) is not None:
                applied = METRICS[metric]
            results.append(Decoded(picture, digest, mine, metric_name(applied)))
        return results

    def verify(self, streams: Sequence[Bitstream], names: Sequence[str]) -> list[str]:
        """Decode all but the pixels; the SHA-256 of each file's latent symbols."""
        for name, stream in zip(names, streams):
            with naming(name):
                self._transform_stage.changes(stream)
                self._transform_stage.alternatives(stream)
        symbols = self._latent_stage.read(streams, names)
        for name, stream in zip(names, streams):
            with naming(name):
                alpha_of(stream)
        return [hashlib.sha256(part).hexdigest() for part in symbols]

    def _synthesise(
        self, streams: Sequence[Bitstream], symbols: Any, changes: Sequence[PatchChanges], keep_on_device: bool
    ) -> list[Any]:
        headers = [stream.header for stream in streams]
        sizes, points = [(h.height, h.width) for h in headers], [h.point for h in headers]
        return self._transform_stage.synthesise(sizes, points, symbols, changes, keep_on_device=keep_on_device)

    def queued(
        self, streams: Sequence[Bitstream], changes: Sequence[PatchChanges], keep_on_device: bool
    ) -> list[Restored] | None:
        """Pixels, latents and all on the device; the host checks while D runs there.

        None: another backend, a tile too large, a check that failed or a device that did: `LatentStage.read` finds out
        what is wrong.
        """
        restored: list[Restored] = []
        for members in parts([stream.header.pixels for stream in streams], _QUEUED_PIXELS):
            try:
                part = self._queued_part(streams[members], changes[members], keep_on_device)
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
        self, streams: Sequence[Bitstream], changes: Sequence[PatchChanges], keep_on_device: bool
    ) -> list[Restored] | None:
        """`queued` of streams that the device holds at the same time."""
        queued = self._latent_stage.read_queued(streams)
        if queued is None:
            return None
        symbols, holds = queued
        pixels = self._synthesise(streams, symbols, changes, keep_on_device=True)
        if not holds():
            return None
        if not keep_on_device:
            pixels = [np.ascontiguousarray(part.permute(1, 2, 0).cpu().numpy()) for part in pixels]
        return [Restored(*pair) for pair in zip(pixels, symbols)]


def picture_of(stream: Bitstream, rgb: UInt8Array) -> images.Picture:
    """Pixels uint8 [H, W, 3] with everything that a file keeps beside them. Raises BitstreamError."""
    header, sections = stream.header, stream.metadata
    return images.Picture(
        rgb=rgb,
        mode=header.mode,
        bit_depth=header.bit_depth,
        alpha=alpha_of(stream),
        icc=bytes(sections[ICC]) if ICC in sections else None,
        exif=bytes(sections[EXIF]) if EXIF in sections else None,
        xmp=unpack_xmp(sections[XMP]) if XMP in sections else None,
        dpi=unpack_dpi(sections[DPI]) if DPI in sections else None,
    )


def alpha_of(stream: Bitstream) -> npt.NDArray[Any] | None:
    """The alpha plane of a file, or None. Raises BitstreamError."""
    for kind, unpack in ((ALPHA, unpack_alpha), (LOSSY_ALPHA, lossy_alpha_section.unpack)):
        if kind in stream.metadata:
            return unpack(stream.metadata[kind], stream.header.height, stream.header.width)
    return None


def present(pixels: Any, stream: Bitstream, as_: Output, mode: Mode) -> UInt8Array | PIL.Image.Image | Tensor:
    """Bring decoded pixels into the form that was asked for."""
    header = stream.header
    original = mode == "original"
    if as_ == "torch":
        if not original:
            return pixels
        array = images.to_original(pixels.permute(1, 2, 0).contiguous().cpu().numpy(), alpha_of(stream), header.mode)
        array = array[:, :, None] if array.ndim == 2 else array
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).to(pixels.device)
    if as_ == "numpy":
        return images.to_original(pixels, alpha_of(stream), header.mode) if original else pixels
    picture = images.to_pil(pixels, alpha_of(stream) if original else None, header.mode if original else "RGB")
    kept = stream.metadata
    return images.with_metadata(
        picture,
        icc=bytes(kept[ICC]) if ICC in kept else None,
        exif=bytes(kept[EXIF]) if EXIF in kept else None,
        xmp=unpack_xmp(kept[XMP]) if XMP in kept else None,
        dpi=unpack_dpi(kept[DPI]) if DPI in kept else None,
    )
