"""Hyperprior models on the kernels against the C++ coder: equality of every byte and every latent.

Without a GPU they run under Triton's interpreter (conftest.py): sizes are tiny.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hyperprior_levels import random_level, some_latents, some_side
from test_compressai import weights
from test_hyperprior_integers import constant_level, digits, model_of

import l2c
from l2c import compressai, ops
from l2c.architectures import ARCHITECTURES, tenths_of
from l2c.entropy.coder import DecodingJob, EncodingJob
from l2c.entropy.hyperprior import HyperpriorIntegers
from l2c.entropy.hyperprior.backends import device_coder
from l2c.entropy.hyperprior.backends.device_coder import DeviceCoder
from l2c.entropy.hyperprior.integer_weights import tables_of
from l2c.errors import BackendError, BitstreamError
from l2c.format.levels import OperatingPoint
from l2c.ops import extension, reference
from l2c.ops.contract import CONTEXT_TAPS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = ops.triton_reason(DEVICE)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
POINT = OperatingPoint(tenths_of(3), 0, 8)
M = 3
VARIANTS = [(name, "whole") for name in ARCHITECTURES if name != "cheng2020-attn"]  # whose P is cheng2020-anchor's
VARIANTS += [("mbt2018-mean", "mean"), ("mbt2018", "mean")]
LANES = (64, 16)  # of the tiles' streams; an interpreted row takes as long whatever its lanes
Sizes = tuple[tuple[int, int], ...]


def tiny_model(name: str, rounding: str = "whole", m: int = M) -> HyperpriorIntegers:
    n = m if ARCHITECTURES[name].residual else 2
    return model_of(random_level(name, n, m, rounding=rounding), architecture=name)


def make_jobs(model: HyperpriorIntegers, sizes: Sizes, seed: int = 0) -> list[EncodingJob]:
    """Tiles of different sizes and used channels, some of whose latents escape, with one digit or several."""
    jobs, level = [], model.levels[0]
    for i, (height, width) in enumerate(sizes):
        latents, used = some_latents(level, height, width, seed=seed + i), max(1, model.c - i)
        latents = np.sign(latents) * (np.abs(latents) % (900 << level.fraction))
        latents[used:] = 0
        side = some_side(level, height, width, seed=seed)
        jobs.append(EncodingJob(height, width, POINT, used, latents.astype(np.int16), side=side))
    return jobs


def written(jobs: list[EncodingJob], lanes: tuple[int, ...] = LANES) -> list[bytes]:
    """Their streams with so many lanes: 0 is the coder's own choice, which is 1 for streams as short as these."""
    return [job.encoder.encoder.finish(count) for job, count in zip(jobs, lanes)]


def reading(jobs: list[EncodingJob], streams: list[bytes]) -> list[DecodingJob]:
    """The same tiles, to be read from their streams."""
    return [DecodingJob(job.height, job.width, job.point, job.used, stream) for job, stream in zip(jobs, streams)]


def one_by_one(model: HyperpriorIntegers, job: EncodingJob, stream: bytes, backend: str = "triton") -> Any:
    """The latents of a stream that may not be what it should."""
    reader = DecodingJob(job.height, job.width, job.point, job.used, stream)
    (found,) = model.code([reader], backend, DEVICE)
    reader.decoder.finish()
    return found


