"""What each tool of the adaptation gains alone and together, and what bias sets do to the borders of their patches.

    python experiments/tools.py KODAK --out records/tools.json [--rates 0.06 ... 2.0] [--metrics msssim psnr]
        [--every 6]

Every picture is encoded to each rate without adaptation, which chooses the quality; every tool then encodes at that
quality, so nothing but the tool differs. Real files; BD-rate of each picture's curve against its own unadapted curve
(`bjontegaard`, pchip, MS-SSIM in dB), then the mean over pictures. Steps at borders, of files with bias sets, over the
steps one pixel further in: across the borders of 256x256 patches / across the other borders of D's blocks; of the same
files without sets, with them, and of the original pictures. What the first has more than the second is a seam.
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
from PIL import Image

import l2c
from l2c.evaluate.measures import measure as figures_of
from l2c.format.adapt_section import BIAS_PATCH
from l2c.images.listing import list_pictures
from l2c.rate_control import dissimilarity_db

TOOLS = {
    "nothing": l2c.Effort(),
    "latents, 6 iterations": l2c.Effort(6),
    "bias sets, list of 4": l2c.Effort(sets=4),
    "modulators, 3 steps": l2c.Effort(steps=3),
    "all three": l2c.Effort(6, 4, 3),
}


def steps_at_borders(pixels: np.ndarray, block: int = 8) -> tuple[float, float, float]:
    """Mean absolute differences of neighbours, uint8 [H, W, 3]: across the borders of patches, of the pairs next to
    them on both sides, and across the other borders of D's blocks."""
    across, beside, blocks = [], [], []
    for axis in (0, 1):
        step = np.abs(np.diff(pixels.astype(np.int32), axis=axis))
        for border in range(block, pixels.shape[axis], block):
            if border % BIAS_PATCH:
                blocks.append(step.take(border - 1, axis).mean())
                continue
            across.append(step.take(border - 1, axis).mean())
            beside += [step.take(border - 2, axis).mean(), step.take(border, axis).mean()]
    return float(np.mean(across)), float(np.mean(beside)), float(np.mean(blocks))


def measure(codec: l2c.Codec, picture: np.ndarray, metric: str, tool: str, **goal: float) -> dict[str, Any]:
    """One encode with one tool, decoded."""
    start = time.perf_counter()
    encoded = codec.encode_detailed(picture, metric=metric, effort=TOOLS[tool], **goal)
    seconds = time.perf_counter() - start
    decoded = codec.decode(encoded.data)
    p, m = figures_of(picture, decoded, ("psnr-rgb", "ms-ssim-rgb")).values()
    return {
        "tool": tool, "metric": metric, "bpp": encoded.bpp, "psnr": p, "msssim": m, "quality": encoded.quality,
        "seconds": seconds, "adaptation": encoded.adaptation_as_dict(), "borders": steps_at_borders(decoded),
    }  # fmt: skip


def curve(rows: list[dict[str, Any]], metric: str) -> tuple[list[float], list[float]]:
    """Rates and dB of one picture and tool."""
    rows = sorted(rows, key=lambda row: row["target"])
    return [r["bpp"] for r in rows], [r["psnr"] if metric == "psnr" else dissimilarity_db(r["msssim"]) for r in rows]


def table(rows: list[dict[str, Any]], metric: str) -> str:
    """BD-rate and seconds of each tool."""
    mine = [row for row in rows if row["metric"] == metric]
    pictures = sorted({row["picture"] for row in mine})
    lines = [
        f"`metric={metric}`, {len(pictures)} pictures, {len({row['target'] for row in mine})} rates\n",
        "| tool | BD-rate | seconds a picture | files with sets | with conditions "
        "| steps at borders: without, with, original |",
        "|---|---|---|---|---|---|",
    ]
    for tool in TOOLS:
        here = [row for row in mine if row["tool"] == tool]
        gains = []
        for picture in pictures:
            base, own = (
                curve([row for row in mine if row["picture"] == picture and row["tool"] == name], metric)
                for name in ("nothing", tool)
            )
            gains.append(bjontegaard.bd_rate(*base, *own, method="pchip", require_matching_points=False, min_overlap=0))
        sets, conditions = (
            [row for row in here if row["adaptation"].get(f"patches_with_{what}")]
            for what in ("bias_set", "conditions")
        )
        same = [r for r in mine if r["tool"] == "nothing" for s in sets if _place(r) == _place(s)]
        border = "-"
        if sets:
            kinds = (("borders", same), ("borders", sets), ("original", sets))
            border = ", ".join(_border([row[key] for row in part]) for key, part in kinds)
        lines.append(
            f"| {tool} | {statistics.mean(gains):+.2f} % | {statistics.median(r['seconds'] for r in here):.2f} "
            f"| {len(sets)} of {len(here)} | {len(conditions)} | {border} |"
        )
    return "\n".join(lines)


def _border(steps: list[list[float]]) -> str:
    across, beside, blocks = (sum(column) for column in zip(*steps))
    return f"{across / beside:.3f} / {blocks / beside:.3f}"


def _place(row: dict[str, Any]) -> tuple[str, float]:
    return row["picture"], row["target"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.06, 0.12, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
    parser.add_argument("--metrics", nargs="+", default=["msssim", "psnr"])
    parser.add_argument("--every", type=int, default=6, help="take every so many-th picture")
    args = parser.parse_args()
    codec = l2c.Codec(args.model)
    rows: list[dict[str, Any]] = []
    for path in list_pictures(args.folder)[:: args.every]:
        picture = np.asarray(Image.open(path).convert("RGB"))
        for metric in args.metrics:
            for rate in args.rates:
                quality = measure(codec, picture, metric, "nothing", bpp=rate)["quality"]
                for tool in TOOLS:
                    row = measure(codec, picture, metric, tool, quality=quality)
                    original = steps_at_borders(picture)
                    rows.append({"picture": path.stem, "target": rate, "original": original, **row})
        print(path.stem, flush=True)
    record = {
        "model": codec.model.name, "model_id": codec.model.model_id.hex(), "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "rows": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps(record, indent=1))
    for metric in args.metrics:
        print(table(rows, metric) + "\n")


if __name__ == "__main__":
    main()
