"""What lies between E and D beside Q: which channels are kept, what the limits of latents cost, how many are coded."""

from __future__ import annotations

import torch
from torch import Tensor


class _MaskThrough(torch.autograd.Function):
    """The binary mask of L2C Eq. 2 forwards, the gradient of clamp(c tau - k, 0, 1) backwards (DESIGN 2)."""

    @staticmethod
    def forward(ctx, tau: Tensor, c: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(tau)
        ctx.c = c
        return (torch.arange(c, device=tau.device)[None, :, None, None] < (c * tau).round()).to(tau.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        (tau,) = ctx.saved_tensors
        ramp = ctx.c * tau - torch.arange(ctx.c, device=tau.device)[None, :, None, None]
        inside = ((ramp > 0) & (ramp < 1)).to(grad.dtype)
        return (grad * inside).sum(dim=1, keepdim=True) * ctx.c, None


def importance_mask(tau: Tensor, c: int) -> Tensor:
    """m of L2C Eq. 2: at each position the first n = round(c * tau) channels are kept.

    Args:
        tau: float [N, 1, h, w] in [0, 1].
        c: latent channels.
    Returns:
        [N, c, h, w] of zeros and ones in tau's dtype; differentiable in tau through clamp(c tau - k, 0, 1).
    """
    return _MaskThrough.apply(tau, c)


def clipping(y: Tensor, b: int, tau: Tensor | None = None) -> Tensor:
    """What latents lose at the ends of their range beyond the rounding, as a share of what rounding costs.

    Args:
        y: floating [N, c, h, w], in quantiser steps of b = 8. b: bits, 1..8. tau: as for `quantise`.
    Returns:
        float32 [N, h, w]: the mean over channels of 12 (excess / step)^2; 0 where nothing clips.
    """
    step = float(1 << (8 - b))
    if tau is not None:
        y = y * importance_mask(tau, y.shape[1])
    excess = ((y.float() + 0.5 * step).abs() - 128.0).clamp_min(0.0)  # symbols end at -128 and 128 - step
    return 12.0 * (excess / step).square().mean(dim=1)
