"""IntConv against a plain reference: the same integers on every CPU path, thread count, size and stride."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from l2c import ops
from l2c.errors import BackendError

core = ops.cpp_extension()

BACKENDS = {"scalar": ("scalar",), "avx2": ("avx2",), "avx512": ("avx512vnni",), "neon": ("neon", "neondot")}
CHANNELS = (1, 3, 16, 17, 112, 130)
Array = NDArray[np.generic]


@pytest.fixture(params=BACKENDS)
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the test once per CPU path; skips paths that this machine lacks."""
    monkeypatch.setenv("L2C_CPU", request.param)
    try:
        backend = core.int_conv_backend()
    except BackendError as error:
        pytest.skip(str(error))
    if backend not in BACKENDS[request.param]:
        pytest.skip(f"{request.param} runs {backend} here")
    yield request.param


def accumulate(x: Array, weight: Array, bias: Array) -> Array:
    """int64 [H, W, O]: the sums, one matrix product of integers per tap."""
    height, width, channels = x.shape
    kernel = weight.shape[2]
    padded = np.pad(x.astype(np.int64), ((kernel // 2,) * 2, (kernel // 2,) * 2, (0, 0)))
    acc = np.tile(bias.astype(np.int64), (height * width, 1))
    for dy in range(kernel):
        for dx in range(kernel):
            taps = padded[dy : dy + height, dx : dx + width].reshape(-1, channels)
            acc += taps @ weight[:, :, dy, dx].T.astype(np.int64)
    return acc.reshape(height, width, -1)


def requantise(acc: Array, multiplier: Array, residual: Array | None = None, out: str = "u8") -> Array:
    """The second half of the definition in csrc/simd/int_conv.h.

    The product of two float32 is exact in float64; it is then rounded once to float32, then to an integer.
    """
    product = (acc.astype(np.float32).astype(np.float64) * multiplier.astype(np.float64)).astype(np.float32)
    r = np.rint(product).astype(np.float64)
    if out == "i16":
        return np.clip(r, -32768, 32767).astype(np.int16)
    if residual is not None:
        r = r + residual
    return np.clip(r, 0, 255).astype(np.uint8)


def reference(x: Array, weight: Array, bias: Array, multiplier: Array, residual: Array | None = None) -> Array:
    return requantise(accumulate(x, weight, bias), multiplier, residual)


def random_layer(rng: np.random.Generator, o: int, i: int, k: int) -> tuple[Array, Array, Array]:
    """Weights over the whole int8 range; multipliers that spread the outputs over and beyond 0..255."""
    weight = rng.integers(-128, 128, (o, i, k, k)).astype(np.int8)
    bias = rng.integers(-20000, 20000, o).astype(np.int32)
    spread = 128 * 74 * np.sqrt(i * k * k)  # about one standard deviation of the sum
    multiplier = (rng.choice([50, 150, 400], o) * rng.uniform(0.5, 1, o) / spread).astype(np.float32)
    return weight, bias, multiplier


def random_u8(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(0, 256, shape).astype(np.uint8)


def check_all_outputs(layer: tuple[Array, Array, Array], x: Array, residual: Array, threads: tuple[int, ...]) -> None:
    conv = core.IntConv(*layer)
    acc = accumulate(x, *layer[:2])
    for out, added in (("u8", None), ("u8", residual), ("i16", None)):
        expected = requantise(acc, layer[2], added, out)
        for count in threads:
            got = conv.run(x, residual=added, out=out, threads=count)
            assert got.dtype == expected.dtype
            assert np.array_equal(got, expected), (x.shape, layer[0].shape, out, added is not None, count)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (13, 17)])
def test_odd_sizes(cpu: str, size: tuple[int, int], kernel: int) -> None:
    rng = np.random.default_rng(0)
    for i in CHANNELS:
        for o in CHANNELS:
            layer = random_layer(rng, o, i, kernel)
            check_all_outputs(layer, random_u8(rng, *size, i), random_u8(rng, *size, o), (1, 2, 3))


@pytest.mark.parametrize("kernel", [1, 3])
def test_typical_sizes(cpu: str, kernel: int) -> None:
    rng = np.random.default_rng(1)
    shapes = [(48, 32, 112, 112), (48, 32, 17, 130), (3, 256, 130, 16)]
    if kernel == 1:
        shapes += [(24, 16, 560, 112), (12, 8, 112, 648), (2, 700, 33, 20)]
    for height, width, i, o in shapes:
        layer = random_layer(rng, o, i, kernel)
        check_all_outputs(layer, random_u8(rng, height, width, i), random_u8(rng, height, width, o), (1, 2, 3))


def test_every_width(cpu: str) -> None:
    """Every width of a tile and every number of output blocks."""
    rng = np.random.default_rng(2)
    for o in range(1, 100, 14):
        layer = random_layer(rng, o, 8, 3)
        for width in range(1, 36):
            check_all_outputs(layer, random_u8(rng, 2, width, 8), random_u8(rng, 2, width, o), (1,))


def sparse_u8(rng: np.random.Generator, height: int, width: int, channels: int) -> Array:
    """Zeros by channel, by pixel and at random: whole groups of inputs of a tile are zero, others nearly."""
    x = random_u8(rng, height, width, channels)
    x *= rng.random((1, 1, channels)) < 0.5
    x *= rng.random((height, width, 1)) < 0.6
    return x * (rng.random(x.shape) < 0.3)


@pytest.mark.parametrize("kernel", [1, 3])
def test_zeros(cpu: str, kernel: int) -> None:
    """Inputs that are zero in a whole tile are left out; the sums stay as they are."""
    rng = np.random.default_rng(7)
    for i in CHANNELS:
        layer = random_layer(rng, 130, i, kernel)
        for height, width in ((1, 1), (3, 5), (7, 41), (5, 64)):
            for x in (sparse_u8(rng, height, width, i), np.zeros((height, width, i), np.uint8)):
                check_all_outputs(layer, x, random_u8(rng, height, width, 130), (1, 2))


@pytest.mark.parametrize("channels", [4, 16, 68, 112, 203])
def test_offset_channels(cpu: str, channels: int) -> None:
    """The first inputs are x - 128, and 128 is what can be left out."""
    rng = np.random.default_rng(8)
    weight, bias, multiplier = random_layer(rng, 113, channels, 1)
    for offset in {0, 4, channels // 2 // 4 * 4, channels // 4 * 4}:
        conv = core.IntConv(weight, bias, multiplier, offset)
        for height, width in ((1, 1), (2, 9), (6, 47)):
            real = sparse_u8(rng, height, width, channels).astype(np.int64)
            real[:, :, :offset] -= 128 * (real[:, :, :offset] != 0)
            x = real.copy()
            x[:, :, :offset] += 128
            expected = requantise(real.reshape(-1, channels) @ weight[:, :, 0, 0].T.astype(np.int64) + bias, multiplier)
            for threads in (1, 2):
                got = conv.run(x.astype(np.uint8), threads=threads)
                assert np.array_equal(got, expected.reshape(height, width, -1))


@pytest.mark.parametrize(("kernel", "channels"), [(1, 514), (1, 16), (3, 57), (3, 56), (1, 12000)])
def test_extreme_values(cpu: str, kernel: int, channels: int) -> None:
    """Nothing saturates or wraps: |sum| just below 2^24, and far above it within the constructor's 2^31."""
    for low, high in ((127, 127), (-128, -128), (-128, 127), (127, -128)):
        weight = np.full((17, channels, kernel, kernel), low, np.int8)
        weight[:, ::2] = high
        for bias in (0, 1 << 20, -(1 << 20)):
            biases = np.full(17, bias, np.int32)
            multiplier = np.geomspace(1e-7, 1.0, 17).astype(np.float32)
            x = np.full((3, 7, channels), 255, np.uint8)
            check_all_outputs((weight, biases, multiplier), x, np.full((3, 7, 17), 255, np.uint8), (2,))


def test_huge_products_are_clamped(cpu: str) -> None:
    weight = np.array([127, -128, 127, -128], np.int8).reshape(4, 1, 1, 1)
    multiplier = np.array([3e38, 3e38, -1e6, -1e6], np.float32)
    x = np.array([0, 1, 255], np.uint8).reshape(1, 3, 1)
    residual = np.full((1, 3, 4), 7, np.uint8)
    conv = core.IntConv(weight, np.zeros(4, np.int32), multiplier)
    high, low = [0, 32767, 32767], [0, -32768, -32768]
    assert conv.run(x, out="i16")[0].T.tolist() == [high, low, low, high]
    assert conv.run(x, residual=residual)[0].T.tolist() == [
        [7, 255, 255],
        [7, 0, 0],
        [7, 0, 0],
        [7, 255, 255],
    ]


def test_ties_round_to_even(cpu: str) -> None:
    multipliers = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 8), Fraction(3, 2), Fraction(-5, 2)]
    x = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    for sign in (1, -1):
        for bias in (0, 1, -77):
            weight = np.full((5, 1, 1, 1), sign, np.int8)
            conv = core.IntConv(
                weight, np.full(5, bias, np.int32), np.array([float(m) for m in multipliers], np.float32)
            )
            got = conv.run(x, out="i16").reshape(256, 5)
            expected = [[round((sign * value + bias) * m) for m in multipliers] for value in range(256)]
            assert got.tolist() == expected
    halves = core.IntConv(np.ones((1, 1, 1, 1), np.int8), np.zeros(1, np.int32), np.full(1, 0.5, np.float32))
    assert halves.run(x).reshape(-1)[:8].tolist() == [0, 0, 1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("i", "o"), [(112, 48), (17, 33), (4, 1)])
def test_strided_views(cpu: str, kernel: int, i: int, o: int) -> None:
    """x, residual and into as channel slices of wider buffers; only the slice of `into` is written."""
    rng = np.random.default_rng(3)
    layer = random_layer(rng, o, i, kernel)
    conv = core.IntConv(*layer)
    for height, width in ((1, 1), (6, 11), (16, 24)):
        buffer = random_u8(rng, height, width, i + o + 13)
        wide = random_u8(rng, height + 2, width + 3, o + 9)
        x, residual = buffer[:, :, 5 : 5 + i], wide[1:-1, 2:-1, 4 : 4 + o]
        for threads in (1, 2):
            target = random_u8(rng, height + 1, width + 2, o + 5)
            expected = target.copy()
            expected[1:, 1:-1, 3 : 3 + o] = reference(x, *layer, residual)
            into = target[1:, 1:-1, 3 : 3 + o]
            assert conv.run(x, residual=residual, threads=threads, into=into) is into
            assert np.array_equal(target, expected)

            words = rng.integers(-9, 9, (height, width, o + 3)).astype(np.int16)
            expected = words.copy()
            expected[:, :, 1 : 1 + o] = requantise(accumulate(x, *layer[:2]), layer[2], out="i16")
            conv.run(x, out="i16", threads=threads, into=words[:, :, 1 : 1 + o])
            assert np.array_equal(words, expected)

            same = buffer.copy()  # the output goes to other channels of the input's own buffer
            expected = same.copy()
            expected[:, :, 5 + i : 5 + i + o] = reference(x, *layer)
            conv.run(same[:, :, 5 : 5 + i], threads=threads, into=same[:, :, 5 + i : 5 + i + o])
            assert np.array_equal(same, expected)

            in_place = residual.copy()
            conv.run(x, residual=in_place, threads=threads, into=in_place)
            assert np.array_equal(in_place, reference(x, *layer, residual))


def test_inputs_stay_as_they_are(cpu: str) -> None:
    rng = np.random.default_rng(4)
    layer = random_layer(rng, 20, 20, 3)
    x, residual = random_u8(rng, 9, 9, 20), random_u8(rng, 9, 9, 20)
    copies = [a.copy() for a in (*layer, x, residual)]
    conv = core.IntConv(*layer)
    expected = conv.run(x, residual=residual)
    assert all(np.array_equal(a, b) for a, b in zip(copies, (*layer, x, residual), strict=True))
    layer[0][...] = 0  # the layer holds its own copy
    assert np.array_equal(conv.run(x, residual=residual), expected)
    x.setflags(write=False)
    assert np.array_equal(conv.run(x, residual=residual), expected)
    assert (conv.out_channels, conv.in_channels, conv.kernel_size) == (20, 20, 3)


def test_calls_from_several_threads(cpu: str) -> None:
    rng = np.random.default_rng(5)
    layer = random_layer(rng, 64, 64, 3)
    conv = core.IntConv(*layer)  # packed at first use, by one of the threads
    x = random_u8(rng, 16, 16, 64)
    expected = reference(x, *layer)
    results: list[bool] = []

    def work() -> None:
        results.extend(np.array_equal(conv.run(x, threads=3), expected) for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 80


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_after_fork() -> None:
    """A forked child has none of the parent's helper threads and starts its own."""
    script = """
import importlib.util, os, sys
import numpy as np
spec = importlib.util.spec_from_file_location("l2c._C", sys.argv[1])  # alone: without torch, which takes seconds
extension = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extension)
conv = extension.IntConv(np.ones((64, 64, 3, 3), np.int8), np.zeros(64, np.int32), np.full(64, 1e-3, np.float32))
x = np.full((32, 32, 64), 9, np.uint8)
expected = conv.run(x, threads=1)
same = lambda: all(np.array_equal(conv.run(x, threads=2), expected) for _ in range(20))
assert same()
child = os.fork()
if child == 0:
    os._exit(0 if same() else 1)
assert os.waitpid(child, 0)[1] == 0 and same()
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, ops.cpp_extension().__file__]
    subprocess.run(command, check=True, timeout=60)


def ones(*shape: int, dtype: type = np.uint8) -> Array:
    return np.ones(shape, dtype)


WEIGHT, BIAS, MULTIPLIER = ones(4, 3, 3, 3, dtype=np.int8), ones(4, dtype=np.int32), ones(4, dtype=np.float32)


@pytest.mark.parametrize(
    "layer",
    [
        (WEIGHT.astype(np.uint8), BIAS, MULTIPLIER),
        (WEIGHT, BIAS.astype(np.int64), MULTIPLIER),
        (WEIGHT, BIAS, MULTIPLIER.astype(np.float64)),
        (WEIGHT, ones(5, dtype=np.int32), MULTIPLIER),
        (WEIGHT, BIAS, MULTIPLIER[:, None]),
        (WEIGHT[0], BIAS, MULTIPLIER),
        (ones(4, 3, 2, 2, dtype=np.int8), BIAS, MULTIPLIER),
        (ones(4, 3, 1, 3, dtype=np.int8), BIAS, MULTIPLIER),
        (ones(4, 0, 1, 1, dtype=np.int8), BIAS, MULTIPLIER),
        (ones(8, 3, 1, 1, dtype=np.int8)[::2], BIAS, MULTIPLIER),
        (WEIGHT, BIAS, MULTIPLIER * np.float32(np.nan)),
        (WEIGHT, BIAS, MULTIPLIER * np.float32(np.inf)),
        (np.full((4, 65794, 1, 1), -128, np.int8), BIAS, MULTIPLIER),  # 255 * 128 * 65794 >= 2^31
        (WEIGHT * np.int8(0), np.full(4, -(2**31), np.int32), MULTIPLIER),
    ],
)
def test_layer_errors(layer: tuple[Array, Array, Array]) -> None:
    with pytest.raises(ValueError):
        core.IntConv(*layer)


@pytest.mark.parametrize(("kernel", "offset"), [(3, 4), (1, 2), (1, -4), (1, 12), (1, 1 << 20)])
def test_offset_errors(kernel: int, offset: int) -> None:
    layer = (ones(4, 8, kernel, kernel, dtype=np.int8), BIAS, MULTIPLIER)
    with pytest.raises(ValueError, match="offset"):
        core.IntConv(*layer, offset)


def test_bound_is_exact() -> None:
    zero = np.zeros((1, 1, 1, 1), np.int8)
    core.IntConv(zero, np.full(1, 2**31 - 1, np.int32), ones(1, dtype=np.float32))
    core.IntConv(zero + 1, np.full(1, 2**31 - 256, np.int32), ones(1, dtype=np.float32))
    with pytest.raises(ValueError, match="output channel 0"):
        core.IntConv(zero + 1, np.full(1, 2**31 - 255, np.int32), ones(1, dtype=np.float32))


def test_run_errors() -> None:
    conv = core.IntConv(ones(4, 3, 1, 1, dtype=np.int8), ones(4, dtype=np.int32), ones(4, dtype=np.float32))
    x = ones(5, 6, 3)
    buffer = ones(5, 6, 8)
    read_only = ones(5, 6, 4)
    read_only.setflags(write=False)
    bad: list[tuple[Array, dict[str, object]]] = [
        (x.astype(np.int8), {}),
        (x.astype(np.float32), {}),
        (ones(5, 6, 4), {}),
        (ones(5, 6), {}),
        (ones(1, 5, 6, 3), {}),
        (ones(0, 6, 3), {}),
        (ones(5, 0, 3), {}),
        (ones(5, 6, 6)[:, :, ::2], {}),
        (ones(3, 6, 5).T, {}),
        (x[::-1], {}),
        (np.broadcast_to(x[:1], x.shape), {}),
        (x, {"out": "u16"}),
        (x, {"threads": 0}),
        (x, {"threads": -1}),
        (x, {"residual": ones(5, 6, 3)}),
        (x, {"residual": ones(6, 5, 4)}),
        (x, {"residual": ones(5, 6, 4, dtype=np.int16)}),
        (x, {"residual": ones(5, 6, 4), "out": "i16"}),
        (x, {"into": ones(5, 6, 3)}),
        (x, {"into": ones(5, 6, 4, dtype=np.int16)}),
        (x, {"into": ones(5, 6, 4), "out": "i16"}),
        (x, {"into": read_only}),
        (buffer[:, :, :3], {"into": buffer[:, :, 2:6]}),
        (buffer[:, :, 5:], {"into": buffer[:, :, 2:6]}),
        (x, {"residual": buffer[:, :, :4], "into": buffer[:, :, 3:7]}),
    ]
    for array, options in bad:
        with pytest.raises(ValueError):
            conv.run(array, **options)
    with pytest.raises(TypeError):
        conv.run(x.tolist())


def test_unknown_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2C_CPU", "abacus")
    conv = core.IntConv(ones(1, 1, 1, 1, dtype=np.int8), ones(1, dtype=np.int32), ones(1, dtype=np.float32))
    with pytest.raises(BackendError, match="abacus"):
        conv.run(ones(1, 1, 1))
