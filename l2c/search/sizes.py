"""Files of a size: a search over qualities, then corrections of the adapted picture.

With adaptation the quality is searched for a file that is larger by what the adaptation saves on average, and the rest
of the difference is made up in the latents, without E. Several tries start at different qualities, and the least J
counts. A picture that this does not bring to its size is adapted once more at a quality chosen by what its adaptation
saved, and in the end coded without.

Where something is added to the file when the search is over (`Picture.reserve`), its bytes are left free, unless the
size is met in no other way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from l2c.adapt.effort import MAX_TRIES, Effort
from l2c.adapt.savings import saving
from l2c.errors import RateError
from l2c.format.levels import MAX_QUALITY
from l2c.rate_control import ACCEPTED, MAX_STEERS, MAX_TRIMS, TOLERANCE, QualitySearch
from l2c.search.course import Course, Rounds, Staged, ask, together
from l2c.search.picture import Picture
from l2c.search.questions import Adapt, Best, Steer, Trial, Trim, Weigh

_ADAPTED_TOLERANCE = 0.03  # of the size that a quality is searched for, where adaptation follows
_WORTH_ADAPTING = 0.93  # an adapted file that much smaller is as good as a plain one
_TRIES = (1.0, 1.5, 0.5, 1.25, 0.75)[:MAX_TRIES]  # times the mean saving, where several qualities are tried
_MOST_RESERVED = 0.5 * ACCEPTED  # of a size, so that one that stays free is met all the same
_PATIENCE = 2  # iterations in a row that may bring a size no nearer
_TRIMMED = 1.01  # files up to this many times the target are trimmed, larger ones steered


class ToSizes(Staged):
    """Every picture at the best quality whose file fits its size.

    Args:
        sizes: bytes of the file of each picture.
        effort, mu: what an adaptation does, and the metric mix 0..8, which say what it is known to save.
        late: whether the time for the adaptation is over.
    """

    def __init__(
        self, pictures: Sequence[Picture], sizes: Sequence[float], effort: Effort, mu: int, late: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._goals = [_Goal(picture, size, effort, mu, late) for picture, size in zip(pictures, sizes)]
        self._effort, self._late = effort, late

    def rounds(self) -> Rounds:
        """The qualities of all pictures; each try of all; at last, one by one, what is not there yet."""
        yield from together(goal.begin() for goal in self._goals)
        if not self._effort.adapts:
            yield from together(goal.do_without() for goal in self._goals if goal.reserve)
            return
        tries = self._effort.tries if self._effort.iterations else 1
        for turn in range(tries):
            if self._late():
                break
            yield from together(goal.attempt(turn, tries) for goal in self._goals)
        for goal in self._goals:
            yield from together([goal.adapt_again()])
        for goal in self._goals:
            yield from together([goal.do_without()])

    def best(self, i: int) -> Best:
        """See `Strategy`."""
        return self._goals[i].rated()


@dataclass
class _Goal:
    """One picture on its way to a size.

    Attributes:
        size: bytes; without the reserve from the start on.
        reserve: bytes that stay free beside it.
        search: for the quality where the adaptation begins, or for the one that counts where there is none.
        best: the best trial so far.
        done: qualities at which it was adapted, the first one first; first: the size there before corrections.
    """

    picture: Picture
    size: float
    effort: Effort
    mu: int
    late: Callable[[], bool]
    reserve: float = field(init=False)
    search: QualitySearch = field(init=False)
    best: Trial | None = None
    done: list[int] = field(default_factory=list)
    first: int = 0

    def __post_init__(self) -> None:
        tolerance = _ADAPTED_TOLERANCE if self.effort.adapts else TOLERANCE
        picture = self.picture
        self.reserve = min(picture.reserve, _MOST_RESERVED * self.size)
        self.size -= self.reserve
        self.search = QualitySearch(
            self._unadapted(1.0), picture.pixels, picture.curve, tolerance, overhead=picture.overhead
        )

    @property
    def aim(self) -> float:
        """What the adaptation aims at: a little more than the size, since trimming is exact."""
        return 1.003 * self.size

    def near(self, trial: Trial | None) -> bool:
        """Whether a file has the size that was asked for: at most that, and at most 2 % less, reserve or not."""
        return trial is not None and (1.0 - ACCEPTED) * (self.size + self.reserve) <= trial.size <= self.size

    def _nearly(self, trial: Trial) -> bool:
        """Whether trimming will do."""
        return self.size < trial.size <= _TRIMMED * self.size

    def _unadapted(self, factor: float) -> float:
        """Bytes of the unadapted file at whose quality the adaptation should begin.

        Args:
            factor: of what the effort is known to save.
        """
        overhead = self.picture.overhead
        if self.size <= overhead:
            return self.size
        payload = self.size - overhead
        return overhead + payload / (1.0 - factor * saving(self.effort, self.mu, 8.0 * payload / self.picture.pixels))

    def _find(self, search: QualitySearch) -> Course[Trial | None]:
        """Run a search; the trial of its best quality, or None where that is known from before or there is none."""
        best: Trial | None = None
        while (quality := search.next_quality) is not None:
            trial = yield from self.picture.plain(quality)
            search.report(quality, trial.size)
            if search.best == quality:
                best = trial
        return best

    def begin(self) -> Course[None]:
        """The quality of the largest unadapted file that fits; without adaptation that is all."""
        found = yield from self._find(self.search)
        if not self.effort.adapts:
            self.best = found

    def attempt(self, turn: int, turns: int) -> Course[None]:
        """Adapt at the quality of this turn, if it is another one than before, and keep the better trial."""
        search = self.search
        if turn:
            search = search.towards(self._unadapted(_TRIES[turn]), _ADAPTED_TOLERANCE)
            yield from self._find(search)
        quality = search.best or 0
        if quality in self.done:
            return
        self.done.append(quality)
        aim = self.search.payload(self.aim) / self.search.payload(self.search.sizes[quality])
        trial = yield from ask(Adapt(self.picture.i, self.picture.settled(quality), aim, turn, turns))
        fitted = yield from self._fit(trial)
        if turn == 0:
            self.best, self.first = fitted, trial.size
        else:
            self.best = yield from self._better(self.best, fitted)

    def adapt_again(self) -> Course[None]:
        """Adapt once more where no turn came near: at a quality chosen by what the first one saved."""
        if not self.done or self.near(self.best) or self.late():
            return
        search = self.search
        grown = search.payload(search.sizes[self.done[0]]) / search.payload(self.first)
        again = search.towards(search.overhead + search.payload(self.aim) * grown, TOLERANCE)
        yield from self._find(again)
        quality = again.best or 0
        if quality != self.done[0]:
            trial = yield from ask(Adapt(self.picture.i, self.picture.settled(quality)))
            fitted = yield from self._fit(trial)
            self.best = max((part for part in (self.best, fitted) if part), key=lambda part: part.size, default=None)

    def do_without(self) -> Course[None]:
        """Where nothing comes near: the largest unadapted file that fits, without a reserve, if it is worth more."""
        if self.near(self.best):
            return
        self.size, self.reserve = self.size + self.reserve, 0.0
        search = self.search.towards(self.size, TOLERANCE)
        plain = yield from self._find(search)
        if plain is None and search.best is not None:
            plain = yield from self.picture.plain(search.best)
        worth = _WORTH_ADAPTING if self.done else 1.0
        if self.best is None or (plain and self.best.size < worth * plain.size):
            self.best = plain

    def _fit(self, trial: Trial) -> Course[Trial | None]:
        """The adapted picture in at most the size and hardly less; None: it cannot be done.

        While the file is much too large or too small the search goes on towards the size; what is left over is trimmed,
        without any network.
        """
        i, size = self.picture.i, self.size
        best: Trial | None = None
        steers = trims = idle = before = 0
        goal, trust = (1.0 - 0.1 * ACCEPTED) * size, 1.0
        while True:
            now = trial.size
            if now <= size and (best is None or now > best.size):
                best = trial
            late = self.late()
            if self.near(trial) or (late and not trial.searched):
                break
            if not (trims or late) and not self._nearly(trial) and steers < MAX_STEERS and idle < _PATIENCE:
                steers += 1
                trial = yield from ask(Steer(i, 8.0 * (self.aim - now)))
                idle = 0 if abs(trial.size - self.aim) < abs(now - self.aim) else idle + 1
                continue
            if trial.change:
                trust = min(max(8.0 * (now - before) / trial.change, 0.3), 3.0)
            before = now
            if now <= size or trims == MAX_TRIMS:
                break
            trims += 1
            trial = yield from ask(Trim(i, 8.0 * (now - goal) / trust))
            if trial.change == 0.0:
                break
        return best and replace(best, report=trial.report, corrections=steers + trims)

    def _better(self, old: Trial | None, new: Trial | None) -> Course[Trial | None]:
        """Of two ways to the size the one that is near it, or if both are, the one of less J."""
        if old is None or new is None or not self.near(new) or not self.near(old):
            return old if self.near(old) else new if self.near(new) else old or new
        costs = []
        for trial in (old, new):
            costs.append((yield from ask(Weigh(self.picture.i, trial, self.done[0]))))
        return old if costs[0] <= costs[1] else new

    def rated(self) -> Best:
        """The best trial with what the search has to say. Raises RateError where there is none."""
        picture, trial, probes = self.picture, self.best, len(self.search.sizes)
        if trial is None:
            least = min(self.search.sizes.values())
            raise RateError(
                f"{8.0 * self.size / picture.pixels:g} bpp ({self.size:.0f} bytes) is below what this "
                f"{picture.width}x{picture.height} picture can reach: its least rate is "
                f"{8.0 * least / picture.pixels:.4f} bpp ({least} bytes)",
                8.0 * least / picture.pixels,
            )
        room = self.size + self.reserve - trial.size
        if self.near(trial):
            return Best(trial, probes, room=room)
        needed = f"needs only {8.0 * trial.size / picture.pixels:.4f} bpp"
        reason = f"no quality found gives a file between {trial.size} and {self.size:.0f} bytes"
        if trial.quality == MAX_QUALITY:
            reason = f"the best quality of this model {needed}"
        elif picture.guard.settled.get(MAX_QUALITY) == trial.quality:
            reason = f"this picture is best at quality {100.0 * trial.quality / MAX_QUALITY:g}, which {needed}"
        return Best(trial, probes, reason, room)
