"""The yardstick: adaptation exactly as the paper runs it, patch after patch (L2C III-C, III-D, IV).

Every 256x256 patch is a picture of its own. Its latents follow the straight-through gradient of Eq. 8 for ten steps,
the best iterate by lambda * D + rate of the integer model is kept, and then the patch is decoded with each of the 255
bias sets. Plain and slow on purpose: speed and gain of the batched search are measured against it
(experiments/yardstick.py), and the tests use it as their oracle.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c import ops, transforms
from l2c.entropy import FloatModel
from l2c.entropy.coder import EncodingJob
from l2c.format.adapt_section import BIAS_PATCH, NO_SET, grid_shape
from l2c.format.levels import MAX_MU, MAX_QUALITY, OperatingPoint
from l2c.models import Model
from l2c.objective import Blend, distortion
from l2c.transforms import Adaptation

ITERATIONS = 10
ALPHA = 0.001  # latents per bit of J; the paper's 0.1 belongs to another unit, and 0.1 here makes every picture worse


@dataclass
class Sequential:
    """What the sequential search found.

    Attributes:
        symbols: uint8 [c, h, w] of the whole picture.
        sets: uint8 [rows, columns], NO_SET where no set was better.
        seconds: of "latents" and of "sets".
    """

    symbols: npt.NDArray[np.uint8]
    sets: npt.NDArray[np.uint8]
    seconds: dict[str, float]


def adapt_sequentially(
    model: Model,
    probability: FloatModel,
    pixels: npt.NDArray[np.uint8],
    level: int,
    mu: int,
    *,
    iterations: int = ITERATIONS,
    alpha: float = ALPHA,
    autocast: bool | None = None,
) -> Sequential:
    """Adapt one picture.

    Args:
        probability: the float form of the model's P, for gradients.
        pixels: uint8 [H, W, 3].
        level: quality 0..1000. mu: 0..8.
        iterations, alpha: gradient steps, and their length in latents per bit.
        autocast: bfloat16 in the networks; None: where the device is fast at it.
    """
    s, c, bits = model.transform.s, model.config.transform.c, model.config.bits
    height, width = pixels.shape[:2]
    symbols = np.empty((c, -(-height // s), -(-width // s)), dtype=np.uint8)
    sets = np.full(grid_shape(width, height, BIAS_PATCH), NO_SET, dtype=np.uint8)
    lmbda = model.config.lmbda(level / MAX_QUALITY)
    cond = transforms.condition(*torch.tensor([[lmbda], [mu / MAX_MU]], dtype=torch.float32, device="cpu"))
    bf16 = ops.bf16_pays(torch.device("cpu")) if autocast is None else autocast
    seconds = {"latents": 0.0, "sets": 0.0}
    for row in range(sets.shape[0]):
        for column in range(sets.shape[1]):
            top, left = row * BIAS_PATCH, column * BIAS_PATCH
            patch = pixels[top : top + BIAS_PATCH, left : left + BIAS_PATCH]
            x = torch.from_numpy(patch.copy()).permute(2, 0, 1)[None].float() / 255.0
            x = x.contiguous(memory_format=torch.channels_last)
            start = time.perf_counter()
            z = _overfit(model, probability, x, cond, OperatingPoint(level, mu, bits), lmbda, iterations, alpha, bf16)
            middle = time.perf_counter()
            sets[row, column] = _best_set(model, x, z, cond, level, bf16)
            seconds["latents"] += middle - start
            seconds["sets"] += time.perf_counter() - middle
            part = model.config.transform.quantiser.quantise(z[0], bits).numpy()
            symbols[:, top // s : top // s + part.shape[1], left // s : left // s + part.shape[2]] = part
    return Sequential(symbols, sets, seconds)


def _overfit(
    model: Model,
    probability: FloatModel,
    x: Tensor,
    cond: Tensor,
    point: OperatingPoint,
    lmbda: float,
    iterations: int,
    alpha: float,
    bf16: bool,
) -> Tensor:
    """Eq. 8 on one patch's latents; returns the best quantised ones, float32 [1, c, h, w]."""
    transform, pixels = model.transform, x.shape[2] * x.shape[3]
    level = float(1 << (8 - point.bits))
    with torch.no_grad():
        y, tau = transform.encoder(transforms.pad_to_multiple(x, transform.s), cond)
        mask = None if tau is None else transforms.importance_mask(tau, model.config.transform.c)
        y = y if mask is None else y * mask
    best, least = y, float("inf")
    for step in range(iterations + 1):
        leaf = y.detach().requires_grad_()
        rounded = ((leaf / level).round() * level).clamp(-128.0, 128.0 - level)
        z = leaf + (rounded - leaf).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            x_hat = transform.decoder(z, cond)[:, :, : x.shape[2], : x.shape[3]].float()
            rate = probability.num_bits(z, z, torch.tensor([point], device=z.device))
        cost = lmbda * pixels * distortion(x, x_hat.clamp(0.0, 1.0), Blend.of_condition(cond))
        value = float(cost.detach()) + _coded_bits(model, rounded.detach(), point)
        if value < least:
            best, least = rounded.detach(), value
        if step < iterations:
            (slope,) = torch.autograd.grad((cost + rate).sum(), leaf)
            y = leaf.detach() - alpha * level * slope
            y = y if mask is None else y * mask
    return best


def _coded_bits(model: Model, z: Tensor, point: OperatingPoint) -> float:
    """Bits of a patch's latents as the integer P and the coder write them."""
    bits = point.bits
    symbols = np.ascontiguousarray(model.config.transform.quantiser.quantise(z[0], bits).numpy())
    used = model.config.transform.quantiser.used_channels(torch.from_numpy(symbols), bits)
    job = EncodingJob(symbols.shape[1], symbols.shape[2], point, used, symbols)
    model.integer.code([job], threads=torch.get_num_threads())
    return 8.0 * len(job.encoder.finish())


@torch.no_grad()
def _best_set(model: Model, x: Tensor, z: Tensor, cond: Tensor, level: int, bf16: bool) -> int:
    """The set with the least distortion of all, or NO_SET: D decodes the patch with each of them in turn."""
    if model.bias_sets is None:
        return NO_SET
    values = model.bias_sets.values[model.bias_sets.band(level, MAX_QUALITY)]
    best, least, blend = NO_SET, float("inf"), Blend.of_condition(cond)
    for index in range(-1, len(values)):
        change = Adaptation(biases=values[index][None]) if index >= 0 else None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            x_hat = model.transform.decoder(z, cond, change)[:, :, : x.shape[2], : x.shape[3]].float()
        value = float(distortion(x, x_hat.clamp(0.0, 1.0), blend))
        if value < least:
            best, least = (index if index >= 0 else NO_SET), value
    return best
