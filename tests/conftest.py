"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before PyTorch loads: as many processes as cores share them, and so do the processes that tests start.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import pytest
import torch
from command import Run
from PIL import Image

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: its kernels then run on the CPU

from l2c.cli import main
from l2c.config import ModelConfig
from l2c.entropy.multiscale import MultiscaleConfig
from l2c.transforms import BlockConfig


@pytest.fixture(autouse=True)
def _latents_of_untrained_networks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained networks lose against a picture in a few colours: tests that use them are of latents.

    But for those that are marked with `fewer_colours`.
    """
    untrained = "tiny_config" in request.fixturenames or request.module.__name__.startswith("test_compressai")
    if untrained and request.node.get_closest_marker("fewer_colours") is None:
        monkeypatch.setattr("l2c.images.palettes.Palettes.of", lambda rgb: None)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """The smallest model that has every part of the default one."""
    return ModelConfig(
        name="tiny",
        transform=BlockConfig(
            s=8,
            c=12,
            width=16,
            encoder_blocks=1,
            decoder_blocks=1,
            fine_width=8,
            mask=True,
            modulator_width=8,
        ),
        probability=MultiscaleConfig(num_scales=3, channel_groups=(4, 8), num_mixtures=3, width=16),
    )


@pytest.fixture(scope="session")
def tiny_model_path(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model file of `tiny_config`, the same weights in every run."""
    from l2c.entropy import multiscale
    from l2c.models import save_model
    from l2c.transforms import Transform

    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transform = Transform(tiny_config.transform)
        probability = multiscale.IntegerModel.from_float(tiny_config.float_model())
    save_model(path, tiny_config, transform, probability, rate_curve=[], card={"training": "none"})
    return path


@pytest.fixture(scope="session")
def drawn_picture() -> npt.NDArray[np.uint8]:
    """uint8 [50, 70, 3] with a slope, an edge and noise."""
    y, x = np.mgrid[0:50, 0:70].astype(np.float32)
    planes = np.stack([3 * x, 5 * y, 2 * (x + y)], axis=2)
    planes[10:30, 20:45] = (200, 40, 90)
    return (planes + np.random.default_rng(5).normal(0, 4, planes.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def configs() -> Path:
    """The folder of configurations that come with the project."""
    return Path(__file__).parent.parent / "configs"


@pytest.fixture
def run(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with the tiny model at hand: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("L2C_MODEL_PATH", str(tiny_model_path))
    monkeypatch.delenv("L2C_DEBUG", raising=False)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def png(tmp_path: Path, drawn_picture: npt.NDArray[np.uint8]) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(drawn_picture).save(path)
    return path


@pytest.fixture
def coded(run: Run, png: Path, tmp_path: Path) -> Path:
    """A file of the tiny model."""
    path = tmp_path / "coded.l2c"
    assert run("encode", png, path, "--model", "tiny")[0] == 0
    return path
