"""Bits of latents under their mixtures of logistics, and their gradient; defined by `ops.reference.mixture_bits`.

One program takes BLOCK_SIZE latents of one picture in the memory order of the parameters, which it reads in place,
whatever their strides. Nothing is kept for the backward pass but the inputs: it computes the sigmoids again.
Latents and parameters may be bfloat16; all arithmetic is float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from l2c.kernels.common import blocks_of, is_channels_last, offset_of, on_device_of, place_of
from l2c.ops.contract import LOG2_INV_SCALE_LEAST, LOG2_INV_SCALE_MOST, MARGIN

BLOCK_SIZE = 512  # a latent needs a few dozen registers


@triton.jit
def _places(n, block, b_ptr, channels, height, width, b_stride, CHANNELS_LAST: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """(mask, channel, row, column) of a program's latents, and their step S = 2^(8-b)."""
    i = block * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    channel, row, column = place_of(i, channels, height, width, CHANNELS_LAST)
    step = tl.exp2((8 - tl.load(b_ptr + n * b_stride)).to(tl.float32))
    return i < channels * height * width, channel, row, column, step


@triton.jit
def _param_offset(number, channel, channels, p_stride_c):
    """Of parameter 0..3K-1 of each latent, from channel 0 of its place."""
    return (number * channels + channel).to(tl.int64) * p_stride_c


