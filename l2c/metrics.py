"""PSNR and MS-SSIM in torch: one definition for training, objectives, targets and reports."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Wang, Simoncelli, Bovik 2003: exponents of the five scales.
MSSSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_PIECE = 128


@functools.lru_cache(maxsize=32)
def _window() -> Tensor:
    n = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    g = torch.exp(-(n**2) / (2 * _SIGMA**2))
    return (g / g.sum()).float()


@functools.lru_cache(maxsize=32)
def _band(side: int, device: torch.device) -> Tensor:
    """The 11-tap filter over `side` samples as a banded matrix [side - 10, side]."""
    with torch.inference_mode(False):  # kept, so it must not be bound to the mode of the first caller
        band = torch.zeros(side - _WINDOW + 1, side, dtype=torch.float32, device="cpu")
        for offset, weight in enumerate(_window().tolist()):
            band.diagonal(offset).fill_(weight)
        return band.to(device)


def _blur(x: Tensor) -> Tensor:
    """Separable Gaussian without padding: [..., h, w] -> [..., h-10, w-10].

    As matrix products with banded matrices over pieces of _PIECE outputs: on a CPU far faster, forward and backward,
    than a one-channel convolution, and faster than one matrix over a whole side.
    """
    return _blur_along(_blur_along(x, -1), -2)


def _blur_along(x: Tensor, dim: int) -> Tensor:
    outputs, parts = x.shape[dim] - _WINDOW + 1, []
    for start in range(0, outputs, _PIECE):
        length = min(_PIECE, outputs - start) + _WINDOW - 1
        part, band = x.narrow(dim, start, length), _band(length, x.device)
        parts.append(part @ band.T if dim == -1 else band @ part)
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def msssim(x: Tensor, x_hat: Tensor) -> Tensor:
    """Multi-scale structural similarity, mean over colour channels, as `pytorch_msssim` computes it.

    In float32 even under autocast: variances are small differences of large means, which bfloat16 cannot hold.

    Five scales need sides >= 161. Smaller pictures use the scales that fit an 11-tap window, with the weights
    renormalised to sum 1; below 11 pixels the last row and column are repeated up to 11.

    Args:
        x, x_hat: floating [N, C, H, W] in [0, 1].
    Returns:
        float32 [N], at most 1; differentiable in x_hat.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _msssim(x.float(), x_hat.float())


def _msssim(x: Tensor, x_hat: Tensor) -> Tensor:
    return _product_of_means([part.flatten(2).mean(dim=2) for part in _similarity_maps(x, x_hat)])


def _product_of_means(means: list[Tensor]) -> Tensor:
    """MS-SSIM from the means [N, C] of its scales' maps: [N]."""
    result = torch.ones_like(means[0])
    for term, weight in zip(means, _scale_weights(len(means))):
        # 0 where a mean is not positive, and there without the gradient of x^w, which is infinite at 0.
        result = result * torch.where(term > 0, term.clamp_min(1e-8) ** weight, 0.0)
    return result.mean(dim=1)


def _scale_weights(scales: int) -> list[float]:
    """Exponents of the first scales, renormalised to sum 1."""
    weights = torch.tensor(MSSSIM_WEIGHTS[:scales])
    return list((weights / weights.sum()).tolist())


def _similarity_maps(x: Tensor, x_hat: Tensor) -> list[Tensor]:
    """What MS-SSIM takes the means of: contrast of every scale, times luminance at the last; [N, C, h, w] each."""
    x, x_hat = (_at_least_window(part) for part in (x, x_hat))
    scales = _num_scales(x)
    maps = []
    for scale in range(scales):
        mu_x, mu_y, xx, yy, xy = _blur(torch.stack((x, x_hat, x * x, x_hat * x_hat, x * x_hat)))
        var_x, var_y, cov = xx - mu_x * mu_x, yy - mu_y * mu_y, xy - mu_x * mu_y
        contrast = (2 * cov + _C2) / (var_x + var_y + _C2)
        if scale < scales - 1:
            maps.append(contrast)
            x, x_hat = _halved(x), _halved(x_hat)
        else:
            maps.append((2 * mu_x * mu_y + _C1) / (mu_x * mu_x + mu_y * mu_y + _C1) * contrast)
    return maps


def _at_least_window(x: Tensor) -> Tensor:
    """Pictures with sides of at least 11, the last row and column repeated as needed."""
    if min(x.shape[-2:]) >= _WINDOW:
        return x
    return F.pad(x, (0, max(0, _WINDOW - x.shape[3]), 0, max(0, _WINDOW - x.shape[2])), mode="replicate")


def _num_scales(x: Tensor) -> int:
    scales = 1
    while scales < len(MSSSIM_WEIGHTS) and min(x.shape[-2:]) > (_WINDOW - 1) << scales:
        scales += 1
    return scales


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, padding=[side % 2 for side in x.shape[2:]])


@dataclass(frozen=True)
class _Scale:
    """What one scale of MS-SSIM needs of the picture that does not change."""

    x: Tensor
    mean: Tensor
    variance: Tensor
    last: bool


