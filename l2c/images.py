"""Pictures in and out: whatever a user hands over -> uint8 RGB and what is kept beside it; back to a file.

What is kept without loss: alpha, ICC profile, EXIF (Orientation is applied to the pixels, then its tag is set
to 1). What the codec gets is always uint8 RGB; `Picture.mode` and `Picture.bit_depth` say what it came from.

    source                            becomes                                           comes back as
    L, 1, LA, L or 1 with a key       grey in all three channels                        L, LA
    RGB, RGBA, RGB with a key         itself                                            RGB, RGBA
    P, PA                             its colours                                       RGB, RGBA
    CMYK                              sRGB, through its ICC profile where it has one    RGB
    YCbCr, HSV, LAB                   RGB (LAB through an ICC transform to sRGB)        RGB
    I;16, I, 16-bit colour, uint16    8 bits, with a warning                            L, RGB, RGBA
    F                                 8 bits, with a warning                            L
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
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import struct
import sys
import threading
import warnings as python_warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from l2c.bitstream import Limits
from l2c.errors import BitstreamError, ImageError, L2CError, LimitError, UnsupportedError

U8: TypeAlias = npt.NDArray[np.uint8]
Alpha: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

MAX_PIXELS = Limits().max_pixels


class L2CWarning(UserWarning):
    """Something about a picture could not be kept; the message says what."""


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
    """

    rgb: U8 = field(repr=False)
    mode: str = "RGB"
    bit_depth: int = 8
    alpha: Alpha | None = field(default=None, repr=False)
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.rgb.shape[1])


def load_picture(source: Any, *, max_pixels: int | None = MAX_PIXELS) -> Picture:
    """Reads whatever a user passes as a picture.

    Args:
        source: one of
            a path (str, PathLike), the bytes of a picture file (bytes, bytearray, memoryview), a binary
                file object (read from where it stands to its end): any format that Pillow reads, except EPS
                (Pillow runs Ghostscript for it); the first frame of several;
            a PIL image: its current frame; not changed;
            a numpy array [H, W], [H, W, 1] (grey), [H, W, 2] (grey, alpha), [H, W, 3] or [H, W, 4]: uint8,
                uint16 (colour is reduced to 8 bits with a warning, alpha is kept), floating in [0, 1];
            a torch tensor on any device, the same dtypes and bfloat16: [H, W]; [C, H, W] whenever the first
                of three dimensions is 1, 3 or 4; else [H, W, C] as above. So [3, 5, 3] is 5 x 3 in RGB.
        max_pixels: refuse larger pictures before their pixels are decoded; None: no limit. Takes the place
            of `PIL.Image.MAX_IMAGE_PIXELS`.
    Raises:
        ImageError: unreadable, truncated, empty, or an array that is no picture (shape, dtype, NaN, out of
            range); one line that names the source and the cause.
        LimitError: more than `max_pixels`.
    Warns:
        L2CWarning: bits, frames or metadata of the source that are not kept.
    """
    notes: list[str] = []
    if isinstance(source, Image.Image):
        picture = _from_pillow(source, "PIL image", max_pixels, notes)
    elif isinstance(source, (str, os.PathLike)):
        picture = _from_path(Path(source), max_pixels, notes)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        picture = _from_stream(io.BytesIO(source), "bytes", max_pixels, notes)
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
        picture = _from_stream(io.BytesIO(data), name, max_pixels, notes)
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
        planes = np.concatenate([planes, _to_8_bits(alpha)[..., None]], axis=2)
    return cast(U8, planes[..., 0] if planes.shape[2] == 1 else planes)


def to_pil(rgb: U8, alpha: Alpha | None = None, mode: str = "RGB") -> Image.Image:
    """`to_original` as a PIL image of mode L, LA, RGB or RGBA."""
    return Image.fromarray(to_original(rgb, alpha, mode))


