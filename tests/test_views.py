"""Parts of pictures, and small ones: a view is what the whole picture has there, from no more than it needs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from command import Run, one_error
from PIL import Image
from test_codec import drawn
from test_codec_adapt import changed
from test_codec_adapt import with_sets as with_sets  # a fixture
from test_compressai import weights

import l2c
from l2c import compressai, transforms
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.entropy.multiscale import MultiscaleConfig
from l2c.errors import BitstreamError, LimitError, UnsupportedError
from l2c.format.adapt_section import NO_SET, PatchChanges
from l2c.format.bitstream import Container, read_header
from l2c.format.source import Memory
from l2c.models import save_model
from l2c.transforms import BlockConfig

Pixels = npt.NDArray[np.uint8]
HEIGHT, WIDTH = 1030, 1333  # 3 x 3 tiles of 512, the last ones thin or odd


def block_model(folder: Path, s: int) -> Path:
    """An untrained model with blocks of s pixels a side, whose D sees far for its size."""
    config = ModelConfig(f"s{s}", BlockConfig(s, 8, 8, 1, 2, 4, mask=True), MultiscaleConfig(3, (3, 5), 2, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transform = transforms.Transform(config.transform)
        probability = multiscale.IntegerModel.from_float(config.float_model())
    path = folder / f"s{s}.safetensors"
    save_model(path, config, transform, probability, [])
    return path


@pytest.fixture(scope="module")
def codec(tiny_model_path: Path) -> l2c.Codec:
    return l2c.Codec(tiny_model_path)


@pytest.fixture(scope="module")
def data(codec: l2c.Codec) -> bytes:
    """A file of nine tiles."""
    return codec.encode(drawn(HEIGHT, WIDTH), quality=40, tile=512)


@pytest.fixture(scope="module")
def whole(codec: l2c.Codec, data: bytes) -> Pixels:
    return codec.decode(data)


def regions(height: int, width: int, count: int, seed: int = 0) -> list[tuple[int, int, int, int]]:
    """Corners, single pixels, all of it, and random ones."""
    rng = np.random.default_rng(seed)
    found = [
        (0, 0, 1, 1),
        (width - 1, height - 1, width, height),
        (0, 0, width, height),
        (0, height // 2, width, height),
    ]
    while len(found) < count:
        left, right = sorted(rng.integers(0, width + 1, 2).tolist())
        top, bottom = sorted(rng.integers(0, height + 1, 2).tolist())
        if left < right and top < bottom:
            found.append((left, top, right, bottom))
    return found


def crop(pixels: Pixels, region: tuple[int, int, int, int]) -> Pixels:
    left, top, right, bottom = region
    return pixels[top:bottom, left:right]


class Counted(io.BytesIO):
    """A file object that knows how many bytes were read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.count += len(found)
        return found


# --- regions ----------------------------------------------------------------------------------------------------------


def test_a_region_is_a_crop_of_the_whole(codec: l2c.Codec, data: bytes, whole: Pixels) -> None:
    for region in regions(HEIGHT, WIDTH, 10):
        assert np.array_equal(codec.decode(data, region=region), crop(whole, region)), region


