"""What an opened PIL image holds beside its pixels: profile, EXIF, XMP, dots per inch; and what of it is not kept."""

from __future__ import annotations

import re
import struct

from PIL import Image, TiffImagePlugin

from l2c.arrays import UInt8Array
from l2c.errors import UnsupportedError, one_line
from l2c.format.metadata_sections import DPI_STEPS, MAX_XMP_BYTES
from l2c.images import exif as exif_blocks
from l2c.images import profiles
from l2c.images.picture import GREY_MODES
from l2c.images.pixels import PLAIN_MODES

PNG_XMP = "XML:com.adobe.xmp"

_TIFF_RESOLUTION, _TIFF_IPTC = 282, 33723
_PHOTOSHOP_IPTC = 0x0404
_RESOLUTION = frozenset({0x011A, 0x011B, 0x0128})
# Comments, and texts in PNG files, that programs and devices write about themselves.
_ABOUT_A_PROGRAM = re.compile(rb"(?i)\s*(creat(ed (by|with)|or:)|lavc|lead tech|optimized by|file written by)")
_PNG_NOISE = frozenset({"Software", "software", "Source", "source", "date:create", "date:modify", "date:timestamp"})


def profile_of(
    image: Image.Image, code_points: tuple[int, int, int, int] | None, name: str, notes: list[str]
) -> bytes | None:
    """The ICC profile: the file's, or one that says the same; in PNG files cICP goes before iCCP, sRGB, gAMA, cHRM."""
    icc: bytes | None = image.info.get("icc_profile") or None
    grey = PLAIN_MODES.get(image.mode, image.mode) in GREY_MODES
    if code_points is not None and (image.format == "PNG" or icc is None):
        try:
            return profiles.from_code_points(*code_points, grey)
        except UnsupportedError as error:
            raise UnsupportedError(f"{name}: {error}") from None
        except ValueError as error:
            notes.append(f"{name}: cICP with {error} is not understood, left out")
    gamma, chromaticities = image.info.get("gamma"), image.info.get("chromaticity")
    if icc is not None or "srgb" in image.info or (gamma is None and chromaticities is None):
        return icc
    try:
        return profiles.from_gamma(gamma, chromaticities, grey)
    except (ValueError, TypeError) as error:
        notes.append(f"{name}: gAMA or cHRM states {one_line(error)}, left out")
        return None


def read_exif(image: Image.Image, name: str, notes: list[str]) -> tuple[int, bytes | None]:
    """Orientation still to be applied, 1..8, and the EXIF to keep, as it was; either may be read without the other."""
    failures = (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, OverflowError, struct.error)
    orientation, kept = 1, None
    try:
        tags = image.getexif()
        found = tags.get(exif_blocks.ORIENTATION, 1)
        orientation = int(found) if found in range(1, 9) else 1
        raw = image.info.get("exif")
        if isinstance(raw, bytes) and raw:
            kept = exif_blocks.strip_prefix(raw)
            exif_blocks.upright(kept, 1, 1, 1)  # raises what makes it unusable
        else:
            kept = _serialised_exif(tags, image.format == "TIFF")
    except failures as error:
        notes.append(f"{name}: EXIF cannot be read ({one_line(error)}), not kept")
        return orientation, None
    return orientation, kept


def exif_of_turned(exif: bytes | None, orientation: int, rgb: UInt8Array, name: str, notes: list[str]) -> bytes | None:
    """The EXIF of the upright picture."""
    if exif is None:
        return None
    try:
        return exif_blocks.upright(exif, orientation, rgb.shape[1], rgb.shape[0])
    except (ValueError, struct.error) as error:
        notes.append(f"{name}: EXIF cannot be read ({one_line(error)}), not kept")
        return None


