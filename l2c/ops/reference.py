"""Every fast operator again, written for reading. The tests compare with these.

What decides a probability is plain Python and int64 numpy; what reaches pixels, gradients and rate estimates is plain
PyTorch, which is also what runs where there is nothing faster.
"""

from __future__ import annotations

import bisect
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.ops.contract import (
    CDF_ONE,
    GAUSSIAN_DISTANCE,
    GAUSSIAN_INV_SCALES,
    GAUSSIAN_WEIGHTS,
    HEAD_MEAN_BITS,
    INV_SCALE_MAX,
    LOG2_INV_SCALE_LEAST,
    LOG2_INV_SCALE_MOST,
    SIGMA_LEAST,
    SIGMA_MOST,
    TAIL_A,
    TAIL_B,
    TAIL_C,
    WEIGHT_SUM,
    Grid,
    IntegerLayer,
    IntegerStep,
)

Int64Array = npt.NDArray[np.int64]


def requantise(total: Int64Array, multiplier: npt.NDArray[np.float32]) -> Int64Array:
    """round_half_even(float32(total) * multiplier) in integers: two correctly rounded steps, then rounding.

    Args:
        total: int64 [O, h, w], |total| < 2^31; exact as a float32 below 2^24.
        multiplier: float32 [O], finite, normal.
    Returns:
        int64 [O, h, w].

    float32(total) keeps the 24 leading bits of |total| (ties to even). A float32 is m * 2^e with a 24-bit m. The exact
    product has at most 48 significant bits; it is rounded to its 24 leading bits, as IEEE 754 rounds, and then to a
    whole number (ties to even).
    """
    mantissa, exponent = np.frexp(multiplier.astype(np.float64))
    m = np.abs(np.ldexp(mantissa, 24).astype(np.int64))[:, None, None]
    e = (exponent - 24).astype(np.int64)[:, None, None]
    kept, drop = _leading_bits(np.abs(total))
    kept, more = _leading_bits(kept * m)
    shift = -(e + drop + more)  # the value is kept * 2^-shift
    whole = np.where(shift >= 0, _round_shift(kept, np.clip(shift, 0, 62)), kept << np.clip(-shift, 0, 30))
    return np.sign(total) * np.sign(multiplier).astype(np.int64)[:, None, None] * whole


def _leading_bits(value: Int64Array) -> tuple[Int64Array, Int64Array]:
    """value in 0..2^48 as kept * 2^drop: its 24 leading bits, ties to even."""
    length = np.zeros_like(value)
    for bit in range(49):
        length += (value >> bit) != 0
    drop = np.maximum(length - 24, 0)
    return _round_shift(value, drop), drop


def _round_shift(value: Int64Array, shift: Int64Array) -> Int64Array:
    """value / 2^shift for value >= 0, rounded to the nearest integer, ties to even."""
    down = value >> shift
    rest = value - (down << shift)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), np.int64(1) << 62)
    return down + ((rest > half) | ((rest == half) & (down % 2 == 1)))


def integer_conv(x: npt.NDArray[Any], layer: IntegerLayer) -> Int64Array:
    """One convolution with its requantisation: [I, h, w] integers -> int64 [O, h, w], not yet clamped.

    out = round_half_even(float32(bias + sum w x) * multiplier), zeros outside the picture
    """
    weight = layer.weight.astype(np.int64)
    radius = weight.shape[2] // 2
    padded = np.pad(x.astype(np.int64), ((0, 0), (radius, radius), (radius, radius)))
    height, width = x.shape[1:]
    total = np.zeros((weight.shape[0], height, width), dtype=np.int64)
    for dy in range(weight.shape[2]):
        for dx in range(weight.shape[3]):
            window = padded[:, dy : dy + height, dx : dx + width]
            total += np.einsum("oi,ihw->ohw", weight[:, :, dy, dx], window)
    return requantise(total + layer.bias.astype(np.int64)[:, None, None], layer.multiplier)


