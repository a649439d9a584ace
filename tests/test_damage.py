"""Damaged files: which parts are damaged, what is exact all the same, and what is filled in."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command import Run, one_error
from test_codec import drawn
from test_compressai import weights

import l2c
from l2c import compressai
from l2c.codec.conceal import fill
from l2c.entropy.coder import BeginningJob, DecodingJob, EncodingJob, ObservingJob, Tables
from l2c.errors import BitstreamError, DamagedError, L2CError, L2CWarning
from l2c.format.bitstream import EXIF, FileIndex, read_bitstream, read_header, write_bitstream
from l2c.format.levels import OperatingPoint
from l2c.format.tiles import Box
from l2c.models import load_model

Pixels = npt.NDArray[np.uint8]
HEIGHT, WIDTH, TILES = 1060, 1600, 12  # 3 x 4 tiles of 512, the last ones thin


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", L2CWarning)
        yield


@pytest.fixture(scope="module")
def codec(tiny_model_path: Path) -> l2c.Codec:
    return l2c.Codec(tiny_model_path)


@pytest.fixture(scope="module")
def data(codec: l2c.Codec) -> bytes:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    slope = np.stack([x / WIDTH * 120, y / HEIGHT * 120, (x + y) / (HEIGHT + WIDTH) * 120], axis=2)
    return codec.encode((drawn(HEIGHT, WIDTH) // 2 + slope).astype(np.uint8), quality=40, tile=512)


@pytest.fixture(scope="module")
def index(data: bytes) -> FileIndex:
    return read_header(data)


@pytest.fixture(scope="module")
def whole(codec: l2c.Codec, data: bytes) -> Pixels:
    return codec.decode(data)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x10
    return bytes(changed)


def error(a: npt.NDArray[Any], b: npt.NDArray[Any], box: Box) -> float:
    return float(np.square(a[box.slices].astype(float) - b[box.slices]).mean())


def differs(codec: l2c.Codec, a: Pixels, b: Pixels, boxes: list[Box]) -> bool:
    """Whether pixels differ that D does not compute from latents of some boxes."""
    far = np.ones(a.shape[:2], bool)
    halo = codec.transform.decoder.receptive_halo_px
    for box in boxes:
        far[box.widened(halo, *a.shape[:2]).slices] = False
    return bool((a[far] != b[far]).any())


# --- tiles ------------------------------------------------------------------------------------------------------------


def test_every_tile_in_turn(codec: l2c.Codec, data: bytes, index: FileIndex, whole: Pixels) -> None:
    grey = np.full_like(whole, 128)
    for number, tile in enumerate(index.tiles):
        spoilt, box = flipped(data, tile.offset + tile.size // 2), index.header.tile_box(number)
        with pytest.raises(BitstreamError, match=f"payload of tile {number}"):
            codec.decode(spoilt)
        with pytest.raises(DamagedError, match=f"damaged or cut off: tile {number} of 12") as raised:
            codec.verify(spoilt)
        assert raised.value.tiles == (number,) and raised.value.sections == ()
        with pytest.warns(L2CWarning, match=f"the file is damaged: tile {number} of 12 filled in"):
            pixels = codec.decode(spoilt, damaged="conceal")
        assert not differs(codec, pixels, whole, [box])
        assert error(pixels, whole, box) < 0.5 * error(grey, whole, box)


def test_several_tiles_and_all_of_them(codec: l2c.Codec, data: bytes, index: FileIndex, whole: Pixels) -> None:
    spoilt = data
    for number in (1, 2, 6, 11):
        spoilt = flipped(spoilt, index.tiles[number].offset)
    with pytest.warns(L2CWarning, match=r"tiles 1, 2, 6, 11 of 12 filled in"):
        decoded = codec.decode_detailed(spoilt, damaged="conceal")
    assert decoded.damaged_tiles == (1, 2, 6, 11) and decoded.latents_sha256 == ""
    assert not differs(codec, decoded.picture.rgb, whole, [index.header.tile_box(n) for n in (1, 2, 6, 11)])
    with pytest.warns(L2CWarning, match="tile 6 of 12"):  # of those that the region needs
        part = codec.decode(spoilt, damaged="conceal", region=(1100, 600, 1200, 700))
    assert part.shape == (100, 100, 3)
    assert np.array_equal(codec.decode(spoilt, damaged="conceal", region=(0, 600, 300, 700)), whole[600:700, :300])
    with pytest.warns(L2CWarning, match="0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 of 12"):
        nothing = codec.decode(data[: index.tiles[0].offset], damaged="conceal")
    assert nothing.shape == whole.shape and nothing.std() < 40


def test_a_whole_file_is_decoded_as_ever(codec: l2c.Codec, data: bytes, whole: Pixels) -> None:
    decoded = codec.decode_detailed(data, damaged="conceal")
    assert np.array_equal(decoded.picture.rgb, whole) and decoded.damaged_tiles == ()
    assert decoded.latents_sha256 == codec.verify(data)


def test_batches(codec: l2c.Codec, data: bytes, index: FileIndex, whole: Pixels) -> None:
    spoilt = flipped(data, index.tiles[3].offset + 9)
    with pytest.warns(L2CWarning, match="file 2 of 3: the file is damaged: tile 3 of 12") as told:
        together = codec.decode_batch([data, spoilt, data], damaged="conceal")
    assert len(told) == 1
    assert np.array_equal(together[0], whole) and np.array_equal(together[2], whole)
    with pytest.warns(L2CWarning):
        assert np.array_equal(together[1], codec.decode(spoilt, damaged="conceal"))


def test_tiles_that_are_wrong_in_spite_of_their_crc(codec: l2c.Codec, data: bytes, whole: Pixels) -> None:
    """Made on purpose, or computed by a machine that errs: the stream's own hash tells."""
    stream = read_bitstream(data)
    payloads = [bytes(part) for part in stream.payloads]
    payloads[4] = flipped(payloads[4], len(payloads[4]) // 2)
    payloads[5] = b"\xff" * 20
    file = write_bitstream(stream.header, payloads, [tile.channels for tile in stream.tiles])
    with pytest.raises(BitstreamError):
        codec.decode(file)
    with pytest.warns(L2CWarning, match="tiles 4, 5 of 12"):
        pixels = codec.decode(file, damaged="conceal")
    assert not differs(codec, pixels, whole, [stream.header.tile_box(n) for n in (4, 5)])


# --- files that end too early -----------------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_the_picture_so_far(
    codec: l2c.Codec, data: bytes, index: FileIndex, whole: Pixels
) -> None:
    rng = np.random.default_rng(0)
    for end in rng.integers(index.head_size, len(data), 6).tolist():  # tests/checks/damage.py makes 200
        lost = [n for n, tile in enumerate(index.tiles) if tile.offset + tile.size > end]
        with pytest.warns(L2CWarning, match="of 12 filled in"):
            decoded = codec.decode_detailed(data[:end], damaged="conceal")
        assert decoded.damaged_tiles == tuple(lost)
        assert not differs(codec, decoded.picture.rgb, whole, [index.header.tile_box(n) for n in lost])
        with pytest.raises(BitstreamError, match="truncated"):
            codec.decode(data[:end])
    with pytest.raises(BitstreamError):
        codec.decode(data[: index.head_size - 1], damaged="conceal")


