"""What is kept beside the pixels, from a picture through a file to a picture: profile, EXIF, XMP, dots per inch."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from l2c import images, profiles
from l2c.codec import Codec
from l2c.errors import BitstreamError, ImageError, UnsupportedError
from l2c.format import bitstream
from l2c.format.bitstream import DPI, EXIF, ICC, XMP, read_bitstream, write_bitstream
from l2c.images import L2CWarning

PACKET = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + b" a place and a name" * 200 + b"</x:xmpmeta>"
LINEAR = profiles.rgb_profile((1.0,), profiles.SRGB)


@pytest.fixture(scope="module")
def codec(tiny_model_path: Path) -> Codec:
    return Codec(tiny_model_path)


@pytest.fixture
def photograph(drawn_picture: Any) -> bytes:
    """A PNG file with everything that is kept."""
    exif = Image.Exif()
    exif[0x010E] = "sunny"
    image = Image.fromarray(drawn_picture)
    stream = io.BytesIO()
    images.save_picture(
        stream, np.asarray(image), format="PNG", icc=LINEAR, exif=exif.tobytes()[6:], xmp=PACKET, dpi=(300, 150)
    )
    return stream.getvalue()


def sections(data: bytes) -> set[int]:
    return set(read_bitstream(data).metadata)


def test_all_of_it_comes_back(codec: Codec, photograph: bytes) -> None:
    data = codec.encode(photograph, quality=20)
    assert sections(data) == {ICC, EXIF, XMP, DPI}
    source, back = images.load_picture(photograph), codec.decode_detailed(data).picture
    assert (back.icc, back.exif, back.xmp, back.dpi) == (source.icc, source.exif, PACKET, source.dpi)
    assert np.allclose(back.dpi or (), (300, 150), atol=0.02)
    image = codec.decode(data, as_="pil")
    assert image.info == {
        "icc_profile": LINEAR,
        "exif": b"Exif\0\0" + (source.exif or b""),
        "xmp": PACKET,
        "dpi": source.dpi,
    }
    assert read_bitstream(data).index.part_sizes()["XMP"] < len(PACKET) / 5
    assert read_bitstream(data).index.part_sizes()["DPI"] == 8


@pytest.mark.parametrize(
    ("choice", "kept"),
    [(True, {ICC, EXIF, XMP, DPI}), ("all", {ICC, EXIF, XMP, DPI}), ("color", {ICC}), (False, set()), ("none", set())],
)
def test_what_is_kept_is_a_choice(codec: Codec, photograph: bytes, choice: Any, kept: set[int]) -> None:
    data = codec.encode(photograph, quality=20, metadata=choice)
    assert sections(data) == kept
    assert (b"sunny" in data) == (EXIF in kept)
    plain = codec.encode(images.load_picture(photograph).rgb, quality=20)
    same_pixels = np.array_equal(codec.decode(data), codec.decode(plain))
    assert same_pixels == bool(kept)  # without its profile, the picture is coded in sRGB
    if not kept:
        assert codec.decode(data).mean() > codec.decode(plain).mean()


def test_a_choice_that_does_not_exist(codec: Codec, photograph: bytes) -> None:
    with pytest.raises(UnsupportedError, match="choose 'all'"):
        codec.encode(photograph, metadata="colour")  # type: ignore[arg-type]


def test_files_without_them_have_the_same_bytes(codec: Codec, drawn_picture: Any) -> None:
    data = codec.encode(drawn_picture, quality=20)
    assert sections(data) == set()
    assert data == codec.encode(drawn_picture, quality=20, metadata="none")
    for dpi in ((72, 72), None):
        stream = io.BytesIO()
        images.save_picture(stream, drawn_picture, format="PNG", dpi=dpi)
        assert codec.encode(stream.getvalue(), quality=20) == data


def test_readers_that_do_not_know_the_sections_ignore_them(
    codec: Codec, photograph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert min(XMP, DPI) >= bitstream.FIRST_ANCILLARY
    data = codec.encode(photograph, quality=20)
    monkeypatch.setattr(bitstream, "UNDERSTOOD", bitstream.UNDERSTOOD - {XMP, DPI})
    monkeypatch.setattr(bitstream, "SECTION_NAMES", {})
    stream = read_bitstream(data)
    assert {XMP, DPI} < set(stream.metadata)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (XMP, b"not zlib"),
        (XMP, zlib.compress(b"")),
        (XMP, zlib.compress(bytes(2**26 + 1))),
        (XMP, zlib.compress(b"<x/>") + b"more"),
        (DPI, b"1234567"),
        (DPI, struct.pack("<II", 0, 1)),
    ],
)
def test_sections_that_no_encoder_writes(codec: Codec, drawn_picture: Any, kind: int, body: bytes) -> None:
    good = read_bitstream(codec.encode(drawn_picture, quality=20))
    channels = [tile.channels for tile in good.tiles]
    data = write_bitstream(good.header, good.payloads, channels, {kind: body})
    with pytest.raises(BitstreamError, match={XMP: "XMP", DPI: "DPI"}[kind]):
        codec.decode_detailed(data)


def test_a_grey_gamma_in_every_form(codec: Codec) -> None:
    stream = io.BytesIO()
    Image.new("L", (64, 64), 100).save(stream, "PNG")
    png = stream.getvalue()
    gamma = b"gAMA" + struct.pack(">I", 100000)
    data = codec.encode(
        png[:33] + struct.pack(">I", 4) + gamma + struct.pack(">I", zlib.crc32(gamma)) + png[33:], quality=20
    )
    original = codec.decode(data, as_="pil", mode="original")
    assert profiles.colour_space(original.info["icc_profile"]) == "GRAY"
    colour = codec.decode(data, as_="pil", mode="rgb")
    assert "icc_profile" not in colour.info  # its colours are sRGB, not those of a profile that is gone
    linear = np.asarray(original, float) / 255
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(np.asarray(colour, float)[..., 0] - srgb).mean() <= 3


def test_cut_pictures_only_where_they_are_allowed(codec: Codec, photograph: bytes) -> None:
    cut = photograph[: len(photograph) * 3 // 4]
    with pytest.raises(ImageError):
        codec.encode(cut, quality=20)
    with pytest.warns(L2CWarning, match="cut off or damaged"):
        data = codec.encode(cut, quality=20, truncated=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codec.decode(data).shape == (50, 70, 3)
