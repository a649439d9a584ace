"""The integer D's kernels against the plain form: equality of every pixel.

Without a GPU they run under Triton's interpreter (conftest.py), tenths of a second a layer: sizes are small.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_models import CPU, SHAPES, made, pictures, random_changes, random_sets
from numpy.typing import NDArray

import l2c
from l2c import ops
from l2c.errors import BackendError, ConfigError, L2CWarning
from l2c.exact import Changes, ExactDecoder, ExactWeights, decoder
from l2c.exact.device import DeviceDecoder
from l2c.models import load_model
from l2c.ops import extension
from l2c.train.exact import calibrate
from l2c.transforms import Transform

interpreter = pytest.importorskip("triton.runtime.interpreter")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = ops.triton_reason(DEVICE)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
SIZES = ((3, 5), (1, 1), (2, 17), (6, 4), (5, 9))  # of latents, for each kind of `random_changes`
Made = tuple[Transform, ExactWeights]


@pytest.fixture(autouse=True)
def _stale_memory() -> Iterator[None]:
    """What is not initialised is full of 127."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checks for overflow after each operation of the interpreter; they take most of the time."""
    found = getattr(interpreter, "interpreter_builder", None)
    if hasattr(getattr(found, "options", None), "sanitize_overflow"):
        monkeypatch.setattr(found, "options", dataclasses.replace(found.options, sanitize_overflow=False))


@pytest.fixture(scope="module", params=list(SHAPES))
def small(request: pytest.FixtureRequest) -> Made:
    return made(request.param)


def decoders(weights: ExactWeights, sets: torch.Tensor | None) -> tuple[ExactDecoder, ExactDecoder]:
    """The plain form in int64, and the kernels."""
    return ExactDecoder(weights, sets, CPU, "reference"), ExactDecoder(weights, sets, DEVICE, "triton")


def random_levels(rng: np.random.Generator, c: int, size: tuple[int, int], amplitude: int) -> torch.Tensor:
    return torch.from_numpy((128 + rng.integers(-amplitude, amplitude, (c, *size))).astype(np.uint8))


def check(
    both: tuple[ExactDecoder, ExactDecoder], levels: torch.Tensor, quality: int, mu: int, changes: Changes = Changes()
) -> torch.Tensor:
    """Compares their pixels."""
    expected = both[0].decode(levels, quality, mu, changes)
    assert torch.equal(both[1].decode(levels.to(DEVICE), quality, mu, changes).cpu(), expected)
    return expected


def test_pixels(small: Made, request: pytest.FixtureRequest) -> None:
    """Every kind of change, on pictures down to one latent; latents at both limits; the known answer."""
    transform, weights = small
    rng = np.random.default_rng(0)
    both = decoders(weights, random_sets(rng, transform))
    c, different = weights.config.c, set()
    for kind, size in enumerate(SIZES):
        if kind in (0, 4) or request.node.callspec.params["small"] in ("companding", "odd") or DEVICE.type == "cuda":
            levels = random_levels(rng, c, size, (3, 40, 128)[kind % 3])
            quality, mu = int(rng.integers(0, 1001)), int(rng.integers(0, 9))
            pixels = check(both, levels, quality, mu, random_changes(rng, transform, size, kind))
            different.add(pixels.numpy().tobytes())
    assert len(different) >= 2
    limits = torch.from_numpy(255 * rng.integers(0, 2, (c, 2, 8)).astype(np.uint8))
    limits[:, :, :2], limits[:, :, 6:] = 0, 255
    check(both, limits, 1000, 4)
    assert both[1].known_answer() == both[0].known_answer()


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a GPU has several blocks anyway")
def test_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and channels of several blocks, which the interpreter else has in one; a second byte's own zero."""
    monkeypatch.setattr(extension.kernels("exact"), "block_size", lambda device, size, needed: 32)
    transform, weights = made("odd")
    weights.convolutions["last"].zero[-2:] = 77
    rng = np.random.default_rng(1)
    levels, changes = random_levels(rng, weights.config.c, (4, 7), 30), random_changes(rng, transform, (4, 7), 4)
    check(decoders(weights, random_sets(rng, transform)), levels, 700, 3, changes)


