"""Every fast operator again, in plain Python and int64 numpy, written for reading. The tests compare with these."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from l2c.integer import IntegerLayer, IntegerStep

Int64Array = npt.NDArray[np.int64]

WEIGHT_SUM = 65536 - 16


def requantise(total: Int64Array, multiplier: npt.NDArray[np.float32]) -> Int64Array:
    """round_half_even(float32(total) * multiplier) in integers: one correctly rounded float32 product, then rounding.

    Args:
        total: int64 [O, h, w], |total| < 2^24, so it is exact as a float32.
        multiplier: float32 [O], finite, normal.
    Returns:
        int64 [O, h, w].

    A float32 is m * 2^e with a 24-bit m. The exact product total * m has at most 48 bits; it is rounded to its 24
    leading bits (ties to even), as IEEE 754 rounds, and then to a whole number (ties to even).
    """
    mantissa, exponent = np.frexp(multiplier.astype(np.float64))
    m = np.abs(np.ldexp(mantissa, 24).astype(np.int64))[:, None, None]
    e = (exponent - 24).astype(np.int64)[:, None, None]
    product = np.abs(total) * m
    length = np.zeros_like(product)
    for bit in range(48):
        length += (product >> bit) != 0
    drop = np.maximum(length - 24, 0)
    kept = _round_shift(product, drop)
    shift = -(e + drop)  # the value is kept * 2^-shift
    whole = np.where(shift >= 0, _round_shift(kept, np.clip(shift, 0, 62)), kept << np.clip(-shift, 0, 30))
    return np.sign(total) * np.sign(multiplier).astype(np.int64)[:, None, None] * whole


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
    """`probability.Step` in integers: u [inputs, h, w], q [width, h, w] -> (head output, q')."""
    h1 = integer_conv(np.concatenate((u, q)), step.w1).clip(0, 255)
    h2 = integer_conv(h1, step.w2).clip(0, 255)
    q = (h1 + integer_conv(h2, step.w3)).clip(0, 255)
    return integer_conv(q, step.w4).clip(-32768, 32767), q


# Per 1024 steps of z (half a unit of the logistic's argument): value, slope and curvature of its upper tail.
TAIL_A = (32764, 24740, 17622, 11952, 7809, 4969, 3106, 1920, 1178, 719, 438, 266, 161, 98, 59, 36, 21, 13, 8, 5, 3, 2)
TAIL_B = (
    33080,
    31014,
    25804,
    19471,
    13646,
    9082,
    5836,
    3678,
    2283,
    1397,
    861,
    506,
    306,
    191,
    113,
    73,
    32,
    24,
    16,
    12,
    8,
    8,
)
TAIL_C = (3868, 10140, 12504, 11636, 9192, 6564, 4392, 2856, 1808, 1100, 704, 356, 208, 140, 80, 60)


def sigma(z: int) -> int:
    """65536 times the logistic function of z / 2^11 for an int16 z, in 1..65535; see csrc/mixture_cdf.h."""
    u = z if z >= 0 else -1 - z
    s, f = u // 1024, 16 * (u % 1024)
    a = TAIL_A[s] if s < len(TAIL_A) else 1
    b = TAIL_B[s] if s < len(TAIL_B) else 0
    c = TAIL_C[s] if s < len(TAIL_C) else 0
    tail = a - ((f * (b - ((f * c) >> 16))) >> 16)
    return 65536 - tail if z >= 0 else tail


def mixture_cdf(i: int, weights: list[int], means: list[int], inv_scales: list[int], bits: int) -> int:
    """C(i), 0..2^20, of one symbol with K components (DESIGN 3.4; formats: csrc/mixture_cdf.h).

    C(i) = (sum_k floor(w_k sigma(z_k(t_i)) / 2^16) << 4) + i S,  t_i = (2i - 1) S - 256,  S = 2^(8 - bits)
    """
    step = 1 << (8 - bits)
    if i == 0:
        return 0
    if i == 1 << bits:
        return 1 << 20
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
    """Interleaved rANS of csrc/rans.h: (start, freq) of each symbol -> (states of the lanes, words of the stream).

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
