"""Sources, crops and prefetching for training (l2c/train/data.py)."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from l2c.errors import ConfigError, ImageError, L2CWarning
from l2c.images import load_picture
from l2c.images.listing import list_pictures
from l2c.train import data
from l2c.train.config import DataConfig as AnyDataConfig
from l2c.train.data import Prefetcher, Sampler, centre_crops, describe

CROP = 32
DataConfig = partial(AnyDataConfig, drawn_share=0.0)  # crops of pictures; tests/test_train_drawn.py has the drawn ones


def png(value: int, height: int = 40, width: int = 48) -> bytes:
    """A PNG file of one grey, so that any crop tells which picture it came from."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def noise(path: Path, height: int, width: int, seed: int) -> None:
    """A picture without two equal places."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def rng(step: int, j: int, seed: int = 0, salt: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, salt, step, j])


def batch(sampler: Sampler, step: int, positions: Iterable[int] = range(8), salt: int = 0) -> Tensor:
    """Crops of one step; every other position is clean."""
    return torch.stack([sampler.crop_for(rng(step, j, salt=salt), step, j % 2 == 1) for j in positions])


def values(sampler: Sampler, step: int, count: int = 40) -> set[int]:
    """Which grey pictures a step draws from."""
    return {int(sampler.crop_for(rng(step, j), step, False)[0, 0, 0]) for j in range(count)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six noise pictures of different shapes, some of them in a folder below."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "below").mkdir()
    for i, (height, width) in enumerate([(32, 32), (33, 70), (90, 41), (64, 64), (65, 100)]):
        noise(root / f"{i}.png", height, width, i)
    noise(root / "below" / "5.PNG", 50, 51, 5)
    (root / "notes.md").write_text("not a picture")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of three pictures each: the greys of shard s are 10 s + 0, 1, 2."""
    pytest.importorskip("webdataset")
    root = tmp_path_factory.mktemp("shards")
    for s in range(6):
        members = {"__meta__": b"x"}
        for i in range(3):
            plain, mask = {f"d/{i}.PNG": png(10 * s + i)}, {f"d/{i}.mask.png": png(200)}
            members |= {f"d/{i}.json": b"{}"} | (plain | mask if i == 1 else mask | plain)
        write_tar(root / f"train-{s:03}.tar", members)
    return root


def braces(shards: Path) -> list[str]:
    return [str(shards / "train-{000..003}.tar"), str(shards / "train-{004..005}.tar")]


# Crops


def test_crop_is_a_function_of_its_generator(folder: Path) -> None:
    config = DataConfig()
    one, two = Sampler(config, [str(folder)], CROP, seed=0), Sampler(config, [str(folder)], CROP, seed=0)
    steps = [batch(one, step) for step in range(6)]
    for step in (4, 1, 5):  # another sampler that saw nothing else, in another order
        assert torch.equal(batch(two, step), steps[step])
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(batch(one, 0, salt=1), steps[0])


def test_processes_share_a_batch_of_files(folder: Path) -> None:
    whole = batch(Sampler(DataConfig(), [str(folder)], CROP, seed=0), 3)
    for world in (2, 4):
        ranks = [Sampler(DataConfig(), [str(folder)], CROP, seed=0, rank=r, world=world) for r in range(world)]
        shares = [batch(sampler, 3, range(r, 8, world)) for r, sampler in enumerate(ranks)]
        for r, share in enumerate(shares):
            assert torch.equal(share, whole[r::world])


def test_every_crop_has_the_contracted_form(folder: Path) -> None:
    sampler = Sampler(DataConfig(), [str(folder)], CROP, seed=0)
    for j in range(60):
        for clean in (False, True):
            crop = sampler.crop_for(rng(0, j), 0, clean)
            assert crop.shape == (3, CROP, CROP) and crop.dtype == torch.uint8 and crop.is_contiguous()


def test_native_crops_are_windows_of_the_picture_in_all_eight_positions(tmp_path: Path) -> None:
    noise(tmp_path / "a.png", 34, 35, 0)
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1)
    known = {}
    for turn in range(4):
        for mirror in (False, True):
            for top in range(3):
                for left in range(4):
                    window = torch.rot90(picture[:, top : top + CROP, left : left + CROP], turn, (1, 2))
                    key = (window.flip(2) if mirror else window).contiguous().numpy().tobytes()
                    known[key] = (turn, mirror, top, left)
    sampler = Sampler(DataConfig(), [str(tmp_path)], CROP, seed=0)
    seen = {known[sampler.crop_for(rng(0, j), 0, False).numpy().tobytes()] for j in range(2000)}
    assert seen == set(known.values())


