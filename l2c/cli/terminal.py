"""Standard input and output: names that an encoding lacks or that would steer a terminal, and what "-" stands for."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from pathlib import Path
from typing import Any

STANDARD = "-"
_NAMES_AS_BYTES = "l2c.names"


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """As "surrogateescape", which gives the bytes of a name back; as "backslashreplace" for what it cannot do."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(_NAMES_AS_BYTES, _escaped)


def open_streams() -> None:
    """Make the three streams usable, whatever the process was started with.

    Python sets a stream to None that was closed when the process started (`>&-`). Writing results must fail then, so
    standard output becomes a file that can only be read. Names that an encoding lacks are printed with escapes.
    """
    sys.stdin, sys.stdout, sys.stderr = (
        open(os.devnull, mode) if stream is None else stream  # noqa: SIM115 (open as long as the process is)
        for stream, mode in ((sys.stdin, "r"), (sys.stdout, "r"), (sys.stderr, "w"))
    )
    for stream in (sys.stdout, sys.stderr):
        _print_anything(stream)


def _print_anything(stream: Any) -> None:
    """Let a stream print names that its encoding lacks, with escapes in their place."""
    replacement = {"strict": "backslashreplace", "surrogateescape": _NAMES_AS_BYTES}.get(getattr(stream, "errors", ""))
    if replacement is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=replacement)


def printable(text: str) -> str:
    """The text in one line: what steers a terminal, in a file's name say, is escaped."""
    safe = (c if c.isprintable() or "\ud800" <= c <= "\udfff" else c.encode("unicode_escape").decode() for c in text)
    return "".join(safe)


def shown(place: str, standard: str = "<stdin>") -> str:
    """What messages call an input or output."""
    return place if place != STANDARD else standard


def read_input(source: str) -> bytes:
    """All of a file or of standard input. Raises OSError."""
    return sys.stdin.buffer.read() if source == STANDARD else Path(source).read_bytes()


def write_output(data: bytes | memoryview) -> None:
    """All of the data to standard output. Raises OSError: it is closed."""
    if not sys.stdout.writable():
        raise OSError(errno.EBADF, "is closed", "standard output")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
