"""The batched search against the yardstick, the paper's sequential encoder, on the same problem in the same run.

    python experiments/yardstick.py KODAK [--model FILE] [--qualities 30 50 70] [--pictures kodim01 ...] [--threads 2]

As in the paper every whole 256x256 patch is a picture of its own, for both, with the same networks, dtype, memory
format and threads: the yardstick takes them one after another, ten iterations and all bias sets each; ours takes all of
them at once, with ten iterations and a short list of eight, and with fewer of both. J = lambda * pixels * D + bits is
measured for all by the same code, from the integer model's bits and the 8-bit pixels of a float32 decode.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import l2c
from l2c import transforms
from l2c.adapt.bias_sets import search_sets, set_maps
from l2c.adapt.encoder import regions_of
from l2c.adapt.latents import LatentSearch, Regions
from l2c.adapt.sequential import adapt_sequentially
from l2c.codec.latent_stage import Latents
from l2c.format.adapt_section import BIAS_PATCH, NO_SET
from l2c.format.levels import MAX_MU, MAX_QUALITY, OperatingPoint
from l2c.images import load_picture
from l2c.transforms import Adaptation, Grid

PICTURES = ("kodim01", "kodim05", "kodim08", "kodim15", "kodim19", "kodim23")
BUDGETS = ((10, 8), (10, 2), (4, 2), (2, 1))  # iterations, short list


@dataclass
class Outcome:
    """Of one encoder on one picture: seconds of latents and sets, and J in bits."""

    latents: float
    sets: float
    objective: float


def objective(codec: l2c.Codec, regions: Regions, symbols: Tensor, index: Tensor) -> float:
    """J of all patches, symbols uint8 [N, c, h, w], with their bias sets, int64 [N]."""
    level, mu, bits = (int(value) for value in regions.header[0])
    sizes = [(codec.transform.s * part.shape[1], codec.transform.s * part.shape[2]) for part in symbols]
    latents = [Latents(part.contiguous().numpy(), OperatingPoint(level, mu, bits)) for part in symbols]
    total = sum(
        8.0 * len(payload) for written in codec.latent_stage.write(sizes, latents, 1024) for payload in written.payloads
    )
    sets, change = codec.model.bias_sets, None
    if sets is not None:
        maps = set_maps(sets, [sets.band(level, MAX_QUALITY)] * len(index), index[:, None, None])
        change = Adaptation(biases=maps, bias_grid=Grid(BIAS_PATCH // codec.transform.s))
    with torch.no_grad():
        x_hat = regions.decode(codec.transform, transforms.dequantise(symbols, bits), change)
        return total + float(regions.cost((x_hat * 255.0).round() / 255.0).sum())


def patches_of(codec: l2c.Codec, path: Path, level: int) -> tuple[np.ndarray, Regions, float]:
    """The part of a picture that whole patches cover, its patches, and the seconds that E took for them."""
    pixels = load_picture(path).rgb
    rows, columns = pixels.shape[0] // BIAS_PATCH, pixels.shape[1] // BIAS_PATCH
    pixels = pixels[: rows * BIAS_PATCH, : columns * BIAS_PATCH]
    pictures = [
        np.ascontiguousarray(part) for row in np.split(pixels, rows, axis=0) for part in np.split(row, columns, axis=1)
    ]
    batch = codec.encoder.batch(pictures, mu=MAX_MU)
    start = time.perf_counter()
    subjects = codec.encoder.subjects(batch, range(len(pictures)), [level] * len(pictures))
    regions = regions_of(codec.transform, subjects, [(i, s.boxes[0]) for i, s in enumerate(subjects)], codec.device)
    return pixels, regions, time.perf_counter() - start


def ours(codec: l2c.Codec, regions: Regions, setup: float, iterations: int, count: int) -> Outcome:
    """The batched search of all patches."""
    start = time.perf_counter()
    search = LatentSearch(codec.transform, codec.float_probability(), regions)
    search.run(iterations)
    middle = time.perf_counter()
    index, sets = torch.full((len(regions),), NO_SET), codec.model.bias_sets
    if sets is not None:
        bands = [sets.band(int(level), MAX_QUALITY) for level in regions.header[:, 0]]
        found = search_sets(codec.transform, regions, search.z, sets, bands, count)
        assert found is not None
        index = found[0][:, 0, 0]
    end = time.perf_counter()
    return Outcome(setup + middle - start, end - middle, objective(codec, regions, search.symbols(), index))


def yardstick(codec: l2c.Codec, pixels: np.ndarray, regions: Regions, level: int) -> Outcome:
    """The sequential encoder on the same patches."""
    slow = adapt_sequentially(codec.model, codec.float_probability(), pixels, level, MAX_MU)
    c, h, w = regions.y.shape[1:]
    whole = torch.from_numpy(slow.symbols)
    symbols = whole.unfold(1, h, h).unfold(2, w, w).permute(1, 2, 0, 3, 4).reshape(-1, c, h, w)
    index = torch.from_numpy(slow.sets.astype(np.int64)).flatten()
    return Outcome(slow.seconds["latents"], slow.seconds["sets"], objective(codec, regions, symbols, index))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="KODAK")
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--qualities", type=int, nargs="+", default=[30, 50, 70])
    parser.add_argument("--pictures", nargs="+", default=PICTURES)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = l2c.Codec(args.model, threads=args.threads)
    sets = codec.model.bias_sets
    number = 0 if sets is None else sets.values.shape[1]
    print(f"{codec.model.name} {codec.model.model_id.hex()}, {number} sets, {args.threads} threads")
    columns: dict[tuple[int, int], list[tuple[float, ...]]] = {budget: [] for budget in BUDGETS}
    for name in args.pictures:
        for quality in args.qualities:
            level = quality * MAX_QUALITY // 100
            pixels, regions, setup = patches_of(codec, args.folder / f"{name}.png", level)
            plain = transforms.quantise(regions.y, int(regions.header[0, 2]))
            before = objective(codec, regions, plain, torch.full((len(regions),), NO_SET))
            slow = yardstick(codec, pixels, regions, level)
            base = 100 * (before - slow.objective) / before
            print(f"{name}, {quality}: yardstick {slow.latents:.1f} + {slow.sets:.1f} s, J {-base:+.2f} %")
            for budget in BUDGETS:
                fast = ours(codec, regions, setup, *budget)
                gain = 100 * (before - fast.objective) / before
                speeds = (slow.latents / fast.latents, slow.sets / fast.sets,
                          (slow.latents + slow.sets) / (fast.latents + fast.sets))  # fmt: skip
                columns[budget].append((*speeds, gain, base))
                print(
                    f"    {budget[0]} iterations, {budget[1]} sets: {fast.latents:.1f} + {fast.sets:.1f} s, J "
                    f"{-gain:+.2f} %; latents {speeds[0]:.1f}x, sets {speeds[1]:.1f}x, total {speeds[2]:.1f}x",
                    flush=True,
                )
    print("\n| iterations, short list | latents | sets | total | J, median | J of the yardstick |\n" + "|---" * 6 + "|")
    for budget, rows in columns.items():
        m = [statistics.median(column) for column in zip(*rows)]
        print(
            f"| {budget[0]}, {budget[1]} | {m[0]:.1f}x | {m[1]:.1f}x | {m[2]:.1f}x | {-m[3]:+.2f} % | {-m[4]:+.2f} % |"
        )


if __name__ == "__main__":
    main()
