"""Files at a PSNR or an MS-SSIM: the least quality that reaches it, then corrections of the adapted picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from l2c.rate_control import MAX_STEERS, MetricSearch
from l2c.search.course import Course, Rounds, Staged, ask, together
from l2c.search.picture import Picture
from l2c.search.questions import Adapt, Best, Figure, Measure, Steer, Trial

_TOLERANCE = 0.02  # dB that a file may exceed the target


class ToFigures(Staged):
    """Every picture at the least quality whose figure reaches the target.

    Args:
        target, figure: in dB, and of what. adapts: whether there is an adaptation to do.
        late: whether the time for it is over.
    """

    def __init__(
        self, pictures: Sequence[Picture], target: float, figure: Figure, adapts: bool, late: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._goals = [_Goal(picture, MetricSearch(target), figure, late) for picture in pictures]
        self._adapts, self._late = adapts, late

    def rounds(self) -> Rounds:
        """The qualities of all pictures, then the adaptation of all."""
        yield from together(goal.find() for goal in self._goals)
        if self._adapts and not self._late():
            yield from together(goal.adapt() for goal in self._goals)

    def best(self, i: int) -> Best:
        """See `Strategy`."""
        return self._goals[i].best()


@dataclass
class _Goal:
    """One picture on its way to a figure.

    Attributes:
        trials: unadapted, by quality. adapted: a better one, with its figure.
    """

    picture: Picture
    search: MetricSearch
    figure: Figure
    late: Callable[[], bool]
    trials: dict[int, Trial] = field(default_factory=dict)
    adapted: tuple[Trial, float] | None = None

    def find(self) -> Course[None]:
        """The smallest unadapted trial that reaches the target."""
        while (quality := self.search.next_quality) is not None:
            trial = yield from self.picture.plain(quality)
            self.search.report(quality, (yield from self._measure(trial)), trial.size)
            self.trials[quality] = trial

    def _measure(self, trial: Trial) -> Course[float]:
        return (yield from ask(Measure(self.picture.i, trial, self.figure)))

    def adapt(self) -> Course[None]:
        """The smallest trial that reaches the target: the unadapted one, or an adapted one, steered there."""
        search = self.search
        growth = expected = search.bits_per_db()
        least = self.trials[search.best].size
        trial = yield from ask(Adapt(self.picture.i, self.picture.settled(search.best)))
        before = trial.size, 0.0
        for count in range(MAX_STEERS + 1):
            reached = yield from self._measure(trial)
            if reached >= search.target and trial.size < least:
                self.adapted, least = (replace(trial, corrections=count), reached), trial.size
            good = search.target <= reached <= search.target + _TOLERANCE
            if good or count == MAX_STEERS or self.late():
                break
            change = math.log(trial.size / before[0]), reached - before[1]
            if change[0] * change[1] > 0.0:  # else the iteration gained more, or less, than it was to trade
                growth = min(max(0.5 * (growth + change[0] / change[1]), 0.5 * expected), 2.0 * expected)
            before = trial.size, reached
            share = math.expm1(growth * (search.target + 0.2 * _TOLERANCE - reached))
            trial = yield from ask(Steer(self.picture.i, 8.0 * share * trial.size))

    def best(self) -> Best:
        """The trial, and why it misses the target where it does."""
        search = self.search
        trial, reached = self.adapted or (self.trials[search.best], search.values[search.best])
        reason = ""
        if reached < search.target:
            shown = f"{reached:.2f} dB" if self.figure == "PSNR" else f"{1.0 - 10.0 ** (-reached / 10.0):.5f}"
            reason = f"the best that this model was seen to do here is {self.figure} {shown}"
        return Best(trial, len(search.values), reason, measured=True)
