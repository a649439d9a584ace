"""D in integers: backends agree in every pixel, integers stay close to floats, and nothing wraps."""

import dataclasses
import decimal
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from exact_models import CPU, LMBDA, SHAPES, made, model_config, pictures, random_changes, random_sets, random_transform

import l2c
from l2c.errors import BackendError, BitstreamError, ConfigError, ModelMismatchError, TrainingError, UnsupportedError
from l2c.exact import Changes, ExactDecoder, ExactWeights, plain
from l2c.exact.constants import condition, constants, lowered, moved, scales
from l2c.exact.encoder import IntegerEncoder
from l2c.exact.fake import fake_integers
from l2c.exact.fixed import ONE, FunctionTables
from l2c.exact.weights import FACTOR_MOST, split_transform
from l2c.format.bitstream import PIXELS, read_bitstream, write_bitstream
from l2c.models import Model, load_model, save_model
from l2c.ops import arithmetic, extension
from l2c.train.exact import Loss, calibrate, check_losses, losses
from l2c.transforms import Transform
from l2c.transforms.modulators import condition as float_condition


@pytest.fixture(scope="module", params=list(SHAPES))
def small(request: pytest.FixtureRequest) -> tuple[Transform, ExactWeights]:
    return made(request.param)


@pytest.fixture(scope="module")
def companding() -> tuple[Transform, ExactWeights]:
    return made("companding")


def cpus() -> list[str]:
    cpp, found = extension.cpp_extension(), []
    for name in ("avx512", "avx2", "neon", "scalar"):
        try:
            cpp.set_cpu(name)
        except BackendError:
            continue
        found.append(name)
    cpp.set_cpu("")
    return found


def test_backends_give_equal_pixels(small: tuple[Transform, ExactWeights]) -> None:
    transform, weights = small
    rng = np.random.default_rng(0)
    sets = random_sets(rng, transform)
    floats = ExactDecoder(weights, sets, CPU, "torch")
    slow, fast = (ExactDecoder(weights, sets, CPU, backend) for backend in ("reference", "cpu"))
    assert floats.known_answer() == slow.known_answer() == fast.known_answer()
    different = set()
    for number, size in enumerate([(1, 1), (3, 5), (2, 77), (9, 41)]):
        for kind in range(5):
            amplitude = (3, 40, 128)[(number + kind) % 3]
            levels = torch.from_numpy(
                (128 + rng.integers(-amplitude, amplitude, (weights.config.c, *size))).astype(np.uint8)
            )
            quality, mu = int(rng.integers(0, 1001)), int(rng.integers(0, 9))
            changes = random_changes(rng, transform, size, kind)
            expected = floats.decode(levels, quality, mu, changes)
            if number < 2:
                assert torch.equal(slow.decode(levels, quality, mu, changes), expected)
            for cpu in cpus():
                extension.cpp_extension().set_cpu(cpu)
                try:
                    for threads in (1, 2):
                        assert torch.equal(fast.decode(levels, quality, mu, changes, threads), expected), (cpu, kind)
                finally:
                    extension.cpp_extension().set_cpu("")
            different.add(expected.numpy().tobytes())
    assert len(different) == 20


