"""What an effort saves of the rate: where the search for a rate begins."""

from __future__ import annotations

import numpy as np

from l2c.adapt.effort import Effort
from l2c.format.levels import METRICS

# Where six iterations end best, measured on validation pictures at 0.06 to 1.5 bpp with model 1, but for `mixed`, whose
# iterations saved 0.025 less than those of `psnr` at equal quality. With the model of 2026-11-29 J is flat around it:
# beginning at 0.04, 0.07 or 0.10 differs by 0.3 to 1.4 % of the rate (6 crops, `psnr` and `mixed`
# at 0.25 and 1 bpp: experiments/savings.py VAL VAL2 --pictures 8 --savings 0.04 0.07 0.1).
_RATES = (0.06, 0.12, 0.25, 0.5, 1.0, 1.5)
_SAVINGS = {
    "psnr": (0.10, 0.10, 0.10, 0.095, 0.09, 0.07),
    "mixed": (0.075, 0.075, 0.075, 0.07, 0.065, 0.045),
    "msssim": (0.10, 0.11, 0.10, 0.085, 0.08, 0.07),
}


def saving(effort: Effort, mu: int, bpp: float) -> float:
    """Share of the rate by which the unadapted file should exceed a target `bpp` where the search for it begins.

    Args:
        mu: metric mix in eighths, see `levels.METRICS`.
        bpp: positive; beyond the ends of the table as at the end.
    """
    share = effort.iterations / (effort.iterations + 1.0) * 7.0 / 6.0
    places = [METRICS[name] for name in _SAVINGS]
    savings = [np.interp(np.log2(bpp), np.log2(_RATES), column) for column in _SAVINGS.values()]
    return float(share * np.interp(mu, places, savings))
