"""E with its convolutions in integers: close to floats, the same with any kernels, and what a model file says of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import l2c
from l2c.errors import BackendError, ConfigError, ModelMismatchError, TrainingError
from l2c.exact.encoder import IntegerEncoder, can_run, is_faster
from l2c.exact.quantise import EncoderLayers, Ranges, encoder_inputs, watched
from l2c.models import DEFAULT_MODEL, load_model
from l2c.ops import extension
from l2c.train.exact import check_errors, encoder_errors
from l2c.transforms import BlockConfig, Places, Transform, condition
from l2c.transforms.block import BlockEncoder

SHAPES = {
    "default": BlockConfig(s=8, c=48, width=24, encoder_blocks=2, mask=False, local_gain=True),
    "companding": BlockConfig(s=8, c=40, width=32, encoder_blocks=1, mask=False, local_gain=True, companding=True),
    "odd": BlockConfig(s=2, c=7, width=10, encoder_blocks=1, mask=False, modulator_width=5),
    "no blocks": BlockConfig(s=4, c=17, width=19, encoder_blocks=0, mask=False, companding=True),
}


def conditions(*pairs: tuple[float, float]) -> Tensor:
    lmbda, mu = torch.tensor(pairs).unbind(dim=1)
    return condition(lmbda, mu)


def picture(s: int, rows: int = 7, columns: int = 11, at: int = 60) -> Tensor:
    crop = skimage.data.astronaut()[at : at + s * rows, at : at + s * columns]
    return torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 255.0


def made(config: BlockConfig) -> tuple[BlockEncoder, IntegerEncoder]:
    """An E whose every part does something, and its integers."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        transform = Transform(config).eval().requires_grad_(False)
    for name, parameter in transform.named_parameters():
        if "transform" not in name:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    encoder: Any = transform.encoder
    with watched(encoder, encoder_inputs(encoder)) as ranges:
        for lmbda, mu in ((1e-3, 0.0), (0.05, 0.5), (0.5, 1.0)):
            for at in (0, 60, 200):
                encoder(picture(config.s, 12, 12, at), conditions((lmbda, mu)))
    assert can_run(encoder)
    return encoder, IntegerEncoder(encoder, ranges)


@pytest.fixture(scope="module", params=list(SHAPES))
def both(request: pytest.FixtureRequest) -> tuple[BlockEncoder, IntegerEncoder]:
    return made(SHAPES[request.param])


def plain_sums(encoder: BlockEncoder, layers: EncoderLayers, x: Tensor, cond: Tensor) -> dict[str, Tensor]:
    """The head's sums in float64 of integers, by what `l2c.exact` says of layers: bytes x [1, I, h, w] -> [h, w, O]."""

    def sums(name: str, bytes_: Tensor) -> Tensor:
        layer = layers.convolutions[name]
        zero = torch.from_numpy(layer.zero).double()[None, :, None, None]
        radius = layer.weight.shape[2] // 2
        padded = F.pad(bytes_ - zero, (radius,) * 4) + zero
        bias = torch.from_numpy(layer.bias).double()[None, :, None, None]
        return F.conv2d(padded, torch.from_numpy(layer.weight).double()) + bias

    def scaled(name: str, values: Tensor, slope: float = 1.0, most: float = 2097152.0) -> Tensor:
        above = torch.from_numpy(layers.convolutions[name].multiplier)[None, :, None, None]
        product = values.float() * torch.where(values < 0, above * np.float32(slope), above)
        return product.clamp(-most, most).round().double()

    def bytes_of(name: str, values: Tensor) -> Tensor:
        zero = torch.from_numpy(layers.convolutions[name].zero).double()[None, :, None, None]
        return (values + zero).clamp(0.0, 255.0)

    def coarse(stream: Tensor) -> Tensor:
        return ((stream.long() + 32) >> 6).double()

    stream = scaled("first", sums("first", x), 0.1, 32767.0)
    for i, mod in enumerate(encoder.mods):
        first, second = f"blocks.{i}.conv1", f"blocks.{i}.conv2"
        inner = scaled(first, sums(first, bytes_of(first, coarse(stream))), 0.1)
        added = scaled(second, sums(second, bytes_of(second, inner)))
        scales = mod.scales(cond) * torch.from_numpy(layers.ratios[i])[None, :, None, None]  # type: ignore[operator]
        stream = ((stream + added).float() * scales).round().clamp(-32768.0, 32767.0).double()
    names = layers.convolutions.keys() & {"head", "local_gain"}
    return {name: sums(name, bytes_of(name, coarse(stream)))[0].permute(1, 2, 0) for name in names}


