"""Operators on float tensors: check, choose a backend, call it. `l2c.ops.reference` defines them all."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import Tensor

from l2c.errors import BackendError
from l2c.ops import extension, reference
from l2c.ops.contract import Grid
from l2c.ops.gradients import CppKernels, LowerBound, MixtureBits, NeighbourBits, PatchEpilogue

FLOAT_BACKENDS = ("auto", "cpu", "triton", "reference")
_TRACING_MODES = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@functools.lru_cache(maxsize=8)
def bf16_pays(device: torch.device) -> bool:
    """Whether bfloat16 convolutions beat float32 ones here: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch before 2.10
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


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
    reason = _cpp_reason(x, cpp) if backend == "cpu" else extension.triton_reason(x.device)
    if not reason and x.dtype == torch.float64:
        reason = "kernels compute in float32"
    if not reason and backend == "triton" and x[:1].numel() >= 1 << 31:
        reason = "Triton kernels take less than 2^31 elements of each picture"
    if auto:
        interpreted = backend == "triton" and extension.load_triton()[0]  # which is for tests alone
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
    return extension.load_cpp()[1]


def _mixture_kernels(backend: str) -> Any:
    """What computes bits of mixtures on a backend: see `l2c.ops.gradients`."""
    return CppKernels if backend == "cpu" else extension.kernels("mixture_bits")


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
    whole = [None if t is None else t.expand(len(x), -1, -1, -1) for t in (bias, scale)]
    return PatchEpilogue.apply(extension.kernels("patch_epilogue"), x, *whole, residual, slope, bias_grid, scale_grid)


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound) for x float [...] of any shape; a descent can leave values below the bound, see `LowerBound`."""
    return LowerBound.apply(x, bound)  # type: ignore[no-untyped-call,no-any-return]


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
    kernels = extension.kernels("quantise")
    return kernels.quantise_fwd(_as_pictures(y), _bits_of(y, b), tau, dequantise=False).view(y.shape)


def to_levels(y: Tensor, b: int | Tensor, tau: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """The latents that the decoder gets: `quantise`, whose arguments and errors it has, and `dequantise` in one pass.

    Returns:
        float32, same shape, multiples of S = 2^(8-b) in [-128, 127]; without a gradient.
    """
    _check_levels(y, b, tau)
    if choose_float_backend(backend, y) == "reference":
        return reference.to_levels(y, b, tau)
    kernels = extension.kernels("quantise")
    return kernels.quantise_fwd(_as_pictures(y), _bits_of(y, b), tau, dequantise=True).view(y.shape)


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
    kernels = extension.kernels("quantise")
    return kernels.dequantise_fwd(_as_pictures(symbols), _bits_of(symbols, b)).view(symbols.shape)


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
