"""How much larger than its target a file should be where the search for a rate begins: `l2c/adapt/savings.py`.

    python experiments/savings.py VAL [VAL ...] --out rows.jsonl [--metrics psnr mixed msssim] [--effort 4]

Crops from the middle of validation pictures are encoded to each rate with the search beginning at each of several
savings. What counts is how far J = lambda D + bits, at the lambda of the unadapted file of that rate, falls below that
file's, in percent of its bits; `natural` is what the search saves by itself where only the quality is given, that of
the unadapted file. One row a file, so that a run goes on where it was stopped; then the means.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

import l2c
from l2c.format.levels import MAX_QUALITY, METRICS
from l2c.images.listing import list_pictures
from l2c.objective import Blend, distortion

RATES = (0.06, 0.12, 0.25, 0.5, 1.0, 1.5)
SAVINGS = (0.02, 0.05, 0.08, 0.11)


def crops(folders: list[Path], count: int, side: int) -> dict[str, np.ndarray]:
    """Middles of `count` pictures, spread over the folders' lists: uint8 [side, side, 3] by name."""
    files = [file for folder in folders for file in list_pictures(folder)]
    chosen = files[:: max(len(files) // count, 1)][:count]
    middles = {}
    for file in chosen:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        top, left = ((size - side) // 2 for size in pixels.shape[:2])
        middles[file.stem] = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    return middles


def cost(codec: l2c.Codec, picture: np.ndarray, data: bytes, metric: str, lmbda: float) -> float:
    """J in bits of a file of this picture."""
    x, x_hat = (
        torch.from_numpy(pixels.transpose(2, 0, 1)[None] / np.float32(255.0))
        for pixels in (picture, codec.decode(data))
    )
    blend = Blend.of(torch.tensor([METRICS[metric]]), torch.tensor([lmbda]))
    pixels = picture.shape[0] * picture.shape[1]
    return lmbda * float(distortion(x, x_hat, blend)) * pixels + 8.0 * len(data)


def measure(
    codec: l2c.Codec, picture: np.ndarray, metric: str, rate: float, effort: int, savings: list[float]
) -> dict[str, Any]:
    """All savings of one picture, metric and rate; J and the natural saving in percent of the unadapted bits."""
    plain = codec.encode_detailed(picture, metric=metric, bpp=rate, effort=0)
    lmbda = codec.model.config.lmbda(round(10.0 * plain.quality) / MAX_QUALITY)
    bits = 8.0 * len(plain.data)
    natural = codec.encode_detailed(picture, metric=metric, quality=plain.quality, effort=effort)
    costs = []
    for value in savings:
        with mock.patch("l2c.search.sizes.saving", lambda *_, value=value: value):
            adapted = codec.encode_detailed(picture, metric=metric, bpp=rate, effort=effort)
        costs.append(100.0 * cost(codec, picture, adapted.data, metric, lmbda) / bits)
    return {
        "metric": metric, "rate": rate, "quality": plain.quality,
        "natural": 100.0 * (1.0 - 8.0 * len(natural.data) / bits),
        "plain": 100.0 * cost(codec, picture, plain.data, metric, lmbda) / bits,
        "free": 100.0 * cost(codec, picture, natural.data, metric, lmbda) / bits,
        "costs": costs,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], savings: list[float]) -> str:
    """Means over pictures: the natural saving, what J gains by it, and J's gain with each saving."""
    heads = " | ".join(f"{100 * value:g} %" for value in savings)
    lines = [
        f"| metric | bpp | pictures | natural saving | gain of J, that quality | {heads} |",
        "|---" * (5 + len(savings)) + "|",
    ]
    for metric, rate in sorted({(row["metric"], row["rate"]) for row in rows}):
        here = [row for row in rows if (row["metric"], row["rate"]) == (metric, rate)]
        gains = [statistics.mean(row["plain"] - row["costs"][k] for row in here) for k in range(len(savings))]
        natural, free = (
            statistics.mean(values) for values in zip(*((r["natural"], r["plain"] - r["free"]) for r in here))
        )
        cells = " | ".join(f"{gain:.2f}" for gain in gains)
        lines.append(f"| {metric} | {rate:g} | {len(here)} | {natural:.1f} % | {free:.2f} % | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="VAL")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--savings", type=float, nargs="+", default=SAVINGS)
    parser.add_argument("--effort", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--side", type=int, default=256)
    args = parser.parse_args()
    codec = l2c.Codec(args.model)
    own = {
        "model_id": codec.model.model_id.hex(),
        "effort": args.effort,
        "side": args.side,
        "savings": list(args.savings),
    }
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    rows = [row for row in known if row.items() >= own.items()]
    done = {(row["picture"], row["metric"], row["rate"]) for row in rows}
    with args.out.open("a") as out:
        for name, picture in crops(args.folders, args.pictures, args.side).items():
            for metric in args.metrics:
                for rate in args.rates:
                    if (name, metric, rate) in done:
                        continue
                    row = {
                        "picture": name,
                        **own,
                        **measure(codec, picture, metric, rate, args.effort, list(args.savings)),
                    }
                    rows.append(row)
                    print(json.dumps(row), file=out, flush=True)
    print(table(rows, list(args.savings)))


if __name__ == "__main__":
    main()
