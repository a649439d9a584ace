"""Operators on integers: the layers, mixtures and streams of P. Backends give equal integers and equal bytes."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.errors import BackendError, BitstreamError
from l2c.ops import extension, reference
from l2c.ops.contract import MAX_LANES, STATE_LOW, IntegerLayer, IntegerTables
from l2c.ops.streams import check_stream_end, parse_stream, range_decoder, range_encoder, write_stream, xxh64

_CHANNEL_BLOCK = 64  # channels are padded to whole blocks of the matrix products


@functools.lru_cache(maxsize=8)
def integer_kernels(device: torch.device, coder: str = "auto") -> Any:
    """The launchers of all kernels that P and the coder on a GPU use, by name.

    Args:
        device: where they will run.
        coder: "triton", "cuda" (csrc/cuda, where L2C_CUDA=1 built it), or "auto": CUDA C++ on a GPU where it is there.
    Raises:
        BackendError: Triton is not here, or the CUDA extension was asked for and does not load.
    """
    modules = [extension.kernels(name) for name in ("int_conv", "mixture", "context", "rans", "hyperprior")]
    found = {name: launch for module in modules for name, launch in vars(module).items() if name.endswith("_fwd")}
    if coder == "cuda" or (coder == "auto" and device.type == "cuda" and extension.has_cuda_extension()):
        found |= extension.kernels("rans_cuda").launchers(extension.cuda_extension())
    return types.SimpleNamespace(**{name: _launched_on(device, launch) for name, launch in found.items()})


def _launched_on(device: torch.device, launch: Any) -> Any:
    """The same launcher with `device` as the current GPU: Triton takes that one, wherever the arguments lie."""
    if device.type != "cuda":
        return launch

    def launch_there(*args: Any, **kwargs: Any) -> None:
        with torch.cuda.device(device):
            launch(*args, **kwargs)

    return launch_there


@dataclass(frozen=True)
class PackedLayer:
    """A layer as `kernels.int_conv` reads it: weight int8 [k, k, I', O'], bias int32 [O], multiplier float32 [O].

    `bias` holds the 128 sum w that activations stored as int8 lack.
    """

    weight: Tensor
    bias: Tensor
    multiplier: Tensor


def round_up(channels: int) -> int:
    """So many channels, padded to whole blocks of the matrix products."""
    return -(-channels // _CHANNEL_BLOCK) * _CHANNEL_BLOCK


def pack_layer(
    weight: npt.NDArray[np.int8],
    bias: npt.NDArray[Any],
    multiplier: npt.NDArray[np.float32],
    unsigned: slice,
    device: torch.device,
) -> PackedLayer:
    """int8 [O, I, k, k] -> a packed layer; `unsigned` are the input channels that are stored with 128 subtracted."""
    outputs, inputs, kernel = weight.shape[:3]
    packed = np.zeros((kernel, kernel, round_up(inputs), round_up(outputs)), dtype=np.int8)
    packed[:, :, :inputs, :outputs] = weight.transpose(2, 3, 1, 0)
    offset = 128 * weight[:, unsigned].astype(np.int64).sum(axis=(1, 2, 3))
    return PackedLayer(
        torch.from_numpy(packed).to(device),
        torch.from_numpy((bias + offset).astype(np.int32)).to(device),
        torch.from_numpy(multiplier).to(device),
    )


def tile_coder(
    channel_groups: Sequence[int],
    num_scales: int,
    num_mixtures: int,
    steps: Sequence[Sequence[IntegerLayer]],
    prior: Sequence[IntegerLayer] | None,
    tables: IntegerTables,
    samples: Sequence[npt.NDArray[np.uint8]],
) -> Any:
    """A model's P with the range coder in C++, see csrc/multiscale/tile_coder.h and `_C.TileCoder`.

    Args:
        channel_groups, num_scales, num_mixtures: sizes of P.
        steps: (w1, w2, w3, w4) of each step; prior: (w1, w2), or None for the uniform one.
        tables: of the model.
        samples: constant planes uint8 [num_scales + 1, planes] of typical pictures.
    """
    return extension.cpp_extension().TileCoder(
        list(channel_groups), num_scales, num_mixtures,
        [[_arrays(layer) for layer in step] for step in steps],
        None if prior is None else [_arrays(layer) for layer in prior],
        *(np.ascontiguousarray(table) for table in (tables.compand, tables.exp, tables.inv_scale)), samples,
    )  # fmt: skip


def _arrays(layer: IntegerLayer) -> tuple[npt.NDArray[Any], ...]:
    """A layer as the C++ takes it."""
    return tuple(np.ascontiguousarray(array) for array in (layer.weight, layer.bias, layer.multiplier))


def hyperprior_coder(levels: Sequence[tuple[Any, ...]]) -> Any:
    """A hyperprior model with the range coder in C++, see csrc/hyperprior/coder.h and `_C.HyperpriorCoder`.

    Args:
        levels: (kind, z_cdf, [(layer, shuffle), ...], context or None, shift, parameters, offset, y_cdf, fraction) of
            each, the attributes of `IntegerLevel`; layers are `IntegerLayer`s.
    """
    made = []
    for kind, z_cdf, hyper, context, shift, parameters, offset, y_cdf, fraction in levels:
        z, s, o, y = (np.ascontiguousarray(array) for array in (z_cdf, shift, offset, y_cdf))
        layers = [(_arrays(layer), shuffle) for layer, shuffle in hyper]
        context = None if context is None else _arrays(context)
        made.append((kind, z, layers, context, s, [_arrays(layer) for layer in parameters], o, y, fraction))
    return extension.cpp_extension().HyperpriorCoder(made)


def int_conv(weight: npt.NDArray[np.int8], bias: npt.NDArray[np.int32], multiplier: npt.NDArray[np.float32]) -> Any:
    """A packed C++ integer convolution, see csrc/simd/int_conv.h."""
    return extension.cpp_extension().IntConv(
        np.ascontiguousarray(weight), np.ascontiguousarray(bias), np.ascontiguousarray(multiplier)
    )


def integer_conv(
    x: npt.NDArray[np.uint8],
    weight: npt.NDArray[np.int8],
    bias: npt.NDArray[np.int32],
    multiplier: npt.NDArray[np.float32],
    *,
    residual: npt.NDArray[np.uint8] | None = None,
    head: bool = False,
    backend: str = "auto",
    device: torch.device | None = None,
) -> npt.NDArray[Any]:
    """One layer of P over one picture; csrc/simd/int_conv.h has the definition, `reference.integer_conv` spells it out.

    Args:
        x: uint8 [h, w, I].
        weight: int8 [O, I, k, k], k = 1 or 3; sum|w| * 255 + |bias| < 2^24 in every output channel.
        bias: int32 [O]. multiplier: float32 [O].
        residual: uint8 [h, w, O], added before the clamp to 0..255, or None.
        head: the output is int16, clamped to its range, without a residual.
        backend: "auto" (C++ where it loads), "cpu", "triton" or "reference".
        device: where Triton computes.
    Returns:
        uint8 [h, w, O], or int16 with `head`.
    Raises:
        BackendError: the backend cannot run here. ValueError: shapes or types that do not fit.
    """
    name = _plain_backend(backend, device)
    if head and residual is not None:
        raise ValueError("a head has no residual")
    if name == "cpu":
        return int_conv(weight, bias, multiplier).run(x, residual=residual, out="i16" if head else "u8")
    if x.ndim != 3 or weight.ndim != 4 or x.shape[2] != weight.shape[1]:
        raise ValueError(f"x is {list(x.shape)}, weight {list(weight.shape)}: the input channels differ")
    if name == "reference":
        layer = types.SimpleNamespace(weight=weight, bias=bias, multiplier=multiplier)
        total = reference.integer_conv(x.transpose(2, 0, 1), layer).transpose(1, 2, 0)  # type: ignore[arg-type]
        if head:
            return total.clip(-32768, 32767).astype(np.int16)
        return (total + (0 if residual is None else residual.astype(np.int64))).clip(0, 255).astype(np.uint8)
    place = device if device is not None else torch.device("cpu")
    packed = pack_layer(weight, bias, multiplier, slice(None), place)
    height, width = x.shape[:2]
    outputs = weight.shape[0]

    def activations(values: npt.NDArray[np.uint8], channels: int) -> Tensor:
        padded = np.full((1, height, width, channels), -128, dtype=np.int8)
        padded[0, :, :, : values.shape[2]] = values.astype(np.int16) - 128
        return torch.from_numpy(padded).to(place)

    out = torch.zeros((1, height, width, outputs), dtype=torch.int16 if head else torch.int8, device=place)
    integer_kernels(place).int_conv_fwd(
        activations(x, packed.weight.shape[2]),
        packed.weight,
        packed.bias,
        packed.multiplier,
        torch.tensor([[height, width]], dtype=torch.int32, device=place),
        out,
        None if residual is None else activations(residual, outputs),
    )
    result = out[0].cpu().numpy()
    return result if head else (result.astype(np.int16) + 128).astype(np.uint8)


def _plain_backend(backend: str, device: torch.device | None) -> str:
    """Which backend an operator on arrays of the host runs: "cpu", "triton" or "reference"."""
    if backend == "auto":
        return "cpu" if extension.load_cpp()[0] is not None else "reference"
    if backend == "cpu":
        extension.cpp_extension()
    elif backend == "triton":
        reason = extension.triton_reason(device if device is not None else torch.device("cpu"))
        if reason:
            raise BackendError(reason)
    elif backend != "reference":
        raise BackendError(f"no backend is called {backend!r}; there are auto, cpu, triton and reference")
    return backend


def mixture_params(
    raw: npt.NDArray[np.int16],
    num_mixtures: int,
    channels: int,
    exp_table: npt.NDArray[np.uint16],
    inv_table: npt.NDArray[np.uint16],
    backend: str = "auto",
    device: torch.device | None = None,
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int16], npt.NDArray[np.uint16]]:
    """Head output -> mixture parameters as the coder takes them; see `reference.mixture_params` for the definition.

    Args:
        raw: int16 [cells, 3 K g].
        num_mixtures, channels: K, g.
        exp_table, inv_table: uint16 [256].
        backend, device: see `integer_conv`.
    Returns:
        weights uint16, means int16, inverse scales uint16, each [K, cells * g].
    """
    name = _plain_backend(backend, device)
    if name == "reference":
        return reference.mixture_params(raw, num_mixtures, channels, exp_table, inv_table)
    if name == "cpu":
        return extension.cpp_extension().mixture_params(raw, num_mixtures, channels, exp_table, inv_table)
    place = device if device is not None else torch.device("cpu")
    cells = raw.shape[0]
    results = [torch.zeros((num_mixtures, 1, cells * channels), dtype=torch.int16, device=place) for _ in range(3)]
    integer_kernels(place).mixture_params_fwd(
        torch.from_numpy(raw).to(place)[None, None],
        channels,
        _uint16_tensor(exp_table, place),
        _uint16_tensor(inv_table, place),
        torch.tensor([[1, cells]], dtype=torch.int32, device=place),
        torch.tensor([channels], dtype=torch.int32, device=place),
        *results,
    )
    weights, means, inv_scales = (part[:, 0].cpu().numpy() for part in results)
    return weights.view(np.uint16), means, inv_scales.view(np.uint16)


def _uint16_tensor(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """16-bit values as the int16 tensor of equal bits that kernels take."""
    return torch.from_numpy(np.ascontiguousarray(values).view(np.int16)).to(device)


def rans_encode(
    symbols: npt.NDArray[np.uint8],
    weights: npt.NDArray[np.uint16],
    means: npt.NDArray[np.int16],
    inv_scales: npt.NDArray[np.uint16],
    bits: int,
    lanes: int,
    *,
    backend: str = "auto",
    device: torch.device | None = None,
) -> bytes:
    """Symbols under their mixtures -> one stream of csrc/core/rans.h.

    Args:
        symbols: uint8 [n], below 2^bits.
        weights, means, inv_scales: [K, n], see csrc/core/mixture_cdf.h; sums of weights and ranges are the caller's
            duty except on the "cpu" backend, which checks them.
        bits: 1..8. lanes: 1, 2, 4, ... 64.
        backend, device: see `integer_conv`.
    Returns:
        the stream, byte for byte the same from every backend.
    """
    name = _plain_backend(backend, device)
    if name == "cpu":
        encoder = range_encoder()
        encoder.push_mixture(symbols, weights, means, inv_scales, bits)
        return encoder.finish(lanes)
    if lanes not in (1, 2, 4, 8, 16, 32, 64) or not 1 <= bits <= 8:
        raise ValueError(f"lanes is {lanes}, bits {bits}: lanes must be a power of two <= 64, bits 1..8")
    if name == "reference":
        checksum = reference.xxh64(symbols.tobytes()) & 0xFFFFFFFF
        intervals = []
        for j, symbol in enumerate(symbols.tolist()):
            mixture = weights[:, j].tolist(), means[:, j].tolist(), inv_scales[:, j].tolist()
            low, high = (reference.mixture_cdf(symbol + i, *mixture, bits) for i in (0, 1))
            intervals.append((low, high - low))
        ends, taken = reference.rans_encode(intervals, lanes, checksum)
        return write_stream(lanes, np.array(ends, dtype=np.int64), np.array(taken, dtype=np.uint16).view(np.int16))
    place = device if device is not None else torch.device("cpu")
    kernels = integer_kernels(place)
    n = len(symbols)

    def one(value: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor([value], dtype=dtype, device=place)

    parameters = [_uint16_tensor(part, place)[:, None] for part in (weights, means, inv_scales)]
    start, freq = (torch.empty((1, n), dtype=torch.int32, device=place) for _ in range(2))
    status = one(0)
    kernels.mixture_intervals_fwd(
        torch.from_numpy(symbols).to(place)[None], one(n), one(bits), *parameters, start, freq, one(0, torch.int64),
        status,
    )  # fmt: skip
    if int(status):
        raise ValueError("a symbol is not below 2^bits")
    states = torch.full((1, MAX_LANES), STATE_LOW, dtype=torch.int64, device=place)
    states[0, 0] += xxh64(symbols) & 0xFFFFFFFF
    words, begin = torch.empty((1, 2 * n), dtype=torch.int16, device=place), one(0, torch.int64)
    kernels.rans_encode_fwd(start, freq, one(n, torch.int64), one(lanes), states, words, begin, status, lanes)
    return write_stream(lanes, states[0, :lanes].cpu().numpy(), words[0, int(begin) :].cpu().numpy())


def rans_decode(
    payload: bytes,
    weights: npt.NDArray[np.uint16],
    means: npt.NDArray[np.int16],
    inv_scales: npt.NDArray[np.uint16],
    bits: int,
    *,
    backend: str = "auto",
    device: torch.device | None = None,
) -> npt.NDArray[np.uint8]:
    """The way back; arguments as in `rans_encode`. Returns uint8 [n].

    Raises:
        BitstreamError: the stream is not one of n such symbols.
    """
    name = _plain_backend(backend, device)
    if name == "cpu":
        decoder = range_decoder(payload)
        symbols = decoder.pop_mixture(weights, means, inv_scales, bits)
        decoder.finish()
        return symbols
    lanes, states, words = parse_stream(payload)
    n = weights.shape[1]
    if name == "reference":
        cdfs = []
        for j in range(n):
            mixture = weights[:, j].tolist(), means[:, j].tolist(), inv_scales[:, j].tolist()
            cdfs.append([reference.mixture_cdf(i, *mixture, bits) for i in range((1 << bits) + 1)])
        try:
            values, ends, left = reference.rans_decode(states.tolist(), words.tolist(), lanes, cdfs)
        except IndexError:
            raise BitstreamError("range coder: the stream ends too early") from None
        symbols = np.array(values, dtype=np.uint8)
        check_stream_end(0, len(left), np.array(ends, dtype=np.int64), symbols)
        return symbols
    place = device if device is not None else torch.device("cpu")
    kernels = integer_kernels(place)

    def one(value: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor([value], dtype=dtype, device=place)

    parameters = [_uint16_tensor(part, place)[:, None] for part in (weights, means, inv_scales)]
    window = torch.empty((1, n, 16), dtype=torch.int32, device=place)
    first = torch.empty((1, n), dtype=torch.int16, device=place)
    kernels.mixture_window_fwd(one(n), one(bits), *parameters, window, first)
    state = torch.full((1, MAX_LANES), STATE_LOW, dtype=torch.int64, device=place)
    state[0, :lanes] = torch.from_numpy(states).to(place)
    next_word, status = one(0, torch.int64), one(0)
    out = torch.empty((1, n), dtype=torch.uint8, device=place)
    kernels.rans_decode_fwd(
        _uint16_tensor(words, place), next_word, one(len(words), torch.int64), state, one(0, torch.int64), one(lanes),
        status, one(n), one(bits), *parameters, window, first, out, lanes,
    )  # fmt: skip
    symbols = out[0].cpu().numpy()
    check_stream_end(int(status), len(words) - int(next_word), state[0, :lanes].cpu().numpy(), symbols)
    return symbols
