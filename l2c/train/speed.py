"""How fast a step is against what the machine can do: floating-point operations counted, convolution peak measured."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F


def convolution_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """Floating-point operations per second of a 3x3 convolution 192 -> 192 on [4, 192, 48, 48], channels-last.

    The layer that the default model spends most of its time in; best of several runs within about so many seconds.
    """
    x = torch.randn(4, 192, 48, 48, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(192, 192, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    operations = 2.0 * 4 * 48 * 48 * 192 * 192 * 9
    best = float("inf")
    with torch.no_grad():
        F.conv2d(x, weight, padding=1)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            _wait(device)
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            _wait(device)
            best = min(best, time.perf_counter() - start)
    return operations / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
