"""The integer kernels against the plain forms and the C++ coder: equality of every integer and every byte.

Without a GPU they run under Triton's interpreter (conftest.py), which takes milliseconds a symbol: sizes are small.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import l2c
from l2c import ops
from l2c.codec.support import parts as parts_of
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.entropy.coder import DecodingJob, EncodingJob, Tile
from l2c.entropy.multiscale import MultiscaleConfig
from l2c.entropy.multiscale.backends.cpu import CpuBackend
from l2c.entropy.multiscale.backends.device_coder import DeviceCoder, choose_lanes, estimate_bits
from l2c.entropy.multiscale.backends.triton import TritonBackend
from l2c.errors import BackendError, BitstreamError, L2CWarning
from l2c.format.bitstream import read_bitstream, write_bitstream
from l2c.format.levels import OperatingPoint
from l2c.models import save_model
from l2c.ops import extension, reference
from l2c.transforms import BlockConfig, Transform

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = ops.triton_reason(DEVICE)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
GOLDEN = Path(__file__).parent / "golden"
Array = NDArray[np.generic]


def random_layer(rng: np.random.Generator, o: int, i: int, k: int) -> tuple[Array, Array, Array]:
    """Weights over the whole int8 range, sums below 2^24, outputs over and beyond 0..255."""
    weight = rng.integers(-127, 128, (o, i, k, k)).astype(np.int8)
    bias = rng.integers(-20000, 20000, o).astype(np.int32)
    multiplier = (rng.choice([50, 150, 400], o) / (128 * 74 * np.sqrt(i * k * k))).astype(np.float32)
    multiplier[::5] *= -1
    return weight, bias, multiplier


def random_mixtures(rng: np.random.Generator, k: int, n: int, extreme: bool = False) -> tuple[Array, Array, Array]:
    """Weights [K, n] that sum to 65520, means, inverse scales from wide to narrow."""
    cuts = np.sort(rng.integers(0, 65521, (k - 1, n)), axis=0)
    edges = np.concatenate((np.zeros((1, n), int), cuts, np.full((1, n), 65520)))
    means = rng.integers(-32768, 32768, (k, n)) if extreme else rng.normal(0, 600, (k, n)).round()
    inv = np.exp2(rng.uniform(0, 15, (k, n)) if extreme else rng.uniform(4, 11, (k, n)))
    return (
        np.diff(edges, axis=0).astype(np.uint16),
        means.clip(-32768, 32767).astype(np.int16),
        inv.clip(1, 32767).astype(np.uint16),
    )


def draw(rng: np.random.Generator, mixtures: tuple[Array, Array, Array], bits: int) -> NDArray[np.uint8]:
    """Symbols near the means, with some far away."""
    n = mixtures[0].shape[1]
    level = mixtures[1][0].astype(float) / 128 / (1 << (8 - bits)) + (1 << (bits - 1)) + rng.normal(0, 2, n)
    level = np.where(rng.random(n) < 0.1, rng.integers(0, 1 << bits, n), level)
    return level.round().clip(0, (1 << bits) - 1).astype(np.uint8)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("height", "width", "i", "o"), [(1, 1, 3, 1), (5, 7, 63, 65), (9, 13, 130, 30)])
def test_integer_conv(height: int, width: int, i: int, o: int, kernel: int) -> None:
    rng = np.random.default_rng(height)
    layer = random_layer(rng, o, i, kernel)
    x = rng.integers(0, 256, (height, width, i)).astype(np.uint8)
    residual = rng.integers(0, 256, (height, width, o)).astype(np.uint8)
    for added, head in ((None, False), (residual, False), (None, True)):
        expected = ops.integer_conv(x, *layer, residual=added, head=head, backend="reference")
        got = ops.integer_conv(x, *layer, residual=added, head=head, backend="triton", device=DEVICE)
        assert got.dtype == expected.dtype
        assert np.array_equal(got, expected)
        assert np.array_equal(ops.integer_conv(x, *layer, residual=added, head=head, backend="cpu"), expected)


def test_rounding_of_products() -> None:
    """Ties, tiny and huge products, both signs: sums of one 1x1 weight spell every case out."""
    x = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    weight = np.array([127, 1, 1, 1, 1, -1, 127, 127, 1], np.int8).reshape(-1, 1, 1, 1)
    multiplier = np.array([0.5, 0.5, 0.25, 1 / 3, 1e-30, 2.5, 2.0**14, 3e30, 0.002], np.float32)
    bias = np.array([0, 0, 1, -7, 5, 3, 0, 1, -128], np.int32)
    for head in (False, True):
        expected = ops.integer_conv(x, weight, bias, multiplier, head=head, backend="cpu")
        got = ops.integer_conv(x, weight, bias, multiplier, head=head, backend="triton", device=DEVICE)
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("num_mixtures", [1, 3, 5])
def test_mixture_params(num_mixtures: int) -> None:
    rng = np.random.default_rng(num_mixtures)
    tables = multiscale.quantise.make_tables()
    raw = rng.integers(-300, 300, (63, 3 * num_mixtures * 5)).astype(np.int16)
    raw[0] = 7  # ties of all components
    raw[1, ::2], raw[1, 1::2] = 32767, -32768
    arguments = raw, num_mixtures, 5, tables.exp, tables.inv_scale
    expected = ops.mixture_params(*arguments, "reference")
    for got in (ops.mixture_params(*arguments, "triton", DEVICE), ops.mixture_params(*arguments, "cpu")):
        for a, b in zip(got, expected):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b)


@pytest.mark.parametrize("bits", range(1, 9))
def test_streams_of_all_backends(bits: int) -> None:
    rng = np.random.default_rng(bits)
    lanes, k, n = (64, 1, 2, 4, 8, 16, 32, 64)[bits - 1], bits, 67 if bits in (1, 8) else 40
    mixtures = random_mixtures(rng, k, n, extreme=bits == 3)
    symbols = draw(rng, mixtures, bits)
    streams = [ops.rans_encode(symbols, *mixtures, bits, lanes, backend=name) for name in ("cpu", "reference")]
    streams.append(ops.rans_encode(symbols, *mixtures, bits, lanes, backend="triton", device=DEVICE))
    assert streams[0] == streams[1] == streams[2]
    for name in ("cpu", "reference", "triton"):
        got = ops.rans_decode(streams[0], *mixtures, bits, backend=name, device=DEVICE if name == "triton" else None)
        assert np.array_equal(got, symbols), name


def test_windows_hold_the_cdf() -> None:
    """Every edge of a window is C there, inside and past the last level."""
    rng = np.random.default_rng(5)
    for bits in (2, 5, 8):
        n = 33
        mixtures = random_mixtures(rng, 2, n, extreme=True)
        parameters = [torch.from_numpy(part.view(np.int16)).to(DEVICE)[:, None] for part in mixtures]
        count, b = (torch.tensor([value], dtype=torch.int32, device=DEVICE) for value in (n, bits))
        window = torch.full((1, n, 16), -1, dtype=torch.int32, device=DEVICE)
        first = torch.full((1, n), -1, dtype=torch.int16, device=DEVICE)
        ops.integer_kernels(DEVICE).mixture_window_fwd(count, b, *parameters, window, first)
        starts = first[0].tolist()
        assert 0 <= min(starts) <= max(starts) <= max(0, (1 << bits) - 15)
        for j, start in enumerate(starts):
            lists = [part[:, j].tolist() for part in mixtures]
            edges = [reference.mixture_cdf(min(start + e, 1 << bits), *lists, bits) for e in range(16)]
            assert window[0, j].tolist() == edges


def test_damaged_streams_are_refused() -> None:
    rng = np.random.default_rng(1)
    mixtures = random_mixtures(rng, 2, 30)
    symbols = draw(rng, mixtures, 8)
    stream = ops.rans_encode(symbols, *mixtures, 8, 4, backend="cpu")
    flipped = bytearray(stream)
    flipped[-3] ^= 16
    for damaged in (stream[:-2], stream + b"\0\0", bytes(flipped), stream[:20], b"", b"\7", b"\2" + bytes(24)):
        with pytest.raises(BitstreamError, match="range coder"):
            ops.rans_decode(bytes(damaged), *mixtures, 8, backend="triton", device=DEVICE)


def test_xxh64() -> None:
    rng = np.random.default_rng(2)
    for n in (0, 1, 3, 4, 7, 8, 31, 32, 33, 63, 64, 100, 1000):
        data = rng.integers(0, 256, n).astype(np.uint8)
        assert ops.xxh64(data) == reference.xxh64(data.tobytes())
    assert reference.xxh64(b"") == 0xEF46DB3751D8E999  # of the specification


def test_lanes_are_those_of_the_cpu_coder() -> None:
    rng = np.random.default_rng(3)
    for n in (1, 400, 9000, 70000):
        mixtures = random_mixtures(rng, 2, n)
        symbols = draw(rng, mixtures, 8)
        encoder = ops.range_encoder()
        encoder.push_mixture(symbols, *mixtures, 8)
        low, high = (
            ops.cpp_extension().mixture_cdf(symbols.astype(np.int32) + e, *mixtures, 8).astype(np.int32) for e in (0, 1)
        )
        freq = torch.from_numpy(high - low)[None]
        padded = torch.cat((freq, torch.ones(1, 5, dtype=torch.int32)), dim=1)
        (bits,) = estimate_bits(padded, torch.tensor([n])).tolist()
        assert 1 << encoder.finish()[0] == choose_lanes(bits)


def tiny_model(
    prior: str, scales: int = 2, groups: tuple[int, ...] = (2, 3)
) -> tuple[ModelConfig, multiscale.IntegerModel]:
    """P with random weights, small enough for the interpreter; widths that are no multiples of anything."""
    torch.manual_seed(4)
    config = ModelConfig(
        name="tiny",
        transform=BlockConfig(s=8, c=5, width=16, fine_width=0),
        probability=MultiscaleConfig(num_scales=scales, channel_groups=groups, num_mixtures=2, width=18, prior=prior),
    )
    model = config.float_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return config, multiscale.IntegerModel.from_float(model)


def make_jobs(rng: np.random.Generator, c: int) -> list[EncodingJob]:
    """Tiles of different sizes, qualities, bits and used channels; one of them a single latent."""
    jobs = []
    for height, width, values, used in ((5, 4, (500, 3, 8), c), (4, 3, (100, 0, 5), 3), (1, 1, (930, 8, 8), 1)):
        point, b = OperatingPoint(*values), values[2]
        symbols = np.full((c, height, width), 1 << (b - 1), dtype=np.uint8)
        symbols[:used] = rng.normal(1 << (b - 1), 2, (used, height, width)).round().clip(0, (1 << b) - 1)
        jobs.append(EncodingJob(height, width, point, used, symbols))
    return jobs


def reading(jobs: list[EncodingJob], streams: list[bytes]) -> list[DecodingJob]:
    """The same tiles, to be read from their streams."""
    return [DecodingJob(job.height, job.width, job.point, job.used, stream) for job, stream in zip(jobs, streams)]


@pytest.mark.parametrize(("prior", "scales"), [("learned", 2), ("uniform", 1)])  # the prior is the last scale's alone
def test_tiles_between_backends(prior: str, scales: int) -> None:
    """Streams and symbols of whole tiles, batched with padding on the device, are those of the CPU, both ways."""
    _, model = tiny_model(prior, scales)
    chosen = slice(None, 2) if scales == 2 else slice(1, None)  # a single latent has no more to tell of two scales
    streams = {}
    for backend in ("cpu", "triton"):
        jobs = make_jobs(np.random.default_rng(6), model.c)[chosen]
        model.code(jobs, backend, DEVICE)
        streams[backend] = [job.encoder.finish() for job in jobs]
    assert streams["cpu"] == streams["triton"]
    known = make_jobs(np.random.default_rng(6), model.c)[chosen]
    for backend in ("cpu", "triton"):
        jobs = reading(known, streams["triton"])
        for got, job in zip(model.code(jobs, backend, DEVICE), known):
            assert np.array_equal(got, job.symbols), backend
    if DEVICE.type != "cuda":
        return
    # The same geometry again: launches are replayed now, and its buffers hold the values of the last batch, as they did
    # above, where decoding followed encoding.
    again = reading(known, streams["cpu"])
    for got, job in zip(model.code(again, "triton", DEVICE), known):
        assert np.array_equal(got, job.symbols)


def test_known_answer_of_a_model() -> None:
    _, model = tiny_model("learned", 1)
    assert model.known_answer("triton", DEVICE) == model.known_answer("reference")


def test_damaged_tile_is_refused() -> None:
    _, model = tiny_model("learned", 1)
    jobs = make_jobs(np.random.default_rng(6), model.c)[1:]
    model.code(jobs, "cpu")
    payloads = [job.encoder.finish() for job in jobs]
    payloads[0] = payloads[0][:-2] if len(payloads[0]) > 9 else payloads[0] + b"\0\0"
    readers = reading(jobs, payloads)
    with pytest.raises(BitstreamError, match="range coder"):
        model.code(readers, "triton", DEVICE)


def test_symbols_out_of_range_are_refused() -> None:
    mixtures = random_mixtures(np.random.default_rng(8), 2, 5)
    with pytest.raises(ValueError, match="not below"):
        ops.rans_encode(np.array([1, 2, 9, 3, 4], np.uint8), *mixtures, 3, 2, backend="triton", device=DEVICE)


def test_backends_by_name() -> None:
    x = np.zeros((2, 2, 1), np.uint8)
    layer = np.ones((1, 1, 1, 1), np.int8), np.zeros(1, np.int32), np.ones(1, np.float32)
    with pytest.raises(BackendError, match="no backend is called"):
        ops.integer_conv(x, *layer, backend="cuda")
    if extension.load_cuda()[0] is None:
        with pytest.raises(BackendError, match="L2C_CUDA=1"):
            ops.integer_kernels(DEVICE, "cuda")
    with pytest.raises(ValueError, match="no residual"):
        ops.integer_conv(x, *layer, residual=x, head=True)
    with pytest.raises(ValueError, match="input channels"):
        ops.integer_conv(np.zeros((2, 2, 3), np.uint8), *layer, backend="reference")


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> l2c.Codec:
    """A model with all that the kernels know, as small as that can be, on the kernels."""
    config, model = tiny_model("learned", 2, (5,))
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, config, Transform(config.transform), model, rate_curve=[])
    return l2c.Codec(str(path), DEVICE, backend="triton")


def test_codec_on_the_kernels(fast: l2c.Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of both backends are equal; pixels come from symbols that never left the device, and are checked."""
    plain = l2c.Codec(fast.model.path, backend="cpu")
    assert fast.backend == "triton"
    rng = np.random.default_rng(7)
    pixels = [rng.integers(90, 130, size).astype(np.uint8) for size in ((9, 7, 3), (4, 8, 3))]
    files = [codec.encode_batch(pixels, quality=10) for codec in (plain, fast)]
    if DEVICE.type == "cpu":  # E's floats can differ between devices
        assert files[0] == files[1]
    called = []
    queued = fast.decoder.queued

    def spy(*args: Any, **options: Any) -> Any:
        called.append(queued(*args, **options))
        return called[-1]

    monkeypatch.setattr(fast.decoder, "queued", spy)
    pictures = fast.decode_batch(files[0])
    assert called[0] is not None
    for got, expected in zip(pictures, plain.decode_batch(files[0])):
        assert int(np.abs(got.astype(int) - expected).max()) <= (1 if DEVICE.type == "cuda" else 0)
    assert fast.verify(files[0][1]) == plain.verify(files[0][1])

    # A stream that is altered behind correct CRCs: the queued pixels are thrown away, and the error names the cause.
    stream = read_bitstream(files[0][0])
    payload = bytearray(stream.payloads[0])
    payload[-1] ^= 1
    damaged = write_bitstream(stream.header, [bytes(payload)], [stream.tiles[0].channels])
    with pytest.raises(BitstreamError, match="latents"):
        fast.decode(damaged)
    assert called[-1] is None


