"""D as its integer form rounds it, in floats and with gradients: for training that goes on to expect the rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.exact.quantise import BALANCE, LEAST_RANGE, WEIGHT_MOST, decoder_config
from l2c.exact.weights import REST_BITS, SPLIT, layer_shapes
from l2c.transforms.block import BlockDecoder


@contextlib.contextmanager
def fake_integers(decoder: BlockDecoder) -> Iterator[None]:
    """While this lasts, inputs and weights of D's convolutions are rounded as `quantise.from_float` does it.

    Ranges of inputs are those of the batch at hand, so that nothing has to be kept between steps. What else the integer
    form rounds (residual streams, coefficients, gains) is much finer and left alone. Gradients go straight through
    (Bengio et al. 2013, arXiv:1308.3432). Parameters and their names stay as they are.
    """
    convolutions: list[Any] = []
    try:
        for name in layer_shapes(decoder_config(decoder)):
            conv: Any = decoder.get_submodule(name)
            convolutions.append(conv)
            conv._conv_forward = _rounded_convolution(conv, name in SPLIT)  # what every form of Conv2d calls
        yield
    finally:
        for conv in convolutions:
            conv.__dict__.pop("_conv_forward", None)


def _rounded_convolution(conv: Any, split: bool) -> Any:
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.no_grad():
            step = input_step(x.float())
        rounded = _through(x, _round(x.float(), step[:, None, None] / (1 << REST_BITS if split else 1)))
        scaled = weight.float() * step[:, None, None]
        with torch.no_grad():
            unit = scaled.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12) / WEIGHT_MOST
        kernel = _through(weight, _round(scaled, unit) / step[:, None, None])
        return F.conv2d(rounded.to(x.dtype), kernel.to(x.dtype), None if bias is None else bias.to(x.dtype),
                        conv.stride, conv.padding)  # fmt: skip

    return forward


def input_step(x: Tensor) -> Tensor:
    """What a unit of each channel's bytes is worth, for inputs [N, I, h, w]: float32 [I]; as `quantise` has it."""
    low, high = x.amin(dim=(0, 2, 3)).clamp_max(0.0), x.amax(dim=(0, 2, 3)).clamp_min(0.0)
    span = high - low
    widest = span.max().clamp_min(1e-6)
    return torch.maximum(span, LEAST_RANGE * widest) ** BALANCE * widest ** (1.0 - BALANCE) / 255.0


def _round(x: Tensor, unit: Tensor) -> Tensor:
    return (x / unit).round() * unit


def _through(x: Tensor, rounded: Tensor) -> Tensor:
    """The rounded values, with the gradient of x."""
    return x + (rounded - x).detach()
