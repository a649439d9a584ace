"""What a trained P of this family can go on as: a wider one that says the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from l2c.entropy.multiscale.config import MultiscaleConfig
from l2c.entropy.multiscale.float_model import ProbabilityModel

_SEED = 0  # networks and their average must grow by the same channels


@torch.no_grad()
def grow_multiscale(
    older: MultiscaleConfig, newer: MultiscaleConfig, state: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Weights of a P of `older` as weights of `newer`: see `EntropyFamily.grow`.

    New channels see the others with random weights, and are not seen: probabilities stay the same.
    """
    if replace(older, width=newer.width) != newer or newer.width < older.width:
        return None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(_SEED)
        grown = ProbabilityModel(newer, sum(newer.channel_groups)).state_dict()
    for name, value in grown.items():
        old = state[name]
        value[: len(old)] = 0.0
        # Old channels come first among a layer's inputs (w1: behind latents and planes, which stay) and outputs.
        value[tuple(slice(size) for size in old.shape)] = old
    return grown
