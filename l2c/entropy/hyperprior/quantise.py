"""Between the two forms of P: float weights -> integers (at export), and back (for gradients, and to go on training).

A layer sees inputs that are `x_unit` times an integer and gives integers that stand for `unit` each, both by channel;
hidden activations have lost what a LeakyReLU leaves of negative values, whose mean goes into the next layer's bias:

    x ~ x_unit q + slope mean(min(x, 0))
    sum w x + b ~ step (sum W q + B),   step = max|w x_unit| / 127 by output,   W = round(w x_unit / step)
    output integer = round(multiplier (sum W q + B)),   multiplier = step / unit

Units come from what calibration saw (`float_model.Range`), and that is kept beside the integers with all that stays
float: h_a, and the bottleneck, whose tables alone would not tell its form.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2c.architectures import ARCHITECTURES, LATENT_MAX
from l2c.entropy.hyperprior.config import HyperpriorConfig
from l2c.entropy.hyperprior.float_model import SLOPE, HyperpriorModel, Level, MaskedConv, Range
from l2c.entropy.hyperprior.integer_weights import HyperLayer, HyperpriorWeights, IntegerLevel, fraction_of
from l2c.ops.contract import (
    CONTEXT_TAPS,
    HEAD_MEAN_UNIT,
    MOST_SHIFT,
    SCALE_UNIT,
    SIDE_PRECISION,
    SIGNED_ZERO,
    WIDE_SUM_LIMIT,
    IntegerLayer,
)

_SAMPLE_SIDE = 24  # latents a side that a level without calibration samples from itself
_SAMPLE_ROUNDS = 4
_LEAST_SHARE = 1.0 / 16.0  # of a layer's reach that a channel's unit can express at least
_TINY = 1e-9


def from_float(model: HyperpriorModel) -> tuple[list[IntegerLevel], list[Level]]:
    """The integers of each level, and what stays float of it, on the CPU.

    A level that was not calibrated is calibrated on latents that are sampled from itself.
    """
    integers, floats = [], []
    with torch.no_grad(), torch.device("cpu"):
        for found in model.levels:
            assert isinstance(found, Level)
            level = copy.deepcopy(found).cpu().float().eval()
            if level.kind != "factorized" and not level.is_calibrated:
                level.calibrate([sample(level)])
            integers.append(_integers(level, fraction_of(model.config)))
            floats.append(strip(level))
    return integers, floats


def to_float(weights: HyperpriorWeights, floats: list[Level]) -> HyperpriorModel:
    """The float P, calibrated as before; up to the rounding of biases `from_float` gives the same integers back."""
    with torch.no_grad(), torch.device("cpu"):
        model = HyperpriorModel(weights.config, weights.c)
        for index, (integers, kept) in enumerate(zip(weights.levels, floats)):
            level = model.level(index)
            own = {**dict(level.named_parameters()), **dict(level.named_buffers())}
            for name, value in float_tensors(kept).items():
                own[name].copy_(value)
            _fill(level, integers)
    return model


# --- what stays float -------------------------------------------------------------------------------------------------


def strip(level: Level) -> Level:
    """The level without the networks that become integers; h_a is rounded to what a model file keeps of it."""
    if level.h_a is not None:
        level.h_a.half().float()  # in place
        if not all(bool(p.isfinite().all()) for p in level.h_a.parameters()):
            raise ValueError("a weight of h_a is beyond float16")
    return _without_networks(level)


def empty_floats(config: HyperpriorConfig, c: int) -> Level:
    """A level of a model as `strip` leaves one, with tensors on the meta device: names and shapes."""
    facts = ARCHITECTURES[config.architecture]
    with torch.device("meta"):
        level = Level(facts.kind, facts.residual, config.n, c)
    return _without_networks(level)


def _without_networks(level: Level) -> Level:
    level.h_s = level.context_prediction = level.entropy_parameters = None
    if level.kind == "factorized":
        level.ranges = nn.ModuleDict()  # its tables need none
    return level.requires_grad_(False).eval()


def float_tensors(level: Level) -> dict[str, Tensor]:
    """All tensors of a stripped level by name, those of `ranges` among them."""
    return {**dict(level.named_parameters()), **dict(level.named_buffers())}


# --- units ------------------------------------------------------------------------------------------------------------


def _range(level: Level, name: str) -> Range:
    found = level.ranges[name]
    assert isinstance(found, Range)
    return found


def _unit(found: Range, most: float) -> Tensor:
    """What one step of each channel stands for, float64 [C], where integers reach `most`."""
    channels = torch.maximum(found.channel_reach[:, 0].double(), _LEAST_SHARE * found.reach[0].double())
    return channels.clamp_min(_TINY) / most


def _head_unit(level: Level) -> Tensor:
    """Of a head: float64 [M or 2M]."""
    unit = torch.full((level.m,), SCALE_UNIT, dtype=torch.float64)
    return unit if level.kind == "scale" else torch.cat((unit, torch.full_like(unit, HEAD_MEAN_UNIT)))


def _shifts(level: Level, fraction: int) -> Tensor:
    """How far the taps' inputs of each channel are shifted, int64 [M], so that most of them lie in +-127."""
    reach = _range(level, "y").channel_reach[:, 0].double() * (1 << fraction)
    return (reach / 127.0).clamp_min(1.0).log2().ceil().long().clamp_max(MOST_SHIFT)