def save_picture(
    target: str | os.PathLike[str] | BinaryIO,
    rgb: U8,
    *,
    alpha: Alpha | None = None,
    icc: bytes | None = None,
    exif: bytes | None = None,
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
        icc, exif: as in `Picture`; written where the format can hold them.
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
    image = to_pil(rgb, alpha, mode)
    if format_ in _PALETTE_FORMATS and image.mode == "RGB" and image.getcolors(256) is None:
        notes.append(f"{name}: {format_} holds 256 colours")

    arguments: dict[str, Any] = dict(_SAVE_DEFAULTS.get(format_, {}))
    if quality is not None and format_ in _QUALITY_FORMATS:
        arguments.update(quality=quality)
        arguments.pop("lossless", None)
    if icc is not None:
        if icc[16:20] == b"CMYK" or (icc[16:20] == b"GRAY" and image.mode not in ("L", "LA")):
            notes.append(f"{name}: the {icc[16:20].decode()} ICC profile does not fit a colour picture, left out")
        else:
            arguments["icc_profile"] = icc
    if exif is not None:
        marker = _EXIF_PREFIX + exif
        if format_ == "JPEG" and len(marker) > _JPEG_MARKER_MAX:
            notes.append(f"{name}: {len(exif)} bytes of EXIF are more than a JPEG file holds, left out")
        else:
            arguments["exif"] = marker
    arguments.update(options or {})

    encoded = io.BytesIO()
    try:
        image.save(encoded, format_, **arguments)
    except MemoryError:
        raise
    except Exception as error:  # writers raise whatever they like; nothing is on disk yet
        raise UnsupportedError(f"{name}: cannot be written as {format_}: {_one_line(error)}") from error
    if path is None:
        cast(BinaryIO, target).write(encoded.getbuffer())
    else:
        write_atomically(path, encoded.getbuffer(), overwrite=overwrite)
    for note in notes:
        python_warnings.warn(note, L2CWarning, stacklevel=2)


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
_EXIF_PREFIX = b"Exif\x00\x00"
_JPEG_MARKER_MAX = 65533
_ORIENTATION, _EXIF_IFD, _GPS_IFD = 0x0112, 0x8769, 0x8825
# What a TIFF file says about the photograph; its other tags describe how that file stores pixels.
# ImageDescription, Make, Model, X/YResolution, ResolutionUnit, Software, DateTime, Artist, Copyright
_TIFF_KEPT = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_pillow_limit_lock = threading.Lock()


def _from_path(path: Path, max_pixels: int | None, notes: list[str]) -> Picture:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; only opening it is inside this try)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a null character in the name
        raise ImageError(f"{str(path)!r}: {error}") from error
    with file:
        return _from_stream(file, str(path), max_pixels, notes)


def _from_stream(stream: BinaryIO, name: str, max_pixels: int | None, notes: list[str]) -> Picture:
    with _pillow_errors(name), _without_pillow_limit():
        image = Image.open(stream)
    with image:
        return _from_pillow(image, name, max_pixels, notes)


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Lifts Pillow's process-wide pixel limit while a header is read; the caller checks its own right after.

    Opening decodes no pixels. Decoding runs outside of this, so that the time without a guard is short.
    """
    with _pillow_limit_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


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
        raise ImageError(f"{name}: cannot be read: {_one_line(error)}") from error


def _from_pillow(image: Image.Image, name: str, max_pixels: int | None, notes: list[str]) -> Picture:
    """Pixels and metadata of an opened image; `name` heads the messages."""
    _check_size(image.height, image.width, name, max_pixels)
    if image.format == "EPS":
        raise ImageError(f"{name}: EPS is not read, because Pillow would run Ghostscript on it")
    deep = _has_16_bits(image)  # known only before the pixels are loaded
    with _pillow_errors(name):
        image.load()
        _check_size(image.height, image.width, name, max_pixels)  # ICO and ICNS may change it
        icc = image.info.get("icc_profile") or None
        orientation, exif = _read_exif(image, name, notes)
        rgb, alpha, depth = _pixels(image, icc, deep, name, notes)
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
    return Picture(rgb, mode, depth, alpha, icc, exif, tuple(notes))


def _has_16_bits(image: Image.Image) -> bool:
    """Whether the file holds 16-bit colour, of which Pillow keeps the upper 8 bits."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        raw = str(arguments[0]) if arguments else ""
        # RGB;16B and the like; BGR;16 without a byte order is 5-6-5 bits. PPM hands over its maximum instead.
        if raw.endswith((";16B", ";16L", ";16N")) or (tile[0] == "ppm" and arguments[-1] > 255):
            return True
    return False


