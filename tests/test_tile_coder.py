"""Whole tiles in C++ against the PyTorch form: the same streams and symbols on every path, thread count and size."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from l2c import _C, integer
from l2c.config import ModelConfig, ProbabilityConfig, TransformConfig
from l2c.errors import BackendError, BitstreamError
from l2c.probability import ProbabilityModel

SIZES = ((1, 1), (2, 3), (9, 1), (17, 14), (40, 33))


def make_model(prior: str, groups: tuple[int, ...] = (3, 8)) -> integer.IntegerModel:
    torch.manual_seed(1)
    config = ModelConfig(
        name="tiny",
        transform=TransformConfig(family="block", s=8, c=sum(groups), width=16, fine_width=0),
        probability=ProbabilityConfig(num_scales=3, channel_groups=groups, num_mixtures=3, width=20, prior=prior),
    )
    model = ProbabilityModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return integer.from_float(model, config)


@pytest.fixture(scope="module", params=["learned", "uniform"])
def model(request: pytest.FixtureRequest) -> integer.IntegerModel:
    return make_model(request.param)


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def cpu(request: pytest.FixtureRequest) -> Iterator[str]:
    try:
        _C.set_cpu(request.param)
    except BackendError as error:
        pytest.skip(str(error))
    yield request.param
    _C.set_cpu("")


def writers(model: integer.IntegerModel) -> list[integer.Job]:
    """Every size with other qualities, bits and used channels, from none to all."""
    rng = np.random.default_rng(3)
    jobs = []
    for i, (height, width) in enumerate(SIZES):
        b, used = 8 - i, (model.c, 1, 3, 7, model.c)[i]
        symbols = np.full((model.c, height, width), 1 << (b - 1), dtype=np.uint8)
        symbols[:used] = rng.normal(1 << (b - 1), 3, (used, height, width)).round().clip(0, (1 << b) - 1)
        jobs.append(integer.Job(height, width, (173 * i, i, b), used, integer.SymbolWriter(b), symbols))
    return jobs


def streams_of(model: integer.IntegerModel, backend: str, threads: int = 1) -> list[bytes]:
    jobs = writers(model)
    model.code(jobs, backend, threads=threads)
    return [job.coder.finish() for job in jobs]  # type: ignore[attr-defined]


def readers(model: integer.IntegerModel, streams: list[bytes]) -> list[integer.Job]:
    return [
        integer.Job(job.height, job.width, job.header, job.used, integer.SymbolReader(stream, job.header[2]))
        for job, stream in zip(writers(model), streams)
    ]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_streams_and_symbols(model: integer.IntegerModel, cpu: str, threads: int) -> None:
    expected = streams_of(model, "torch")
    assert streams_of(model, "cpu", threads) == expected
    jobs = readers(model, expected)
    for got, known, job in zip(model.code(jobs, "cpu", threads=threads), writers(model), jobs):
        assert np.array_equal(got, known.symbols)
        job.coder.finish()  # type: ignore[attr-defined]
    for job, known in zip(readers(model, expected), writers(model)):  # alone: all threads work on one tile
        assert np.array_equal(model.code([job], "cpu", threads=threads)[0], known.symbols)


@pytest.mark.parametrize("groups", [(1,), (1, 1, 2), (17, 3)])
def test_groups_of_any_number_and_size(groups: tuple[int, ...]) -> None:
    model = make_model("learned", groups)
    rng = np.random.default_rng(0)
    for used in sorted({1, model.c // 2 + 1, model.c}):
        symbols = np.full((model.c, 6, 7), 128, dtype=np.uint8)
        symbols[:used] = rng.integers(120, 137, (used, 6, 7))
        streams = []
        for backend in ("cpu", "reference"):
            job = integer.Job(6, 7, (400, 2, 8), used, integer.SymbolWriter(8), symbols)
            model.code([job], backend)
            streams.append(job.coder.finish())  # type: ignore[attr-defined]
        assert streams[0] == streams[1]


def test_parameters_are_those_of_the_reference(model: integer.IntegerModel, cpu: str) -> None:
    assert model.known_answer("cpu") == model.known_answer("reference")


def test_damaged_streams(model: integer.IntegerModel) -> None:
    """Of several tiles the damaged one is found, whichever it is; nothing else than BitstreamError comes out."""
    streams = streams_of(model, "cpu")
    rng = np.random.default_rng(5)
    for broken in range(len(streams)):
        head = 1 + 6 * (1 << streams[broken][0])
        for end in (head, (head + len(streams[broken])) // 2 & ~1 | 1):
            if end >= len(streams[broken]):
                continue
            parts = list(streams)
            parts[broken] = streams[broken][:end]
            jobs = readers(model, parts)
            with pytest.raises(BitstreamError, match="range coder"):
                model.code(jobs, "cpu", threads=2)
                for job in jobs:
                    job.coder.finish()  # type: ignore[attr-defined]
        noise = bytearray(streams[broken])
        noise[head:] = rng.integers(0, 256, len(noise) - head, dtype=np.uint8).tobytes()
        if bytes(noise) == streams[broken]:
            continue
        job = readers(model, [*streams[:broken], bytes(noise), *streams[broken + 1 :]])[broken]
        with pytest.raises(BitstreamError, match="range coder"):
            model.code([job], "cpu")
            job.coder.finish()  # type: ignore[attr-defined]


def test_bad_arguments(model: integer.IntegerModel) -> None:
    job = writers(model)[1]
    job.coder.b = 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="b is 3"):
        model.code([job], "cpu")
    for change, message in (
        ({"symbols": np.zeros((model.c, 1, 1), np.uint8)}, "symbols must be"),
        ({"used": model.c + 1}, "used"),
        ({"symbols": None}, "needs symbols"),
    ):
        job = writers(model)[1]
        for name, value in change.items():
            setattr(job, name, value)
        with pytest.raises(ValueError, match=message):
            model.code([job], "cpu")
    high = writers(model)[2]
    high.symbols = np.full_like(high.symbols, 255)  # not below 2^6
    with pytest.raises(ValueError, match="symbol|raw value"):
        model.code([high], "cpu")
