"""L2C files in training: pixels are those of `l2c.decode` in every process, and bad files do what they are told to."""

from __future__ import annotations

import io
import pickle
import runpy
import sys
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader

import l2c
from l2c.errors import BitstreamError, L2CWarning, LimitError, UnsupportedError
from l2c.format.bitstream import read_header
from l2c.format.source import OnDisk
from l2c.torch_data import (
    CenterCrop,
    CodedBatch,
    DecodingLoader,
    L2CDataset,
    L2CShards,
    RandomCrop,
    RandomResizedCrop,
    collate,
    skip_damaged,
    webdataset_decoder,
)
from l2c.torch_data.seeds import generator_of

HEIGHT, WIDTH = 530, 600  # 2 x 2 tiles of 512


def noisy(height: int, width: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(height), 2 * np.arange(width))[..., None] * rng.uniform(0.1, 0.4, 3)
    return (slope + rng.uniform(0, 90, 3) + rng.normal(0, 9, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def codec(tiny_model_path: Path) -> l2c.Codec:
    return l2c.Codec(tiny_model_path)


@pytest.fixture(scope="module")
def folder(codec: l2c.Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a: two of 40x56, one of 1x1; b: one of four tiles, one that is grey, one of 40x56 that is flat: without loss."""
    root = tmp_path_factory.mktemp("l2c")
    pictures = {
        "a/0": noisy(40, 56, 0),
        "a/1": noisy(40, 56, 1),
        "a/2": noisy(1, 1, 2),
        "b/3": noisy(HEIGHT, WIDTH, 3),
        "b/4": noisy(33, 47, 4)[..., 0],
        "b/5": np.full((40, 56, 3), 255, np.uint8),
    }
    for name, picture in pictures.items():
        path = root / f"{name}.l2c"
        path.parent.mkdir(exist_ok=True)
        lossless: Any = "auto" if name == "b/5" else "never"
        path.write_bytes(codec.encode(picture, quality=40, tile=512, lossless=lossless))
    return root


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> dict[str, Any]:
    return {"model": tiny_model_path}


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.l2c"))


def equal(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    assert len(found) == len(wanted) and all(part.dtype == torch.uint8 for part in found)
    return all(torch.equal(a, b) for a, b in zip(found, wanted))


def third(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    return width // 3, height // 3, width // 3 + (width + 2) // 3, height // 3 + (height + 2) // 3


def with_threads(picture: Tensor) -> tuple[Tensor, int]:
    return picture, torch.get_num_threads()


def drawn_number(picture: Tensor) -> tuple[Tensor, float]:
    return picture, float(torch.rand(()))


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("region", [None, third])
def test_pixels_are_those_of_decode(codec: l2c.Codec, folder: Path, model: Any, scale: Any, region: Any) -> None:
    asked = [(read_header(file.read_bytes()).header, file) for file in files(folder)]
    wanted = [
        codec.decode(file, as_="torch", scale=scale, region=region and region(head.height, head.width, None))
        for head, file in asked
    ]
    data = L2CDataset(folder, region=region, scale=scale, **model)
    assert equal(list(data), wanted)  # one by one
    assert equal(data.__getitems__(range(6)), wanted)  # together
    coded = DataLoader(L2CDataset(folder, region=region, scale=scale, output="bytes", **model), 6, collate_fn=collate)
    (batch,) = DecodingLoader(coded, codec=codec)
    assert equal(batch, wanted)
    assert all(part.is_contiguous() and part.untyped_storage().nbytes() == part.numel() for part in data)


def test_thumbnails_and_sizes(codec: l2c.Codec, folder: Path, model: Any) -> None:
    wanted = [codec.thumbnail(file, (30, 20)).convert("RGB") for file in files(folder)]
    found = L2CDataset(folder, thumbnail=(30, 20), **model)
    assert equal(list(found), [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in wanted])
    sized = L2CDataset(folder, scale="auto", resize=(65, 70), **model)
    assert {tuple(picture.shape) for picture in sized} == {(3, 65, 70)}
    # "auto" decodes no more than is needed: 530 / 8 >= 65, 600 / 8 >= 70.
    large = codec.decode(files(folder)[3], as_="torch", scale=8)[None].float()
    small = torch.nn.functional.interpolate(large, (65, 70), mode="bilinear", antialias=True)
    assert torch.equal(sized[3], small[0].round().to(torch.uint8))
    assert tuple(L2CDataset(folder, scale=2, resize=7, **model)[3].shape) == (3, 7, 7)


def test_a_region_reads_its_own_tiles_alone(
    codec: l2c.Codec, folder: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is damaged in its last tile: who asks for that, or for all, is told so."""
    data, ends = bytearray(files(folder)[3].read_bytes()), []
    whole, data[-1] = codec.decode(bytes(data)), data[-1] ^ 255
    (tmp_path / "x.l2c").write_bytes(data)
    read = OnDisk.read
    monkeypatch.setattr(OnDisk, "read", lambda self, at, size: ends.append(at + size) or read(self, at, size))
    (found,) = L2CDataset(tmp_path, region=(0, 0, 64, 64), **model)
    assert np.array_equal(found.permute(1, 2, 0), whole[:64, :64])
    assert ends and max(ends) < len(data)
    for region in (None, (WIDTH - 9, HEIGHT - 9, WIDTH, HEIGHT)):
        with pytest.raises(BitstreamError, match=r"x\.l2c: .*CRC"):
            L2CDataset(tmp_path, region=region, **model)[0]


def epoch(folder: Path, model: Any, *, workers: int = 0, **options: Any) -> list[Any]:
    paths = [files(folder)[i] for i in (0, 1, 5, 3, 1, 0)]
    data = L2CDataset(paths, labels="folder", region=RandomCrop(16), **model, **options)
    loader = DataLoader(data, 2, num_workers=workers, shuffle=True, generator=torch.Generator().manual_seed(7))
    return [part for batch in loader for part in batch]


def test_seeds(folder: Path, model: Any) -> None:
    wanted = epoch(folder, model, seed=3)
    assert equal(epoch(folder, model, seed=3, workers=1)[::2], wanted[::2])
    assert [label.tolist() for label in wanted[1::2]] == [
        label.tolist() for label in epoch(folder, model, seed=3, workers=2)[1::2]
    ]
    assert equal(epoch(folder, model, seed=3, workers=2)[::2], wanted[::2])
    assert not equal(epoch(folder, model, seed=4)[::2], wanted[::2])
    # Without a seed it is PyTorch's generator, which a loader seeds for every worker.
    once, again = (epoch(folder, model, workers=2) for _ in range(2))
    assert equal(once[::2], again[::2]) and not equal(once[::2], wanted[::2])


def test_epochs_reach_workers_that_stay(folder: Path, model: Any) -> None:
    data = L2CDataset(files(folder)[:2] * 3, region=RandomCrop(16), seed=1, transform=drawn_number, **model)
    loader = DataLoader(data, 3, num_workers=2, persistent_workers=True)
    epochs = []
    for number in (0, 1, 0):
        data.set_epoch(number)
        epochs.append([(pixels.clone(), drawn.clone()) for pixels, drawn in loader])
    first, second, again = epochs
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again))
    assert not any(torch.equal(a[0], b[0]) or torch.equal(a[1], b[1]) for a, b in zip(first, second))
    state = torch.get_rng_state()
    data.__getitems__([0, 1])
    assert torch.equal(torch.get_rng_state(), state)  # a transform's numbers are its own


def test_spawned_workers_and_threads(folder: Path, model: Any, codec: l2c.Codec) -> None:
    settings = {"transform": with_threads, "seed": 1, **model}
    forked = {"num_workers": 1, "multiprocessing_context": "fork", "batch_size": 2}
    few = files(folder)[:2]
    (_, threads), *_ = DataLoader(L2CDataset(few, **settings), **forked)
    assert threads.tolist() == [1, 1]
    with pytest.raises(UnsupportedError, match="a forked worker cannot use more than one"):
        list(DataLoader(L2CDataset(few, threads=2, **settings), **forked))
    data = L2CDataset(few, threads=2, **settings)
    ((pictures, threads),) = DataLoader(data, 2, num_workers=1, multiprocessing_context="spawn")
    assert threads.tolist() == [2, 2]
    assert equal(list(pictures), [codec.decode(file, as_="torch") for file in few])
    assert torch.equal(pickle.loads(pickle.dumps(data))[0][0], data[0][0])


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> list[Path]:
    """A good one, one whose payload is altered, one that is cut off, an empty one, a PNG, a missing one, a good one."""
    good, large = files(folder)[0].read_bytes(), files(folder)[3].read_bytes()
    altered = bytearray(large)
    altered[-1] ^= 255
    parts = [good, bytes(altered), large[: len(large) // 2], b"", b"\x89PNG\r\n\x1a\n" + bytes(50), None, good]
    paths = [tmp_path / f"{i}.l2c" for i in range(len(parts))]
    for path, part in zip(paths, parts):
        if part is not None:
            path.write_bytes(part)
    return paths


def test_damaged_error(damaged: list[Path], model: Any) -> None:
    data = L2CDataset(damaged, **model)
    for number, error in ((1, BitstreamError), (2, BitstreamError), (3, BitstreamError), (4, BitstreamError)):
        with pytest.raises(error, match=rf"{number}\.l2c: "):
            data[number]
    with pytest.raises(OSError, match=r"5\.l2c"):
        data[5]
    with pytest.raises(BitstreamError, match=r"1\.l2c: .*CRC"):
        list(DataLoader(data, 2, num_workers=1))
    with pytest.raises(IndexError):
        data[7]
    with pytest.raises(LimitError, match=r"1\.l2c: "):
        L2CDataset(damaged, limits=l2c.Limits(max_pixels=5000), **model)[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_skip(damaged: list[Path], model: Any, codec: l2c.Codec, workers: int) -> None:
    data = L2CDataset(damaged, labels=range(7), damaged="skip", **model)
    good = codec.decode(damaged[0], as_="torch")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = list(DataLoader(data, 4, num_workers=workers))
        assert data[3] is None
        single = list(DataLoader(data, 1, num_workers=workers))
    assert [labels.tolist() for _, labels in batches] == [[0], [6]]
    assert all(torch.equal(picture, good) for pictures, _ in batches for picture in pictures)
    assert [labels.tolist() for _, labels in single] == [[0]] + 6 * [[6]]  # the next that can be read
    told = [str(one.message) for one in caught if issubclass(one.category, L2CWarning)]
    named = [number for number in range(7) if any(f"{number}.l2c" in text for text in told)]
    assert workers or named == [1, 2, 3, 4, 5]
    with pytest.raises(OSError, match="none of 2 files"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L2CDataset(damaged[3:5], damaged="skip", **model).__getitems__([0])


def test_damaged_conceal(damaged: list[Path], model: Any, codec: l2c.Codec) -> None:
    data = L2CDataset(damaged, damaged="conceal", **model)
    with pytest.warns(L2CWarning, match=r"1\.l2c: the file is damaged: tile 3 of 4"):
        pictures = data.__getitems__([0, 1])
    with pytest.warns(L2CWarning):
        assert torch.equal(pictures[1], codec.decode(damaged[1], as_="torch", damaged="conceal"))
    with pytest.warns(L2CWarning, match=r"2\.l2c: "):
        assert tuple(data[2].shape) == (3, HEIGHT, WIDTH)
    for number in (3, 4):
        with pytest.raises(BitstreamError, match=rf"{number}\.l2c: "):
            data[number]


def test_main_process(damaged: list[Path], folder: Path, model: Any, codec: l2c.Codec) -> None:
    """Labels lose what pictures lose; a batch with nothing left is left out."""
    data = L2CDataset(damaged, labels=range(7), damaged="skip", output="bytes", **model)
    loader = DecodingLoader(DataLoader(data, 2, collate_fn=collate, num_workers=1), codec=codec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(loader)
    assert len(loader) == 4 and [labels.tolist() for _, labels in found] == [[0], [6], [6]]
    pair = L2CDataset(files(folder)[:2], labels="folder", output="bytes", **model)
    ((pictures, _labels),) = DecodingLoader(DataLoader(pair, 2, collate_fn=collate), codec=codec, transform=tuple)
    assert pictures.is_contiguous(memory_format=torch.channels_last) and pictures.shape == (2, 3, 40, 56)
    named = L2CDataset(damaged, labels=lambda name: Path(name).name, damaged="skip", output="bytes", **model)
    with pytest.warns(L2CWarning, match=r"skipped: .*1\.l2c"):
        ((_, names),) = DecodingLoader(DataLoader(named, 3, collate_fn=collate, sampler=[0, 1, 6]), codec=codec)
    assert list(names) == ["0.l2c", "6.l2c"]
    (batch,) = DataLoader([{"x": pair[0][0], "n": 5}, {"x": pair[1][0], "n": 6}], 2, collate_fn=collate)
    assert isinstance(batch["x"], CodedBatch)
    (decoded,) = DecodingLoader([batch], codec=codec)
    assert torch.equal(decoded["x"], pictures) and decoded["n"].tolist() == [5, 6]
    with pytest.raises(UnsupportedError, match="has 0 CodedBatch"):
        next(iter(DecodingLoader(DataLoader(L2CDataset(files(folder)[:2], **model)), codec=codec)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(folder: Path, model: Any, codec: l2c.Codec) -> None:
    data = L2CDataset(files(folder)[:2], output="bytes", **model)
    (pictures,) = DecodingLoader(DataLoader(data, 2, collate_fn=collate, num_workers=1), "cuda", **model)
    wanted = torch.stack([codec.decode(file, as_="torch") for file in files(folder)[:2]])
    assert pictures.is_cuda and pictures.is_contiguous(memory_format=torch.channels_last)
    assert (pictures.cpu().int() - wanted.int()).abs().max() <= 1


def test_labels(folder: Path, model: Any, tmp_path: Path) -> None:
    data = L2CDataset(folder, labels="folder", target_transform=lambda label: 10 * label, **model)
    assert data.classes == ["a", "b"] and data.targets == [0, 0, 0, 1, 1, 1] and data[2][1] == 0 and data[3][1] == 10
    assert [Path(place) for place, _ in data.samples] == files(folder)
    assert L2CDataset(folder, labels="folder", classes=["c", "b", "a"], **model).targets == [2, 2, 2, 1, 1, 1]
    assert L2CDataset(files(folder), labels="folder", **model).targets == data.targets
    assert L2CDataset(folder, labels=lambda name: name, **model).targets[0] == "a/0.l2c"
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, files(folder)[:2])))
    assert len(L2CDataset(listed, **model)) == 2
    for options, reason in (
        ({"classes": ["a"], "labels": "folder"}, "3.l2c lies in none of the folders a"),
        ({"labels": [1, 2]}, "one for each of 6 files"),
        ({"labels": "folders"}, "labels is 'folders'"),
        ({"classes": ["a"]}, "give labels"),
    ):
        with pytest.raises(UnsupportedError, match=reason):
            L2CDataset(folder, **options, **model)
    with pytest.raises(UnsupportedError, match="no folder that could name its class"):
        L2CDataset(folder / "a", labels="folder", **model)
    with pytest.raises(FileNotFoundError):
        L2CDataset(tmp_path / "nothing", **model)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 3},
        {"scale": "auto"},
        {"resize": 0},
        {"resize": (1 << 20, 1 << 20)},
        {"thumbnail": 10, "scale": 2},
        {"damaged": "ignore"},
        {"seed": 1.5},
        {"threads": 0},
        {"output": "pil"},
        {"metric": "vmaf"},
        {"precision": "float16"},
        {"limits": 5},
        {"model": None},
    ],
)
def test_bad_arguments(folder: Path, options: Any) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(options))):
        L2CDataset(folder, **options)


