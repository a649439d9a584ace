"""Effort levels 0-9: how much work each puts into adapting a picture (measured ladder: docs/ADAPTATION.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from l2c.errors import UnsupportedError

EffortLevel: TypeAlias = Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # a place in EFFORTS
MAX_TRIES = 5
RECEIVER_STEPS = 5  # on the conditions for receivers (`adapt_for`) where an effort has none; OML 5.3 finds most in 5
REVISION = 2  # of what an adaptation finds with given numbers; records of measurements name it


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

    @property
    def units(self) -> int:
        """Of work on a batch of tiles, one try, as the progress counts them."""
        return self.iterations + (self.sets + 3 if self.sets else 0) + (self.steps + 8 if self.steps else 0)


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
