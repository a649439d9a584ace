"""The pixels of an opened PIL image, whatever its mode, as 8-bit colours and alpha; and how they are to be read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, TiffImagePlugin

from l2c.arrays import Alpha, UInt8Array, to_8_bits
from l2c.errors import ImageError, one_line
from l2c.images.picture import grey_to_rgb

PLAIN_MODES = {
    "I;16B": "I;16",
    "I;16L": "I;16",
    "I;16N": "I;16",
    "RGBX": "RGB",
    "RGBa": "RGBA",
    "La": "LA",
}
FLOAT_SLACK = 1e-3  # what resizing overshoots 0 and 1 by

_PHOTOMETRIC, _SAMPLE_FORMAT, _BITS, _PLANAR = 262, 339, 258, 284  # tags of TIFF
# What Pillow calls samples of more than 8 bits that it hands over as they are.
_NOT_INVERTED = frozenset({"I;16", "I;16N", "I;16B", "I;16R", "F;32F", "F;32BF"})


def has_16_bits(image: Image.Image) -> bool:
    """Whether the file holds 16-bit colour, of which Pillow keeps the upper 8 bits."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        raw = str(arguments[0]) if arguments else ""
        # RGB;16B and the like; BGR;16 without a byte order is 5-6-5 bits. PPM hands over its maximum instead.
        if raw.endswith((";16B", ";16L", ";16N")) or (tile[0] == "ppm" and arguments[-1] > 255):
            return True
    return False


def misreads_planes(image: Image.Image) -> bool:
    """Whether Pillow's own TIFF reader scrambles this file.

    Of uncompressed planes it unpacks each by one letter of its name for the whole pixel, such as the R of "RGB;16L":
    right for several samples of 8 bits, but 16-bit samples are taken for 8-bit ones. libtiff's reader is right.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or getattr(image, "use_load_libtiff", True):
        return False
    bits = image.tag_v2.get(_BITS, (1,))
    return bool(image.tag_v2.get(_PLANAR, 1) == 2) and (len(bits) == 1 or any(size != 8 for size in bits))


def is_negative(image: Image.Image) -> bool:
    """Whether a TIFF file calls 0 white and Pillow does not turn that round: it does for up to 8 bits alone."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.tag_v2.get(_PHOTOMETRIC) != 0:
        return False
    raw = {str(tile[3][0]) for tile in image.tile if isinstance(tile[3], tuple)}
    return image.mode in ("I;16", "I;16B", "I", "F") and raw <= _NOT_INVERTED


def pixels_of(
    image: Image.Image, icc: bytes | None, bits: int, negative: bool, name: str, notes: list[str]
) -> tuple[UInt8Array, Alpha | None, int]:
    """Colours uint8 [H, W, 3], alpha or None, and bits a sample of the source."""
    mode = PLAIN_MODES.get(image.mode, image.mode)
    key = image.info.get("transparency")
    if mode in ("I;16", "I", "F"):
        twelve = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_BITS) == (12,)
        grey, depth = _deep_grey(np.asarray(image), mode, 4095 if twelve else 65535, name, notes)
        if negative:
            grey = 255 - grey
        alpha: UInt8Array | None = None
        if mode == "I;16" and isinstance(key, int):
            alpha = np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)
        return grey_to_rgb(grey), alpha, depth
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
        return grey_to_rgb(grey), alpha, depth
    if mode in ("L", "LA"):
        if isinstance(image, TiffImagePlugin.TiffImageFile) and 2 in image.tag_v2.get(_SAMPLE_FORMAT, ()):
            raise ImageError(f"{name}: a TIFF file of signed 8-bit samples is not read")
        if not transparent:
            return grey_to_rgb(np.asarray(image.convert("L"))), None, depth
        both = np.asarray(image.convert("LA"))
        return grey_to_rgb(both[..., 0]), both[..., 1].copy(), depth
    if transparent:
        four = np.asarray(image.convert("RGBA"))
        return four[..., :3].copy(), four[..., 3].copy(), depth
    # np.array and not asarray: the latter is read-only here, which torch.from_numpy warns about
    return np.array(image.convert("RGB")), None, depth


def _deep_grey(values: npt.NDArray[Any], mode: str, most: int, name: str, notes: list[str]) -> tuple[UInt8Array, int]:
    """Grey uint8 [H, W] and bits a sample from Pillow's I;16 (uint16, 0..most), I (int32) and F (float32) pictures."""
    least, greatest = values.min(), values.max()
    if mode == "F":
        if not np.isfinite([least, greatest]).all():
            raise ImageError(f"{name}: contains NaN or infinity")
        scale = 255 if greatest <= 1 + FLOAT_SLACK else 1
        if least < -FLOAT_SLACK * 255 / scale or greatest > (1 + FLOAT_SLACK) * 255:
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


def _cmyk_to_rgb(image: Image.Image, icc: bytes | None, name: str, notes: list[str]) -> UInt8Array:
    """sRGB through the picture's profile; by Pillow's plain formula where it has none or a broken one."""
    if icc is not None:
        try:
            return _through_profiles(image, ImageCms.ImageCmsProfile(io.BytesIO(icc)))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
            notes.append(f"{name}: the CMYK profile cannot be applied ({one_line(error)}), converted without it")
    return np.array(image.convert("RGB"))


def _through_profiles(image: Image.Image, profile: Any) -> UInt8Array:
    """The picture's colours in sRGB, perceptual intent."""
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return np.array(converted)


def turned_upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """[H, W, ...] turned as EXIF orientation 1..8 asks; a view."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
