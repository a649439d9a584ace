"""Formats by their first bytes; HEIC and JPEG XL through plugins that need not be there."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import l2c
from l2c import cli, images
from l2c.cli import messages
from l2c.errors import ImageError, LimitError
from l2c.images import readers
from l2c.images.listing import list_pictures


def saved(format_: str, size: tuple[int, int] = (77, 55), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 120, 30)).save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def codec(tiny_model_path: Path) -> l2c.Codec:
    return l2c.Codec(tiny_model_path)


def jxl() -> None:
    pytest.importorskip("pillow_jxl")


@pytest.mark.parametrize(
    ("format_", "name"),
    [
        ("PNG", "PNG"), ("JPEG", "JPEG"), ("GIF", "GIF"), ("TIFF", "TIFF"), ("WEBP", "WebP"), ("BMP", "BMP"),
        ("JPEG2000", "JPEG 2000"), ("AVIF", "AVIF"), ("JXL", "JPEG XL"), ("HEIF", "HEIC"),
    ],
)  # fmt: skip
def test_formats_are_known_by_their_content(format_: str, name: str) -> None:
    if format_ == "JXL":
        jxl()
    if format_ == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.init()
    if format_ not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {format_}")
    assert readers.format_of(saved(format_)[: readers.HEAD_BYTES]) == name


@pytest.mark.parametrize(
    "head",
    [b"", b"\x89", b"\x89PNG", b"\xff\xfeB\0", b"BM and so on, a text", b"\0\0\0\x18ftypisom\0\0\0\0mp42", b"\0" * 64,
     b"\0\0\0\x14ftypqt  \0\0\0\0qt  "],
)  # fmt: skip
def test_what_is_no_picture_is_none(head: bytes) -> None:
    assert readers.format_of(head) is None


def test_brands_are_those_of_the_first_box_alone() -> None:
    box = b"\0\0\0\x14ftypmif1\0\0\0\0mif1"
    assert readers.format_of(box + b"\0\0\0\x20metaavif") == "HEIC"
    assert readers.format_of(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif") == "AVIF"


def test_an_l2c_file(codec: l2c.Codec, drawn_picture: npt.NDArray[np.uint8]) -> None:
    assert readers.format_of(codec.encode(drawn_picture)[: readers.HEAD_BYTES]) == "L2C"


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "memoryview", "file", "stream"])
@pytest.mark.parametrize(
    ("data", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "pillow-heif"),
        (b"\xff\x0a" + bytes(60), "pillow-jxl-plugin"),
    ],
)
def test_a_missing_reader_is_named(
    codec: l2c.Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: bytes, package: str
) -> None:
    monkeypatch.setattr(readers, "register", lambda name: False)
    path = tmp_path / "a.picture"
    path.write_bytes(data)
    with open(path, "rb") as file:
        sources = {
            "path": path, "str": str(path), "bytes": data, "memoryview": memoryview(data), "file": file,
            "stream": io.BytesIO(data),
        }  # fmt: skip
        with pytest.raises(ImageError, match=package) as caught:
            codec.encode(sources[kind])
    assert ("a.picture" in str(caught.value)) == (kind in ("path", "str", "file"))


def test_load_picture_finds_the_reader_itself(tmp_path: Path) -> None:
    """In a process of its own, in which nothing has loaded the plugin yet."""
    jxl()
    (tmp_path / "a.jxl").write_bytes(saved("JXL", lossless=True))
    script = (
        "import sys; from l2c.images import load_picture; from l2c.images.listing import list_pictures; "
        "path, = list_pictures(sys.argv[1]); print(load_picture(path).rgb[3, 4].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[90, 120, 30]\n"), done.stderr


@pytest.mark.parametrize("command", ["eval", "tables", "compare", "bench"])
def test_every_command_names_a_missing_reader(
    command: str, tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(readers, "register", lambda name: False)
    picture, file, out = tmp_path / "a.jxl", tmp_path / "a.l2c", tmp_path / "out"
    picture.write_bytes(b"\xff\x0a" + bytes(60))
    file.write_bytes(l2c.Codec(tiny_model_path).encode(np.zeros((8, 8, 3), np.uint8)))
    arguments = {
        "eval": [picture, "-o", out, "--peers", "none", "--rates", "1"],
        "tables": [tmp_path, "-o", out, "--parts", "I", "--rates", "1"],
        "compare": [picture, file, "-o", out],
        "bench": [picture],
    }[command]
    assert cli.main([command, *map(str, arguments), "--model", str(tiny_model_path)]) == messages.FAILED
    assert "pillow-jxl-plugin" in capsys.readouterr().err


def test_limits_hold_for_load_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    jxl()
    data = saved("JXL", (40, 50))
    assert images.load_picture(data, max_pixels=2000).width == 40
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(LimitError, match="40 x 50"):
        images.load_picture(data, max_pixels=1999)


def test_folders_of_pictures_take_what_the_plugins_read(tmp_path: Path) -> None:
    for name in ("a.heic", "b.JXL", "c.png", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_pictures(tmp_path)] == ["a.heic", "b.JXL", "c.png"]


def test_a_module_that_does_not_load_is_a_reader_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libheif.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    readers.register.cache_clear()
    try:
        assert not readers.register("HEIC")
    finally:
        readers.register.cache_clear()


def test_jpeg_xl_is_read_from_every_kind_of_source(codec: l2c.Codec, tmp_path: Path) -> None:
    jxl()
    data = saved("JXL", lossless=True)
    expected = codec.encode(Image.open(io.BytesIO(data)))
    path = tmp_path / "a.jxl"
    path.write_bytes(data)
    late = io.BytesIO(b"before" + data)
    late.seek(6)
    with open(path, "rb") as file:
        for source in (path, str(path), data, bytearray(data), io.BytesIO(data), late, file):
            assert codec.encode(source) == expected
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(data))
    writer.start()
    with open(pipe, "rb") as stream:  # cannot be read twice
        assert codec.encode(stream) == expected
    writer.join()


@pytest.mark.parametrize(
    "size",
    [(1, 1), (8, 8), (7, 9), (256, 256), (64, 256), (640, 480), (120, 100), (1920, 1080), (511, 513), (3000, 20),
     (20, 2500), (16, 8), (264, 8), (40, 32)],
)  # fmt: skip
def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int]) -> None:
    jxl()
    exif = Image.Exif()
    exif[0x010E] = "text" * 100
    for data in (saved("JXL", size), saved("JXL", size, lossless=True), saved("JXL", size, exif=exif.tobytes())):
        assert readers.jxl_size(io.BytesIO(data)) == size


def test_limits_hold_for_jpeg_xl_before_it_is_decoded(
    codec: l2c.Codec, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jxl()
    data = saved("JXL", (40, 50))
    assert l2c.Codec(tiny_model_path, limits=l2c.Limits(max_pixels=2000)).encode(data)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(LimitError, match="40 x 50"):
        l2c.Codec(tiny_model_path, limits=l2c.Limits(max_pixels=1999)).encode(data)


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_cut_jpeg_xl_is_an_error_of_ours(codec: l2c.Codec, cut: int) -> None:
    jxl()
    exif = Image.Exif()
    exif[0x010E] = "text"
    for data in (saved("JXL"), saved("JXL", exif=exif.tobytes())):
        with pytest.raises(ImageError):
            codec.encode(data[:cut])


@pytest.mark.parametrize("size", [0, 1, 7, 2**32 - 1])
def test_boxes_that_lead_nowhere(codec: l2c.Codec, size: int) -> None:
    data = b"\0\0\0\x0cJXL \r\n\x87\n" + size.to_bytes(4, "big") + b"free" + b"\xff" * 100
    assert readers.jxl_size(io.BytesIO(data)) == (0, 0)
    with pytest.raises(ImageError):
        codec.encode(data)


def test_sources_that_are_no_files_are_left_alone(codec: l2c.Codec) -> None:
    with pytest.raises(ImageError, match="binary mode"):
        codec.encode(io.StringIO("text"))
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError, match="cannot be read"):
        codec.encode(closed)
    with pytest.raises(ImageError):
        codec.encode("a\0b.png")
