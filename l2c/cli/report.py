"""What the commands print: facts of files, JSON, tables, and the last line of a folder's run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from l2c.cli.plan import Plan
from l2c.cli.terminal import printable
from l2c.codec.facts import Facts
from l2c.files import summary
from l2c.text_tables import aligned

Result: TypeAlias = Facts


def print_json(result: Any) -> None:
    """One JSON value; a number that JSON lacks is an error."""
    print(json.dumps(result, indent=2, allow_nan=False))


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """A table of `text_tables.aligned`."""
    for line in aligned(rows):
        print(printable(line))


def total_line(results: Sequence[Result], plan: Plan, seconds: float, stopped: bool) -> str:
    """The last line of a folder's run."""
    done = [result for result in results if "error" not in result]
    skipped = sum(bool(result.get("skipped")) for result in done)
    size = sum(result["size_bytes"] for result in done)
    pixels = sum(result["width"] * result["height"] for result in done)
    parts = [f"{len(done)} of {len(plan.jobs)} files"]
    if skipped:
        parts.append(f"{skipped} of them there already")
    parts.append(f"{size} bytes" + (f", {8 * size / pixels:.4f} bpp" if pixels else ""))
    parts.append(f"{seconds:.1f} s")
    text = ", ".join(parts)
    if plan.left_out:
        text += f"; {summary(plan.left_out, plan.root)}"
    if stopped:
        text += "; stopped, --skip-existing goes on from here"
    return text
