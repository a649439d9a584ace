"""D of the block family in integers, as a model file holds it; the whole contract is in `l2c.exact`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.exact.fixed import BITS, FunctionTables, SmallNet
from l2c.transforms import BlockConfig
from l2c.transforms.block import KNEE

COEFFICIENT_BITS = 3  # of a coefficient of the block transform behind the point: int16
TRANSFORM_BITS = 19  # of an entry of the inverse transform: hi * 2^LOW_BITS + lo
LOW_BITS = 9
TRANSFORM_MOST = 127 << 16  # of an entry's magnitude: three signed bytes hold it
PIXEL_BITS = TRANSFORM_BITS + COEFFICIENT_BITS - LOW_BITS  # of a pixel before the last rounding, in levels
DETAIL_BITS = 6  # of the fine stage's part of it: int16
REST_BITS = 3  # where an input has two bytes, the second has units so much finer than the first
REST_ZERO = 128
STREAM_BITS = 6  # a unit of a residual stream, int16, is so much finer than a unit of the activations made of it
LOCAL_BITS = 13  # of the argument of the local gains' tanh: int16, -4..4
LEVEL_BITS = 8  # of a companded level behind the point
FACTOR_STEP_BITS = 7  # values of that argument between two entries of a table of factors
FACTOR_ENTRIES = (1 << (16 - FACTOR_STEP_BITS)) + 1
FACTOR_MOST = 1 << 23  # entries stay below it
CLAMP = float(1 << 21)  # products are clamped to +- this before they become integers; streams are +-2^15
SUM_LIMIT = 1 << 31  # 255 sum|w| + |bias| stays below it in every output channel, changed biases counted
MOST_CONDITION = 8 << BITS  # of a condition's magnitude: far beyond what a header and moved conditions can say

SPLIT = ("first", "last")  # layers whose inputs have two bytes: there 8 bits cost most
_T = TypeVar("_T", bound=np.generic)
EXACT_PREFIX = "exact."  # of its tensors in a model file


@dataclass(frozen=True)
class ExactConv:
    """A convolution of D: sums of int8 weights times uint8 inputs, and what their units are.

    Attributes:
        weight: int8 [O, I, k, k].
        bias: int32 [O], in units of the sums; the inputs' zero points are in it.
        multiplier: float32 [O], units of the output per unit of a sum.
        bias_unit: float32 [O], units of a sum per unit of a float bias, for sets of biases.
        zero: uint8 [I], the bytes that stand for 0 in the input, also beyond the picture's border.
    """

    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    multiplier: npt.NDArray[np.float32]
    bias_unit: npt.NDArray[np.float32]
    zero: npt.NDArray[np.uint8]

    @functools.cached_property
    def most(self) -> npt.NDArray[np.int64]:
        """What no sum passes in magnitude, biases left out: 255 sum|w|, int64 [O]."""
        return 255 * np.abs(self.weight.astype(np.int16)).sum(axis=(1, 2, 3), dtype=np.int64)


@dataclass(frozen=True)
class ExactWeights:
    """Everything that an integer D is made of.

    Attributes:
        config: the family's sizes.
        tables: see there.
        quality_base, quality_step: condition 0 at quality 0 and its rise per step of 1/1000, Q40.
        gain: log gains per channel, less what follows from lambda alone.
        modulators: log-softplus arguments of each modulator.
        ratios: float32 [channels] of each: what its scales are multiplied with, the change of units.
        convolutions: by name, in the order in which they run.
        input_scale: float32 [c], first bytes of the first layer's input per unit of a coefficient.
        limit, bound, is_mean: of the companding: int64 [c] log of the largest gain, Q20; float32 [c]; bool [c].
        transform: int32 [3 s^2, 3 s^2], the inverse block transform, rows are pixels, Q19.
    """

    config: BlockConfig
    tables: FunctionTables
    quality_base: int
    quality_step: int
    gain: SmallNet
    modulators: tuple[SmallNet, ...]
    ratios: tuple[npt.NDArray[np.float32], ...]
    convolutions: dict[str, ExactConv]
    input_scale: npt.NDArray[np.float32]
    limit: npt.NDArray[np.int64]
    bound: npt.NDArray[np.float32]
    is_mean: npt.NDArray[np.bool_]
    transform: npt.NDArray[np.int32]

    @functools.cached_property
    def level_table(self) -> npt.NDArray[np.int32]:
        """Latents -128..127 without companding, Q8: int32 [c, 256]."""
        levels = np.arange(-128, 128, dtype=np.int64)
        plain = levels << LEVEL_BITS
        if not self.config.companding:
            return np.repeat(plain[None].astype(np.int32), self.config.c, axis=0)
        power = self.tables.exp(((np.abs(levels) - KNEE) << BITS) // KNEE)
        curved = (np.sign(levels) * np.rint(power * float(KNEE << LEVEL_BITS))).astype(np.int64)
        whole = self.is_mean[:, None] | (np.abs(levels) <= KNEE)
        return np.where(whole, plain, curved).astype(np.int32)

    def to_tensors(self) -> dict[str, Tensor]:
        """As a model file stores them."""
        found: dict[str, npt.NDArray[np.generic]] = {
            "tables.exp2": self.tables.exp2,
            "tables.tail": self.tables.tail,
            "quality": np.array([self.quality_base, self.quality_step], np.int64),
            "input_scale": self.input_scale,
            "limit": self.limit,
            "bound": self.bound,
            "is_mean": self.is_mean,
            "transform": self.transform,
        }
        for name, net in self._nets():
            found |= {f"{name}.{part.name}": getattr(net, part.name).astype(np.int32) for part in fields(SmallNet)}
        found |= {f"modulators.{i}.ratio": ratio for i, ratio in enumerate(self.ratios)}
        for name, layer in self.convolutions.items():
            found |= {f"{name}.{part.name}": getattr(layer, part.name) for part in fields(ExactConv)}
        return {EXACT_PREFIX + name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], config: BlockConfig) -> ExactWeights | None:
        """Read `to_tensors`; None where a model file holds no integer D.

        Raises:
            ConfigError: what it holds does not fit the networks, or its sums could pass what int32 holds.
        """
        if EXACT_PREFIX + "quality" not in tensors:
            return None

        def take(name: str, dtype: type[_T], *shape: int) -> npt.NDArray[_T]:
            value = tensors.get(EXACT_PREFIX + name)
            if value is None or tuple(value.shape) != shape or value.numpy().dtype != dtype:
                raise ConfigError(f"the integer D has no {name} of {np.dtype(dtype).name} {list(shape)}")
            array: npt.NDArray[_T] = value.numpy()
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ConfigError(f"the integer D's {name} is not finite")
            return array

        def net(name: str, outputs: int) -> SmallNet:
            hidden = config.modulator_width
            shapes = ((hidden, 2), (hidden,), (outputs, hidden), (outputs,))
            parts = [take(f"{name}.{p.name}", np.int32, *shape) for p, shape in zip(fields(SmallNet), shapes)]
            return SmallNet(*(part.astype(np.int64) for part in parts))

        convolutions = {}
        for name, (outputs, inputs, kernel) in layer_shapes(config).items():
            convolutions[name] = ExactConv(
                take(f"{name}.weight", np.int8, outputs, inputs, kernel, kernel),
                take(f"{name}.bias", np.int32, outputs),
                take(f"{name}.multiplier", np.float32, outputs),
                take(f"{name}.bias_unit", np.float32, outputs),
                take(f"{name}.zero", np.uint8, inputs),
            )
        widths, dims = modulator_widths(config), 3 * config.s**2
        base, step = (int(value) for value in take("quality", np.int64, 2))
        result = cls(
            config,
            FunctionTables(take("tables.exp2", np.int64, 1025), take("tables.tail", np.int64, 1025)),
            base,
            step,
            net("gain", config.c),
            tuple(net(f"modulators.{i}", width) for i, width in enumerate(widths)),
            tuple(take(f"modulators.{i}.ratio", np.float32, w) for i, w in enumerate(widths)),
            convolutions,
            take("input_scale", np.float32, config.c),
            take("limit", np.int64, config.c),
            take("bound", np.float32, config.c),
            take("is_mean", np.bool_, config.c),
            take("transform", np.int32, dims, dims),
        )
        result.check()
        return result

    def check(self) -> None:
        """That no sum can wrap, whatever the latents are. Raises ConfigError naming the part."""
        for name, layer in self.convolutions.items():
            if (layer.most + np.abs(layer.bias.astype(np.int64)) >= SUM_LIMIT).any():
                raise ConfigError(f"the integer D's {name} has sums beyond int32")
        for name in ("local_gain", "up"):  # which share the head's input
            if name in self.convolutions and (self.convolutions[name].zero != self.convolutions["head"].zero).any():
                raise ConfigError(f"the integer D's {name} has other zero points than its head")
        for name, net in self._nets():
            if not net.is_safe(MOST_CONDITION):
                raise ConfigError(f"the integer D's {name} has sums beyond int64")
        if (np.abs(self.transform.astype(np.int64)) >= TRANSFORM_MOST).any():
            raise ConfigError("the integer D's transform has sums beyond int32")
        for part in split_transform(self.transform):
            # What low parts, details and the rounding add to the high parts' sum stays below 2^24.
            if ((np.abs(part.astype(np.int64)).sum(axis=1) << 15) + (1 << 24) >= SUM_LIMIT).any():
                raise ConfigError("the integer D's transform has sums beyond int32")
        tables = self.tables
        if (
            (tables.exp2 < 1 << 30).any()
            or (tables.exp2 > 1 << 31).any()
            or (tables.tail < 0).any()
            or (tables.tail > 1 << 24).any()
        ):
            raise ConfigError("the integer D's tables are not those of exponentials")
        if abs(self.quality_base) + 1000 * abs(self.quality_step) >= MOST_CONDITION << BITS:
            raise ConfigError("the integer D's trade-offs are beyond their range")
        if (self.bound[self.is_mean] <= 0).any() or (np.abs(self.limit) >= 1 << 26).any():
            raise ConfigError("the integer D's companding has impossible bounds")

    def _nets(self) -> Iterator[tuple[str, SmallNet]]:
        yield "gain", self.gain
        for i, modulator in enumerate(self.modulators):
            yield f"modulators.{i}", modulator


def layer_shapes(config: BlockConfig) -> dict[str, tuple[int, int, int]]:
    """(outputs, inputs, kernel) of D's convolutions by name, in the order in which they run.

    The inputs of `SPLIT` come in two bytes: all first bytes, then all second ones.
    """
    width, fine, dims = config.width, config.fine_width, 3 * config.s**2
    shapes = {"first": (width, 2 * config.c, 3)}
    for i in range(config.decoder_blocks):
        shapes |= {f"blocks.{i}.conv1": (width, width, 3), f"blocks.{i}.conv2": (width, width, 3)}
    shapes["head"] = (dims, width, 1)
    if config.local_gain:
        shapes["local_gain"] = (config.c, width, 1)
    if fine:
        shapes["up"] = (4 * fine, width, 3)
        shapes |= {"fine_block.conv1": (fine, fine, 3), "fine_block.conv2": (fine, fine, 3)}
        shapes["last"] = (3 * (config.s // 2) ** 2, 2 * fine, 3)
    return shapes


def modulator_widths(config: BlockConfig) -> list[int]:
    """Channels of D's modulators in the order in which they run."""
    return [config.width] * config.decoder_blocks + ([config.fine_width] if config.fine_width else [])


def split_transform(transform: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """hi and lo, int16, with transform = hi * 2^LOW_BITS + lo and |lo| <= 2^(LOW_BITS - 1)."""
    high = (transform + (1 << (LOW_BITS - 1))) >> LOW_BITS
    return high.astype(np.int16), (transform - (high << LOW_BITS)).astype(np.int16)
