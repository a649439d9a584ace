"""Public operators: choose a backend, check, call it. The C++ extension loads on first use, never on import."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from l2c import reference
from l2c.errors import BackendError

INTEGER_BACKENDS = ("auto", "cpu", "torch", "reference")


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


def cuda_extension() -> Any:
    """The CUDA extension, see csrc/cuda/rans.h. Raises BackendError with the reason where it does not load."""
    module, reason = _load_cuda_extension()
    if module is None:
        raise BackendError(reason)
    return module


def range_encoder() -> Any:
    """A new interleaved rANS encoder, see csrc/rans.h."""
    return extension().RangeEncoder()


def range_decoder(payload: bytes | memoryview) -> Any:
    """A decoder over one payload, see csrc/rans.h. Raises BitstreamError where its header is not valid."""
    return extension().RangeDecoder(payload)


def choose_integer_backend(backend: str, device: torch.device | None) -> str:
    """Resolve "auto" for P's integer steps: "torch" on a GPU, "cpu" where the extension loads, else "torch".

    Raises:
        BackendError: an unknown name, or a backend asked for by name that cannot run.
    """
    if backend not in INTEGER_BACKENDS:
        raise BackendError(f"no integer backend is called {backend!r}; there are {', '.join(INTEGER_BACKENDS)}")
    if backend == "cpu":
        extension()
    if backend != "auto":
        return backend
    if device is not None and device.type != "cpu":
        return "torch"
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


def int_conv(weight: npt.NDArray[np.int8], bias: npt.NDArray[np.int32], multiplier: npt.NDArray[np.float32]) -> Any:
    """A packed C++ integer convolution, see csrc/int_conv.h."""
    return extension().IntConv(
        np.ascontiguousarray(weight), np.ascontiguousarray(bias), np.ascontiguousarray(multiplier)
    )


def mixture_params(
    raw: npt.NDArray[np.int16],
    num_mixtures: int,
    channels: int,
    exp_table: npt.NDArray[np.uint16],
    inv_table: npt.NDArray[np.uint16],
    backend: str = "auto",
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int16], npt.NDArray[np.uint16]]:
    """Head output -> mixture parameters as the coder takes them; see `reference.mixture_params` for the definition.

    Args:
        raw: int16 [cells, 3 K g].
        num_mixtures, channels: K, g.
        exp_table, inv_table: uint16 [256].
        backend: "auto" (C++ where it loads), "cpu" or "reference".
    Returns:
        weights uint16, means int16, inverse scales uint16, each [K, cells * g].
    """
    if backend == "reference" or (backend == "auto" and _load_extension()[0] is None):
        return reference.mixture_params(raw, num_mixtures, channels, exp_table, inv_table)
    return extension().mixture_params(raw, num_mixtures, channels, exp_table, inv_table)
