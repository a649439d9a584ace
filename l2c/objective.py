"""What bits are spent on: the distortion on the axis of metrics, one definition for training, search and reports.

The axis has three metrics, at mu = 0, 4 and 8 eighths in the file's header (`levels.METRICS`), and is linear between
neighbours:

    D(mu) = hat_0(mu) D_psnr + hat_4(mu) D_mixed + hat_8(mu) D_msssim,    hat_k(mu) = max(0, 1 - |mu - k| / 4)

    D_psnr   = 255^2 MSE_RGB
    D_mixed  = g [(1 - a) 255^2 (f MSE_Y + (1 - f) (MSE_Cb + MSE_Cr) / 2) + a r (1 - MS-SSIM_Y)] + c (1 - S_B-Y)
    D_msssim = r (1 - MS-SSIM_RGB)

in BT.709 YCbCr of full range, S_B-Y the similarity of coarse blue-yellow structure (`l2c.metrics`); a picture's
objective is lambda D + bits per pixel (L2C Eq. 7). r is `MSSSIM_LMBDA_RATIO`; c and a, f and g, smooth functions of log
lambda, are `MixedWeights`, set by what VMAF, SSIMULACRA2 and Butteraugli say of validation pictures
(docs/OBJECTIVE.md). lambda itself follows from the header's quality and the model's range, so every reader of a file
knows its objective.

All of it is a sum of six terms with weights for each picture, so `term_weights` times `terms` is the definition;
`DistortionTo` and `PatchDistortion` are the same for pictures that stay.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.format.levels import METRICS
from l2c.metrics import BlueSimilarity, PatchSimilarity, SimilarityTo, chroma, luma, mse, msssim, patch_sums

# 1 - MS-SSIM counts this much more than 255^2 MSE at equal lambda: the ratio of the lambdas that CompressAI trains its
# two series of models with (220 / 0.18, 2.4 / 0.0018: 1222..1333).
MSSSIM_LMBDA_RATIO = 1280.0
TERMS = (
    "rgb-squared", "luma-squared", "chroma-squared", "luma-dissimilarity", "rgb-dissimilarity", "blue-dissimilarity",
)  # fmt: skip
_PEAK = 255.0**2
_SPACING = float(METRICS["mixed"] - METRICS["psnr"])  # of the three metrics on the axis


@dataclass(frozen=True)
class MixedWeights:
    """The weights in D_mixed; pairs are (at `lmbdas[0]` and below, at `lmbdas[1]` and above).

    Attributes:
        structure: a, the share of MS-SSIM.
        luma: f, the share of luma in the squared error.
        gain: g, so that a lambda gives about the rate that it gives with D_psnr.
        lmbdas: between these two the weights go over smoothly (3 t^2 - 2 t^3 in t, linear in log lambda).
        blue: c, what coarse blue-yellow structure counts, at every lambda.
    """

    structure: tuple[float, float] = (0.35, 0.2)
    luma: tuple[float, float] = (0.7, 0.8)
    gain: tuple[float, float] = (1.85, 1.56)
    lmbdas: tuple[float, float] = (0.002, 0.03)
    blue: float = 240.0

    def at(self, lmbda: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, f and g of raw lambdas, float32 of any shape: three of that shape."""
        low, high = (math.log(value) for value in self.lmbdas)
        t = ((lmbda.log() - low) / (high - low)).clamp(0.0, 1.0)
        ramp = t * t * (3.0 - 2.0 * t)
        a, f, g = (first + (last - first) * ramp for first, last in (self.structure, self.luma, self.gain))
        return a, f, g


MIXED = MixedWeights()