def test_what_arrives_of_a_tile_makes_it_better() -> None:
    """With the shipped model, whose symbols run from coarse to fine: each further part of a tile shows."""
    import skimage.data

    codec = l2c.Codec()
    data = codec.encode(skimage.data.astronaut()[:256, :256], quality=60)
    whole, tile = codec.decode(data), read_header(data).tiles[0]
    errors = []
    for share in (0.0, 0.1, 0.3, 0.6, 0.9):
        with pytest.warns(L2CWarning):
            pixels = codec.decode(data[: tile.offset + int(share * tile.size)], damaged="conceal")
        errors.append(error(pixels, whole, Box(0, 0, 256, 256)))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[1] < 0.1 * errors[0]


class Recorder:
    """Who notes known symbols in coding order."""

    def __init__(self) -> None:
        self.parts: list[npt.NDArray[np.uint8]] = []

    def mixture(self, symbols: npt.NDArray[np.uint8], *_: Any) -> None:
        self.parts.append(symbols.copy())

    def table(self, symbols: npt.NDArray[np.uint8], *_: Any) -> None:
        self.parts.append(symbols.copy())

    def raw(self, symbols: npt.NDArray[np.uint8]) -> None:
        self.parts.append(symbols.copy())

    @property
    def symbols(self) -> npt.NDArray[np.uint8]:
        return np.concatenate(self.parts)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("b", [8, 3])
