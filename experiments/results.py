"""Writes docs/RESULTS.md, and the table of README.md, from a record of `l2c eval` on Kodak.

    l2c eval KODAK -o records/kodak --efforts 0,4 --figures FIGURES
    l2c tables KODAK --every 4 -o records/kodak --metric msssim
    python experiments/published.py KODAK --out records/kodak/agreement.json
    python experiments/results.py records/kodak --out docs/RESULTS.md --readme README.md

Nothing is measured here: the same record gives the same page.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

from l2c.evaluate.curves import bd_rate, plot, plot_time, rate_table
from l2c.evaluate.measures import FIGURES
from l2c.evaluate.peers import PEERS
from l2c.evaluate.records import Curve, RowFile, load_published, mean_curves
from l2c.evaluate.run import own_name, own_title
from l2c.format.levels import METRICS
from l2c.objective import MSSSIM_LMBDA_RATIO
from l2c.text_tables import heading, row

PUBLISHED = Path(__file__).parent.parent / "records" / "published" / "kodak.json"
SHOWN = (
    "jpeg", "webp", "bpg_444_x265_ycbcr", "av1", "vtm", "compressai-mbt2018_mse_cuda",
    "compressai-mbt2018_ms-ssim_cuda", "compressai-cheng2020-attn_ms-ssim_cuda",
)  # fmt: skip
EFFORTS = range(10)
BEGIN, END = "<!-- written by experiments/results.py: begin -->", "<!-- end -->"
HEADLINE_RATES = (0.12, 0.25, 0.5, 1.0, 1.5)
LABELS = {
    "ms-ssim-y": "MS-SSIM of Y", "psnr-rgb": "PSNR over RGB, dB", "vmaf": "VMAF (4:4:4)",
    "vmaf-neg": "VMAF-NEG (4:4:4)", "ssimulacra2": "SSIMULACRA 2", "butteraugli": "Butteraugli (3-norm, less better)",
}  # fmt: skip
MADE_FOR = {"psnr": "psnr-rgb", "mixed": "ssimulacra2", "msssim": "ms-ssim-rgb"}  # published curves have two of them


def rows_of(folder: Path, pictures: list[str]) -> list[dict[str, Any]]:
    """The newest row of each picture, codec and rate; rows of a codec's former versions are left out."""
    rows = RowFile(folder / "rows.jsonl").rows
    newest = {row["codec"]: row["version"] for row in rows}
    chosen = {
        (row["picture"], row["codec"], row["target"]): row
        for row in rows
        if row["version"] == newest[row["codec"]] and row["picture"] in pictures
    }
    return list(chosen.values())


def curves_of(rows: list[dict[str, Any]]) -> list[Curve]:
    """Everything in the record, ours first."""
    versions = {row["codec"]: row["version"] for row in rows}
    titles = {own_name(m, e): own_title(m, e) for m in METRICS for e in EFFORTS}
    titles |= {name: peer.title for name, peer in PEERS.items()}
    return mean_curves(rows, {name: (title, versions[name]) for name, title in titles.items() if name in versions})


def at_rates(curves: list[Curve], figure: str) -> list[str]:
    """Markdown: codecs as columns, target rates as rows."""
    targets = sorted({target for curve in curves for target in curve.targets})
    lines = heading("bpp", *(curve.title for curve in curves))
    for target in targets:
        cells = []
        for curve in curves:
            if target not in curve.targets:
                cells.append("-")
                continue
            k = curve.targets.index(target)
            value, bpp = curve.values[figure][k], curve.values["bpp"][k]
            cell = f"{value:.{FIGURES[figure].digits}f}"
            cells.append(cell if abs(bpp / target - 1.0) <= 0.05 else f"{cell} ({bpp:.3f})")
        lines.append(row(f"{target:g}", *cells))
    return lines


def headline(curves: list[Curve]) -> list[str]:
    """Our codecs at a few rates, as far as the record has them, the figures of a cell side by side: bpp, PSNR in dB and
    MS-SSIM, both over RGB."""
    by_name = {curve.codec: curve for curve in curves}
    titles = {
        own_name(metric, effort): f'`metric="{metric}"`' if effort == 0 else f"the same, `effort={effort}`"
        for metric in METRICS
        for effort in EFFORTS
    }
    shown = [name for name in titles if name in by_name]
    lines = heading("target bpp", *(titles[name] for name in shown))
    for target in HEADLINE_RATES:
        places = [(by_name[name].values, by_name[name].targets.index(target)) for name in shown]
        cells = [f"{v['bpp'][k]:.3f} / {v['psnr-rgb'][k]:.2f} / {v['ms-ssim-rgb'][k]:.4f}" for v, k in places]
        lines.append(f"| {target} | {' | '.join(cells)} |")
    return lines