class _Layer:
    """A float layer as a 3x3 or 1x1 convolution, and what it reads and gives.

    Attributes:
        module: nn.Conv2d, nn.ConvTranspose2d, or nn.Sequential of one and a shuffle.
        shuffle: whether 4 C outputs become C at twice the side.
        doubled: whether its inputs come twice, max(x, 0) and max(-x, 0).
        x_unit: float64 [I], unit: float64 [O], of its integers. x_lost: float64 [I], what its inputs lack on average.
        offset: what its integers hold more.
    """

    def __init__(
        self, module: nn.Module, doubled: bool, x_unit: Tensor, x_lost: Tensor, unit: Tensor, offset: int
    ) -> None:
        inner = module[0] if isinstance(module, nn.Sequential) else module
        assert isinstance(inner, nn.Conv2d | nn.ConvTranspose2d)
        self.inner = inner
        self.shuffle = isinstance(module, nn.Sequential) or isinstance(inner, nn.ConvTranspose2d)
        self.doubled, self.x_unit, self.x_lost, self.offset = doubled, x_unit, x_lost, offset
        self.unit = unit.repeat_interleave(4) if self.shuffle else unit

    def quantise(self) -> IntegerLayer:
        """The integers."""
        scaled = self._weight() * self.x_unit[:, None, None]
        lost, bias = self.x_lost / self.x_unit, self._bias() + self.offset * self.unit
        size = scaled.abs().sum(dim=(1, 2, 3))
        step = scaled.abs().amax(dim=(1, 2, 3)) / 127.0
        step = torch.maximum(step, (255.0 * size + bias.abs() + size * lost.abs().max()) / (0.99 * WIDE_SUM_LIMIT))
        step = torch.where(step < _TINY * self.unit, self.unit, step)  # rows of zeros
        weight = (scaled / step[:, None, None, None]).round()
        bias = bias / step + weight.sum(dim=(2, 3)) @ lost
        return IntegerLayer(
            weight.to(torch.int8).numpy(), bias.round().to(torch.int32).numpy(), (step / self.unit).float().numpy()
        )

    def fill(self, layer: IntegerLayer) -> None:
        """The other way: write the module's weights."""
        step = torch.from_numpy(layer.multiplier).double() * self.unit
        weight = torch.from_numpy(layer.weight).double() * step[:, None, None, None] / self.x_unit[:, None, None]
        bias = torch.from_numpy(layer.bias).double() * step - self.offset * self.unit
        bias = bias - weight.sum(dim=(2, 3)) @ self.x_lost
        if self.doubled:
            weight = weight[:, : weight.shape[1] // 2]
        inner = self.inner
        assert inner.bias is not None
        if isinstance(inner, MaskedConv):
            taps = weight.view(inner.out_channels, len(CONTEXT_TAPS), inner.in_channels)
            inner.weight.zero_()
            for i, (dy, dx) in enumerate(CONTEXT_TAPS):
                inner.weight[:, :, dy + 2, dx + 2] = taps[:, i]
        elif isinstance(inner, nn.ConvTranspose2d):
            inner.weight.copy_(to_transposed(weight))
            bias = bias.view(-1, 4).mean(dim=1)
        else:
            inner.weight.copy_(weight)
        inner.bias.copy_(bias)

    def _weight(self) -> Tensor:
        """float64 [O, I, k, k]."""
        inner = self.inner
        if isinstance(inner, MaskedConv):
            taps = [inner.weight[:, :, dy + 2, dx + 2] for dy, dx in CONTEXT_TAPS]
            return torch.cat(taps, dim=1)[:, :, None, None].double()
        weight = inner.weight.double()
        if isinstance(inner, nn.ConvTranspose2d):
            weight = from_transposed(weight)
        return torch.cat((weight, -weight), dim=1) if self.doubled else weight

    def _bias(self) -> Tensor:
        """float64 [O]."""
        assert self.inner.bias is not None
        bias = self.inner.bias.double()
        return bias.repeat_interleave(4) if isinstance(self.inner, nn.ConvTranspose2d) else bias


def _layers(level: Level, fraction: int) -> Iterator[tuple[str, _Layer]]:
    """Every layer of a level with the name that `IntegerLevel.layers` gives it, from its modules and ranges."""
    assert level.h_s is not None
    named = [(key, module) for key, module in level.h_s.named_children() if _has_weights(module)]
    x_unit, x_lost = torch.ones(2 * level.n, dtype=torch.float64), torch.zeros(2 * level.n, dtype=torch.float64)
    for i, (key, module) in enumerate(named):
        found = _range(level, f"h_s_{key}")
        offset = 0
        if i < len(named) - 1:
            unit = _unit(found, 255.0)
        elif level.kind == "context":
            unit, offset = _unit(found, 127.0), SIGNED_ZERO
        else:
            unit = _head_unit(level)
        yield f"hyper.{i}", _Layer(module, i == 0, x_unit, x_lost, unit, offset)
        x_unit, x_lost = unit, SLOPE * found.negative_mean.double()
    if level.context_prediction is None or level.entropy_parameters is None:
        return
    taps = torch.exp2(_shifts(level, fraction).double() - fraction).repeat(len(CONTEXT_TAPS))
    context_unit = _unit(_range(level, "context_prediction"), 127.0)
    yield "context", _Layer(level.context_prediction, False, taps, 0.0 * taps, context_unit, SIGNED_ZERO)
    x_unit = torch.cat((x_unit, context_unit))
    x_lost = 0.0 * x_unit
    named = [(key, module) for key, module in level.entropy_parameters.named_children() if _has_weights(module)]
    for i, (key, module) in enumerate(named):
        found = _range(level, f"entropy_parameters_{key}")
        unit = _unit(found, 255.0) if i < len(named) - 1 else _head_unit(level)
        yield f"parameters.{i}", _Layer(module, False, x_unit, x_lost, unit, 0)
        x_unit, x_lost = unit, SLOPE * found.negative_mean.double()


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _integers(level: Level, fraction: int) -> IntegerLevel:
    none = np.zeros((0, 257), dtype=np.uint32)
    if level.kind == "factorized":
        offset, table = _latent_tables(level)
        return IntegerLevel("factorized", none, (), None, np.zeros(level.m, dtype=np.uint8), (), offset, table)
    edges = torch.arange(-127, 128, dtype=torch.float64) - 0.5
    z_cdf = _table(level.entropy_bottleneck.cdf(edges))
    made = {name: (layer.quantise(), layer.shuffle) for name, layer in _layers(level, fraction)}
    hyper = tuple(HyperLayer(*made[f"hyper.{i}"]) for i in range(sum(name.startswith("hyper") for name in made)))
    no_offset = np.zeros(level.m, dtype=np.int16)
    if level.kind != "context":
        shift = np.zeros(level.m, dtype=np.uint8)
        return IntegerLevel(level.kind, z_cdf, hyper, None, shift, (), no_offset, none, fraction)
    shift = _shifts(level, fraction).to(torch.uint8).numpy()
    parameters = tuple(made[f"parameters.{i}"][0] for i in range(3))
    return IntegerLevel("context", z_cdf, hyper, made["context"][0], shift, parameters, no_offset, none, fraction)


def _fill(level: Level, integers: IntegerLevel) -> None:
    """Write the weights of a level whose floats are those of the integers."""
    if level.kind != "factorized":
        layers = dict(integers.layers())
        for name, layer in _layers(level, integers.fraction):
            layer.fill(layers[name])


# --- transposed convolutions ------------------------------------------------------------------------------------------
# Output (2 m + dy, 2 n + dx) of a transposed 5x5 convolution with stride 2 and padding 2 sees the inputs m + t, t = -1,
# 0, 1, by tap dy - 2 t + 2 where there is one: a 3x3 convolution to 4 C outputs, 4 c + 2 dy + dx, and a pixel shuffle.

_TAPS = [(d, t + 1, d - 2 * t + 2) for d in (0, 1) for t in (-1, 0, 1) if d - 2 * t + 2 < 5]  # phase, of 3, of 5


def from_transposed(weight: Tensor) -> Tensor:
    """[I, C, 5, 5] of nn.ConvTranspose2d -> [4 C, I, 3, 3]."""
    inputs, channels = weight.shape[:2]
    result = weight.new_zeros(channels, 2, 2, inputs, 3, 3)
    for dy, row, tap_y in _TAPS:
        for dx, column, tap_x in _TAPS:
            result[:, dy, dx, :, row, column] = weight[:, :, tap_y, tap_x].T
    return result.view(4 * channels, inputs, 3, 3)


def to_transposed(weight: Tensor) -> Tensor:
    """The other way, [4 C, I, 3, 3] -> [I, C, 5, 5]."""
    channels, inputs = weight.shape[0] // 4, weight.shape[1]
    phases = weight.view(channels, 2, 2, inputs, 3, 3)
    result = weight.new_zeros(inputs, channels, 5, 5)
    for dy, row, tap_y in _TAPS:
        for dx, column, tap_x in _TAPS:
            result[:, :, tap_y, tap_x] = phases[:, dy, dx, :, row, column].T
    return result


# --- tables -----------------------------------------------------------------------------------------------------------


def _table(cdf: Tensor) -> npt.NDArray[np.uint32]:
    """Shares below the 255 inner edges, float64 [C, 255] -> uint32 [C, 257], every symbol at least 1 of 2^16."""
    full = F.pad(F.pad(cdf.clamp(0.0, 1.0), (1, 0), value=0.0), (0, 1), value=1.0)
    mass = full.diff(dim=1).clamp_min(0.0)
    total = 1 << SIDE_PRECISION
    counts = (mass * (total - 256)).floor().long() + 1
    counts[torch.arange(len(counts)), counts.argmax(dim=1)] += total - counts.sum(dim=1)
    return F.pad(counts.cumsum(dim=1), (1, 0)).numpy().astype(np.uint32)


def _latent_tables(level: Level) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint32]]:
    """Offsets int16 [M], the medians, and tables of the latents around them, of kind "factorized"."""
    edges = torch.arange(-LATENT_MAX, LATENT_MAX + 1, dtype=torch.float64) + 0.5
    share = level.entropy_bottleneck.cdf(edges)  # of latents up to -LATENT_MAX, ...
    offset = (share < 0.5).sum(dim=1).clamp_max(2 * LATENT_MAX) - LATENT_MAX
    inner = offset[:, None] + torch.arange(-127, 128)  # the edge below each symbol but the first
    at = inner - 1 + LATENT_MAX
    found = share.gather(1, at.clamp(0, 2 * LATENT_MAX))
    found = torch.where(at < 0, 0.0, torch.where(at > 2 * LATENT_MAX, 1.0, found))
    return offset.numpy().astype(np.int16), _table(found)


# --- calibration without pictures -------------------------------------------------------------------------------------


def sample(level: Level) -> Tensor:
    """Latents float32 [1, M, h, w] about as the level itself says, the same in every run."""
    side = _SAMPLE_SIDE
    generator = torch.Generator("cpu").manual_seed(0)
    edges = torch.arange(-128, 128, dtype=torch.float64) + 0.5
    below = level.entropy_bottleneck.cdf(edges).contiguous()
    places = (side // 4) ** 2
    z = torch.searchsorted(below, torch.rand(len(below), places, generator=generator, dtype=torch.float64)) - 128
    features = level.hyper(z.clamp(-128, 127).float().view(1, -1, side // 4, side // 4), side, side)
    noise = torch.randn(1, level.m, side, side, generator=generator)
    y = torch.zeros_like(noise)
    for _ in range(_SAMPLE_ROUNDS if level.kind == "context" else 1):  # the last latents settle last
        scales, means = level.parameters_of(features, level.context(y) if level.kind == "context" else None)
        y = (means + scales.clamp_min(0.0) * noise).round().clamp(-LATENT_MAX, LATENT_MAX)
    return y
