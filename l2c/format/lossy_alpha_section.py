"""Alpha planes with loss: the section LOSSY_ALPHA, `pack` and `unpack`. Its form:

A plane of 8-bit samples is coded as one JPEG 2000 codestream (ITU-T T.800), and a map says exactly what is transparent
and what is opaque:

    byte 0     form: 1
    byte 1     k, 0..15: the map has one value for each block of 2^k x 2^k pixels, counted from the top left
    byte 2     t, 0..127
    bytes 3-6  m, bytes of the map, little-endian
    m bytes    the map, ceil(height / 2^k) x ceil(width / 2^k) 1-byte samples 0..2 in the form of the ALPHA section
    the rest   what the codestream's only tile-part holds between SOD and EOC

A pixel is 0 where the map says 0 and 255 where it says 2. Where it says 1, it is v, what the codestream decodes to
there, but 0 where v <= t and 255 where v >= 255 - t. The marker segments that a decoder puts before the data:

    SOC
    SIZ        Rsiz 0; one tile, as large as the picture; no offsets; one component, 8 bits, unsigned, XRsiz = YRsiz = 1
    COD        Scod 0, order LRCP, 1 layer, no component transform, L decomposition levels, code-blocks of 64 x 64,
               style 0, reversible 5/3 transform; L = min(5, floor(log2(min(height, width))))
    QCD        no quantisation, 2 guard bits; exponents 8 of LL, then L times 9, 9, 10 of HL, LH, HH
    SOT        tile 0, part 0 of 1; SOD

A bit-plane that was cut off is taken at the middle of its interval, as OpenJPEG does; in all else T.800 is exact.

Soft masks are smooth, and a wavelet transform needs few bits for that, where zlib needs many for the last levels. What
a user would see, a veil over what is to be transparent or opaque, is ruled out by a map of these areas. JPEG 2000 with
the 5/3 transform computes in integers alone, so a plane does not depend on the machine. Where in its interval a value
lies whose last bits were cut off is the decoder's choice by the standard: OpenJPEG, the only one in Pillow, takes the
middle. Another decoder, or an OpenJPEG to come, may choose otherwise and so give values that differ a little.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any, cast

import numpy as np

from l2c.arrays import Alpha, UInt8Array, to_8_bits
from l2c.errors import BitstreamError, UnsupportedError
from l2c.format.alpha_section import pack_alpha, unpack_alpha
from l2c.format.bitstream import ALPHA, LOSSY_ALPHA

_FORM = 1
_HEAD = struct.Struct("<BBBI")
_MOST_LOG2, _MOST_SNAP = 15, 127
_CLEAR, _BETWEEN, _OPAQUE = range(3)
_AREA_LOG2 = 3  # the coarser of the two maps that the encoder tries: blocks of 8 x 8
_SPECKLED = 0.5  # share of single pixels from which on they are noise: 0.001 at edges, 0.4 in hair, 0.7..1 in noise
_LEAST_DB, _DB_PER_QUALITY = 25.0, 0.25
_MORE_DB, _MISSED = (0.0, 2.0, 4.0, 6.0), 1.15  # OpenJPEG stops too early at times: asked again for more
_SNAP_ERRORS, _SNAP_LIMIT = 4.0, 16  # values that may become 0 or 255: so many mean errors, and never more
_MOST_LEVELS = 5
_TILE_PART = struct.Struct(">HHHIBB")


def pack(alpha: Alpha, quality: float | None = None) -> tuple[int, bytes, Alpha]:
    """The section of an alpha plane, in the smaller of its two forms where a quality is given.

    Args:
        alpha: uint8 or uint16 [H, W], not empty.
        quality: None: without loss. 0..100: with loss, a PSNR of about 25 + quality / 4 dB over the pixels that are
            neither opaque nor transparent; uint16 is rounded to 8 bits first.
    Returns:
        ALPHA or LOSSY_ALPHA; the section; and the plane that it decodes to, uint8 or (ALPHA alone) uint16 [H, W].
    Raises:
        UnsupportedError: this Pillow writes no JPEG 2000, or none of the kind that is needed.
    """
    exact = pack_alpha(alpha)
    if quality is None:
        return ALPHA, exact, alpha
    plane = to_8_bits(alpha)
    if ((plane == 0) | (plane == 255)).all():
        return ALPHA, exact, alpha
    section, decoded, lost = pack_at(plane, _AREA_LOG2, quality)
    if lost and not _speckled(plane):
        section, decoded, _ = pack_at(plane, 0, quality)
    return (LOSSY_ALPHA, section, decoded) if len(section) < len(exact) else (ALPHA, exact, alpha)


def unpack(data: bytes | bytearray | memoryview, height: int, width: int) -> UInt8Array:
    """The plane of a LOSSY_ALPHA section.

    The codestream's head is made here and not read, so nothing but the picture's size decides what is allocated.

    Returns:
        uint8 [height, width], writable.
    Raises:
        BitstreamError: not a section of a plane of this size.
        UnsupportedError: this Pillow reads no JPEG 2000.
    """
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise BitstreamError(f"lossy alpha plane: {len(view)} bytes, its head alone has {_HEAD.size}")
    form, log2, snap, size = _HEAD.unpack_from(view)
    if form != _FORM or log2 > _MOST_LOG2 or snap > _MOST_SNAP or size > len(view) - _HEAD.size:
        raise BitstreamError(f"lossy alpha plane: starts with {bytes(view[: _HEAD.size]).hex()}, which is no head")
    side = 1 << log2
    areas = unpack_alpha(view[_HEAD.size : _HEAD.size + size], -(-height // side), -(-width // side))
    if areas.dtype != np.uint8 or areas.max() > _OPAQUE:
        raise BitstreamError("lossy alpha plane: the map holds other values than 0, 1 and 2")
    values = decode_plane(view[_HEAD.size + size :], height, width)
    return _joined(values, cast(UInt8Array, areas), side, snap)


def pack_at(plane: UInt8Array, log2: int, quality: float) -> tuple[bytes, UInt8Array, bool]:
    """A section, what it decodes to, and whether a transparent or opaque pixel is not so any more."""
    height, width = plane.shape
    side = 1 << log2
    areas = _areas(plane, side)
    between = _spread(areas, side, height, width) == _BETWEEN
    wanted_db = _LEAST_DB + _DB_PER_QUALITY * quality
    wanted = 255.0 * 10.0 ** (-wanted_db / 20.0)  # root of the mean squared error where the map leaves the choice
    for more in _MORE_DB:
        coded = code_plane(plane, wanted_db - 10.0 * math.log10(float(between.mean())) + more)
        values = decode_plane(memoryview(coded), height, width)
        if np.square(values[between] - plane[between].astype(np.float32)).mean() <= (_MISSED * wanted) ** 2:
            break
    clear, opaque = values[between & (plane == 0)], values[between & (plane == 255)]
    needed = max(int(clear.max(initial=0)), 255 - int(opaque.min(initial=255)))
    snap = min(needed, _SNAP_LIMIT, int(_SNAP_ERRORS * wanted))
    packed_areas = pack_alpha(areas)
    section = _HEAD.pack(_FORM, log2, snap, len(packed_areas)) + packed_areas + coded
    return section, _joined(values, areas, side, snap), needed > snap


def _speckled(plane: UInt8Array) -> bool:
    """Whether pixels that are transparent or opaque lie about as noise, so that to keep each would be a waste.

    Those are single that lie in no 3 x 3 pixels of their kind; whole blocks of the coarser map do not count.
    """
    from PIL import Image, ImageFilter

    side = 1 << _AREA_LOG2
    open_ = _spread(_areas(plane, side), side, *plane.shape) == _BETWEEN
    single = total = 0
    for value in (0, 255):
        found = Image.fromarray(np.where(plane == value, 255, 0).astype(np.uint8))
        squares = np.asarray(found.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.MaxFilter(3))) > 0
        mine = open_ & (plane == value)
        single += int((mine & ~squares).sum())
        total += int(mine.sum())
    return single > _SPECKLED * total


def _areas(plane: UInt8Array, side: int) -> UInt8Array:
    """The map: for every block of side x side pixels whether it is transparent, opaque or something between."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % side), (0, -width % side)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side)
    areas = np.full((blocks.shape[0], blocks.shape[2]), _BETWEEN, np.uint8)
    areas[(blocks == 0).all(axis=(1, 3))] = _CLEAR
    areas[(blocks == 255).all(axis=(1, 3))] = _OPAQUE
    return areas


