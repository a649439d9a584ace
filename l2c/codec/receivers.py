"""What a file gets for receivers of one metric or another, once its latents are chosen (`adapt_for`; OML, section 4).

The set for the file's own metric stands in ADAPT, which every reader applies; those for others stand in ALTERNATIVES.
A set is kept that saves more bits of lambda * pixels * D, for the receiver who wants its metric, than it has itself,
and for which the file has room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch

from l2c import transforms
from l2c.adapt.encoder import Progress, Subject
from l2c.adapt.receivers import Coded, conditions_for
from l2c.codec.batch import Batch
from l2c.codec.latent_stage import Latents
from l2c.codec.results import Receiver
from l2c.codec.support import parts
from l2c.codec.transform_stage import TransformStage
from l2c.errors import UnsupportedError
from l2c.format.adapt_section import PatchChanges
from l2c.format.alternatives_section import Alternative, most_alternatives_bytes, pack_alternatives
from l2c.format.bitstream import ADAPT, ALTERNATIVES, SECTION_OVERHEAD
from l2c.format.levels import MAX_QUALITY, METRICS, Metric
from l2c.format.tiles import grid, latent_tiles
from l2c.models import Model

_TABLE = SECTION_OVERHEAD + 1  # bytes that ALTERNATIVES costs beside what is in it


@dataclass
class Serving:
    """A picture of a batch on its way to its receivers.

    Attributes:
        i: its place in the batch. latents: that its file has.
        room: bytes by which the file may still grow. fixed: whether what it shows by default must stay as it is.
        changes: what it changes in D by default. alternatives: for receivers of other metrics.
    """

    i: int
    latents: Latents
    changes: PatchChanges
    room: float
    fixed: bool
    alternatives: list[Alternative] = field(default_factory=list)

    def offer_own(self, conditions: npt.NDArray[np.int8], saved: float) -> None:
        """Conditions for the file's own metric, int8 [K, rows, columns]: taken if they pay and fit."""
        changes = replace(self.changes, conditions=conditions)
        size = _size(changes) - _size(self.changes)
        if conditions.any() and saved > 8.0 * size and size <= self.room:
            self.changes, self.room = changes, self.room - size

    def offer(self, found: Sequence[tuple[Alternative, float]]) -> None:
        """Alternatives to the default, and the bits that each saves: those are taken that pay and fit, the best first.

        What the section costs beside them is paid by all together.
        """
        surplus = {part.mix: saved - 8.0 * part.size for part, saved in found}
        room, taken = self.room - _TABLE, []
        for part, _ in sorted(found, key=lambda pair: -surplus[pair[0].mix]):
            if surplus[part.mix] > 0.0 and part.size <= room:
                taken.append(part)
                room -= part.size
        if sum(surplus[part.mix] for part in taken) > 8.0 * _TABLE:
            self.alternatives, self.room = taken, room

    def sections(self) -> dict[int, bytes]:
        """Those of the file that say all this, by type."""
        bodies = {ADAPT: self.changes.pack(), ALTERNATIVES: pack_alternatives(self.alternatives)}
        return {kind: body for kind, body in bodies.items() if body}

    def report(self, batch: Batch) -> tuple[Receiver, ...]:
        """What came of it, for each metric that was asked for."""
        others, conditions = {part.mix: part for part in self.alternatives}, self.changes.conditions
        own = 0 if conditions is None else int(conditions.any(axis=0).sum())
        results = []
        metric: Metric
        for metric in get_args(Metric):
            mix = METRICS[metric]
            patches = own if mix == batch.mu else 0
            size = _size(self.changes) - _size(PatchChanges(self.changes.sets)) if mix == batch.mu else 0
            if mix in others:
                patches, size = len(others[mix].values), others[mix].size
            if mix in batch.settings.receivers:
                results.append(Receiver(metric, patches, size))
        return tuple(results)


