"""Which region of a picture a sample shows, and how small. Only the tiles that a region needs are decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch

from l2c.codec.options import SCALES, Region, Scale, check_decode_options, check_number
from l2c.codec.views import View
from l2c.errors import UnsupportedError
from l2c.format.levels import Metric

if TYPE_CHECKING:
    from l2c.format.bitstream import Header

# (height, width, generator) -> (left, top, right, bottom) in pixels, or None for all of the picture.
RegionChooser: TypeAlias = Callable[[int, int, torch.Generator], Region | None]
Size: TypeAlias = int | tuple[int, int]

_MOST_PIXELS = 1 << 29  # of a picture that is resized


@dataclass(frozen=True)
class CenterCrop:
    """The middle of a picture.

    Args:
        size: (height, width) in pixels, or one number for both.
        clip: of a picture that is smaller, as much as there is; else it is an error.
    Raises:
        UnsupportedError: no such size; when called: the picture is smaller.
    """

    size: Size
    clip: bool = False

    def __post_init__(self) -> None:
        checked_size("size", self.size)

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Region:
        down, across = self._fitted(height, width)
        return _region((height - down) // 2, (width - across) // 2, down, across)

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        down, across = checked_size("size", self.size)
        if not self.clip and (down > height or across > width):
            raise UnsupportedError(f"a crop of {across}x{down} pixels does not fit into {width}x{height}")
        return min(down, height), min(across, width)


@dataclass(frozen=True)
class RandomCrop(CenterCrop):
    """A crop of a size, each place as likely as any other; arguments as `CenterCrop`."""

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Region:
        down, across = self._fitted(height, width)
        return _region(_below(height - down + 1, generator), _below(width - across + 1, generator), down, across)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A crop of random size and proportions, as torchvision's transform of this name chooses it; `resize` brings it to
    a size, and `scale="auto"` decodes no more than that needs.

    Args:
        scale: least and most share of the picture's pixels, 0 < least <= most <= 1.
        ratio: least and most width / height.
    Raises:
        UnsupportedError: no such shares or proportions.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        for name, pair, most in (("scale", self.scale, 1.0), ("ratio", self.ratio, math.inf)):
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise UnsupportedError(f"{name} is {pair!r}: it must be two numbers, least and most")
            for number in pair:
                check_number(name, number, whole=False)
            if not 0 < pair[0] <= pair[1] <= most or math.isinf(pair[1]):
                raise UnsupportedError(
                    f"{name} is {pair!r}: it must be 0 < least <= most{' <= 1' if most == 1 else ''}"
                )

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Region:
        for _ in range(10):
            area = height * width * _between(*self.scale, generator)
            ratio = math.exp(_between(math.log(self.ratio[0]), math.log(self.ratio[1]), generator))
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                return _region(
                    _below(height - down + 1, generator), _below(width - across + 1, generator), down, across
                )
        # None fits: the middle, as near to the proportions as the picture allows.
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        down, across = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
        return _region((height - down) // 2, (width - across) // 2, down, across)


def _region(top: int, left: int, height: int, width: int) -> Region:
    return left, top, left + width, top + height


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _between(least: float, most: float, generator: torch.Generator) -> float:
    return least + (most - least) * float(torch.rand((), generator=generator, dtype=torch.float64))


@dataclass(frozen=True)
class Chosen:
    """What is decoded of one picture: `region` and `scale` of `Codec.decode`, or `size` of `Codec.thumbnail`; and the
    (height, width) that it is brought to then, None: it stays as it is."""

    region: Region | None = None
    scale: Scale = 1
    resize: tuple[int, int] | None = None
    thumbnail: Size | None = None
    metric: Metric | None = None


@dataclass(frozen=True)
class Views:
    """What is wanted of every picture; arguments and errors at `L2CDataset`."""

    region: Region | RegionChooser | None = None
    scale: Scale | Literal["auto"] = 1
    resize: Size | None = None
    thumbnail: Size | None = None
    metric: Metric | None = None

    def __post_init__(self) -> None:
        if self.scale == "auto" and self.resize is None:
            raise UnsupportedError('scale="auto" is the least that `resize` needs: give resize, too')
        check_decode_options(self.metric, 1 if self.scale == "auto" else self.scale, "raise")
        if self.resize is not None:
            checked_size("resize", self.resize)
        if self.thumbnail is not None:
            checked_size("thumbnail", self.thumbnail)
            if self.scale != 1 or self.resize is not None:
                raise UnsupportedError("thumbnail chooses its scale: give neither scale nor resize")

    def of(self, header: Header, generator: torch.Generator) -> Chosen:
        """What is wanted of a picture. Raises UnsupportedError: a region that is none of it."""
        region = self.region(header.height, header.width, generator) if callable(self.region) else self.region
        area = View.asked(header, region, 1).snapped(header.height, header.width)
        resize = None if self.resize is None else checked_size("resize", self.resize)
        fitting: list[Scale] = [1]
        if self.scale == "auto" and resize is not None:
            fitting = [s for s in SCALES if s == 1 or (area.height >= s * resize[0] and area.width >= s * resize[1])]
        scale = max(fitting) if self.scale == "auto" else self.scale
        region = None if region is None else (area.left, area.top, area.right, area.bottom)  # whole numbers of Python's
        return Chosen(region, scale, resize, self.thumbnail, self.metric)


def checked_size(name: str, size: Any) -> tuple[int, int]:
    """A pair of lengths in pixels. Raises UnsupportedError: they are not, or too large together."""
    pair = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size, size]
    if len(pair) != 2:
        raise UnsupportedError(f"{name} is {size!r}: it must be a whole number of pixels, or two")
    for number in pair:
        check_number(name, number, whole=True)
        if number < 1:
            raise UnsupportedError(f"{name} is {size!r}: it must be at least 1")
    if int(pair[0]) * int(pair[1]) > _MOST_PIXELS:
        raise UnsupportedError(f"{name} is {size!r}: more than {_MOST_PIXELS} pixels")
    return cast("tuple[int, int]", tuple(map(int, pair)))
