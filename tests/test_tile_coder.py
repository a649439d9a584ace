"""Whole tiles in C++: the bytes and symbols of the other implementations, on every CPU path and thread count."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from l2c import ops
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.entropy.coder import DecodingJob, EncodingJob, ObservingJob
from l2c.entropy.multiscale import MultiscaleConfig
from l2c.entropy.multiscale.backends.cpu import CpuBackend
from l2c.errors import BackendError, BitstreamError
from l2c.format.levels import OperatingPoint
from l2c.ops.contract import IntegerLayer
from l2c.transforms import BlockConfig

core = ops.cpp_extension()

Symbols = npt.NDArray[np.uint8]
POINT = OperatingPoint(420, 3, 8)
# Sizes that fill no vector, one group, one scale; and those of the default model, but narrower.
SHAPES = {
    "odd": (10, MultiscaleConfig(3, (3, 7), 3, 22)),
    "one": (5, MultiscaleConfig(1, (5,), 1, 3)),
    "uniform": (9, MultiscaleConfig(2, (2, 3, 4), 8, 16, "uniform")),
    "blocks": (48, MultiscaleConfig(3, (24, 24), 3, 40)),
}


def make_model(shape: str) -> multiscale.IntegerModel:
    channels, probability = SHAPES[shape]
    config = ModelConfig(shape, BlockConfig(8, channels, 8, 1, 1), probability)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = config.float_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.7)
    return multiscale.IntegerModel.from_float(model)


@pytest.fixture(scope="module")
def models() -> dict[str, multiscale.IntegerModel]:
    return {shape: make_model(shape) for shape in SHAPES}


@pytest.fixture(params=["scalar", "avx2", "avx512", "neon"])
def cpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per CPU path; skips paths that this machine lacks."""
    try:
        core.set_cpu(request.param)
    except BackendError as error:
        pytest.skip(str(error))
    yield request.param
    core.set_cpu("")


def some_symbols(channels: int, height: int, width: int, b: int = 8, used: int | None = None) -> Symbols:
    """Smaller spreads in later channels; channels from `used` on are zero latents."""
    rng = np.random.default_rng(height * 100 + width)
    spread = 40 * 0.7 ** np.arange(channels)[:, None, None] / (1 << (8 - b))
    z = np.rint(rng.normal(size=(channels, height, width)) * spread) + (1 << (b - 1))
    symbols = z.clip(0, (1 << b) - 1).astype(np.uint8)
    if used is not None:
        symbols[used:] = 1 << (b - 1)
    return symbols


def encode(
    model: multiscale.IntegerModel, pictures: list[Symbols], backend: str = "cpu", used: int | None = None,
    point: OperatingPoint = POINT, threads: int = 1,
) -> list[bytes]:  # fmt: skip
    jobs = [EncodingJob(*p.shape[1:], point, model.c if used is None else used, p) for p in pictures]
    for symbols, picture in zip(model.code(jobs, backend, threads=threads), pictures):
        assert np.array_equal(symbols, picture)
    return [job.encoder.finish() for job in jobs]


def decode(
    model: multiscale.IntegerModel, files: list[bytes], sizes: list[tuple[int, int]], backend: str = "cpu",
    used: int | None = None, point: OperatingPoint = POINT, threads: int = 1,
) -> list[Symbols]:  # fmt: skip
    jobs = [DecodingJob(*size, point, model.c if used is None else used, file) for size, file in zip(sizes, files)]
    results = model.code(jobs, backend, threads=threads)
    for job in jobs:
        job.decoder.finish()
    return results


@pytest.mark.parametrize("shape", SHAPES)
def test_sizes(models: dict[str, multiscale.IntegerModel], shape: str, cpu: str) -> None:
    """Every latent size 1..5 x 1..5 and some larger ones, against the plain reference."""
    model = models[shape]
    sizes = [(h, w) for h in range(1, 6) for w in range(1, 6)] + [(1, 40), (37, 2), (19, 23)]
    pictures = [some_symbols(model.c, h, w) for h, w in sizes]
    files = encode(model, pictures)
    assert files == encode(model, pictures, "reference")
    for symbols, picture in zip(decode(model, files, sizes), pictures):
        assert np.array_equal(symbols, picture)


@pytest.mark.parametrize("b", range(1, 9))
def test_bits_and_used_channels(models: dict[str, multiscale.IntegerModel], b: int, cpu: str) -> None:
    model, point = models["odd"], OperatingPoint(910, 8, b)
    for used in range(model.c + 1):
        picture = some_symbols(model.c, 7, 10, b, used)
        files = encode(model, [picture], used=used, point=point)
        if cpu == "scalar":
            assert files == encode(model, [picture], "torch", used, point)
        assert np.array_equal(decode(model, files, [(7, 10)], used=used, point=point)[0], picture)


