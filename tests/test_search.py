"""Strategies against pictures that are curves: no network, no PyTorch, every question and answer on the table."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from test_rate_control import STEEP

from l2c.adapt import savings
from l2c.adapt.effort import EFFORTS, Effort
from l2c.errors import RateError
from l2c.guard import CLIPPED, Look
from l2c.rate_control import ACCEPTED, MAX_PROBES, MAX_STEERS, MAX_TRIMS
from l2c.search import (
    Adapt,
    AtQualities,
    Best,
    LookAt,
    Measure,
    Picture,
    Plain,
    Question,
    Steer,
    StepsAt,
    StepsToFigures,
    StepsToSizes,
    Strategy,
    ToFigures,
    ToSizes,
    Trial,
    Trim,
    Weigh,
)

CURVE = [(0, 0.05), (500, 0.5), (1000, 4.0)]
WIDTH, HEIGHT = 800, 500
PIXELS = WIDTH * HEIGHT
EXPECTED = savings.saving(EFFORTS[4], 0, 8 * 25_000 / PIXELS)  # of a file of 25,000 bytes


def photograph(quality: int) -> int:
    """Bytes of an ordinary picture."""
    return int(2_000 * math.exp(4.6 * quality / 1000))


def figure(quality: int) -> float:
    return 22.0 + 20.0 * (quality / 1000) ** 0.8


@dataclass
class Drawn:
    """A picture that is some curves, and the encoder's answers about it.

    Attributes:
        size, figure, clipped, cost: by quality. overhead: of `size`.
        saving: share of the payload that the adaptation saves; trims, steers: share of the bits asked
            for that a correction moves.
        gain: dB that an adaptation gains. searched: whether there is time for the search.
        asked: what was asked.
    """

    size: Callable[[int], int] = photograph
    figure: Callable[[int], float] = figure
    clipped: Callable[[int], float] = lambda quality: 0.0
    cost: Callable[[int], float] = lambda quality: 1000.0 - quality
    overhead: int = 0
    saving: float = 0.1
    trims: float = 0.9
    steers: float = 0.8
    gain: float = 0.3
    searched: bool = True
    asked: list[Question[Any]] = field(default_factory=list)
    _quality: int = 0
    _start: float = 0.0
    _payload: float = 0.0

    def answer(self, question: Question[Any]) -> Any:
        self.asked.append(question)
        if isinstance(question, Plain):
            quality = question.quality
            return Trial(self.size(quality), quality, ("plain", quality), clipped=self.clipped(quality))
        if isinstance(question, LookAt):
            return Look(self.cost(question.quality), self.clipped(question.quality))
        if isinstance(question, Measure):
            kind, quality, *growth = question.trial.coded
            return self.figure(quality) + (self.gain + 10.0 * growth[0] if kind == "adapted" else 0.0)
        if isinstance(question, Weigh):
            return self.cost(question.trial.quality)
        if isinstance(question, Adapt):
            self._quality = question.quality
            self._payload = self._start = (self.size(question.quality) - self.overhead) * (1.0 - self.saving)
            return self._adapted(0.0)
        if isinstance(question, Steer):
            self._payload += self.steers * question.bits / 8.0
            return self._adapted(0.0)
        assert isinstance(question, Trim)
        change = -self.trims * question.bits
        self._payload += change / 8.0
        return self._adapted(change)

    def _adapted(self, change: float) -> Trial:
        size, coded = (
            self.overhead + round(self._payload),
            ("adapted", self._quality, math.log(self._payload / self._start)),
        )
        return Trial(size, self._quality, coded, searched=self.searched, change=change, report=len(self.asked))

    def of(self, *kinds: type) -> list[Any]:
        """What was asked of these kinds."""
        return [question for question in self.asked if isinstance(question, kinds)]


def known(*drawn: Drawn, **facts: Any) -> list[Picture]:
    return [Picture(i, WIDTH, HEIGHT, part.overhead, curve=CURVE, **facts) for i, part in enumerate(drawn)]


def run(strategy: Strategy, *drawn: Drawn, some: bool = False) -> list[list[Question[Any]]]:
    """Answer all that is asked, or (`some`) the last question alone, until nothing is; the questions of each round."""
    rounds = []
    while questions := strategy.ask():
        assert [question.i for question in questions] == sorted({question.i for question in questions})
        rounds.append(questions)
        assert len(rounds) < 500, "the strategy does not end"
        strategy.tell({question.i: drawn[question.i].answer(question) for question in questions[-some:]})
    return rounds


def never() -> bool:
    return False


def to_size(
    drawn: Drawn, size: float, effort: Effort = EFFORTS[0], late: Callable[[], bool] = never, **facts: Any
) -> Best:
    strategy = ToSizes(known(drawn, **facts), [size], effort, 0, late)
    run(strategy, drawn)
    return strategy.best(0)


def near(best: Best, size: float) -> bool:
    return (1.0 - ACCEPTED) * size <= best.trial.size <= size


def test_strategies_need_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import l2c.search as s\n"
        "strategy = s.ToSizes([s.Picture(0, 100, 80)], [2000.0], s.sizes.Effort(), 0, lambda: False)\n"
        "while asked := strategy.ask():\n"
        "    strategy.tell({q.i: s.Trial(500 + 3 * q.quality, q.quality) for q in asked})\n"
        "assert 1960 <= strategy.best(0).trial.size <= 2000\n"
        "assert not any(name.startswith(('l2c.codec', 'l2c.ops', 'torch.')) for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("size", [3_000, 10_000, 50_000, 150_000])
@pytest.mark.parametrize("overhead", [0, 20_000])
def test_a_size_is_met_in_few_probes(size: int, overhead: int) -> None:
    drawn = Drawn(lambda quality: overhead + photograph(quality), overhead=overhead)
    best = to_size(drawn, overhead + size)
    assert near(best, overhead + size) and not best.reason
    assert best.probes == len(drawn.asked) <= MAX_PROBES
    assert {type(question) for question in drawn.asked} == {Plain}
    assert best.trial.coded == ("plain", best.trial.quality)


@pytest.mark.parametrize("name", STEEP)
@pytest.mark.parametrize("bpp", [0.05, 0.5, 2.0, 5.5])
@pytest.mark.parametrize("effort", [0, 4])
def test_steep_curves(name: str, bpp: float, effort: int) -> None:
    """The file is the largest that fits where there is one, adapted or not; never larger than asked."""
    qualities, logs = [q for q, _ in STEEP[name]], [math.log(value * PIXELS / 8) for _, value in STEEP[name]]
    drawn = Drawn(lambda quality: int(math.exp(np.interp(quality, qualities, logs))), trims=1.0)
    size = bpp * PIXELS / 8
    fitting = [q for q in range(1001) if drawn.size(q) <= size]
    if not fitting and not effort:
        with pytest.raises(RateError):
            to_size(drawn, size)
        return
    best = to_size(drawn, size, EFFORTS[effort])
    least = 0.93 * drawn.size(max(fitting[-1] - 1, 0)) if fitting else size  # adapted, it fits all the same
    assert min(0.98 * size, least) <= best.trial.size <= size
    assert bool(best.reason) != near(best, size)


@pytest.mark.parametrize("effort", [0, 4])
def test_a_rate_out_of_reach(effort: int) -> None:
    drawn = Drawn(lambda quality: 3 * photograph(quality), steers=0.0, trims=0.0)
    with pytest.raises(RateError, match=r"800x500 picture can reach: its least rate is 0\.1200 bpp \(6000 bytes") as e:
        to_size(drawn, 5000.0, EFFORTS[effort])
    assert e.value.least_bpp == pytest.approx(0.12)
    assert len(drawn.of(Plain)) > 1


def test_sizes_that_no_quality_has() -> None:
    best = to_size(Drawn(), 1e9)
    assert best.trial.quality == 1000 and best.reason.startswith("the best quality of this model needs only ")
    steps = Drawn(lambda quality: 20_000 if quality < 613 else 40_000)
    best = to_size(steps, 30_000)
    assert best.trial.size == 20_000 and best.reason == "no quality found gives a file between 20000 and 30000 bytes"


@pytest.mark.parametrize("saving", [0.0, 0.05, 0.1, 0.14, 0.2, 0.3])
@pytest.mark.parametrize("steers", [0.4, 0.8, 1.4])
@pytest.mark.parametrize("overhead", [0, 15_000])
def test_corrections_after_adaptation(saving: float, steers: float, overhead: int) -> None:
    """Whatever an adaptation saves, expected were 9 %: the file comes to its size, and is the adapted one."""
    size = overhead + 25_000
    drawn = Drawn(
        lambda q: overhead + photograph(q),
        overhead=overhead,
        saving=saving,
        steers=steers,
        trims=0.6,
    )
    best = to_size(drawn, size, EFFORTS[4])
    assert near(best, size) and not best.reason
    assert best.trial.coded[0] == "adapted"
    corrections = len(drawn.of(Steer, Trim))
    assert best.trial.corrections <= corrections <= MAX_STEERS + MAX_TRIMS
    assert len(drawn.of(Adapt)) == 1
    (adapt,) = drawn.of(Adapt)
    assert adapt.aim == pytest.approx((1.003 * size - overhead) / photograph(adapt.quality))
    assert best.trial.report == len(drawn.asked)  # what the encoder said last
    assert best.probes == len({question.quality for question in drawn.of(Plain)})


def test_what_is_much_too_large_is_steered_and_what_is_nearly_there_is_trimmed() -> None:
    asked = Drawn()
    to_size(asked, 25_000, EFFORTS[4])
    plain = photograph(asked.of(Adapt)[0].quality)
    for size, first in ((25_600, [Steer]), (25_200, [Trim]), (24_600, []), (24_400, [Steer])):
        drawn = Drawn(saving=1.0 - size / plain)
        assert near(to_size(drawn, 25_000, EFFORTS[4]), 25_000)
        order = [type(question) for question in drawn.of(Steer, Trim)]
        assert order[:1] == first
        assert Steer not in order[order.index(Trim) :] if Trim in order else True


def test_a_correction_without_effect_ends_them() -> None:
    drawn = Drawn(saving=0.2, steers=0.0)
    to_size(drawn, 25_000, EFFORTS[4])
    assert [type(question) for question in drawn.of(Adapt, Steer)] == [Adapt, Steer, Steer, Adapt]  # near at once there
    drawn = Drawn(saving=0.0, steers=0.0, trims=0.0)
    to_size(drawn, 25_000, EFFORTS[4])
    assert len(drawn.of(Steer)) == 2 and len(drawn.of(Trim)) <= MAX_TRIMS


def test_the_best_trial_counts_and_the_last_report() -> None:
    """Where a correction overshoots the trial before it is taken, with what the encoder said at the end."""
    drawn = Drawn(saving=EXPECTED + 0.04, steers=3.0, trims=0.0)
    best = to_size(drawn, 25_000, EFFORTS[4], late=lambda: bool(drawn.of(Steer)))
    (adapt,), (trim,) = drawn.of(Adapt), drawn.of(Trim)
    assert best.trial.size == round((1.0 - drawn.saving) * photograph(adapt.quality)) and best.trial.corrections == 2
    assert best.trial.report == drawn.asked.index(trim) + 1


def test_a_picture_that_comes_nowhere_near_is_adapted_elsewhere() -> None:
    """At a quality chosen by what the adaptation saved; no steering or restoring helps here."""
    drawn = Drawn(saving=0.4, steers=0.0)
    best = to_size(drawn, 25_000, EFFORTS[4])
    first, second = drawn.of(Adapt)
    assert second.quality > first.quality and second.aim is None
    assert near(best, 25_000) and best.trial.quality == second.quality


def test_what_no_adaptation_reaches_is_coded_without() -> None:
    useless = Drawn(saving=-0.5, steers=0.0, trims=0.0)
    best = to_size(useless, 25_000, EFFORTS[4])
    assert near(best, 25_000) and best.trial.coded[0] == "plain" and best.trial.report is None
    # An adapted file a little below the size is worth as much as a plain one that has it.
    steps = Drawn(lambda q: 24_000 if q < 700 else 90_000, saving=0.05, steers=0.0)
    best = to_size(steps, 25_000, EFFORTS[4])
    assert best.trial.coded[0] == "adapted" and best.trial.size == 22_800
    assert best.reason == "no quality found gives a file between 22800 and 25000 bytes"


def test_tries_differ_and_the_least_cost_counts() -> None:
    for cheapest in range(3):
        drawn = Drawn()
        to_size(drawn, 25_000, Effort(4, tries=3))
        qualities = [question.quality for question in drawn.of(Adapt)]
        assert len(qualities) == 3 and qualities[2] < qualities[0] < qualities[1]
        assert [(q.turn, q.turns) for q in drawn.of(Adapt)] == [(0, 3), (1, 3), (2, 3)]
        chosen = qualities[cheapest]
        drawn = Drawn(cost=lambda quality, chosen=chosen: abs(quality - chosen))
        best = to_size(drawn, 25_000, Effort(4, tries=3))
        assert near(best, 25_000) and best.trial.quality == chosen
        assert {question.quality for question in drawn.of(Weigh)} == {qualities[0]}
        assert len(drawn.of(Weigh)) == 4
    flat = Drawn(lambda quality: 500 + quality // 1000)
    to_size(flat, 25_000, Effort(4, tries=3))
    assert len(flat.of(Adapt)) == 1  # there is no other quality to try


def test_of_two_tries_the_one_near_the_size_counts_whatever_it_costs() -> None:
    class Once(Drawn):
        def answer(self, question: Question[Any]) -> Any:
            self.steers = 0.0 if len(self.of(Adapt)) == 2 else 0.9  # the second try stays far below
            return super().answer(question)

    drawn = Once(saving=0.2, cost=lambda quality: 1000.0 - quality)
    best = to_size(drawn, 25_000, Effort(4, tries=2))
    assert near(best, 25_000) and best.trial.quality == drawn.of(Adapt)[0].quality
    assert not drawn.of(Weigh)


def test_time_that_is_over() -> None:
    drawn = Drawn()
    best = to_size(drawn, 25_000, EFFORTS[9], late=lambda: True)
    assert near(best, 25_000) and best.trial.coded[0] == "plain" and not drawn.of(Adapt)
    drawn = Drawn(saving=0.0, searched=False)
    best = to_size(drawn, 25_000, EFFORTS[9], late=lambda: bool(drawn.of(Adapt)))
    assert len(drawn.of(Adapt)) == 1 and not drawn.of(Steer, Trim)
    assert near(best, 25_000) and best.trial.coded[0] == "plain"
    drawn = Drawn(saving=0.0)  # what was searched is still brought to its size, by trimming
    best = to_size(drawn, 25_000, EFFORTS[9], late=lambda: bool(drawn.of(Adapt)))
    assert near(best, 25_000) and best.trial.coded[0] == "adapted" and not drawn.of(Steer) and drawn.of(Trim)


def test_pictures_are_asked_about_together() -> None:
    """One round of questions for all of a batch, as many rounds as the slowest picture needs; then all adaptations."""
    parts = [Drawn(), Drawn(lambda quality: 3 * photograph(quality)), Drawn(lambda quality: 300 + quality * 90)]
    strategy = ToSizes(known(*parts), [25_000.0, 40_000.0, 30_000.0], EFFORTS[4], 0, never)
    rounds = run(strategy, *parts)
    assert [question.i for question in rounds[0]] == [0, 1, 2]
    assert len(rounds) < sum(len(part.asked) for part in parts)
    plain = max(len(part.of(Plain)) for part in parts)
    assert [type(question) for question in rounds[plain]] == [Adapt] * 3
    assert all(isinstance(question, Plain) for part in rounds[:plain] for question in part)
    # In whatever order the answers come, they are the same.
    again = [dataclasses.replace(part, asked=[]) for part in parts]
    other = ToSizes(known(*again), [25_000.0, 40_000.0, 30_000.0], EFFORTS[4], 0, never)
    run(other, *again, some=True)
    for i in range(3):
        assert other.best(i).trial.size == strategy.best(i).trial.size
        assert again[i].asked == parts[i].asked


def test_one_picture_out_of_reach_does_not_hide_the_others() -> None:
    strategy = ToSizes(known(Drawn(), Drawn()), [10.0, 25_000.0], EFFORTS[0], 0, never)
    run(strategy, Drawn(), Drawn())
    assert near(strategy.best(1), 25_000)
    with pytest.raises(RateError):
        strategy.best(0)


def peaked(quality: int) -> float:
    """A cost that rises again above quality 600."""
    return 10.0 + abs(quality - 600) / 100


@pytest.mark.parametrize("why", ["clipped", "flat", "small"])
def test_the_guard_looks_where_it_has_to(why: str) -> None:
    drawn = Drawn(cost=peaked)
    if why == "clipped":
        drawn.clipped = lambda quality: 2.0 * CLIPPED if quality > 600 else 0.0
    if why == "small":
        drawn.size = lambda quality: photograph(quality) // 10
    strategy = AtQualities(known(drawn, flat=why == "flat"), [930], adapts=True)
    run(strategy, drawn)
    assert [question.quality for question in drawn.of(Plain)] == [930, 600]
    looks = [question.quality for question in drawn.of(LookAt)]
    assert looks[:3] == [900, 930, 850] and len(looks) == len(set(looks)) and 600 in looks
    assert [question.quality for question in drawn.of(Adapt)] == [600]
    assert strategy.best(0).trial.coded[:2] == ("adapted", 600)


def test_photographs_cost_no_look() -> None:
    parts = [Drawn(cost=peaked), Drawn(cost=peaked)]
    strategy = AtQualities(known(*parts), [1000, 20], adapts=False)
    assert len(run(strategy, *parts)) == 1
    assert [question.quality for part in parts for question in part.asked] == [1000, 20]
    assert strategy.best(0) == Best(Trial(photograph(1000), 1000, ("plain", 1000)))


def test_a_settled_quality_is_coded_once() -> None:
    drawn = Drawn(cost=peaked)
    pictures = known(drawn, flat=True)
    for _ in range(2):
        drawn.asked.clear()
        run(AtQualities(pictures, [930], adapts=False), drawn)
    assert drawn.asked == [Plain(0, 600)]


def test_what_the_guard_settled_is_remembered() -> None:
    """In a search no quality is looked at twice, and what it settled on is the reason that a target gives."""
    drawn = Drawn(lambda quality: 2000 + quality, cost=peaked)
    strategy = ToSizes(known(drawn, flat=True), [50_000.0], EFFORTS[0], 0, never)
    run(strategy, drawn)
    best = strategy.best(0)
    assert best.trial.quality == 600
    assert best.reason == "this picture is best at quality 60, which needs only 0.0520 bpp"
    looks = [question.quality for question in drawn.of(LookAt)]
    assert len(looks) == len(set(looks))


def test_looks_of_one_picture_do_not_hold_up_the_questions_about_another() -> None:
    parts = [Drawn(cost=peaked, clipped=lambda quality: 1.0), Drawn()]
    strategy = ToFigures(known(*parts), 33.0, "PSNR", False, never)
    rounds = run(strategy, *parts)
    assert any({type(question) for question in part} == {LookAt, Measure} for part in rounds)


@pytest.mark.parametrize("target", [25.0, 31.3, 38.0])
@pytest.mark.parametrize("effort", [False, True])
def test_a_figure_is_reached_at_least_size(target: float, effort: bool) -> None:
    drawn = Drawn()
    strategy = ToFigures(known(drawn), target, "MS-SSIM", effort, never)
    run(strategy, drawn)
    best = strategy.best(0)
    measured = [question for question in drawn.of(Measure) if question.trial.coded == best.trial.coded]
    assert measured and all(question.figure == "MS-SSIM" for question in drawn.of(Measure))
    assert target <= drawn.answer(measured[-1]) <= target + 0.1 and not best.reason
    assert best.probes == len(drawn.of(Plain)) <= MAX_PROBES
    assert len(drawn.of(Adapt)) == int(effort)
    if effort:
        plain = ToFigures(known(Drawn()), target, "MS-SSIM", False, never)
        run(plain, Drawn())
        assert best.trial.coded[0] == "adapted" and best.trial.size < plain.best(0).trial.size
        assert best.trial.corrections == len(drawn.of(Steer)) <= MAX_STEERS


def test_an_adaptation_that_gains_nothing_is_not_taken() -> None:
    drawn = Drawn(saving=-0.2, gain=-3.0)
    strategy = ToFigures(known(drawn), 31.3, "PSNR", True, never)
    run(strategy, drawn)
    assert strategy.best(0).trial.coded[0] == "plain" and strategy.best(0).reason == ""


def test_figures_out_of_reach() -> None:
    for figure_, shown in (("PSNR", "PSNR 42.00 dB"), ("MS-SSIM", "MS-SSIM 0.99994")):
        drawn = Drawn()
        strategy = ToFigures(known(drawn), 60.0, figure_, False, never)  # type: ignore[arg-type]
        run(strategy, drawn)
        assert strategy.best(0).trial.quality == 1000
        assert strategy.best(0).reason == f"the best that this model was seen to do here is {shown}"


def test_figures_when_time_is_over() -> None:
    drawn = Drawn()
    strategy = ToFigures(known(drawn), 31.3, "PSNR", True, lambda: True)
    run(strategy, drawn)
    assert not drawn.of(Adapt) and strategy.best(0).trial.coded[0] == "plain"
    strategy = ToFigures(known(drawn), 31.3, "PSNR", True, lambda: bool(drawn.of(Adapt)))
    run(strategy, drawn)
    assert len(drawn.of(Adapt)) == 1 and not drawn.of(Steer)


STEPS = (0, 143, 286, 429, 571, 714, 857, 1000)


def by_steps(strategy: Strategy, drawn: Drawn) -> Best:
    run(strategy, drawn)
    assert {q.quality for q in drawn.of(Plain, Adapt)} <= set(STEPS) and not drawn.of(LookAt)
    return strategy.best(0)


class TestSteps:
    """A model with networks at a few qualities alone."""

    @pytest.mark.parametrize("quality", STEPS)
    @pytest.mark.parametrize("adapts", [False, True])
    def test_at_one(self, quality: int, adapts: bool) -> None:
        drawn = Drawn()
        best = by_steps(StepsAt(known(drawn, flat=True), quality, adapts), drawn)
        assert best.trial.quality == quality and best.trial.coded[0] == ("adapted" if adapts else "plain")
        assert len(drawn.asked) == 1

    @pytest.mark.parametrize("size", [2_000, 2_001, 9_000, 30_000, 198_968, 10**6])
    def test_the_largest_that_fits(self, size: int) -> None:
        drawn = Drawn()
        best = by_steps(StepsToSizes(known(drawn), STEPS, [size], False, never), drawn)
        fitting = [quality for quality in STEPS if photograph(quality) <= size]
        assert best.trial.quality == fitting[-1] and best.probes == len(drawn.asked) <= 4
        assert bool(best.reason) == (size == 10**6)

    def test_adapted_where_it_fits(self) -> None:
        size = photograph(571) - 1
        for saving, expected in ((0.1, ("adapted", 571)), (-0.1, ("adapted", 429)), (-2.0, ("plain", 429))):
            drawn = Drawn(saving=saving)
            best = by_steps(StepsToSizes(known(drawn), STEPS, [size], True, never), drawn)
            assert best.trial.coded[:2] == expected and best.trial.size <= size
        drawn = Drawn(saving=0.1)
        best = by_steps(StepsToSizes(known(drawn), STEPS, [size], True, lambda: True), drawn)
        assert best.trial.coded == ("plain", 429)  # no time to adapt

    def test_nothing_fits(self) -> None:
        drawn = Drawn(saving=0.1)
        with pytest.raises(RateError, match=r"its least rate is 0\.0400 bpp \(2000 bytes"):
            by_steps(StepsToSizes(known(drawn), STEPS, [1_700], True, never), drawn)
        drawn = Drawn(saving=0.1)  # but its adaptation may
        assert by_steps(StepsToSizes(known(drawn), STEPS, [1_900], True, never), drawn).trial.size == 1_800

    @pytest.mark.parametrize("target", [20.0, 27.3, 34.0, 41.9, 50.0])
    def test_the_smallest_that_is_good_enough(self, target: float) -> None:
        drawn = Drawn()
        best = by_steps(StepsToFigures(known(drawn), STEPS, target, "PSNR", False, never), drawn)
        good = [quality for quality in STEPS if figure(quality) >= target]
        assert best.trial.quality == (good[0] if good else STEPS[-1])
        assert bool(best.reason) != bool(good) and best.probes <= 4

    def test_adapted_to_a_figure(self) -> None:
        target = figure(429) + 0.2
        for gain, saving, expected in ((0.3, 0.1, ("adapted", 429)), (0.1, 0.1, ("adapted", 571)),
                                       (0.1, -0.1, ("plain", 571))):  # fmt: skip
            drawn = Drawn(gain=gain, saving=saving)
            best = by_steps(StepsToFigures(known(drawn), STEPS, target, "PSNR", True, never), drawn)
            assert best.trial.coded[:2] == expected and not best.reason
        drawn = Drawn(gain=0.3)
        best = by_steps(StepsToFigures(known(drawn), STEPS, figure(1000) + 0.2, "PSNR", True, never), drawn)
        assert best.trial.coded[:2] == ("adapted", 1000) and not best.reason


@pytest.mark.parametrize("effort", [0, 4])
@pytest.mark.parametrize("reserve", [30.0, 150.0, 5_000.0])
def test_what_is_added_later_has_its_room(reserve: float, effort: int) -> None:
    """The reserve stays free, up to 1 % of the size, and the size is met with and without it."""
    for size in (12_345, 54_321):
        best = to_size(Drawn(), size, EFFORTS[effort], reserve=reserve)
        kept = min(reserve, 0.01 * size)
        assert near(best, size) and not best.reason
        assert kept <= best.room == size - best.trial.size


@pytest.mark.parametrize("effort", [0, 4])
def test_a_reserve_is_given_up_where_nothing_else_fits(effort: int) -> None:
    """The least file is found at its very size; steps of the curve that only fit without a reserve, too."""
    least = photograph(0)
    stubborn = Drawn(steers=0.0, trims=0.0, saving=0.0)
    best = to_size(stubborn, least, EFFORTS[effort], reserve=100.0)
    assert best.trial.size == least and best.room == 0.0 and not best.reason
    with pytest.raises(RateError, match=f"{least - 1} bytes"):
        to_size(Drawn(steers=0.0, trims=0.0, saving=0.0), least - 1, EFFORTS[effort], reserve=100.0)
    steps = Drawn(lambda quality: 10_000 if quality < 400 else 15_000, steers=0.0, trims=0.0, saving=0.0)
    assert to_size(steps, 15_050, EFFORTS[effort], reserve=100.0).trial.size == 15_000
    low = Drawn(lambda quality: 14_700 if quality < 400 else 15_000)  # less than 2 % below what the reserve leaves
    best = to_size(low, 15_100, reserve=151.0)
    assert best.trial.size == 15_000 and not best.reason


def test_a_figure_binds_the_default_and_leaves_room() -> None:
    drawn = Drawn()
    strategy = ToFigures(known(drawn), 30.0, "PSNR", False, never)
    run(strategy, drawn)
    best = strategy.best(0)
    assert best.measured and best.room == math.inf
    at = AtQualities(known(drawn), [500], False)
    run(at, drawn)
    assert not at.best(0).measured and at.best(0).room == math.inf
