"""What the head of a file says and Pillow does not hand over: colours by code points, bits a sample."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, cast

_JPEG_2000_BITS = 38  # the most that the standard has


def read_code_points(stream: BinaryIO) -> tuple[int, int, int, int] | None:
    """Primaries, transfer, matrix and range (ITU-T H.273) that a PNG file's cICP states, or an AVIF file's nclx.

    An AVIF file's matrix and range are its decoder's affair, and its BT.709 transfer is shown as sRGB everywhere.
    """
    head = stream.read(8)
    if head == b"\x89PNG\r\n\x1a\n":
        while len(start := stream.read(8)) == 8 and start[4:] not in (b"IDAT", b"IEND"):
            (size,) = struct.unpack(">I", start[:4])
            if start[4:] == b"cICP":
                points = stream.read(4)
                return cast("tuple[int, int, int, int]", tuple(points)) if size == len(points) == 4 else None
            stream.seek(size + 4, io.SEEK_CUR)
    elif head[4:] == b"ftyp":
        head = stream.read(2**16)
        at = head.find(b"colrnclx")
        if at >= 0 and len(head) >= at + 12:
            primaries, transfer = struct.unpack_from(">HH", head, at + 8)
            if 2 not in (primaries, transfer):
                return primaries, 13 if transfer in (1, 6, 14, 15) else transfer, 0, 1
    return None


def read_coded_bits(stream: BinaryIO) -> int:
    """Bits a sample of a JPEG 2000 or AVIF file, of which Pillow hands over 8 without a word; 8 for all others."""
    head = stream.read(2**16)
    if head[4:8] == b"ftyp":
        at = head.find(b"av1C")
        flags = head[at + 6] if 0 <= at < len(head) - 6 else 0
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    if head.startswith((b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")):
        at = head.find(b"\xff\x4f\xff\x51")  # SOC, SIZ; then Csiz, and three bytes a component, the first one its bits
        sizes = head[at + 42 : at + 42 + 3 * int.from_bytes(head[at + 40 : at + 42], "big") : 3] if at >= 0 else b""
        bits = max(((size & 127) + 1 for size in sizes), default=8)
        return bits if 8 <= bits <= _JPEG_2000_BITS else 8
    return 8