def test_crops(folder: Path, model: Any) -> None:
    generator = generator_of(1)
    for height, width in ((1, 1), (1, 5000), (97, 61), (1 << 15, 3)):
        for chooser in (RandomResizedCrop(), RandomCrop(50, clip=True), CenterCrop((7, 9), clip=True)):
            left, top, right, bottom = chooser(height, width, generator)
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
    places = {RandomCrop((2, 3))(4, 4, generator) for _ in range(200)}
    assert places == {(x, y, x + 3, y + 2) for x in range(2) for y in range(3)}
    boxes = [RandomResizedCrop((0.2, 0.5))(300, 400, generator) for _ in range(200)]
    shares = [(right - left) * (bottom - top) / 120000 for left, top, right, bottom in boxes]
    assert 0.19 < min(shares) < 0.25 and 0.45 < max(shares) < 0.51
    with pytest.raises(UnsupportedError, match="must be 0 < least <= most <= 1"):
        RandomResizedCrop((0.5, 2))
    for region in (RandomCrop(50), (0, 0, 57, 40), lambda *_: (0, 0, 1)):
        with pytest.raises(UnsupportedError, match=r"0\.l2c: "):
            L2CDataset(folder, region=region, damaged="skip", **model)[0]  # the caller's fault: nothing to skip


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    """Three shards of two pictures each, all of 40x56."""
    data = [file.read_bytes() for file in (files(folder)[i] for i in (0, 1, 5))]
    for n in range(3):
        members = {}
        for i in (2 * n, 2 * n + 1):
            members |= {f"s/{i}.cls": str(i).encode(), f"s/{i}.l2c": data[i % 3], f"s/{i}.txt": b"text"}
        shard(tmp_path / f"{n}.tar", members)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_shards(shards: Path, folder: Path, codec: l2c.Codec, model: Any, workers: int) -> None:
    wanted = [codec.decode(files(folder)[(0, 1, 5)[i % 3]], as_="torch", scale=2) for i in range(6)]
    own = L2CShards(shards / "{0..2}.tar", labels="cls", scale=2, **model)
    found = sorted(DataLoader(own, None, num_workers=workers), key=lambda pair: pair[1])
    assert [label for _, label in found] == list(range(6)) and equal([picture for picture, _ in found], wanted)
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode(webdataset_decoder(scale=2, **model))
    theirs = DataLoader(pipeline.to_tuple("l2c", "cls"), None, num_workers=workers)
    assert equal([p for p, _ in sorted(theirs, key=lambda pair: pair[1])], wanted)


