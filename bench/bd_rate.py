"""BD-rates of a record of bench/kodak.py against published mean curves of other codecs.

    python bench/bd_rate.py docs/kodak.json ANCHORS.json [--codecs jpeg webp bpg_444_x265_ycbcr vtm ...]

Mean curves over the pictures, MS-SSIM in dB, piecewise cubic interpolation (pchip) over the common range, by the
`bjontegaard` package. PSNR figures are taken from the psnr table, MS-SSIM figures from the msssim table.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import bjontegaard
import numpy as np

DEFAULT_CODECS = (
    "jpeg",
    "webp",
    "bpg_444_x265_ycbcr",
    "av1",
    "vtm",
    "compressai-mbt2018_mse_cuda",
    "compressai-mbt2018_ms-ssim_cuda",
)


def mean_curve(rows: list[dict[str, Any]], codec: str, key: str) -> tuple[list[float], list[float]]:
    """(bpp, quality) means per target rate, rising; MS-SSIM in dB. Targets that a picture misses are left out."""
    pictures = {row["picture"] for row in rows}
    points = []
    for target in sorted({row["target"] for row in rows if row["codec"] == codec}):
        part = [row for row in rows if row["codec"] == codec and row["target"] == target]
        if {row["picture"] for row in part} == pictures:
            points.append((float(np.mean([r["bpp"] for r in part])), float(np.mean([r[key] for r in part]))))
    bpp, quality = zip(*points)
    return list(bpp), [decibels(q) if key == "msssim" else q for q in quality]


def decibels(value: float) -> float:
    return -10.0 * math.log10(1.0 - value)


def bd_rate(anchor: tuple[list[float], list[float]], ours: tuple[list[float], list[float]]) -> str:
    """Percent, negative where ours needs less; with the range of quality that both cover."""
    low = max(min(anchor[1]), min(ours[1]))
    high = min(max(anchor[1]), max(ours[1]))
    value = bjontegaard.bd_rate(*anchor, *ours, method="pchip", require_matching_points=False)
    return f"{value:+.1f} % ({low:.1f}..{high:.1f} dB)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("anchors", type=Path)
    parser.add_argument("--codecs", nargs="+", default=DEFAULT_CODECS)
    args = parser.parse_args()
    rows = json.loads(args.record.read_text())["rows"]
    published = json.loads(args.anchors.read_text())["codecs"]
    ours = {"psnr": mean_curve(rows, "l2c-psnr", "psnr"), "msssim": mean_curve(rows, "l2c-msssim", "msssim")}
    print("| against | BD-rate, PSNR | BD-rate, MS-SSIM |\n|---|---|---|")
    for metric in ours:
        assert all(np.diff(ours[metric][0]) > 0)
    cells = [bd_rate(mean_curve(rows, "jpeg", key), ours[key]) for key in ("psnr", "msssim")]
    print(f"| JPEG, measured here | {cells[0]} | {cells[1]} |")
    for name in args.codecs:
        entry = published[name]
        cells = []
        for key, field in (("psnr", "psnr"), ("msssim", "ms_ssim")):
            values = entry.get(field)
            if not values or None in values:
                cells.append("-")
                continue
            quality = [decibels(v) for v in values] if key == "msssim" else values
            order = np.argsort(entry["bpp"])
            curve = ([entry["bpp"][i] for i in order], [quality[i] for i in order])
            cells.append(bd_rate(curve, ours[key]))
        print(f"| {name}, published | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
