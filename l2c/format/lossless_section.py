"""Pixels without loss: the section LOSSLESS, of pictures that are small or drawn, which take fewer bytes so.

The encoder may have reduced the picture to fewer colours before: then its header's quality is less than 1000.

It holds the data of the VP8L chunk of a WebP file (RFC 9649, section 3) and nothing more: width and height of the
picture, no alpha (the file's own alpha sections hold that), its colours RGB, 8 bits each. Both sides are at most 16383
pixels. In a file with this section no latents are coded: size and channels of every tile are 0, and so is the latents'
CRC.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image, features

from l2c.arrays import UInt8Array
from l2c.errors import BitstreamError, UnsupportedError
from l2c.format.source import BytesLike

MOST_SIDE = (1 << 14) - 1  # pixels, as libwebp has it
_RIFF = struct.Struct("<4sI4s4sI")
_EFFORT, _METHOD, _THOROUGH = 100, 4, 6  # libwebp's; its method 6 takes some ten times as long for a few per cent


def is_available() -> bool:
    """Whether Pillow has libwebp here, as its wheels do."""
    return bool(features.check("webp"))


def pack(rgb: UInt8Array, thorough: bool = False) -> bytes | None:
    """The section of a picture uint8 [H, W, 3]; None: it is too large for the form, or libwebp is not here.

    `thorough`: some ten times as long, for a few per cent.
    """
    if max(rgb.shape[:2]) > MOST_SIDE or not is_available():
        return None
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "WEBP", lossless=True, quality=_EFFORT, method=_THOROUGH if thorough else _METHOD)
    file = buffer.getvalue()
    *_, kind, size = _RIFF.unpack_from(file)
    return file[_RIFF.size : _RIFF.size + size] if kind == b"VP8L" else None


def unpack(data: BytesLike, height: int, width: int) -> UInt8Array:
    """The picture of a section: uint8 [height, width, 3].

    Raises:
        BitstreamError: it is no VP8L chunk, or not of such a picture. UnsupportedError: libwebp is not here.
    """
    if not is_available():
        raise UnsupportedError("section LOSSLESS: Pillow has no WebP here")
    body = bytes(data)
    if len(body) < 5 or body[0] != 0x2F:
        raise BitstreamError("section LOSSLESS: no VP8L data")
    bits = int.from_bytes(body[1:5], "little")
    found = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if found != (height, width) or bits >> 28:
        raise BitstreamError(
            f"section LOSSLESS: {found[1]}x{found[0]} pixels, alpha or version {bits >> 28}; "
            f"the picture has {width}x{height} pixels, and 0"
        )
    padded = body + bytes(len(body) % 2)
    riff = _RIFF.pack(b"RIFF", 12 + len(padded), b"WEBP", b"VP8L", len(body))
    try:
        with Image.open(io.BytesIO(riff + padded), formats=["WEBP"]) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise BitstreamError(f"section LOSSLESS: cannot be decoded ({error})") from None
