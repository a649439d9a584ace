"""Batches made on the device, steps that wait for nothing, and the self-test of a captured step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from l2c.config import ModelConfig
from l2c.entropy.multiscale.float_model import plane_tensor
from l2c.errors import ConfigError
from l2c.format.levels import MAX_MU
from l2c.ops.contract import constant_planes
from l2c.train.config import DataConfig, PretrainConfig, StageConfig, TrainConfig
from l2c.train.device_data import Bank, Composition, DeviceBatches, hashed, uniform
from l2c.train.graph import captured
from l2c.train.loop import Loop
from l2c.train.losses import Conditions
from l2c.train.pack import pack, unpack
from l2c.train.parallel import Parallel
from l2c.train.pretrain import PretrainObjective
from l2c.train.records import read_journal

CPU = torch.device("cpu")


def test_uniform_is_uniform_and_a_pure_function() -> None:
    counters = torch.arange(200_000)
    u = uniform(counters, 3, torch.tensor(7), 2)
    assert torch.equal(u, uniform(counters, 3, torch.tensor(7), 2))
    assert torch.equal(u[1000:2000], uniform(counters[1000:2000], 3, torch.tensor(7), 2))
    assert float(u.min()) >= 0.0 and float(u.max()) < 1.0
    expected = len(u) / 100
    chi_squared = float((u.histc(100, 0, 1) - expected).square().sum() / expected)
    assert 50 < chi_squared < 160  # 99 degrees of freedom: 99.99 % lie here
    for other in (uniform(counters, 3, torch.tensor(8), 2), uniform(counters, 4, 7, 2), uniform(counters, 3, 7, 3)):
        assert abs(float(torch.corrcoef(torch.stack((u, other)))[0, 1])) < 0.01
    assert abs(float(torch.corrcoef(torch.stack((u[1:], u[:-1])))[0, 1])) < 0.01
    # Known values: the same on every device and in every version.
    assert hashed(torch.arange(3), 1, 2).tolist() == KNOWN


KNOWN = [2318274782, 1361760004, 351897956]


def test_planes_of_a_header_in_a_tensor() -> None:
    headers = [(q, mu, b) for q in range(0, 1001, 7) for mu in range(9) for b in (1, 5, 8)] + [(1000, 8, 8)]
    ours = plane_tensor(torch.tensor(headers), 3)
    assert ours.tolist() == [[constant_planes(*header, scale, 3) for header in headers] for scale in range(4)]


class TestComposition:
    @pytest.mark.parametrize("batch", [1, 2, 3, 6, 8, 24, 64])
    def test_holds_what_it_should(self, batch: int) -> None:
        composition = Composition.of(StageConfig(batch=batch), 0.1)
        assert len(composition.mu) == len(composition.strata) == len(composition.drawn) == batch
        assert list(composition.mu) == sorted(composition.mu)
        for mu, (first, count) in zip(composition.mu, composition.strata):
            assert set(composition.mu[first : first + count]) == {mu} and composition.mu.count(mu) == count
        assert abs(sum(composition.drawn) - 0.1 * batch) <= 0.5
        if batch >= 6:
            assert {0, MAX_MU // 2, MAX_MU} <= set(composition.mu)

    def test_one_metric(self) -> None:
        composition = Composition.of(StageConfig(batch=4, mu=3), 0.5)
        assert composition.mu == (3, 3, 3, 3) and composition.strata == ((0, 4),) * 4
        assert sum(composition.drawn) == 2


def bank(sizes: tuple[tuple[int, int], ...] = ((40, 64), (56, 48))) -> tuple[Bank, list[Tensor]]:
    rng = np.random.default_rng(0)
    pictures = [torch.from_numpy(rng.integers(0, 256, (3, h, w), dtype=np.uint8)) for h, w in sizes]
    return Bank(pictures, CPU), pictures


def vector(*values: float) -> Tensor:
    return torch.tensor(values)


class TestCrops:
    def test_unscaled_crops_are_the_picture_itself(self) -> None:
        ours, pictures = bank()
        for k in range(8):
            turn = torch.tensor([k, k])
            x = ours.crops(torch.tensor([0, 1]), 16, vector(16, 16), vector(0.3, 0.9), vector(0.99, 0.0), turn)
            assert x.shape == (2, 3, 16, 16) and x.is_contiguous(memory_format=torch.channels_last)
            places = [(int(0.3 * 25), int(0.99 * 49)), (int(0.9 * 41), 0)]
            for picture, (top, left), crop in zip(pictures, places, x):
                part = picture[:, top : top + 16, left : left + 16]
                turned = [torch.rot90(f, t, (1, 2)) for f in (part, part.flip(2), part.flip(1)) for t in range(4)]
                assert any(torch.equal(crop, t) for t in turned), k
        all_turns = ours.crops(
            torch.zeros(8, dtype=torch.int64),
            16,
            torch.full((8,), 16.0),
            torch.zeros(8),
            torch.zeros(8),
            torch.arange(8),
        )
        assert len({crop.numpy().tobytes() for crop in all_turns}) == 8

    def test_three_times_smaller_is_the_mean_of_nine(self) -> None:
        ours, pictures = bank()
        x = ours.crops(torch.tensor([1]), 16, vector(48), vector(0.0), vector(0.0), torch.tensor([0]))
        blocks = pictures[1][:, :48, :48].float().reshape(3, 16, 3, 16, 3).mean(dim=(2, 4))
        assert float((x[0].float() - blocks).abs().max()) <= 0.501

    @pytest.mark.parametrize("span", [17.0, 30.5, 40.0, 1000.0])
    def test_any_span_stays_inside_its_picture(self, span: float) -> None:
        """Each picture has a value of its own: a crop that strayed into the next one would show it."""
        flat = Bank([torch.full((3, 40, 64), 10 * k, dtype=torch.uint8) for k in range(3)], CPU)
        index = torch.arange(3).repeat_interleave(4)
        corners = torch.tensor([0.0, 0.0, 0.9999999, 0.9999999]).repeat(3), torch.tensor([0.0, 0.9999999]).repeat(6)
        x = flat.crops(index, 16, torch.full((12,), span), *corners, torch.zeros(12, dtype=torch.int64))
        assert torch.equal(x, (10 * index).to(torch.uint8)[:, None, None, None].expand_as(x))

    def test_refuses_nothing(self) -> None:
        with pytest.raises(ConfigError, match="no pictures"):
            Bank([], CPU)


def batches(
    batch: int = 8,
    *,
    drawn: bool = False,
    salt: int = 0,
    rank: int = 0,
    world: int = 1,
    steps: tuple[int, ...] = (),
) -> DeviceBatches:
    photo, mark = (torch.full((3, side, side), value, dtype=torch.uint8) for side, value in ((48, 7), (40, 255)))
    pictures = Bank([photo], CPU, [mark]) if drawn else bank()[0]
    data = DataConfig(crop=32, drawn_share=0.25, scale_min=0.7, scale_max=0.9)
    return DeviceBatches(pictures, data, StageConfig(batch=batch), 8, (4, 4, 4), 1, salt, rank, world, steps)


class TestDeviceBatches:
    def test_conditions_are_stratified(self) -> None:
        made = batches(32)
        seen = torch.stack([made.conditions(torch.tensor(step)) for step in range(200)])
        quality, mu, b = seen.unbind(dim=2)
        assert int(quality.min()) < 10 and int(quality.max()) > 990 and int(quality.max()) <= 1000
        assert torch.equal(mu, mu[:1].expand_as(mu))
        assert int(b.min()) >= 4 and 0.92 < float((b == 8).float().mean()) < 0.98
        for first, count in set(made.composition.strata):
            ordered = quality[:, first : first + count].sort(dim=1).values
            edges = 1001 * torch.arange(count + 1) / count
            assert bool((ordered > edges[:-1] - 1).all()) and bool((ordered <= edges[1:]).all())
        means = quality.float().mean(dim=0)  # every place sees the whole range in the long run
        assert float(means.min()) > 350 and float(means.max()) < 650

    def test_a_models_own_qualities(self) -> None:
        """Each of them as often, in every metric's places."""
        made = batches(32, steps=(143, 286, 571))
        quality = torch.stack([made.conditions(torch.tensor(step))[:, 0] for step in range(100)])
        assert set(quality.unique().tolist()) == {143, 286, 571}
        for first, count in set(made.composition.strata):
            shares = [float((quality[:, first : first + count] == q).float().mean()) for q in (143, 286, 571)]
            assert max(shares) - min(shares) < 0.15

    def test_processes_share_the_batch_that_one_would_see(self) -> None:
        step = torch.tensor(5)
        whole = batches(8, drawn=True)
        parts = [batches(8, drawn=True, rank=rank, world=2) for rank in range(2)]
        for make in (
            lambda made: made.conditions(step),
            lambda made: made.noise(step),
            lambda made: made.pictures(step, made.conditions(step)[:, 0]),
        ):
            assert torch.equal(torch.stack([make(part) for part in parts], dim=1).flatten(0, 1), make(whole))

    def test_steps_and_salts_differ_and_repeat(self) -> None:
        made = batches()
        noise = [made.noise(torch.tensor(step)) for step in (1, 2, 1)]
        assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
        assert not torch.equal(noise[0], batches(salt=1).noise(torch.tensor(1)))
        assert -0.5 <= float(noise[0].min()) < -0.49 and 0.49 < float(noise[0].max()) < 0.5
        assert len(noise[0].unique()) > 0.99 * noise[0].numel()

    def test_drawn_pictures_move_through_all_places(self) -> None:
        """And so through all metrics: in every step as many, at every place as often."""
        made = batches(12, drawn=True)
        steps = [torch.tensor(step) for step in range(600)]
        seen = torch.stack([made.drawn(step) for step in steps])
        assert bool((seen.sum(dim=1) == sum(made.composition.drawn)).all()) and sum(made.composition.drawn) == 3
        assert float(seen.float().mean(dim=0).min()) > 0.18 and float(seen.float().mean(dim=0).max()) < 0.32
        for step, flags in zip(steps[:3], seen):
            x = made.pictures(step, torch.full((12,), 900))
            assert [bool((crop == 255).all()) for crop in x] == flags.tolist()
            assert all(bool((crop == 7).all()) for crop, flag in zip(x, flags) if not flag)


