"""Trained networks of the block family -> integers: ranges are measured on pictures, then everything is rounded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.exact.fixed import BITS, FunctionTables, SmallNet, to_fixed
from l2c.exact.weights import (
    CLAMP,
    COEFFICIENT_BITS,
    DETAIL_BITS,
    EXACT_PREFIX,
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
from l2c.transforms.block import BlockConfig, BlockDecoder, BlockEncoder, Gain
from l2c.transforms.modulators import Modulator, log_lmbda

_SHARE = 1e-4  # of the values of a channel that may lie beyond its range, on each side
_MARGIN = 1.1  # ranges are taken so much wider than they were measured
BALANCE = 0.9  # how far a channel's range is its own: 0, all of a layer share one; 1, each has its own
WEIGHT_MOST = 127
_SHARING = ("local_gain", "up")  # layers whose input is the head's
_MOST_RANGE = 1e9  # of an input that a model file states
LEAST_RANGE = 1e-3  # of a layer's widest channel, for those that are silent

ENCODER_PREFIX = EXACT_PREFIX + "encoder."  # of the ranges of E in a model file

Float64 = npt.NDArray[np.float64]


@dataclass
class Ranges:
    """Where the inputs of a network's convolutions lie.

    Attributes:
        low, high: float64 [channels] by layer: quantiles of its inputs, the extremes over pictures.
        most: float64 [channels] by layer: the largest magnitude of its outputs, as far as it is known.
    """

    low: dict[str, Float64] = field(default_factory=dict)
    high: dict[str, Float64] = field(default_factory=dict)
    most: dict[str, Float64] = field(default_factory=dict)

    def to_tensors(self) -> dict[str, Tensor]:
        """Those of E as a model file stores them, in float32."""
        return {
            f"{ENCODER_PREFIX}{name}.{side}": torch.from_numpy(values[name]).float()
            for side, values in (("low", self.low), ("high", self.high), ("most", self.most))
            for name in values
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], encoder: nn.Module) -> Ranges | None:
        """Read `to_tensors`; None where a model file has no ranges of E. Raises ConfigError: they do not fit E."""
        if not isinstance(encoder, BlockEncoder) or not any(name.startswith(ENCODER_PREFIX) for name in tensors):
            return None
        ranges = cls()
        for name in encoder_inputs(encoder):
            conv: Any = encoder.get_submodule(name)
            sides = (("low", ranges.low, conv.in_channels), ("high", ranges.high, conv.in_channels))
            for side, values, channels in (*sides, ("most", ranges.most, conv.out_channels)):
                stored = tensors.get(f"{ENCODER_PREFIX}{name}.{side}")
                if (
                    stored is None
                    or stored.shape != (channels,)
                    or not bool((stored.double().abs() < _MOST_RANGE).all())
                ):
                    raise ConfigError(f"the integer E has no {side} of {channels} channels of {name}")
                values[name] = stored.double().numpy()
        return ranges


@contextlib.contextmanager
def watched(network: nn.Module, layers: Sequence[str]) -> Iterator[Ranges]:
    """Ranges of what these convolutions of a network on the CPU get and give while this lasts."""
    ranges = Ranges()

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            extreme = output.detach().double().abs().amax(dim=(0, 2, 3)).numpy()
            ranges.most[name] = np.maximum(ranges.most.get(name, extreme), extreme)
            values = inputs[0].detach().float().transpose(0, 1).flatten(1)
            most = max(1, round(_SHARE * values.shape[1]))
            low, high = (
                values.topk(most, dim=1, largest=largest).values[:, -1].double().numpy() for largest in (False, True)
            )
            ranges.low[name] = np.minimum(ranges.low.get(name, low), low)
            ranges.high[name] = np.maximum(ranges.high.get(name, high), high)

        return hook

    with contextlib.ExitStack() as stack:
        for name in layers:
            stack.callback(network.get_submodule(name).register_forward_hook(watch(name)).remove)
        yield ranges


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


def decoder_inputs(decoder: BlockDecoder) -> list[str]:
    """D's layers with an input of their own."""
    return [name for name in layer_shapes(decoder_config(decoder)) if name not in _SHARING]


def encoder_inputs(encoder: BlockEncoder) -> list[str]:
    """E's layers with an input of their own."""
    blocks = [f"blocks.{i}.{conv}" for i in range(len(encoder.blocks)) for conv in ("conv1", "conv2")]
    return ["first", *blocks, "head"]


@dataclass(frozen=True)
class _Bytes:
    """How a layer's inputs are bytes: float value = (byte - zero) * step, float64 [I] each."""

    step: Float64
    zero: Float64

    @classmethod
    def of(cls, low: Float64, high: Float64, least: Float64 | float = 0.0) -> _Bytes:
        """Of a layer whose inputs lie between these; steps are at least `least`."""
        low, high = _MARGIN * np.minimum(low, 0.0), _MARGIN * np.maximum(high, 0.0)
        span = high - low
        widest = max(float(span.max()), 1e-6)
        step = np.maximum(span, LEAST_RANGE * widest) ** BALANCE * widest ** (1.0 - BALANCE) / 255.0
        step = np.maximum(step, least)
        # What is left over beyond the range is shared out to both sides.
        zero = np.rint(-low / step + 0.5 * (255.0 - span / step))
        return cls(step, zero.clip(0.0, 255.0))


def _inputs(ranges: Ranges, layers: Sequence[str]) -> dict[str, _Bytes]:
    """The bytes of layers' inputs; residual streams, whose units follow, have room for what blocks add to them."""
    found = {}
    for name in layers:
        added = ranges.most.get(name.replace("conv1", "conv2"), 0.0) if name.endswith("conv1") else 0.0
        found[name] = _Bytes.of(ranges.low[name], ranges.high[name], added * (2 << STREAM_BITS) / CLAMP)
    return found


@torch.no_grad()
def from_float(decoder: BlockDecoder, lmbda: tuple[float, float], ranges: Ranges) -> ExactWeights:
    """The integer form of a trained D.

    Args:
        decoder: on the CPU.
        lmbda: the model's range of trade-offs.
        ranges: of its `decoder_inputs`.
    """
    config = decoder_config(decoder)
    inputs = _inputs(ranges, decoder_inputs(decoder))
    inputs |= dict.fromkeys(_SHARING, inputs["head"])
    whitening = decoder.whitening[0, :, 0, 0].double().numpy()
    units, ratios = _trunk_units(inputs, config.decoder_blocks)
    units["head"] = (1 << COEFFICIENT_BITS) / whitening
    units["local_gain"] = np.full(config.c, float(1 << LOCAL_BITS))
    per_stream = float(1 << STREAM_BITS)
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


def _trunk_units(inputs: dict[str, _Bytes], blocks: int) -> tuple[dict[str, Float64], list[Float64]]:
    """What a float output is multiplied with in the first layer and the blocks, and what scales change by."""
    per_stream = float(1 << STREAM_BITS)
    streams = [inputs[f"blocks.{i}.conv1"] for i in range(blocks)] + [inputs["head"]]
    units = {"first": per_stream / streams[0].step}
    for i in range(blocks):
        units[f"blocks.{i}.conv1"] = 1.0 / inputs[f"blocks.{i}.conv2"].step
        units[f"blocks.{i}.conv2"] = per_stream / streams[i].step
    return units, [streams[i].step / streams[i + 1].step for i in range(blocks)]


@dataclass(frozen=True)
class EncoderLayers:
    """The convolutions of E in integers.

    Attributes:
        convolutions: by name. The multipliers of `head` and `local_gain` give their outputs in floats.
        ratios: float32 [channels], what each modulator's scales are multiplied with.
        input_scale, input_zero: float32 [3 s^2], bytes of the first layer's input per unit of a coefficient, and what
            is added to them.
    """

    convolutions: dict[str, ExactConv]
    ratios: tuple[npt.NDArray[np.float32], ...]
    input_scale: npt.NDArray[np.float32]
    input_zero: npt.NDArray[np.float32]


@torch.no_grad()
def encoder_from_float(encoder: BlockEncoder, ranges: Ranges) -> EncoderLayers:
    """The integer form of a trained E's convolutions.

    Args:
        encoder: on the CPU. ranges: of its `encoder_inputs`.
    """
    inputs = _inputs(ranges, encoder_inputs(encoder))
    units, ratios = _trunk_units(inputs, len(encoder.blocks))
    units["head"] = np.ones(encoder.c)
    if encoder.local_gain is not None:
        inputs["local_gain"], units["local_gain"] = inputs["head"], units["head"]
    convolutions = {
        name: _convolution(encoder.get_submodule(name), inputs[name], unit, split=False)  # type: ignore[arg-type]
        for name, unit in units.items()
    }
    first, whitening = inputs["first"], encoder.whitening[0, :, 0, 0].double().numpy()
    return EncoderLayers(
        convolutions, tuple(ratio.astype(np.float32) for ratio in ratios), (whitening / first.step).astype(np.float32),
        first.zero.astype(np.float32),
    )  # fmt: skip


def small_net(net: Gain | Modulator) -> SmallNet:
    """Its two layers in fixed point."""
    parts = (net.fc1.weight, net.fc1.bias, net.fc2.weight, net.fc2.bias)
    return SmallNet(*(to_fixed(part.detach().double().numpy()) for part in parts))


def _convolution(conv: nn.Conv2d, inputs: _Bytes, units: Float64, split: bool) -> ExactConv:
    weight = conv.weight.detach().double().numpy() * inputs.step[:, None, None]
    step = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-12) / WEIGHT_MOST
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