def test_kernels_and_threads_give_the_sums_of_the_definition(both: tuple[BlockEncoder, IntegerEncoder]) -> None:
    encoder, integers = both
    inputs = len(integers._layers.input_scale)
    rng = np.random.default_rng(0)
    cpp = extension.cpp_extension()
    for rows, columns, lmbda in ((1, 1, 0.01), (5, 41, 0.3)):
        x = rng.integers(0, 256, (rows, columns, inputs)).astype(np.uint8)
        cond = conditions((lmbda, 0.25))
        tensor = torch.from_numpy(x).double().permute(2, 0, 1)[None]
        expected = plain_sums(encoder, integers._layers, tensor, cond)
        scales = [
            mod.scales(cond)[:, :, 0, 0].numpy() * ratio  # type: ignore[operator]
            for mod, ratio in zip(encoder.mods, integers._layers.ratios)
        ]
        for cpu in ("avx512", "avx2", "neon", "scalar"):
            try:
                cpp.set_cpu(cpu)
            except BackendError:
                continue
            try:
                for threads in (1, 2):
                    head, local = integers._cpp.run(x, None, scales, threads)
                    assert np.array_equal(head, expected["head"].numpy()), cpu
                    assert (local is None) == ("local_gain" not in expected)
                    assert local is None or np.array_equal(local, expected["local_gain"].numpy()), cpu
            finally:
                cpp.set_cpu("")


def test_close_to_floats(both: tuple[BlockEncoder, IntegerEncoder]) -> None:
    encoder, integers = both
    for pair in ((1e-3, 0.0), (0.05, 0.5), (0.5, 1.0)):
        x, cond = picture(encoder.s), conditions(pair)
        expected, tau = encoder(x, cond)
        error = (integers(x, cond) - expected).abs()
        assert tau is None and float(error.mean()) < 0.06 and float(error.max()) < 2.5
        assert float(expected.abs().mean()) > 0.1  # or there is nothing to compare


def test_batches_and_places(both: tuple[BlockEncoder, IntegerEncoder]) -> None:
    encoder, integers = both
    s = encoder.s
    pictures = torch.cat([picture(s, 6, 40, at) for at in (0, 100)])
    cond = conditions((0.01, 0.0), (0.2, 1.0))
    together = integers(pictures, cond)
    for i in range(2):
        assert torch.equal(together[i], integers(pictures[i : i + 1], cond[i : i + 1])[0])
    index = torch.zeros((2, 6, 40), dtype=torch.uint8)
    index[:, :, 20:] = 1
    places = Places(torch.stack((cond, cond.flip(0))), index)
    mixed = integers(pictures, cond, places)
    reach = 2 + 2 * len(encoder.blocks)
    for i in range(2):
        for which, columns in ((0, slice(0, 20 - reach)), (1, slice(20 + reach, None))):
            alone = integers(pictures[i : i + 1], places.conditions[i, which : which + 1])[0]
            difference = (mixed[i, :, :, columns] - alone[:, :, columns]).abs()
            assert float(difference.max()) < 1e-3  # an exponential of one gain, or of one at each latent
        assert not torch.equal(mixed[i], together[i])


def test_other_networks_stay_in_floats() -> None:
    masked = Transform(BlockConfig(s=8, c=16, width=16, mask=True)).encoder
    assert not can_run(masked) and not can_run(torch.nn.Identity()) and not is_faster(masked)
    plain = Transform(BlockConfig(s=8, c=16, width=16, mask=False)).encoder
    assert can_run(plain)
    for cpu, pays in (("scalar", False), ("", extension.cpp_extension().cpu() != "scalar")):
        extension.cpp_extension().set_cpu(cpu)
        try:
            assert is_faster(plain) == pays
        finally:
            extension.cpp_extension().set_cpu("")


def test_ranges_that_do_not_fit() -> None:
    encoder, _ = made(SHAPES["odd"])
    with watched(encoder, encoder_inputs(encoder)) as ranges:
        encoder(picture(2), conditions((0.01, 0.0)))
    tensors = ranges.to_tensors()
    again = Ranges.from_tensors(tensors, encoder)
    assert again is not None
    x, cond = picture(2), conditions((0.01, 0.0))
    rounded = IntegerEncoder(encoder, again)(x, cond) - IntegerEncoder(encoder, ranges)(x, cond)
    assert float(rounded.abs().mean()) < 0.01
    assert Ranges.from_tensors({}, encoder) is None
    for name, value in (
        ("first.low", torch.zeros(3)), ("head.high", torch.full((10,), float("nan"))), ("head.low", None),
        ("blocks.0.conv2.high", torch.full((10,), 1e12)),
    ):  # fmt: skip
        broken = {key: tensor for key, tensor in tensors.items() if not key.endswith(name)}
        if value is not None:
            broken[f"exact.encoder.{name}"] = value
        with pytest.raises(ConfigError, match=f"{name.split('.')[-1]} of .* of {name.rsplit('.', 1)[0]}"):
            Ranges.from_tensors(broken, encoder)
    absurd = dataclasses.replace(ranges, high={name: values + 1e-9 for name, values in ranges.high.items()})
    assert IntegerEncoder(encoder, absurd)(x, cond).isfinite().all()


