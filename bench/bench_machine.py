"""The peaks that shares are stated of, measured in the same run: multiply-accumulates and bytes a second.

make bench ARGS="-k machine"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES, plain_float32

SHAPES = ((128, 96), (192, 64), (192, 96), (256, 64))  # channels, side: the fastest counts


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_machine_convolution(timed: Callable[..., Any], device: str, dtype: str, shape: tuple[int, int]) -> None:
    channels, side = shape
    kind, batch = getattr(torch, dtype), 1 if device == "cpu" else 16

    def tensor(*sizes: int) -> torch.Tensor:
        return torch.ones(sizes, dtype=kind, device=device).contiguous(memory_format=torch.channels_last)

    x, w = tensor(batch, channels, side, side), tensor(channels, channels, 3, 3)
    with plain_float32(device):
        out = timed(
            lambda: F.conv2d(x, w, padding=1),
            device=device,
            part=f"machine convolution {dtype}",
            macs=batch * channels * channels * 9 * side * side,
        )
    assert float(out[0, 0, 1, 1]) == pytest.approx(9 * channels, rel=0.01)


@pytest.mark.parametrize("n", [1024, 2048, 4096, 8192])
@pytest.mark.parametrize("device", DEVICES)
def test_machine_int8(timed: Callable[..., Any], device: str, n: int) -> None:
    if device == "cpu" and n > 4096:
        pytest.skip("takes seconds")
    a = torch.ones((n, n), dtype=torch.int8, device=device)
    b = torch.ones((n, n), dtype=torch.int8, device=device).t()
    out = timed(lambda: torch._int_mm(a, b), device=device, part="machine int8", macs=n**3)
    assert int(out[0, 0]) == n


@pytest.mark.parametrize("device", DEVICES)
def test_machine_memory(timed: Callable[..., Any], device: str) -> None:
    n = 1 << (27 if device == "cpu" else 30)
    x, y = (torch.ones(n, dtype=torch.uint8, device=device) for _ in range(2))
    timed(lambda: y.copy_(x), device=device, part="machine memory", bytes=2 * n)
    assert int(y[-1]) == 1