def test_zero_latent_that_is_no_zero_input(models: dict[str, multiscale.IntegerModel], cpu: str) -> None:
    """A table may say so; then the inputs of unused channels cannot be left out."""
    model = copy.copy(models["blocks"])
    table = model.tables.compand.copy()
    table[128] = 5
    model.tables = dataclasses.replace(model.tables, compand=table)
    for used in (3, 25, 48):
        picture = some_symbols(model.c, 6, 9, used=used)
        files = encode(model, [picture], used=used)
        assert files == encode(model, [picture], "reference", used)
        assert np.array_equal(decode(model, files, [(6, 9)], used=used)[0], picture)


@pytest.mark.parametrize("shape", ["odd", "blocks", "uniform"])
def test_threads(models: dict[str, multiscale.IntegerModel], shape: str, cpu: str) -> None:
    """One tile of many chunks on several threads."""
    model = models[shape]
    picture = some_symbols(model.c, 67, 54)
    expected = encode(model, [picture])
    for threads in (2, 3, 5):
        assert encode(model, [picture], threads=threads) == expected
        assert np.array_equal(decode(model, expected, [(67, 54)], threads=threads)[0], picture)


def test_several_tiles(models: dict[str, multiscale.IntegerModel]) -> None:
    """Side by side, one at a time on all threads, and both: what comes out is that of one after the other."""
    model = models["odd"]
    for count in (2, 3, 4, 7, 20):
        sizes = [(5 + 11 * i % 40, 30 - 7 * i % 23) for i in range(count)]
        pictures = [some_symbols(model.c, h, w) for h, w in sizes]
        files = [encode(model, [picture])[0] for picture in pictures]
        for threads in (1, 2, 3, 4):
            assert encode(model, pictures, threads=threads) == files
            for symbols, picture in zip(decode(model, files, sizes, threads=threads), pictures):
                assert np.array_equal(symbols, picture)


def test_jobs_that_nobody_else_holds(models: dict[str, multiscale.IntegerModel]) -> None:
    """Coders live as long as the call, whatever becomes of the sequence they came in."""
    model = models["odd"]
    picture = some_symbols(model.c, 9, 8)
    (stream,) = encode(model, [picture])

    class MadeOnTheWay:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, i: int) -> tuple[object, ...]:
            if i >= 9:
                raise IndexError(i)
            return 9, 8, POINT[2], model.c, model.planes_of(POINT), ops.range_decoder(stream), None

    for symbols in model.backends()["cpu"].tile_coder().code(MadeOnTheWay(), 2):
        assert np.array_equal(symbols, picture)


