"""Loads the C++ extension, the CUDA extension and Triton's kernels: once, on first use, and remembers why not.

The only place that imports `l2c._C`, `l2c._cuda` and `l2c.kernels`, so importing `l2c` loads none of them.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from l2c.errors import BackendError


@functools.lru_cache(maxsize=1)
def load_cpp() -> tuple[Any, str]:
    """(module, "") or (None, why it does not load); the outcome is remembered."""
    try:
        return importlib.import_module("l2c._C"), ""
    except ImportError as error:
        return None, f"the C++ extension l2c._C does not load ({error}); build it with `pip install -e .`"


def cpp_extension() -> Any:
    """The C++ extension. Raises BackendError with the reason where it does not load."""
    module, reason = load_cpp()
    if module is None:
        raise BackendError(reason)
    return module


@functools.lru_cache(maxsize=1)
def load_cuda() -> tuple[Any, str]:
    """(module, "") or (None, why it does not load); the outcome is remembered."""
    try:
        return importlib.import_module("l2c._cuda"), ""
    except ImportError as error:
        return None, f"the extension l2c._cuda does not load ({error}); build it with `L2C_CUDA=1 pip install -e .`"


def has_cuda_extension() -> bool:
    """Whether `l2c._cuda` was built and loads."""
    return load_cuda()[0] is not None


def cuda_extension() -> Any:
    """The CUDA extension, see csrc/cuda/rans.h. Raises BackendError with the reason where it does not load."""
    module, reason = load_cuda()
    if module is None:
        raise BackendError(reason)
    return module


@functools.lru_cache(maxsize=1)
def load_triton() -> tuple[bool, str]:
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
    interprets, reason = load_triton()
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
    try:
        kernels("common").probe(device)
    # Triton compiles with the machine's C compiler and Python's headers, which may be missing.
    except Exception as error:
        return f"Triton cannot compile for {device} ({type(error).__name__}: {error})"
    return ""


def kernels(name: str) -> Any:
    """The module `l2c.kernels.<name>`, which needs Triton. Raises BackendError where that does not load."""
    reason = load_triton()[1]
    if reason:
        raise BackendError(reason)
    return importlib.import_module(f"l2c.kernels.{name}")
