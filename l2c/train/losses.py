"""The rate-distortion loss of L2C Eq. 7, with OML's lambda and a metric mix that vary from picture to picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from l2c import transforms
from l2c.adapt.latents import LatentSearch, Regions
from l2c.config import ModelConfig
from l2c.format.levels import MAX_MU, MAX_QUALITY
from l2c.objective import MSSSIM_LMBDA_RATIO, Blend, Needs, terms, weighted
from l2c.train.config import LossConfig
from l2c.train.perceptual import VGG16Features, perceptual_distance
from l2c.transforms import LEVELS, Adaptation, Quantiser


class Networks(nn.Module):
    """Everything that is trained: `transform` (E, I, D) and `probability` (P)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transform = transforms.Transform(config.transform)
        self.probability = config.float_model()


@dataclass
class Conditions:
    """What each picture of a batch is coded for.

    Held on the CPU, so that reading it never waits for a device; or held on a device with `needs`, which then says on
    the host what has to be known of mu, so that the loss never reads it.

    Attributes:
        quality: int64 [N], 0..1000. mu: int64 [N], metric mix in eighths, 0..8. b: int64 [N], bits 1..8.
        needs: which pictures need which MS-SSIM, for batches of fixed composition; None: read from mu.
    """

    quality: Tensor
    mu: Tensor
    b: Tensor
    needs: Needs | None = field(default=None, kw_only=True)

    def lmbda(self, config: ModelConfig) -> Tensor:
        """Raw lambda, float32 [N]."""
        return lmbda_of_quality(self.quality, config)

    def vector(self, config: ModelConfig) -> Tensor:
        """What the modulators see, float32 [N, 2]."""
        return transforms.condition(self.lmbda(config), self.mix())

    def mix(self) -> Tensor:
        """mu in 0..1, float32 [N]."""
        return self.mu.float() / MAX_MU

    def blend(self, config: ModelConfig, weights: LossConfig, device: torch.device) -> Blend:
        """What the distortion is made of (`l2c.objective`), with the weights of a recipe, on the pictures' device."""
        blend = Blend.of(self.mu, self.lmbda(config).to(device), self.needs)
        return blend.scaled(weights.mse, weights.msssim / MSSSIM_LMBDA_RATIO)

    def header(self) -> Tensor:
        """What P sees, int64 [N, 3]."""
        return torch.stack((self.quality, self.mu, self.b), dim=1)


@dataclass
class LossParts:
    """Per picture, float32 [N]; NaN where a stage does not compute a figure.

    Attributes:
        bpp: rate in bits per pixel.
        mse: of RGB in 0..255.
        dissimilarity: 1 - MS-SSIM: of RGB where mu > 4, of luma where 0 < mu <= 4, NaN where mu is 0.
        perceptual: the VGG16 term, zero where it is off.
        mask: |mean tau - zeta| (Eq. 3), zero without a mask.
        objective: the weighted sum of Eq. 7, in bits per pixel.
        total: objective times `pull`.
    """

    bpp: Tensor
    mse: Tensor
    dissimilarity: Tensor
    perceptual: Tensor
    mask: Tensor
    objective: Tensor
    total: Tensor


def lmbda_of_quality(quality: Tensor, config: ModelConfig) -> Tensor:
    """Raw lambda of quality 0..MAX_QUALITY (integers, any shape): log-linear between the model's two ends."""
    return config.lmbda_min * (config.lmbda_max / config.lmbda_min) ** (quality.float() / MAX_QUALITY)


def quality_of_lmbda(lmbda: float, config: ModelConfig) -> int:
    """The quality 0..MAX_QUALITY, of those that the model has, whose lambda is nearest to this one on a logarithmic
    scale."""
    share = math.log(lmbda / config.lmbda_min) / max(math.log(config.lmbda_max / config.lmbda_min), 1e-9)
    return config.settled(round(min(max(share, 0.0), 1.0) * MAX_QUALITY))