def test_bad_arguments_of_the_extension() -> None:
    _, integers = made(SHAPES["companding"])
    cpp, config = integers._cpp, SHAPES["companding"]
    x = np.zeros((2, 3, 192), np.uint8)
    scales = [np.ones((1, config.width), np.float32)]
    cpp.run(x, None, scales, 1)
    for arguments in (
        (x[..., :-1].copy(), None, scales, 1), (x.astype(np.int16), None, scales, 1), (x, None, [], 1),
        (x, None, [scales[0][:, :-1].copy()], 1), (x, np.ones((2, 3), np.int32), scales, 1), (x, None, scales, 0),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            cpp.run(*arguments)
    parts = {
        name: (layer.weight, layer.bias, layer.multiplier, layer.zero)
        for name, layer in integers._layers.convolutions.items()
    }
    native = extension.cpp_extension().IntegerEncoder
    with pytest.raises(ValueError, match=r"no layer blocks\.1\.conv1"):
        native(2, parts)
    weight, bias, multiplier, zero = parts["head"]
    with pytest.raises(ValueError, match="2\\^31"):
        native(1, parts | {"head": (weight, np.full_like(bias, 2**31 - 1), multiplier, zero)})
    with pytest.raises(ValueError, match="does not fit the encoder"):
        native(1, parts | {"head": parts["first"]})


def test_the_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, floats = l2c.Codec(), l2c.Codec(precision="float32")
    pixels = skimage.data.astronaut()[:200, :264]
    assert floats.transform_stage._integer_encoder is None
    if not is_faster(codec.transform_stage.transform.encoder):
        pytest.skip("no vector instructions here")
    assert codec.transform_stage._integer_encoder is not None
    for quality in (20, 90):
        mine, its = (one.encode(pixels, quality=quality, metric="psnr") for one in (codec, floats))
        assert mine != its and abs(len(mine) / len(its) - 1.0) < 0.02
        error = [np.square(floats.decode(data).astype(float) - pixels).mean() for data in (mine, its)]
        assert 10.0 * abs(np.log10(error[0] / error[1])) < 0.15
    assert codec.encode_batch([pixels, pixels[:, ::-1]], quality=50)[0] == codec.encode(pixels, quality=50)
    monkeypatch.setenv("L2C_BACKEND", "torch")  # which switches the fast paths off
    assert l2c.Codec().encode(pixels, quality=50) == floats.encode(pixels, quality=50)
    monkeypatch.delenv("L2C_BACKEND")
    model = load_model(DEFAULT_MODEL)
    tensors = load_file(model.path)
    kept = {name: tensor for name, tensor in tensors.items() if "exact.encoder" not in name}
    with safe_open(model.path, framework="pt") as file:
        metadata = file.metadata()
    save_file(kept, tmp_path / "without.safetensors", metadata)
    without = load_model(tmp_path / "without.safetensors")
    assert without.encoder_ranges is None and without.model_id == model.model_id
    older = l2c.Codec(without)
    assert older.precision == "exact" and older.transform_stage._integer_encoder is None
    assert older.encode(pixels, quality=50) == floats.encode(pixels, quality=50)
    save_file(tensors | {"exact.encoder.head.low": torch.zeros(3)}, tmp_path / "broken.safetensors", metadata)
    with pytest.raises(ModelMismatchError, match="the integer E has no low of"):
        load_model(tmp_path / "broken.safetensors")


def test_errors_that_are_too_large_are_refused() -> None:
    model = load_model(DEFAULT_MODEL)
    assert model.encoder_ranges is not None
    crop = torch.from_numpy(skimage.data.astronaut()[:96, :96].copy()).permute(2, 0, 1)[None]
    errors = encoder_errors(model.transform, model.config, model.encoder_ranges, [crop])
    assert 0.0 < max(errors.values()) < 0.1
    check_errors(errors)
    with pytest.raises(TrainingError, match=r"off by 0\.200 steps"):
        check_errors(errors | {900: 0.2})
