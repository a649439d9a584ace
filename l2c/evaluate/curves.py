"""BD-rates between mean curves, tables of them, and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2c.errors import BackendError
from l2c.evaluate.measures import FIGURES, in_db
from l2c.evaluate.records import Curve
from l2c.text_tables import heading, row

_COLOURS = [
    *(f"C{k}" for k in range(10) if k != 7),
    *("0.1", "navy", "goldenrod", "maroon", "darkgreen", "teal", "violet", "0.5", "0.75"),
]


def points(curve: Curve, figure: str) -> tuple[list[float], list[float]]:
    """Rates and values as they are compared (`measures.in_db`), rates rising; of equal rates the first."""
    rates: list[float] = []
    values: list[float] = []
    for rate, value in sorted(zip(curve.values["bpp"], curve.values[figure])):
        if not rates or rate > rates[-1]:
            rates.append(rate)
            values.append(in_db(figure, value))
    return rates, values


def bd_rate(anchor: Curve, curve: Curve, figure: str) -> float:
    """How much more rate `curve` needs than `anchor` at equal quality, percent; NaN where they have nothing in common.

    By the package `bjontegaard`: pchip over the common range of quality. Only the part of each curve is taken along
    which quality rises with the rate, as the method needs it.

    Raises:
        BackendError: the package is not installed.
    """
    try:
        import bjontegaard
    except ImportError:
        raise BackendError("BD-rates need the package bjontegaard: pip install 'l2c[eval]'") from None
    pair = [_rising(*points(each, figure)) for each in (anchor, curve)]
    low, high = max(p[1][0] for p in pair), min(p[1][-1] for p in pair)
    if min(len(p[0]) for p in pair) < 2 or low >= high:
        return float("nan")
    return float(bjontegaard.bd_rate(*pair[0], *pair[1], method="pchip", require_matching_points=False, min_overlap=0))


def _rising(rates: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    kept = [k for k in range(len(values)) if k == 0 or values[k] > max(values[:k])]
    return [rates[k] for k in kept], [values[k] for k in kept]


def rate_table(curves: Sequence[Curve], anchor: Curve, figures: Sequence[str]) -> str:
    """Markdown: BD-rate of every curve against the anchor, mean seconds, and how many files meet their rate (at the
    targets that all pictures have)."""
    lines = [
        f"BD-rate against {anchor.title}" + (" (published)" if anchor.published else "") + ", percent:",
        "",
        *heading("codec", *_short(figures), "encode s", "decode s", "in 0.98..1.00 of the rate"),
    ]
    for curve in curves:
        cells = []
        for name in figures:
            both = name in curve.values and name in anchor.values
            value = bd_rate(anchor, curve, name) if both and curve is not anchor else float("nan")
            cells.append("-" if np.isnan(value) else f"{value:+.1f}")
        for name in ("encode_seconds", "decode_seconds"):
            column = curve.values.get(name)
            cells.append(f"{np.mean(column):.3g}" if column else "-")
        window = curve.values.get("in_window")
        cells.append(f"{100 * np.mean(window):.0f} %" if window else "-")
        title = curve.title + (" (published)" if curve.published else "")
        lines.append(row(title, *cells))
    return "\n".join(lines) + "\n"


def quality_table(curves: Sequence[Curve], figures: Sequence[str]) -> str:
    """Markdown: means at every target, measured codecs."""
    lines = heading("codec", "target bpp", "bpp", *_short(figures))
    for curve in curves:
        for k, target in enumerate(curve.targets):
            cells = [_cell(name, curve.values[name][k]) if name in curve.values else "-" for name in figures]
            shown = f"quality {target:g}" if curve.at_qualities else f"{target:g}"
            lines.append(row(curve.title, shown, f"{curve.values['bpp'][k]:.3f}", *cells))
    return "\n".join(lines) + "\n"


def _short(figures: Sequence[str]) -> list[str]:
    """What heads the columns of figures."""
    return [FIGURES[name].label.split(" (")[0] for name in figures]


def _cell(figure: str, value: float) -> str:
    return f"{value:.{FIGURES[figure].digits}f}"


def axes_of(path: Path, width: float = 8.0, height: float = 5.5) -> tuple[Any, Callable[[], None]]:
    """Axes of a new plot, and what writes it to the path once it is drawn.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BackendError("plots need matplotlib: pip install 'l2c[eval]'") from None
    drawing = Figure(figsize=(width, height))

    def write() -> None:
        drawing.savefig(path, dpi=130, bbox_inches="tight")

    return drawing.add_subplot(), write


def plot(curves: Sequence[Curve], figure: str, path: Path) -> None:
    """Rate-distortion curves of one figure; published ones dashed.

    Raises:
        BackendError: matplotlib is not installed.
    """
    axes, write = axes_of(path)
    measured = [rate for curve in curves if not curve.published for rate in curve.values["bpp"]]
    most = 1.05 * max(measured, default=float("inf"))
    shown: list[float] = []
    for k, curve in enumerate(curves):
        if figure in curve.values:
            rates, values = points(curve, figure)
            shown += [value for rate, value in zip(rates, values) if rate <= most]
            own = curve.codec.startswith("l2c")
            axes.plot(
                rates,
                values,
                "--" if curve.published else "o-",
                label=curve.title + (" (published)" if curve.published else ""),
                linewidth=2.2 if own else 1.0,
                markersize=3.5,
                zorder=3 if own else 2,
                color=_COLOURS[k % len(_COLOURS)],
            )
    if measured:
        axes.set_xlim(0.0, most)
    if shown and max(shown) > min(shown):
        margin = 0.05 * (max(shown) - min(shown))
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel(FIGURES[figure].label)
    axes.grid(alpha=0.3)
    beside = len(axes.get_lines()) > 8  # a long legend would cover the curves
    axes.legend(fontsize=8, **({"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if beside else {}))
    write()


def plot_time(curves: Sequence[Curve], anchor: Curve, figure: str, path: Path) -> None:
    """BD-rate of one figure against the mean seconds of encoding, of what was measured; the efforts of our codec for
    one metric are joined and numbered.

    Raises:
        BackendError: matplotlib or `bjontegaard` is not installed.
    """
    axes, write = axes_of(path)
    ladders: dict[str, list[tuple[float, float]]] = {}
    for curve in curves:
        seconds = curve.values.get("encode_seconds")
        if curve.published or not seconds or figure not in curve.values:
            continue
        place = float(np.mean(seconds)), 0.0 if curve is anchor else bd_rate(anchor, curve, figure)
        if np.isnan(place[1]):
            continue
        family, _, effort = curve.title.partition(", effort ")
        label = effort or curve.title
        if effort:
            ladders.setdefault(family, []).append(place)
        else:
            axes.plot(*place, "s", color="0.4", markersize=4)
        axes.annotate(label, place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    for family, places in ladders.items():
        axes.plot(*zip(*sorted(places)), "o-", linewidth=2.2, markersize=4, label=f"{family}, by effort")
    axes.set_xscale("log")
    axes.set_xlabel("seconds to encode a picture")
    axes.set_ylabel(f"BD-rate against {anchor.title}, % ({FIGURES[figure].label.split(' (')[0]})")
    axes.grid(alpha=0.3)
    if ladders:
        axes.legend(fontsize=8)
    write()