def agreement(record: dict[str, list[dict[str, float]]]) -> list[str]:
    """Largest differences between measured and published points."""
    lines = heading("codec", "points", "rate", "PSNR", "MS-SSIM")
    for codec, points in record.items():
        rate = max(abs(p["bpp"] / p["published-bpp"] - 1.0) for p in points)
        db, similarity = (
            max(abs(p[name] - p[f"published-{name}"]) for p in points) for name in ("psnr-rgb", "ms-ssim-rgb")
        )
        lines.append(row(codec, len(points), f"{100 * rate:.2f} %", f"{db:.3f} dB", f"{similarity:.5f}"))
    return lines


def against(ours: list[Curve], others: list[Curve]) -> list[str]:
    """BD-rate of each of our curves in the figure that it was made for: lines are what it is against."""
    figure = {own_name(metric, effort): name for metric, name in MADE_FOR.items() for effort in EFFORTS}
    ours = [curve for curve in ours if figure[curve.codec] in curve.values]
    lines = heading("against", *(f"{c.title}: {FIGURES[figure[c.codec]].label.split(' (')[0]}" for c in ours))
    for other in others:
        cells = []
        for curve in ours:
            name = figure[curve.codec]
            value = bd_rate(other, curve, name) if name in other.values and other is not curve else float("nan")
            cells.append("-" if math.isnan(value) else f"{value:+.1f} %")
        lines.append(row(other.title + (" (published)" if other.published else ""), *cells))
    return lines


def overfitting(rows: list[dict[str, Any]], codec: str) -> list[str]:
    """Means before and after the search, at one quality (L2C Table III): bits by the float P, before trimming."""
    lines = heading("target bpp", "bpp before", "MS-SSIM before", "bpp after", "MS-SSIM after")
    for target in (2.0, 1.0, 0.75, 0.25, 1.5):
        mine = [row["adaptation"] for row in rows if row["codec"] == codec and row["target"] == target]
        cells = []
        for side in ("before", "after"):
            bpp, distortion = (statistics.mean(a[f"{name}_{side}"] for a in mine) for name in ("bpp", "distortion"))
            cells += [f"{bpp:.3f}", f"{1.0 - distortion / MSSSIM_LMBDA_RATIO:.5f}"]
        lines.append(row(f"{target:g}", *cells))
    return lines


def rate_control(rows: list[dict[str, Any]]) -> list[str]:
    """How our files meet their rates."""
    lines = [
        "| codec | in 0.98..1.00 of the rate | of the others: flagged | network passes, median "
        "| corrections, median (most) | encode s, median | decode s, median |",
        "|---|---|---|---|---|---|---|",
    ]
    titles = {own_name(m, e): own_title(m, e) for m in METRICS for e in EFFORTS}
    for name, title in titles.items():
        mine = [row for row in rows if row["codec"] == name]
        if not mine:
            continue
        outside = [row for row in mine if not 0.98 <= row["bpp"] / row["target"] <= 1.0]
        flagged = sum(not row["target_reached"] for row in outside)
        corrections = [row["corrections"] for row in mine]
        lines.append(
            f"| {title} | {len(mine) - len(outside)} of {len(mine)} | {flagged} of {len(outside)} "
            f"| {statistics.median(row['probes'] + row['adaptation'].get('passes', 0) for row in mine):g} "
            f"| {statistics.median(corrections):g} ({max(corrections)}) "
            f"| {statistics.median(row['encode_seconds'] for row in mine):.2f} "
            f"| {statistics.median(row['decode_seconds'] for row in mine):.3f} |"
        )
    return lines