def test_queued_batches_have_parts() -> None:
    parts = [list(range(9))[part] for part in parts_of([3, 3, 5, 9, 1, 1, 1, 4, 4], 8)]
    assert parts == [[0, 1], [2], [3], [4, 5, 6, 7], [8]]
    assert list(parts_of([], 8)) == []


def test_kernels_that_fail_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = tiny_model("learned")
    answer = model.known_answer("reference")
    monkeypatch.setattr(DeviceCoder, "record", lambda self, jobs: 1 / 0)
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        model.check(answer, "triton", DEVICE)
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        l2c.Codec(str(GOLDEN / "golden.safetensors"), DEVICE, backend="triton")
    monkeypatch.setattr(TritonBackend, "suits", lambda self, device: True)  # "auto" takes it here as on a GPU
    monkeypatch.setattr(CpuBackend, "suits", lambda self, device: False)
    with pytest.warns(L2CWarning, match="using PyTorch"):
        codec = l2c.Codec(str(GOLDEN / "golden.safetensors"), DEVICE)
    assert codec.backend == "torch"


def test_proof_of_a_device() -> None:
    """What a codec on a GPU asks for when it is made; here with a tile that an interpreter can do."""
    _, model = tiny_model("learned", 1, (5,))
    coder = DeviceCoder(model, DEVICE)
    coder.prove(2, 3)
    assert not coder.kept
    coder.proved = False
    right = coder.kernels

    def broken(name: str, spoil: Any) -> DeviceCoder:
        def wrong(*args: Any, **options: Any) -> None:
            getattr(right, name)(*args, **options)
            spoil(*args)

        coder.kernels = SimpleNamespace(**{**vars(right), name: wrong})
        return coder

    with pytest.raises(BackendError, match="streams are not those"):
        broken("int_conv_fwd", lambda *args: args[5].fill_(3)).prove(2, 3)
    with pytest.raises(BackendError, match="streams are not those"):
        broken("rans_encode_fwd", lambda *args: args[5].fill_(1)).prove(2, 3)
    with pytest.raises(BackendError, match="BitstreamError"):
        broken("rans_decode_fwd", lambda *args: args[14].zero_()).prove(2, 3)
    fills = []

    def spoil_the_last(*args: Any) -> None:
        """What no later group sees, and no hash of the coder."""
        fills.append(args)
        if len(fills) > 4 and len(fills) % 4 == 0:
            args[5][:, 0, 1::2, 1::2] += 1

    with pytest.raises(BackendError, match="other symbols"):
        broken("fill_fwd", spoil_the_last).prove(2, 3)
    with pytest.raises(BackendError, match="RuntimeError"):
        broken("mixture_window_fwd", lambda *args: args[0].view(77)).prove(2, 3)


