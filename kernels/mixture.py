"""Integer mixtures of logistics: head output -> parameters -> C(i) (csrc/core/mixture_cdf.h is the definition).

    d_k = clamp(64 t_i - m_k), z_k = clamp((d_k v_k) >> 5), C(i) = (sum_k (w_k sigma(z_k)) >> 16 << 4) + i S

Symbols of a group lie in coding order: by cell, then channel. Stream i's symbol j is at [i, j] of every array, at
[k, i, j] of the parameters; S, the second length, is the same for all streams of a batch.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from l2c.kernels import block_size
from l2c.kernels.common import coded_place
from l2c.ops import contract

WEIGHT_SUM = tl.constexpr(contract.WEIGHT_SUM)
ONE = tl.constexpr(contract.CDF_ONE)
WINDOW = tl.constexpr(contract.WINDOW)
BAD_SYMBOL = tl.constexpr(contract.BAD_SYMBOL)


@functools.cache  # recorded graphs hold its address
def tail_table(device: torch.device) -> Tensor:
    """a, b and c of the 32 quadratics of sigma's upper tail: int32 [3, 32]."""
    rows = [
        list(values) + [fill] * (32 - len(values))
        for values, fill in ((contract.TAIL_A, 1), (contract.TAIL_B, 0), (contract.TAIL_C, 0))
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device)


@triton.jit
def logistic(z, tail_ptr):
    """sigma of z = -32768..32767: int32, 1..65535."""
    u = tl.where(z < 0, -1 - z, z)
    s = u >> 10
    f = (u & 1023) << 4
    a = tl.load(tail_ptr + s)
    b = tl.load(tail_ptr + 32 + s)
    c = tl.load(tail_ptr + 64 + s)
    tail = a - ((f * (b - ((f * c) >> 16))) >> 16)
    return tl.where(z < 0, tail, 65536 - tail)


@triton.jit
def mixture_cdf(i, at, mask, bits, weights_ptr, means_ptr, inv_scales_ptr, tail_ptr, k_stride, K: tl.constexpr):
    """C(i): int32; i, the place `at` (int64) of the symbol's first component and `mask` have one shape."""
    step = 1 << (8 - bits)
    edge = 64 * ((2 * i - 1) * step - 256)
    total = tl.zeros_like(i).to(tl.uint32)
    for k in tl.static_range(K):
        w = tl.load(weights_ptr + at + k * k_stride, mask=mask, other=0).to(tl.uint32) & 65535
        m = tl.load(means_ptr + at + k * k_stride, mask=mask, other=0).to(tl.int32)
        v = tl.load(inv_scales_ptr + at + k * k_stride, mask=mask, other=1).to(tl.int32)
        d = tl.minimum(tl.maximum(edge - m, -32768), 32767)
        z = tl.minimum(tl.maximum((d * v) >> 5, -32768), 32767)
        total += (w * logistic(z, tail_ptr).to(tl.uint32)) >> 16
    inner = (total.to(tl.int32) << 4) + i * step
    return tl.where(i <= 0, 0, tl.where(i >= (1 << bits), ONE, inner))


