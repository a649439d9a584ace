"""Operators with a gradient, whichever kernels compute them; and the C++ kernels of mixtures' bits for CPU tensors.

A set of kernels is a module or class: for `MixtureBits` and `NeighbourBits` with `mixture_bits_fwd`, `mixture_bits_bwd`
and `neighbour_bits_fwd`, of the signatures of `CppKernels`; for `PatchEpilogue` with `patch_epilogue_fwd`,
`patch_epilogue_bwd` and `patch_sums` of `kernels/patch_epilogue.py`. All is defined by `l2c.ops.reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.ops import reference
from l2c.ops.contract import LOG2_INV_SCALE_LEAST, LOG2_INV_SCALE_MOST, MARGIN, NEIGHBOUR_MARGIN, Grid
from l2c.ops.extension import cpp_extension


class CppKernels:
    """csrc/simd/mixture_bits.h on CPU tensors. It has a position's channels in a row; others are copied to be so."""

    @staticmethod
    def mixture_bits_fwd(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> Tensor:
        """x [N, g, h, w], params [N, 3 K g, h, w], b int64 [N], of any strides -> float32 like x."""
        arguments = _arguments(x, params, num_mixtures, b, MARGIN)
        return _picture(cpp_extension().mixture_bits(**arguments), x)

    @staticmethod
    def mixture_bits_bwd(
        dout: Tensor,
        x: Tensor,
        params: Tensor,
        num_mixtures: int,
        b: Tensor,
        margin: float = MARGIN,
        with_dx: bool = True,
        with_dparams: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of `mixture_bits_fwd`: dout float32 like x -> dx like x, dparams like params, or None."""
        arguments = _arguments(x, params, num_mixtures, b, margin)
        dx, dparams = cpp_extension().mixture_bits_backward(dout=_rows(dout), with_dparams=with_dparams, **arguments)
        return (
            _picture(dx, x).to(x.dtype) if with_dx else None,
            _picture(dparams, params).to(params.dtype) if with_dparams else None,
        )

    @staticmethod
    def neighbour_bits_fwd(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments as in `mixture_bits_fwd` -> bits at x, change at x + S, change at x - S, float32 like x."""
        arguments = _arguments(x, params, num_mixtures, b, NEIGHBOUR_MARGIN)
        here, rise, fall = (_picture(rows, x) for rows in cpp_extension().neighbour_bits(**arguments))
        return here, rise, fall


class LowerBound(torch.autograd.Function):
    """max(x, bound), whose gradient also passes below the bound where it leads back to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def _arguments(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor, margin: float) -> dict[str, Any]:
    return {
        "x": _rows(x),
        "params": _rows(params),
        "mixtures": num_mixtures,
        "steps": torch.exp2(8.0 - b.float()).numpy(),
        "least": LOG2_INV_SCALE_LEAST,
        "most": LOG2_INV_SCALE_MOST,
        "margin": margin,
        "threads": torch.get_num_threads(),
    }


def _rows(t: Tensor) -> npt.NDArray[np.float32]:
    """[N, channels, h, w] -> float32 [N h w, channels]: in place where it is float32 and channels-last."""
    n, channels, h, w = t.shape
    rows: npt.NDArray[np.float32]
    rows = t.detach().permute(0, 2, 3, 1).float().contiguous().view(n * h * w, channels).numpy()
    return rows


def _picture(rows: npt.NDArray[np.float32], like: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    n, channels, h, w = like.shape
    return torch.from_numpy(rows).view(n, h, w, channels).permute(0, 3, 1, 2)


class MixtureBits(torch.autograd.Function):
    """The kernels' `mixture_bits_fwd` with its gradient: apply(kernels, x, params, num_mixtures, b)."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, params, b)
        ctx.kernels, ctx.num_mixtures = kernels, num_mixtures
        bits: Tensor = kernels.mixture_bits_fwd(x, params, num_mixtures, b)
        return bits

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[None, Tensor | None, Tensor | None, None, None]:
        return None, *_backward(ctx, dout, MARGIN, reference.mixture_bits), None, None


class NeighbourBits(torch.autograd.Function):
    """The kernels' `neighbour_bits_fwd`, called like `MixtureBits`. The bits have a gradient, the changes have none."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Any, x: Tensor, params: Tensor, num_mixtures: int, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x, params, b)
        ctx.kernels, ctx.num_mixtures = kernels, num_mixtures
        here, rise, fall = kernels.neighbour_bits_fwd(x, params, num_mixtures, b)
        ctx.mark_non_differentiable(rise, fall)
        return here, rise, fall

    @staticmethod
    def backward(ctx: Any, dout: Tensor, *_: Tensor) -> tuple[None, Tensor | None, Tensor | None, None, None]:
        found = _backward(ctx, dout, NEIGHBOUR_MARGIN, lambda *args: reference.neighbour_bits(*args)[0])
        return None, *found, None, None


def _backward(
    ctx: Any, dout: Tensor, margin: float, definition: Callable[[Tensor, Tensor, int, Tensor], Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    x, params, b = ctx.saved_tensors
    needed = ctx.needs_input_grad[1:3]
    if not torch.is_grad_enabled():
        found: tuple[Tensor | None, Tensor | None]
        found = ctx.kernels.mixture_bits_bwd(dout, x, params, ctx.num_mixtures, b, margin, *needed)
        return found
    # The gradient is to have a gradient itself (MAML of second order): PyTorch's own form has one. On aliases, for
    # params may depend on x: what goes that way belongs to the graph outside.
    x, params = x.view_as(x), params.view_as(params)
    bits = definition(x.float(), params.float(), ctx.num_mixtures, b)
    wanted = [t for t, need in zip((x, params), needed) if need]
    slopes = iter(torch.autograd.grad(bits, wanted, dout, create_graph=True))
    dx, dparams = (next(slopes) if need else None for need in needed)
    return dx, dparams


class PatchEpilogue(torch.autograd.Function):
    """The kernels' `patch_epilogue_fwd` with its gradient; apply takes the kernels and its arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        x: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        residual: Tensor | None,
        slope: float,
        bias_grid: Grid | None,
        scale_grid: Grid | None,
    ) -> Tensor:
        ctx.save_for_backward(x, bias, scale, residual)
        ctx.kernels, ctx.others = kernels, (slope, bias_grid, scale_grid)
        out: Tensor = kernels.patch_epilogue_fwd(x, bias, scale, residual, slope, bias_grid, scale_grid)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        kernels, inputs, others = ctx.kernels, ctx.saved_tensors, ctx.others
        needed = ctx.needs_input_grad[1:5]
        if torch.is_grad_enabled():
            return None, *_differentiable_backward(dout, inputs, others, needed), None, None, None
        (x, bias, scale, residual), (slope, bias_grid, scale_grid) = inputs, others
        gradients: list[Tensor | None] = [None] * 4
        if needed[0] or needed[1] or needed[3]:
            dx, gradients[3] = kernels.patch_epilogue_bwd(dout, x, bias, scale, *others)
            gradients[0] = dx
            if needed[1]:
                gradients[1] = kernels.patch_sums(dx, None, bias, bias_grid)
        if needed[2]:
            plain = bias is None and residual is None and slope == 1.0
            scaled = x if plain else kernels.patch_epilogue_fwd(x, bias, None, residual, slope, bias_grid, None)
            gradients[2] = kernels.patch_sums(scaled, dout, scale, scale_grid)
        return None, *(g if need else None for g, need in zip(gradients, needed)), None, None, None


def _differentiable_backward(
    dout: Tensor, inputs: Sequence[Tensor | None], others: tuple[Any, ...], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients that have gradients themselves (meta-training of second order), by PyTorch's own form.

    On aliases, for the inputs may depend on each other: what goes that way belongs to the graph outside.
    """
    aliases = [None if t is None else t.view_as(t) for t in inputs]
    out = reference.patch_epilogue(*aliases, *others)  # type: ignore[arg-type]
    wanted = [t for t, need in zip(aliases, needed) if need and t is not None]
    found = iter(torch.autograd.grad(out, wanted, dout, create_graph=True))
    return [next(found) if need else None for need in needed]
