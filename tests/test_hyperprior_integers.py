"""The hyperprior family in integers: equal everywhere, exact at its edges, close to the floats, guarded at load."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hyperprior_levels import random_level, some_latents, some_side

from l2c import ops
from l2c.architectures import ARCHITECTURES, tenths_of
from l2c.entropy import FAMILIES
from l2c.entropy.coder import DecodingJob, EncodingJob, ObservingJob, Tables
from l2c.entropy.hyperprior import HyperpriorConfig, HyperpriorIntegers, HyperpriorModel, quantise
from l2c.entropy.hyperprior.integer_weights import HyperLayer, IntegerLevel, groups, side_shape, tables_of
from l2c.errors import BackendError, BitstreamError, ModelMismatchError
from l2c.format.levels import OperatingPoint
from l2c.ops import reference
from l2c.ops.contract import (
    CONTEXT_TAPS,
    DIGIT_INV_SCALE,
    DIGIT_MEAN,
    DIGIT_WEIGHT,
    IntegerLayer,
)

core = ops.cpp_extension()

N, M = 6, 9
QUALITY = 3
POINT = OperatingPoint(tenths_of(QUALITY), 0, 8)
# All six, and those that have means once more, with latents that are rounded from them.
VARIANTS = [(name, "whole") for name in ARCHITECTURES] + [
    (name, "mean") for name in ("mbt2018-mean", "mbt2018", "cheng2020-anchor")
]
SIZES = ((1, 1), (1, 7), (5, 3), (7, 2), (9, 8))
Latents = npt.NDArray[np.int16]


def model_of(*levels: IntegerLevel, architecture: str, qualities: tuple[int, ...] = (QUALITY,)) -> HyperpriorIntegers:
    """A model without h_a: its jobs must have their hyper-latents."""
    rounding = "mean" if levels[0].fraction else "whole"
    config = HyperpriorConfig(architecture, max(levels[0].n, 1), qualities, rounding)
    return HyperpriorIntegers(config, levels[0].c, levels, [])


@pytest.fixture(scope="module")
def models() -> dict[tuple[str, str], HyperpriorIntegers]:
    return {
        (name, rounding): model_of(random_level(name, N, M, rounding=rounding), architecture=name)
        for name, rounding in VARIANTS
    }


@pytest.fixture(params=["scalar", "avx2", "avx512", "neon"])
def cpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per CPU path; skips paths that this machine lacks."""
    try:
        core.set_cpu(request.param)
    except BackendError as error:
        pytest.skip(str(error))
    yield request.param
    core.set_cpu("")


def encode(
    model: HyperpriorIntegers,
    latents: Latents,
    backend: str = "cpu",
    used: int | None = None,
    threads: int = 1,
    point: OperatingPoint = POINT,
) -> tuple[bytes, Latents]:
    """The stream, and the latents as they come out."""
    level, size = model.level_of(point), latents.shape[1:]
    used = model.c if used is None else used
    job = EncodingJob(*size, point, used, latents, side=some_side(level, *size))
    (found,) = model.code([job], backend, threads=threads)
    return job.encoder.finish(), found


def decode(
    model: HyperpriorIntegers,
    stream: bytes,
    size: tuple[int, int],
    backend: str = "cpu",
    used: int | None = None,
    threads: int = 1,
    point: OperatingPoint = POINT,
) -> Latents:
    job = DecodingJob(*size, point, model.c if used is None else used, stream)
    (found,) = model.code([job], backend, threads=threads)
    job.decoder.finish()
    return found


