"""Pictures that are kept as pixels, without loss or in fewer colours: which, and that all of decoding knows of it."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
from command import Run, one_error
from PIL import Image, ImageDraw, ImageFont
from test_codec import drawn

import l2c
from l2c import guard
from l2c.codec import pixels
from l2c.errors import BitstreamError, L2CWarning, RateError, UnsupportedError
from l2c.format import lossless_section
from l2c.format.bitstream import EXIF, LOSSLESS, Limits, read_bitstream, read_header, write_bitstream
from l2c.images.palettes import Palettes
from l2c.train.drawn import draw

Pixels = npt.NDArray[np.uint8]

pytestmark = pytest.mark.fewer_colours


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", L2CWarning)
        yield


@pytest.fixture(scope="module")
def codec(tiny_model_path: Path) -> l2c.Codec:
    return l2c.Codec(tiny_model_path)


@pytest.fixture(scope="module")
def page() -> Pixels:
    """Text and lines on white, uint8 [300, 411, 3]."""
    image = Image.new("RGB", (411, 300), "white")
    draw = ImageDraw.Draw(image)
    for row in range(0, 290, 15):
        draw.text((7, row), f"{row} The quick brown fox jumps over the lazy dog", fill=(20, 20, 90))
    draw.rectangle((300, 40, 380, 130), fill=(200, 30, 30), outline="black")
    return np.asarray(image)


@pytest.fixture(scope="module")
def data(codec: l2c.Codec, page: Pixels) -> bytes:
    return codec.encode(page, quality=60)


# --- which pictures are kept ------------------------------------------------------------------------------------------


def test_drawn_pictures_are_known_from_photographs(page: Pixels) -> None:
    assert guard.is_drawn(page) and guard.is_drawn(np.full((500, 500, 3), 7, np.uint8))
    assert guard.is_drawn(drawn(64, 64)) and guard.is_drawn(drawn(1, 4096)) and guard.is_drawn(drawn(4096, 1))
    dots = np.random.default_rng(1).integers(0, 13, (300, 300, 1), np.uint8).repeat(3, 2) * np.uint8([9, 7, 5])
    assert guard.is_drawn(dots)  # no neighbours are equal, but there are 13 colours
    dots[100, :100, 2] = np.arange(100)
    assert not guard.is_drawn(dots)
    assert not guard.is_drawn(np.repeat(skimage.data.camera()[:, :, None], 3, 2))
    for photograph in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()):
        assert not guard.is_drawn(photograph)
    assert not guard.is_drawn(drawn(4097, 1))  # a column has no neighbours


def test_a_page_is_kept_whatever_is_asked_for(codec: l2c.Codec, page: Pixels) -> None:
    plain = codec.encode_detailed(page, quality=60, lossless="never")
    assert not plain.lossless
    kept = codec.encode_detailed(page, quality=60)
    assert kept.lossless and kept.quality == 100 and kept.target_reached and kept.probes == 0
    assert len(kept.data) < 0.5 * len(plain.data) and kept.bpp == 8 * len(kept.data) / page[:, :, 0].size
    assert codec.verify(kept.data) == kept.latents_sha256
    for options in ({"bpp": 1.0}, {"max_bytes": len(kept.data)}, {"effort": 1}, {}):
        again = codec.encode_detailed(page, **options)
        assert again.lossless and again.adaptation is None, options
        assert np.array_equal(codec.decode(again.data), page)
    assert not codec.encode_detailed(page, quality=60, lossless="never", metric="psnr").lossless


def test_what_does_not_fit_or_does_not_pay_is_coded(codec: l2c.Codec, page: Pixels, data: bytes) -> None:
    least = len(data)
    try:
        small = codec.encode_detailed(page, max_bytes=least - 1)
        assert not small.lossless and len(small.data) < least
    except RateError:
        pass  # the tiny model has nothing so small; what matters is that the target holds
    noise = drawn(60, 60)
    assert not codec.encode_detailed(noise, quality=20).lossless
    assert not codec.encode_detailed(skimage.data.astronaut()[:200, :200], bpp=24).lossless
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", L2CWarning)
        assert codec.encode_detailed(noise, psnr=90).lossless  # which no latents reach


def test_a_flat_picture_of_a_megapixel_is_under_200_bytes(codec: l2c.Codec) -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (12, 200, 31), (0, 255, 0)):
        flat = np.full((1000, 1000, 3), colour, np.uint8)
        for options in ({"quality": 90}, {"bpp": 0.5}):
            encoded = codec.encode_detailed(flat, **options)
            assert len(encoded.data) < 200 and np.array_equal(codec.decode(encoded.data), flat)
            assert encoded.seconds.encoder == 0  # no quality is looked for


def test_batches_and_names(codec: l2c.Codec, page: Pixels) -> None:
    photograph = skimage.data.astronaut()[:130, :150]
    for options in ({"quality": 50}, {"bpp": 0.8}):
        files = codec.encode_batch_detailed([photograph, page, photograph, page], **options)
        assert [file.lossless for file in files] == [False, True, False, True]
        assert files[0].data == files[2].data == codec.encode(photograph, **options)
        assert files[1].data == codec.encode(page, **options)
        together = codec.decode_batch([file.data for file in files])
        assert np.array_equal(together[1], page) and np.array_equal(together[2], codec.decode(files[2].data))
        assert codec.verify_batch([file.data for file in files]) == [file.latents_sha256 for file in files]
    with pytest.raises(RateError, match="file 3 of 3"):
        codec.encode_batch([np.zeros_like(page), page[:1, :1].repeat(300, 0).repeat(411, 1), photograph], bpp=0.06)


# --- fewer colours ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def letters() -> Pixels:
    """Letters with soft edges in three colours, uint8 [256, 256, 3]: 1.5 bpp without loss, 0.7 in 32 colours."""
    image = Image.new("RGB", (256, 256), (250, 248, 240))
    pen = ImageDraw.Draw(image)
    for k in range(11):
        text = "Quick brown foxes jump over 13 lazy dogs, & so on"[k:]
        fill = ((20, 30, 40), (160, 20, 30), (20, 60, 170))[k % 3]
        pen.text((5 + 7 * (k % 3), 23 * k + 2), text, font=ImageFont.load_default(9 + k % 4), fill=fill)
    return np.asarray(image)


def squared(picture: Pixels, decoded: Pixels) -> float:
    return float(np.square(picture - decoded.astype(np.float32)).mean())


def test_letters_that_do_not_fit_have_fewer_colours(letters: Pixels) -> None:
    codec = l2c.Codec()
    exact = codec.encode_detailed(letters, quality=100)
    assert exact.lossless and exact.colours is None
    before = None
    for share in (0.7, 0.55, 0.45):
        most = int(share * len(exact.data))
        fewer = codec.encode_detailed(letters, max_bytes=most)
        latents = codec.encode_detailed(letters, max_bytes=most, lossless="never")
        assert fewer.colours is not None and not fewer.lossless and fewer.quality < 100 and fewer.target_reached
        assert len(fewer.data) <= most and fewer.adaptation is None and latents.colours is None
        decoded = codec.decode(fewer.data)
        assert len(np.unique(decoded.reshape(-1, 3), axis=0)) <= fewer.colours <= 256
        assert squared(letters, decoded) < 0.3 * squared(letters, codec.decode(latents.data))
        assert before is None or fewer.colours < before
        assert codec.verify(fewer.data) == fewer.latents_sha256
        assert read_header(fewer.data).keeps_pixels and not read_header(fewer.data).is_lossless
        before = fewer.colours
    thorough = codec.encode_detailed(letters, max_bytes=most, effort=1)
    assert thorough.colours == before and len(thorough.data) <= len(fewer.data)


def test_fewest_colours_that_reach_a_figure(codec: l2c.Codec, letters: Pixels) -> None:
    exact = codec.encode_detailed(letters, bpp=8)
    for psnr in (26, 35, 45):
        fewer = codec.encode_detailed(letters, psnr=psnr)
        assert fewer.colours is not None and fewer.target_reached and len(fewer.data) < len(exact.data)
        reached = 10 * np.log10(255**2 / squared(letters, codec.decode(fewer.data)))
        less = Palettes.of(letters)
        assert less is not None and psnr <= reached
        worse = less.picture(max(count for count in less.counts if count < fewer.colours))
        assert 10 * np.log10(255**2 / squared(letters, worse)) < psnr
    structure = codec.encode_detailed(letters, msssim=0.995)
    assert structure.colours is not None and len(structure.data) < len(exact.data)


def test_latents_stay_where_colours_would_be_worse(letters: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = l2c.Codec()
    noise = draw(
        "noise", 128, np.random.default_rng(8)
    )  # ten colours have half the squared error, and its grain is gone
    assert codec.encode_detailed(noise, bpp=1.0).colours is None
    with monkeypatch.context() as patched:
        patched.setattr(pixels, "_FEW_BANDS", np.inf)
        encoded = codec.encode_detailed(noise, bpp=1.0)
    assert encoded.colours is not None
    latents = codec.encode(noise, bpp=1.0, lossless="never")
    assert squared(noise, codec.decode(encoded.data)) < 0.6 * squared(noise, codec.decode(latents))
    # Photographs, and what has parts that matter more, are not reduced.
    assert codec.encode_detailed(skimage.data.astronaut()[:200, :200], bpp=1.0).colours is None
    assert codec.encode_detailed(letters, bpp=0.7, importance=(0, 0, 100, 100)).colours is None
    assert codec.encode_detailed(letters, bpp=0.7, lossless="never").colours is None


def test_fewer_colours_where_latents_have_no_size_so_small(codec: l2c.Codec, letters: Pixels) -> None:
    with pytest.raises(RateError):
        codec.encode(letters, bpp=0.3, lossless="never")
    fewer = codec.encode_detailed(letters, bpp=0.3)
    assert fewer.colours == 2 and fewer.bpp <= 0.3 and fewer.target_reached and fewer.quality == 99.9
    photograph = skimage.data.astronaut()[:256, :256]
    with pytest.raises(RateError, match="file 2 of 2"):
        codec.encode_batch([letters, photograph], bpp=0.3)
    together = codec.encode_batch_detailed([letters, letters[:, ::-1]], bpp=0.3)
    assert together[0].data == fewer.data and together[1].colours == 2


def test_batches_names_and_sums_of_fewer_colours(letters: Pixels) -> None:
    codec = l2c.Codec()
    photograph = skimage.data.astronaut()[:130, :150]
    options: dict[str, Any] = {"bpp": 0.8, "pixels_crc": True}
    files = codec.encode_batch_detailed([photograph, letters, letters[:200]], **options)
    assert [file.colours is None for file in files] == [True, False, False]
    assert [file.data for file in files] == [
        codec.encode(part, **options) for part in (photograph, letters, letters[:200])
    ]
    checked = codec.verified([file.data for file in files], pixels=True)
    assert checked[1].latents_sha256 == files[1].latents_sha256


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_views_and_forms(codec: l2c.Codec, page: Pixels, data: bytes) -> None:
    assert np.array_equal(codec.decode(data, region=(30, 20, 200, 110)), page[20:110, 30:200])
    assert codec.decode(data, as_="torch").shape == (3, 300, 411)
    assert np.array_equal(codec.decode(data, as_="torch").permute(1, 2, 0), page)
    small = codec.decode(data, scale=4)
    assert small.shape == (75, 103, 3) and small[3, 4].tolist() == np.rint(page[12:16, 16:20].mean((0, 1))).tolist()
    assert codec.thumbnail(data, 100).size == (100, 73)
    parts = codec.decode_regions(data, [(0, 0, 9, 9), (400, 290, 411, 300)])
    assert np.array_equal(parts[1], page[290:, 400:])
    detailed = codec.decode_detailed(data, metric="psnr")
    assert detailed.latents_sha256 == codec.verify(data) and np.array_equal(detailed.picture.rgb, page)


def test_what_lies_beside_the_pixels(codec: l2c.Codec, page: Pixels) -> None:
    four = np.dstack([page, np.tile(np.arange(411) % 256, (300, 1)).astype(np.uint8)])
    image = Image.fromarray(four)
    image.info["dpi"] = (200, 200)
    encoded = codec.encode_detailed(image, quality=70)
    assert encoded.lossless
    back = codec.decode(encoded.data, as_="pil")
    assert back.mode == "RGBA" and back.info["dpi"] == (200, 200)
    shown = four[:, :, 3] > 0
    assert np.array_equal(np.asarray(back)[:, :, 3], four[:, :, 3]) and np.array_equal(
        np.asarray(back)[shown], four[shown]
    )
    grey = codec.encode_detailed(Image.fromarray(page).convert("L"), quality=70)
    assert grey.lossless and codec.decode(grey.data, as_="pil").mode == "L"
    assert np.array_equal(codec.decode(grey.data, mode="original"), np.asarray(Image.fromarray(page).convert("L")))


def test_no_model_is_needed(data: bytes, page: Pixels, codec: l2c.Codec) -> None:
    stream = read_bitstream(data)
    header = stream.header.__class__(**{**stream.header.__dict__, "model_id": b"\xee" * 8})
    stranger = write_bitstream(header, stream.payloads, [0] * header.tile_count, dict(stream.metadata))
    strict = l2c.Codec(codec.model, strict=True)
    assert np.array_equal(strict.decode(stranger), page)


# --- files that are damaged, or wrong ---------------------------------------------------------------------------------


def test_damage(codec: l2c.Codec, data: bytes, page: Pixels) -> None:
    stream = read_bitstream(data)
    spoilt = bytearray(data)
    spoilt[-3] ^= 1
    for options in ({}, {"damaged": "conceal"}):
        with pytest.raises(BitstreamError, match="LOSSLESS"):
            codec.decode(bytes(spoilt), **options)
    with pytest.raises(BitstreamError, match="truncated"):
        codec.decode(data[:-1])
    metadata = dict(stream.metadata) | {EXIF: b"II*\0" + bytes(20)}
    both = bytearray(write_bitstream(stream.header, stream.payloads, [0], metadata))
    both[-1] ^= 1
    with pytest.warns(L2CWarning, match="EXIF left out"):
        assert np.array_equal(codec.decode(bytes(both), damaged="conceal"), page)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda body: body[:4], "no VP8L data"),
        (lambda body: b"\0" + body[1:], "no VP8L data"),
        (lambda body: body[:1] + bytes([body[1] ^ 1]) + body[2:], "the picture has 411x300 pixels"),
        (lambda body: body[:4] + bytes([body[4] | 0x10]) + body[5:], "alpha or version 1"),
        (lambda body: body[: len(body) // 2], "cannot be decoded"),
        (lambda body: body[:5] + b"\xff" * (len(body) - 5), "cannot be decoded"),
    ],
)
def test_sections_that_cannot_be(codec: l2c.Codec, data: bytes, change: Any, message: str) -> None:
    stream = read_bitstream(data)
    body = change(bytes(stream.metadata[LOSSLESS]))
    file = write_bitstream(stream.header, stream.payloads, [0], {LOSSLESS: body})
    for call in (codec.decode, codec.verify, codec.decode_detailed):
        with pytest.raises(BitstreamError, match=f"section LOSSLESS: .*{message}"):
            call(file)


def test_latents_beside_the_section_are_refused(codec: l2c.Codec, data: bytes, page: Pixels) -> None:
    stream, coded = read_bitstream(data), read_bitstream(codec.encode(page, quality=30, lossless="never"))
    body = bytes(stream.metadata[LOSSLESS])
    for header, payloads, used in (
        (coded.header, coded.payloads, [tile.channels for tile in coded.tiles]),
        (stream.header, [b""], [1]),
        (coded.header, [b""], [0]),
    ):
        with pytest.raises(BitstreamError, match="latents beside section LOSSLESS"):
            read_header(write_bitstream(header, payloads, used, {LOSSLESS: body}))


def test_limits_and_options(codec: l2c.Codec, data: bytes, page: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_bitstream(data, Limits(max_metadata_bytes=0)).index.keeps_pixels
    for value in ("always", True, None):
        with pytest.raises(UnsupportedError, match="lossless is"):
            codec.encode(page, lossless=value)
    assert lossless_section.pack(np.zeros((1, lossless_section.MOST_SIDE + 1, 3), np.uint8)) is None
    monkeypatch.setattr(lossless_section, "is_available", lambda: False)
    assert not codec.encode_detailed(page, quality=50).lossless
    with pytest.raises(UnsupportedError, match="Pillow has no WebP here"):
        codec.decode(data)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 300), (300, 1), (97, 131), (16383, 1)])
def test_sections_of_any_size(height: int, width: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 4, (height, width, 3), np.uint8) * 70
    body = lossless_section.pack(rgb)
    assert body is not None and np.array_equal(lossless_section.unpack(body, height, width), rgb)


# --- the command line -------------------------------------------------------------------------------------------------


def test_commands(run: Run, tmp_path: Path, page: Pixels) -> None:
    source, file = tmp_path / "page.png", tmp_path / "page.l2c"
    Image.fromarray(page).save(source)
    code, out, err = run("encode", source, file, "--quality", "60")
    assert code == 0 and "lossless" in out, err
    code, out, _ = run("info", file, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["lossless"] and facts["parts"]["LOSSLESS"] > 100 and facts["parts"]["payloads"] == 0
    assert "lossless" in run("info", file)[1]
    assert run("verify", file)[0] == 0
    code, out, err = run("decode", file, tmp_path / "back.png", "--json")
    assert code == 0 and json.loads(out)["lossless"], err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), page)
    code, out, _ = run("encode", source, file, "--quality", "60", "--lossless", "never", "--overwrite", "--json")
    assert code == 0 and not json.loads(out)["lossless"]
    code, out, _ = run("encode", source, file, "--max-bytes", str(facts["size_bytes"] - 300), "-f")
    assert code == 0 and "colours" in out and "lossless" not in out
    code, out, _ = run("info", file, "--json")
    facts = json.loads(out)
    assert not facts["lossless"] and facts["keeps_pixels"] and facts["quality"] < 100
    assert "pixels in fewer colours" in run("info", file)[1]
    code, out, _ = run("decode", file, tmp_path / "back.png", "--json", "-f")
    assert code == 0 and not json.loads(out)["lossless"] and json.loads(out)["model"] is None
    assert "not one of" in one_error(run("encode", source, file, "--lossless", "always", "-f")[2])
    Image.open(io.BytesIO(source.read_bytes())).verify()