def mask_target(quality: Tensor, weights: LossConfig) -> Tensor:
    """zeta of Eq. 3, the share of channels to keep: linear in quality. Without it the mask was seen to collapse to
    zero (DESIGN 2)."""
    return weights.zeta_min + (weights.zeta_max - weights.zeta_min) * quality.float() / MAX_QUALITY


def analyse(nets: Networks, x: Tensor, cond: Conditions) -> tuple[Tensor, Tensor | None]:
    """E and I: pictures float32 [N, 3, H, W] in [0, 1], sides multiples of s -> masked latents before Q
    (y~ of L2C III), float32 [N, c, H/s, W/s], and tau or None."""
    y, tau = nets.transform.encoder(x, cond.vector(nets.config).to(x.device))
    if tau is not None:
        y = y * transforms.importance_mask(tau, nets.config.transform.c)
    return y, tau


@torch.no_grad()
def quantised_latents(nets: Networks, x: Tensor, cond: Conditions, search: int = 0) -> Tensor:
    """Pictures float32 [N, 3, H, W] in [0, 1], sides multiples of s -> latents as D gets them, float32 [N, c, h, w].

    Args:
        search: iterations of the encoder's search (`LatentSearch`) on them, for latents that Q rounds; each costs about
            three passes of D and of P. D and P that learn from such latents are those of arXiv:2506.08662.
    """
    if search:
        return _searched(nets, x, cond, search)
    y, quantiser = analyse(nets, x, cond)[0], nets.transform.quantiser
    if not quantiser.is_final:
        return nets.probability.rounded(y, cond.header())
    return through_quantiser(y, quantiser_step(cond.b, x.device), quantiser)


def _searched(nets: Networks, x: Tensor, cond: Conditions, iterations: int) -> Tensor:
    y, tau = analyse(nets, x, cond)
    kept = None if tau is None else transforms.importance_mask(tau, nets.config.transform.c) > 0
    vector, lmbda = cond.vector(nets.config).to(x.device), cond.lmbda(nets.config).to(x.device)
    regions = Regions(x, y.float(), kept, vector, cond.header().cpu(), lmbda)
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False):  # but in the networks
        search = LatentSearch(nets.transform, nets.probability, regions, autocast=autocast)
        search.run(iterations)
    return search.z.contiguous(memory_format=torch.channels_last)


def through_quantiser(y: Tensor, step: Tensor, quantiser: Quantiser = LEVELS) -> Tensor:
    """Q and Q^-1 with a straight-through gradient: y [N, c, h, w], step [N, 1, 1, 1] -> multiples of step."""
    y = clamp_levels(y, step, quantiser)
    return y + ((y / step).round() * step - y).detach()