def test_regions_of_one_file_share_its_tiles(
    codec: l2c.Codec, data: bytes, whole: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, code = [], codec.latent_stage.code
    monkeypatch.setattr(codec.latent_stage, "code", lambda jobs, name: counts.append(len(jobs)) or code(jobs, name))
    wanted = [(10, 20, 400, 410), (100, 100, 200, 200), (390, 0, 460, 50)]
    for region, pixels in zip(wanted, codec.decode_regions(data, wanted)):
        assert np.array_equal(pixels, crop(whole, region))
    assert counts == [1]
    assert codec.decode_regions(data, []) == []


def test_only_what_is_needed_is_read(codec: l2c.Codec, data: bytes, whole: Pixels, tmp_path: Path) -> None:
    index, region = read_header(data), (560, 560, 700, 700)
    file = Counted(b"before" + data)
    file.seek(6)  # a file begins where the object stands
    assert np.array_equal(codec.decode(file, region=region), crop(whole, region))
    assert file.count == 14 + index.head_size + index.tiles[4].size  # the preamble is read first, and once more
    path = tmp_path / "picture.l2c"
    path.write_bytes(data)
    for given in (path, str(path)):
        assert np.array_equal(codec.decode(given, region=region), crop(whole, region))
    assert np.array_equal(codec.decode(path), whole)
    assert codec.verify(path) == codec.verify(data)
    with path.open("rb") as opened:
        assert np.array_equal(codec.decode(opened), whole)


def test_damage_elsewhere_does_not_matter(codec: l2c.Codec, data: bytes, whole: Pixels) -> None:
    index, region = read_header(data), (560, 560, 700, 700)
    spoilt = bytearray(data)
    spoilt[index.tiles[0].offset + 5] ^= 1
    assert np.array_equal(codec.decode(bytes(spoilt), region=region), crop(whole, region))
    spoilt[index.tiles[4].offset + 5] ^= 1
    with pytest.raises(BitstreamError, match="payload of tile 4"):
        codec.decode(bytes(spoilt), region=region)


@pytest.mark.parametrize("s", [2, 4, 16])
def test_regions_and_scales_at_any_block_size(tmp_path: Path, s: int) -> None:
    codec = l2c.Codec(block_model(tmp_path, s))
    data = codec.encode(drawn(531, 87), quality=50, tile=512)
    check_views(codec, data, 531, 87)


@pytest.mark.parametrize("rounding", ["whole", "mean"])
def test_regions_and_scales_of_the_second_family(tmp_path: Path, rounding: Any) -> None:
    sources = {q: weights("mbt2018", 1) for q in (2, 4)}
    compressai.convert(sources, tmp_path / "model.safetensors", metric="mse", rounding=rounding)
    codec = l2c.Codec(tmp_path / "model.safetensors")
    check_views(codec, codec.encode(drawn(531, 87), quality=4, tile=512), 531, 87)


def check_views(codec: l2c.Codec, data: bytes, height: int, width: int) -> None:
    """Regions are crops of the whole, at every scale."""
    for scale in (1, 2, 4, 8):
        whole = codec.decode(data, scale=scale)
        assert whole.shape == (-(-height // scale), -(-width // scale), 3)
        for left, top, right, bottom in regions(height, width, 7, seed=scale):
            part = codec.decode(data, region=(left, top, right, bottom), scale=scale)
            there = whole[top // scale : -(-bottom // scale), left // scale : -(-right // scale)]
            assert np.array_equal(part, there), (scale, left, top, right, bottom)


def test_what_a_file_changes_in_the_decoder_holds_in_a_region(with_sets: l2c.Codec) -> None:
    """Bias sets of 256-pixel patches and conditions of 512-pixel ones, every patch another one."""
    plain = with_sets.encode(drawn(700, 600), quality=60, tile=512)
    sets = np.array([[0, 1, NO_SET], [2, 3, 4], [NO_SET, 0, 2]], np.uint8)
    conditions = np.array([[[60, -60], [0, 40]], [[-20, 0], [50, 10]]], np.int8)
    data = changed(plain, PatchChanges(sets, conditions).pack())
    whole = with_sets.decode(data)
    assert not np.array_equal(whole, with_sets.decode(plain))
    for region in regions(700, 600, 12):
        assert np.array_equal(with_sets.decode(data, region=region), crop(whole, region))


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_codec(tiny_model_path: Path) -> l2c.Codec:
    """The model without what its networks add: then D is its block transform at every scale."""
    codec = l2c.Codec(tiny_model_path)
    decoder = codec.transform.decoder
    with torch.no_grad():
        for layer in (decoder.head, decoder.last):
            layer.weight.zero_()
            layer.bias.zero_()
    return codec


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_small_picture_is_the_average_of_the_large_one(plain_codec: l2c.Codec, scale: Any) -> None:
    data = plain_codec.encode(drawn(203, 310) // 2 + np.uint8(64), quality=40)  # nothing is cut off at 0 or 255
    whole, small = plain_codec.decode(data), plain_codec.decode(data, scale=scale)
    means = averages(whole, scale)
    assert small.shape == means.shape
    inside = np.abs(small - means)[: 203 // scale, : 310 // scale]  # D continues the picture beyond its edge
    assert inside.max() <= 1.01  # of unrounded pixels


def averages(pixels: Pixels, scale: int) -> npt.NDArray[np.float64]:
    values = torch.from_numpy(pixels.transpose(2, 0, 1)).double()
    return F.avg_pool2d(values, scale, ceil_mode=True).numpy().transpose(1, 2, 0)


def test_small_pictures_of_the_shipped_model() -> None:
    """Half the size is the average of D's pixels; smaller ones lack the networks and are close enough."""
    codec = l2c.Codec()
    picture = skimage.data.astronaut()[:384, :384]
    data = codec.encode(picture, quality=60)
    whole = codec.decode(data)
    for scale, least in ((2, 50.0), (4, 36.0), (8, 38.0)):
        error = np.square(codec.decode(data, scale=scale) - averages(whole, scale)).mean()
        assert 10 * np.log10(255**2 / error) > least, scale


def test_scales_see_no_more_than_they_need(codec: l2c.Codec, data: bytes) -> None:
    file = Counted(data)
    codec.decode(file, region=(512, 512, 1024, 1024), scale=8)
    assert file.count == 14 + read_header(data).head_size + read_header(data).tiles[4].size  # no neighbour's latents


def test_alpha_and_grey(codec: l2c.Codec) -> None:
    four = np.dstack([drawn(75, 83), np.arange(75 * 83, dtype=np.uint32).reshape(75, 83) % 256]).astype(np.uint8)
    data = codec.encode(four, quality=50)
    alpha = codec.decode(data, mode="original")[:, :, 3]
    region = (7, 9, 60, 71)
    assert np.array_equal(codec.decode(data, mode="original", region=region)[:, :, 3], crop(alpha, region))
    small = codec.decode(data, as_="torch", mode="original", scale=4)
    means = F.avg_pool2d(torch.from_numpy(alpha)[None].double(), 4, ceil_mode=True)[0].round()
    assert small.shape == (4, 19, 21) and torch.equal(small[3].double(), means)
    detailed = codec.decode_detailed(data, scale=4, region=(0, 0, 8, 8)).picture
    assert detailed.alpha is not None and detailed.alpha.shape == detailed.rgb.shape[:2] == (2, 2)
    grey = codec.encode(four[:, :, 0], quality=50)
    picture = codec.decode(grey, as_="pil", region=region, scale=2)
    assert picture.mode == "L" and picture.size == (27, 32)


def test_detailed_says_so_where_not_all_latents_were_read(codec: l2c.Codec, data: bytes) -> None:
    assert codec.decode_detailed(data, region=(0, 0, 9, 9)).latents_sha256 == ""
    assert codec.decode_detailed(data, scale=8).latents_sha256 == codec.verify(data)


def test_batches(codec: l2c.Codec, data: bytes) -> None:
    other = codec.encode(drawn(40, 50), quality=50)
    for options in ({"scale": 4}, {"region": (3, 5, 37, 39)}, {"region": (3, 5, 37, 39), "scale": 2}):
        together = codec.decode_batch([other, data], **options)
        alone = [codec.decode(file, **options) for file in (other, data)]
        assert all(map(np.array_equal, together, alone))
    with pytest.raises(UnsupportedError, match="file 2 of 2: region is"):
        codec.decode_batch([data, other], region=(0, 0, 60, 40))


@pytest.mark.parametrize(
    "size, expected",
    [
        (100, (100, 77)),
        ((500, 100), (129, 100)),
        ((100, 5000), (100, 77)),
        (5000, (1333, 1030)),
        (1, (1, 1)),
        (667, (667, 515)),
    ],
)
def test_thumbnails(codec: l2c.Codec, data: bytes, size: Any, expected: tuple[int, int]) -> None:
    picture = codec.thumbnail(data, size)
    assert picture.size == expected
    scale: Any = max(k for k in (1, 2, 4, 8) if k <= WIDTH / expected[0])
    small = Image.fromarray(codec.decode(data, scale=scale))
    assert np.array_equal(picture, small.resize(expected, Image.Resampling.LANCZOS))


def test_a_thumbnail_keeps_what_a_picture_has(codec: l2c.Codec) -> None:
    four = Image.fromarray(np.dstack([drawn(90, 120), np.full((90, 120), 77, np.uint8)]))
    four.info["dpi"] = (300, 300)
    picture = codec.thumbnail(codec.encode(four, quality=50), 30)
    assert picture.mode == "RGBA" and picture.size == (30, 22) and picture.info["dpi"] == (300, 300)
    assert set(np.unique(np.asarray(picture)[:, :, 3])) == {77}


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"region": (0, 0, 0, 5)}, "region is"),
        ({"region": (0, 0, WIDTH + 1, 5)}, f"right <= {WIDTH}"),
        ({"region": (-1, 0, 4, 5)}, "region is"),
        ({"region": (0, 5, 4, 5)}, "region is"),
        ({"region": (0, 0, 4)}, "four whole numbers"),
        ({"region": (0, 0, 4.0, 4)}, "four whole numbers"),
        ({"region": "0,0,4,4"}, "four whole numbers"),
        ({"region": 5}, "four whole numbers"),
        ({"scale": 3}, "scale is 3"),
        ({"scale": True}, "scale is True"),
        ({"scale": "2"}, "scale is '2'"),
        ({"damaged": "ignore"}, "damaged is 'ignore'"),
        ({"metric": "vmaf"}, "metric is"),
    ],
)
def test_options_that_cannot_be(codec: l2c.Codec, data: bytes, options: dict[str, Any], message: str) -> None:
    calls: list[Callable[..., Any]] = [codec.decode, codec.decode_detailed, lambda d, **o: codec.decode_batch([d], **o)]
    for call in calls:
        with pytest.raises(UnsupportedError, match=message):
            call(data, **options)
    assert np.array_equal(codec.decode(data, region=np.array([0, 0, 4, 4])), codec.decode(data, region=(0, 0, 4, 4)))


@pytest.mark.parametrize("size", [0, -3, (3, 0), (1, 2, 3), "12", 1.5, True, None])
def test_thumbnail_sizes_that_cannot_be(codec: l2c.Codec, data: bytes, size: Any) -> None:
    with pytest.raises(UnsupportedError, match="size is"):
        codec.thumbnail(data, size)
    with pytest.raises(UnsupportedError, match="give size alone"):
        codec.thumbnail(data, 20, scale=2)


def test_files_that_cannot_be_read_in_parts(codec: l2c.Codec, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="its path or a file object, not as int"):
        codec.decode(5)
    with pytest.raises(IsADirectoryError):
        codec.decode(tmp_path)
    for end in (0, 3, 14, 60, len(data) - 1):
        with pytest.raises(BitstreamError):
            codec.decode(io.BytesIO(data[:end]), region=(0, 0, 4, 4))
    with pytest.raises(BitstreamError, match="follow the end"):
        codec.decode(io.BytesIO(data + b"x"), region=(0, 0, 4, 4))
    container = Container.open(Memory(data))
    part = container.read([0])
    assert part.skipped == frozenset(range(1, 9)) and not part.damaged_tiles
    with pytest.raises(BitstreamError, match="were not read"):
        codec.decode(part)
    small = l2c.Codec(codec.model, limits=l2c.Limits(max_pixels=1000))
    with pytest.raises(LimitError):
        small.decode(data, region=(0, 0, 4, 4))


# --- the command line -------------------------------------------------------------------------------------------------


def test_commands(run: Run, coded: Path, tmp_path: Path, drawn_picture: Pixels) -> None:
    height, width = drawn_picture.shape[:2]
    code, _, err = run("decode", coded, tmp_path / "whole.png")
    assert code == 0, err
    whole = np.asarray(Image.open(tmp_path / "whole.png"))
    code, out, err = run("decode", coded, tmp_path / "part.png", "--region", "3,5,21,30")
    assert code == 0 and "18x25" in out, err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "part.png")), whole[5:30, 3:21])
    code, out, err = run("decode", coded, tmp_path / "small.png", "--scale", "4", "--json")
    assert code == 0 and json.loads(out)["shown_width"] == -(-width // 4), err
    assert Image.open(tmp_path / "small.png").size == (-(-width // 4), -(-height // 4))
    code, out, _ = run("decode", coded, tmp_path / "small.png", "--scale", "4", "--skip-existing")
    assert code == 0 and "there already" in out
    code, out, _ = run("decode", coded, tmp_path / "small.png", "--scale", "2", "--skip-existing")
    assert code == 0 and "there already" not in out
    for option, value, message in (
        ("--region", "3,5", "four whole numbers"),
        ("--region", "a,b", "commas"),
        ("--region", "0,0,9999,1", "0 <= left"),
        ("--scale", "3", "not one of"),
    ):
        code, _, err = run("decode", coded, tmp_path / "none.png", option, value)
        assert code != 0 and message in err and not (tmp_path / "none.png").exists()
    assert "l2c:" in one_error(run("decode", coded, tmp_path / "none.png", "--region", "0,0,9999,1")[2])
