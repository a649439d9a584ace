"""D in integers on a GPU: levels -> pixels; `l2c.exact` has the contract, `l2c.exact.plain` is the definition.

Read me first
- What convolutions read are cells [h + 2, w + 2] of channels, in one row of memory: a picture with a border of one cell
  that holds the layer's zero points. A tap is then the same distance for every cell; no load has a mask. A program
  computes a block of cells, border included, and puts zero points where the border is.
- Bytes are stored as int8 with 128 subtracted (tensor cores multiply int8 by int8); 128 sum w is in the bias.
- Weights lie as [tap, output, input]: Hopper's int8 products want both factors with the summed channels contiguous.
- Channels are padded to whole blocks. Weights are zero there, and activations whatever the memory held.
- A table that may differ by place comes as `Told`; where it does not, every cell reads its first row. So there is one
  form of each kernel, and those that give a known answer when a model is loaded are those that decode.
- Each rounding is `int_conv.round_product`, on the bits of one float32 product: nothing can be fused to it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from l2c.kernels import block_size
from l2c.kernels.int_conv import round_product

# As in l2c/exact/weights.py.
_STREAM_BITS, _REST_BITS, _FACTOR_STEP_BITS, _PIXEL_BITS, _DETAIL_BITS = 6, 3, 7, 13, 6
CLAMP_BITS = tl.constexpr(21)
STREAM_BITS = tl.constexpr(_STREAM_BITS)
STREAM_HALF = tl.constexpr(1 << (_STREAM_BITS - 1))  # for rounding
REST_SHIFT = tl.constexpr(_STREAM_BITS - _REST_BITS)
REST_HALF = tl.constexpr(1 << (_STREAM_BITS - _REST_BITS - 1))
REST_ZERO = tl.constexpr(128)
FACTOR_STEP_BITS = tl.constexpr(_FACTOR_STEP_BITS)
FACTOR_REST = tl.constexpr((1 << _FACTOR_STEP_BITS) - 1)
PIXEL_BITS = tl.constexpr(_PIXEL_BITS)
DETAIL_SHIFT = tl.constexpr(_PIXEL_BITS - _DETAIL_BITS)
MIDDLE = tl.constexpr((255 << (_PIXEL_BITS - 1)) + (1 << (_PIXEL_BITS - 1)))  # 127.5, and half a level for the rounding

CHANNEL_BLOCK = 32  # channels are padded to multiples of it: the least that a product of bytes adds up
CELL_BLOCK = 64  # cells of a program


class Told(NamedTuple):
    """Values that may differ by place.

    Attributes:
        table: [values, ...]. where: int32 [h, w], which of them holds at each latent; any int32 where `stride` is 0.
        stride: elements between two values; 0: the first holds everywhere.
    """

    table: Tensor
    where: Tensor
    stride: int


def padded(channels: int) -> int:
    """So many channels, in whole blocks."""
    return triton.cdiv(channels, CHANNEL_BLOCK) * CHANNEL_BLOCK


def cells(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Uninitialised cells of a picture, int8 [(height + 2) (width + 2), channels], between what blocks and taps reach.

    Args:
        channels: padded.
    """
    count, reach = (height + 2) * (width + 2), width + 3
    behind = reach + block_size(device, CELL_BLOCK, count)
    memory = torch.empty((reach + count + behind, channels), dtype=torch.int8, device=device)
    return memory[reach : reach + count]


