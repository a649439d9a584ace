"""What is wanted of a picture: all of it or a region, at its size or scaled down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

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

    def of_plane(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The view of a plane of integers [H, W] that the picture has beside its colours: averages, rounded."""
        part = plane[self.snapped(*plane.shape).slices]
        if self.scale == 1:
            return part
        whole = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float64))[None]
        averages = F.avg_pool2d(whole, self.scale, ceil_mode=True)[0]
        return averages.round_().numpy().astype(plane.dtype)

    @classmethod
    def asked(cls, header: Header, region: Any, scale: int) -> View:
        """The view of a file's picture for (left, top, right, bottom) or None, and a scale that was checked.

        Raises:
            UnsupportedError: no four whole numbers, or no rectangle of the picture.
        """
        if region is None:
            return cls(None, scale)
        numbers = list(region) if isinstance(region, (Sequence, np.ndarray)) and not isinstance(region, str) else []
        if len(numbers) != 4 or any(isinstance(n, bool) or not isinstance(n, Integral) for n in numbers):
            raise UnsupportedError(f"region is {region!r}: it must be four whole numbers, (left, top, right, bottom)")
        left, top, right, bottom = map(int, numbers)
        if not (0 <= left < right <= header.width and 0 <= top < bottom <= header.height):
            raise UnsupportedError(
                f"region is {(left, top, right, bottom)}: it must be (left, top, right, bottom) with "
                f"0 <= left < right <= {header.width} and 0 <= top < bottom <= {header.height}"
            )
        return cls(Box(top, left, bottom, right), scale)
