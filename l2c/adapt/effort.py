"""Effort levels 0-9: how much work each puts into adapting a picture (measured ladder: docs/ADAPTATION.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from l2c.errors import UnsupportedError
from l2c.format.levels import METRICS

EffortLevel: TypeAlias = Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # a place in EFFORTS
MAX_TRIES = 5
REVISION = 1  # of what an adaptation finds with given numbers; records of measurements name it


@dataclass(frozen=True)
class Effort:
    """What an adaptation does: one of the levels, or a mixture of one's own.

    Attributes:
        iterations: of the latent search; each costs about three passes of D and of P.
        sets: bias sets that are decoded for each patch after ranking all of them; 0: none.
        steps: SGD steps on the conditions of D's modulators; 0: none.
        tries: qualities at which all of it is done where a rate is asked for; the best file counts.
    Raises:
        UnsupportedError: a negative or absurd number.
    """

    iterations: int = 0
    sets: int = 0
    steps: int = 0
    tries: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("iterations", 0, 10_000),
            ("sets", 0, 255),
            ("steps", 0, 10_000),
            ("tries", 1, MAX_TRIES),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UnsupportedError(f"{name} of an effort is {value!r}: it must be a whole number {low}..{high}")

    @property
    def adapts(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.iterations or self.sets or self.steps)

    def saving(self, mu: int, bpp: float) -> float:
        """Share of the rate by which the unadapted file should exceed a target `bpp` where the search for it begins.

        Args:
            mu: metric mix in eighths, see `levels.METRICS`.
            bpp: positive; beyond the ends of the table as at the end.
        """
        share = self.iterations / (self.iterations + 1.0) * 7.0 / 6.0
        places = [METRICS[name] for name in _SAVINGS]
        savings = [np.interp(np.log2(bpp), np.log2(_RATES), column) for column in _SAVINGS.values()]
        return float(share * np.interp(mu, places, savings))


# Where six iterations end best, measured on validation pictures at 0.06 to 1.5 bpp. `mixed` was not searched for that:
# with model 1 its iterations save 0.025 less of the rate than those of `psnr` at equal quality (mean of 8 files).
_RATES = (0.06, 0.12, 0.25, 0.5, 1.0, 1.5)
_SAVINGS = {
    "psnr": (0.10, 0.10, 0.10, 0.095, 0.09, 0.07),
    "mixed": (0.075, 0.075, 0.075, 0.07, 0.065, 0.045),
    "msssim": (0.10, 0.11, 0.10, 0.085, 0.08, 0.07),
}

EFFORTS = (
    Effort(),
    Effort(1),
    Effort(2),
    Effort(4),
    Effort(6),
    Effort(9),
    Effort(12, 1),
    Effort(16, 1),
    Effort(16, 2, 3),
    Effort(20, 4, 6, tries=3),
)
MAX_EFFORT = len(EFFORTS) - 1