def test_beginnings_of_streams(tiny_model_path: Path, backend: str, b: int) -> None:
    """What arrived is exact; what follows is what P expects of it, the same on every backend that asks."""
    integer = load_model(tiny_model_path).integer
    point = OperatingPoint(500, 4, b)
    rng = np.random.default_rng(0)
    symbols = ((1 << b - 1) + rng.integers(-2, 2, (12, 13, 18))).clip(0, (1 << b) - 1).astype(np.uint8)
    job = EncodingJob(13, 18, point, 12, symbols)
    integer.code([job], "cpu")
    payload, true = job.encoder.finish(), Recorder()
    integer.code([ObservingJob(13, 18, point, 12, symbols, true)], backend)
    arrived = []
    for end in (len(payload), len(payload) - 1, len(payload) - 2, len(payload) // 2, len(payload) // 10, 7 + 4):
        try:
            beginning = BeginningJob(13, 18, point, 12, payload[:end])
        except BitstreamError:
            assert end < 400  # lanes' states
            continue
        (found,) = integer.code([beginning], backend)
        arrived.append(beginning.decoder.arrived)
        seen = Recorder()
        integer.code([ObservingJob(13, 18, point, 12, found, seen)], backend)
        assert np.array_equal(seen.symbols[: arrived[-1]], true.symbols[: arrived[-1]])
        if end == len(payload):
            assert np.array_equal(found, symbols) and arrived[0] == symbols.size
            beginning.decoder.finish()
    assert arrived == sorted(arrived, reverse=True) and arrived[1] < arrived[0] and 0 < arrived[3] < 0.8 * arrived[0]


@pytest.mark.parametrize("name, rounding", [("mbt2018", "whole"), ("mbt2018", "mean"), ("bmshj2018-factorized", None)])
def test_cut_files_of_the_second_family(tmp_path: Path, name: str, rounding: Any) -> None:
    path = tmp_path / "model.safetensors"
    compressai.convert({4: weights(name, 1)}, path, metric="mse", rounding=rounding)
    codec = l2c.Codec(path)
    data = codec.encode(drawn(90, 120), quality=4)
    index = read_header(data)
    for end in np.linspace(index.head_size, len(data) - 1, 5).astype(int).tolist():
        with pytest.warns(L2CWarning, match="tile 0 of 1"):
            assert codec.decode(data[:end], damaged="conceal").shape == (90, 120, 3)


def test_tables_and_equal_symbols_are_expected_in_the_middle() -> None:
    job = EncodingJob(1, 1, OperatingPoint(0, 0, 8), 1, np.zeros((1, 1, 1), np.uint8))
    cdf = np.array([[0, 10, 100, 200, 256], [0, 200, 256, 0, 0]], np.uint32)
    tables, rows = Tables(cdf, np.array([5, 3], np.int32), 8), np.array([0, 1] * 2000, np.int32)
    known = np.array([3, 1] * 2000, np.uint8)
    job.table_of(known, rows, tables)
    job.encoder.raw(np.full(4000, 9, np.uint8))
    payload = job.encoder.finish()
    beginning = BeginningJob(1, 1, job.point, 1, payload[: len(payload) // 20]).decoder
    found = beginning.table(rows, tables)
    assert 0 < beginning.arrived < 4000 and beginning.arrived % 512 == 0
    assert np.array_equal(found[: beginning.arrived], known[: beginning.arrived])
    assert np.array_equal(found[beginning.arrived :], np.array([2, 0] * 2000, np.uint8)[beginning.arrived :])
    assert np.array_equal(beginning.raw(5), np.full(5, 128))
    whole = DecodingJob(1, 1, job.point, 1, payload).decoder
    assert np.array_equal(whole.table(rows, tables), known) and np.array_equal(whole.raw(4000), np.full(4000, 9))


# --- filling in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_a_gap_in_a_slope_is_filled_smoothly(dtype: Any) -> None:
    y, x = np.mgrid[:90, :110]
    true = np.stack([x + 20, 2 * y + 3, np.full_like(x, 77)] * 7).astype(dtype)
    boxes = [Box(20, 30, 52, 62), Box(52, 30, 70, 40), Box(0, 90, 30, 110)]
    spoilt = true.copy()
    for box in boxes:
        spoilt[(slice(None), *box.slices)] = 0
    fill(spoilt, boxes)
    known = np.ones(true.shape[1:], bool)
    for box in boxes:
        known[box.slices] = False
    assert np.array_equal(spoilt[:, known], true[:, known])
    difference = np.abs(spoilt.astype(int) - true)
    assert difference[2::3].max() == 0 and difference[:, ~known].mean() < 4
    nothing = np.zeros((3, 8, 8), dtype)
    fill(nothing, [Box(0, 0, 8, 8)])
    fill(nothing, [])
    assert not nothing.any()


# --- sections ---------------------------------------------------------------------------------------------------------


def test_damaged_sections_are_left_out(codec: l2c.Codec) -> None:
    four = np.dstack([drawn(60, 70), np.arange(60 * 70).reshape(60, 70) % 256]).astype(np.uint8)
    data = codec.encode(four, quality=50)
    stream = read_bitstream(data)
    metadata = {kind: bytes(body) for kind, body in stream.metadata.items()} | {EXIF: b"II*\0" + bytes(20)}
    data = write_bitstream(stream.header, stream.payloads, [tile.channels for tile in stream.tiles], metadata)
    rgb = codec.decode(data)
    for section in read_header(data).sections:
        spoilt = flipped(data, section.offset)
        with pytest.raises(DamagedError, match=f"damaged or cut off: section {section.name}$") as raised:
            codec.verify(spoilt)
        assert raised.value.sections == (section.name,) and raised.value.tiles == ()
        with pytest.warns(L2CWarning, match=f"the file is damaged: {section.name} left out"):
            decoded = codec.decode_detailed(spoilt, damaged="conceal")
        assert np.array_equal(decoded.picture.rgb, rgb) and decoded.damaged_sections == (section.type,)
        with pytest.warns(L2CWarning):
            assert codec.decode(spoilt, as_="pil", damaged="conceal").mode == ("RGB" if section.type < 16 else "RGBA")


# --- anything ---------------------------------------------------------------------------------------------------------


def test_nothing_crashes(codec: l2c.Codec) -> None:
    """Flips, cuts and both: a picture of the right size, or an error of ours."""
    data = codec.encode(np.dstack([drawn(23, 31), drawn(23, 31)[:, :, 0]]), quality=50)
    rng, decoded = np.random.default_rng(0), 0
    for _ in range(400):
        spoilt = bytearray(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.5 else data)
        for _ in range(rng.integers(0, 4)):
            spoilt[rng.integers(0, len(spoilt))] ^= 1 << rng.integers(0, 8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", L2CWarning)
            with contextlib.suppress(L2CError):
                decoded += codec.decode(bytes(spoilt), damaged="conceal").shape == (23, 31, 3)
    assert decoded > 100


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
def test_commands(run: Run, coded: Path, tmp_path: Path) -> None:
    warnings.resetwarnings()  # the commands show them
    data = coded.read_bytes()
    tile = read_header(data).tiles[0]
    spoilt = tmp_path / "folder" / "spoilt.l2c"
    spoilt.parent.mkdir()
    spoilt.write_bytes(flipped(data, tile.offset + tile.size // 2))
    code, out, err = run("verify", spoilt, "--json")
    assert code == 3 and json.loads(out)["damaged_tiles"] == [0] and "damaged or cut off: tile 0 of" in one_error(err)
    assert run("decode", spoilt, tmp_path / "no.png")[0] == 3 and not (tmp_path / "no.png").exists()
    code, out, err = run("decode", spoilt, tmp_path / "picture.png", "--conceal", "--json")
    assert code == 6 and json.loads(out)["damaged_tiles"] == [0] and "filled in" in err
    assert (tmp_path / "picture.png").exists()
    (spoilt.parent / "cut.l2c").write_bytes(data[:-5])
    (spoilt.parent / "good.l2c").write_bytes(data)
    code, out, _ = run("decode", spoilt.parent, tmp_path / "out", "--conceal")
    assert code == 6 and "3 of 3 files" in out and len(list((tmp_path / "out").iterdir())) == 3
    code, out, _ = run("decode", coded, tmp_path / "good.png", "--conceal")
    assert code == 0
    (spoilt.parent / "none.l2c").write_bytes(data[:30])
    code, out, _ = run("decode", spoilt.parent, tmp_path / "more", "--conceal")
    assert code == 1 and "3 of 4 files" in out