def test_float32_carries_small_sums(
    companding: tuple[Transform, ExactWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PyTorch does on a GPU, on the CPU: float32 where sums stay below 2^24, else float64."""
    _, weights = companding
    rng = np.random.default_rng(3)
    levels = torch.from_numpy(rng.integers(0, 256, (weights.config.c, 5, 7)).astype(np.uint8))
    expected = ExactDecoder(weights, None, CPU, "reference").decode(levels, 700, 2)
    monkeypatch.setattr(arithmetic, "carrier", lambda device: torch.float32)
    seen = []
    monkeypatch.setattr(plain, "convolve_exactly", lambda x, weight: seen.append(weight.dtype) or F.conv2d(x, weight))
    with torch.backends.mkldnn.flags(enabled=False):  # whose Winograd forms round, as cuDNN's do
        decoder = plain.PlainDecoder(weights, plain.convolve_exactly)
        large = dataclasses.replace(weights.convolutions["up"], weight=np.full((8, 64, 3, 3), -128, np.int8))
        assert plain._carrier(large, CPU) == torch.float64
        settings = ExactDecoder(weights, None, CPU, "torch")._settings(700, 2, Changes(), levels.shape[1:])
        assert torch.equal(decoder(levels, settings).permute(1, 2, 0), expected)
    assert torch.float32 in seen and torch.float64 in seen  # the transform's sums are larger


def test_latents_at_their_limits(small: tuple[Transform, ExactWeights]) -> None:
    """Nothing wraps: the int64 form is the same where everything saturates."""
    _, weights = small
    rng = np.random.default_rng(1)
    c, size = weights.config.c, (4, 6)
    slow, fast = (ExactDecoder(weights, None, CPU, backend) for backend in ("reference", "cpu"))
    kinds = [np.zeros((c, *size)), np.full((c, *size), 255), 255 * rng.integers(0, 2, (c, *size))]
    for number, levels in enumerate(kinds):
        tensor = torch.from_numpy(levels.astype(np.uint8))
        for quality in (0, 1000):
            pixels = fast.decode(tensor, quality, 4 * (number % 3))
            assert torch.equal(slow.decode(tensor, quality, 4 * (number % 3)), pixels)


def float_pixels(transform: Transform, z: torch.Tensor, quality: int, mu: int) -> torch.Tensor:
    lmbda = LMBDA[0] * (LMBDA[1] / LMBDA[0]) ** (quality / 1000.0)
    cond = float_condition(torch.tensor([lmbda]), torch.tensor([mu / 8.0]))
    return transform.decoder(z, cond, None)[0].permute(1, 2, 0).mul(255.0).clamp(0.0, 255.0)


def test_close_to_floats(small: tuple[Transform, ExactWeights]) -> None:
    transform, weights = small
    decoder = ExactDecoder(weights, None, CPU)
    for picture in pictures(2):
        for quality, mu in ((150, 0), (600, 4), (1000, 8)):
            lmbda = LMBDA[0] * (LMBDA[1] / LMBDA[0]) ** (quality / 1000.0)
            cond = float_condition(torch.tensor([lmbda]), torch.tensor([mu / 8.0]))
            z = transform.quantiser.to_levels(transform.encoder(picture.float() / 255.0, cond)[0], 8, None)
            pixels = decoder.decode((z[0] + 128).to(torch.uint8), quality, mu).float()
            error = (pixels - float_pixels(transform, z, quality, mu)).abs()
            assert float(error.mean()) < 1.3  # of which rounding to whole levels is 0.25, on networks of noise


def test_scaled_is_the_block_transform_alone(companding: tuple[Transform, ExactWeights]) -> None:
    transform, weights = companding
    rng = np.random.default_rng(2)
    decoder = ExactDecoder(weights, None, CPU)
    z = torch.from_numpy(rng.integers(-3, 4, (1, weights.config.c, 5, 6)).astype(np.float32))
    levels = (z[0] + 128).to(torch.uint8)
    cond = float_condition(torch.tensor([LMBDA[0] * (LMBDA[1] / LMBDA[0]) ** 0.4]), torch.tensor([0.5]))
    for scale in (4, 8):
        expected = transform.decoder.scaled(z, cond, None, scale)[0].permute(1, 2, 0).mul(255.0).clamp(0.0, 255.0)
        assert float((decoder.scaled(levels, 400, 4, scale).float() - expected).abs().max()) <= 0.56
    octaves = np.zeros((5, 6))
    octaves[:, 3:] = 2.0
    lower = decoder.scaled(levels, 400, 4, 8, Changes(octaves=octaves))
    assert torch.equal(lower[:, :3], decoder.scaled(levels, 400, 4, 8)[:, :3])
    assert not torch.equal(lower[:, 3:], decoder.scaled(levels, 400, 4, 8)[:, 3:])


def test_functions_over_their_domain() -> None:
    tables = FunctionTables.make()
    x = np.arange(-12 * ONE, 12 * ONE, 997, dtype=np.int64)
    values = x / ONE
    assert np.abs(tables.exp(x) / np.exp(values) - 1.0).max() < 2e-6
    assert np.abs(tables.softplus(x) / ONE - np.logaddexp(0.0, values)).max() < 1e-5
    assert np.abs(tables.tanh(x) - np.tanh(values)).max() < 2e-6
    far = np.array([-(1 << 28), -(20 << 20), 20 << 20], np.int64)
    assert (tables.softplus(far)[:2] == 0).all() and tables.softplus(far)[2] == far[2]
    rising = np.arange(-4 * ONE, 4 * ONE, 3, dtype=np.int64)
    for function in (tables.exp, tables.softplus, tables.tanh):
        assert (np.diff(function(rising)) >= 0).all()
    with decimal.localcontext(decimal.Context(prec=40)):
        exact = (decimal.Decimal(2) ** (decimal.Decimal(700) / 1024)) * (1 << 30)
    assert tables.exp2[700] == int(exact.to_integral_value())


def test_conditions_scales_and_gains_of_every_trade_off(companding: tuple[Transform, ExactWeights]) -> None:
    transform, weights = companding
    decoder: Any = transform.decoder
    for quality in range(0, 1001, 13):
        for mu in (0, 3, 8):
            lmbda = LMBDA[0] * (LMBDA[1] / LMBDA[0]) ** (quality / 1000.0)
            cond = float_condition(torch.tensor([lmbda]), torch.tensor([mu / 8.0]))
            mine = condition(weights, quality, mu)
            assert np.abs(mine / ONE - cond[0].numpy()).max() < 4e-6
            for k, modulator in enumerate(decoder.mods):
                expected = modulator.scales(cond)[0, :, 0, 0].numpy() * weights.ratios[k]
                assert np.abs(scales(weights, k, mine[None])[0] / expected - 1.0).max() < 3e-5
            known = constants(weights, mine)
            gains = decoder.companding.log_gain(cond)[0, :, 0, 0].double()
            assert np.abs(known.plain * gains.exp().numpy() - 1.0).max() < 3e-5
            means = weights.is_mean
            whole = weights.bound[means] / known.plain[means]
            assert np.abs(whole - np.rint(whole)).max() < 1e-9  # or E and D disagree about grey


def same_tables(weights: ExactWeights, cond: np.ndarray) -> None:
    plain, native = (constants(weights, cond, module) for module in (None, extension.cpp_extension()))
    for field in dataclasses.fields(plain):
        first, second = getattr(plain, field.name), getattr(native, field.name)
        if first is None:
            assert second is None
            continue
        assert first.dtype == second.dtype and (first == second).all(), field.name


def test_tables_in_cpp_are_the_same(small: tuple[Transform, ExactWeights]) -> None:
    _, weights = small
    for quality in range(0, 1001, 50):
        for mu in (0, 5):
            same_tables(weights, condition(weights, quality, mu))
    for value in (-(2**40), 2**40):
        gain = dataclasses.replace(weights.gain, b2=np.full_like(weights.gain.b2, value))
        for limit in (weights.limit, np.full_like(weights.limit, 2**26 - 1), np.full_like(weights.limit, -(2**26) + 1)):
            absurd = dataclasses.replace(weights, gain=gain, limit=limit)
            same_tables(absurd, condition(absurd, 500, 4))


def test_tables_in_cpp_refuse_what_does_not_fit(companding: tuple[Transform, ExactWeights]) -> None:
    _, weights = companding
    cpp, c = extension.cpp_extension(), 5
    tables = {"exp2": weights.tables.exp2, "tail": weights.tables.tail}
    numbers = {"wanted": np.zeros(c, np.int64), "change": np.arange(3), "limit": np.zeros(c, np.int64)}
    good: dict[str, Any] = {**tables, **numbers, "is_mean": np.arange(c) == 0, "mean": np.full(c, 0.5)}
    factor, shift = cpp.exact_factors(**good)
    assert factor.shape == (c, 3) and shift.shape == (c,) and factor.max(axis=1).min() >= 1 << 22
    almost, _ = cpp.exact_factors(**good | {"mean": np.full(c, np.nextafter(1.0, 0.0))})
    assert almost[0].tolist() == 3 * [FACTOR_MOST - 1]  # and not what it is rounded to
    bad = {
        "exp2": [weights.tables.exp2[1:], weights.tables.exp2 - 1, weights.tables.exp2 * 3],
        "tail": [weights.tables.tail[1:], weights.tables.tail - 2**24],
        "wanted": [np.full(c, 2**28), np.zeros(c)],
        "change": [np.array([-(2**28)]), np.zeros(0, np.int64)],
        "limit": [np.full(c, 2**28), np.zeros(c + 1, np.int64)],
        "is_mean": [np.zeros(c + 1, bool)],
        "mean": [np.zeros(c), np.full(c, np.nan), np.full(c, np.inf), np.ones(c + 1)],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError):
                cpp.exact_factors(**good | {name: value})
    good = {"level": np.zeros((c, 256), np.int32), "plain": np.ones(c), "scale": np.ones(c, np.float32)}
    good["zero"] = np.full(c, 9, np.uint8)
    assert set(cpp.exact_first_input(**good).flat) == {9, 128}
    bad = {
        "level": [np.zeros((c, 255), np.int32), np.zeros((c, 256), np.int64)],
        "plain": [np.ones(c + 1), np.full(c, np.nan)],
        "scale": [np.full(c, np.inf, np.float32), np.full(c, np.nan, np.float32)],
        "zero": [np.zeros(c - 1, np.uint8)],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError):
                cpp.exact_first_input(**good | {name: value})


def test_lowered_and_moved(companding: tuple[Transform, ExactWeights]) -> None:
    _, weights = companding
    cond = condition(weights, 600, 4)
    octave = (cond - lowered(weights, cond, 1.0))[0] / ONE
    assert octave == pytest.approx(math.log(2.0) / 2.5, abs=2e-6)
    assert lowered(weights, cond, 0.0).tolist() == cond.tolist()
    assert lowered(weights, cond, 1000.0)[0] == condition(weights, 0, 4)[0]
    assert moved(cond, -3).tolist() == [cond[0] - 3 * ONE // 64, cond[1]]


def tampered(weights: ExactWeights, change: Callable[[dict[str, torch.Tensor]], None]) -> ExactWeights | None:
    tensors = {name: tensor.clone() for name, tensor in weights.to_tensors().items()}
    change(tensors)
    return ExactWeights.from_tensors(tensors, weights.config)


def test_absurd_gains_give_finite_tables(companding: tuple[Transform, ExactWeights]) -> None:
    _, weights = companding
    for value in (-(2**40), 2**40):
        gain = dataclasses.replace(weights.gain, b2=np.full_like(weights.gain.b2, value))
        for limit in (weights.limit, np.full_like(weights.limit, 2**26 - 1), np.full_like(weights.limit, -(2**26) + 1)):
            known = constants(dataclasses.replace(weights, gain=gain, limit=limit), condition(weights, 500, 4))
            assert ((known.factor >= 0) & (known.factor < 1 << 23)).all()
            assert np.isfinite(known.factor_unit).all() and np.isfinite(known.plain).all()


def test_tensors_there_and_back_and_their_checks(companding: tuple[Transform, ExactWeights]) -> None:
    _, weights = companding
    again = tampered(weights, lambda tensors: None)
    assert again is not None
    assert ExactDecoder(again, None, CPU).known_answer() == ExactDecoder(weights, None, CPU).known_answer()
    assert ExactWeights.from_tensors({}, weights.config) is None

    def put(name: str, value: Any) -> Callable[[dict[str, torch.Tensor]], None]:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"exact.{name}"].flatten()[0] = value

        return change

    broken = {
        "first.bias": (2**31 - 1, "int32"),
        "head.multiplier": (float("nan"), "finite"),
        "modulators.0.ratio": (float("inf"), "finite"),
        "transform": (2**31 - 1, "int32"),
        "tables.exp2": (-1, "tables"),
        "tables.tail": (1 << 25, "tables"),
        "quality": (2**60, "range"),
        "limit": (2**40, "bounds"),
        "up.zero": (77, "zero points"),
    }
    for name, (value, message) in broken.items():
        with pytest.raises(ConfigError, match=message):
            tampered(weights, put(name, value))
    with pytest.raises(ConfigError, match=r"modulators\.0 has sums beyond int64"):
        tampered(weights, lambda tensors: [tensors[f"exact.modulators.0.{w}"].fill_(2**31 - 1) for w in ("w1", "w2")])
    with pytest.raises(ConfigError, match=r"up\.bias"):
        tampered(weights, lambda tensors: tensors.pop("exact.up.bias"))
    with pytest.raises(ConfigError, match="input_scale"):
        tampered(weights, lambda tensors: tensors.update({"exact.input_scale": torch.zeros(3)}))
    sets = torch.full((1, 2, sum(len(c.bias) for n, c in weights.convolutions.items() if n != "local_gain")), 1e9)
    with pytest.raises(ConfigError, match="bias sets"):
        ExactDecoder(weights, sets, CPU)
    with pytest.raises(ConfigError, match="do not fit"):
        ExactDecoder(weights, sets[..., :-1], CPU)
    with pytest.raises(BackendError, match="other pixels"):
        ExactDecoder(weights, None, CPU).check(1)
    with pytest.raises(BackendError, match="no backend"):
        ExactDecoder(weights, None, CPU, "cuda")


def test_cpp_refuses_what_does_not_fit(companding: tuple[Transform, ExactWeights]) -> None:
    _, weights = companding
    decoder = ExactDecoder(weights, None, CPU, "cpu")
    cpp, c = decoder._cpp, weights.config.c
    known = constants(weights, condition(weights, 500, 0))
    levels = np.zeros((c, 2, 3), np.uint8)
    good: dict[str, Any] = {
        "levels": levels, "level": known.level, "constants_map": None, "input": known.input[None],
        "factor": known.factor[None], "factor_unit": known.factor_unit[None], "head": known.head[None],
        "last": None if known.last is None else known.last[None], "scale_map": None,
        "scales": [scales(weights, k, condition(weights, 500, 0)[None]) for k in range(len(weights.modulators))],
        "bias_map": None, "biases": None, "threads": 1,
    }  # fmt: skip
    cpp.run(**good)
    bad = {
        "levels": [levels[:-1], levels.astype(np.int16), levels[0]],
        "level": [known.level[:-1]],
        "factor": [known.factor[None, :, :-1]],
        "constants_map": [np.ones((2, 3), np.int32), np.full((2, 3), -1, np.int32), np.zeros((3, 2), np.int32)],
        "scales": [good["scales"][:-1], [part[:, :-1] for part in good["scales"]]],
        "biases": [np.zeros((1, 3), np.int32)],
        "threads": [0],
    }
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError):
                cpp.run(**(good | {name: value}))
    high, low = split_transform(weights.transform)
    layers = {
        name: (layer.weight, layer.bias, layer.multiplier, layer.zero) for name, layer in weights.convolutions.items()
    }
    make = extension.cpp_extension().ExactDecoder
    blocks = weights.config.decoder_blocks
    for name in ("first", "head", "up"):
        short = {key: value for key, value in layers.items() if key != name}
        if name != "up":
            with pytest.raises(ValueError, match="no layer"):
                make(8, c, blocks, short, high, low)
        with pytest.raises(ValueError):
            make(8, c, blocks, layers | {name: layers["fine_block.conv1"]}, high, low)
    huge = np.full_like(layers["first"][1], 2**31 - 1)
    with pytest.raises(ValueError, match=r"2\^31"):
        make(8, c, blocks, layers | {"first": (layers["first"][0], huge, *layers["first"][2:])}, high, low)
    with pytest.raises(ValueError, match=r"2\^31"):
        make(8, c, blocks, layers, np.full_like(high, 32767), low)


# --- in a codec ------------------------------------------------------------------------------------------------------


def test_the_default_model_has_one_and_uses_it() -> None:
    codec = l2c.Codec()
    assert codec.precision == "exact"
    model = codec.model
    assert model.exact is not None
    for backend in ("cpu", "torch"):
        values = None if model.bias_sets is None else model.bias_sets.values
        ExactDecoder(model.exact, values, CPU, backend).check(model.exact_answer)
    picture = skimage.data.coffee()[:300, :500]
    reference = l2c.Codec(precision="float32")
    for quality in (20, 90):
        data = codec.encode(picture, quality=quality)
        exact, floats = (c.decode(data).astype(int) for c in (codec, reference))
        assert np.abs(exact - floats).mean() < 0.45 and np.abs(exact - floats).max() <= 8
        losses_of = [10 * math.log10(((pixels - picture) ** 2).mean()) for pixels in (exact, floats)]
        assert losses_of[0] - losses_of[1] < 0.04  # dB
        assert codec.verify(data) == reference.verify(data)


def test_pixels_do_not_depend_on_how_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.ascontiguousarray(np.tile(skimage.data.coffee(), (1, 2, 1))[:160, :640])
    codec = l2c.Codec()
    data = codec.encode(picture, quality=40, tile=512, effort=l2c.Effort(sets=2, steps=1))
    whole = codec.decode(data)
    assert np.array_equal(codec.decode(data, region=(333, 50, 610, 91)), whole[50:91, 333:610])
    assert all(np.array_equal(part, whole) for part in codec.decode_batch([data, data]))
    monkeypatch.setattr(codec.transform_stage, "chunk", 512)
    assert np.array_equal(codec.decode(data), whole)
    monkeypatch.setenv("L2C_BACKEND", "torch")
    slow = l2c.Codec()
    assert slow.transform_stage.exact is not None and slow.transform_stage.exact.backend == "torch"
    assert np.array_equal(slow.decode(data), whole)
    half = codec.decode(data, scale=2).astype(float)
    squares = whole.reshape(80, 2, 320, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - squares).max() <= 0.5


def test_flat_and_hard_pictures() -> None:
    """What integers cost on pictures at the ends of the range; where D itself goes astray, they go less far."""
    codec, floats = l2c.Codec(), l2c.Codec(precision="float32")
    rng = np.random.default_rng(0)
    checker = np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((8, 8)))[..., None].repeat(3, axis=2) * 255
    hard = [np.full((64, 64, 3), colour) for colour in ((255, 255, 255), (0, 255, 255))]
    hard += [
        checker,
        rng.integers(0, 256, (64, 96, 3)),
        np.repeat([0, 255], [30, 34])[:, None, None].repeat(64, 1).repeat(3, 2),
    ]
    for picture in hard:
        pixels = picture.astype(np.uint8)
        for quality in (5, 90):
            data = codec.encode(pixels, quality=quality, lossless="never")
            errors = [max(((c.decode(data).astype(int) - picture) ** 2).mean(), 0.7) for c in (codec, floats)]  # 50 dB
            assert 10 * math.log10(errors[0] / errors[1]) < 1.0  # dB


def test_crc_of_pixels(run: Any, png: Path, tmp_path: Path) -> None:
    codec = l2c.Codec()
    picture = skimage.data.astronaut()[:72, :88]
    plain = codec.encode(picture, quality=30, effort=l2c.Effort(sets=2))
    data = codec.encode(picture, quality=30, effort=l2c.Effort(sets=2), pixels_crc=True)
    assert len(data) == len(plain) + 14
    expected = zlib.crc32(codec.decode(data).tobytes())
    verified = codec.verified([data, plain], pixels=True)
    assert [part.pixels_crc32 for part in verified] == [expected] * 2
    assert verified[0].latents_sha256 == codec.verify(data) and codec.verified([data])[0].pixels_crc32 is None
    stream = read_bitstream(data)
    sections = {kind: bytes(body) for kind, body in stream.metadata.items()} | {PIXELS: bytes(4)}
    payloads, used = [bytes(part) for part in stream.payloads], [part.channels for part in stream.tiles]
    wrong = write_bitstream(stream.header, payloads, used, sections)
    assert np.array_equal(codec.decode(wrong), codec.decode(data))
    with pytest.raises(BitstreamError, match="section PIXELS"):
        codec.verified([wrong], pixels=True)
    with pytest.raises(UnsupportedError, match="precision 'exact'"):
        l2c.Codec(precision="float32").verified([data], pixels=True)
    with pytest.raises(UnsupportedError, match="pixels_crc"):
        l2c.Codec(precision="float32").encode(picture, pixels_crc=True)
    flat = codec.encode_detailed(np.full((40, 50, 3), 9, np.uint8), bpp=0.5, pixels_crc=True)
    assert flat.lossless
    assert codec.verified([flat.data], pixels=True)[0].pixels_crc32 == zlib.crc32(bytes([9]) * 6000)
    target = tmp_path / "a.l2c"
    assert run("encode", png, target, "--pixels-crc", "--quality", "20", "--lossless", "never")[0] == 0
    status, out, _ = run("verify", target, "--pixels")
    assert status == 0 and "pixels_crc32 " in out
    status, out, _ = run("verify", target, "--json")
    assert status == 0 and "pixels_crc32" not in out


def test_models_without_integers(tiny_model_path: Path, tmp_path: Path) -> None:
    codec = l2c.Codec(str(tiny_model_path))
    assert codec.precision == "float32"
    with pytest.raises(UnsupportedError, match="no integer D"):
        l2c.Codec(str(tiny_model_path), precision="exact")
    model = load_model(tiny_model_path)
    target = tmp_path / tiny_model_path.name
    weights, _ = calibrate(model.transform, model.config, pictures(), passes=4)
    assert saved(model, target, weights) == model.model_id  # its files are read by both
    again = load_model(target)
    assert again.exact is not None and l2c.Codec(str(target)).precision == "exact"
    data = codec.encode(skimage.data.astronaut()[:64, :64], quality=50)
    assert l2c.Codec(str(target)).decode(data).shape == (64, 64, 3)
    again.exact_answer ^= 1
    with pytest.raises(BackendError, match="other pixels"):
        l2c.Codec(again, precision="exact")
    with pytest.warns(l2c.L2CWarning, match="other pixels.*float32"):
        fallen = l2c.Codec(again)
    assert fallen.precision == "float32" and np.array_equal(fallen.decode(data), codec.decode(data))


def saved(model: Model, target: Path, weights: ExactWeights) -> bytes:
    return save_model(target, model.config, model.transform, model.integer, model.rate_curve, exact=weights)


def test_a_broken_integer_d_is_a_broken_model(tiny_model_path: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_path)
    weights, _ = calibrate(model.transform, model.config, pictures(), passes=2)
    narrow = dataclasses.replace(weights, input_scale=weights.input_scale[:-1])
    target = tmp_path / "broken.safetensors"
    with pytest.raises((ValueError, ConfigError, RuntimeError)):
        saved(model, target, narrow)  # its known answer cannot be computed
    bound = dataclasses.replace(weights, limit=weights.limit + (1 << 30))
    saved(model, target, bound)
    with pytest.raises(ModelMismatchError, match="impossible bounds"):
        load_model(target)


def test_a_loss_that_is_too_large_is_refused(companding: tuple[Transform, ExactWeights]) -> None:
    transform, weights = companding
    found = losses(transform, model_config(SHAPES["companding"]), weights, pictures(1))
    assert check_losses(found) < 0.1
    with pytest.raises(TrainingError, match=r"loses 0\.200 dB at quality 70"):
        check_losses([Loss(300, 30.0, 30.0), Loss(700, 35.0, 34.8)])


def test_large_products_that_a_modulator_makes_small() -> None:
    """Trained blocks do that: what they add is far beyond the bytes that the next layer reads."""
    shape = dataclasses.replace(SHAPES["default"], mask=False)
    transform, config = random_transform(shape), model_config(shape)
    networks: list[Any] = [transform.encoder, transform.decoder]
    for network in networks:
        network.blocks[0].conv2.weight.mul_(20000.0)
        network.mods[0].fc2.weight.zero_()
        network.mods[0].fc2.bias.fill_(math.log(math.expm1(1.0 / 20000.0)))
    weights, ranges = calibrate(transform, config, pictures(), passes=18)
    decoder, integers = ExactDecoder(weights, None, CPU), IntegerEncoder(networks[0], ranges)
    cond, quality = float_condition(torch.tensor([0.01]), torch.tensor([0.0])), 500
    assert LMBDA[0] * LMBDA[1] == pytest.approx(0.01**2)
    for picture in pictures(2):
        x = picture.float() / 255.0
        y = networks[0](x, cond)[0]
        assert float((integers(x, cond) - y).abs().mean()) < 0.012
        z = transform.quantiser.to_levels(y, 8, None)
        pixels = decoder.decode((z[0] + 128).to(torch.uint8), quality, 0).float()
        assert float((pixels - float_pixels(transform, z, quality, 0)).abs().mean()) < 1.0


def test_products_beyond_every_limit(companding: tuple[Transform, ExactWeights]) -> None:
    """Multipliers that nothing was calibrated for: all kernels saturate where the definition does."""
    _, weights = companding
    rng = np.random.default_rng(7)
    factors = {
        name: rng.choice([1.0, 3e3, 1e6], layer.multiplier.shape, p=[0.7, 0.2, 0.1]).astype(np.float32)
        for name, layer in weights.convolutions.items()
    }
    wild = dataclasses.replace(
        weights,
        convolutions={
            name: dataclasses.replace(layer, multiplier=layer.multiplier * factors[name])
            for name, layer in weights.convolutions.items()
        },
        ratios=tuple((ratio * rng.choice([1e-4, 1.0], ratio.shape)).astype(np.float32) for ratio in weights.ratios),
    )
    levels = torch.from_numpy(rng.integers(68, 188, (weights.config.c, 4, 9)).astype(np.uint8))
    expected = ExactDecoder(wild, None, CPU, "reference").decode(levels, 500, 1)
    assert len(expected.unique()) > 50
    fast = ExactDecoder(wild, None, CPU, "cpu")
    for cpu in cpus():
        extension.cpp_extension().set_cpu(cpu)
        try:
            assert torch.equal(fast.decode(levels, 500, 1), expected), cpu
        finally:
            extension.cpp_extension().set_cpu("")


def test_fake_integers(companding: tuple[Transform, ExactWeights]) -> None:
    """In floats D errs about as its integer form does, gradients pass, and nothing is left behind."""
    transform, weights = companding
    decoder: Any = transform.decoder
    integers, cond = ExactDecoder(weights, None, CPU), float_condition(torch.tensor([0.01]), torch.tensor([0.5]))
    z = transform.quantiser.to_levels(transform.encoder(pictures(1)[0].float() / 255.0, cond)[0], 8, None)
    plain, names = decoder(z, cond), list(decoder.state_dict())
    in_integers = integers.decode((z[0] + 128).to(torch.uint8), 500, 4).float().permute(2, 0, 1)[None]
    with fake_integers(decoder):
        rounded = decoder(z, cond)
    seen = (one.mul(255.0).clamp(0.0, 255.0) for one in (rounded, in_integers / 255.0))
    errors = [float((one - plain.mul(255.0).clamp(0.0, 255.0)).square().mean()) for one in seen]
    assert 0.1 < errors[0] / (errors[1] - 1.0 / 12.0) < 1.5  # pixels in integers are rounded, too
    weight = decoder.blocks[0].conv1.weight.requires_grad_(True)
    z.requires_grad_(True)
    with pytest.raises(KeyError), fake_integers(decoder):
        decoder(z, cond).square().mean().backward()
        raise KeyError
    gradients = [weight.grad.clone(), z.grad.clone()]  # type: ignore[union-attr]
    weight.grad = z.grad = None
    again = decoder(z, cond)
    assert torch.equal(again, plain) and list(decoder.state_dict()) == names
    again.square().mean().backward()
    for mine, its in zip(gradients, (weight.grad, z.grad)):
        assert float(F.cosine_similarity(mine.flatten(), its.flatten(), dim=0)) > 0.9
    weight.requires_grad_(False)
    weight.grad = None
