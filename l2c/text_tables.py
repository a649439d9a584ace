"""Tables: in Markdown, and in aligned columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def heading(*names: str) -> list[str]:
    """The first two lines of a table in Markdown."""
    return [row(*names), "|---" * len(names) + "|"]


def row(*cells: object) -> str:
    """A further line of it."""
    return f"| {' | '.join(map(str, cells))} |"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first row being the heading; from the third column on numbers stand to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(row[i][:1].isdigit() for row in rows[1:]) and i > 1 for i in range(len(rows[0]))]
    cells = [[cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]
