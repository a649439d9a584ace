"""Alpha planes without loss: the section ALPHA, `pack_alpha` and `unpack_alpha`. Its form:

    byte 0     method: 0 constant, 1 plain, 2 left, 3 up, 4 both
    byte 1     bytes a sample: 1 (uint8) or 2 (uint16)
    method 0:  one sample, little-endian, and nothing more: the value of every pixel
    else:      one zlib stream (RFC 1950) and nothing more. It holds height * width residuals, row by row;
               with 2-byte samples the high bytes of all of them, then the low bytes of all of them.

Residual of sample a[y, x], modulo 256 or 65536, samples outside the picture being 0:

    1: a[y, x]     2: a[y, x] - a[y, x-1]     3: a[y, x] - a[y-1, x]
    4: a[y, x] - a[y, x-1] - a[y-1, x] + a[y-1, x-1]
"""

from __future__ import annotations

import zlib
from typing import cast

import numpy as np

from l2c.arrays import Alpha, check_alpha
from l2c.errors import BitstreamError

_CONSTANT, _PLAIN, _LEFT, _UP, _BOTH = range(5)
_METHODS = (_PLAIN, _LEFT, _UP, _BOTH)
_TRIAL_SAMPLES = 2**20


def pack_alpha(alpha: Alpha) -> bytes:
    """Codes an alpha plane without loss (format: module docstring).

    Args:
        alpha: uint8 or uint16 [H, W], not empty.
    Returns:
        4 bytes or fewer for a constant plane; at most about 1.001 times the plane's bytes for noise.
    Raises:
        ImageError: wrong shape or dtype.
    """
    check_alpha(alpha, alpha.shape)
    sample = alpha.dtype.itemsize
    first = alpha[0, 0]
    if (alpha == first).all():
        return bytes([_CONSTANT, sample]) + int(first).to_bytes(sample, "little")
    # Level 1 on a sample of the rows ranks the methods as level 9 on all rows does, but sooner.
    step = -(-alpha.size // _TRIAL_SAMPLES)
    sizes = {method: len(zlib.compress(_to_planes(_residual(alpha, method)[::step]), 1)) for method in _METHODS}
    best = min(_METHODS, key=lambda method: sizes[method])
    return bytes([best, sample]) + zlib.compress(_to_planes(_residual(alpha, best)), 9)


def unpack_alpha(data: bytes | bytearray | memoryview, height: int, width: int) -> Alpha:
    """Inverse of `pack_alpha`; never expands more than the plane's own size.

    Returns:
        uint8 or uint16 [height, width], as it was packed.
    Raises:
        BitstreamError: not a packed plane of this size.
    """
    view = memoryview(data)
    if len(view) < 2 or view[0] not in (_CONSTANT, *_METHODS) or view[1] not in (1, 2):
        raise BitstreamError(f"alpha plane: starts with {bytes(view[:2]).hex()}, not a method and a sample size")
    method, sample = view[0], view[1]
    dtype = np.dtype(np.uint8 if sample == 1 else np.uint16)
    if method == _CONSTANT:
        if len(view) != 2 + sample:
            raise BitstreamError(f"alpha plane: {len(view)} bytes for a constant, not {2 + sample}")
        return cast(Alpha, np.full((height, width), int.from_bytes(view[2:], "little"), dtype))
    expected = height * width * sample
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(view[2:], expected + 1)
    except zlib.error as error:
        raise BitstreamError(f"alpha plane: {error}") from error
    if len(raw) != expected or not inflater.eof or inflater.unused_data:
        raise BitstreamError(f"alpha plane: not exactly the {expected} bytes of {width} x {height} samples")
    planes = np.frombuffer(raw, np.uint8).reshape(sample, height, width)
    plane = planes[0].astype(dtype)  # a copy, so the result is writable
    if sample == 2:
        plane = plane << 8 | planes[1]
    if method in (_LEFT, _BOTH):
        np.cumsum(plane, axis=1, dtype=dtype, out=plane)
    if method in (_UP, _BOTH):
        np.cumsum(plane, axis=0, dtype=dtype, out=plane)
    return cast(Alpha, plane)


def _residual(alpha: Alpha, method: int) -> Alpha:
    """Residuals of the ALPHA section, same shape and dtype, wrapping around."""
    residual: Alpha = alpha.copy()
    if method in (_LEFT, _BOTH):
        residual[:, 1:] -= alpha[:, :-1]
    if method in (_UP, _BOTH):
        residual[1:] -= residual[:-1].copy()
    return residual


def _to_planes(residual: Alpha) -> bytes:
    """uint8 as it is; uint16 as all high bytes, then all low bytes."""
    if residual.dtype == np.uint8:
        return residual.tobytes()
    return (residual >> 8).astype(np.uint8).tobytes() + (residual & 255).astype(np.uint8).tobytes()
