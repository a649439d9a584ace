"""Hyperprior models on the GPU: inputs of the context, mixtures of a head, tables, escapes, and latents put in place.

What is computed, and in which order symbols lie in a stream, says l2c/entropy/hyperprior/integer_weights.py. Streams
and their states are those of `kernels.rans`. A *piece* is what one launch decodes of a group; its positions are rows of
`places`, int32 [N, T, 2] of (row, column), for each stream those from `first` on, `positions` of them. Symbol j of a
piece is channel j % used of position j // used. What is kept of all symbols of a stream lies in coding order, from
`begin` on for a piece or group.
"""

import triton
import triton.language as tl
from torch import Tensor

from l2c.kernels import block_size
from l2c.ops import contract

LOW = tl.constexpr(contract.STATE_LOW)
SLOT = tl.constexpr(contract.CDF_ONE - 1)
ONE = tl.constexpr(contract.CDF_ONE)
TRUNCATED = tl.constexpr(contract.TRUNCATED)
BAD_LATENT = tl.constexpr(contract.BAD_LATENT)
SIGMA_LEAST = tl.constexpr(contract.SIGMA_LEAST)
SIGMA_MOST = tl.constexpr(contract.SIGMA_MOST)
MIDDLE_WEIGHT = tl.constexpr(contract.GAUSSIAN_WEIGHTS[0])
OUTER_WEIGHT = tl.constexpr(contract.GAUSSIAN_WEIGHTS[1])
MIDDLE = tl.constexpr(contract.GAUSSIAN_INV_SCALES[0])
OUTER = tl.constexpr(contract.GAUSSIAN_INV_SCALES[1])
DISTANCE = tl.constexpr(contract.GAUSSIAN_DISTANCE)
MOST_DIGITS = tl.constexpr(contract.MOST_DIGITS)


