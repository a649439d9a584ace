"""Workers as actors of a Ray cluster: on as many machines as it has. They read and write by themselves, so all of them
must see the same files: a common disk, or URLs; and have L2C installed. Model files travel with the run."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from l2c.bulk.engines import worker_class
from l2c.bulk.places import optional
from l2c.bulk.tasks import Died, Event, Failed, Idle, Ready, Spec, Task, portable
from l2c.errors import BackendError, one_line

if TYPE_CHECKING:
    from l2c.bulk.worker import Worker

_GRACE_SECONDS = 10.0
_VARIABLES = ("L2C_MODEL_PATH", "L2C_BACKEND", "L2C_CPU")


class Actor:
    """The worker in its actor; `stop` is called while `work` runs."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._worker: Worker | None = None

    def begin(self) -> list[Event]:
        """Load the model; an error is told and not raised, since Ray would change it."""
        try:
            self._worker = worker_class()(self._spec)
        except Exception as error:
            return [Failed(portable(error))]
        return [Ready()]

    def work(self, task: Task) -> Iterator[list[Event]]:
        """The events of a task."""
        assert self._worker is not None
        try:
            yield from self._worker.work(task)
        except BaseException as error:  # `Interrupted`, which Ray would take for a crash
            if isinstance(error, (Exception, GeneratorExit)):
                raise
            return
        yield [Idle()]

    def stop(self) -> None:
        """Let `work` end before it writes the next file."""
        if self._worker is not None:
            self._worker.stopped.set()


class OnRay:
    """Actors on a cluster.

    Args:
        address: of a cluster: "auto" (the one of this machine), "host:6379", "ray://host:10001"; "local": one that is
            started for this run.
        jobs: workers at a time; None: as many as there is room for.
    Attributes:
        spec: of the workers that are started from now on.
        gpus: of the cluster, for workers that take one.
        workers: `jobs`, which then share the GPUs, or one for each GPU, or, where the cluster has none or the spec asks
            for the CPU, as many as there are cores for their threads.
    Raises:
        BackendError: Ray is not installed, or there is no cluster at this address.
    """

    def __init__(self, address: str, spec: Spec, jobs: int | None = None) -> None:
        self._ray = optional("ray", "--ray", "ray")
        self._ours = not self._ray.is_initialized()
        if self._ours:
            variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
            try:
                self._ray.init(
                    address=address,
                    runtime_env={"env_vars": variables},
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise BackendError(f"no Ray cluster at {address}: {one_line(error)}") from None
        resources = self._ray.cluster_resources()
        self.gpus = 0 if spec.device == "cpu" else int(resources.get("GPU", 0))
        threads = spec.threads or 1
        self.workers = jobs or self.gpus or max(1, int(resources.get("CPU", 1)) // threads)
        self.spec = spec
        self._put: Any = None  # what workers get, which may hold a model
        self._class = self._ray.remote(Actor).options(
            num_cpus=threads, num_gpus=min(1.0, self.gpus / self.workers), max_restarts=0, max_concurrency=2
        )
        self._actors: dict[int, Any] = {}
        self._pending: dict[int, Any] = {}
        self._started = 0

    def start(self) -> int:
        number = self._started
        self._started += 1
        if self._put is None:
            self._put = self._ray.put(self.spec)
        self._actors[number] = self._class.remote(self._put)
        self._pending[number] = self._actors[number].begin.remote()
        return number

    def give(self, worker: int, task: Task) -> None:
        self._pending[worker] = self._actors[worker].work.options(num_returns="streaming").remote(task)

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        found: list[tuple[int, Event]] = []
        for number in self._with_news(seconds):
            found += [(number, event) for event in self._news_of(number)]
        return found

    def _with_news(self, seconds: float) -> list[int]:
        """Workers of which something is there to be fetched."""
        waiting = list(self._pending.values())
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds)
        if ready and len(waiting) > 1:
            ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [number for number, one in self._pending.items() if any(one is other for other in ready)]

    def _news_of(self, number: int) -> list[Event]:
        pending = self._pending[number]
        try:
            if isinstance(pending, self._ray.ObjectRefGenerator):
                events: list[Event] = self._ray.get(next(pending))
            else:
                events = self._ray.get(pending)
        except StopIteration:
            del self._pending[number]
            return []
        except self._ray.exceptions.RayError as error:
            self._end(number)
            return [Died(f"was lost: {one_line(error)}")]
        if any(isinstance(event, (Ready, Idle, Failed)) for event in events):
            del self._pending[number]
        return events

    def _end(self, number: int) -> None:
        self._pending.pop(number, None)
        with contextlib.suppress(Exception):
            self._ray.kill(self._actors.pop(number))

    def close(self) -> None:
        working = [one for one in self._pending.values() if isinstance(one, self._ray.ObjectRefGenerator)]
        with contextlib.suppress(Exception):
            for number, one in self._pending.items():
                if any(one is other for other in working):
                    self._actors[number].stop.remote()
            ends = [one.completed() for one in working]
            self._ray.wait(ends, num_returns=len(ends), timeout=_GRACE_SECONDS) if ends else None
        for number in list(self._actors):
            self._end(number)
        if self._ours:
            self._ray.shutdown()
