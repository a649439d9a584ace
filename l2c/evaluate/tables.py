"""The tables of L2C (I, II, III) and the figures 4 and 5 of OML, on any pictures: the papers' numbers beside ours.

Every number of ours is of a real file, decoded again, except Table II, which compares checkpoints in training. They go
to `tables.jsonl` (see `records.RowFile`) and, for Table I, to `rows.jsonl` of `run.evaluate`: a stopped run goes on,
and rows of `l2c eval` for the same metric and effort are used.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l2c.adapt.effort import Effort
from l2c.arrays import UInt8Array
from l2c.codec import Codec
from l2c.errors import RateError, UnsupportedError
from l2c.evaluate.curves import axes_of
from l2c.evaluate.measures import in_db, measure
from l2c.evaluate.meta import Overfitter
from l2c.evaluate.records import Row, RowFile
from l2c.evaluate.run import DEFAULT_RATES, Plan, evaluate, own_name, own_version
from l2c.files import write_atomically
from l2c.format.levels import DEFAULT_METRIC, METRICS, Metric
from l2c.images import load_picture
from l2c.text_tables import heading, row
from l2c.transforms import num_modulators

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

SETS = Effort(sets=8)
PAPERS_ITERATIONS = Effort(iterations=10)
_FIGURE = {"psnr": "psnr-rgb", "msssim": "ms-ssim-rgb"}
_Key = tuple[str, str, float, str]  # picture, codec, target, version
_LABEL: dict[Metric, str] = {"psnr": "PSNR", "msssim": "MS-SSIM"}


@dataclass
class Tables:
    """What is measured, and where.

    Attributes:
        codec: ours. pictures: files. folder: of the record.
        rates: bpp of Table I, of the bias sets and of Figure 4. examples: pictures shown in Table I, measured for
            Figure 5.
        effort: of Table I. metric: of Tables I and II.
        tell: called with the name of each piece of work before it begins.
        overfitting: of Table III. steps: of Figure 5.
        crop: side of the pictures' centres that Table II takes, in pixels.
        own: a model with the same encoders whose decoders are their own, where `codec` has one for all (OML 5.1):
            Figure 4 then shows the gain over it, too.
    """

    codec: Codec
    pictures: Sequence[Path]
    folder: Path
    rates: Sequence[float] = DEFAULT_RATES
    examples: int = 4
    effort: int = 4
    metric: str = DEFAULT_METRIC
    tell: Callable[[str], None] = lambda what: None
    overfitting: Effort = PAPERS_ITERATIONS
    steps: Sequence[int] = (1, 5, 20, 99)
    crop: int = 256
    own: Codec | None = None
    _pixels: dict[Path, UInt8Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise UnsupportedError(f"examples are {self.examples}: there must be one at least")
        figures = ("ms-ssim-rgb", "ms-ssim-y", "vmaf")
        everything = Plan(self.pictures, self.rates, (self.metric,), (self.effort,), ("none",), figures)
        self.plan = replace(everything, pictures=self._some(self.examples))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record = RowFile(self.folder / "tables.jsonl")
        self._known: dict[_Key, Row] = {
            (row["picture"], row["codec"], row["target"], row.get("version", "")): row for row in self._record.rows
        }
        self.failures: list[tuple[str, str]] = []

    # --- L2C Table I ----------------------------------------------------------------------------------------------

    def table_one(self) -> str:
        """bpp, MS-SSIM of Y and VMAF of some pictures at every rate."""
        outcome = evaluate(self.codec, self.plan, self.folder, self.tell, write=False)
        self.failures += outcome.failures
        name = own_name(self.metric, self.effort)
        lines = heading("ID", "BPP", "MSY", "VMAF")
        rows = {(row["picture"], row["target"]): row for row in outcome.rows if row["codec"] == name}
        for path in self.plan.pictures:
            for rate in sorted(self.rates, reverse=True):
                found = rows.get((path.stem, float(rate)))
                if found is not None:
                    bpp, y, vmaf = (found[name] for name in ("bpp", "ms-ssim-y", "vmaf"))
                    lines.append(row(path.stem, f"{bpp:.3f}", f"{y:.4f}", f"{vmaf:.2f}"))
        paper = heading("ID", "BPP", "MSY", "VMAF")
        for picture, values in PAPER_I.items():
            paper += [row(picture, f"{bpp:.3f}", f"{y:.4f}", f"{vmaf:.2f}") for bpp, y, vmaf in values]
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

    def check_two(self, meta: Path, control: Path) -> tuple[Overfitter, Overfitter]:
        """The two checkpoints, once everything `table_two` is given suits it.

        Raises:
            UnsupportedError, TrainingError: it does not.
        """
        if self.crop % 64:
            raise UnsupportedError(f"the centres' side is {self.crop}: it must be a multiple of 64")
        both = Overfitter(meta), Overfitter(control)
        for path in self.pictures:
            _centre(self._picture(path), self.crop)
        return both

    def table_two(self, meta: Overfitter, control: Overfitter, qualities: Sequence[int] = (30, 50, 70)) -> str:
        """How much more a meta-trained model gains from overfitting than one fine-tuned without it.

        Args:
            meta, control: checkpoints of the stage meta; the second of the same length with `meta.order=0`.
            qualities: 0..100, averaged over.
        """
        mu = METRICS[self.metric]
        lines = [
            "## L2C, Table II",
            "",
            f"Mean loss drop of {len(self.pictures)} pictures' centres ({self.crop}x{self.crop}), qualities "
            f"{', '.join(map(str, qualities))}, mu {mu}, the best learning rate for each (rescaled to our latents; a "
            "checkpoint that learnt its rates is tried with them, too, at the number of iterations that they are for).",
            "",
            *heading("Num. iters", "LRS", "drop, meta (bpp)", "drop, control", "Δ mean loss drop, ours", "paper"),
        ]
        for iterations, (alphas, paper) in PAPER_II.items():
            drops = [
                statistics.mean(
                    self._drop(networks, path, quality, mu, iterations)
                    for path in self.pictures
                    for quality in qualities
                )
                for networks in (meta, control)
            ]
            change = f"{100 * (drops[0] / drops[1] - 1):+.2f} %" if drops[1] > 0 else "-"
            rates = f"{{{', '.join(map(str, alphas))}}}"
            lines.append(row(iterations, rates, f"{drops[0]:.5f}", f"{drops[1]:.5f}", change, f"+{paper:.2f} %"))
        return "\n".join(lines)

    def _drop(self, networks: Overfitter, path: Path, quality: int, mu: int, iterations: int) -> float:
        """Bits per pixel that a picture's centre gains, with the best of the paper's learning rates."""
        version = f"{networks.file_id}, mu {mu}, {iterations} iterations, {self.crop}x{self.crop}"
        key = path.stem, "tables-overfitting", float(quality), version
        if key not in self._known:
            self.tell(f"{path.stem} {quality} {iterations} iterations")
            crop, alphas = _centre(self._picture(path), self.crop), PAPER_II[iterations][0]
            self._keep(key, {"bpp": 0.0, "drop": networks.best_drop(crop, quality, mu, iterations, alphas)})
        return float(self._known[key]["drop"])

    # --- L2C Table III and bias sets --------------------------------------------------------------------------------

    def table_three(self) -> str:
        """Rate and MS-SSIM before and after overfitting latents at one quality, and what bias sets gain."""
        columns = ("BPP₁", "BPP₂", "MS-SSIM₁", "MS-SSIM₂")
        lines = heading("Target BPP", "pictures", *columns, f"paper: {columns[0]}", *columns[1:])
        for target, *paper in PAPER_III:
            pairs = self._pairs(self.pictures, target, "msssim", self.overfitting)
            cells = ["-"] * 4
            if pairs:
                rates = [f"{_mean(pairs, k, 'bpp'):.3f}" for k in range(2)]
                cells = rates + [f"{_mean(pairs, k, 'ms-ssim-rgb'):.4f}" for k in range(2)]
            cells += [f"{paper[0]:.3f}", f"{paper[1]:.3f}", f"{paper[2]:.4f}", f"{paper[3]:.4f}"]
            lines.append(row(f"{target:g} ± 15 %", len(pairs), *cells))
        sets = "this model has none"
        if self.codec.model.bias_sets is not None:
            pairs = [pair for rate in self.rates for pair in self._pairs(self.pictures, rate, "msssim", SETS)]
            if pairs:
                gain = statistics.mean(after["ms-ssim-rgb"] - before["ms-ssim-rgb"] for before, after in pairs)
                sets = f"{gain:+.4f} ours, for {_more_bytes(pairs):+.2f} % more bytes (files: {len(pairs)})"
            else:
                sets = "no picture reaches these rates"
        return "\n".join(
            [
                "## L2C, Table III",
                "",
                "**Ours**: means of the pictures that reach the target, each at one quality whose file without "
                f"adaptation meets it, before and after {self.overfitting.iterations} iterations; the paper's rows are "
                "one picture each. BPP of whole files.",
                "",
                *lines,
                "",
                f"Content-specific biases alone, mean MS-SSIM gain over pictures and rates: {sets}; "
                f"{PAPER_BIAS_GAIN:+.4f} paper.",
            ]
        )

    # --- OML Figures 4 and 5 ----------------------------------------------------------------------------------------

    def figure_four(self, steps: int = 20) -> str:
        """What adapted conditions gain at every rate, for PSNR and for MS-SSIM in dB; also `fig4.png`."""
        axes, write = axes_of(self.folder / "fig4.png", 6.0, 4.0)
        over_own = ("over own D, dB",) if self.own is not None else ()
        lines = heading("metric", "bpp", "pictures", "gain, dB", "gain, %", "more bytes, %", *over_own)
        for metric in _LABEL:
            rates, gains = [], []
            for target in self._targets():
                pairs = self._pairs(self.pictures, target, metric, Effort(steps=steps))
                if pairs:
                    gain, share = _gain(metric, pairs)
                    rates.append(_mean(pairs, 1, "bpp"))
                    gains.append(gain)
                    cells = [f"{gain:+.4f}", f"{share:+.3f}", f"{_more_bytes(pairs):+.2f}"]
                    if self.own is not None:
                        cells.append(f"{_gain(metric, [self._from_own(pair[1]) for pair in pairs])[0]:+.4f}")
                    lines.append(row(_LABEL[metric], f"{rates[-1]:.3f}", len(pairs), *cells))
            axes.plot(rates, gains, "o-", label=f"{_LABEL[metric]}, {steps} steps (ours)")
        _finish(axes, write, "bits per pixel", "gain, dB")
        return "\n".join(
            [
                "## OML, Figure 4",
                "",
                f"Conditions adapted with {steps} steps, latents as they were. MS-SSIM as -10 log10(1 - m). Where they "
                "do not pay for their bytes the file stays as it was. Paper (curves only, other base models): gains "
                "at every rate, more at low ones, more for PSNR than for MS-SSIM." + self._no_modulators(),
                "",
                *lines,
                "",
                "![gain against rate](fig4.png)",
            ]
        )

    def figure_five(self, rate: float = 0.25) -> str:
        """What more steps gain and cost; also `fig5.png`. At a rate, or at the lowest of a model's own qualities."""
        steps_of_model = self._steps_of_model()
        target = float(min(steps_of_model)) if steps_of_model else rate
        where = f"quality {target:g}" if steps_of_model else f"{rate:g} bpp"
        axes, write = axes_of(self.folder / "fig5.png", 6.0, 4.0)
        lines = heading("metric", "steps", "pictures", "time, % of encoding", "gain, dB", "gain, %", "more bytes, %")
        for metric in _LABEL:
            times, shares = [], []
            for steps in self.steps:
                pairs = self._pairs(self._some(self.examples), target, metric, Effort(steps=steps))
                if not pairs:
                    continue
                gain, share = _gain(metric, pairs)
                times.append(statistics.median(100 * (b["encode_seconds"] / a["encode_seconds"] - 1) for a, b in pairs))
                shares.append(share)
                cells = f"{times[-1]:+.0f}", f"{gain:+.4f}", f"{share:+.3f}", f"{_more_bytes(pairs):+.2f}"
                lines.append(row(_LABEL[metric], steps, len(pairs), *cells))
            axes.plot(times, shares, "o-", label=f"{_LABEL[metric]} (ours)")
        axes.set_xscale("symlog")
        _finish(axes, write, "more encoding time, %", "gain, %")
        return "\n".join(
            [
                "## OML, Figure 5",
                "",
                f"Conditions adapted at {where}; time over that of an encode at one quality without adaptation, "
                "which for our codec is one pass of E and of the integer P. Paper: 5 steps, about 1 % more time, PSNR "
                "+1.5 to +5 %; 99 steps, about 20 %, +2 to +8.8 %." + self._no_modulators(),
                "",
                *lines,
                "",
                "![gain against time](fig5.png)",
            ]
        )

    def _no_modulators(self) -> str:
        return "" if num_modulators(self.codec.transform) else " This model has no modulators."

    # --- measuring --------------------------------------------------------------------------------------------------

    def _some(self, count: int) -> list[Path]:
        """So many of the pictures, evenly spread."""
        chosen = np.linspace(0, len(self.pictures) - 1, min(count, len(self.pictures)))
        return [self.pictures[round(float(k))] for k in chosen]

    def _picture(self, path: Path) -> UInt8Array:
        if path not in self._pixels:
            self._pixels = {path: load_picture(path).rgb}
        return self._pixels[path]

    def _steps_of_model(self) -> Mapping[int, int]:
        """The qualities of a model that has networks at some alone; {} for another."""
        return self.codec.model.config.transform.quality_steps

    def _targets(self) -> list[float]:
        """The rates, or the qualities of a model that has networks at some alone."""
        return [float(quality) for quality in self._steps_of_model()] or sorted(self.rates)

    def _pairs(self, paths: Sequence[Path], target: float, metric: Metric, effort: Effort) -> list[tuple[Row, Row]]:
        """Files of one quality without adaptation and with it, of the pictures that come to the target."""
        pairs = []
        for path in paths:
            plain = self._row(path, target, metric, Effort(), target if self._steps_of_model() else None)
            if plain["target_reached"]:
                pairs.append((plain, self._row(path, target, metric, effort, plain["quality"])))
        return pairs

    def _from_own(self, adapted: Row) -> tuple[Row, Row]:
        """The same picture decoded by the model whose decoders are the encoders' own, and the row given.

        Raises:
            UnsupportedError: its latents are others.
        """
        assert self.own is not None
        path = next(path for path in self.pictures if path.stem == adapted["picture"])
        quality = adapted["quality"]
        key = path.stem, "tables-own", float(quality), own_version(self.own, Effort(), "psnr")
        if key not in self._known:
            self.tell(f"{path.stem} own decoder {quality:g}")
            pixels = self._picture(path)
            encoded, ours = (
                codec.encode_detailed(pixels, quality=quality, lossless="never") for codec in (self.own, self.codec)
            )
            if encoded.latents_sha256 != ours.latents_sha256:
                raise UnsupportedError(f"{self.own.model.name} makes other latents than {self.codec.model.name}")
            figures = measure(pixels, self.own.decode(encoded.data), ("psnr-rgb", "ms-ssim-rgb"))
            self._keep(key, {"bpp": encoded.bpp, **figures})
        return self._known[key], adapted

    def _row(self, path: Path, rate: float, metric: Metric, effort: Effort, quality: float | None) -> Row:
        """One file; without a quality that of the rate, which is a row without figures where there is none."""
        threads = f"{self.codec.device}, {torch.get_num_threads()} threads"
        version = f"{own_version(self.codec, effort, metric)}, {threads}"
        key = path.stem, f"tables-{metric}" + (f"-{effort}" if effort.adapts else ""), float(rate), version
        if key in self._known:
            return self._known[key]
        self.tell(f"{path.stem} {metric} {rate:g} {effort}")
        row: Row = {"bpp": 0.0, "target_reached": True}
        pixels = self._picture(path)
        if quality is None:
            try:
                searched = self.codec.encode_detailed(pixels, bpp=rate, metric=metric, lossless="never")
                quality, row["target_reached"] = searched.quality, searched.target_reached
            except RateError:
                row["target_reached"] = False
        if quality is not None:
            start = time.perf_counter()
            encoded = self.codec.encode_detailed(
                pixels, quality=quality, metric=metric, effort=effort, lossless="never"
            )
            row["encode_seconds"] = time.perf_counter() - start
            row |= {"bpp": encoded.bpp, "quality": quality, "adaptation": encoded.adaptation_as_dict()}
            row |= measure(pixels, self.codec.decode(encoded.data), ("psnr-rgb", "ms-ssim-rgb"))
        return self._keep(key, row)

    def _keep(self, key: _Key, values: Row) -> Row:
        """Write down what was measured, and under which key."""
        row = self._known[key] = dict(zip(("picture", "codec", "target", "version"), key)) | values
        self._record.add(row)
        return row


