"""The yardstick of OML: online adaptation as the paper runs it, patch after patch (OML 3.3, 5.2).

Every full 512x512 patch is a picture of its own; smaller ones at the borders are decoded as they are. SGD moves the K
raw lambdas of a patch down the gradient of lambda D: the first step tries the paper's six lengths and keeps the best,
which is halved whenever the distortion does not fall, and the search goes on from the best lambdas. These are kept as
float16. What the paper leaves open: our modulators see log lambda, so a lambda stays at 1e-6 or above.

Plain and slow on purpose: gain and speed of `modulators.search_conditions` are measured against it
(experiments/oml.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c import transforms
from l2c.adapt.modulators import STEP_SIZES
from l2c.errors import UnsupportedError
from l2c.format.adapt_section import CONDITION_PATCH
from l2c.format.levels import MAX_QUALITY
from l2c.format.tiles import Box, grid
from l2c.models import Model
from l2c.objective import Blend, distortion
from l2c.transforms import Adaptation

_LEAST_LMBDA = 1e-6


@dataclass
class Literal:
    """What the literal method found.

    Attributes:
        lmbdas: float16 [rows, columns, K] of the 512x512 patches; NaN where a patch is not a full one.
        before, after: the picture decoded without and with them, uint8 [H, W, 3].
        seconds: of the adaptation, encoding not counted.
        bits: that the lambdas cost, 16 each.
    """

    lmbdas: npt.NDArray[np.float16]
    before: npt.NDArray[np.uint8]
    after: npt.NDArray[np.uint8]
    seconds: float
    bits: int


def adapt_literally(model: Model, pixels: npt.NDArray[np.uint8], level: int, mu: int, num_steps: int) -> Literal:
    """Adapt the conditions of D's modulators for one picture; its latents stay as E gives them.

    Args:
        model: with modulators.
        pixels: uint8 [H, W, 3].
        level: quality 0..1000. mu: the metric mix 0..8 of the objective; the condition's own stays 0 (OML 5.3).
        num_steps: n, SGD steps, at least 1.
    Raises:
        UnsupportedError: the model has no modulators.
    """
    k = transforms.num_modulators(model.transform)
    if not k:
        raise UnsupportedError("this model has no modulators: there is nothing to adapt")
    height, width = pixels.shape[:2]
    boxes = grid(height, width, CONDITION_PATCH)
    rows, columns = -(-height // CONDITION_PATCH), -(-width // CONDITION_PATCH)
    lmbdas = np.full((rows, columns, k), np.nan, np.float16)
    before, after = np.empty_like(pixels), np.empty_like(pixels)
    lmbda, seconds = model.config.lmbda(level / MAX_QUALITY), 0.0
    for number, box in enumerate(boxes):
        patch = _Patch(model, pixels, box, level, mu)
        found = torch.full((k,), lmbda, device="cpu")
        before[box.slices] = patch.shown(found)
        if box.height == box.width == CONDITION_PATCH:
            start = time.perf_counter()
            found = patch.search(found, num_steps)
            seconds += time.perf_counter() - start
            lmbdas[number // columns, number % columns] = found.numpy().astype(np.float16)
        after[box.slices] = patch.shown(found)
    return Literal(lmbdas, before, after, seconds, 16 * int(np.isfinite(lmbdas).sum()))


class _Patch:
    """One patch: its pixels, and its latents as E gives them where it sees nothing else."""

    def __init__(self, model: Model, pixels: npt.NDArray[np.uint8], box: Box, level: int, mu: int) -> None:
        part = np.ascontiguousarray(pixels[box.slices])
        self.x = torch.from_numpy(part).permute(2, 0, 1)[None].float() / 255.0
        self.transform, self.lmbda = model.transform, model.config.lmbda(level / MAX_QUALITY)
        raw = torch.tensor([self.lmbda], dtype=torch.float32, device="cpu")
        self.cond = transforms.condition(raw, torch.zeros(1, device="cpu"))
        self.blend = Blend.of(torch.tensor([mu], device="cpu"), raw)
        with torch.no_grad():
            y, tau = self.transform.encoder(transforms.pad_to_multiple(self.x, self.transform.s), self.cond)
            self.z = self.transform.quantiser.to_levels(y, model.config.bits, tau)

    def decoded(self, lmbdas: Tensor) -> Tensor:
        """[1, 3, H, W] with raw lambdas, float32 [K], differentiable in them."""
        moved = transforms.condition(lmbdas.clamp_min(_LEAST_LMBDA), torch.zeros_like(lmbdas))[None]
        x_hat = self.transform.decoder(self.z, self.cond, Adaptation(moved))
        return x_hat[:, :, : self.x.shape[2], : self.x.shape[3]]

    def loss(self, lmbdas: Tensor) -> Tensor:
        """lambda D of the patch, which the rate is a constant beside."""
        return self.lmbda * distortion(self.x, self.decoded(lmbdas).clamp(0.0, 1.0), self.blend)[0]

    @torch.no_grad()
    def shown(self, lmbdas: Tensor) -> npt.NDArray[np.uint8]:
        """uint8 [H, W, 3]."""
        x_hat = self.decoded(lmbdas).mul(255.0).round().clamp(0.0, 255.0)
        return x_hat[0].permute(1, 2, 0).to(torch.uint8).numpy()

    def search(self, start: Tensor, num_steps: int) -> Tensor:
        """The best lambdas of `num_steps` steps, rounded to float16: float32 [K]."""

        def gradient(at: Tensor) -> tuple[float, Tensor]:
            leaf = at.detach().requires_grad_()
            value = self.loss(leaf)
            (slope,) = torch.autograd.grad(value, leaf)
            return float(value.detach()), slope

        with torch.inference_mode(False), torch.enable_grad():
            least, slope = gradient(start)
            best, gamma, trial = start, STEP_SIZES[0], float("inf")
            for size in STEP_SIZES:
                with torch.no_grad():
                    value = float(self.loss(_float16(start - size * slope)))
                if value < trial:
                    trial, gamma = value, size
            for _ in range(num_steps):
                at = _float16(best - gamma * slope)
                value, fresh = gradient(at)
                if value < least:
                    best, slope, least = at, fresh, value
                else:
                    gamma /= 2.0
        return best


def _float16(values: Tensor) -> Tensor:
    return values.clamp(-6.0e4, 6.0e4).half().float()
