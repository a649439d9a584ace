"""The tables of L2C (I, II, III) and the figures 4 and 5 of OML, on any pictures: the papers' numbers beside ours.

Every number of ours is of a real file, decoded again, except Table II, which compares checkpoints in training. What is
measured goes to `tables.jsonl` (see `records.RowFile`) and, for Table I, to `rows.jsonl` of `run.evaluate`: a stopped
run goes on, and a record of `l2c eval` is used as far as it goes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l2c.adapt.effort import Effort
from l2c.codec import Codec
from l2c.errors import RateError, UnsupportedError
from l2c.evaluate.curves import axes_of
from l2c.evaluate.measures import UInt8Array, in_db, measure
from l2c.evaluate.records import Row, RowFile
from l2c.evaluate.run import DEFAULT_RATES, Plan, evaluate, own_name, own_version
from l2c.images import load_picture, write_atomically

PARTS = ("I", "II", "III", "fig4", "fig5")

# bpp, MS-SSIM of Y, VMAF of JPEG AI's pictures (L2C Table I).
PAPER_I = {
    "jpegai03": (
        (2.031, 0.9982, 94.32), (1.570, 0.9975, 93.86), (1.117, 0.9952, 91.02), (0.769, 0.9925, 86.42),
        (0.551, 0.9703, 81.12), (0.268, 0.9681, 69.96), (0.132, 0.9678, 56.79), (0.056, 0.9026, 38.85),
    ),
    "jpegai09": (
        (2.247, 0.9938, 88.03), (1.581, 0.9860, 82.17), (1.148, 0.9827, 80.05), (0.644, 0.9717, 74.97),
        (0.473, 0.9573, 64.23), (0.217, 0.9231, 48.07), (0.128, 0.8822, 27.16), (0.068, 0.7326, 14.43),
    ),
    "jpegai12": (
        (1.925, 0.9943, 93.04), (1.437, 0.9906, 90.99), (1.122, 0.9842, 88.39), (0.845, 0.9810, 87.29),
        (0.510, 0.9605, 83.11), (0.252, 0.9141, 79.22), (0.117, 0.8562, 61.04), (0.051, 0.7778, 30.28),
    ),
    "jpegai15": (
        (1.969, 0.9980, 93.55), (1.489, 0.9973, 92.99), (1.065, 0.9941, 90.98), (0.673, 0.9920, 86.56),
        (0.535, 0.9563, 83.95), (0.249, 0.9610, 68.04), (0.103, 0.9553, 54.96), (0.066, 0.9297, 36.92),
    ),
}  # fmt: skip
# iterations: learning rates, relative improvement of the mean loss drop in percent (L2C Table II).
PAPER_II = {4: ((0.1, 0.15, 0.2), 4.58), 10: ((0.01, 0.02, 0.05), 11.37), 100: ((0.001, 0.005, 0.01), 9.96)}
# target bpp, bpp before and after, MS-SSIM before and after; one picture each (L2C Table III).
PAPER_III = (
    (2.0, 2.363, 2.264, 0.9966, 0.9952), (1.0, 1.262, 1.089, 0.9868, 0.9876), (0.75, 0.950, 0.825, 0.9917, 0.9908),
    (0.25, 0.157, 0.258, 0.9172, 0.9315), (1.0, 0.950, 1.045, 0.9917, 0.9931), (1.5, 1.384, 1.532, 0.9856, 0.9892),
)  # fmt: skip
PAPER_BIAS_GAIN = 0.0029  # MS-SSIM, mean over pictures and rates (L2C IV)

OVERFITTING = Effort(iterations=10)  # as many as the paper's
SETS = Effort(sets=8)
STEPS = (1, 5, 20, 99)  # OML's Figure 5 goes from few steps to 99
_FIGURE = {"psnr": "psnr-rgb", "msssim": "ms-ssim-rgb"}
_LABEL = {"psnr": "PSNR", "msssim": "MS-SSIM"}


@dataclass
class Tables:
    """What is measured, and where.

    Attributes:
        codec: ours. pictures: files. folder: of the record.
        rates: bpp of Table I, of the bias sets and of Figure 4. examples: pictures shown in Table I, measured for
            Figure 5.
        effort, metric: of Table I.
        tell: called with the name of each piece of work before it begins.
    """

    codec: Codec
    pictures: Sequence[Path]
    folder: Path
    rates: Sequence[float] = DEFAULT_RATES
    examples: int = 4
    effort: int = 4
    metric: str = "mixed"
    tell: Callable[[str], None] = lambda what: None
    _pixels: dict[Path, UInt8Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise UnsupportedError(f"examples are {self.examples}: there must be one at least")
        self.plan = Plan(
            self.pictures, self.rates, (self.metric,), (self.effort,), ("none",), ("ms-ssim-rgb", "ms-ssim-y", "vmaf")
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record = RowFile(self.folder / "tables.jsonl")
        version = own_version(self.codec)
        self._known = {
            (row["picture"], row["codec"], row["target"]): row
            for row in self._record.rows
            if row.get("version") == version
        }
        self._version = version

    # --- L2C Table I ----------------------------------------------------------------------------------------------

    def table_one(self) -> str:
        """bpp, MS-SSIM of Y and VMAF of some pictures at every rate."""
        outcome = evaluate(self.codec, self.plan, self.folder, self.tell)
        name = own_name(self.metric, self.effort)
        lines = ["| ID | BPP | MSY | VMAF |", "|---|---|---|---|"]
        rows = {(row["picture"], row["target"]): row for row in outcome.rows if row["codec"] == name}
        for path in self._some(self.examples):
            for rate in sorted(self.rates, reverse=True):
                row = rows.get((path.stem, float(rate)))
                if row is not None:
                    lines.append(f"| {path.stem} | {row['bpp']:.3f} | {row['ms-ssim-y']:.4f} | {row['vmaf']:.2f} |")
        paper = ["| ID | BPP | MSY | VMAF |", "|---|---|---|---|"]
        for picture, values in PAPER_I.items():
            paper += [f"| {picture} | {bpp:.3f} | {y:.4f} | {vmaf:.2f} |" for bpp, y, vmaf in values]
        missed = [f"- {what}: {why}" for what, why in outcome.failures]
        return "\n".join(
            [
                "## L2C, Table I",
                "",
                "MSY: MS-SSIM of Y (BT.709, full range); VMAF on 4:4:4.",
                "",
                f'**Ours**, `metric="{self.metric}"`, effort {self.effort}:',
                "",
                *lines,
                *(["", *missed] if missed else []),
                "",
                "**Paper**, pictures of JPEG AI, so not to be compared line by line:",
                "",
                *paper,
            ]
        )

    # --- L2C Table II ---------------------------------------------------------------------------------------------

    def table_two(self, meta: Path, control: Path, qualities: Sequence[int] = (30, 50, 70), size: int = 256) -> str:
        """How much more a meta-trained model gains from overfitting than one fine-tuned without it.

        Args:
            meta, control: checkpoints of the stage meta; the second of the same length with `meta.order=0`.
            qualities: 0..100, averaged over. size: of the centre of each picture that is taken, in pixels.
        """
        from l2c.evaluate.meta import mean_drops

        lines = [
            "## L2C, Table II",
            "",
            f"Mean loss drop of {len(self.pictures)} pictures' centres ({size}x{size}), qualities "
            f"{', '.join(map(str, qualities))}, mu {self.codec_mu}, the best learning rate for each. Ours: rescaled.",
            "",
            "| Num. iters | LRS | drop, meta (bpp) | drop, control | Δ mean loss drop, ours | paper |",
            "|---|---|---|---|---|---|",
        ]
        crops = [_centre(self._picture(path), size) for path in self.pictures]
        for iterations, (alphas, paper) in PAPER_II.items():
            self.tell(f"Table II, {iterations} iterations")
            drops = mean_drops((meta, control), crops, qualities, self.codec_mu, iterations, alphas)
            lines.append(
                f"| {iterations} | {{{', '.join(map(str, alphas))}}} | {drops[0]:.5f} | {drops[1]:.5f} "
                f"| {100 * (drops[0] / drops[1] - 1):+.2f} % | +{paper:.2f} % |"
            )
        return "\n".join(lines)

    @property
    def codec_mu(self) -> int:
        """Metric mix in eighths of `metric`."""
        from l2c.codec import METRICS

        return METRICS[self.metric]

    # --- L2C Table III and bias sets --------------------------------------------------------------------------------

    def table_three(self) -> str:
        """Rate and MS-SSIM before and after overfitting latents at one quality, and what bias sets gain."""
        lines = [
            "| Target BPP | BPP₁ | BPP₂ | MS-SSIM₁ | MS-SSIM₂ | paper: BPP₁ | BPP₂ | MS-SSIM₁ | MS-SSIM₂ |",
            "|---" * 9 + "|",
        ]
        for target, *paper in PAPER_III:
            pairs = [self._pair(path, target, "msssim", OVERFITTING, "overfitting") for path in self.pictures]
            found = [pair for pair in pairs if pair is not None]
            if not found:
                continue
            first, second = ({key: _mean(p[k], key) for key in ("bpp", "ms-ssim-rgb")} for k, p in _sides(found))
            lines.append(
                f"| {target:g} ± 15 % | {first['bpp']:.3f} | {second['bpp']:.3f} | {first['ms-ssim-rgb']:.4f} "
                f"| {second['ms-ssim-rgb']:.4f} | {paper[0]:.3f} | {paper[1]:.3f} | {paper[2]:.4f} | {paper[3]:.4f} |"
            )
        gains = []
        for path in self.pictures:
            for rate in self.rates:
                pair = self._pair(path, rate, "msssim", SETS, "sets")
                if pair is not None:
                    gains.append(pair[1]["ms-ssim-rgb"] - pair[0]["ms-ssim-rgb"])
        sets = f"{statistics.mean(gains):+.4f}" if gains else "none"
        return "\n".join(
            [
                "## L2C, Table III",
                "",
                f"**Ours**: means of {len(self.pictures)} pictures, each at one quality whose file without adaptation "
                f"meets the target, before and after {OVERFITTING.iterations} iterations; the paper's rows are one "
                "picture each. BPP of whole files.",
                "",
                *lines,
                "",
                f"Content-specific biases alone, mean MS-SSIM gain over pictures and rates: {sets} ours, "
                f"{PAPER_BIAS_GAIN:+.4f} paper.",
            ]
        )

    # --- OML Figures 4 and 5 ----------------------------------------------------------------------------------------

    def figure_four(self, steps: int = 20) -> str:
        """What adapted conditions gain at every rate, for PSNR and for MS-SSIM in dB; also `fig4.png`."""
        curves: dict[str, tuple[list[float], list[float], list[float]]] = {}
        for metric in ("psnr", "msssim"):
            rates, gains, shares = [], [], []
            for rate in sorted(self.rates):
                pairs = [self._pair(p, rate, metric, Effort(steps=steps), f"steps{steps}") for p in self.pictures]
                found = [pair for pair in pairs if pair is not None]
                if found:
                    each = [_gain(metric, *pair) for pair in found]
                    rates.append(_mean([pair[1] for pair in found], "bpp"))
                    gains.append(statistics.mean(gain for gain, _ in each))
                    shares.append(statistics.mean(share for _, share in each))
            curves[metric] = rates, gains, shares
        lines = ["| metric | bpp | gain, dB | gain, % |", "|---|---|---|---|"]
        for metric, (rates, gains, shares) in curves.items():
            lines += [f"| {_LABEL[metric]} | {r:.3f} | {g:+.4f} | {s:+.3f} |" for r, g, s in zip(rates, gains, shares)]
        axes, write = axes_of(self.folder / "fig4.png", 6.0, 4.0)
        for metric, (rates, gains, _) in curves.items():
            axes.plot(rates, gains, "o-", label=f"{_LABEL[metric]}, {steps} steps (ours)")
        _finish(axes, write, "bits per pixel", "gain, dB")
        return "\n".join(
            [
                "## OML, Figure 4",
                "",
                f"Conditions adapted with {steps} steps, latents as they were, {len(self.pictures)} pictures. MS-SSIM "
                "as -10 log10(1 - m). Where they do not pay for their bytes the file stays as it was. Paper (curves "
                "only, other base models): gains at every rate, more at low ones, more for PSNR than for MS-SSIM.",
                "",
                *lines,
                "",
                "![gain against rate](fig4.png)",
            ]
        )

    def figure_five(self, rate: float = 0.25) -> str:
        """What more steps gain and cost; also `fig5.png`."""
        lines = ["| metric | steps | time, % of encoding | gain, dB | gain, % |", "|---|---|---|---|---|"]
        curves: dict[str, tuple[list[float], list[float]]] = {}
        for metric in ("psnr", "msssim"):
            times, shares = [], []
            for steps in STEPS:
                pairs = [
                    self._pair(path, rate, metric, Effort(steps=steps), f"steps{steps}")
                    for path in self._some(self.examples)
                ]
                found = [pair for pair in pairs if pair is not None]
                if not found:
                    continue
                each = [_gain(metric, *pair) for pair in found]
                more = statistics.median(100 * (b["encode_seconds"] / a["encode_seconds"] - 1) for a, b in found)
                gain, share = (statistics.mean(column) for column in zip(*each))
                times.append(more)
                shares.append(share)
                lines.append(f"| {_LABEL[metric]} | {steps} | {more:+.0f} | {gain:+.4f} | {share:+.3f} |")
            curves[metric] = times, shares
        axes, write = axes_of(self.folder / "fig5.png", 6.0, 4.0)
        for metric, (times, shares) in curves.items():
            axes.plot(times, shares, "o-", label=f"{_LABEL[metric]} (ours)")
        axes.set_xscale("symlog")
        _finish(axes, write, "more encoding time, %", "gain, %")
        return "\n".join(
            [
                "## OML, Figure 5",
                "",
                f"Conditions adapted at {rate:g} bpp, {min(self.examples, len(self.pictures))} pictures; time over "
                "that of an encode at one quality without adaptation, which for our codec is one pass of E and of the "
                "integer P. Paper: 5 steps, about 1 % more time, PSNR +1.5 to +5 %; 99 steps, about 20 %, "
                "+2 to +8.8 %.",
                "",
                *lines,
                "",
                "![gain against time](fig5.png)",
            ]
        )

    # --- measuring --------------------------------------------------------------------------------------------------

    def _some(self, count: int) -> list[Path]:
        """So many of the pictures, evenly spread."""
        chosen = np.linspace(0, len(self.pictures) - 1, min(count, len(self.pictures)))
        return [self.pictures[round(float(k))] for k in chosen]

    def _picture(self, path: Path) -> UInt8Array:
        if path not in self._pixels:
            self._pixels = {path: load_picture(path).rgb}
        return self._pixels[path]

    def _pair(self, path: Path, rate: float, metric: str, effort: Effort, name: str) -> tuple[Row, Row] | None:
        """Files of one quality without adaptation and with it; None where the picture cannot reach the rate."""
        plain = self._row(path, rate, metric, f"tables-{metric}-plain", None, None)
        if plain is None:
            return None
        adapted = self._row(path, rate, metric, f"tables-{metric}-{name}", effort, plain["quality"])
        assert adapted is not None
        return plain, adapted

    def _row(
        self, path: Path, rate: float, metric: str, name: str, effort: Effort | None, quality: float | None
    ) -> Row | None:
        key = path.stem, name, float(rate)
        if key in self._known:
            return self._known[key]
        self.tell(" ".join(map(str, key)))
        pixels = self._picture(path)
        if quality is None:
            try:
                quality = self.codec.encode_detailed(pixels, bpp=rate, metric=metric).quality
            except RateError:
                return None
        start = time.perf_counter()
        encoded = self.codec.encode_detailed(pixels, quality=quality, metric=metric, effort=effort or 0)
        seconds = time.perf_counter() - start
        row: dict[str, Any] = {
            "picture": path.stem, "codec": name, "target": float(rate), "version": self._version, "bpp": encoded.bpp,
            "quality": quality, "encode_seconds": seconds, "adaptation": encoded.adaptation,
        }  # fmt: skip
        row |= measure(pixels, self.codec.decode(encoded.data), ("psnr-rgb", "ms-ssim-rgb"))
        self._record.add(row)
        self._known[key] = row
        return row


def _sides(pairs: list[tuple[Row, Row]]) -> Iterator[tuple[int, list[list[Row]]]]:
    columns = [list(column) for column in zip(*pairs)]
    yield from ((k, columns) for k in range(2))


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def _gain(metric: str, before: Row, after: Row) -> tuple[float, float]:
    """dB and percent of dB."""
    name = _FIGURE[metric]
    a, b = in_db(name, before[name]), in_db(name, after[name])
    return b - a, 100.0 * (b / a - 1.0)


def _centre(pixels: UInt8Array, size: int) -> torch.Tensor:
    """float32 [3, size, size] in [0, 1]."""
    if min(pixels.shape[:2]) < size:
        raise UnsupportedError(f"a picture of {pixels.shape[1]}x{pixels.shape[0]} pixels has no centre of {size}")
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    part = np.ascontiguousarray(pixels[top : top + size, left : left + size])
    return torch.from_numpy(part).permute(2, 0, 1).float() / 255.0


def _finish(axes: Any, write: Callable[[], None], x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend()
    write()


def write_tables(tables: Tables, parts: Sequence[str], meta: Path | None = None, control: Path | None = None) -> str:
    """The parts asked for as one page, Markdown; also `tables.md` in the folder.

    Raises:
        UnsupportedError: an unknown part, or Table II without its checkpoints.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise UnsupportedError(f"parts are {list(parts)}: choose from {', '.join(PARTS)}")
    if "II" in parts and (meta is None or control is None):
        raise UnsupportedError("Table II compares two checkpoints: name them with --meta and --control")
    model = tables.codec.model
    texts = [
        f"# Tables of the papers, on {len(tables.pictures)} pictures\n\nModel `{model.name}`, id "
        f"`{model.model_id.hex()}`; written {time.strftime('%Y-%m-%d')} by `l2c tables`."
    ]
    for part in PARTS:
        if part not in parts:
            continue
        if part == "I":
            texts.append(tables.table_one())
        elif part == "II":
            assert meta is not None and control is not None
            texts.append(tables.table_two(meta, control))
        elif part == "III":
            texts.append(tables.table_three())
        elif part == "fig4":
            texts.append(tables.figure_four())
        else:
            texts.append(tables.figure_five())
    text = "\n\n".join(texts) + "\n"
    write_atomically(tables.folder / "tables.md", text.encode())
    return text
