"""Pictures in and out: every mode, orientation, kind of source and output, what is kept, all bad input."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin

from l2c import images, profiles
from l2c.errors import BitstreamError, ImageError, L2CError, LimitError, UnsupportedError
from l2c.format import bitstream
from l2c.images import (
    MAX_PIXELS,
    L2CWarning,
    Picture,
    keep,
    load_picture,
    pack_alpha,
    pack_dpi,
    pack_xmp,
    save_picture,
    to_original,
    to_pil,
    unpack_alpha,
    unpack_dpi,
    unpack_xmp,
    with_metadata,
    write_atomically,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    """A warning that a test does not expect fails it, ResourceWarning of a file left open included."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(height: int = 13, width: int = 20, channels: int = 3) -> np.ndarray:
    """uint8 [H, W, C], smooth in both directions and different in every channel and corner."""
    y, x = np.mgrid[:height, :width]
    planes = [(7 * y + 5 * x * (c + 1) + 40 * c) % 256 for c in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint8)


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    """The bytes of a picture file."""
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def png_16(colour_type: int, samples: np.ndarray, extra: bytes = b"") -> bytes:
    """A 16-bit PNG, which Pillow cannot write in colour. samples: uint16 [H, W, C]."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    transparency = chunk(b"tRNS", extra) if extra else b""
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + header + transparency + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_chunks(png: bytes, *chunks: tuple[bytes, bytes], end: bool = False) -> bytes:
    """A PNG file with further chunks after its head, or before its end."""
    at = len(png) - 12 if end else 33
    added = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return png[:at] + added + png[at:]


def plain_png(image: Image.Image) -> bytes:
    """A PNG file without anything that Pillow would add."""
    bare = image.copy()
    bare.info = {}
    return encoded(bare, "PNG")


def gama(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(gamma * 100000))


def chrm(points: tuple[float, ...]) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(value * 100000) for value in points))


P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)


def tiff(
    samples: np.ndarray, photometric: int, *, planar: int = 1, bits: int = 0, form: int = 1, order: str = "<"
) -> bytes:
    """An uncompressed TIFF file, which Pillow cannot write in these layouts. samples: [H, W, C]."""
    height, width, channels = samples.shape
    if bits == 12:
        flat = samples.reshape(height, -1).astype(int)  # an even number of samples a row
        first, second = flat[:, ::2], flat[:, 1::2]
        parts = [
            np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8).tobytes()
        ]
    else:
        wide = samples.astype(samples.dtype.newbyteorder(order))
        parts = [wide[..., c].tobytes() for c in range(channels)] if planar == 2 else [wide.tobytes()]
    bits = bits or 8 * samples.dtype.itemsize

    def several(values: list[int], type_: int) -> tuple[int, int, bytes]:
        return type_, len(values), b"".join(struct.pack(order + ("H" if type_ == 3 else "I"), v) for v in values)

    at = 8
    places = []
    for part in parts:
        places.append(at)
        at += len(part)
    values = {
        256: several([width], 4),
        257: several([height], 4),
        258: several([bits] * channels, 3),
        259: several([1], 3),
        262: several([photometric], 3),
        273: several(places, 4),
        277: several([channels], 3),
        278: several([height], 4),
        279: several([len(part) for part in parts], 4),
        284: several([planar], 3),
        339: several([form] * channels, 3),
    }
    directory, extra = struct.pack(order + "H", len(values)), b""
    after = at + 2 + 12 * len(values) + 4
    for tag, (type_, count, data) in values.items():
        if len(data) > 4:
            place = struct.pack(order + "I", after + len(extra))
            extra += data
        else:
            place = data.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, type_, count) + place
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", at)
    return head + b"".join(parts) + directory + bytes(4) + extra


def cmyk_profile(paper: int) -> bytes:
    """An ICC profile whose blank paper has L* = 100 * paper / 255 and whose inks only darken it."""
    identity = bytes(range(256))
    grid = bytearray()
    for corner in range(16):
        inks = bin(corner).count("1")
        grid += bytes([paper * (4 - inks) // 4, 128, 128])
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536) + identity * 4 + bytes(grid) + identity * 3
    lut += bytes(-len(lut) % 4)
    body = struct.pack(">I4sII", 1, b"A2B0", 128 + 16, len(lut)) + lut
    header = struct.pack(
        ">I4sI4s4s4s12s4s",
        128 + len(body),
        b"none",
        0x02100000,
        b"prtr",
        b"CMYK",
        b"Lab ",
        bytes(12),
        b"acsp",
    )
    header = header.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + body


# ---------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "BMP", "PPM", "TGA", "WEBP", "JPEG", "JPEG2000", "AVIF", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_common_format(format_: str, mode: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    image = Image.fromarray(drawn()).convert(mode)
    data = encoded(image, format_, **options)
    picture = load_picture(data)
    assert np.array_equal(picture.rgb, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert picture.rgb.dtype == np.uint8
    assert picture.rgb.flags.c_contiguous
    assert picture.rgb.flags.writeable
    assert (picture.height, picture.width) == (13, 20)
    assert picture.alpha is None
    assert picture.warnings == ()
    assert picture.mode in bitstream.MODES
    if format_ in ("PNG", "TIFF", "BMP", "PPM", "TGA"):
        assert picture.mode == mode
        assert np.array_equal(picture.rgb, np.asarray(image.convert("RGB")))
        assert np.array_equal(to_original(picture.rgb, None, picture.mode), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 700), (700, 1), (3, 5)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_size(size: tuple[int, int], mode: str) -> None:
    image = Image.fromarray(drawn(*size)).convert(mode)
    picture = load_picture(encoded(image, "PNG"))
    assert np.array_equal(picture.rgb, np.asarray(image.convert("RGB")))
    assert picture.rgb.shape == (*size, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_modes(mode: str) -> None:
    four = drawn(channels=4)
    image = Image.fromarray(four)
    paletted = image.convert("L").convert("P")
    paletted.putalpha(image.getchannel("A"))
    image = {
        "RGBA": image,
        "LA": image.convert("LA"),
        "PA": paletted,
        "RGBa": image.convert("RGBa"),
        "La": image.convert("LA").convert("La"),
    }[mode]
    assert image.mode == mode
    picture = load_picture(image)
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, four[..., 3])
    assert picture.mode == {"RGBa": "RGBA", "La": "LA"}.get(mode, mode)
    plain = image.convert("LA").convert("RGBA") if mode == "La" else image.convert("RGBA")
    assert np.array_equal(picture.rgb, np.asarray(plain)[..., :3])
    back = to_pil(picture.rgb, picture.alpha, picture.mode)
    assert back.mode == ("LA" if mode in ("LA", "La") else "RGBA")
    if mode in ("RGBA", "LA"):
        assert np.array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize("format_", ["PNG", "GIF"])
def test_palette_with_transparency(format_: str) -> None:
    image = Image.fromarray(drawn()).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    data = encoded(image, format_, transparency=3)
    picture = load_picture(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert picture.mode == "P"
    assert picture.alpha is not None
    assert np.array_equal(np.dstack([picture.rgb, picture.alpha]), expected)
    assert 0 < (picture.alpha == 0).sum() < picture.alpha.size
    assert to_pil(picture.rgb, picture.alpha, "P").mode == "RGBA"
    per_entry = load_picture(encoded(image, "PNG", transparency=bytes(range(0, 160, 10))))
    assert per_entry.alpha is not None
    assert per_entry.alpha.max() <= 150


def test_transparent_colour_keys() -> None:
    colours = drawn()
    rgb = load_picture(encoded(Image.fromarray(colours), "PNG", transparency=tuple(colours[2, 3].tolist())))
    assert rgb.alpha is not None
    assert rgb.alpha[2, 3] == 0
    assert rgb.alpha[0, 0] == 255
    assert np.array_equal(rgb.rgb, colours)
    grey = load_picture(encoded(Image.fromarray(colours[..., 0]), "PNG", transparency=int(colours[2, 3, 0])))
    assert grey.alpha is not None
    assert np.array_equal(grey.alpha == 0, colours[..., 0] == colours[2, 3, 0])
    assert np.array_equal(grey.rgb[..., 1], colours[..., 0])
    bilevel = load_picture(encoded(Image.fromarray(colours[..., 0] > 99), "PNG", transparency=1))
    assert bilevel.alpha is not None
    assert np.array_equal(bilevel.alpha == 0, colours[..., 0] > 99)
    assert np.array_equal(bilevel.rgb[..., 2] == 255, colours[..., 0] > 99)


def test_bilevel() -> None:
    bits = drawn()[..., 0] > 128
    picture = load_picture(encoded(Image.fromarray(bits), "PNG"))
    assert (picture.mode, picture.bit_depth) == ("1", 1)
    assert np.array_equal(picture.rgb, np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2))
    assert to_pil(picture.rgb, None, "1").mode == "L"


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "CMYK", "RGBX"])
def test_other_colour_modes(mode: str) -> None:
    image = Image.fromarray(drawn()).convert(mode)
    picture = load_picture(image)
    assert np.array_equal(picture.rgb, np.asarray(image.convert("RGB")))
    assert picture.mode == {"RGBX": "RGB"}.get(mode, mode)
    assert to_pil(picture.rgb, None, picture.mode).mode == "RGB"


def test_lab() -> None:
    image = Image.fromarray(drawn() // 2 + 60)
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    picture = load_picture(lab)
    assert (picture.mode, picture.icc) == ("LAB", None)
    assert np.abs(picture.rgb.astype(int) - np.asarray(image)).max() <= 6  # 8-bit Lab is coarse


def test_cmyk_goes_through_its_profile() -> None:
    image = Image.new("CMYK", (4, 3), (255, 0, 0, 0))
    profile = cmyk_profile(200)
    for format_ in ("TIFF", "JPEG"):
        picture = load_picture(encoded(image, format_, icc_profile=profile))
        assert picture.mode == "CMYK"
        assert picture.icc is None
        assert picture.warnings == ()
        assert np.abs(picture.rgb.astype(int) - 141).max() <= 3  # the profile's cyan is a grey, L* = 58.8
    assert np.array_equal(load_picture(image).rgb[0, 0], [0, 255, 255])
    solid = load_picture(encoded(Image.new("CMYK", (4, 3), (255,) * 4), "TIFF", icc_profile=profile))
    assert solid.rgb.max() <= 3


def test_cmyk_with_a_broken_profile() -> None:
    for profile in (b"no profile at all" * 20, SRGB):
        data = encoded(Image.new("CMYK", (4, 3)), "TIFF", icc_profile=profile)
        with pytest.warns(L2CWarning, match="CMYK profile cannot be applied"):
            picture = load_picture(data)
        assert picture.icc is None
        assert (picture.rgb == 255).all()


# ------------------------------------------------------------------------------------------ 16 bits and float


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_grey(mode: str) -> None:
    values = np.array([[0, 128, 129, 257], [65535, 65406, 32768, 1000]])
    image = Image.fromarray(values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]))
    assert image.mode == mode
    with pytest.warns(L2CWarning, match="PIL image: 16-bit grey is reduced to 8 bits"):
        picture = load_picture(image)
    assert picture.rgb[..., 0].tolist() == np.rint(values / 257).astype(int).tolist()
    assert picture.mode == {"I;16B": "I;16"}.get(mode, mode)
    assert picture.bit_depth == (32 if mode == "I" else 16)
    assert len(picture.warnings) == 1
    assert to_original(picture.rgb, None, picture.mode).shape == (2, 4)


def test_16_bit_files() -> None:
    samples = drawn(channels=4).astype(np.uint16) * 257
    for colour_type, channels, mode in ((0, 1, "I;16"), (2, 3, "RGB"), (4, 2, "RGBA"), (6, 4, "RGBA")):
        with pytest.warns(L2CWarning, match="bytes: 16-bit (grey|colour) is reduced to 8 bits"):
            picture = load_picture(png_16(colour_type, samples[..., :channels]))
        assert (picture.mode, picture.bit_depth) == (mode, 16)
        expected = drawn(channels=4)[..., :3] if channels > 2 else np.repeat(drawn()[..., :1], 3, axis=2)
        assert np.array_equal(picture.rgb, expected)
        assert (picture.alpha is not None) == (channels in (2, 4))
    big_endian = samples[..., :3].astype(">u2").tobytes()
    with pytest.warns(L2CWarning, match="16-bit"):
        picture = load_picture(b"P6 20 13 65535\n" + big_endian)
    assert picture.bit_depth == 16
    assert np.array_equal(picture.rgb, drawn())


def test_16_bit_transparent_colours() -> None:
    samples = drawn(channels=3).astype(np.uint16) * 257
    with pytest.warns(L2CWarning, match="16-bit"):
        grey = load_picture(png_16(0, samples[..., :1], samples[2, 3, :1].astype(">u2").tobytes()))
    assert grey.alpha is not None
    assert np.array_equal(grey.alpha == 0, samples[..., 0] == samples[2, 3, 0])
    with pytest.warns(L2CWarning) as caught:
        colour = load_picture(png_16(2, samples, samples[2, 3].astype(">u2").tobytes()))
    assert colour.alpha is None
    assert [str(warning.message) for warning in caught] == list(colour.warnings)
    assert colour.warnings == (
        "bytes: 16-bit colour is reduced to 8 bits",
        "bytes: the transparent colour of a 16-bit picture is not kept",
    )


def test_integer_and_float_images() -> None:
    for bad in (np.full((2, 2), -1), np.full((2, 2), 65536)):
        with pytest.raises(ImageError, match=r"expected 0..65535"):
            load_picture(Image.fromarray(bad.astype(np.int32)))
    levels = drawn()[..., 0]
    for scale in (1, 255):
        with pytest.warns(L2CWarning, match="floating-point grey"):
            picture = load_picture(Image.fromarray((levels / scale).astype(np.float32)))
        assert (picture.mode, picture.bit_depth) == ("F", 32)
        assert np.array_equal(picture.rgb[..., 0], levels)
    for value, message in (
        (np.nan, "NaN"),
        (np.inf, "infinity"),
        (-0.1, "expected 0..1 or 0..255"),
        (255.5, "255.5"),
    ):
        with pytest.raises(ImageError, match=message):
            load_picture(Image.fromarray(np.full((2, 2), value, np.float32)))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("planar", [1, 2])
def test_tiff_whose_zero_is_white(bits: int, photometric: int, planar: int) -> None:
    levels = drawn(channels=1)
    stored = levels if photometric else 255 - levels
    samples = stored if bits == 8 else stored.astype(np.uint16) * 257
    data = tiff(samples, photometric, planar=planar)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "bytes: 16-bit grey", L2CWarning)
        picture = load_picture(data)
    assert np.array_equal(picture.rgb[..., 0], levels[..., 0])
    assert picture.bit_depth == bits
    if planar == 1:  # as a compressed file, which libtiff reads
        image = Image.open(io.BytesIO(data))
        assert image.mode == {8: "L", 16: "I;16"}[bits]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "PIL image: 16-bit grey", L2CWarning)
            assert np.array_equal(load_picture(image).rgb[..., 0], levels[..., 0])


def test_float_tiff_whose_zero_is_white() -> None:
    levels = drawn(channels=1)
    for scale in (1.0, 255.0):
        with pytest.warns(L2CWarning, match="floating-point"):
            picture = load_picture(tiff(((255 - levels) / 255 * scale).astype(np.float32), 0, form=3))
        assert np.array_equal(picture.rgb[..., 0], levels[..., 0])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_planar_tiff(dtype: type, order: str) -> None:
    colours = drawn()
    samples = colours.astype(dtype) * (257 if dtype == np.uint16 else 1)
    data = tiff(samples, 2, planar=2, order=order)
    if dtype == np.uint8:
        assert np.array_equal(load_picture(data).rgb, colours)
        return
    for source in (data, io.BytesIO(data)):
        with pytest.warns(L2CWarning, match="16-bit colour is reduced"):
            picture = load_picture(source)
        assert (picture.bit_depth, picture.mode) == (16, "RGB")
        assert np.array_equal(picture.rgb, colours)
    assert TiffImagePlugin.READ_LIBTIFF is False
    with pytest.raises(ImageError, match="planes Pillow misreads"):
        load_picture(Image.open(io.BytesIO(data)))


def test_12_bit_tiff() -> None:
    samples = np.array([[[0], [1], [2048], [4095]]], np.uint16)
    with pytest.warns(L2CWarning, match="12-bit grey"):
        picture = load_picture(tiff(samples, 1, bits=12))
    assert picture.rgb[0, :, 0].tolist() == [0, 0, 128, 255]
    assert picture.bit_depth == 12


def test_tiff_layouts_that_are_refused_by_name() -> None:
    with pytest.raises(ImageError, match="signed 8-bit"):
        load_picture(tiff(drawn(channels=1), 1, form=2))
    with pytest.raises(ImageError, match=r"TIFF file that Pillow cannot read .*BitsPerSample \(32, 32, 32\)"):
        load_picture(tiff(drawn().astype(np.float32), 2, form=3))


def test_float_pictures_a_little_outside() -> None:
    levels = drawn(channels=1)[..., 0]
    grey = (levels / 255).astype(np.float32)
    grey[0, 0], grey[0, 1] = 1.0009, -0.0009
    expected = levels.copy()
    expected[0, 0], expected[0, 1] = 255, 0
    with pytest.warns(L2CWarning, match=r"read as 0..1,"):
        assert np.array_equal(load_picture(tiff(grey[..., None], 1, form=3)).rgb[..., 0], expected)
    for kind in (np.float32, np.float64):
        assert np.array_equal(load_picture(grey.astype(kind)).rgb[..., 0], expected)
    assert (load_picture(torch.full((3, 4, 4), 1 + 1e-7, dtype=torch.float64)).rgb == 255).all()
    with pytest.raises(ImageError, match=r"from 1\.002"):
        load_picture(np.full((4, 4), 1.002))
    grey[0, 0] = 1.02
    with pytest.raises(ImageError, match=r"may be meant as 0..1 \(overexposed\) or 0..255"):
        load_picture(tiff(grey[..., None], 1, form=3))
    with pytest.warns(L2CWarning, match=r"read as 0..255"):  # whole numbers are levels
        assert load_picture(tiff(np.full((2, 2, 1), 3, np.float32), 1, form=3)).rgb[0, 0, 0] == 3


# ----------------------------------------------------------------------------------------- arrays and tensors


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "f2", "f4", "f8", ">f4"])
def test_arrays(channels: int, dtype: str) -> None:
    levels = drawn(channels=max(channels, 1))
    levels = levels if channels else levels[..., 0]
    kind = np.dtype(dtype)
    if kind.kind == "f":
        array = (levels / 255).astype(kind)
    else:
        array = (levels.astype(np.uint32) * (257 if kind.itemsize == 2 else 1)).astype(kind)
    if kind.itemsize == 2 and kind.kind == "u":
        with pytest.warns(L2CWarning, match="16-bit colour"):
            picture = load_picture(array)
    else:
        picture = load_picture(array)
    planes = levels if channels else levels[..., None]
    assert np.array_equal(picture.rgb, np.repeat(planes[..., :1], 3, axis=2) if channels < 3 else planes[..., :3])
    assert picture.rgb.flags.c_contiguous
    assert picture.bit_depth == 8 * kind.itemsize
    assert picture.mode in bitstream.MODES
    if channels in (2, 4):
        assert picture.alpha is not None
        assert picture.alpha.dtype == (np.uint16 if dtype.endswith("u2") else np.uint8)
        assert np.array_equal(picture.alpha, array[..., -1] if kind.kind == "u" else levels[..., -1])
    else:
        assert picture.alpha is None
    back = to_original(picture.rgb, picture.alpha, picture.mode)
    assert np.array_equal(back, levels[..., 0] if channels == 1 else levels)


def test_arrays_in_any_layout() -> None:
    array = drawn(26, 40)
    for view in (
        array[::2, ::2],
        array[::-1],
        array.transpose(1, 0, 2),
        np.asfortranarray(array),
        array[..., ::-1],
    ):
        picture = load_picture(view)
        assert picture.rgb.flags.c_contiguous
        assert np.array_equal(picture.rgb, view)
    assert np.shares_memory(load_picture(array).rgb, array)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", ["HW", "1HW", "3HW", "4HW", "HW3", "HW4", "HW2"])
def test_tensors(dtype: torch.dtype, shape: str) -> None:
    channels = int(shape.strip("HW") or 1)
    levels = drawn(channels=channels) if dtype != torch.bfloat16 else drawn(channels=channels) // 128 * 255
    array = levels[..., 0] if shape == "HW" else levels
    tensor = torch.from_numpy(np.moveaxis(array, 2, 0).copy() if shape.endswith("HW") and shape != "HW" else array)
    tensor = tensor if dtype == torch.uint8 else (tensor / 255).to(dtype).requires_grad_()
    picture = load_picture(tensor)
    assert np.array_equal(picture.rgb, np.repeat(levels[..., :1], 3, axis=2) if channels < 3 else levels[..., :3])
    assert (picture.alpha is not None) == (channels in (2, 4))
    if picture.alpha is not None:
        assert np.array_equal(picture.alpha, levels[..., -1])


def test_tensor_layout_rule() -> None:
    assert load_picture(torch.zeros(3, 5, 3, dtype=torch.uint8)).rgb.shape == (5, 3, 3)
    assert load_picture(torch.zeros(5, 3, 3, dtype=torch.uint8)).rgb.shape == (5, 3, 3)
    assert load_picture(torch.zeros(2, 5, 3, dtype=torch.uint8)).rgb.shape == (2, 5, 3)
    with pytest.warns(L2CWarning, match="tensor: 16-bit"):
        assert load_picture(torch.zeros(3, 5, 7, dtype=torch.uint16)).bit_depth == 16
    parameter = torch.nn.Parameter(torch.ones(3, 5, 7))
    assert (load_picture(parameter).rgb == 255).all()


def test_torch_is_not_imported() -> None:
    # The package itself may import torch, so a bare namespace stands in for it.
    code = """if True:
        import sys, types, numpy as np
        package = types.ModuleType("l2c")
        package.__path__ = [sys.argv[1]]
        sys.modules["l2c"] = package
        from l2c.images import load_picture
        assert load_picture(np.zeros((2, 3), np.uint8)).rgb.shape == (2, 3, 3)
        print("torch" in sys.modules)
    """
    folder = str(Path(bitstream.__file__).parent)
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "5 x 0 pixels"),
        (np.zeros((5, 0), np.uint8), "0 x 5 pixels"),
        (np.zeros((4, 4, 0), np.uint8), r"shape \[4, 4, 0\]"),
        (np.zeros((4, 4, 5), np.uint8), r"shape \[4, 4, 5\]"),
        (np.zeros((3, 40, 40), np.uint8), r"shape \[3, 40, 40\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "one picture"),
        (np.zeros(7, np.uint8), r"shape \[7\]"),
        (np.zeros((), np.uint8), r"shape \[\]"),
        (np.zeros((4, 4), bool), "dtype bool"),
        (np.zeros((4, 4), np.int64), "dtype int64"),
        (np.zeros((4, 4), np.int8), "dtype int8"),
        (np.zeros((4, 4), np.uint32), "dtype uint32"),
        (np.zeros((4, 4), complex), "dtype complex128"),
        (np.full((4, 4), None), "dtype object"),
        (np.full((4, 4), "a"), "dtype <U1"),
        (np.full((4, 4, 3), np.nan), "array: contains NaN or infinity"),
        (np.full((4, 4, 3), np.inf), "array: contains NaN or infinity"),
        (np.full((4, 4, 3), -0.0011), "values from -0.0011"),
        (np.full((4, 4, 3), 1.0011), "expected 0..1 for float64"),
        (torch.zeros(4, 4, dtype=torch.bool), "tensor: dtype bool"),
        (torch.zeros(2, 3, 4, 4), r"tensor: shape \[2, 3, 4, 4\]"),
        (torch.full((3, 4, 4), torch.nan), "tensor: contains NaN"),
        (torch.zeros(3, 0, 4), "4 x 0 pixels"),
        (np.array(np.nan, np.float32).reshape(1, 1), "NaN"),
        ([[1, 2], [3, 4]], "list is no picture"),
        (None, "NoneType is no picture"),
        (7, "int is no picture"),
    ],
)
def test_bad_arrays(array: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_picture(array)


# --------------------------------------------------------------------------------- EXIF, orientation and ICC


def exif_with(orientation: int | None, order: str = "MM") -> bytes:
    """EXIF of a description, an orientation, and a block at its end that nothing refers to."""
    mark = "<" if order == "II" else ">"
    entries = [struct.pack(mark + "HHII", 0x010E, 2, 6, 8 + 2 + 24 + 4)]
    if orientation is not None:
        entries.append(struct.pack(mark + "HHIHH", 0x0112, 3, 1, orientation, 0))
    directory = struct.pack(mark + "H", len(entries)) + b"".join(entries)
    start = order.encode() + struct.pack(mark + "HI", 42, 8)
    return (start + directory + bytes(4)).ljust(8 + 2 + 24 + 4, b"\0") + b"sunny\0" + b"maker note at a fixed place"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_orientation_is_applied(format_: str, orientation: int) -> None:
    options: dict[str, Any] = (
        {"tiffinfo": {274: orientation}} if format_ == "TIFF" else {"exif": exif_with(orientation)}
    )
    if format_ in ("JPEG", "WEBP"):
        options["exif"] = b"Exif\0\0" + options["exif"]
    data = encoded(Image.fromarray(drawn()), format_, **options)
    picture = load_picture(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(picture.rgb, np.asarray(expected))
    assert picture.rgb.shape == ((13, 20, 3) if orientation < 5 else (20, 13, 3))
    assert picture.rgb.flags.c_contiguous
    if format_ in ("PNG", "TIFF"):
        turned = ImageOps.exif_transpose(with_tag(Image.fromarray(drawn()), orientation))
        assert np.array_equal(picture.rgb, np.asarray(turned))
    if format_ == "TIFF":
        return
    assert picture.exif is not None
    tags = Image.Exif()
    tags.load(picture.exif)
    assert tags.get(0x0112, 1) == 1
    assert tags[0x010E] == "sunny"
    if format_ != "AVIF":  # AVIF moves the tag to a property of its own, so Pillow writes EXIF anew
        assert picture.exif == exif_with(1)


def with_tag(image: Image.Image, orientation: int) -> Image.Image:
    """The image, its orientation set."""
    image.getexif()[0x0112] = orientation
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_alpha_and_of_pil_images(orientation: int) -> None:
    four = drawn(channels=4)
    picture = load_picture(with_tag(Image.fromarray(four), orientation))
    expected = np.asarray(ImageOps.exif_transpose(with_tag(Image.fromarray(four), orientation)))
    assert picture.alpha is not None
    assert np.array_equal(np.dstack([picture.rgb, picture.alpha]), expected)
    assert picture.alpha.flags.c_contiguous


@pytest.mark.parametrize("order", ["II", "MM"])
def test_exif_is_kept_to_the_byte(order: str) -> None:
    for orientation in (None, 1, 6):
        exif = exif_with(orientation, order)
        for prefix in (b"", b"Exif\0\0"):
            image = Image.fromarray(drawn())
            image.info["exif"] = prefix + exif
            assert load_picture(image).exif == exif_with(orientation and 1, order)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_means_upright(orientation: int) -> None:
    picture = load_picture(encoded(Image.fromarray(drawn()), "PNG", exif=exif_with(orientation)))
    assert np.array_equal(picture.rgb, drawn())
    assert picture.exif == exif_with(1)


@pytest.mark.parametrize(
    "exif", [b"garbage", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", exif_with(6)[:20]]
)
def test_broken_exif_is_dropped_with_a_warning(exif: bytes) -> None:
    image = Image.fromarray(drawn())
    image.info["exif"] = b"Exif\0\0" + exif
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        picture = load_picture(image)
    assert picture.exif is None
    assert "EXIF cannot be read" in str([warning.message for warning in caught])
    assert np.array_equal(picture.rgb, drawn())


def test_exif_of_tiff_keeps_the_photograph_only() -> None:
    tags = Image.Exif()
    tags[0x010E], tags[0x010F] = "sunny", "maker"
    tags.get_ifd(0x8769)[0x829A] = 0.5
    data = encoded(Image.fromarray(drawn()), "TIFF", exif=tags.tobytes())
    picture = load_picture(data)
    assert picture.exif is not None
    kept = Image.Exif()
    kept.load(picture.exif)
    assert (kept[0x010E], kept[0x010F], kept[0x0112]) == ("sunny", "maker", 1)
    assert kept.get_ifd(0x8769) == {0x829A: 0.5}
    assert 0x0111 not in kept  # StripOffsets
    plain = load_picture(encoded(Image.fromarray(drawn()), "TIFF"))
    assert plain.exif is None


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_icc_is_kept(format_: str, tmp_path: Path) -> None:
    picture = load_picture(encoded(Image.fromarray(drawn()), format_, icc_profile=SRGB))
    assert picture.icc == SRGB
    path = tmp_path / f"out.{format_.lower()}"
    save_picture(path, picture.rgb, icc=picture.icc, exif=exif_with(1))
    back = load_picture(path)
    assert back.icc == SRGB
    assert back.exif is not None
    assert b"sunny" in back.exif


def photograph_exif(order: str, thumbnail: bool = True, doubled: bool = False) -> bytes:
    """EXIF as cameras write it: turned by 90 degrees, sizes in pixels, GPS, maker note, thumbnail at the end."""
    mark = "<" if order == "II" else ">"

    def directory(start: int, entries: list[tuple[int, int, int, bytes]], following: int) -> bytes:
        head = struct.pack(mark + "H", len(entries))
        for tag, type_, count, value in entries:
            head += struct.pack(mark + "HHI", tag, type_, count) + value.ljust(4, b"\0")
        return head + struct.pack(mark + "I", following)

    def long(value: int) -> bytes:
        return struct.pack(mark + "I", value)

    def short(value: int) -> bytes:
        return struct.pack(mark + "H", value)

    maker, jpeg = b"maker note", b"\xff\xd8 small picture \xff\xd9"
    main_at, exif_at = 8, 8 + 2 + 12 * 5 + 4
    gps_at = exif_at + 2 + 12 * 3 + 4
    maker_at = gps_at + 2 + 12 * 1 + 4
    second_at = maker_at + len(maker)
    jpeg_at = second_at + 2 + 12 * 2 + 4
    main = directory(
        main_at,
        [
            (0x0100, 3, 1, short(20)),
            (0x0101, 4, 1, long(13)),
            (0x0112, 3, 1, short(6)),
            (0x8769, 4, 1, long(exif_at)),
            (0x8825, 4, 1, long(gps_at)),
        ],
        second_at if thumbnail else 0,
    )
    below = directory(
        exif_at,
        [(0x927C, 7, len(maker), long(maker_at)), (0xA002, 4, 1, long(20)), (0xA003, 3, 1, short(13))],
        0,
    )
    gps = directory(gps_at, [(1, 2, 2, b"N\0")], 0)
    second = directory(second_at, [(0x0201, 4, 1, long(jpeg_at)), (0x0202, 4, 1, long(len(jpeg)))], 0)
    block = order.encode() + struct.pack(mark + "HI", 42, 8) + main + below + gps + maker
    return (b"Exif\0\0" if doubled else b"") + block + (second + jpeg if thumbnail else b"")


def tags_of(exif: bytes | None) -> Image.Exif:
    assert exif is not None
    tags = Image.Exif()
    tags.load(exif)
    return tags


@pytest.mark.parametrize("order", ["II", "MM"])
def test_a_doubled_exif_header_still_turns(order: str) -> None:
    for exif in (exif_with(6, order), b"Exif\0\0" + exif_with(6, order)):
        picture = load_picture(encoded(Image.fromarray(drawn()), "JPEG", exif=b"Exif\0\0" + exif, quality=100))
        assert picture.rgb.shape == (20, 13, 3)
        assert picture.exif == exif_with(1, order)


def test_an_orientation_that_was_read_is_applied_though_the_rest_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    image = with_tag(Image.fromarray(drawn()), 6)
    image.info["exif"] = b"Exif\0\0no TIFF structure"
    monkeypatch.setattr(image, "getexif", lambda: {0x0112: 6})
    with pytest.warns(L2CWarning, match="EXIF cannot be read"):
        picture = load_picture(image)
    assert picture.exif is None
    assert np.array_equal(picture.rgb, np.rot90(drawn(), -1))


@pytest.mark.parametrize("order", ["II", "MM"])
def test_exif_lies_as_the_turned_picture(order: str) -> None:
    exif = photograph_exif(order)
    picture = load_picture(encoded(Image.fromarray(drawn()), "PNG", exif=exif))
    tags = tags_of(picture.exif)
    assert (picture.width, picture.height, tags[0x0112]) == (13, 20, 1)
    assert (tags[0x0100], tags[0x0101]) == (13, 20)
    below = tags.get_ifd(0x8769)
    assert (below[0xA002], below[0xA003], below[0x927C]) == (13, 20, b"maker note")
    assert tags.get_ifd(0x8825) == {1: "N"}
    assert tags.get_ifd(1) == {}  # Pillow's name for the thumbnail's directory
    assert b"small picture" not in (picture.exif or b"")
    assert exif.index(b"maker note") == (picture.exif or b"").index(b"maker note")
    straight = Image.fromarray(drawn())
    straight.info["exif"] = load_picture(encoded(straight, "PNG", exif=photograph_exif(order, False))).exif
    assert load_picture(straight).exif == straight.info["exif"]


def test_a_thumbnail_of_an_upright_picture_stays() -> None:
    exif = bytearray(photograph_exif("II"))
    at = exif.index(struct.pack("<HHIH", 0x0112, 3, 1, 6))
    struct.pack_into("<H", exif, at + 8, 1)
    picture = load_picture(encoded(Image.fromarray(drawn()), "PNG", exif=bytes(exif)))
    assert picture.exif == bytes(exif)


def test_sub_directories_of_exif_go_into_tiff(tmp_path: Path) -> None:
    for order in ("II", "MM"):
        picture = load_picture(encoded(Image.fromarray(drawn()), "PNG", exif=photograph_exif(order)))
        for compression in ({}, {"compression": "raw"}):
            path = tmp_path / "out.tif"
            save_picture(path, picture.rgb, exif=picture.exif, xmp=b"<x/>", icc=SRGB, options=compression)
            with Image.open(path) as image:
                tags = image.getexif()
                assert tags.get_ifd(0x8769)[0xA002] == 13
                assert tags.get_ifd(0x8769)[0x927C] == b"maker note"
                assert tags.get_ifd(0x8825) == {1: "N"}
            back = load_picture(path)
            assert np.array_equal(back.rgb, picture.rgb)
            assert (back.icc, back.xmp) == (SRGB, b"<x/>")
            assert tags_of(back.exif).get_ifd(0x8825) == {1: "N"}


def test_exif_that_tiff_cannot_hold_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = exif_with(1)
    real = Image.Image.save

    def picky(self: Image.Image, fp: Any, format: str, **options: Any) -> None:
        if 0x0112 in options.get("tiffinfo", {}):
            raise RuntimeError("Error setting from dictionary")
        real(self, fp, format, **options)

    monkeypatch.setattr(Image.Image, "save", picky)
    with pytest.warns(L2CWarning, match="some EXIF tags cannot be written"):
        save_picture(tmp_path / "out.tif", drawn(), exif=exif)
    assert tags_of(load_picture(tmp_path / "out.tif").exif)[0x010E] == "sunny"


@pytest.mark.parametrize("size", range(8, 200, 7))
def test_cut_exif_never_crashes(size: int) -> None:
    image = Image.fromarray(drawn())
    image.info["exif"] = photograph_exif("MM")[:size]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = load_picture(image)
    assert picture.rgb.shape in ((13, 20, 3), (20, 13, 3))


def test_hostile_exif_and_jpeg_take_no_time() -> None:
    image = Image.fromarray(drawn())
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    itself = struct.pack("<HHII", 0x8769, 4, 1, 8)  # the Exif directory is the first one, 65534 times
    image.info["exif"] = b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + turned + itself * 65534 + bytes(4)
    start = time.perf_counter()
    assert load_picture(image).rgb.shape == (20, 13, 3)
    for filling in (b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\xda\0\2"):
        with pytest.raises(ImageError):
            load_picture(b"\xff\xd8" + filling * 200_000)
    assert time.perf_counter() - start < 30


# ---------------------------------------------------------------------------- gamma, chromaticities, code points


def shown(picture: Picture) -> np.ndarray:
    """What a viewer that knows profiles shows, int [H, W, 3]."""
    assert picture.icc is not None
    image = Image.fromarray(picture.rgb)
    grey = profiles.colour_space(picture.icc) == "GRAY"
    colours = profiles.to_srgb(image.convert("L") if grey else image, picture.icc)
    assert colours is not None
    return colours.astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA"])
def test_gamma_becomes_a_profile(mode: str) -> None:
    image = Image.fromarray(drawn(channels=4)).convert(mode)
    data = with_chunks(plain_png(image), gama(1.0))
    picture = load_picture(data)
    linear = picture.rgb / 255
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(shown(picture) - 255 * srgb).max() <= 2
    assert profiles.colour_space(picture.icc or b"") == ("GRAY" if mode in ("L", "LA") else "RGB")
    assert len(picture.icc or b"") < 520
    assert picture.icc == load_picture(data).icc


def test_gamma_near_srgb_needs_no_profile() -> None:
    png = plain_png(Image.fromarray(drawn()))
    for chunks in (
        [gama(0.45455)],
        [gama(0.4545), chrm(profiles.SRGB)],
        [(b"sRGB", b"\0"), gama(1.0), chrm(P3)],
        [(b"cICP", bytes([1, 13, 0, 1])), gama(1.0)],
    ):
        assert load_picture(with_chunks(png, *chunks)).icc is None


def test_chromaticities_become_a_profile() -> None:
    red = plain_png(Image.new("RGB", (4, 4), (200, 100, 100)))
    x, y = 0.680, 0.320  # of P3's red, which lies outside sRGB
    for chunks in ([chrm(P3)], [gama(0.45455), chrm(P3)], [(b"cICP", bytes([12, 13, 0, 1]))]):
        picture = load_picture(with_chunks(red, *chunks))
        assert (picture.rgb == [200, 100, 100]).all()
        assert np.abs(shown(picture)[0, 0] - [215, 93, 97]).max() <= 2  # by the matrix from P3 to BT.709
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.icc or b"")).profile
        adapted = np.array(profile.chromatic_adaptation[0])
        native = np.linalg.inv(adapted) @ np.array(profile.red_colorant[0])
        assert np.abs(native[:2] / native.sum() - [x, y]).max() < 1e-3


def test_precedence_of_what_a_png_says_about_colour() -> None:
    own = profiles.rgb_profile((1.8,), profiles.SRGB)
    embedded = b"iCCP", b"own\0\0" + zlib.compress(own)
    png = plain_png(Image.fromarray(drawn()))
    assert load_picture(with_chunks(png, gama(1.0), chrm(P3), embedded)).icc == own
    over = load_picture(with_chunks(png, embedded, (b"cICP", bytes([12, 13, 0, 1])))).icc
    assert over == profiles.rgb_profile(profiles.SRGB_CURVE, P3)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused_by_name(transfer: int, name: str) -> None:
    png = with_chunks(plain_png(Image.fromarray(drawn())), (b"cICP", bytes([9, transfer, 0, 1])))
    with pytest.raises(UnsupportedError, match=rf"bytes: its colours are {name} .*tone mapping"):
        load_picture(png)
    avif = encoded(Image.fromarray(drawn()), "AVIF")
    at = avif.index(b"colrnclx") + 8
    with pytest.raises(UnsupportedError, match=name):
        load_picture(avif[:at] + struct.pack(">HH", 9, transfer) + avif[at + 4 :])


def test_other_code_points() -> None:
    png = plain_png(Image.fromarray(drawn()))
    with pytest.raises(UnsupportedError, match="narrow"):
        load_picture(with_chunks(png, (b"cICP", bytes([1, 1, 0, 0]))))
    with pytest.warns(L2CWarning, match="code points 2/2/0 is not understood"):
        assert load_picture(with_chunks(png, (b"cICP", bytes([2, 2, 0, 1])))).icc is None
    for transfer in (1, 4, 5, 6, 8, 14, 15):
        assert load_picture(with_chunks(png, (b"cICP", bytes([9, transfer, 0, 1])))).icc is not None
    assert load_picture(with_chunks(png, (b"cICP", b"\1"))).icc is None
    wide = encoded(Image.fromarray(drawn()), "AVIF")
    at = wide.index(b"colrnclx") + 8
    picture = load_picture(wide[:at] + struct.pack(">HH", 12, 13) + wide[at + 4 :])
    assert picture.icc == profiles.rgb_profile(profiles.SRGB_CURVE, P3)


@pytest.mark.parametrize(
    "chunk",
    [
        gama(0),
        gama(0.001),
        gama(42000),
        chrm((0.3, 0.0, *P3[2:])),
        chrm((0.3127, 0.329, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4)),
        chrm((0.9, 0.05, *P3[2:])),
        chrm((0.2, 0.75, *P3[2:])),
        chrm((0.0,) * 8),
        (b"cHRM", b"\xff" * 32),
    ],
)
def test_impossible_gamma_and_chromaticities(chunk: tuple[bytes, bytes]) -> None:
    with pytest.warns(L2CWarning, match="gAMA or cHRM states"):
        picture = load_picture(with_chunks(plain_png(Image.fromarray(drawn())), chunk))
    assert picture.icc is None
    assert np.array_equal(picture.rgb, drawn())


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".tga", ".jp2", ".gif"])
def test_formats_without_profiles_get_srgb(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    rgb = np.full((8, 8, 3), (100, 150, 50), np.uint8)
    linear = profiles.rgb_profile((1.0,), profiles.SRGB)
    with pytest.warns(L2CWarning, match="holds no ICC profile; the colours are converted to sRGB"):
        save_picture(path, rgb, icc=linear)
    back = load_picture(path)
    assert back.icc is None
    assert np.abs(back.rgb[0, 0].astype(int) - [168, 202, 122]).max() <= 2
    save_picture(path, rgb, icc=SRGB)  # nothing is lost, so nothing is said
    assert np.array_equal(load_picture(path).rgb, rgb)
    with pytest.warns(L2CWarning) as caught:
        save_picture(path, rgb, exif=exif_with(1), xmp=b"<x/>")
    assert [str(warning.message).split(" holds no ")[1] for warning in caught] == ["EXIF, left out", "XMP, left out"]
    if suffix in (".tga", ".jp2"):
        alpha = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
        with pytest.warns(L2CWarning, match="sRGB"):
            save_picture(path, rgb, alpha=alpha, icc=linear)
        assert np.array_equal(load_picture(path).alpha, alpha)


def test_a_grey_profile_in_colour(tmp_path: Path) -> None:
    grey = Image.new("L", (4, 4), 100)
    picture = load_picture(with_chunks(plain_png(grey), gama(1.0)))
    with pytest.warns(L2CWarning, match="GRAY ICC profile does not fit a colour picture; the colours are converted"):
        save_picture(tmp_path / "out.png", picture.rgb, icc=picture.icc)
    back = load_picture(tmp_path / "out.png")
    assert (back.icc, back.mode) == (None, "RGB")
    assert np.abs(back.rgb.astype(int) - 168).max() <= 2
    image = with_metadata(to_pil(picture.rgb, None, "RGB"), icc=picture.icc)
    assert "icc_profile" not in image.info
    assert np.abs(np.asarray(image, int) - 168).max() <= 2
    image = with_metadata(
        to_pil(picture.rgb, None, "L"), icc=picture.icc, xmp=b"<x/>", dpi=(300, 300), exif=exif_with(1)
    )
    assert image.info == {
        "icc_profile": picture.icc,
        "xmp": b"<x/>",
        "dpi": (300, 300),
        "exif": b"Exif\0\0" + exif_with(1),
    }


# ------------------------------------------------------------------------------------- XMP, dots per inch, words

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" exif:PixelXDimension="20"/></x:xmpmeta>'
)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_xmp_and_dpi_are_kept(format_: str, tmp_path: Path) -> None:
    xmp = XMP.replace(b'"6"', b'"1"')
    path = tmp_path / f"out.{format_.lower()}"
    holds_dpi = format_ in ("JPEG", "PNG", "TIFF")
    dpi = (300.0, 150.0) if holds_dpi else None
    save_picture(path, drawn(), xmp=xmp, exif=exif_with(1), dpi=dpi)
    back = load_picture(path)
    assert back.xmp == xmp
    assert b"sunny" in (back.exif or b"")
    if dpi is None:
        with pytest.warns(L2CWarning, match="no dots per inch"):
            save_picture(path, drawn(), dpi=(300.0, 150.0))
        return
    assert np.allclose(back.dpi or (), dpi, atol=0.02)
    again = tmp_path / "again.png"
    save_picture(again, back.rgb, dpi=back.dpi)
    assert np.allclose(load_picture(again).dpi or (), dpi, atol=0.02)


def test_xmp_and_dpi_of_a_turned_picture() -> None:
    for xmp in (XMP, XMP.replace(b'tiff:Orientation="6"', b"><tiff:Orientation>6</tiff:Orientation")):
        picture = load_picture(encoded(Image.fromarray(drawn()), "JPEG", xmp=xmp, dpi=(300, 150), quality=100))
        assert picture.rgb.shape == (20, 13, 3)  # Pillow takes the orientation from there, too
        assert picture.xmp == xmp.replace(b"6", b"1").replace(b'"20"', b'"13"')
        assert picture.dpi == (150, 300)


def test_dpi_that_says_nothing() -> None:
    for options in ({"dpi": (72, 72)}, {}, {"exif": b"Exif\0\0" + exif_with(1)}):
        assert load_picture(encoded(Image.fromarray(drawn()), "JPEG", **options)).dpi is None
    for bad in ((0, 0), (-1, 5), (float("nan"),) * 2, "many", (1e9, 1), None, (1,)):
        image = Image.fromarray(drawn())
        image.info["dpi"] = bad
        assert load_picture(image).dpi is None
    only = load_picture(encoded(Image.fromarray(drawn()), "TIFF", dpi=(300, 300)))
    assert (only.dpi, only.exif) == ((300, 300), None)


def test_what_is_too_large_for_jpeg_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "out.jpg"
    with pytest.warns(L2CWarning, match="of XMP are more than a JPEG file holds"):
        save_picture(path, drawn(), xmp=b"x" * 65505)
    save_picture(path, drawn(), xmp=b"x" * 65504)
    assert load_picture(path).xmp == b"x" * 65504
    with pytest.warns(L2CWarning, match="no dots per inch"):
        save_picture(path, drawn(), dpi=(400000, 400000))


def test_words_that_are_dropped_are_named() -> None:
    photograph = encoded(Image.fromarray(drawn()), "JPEG", comment=b"by hand")
    resource = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", 6) + b"words\0"
    photograph = photograph[:2] + b"\xff\xed" + struct.pack(">H", 2 + len(resource)) + resource + photograph[2:]
    with pytest.warns(L2CWarning, match="bytes: IPTC and a comment are not kept"):
        load_picture(photograph)
    extended = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)
    with pytest.warns(L2CWarning, match="extended XMP is not kept"):
        plain = encoded(Image.fromarray(drawn()), "JPEG")
        load_picture(plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(extended)) + extended + plain[2:])
    texts = PngImagePlugin.PngInfo()
    for name in ("Title", "Software", "Author", "Rights", "Place"):
        texts.add_text(name, "text", zip=name == "Author")
    with pytest.warns(L2CWarning, match=r"text \(Title, Author, Rights, ...\) is not kept"):
        load_picture(encoded(Image.fromarray(drawn()), "PNG", pnginfo=texts))
    load_picture(encoded(Image.fromarray(drawn()), "JPEG", comment=b"Created with GIMP"))


def test_packed_xmp_and_dpi() -> None:
    for xmp in (XMP, b"x", bytes(range(256)) * 9):
        assert unpack_xmp(memoryview(pack_xmp(xmp))) == xmp
        assert unpack_xmp(zlib.compress(xmp, 1)) == xmp  # any zlib stream
    good = pack_xmp(XMP)
    for size in range(len(good)):
        with pytest.raises(BitstreamError, match="XMP"):
            unpack_xmp(good[:size])
    for bad in (good + b"\0", zlib.compress(b""), b"not zlib"):
        with pytest.raises(BitstreamError, match="XMP"):
            unpack_xmp(bad)
    bomb = zlib.compress(bytes(2**28), 1)
    tracemalloc.start()
    with pytest.raises(BitstreamError, match="XMP"):
        unpack_xmp(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**28
    assert pack_dpi((300, 299.9994)) == struct.pack("<II", 3000000, 2999994)
    for dpi in ((300.0, 299.9994), (0.0001, 429496.7294)):
        assert unpack_dpi(pack_dpi(dpi)) == dpi
    for bad in (b"", bytes(8), struct.pack("<II", 1, 0), struct.pack("<III", 1, 1, 1)):
        with pytest.raises(BitstreamError, match="DPI"):
            unpack_dpi(bad)


def test_metadata_choices() -> None:
    linear = profiles.rgb_profile((1.0,), profiles.SRGB)
    rgb = np.full((4, 4, 3), 100, np.uint8)
    alpha = np.full((4, 4), 7, np.uint8)
    full = Picture(rgb, "RGBA", 8, alpha, linear, exif_with(1), (), XMP, (300, 300))
    for everything in (True, "all"):
        assert keep(full, everything) is full
    colour = keep(full, "color")
    assert (colour.icc, colour.exif, colour.xmp, colour.dpi) == (linear, None, None, None)
    assert np.array_equal(colour.rgb, rgb)
    for nothing in (False, "none"):
        bare = keep(full, nothing)
        assert (bare.icc, bare.exif, bare.xmp, bare.dpi) == (None, None, None, None)
        assert np.abs(bare.rgb.astype(int) - 168).max() <= 2
        assert np.array_equal(bare.alpha, alpha)
    assert keep(Picture(rgb, icc=SRGB), False).rgb is rgb
    grey = keep(Picture(rgb, "L", icc=profiles.grey_profile((1.0,))), False)
    assert np.abs(grey.rgb.astype(int) - 168).max() <= 2
    with pytest.warns(L2CWarning, match="ICC profile cannot be applied"):
        assert keep(Picture(rgb, icc=b"junk" * 50), False).icc is None
    for bad in ("colour", None, 2):
        with pytest.raises(UnsupportedError, match="choose 'all'"):
            keep(full, bad)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- sources and faults


def test_every_kind_of_source(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(drawn()), "PNG")
    path = tmp_path / "picture without extension"
    path.write_bytes(data)
    image = Image.open(io.BytesIO(data))
    stream = io.BytesIO(b"before" + data)
    stream.seek(6)
    with open(path, "rb") as file:
        for source in (path, str(path), data, bytearray(data), memoryview(data), stream, file, image):
            assert np.array_equal(load_picture(source).rgb, drawn())


def test_pil_image_is_not_changed() -> None:
    image = with_tag(Image.fromarray(drawn(channels=4)), 6)
    before = (image.mode, image.size, image.tobytes(), dict(image.info), dict(image.getexif()))
    load_picture(image)
    assert (image.mode, image.size, image.tobytes(), dict(image.info), dict(image.getexif())) == before


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_animations_give_their_first_frame(format_: str) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (20, 120, 220)]
    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
    with pytest.warns(L2CWarning, match="bytes: holds several pictures, only the first one is used"):
        picture = load_picture(data)
    assert np.abs(picture.rgb.astype(int) - 20).max() <= 3
    image = Image.open(io.BytesIO(data))
    image.seek(1)
    with pytest.warns(L2CWarning, match="only the current one"):
        picture = load_picture(image)
    assert np.abs(picture.rgb.astype(int) - 120).max() <= 3


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "PPM"])
def test_truncated_files(format_: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format_)
    path = tmp_path / "cut"
    for size in (0, 1, 10, 30, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        path.write_bytes(data[:size])
        with pytest.raises(ImageError) as caught:
            load_picture(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_altered_files_raise_our_errors_only(format_: str) -> None:
    data = encoded(Image.fromarray(drawn()), format_)
    random = np.random.default_rng(2)
    for _ in range(60):
        altered = bytearray(data)
        for place in random.integers(0, min(len(data), 200), 3):
            altered[place] = random.integers(0, 256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                picture = load_picture(bytes(altered), max_pixels=10**6)
            except L2CError as error:
                assert "\n" not in str(error)
            else:
                assert picture.rgb.ndim == 3


def test_unreadable_sources(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png: No such file or directory"):
        load_picture(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="Is a directory"):
        load_picture(tmp_path)
    with pytest.raises(ImageError, match="null"):
        load_picture("a\0b.png")
    text = tmp_path / "text.png"
    text.write_text("this is no picture")
    with pytest.raises(ImageError, match=r"text\.png: not a picture"):
        load_picture(text)
    with open(text) as file, pytest.raises(ImageError, match="binary mode"):
        load_picture(file)
    with pytest.raises(ImageError, match="0 x 5 pixels"):
        load_picture(Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match="EPS is not read"):
        load_picture(encoded(Image.fromarray(drawn()), "EPS"))


def test_pixel_limits_too_low_and_just_enough() -> None:
    image = Image.fromarray(drawn())
    for source in (encoded(image, "PNG"), image, drawn(), torch.zeros(3, 13, 20)):
        assert load_picture(source, max_pixels=260).width == 20
        assert load_picture(source, max_pixels=None).width == 20
        with pytest.raises(LimitError, match=r"20 x 13 pixels, the limit is 259"):
            load_picture(source, max_pixels=259)


def test_our_limit_takes_the_place_of_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bitstream.Limits().max_pixels == MAX_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.fromarray(drawn()), "PNG")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    assert np.array_equal(load_picture(data).rgb, drawn())
    assert Image.MAX_IMAGE_PIXELS == 100


def test_decompression_bomb_costs_no_memory() -> None:
    bomb = png_16(2, np.zeros((1, 1, 3), np.uint16))
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = bomb[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + bomb[33:]
    tracemalloc.start()
    with pytest.raises(LimitError, match="60000 x 60000 pixels"):
        load_picture(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_long_texts_of_png_files() -> None:
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    png = plain_png(Image.fromarray(drawn()))
    text = b"a" * 3_000_000
    packet = b"<x>" + text + b"</x>"
    for end in (False, True):
        with pytest.warns(L2CWarning, match=r"text \(Comment\) is not kept"):
            picture = load_picture(with_chunks(png, (b"zTXt", b"Comment\0\0" + zlib.compress(text)), end=end))
        assert np.array_equal(picture.rgb, drawn())
        international = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet)
        assert load_picture(with_chunks(png, (b"iTXt", international), end=end)).xmp == packet
    profile = SRGB + bytes(2_000_000)
    assert load_picture(with_chunks(png, (b"iCCP", b"big\0\0" + zlib.compress(profile)))).icc == profile
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


@pytest.mark.parametrize("end", [False, True])
def test_text_bombs_are_refused(end: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    png = plain_png(Image.fromarray(drawn()))
    monkeypatch.setattr("l2c.images.MAX_TEXT_BYTES", 2_000_000)
    bomb = b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000))
    many = b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_500_000))
    tracemalloc.start()
    for chunks in ([bomb], [many, many]):
        with pytest.raises(LimitError, match="bytes: more than 2000000 bytes of text"):
            load_picture(with_chunks(png, *chunks, end=end))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16_000_000


def smooth(height: int = 48, width: int = 64) -> Image.Image:
    """A picture with detail that a JPEG file spends bytes on."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(5).integers(0, 60, (height, width, 3))
    return Image.fromarray((np.dstack([2 * y, 3 * x, y + x]) % 190 + noise).astype(np.uint8))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_its_end_marker(progressive: bool, mode: str) -> None:
    whole = encoded(smooth().convert(mode), "JPEG", progressive=progressive, quality=90)
    expected = load_picture(whole).rgb
    assert whole.endswith(b"\xff\xd9")
    for cut in (1, 2):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "bytes: lacks its end marker", L2CWarning)
            assert np.array_equal(load_picture(whole[:-cut]).rgb, expected)
    if progressive:
        with pytest.warns(L2CWarning, match="bytes: lacks its end marker, nothing else is missing"):
            assert load_picture(whole[:-2]).warnings != ()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_really_cut_stays_an_error(progressive: bool) -> None:
    whole = encoded(smooth(), "JPEG", progressive=progressive, quality=90)
    scans = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    assert (len(scans) > 1) == progressive
    before_tables = [whole.rindex(b"\xff\xc4", 0, at) for at in scans[1:]]  # cut between two scans
    for size in (*(len(whole) - cut for cut in (3, 4, 10, 100, 1000)), *scans[1:], *before_tables):
        with pytest.raises(ImageError, match="cannot be read"):
            load_picture(whole[:size])
    flat = encoded(Image.new("RGB", (64, 64), "white"), "JPEG", progressive=progressive)
    with pytest.raises(ImageError):
        load_picture(flat[: len(flat) - 8])