# The test of levels below is about the one that is left out.
@pytest.mark.parametrize(("name", "rounding"), [v for v in VARIANTS if v != ("mbt2018-mean", "whole")])
def test_tiles_between_backends(name: str, rounding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and latents of whole tiles, batched with padding on the device, are those of the CPU, both ways."""
    sizes: Sizes = ((5, 7), (1, 1))
    if ARCHITECTURES[name].kind == "context" and DEVICE.type == "cpu":
        sizes = ((2, 3), (1, 1)) if (name, rounding) == ("mbt2018", "whole") else ((2, 2), (2, 1))
    # Several blocks of each kernel, several pieces of a group.
    monkeypatch.setattr(extension.kernels("hyperprior"), "block_size", lambda device, size, needed: 32)
    monkeypatch.setattr(device_coder, "_PIECE_SYMBOLS", 55)
    model = tiny_model(name, rounding)
    streams, found = {}, {}
    for backend in ("cpu", "triton"):
        jobs = make_jobs(model, sizes)
        found[backend] = model.code(jobs, backend, DEVICE)
        streams[backend] = written(jobs)
    assert streams["cpu"] == streams["triton"]
    assert max(np.abs(part).max() for part in found["cpu"]) > 512 << model.levels[0].fraction  # two digits
    for _ in range(3 if DEVICE.type == "cuda" else 1):  # launched, recorded and replayed
        got = model.code(reading(jobs, streams["cpu"]), "triton", DEVICE)
        for ours, theirs, expected in zip(got, found["triton"], found["cpu"], strict=True):
            assert ours.dtype == np.int16
            assert np.array_equal(ours, expected) and np.array_equal(theirs, expected)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="takes a GPU")
@pytest.mark.parametrize(("name", "rounding"), VARIANTS)
def test_published_sizes_on_a_gpu(name: str, rounding: str) -> None:
    """Tiles of photographs at CompressAI's channels; graphs are replayed over other streams than they recorded."""
    n, m = (128, 128) if ARCHITECTURES[name].residual else (128, 192)
    model, sizes = model_of(random_level(name, n, m, rounding=rounding), architecture=name), ((32, 48), (17, 5))
    made = []
    for seed in (0, 10):
        jobs = make_jobs(model, sizes, seed)
        expected = model.code(jobs, "cpu")
        made.append((jobs, written(jobs, (0, 0)), expected))
        again = make_jobs(model, sizes, seed)
        assert all(map(np.array_equal, model.code(again, "triton", DEVICE), expected))
        assert written(again, (0, 0)) == made[-1][1]
    for jobs, streams, expected in 3 * made:
        assert all(map(np.array_equal, model.code(reading(jobs, streams), "triton", DEVICE), expected))


def test_levels_and_unused_tiles_in_one_call() -> None:
    """Each level is a batch of its own; what has no channel is not coded; a GPU can go on with what is queued."""
    levels = [random_level("mbt2018-mean", 2, M, seed=seed) for seed in (1, 2)]
    model = model_of(*levels, architecture="mbt2018-mean", qualities=(3, 5))
    points = [OperatingPoint(tenths_of(quality), 0, 8) for quality in (5, 3, 5)]
    jobs = [
        EncodingJob(2, 2 + i, point, M, some_latents(levels[0], 2, 2 + i) % 50, side=some_side(levels[0], 2, 2 + i))
        for i, point in enumerate(points)
    ]
    known = model.code(jobs, "cpu")
    readers = reading(jobs, written(jobs, (64, 64, 64)))
    readers.append(DecodingJob(3, 3, POINT, 0, ops.range_encoder().finish()))
    queued = model.backends()["triton"].queue(readers, DEVICE)
    assert queued is not None
    latents, check = queued
    check()
    for got, expected in zip(latents, [*known, np.zeros((M, 3, 3), np.int16)], strict=True):
        assert got.dtype == torch.int16 and np.array_equal(got.cpu().numpy(), expected)


def test_known_answer_of_a_model() -> None:
    for name, rounding in (("mbt2018", "whole"), ("bmshj2018-hyperprior", "whole")):
        model = tiny_model(name, rounding)
        assert model.known_answer("triton", DEVICE) == model.known_answer("reference")


def test_large_sums() -> None:
    """Sums near 2^31, of more channels than a kernel has written out, are rounded as the definition says."""
    rng = np.random.default_rng(1)
    weight = rng.choice(np.array([-127, 127], np.int8), (32, 4096, 1, 1))
    weight[:8] = 127
    bias = rng.integers(-(2**30), 2**30, 32).astype(np.int32)
    x = rng.integers(0, 256, (1, 5, 4096)).astype(np.uint8)
    x[0, 0] = 255
    arguments = x, weight, bias, np.full(32, 2.0**-16 * 0.97, np.float32)
    expected = ops.integer_conv(*arguments, head=True, backend="reference")
    assert np.array_equal(ops.integer_conv(*arguments, head=True, backend="triton", device=DEVICE), expected)
    assert np.abs(expected).max() > 2**13


def test_every_sigma_and_mean() -> None:
    """The mixtures of all heads that there can be for sigma, and as many means, are those of the definition."""
    rng = np.random.default_rng(0)
    sigma = np.arange(-32768, 32768)
    mean = rng.permutation(sigma)
    channels, kernels = 256, ops.integer_kernels(DEVICE)
    raw = np.concatenate((sigma.reshape(-1, channels), mean.reshape(-1, channels)), axis=1).astype(np.int16)
    n = len(sigma)
    for fraction in (0, 4):
        parts = [torch.zeros((3, 1, n), dtype=torch.int16, device=DEVICE) for _ in range(3)]
        start, excess = (torch.full((1, n), 7, dtype=torch.int16, device=DEVICE) for _ in range(2))
        count, used = (torch.tensor([value], dtype=torch.int32, device=DEVICE) for value in (n, channels))
        begin = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        kernels.gaussian_params_fwd(
            torch.from_numpy(raw).to(DEVICE)[None, None], None, count, used, begin, *parts, start, excess, channels,
            fraction, 0,
        )  # fmt: skip
        weights, means, inv_scales, k = reference.gaussian_mixture(sigma, mean, fraction)
        assert np.array_equal(parts[0][:, 0].cpu().numpy().view(np.uint16), weights)
        assert np.array_equal(parts[1][:, 0].cpu().numpy(), means)
        assert np.array_equal(parts[2][:, 0].cpu().numpy().view(np.uint16), inv_scales)
        assert np.array_equal(start[0].cpu().numpy(), k) and not excess.any()


def test_inputs_of_a_context() -> None:
    """All twelve taps and what h_s gives, at places of two tiles of which one has fewer."""
    rng, (height, width), places = np.random.default_rng(0), (5, 7), [(0, 0), (4, 6), (2, 3), (1, 0), (3, 5)]
    kernels = ops.integer_kernels(DEVICE)
    latents = rng.integers(-128, 128, (2, height, width, M)).astype(np.int8)
    taps = np.pad(latents, ((0, 0), (2, 0), (2, 2), (0, 0)))
    hyper = rng.integers(-128, 128, (2, 8, 8, 2 * M)).astype(np.int8)
    gathered = torch.full((2, 1, 4, 64), 9, dtype=torch.int8, device=DEVICE)
    joint = gathered.clone()
    kernels.context_inputs_fwd(
        *(torch.from_numpy(part).to(DEVICE) for part in (taps, hyper)),
        torch.tensor([places, places[::-1]], dtype=torch.int32, device=DEVICE),
        torch.tensor([4, 2], dtype=torch.int32, device=DEVICE), gathered, joint, 1,
    )  # fmt: skip
    for i, mine in enumerate((places[1:], places[::-1][1:3])):
        for p, (y, x) in enumerate(mine):
            expected = [taps[i, y + 2 + dy, x + 2 + dx] for dy, dx in CONTEXT_TAPS]
            assert np.array_equal(gathered[i, 0, p, : 12 * M].cpu().numpy(), np.concatenate(expected))
            assert np.array_equal(joint[i, 0, p, : 2 * M].cpu().numpy(), hyper[i, y, x])


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean", "mbt2018"])
def test_damaged_tiles_are_refused(name: str) -> None:
    """Streams that are cut, longer, flipped anywhere, of another size or of another model."""
    model = tiny_model(name, m=1 if name == "mbt2018" else M)
    sizes = {"bmshj2018-factorized": ((3, 4),), "mbt2018-mean": ((2, 2),), "mbt2018": ((1, 2),)}
    (job,) = jobs = make_jobs(model, sizes[name])
    model.code(jobs, "cpu")
    (good,) = written(jobs, (1 if name == "mbt2018" else 4,))
    head = 1 + 6 * (1 << good[0])
    flips = [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in (3, head, head + 5, len(good) - 1)]
    damaged = [good[:-2], good + b"\0\0", *flips]
    for stream in damaged if name == "bmshj2018-factorized" else damaged[::3]:  # others are slow to interpret
        with pytest.raises(BitstreamError, match="range coder"):
            one_by_one(model, job, stream)
    if name == "bmshj2018-factorized":
        other = model_of(random_level(name, 2, M, seed=7), architecture=name)
        for its, width in ((other, 4), (model, 5)):
            with pytest.raises(BitstreamError):
                one_by_one(its, EncodingJob(3, width, POINT, M, job.symbols), good)


@pytest.mark.parametrize(("name", "rounding"), [("bmshj2018-factorized", "whole"), ("mbt2018-mean", "mean")])
def test_noise(name: str, rounding: str) -> None:
    """Streams of noise are refused as on the CPU, and nothing worse."""
    model, rng = tiny_model(name, rounding), np.random.default_rng(1)
    (job,) = make_jobs(model, ((4, 5),))
    for words in (5, 400):
        states = b"".join(int(x).to_bytes(6, "little") for x in rng.integers(1 << 32, 1 << 48, 16))
        stream = bytes([4]) + states + rng.bytes(2 * words)
        for backend in ("cpu", "triton"):
            with pytest.raises(BitstreamError):
                one_by_one(model, job, stream, backend)


def test_a_stream_that_ends_is_not_read_on() -> None:
    """Seven bytes cannot make the decoder walk through a tile."""
    model = tiny_model("mbt2018-mean")
    coder = model.backends()["triton"].coder(DEVICE)  # type: ignore[attr-defined]
    job = DecodingJob(4, 5, POINT, M, b"\0" + (1 << 32).to_bytes(6, "little"))
    coder.geometry(0, ((4, 5),)).symbols.fill_(77)
    _, check = coder.decode([job])
    with pytest.raises(BitstreamError, match="too early"):
        check()
    assert int((coder.geometry(0, ((4, 5),)).symbols != 77).sum()) < 20  # of 60


@pytest.mark.parametrize(("count", "last"), [(31, 254), (31, 255)])
def test_digits_end(count: int, last: int) -> None:
    level = random_level("bmshj2018-factorized", 2, 1)
    model = model_of(level, architecture="bmshj2018-factorized")
    job = EncodingJob(1, 1, POINT, 1, np.zeros((1, 1, 1), np.int16))
    job.encoder.table(np.array([0], np.uint8), np.zeros(1, np.int32), tables_of(level.y_cdf))
    digits(job.encoder, [255] * count + [last])
    reader = DecodingJob(1, 1, POINT, 1, job.encoder.finish())
    if count + (last == 255) >= 32:
        with pytest.raises(BitstreamError):
            model.code([reader], "triton", DEVICE)
    else:
        (found,) = model.code([reader], "triton", DEVICE)
        assert found.item() == level.offset[0] - 128 - 255 * count - last


def test_latents_fit_in_16_bits() -> None:
    level = constant_level(np.array([128]), np.array([0]), 4)
    model = model_of(level, architecture="mbt2018-mean")
    weights, means, inv_scales, _ = reference.gaussian_mixture(np.array([128]), np.array([0]), 4)
    for last in (135, 136):  # 127 + 7 * 255 + 135 is 2047
        job = EncodingJob(1, 1, POINT, 1, np.zeros((1, 1, 1), np.int16))
        job.encoder.table(np.array([128], np.uint8), np.zeros(1, np.int32), tables_of(level.z_cdf))
        job.encoder.mixture(np.array([255], np.uint8), weights, means, inv_scales)
        digits(job.encoder, [255] * 7 + [last])
        reader = DecodingJob(1, 1, POINT, 1, job.encoder.finish())
        if last == 135:
            assert model.code([reader], "triton", DEVICE)[0].item() == 16 * 2047
        else:
            with pytest.raises(BitstreamError, match="out of range"):
                model.code([reader], "triton", DEVICE)


def test_proof_of_a_device() -> None:
    """What a codec on a GPU asks for when it is made; here with a tile that an interpreter can do."""
    model = tiny_model("mbt2018-mean", m=1)
    coder: DeviceCoder = model.backends()["triton"].coder(DEVICE)  # type: ignore[attr-defined]
    coder.prove(1, 1)
    coder.proved = False
    right = coder.kernels

    def broken(name: str, spoil: Any) -> DeviceCoder:
        def wrong(*args: Any, **options: Any) -> None:
            getattr(right, name)(*args, **options)
            spoil(*args)

        coder.kernels = SimpleNamespace(**{**vars(right), name: wrong})
        coder._levels.clear()
        return coder

    with pytest.raises(BackendError, match="streams are not those"):
        broken("int_conv_fwd", lambda *args: args[5].fill_(3)).prove(1, 1)
    with pytest.raises(BackendError, match="BitstreamError"):
        broken("escapes_fwd", lambda *args: args[12].add_(1)).prove(1, 1)
    with pytest.raises(BackendError, match="other latents"):
        broken("place_fwd", lambda *args: args[8].add_(1)).prove(1, 1)
    with pytest.raises(BackendError, match="RuntimeError"):
        broken("mixture_window_fwd", lambda *args: args[0].view(77)).prove(1, 1)


def test_codec_on_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of both backends are equal; pixels come from latents that never left the device."""
    path = tmp_path / "tiny.safetensors"
    state = weights("mbt2018-mean", 1, n=2, m=2)
    state |= {key: 30 * part for key, part in state.items() if key.startswith("g_a.6.")}
    compressai.convert({3: state}, path, metric="mse", rounding="whole")
    plain, fast = (l2c.Codec(str(path), DEVICE, backend=backend) for backend in ("cpu", "triton"))
    pixels = np.random.default_rng(7).integers(0, 255, (9, 20, 3)).astype(np.uint8)
    data = plain.encode(pixels, quality=3)
    if DEVICE.type == "cpu":  # g_a's floats can differ between devices
        assert fast.encode(pixels, quality=3) == data
    called = []
    queued = fast.decoder.queued
    monkeypatch.setattr(fast.decoder, "queued", lambda *args: called.append(queued(*args)) or called[-1])
    assert np.array_equal(fast.decode(data), plain.decode(data))
    assert called[0] is not None


def test_large_tiles_go_to_the_cpu() -> None:
    backend = tiny_model("mbt2018").backends()["triton"]
    assert backend.takes(make_jobs(tiny_model("mbt2018"), ((2, 4), (1, 2))))
    assert not backend.takes([DecodingJob(1 << 9, 1 << 9, POINT, M, ops.range_encoder().finish())])
    assert backend.queue([DecodingJob(1 << 9, 1 << 9, POINT, M, ops.range_encoder().finish())], DEVICE) is None
