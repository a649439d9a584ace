"""A whole encode and decode and their stages, beside the PyTorch form, the machine's peaks and other codecs.

    make bench ARGS="-k codec"

Every result is compared with what the plain path gives. Peers run through Pillow on the same picture, at the file size
nearest to ours.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEVICES, THREADS, plain_float32
from PIL import Image

import l2c
from l2c import transforms
from l2c.entropy import multiscale
from l2c.entropy.coder import ObservingJob
from l2c.entropy.multiscale.schedule import scale_sizes
from l2c.exact import ExactDecoder
from l2c.format.bitstream import Bitstream, read_bitstream

BPP = 0.5


@pytest.fixture(scope="module", params=DEVICES)
def device(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module")
def on_device(device: str, codec: l2c.Codec) -> l2c.Codec:
    return codec if device == "cpu" else l2c.Codec(device=device)


@pytest.fixture(scope="module")
def file(codec: l2c.Codec, picture: Any) -> bytes:
    return codec.encode(picture, bpp=BPP)


@pytest.fixture(scope="module")
def large_file(codec: l2c.Codec, large_picture: Any) -> bytes:
    return codec.encode(large_picture, bpp=BPP)


def facts(picture: Any, part: str, device: str = "cpu", **more: Any) -> dict[str, Any]:
    return {"part": part, "megapixels": picture.shape[0] * picture.shape[1] / 1e6, "device": device, **more}


@pytest.mark.parametrize("backend", ["cpu", "torch", "triton"])
def test_codec_entropy_decoding(
    timed: Callable[..., Any],
    picture: Any,
    file: bytes,
    codec: l2c.Codec,
    on_device: l2c.Codec,
    device: str,
    backend: str,
) -> None:
    """All scales and groups of P, and the coder."""
    if (backend == "triton") != (device == "cuda") and backend != "torch":
        pytest.skip("of the other device")
    stream = read_bitstream(file)
    (symbols,) = timed(
        lambda: on_device.latent_stage.read_plainly([stream], backend),
        rounds=15 if backend != "torch" else 5,
        symbols=codec.read_latents([stream])[0].size,
        **facts(picture, f"entropy decoding, {backend}", device),
    )
    np.testing.assert_array_equal(symbols, codec.read_latents([stream])[0])


def test_codec_probability(timed: Callable[..., Any], picture: Any, file: bytes, codec: l2c.Codec) -> None:
    """P alone with its mixture parameters: a coder that knows the symbols does nothing. It is Python, so that the
    parameters of whole groups are copied out, which decoding spares itself.

    Operations are those of dense layers; the C++ leaves out products with activations of zero and channels not in use.
    """

    class Known:
        def mixture(self, symbols: Any, weights: Any, means: Any, inv_scales: Any) -> None:
            pass

    stream = read_bitstream(file)
    symbols = codec.read_latents([stream])[0]
    job = ObservingJob(*symbols.shape[1:], stream.header.point, stream.tiles[0].channels, symbols, Known())
    (got,) = timed(
        lambda: codec.model.integer.code([job], "cpu", threads=THREADS),
        macs=probability_macs(codec.model.integer, *symbols.shape[1:]),
        **facts(picture, "P with its parameters"),
    )
    np.testing.assert_array_equal(got, symbols)
    assert codec.model.integer.known_answer("cpu") == codec.model.known_answer  # over all parameters


def probability_macs(model: multiscale.IntegerModel, height: int, width: int) -> int:
    """Multiply-accumulates of all steps of P over one tile."""
    cells = [rows * columns for rows, columns in scale_sizes(height, width, model.config.num_scales)[1:]]
    step = sum(
        layer.weight.size - (layer is part.w1) * model.planes * layer.weight.shape[0]  # planes lie in the bias
        for part in model.steps
        for layer in (part.w1, part.w2, part.w3, part.w4)
    )
    return step * sum(cells)


def decoder_inputs(codec: l2c.Codec, file: bytes, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents float32 [1, c, h, w] of a file, and its condition."""
    stream = read_bitstream(file)
    symbols = torch.from_numpy(codec.read_latents([stream])[0])[None].to(device)
    cond = codec.transform_stage.condition(stream.header.quality, stream.header.metric_mix)
    return transforms.dequantise(symbols, 8).contiguous(memory_format=torch.channels_last), cond


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["D", "E"])
@torch.inference_mode()
def test_codec_network(
    timed: Callable[..., Any],
    picture: Any,
    file: bytes,
    on_device: l2c.Codec,
    device: str,
    network: str,
    precision: str,
) -> None:
    y_hat, cond = decoder_inputs(on_device, file, device)
    x = torch.tensor(picture).to(device).permute(2, 0, 1)[None].float() / 255.0
    x = x.contiguous(memory_format=torch.channels_last)
    transform = on_device.transform
    plain = lambda: transform.decoder(y_hat, cond) if network == "D" else transform.encoder(x, cond)[0]  # noqa: E731

    def call() -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"), plain_float32(device):
            return plain()

    pixels = picture.shape[0] * picture.shape[1]
    exact = copy.deepcopy(transform).cpu().double()
    if network == "D":
        expected = exact.decoder(y_hat.cpu().double(), cond.cpu().double())
    else:
        expected = exact.encoder(x.cpu().double(), cond.cpu().double())[0]
    out = timed(
        call,
        macs=transforms.kmac_per_pixel(plain, pixels) * 1000 * pixels,
        precision=precision,
        **facts(picture, f"{network}, {precision}", device),
    )
    worst = float((out.cpu().double() - expected).abs().max())
    if network == "D":
        assert worst < (1e-4 if precision == "float32" else 4 / 255)
    else:  # latents are of the order of 100
        assert worst < (0.01 if precision == "float32" else 4.0)


