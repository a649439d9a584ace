"""The kinds of arrays that modules hand to each other, by name, and the 8 bits that samples are reduced to."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from l2c.errors import ImageError

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Symbols: TypeAlias = UInt8Array | npt.NDArray[np.int16]  # [c, h, w], quantised latents as they are coded
Alpha: TypeAlias = UInt8Array | npt.NDArray[np.uint16]  # [H, W]; 0 is transparent, the greatest value opaque


def to_8_bits(values: npt.NDArray[Any]) -> UInt8Array:
    """uint16 0..65535 -> uint8, rounded to the nearest; uint8 as it is."""
    if values.dtype == np.uint8:
        return cast(UInt8Array, values)
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def check_alpha(alpha: Alpha, shape: tuple[int, ...]) -> None:
    """Raises ImageError: not a plane of this shape, or an empty one."""
    if alpha.dtype not in (np.uint8, np.uint16) or alpha.ndim != 2 or alpha.shape != shape or alpha.size == 0:
        raise ImageError(f"alpha: {alpha.dtype} {list(alpha.shape)}, expected uint8 or uint16 {list(shape[:2])}")
