"""The walk: from the coarsest scale to the finest, position by position of its cells, group by group of its channels.

z^(i) is z^(i-1) at its even rows and columns, i = 1..M. The last scale z^(M) is coded at once. Of every finer scale the
positions at even rows and columns are known then; the other three positions of each 2x2 cell follow, each split in
groups of channels: these are the groups g_j of L2C Eq. 5. csrc/multiscale/tile_coder.cpp walks in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from l2c.ops.contract import CODING_ORDER, POSITIONS


@dataclass(frozen=True)
class Turn:
    """What is coded in one go.

    Attributes:
        scale: 0 is the finest; M the last.
        position: of the cells, an index of POSITIONS; -1 for the last scale, which has no cells.
        group: which group of channels.
        index: which step computes it, counted within the scale.
        start, size: its channels.
    """

    scale: int
    position: int
    group: int
    index: int
    start: int
    size: int

    @property
    def is_last_scale(self) -> bool:
        """Whether this is z^(M), which the prior predicts from the header alone."""
        return self.position < 0

    @property
    def stride(self) -> int:
        """Latents of the picture from one position to the next, each way."""
        return (1 if self.is_last_scale else 2) << self.scale

    @property
    def offset(self) -> tuple[int, int]:
        """(row, column) of the first position in the latents of the picture."""
        dy, dx = (0, 0) if self.is_last_scale else POSITIONS[self.position]
        return dy << self.scale, dx << self.scale

    @property
    def channels(self) -> slice:
        return slice(self.start, self.start + self.size)

    def place(self, used: int | None = None) -> tuple[slice, slice, slice]:
        """(channels, rows, columns) in latents [c, h, w] of the picture; the first `used` channels, None for all."""
        rows, columns = (slice(first, None, self.stride) for first in self.offset)
        return slice(self.start, self.start + (self.size if used is None else used)), rows, columns

    def coded(self, used: int) -> int:
        """How many of its channels are coded when the first `used` channels of the picture are."""
        return max(0, min(used - self.start, self.size))

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of its positions in a scale z^(i) of a size, its own."""
        if self.is_last_scale:
            return height, width
        dy, dx = POSITIONS[self.position]
        return (height - dy + 1) // 2, (width - dx + 1) // 2


def schedule(num_scales: int, channel_groups: Sequence[int]) -> Iterator[Turn]:
    """All turns in coding order: the last scale, then those of scale M - 1, ... 0."""
    yield Turn(num_scales, -1, 0, 0, 0, sum(channel_groups))
    for scale in range(num_scales - 1, -1, -1):
        index = 0
        for position in CODING_ORDER:
            start = 0
            for group, size in enumerate(channel_groups):
                yield Turn(scale, position, group, index, start, size)
                start += size
                index += 1


def scale_sizes(height: int, width: int, num_scales: int) -> list[tuple[int, int]]:
    """(height, width) of z^(0) .. z^(M); each is the ceil of half the one before."""
    sizes = [(height, width)]
    for _ in range(num_scales):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes
