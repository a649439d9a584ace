"""A trained float D of the block family -> integers: ranges are measured on pictures, then everything is rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from l2c.exact.fixed import BITS, FunctionTables, SmallNet, to_fixed
from l2c.exact.weights import (
    COEFFICIENT_BITS,
    DETAIL_BITS,
    LOCAL_BITS,
    REST_BITS,
    REST_ZERO,
    SPLIT,
    STREAM_BITS,
    TRANSFORM_BITS,
    ExactConv,
    ExactWeights,
    layer_shapes,
)
from l2c.transforms.block import BlockConfig, BlockDecoder, Gain
from l2c.transforms.modulators import Modulator, log_lmbda

_SHARE = 1e-4  # of the values of a channel that may lie beyond its range, on each side
_MARGIN = 1.1  # ranges are taken so much wider than they were measured
_BALANCE = 0.9  # how far a channel's range is its own: 0, all of a layer share one; 1, each has its own
_WEIGHT_MOST = 127
_SHARING = ("local_gain", "up")  # layers whose input is the head's
_LEAST_RANGE = 1e-3  # of a layer's widest channel, for those that are silent

Float64 = npt.NDArray[np.float64]


@dataclass
class Ranges:
    """Where the inputs of D's convolutions lie.

    Attributes:
        low, high: float64 [channels] by layer: quantiles of its inputs, the extremes over pictures.
    """

    low: dict[str, Float64] = field(default_factory=dict)
    high: dict[str, Float64] = field(default_factory=dict)


@torch.no_grad()
def measure_ranges(decoder: BlockDecoder, passes: Iterable[tuple[Tensor, Tensor]]) -> Ranges:
    """Quantiles of what every convolution gets.

    Args:
        decoder: the trained D, on the CPU.
        passes: (latents float32 [N, c, h, w], conditions float32 [N, 2]) of pictures at all kinds of trade-offs.
    """
    ranges, hooks = Ranges(), []
    seen: dict[str, tuple[Float64, Float64]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].float().transpose(0, 1).flatten(1)
            most = max(1, round(_SHARE * values.shape[1]))
            low, high = (values.topk(most, dim=1, largest=largest).values[:, -1] for largest in (False, True))
            seen[name] = low.double().numpy(), high.double().numpy()

        return hook

    for name in _measured(decoder_config(decoder)):
        hooks.append(decoder.get_submodule(name).register_forward_pre_hook(watch(name)))
    try:
        for z, cond in passes:
            decoder(z, cond)
            for name, (low, high) in seen.items():
                ranges.low[name] = np.minimum(ranges.low.get(name, low), low)
                ranges.high[name] = np.maximum(ranges.high.get(name, high), high)
    finally:
        for hook in hooks:
            hook.remove()
    return ranges


def decoder_config(decoder: BlockDecoder) -> BlockConfig:
    """The sizes of a D, as far as its integer form needs them."""
    gain = _gain(decoder)
    return BlockConfig(
        s=decoder.s, c=decoder.c, width=decoder.first.out_channels, decoder_blocks=len(decoder.blocks),
        fine_width=0 if decoder.up is None else decoder.up.out_channels // 4, modulator_width=gain.fc1.out_features,
        local_gain=decoder.local_gain is not None, companding=decoder.companding is not None,
    )  # fmt: skip


def _gain(decoder: BlockDecoder) -> Gain:
    gain = decoder.gain if decoder.companding is None else decoder.companding.gain
    assert gain is not None
    return gain


def _measured(config: BlockConfig) -> list[str]:
    """Layers with an input of their own."""
    return [name for name in layer_shapes(config) if name not in _SHARING]


@dataclass(frozen=True)
class _Bytes:
    """How a layer's inputs are bytes: float value = (byte - zero) * step, float64 [I] each."""

    step: Float64
    zero: Float64

    @classmethod
    def of(cls, low: Float64, high: Float64) -> _Bytes:
        low, high = _MARGIN * np.minimum(low, 0.0), _MARGIN * np.maximum(high, 0.0)
        span = high - low
        widest = max(float(span.max()), 1e-6)
        step = np.maximum(span, _LEAST_RANGE * widest) ** _BALANCE * widest ** (1.0 - _BALANCE) / 255.0
        # What is left over beyond the range is shared out to both sides.
        zero = np.rint(-low / step + 0.5 * (255.0 - span / step))
        return cls(step, zero.clip(0.0, 255.0))


