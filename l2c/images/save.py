"""Pictures into files and PIL images: what a format can hold is kept, the rest is said or refused."""

from __future__ import annotations

import io
import os
import warnings as python_warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, PngImagePlugin

from l2c.arrays import Alpha, UInt8Array, check_alpha, to_8_bits
from l2c.errors import L2CWarning, UnsupportedError, one_line
from l2c.files import write_atomically
from l2c.images import exif as exif_blocks
from l2c.images import profiles
from l2c.images.metadata import PNG_XMP
from l2c.images.picture import check_rgb, to_original

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
_TIFF_XMP = 700


def to_pil(rgb: UInt8Array, alpha: Alpha | None = None, mode: str = "RGB") -> Image.Image:
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
    rgb: UInt8Array,
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

    check_rgb(rgb)
    if alpha is not None:
        check_alpha(alpha, rgb.shape[:2])
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
        known = {tag: tags[tag] for tag in (*exif_blocks.TIFF_KEPT, _TIFF_XMP) if tag in tags}
        if format_ == "TIFF" and len(known) < len(tags):
            notes.append(f"{name}: some EXIF tags cannot be written as TIFF, left out")
            return _encoded(image, format_, arguments | {"tiffinfo": known}, name, notes)
        raise UnsupportedError(f"{name}: cannot be written as {format_}: {one_line(error)}") from error
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
                notes.append(f"{name}: EXIF cannot be written as TIFF tags ({one_line(error)}), left out")
        else:
            arguments["exif"] = marker
    if xmp is not None:
        if format_ == "PNG":
            texts = PngImagePlugin.PngInfo()
            texts.add_itxt(PNG_XMP, xmp.decode("utf-8", "replace"))
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


def _flattened(rgb: UInt8Array, alpha: Alpha, background: tuple[int, int, int]) -> UInt8Array:
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