def _pixels(
    image: Image.Image, icc: bytes | None, deep: bool, name: str, notes: list[str]
) -> tuple[U8, Alpha | None, int]:
    """Colours uint8 [H, W, 3], alpha or None, and bits a sample of the source."""
    mode = _PLAIN_MODES.get(image.mode, image.mode)
    key = image.info.get("transparency")
    if mode in ("I;16", "I", "F"):
        grey, depth = _deep_grey(np.asarray(image), mode, name, notes)
        alpha: U8 | None = None
        if mode == "I;16" and isinstance(key, int):
            alpha = np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)
        return _grey_to_rgb(grey), alpha, depth
    depth = 1 if mode == "1" else 8
    if deep:
        depth = 16
        notes.append(f"{name}: 16-bit colour is reduced to 8 bits")
    if mode == "CMYK":
        return _cmyk_to_rgb(image, icc, name, notes), None, depth
    if mode == "LAB":
        return _through_profiles(image, ImageCms.createProfile("LAB")), None, depth
    if mode not in ("RGB", "RGBA", "L", "LA", "1", "P", "PA", "YCbCr", "HSV"):
        raise ImageError(f"{name}: Pillow's mode {image.mode} is not supported")
    transparent = image.has_transparency_data
    if transparent and deep and key is not None:
        notes.append(f"{name}: the transparent colour of a 16-bit picture is not kept")
        transparent = False
    if mode == "1":
        grey = np.asarray(image.convert("L"))
        # 0 or not: some versions of Pillow give a white key as 1, others as 255
        alpha = np.where((grey > 0) == (key > 0), 0, 255).astype(np.uint8) if isinstance(key, int) else None
        return _grey_to_rgb(grey), alpha, depth
    if mode in ("L", "LA"):
        if not transparent:
            return _grey_to_rgb(np.asarray(image.convert("L"))), None, depth
        both = np.asarray(image.convert("LA"))
        return _grey_to_rgb(both[..., 0]), both[..., 1].copy(), depth
    if transparent:
        four = np.asarray(image.convert("RGBA"))
        return four[..., :3].copy(), four[..., 3].copy(), depth
    # np.array and not asarray: the latter is read-only here, which torch.from_numpy warns about
    return np.array(image.convert("RGB")), None, depth


def _deep_grey(values: npt.NDArray[Any], mode: str, name: str, notes: list[str]) -> tuple[U8, int]:
    """Grey uint8 [H, W] and bits a sample from Pillow's I;16 (uint16), I (int32) and F (float32) pictures."""
    least, greatest = values.min(), values.max()
    if mode == "F":
        if not np.isfinite([least, greatest]).all():
            raise ImageError(f"{name}: contains NaN or infinity")
        if least < 0 or greatest > 255:
            raise ImageError(f"{name}: values from {least} to {greatest}, expected 0..1 or 0..255")
        scale = 255 if greatest <= 1 else 1
        notes.append(f"{name}: floating-point grey, read as 0..{255 // scale}, is reduced to 8 bits")
        return np.rint(values * np.float32(scale)).astype(np.uint8), 32
    if least < 0 or greatest > 65535:
        raise ImageError(f"{name}: values from {least} to {greatest}, expected 0..65535")
    notes.append(f"{name}: 16-bit grey is reduced to 8 bits")
    return _to_8_bits(values.astype(np.uint16)), 16 if mode == "I;16" else 32


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
    """Orientation still to be applied, 1..8, and the EXIF to keep."""
    try:
        tags = image.getexif()
        orientation = tags.get(_ORIENTATION, 1)
        raw = image.info.get("exif")
        kept: bytes | None
        if isinstance(raw, bytes) and raw:
            # Patched in place and not written anew: maker notes hold offsets that must not move.
            kept = _with_upright_tag(raw.removeprefix(_EXIF_PREFIX))
        else:
            kept = _serialised_exif(tags, image.format == "TIFF")
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error) as error:
        notes.append(f"{name}: EXIF cannot be read ({_one_line(error)}), not kept")
        return 1, None
    return (int(orientation) if orientation in range(1, 9) else 1), kept


