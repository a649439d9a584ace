"""PyTorch settings under which floats carry integers exactly, or compute as IEEE says and nothing else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_EXACT_LOCK = threading.RLock()


def carrier(device: torch.device) -> torch.dtype:
    """The float type that carries integers through PyTorch's convolutions.

    On the CPU float64, in which PyTorch has the plain matrix product alone: no setting reaches it and none has to be
    changed, which other threads would see. On GPUs float32, inside `exact_products`.
    """
    return torch.float64 if device.type == "cpu" else torch.float32


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Everything that could round inside a convolution of `carrier(device)` is off in here.

    Those are autocast and, on a GPU, TF32, reduced precision and cuDNN, which chooses Winograd or FFT forms. These
    settings are PyTorch's global ones, so one thread at a time is inside. The known-answer check at load and the CRC of
    the latents guard what settings cannot reach.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type != "cpu":
            stack.enter_context(ieee_float32())
            # The public `flags()` also touches TF32 settings, which fails where a caller set them through PyTorch's
            # other interface.
            stack.callback(torch._C._set_cudnn_enabled, torch._C._get_cudnn_enabled())
            torch._C._set_cudnn_enabled(False)
        yield


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """Plain float32 in matrix products and convolutions, whichever of PyTorch's two interfaces the caller has used.

    The settings are PyTorch's global ones, so one thread at a time is inside.
    """
    modules = [
        getattr(torch.backends.mkldnn, "matmul", None),
        torch.backends.cuda.matmul,
        getattr(torch.backends.cudnn, "conv", None),
    ]
    places: list[Any] = [module for module in modules if hasattr(module, "fp32_precision")]
    with _EXACT_LOCK:
        saved = [place.fp32_precision for place in places]
        legacy = None if places else (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        try:
            for place in places:
                place.fp32_precision = "ieee"
            if legacy is not None:
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False
            yield
        finally:
            for place, value in zip(places, saved):
                place.fp32_precision = value
            if legacy is not None:
                torch.set_float32_matmul_precision(legacy[0])
                torch.backends.cudnn.allow_tf32 = legacy[1]
