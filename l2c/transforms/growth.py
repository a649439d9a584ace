"""What trained networks can go on as: blocks with local gains and companding, the paper's with fewer channels.

All of it changes the codec (files of the older model stay the older model's), but a run that starts from the older
weights keeps what they have learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from l2c.transforms.block import BlockConfig, Gain, block_basis
from l2c.transforms.paper import PaperConfig

_MIDDLE = torch.cartesian_prod(torch.linspace(-1.0, 1.0, 9), torch.linspace(0.0, 1.0, 3))  # conditions [27, 2]


@torch.no_grad()
def grow_block(older: BlockConfig, newer: BlockConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights of networks of `older` as weights of `newer`: see `TransformFamily.grow`.

    Local gains start at 1, which changes nothing. Companding takes D's gain for both ends; what E's differs from it
    in the middle of the trade-offs, and what the bound on A takes, moves into neighbouring weights. What stays is
    that E's correction passes through its local gain too, that means have none, and what lies beyond the knee.
    """
    added = replace(older, local_gain=newer.local_gain, companding=newer.companding)
    if added != newer or older.local_gain > newer.local_gain or older.companding > newer.companding:
        return None
    grown = dict(state)
    if newer.companding and not older.companding:
        _compand(newer, grown)
    if newer.local_gain and not older.local_gain:
        weight = torch.zeros(newer.c, newer.width, 1, 1)
        grown |= {"encoder.local_gain.weight": weight, "decoder.local_gain.weight": weight.clone()}
    return grown


def grow_paper(older: PaperConfig, newer: PaperConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights of networks of `older` as weights of `newer`, which has fewer channels, or no mask.

    The first channels stay: they are those that the mask keeps longest (L2C Eq. 2).
    """
    has_mask = older.mask and older.c > 1, newer.mask and newer.c > 1
    if replace(older, c=newer.c, mask=newer.mask) != newer or newer.c > older.c or has_mask == (False, True):
        return None
    kept = {name: value for name, value in state.items() if has_mask[1] or ".importance." not in name}
    for name in ("encoder.head.weight", "encoder.head.bias"):
        kept[name] = state[name][: newer.c].clone()
    kept["decoder.head.weight"] = state["decoder.head.weight"][:, : newer.c].clone()
    return kept


def _compand(config: BlockConfig, state: dict[str, Tensor]) -> None:
    """Replace two gains by one, in place. Latents and their gain g: y = g u."""
    c = config.c
    of_e, gain = _gain(config, state, "encoder"), _gain(config, state, "decoder")
    ratio = (of_e.logarithm(_MIDDLE) - gain.logarithm(_MIDDLE)).mean(dim=0).exp().flatten()

    # E: rows of A times `factor`, the ratio of the gains but within the bound, and the same of its correction.
    a = state["encoder.transform.weight"]
    factor = torch.cat((ratio, torch.ones(len(a) - c)))
    sums = block_basis(config.s)[0].abs().sum(dim=1)
    excess = (factor * a.abs().sum(dim=(1, 2, 3)) / sums).clamp_min(1.0)
    factor = factor / excess
    state["encoder.transform.weight"] = a * factor[:, None, None, None]
    state["encoder.first.weight"] = state["encoder.first.weight"] / factor[None, :, None, None]
    for name in ("weight", "bias"):
        rows = state[f"encoder.head.{name}"]
        state[f"encoder.head.{name}"] = rows * factor[:c].reshape(-1, *[1] * (rows.dim() - 1))

    # What the bound took comes back in the gain, and D sees coefficients that are smaller by it.
    lost = excess[:c]
    gain.fc2.bias.add_(lost.log())
    state.update({f"decoder.companding.gain.{name}": value for name, value in gain.state_dict().items()})
    state["decoder.first.weight"] = state["decoder.first.weight"] * lost[None, :, None, None]
    shrunk = torch.cat((lost, torch.ones(len(a) - c)))
    state["decoder.transform.weight"] = state["decoder.transform.weight"] * shrunk[None, :, None, None]
    for name in ("weight", "bias"):
        rows = state[f"decoder.head.{name}"]
        state[f"decoder.head.{name}"] = rows / shrunk.reshape(-1, *[1] * (rows.dim() - 1))


def _gain(config: BlockConfig, state: dict[str, Tensor], end: str) -> Gain:
    """A gain of its own, taken out of `state`."""
    gain = Gain(config.c, config.modulator_width)
    gain.load_state_dict({name: state.pop(f"{end}.gain.{name}") for name in gain.state_dict()})
    return gain
