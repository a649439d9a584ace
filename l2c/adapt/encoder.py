"""Adapting whole pictures: tiles are cut, searched in batches, and put together again.

A tile is the unit of the search because P and the coder stop at its borders, so its rate is its own. D sees a tile
with a margin of its neighbours' unadapted latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.adapt.bias_sets import BiasSets, search_sets, set_maps
from l2c.adapt.effort import Effort
from l2c.adapt.latents import LatentSearch, Regions, trim_rate
from l2c.adapt.modulators import search_conditions
from l2c.arrays import Symbols
from l2c.entropy import FloatModel
from l2c.format.adapt_section import BIAS_PATCH, CONDITION_PATCH, NO_SET, PatchChanges, grid_shape
from l2c.format.bitstream import SECTION_OVERHEAD
from l2c.format.levels import MAX_QUALITY, OperatingPoint
from l2c.format.quality_map_section import QualityMap
from l2c.format.tiles import Box
from l2c.transforms import Adaptation, Grid, Places, Transform, num_modulators

_BATCH_PIXELS = 1 << 20  # regions of one shape share a pass up to this many pixels


@dataclass
class Subject:
    """One picture to adapt.

    Attributes:
        pixels: uint8 [H, W, 3].
        y: float32 [c, h, w], masked latents before Q, on the CPU.
        kept: bool [c, h, w], the mask, or None.
        boxes: (top, left, bottom, right) of its tiles in latents.
        cond: float32 [1, 2]. lmbda: the raw trade-off. point: what the file will say.
        aim: share of its unadapted size that the picture should come to; None: whatever J says.
        quality_map: which parts of it are coded coarser, and places: what E and D are told there, of all its latents;
            None: it has none.
    """

    pixels: npt.NDArray[np.uint8]
    y: Tensor
    kept: Tensor | None
    boxes: list[Box]
    cond: Tensor
    lmbda: float
    point: OperatingPoint
    aim: float | None = None
    quality_map: QualityMap | None = None
    places: Places | None = None

    @property
    def unchanged(self) -> PatchChanges:
        """What is changed in D before any adaptation."""
        return PatchChanges(quality_map=self.quality_map)


@dataclass(frozen=True)
class AdaptationReport:
    """What an adaptation did to a picture.

    Attributes:
        iterations, passes: of the latent search; 0 where there was no time for any.
        bpp_before, bpp_after, distortion_before, distortion_after: of the latents, by the search's own measurement,
            trimming not counted; None without a search, as is what follows.
        objective_gain_percent: how much J fell, of the rate before.
        patches_with_bias_set, patches_with_conditions: patches in which D is changed.
    """

    iterations: int = 0
    passes: int = 0
    bpp_before: float | None = None
    bpp_after: float | None = None
    distortion_before: float | None = None
    distortion_after: float | None = None
    objective_gain_percent: float | None = None
    patches_with_bias_set: int = 0
    patches_with_conditions: int = 0

    def as_dict(self) -> dict[str, float | int]:
        """By name, without what is not known."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass
class Adapted:
    """What the search made of a picture.

    Attributes:
        parts: (search, number of the region in it, box) of every tile.
        changes: to D.
        saved_cost: what those changes save, in bits of lambda * pixels * D, by the encoder's own measurement.
    """

    subject: Subject
    parts: list[tuple[LatentSearch, int, Box]] = field(default_factory=list)
    changes: PatchChanges = field(default_factory=PatchChanges)
    saved_cost: float = 0.0

    def symbols(self) -> Symbols:
        """[c, h, w] as the coder takes them."""
        canvas = np.empty(tuple(self.subject.y.shape), dtype=self.parts[0][0].quantiser.dtype)
        for search, i, (top, left, bottom, right) in self.parts:
            canvas[:, top:bottom, left:right] = search.symbols()[i].cpu().numpy()
        return canvas

    @property
    def searched(self) -> bool:
        """Whether there was time to search every tile."""
        return all(search.iterations for search, _, _ in self.parts)

    def steer(self, bits: float) -> None:
        """One iteration of every tile that adds about so many bits, each tile its share; see `LatentSearch.steer`. Not
        after `trim`."""
        sizes = [float(search.bits[i]) for search, i, _ in self.parts]
        for (search, i, _), size in zip(self.parts, sizes):
            search.steer(i, bits * size / max(sum(sizes), 1e-9))

    def trim(self, saving: float) -> float:
        """Save about so many bits; see `latents.trim_rate`."""
        return trim_rate([(search, i) for search, i, _ in self.parts], saving)

    def report(self) -> AdaptationReport:
        """What it did, of the tiles that were searched."""
        sets, conditions = self.changes.sets, self.changes.conditions
        patches = {
            "patches_with_bias_set": 0 if sets is None else int((sets != NO_SET).sum()),
            "patches_with_conditions": 0 if conditions is None else int(conditions.any(axis=0).sum()),
        }
        searched = [(search, i) for search, i, _ in self.parts if search.iterations]
        if not searched:
            return AdaptationReport(**patches)
        before, cost_before = (sum(float(search.start[k][i]) for search, i in searched) for k in range(2))
        after = sum(float(search.bits[i]) for search, i in searched)
        cost_after = sum(float(search.cost[i]) for search, i in searched) - self.saved_cost
        pixels = sum(search.regions.pixels for search, _ in searched)
        return AdaptationReport(
            iterations=max(search.iterations for search, _ in searched),
            passes=max(search.passes for search, _ in searched),
            bpp_before=before / pixels,
            bpp_after=after / pixels,
            distortion_before=cost_before / self.subject.lmbda / pixels,
            distortion_after=cost_after / self.subject.lmbda / pixels,
            objective_gain_percent=100.0 * (before + cost_before - after - cost_after) / before,
            **patches,
        )


