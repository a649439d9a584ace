"""What all of the codec's rooms need: names in errors, devices and threads as they are asked for."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

import torch

from l2c.errors import BackendError, L2CError, UnsupportedError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_MOST_THREADS = 64  # csrc/core/thread_pool.h


def of_device(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same call, whatever PyTorch's default device is; a GPU that fails or is full named by an error of ours."""

    @functools.wraps(call)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            with _on_cpu_by_default():
                return call(*args, **kwargs)
        except RuntimeError as error:
            # CUDA's and cuDNN's errors have no class of their own in every version of PyTorch.
            known = isinstance(error, torch.OutOfMemoryError) or re.search("CUDA|cuDNN|CUDNN|CUBLAS", str(error))
            if isinstance(error, L2CError) or not known:
                raise
            raise BackendError(f"the device failed: {first_line(error)}") from error

    return guarded


@contextlib.contextmanager
def _on_cpu_by_default() -> Iterator[None]:
    """Tensors made without a device are made on the CPU, whatever `torch.set_default_device` says in this thread.

    Every call of the codec names the devices it needs; this is for what PyTorch's own modules make inside it.
    """
    with contextlib.ExitStack() as stack:
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def checked_threads(threads: Any) -> int | None:
    """A number of threads, at most what the pool has; None stays. Raises UnsupportedError."""
    if threads is None:
        return None
    if isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1:  # type: ignore[operator]
        raise UnsupportedError(f"threads is {threads!r}: it must be a whole number, at least 1")
    return min(int(threads), _MOST_THREADS)


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the name of a file before the message of an error of ours."""
    try:
        yield
    except L2CError as error:
        error.args = (f"{name}{error}",)
        raise


def names_of(count: int) -> list[str]:
    """What errors call the files of a batch: nothing where there is one."""
    return [f"file {i + 1} of {count}: " if count > 1 else "" for i in range(count)]


def parts(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Runs of at most `most` in all, or of one."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > most:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
