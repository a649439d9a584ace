"""What a step of P sees: the truth filled in, where it is available, and the context q (P, L2C Fig. 2).

One int8 buffer a scale, [N, R, C, channels]: [4 c values | 4 G availability | q - 128 | zeros]. A step reads it as it
lies; w3 writes q into it; `fill_fwd` adds a group once it is coded. The header's planes are in w1's bias.

Symbols live in one canvas per picture, uint8 [N, c, height, width], from which the coarser scales are read again:
position (r, c) of scale i lies at (r 2^i, c 2^i).
"""

import triton
import triton.language as tl
from torch import Tensor

from l2c.kernels import block_size
from l2c.kernels.common import coded_place


@triton.jit
def _latent(symbol, bits):
    """z = (i - 2^(b-1)) * 2^(8-b), i the lowest bits: what a damaged stream leaves behind may be any byte."""
    return ((symbol & ((1 << bits) - 1)) - (1 << (bits - 1))) << (8 - bits)


@triton.jit(
    do_not_specialize=[
        "num_cells",
        "R",
        "C",
        "coarse_rows",
        "coarse_columns",
        "canvas_n_stride",
        "canvas_c_stride",
        "canvas_row_stride",
        "scale",
    ]
)
def _start_scale_fwd_kernel(
    canvas_ptr,  # uint8 [N, c, H, W]
    extent_ptr,  # int32 [N, 2]: rows and columns of each picture's latents at this scale
    bits_ptr,  # int32 [N]
    compand_ptr,  # int8 [256]
    coarse_ptr,  # int8 [N, R', C', channels]: the buffer of the coarser scale
    buffer_ptr,  # int8 [N, R, C, channels]
    num_cells,
    R,
    C,
    coarse_rows,
    coarse_columns,
    canvas_n_stride,
    canvas_c_stride,
    canvas_row_stride,
    scale,
    c,
    G,
    q_start,
    width,
    channels,
    available,
    HAS_COARSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    cell = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    in_buffer = (cell < num_cells) & (channel < channels)
    n = cell // (R * C)
    row = cell // C % R
    column = cell % C
    height = tl.load(extent_ptr + 2 * n, mask=cell < num_cells, other=0)
    length = tl.load(extent_ptr + 2 * n + 1, mask=cell < num_cells, other=0)
    bits = tl.load(bits_ptr + n, mask=cell < num_cells, other=8)
    is_value = channel < 4 * c
    # Position of the value, 0..3; of the flags only those of position 0, the known one, are set.
    position = tl.where(is_value, channel // c, 0)
    inside = in_buffer & (2 * row + position // 2 < height) & (2 * column + position % 2 < length)
    at = (
        n.to(tl.int64) * canvas_n_stride
        + (channel % c).to(tl.int64) * canvas_c_stride
        + ((2 * row) << scale).to(tl.int64) * canvas_row_stride
        + ((2 * column) << scale)
    )
    symbol = tl.load(canvas_ptr + at, mask=is_value & inside, other=0).to(tl.int32)
    value = tl.load(compand_ptr + 128 + _latent(symbol, bits), mask=is_value & inside, other=0).to(tl.int32)
    is_flag = (channel >= 4 * c) & (channel < 4 * c + G)
    out = tl.where(is_flag & inside, available, value)
    # Outside the picture the context is zero, which is stored as -128.
    is_context = (channel >= q_start) & (channel < q_start + width)
    if HAS_COARSE:
        above = ((n * coarse_rows + row // 2) * coarse_columns + column // 2).to(tl.int64)
        context = tl.load(coarse_ptr + above * channels + channel, mask=is_context & inside, other=-128)
        out = tl.where(is_context, context.to(tl.int32), out)
    else:
        out = tl.where(is_context, -128, out)
    tl.store(buffer_ptr + cell.to(tl.int64) * channels + channel, out.to(tl.int8), mask=in_buffer)


def start_scale_fwd(
    canvas: Tensor,
    extent: Tensor,
    bits: Tensor,
    compand: Tensor,
    coarse: Tensor | None,
    buffer: Tensor,
    scale: int,
    num_groups: int,
    width: int,
    available: int,
) -> None:
    """Begin a scale: known positions, repeated over their cells, and the context of the coarser scale, up-sampled.

    Args:
        canvas: uint8 [N, c, H, W], symbols; those of coarser scales are known.
        extent: int32 [N, 2], rows and columns of each picture's latents at this scale; bits: int32 [N].
        compand: int8 [256].
        coarse: int8 [N, R', C', channels], the coarser scale's buffer; None at the coarsest: the context is zero.
        buffer: int8 [N, R, C, channels], written everywhere.
        scale, num_groups, width, available: i, G, width of q, and what says that a value is the truth.
    """
    N, R, C, channels = buffer.shape
    c = canvas.shape[1]
    cells, block_m, block_n = N * R * C, block_size(canvas.device, 16, N * R * C), 128
    _start_scale_fwd_kernel[(triton.cdiv(cells, block_m), triton.cdiv(channels, block_n))](
        canvas,
        extent,
        bits,
        compand,
        coarse if coarse is not None else buffer,
        buffer,
        cells,
        R,
        C,
        coarse.shape[1] if coarse is not None else 0,
        coarse.shape[2] if coarse is not None else 0,
        canvas.stride(0),
        canvas.stride(1),
        canvas.stride(2),
        scale,
        c,
        num_groups,
        4 * c + 4 * num_groups,
        width,
        channels,
        available,
        HAS_COARSE=coarse is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit(
    do_not_specialize=[
        "blocks",
        "S",
        "canvas_n_stride",
        "canvas_c_stride",
        "canvas_row_stride",
        "start",
        "row_step",
        "row_offset",
        "column_offset",
    ]
)
def _gather_fwd_kernel(
    canvas_ptr,  # uint8 [N, c, H, W]
    sizes_ptr,  # int32 [N, 2]
    used_ptr,  # int32 [N]
    coded_ptr,  # uint8 [N, S]
    blocks,
    S,
    canvas_n_stride,
    canvas_c_stride,
    canvas_row_stride,
    start,
    row_step,
    row_offset,
    column_offset,
    BLOCK_SIZE: tl.constexpr,
):
    n = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask, row, column, channel = coded_place(j, sizes_ptr, tl.load(used_ptr + n), n)
    at = (
        n * canvas_n_stride
        + (start + channel).to(tl.int64) * canvas_c_stride
        + (row * row_step + row_offset).to(tl.int64) * canvas_row_stride
        + column * row_step
        + column_offset
    )
    tl.store(coded_ptr + n * S + j, tl.load(canvas_ptr + at, mask=mask, other=0), mask=mask)


def gather_fwd(
    canvas: Tensor, sizes: Tensor, used: Tensor, coded: Tensor, start: int, step: int, offset: tuple[int, int]
) -> None:
    """Symbols of one group in coding order, from a canvas that is known.

    Args:
        canvas: uint8 [N, c, H, W].
        sizes: int32 [N, 2], rows and columns of the cells that are coded; used: int32 [N], channels of them.
        coded: uint8 [N, S].
        start, step, offset: the group's first channel, and where its positions lie in the canvas.
    """
    N, S = coded.shape
    block = block_size(coded.device, 256, S)
    blocks = triton.cdiv(S, block)
    _gather_fwd_kernel[(N * blocks,)](
        canvas,
        sizes,
        used,
        coded,
        blocks,
        S,
        canvas.stride(0),
        canvas.stride(1),
        canvas.stride(2),
        start,
        step,
        offset[0],
        offset[1],
        BLOCK_SIZE=block,
        num_warps=4,
        enable_fp_fusion=False,
    )


@triton.jit(
    do_not_specialize=[
        "blocks",
        "S",
        "canvas_n_stride",
        "canvas_c_stride",
        "canvas_row_stride",
        "start",
        "row_step",
        "row_offset",
        "column_offset",
        "R",
        "C",
        "size",
        "value_at",
        "flag_at",
    ]
)
def _fill_fwd_kernel(
    coded_ptr,  # uint8 [N, S]
    sizes_ptr,  # int32 [N, 2]
    used_ptr,  # int32 [N]
    bits_ptr,  # int32 [N]
    compand_ptr,  # int8 [256]
    canvas_ptr,  # uint8 [N, c, H, W]
    buffer_ptr,  # int8 [N, R, C, channels], only with HAS_BUFFER
    blocks,
    S,
    canvas_n_stride,
    canvas_c_stride,
    canvas_row_stride,
    start,
    row_step,
    row_offset,
    column_offset,
    R,
    C,
    channels,
    size,
    value_at,
    flag_at,
    available,
    HAS_BUFFER: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    n = (tl.program_id(0) // blocks).to(tl.int64)
    # Over all channels of the group, coded or not: what is not coded is level 0, and known from here on.
    j = (tl.program_id(0) % blocks) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    used = tl.load(used_ptr + n)
    bits = tl.load(bits_ptr + n)
    mask, row, column, channel = coded_place(j, sizes_ptr, size, n)
    cell = j // size
    is_coded = mask & (channel < used)
    symbol = tl.load(coded_ptr + n * S + cell * used + channel, mask=is_coded, other=0).to(tl.int32)
    symbol = tl.where(is_coded, symbol, 1 << (bits - 1))
    at = (
        n * canvas_n_stride
        + (start + channel).to(tl.int64) * canvas_c_stride
        + (row * row_step + row_offset).to(tl.int64) * canvas_row_stride
        + column * row_step
        + column_offset
    )
    tl.store(canvas_ptr + at, symbol.to(tl.uint8), mask=mask)
    if HAS_BUFFER:
        to = ((n * R + row) * C + column).to(tl.int64) * channels
        value = tl.load(compand_ptr + 128 + _latent(symbol, bits), mask=mask, other=0)
        tl.store(buffer_ptr + to + value_at + channel, value, mask=mask)
        flag = tl.zeros_like(channel) + available
        tl.store(buffer_ptr + to + flag_at, flag.to(tl.int8), mask=mask & (channel == 0))


def fill_fwd(
    coded: Tensor,
    sizes: Tensor,
    used: Tensor,
    bits: Tensor,
    compand: Tensor,
    canvas: Tensor,
    buffer: Tensor | None,
    start: int,
    size: int,
    step: int,
    offset: tuple[int, int],
    value_at: int,
    flag_at: int,
    available: int,
) -> None:
    """Put a coded group where it belongs: in the canvas, and, companded and flagged, in what the next steps see.

    Args:
        coded, sizes, used, canvas, start, step, offset: see `gather_fwd`; the group's other channels get level 0.
        bits: int32 [N]; compand: int8 [256].
        buffer: int8 [N, R, C, channels], or None for the last scale, which has no cells.
        size: channels of the group; value_at, flag_at: where its values and its flag lie in the buffer.
        available: what the flag gets.
    """
    N, S = coded.shape
    block = block_size(coded.device, 256, S)
    blocks = triton.cdiv(S, block)
    _fill_fwd_kernel[(N * blocks,)](
        coded,
        sizes,
        used,
        bits,
        compand,
        canvas,
        buffer if buffer is not None else coded,
        blocks,
        S,
        canvas.stride(0),
        canvas.stride(1),
        canvas.stride(2),
        start,
        step,
        offset[0],
        offset[1],
        buffer.shape[1] if buffer is not None else 0,
        buffer.shape[2] if buffer is not None else 0,
        buffer.shape[3] if buffer is not None else 0,
        size,
        value_at,
        flag_at,
        available,
        HAS_BUFFER=buffer is not None,
        BLOCK_SIZE=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
