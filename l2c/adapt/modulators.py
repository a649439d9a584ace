"""Online adaptation of D's conditions, one per modulator and patch (OML 3.3, 5.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from l2c.metrics import mixed_distortion
from l2c.networks import Adaptation, Transform, num_modulators

# OML 5.2 tries these on the raw lambda and the distortion itself. Ours move the normalised log lambda down the gradient
# of log D: the same decades then cover moves from nothing to the whole range, at any rate and for both metrics.
STEP_SIZES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def adapt_conditions(
    transform: Transform, x: Tensor, z: Tensor, cond: Tensor, num_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """SGD on the K conditions of every patch; latents, and so the rate, stay as they are (OML Eq. 5).

    The first step tries STEP_SIZES and keeps each patch's best; whenever the distortion of a patch does not improve,
    its step size is halved and it goes on from its best conditions. These are returned, in float16 precision, as the
    file stores them; a patch that no step improves keeps the picture's own, not rounded.

    Args:
        transform: networks, D's parameters without gradients.
        x: float32 [N, 3, H, W] in [0, 1].
        z: float32 [N, c, h, w], quantised latents.
        cond: float32 [N, 2], the pictures' own conditions; the metric mix in it chooses the distortion.
        num_steps: n, SGD steps, at least 1.
    Returns:
        conditions float32 [N, K, 2]; distortion (`metrics.mixed_distortion`) before and after, float32 [N].
    """
    k = num_modulators(transform)
    mix = cond[:, None, 1:].expand(-1, k, -1)
    mix_host = cond[:, 1].cpu()

    def distortion(moved: Tensor) -> Tensor:
        x_hat = transform.decoder(z, cond, Adaptation(torch.cat((moved, mix), dim=2)))
        return mixed_distortion(x, x_hat[:, :, : x.shape[2], : x.shape[3]].clamp(0.0, 1.0), mix_host)[2]

    def gradient(at: Tensor) -> tuple[Tensor, Tensor]:
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            value = distortion(leaf)
            (slope,) = torch.autograd.grad(value.log().sum(), leaf)
        return value.detach(), slope

    start = cond[:, None, :1].repeat(1, k, 1)
    before, slope = gradient(start)
    best, least = start.clone(), before.clone()
    gamma = torch.full_like(before, STEP_SIZES[0])
    trial = torch.full_like(before, float("inf"))
    with torch.no_grad():
        for size in STEP_SIZES:
            value = distortion(_float16(start - size * slope))
            better = value < trial
            trial, gamma = torch.where(better, value, trial), torch.where(better, size, gamma)
    for step in range(num_steps):
        at = _float16(best - gamma[:, None, None] * slope)
        if step == num_steps - 1:
            with torch.no_grad():
                value, fresh = distortion(at), slope
        else:
            value, fresh = gradient(at)
        improved = value < least
        best, slope = (torch.where(improved[:, None, None], new, old) for new, old in ((at, best), (fresh, slope)))
        least, gamma = torch.where(improved, value, least), torch.where(improved, gamma, gamma / 2)
    return torch.cat((best, mix), dim=2), before, least


def _float16(values: Tensor) -> Tensor:
    """Rounded to what the file stores, kept within a range in which the modulators are finite."""
    return values.clamp(-100.0, 100.0).half().float()
