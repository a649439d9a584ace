"""One process in a folder, and what SIGINT and SIGTERM do to it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from l2c.errors import TrainingError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a stage's folder (on POSIX), and clear away what a kill during a save left there.

    Raises:
        TrainingError: another process has it.
    """
    with (folder / "lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise TrainingError(f"another process trains in {folder}") from None
        for stale in folder.glob("*.tmp"):
            stale.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def signals(first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM calls `first`; another one calls `second` and then does what it always does."""
    asked = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            second()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        asked = True
        first()

    try:
        old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the caller keeps its own handlers
        yield
        return
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
