"""Latents that did not arrive: filled in from those around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.arrays import Symbols
from l2c.format.tiles import Box

_MARGIN = 16  # latents around what is missing that it is filled from
_CHANNELS = 16  # that are worked on together: a matter of memory
_SMOOTHED = 8  # times at every scale


def fill(symbols: Symbols, missing: Sequence[Box]) -> None:
    """Fill boxes of symbols [c, h, w] with a smooth continuation of what lies around them, rounded, in place.

    Averages of known values at coarser and coarser scales, then back, finer and finer, known values kept, the others
    smoothed: nearly the solution of Laplace's equation. Where nothing is known, symbols stay.
    """
    if not missing:
        return
    height, width = symbols.shape[1:]
    hull = Box(
        min(box.top for box in missing),
        min(box.left for box in missing),
        max(box.bottom for box in missing),
        max(box.right for box in missing),
    ).widened(_MARGIN, height, width)
    known = np.ones((hull.height, hull.width), dtype=np.bool_)
    for box in missing:
        known[box.within(hull).slices] = False
    if not known.any():
        return
    for start in range(0, len(symbols), _CHANNELS):
        part = symbols[(slice(start, start + _CHANNELS), *hull.slices)]  # a view
        part[:] = _filled(part, known)


def _filled(values: Symbols, known: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    weights = torch.from_numpy(known)[None, None].float()
    found = _continued(torch.from_numpy(values.astype(np.float32))[None] * weights, weights)
    return found[0].round_().numpy().astype(values.dtype)


def _continued(values: Tensor, known: Tensor) -> Tensor:
    """Values [1, c, h, w], zero where `known` [1, 1, h, w] is 0, with those places filled; one at least is known."""
    if bool(known.all()):
        return values
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    averages = F.avg_pool2d(values, 2, ceil_mode=True) / share.clamp_min(1e-9)
    coarse = _continued(averages, (share > 0).float())
    result = torch.lerp(F.interpolate(coarse, size=values.shape[2:], mode="bilinear"), values, known)
    for _ in range(_SMOOTHED):
        around = F.avg_pool2d(F.pad(result, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        result = torch.lerp(around, values, known)
    return result
