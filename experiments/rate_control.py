"""Rates between the usual ones, and pictures of different sizes in one batch, both through the adaptation.

    python experiments/rate_control.py KODAK [--effort 4] [--count 20] [--seed 0]

Odd targets: random pictures, rates (log-uniform in 0.06..2 bpp) and metrics. Batch: five crops of different sizes, each
twice, in one call and one at a time; largest difference of size, quality and pixels, and the ratio of the times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

import l2c
from l2c.evaluate.measures import measure
from l2c.images.listing import list_pictures

SIZES = ((512, 768), (384, 384), (200, 300), (333, 517), (512, 256))


def odd_targets(codec: l2c.Codec, files: list[Path], effort: int, count: int, seed: int) -> None:
    """One file for each."""
    random = np.random.default_rng(seed)
    shares, passes = [], []
    for _ in range(count):
        path, metric = files[random.integers(len(files))], str(random.choice(["msssim", "psnr"]))
        rate = float(np.exp(random.uniform(np.log(0.06), np.log(2.0))))
        encoded = codec.encode_detailed(path, bpp=rate, metric=metric, effort=effort)
        shares.append(encoded.bpp / rate)
        passes.append(encoded.probes + encoded.adaptation_as_dict().get("passes", 0))
        flag = "" if encoded.target_reached else f"  {encoded.reason}"
        print(f"{path.stem} {metric} {rate:.4f}: {shares[-1]:.4f} of the target, {passes[-1]} passes{flag}", flush=True)
    inside = sum(0.98 <= share <= 1.0 for share in shares)
    print(f"{inside} of {count} in 0.98..1.00; median {statistics.median(passes)} network passes\n")


def similarity(picture: np.ndarray, decoded: np.ndarray) -> float:
    """MS-SSIM over RGB of uint8 [H, W, 3] arrays."""
    return measure(picture, decoded, ("ms-ssim-rgb",))["ms-ssim-rgb"]


def mixed_batch(codec: l2c.Codec, files: list[Path], effort: int) -> None:
    """The same crops together and alone."""
    crops = []
    for k, (height, width) in enumerate(SIZES * 2):
        pixels = np.asarray(Image.open(files[k % len(files)]).convert("RGB"))
        pixels = pixels if pixels.shape[0] >= height and pixels.shape[1] >= width else pixels.transpose(1, 0, 2)
        crops.append(np.ascontiguousarray(pixels[:height, :width]))
    start = time.perf_counter()
    together = codec.encode_batch(crops, bpp=0.5, metric="msssim", effort=effort)
    middle = time.perf_counter()
    alone = [codec.encode(crop, bpp=0.5, metric="msssim", effort=effort) for crop in crops]
    end = time.perf_counter()
    decoded = codec.decode_batch(together)
    print(f"batch of {len(crops)}, effort {effort}: {(end - middle) / (middle - start):.2f}x faster than one at a time")
    sizes = [abs(len(a) / len(b) - 1.0) for a, b in zip(together, alone)]
    differences = [
        abs(similarity(crop, pixels) - similarity(crop, codec.decode(b)))
        for crop, pixels, b in zip(crops, decoded, alone)
    ]
    same = sum(np.array_equal(pixels, codec.decode(a)) for pixels, a in zip(decoded, together))
    most = max(
        int(np.abs(pixels.astype(int) - codec.decode(a).astype(int)).max()) for pixels, a in zip(decoded, together)
    )
    print(f"largest difference: size {100 * max(sizes):.2f} %, MS-SSIM {max(differences):.5f}")
    print(f"decoded together and alone: {same} of {len(crops)} equal, largest difference {most} levels")
    for _ in range(2):  # the second time is quoted
        start = time.perf_counter()
        codec.decode_batch(together)
        middle = time.perf_counter()
        for data in together:
            codec.decode(data)
        end = time.perf_counter()
    print(f"decoding together: {(end - middle) / (middle - start):.2f}x")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="KODAK")
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--effort", type=int, default=4)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    codec, files = l2c.Codec(args.model), list_pictures(args.folder)
    odd_targets(codec, files, args.effort, args.count, args.seed)
    mixed_batch(codec, files, args.effort)


if __name__ == "__main__":
    main()
