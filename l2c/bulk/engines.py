"""Where workers live. `Engine` is what a run asks of any; two of them are here, the third is in `ray_engine`.

Local       processes of this machine, started by `spawn`: after PyTorch has used threads a fork would hang
Here        this process: for very few files, for notebooks and debuggers; nothing is retried
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol

from l2c.bulk.tasks import Died, Event, Failed, Idle, Ready, Spec, Task, portable

if TYPE_CHECKING:
    from l2c.bulk.worker import Worker

_GRACE_SECONDS = 10.0  # for a worker to leave what it is at


class Engine(Protocol):
    """Starts workers, gives them tasks and tells what happens to them. A worker is a number."""

    def start(self) -> int:
        """Begin to make a worker: `Ready`, `Failed` or `Died` follows."""

    def give(self, worker: int, task: Task) -> None:
        """A task for a worker that is ready or idle: its events follow, then `Idle`; or `Died`."""

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        """What has happened since the last call, in the order of each worker; waits so long for the first of it."""

    def close(self) -> None:
        """End all workers. What they are writing is finished or taken away; none is left when this returns."""


class Here:
    """One worker, in this process."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._worker: Worker | None = None
        self._events: Iterator[list[Event]] = iter(())
        self._waiting: deque[Event] = deque()

    def start(self) -> int:
        try:
            self._worker = worker_class()(self._spec)
            self._waiting.append(Ready())
        except Exception as error:
            self._waiting.append(Failed(error))
        return 0

    def give(self, worker: int, task: Task) -> None:
        assert self._worker is not None
        self._events = self._worker.work(task)

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        if not self._waiting:
            self._waiting.extend(next(self._events, [Idle()]))
        found = [(0, event) for event in self._waiting]
        self._waiting.clear()
        return found

    def close(self) -> None:
        self._events = iter(())


class Local:
    """Workers in processes of their own."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, Any] = {}
        self._connections: dict[int, Connection] = {}
        self._numbers: dict[Connection, int] = {}
        self._busy: set[int] = set()
        self._started = 0

    def start(self) -> int:
        number = self._started
        self._started += 1
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._spec, number), name=f"l2c-bulk-{number}")
        process.daemon = True
        with _interruptions_blocked():
            process.start()
        theirs.close()
        self._processes[number], self._connections[number], self._numbers[ours] = process, ours, number
        self._busy.add(number)
        return number

    def give(self, worker: int, task: Task) -> None:
        self._busy.add(worker)
        with contextlib.suppress(OSError):  # it died by now, as `events` will find
            self._connections[worker].send(task)

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        found: list[tuple[int, Event]] = []
        for connection in wait(list(self._connections.values()), seconds):
            assert isinstance(connection, Connection)
            number = self._numbers[connection]
            try:
                events: list[Event] = connection.recv()
            except (EOFError, OSError):
                events = [Died(self._end_of(number))]
            if any(isinstance(event, (Ready, Idle)) for event in events):
                self._busy.discard(number)
            found += [(number, event) for event in events]
        return found

    def _end_of(self, number: int) -> str:
        """Take leave of a worker that has gone; why it did."""
        process, connection = self._processes.pop(number), self._connections.pop(number)
        del self._numbers[connection]
        self._busy.discard(number)
        connection.close()
        _leave([process], _GRACE_SECONDS)
        return _reason(process.exitcode)

    def close(self) -> None:
        for number, connection in self._connections.items():
            if number in self._busy:
                self._processes[number].terminate()
            connection.close()  # an idle one leaves by itself
        _leave(list(self._processes.values()), _GRACE_SECONDS)
        self._processes, self._connections, self._numbers = {}, {}, {}


def _leave(processes: list[Any], seconds: float) -> None:
    """Wait until processes have ended, and make them when it takes too long."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _reason(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f"left with exit code {exitcode}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"was killed by signal {-exitcode}"


@contextlib.contextmanager
def _interruptions_blocked() -> Iterator[None]:
    """A process that is started here never gets Ctrl-C, which is this one's alone to act on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, spec: Spec, number: int) -> None:
    """A worker's process: it ends when the other side of the connection closes, whatever ended that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that half-written files are taken away
    try:
        worker = worker_class()(spec, number)
    except Exception as error:
        connection.send([Failed(portable(error))])
        return
    with contextlib.suppress(EOFError, OSError):
        connection.send([Ready()])
        while True:
            for events in worker.work(connection.recv()):
                connection.send(events)
            connection.send([Idle()])


def worker_class() -> type[Worker]:
    """`worker.Worker`, which loads PyTorch: the process that hands out the work does without."""
    found: type[Worker] = importlib.import_module("l2c.bulk.worker").Worker
    return found


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """That a process of this machine may use; PyTorch is asked only where there seems to be one."""
    if not any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/dxg")):
        return 0
    return int(importlib.import_module("torch.cuda").device_count())