@triton.jit(do_not_specialize=["n_stride", "row_stride", "cell_stride", "g", "blocks", "S", "k_stride"])
def _mixture_params_fwd_kernel(
    raw_ptr,  # int16 [N, R, C, cell_stride]
    exp_ptr,  # int16 (uint16 bits) [256]
    inv_ptr,  # int16 [256]
    sizes_ptr,  # int32 [N, 2]: rows and columns of the coded cells
    used_ptr,  # int32 [N]: channels coded
    weights_ptr,  # int16 (uint16 bits) [K, N, S]
    means_ptr,  # int16 [K, N, S]
    inv_scales_ptr,  # int16 [K, N, S]
    n_stride,
    row_stride,
    cell_stride,
    g,
    blocks,
    S,
    k_stride,
    K: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    n = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask, row, column, channel = coded_place(j, sizes_ptr, tl.load(used_ptr + n), n)
    base = n * n_stride + row.to(tl.int64) * row_stride + column * cell_stride + channel
    at = n * S + j

    top = tl.full((BLOCK_SIZE,), -128, tl.int32)
    for k in tl.static_range(K):
        logit = tl.load(raw_ptr + base + k * g, mask=mask, other=0).to(tl.int32)
        top = tl.maximum(top, tl.minimum(tl.maximum(logit, -128), 127))
    total = tl.zeros((BLOCK_SIZE,), tl.uint32)
    largest = tl.zeros((BLOCK_SIZE,), tl.uint32)
    first = tl.full((BLOCK_SIZE,), -1, tl.int32)
    for k in tl.static_range(K):
        logit = tl.load(raw_ptr + base + k * g, mask=mask, other=0).to(tl.int32)
        distance = top - tl.minimum(tl.maximum(logit, -128), 127)
        e = tl.load(exp_ptr + distance).to(tl.uint32) & 65535
        first = tl.where((first < 0) | (e > largest), k, first)
        largest = tl.maximum(largest, e)
        total += e
    total = tl.maximum(total, 1)
    rest = tl.full((BLOCK_SIZE,), WEIGHT_SUM, tl.int32)
    for k in tl.static_range(K):
        logit = tl.load(raw_ptr + base + k * g, mask=mask, other=0).to(tl.int32)
        distance = top - tl.minimum(tl.maximum(logit, -128), 127)
        e = tl.load(exp_ptr + distance).to(tl.uint32) & 65535
        # 65520 * 65535 is below 2^32.
        rest -= (e * 65520 // total).to(tl.int32)
    for k in tl.static_range(K):
        logit = tl.load(raw_ptr + base + k * g, mask=mask, other=0).to(tl.int32)
        distance = top - tl.minimum(tl.maximum(logit, -128), 127)
        e = tl.load(exp_ptr + distance).to(tl.uint32) & 65535
        weight = (e * 65520 // total).to(tl.int32) + tl.where(first == k, rest, 0)
        mean = tl.load(raw_ptr + base + (K + k) * g, mask=mask, other=0)
        index = tl.load(raw_ptr + base + (2 * K + k) * g, mask=mask, other=0).to(tl.int32)
        inv = tl.load(inv_ptr + tl.minimum(tl.maximum(index, 0), 255))
        tl.store(weights_ptr + at + k * k_stride, weight.to(tl.int16), mask=mask)
        tl.store(means_ptr + at + k * k_stride, mean, mask=mask)
        tl.store(inv_scales_ptr + at + k * k_stride, inv, mask=mask)


def mixture_params_fwd(
    raw: Tensor,
    g: int,
    exp_table: Tensor,
    inv_table: Tensor,
    sizes: Tensor,
    used: Tensor,
    weights: Tensor,
    means: Tensor,
    inv_scales: Tensor,
) -> None:
    """Head output of a padded batch -> parameters of the symbols that are coded, in coding order.

    Args:
        raw: int16 [N, R, C, >= 3 K g], any strides but a contiguous last dimension (0 repeats a cell).
        g: channels of the group.
        exp_table, inv_table: int16 [256], bits of uint16.
        sizes: int32 [N, 2], rows and columns of the cells that are coded; used: int32 [N], 0..g channels of them.
        weights, means, inv_scales: int16 [K, N, S], written where j < rows * columns * used.
    """
    K, N, S = weights.shape
    block = block_size(weights.device, 256, S)
    blocks = triton.cdiv(S, block)
    _mixture_params_fwd_kernel[(N * blocks,)](
        raw,
        exp_table,
        inv_table,
        sizes,
        used,
        weights,
        means,
        inv_scales,
        raw.stride(0),
        raw.stride(1),
        raw.stride(2),
        g,
        blocks,
        S,
        weights.stride(0),
        K=K,
        BLOCK_SIZE=block,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["blocks", "S", "out_stride", "k_stride"])
def _mixture_intervals_fwd_kernel(
    symbols_ptr,  # uint8 [N, S]
    count_ptr,  # int32 [N]
    bits_ptr,  # int32 [N]
    weights_ptr,  # [K, N, S], as are the next two
    means_ptr,
    inv_scales_ptr,
    tail_ptr,  # int32 [3, 32]
    start_ptr,  # int32 [N, out_stride]
    freq_ptr,
    offset_ptr,  # int64 [N]: where the group's first symbol goes
    status_ptr,  # int32 [N]
    blocks,
    S,
    out_stride,
    k_stride,
    K: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    n = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = j < tl.load(count_ptr + n)
    bits = tl.load(bits_ptr + n)
    symbol = tl.load(symbols_ptr + n * S + j, mask=mask, other=0).to(tl.int32)
    if tl.max(symbol >> bits, axis=0) > 0:
        tl.store(status_ptr + n, BAD_SYMBOL)
    if K == 0:  # every symbol is equally likely
        low = symbol << (20 - bits)
        high = (symbol + 1) << (20 - bits)
    else:
        at = n * S + j
        low = mixture_cdf(symbol, at, mask, bits, weights_ptr, means_ptr, inv_scales_ptr, tail_ptr, k_stride, K)
        high = mixture_cdf(symbol + 1, at, mask, bits, weights_ptr, means_ptr, inv_scales_ptr, tail_ptr, k_stride, K)
    to = n * out_stride + tl.load(offset_ptr + n) + j
    tl.store(start_ptr + to, low, mask=mask)
    tl.store(freq_ptr + to, high - low, mask=mask)


def mixture_intervals_fwd(
    symbols: Tensor,
    count: Tensor,
    bits: Tensor,
    weights: Tensor,
    means: Tensor,
    inv_scales: Tensor,
    start: Tensor,
    freq: Tensor,
    offset: Tensor,
    status: Tensor,
) -> None:
    """[C(i), C(i + 1)) of known symbols, appended to each stream's intervals.

    Args:
        symbols: uint8 [N, S]; count, bits: int32 [N].
        weights, means, inv_scales: int16 [K, N, S]; K = 0: symbols are equally likely.
        start, freq: int32 [N, T]; offset: int64 [N], where the first symbol's interval goes.
        status: int32 [N], gets 1 where a symbol is not below 2^bits; the intervals have no meaning then.
    """
    K, N, S = weights.shape
    block = block_size(weights.device, 256, S)
    blocks = triton.cdiv(S, block)
    _mixture_intervals_fwd_kernel[(N * blocks,)](
        symbols,
        count,
        bits,
        weights,
        means,
        inv_scales,
        tail_table(symbols.device),
        start,
        freq,
        offset,
        status,
        blocks,
        S,
        start.stride(0),
        weights.stride(0),
        K=K,
        BLOCK_SIZE=block,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["blocks", "S", "k_stride"])
def _mixture_window_fwd_kernel(
    count_ptr,  # int32 [N]
    bits_ptr,  # int32 [N]
    weights_ptr,  # [K, N, S], as are the next two
    means_ptr,
    inv_scales_ptr,
    tail_ptr,  # int32 [3, 32]
    window_ptr,  # int32 [N, S, 16]
    first_ptr,  # int16 [N, S]
    blocks,
    S,
    k_stride,
    K: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    n = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = j < tl.load(count_ptr + n)
    bits = tl.load(bits_ptr + n)
    at = n * S + j
    heaviest = tl.full((BLOCK_SIZE,), -1, tl.int32)
    mean = tl.zeros((BLOCK_SIZE,), tl.int32)
    for k in tl.static_range(K):
        w = tl.load(weights_ptr + at + k * k_stride, mask=mask, other=0).to(tl.int32) & 65535
        m = tl.load(means_ptr + at + k * k_stride, mask=mask, other=0).to(tl.int32)
        mean = tl.where(w > heaviest, m, mean)
        heaviest = tl.maximum(heaviest, w)
    # A mean in 1/128 latents -> the nearest level; level i stands for (i - 2^(b-1)) * 2^(8-b) latents.
    level = ((mean + (64 << (8 - bits))) >> (15 - bits)) + (1 << (bits - 1))
    first = tl.minimum(tl.maximum(level - 7, 0), tl.maximum((1 << bits) - 15, 0))
    tl.store(first_ptr + at, first.to(tl.int16), mask=mask)
    edge = first[:, None] + tl.arange(0, WINDOW)[None, :]
    here = tl.zeros_like(edge).to(tl.int64) + at[:, None]
    valid = mask[:, None] & (edge >= 0)
    c = mixture_cdf(edge, here, valid, bits, weights_ptr, means_ptr, inv_scales_ptr, tail_ptr, k_stride, K)
    tl.store(window_ptr + at[:, None] * WINDOW + tl.arange(0, WINDOW)[None, :], c, mask=valid)


def mixture_window_fwd(
    count: Tensor, bits: Tensor, weights: Tensor, means: Tensor, inv_scales: Tensor, window: Tensor, first: Tensor
) -> None:
    """C at 16 edges around the heaviest component's mean, so that a decoder seldom evaluates C itself.

    Args:
        count, bits: int32 [N].
        weights, means, inv_scales: int16 [K, N, S].
        window: int32 [N, S, 16] gets C(first), ..., C(first + 15), 2^20 past the last level.
        first: int16 [N, S], 0..max(0, 2^b - 15).
    """
    K, N, S = weights.shape
    block = block_size(weights.device, 32, S)
    blocks = triton.cdiv(S, block)
    _mixture_window_fwd_kernel[(N * blocks,)](
        count,
        bits,
        weights,
        means,
        inv_scales,
        tail_table(count.device),
        window,
        first,
        blocks,
        S,
        weights.stride(0),
        K=K,
        BLOCK_SIZE=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