def read_xmp(image: Image.Image, orientation: int, rgb: UInt8Array, name: str, notes: list[str]) -> bytes | None:
    """The XMP packet of the upright picture."""
    raw = image.info.get("xmp") or image.info.get(PNG_XMP)
    if isinstance(raw, str):
        raw = raw.encode("utf-8", "replace")
    if not isinstance(raw, bytes) or not (xmp := raw.rstrip(b"\0")):
        return None
    if len(xmp) > MAX_XMP_BYTES:
        notes.append(f"{name}: {len(xmp)} bytes of XMP are more than {MAX_XMP_BYTES}, not kept")
        return None
    # In an element or an attribute, as Pillow finds it; an orientation that is 1 stays to the byte.
    xmp = re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[2-8]", rb"\g<1>1", xmp)
    if orientation >= 5:
        for names, size in (
            (rb"exif:PixelXDimension|tiff:ImageWidth", 1),
            (rb"exif:PixelYDimension|tiff:ImageLength", 0),
        ):
            pattern = rb"((?:" + names + rb")\s*(?:=\s*[\"']|>)\s*)\d+"
            xmp = re.sub(pattern, rb"\g<1>%d" % rgb.shape[size], xmp)
    return xmp


def read_dpi(image: Image.Image, orientation: int) -> tuple[float, float] | None:
    """Dots per inch of the upright picture, where the file says other ones than 72."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _TIFF_RESOLUTION not in image.tag_v2:
        return None  # Pillow fills in 1
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    if not all(1 <= value * DPI_STEPS < 2**32 - 1 for value in (x, y)) or max(abs(x - 72), abs(y - 72)) < 0.05:
        return None
    if image.format in ("BMP", "DIB") and max(abs(x - 96), abs(y - 96)) < 0.05:
        return None  # writers must put something there, and ours puts this
    x, y = (round(value * DPI_STEPS) / DPI_STEPS for value in (x, y))
    return (y, x) if orientation >= 5 else (x, y)


def note_what_is_dropped(image: Image.Image, name: str, notes: list[str]) -> None:
    """Words about the picture that are not kept."""
    info = image.info
    dropped = []
    photoshop = info.get("photoshop")
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if (isinstance(photoshop, dict) and _PHOTOSHOP_IPTC in photoshop) or _TIFF_IPTC in tags:
        dropped.append("IPTC")
    if any(data.startswith(b"http://ns.adobe.com/xmp/extension/") for _, data in getattr(image, "applist", ())):
        dropped.append("extended XMP")
    comment = info.get("comment")
    if comment and not _ABOUT_A_PROGRAM.match(comment if isinstance(comment, bytes) else str(comment).encode()):
        dropped.append("a comment")
    if image.format == "PNG":
        kept = _PNG_NOISE | {PNG_XMP, "Raw profile type exif"}
        texts = [str(key)[:40] for key, value in info.items() if isinstance(value, str) and key not in kept]
        if texts:
            dropped.append(f"text ({', '.join(texts[:3])}{', ...' if len(texts) > 3 else ''})")
    if dropped:
        notes.append(f"{name}: {' and '.join(dropped)} {'is' if len(dropped) == 1 else 'are'} not kept")


def _serialised_exif(tags: Image.Exif, is_tiff: bool) -> bytes | None:
    """EXIF that did not come as one block: from a TIFF file's own tags or a PNG text chunk."""
    kept = Image.Exif()
    for tag in exif_blocks.TIFF_KEPT if is_tiff else tuple(tags):
        if tag in tags and tag != exif_blocks.ORIENTATION:
            kept[tag] = tags[tag]
    for tag in (exif_blocks.EXIF_IFD, exif_blocks.GPS_IFD):
        if tag in tags and (directory := tags.get_ifd(tag)):
            kept[tag] = dict(directory)
    if not set(kept) - _RESOLUTION:  # `Picture.dpi` says it in fewer bytes
        return None
    kept[exif_blocks.ORIENTATION] = 1
    return kept.tobytes().removeprefix(exif_blocks.PREFIX)
