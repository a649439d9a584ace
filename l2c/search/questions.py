"""What a strategy can ask about a picture, and what it is told.

Every question names its picture by its place `i` in the batch, and the type of its answer: a `Question[Trial]` is
answered by a `Trial`. Corrections act on the adaptation of the picture that was started last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from l2c.guard import Look

Figure = Literal["PSNR", "MS-SSIM"]  # both in dB
A = TypeVar("A")


@dataclass(frozen=True)
class Trial:
    """A way to code a picture.

    Attributes:
        size: bytes of the file that it would make.
        quality: 0..1000, as the file would say.
        coded: what the encoder needs to write that file, opaque here.
        clipped: of an unadapted trial, what latents lose at their limits; see `guard.Look`.
        searched: of an adapted one, whether there was time for the search.
        change: bits that the last correction was predicted to add.
        report: what the encoder has to say of the adaptation, opaque here. corrections: how many led to this trial.
    """

    size: int
    quality: int
    coded: Any = None
    clipped: float = 0.0
    searched: bool = True
    change: float = 0.0
    report: Any = None
    corrections: int = 0


@dataclass(frozen=True)
class Best:
    """What a strategy ends with for a picture.

    Attributes:
        probes: how many qualities were encoded. reason: why the target was not reached, or "".
        room: bytes by which the file may still grow.
        measured: whether a figure of what D makes of it was asked for, so that this must stay as it is.
    """

    trial: Trial
    probes: int = 1
    reason: str = ""
    room: float = float("inf")
    measured: bool = False


@dataclass(frozen=True)
class Question(Generic[A]):
    """About picture `i` of a batch."""

    i: int


@dataclass(frozen=True)
class Plain(Question[Trial]):
    """The picture without adaptation at this very quality, 0..1000."""

    quality: int


@dataclass(frozen=True)
class LookAt(Question[Look]):
    """What the picture, or a sample of it, looks like at a quality 0..1000."""

    quality: int


@dataclass(frozen=True)
class Adapt(Question[Trial]):
    """The picture adapted at a quality 0..1000.

    Attributes:
        aim: share of its unadapted size that it should come to; None: what J says.
        turn, turns: which of how many adaptations of every picture this is, for the progress.
    """

    quality: int
    aim: float | None = None
    turn: int = 0
    turns: int = 1


@dataclass(frozen=True)
class Steer(Question[Trial]):
    """The adapted picture after one more iteration that adds about so many bits, or saves them. Not after `Trim`."""

    bits: float


@dataclass(frozen=True)
class Trim(Question[Trial]):
    """The adapted picture without about so many bits."""

    bits: float


@dataclass(frozen=True)
class Measure(Question[float]):
    """A figure in dB of what a decoder makes of a trial; runs D."""

    trial: Trial
    figure: Figure


@dataclass(frozen=True)
class Weigh(Question[float]):
    """J of a trial in bits, its distortion weighed as at a quality 0..1000; runs D."""

    trial: Trial
    quality: int