def test_a_stream_that_ends_is_not_read_on() -> None:
    """Seven bytes cannot make the decoder walk through a tile."""
    _, model = tiny_model("learned")
    coder = model.backends()["triton"].coder(DEVICE)
    payload = b"\0" + (1 << 32).to_bytes(6, "little")
    job = DecodingJob(9, 9, OperatingPoint(500, 3, 8), 5, payload)
    coder.geometry([job]).coded.fill_(77)
    _, check = coder.decode([job])
    with pytest.raises(BitstreamError, match="too early"):
        check()
    assert int((coder.geometry([job]).coded != 77).sum()) < 20  # of 405


def test_symbols_of_a_tile_out_of_range_are_refused() -> None:
    _, model = tiny_model("learned", 1)
    for backend in ("cpu", "triton"):
        symbols = np.full((5, 4, 3), 16, np.uint8)
        symbols[0, 0, 0] = 200
        job = EncodingJob(4, 3, OperatingPoint(500, 3, 5), 5, symbols)
        with pytest.raises(ValueError, match="not below"):
            model.code([job], backend, DEVICE)


def test_batches_of_the_same_sizes_share_a_geometry() -> None:
    _, model = tiny_model("learned", 1)
    jobs = make_jobs(np.random.default_rng(6), model.c)[1:]
    coder = DeviceCoder(model, DEVICE)
    streams = coder.encode(jobs)
    assert coder.encode(jobs[::-1]) == streams[::-1]
    assert coder.kept == [((1, 1), (4, 3))]
    symbols, check = coder.decode(reading(jobs[::-1], streams[::-1]))
    check()
    for got, job in zip(symbols, jobs[::-1]):
        assert np.array_equal(got.cpu().numpy(), job.symbols)