class Receivers:
    """Conditions for receivers, with a model on a device.

    Args:
        adapt_pixels: of pictures that are worked on together; a larger one is taken alone.
    """

    def __init__(self, model: Model, transform_stage: TransformStage, adapt_pixels: int) -> None:
        self._model, self._transform_stage, self.adapt_pixels = model, transform_stage, adapt_pixels

    @property
    def _num_modulators(self) -> int:
        return transforms.num_modulators(self._transform_stage.transform)

    def check(self) -> None:
        """Raises UnsupportedError: the model has no conditions to search."""
        if not self._num_modulators:
            raise UnsupportedError(f"adapt_for: model {self._model.name} has no modulators")

    def reserve(self, batch: Batch, i: int) -> int:
        """Bytes that are added to the file of a picture at most."""
        picture, settings = batch.pictures[i], batch.settings
        size = (picture.width, picture.height)
        own, mods = int(settings.mu in settings.sought), self._num_modulators
        counts = (own, len(settings.sought) - own)  # in ADAPT and in ALTERNATIVES
        return sum(SECTION_OVERHEAD + most_alternatives_bytes(*size, count, mods) for count in counts if count)

    def serve(self, batch: Batch, pictures: Sequence[Serving], tell: Callable[[float, str], None]) -> None:
        """Search conditions for all receivers of these pictures, and keep what pays; equal tiles share every pass."""
        shapes = [(batch.pictures[part.i].height, batch.pictures[part.i].width) for part in pictures]
        tiles = sum(len(grid(height, width, batch.tile)) for height, width in shapes)
        units = tiles * len(batch.settings.sought) * (batch.settings.steps + 8)
        progress = Progress(float(units), tell, batch.late)
        with torch.inference_mode(False):  # gradients are needed, whatever the caller has set
            for members in parts([height * width for height, width in shapes], self.adapt_pixels):
                self._serve_together(batch, pictures[members], lambda: progress.unit("receivers"))

    def _serve_together(self, batch: Batch, pictures: Sequence[Serving], go_on: Callable[[], bool]) -> None:
        subjects = [self._subject(batch, part) for part in pictures]

        def searched(mix: int, members: Sequence[int]) -> list[tuple[npt.NDArray[np.int8], float]]:
            stage, coded = self._transform_stage, [Coded(subjects[k], pictures[k].changes) for k in members]
            sets, steps = self._model.bias_sets, batch.settings.steps
            return conditions_for(stage.transform, sets, coded, mix, steps, stage.device, go_on)

        if batch.mu in batch.settings.sought:
            free = [k for k, part in enumerate(pictures) if not part.fixed]
            for k, found in zip(free, searched(batch.mu, free)):
                pictures[k].offer_own(*found)
        everyone = range(len(pictures))
        found_for = {mix: searched(mix, everyone) for mix in batch.settings.sought if mix != batch.mu}
        for k, part in enumerate(pictures):
            offers = [
                (alternative, found[k][1])
                for mix, found in found_for.items()
                if (alternative := Alternative.between(mix, part.changes, found[k][0])) is not None
            ]
            part.offer(offers)

    def _subject(self, batch: Batch, part: Serving) -> Subject:
        """A picture as the search takes it, with the latents that D gets."""
        picture, point, stage = batch.pictures[part.i], part.latents.point, self._transform_stage
        return Subject(
            picture.rgb,
            stage.quantiser.dequantise(torch.from_numpy(part.latents.symbols), point.bits),
            None,
            latent_tiles(picture.height, picture.width, batch.tile, stage.s),
            stage.condition(point.quality_tenths, point.mix),
            self._model.config.lmbda(point.quality_tenths / MAX_QUALITY),
            point,
            quality_map=part.changes.quality_map,
            places=stage.places(
                point.quality_tenths, point.mix, part.changes.quality_map, (picture.height, picture.width)
            ),
        )


def _size(changes: PatchChanges) -> int:
    """Bytes that these changes cost in the file, as its ADAPT section."""
    body = changes.pack()
    return SECTION_OVERHEAD + len(body) if body else 0
