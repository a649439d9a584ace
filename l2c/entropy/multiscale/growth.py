"""What a trained P of this family can go on as: a wider one that says the same, or one of fewer channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from l2c.entropy.multiscale.config import MultiscaleConfig
from l2c.entropy.multiscale.float_model import ProbabilityModel
from l2c.ops.contract import POSITIONS

_SEED = 0  # networks and their average must grow by the same channels


@torch.no_grad()
def grow_multiscale(
    older: MultiscaleConfig, newer: MultiscaleConfig, state: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Weights of a P of `older` as weights of `newer`: see `EntropyFamily.grow`.

    Wider: new channels see the others with random weights, and are not seen, so that probabilities stay the same.
    Fewer latents, in one group: what is said of the first ones stays, as far as the others do not enter.
    """
    if len(older.channel_groups) == len(newer.channel_groups) == 1 and newer.channel_groups < older.channel_groups:
        alike = replace(older, channel_groups=newer.channel_groups) == newer
        return _fewer(older, newer.channel_groups[0], state) if alike else None
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


def _fewer(older: MultiscaleConfig, c: int, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for the first c latents."""
    cells = len(POSITIONS)
    more, kept = older.channel_groups[0], dict(state)
    for name, value in state.items():
        if name.endswith(".w1.weight") and name.startswith("steps."):  # the latents of each position, then all else
            latents = value[:, : cells * more].unflatten(1, (cells, more))[:, :, :c].flatten(1, 2)
            kept[name] = torch.cat((latents, value[:, cells * more :]), dim=1)
        elif ".w4." in name or name.startswith("prior.w2."):  # [3][K][c]
            kept[name] = value.unflatten(0, (3, older.num_mixtures, more))[:, :, :c].flatten(0, 2)
    return kept
