"""Public operators: choose a backend, check, call it. The C++ extension loads on first use, never on import."""

from __future__ import annotations

import functools
import importlib
import os
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c import reference
from l2c.errors import BackendError, BitstreamError
from l2c.reference import Grid

if TYPE_CHECKING:
    from l2c.config import ProbabilityConfig
    from l2c.integer import IntegerLayer, IntegerTables

INTEGER_BACKENDS = ("auto", "cpu", "triton", "torch", "reference")
FLOAT_BACKENDS = ("auto", "cpu", "triton", "reference")
_TRACING_MODES = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@functools.lru_cache(maxsize=1)
def _load_extension() -> tuple[Any, str]:
    """(module, "") or (None, why it does not load); the outcome is remembered."""
    try:
        return importlib.import_module("l2c._C"), ""
    except ImportError as error:
        return None, f"the C++ extension l2c._C does not load ({error}); build it with `pip install -e .`"


def extension() -> Any:
    """The C++ extension. Raises BackendError with the reason where it does not load."""
    module, reason = _load_extension()
    if module is None:
        raise BackendError(reason)
    return module


@functools.lru_cache(maxsize=1)
def _load_cuda_extension() -> tuple[Any, str]:
    """(module, "") or (None, why it does not load); the outcome is remembered."""
    try:
        return importlib.import_module("l2c._cuda"), ""
    except ImportError as error:
        return None, f"the extension l2c._cuda does not load ({error}); build it with `L2C_CUDA=1 pip install -e .`"


def has_cuda_extension() -> bool:
    """Whether `l2c._cuda` was built and loads."""
    return _load_cuda_extension()[0] is not None


def cuda_extension() -> Any:
    """The CUDA extension, see csrc/cuda/rans.h. Raises BackendError with the reason where it does not load."""
    module, reason = _load_cuda_extension()
    if module is None:
        raise BackendError(reason)
    return module


@functools.lru_cache(maxsize=1)
def _load_triton() -> tuple[bool, str]:
    """(whether Triton interprets its kernels on the CPU, ""), or (False, why it does not load); remembered."""
    try:
        triton = importlib.import_module("triton")
        compiled = importlib.import_module("triton.runtime").JITFunction
    except ImportError as error:
        return False, f"Triton does not load ({error}); install it with `pip install 'l2c[gpu]'`"
    # TRITON_INTERPRET is read when Triton is imported: its own library then consists of interpreted functions.
    return not isinstance(triton.language.cdiv, compiled), ""


@functools.lru_cache(maxsize=16)
def triton_reason(device: torch.device) -> str:
    """Why Triton kernels do not run on tensors of this device; the empty string where they do. Remembered.

    They run on NVIDIA GPUs from Ampere on. Where TRITON_INTERPRET=1 was set before Triton was imported they run on
    tensors of any device, slowly and on the CPU, which is how they are tested without a GPU.
    """
    interprets, reason = _load_triton()
    if reason or interprets:
        return reason
    if device.type != "cuda":
        return (
            f"Triton kernels run on a CUDA device, not on {device.type!r}, unless TRITON_INTERPRET=1 is set before "
            "Triton is imported"
        )
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "this PyTorch finds no NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"Triton kernels need compute capability 8.0 (Ampere), this GPU has {major}.{minor}"
    from l2c.kernels.common import probe

    try:
        probe(device)
    # Triton compiles with the machine's C compiler and Python's headers, which may be missing.
    except Exception as error:
        return f"Triton cannot compile for {device} ({type(error).__name__}: {error})"
    return ""


def xxh64(data: npt.NDArray[np.uint8]) -> int:
    """XXH64, seed 0, of contiguous bytes uint8 [n]."""
    return extension().xxh64(data)