@dataclass(frozen=True)
class Needs:
    """Which pictures of a batch need the terms of D_mixed and which MS-SSIM of RGB, as the host knows it: what is not
    needed is not computed.

    Attributes:
        luma: positions of pictures with 0 < mu < 8, rising. rgb: of pictures with mu > 4.

    Consecutive positions are views of the batch. Any others are gathered through an index, which has to be copied to a
    GPU: a training step there that must not wait (or is captured as a graph) composes its batches in order of mu and
    names the positions itself, e.g. `Needs(luma=range(10, 30), rgb=range(30, 40))` for 10 pictures with mu = 0, 20 with
    mu = 4 and 10 with mu = 8, whatever quality they have.
    """

    luma: Sequence[int] = ()
    rgb: Sequence[int] = ()

    @classmethod
    def of(cls, mu: Tensor) -> Needs:
        """Of pictures with these mu, [N] in eighths; waits for the device that holds them."""
        values = mu.tolist()
        middle, last = METRICS["mixed"], METRICS["msssim"]
        return cls(
            tuple(i for i, value in enumerate(values) if 0 < value < last),
            tuple(i for i, value in enumerate(values) if value > middle),
        )


@dataclass(frozen=True)
class Blend:
    """What the distortion of a batch is made of.

    Attributes:
        weights: float32 [N, len(TERMS)], on the pictures' device.
        needs: see there.
    """

    weights: Tensor
    needs: Needs

    @classmethod
    def of(cls, mu: Tensor, lmbda: Tensor, needs: Needs | None = None) -> Blend:
        """For pictures with these mu and lambda.

        Args:
            mu: [N], eighths 0..8, on any device.
            lmbda: float32 [N], the raw trade-off, on the pictures' device.
            needs: None: read from mu, which waits for its device. A picture that it leaves out loses its MS-SSIM.
        """
        return cls(term_weights(mu.to(lmbda.device), lmbda), Needs.of(mu) if needs is None else needs)

    @classmethod
    def of_condition(cls, cond: Tensor) -> Blend:
        """For pictures with these conditions (`transforms.condition`), float32 [N, 2]; waits for their device."""
        from l2c.transforms.modulators import log_lmbda

        return cls.of((cond[:, 1] * METRICS["msssim"]).round(), log_lmbda(cond)[:, 0].exp())

    def scaled(self, squared: float, dissimilarity: float) -> Blend:
        """With the squared errors and the dissimilarities weighing so much more."""
        if squared == dissimilarity == 1.0:
            return self
        return Blend(torch.cat((self.weights[:, :3] * squared, self.weights[:, 3:] * dissimilarity), 1), self.needs)


def term_weights(mu: Tensor, lmbda: Tensor) -> Tensor:
    """The weight of each term in each picture's distortion; see the module.

    Args:
        mu: [N], eighths 0..8. lmbda: float32 [N], the raw trade-off, > 0; on the same device.
    Returns:
        float32 [N, len(TERMS)], not negative.
    """
    place = mu.float() / _SPACING
    hats = [(1.0 - (place - k).abs()).clamp_min(0.0) for k in range(3)]
    a, f, g = MIXED.at(lmbda.float())
    squared, structure = hats[1] * g * (1.0 - a), hats[1] * g * a * MSSSIM_LMBDA_RATIO
    rgb, blue = hats[2] * MSSSIM_LMBDA_RATIO, hats[1] * MIXED.blue
    return torch.stack((hats[0], squared * f, squared * (1.0 - f), structure, rgb, blue), dim=1)


