"""Pictures in and out: whatever a user hands over -> uint8 RGB and what is kept beside it; back to a file.

What is kept without loss: alpha, ICC profile, EXIF and XMP (Orientation is applied to the pixels, then its tag is set
to 1), dots per inch. What the codec gets is always uint8 RGB; `Picture.mode` and `Picture.bit_depth` say what it came
from. Colours that a file describes without an ICC profile (PNG's gAMA, cHRM and cICP) get one that says the same.

    source                            becomes                                           comes back as
    L, 1, LA, L or 1 with a key       grey in all three channels                        L, LA
    RGB, RGBA, RGB with a key         itself                                            RGB, RGBA
    P, PA                             its colours                                       RGB, RGBA
    CMYK                              sRGB, through its ICC profile where it has one    RGB
    YCbCr, HSV, LAB                   RGB (LAB through an ICC transform to sRGB)        RGB
    I;16, I, 16-bit colour, uint16    8 bits, with a warning                            L, RGB, RGBA
    F, in 0..1 or 0..255              8 bits, with a warning                            L
    float arrays and tensors, 0..1    8 bits                                            L, LA, RGB, RGBA

The ALPHA section of a file (`pack_alpha`, `unpack_alpha`), specification:

    byte 0     method: 0 constant, 1 plain, 2 left, 3 up, 4 both
    byte 1     bytes a sample: 1 (uint8) or 2 (uint16)
    method 0:  one sample, little-endian, and nothing more: the value of every pixel
    else:      one zlib stream (RFC 1950) and nothing more. It holds height * width residuals, row by row;
               with 2-byte samples the high bytes of all of them, then the low bytes of all of them.
    Residual of sample a[y, x], modulo 256 or 65536, samples outside the picture being 0:
               1: a[y, x]     2: a[y, x] - a[y, x-1]     3: a[y, x] - a[y-1, x]
               4: a[y, x] - a[y, x-1] - a[y-1, x] + a[y-1, x-1]

The LOSSY_ALPHA section (`lossy_alpha.pack`, `lossy_alpha.unpack`), specification. A plane of 8-bit samples is coded as
one JPEG 2000 codestream (ITU-T T.800), and a map says exactly what is transparent and what is opaque:

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

The XMP section (`pack_xmp`, `unpack_xmp`): one zlib stream (RFC 1950) of the packet, 1..2^26 bytes, and nothing more.

The DPI section (`pack_dpi`, `unpack_dpi`), 8 bytes: horizontal and vertical dots per inch in ten-thousandths, each a
little-endian number in 1..2^32-1.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
import struct
import sys
import threading
import warnings as python_warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from l2c import exif as exif_blocks
from l2c import profiles, readers
from l2c.errors import BitstreamError, ImageError, L2CError, L2CWarning, LimitError, UnsupportedError
from l2c.format.bitstream import Limits

U8: TypeAlias = npt.NDArray[np.uint8]
Alpha: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

Metadata: TypeAlias = bool | Literal["all", "color", "none"]

MAX_PIXELS = Limits().max_pixels
MAX_TEXT_BYTES = 2**26  # of a compressed text, XMP packet or profile in a PNG file, and of all its texts


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

    rgb: U8 = field(repr=False)
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


def load_picture(source: Any, *, max_pixels: int | None = MAX_PIXELS, truncated: bool = False) -> Picture:
    """Reads whatever a user passes as a picture.

    Args:
        source: one of
            a path (str, PathLike), the bytes of a picture file (bytes, bytearray, memoryview), a binary
                file object (read from where it stands to its end): any format that Pillow reads, except EPS
                (Pillow runs Ghostscript for it), and HEIC and JPEG XL where their plugins are installed
                (`readers.PLUGINS`); the first frame of several;
            a PIL image: its current frame; not changed;
            a numpy array [H, W], [H, W, 1] (grey), [H, W, 2] (grey, alpha), [H, W, 3] or [H, W, 4]: uint8,
                uint16 (colour is reduced to 8 bits with a warning, alpha is kept), floating in [0, 1] (up to 1e-3
                outside, as resizing leaves it, is clipped);
            a torch tensor on any device, the same dtypes and bfloat16: [H, W]; [C, H, W] whenever the first
                of three dimensions is 1, 3 or 4; else [H, W, C] as above. So [3, 5, 3] is 5 x 3 in RGB.
        max_pixels: refuse larger pictures before their pixels are decoded; None: no limit. Takes the place
            of `PIL.Image.MAX_IMAGE_PIXELS`.
        truncated: read what there is of a file that is cut off or damaged after its head, with a warning (of an
            opened PIL image without). Such a file is read alone: other threads wait. A JPEG file that lacks only
            its end marker is read in any case.
    Raises:
        ImageError: unreadable, truncated, empty, or an array that is no picture (shape, dtype, NaN, out of
            range); one line that names the source and the cause.
        LimitError: more than `max_pixels`, or more than 2^26 bytes of text or profile in a PNG file.
        UnsupportedError: PQ or HLG (high dynamic range) or narrow-range samples.
    Warns:
        L2CWarning: bits, frames or metadata of the source that are not kept.
    """
    notes: list[str] = []
    readers.prepare(source, max_pixels)
    if isinstance(source, Image.Image):
        picture = _from_image(source, max_pixels, notes, truncated)
    elif isinstance(source, (str, os.PathLike)):
        picture = _from_path(Path(source), max_pixels, notes, truncated)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        picture = _from_stream(io.BytesIO(source), "bytes", max_pixels, notes, truncated)
    elif _is_tensor(source):
        picture = _from_array(_tensor_to_array(source), "tensor", max_pixels, notes)
    elif isinstance(source, np.ndarray):
        picture = _from_array(source, "array", max_pixels, notes)
    elif hasattr(source, "read"):
        name = str(getattr(source, "name", "file object"))
        try:
            data = source.read()
        except (OSError, ValueError) as error:  # a closed file raises ValueError
            raise ImageError(f"{name}: cannot be read: {_one_line(error)}") from error
        if not isinstance(data, bytes):
            raise ImageError(f"{name}: a picture is read from a file opened in binary mode")
        picture = _from_stream(io.BytesIO(data), name, max_pixels, notes, truncated)
    else:
        raise ImageError(
            f"{type(source).__name__} is no picture: pass a path, bytes, a binary file, a PIL image, "
            "an array or a tensor"
        )
    for note in notes:
        python_warnings.warn(note, L2CWarning, stacklevel=2)
    return picture


def to_original(rgb: U8, alpha: Alpha | None = None, mode: str = "RGB") -> U8:
    """Brings decoded colours back to the original mode as far as 8 bits hold it (table: module docstring).

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
    _check_rgb(rgb)
    planes = np.array(Image.fromarray(rgb).convert("L"))[..., None] if mode in _GREY_MODES else rgb
    if alpha is not None:
        _check_alpha(alpha, rgb.shape[:2])
        planes = np.concatenate([planes, to_8_bits(alpha)[..., None]], axis=2)
    return cast(U8, planes[..., 0] if planes.shape[2] == 1 else planes)