def test_shards_shuffled_and_shared(shards: Path, model: Any) -> None:
    def keys(epoch: int, **options: Any) -> list[int]:
        data = L2CShards(shards, labels="cls", shuffle=3, seed=5, region=RandomCrop(8), **options, **model)
        data.set_epoch(epoch)
        return [label for _, label in data]

    assert keys(0) == keys(0) and sorted(keys(0)) == list(range(6))
    assert len({tuple(keys(epoch)) for epoch in range(4)}) > 1
    both = keys(2, rank=0, world=2) + keys(2, rank=1, world=2)
    assert sorted(both) == list(range(6))
    with pytest.raises(UnsupportedError, match="rank is 2"):
        keys(0, rank=2, world=2)


def test_damaged_shards(shards: Path, damaged: list[Path], codec: l2c.Codec, model: Any) -> None:
    whole = (shards / "0.tar").read_bytes()
    cut = shards / "cut.tar"
    cut.write_bytes(whole[: whole.index(b"s/1.l2c") + 600])
    bad = shard(shards / "bad.tar", {"x.l2c": damaged[4].read_bytes(), "x.cls": b"1", "y.l2c": damaged[0].read_bytes()})
    for path, reason in ((cut, r"cut\.tar: cannot read"), (bad, "x: .*not an L2C file"), (shards / "no.tar", "no.tar")):
        with pytest.raises((BitstreamError, OSError), match=reason):
            list(L2CShards([path], **model))
    with pytest.warns(L2CWarning) as told:
        assert list(L2CShards([bad], labels="cls", damaged="skip", **model)) == []
        found = list(L2CShards([cut, bad, shards / "no.tar"], damaged="skip", **model))
    texts = "\n".join(str(one.message) for one in told)
    assert "y.cls: no label" in texts and "cut.tar: cannot read" in texts and "no.tar" in texts
    assert equal(found, 2 * [codec.decode(damaged[0], as_="torch")])

    def theirs(handler: Any) -> list[Any]:
        loaded = webdataset.WebDataset(str(bad), shardshuffle=False)
        return [part["l2c"] for part in loaded.decode(webdataset_decoder(**model), handler=handler)]

    with pytest.warns(L2CWarning, match="skipped: x: .*not an L2C file"):
        assert equal(theirs(skip_damaged), [codec.decode(damaged[0], as_="torch")])
    with pytest.raises(webdataset.autodecode.DecodingError) as caught:
        theirs(webdataset.reraise_exception)
    assert caught.value.key == "x" and isinstance(caught.value.__cause__, BitstreamError)
    with pytest.raises(ValueError, match="of the pipeline"):
        skip_damaged(ValueError("of the pipeline"))
    with pytest.raises(UnsupportedError, match="handler=skip_damaged"):
        webdataset_decoder(damaged="skip")