def load_quietly(source: Any) -> Picture:
    """What there is of a picture, without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", L2CWarning)
        return load_picture(source, truncated=True)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "PPM"])
def test_truncated_pictures_where_they_are_allowed(format_: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format_, **({"interlace": 0} if format_ == "GIF" else {}))
    whole = load_picture(data, truncated=True)  # nothing to say
    assert whole.warnings == ()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(ImageError):
        load_picture(cut)
    with Image.open(cut) as image:
        assert np.array_equal(load_picture(image, truncated=True).rgb, load_quietly(cut).rgb)
    for source in (cut, cut.read_bytes()):
        with pytest.warns(L2CWarning, match="cut off or damaged"):
            picture = load_picture(source, truncated=True)
        rows = slice(None, None, -1 if format_ == "BMP" else 1)  # BMP starts at the bottom
        assert np.array_equal(picture.rgb[rows][:20], whole.rgb[rows][:20])
        assert not np.array_equal(picture.rgb[rows][-5:], whole.rgb[rows][-5:])
        assert "cut off" in picture.warnings[0]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    with pytest.raises(ImageError):
        load_picture(data[:10], truncated=True)


def test_a_truncated_progressive_jpeg() -> None:
    data = encoded(smooth(), "JPEG", progressive=True, quality=90)
    with pytest.warns(L2CWarning, match="bytes: cut off or damaged"):
        picture = load_picture(data[: len(data) * 3 // 4], truncated=True)
    assert np.abs(picture.rgb.astype(int) - np.asarray(smooth())).mean() < 40


def test_truncated_pictures_do_not_pass_in_other_threads() -> None:
    data = encoded(smooth(400, 400), "PNG")
    cut = data[: len(data) // 2]
    wrong: list[object] = []

    def strict() -> None:
        for _ in range(40):
            with contextlib.suppress(ImageError):
                wrong.append(load_picture(cut))

    threads = [threading.Thread(target=strict) for _ in range(2)]
    for thread in threads:
        thread.start()
    with pytest.warns(L2CWarning):
        for _ in range(40):
            load_picture(cut, truncated=True)
    for thread in threads:
        thread.join()
    assert wrong == []
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


# ---------------------------------------------------------------------------------------------- alpha planes


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
    )
)
def test_alpha_round_trip(alpha: np.ndarray) -> None:
    back = unpack_alpha(pack_alpha(alpha), *alpha.shape)
    assert back.dtype == alpha.dtype
    assert np.array_equal(back, alpha)
    assert back.flags.writeable


def residuals_by_hand(alpha: np.ndarray, method: int) -> list[int]:
    """The residuals of the specification, sample by sample."""
    modulus = 1 << 8 * alpha.dtype.itemsize
    padded = np.pad(alpha.astype(int), ((1, 0), (1, 0)))
    height, width = alpha.shape
    left, up = (int(method in pair) for pair in ((2, 4), (3, 4)))
    return [
        (padded[y, x] - left * padded[y, x - 1] - up * padded[y - 1, x] + left * up * padded[y - 1, x - 1]) % modulus
        for y in range(1, height + 1)
        for x in range(1, width + 1)
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("method", [1, 2, 3, 4])
def test_alpha_against_a_second_writer(method: int, dtype: type) -> None:
    alpha = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (7, 5), dtype=dtype, endpoint=True)
    values = residuals_by_hand(alpha, method)
    raw = bytes(value & 255 for value in values)
    if dtype == np.uint16:
        raw = bytes(value >> 8 for value in values) + raw
    data = bytes([method, np.dtype(dtype).itemsize]) + zlib.compress(raw)
    assert np.array_equal(unpack_alpha(data, 7, 5), alpha)


def test_alpha_methods_are_all_chosen_and_small() -> None:
    noise = np.random.default_rng(4).integers(0, 3, (200, 300))
    planes = {
        0: np.full((200, 300), 255),
        1: noise,
        2: noise.cumsum(axis=1),
        3: noise.cumsum(axis=0),
        4: noise.cumsum(axis=0).cumsum(axis=1),
    }
    for method, plane in planes.items():
        for dtype in (np.uint8, np.uint16):
            alpha = plane.astype(dtype)
            data = pack_alpha(alpha)
            assert data[0] == method
            assert np.array_equal(unpack_alpha(data, 200, 300), alpha)
            assert data == pack_alpha(np.asfortranarray(alpha))
    assert len(pack_alpha(planes[0].astype(np.uint8))) == 3
    y, x = np.mgrid[:200, :300]
    disc = np.clip(100 * (90 - np.hypot(y - 100, x - 150)), 0, 255).astype(np.uint8)
    assert len(pack_alpha(disc)) < len(encoded(Image.fromarray(disc), "PNG", optimize=True))
    full = np.random.default_rng(6).integers(0, 256, (200, 300), dtype=np.uint8)
    assert len(pack_alpha(full)) < 1.002 * full.size


def test_bad_alpha_data() -> None:
    alpha = drawn()[..., 0]
    good = pack_alpha(alpha)
    height, width = alpha.shape
    for size in range(len(good)):
        with pytest.raises(BitstreamError, match="alpha plane"):
            unpack_alpha(good[:size], height, width)
    for data, shape in (
        (good + b"\0", (height, width)),
        (good, (height + 1, width)),
        (good, (height, width - 1)),
        (good, (1, 1)),
        (b"\5" + good[1:], (height, width)),
        (good[:1] + b"\3" + good[2:], (height, width)),
        (b"\0\1", (1, 1)),
        (b"\0\2\xff", (1, 1)),
        (b"\0\1\xff\xff", (1, 1)),
        (b"\1\1not zlib", (1, 1)),
        (b"", (1, 1)),
    ):
        with pytest.raises(BitstreamError, match="alpha plane"):
            unpack_alpha(data, *shape)


def test_alpha_bomb_stays_within_the_plane() -> None:
    bomb = b"\1\1" + zlib.compress(bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(BitstreamError, match="not exactly the 100 bytes"):
        unpack_alpha(bomb, 10, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 1), np.uint8), np.zeros((0, 2), np.uint8), np.zeros((2, 2))])
def test_pack_alpha_refuses(bad: np.ndarray) -> None:
    with pytest.raises(ImageError, match="alpha"):
        pack_alpha(bad)


# -------------------------------------------------------------------------------------------------- output


def test_grey_conversion_is_exact() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(to_original(np.dstack([levels] * 3), None, "L"), levels)
    rgb = drawn()
    red, green, blue = np.moveaxis(rgb.astype(int), 2, 0)
    formula = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    assert np.array_equal(to_original(rgb, None, "L"), formula)


@pytest.mark.parametrize("mode", bitstream.MODES)
def test_every_mode_comes_back(mode: str) -> None:
    grey = mode in ("L", "LA", "1", "I;16", "I", "F")
    alpha = drawn()[..., 1]
    assert to_pil(drawn(), None, mode).mode == ("L" if grey else "RGB")
    assert to_pil(drawn(), alpha, mode).mode == ("LA" if grey else "RGBA")
    assert np.array_equal(to_original(drawn(), alpha, mode)[..., -1], alpha)
    assert to_original(drawn(), None, mode).flags.writeable


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp", ".tif", ".tiff", ".tga", ".jp2"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_lossless_formats_round_trip(suffix: str, mode: str, tmp_path: Path) -> None:
    source = load_picture(Image.fromarray(drawn(channels=4)).convert(mode))
    path = tmp_path / f"out{suffix}"
    save_picture(path, source.rgb, alpha=source.alpha, mode=source.mode)
    back = load_picture(path)
    visible = slice(None) if source.alpha is None else source.alpha > 0  # WebP drops colours nobody sees
    assert np.array_equal(back.rgb[visible], source.rgb[visible])
    if source.alpha is not None:
        assert back.alpha is not None
        assert np.array_equal(back.alpha, source.alpha)
    if suffix != ".webp":
        assert back.mode == mode
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".avif", ".webp"])
def test_lossy_formats(suffix: str, tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64]
    rgb = np.dstack([2 * y + x, 3 * x, 255 - 3 * y]).astype(np.uint8)
    sizes = []
    for quality in (20, 80, None):
        path = tmp_path / f"out{quality}{suffix}"
        save_picture(path, rgb, quality=quality)
        sizes.append(path.stat().st_size)
        back = load_picture(path)
        assert np.abs(back.rgb.astype(int) - rgb).mean() < (8 if quality == 20 else 4)
    assert sizes[0] < sizes[1]


def test_options_reach_pillow() -> None:
    small, large = io.BytesIO(), io.BytesIO()
    save_picture(small, drawn(64, 64), format="png", options={"compress_level": 9})
    save_picture(large, drawn(64, 64), format="PNG", options={"compress_level": 0})
    assert small.tell() < large.tell()
    assert np.array_equal(load_picture(small.getvalue()).rgb, drawn(64, 64))


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".ppm", ".gif"])
def test_formats_without_alpha(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    rgb = np.full((16, 16, 3), 100, np.uint8)
    half = np.full((16, 16), 51, np.uint8)
    with pytest.raises(UnsupportedError, match=rf"out\{suffix}: .* cannot hold the alpha plane"):
        save_picture(path, rgb, alpha=half)
    assert list(tmp_path.iterdir()) == []
    save_picture(path, rgb, alpha=half, flatten=True)
    assert np.abs(load_picture(path).rgb.astype(int) - (100 * 51 + 255 * 204) // 255).max() <= 2
    save_picture(path, rgb, alpha=half, flatten=True, background=(0, 0, 0))
    assert np.abs(load_picture(path).rgb.astype(int) - 20).max() <= 2
    for opaque in (np.full((16, 16), 255, np.uint8), np.full((16, 16), 65535, np.uint16)):
        save_picture(path, rgb, alpha=opaque)
        assert np.abs(load_picture(path).rgb.astype(int) - 100).max() <= 2


def test_what_a_format_cannot_hold_is_warned_about(tmp_path: Path) -> None:
    with pytest.warns(L2CWarning, match="16-bit alpha is written with 8 bits"):
        save_picture(tmp_path / "a.png", drawn(), alpha=np.full((13, 20), 1000, np.uint16))
    back = load_picture(tmp_path / "a.png")
    assert back.alpha is not None
    assert (back.alpha == 4).all()
    grey_profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    with pytest.warns(L2CWarning, match="GRAY ICC profile does not fit"):
        save_picture(tmp_path / "b.png", drawn(), icc=grey_profile)
    assert load_picture(tmp_path / "b.png").icc is None
    save_picture(tmp_path / "c.png", drawn(), icc=grey_profile, mode="L")
    assert load_picture(tmp_path / "c.png").icc == grey_profile
    with pytest.warns(L2CWarning, match="of EXIF are more than a JPEG file holds"):
        save_picture(tmp_path / "d.jpg", drawn(), exif=exif_with(1) + bytes(70000))
    assert load_picture(tmp_path / "d.jpg").exif is None


def test_bad_output(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "a.xyz", "extension '.xyz'"), (tmp_path / "a", "extension ''")):
        with pytest.raises(UnsupportedError, match=message):
            save_picture(path, drawn())
    with pytest.raises(UnsupportedError, match="pass format="):
        save_picture(io.BytesIO(), drawn())
    with pytest.raises(UnsupportedError, match="cannot write NONSENSE"):
        save_picture(io.BytesIO(), drawn(), format="nonsense")
    with pytest.raises(UnsupportedError, match="cannot be written as WEBP"):
        save_picture(tmp_path / "wide.webp", np.zeros((1, 20000, 3), np.uint8))
    bad: list[Any] = [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
    for rgb in bad:
        with pytest.raises(ImageError, match="colours"):
            save_picture(tmp_path / "a.png", rgb)
    with pytest.raises(ImageError, match="alpha"):
        save_picture(tmp_path / "a.png", drawn(), alpha=np.zeros((4, 4), np.uint8))
    with pytest.raises(FileNotFoundError):
        save_picture(tmp_path / "no such folder" / "a.png", drawn())
    assert list(tmp_path.iterdir()) == []


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def failing(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="disk full"):
            save_picture(path, drawn())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    save_picture(path, drawn())
    assert np.array_equal(load_picture(path).rgb, drawn())


def test_write_atomically_follows_links_and_umask(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    long_name = tmp_path / ("n" * 255)
    write_atomically(long_name, b"x")
    assert long_name.read_bytes() == b"x"
    write_atomically("/dev/null", b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_replacing_keeps_permissions(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.write_bytes(b"old")
    path.chmod(0o600)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o4755)
    write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755  # not what a program of another content ran with


@pytest.mark.parametrize("links", ["there", "refused", "unknown"])
def test_a_file_that_came_in_between_is_kept(links: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("this file system has none")

    if links == "refused":
        monkeypatch.setattr(os, "link", no_links)
    if links == "unknown":
        monkeypatch.delattr(os, "link")
    path = tmp_path / "out.png"
    write_atomically(path, b"first", overwrite=False)
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_atomically(path, b"second", overwrite=False)
    with pytest.raises(FileExistsError, match="--overwrite"):
        save_picture(path, drawn(), overwrite=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_lost_colours_are_said(tmp_path: Path) -> None:
    many = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    with pytest.warns(L2CWarning, match="256 colours"):
        save_picture(tmp_path / "many.gif", many)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_picture(tmp_path / "few.gif", many[:4] * 0 + 7)


def test_picture_is_frozen() -> None:
    picture = Picture(drawn())
    with pytest.raises(AttributeError):
        picture.mode = "L"  # type: ignore[misc]
    assert "array" not in repr(picture)


@pytest.mark.parametrize(("bits", "flags"), [(10, 0x40), (12, 0x60)])
def test_the_depth_of_avif_is_known(tmp_path: Path, bits: int, flags: int) -> None:
    """Pillow decodes it to 8 bits and does not say so."""
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    if "AVIF" not in Image.registered_extensions().values():
        pytest.skip("this Pillow reads no AVIF")
    pixels = drawn(64, 96).astype("<u2") * 257
    command = [ffmpeg, "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb48le", "-s", "96x64", "-i", "-"]
    command += ["-frames:v", "1", "-c:v", "libaom-av1", "-still-picture", "1", "-crf", "20"]
    command += ["-pix_fmt", f"yuv444p{bits}le", "-color_range", "pc", str(tmp_path / "a.avif")]
    done = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"ffmpeg writes no {bits}-bit AVIF: {done.stderr.decode()[-200:]}")
    data = (tmp_path / "a.avif").read_bytes()
    assert data[data.index(b"av1C") + 6] & 0x60 == flags
    for source in (data, tmp_path / "a.avif", io.BytesIO(b"before" + data)):
        if isinstance(source, io.BytesIO):
            source.seek(6)
        with pytest.warns(L2CWarning, match=f"{bits}-bit colour is reduced to 8 bits"):
            assert load_picture(source).bit_depth == bits


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("channels", [3, 4])
def test_the_depth_of_jpeg_2000_is_known(boxes: bool, channels: int) -> None:
    image = Image.fromarray(drawn(64, 96, channels))
    data = encoded(image, "JPEG2000", no_jp2=not boxes)
    assert load_picture(data).bit_depth == 8
    deep = bytearray(data)
    at = deep.index(b"\xff\x4f\xff\x51") + 42
    assert deep[at : at + 3 * channels : 3] == bytes([7]) * channels
    deep[at : at + 3 * channels : 3] = bytes([11]) * channels  # 12 bits, so the same picture is darker
    with pytest.warns(L2CWarning, match="12-bit colour is reduced to 8 bits"):
        picture = load_picture(bytes(deep))
    assert picture.bit_depth == 12 and picture.mode == ("RGB", "RGBA")[channels - 3]


@pytest.mark.parametrize("head", [b"\0\0\0\x20ftypavif\0\0av1C", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n", b""])
def test_depths_of_cut_heads(head: bytes) -> None:
    assert images._coded_bits(io.BytesIO(head)) == 8
    for following in (b"\xff" * 50, bytes(50)):
        bits = images._coded_bits(io.BytesIO(head + b"\xff\x4f\xff\x51" + following))
        assert bits == (12 if head.endswith(b"av1C") else 8)