@triton.jit
def _load_param(p_ptrs, number, channel, channels, p_stride_c, mask):
    offs = _param_offset(number, channel, channels, p_stride_c)
    return tl.load(p_ptrs + offs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _largest_logit(p_ptrs, channel, channels, p_stride_c, mask, K: tl.constexpr):
    top = _load_param(p_ptrs, 0, channel, channels, p_stride_c, mask)
    for k in tl.static_range(1, K):
        top = tl.maximum(top, _load_param(p_ptrs, k, channel, channels, p_stride_c, mask))
    return top


@triton.jit
def _sigmoid(z):
    # sigma(z), without an exponential that overflows
    e = tl.exp(-tl.abs(z))
    return tl.where(z >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _inverse_scale(log2_inv, LEAST: tl.constexpr, MOST: tl.constexpr):
    limited = tl.where(log2_inv < LEAST, LEAST, log2_inv)  # not maximum and minimum, which drop NaN
    return tl.exp2(tl.where(limited > MOST, MOST, limited))


@triton.jit
def _edges(x, mean, step, MARGIN: tl.constexpr):
    """(upper, lower) edge of each latent's level about the mean, mirrored where x > mean.

    Sigmoid differences keep their precision on the falling side. The lowest level, which reaches up to MARGIN steps
    above it, has no lower edge, the highest no upper one: there the argument is +-1e4.
    """
    centred = x - mean
    high = tl.where(x >= 128.0 - (1.0 + MARGIN) * step, 1e4, centred + 0.5 * step)
    low = tl.where(x <= -128.0 + MARGIN * step, -1e4, centred - 0.5 * step)
    flip = centred > 0
    return tl.where(flip, -low, high), tl.where(flip, -high, low)


@triton.jit
def _mix(
    x, step, p_ptrs, channel, channels, p_stride_c, mask,
    K: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, MARGIN: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """sum_k w_k (sigma(upper_k v_k) - sigma(lower_k v_k)), and with it the softmax's greatest logit and its sum."""
    top = _largest_logit(p_ptrs, channel, channels, p_stride_c, mask, K)
    total = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    mixed = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    for k in tl.static_range(K):
        weight = tl.exp(_load_param(p_ptrs, k, channel, channels, p_stride_c, mask) - top)
        mean = _load_param(p_ptrs, K + k, channel, channels, p_stride_c, mask)
        inv = _inverse_scale(_load_param(p_ptrs, 2 * K + k, channel, channels, p_stride_c, mask), LEAST, MOST)
        upper, lower = _edges(x, mean, step, MARGIN)
        total += weight
        mixed += weight * (_sigmoid(upper * inv) - _sigmoid(lower * inv))
    return mixed / total, top, total


@triton.jit
def _likelihood(mixed, step):
    # p = (65536 - 16) / 65536 m + S / 2^20
    return mixed * 0.999755859375 + step * 9.5367431640625e-07


@triton.jit
def _mixture_bits_fwd_kernel(
    out_ptr,  # float32 [N, g, h, w]
    x_ptr,  # [N, g, h, w]
    p_ptr,  # [N, 3 K g, h, w]
    b_ptr,  # int64 [N]
    blocks, channels, height, width,
    out_stride_n, out_stride_c, out_stride_h, out_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    p_stride_n, p_stride_c, p_stride_h, p_stride_w,
    b_stride,
    K: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, MARGIN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    # bits = -log2((65536 - 16) / 65536 sum_k w_k (sigma(upper_k v_k) - sigma(lower_k v_k)) + S / 2^20)
    n = tl.program_id(0) // blocks
    mask, channel, row, column, step = _places(
        n, tl.program_id(0) % blocks, b_ptr, channels, height, width, b_stride, CHANNELS_LAST, BLOCK_SIZE
    )
    offs = offset_of(n, channel, row, column, x_stride_n, x_stride_c, x_stride_h, x_stride_w)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    p_ptrs = p_ptr + offset_of(n, channel, row, column, p_stride_n, 0, p_stride_h, p_stride_w)
    mixed, _, _ = _mix(x, step, p_ptrs, channel, channels, p_stride_c, mask, K, LEAST, MOST, MARGIN, BLOCK_SIZE)
    offs = offset_of(n, channel, row, column, out_stride_n, out_stride_c, out_stride_h, out_stride_w)
    tl.store(out_ptr + offs, -tl.log2(_likelihood(mixed, step)), mask=mask)


@triton.jit
def _mixture_bits_bwd_kernel(
    dx_ptr,  # [N, g, h, w]
    dp_ptr,  # [N, 3 K g, h, w]
    dout_ptr,  # float32 [N, g, h, w]
    x_ptr,  # [N, g, h, w]
    p_ptr,  # [N, 3 K g, h, w]
    b_ptr,  # int64 [N]
    blocks, channels, height, width,
    dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w,
    dp_stride_n, dp_stride_c, dp_stride_h, dp_stride_w,
    dout_stride_n, dout_stride_c, dout_stride_h, dout_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    p_stride_n, p_stride_c, p_stride_h, p_stride_w,
    b_stride,
    WITH_DX: tl.constexpr, WITH_DP: tl.constexpr,
    K: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, MARGIN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    # With u = upper_k v_k, l = lower_k v_k, m_k = sigma(u) - sigma(l), m = sum_k w_k m_k, p as in `_likelihood` and
    # f = d bits / d m = -(65536 - 16) / 65536 / (p ln 2); where an edge ends the range sigma' is 0:
    #   d bits / d logit_k  = f w_k (m_k - m)
    #   d bits / d mean_k   = -f w_k (sigma'(u) - sigma'(l)) (+-v_k), and d bits / d x is minus the sum of these
    #   d bits / d log2 v_k = f w_k (sigma'(u) u - sigma'(l) l) ln 2, where v_k is within its limits
    n = tl.program_id(0) // blocks
    mask, channel, row, column, step = _places(
        n, tl.program_id(0) % blocks, b_ptr, channels, height, width, b_stride, CHANNELS_LAST, BLOCK_SIZE
    )
    offs = offset_of(n, channel, row, column, x_stride_n, x_stride_c, x_stride_h, x_stride_w)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    offs = offset_of(n, channel, row, column, dout_stride_n, dout_stride_c, dout_stride_h, dout_stride_w)
    dout = tl.load(dout_ptr + offs, mask=mask, other=0.0)
    p_ptrs = p_ptr + offset_of(n, channel, row, column, p_stride_n, 0, p_stride_h, p_stride_w)
    mixed, top, total = _mix(x, step, p_ptrs, channel, channels, p_stride_c, mask, K, LEAST, MOST, MARGIN, BLOCK_SIZE)
    factor = -1.4423428203 * dout / _likelihood(mixed, step)  # (65536 - 16) / 65536 / ln 2

    dp_ptrs = dp_ptr + offset_of(n, channel, row, column, dp_stride_n, 0, dp_stride_h, dp_stride_w)
    dx = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    for k in tl.static_range(K):
        weight = tl.exp(_load_param(p_ptrs, k, channel, channels, p_stride_c, mask) - top) / total
        mean = _load_param(p_ptrs, K + k, channel, channels, p_stride_c, mask)
        log2_inv = _load_param(p_ptrs, 2 * K + k, channel, channels, p_stride_c, mask)
        inv = _inverse_scale(log2_inv, LEAST, MOST)
        upper, lower = _edges(x, mean, step, MARGIN)
        at_upper = _sigmoid(upper * inv)
        at_lower = _sigmoid(lower * inv)
        upper_slope = at_upper * (1.0 - at_upper)
        lower_slope = at_lower * (1.0 - at_lower)
        moved = tl.where(x > mean, lower_slope - upper_slope, upper_slope - lower_slope)
        share = factor * weight
        dcentred = share * moved * inv
        dx += dcentred
        if WITH_DP:
            stretched = (upper_slope * upper - lower_slope * lower) * inv * 0.6931471805599453
            free = (log2_inv >= LEAST) & (log2_inv <= MOST)
            to = dp_ptrs + _param_offset(k, channel, channels, dp_stride_c)
            tl.store(to, share * (at_upper - at_lower - mixed), mask=mask)
            to = dp_ptrs + _param_offset(K + k, channel, channels, dp_stride_c)
            tl.store(to, -dcentred, mask=mask)
            to = dp_ptrs + _param_offset(2 * K + k, channel, channels, dp_stride_c)
            tl.store(to, tl.where(free, share * stretched, 0.0), mask=mask)
    if WITH_DX:
        offs = offset_of(n, channel, row, column, dx_stride_n, dx_stride_c, dx_stride_h, dx_stride_w)
        tl.store(dx_ptr + offs, dx, mask=mask)


@triton.jit
def _sigmoid_at(x, centred, mirror, step, EDGE: tl.constexpr):
    """sigma((x + EDGE S / 2 - mean) v) or, mirrored, one minus it; where that edge is an end of the range, of +-1e4."""
    edge = x + 0.5 * EDGE * step
    shifted = centred + 0.5 * EDGE * step
    shifted = tl.where(edge >= 128.0 - step, 1e4, shifted)
    shifted = tl.where(edge <= -128.0, -1e4, shifted)
    return _sigmoid(shifted * mirror)


@triton.jit
def _neighbour_bits_fwd_kernel(
    here_ptr,  # float32 [N, g, h, w]
    rise_ptr,  # float32 [N, g, h, w], strides of here
    fall_ptr,  # float32 [N, g, h, w], strides of here
    x_ptr,  # [N, g, h, w]
    p_ptr,  # [N, 3 K g, h, w]
    b_ptr,  # int64 [N]
    blocks, channels, height, width,
    out_stride_n, out_stride_c, out_stride_h, out_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    p_stride_n, p_stride_c, p_stride_h, p_stride_w,
    b_stride,
    K: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    # here = bits(x), rise = bits(x + S) - here, fall = bits(x - S) - here, from the sigmoids at x -+ S/2 and x -+ 3S/2
    n = tl.program_id(0) // blocks
    mask, channel, row, column, step = _places(
        n, tl.program_id(0) % blocks, b_ptr, channels, height, width, b_stride, CHANNELS_LAST, BLOCK_SIZE
    )
    offs = offset_of(n, channel, row, column, x_stride_n, x_stride_c, x_stride_h, x_stride_w)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    p_ptrs = p_ptr + offset_of(n, channel, row, column, p_stride_n, 0, p_stride_h, p_stride_w)
    top = _largest_logit(p_ptrs, channel, channels, p_stride_c, mask, K)
    total = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    below = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    level = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    above = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    for k in tl.static_range(K):
        weight = tl.exp(_load_param(p_ptrs, k, channel, channels, p_stride_c, mask) - top)
        centred = x - _load_param(p_ptrs, K + k, channel, channels, p_stride_c, mask)
        inv = _inverse_scale(_load_param(p_ptrs, 2 * K + k, channel, channels, p_stride_c, mask), LEAST, MOST)
        mirror = tl.where(centred > 0, -inv, inv)  # on the falling side sigmoid differences keep their precision
        first = _sigmoid_at(x, centred, mirror, step, -3)
        second = _sigmoid_at(x, centred, mirror, step, -1)
        third = _sigmoid_at(x, centred, mirror, step, 1)
        fourth = _sigmoid_at(x, centred, mirror, step, 3)
        total += weight
        below += weight * tl.abs(second - first)
        level += weight * tl.abs(third - second)
        above += weight * tl.abs(fourth - third)
    here = -tl.log2(_likelihood(level / total, step))
    rise = -tl.log2(_likelihood(above / total, step)) - here
    fall = -tl.log2(_likelihood(below / total, step)) - here
    offs = offset_of(n, channel, row, column, out_stride_n, out_stride_c, out_stride_h, out_stride_w)
    tl.store(here_ptr + offs, here, mask=mask)
    tl.store(rise_ptr + offs, tl.where(x >= 128.0 - 1.25 * step, float("inf"), rise), mask=mask)
    tl.store(fall_ptr + offs, tl.where(x <= -128.0 + 0.25 * step, float("inf"), fall), mask=mask)


def _constants(params: Tensor, num_mixtures: int) -> dict[str, Any]:
    """How all three kernels are compiled."""
    return {
        "K": num_mixtures,
        "LEAST": LOG2_INV_SCALE_LEAST,
        "MOST": LOG2_INV_SCALE_MOST,
        "CHANNELS_LAST": is_channels_last(params),
        "BLOCK_SIZE": BLOCK_SIZE,
        "enable_fp_fusion": True,
    }


def mixture_bits_fwd(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> Tensor:
    """x [N, g, h, w], params [N, 3 K g, h, w], b int64 [N], of any strides -> float32 like x."""
    out = torch.empty_like(x, dtype=torch.float32)
    blocks = blocks_of(x, BLOCK_SIZE)
    with on_device_of(x):
        _mixture_bits_fwd_kernel[(len(x) * blocks,)](
            out, x, params, b, blocks, *x.shape[1:], *out.stride(), *x.stride(), *params.stride(), *b.stride(),
            MARGIN=MARGIN, **_constants(params, num_mixtures),
        )  # fmt: skip
    return out


def mixture_bits_bwd(
    dout: Tensor,
    x: Tensor,
    params: Tensor,
    num_mixtures: int,
    b: Tensor,
    margin: float = MARGIN,
    with_dx: bool = True,
    with_dparams: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `mixture_bits_fwd`: dout float32 like x -> dx like x, dparams like params, None if not asked for."""
    dx = torch.empty_like(x) if with_dx else None
    dparams = torch.empty_like(params) if with_dparams else None
    # The kernel has to be given some pointer, also where it is not to write.
    dx_there, dp_there = (x if dx is None else dx), (params if dparams is None else dparams)
    blocks = blocks_of(x, BLOCK_SIZE)
    with on_device_of(x):
        _mixture_bits_bwd_kernel[(len(x) * blocks,)](
            dx_there, dp_there, dout, x, params, b, blocks, *x.shape[1:],
            *dx_there.stride(), *dp_there.stride(), *dout.stride(), *x.stride(), *params.stride(), *b.stride(),
            WITH_DX=with_dx, WITH_DP=with_dparams, MARGIN=margin, **_constants(params, num_mixtures),
        )  # fmt: skip
    return dx, dparams


def neighbour_bits_fwd(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `mixture_bits_fwd` -> bits at x, change at x + S, change at x - S, float32 like x."""
    here = torch.empty_like(x, dtype=torch.float32)
    rise, fall = torch.empty_like(here), torch.empty_like(here)
    blocks = blocks_of(x, BLOCK_SIZE)
    with on_device_of(x):
        _neighbour_bits_fwd_kernel[(len(x) * blocks,)](
            here, rise, fall, x, params, b, blocks, *x.shape[1:],
            *here.stride(), *x.stride(), *params.stride(), *b.stride(), **_constants(params, num_mixtures),
        )  # fmt: skip
    return here, rise, fall
