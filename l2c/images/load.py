"""Pictures in: files, PIL images, arrays and tensors -> `Picture` (table: docstring of the package)."""

from __future__ import annotations

import io
import os
import sys
import warnings as python_warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from l2c.arrays import Alpha, to_8_bits
from l2c.errors import ImageError, L2CWarning, one_line
from l2c.format.bitstream import Limits
from l2c.images import exif as exif_blocks
from l2c.images import readers
from l2c.images.heads import read_code_points, read_coded_bits
from l2c.images.jpeg import with_end_marker
from l2c.images.metadata import exif_of_turned, note_what_is_dropped, profile_of, read_dpi, read_exif, read_xmp
from l2c.images.picture import Picture, check_size, grey_to_rgb
from l2c.images.pillow import for_opening, pillow_errors, settings
from l2c.images.pixels import (
    FLOAT_SLACK,
    PLAIN_MODES,
    has_16_bits,
    is_negative,
    misreads_planes,
    pixels_of,
    turned_upright,
)

MAX_PIXELS = Limits().max_pixels

_FILLED = "cut off or damaged, what cannot be read is filled"


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
            raise ImageError(f"{name}: cannot be read: {one_line(error)}") from error
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
        completed = with_end_marker(stream, max_pixels)
        if completed is not None:
            notes.append(f"{name}: lacks its end marker, nothing else is missing")
            return _from_file(completed, name, max_pixels, notes)
        if not truncated:
            raise
    stream.seek(start)
    return _noted(_from_file(stream, name, max_pixels, notes, truncated=True), f"{name}: {_FILLED}", notes)


def _from_image(image: Image.Image, max_pixels: int | None, notes: list[str], truncated: bool) -> Picture:
    """A PIL image. Not every plugin can begin again after an error, so there is one try, and no note on what is cut."""
    with settings.reading(truncated):
        return _from_pillow(image, "PIL image", max_pixels, notes, None)


def _from_file(
    stream: BinaryIO, name: str, max_pixels: int | None, notes: list[str], truncated: bool = False
) -> Picture:
    start = stream.tell()
    with settings.reading(truncated):
        code_points = read_code_points(stream)
        stream.seek(start)
        bits = read_coded_bits(stream)
        stream.seek(start)
        try:
            with pillow_errors(name), for_opening():
                image = Image.open(stream)
        except ImageError as error:
            stream.seek(start)
            layout = exif_blocks.describe_tiff(stream)
            if layout and isinstance(error.__cause__, UnidentifiedImageError):
                raise ImageError(f"{name}: a TIFF file that Pillow cannot read ({layout})") from error
            raise
        if misreads_planes(image):
            stream.seek(start)
            with pillow_errors(name), for_opening(libtiff=True):
                image = Image.open(stream)
        with image:
            return _from_pillow(image, name, max_pixels, notes, code_points, bits)


def _noted(picture: Picture, note: str, notes: list[str]) -> Picture:
    """The picture with one more note, before all others."""
    notes.insert(0, note)
    return replace(picture, warnings=(note, *picture.warnings))


def _from_pillow(
    image: Image.Image,
    name: str,
    max_pixels: int | None,
    notes: list[str],
    code_points: tuple[int, int, int, int] | None,
    bits: int = 8,
) -> Picture:
    """Pixels and metadata of an opened image; `name` heads the messages, `bits` is what its file says of samples."""
    check_size(image.height, image.width, name, max_pixels)
    if image.format == "EPS":
        raise ImageError(f"{name}: EPS is not read, because Pillow would run Ghostscript on it")
    if misreads_planes(image):
        raise ImageError(
            f"{name}: a TIFF file whose planes Pillow misreads without libtiff; pass the file, not the image"
        )
    bits = 16 if has_16_bits(image) else bits  # known only before the pixels are loaded
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    turned = tags.get(exif_blocks.ORIENTATION, 1)  # Pillow turns TIFF files itself
    negative = is_negative(image)
    with pillow_errors(name):
        image.load()
        check_size(image.height, image.width, name, max_pixels)  # ICO and ICNS may change it
        icc = profile_of(image, code_points, name, notes)
        orientation, exif = read_exif(image, name, notes)
        rgb, alpha, depth = pixels_of(image, icc, bits, negative, name, notes)
    if image.mode in ("CMYK", "LAB"):
        icc = None  # the colours are sRGB now
    try:
        several = getattr(image, "is_animated", False)
    except Exception:  # a second frame that cannot be read does not matter: only the first one is used
        several = True
    if several:
        which = "current" if name == "PIL image" else "first"
        notes.append(f"{name}: holds several pictures, only the {which} one is used")
    mode = PLAIN_MODES.get(image.mode, image.mode)
    rgb = np.ascontiguousarray(turned_upright(rgb, orientation))
    if alpha is not None:
        alpha = cast(Alpha, np.ascontiguousarray(turned_upright(alpha, orientation)))
    if orientation == 1 and turned in range(2, 9):
        orientation = turned
    exif = exif_of_turned(exif, orientation, rgb, name, notes)
    xmp = read_xmp(image, orientation, rgb, name, notes)
    dpi = read_dpi(image, orientation)
    note_what_is_dropped(image, name, notes)
    return Picture(rgb, mode, depth, alpha, icc, exif, tuple(notes), xmp, dpi)


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
        raise ImageError(f"tensor: {tensor.dtype} cannot be read: {one_line(error)}") from error
    return np.moveaxis(array, 0, 2) if array.ndim == 3 and array.shape[0] in (1, 3, 4) else array


def _from_array(array: npt.NDArray[Any], name: str, max_pixels: int | None, notes: list[str]) -> Picture:
    """A picture from [H, W] or [H, W, C]."""
    array = np.asarray(array)  # a matrix would not take a third dimension
    kind, size = array.dtype.kind, array.dtype.itemsize
    if (kind, size) not in (("u", 1), ("u", 2), ("f", 2), ("f", 4), ("f", 8)):
        raise ImageError(f"{name}: dtype {array.dtype}, expected uint8, uint16 or floating point in 0..1")
    if array.ndim not in (2, 3) or (array.ndim == 3 and not 1 <= array.shape[2] <= 4):
        raise ImageError(f"{name}: shape {list(array.shape)}, expected one picture, [H, W] or [H, W, C] with C = 1..4")
    check_size(array.shape[0], array.shape[1], name, max_pixels)
    if kind == "f":
        least, greatest = array.min(), array.max()
        if not np.isfinite([least, greatest]).all():
            raise ImageError(f"{name}: contains NaN or infinity")
        if least < -FLOAT_SLACK or greatest > 1 + FLOAT_SLACK:
            raise ImageError(f"{name}: values from {least} to {greatest}, expected 0..1 for {array.dtype}")
        array = np.rint(array * array.dtype.type(255)).astype(np.uint8)  # the slack is less than half a level
    elif size == 2:
        array = array.astype(np.uint16, copy=False)  # native byte order
        notes.append(f"{name}: 16-bit colour is reduced to 8 bits")

    planes = array[..., None] if array.ndim == 2 else array
    channels = planes.shape[2]
    alpha = cast(Alpha, planes[..., -1].copy()) if channels in (2, 4) else None
    colour = to_8_bits(planes[..., : 1 if channels < 3 else 3])
    rgb = grey_to_rgb(colour[..., 0]) if channels < 3 else np.ascontiguousarray(colour)
    mode = ("L", "LA", "RGB", "RGBA")[channels - 1]
    if channels == 1 and (kind, size) != ("u", 1):
        mode = "F" if kind == "f" else "I;16"
    return Picture(rgb, mode, 8 * size, alpha, warnings=tuple(notes))