def test_clean_crops_show_a_larger_region(tmp_path: Path) -> None:
    y, x = np.mgrid[0:200, 0:220]
    Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8)).save(tmp_path / "gradient.png")

    def span(clean: bool, low: float = 0.5, high: float = 0.8) -> list[int]:
        sampler = Sampler(DataConfig(scale_min=low, scale_max=high), [str(tmp_path)], CROP, seed=0)
        crops = [sampler.crop_for(rng(0, j), 0, clean).int() for j in range(80)]
        assert all(int(crop[2].max()) == 0 for crop in crops)
        return [int(crop[c].max() - crop[c].min()) for crop in crops for c in (0, 1)]

    assert set(span(False)) == {CROP - 1}
    assert all(abs(s - (2 * CROP - 1)) <= 3 for s in span(True, 0.5, 0.5))
    spans = span(True)
    assert CROP / 0.8 - 4 <= min(spans) < 45 and 58 < max(spans) <= CROP / 0.5
    sampler = Sampler(DataConfig(), [str(tmp_path)], CROP, seed=0)
    crops = torch.stack([sampler.crop_for(rng(1, j), 1, True) for j in range(200)]).float()
    left, top = crops.amin(dim=(2, 3))[:, :2].T
    side = crops.amax(dim=(2, 3))[:, 0] - left
    within = torch.stack([side, left / (220 - side), top / (200 - side)])
    assert float(torch.corrcoef(within).triu(1).abs().max()) < 0.25  # drawn one without the other


