"""L2C files in batches: small pictures share passes of P and D, and no more is held than one batch.

One file that fails does not spoil the others: a batch that raises is worked on once more, file by file, so that every
error is that of a file alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from l2c.bulk.batching import BATCH_BYTES, BATCH_FILES, BATCH_PIXELS, attempt, together
from l2c.cli.plan import Job
from l2c.cli.report import Result
from l2c.cli.run import Outcome
from l2c.cli.session import Reader
from l2c.cli.terminal import STANDARD, read_input
from l2c.format.bitstream import Bitstream, Container, read_bitstream
from l2c.format.source import Memory, OnDisk

T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """A file whose head, at least, was read and checked.

    Attributes:
        size: bytes of the file. seconds: that reading it took so far.
        overwrite: whether the output may take the place of another file.
    """

    job: Job
    stream: Bitstream | Container
    size: int
    seconds: float
    overwrite: bool

    @classmethod
    def read(cls, job: Job, reader: Reader, overwrite: bool = False) -> Opened:
        """Read a file and check every section and tile.

        Raises:
            DamagedError: names all parts that are damaged. OSError, BitstreamError, LimitError, UnsupportedError.
        """
        start = time.perf_counter()
        data = read_input(job.source)
        stream = read_bitstream(data, reader.limits, damaged="report")
        stream.check_damage()
        return cls(job, stream, len(data), time.perf_counter() - start, overwrite)

    @classmethod
    def read_head(cls, job: Job, reader: Reader, overwrite: bool = False) -> Opened:
        """Read the head of a file alone, whose tiles may be damaged, or not all be needed. Raises as `read`."""
        start = time.perf_counter()
        source = Memory(read_input(job.source)) if job.source == STANDARD else OnDisk(job.source)
        container = Container.open(source, reader.limits)
        return cls(job, container, source.size, time.perf_counter() - start, overwrite)


@dataclass(frozen=True)
class Batched(Generic[T]):
    """How a command works on files in batches.

    Attributes:
        open_: a job to a file, or to facts where there is nothing to do; raises what is wrong with it.
        together: files of a batch to a value each; raises where one of them fails.
        finish: what is left to do for one file, and its facts.
    """

    open_: Callable[[Job], Opened | Result]
    together: Callable[[Sequence[Opened]], Sequence[T]]
    finish: Callable[[Opened, T], Result]

    def __call__(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """What comes of each job, in their order."""
        waiting: list[Opened | Outcome] = []
        for job in jobs:
            found = attempt(self.open_, job)
            if len(waiting) == BATCH_FILES or not _fits(_files(waiting), found):
                yield from self._finished(waiting)
                waiting = []
            waiting.append(found)
            if not _files(waiting):  # nothing to wait for
                yield from self._finished(waiting)
                waiting = []
        yield from self._finished(waiting)

    def _finished(self, waiting: Sequence[Opened | Outcome]) -> Iterator[Outcome]:
        values = iter(self._values(_files(waiting)))
        for part in waiting:
            if not isinstance(part, Opened):
                yield part
                continue
            value = next(values)
            yield value if isinstance(value, Exception) else attempt(lambda pair: self.finish(*pair), (part, value))

    def _values(self, files: Sequence[Opened]) -> list[T | Exception]:
        """A value for each file, or why it has none."""
        return together(self.together, files)


def _files(waiting: Sequence[Opened | Outcome]) -> list[Opened]:
    return [part for part in waiting if isinstance(part, Opened)]


def _fits(batch: Sequence[Opened], found: Opened | Outcome) -> bool:
    """Whether a batch has room for one more, which may not be a file at all."""
    if not batch or not isinstance(found, Opened):
        return True
    together = [*batch, found]
    pixels, size = sum(part.stream.header.pixels for part in together), sum(part.size for part in together)
    return pixels <= BATCH_PIXELS and size <= BATCH_BYTES
