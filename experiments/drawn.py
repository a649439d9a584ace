"""The drawn pictures that training validates on, as files, and what a record of `l2c eval` says of them by kind.

    python experiments/drawn.py write DIR --val VAL
    l2c eval DIR -o records/drawn --rates 0.5,1 --efforts 0,4 --lossless never,auto --peers jpeg,webp,avif,jxl
    python experiments/drawn.py table records/drawn

By default such a picture is kept without loss where that is smaller (`auto`); `never` is what latents alone make of it.
PSNR over RGB says most here: of sharp edges on flat ground nothing is masked.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from PIL import Image

from l2c.evaluate.measures import FIGURES
from l2c.evaluate.records import RowFile
from l2c.text_tables import heading, row
from l2c.train.drawn import KINDS
from l2c.train.validation import validation_set

COUNT, SIDE = 24, 256


def write(folder: Path, val: str) -> None:
    """PNG files KIND-NUMBER of the pictures; `val`: the folder of photographs that some of them show."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(validation_set([val], SIDE, drawn=COUNT)["drawn"]):
        Image.fromarray(picture[0].permute(1, 2, 0).numpy()).save(folder / f"{KINDS[i % len(KINDS)]}-{i:02d}.png")


def table(record: Path, figure: str) -> list[str]:
    """Markdown: codecs as lines, kinds as columns, a part for each rate: the mean of a figure, in brackets how many of
    the files are larger than the rate. Peers give their smallest file then."""
    newest = {(r["codec"], r["picture"], r["target"]): r for r in RowFile(record / "rows.jsonl").rows}
    rows = list(newest.values())
    kinds = [kind for kind in KINDS if any(r["picture"].startswith(f"{kind}-") for r in rows)]
    lines = []
    for target in sorted({r["target"] for r in rows}):
        lines += ["", *heading(f"{target:g} bpp", *kinds, "all")]
        for codec in dict.fromkeys(r["codec"] for r in rows):
            mine = [r for r in rows if (r["codec"], r["target"]) == (codec, target)]
            parts = [[r for r in mine if r["picture"].startswith(f"{kind}-")] for kind in kinds]
            lines.append(row(codec, *(_cell(part, figure) for part in (*parts, mine))))
    return lines[1:]


def _cell(part: list[dict[str, float]], figure: str) -> str:
    if not part:
        return "-"
    larger = sum(r["bpp"] > r["target"] for r in part)
    value = statistics.mean(r[figure] for r in part)
    return f"{value:.{FIGURES[figure].digits}f}" + (f" ({larger} of {len(part)})" if larger else "")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--val", required=True)
    showing = commands.add_parser("table")
    showing.add_argument("record", type=Path)
    showing.add_argument("--figure", choices=FIGURES, default="psnr-rgb")
    args = parser.parse_args()
    if args.command == "write":
        write(args.folder, args.val)
    else:
        print("\n".join(table(args.record, args.figure)))


if __name__ == "__main__":
    main()
