"""PSNR, MS-SSIM and BT.709 in torch: one definition for training, objectives, targets and reports.

Colour: BT.709 with full range, as the JPEG AI challenge converts for its figures,

    Y  = 0.2126 R + 0.7152 G + 0.0722 B
    Cb = (B - Y) / 1.8556 + 1/2
    Cr = (R - Y) / 1.5748 + 1/2        (all in [0, 1])

and, where eyes are concerned, the blue-yellow plane B - Y of XYB (JPEG XL; SSIMULACRA 2 looks at it, too), which is
made of linear light: of cones that see long, middle and short waves as `_CONES` has it, cube roots are taken,

    B - Y = (S - (L + M) / 2)          (0 for grey)
"""

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
PIECE = 128
LUMA = (0.2126, 0.7152, 0.0722)  # of R, G and B
_CONES = ((0.3, 0.622, 0.078), (0.23, 0.692, 0.078), (0.24342269, 0.20476744, 0.55180987))  # of linear R, G and B
_CONES_BIAS = 0.0037930733  # added to each before the cube root
_BLUE_STRIDES, _BLUE_SHARES = (8, 16), (0.14, 0.86)  # pixels that are averaged, and what their similarities weigh
CB_RANGE, CR_RANGE = 2.0 * (1.0 - LUMA[2]), 2.0 * (1.0 - LUMA[0])  # 1.8556 and 1.5748


@functools.lru_cache(maxsize=32)
def gaussian_window() -> Tensor:
    """The filter's 11 taps, float32, of sum 1."""
    n = torch.arange(_WINDOW, dtype=torch.float64, device="cpu") - _WINDOW // 2
    g = torch.exp(-(n**2) / (2 * _SIGMA**2))
    return (g / g.sum()).float()


@functools.lru_cache(maxsize=32)
def band_matrix(side: int, device: torch.device) -> Tensor:
    """The 11-tap filter over `side` samples as a banded matrix [side - 10, side]."""
    with torch.inference_mode(False):  # kept, so it must not be bound to the mode of the first caller
        band = torch.zeros(side - _WINDOW + 1, side, dtype=torch.float32, device="cpu")
        for offset, weight in enumerate(gaussian_window().tolist()):
            band.diagonal(offset).fill_(weight)
        return band.to(device)


def _blur(x: Tensor) -> Tensor:
    """Separable Gaussian without padding: [..., h, w] -> [..., h-10, w-10].

    As matrix products with banded matrices over pieces of PIECE outputs: on a CPU far faster, forward and backward,
    than a one-channel convolution, and faster than one matrix over a whole side.
    """
    return _blur_along(_blur_along(x, -1), -2)


def _blur_along(x: Tensor, dim: int) -> Tensor:
    outputs, parts = x.shape[dim] - _WINDOW + 1, []
    for start in range(0, outputs, PIECE):
        length = min(PIECE, outputs - start) + _WINDOW - 1
        part, band = x.narrow(dim, start, length), band_matrix(length, x.device)
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


@functools.lru_cache(maxsize=8)
def _scale_weights(scales: int) -> tuple[float, ...]:
    """Exponents of the first scales, renormalised to sum 1."""
    weights = torch.tensor(MSSSIM_WEIGHTS[:scales], device="cpu")
    return tuple((weights / weights.sum()).tolist())


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
    """What one scale of MS-SSIM needs of the picture that does not change; `places`: what positions weigh, or None."""

    x: Tensor
    mean: Tensor
    variance: Tensor
    last: bool
    places: Tensor | None = None

    def weighed(self, values: Tensor) -> Tensor:
        """A map of similarities, each drawn towards 1 by how little it weighs."""
        return values if self.places is None else 1.0 + self.places * (values - 1.0)


class SimilarityTo:
    """MS-SSIM to a picture that stays, for a search that asks many times; values as `msssim`.

    The picture's own statistics are taken once and the derivative is written out, which halves the time of value and
    gradient. It cannot be differentiated twice; `msssim` can.

    Args:
        x: float32 [N, C, H, W] in [0, 1].
        places: float32 [N, 1, H, W] in 0..1, what dissimilarity weighs at each pixel: every mean is of
            1 - weight * (1 - similarity). None: 1 everywhere.
    """

    def __init__(self, x: Tensor, places: Tensor | None = None) -> None:
        self._shape = x.shape
        x = _at_least_window(x.float().contiguous())
        places = None if places is None else _at_least_window(places)
        scales, edge = _num_scales(x), _WINDOW // 2
        self._scales: list[_Scale] = []
        for scale in range(scales):
            mean, square = _blur(torch.stack((x, x * x)))
            here = None if places is None else places[:, :, edge:-edge, edge:-edge]
            self._scales.append(_Scale(x, mean, square - mean * mean, scale == scales - 1, here))
            x, places = _halved(x), None if places is None else _halved(places)

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
                maps.append(scale.weighed(contrast * _luminance(scale.mean, mean)[0] if scale.last else contrast))
                y = y if scale.last else _halved(y)
            return maps