def page(folder: Path, place: Path, run: dict[str, Any], rows: list[dict[str, Any]], curves: list[Curve]) -> str:
    """The whole page for a file in `place`; writes its plots into the record's folder."""
    link = os.path.relpath(folder, place)
    by_name = {curve.codec: curve for curve in curves}
    pictures = len({row["picture"] for row in rows})
    published = load_published(PUBLISHED, SHOWN)
    anchors = [by_name[name] for name in ("vvc", "avif", "jpeg") if name in by_name] or published[:2]
    figures = [name for name in FIGURES if any(name in curve.values for curve in curves)]
    ours = [curve for curve in curves if curve.codec.startswith("l2c-")]
    lines = [
        "# Results",
        "",
        f"Written by `experiments/results.py` from `{folder}`, a record of `l2c eval`; how to make it anew stands at "
        "the head of the script.",
        "",
        f"Kodak, {pictures} pictures; measured by {run['written']} on {run['machine']}; model `{run['model']}`, id "
        f"`{run['model_id']}`, torch {run['torch']}. Real files, decoded again; every peer at the largest file that "
        "its own quality setting gives within the target, or one at most 0.5 % below it. Seconds are means over "
        f"pictures and rates.{' ' + run['note'] if 'note' in run else ''}",
        "",
        "## BD-rates",
        "",
        "Each of ours in the figure that it was made for (`mixed` was made for several; SSIMULACRA 2 stands for them):",
        "",
        *against(ours, [*curves, *published]),
        "",
        *(rate_table([*curves, *published], anchor, figures) for anchor in anchors),
        "Published curves are means at equal settings of their codecs, not at equal rates. A codec of the record "
        "appears here once it has coded all pictures.",
        "",
        *(f"![{name} against the rate]({link}/{name}.png)\n" for name in ("ms-ssim-rgb", "psnr-rgb")),
        f"![BD-rate against time]({link}/time-ms-ssim-y.png)",
        "",
        "## At equal rates",
        "",
        "In brackets the rate, where it is more than 5 % off: a peer's smallest file may be larger, and its settings "
        "coarse.",
    ]
    own = {key: [c for c in curves if c.codec.startswith(f"l2c-{key}")] for key in METRICS}
    peers = [curve for curve in curves if curve.codec in PEERS]
    everything = [curve for key in METRICS for curve in own[key]]
    shown = {"ms-ssim-y": own["msssim"], "psnr-rgb": own["psnr"]}
    for figure in ("ms-ssim-y", "psnr-rgb", *(name for name in figures if name in LABELS and name not in shown)):
        mine = [curve for curve in shown.get(figure, everything) if figure in curve.values]
        beside = [curve for curve in peers if figure in curve.values]
        lines += ["", f"### {LABELS[figure]}", "", *at_rates([*mine, *beside], figure)]
    lines += ["", "## Rates met by our files", "", *rate_control(rows)]
    if "l2c-msssim-effort4" in by_name:
        lines += ["", "## Before and after the search", "", *overfitting(rows, "l2c-msssim-effort4")]
    if (folder / "agreement.json").exists():
        lines += [
            "",
            "## Do measured and published curves agree?",
            "",
            "Pillow's JPEG and WebP at the settings of CompressAI's published curves (`experiments/published.py`, "
            "qualities 5 to 95), largest differences of the means:",
            "",
            *agreement(json.loads((folder / "agreement.json").read_text())),
            "",
            "Above, both run with their best settings (progressive and optimised JPEG, WebP's slowest method).",
        ]
    if (folder / "tables.md").exists():
        lines += [
            "",
            f"L2C's Tables and OML's Figures on these pictures, by `l2c tables`: [tables.md]({link}/tables.md).",
        ]
    lines += ["", "## Settings", ""]
    lines += [f"- {curve.title}: {curve.description}" for curve in curves]
    lines += ["", "AVIF's files are tuned by `tune=iq`: naming it gives the same bytes (2026-11-30, libavif 1.4.2)."]
    measured = by_name.get("webp", curves[0])
    for figure in figures:
        plot([*curves, *published], figure, folder / f"{figure}.png")
        if figure in measured.values:
            plot_time(curves, measured, figure, folder / f"time-{figure}.png")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--readme", type=Path, help="a page whose table of a few rates is written anew")
    args = parser.parse_args()
    run = json.loads((args.record / "run.json").read_text())
    rows = rows_of(args.record, run["pictures"])
    curves = curves_of(rows)
    args.out.write_text(page(args.record, args.out.parent, run, rows, curves))
    if args.readme is not None:
        before, rest = args.readme.read_text().split(BEGIN)
        table = "\n".join([BEGIN, "", *headline(curves), "", END])
        args.readme.write_text(before + table + rest.split(END)[1])


if __name__ == "__main__":
    main()
