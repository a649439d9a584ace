"""The training loop, its checkpoints and stages: exact resumes, kills, NaN, full disks, two processes, the commands."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import l2c
from l2c import transforms
from l2c.cli import main
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.errors import BackendError, ConfigError, L2CWarning, ModelMismatchError, TrainingError
from l2c.metrics import mse, msssim
from l2c.models import load_model
from l2c.train.batches import Batch, make_batch, sample_conditions
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import DataConfig, PretrainConfig, StageConfig, TrainConfig, load_recipe, recipe_json
from l2c.train.data import Sampler
from l2c.train.engine import FIGURES
from l2c.train.interrupts import locked
from l2c.train.loop import Loop
from l2c.train.losses import Conditions, LossParts, Networks, quantised_latents
from l2c.train.parallel import Parallel
from l2c.train.pretrain import PretrainObjective
from l2c.train.stages import STAGES, newest, run_stage
from l2c.train.validation import validate
from l2c.transforms import PaperConfig

Fault = Callable[[int, LossParts], LossParts]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three pictures of 320x272."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = rng.integers(0, 255, (34, 40, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((320, 272), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(tiny_config: ModelConfig) -> ModelConfig:
    """The tiny model with a P of three steps, since it is the loop that is looked at."""
    return replace(tiny_config, probability=replace(tiny_config.probability, num_scales=1, channel_groups=(12,)))


def recipe_for(pictures: Path, *, workers: int = 2, save_minutes: float = 1000.0, **stage: Any) -> TrainConfig:
    """Small validation pictures, no plots, no TensorBoard, hardly any measuring of the machine."""
    settings = {"lr": 2e-3, "batch": 2, "steps": 6, "warmup": 2, **stage}
    data = DataConfig(train=(str(pictures),), val=(str(pictures),), crop=64, workers=workers)
    return TrainConfig(
        "model.json", data=data, pretrain=PretrainConfig(**settings), val_pictures=1, val_drawn=0, log_seconds=0.0,
        save_minutes=save_minutes, autocast="off", val_size=64, val_lmbdas=((0.0008 * 0.15) ** 0.5,), plots=False,
        peak_seconds=0.0, agree_steps=1,
    )  # fmt: skip


def loop_for(
    folder: Path, recipe: TrainConfig, model: ModelConfig, fault: Fault | None = None, start: Checkpoint | None = None
) -> Loop:
    """A pretraining loop. `fault` sees the number of the call, counted over roll-backs, and the figures."""
    calls = [0]

    class Faulty(PretrainObjective):
        def loss(self, x: Tensor, cond: Conditions, noise: Tensor) -> LossParts:
            calls[0] += 1
            parts = super().loss(x, cond, noise)
            return parts if fault is None else fault(calls[0], parts)

    return Loop(
        "pretrain", recipe, recipe.pretrain, model, lambda nets, features: Faulty(nets, recipe.loss, features), folder,
        start, Parallel("cpu"),
    )  # fmt: skip


def batch_for(loop: Loop, step: int) -> Batch:
    return make_batch(
        step, recipe=loop.recipe, stage=loop.stage, model=loop.model, sampler=loop.sampler, salt=loop.at.salt,
        parallel=loop.parallel,
    )  # fmt: skip


def nan_at(bad: Callable[[int], bool]) -> Fault:
    return lambda call, parts: replace(parts, total=parts.total * float("nan")) if bad(call) else parts


def flat(state: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries and lists as one dictionary."""
    if isinstance(state, dict | list):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, value in items for k, v in flat(value, f"{name}.{key}").items()}
    return {name: state}


def assert_same(first: Checkpoint, second: Checkpoint, *but: str) -> None:
    """Bit for bit."""
    states = [flat({k: v for k, v in vars(c).items() if k not in but}) for c in (first, second)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        same = torch.equal(value, states[1][key]) if isinstance(value, Tensor) else value == states[1][key]
        assert same, key


def table(path: Path) -> list[dict[str, float]]:
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split(","), map(float, line.split(",")))) for line in lines]


def column(path: Path, name: str) -> list[float]:
    return [row[name] for row in table(path)]


