"""EXIF as bytes: made to fit a picture that was turned, and put into TIFF files.

EXIF is a TIFF structure: a head ("II" or "MM", 42, the place of the first directory), and directories of 12-byte
entries (tag, type, count, value or its place), each followed by the place of the next one. It is patched and not
written anew, because maker notes hold offsets that must not move.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

PREFIX = b"Exif\x00\x00"
ORIENTATION, EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x0112, 0x8769, 0x8825, 0xA005
# What a TIFF file says about the photograph; its other tags describe how that file stores pixels.
# ImageDescription, Make, Model, X/YResolution, ResolutionUnit, Software, DateTime, Artist, Copyright
TIFF_KEPT = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_SHORT, _LONG = 3, 4
# ImageWidth and ImageLength of the first directory, PixelXDimension and PixelYDimension of Exif's.
_WIDTHS, _HEIGHTS = frozenset({0x0100, 0xA002}), frozenset({0x0101, 0xA003})
_THUMBNAIL_AT, _THUMBNAIL_SIZE = 0x0201, 0x0202
# Tags of a TIFF file's own pixels, profile, XMP, IPTC and thumbnails.
_STRUCTURE = frozenset(
    (0x00FE, 0x00FF, *range(0x0100, 0x010E), 0x0111, *range(0x0115, 0x011A), 0x011C, 0x011D, 0x013D)
) | frozenset((*range(0x0140, 0x0154), 0x015B, *range(0x0200, 0x0215), 0x02BC, 0x828D, 0x83BB, 0x8649, 0x8773, 0xC4A5))


def strip_prefix(data: bytes) -> bytes:
    """The TIFF structure alone; some programs write the "Exif" prefix twice."""
    while data.startswith(PREFIX):
        data = data[len(PREFIX) :]
    return data


def upright(tiff: bytes, orientation: int, width: int, height: int) -> bytes:
    """The EXIF of a picture that was turned as its Orientation asked.

    Orientation becomes 1 where there is that tag. After a turn (orientation 2..8) the thumbnail, which still lies as
    before, is cut off; after a turn by a right angle (5..8) the sizes in pixels become those of the picture. Every
    other byte stays as it was.

    Args:
        tiff: a TIFF structure without prefix.
        orientation: 1..8, what was applied to the pixels.
        width, height: pixels after the turn.
    Raises:
        ValueError: not a TIFF structure. struct.error: it ends too early.
    """
    order = _order(tiff)
    data = bytearray(tiff)
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    directories = [start]
    for tag, type_, entry in _entries(tiff, order, start):
        if tag == ORIENTATION:
            _put(data, order, type_, entry, 1)
        elif tag == EXIF_IFD and len(directories) == 1:  # one, whatever a hostile file says
            directories += struct.unpack_from(order + "I", tiff, entry + 8)
    if orientation >= 5:
        for directory in directories:
            try:
                for tag, type_, entry in _entries(tiff, order, directory):
                    if tag in _WIDTHS or tag in _HEIGHTS:
                        _put(data, order, type_, entry, width if tag in _WIDTHS else height)
            except struct.error:  # a sub-directory beyond the end
                continue
    if orientation > 1:
        _cut_thumbnail(data, order, start)
    return bytes(data)


def _order(tiff: bytes) -> str:
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None:
        raise ValueError("not a TIFF structure")
    return order


def _entries(tiff: bytes | bytearray, order: str, start: int) -> Iterator[tuple[int, int, int]]:
    """(tag, type, place of the entry) of a directory. Raises struct.error where it ends too early."""
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, type_ = struct.unpack_from(order + "HH8x", tiff, entry)
        yield tag, type_, entry


def _put(data: bytearray, order: str, type_: int, entry: int, value: int) -> None:
    """Sets an entry that holds one number; a size that its type cannot hold becomes 0, "unknown"."""
    if type_ == _LONG:
        struct.pack_into(order + "II", data, entry + 4, 1, value)
    else:
        struct.pack_into(order + "HIHH", data, entry + 2, _SHORT, 1, value if value < 2**16 else 0, 0)


def _cut_thumbnail(data: bytearray, order: str, start: int) -> None:
    """Takes the second directory, the thumbnail's, out of the chain, and its JPEG off the end where it lies there."""
    (count,) = struct.unpack_from(order + "H", data, start)
    link = start + 2 + 12 * count
    if link + 4 > len(data):  # some writers leave the last link out
        return
    (second,) = struct.unpack_from(order + "I", data, link)
    if not second:
        return
    place = {}
    try:
        for tag, _, entry in _entries(data, order, second):
            if tag in (_THUMBNAIL_AT, _THUMBNAIL_SIZE):
                (place[tag],) = struct.unpack_from(order + "I", data, entry + 8)
    except struct.error:
        place = {}
    struct.pack_into(order + "I", data, link, 0)
    begin = place.get(_THUMBNAIL_AT, 0)
    # A JPEG that ends the block; nothing but padding may follow, and it must not reach back into what is kept.
    if begin > link + 4 and data[begin : begin + 2] == b"\xff\xd8":
        end = begin + place.get(_THUMBNAIL_SIZE, 0)
        if end <= len(data) and not any(data[end:]):
            del data[begin:]


