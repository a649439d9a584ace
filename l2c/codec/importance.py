"""What a caller says of the parts of a picture -> the map of qualities that its file gets (`encode(importance=)`).

An importance is a map or boxes. It says what an error weighs: where a place is half as important as another one, a
squared error counts half. Only ratios count. The most important place has the quality that the file says, all others
are coded coarser, by at most a factor of 2^(MOST_DROP / 2) = 64 in weight.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from l2c.arrays import UInt8Array
from l2c.errors import ImageError, L2CWarning, LimitError, UnsupportedError
from l2c.format.quality_map_section import DROPS_PER_OCTAVE, SIDES_LOG2, QualityMap
from l2c.images import load_picture

Importance: TypeAlias = Any  # a map, or boxes: see `Codec.encode_detailed`

DEFAULT_WEIGHT = 16.0  # of a box; what is outside of all boxes weighs 1
MOST_WEIGHT = 64.0  # of a box, and its inverse the least
MOST_DROP = 12
_LEAST_SIDE = 1 << SIDES_LOG2[0]
_MOST_BYTES_A_PIXEL, _ALWAYS_BYTES = 0.0005, 24  # that a map may take before its patches are made larger


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels, `right` and `bottom` just outside, and what errors in it weigh."""

    left: float
    top: float
    right: float
    bottom: float
    weight: float = DEFAULT_WEIGHT


Wanted: TypeAlias = "UInt8Array | tuple[Box, ...] | None"


def one_for_each(importance: Importance | Sequence[Importance | None] | None, count: int) -> list[Wanted]:
    """The importance of each of some pictures: maps uint8 [h, w], boxes, or None.

    Args:
        importance: one for all pictures; or a list with one, or None, for each.
    Raises:
        UnsupportedError: not one for each, or a box that is none. ImageError, LimitError: a map that is none.
    """
    if not isinstance(importance, (list, tuple)) or _is_box(importance) or all(map(_is_box, importance)):
        return [_read(importance, None)] * count
    if len(importance) != count:
        raise UnsupportedError(f"importance has {len(importance)} parts for {count} pictures: it must be one for each")
    return [_read(part, i if count > 1 else None) for i, part in enumerate(importance)]


def portable(importance: Importance) -> UInt8Array | list[tuple[float, ...]]:
    """One importance that says the same without its file: a map uint8 [h, w], or boxes with weights.

    Raises as `one_for_each`.
    """
    (wanted,) = one_for_each(importance, 1)
    if isinstance(wanted, tuple):
        return [dataclasses.astuple(box) for box in wanted]
    assert wanted is not None
    return wanted


def quality_map_of(wanted: Wanted, height: int, width: int, least_side: int = _LEAST_SIDE) -> QualityMap | None:
    """The map of a picture of so many pixels; None: all of it is equally important.

    Args:
        least_side: of the patches, in pixels: 16, 32, ...
    Raises:
        UnsupportedError: a box that does not touch the picture.
    """
    if wanted is None:
        return None
    if isinstance(wanted, tuple):
        weights = _of_boxes(wanted, height, width)
    else:
        weights = _pooled(_pooled(wanted, height).T, width).T.astype(np.float64)
    for side in (1 << log2 for log2 in SIDES_LOG2):
        if side >= least_side:
            step = side // _LEAST_SIDE
            weights_here = np.maximum.reduceat(weights, np.arange(0, weights.shape[0], step), axis=0)
            weights_here = np.maximum.reduceat(weights_here, np.arange(0, weights.shape[1], step), axis=1)
            drops = _drops(weights_here)
            found = QualityMap(side, drops) if drops.any() else None
            if found is None or len(found.pack()) <= max(_ALWAYS_BYTES, _MOST_BYTES_A_PIXEL * height * width):
                break
    return found


