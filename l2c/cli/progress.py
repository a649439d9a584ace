"""How far the work is, on standard error if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from l2c.cli import lazy


@contextmanager
def files_done(total: int, wanted: bool) -> Iterator[Callable[[], None]]:
    """A bar over files; yields what to call after every one."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda: None
        return
    bars = lazy.progress
    with _bar(bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), bars.TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


@contextmanager
def share_done(wanted: bool) -> Iterator[Callable[[float, str], None] | None]:
    """A bar for one long encode; yields what the codec calls, or None where nobody would see it."""
    if not (wanted and sys.stderr.isatty()):
        yield None
        return
    bars = lazy.progress
    columns = bars.BarColumn(), bars.TaskProgressColumn(), bars.TimeRemainingColumn()
    with _bar(bars.TextColumn("{task.description}"), *columns) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share, stage: bar.update(task, completed=share, description=stage)


def _bar(*columns: Any) -> Any:
    console = lazy.console.Console(stderr=True)
    return lazy.progress.Progress(*columns, console=console, transient=True, redirect_stdout=False)


def tell(what: str) -> None:
    """The piece of work that begins, in the place of the one before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def clear() -> None:
    """Take away what `tell` said."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
