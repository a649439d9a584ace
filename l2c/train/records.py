"""Records of one training stage in its folder: CSV files, TensorBoard events, a picture of the curves, JSON.

    log.csv          one row per report of the training loop: step and its mean figures
    validation.csv   one row per (step, mu, quality): seconds, bpp, psnr in dB, msssim, loss in bits per pixel
    journal.jsonl    one JSON row per validation, which travels with a run: step, gpixel, seconds, device, lr, figures
    curves.png       drawn from the two, so it covers the runs before a resume as well
    tensorboard/     the same numbers as scalars, where the `tensorboard` package is installed

The CSV files hold numbers only (no quoting), a blank where a row has no such column, and end every line with a
newline: whatever comes after the last newline was cut off by a kill or a full disk, and is dropped.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import l2c
from l2c.devices import cpu_name
from l2c.errors import L2CWarning
from l2c.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

JOURNAL = "journal.jsonl"
_LOG, _VALIDATION, _CURVES, _BOARD = "log.csv", "validation.csv", "curves.png", "tensorboard"


def log_line(row: Mapping[str, float | int], step_seconds: float, operations: float, left: float | None) -> str:
    """A row of log.csv for people.

    Args:
        step_seconds: of a step. operations: per second; <= 0: not counted. left: seconds to the end; None: none is set.
    """
    speed = f"{1e-12 * operations:.2f} TFLOP/s  conv peak {100 * row['peak_share']:.0f} %  " if operations > 0 else ""
    return (
        f"step {row['step']}  {row['seconds'] / 60:.1f} min  loss {row['loss']:.4f}  {_text(row['bpp'], 3)} bpp  "
        f"{_text(row['psnr'], 2)} dB  {step_seconds:.3f} s/step  {row['pictures_per_second']:.1f} pictures/s  "
        f"{row['mpixels_per_second']:.2f} Mpixel/s  {speed}waiting {100 * row['waiting']:.1f} %  "
        f"left {'no end set' if left is None else f'{left / 60:.1f} min'}"
    )


def _text(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


class Records:
    """The records of one stage, opened at the step that the run starts or resumes from.

    What an earlier run wrote after that step is removed, so that a run killed and resumed leaves one continuous
    curve. A record that cannot be written (full disk) is lost with one warning; training goes on.
    """

    def __init__(self, folder: Path, step: int, active: bool = True, plots: bool = True) -> None:
        """Open the records, making the folder where there is none.

        Args:
            folder: where the files of the module docstring go.
            step: rows with a greater step are removed, and rows that are cut off.
            active: False (the other ranks of a distributed run) reads and writes nothing.
            plots: whether curves.png and TensorBoard are written as well.
        Raises:
            OSError: the folder cannot be made.
        """
        self.folder, self.active, self.plots = folder, active, plots
        self._warned = False
        self._board: SummaryWriter | None = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in (_LOG, _VALIDATION):
            with self._going_on():
                _remove_after(folder / name, step)
        with self._going_on():
            rows = read_journal(folder / JOURNAL)
            if any(row["step"] > step for row in rows):
                _write_journal(folder / JOURNAL, [row for row in rows if row["step"] <= step])
        if plots:
            with self._going_on():
                self._board = self.open_board(folder / _BOARD, step + 1)

    @staticmethod
    def open_board(folder: Path, purge_step: int) -> SummaryWriter | None:
        """A TensorBoard writer that hides earlier events from `purge_step` on; None where there is no TensorBoard."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(folder), purge_step=purge_step)

    def log(self, row: Mapping[str, float | int]) -> None:
        """Append a row, which has a `step`, to log.csv and as `train/<key>` to TensorBoard."""
        self._append(_LOG, [row])
        self._scalars([(f"train/{key}", value, row["step"]) for key, value in row.items() if key != "step"])

    def validation(self, rows: Sequence[Mapping[str, float | int]]) -> None:
        """Append rows to validation.csv and as `validation/mu<mu>/q<quality>/<key>` to TensorBoard.

        Args:
            rows: each with step, seconds, mu, quality, bpp, psnr, msssim and loss.
        """
        self._append(_VALIDATION, rows)
        self._scalars(
            [
                (f"validation/mu{row['mu']:g}/q{row['quality']:g}/{key}", value, row["step"])
                for row in rows
                for key, value in row.items()
                if key not in ("step", "mu", "quality")
            ]
        )

    def journal(self, row: Mapping[str, Any]) -> None:
        """Append a row, which has a `step`, to journal.jsonl."""
        if not self.active:
            return
        path = self.folder / JOURNAL
        with self._going_on():
            _write_journal(path, [*read_journal(path), row])

    def plot(self) -> None:
        """Write curves.png from the CSV files; does nothing without rows or without matplotlib."""
        if not self.active or not self.plots:
            return
        with self._going_on():
            log, validation = _read_numbers(self.folder / _LOG), _read_numbers(self.folder / _VALIDATION)
            if not log and not validation:
                return
            try:
                figure = _draw(log, validation)
            except ImportError:
                return
            encoded = io.BytesIO()
            figure.savefig(encoded, format="png", dpi=90)  # a Figure outside pyplot renders PNG with Agg
            write_atomically(self.folder / _CURVES, encoded.getbuffer())

    def _append(self, name: str, rows: Sequence[Mapping[str, float | int]]) -> None:
        if not self.active or not rows:
            return
        path = self.folder / name
        added = [{key: str(value) for key, value in row.items()} for row in rows]
        with self._going_on():
            columns, whole = _read_header(path)
            if whole and all(row.keys() <= set(columns) for row in added):
                with path.open("a", encoding="utf-8", newline="") as file:
                    file.write(_lines(columns, added))
            else:  # no file yet, more columns, or a write that a full disk cut off
                columns, old, _ = _read(path)
                union = dict.fromkeys([*columns, *(key for row in added for key in row)])
                _write(path, list(union), [*old, *added])

    def _scalars(self, scalars: Sequence[tuple[str, float, float]]) -> None:
        if self._board is None:
            return
        board, self._board = self._board, None  # a writer that has failed once fails for ever: it is let go
        with self._going_on():
            for tag, value, step in scalars:
                board.add_scalar(tag, float(value), int(step))
            board.flush()  # its own clock flushes every two minutes, and a kill would lose those
            self._board = board

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Turns OSError into a warning, given once."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                message = f"records of this run are incomplete, training goes on: {error}"
                warnings.warn(message, L2CWarning, stacklevel=3)  # past contextlib


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Rows of a journal; none where there is no file. A damaged line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def _write_journal(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically. Raises OSError, and TypeError for what JSON cannot say."""
    write_atomically(path, (json.dumps(data, indent=2) + "\n").encode())


def machine() -> dict[str, str]:
    """What a run ran on: device (CUDA device, or the CPU's model), threads, versions of torch, python and l2c."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "l2c": l2c.__version__,
    }


def _number(text: str) -> float:
    """NaN where the text is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_header(path: Path) -> tuple[list[str], bool]:
    """Columns of a CSV file, and whether its last line is whole. ([], False) where there is no file."""
    if not path.exists() or path.stat().st_size == 0:
        return [], False
    with path.open("rb") as file:
        header = file.readline().decode(errors="replace").rstrip("\r\n")
        file.seek(-1, os.SEEK_END)
        return header.split(","), file.read() == b"\n"


def _read(path: Path) -> tuple[list[str], list[dict[str, str]], bool]:
    """Columns and rows of a CSV file without damaged lines, and whether there were none of those."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    *lines, cut_off = text.split("\n")
    if not lines:
        return [], [], not cut_off
    columns = lines[0].split(",")
    fields = [line.split(",") for line in lines[1:]]
    rows = [dict(zip(columns, row)) for row in fields if len(row) == len(columns)]
    rows = [row for row in rows if math.isfinite(_number(row.get("step", "")))]
    return columns, rows, not cut_off and len(rows) == len(fields)


def _read_numbers(path: Path) -> list[dict[str, float]]:
    return [{key: _number(value) for key, value in row.items()} for row in _read(path)[1]]


def _lines(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    return "".join(",".join(row.get(key, "") for key in columns) + "\n" for row in rows)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    write_atomically(path, (",".join(columns) + "\n" + _lines(columns, rows)).encode())


def _remove_after(path: Path, step: int) -> None:
    """Drop rows with a greater step and damaged lines; a file that has neither stays untouched."""
    columns, rows, whole = _read(path)
    kept = [row for row in rows if float(row["step"]) <= step]
    if not columns:
        path.unlink(missing_ok=True)  # not even the header was written to the end
    elif not whole or len(kept) < len(rows):
        _write(path, columns, kept)


def _draw(log: list[dict[str, float]], validation: list[dict[str, float]]) -> Figure:
    """Loss curves in the upper row, the latest rate-distortion curves below. Raises ImportError: no matplotlib."""
    from matplotlib.figure import Figure

    mus = sorted({row["mu"] for row in validation})
    width = max(2, 1 + len(mus))
    figure = Figure(figsize=(5.0 * width, 8.0), layout="constrained")
    axes = figure.subplots(2, width, squeeze=False)

    _line(axes[0, 0], [(row["step"], row.get("loss", math.nan)) for row in log], "", linewidth=0.8)
    axes[0, 0].set(title="training", xlabel="step", ylabel="loss", yscale="log")
    for ax, mu in zip(axes[0, 1:], mus):
        part = [row for row in validation if row["mu"] == mu]
        for quality in sorted({row["quality"] for row in part}):
            points = [(row["step"], row["loss"]) for row in part if row["quality"] == quality]
            _line(ax, points, f"quality {quality:g}", marker=".")
        ax.set(title=f"validation, mu {mu:g}", xlabel="step", ylabel="loss", xscale="log", yscale="log")
    if 0 in mus:
        _rate_distortion(axes[1, 0], validation, 0, "psnr", "PSNR [dB]")
    if mus:
        _rate_distortion(axes[1, 1], validation, mus[-1], "msssim", "MS-SSIM [dB]")
    for ax in axes.flat:
        if not ax.get_title():
            ax.set_axis_off()
        elif ax.lines:
            ax.grid(alpha=0.3, which="both")
        if len(ax.lines) > 1:
            ax.legend(fontsize="small")
    return figure


def _rate_distortion(ax: Axes, validation: list[dict[str, float]], mu: float, metric: str, label: str) -> None:
    part = [row for row in validation if row["mu"] == mu]
    step = max(row["step"] for row in part)
    latest = {row["quality"]: row for row in part if row["step"] == step}
    values = [(row["bpp"], _msssim_db(row[metric]) if metric == "msssim" else row[metric]) for row in latest.values()]
    _line(ax, sorted(values), "", marker="o")
    ax.set(title=f"mu {mu:g} at step {step:g}", xlabel="bpp", ylabel=label)


def _msssim_db(msssim: float) -> float:
    """-10 log10(1 - msssim); NaN for a perfect picture, which no axis has room for."""
    return -10.0 * math.log10(1.0 - msssim) if msssim < 1.0 else math.nan


def _line(ax: Axes, points: Sequence[tuple[float, float]], label: str, **style: Any) -> None:
    """Draw the points that a logarithmic axis can show: finite and positive."""
    shown = [(x, y) for x, y in points if 0.0 < x < math.inf and 0.0 < y < math.inf]
    if shown:
        ax.plot([x for x, _ in shown], [y for _, y in shown], label=label, **style)