def _drops(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Weights >= 0 of patches -> halves of an octave that each is below the greatest: uint8, 0..MOST_DROP."""
    most = float(weights.max())
    if most == 0.0:
        return np.zeros(weights.shape, np.uint8)
    shares = np.maximum(weights / most, 0.5 ** (MOST_DROP / DROPS_PER_OCTAVE))
    return np.rint(-DROPS_PER_OCTAVE * np.log2(shares)).astype(np.uint8)


def _pooled(values: npt.NDArray[Any], pixels: int) -> npt.NDArray[Any]:
    """Entries that cover a length of so many pixels evenly, [n, ...] -> the greatest of those that each patch of
    _LEAST_SIDE pixels touches, [ceil(pixels / _LEAST_SIDE), ...]."""
    count, rows = len(values), []
    for start in range(0, pixels, _LEAST_SIDE):
        stop = min(start + _LEAST_SIDE, pixels)
        rows.append(values[start * count // pixels : -(-stop * count // pixels)].max(axis=0))
    return np.stack(rows)


def _of_boxes(boxes: Sequence[Box], height: int, width: int) -> npt.NDArray[np.float64]:
    """The weights of patches; where boxes overlap the greatest counts."""
    side = _LEAST_SIDE
    weights = np.ones((-(-height // side), -(-width // side)))
    for box in sorted(boxes, key=lambda part: part.weight):
        if box.right <= 0 or box.bottom <= 0 or box.left >= width or box.top >= height:
            raise UnsupportedError(f"importance: {_shown(box)} does not touch the picture of {width}x{height} pixels")
        ends = []
        for first, last, length in ((box.top, box.bottom, height), (box.left, box.right, width)):
            first, last = max(first, 0.0), min(last, float(length))
            if box.weight >= 1.0:  # all that it touches
                ends.append(slice(math.floor(first / side), math.ceil(last / side)))
            else:  # what lies in it
                stop = math.ceil(length / side) if last == length else math.floor(last / side)
                ends.append(slice(math.ceil(first / side), stop))
        weights[tuple(ends)] = box.weight
    return weights


def _read(importance: Importance | None, number: int | None) -> Wanted:
    """A map or boxes as they are asked for, checked; number: of the picture, from 0."""
    name = "importance" if number is None else f"importance of picture {number + 1}"
    if importance is None:
        return None
    if isinstance(importance, (list, tuple)):
        return tuple(_box(part, name) for part in ([importance] if _is_box(importance) else importance))
    return _map(importance, name)


def _map(source: Any, name: str) -> UInt8Array:
    """uint8 [h, w] of what `load_picture` takes, or of booleans."""
    if isinstance(source, np.ndarray) or hasattr(source, "detach"):
        if source.ndim != 2:
            raise UnsupportedError(f"{name}: a map has the shape [H, W], not {list(source.shape)}")
        if str(source.dtype).endswith("bool"):
            source = np.asarray(source.cpu() if hasattr(source, "cpu") else source).astype(np.uint8) * np.uint8(255)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", L2CWarning)  # of what is not kept of it
            rgb = load_picture(source).rgb
    except (ImageError, LimitError) as error:
        error.args = (f"{name}: {error}",)
        raise
    return np.asarray(rgb.sum(axis=2, dtype=np.uint16) // 3, dtype=np.uint8)


def _is_box(part: Any) -> bool:
    """Whether it is meant as one: some numbers in a row."""
    return isinstance(part, (list, tuple)) and bool(part) and all(_is_number(value) for value in part)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _box(part: Any, name: str) -> Box:
    if not _is_box(part) or not 4 <= len(part) <= 5:
        raise UnsupportedError(f"{name}: {part!r} is no box: it must be (left, top, right, bottom), or with a weight")
    try:
        box = Box(*map(float, part))
    except OverflowError:
        raise UnsupportedError(f"{name}: a number of a box is far too large") from None
    if not all(map(math.isfinite, (box.left, box.top, box.right, box.bottom))):
        raise UnsupportedError(f"{name}: {_shown(box)} is not finite")
    if box.left >= box.right or box.top >= box.bottom:
        raise UnsupportedError(f"{name}: {_shown(box)} is empty")
    if not 1.0 / MOST_WEIGHT <= box.weight <= MOST_WEIGHT:
        raise UnsupportedError(
            f"{name}: the weight of a box is {box.weight:g}: it must be 1/{MOST_WEIGHT:g}..{MOST_WEIGHT:g}"
        )
    return box


def _shown(box: Box) -> str:
    return f"box ({box.left:g}, {box.top:g}, {box.right:g}, {box.bottom:g})"
