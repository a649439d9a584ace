"""The batched search against the yardstick, the paper's sequential encoder, on the same pictures in the same run.

    python bench/bench_adapt.py KODAK [--model FILE] [--qualities 30 50 70] [--pictures kodim01 ...] [--threads 2]

Both adapt the same picture at the same quality with the same networks, dtype, memory format and threads. Both results
are then written as real files and decoded, and their objective J = lambda * pixels * D + 8 * bytes is measured on the
decoded 8-bit pixels by the same code. Reported: seconds, speed-up, and J gained over the unadapted file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import l2c
from l2c import codec as codec_module
from l2c.adapt.bias_sets import search_sets
from l2c.adapt.effort import EFFORTS
from l2c.adapt.encoder import regions_of
from l2c.adapt.latents import LatentSearch
from l2c.adapt.section import PatchChanges
from l2c.adapt.sequential import adapt_sequentially
from l2c.images import load_picture
from l2c.metrics import mixed_distortion
from l2c.probability import MAX_MU, MAX_QUALITY

PICTURES = ("kodim01", "kodim05", "kodim08", "kodim15", "kodim19", "kodim23")
SHORT_LIST = 8


@dataclass
class Outcome:
    """Of one encoder on one picture: seconds of latents and sets, and J in bits."""

    latents: float
    sets: float
    objective: float


def objective(
    codec: l2c.Codec, batch: codec_module._Batch, symbols: np.ndarray, changes: PatchChanges, level: int
) -> float:
    """J of the real file with these latents and changes."""
    latents = codec_module._Latents(symbols, level, batch.mu, batch.bits)
    ((data, _),) = codec._write(batch, [0], [latents], [changes.pack()])
    pixels = batch.pictures[0].rgb
    x, x_hat = (torch.from_numpy(a.copy()).permute(2, 0, 1)[None].float() / 255 for a in (pixels, codec.decode(data)))
    distortion = float(mixed_distortion(x, x_hat, torch.full((1,), batch.mu / MAX_MU))[2])
    return 8.0 * len(data) + codec._lmbda(level) * pixels.shape[0] * pixels.shape[1] * distortion


def ours(codec: l2c.Codec, batch: codec_module._Batch, level: int, iterations: int) -> tuple[Outcome, float]:
    """The batched search; also J of the unadapted file."""
    start = time.perf_counter()
    (subject,) = codec._subjects(batch, [0], [level])
    regions = regions_of(codec.transform, [subject], [(0, subject.boxes[0])], codec.device)
    search = LatentSearch(codec.transform, codec._probability(), regions)
    _ = search.start  # its first pass
    seconds = time.perf_counter() - start
    before = objective(codec, batch, search.symbols()[0].numpy(), PatchChanges(), level)
    start = time.perf_counter()
    search.run(iterations)
    middle = time.perf_counter()
    changes, sets = PatchChanges(), codec.model.bias_sets
    if sets is not None:
        bands = [sets.band(level, MAX_QUALITY)]
        found = search_sets(codec.transform, regions, search.z, sets, bands, SHORT_LIST)
        assert found is not None
        changes = PatchChanges(found[0][0].numpy().astype(np.uint8))
    end = time.perf_counter()
    value = objective(codec, batch, search.symbols()[0].numpy(), changes, level)
    return Outcome(seconds + middle - start, end - middle, value), before


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures_folder", type=Path, metavar="KODAK")
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--qualities", type=int, nargs="+", default=[30, 50, 70])
    parser.add_argument("--pictures", nargs="+", default=PICTURES)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = l2c.Codec(args.model, threads=args.threads)
    print(f"{codec.model.name} {codec.model.model_id.hex()}, {args.threads} threads, torch {torch.__version__}")
    print("| picture, quality | yardstick latents s | sets s | ours latents s | sets s | speed latents, sets, total "
          "| J gained: yardstick, ours 10, ours 3 |\n|---|---|---|---|---|---|---|")  # fmt: skip
    rows = []
    for name in args.pictures:
        picture = load_picture(args.pictures_folder / f"{name}.png")
        clock = {"encoder": 0.0, "entropy": 0.0}
        batch = codec_module._Batch(
            [picture], [{}], MAX_MU, codec.model.config.bits, 1024, EFFORTS[0], clock, float("inf"), lambda *_: None
        )
        for quality in args.qualities:
            level = quality * MAX_QUALITY // 100
            full, before = ours(codec, batch, level, 10)
            short, _ = ours(codec, batch, level, 3)
            slow = adapt_sequentially(codec.model, codec._probability(), picture.rgb, level, MAX_MU)
            value = objective(codec, batch, slow.symbols, PatchChanges(slow.sets), level)
            gains = [100 * (before - j) / before for j in (value, full.objective, short.objective)]
            total = slow.seconds["latents"] + slow.seconds["sets"]
            speeds = (
                slow.seconds["latents"] / full.latents, slow.seconds["sets"] / full.sets,
                total / (full.latents + full.sets), total / (short.latents + short.sets),
            )  # fmt: skip
            rows.append((*speeds, *gains))
            print(
                f"| {name}, {quality} | {slow.seconds['latents']:.1f} | {slow.seconds['sets']:.1f} "
                f"| {full.latents:.1f} | {full.sets:.1f} | {speeds[0]:.1f}x, {speeds[1]:.1f}x, {speeds[2]:.1f}x "
                f"(3 iterations {speeds[3]:.1f}x) | {gains[0]:+.2f} %, {gains[1]:+.2f} %, {gains[2]:+.2f} % |",
                flush=True,
            )
    medians = [statistics.median(column) for column in zip(*rows)]
    print(
        f"medians: latents {medians[0]:.1f}x, sets {medians[1]:.1f}x, total at equal iterations {medians[2]:.1f}x, "
        f"with 3 iterations {medians[3]:.1f}x; J gained {medians[4]:+.2f} % by the yardstick, {medians[5]:+.2f} % by "
        f"ours, {medians[6]:+.2f} % by ours with 3 iterations"
    )


if __name__ == "__main__":
    main()
