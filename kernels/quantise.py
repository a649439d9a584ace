"""Q with the mask of L2C Eq. 2, and Q^-1; defined by `ops.reference.quantise`, `dequantise` and `to_levels`.

Integers have to come out the same everywhere. Dividing by S is multiplying by a power of two, which is exact (Triton's
own division is not), and so is the remainder that decides the rounding; c * tau is rounded once, as PyTorch rounds it:
the kernels are compiled without fused multiply-adds, and the clamp that follows leaves no product to fuse anyway.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from l2c.kernels.common import BLOCK_SIZE, blocks_of, is_channels_last, offset_of, on_device_of, place_of


@triton.jit
def _round_half_even(v, least, most):
    """int32(round(clamp(v, least, most))), ties to even."""
    v = tl.where(v < least, least, v)  # not maximum and minimum, which drop NaN
    v = tl.where(v > most, most, v)
    down = tl.floor(v)
    rest = v - down
    whole = down.to(tl.int32)
    up = (rest > 0.5) | ((rest == 0.5) & ((whole & 1) == 1))
    return whole + up.to(tl.int32)


@triton.jit
def _powers_of_two(b_ptr, n, b_stride):
    """2^(b-1) and S = 2^(8-b) of picture n, int32."""
    b = tl.load(b_ptr + n * b_stride).to(tl.int32)
    one = b * 0 + 1
    return one << (b - 1), one << (8 - b)


@triton.jit
def _quantise_fwd_kernel(
    out_ptr,  # uint8, or float32 with DEQUANTISE, [N, C, H, W]
    y_ptr,  # [N, C, H, W]
    tau_ptr,  # float32 [N, 1, H, W]
    b_ptr,  # int64 [N]
    blocks, channels, height, width,
    out_stride_n, out_stride_c, out_stride_h, out_stride_w,
    y_stride_n, y_stride_c, y_stride_h, y_stride_w,
    tau_stride_n, tau_stride_h, tau_stride_w,
    b_stride,
    HAS_TAU: tl.constexpr, DEQUANTISE: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    # i = clamp(round(m y / S) + 2^(b-1), 0, 2^b - 1), m = (channel < round(C tau)), S = 2^(8-b); or (i - 2^(b-1)) S
    n = tl.program_id(0) // blocks
    i = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    channel, row, column = place_of(i, channels, height, width, CHANNELS_LAST)
    mask = i < channels * height * width
    half, step = _powers_of_two(b_ptr, n, b_stride)
    kept = mask
    if HAS_TAU:
        offs = offset_of(n, tl.zeros_like(channel), row, column, tau_stride_n, 0, tau_stride_h, tau_stride_w)
        tau = tl.load(tau_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        kept = mask & (channel < _round_half_even(tau * channels, 0.0, channels * 1.0))
    offs = offset_of(n, channel, row, column, y_stride_n, y_stride_c, y_stride_h, y_stride_w)
    y = tl.load(y_ptr + offs, mask=kept, other=0.0).to(tl.float32)
    per_step = half.to(tl.float32) * 0.0078125  # 1 / S
    level = _round_half_even(y * per_step, -half.to(tl.float32), half.to(tl.float32) - 1.0)
    to = out_ptr + offset_of(n, channel, row, column, out_stride_n, out_stride_c, out_stride_h, out_stride_w)
    if DEQUANTISE:
        tl.store(to, (level * step).to(tl.float32), mask=mask)
    else:
        tl.store(to, (level + half).to(tl.uint8), mask=mask)


@triton.jit
def _dequantise_fwd_kernel(
    out_ptr,  # float32 [N, C, H, W]
    symbols_ptr,  # uint8 [N, C, H, W]
    b_ptr,  # int64 [N]
    blocks, channels, height, width,
    out_stride_n, out_stride_c, out_stride_h, out_stride_w,
    symbols_stride_n, symbols_stride_c, symbols_stride_h, symbols_stride_w,
    b_stride,
    CHANNELS_LAST: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    # z = (i - 2^(b-1)) S, S = 2^(8-b), in integers
    n = tl.program_id(0) // blocks
    i = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    channel, row, column = place_of(i, channels, height, width, CHANNELS_LAST)
    mask = i < channels * height * width
    half, step = _powers_of_two(b_ptr, n, b_stride)
    offs = offset_of(
        n, channel, row, column, symbols_stride_n, symbols_stride_c, symbols_stride_h, symbols_stride_w
    )  # fmt: skip
    symbol = tl.load(symbols_ptr + offs, mask=mask, other=0).to(tl.int32)
    z = (symbol - half) * step
    to = out_ptr + offset_of(n, channel, row, column, out_stride_n, out_stride_c, out_stride_h, out_stride_w)
    tl.store(to, z.to(tl.float32), mask=mask)


def quantise_fwd(y: Tensor, b: Tensor, tau: Tensor | None, dequantise: bool) -> Tensor:
    """y float [N, C, H, W], b int64 [N], tau float32 [N, 1, H, W] or None, of any strides -> uint8, or float32."""
    out = torch.empty_like(y, dtype=torch.float32 if dequantise else torch.uint8)
    tau_there = y if tau is None else tau
    blocks = blocks_of(y)
    with on_device_of(y):
        _quantise_fwd_kernel[(len(y) * blocks,)](
            out, y, tau_there, b, blocks, *y.shape[1:], *out.stride(), *y.stride(),
            tau_there.stride(0), tau_there.stride(2), tau_there.stride(3), *b.stride(),
            HAS_TAU=tau is not None, DEQUANTISE=dequantise, CHANNELS_LAST=is_channels_last(y), BLOCK_SIZE=BLOCK_SIZE,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out


def dequantise_fwd(symbols: Tensor, b: Tensor) -> Tensor:
    """symbols uint8 [N, C, H, W] of any strides, b int64 [N] -> float32 like symbols."""
    out = torch.empty_like(symbols, dtype=torch.float32)
    blocks = blocks_of(symbols)
    with on_device_of(symbols):
        _dequantise_fwd_kernel[(len(symbols) * blocks,)](
            out, symbols, b, blocks, *symbols.shape[1:], *out.stride(), *symbols.stride(), *b.stride(),
            CHANNELS_LAST=is_channels_last(symbols), BLOCK_SIZE=BLOCK_SIZE, enable_fp_fusion=False,
        )  # fmt: skip
    return out
