"""Conditions of D's modulators for one metric or another, with latents that stay as they are (OML 4, 5.3).

An encoder may send one set of latents with several sets of conditions; each is found here as the file's own is, by
`search_conditions`, for the distortion of another metric and from what the file does by default. What D is told of the
picture's metric, the second part of its condition, stays the file's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from l2c.adapt.bias_sets import BiasSets, set_maps
from l2c.adapt.encoder import Subject, batches_of, regions_of
from l2c.adapt.latents import Regions
from l2c.adapt.modulators import search_conditions
from l2c.format.adapt_section import BIAS_PATCH, CONDITION_PATCH, NO_SET, PatchChanges, grid_shape
from l2c.format.levels import MAX_QUALITY
from l2c.format.tiles import Box
from l2c.transforms import Adaptation, Grid, Transform, num_modulators


@dataclass(frozen=True)
class Coded:
    """A picture whose latents are chosen.

    Attributes:
        subject: with `y` what D gets and no mask; `point` and `cond` are the file's.
        changes: what a decoder changes in D by default.
    """

    subject: Subject
    changes: PatchChanges


def conditions_for(
    transform: Transform,
    bias_sets: BiasSets | None,
    pictures: Sequence[Coded],
    mix: int,
    steps: int,
    device: torch.device,
    go_on: Callable[[], bool] = lambda: True,
) -> list[tuple[npt.NDArray[np.int8], float]]:
    """Search conditions for receivers of a metric; equal tiles of all pictures share every pass.

    Must not run in inference mode; a caller's autocast does not reach in here.

    Args:
        mix: 0..8, the metric. steps: SGD steps, at least 1.
        go_on: asked before every pass; once it says no, what was found for other tiles is kept.
    Returns:
        of each picture: conditions int8 [K, rows, columns] of 512-pixel patches in CONDITION_UNIT, those of its
        `changes` where no others pay for their bytes; bits of lambda * pixels * D that they save against `changes`.
    """
    k = num_modulators(transform)
    subjects = [replace(part.subject, point=part.subject.point._replace(mix=mix)) for part in pictures]
    found: list[npt.NDArray[np.int8]] = []
    saved = [0.0] * len(pictures)
    for part in pictures:
        height, width = part.subject.pixels.shape[:2]
        before = part.changes.conditions
        shape = (k, *grid_shape(width, height, CONDITION_PATCH))
        found.append(np.zeros(shape, np.int8) if before is None else before.copy())
    for batch in batches_of(transform, subjects):
        with torch.autocast(device.type, enabled=False):
            regions = regions_of(transform, subjects, batch, device, quantised=True)
            side = CONDITION_PATCH // transform.s
            places = [(number, (slice(None), *box.covering(side).slices)) for number, box in batch]
            start = torch.from_numpy(np.stack([found[number][place] for number, place in places])).to(device)
            biases = _biases(transform, bias_sets, pictures, batch, regions)
            result = search_conditions(transform, regions, regions.y, steps, biases, go_on, start)
        if result is None:
            break
        for (number, place), values, bits in zip(places, result[0].cpu().numpy(), result[1].tolist()):
            found[number][place] = values
            saved[number] += bits
    return list(zip(found, saved))


def _biases(
    transform: Transform,
    bias_sets: BiasSets | None,
    pictures: Sequence[Coded],
    batch: list[tuple[int, Box]],
    regions: Regions,
) -> Adaptation | None:
    """The bias sets that are in force in these tiles."""
    if bias_sets is None or all(pictures[number].changes.sets is None for number, _ in batch):
        return None
    side, index = BIAS_PATCH // transform.s, []
    for number, box in batch:
        sets, patches = pictures[number].changes.sets, box.covering(side)
        none = np.full((patches.height, patches.width), NO_SET, np.uint8)
        index.append(none if sets is None else sets[patches.slices])
    bands = [bias_sets.band(int(quality), MAX_QUALITY) for quality in regions.header[:, 0]]
    chosen = torch.from_numpy(np.stack(index)).long().to(regions.x.device)
    grid = Grid(side, -regions.corner[0], -regions.corner[1])
    return Adaptation(biases=set_maps(bias_sets, bands, chosen), bias_grid=grid)