def parse_stream(payload: bytes | memoryview) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
    """A stream of csrc/rans.h taken apart: lanes, their states int64 [lanes], words uint16 [n].

    Raises:
        BitstreamError: its head is not valid, or it ends within a state or a word.
    """
    data = np.frombuffer(payload, dtype=np.uint8)
    if not len(data):
        raise BitstreamError("range coder: the stream is empty")
    if data[0] > 6:
        raise BitstreamError("range coder: the lane count is illegal")
    lanes = 1 << int(data[0])
    head = 1 + 6 * lanes
    if len(data) < head:
        raise BitstreamError("range coder: the stream ends within its lane states")
    if (len(data) - head) % 2:
        raise BitstreamError("range coder: the stream ends within a word")
    states = np.zeros((lanes, 8), dtype=np.uint8)
    states[:, :6] = data[1:head].reshape(lanes, 6)
    values = states.view("<i8").reshape(lanes).astype(np.int64)
    if values.min() < 1 << 32:
        raise BitstreamError("range coder: a lane state is illegal")
    return lanes, values, np.frombuffer(data[head:].tobytes(), dtype="<u2").astype(np.uint16)


def write_stream(lanes: int, states: npt.NDArray[np.int64], words: npt.NDArray[Any]) -> bytes:
    """The other way: lanes, their states int64 [lanes] and words (16 bits each, in stream order) -> a stream."""
    head = states.astype("<i8").view(np.uint8).reshape(lanes, 8)[:, :6]
    return bytes([lanes.bit_length() - 1]) + head.tobytes() + words.astype("<i2").tobytes()


@functools.lru_cache(maxsize=8)
def integer_kernels(device: torch.device, coder: str = "auto") -> Any:
    """The launchers of all kernels that `l2c.device_coder` uses, by name.

    Args:
        device: where they will run.
        coder: "triton", "cuda" (csrc/cuda, where L2C_CUDA=1 built it), or "auto": CUDA C++ on a GPU where it is there.
    Raises:
        BackendError: Triton is not here, or the CUDA extension was asked for and does not load.
    """
    reason = _load_triton()[1]
    if reason:
        raise BackendError(reason)
    names = ["int_conv", "mixture", "context", "rans"]
    if coder == "cuda" or (coder == "auto" and device.type == "cuda" and has_cuda_extension()):
        cuda_extension()
        names.append("rans_cuda")  # the later ones count
    modules = [importlib.import_module(f"l2c.kernels.{name}") for name in names]
    found = {name: value for module in modules for name, value in vars(module).items() if name.endswith("_fwd")}
    return types.SimpleNamespace(**{name: _launched_on(device, launch) for name, launch in found.items()})


def _launched_on(device: torch.device, launch: Any) -> Any:
    """The same launcher with `device` as the current GPU: Triton takes that one, wherever the arguments lie."""
    if device.type != "cuda":
        return launch

    def launch_there(*args: Any, **kwargs: Any) -> None:
        with torch.cuda.device(device):
            launch(*args, **kwargs)

    return launch_there


def range_encoder() -> Any:
    """A new interleaved rANS encoder, see csrc/rans.h."""
    return extension().RangeEncoder()


def range_decoder(payload: bytes | memoryview) -> Any:
    """A decoder over one payload, see csrc/rans.h. Raises BitstreamError where its header is not valid."""
    return extension().RangeDecoder(payload)


def choose_integer_backend(backend: str, device: torch.device | None) -> str:
    """Resolve "auto" for P's integer steps.

    On a GPU "triton" where its kernels run, else "torch"; on the CPU "cpu" where the extension loads, else "torch".
    The environment variable L2C_BACKEND names another choice for "auto".

    Raises:
        BackendError: an unknown name, or a backend asked for by name that cannot run.
    """
    if backend == "auto":
        backend = os.environ.get("L2C_BACKEND") or "auto"
    if backend not in INTEGER_BACKENDS:
        raise BackendError(f"no integer backend is called {backend!r}; there are {', '.join(INTEGER_BACKENDS)}")
    if backend == "cpu":
        extension()
    if backend == "triton":
        reason = triton_reason(device if device is not None else torch.device("cpu"))
        if reason:
            raise BackendError(reason)
        extension()  # streams' checksums
    if backend != "auto":
        return backend
    if device is not None and device.type != "cpu":
        return "triton" if not triton_reason(device) and _load_extension()[0] is not None else "torch"
    return "cpu" if _load_extension()[0] is not None else "torch"


