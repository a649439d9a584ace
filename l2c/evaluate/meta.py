"""Table II of L2C: how much more a meta-trained model gains from overfitting its latents than a fine-tuned one.

For each picture, rate and number of iterations the best of the paper's learning rates is taken, rescaled to our unit
(and, where meta learnt its alpha for just so many iterations, that one); the loss drop is that of the objective of
Eq. 7 in bits per pixel at rounded latents, before minus after. Gradients are taken in bfloat16 where that is fast, the
losses before and after in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from l2c.errors import UnsupportedError
from l2c.format.levels import MAX_QUALITY
from l2c.ops import bf16_pays
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import PAPER_ALPHA, LossConfig
from l2c.train.losses import Conditions, Networks, analyse, latent_loss


def objective(nets: Networks, x: Tensor, y: Tensor, cond: Conditions) -> Tensor:
    """Eq. 7 in bits per pixel at rounded latents, float32 [N]."""
    low = torch.is_grad_enabled() and bf16_pays(x.device)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
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


class Overfitter:
    """The networks of a checkpoint of the stage meta, asked how much overfitting gains.

    Args:
        path: the checkpoint.
    Raises:
        UnsupportedError: it is of another stage. TrainingError: it cannot be read.
    Attributes:
        file_id: the first 16 digits of its SHA-256.
    """

    def __init__(self, path: Path) -> None:
        checkpoint = Checkpoint.load(path)
        if checkpoint.stage != "meta":
            raise UnsupportedError(f"{path} is a checkpoint of the stage {checkpoint.stage or 'none'}, not of meta")
        self.file_id = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        nets = checkpoint.networks(checkpoint.config)[1].eval().requires_grad_(False)
        self._nets = nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._learnt = [alpha.exp() for alpha in checkpoint.objective.get("0", torch.empty(0))]

    def best_drop(self, crop: Tensor, quality: int, mu: int, iterations: int, learning_rates: Sequence[float]) -> float:
        """The loss drop of one picture with the best learning rate, in bits per pixel.

        Args:
            crop: float32 [3, H, W] in [0, 1].
            quality: 0..100. mu: metric mix in eighths, see `levels.METRICS`.
            learning_rates: the paper's; ours are rescaled.
        """
        x = crop[None].contiguous(memory_format=torch.channels_last)
        header = (quality * MAX_QUALITY // 100, mu, self._nets.config.bits)
        cond = Conditions(*(torch.full((1,), value) for value in header))
        choices: list[list[float | Tensor]] = [[PAPER_ALPHA * rate] * iterations for rate in learning_rates]
        if len(self._learnt) == iterations:
            choices.append(list(self._learnt))
        return max(float(drops(self._nets, x, cond, alphas)) for alphas in choices)
