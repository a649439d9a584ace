"""What follows a convolution of D, with biases and scales by patch; defined by `ops.reference.patch_epilogue`.

The big tensors are walked in their own memory order: all of a call lie alike, channels last or contiguous. Gradients
of patches are sums over their positions in a fixed order: each program sums a part of one patch, then PyTorch adds
these partial sums; there are no atomics, so equal inputs give equal gradients.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from l2c.kernels.common import on_device_of
from l2c.ops.contract import Grid

TILE = 1024  # positions times channels of a program of the element-wise kernels, in tiles of so many channels at most
TILE_CHANNELS = 64
# A program of `_patch_sums_kernel` adds so many positions of so many channels at once, up to SUM_STEPS times.
SUM_CHANNELS = 32
SUM_POSITIONS = 64
SUM_STEPS = 16


@triton.jit
def _tile(
    blocks, channels, height, width, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """A program's positions times channels: (offsets, mask) [BLOCK_P, BLOCK_C], picture, channel, row, column.

    Rows and columns, whose divisions are slow, are found once for all channels.
    """
    n = tl.program_id(0) // blocks
    position = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = position // width
    column = position % width
    mask = (position < height * width)[:, None] & (channel < channels)[None, :]
    base = n.to(tl.int64) * (channels * height * width)  # a batch can exceed 2^31
    if CHANNELS_LAST:
        offs = base + (position * channels)[:, None] + channel[None, :]
    else:
        offs = base + position[:, None] + (channel * (height * width))[None, :]
    return offs, mask, n, channel, row, column


@triton.jit
def _patch_of(position, start, side, count):
    """Number of the patch of a row or column; those before the first patch and after the last belong to these."""
    return tl.minimum(tl.maximum(position + start, 0) // side, count - 1)


@triton.jit
def _load_patch(
    ptr, mask, n, channel, row, column,
    rows, columns, side, top, left, stride_n, stride_c, stride_r, stride_k,
):  # fmt: skip
    """Values [BLOCK_P, BLOCK_C] of a table [N, C, rows, columns]: a few KiB, so they come from the cache."""
    patch = _patch_of(row, top, side, rows) * stride_r + _patch_of(column, left, side, columns) * stride_k
    offs = n * stride_n + patch[:, None] + (channel * stride_c)[None, :]
    return tl.load(ptr + offs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _patch_epilogue_fwd_kernel(
    out_ptr,  # [N, C, H, W]
    x_ptr,  # [N, C, H, W]
    residual_ptr,  # [N, C, H, W]
    bias_ptr,  # [N, C, bias_rows, bias_columns]
    scale_ptr,  # [N, C, scale_rows, scale_columns]
    blocks, channels, height, width,
    bias_rows, bias_columns, bias_side, bias_top, bias_left,
    bias_stride_n, bias_stride_c, bias_stride_r, bias_stride_k,
    scale_rows, scale_columns, scale_side, scale_top, scale_left,
    scale_stride_n, scale_stride_c, scale_stride_r, scale_stride_k,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, SLOPE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # out = (residual + LeakyReLU(x + bias[patch])) * scale[patch]
    offs, mask, n, channel, row, column = _tile(blocks, channels, height, width, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    value = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += _load_patch(
            bias_ptr, mask, n, channel, row, column, bias_rows, bias_columns, bias_side, bias_top, bias_left,
            bias_stride_n, bias_stride_c, bias_stride_r, bias_stride_k,
        )  # fmt: skip
    if SLOPE != 1.0:
        value = tl.where(value > 0, value, value * SLOPE)
    if HAS_RESIDUAL:
        value += tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_SCALE:
        value *= _load_patch(
            scale_ptr, mask, n, channel, row, column, scale_rows, scale_columns, scale_side, scale_top, scale_left,
            scale_stride_n, scale_stride_c, scale_stride_r, scale_stride_k,
        )  # fmt: skip
    tl.store(out_ptr + offs, value, mask=mask)


@triton.jit
def _patch_epilogue_bwd_kernel(
    dx_ptr,  # [N, C, H, W]
    dresidual_ptr,  # [N, C, H, W]
    dout_ptr,  # [N, C, H, W]
    x_ptr,  # [N, C, H, W]
    bias_ptr,  # [N, C, bias_rows, bias_columns]
    scale_ptr,  # [N, C, scale_rows, scale_columns]
    blocks, channels, height, width,
    bias_rows, bias_columns, bias_side, bias_top, bias_left,
    bias_stride_n, bias_stride_c, bias_stride_r, bias_stride_k,
    scale_rows, scale_columns, scale_side, scale_top, scale_left,
    scale_stride_n, scale_stride_c, scale_stride_r, scale_stride_k,
    WITH_DRESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, SLOPE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # dresidual = dout * scale[patch], dx = dresidual * (1 if x + bias[patch] > 0 else slope)
    offs, mask, n, channel, row, column = _tile(blocks, channels, height, width, CHANNELS_LAST, BLOCK_P, BLOCK_C)
    grad = tl.load(dout_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if HAS_SCALE:
        grad *= _load_patch(
            scale_ptr, mask, n, channel, row, column, scale_rows, scale_columns, scale_side, scale_top, scale_left,
            scale_stride_n, scale_stride_c, scale_stride_r, scale_stride_k,
        )  # fmt: skip
    if WITH_DRESIDUAL:
        tl.store(dresidual_ptr + offs, grad, mask=mask)
    if SLOPE != 1.0:
        value = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            value += _load_patch(
                bias_ptr, mask, n, channel, row, column, bias_rows, bias_columns, bias_side, bias_top, bias_left,
                bias_stride_n, bias_stride_c, bias_stride_r, bias_stride_k,
            )  # fmt: skip
        grad = tl.where(value > 0, grad, grad * SLOPE)
    tl.store(dx_ptr + offs, grad, mask=mask)


@triton.jit
def _first_of(patch, start, side, length):
    """First row or column of a patch; the first patch begins with the layer."""
    return tl.where(patch == 0, 0, tl.minimum(tl.maximum(patch * side - start, 0), length))


@triton.jit
def _end_of(patch, start, side, count, length):
    """One past the last row or column of a patch; the last patch ends with the layer."""
    return tl.where(patch == count - 1, length, tl.minimum(tl.maximum((patch + 1) * side - start, 0), length))


@triton.jit
def _patch_sums_kernel(
    sums_ptr,  # float32 [parts, N, rows, columns, C]
    a_ptr,  # [N, C, H, W]
    b_ptr,  # [N, C, H, W]
    batch, channels, height, width,
    rows, columns, side, top, left,
    HAS_B: tl.constexpr, STEPS: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # sums[part, n, patch, c] = sum of a * b over STEPS * BLOCK_P positions of the patch, row by row
    pid = tl.program_id(0)
    patch_column = pid % columns
    patch_row = (pid // columns) % rows
    n = (pid // (columns * rows)) % batch
    part = pid // (columns * rows * batch)
    first_row = _first_of(patch_row, top, side, height)
    first_column = _first_of(patch_column, left, side, width)
    span = _end_of(patch_column, left, side, columns, width) - first_column
    count = (_end_of(patch_row, top, side, rows, height) - first_row) * span

    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        stride_p = channels
        offs_c = channel
    else:
        stride_p = 1
        offs_c = channel * (height * width)
    base = n.to(tl.int64) * (channels * height * width)
    total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for step in range(STEPS):
        i = (part * STEPS + step) * BLOCK_P + tl.arange(0, BLOCK_P)
        row = first_row + i // tl.maximum(span, 1)
        column = first_column + i % tl.maximum(span, 1)
        mask = (i < count)[:, None] & (channel < channels)[None, :]
        offs = base + ((row * width + column) * stride_p)[:, None] + offs_c[None, :]
        value = tl.load(a_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if HAS_B:
            value *= tl.load(b_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        total += value
    to = pid.to(tl.int64) * channels + channel
    tl.store(sums_ptr + to, tl.sum(total, axis=0), mask=channel < channels)


def _blocks(x: Tensor) -> tuple[tuple[int, int], int, dict[str, Any]]:
    """Grid of the element-wise kernels on x [N, C, H, W], programs per picture along it, and how they are compiled."""
    block_c = min(TILE_CHANNELS, triton.next_power_of_2(x.shape[1]))
    blocks = triton.cdiv(x.shape[2] * x.shape[3], TILE // block_c)
    constants = {
        "CHANNELS_LAST": _is_channels_last(x),
        "BLOCK_P": TILE // block_c,
        "BLOCK_C": block_c,
        "enable_fp_fusion": True,
    }
    return (len(x) * blocks, triton.cdiv(x.shape[1], block_c)), blocks, constants


def _table(values: Tensor | None, grid: Grid | None, spare: Tensor) -> tuple[Tensor, list[int]]:
    """Pointer to a table [N, C, rows, columns], or a spare one, and the integers that the kernels take with it."""
    if values is None:
        return spare, [1] * 9
    grid = grid or Grid(1)  # one patch, which holds every position
    return values, [*values.shape[2:], grid.side, grid.top, grid.left, *values.stride()]


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _lying_like(x: Tensor, others: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """x and others, channels last if x is, otherwise contiguous; a copy only of what lies differently. None -> x."""
    order = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    return tuple((x if t is None else t).contiguous(memory_format=order) for t in (x, *others))


def patch_epilogue_fwd(
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    slope: float,
    bias_grid: Grid | None,
    scale_grid: Grid | None,
) -> Tensor:
    """See `reference.patch_epilogue`; tables of any strides, whose first length is x's."""
    x, behind = _lying_like(x, [residual])
    bias_there, bias_numbers = _table(bias, bias_grid, x)
    scale_there, scale_numbers = _table(scale, scale_grid, x)
    out = torch.empty_like(x)
    programs, blocks, constants = _blocks(x)
    with on_device_of(x):
        _patch_epilogue_fwd_kernel[programs](
            out, x, behind, bias_there, scale_there, blocks, *x.shape[1:], *bias_numbers, *scale_numbers,
            HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None, HAS_SCALE=scale is not None, SLOPE=slope,
            **constants,
        )  # fmt: skip
    return out


