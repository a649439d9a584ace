"""What a strategy knows of a picture, and a trial at a quality that serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from l2c import guard
from l2c.search.course import Course, ask
from l2c.search.questions import LookAt, Plain, Trial


@dataclass(frozen=True)
class Picture:
    """One picture of a batch.

    Attributes:
        i: its place in the batch. width, height: in pixels.
        overhead: bytes of its file that no quality changes, about.
        flat: whether it is hardly more than some flat areas. drawn: whether it is drawn (`guard.is_drawn`).
        curve: (quality, mean bpp) points of the model, rising in both.
        guard: which qualities serve it.
        reserve: bytes to leave free in a file of a given size, for what is added when the search is over.
    """

    i: int
    width: int
    height: int
    overhead: float = 0.0
    flat: bool = False
    curve: Sequence[tuple[float, float]] = ()
    guard: guard.QualityGuard = field(default_factory=guard.QualityGuard)
    reserve: float = 0.0
    drawn: bool = False

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def settled(self, quality: int) -> int:
        """The quality at which it is coded where this one (0..1000) is asked for, as far as is known."""
        return self.guard.settled.get(quality, quality)

    def plain(self, quality: int) -> Course[Trial]:
        """The picture without adaptation at a quality 0..1000, or at a lower one that serves it better."""
        trial = yield from ask(Plain(self.i, self.settled(quality)))
        if quality in self.guard.settled:
            return trial
        bpp = 8.0 * (trial.size - self.overhead) / self.pixels
        simple = self.flat or guard.is_small(bpp, quality, self.curve) or (self.drawn and quality <= guard.COARSE)
        if not simple and trial.clipped <= guard.CLIPPED:
            return trial
        while (level := self.guard.next_look(quality, simple)) is not None:
            self.guard.report(level, (yield from ask(LookAt(self.i, level))))
        if self.settled(quality) == quality:
            return trial
        return (yield from ask(Plain(self.i, self.settled(quality))))