def terms(x: Tensor, x_hat: Tensor, needs: Needs) -> Tensor:
    """The terms that weights go to.

    Args:
        x, x_hat: floating [N, 3, H, W], RGB, about [0, 1]; squared errors are taken as it is, similarities of x_hat
            clamped.
        needs: pictures whose luma and RGB terms are computed; other terms are NaN but for the first.
    Returns:
        float32 [N, len(TERMS)]: 255^2 MSE of RGB, of Y, and of Cb and Cr together; 1 - MS-SSIM of Y and of RGB; 1 - the
        similarity of blue-yellow structure.
        Differentiable in x_hat, also twice.
    """
    count = len(x)
    with torch.autocast(x.device.type, enabled=False):
        x, x_hat = x.float(), x_hat.float()
        columns = [mse(x, x_hat) * _PEAK]
        unknown = torch.full_like(columns[0], float("nan"))
        blue = rgb = unknown
        if len(needs.luma):
            original, decoded = _pick(x, needs.luma), _pick(x_hat, needs.luma)
            error = decoded - original  # luma and chroma are linear
            columns += [_put(mse_of(plane(error)) * _PEAK, needs.luma, count) for plane in (luma, chroma)]
            decoded = decoded.clamp(0.0, 1.0)
            columns.append(_put(1.0 - msssim(luma(original), luma(decoded)), needs.luma, count))
            blue = _put(1.0 - BlueSimilarity(original)(decoded), needs.luma, count)
        else:
            columns += [unknown] * 3
        if len(needs.rgb):
            similarity = msssim(_pick(x, needs.rgb), _pick(x_hat, needs.rgb).clamp(0.0, 1.0))
            rgb = _put(1.0 - similarity, needs.rgb, count)
        return torch.stack((*columns, rgb, blue), dim=1)


def mse_of(error: Tensor, places: Tensor | None = None) -> Tensor:
    """Mean square of errors [N, C, H, W], which weigh as `places`, [N, 1, H, W], say: [N]."""
    squares = error.square() if places is None else error.square() * places
    return squares.flatten(1).mean(dim=1)


def weighted(values: Tensor, weights: Tensor) -> Tensor:
    """The sum over terms, float32 [N]: values, weights [N, len(TERMS)]; NaN values do not count."""
    return (values.nan_to_num() * weights).sum(dim=1)


def distortion(x: Tensor, x_hat: Tensor, blend: Blend) -> Tensor:
    """D of each picture, float32 [N], as the module has it: what lambda multiplies. Arguments as `terms`."""
    return weighted(terms(x, x_hat, blend.needs), blend.weights)


class DistortionTo:
    """`distortion` to pictures that stay, of decoded ones clamped to [0, 1]; see `SimilarityTo`.

    Args:
        x: float32 [N, 3, H, W] in [0, 1].
        places: float32 [N, 1, H, W], what errors weigh at each pixel; None: 1 everywhere.
    """

    def __init__(self, x: Tensor, blend: Blend, places: Tensor | None = None) -> None:
        self._x, self._weights, self._needs, self._places = x, blend.weights, blend.needs, places
        self._luma = self._blue = self._rgb = None
        if len(blend.needs.luma):
            original, here = _pick(x, blend.needs.luma), _of(places, blend.needs.luma)
            self._luma, self._blue = SimilarityTo(luma(original), here), BlueSimilarity(original, here)
        if len(blend.needs.rgb):
            self._rgb = SimilarityTo(_pick(x, blend.needs.rgb), _of(places, blend.needs.rgb))

    def __call__(self, x_hat: Tensor) -> Tensor:
        """Decoded pictures, about [0, 1] -> float32 [N], differentiable once."""
        x_hat = x_hat.clamp(0.0, 1.0)
        squares = mse(self._x, x_hat) if self._places is None else mse_of(x_hat - self._x, self._places)
        total = self._weights[:, 0] * squares * _PEAK
        if self._luma is not None and self._blue is not None:
            members = self._needs.luma
            weights, decoded = _pick(self._weights, members), _pick(x_hat, members)
            error, places = decoded - _pick(self._x, members), _of(self._places, members)
            value = weights[:, 1] * mse_of(luma(error), places) + weights[:, 2] * mse_of(chroma(error), places)
            value = _PEAK * value + weights[:, 3] * (1.0 - self._luma(luma(decoded)))
            total = total + _put(value + weights[:, 5] * (1.0 - self._blue(decoded)), members, len(x_hat), 0.0)
        if self._rgb is not None:
            members = self._needs.rgb
            value = _pick(self._weights, members)[:, 4] * (1.0 - self._rgb(_pick(x_hat, members)))
            total = total + _put(value, members, len(x_hat), 0.0)
        return total


