"""The random numbers of a sample.

With a seed they depend on the seed, the epoch and the sample alone: the same in any order, in any number of workers and
on any machine. Without one they come from PyTorch's own generator, which `DataLoader` seeds for every worker.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from l2c.codec.options import check_number
from l2c.errors import UnsupportedError


class Seeds:
    """Generators of samples.

    Args:
        seed: a whole number; None: PyTorch's generator of the process.
    Raises:
        UnsupportedError: no whole number.
    """

    def __init__(self, seed: int | None) -> None:
        if seed is not None:
            check_number("seed", seed, whole=True)
        self.seed = None if seed is None else int(seed)
        # Shared, so that workers that stay from epoch to epoch (`persistent_workers`) see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The one that samples belong to now."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, in all processes. Raises UnsupportedError: no whole number from 0 on."""
        check_number("epoch", epoch, whole=True)
        if not 0 <= epoch < 1 << 63:
            raise UnsupportedError(f"epoch is {epoch}: it must be at least 0, and less than 2^63")
        self._epoch.fill_(int(epoch))

    def number(self, key: Any) -> int | None:
        """0 <= number < 2^63 of a sample in this epoch; None: there is no seed."""
        if self.seed is None:
            return None
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}/{key}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1


def generator_of(number: int | None) -> torch.Generator:
    """The generator of a sample's `Seeds.number`."""
    return torch.default_generator if number is None else torch.Generator().manual_seed(number)


@contextlib.contextmanager
def drawing(number: int | None) -> Iterator[None]:
    """PyTorch's own generator on the CPU starts at a sample's number inside, and goes on as before afterwards."""
    if number is None:
        yield
        return
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(number ^ 1)  # not the numbers that chose the region
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