def for_tiff(exif: bytes) -> tuple[dict[int, Any], bytes | None]:
    """Parts EXIF for a TIFF file: the tags of its first directory, and its Exif and GPS directories or None.

    libtiff's writer, which Pillow uses for compressed files, refuses directories below the first; `add_directories`
    puts them into the finished file. Tags that say how pixels are stored are left out: the writer has its own.
    """
    tags = Image.Exif()
    tags.load(PREFIX + exif)
    below = _below(tags)
    first = {tag: tags[tag] for tag in tuple(tags) if tag not in (EXIF_IFD, GPS_IFD) and tag not in _STRUCTURE}
    return first, below.tobytes() if below else None


def _below(tags: Image.Exif) -> Image.Exif:
    """The Exif and GPS directories alone, to be written in little-endian order."""
    below = Image.Exif()
    below.endian = "<"
    for tag in (EXIF_IFD, GPS_IFD):
        if tag in tags and (directory := dict(tags.get_ifd(tag))):
            if INTEROP_IFD in directory:
                directory[INTEROP_IFD] = dict(tags.get_ifd(INTEROP_IFD))
            below[tag] = directory
    return below


def add_directories(tiff: bytes, below: bytes) -> bytes:
    """A TIFF file of one page with the Exif and GPS directories of `for_tiff` added to its tags.

    They and a copy of the file's directory that refers to them go to the end; nothing else moves.

    Raises:
        ValueError: not a little-endian TIFF file of 32-bit offsets.
    """
    if _order(tiff) != "<":
        raise ValueError("not a little-endian TIFF file")
    (start,) = struct.unpack_from("<I", tiff, 4)
    own = [tiff[entry : entry + 12] for _, _, entry in _entries(tiff, "<", start)]
    tiff += b"\0" * (len(tiff) % 2)
    tags = Image.Exif()
    tags.load(below)
    block = _below(tags).tobytes(len(tiff))[len(PREFIX) + 8 :]
    new = [block[entry : entry + 12] for _, _, entry in _entries(block, "<", 0)]
    tiff += block + b"\0" * (len(block) % 2)
    entries = sorted(own + new, key=lambda entry: struct.unpack_from("<H", entry))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + directory


def describe_tiff(data: BinaryIO) -> str:
    """How a TIFF file lays out its samples, for a message that names what is not read; "" where it is none."""
    try:
        head = data.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return ""
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        data.seek(tags.next)
        tags.load(data)  # type: ignore[arg-type]
        names = {"PhotometricInterpretation": 262, "BitsPerSample": 258, "SampleFormat": 339, "Compression": 259}
        return ", ".join(f"{name} {tags[tag]}" for name, tag in names.items() if tag in tags)
    except Exception:  # whatever is wrong with it, it is only for the message
        return ""
