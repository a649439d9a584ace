"""L2C files through Pillow, and through what reads with Pillow."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import skimage.data
import skimage.io
from PIL import Image, ImageFile, UnidentifiedImageError
from test_codec import drawn

import l2c
import l2c.pillow
from l2c.errors import L2CWarning
from l2c.format.bitstream import read_header
from l2c.images.listing import picture_suffixes


@pytest.fixture(scope="module", autouse=True)
def codec(tiny_model_path: Path) -> Iterator[l2c.Codec]:
    """What Pillow uses in these tests."""
    made = l2c.Codec(tiny_model_path)
    l2c.pillow.use(made)
    yield made
    l2c.pillow.use(None)


@pytest.fixture
def picture() -> Image.Image:
    """RGBA with a profile, EXIF, XMP and dots per inch."""
    image = Image.fromarray(np.dstack([drawn(120, 161), np.full((120, 161), 200, np.uint8)]))
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", 1
    image.info |= {"exif": exif.tobytes(), "xmp": b"<x:xmpmeta/>", "dpi": (300.0, 300.0)}
    return image


def written(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "L2C", **options)
    return buffer.getvalue()


def test_the_format_is_known() -> None:
    assert Image.registered_extensions()[".l2c"] == "L2C"
    assert Image.MIME["L2C"] == "image/x-l2c" and "L2C" in Image.OPEN and "L2C" in Image.SAVE


def test_a_folder_of_pictures_is_what_it_was() -> None:
    """L2C files are not what `l2c encode DIR` takes, though Pillow reads them now."""
    assert ".l2c" not in picture_suffixes() and ".png" in picture_suffixes()


def test_opening_is_lazy_and_loads_no_torch(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.l2c"
    picture.save(path)
    program = f"""
import sys, time
import l2c.pillow
from PIL import Image
Image.open({str(path)!r}).close()
start = time.perf_counter()
with Image.open({str(path)!r}) as image:
    size = image.size
seconds = time.perf_counter() - start
assert size == (161, 120) and image.mode == "RGBA" and image.format == "L2C", (size, image.mode)
assert image.getexif()[0x010F] == "maker" and image.info["dpi"] == (300, 300) and image.info["xmp"] == b"<x:xmpmeta/>"
assert not {{"torch", "l2c._C"}} & set(sys.modules)
print(seconds)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.02  # 1 ms on a free machine


def test_loading_is_decoding(picture: Image.Image, codec: l2c.Codec, tmp_path: Path) -> None:
    path = tmp_path / "picture.l2c"
    picture.save(path, quality=60)
    data = path.read_bytes()
    expected = codec.decode(data, as_="pil")
    with Image.open(path) as image:
        assert np.array_equal(image, expected) and image.mode == "RGBA" and image.info == expected.info
        assert image.getpixel((3, 4)) == expected.getpixel((3, 4))
    assert np.array_equal(Image.open(io.BytesIO(data)).convert("L"), expected.convert("L"))
    assert np.array_equal(pickle.loads(pickle.dumps(Image.open(path))), expected)
    with path.open("rb") as file:
        image = Image.open(file)
        image.load()
        assert not file.closed and image.crop((1, 2, 5, 9)).size == (4, 7)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "1", "I;16", "I", "F", "YCbCr"])
