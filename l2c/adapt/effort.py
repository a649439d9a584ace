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
        saving: share of the rate that the latent search takes off at this level, with the distortion about as it was: a
            search for a rate starts at a quality whose unadapted file is that much larger.
    """

    iterations: int
    sets: int
    steps: int
    saving: float

    @property
    def adapts(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.iterations or self.sets or self.steps)


EFFORTS = (
    Effort(0, 0, 0, 0.0),
    Effort(1, 0, 0, 0.04),
    Effort(2, 0, 0, 0.055),
    Effort(4, 0, 0, 0.07),
    Effort(6, 0, 0, 0.075),
    Effort(9, 0, 0, 0.08),
    Effort(12, 1, 0, 0.082),
    Effort(16, 2, 3, 0.085),
    Effort(22, 4, 6, 0.085),
    Effort(30, 8, 12, 0.085),
)
MAX_EFFORT = len(EFFORTS) - 1
