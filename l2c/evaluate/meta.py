"""Table II of L2C: how much more a meta-trained model gains from overfitting its latents than a fine-tuned one.

For each picture, rate and number of iterations the best of the paper's learning rates is taken, rescaled to our unit
(and, where meta learnt its alpha for just so many iterations, that one); the loss drop is that of the objective of
Eq. 7 in bits per pixel at rounded latents, before minus after. Gradients are taken under bfloat16 autocast, the losses
before and after in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from l2c.errors import UnsupportedError
from l2c.format.levels import MAX_QUALITY
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import PAPER_ALPHA, LossConfig
from l2c.train.losses import Conditions, Networks, analyse, latent_loss


def check_checkpoints(meta: Path, control: Path) -> None:
    """Raises UnsupportedError: they are not both of the stage meta; TrainingError: they cannot be read."""
    for path in (meta, control):
        stage = Checkpoint.load(path).stage
        if stage != "meta":
            raise UnsupportedError(f"{path} is a checkpoint of the stage {stage or 'none'}, not of meta")


def objective(nets: Networks, x: Tensor, y: Tensor, cond: Conditions) -> Tensor:
    """Eq. 7 in bits per pixel at rounded latents, float32 [N]."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.is_grad_enabled()):
        return latent_loss(nets, x, y, None, cond, LossConfig(), None).objective


def drops(nets: Networks, x: Tensor, cond: Conditions, alphas: Sequence[float | Tensor]) -> Tensor:
    """Loss before minus after overfitting with Eq. 8, float32 [N]; the last iterate counts, as in the paper.

    Args:
        x: float32 [N, 3, H, W] in [0, 1].
        alphas: one for each iteration, a number or [1 or c, 1, 1].
    """
    with torch.no_grad():
        y, _ = analyse(nets, x, cond)
        before = objective(nets, x, y, cond)
    for alpha in alphas:
        leaf = y.detach().requires_grad_()
        loss = objective(nets, x, leaf, cond).sum() * (x.shape[2] * x.shape[3])
        y = leaf.detach() - alpha * torch.autograd.grad(loss, leaf)[0]
    with torch.no_grad():
        return before - objective(nets, x, y, cond)


def mean_drops(
    checkpoints: Sequence[Path],
    crops: Sequence[Tensor],
    qualities: Sequence[int],
    mu: int,
    iterations: int,
    learning_rates: Sequence[float],
) -> list[float]:
    """Mean loss drop of each checkpoint in bits per pixel, with the best learning rate for each picture and quality.

    Args:
        checkpoints: of the stage meta.
        crops: float32 [3, H, W] in [0, 1], all of one size.
        qualities: 0..100. mu: metric mix in eighths, see `levels.METRICS`.
        learning_rates: the paper's; ours are rescaled.
    """
    x = torch.stack(list(crops)).contiguous(memory_format=torch.channels_last)
    means = []
    for path in checkpoints:
        checkpoint = Checkpoint.load(path)
        nets = checkpoint.networks(checkpoint.config)[1].eval().requires_grad_(False)
        nets = nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        learnt = [alpha.exp() for alpha in checkpoint.objective.get("0", torch.empty(0))]
        best = []
        for quality in qualities:
            header = (quality * MAX_QUALITY // 100, mu, nets.config.bits)
            cond = Conditions(*(torch.full((len(x),), value) for value in header))
            choices: list[list[float | Tensor]] = [[PAPER_ALPHA * rate] * iterations for rate in learning_rates]
            if len(learnt) == iterations:
                choices.append(list(learnt))
            best.append(torch.stack([drops(nets, x, cond, alphas) for alphas in choices]).amax(dim=0))
        means.append(float(torch.cat(best).mean()))
    return means
