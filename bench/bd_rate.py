"""A record of bench/kodak.py beside published mean curves of other codecs: tables at our rates, and BD-rates.

    python bench/bd_rate.py docs/kodak.json ANCHORS.json [--base OTHER.json] [--codecs jpeg webp vtm ...]
        [--out PAGE.md]

Curves are means over the pictures. PSNR figures are taken from the psnr table, MS-SSIM figures from the msssim table.
A published curve is read at a rate by pchip interpolation over log bpp, and only between its own ends. BD-rates are
those of the `bjontegaard` package: MS-SSIM in dB, pchip, over the common range.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bjontegaard
import numpy as np
from scipy.interpolate import PchipInterpolator

from l2c.rate_control import dissimilarity_db

DEFAULT_CODECS = (
    "jpeg",
    "webp",
    "bpg_444_x265_ycbcr",
    "av1",
    "vtm",
    "compressai-mbt2018_mse_cuda",
    "compressai-mbt2018_ms-ssim_cuda",
    "compressai-cheng2020-attn_ms-ssim_cuda",
)
KEYS = {"psnr": "psnr", "msssim": "ms_ssim"}  # ours: theirs

Curve = tuple[list[float], list[float]]  # bpp, quality; both rise


def mean_rows(rows: list[dict[str, Any]], codec: str) -> dict[float, dict[str, float]]:
    """Means of bpp, psnr and msssim for each target rate; targets that a picture misses altogether are left out."""
    pictures = {row["picture"] for row in rows}
    means = {}
    for target in sorted({row["target"] for row in rows if row["codec"] == codec}):
        part = [row for row in rows if row["codec"] == codec and row["target"] == target]
        if {row["picture"] for row in part} == pictures:
            means[target] = {key: float(np.mean([row[key] for row in part])) for key in ("bpp", *KEYS)}
    return means


def own_curve(rows: list[dict[str, Any]], codec: str, key: str) -> Curve:
    """Our mean curve, MS-SSIM in dB."""
    means = mean_rows(rows, codec).values()
    return [m["bpp"] for m in means], [dissimilarity_db(m[key]) if key == "msssim" else m[key] for m in means]


def published_curve(entry: dict[str, Any], key: str) -> Curve | None:
    """A published curve, MS-SSIM in dB; None where the source has no such figures."""
    values = entry.get(KEYS[key])
    if not values or None in values:
        return None
    order = np.argsort(entry["bpp"])
    quality = [dissimilarity_db(values[i]) if key == "msssim" else values[i] for i in order]
    return [entry["bpp"][i] for i in order], quality


def quality_at(curve: Curve | None, bpp: float, key: str) -> str:
    """Quality of a curve at a rate, as text; "-" outside the curve."""
    if curve is None or not curve[0][0] <= bpp <= curve[0][-1]:
        return "-"
    value = float(PchipInterpolator(np.log(curve[0]), curve[1])(math.log(bpp)))
    return f"{1.0 - 10.0 ** (-value / 10.0):.4f}" if key == "msssim" else f"{value:.2f}"


def bd_rate(anchor: Curve | None, ours: Curve) -> str:
    """Percent, negative where ours needs less; with the range of quality that both cover."""
    if anchor is None:
        return "-"
    low = max(min(anchor[1]), min(ours[1]))
    high = min(max(anchor[1]), max(ours[1]))
    value = bjontegaard.bd_rate(*anchor, *ours, method="pchip", require_matching_points=False, min_overlap=0)
    return f"{value:+.1f} % ({low:.1f}..{high:.1f} dB)"


def page(
    record: dict[str, Any], published: dict[str, Any], codecs: list[str], base: dict[str, Any] | None = None
) -> str:
    """The whole page, Markdown; with BD-rates against our own record `base` where there is one."""
    rows = record["rows"]
    lines = [
        f"Model `{record['model']}`, id `{record['model_id']}`; {len({r['picture'] for r in rows})} pictures, "
        f"real file sizes, `effort={record.get('effort', 0)}`; {record['machine']}, torch {record['torch']}.",
    ]
    metrics = [key for key in KEYS if mean_rows(rows, f"l2c-{key}")]
    for metric in metrics:
        lines += [
            "",
            f'## `metric="{metric}"`',
            "",
            f"{'PSNR in dB' if metric == 'psnr' else 'MS-SSIM'} of the published curves at our mean rate.",
            "",
            "| target bpp | bpp | PSNR dB | MS-SSIM | " + " | ".join(codecs) + " |",
            "|---" * (4 + len(codecs)) + "|",
        ]
        curves = {name: published_curve(published[name], metric) for name in codecs}
        for target, mean in mean_rows(rows, f"l2c-{metric}").items():
            cells = [quality_at(curves[name], mean["bpp"], metric) for name in codecs]
            lines.append(
                f"| {target:g} | {mean['bpp']:.3f} | {mean['psnr']:.2f} | {mean['msssim']:.4f} | {' | '.join(cells)} |"
            )
    lines += ["", "## BD-rate", "", "| against | PSNR | MS-SSIM |", "|---|---|---|"]
    ours = {key: own_curve(rows, f"l2c-{key}", key) for key in metrics}

    def line(name: str, curve: Callable[[str], Curve | None]) -> str:
        cells = [bd_rate(curve(key), ours[key]) if key in ours else "-" for key in KEYS]
        return f"| {name} | {cells[0]} | {cells[1]} |"

    lines.append(line("JPEG, measured here", lambda key: own_curve(rows, "jpeg", key)))
    if base is not None:
        title = f"ours, effort {base.get('effort', 0)}"
        lines.append(line(title, lambda key: own_curve(base["rows"], f"l2c-{key}", key)))
    lines += [line(f"{name}, published", lambda key, n=name: published_curve(published[n], key)) for name in codecs]
    mine = [row for row in rows if row["codec"].startswith("l2c-")]
    encode, decode = (statistics.median(row[f"{side}_seconds"] for row in mine) for side in ("encode", "decode"))
    inside = sum(0.98 <= row["bpp"] / row["target"] <= 1.0 for row in mine)
    reached = sum(row["target_reached"] for row in mine)
    lines += [
        "",
        f"{inside} of {len(mine)} files in 0.98..1.00 of their target, {reached} not flagged; medians: {encode:.2f} s "
        f"to encode, {decode:.2f} s to decode.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("anchors", type=Path)
    parser.add_argument("--codecs", nargs="+", default=DEFAULT_CODECS)
    parser.add_argument("--base", type=Path, help="another record of ours to compare with")
    parser.add_argument("--out", type=Path, help="write the page here, too")
    args = parser.parse_args()
    published = json.loads(args.anchors.read_text())["codecs"]
    base = json.loads(args.base.read_text()) if args.base else None
    text = page(json.loads(args.record.read_text()), published, list(args.codecs), base)
    print(text, end="")
    if args.out:
        heading = "# Kodak\n\nWritten by `bench/kodak.py` and `bench/bd_rate.py`.\n\n"
        args.out.write_text(heading + text)


if __name__ == "__main__":
    main()