@contextlib.contextmanager
def files_end_after(size: int) -> Iterator[None]:
    """No file can grow past `size` bytes: a full disk as far as the writer of a large file can tell."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class TestBatches:
    @pytest.fixture
    def make(self, pictures: Path, model: ModelConfig) -> Callable[..., Batch]:
        def call(step: int, *, salt: int = 0, seed: int = 0, rank: int = 0, world: int = 1) -> Batch:
            recipe = replace(recipe_for(pictures, batch=6), seed=seed)
            sampler = Sampler(recipe.data, recipe.data.train, 64, seed, rank, world)
            parallel = Parallel("cpu")
            parallel.rank, parallel.world = rank, world
            return make_batch(
                step, recipe=recipe, stage=recipe.pretrain, model=model, sampler=sampler, salt=salt, parallel=parallel
            )

        return call

    def same(self, first: Batch, second: Batch) -> bool:
        return all(torch.equal(a, b) for a, b in zip(self.tensors(first), self.tensors(second)))

    def tensors(self, batch: Batch) -> list[Tensor]:
        return [batch.x, batch.noise, batch.cond.quality, batch.cond.mu, batch.cond.b]

    def test_pure(self, make: Callable[..., Batch]) -> None:
        first = make(7)
        assert first.x.shape == (6, 3, 64, 64) and first.x.dtype == torch.uint8
        assert first.noise.shape == (6, 12, 8, 8) and first.noise.abs().max() <= 0.5 and first.noise.std() > 0.25
        assert self.same(first, make(7))
        for other in (make(8), make(7, salt=1), make(7, seed=1)):
            assert not any(torch.equal(a, b) for a, b in zip(self.tensors(first)[:2], self.tensors(other)[:2]))
        assert len(first.noise.flatten(1).unique(dim=0)) == 6  # pictures of one batch differ, too

    @pytest.mark.parametrize("world", [2, 3])
    def test_processes_share_the_batch_of_one(self, make: Callable[..., Batch], world: int) -> None:
        shares = [self.tensors(make(3, rank=rank, world=world)) for rank in range(world)]
        for whole, parts in zip(self.tensors(make(3)), zip(*shares)):
            assert torch.equal(whole, torch.stack(parts, dim=1).flatten(0, 1))

    def test_conditions(self) -> None:
        stage = StageConfig(quality_min=100, quality_max=300, random_bits=0.3, bits_min=4)
        rng = np.random.default_rng(0)
        drawn = np.array([sample_conditions(stage, 8, rng) for _ in range(4000)])
        quality, mu, b = drawn.T
        assert quality.min() == 100 and quality.max() == 300 and abs(quality.mean() - 200) < 5
        # The three metrics have their shares, and 1/8 goes over all nine values.
        shares = np.full(9, 0.125 / 9)
        shares[[0, 4, 8]] += (0.25, 0.375, 0.25)
        assert np.bincount(mu, minlength=9) / 4000 == pytest.approx(shares, abs=0.03)
        assert np.bincount(b, minlength=9)[4:] / 4000 == pytest.approx([0.06, 0.06, 0.06, 0.06, 0.76], abs=0.03)
        fixed = replace(stage, mu=5, random_bits=1.0)
        drawn = np.array([sample_conditions(fixed, 2, rng) for _ in range(50)])
        assert (drawn[:, 1:] == (5, 2)).all()  # a model of two bits has no others
        some = np.array([sample_conditions(stage, 8, rng, (143, 286)) for _ in range(400)])
        assert set(some[:, 0]) == {143, 286} and abs((some[:, 0] == 143).mean() - 0.5) < 0.1


class TestLoop:
    def test_loss_falls(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        training = loop_for(tmp_path, recipe_for(pictures, lr=5e-3, steps=None), model)
        batch = batch_for(training, 0)
        losses = []
        for _ in range(25):
            training.train_step(batch)
            losses.append(float(training.engine.sums[0]))
        each = np.diff([0.0, *losses])
        assert each[-5:].mean() < 0.8 * each[:5].mean()
        assert float(training.engine.sums[-2]) == 0  # none skipped

    def test_share_of_the_peak(
        self, pictures: Path, model: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shares, said = [], []
        for seconds in (1e-3, 0.0):
            recipe = replace(recipe_for(pictures, steps=2, workers=0), peak_seconds=seconds)
            loop_for(tmp_path / str(seconds), recipe, model).run()
            said.append(capsys.readouterr().err)
            shares.append(column(tmp_path / str(seconds) / "log.csv", "peak_share"))
        assert min(shares[0]) >= 0.0 and "TFLOP/s  conv peak" in said[0]
        assert set(shares[1]) == {0.0} and "conv peak" not in said[1] and "Mpixel/s" in said[1]

    def test_interrupted_run_equals_straight_run(
        self, pictures: Path, model: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Bit for bit: networks, their average, the optimiser; several workers or none."""
        recipe = recipe_for(pictures, decay=0.5, workers=3)
        straight = loop_for(tmp_path / "straight", recipe, model)
        straight.run()

        def interrupt(call: int, parts: LossParts) -> LossParts:
            if call == 3:
                signal.raise_signal(signal.SIGTERM)
            return parts

        broken = loop_for(tmp_path / "broken", recipe, model, interrupt)
        broken.run()
        assert broken.at.step == 3 and "pretrain was interrupted at step 3" in capsys.readouterr().err
        assert Checkpoint.load(broken.path).step == 3
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        resumed = loop_for(tmp_path / "broken", recipe_for(pictures, decay=0.5, workers=0), model)
        assert resumed.at.step == 3
        resumed.run()
        assert "resumed at step 3" in capsys.readouterr().err
        ends = [Checkpoint.load(part.path) for part in (straight, resumed)]
        assert ends[0].step == 6 and ends[0].optimizer["adam"][0]["step"] == 6
        assert_same(*ends, "seconds", "entry")
        rows = [table(part.folder / "log.csv") for part in (straight, resumed)]
        figures = ("step", "lr", *FIGURES, "grad", "skipped")
        curves = [[[row[key] for key in figures] for row in part] for part in rows]
        np.testing.assert_array_equal(*curves)  # a step without mu > 0 has no dissimilarity: NaN
        assert [row["step"] for row in rows[0]] == [1, 2, 3, 4, 5, 6]
        # And a run that is at its end stays as it is.
        before = resumed.path.stat().st_mtime_ns
        loop_for(tmp_path / "broken", recipe, model).run()
        assert "pretrain is complete at step 6: raise" in capsys.readouterr().err
        assert resumed.path.stat().st_mtime_ns == before

    def test_minutes_count_over_resumes(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        training = loop_for(tmp_path, recipe_for(pictures, steps=None, minutes=0.4 / 60), model)
        training.run()
        assert 0.4 <= Checkpoint.load(training.path).seconds < 5 and training.schedule.progress(training.at) == 1.0
        again = loop_for(tmp_path, recipe_for(pictures, steps=None, minutes=0.4 / 60), model)
        assert again.schedule.progress(again.at) == 1.0
        longer = loop_for(tmp_path, recipe_for(pictures, steps=None, minutes=60), model)
        assert longer.schedule.progress(longer.at) == pytest.approx(training.at.seconds / 3600, rel=1e-6)
        assert longer.at.step == training.at.step

    def test_learning_rate(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        """Rises over 4 steps, stays, falls to zero over the last half; half of it all after a roll-back."""
        training = loop_for(tmp_path, recipe_for(pictures, lr=0.01, steps=20, warmup=4, decay=0.5), model)
        rates = []
        for training.at.step in range(21):
            rates.append(training.schedule.learning_rate(training.at))
        expected = [0.0025, 0.005, 0.0075, *[0.01] * 8, *(0.001 * k for k in range(9, -1, -1))]
        assert rates == pytest.approx(expected)
        training.at.step, training.at.lr_scale = 5, 0.5
        assert training.schedule.learning_rate(training.at) == pytest.approx(0.005)

    def test_running_average(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        """a <- d a + (1 - d) p with d = min(ema, n / (9 + n)) at step n."""
        training = loop_for(tmp_path, recipe_for(pictures, ema=0.15), model)
        expected = {k: v.clone() for k, v in training.engine.average.state_dict().items()}
        for n in (1, 2):
            training.train_step(batch_for(training, n - 1))
            d = min(0.15, n / (9 + n))
            for key, fresh in training.engine.nets.state_dict().items():
                expected[key] = d * expected[key] + (1 - d) * fresh
        for key, value in training.engine.average.state_dict().items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)

    def test_log_row(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        training = loop_for(tmp_path, recipe_for(pictures, steps=1), model)
        batch = batch_for(training, 0)
        with torch.no_grad():
            parts = training.engine.objective(
                batch.x.float() / 255, batch.cond.quality, batch.cond.mu, batch.cond.b, batch.noise, False
            )
        training.run()
        (row,) = table(tmp_path / "log.csv")
        expected = {
            "loss": parts.total, "bpp": parts.bpp, "mse": parts.mse, "mask": parts.mask,
            "psnr": 10 * (255**2 / parts.mse).log10(), "dissimilarity": parts.dissimilarity,
        }  # fmt: skip
        for key, value in expected.items():
            assert row[key] == pytest.approx(float(value.nanmean().nan_to_num()), rel=1e-3, abs=1e-5), key
        facts = json.loads((tmp_path / "run.json").read_text())
        assert facts["stage"] == "pretrain" and facts["processes"] == 1
        assert json.loads(facts["recipe"]) == json.loads(recipe_json(training.recipe))

    def test_validation(self, pictures: Path, tiny_config: ModelConfig) -> None:
        """One row by hand: rounded latents, the float P's rate, rounded pictures."""
        torch.manual_seed(1)
        nets = Networks(tiny_config)
        x8 = torch.from_numpy(np.asarray(Image.open(pictures / "0.png"))[:60, :70].copy()).permute(2, 0, 1)[None]
        rows = validate(nets, [x8, x8.flip(3)], torch.device("cpu"), [(0.0008 * 0.15) ** 0.5])
        row = next(row for row in rows if row["mu"] == 8)
        assert [row["mu"] for row in rows] == [0, 4, 8] and row["quality"] == 500
        x = torch.cat((x8, x8.flip(3))).float() / 255
        cond = Conditions(torch.full((2,), 500), torch.full((2,), 8), torch.full((2,), 8))
        padded = torch.nn.functional.pad(x, (0, 2, 0, 4), mode="replicate")
        z = quantised_latents(nets, padded, cond)
        with torch.no_grad():
            x_hat = nets.transform.decoder(z, cond.vector(tiny_config))[:, :, :60, :70].clamp(0, 1)
            x_hat = (255 * x_hat).round() / 255
            bpp = float(nets.probability.num_bits(z, z, cond.header()).mean() / (60 * 70))
        similarity = float(msssim(x, x_hat).mean())
        assert row["bpp"] == pytest.approx(bpp, rel=1e-5) and row["msssim"] == pytest.approx(similarity, rel=1e-5)
        assert row["psnr"] == pytest.approx(float((-10 * mse(x, x_hat).log10()).mean()), rel=1e-5)
        lmbda = (tiny_config.lmbda_min * tiny_config.lmbda_max) ** 0.5
        assert row["loss"] == pytest.approx(bpp + lmbda * 1280 * (1 - similarity), rel=1e-4)

    def test_what_cannot_be_trained(
        self, pictures: Path, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = recipe_for(pictures, batch=3)
        monkeypatch.setattr(Parallel, "__init__", lambda self, device: vars(self).update(rank=0, world=2))
        with pytest.raises(ConfigError, match="a batch of 3 cannot be shared by 2 processes"):
            loop_for(tmp_path, recipe, model)
        monkeypatch.undo()
        coarse = replace(model, transform=replace(model.transform, s=32))
        with pytest.raises(ConfigError, match="must be a multiple of s = 32"):
            loop_for(tmp_path, replace(recipe, data=replace(recipe.data, crop=48)), coarse)
        assert not (tmp_path / "checkpoint.pt").exists()
        Checkpoint(model, {}, {}, "meta").save(tmp_path / "checkpoint.pt")
        with pytest.raises(TrainingError, match="belongs to the stage 'meta', not to 'pretrain'"):
            loop_for(tmp_path, recipe, model)

    @pytest.mark.parametrize("device, message", [("tpu", "on cpu or cuda"), ("cuda", "finds no CUDA device")])
    def test_devices(self, device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(BackendError, match=message):
            Parallel(device)


class TestNotFinite:
    @pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
    def test_one_step_changes_nothing(self, kind: str, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        def fault(call: int, parts: LossParts) -> LossParts:
            if call != 3:
                return parts
            if kind == "gradient":  # a finite loss: sqrt has no slope at 0
                return replace(parts, total=parts.total + (0.0 * parts.total).sqrt())
            return replace(parts, total=parts.total * float(kind))

        training = loop_for(tmp_path, recipe_for(pictures), model, fault)
        for step in range(2):
            training.train_step(batch_for(training, step))
        before = copy.deepcopy(
            flat([training.engine.nets.state_dict(), training.engine.optimizer.state_dict()["adam"]])
        )
        training.train_step(batch_for(training, 2))
        after = flat([training.engine.nets.state_dict(), training.engine.optimizer.state_dict()["adam"]])
        assert [key for key in before if not torch.equal(before[key], after[key])] == []
        assert training.at.step == 3 and training.engine.finite()
        assert all(bool(p.isfinite().all()) for p in training.engine.average.parameters())
        training.train_step(batch_for(training, 3))
        assert not any(
            torch.equal(before[k], v) for k, v in flat(training.engine.optimizer.state_dict()["adam"], ".1").items()
        )

    def test_figures_leave_bad_steps_out(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        training = loop_for(tmp_path, recipe_for(pictures), model, nan_at(lambda call: call in (2, 5)))
        losses = []
        for step in range(4):
            before = float(training.engine.sums[0])
            training.train_step(batch_for(training, step))
            losses.append(float(training.engine.sums[0]) - before)
        training.log(1.0, 0.0, 0.0, 1.0, 0, 1.0)
        training.train_step(batch_for(training, 4))
        training.log(1.0, 0.0, 0.0, 1.0, 0, 1.0)
        first, second = table(tmp_path / "log.csv")
        assert first["skipped"] == 0.25 and second["skipped"] == 1.0
        assert first["loss"] == pytest.approx((losses[0] + losses[2] + losses[3]) / 6, rel=1e-4)  # 2 pictures a step
        assert np.isnan(second["loss"])

    def test_several_in_a_row_roll_back(
        self, pictures: Path, model: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Back to the last checkpoint; then other pictures, half the rate, and on to the end."""
        seen: dict[int, float] = {}

        def fault(call: int, parts: LossParts) -> LossParts:
            seen[call] = parts.mse.sum().item()
            return nan_at(lambda call: call in (3, 4, 5))(call, parts)

        training = loop_for(tmp_path, recipe_for(pictures, steps=5, warmup=0), model, fault)
        start = copy.deepcopy(training.engine.nets.state_dict())
        training.run()
        assert "3 steps up to 5 were not finite: back to step 0" in capsys.readouterr().err
        end = Checkpoint.load(tmp_path / "checkpoint.pt")
        assert (end.step, end.salt, end.lr_scale) == (5, 1, 0.5) and len(seen) == 10
        assert seen[6] != pytest.approx(seen[1], rel=1e-3)  # the same networks at other pictures
        assert not any(torch.equal(value, end.nets[key]) for key, value in start.items() if "weight" in key)
        rows = table(tmp_path / "log.csv")
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
        assert all(row["lr"] == pytest.approx(1e-3) and row["skipped"] == 0 for row in rows)
        # It goes on like that after a resume.
        longer = loop_for(tmp_path, recipe_for(pictures, steps=9, warmup=0), model)
        assert (longer.at.salt, longer.at.lr_scale) == (1, 0.5)

    def test_rolled_back_networks_are_those_of_the_checkpoint(
        self, pictures: Path, model: ModelConfig, tmp_path: Path
    ) -> None:
        training = loop_for(tmp_path, recipe_for(pictures), model)
        for step in range(2):
            training.train_step(batch_for(training, step))
        training.checkpoint().save(training.path)
        training.is_new = False  # as after the first save of `run`
        saved = Checkpoint.load(training.path)
        for step in range(2, 4):
            training.train_step(batch_for(training, step))
        training.roll_back()
        assert_same(training.checkpoint(), saved, "salt", "lr_scale")

    @pytest.mark.parametrize("save_minutes", [0.0, 1000.0])
    def test_for_ever(self, pictures: Path, model: ModelConfig, tmp_path: Path, save_minutes: float) -> None:
        """However often checkpoints are written: a roll-back must lead past the place where it was needed."""
        calls = []

        def fault(call: int, parts: LossParts) -> LossParts:
            calls.append(call)
            assert call < 100
            return nan_at(lambda call: call > 3)(call, parts)

        recipe = recipe_for(pictures, steps=10_000, save_minutes=save_minutes, workers=0)
        training = loop_for(tmp_path, recipe, model, fault)
        with pytest.raises(TrainingError, match=r"after 3 roll-backs; the last good checkpoint is .*checkpoint\.pt"):
            training.run()
        left = Checkpoint.load(training.path)
        assert left.step == 0 if save_minutes else left.step >= 3
        assert all(bool(v.isfinite().all()) for v in left.nets.values())
        assert len(calls) == 3 + 4 * 3 if save_minutes else len(calls) >= 3 + 4

    def test_roll_backs_far_apart_do_not_add_up(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        """Four times three bad steps, with good ones and checkpoints in between."""
        recipe = recipe_for(pictures, batch=1, steps=20, save_minutes=0.0, workers=0)
        training = loop_for(tmp_path, recipe, model, nan_at(lambda call: call % 6 > 2))
        training.run()
        assert training.at.step == 20 and training.at.salt == 4


class TestFullDisk:
    def test_periodic_save(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        """A warning, the last good file stays, training goes on and saves again when there is room."""
        full = contextlib.ExitStack()
        found = []

        def fault(call: int, parts: LossParts) -> LossParts:
            if call == 3:
                full.enter_context(files_end_after(20_000))
            if call == 5:
                found.append(Checkpoint.load(tmp_path / "checkpoint.pt").step)
                found.append(sorted(path.name for path in tmp_path.iterdir()))
                full.close()
            return parts

        training = loop_for(tmp_path, recipe_for(pictures, save_minutes=0.0), model, fault)
        with full, pytest.warns(L2CWarning, match=r"cannot write the checkpoint .*is intact; training goes on"):
            training.run()
        assert found == [2, ["checkpoint.pt", "journal.jsonl", "lock", "log.csv", "run.json", "validation.csv"]]
        assert Checkpoint.load(training.path).step == 6
        assert column(tmp_path / "log.csv", "step") == [1, 2, 3, 4, 5, 6]

    def test_last_save(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        full = contextlib.ExitStack()

        def fault(call: int, parts: LossParts) -> LossParts:
            if call == 6:
                full.enter_context(files_end_after(20_000))
            return parts

        training = loop_for(tmp_path, recipe_for(pictures), model, fault)
        with full, pytest.raises(TrainingError, match=r"cannot write the checkpoint .*is intact"):
            training.run()
        assert Checkpoint.load(training.path).step == 0
        assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []

    def test_first_save(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        """A full disk shows before hours of training, and says nothing of a file that is not there."""
        training = loop_for(tmp_path, recipe_for(pictures), model)
        with files_end_after(20_000), pytest.raises(TrainingError) as raised:
            training.run()
        assert "intact" not in str(raised.value)
        assert training.at.step == 0 and not training.path.exists()

    def test_failed_sync(
        self, pictures: Path, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        training = loop_for(tmp_path, recipe_for(pictures), model)
        training.checkpoint().save(training.path)
        before = training.path.read_bytes()
        training.at.step = 5

        def fail(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(TrainingError, match="No space left on device"):
            training.checkpoint().save(training.path)
        assert training.path.read_bytes() == before and len(list(tmp_path.glob("checkpoint*"))) == 1


class TestProcesses:
    def test_killed_run_equals_straight_run(self, pictures: Path, model: ModelConfig, tmp_path: Path) -> None:
        """kill -9 of the real command after some checkpoints, then a resume to the end."""
        recipe = write_recipe(tmp_path, model, recipe_for(pictures, steps=8, decay=0.5, save_minutes=0.0))
        threads = str(torch.get_num_threads())
        command = ["train", "pretrain", str(recipe), "--device", "cpu", "--threads", threads, "--out"]
        killed = tmp_path / "killed" / "pretrain"
        process = subprocess.Popen(
            [sys.executable, "-m", "l2c", *command, str(killed.parent)], stderr=subprocess.PIPE, text=True
        )
        try:
            end = time.monotonic() + 60
            while not (killed / "validation.csv").exists() or column(killed / "validation.csv", "step")[-1] < 1:
                assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
                time.sleep(0.02)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        at = Checkpoint.load(killed / "checkpoint.pt").step
        assert 1 <= at < 8
        (killed / "checkpoint.pt.1.tmp").write_bytes(b"what a kill during a save leaves")
        for folder in (killed.parent, tmp_path / "straight"):
            assert main([*command, str(folder)]) == 0
        straight = tmp_path / "straight" / "pretrain"
        ends = [Checkpoint.load(folder / "checkpoint.pt") for folder in (killed, straight)]
        assert_same(*ends, "seconds", "entry")
        logs = [table(folder / "log.csv") for folder in (killed, straight)]
        assert [row["step"] for row in logs[0]] == list(range(1, 9))
        assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]

    def test_two_processes_equal_one(
        self, pictures: Path, model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Same batch, same loss curve, on gloo. This process is rank 0, which alone writes."""
        recipe = write_recipe(tmp_path, model, recipe_for(pictures, batch=4, steps=8))
        run_stage("pretrain", *load_recipe(recipe), tmp_path / "one", None, "cpu")
        # Two go on from step 3 of one; rank 1 has a disk of its own and no checkpoint there.
        run_stage("pretrain", *load_recipe(recipe, ["pretrain.steps=3"]), tmp_path / "two", None, "cpu")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        for key, value in {**shared, "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(key, value)
        join = functools.partial(torch.distributed.init_process_group, timeout=timedelta(seconds=90))
        monkeypatch.setattr(torch.distributed, "init_process_group", join)
        other = subprocess.Popen(
            [sys.executable, "-c", _RANK_1, str(recipe), str(tmp_path / "elsewhere")],
            env={**os.environ, "RANK": "1", "LOCAL_RANK": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            run_stage("pretrain", *load_recipe(recipe), tmp_path / "two", None, "cpu")
            said = other.communicate(timeout=90)[1]
        finally:
            other.kill()
        assert other.returncode == 0 and "step" not in said, said
        assert not torch.distributed.is_initialized()
        curves = [table(tmp_path / name / "pretrain" / "log.csv") for name in ("one", "two")]
        assert [row["step"] for row in curves[1]] == list(range(1, 9))
        for key in ("loss", "bpp", "psnr", "grad"):
            one, two = ([row[key] for row in curve] for curve in curves)
            assert two == pytest.approx(one, rel=3e-4), key
        saved = [Checkpoint.load(tmp_path / name / "pretrain" / "checkpoint.pt") for name in ("one", "two")]
        for key, value in saved[0].average.items():
            torch.testing.assert_close(saved[1].average[key], value, rtol=1e-3, atol=1e-3)
        facts = json.loads((tmp_path / "two" / "pretrain" / "run.json").read_text())
        assert facts["processes"] == 2 and saved[1].entry["processes"] == "2"


# It leaves without the interpreter's tear-down, in which threads of PyTorch's gloo aborted once on a busy machine.
_RANK_1 = """
import os, sys
from pathlib import Path
from l2c.train.config import load_recipe
from l2c.train.stages import run_stage
recipe, model = load_recipe(sys.argv[1])
run_stage("pretrain", recipe, model, Path(sys.argv[2]), None, "cpu")
sys.stdout.flush(), sys.stderr.flush()
os._exit(0)
"""


def write_recipe(folder: Path, model: ModelConfig, recipe: TrainConfig) -> Path:
    (folder / recipe.model).write_text(model.to_json())
    path = folder / "recipe.json"
    path.write_text(recipe_json(recipe))
    return path


class TestCheckpoint:
    @pytest.fixture
    def checkpoint(self, tiny_config: ModelConfig) -> Checkpoint:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            nets, average = Networks(tiny_config).state_dict(), Networks(tiny_config).state_dict()
        return Checkpoint(
            tiny_config, nets, average, "meta", 7, 12.5, {"state": {0: {"step": torch.tensor(7.0)}}},
            {"0": torch.randn(3)}, 2, 0.25, {"stage": "meta"}, [{"stage": "pretrain"}],
            {"bias_sets.values": torch.ones(2)},
        )  # fmt: skip

    def test_round_trip(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        checkpoint.save(tmp_path / "c.pt")
        assert_same(Checkpoint.load(tmp_path / "c.pt"), checkpoint)
        assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
        assert checkpoint.past() == [{"stage": "pretrain"}, {"stage": "meta"}]
        nets, average = checkpoint.networks(checkpoint.config)
        assert all(torch.equal(v, checkpoint.nets[k]) for k, v in nets.state_dict().items())
        assert all(torch.equal(v, checkpoint.average[k]) for k, v in average.state_dict().items())

    @pytest.mark.parametrize(
        "part, change, message",
        [
            ("transform", {"c": 8}, "transform.c is 12 there and 8 in the configuration"),
            ("transform", {}, "transform.family is block there and paper"),
            ("probability", {"width": 8}, "probability.width is 16 there and 8"),
            ("probability", {"num_mixtures": 2}, "probability.num_mixtures is 3 there and 2"),
            (None, {"bits": 8}, "bits is 6 there and 8"),
        ],
    )
    def test_another_architecture(
        self, checkpoint: Checkpoint, part: str | None, change: dict[str, Any], message: str
    ) -> None:
        config = checkpoint.config
        if "c" in change:
            config = replace(config, transform=replace(config.transform, c=8),
                             probability=replace(config.probability, channel_groups=(8,)))  # fmt: skip
        elif part == "transform":
            config = replace(config, transform=PaperConfig(4, 12, 16))
        elif part is not None:
            config = replace(config, **{part: replace(getattr(config, part), **change)})
        else:
            checkpoint.config = replace(config, bits=6)
            config = replace(config, **change)
        with pytest.raises(TrainingError, match=f"of another architecture: {message}"):
            checkpoint.networks(config)

    def test_local_gains_grow(self, tiny_config: ModelConfig, checkpoint: Checkpoint) -> None:
        """A model without local gains goes on with them as the same codec; the other way round is refused."""
        grown = replace(tiny_config, transform=replace(tiny_config.transform, local_gain=True))
        x, cond = torch.rand(1, 3, 64, 64), transforms.condition(torch.tensor([0.01]), torch.tensor([1.0]))
        for before, after in zip(checkpoint.networks(tiny_config), checkpoint.networks(grown)):
            with torch.no_grad():
                y = before.transform.encoder(x, cond)[0]
                assert torch.equal(after.transform.encoder(x, cond)[0], y)
                assert torch.equal(after.transform.decoder(y, cond), before.transform.decoder(y, cond))
        state = Networks(grown).state_dict()
        with pytest.raises(TrainingError, match=r"transform\.local_gain is True there and False"):
            Checkpoint(grown, state, state).networks(tiny_config)

    def test_wider_p_says_the_same(self, tiny_config: ModelConfig, checkpoint: Checkpoint) -> None:
        wider = replace(tiny_config, probability=replace(tiny_config.probability, width=40))
        z, header = torch.randint(-9, 10, (2, 12, 16, 24)).float(), torch.tensor([[300, 4, 8], [900, 0, 6]])
        pairs = zip(checkpoint.networks(tiny_config), checkpoint.networks(wider))
        for before, after in pairs:
            bits = before.probability.num_bits(z, z, header)
            assert after.probability.config.width == 40
            torch.testing.assert_close(after.probability.num_bits(z, z, header), bits, rtol=1e-5, atol=0.0)
            after.probability.num_bits(z, z, header).sum().backward()
            for name, parameter in after.probability.named_parameters():
                if name.endswith("w4.weight"):  # what new channels say is learnt from the first step on
                    assert parameter.grad is not None and bool((parameter.grad[:, 16:] != 0.0).any(dim=0).all()), name

    def test_fewer_channels_of_the_paper_keep_the_first(self) -> None:
        """What the first channels carry, and what P says of them beside zeros, stays; c = 1 has no mask."""

        def config(c: int, bits: int) -> ModelConfig:
            return ModelConfig(
                "paper", PaperConfig(4, c, 16, mask=c > 1), multiscale.MultiscaleConfig(2, (c,), 3, 16), bits
            )

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            nets = Networks(config(5, 8))
            for step in nets.probability.steps:
                torch.nn.init.normal_(step.w4.weight, std=0.1)
        state, cond = nets.state_dict(), torch.zeros(1, 2)
        x, header = torch.rand(1, 3, 64, 48), torch.tensor([[300, 4, 4]])
        for c in (3, 1):
            fewer, _ = Checkpoint(config(5, 8), state, state).networks(config(c, 4))
            with torch.no_grad():
                y, tau = nets.transform.encoder(x, cond)
                z, of_fewer = fewer.transform.encoder(x, cond)
                torch.testing.assert_close(z, y[:, :c], rtol=1e-4, atol=1e-3)
                assert (of_fewer is None) == (c == 1)
                assert of_fewer is None or torch.equal(of_fewer, tau)
                z = 16.0 * torch.randint(-3, 4, z.shape).float()
                padded = F.pad(z, (0, 0, 0, 0, 0, 5 - c))
                torch.testing.assert_close(
                    fewer.transform.decoder(z, cond), nets.transform.decoder(padded, cond), rtol=1e-4, atol=1e-5
                )
                groups = zip(
                    fewer.probability.groups(z, z, header), nets.probability.groups(padded, padded, header), strict=True
                )
                for mine, theirs in groups:
                    of_all = theirs.params.unflatten(1, (3, 3, 5))[:, :, :, :c].flatten(1, 3)
                    torch.testing.assert_close(mine.params, of_all, rtol=1e-4, atol=1e-5)
        with pytest.raises(TrainingError, match=r"transform\.c is 5 there and 8"):
            Checkpoint(config(5, 8), state, state).networks(config(8, 8))

    def test_companding_grows(self, tiny_config: ModelConfig) -> None:
        """E and D go on as nearly the same pair: without rounding, pictures come back as before."""
        transform = replace(tiny_config.transform, mask=False)
        older = replace(tiny_config, transform=transform)
        newer = replace(tiny_config, transform=replace(transform, companding=True, local_gain=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            nets = Networks(older)
            x = F.avg_pool2d(torch.rand(2, 3, 128, 128), 2)
        with torch.no_grad():
            nets.transform.encoder.gain.fc2.bias.uniform_(-0.4, 0.4)
            nets.transform.decoder.gain.fc2.bias.uniform_(-0.4, 0.4)
            nets.transform.encoder.transform.weight.mul_(1.3)  # above its bound
        state = nets.state_dict()
        before, after = (Checkpoint(older, state, state).networks(config)[1] for config in (older, newer))
        cond = transforms.condition(torch.tensor([0.002, 0.006]), torch.tensor([0.0, 1.0]))
        with torch.no_grad():
            old = before.transform.decoder(before.transform.encoder(x, cond)[0], cond)
            y = after.transform.encoder(x, cond)[0]
            new = after.transform.decoder(y, cond)
        change = (old - x).square().mean().sqrt()
        assert float((new - old).square().mean().sqrt()) < 0.02 * float(change)
        assert float(y.abs().max()) <= 127.0
        with pytest.raises(TrainingError, match=r"transform\.local_gain is True there and False"):
            Checkpoint(newer, after.state_dict(), after.state_dict()).networks(older)

    def test_networks_that_do_not_fit(self, checkpoint: Checkpoint) -> None:
        del checkpoint.average["transform.decoder.first.bias"]
        with pytest.raises(TrainingError, match="does not fit the networks"):
            checkpoint.networks(checkpoint.config)

    def test_networks_that_do_not_grow(self, tiny_config: ModelConfig, checkpoint: Checkpoint) -> None:
        wider = replace(tiny_config, probability=replace(tiny_config.probability, width=40))
        del checkpoint.average["probability.steps.0.w1.weight"]
        with pytest.raises(TrainingError, match="does not fit its networks"):
            checkpoint.networks(wider)

    def test_without_networks_or_not_finite(self, checkpoint: Checkpoint) -> None:
        with pytest.raises(TrainingError, match="holds no networks"):
            replace(checkpoint, average={}).networks(checkpoint.config)
        checkpoint.average["transform.decoder.first.bias"][0] = float("nan")
        with pytest.raises(TrainingError, match=r"transform\.decoder\.first\.bias of the checkpoint is not finite"):
            checkpoint.networks(checkpoint.config)

    @pytest.mark.parametrize("kind", ["empty", "garbage", "truncated", "cut late", "tensor", "no config", "no nets"])
    def test_files_that_are_none(self, checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "c.pt"
        checkpoint.save(path)
        data = path.read_bytes()
        if kind in ("tensor", "no config", "no nets"):
            state = torch.load(path, weights_only=True)
            state.pop({"no config": "config", "no nets": "nets"}.get(kind, "salt"))
            torch.save(torch.ones(3) if kind == "tensor" else state, path)
        else:
            path.write_bytes(
                {"empty": b"", "garbage": b"\x00garbage" * 99, "truncated": data[: len(data) // 2]}.get(kind, data[:-9])
            )
        with pytest.raises(TrainingError, match=r"c\.pt is not a"):
            Checkpoint.load(path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="No such file"):
            Checkpoint.load(tmp_path / "c.pt")
        with pytest.raises(ModelMismatchError):
            Checkpoint.load(tmp_path / "c.safetensors")

    def test_code_in_a_file_does_not_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "ran"),)

        torch.save({"config": Evil()}, tmp_path / "zip.pt")
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
        for name in ("zip.pt", "plain.pt"):
            with pytest.raises(TrainingError):
                Checkpoint.load(tmp_path / name)
        assert not (tmp_path / "ran").exists()

    def test_exported_model(self, tiny_config: ModelConfig, tiny_model_path: Path) -> None:
        """Training goes on from the very networks in the file: P's integers come out the same again."""
        checkpoint = Checkpoint.load(tiny_model_path)
        model = load_model(tiny_model_path)
        assert checkpoint.entry["id"] == model.model_id.hex() and checkpoint.entry["training"] == "none"
        for nets in checkpoint.networks(tiny_config):
            for key, value in model.transform.state_dict().items():
                assert torch.equal(nets.transform.state_dict()[key], value), key
            again = multiscale.IntegerModel.from_float(nets.probability)
            layers = list(zip(again.layers(), model.integer.layers()))
            assert len(layers) > 20
            for (name, ours), (_, theirs) in layers:
                assert np.array_equal(ours.weight, theirs.weight) and np.array_equal(ours.bias, theirs.bias), name

    @pytest.mark.parametrize("first, last", [(0, 500), (500, 1000), (250, 750)])
    @pytest.mark.parametrize("prior", ["learned", "uniform"])
    def test_another_range_of_lambda(self, tiny_config: ModelConfig, first: int, last: int, prior: str) -> None:
        """The new range is a part of the old one between two of its knots: P is the same at the same lambda."""
        old = replace(tiny_config, probability=replace(tiny_config.probability, prior=prior))
        ratio = old.lmbda_max / old.lmbda_min
        ends = [old.lmbda_min * ratio ** (quality / 1000) for quality in (first, last)]
        new = replace(old, lmbda_min=ends[0], lmbda_max=ends[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            before = Networks(old)
        state = before.state_dict()
        after = Checkpoint(old, state, copy.deepcopy(state)).networks(new)[0]
        z = 9 * torch.randn(1, 12, 8, 8, generator=torch.Generator().manual_seed(1)).round()
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            qualities = round(first + share * (last - first)), round(1000 * share)
            headers = [torch.tensor([[quality, 3, 8]]) for quality in qualities]
            with torch.no_grad():
                groups = [
                    [g.params for g in nets.probability.groups(z, z, header)]
                    for nets, header in zip((before, after), headers)
                ]
            for ours, theirs in zip(*groups):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        quality = 0 if first else 1000  # another lambda now, so another P
        with torch.no_grad():
            header = torch.tensor([[quality, 3, 8]])
            bits = [float(nets.probability.num_bits(z, z, header)) for nets in (before, after)]
        assert bits[0] != pytest.approx(bits[1], rel=1e-6)

    def test_outside_the_old_range(self, tiny_config: ModelConfig) -> None:
        """Columns go on in a straight line, as the planes between knots do."""
        octave = tiny_config.lmbda_max / tiny_config.lmbda_min
        new = replace(tiny_config, lmbda_max=tiny_config.lmbda_max * octave)  # twice as long: knots 0, 2, 4, 6, 8
        state = Networks(tiny_config).state_dict()
        after = Checkpoint(tiny_config, state, copy.deepcopy(state)).networks(new)[1].state_dict()
        key = "probability.prior.w1.weight"
        was, now = state[key][:, :5], after[key][:, :5]
        expected = torch.stack(
            (was[:, 0], was[:, 2], was[:, 4], *(was[:, 4] + k * (was[:, 4] - was[:, 3]) for k in (2, 4))), 1
        )
        torch.testing.assert_close(now, expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(state[key][:, 5:], after[key][:, 5:])


class TestRecipes:
    @pytest.fixture
    def path(self, tmp_path: Path, tiny_config: ModelConfig) -> Path:
        (tmp_path / "model.json").write_text(tiny_config.to_json())
        (tmp_path / "recipe.json").write_text('{"model": "model.json", "pretrain": {"lr": 1e-4}}')
        return tmp_path / "recipe.json"

    def test_overrides(self, path: Path, tiny_config: ModelConfig) -> None:
        recipe, model = load_recipe(path)
        assert model == tiny_config and recipe == TrainConfig("model.json", pretrain=PretrainConfig(lr=1e-4))
        recipe, _ = load_recipe(
            path,
            ["pretrain.lr=3e-4", "pretrain.steps=5", "data.crop=64", 'data.train=["a", "b"]', "meta.order=1", "seed=7",
             "loss.vgg16=some/file=1.pth", "autocast=off", "pretrain.mu=null", "quantize.scope=all", "compile=true"],
        )  # fmt: skip
        assert (recipe.pretrain.lr, recipe.pretrain.steps, recipe.pretrain.mu) == (3e-4, 5, None)
        assert (recipe.data.crop, recipe.data.train) == (64, ("a", "b"))
        assert (recipe.meta.order, recipe.seed, recipe.autocast, recipe.compile) == (1, 7, "off", True)
        assert (recipe.loss.vgg16, recipe.quantize.scope) == ("some/file=1.pth", "all")

    def test_recipe_json_reads_back(self, path: Path) -> None:
        recipe, _ = load_recipe(path, ["pretrain.steps=5", "bias_sets.sets=9", 'data.val=["v"]'])
        path.write_text(recipe_json(recipe))
        assert load_recipe(path)[0] == recipe and "sets" in asdict(recipe)["bias_sets"]

    @pytest.mark.parametrize(
        "text, message",
        [
            ("{", "cannot read the recipe"),
            ("[]", "expected a table"),
            ("{}", "missing key 'model'"),
            ('{"model": "model.json", "epochs": 3}', "recipe: unknown key 'epochs'"),
            ('{"model": "model.json", "meta": {"steps_": 3}}', "recipe.meta: unknown key 'steps_'"),
            ('{"model": "model.json", "meta": 3}', "recipe.meta: expected a table"),
            ('{"model": "model.json", "pretrain": {"lr": "fast"}}', "recipe.pretrain.lr: expected float, got 'fast'"),
            ('{"model": "model.json", "pretrain": {"steps": 1.5}}', "recipe.pretrain.steps: expected int"),
            ('{"model": "model.json", "pretrain": {"quantise": 1}}', "recipe.pretrain.quantise: expected bool"),
            ('{"model": "model.json", "data": {"train": "folder"}}', "recipe.data.train: expected a list"),
            ('{"model": 3}', "recipe.model: expected str"),
            ('{"model": "none.json"}', "cannot read the configuration"),
        ],
    )
    def test_bad_files(self, path: Path, text: str, message: str) -> None:
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_recipe(path)

    @pytest.mark.parametrize(
        "entry, message",
        [
            ("pretrain.lr", "expected key=value"),
            ("=3", "expected key=value"),
            ("model.lr=3", "model.lr is no entry"),
            ("pretrain.rate=3", "unknown key 'rate'"),
            ("data.train=folder", "expected a list"),
            ("data.crop=100", "data.crop must be"),
            ("data.scale_max=1.5", "scale_max must lie"),
            ("data.scaled_share=-1", "scaled_share must be"),
            ("data.memory_gb=-1", "memory_gb"),
            ("data.pool_steps=0", "pool_steps"),
            ("data.workers=-1", "data.workers"),
            ("data.limit=0", "data.limit"),
            ("loss.mask=-1", "weights must be finite and not negative"),
            ("loss.mse=NaN", "weights must be finite and not negative"),
            ("loss.rate=0", "rate must be positive"),
            ("loss.zeta_max=1.1", "zeta_max"),
            ("loss.perceptual=0.1", "needs loss.vgg16"),
            ("pretrain.lr=0", "lr must lie"),
            ("pretrain.lr=NaN", "lr must lie"),
            ("pretrain.batch=0", "batch must be"),
            ("pretrain.minutes=0", "minutes must be"),
            ("pretrain.steps=-3", "steps must be"),
            ("pretrain.decay=0.5", "decay needs minutes, steps or gpixel"),
            ("pretrain.clip=0", "clip or ema"),
            ("pretrain.ema=1", "clip or ema"),
            ("pretrain.beta2=1", "beta1 and beta2"),
            ("pretrain.quality_max=1001", "quality_min..max"),
            ("pretrain.mu=9", "mu must be"),
            ("pretrain.bits_min=0", "bits_min"),
            ("meta.inner_steps=0", "meta.inner_steps"),
            ("meta.learn_alpha=yes", "meta.learn_alpha"),
            ("meta.order=3", "meta.order"),
            ("meta.batch=0", "batch must be"),
            ("modulators.inner=none", "modulators.inner must"),
            ("modulators.inner_steps=0", "modulators.inner_steps"),
            ("modulators.alpha=0", "modulators.alpha"),
            ("modulators.order=0", "modulators.order"),
            ("modulators.plain=-1", "modulators.plain"),
            ("bias_sets.patch=100", "bias_sets.patch"),
            ("bias_sets.batch=0", "batch must be positive"),
            ("bias_sets.lr=0", "bias_sets.iterations and lr"),
            ("bias_sets.sets=256", "bias_sets.sets"),
            ("bias_sets.bands=17", "bias_sets.bands"),
            ("bias_sets.patches=254", "at least sets"),
            ("bias_sets.mu=9", "bias_sets.mu"),
            ("bias_sets.quality_max=1001", "bias_sets.quality_min"),
            ("bias_sets.curvature_patches=0", "curvature_patches"),
            ("quantize.scope=P", "quantize.scope"),
            ("quantize.max_loss=0", "quantize.max_loss"),
            ("quantize.search=-1", "quantize.search"),
            ("autocast=maybe", "autocast must be"),
            ("val_pictures=0", "val_pictures"),
            ("log_seconds=-1", "log_seconds"),
        ],
    )
    def test_bad_entries(self, path: Path, entry: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_recipe(path, [entry])

    def test_bands_share_all_qualities(self, path: Path) -> None:
        load_recipe(path, ["bias_sets.bands=2"])
        with pytest.raises(ConfigError, match="bands share all"):
            load_recipe(path, ["bias_sets.bands=2", "bias_sets.quality_max=500"])

    def test_recipes_that_come_with_the_project(self, configs: Path) -> None:
        recipe, model = load_recipe(configs / "train" / "default.json")
        assert model == ModelConfig.from_file(configs / "default.json") and recipe.pretrain.steps is None
        for path in (configs / "train").glob("*.json"):
            load_recipe(path, ["pretrain.minutes=1"])  # some leave the length to the command line


class TestCommands:
    @pytest.fixture
    def cli(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        monkeypatch.delenv("L2C_DEBUG", raising=False)

        def call(*arguments: str | Path) -> tuple[int, str, str]:
            code = main(["train", *map(str, arguments)])
            out, err = capsys.readouterr()
            return code, out, err

        return call

    @pytest.fixture
    def recipe(self, tmp_path: Path, pictures: Path, tiny_config: ModelConfig) -> Path:
        (tmp_path / "model.json").write_text(tiny_config.to_json())
        short = {"batch": 2, "steps": 2, "warmup": 1}
        settings = {
            "model": "model.json", "val_pictures": 1, "val_drawn": 0, "autocast": "off", "val_size": 64,
            "val_lmbdas": [0.01], "plots": False, "peak_seconds": 0,
            "data": {"crop": 64, "train": [str(pictures)], "val": [str(pictures)]},
            "pretrain": short, "meta": {**short, "inner_steps": 1, "learn_alpha": "step"}, "modulators": short,
            "gains": {"pictures": 2, "side": 64, "sweeps": 1, "lmbdas": [0.001, 0.1]},
            "bias_sets": {"patch": 64, "patches": 4, "sets": 2, "iterations": 2, "curvature_patches": 1},
            "quantize": {**short, "lr": 1e-3, "max_loss": 0.5},
        }  # fmt: skip
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(settings))
        return path

    def test_help(self, cli: Callable[..., Any]) -> None:
        for arguments, code in (((), 2), (("--help",), 0)):
            found, out, err = cli(*arguments)
            assert found == code and err == ""
            assert all(f"\n  {name} " in out for name in (*STAGES, "export"))
        assert all(option in cli("meta", "--help")[1] for option in ("--data", "--init", "--minutes", "--set", "RUN"))

    def test_help_does_not_import_torch(self) -> None:
        code = (
            "import sys; from l2c.cli import main; print(main(['train', 'pretrain', '--help']), 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.splitlines()[-1] == "0 False"

    def test_all_stages(
        self, cli: Callable[..., Any], recipe: Path, pictures: Path, tiny_config: ModelConfig, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        for name in STAGES:
            plots = ("--set", "plots=true") if name == "pretrain" else ()
            code, _, err = cli(name, recipe, "--out", run, "--device", "cpu", *plots)
            assert code == 0 and f"{name} is complete" in err, err
            assert newest(run) == run / name / "checkpoint.pt"
        assert "the same integers on these paths: cpu, torch, reference" in err
        assert (run / "pretrain" / "curves.png").exists() and not (run / "meta" / "curves.png").exists()
        left = {name: Checkpoint.load(run / name / "checkpoint.pt") for name in STAGES}
        assert all(left[name].stage == name for name in STAGES)
        assert [entry["stage"] for entry in left["quantize"].past()] == list(STAGES)
        changed = {
            name: {
                ".".join(key.split(".")[:2])
                for part in ("nets", "average")
                for key, value in getattr(left[name], part).items()
                if not torch.equal(value, left[before].average[key])
            }
            for before, name in itertools.pairwise(STAGES)
        }
        decoder, everything = {"transform.decoder"}, {"transform.encoder", "transform.decoder"}
        p = {"probability.steps", "probability.prior"}
        assert changed == {
            "meta": everything | p, "gains": everything, "modulators": decoder, "bias-sets": set(), "quantize": p
        }  # fmt: skip
        for key, v in left["gains"].nets.items():
            assert torch.equal(v, left["meta"].average[key]) or ".gain.fc2." in key, key
        moved = {
            key for key, v in left["modulators"].nets.items() if not torch.equal(v, left["gains"].average[key])
        }  # fmt: skip
        assert moved and all(key.startswith("transform.decoder.mods.") for key in moved)
        log_alpha = left["meta"].objective["0"]
        assert log_alpha.shape == (1, 1, 1, 1) and log_alpha != torch.tensor(0.001).log()

        target = tmp_path / "models" / "made.safetensors"
        code, out, err = cli("export", recipe, target, "--out", run, "--notes", "a test")
        assert code == 0, err
        facts = json.loads(out)
        codec = l2c.Codec(target)
        identity = codec.model.model_id.hex()
        assert facts["id"] == identity and facts["bytes"] == target.stat().st_size
        card = target.with_suffix(".md").read_text()
        assert identity in card and "a test" in card and "1 x 2 bias sets" in card
        assert all(f"{i}. stage: {name}" in card for i, name in enumerate(STAGES, 1))
        assert codec.model.config == tiny_config
        sets = codec.model.bias_sets
        assert sets is not None
        for key, value in sets.to_tensors().items():
            assert torch.equal(value, left["bias-sets"].bias_sets[key])
        for key, value in left["quantize"].average.items():
            if key.startswith("transform."):
                assert torch.equal(codec.model.transform.state_dict()[key[10:]], value.half().float()), key
        assert codec.model.rate_curve == [tuple(point) for point in facts["rate_curve"]]
        assert len(codec.model.rate_curve) == 9 and "quantize 2" in codec.model.card["steps"]
        picture = np.asarray(Image.open(pictures / "0.png"))
        decoded = codec.decode(codec.encode(picture, quality=90.0))
        assert decoded.shape == picture.shape
        assert 10 * np.log10(255**2 / np.mean((decoded - picture.astype(float)) ** 2)) > 20

        # The rate that P loses as integers is checked, and the checkpoints of other runs can be exported.
        code, _, err = cli("export", recipe, target, "--out", run, "--set", "quantize.max_loss=1e-9",
                           "--init", run / "pretrain" / "checkpoint.pt")  # fmt: skip
        assert code == 1 and "the integer P needs" in err
        # Training goes on from what was exported, at another stage's folder.
        code, _, err = cli("pretrain", recipe, "--out", tmp_path / "again", "--init", target, "--steps", "1")
        assert code == 0, err
        moved = Checkpoint.load(tmp_path / "again" / "pretrain" / "checkpoint.pt")
        assert Checkpoint.load(target).bias_sets and not moved.bias_sets  # the sets belong to the D that was exported
        (first, second) = moved.past()
        assert first["stage"] == "exported model" and first["id"] == identity and second["steps"] == "1"

    def test_interrupting_exits_with_130(
        self, cli: Callable[..., Any], recipe: Path, tmp_path: Path, monkeypatch
    ) -> None:
        step = Loop.train_step

        def interrupted(loop: Loop, batch: Batch) -> None:
            step(loop, batch)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Loop, "train_step", interrupted)
        code, _, err = cli("pretrain", recipe, "--out", tmp_path / "run", "--steps", "5")
        assert code == 130 and "was interrupted at step 1" in err

    def test_a_longer_stage_goes_on(self, cli: Callable[..., Any], recipe: Path, tmp_path: Path) -> None:
        assert cli("pretrain", recipe, "--out", tmp_path / "run", "--steps", "1")[0] == 0
        code, _, err = cli("pretrain", recipe, "--out", tmp_path / "run", "--set", "pretrain.steps=2")
        assert code == 0 and "resumed at step 1" in err and "is complete at step 2" in err

    def test_a_stage_notices_that_its_start_has_moved_on(
        self, cli: Callable[..., Any], recipe: Path, tmp_path: Path
    ) -> None:
        run, target = tmp_path / "run", tmp_path / "m.safetensors"
        for name in ("pretrain", "meta", "quantize"):
            assert cli(name, recipe, "--out", run)[0] == 0
        assert cli("export", recipe, target, "--out", run)[0] == 0
        made = target.read_bytes()
        assert cli("pretrain", recipe, "--out", run, "--steps", "3")[0] == 0
        for arguments in (("meta", recipe), ("quantize", recipe), ("export", recipe, target)):
            code, _, err = cli(*arguments, "--out", run)
            assert code == 1 and "was made from pretrain at step 2" in err and "is now pretrain at step 3" in err, err
        assert target.read_bytes() == made
        # A stage between two that were there, too.
        assert cli("modulators", recipe, "--out", run, "--init", run / "meta" / "checkpoint.pt")[0] == 0
        code, _, err = cli("quantize", recipe, "--out", run)
        assert code == 1 and "was made from meta at step 2" in err and "is now modulators at step 2" in err

    def test_init_of_a_stage_that_has_begun(self, cli: Callable[..., Any], recipe: Path, tmp_path: Path) -> None:
        """The same one may be named again, as a command that is repeated after a kill does; another one is an error."""
        for name in ("a", "b"):
            assert cli("pretrain", recipe, "--out", tmp_path / name, "--set", f"seed={ord(name)}")[0] == 0
        inits = [("--init", tmp_path / name / "pretrain" / "checkpoint.pt") for name in ("a", "b")]
        assert cli("pretrain", recipe, "--out", tmp_path / "run", "--steps", "1", *inits[0])[0] == 0
        code, _, err = cli("pretrain", recipe, "--out", tmp_path / "run", *inits[0])
        assert code == 0 and "resumed at step 1" in err
        # Left out, it goes on as well, in a stage that cannot start from nothing, too.
        assert cli("meta", recipe, "--out", tmp_path / "alone", "--steps", "1", *inits[0])[0] == 0
        code, _, err = cli("meta", recipe, "--out", tmp_path / "alone")
        assert code == 0 and "resumed at step 1" in err
        code, _, err = cli("pretrain", recipe, "--out", tmp_path / "run", *inits[1])
        assert code == 1 and "started from pretrain at step 2" in err and "leave --init out" in err
        assert [line["steps"] for line in Checkpoint.load(tmp_path / "run" / "pretrain" / "checkpoint.pt").past()] == [
            "2",
            "2",
        ]

    def test_commands_of_all_resumes(self, cli: Callable[..., Any], recipe: Path, tmp_path: Path, monkeypatch) -> None:
        for steps in ("1", "2"):
            monkeypatch.setattr(sys, "argv", ["l2c", "train", "--steps", steps])
            assert cli("pretrain", recipe, "--out", tmp_path / "run", "--steps", steps)[0] == 0
        command = Checkpoint.load(tmp_path / "run" / "pretrain" / "checkpoint.pt").entry["command"]
        assert command == "l2c train --steps 1; from step 1: l2c train --steps 2"
        before = (tmp_path / "run" / "pretrain" / "run.json").read_bytes()
        assert cli("pretrain", recipe, "--out", tmp_path / "run", "--steps", "2", "--set", "pretrain.lr=0.9")[0] == 0
        assert (tmp_path / "run" / "pretrain" / "run.json").read_bytes() == before  # it was complete

    @pytest.mark.parametrize(
        "stage, first, then",
        [
            ("meta", "meta.learn_alpha=step", "meta.learn_alpha=no"),
            ("meta", "meta.learn_alpha=step", "meta.learn_alpha=channel"),
            ("quantize", "quantize.scope=probability", "quantize.scope=all"),
        ],
    )
    def test_other_parameters_on_resume(
        self, cli: Callable[..., Any], recipe: Path, tmp_path: Path, stage: str, first: str, then: str
    ) -> None:
        run = tmp_path / "run"
        assert cli("pretrain", recipe, "--out", run, "--steps", "1")[0] == 0
        assert cli(stage, recipe, "--out", run, "--steps", "1", "--set", first)[0] == 0
        code, _, err = cli(stage, recipe, "--out", run, "--steps", "2", "--set", then)
        assert code == 1 and "while other parameters were trained" in err and "internal error" not in err

    def test_what_cannot_be_compiled(self, cli: Callable[..., Any], recipe: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        assert cli("pretrain", recipe, "--out", run, "--steps", "1")[0] == 0
        for stage in ("meta", "modulators"):
            code, _, err = cli(stage, recipe, "--out", run, "--set", "compile=true")
            assert code == 1 and f"{stage} differentiates inside a step" in err

    def test_two_runs_in_one_folder(self, cli: Callable[..., Any], recipe: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run" / "pretrain"
        folder.mkdir(parents=True)
        with locked(folder):
            code, _, err = cli("pretrain", recipe, "--out", tmp_path / "run")
            assert code == 1 and "another process trains in" in err
        assert cli("pretrain", recipe, "--out", tmp_path / "run", "--steps", "1")[0] == 0

    def test_a_second_signal_ends_a_stalled_run(self, recipe: Path, pictures: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        process = subprocess.Popen(
            [sys.executable, "-m", "l2c", "train", "pretrain", str(recipe), "--out", str(run), "--data",
             "pipe:sleep 60; cat never.tar", "--val", str(pictures)],
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            end = time.monotonic() + 60
            while not (run / "pretrain" / "checkpoint.pt").exists() and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
            process.send_signal(signal.SIGTERM)
            process.wait(10.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the shell that it waited for holds its stderr
        said = process.communicate(timeout=10)[1]
        assert process.returncode == -signal.SIGTERM and "ended by a second signal" in said

    def test_a_shard_that_cannot_be_read_keeps_what_was_learnt(
        self, cli: Callable[..., Any], recipe: Path, tmp_path: Path, monkeypatch
    ) -> None:
        step = Loop.train_step

        def failing(loop: Loop, batch: Batch) -> None:
            if loop.at.step == 2:
                raise ConfigError("cannot read the shard")
            step(loop, batch)

        monkeypatch.setattr(Loop, "train_step", failing)
        code, _, err = cli("pretrain", recipe, "--out", tmp_path / "run", "--steps", "5")
        assert code == 1 and "cannot read the shard" in err
        assert Checkpoint.load(tmp_path / "run" / "pretrain" / "checkpoint.pt").step == 2

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (("meta", "RECIPE", "--out", "RUN"), "meta starts from trained networks: run pretrain first"),
            (("bias-sets", "RECIPE", "--out", "RUN"), "bias-sets starts from trained networks"),
            (("pretrain", "RECIPE", "--out", "RUN", "--init", "NONE"), "there is no checkpoint"),
            (("pretrain", "RECIPE", "--out", "RUN", "--init", "RECIPE"), "recipe.json is not a"),
            (("pretrain", "RECIPE", "--out", "RUN", "--data", "EMPTY"), "no pictures in"),
            (("pretrain", "RECIPE", "--out", "RUN", "--val", "EMPTY"), "no pictures in"),
            (("pretrain", "RECIPE", "--out", "RUN", "--data", "NOWHERE"), "no such folder, list or picture"),
            (("pretrain", "RECIPE", "--out", "RUN", "--set", "data.train=[]"), "name the pictures: data.train"),
            (
                ("pretrain", "RECIPE", "--out", "RUN", "--set", "data.val=[]"),
                "name the pictures: data.train and data.val",
            ),
            (("pretrain", "RECIPE", "--out", "RUN", "--set", "pretrain.lr=7"), "lr must lie"),
            (("pretrain", "RECIPE", "--out", "RUN", "--minutes", "0"), "minutes must be positive"),
            (("pretrain", "RECIPE", "--out", "RUN", "--device", "tpu"), "not on 'tpu'"),
            (("pretrain", "NOWHERE", "--out", "RUN"), "cannot read the recipe"),
            (("export", "RECIPE", "MODEL", "--out", "RUN"), "there is no checkpoint below"),
            (("pretrain", "RECIPE"), "Missing option"),
            (("bias-sets", "RECIPE", "--out", "RUN", "--minutes", "1"), "bias-sets has no --minutes"),
            (("polish", "RECIPE"), "No such command"),
        ],
    )
    def test_errors(
        self, cli: Callable[..., Any], recipe: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        names = {"RECIPE": recipe, "EMPTY": tmp_path / "empty", "NOWHERE": tmp_path / "nowhere",
                 "MODEL": tmp_path / "m.safetensors", "RUN": tmp_path / "run", "NONE": tmp_path / "none"}  # fmt: skip
        code, _, err = cli(*(names.get(argument, argument) for argument in arguments))
        last = err.splitlines()[-1]
        assert code != 0 and last.startswith("l2c: error: ") and message in last, err
        assert "internal error" not in err and not list(tmp_path.rglob("checkpoint.pt"))
