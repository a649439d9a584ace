"""Pretraining on a handful of drawn pictures: it learns, resumes exactly, and refuses what cannot be trained on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import l2c
from l2c import integer
from l2c.config import ModelConfig
from l2c.errors import ConfigError
from l2c.models import load_model
from l2c.train import export, losses, pretrain
from l2c.train.data import PictureSet


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(3):
        coarse = rng.integers(0, 255, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((352, 320), Image.Resampling.BICUBIC).save(tmp_path / "data" / f"{i}.png")
    (tmp_path / "data" / "small.png").write_bytes((tmp_path / "data" / "0.png").read_bytes())
    Image.new("RGB", (20, 20)).save(tmp_path / "data" / "small.png")
    return tmp_path / "data"


def batch(trainer: pretrain.Trainer, data: PictureSet, lr: float = 1e-3) -> dict[str, float]:
    quality, mu, b = trainer.sample_conditions(2)
    return trainer.train_step(data.batch(trainer.rng, np.array([True, False])), quality, mu, b, lr)


def test_loss_falls(folder, tiny_config: ModelConfig) -> None:
    trainer, data = pretrain.Trainer(tiny_config, 1e-3), PictureSet(folder, 64)
    quality, mu, b = torch.tensor([300, 700]), torch.tensor([0, 8]), torch.tensor([8, 8])
    x = data.batch(trainer.rng, np.array([True, False]))
    results = [trainer.train_step(x, quality, mu, b, 3e-3) for _ in range(60)]
    assert all(r["skipped"] == 0 for r in results)
    first, last = (np.mean([r["loss"] for r in part]) for part in (results[:3], results[-3:]))
    assert last < 0.7 * first


def test_resume_continues_exactly(folder, tiny_config: ModelConfig, tmp_path) -> None:
    data = PictureSet(folder, 64)
    straight = pretrain.Trainer(tiny_config, 1e-3)
    for _ in range(3):
        batch(straight, data)
    straight.save(tmp_path / "c.pt")
    expected = [batch(straight, data)["loss"] for _ in range(2)]
    resumed = pretrain.Trainer(tiny_config, 1e-3, seed=99)
    resumed.load(tmp_path / "c.pt")
    assert resumed.step == 3
    assert [batch(resumed, data)["loss"] for _ in range(2)] == pytest.approx(expected, rel=1e-5)


def test_a_bad_step_changes_nothing(folder, tiny_config: ModelConfig) -> None:
    trainer, data = pretrain.Trainer(tiny_config, 1e-3), PictureSet(folder, 64)
    batch(trainer, data)
    before = {k: v.clone() for k, v in trainer.nets.state_dict().items()}
    bias = trainer.nets.transform.decoder.first.bias
    trainer.nets.transform.decoder.first.bias = torch.nn.Parameter(torch.full_like(bias, float("nan")))
    result = batch(trainer, data)
    assert result["skipped"] == 1.0
    after = trainer.nets.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k != "transform.decoder.first.bias")


def test_loss_terms(tiny_config: ModelConfig) -> None:
    config = dataclasses.replace(tiny_config, transform=dataclasses.replace(tiny_config.transform, mask=True))
    nets = pretrain.Networks(config)
    x = torch.rand(3, 3, 64, 64)
    quality, mu, b = torch.tensor([0, 500, 1000]), torch.tensor([0, 4, 8]), torch.tensor([8, 8, 5])
    parts = losses.rate_distortion(nets.transform, nets.probability, config, x, quality, mu, b)
    assert bool(torch.isnan(parts.dissimilarity[0])) and not bool(torch.isnan(parts.dissimilarity[1:]).any())
    assert bool((parts.mask > 0).all()) and bool((parts.bpp > 0).all())
    lmbda = losses.lmbda_of_quality(quality, config)
    torch.testing.assert_close(lmbda[[0, 2]], torch.tensor([config.lmbda_min, config.lmbda_max]))
    expected = (lmbda[0] * parts.mse[0] + parts.bpp[0] + parts.mask[0]) * (lmbda[0] / 0.01) ** -0.5
    torch.testing.assert_close(parts.total[0], expected)
    parts.total.sum().backward()
    assert all(p.grad is not None for p in nets.parameters())


def test_command_line_trains_resumes_and_exports(folder, tiny_config: ModelConfig, tmp_path) -> None:
    (tmp_path / "tiny.json").write_text(tiny_config.to_json())
    (tmp_path / "val").mkdir()
    for i in range(2):
        Image.open(folder / f"{i}.png").resize((640, 600)).save(tmp_path / "val" / f"{i}.png")
    arguments = [str(tmp_path / "tiny.json"), "--data", str(folder), "--val", str(tmp_path / "val"),
                 "--out", str(tmp_path / "run"), "--minutes", "0.02", "--crop", "64", "--batch", "2",
                 "--log-seconds", "0.2", "--threads", str(torch.get_num_threads())]  # fmt: skip
    pretrain.main(arguments)
    steps = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"]
    pretrain.main([*arguments, "--decay", "--quantise"])
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] > steps > 0
    assert "step,seconds,lr,loss" in (tmp_path / "run" / "log.csv").read_text()
    target = tmp_path / "exported.safetensors"
    export.main([str(tmp_path / "run" / "checkpoint.pt"), str(target), "--val", str(tmp_path / "val")])
    codec = l2c.Codec(target)
    assert codec.decode(codec.encode(np.asarray(Image.open(folder / "0.png")))).shape == (320, 352, 3)
    assert json.loads(json.dumps(codec.model.rate_curve)) == [list(p) for p in codec.model.rate_curve]


def test_no_usable_pictures(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no pictures"):
        PictureSet(tmp_path, 64)
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="at least 64"):
        PictureSet(tmp_path, 64)


def test_training_goes_on_from_an_exported_model(tiny_config: ModelConfig, tiny_model_path) -> None:
    trainer = pretrain.Trainer(tiny_config, 1e-3, seed=5)
    trainer.load_model(tiny_model_path)
    exported = load_model(tiny_model_path)
    again = integer.from_float(trainer.nets.probability, tiny_config)
    for (name, ours), (_, theirs) in zip(again.layers(), exported.integer.layers()):
        assert np.array_equal(ours.weight, theirs.weight), name
    for key, value in exported.transform.state_dict().items():
        assert torch.equal(trainer.average.transform.state_dict()[key], value), key