def _spread(areas: UInt8Array, side: int, height: int, width: int) -> UInt8Array:
    """The map's value of every pixel."""
    # By index and not by `repeat`, which would make whole blocks first: of a thin plane very many times its size.
    return areas[np.arange(height) // side][:, np.arange(width) // side] if side > 1 else areas


def _joined(values: UInt8Array, areas: UInt8Array, side: int, snap: int) -> UInt8Array:
    """The plane that a section means."""
    plane = values.copy()
    plane[values <= snap] = 0
    plane[values >= 255 - snap] = 255
    spread = _spread(areas, side, *values.shape)
    plane[spread == _CLEAR] = 0
    plane[spread == _OPAQUE] = 255
    return plane


def codestream_head(height: int, width: int) -> bytes:
    """SOC, SIZ, COD and QCD (ITU-T T.800, annex A) of all our codestreams: one tile, one layer, 8 bits, reversible."""
    levels = _levels(height, width)
    siz = struct.pack(">HHHIIIIIIIIHBBB", 0xFF51, 41, 0, width, height, 0, 0, width, height, 0, 0, 1, 7, 1, 1)
    cod = struct.pack(">HHBBHBBBBBB", 0xFF52, 12, 0, 0, 1, 0, levels, 4, 4, 0, 1)
    # Two guard bits; a sub-band's exponent is 8 and what the 5/3 transform gains in it.
    exponents = bytes([8 << 3]) + bytes([9 << 3, 9 << 3, 10 << 3]) * levels
    return b"\xff\x4f" + siz + cod + struct.pack(">HHB", 0xFF5C, 3 + len(exponents), 0x40) + exponents


def _levels(height: int, width: int) -> int:
    """How often the wavelet transform halves the plane."""
    return min(_MOST_LEVELS, min(height, width).bit_length() - 1)


def code_plane(plane: UInt8Array, psnr_db: float) -> bytes:
    """What follows the marker SOD of the plane's codestream, up to EOC."""
    _check_library()
    from PIL import Image

    height, width = plane.shape
    stream = io.BytesIO()
    options: dict[str, Any] = {
        "irreversible": False,
        "quality_mode": "dB",
        "quality_layers": [psnr_db],
        "num_resolutions": _levels(height, width) + 1,
        "codeblock_size": (64, 64),
        "no_jp2": True,
        "mct": 0,
    }
    Image.fromarray(plane).save(stream, "JPEG2000", **options)
    written, head = stream.getvalue(), codestream_head(height, width)
    at = len(head)
    while written[at : at + 2] == b"\xff\x64":  # COM, which names the library
        at += 2 + int.from_bytes(written[at + 2 : at + 4], "big")
    body = written[at + _TILE_PART.size + 2 : -2]
    if written != head + written[len(head) : at] + _tile_part(len(body)) + body + b"\xff\xd9":
        raise UnsupportedError("alpha_quality: this Pillow writes JPEG 2000 in another form than L2C knows")
    return body


def _tile_part(size: int) -> bytes:
    """SOT and SOD around `size` bytes of the only tile."""
    return _TILE_PART.pack(0xFF90, 10, 0, _TILE_PART.size + 2 + size, 0, 1) + b"\xff\x93"


def decode_plane(body: memoryview, height: int, width: int) -> UInt8Array:
    """Inverse of `code_plane`: uint8 [height, width]."""
    _check_library()
    from PIL import Jpeg2KImagePlugin

    whole = b"".join((codestream_head(height, width), _tile_part(len(body)), body, b"\xff\xd9"))
    try:
        image = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(whole))  # not Image.open, whose limit is not ours
        image.load()
        values = np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # parsers of broken files raise nearly everything
        raise BitstreamError(f"lossy alpha plane: cannot be decoded ({error})") from error
    if values.dtype != np.uint8 or values.shape != (height, width):
        raise BitstreamError(f"lossy alpha plane: decodes to {values.dtype} {list(values.shape)}")
    return cast(UInt8Array, values)


def _check_library() -> None:
    from PIL import features

    if not features.check("jpg_2000"):
        raise UnsupportedError("an alpha plane with loss needs a Pillow with JPEG 2000")
