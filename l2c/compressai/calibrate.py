"""Pictures that show an entropy model what its layers give: the scales of its integers come from them.

None of them is a photograph: noise whose spectrum falls as that of photographs does, in several strengths, and flat
shapes, stripes and steps on it. Photographs of one's own may take their place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c import transforms
from l2c.architectures import tenths_of
from l2c.config import ModelConfig
from l2c.entropy.hyperprior.float_model import HyperpriorModel
from l2c.format.levels import MAX_QUALITY
from l2c.transforms import Transform

COUNT, SIDE = 12, 256
_MOST_PIXELS = 1 << 20  # of a picture of one's own, cut from its middle


def pictures(count: int = COUNT, side: int = SIDE) -> list[npt.NDArray[np.uint8]]:
    """uint8 [side, side, 3] each, always the same."""
    return [_picture(np.random.default_rng([7, number]), number, side) for number in range(count)]


def _picture(rng: np.random.Generator, number: int, side: int) -> npt.NDArray[np.uint8]:
    slope, contrast = (0.8, 1.1, 1.5)[number % 3], (20.0, 45.0, 80.0)[number // 3 % 3]
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    spectrum = rng.normal(size=(4, *frequency.shape, 2)) @ np.array([1.0, 1.0j]) / frequency**slope
    waves = np.fft.irfft2(spectrum, s=(side, side))
    waves /= waves.std(axis=(1, 2), keepdims=True)
    colour = rng.uniform(40.0, 215.0, 3)
    canvas = colour + contrast * (waves[0, :, :, None] + 0.35 * waves[1:].transpose(1, 2, 0))
    y, x = np.mgrid[0:side, 0:side]
    for _ in range(number % 4 * 3):
        left, top = rng.integers(0, side, 2)
        width, height = rng.integers(side // 16, side // 2, 2)
        inside = (x >= left) & (x < left + width) & (y >= top) & (y < top + height)
        if rng.random() < 0.4:
            inside &= (x // int(rng.integers(1, 9)) + y // int(rng.integers(1, 9))) % 2 == 0
        canvas[inside] = rng.choice([0.0, 255.0], 3) if rng.random() < 0.5 else rng.uniform(0.0, 255.0, 3)
    return canvas.round().clip(0, 255).astype(np.uint8)


@torch.no_grad()
def calibrate(
    config: ModelConfig,
    transform: Transform,
    probability: HyperpriorModel,
    shown: Sequence[npt.NDArray[np.uint8]],
) -> None:
    """Let every level of P see the latents of these pictures, uint8 [H, W, 3] each; see `HyperpriorModel.calibrate`."""
    for level, quality in zip(probability.levels, config.transform.quality_steps):
        raw = torch.tensor([config.lmbda(tenths_of(quality) / MAX_QUALITY)])
        cond = transforms.condition(raw, torch.zeros(1))
        level.calibrate([_latents(transform, picture, cond) for picture in shown])  # type: ignore[operator]


def _latents(transform: Transform, picture: npt.NDArray[np.uint8], cond: Tensor) -> Tensor:
    height, width = picture.shape[:2]
    side = max(transform.s, int(_MOST_PIXELS**0.5))
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    part = np.ascontiguousarray(picture[top : top + side, left : left + side])
    x = torch.from_numpy(part).permute(2, 0, 1)[None].float() / 255.0
    y: Tensor = transform.encoder(transforms.pad_to_multiple(x, transform.s), cond)[0]
    return y