@triton.jit(do_not_specialize=["P", "first", "place_stride", "H", "W", "R", "C"])
def _context_inputs_fwd_kernel(
    taps_ptr,  # int8 [N, H, W, M], with a border of 2 above and on both sides
    hyper_ptr,  # int8 [N, R, C, 2 M]
    places_ptr,  # int32 [N, T, 2]
    positions_ptr,  # int32 [N]
    gathered_ptr,  # int8 [N, P, gathered_stride]
    joint_ptr,  # int8 [N, P, joint_stride]
    P,
    first,
    place_stride,
    H,
    W,
    R,
    C,
    M,
    gathered_stride,
    joint_stride,
    BLOCK_SIZE: tl.constexpr,
):
    n = (tl.program_id(0) // P).to(tl.int64)
    p = tl.program_id(0) % P
    e = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    inside = tl.zeros_like(e) + p < tl.load(positions_ptr + n)
    at = places_ptr + n * place_stride + 2 * (first + p)
    row = tl.load(at)
    column = tl.load(at + 1)
    # Tap 0..11 of a masked 5x5 in raster order: the position's own row is the third one.
    tap = e // M
    is_tap = (tap < 12) & inside
    from_tap = ((n * H + row + tap // 5) * W + column + tap % 5) * M + e % M
    value = tl.load(taps_ptr + from_tap, mask=is_tap, other=0)
    tl.store(gathered_ptr + (n * P + p) * gathered_stride + e, value, mask=is_tap)
    channel = e - 12 * M
    is_hyper = (channel >= 0) & (channel < 2 * M) & inside
    from_hyper = ((n * R + row) * C + column) * 2 * M + channel
    value = tl.load(hyper_ptr + from_hyper, mask=is_hyper, other=0)
    tl.store(joint_ptr + (n * P + p) * joint_stride + channel, value, mask=is_hyper)


def context_inputs_fwd(
    taps: Tensor, hyper: Tensor, places: Tensor, positions: Tensor, gathered: Tensor, joint: Tensor, first: int
) -> None:
    """Inputs of the context and, as far as h_s gives them, of the parameters, at the positions of a piece.

    Args:
        taps: int8 [N, h + 2, w + 4, M], of latent (y, x) at (y + 2, x + 2), zeros where there is none.
        hyper: int8 [N, R, C, 2 M], packed.
        places, first: see the module; positions: int32 [N].
        gathered: int8 [N, 1, P, >= 12 M]; joint: int8 [N, 1, P, >= 4 M], of which the first 2 M are written.
    """
    N, _, P, gathered_stride = gathered.shape
    M = taps.shape[3]
    block = block_size(taps.device, 512, 14 * M)
    _context_inputs_fwd_kernel[(N * P, triton.cdiv(14 * M, block))](
        taps, hyper, places, positions, gathered, joint, P, first, places.stride(0), taps.shape[1], taps.shape[2],
        hyper.shape[1], hyper.shape[2], M, gathered_stride, joint.shape[3],
        BLOCK_SIZE=block, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["blocks", "S", "k_stride", "first", "place_stride", "R", "C", "stride"])
def _gaussian_params_fwd_kernel(
    raw_ptr,  # int16 [N, R, C, outputs]
    places_ptr,  # int32 [N, T, 2], only with HAS_PLACES
    count_ptr,  # int32 [N]
    used_ptr,  # int32 [N]
    begin_ptr,  # int64 [N]
    weights_ptr,  # int16 (uint16 bits) [3, N, S], as are the next two
    means_ptr,
    inv_scales_ptr,
    from_ptr,  # int16 [N, stride]
    excess_ptr,  # int16 [N, stride]
    blocks,
    S,
    k_stride,
    first,
    place_stride,
    R,
    C,
    M,
    outputs,
    stride,
    DROPPED: tl.constexpr,  # bits of a mean behind the point that k has not
    ONE_STEP: tl.constexpr,  # 2^DROPPED
    HAS_MEAN: tl.constexpr,
    HAS_PLACES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    n = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = j < tl.load(count_ptr + n)
    used = tl.maximum(tl.load(used_ptr + n), 1)
    p = j // used
    channel = j % used
    if HAS_PLACES:
        at = places_ptr + n * place_stride + 2 * (first + p)
        cell = tl.load(at, mask=mask, other=0).to(tl.int64) * C + tl.load(at + 1, mask=mask, other=0)
    else:
        cell = p.to(tl.int64)
    base = (n * R * C + cell) * outputs + channel
    sigma = tl.load(raw_ptr + base, mask=mask, other=SIGMA_LEAST).to(tl.int32)
    sigma = tl.minimum(tl.maximum(sigma, SIGMA_LEAST), SIGMA_MOST)
    mean = tl.zeros_like(sigma)
    if HAS_MEAN:
        mean += tl.load(raw_ptr + base + M, mask=mask, other=0).to(tl.int32)
    k = (mean + (ONE_STEP >> 1)) >> DROPPED
    centre = 2 * (mean - (k << DROPPED))
    distance = (DISTANCE * sigma + 512) >> 10
    at = n * S + j
    middle = (MIDDLE + (sigma >> 1)) // sigma
    outer = (OUTER + (sigma >> 1)) // sigma
    for i in tl.static_range(3):
        weight = tl.zeros_like(sigma) + (MIDDLE_WEIGHT if i == 0 else OUTER_WEIGHT)
        shift = tl.zeros_like(sigma) if i == 0 else (distance if i == 1 else -distance)
        tl.store(weights_ptr + at + i * k_stride, weight.to(tl.int16), mask=mask)
        tl.store(means_ptr + at + i * k_stride, (centre + shift).to(tl.int16), mask=mask)
        tl.store(inv_scales_ptr + at + i * k_stride, (middle if i == 0 else outer).to(tl.int16), mask=mask)
    to = n * stride + tl.load(begin_ptr + n) + j
    tl.store(from_ptr + to, k.to(tl.int16), mask=mask)
    tl.store(excess_ptr + to, tl.zeros_like(k).to(tl.int16), mask=mask)


def gaussian_params_fwd(
    raw: Tensor,
    places: Tensor | None,
    count: Tensor,
    used: Tensor,
    begin: Tensor,
    weights: Tensor,
    means: Tensor,
    inv_scales: Tensor,
    start: Tensor,
    excess: Tensor,
    channels: int,
    fraction: int,
    first: int,
) -> None:
    """Heads -> mixtures of a piece's symbols, in coding order (`ops.reference.gaussian_mixture`).

    Args:
        raw: int16 [N, R, C, M or 2 M], packed: of the positions one after another (1, P), or of an image with `places`.
        places, first, begin: see the module.
        count: int32 [N], symbols of the piece; used: int32 [N], channels that are coded.
        weights, means, inv_scales: int16 [3, N, S], bits of uint16.
        start, excess: int16 [N, T], get k and 0.
        channels, fraction: M, and the bits of k behind the point.
    """
    _, N, S = weights.shape
    dropped = contract.HEAD_MEAN_BITS - fraction
    block = block_size(weights.device, 256, S)
    blocks = triton.cdiv(S, block)
    _gaussian_params_fwd_kernel[(N * blocks,)](
        raw, places if places is not None else raw, count, used, begin, weights, means, inv_scales, start, excess,
        blocks, S, weights.stride(0), first, places.stride(0) if places is not None else 0, raw.shape[1], raw.shape[2],
        channels, raw.shape[3], start.stride(0),
        DROPPED=dropped, ONE_STEP=1 << dropped, HAS_MEAN=raw.shape[3] > channels, HAS_PLACES=places is not None,
        BLOCK_SIZE=block, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["S"])
def _rans_table_fwd_kernel(
    words_ptr,  # int16 (uint16 bits), the words of all streams
    next_ptr,  # int64 [N]
    end_ptr,  # int64 [N]
    states_ptr,  # int64 [N, 64]
    position_ptr,  # int64 [N]
    lanes_ptr,  # int32 [N]
    status_ptr,  # int32 [N]
    count_ptr,  # int32 [N]
    channels_ptr,  # int32 [N]
    cdf_ptr,  # int32 [rows, 257], out of 2^16
    symbols_ptr,  # uint8 [N, S]
    S,
    LANES: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    lanes = tl.load(lanes_ptr + n)
    count = tl.load(count_ptr + n)
    channels = tl.maximum(tl.load(channels_ptr + n), 1)
    position = tl.load(position_ptr + n)
    next_word = tl.load(next_ptr + n)
    end = tl.load(end_ptr + n)
    lane = tl.arange(0, LANES)
    x = tl.load(states_ptr + n * 64 + lane, mask=lane < lanes, other=1 << 32)
    skip = (position % lanes).to(tl.int32)
    rows = (skip + count + lanes - 1) // lanes
    row = tl.zeros_like(rows)
    while (row < rows) & (next_word <= end):
        j = row * lanes + lane - skip
        active = (lane < lanes) & (j >= 0) & (j < count)
        slot = (x & SLOT).to(tl.int32)
        table = cdf_ptr + tl.where(active, j, 0) % channels * 257
        # The greatest i with C(i) <= slot, bit by bit.
        i = tl.zeros((LANES,), tl.int32)
        start = tl.zeros((LANES,), tl.int32)
        stop = tl.full((LANES,), ONE, tl.int32)
        for k in tl.static_range(8):
            c = tl.load(table + i + (128 >> k), mask=active, other=0) << 4
            go = c <= slot
            start = tl.where(go, c, start)
            stop = tl.where(go, stop, c)
            i = tl.where(go, i + (128 >> k), i)
        tl.store(symbols_ptr + n * S + j, i.to(tl.uint8), mask=active)
        moved = (stop - start).to(tl.int64) * (x >> 20) + (slot - start).to(tl.int64)
        x = tl.where(active, moved, x)
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


def rans_table_fwd(
    words: Tensor,
    next_word: Tensor,
    end: Tensor,
    states: Tensor,
    position: Tensor,
    lanes: Tensor,
    status: Tensor,
    count: Tensor,
    channels: Tensor,
    cdf: Tensor,
    symbols: Tensor,
    most_lanes: int,
) -> None:
    """Decode symbols under tables: symbol j of a stream under row j % channels.

    Args:
        words, next_word, end, states, position, lanes, status, most_lanes: see `rans.rans_decode_fwd`.
        count, channels: int32 [N].
        cdf: int32 [rows, 257], each row rising from 0 to 2^16.
        symbols: uint8 [N, S].
    """
    N, S = symbols.shape
    _rans_table_fwd_kernel[(N,)](
        words, next_word, end, states, position, lanes, status, count, channels, cdf, symbols, S,
        LANES=most_lanes, num_warps=1 if most_lanes <= 8 else 4, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["blocks", "S", "stride"])
def _append_fwd_kernel(
    symbols_ptr,  # uint8 [N, S]
    count_ptr,  # int32 [N]
    begin_ptr,  # int64 [N]
    kept_ptr,  # uint8 [N, stride]
    blocks,
    S,
    stride,
    BLOCK_SIZE: tl.constexpr,
):
    n = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = j < tl.load(count_ptr + n)
    symbol = tl.load(symbols_ptr + n * S + j, mask=mask, other=0)
    tl.store(kept_ptr + n * stride + tl.load(begin_ptr + n) + j, symbol, mask=mask)


def append_fwd(symbols: Tensor, count: Tensor, begin: Tensor, kept: Tensor) -> None:
    """Keep a piece's symbols uint8 [N, S] in kept, uint8 [N, T], from `begin`, int64 [N], on; count: int32 [N]."""
    N, S = symbols.shape
    block = block_size(symbols.device, 1024, S)
    blocks = triton.cdiv(S, block)
    _append_fwd_kernel[(N * blocks,)](
        symbols, count, begin, kept, blocks, S, kept.stride(0), BLOCK_SIZE=block, num_warps=4, enable_fp_fusion=False
    )


@triton.jit(do_not_specialize=["stride", "room"])
def _escapes_fwd_kernel(
    words_ptr,  # int16 (uint16 bits), the words of all streams
    next_ptr,  # int64 [N]
    end_ptr,  # int64 [N]
    states_ptr,  # int64 [N, 64]
    position_ptr,  # int64 [N]
    lanes_ptr,  # int32 [N]
    status_ptr,  # int32 [N]
    count_ptr,  # int32 [N]
    begin_ptr,  # int64 [N]
    cdf_ptr,  # int32 [256]: C(0), ..., C(255) of a digit
    kept_ptr,  # uint8 [N, stride]
    excess_ptr,  # int16 [N, stride]
    digits_ptr,  # uint8 [N, room]
    told_ptr,  # int64 [N]: digits so far
    group_told_ptr,  # int32 [N]: digits of this group
    stride,
    room,
    LANES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    lanes = tl.load(lanes_ptr + n)
    # Of a stream that is wrong already, zeros may be all that there is: none of them has a digit.
    count = tl.where(tl.load(status_ptr + n) == 0, tl.load(count_ptr + n), 0)
    position = tl.load(position_ptr + n)
    next_word = tl.load(next_ptr + n)
    end = tl.load(end_ptr + n)
    told = tl.load(told_ptr + n)
    before = told
    base = n * stride + tl.load(begin_ptr + n)
    lane = tl.arange(0, LANES)
    x = tl.load(states_ptr + n * 64 + lane, mask=lane < lanes, other=1 << 32)
    edges = tl.load(cdf_ptr + tl.arange(0, 256))
    turn = tl.zeros_like(count)
    going = tl.zeros_like(count) + 1
    while (going > 0) & (turn < MOST_DIGITS) & (next_word <= end) & (told < room):
        going = tl.zeros_like(count)
        block = tl.zeros_like(count)
        while block < count:
            j = block + tl.arange(0, BLOCK_SIZE)
            symbol = tl.load(kept_ptr + base + j, mask=j < count, other=1)
            excess = tl.load(excess_ptr + base + j, mask=j < count, other=1).to(tl.int32)
            # Those whose digits have all been 255 so far.
            todo = (((symbol == 0) | (symbol == 255)) & (excess == 255 * turn)).to(tl.int32)
            waiting = tl.sum(todo, axis=0)
            while (waiting > 0) & (next_word <= end) & (told < room):
                mine = lane == (position % lanes).to(tl.int32)
                state = tl.sum(tl.where(mine, x, 0), axis=0)
                slot = (state & SLOT).to(tl.int32)
                below = edges <= slot
                digit = tl.sum(below.to(tl.int32), axis=0) - 1
                start = tl.max(tl.where(below, edges, 0), axis=0)
                stop = tl.min(tl.where(below, ONE, edges), axis=0)
                state = (stop - start).to(tl.int64) * (state >> 20) + (slot - start).to(tl.int64)
                # One word and a second one, where they are needed; all lanes are alike, which takes no scalar masks.
                for _ in tl.static_range(2):
                    needed = state < LOW
                    place = next_word + tl.zeros((LANES,), tl.int64)
                    known = (place < end) & (needed.to(tl.int32) + tl.zeros((LANES,), tl.int32) > 0)
                    word = tl.max(tl.load(words_ptr + place, mask=known, other=0).to(tl.int64) & 65535, axis=0)
                    state = tl.where(needed, (state << 16) | word, state)
                    next_word += needed.to(tl.int64)
                x = tl.where(mine, state, x)
                tl.store(digits_ptr + n * room + told, digit.to(tl.uint8))
                here = tl.min(tl.where(todo > 0, j, 1 << 30), axis=0)
                excess += tl.where(j == here, digit, 0)
                todo = tl.where(j == here, 0, todo)
                going += (digit == 255).to(tl.int32)
                told += 1
                position += 1
                waiting -= 1
            tl.store(excess_ptr + base + j, excess.to(tl.int16), mask=j < count)
            block += BLOCK_SIZE
        tl.debug_barrier()  # what is read again
        turn += 1
    tl.store(states_ptr + n * 64 + lane, x, mask=lane < lanes)
    tl.store(next_ptr + n, next_word)
    tl.store(position_ptr + n, position)
    tl.store(told_ptr + n, told)
    tl.store(group_told_ptr + n, (told - before).to(tl.int32))
    if going > 0:
        tl.store(status_ptr + n, BAD_LATENT)
    if next_word > end:
        tl.store(status_ptr + n, TRUNCATED)


def escapes_fwd(
    words: Tensor,
    next_word: Tensor,
    end: Tensor,
    states: Tensor,
    position: Tensor,
    lanes: Tensor,
    status: Tensor,
    count: Tensor,
    begin: Tensor,
    cdf: Tensor,
    kept: Tensor,
    excess: Tensor,
    digits: Tensor,
    told: Tensor,
    group_told: Tensor,
    most_lanes: int,
) -> None:
    """Decode the digits that follow a group: one for every symbol 0 or 255, in order, then for those whose was 255.

    They are decoded one by one, since there are hardly any.

    Args:
        words, next_word, end, states, position, lanes, status, most_lanes: see `rans.rans_decode_fwd`; status gets
            BAD_LATENT where there are more digits than any encoder writes.
        count: int32 [N], symbols of the group; begin: see the module.
        cdf: int32 [256], C(0), ..., C(255) of a digit.
        kept: uint8 [N, T], symbols; excess: int16 [N, T], zeros in the group, get the sums of the digits.
        digits: uint8 [N, room], all digits of a stream; told: int64 [N], how many so far, moves on.
        group_told: int32 [N], how many of this group.
    """
    N = states.shape[0]
    block = block_size(kept.device, 1024, int(kept.shape[1]))
    _escapes_fwd_kernel[(N,)](
        words, next_word, end, states, position, lanes, status, count, begin, cdf, kept, excess, digits, told,
        group_told, kept.stride(0), digits.shape[1],
        LANES=most_lanes, BLOCK_SIZE=block, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["blocks", "first", "place_stride", "H", "W", "rows", "columns", "stride"])
def _place_fwd_kernel(
    kept_ptr,  # uint8 [N, stride]
    start_ptr,  # int16 [N, stride], or [M] without HAS_START
    excess_ptr,  # int16 [N, stride]
    places_ptr,  # int32 [N, T, 2]
    count_ptr,  # int32 [N]
    used_ptr,  # int32 [N]
    begin_ptr,  # int64 [N]
    shift_ptr,  # int32 [M]
    latents_ptr,  # int16 [N, M, rows, columns]
    taps_ptr,  # int8 [N, H, W, M], only with HAS_TAPS
    status_ptr,  # int32 [N]
    blocks,
    first,
    place_stride,
    H,
    W,
    rows,
    columns,
    M,
    stride,
    FRACTION: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_TAPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    n = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = j < tl.load(count_ptr + n)
    used = tl.maximum(tl.load(used_ptr + n), 1)
    p = j // used
    channel = j % used
    at = n * stride + tl.load(begin_ptr + n) + j
    symbol = tl.load(kept_ptr + at, mask=mask, other=128).to(tl.int32)
    excess = tl.load(excess_ptr + at, mask=mask, other=0).to(tl.int32)
    if HAS_START:
        k = tl.load(start_ptr + at, mask=mask, other=0).to(tl.int32)
    else:
        k = tl.load(start_ptr + channel, mask=mask, other=0).to(tl.int32)
    y = k + ((symbol - 128 + tl.where(symbol == 0, -excess, excess)) << FRACTION)
    bad = mask & ((y < -32768) | (y > 32767))
    if tl.max(bad.to(tl.int32), axis=0) > 0:
        tl.store(status_ptr + n, BAD_LATENT)
    place = places_ptr + n * place_stride + 2 * (first + p)
    row = tl.load(place, mask=mask, other=0)
    column = tl.load(place + 1, mask=mask, other=0)
    to = ((n * M + channel) * rows + row) * columns + column
    tl.store(latents_ptr + to, y.to(tl.int16), mask=mask)
    if HAS_TAPS:
        shift = tl.load(shift_ptr + channel, mask=mask, other=0)
        value = tl.minimum(tl.maximum((y + ((1 << shift) >> 1)) >> shift, -128), 127)
        to = ((n * H + row + 2) * W + column + 2) * M + channel
        tl.store(taps_ptr + to, value.to(tl.int8), mask=mask)


def place_fwd(
    kept: Tensor,
    start: Tensor,
    excess: Tensor,
    places: Tensor,
    count: Tensor,
    used: Tensor,
    begin: Tensor,
    shift: Tensor,
    latents: Tensor,
    taps: Tensor | None,
    status: Tensor,
    capacity: int,
    fraction: int,
    first: int,
) -> None:
    """Put the latents of a group where they belong.

    Args:
        kept: uint8 [N, T], excess: int16 [N, T]: symbols, and what lies beyond them.
        start: int16 [N, T], what they count from, or int16 [M], that of each channel.
        places, first, begin: see the module; of the whole group.
        count, used: int32 [N]; capacity: the greatest count that there can be.
        shift: int32 [M], of the taps.
        latents: int16 [N, M, rows, columns]. taps: int8 [N, rows + 2, columns + 4, M], or None.
        status: int32 [N], gets BAD_LATENT where a latent does not fit in int16.
    """
    N, M = latents.shape[:2]
    block = block_size(latents.device, 256, capacity)
    blocks = triton.cdiv(capacity, block)
    _place_fwd_kernel[(N * blocks,)](
        kept, start, excess, places, count, used, begin, shift, latents, taps if taps is not None else latents, status,
        blocks, first, places.stride(0), latents.shape[2] + 2, latents.shape[3] + 4, latents.shape[2], latents.shape[3],
        M, kept.stride(0),
        FRACTION=fraction, HAS_START=start.dim() == 2, HAS_TAPS=taps is not None, BLOCK_SIZE=block,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
