"""What a call asks for -> the files that meet it: qualities, sizes, or figures."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace

from l2c.adapt.effort import MAX_TRIES
from l2c.adapt.encoder import Adapted
from l2c.adapt.savings import saving
from l2c.codec.encoder import Batch, Coded, Encoder, Trial
from l2c.codec.results import Encoded
from l2c.codec.support import names_of, naming
from l2c.errors import RateError
from l2c.format.levels import MAX_QUALITY
from l2c.rate_control import (
    ACCEPTED,
    MAX_STEERS,
    MAX_TRIMS,
    TOLERANCE,
    MetricSearch,
    QualitySearch,
    Steering,
)

_ADAPTED_TOLERANCE = 0.03  # of the size that a quality is searched for, where adaptation follows
_WORTH_ADAPTING = 0.93  # an adapted file that much smaller is as good as a plain one
_METRIC_TOLERANCE = 0.02  # dB that a file may exceed a target in PSNR or MS-SSIM
_TRIES = (1.0, 1.5, 0.5, 1.25, 0.75)[:MAX_TRIES]  # times the mean saving, where several qualities are tried
_TRIMMED = 1.01  # files up to this many times the target are trimmed, larger ones steered


class Search:
    """Puts an encoder's steps together, all open pictures of a batch sharing each pass."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def to_levels(self, batch: Batch, levels: list[int]) -> list[Encoded]:
        """Files at given qualities 0..1000, adapted as the effort says."""
        # Where it adapts, too: the guards have to say what a quality is coded at.
        trials = [Trial(coded) for coded in self._encoder.encode_at(batch, range(len(levels)), levels)]
        if batch.effort.adapts:
            for i, adapted in self._encoder.adapt(batch, levels):
                trials[i] = Trial(self._encoder.code_adapted(batch, i, adapted), adapted.report())
        return [self._encoder.write(batch, i, trial) for i, trial in enumerate(trials)]

    def to_sizes(self, batch: Batch, sizes: list[float]) -> list[Encoded]:
        """Encode every picture at the best quality whose file fits its size; all open pictures share each pass.

        With adaptation the quality is searched for a file that is larger by what the adaptation saves on average, and
        the rest of the difference is made up in the latents, without E. Several tries start at different qualities, and
        the least distortion counts. A picture that this does not bring to its size is adapted once more at a quality
        chosen by what its adaptation saved, and in the end coded without.
        """
        searches = [
            QualitySearch(
                self._unadapted(batch, i, sizes[i]),
                p.height * p.width,
                self._encoder.model.rate_curve,
                _ADAPTED_TOLERANCE if batch.effort.adapts else TOLERANCE,
                overhead=batch.overhead(i),
            )
            for i, p in enumerate(batch.pictures)
        ]
        results: list[Trial | None]
        if not batch.effort.adapts:
            results = self._at_size(batch, searches)
        else:
            self._find(batch, searches)
            results = [None] * len(sizes)
            if time.perf_counter() < batch.deadline:
                self._adapt_to_sizes(batch, sizes, searches, results)
            # The pictures that are not there yet, without adaptation; what was probed already is known.
            for i, size in enumerate(sizes):
                if not _near(results[i], size):
                    search = searches[i].towards(size, TOLERANCE)
                    (plain,) = self._at_size(batch.only(i), [search])
                    adapted = results[i]
                    if adapted is None or (plain and adapted.size < _WORTH_ADAPTING * plain.size):
                        results[i] = plain
        rated = []
        for i, (name, result) in enumerate(zip(names_of(len(results)), results)):
            with naming(name):
                rated.append(self._rated(batch, i, sizes[i], searches[i], result))
        return rated

    def to_figures(self, batch: Batch, value: float, name: str) -> list[Encoded]:
        """Encode every picture at the least quality whose PSNR or MS-SSIM (both in dB) reaches `value`."""
        searches = [MetricSearch(value) for _ in batch.pictures]
        coded: list[dict[int, Coded]] = [{} for _ in batch.pictures]
        while True:
            asked = {i: search.next_quality for i, search in enumerate(searches)}
            due = {i: level for i, level in asked.items() if level is not None}
            if not due:
                break
            for (i, level), part in zip(due.items(), self._encoder.encode_at(batch, list(due), list(due.values()))):
                coded[i][level] = part
                searches[i].report(level, self._encoder.measured(batch, i, part, name), part.size)
        levels = [search.best for search in searches]
        trials = [Trial(mine[level]) for mine, level in zip(coded, levels)]
        reached = [search.values[level] for search, level in zip(searches, levels)]
        if batch.effort.adapts and time.perf_counter() < batch.deadline:
            for i, adapted in self._encoder.adapt(batch, levels):
                trials[i], reached[i] = self._fit_figure(batch, i, adapted, searches[i], trials[i], name)
        results = []
        for i, search in enumerate(searches):
            file = replace(self._encoder.write(batch, i, trials[i]), probes=len(search.values))
            if reached[i] < value:
                shown = f"{reached[i]:.2f} dB" if name == "PSNR" else f"{1.0 - 10.0 ** (-reached[i] / 10.0):.5f}"
                reason = f"the best that this model was seen to do here is {name} {shown}"
                file = replace(file, target_reached=False, reason=reason)
            results.append(file)
        return results

    def _fit_figure(
        self, batch: Batch, i: int, adapted: Adapted, search: MetricSearch, plain: Trial, name: str
    ) -> tuple[Trial, float]:
        """The smallest file found that reaches the target: the plain one, or an adapted one, steered there.

        Returns also its figure.
        """
        best, figure, growth = plain, search.values[search.best], search.bits_per_db()
        steering = Steering(math.exp(growth * (search.target + 0.2 * _METRIC_TOLERANCE)), beta=adapted.beta)
        for count in range(MAX_STEERS + 1):
            coded = self._encoder.code_adapted(batch, i, adapted)
            reached = self._encoder.measured(batch, i, coded, name)
            if reached >= search.target and coded.size < best.size:
                best, figure = Trial(coded, adapted.report(), count), reached
            good = search.target <= reached <= search.target + _METRIC_TOLERANCE
            if good or count == MAX_STEERS or time.perf_counter() > batch.deadline:
                break
            adapted.steer(steering.next_beta(math.exp(growth * reached)))
        return best, figure

    @staticmethod
    def _unadapted(batch: Batch, i: int, size: float, factor: float = 1.0) -> float:
        """Size of the unadapted file of a picture at whose quality the search for `size` bytes should begin.

        Args:
            factor: of what the effort is known to save.
        """
        picture, overhead = batch.pictures[i], batch.overhead(i)
        if size <= overhead:
            return size
        payload = size - overhead
        saved = saving(batch.effort, batch.mu, 8.0 * payload / (picture.height * picture.width))
        return overhead + payload / (1.0 - factor * saved)

    def _find(self, batch: Batch, searches: list[QualitySearch]) -> dict[int, Coded]:
        """Run the searches of all pictures; returns the latents of each one's best, where it was encoded here."""
        best: dict[int, tuple[int, Coded]] = {}
        while True:
            asked = {i: search.next_quality for i, search in enumerate(searches)}
            due = {i: level for i, level in asked.items() if level is not None}
            if not due:
                return {i: coded for i, (level, coded) in best.items() if level == searches[i].best}
            for (i, level), coded in zip(due.items(), self._encoder.encode_at(batch, list(due), list(due.values()))):
                searches[i].report(level, coded.size)
                if searches[i].best == level:
                    best[i] = (level, coded)

    def _at_size(self, batch: Batch, searches: list[QualitySearch]) -> list[Trial | None]:
        """The best unadapted file of each picture within its search's size; None where there is none."""
        found = self._find(batch, searches)
        results: list[Trial | None] = []
        for i, search in enumerate(searches):
            if search.best is None:
                results.append(None)
                continue
            coded = found[i] if i in found else self._encoder.encode_at(batch, [i], [search.best])[0]
            results.append(Trial(coded))
        return results

    def _adapt_to_sizes(
        self, batch: Batch, sizes: list[float], searches: list[QualitySearch], results: list[Trial | None]
    ) -> None:
        """Adapt all pictures and bring them to their sizes; fills in `results` where that works."""
        levels = [0 if search.best is None else search.best for search in searches]
        tries = batch.effort.tries if batch.effort.iterations else 1
        firsts = self._try(batch, sizes, searches, levels, results, (0, tries))
        done = [{level} for level in levels]
        for k in range(1, tries):
            if time.perf_counter() > batch.deadline:
                return
            factor = _TRIES[k]
            others = [
                search.towards(self._unadapted(batch, i, size, factor), _ADAPTED_TOLERANCE)
                for i, (search, size) in enumerate(zip(searches, sizes))
            ]
            self._find(batch, others)
            more = [0 if search.best is None else search.best for search in others]
            members = [i for i, level in enumerate(more) if level not in done[i]]
            if not members:
                batch.progress((k + 1) / tries, "adapted")
                continue
            tried: list[Trial | None] = [None] * len(members)
            targets, known = [sizes[i] for i in members], [searches[i] for i in members]
            self._try(batch.only(*members), targets, known, [more[i] for i in members], tried, (k, tries))
            for i, new in zip(members, tried):
                cost = functools.partial(self._cost, batch, i, levels[i])
                results[i] = better(results[i], new, sizes[i], cost)
                done[i].add(more[i])
        for i, (level, first) in enumerate(zip(levels, firsts)):
            if _near(results[i], sizes[i]) or time.perf_counter() > batch.deadline:
                continue
            only, search = batch.only(i), searches[i]
            grown = search.payload(search.sizes[level]) / search.payload(first)
            again = search.towards(search.overhead + search.payload(_aim(sizes[i])) * grown, TOLERANCE)
            self._find(only, [again])
            other = 0 if again.best is None else again.best
            if other != level:
                for _, adapted in self._encoder.adapt(only, [other]):
                    second, _ = self._fit(only, 0, adapted, sizes[i])
                    results[i] = max((r for r in (results[i], second) if r), key=lambda r: r.size, default=None)

    def _try(
        self,
        batch: Batch,
        sizes: list[float],
        searches: list[QualitySearch],
        levels: list[int],
        results: list[Trial | None],
        turn: tuple[int, int],
    ) -> list[int]:
        """Adapt all pictures at given qualities, aiming at their sizes; returns the sizes before corrections.

        `turn`: number of this try, and of how many.
        """
        (number, count), progress = turn, batch.progress
        batch = replace(batch, progress=lambda share, stage: progress((number + share) / count, stage))
        aims = [
            search.payload(_aim(size)) / search.payload(search.sizes[level])
            for size, search, level in zip(sizes, searches, levels)
        ]
        firsts = [0] * len(levels)
        for i, adapted in self._encoder.adapt(batch, levels, aims):
            results[i], firsts[i] = self._fit(batch, i, adapted, sizes[i])
        return firsts

    def _cost(self, batch: Batch, i: int, level: int, trial: Trial) -> float:
        return self._encoder.cost(batch, i, trial.coded, level)

    def _rated(self, batch: Batch, i: int, size: float, search: QualitySearch, result: Trial | None) -> Encoded:
        """The result with what the search for its rate has to say. Raises RateError where there is none."""
        picture, guarded = batch.pictures[i], batch.guards[i]
        if result is None:
            pixels, least = picture.height * picture.width, min(search.sizes.values())
            raise RateError(
                f"{8.0 * size / pixels:g} bpp ({size:.0f} bytes) is below what this {picture.width}x{picture.height} "
                f"picture can reach: its least rate is {8.0 * least / pixels:.4f} bpp ({least} bytes)",
                8.0 * least / pixels,
            )
        file = replace(self._encoder.write(batch, i, result), probes=len(search.sizes))
        if not _near(result, size):
            reason = f"no quality found gives a file between {result.size} and {size:.0f} bytes"
            if result.quality == 100.0:
                reason = f"the best quality of this model needs only {file.bpp:.4f} bpp"
            elif guarded.settled.get(MAX_QUALITY) == round(result.quality * MAX_QUALITY / 100):
                reason = f"this picture is best at quality {result.quality:g}, which needs only {file.bpp:.4f} bpp"
            file = replace(file, target_reached=False, reason=reason)
        return file

    def _fit(self, batch: Batch, i: int, adapted: Adapted, size: float) -> tuple[Trial | None, int]:
        """The adapted picture in at most `size` bytes and hardly less; None: it cannot be done.

        While the file is much too large the search goes on with bits that weigh more; what is left over is trimmed, and
        where too much was saved some of the last moves are taken back, all without E. Returns also the size before any
        of it.
        """
        best: Coded | None = None
        first = steers = trims = restores = 0
        goal, trust, change, before = (1.0 - 0.1 * ACCEPTED) * size, 1.0, 0.0, 0
        overhead = batch.overhead(i)
        steering = Steering(max(_aim(size) - overhead, 1.0), beta=adapted.beta)
        while True:
            coded = self._encoder.code_adapted(batch, i, adapted)
            now = coded.size
            first = first or now
            if now <= size and (best is None or now > best.size):
                best = coded
            late = time.perf_counter() > batch.deadline
            if (1.0 - 0.5 * ACCEPTED) * size <= now <= size or (late and not adapted.searched):
                break
            if not (trims or restores or late) and now > _TRIMMED * size and steers < MAX_STEERS:
                adapted.steer(steering.next_beta(max(now - overhead, 1.0)))
                steers += 1
                continue
            if change:
                trust = min(max(8.0 * (now - before) / change, 0.3), 3.0)
            before = now
            if now > size and trims < MAX_TRIMS:
                trims += 1
                change = -adapted.trim(8.0 * (now - goal) / trust)
            elif now <= size and not trims and restores < MAX_TRIMS:
                restores += 1
                change = adapted.restore(8.0 * (goal - now) / trust)
            else:
                break
            if change == 0.0:
                break
        if best is None:
            return None, first
        return Trial(best, adapted.report(), steers + trims + restores), first


def _aim(size: float) -> float:
    """What the search aims at where a file may have so many bytes: a little more, since trimming is exact."""
    return 1.003 * size


def _near(trial: Trial | None, size: float) -> bool:
    """Whether a file has the size that was asked for: at most that, and at most 2 % less."""
    return trial is not None and (1.0 - ACCEPTED) * size <= trial.size <= size


def better(old: Trial | None, new: Trial | None, size: float, cost: Callable[[Trial], float]) -> Trial | None:
    """Of two ways to one size the one that is near it, or if both are, the one that costs less."""
    if old is None or new is None or not _near(new, size) or not _near(old, size):
        return old if _near(old, size) else new if _near(new, size) else old or new
    return old if cost(old) <= cost(new) else new