def test_modes(mode: str) -> None:
    rgb = Image.fromarray(drawn(40, 50))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    else:
        image = rgb.convert("RGBA").convert(mode) if mode in ("LA", "RGBA") else rgb.convert(mode)
    if mode == "I":
        image = image.point(lambda v: v * 257)
    if mode == "F":
        image = image.point(lambda v: v * (1.0 / 255.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", L2CWarning)  # of 16 and 32 bits
        opened = Image.open(io.BytesIO(written(image, quality=70)))
    back = {"P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "1": "L", "I;16": "L", "I": "L", "F": "L"}.get(mode, mode)
    assert (opened.mode, opened.size) == (back, (50, 40))
    opened.load()
    assert (opened.mode, opened.size) == (back, (50, 40))
    if mode not in ("1", "P"):
        grey = np.asarray(opened.convert("L"), float)
        assert np.abs(grey - np.asarray(rgb.convert("L"), float)).mean() < 30


def test_drafts_and_thumbnails(picture: Image.Image, codec: l2c.Codec) -> None:
    data = written(picture)
    image = Image.open(io.BytesIO(data))
    assert image.draft(None, (45, 30)) == ("RGBA", (0, 0, 161 / 2, 120 / 2)) and image.size == (81, 60)
    assert np.array_equal(image, codec.decode(data, as_="pil", scale=2))
    assert image.draft(None, (10, 10)) is None and image.size == (81, 60)
    image = Image.open(io.BytesIO(data))
    assert image.draft("RGB", (500, 500)) == ("RGBA", (0, 0, 161, 120)) and image.size == (161, 120)
    image = Image.open(io.BytesIO(data))
    image.thumbnail((20, 20), reducing_gap=1.0)
    assert image.size == (20, 15)
    decoded = codec.decode(data, as_="pil", scale=8)
    assert image.mode == decoded.mode == "RGBA"


def test_saving(picture: Image.Image, tmp_path: Path) -> None:
    least = len(written(picture, quality=5))
    assert len(written(picture, max_bytes=least + 700)) <= least + 700
    assert len(written(picture, bpp=3.0)) <= 3 * 161 * 120 / 8
    header = read_header(written(picture, quality=30, metric="psnr", tile=512)).header
    assert (header.quality, header.metric_mix, header.tile_size) == (300, 0, 512)
    picture.save(tmp_path / "a.l2c", quality=30, optimize=True)  # of another format: ignored, as others do
    plain = Image.open(io.BytesIO(written(picture, exif=b"", xmp=None, dpi=None)))
    assert not {"exif", "xmp", "dpi"} & set(plain.info)
    exif = Image.Exif()
    exif[0x010F] = "another"
    assert Image.open(io.BytesIO(written(picture, exif=exif))).getexif()[0x010F] == "another"
    assert picture.getexif()[0x010F] == "maker" and picture.info["dpi"] == (300, 300)


def test_errors_are_of_pillows_kind(picture: Image.Image, tmp_path: Path) -> None:
    data = written(picture)
    end = read_header(data).head_size
    for spoilt in (data[:3], data[:20], data[:10] + b"\0" + data[11:]):
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(spoilt))
    cut = Image.open(io.BytesIO(data[: end + 40]))
    assert cut.size == picture.size
    with pytest.raises(OSError, match="truncated"):
        cut.load()
    for options in ({"bpp": 0.001}, {"quality": 101}, {"bpp": 1, "quality": 3}, {"metric": "vmaf"}):
        with pytest.raises(OSError, match="cannot write as L2C"):
            picture.save(tmp_path / "none.l2c", **options)
        assert not (tmp_path / "none.l2c").exists()


def test_truncated_files_where_pillow_allows_them(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = written(picture)
    image = Image.open(io.BytesIO(data[:-20]))
    with pytest.warns(L2CWarning, match="filled in"):
        image.load()
    assert image.size == picture.size


def test_verify(picture: Image.Image) -> None:
    data = written(picture)
    image = Image.open(io.BytesIO(data))
    image.verify()
    with pytest.raises(OSError, match="CRC-32"):
        Image.open(io.BytesIO(data[:-1] + bytes([data[-1] ^ 1]))).verify()


def test_what_reads_through_pillow(tmp_path: Path, codec: l2c.Codec) -> None:
    """imageio, and scikit-image with it."""
    path = tmp_path / "picture.l2c"
    imageio.imwrite(path, skimage.data.astronaut()[:60, :80], extension=".l2c", plugin="pillow", quality=60)
    decoded = codec.decode(path)
    assert np.array_equal(imageio.imread(path, plugin="pillow"), decoded)
    assert imageio.improps(path, plugin="pillow").shape == (60, 80, 3)
    assert np.array_equal(skimage.io.imread(path), decoded)


def test_a_large_file_opens_at_once(codec: l2c.Codec) -> None:
    """The head alone is read."""
    data = codec.encode(np.zeros((1500, 2000, 3), np.uint8), quality=10, tile=512)
    start = time.perf_counter()
    for _ in range(20):
        assert Image.open(io.BytesIO(data)).size == (2000, 1500)
    assert time.perf_counter() - start < 0.4
