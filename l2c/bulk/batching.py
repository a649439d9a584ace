"""Work on several things at once, so that what fails is told of the one thing that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

BATCH_PIXELS = 1 << 23  # of the pictures of a batch, about 25 MB of colours
BATCH_BYTES = 1 << 26  # of their files: profiles and alpha can be larger than pictures
BATCH_FILES = 64  # so that outputs, and the progress, come now and then

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


def attempt(work: Callable[[_Given], _Found], given: _Given) -> _Found | Exception:
    """What work on something gives, or why it failed. Lets an interruption pass."""
    try:
        return work(given)
    except Exception as error:
        return error


def together(work: Callable[[Sequence[_Given]], Sequence[_Found]], given: Sequence[_Given]) -> list[_Found | Exception]:
    """What work on all gives for each, or why it has none: where it raises, each is worked on once more, alone."""
    if not given:
        return []
    try:
        return list(work(given))
    except Exception as error:
        if len(given) == 1:
            return [error]
    return [found for one in given for found in together(work, [one])]