def test_webdataset_to_the_main_process(shards: Path, folder: Path, codec: l2c.Codec, model: Any) -> None:
    decoder = webdataset_decoder(output="bytes", region=RandomCrop(16), seed=2, **model)
    pipeline = webdataset.WebDataset(str(shards / "0.tar"), shardshuffle=False).decode(decoder).to_tuple("l2c", "cls")
    ((pictures, labels),) = DecodingLoader(DataLoader(pipeline, 2, collate_fn=collate), codec=codec)
    (again,) = DataLoader(
        webdataset.WebDataset(str(shards / "0.tar"), shardshuffle=False)
        .decode(webdataset_decoder(region=RandomCrop(16), seed=2, **model))
        .to_tuple("l2c", "cls"),
        2,
        num_workers=1,
    )
    assert torch.equal(pictures, again[0]) and labels.tolist() == [0, 1] and pictures.shape == (2, 3, 16, 16)


def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parent.parent / "examples/train_classifier.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--quick", "--workers", "0"])
    assert runpy.run_path(str(script))["main"]() == 0
    out = capsys.readouterr().out
    assert out.count("L2C, scale 4") == 2 and out.count("%") == 5


def test_the_default_precision_is_that_of_decode(tmp_path: Path) -> None:
    """With a model that computes pixels in integers: the same ones, and not those of floats."""
    data = l2c.encode(skimage.data.astronaut()[:120, :160], quality=60)
    (tmp_path / "a.l2c").write_bytes(data)
    pixels = L2CDataset(tmp_path)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, l2c.decode(data))
    assert not np.array_equal(pixels, l2c.Codec(precision="float32").decode(data))
