"""Errors and warnings as one line on standard error, and the exit code that goes with each."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from l2c.cli.terminal import printable, shown
from l2c.errors import BackendError, BitstreamError, L2CError, ModelMismatchError, RateError

FAILED, USAGE, DAMAGED, NOT_AT_HAND, RATE, CONCEALED, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130
EXIT_CODES = """
\b
Exit codes:
  0    done
  1    failed for any other reason; for a folder: at least one file failed, or was left out
       although it is a picture (for decode and verify: an L2C file)
  2    wrong usage
  3    not an L2C file, or a damaged one
  4    the model, the device or the compiled extension is not at hand
  5    the rate asked for is below what the picture can reach
  6    done with --conceal, and at least one file was damaged
  130  interrupted

\b
Environment:
  L2C_MODEL_PATH  files and folders with further models, separated like PATH
  L2C_DEBUG=1     show tracebacks, as --debug does
"""
_CODES = (
    ((BitstreamError,), DAMAGED),
    ((BackendError, ModelMismatchError), NOT_AT_HAND),
    ((RateError,), RATE),
)
_debug = False


def show_tracebacks(wanted: bool) -> None:
    """Whether errors come with their tracebacks, and warnings of libraries are shown."""
    global _debug
    _debug = wanted


def say(kind: str, message: str, error: BaseException | None = None) -> None:
    """One line on standard error; with --debug, the traceback of an error before it."""
    if _debug and error is not None:
        traceback.print_exception(error)
    print(f"l2c: {kind}: {printable(' '.join(message.split()))}", file=sys.stderr)


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """What L2C warns of, in one line; what libraries warn of is shown with --debug only."""
    if _debug or category.__module__.startswith("l2c."):
        say("warning", str(message))


def message_of(error: BaseException, name: str = "") -> str:
    """What to say of an error, headed by the name of the file where the text does not name it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        name, text = str(error.filename), error.strerror
    elif isinstance(error, (L2CError, OSError)):
        text = getattr(error, "strerror", None) or str(error)
    elif isinstance(error, MemoryError):
        text = "not enough memory"
    else:
        text = f"internal error, {type(error).__name__}: {error} (--debug shows where)"
    return text if not name or text.startswith(name) else f"{name}: {text}"


def exit_code(error: BaseException) -> int:
    """The process's exit code for an error, as `l2c --help` lists them."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), FAILED)


@contextmanager
def errors_of(source: str) -> Iterator[None]:
    """Report what fails inside as an error of this file, and leave with its exit code."""
    try:
        yield
    except Exception as error:
        say("error", message_of(error, shown(source)), error)
        raise typer.Exit(exit_code(error)) from None
