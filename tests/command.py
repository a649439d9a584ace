"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]


def one_error(err: str) -> str:
    """The one line that standard error holds."""
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("l2c: error: "), err
    return lines[0]


def version_9(data: bytes) -> bytes:
    """A file of a version of the format that is still to come."""
    return data[:4] + b"\x09" + data[5:]
