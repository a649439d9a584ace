"""What each receiver of one file gains (`adapt_for`; OML, section 4), and what the sets of conditions add to it.

    python experiments/receivers.py PICTURES [--model FILE] [--metrics psnr mixed msssim] [--qualities 30 50 70]
        [--effort 0] [--every 1] [--threads 1]

Every picture is encoded with and without adapt_for=("psnr", "msssim"); the latents are the same. Gains are of the
decoded 8-bit pixels, each receiver's against what the file without sets shows: PSNR in dB, MS-SSIM as
-10 log10(1 - MS-SSIM).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import l2c
from l2c.evaluate.measures import measure
from l2c.rate_control import dissimilarity_db
from l2c.text_tables import aligned

FIGURES = ("psnr-rgb", "ms-ssim-rgb")
RECEIVERS = ("psnr", "msssim")


def figures(x: np.ndarray, x_hat: np.ndarray) -> tuple[float, float]:
    """PSNR and MS-SSIM of RGB, both in dB."""
    values = measure(x, x_hat, FIGURES)
    return values[FIGURES[0]], dissimilarity_db(values[FIGURES[1]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--metrics", nargs="+", default=["psnr", "mixed", "msssim"])
    parser.add_argument("--qualities", nargs="+", type=float, default=[30, 50, 70])
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = l2c.Codec(args.model, threads=args.threads)
    files = sorted(path for path in args.pictures.iterdir() if path.suffix.lower() == ".png")[:: args.every]
    header = (
        "metric, quality, bytes, added, most, psnr: sets, dB mean, most, msssim: sets, dB mean, most, s without, s with"
    )
    rows = [header.split(", ")]
    for metric in args.metrics:
        for quality in args.qualities:
            sizes, added, seconds = [], [], []
            gains: dict[str, list[float]] = {name: [] for name in RECEIVERS}
            sets: dict[str, int] = dict.fromkeys(RECEIVERS, 0)
            for path in files:
                x = np.asarray(Image.open(path).convert("RGB"))
                options = {"quality": quality, "metric": metric, "effort": args.effort}
                begun = time.perf_counter()
                plain = codec.encode_detailed(x, **options)
                middle = time.perf_counter()
                file = codec.encode_detailed(x, **options, adapt_for=RECEIVERS)
                seconds.append((middle - begun, time.perf_counter() - middle))
                assert file.latents_sha256 == plain.latents_sha256
                sizes.append(len(plain.data))
                added.append(len(file.data) - len(plain.data))
                before = figures(x, codec.decode(plain.data))
                for k, receiver in enumerate(file.receivers):
                    after = figures(x, codec.decode(file.data, metric=receiver.metric))
                    gains[receiver.metric].append(after[k] - before[k])
                    sets[receiver.metric] += receiver.patches > 0
            row = [metric, f"{quality:g}", f"{statistics.mean(sizes):.0f}"]
            row += [f"{100 * sum(added) / sum(sizes):.2f} %", f"{max(added)} bytes"]
            for name in RECEIVERS:
                row += [f"{sets[name]} of {len(files)}", f"{statistics.mean(gains[name]):+.4f}"]
                row.append(f"{max(gains[name]):+.4f}")
            rows.append(row + [f"{statistics.mean(column):.1f}" for column in zip(*seconds)])
            print(*row, flush=True)
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
