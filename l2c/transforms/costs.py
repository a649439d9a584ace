"""What networks cost, counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from l2c.transforms.base import Transform, TransformConfig
from l2c.transforms.modulators import condition


def kmac_per_pixel(call: Callable[[], object], pixels: int) -> float:
    """Multiply-accumulates of all convolutions and matrix products in `call()`, in thousands per picture pixel."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 2 / pixels / 1000.0


def transform_costs(config: TransformConfig) -> tuple[float, float]:
    """(E with I, D) in kMAC per pixel, measured on a 256x256 picture."""
    with torch.device("cpu"):  # whatever the default device is
        transform = Transform(config).eval()
        cond = condition(torch.tensor([0.01]), torch.zeros(1))
        x = torch.zeros(1, 3, 256, 256)
        y = torch.zeros(1, config.c, 256 // config.s, 256 // config.s)
        return (
            kmac_per_pixel(lambda: transform.encoder(x, cond), 256 * 256),
            kmac_per_pixel(lambda: transform.decoder(y, cond), 256 * 256),
        )
