"""A small classifier trained on PNG and on L2C files of the same pictures: how right it is, and how fast they load.

    python examples/train_classifier.py [--side 256] [--count 40] [--workers 2] [--device cpu] [--out FOLDER] [--quick]

The pictures are drawn by code: five textures in random colours, sizes and directions, under noise. The first table has
pictures per second that a `DataLoader` gives, decoded in the main process (and the milliseconds that this keeps a core
busy with a picture) and in its workers; the second one the share of test pictures that a network gets right that was
trained on what each gives.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import l2c
from l2c.torch_data import CenterCrop, DecodingLoader, L2CDataset, RandomCrop, collate

Pixels = npt.NDArray[np.uint8]

CLASSES: dict[str, Callable[[Any, Any], Any]] = {  # across and along, in turns of the pattern -> -1..1
    "checks": lambda u, v: np.sign(np.sin(u) * np.sin(v)),
    "dots": lambda u, v: 2.0 * (np.hypot(np.sin(u / 2), np.sin(v / 2)) < 0.6) - 1,
    "rings": lambda u, v: np.sin(np.hypot(u, v)),
    "stripes": lambda u, v: np.sin(u),
    "waves": lambda u, v: np.sin(u + 2 * np.sin(v / 2)),
}
BATCH, EPOCHS, QUALITY = 16, 12, 30


def draw(kind: str, side: int, rng: np.random.Generator) -> Pixels:
    """A picture of a class, uint8 [side, side, 3]."""
    y, x = np.mgrid[0:side, 0:side] * (2 * np.pi * rng.uniform(5, 9) / side)
    turn = rng.uniform(0, 2 * np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn) + rng.uniform(-9, 9), y * np.cos(turn) - x * np.sin(turn)
    dark, bright = rng.uniform(0, 110, 3), rng.uniform(140, 255, 3)
    shares = (CLASSES[kind](u, v)[..., None] + 1) / 2
    picture = dark + shares * (bright - dark) + rng.normal(0, 16, (side, side, 3))
    return picture.clip(0, 255).astype(np.uint8)


def write(root: Path, side: int, count: int) -> dict[str, int]:
    """`count` pictures of each class to learn from, half as many to test, as PNG and as L2C; bytes of each form."""
    codec, sizes = l2c.Codec(), {"png": 0, "l2c": 0}
    for part, number, seed in (("train", count, 0), ("test", max(1, count // 2), 1)):
        for kind in CLASSES:
            rng = np.random.default_rng([seed, len(kind), ord(kind[0])])
            pictures = [draw(kind, side, rng) for _ in range(number)]
            for i, data in enumerate(codec.encode_batch(pictures, quality=QUALITY, lossless="never")):
                files = {form: root / form / part / kind / f"{i:03d}.{form}" for form in sizes}
                for file in files.values():
                    file.parent.mkdir(parents=True, exist_ok=True)
                files["l2c"].write_bytes(data)
                Image.fromarray(pictures[i]).save(files["png"])
                for form, file in files.items():
                    sizes[form] += file.stat().st_size
    return sizes


class PngFolder(Dataset[Any]):
    """PNG files below folders of classes: (picture uint8 [3, H, W], label); of a region all is decoded."""

    def __init__(self, root: Path, region: Callable[..., Any] | None = None) -> None:
        self._files, self._region = sorted(root.glob("*/*.png")), region
        self._labels = {name: i for i, name in enumerate(sorted(folder.name for folder in root.iterdir()))}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self._files[index]) as image:
            picture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        if self._region is not None:
            left, top, right, bottom = self._region(*picture.shape[1:], torch.default_generator)
            picture = picture[:, top:bottom, left:right]
        return picture.contiguous(), self._labels[self._files[index].parent.name]


def seconds_of(loader: Iterable[Any]) -> tuple[float, float]:
    """Time of the second epoch, when workers and codecs are there, and how long it kept cores busy in this process."""
    for _ in range(2):
        began, busy = time.perf_counter(), time.process_time()
        for _pictures, _labels in loader:
            pass
    return time.perf_counter() - began, time.process_time() - busy


def network() -> nn.Sequential:
    """Pictures [N, 3, H, W] of any size -> [N, classes]."""
    widths, layers = (3, 16, 32, 64), []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(CLASSES)))


def prepared(pictures: Tensor, device: str) -> Tensor:
    """uint8 -> float32, centred."""
    return pictures.to(device).float() / 127.5 - 1


def accuracy(
    train: Iterable[Any], test: Iterable[Any], epochs: int, device: str, begin: Callable[[int], None]
) -> float:
    """Train a network; the share of the test pictures that it gets right."""
    torch.manual_seed(0)
    model = network().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for epoch in range(epochs):
        begin(epoch)
        model.train()
        for pictures, labels in train:
            loss = F.cross_entropy(model(prepared(pictures, device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    right = total = 0
    with torch.inference_mode():
        for pictures, labels in test:
            right += int((model(prepared(pictures, device)).argmax(1).cpu() == labels).sum())
            total += len(labels)
    return right / total


def main() -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train a small classifier on PNG and on L2C files; compare.")
    parser.add_argument("--side", type=int, default=256, help="of a picture, in pixels")
    parser.add_argument("--count", type=int, default=40, help="pictures of a class to learn from")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="of the main process")
    parser.add_argument("--out", type=Path, default=None, help="where the pictures go (default: nowhere to stay)")
    parser.add_argument("--quick", action="store_true", help="few small pictures: that all of it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.side, arguments.count = min(arguments.side, 48), min(arguments.count, 2)
    with tempfile.TemporaryDirectory() as folder:
        try:
            compare(arguments.out or Path(folder), arguments, 1 if arguments.quick else EPOCHS)
        except l2c.L2CError as error:
            print(f"train_classifier: error: {error}", file=sys.stderr)
            return 1
    return 0


def compare(root: Path, arguments: argparse.Namespace, epochs: int) -> None:
    """Both tables."""
    side, workers, device = arguments.side, arguments.workers, arguments.device
    sizes = write(root, side, arguments.count)
    crop = max(1, side // 4)
    number = len(PngFolder(root / "png/train"))
    print(f"{number} pictures of {side}x{side} and {device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"bytes: PNG {sizes['png']}, L2C {sizes['l2c']} (quality {QUALITY})\n")

    forms: dict[str, dict[str, Any]] = {
        "L2C": {},
        "L2C, scale 2": {"scale": 2},
        "L2C, scale 4": {"scale": 4},
        "L2C, scale 8": {"scale": 8},
        f"L2C, {crop}x{crop} region": {"region": RandomCrop(crop)},
    }
    if arguments.quick:
        del forms["L2C, scale 2"], forms["L2C, scale 8"]
    print(f"{'pictures/s':<22} {'main process':>13} {'busy, ms':>13} {f'{workers} workers':>13}")
    settings: Any = {"batch_size": BATCH, "num_workers": workers, "persistent_workers": workers > 0}
    for name, region in (("PNG", None), (f"PNG, {crop}x{crop} region", RandomCrop(crop))):
        png = PngFolder(root / "png/train", region)
        _row(name, number, DataLoader(png, BATCH), DataLoader(png, **settings))
    for name, options in forms.items():
        here = L2CDataset(root / "l2c/train", labels="folder", output="bytes", seed=0, **options)
        there = L2CDataset(root / "l2c/train", labels="folder", seed=0, **options)
        main_process = DecodingLoader(DataLoader(here, BATCH, collate_fn=collate), device)
        _row(name, number, main_process, DataLoader(there, **settings))

    print(f"\n{'trained on':<22} {'right':>13} {'seconds':>13}")
    shuffled: Any = {**settings, "shuffle": True}
    for name, region in (("PNG", None), (f"PNG, {crop}x{crop} region", RandomCrop(crop))):
        train = DataLoader(PngFolder(root / "png/train", region), generator=torch.Generator(), **shuffled)
        middle = None if region is None else CenterCrop(crop)
        test = DataLoader(PngFolder(root / "png/test", middle), BATCH)
        _result(name, train, test, epochs, device, lambda epoch: None)
    for name, options in forms.items():
        mine = L2CDataset(root / "l2c/train", labels="folder", seed=0, **options)
        centred = {"region": CenterCrop(crop)} if "region" in options else options
        held = L2CDataset(root / "l2c/test", labels="folder", classes=mine.classes, **centred)
        train = DataLoader(mine, generator=torch.Generator(), **shuffled)
        _result(name, train, DataLoader(held, BATCH), epochs, device, mine.set_epoch)


def _row(name: str, number: int, here: Iterable[Any], there: Iterable[Any]) -> None:
    (mine, busy), (theirs, _) = seconds_of(here), seconds_of(there)
    print(f"{name:<22} {number / mine:13.0f} {1000 * busy / number:13.1f} {number / theirs:13.0f}", flush=True)


def _result(
    name: str, train: Iterable[Any], test: Iterable[Any], epochs: int, device: str, begin: Callable[[int], None]
) -> None:
    began = time.perf_counter()
    share = accuracy(train, test, epochs, device, begin)
    print(f"{name:<22} {share:13.1%} {time.perf_counter() - began:13.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