@functools.lru_cache(maxsize=8)
def bf16_pays(device: torch.device) -> bool:
    """Whether bfloat16 convolutions beat float32 ones here: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch before 2.10
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def tile_coder(
    config: ProbabilityConfig,
    steps: Sequence[Sequence[IntegerLayer]],
    prior: Sequence[IntegerLayer] | None,
    tables: IntegerTables,
    samples: Sequence[npt.NDArray[np.uint8]],
) -> Any:
    """A model's P with the range coder in C++, see csrc/tile_coder.h and `_C.TileCoder`.

    Args:
        config: sizes of P.
        steps: (w1, w2, w3, w4) of each step; prior: (w1, w2), or None for the uniform one.
        tables: of the model.
        samples: constant planes uint8 [num_scales + 1, planes] of typical pictures.
    """

    def arrays(layers: Sequence[IntegerLayer]) -> list[tuple[npt.NDArray[Any], ...]]:
        parts = ((layer.weight, layer.bias, layer.multiplier) for layer in layers)
        return [tuple(np.ascontiguousarray(array) for array in part) for part in parts]

    return extension().TileCoder(
        list(config.channel_groups), config.num_scales, config.num_mixtures,
        [arrays(step) for step in steps], None if prior is None else arrays(prior),
        *(np.ascontiguousarray(table) for table in (tables.compand, tables.exp, tables.inv_scale)), samples,
    )  # fmt: skip


def int_conv(weight: npt.NDArray[np.int8], bias: npt.NDArray[np.int32], multiplier: npt.NDArray[np.float32]) -> Any:
    """A packed C++ integer convolution, see csrc/int_conv.h."""
    return extension().IntConv(
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
    """One layer of P over one picture; csrc/int_conv.h has the definition, `reference.integer_conv` spells it out.

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
    from l2c.device_coder import pack_layer

    place = device if device is not None else torch.device("cpu")
    packed = pack_layer(weight, bias, multiplier, slice(None), place)
    height, width = x.shape[:2]
    outputs = weight.shape[0]

    def activations(values: npt.NDArray[np.uint8], channels: int) -> torch.Tensor:
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
    if backend not in ("auto", "cpu", "triton", "reference"):
        raise BackendError(f"no backend is called {backend!r}; there are auto, cpu, triton and reference")
    if backend == "auto":
        return "cpu" if _load_extension()[0] is not None else "reference"
    return choose_integer_backend(backend, device)


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
        return extension().mixture_params(raw, num_mixtures, channels, exp_table, inv_table)
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