class Observer:
    """Notes what it is shown."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def mixture(self, *arrays: Any) -> None:
        self.calls.append(arrays)

    def table(self, symbols: Any, rows: Any, tables: Tables) -> None:
        self.calls.append((symbols, rows, tables.cdf, tables.sizes, np.array(tables.precision)))

    def raw(self, symbols: Any) -> None:
        raise AssertionError("nothing here is equally likely")


def shown(model: HyperpriorIntegers, latents: Latents, backend: str, used: int) -> list[tuple[Any, ...]]:
    size, observer = latents.shape[1:], Observer()
    side = some_side(model.levels[0], *size)
    model.code([ObservingJob(*size, POINT, used, latents, observer, side=side)], backend)
    return observer.calls


# --- equal everywhere -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rounding"), VARIANTS)
def test_backends_agree(models: Any, name: str, rounding: str, cpu: str) -> None:
    """Streams, latents and every parameter shown: reference, PyTorch and C++, with escapes and unused channels."""
    model = models[name, rounding]
    for height, width in SIZES:
        for used in (M, 7, 1) if rounding == "whole" else (7,):
            latents = some_latents(model.levels[0], height, width, seed=height)
            latents[used:] = 0
            stream, found = encode(model, latents, "reference" if cpu == "scalar" else "torch", used)
            if rounding == "whole":
                assert np.array_equal(found, latents)
            else:  # half a step from the means at most
                assert np.abs(found.astype(int) - latents).max() <= 8
            for backend in ("cpu", "torch") if cpu == "scalar" else ("cpu",):
                other, its = encode(model, latents, backend, used)
                assert other == stream
                assert its.dtype == np.int16 and np.array_equal(its, found)
                assert np.array_equal(decode(model, stream, (height, width), backend, used), found)
            if cpu != "scalar" or used != 7:
                continue
            expected = shown(model, latents, "reference", used)
            for backend in ("cpu", "torch"):
                for ours, theirs in zip(shown(model, latents, backend, used), expected, strict=True):
                    for a, b in zip(ours, theirs, strict=True):
                        assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize(("name", "rounding"), [("mbt2018", "whole"), ("mbt2018", "mean"), ("mbt2018-mean", "whole")])
def test_sizes_and_threads(models: Any, name: str, rounding: str, cpu: str) -> None:
    """Latents of pictures from 1x1 to 97x131 pixels, and a larger tile, on one thread and on three."""
    model = models[name, rounding]
    sizes = {(-(-h // 16), -(-w // 16)) for h in (1, 16, 17, 50, 97) for w in (1, 33, 64, 65, 131)} | {(24, 40)}
    for height, width in sorted(sizes):
        latents = some_latents(model.levels[0], height, width, seed=width)
        stream, found = encode(model, latents)
        if (height, width) != (24, 40):
            assert encode(model, latents, "torch")[0] == stream
        assert encode(model, latents, threads=3)[0] == stream
        for threads in (1, 3):
            assert np.array_equal(decode(model, stream, (height, width), threads=threads), found)


@pytest.mark.parametrize("name", ["mbt2018", "cheng2020-anchor", "bmshj2018-hyperprior"])
def test_widths(name: str, cpu: str) -> None:
    """Channels that fill blocks of vectors, or miss them by one."""
    for n, m in ((1, 1), (3, 16), (16, 17), (17, 33)):
        if name.startswith("cheng"):
            n = m
        model = model_of(random_level(name, n, m, seed=m), architecture=name)
        latents = some_latents(model.levels[0], 6, 11)
        stream, found = encode(model, latents, "torch")
        assert encode(model, latents)[0] == stream
        assert np.array_equal(decode(model, stream, (6, 11)), found)


def test_tiles_of_several_qualities() -> None:
    """Each is coded by the level of its own quality, whatever else is coded in the same call."""
    qualities = (1, 4, 5)
    levels = [random_level("mbt2018", N, M, seed=quality) for quality in qualities]
    model = model_of(*levels, architecture="mbt2018", qualities=qualities)
    points = [OperatingPoint(tenths, 0, 8) for tenths in (0, tenths_of(4), tenths_of(5) - 1, 1000, 200)]
    assert [model.index_of(point) for point in points] == [0, 1, 2, 2, 0]
    sizes = [(3 + i, 9 - i) for i in range(len(points))]
    tiles = [some_latents(levels[0], *size, seed=i) for i, size in enumerate(sizes)]
    streams = [encode(model, tile, "torch", point=point)[0] for tile, point in zip(tiles, points)]
    for threads in (1, 2, 4):
        jobs = [
            EncodingJob(*size, point, M, tile, side=some_side(levels[0], *size))
            for size, point, tile in zip(sizes, points, tiles)
        ]
        model.code(jobs, "cpu", threads=threads)
        assert [job.encoder.finish() for job in jobs] == streams
        readers = [DecodingJob(*size, point, M, part) for size, point, part in zip(sizes, points, streams)]
        for found, tile in zip(model.code(readers, "cpu", threads=threads), tiles):
            assert np.array_equal(found, tile)


def test_every_sigma_and_mean(cpu: str) -> None:
    """All values that a head can have for sigma, and as many means: C++ makes the mixtures of the definition."""
    rng = np.random.default_rng(3)
    channels = 4096
    heads = np.arange(-32768, 32768).reshape(-1, channels)
    for fraction in (0, 4):
        for sigma in heads[8 if fraction == 0 else 13 :: 1 if fraction == 0 else 3]:
            mean = rng.integers(-32768, 32768, channels)
            level = constant_level(sigma, mean, fraction)
            model = model_of(level, architecture="mbt2018-mean")
            latents = np.zeros((channels, 1, 1), np.int16)
            (_, got) = shown(model, latents, "cpu", channels)[:2]
            *expected, k = reference.gaussian_mixture(sigma.astype(np.int64), mean.astype(np.int64), fraction)
            for ours, plain in zip(got[1:], expected):
                assert np.array_equal(ours, plain)
            d = (-k + ((1 << fraction) >> 1)) >> fraction
            assert np.array_equal(got[0], d.clip(-128, 127) + 128)


def constant_level(sigma: Any, mean: Any, fraction: int) -> IntegerLevel:
    """A level whose head is the same everywhere."""

    def layer(outputs: int, inputs: int, bias: Any) -> IntegerLayer:
        weight = np.zeros((outputs, inputs, 3, 3), np.int8)
        return IntegerLayer(weight, np.broadcast_to(bias, (outputs,)).astype(np.int32), np.ones(outputs, np.float32))

    head = np.concatenate((sigma, mean))
    hyper = (
        HyperLayer(layer(4, 2, 1), True),
        HyperLayer(layer(4, 1, 1), True),
        HyperLayer(layer(len(head), 1, head), False),
    )
    table = (np.arange(257, dtype=np.uint32) * 256)[None]
    c, none = len(sigma), np.zeros((0, 257), np.uint32)
    shift, offset = np.zeros(c, np.uint8), np.zeros(c, np.int16)
    return IntegerLevel("mean", table, hyper, None, shift, (), offset, none, fraction)


def test_dense_convolutions(cpu: str) -> None:
    """Tiles of other sizes give the same integers, at every width and number of blocks."""
    rng = np.random.default_rng(4)
    for outputs in (3, 16, 33, 64, 100, 129):
        for kernel, offset in ((1, 0), (1, 24), (3, 0)):
            weight = rng.integers(-128, 128, (outputs, 24, kernel, kernel)).astype(np.int8)
            bias = rng.integers(-9999, 9999, outputs).astype(np.int32)
            layer = core.IntConv(weight, bias, np.full(outputs, 1e-3, np.float32), offset)
            for width in (1, 5, 8, 13, 14, 15, 29, 61):
                x = rng.integers(0, 256, (2, width, 24)).astype(np.uint8)
                x[:, rng.random(width) < 0.3, :16] = 128 if offset else 0
                for out in ("u8", "i16"):
                    assert np.array_equal(layer.run(x, out=out, dense=True), layer.run(x, out=out))


def test_groups_are_in_an_order_that_can_be_decoded() -> None:
    """Every position once, and its taps before it."""
    for height in range(1, 6):
        for width in range(1, 9):
            seen: set[tuple[int, int]] = set()
            for rows, columns in groups("context", height, width):
                assert len(rows) and (np.diff(rows) > 0).all()
                here = list(zip(rows.tolist(), columns.tolist()))
                for y, x in here:
                    taps = {(y + dy, x + dx) for dy, dx in CONTEXT_TAPS}
                    assert all(tap in seen for tap in taps if tap[0] >= 0 and 0 <= tap[1] < width)
                seen.update(here)
            assert seen == {(y, x) for y in range(height) for x in range(width)}
            ((rows, columns),) = groups("mean", height, width)
            assert list(zip(rows, columns)) == sorted(seen)


def test_requantise_beyond_2_to_the_24() -> None:
    """float32(sum) rounds to even there, in the definition as in the machine."""
    rng = np.random.default_rng(0)
    total = rng.integers(-(2**31) + 1, 2**31, (40, 30, 30))
    total[:, 0] = (rng.integers(0, 2**24, (40, 30)) << 6) + 32  # ties
    multiplier = np.exp2(rng.uniform(-26, -10, 40)).astype(np.float32)
    expected = np.rint(total.astype(np.float32) * multiplier[:, None, None]).astype(np.int64)
    assert np.array_equal(reference.requantise(total, multiplier), expected)


def test_large_sums(cpu: str) -> None:
    """Sums near 2^31 do not wrap on any path, and are rounded alike."""
    rng = np.random.default_rng(1)
    weight = rng.choice(np.array([-127, 127], np.int8), (32, 4096, 1, 1))
    weight[:8] = 127
    bias = rng.integers(-(2**30), 2**30, 32).astype(np.int32)
    multiplier = np.full(32, 2.0**-16, np.float32)
    x = rng.integers(0, 256, (1, 7, 4096)).astype(np.uint8)
    x[0, 0] = 255
    layer = IntegerLayer(weight, bias, multiplier)
    expected = reference.integer_conv(x.transpose(2, 0, 1), layer).clip(-32768, 32767).transpose(1, 2, 0)
    assert np.array_equal(core.IntConv(weight, bias, multiplier).run(x, out="i16"), expected)
    assert np.abs(expected).max() > 2**13


# --- escapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rounding"), VARIANTS)
def test_everything_escapes(models: Any, name: str, rounding: str, cpu: str) -> None:
    """Every latent at the limits, both ways, and at the first values that escape."""
    model = models[name, rounding]
    level = model.levels[0]
    for value in (level.most, 127 << level.fraction, 128 << level.fraction, 382 << level.fraction):
        latents = np.full((M, 3, 5), value, np.int16)
        latents[::2, ::2] = -value
        stream, found = encode(model, latents)
        assert encode(model, latents, "reference")[0] == stream
        for backend in ("cpu", "torch", "reference"):
            assert np.array_equal(decode(model, stream, (3, 5), backend), found)


def digits(encoder: Any, values: list[int]) -> None:
    for value in values:
        encoder.mixture(
            np.array([value], np.uint8), np.full((1, 1), DIGIT_WEIGHT, np.uint16),
            np.full((1, 1), DIGIT_MEAN, np.int16), np.full((1, 1), DIGIT_INV_SCALE, np.uint16),
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_digits_end(backend: str) -> None:
    """32 digits at most, whatever a stream says."""
    level = random_level("bmshj2018-factorized", N, 1)
    model = model_of(level, architecture="bmshj2018-factorized")
    for count, last, symbol in ((0, 7, 255), (31, 254, 255), (31, 254, 0), (31, 255, 255), (40, 0, 0)):
        job = EncodingJob(1, 1, POINT, 1, np.zeros((1, 1, 1), np.int16))
        job.encoder.table(np.array([symbol], np.uint8), np.zeros(1, np.int32), tables_of(level.y_cdf))
        digits(job.encoder, [255] * count + [last])
        if count + (last == 255) >= 32:
            with pytest.raises(BitstreamError, match="digits"):
                decode(model, job.encoder.finish(), (1, 1), backend)
            continue
        expected = level.offset[0] + (127 + 255 * count + last if symbol else -128 - 255 * count - last)
        assert decode(model, job.encoder.finish(), (1, 1), backend).item() == expected


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("symbol", [0, 255])
def test_latents_fit_in_16_bits(backend: str, symbol: int) -> None:
    """Sixteenths could pass them."""
    level = constant_level(np.array([128]), np.array([0]), 4)
    model = model_of(level, architecture="mbt2018-mean")
    for count, last in ((7, 129 if symbol else 134), (7, 136), (31, 0)):
        job = EncodingJob(1, 1, POINT, 1, np.zeros((1, 1, 1), np.int16))
        job.encoder.table(np.array([128], np.uint8), np.zeros(1, np.int32), tables_of(level.z_cdf))
        *mixture, k = reference.gaussian_mixture(np.array([128]), np.array([0]), 4)
        assert k == 0
        job.encoder.mixture(np.array([symbol], np.uint8), *mixture)
        digits(job.encoder, [255] * count + [last])
        stream = job.encoder.finish()
        d = 127 + 255 * count + last if symbol else -128 - 255 * count - last
        if -2048 <= d <= 2047:
            assert decode(model, stream, (1, 1), backend).item() == 16 * d
        else:
            with pytest.raises(BitstreamError, match="out of range"):
                decode(model, stream, (1, 1), backend)


# --- streams from anywhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mbt2018", "mbt2018-mean", "bmshj2018-factorized"])
def test_damaged_payloads(models: Any, name: str, cpu: str) -> None:
    model, size = models[name, "whole"], (11, 13)
    good, latents = encode(model, some_latents(model.levels[0], *size))
    rng = np.random.default_rng(0)
    damaged = [good[:1], good[:-2], good[: len(good) // 3 | 1], good + b"\0\0", b""]
    for _ in range(12):
        data = bytearray(good)
        data[rng.integers(1, len(data))] ^= 1 << rng.integers(8)
        damaged.append(bytes(data))
    for threads in (1, 3):
        for data in damaged:
            with pytest.raises(BitstreamError):
                decode(model, data, size, threads=threads)
        with pytest.raises(BitstreamError):
            decode(model, good, (11, 14), threads=threads)
    jobs = [DecodingJob(*size, POINT, M, data) for data in (good, damaged[1], good)]
    with pytest.raises(BitstreamError):
        model.code(jobs, "cpu", threads=2)
        jobs[1].decoder.finish()
    assert np.array_equal(decode(model, good, size), latents)


@pytest.mark.parametrize(("name", "rounding"), VARIANTS)
def test_noise(models: Any, name: str, rounding: str) -> None:
    """Streams of noise give the same latents or an error everywhere, and nothing worse."""
    model = models[name, rounding]
    rng = np.random.default_rng(1)
    for _ in range(8):
        lanes = rng.integers(7)
        states = b"".join(int(x).to_bytes(6, "little") for x in rng.integers(1 << 32, 1 << 48, 1 << lanes))
        data = bytes([lanes]) + states + rng.bytes(2 * int(rng.integers(900)))
        size = (int(rng.integers(1, 7)), int(rng.integers(1, 9)))
        outcomes = set()
        for path in ("scalar", "avx2", "avx512", "neon", "torch"):
            if path != "torch" and not core.cpu_has(path):
                continue
            core.set_cpu("" if path == "torch" else path)
            try:
                job = DecodingJob(*size, POINT, M, data)
                (found,) = model.code([job], "torch" if path == "torch" else "cpu")
                outcomes.add(found.tobytes())
            except BitstreamError:
                outcomes.add(b"refused")
            finally:
                core.set_cpu("")
        assert len(outcomes) == 1


def test_a_stream_of_another_model(models: Any) -> None:
    good, _ = encode(models["mbt2018", "whole"], some_latents(models["mbt2018", "whole"].levels[0], 9, 8))
    other = model_of(random_level("mbt2018", N, M, seed=77), architecture="mbt2018")
    for backend in ("cpu", "torch"):
        with pytest.raises(BitstreamError):
            decode(other, good, (9, 8), backend)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_known_latents_are_checked(models: Any, backend: str) -> None:
    model = models["mbt2018", "whole"]
    level = model.levels[0]
    latents, side = some_latents(level, 5, 6), some_side(level, 5, 6)
    too_large = latents.copy()
    too_large[2, 3, 4] = -4096
    for known, its_side in ((too_large, side), (latents, side[:, :1]), (latents, side[1:])):
        with pytest.raises(ValueError):
            model.code([EncodingJob(5, 6, POINT, M, known, side=its_side)], backend)
    too_large[2] = 0
    too_large[5, 1, 1] = 20000
    model.code([EncodingJob(5, 6, POINT, 5, too_large, side=side)], backend)  # what is not coded is not looked at


def test_unused_tiles(models: Any) -> None:
    """No channel, no symbol: zeros come out, and P does not run."""
    model = models["mbt2018", "whole"]
    (found,) = model.code([DecodingJob(4, 5, POINT, 0, ops.range_encoder().finish())])
    assert found.dtype == np.int16 and found.shape == (M, 4, 5) and not found.any()
    job = EncodingJob(4, 5, POINT, 0, np.zeros((M, 4, 5), np.int16))
    model.code([job])
    assert job.encoder.finish() == ops.range_encoder().finish()


def as_arguments(level: IntegerLevel) -> list[Any]:
    def arrays(layer: IntegerLayer) -> tuple[Any, ...]:
        return layer.weight, layer.bias, layer.multiplier

    return [
        level.kind, level.z_cdf, [(arrays(part.layer), part.shuffle) for part in level.hyper],
        None if level.context is None else arrays(level.context), level.shift,
        [arrays(layer) for layer in level.parameters], level.offset, level.y_cdf, level.fraction,
    ]  # fmt: skip


def test_arguments_of_a_coder() -> None:
    """What no level can be is refused when it is given, or when it is packed; nothing crashes."""
    level = random_level("mbt2018", N, M)
    good, factorized = as_arguments(level), as_arguments(random_level("bmshj2018-factorized", N, M))
    latents, side = some_latents(level, 4, 6), some_side(level, 4, 6)

    def code(arguments: list[Any]) -> None:
        coder = core.HyperpriorCoder([tuple(arguments)])
        coder.code([(4, 6, 0, M, core.RangeEncoder(), latents, side)])

    code(good)
    code(factorized)
    (weight, bias, multiplier), shuffle = good[2][1]
    wrong_layers = [
        (weight, bias), (weight[:-1], bias, multiplier), (weight[:, :-1].copy(), bias, multiplier),
        (weight, bias.astype(np.int64), multiplier), (weight, bias, multiplier * np.float32(np.nan)),
        (weight, np.full_like(bias, -(2**31)), multiplier), (weight[:-4], bias[:-4], multiplier[:-4]),
    ]  # fmt: skip
    flat = level.z_cdf.copy()
    flat[0, 5] = flat[0, 4]
    changes: list[tuple[int, Any]] = [
        (0, "laplace"), (0, "scale"), (1, level.z_cdf[1:]), (1, level.z_cdf[:, 1:].copy()),
        (1, level.z_cdf.astype(np.int64)), (1, flat), (1, level.z_cdf + np.uint32(1)), (2, []), (2, good[2][1:]),
        (2, [*good[2], good[2][-1]]), (2, [(part, True) for part, _ in good[2]]), (3, good[5][0]),
        (3, None), (4, level.shift[1:]), (4, np.full(M, 9, np.uint8)), (4, level.shift.astype(np.int32)),
        (4, np.zeros(0, np.uint8)), (5, good[5][1:]), (5, good[5][::-1]), (8, 3), (8, -4), (8, 2**20),
        *((2, [good[2][0], (layer, shuffle), *good[2][2:]]) for layer in wrong_layers),
    ]  # fmt: skip
    for place, value in changes:
        arguments = list(good)
        arguments[place] = value
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            code(arguments)
    for place, value in ((6, np.full(M, 5000, np.int16)), (6, factorized[6][1:]), (7, flat), (8, 4)):
        arguments = list(factorized)
        arguments[place] = value
        with pytest.raises(ValueError):
            code(arguments)
    with pytest.raises(ValueError):
        core.HyperpriorCoder([])
    with pytest.raises(ValueError):
        core.HyperpriorCoder([tuple(good[:8])])
    with pytest.raises(ValueError, match="different"):
        core.HyperpriorCoder([tuple(good), tuple(as_arguments(random_level("mbt2018", N, M + 1)))])


def test_arguments_of_a_tile(models: Any) -> None:
    model = models["mbt2018", "whole"]
    level, coder = model.levels[0], model.backends()["cpu"].coder()
    latents, side = some_latents(level, 4, 6), some_side(level, 4, 6)
    good = (4, 6, 0, M, core.RangeEncoder(), latents, side)
    coder.code([good])
    changes: list[tuple[int, Any]] = [
        (0, 0), (1, -1), (2, 1), (2, -1), (3, M + 1), (3, -1), (4, None), (5, latents[1:]),
        (5, latents.astype(np.int32)), (5, latents.transpose(0, 2, 1)), (5, None), (6, None), (6, side[1:]),
        (6, side.astype(np.int16)),
    ]  # fmt: skip
    for place, value in changes:
        job = [*good[:4], core.RangeEncoder(), latents, side]
        job[place] = value
        with pytest.raises((ValueError, AttributeError)):
            coder.code([tuple(job)])
    for jobs in ([good[:6]], [good, good]):
        with pytest.raises(ValueError):
            coder.code(jobs)
    with pytest.raises(ValueError, match="threads"):
        coder.code([good], 0)


def test_a_job_must_be_given_symbols(models: Any) -> None:
    job = EncodingJob(1, 1, POINT, M, np.zeros((M, 1, 1), np.int16))
    with pytest.raises(ValueError, match="known symbols"):
        job.table_of(None, np.zeros(1, np.int32), tables_of(models["mbt2018", "whole"].levels[0].z_cdf))


# --- the model --------------------------------------------------------------------------------------------------------


def float_model(name: str, qualities: tuple[int, ...] = (2, 4), rounding: str = "whole") -> HyperpriorModel:
    """Untrained networks that say something: sigmas of many sizes, means, contexts that count."""
    n, m = (12, 12) if ARCHITECTURES[name].residual else (8, 12)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = HyperpriorModel(HyperpriorConfig(name, n, qualities, rounding), m).eval()
        for index in range(len(qualities)):
            level = model.level(index)
            for parameter in level.parameters():
                if parameter.dim() == 4:
                    parameter.mul_(2.0)
            networks = level.entropy_parameters if level.kind == "context" else level.h_s
            if networks is not None:
                convolutions = [layer for layer in networks if hasattr(layer, "weight")]
                convolutions[-1].bias[:m] = torch.randn(m).mul(0.8).exp()
    return model


@pytest.fixture(scope="module")
def integers() -> dict[str, HyperpriorIntegers]:
    return {name: HyperpriorIntegers.from_float(float_model(name)) for name in ARCHITECTURES}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_known_answer(integers: dict[str, HyperpriorIntegers], name: str, cpu: str) -> None:
    """Every backend gives it; another weight in any level changes it."""
    model = integers[name]
    answer = model.known_answer("reference")
    assert set(model.check_all(answer)) >= {"cpu", "torch", "reference"} - ({"torch"} if cpu == "avx2" else set())
    level = model.levels[1]
    if level.kind == "factorized":
        table = level.y_cdf.copy()
        table[3, 100] += 1 if table[3, 101] > table[3, 100] + 1 else -1
        other = dataclasses.replace(level, y_cdf=table)
    else:
        layer = level.hyper[-1].layer
        weight = layer.weight.copy()
        weight[0] ^= 1
        changed = HyperLayer(dataclasses.replace(layer, weight=weight), False)
        other = dataclasses.replace(level, hyper=(*level.hyper[:-1], changed))
    wrong = HyperpriorIntegers(model.config, model.c, (model.levels[0], other), model.floats)
    with pytest.raises(BackendError, match="known answer"):
        wrong.check(answer, "cpu")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tensors_round_trip(integers: dict[str, HyperpriorIntegers], name: str) -> None:
    model = integers[name]
    again = HyperpriorIntegers.from_tensors(model.to_tensors(), model.config, model.c)
    assert again.known_answer("cpu") == model.known_answer("cpu")
    for first, second in zip(again.levels, model.levels):
        assert np.array_equal(first.shift, second.shift) and np.array_equal(first.offset, second.offset)
        assert np.array_equal(first.z_cdf, second.z_cdf) and np.array_equal(first.y_cdf, second.y_cdf)
    latents = np.random.default_rng(0).integers(-9, 10, (model.c, 7, 9)).astype(np.int16)
    for point in (OperatingPoint(tenths_of(quality), 0, 8) for quality in model.config.qualities):
        ours, theirs = again.side_of(latents, point), model.side_of(latents, point)
        assert (ours is None and theirs is None) or np.array_equal(ours, theirs)  # type: ignore[arg-type]
    for key, value in again.to_tensors().items():
        assert torch.equal(value, model.to_tensors()[key]), key
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert twin.known_answer("cpu") == model.known_answer("cpu")


@pytest.mark.parametrize("name", ["mbt2018", "cheng2020-attn", "bmshj2018-hyperprior", "bmshj2018-factorized"])
def test_damaged_models_are_refused(integers: dict[str, HyperpriorIntegers], name: str) -> None:
    """Every tensor missing, of another type, another shape, not finite, or beyond what it can be."""
    model = integers[name]
    tensors = model.to_tensors()

    def refused(key: str, value: torch.Tensor | None) -> None:
        changed = {k: v for k, v in tensors.items() if k != key or value is not None}
        if value is not None:
            changed[key] = value
        with pytest.raises(ModelMismatchError):
            HyperpriorIntegers.from_tensors(changed, model.config, model.c)

    keys = [key for key in tensors if key.startswith("probability.levels.1.") and not key.endswith((".1", ".2", ".3"))]
    keys = [key for key in keys if ".ranges." not in key or "ranges.y." in key]
    assert len(keys) >= 5
    for key in keys:
        value = tensors[key]
        refused(key, None)
        refused(key, value.to(torch.float64))
        refused(key, value[:-1].clone())
        refused(key, value[None].clone())
        if value.dtype.is_floating_point:
            broken = value.clone()
            broken.view(-1)[0] = float("nan")
            refused(key, broken)
        elif key.endswith(".bias"):
            refused(key, torch.full_like(value, -(2**31)))
        elif key.endswith("_counts"):
            counts = value.numpy().copy()
            counts[0, 0] += 1
            refused(key, torch.from_numpy(counts))
            counts[0, 0] = 0
            refused(key, torch.from_numpy(counts))
        elif key.endswith("offset"):
            refused(key, torch.full_like(value, 4096))
        elif key.endswith("shift"):
            refused(key, torch.full_like(value, 9))
    if name != "bmshj2018-factorized":  # which has no hyper-latents
        with pytest.raises(ModelMismatchError):
            HyperpriorIntegers.from_tensors(tensors, dataclasses.replace(model.config, n=model.config.n + 1), model.c)
    with pytest.raises(ModelMismatchError):
        HyperpriorIntegers.from_tensors(tensors, model.config, model.c + 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float_again_gives_the_same_integers(integers: dict[str, HyperpriorIntegers], name: str) -> None:
    again = HyperpriorIntegers.from_float(integers[name].to_float())
    for first, second in zip(integers[name].levels, again.levels):
        for (part, ours), (_, theirs) in zip(first.layers(), second.layers(), strict=True):
            assert np.array_equal(ours.weight, theirs.weight), part
            np.testing.assert_allclose(ours.multiplier, theirs.multiplier, rtol=1e-6)
            assert np.abs(ours.bias.astype(np.int64) - theirs.bias).max() <= 3, part
        assert np.array_equal(first.shift, second.shift) and np.array_equal(first.offset, second.offset)
        assert np.array_equal(first.z_cdf, second.z_cdf) and np.array_equal(first.y_cdf, second.y_cdf)


def test_transposed_convolutions() -> None:
    """A transposed 5x5 with stride 2 is a 3x3 to four times the outputs and a shuffle."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 5, 5, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 3, 4, 6, generator=generator, dtype=torch.float64)
    expected = F.conv_transpose2d(x, weight, stride=2, padding=2, output_padding=1)
    found = F.pixel_shuffle(F.conv2d(x, quantise.from_transposed(weight), padding=1), 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(quantise.to_transposed(quantise.from_transposed(weight)), weight)


@pytest.mark.parametrize("rounding", ["whole", "mean"])
@pytest.mark.parametrize("name", [name for name, facts in ARCHITECTURES.items() if facts.kind != "factorized"])
def test_integers_say_what_the_floats_say(name: str, rounding: str) -> None:
    """Sigma and mean of the same latents, up to the rounding of 8-bit weights and activations."""
    if rounding == "mean" and ARCHITECTURES[name].kind == "scale":
        pytest.skip("it has no means")
    network = float_model(name, (QUALITY,), rounding)
    level = network.level(0)
    with torch.no_grad():
        latents = quantise.sample(level)
    level.calibrate([latents])
    model = HyperpriorIntegers.from_float(network)
    fraction = model.levels[0].fraction
    y = (latents[0].numpy() * (1 << fraction)).astype(np.int16)
    observer = Observer()
    job = ObservingJob(*y.shape[1:], POINT, model.c, y, observer)
    (coded,) = model.code([job], "cpu")
    assert job.side is not None and np.array_equal(job.side, model.side_of(y, POINT))  # type: ignore[arg-type]
    y_hat = torch.from_numpy(coded).float()[None] / (1 << fraction)
    z = torch.from_numpy(job.side.astype(np.float32))[None] - 128.0
    with torch.no_grad():
        features = level.hyper(z, *y.shape[1:])
        scales, means = level.parameters_of(features, level.context(y_hat) if level.kind == "context" else None)
    # The widest component's inverse scale tells sigma; where all latents were zero, k is what their symbols lack.
    calls = [call for call in observer.calls if len(call) == 4 and call[1].shape[0] == 3]
    order = [(r, c) for rows, columns in groups(level.kind, *y.shape[1:]) for r, c in zip(rows, columns)]
    sigma = np.concatenate([153552.0 / call[3][0] / 128.0 for call in calls]).reshape(-1, model.c)
    expected = np.stack([scales[0, :, r, c].numpy() for r, c in order]).clip(0.11)
    error = np.abs(sigma - expected) / (expected + 0.05 * expected.max())
    assert np.mean(error) < 0.03 and np.quantile(error, 0.99) < 0.2
    # y - (symbol - 128) is k; with its fraction it is the mean to 1/64.
    symbols = np.concatenate([call[0] for call in calls]).reshape(-1, model.c).astype(float) - 128.0
    fine = np.concatenate([call[2][0] for call in calls]).reshape(-1, model.c) / 128.0
    inside = np.abs(symbols) < 127
    values = np.stack([y_hat[0, :, r, c].numpy() for r, c in order])
    mean = values - symbols + fine
    wanted = np.stack([means[0, :, r, c].numpy() for r, c in order])
    assert np.abs(mean - wanted)[inside].mean() < 0.03 * (1.0 + np.abs(wanted).max())


def test_tables_of_the_bottleneck() -> None:
    """Frequencies are the masses that the float model counts, but for the least that every symbol has."""
    model = float_model("bmshj2018-factorized", (QUALITY,))
    with torch.no_grad():
        model.level(0).entropy_bottleneck.biases[-1] += torch.linspace(-3, 3, 12)[:, None, None]
    integers = HyperpriorIntegers.from_float(model)
    level = integers.levels[0]
    latents = level.offset[:, None, None].astype(np.int64) + np.arange(-40, 41).reshape(1, 9, 9)
    job = EncodingJob(9, 9, POINT, 12, latents.astype(np.int16))
    integers.code([job])
    y = torch.from_numpy(latents).float()[None]
    with torch.no_grad():
        expected = float(model.num_bits(y, y, torch.tensor([[POINT.quality_tenths, 0, 8]])))
    assert job.encoder.encoder.ideal_bits == pytest.approx(expected, rel=0.02)
    assert np.diff(level.y_cdf.astype(np.int64), axis=1).min() >= 1
    assert (level.y_cdf[:, 128] < 1 << 15).all() and (level.y_cdf[:, 129] >= (1 << 15) - 128).all()  # the medians


def test_hyper_latents_are_found(integers: dict[str, HyperpriorIntegers]) -> None:
    """A job that does not bring them is coded with those of h_a, and any others decode as well."""
    for name in ("mbt2018", "bmshj2018-hyperprior", "cheng2020-anchor"):
        model = integers[name]
        point = OperatingPoint(tenths_of(4), 0, 8)
        latents = np.random.default_rng(2).integers(-9, 10, (model.c, 6, 7)).astype(np.int16)
        job = EncodingJob(6, 7, point, model.c, latents)
        model.code([job])
        level = model.to_float().level(1)
        with torch.no_grad():
            z = level.hyper_latents(torch.from_numpy(latents).float()[None])[0].round()
        assert job.side is not None and job.side.shape == side_shape(model.config.n, 6, 7)
        assert np.abs(job.side - 128.0 - z.numpy()).max() <= 1
        for side in (job.side, np.full_like(job.side, 3)):
            other = EncodingJob(6, 7, point, model.c, latents, side=side)
            model.code([other])
            assert np.array_equal(decode(model, other.encoder.finish(), (6, 7), point=point), latents)


def test_the_family_is_registered() -> None:
    family = FAMILIES["hyperprior"]
    assert family.integer_model is HyperpriorIntegers and family.float_model is HyperpriorModel
    assert family.integer_model.symbol_dtype is np.int16
    with pytest.raises(BackendError, match="no integer backend"):
        HyperpriorIntegers.from_float(float_model("mbt2018", (1,))).code([], "quantum")