class SimilarityTo:
    """MS-SSIM to a picture that stays, for a search that asks many times; values as `msssim`.

    The picture's own statistics are taken once and the derivative is written out, which halves the time of value and
    gradient. It cannot be differentiated twice; `msssim` can.

    Args:
        x: float32 [N, C, H, W] in [0, 1].
    """

    def __init__(self, x: Tensor) -> None:
        self._shape = x.shape
        x = _at_least_window(x.float().contiguous())
        scales = _num_scales(x)
        self._scales: list[_Scale] = []
        for scale in range(scales):
            mean, square = _blur(torch.stack((x, x * x)))
            self._scales.append(_Scale(x, mean, square - mean * mean, scale == scales - 1))
            x = _halved(x)

    def __call__(self, x_hat: Tensor) -> Tensor:
        """Pictures of x's shape in [0, 1] -> float32 [N], differentiable once."""
        if x_hat.shape != self._shape:
            raise ValueError(f"pictures of shape {tuple(x_hat.shape)} are compared with {tuple(self._shape)}")
        with torch.autocast(x_hat.device.type, enabled=False):
            y = _at_least_window(x_hat.float().contiguous())
            terms = []
            for scale in self._scales:
                terms.append(_MeanContrast.apply(y, scale))
                y = y if scale.last else _halved(y)
            return _product_of_means(terms)

    @torch.no_grad()
    def maps(self, x_hat: Tensor) -> list[Tensor]:
        """What the means are taken of, see `_similarity_maps`."""
        with torch.autocast(x_hat.device.type, enabled=False):
            y, maps = _at_least_window(x_hat.float().contiguous()), []
            for scale in self._scales:
                mean, _, contrast = _contrast(y, scale)
                maps.append(contrast * _luminance(scale.mean, mean)[0] if scale.last else contrast)
                y = y if scale.last else _halved(y)
            return maps


class _MeanContrast(torch.autograd.Function):
    """Mean over one scale's positions of its contrast, or of contrast times luminance: y [N, C, h, w] -> [N, C]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: _Scale) -> Tensor:
        mean, denominator, contrast = _contrast(y, scale)
        ctx.scale = scale
        ctx.save_for_backward(y, mean, denominator, contrast)
        value = contrast * _luminance(scale.mean, mean)[0] if scale.last else contrast
        return value.flatten(2).mean(dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        y, mean, denominator, contrast = ctx.saved_tensors
        scale: _Scale = ctx.scale
        slope = (slope / contrast[0, 0].numel())[:, :, None, None]
        by_contrast, extra = slope, None
        if scale.last:
            luminance, below = _luminance(scale.mean, mean)
            extra = 2.0 * slope * contrast * (scale.mean - luminance * mean) / below
            by_contrast = slope * luminance
        by_product = 2.0 * by_contrast / denominator  # of blurred x y, and so of the covariance
        by_square = -0.5 * by_product * contrast  # of blurred y y, and so of y's variance
        by_mean = -(by_product * scale.mean).addcmul_(by_square, mean, value=2.0)
        if extra is not None:
            by_mean += extra
        spread = _blur(F.pad(torch.stack((by_mean, by_square, by_product)), (_WINDOW - 1,) * 4))  # the filter is even
        return spread[0].addcmul_(spread[1], y, value=2.0).addcmul_(spread[2], scale.x), None


def _contrast(y: Tensor, scale: _Scale) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of y, denominator of the contrast term, and the term."""
    mean, square, product = _blur(torch.stack((y, y * y, scale.x * y)))
    covariance = product.addcmul_(scale.mean, mean, value=-1.0)
    denominator = square.addcmul_(mean, mean, value=-1.0).add_(scale.variance).add_(_C2)
    return mean, denominator, covariance.mul_(2.0).add_(_C2).div_(denominator)