@torch.inference_mode()
def test_codec_compiled(
    timed: Callable[..., Any], picture: Any, file: bytes, on_device: l2c.Codec, device: str
) -> None:
    """D through `torch.compile`, which the codec leaves alone: it compiles for seconds, and again for other shapes."""
    y_hat, cond = decoder_inputs(on_device, file, device)
    decoder = on_device.transform.decoder
    with plain_float32(device):
        expected = decoder(y_hat, cond)
    compiled = torch.compile(decoder)
    begin = time.perf_counter()
    with plain_float32(device):
        compiled(y_hat, cond)
    seconds = time.perf_counter() - begin
    with plain_float32(device):
        out = timed(
            lambda: compiled(y_hat, cond),
            compile_seconds=seconds,
            **facts(picture, "D, float32, torch.compile", device),
        )
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("precision", ["exact", "float32", "bfloat16"])
@pytest.mark.parametrize("size", ["768x512", "2000x1128"])
def test_codec_decode(timed: Callable[..., Any], request: Any, device: str, size: str, precision: str) -> None:
    name = "large_" if size == "2000x1128" else ""
    picture, data = request.getfixturevalue(f"{name}picture"), request.getfixturevalue(f"{name}file")
    chosen = l2c.Codec(device=device, precision=precision, threads=None if device == "cuda" else THREADS)
    as_ = "torch" if device == "cuda" else "numpy"
    out = timed(
        lambda: chosen.decode(data, as_=as_),
        rounds=30 if device == "cuda" else 9,
        **facts(picture, f"decode {size}, {precision}", device),
    )
    pixels = out.permute(1, 2, 0).cpu().numpy() if as_ == "torch" else out
    reference = l2c.Codec(precision="exact" if precision == "exact" else "float32").decode(data)
    difference = np.abs(pixels.astype(int) - reference).max()
    assert difference <= (1 if precision == "bfloat16" or (precision == "float32" and device == "cuda") else 0)


@pytest.mark.skipif("cuda" not in DEVICES, reason="no GPU")
@pytest.mark.parametrize("form", ["exact, triton", "exact, torch", "float32", "bfloat16"])
@pytest.mark.parametrize("size", ["768x512", "2000x1128"])
@torch.inference_mode()
def test_codec_decoder_gpu(timed: Callable[..., Any], request: Any, codec: l2c.Codec, size: str, form: str) -> None:
    """D alone, uint8 latents to uint8 pixels."""
    name = "large_" if size == "2000x1128" else ""
    picture, stream = request.getfixturevalue(f"{name}picture"), read_bitstream(request.getfixturevalue(f"{name}file"))
    call, pixels = decoder_form(codec, stream, form, "cuda")
    out = timed(call, rounds=30, **facts(picture, f"D alone {size}, {form}", "cuda"))
    assert out.shape == pixels.shape and out.dtype == torch.uint8
    difference = (out.cpu().int() - pixels.int()).abs()
    if form.startswith("exact"):
        assert not difference.any()
    else:
        assert difference.float().mean() < 0.6  # of which rounding both to whole levels is a third


