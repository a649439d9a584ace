"""The rate-distortion loss of L2C Eq. 7, with OML's lambda and a metric mix that vary from picture to picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2c import networks
from l2c.config import ModelConfig
from l2c.metrics import mse, msssim
from l2c.probability import MAX_MU, MAX_QUALITY, ProbabilityModel

# 1 - MS-SSIM counts this much more than MSE at equal lambda: the ratio of the lambdas that CompressAI trains its
# two series of models with (220 / 0.18, 2.4 / 0.0018: 1222..1333).
MSSSIM_LMBDA_RATIO = 1280.0


def lmbda_of_quality(quality: Tensor, config: ModelConfig) -> Tensor:
    """Raw lambda of quality 0..MAX_QUALITY (integers, any shape): log-linear between the model's two ends."""
    ratio = torch.tensor(config.lmbda_max / config.lmbda_min, device=quality.device)
    return config.lmbda_min * ratio ** (quality.float() / MAX_QUALITY)


def mask_target(quality: Tensor) -> Tensor:
    """zeta of Eq. 3, the share of channels to keep: 0.25 at quality 0 to 1 at quality 100. Without it the mask was
    seen to collapse to zero (DESIGN 2)."""
    return 0.25 + 0.75 * quality.float() / MAX_QUALITY


@dataclass
class LossParts:
    """Per picture, float32 [N]: rate in bits per pixel, MSE of pictures in [0, 255], 1 - MS-SSIM (NaN where its
    weight is zero), |mean tau - zeta|, and the weighted sum that is minimised."""

    bpp: Tensor
    mse: Tensor
    dissimilarity: Tensor
    mask: Tensor
    total: Tensor


def rate_distortion(
    transform: networks.Transform,
    probability: ProbabilityModel,
    config: ModelConfig,
    x: Tensor,
    quality: Tensor,
    mu: Tensor,
    b: Tensor,
    mask_weight: float = 1.0,
    autocast: bool = False,
) -> LossParts:
    """L = lambda [(1 - mu) 255^2 MSE + mu 1280 (1 - MS-SSIM)] + bpp + lambda_m |mean tau - zeta| per picture.

    D sees rounded latents, straight through (L2C III). The rate is taken at uniformly perturbed latents with P's
    context at the rounded ones: the mixed form in common use since Minnen and Singh 2020 (arXiv:2007.08739).

    Args:
        x: float32 [N, 3, H, W] in [0, 1], sides multiples of s.
        quality: int64 [N], 0..1000. mu: int64 [N], metric mix in eighths, 0..8. b: int64 [N], bits 1..8.
        mask_weight: lambda_m.
        autocast: run the convolutions in bfloat16.
    Returns:
        LossParts; `total` is divided by sqrt(lambda / 0.01), so that low and high rates pull equally.
    """
    lmbda = lmbda_of_quality(quality, config)
    mix = mu.float() / MAX_MU
    cond = networks.condition(lmbda, mix)
    step = torch.exp2(8.0 - b.float())[:, None, None, None]
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
        y, tau = transform.encoder(x, cond)
        if tau is not None:
            y = y * networks.importance_mask(tau, config.transform.c)
        low, high = -128.0 + 0 * step, 128.0 - step
        y = torch.minimum(torch.maximum(y, low), high)
        y_hat = y + ((y / step).round() * step - y).detach()
        noisy = y + (torch.rand_like(y) - 0.5) * step
        x_hat = transform.decoder(y_hat, cond).clamp(-0.2, 1.2)
        header = torch.stack((quality, mu, b), dim=1)
        bits = probability.num_bits(y_hat, noisy, header)
    bpp = bits / (x.shape[2] * x.shape[3])
    squared = mse(x, x_hat) * 255.0**2
    dissimilarity = torch.full_like(squared, float("nan"))
    distortion = (1.0 - mix) * squared
    chosen = mix > 0
    if bool(chosen.any()):
        dissimilarity[chosen] = 1.0 - msssim(x[chosen], x_hat[chosen].clamp(0.0, 1.0))
        distortion = distortion + torch.where(chosen, mix * MSSSIM_LMBDA_RATIO * dissimilarity.nan_to_num(), 0.0)
    mask = torch.zeros_like(bpp)
    if tau is not None:
        mask = (tau.flatten(1).mean(dim=1) - mask_target(quality)).abs()
    total = (lmbda * distortion + bpp + mask_weight * mask) * (lmbda / 0.01) ** -0.5
    return LossParts(bpp, squared, dissimilarity, mask, total)