class Progress:
    """Counts the work of a whole batch and knows when to stop.

    Args:
        total: units of work in all.
        tell: called with the share done (0..1) and the name of the stage.
        out_of_time: asked before every unit.
    """

    def __init__(self, total: float, tell: Callable[[float, str], None], out_of_time: Callable[[], bool]) -> None:
        self._total, self._tell, self._out_of_time = max(total, 1.0), tell, out_of_time
        self._done = 0.0

    def unit(self, stage: str) -> bool:
        """Another unit begins: whether there is time for it."""
        if self._out_of_time():
            return False
        self._tell(min(1.0, self._done / self._total), stage)
        self._done += 1.0
        return True


def adapt(
    transform: Transform,
    probability: FloatModel,
    bias_sets: BiasSets | None,
    subjects: Sequence[Subject],
    effort: Effort,
    device: torch.device,
    tell: Callable[[float, str], None],
    out_of_time: Callable[[], bool],
) -> list[Adapted]:
    """Search the latents of pictures, then choose changes to D; equal tiles of all pictures share every pass.

    Must not run in inference mode; a caller's autocast does not reach in here. The work is `effort`'s unless the time
    runs out: then what was found so far is kept.
    """
    results = [Adapted(subject, changes=subject.unchanged) for subject in subjects]
    batches = batches_of(transform, subjects)
    progress = Progress(float(len(batches) * effort.units), tell, out_of_time)
    for batch in batches:
        with torch.autocast(device.type, enabled=False):
            regions = regions_of(transform, subjects, batch, device)
            aims = [subjects[number].aim for number, _ in batch]
            search = LatentSearch(transform, probability, regions, aims=aims)
            search.run(effort.iterations, lambda: progress.unit("latents"))
            for i, (number, box) in enumerate(batch):
                results[number].parts.append((search, i, box))
            _change_decoder(transform, bias_sets, search, batch, results, effort, progress)
    for result in results:  # what costs more than it saves as a whole is left out
        if result.saved_cost <= 8.0 * (len(result.changes.pack()) + SECTION_OVERHEAD):
            result.changes, result.saved_cost = result.subject.unchanged, 0.0
    tell(1.0, "adapted")
    return results


