"""Calibrate gains by the loss of what is coded: after pretraining, before the stages that build on its latents.

Pretraining sees the rate of latents with uniform noise, and its gradients pass rounding straight through. Where most
latents are 0 both say too little of what a finer step costs, and the gains that they lead to are too large (figures in
docs/TRAINING.md). So the gain of each group of channels is tried smaller and larger at a grid of conditions, by the
loss of rounded latents, and what lowers it is solved into the last layer of the gain's network.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from l2c import transforms
from l2c.config import ModelConfig
from l2c.errors import ConfigError
from l2c.format.levels import MAX_MU, METRICS
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import GainsConfig, TrainConfig
from l2c.train.data import centre_crops, describe
from l2c.train.losses import Networks, lmbda_of_quality, quality_of_lmbda
from l2c.train.records import machine, write_json
from l2c.train.validation import coded, drawn_pictures, mean_log_loss, validate, validation_set
from l2c.transforms.block import Gain, gains_of

_EDGES = (0, 3, 8, 20, 44)  # first channels of the groups; channels are in the order of their frequency
_MOST = 4  # steps one way in a sweep
_FINE = (33, 9)  # points over log lambda and over mu that the changes are solved at
_RIDGE = 1e-4


@contextmanager
def _changed(gains: Sequence[Gain], offset: Tensor) -> Iterator[None]:
    """Logarithms of all gains moved by `offset` [c], at every condition."""
    kept = [gain.fc2.bias.clone() for gain in gains]
    for gain in gains:
        gain.fc2.bias.add_(offset)
    try:
        yield
    finally:
        for gain, bias in zip(gains, kept):
            gain.fc2.bias.copy_(bias)


@torch.no_grad()
def search(nets: Networks, x: Tensor, quality: int, mu: int, config: GainsConfig) -> tuple[Tensor, float, float]:
    """The best change of the gains' logarithms at one condition, by coordinate descent over groups of channels.

    Args:
        x: pictures float32 [N, 3, H, W] in [0, 1].
    Returns:
        Change float32 [c]; mean loss in bits per pixel without and with it.
    """
    gains = gains_of(nets.transform.encoder, nets.transform.decoder)
    c = gains[0].fc2.out_features

    def loss(offset: Tensor) -> float:
        with _changed(gains, offset):
            return float(coded(nets, x, quality, mu)[2].double().mean())

    offset = torch.zeros(c, device=x.device)
    before = best = loss(offset)
    edges = [*(edge for edge in _EDGES if edge < c), c]
    for sweep in range(config.sweeps):
        for first, last in pairwise(edges):
            for direction in (-1.0, 1.0):
                moved = 0
                while moved < _MOST:
                    trial = offset.clone()
                    trial[first:last] += direction * config.step / 2**sweep
                    if (found := loss(trial)) >= best:
                        break
                    offset, best, moved = trial, found, moved + 1
                if moved:
                    break
    return offset, before, best


@torch.no_grad()
def solve(gain: Gain, log_lmbdas: Tensor, offsets: Tensor) -> float:
    """Move a gain's last layer so that its logarithms change by `offsets`, linear between the conditions.

    Args:
        log_lmbdas: float32 [L], rising. offsets: float32 [L, 3, c], at mu = 0, 1/2 and 1.
    Returns:
        Root mean square of what is left, in the logarithm.
    """
    fine = _FINE[0]
    at = torch.linspace(float(log_lmbdas[0]), float(log_lmbdas[-1]), fine)
    right = torch.searchsorted(log_lmbdas, at).clamp(1, len(log_lmbdas) - 1)
    share = ((at - log_lmbdas[right - 1]) / (log_lmbdas[right] - log_lmbdas[right - 1]))[:, None, None]
    rows = offsets[right - 1] * (1.0 - share) + offsets[right] * share  # [fine, 3, c]
    mus = torch.linspace(0.0, 1.0, _FINE[1])
    weights = torch.stack(
        ((1.0 - 2.0 * mus).clamp_min(0.0), 1.0 - (2.0 * mus - 1.0).abs(), (2.0 * mus - 1.0).clamp_min(0.0))
    )
    wanted = torch.einsum("lkc,km->lmc", rows, weights).flatten(0, 1).double()
    cond = transforms.condition(at.exp().repeat_interleave(len(mus)), mus.repeat(fine))
    hidden = F.relu(gain.fc1(cond)).double()
    design = torch.cat((hidden, torch.ones(len(hidden), 1, dtype=torch.float64)), dim=1)
    product = design.T @ design
    ridge = _RIDGE * product.diagonal().mean() * torch.eye(len(product), dtype=torch.float64)
    change = torch.linalg.solve(product + ridge, design.T @ wanted)
    gain.fc2.weight.add_(change[:-1].T.float())
    gain.fc2.bias.add_(change[-1].float())
    return float((design @ change - wanted).square().mean().sqrt())


@torch.no_grad()
def calibrate(nets: Networks, x: Tensor, config: GainsConfig) -> str:
    """Calibrate the gains of networks on pictures float32 [N, 3, H, W] in [0, 1], in place.

    Returns:
        What it gained on these pictures, for the model card.
    """
    qualities = list({quality_of_lmbda(lmbda, nets.config): None for lmbda in config.lmbdas})
    if len(qualities) < 2:
        raise ConfigError("gains.lmbdas: fewer than two of them lie in the model's range")
    found, saved = [], []
    for quality in qualities:
        for mu in METRICS.values():
            offset, before, after = search(nets, x, quality, mu, config)
            found.append(offset.cpu())
            saved.append(math.log(after / before))
            shown = " ".join(f"{float(offset[edge]):+.2f}" for edge in _EDGES if edge < len(offset))
            _say(f"quality {quality / 10:g}, mu {mu}/{MAX_MU}: gains {shown}, loss {100 * saved[-1]:+.2f} %")
    log_lmbdas = lmbda_of_quality(torch.tensor(qualities), nets.config).log()
    offsets = torch.stack(found).view(len(qualities), len(METRICS), -1)
    for gain in gains_of(nets.transform.encoder, nets.transform.decoder):
        gain.cpu()
        _say(f"solved into the gain's network but for {solve(gain, log_lmbdas, offsets):.3f} in the logarithm")
        gain.to(x.device)
    return f"{-100 * sum(saved) / len(saved):.2f} % of the loss where it was measured"


def run(
    recipe: TrainConfig,
    model: ModelConfig,
    folder: Path,
    start: Checkpoint,
    parent: str,
    device: torch.device,
    command: str,
) -> None:
    """The whole stage.

    Args:
        folder: of the stage; it exists.
        parent: see `Checkpoint.parent`.
    Raises:
        ConfigError: no gains, or no usable pictures. TrainingError: a checkpoint that does not fit, or a file that
            cannot be written.
    """
    began = time.monotonic()
    nets = start.networks(model)[1].to(device).requires_grad_(False)
    nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    gains_of(nets.transform.encoder, nets.transform.decoder)
    config = recipe.gains
    pictures = centre_crops(recipe.data.train, config.side, config.pictures, 4 * config.pictures)
    pictures += drawn_pictures(config.pictures // 2, config.side, pictures, salt=1)
    shown = validation_set(recipe.data.val, recipe.val_size, recipe.val_pictures, recipe.val_drawn)
    before = {kind: mean_log_loss(validate(nets, part, device)) for kind, part in shown.items()}
    gained = calibrate(nets, torch.cat(pictures).to(device).float() / 255.0, config)
    after = {kind: mean_log_loss(validate(nets, part, device)) for kind, part in shown.items()}
    changes = ", ".join(f"{100 * (after[kind] - before[kind]):+.2f} % on {kind}" for kind in shown)
    _say(f"mean change of the loss: {changes}")
    facts = machine()
    entry = {
        "stage": "gains",
        "pictures": str(len(pictures)),
        "gained": gained,
        "loss of validation pictures": changes,
        "seconds": f"{time.monotonic() - began:.0f}",
        "data": ", ".join(f"{key} {value}" for key, value in describe(recipe.data.train).items()),
        "device": facts.get("device", ""),
        "torch": str(facts.get("torch", "")),
        "command": command,
    }
    average = {key: value.cpu() for key, value in nets.state_dict().items()}
    Checkpoint(
        model, average, average, "gains", seconds=time.monotonic() - began, entry=entry, history=start.past(),
        parent=parent, pixels=start.pixels,
    ).save(folder / "checkpoint.pt")  # fmt: skip
    write_json(folder / "run.json", entry)
    _say(f"gains is complete: {folder / 'checkpoint.pt'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
