"""What is kept beside a picture in a form of its own: the sections XMP and DPI.

XMP (`pack_xmp`, `unpack_xmp`): one zlib stream (RFC 1950) of the packet, 1..2^26 bytes, and nothing more.

DPI (`pack_dpi`, `unpack_dpi`), 8 bytes: horizontal and vertical dots per inch in ten-thousandths, each a little-endian
number in 1..2^32-1.
"""

from __future__ import annotations

import struct
import zlib

from l2c.errors import BitstreamError

MAX_XMP_BYTES = 2**26
DPI_STEPS = 10000  # of a dot per inch


def pack_xmp(xmp: bytes) -> bytes:
    """The XMP section (format: module docstring) of a packet of 1..2^26 bytes."""
    return zlib.compress(xmp, 9)


def unpack_xmp(data: bytes | bytearray | memoryview) -> bytes:
    """Inverse of `pack_xmp`; never expands more than 2^26 bytes.

    Raises:
        BitstreamError: not a packed packet.
    """
    inflater = zlib.decompressobj()
    try:
        xmp = inflater.decompress(data, MAX_XMP_BYTES + 1)
    except zlib.error as error:
        raise BitstreamError(f"XMP: {error}") from error
    if not 0 < len(xmp) <= MAX_XMP_BYTES or not inflater.eof or inflater.unused_data:
        raise BitstreamError(f"XMP: not one whole zlib stream of 1..{MAX_XMP_BYTES} bytes")
    return xmp


def pack_dpi(dpi: tuple[float, float]) -> bytes:
    """The DPI section (format: module docstring); dots per inch as in `images.Picture`."""
    return struct.pack("<II", *(round(value * DPI_STEPS) for value in dpi))


def unpack_dpi(data: bytes | bytearray | memoryview) -> tuple[float, float]:
    """Inverse of `pack_dpi`. Raises BitstreamError: not 8 bytes, or a zero."""
    if len(data) != 8:
        raise BitstreamError(f"DPI: {len(data)} bytes, expected 8")
    x, y = struct.unpack("<II", data)
    if not x or not y:
        raise BitstreamError("DPI: 0 dots per inch")
    return x / DPI_STEPS, y / DPI_STEPS