def to_pil(rgb: U8, alpha: Alpha | None = None, mode: str = "RGB") -> Image.Image:
    """`to_original` as a PIL image of mode L, LA, RGB or RGBA."""
    return Image.fromarray(to_original(rgb, alpha, mode))


def with_metadata(
    image: Image.Image,
    *,
    icc: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> Image.Image:
    """The image with what was kept (as in `Picture`) under Pillow's names in its `info`.

    A profile that is for other samples is not shown: colours of a grey picture with its grey profile become sRGB.

    Warns:
        L2CWarning: the profile cannot be applied.
    """
    if icc is not None and (profiles.colour_space(icc) == "GRAY") == (image.mode in ("L", "LA")):
        image.info["icc_profile"] = icc
    elif icc is not None and image.mode not in ("L", "LA"):
        notes: list[str] = []
        image, _ = _with_fitting_profile(image, icc, "PNG", "picture", notes)
        for note in notes:
            if "left out" in note:  # a grey picture shown in colour loses nothing
                python_warnings.warn(note, L2CWarning, stacklevel=2)
    if exif is not None:
        image.info["exif"] = exif_blocks.PREFIX + exif
    if xmp is not None:
        image.info["xmp"] = xmp
    if dpi is not None:
        image.info["dpi"] = dpi
    return image


def save_picture(
    target: str | os.PathLike[str] | BinaryIO,
    rgb: U8,
    *,
    alpha: Alpha | None = None,
    icc: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    mode: str = "RGB",
    format: str | None = None,
    quality: int | None = None,
    flatten: bool = False,
    background: tuple[int, int, int] = (255, 255, 255),
    options: Mapping[str, Any] | None = None,
    overwrite: bool = True,
) -> None:
    """Writes a picture through Pillow: all of it, or, on an error, nothing.

    Args:
        target: a path (its extension names the format; replaced in one step), or a binary file object.
        rgb: uint8 [H, W, 3].
        alpha: uint8 or uint16 [H, W] or None; uint16 is rounded to 8 bits with a warning.
        icc, exif, xmp, dpi: as in `Picture`; written where the format can hold them. For a format without profiles
            the colours are converted to sRGB.
        mode: `Picture.mode`: grey sources are written as grey.
        format: Pillow's name of the format, needed for file objects, else taken from the extension.
        quality: 0..100 for JPEG (default 95), WebP (default: lossless), AVIF (default 90); others have none.
        flatten: for a format without alpha: lay the picture over `background` instead of refusing. Alpha that
            is opaque everywhere is left out without asking.
        background: RGB, 0..255.
        options: further arguments for `PIL.Image.Image.save`; they win over the defaults here.
        overwrite: False: a file that is there by now stays.
    Raises:
        FileExistsError: there is a file, and overwrite is False.
        UnsupportedError: unknown format, alpha or size that the format cannot hold.
        ImageError: wrong shape or dtype.
        OSError: the file cannot be written.
    Warns:
        L2CWarning: bits, colours or metadata that the format cannot hold.
    """
    path = Path(target) if isinstance(target, (str, os.PathLike)) else None
    name = "file object" if path is None else str(path)
    format_ = _output_format(format, path)
    notes: list[str] = []

    _check_rgb(rgb)
    if alpha is not None:
        _check_alpha(alpha, rgb.shape[:2])
        if format_ not in _ALPHA_FORMATS:
            if not (flatten or alpha.min() == np.iinfo(alpha.dtype).max):
                raise UnsupportedError(
                    f"{name}: {format_} cannot hold the alpha plane; choose PNG, WebP or TIFF, or flatten it"
                )
            rgb, alpha = _flattened(rgb, alpha, background), None
        elif alpha.dtype == np.uint16:
            notes.append(f"{name}: 16-bit alpha is written with 8 bits")
    image, icc = _with_fitting_profile(to_pil(rgb, alpha, mode), icc, format_, name, notes)
    if format_ in _PALETTE_FORMATS and image.mode == "RGB" and image.getcolors(256) is None:
        notes.append(f"{name}: {format_} holds 256 colours")

    arguments: dict[str, Any] = dict(_SAVE_DEFAULTS.get(format_, {}))
    if quality is not None and format_ in _QUALITY_FORMATS:
        arguments.update(quality=quality)
        arguments.pop("lossless", None)
    if icc is not None:
        arguments["icc_profile"] = icc
    below = _metadata_arguments(arguments, format_, exif, xmp, dpi, name, notes)
    arguments.update(options or {})

    encoded = _encoded(image, format_, arguments, name, notes)
    if below is not None:
        encoded = exif_blocks.add_directories(encoded, below)
    if path is None:
        cast(BinaryIO, target).write(encoded)
    else:
        write_atomically(path, encoded, overwrite=overwrite)
    for note in notes:
        python_warnings.warn(note, L2CWarning, stacklevel=2)


def _encoded(image: Image.Image, format_: str, arguments: dict[str, Any], name: str, notes: list[str]) -> bytes:
    """The bytes of the file. Raises UnsupportedError."""
    stream = io.BytesIO()
    try:
        image.save(stream, format_, **arguments)
    except MemoryError:
        raise
    except Exception as error:  # writers raise whatever they like; nothing is on disk yet
        tags = arguments.get("tiffinfo", {})
        known = {tag: tags[tag] for tag in (*_TIFF_KEPT, _TIFF_XMP) if tag in tags}
        if format_ == "TIFF" and len(known) < len(tags):
            notes.append(f"{name}: some EXIF tags cannot be written as TIFF, left out")
            return _encoded(image, format_, arguments | {"tiffinfo": known}, name, notes)
        raise UnsupportedError(f"{name}: cannot be written as {format_}: {_one_line(error)}") from error
    return stream.getvalue()


def _with_fitting_profile(
    image: Image.Image, icc: bytes | None, format_: str, name: str, notes: list[str]
) -> tuple[Image.Image, bytes | None]:
    """The picture and its profile as the format can hold them: converted to sRGB where it holds none."""
    if icc is None:
        return image, None
    space, grey = profiles.colour_space(icc), image.mode in ("L", "LA")
    fits = space == ("GRAY" if grey else "RGB") or (space == "RGB" and grey)
    if fits and format_ in _ICC_FORMATS:
        return image, icc
    # A grey picture is what its grey profile is for, in whatever form it is shown.
    shown = image.convert("L") if space == "GRAY" else image.convert("RGB")
    try:
        colours = profiles.to_srgb(shown, icc)
    except ValueError as error:
        notes.append(f"{name}: the {space} ICC profile does not fit the picture ({error}), left out")
        return image, None
    if colours is None:
        return image, None
    why = f"{format_} holds no ICC profile" if fits else f"the {space} ICC profile does not fit a colour picture"
    notes.append(f"{name}: {why}; the colours are converted to sRGB")
    converted = Image.fromarray(colours)
    if grey:
        converted = converted.convert("L")
    if image.mode in ("LA", "RGBA"):
        converted.putalpha(image.getchannel("A"))
    return converted, None


def _metadata_arguments(
    arguments: dict[str, Any],
    format_: str,
    exif: bytes | None,
    xmp: bytes | None,
    dpi: tuple[float, float] | None,
    name: str,
    notes: list[str],
) -> bytes | None:
    """Adds what Pillow's writer takes; returns the EXIF directories that go into a finished TIFF file."""
    below: bytes | None = None
    tags: dict[int, Any] = {}
    if exif is not None:
        marker = exif_blocks.PREFIX + exif
        if format_ not in _EXIF_FORMATS:
            notes.append(f"{name}: {format_} holds no EXIF, left out")
        elif format_ in ("JPEG", "MPO") and len(marker) > _JPEG_MARKER_MAX:
            notes.append(f"{name}: {len(exif)} bytes of EXIF are more than a JPEG file holds, left out")
        elif format_ == "TIFF":
            try:
                tags, below = exif_blocks.for_tiff(exif)
            except Exception as error:  # Pillow's reader and writer of tags raise nearly everything
                notes.append(f"{name}: EXIF cannot be written as TIFF tags ({_one_line(error)}), left out")
        else:
            arguments["exif"] = marker
    if xmp is not None:
        if format_ == "PNG":
            texts = PngImagePlugin.PngInfo()
            texts.add_itxt(_PNG_XMP, xmp.decode("utf-8", "replace"))
            arguments["pnginfo"] = texts
        elif format_ == "TIFF":
            tags[_TIFF_XMP] = xmp
        elif format_ not in _XMP_FORMATS:
            notes.append(f"{name}: {format_} holds no XMP, left out")
        elif format_ in ("JPEG", "MPO") and len(xmp) > _JPEG_XMP_MAX:
            notes.append(f"{name}: {len(xmp)} bytes of XMP are more than a JPEG file holds, left out")
        else:
            arguments["xmp"] = xmp
    if tags:  # Pillow takes either this or EXIF
        arguments["tiffinfo"] = tags
    if dpi is not None:
        if format_ in _DPI_FORMATS and (format_ not in ("JPEG", "MPO") or max(dpi) < 65535):
            arguments["dpi"] = dpi
        else:
            notes.append(f"{name}: {format_} holds no dots per inch, left out")
    return below


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
        xmp = inflater.decompress(data, MAX_TEXT_BYTES + 1)
    except zlib.error as error:
        raise BitstreamError(f"XMP: {error}") from error
    if not 0 < len(xmp) <= MAX_TEXT_BYTES or not inflater.eof or inflater.unused_data:
        raise BitstreamError(f"XMP: not one whole zlib stream of 1..{MAX_TEXT_BYTES} bytes")
    return xmp


def pack_dpi(dpi: tuple[float, float]) -> bytes:
    """The DPI section (format: module docstring); dots per inch as in `Picture`."""
    return struct.pack("<II", *(round(value * _DPI_STEPS) for value in dpi))


def unpack_dpi(data: bytes | bytearray | memoryview) -> tuple[float, float]:
    """Inverse of `pack_dpi`. Raises BitstreamError: not 8 bytes, or a zero."""
    if len(data) != 8:
        raise BitstreamError(f"DPI: {len(data)} bytes, expected 8")
    x, y = struct.unpack("<II", data)
    if not x or not y:
        raise BitstreamError("DPI: 0 dots per inch")
    return x / _DPI_STEPS, y / _DPI_STEPS


def names_folder(target: str) -> bool:
    """Whether a name can only be that of a folder, there or not."""
    separators = tuple(part for part in (os.sep, os.altsep) if part)
    return target.endswith(separators) or os.path.basename(target) in (os.curdir, os.pardir)


def output_file(target: str, source: str, suffix: str) -> str:
    """The file that a command writes for one input: OUT, or below an OUT that can only be a folder.

    Args:
        target: OUT as it was given; one that ends in / is a folder, there or not. Not as a Path, which drops the /.
        source: the input, whose name with `suffix` in the place of its own the file gets in a folder.
    Raises:
        IsADirectoryError: a folder is there, and OUT does not say that it means one.
    """
    if names_folder(target):
        target = os.path.join(target, Path(source).with_suffix(suffix).name)
    if os.path.isdir(target):
        raise IsADirectoryError(
            errno.EISDIR, f"is a folder, and the input is a file (end it in {os.sep} to write into it)", target
        )
    return target


def write_atomically(
    path: str | os.PathLike[str], data: bytes | bytearray | memoryview, *, overwrite: bool = True
) -> None:
    """Writes a file in one step: readers see the old file or the whole new one, and a failure leaves nothing.

    The data goes to a temporary file in the same folder, which then takes the place of `path` and the permissions of
    the file that was there. A link is followed; a device or pipe is written directly.

    Args:
        overwrite: False: a file that is there by now stays.
    Raises:
        FileExistsError: there is a file, and overwrite is False. OSError: the file cannot be written.
    """
    given = Path(path)
    if given.exists() and not stat.S_ISREG(given.stat().st_mode):  # /dev/stdout leads to no path when it is a pipe
        given.write_bytes(data)
        return
    final = Path(os.path.realpath(given))
    # Without the file's own name: file systems count bytes and not characters, some as few as 143.
    temporary = final.with_name(f".l2c.{secrets.token_hex(8)}.tmp")
    # Not tempfile: its files have mode 0600, and the picture should get what the user's umask gives.
    try:
        with open(temporary, "xb") as file:
            if final.exists():  # before there is anything to read
                _take_permissions(temporary, final.stat())
            file.write(data)
        if overwrite:
            os.replace(temporary, final)
        else:
            _move_to_new(temporary, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # nobody knows the temporary file's name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _take_permissions(path: Path, of: os.stat_result) -> None:
    """Owner, group and access of the file that is replaced, as far as this user may give them."""
    try:
        if hasattr(os, "chown") and (of.st_uid, of.st_gid) != (path.stat().st_uid, path.stat().st_gid):
            os.chown(path, of.st_uid, of.st_gid)
        access = 0o777
    except OSError:
        access = 0o707  # another group
    with contextlib.suppress(OSError):
        os.chmod(path, of.st_mode & access)


def _move_to_new(temporary: Path, final: Path) -> None:
    """As os.rename, but never over a file. Raises FileExistsError."""
    try:
        try:
            os.link(temporary, final)
        except FileExistsError:
            raise
        except (OSError, AttributeError):  # no hard links here
            open(final, "xb").close()  # takes the name
            os.replace(temporary, final)
        else:
            temporary.unlink()
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "exists by now; --overwrite replaces it") from None


def pack_alpha(alpha: Alpha) -> bytes:
    """Codes an alpha plane without loss (format: module docstring).

    Args:
        alpha: uint8 or uint16 [H, W], not empty.
    Returns:
        4 bytes or fewer for a constant plane; at most about 1.001 times the plane's bytes for noise.
    Raises:
        ImageError: wrong shape or dtype.
    """
    _check_alpha(alpha, alpha.shape)
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


_CONSTANT, _PLAIN, _LEFT, _UP, _BOTH = range(5)
_METHODS = (_PLAIN, _LEFT, _UP, _BOTH)
_TRIAL_SAMPLES = 2**20

_GREY_MODES = frozenset({"L", "LA", "1", "I;16", "I", "F"})
_PLAIN_MODES = {
    "I;16B": "I;16",
    "I;16L": "I;16",
    "I;16N": "I;16",
    "RGBX": "RGB",
    "RGBa": "RGBA",
    "La": "LA",
}
_ALPHA_FORMATS = frozenset({"PNG", "WEBP", "AVIF", "TIFF", "TGA", "JPEG2000"})
_PALETTE_FORMATS = frozenset({"GIF"})
_QUALITY_FORMATS = frozenset({"JPEG", "WEBP", "AVIF"})
_SAVE_DEFAULTS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4", "optimize": True},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 90, "subsampling": "4:4:4"},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}
# Formats whose writers in Pillow and its plugins take them; all others drop them without a word.
_ICC_FORMATS = frozenset({"PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "JXL", "HEIF"})
_EXIF_FORMATS = _ICC_FORMATS
_XMP_FORMATS = _ICC_FORMATS
_DPI_FORMATS = frozenset({"PNG", "JPEG", "MPO", "TIFF", "BMP"})
_JPEG_MARKER_MAX = 65533
_JPEG_XMP_MAX = _JPEG_MARKER_MAX - len(b"http://ns.adobe.com/xap/1.0/\x00")
_PNG_XMP, _TIFF_XMP = "XML:com.adobe.xmp", 700
_ORIENTATION, _EXIF_IFD, _GPS_IFD = exif_blocks.ORIENTATION, exif_blocks.EXIF_IFD, exif_blocks.GPS_IFD
_PHOTOMETRIC, _SAMPLE_FORMAT, _BITS, _PLANAR, _TIFF_RESOLUTION, _TIFF_IPTC = 262, 339, 258, 284, 282, 33723
# What Pillow calls samples of more than 8 bits that it hands over as they are.
_NOT_INVERTED = frozenset({"I;16", "I;16N", "I;16B", "I;16R", "F;32F", "F;32BF"})
# A marker that begins a segment: no stuffed byte, fill byte, restart or start of the picture.
_JPEG_SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PHOTOSHOP_IPTC = 0x0404
_RESOLUTION = frozenset({0x011A, 0x011B, 0x0128})
_DPI_STEPS = 10000
_JPEG_2000_BITS = 38  # the most that the standard has
_FLOAT_SLACK = 1e-3  # what resizing overshoots 0 and 1 by
# Comments, and texts in PNG files, that programs and devices write about themselves.
_ABOUT_A_PROGRAM = re.compile(rb"(?i)\s*(creat(ed (by|with)|or:)|lavc|lead tech|optimized by|file written by)")
_PNG_NOISE = frozenset({"Software", "software", "Source", "source", "date:create", "date:modify", "date:timestamp"})
# What a TIFF file says about the photograph; its other tags describe how that file stores pixels.
# ImageDescription, Make, Model, X/YResolution, ResolutionUnit, Software, DateTime, Artist, Copyright
_TIFF_KEPT = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_pillow_limit_lock = threading.Lock()


def _from_path(path: Path, max_pixels: int | None, notes: list[str], truncated: bool) -> Picture:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; only opening it is inside this try)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a null character in the name
        raise ImageError(f"{str(path)!r}: {error}") from error
    with file:
        return _from_stream(file, str(path), max_pixels, notes, truncated)


def _from_stream(stream: BinaryIO, name: str, max_pixels: int | None, notes: list[str], truncated: bool) -> Picture:
    """A picture file; one whose pixels cannot be read gets a second chance where that is right or allowed."""
    if not stream.seekable():  # a pipe
        stream = io.BytesIO(stream.read())
    start = stream.tell()
    before = len(notes)
    try:
        return _from_file(stream, name, max_pixels, notes)
    except ImageError:
        del notes[before:]
        stream.seek(start)
        completed = _with_end_marker(stream, max_pixels)
        if completed is not None:
            notes.append(f"{name}: lacks its end marker, nothing else is missing")
            return _from_file(completed, name, max_pixels, notes)
        if not truncated:
            raise
    stream.seek(start)
    return _noted(_from_file(stream, name, max_pixels, notes, truncated=True), f"{name}: {_FILLED}", notes)


_FILLED = "cut off or damaged, what cannot be read is filled"


def _with_end_marker(stream: BinaryIO, max_pixels: int | None) -> io.BytesIO | None:
    """A JPEG file that lacks its end marker and nothing else, with one; None for all others.

    libjpeg shows a file of several scans only once it has seen the end marker, and with one takes missing data for
    zeros. So what follows the data is varied: a picture that changes with it was cut.
    """
    data = stream.read(2)
    if data != _JPEG_START:
        return None
    data = (data + stream.read()).removesuffix(b"\xff")
    if not _has_all_scans(data):
        return None
    seen: npt.NDArray[Any] | None = None
    for filler in (b"", b"\x55" * 64, b"\xaa" * 64):
        try:
            with _for_opening():
                image = Image.open(io.BytesIO(data + filler + _JPEG_END))
            if max_pixels is not None and image.width * image.height > max_pixels:
                return None
            pixels = np.asarray(image)
        except Exception:  # broken elsewhere
            return None
        if seen is not None and not np.array_equal(seen, pixels):
            return None
        seen = pixels
    return io.BytesIO(data + _JPEG_END)


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a JPEG file without end marker bring each coefficient of each component to its last bit."""
    missing: set[tuple[int, int]] = set()
    at = 2
    while (found := _JPEG_SEGMENT.search(data, at)) is not None and found.end() + 2 <= len(data):
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


def _from_image(image: Image.Image, max_pixels: int | None, notes: list[str], truncated: bool) -> Picture:
    """A PIL image. Not every plugin can begin again after an error, so there is one try, and no note on what is cut."""
    with _pillow.reading(truncated):
        return _from_pillow(image, "PIL image", max_pixels, notes, None)


def _from_file(
    stream: BinaryIO, name: str, max_pixels: int | None, notes: list[str], truncated: bool = False
) -> Picture:
    start = stream.tell()
    with _pillow.reading(truncated):
        code_points = _code_points(stream)
        stream.seek(start)
        bits = _coded_bits(stream)
        stream.seek(start)
        try:
            with _pillow_errors(name), _for_opening():
                image = Image.open(stream)
        except ImageError as error:
            stream.seek(start)
            layout = exif_blocks.describe_tiff(stream)
            if layout and isinstance(error.__cause__, UnidentifiedImageError):
                raise ImageError(f"{name}: a TIFF file that Pillow cannot read ({layout})") from error
            raise
        if _misreads_planes(image):
            stream.seek(start)
            with _pillow_errors(name), _for_opening(libtiff=True):
                image = Image.open(stream)
        with image:
            return _from_pillow(image, name, max_pixels, notes, code_points, bits)


def _noted(picture: Picture, note: str, notes: list[str]) -> Picture:
    """The picture with one more note, before all others."""
    notes.insert(0, note)
    return replace(picture, warnings=(note, *picture.warnings))


class _PillowSettings:
    """Pillow's process-wide switches while pictures are read.

    Its limits on text in PNG files become ours while anyone reads. LOAD_TRUNCATED_IMAGES is for one reader alone, so
    that nobody else's broken picture passes for a whole one.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0  # -1: one that takes truncated pictures, and no other
        self._before = (0, 0, False)

    @contextlib.contextmanager
    def reading(self, truncated: bool = False) -> Iterator[None]:
        """Enters one reader."""
        with self._condition:
            self._condition.wait_for(lambda: self._readers == 0 or (self._readers > 0 and not truncated))
            if self._readers == 0:
                self._before = (
                    PngImagePlugin.MAX_TEXT_CHUNK,
                    PngImagePlugin.MAX_TEXT_MEMORY,
                    ImageFile.LOAD_TRUNCATED_IMAGES,
                )
                PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES
            if truncated:
                ImageFile.LOAD_TRUNCATED_IMAGES = True
            self._readers = -1 if truncated else self._readers + 1
        try:
            yield
        finally:
            with self._condition:
                self._readers = 0 if truncated else self._readers - 1
                if self._readers == 0:
                    (
                        PngImagePlugin.MAX_TEXT_CHUNK,
                        PngImagePlugin.MAX_TEXT_MEMORY,
                        ImageFile.LOAD_TRUNCATED_IMAGES,
                    ) = self._before
                self._condition.notify_all()


_pillow = _PillowSettings()


@contextlib.contextmanager
def _for_opening(libtiff: bool = False) -> Iterator[None]:
    """Lifts Pillow's process-wide pixel limit while a header is read; the caller checks its own right after.

    Opening decodes no pixels. Decoding runs outside of this, so that the time without a guard is short.

    Args:
        libtiff: TIFF files are read by libtiff, the uncompressed ones too.
    """
    with _pillow_limit_lock:
        before = Image.MAX_IMAGE_PIXELS, TiffImagePlugin.READ_LIBTIFF
        Image.MAX_IMAGE_PIXELS = None
        TiffImagePlugin.READ_LIBTIFF = libtiff or before[1]
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, TiffImagePlugin.READ_LIBTIFF = before


@contextlib.contextmanager
def _pillow_errors(name: str) -> Iterator[None]:
    """Turns what Pillow raises into an ImageError of one line."""
    try:
        yield
    except (L2CError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LimitError(f"{name}: {_one_line(error)}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture in a format that Pillow reads") from error
    except Exception as error:  # parsers of broken files raise nearly everything
        if "MAX_TEXT" in str(error):
            raise LimitError(
                f"{name}: more than {MAX_TEXT_BYTES} bytes of text, XMP or ICC profile, unpacked"
            ) from error
        raise ImageError(f"{name}: cannot be read: {_one_line(error)}") from error


def _from_pillow(
    image: Image.Image,
    name: str,
    max_pixels: int | None,
    notes: list[str],
    code_points: tuple[int, int, int, int] | None,
    bits: int = 8,
) -> Picture:
    """Pixels and metadata of an opened image; `name` heads the messages, `bits` is what its file says of samples."""
    _check_size(image.height, image.width, name, max_pixels)
    if image.format == "EPS":
        raise ImageError(f"{name}: EPS is not read, because Pillow would run Ghostscript on it")
    if _misreads_planes(image):
        raise ImageError(
            f"{name}: a TIFF file whose planes Pillow misreads without libtiff; pass the file, not the image"
        )
    bits = 16 if _has_16_bits(image) else bits  # known only before the pixels are loaded
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    turned = tags.get(_ORIENTATION, 1)  # Pillow turns TIFF files itself
    negative = _is_negative(image)
    with _pillow_errors(name):
        image.load()
        _check_size(image.height, image.width, name, max_pixels)  # ICO and ICNS may change it
        icc = _profile(image, code_points, name, notes)
        orientation, exif = _read_exif(image, name, notes)
        rgb, alpha, depth = _pixels(image, icc, bits, negative, name, notes)
    if image.mode in ("CMYK", "LAB"):
        icc = None  # the colours are sRGB now
    try:
        several = getattr(image, "is_animated", False)
    except Exception:  # a second frame that cannot be read does not matter: only the first one is used
        several = True
    if several:
        which = "current" if name == "PIL image" else "first"
        notes.append(f"{name}: holds several pictures, only the {which} one is used")
    mode = _PLAIN_MODES.get(image.mode, image.mode)
    rgb = np.ascontiguousarray(_upright(rgb, orientation))
    if alpha is not None:
        alpha = cast(Alpha, np.ascontiguousarray(_upright(alpha, orientation)))
    if orientation == 1 and turned in range(2, 9):
        orientation = turned
    exif = _exif_of_turned(exif, orientation, rgb, name, notes)
    xmp = _read_xmp(image, orientation, rgb, name, notes)
    dpi = _read_dpi(image, orientation)
    _note_what_is_dropped(image, name, notes)
    return Picture(rgb, mode, depth, alpha, icc, exif, tuple(notes), xmp, dpi)


def _has_16_bits(image: Image.Image) -> bool:
    """Whether the file holds 16-bit colour, of which Pillow keeps the upper 8 bits."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        raw = str(arguments[0]) if arguments else ""
        # RGB;16B and the like; BGR;16 without a byte order is 5-6-5 bits. PPM hands over its maximum instead.
        if raw.endswith((";16B", ";16L", ";16N")) or (tile[0] == "ppm" and arguments[-1] > 255):
            return True
    return False


def _misreads_planes(image: Image.Image) -> bool:
    """Whether Pillow's own TIFF reader scrambles this file.

    Of uncompressed planes it unpacks each by one letter of its name for the whole pixel, such as the R of "RGB;16L":
    right for several samples of 8 bits, but 16-bit samples are taken for 8-bit ones. libtiff's reader is right.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or getattr(image, "use_load_libtiff", True):
        return False
    bits = image.tag_v2.get(_BITS, (1,))
    return bool(image.tag_v2.get(_PLANAR, 1) == 2) and (len(bits) == 1 or any(size != 8 for size in bits))


def _is_negative(image: Image.Image) -> bool:
    """Whether a TIFF file calls 0 white and Pillow does not turn that round: it does for up to 8 bits alone."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.tag_v2.get(_PHOTOMETRIC) != 0:
        return False
    raw = {str(tile[3][0]) for tile in image.tile if isinstance(tile[3], tuple)}
    return image.mode in ("I;16", "I;16B", "I", "F") and raw <= _NOT_INVERTED


def _code_points(stream: BinaryIO) -> tuple[int, int, int, int] | None:
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


def _coded_bits(stream: BinaryIO) -> int:
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


def _profile(
    image: Image.Image, code_points: tuple[int, int, int, int] | None, name: str, notes: list[str]
) -> bytes | None:
    """The ICC profile: the file's, or one that says the same; in PNG files cICP goes before iCCP, sRGB, gAMA, cHRM."""
    icc: bytes | None = image.info.get("icc_profile") or None
    grey = _PLAIN_MODES.get(image.mode, image.mode) in _GREY_MODES
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
        notes.append(f"{name}: gAMA or cHRM states {_one_line(error)}, left out")
        return None


def _pixels(
    image: Image.Image, icc: bytes | None, bits: int, negative: bool, name: str, notes: list[str]
) -> tuple[U8, Alpha | None, int]:
    """Colours uint8 [H, W, 3], alpha or None, and bits a sample of the source."""
    mode = _PLAIN_MODES.get(image.mode, image.mode)
    key = image.info.get("transparency")
    if mode in ("I;16", "I", "F"):
        twelve = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_BITS) == (12,)
        grey, depth = _deep_grey(np.asarray(image), mode, 4095 if twelve else 65535, name, notes)
        if negative:
            grey = 255 - grey
        alpha: U8 | None = None
        if mode == "I;16" and isinstance(key, int):
            alpha = np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)
        return _grey_to_rgb(grey), alpha, depth
    depth = 1 if mode == "1" else 8
    if bits > 8:
        depth = bits
        notes.append(f"{name}: {bits}-bit colour is reduced to 8 bits")
    if mode == "CMYK":
        return _cmyk_to_rgb(image, icc, name, notes), None, depth
    if mode == "LAB":
        return _through_profiles(image, ImageCms.createProfile("LAB")), None, depth
    if mode not in ("RGB", "RGBA", "L", "LA", "1", "P", "PA", "YCbCr", "HSV"):
        raise ImageError(f"{name}: Pillow's mode {image.mode} is not supported")
    transparent = image.has_transparency_data
    if transparent and bits > 8 and key is not None:
        notes.append(f"{name}: the transparent colour of a {bits}-bit picture is not kept")
        transparent = False
    if mode == "1":
        grey = np.asarray(image.convert("L"))
        # 0 or not: some versions of Pillow give a white key as 1, others as 255
        alpha = np.where((grey > 0) == (key > 0), 0, 255).astype(np.uint8) if isinstance(key, int) else None
        return _grey_to_rgb(grey), alpha, depth
    if mode in ("L", "LA"):
        if isinstance(image, TiffImagePlugin.TiffImageFile) and 2 in image.tag_v2.get(_SAMPLE_FORMAT, ()):
            raise ImageError(f"{name}: a TIFF file of signed 8-bit samples is not read")
        if not transparent:
            return _grey_to_rgb(np.asarray(image.convert("L"))), None, depth
        both = np.asarray(image.convert("LA"))
        return _grey_to_rgb(both[..., 0]), both[..., 1].copy(), depth
    if transparent:
        four = np.asarray(image.convert("RGBA"))
        return four[..., :3].copy(), four[..., 3].copy(), depth
    # np.array and not asarray: the latter is read-only here, which torch.from_numpy warns about
    return np.array(image.convert("RGB")), None, depth


def _deep_grey(values: npt.NDArray[Any], mode: str, most: int, name: str, notes: list[str]) -> tuple[U8, int]:
    """Grey uint8 [H, W] and bits a sample from Pillow's I;16 (uint16, 0..most), I (int32) and F (float32) pictures."""
    least, greatest = values.min(), values.max()
    if mode == "F":
        if not np.isfinite([least, greatest]).all():
            raise ImageError(f"{name}: contains NaN or infinity")
        scale = 255 if greatest <= 1 + _FLOAT_SLACK else 1
        if least < -_FLOAT_SLACK * 255 / scale or greatest > (1 + _FLOAT_SLACK) * 255:
            raise ImageError(f"{name}: values from {least} to {greatest}, expected 0..1 or 0..255")
        # Nothing in the file says which of the two it is. Bright pictures do not end so low; levels are whole numbers.
        if scale == 1 and greatest < 128 and (values != np.rint(values)).any():
            raise ImageError(
                f"{name}: values from {least} to {greatest} may be meant as 0..1 (overexposed) or 0..255: scale them"
            )
        notes.append(f"{name}: floating-point grey, read as 0..{255 // scale}, is reduced to 8 bits")
        return np.rint(values * np.float32(scale)).astype(np.uint8), 32
    if least < 0 or greatest > 65535:
        raise ImageError(f"{name}: values from {least} to {greatest}, expected 0..65535")
    notes.append(f"{name}: {12 if most == 4095 else 16}-bit grey is reduced to 8 bits")
    if most == 4095:
        return ((np.minimum(values, most).astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8), 12
    return to_8_bits(values.astype(np.uint16)), 16 if mode == "I;16" else 32


def _cmyk_to_rgb(image: Image.Image, icc: bytes | None, name: str, notes: list[str]) -> U8:
    """sRGB through the picture's profile; by Pillow's plain formula where it has none or a broken one."""
    if icc is not None:
        try:
            return _through_profiles(image, ImageCms.ImageCmsProfile(io.BytesIO(icc)))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            notes.append(f"{name}: the CMYK profile cannot be applied ({_one_line(error)}), converted without it")
    return np.array(image.convert("RGB"))


def _through_profiles(image: Image.Image, profile: Any) -> U8:
    """The picture's colours in sRGB, perceptual intent."""
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return np.array(converted)


def _read_exif(image: Image.Image, name: str, notes: list[str]) -> tuple[int, bytes | None]:
    """Orientation still to be applied, 1..8, and the EXIF to keep, as it was; either may be read without the other."""
    failures = (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, OverflowError, struct.error)
    orientation, kept = 1, None
    try:
        tags = image.getexif()
        found = tags.get(_ORIENTATION, 1)
        orientation = int(found) if found in range(1, 9) else 1
        raw = image.info.get("exif")
        if isinstance(raw, bytes) and raw:
            kept = exif_blocks.strip_prefix(raw)
            exif_blocks.upright(kept, 1, 1, 1)  # raises what makes it unusable
        else:
            kept = _serialised_exif(tags, image.format == "TIFF")
    except failures as error:
        notes.append(f"{name}: EXIF cannot be read ({_one_line(error)}), not kept")
        return orientation, None
    return orientation, kept


def _exif_of_turned(exif: bytes | None, orientation: int, rgb: U8, name: str, notes: list[str]) -> bytes | None:
    """The EXIF of the upright picture."""
    if exif is None:
        return None
    try:
        return exif_blocks.upright(exif, orientation, rgb.shape[1], rgb.shape[0])
    except (ValueError, struct.error) as error:
        notes.append(f"{name}: EXIF cannot be read ({_one_line(error)}), not kept")
        return None


def _read_xmp(image: Image.Image, orientation: int, rgb: U8, name: str, notes: list[str]) -> bytes | None:
    """The XMP packet of the upright picture."""
    raw = image.info.get("xmp") or image.info.get(_PNG_XMP)
    if isinstance(raw, str):
        raw = raw.encode("utf-8", "replace")
    if not isinstance(raw, bytes) or not (xmp := raw.rstrip(b"\0")):
        return None
    if len(xmp) > MAX_TEXT_BYTES:
        notes.append(f"{name}: {len(xmp)} bytes of XMP are more than {MAX_TEXT_BYTES}, not kept")
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


def _read_dpi(image: Image.Image, orientation: int) -> tuple[float, float] | None:
    """Dots per inch of the upright picture, where the file says other ones than 72."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _TIFF_RESOLUTION not in image.tag_v2:
        return None  # Pillow fills in 1
    try:
        x, y = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    if not all(1 <= value * _DPI_STEPS < 2**32 - 1 for value in (x, y)) or max(abs(x - 72), abs(y - 72)) < 0.05:
        return None
    if image.format in ("BMP", "DIB") and max(abs(x - 96), abs(y - 96)) < 0.05:
        return None  # writers must put something there, and ours puts this
    x, y = (round(value * _DPI_STEPS) / _DPI_STEPS for value in (x, y))
    return (y, x) if orientation >= 5 else (x, y)


def _note_what_is_dropped(image: Image.Image, name: str, notes: list[str]) -> None:
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
        kept = _PNG_NOISE | {_PNG_XMP, "Raw profile type exif"}
        texts = [str(key)[:40] for key, value in info.items() if isinstance(value, str) and key not in kept]
        if texts:
            dropped.append(f"text ({', '.join(texts[:3])}{', ...' if len(texts) > 3 else ''})")
    if dropped:
        notes.append(f"{name}: {' and '.join(dropped)} {'is' if len(dropped) == 1 else 'are'} not kept")


def _serialised_exif(tags: Image.Exif, is_tiff: bool) -> bytes | None:
    """EXIF that did not come as one block: from a TIFF file's own tags or a PNG text chunk."""
    kept = Image.Exif()
    for tag in _TIFF_KEPT if is_tiff else tuple(tags):
        if tag in tags and tag != _ORIENTATION:
            kept[tag] = tags[tag]
    for tag in (_EXIF_IFD, _GPS_IFD):
        if tag in tags and (directory := tags.get_ifd(tag)):
            kept[tag] = dict(directory)
    if not set(kept) - _RESOLUTION:  # `Picture.dpi` says it in fewer bytes
        return None
    kept[_ORIENTATION] = 1
    return kept.tobytes().removeprefix(exif_blocks.PREFIX)


def _upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """[H, W, ...] turned as EXIF orientation 1..8 asks; a view."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _is_tensor(source: Any) -> bool:
    """Whether this is a torch tensor; torch is not imported for it: without torch there are none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _tensor_to_array(tensor: Any) -> npt.NDArray[Any]:
    """A tensor on any device as an array [H, W] or [H, W, C]."""
    torch = sys.modules["torch"]
    if tensor.dtype == torch.bfloat16:  # numpy has none
        tensor = tensor.float()
    try:
        array = cast(npt.NDArray[Any], tensor.detach().cpu().numpy())
    except (TypeError, RuntimeError) as error:  # sparse, quantised, without data, or a dtype that numpy lacks
        raise ImageError(f"tensor: {tensor.dtype} cannot be read: {_one_line(error)}") from error
    return np.moveaxis(array, 0, 2) if array.ndim == 3 and array.shape[0] in (1, 3, 4) else array


def _from_array(array: npt.NDArray[Any], name: str, max_pixels: int | None, notes: list[str]) -> Picture:
    """A picture from [H, W] or [H, W, C]."""
    array = np.asarray(array)  # a matrix would not take a third dimension
    kind, size = array.dtype.kind, array.dtype.itemsize
    if (kind, size) not in (("u", 1), ("u", 2), ("f", 2), ("f", 4), ("f", 8)):
        raise ImageError(f"{name}: dtype {array.dtype}, expected uint8, uint16 or floating point in 0..1")
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 1 <= array.shape[2] <= 4):
        raise ImageError(f"{name}: shape {list(array.shape)}, expected one picture, [H, W] or [H, W, C] with C = 1..4")
    _check_size(array.shape[0], array.shape[1], name, max_pixels)
    if kind == "f":
        least, greatest = array.min(), array.max()
        if not np.isfinite([least, greatest]).all():
            raise ImageError(f"{name}: contains NaN or infinity")
        if least < -_FLOAT_SLACK or greatest > 1 + _FLOAT_SLACK:
            raise ImageError(f"{name}: values from {least} to {greatest}, expected 0..1 for {array.dtype}")
        array = np.rint(array * array.dtype.type(255)).astype(np.uint8)  # the slack is less than half a level
    elif size == 2:
        array = array.astype(np.uint16, copy=False)  # native byte order
        notes.append(f"{name}: 16-bit colour is reduced to 8 bits")

    planes = array[..., None] if array.ndim == 2 else array
    channels = planes.shape[2]
    alpha = cast(Alpha, planes[..., -1].copy()) if channels in (2, 4) else None
    colour = to_8_bits(planes[..., : 1 if channels < 3 else 3])
    rgb = _grey_to_rgb(colour[..., 0]) if channels < 3 else np.ascontiguousarray(colour)
    mode = ("L", "LA", "RGB", "RGBA")[channels - 1]
    if channels == 1 and (kind, size) != ("u", 1):
        mode = "F" if kind == "f" else "I;16"
    return Picture(rgb, mode, 8 * size, alpha, warnings=tuple(notes))


def _grey_to_rgb(grey: U8) -> U8:
    """[H, W] -> contiguous [H, W, 3]."""
    return np.repeat(grey[..., None], 3, axis=2)


def to_8_bits(values: npt.NDArray[Any]) -> U8:
    """uint16 0..65535 -> uint8, rounded to the nearest; uint8 as it is."""
    if values.dtype == np.uint8:
        return cast(U8, values)
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _flattened(rgb: U8, alpha: Alpha, background: tuple[int, int, int]) -> U8:
    """rgb over a background colour, in the picture's own (gamma-coded) values."""
    opacity = to_8_bits(alpha).astype(np.uint32)[..., None]
    under = np.asarray(background, np.uint32)
    return ((rgb * opacity + under * (255 - opacity) + 127) // 255).astype(np.uint8)


def check_output_format(format_: str | None, path: Path | None) -> None:
    """Raises UnsupportedError for a picture format that `save_picture` would refuse, before any work."""
    _output_format(format_, path)


def _output_format(format_: str | None, path: Path | None) -> str:
    """Pillow's name of the format to write."""
    known = Image.registered_extensions()  # also loads Pillow's plugins
    if format_ is None:
        if path is None:
            raise UnsupportedError("a file object has no extension to choose the format by; pass format=")
        if path.suffix.lower() not in known:
            raise UnsupportedError(f"{path}: unknown picture extension {path.suffix!r}")
        format_ = known[path.suffix.lower()]
    format_ = {"JPG": "JPEG", "TIF": "TIFF", "JP2": "JPEG2000"}.get(format_.upper(), format_.upper())
    if format_ not in Image.SAVE:
        raise UnsupportedError(f"{path or 'file object'}: Pillow cannot write {format_}")
    return format_


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


def _check_rgb(rgb: U8) -> None:
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ImageError(f"colours: {rgb.dtype} {list(rgb.shape)}, expected uint8 [H, W, 3]")


def _check_alpha(alpha: Alpha, shape: tuple[int, ...]) -> None:
    if alpha.dtype not in (np.uint8, np.uint16) or alpha.ndim != 2 or alpha.shape != shape or alpha.size == 0:
        raise ImageError(f"alpha: {alpha.dtype} {list(alpha.shape)}, expected uint8 or uint16 {list(shape[:2])}")


def _check_size(height: int, width: int, name: str, max_pixels: int | None) -> None:
    if height == 0 or width == 0:
        raise ImageError(f"{name}: {width} x {height} pixels, a picture has at least one")
    if max_pixels is not None and height * width > max_pixels:
        raise LimitError(f"{name}: {width} x {height} pixels, the limit is {max_pixels} (max_pixels)")


def _one_line(error: BaseException) -> str:
    """The error's text in one line, its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
