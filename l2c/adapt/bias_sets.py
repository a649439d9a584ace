"""Choosing one of D's bias sets for every patch (L2C III-D): a short list by a quadratic model, or all of them.

`search_sets` is what the encoder runs: all patches of a picture in every pass, as maps (DESIGN 2, 5). `try_sets`
decodes patches alone, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.adapt.latents import Regions
from l2c.errors import ConfigError
from l2c.format.adapt_section import BIAS_PATCH, NO_SET
from l2c.metrics import patch_sums
from l2c.objective import TERMS, Blend, PatchDistortion, distortion
from l2c.transforms import Adaptation, Grid, Transform, num_biases

DEFAULT_INDEX = NO_SET  # "no adaptation": D's own biases
PRICE = 9.0  # bits that a patch's set costs in the file


@dataclass(frozen=True)
class BiasSets:
    """The sets that a model offers.

    Attributes:
        values: float32 [bands, k, B], changes to D's B biases; bands are equal ranges of quality, k <= 255.
        curvature: float32 [bands, k, len(TERMS)], the mean second-order change that a set causes in each term of the
            distortion (`objective.terms`).
    """

    values: Tensor
    curvature: Tensor

    def band(self, quality: int, most: int) -> int:
        """Number of the band that holds quality 0..most."""
        return min(len(self.values) - 1, quality * len(self.values) // (most + 1))

    def to_tensors(self) -> dict[str, Tensor]:
        """As a model file stores them: values in float16."""
        return {"bias_sets.values": self.values.half(), "bias_sets.curvature": self.curvature.float()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], transform: Transform) -> BiasSets | None:
        """Read `to_tensors`; None where the model has no sets. Raises ConfigError: they do not fit the networks.

        Models from before `mixed` was of luma have the curvature of 255^2 MSE and 1 - MS-SSIM of RGB alone, which then
        stands for that of luma and chroma, too; those from before it was of blue-yellow structure have all but that,
        which then counts as 0.
        """
        if "bias_sets.values" not in tensors:
            return None
        values, curvature = tensors["bias_sets.values"], tensors.get("bias_sets.curvature")
        bands, k, b = values.shape if values.dim() == 3 else (0, 0, 0)
        if not (1 <= bands <= 16 and 1 <= k <= DEFAULT_INDEX and b == num_biases(transform.decoder)):
            raise ConfigError(f"bias sets of shape {tuple(values.shape)} do not fit the networks")
        if curvature is None or curvature.shape not in {(bands, k, count) for count in (2, 5, len(TERMS))}:
            raise ConfigError("the bias sets have no curvature of their shape")
        if curvature.shape[2] == 2:
            curvature = curvature[:, :, [int(name.endswith("dissimilarity")) for name in TERMS[:5]]]
        curvature = F.pad(curvature, (0, len(TERMS) - curvature.shape[2]))
        if not bool(torch.isfinite(values).all()) or not bool(torch.isfinite(curvature).all()):
            raise ConfigError("the bias sets are not finite")
        return cls(values.float(), curvature.float())


def distortion_gradient(transform: Transform, x: Tensor, z: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
    """Distortion with the default biases, and its gradient with respect to changes of them.

    Args:
        x: float32 [N, 3, H, W] in [0, 1]. z: float32 [N, c, h, w], quantised latents. cond: float32 [N, 2].
    Returns:
        float32 [N] (`objective.distortion`), float32 [N, B].
    """
    leaf = torch.zeros(len(x), num_biases(transform.decoder), device=x.device, requires_grad=True)
    with torch.enable_grad():
        value = _distortion(transform, x, z, cond, leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def predicted_change(gradient: Tensor, sets: BiasSets, band: int, blend: Blend) -> Tensor:
    """First-order change of each set plus its mean curvature: float32 [N, k], the less the better.

    Args:
        gradient: float32 [N, B] from `distortion_gradient`. blend: of the N pictures.
    """
    return gradient @ sets.values[band].to(gradient).T + blend.weights @ sets.curvature[band].to(gradient).T


@torch.no_grad()
def try_sets(
    transform: Transform, x: Tensor, z: Tensor, cond: Tensor, sets: BiasSets, band: int, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Decode every patch with each of its candidate sets.

    Args:
        x, z, cond: as in `distortion_gradient`.
        candidates: int64 [N, m], numbers of sets.
    Returns:
        best: int64 [N], the best candidate, or DEFAULT_INDEX where none beats the default biases;
        distortion: float32 [N], what it gives.
    """
    least = _distortion(transform, x, z, cond, None)
    best = torch.full((len(x),), DEFAULT_INDEX, device=x.device)
    values = sets.values[band].to(x.device)
    for column in candidates.to(x.device).unbind(dim=1):
        value = _distortion(transform, x, z, cond, values[column])
        better = value < least
        best, least = torch.where(better, column, best), torch.where(better, value, least)
    return best, least


def set_maps(sets: BiasSets, bands: Sequence[int], index: Tensor) -> Tensor:
    """Bias changes of patches: index int64 [N, rows, columns], NO_SET for none -> float32 [N, B, rows, columns]."""
    values = sets.values[list(bands)].to(index.device)  # [N, k, B]
    padded = torch.cat((values, values.new_zeros(len(values), 1, values.shape[2])), dim=1)
    rows = torch.where(index == NO_SET, values.shape[1], index).flatten(1)
    picked = padded.gather(1, rows[:, :, None].expand(-1, -1, values.shape[2]))
    return picked.transpose(1, 2).reshape(len(index), -1, *index.shape[1:])


def search_sets(
    transform: Transform,
    regions: Regions,
    z: Tensor,
    sets: BiasSets,
    bands: Sequence[int],
    count: int,
    go_on: Callable[[], bool] = lambda: True,
    price: float = PRICE,
) -> tuple[Tensor, Tensor] | None:
    """The best of `count` bias sets for each 256x256 patch, after ranking all of them by gradient and curvature.

    One pass with its gradient, `count` passes, and one in which every patch has its set: there a patch that gains
    less than its index costs goes back to D's own biases.

    Args:
        regions: float32 pictures or tiles. z: float32 [N, c, h, w], their latents.
        bands: of each region's quality.
        go_on: asked before each pass but the last.
        price: bits that a patch's set has to save at least.
    Returns:
        int64 [N, rows, columns], NO_SET where none pays; bits of lambda * pixels * D saved, float32 [N]. None where the
        time did not even suffice for one set.
    """
    if not go_on():
        return None
    side = BIAS_PATCH // transform.s
    grid = Grid(side, -regions.corner[0], -regions.corner[1])
    measure = PatchDistortion(regions.x, regions.blend, BIAS_PATCH, regions.weights)
    shape = (len(regions), measure.rows, measure.columns)
    weight = (regions.lmbda * regions.pixels)[:, None, None]

    def decoded(biases: Tensor) -> Tensor:
        return regions.decode(transform, z, Adaptation(biases=biases, bias_grid=grid))

    leaf = z.new_zeros(shape[0], num_biases(transform.decoder), *shape[1:], requires_grad=True)
    with torch.enable_grad():
        x_hat = decoded(leaf)
        (gradient,) = torch.autograd.grad(regions.cost(x_hat).sum(), leaf)
    values = sets.values[list(bands)].to(z.device)
    predicted = torch.einsum("nkb,nbrc->nrck", values, gradient)
    curvature = sets.curvature[list(bands)].to(z.device)  # [N, k, terms], of a whole patch's mean
    bend = (curvature * regions.blend.weights[:, None]).sum(dim=2)
    areas = patch_areas(regions.x, BIAS_PATCH)[None]
    if regions.weights is not None:  # what weighs less bends less
        areas = patch_sums(regions.weights, BIAS_PATCH)[:, 0]
    predicted += regions.lmbda[:, None, None, None] * areas[..., None] * bend[:, None, None, :]
    ranked = predicted.topk(min(count, values.shape[1]), dim=3, largest=False).indices
    base = measure(x_hat.detach()) * weight
    best, least = torch.full(shape, NO_SET, device=z.device), z.new_zeros(shape)
    with torch.no_grad():
        for column in ranked.unbind(dim=3):
            if not go_on():
                break
            change = measure(decoded(set_maps(sets, bands, column))) * weight - base
            better = change < least
            best, least = torch.where(better, column, best), torch.where(better, change, least)
        best = torch.where(least < -price, best, NO_SET)
        if not bool((best != NO_SET).any()):
            return best, z.new_zeros(len(regions))
        joint = measure(decoded(set_maps(sets, bands, best))) * weight - base
        best = torch.where(joint < -price, best, NO_SET)
        return best, -(joint * (best != NO_SET)).sum(dim=(1, 2))


def patch_areas(x: Tensor, side: int) -> Tensor:
    """Pixels of each patch of pictures [N, 3, H, W]: float32 [rows, columns]."""
    sides = [
        torch.tensor(
            [min(side, length - start) for start in range(0, length, side)], dtype=torch.float32, device=x.device
        )
        for length in x.shape[2:]
    ]
    return sides[0][:, None] * sides[1][None]


def _distortion(transform: Transform, x: Tensor, z: Tensor, cond: Tensor, biases: Tensor | None) -> Tensor:
    x_hat = transform.decoder(z, cond, None if biases is None else Adaptation(biases=biases))
    return distortion(x, x_hat[:, :, : x.shape[2], : x.shape[3]].clamp(0.0, 1.0), Blend.of_condition(cond))
