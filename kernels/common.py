"""What several kernels share: places in memory order, the device that a launch goes to, a probe of the compiler.

Kernel files do without `from __future__ import annotations`: Triton reads `tl.constexpr` from the annotations. Launches
say whether multiplications and additions may be fused, as Triton's own answer differs between its versions.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_SIZE = 1024  # elements of a program of the element-wise kernels


@triton.jit
def place_of(i, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """(channel, row, column) of element i of one picture [C, H, W] in its memory order."""
    if CHANNELS_LAST:
        channel = i % channels
        position = i // channels
    else:
        channel = i // (height * width)
        position = i % (height * width)
    return channel, position // width, position % width


@triton.jit
def offset_of(n, channel, row, column, stride_n, stride_c, stride_h, stride_w):
    """Offset of places of picture n in a tensor [N, C, H, W] of any strides; int64, as a batch can exceed 2^31."""
    here = channel.to(tl.int64) * stride_c + row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
    return n.to(tl.int64) * stride_n + here


@triton.jit
def coded_place(j, sizes_ptr, channels, n):
    """Symbol j of stream n in coding order, by cell, then channel -> (is there one, cell's row and column, channel).

    sizes_ptr: int32 [N, 2], rows and columns of the cells; channels: of each cell.
    """
    rows = tl.load(sizes_ptr + 2 * n)
    columns = tl.load(sizes_ptr + 2 * n + 1)
    mask = j < rows * columns * channels
    columns = tl.maximum(columns, 1)  # divisors
    channels = tl.maximum(channels, 1)
    cell = j // channels
    return mask, cell // columns, cell % columns, j % channels


@triton.jit
def _probe_kernel(out_ptr):
    # out = 1
    tl.store(out_ptr, 1)


def probe(device: torch.device) -> None:
    """Compile and run the smallest kernel there is. Raises whatever Triton and CUDA raise where that fails."""
    out = torch.zeros(1, dtype=torch.int32, device=device)
    with on_device_of(out):
        _probe_kernel[(1,)](out, enable_fp_fusion=False)
    if int(out) != 1:
        raise RuntimeError("a first kernel ran and wrote nothing")


def on_device_of(x: Tensor) -> torch.cuda.device_of:
    """Context in which launches go to x's GPU; Triton takes the current one, whatever its arguments say."""
    return torch.cuda.device_of(x)


def is_channels_last(x: Tensor) -> bool:
    """Whether neighbours in memory of [N, C, H, W] are channels of one position, so that kernels walk it that way."""
    return x.stride(1) < x.stride(3)


def blocks_of(x: Tensor, block_size: int = BLOCK_SIZE) -> int:
    """Programs that each picture of [N, C, H, W] takes."""
    return triton.cdiv(math.prod(x.shape[1:]), block_size)