def _uint16_tensor(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
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
    """Symbols under their mixtures -> one stream of csrc/rans.h.

    Args:
        symbols: uint8 [n], below 2^bits.
        weights, means, inv_scales: [K, n], see csrc/mixture_cdf.h; sums of weights and ranges are the caller's duty
            except on the "cpu" backend, which checks them.
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

    def one(value: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
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
    states = torch.full((1, 64), 1 << 32, dtype=torch.int64, device=place)
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

    def one(value: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor([value], dtype=dtype, device=place)

    parameters = [_uint16_tensor(part, place)[:, None] for part in (weights, means, inv_scales)]
    window = torch.empty((1, n, 16), dtype=torch.int32, device=place)
    first = torch.empty((1, n), dtype=torch.int16, device=place)
    kernels.mixture_window_fwd(one(n), one(bits), *parameters, window, first)
    state = torch.full((1, 64), 1 << 32, dtype=torch.int64, device=place)
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


def check_stream_end(
    status: int, words_left: int, states: npt.NDArray[np.int64], hashed: npt.NDArray[np.uint8]
) -> None:
    """What `RangeDecoder.finish` checks once all symbols are decoded.

    Args:
        status: of the decoder, see csrc/mixture_cdf.h.
        words_left: words that nobody took.
        states: int64 [lanes], at the end.
        hashed: the bytes of all symbols as csrc/rans.h hashes them.
    Raises:
        BitstreamError: the stream ends too early or too late, or is damaged.
    """
    if status:
        raise BitstreamError("range coder: the stream ends too early")
    if words_left:
        raise BitstreamError("range coder: bytes are left after the last symbol")
    expected = np.full(len(states), 1 << 32, dtype=np.int64)
    expected[0] += xxh64(hashed) & 0xFFFFFFFF
    if not np.array_equal(states, expected):
        raise BitstreamError("range coder: the end state is wrong, the stream is damaged")


def choose_float_backend(backend: str, x: Tensor, cpp: bool = False) -> str:
    """Resolve "auto" for the operators on float tensors like x.

    It is "triton" on GPUs that run it, "cpu" (C++) on the CPU for operators that have such a form, else "reference".
    Inside `torch.compile`, which fuses the plain form itself, and under other transforms of PyTorch it is "reference",
    and where the environment variable L2C_BACKEND is "torch" or "reference".

    Args:
        backend: one of `FLOAT_BACKENDS`.
        x: the operator's main tensor.
        cpp: whether the operator has a form in C++.
    Raises:
        BackendError: an unknown name, or a backend asked for by name that cannot run.
    """
    if backend not in FLOAT_BACKENDS:
        raise BackendError(f"no float backend is called {backend!r}; there are {', '.join(FLOAT_BACKENDS)}")
    auto, on_gpu = backend == "auto", x.device.type == "cuda"
    if auto:
        plain = os.environ.get("L2C_BACKEND") in ("torch", "reference") or _is_traced(x)
        backend = "reference" if plain else "triton" if on_gpu else "cpu" if cpp else "reference"
    if backend == "reference":
        return backend
    reason = _cpp_reason(x, cpp) if backend == "cpu" else triton_reason(x.device)
    if not reason and x.dtype == torch.float64:
        reason = "kernels compute in float32"
    if not reason and backend == "triton" and x[:1].numel() >= 1 << 31:
        reason = "Triton kernels take less than 2^31 elements of each picture"
    if auto:
        interpreted = backend == "triton" and _load_triton()[0]  # which is for tests alone
        return "reference" if reason or interpreted else backend
    if reason:
        raise BackendError(reason)
    return backend


def _is_traced(x: Tensor) -> bool:
    """Whether PyTorch is to see every operation: compilers, tracers, torch.func, tensors that are no plain ones."""
    return (
        torch.compiler.is_compiling()
        or (isinstance(x, Tensor) and type(x) not in (Tensor, torch.nn.Parameter))
        or any(torch._C._get_dispatch_mode(mode) is not None for mode in _TRACING_MODES)
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _cpp_reason(x: Tensor, cpp: bool) -> str:
    """Why an operator cannot run in C++ on x; "" where it can."""
    if not cpp:
        return "this operator has no form in C++"
    if x.device.type != "cpu":
        return f"the form in C++ takes tensors of the CPU, not of {x.device}"
    return _load_extension()[1]


def _mixture_kernels(backend: str) -> Any:
    """What computes bits of mixtures on a backend: see `l2c.mixture_bits`."""
    if backend == "cpu":
        from l2c.mixture_bits import CppKernels

        return CppKernels
    from l2c.kernels import mixture_bits as triton_kernels

    return triton_kernels


def mixture_bits(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor, *, backend: str = "auto") -> Tensor:
    """Bits of each latent under its mixture of logistics; see `reference.mixture_likelihood` for the definition.

    Args:
        x: float [N, g, h, w], latents.
        params: float [N, 3 K g, h, w], or [N or 1, 3 K g, h or 1, w or 1]: logits in nats, means in latents, log2
            inverse scales per latent, each [K][g].
        num_mixtures: K.
        b: int64 [N] or [1] on x's device, bits 1..8.
        backend: "auto", "cpu", "triton" or "reference".
    Returns:
        float32 [N, g, h, w], 0..20; differentiable in x and params, twice if need be. bfloat16 and float16 are computed
        with in float32; either may have any strides.
    Raises:
        ValueError: shapes or dtypes that are not these.
        BackendError: see `choose_float_backend`.
    """
    _check_mixture(x, params, num_mixtures, b)
    name = choose_float_backend(backend, x, cpp=True)
    if name == "reference":
        return reference.mixture_bits(x.float(), params.float(), num_mixtures, b)
    from l2c.mixture_bits import MixtureBits

    return MixtureBits.apply(_mixture_kernels(name), x, _fill(params, x), num_mixtures, b.expand(len(x)))


def neighbour_bits(
    x: Tensor, params: Tensor, num_mixtures: int, b: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """`mixture_bits`, and how they change where the latent rises or falls by one level: `reference.neighbour_bits`.

    Arguments and errors as in `mixture_bits`.

    Returns:
        bits at x, change at x + S, change at x - S: float32 [N, g, h, w]. The bits are differentiable like those of
        `mixture_bits`, the changes are not; these are infinite outside the range of levels.
    """
    _check_mixture(x, params, num_mixtures, b)
    name = choose_float_backend(backend, x, cpp=True)
    if name == "reference":
        here, rise, fall = reference.neighbour_bits(x.float(), params.float(), num_mixtures, b)
        return here, rise.detach(), fall.detach()
    from l2c.mixture_bits import NeighbourBits

    return NeighbourBits.apply(_mixture_kernels(name), x, _fill(params, x), num_mixtures, b.expand(len(x)))


def _check_mixture(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> None:
    if x.dim() != 4 or params.dim() != 4 or params.shape[1] != 3 * num_mixtures * x.shape[1]:
        raise ValueError(f"latents {tuple(x.shape)} and {num_mixtures} mixtures do not fit {tuple(params.shape)}")
    if any(ours not in (1, its) for ours, its in zip(_places(params), _places(x))):
        raise ValueError(f"parameters {tuple(params.shape)} do not spread over latents {tuple(x.shape)}")
    if x.dtype not in _FLOATS or params.dtype not in _FLOATS:
        raise ValueError(f"latents and parameters are float32 or shorter, not {x.dtype} and {params.dtype}")
    if b.dim() != 1 or len(b) not in (1, len(x)) or b.is_floating_point():
        raise ValueError(f"b is one integer for each of {len(x)} pictures, not {b.dtype} {tuple(b.shape)}")


def _places(t: Tensor) -> tuple[int, int, int]:
    return t.shape[0], t.shape[2], t.shape[3]


def _fill(t: Tensor, x: Tensor) -> Tensor:
    """t seen at every place of x, its channels its own."""
    return t.expand(len(x), -1, *x.shape[2:])


def patch_epilogue(
    x: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    slope: float = 1.0,
    bias_grid: Grid | None = None,
    scale_grid: Grid | None = None,
    backend: str = "auto",
) -> Tensor:
    """What follows a convolution of D, (residual + LeakyReLU(x + bias[patch])) * scale[patch], in one pass.

    Args:
        x: float [N, C, h, w].
        bias, scale: float [N or 1, C, rows, columns] of the patches of `bias_grid`, `scale_grid`, or, without a grid,
            [N or 1, C, 1, 1]; or None.
        residual: like x, or None.
        slope: of the LeakyReLU, 1 for none; see `reference.patch_epilogue`, the definition.
        backend: "auto", "triton" or "reference".
    Returns:
        like x, x itself where nothing is to be done; differentiable in all four tensors, twice if need be. Equal
        inputs give equal gradients with "triton": their sums over patches have a fixed order.
    Raises:
        ValueError: shapes or dtypes that are not these.
        BackendError: see `choose_float_backend`.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"features are float [N, C, h, w], not {x.dtype} {tuple(x.shape)}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"the residual is {residual.dtype} {tuple(residual.shape)}, not like {x.dtype} {tuple(x.shape)}"
        )
    for name, table, grid in (("bias", bias, bias_grid), ("scale", scale, scale_grid)):
        if table is None:
            continue
        if table.dim() != 4 or table.shape[0] not in (1, len(x)) or table.shape[1] != x.shape[1]:
            raise ValueError(f"{name} of shape {tuple(table.shape)} does not fit features {tuple(x.shape)}")
        if grid is None and table.shape[2:] != (1, 1):
            raise ValueError(
                f"{name} of {table.shape[2]}x{table.shape[3]} patches needs a grid that says where they lie"
            )
    if choose_float_backend(backend, x) == "reference":
        return reference.patch_epilogue(x, bias, scale, residual, slope, bias_grid, scale_grid)
    if bias is None and scale is None and residual is None and slope == 1.0:
        return x
    from l2c.kernels.patch_epilogue import PatchEpilogue

    whole = [None if t is None else t.expand(len(x), -1, -1, -1) for t in (bias, scale)]
    return PatchEpilogue.apply(x, *whole, residual, slope, bias_grid, scale_grid)


