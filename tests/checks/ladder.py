"""Does a better quality, or more bytes, ever buy a worse picture? `python tests/checks/ladder.py [FOLDER...]`.

Codes pictures (of folders; 12 of scikit-image; 10 drawn ones of 256x256) at quality 0..100 and prints, for each picture
and metric, the largest loss of the figure that the metric optimises from one quality to the next that is tried: PSNR of
RGB for `psnr`, MS-SSIM of RGB in dB for `msssim`, and how often the rate fell. With `--rates` the drawn ones are coded
to rates as well: every file is at most 2 % under its target, flagged, or keeps pixels; and none is worse than a smaller
one of the ladder. `--lossless auto` lets drawn pictures be kept as pixels, as by default; else all are latents. Fails
(exit 1) where a loss is above 0.1 dB or a rate does not hold; `--json` writes a row for every file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from PIL import Image

import l2c
from l2c.images.listing import list_pictures
from l2c.metrics import msssim, psnr
from l2c.rate_control import ACCEPTED, dissimilarity_db
from l2c.train.drawn import draw

Array = npt.NDArray[np.uint8]
_SIZE = 256
_WORSE_DB, _BEST_DB = 0.1, 60.0  # above _BEST_DB nobody sees that anything gets worse
_RATES = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)
_PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cat", "coffee", "coins", "grass", "gravel", "moon", "page", "rocket", "text",
)  # fmt: skip


def drawn() -> dict[str, Array]:
    """Name -> uint8 [256, 256, 3]: flat colours, text, interfaces, charts, a cartoon, a product, gradient and noise."""
    made = {
        "flat green": np.full((_SIZE, _SIZE, 3), (0, 255, 0), np.uint8),
        "flat white": np.full((_SIZE, _SIZE, 3), 255, np.uint8),
        "half": np.repeat((255 * (np.mgrid[:_SIZE, :_SIZE][1] >= _SIZE // 2))[..., None], 3, 2).astype(np.uint8),
        "gradient": np.repeat(np.mgrid[:_SIZE, :_SIZE][1][..., None], 3, 2).astype(np.uint8),
    }
    for kind in ("text", "ui", "chart", "cartoon", "product", "noise"):
        made[kind] = draw(kind, _SIZE, np.random.default_rng(7))
    made["product"][made["product"] > 235] = 255  # on white, as shops have it
    return made


def photographs() -> dict[str, Array]:
    """12 pictures of scikit-image, at most 512 pixels a side."""
    made = {}
    for name in _PHOTOGRAPHS:
        picture = getattr(skimage.data, name)()[:512, :512]
        made[name] = np.stack([picture] * 3, 2) if picture.ndim == 2 else np.ascontiguousarray(picture[..., :3])
    return made


def figures(picture: Array, decoded: Array) -> dict[str, float]:
    """What each metric optimises, in dB, at most _BEST_DB."""
    x, x_hat = (torch.tensor(part).permute(2, 0, 1)[None].float() / 255.0 for part in (picture, decoded))
    values = {"psnr": float(psnr(x, x_hat)), "msssim": dissimilarity_db(float(msssim(x, x_hat)))}
    return {metric: min(value, _BEST_DB) for metric, value in values.items()}


def ladder(
    codec: l2c.Codec, picture: Array, metric: str, lossless: str, qualities: list[int]
) -> Iterator[dict[str, Any]]:
    """One row a quality."""
    for quality in qualities:
        data = codec.encode(picture, quality=quality, metric=metric, lossless=lossless)
        yield {"quality": quality, "bytes": len(data), "db": figures(picture, codec.decode(data))[metric]}


def to_rates(codec: l2c.Codec, picture: Array, metric: str, lossless: str) -> Iterator[dict[str, Any]]:
    """One row a rate; pictures that cannot be made so small are left out."""
    for bpp in _RATES:
        try:
            encoded = codec.encode_detailed(picture, bpp=bpp, metric=metric, lossless=lossless)
        except l2c.RateError:
            continue
        value = figures(picture, codec.decode(encoded.data))[metric]
        used = len(encoded.data) / (bpp * picture[..., 0].size / 8)
        free = not encoded.target_reached or encoded.lossless or encoded.colours is not None
        yield {"bpp": bpp, "bytes": len(encoded.data), "used": used, "free": free, "db": value}


def main() -> int:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--metrics", default="psnr,msssim")
    parser.add_argument("--step", type=int, default=5)
    parser.add_argument("--only", choices=("drawn", "photographs"), help="of the pictures that need no folder")
    parser.add_argument("--rates", action="store_true")
    parser.add_argument("--lossless", choices=("auto", "never"), default="never")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    codec = l2c.Codec(arguments.model)
    pictures: dict[str, Array] = {}
    if arguments.folders:
        for path in list_pictures(*arguments.folders):
            pictures[path.stem] = np.asarray(Image.open(path).convert("RGB"))
    if arguments.only != "drawn":
        pictures |= photographs()
    easy = drawn() if arguments.only != "photographs" else {}
    rows, failed = [], 0
    print(f"{'picture':14} {'metric':7} {'worst step dB':>13} {'at':>4} {'rate falls':>10} {'dB at 100':>9} {'bpp':>7}")
    for name, picture in (pictures | easy).items():
        for metric in arguments.metrics.split(","):
            qualities = list(range(0, 101, arguments.step))
            steps = list(ladder(codec, picture, metric, arguments.lossless, qualities))
            losses = [a["db"] - b["db"] for a, b in itertools.pairwise(steps)]
            falls = sum(b["bytes"] < a["bytes"] for a, b in itertools.pairwise(steps))
            worst, bpp = int(np.argmax(losses)), 8 * steps[-1]["bytes"] / picture[..., 0].size
            marks = ["worse"] * (losses[worst] > _WORSE_DB)
            print(
                f"{name:14} {metric:7} {max(losses[worst], 0.0):13.2f} {steps[worst + 1]['quality']:4} {falls:10} "
                f"{steps[-1]['db']:9.2f} {bpp:7.3f}  {' '.join(marks)}",
                flush=True,
            )
            failed += bool(marks)
            made = [{"picture": name, "metric": metric, **row} for row in steps]
            if arguments.rates and name in easy:
                for row in to_rates(codec, picture, metric, arguments.lossless):
                    smaller = [step["db"] for step in steps if step["bytes"] <= row["bytes"]]
                    worse = max(smaller, default=0.0) - row["db"]
                    missed = not (1.0 - ACCEPTED <= row["used"] <= 1.0) and not row["free"]
                    failed += missed or worse > _WORSE_DB
                    if missed or worse > _WORSE_DB:
                        how = "MISSED" if missed else "WORSE"
                        print(f"    {row['bpp']} bpp: {row['used']:.3f} of it, {worse:+.2f} dB behind smaller: {how}")
                    made.append({"picture": name, "metric": metric, **row})
            rows += made
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{failed} fail")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
