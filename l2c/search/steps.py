"""Files of a model that has networks at a few qualities alone: at one of them, in a size, or at a figure.

Rate and figures rise from step to step, so a target is bisected. No guard looks at lower qualities: they belong to
other networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from l2c.errors import RateError
from l2c.rate_control import ACCEPTED
from l2c.search.course import Course, Rounds, Staged, ask, together
from l2c.search.picture import Picture
from l2c.search.questions import Adapt, Best, Figure, Measure, Plain, Trial

_WITHIN_REACH = 1.1  # of a size: what an adaptation may save


class StepsAt(Staged):
    """Every picture at one of the steps; `adapts`: whether there is an adaptation to do."""

    def __init__(self, pictures: Sequence[Picture], quality: int, adapts: bool) -> None:
        super().__init__()
        self._pictures, self._quality, self._adapts = pictures, quality, adapts
        self._found: dict[int, Trial] = {}

    def rounds(self) -> Rounds:
        """One question about each picture."""
        yield from together(map(self._find, self._pictures))

    def _find(self, picture: Picture) -> Course[None]:
        question = Adapt(picture.i, self._quality) if self._adapts else Plain(picture.i, self._quality)
        self._found[picture.i] = yield from ask(question)

    def best(self, i: int) -> Best:
        """See `Strategy`."""
        return Best(self._found[i])


class _ToTargets(Staged):
    """Every picture on its own way to a target."""

    def __init__(self, goals: Sequence[_Size] | Sequence[_Figure], adapts: bool, late: Callable[[], bool]) -> None:
        super().__init__()
        self._goals, self._adapts, self._late = goals, adapts, late

    def rounds(self) -> Rounds:
        """The steps of all pictures, then the adaptation of all."""
        yield from together(goal.find() for goal in self._goals)
        if self._adapts and not self._late():
            yield from together(goal.adapt() for goal in self._goals)

    def best(self, i: int) -> Best:
        """See `Strategy`. Raises RateError: not even the lowest step fits a size."""
        return self._goals[i].best()


class StepsToSizes(_ToTargets):
    """Every picture at the highest step whose file fits its size.

    Args:
        steps: 0..1000, rising. sizes: bytes of the file of each picture.
        adapts: whether there is an adaptation to do. late: whether the time for it is over.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        steps: Sequence[int],
        sizes: Sequence[float],
        adapts: bool,
        late: Callable[[], bool],
    ) -> None:
        goals = [_Size(picture, steps, late, size=size) for picture, size in zip(pictures, sizes)]
        super().__init__(goals, adapts, late)


class StepsToFigures(_ToTargets):
    """Every picture at the lowest step whose figure reaches a target.

    Args:
        target, figure: in dB, and of what. Others as for `StepsToSizes`.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        steps: Sequence[int],
        target: float,
        figure: Figure,
        adapts: bool,
        late: Callable[[], bool],
    ) -> None:
        goals = [_Figure(picture, steps, late, target=target, figure=figure) for picture in pictures]
        super().__init__(goals, adapts, late)


@dataclass
class _Goal:
    """One picture on its way; `trials` are unadapted, by step."""

    picture: Picture
    steps: Sequence[int]
    late: Callable[[], bool]
    trials: dict[int, Trial] = field(default_factory=dict)
    adapted: Trial | None = None

    def _plain(self, step: int) -> Course[Trial]:
        if step not in self.trials:
            self.trials[step] = yield from ask(Plain(self.picture.i, self.steps[step]))
        return self.trials[step]


@dataclass
class _Size(_Goal):
    """The highest step that fits `size` bytes."""

    size: float = 0.0
    chosen: int = -1

    def find(self) -> Course[None]:
        """Bisect: `chosen` fits, or is -1."""
        low, high = -1, len(self.steps)
        while high - low > 1:
            middle = (low + high) // 2
            trial = yield from self._plain(middle)
            low, high = (middle, high) if trial.size <= self.size else (low, middle)
        self.chosen = low

    def adapt(self) -> Course[None]:
        """The step above, where its adaptation fits; else the same step."""
        for step in (self.chosen + 1, self.chosen):
            if not 0 <= step < len(self.steps) or self.late():
                continue
            if step > self.chosen and self.trials[step].size > _WITHIN_REACH * self.size:
                continue
            trial = yield from ask(Adapt(self.picture.i, self.steps[step]))
            if trial.size <= self.size:
                self.adapted = trial
                return

    def best(self) -> Best:
        """The trial, and why it leaves the size unused where the highest step does."""
        picture = self.picture
        trial = self.adapted or self.trials.get(self.chosen)
        if trial is None:
            least = min(trial.size for trial in self.trials.values())
            raise RateError(
                f"{8.0 * self.size / picture.pixels:g} bpp ({self.size:.0f} bytes) is below what this "
                f"{picture.width}x{picture.height} picture can reach: its least rate is "
                f"{8.0 * least / picture.pixels:.4f} bpp ({least} bytes)",
                8.0 * least / picture.pixels,
            )
        reason = ""
        if trial.quality == self.steps[-1] and trial.size < (1.0 - ACCEPTED) * self.size:
            reason = f"the best quality of this model needs only {8.0 * trial.size / picture.pixels:.4f} bpp"
        return Best(trial, len(self.trials), reason, room=self.size - trial.size)


@dataclass
class _Figure(_Goal):
    """The smallest file whose figure reaches `target` dB; `reached`: of the trials, `adapted_figure`: of `adapted`."""

    target: float = 0.0
    figure: Figure = "PSNR"
    reached: dict[int, float] = field(default_factory=dict)
    adapted_figure: float = 0.0

    def find(self) -> Course[None]:
        """Bisect for the lowest step that reaches it."""
        low, high = -1, len(self.steps)
        while high - low > 1:
            middle = (low + high) // 2
            trial = yield from self._plain(middle)
            self.reached[middle] = yield from self._measure(trial)
            low, high = (low, middle) if self.reached[middle] >= self.target else (middle, high)

    def _measure(self, trial: Trial) -> Course[float]:
        return (yield from ask(Measure(self.picture.i, trial, self.figure)))

    @property
    def _chosen(self) -> int:
        """The lowest step known to reach it, else the best one known."""
        good = [step for step, value in self.reached.items() if value >= self.target]
        return min(good) if good else max(self.reached, key=lambda step: self.reached[step])

    def adapt(self) -> Course[None]:
        """The step below, where its adaptation reaches the target; else the same step, where that is worth it."""
        chosen = self._chosen
        plain, best = self.trials[chosen], self.reached[chosen]
        missed = best < self.target
        for step in (chosen,) if missed else (chosen - 1, chosen):
            if step < 0 or self.late():
                continue
            trial = yield from ask(Adapt(self.picture.i, self.steps[step]))
            reached = yield from self._measure(trial)
            if reached > best if missed else reached >= self.target and trial.size < plain.size:
                self.adapted, self.adapted_figure = trial, reached
                return

    def best(self) -> Best:
        """The trial, and why it misses the target where it does."""
        trial, reached = self.adapted, self.adapted_figure
        if trial is None:
            trial, reached = self.trials[self._chosen], self.reached[self._chosen]
        reason = ""
        if reached < self.target:
            shown = f"{reached:.2f} dB" if self.figure == "PSNR" else f"{1.0 - 10.0 ** (-reached / 10.0):.5f}"
            reason = f"the best that this model was seen to do here is {self.figure} {shown}"
        return Best(trial, len(self.trials), reason, measured=True)
