"""What an evaluation writes down: rows as they are measured, and the tables made of them.

A folder holds

- `rows.jsonl`: one measured file a line, appended and flushed as soon as it is there. A stopped run goes on behind the
  last whole line.
- `results/CODEC.json`: mean curves in the layout of CompressAI's `results/`, which its plot tools read;
- `results.csv`: the same means, one line for each codec and target;
- `run.json`: machine, versions and settings;
- `report.md`, `FIGURE.png` and `time-FIGURE.png`: what `run.report` makes of it.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l2c.errors import UnsupportedError
from l2c.evaluate.measures import FIGURES

Row = dict[str, Any]
_TIMES = {"encode_seconds": "encoding_time", "decode_seconds": "decoding_time"}  # ours: CompressAI's


class RowFile:
    """`rows.jsonl`, read when opened and appended to.

    Args:
        path: the file; made if it does not exist.
    Raises:
        UnsupportedError: a line that is no row, other than an unfinished last one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        whole = 0
        if path.exists():
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1  # what a killed run left half written goes
            for number, line in enumerate(data[:whole].splitlines(), 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict) or not {"picture", "codec", "target", "bpp"} <= row.keys():
                    raise UnsupportedError(f"{path}, line {number}: this is no row of an evaluation")
                self.rows.append(row)
            if whole < len(data):
                with path.open("r+b") as file:
                    file.truncate(whole)

    def add(self, row: Row) -> None:
        """Append a row and see that it is on the disk."""
        self.rows.append(row)
        with self.path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Curve:
    """A codec's means over all pictures, targets rising.

    Attributes:
        codec: key. title: for people. description: settings and versions.
        values: per figure and for bpp, encode_seconds, decode_seconds and in_window (share of the files that have 0.98
            to 1.00 of their target), one value for each target. Figures are as measured, MS-SSIM not in dB.
        targets: bpp asked for. at_qualities: they are qualities instead, of a model that has networks at some alone.
        published: figures from a publication, not measured here.
    """

    codec: str
    title: str
    description: str
    values: dict[str, list[float]]
    targets: list[float]
    published: bool = False
    at_qualities: bool = False

    @property
    def figures(self) -> list[str]:
        """Names of the figures of quality."""
        return [name for name in FIGURES if name in self.values]


def mean_curves(rows: Iterable[Row], titles: dict[str, tuple[str, str]]) -> list[Curve]:
    """Curves of all codecs in the order of `titles`: codec -> (title, description).

    A target that a codec has not reached for every picture (a rate error, a run that was stopped) is left out: means
    over different pictures cannot be compared.
    """
    rows = list(rows)
    pictures = {row["picture"] for row in rows}
    curves = []
    for codec, (title, description) in titles.items():
        mine = [row for row in rows if row["codec"] == codec]
        targets: list[float] = []
        values: dict[str, list[float]] = {}
        for target in sorted({row["target"] for row in mine}):
            part = [row for row in mine if row["target"] == target]
            if {row["picture"] for row in part} != pictures:
                continue
            targets.append(target)
            for name in ("bpp", *FIGURES, *_TIMES):
                if all(name in row for row in part):
                    values.setdefault(name, []).append(float(np.mean([row[name] for row in part])))
        at_qualities = any(row.get("at_quality") for row in mine)
        if targets and not at_qualities:
            values["in_window"] = [
                float(np.mean([0.98 <= row["bpp"] / target <= 1.0 for row in mine if row["target"] == target]))
                for target in targets
            ]
        if targets:
            complete = {name: column for name, column in values.items() if len(column) == len(targets)}
            curves.append(Curve(codec, title, description, complete, targets, at_qualities=at_qualities))
    return curves


def to_compressai(curve: Curve) -> dict[str, Any]:
    """A curve as CompressAI's `results/image/*/*.json` hold it."""
    results = {_TIMES.get(name, name): column for name, column in curve.values.items()}
    return {"name": curve.title, "description": curve.description, "results": results}


def from_compressai(data: dict[str, Any], codec: str) -> Curve:
    """A curve out of such a file. Raises UnsupportedError: it is none."""
    results = data.get("results")
    if not isinstance(results, dict) or not isinstance(results.get("bpp"), list):
        raise UnsupportedError(f"{codec}: this is no result in CompressAI's layout")
    names = {"psnr": "psnr-rgb", "ms-ssim": "ms-ssim-rgb"} | {theirs: ours for ours, theirs in _TIMES.items()}
    count = len(results["bpp"])
    values = {
        names.get(str(name), str(name)): [float(value) for value in column]
        for name, column in results.items()
        if isinstance(column, list) and len(column) == count and all(isinstance(v, (int, float)) for v in column)
    }
    if "bpp" not in values:
        raise UnsupportedError(f"{codec}: the rates are not numbers")
    return Curve(codec, str(data.get("name", codec)), str(data.get("description", "")), values, values["bpp"], True)


def to_csv(curves: Iterable[Curve]) -> str:
    """Mean curves as comma-separated values with a heading."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = ("bpp", *FIGURES, *_TIMES)
    writer.writerow(("codec", "target_bpp", *columns))
    for curve in curves:
        for k, target in enumerate(curve.targets):
            cells = [f"{curve.values[name][k]:.6g}" if name in curve.values else "" for name in columns]
            writer.writerow((curve.codec, f"{target:g}", *cells))
    return buffer.getvalue()


def load_published(path: Path, codecs: Iterable[str]) -> list[Curve]:
    """Published mean curves by name, from a page of anchors (records/published/kodak.json) or from a folder of files in
    CompressAI's layout, CODEC.json each.

    Raises:
        UnsupportedError: no such page or file, or a codec that it does not have.
    """
    try:
        if path.is_dir():
            return [from_compressai(json.loads((path / f"{name}.json").read_text()), name) for name in codecs]
        known = json.loads(path.read_text())["codecs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnsupportedError(f"{path}: these are no published curves ({error})") from None
    curves = []
    for codec in codecs:
        if codec not in known:
            raise UnsupportedError(f"{path} has no codec {codec!r}: choose from {', '.join(sorted(known))}")
        entry = known[codec]
        order = np.argsort(entry["bpp"])
        values = {"bpp": [float(entry["bpp"][i]) for i in order]}
        for ours, theirs in (("psnr-rgb", "psnr"), ("ms-ssim-rgb", "ms_ssim")):
            column = entry.get(theirs)
            if column and None not in column:
                values[ours] = [float(column[i]) for i in order]
        title = codec if codec.startswith("compressai-") else str(entry.get("description") or codec)
        curves.append(Curve(codec, title, str(entry.get("source", "")), values, values["bpp"], True))
    return curves
