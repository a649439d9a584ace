"""Bits of mixtures as operations with a gradient, whichever kernels compute them; and the C++ kernels for CPU tensors.

A set of kernels is a module or class with `mixture_bits_fwd`, `mixture_bits_bwd` and `neighbour_bits_fwd`, of the
signatures of `CppKernels`. All is defined by `reference.mixture_bits` and `reference.neighbour_bits`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c import ops, reference

# Latents between two levels, which training asks for, belong to an end of the range up to so many steps from it.
MARGIN = 0.25  # in `reference.mixture_likelihood`
NEIGHBOUR_MARGIN = 0.5  # in `reference.neighbour_bits`, whose latents are levels: from 128 - S/2 on there is none


class CppKernels:
    """csrc/mixture_bits.h on CPU tensors. It has the channels of a position in a row; others are copied to be so."""

    @staticmethod
    def mixture_bits_fwd(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> Tensor:
        """x [N, g, h, w], params [N, 3 K g, h, w], b int64 [N], of any strides -> float32 like x."""
        arguments = _arguments(x, params, num_mixtures, b, MARGIN)
        return _picture(ops.extension().mixture_bits(**arguments), x)

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
        dx, dparams = ops.extension().mixture_bits_backward(dout=_rows(dout), with_dparams=with_dparams, **arguments)
        return (
            _picture(dx, x).to(x.dtype) if with_dx else None,
            _picture(dparams, params).to(params.dtype) if with_dparams else None,
        )

    @staticmethod
    def neighbour_bits_fwd(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments as in `mixture_bits_fwd` -> bits at x, change at x + S, change at x - S, float32 like x."""
        arguments = _arguments(x, params, num_mixtures, b, NEIGHBOUR_MARGIN)
        here, rise, fall = (_picture(rows, x) for rows in ops.extension().neighbour_bits(**arguments))
        return here, rise, fall


def _arguments(x: Tensor, params: Tensor, num_mixtures: int, b: Tensor, margin: float) -> dict[str, Any]:
    return {
        "x": _rows(x),
        "params": _rows(params),
        "mixtures": num_mixtures,
        "steps": torch.exp2(8.0 - b.float()).numpy(),
        "least": reference.LOG2_INV_SCALE_LEAST,
        "most": reference.LOG2_INV_SCALE_MOST,
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
