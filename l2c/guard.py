"""No quality gives a worse picture than a lower one.

A model promises that, but only for what it was trained on. Latents end at the limits of their 8 bits: where those of a
saturated colour would have to go beyond, a higher quality, whose quantiser steps are finer, costs an error of a hundred
grey levels. And of pictures with nearly nothing in them (one colour, an edge) a model may get the one colour by luck at
one quality and miss it by a level at the next; at the coarsest qualities, that goes for anything drawn. The encoder
sees this coming: E's latents before rounding say how far they clip, and files far smaller than a photograph's say how
little there is. Only then it looks at what D makes of the latents at lower qualities, too, and takes the best: the
smallest where several are equal.

One measure serves all qualities: the distortion of the file's metric (`l2c.objective`) at the largest lambda. Large
pictures are looked at through a lattice of crops, so that the time is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from l2c.rate_control import interpolate, log_curve

COARSE = 100  # quality 0..1000 up to which drawn pictures are looked into
CLIPPED = 0.05  # error of clipping, as a share of what rounding costs, that is looked into
_SMALL = 0.35  # of a photograph's mean rate at the same quality: files smaller than that are looked into
_EDGES = 0.02  # share of neighbouring samples that differ: pictures with fewer are looked into
_EQUAL_NEIGHBOURS = 0.5  # share of pixels of drawn pictures that equal the one to their left
_TINY = 4096  # pixels
_FEW_COLOURS, _FEW_PIXELS = 64, 4096  # drawn pictures have at most so many; so many pixels are looked at first
_GRID = 50  # lower qualities that are looked at are multiples of it, in tenths
_PATIENCE = 2  # so many looks without gain end a walk, once nothing clips any more
_SAMPLE, _CROP, _ALIGNMENT = 1 << 19, 128, 64  # pixels that are looked at, side of the crops, and where they start
_EQUAL = 1.0 + 1e-5


@dataclass(frozen=True)
class Look:
    """What a picture looks like at a quality.

    Attributes:
        cost: distortion, >= 0.
        clipped: mean square of what latents lose at their limits, as a share of what rounding costs, step^2 / 12.
    """

    cost: float
    clipped: float


@dataclass
class QualityGuard:
    """Decides which quality serves a picture where a higher one was asked for.

    Ask `next_look`, look there, tell `report`; repeat until `next_look` is None: then the decision is in `settled`.

    Attributes:
        settled: the decisions so far, by the quality that was asked for.
        looks: what is known, by quality.
    """

    settled: dict[int, int] = field(default_factory=dict)
    looks: dict[int, Look] = field(default_factory=dict)

    def next_look(self, quality: int, simple: bool) -> int | None:
        """The quality that has to be looked at next to decide which is best of those up to `quality`, 0..1000.

        Args:
            simple: look at all the lower ones; otherwise on as far as latents clip, and a little further.
        Returns:
            None: it is decided.
        """
        best, rest = quality, _PATIENCE
        for lower in range((quality - 1) // _GRID * _GRID, -1, -_GRID):
            unknown = next((level for level in (lower, best) if level not in self.looks), None)
            if unknown is not None:
                return unknown
            if self.looks[lower].cost <= _EQUAL * self.looks[best].cost:
                best, rest = lower, _PATIENCE
            elif not simple and self.looks[lower].clipped <= CLIPPED:
                rest -= 1
                if rest == 0:
                    break
        self.settled[quality] = best
        return None

    def report(self, quality: int, look: Look) -> None:
        """Tell what the picture looks like at a quality."""
        self.looks[quality] = look


def is_small(bpp: float, quality: int, curve: Sequence[tuple[float, float]]) -> bool:
    """Whether a file is so small for its quality 0..1000 that there is hardly anything in the picture.

    Args:
        curve: (quality, mean bpp) points of the model, rising; with less than two nothing is known, and the answer no.
    """
    return len(curve) > 1 and bpp < _SMALL * math.exp(interpolate(log_curve(curve), quality))


def is_flat(pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether a picture, uint8 [H, W, 3], is hardly more than some flat areas, by every fourth row."""
    rows, below = pixels[::4], pixels[1::4]
    pairs = (rows[:, 1:] != rows[:, :-1], below != rows[: len(below)])
    return all(differ.mean() < _EDGES for differ in pairs if differ.size)


def is_drawn(pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether a picture, uint8 [H, W, 3], is tiny, has few colours, or half of its pixels equal their neighbour, by
    every fourth row.

    Such pictures (screenshots, text, diagrams, icons) may take fewer bytes without loss, or in fewer colours.
    """
    if pixels.shape[0] * pixels.shape[1] <= _TINY:
        return True
    rows = pixels[::4]
    colours = (rows @ np.array((1 << 16, 1 << 8, 1), np.uint32)).ravel()
    if all(len(np.unique(part)) <= _FEW_COLOURS for part in (colours[:: -(-len(colours) // _FEW_PIXELS)], colours)):
        return True
    equal = (rows[:, 1:] == rows[:, :-1]).all(axis=2)
    return bool(equal.size) and bool(equal.mean() >= _EQUAL_NEIGHBOURS)


def sample(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What is looked at of a picture: uint8 [H, W, 3] -> [N, h, w, 3], all of it or crops that lie evenly."""
    height, width = pixels.shape[:2]
    if height * width <= _SAMPLE:
        return pixels[None]
    h, w = min(height, _CROP), min(width, _CROP)
    count = _SAMPLE // (h * w)
    rows = min(max(round(math.sqrt(count * (height / h) / (width / w))), 1), height // h, count)
    tops, lefts = _starts(height, h, rows), _starts(width, w, min(count // rows, width // w))
    return np.stack([pixels[top : top + h, left : left + w] for top in tops for left in lefts])


def _starts(length: int, side: int, count: int) -> list[int]:
    """Of `count` pieces over a length, at multiples of _ALIGNMENT: whatever a model's blocks are, they stay blocks."""
    places = np.linspace(0, length - side, count) if count > 1 else np.array([(length - side) / 2])
    return [int(place) // _ALIGNMENT * _ALIGNMENT for place in places]
