"""Every fast operator again, in plain Python and int64 numpy, written for reading. The tests compare with these."""

from __future__ import annotations

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
    m = np.ldexp(mantissa, 24).astype(np.int64)[:, None, None]
    e = (exponent - 24).astype(np.int64)[:, None, None]
    product = np.abs(total) * m
    length = np.zeros_like(product)
    for bit in range(48):
        length += (product >> bit) != 0
    drop = np.maximum(length - 24, 0)
    kept = _round_shift(product, drop)
    shift = -(e + drop)  # the value is kept * 2^-shift
    whole = np.where(shift >= 0, _round_shift(kept, np.clip(shift, 0, 62)), kept << np.clip(-shift, 0, 30))
    return np.sign(total) * whole


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
