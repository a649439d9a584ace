"""What is wanted of a picture: all of it or a region, at its size or scaled down. Without torch, as `options`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from l2c.errors import UnsupportedError
from l2c.format.bitstream import Header
from l2c.format.tiles import Box


@dataclass(frozen=True)
class View:
    """A part of a picture, scaled down.

    Attributes:
        area: pixels of the picture; None: all of them.
        scale: 1, 2, 4 or 8: squares of scale x scale pixels become one.
    """

    area: Box | None = None
    scale: int = 1

    def snapped(self, height: int, width: int) -> Box:
        """The pixels of all squares that the area touches in a picture of a size."""
        if self.area is None:
            return Box(0, 0, height, width)
        squares = self.area.covering(self.scale).times(self.scale)
        return Box(squares.top, squares.left, min(height, squares.bottom), min(width, squares.right))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the view of a picture of a size."""
        small = self.snapped(height, width).covering(self.scale)
        return small.height, small.width

    @classmethod
    def asked(cls, picture: Header | Box, region: Any, scale: int) -> View:
        """The view of a picture for (left, top, right, bottom) or None, and a scale that was checked.

        Raises:
            UnsupportedError: no four whole numbers, or no rectangle of the picture.
        """
        if region is None:
            return cls(None, scale)
        numbers = list(region) if isinstance(region, Iterable) and not isinstance(region, str | bytes) else []
        if len(numbers) != 4 or any(isinstance(n, bool) or not isinstance(n, Integral) for n in numbers):
            raise UnsupportedError(f"region is {region!r}: it must be four whole numbers, (left, top, right, bottom)")
        left, top, right, bottom = map(int, numbers)
        if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
            raise UnsupportedError(
                f"region is {(left, top, right, bottom)}: it must be (left, top, right, bottom) with "
                f"0 <= left < right <= {picture.width} and 0 <= top < bottom <= {picture.height}"
            )
        return cls(Box(top, left, bottom, right), scale)
