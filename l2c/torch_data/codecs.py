"""The codec of this process: made when it is first needed, never sent to another one.

Workers of a `DataLoader` get one thread each unless they are told otherwise, for the networks as for the coder: as
many workers as cores is the way to use all of them. PyTorch's threads do not survive a fork, and a forked child that
asks for several hangs in its first convolution; here that is an error before it happens.
"""

from __future__ import annotations

import os
import threading
import warnings
from dataclasses import dataclass, field

import torch
from torch.utils.data import get_worker_info

from l2c.codec.options import PRECISIONS, Precision
from l2c.codec.session import Codec
from l2c.codec.support import checked_threads
from l2c.errors import BackendError, L2CWarning, UnsupportedError
from l2c.format.bitstream import Limits
from l2c.models import DEFAULT_MODEL

_made: dict[CodecSettings, Codec] = {}
_of_parent: list[Codec] = []  # what a forked child cannot use, and must not free: a GPU's memory
_lock = threading.Lock()
_forked = False


@dataclass(frozen=True)
class CodecSettings:
    """What codec a dataset decodes with; the arguments of `Codec`.

    Args:
        threads: of a worker, for everything that it computes. None: one in a worker; as many as torch uses in the
            main process.
    Raises:
        UnsupportedError: an argument that is none of these.
    """

    model: str | os.PathLike[str] = DEFAULT_MODEL
    device: str | torch.device = "cpu"
    threads: int | None = None
    precision: Precision = "auto"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str | os.PathLike):
            raise UnsupportedError(f"model is {self.model!r}: a dataset takes a name or a path, which it can send on")
        object.__setattr__(self, "model", os.fspath(self.model))
        object.__setattr__(self, "device", str(self.device))
        object.__setattr__(self, "threads", checked_threads(self.threads))
        if self.precision not in PRECISIONS:
            raise UnsupportedError(f"precision is {self.precision!r}: it must be one of {', '.join(PRECISIONS)}")
        if not isinstance(self.limits, Limits):
            raise UnsupportedError(f"limits is {self.limits!r}: it must be l2c.Limits")

    def codec(self) -> Codec:
        """The codec of this process.

        Raises:
            BackendError, ModelMismatchError: as `Codec`; a GPU in a forked worker. UnsupportedError: several threads
                in a forked worker.
        """
        worker = get_worker_info()
        if worker is not None:
            self._settle(worker.id, worker.num_workers)
        with _lock:
            if self not in _made:
                # In a worker the codec follows torch's number of threads.
                threads = None if worker is not None else self.threads
                _made[self] = Codec(
                    self.model, self.device, threads=threads, precision=self.precision, limits=self.limits
                )
            return _made[self]

    def _settle(self, number: int, count: int) -> None:
        """This worker's threads."""
        threads = 1 if self.threads is None else self.threads
        spawned = 'DataLoader(multiprocessing_context="spawn") starts workers that can'
        if _forked and threads > 1:
            raise UnsupportedError(f"threads is {threads}: a forked worker cannot use more than one; {spawned}")
        if _forked and torch.device(self.device).type != "cpu":
            raise BackendError(f"a forked worker cannot use {self.device}; {spawned}, and DecodingLoader needs none")
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if self not in _made and number == 0 and threads > 1 and count * threads > _cores():
            message = f"{count} workers of {threads} threads share {_cores()} cores: fewer of either are faster"
            warnings.warn(message, L2CWarning, stacklevel=4)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _after_fork() -> None:
    """In a forked child: what was made for the CPU is good with one thread; a lock may be held by nobody."""
    global _forked, _lock
    _forked, _lock = True, threading.Lock()
    for settings in [settings for settings, codec in _made.items() if codec.device.type != "cpu" or codec.threads]:
        _of_parent.append(_made.pop(settings))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