class PatchDistortion:
    """`distortion` of decoded pictures clamped to [0, 1], shared out to the patches that cause it.

    The squared errors are sums over patches; for MS-SSIM see `PatchSimilarity`. Differences between two decodings are
    right up to the second order in the change, and their sum over patches is the change of the picture's own figure.

    Args:
        x: float32 [N, 3, H, W] in [0, 1].
        side: of a patch in pixels; the grid starts at the top left.
        places: as for `DistortionTo`.
    """

    def __init__(self, x: Tensor, blend: Blend, side: int, places: Tensor | None = None) -> None:
        self._x, self._weights, self._needs, self._side, self._places = x, blend.weights, blend.needs, side, places
        self.rows, self.columns = -(-x.shape[2] // side), -(-x.shape[3] // side)
        self._luma = self._blue = self._rgb = None
        if len(blend.needs.luma):
            original, here = _pick(x, blend.needs.luma), _of(places, blend.needs.luma)
            self._luma, self._blue = PatchSimilarity(luma(original), side, here), BlueSimilarity(original, here)
        if len(blend.needs.rgb):
            self._rgb = PatchSimilarity(_pick(x, blend.needs.rgb), side, _of(places, blend.needs.rgb))

    @torch.no_grad()
    def __call__(self, x_hat: Tensor) -> Tensor:
        """Decoded pictures, about [0, 1] -> float32 [N, rows, columns], meaningful in differences."""
        x_hat = x_hat.clamp(0.0, 1.0)
        error = x_hat - self._x
        weights = self._weights[:, :3, None, None, None]
        squares = weights[:, 0] * error.square().mean(dim=1, keepdim=True)
        if self._luma is not None:
            squares = squares + weights[:, 1] * luma(error).square()
            squares = squares + weights[:, 2] * chroma(error).square().mean(dim=1, keepdim=True)
        if self._places is not None:
            squares = squares * self._places
        total = patch_sums(squares, self._side)[:, 0] * (_PEAK / squares[0].numel())
        for similarity, members, column in ((self._luma, self._needs.luma, 3), (self._rgb, self._needs.rgb, 4)):
            if similarity is not None:
                decoded = _pick(x_hat, members)
                shares = similarity(luma(decoded) if column == 3 else decoded)
                weight = _pick(self._weights, members)[:, column, None, None]
                total = total - _put(weight * shares, members, len(x_hat), 0.0)
        if self._blue is not None:
            members = self._needs.luma
            shares = self._blue.patch_shares(_pick(x_hat, members), self._side)
            weight = _pick(self._weights, members)[:, 5, None, None]
            total = total - _put(weight * shares, members, len(x_hat), 0.0)
        return total


def _consecutive(members: Sequence[int]) -> bool:
    return all(later == first + 1 for first, later in itertools.pairwise(members))


def _pick(batch: Tensor, members: Sequence[int]) -> Tensor:
    """Some pictures of a batch: a view where they follow each other."""
    if _consecutive(members):
        return batch.narrow(0, members[0], len(members))
    return batch[torch.tensor(list(members), device=batch.device)]


def _of(places: Tensor | None, members: Sequence[int]) -> Tensor | None:
    return None if places is None else _pick(places, members)


def _put(values: Tensor, members: Sequence[int], count: int, fill: float = float("nan")) -> Tensor:
    """The inverse: values [len(members), ...] at their places in a batch of `count`, `fill` at the others."""
    if _consecutive(members):
        around = (0, 0) * (values.dim() - 1) + (members[0], count - members[0] - len(members))
        return F.pad(values, around, value=fill)
    places = torch.tensor(list(members), device=values.device)
    return values.new_full((count, *values.shape[1:]), fill).index_copy(0, places, values)
