"""Pictures in and out: every mode, orientation, kind of source and output, what is kept, all bad input."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import sys
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
from PIL import Image, ImageCms, ImageOps

from l2c import bitstream
from l2c.errors import BitstreamError, ImageError, L2CError, LimitError, UnsupportedError
from l2c.images import (
    MAX_PIXELS,
    L2CWarning,
    Picture,
    load_picture,
    pack_alpha,
    save_picture,
    to_original,
    to_pil,
    unpack_alpha,
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
        (np.full((4, 4, 3), -0.001), "values from -0.001"),
        (np.full((4, 4, 3), 1.001), "expected 0..1 for float64"),
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
