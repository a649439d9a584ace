"""The mean of checkpoints: its numbers, its history, what it refuses; and the copies that a run keeps for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from l2c.cli import main
from l2c.config import ModelConfig
from l2c.errors import ConfigError, L2CWarning, TrainingError
from l2c.train.average import average
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import DataConfig, PretrainConfig, TrainConfig
from l2c.train.loop import Loop
from l2c.train.losses import Networks
from l2c.train.parallel import Parallel
from l2c.train.pretrain import PretrainObjective

Pair = tuple[list[Path], list[dict[str, Tensor]]]


def write(path: Path, model: ModelConfig, seed: int, history: list[dict[str, str]], step: int = 3) -> dict[str, Tensor]:
    """A checkpoint with an optimiser's state; what its average holds. Its networks are others."""
    torch.manual_seed(seed)
    nets, mean = Networks(model).state_dict(), Networks(model).state_dict()
    entry = {"stage": "pretrain", "seed": str(seed)}
    Checkpoint(
        model, nets, mean, "pretrain", step, optimizer={"name": "adam"}, entry=entry, history=history,
        bias_sets={"sets": torch.zeros(2)},
    ).save(path)  # fmt: skip
    return mean


@pytest.fixture
def pair(tiny_config: ModelConfig, tmp_path: Path) -> Pair:
    """Two checkpoints that grew from one, and what their averages hold."""
    paths = [tmp_path / f"{k}.pt" for k in range(2)]
    return paths, [write(path, tiny_config, k, [{"stage": "start"}]) for k, path in enumerate(paths)]


class TestAverage:
    @pytest.mark.parametrize("weights", [None, (1.0, 3.0), (0.25, 0.75)])
    def test_is_the_mean(self, pair: Pair, tmp_path: Path, weights: tuple[float, float] | None) -> None:
        paths, states = pair
        average(paths, tmp_path / "mean.pt", weights)
        loaded = Checkpoint.load(tmp_path / "mean.pt")
        share = 0.5 if weights is None else 0.25
        for name, value in states[0].items():
            expected = share * value.double() + (1.0 - share) * states[1][name].double()
            for part in (loaded.average, loaded.nets):
                assert part[name].dtype == value.dtype
                torch.testing.assert_close(part[name].double(), expected, rtol=1e-6, atol=1e-7)

    def test_says_where_it_comes_from(self, pair: Pair, tmp_path: Path) -> None:
        paths, _ = pair
        average(paths, tmp_path / "mean.pt", (1.0, 3.0))
        loaded = Checkpoint.load(tmp_path / "mean.pt")
        assert loaded.history == [
            {"stage": "start"}, {"stage": "pretrain", "seed": "0"}, {"stage": "pretrain", "seed": "1"}
        ]  # fmt: skip
        marks = [Checkpoint.load(path).mark() for path in paths]
        assert loaded.entry == {"stage": "average", "of": f"0.25 {marks[0]}; 0.75 {marks[1]}"}
        # What belongs to one of them alone is left behind.
        assert (loaded.stage, loaded.step, loaded.optimizer, loaded.bias_sets) == ("average", 0, {}, {})

    def test_of_one_twice_is_that_one(self, pair: Pair, tmp_path: Path) -> None:
        paths, states = pair
        whole = average([paths[0]] * 3, tmp_path / "mean.pt", (0.1, 0.2, 0.7))
        for name, value in states[0].items():
            torch.testing.assert_close(whole.average[name], value, rtol=1e-6, atol=1e-8)

    def test_names_may_differ(self, pair: Pair, tiny_config: ModelConfig, tmp_path: Path) -> None:
        write(tmp_path / "named.pt", replace(tiny_config, name="another"), 2, [])
        assert average([pair[0][0], tmp_path / "named.pt"], tmp_path / "mean.pt").config == tiny_config

    def test_refuses(self, pair: Pair, tiny_config: ModelConfig, tmp_path: Path) -> None:
        paths, _ = pair
        target = tmp_path / "mean.pt"
        with pytest.raises(ConfigError, match="two"):
            average(paths[:1], target)
        with pytest.raises(ConfigError, match="export"):
            average(paths, tmp_path / "mean.safetensors")
        infinite, nothing = float("inf"), float("nan")
        for weights in ((1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, nothing), (1.0, infinite), (1e308, 1e308)):
            with pytest.raises(ConfigError, match="positive"):
                average(paths, target, weights)
        other = replace(tiny_config, bits=7)
        write(tmp_path / "other.pt", other, 2, [])
        with pytest.raises(TrainingError, match="another model"):
            average([paths[0], tmp_path / "other.pt"], target)
        bad = Checkpoint.load(paths[1])
        next(iter(bad.average.values())).view(-1)[0] = float("nan")
        bad.save(tmp_path / "bad.pt")
        with pytest.raises(TrainingError, match="not finite"):
            average([paths[0], tmp_path / "bad.pt"], target)
        with pytest.raises(TrainingError, match="nowhere"):
            average([paths[0], tmp_path / "nowhere.pt"], target)
        assert not target.exists()

    def test_command(self, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        paths, _ = pair
        target = tmp_path / "mean.pt"
        assert main(["train", "average", str(target), *map(str, paths), "--weight", "1", "--weight", "3"]) == 0
        assert json.loads(capsys.readouterr().out)["of"].startswith("0.25 pretrain at step 3")
        assert main(["train", "average", str(target), str(paths[0])]) != 0


def test_a_run_keeps_copies(tiny_config: ModelConfig, tmp_path: Path) -> None:
    """The average as it stood at the first checkpoint after each so many pixels, and a stage goes on from a mean."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(folder / "a.png")
    step_gpixel = 2 * 64 * 64 / 1e9
    recipe = TrainConfig(
        "model.json", data=DataConfig(train=(str(folder),), val=(str(folder),), crop=64, workers=0, drawn_share=0.0),
        pretrain=PretrainConfig(batch=2, steps=6, warmup=0), val_pictures=1, val_drawn=0, log_seconds=0.0,
        save_minutes=0.0, autocast="off", val_size=64, val_lmbdas=(0.01,), plots=False, peak_seconds=0.0,
        keep_gpixel=2.0 * step_gpixel, val_gpixel=1.0,
    )  # fmt: skip

    def loop(run: Path, start: Checkpoint | None = None) -> Loop:
        return Loop(
            "pretrain", recipe, recipe.pretrain, tiny_config,
            lambda nets, features: PretrainObjective(nets, recipe.loss, features), run, start, Parallel("cpu"),
        )  # fmt: skip

    training = loop(tmp_path / "run")
    (tmp_path / "run" / "average-000002.pt").mkdir()  # cannot be written: tried again at the next checkpoint
    with pytest.warns(L2CWarning, match="tries again"):
        assert training.run()
    (tmp_path / "run" / "average-000002.pt").rmdir()
    kept = sorted((tmp_path / "run").glob("average-*.pt"))
    assert [path.name for path in kept] == ["average-000003.pt", "average-000004.pt", "average-000006.pt"]
    first, last = Checkpoint.load(kept[0]), Checkpoint.load(kept[-1])
    assert first.step == 3 and first.optimizer == {}
    moved = [name for name, value in last.average.items() if not torch.equal(value, first.average[name])]
    assert moved
    for name, value in training.engine.average.state_dict().items():
        assert torch.equal(last.average[name], value)
    mean = average(kept, tmp_path / "mean.pt")
    again = loop(tmp_path / "next", mean)
    assert again.at.step == 0 and torch.equal(again.engine.nets.state_dict()[moved[0]], mean.average[moved[0]])
