"""Arithmetic that gives the same numbers on every machine, for what D's layers need to know of a trade-off.

Two kinds of numbers, and no third: integers in fixed point (Q20 unless said otherwise) wherever something is added up,
and float64 where a value is the result of one operation of IEEE 754 on its own: product, quotient, sum of two, rounding
to even. Exponentials come out of a table of integers, which a model file holds.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

BITS = 20
ONE = 1 << BITS
_TABLE_BITS = 10
_EXP_BITS = 30  # of an entry of the table of powers
_LOG2_E = 1549082005  # log2(e) in Q30
_TAIL_BITS, _TAIL_STEP_BITS = 24, 14  # of an entry of the table of softplus; its steps are 2^14 in Q20: 1/64


def rounded(x: Any, bits: int) -> Any:
    """x / 2^bits to the nearest integer, halves up: int64 or Python's integers."""
    return (x + (1 << (bits - 1))) >> bits


@dataclass(frozen=True)
class FunctionTables:
    """What exponentials are computed from.

    Attributes:
        exp2: int64 [1025], 2^(i / 1024) in Q30.
        tail: int64 [1025], ln(1 + e^(-i / 64)) in Q24.
    """

    exp2: Int64
    tail: Int64

    @classmethod
    def make(cls) -> FunctionTables:
        """Those of a new model, correctly rounded. A loaded model uses the ones in its file."""
        with decimal.localcontext(decimal.Context(prec=30)):
            ln2, one = decimal.Decimal(2).ln(), decimal.Decimal(1)
            exp2 = [(ln2 * i / 1024).exp() * (1 << _EXP_BITS) for i in range(1025)]
            tail = [(one + (-decimal.Decimal(i) / 64).exp()).ln() * (1 << _TAIL_BITS) for i in range(1025)]
            return cls(*(np.array([int(v.to_integral_value()) for v in part], np.int64) for part in (exp2, tail)))

    def exp(self, x: Int64) -> Float64:
        """e^x for x in Q20, |x| < 2^29: relative error below 2e-6, exact in float64."""
        y = rounded(x * _LOG2_E, _EXP_BITS)
        whole, y = (y >> BITS).astype(np.int32), y & (ONE - 1)
        index = y >> _TABLE_BITS
        y &= (1 << _TABLE_BITS) - 1
        low, high = self.exp2.take(index), self.exp2[1:].take(index)
        high -= low  # in place: a table of factors has 50,000 entries, and memory would be most of the time
        high *= y
        low += rounded(high, _TABLE_BITS)
        return np.ldexp(low.astype(np.float64), whole - _EXP_BITS)

    def softplus(self, x: Int64) -> Int64:
        """ln(1 + e^x), both Q20: error below 1e-5."""
        size = np.minimum(np.abs(x), 1 << (_TAIL_STEP_BITS + 10))
        index, rest = size >> _TAIL_STEP_BITS, size & ((1 << _TAIL_STEP_BITS) - 1)
        following = np.minimum(index + 1, 1024)
        low = self.tail[index]
        tail = low + rounded((self.tail[following] - low) * rest, _TAIL_STEP_BITS)
        return np.maximum(x, 0) + rounded(tail, _TAIL_BITS - BITS)

    def tanh(self, x: Int64) -> Float64:
        """tanh of x in Q20."""
        power = self.exp(-2 * np.abs(x))
        return np.sign(x) * ((1.0 - power) / (1.0 + power))


def to_fixed(values: npt.ArrayLike, bits: int = BITS) -> Int64:
    """Real numbers -> the nearest integers in fixed point."""
    return np.rint(np.asarray(values, np.float64) * float(1 << bits)).astype(np.int64)


@dataclass(frozen=True)
class SmallNet:
    """FC(ReLU(FC(condition))), of a modulator (OML 3.1) or of gains, in Q20.

    Attributes:
        w1: int64 [hidden, 2]. b1: int64 [hidden]. w2: int64 [C, hidden]. b2: int64 [C].
    """

    w1: Int64
    b1: Int64
    w2: Int64
    b2: Int64

    def __call__(self, cond: Int64) -> Int64:
        """Conditions int64 [n, 2] in Q20 -> int64 [n, C] in Q20."""
        hidden = np.maximum(rounded(cond @ self.w1.T + (self.b1 << BITS), BITS), 0)
        result: Int64 = rounded(hidden @ self.w2.T + (self.b2 << BITS), BITS)
        return result

    def is_safe(self, most: int) -> bool:
        """Whether no sum passes 2^62 for conditions of at most `most` in magnitude."""
        hidden = [sum(abs(int(v)) for v in row) * most + (abs(int(b)) << BITS) for row, b in zip(self.w1, self.b1)]
        reached = [h + ONE >> BITS for h in hidden]
        sums = [
            sum(abs(int(w)) * r for w, r in zip(row, reached)) + (abs(int(b)) << BITS)
            for row, b in zip(self.w2, self.b2)
        ]
        return max(*hidden, *sums) < 1 << 62