def _mean(pairs: list[tuple[Row, Row]], side: int, key: str) -> float:
    return statistics.mean(pair[side][key] for pair in pairs)


def _more_bytes(pairs: list[tuple[Row, Row]]) -> float:
    """Percent."""
    return statistics.mean(100.0 * (after["bpp"] / before["bpp"] - 1.0) for before, after in pairs)


def _gain(metric: str, pairs: list[tuple[Row, Row]]) -> tuple[float, float]:
    """Means in dB and in percent of the dB before."""
    name = _FIGURE[metric]
    values = [(in_db(name, before[name]), in_db(name, after[name])) for before, after in pairs]
    return statistics.mean(b - a for a, b in values), statistics.mean(100.0 * (b / a - 1.0) for a, b in values)


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
    """The parts asked for as one page, Markdown; also `tables.md` in the folder, which grows part by part.

    Raises:
        UnsupportedError: an unknown part, Table II without its checkpoints or these without it.
        TrainingError: a file that is no checkpoint. BackendError: matplotlib is not installed.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise UnsupportedError(f"parts are {list(parts)}: choose from {', '.join(PARTS)}")
    if not ("II" in parts) == (meta is not None) == (control is not None):
        raise UnsupportedError("Table II compares two checkpoints: give --parts II, --meta and --control together")
    work: dict[str, Callable[[], str]] = {
        "I": tables.table_one, "III": tables.table_three, "fig4": tables.figure_four, "fig5": tables.figure_five,
    }  # fmt: skip
    if meta is not None and control is not None:
        checkpoints = tables.check_two(meta, control)
        work["II"] = lambda: tables.table_two(*checkpoints)
    if {"fig4", "fig5"} & set(parts):
        axes_of(tables.folder / "fig4.png")  # whether matplotlib is there
    model = tables.codec.model
    text = (
        f"# Tables of the papers, on {len(tables.pictures)} pictures\n\nModel `{model.name}`, id "
        f"`{model.model_id.hex()}`; written {time.strftime('%Y-%m-%d')} by `l2c tables`.\n"
    )
    for part in PARTS:
        if part in parts:
            text += "\n" + work[part]() + "\n"
            write_atomically(tables.folder / "tables.md", text.encode(errors="replace"))
    return text