def test_scaling_agrees_with_pillow(tmp_path: Path) -> None:
    """Pillow's bicubic filter widens with the factor as ours does. In float: it rounds 8 bits between its passes.

    Black and white noise overshoots 0 and 255 and needs the clamp.
    """
    pixels = 255 * np.random.default_rng(0).integers(0, 2, (2 * CROP, 2 * CROP, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    planes = [Image.fromarray(pixels[:, :, c].astype(np.float32)) for c in range(3)]
    small = np.stack([np.array(plane.resize((CROP, CROP), Image.Resampling.BICUBIC)) for plane in planes])
    assert small.min() < -1 and small.max() > 256
    expected = torch.from_numpy(small).clamp(0, 255)
    positions = [torch.rot90(e, turn, (1, 2)) for e in (expected, expected.flip(2)) for turn in range(4)]
    sampler = Sampler(DataConfig(scale_min=0.5, scale_max=0.5), [str(tmp_path)], CROP, seed=0)
    for step in range(8):
        crop = sampler.crop_for(rng(step, 0), step, True).float()
        assert min(float((crop - position).abs().max()) for position in positions) <= 0.51  # rounding alone


@pytest.mark.parametrize("upright", [False, True])
def test_a_picture_too_small_to_scale_gives_its_largest_region(tmp_path: Path, upright: bool) -> None:
    y, x = np.mgrid[0:40, 0:100]
    pixels = np.stack([x, 5 * y, 0 * x], axis=2).astype(np.uint8)
    Image.fromarray(pixels.swapaxes(0, 1) if upright else pixels).save(tmp_path / "a.png")
    sampler = Sampler(DataConfig(scale_min=0.4, scale_max=0.5), [str(tmp_path)], CROP, seed=0)
    for j in range(20):
        crop = sampler.crop_for(rng(0, j), 0, True).int()
        assert abs(int(crop[1].max()) - 5 * 39) <= 3 and int(crop[1].min()) <= 3  # the whole height
        assert 37 <= int(crop[0].max() - crop[0].min()) <= 40


def test_a_crop_draws_the_same_count_of_numbers(folder: Path) -> None:
    sampler = Sampler(DataConfig(), [str(folder)], CROP, seed=0)
    after = []
    for clean in (False, True):
        generator = rng(0, 1)
        sampler.crop_for(generator, 0, clean)
        after.append(generator.random())
    expected = rng(0, 1)
    expected.random(6)
    assert after == [expected.random()] * 2


def test_changing_a_crop_leaves_the_kept_picture_alone(tmp_path: Path) -> None:
    noise(tmp_path / "a.png", CROP, CROP, 0)
    sampler = Sampler(DataConfig(), [str(tmp_path)], CROP, seed=0)
    before = batch(sampler, 0, range(40))
    for j in range(40):
        sampler.crop_for(rng(0, j), 0, j % 2 == 1).zero_()
    assert torch.equal(batch(sampler, 0, range(40)), before)


def test_threads_get_the_same_crops(folder: Path) -> None:
    expected = [batch(Sampler(DataConfig(), [str(folder)], CROP, seed=0), step) for step in range(20)]
    sampler = Sampler(DataConfig(memory_gb=1e-5), [str(folder)], CROP, seed=0)  # room for some pictures only
    with ThreadPoolExecutor(4) as threads:
        for got, want in zip(threads.map(lambda step: batch(sampler, step), range(20)), expected):
            assert torch.equal(got, want)


def test_every_picture_once(folder: Path, tmp_path: Path) -> None:
    """Those that cannot be read or are too small are left out with a warning, shards are refused."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    sampler = Sampler(DataConfig(), [str(folder), str(tmp_path)], CROP, seed=0)
    with pytest.warns(L2CWarning, match="left out") as caught:
        pictures = list(sampler.pictures())
    assert len(caught) == 2 and sampler.lasting
    files = list_pictures(folder)
    assert len(pictures) == len(files)
    for picture, file in zip(pictures, files):
        assert torch.equal(picture, torch.from_numpy(load_picture(file).rgb).permute(2, 0, 1))


# Memory


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    plain = data.decode

    def counted(encoded: data.Encoded, least_side: int) -> Tensor:
        names.append(encoded.name)
        return plain(encoded, least_side)

    monkeypatch.setattr(data, "decode", counted)
    return names


def test_memory_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = count_decodes(monkeypatch)
    plenty = Sampler(DataConfig(), [str(folder)], CROP, seed=0)
    expected = [batch(plenty, step) for step in range(8)]
    assert sorted(decoded) == sorted(set(decoded))  # each one once

    decoded.clear()
    none = Sampler(DataConfig(memory_gb=0.0), [str(folder)], CROP, seed=0)
    assert all(torch.equal(batch(none, step), expected[step]) for step in range(8))
    assert len(decoded) == 64

    decoded.clear()
    some = Sampler(DataConfig(memory_gb=20000 / 1e9), [str(folder)], CROP, seed=0)
    assert all(torch.equal(batch(some, step), expected[step]) for step in range(8))
    assert 6 < len(decoded) < 64
    assert 0 < some.kept.size_bytes <= 20000


# Sources


def test_limit(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    assert values(Sampler(DataConfig(limit=2), [str(tmp_path)], CROP, seed=0), 0) == {0, 1}
    assert values(Sampler(DataConfig(), [str(tmp_path)], CROP, seed=0), 0) == {0, 1, 2, 3, 4}
    assert [int(c[0, 0, 0, 0]) for c in centre_crops([str(tmp_path)], CROP, 9, limit=3)] == [0, 1, 2]


def test_folders_lists_and_single_pictures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(png(7))
    text = f"# two pictures\n\nown.png\n  {folder / '3.png'}\n"
    (tmp_path / "some.txt").write_text(text)
    assert list_pictures(tmp_path / "some.txt") == [tmp_path / "own.png", folder / "3.png"]
    names = [p.name for p in list_pictures(folder, tmp_path / "own.png")]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.PNG", "own.png"]
    assert list_pictures(str(folder)) == list_pictures(folder)
    assert values(Sampler(DataConfig(), [str(tmp_path / "own.png")], CROP, seed=0), 0) == {7}


def test_sixteen_bit_pictures(tmp_path: Path) -> None:
    """Read as the codec reads them: reduced to 8 bits, not clipped to white."""
    ramp = np.linspace(0, 65535, CROP * CROP).reshape(CROP, CROP).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    with pytest.warns(UserWarning, match="16-bit"):
        (crop,) = centre_crops([str(tmp_path)], CROP, 1)
    assert abs(crop[0, 0].int() - torch.from_numpy((ramp / 257).round().astype(np.int32))).max() <= 1


def test_lists(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "bom.txt").write_text("a.png\n", encoding="utf-8-sig")
    assert list_pictures(str(tmp_path / "bom.txt")) == [tmp_path / "a.png"]
    (tmp_path / "folder.txt").write_text("a.png\nsub\n")
    with pytest.raises(ConfigError, match=r"lists the folder .*sub: a list names pictures"):
        list_pictures(str(tmp_path / "folder.txt"))


def test_shared_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "l.txt").write_text("a.png\nb.png\n")
    assert data.shared_pictures([str(tmp_path)], [str(tmp_path / "l.txt")]) == 2
    assert data.shared_pictures([str(tmp_path / "c.png")], [str(tmp_path / "l.txt")]) == 0


def test_unusable_pictures_are_left_out_with_one_warning_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_PIXELS", 20_000)
    noise(tmp_path / "truncated.png", 40, 40, 0)
    (tmp_path / "truncated.png").write_bytes((tmp_path / "truncated.png").read_bytes()[:2000])
    files = {
        "a-good.png": png(1),
        "b-small.png": png(200, 100, CROP - 1),
        "c-text.jpg": b"not a picture",
        "d-empty.webp": b"",
        "e-huge.png": png(200, 160, 160),
        "f-good.png": png(2, CROP, CROP),
        "truncated.png": (tmp_path / "truncated.png").read_bytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    decoded = count_decodes(monkeypatch)
    sampler = Sampler(DataConfig(), [str(tmp_path)], CROP, seed=0)
    with pytest.warns(UserWarning, match="left out") as caught:
        warnings.simplefilter("always")
        drawn = [int(sampler.crop_for(rng(0, j), 0, False)[0, 0, 0]) for j in range(60)]
    for name in files:
        assert sum(name in str(w.message) for w in caught) == (0 if "good" in name else 1), name
    assert len(decoded) == len(files)  # nor is a bad one tried again
    index = [int(rng(0, j).random() * 7) for j in range(60)]
    assert drawn == [1 if i in (0, 6) else 2 for i in index]  # the next usable one, and round the end

    with pytest.warns(UserWarning, match="left out") as caught:
        assert [int(c[0, 0, 0, 0]) for c in centre_crops([str(tmp_path)], CROP, 9)] == [1, 2]
    assert str(caught[0].message).endswith("b-small.png is 31x100, a side has less than 32 pixels")
    assert len(caught) == 5


def test_threads_that_meet_a_bad_picture_warn_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meet = threading.Barrier(2)

    def broken(encoded: data.Encoded, least_side: int) -> Tensor:
        meet.wait(10)
        raise ImageError(f"{encoded.name} is broken")

    monkeypatch.setattr(data, "decode", broken)
    sampler = Sampler(DataConfig(), [str(folder / "0.png")], CROP, seed=0)
    with pytest.warns(UserWarning, match="left out") as caught, ThreadPoolExecutor(2) as threads:
        warnings.simplefilter("always")
        futures = [threads.submit(sampler.crop_for, rng(0, j), 0, False) for j in range(2)]
        assert all(isinstance(future.exception(), ConfigError) for future in futures)
    assert len(caught) == 1


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(png(1, CROP, CROP - 1))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.warns(UserWarning, match="left out"):
        sampler = Sampler(DataConfig(), [str(tmp_path)], CROP, seed=0)
        with pytest.raises(ConfigError, match=f"none of 2 pictures .* {tmp_path}"):
            sampler.crop_for(rng(0, 0), 0, False)
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ConfigError, match=str(tmp_path)):
        centre_crops([str(tmp_path)], CROP, 3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("missing", "no such folder, list or picture: .*missing"),
        ("missing.png", "no such .*missing.png"),
        ("missing.txt", "no such .*missing.txt"),
        ("empty", "no pictures in .*empty"),
        ("comments.txt", "no pictures in .*comments.txt"),
        ("wrong.lst", "2 of 3 files in .*wrong.lst do not exist, the first one is .*gone.png"),
        ("latin.txt", "cannot read the list .*latin.txt"),
        ("notes.md", "neither a picture, a list .* nor a tar shard: .*notes.md"),
    ],
)
def test_bad_sources(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "comments.txt").write_text("# nothing\n\n")
    (tmp_path / "wrong.lst").write_text("a.png\ngone.png\ngone2.png\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9.png\n")
    (tmp_path / "notes.md").write_text("x")
    calls: list[Callable[[list[str]], object]] = [
        lambda sources: Sampler(DataConfig(), sources, CROP, seed=0),
        lambda sources: centre_crops(sources, CROP, 1),
        describe,
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=message):
            call([str(tmp_path / entry)])


def test_no_sources_at_all() -> None:
    with pytest.raises(ConfigError, match="an empty list of sources"):
        Sampler(DataConfig(), [], CROP, seed=0)


def test_centre_crops(tmp_path: Path) -> None:
    noise(tmp_path / "a.png", 37, 60, 0)
    noise(tmp_path / "b.png", 50, 50, 1)
    crops = centre_crops([str(tmp_path)], CROP, 2)
    picture = np.array(Image.open(tmp_path / "a.png"))[2 : 2 + CROP, 14 : 14 + CROP]
    assert len(crops) == 2 and crops[0].is_contiguous()
    assert torch.equal(crops[0], torch.from_numpy(picture).permute(2, 0, 1)[None])
    assert len(centre_crops([str(tmp_path)], CROP, 1)) == 1


def test_describe(folder: Path, shards: Path) -> None:
    assert describe([str(folder), f"{folder}/0.png"]) == {"pictures": 7, "sources": [folder.name, "0.png"]}
    urls = [
        *braces(shards),
        "http://user:secret@host/dir/x-{0..2}.tar?key=secret",
        "pipe:fetch --key secret store/y.tar | cat",
        "pipe:fetch all",
    ]
    sources = ["train-{000..003}.tar", "train-{004..005}.tar", "x-{0..2}.tar", "y.tar", "shards"]
    assert describe(urls) == {"shards": 11, "sources": sources}


# Shards


def test_every_shard_serves_in_every_epoch(shards: Path) -> None:
    """2 processes x 1 shard: an epoch is 3 pools."""
    ranks = [Sampler(DataConfig(pool_shards=1), braces(shards), CROP, seed=0, rank=r, world=2) for r in range(2)]
    epochs = []
    for epoch in range(4):
        row = [ranks[r].shards_of(pool) for pool in range(3 * epoch, 3 * epoch + 3) for r in range(2)]
        assert all(len(part) == 1 for part in row)
        assert sorted({Path(part[0]).name for part in row}) == [f"train-{s:03}.tar" for s in range(6)]
        epochs.append(tuple(part[0] for part in row))
    assert len(set(epochs)) > 1  # another order
    other = Sampler(DataConfig(pool_shards=1), braces(shards), CROP, seed=1, rank=0, world=2)
    assert [other.shards_of(p) for p in range(12)] != [ranks[0].shards_of(p) for p in range(12)]


@pytest.mark.parametrize(("pool_shards", "world"), [(4, 1), (5, 1), (2, 2), (7, 3), (6, 1), (1, 8)])
def test_shards_are_served_alike_however_they_divide(shards: Path, pool_shards: int, world: int) -> None:
    config = DataConfig(pool_shards=pool_shards)
    ranks = [Sampler(config, braces(shards), CROP, seed=0, rank=r, world=world) for r in range(world)]
    served: list[str] = []
    for pool in range(6):
        for sampler in ranks:
            part = sampler.shards_of(pool)
            assert 1 <= len(part) == len(set(part)) <= pool_shards
            served += part
    counts = [sum(name.endswith(f"{s:03}.tar") for name in served) for s in range(6)]
    assert min(counts) >= 1
    if pool_shards * world in (4, 6):  # no shard twice in a pool
        assert counts == [pool_shards * world] * 6


def test_pools_change_with_the_step(shards: Path) -> None:
    sampler = Sampler(DataConfig(pool_shards=2, pool_steps=5), braces(shards), CROP, seed=0)
    drawn = [values(sampler, step) for step in range(15)]
    for pool in range(3):
        greys = {10 * int(Path(name).stem[-3:]) + i for name in sampler.shards_of(pool) for i in range(3)}
        assert len(greys) == 6
        assert all(drawn[step] == greys for step in range(5 * pool, 5 * pool + 5))  # and never the mask's 200
    assert set().union(*drawn) == {10 * s + i for s in range(6) for i in range(3)}


def test_shards_resume_midway_and_read_ahead(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(pool_shards=2, pool_steps=4)
    through = Sampler(config, braces(shards), CROP, seed=3)
    expected = [batch(through, step) for step in range(12)]
    read: list[str] = []
    plain = data.read_shard
    copy = shutil.copytree(shards, tmp_path / "copy")  # other samplers may still be reading ahead in `shards`

    def counted(url: str) -> list[data.Encoded]:
        result = plain(url)
        if url.startswith(str(copy)):
            read.append(url)
        return result

    monkeypatch.setattr(data, "read_shard", counted)
    resumed = Sampler(config, braces(copy), CROP, seed=3)
    assert read == []
    assert torch.equal(batch(resumed, 6), expected[6])
    assert read[:2] == resumed.shards_of(1)
    deadline = time.monotonic() + 10
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read == resumed.shards_of(1) + resumed.shards_of(2)  # the next one as well, nothing before, each once
    for step in range(7, 12):
        assert torch.equal(batch(resumed, step), expected[step])


@pytest.mark.parametrize("pool_steps", [1, 100])
def test_old_pools_leave_memory(shards: Path, pool_steps: int) -> None:
    config = DataConfig(pool_shards=1, pool_steps=pool_steps)
    sampler = Sampler(config, braces(shards), CROP, seed=0)
    kept = []
    for step in range(0, 10 * pool_steps, max(1, pool_steps // 2)):
        values(sampler, step)
        kept.append(sampler.kept)
    assert max(k.pools for k in kept) <= 3 and max(k.pictures for k in kept) <= 6
    assert torch.equal(batch(sampler, 0), batch(Sampler(config, braces(shards), CROP, seed=0), 0))


def test_limit_of_shards(shards: Path) -> None:
    sampler = Sampler(DataConfig(limit=4, pool_steps=2), braces(shards), CROP, seed=0)
    assert [values(sampler, step) for step in (0, 1, 2, 50)] == [{0, 1, 2, 10}] * 4
    assert [int(c[0, 0, 0, 0]) for c in centre_crops(braces(shards), CROP, 5)] == [0, 1, 2, 10, 11]


def test_shards_through_a_pipe(shards: Path, tmp_path: Path) -> None:
    urls = [f"pipe:cat {shards}/train-{{001..002}}.tar"]
    assert [int(c[0, 0, 0, 0]) for c in centre_crops(urls, CROP, 9)] == [10, 11, 12, 20, 21, 22]
    (tmp_path / "padded.tar").write_bytes((shards / "train-000.tar").read_bytes() + bytes(1 << 20))
    padded = centre_crops([f"pipe:exec cat {tmp_path}/padded.tar"], CROP, 9)  # `cat` must be let finish
    assert [int(c[0, 0, 0, 0]) for c in padded] == [0, 1, 2]
    failing = [f"pipe:cat {shards}/train-001.tar; exit 3"]
    with pytest.raises(ConfigError, match="exit 3"):
        Sampler(DataConfig(), failing, CROP, seed=0).crop_for(rng(0, 0), 0, False)


def test_unusable_pictures_in_shards(shards: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": b"broken", "1.png": png(1), "2.png": png(2, 8, 8)})
    sampler = Sampler(DataConfig(), [str(tmp_path / "a.tar")], CROP, seed=0)
    with pytest.warns(UserWarning, match="left out") as caught:
        warnings.simplefilter("always")
        assert values(sampler, 0) == {1}
    assert len(caught) == 2 and "a.tar/0.png" in str(caught[0].message) + str(caught[1].message)
    write_tar(tmp_path / "b.tar", {"0.png": b"broken"})
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ConfigError, match=r"none of 1 pictures .*b\.tar"):
        Sampler(DataConfig(), [str(tmp_path / "b.tar")], CROP, seed=0).crop_for(rng(0, 0), 0, False)


def test_bad_shards(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 of 8 shards do not exist, the first one is .*train-006\.tar"):
        Sampler(DataConfig(), [str(shards / "train-{000..007}.tar")], CROP, seed=0)
    with pytest.raises(ConfigError, match="cannot be mixed"):
        Sampler(DataConfig(), [*braces(shards), str(tmp_path)], CROP, seed=0)
    with pytest.raises(ConfigError, match="cannot expand the shards"):
        Sampler(DataConfig(), ["${L2C_NO_SUCH_VARIABLE}/a.tar"], CROP, seed=0)
    write_tar(tmp_path / "none.tar", {"a.txt": b"x"})
    (tmp_path / "cut.tar").write_bytes((shards / "train-000.tar").read_bytes()[:3000])
    with tarfile.open(shards / "train-000.tar") as whole:
        second = whole.getmembers()[1]
    (tmp_path / "between.tar").write_bytes((shards / "train-000.tar").read_bytes()[: second.offset])
    (tmp_path / "inside.tar").write_bytes((shards / "train-000.tar").read_bytes()[: second.offset + 99])
    (tmp_path / "text.tar").write_text("not an archive")
    for name in ("none", "cut", "between", "inside", "text"):
        sampler = Sampler(DataConfig(), [str(tmp_path / f"{name}.tar")], CROP, seed=0)
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"shard .*{name}.tar"):
                sampler.crop_for(rng(0, 0), 0, False)


def test_shards_without_webdataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(1)})
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(ConfigError, match="need the `webdataset` package"):
        Sampler(DataConfig(), [str(tmp_path / "a.tar")], CROP, seed=0)


# Prefetcher


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetcher_returns_each_step(workers: int) -> None:
    def make(step: int) -> int:
        time.sleep(0.002 * (step % 3))  # they end out of order
        return step * step

    with Prefetcher(make, start=5, workers=workers) as ahead:
        assert [ahead.get(step) for step in range(5, 40)] == [step * step for step in range(5, 40)]
        assert [ahead.get(step) for step in (43, 60, 61)] == [43 * 43, 3600, 3721]  # rising, with gaps
        with pytest.raises(ValueError, match="step 61 was asked for after step 61"):
            ahead.get(61)
    with pytest.raises(RuntimeError, match="closed"):
        ahead.get(62)


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetcher_raises_what_make_raised(workers: int) -> None:
    def make(step: int) -> int:
        if step == 3:
            raise ConfigError("step three")
        return step

    with Prefetcher(make, start=0, workers=workers) as ahead:
        assert [ahead.get(step) for step in range(3)] == [0, 1, 2]
        with pytest.raises(ConfigError, match="step three"):
            ahead.get(3)
        assert ahead.get(4) == 4


def test_prefetcher_works_ahead_but_not_too_far() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step

    with Prefetcher(make, start=10, workers=1, depth=3) as ahead:
        assert ahead.get(10) == 10
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert made == [10, 11, 12, 13]
        assert ahead.get(50) == 50 and not {14, 49} & set(made)
        assert ahead.pending == 3  # those that were passed over are let go
    made.clear()
    with Prefetcher(make, start=0, workers=0) as ahead:
        assert made == [] and ahead.get(0) == 0 and made == [0]


@pytest.mark.parametrize("workers", [0, 1])
def test_prefetcher_measures_waiting(workers: int) -> None:
    with Prefetcher(lambda step: time.sleep(0.1), start=0, workers=workers, depth=1) as ahead:
        assert ahead.wait_seconds == 0.0
        ahead.get(0)
        ahead.get(1)
        assert 0.05 <= ahead.wait_seconds < 2.0
        if workers:
            time.sleep(0.3)
            before = ahead.wait_seconds
            ahead.get(2)
            assert ahead.wait_seconds - before < 0.08


def test_prefetcher_close_leaves_no_thread_and_drops_what_waits() -> None:
    began, may_end = threading.Event(), threading.Event()
    made: list[int] = []

    def make(step: int) -> None:
        made.append(step)
        began.set()
        may_end.wait(10)

    threads = set(threading.enumerate())
    ahead = Prefetcher(make, start=0, workers=1, depth=5)
    assert began.wait(10)
    threading.Timer(0.05, may_end.set).start()
    ahead.close()
    ahead.close()  # twice does no harm
    assert made == [0]
    assert not [t for t in set(threading.enumerate()) - threads if t.name.startswith("prefetch")]


def test_prefetcher_workers_use_one_thread_and_change_no_other_threads_number() -> None:
    def fresh() -> int:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(torch.get_num_threads).result()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        meet = threading.Barrier(2)

        def make(step: int) -> int:
            meet.wait(10)  # both workers have started
            return torch.get_num_threads()

        with Prefetcher(make, start=0, workers=2, depth=2) as ahead:
            assert [ahead.get(0), ahead.get(1)] == [1, 1]
            assert torch.get_num_threads() == 2 and fresh() == 2
            meet.abort()
    finally:
        torch.set_num_threads(before)