@torch.no_grad()
def from_float(decoder: BlockDecoder, lmbda: tuple[float, float], ranges: Ranges) -> ExactWeights:
    """The integer form of a trained D.

    Args:
        decoder: on the CPU.
        lmbda: the model's range of trade-offs.
        ranges: of its layers' inputs, from `measure_ranges`.
    """
    config = decoder_config(decoder)
    inputs = {name: _Bytes.of(ranges.low[name], ranges.high[name]) for name in _measured(config)}
    inputs |= dict.fromkeys(_SHARING, inputs["head"])
    blocks = config.decoder_blocks
    streams = [inputs[f"blocks.{i}.conv1"] for i in range(blocks)] + [inputs["head"]]
    per_stream = float(1 << STREAM_BITS)
    whitening = decoder.whitening[0, :, 0, 0].double().numpy()
    units = {"first": per_stream / streams[0].step, "head": (1 << COEFFICIENT_BITS) / whitening}
    units["local_gain"] = np.full(config.c, float(1 << LOCAL_BITS))
    ratios = []
    for i in range(blocks):
        units[f"blocks.{i}.conv1"] = 1.0 / inputs[f"blocks.{i}.conv2"].step
        units[f"blocks.{i}.conv2"] = per_stream / streams[i].step
        ratios.append(streams[i].step / streams[i + 1].step)
    if config.fine_width:
        fine, last = inputs["fine_block.conv1"], inputs["last"]
        units["up"] = np.repeat(per_stream / fine.step, 4)  # pixel_shuffle's order
        units["fine_block.conv1"] = 1.0 / inputs["fine_block.conv2"].step
        units["fine_block.conv2"] = per_stream / fine.step
        units["last"] = np.full(3 * (config.s // 2) ** 2, 255.0 * (1 << DETAIL_BITS))
        ratios.append(fine.step / last.step)
    convolutions = {
        name: _convolution(decoder.get_submodule(name), inputs[name], units[name], name in SPLIT)  # type: ignore[arg-type]
        for name in layer_shapes(config)
    }
    companding = decoder.companding
    logs = [math.log(value) for value in lmbda]
    scale = float(1.0 / (log_lmbda(torch.tensor([[1.0, 0.0]])) - log_lmbda(torch.zeros(1, 2))))
    base = (logs[0] - float(log_lmbda(torch.zeros(1, 2)))) * scale
    c = config.c
    result = ExactWeights(
        config, FunctionTables.make(),
        round(base * (1 << 2 * BITS)), round((logs[1] - logs[0]) * scale / 1000.0 * (1 << 2 * BITS)),
        small_net(_gain(decoder)), tuple(small_net(mod) for mod in decoder.mods),  # type: ignore[arg-type]
        tuple(ratio.astype(np.float32) for ratio in ratios), convolutions,
        (whitening[:c] / inputs["first"].step).astype(np.float32),
        np.zeros(c, np.int64) if companding is None else to_fixed(companding.limit.flatten().double().numpy()),
        np.ones(c, np.float32) if companding is None else companding.bound.flatten().numpy().copy(),
        np.zeros(c, np.bool_) if companding is None else companding.is_mean.flatten().numpy().copy(),
        to_fixed(decoder.transform.weight[:, :, 0, 0].double().numpy(), TRANSFORM_BITS).astype(np.int32),
    )  # fmt: skip
    result.check()
    return result


def small_net(net: Gain | Modulator) -> SmallNet:
    """Its two layers in fixed point."""
    parts = (net.fc1.weight, net.fc1.bias, net.fc2.weight, net.fc2.bias)
    return SmallNet(*(to_fixed(part.detach().double().numpy()) for part in parts))


def _convolution(conv: nn.Conv2d, inputs: _Bytes, units: Float64, split: bool) -> ExactConv:
    weight = conv.weight.detach().double().numpy() * inputs.step[:, None, None]
    step = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-12) / _WEIGHT_MOST
    zero = inputs.zero
    if split:
        weight = np.concatenate((weight, weight / (1 << REST_BITS)), axis=1)
        zero = np.concatenate((zero, np.full(len(zero), float(REST_ZERO))))
    integers = np.rint(weight / step[:, None, None, None])
    bias = np.zeros(len(weight)) if conv.bias is None else conv.bias.detach().double().numpy()
    offset = np.rint(bias / step) - (integers.sum(axis=(2, 3)) * zero).sum(axis=1)
    return ExactConv(
        integers.astype(np.int8), offset.astype(np.int32), (step * units).astype(np.float32),
        (1.0 / step).astype(np.float32), zero.astype(np.uint8),
    )  # fmt: skip
