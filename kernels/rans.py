"""Interleaved rANS on the GPU, the streams of csrc/core/rans.h: one program a stream, all its lanes side by side.

    decode: slot = x mod 2^20, find i with C(i) <= slot < C(i + 1), x = freq floor(x / 2^20) + slot - C(i), refill
    encode: emit 16-bit words while x >= freq 2^28, x = floor(x / freq) 2^20 + x mod freq + start

Symbol j of a stream, counted from its beginning, belongs to lane j mod lanes. A row is one symbol of every lane; the
first and the last row of a group may have some lanes only. The words of a row lie in lane order; how many a lane needs
(0..2) follows from its state alone, so a prefix sum says where each lane reads or writes.
"""

import triton
import triton.language as tl
from torch import Tensor

from l2c.kernels.mixture import WINDOW, mixture_cdf, tail_table
from l2c.ops import contract

LOW = tl.constexpr(contract.STATE_LOW)
SLOT = tl.constexpr(contract.CDF_ONE - 1)
TRUNCATED = tl.constexpr(contract.TRUNCATED)
NO_ROOM = tl.constexpr(contract.NO_ROOM)


@triton.jit(do_not_specialize=["S", "k_stride"])
def _rans_decode_fwd_kernel(
    words_ptr,  # int16 (uint16 bits), the words of all streams
    next_ptr,  # int64 [N]: the next word of each stream
    end_ptr,  # int64 [N]: one past its last
    states_ptr,  # int64 [N, 64]
    position_ptr,  # int64 [N]: symbols decoded so far
    lanes_ptr,  # int32 [N]
    status_ptr,  # int32 [N]
    count_ptr,  # int32 [N]
    bits_ptr,  # int32 [N]
    weights_ptr,  # [K, N, S], as are the next two
    means_ptr,
    inv_scales_ptr,
    tail_ptr,  # int32 [3, 32]
    window_ptr,  # int32 [N, S, 16]
    first_ptr,  # int16 [N, S]
    symbols_ptr,  # uint8 [N, S]
    S,
    k_stride,
    K: tl.constexpr,
    LANES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    lanes = tl.load(lanes_ptr + n)
    count = tl.load(count_ptr + n)
    bits = tl.load(bits_ptr + n)
    position = tl.load(position_ptr + n)
    next_word = tl.load(next_ptr + n)
    end = tl.load(end_ptr + n)
    lane = tl.arange(0, LANES)
    x = tl.load(states_ptr + n * 64 + lane, mask=lane < lanes, other=1 << 32)
    skip = (position % lanes).to(tl.int32)  # lanes of the first row that belong to the group before
    rows = (skip + count + lanes - 1) // lanes
    row = tl.zeros_like(rows)
    # A stream that has ended too early stays past its end, here and in the groups that follow.
    while (row < rows) & (next_word <= end):
        j = row * lanes + lane - skip
        active = (lane < lanes) & (j >= 0) & (j < count)
        at = n * S + j
        slot = (x & SLOT).to(tl.int32)
        if K == 0:
            symbol = slot >> (20 - bits)
            start = symbol << (20 - bits)
            stop = start + (1 << (20 - bits))
        else:
            edges = tl.load(
                window_ptr + at[:, None] * WINDOW + tl.arange(0, WINDOW)[None, :], mask=active[:, None], other=0
            )
            first = tl.load(first_ptr + at, mask=active, other=0).to(tl.int32)
            below = edges <= slot[:, None]
            passed = tl.sum(below.to(tl.int32), axis=1)
            symbol = first + passed - 1
            start = tl.max(tl.where(below, edges, 0), axis=1)
            stop = tl.min(tl.where(below, 1 << 20, edges), axis=1)
            missed = active & ((passed == 0) | (passed == WINDOW))
            if tl.max(missed.to(tl.int32), axis=0) > 0:
                # The greatest i with C(i) <= slot, bit by bit.
                i = tl.zeros((LANES,), tl.int32)
                low = tl.zeros((LANES,), tl.int32)
                high = tl.full((LANES,), 1 << 20, tl.int32)
                for k in range(8):
                    step = (1 << bits) >> (k + 1)
                    c = mixture_cdf(
                        i + step, at, missed, bits, weights_ptr, means_ptr, inv_scales_ptr, tail_ptr, k_stride, K
                    )
                    go = (c <= slot) & (step > 0)
                    low = tl.where(go, c, low)
                    high = tl.where(go | (step == 0), high, c)
                    i = tl.where(go, i + step, i)
                symbol = tl.where(missed, i, symbol)
                start = tl.where(missed, low, start)
                stop = tl.where(missed, high, stop)
        tl.store(symbols_ptr + at, symbol.to(tl.uint8), mask=active)
        moved = (stop - start).to(tl.int64) * (x >> 20) + (slot - start).to(tl.int64)
        x = tl.where(active, moved, x)
        # One word brings 2^16 <= x < 2^32 home, two words 2^12 <= x < 2^16.
        one = active & (x < LOW)
        two = active & (x < (1 << 16))
        needed = one.to(tl.int32) + two.to(tl.int32)
        place = next_word + tl.cumsum(needed, axis=0) - needed
        word = tl.load(words_ptr + place, mask=one & (place < end), other=0).to(tl.int64) & 65535
        x = tl.where(one, (x << 16) | word, x)
        word = tl.load(words_ptr + place + 1, mask=two & (place + 1 < end), other=0).to(tl.int64) & 65535
        x = tl.where(two, (x << 16) | word, x)
        next_word += tl.sum(needed, axis=0)
        row += 1
    tl.store(states_ptr + n * 64 + lane, x, mask=lane < lanes)
    tl.store(next_ptr + n, next_word)
    tl.store(position_ptr + n, position + count)
    if next_word > end:
        tl.store(status_ptr + n, TRUNCATED)


def rans_decode_fwd(
    words: Tensor,
    next_word: Tensor,
    end: Tensor,
    states: Tensor,
    position: Tensor,
    lanes: Tensor,
    status: Tensor,
    count: Tensor,
    bits: Tensor,
    weights: Tensor,
    means: Tensor,
    inv_scales: Tensor,
    window: Tensor,
    first: Tensor,
    symbols: Tensor,
    most_lanes: int,
) -> None:
    """Decode the next group of every stream.

    Args:
        words: int16, bits of uint16; next_word, end: int64 [N], places in it; next_word moves on.
        states: int64 [N, 64], position: int64 [N], both move on; lanes: int32 [N], powers of two <= most_lanes.
        status: int32 [N], gets 4 where a stream ends too early; it is not read on then, next_word
            stays past its end, and what was decoded has no meaning.
        count, bits: int32 [N].
        weights, means, inv_scales: int16 [K, N, S]; K = 0: symbols are equally likely.
        window, first: of `mixture_window_fwd`; not read with K = 0.
        symbols: uint8 [N, S].
    """
    K, N, S = weights.shape
    _rans_decode_fwd_kernel[(N,)](
        words,
        next_word,
        end,
        states,
        position,
        lanes,
        status,
        count,
        bits,
        weights,
        means,
        inv_scales,
        tail_table(words.device),
        window,
        first,
        symbols,
        S,
        weights.stride(0),
        K=K,
        LANES=most_lanes,
        num_warps=1 if most_lanes <= 8 else 4,
        enable_fp_fusion=False,
    )


@triton.jit(do_not_specialize=["stride", "capacity"])
def _rans_encode_fwd_kernel(
    start_ptr,  # int32 [N, T]
    freq_ptr,  # int32 [N, T]
    total_ptr,  # int64 [N]
    lanes_ptr,  # int32 [N]
    states_ptr,  # int64 [N, 64]
    words_ptr,  # int16 [N, capacity]
    begin_ptr,  # int64 [N]
    status_ptr,  # int32 [N]
    stride,
    capacity,
    LANES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    lanes = tl.load(lanes_ptr + n)
    total = tl.load(total_ptr + n)
    lane = tl.arange(0, LANES)
    x = tl.load(states_ptr + n * 64 + lane, mask=lane < lanes, other=1 << 32)
    begin = tl.zeros_like(total) + capacity
    failed = tl.zeros((LANES,), tl.int32)
    rows = ((total + lanes - 1) // lanes).to(tl.int32)
    for back in range(rows):
        j = (rows - 1 - back).to(tl.int64) * lanes + lane
        active = (lane < lanes) & (j < total)
        start = tl.load(start_ptr + n * stride + j, mask=active, other=0).to(tl.int64)
        freq = tl.load(freq_ptr + n * stride + j, mask=active, other=1 << 20).to(tl.int64)
        freq = tl.maximum(freq, 1)  # 0 only where a symbol was refused
        limit = freq << 28
        one = active & (x >= limit)
        two = one & ((x >> 16) >= limit)
        given = one.to(tl.int32) + two.to(tl.int32)
        # Later lanes lie higher; of two words the one taken off last lies lower.
        after = tl.sum(given, axis=0) - tl.cumsum(given, axis=0)
        high = begin - after - 1
        fits = high - two.to(tl.int64) >= 0
        failed = tl.maximum(failed, (one & (fits == 0)).to(tl.int32))
        tl.store(words_ptr + n * capacity + high, (x & 65535).to(tl.int16), mask=one & fits)
        tl.store(words_ptr + n * capacity + high - 1, ((x >> 16) & 65535).to(tl.int16), mask=two & fits)
        x = tl.where(two, x >> 32, tl.where(one, x >> 16, x))
        begin = tl.maximum(begin - tl.sum(given, axis=0), 0)
        q = x // freq
        x = tl.where(active, (q << 20) + (x - q * freq) + start, x)
    tl.store(states_ptr + n * 64 + lane, x, mask=lane < lanes)
    tl.store(begin_ptr + n, begin)
    if tl.max(failed, axis=0) > 0:
        tl.store(status_ptr + n, NO_ROOM)


def rans_encode_fwd(
    start: Tensor,
    freq: Tensor,
    total: Tensor,
    lanes: Tensor,
    states: Tensor,
    words: Tensor,
    begin: Tensor,
    status: Tensor,
    most_lanes: int,
) -> None:
    """Encode whole streams, from their last symbol to their first.

    Args:
        start, freq: int32 [N, T], intervals of [0, 2^20); total: int64 [N], symbols of each stream.
        lanes: int32 [N], powers of two <= most_lanes.
        states: int64 [N, 64], the start values of csrc/core/rans.h; get those that open the stream.
        words: int16 [N, capacity]; begin: int64 [N], gets the first word that was written: a stream's words are
            words[begin:].
        status: int32 [N], gets 6 where the words do not fit.
    """
    _rans_encode_fwd_kernel[(start.shape[0],)](
        start,
        freq,
        total,
        lanes,
        states,
        words,
        begin,
        status,
        start.stride(0),
        words.shape[1],
        LANES=most_lanes,
        num_warps=1 if most_lanes <= 8 else 2,
        enable_fp_fusion=False,
    )
