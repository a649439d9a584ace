"""Exact integer convolution with requantisation: the layers of P (csrc/simd/int_conv.h is the definition).

    total = bias + sum over taps and channels of weight * x;  r = round_half_even(float32(total) * multiplier)
    activations: clamp(r + residual, 0, 255), zero outside the picture;  heads: clamp(r, -32768, 32767)

Activations are stored as int8 with 128 subtracted, so that both sides of a matrix product are signed (tensor cores
multiply int8 by int8); 128 sum w goes into the bias. Zero is -128 then, outside the picture, too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from l2c.kernels import block_size

MOST_UNROLLED = tl.constexpr(16)  # products that are written out; hundreds would take minutes to compile


@triton.jit
def round_product(total, multiplier, MOST_BITS: tl.constexpr = 16):
    """round_half_even(float32(total) * multiplier), clamped to +-2^MOST_BITS: int32, |total| < 2^31, MOST_BITS <= 23.

    float32(total), to even beyond 2^24, and the product are each rounded by the hardware; the rest is integer
    arithmetic on the product's bits, so there is nothing that a compiler could fuse with the multiplication. With m its
    24 bits and shift = 23 - exponent: (m + 2^(shift-1) - 1 + bit 0 of (m >> shift)) >> shift rounds to the nearest,
    ties to even.
    """
    product = total.to(tl.float32) * multiplier
    pattern = product.to(tl.int32, bitcast=True)
    exponent = ((pattern >> 23) & 255) - 127
    m = (pattern & 0x7FFFFF) | 0x800000
    shift = tl.minimum(tl.maximum(23 - exponent, 24 - MOST_BITS), 25)
    rounded = (m + (1 << (shift - 1)) - 1 + ((m >> shift) & 1)) >> shift
    rounded = tl.where(exponent >= MOST_BITS, 2**MOST_BITS, rounded)
    return tl.where(pattern < 0, -rounded, rounded)


@triton.jit
def add_product(acc, x_ptrs, weight_ptrs, valid):
    """acc + x weight, of a block of channels; x is zero where it is not valid."""
    a = tl.load(x_ptrs, mask=valid[:, None], other=-128)
    return tl.dot(a, tl.load(weight_ptrs), acc, out_dtype=tl.int32)


@triton.jit(do_not_specialize=["num_cells", "R", "C", "bias_stride", "cout"])
def _int_conv_fwd_kernel(
    x_ptr,  # int8 [N, R, C, x_stride]
    weight_ptr,  # int8 [KERNEL^2, CIN, cout_padded]
    bias_ptr,  # int32 [N or 1, cout]
    multiplier_ptr,  # float32 [cout]
    residual_ptr,  # int8 [N, R, C, residual_stride], only with HAS_RESIDUAL
    sizes_ptr,  # int32 [N, 2]: rows and columns of each picture
    out_ptr,  # int8 or int16 [N, R, C, out_stride]
    num_cells,
    R,
    C,
    x_stride,
    residual_stride,
    out_stride,
    bias_stride,
    cout,
    cout_padded,
    KERNEL: tl.constexpr,
    CIN: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_HEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    cell = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_buffer = cell < num_cells
    n = cell // (R * C)
    row = cell // C % R
    column = cell % C
    rows = tl.load(sizes_ptr + 2 * n, mask=in_buffer, other=0)
    columns = tl.load(sizes_ptr + 2 * n + 1, mask=in_buffer, other=0)
    inside = in_buffer & (row < rows) & (column < columns)
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for tap in tl.static_range(KERNEL * KERNEL):
        dy = tap // KERNEL - KERNEL // 2
        dx = tap % KERNEL - KERNEL // 2
        valid = in_buffer & (row + dy >= 0) & (row + dy < R) & (column + dx >= 0) & (column + dx < C)
        # int64: a batch of large tiles can have more than 2^31 activations.
        source = (cell + dy * C + dx).to(tl.int64)[:, None] * x_stride
        x_ptrs = x_ptr + source + offs_k[None, :]
        weight_ptrs = weight_ptr + (tap * CIN + offs_k)[:, None] * cout_padded + channel[None, :]
        if KERNEL * KERNEL * CIN <= MOST_UNROLLED * BLOCK_K:
            for k in tl.static_range(0, CIN, BLOCK_K):
                acc = add_product(acc, x_ptrs + k, weight_ptrs + k * cout_padded, valid)
        else:
            for k in range(0, CIN, BLOCK_K):
                acc = add_product(acc, x_ptrs + k, weight_ptrs + k * cout_padded, valid)
    known = channel < cout
    bias = tl.load(
        bias_ptr + n[:, None] * bias_stride + channel[None, :], mask=in_buffer[:, None] & known[None, :], other=0
    )
    multiplier = tl.load(multiplier_ptr + channel, mask=known, other=0.0)
    r = round_product(acc + bias, multiplier[None, :])
    place = cell.to(tl.int64)[:, None]
    keep = in_buffer[:, None] & known[None, :]
    if IS_HEAD:
        r = tl.minimum(tl.maximum(r, -32768), 32767)
        tl.store(out_ptr + place * out_stride + channel[None, :], r.to(tl.int16), mask=keep)
    else:
        if HAS_RESIDUAL:
            r += 128 + tl.load(residual_ptr + place * residual_stride + channel[None, :], mask=keep, other=-128).to(
                tl.int32
            )
        r = tl.where(inside[:, None], tl.minimum(tl.maximum(r, 0), 255), 0)
        tl.store(out_ptr + place * out_stride + channel[None, :], (r - 128).to(tl.int8), mask=keep)


def int_conv_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    sizes: Tensor,
    out: Tensor,
    residual: Tensor | None = None,
) -> None:
    """Run one layer over a padded batch of pictures.

    Args:
        x: int8 [N, R, C, >= I]: activations - 128, -128 outside the pictures; the first I channels are read.
        weight: int8 [k, k, I, O'], k = 1 or 3, I a multiple of 32, O' a multiple of 64; zeros where no channel is.
        bias: int32 [O], or [N, O] for each picture; holds the 128 sum w that x lacks.
        multiplier: float32 [O].
        sizes: int32 [N, 2], rows and columns of each picture.
        out: int8 [N, R, C, >= O] gets activations - 128; int16 [N, R, C, >= O] gets the head's integers.
        residual: int8 [N, R, C, >= O], activations - 128, or None.
    The last dimension of all images is contiguous, the others are those of a packed array of their pixels.
    """
    N, R, C = x.shape[:3]
    kernel, cin, padded = weight.shape[1], weight.shape[2], weight.shape[3]
    assert x.shape[3] >= cin, "a read past the last picture"
    cells = N * R * C
    block_k = 128 if cin % 128 == 0 else 64 if cin % 64 == 0 else 32
    # Small pictures leave most of a GPU idle: smaller blocks make more programs of them.
    block_m = 64 if cells >= 64 * 256 else 32 if cells >= 32 * 64 else 16
    block_n = 128 if padded % 128 == 0 and cells >= 32 * 64 else 64
    block_m = block_size(x.device, block_m, cells)
    grid = (triton.cdiv(cells, block_m), padded // block_n)
    _int_conv_fwd_kernel[grid](
        x,
        weight,
        bias,
        multiplier,
        residual if residual is not None else x,
        sizes,
        out,
        cells,
        R,
        C,
        x.stride(2),
        residual.stride(2) if residual is not None else 0,
        out.stride(2),
        bias.stride(0) if bias.dim() == 2 else 0,
        multiplier.shape[0],
        padded,
        KERNEL=kernel,
        CIN=cin,
        HAS_RESIDUAL=residual is not None,
        IS_HEAD=out.dtype == torch.int16,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=4,
        enable_fp_fusion=False,
    )