@triton.jit
def _place(cell, height, width):
    """Row and column of cells, from -1 on, and whether they are inside the border."""
    row = cell // (width + 2) - 1
    column = cell % (width + 2) - 1
    return row, column, (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def _which(map_ptr, stride, row, column, columns, inside):
    """The value of a `Told` that holds at latents of a map with so many columns."""
    offs = row.to(tl.int64) * columns + column
    return tl.load(map_ptr + offs, mask=inside & (row * 0 + stride != 0), other=0)


@triton.jit
def _told(ptr, stride, which, channel):
    """Entries [cells, channels] of a `Told`'s table [values, channels]."""
    return tl.load(ptr + which[:, None] * stride + channel[None, :])


@triton.jit
def _clamp(value, least, most):
    return tl.minimum(tl.maximum(value, least), most)


@triton.jit(do_not_specialize=["height", "width"])
def _exact_input_kernel(
    levels_ptr,  # uint8 [C, height, width]
    table_ptr,  # int8 [values, 2 C, 256]
    map_ptr,  # int32 [height, width]
    zero_ptr,  # int32 [2 C]
    out_ptr,  # int8 [cells, OUT]
    height,
    width,
    stride,  # of the table's values
    C: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # out[cell, i] = table[value of the place, i, level of channel i % C]
    blocks: tl.constexpr = (2 * C + BLOCK_C - 1) // BLOCK_C
    cell = (tl.program_id(0) // blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row, column, inside = _place(cell, height, width)
    which = _which(map_ptr, stride, row, column, width, inside)
    known = channel < 2 * C
    there = inside[:, None] & known[None, :]
    plane = height.to(tl.int64) * width  # int64: latents times channels can exceed 2^31
    offs = (channel % C)[None, :] * plane + (row.to(tl.int64) * width + column)[:, None]
    level = tl.load(levels_ptr + offs, mask=there, other=0).to(tl.int32)
    byte = tl.load(table_ptr + which[:, None] * stride + channel[None, :] * 256 + level, mask=there, other=0)
    zero = tl.load(zero_ptr + channel, mask=known, other=0)
    byte = tl.where(inside[:, None], byte.to(tl.int32), zero[None, :] - 128)
    to = cell.to(tl.int64)[:, None] * OUT + channel[None, :]
    tl.store(out_ptr + to, byte.to(tl.int8), mask=(cell < (height + 2) * (width + 2))[:, None] & known[None, :])


@triton.jit
def _byte_of(value, zero):
    """A place of a residual stream as an input of a layer: 0..255."""
    return _clamp(((value + STREAM_HALF) >> STREAM_BITS) + zero, 0, 255)


@triton.jit
def _rest_of(value, byte, zero):
    """What the byte leaves of it, as a second byte."""
    rest = value - ((byte - zero) << STREAM_BITS)
    return _clamp(((rest + REST_HALF) >> REST_SHIFT) + REST_ZERO, 0, 255)


@triton.jit(do_not_specialize=["height", "width"])
def _exact_conv_kernel(
    x_ptr,  # int8 [cells, INPUTS]
    weight_ptr,  # int8 [KERNEL^2, OUTPUTS, INPUTS]
    bias_ptr,  # int32 [values, OUTPUTS]
    bias_map_ptr,  # int32 [h, w] of the latents
    above_ptr,  # float32 [OUTPUTS], multipliers, not for "words"
    below_ptr,  # float32 [OUTPUTS], for "stream" and "bytes": those of sums below zero
    told_ptr,  # float32 [values, OUTPUTS], scales for "residual", multipliers for "words"
    told_map_ptr,  # int32 [h, w]
    zero_ptr,  # int32 [reader's channels], not for "words"
    stream_ptr,  # int16 [cells, CHANNELS], not for "bytes"
    out_ptr,  # int8 [cells, OUT], not for "words"
    height,
    width,
    bias_stride,
    told_stride,
    EPILOGUE: tl.constexpr,
    KERNEL: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PART: tl.constexpr,
    OUT: tl.constexpr,
    FINENESS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # sum = bias + sum over taps and channels of weight * x
    # "stream": round(LeakyReLU(sum * multiplier)) -> stream, bytes. With PART, places of the shuffled, finer picture.
    # "bytes": round(LeakyReLU(sum * multiplier)) + zero -> bytes
    # "residual": round((stream + round(sum * multiplier)) * scale) -> stream, bytes
    # "words": round(sum * multiplier) -> stream
    first = (tl.program_id(0) // (OUTPUTS // BLOCK_N)) * BLOCK_M
    n = (tl.program_id(0) % (OUTPUTS // BLOCK_N)) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.arange(0, BLOCK_M)
    offs_k = tl.arange(0, BLOCK_K)
    chunks: tl.constexpr = INPUTS // BLOCK_K
    x_ptrs = x_ptr + first.to(tl.int64) * INPUTS + (offs_m[:, None] * INPUTS + offs_k[None, :])
    weight_ptrs = weight_ptr + n[None, :] * INPUTS + offs_k[:, None]
    row_bytes = (width + 2) * INPUTS
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for step in range(KERNEL * KERNEL * chunks):
        tap = step // chunks
        k = step % chunks * BLOCK_K
        away = (tap // KERNEL - KERNEL // 2) * row_bytes + ((tap % KERNEL - KERNEL // 2) * INPUTS + k)
        a = tl.load(x_ptrs + away)
        acc = tl.dot(a, tl.load(weight_ptrs + (tap * (OUTPUTS * INPUTS) + k)), acc, out_dtype=tl.int32)

    row, column, inside = _place(first + offs_m, height, width)
    columns = width // FINENESS
    row_of_map = row // FINENESS
    column_of_map = column // FINENESS
    biased = _which(bias_map_ptr, bias_stride, row_of_map, column_of_map, columns, inside)
    total = acc + _told(bias_ptr, bias_stride, biased, n)
    if EPILOGUE == "words" or EPILOGUE == "residual":
        which = _which(told_map_ptr, told_stride, row_of_map, column_of_map, columns, inside)
    if EPILOGUE == "words":
        value = round_product(total, _told(told_ptr, told_stride, which, n), CLAMP_BITS)
    else:
        multiplier = tl.load(above_ptr + n)[None, :]
        if EPILOGUE != "residual":
            multiplier = tl.where(total < 0, tl.load(below_ptr + n)[None, :], multiplier)
        value = round_product(total, multiplier, CLAMP_BITS)

    if PART > 0:  # outputs lie as [4, PART]: a group of channels for each of four neighbours
        channel = n % PART
        part = n // PART
        row = 2 * row[:, None] + (part // 2)[None, :]
        column = 2 * column[:, None] + (part % 2)[None, :]
        height = 2 * height
        width = 2 * width
        place = (row + 1).to(tl.int64) * (width + 2) + column + 1
        stream_ptrs = stream_ptr + place * CHANNELS + channel[None, :]
        out_ptrs = out_ptr + place * OUT + channel[None, :]
    else:  # offsets of a block lie in registers as constants
        channel = n
        row = row[:, None]
        column = column[:, None]
        stream_ptrs = stream_ptr + first.to(tl.int64) * CHANNELS + (offs_m[:, None] * CHANNELS + channel[None, :])
        out_ptrs = out_ptr + first.to(tl.int64) * OUT + (offs_m[:, None] * OUT + channel[None, :])
    known = (channel < CHANNELS)[None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    keep = inside & known
    if EPILOGUE == "words":
        tl.store(stream_ptrs, _clamp(value, -32768, 32767).to(tl.int16), mask=keep)
    else:
        zero = tl.load(zero_ptr + channel, mask=channel < CHANNELS, other=0)[None, :]
        if EPILOGUE == "bytes":
            byte = _clamp(value + zero, 0, 255)
        else:
            if EPILOGUE == "residual":
                value += tl.load(stream_ptrs, mask=keep, other=0).to(tl.int32)  # below 2^24
                value = _clamp(round_product(value, _told(told_ptr, told_stride, which, n), CLAMP_BITS), -32768, 32767)
            else:
                value = _clamp(value, -32767, 32767)
            tl.store(stream_ptrs, value.to(tl.int16), mask=keep)
            byte = _byte_of(value, zero)
        there = (row >= -1) & (row <= height) & (column >= -1) & (column <= width) & known
        tl.store(out_ptrs, (tl.where(inside, byte, zero) - 128).to(tl.int8), mask=there)
        if SPLIT:
            rest = _rest_of(value, byte, zero)
            zero = tl.load(zero_ptr + CHANNELS + channel, mask=channel < CHANNELS, other=0)[None, :]
            tl.store(out_ptrs + CHANNELS, (tl.where(inside, rest, zero) - 128).to(tl.int8), mask=there)


@triton.jit(do_not_specialize=["height", "width", "stride"])
def _exact_coefficients_kernel(
    words_ptr,  # int16 [cells, WORDS]: of the head, then arguments of the local gains
    levels_ptr,  # uint8 [C, height, width]
    level_ptr,  # int32 [C, 256]
    factor_ptr,  # int32 [values, C, ENTRIES]
    unit_ptr,  # float32 [values, C]
    map_ptr,  # int32 [height, width]
    out_ptr,  # int8 [cells, 2 DEPTH]: high bytes, then low ones - 128
    height,
    width,
    stride,  # 0: one value holds everywhere
    WORDS: tl.constexpr,
    DIMS: tl.constexpr,
    DEPTH: tl.constexpr,
    C: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # clamp(head + round(level * (factor * unit))), the factor interpolated between entries
    blocks: tl.constexpr = (DIMS + BLOCK_C - 1) // BLOCK_C
    cell = (tl.program_id(0) // blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    row, column, inside = _place(cell, height, width)
    keep = inside[:, None] & (channel < DIMS)[None, :]
    words = cell.to(tl.int64)[:, None] * WORDS + channel[None, :]
    value = tl.load(words_ptr + words, mask=keep, other=0).to(tl.int32)

    latent = inside[:, None] & (channel < C)[None, :]
    plane = height.to(tl.int64) * width
    offs = channel[None, :] * plane + (row.to(tl.int64) * width + column)[:, None]
    index = tl.load(levels_ptr + offs, mask=latent, other=0).to(tl.int32)
    level = tl.load(level_ptr + channel[None, :] * 256 + index, mask=latent, other=0)
    which = _which(map_ptr, stride, row, column, width, inside)
    table = which[:, None] * C + channel[None, :]
    unit = tl.load(unit_ptr + table, mask=latent, other=0.0)
    if WORDS > DIMS:
        local = tl.load(words_ptr + words + DIMS, mask=latent, other=0).to(tl.int32) + 32768
        factors = factor_ptr + table.to(tl.int64) * ENTRIES + (local >> FACTOR_STEP_BITS)
        factor = tl.load(factors, mask=latent, other=0)
        rest = local & FACTOR_REST
        factor += ((tl.load(factors + 1, mask=latent, other=0) - factor) * rest) >> FACTOR_STEP_BITS
    else:
        factor = tl.load(factor_ptr + table.to(tl.int64) * ENTRIES, mask=latent, other=0)
    # `unit` is a power of two, so that the inner product is exact.
    value = _clamp(value + round_product(level, factor.to(tl.float32) * unit, CLAMP_BITS), -32768, 32767)
    to = out_ptr + cell.to(tl.int64)[:, None] * (2 * DEPTH) + channel[None, :]
    tl.store(to, (value >> 8).to(tl.int8), mask=keep)
    tl.store(to + DEPTH, ((value & 255) - 128).to(tl.int8), mask=keep)


@triton.jit(do_not_specialize=["height", "width"])
def _exact_pixels_kernel(
    x_ptr,  # int8 [cells, 2 DEPTH], of `_exact_coefficients_kernel`
    digit_ptr,  # int8 [3, OUTPUTS, DEPTH]
    high_ptr,  # int32 [OUTPUTS]
    low_ptr,  # int32 [OUTPUTS]
    detail_ptr,  # int16 [finer cells, 3 (S / 2)^2]
    out_ptr,  # uint8 [S height, S width, 3]
    height,
    width,
    S: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    HAS_DETAIL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # pixel = clamp((((sum over channels of entry * x + 2^8) >> 9) + detail + 127.5 + 1/2) >> 13)
    #
    # The sum has 41 bits. In bytes, entry = d2 2^16 + d1 2^8 + d0 and x = high 2^8 + low + 128:
    #     sum = a3 2^24 + a2 2^16 + a1 2^8 + a0 + 128 sum of entries,    128 sum of entries + 2^8 = high 2^8 + low,
    # so what is wanted is (a3 << 15) + (a2 << 7) + ((a1 + high + ((a0 + low) >> 8)) >> 1), all of it int32; the first
    # shift may wrap, the result does not (`ExactWeights.check`).
    first = (tl.program_id(0) // (OUTPUTS // BLOCK_N)) * BLOCK_M
    n = (tl.program_id(0) % (OUTPUTS // BLOCK_N)) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.arange(0, BLOCK_M)
    offs_k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + first.to(tl.int64) * (2 * DEPTH) + (offs_m[:, None] * (2 * DEPTH) + offs_k[None, :])
    digit_ptrs = digit_ptr + n[None, :] * DEPTH + offs_k[:, None]
    a0 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    a1 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    a2 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    a3 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for k in range(0, DEPTH, BLOCK_K):
        high = tl.load(x_ptrs + k)
        low = tl.load(x_ptrs + DEPTH + k)
        d0 = tl.load(digit_ptrs + k)
        d1 = tl.load(digit_ptrs + OUTPUTS * DEPTH + k)
        d2 = tl.load(digit_ptrs + 2 * OUTPUTS * DEPTH + k)
        a0 = tl.dot(low, d0, a0, out_dtype=tl.int32)
        a1 = tl.dot(high, d0, a1, out_dtype=tl.int32)
        a1 = tl.dot(low, d1, a1, out_dtype=tl.int32)
        a2 = tl.dot(high, d1, a2, out_dtype=tl.int32)
        a2 = tl.dot(low, d2, a2, out_dtype=tl.int32)
        a3 = tl.dot(high, d2, a3, out_dtype=tl.int32)
    carry = (a0 + tl.load(low_ptr + n)[None, :]) >> 8
    value = (a3 << 15) + (a2 << 7) + ((a1 + tl.load(high_ptr + n)[None, :] + carry) >> 1)

    row, column, inside = _place(first + offs_m, height, width)
    keep = inside[:, None] & (n < 3 * S * S)[None, :]
    dy = n // (3 * S)  # outputs lie as [S, S, 3], like pixels
    if HAS_DETAIL:
        half: tl.constexpr = S // 2
        dx = n // 3 % S
        fine_row = 2 * row[:, None] + (dy // half + 1)[None, :]
        fine_column = 2 * column[:, None] + (dx // half + 1)[None, :]
        entry = ((dy % half) * half + dx % half) * 3 + n % 3
        offs = (fine_row.to(tl.int64) * (2 * width + 2) + fine_column) * (3 * half * half) + entry[None, :]
        detail = tl.load(detail_ptr + offs, mask=keep, other=0).to(tl.int32)
        value += detail << DETAIL_SHIFT
    value = _clamp((value + MIDDLE) >> PIXEL_BITS, 0, 255)
    line = (row * S).to(tl.int64)[:, None] + dy[None, :]
    to = line * (width * (3 * S)) + (column * (3 * S))[:, None] + (n % (3 * S))[None, :]
    tl.store(out_ptr + to, value.to(tl.uint8), mask=keep)


def _block(device: torch.device, size: int, channels: int) -> int:
    """The largest power of two that divides so many channels, at most `block_size` of a size."""
    return min(block_size(device, size, channels), channels & -channels)


def exact_input_fwd(levels: Tensor, table: Told, zero: Tensor, out: Tensor) -> None:
    """Latents as bytes of the first layer.

    Args:
        levels: uint8 [c, h, w], latents + 128. table: int8 [values, 2 c, 256], bytes - 128.
        zero: int32 [2 c]. out: `cells` of 2 c channels, padded.
    """
    c, height, width = levels.shape
    count = (height + 2) * (width + 2)
    block_m, block_c = block_size(levels.device, CELL_BLOCK, count), block_size(levels.device, 32, 2 * c)
    _exact_input_kernel[(triton.cdiv(count, block_m) * triton.cdiv(2 * c, block_c),)](
        levels, table.table, table.where, zero, out, height, width, table.stride,
        C=c, OUT=out.shape[1], BLOCK_M=block_m, BLOCK_C=block_c, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def exact_conv_fwd(
    epilogue: str,
    x: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    fineness: int,
    bias: Told,
    above: Tensor,
    *,
    below: Tensor | None = None,
    told: Told | None = None,
    zero: Tensor | None = None,
    stream: Tensor | None = None,
    out: Tensor | None = None,
    channels: int,
    part: int = 0,
    split: bool = False,
) -> None:
    """A layer and what follows it; see the kernel for the epilogues and what each of them takes.

    Args:
        x: `cells` of I channels. weight: int8 [k^2, O, I], k = 1 or 3; both padded.
        size: height and width of x inside the border. fineness: cells per latent, each way.
        bias: int32 [values, O], with the 128 sum w that x lacks.
        above: float32 [O], multipliers. below: float32 [O], below zero.
        told: float32 [values, O], scales for "residual", multipliers for "words".
        zero: int32, at least `channels`: zero points of the layer that reads `out`.
        stream: int16 [cells, channels]. out: `cells` of the channels that the reader has.
        channels: outputs, of each of four parts where there are such.
        part: outputs are [4, part], part >= channels: those of four neighbours, and stream and out are as fine.
        split: second bytes go to `out` as well, behind the first ones.
    """
    height, width = size
    count = (height + 2) * (width + 2)
    taps, outputs, inputs = weight.shape
    block_m, block_n = block_size(x.device, CELL_BLOCK, count), _block(x.device, 64, outputs)
    told, spare = Told(above, bias.where, 0) if told is None else told, x
    _exact_conv_kernel[(triton.cdiv(count, block_m) * (outputs // block_n),)](
        x, weight, bias.table, bias.where, above, spare if below is None else below, told.table, told.where,
        spare if zero is None else zero, spare if stream is None else stream, spare if out is None else out,
        height, width, bias.stride, told.stride,
        EPILOGUE=epilogue, KERNEL=3 if taps == 9 else 1, INPUTS=inputs, OUTPUTS=outputs, CHANNELS=channels, PART=part,
        OUT=0 if out is None else out.shape[1], FINENESS=fineness, SPLIT=split,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=_block(x.device, 64, inputs),
        num_warps=4, num_stages=4, enable_fp_fusion=False,
    )  # fmt: skip


def exact_coefficients_fwd(
    words: Tensor, dims: int, levels: Tensor, level: Tensor, factor: Told, unit: Tensor, out: Tensor
) -> None:
    """Dequantised latents are added to the head's integers.

    Args:
        words: int16 [cells, dims = 3 s^2], or with c arguments of the local gains behind them.
        levels: uint8 [c, h, w]. level: int32 [c, 256]. factor: int32 [values, c, entries]. unit: float32 [values, c].
        out: `cells` of the coefficients in bytes: 3 s^2 high ones, padded, and as many low ones - 128.
    """
    c, height, width = levels.shape
    count, depth = (height + 2) * (width + 2), out.shape[1] // 2
    block_m, block_c = block_size(levels.device, CELL_BLOCK, count), block_size(levels.device, 32, dims)
    _exact_coefficients_kernel[(triton.cdiv(count, block_m) * triton.cdiv(dims, block_c),)](
        words, levels, level, factor.table, unit, factor.where, out, height, width, factor.stride,
        WORDS=words.shape[1], DIMS=dims, DEPTH=depth, C=c, ENTRIES=factor.table.shape[2],
        BLOCK_M=block_m, BLOCK_C=block_c, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def exact_pixels_fwd(
    x: Tensor, digits: Tensor, high: Tensor, low: Tensor, detail: Tensor | None, out: Tensor, s: int
) -> None:
    """The inverse block transform, fine details, and the last rounding.

    Args:
        x: of `exact_coefficients_fwd`.
        digits: int8 [3, O, I], 3 s^2 both ways, padded: entries of the transform, outputs in the order [s, s, 3].
        high, low: int32 [O], see the kernel.
        detail: int16 [cells of twice the height and width, 3 (s / 2)^2], outputs in the order [s / 2, s / 2, 3].
        out: uint8 [s h, s w, 3].
    """
    height, width = out.shape[0] // s, out.shape[1] // s
    count = (height + 2) * (width + 2)
    _, outputs, depth = digits.shape
    block_m, block_n = block_size(x.device, CELL_BLOCK, count), _block(x.device, 64, outputs)
    _exact_pixels_kernel[(triton.cdiv(count, block_m) * (outputs // block_n),)](
        x, digits, high, low, x if detail is None else detail, out, height, width,
        S=s, OUTPUTS=outputs, DEPTH=depth, HAS_DETAIL=detail is not None,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=_block(x.device, 64, depth),
        num_warps=8, num_stages=3, enable_fp_fusion=False,
    )  # fmt: skip
