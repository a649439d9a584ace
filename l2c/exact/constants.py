"""What an integer D needs to know of one trade-off: tables and multipliers, the same on every machine.

Everything is integers, or single operations on float64 (`l2c.exact.fixed`). The formulae are those of
`transforms.block` and `transforms.modulators`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from l2c.exact.fixed import BITS, ONE, Float64, Int64, rounded
from l2c.exact.weights import (
    COEFFICIENT_BITS,
    FACTOR_ENTRIES,
    FACTOR_MOST,
    FACTOR_STEP_BITS,
    LEVEL_BITS,
    LOCAL_BITS,
    REST_BITS,
    REST_ZERO,
    ExactWeights,
)

_MAX_LEVEL = 127
_SHARPNESS_BITS = 2  # 4, of the smooth minimum
_LOG_LMBDA_CENTRE = -4828871  # log 0.01 in Q20
_LOG_STEP_CONSTANT = 2263113  # log(6 / ln 2) in Q20
_LN2_STEP = 304849353914  # ln 2 / 2.5, an octave of lambda in a condition, in Q40
_LOG_8 = 2.0794415416798357  # log 8
_FAR_ABOVE = 403.0  # levels of a mean: beyond any that are used
_Factors = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]
_MOST_LOG = 20 << BITS  # of a gain's magnitude: no trained one comes near, and no table overflows


@dataclass(frozen=True)
class Constants:
    """At one trade-off: of a picture, or of a place in it.

    Attributes:
        input: uint8 [2 c, 256], the first layer's input, in two bytes, for each latent -128..127.
        level: int32 [c, 256], the latents companded back, Q8.
        factor: int32 [c, FACTOR_ENTRIES], what they are multiplied with for each argument of the local gain, or
            [c, 2], equal entries, without local gains; < FACTOR_MOST.
        factor_unit: float32 [c], a power of two: units of a coefficient per level and factor.
        head, last: float32, multipliers of these convolutions.
        plain: float64 [c], coefficients per companded level without local gains.
    """

    input: npt.NDArray[np.uint8]
    level: npt.NDArray[np.int32]
    factor: npt.NDArray[np.int32]
    factor_unit: npt.NDArray[np.float32]
    head: npt.NDArray[np.float32]
    last: npt.NDArray[np.float32] | None
    plain: Float64


def condition(weights: ExactWeights, level: int, mu: int) -> Int64:
    """What D is told of a quality 0..1000 and a metric mix 0..8: int64 [2] in Q20."""
    return np.array([rounded(weights.quality_base + weights.quality_step * level, BITS), mu << (BITS - 3)], np.int64)


def moved(cond: Int64, change: int) -> Int64:
    """A condition moved by so many units of `format.adapt_section.CONDITION_UNIT`, 1/64."""
    return cond + np.array([change << (BITS - 6), 0], np.int64)


def lowered(weights: ExactWeights, cond: Int64, octaves: float) -> Int64:
    """A condition whose lambda is lower by so many octaves, at least that of quality 0."""
    change = round(octaves * _LN2_STEP)
    least = rounded(weights.quality_base, BITS)
    return np.array([max(int(cond[0]) - rounded(change, BITS), min(least, int(cond[0]))), cond[1]], np.int64)


def scales(weights: ExactWeights, k: int, conds: Int64) -> npt.NDArray[np.float32]:
    """Of modulator k at conditions [n, 2]: float32 [n, channels]."""
    value = weights.tables.softplus(weights.modulators[k](conds))
    return (np.ldexp(value.astype(np.float64), -BITS) * weights.ratios[k].astype(np.float64)).astype(np.float32)


def constants(weights: ExactWeights, cond: Int64, native: Any = None) -> Constants:
    """At a condition int64 [2].

    Args:
        native: the C++ extension, which computes the same numbers faster, or None.
    """
    tables, config = weights.tables, weights.config
    log_lmbda = rounded(5 * int(cond[0]), 1) + _LOG_LMBDA_CENTRE
    wanted = rounded(np.int64(log_lmbda - _LOG_STEP_CONSTANT), 1) + weights.gain(cond[None])[0]
    wanted = np.clip(wanted, -_MOST_LOG, _MOST_LOG)
    correction = 1.0
    if config.companding:
        late = min(0, _LOG_LMBDA_CENTRE - log_lmbda)
        correction = float(tables.exp(np.array(rounded(late, 1), np.int64)))
    entries = FACTOR_ENTRIES if config.local_gain else 2
    local = np.zeros(entries, np.float64)
    if config.local_gain:
        argument = ((np.arange(entries, dtype=np.int64) << FACTOR_STEP_BITS) - (1 << 15)) << (BITS - LOCAL_BITS)
        local = tables.tanh(argument) * _LOG_8
    change = np.rint(local * correction * ONE).astype(np.int64)
    integers, shift = (
        _factors(weights, wanted, change) if native is None else _native_factors(native, weights, wanted, change)
    )
    levels, plain = weights.level_table, _plain_factor(weights, wanted)
    zero = weights.convolutions["first"].zero[: config.c]
    first = (
        _first_input(weights, plain, zero)
        if native is None
        else native.exact_first_input(levels, plain, weights.input_scale, zero)
    )
    unit = np.ldexp(np.ones(config.c), COEFFICIENT_BITS - LEVEL_BITS - shift)

    def corrected(name: str) -> npt.NDArray[np.float32]:
        return (weights.convolutions[name].multiplier.astype(np.float64) * correction).astype(np.float32)

    last = corrected("last") if config.fine_width else None
    return Constants(first, levels, integers, unit.astype(np.float32), corrected("head"), last, plain)


def _factors(weights: ExactWeights, wanted: Int64, change: Int64) -> _Factors:
    """Integers below FACTOR_MOST for each log factor of the local gains, and by how many bits they were moved.

    Args:
        wanted: [c]. change: [entries].
    Returns:
        int32 [c, entries], int32 [c].
    """
    if weights.config.companding:
        factor = _bounded_factor(weights, wanted, wanted[:, None] - change[None])
    else:
        factor = weights.tables.exp(change[None] - wanted[:, None])
    _, exponent = np.frexp(factor.max(axis=1))
    shift = 23 - exponent
    integers = np.minimum(np.rint(np.ldexp(factor, shift[:, None])), FACTOR_MOST - 1)
    return integers.astype(np.int32), shift


def _native_factors(native: Any, weights: ExactWeights, wanted: Int64, change: Int64) -> _Factors:
    """`_factors` in C++, see csrc/exact/tables.h."""
    tables, limit, mean = weights.tables, None, np.zeros(len(wanted))
    if weights.config.companding:
        limit, mean = weights.limit, _mean_factor(weights, wanted)
    found: _Factors = native.exact_factors(tables.exp2, tables.tail, wanted, change, limit, weights.is_mean, mean)
    return found


def _plain_factor(weights: ExactWeights, wanted: Int64) -> Float64:
    """Coefficients per companded level without local gains: float64 [c]."""
    if not weights.config.companding:
        return weights.tables.exp(-wanted)
    return _bounded_factor(weights, wanted, wanted)


def _first_input(weights: ExactWeights, plain: Float64, zero: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Both bytes of the first layer's input for each latent, with these `Constants.plain`: [2 c, 256]."""
    middle = np.ldexp(weights.level_table.astype(np.float64), -LEVEL_BITS) * plain[:, None]
    scaled = middle * weights.input_scale.astype(np.float64)[:, None]
    origin = zero.astype(np.float64)[:, None]
    first = (np.rint(scaled) + origin).clip(0.0, 255.0)
    second = (np.rint((scaled - (first - origin)) * float(1 << REST_BITS)) + float(REST_ZERO)).clip(0.0, 255.0)
    return np.concatenate((first, second)).astype(np.uint8)


def _bounded_factor(weights: ExactWeights, wanted: Int64, changed: Int64) -> Float64:
    """1 / g of `Companding.log_gain`: `wanted` [c] without local changes, `changed` [c, ...] with them."""
    tables = weights.tables
    shape = (-1, *(1,) * (changed.ndim - 1))
    limit = weights.limit.reshape(shape)
    bounded = limit - rounded(tables.softplus((limit - changed) << _SHARPNESS_BITS), _SHARPNESS_BITS)
    return np.where(weights.is_mean.reshape(shape), _mean_factor(weights, wanted).reshape(shape), tables.exp(-bounded))


def _mean_factor(weights: ExactWeights, wanted: Int64) -> Float64:
    """1 / g of the means, `Companding.snapped`: B over a whole number. float64 [c]."""
    bound = weights.bound.astype(np.float64)
    extreme = np.minimum(weights.tables.exp(wanted) * bound, _FAR_ABOVE)
    whole = np.maximum(np.rint(extreme), 1.0)
    sixths = np.minimum(np.rint(extreme / 6.0) * 6.0, float(_MAX_LEVEL // 6 * 6))
    return bound / np.where(extreme < 48.0, whole, sixths)
