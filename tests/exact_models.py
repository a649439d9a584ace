"""Small integer Ds of every shape, made of networks whose every part does something, and changes to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import skimage.data
import torch

from l2c.config import ModelConfig
from l2c.exact import Changes, ExactWeights
from l2c.ops import Grid
from l2c.train.exact import calibrate
from l2c.transforms import BlockConfig, Transform, num_biases

CPU = torch.device("cpu")
LMBDA = (5e-5, 2.0)
SHAPES = {
    "default": BlockConfig(s=8, c=48, width=24, decoder_blocks=2, fine_width=16, local_gain=True),
    "companding": BlockConfig(s=8, c=40, width=24, decoder_blocks=1, fine_width=8, local_gain=True, companding=True),
    "odd": BlockConfig(s=4, c=7, width=10, decoder_blocks=1, fine_width=5, local_gain=False, modulator_width=5),
    "coarse": BlockConfig(s=8, c=17, width=19, decoder_blocks=0, fine_width=0, local_gain=True, companding=True),
    "no modulators": BlockConfig(s=2, c=12, width=16, decoder_blocks=0, fine_width=0),
}


def random_transform(config: BlockConfig, seed: int = 0) -> Transform:
    """Networks whose every part does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transform = Transform(config).eval().requires_grad_(False)
    for name, parameter in transform.named_parameters():
        if "transform" not in name:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return transform


def pictures(count: int = 3, side: int = 64) -> list[torch.Tensor]:
    photo = skimage.data.astronaut()
    crops = [photo[60 * i : 60 * i + side, 90 * i : 90 * i + side] for i in range(count)]
    return [torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None] for crop in crops]


def model_config(config: BlockConfig) -> ModelConfig:
    base = ModelConfig.from_file(Path(__file__).parent.parent / "configs" / "default.json")
    probability = dataclasses.replace(base.probability, channel_groups=(config.c,))
    return dataclasses.replace(base, transform=config, probability=probability, lmbda_min=LMBDA[0], lmbda_max=LMBDA[1])


def made(name: str) -> tuple[Transform, ExactWeights]:
    transform = random_transform(SHAPES[name])
    return transform, calibrate(transform, model_config(SHAPES[name]), pictures(), passes=18)[0]


def random_sets(rng: np.random.Generator, transform: Transform) -> torch.Tensor:
    """Four bias sets in one band."""
    return torch.from_numpy(rng.normal(0.0, 0.1, (1, 4, num_biases(transform.decoder))).astype(np.float32))


def random_changes(rng: np.random.Generator, transform: Transform, size: tuple[int, int], kind: int) -> Changes:
    """Nothing, bias sets, moved conditions, lower qualities in places, or all of it."""
    changes = Changes()
    if kind in (1, 4):
        changes = dataclasses.replace(changes, sets=rng.integers(0, 5, (3, 4)).astype(np.uint8), set_grid=Grid(5, 2, 1))
    if kind in (2, 4):
        moves = rng.integers(-60, 60, (len(transform.decoder.mods), 2, 3)).astype(np.int8)
        changes = dataclasses.replace(changes, conditions=moves, condition_grid=Grid(7, 3, 2))
    if kind in (3, 4):
        changes = dataclasses.replace(changes, octaves=rng.integers(0, 5, size) / 4.0)
    return changes
