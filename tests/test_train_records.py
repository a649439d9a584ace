"""Records of a stage: one continuous curve over kills and resumes, and no full disk stops the training."""

from __future__ import annotations

import errno
import json
import math
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

import l2c
from l2c.errors import L2CWarning
from l2c.train.records import Records, machine, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def row(step: int, **more: float) -> dict[str, float | int]:
    return {"step": step, "seconds": 1.5 * step, "loss": 10.0 / step, **more}


def validation_rows(step: int) -> list[dict[str, float | int]]:
    return [
        {"step": step, "seconds": 2.0, "mu": mu, "quality": q, "bpp": q / 500, "psnr": 30 + q / 100 + step / 1000,
         "msssim": 1 - 10 ** (-1 - q / 1000), "loss": 5 / step + q / 1000}
        for mu in (0, 8) for q in (50, 450, 850)
    ]  # fmt: skip


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    header, *lines = path.read_text().splitlines()
    return header.split(","), [line.split(",") for line in lines]


def steps(path: Path) -> list[int]:
    columns, rows = table(path)
    return [int(row[columns.index("step")]) for row in rows]


@contextmanager
def files_end_after(path: Path, more: int) -> Iterator[None]:
    """No file can grow past the present size of `path` plus `more` bytes: a full disk as far as a writer can tell."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Records, "open_board", staticmethod(lambda folder, purge_step: None))


@pytest.mark.usefixtures("no_board")
class TestCsv:
    def test_rows_are_appended(self, tmp_path: Path) -> None:
        made = Records(tmp_path / "new" / "run", 0)
        made.log(row(10))
        node = (made.folder / "log.csv").stat().st_ino
        made.log(dict(reversed(row(20).items())))
        made.validation(validation_rows(20))
        made.validation(validation_rows(30))
        made.validation([])
        columns, rows = table(made.folder / "log.csv")
        assert columns == ["step", "seconds", "loss"]
        assert rows == [["10", "15.0", "1.0"], ["20", "30.0", "0.5"]]
        assert (made.folder / "log.csv").stat().st_ino == node  # appended, so that `tail -f` goes on
        columns, rows = table(made.folder / "validation.csv")
        assert columns == list(validation_rows(1)[0])
        assert [[float(v) for v in r] for r in rows] == [
            list(r.values()) for r in validation_rows(20) + validation_rows(30)
        ]

    def test_a_resumed_run_leaves_one_curve(self, tmp_path: Path) -> None:
        first = Records(tmp_path, 0)
        for step in (10, 20, 30):
            first.log(row(step))
            first.validation(validation_rows(step))
        resumed = Records(tmp_path, 20)
        assert steps(tmp_path / "log.csv") == [10, 20]
        assert steps(tmp_path / "validation.csv") == [10] * 6 + [20] * 6
        resumed.log(row(25))
        assert steps(tmp_path / "log.csv") == [10, 20, 25]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "validation.csv"]

    def test_nothing_to_remove_leaves_the_file_alone(self, tmp_path: Path) -> None:
        Records(tmp_path, 0).log(row(10))
        before = (tmp_path / "log.csv").stat()
        Records(tmp_path, 10)
        after = (tmp_path / "log.csv").stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    def test_every_cut_of_a_log_recovers(self, tmp_path: Path) -> None:
        log = tmp_path / "log.csv"
        first = Records(tmp_path, 0)
        for step in (10, 20, 30):
            first.log(row(step))
        content = log.read_bytes()
        header, *lines = content.splitlines(keepends=True)
        for size in range(len(content) + 1):
            whole = [n for n in range(4) if size >= len(header) + sum(map(len, lines[:n]))]
            kept = [10, 20, 30][: whole[-1]] if whole else []
            log.write_bytes(content[:size])
            resumed = Records(tmp_path, 30)  # a kill between the runs
            assert log.exists() == bool(whole)
            if whole:
                assert steps(log) == kept
            resumed.log(row(40))
            assert table(log)[0] == ["step", "seconds", "loss"]
            assert steps(log) == [*kept, 40]
            log.write_bytes(content[:size])
            resumed.log(row(50))  # a full disk during the run
            assert table(log)[0] == ["step", "seconds", "loss"]
            assert steps(log) == [*kept, 50]

    def test_a_damaged_line_in_the_middle_is_dropped(self, tmp_path: Path) -> None:
        (tmp_path / "log.csv").write_bytes(b"step,loss\r\n10,1.0\r\n20,020,2.0\r\n\r\nx,1\r\n30,3.0\r\n")
        Records(tmp_path, 99)
        assert table(tmp_path / "log.csv") == (["step", "loss"], [["10", "1.0"], ["30", "3.0"]])

    def test_files_of_other_line_ends_go_on(self, tmp_path: Path) -> None:
        (tmp_path / "log.csv").write_bytes(b"step,loss\r\n10,1.0\r\n")
        node = (tmp_path / "log.csv").stat().st_ino
        Records(tmp_path, 10).log({"step": 20, "loss": 0.5})
        assert (tmp_path / "log.csv").stat().st_ino == node
        assert table(tmp_path / "log.csv") == (["step", "loss"], [["10", "1.0"], ["20", "0.5"]])

    def test_columns_grow_to_the_union(self, tmp_path: Path) -> None:
        made = Records(tmp_path, 0)
        made.log(row(10))
        made.log(row(20, grad=0.25))
        made.log({"step": 30, "loss": 0.125})
        columns, rows = table(tmp_path / "log.csv")
        assert columns == ["step", "seconds", "loss", "grad"]
        assert rows == [["10", "15.0", "1.0", ""], ["20", "30.0", "0.5", "0.25"], ["30", "", "0.125", ""]]
        resumed = Records(tmp_path, 20)
        resumed.validation(validation_rows(20))
        resumed.validation([{**r, "lpips": 0.5} for r in validation_rows(30)])
        columns, rows = table(tmp_path / "validation.csv")
        assert columns == [*validation_rows(1)[0], "lpips"]
        assert [r[-1] for r in rows] == [""] * 6 + ["0.5"] * 6
        assert steps(tmp_path / "log.csv") == [10, 20]

    def test_other_ranks_touch_nothing(self, tmp_path: Path) -> None:
        Records(tmp_path, 0).log(row(10))
        before = (tmp_path / "log.csv").read_bytes()
        other = Records(tmp_path, 0, active=False)
        other.log(row(20))
        other.validation(validation_rows(20))
        other.plot()
        assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]
        assert (tmp_path / "log.csv").read_bytes() == before
        Records(tmp_path / "none", 0, active=False)
        assert not (tmp_path / "none").exists()

    def test_a_full_disk_warns_once_and_training_goes_on(self, tmp_path: Path) -> None:
        made = Records(tmp_path, 0)
        made.log(row(10))
        with pytest.warns(L2CWarning, match="training goes on") as caught, files_end_after(tmp_path / "log.csv", 8):
            made.log(row(20))  # cut off after eight characters
            assert (tmp_path / "log.csv").read_text().endswith("\n20,30.0,")
            made.log(row(30))
            made.validation(validation_rows(30))
            made.plot()
        assert len([w for w in caught if w.category is L2CWarning]) == 1  # matplotlib may miss its font cache, too
        assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]
        made.log(row(40))  # there is room again
        assert steps(tmp_path / "log.csv") == [10, 40]

    def test_resuming_on_a_full_disk(self, tmp_path: Path) -> None:
        first = Records(tmp_path, 0)
        for step in (10, 20, 30):
            first.log(row(step))
        with pytest.warns(L2CWarning, match="training goes on"), files_end_after(tmp_path / "log.csv", -30):
            Records(tmp_path, 20)
        assert steps(tmp_path / "log.csv") == [10, 20, 30]

    def test_a_folder_that_cannot_be_made_is_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OSError):
            Records(tmp_path / "file" / "run", 0)


@pytest.mark.usefixtures("no_board")
class TestPlot:
    @pytest.fixture
    def figures(self, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
        """The figures that were saved."""
        kind = pytest.importorskip("matplotlib.figure").Figure
        saved: list[Figure] = []
        savefig = kind.savefig

        def keep(figure: Figure, *args: object, **kwargs: object) -> None:
            saved.append(figure)
            savefig(figure, *args, **kwargs)

        monkeypatch.setattr(kind, "savefig", keep)
        return saved

    def test_curves(self, tmp_path: Path, figures: list[Figure]) -> None:
        made = Records(tmp_path, 0)
        for step in (10, 20):
            made.log(row(step))
            made.validation(validation_rows(step))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made.plot()
            made.plot()
        with Image.open(tmp_path / "curves.png") as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 300
        assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "log.csv", "validation.csv"]
        axes = {ax.get_title(): ax for ax in figures[0].axes if ax.get_title()}
        assert list(axes) == [
            "training", "validation, mu 0", "validation, mu 8", "mu 0 at step 20", "mu 8 at step 20"
        ]  # fmt: skip
        assert axes["training"].lines[0].get_xydata().tolist() == [[10, 1.0], [20, 0.5]]
        for mu in (0, 8):
            ax = axes[f"validation, mu {mu}"]
            assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
            assert [line.get_label() for line in ax.lines] == ["quality 50", "quality 450", "quality 850"]
            assert ax.lines[1].get_xydata().tolist() == [[10, 0.95], [20, 0.7]]
        psnr, msssim = axes["mu 0 at step 20"], axes["mu 8 at step 20"]
        assert psnr.lines[0].get_xydata().tolist() == [[0.1, 30.52], [0.9, 34.52], [1.7, 38.52]]
        assert msssim.lines[0].get_xdata().tolist() == [0.1, 0.9, 1.7]
        assert msssim.lines[0].get_ydata().tolist() == pytest.approx([10.5, 14.5, 18.5])
        assert [len(psnr.lines), len(msssim.lines)] == [1, 1]  # only the latest

    def test_numbers_that_no_axis_has_room_for(self, tmp_path: Path, figures: list[Figure]) -> None:
        made = Records(tmp_path, 0)
        for loss in (math.nan, math.inf, 0.0):
            made.log({"step": 10, "loss": loss})
        made.log({"step": 20, "loss": 3.0})
        made.log({"step": 30})
        odd = validation_rows(10)
        odd[3]["msssim"], odd[4]["msssim"] = 1.0, math.nan
        made.validation([{**r, "step": 0} for r in odd])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made.plot()
        axes = {ax.get_title(): ax for ax in figures[0].axes}
        assert axes["training"].lines[0].get_xydata().tolist() == [[20, 3.0]]
        assert axes["mu 8 at step 0"].lines[0].get_xdata().tolist() == [1.7]
        assert not axes["validation, mu 0"].lines  # step 0 has no place on a logarithmic axis

    @pytest.mark.parametrize("mus", [(), (0,), (4, 8)])
    def test_any_set_of_mus(self, mus: tuple[int, ...], tmp_path: Path, figures: list[Figure]) -> None:
        made = Records(tmp_path, 0)
        made.log(row(10))
        made.validation([{**r, "mu": mu} for mu in mus for r in validation_rows(10) if r["mu"] == 0])
        made.plot()
        labels = [(ax.get_title(), ax.get_ylabel()) for ax in figures[0].axes if ax.get_title()]
        expected = [("training", "loss"), *((f"validation, mu {mu}", "loss") for mu in mus)]
        expected += [("mu 0 at step 10", "PSNR [dB]")] if 0 in mus else []
        assert labels == expected + ([(f"mu {mus[-1]} at step 10", "MS-SSIM [dB]")] if mus else [])

    def test_nothing_to_draw(self, tmp_path: Path) -> None:
        Records(tmp_path, 0).plot()
        assert not list(tmp_path.iterdir())

    def test_without_matplotlib(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        made = Records(tmp_path, 0)
        made.log(row(10))
        made.plot()
        assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


class TestBoard:
    def test_scalars_of_a_resumed_run(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        first = Records(tmp_path, 0)
        first.log(row(10))
        first.log(row(20))
        first.log(row(30))
        first.validation(validation_rows(30))
        resumed = Records(tmp_path, 20)
        resumed.log(row(25))
        resumed.validation(validation_rows(25))
        # neither is closed: what was written is on disk, as after a kill
        events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
            (10, 1.0), (20, 0.5), (25, pytest.approx(0.4))
        ]  # fmt: skip
        assert [(e.step, e.value) for e in events.Scalars("validation/mu8/q850/bpp")] == [(25, pytest.approx(1.7))]
        tags = {f"validation/mu{mu}/q{q}/{key}" for mu in (0, 8) for q in (50, 450, 850)
                for key in ("seconds", "bpp", "psnr", "msssim", "loss")}  # fmt: skip
        assert set(events.Tags()["scalars"]) == tags | {"train/loss", "train/seconds"}

    def test_without_tensorboard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        made = Records(tmp_path, 0)
        made.log(row(10))
        made.validation(validation_rows(10))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "validation.csv"]

    def test_every_record_is_flushed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[object, ...]] = []

        class Writer:
            def add_scalar(self, *scalar: object) -> None:
                calls.append(scalar)

            def flush(self) -> None:
                calls.append(("flush",))

        monkeypatch.setattr(Records, "open_board", staticmethod(lambda folder, purge_step: Writer()))
        made = Records(tmp_path, 0)
        made.log({"step": 10, "loss": 2})
        made.log({"step": 20, "loss": 1})
        assert calls == [("train/loss", 2.0, 10), ("flush",), ("train/loss", 1.0, 20), ("flush",)]

    def test_a_failing_writer_is_let_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Writer:
            calls = 0

            def add_scalar(self, *_: object) -> None:
                Writer.calls += 1
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Records, "open_board", staticmethod(lambda folder, purge_step: Writer()))
        made = Records(tmp_path, 0)
        with pytest.warns(L2CWarning, match="No space left") as caught:
            made.log(row(10))
            made.log(row(20))
        assert (len(caught), Writer.calls) == (1, 1)
        assert steps(tmp_path / "log.csv") == [10, 20]

    def test_a_writer_that_cannot_open(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Records, "open_board", refuse)
        with pytest.warns(L2CWarning, match="No space left"):
            made = Records(tmp_path, 0)
        made.log(row(10))
        assert steps(tmp_path / "log.csv") == [10]


def test_write_json(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": [1, 2.5], "b": "ü"})
    assert json.loads(path.read_text()) == {"a": [1, 2.5], "b": "ü"}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2.5], "b": "ü"}  # the old file stays
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine()
    assert list(found) == ["device", "threads", "torch", "python", "l2c"]
    assert all(isinstance(value, str) and value for value in found.values())
    assert (found["torch"], found["l2c"]) == (torch.__version__, l2c.__version__)
    assert found["threads"] == str(torch.get_num_threads())
    assert sys.version.startswith(found["python"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    assert machine()["device"] == "some GPU"
