"""The drawn pictures that training validates on, as files, and what a record of `l2c eval` says of them by kind.

    python experiments/drawn.py write DIR --val VAL
    l2c eval DIR -o records/drawn --rates 0.5,1 --efforts 0,4 --lossless never,auto --peers jpeg,webp,avif,jxl \
        --figures psnr-rgb,psnr-y,ms-ssim-rgb,ms-ssim-y,vmaf,vmaf-neg,ssimulacra2,butteraugli --anchor webp
    python experiments/drawn.py page records/drawn --out docs/DRAWN.md

    python experiments/drawn.py bands DIR > records/drawn/bands.md

`bands` sets pictures in as many colours as fit beside latents, where their squared error is no more than a little
larger: what SSIMULACRA 2 says, and what the encoder takes. It has the pictures of DIR at 0.25, 0.5, 1 and 1.5 bpp, and
36 more drawn ones of 192x192.

By default such a picture is kept without loss where that is smaller, or in fewer colours (`auto`); `never` is what
latents alone make of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import l2c
from l2c.arrays import UInt8Array
from l2c.codec.pixels import masked_error
from l2c.evaluate.measures import FIGURES, measure
from l2c.evaluate.records import Row, RowFile
from l2c.format import lossless_section
from l2c.guard import is_drawn
from l2c.images.listing import list_pictures
from l2c.images.palettes import Palettes
from l2c.text_tables import heading, row
from l2c.train.drawn import KINDS, draw
from l2c.train.validation import validation_set

COUNT, SIDE = 24, 256
BEST_DB = 60.0
_HEAD = 100  # bytes of a file around its pixels


def write(folder: Path, val: str) -> None:
    """PNG files KIND-NUMBER of the pictures; `val`: the folder of photographs that some of them show."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(validation_set([val], SIDE, drawn=COUNT)["drawn"]):
        Image.fromarray(picture[0].permute(1, 2, 0).numpy()).save(folder / f"{KINDS[i % len(KINDS)]}-{i:02d}.png")


def newest(record: Path) -> list[Row]:
    """The rows of a record that count."""
    rows = {(r["codec"], r["picture"], r["target"]): r for r in RowFile(record / "rows.jsonl").rows}
    return list(rows.values())


def kinds_of(rows: list[Row]) -> list[str]:
    """The kinds of the pictures in a record."""
    return [kind for kind in KINDS if any(r["picture"].startswith(f"{kind}-") for r in rows)]


def table(rows: list[Row], figure: str) -> list[str]:
    """Markdown: codecs as lines, kinds as columns, a part for each rate: the mean of a figure, in brackets how many of
    the files are larger than the rate. Peers give their smallest file then."""
    kinds, lines = kinds_of(rows), []
    for target in sorted({r["target"] for r in rows}):
        lines += ["", *heading(f"{target:g} bpp", *kinds, "all")]
        for codec in dict.fromkeys(r["codec"] for r in rows):
            mine = [r for r in rows if (r["codec"], r["target"]) == (codec, target)]
            parts = [[r for r in mine if r["picture"].startswith(f"{kind}-")] for kind in kinds]
            lines.append(row(codec, *(_cell(part, figure) for part in (*parts, mine))))
    return lines[1:]


def against(rows: list[Row], peer: str, figure: str = "psnr-rgb") -> list[str]:
    """Markdown: of how many of our files by kind a figure is at least that of a peer at the same target."""
    kinds = kinds_of(rows)
    theirs = {(r["picture"], r["target"]): r[figure] for r in rows if r["codec"] == peer}
    lines = heading("of", *kinds, "all")
    for codec in dict.fromkeys(r["codec"] for r in rows if r["codec"].startswith("l2c-")):
        mine = [r for r in rows if r["codec"] == codec]
        parts = [[r for r in mine if r["picture"].startswith(f"{kind}-")] for kind in kinds]
        reached = ((sum(r[figure] >= theirs[r["picture"], r["target"]] for r in p), len(p)) for p in (*parts, mine))
        lines.append(row(codec, *(f"{count} of {number}" for count, number in reached)))
    return lines


def ways(rows: list[Row]) -> list[str]:
    """Markdown: how many of our files by kind are without loss, in fewer colours, and of latents."""
    kinds = kinds_of(rows)
    lines = heading("of", *kinds, "all")
    for codec in dict.fromkeys(r["codec"] for r in rows if r["codec"].endswith("-auto")):
        mine = [r for r in rows if r["codec"] == codec]
        parts = [[r for r in mine if r["picture"].startswith(f"{kind}-")] for kind in kinds]
        counts = (
            (sum(r["lossless"] for r in p), sum(r["colours"] is not None for r in p), len(p)) for p in (*parts, mine)
        )
        lines.append(row(codec, *(f"{a}, {b}, {n - a - b}" for a, b, n in counts)))
    return lines