def latent_loss(
    nets: Networks,
    x: Tensor,
    y: Tensor,
    tau: Tensor | None,
    cond: Conditions,
    weights: LossConfig,
    noise: Tensor | None,
    features: VGG16Features | None = None,
    adaptation: Adaptation | None = None,
) -> LossParts:
    """L2C Eq. 7 as a function of the latents before Q: what training and overfitting minimise.

        L = lambda [D(mu) + l_d3 L_d3] + l_r bpp + l_m |mean tau - zeta|

    D(mu) takes the place of the first two terms of Eq. 7 (`l2c.objective`); l_d2 multiplies its squared errors and
    l_d1 / MSSSIM_LMBDA_RATIO its dissimilarities. The decoder sees rounded latents, straight through (L2C III), unless
    `weights.rounded` says otherwise.

    Args:
        x: float32 [N, 3, H, W] in [0, 1], sides multiples of s.
        y: float32 [N, c, H/s, W/s], masked latents before Q.
        tau: importance map [N, 1, H/s, W/s], or None.
        weights: of the five terms.
        noise: float32 like y in [-1/2, 1/2). The rate is then taken at latents with this noise added and P's context
            at the rounded ones: the mixed form in common use since Minnen and Singh 2020 (arXiv:2007.08739). None:
            at the rounded ones, which is the rate of the file.
        features: for the perceptual term; needed where its weight is not zero.
        adaptation: changes to D.
    Returns:
        LossParts, differentiable in everything.
    """
    lmbda = cond.lmbda(nets.config).to(x.device)
    step = quantiser_step(cond.b, x.device)
    quantiser = nets.transform.quantiser
    y_hat = through_quantiser(y, step, quantiser)
    target = y_hat if noise is None else clamp_levels(y, step, quantiser) + noise * step
    if not weights.rounded:
        y_hat = target
    x_hat = nets.transform.decoder(y_hat, cond.vector(nets.config).to(x.device), adaptation).clamp(-0.2, 1.2)
    bits = nets.probability.num_bits(y_hat, target, cond.header())
    bpp = bits / (x.shape[2] * x.shape[3])
    blend = cond.blend(nets.config, weights, x.device)
    values = terms(x, x_hat, blend.needs)
    perceptual = torch.zeros_like(bpp)
    if features is not None:
        perceptual = perceptual_distance(features, x, x_hat.clamp(0.0, 1.0))
    mask = torch.zeros_like(bpp)
    if tau is not None:
        mask = (tau.flatten(1).mean(dim=1) - mask_target(cond.quality, weights).to(x.device)).abs()
    distortion = weighted(values, blend.weights)
    objective = lmbda * (distortion + weights.perceptual * perceptual) + weights.rate * bpp + weights.mask * mask
    total = objective * pull(cond, lmbda)
    return LossParts(bpp, values[:, 0], shown_dissimilarity(values), perceptual, mask, objective, total)


def pull(cond: Conditions, lmbda: Tensor) -> Tensor:
    """What a stage multiplies each picture's objective by, so that low and high rates and all metrics pull about
    equally on the weights: (lambda / 0.01)^-1/2, times 1 up to mu = 4, then up to 1.8 at mu = 8, where model 1's loss
    is 1.5 to 2 times smaller than at mu = 0 and equal lambda, but for drawn pictures at the highest
    (records/model1.jsonl).

    Args:
        lmbda: of `cond`, float32 [N], on the device of the result.
    """
    structure = 1.0 + 1.6 * (cond.mix().to(lmbda.device) - 0.5).clamp_min(0.0)
    return structure * (lmbda / 0.01) ** -0.5


def shown_dissimilarity(values: Tensor) -> Tensor:
    """`LossParts.dissimilarity` of terms float32 [N, len(TERMS)]."""
    return torch.where(values[:, 4].isnan(), values[:, 3], values[:, 4])


def quantiser_step(b: Tensor, device: torch.device) -> Tensor:
    """S = 2^(8-b): int64 [N] -> float32 [N, 1, 1, 1]."""
    return torch.exp2(8.0 - b.float())[:, None, None, None].to(device)


class _Clamp(torch.autograd.Function):
    """Clamp whose gradient also passes outside the range where it leads back into it.

    With the plain gradient, E would learn nothing from latents that saturate (they do at the largest gains).
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, low: float, high: Tensor) -> Tensor:
        ctx.save_for_backward(y, high)
        ctx.low = low
        return torch.minimum(y.clamp_min(low), high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        y, high = ctx.saved_tensors
        passes = ((y >= ctx.low) | (gradient < 0)) & ((y <= high) | (gradient > 0))
        return gradient * passes, None, None


def clamp_levels(y: Tensor, step: Tensor, quantiser: Quantiser = LEVELS) -> Tensor:
    """Latents within the quantiser's levels, with the gradient of `_Clamp`; step as of `quantiser_step`."""
    return _Clamp.apply(y, quantiser.lowest, quantiser.end - step)  # type: ignore[no-untyped-call,no-any-return]
