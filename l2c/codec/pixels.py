"""Drawn pictures kept as pixels instead of latents: without loss, or in fewer colours where that is too large.

Latents blur letters and thin lines. A file that keeps such a picture without loss often takes fewer bytes; where it
does not, the picture in some dozens of colours (`l2c.images.palettes`) often does, and is sharper. Fewer colours are
taken where the file is no larger than that of the latents, or than the target; where their distortion, of the file's
metric at the trade-off of the latents, is no greater; and, for `mixed`, which is made for eyes, where gradients do not
fall into bands, of which squared errors and MS-SSIM say too little (`masked_error`; docs/DRAWN.md has what its limits
come to).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from l2c import guard
from l2c.arrays import UInt8Array
from l2c.codec.batch import Batch
from l2c.codec.encoder import Encoder
from l2c.codec.results import Encoded
from l2c.errors import RateError
from l2c.format import lossless_section
from l2c.format.bitstream import read_header
from l2c.format.levels import MAX_QUALITY, METRICS
from l2c.format.tiles import grid
from l2c.images.palettes import Palettes
from l2c.metrics import luma
from l2c.search import Figure

_NEXT_TO_NOTHING = 0.02  # bits per pixel that are spent without asking whether latents take less
_UNSEEN, _UNSEEN_MASKED = 2.0, 0.002  # mean square of errors (45 dB), masked error: latents are not tried
_SIDE, _FLOOR = 9, 8.0  # of the masked error: pixels of its window, variance below which errors show equally
_FAR_NEARER = 5.6  # the mean square of errors is so many times less (7.5 dB), or
_FEW_BANDS, _FEWER = 0.03, 0.6  # the masked error is at most that, or at most so many times that of the latents
_BELOW_EXACT = MAX_QUALITY - 1  # in the head of files in fewer colours that no latents were compared with


@dataclass(frozen=True)
class Aim:
    """What a call asks for.

    Attributes:
        sizes: the most bytes of each picture's file; None: no such target.
        figure, value: the least figure, in dB; None: no such target.
    """

    sizes: Sequence[float | None]
    figure: Figure | None = None
    value: float = 0.0


@dataclass(frozen=True)
class Reduced:
    """A picture in fewer colours: uint8 [H, W, 3], and packed."""

    count: int
    rgb: UInt8Array
    body: bytes


class AsPixels:
    """The drawn pictures of a batch as pixels.

    Args:
        members: the pictures that are looked at: whether they are drawn, first.
    """

    def __init__(self, encoder: Encoder, batch: Batch, aim: Aim, members: Collection[int]) -> None:
        self._encoder, self._batch, self._aim = encoder, batch, aim
        self._exact: dict[int, Encoded] = {}
        self._palettes: dict[int, Palettes] = {}
        self._fitting: dict[int, Reduced] = {}  # what has most colours within a target in bytes
        for i in members:
            rgb = batch.pictures[i].rgb
            body = self._packed(rgb) if guard.is_drawn(rgb) else None
            if body is not None:
                self._exact[i] = encoder.write_pixels(batch, i, rgb, body, MAX_QUALITY)

    def files(
        self, coded: Callable[[Collection[int]], list[Encoded]], decode: Callable[[bytes], UInt8Array]
    ) -> list[Encoded]:
        """The file that serves each picture of the batch best.

        Args:
            coded: files with latents of some of the pictures. decode: what is shown of one.
        Raises:
            RateError: a picture fits its target neither as pixels nor as latents.
        """
        files = self._settled()
        rest = [i for i in range(len(self._batch.pictures)) if i not in files]
        try:
            files |= {i: self._best(i, file, decode) for i, file in zip(rest, coded(rest))}
        except RateError:
            if self._fitting.keys().isdisjoint(rest):
                raise
            for i in rest:  # one by one: which have no latents so small?
                try:
                    files[i] = self._best(i, coded([i])[0], decode)
                except RateError:
                    if i not in self._fitting:
                        raise
                    files[i] = self._written(i, self._fitting[i], _BELOW_EXACT)
        return [files[i] for i in range(len(files))]

    def _settled(self) -> dict[int, Encoded]:
        """Files of pictures that need no latents: what fits, or is next to nothing, is as good as can be."""
        done = {}
        for i, exact in self._exact.items():
            picture, most = self._batch.pictures[i], self._aim.sizes[i]
            room = _NEXT_TO_NOTHING * picture.height * picture.width / 8.0 if most is None else most
            if len(exact.data) <= room:
                done[i] = exact
                continue
            palettes = Palettes.of(picture.rgb) if self._batch.quality_maps[i] is None else None
            if palettes is None:
                continue
            self._palettes[i] = palettes
            fitting = None if most is None else self._within(i, palettes, most)
            if fitting is not None:
                self._fitting[i] = fitting
                if _squared(picture.rgb, fitting.rgb) <= _UNSEEN and self._masked(i, fitting.rgb) <= _UNSEEN_MASKED:
                    done[i] = self._written(i, fitting, _BELOW_EXACT)
        return done

    def _best(self, i: int, coded: Encoded, decode: Callable[[bytes], UInt8Array]) -> Encoded:
        """The file that serves a picture best, where `coded` holds its latents."""
        exact, palettes = self._exact.get(i), self._palettes.get(i)
        if exact is None:
            return coded
        if self._aim.sizes[i] is not None:
            reduced = self._fitting.get(i)
        else:
            if coded.target_reached and len(exact.data) <= len(coded.data):
                return exact
            if self._aim.figure is not None:
                return self._for_figure(i, coded, exact)
            reduced = None if palettes is None else self._within(i, palettes, len(coded.data))
        level = read_header(coded.data).header.quality
        if reduced is None or not self._serves(i, reduced.rgb, decode(coded.data), level):
            return coded
        return self._written(i, reduced, level)

    def _for_figure(self, i: int, coded: Encoded, exact: Encoded) -> Encoded:
        """The smallest file that reaches the figure."""
        smallest, palettes = coded if coded.target_reached else exact, self._palettes.get(i)
        fewest = None if palettes is None else self._reaching(i, palettes)
        if fewest is None:
            return smallest
        file = self._written(i, fewest, read_header(coded.data).header.quality)
        return file if len(file.data) <= len(smallest.data) else smallest

    def _serves(self, i: int, fewer: UInt8Array, latents: UInt8Array, level: int) -> bool:
        """Whether a picture in fewer colours is no worse than what is made of latents of a quality."""
        before, after = (self._encoder.distortion(self._batch, i, pixels, level) for pixels in (latents, fewer))
        original = self._batch.pictures[i].rgb
        for_eyes = METRICS["psnr"] < self._batch.mu < METRICS["msssim"]
        if after > before or not for_eyes:
            return after <= before
        if _FAR_NEARER * _squared(original, fewer) <= _squared(original, latents):
            return True
        bands = self._masked(i, fewer)
        return bands <= _FEW_BANDS or bands <= _FEWER * self._masked(i, latents)

    def _masked(self, i: int, pixels: UInt8Array) -> float:
        return masked_error(self._batch.pictures[i].rgb, pixels, self._batch.tile)

    def _within(self, i: int, palettes: Palettes, size: float) -> Reduced | None:
        """With most colours of those whose file has at most `size` bytes; sizes are taken to rise with them."""
        found = None
        low, high = 0, len(palettes.counts)
        while low < high:
            middle = (low + high) // 2
            rgb = palettes.picture(palettes.counts[middle])
            body = lossless_section.pack(rgb)
            reduced = None if body is None else Reduced(palettes.counts[middle], rgb, body)
            if reduced is not None and len(self._written(i, reduced, 0).data) <= size:
                found, low = reduced, middle + 1
            else:
                high = middle
        thorough = self._packed(found.rgb) if found is not None and self._batch.effort.adapts else None
        if found is not None and thorough is not None and len(thorough) < len(found.body):
            return replace(found, body=thorough)
        return found

    def _reaching(self, i: int, palettes: Palettes) -> Reduced | None:
        """With fewest colours of those that reach the figure that is asked for; None: none does."""

        def reaches(count: int) -> bool:
            figure = self._aim.figure or "PSNR"
            return self._encoder.figure(self._batch, i, palettes.picture(count), figure) >= self._aim.value

        place = bisect.bisect_left(palettes.counts, True, key=reaches)
        if place == len(palettes.counts):
            return None
        rgb = palettes.picture(palettes.counts[place])
        body = self._packed(rgb)
        return None if body is None else Reduced(palettes.counts[place], rgb, body)

    def _packed(self, rgb: UInt8Array) -> bytes | None:
        """As the effort has it."""
        return lossless_section.pack(rgb, self._batch.effort.adapts)

    def _written(self, i: int, reduced: Reduced, level: int) -> Encoded:
        """As a file whose head has a quality 0..999: that of the latents that it replaces."""
        return self._encoder.write_pixels(
            self._batch, i, reduced.rgb, reduced.body, min(level, _BELOW_EXACT), reduced.count
        )


def masked_error(original: UInt8Array, pixels: UInt8Array, tile: int) -> float:
    """Squared error of luma around each pixel as a share of the original's variance there, on average.

    Errors on even ground count most, as they are seen most: the bands of a gradient, the haze around letters.

    Args:
        original, pixels: uint8 [H, W, 3]. tile: side of the parts that are in memory at a time.
    """
    height, width = original.shape[:2]
    total = 0.0
    for box in grid(height, width, tile):
        pair = (torch.from_numpy(part[box.slices].astype(np.float32)) for part in (original, pixels))
        x, x_hat = (luma(part.permute(2, 0, 1)[None]) for part in pair)
        variance = (_around(x.square()) - _around(x).square()).clamp_min(0.0)
        share = _around((x_hat - x).square()) / (variance + _FLOOR)
        total += float(share.mean()) * box.height * box.width
    return total / (height * width)


def _squared(original: UInt8Array, pixels: UInt8Array) -> float:
    """Mean square of errors; row by row, so that it needs no memory."""
    rows = (np.square(x.astype(np.int32) - y).sum() for x, y in zip(original, pixels))
    return float(sum(rows)) / original.size


def _around(x: torch.Tensor) -> torch.Tensor:
    """Means over windows of `_SIDE` pixels a side, cut off at the edges: [1, 1, h, w] -> the same shape."""
    for side in ((_SIDE, 1), (1, _SIDE)):
        padding = (side[0] // 2, side[1] // 2)
        x = F.avg_pool2d(x, side, stride=1, padding=padding, count_include_pad=False)
    return x