def decoder_form(
    codec: l2c.Codec, stream: Bitstream, form: str, device: str
) -> tuple[Callable[[], torch.Tensor], torch.Tensor]:
    """D on a device, from latents that lie there, and the pixels of the integer D in C++: uint8 [s h, s w, 3]."""
    model, point = codec.model, stream.header.point
    assert model.exact is not None
    symbols = torch.from_numpy(codec.read_latents([stream])[0])
    told = point.quality_tenths, point.mix
    pixels = ExactDecoder(model.exact, None, torch.device("cpu")).decode(symbols, *told)
    there = symbols.to(device)
    if form.startswith("exact"):
        exact = ExactDecoder(model.exact, None, torch.device(device), form.removeprefix("exact, "))
        return lambda: exact.decode(there, *told), pixels
    stage = l2c.Codec(device=device, precision=form).transform_stage
    cond = stage.condition(*told)

    def floats() -> torch.Tensor:
        y_hat = transforms.dequantise(there[None], 8).contiguous(memory_format=torch.channels_last)
        with stage.float_mode():
            x_hat = stage.transform.decoder(y_hat, cond)
        return x_hat[0].mul(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8).permute(1, 2, 0)

    return floats, pixels


@pytest.mark.parametrize("count", [8, *([64] if "cuda" in DEVICES else [])])
def test_codec_decode_batch(
    timed: Callable[..., Any],
    picture: Any,
    file: bytes,
    codec: l2c.Codec,
    on_device: l2c.Codec,
    device: str,
    count: int,
) -> None:
    as_ = "torch" if device == "cuda" else "numpy"
    out = timed(
        lambda: on_device.decode_batch([file] * count, as_=as_),
        rounds=15 if device == "cuda" else 3,
        pictures=count,
        **{
            **facts(picture, f"decode a batch of {count}, 768x512", device),
            "megapixels": count * picture[..., 0].size / 1e6,
        },
    )
    last = out[-1].permute(1, 2, 0).cpu().numpy() if as_ == "torch" else out[-1]
    assert np.abs(last.astype(int) - codec.decode(file)).max() <= 1  # D's convolutions round differently in a batch


@pytest.mark.parametrize("effort", [0, 2, 4, 6, 9])
def test_codec_encode(
    timed: Callable[..., Any], picture: Any, codec: l2c.Codec, on_device: l2c.Codec, device: str, effort: int
) -> None:
    """To a target rate."""
    data = timed(
        lambda: on_device.encode(picture, bpp=BPP, effort=effort),
        rounds={0: 5, 2: 2}.get(effort, 1) if device == "cpu" else 5,
        effort=effort,
        **facts(picture, f"encode, effort {effort}", device),
    )
    assert 0.98 * BPP <= 8 * len(data) / picture[..., 0].size <= BPP
    assert codec.decode(data).shape == picture.shape


@pytest.mark.parametrize("what", ["encode", "decode"])
@pytest.mark.parametrize("name", ["JPEG", "WEBP", "AVIF"])
def test_codec_peers(timed: Callable[..., Any], picture: Any, file: bytes, name: str, what: str) -> None:
    image = Image.fromarray(picture)

    def encode(quality: int) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, name, quality=quality)
        return buffer.getvalue()

    low, high = 1, 95
    while low < high:  # the least quality whose file is as large as ours
        middle = (low + high) // 2
        low, high = (low, middle) if len(encode(middle)) >= len(file) else (middle + 1, high)
    data = encode(low)
    if what == "encode":
        out = timed(lambda: encode(low), **facts(picture, f"{name} encode", size_bytes=len(data)))
        assert out == data
    else:
        out = timed(lambda: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), **facts(picture, f"{name} decode"))
        assert out.shape == picture.shape
