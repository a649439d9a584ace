"""The picture as a value: what it holds, what of it is kept, what it looked like before it was 8-bit RGB."""

from __future__ import annotations

import warnings as python_warnings
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, cast

import numpy as np
from PIL import Image

from l2c.arrays import Alpha, UInt8Array, check_alpha, to_8_bits
from l2c.errors import ImageError, L2CWarning, LimitError, UnsupportedError
from l2c.images import profiles

Metadata: TypeAlias = bool | Literal["all", "color", "none"]

GREY_MODES = frozenset({"L", "LA", "1", "I;16", "I", "F"})


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as the codec takes it, and what is kept beside it.

    Attributes:
        rgb: uint8 [H, W, 3], C-contiguous, upright; may share memory with the array it was made from.
        mode: what the source was, one of `bitstream.MODES` (Pillow's names; I;16B and the like as I;16).
        bit_depth: bits a sample of the source, 1..64.
        alpha: uint8 or uint16 [H, W], or None.
        icc: ICC profile, or None.
        exif: TIFF structure ("II" or "MM" first, no "Exif" prefix) with Orientation 1, or None.
        warnings: what was warned about while loading, one line each.
        xmp: XMP packet with Orientation 1, 1..2^26 bytes, or None.
        dpi: dots per inch (horizontal, vertical), each in 0.0001..429496.7295, or None where the source says none or
            72, which is what readers take where nothing is said.
    """

    rgb: UInt8Array = field(repr=False)
    mode: str = "RGB"
    bit_depth: int = 8
    alpha: Alpha | None = field(default=None, repr=False)
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    xmp: bytes | None = field(default=None, repr=False)
    dpi: tuple[float, float] | None = None

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.rgb.shape[1])


def to_original(rgb: UInt8Array, alpha: Alpha | None = None, mode: str = "RGB") -> UInt8Array:
    """Brings decoded colours back to the original mode as far as 8 bits hold it (table: docstring of `l2c.images`).

    Grey is (19595 R + 38470 G + 7471 B + 32768) >> 16, which returns v for R = G = B = v.

    Args:
        rgb: uint8 [H, W, 3].
        alpha: uint8 or uint16 [H, W] or None; uint16 is rounded to 8 bits.
        mode: `Picture.mode`.
    Returns:
        uint8 [H, W] or, with alpha, [H, W, 2] for grey modes; [H, W, 3] or [H, W, 4] for all others.
        Writable; `rgb` itself where nothing changes.
    Raises:
        ImageError: wrong shape or dtype.
    """
    check_rgb(rgb)
    planes = np.array(Image.fromarray(rgb).convert("L"))[..., None] if mode in GREY_MODES else rgb
    if alpha is not None:
        check_alpha(alpha, rgb.shape[:2])
        planes = np.concatenate([planes, to_8_bits(alpha)[..., None]], axis=2)
    return cast(UInt8Array, planes[..., 0] if planes.shape[2] == 1 else planes)


def keep(picture: Picture, metadata: Metadata) -> Picture:
    """The picture with what is to be kept beside it; alpha always is.

    Args:
        metadata: "all" (True): everything; "color": the ICC profile alone, so no place, time or name; "none" (False):
            nothing, the colours converted to sRGB where a profile says that they are others.
    Raises:
        UnsupportedError: another choice.
    Warns:
        L2CWarning: the profile cannot be applied.
    """
    if metadata in (True, "all"):
        return picture
    if metadata not in (False, "color", "none"):
        raise UnsupportedError(f"metadata is {metadata!r}: choose 'all' (True), 'color' or 'none' (False)")
    picture = replace(picture, exif=None, xmp=None, dpi=None)
    if metadata == "color" or picture.icc is None:
        return picture
    grey = profiles.colour_space(picture.icc) == "GRAY"
    try:
        image = Image.fromarray(picture.rgb)
        colours = profiles.to_srgb(image.convert("L") if grey else image, picture.icc)
    except ValueError as error:
        python_warnings.warn(
            f"the ICC profile cannot be applied ({error}), left out: colours may change", L2CWarning, stacklevel=2
        )
        colours = None
    return replace(picture, icc=None, rgb=picture.rgb if colours is None else colours)


def grey_to_rgb(grey: UInt8Array) -> UInt8Array:
    """[H, W] -> contiguous [H, W, 3]."""
    return np.repeat(grey[..., None], 3, axis=2)


def check_rgb(rgb: UInt8Array) -> None:
    """Raises ImageError: no 8-bit colours, or none at all."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ImageError(f"colours: {rgb.dtype} {list(rgb.shape)}, expected uint8 [H, W, 3]")


def check_size(height: int, width: int, name: str, max_pixels: int | None) -> None:
    """Raises ImageError: empty; LimitError: more than `max_pixels`. `name` heads the message."""
    if height == 0 or width == 0:
        raise ImageError(f"{name}: {width} x {height} pixels, a picture has at least one")
    if max_pixels is not None and height * width > max_pixels:
        raise LimitError(f"{name}: {width} x {height} pixels, the limit is {max_pixels} (max_pixels)")
