"""Picture formats by their first bytes, and the readers of HEIC and JPEG XL where their Pillow plugins are installed.

Nothing is imported before a file asks for it: `prepare` looks at the first bytes, `register` loads the plugin.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from l2c.errors import ImageError, LimitError
from l2c.format.bitstream import MAGIC

HEAD_BYTES = 64  # that `format_of` looks at


@dataclass(frozen=True)
class Plugin:
    """Where the reader of a format comes from.

    Attributes:
        package: what is installed. module: what is imported.
        function: of the module, called once; "": importing it is enough.
        suffixes: the extensions of its files.
    """

    package: str
    module: str
    function: str
    suffixes: tuple[str, ...]


PLUGINS = {
    "HEIC": Plugin(
        "pillow-heif", "pillow_heif", "register_heif_opener", (".heic", ".heics", ".heif", ".heifs", ".hif")
    ),
    "JPEG XL": Plugin("pillow-jxl-plugin", "pillow_jxl", "", (".jxl",)),
}
_MAGICS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"8BPS\x00\x01", "PSD"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (MAGIC, "L2C"),
)
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})


def format_of(head: bytes) -> str | None:
    """The format that the first HEAD_BYTES bytes of a file name beyond doubt: "PNG", "HEIC", "L2C", ...; else None."""
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x7c\0\0\0"):
        return "BMP"
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & _HEIC_BRANDS or head[8:12] in (b"mif1", b"msf1"):
            return "HEIC"
    return None


@functools.lru_cache
def register(name: str) -> bool:
    """Make Pillow read a format of PLUGINS; False: its package is not installed, or does not load."""
    plugin = PLUGINS[name]
    try:
        module = importlib.import_module(plugin.module)
        if plugin.function:
            getattr(module, plugin.function)()
    except (ImportError, OSError, AttributeError):  # a shared library may be missing
        return False
    return True


def missing(name: str) -> str:
    """What to say where `register` is False."""
    return f"is {name}, which is read with the package {PLUGINS[name].package}"


def prepare(source: Any, max_pixels: int | None) -> None:
    """Make Pillow ready for a path, bytes or a file object that holds HEIC or JPEG XL; other sources are left alone.

    Raises:
        ImageError: the package that reads it is not installed; a JPEG XL file whose size cannot be found.
        LimitError: a JPEG XL picture of more than `max_pixels` pixels, which the plugin would decode while opening it.
    """
    with _opened(source) as (stream, name):
        if stream is None:
            return
        start = stream.tell()
        try:
            format_ = format_of(stream.read(HEAD_BYTES))
            if format_ not in PLUGINS:
                return
            if not register(format_):
                raise ImageError(f"{name}: {missing(format_)}")
            if format_ == "JPEG XL" and max_pixels is not None:
                stream.seek(start)
                width, height = jxl_size(stream)
                if not width * height:
                    raise ImageError(f"{name}: cannot be read: JPEG XL without a head")
                if width * height > max_pixels:
                    raise LimitError(f"{name}: {width} x {height} pixels, the limit is {max_pixels} (max_pixels)")
        finally:
            stream.seek(start)


@contextmanager
def _opened(source: Any) -> Iterator[tuple[BinaryIO | None, str]]:
    """A source as a stream that can be read twice, and its name; None where it is none or cannot be."""
    if isinstance(source, (str, os.PathLike)):
        stream = None
        try:
            if os.path.isfile(source):  # reading from a pipe would take from what is read afterwards
                stream = open(source, "rb")  # noqa: SIM115 (closed below)
        except (OSError, ValueError):
            pass  # whoever reads it will say so
        try:
            yield stream, str(source)
        finally:
            if stream is not None:
                stream.close()
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source), "bytes"
    elif hasattr(source, "read") and hasattr(source, "seek"):
        name = str(getattr(source, "name", "file object"))
        try:
            seekable = bool(source.seekable())
            binary = seekable and isinstance(source.read(0), bytes)
        except (OSError, ValueError, AttributeError):  # closed
            seekable = binary = False
        if not seekable:
            for plugin in PLUGINS:  # what a pipe holds is known when it is too late
                register(plugin)
        yield (source if binary else None), name
    else:
        yield None, ""


def jxl_size(stream: BinaryIO) -> tuple[int, int]:
    """Width and height of a JPEG XL file, ISO/IEC 18181-1; (0, 0) where its head cannot be found."""
    head = stream.read(12)
    if head.startswith(b"\xff\x0a"):
        return _jxl_codestream_size(head + stream.read(HEAD_BYTES))
    while True:  # boxes
        start = stream.read(8)
        if len(start) < 8:
            return 0, 0
        size, kind, used = int.from_bytes(start[:4], "big"), start[4:], 8
        if size == 1:
            size, used = int.from_bytes(stream.read(8), "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            return _jxl_codestream_size(stream.read(HEAD_BYTES)[4 if kind == b"jxlp" else 0 :])
        if not used <= size < 2**62:  # 0: to the end of the file
            return 0, 0
        stream.seek(size - used, os.SEEK_CUR)


def _jxl_codestream_size(data: bytes) -> tuple[int, int]:
    """Width and height that a codestream's SizeHeader says."""
    if not data.startswith(b"\xff\x0a"):
        return 0, 0
    bits = int.from_bytes(data[2:12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side(small: bool) -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = bool(take(1))
    height = side(small)
    ratio = take(3)
    if ratio == 0:
        return side(small), height
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * over // under, height
