"""The coder's kernels in CUDA C++ (csrc/cuda/rans.h), called as those of `mixture.py` and `rans.py` are.

Where `l2c._cuda` was built (L2C_CUDA=1) they take the place of the Triton ones: their decoding loop fetches windows
ahead and passes words between lanes by shuffles, which a Triton program cannot say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def launchers(cuda: Any) -> dict[str, Callable[..., None]]:
    """The four launchers below by name, bound to the extension `l2c._cuda`."""
    functions = (mixture_intervals_fwd, mixture_window_fwd, rans_decode_fwd, rans_encode_fwd)
    return {function.__name__: functools.partial(function, cuda) for function in functions}


def _place(tensor: Tensor) -> dict[str, int]:
    return {"device": tensor.device.index or 0, "stream": torch.cuda.current_stream(tensor.device).cuda_stream}


def _mixtures(count: Tensor, bits: Tensor, weights: Tensor, means: Tensor, inv_scales: Tensor) -> dict[str, Any]:
    K, N, S = weights.shape
    return {
        "count": count.data_ptr(),
        "bits": bits.data_ptr(),
        "weights": weights.data_ptr(),
        "means": means.data_ptr(),
        "inv_scales": inv_scales.data_ptr(),
        "num_streams": N,
        "capacity": S,
        "num_mixtures": K,
        **_place(count),
    }


def mixture_intervals_fwd(
    cuda: Any,
    symbols: Tensor,
    count: Tensor,
    bits: Tensor,
    weights: Tensor,
    means: Tensor,
    inv_scales: Tensor,
    start: Tensor,
    freq: Tensor,
    offset: Tensor,
    status: Tensor,
) -> None:
    """See `mixture.mixture_intervals_fwd`."""
    cuda.mixture_intervals(
        symbols=symbols.data_ptr(),
        position=offset.data_ptr(),
        start=start.data_ptr(),
        freq=freq.data_ptr(),
        status=status.data_ptr(),
        total_capacity=start.shape[1],
        **_mixtures(count, bits, weights, means, inv_scales),
    )


def mixture_window_fwd(
    cuda: Any,
    count: Tensor,
    bits: Tensor,
    weights: Tensor,
    means: Tensor,
    inv_scales: Tensor,
    window: Tensor,
    first: Tensor,
) -> None:
    """See `mixture.mixture_window_fwd`."""
    cuda.mixture_window(
        first=first.data_ptr(), window=window.data_ptr(), **_mixtures(count, bits, weights, means, inv_scales)
    )


def rans_decode_fwd(
    cuda: Any,
    words: Tensor,
    next_word: Tensor,
    end: Tensor,
    states: Tensor,
    position: Tensor,
    lanes: Tensor,
    status: Tensor,
    count: Tensor,
    bits: Tensor,
    weights: Tensor,
    means: Tensor,
    inv_scales: Tensor,
    window: Tensor,
    first: Tensor,
    symbols: Tensor,
    most_lanes: int,
) -> None:
    """See `rans.rans_decode_fwd`; a stream that has failed stays where it was."""
    cuda.rans_decode_mixture(
        lanes=lanes.data_ptr(),
        position=position.data_ptr(),
        states=states.data_ptr(),
        words=words.data_ptr(),
        num_words=words.numel(),
        next=next_word.data_ptr(),
        end=end.data_ptr(),
        status=status.data_ptr(),
        first=first.data_ptr(),
        window=window.data_ptr(),
        symbols=symbols.data_ptr(),
        **_mixtures(count, bits, weights, means, inv_scales),
    )


def rans_encode_fwd(
    cuda: Any,
    start: Tensor,
    freq: Tensor,
    total: Tensor,
    lanes: Tensor,
    states: Tensor,
    words: Tensor,
    begin: Tensor,
    status: Tensor,
    most_lanes: int,
) -> None:
    """See `rans.rans_encode_fwd`."""
    cuda.rans_encode(
        lanes=lanes.data_ptr(),
        total=total.data_ptr(),
        start=start.data_ptr(),
        freq=freq.data_ptr(),
        states=states.data_ptr(),
        buffer=words.data_ptr(),
        first_word=begin.data_ptr(),
        status=status.data_ptr(),
        num_streams=start.shape[0],
        total_capacity=start.shape[1],
        buffer_capacity=words.shape[1],
        **_place(start),
    )