def quantise(y: Tensor, b: int | Tensor, tau: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Q (L2C III), after the mask of L2C Eq. 2 where tau is given; see `reference.quantise` for the definition.

    Args:
        y: float [...], latents in quantiser steps of b = 8, finite; [N, c, h, w] with tau or where b is a tensor.
        b: bits, 1..8, or those of each picture, int64 [N] on y's device.
        tau: float32 [N, 1, h, w] in [0, 1], of which the first round(c tau) channels are kept; or None.
        backend: "auto", "triton" or "reference"; all give the same integers.
    Returns:
        uint8, same shape.
    Raises:
        ValueError: shapes or dtypes that are not these.
        BackendError: see `choose_float_backend`.
    """
    _check_levels(y, b, tau)
    if choose_float_backend(backend, y) == "reference":
        return reference.quantise(y, b, tau)
    from l2c.kernels.quantise import quantise_fwd

    return quantise_fwd(_as_pictures(y), _bits_of(y, b), tau, dequantise=False).view(y.shape)


def to_levels(y: Tensor, b: int | Tensor, tau: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """The latents that the decoder gets: `quantise`, whose arguments and errors it has, and `dequantise` in one pass.

    Returns:
        float32, same shape, multiples of S = 2^(8-b) in [-128, 127]; without a gradient.
    """
    _check_levels(y, b, tau)
    if choose_float_backend(backend, y) == "reference":
        return reference.to_levels(y, b, tau)
    from l2c.kernels.quantise import quantise_fwd

    return quantise_fwd(_as_pictures(y), _bits_of(y, b), tau, dequantise=True).view(y.shape)


def dequantise(symbols: Tensor, b: int | Tensor, *, backend: str = "auto") -> Tensor:
    """Q^-1: symbols uint8 [...] -> latents float32, multiples of S = 2^(8-b) in [-128, 127].

    Args:
        symbols: uint8 [...]; [N, c, h, w] where b is a tensor.
        b: bits, 1..8, or those of each picture, int64 [N] on the symbols' device.
        backend: "auto", "triton" or "reference".
    Raises:
        ValueError: shapes or dtypes that are not these.
        BackendError: see `choose_float_backend`.
    """
    _check_levels(symbols, b, None, (torch.uint8,))
    if choose_float_backend(backend, symbols) == "reference":
        return reference.dequantise(symbols, b)
    from l2c.kernels.quantise import dequantise_fwd

    return dequantise_fwd(_as_pictures(symbols), _bits_of(symbols, b)).view(symbols.shape)


def _check_levels(y: Tensor, b: int | Tensor, tau: Tensor | None, dtypes: tuple[torch.dtype, ...] = _FLOATS) -> None:
    if y.dtype not in dtypes:
        raise ValueError(f"{y.dtype} is none of {', '.join(map(str, dtypes))}")
    if y.dim() > 4:
        raise ValueError(f"latents have four dimensions at most, not {y.dim()}")
    if not isinstance(b, Tensor):
        if not 1 <= b <= 8:
            raise ValueError(f"b is 1..8 bits, not {b}")
    elif y.dim() != 4 or b.shape != y.shape[:1] or b.is_floating_point():
        raise ValueError(f"b is one integer for each picture of {tuple(y.shape)}, not {b.dtype} {tuple(b.shape)}")
    if tau is not None and (y.dim() != 4 or tau.shape != (len(y), 1, *y.shape[2:]) or tau.dtype != torch.float32):
        raise ValueError(f"tau is {tau.dtype} {tuple(tau.shape)}, not one float32 for each place of {tuple(y.shape)}")


def _as_pictures(t: Tensor) -> Tensor:
    """[...] of up to four dimensions -> [N, C, h, w]."""
    return t[(None,) * (4 - t.dim())]


def _bits_of(t: Tensor, b: int | Tensor) -> Tensor:
    """b as int64 [N] on t's device, where t is seen `_as_pictures`."""
    if isinstance(b, Tensor):
        return b
    return torch.full((1,), b, device=t.device).expand(len(t) if t.dim() == 4 else 1)