def page(record: Path) -> str:
    """What docs/DRAWN.md says."""
    rows, run = newest(record), json.loads((record / "run.json").read_text())
    lines = [
        "# Drawn pictures",
        "",
        f"Written by `experiments/drawn.py page` from `{record}`; how to make both stands at the head of the script.",
        "",
        f"The {COUNT} drawn pictures of {SIDE}x{SIDE} that training validates on, at two rates; measured by "
        f"{run['written']}, model `{run['model']}`, id `{run['model_id']}`. Codecs that end in `-auto` are what "
        "`l2c encode` makes by default: pixels without loss or in fewer colours where that is better; the others are "
        'latents alone (`lossless="never"`). Means by kind; in brackets how many of the files are larger than the '
        f"rate. A PSNR above {BEST_DB:g} dB, as of files without loss, counts as that.",
        "",
        "## Files without loss, in fewer colours, and of latents",
        "",
        *ways(rows),
        "",
        "## Files whose PSNR is at least WebP's",
        "",
        *against(rows, "webp"),
    ]
    if (record / "bands.md").exists():
        lines += ["", "## Fewer colours beside latents", "", bands_in_words((record / "bands.md").read_text())]
    for figure in ("psnr-rgb", "ms-ssim-y", "vmaf-neg", "ssimulacra2", "butteraugli"):
        if all(figure in r for r in rows):
            lines += ["", f"## {FIGURES[figure].label.partition(' (')[0]}", "", *table(rows, figure)]
    return "\n".join(lines) + "\n"


def bands_in_words(text: str) -> str:
    """What the table of `bands` comes to."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[2:]]
    gains: dict[str, list[float]] = {"yes": [], "no": []}
    for cells in rows:
        before, after = (float(value) for value in cells[4].split(","))
        gains[cells[6]].append(after - before)
    taken, left = gains["yes"], gains["no"]
    return (
        f"Of {len(rows)} pictures and rates whose squared error is about as small or smaller in fewer colours "
        f"([bands.md](../records/drawn/bands.md), for `mixed`), the encoder takes {len(taken)}: SSIMULACRA 2 rises in "
        f"{sum(gain > 0 for gain in taken)} of them, by {statistics.mean(taken):.1f} on average. Of the {len(left)} "
        f"that it leaves as latents, {sum(gain > 0 for gain in left)} would have gained; on average they would have "
        f"changed by {statistics.mean(left):+.1f}."
    )


def _cell(part: list[Row], figure: str) -> str:
    if not part:
        return "-"
    larger = sum(r["bpp"] > r["target"] for r in part)
    most = BEST_DB if figure.startswith("psnr") else float("inf")
    value = statistics.mean(min(r[figure], most) for r in part)
    return f"{value:.{FIGURES[figure].digits}f}" + (f" ({larger} of {len(part)})" if larger else "")


def pictures(folder: Path) -> Iterator[tuple[str, UInt8Array]]:
    """Names and pictures of `bands`."""
    for path in list_pictures(folder):
        with Image.open(path) as opened:
            yield path.stem, np.asarray(opened.convert("RGB"))
    for kind in ("cartoon", "product", "text", "ui", "chart", "lines", "noise", "flat", "screenshot"):
        for seed in range(4):
            yield f"{kind} {seed}", draw(kind, 192, np.random.default_rng(100 + seed))


def bands(folder: Path) -> None:
    """Print Markdown: a line for each picture and rate."""
    codec, figures = l2c.Codec(), ("psnr-rgb", "ssimulacra2")
    print("\n".join(heading("picture", "bpp", "colours", "PSNR", "SSIMULACRA 2", "masked error", "taken")))
    for name, rgb in pictures(folder):
        palettes, pixels = Palettes.of(rgb), rgb.shape[0] * rgb.shape[1]
        for bpp in (0.25, 0.5, 1.0, 1.5):
            encoded = codec.encode_detailed(rgb, bpp=bpp)
            fitting = [
                count
                for count in (palettes.counts if palettes is not None and not encoded.lossless else ())
                if 8 * (len(lossless_section.pack(palettes.picture(count)) or b"") + _HEAD) <= bpp * pixels
            ]
            if not fitting or not is_drawn(rgb):
                continue
            assert palettes is not None
            fewer, latents = palettes.picture(fitting[-1]), codec.decode(codec.encode(rgb, bpp=bpp, lossless="never"))
            both = [(*measure(rgb, p, figures).values(), masked_error(rgb, p, 1024)) for p in (latents, fewer)]
            if both[1][0] < both[0][0] - 1.0:
                continue
            cells = (f"{before:.4g}, {after:.4g}" for before, after in zip(*both))
            print(row(name, f"{bpp:g}", str(fitting[-1]), *cells, "yes" if encoded.colours else "no"), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--val", required=True)
    comparing = commands.add_parser("bands")
    comparing.add_argument("folder", type=Path)
    showing = commands.add_parser("page")
    showing.add_argument("record", type=Path)
    showing.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "write":
        write(args.folder, args.val)
    elif args.command == "bands":
        bands(args.folder)
    else:
        args.out.write_text(page(args.record))


if __name__ == "__main__":
    main()