def test_the_cpu_takes_over_from_a_device_that_fails(fast: l2c.Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(7).integers(90, 130, (4, 8, 3)).astype(np.uint8)
    plain = l2c.Codec(fast.model.path, backend="cpu")
    file = plain.encode(pixels, quality=10)
    expected = plain.decode(file)

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DeviceCoder, "decode", fail)
    monkeypatch.setattr(DeviceCoder, "encode", fail)
    with pytest.warns(L2CWarning, match="CUDA out of memory.*using the CPU"):
        assert np.abs(fast.decode(file).astype(int) - expected).max() <= 1
    with pytest.warns(L2CWarning, match="using the CPU"):
        assert fast.verify(file) == plain.verify(file)
    with pytest.warns(L2CWarning, match="using the CPU"):
        plain.decode(fast.encode(pixels, quality=10))


def test_large_tiles_are_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile whose buffers would fill a GPU is coded by the C++ engine, with the same stream."""
    _, model = tiny_model("learned")
    jobs = make_jobs(np.random.default_rng(6), model.c)
    model.code(jobs, "cpu")
    streams = [job.encoder.finish() for job in jobs]
    backend = model.backends()["triton"]
    assert isinstance(backend, TritonBackend)
    backend.most_positions = 10
    monkeypatch.setattr(DeviceCoder, "encode", lambda self, jobs: 1 / 0)
    again = make_jobs(np.random.default_rng(6), model.c)
    model.code(again, "triton", DEVICE)
    assert [job.encoder.finish() for job in again] == streams


def test_geometries_are_dropped() -> None:
    _, model = tiny_model("learned")
    coder = DeviceCoder(model, DEVICE, kept_positions=50, kept_geometries=3)

    def jobs(*sizes: tuple[int, int]) -> list[Tile]:
        return [Tile(h, w, OperatingPoint(500, 0, 8), 5) for h, w in sizes]

    first = coder.geometry(jobs((4, 4)))
    assert coder.geometry(jobs((4, 4))) is first
    coder.geometry(jobs((2, 8), (4, 2)))  # 64 positions with padding: more than may be kept beside it
    assert coder.geometry(jobs((4, 4))) is not first
    coder.kept_positions = 10**6
    made = [coder.geometry(jobs((side, side))) for side in range(1, 7)]
    again = [coder.geometry(jobs((side, side))) for side in (6, 5, 4, 3)]
    assert [new is old for new, old in zip(again, made[::-1])] == [True, True, True, False]