def integer_step(u: Int64Array, q: Int64Array, step: IntegerStep) -> tuple[Int64Array, Int64Array]:
    """A step of P in integers: u [inputs, h, w], q [width, h, w] -> (head output, q')."""
    h1 = integer_conv(np.concatenate((u, q)), step.w1).clip(0, 255)
    h2 = integer_conv(h1, step.w2).clip(0, 255)
    q = (h1 + integer_conv(h2, step.w3)).clip(0, 255)
    return integer_conv(q, step.w4).clip(-32768, 32767), q


def sigma(z: int) -> int:
    """65536 times the logistic function of z / 2^11 for an int16 z, in 1..65535; see csrc/core/mixture_cdf.h."""
    u = z if z >= 0 else -1 - z
    s, f = u // 1024, 16 * (u % 1024)
    a = TAIL_A[s] if s < len(TAIL_A) else 1
    b = TAIL_B[s] if s < len(TAIL_B) else 0
    c = TAIL_C[s] if s < len(TAIL_C) else 0
    tail = a - ((f * (b - ((f * c) >> 16))) >> 16)
    return 65536 - tail if z >= 0 else tail


def mixture_cdf(i: int, weights: list[int], means: list[int], inv_scales: list[int], bits: int) -> int:
    """C(i), 0..2^20, of one symbol with K components (DESIGN 3.4; formats: csrc/core/mixture_cdf.h).

    C(i) = (sum_k floor(w_k sigma(z_k(t_i)) / 2^16) << 4) + i S,  t_i = (2i - 1) S - 256,  S = 2^(8 - bits)
    """
    step = 1 << (8 - bits)
    if i == 0:
        return 0
    if i == 1 << bits:
        return CDF_ONE
    edge = (2 * i - 1) * step - 256  # half fine steps
    total = 0
    for w, m, v in zip(weights, means, inv_scales):
        d = min(max((edge << 6) - m, -32768), 32767)
        z = min(max((d * v) >> 5, -32768), 32767)
        total += (w * sigma(z)) >> 16
    return (total << 4) + i * step


_PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
_MASK = (1 << 64) - 1


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md)."""
    p1, p2, p3, p4, p5 = _PRIMES

    def rotate(x: int, n: int) -> int:
        return (x << n | x >> (64 - n)) & _MASK

    def mix(acc: int, word: int) -> int:
        return rotate((acc + word * p2) & _MASK, 31) * p1 & _MASK

    acc = [(p1 + p2) & _MASK, p2, 0, -p1 & _MASK]
    at = 0
    while len(data) - at >= 32:
        for i in range(4):
            acc[i] = mix(acc[i], int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little"))
        at += 32
    h = p5
    if len(data) >= 32:
        h = sum(rotate(a, n) for a, n in zip(acc, (1, 7, 12, 18))) & _MASK
        for a in acc:
            h = ((h ^ mix(0, a)) * p1 + p4) & _MASK
    h = (h + len(data)) & _MASK
    for size, n, first, second, third in ((8, 27, None, p1, p4), (4, 23, p1, p2, p3), (1, 11, p5, p1, 0)):
        while len(data) - at >= size:
            word = int.from_bytes(data[at : at + size], "little")
            h = (rotate(h ^ (mix(0, word) if first is None else word * first & _MASK), n) * second + third) & _MASK
            at += size
    h = (h ^ h >> 33) * p2 & _MASK
    h = (h ^ h >> 29) * p3 & _MASK
    return h ^ h >> 32


def rans_encode(intervals: list[tuple[int, int]], lanes: int, checksum: int) -> tuple[list[int], list[int]]:
    """Interleaved rANS of csrc/core/rans.h: (start, freq) of each symbol -> (states of the lanes, words of the stream).

    Args:
        intervals: [start, start + freq) of [0, 2^20), freq >= 1.
        lanes: 1..64, a power of two.
        checksum: of the symbols, 32 bits; lane 0 starts that far above 2^32.
    """
    states = [1 << 32] * lanes
    states[0] += checksum
    words: list[int] = []
    for j in reversed(range(len(intervals))):
        start, freq = intervals[j]
        x = states[j % lanes]
        while x >= freq << 28:
            words.append(x & 65535)
            x >>= 16
        states[j % lanes] = (x // freq << 20) + x % freq + start
    return states, words[::-1]


def rans_decode(
    states: list[int], words: list[int], lanes: int, cdfs: list[list[int]]
) -> tuple[list[int], list[int], list[int]]:
    """The way back: `cdfs` holds C(0..2^b) of each symbol -> (symbols, states at the end, words that are left).

    Raises IndexError where the words run out.
    """
    states, words = list(states), list(words)
    symbols = []
    for j, cdf in enumerate(cdfs):
        x = states[j % lanes]
        slot = x % (1 << 20)
        i = bisect.bisect_right(cdf, slot) - 1
        symbols.append(i)
        x = (cdf[i + 1] - cdf[i]) * (x >> 20) + slot - cdf[i]
        while x < 1 << 32:
            x = x << 16 | words.pop(0)
        states[j % lanes] = x
    return symbols, states, words


def mixture_params(
    raw: npt.NDArray[np.int16],
    num_mixtures: int,
    channels: int,
    exp_table: npt.NDArray[np.uint16],
    inv_table: npt.NDArray[np.uint16],
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int16], npt.NDArray[np.uint16]]:
    """Integers of the head -> weights, means, inverse scales (DESIGN 3.4).

        e_k = exp_table[max_j l_j - l_k],  w_k = floor(e_k (65536 - 16) / sum_j e_j),
        what is missing to 65536 - 16 goes to the first of the largest e_k

    Args:
        raw: int16 [cells, 3 K g]: logits [K][g] (clamped to -128..127), means [K][g], indices [K][g] (to 0..255).
        num_mixtures, channels: K, g.
        exp_table, inv_table: uint16 [256].
    Returns:
        weights uint16, means int16, inverse scales uint16, each [K, cells * g], channel innermost.
    """
    parts = raw.reshape(-1, 3, num_mixtures, channels).astype(np.int64)
    logits, means, index = (parts[:, i].transpose(1, 0, 2).reshape(num_mixtures, -1) for i in range(3))
    logits = logits.clip(-128, 127)
    e = exp_table.astype(np.int64)[logits.max(axis=0) - logits]
    weights = e * WEIGHT_SUM // e.sum(axis=0)
    first_largest = e.argmax(axis=0)
    weights[first_largest, np.arange(weights.shape[1])] += WEIGHT_SUM - weights.sum(axis=0)
    inv_scales = inv_table[index.clip(0, 255)]
    return weights.astype(np.uint16), means.astype(np.int16), inv_scales.astype(np.uint16)


def gaussian_mixture(
    scale: Int64Array, mean: Int64Array, fraction: int = 0
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int16], npt.NDArray[np.uint16], Int64Array]:
    """Integers of a hyperprior's head -> a Gaussian as a mixture of three logistics, and what symbols count from.

        k is the mean in whole numbers (fraction 0) or sixteenths (fraction 4): floor(mean 2^fraction / 64 + 1/2)
        sigma = clamp(scale, 14, 32000);  f = mean - 64 k / 2^fraction
        means 2f, 2f + d, 2f - d with d = (1033 sigma + 512) >> 10
        inverse scales floor((a + floor(sigma / 2)) / sigma), a = 153552 and 163391 (twice), in 1..32767

    Three logistics with weights .570, .215, .215, at 0 and +-1.0086 sigma, of scales .4268 and .4011 sigma cost
    0.03-0.08 % more bits than the Gaussian for sigma = 0.11..4.

    Args:
        scale: int64 [n], sigma in 1/128 latent. mean: int64 [n], in 1/64 latent, within int16.
        fraction: bits of k behind the point, 0..6.
    Returns:
        weights uint16, means int16, inverse scales uint16, [3, n] each, of latent - k / 2^fraction
        (csrc/core/mixture_cdf.h, b = 8); k int64 [n].
    """
    sigma = scale.clip(SIGMA_LEAST, SIGMA_MOST)
    dropped = HEAD_MEAN_BITS - fraction
    k = (mean + ((1 << dropped) >> 1)) >> dropped
    centre, distance = 2 * (mean - (k << dropped)), (GAUSSIAN_DISTANCE * sigma + 512) >> 10
    weights = np.repeat(np.array(GAUSSIAN_WEIGHTS, dtype=np.uint16)[:, None], len(sigma), axis=1)
    means = np.stack((centre, centre + distance, centre - distance)).astype(np.int16)
    middle, outer = (((a + (sigma >> 1)) // sigma).clip(1, INV_SCALE_MAX) for a in GAUSSIAN_INV_SCALES)
    return weights, means, np.stack((middle, outer, outer)).astype(np.uint16), k


def split_params(params: Tensor, num_mixtures: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, 3 K g, h, w] -> logits, means, log2 inverse scales, each [N, K, g, h, w]."""
    n, channels, h, w = params.shape
    logits, means, log2_inv = params.view(n, 3, num_mixtures, channels // (3 * num_mixtures), h, w).unbind(dim=1)
    return logits, means, log2_inv


def mixture_likelihood(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> Tensor:
    """Probability of each latent under its mixture of logistics (Salimans et al. 2017, as L2C III-B uses it).

        P(x) = sum_k w_k [sigma((x + S/2 - mu_k) v_k) - sigma((x - S/2 - mu_k) v_k)],  S = 2^(8-b)

    with the lowest level's lower edge at -infinity and the highest level's upper edge at +infinity, mixed with the
    floor that the integer CDF has: each symbol gets S/2^20, the mixture (65536-16)/65536 of the rest.

    Args:
        x: float32 [N, g, h, w], latents.
        params: float32 [N, 3 K g, h, w] or [N, 3 K g, 1, 1]: logits in nats, means in latents, log2 inverse scales per
            latent (clamped to what the integer model can say), each [K][g].
        num_mixtures: K.
        b: int64 [N], bits.
    Returns:
        float32 [N, g, h, w], in [S/2^20, 1].
    """
    logits, means, log2_inv = split_params(params, num_mixtures)
    inv = torch.exp2(log2_inv.clamp(LOG2_INV_SCALE_LEAST, LOG2_INV_SCALE_MOST))
    step = torch.exp2(8.0 - b.float())[:, None, None, None, None]
    centred = x[:, None] - means
    high, low = centred + 0.5 * step, centred - 0.5 * step
    high = high.masked_fill((x >= 128.0 - 1.25 * step[:, 0])[:, None], 1e4)
    low = low.masked_fill((x <= -128.0 + 0.25 * step[:, 0])[:, None], -1e4)
    # Mirrored so that both arguments are on the falling side, where sigmoid differences keep their precision.
    flip = centred > 0
    mass = torch.sigmoid(torch.where(flip, -low, high) * inv) - torch.sigmoid(torch.where(flip, -high, low) * inv)
    mixed = (torch.softmax(logits, dim=1) * mass).sum(dim=1)
    return mixed * ((65536.0 - 16.0) / 65536.0) + (step[:, 0] / 2**20)


def mixture_bits(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> Tensor:
    """-log2 of `mixture_likelihood`, whose arguments it takes: what each latent costs in bits, float32 [N, g, h, w]."""
    return -mixture_likelihood(x, params, num_mixtures, b).log2()


def neighbour_bits(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bits of each latent, and how they change where it rises or falls by one level: what moving it alone would cost.

    Arguments as in `mixture_likelihood`, of which this is the negative logarithm at three levels, four sigmoids in all.

    Returns:
        bits at x, change at x + S, change at x - S: float32 [N, g, h, w]; infinite outside the range of levels.
    """
    logits, means, log2_inv = split_params(params, num_mixtures)
    inv = torch.exp2(log2_inv.clamp(LOG2_INV_SCALE_LEAST, LOG2_INV_SCALE_MOST))
    step = torch.exp2(8.0 - b.float())[:, None, None, None]
    centred = x[:, None] - means
    mirror = torch.where(centred > 0, -inv, inv)  # on the falling side sigmoid differences keep their precision
    weights = torch.softmax(logits, dim=1)
    sigmas = []
    for k in (-3, -1, 1, 3):
        edge = x + 0.5 * k * step  # the lowest level has no lower edge, the highest no upper one
        shifted = (centred + (0.5 * k * step)[:, None]).masked_fill((edge >= 128.0 - step)[:, None], 1e4)
        sigmas.append(torch.sigmoid(shifted.masked_fill((edge <= -128.0)[:, None], -1e4) * mirror))
    bits = []
    for low, high in itertools.pairwise(sigmas):
        mixed = (weights * (high - low).abs()).sum(dim=1)
        bits.append(-(mixed * ((65536.0 - 16.0) / 65536.0) + step / 2**20).log2())
    below, here, above = bits
    infinite = float("inf")
    rise = (above - here).masked_fill(x >= 128.0 - 1.25 * step, infinite)
    fall = (below - here).masked_fill(x <= -128.0 + 0.25 * step, infinite)
    return here, rise, fall


def spread(values: Tensor, grid: Grid, height: int, width: int) -> Tensor:
    """Values [N, C, rows, columns] of patches -> [N, C, height, width] of the positions of a layer."""
    axes = []
    for start, length, most in ((grid.top, height, values.shape[2]), (grid.left, width, values.shape[3])):
        position = torch.arange(length, device=values.device) + start
        axes.append((position // grid.side).clamp(0, most - 1))
    return values.index_select(2, axes[0]).index_select(3, axes[1])


def patch_epilogue(
    x: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    slope: float = 1.0,
    bias_grid: Grid | None = None,
    scale_grid: Grid | None = None,
) -> Tensor:
    """What follows a convolution of D, with changes by patch (DESIGN 2).

        out = (residual + LeakyReLU(x + bias[patch])) * scale[patch]

    Args:
        x: float [N, C, h, w].
        bias, scale: float [N, C, rows, columns], of the patches of `bias_grid`, `scale_grid`; without a grid
            [N, C, 1, 1], of whole pictures. They are rounded to x's dtype. None: 0 and 1.
        residual: like x, or None: 0.
        slope: of the LeakyReLU where its argument is negative: 1 is none, 0 a ReLU.
    Returns:
        like x; x itself where nothing is to be done.
    """
    height, width = x.shape[2:]
    if bias is not None:
        bias = bias.to(x.dtype)
        x = x + (bias if bias_grid is None else spread(bias, bias_grid, height, width))
    if slope != 1.0:
        x = F.leaky_relu(x, slope) if slope else F.relu(x)
    if residual is not None:
        x = residual + x
    if scale is not None:
        scale = scale.to(x.dtype)
        x = x * (scale if scale_grid is None else spread(scale, scale_grid, height, width))
    return x


def quantise(y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
    """Q (L2C III), after the mask of L2C Eq. 2: latents -> symbols.

    Step S = 2^(8-b); symbol i in 0..2^b-1 stands for (i - 2^(b-1)) * S, so a masked latent (0) is exactly a level. At
    each position the first n = round(c tau) channels are kept.

    Args:
        y: float32 [...], in quantiser steps of b = 8, finite; [N, c, h, w] with `tau` or where b is a tensor.
        b: bits, 1..8, or those of each picture, int64 [N].
        tau: float32 [N, 1, h, w] in [0, 1], or None: all channels are kept.
    Returns:
        uint8, same shape. Ties go to even (in n as well), values outside the range to its ends.
    """
    if tau is not None:
        c = y.shape[1]
        channel = torch.arange(c, device=y.device)[None, :, None, None]
        y = y.where(channel < (c * tau).round(), 0.0)
    half, step = _half_and_step(b, y.device)
    return ((y / step).round() + half).clamp_min(0.0).minimum(2.0 * half - 1.0).to(torch.uint8)


def dequantise(symbols: Tensor, b: int | Tensor) -> Tensor:
    """Q^-1: symbols uint8 [...] -> latents float32, multiples of S = 2^(8-b) in [-128, 127]; b as in `quantise`."""
    half, step = _half_and_step(b, symbols.device)
    return (symbols.float() - half) * step


def to_levels(y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
    """`quantise`, then `dequantise`: the latents that the decoder gets, float32, without a gradient."""
    return dequantise(quantise(y, b, tau), b)


def _half_and_step(b: int | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """2^(b-1) and S = 2^(8-b), float32 [], or [N, 1, 1, 1] where b is int64 [N]."""
    bits = b[:, None, None, None] if isinstance(b, Tensor) else torch.full((), b, device=device)
    one = torch.ones_like(bits)
    return (one << (bits - 1)).float(), (one << (8 - bits)).float()
