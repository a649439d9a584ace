"""Batches made on the host: pictures, conditions and noise of a step are functions of (seed, salt, step, position)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from l2c.config import ModelConfig
from l2c.format.levels import MAX_MU
from l2c.train.config import StageConfig, TrainConfig
from l2c.train.data import Sampler
from l2c.train.device_data import MU_SHARES
from l2c.train.losses import Conditions
from l2c.train.parallel import Parallel


@dataclass
class Batch:
    """One process's share of a global batch.

    Attributes:
        x: uint8 [N, 3, crop, crop]. cond: what each picture is coded for. noise: float32 [N, c, h, w] in [-1/2, 1/2).
    """

    x: Tensor
    cond: Conditions
    noise: Tensor


def sample_conditions(
    config: StageConfig, bits: int, rng: np.random.Generator, steps: Sequence[int] = ()
) -> tuple[int, int, int]:
    """(quality, mu, b) of one picture; see `StageConfig`. steps: the qualities that the model has, () for all."""
    if steps:
        quality = steps[int(rng.integers(len(steps)))]
    else:
        quality = int(rng.integers(config.quality_min, config.quality_max + 1))
    draw, other = rng.random(), int(rng.integers(0, MAX_MU + 1))
    edges = np.cumsum([share for _, share in MU_SHARES])
    mu = next((mu for (mu, _), edge in zip(MU_SHARES, edges) if draw < edge), other)
    b = int(rng.integers(min(config.bits_min, bits), bits + 1)) if rng.random() < config.random_bits else bits
    return quality, config.mu if config.mu is not None else mu, b


def make_batch(
    step: int,
    *,
    recipe: TrainConfig,
    stage: StageConfig,
    model: ModelConfig,
    sampler: Sampler,
    salt: int,
    parallel: Parallel,
) -> Batch:
    """This process's share of step `step`: positions rank, rank + world, ... of the global batch."""
    crops, conditions, noises = [], [], []
    side, steps = recipe.data.crop // model.transform.s, stage.steps_of(model)
    for j in range(parallel.rank, stage.batch, parallel.world):
        rng = np.random.default_rng([recipe.seed, salt, step, j])
        quality, mu, b = sample_conditions(stage, model.bits, rng, steps)
        clean = quality > recipe.data.clean_above or rng.random() < recipe.data.scaled_share
        crops.append(sampler.crop_for(rng, step, clean))
        conditions.append((quality, mu, b))
        source = torch.Generator(parallel.device).manual_seed(int(rng.integers(2**62)))
        noises.append(torch.rand(model.transform.c, side, side, generator=source, device=parallel.device) - 0.5)
    columns = torch.tensor(conditions).unbind(dim=1)
    return Batch(torch.stack(crops), Conditions(*columns), torch.stack(noises))
