"""Does rate rise with quality? Encodes pictures at rising qualities and lists every step that does not.

python bench/monotone.py FOLDER [--step 5] [--pictures 24] [--model l2c-default]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import l2c
from l2c.train.data import list_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--step", type=int, default=5)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--model", default="l2c-default")
    args = parser.parse_args()
    codec = l2c.Codec(args.model)
    steps = falls = 0
    least, most = [], []
    for path in list_pictures(args.folder)[: args.pictures]:
        picture = np.asarray(Image.open(path).convert("RGB"))
        for metric in ("psnr", "mixed", "msssim"):
            rates = [codec.encode_detailed(picture, quality=q, metric=metric).bpp for q in range(0, 101, args.step)]
            steps += len(rates) - 1
            least.append(rates[0])
            most.append(rates[-1])
            for i in np.flatnonzero(np.diff(rates) < 0):
                falls += 1
                print(f"{path.stem} {metric}: {rates[i]:.5f} bpp at {i * args.step}, then {rates[i + 1]:.5f}")
    print(f"{steps} steps of {args.step}, {falls} of them fall")
    print(f"quality 0: {np.mean(least):.3f} bpp on average, at most {max(least):.3f}; ", end="")
    print(f"quality 100: {np.mean(most):.3f} bpp on average, at least {min(most):.3f}")


if __name__ == "__main__":
    main()
