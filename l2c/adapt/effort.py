"""Effort levels 0-9: how much work each puts into adapting a picture (measured ladder: docs/ADAPTATION.md)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """One level.

    Attributes:
        iterations: of the latent search; each costs about three passes of D and of P.
        sets: bias sets that are decoded for each patch after ranking all of them; 0: none.
        steps: SGD steps on the conditions of D's modulators; 0: none.
        saving: share of the rate that the latent search takes off on average at this level, with the distortion about
            as it was: a search for a rate starts at a quality whose unadapted file is that much larger.
    """

    iterations: int
    sets: int
    steps: int
    saving: float


EFFORTS = (
    Effort(0, 0, 0, 0.0),
    Effort(1, 0, 0, 0.025),
    Effort(2, 0, 0, 0.04),
    Effort(4, 0, 0, 0.05),
    Effort(6, 0, 0, 0.055),
    Effort(9, 1, 0, 0.06),
    Effort(14, 2, 0, 0.062),
    Effort(22, 4, 3, 0.065),
    Effort(36, 8, 6, 0.065),
    Effort(72, 16, 12, 0.065),
)
MAX_EFFORT = len(EFFORTS) - 1
