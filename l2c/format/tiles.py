"""Rectangles, and how a picture is cut in tiles: in rows from the top left, the last ones ending at its edge."""

from __future__ import annotations

from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle of pixels or latents; `bottom` and `right` lie just outside of it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """The indices of its rows and columns in an array that starts at (0, 0)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def widened(self, halo: int, height: int, width: int) -> Box:
        """With a halo on all sides, as far as an area of height x width goes."""
        return Box(
            max(0, self.top - halo),
            max(0, self.left - halo),
            min(height, self.bottom + halo),
            min(width, self.right + halo),
        )

    def moved(self, down: int, right: int) -> Box:
        """The same rectangle at another place."""
        return Box(self.top + down, self.left + right, self.bottom + down, self.right + right)

    def touches(self, other: Box) -> bool:
        """Whether the two have something in common."""
        return (
            max(self.top, other.top) < min(self.bottom, other.bottom)
            and max(self.left, other.left) < min(self.right, other.right)
        )  # fmt: skip

    def common(self, other: Box) -> Box:
        """What two that touch have in common."""
        return Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def within(self, other: Box) -> Box:
        """The same rectangle as seen from another one's top left."""
        return Box(self.top - other.top, self.left - other.left, self.bottom - other.top, self.right - other.left)

    def covering(self, s: int) -> Box:
        """The blocks of s x s that it touches, counted in blocks."""
        return Box(self.top // s, self.left // s, -(-self.bottom // s), -(-self.right // s))

    def times(self, s: int) -> Box:
        """In units that are s times finer: latents -> pixels."""
        return Box(self.top * s, self.left * s, self.bottom * s, self.right * s)


def grid(height: int, width: int, side: int) -> list[Box]:
    """The tiles of an area in rows, squares of `side` but for the last ones."""
    return [
        Box(top, left, min(height, top + side), min(width, left + side))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def latent_tiles(height: int, width: int, tile: int, s: int) -> list[Box]:
    """The tiles of a picture in latents, of s x s pixels each; a tile's last latents may cover no full block.

    Args:
        height, width: of the picture in pixels. tile: side in pixels, a multiple of s.
    """
    return grid(-(-height // s), -(-width // s), tile // s)
