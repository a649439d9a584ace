"""Choosing one of D's bias sets for every patch (L2C III-D): a short list by a quadratic model, or all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.metrics import mixed_distortion
from l2c.networks import Adaptation, Transform, num_biases

DEFAULT_INDEX = 255  # "no adaptation": D's own biases


@dataclass(frozen=True)
class BiasSets:
    """The sets that a model offers.

    Attributes:
        values: float32 [bands, k, B], changes to D's B biases; bands are equal ranges of quality, k <= 255.
        curvature: float32 [bands, k, 2], the mean second-order change of the distortion that a set causes, for
            255^2 MSE and for 1 - MS-SSIM.
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
        """Read `to_tensors`; None where the model has no sets. Raises ConfigError: they do not fit the networks."""
        if "bias_sets.values" not in tensors:
            return None
        values, curvature = tensors["bias_sets.values"], tensors.get("bias_sets.curvature")
        bands, k, b = values.shape if values.dim() == 3 else (0, 0, 0)
        if not (1 <= bands <= 16 and 1 <= k <= DEFAULT_INDEX and b == num_biases(transform.decoder)):
            raise ConfigError(f"bias sets of shape {tuple(values.shape)} do not fit the networks")
        if curvature is None or curvature.shape != (bands, k, 2):
            raise ConfigError("the bias sets have no curvature of their shape")
        if not bool(torch.isfinite(values).all()) or not bool(torch.isfinite(curvature).all()):
            raise ConfigError("the bias sets are not finite")
        return cls(values.float(), curvature.float())


def distortion_gradient(transform: Transform, x: Tensor, z: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
    """Distortion with the default biases, and its gradient with respect to changes of them.

    Args:
        x: float32 [N, 3, H, W] in [0, 1]. z: float32 [N, c, h, w], quantised latents. cond: float32 [N, 2].
    Returns:
        float32 [N] (`metrics.mixed_distortion`), float32 [N, B].
    """
    leaf = torch.zeros(len(x), num_biases(transform.decoder), device=x.device, requires_grad=True)
    with torch.enable_grad():
        value = _distortion(transform, x, z, cond, leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def predicted_change(gradient: Tensor, sets: BiasSets, band: int, mix: Tensor, msssim_weight: float) -> Tensor:
    """First-order change of each set plus its mean curvature: float32 [N, k], the less the better.

    Args:
        gradient: float32 [N, B] from `distortion_gradient`. mix: float32 [N], metric mix 0..1.
        msssim_weight: what 1 - MS-SSIM is multiplied by in the distortion.
    """
    weights = torch.stack((1.0 - mix, mix * msssim_weight), dim=1).to(gradient.device)
    return gradient @ sets.values[band].to(gradient).T + weights @ sets.curvature[band].to(gradient).T


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


def _distortion(transform: Transform, x: Tensor, z: Tensor, cond: Tensor, biases: Tensor | None) -> Tensor:
    x_hat = transform.decoder(z, cond, None if biases is None else Adaptation(biases=biases))
    return mixed_distortion(x, x_hat[:, :, : x.shape[2], : x.shape[3]].clamp(0.0, 1.0), cond[:, 1].cpu())[2]
