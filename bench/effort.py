"""The effort ladder: what each level costs in time and gains in rate.

    python bench/effort.py KODAK --out docs/effort.json [--efforts 0 1 ... 9] [--rates 0.12 0.25 0.5 1.0]
        [--metrics msssim psnr] [--every 6] [--plot docs/effort.png]

Real files at each rate, decoded, for every picture and level in one run. BD-rate of each picture's curve against its
own curve at effort 0 (`bjontegaard`, pchip, MS-SSIM in dB), then the mean over pictures; seconds are medians per
megapixel.
Goes on where a stopped run was: rows that the record holds already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import bjontegaard
import numpy as np
import torch
from kodak import quality_of
from PIL import Image

import l2c
from l2c.adapt.effort import EFFORTS, MAX_EFFORT
from l2c.train.data import list_pictures


def measure(codec: l2c.Codec, picture: np.ndarray, rate: float, metric: str, effort: int) -> dict[str, Any]:
    """One encode and decode."""
    start = time.perf_counter()
    encoded = codec.encode_detailed(picture, bpp=rate, metric=metric, effort=effort)
    middle = time.perf_counter()
    decoded = codec.decode(encoded.data)
    end = time.perf_counter()
    p, m = quality_of(picture, decoded)
    return {
        "rate": rate, "metric": metric, "effort": effort, "bpp": encoded.bpp, "psnr": p, "msssim": m,
        "seconds": middle - start, "decode_seconds": end - middle,
        "megapixels": picture.shape[0] * picture.shape[1] / 1e6,
        "reached": encoded.target_reached, "probes": encoded.probes, "corrections": encoded.corrections,
        "adaptation": encoded.adaptation,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], metric: str) -> list[dict[str, float]]:
    """Per level: seconds per megapixel, decode seconds per megapixel, mean BD-rate against effort 0 in percent."""
    mine = [row for row in rows if row["metric"] == metric]
    out = []

    def curve(picture: str, effort: int) -> tuple[list[float], list[float]]:
        part = sorted((r["rate"], r) for r in mine if r["picture"] == picture and r["effort"] == effort)
        value = "psnr" if metric == "psnr" else "msssim"
        quality = [r[value] if metric == "psnr" else -10 * np.log10(1 - r[value]) for _, r in part]
        return [r["bpp"] for _, r in part], quality

    for effort in sorted({row["effort"] for row in mine}):
        here = [row for row in mine if row["effort"] == effort]
        rates = []
        for picture in sorted({row["picture"] for row in here}):
            base, own = curve(picture, 0), curve(picture, effort)
            if len(base[0]) == len(own[0]) >= 2:
                rates.append(
                    bjontegaard.bd_rate(*base, *own, method="pchip", require_matching_points=False, min_overlap=0)
                )
        out.append(
            {
                "effort": effort,
                "seconds": statistics.median(row["seconds"] / row["megapixels"] for row in here),
                "decode": statistics.median(row["decode_seconds"] / row["megapixels"] for row in here),
                "bd_rate": statistics.mean(rates) if rates else float("nan"),
                "in_window": sum(0.98 <= row["bpp"] / row["rate"] <= 1.0 for row in here) / len(here),
                "files": len(here),
            }
        )
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--efforts", type=int, nargs="+", default=list(range(MAX_EFFORT + 1)))
    parser.add_argument("--rates", type=float, nargs="+", default=[0.12, 0.25, 0.5, 1.0])
    parser.add_argument("--metrics", nargs="+", default=["msssim", "psnr"])
    parser.add_argument("--every", type=int, default=1, help="take every so many-th picture")
    args = parser.parse_args()
    codec = l2c.Codec(args.model)
    head = {
        "model": codec.model.name, "model_id": codec.model.model_id.hex(), "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }  # fmt: skip
    record: dict[str, Any] = {**head, "rows": []}
    if args.out.exists():
        old = json.loads(args.out.read_text())
        if {key: old.get(key) for key in head} == head:
            record = old
    rows = record["rows"]
    known = {(r["picture"], r["metric"], r["effort"], r["rate"]) for r in rows}
    for path in list_pictures(args.folder)[:: args.every]:
        picture = np.asarray(Image.open(path).convert("RGB"))
        for metric in args.metrics:
            for effort in args.efforts:
                for rate in args.rates:
                    if (path.stem, metric, effort, rate) not in known:
                        rows.append({"picture": path.stem, **measure(codec, picture, rate, metric, effort)})
                args.out.write_text(json.dumps(record, indent=1))
        print(path.stem, flush=True)
    tables = {metric: table(rows, metric) for metric in args.metrics}
    for metric, lines in tables.items():
        print(f"\n`metric={metric}`\n\n| effort | iterations, sets, steps | encode s per megapixel | decode ", end="")
        print("| BD-rate against effort 0 | files in 0.98..1.00 of the target |\n|---|---|---|---|---|---|")
        for line in lines:
            plan = EFFORTS[int(line["effort"])]
            print(
                f"| {line['effort']:.0f} | {plan.iterations}, {plan.sets}, {plan.steps} | {line['seconds']:.2f} "
                f"| {line['decode']:.2f} | {line['bd_rate']:+.2f} % "
                f"| {100 * line['in_window']:.0f} % of {line['files']} |"
            )
    if args.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4))
        axes = figure.add_subplot()
        for metric, lines in tables.items():
            axes.plot([line["seconds"] for line in lines], [line["bd_rate"] for line in lines], "o-", label=metric)
            for line in lines:
                axes.annotate(f"{line['effort']:.0f}", (line["seconds"], line["bd_rate"]), fontsize=7)
        axes.set_xscale("log", subs=[1])
        axes.set_xlabel("seconds per megapixel")
        axes.set_ylabel("BD-rate against effort 0, %")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(args.plot, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
