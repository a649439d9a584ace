"""What the codec and the training ask of a family of probability models.

A family has two forms of one graph: floats, for gradients and estimates, and integers, for coding. The integers can be
computed by several backends, which all give the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from l2c.entropy.coder import DecodingJob, Job, UInt8Array

Check = Callable[[], None]  # waits for a device; raises BitstreamError where a stream was not valid


class FloatModel(Protocol):
    """The float form: what the training, the adaptation and the rate estimates differentiate."""

    def num_bits(self, context: Tensor, target: Tensor, header: Tensor, inside: Tensor | None = None) -> Tensor:
        """Bits of each picture: float32 [N].

        Args:
            context: float [N, c, h, w], the latents that distributions depend on.
            target: float [N, c, h, w], the latents whose probability is asked.
            header: int64 [N, 3]: quality 0..1000, mu 0..8, b 1..8 per picture.
            inside: [N, 1, h, w] of 0/1 for pictures of different sizes in one batch; None: all inside.
        """


class Backend(Protocol):
    """One way of computing the integers of a model.

    Attributes:
        name: as users ask for it.
        spoken: as a warning calls it that says what is used instead of another.
        cost: time per latent, the fastest on any CPU being 1: what a small file may ask for a second time is bounded.
        spare: the backend that codes what this one cannot, for its size or where its device fails; "" for none.
    """

    name: str
    spoken: str
    cost: int
    spare: str = ""

    def unavailable(self, device: torch.device) -> str:
        """Why it does not run with tensors of a device; "" where it does."""

    def takes(self, jobs: Sequence[Job]) -> bool:
        """Whether none of the jobs is too large for it."""
        return True

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[UInt8Array]:
        """Take jobs that use at least one channel to their end: symbols uint8 [c, height, width] of each.

        Raises:
            BackendError: it cannot run here. BitstreamError: a stream is not valid.
        """

    def queue(self, jobs: Sequence[DecodingJob], device: torch.device) -> tuple[list[Tensor], Check] | None:
        """Symbols uint8 [c, height, width] on the device, before any check; None where it cannot or the jobs are large.

        Work on them can be queued at once; nothing made of them may be handed out before the check has been called.
        """
        return None

    def prove(self, device: torch.device) -> None:
        """What the known answer does not cover, once per device. Raises BackendError where it is wrong."""
        return

    def explain(self, error: Exception) -> Exception:
        """The error to raise for one that `code` or `prove` ended with."""
        return error


class EntropyModel(Protocol):
    """The integer form: what codes a file."""

    def backends(self) -> Mapping[str, Backend]:
        """All ways of computing it, by name."""

    def code(
        self, jobs: Sequence[Job], backend: str = "auto", device: torch.device | None = None, threads: int = 1
    ) -> list[UInt8Array]:
        """Take jobs to their end: symbols uint8 [c, height, width] of each."""

    def known_answer(self, backend: str, device: torch.device | None = None) -> int:
        """CRC32 over all parameters of fixed latents: equal on every exact backend, stored with the model."""
