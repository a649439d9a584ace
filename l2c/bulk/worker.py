"""A worker: a codec that is made once, and files in batches. Every engine runs this, in whatever process."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from l2c.bulk import places, shards
from l2c.bulk.batching import BATCH_BYTES, together
from l2c.bulk.convert import Converted, File, make_converter
from l2c.bulk.tasks import Begun, Done, Event, Item, Spec, Task, portable
from l2c.codec.support import parts


class Interrupted(BaseException):
    """The run is stopped: nothing more is begun, and what is not yet written never will be."""


class Worker:
    """Works on tasks, one after the other.

    Args:
        index: of this worker, for the choice of a GPU.
    Attributes:
        stopped: set from another thread, it ends the work before the next file is written.
    Raises:
        BackendError, ModelMismatchError, UnsupportedError: as `Codec`.
    """

    def __init__(self, spec: Spec, index: int = 0) -> None:
        self.stopped = threading.Event()
        if spec.threads is not None:
            torch.set_num_threads(min(spec.threads, torch.get_num_threads()))
        self._batch = spec.batch
        self._convert = make_converter(spec, _model(spec), _device(spec.device, index))

    def work(self, task: Task) -> Iterator[list[Event]]:
        """What happens, some events at a time: `Begun` before files are worked on, `Done` for each when it is written.

        Raises:
            Interrupted: `stopped` is set.
        """
        if task.items[0].shard:
            yield from self._shard(task)
            return
        for start in range(0, len(task.items), self._batch):
            yield from self._files(task.items[start : start + self._batch])

    def _files(self, items: Sequence[Item]) -> Iterator[list[Event]]:
        yield [Begun(tuple(item.source for item in items))]
        whole: list[tuple[Item, File]] = []
        for item, data in zip(items, places.read_all([item.source for item in items])):
            if isinstance(data, Exception):
                yield [Done(item.source, portable(data))]
            else:
                whole.append((item, File(item.source, data, Path(item.target).suffix[1:])))
        for chosen in self._runs([file for _, file in whole]):
            found = self._convert([file for _, file in whole[chosen]])
            self._check()
            yield _written([item for item, _ in whole[chosen]], found)

    def _runs(self, files: Sequence[File]) -> Iterator[slice]:
        """Files that are worked on together: not too many pixels."""
        return parts([self._convert.pixels(file) for file in files], self._convert.most_pixels)

    def _shard(self, task: Task) -> Iterator[list[Event]]:
        """A shard with its members converted; other kinds go along as they are, those that fail are left out."""
        item, started, pictures, failed = task.items[0], time.perf_counter(), 0, 0
        try:
            with places.opened(item.source) as source, places.written(item.target, replace=item.replace) as target:
                copy = shards.ShardWriter(target)
                for group in shards.grouped(shards.read_members(source), self._fits(task)):
                    found: dict[str, Converted | Exception] = {
                        member.name: task.given_up[member.name] for member in group if member.name in task.given_up
                    }
                    files = [File(m.name, m.data) for m in group if self._is_wanted(m) and m.name not in found]
                    for chosen in self._runs(files):
                        yield [Begun(tuple(file.name for file in files[chosen]))]
                        found |= zip((file.name for file in files[chosen]), self._convert(files[chosen]))
                        self._check()
                    events: list[Event] = []
                    for member in group:
                        one = found.get(member.name)
                        if one is None:
                            copy.add(member.name, member.data, member.seconds)
                        elif isinstance(one, Exception):
                            events.append(Done(member.name, portable(one)))
                            failed += 1
                        else:
                            name = copy.free_name(member.name, self._convert.suffix)
                            copy.add(name, one.data, member.seconds)
                            events.append(Done(member.name, {**one.facts, "output": name}, one.warnings))
                            pictures += 1
                    yield events
                size = copy.close()
        except Exception as error:
            yield [Done(item.source, portable(error))]
            return
        seconds = {"total": time.perf_counter() - started}
        yield [Done(item.source, {"size_bytes": size, "pictures": pictures, "failed": failed, "seconds": seconds})]

    def _is_wanted(self, member: shards.Member) -> bool:
        return self._convert.wanted.takes(member.name)

    def _fits(self, task: Task) -> Callable[[list[shards.Member], shards.Member], bool]:
        """Whether a member belongs to a group of a shard: none that a worker died of, which are worked on alone."""

        def fits(group: list[shards.Member], member: shards.Member) -> bool:
            if member.name in task.deaths or group[-1].name in task.deaths:
                return False
            if sum(map(self._is_wanted, group)) == self._batch and self._is_wanted(member):
                return False
            return sum(len(one.data) for one in group) + len(member.data) <= BATCH_BYTES

        return fits

    def _check(self) -> None:
        if self.stopped.is_set():
            raise Interrupted


def _written(items: Sequence[Item], found: Sequence[Converted | Exception]) -> list[Event]:
    """Write what files became, and say what came of each."""
    made = [(item, one) for item, one in zip(items, found) if isinstance(one, Converted)]
    written = together(places.write_all, [(item.target, one.data, item.replace) for item, one in made])
    problems = {item.source: error for (item, _), error in zip(made, written) if error is not None}
    events: list[Event] = []
    for item, one in zip(items, found):
        if isinstance(one, Converted) and item.source not in problems:
            events.append(Done(item.source, one.facts, one.warnings))
        else:
            events.append(Done(item.source, portable(one if isinstance(one, Exception) else problems[item.source])))
    return events


def _device(device: str, index: int) -> str:
    """The device of one worker."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count() if device == "cuda" else 0
    return f"cuda:{index % count}" if count else device


def _model(spec: Spec) -> str | None:
    """The model as this process finds it: where the file is not to be seen, what came with the spec."""
    if spec.model is None or spec.model_data is None or os.path.isfile(spec.model):
        return spec.model
    path = Path(_models().name) / Path(spec.model).name
    path.write_bytes(spec.model_data)
    return str(path)


@functools.cache
def _models() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes when the process ends."""
    return tempfile.TemporaryDirectory(prefix="l2c-model-")
