"""E, I and D: the networks that turn pictures into latents and back, in two families (see `config.TransformConfig`).

Both families share one calling form: `encoder(x, cond) -> (y, tau)` and
`decoder(y_hat, cond, adaptation) -> x_hat`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from l2c.config import ModelConfig, TransformConfig
from l2c.ops import Grid, dequantise, quantise, to_levels
from l2c.transforms.adaptation import Adaptation, num_biases
from l2c.transforms.block import BlockDecoder, BlockEncoder, Companding
from l2c.transforms.modulators import condition
from l2c.transforms.paper import PaperDecoder, PaperEncoder

__all__ = [
    "Adaptation",
    "Grid",
    "Transform",
    "clipping",
    "condition",
    "dequantise",
    "importance_mask",
    "kmac_per_pixel",
    "num_biases",
    "num_modulators",
    "quantise",
    "to_levels",
    "used_channels",
]


class Transform(nn.Module):
    """E, I and D of one model.

    Attributes:
        encoder: pictures -> (latents, importance map).
        decoder: latents -> pictures.
        s: down-sampling factor.
    """

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.config = config
        self.s = config.s
        self.encoder: PaperEncoder | BlockEncoder
        self.decoder: PaperDecoder | BlockDecoder
        if config.family == "paper":
            self.encoder, self.decoder = PaperEncoder(config), PaperDecoder(config)
        else:
            companding = Companding(config) if config.companding else None
            self.encoder, self.decoder = BlockEncoder(config, companding), BlockDecoder(config, companding)


def num_modulators(transform: Transform) -> int:
    """K: how many modulators D has, the first length of `Adaptation.conditions`."""
    return len(transform.decoder.mods)


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


def used_channels(symbols: Tensor, b: int) -> int:
    """Highest used channel count of one picture or tile: symbols uint8 [c, h, w]; 0 if all of it is level 0."""
    used = (symbols != (1 << (b - 1))).flatten(1).any(dim=1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def pad_to_multiple(x: Tensor, s: int) -> Tensor:
    """Repeat the last row and column until both sides of [N, 3, H, W] are multiples of s."""
    right, bottom = -x.shape[3] % s, -x.shape[2] % s
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if right or bottom else x


def kmac_per_pixel(call: Callable[[], object], pixels: int) -> float:
    """Multiply-accumulates of all convolutions and matrix products in `call()`, in thousands per picture pixel."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 2 / pixels / 1000.0


def transform_costs(config: ModelConfig) -> tuple[float, float]:
    """(E with I, D) in kMAC per pixel, measured on a 256x256 picture."""
    with torch.device("cpu"):  # whatever the default device is
        transform = Transform(config.transform).eval()
        cond = condition(torch.tensor([0.01]), torch.zeros(1))
        x = torch.zeros(1, 3, 256, 256)
        y = torch.zeros(1, config.transform.c, 256 // config.transform.s, 256 // config.transform.s)
        return (
            kmac_per_pixel(lambda: transform.encoder(x, cond), 256 * 256),
            kmac_per_pixel(lambda: transform.decoder(y, cond), 256 * 256),
        )