@pytest.mark.parametrize("threads", [1, 3])
def test_damaged_payloads(models: dict[str, multiscale.IntegerModel], threads: int, cpu: str) -> None:
    model = models["odd"]
    size = (33, 40)
    good = encode(model, [some_symbols(model.c, *size)])[0]
    rng = np.random.default_rng(0)
    damaged = [good[:1], good[:-2], good[: len(good) // 3 | 1], good + b"\0\0"]
    for _ in range(12):
        data = bytearray(good)
        data[rng.integers(1, len(data))] ^= 1 << rng.integers(8)
        damaged.append(bytes(data))
    for data in damaged:
        with pytest.raises(BitstreamError):
            decode(model, [data], [size], threads=threads)
    with pytest.raises(BitstreamError):
        decode(model, [good], [(33, 41)], threads=threads)
    with pytest.raises(BitstreamError, match=r"damaged|left|early"):
        decode(model, [good, damaged[1], good], [size] * 3, threads=threads)


def test_noise(models: dict[str, multiscale.IntegerModel]) -> None:
    """Streams of noise give the same symbols or the same error everywhere, and nothing worse."""
    model = models["odd"]
    rng = np.random.default_rng(1)
    for seed in range(12):
        lanes = rng.integers(7)
        states = b"".join(int(x).to_bytes(6, "little") for x in rng.integers(1 << 32, 1 << 48, 1 << lanes))
        data = bytes([lanes]) + states + rng.bytes(2 * int(rng.integers(400)))
        size = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
        outcomes: list[Any] = []
        for name in ("scalar", "avx2", "avx512", "neon"):
            if not core.cpu_has(name):
                continue
            core.set_cpu(name)
            try:
                job = DecodingJob(*size, OperatingPoint(10 * seed, 0, 8), model.c, data)
                outcomes.append(model.code([job], "cpu")[0].tobytes())
            except BitstreamError as error:
                outcomes.append(str(error))
            finally:
                core.set_cpu("")
        assert len(set(outcomes)) == 1


class Observer:
    """Notes what it is shown."""

    def __init__(self, fail_at: int = -1, model: multiscale.IntegerModel | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fail_at, self.model = fail_at, model

    def mixture(self, symbols: Any, weights: Any, means: Any, inv_scales: Any) -> None:
        self.calls.append((symbols, weights, means, inv_scales))
        if len(self.calls) == self.fail_at:
            raise KeyError("an error of its own")
        if self.model is not None:  # one tile within another
            encode(self.model, [some_symbols(self.model.c, 6, 5)])

    def raw(self, symbols: Any) -> None:
        self.mixture(symbols, None, None, None)


class Inventor(Observer):
    """A decoder in Python that invents the symbols; as jobs ask for them and as the C++ does."""

    def mixture(self, weights: Any, means: Any, inv_scales: Any, symbols: Any = None) -> Any:  # type: ignore[override]
        assert symbols is None
        super().mixture(None, weights, means, inv_scales)
        return np.full(means.shape[1], 128, np.uint8)

    def raw(self, count: int) -> Any:
        return self.mixture(None, np.zeros((1, count), np.int16), None)

    def uniform(self, count: int, symbols: Any) -> Any:
        return self.raw(count)


@pytest.mark.parametrize("shape", ["odd", "uniform"])
def test_observers_see_whole_groups(models: dict[str, multiscale.IntegerModel], shape: str, cpu: str) -> None:
    """Calls, parameters and symbols are those of the reference, whatever the number of threads."""
    model = models[shape]
    sizes = ((21, 34), (6, 3))

    def shown(backend: str, threads: int) -> list[Observer]:
        jobs = [ObservingJob(*size, POINT, 8, some_symbols(model.c, *size), Observer()) for size in sizes]
        model.code(jobs, backend, threads=threads)
        return [job.observer for job in jobs]  # type: ignore[misc]

    def invented(backend: str, threads: int) -> list[Observer]:
        inventors = [Inventor() for _ in sizes]
        if backend == "cpu":
            planes = model.planes_of(POINT)
            tiles = [(*size, POINT[2], 8, planes, mine, None) for size, mine in zip(sizes, inventors)]
            model.backends()["cpu"].tile_coder().code(tiles, threads)
        else:
            jobs = [DecodingJob(*size, POINT, 8, ops.range_encoder().finish()) for size in sizes]
            for job, mine in zip(jobs, inventors):
                job.decoder = mine  # type: ignore[assignment]
            model.code(jobs, backend)
        return list(inventors)

    for calls in (shown, invented):
        expected = calls("reference", 1)
        for threads in (1, 3):
            for got, wanted in zip(calls("cpu", threads), expected, strict=True):
                assert len(got.calls) == len(wanted.calls)
                for ours, theirs in zip(got.calls, wanted.calls):
                    for a, b in zip(ours, theirs, strict=True):
                        assert (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b))


def test_errors_of_an_observer(models: dict[str, multiscale.IntegerModel]) -> None:
    model = models["odd"]
    coder, planes = model.backends()["cpu"].tile_coder(), model.planes_of(POINT)
    for known in (None, some_symbols(model.c, 20, 20)):
        for threads in (1, 2, 4):
            kind = Inventor if known is None else Observer
            observers = [kind(fail_at) for fail_at in (-1, 5, 2)]
            with pytest.raises(KeyError, match="of its own"):
                if known is None:
                    coder.code([(20, 20, POINT[2], 10, planes, mine, None) for mine in observers], threads)
                else:
                    model.code([ObservingJob(20, 20, POINT, 10, known, mine) for mine in observers], threads=threads)
    with pytest.raises(AttributeError, match="mixture"):
        coder.code([(4, 4, POINT[2], 10, planes, None, None)], 1)


def test_a_tile_within_a_tile(models: dict[str, multiscale.IntegerModel]) -> None:
    """A coder may code another tile: the outer one's memory is its own."""
    model = models["odd"]
    plain, nested = Observer(), Observer(model=models["blocks"])
    for observer in (plain, nested):
        model.code([ObservingJob(15, 18, POINT, 10, some_symbols(10, 15, 18), observer)], "cpu")
    for ours, theirs in zip(nested.calls, plain.calls, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_order_of_hidden_channels_changes_nothing(models: dict[str, multiscale.IntegerModel]) -> None:
    model = models["blocks"]
    picture = some_symbols(model.c, 30, 30)
    expected = encode(model, [picture], "reference")
    for samples in ([], [OperatingPoint(0, 0, 8)], [OperatingPoint(q, 8, 8) for q in (100, 1000)]):
        job = EncodingJob(30, 30, POINT, model.c, picture)
        CpuBackend(model, samples).code([job], torch.device("cpu"), 1)
        assert [job.encoder.finish()] == expected


def test_known_answer(models: dict[str, multiscale.IntegerModel], cpu: str) -> None:
    for shape in ("odd", "blocks"):
        assert models[shape].known_answer("cpu") == models[shape].known_answer("torch")


def test_arguments_of_code(models: dict[str, multiscale.IntegerModel]) -> None:
    model = models["odd"]
    coder, planes = model.backends()["cpu"].tile_coder(), model.planes_of(POINT)
    known = some_symbols(10, 4, 6)
    good = (4, 6, 8, 10, planes, core.RangeEncoder(), known)
    assert np.array_equal(coder.code([good])[0], known)
    assert coder.code([]) == []
    changes: list[tuple[int, Any]] = [
        (0, 0), (1, -1), (0, 5), (2, 0), (2, 9), (3, -1), (3, 11), (4, planes[:3]), (4, planes.astype(np.int32)),
        (4, planes[:, :-1]), (6, None), (6, known.astype(np.int8)), (6, known[:9]), (6, known[0]),
        (6, known.transpose(0, 2, 1)),
    ]  # fmt: skip
    for place, value in changes:
        job = [*good[:5], core.RangeEncoder(), known]
        job[place] = value
        with pytest.raises(ValueError):
            coder.code([tuple(job)])
    for jobs in ([good[:6]], [good, good]):
        with pytest.raises(ValueError):
            coder.code(jobs)
    with pytest.raises(ValueError, match="threads"):
        coder.code([good], 0)
    with pytest.raises(ValueError, match=r"2\^bits"):
        coder.code([(4, 6, 2, 10, planes, core.RangeEncoder(), known)])


def test_arguments_of_a_model(models: dict[str, multiscale.IntegerModel]) -> None:
    model = models["odd"]

    def arrays(layer: IntegerLayer) -> tuple[Any, ...]:
        return layer.weight, layer.bias, layer.multiplier

    steps = [[arrays(getattr(step, name)) for name in ("w1", "w2", "w3", "w4")] for step in model.steps]
    assert model.prior is not None
    tables = (model.tables.compand, model.tables.exp, model.tables.inv_scale)
    good: list[Any] = [[3, 7], 3, 3, steps, [arrays(layer) for layer in model.prior], *tables]
    core.TileCoder(*good)
    weight, bias, multiplier = steps[1][2]
    wrong_layers = [
        (weight, bias), (weight[:-1], bias, multiplier), (weight[:, :-1].copy(), bias, multiplier),
        (weight, bias.astype(np.int64), multiplier), (weight, bias, multiplier * np.float32(np.nan)),
        (weight, np.full_like(bias, -(2**31)), multiplier),
    ]  # fmt: skip
    changes: list[tuple[int, Any]] = [
        (0, [3, 6]), (0, []), (0, [10, 0]), (0, [3, 7, 1]), (1, 0), (1, 7), (2, 0), (2, 2), (2, 9), (3, steps[:-1]),
        (3, []), (4, good[4][:1]), (4, good[4][::-1]), (5, tables[0][:9]), (5, tables[1]),
        (6, np.zeros(256, np.uint16)), (7, np.zeros(256, np.uint16)), (7, np.full(256, 40000, np.uint16)),
        *((3, [steps[0], [*steps[1][:2], layer, steps[1][3]], *steps[2:]]) for layer in wrong_layers),
    ]  # fmt: skip
    for place, value in changes:
        arguments = list(good)
        arguments[place] = value
        with pytest.raises(ValueError):
            core.TileCoder(*arguments)
    with pytest.raises(ValueError, match="planes"):
        core.TileCoder(*good, [model.planes_of(POINT)[1:]])


def test_unknown_cpu(models: dict[str, multiscale.IntegerModel], monkeypatch: pytest.MonkeyPatch) -> None:
    models["odd"].backends()["cpu"].tile_coder()
    monkeypatch.setenv("L2C_CPU", "abacus")
    with pytest.raises(BackendError, match="abacus"):
        encode(models["odd"], [some_symbols(10, 3, 3)])
