"""Hands out the work, and keeps count of who died of what.

A worker that dies (killed for memory, a machine that is gone, a crash in a library) takes the files in its hands with
it. Those are given to others one by one, so that the one file that is at fault is alone with the next worker that dies;
after some deaths it is given up. The rest of the task is worked on as if nothing had happened, and a shard once more
from its beginning.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from l2c.bulk.engines import Engine
from l2c.bulk.tasks import Begun, Died, Done, Event, Failed, Idle, Item, Outcome, Ready, Task
from l2c.errors import BackendError

_WAIT_SECONDS = 0.5  # so that the progress moves and Ctrl-C is heard


@dataclass(frozen=True)
class Result:
    """What came of an item, and, of a shard, of its members."""

    item: Item
    outcome: Outcome
    warnings: tuple[str, ...] = ()
    members: tuple[Done, ...] = ()


@dataclass
class _Hands:
    """What one worker has in work."""

    task: Task
    begun: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    members: list[Done] = field(default_factory=list)


class Drive:
    """Lets the workers of an engine do all items; each comes out once, in whatever order.

    Args:
        items: no two of one source.
        workers: at a time. batch: the most files of a task.
        attempts: so many workers may die of a file before it counts as failed.
    Attributes:
        deaths: of workers so far. workers_ready: that have their model now.
        members_done: of shards that are in work.
    """

    def __init__(self, items: Sequence[Item], engine: Engine, *, workers: int, batch: int, attempts: int) -> None:
        self._engine, self._most, self._attempts = engine, workers, attempts
        self._todo = deque(_tasks(items, workers, batch))
        self._starting: set[int] = set()
        self._free: list[int] = []
        self._hands: dict[int, _Hands] = {}
        self._died_of: Counter[str] = Counter()
        self._early_deaths = 0
        self.deaths = 0

    @property
    def workers_ready(self) -> int:
        return len(self._free) + len(self._hands)

    @property
    def members_done(self) -> int:
        return sum(len(hands.members) for hands in self._hands.values())

    def __iter__(self) -> Iterator[list[Result]]:
        """Results as they come, at least twice a second a list of them, perhaps an empty one.

        Raises:
            BackendError: workers die before they begin. Whatever keeps a worker from beginning.
        """
        try:
            while self._todo or self._hands:
                self._hand_out()
                found: list[Result] = []
                for worker, event in self._engine.events(_WAIT_SECONDS):
                    found += self._happened(worker, event)
                yield found
        finally:
            self._engine.close()

    def _hand_out(self) -> None:
        while self._todo and self._free:
            worker, task = self._free.pop(0), self._todo.popleft()
            self._hands[worker] = _Hands(task)
            self._engine.give(worker, task)
        wanted = min(self._most, len(self._todo) + len(self._hands))
        while len(self._starting) + self.workers_ready < wanted:
            self._starting.add(self._engine.start())

    def _happened(self, worker: int, event: Event) -> list[Result]:
        if isinstance(event, Ready):
            self._starting.discard(worker)
            self._free.append(worker)
            self._early_deaths = 0
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Begun):
            self._hands[worker].begun |= set(event.keys)
        elif isinstance(event, Done):
            return self._done(self._hands[worker], event)
        elif isinstance(event, Idle):
            del self._hands[worker]
            self._free.append(worker)
        elif isinstance(event, Died):
            return self._died(worker, event.reason)
        return []

    def _done(self, hands: _Hands, event: Done) -> list[Result]:
        item = next((item for item in hands.task.items if item.source == event.key), None)
        if item is None:
            hands.members.append(event)
            hands.done.add(event.key)
            return []
        hands.done.add(event.key)
        members, hands.members = tuple(hands.members), []
        return [Result(item, event.outcome, event.warnings, members)]

    def _died(self, worker: int, reason: str) -> list[Result]:
        self.deaths += 1
        hands = self._hands.pop(worker, None)
        if worker in self._starting:
            self._starting.discard(worker)
            self._early_deaths += 1
            if self._early_deaths >= self._attempts:
                if not self.workers_ready:
                    raise BackendError(f"workers die before they begin: the last one {reason}")
                self._most = max(1, self._most - 1)  # there is no room for more
        if worker in self._free:
            self._free.remove(worker)
        if hands is None:
            return []
        return (self._shard_again if hands.task.items[0].shard else self._files_again)(hands, reason)

    def _files_again(self, hands: _Hands, reason: str) -> list[Result]:
        left = [replace(item, replace=True) for item in hands.task.items if item.source not in hands.done]
        held = [item for item in left if item.source in hands.begun] or left
        rest = tuple(item for item in left if item not in held)
        if rest:
            self._todo.appendleft(Task(rest))
        results = []
        for item in held:
            self._died_of[item.source] += 1
            if self._died_of[item.source] < self._attempts:
                self._todo.append(Task((item,)))
            else:
                results.append(Result(item, self._given_up(self._died_of[item.source], reason)))
        return results

    def _shard_again(self, hands: _Hands, reason: str) -> list[Result]:
        item = hands.task.items[0]
        if item.source in hands.done:
            return []
        deaths, given_up = Counter(hands.task.deaths), dict(hands.task.given_up)
        held = hands.begun - hands.done
        for name in held:
            deaths[name] += 1
            if deaths[name] >= self._attempts:
                given_up[name] = self._given_up(deaths[name], reason)
        if not held:
            self._died_of[item.source] += 1
            if self._died_of[item.source] >= self._attempts:
                return [Result(item, self._given_up(self._died_of[item.source], reason))]
        self._todo.appendleft(Task((replace(item, replace=True),), dict(deaths), given_up))
        return []

    @staticmethod
    def _given_up(deaths: int, reason: str) -> BackendError:
        return BackendError(f"given up after {deaths} workers died of it: the last one {reason}")


def _tasks(items: Sequence[Item], workers: int, batch: int) -> Iterator[Task]:
    """Shards first, which take long; then files, in smaller parts where there are too few for all workers."""
    yield from (Task((item,)) for item in items if item.shard)
    files = [item for item in items if not item.shard]
    size = max(1, min(batch, -(-len(files) // (2 * workers))))
    yield from (Task(tuple(files[start : start + size])) for start in range(0, len(files), size))
