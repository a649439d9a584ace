"""The stay on a GPU machine, rehearsed on the CPU with a tiny model: parts, self-test, training, packs, going on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from l2c.config import ModelConfig
from l2c.errors import ConfigError, TrainingError
from l2c.train.checkpoint import Checkpoint
from l2c.train.losses import Networks
from l2c.train.pack import pack, read, unpack
from l2c.train.records import JOURNAL

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(tiny_config: ModelConfig) -> ModelConfig:
    transform = replace(tiny_config.transform, mask=False, local_gain=True, companding=True)
    return replace(tiny_config, transform=transform)


@pytest.fixture
def run(model: ModelConfig, tmp_path: Path) -> Path:
    """A run with a checkpoint at step 7, its average another one than its networks."""
    folder = tmp_path / "trunk"
    (folder / "pretrain").mkdir(parents=True)
    torch.manual_seed(0)
    nets, average = Networks(model).state_dict(), Networks(model).state_dict()
    checkpoint = Checkpoint(
        model, nets, average, "pretrain", 7, 12.5, entry={"stage": "pretrain"}, pixels=7 * 64 * 64 * 6
    )
    checkpoint.save(folder / "pretrain" / "checkpoint.pt")
    (folder / "pretrain" / JOURNAL).write_text('{"step": 5, "gpixel": 0.1}\n')
    return folder


class TestPack:
    @pytest.mark.parametrize("bits", [16, 8])
    def test_round_trip(self, run: Path, tmp_path: Path, bits: int) -> None:
        parts = pack(run, tmp_path / "p" / "trunk", bits=bits, part_bytes=20_000)
        assert len(parts) > 2 and max(p.stat().st_size for p in parts) <= 20_000
        before = Checkpoint.load(run / "pretrain" / "checkpoint.pt")
        after = unpack(tmp_path / "p" / "trunk", tmp_path / "other")
        loaded = Checkpoint.load(tmp_path / "other" / "pretrain" / "checkpoint.pt")
        assert (loaded.step, loaded.seconds, loaded.pixels, loaded.stage) == (7, 12.5, 7 * 64 * 64 * 6, "pretrain")
        assert loaded.optimizer == {} and loaded.entry == before.entry
        assert (tmp_path / "other" / "pretrain" / JOURNAL).read_text() == '{"step": 5, "gpixel": 0.1}\n'
        assert before.average.keys() == after.average.keys() == after.nets.keys()
        for key, value in before.average.items():
            tolerance = value.abs().max() * (2.0**-11 if bits == 16 else 1.0 / 253.0)
            assert float((after.average[key] - value).abs().max()) <= float(tolerance), key
            expected = before.nets[key] if bits == 16 else value
            assert float((after.nets[key] - expected).abs().max()) <= 1.01 * float(expected.abs().max()) / 253.0, key

    def test_fewer_parts_replace_more(self, run: Path, tmp_path: Path) -> None:
        pack(run, tmp_path / "trunk.pack", part_bytes=20_000)
        parts = pack(run, tmp_path / "trunk.pack", bits=8)
        assert sorted(tmp_path.glob("trunk.pack.*")) == parts and len(parts) == 1

    @pytest.mark.parametrize("fault", ["none", "missing", "cut", "flipped", "foreign"])
    def test_damage_is_refused(self, run: Path, tmp_path: Path, fault: str) -> None:
        parts = pack(run, tmp_path / "pack", part_bytes=20_000)
        if fault == "none":
            for part in parts:
                part.unlink()
        if fault == "missing":
            parts[1].unlink()
        if fault == "cut":
            parts[-1].write_bytes(parts[-1].read_bytes()[:-1])
        if fault == "flipped":
            data = bytearray(parts[0].read_bytes())
            data[20] ^= 0xFF
            parts[0].write_bytes(data)
        if fault == "foreign":
            for part in parts[1:]:
                part.unlink()
            parts[0].write_bytes(b"something else")
        with pytest.raises(TrainingError, match=r"missing|not a pack"):
            read(tmp_path / "pack")

    def test_nothing_is_overwritten(self, run: Path, tmp_path: Path) -> None:
        pack(run, tmp_path / "pack")
        with pytest.raises(TrainingError, match="exists"):
            unpack(tmp_path / "pack", run)
        with pytest.raises(TrainingError, match="no checkpoint"):
            pack(tmp_path / "nowhere", tmp_path / "pack")
        with pytest.raises(ConfigError, match="8 or 16"):
            pack(run, tmp_path / "pack", bits=4)


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell script")
def test_rehearsal(run: Path, model: ModelConfig, tmp_path: Path) -> None:
    """unpack, train, train again on the same machine, and the trunk goes on from what came back."""
    rng = np.random.default_rng(0)
    parts = tmp_path / "parts"
    for k, folder in enumerate(("train", "val")):
        (parts / f"data.{k}" / folder).mkdir(parents=True)
        for i in range(2):
            coarse = rng.integers(0, 255, (17, 20, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((280, 270), Image.Resampling.BICUBIC)
            picture.save(parts / f"data.{k}" / folder / f"{i}.png")
    pack(run, parts / "trunk" / "trunk")
    (tmp_path / "model.json").write_text(model.to_json())
    recipe: dict[str, Any] = {
        "model": "model.json", "val_pictures": 1, "val_drawn": 1, "val_gpixel": 1.0, "log_seconds": 1,
        "autocast": "off", "val_size": 64, "val_lmbdas": [0.01], "peak_seconds": 0,
        "data": {"crop": 64, "on_device": True, "drawn_share": 0.2, "drawn_bank": 2},
        "pretrain": {"optimizer": "soap", "lr": 1e-3, "batch": 4, "warmup": 5},
    }  # fmt: skip

    def train_until(step: int) -> None:
        stage = recipe["pretrain"] | {"steps": step}
        (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"pretrain": stage}))

    environment = os.environ | {
        "STORE": str(tmp_path / "store"), "OUT": str(tmp_path / "out"), "RECIPE": str(tmp_path / "recipe.json"),
        "PARTS": str(parts), "DEVICE": "cpu", "MINUTE": "20", "MARGIN": "5", "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def stay(*arguments: str) -> str:
        command = ["bash", str(ROOT / "experiments" / "gpu_run.sh"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=330)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "4 pictures" in stay("unpack")
    train_until(12)
    said = stay("train", "300")
    assert "random_numbers: good" in said and "step: good" in said and "resumed at step 7" in said
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert "trunk.000" in files and "journal.jsonl" in files
    first = read(tmp_path / "out" / "trunk")[0]
    assert first.step == 12 and first.pixels == 64 * 64 * (7 * 6 + 5 * 4)
    train_until(15)
    stay("train", "300")
    back = unpack(tmp_path / "out" / "trunk", tmp_path / "home")
    assert back.step == 15
    rows = [json.loads(line) for line in (tmp_path / "home" / "pretrain" / JOURNAL).read_text().splitlines()]
    assert rows[0]["step"] == 5 and rows[-1]["step"] == back.step
    wrong = subprocess.run(
        ["bash", str(ROOT / "experiments" / "gpu_run.sh"), "fly"], env=environment, capture_output=True
    )
    assert wrong.returncode == 2
