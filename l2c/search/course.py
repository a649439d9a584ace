"""Several pictures at once: the course of each is a generator, and together they make one strategy.

A course yields one question about its picture at a time and is sent the answer. `together` runs the courses of many
pictures side by side and yields all that they ask, by picture; it is sent answers to some of it, so whoever answers may
take what goes well together first. A strategy is a sequence of such rounds, with `ask` and `tell` in front.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from l2c.search.questions import A, Best, Question

T = TypeVar("T")
Course = Generator[Question[Any], Any, T]
Rounds = Generator[dict[int, Question[Any]], Mapping[int, Any], None]


class Strategy(Protocol):
    """Repeat until nothing is asked: ask, answer at least one of the questions, tell."""

    def ask(self) -> list[Question[Any]]:
        """All open questions, at most one about each picture, in the order of the pictures."""

    def tell(self, answers: Mapping[int, Any]) -> None:
        """Answers to some of the open questions, by picture; each is of the type that its question names."""

    def best(self, i: int) -> Best:
        """What came out for a picture, when nothing is asked any more.

        Raises:
            RateError: nothing serves, and what the least rate is.
        """


class Staged(ABC):
    """A strategy from its rounds."""

    def __init__(self) -> None:
        self._rounds = self.rounds()
        self._open: dict[int, Question[Any]] | None = None

    @abstractmethod
    def rounds(self) -> Rounds:
        """What is asked, `together` after `together`."""

    def ask(self) -> list[Question[Any]]:
        """See `Strategy`."""
        if self._open is None:
            self._open = next(self._rounds, {})
        return [self._open[i] for i in sorted(self._open)]

    def tell(self, answers: Mapping[int, Any]) -> None:
        """See `Strategy`."""
        try:
            self._open = self._rounds.send(answers)
        except StopIteration:
            self._open = {}


def ask(question: Question[A]) -> Generator[Question[Any], Any, A]:
    """A course of one question, for the type of its answer: `trial = yield from ask(Plain(i, quality))`."""
    answer: A = yield question
    return answer


def together(courses: Iterable[Course[None]]) -> Rounds:
    """Courses of different pictures side by side, until all have ended."""
    running: dict[int, Course[None]] = {}
    asked: dict[int, Question[Any]] = {}
    for course in courses:
        first = next(course, None)
        if first is not None:
            running[first.i], asked[first.i] = course, first
    while asked:
        answers = yield dict(asked)
        for i, answer in answers.items():
            try:
                asked[i] = running[i].send(answer)
            except StopIteration:
                del asked[i]