class PatchSimilarity:
    """MS-SSIM to a picture that stays, shared out to the patches that cause it.

    MS-SSIM is a product of means over the picture, so a patch's share is taken to first order around the first decoding
    that is measured: differences between two decodings are then right up to the second order in the change.

    Args:
        x: float32 [N, C, H, W] in [0, 1].
        side: of a patch in pixels; the grid starts at the top left.
        places: as for `SimilarityTo`.
    """

    def __init__(self, x: Tensor, side: int, places: Tensor | None = None) -> None:
        self._similarity, self._side, self._sides = SimilarityTo(x, places), side, (x.shape[2], x.shape[3])
        self._factors: list[Tensor] | None = None

    @torch.no_grad()
    def __call__(self, x_hat: Tensor) -> Tensor:
        """Pictures of x's shape in [0, 1] -> float32 [N, rows, columns], meaningful in differences."""
        maps = self._similarity.maps(x_hat)
        if self._factors is None:
            means = [part.flatten(2).mean(dim=2).clamp_min(1e-3) for part in maps]
            weights = _scale_weights(len(maps))
            product = torch.stack([m**w for m, w in zip(means, weights)]).prod(dim=0)
            self._factors = [w * product / m / part[0, 0].numel() for m, w, part in zip(means, weights, maps)]
        total = torch.zeros((), device=x_hat.device)
        for k, (part, factor) in enumerate(zip(maps, self._factors)):
            shares = patch_sums(part, self._side, self._sides, 1 << k, _WINDOW // 2)
            total = total + (shares * factor[:, :, None, None]).mean(dim=1)
        return total


def patch_sums(
    part: Tensor, side: int, picture: tuple[int, int] | None = None, stride: int = 1, offset: float = 0
) -> Tensor:
    """Sums over the patches that the entries of a map belong to.

    Args:
        part: float32 [N, C, h, w]; entry i lies at pixel (i + offset) * stride.
        side: of a patch in pixels.
        picture: height and width in pixels; None: those of the map.
    Returns:
        float32 [N, C, rows, columns].
    """
    owners = []
    for length, pixels in zip(part.shape[2:], picture or part.shape[2:]):
        count = -(-pixels // side)
        centre = (torch.arange(length, device=part.device) + offset) * stride
        owner = (centre // side).clamp_max(count - 1)
        owners.append((owner[None] == torch.arange(count, device=part.device)[:, None]).to(part.dtype))
    return owners[0] @ part @ owners[1].T


class _MeanContrast(torch.autograd.Function):
    """Mean over one scale's positions of its contrast, or of contrast times luminance: y [N, C, h, w] -> [N, C]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: _Scale) -> Tensor:
        mean, denominator, contrast = _contrast(y, scale)
        ctx.scale = scale
        ctx.save_for_backward(y, mean, denominator, contrast)
        value = contrast * _luminance(scale.mean, mean)[0] if scale.last else contrast
        return scale.weighed(value).flatten(2).mean(dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        y, mean, denominator, contrast = ctx.saved_tensors
        scale: _Scale = ctx.scale
        slope = (slope / contrast[0, 0].numel())[:, :, None, None]
        if scale.places is not None:
            slope = slope * scale.places
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


class BlueSimilarity:
    """Structural similarity of coarse blue-yellow structure to a picture that stays.

    Linear light is averaged over 8x8 and 16x16 pixels, fewer at the right and the bottom; of the plane B - Y there,
    with the window and the constants of MS-SSIM and edges repeated, the similarity is

        (1 - (mean - mean')^2) (2 covariance + C2) / (variance + variance' + C2)

    as SSIMULACRA 2 has it, for which these two scales of this plane count most of all colour. Eyes see there what is
    left of textures' and shadows' tint.

    Args:
        x: float32 [N, 3, H, W] in [0, 1]. places: as for `SimilarityTo`.
    """

    def __init__(self, x: Tensor, places: Tensor | None = None) -> None:
        self._scales = []
        for plane, stride in zip(_blue_planes(x), _BLUE_STRIDES):
            shift = plane.mean(dim=(2, 3), keepdim=True)  # variances are small differences of squares
            plane = plane - shift
            mean, square = _blur_to_edges(torch.stack((plane, plane * plane)))
            here = None if places is None else F.avg_pool2d(places, stride, ceil_mode=True)
            self._scales.append((plane, shift, mean, square - mean * mean, here))

    def __call__(self, x_hat: Tensor) -> Tensor:
        """Pictures of x's shape in [0, 1] -> float32 [N], at most 1; differentiable, also twice."""
        return sum(
            (share * part.flatten(1).mean(dim=1) for share, part in zip(_BLUE_SHARES, self.maps(x_hat))),
            start=x_hat.new_zeros(len(x_hat)),
        )

    def maps(self, x_hat: Tensor) -> list[Tensor]:
        """What the means are taken of: float32 [N, 1, ceil(H / stride), ceil(W / stride)] of each scale."""
        maps = []
        for (plane, shift, mean, variance, places), decoded in zip(self._scales, _blue_planes(x_hat.float())):
            y = decoded - shift
            mean_y, square, product = _blur_to_edges(torch.stack((y, y * y, plane * y)))
            contrast = (2.0 * (product - mean * mean_y) + _C2) / (variance + square - mean_y * mean_y + _C2)
            value = (1.0 - (mean - mean_y).square()) * contrast
            maps.append(value if places is None else 1.0 + places * (value - 1.0))
        return maps

    def patch_shares(self, x_hat: Tensor, side: int) -> Tensor:
        """The similarity shared out to patches of `side` pixels from the top left: float32 [N, rows, columns]."""
        sides, total = (x_hat.shape[2], x_hat.shape[3]), torch.zeros((), device=x_hat.device)
        for part, stride, share in zip(self.maps(x_hat), _BLUE_STRIDES, _BLUE_SHARES):
            total = total + patch_sums(part, side, sides, stride, 0.5)[:, 0] * (share / part[0].numel())
        return total


def _blue_planes(x: Tensor) -> list[Tensor]:
    """B - Y of each scale: sRGB [N, 3, H, W] in [0, 1] -> [N, 1, h, w]."""
    light = torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    planes = []
    for stride in _BLUE_STRIDES:
        r, g, b = F.avg_pool2d(light, stride, ceil_mode=True).unbind(dim=1)
        long, middle, short = ((m[0] * r + m[1] * g + m[2] * b + _CONES_BIAS) ** (1.0 / 3.0) for m in _CONES)
        planes.append((short - 0.5 * (long + middle))[:, None])
    return planes


def _blur_to_edges(x: Tensor) -> Tensor:
    """`_blur` of the same size, edges repeated, in float32: [K, N, C, h, w] -> the same shape."""
    with torch.autocast(x.device.type, enabled=False):
        return _blur(F.pad(x.flatten(0, 1), (_WINDOW // 2,) * 4, mode="replicate")).unflatten(0, x.shape[:2])


def _luminance(mean_x: Tensor, mean_y: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance term and its denominator."""
    below = mean_x * mean_x + mean_y * mean_y + _C1
    return (2.0 * mean_x * mean_y + _C1) / below, below


def luma(rgb: Tensor) -> Tensor:
    """Y of pictures, or of differences of pictures: [N, 3, H, W] -> [N, 1, H, W]."""
    return LUMA[0] * rgb[:, 0:1] + LUMA[1] * rgb[:, 1:2] + LUMA[2] * rgb[:, 2:3]


def chroma(rgb: Tensor) -> Tensor:
    """Cb - 1/2 and Cr - 1/2 of pictures, or those of differences: [N, 3, H, W] -> [N, 2, H, W]."""
    y = luma(rgb)
    return torch.cat(((rgb[:, 2:3] - y) / CB_RANGE, (rgb[:, 0:1] - y) / CR_RANGE), dim=1)


def mse(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error per picture: [N, C, H, W] -> [N], in the square of the input's unit."""
    return (x.float() - x_hat.float()).square().flatten(1).mean(dim=1)


def psnr(x: Tensor, x_hat: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], over all colour channels together: [N]."""
    return -10.0 * mse(x, x_hat).clamp_min(1e-12).log10()
