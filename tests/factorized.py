"""A second family of entropy models, as another package would add one: docs/EXTENDING.md walks through this file.

Every channel has one logistic distribution at each of a few qualities, whatever lies around a latent. In integers it
is a table of cumulative counts, and the range coder looks them up: nothing of this file is fast or good, but files that
it codes are exact, and training, rate search and adaptation work with it as with the multi-scale model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from l2c.entropy import FAMILIES, Backend, EntropyFamily, EntropyModel, FloatModel, ProbabilityConfig, RateTerms
from l2c.entropy.coder import Job, Tables
from l2c.errors import ConfigError, ModelMismatchError
from l2c.format.levels import MAX_QUALITY

PRECISION = 16
FLOOR = 256 / (1 << PRECISION)  # share of the counts that all latents have alike


@dataclass(frozen=True)
class FactorizedConfig(ProbabilityConfig):
    """Attributes: knots: at how many qualities each channel has a distribution, 2..64."""

    knots: int = 5

    family: ClassVar[str] = "factorized"

    def __post_init__(self) -> None:
        if not 2 <= self.knots <= 64:
            raise ConfigError(f"probability.knots is {self.knots}: it must be 2..64")


class FactorizedModel(FloatModel):
    """Means and log scales of the logistics, float32 [knots, c] each."""

    def __init__(self, config: FactorizedConfig, c: int) -> None:
        super().__init__()
        self.config, self.c = config, c
        self.mean = nn.Parameter(torch.zeros(config.knots, c))
        self.log_scale = nn.Parameter(torch.linspace(-1.0, 2.0, config.knots)[:, None].repeat(1, c))

    def cdf(self, t: Tensor, knot: Tensor) -> Tensor:
        """Share below t [N, c, h, w] at a knot int64 [N] of each picture."""
        mean, scale = (part[knot][:, :, None, None] for part in (self.mean, self.log_scale.exp()))
        return torch.sigmoid((t - mean) / scale)

    def bits(self, target: Tensor, header: Tensor) -> Tensor:
        """Bits of every latent, [N, c, h, w]; header int64 [N, 3]."""
        header = header.to(target.device)
        level = torch.exp2(8.0 - header[:, 2].float())[:, None, None, None]
        knot = nearest_knot(header[:, 0], self.config.knots)
        upper, lower = (self.cdf(target.float() + half * level, knot) for half in (0.5, -0.5))
        return -((upper - lower) * (1.0 - FLOOR) + level * FLOOR / 256.0).log2()

    def num_bits(self, context: Tensor, target: Tensor, header: Tensor, inside: Tensor | None = None) -> Tensor:
        bits = self.bits(target, header)
        return (bits if inside is None else bits * inside).flatten(1).sum(dim=1)

    @torch.no_grad()
    def terms(self, z: Tensor, header: Tensor) -> RateTerms:
        own, level = self.bits(z, header), torch.exp2(8.0 - header[:, 2].to(z.device).float())[:, None, None, None]
        rise = (self.bits(z + level, header) - own).masked_fill(z + level > 127.5, float("inf"))
        fall = (self.bits(z - level, header) - own).masked_fill(z - level < -128.5, float("inf"))
        return RateTerms(own.flatten(1).sum(dim=1), rise, fall, slope=torch.zeros_like(z))

    @torch.no_grad()
    def bit_map(self, z: Tensor, header: Tensor) -> Tensor:
        return self.bits(z, header).double().sum(dim=1)


def nearest_knot(quality: Any, knots: int) -> Any:
    """Of a quality 0..1000, an integer or integers: integer arithmetic, the same everywhere."""
    return (quality * (knots - 1) + MAX_QUALITY // 2) // MAX_QUALITY


class FactorizedTables(EntropyModel):
    """Cumulative counts uint32 [knots, c, 257] of the 256 latents of b = 8; coarser bits add them up."""

    def __init__(self, counts: npt.NDArray[np.uint32]) -> None:
        self.counts, self.c = counts, counts.shape[1]

    @classmethod
    @torch.no_grad()
    def from_float(cls, model: FactorizedModel) -> FactorizedTables:
        edges = torch.arange(-128, 129).float()[None, None, :, None].repeat(model.config.knots, model.c, 1, 1) - 0.5
        share = model.cpu().cdf(edges, torch.arange(model.config.knots))[..., 0].double()
        share[..., 0], share[..., -1] = 0.0, 1.0
        counts = (share * ((1 << PRECISION) - 256)).floor().long() + torch.arange(257)
        return cls(counts.numpy().astype(np.uint32))

    def to_float(self) -> FactorizedModel:
        """Means and scales that have the tables' quartiles."""
        model = FactorizedModel(FactorizedConfig(len(self.counts)), self.c)
        share = torch.from_numpy((self.counts / (1 << PRECISION)).astype(np.float32))
        low, middle, high = ((share < part).sum(dim=2).float() - 128.5 for part in (0.25, 0.5, 0.75))
        model.mean.data, model.log_scale.data = middle, ((high - low) / 2.2).clamp_min(0.2).log()
        return model

    def to_tensors(self) -> dict[str, Tensor]:
        return {"probability.counts": torch.from_numpy(self.counts.astype(np.int64))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], config: FactorizedConfig, c: int) -> FactorizedTables:
        counts = tensors.get("probability.counts")
        if counts is None or counts.shape != (config.knots, c, 257) or counts.dtype != torch.int64:
            raise ModelMismatchError("probability.counts is missing or of another shape")
        if (counts.diff() < 1).any() or (counts[..., 0] != 0).any() or (counts[..., -1] != 1 << PRECISION).any():
            raise ModelMismatchError("probability.counts do not rise from 0 to 2^16")
        return cls(counts.numpy().astype(np.uint32))

    def backends(self) -> Mapping[str, Backend]:
        return {"table": TableBackend(self)}


class TableBackend(Backend):
    """Lookups in numpy and the range coder's tables: the only way, so it is the definition."""

    name, spoken, is_definition = "table", "the tables", True

    def __init__(self, model: FactorizedTables) -> None:
        self.model = model

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[npt.NDArray[np.uint8]]:
        return [self._code(job) for job in jobs]

    def _code(self, job: Job) -> npt.NDArray[np.uint8]:
        b, used = job.point.bits, job.used
        step = 1 << (8 - b)
        edges = (np.arange((1 << b) + 1) * step - step // 2).clip(0)
        edges[-1] = 256
        knot = nearest_knot(job.point.quality_tenths, len(self.model.counts))
        cdf = np.ascontiguousarray(self.model.counts[knot][:, edges])
        tables = Tables(cdf, np.full(len(cdf), len(edges), np.int32), PRECISION)
        rows = np.tile(np.arange(used, dtype=np.int32), job.height * job.width)  # channel innermost
        symbols = job.table((slice(used), slice(None), slice(None)), rows, tables)
        found = np.full((self.model.c, job.height, job.width), 1 << (b - 1), np.uint8)
        found[:used] = symbols.reshape(job.height, job.width, used).transpose(2, 0, 1)
        return found


FAMILIES.register("factorized", EntropyFamily(FactorizedConfig, FactorizedModel, FactorizedTables))
