"""The paper's rate control (L2C III-E) on its four codecs: the nearest codec, then fewer bits until the rate fits.

    python experiments/four_codecs.py KODAK c8b8.safetensors c6b8.safetensors c3b4.safetensors c1b4.safetensors

For each picture and target the codec whose own target is closest runs first, with all its bits b; b falls as long as
the file is above the target's margin. If no b of that codec lands within the margin, the next closest codec tries. The
closest file of all is kept. Latent overfitting, the paper's last adjustment, is not part of this.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import l2c
from l2c.metrics import msssim, psnr

TARGETS = (2.0, 1.5, 1.0, 0.75, 0.5, 0.25, 0.12, 0.06)
TRAINED_FOR = (2.0, 0.75, 0.12, 0.06)  # C_0..C_3
MARGIN = 0.15


@dataclass
class Choice:
    """The file that is kept: which codec, how many bits, how far from the target (relative)."""

    codec: int
    b: int
    bpp: float
    data: bytes

    def error(self, target: float) -> float:
        """|rate - target| / target."""
        return abs(self.bpp / target - 1.0)


def choose(
    codecs: list[l2c.Codec], qualities: Sequence[float], pixels: np.ndarray, target: float
) -> tuple[Choice, int]:
    """The paper's procedure for one picture; returns the choice and how many encodes it took."""
    order = sorted(range(len(codecs)), key=lambda i: abs(np.log(TRAINED_FOR[i] / target)))
    best: Choice | None = None
    encodes = 0
    for i in order:
        for b in range(codecs[i].model.config.bits, 0, -1):
            encoded = codecs[i].encode_detailed(pixels, quality=qualities[i], metric="mixed", b=b)
            encodes += 1
            choice = Choice(i, b, encoded.bpp, encoded.data)
            if best is None or choice.error(target) < best.error(target):
                best = choice
            if choice.bpp <= target * (1.0 + MARGIN):
                break
        assert best is not None
        if best.error(target) <= MARGIN:
            break
    assert best is not None
    return best, encodes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of PNG pictures")
    parser.add_argument("models", type=Path, nargs=4, help="model files of C_0..C_3")
    qualities = (100.0, 61.5, 21.8, 4.3)
    parser.add_argument("--qualities", type=float, nargs=4, default=qualities, help="quality each was trained at")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th picture")
    args = parser.parse_args()
    codecs = [l2c.Codec(path) for path in args.models]
    files = sorted(args.pictures.glob("*.png"))[:: args.every]
    print("| target | in margin | bpp | PSNR dB | MS-SSIM | codec and b, median encodes |\n|---|---|---|---|---|---|")
    for target in TARGETS:
        rows, picked, encodes = [], [], []
        for path in files:
            with Image.open(path) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            choice, count = choose(codecs, args.qualities, pixels, target)
            decoded = codecs[choice.codec].decode(choice.data)
            x, x_hat = (torch.from_numpy(a.copy()).permute(2, 0, 1)[None].float() / 255 for a in (pixels, decoded))
            rows.append((choice.error(target) <= MARGIN, choice.bpp, float(psnr(x, x_hat)), float(msssim(x, x_hat))))
            picked.append(f"C{choice.codec}/{choice.b}")
            encodes.append(count)
        means = [statistics.mean(column) for column in zip(*rows)]
        common = statistics.mode(picked)
        print(
            f"| {target} | {sum(row[0] for row in rows)} of {len(rows)} | {means[1]:.3f} | {means[2]:.2f} "
            f"| {means[3]:.4f} | mostly {common}, {statistics.median(encodes):g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
