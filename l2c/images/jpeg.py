"""JPEG files that lack their end marker and nothing else."""

from __future__ import annotations

import io
import re
import struct
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from l2c.images.pillow import for_opening

# A marker that begins a segment: no stuffed byte, fill byte, restart or start of the picture.
_SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_START, _END = b"\xff\xd8", b"\xff\xd9"


def with_end_marker(stream: BinaryIO, max_pixels: int | None) -> io.BytesIO | None:
    """A JPEG file that lacks its end marker and nothing else, with one; None for all others.

    libjpeg shows a file of several scans only once it has seen the end marker, and with one takes missing data for
    zeros. So what follows the data is varied: a picture that changes with it was cut.
    """
    data = stream.read(2)
    if data != _START:
        return None
    data = (data + stream.read()).removesuffix(b"\xff")
    if not _has_all_scans(data):
        return None
    seen: npt.NDArray[Any] | None = None
    for filler in (b"", b"\x55" * 64, b"\xaa" * 64):
        try:
            with for_opening():
                image = Image.open(io.BytesIO(data + filler + _END))
            if max_pixels is not None and image.width * image.height > max_pixels:
                return None
            pixels = np.asarray(image)
        except Exception:  # broken elsewhere
            return None
        if seen is not None and not np.array_equal(seen, pixels):
            return None
        seen = pixels
    return io.BytesIO(data + _END)


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a JPEG file without end marker bring each coefficient of each component to its last bit."""
    missing: set[tuple[int, int]] = set()
    at = 2
    while (found := _SEGMENT.search(data, at)) is not None and found.end() + 2 <= len(data):
        marker, at = data[found.end() - 1], found.end()
        (size,) = struct.unpack_from(">H", data, at)
        body = data[at + 2 : at + size]
        if marker == 0xD9 or len(body) != size - 2:
            return False
        try:
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                missing = {(body[6 + 3 * i], k) for i in range(body[5]) for k in range(64)}
            elif marker == 0xDA:
                first, last, bits = body[1 + 2 * body[0] :][:3]
                if bits & 15 == 0:
                    missing -= {(body[1 + 2 * i], k) for i in range(body[0]) for k in range(first, last + 1)}
        except (IndexError, ValueError):
            return False
        at += size
    return not missing