def batches_of(transform: Transform, subjects: Sequence[Subject]) -> list[list[tuple[int, Box]]]:
    """The tiles of all pictures, (number of the subject, box) each, in batches that `regions_of` takes."""
    groups: dict[tuple[int, ...], list[tuple[int, Box]]] = {}
    for number, subject in enumerate(subjects):
        for box in subject.boxes:
            pixels, surround, corner = _frame(transform, subject, box)
            seen = (0, 0) if surround is None else (surround[2] - surround[0], surround[3] - surround[1])
            shape = (pixels[2] - pixels[0], pixels[3] - pixels[1])
            groups.setdefault((*shape, *seen, *corner, subject.places is None), []).append((number, box))
    batches: list[list[tuple[int, Box]]] = []
    for key, members in groups.items():
        most = max(1, _BATCH_PIXELS // max(1, key[0] * key[1]))
        batches += [members[k : k + most] for k in range(0, len(members), most)]
    return batches


def _change_decoder(
    transform: Transform,
    bias_sets: BiasSets | None,
    search: LatentSearch,
    batch: list[tuple[int, Box]],
    results: list[Adapted],
    effort: Effort,
    progress: Progress,
) -> None:
    """Bias sets and conditions for the patches of these regions."""
    regions, s = search.regions, transform.s
    biases = None
    if effort.sets and bias_sets is not None:
        bands = [bias_sets.band(int(quality), MAX_QUALITY) for quality in regions.header[:, 0]]
        chosen = search_sets(transform, regions, search.z, bias_sets, bands, effort.sets, lambda: progress.unit("sets"))
        if chosen is not None:
            grid = Grid(BIAS_PATCH // s, -regions.corner[0], -regions.corner[1])
            biases = Adaptation(biases=set_maps(bias_sets, bands, chosen[0]), bias_grid=grid)
            _store(results, batch, "sets", chosen[0], chosen[1], BIAS_PATCH // s)
    if effort.steps and num_modulators(transform):
        found = search_conditions(
            transform, regions, search.z, effort.steps, biases, lambda: progress.unit("modulators")
        )
        if found is not None:
            _store(results, batch, "conditions", found[0], found[1], CONDITION_PATCH // s)


def _store(
    results: list[Adapted], batch: list[tuple[int, Box]], name: str, values: Tensor, saved: Tensor, side: int
) -> None:
    """Write patches of tiles [N, ..., rows, columns] into the maps of their pictures."""
    for i, (number, (top, left, _, _)) in enumerate(batch):
        result, part = results[number], values[i].cpu().numpy()
        height, width = result.subject.pixels.shape[:2]
        maps = {"sets": result.changes.sets, "conditions": result.changes.conditions}
        mine = maps[name]
        if mine is None:
            patch = BIAS_PATCH if name == "sets" else CONDITION_PATCH
            shape = (*part.shape[:-2], *grid_shape(width, height, patch))
            mine = np.full(shape, NO_SET, np.uint8) if name == "sets" else np.zeros(shape, np.int8)
        rows, columns = part.shape[-2:]
        mine[..., top // side : top // side + rows, left // side : left // side + columns] = part
        maps[name] = mine
        quality_map = result.changes.quality_map
        result.changes = PatchChanges(maps["sets"], maps["conditions"], quality_map)  # type: ignore[arg-type]
        result.saved_cost += float(saved[i])


def _frame(transform: Transform, subject: Subject, box: Box) -> tuple[Box, Box | None, tuple[int, int]]:
    """Pixels of a tile, the latents that D sees with it (None: the whole picture), and where it lies in them."""
    s = transform.s
    pixels = box.times(s).widened(0, *subject.pixels.shape[:2])
    if len(subject.boxes) == 1:
        return pixels, None, (0, 0)
    surround = box.widened(-(-transform.decoder.receptive_halo_px // s), *subject.y.shape[1:])
    return pixels, surround, box.within(surround)[:2]


def regions_of(
    transform: Transform,
    subjects: Sequence[Subject],
    batch: list[tuple[int, Box]],
    device: torch.device,
    *,
    quantised: bool = False,
) -> Regions:
    """Tiles of one shape, (number of the subject, box) each, as the search takes them.

    Args:
        quantised: whether the subjects' latents are what D gets, and not what comes before Q.
    """
    x, y, kept, around, corner, places, weights = [], [], [], [], (0, 0), [], []
    for number, box in batch:
        subject = subjects[number]
        pixels, surround, corner = _frame(transform, subject, box)
        x.append(torch.from_numpy(subject.pixels[pixels[0] : pixels[2], pixels[1] : pixels[3]].copy()))
        y.append(subject.y[:, box[0] : box[2], box[1] : box[3]])
        if subject.places is not None:
            places.append(subject.places.part(*(box if surround is None else surround).slices))
            size = pixels[2] - pixels[0], pixels[3] - pixels[1]
            weights.append(subject.places.part(*box.slices).weights(subject.cond.to(device), transform.s, size))
        if subject.kept is not None:
            kept.append(subject.kept[:, box[0] : box[2], box[1] : box[3]])
        if surround is not None:
            part = subject.y[:, surround[0] : surround[2], surround[1] : surround[3]]
            levels = part if quantised else transform.quantiser.to_levels(part, subject.point.bits)
            around.append(levels)
    members = [subjects[number] for number, _ in batch]
    stacked = torch.stack(x).to(device).permute(0, 3, 1, 2).float() / 255.0
    return Regions(
        stacked.contiguous(memory_format=torch.channels_last),
        torch.stack(y).to(device).contiguous(memory_format=torch.channels_last),
        torch.stack(kept).to(device) if kept else None,
        torch.cat([subject.cond.to(device) for subject in members]),
        torch.tensor([subject.point for subject in members], device="cpu"),
        torch.tensor([subject.lmbda for subject in members], dtype=torch.float32, device=device),
        torch.stack(around).to(device) if around else None,
        corner,
        Places.joined(places),
        torch.cat(weights) if weights else None,
    )