def _with_upright_tag(tiff: bytes) -> bytes:
    """The EXIF with Orientation 1 where it has that tag, every other byte as it was.

    Raises:
        ValueError: not a TIFF structure.
    """
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None:
        raise ValueError("not a TIFF structure")
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, type_ = struct.unpack_from(order + "HH", tiff, entry)
        if tag == _ORIENTATION:
            value = struct.pack(order + ("I" if type_ == 4 else "HH"), *((1,) if type_ == 4 else (1, 0)))
            return tiff[: entry + 8] + value + tiff[entry + 12 :]
    return tiff


def _serialised_exif(tags: Image.Exif, is_tiff: bool) -> bytes | None:
    """EXIF that did not come as one block: from a TIFF file's own tags or a PNG text chunk."""
    kept = Image.Exif()
    for tag in _TIFF_KEPT if is_tiff else tuple(tags):
        if tag in tags and tag != _ORIENTATION:
            kept[tag] = tags[tag]
    for tag in (_EXIF_IFD, _GPS_IFD):
        if tag in tags and (directory := tags.get_ifd(tag)):
            kept[tag] = dict(directory)
    if not kept:
        return None
    kept[_ORIENTATION] = 1
    return kept.tobytes().removeprefix(_EXIF_PREFIX)


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
        if least < 0 or greatest > 1:
            raise ImageError(f"{name}: values from {least} to {greatest}, expected 0..1 for {array.dtype}")
        array = np.rint(array * array.dtype.type(255)).astype(np.uint8)
    elif size == 2:
        array = array.astype(np.uint16, copy=False)  # native byte order
        notes.append(f"{name}: 16-bit colour is reduced to 8 bits")

    planes = array[..., None] if array.ndim == 2 else array
    channels = planes.shape[2]
    alpha = cast(Alpha, planes[..., -1].copy()) if channels in (2, 4) else None
    colour = _to_8_bits(planes[..., : 1 if channels < 3 else 3])
    rgb = _grey_to_rgb(colour[..., 0]) if channels < 3 else np.ascontiguousarray(colour)
    mode = ("L", "LA", "RGB", "RGBA")[channels - 1]
    if channels == 1 and (kind, size) != ("u", 1):
        mode = "F" if kind == "f" else "I;16"
    return Picture(rgb, mode, 8 * size, alpha, warnings=tuple(notes))


def _grey_to_rgb(grey: U8) -> U8:
    """[H, W] -> contiguous [H, W, 3]."""
    return np.repeat(grey[..., None], 3, axis=2)


def _to_8_bits(values: npt.NDArray[Any]) -> U8:
    """uint16 0..65535 -> uint8, rounded to the nearest; uint8 as it is."""
    if values.dtype == np.uint8:
        return cast(U8, values)
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _flattened(rgb: U8, alpha: Alpha, background: tuple[int, int, int]) -> U8:
    """rgb over a background colour, in the picture's own (gamma-coded) values."""
    opacity = _to_8_bits(alpha).astype(np.uint32)[..., None]
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