def _luminance(mean_x: Tensor, mean_y: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance term and its denominator."""
    below = mean_x * mean_x + mean_y * mean_y + _C1
    return (2.0 * mean_x * mean_y + _C1) / below, below


def mse(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error per picture: [N, C, H, W] -> [N], in the square of the input's unit."""
    return (x.float() - x_hat.float()).square().flatten(1).mean(dim=1)


def psnr(x: Tensor, x_hat: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], over all colour channels together: [N]."""
    return -10.0 * mse(x, x_hat).clamp_min(1e-12).log10()


# 1 - MS-SSIM counts this much more than 255^2 MSE at equal lambda: the ratio of the lambdas that CompressAI trains its
# two series of models with (220 / 0.18, 2.4 / 0.0018: 1222..1333).
MSSSIM_LMBDA_RATIO = 1280.0


def mixed_distortion(
    x: Tensor, x_hat: Tensor, mix: Tensor, mse_weight: float = 1.0, msssim_weight: float = MSSSIM_LMBDA_RATIO
) -> tuple[Tensor, Tensor, Tensor]:
    """The distortion that mu mixes (the first two terms of L2C Eq. 7 without their common lambda).

    Args:
        x, x_hat: float32 [N, C, H, W], about [0, 1].
        mix: float32 [N] on the CPU, 0 (MSE only) to 1 (MS-SSIM only).
        mse_weight, msssim_weight: of the two terms.
    Returns:
        Per picture, float32 [N]: 255^2 MSE; 1 - MS-SSIM, NaN where mix is 0;
        (1 - mix) mse_weight 255^2 MSE + mix msssim_weight (1 - MS-SSIM).
    """
    squared = mse(x, x_hat) * 255.0**2
    dissimilarity = torch.full_like(squared, float("nan"))
    chosen, mix = mix.nonzero().flatten().to(x.device), mix.to(x.device)
    distortion = (1.0 - mix) * mse_weight * squared
    if len(chosen):
        dissimilarity = dissimilarity.index_copy(0, chosen, 1.0 - msssim(x[chosen], x_hat[chosen].clamp(0.0, 1.0)))
        distortion = distortion + mix * msssim_weight * dissimilarity.nan_to_num()
    return squared, dissimilarity, distortion


class DistortionTo:
    """The third result of `mixed_distortion` at its usual weights, for pictures that stay; see `SimilarityTo`.

    Args:
        x: float32 [N, C, H, W] in [0, 1]. mix: float32 [N] on the CPU, 0 (MSE only) to 1 (MS-SSIM only).
    """

    def __init__(self, x: Tensor, mix: Tensor) -> None:
        self._x, self._mix = x, mix.to(x.device)
        self._chosen = mix.nonzero().flatten().to(x.device)
        self._similarity = SimilarityTo(x[self._chosen]) if len(self._chosen) else None

    def __call__(self, x_hat: Tensor) -> Tensor:
        """Decoded pictures, about [0, 1] -> float32 [N], differentiable once."""
        x_hat = x_hat.clamp(0.0, 1.0)
        total = (1.0 - self._mix) * mse(self._x, x_hat) * 255.0**2
        if self._similarity is None:
            return total
        whole = len(self._chosen) == len(x_hat)
        similarity = self._similarity(x_hat if whole else x_hat[self._chosen])
        return total.index_add(0, self._chosen, self._mix[self._chosen] * MSSSIM_LMBDA_RATIO * (1.0 - similarity))


class PatchDistortion:
    """The distortion of `mixed_distortion`, shared out to the patches that cause it.

    The squared error is a sum over patches. MS-SSIM is a product of means over the picture, so a patch's share is taken
    to first order around the first decoding that is measured: differences between two decodings are then right up to
    the second order in the change, and their sum over patches is the change of the picture's own figure.

    Args:
        x: float32 [N, C, H, W] in [0, 1].
        mix: float32 [N] on the CPU, 0 (MSE only) to 1 (MS-SSIM only).
        side: of a patch in pixels; the grid starts at the top left.
    """

    def __init__(self, x: Tensor, mix: Tensor, side: int) -> None:
        self._x, self._mix, self._side = x, mix.to(x.device), side
        self._chosen = mix.nonzero().flatten().to(x.device)
        self.rows, self.columns = -(-x.shape[2] // side), -(-x.shape[3] // side)
        self._similarity = SimilarityTo(x[self._chosen]) if len(self._chosen) else None
        self._scales: list[Tensor] | None = None

    @torch.no_grad()
    def __call__(self, x_hat: Tensor) -> Tensor:
        """Decoded pictures, about [0, 1] -> float32 [N, rows, columns], meaningful in differences."""
        x_hat = x_hat.clamp(0.0, 1.0)
        squared = (self._x - x_hat).square().mean(dim=1, keepdim=True) * 255.0**2
        total = (1.0 - self._mix)[:, None, None] * self._sums(squared, 1, 0)[:, 0] / squared[0].numel()
        if self._similarity is None:
            return total
        maps = self._similarity.maps(x_hat[self._chosen])
        if self._scales is None:
            means = [part.flatten(2).mean(dim=2).clamp_min(1e-3) for part in maps]
            weights = _scale_weights(len(maps))
            product = torch.stack([m**w for m, w in zip(means, weights)]).prod(dim=0)
            self._scales = [w * product / m / part[0, 0].numel() for m, w, part in zip(means, weights, maps)]
        similarity = sum(
            (self._sums(part, 1 << k, _WINDOW // 2) * factor[:, :, None, None]).mean(dim=1)
            for k, (part, factor) in enumerate(zip(maps, self._scales))
        )
        assert isinstance(similarity, Tensor)
        weight = self._mix[self._chosen, None, None] * MSSSIM_LMBDA_RATIO
        return total.index_add(0, self._chosen, -weight * similarity)

    def _sums(self, part: Tensor, stride: int, offset: int) -> Tensor:
        """Sums over the patches that the entries of a map belong to: [N, C, h, w] -> [N, C, rows, columns]."""
        sides = []
        for length, count in ((part.shape[2], self.rows), (part.shape[3], self.columns)):
            centre = (torch.arange(length, device=part.device) + offset) * stride
            owner = (centre // self._side).clamp_max(count - 1)
            sides.append((owner[None] == torch.arange(count, device=part.device)[:, None]).to(part.dtype))
        return sides[0] @ part @ sides[1].T