def patch_epilogue_bwd(
    dout: Tensor,
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    slope: float,
    bias_grid: Grid | None,
    scale_grid: Grid | None,
) -> tuple[Tensor, Tensor]:
    """dx and dresidual of `patch_epilogue_fwd`, dout like x; they are one tensor where the slope is 1."""
    x, dout = _lying_like(x, [dout])
    bias_there, bias_numbers = _table(bias, bias_grid, x)
    scale_there, scale_numbers = _table(scale, scale_grid, x)
    dx = torch.empty_like(x)
    dresidual = dx if slope == 1.0 else torch.empty_like(x)
    programs, blocks, constants = _blocks(x)
    with on_device_of(x):
        _patch_epilogue_bwd_kernel[programs](
            dx, dresidual, dout, x, bias_there, scale_there, blocks, *x.shape[1:], *bias_numbers, *scale_numbers,
            WITH_DRESIDUAL=dresidual is not dx, HAS_BIAS=bias is not None, HAS_SCALE=scale is not None, SLOPE=slope,
            **constants,
        )  # fmt: skip
    return dx, dresidual


def patch_sums(a: Tensor, b: Tensor | None, like: Tensor, grid: Grid | None) -> Tensor:
    """Sums of a * b (of a, without b), [N, C, H, W], over each patch's positions, in the shape and dtype of `like`.

    The order of the additions depends on the shapes alone.
    """
    a, factor = _lying_like(a, [b])
    n, channels, height, width = a.shape
    rows, columns = like.shape[2:]
    grid = grid or Grid(1)
    largest = _longest(grid.top, grid.side, rows, height) * _longest(grid.left, grid.side, columns, width)
    steps = min(SUM_STEPS, triton.next_power_of_2(triton.cdiv(max(1, largest), SUM_POSITIONS)))
    parts = triton.cdiv(max(1, largest), steps * SUM_POSITIONS)
    sums = torch.empty(parts, n, rows, columns, channels, dtype=torch.float32, device=a.device)
    with on_device_of(a):
        _patch_sums_kernel[(sums[..., 0].numel(), triton.cdiv(channels, SUM_CHANNELS))](
            sums, a, factor, n, channels, height, width, rows, columns, grid.side, grid.top, grid.left,
            HAS_B=b is not None, STEPS=steps, CHANNELS_LAST=_is_channels_last(a),
            BLOCK_P=SUM_POSITIONS, BLOCK_C=SUM_CHANNELS, enable_fp_fusion=True,
        )  # fmt: skip
    return sums.sum(dim=0).permute(0, 3, 1, 2).to(like.dtype)


def _longest(start: int, side: int, count: int, length: int) -> int:
    """Rows or columns of the longest of `count` patches on a layer."""
    inner = [min(max(k * side - start, 0), length) for k in range(1, count)]
    return max(end - first for first, end in itertools.pairwise([0, *inner, length]))