def test_strides() -> None:
    _, weights = made("no modulators")
    levels = random_levels(np.random.default_rng(2), weights.config.c, (9, 8), 40)
    check(decoders(weights, None), levels[:, 1:7:2, ::3], 300, 0)


def test_saturation() -> None:
    """Products far beyond int16 in some channels of every layer, and streams beyond it."""
    _, weights = made("default")  # whose second block reads what the first one left
    rng = np.random.default_rng(5)

    def raised(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values * rng.choice([1.0, 3000.0], values.shape, p=[0.8, 0.2]).astype(np.float32)

    layers = weights.convolutions.items()
    wild = dataclasses.replace(
        weights,
        convolutions={name: dataclasses.replace(layer, multiplier=raised(layer.multiplier)) for name, layer in layers},
        ratios=tuple(map(raised, weights.ratios)),
    )
    both = decoders(wild, None)
    assert len(check(both, random_levels(rng, weights.config.c, (4, 6), 60), 500, 1).unique()) > 20


def test_sums_at_the_edges_of_pixels() -> None:
    """Products of all bytes, where one unit of the sum decides between two levels."""
    _, weights = made("no modulators")
    rng = np.random.default_rng(6)
    rows, count = len(weights.transform), 32  # 2 x 16 latents
    x = np.arange(-32768, 32768)
    coefficients, diagonal = np.empty((count, rows), np.int64), rng.integers(1 << 14, 1 << 17, rows) | 1
    for i, entry in enumerate(diagonal):
        distance = np.abs((entry * x + 256 + (1 << 21)) % (1 << 22) - (1 << 21))  # from the next edge
        distance[np.abs(entry * x) >= 127 << 22] = 1 << 22
        coefficients[:, i] = rng.permutation(x[np.argsort(distance)[:count]])
    expected = (((coefficients * diagonal + 256) >> 9) + (1 << 20)) >> 13
    kernels, transform = extension.kernels("exact"), np.diag(diagonal).astype(np.int32)
    packed = DeviceDecoder(dataclasses.replace(weights, transform=transform), DEVICE).transform
    bytes_of = np.full((4, 18, 2 * kernels.padded(rows)), 77)
    bytes_of[1:3, 1:17, :rows] = coefficients.reshape(2, 16, rows) >> 8
    bytes_of[1:3, 1:17, bytes_of.shape[2] // 2 :][..., :rows] = (coefficients.reshape(2, 16, rows) & 255) - 128
    cells = kernels.cells(2, 16, bytes_of.shape[2], DEVICE)
    cells.copy_(torch.from_numpy(bytes_of.reshape(cells.shape)))
    out = torch.empty((4, 32, 3), dtype=torch.uint8, device=DEVICE)
    kernels.exact_pixels_fwd(cells, *packed, None, out, 2)
    shown = expected.clip(0, 255).reshape(2, 16, 3, 2, 2).transpose(0, 3, 1, 4, 2).reshape(4, 32, 3)
    assert np.array_equal(out.cpu().numpy(), shown)
    assert ((shown > 0) & (shown < 255)).mean() > 0.9


def test_transforms_at_their_limits() -> None:
    """Entries of all sizes that a model file may have, in sums that come close to int32."""
    _, weights = made("no modulators")
    rng = np.random.default_rng(3)
    size = len(weights.transform)
    transform = rng.integers(-40000, 40001, (size, size))
    most = (127 << 16) - 1
    for row in transform:
        row[rng.choice(size, 3, replace=False)] = rng.choice([most, -most, 127 << 15, -(1 << 22)], 3)
    extreme = dataclasses.replace(weights, transform=transform.astype(np.int32))
    extreme.check()
    both = decoders(extreme, None)
    levels = torch.from_numpy(rng.choice([0, 100, 127, 128, 129, 255], (weights.config.c, 5, 8)).astype(np.uint8))
    pixels = torch.stack([check(both, levels, quality, 0) for quality in (0, 500)])
    assert len(pixels.unique()) > 20  # not all at the ends
    beyond = np.zeros_like(weights.transform)
    beyond[0, 0] = -(most + 1)
    with pytest.raises(ConfigError, match="transform"):
        dataclasses.replace(weights, transform=beyond).check()


def test_which_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("L2C_BACKEND", raising=False)
    _, weights = made("no modulators")
    gpu = torch.device("cuda")
    monkeypatch.setattr(extension, "triton_reason", lambda device: "")
    assert decoder._fastest(gpu) == "triton" and decoder._fastest(CPU) == "cpu"
    monkeypatch.setenv("L2C_BACKEND", "torch")
    assert decoder._fastest(gpu) == decoder._fastest(CPU) == "torch"
    monkeypatch.delenv("L2C_BACKEND")
    monkeypatch.setattr(extension, "triton_reason", lambda device: "no such thing")
    assert decoder._fastest(gpu) == "torch"
    with pytest.raises(BackendError, match="no such thing"):
        ExactDecoder(weights, None, CPU, "triton")


def test_in_a_codec(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole files by the kernels; where they fail or give other pixels, by PyTorch, and a warning says so."""
    model = load_model(tiny_model_path)
    model.exact = calibrate(model.transform, model.config, pictures(), passes=2)[0]
    model.exact_answer = ExactDecoder(model.exact, None, CPU).known_answer()
    codec = l2c.Codec(model)
    picture = np.ascontiguousarray(pictures(1, side=40)[0][0, :, :, :21].permute(1, 2, 0).numpy())
    data = codec.encode(picture, quality=60)
    monkeypatch.setattr(decoder, "_fastest", lambda device: "triton")
    by_kernels = l2c.Codec(model, device=DEVICE)
    assert backend_of(by_kernels) == "triton"
    assert np.array_equal(by_kernels.decode(data), codec.decode(data))

    def wrong(self: DeviceDecoder, levels: torch.Tensor, settings: Any) -> torch.Tensor:
        return torch.zeros(8 * levels.shape[1], 8 * levels.shape[2], 3, dtype=torch.uint8)

    for replaced, message in ((wrong, "other pixels"), (None, "fails here")):
        monkeypatch.setattr(DeviceDecoder, "__call__", replaced)
        with pytest.warns(L2CWarning, match=f"{message}.*PyTorch decodes instead"):
            fallen = l2c.Codec(model, device=DEVICE)
        assert backend_of(fallen) == "torch"
        assert np.array_equal(fallen.decode(data), codec.decode(data))


def backend_of(codec: l2c.Codec) -> str:
    assert codec.transform_stage.exact is not None
    return codec.transform_stage.exact.backend


@pytest.mark.skipif(DEVICE.type == "cpu", reason="takes a GPU")
@pytest.mark.parametrize("size", [(64, 96), (141, 250), (3, 700), (1, 1)])
def test_the_default_model_on_a_gpu(size: tuple[int, int]) -> None:
    model = load_model("l2c-default")
    assert model.exact is not None
    sets = None if model.bias_sets is None else model.bias_sets.values
    both = ExactDecoder(model.exact, sets, CPU, "cpu"), ExactDecoder(model.exact, sets, DEVICE)
    assert both[1].backend == "triton"
    both[1].check(model.exact_answer)
    rng = np.random.default_rng(4)
    for kind, amplitude in itertools.product((0, 4) if sets is not None else (0, 3), (5, 128)):
        levels = random_levels(rng, model.exact.config.c, size, amplitude)
        changes = random_changes(rng, model.transform, size, kind)
        for quality in (100, 900):
            check(both, levels, quality, 2, changes)