class Waits(TorchDispatchMode):
    """Records the operations that would make the host wait for a GPU, and counts all others that compute."""

    NAMES = ("_local_scalar_dense", "nonzero", "item", "masked_select", "unique", "is_nonzero", "equal", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name.startswith(self.NAMES):
            self.found.append(name)
        elif not func.is_view:
            self.count += 1
        for argument in args:
            if isinstance(argument, (list, tuple)) and any(
                isinstance(a, Tensor) and a.dtype == torch.bool for a in argument
            ):
                self.found.append(f"{name} with a mask")  # its shape depends on the data
        return func(*args, **(kwargs or {}))


@pytest.fixture
def device_loop(tiny_config: ModelConfig, tmp_path: Path) -> Callable[..., Loop]:
    """A loop whose batches are made on the device."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        coarse = rng.integers(0, 255, (12, 15, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((120, 96), Image.Resampling.BICUBIC).save(tmp_path / "pictures" / f"{i}.png")
    transform = replace(tiny_config.transform, mask=False, local_gain=True, companding=True)
    model = replace(tiny_config, transform=transform)

    def make(
        name: str = "run",
        optimizer: str = "soap",
        val_gpixel: float | None = None,
        save_minutes: float = 1000.0,
        **stage: Any,
    ) -> Loop:
        folder = str(tmp_path / "pictures")
        settings = {"lr": 1e-3, "batch": 6, "steps": 6, "warmup": 2, "optimizer": optimizer, **stage}
        data = DataConfig(
            train=(folder,), val=(folder,), crop=64, on_device=True, drawn_share=0.2, drawn_bank=4, drawn_side=64
        )
        recipe = TrainConfig(
            "model.json", data=data, pretrain=PretrainConfig(**settings), val_pictures=1, log_seconds=0.0,
            save_minutes=save_minutes, autocast="off", val_gpixel=val_gpixel, val_drawn=2,
            val_size=64, val_lmbdas=(0.01,), peak_seconds=0.0, plots=False,
        )  # fmt: skip
        return Loop(
            "pretrain", recipe, recipe.pretrain, model,
            lambda nets, features: PretrainObjective(nets, recipe.loss, features), tmp_path / name / "pretrain", None,
            Parallel("cpu"),
        )  # fmt: skip

    return make


@pytest.mark.parametrize("optimizer", ["soap", "adam"])
def test_a_step_waits_for_nothing(
    device_loop: Callable[..., Loop], optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2C_BACKEND", "torch")
    training = device_loop(optimizer=optimizer)
    training.train_step(None)
    for method in ("tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(Tensor, method, lambda *args, name=method: pytest.fail(f"Tensor.{name} in a step"))
    with Waits() as waits:
        if optimizer == "soap":  # Adam's fused form reads its rate on the CPU
            training.engine.eager_device_step()
        else:
            header = training.engine.batches.conditions(training.engine.at)
            training.engine.batches.pictures(training.engine.at, header[:, 0])
            training.engine.batches.noise(training.engine.at)
    assert waits.found == [] and waits.count > 50


def test_waits_are_seen() -> None:
    """The test above can fail."""
    x = torch.tensor([1.0, 0.0])
    with Waits() as waits:
        x.nonzero()
        float(x[0])
        x[x > 0]
    assert len(waits.found) >= 3


def test_training_on_device_batches_resumes_exactly(device_loop: Callable[..., Loop]) -> None:
    straight = device_loop("straight")
    assert straight.run()
    part = device_loop("part", steps=3)
    assert part.run()
    rest = device_loop("part")
    assert rest.at.step == 3 and int(rest.engine.at) == 3
    assert rest.run()
    assert rest.at.step == 6 and rest.at.pixels == straight.at.pixels == 6 * 6 * 64 * 64
    for ours, theirs in zip(rest.engine.parameters, straight.engine.parameters):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(rest.engine.optimizer.tensors(), straight.engine.optimizer.tensors()):
        assert torch.equal(ours, theirs)


def test_other_pictures_after_a_roll_back(device_loop: Callable[..., Loop]) -> None:
    def first_pictures() -> Tensor:
        batches, at = training.engine.batches, torch.tensor(0)
        assert batches is not None
        return batches.pictures(at, batches.conditions(at)[:, 0])

    training = device_loop(steps=1)
    assert training.run()
    before = first_pictures()
    assert torch.equal(before, first_pictures())
    training.roll_back()
    assert (training.at.salt, training.at.lr_scale) == (1, 0.5) and not torch.equal(before, first_pictures())


def test_rate_falls_with_pixels_and_ends_with_them(device_loop: Callable[..., Loop]) -> None:
    each = 6 * 64 * 64  # pixels a step
    training = device_loop(steps=None, gpixel=100 * each / 1e9, hold=25 * each / 1e9, decay=0.2, warmup=4, lr=1e-3)
    rates = []
    for step in range(101):
        training.at.step, training.at.pixels = step, step * each
        rates.append(training.schedule.learning_rate(training.at))
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[25] == pytest.approx(1e-3) and rates[64] == pytest.approx(1e-3 * (25 / 64) ** 0.5)
    assert rates[90] == pytest.approx(0.5e-3 * (25 / 90) ** 0.5) and rates[100] == 0.0
    assert training.schedule.progress(training.at) == pytest.approx(1.0)


def test_a_run_from_a_pack_warms_up_again(device_loop: Callable[..., Loop], tmp_path: Path) -> None:
    first = device_loop("first", steps=4, warmup=4)
    first.run()
    pack(tmp_path / "first", tmp_path / "pack")
    unpack(tmp_path / "pack", tmp_path / "second")
    second = device_loop("second", steps=12, warmup=4)
    assert second.at.step == 4 and second.schedule.learning_rate(second.at) == pytest.approx(1e-3 / 4)
    second.train_step(None)
    second.save()
    third = device_loop("second", steps=12, warmup=4)  # stopped in the middle of the new warm-up
    assert third.at.step == 5 and third.schedule.learning_rate(third.at) == pytest.approx(2e-3 / 4)
    for ours, theirs in zip(third.engine.parameters, second.engine.parameters):
        assert torch.equal(ours, theirs)


def test_validation_comes_every_so_many_pixels(device_loop: Callable[..., Loop], tmp_path: Path) -> None:
    each = 6 * 64 * 64
    training = device_loop(val_gpixel=3 * each / 1e9, save_minutes=0.0, steps=8)
    assert training.run()
    rows = read_journal(tmp_path / "run" / "pretrain" / "journal.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 8]
    assert set(rows[0]["kinds"]) == {"pictures", "drawn", "seen"} and rows[0]["gpixel"] == round(3 * each / 1e9, 4)
    for kind in rows[0]["kinds"].values():
        assert {row["mu"] for row in kind} == {0, 4, 8} and all(row["loss"] > 0 for row in kind)


def test_device_training_learns(device_loop: Callable[..., Loop]) -> None:
    training = device_loop(steps=40, lr=3e-3)
    made = training.engine.batches
    assert made is not None

    def loss() -> float:
        """Of ten batches that stay, which training sees among others."""
        total = 0.0
        for step in range(10):
            at = torch.tensor(step)
            header = made.conditions(at)
            x = made.pictures(at, header[:, 0]).float() / 255.0
            cond = Conditions(*header.unbind(dim=1), needs=made.needs)
            with torch.no_grad():
                total += float(training.engine.objective.loss(x, cond, made.noise(at)).total.mean())
        return total

    before = loss()
    for _ in range(40):
        training.train_step(None)
    assert loss() < 0.7 * before


class TestCaptured:
    """A step is w += rate * g; the faster form is what the test says."""

    @staticmethod
    def state() -> tuple[list[Tensor], Callable[[], None]]:
        w, count = torch.zeros(4), torch.zeros((), dtype=torch.int64)
        gradient = torch.tensor([1.0, -2.0, 3.0, 0.5])

        def step() -> None:
            count.add_(1)
            w.add_(gradient / count)

        return [w, count], step

    def test_equal_form_is_taken_and_the_state_is_as_before(self) -> None:
        state, step = self.state()
        step()
        before = [t.clone() for t in state]

        def fast() -> None:
            step()

        form, reason = captured(step, state, 1, lambda _: fast, CPU)
        assert reason == "" and form is fast
        assert all(torch.equal(a, b) for a, b in zip(state, before))

    @pytest.mark.parametrize("fault", ["nothing", "half", "nan", "raises", "replay raises"])
    def test_anything_else_is_given_up(self, fault: str) -> None:
        state, step = self.state()
        before = [t.clone() for t in state]

        def wrong() -> None:
            if fault == "replay raises":
                raise RuntimeError("CUDA error: illegal")
            if fault != "nothing":
                state[0].add_(0.5 if fault == "half" else float("nan"))

        def capture(_: Callable[[], None]) -> Callable[[], None]:
            if fault == "raises":
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            return wrong

        form, reason = captured(step, state, 1, capture, CPU)
        assert form is step and reason and "\n" not in reason
        assert all(torch.equal(a, b) for a, b in zip(state, before))
        form()
        assert torch.equal(state[0], torch.tensor([1.0, -2.0, 3.0, 0.5]))

    def test_the_whole_training_step(self, device_loop: Callable[..., Loop]) -> None:
        """All that outlives a step is in `lasting`: the self-test leaves training where it was."""
        training, straight = device_loop("a"), device_loop("b")
        for each in (training, straight):
            each.train_step(None)
        training.engine.begin(training.at.step, training.schedule.learning_rate(training.at))
        form, reason = captured(
            training.engine.eager_device_step,
            training.engine.lasting(),
            len(training.engine.parameters),
            lambda step: lambda: step(),
            CPU,
        )
        assert reason == "" and form is not training.engine.eager_device_step
        training.engine.device_step = form
        for _ in range(3):
            training.train_step(None)
            straight.train_step(None)
        for ours, theirs in zip(training.engine.lasting(), straight.engine.lasting()):
            assert torch.equal(ours, theirs)
