"""That regions have the whole picture's pixels, and what they and small pictures cost.

    python tests/checks/views.py FOLDER [--count 6] [--regions 50] [--threads 2] [--large 100]

Of every picture two files are made, with tiles of 512 and adapted, and with tiles of 1024 and not; pictures are joined
in pairs and cut so that no size is a multiple of anything. Pixels of random regions must be those of the whole picture:
exits with 1 where one differs. Prints the bytes that were read of each file and the time by area. Then, of scales 2, 4
and 8, the time and the PSNR against the whole picture scaled down, and that of the two against the original scaled
down; and regions of 512x512 of a picture of so many megapixels that is made of these.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

import l2c
from l2c.images import load_picture
from l2c.images.listing import list_pictures

SIDE = 512  # of the regions of a large picture


class Counted(io.BytesIO):
    """A file object that knows how many bytes were read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.count += len(found)
        return found


def random_region(rng: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    left, right = sorted(rng.choice(width + 1, 2, replace=False).tolist())
    top, bottom = sorted(rng.choice(height + 1, 2, replace=False).tolist())
    return left, top, right, bottom


def timed(call: Any, *given: Any, **named: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call(*given, **named)
    return result, time.perf_counter() - start


def regions(codec: l2c.Codec, data: bytes, rng: np.random.Generator, count: int) -> int:
    """Differing pixels of random regions of a file; prints times and bytes."""
    whole, seconds = timed(codec.decode, data)
    wrong, per_pixel, read, area = 0, [], [], []
    for _ in range(count):
        left, top, right, bottom = random_region(rng, *whole.shape[:2])
        file = Counted(data)
        part, took = timed(codec.decode, file, region=(left, top, right, bottom))
        wrong += int((part != whole[top:bottom, left:right]).any(axis=2).sum())
        area.append(part[:, :, 0].size / whole[:, :, 0].size)
        per_pixel.append(took / seconds)
        read.append(file.count / len(data))
    print(f"  {whole.shape[1]}x{whole.shape[0]}: {wrong} pixels differ in {count} regions; whole {seconds:.2f} s")
    order = np.argsort(area)
    for part in np.array_split(order, 3):
        means = [statistics.mean(values[i] for i in part) for values in (area, per_pixel, read)]
        print("    area {:5.1%}: {:5.1%} of the time, {:5.1%} of the bytes".format(*means))
    return wrong


def scales(codec: l2c.Codec, pixels: npt.NDArray[np.uint8], quality: float) -> None:
    data = codec.encode(pixels, quality=quality)
    codec.decode(data)
    whole, full = timed(codec.decode, data)
    planes = torch.from_numpy(whole.transpose(2, 0, 1).copy()).double()
    for scale in (2, 4, 8):
        found = [timed(codec.decode, data, scale=scale) for _ in range(5)]
        small, seconds = found[0][0], statistics.median(took for _, took in found)
        means = F.avg_pool2d(planes, scale, ceil_mode=True).permute(1, 2, 0).numpy()
        psnr = 10 * np.log10(255**2 / np.square(small - means).mean())
        original = F.avg_pool2d(torch.from_numpy(pixels.transpose(2, 0, 1).copy()).double(), scale, ceil_mode=True)
        lost = [10 * np.log10(255**2 / np.square(p - original.permute(1, 2, 0).numpy()).mean()) for p in (means, small)]
        rate = f"{1e3 * seconds:.0f} ms, {full / seconds:.1f} times as fast"
        there = f"to the original {lost[0]:.2f} and {lost[1]:.2f} dB"
        print(f"  quality {quality:g}, 1/{scale}: {psnr:.2f} dB, {there}, {rate}")


def large(codec: l2c.Codec, pixels: npt.NDArray[np.uint8], megapixels: float, rng: np.random.Generator) -> None:
    side = int((megapixels * 1e6) ** 0.5)
    rows, columns = -(-side // pixels.shape[0]), -(-side // pixels.shape[1])
    picture = np.tile(pixels, (rows, columns, 1))[:side, :side]
    data, seconds = timed(codec.encode, picture, quality=40)
    print(f"{picture.shape[1]}x{picture.shape[0]}, {len(data)} bytes, encoded in {seconds:.0f} s")
    times, read = [], []
    for _ in range(20):
        left, top = rng.integers(0, side - SIDE, 2).tolist()
        file = Counted(data)
        _, took = timed(codec.decode, file, region=(left, top, left + SIDE, top + SIDE))
        times.append(took)
        read.append(file.count / len(data))
    print(
        f"  {SIDE}x{SIDE}: {statistics.median(times):.3f} s (median), {max(times):.3f} s at most, "
        f"{statistics.mean(read):.2%} of the bytes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--regions", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--large", type=float, metavar="MEGAPIXELS")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec, rng, wrong = l2c.Codec(), np.random.default_rng(0), 0
    pictures = [load_picture(path).rgb for path in list_pictures(args.pictures)[: 2 * args.count]]
    upright = [part if part.shape[0] < part.shape[1] else part.transpose(1, 0, 2) for part in pictures]
    for number, (one, other) in enumerate(zip(upright[::2], upright[1::2])):
        height = min(len(one), len(other)) - 1 - number
        pair = np.concatenate([one[:height], other[:height]], axis=1)[:, number : -1 - 2 * number]
        for tile, options in ((512, {"effort": 2}), (1024, {})):
            adapted = l2c.EncodeOptions(quality=50, tile=tile, **options)  # type: ignore[typeddict-item]
            wrong += regions(codec, codec.encode(pair, **adapted), rng, args.regions)
    for quality in (20, 50, 80):
        scales(codec, pictures[0], quality)
    if args.large:
        large(codec, np.concatenate(upright[:4], axis=1), args.large, rng)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
