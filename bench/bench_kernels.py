"""Operators by backend, each against the plain or PyTorch form of the same run, results compared.

    make bench ARGS="-k kernels"

P's layers have the sizes of the finest scale of a 768x512 picture. Kernels are timed on buffers that lie on the device
already, as the codec uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench_rans import picture_stream
from conftest import DEVICES

from l2c import ops
from l2c.entropy import multiscale
from l2c.entropy.multiscale.backends import stepwise
from l2c.errors import BackendError
from l2c.ops import arithmetic, reference

ROWS, COLUMNS = 32, 48
LAYERS = {"w1": (504, 112, 1), "w2": (112, 112, 3), "w4": (112, 648, 1)}  # inputs, outputs, kernel


def available(device: str) -> list[str]:
    return ["cpu", "torch"] if device == "cpu" else ["triton", "torch"]


def layer_of(name: str) -> tuple[Any, Any, Any, Any]:
    """Activations uint8 [rows, columns, I], weight, bias and multiplier of a layer."""
    inputs, outputs, kernel = LAYERS[name]
    rng = np.random.default_rng(0)
    weight = rng.integers(-40, 41, (outputs, inputs, kernel, kernel)).astype(np.int8)
    bias = rng.integers(-2000, 2000, outputs).astype(np.int32)
    multiplier = np.full(outputs, 1 / (60 * 24 * np.sqrt(inputs * kernel**2)), np.float32)
    return rng.integers(0, 256, (ROWS, COLUMNS, inputs)).astype(np.uint8), weight, bias, multiplier


@pytest.mark.parametrize(
    ("device", "backend"), [(device, backend) for device in DEVICES for backend in available(device)]
)
@pytest.mark.parametrize("layer", LAYERS)
def test_kernels_conv(timed: Callable[..., Any], layer: str, device: str, backend: str) -> None:
    x, weight, bias, multiplier = layer_of(layer)
    inputs, outputs, kernel = LAYERS[layer]
    plain = SimpleNamespace(weight=weight, bias=bias, multiplier=multiplier)
    expected = reference.integer_conv(x.transpose(2, 0, 1), plain).clip(0, 255)  # type: ignore[arg-type]
    facts = {
        "part": f"layer {layer}",
        "macs": ROWS * COLUMNS * inputs * outputs * kernel**2,
        "bytes": x.size + weight.size + ROWS * COLUMNS * outputs,
        "backend": backend,
        "device": device,
    }
    if backend == "cpu":
        conv = ops.int_conv(weight, bias, multiplier)
        got = timed(lambda: conv.run(x, threads=2), **facts).transpose(2, 0, 1)
    elif backend == "torch":
        place = torch.device(device)
        image = torch.from_numpy(x).to(place, arithmetic.carrier(place)).permute(2, 0, 1)[None]
        parts = (
            torch.from_numpy(weight).to(image),
            torch.from_numpy(bias).to(image).view(1, -1, 1, 1),
            torch.from_numpy(multiplier).to(device).view(1, -1, 1, 1),
        )
        with arithmetic.exact_products(place):
            out = timed(lambda: stepwise.TorchEngine.conv(image, parts).clamp(0, 255), **facts)
        got = out[0].cpu().numpy()
    else:
        place = torch.device(device)
        packed = ops.pack_layer(weight, bias, multiplier, slice(None), place)
        padded = np.full((1, ROWS, COLUMNS, packed.weight.shape[2]), -128, np.int8)
        padded[0, ..., :inputs] = x.astype(np.int16) - 128
        image = torch.from_numpy(padded).to(place)
        out = torch.empty((1, ROWS, COLUMNS, outputs), dtype=torch.int8, device=place)
        sizes = torch.tensor([[ROWS, COLUMNS]], dtype=torch.int32, device=place)
        kernels = ops.integer_kernels(place)
        timed(lambda: kernels.int_conv_fwd(image, packed.weight, packed.bias, packed.multiplier, sizes, out), **facts)
        got = out[0].cpu().numpy().astype(np.int16).transpose(2, 0, 1) + 128
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_kernels_params(timed: Callable[..., Any], backend: str) -> None:
    tables = multiscale.quantise.make_tables()
    raw = np.random.default_rng(0).integers(-200, 200, (ROWS * COLUMNS, 648)).astype(np.int16)
    arguments = raw, 3, 72, tables.exp, tables.inv_scale
    got = timed(
        lambda: ops.mixture_params(*arguments, backend),
        part="mixture parameters",
        symbols=raw.shape[0] * 72,
        bytes=2 * raw.nbytes,
        backend=backend,
    )
    for a, b in zip(got, reference.mixture_params(*arguments)):
        np.testing.assert_array_equal(a, b)


FLOAT_BACKENDS = [
    ("cpu", "cpu"),
    ("cpu", "reference"),
    *([("cuda", "triton"), ("cuda", "reference")] if "cuda" in DEVICES else []),
]


def float_operator(name: str, device: str, backend: str) -> tuple[Callable[[], list[torch.Tensor]], int]:
    """A call of an operator with its gradient, on the sizes of that scale, and the bytes it has to move."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        t = torch.randn(shape, generator=generator).to(device).contiguous(memory_format=torch.channels_last)
        return t.requires_grad_()

    x, b = tensor(1, 72, ROWS, COLUMNS), torch.tensor([8], device=device)
    if "bits" in name:
        params = tensor(1, 648, ROWS, COLUMNS)
        outputs = 1 if name == "bits of mixtures" else 3
        operator = ops.mixture_bits if name == "bits of mixtures" else ops.neighbour_bits

        def call() -> list[torch.Tensor]:
            found = operator(x, params, 3, b, backend=backend)
            out = [found] if isinstance(found, torch.Tensor) else list(found)
            return out + list(torch.autograd.grad(out[0].sum(), (x, params)))

        inputs = x.nbytes + params.nbytes  # read on the way there, read on the way back, and their gradients
        return call, 3 * inputs + outputs * x.nbytes
    side = 8 * ROWS
    x, bias, scale = tensor(1, 192, side, side), tensor(1, 192, 4, 4), tensor(1, 192, 2, 2)

    def epilogue() -> list[torch.Tensor]:
        grids = {"bias_grid": ops.Grid(side // 4), "scale_grid": ops.Grid(side // 2)}
        out = ops.patch_epilogue(x, bias, scale, slope=0.1, backend=backend, **grids)
        return [out, *torch.autograd.grad(out.sum(), (x, bias, scale))]

    return epilogue, 5 * x.nbytes  # x, out; dout, x, dx


@pytest.mark.parametrize(("device", "backend"), FLOAT_BACKENDS)
@pytest.mark.parametrize("operator", ["bits of mixtures", "bits of neighbours", "patch epilogue"])
def test_kernels_float(timed: Callable[..., Any], operator: str, device: str, backend: str) -> None:
    """With their gradients: what training and the search over latents ask for."""
    if operator == "patch epilogue" and device == "cpu":
        pytest.skip("no form in C++")
    call, moved = float_operator(operator, device, backend)
    got = timed(call, part=operator, bytes=moved, backend=backend, device=device)
    for ours, expected in zip(got, float_operator(operator, device, "reference")[0](), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-2, rtol=1e-3)


@pytest.mark.skipif("cuda" not in DEVICES, reason="no GPU")
@pytest.mark.parametrize("coder", ["triton", "cuda"])
@pytest.mark.parametrize("streams", [1, 256])
@pytest.mark.parametrize("what", ["params", "intervals", "window", "decode", "encode"])
def test_kernels_coder_gpu(
    timed: Callable[..., Any], picture: Any, tmp_path_factory: Any, what: str, streams: int, coder: str
) -> None:
    """One stream, where latency counts, and as many as keep a GPU busy."""
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(picture).save(path)
    stream, lanes = picture_stream(path, 0.5, "l2c-default")
    n, K = len(stream.symbols), len(stream.weights)
    place = torch.device("cuda")
    try:
        kernels = ops.integer_kernels(place, coder)
    except BackendError as error:
        pytest.skip(str(error))

    def many(values: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=place).expand(streams, *np.shape(values)[1:]).contiguous()

    def parameters(values: Any) -> torch.Tensor:
        return torch.from_numpy(values.view(np.int16)).to(place)[:, None].expand(K, streams, n).contiguous()

    mixtures = [parameters(part) for part in (stream.weights, stream.means, stream.inv_scales)]
    count, bits = many([n], torch.int32), many([8], torch.int32)
    symbols = torch.from_numpy(stream.symbols).to(place).expand(streams, n).contiguous()
    facts = {
        "part": f"GPU {what}, {coder}",
        "symbols": n * streams,
        "device": "cuda",
        "streams": streams,
        "lanes": lanes,
    }
    if what == "params":
        raw = torch.randint(-200, 200, (streams, 1, n // 72, 648), dtype=torch.int16, device=place)
        tables = multiscale.quantise.make_tables()
        exp, inv = (torch.from_numpy(t.view(np.int16)).to(place) for t in (tables.exp, tables.inv_scale))
        sizes = torch.tensor([[1, n // 72]] * streams, dtype=torch.int32, device=place)
        used = many([72], torch.int32)
        timed(
            lambda: kernels.mixture_params_fwd(raw, 72, exp, inv, sizes, used, *mixtures),
            bytes=streams * n * 6 * K * 2,
            **facts,
        )
        expected = reference.mixture_params(raw[0, 0].cpu().numpy(), 3, 72, tables.exp, tables.inv_scale)
        np.testing.assert_array_equal(mixtures[1][:, 0, : n // 72 * 72].cpu().numpy(), expected[1])
        return
    start, freq = (torch.empty((streams, n), dtype=torch.int32, device=place) for _ in range(2))
    zero, status = many([0], torch.int64), many([0], torch.int32)
    intervals = lambda: kernels.mixture_intervals_fwd(symbols, count, bits, *mixtures, start, freq, zero, status)  # noqa: E731
    payload = ops.rans_encode(stream.symbols, *stream.args, lanes, backend="cpu")
    _, states, words = ops.parse_stream(payload)
    if what == "intervals":
        timed(intervals, bytes=streams * n * (6 * K + 9), **facts)
        low = ops.cpp_extension().mixture_cdf(stream.symbols.astype(np.int32), *stream.args)
        np.testing.assert_array_equal(start[-1].cpu().numpy(), low)
    elif what == "encode":
        intervals()
        begin = many([0], torch.int64)
        out = torch.empty((streams, 2 * n), dtype=torch.int16, device=place)
        state = torch.full((streams, 64), 1 << 32, dtype=torch.int64, device=place)
        state[:, 0] += ops.xxh64(stream.symbols) & 0xFFFFFFFF
        opening = state.clone()

        def encode() -> None:
            state.copy_(opening)
            kernels.rans_encode_fwd(
                start, freq, many([n], torch.int64), many([lanes], torch.int32), state, out, begin, status, lanes
            )

        timed(encode, bytes=streams * n * 8, **facts)
        mine = ops.write_stream(lanes, state[-1, :lanes].cpu().numpy(), out[-1, int(begin[-1]) :].cpu().numpy())
        assert mine == payload
    else:
        window = torch.empty((streams, n, 16), dtype=torch.int32, device=place)
        first = torch.empty((streams, n), dtype=torch.int16, device=place)
        make = lambda: kernels.mixture_window_fwd(count, bits, *mixtures, window, first)  # noqa: E731
        if what == "window":
            timed(make, bytes=streams * n * (6 * K + 66), **facts)
            assert int(window[-1].min()) >= 0
            return
        make()
        flat = torch.from_numpy(np.tile(words, streams).view(np.int16)).to(place)
        places = torch.arange(streams, device=place) * len(words)
        state = torch.full((streams, 64), 1 << 32, dtype=torch.int64, device=place)
        out = torch.empty((streams, n), dtype=torch.uint8, device=place)
        opening = state.clone()
        opening[:, :lanes] = torch.from_numpy(states).to(place)

        def decode() -> None:
            state.copy_(opening)
            kernels.rans_decode_fwd(
                flat, places.clone(), places + len(words), state, many([0], torch.int64), many([lanes], torch.int32),
                status, count, bits, *mixtures, window, first, out, lanes,
            )  # fmt: skip

        timed(decode, bytes=streams * n * 67, **facts)
        np.testing.assert_array_equal(out[-1].cpu().numpy(), stream.symbols)
