"""The integers of a hyperprior model as tensors of a model file, and back, with the checks that any file needs.

Per level i, under "probability.levels.i.": z_counts and y_counts (uint16 [C, 256], the tables' frequencies), offset
(int16), shift (uint8), the layers (weight int8, bias int32, multiplier float32 of "hyper.0" ...), and under "float."
what stays float: h_a in float16, the bottleneck and the ranges in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.architectures import ARCHITECTURES, LATENT_MAX
from l2c.entropy.hyperprior.config import HyperpriorConfig
from l2c.entropy.hyperprior.float_model import Level
from l2c.entropy.hyperprior.integer_weights import (
    HyperLayer,
    HyperpriorWeights,
    IntegerLevel,
    fraction_of,
    hyper_plan,
)
from l2c.entropy.hyperprior.quantise import empty_floats, float_tensors
from l2c.errors import ModelMismatchError
from l2c.ops.contract import MOST_SHIFT, SIDE_PRECISION, WIDE_SUM_LIMIT, IntegerLayer


def to_tensors(weights: HyperpriorWeights, floats: list[Level]) -> dict[str, Tensor]:
    """Everything that the model is, for safetensors."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    tensors: dict[str, Tensor] = {}
    for i, (level, kept) in enumerate(zip(weights.levels, floats)):
        where = f"probability.levels.{i}."
        if level.kind == "factorized":
            arrays[where + "y_counts"] = _counts(level.y_cdf)
            arrays[where + "offset"] = level.offset
        else:
            arrays[where + "z_counts"] = _counts(level.z_cdf)
        if level.kind == "context":
            arrays[where + "shift"] = level.shift
        for name, layer in level.layers():
            for part in ("weight", "bias", "multiplier"):
                arrays[f"{where}{name}.{part}"] = getattr(layer, part)
        for name, tensor in float_tensors(kept).items():
            tensors[f"{where}float.{name}"] = tensor.detach().to(_stored(name))
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()} | tensors


def from_tensors(
    tensors: Mapping[str, Tensor], config: HyperpriorConfig, c: int
) -> tuple[list[IntegerLevel], list[Level]]:
    """Levels, and what stays float of them, from `to_tensors`.

    Raises:
        ModelMismatchError: something is missing, of another shape or type, or of a value that cannot be.
    """
    readers = [_Reader(tensors, config, c, i) for i in range(len(config.qualities))]
    try:
        return [reader.level() for reader in readers], [reader.floats() for reader in readers]
    except KeyError as error:
        raise ModelMismatchError(f"the weights lack {error}") from None


def _counts(cdf: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    return np.diff(cdf, axis=1).astype(np.uint16)


def _stored(name: str) -> torch.dtype:
    """How a float tensor is stored."""
    return torch.float16 if name.startswith("h_a.") else torch.float32


class _Reader:
    """Reads one level."""

    def __init__(self, tensors: Mapping[str, Tensor], config: HyperpriorConfig, c: int, index: int) -> None:
        self.tensors, self.config, self.c = tensors, config, c
        self.where = f"probability.levels.{index}."

    def level(self) -> IntegerLevel:
        facts, c, n = ARCHITECTURES[self.config.architecture], self.c, self.config.n
        none, no_shift = np.zeros((0, 257), dtype=np.uint32), np.zeros(c, dtype=np.uint8)
        if facts.kind == "factorized":
            offset = self._array("offset", np.int16, (c,))
            self._require(bool((np.abs(offset.astype(np.int64)) <= LATENT_MAX).all()), "offset is beyond the latents")
            return IntegerLevel("factorized", none, (), None, no_shift, (), offset, self._table("y_counts", c))
        fraction = fraction_of(self.config)
        z_cdf, hyper, inputs = self._table("z_counts", n), [], 2 * n
        for i, (outputs, shuffle) in enumerate(hyper_plan(facts, n, c)):
            layer = self._layer(f"hyper.{i}", outputs * (4 if shuffle else 1), inputs, 3)
            hyper.append(HyperLayer(layer, shuffle))
            inputs = outputs
        no_offset = np.zeros(c, dtype=np.int16)
        if facts.kind != "context":
            return IntegerLevel(facts.kind, z_cdf, tuple(hyper), None, no_shift, (), no_offset, none, fraction)
        shift = self._array("shift", np.uint8, (c,))
        self._require(bool((shift <= MOST_SHIFT).all()), f"shift is above {MOST_SHIFT}")
        context = self._layer("context", 2 * c, 12 * c, 1)
        sizes = (4 * c, 10 * c // 3, 8 * c // 3, 2 * c)
        parameters = tuple(self._layer(f"parameters.{i}", sizes[i + 1], sizes[i], 1) for i in range(3))
        return IntegerLevel("context", z_cdf, tuple(hyper), context, shift, parameters, no_offset, none, fraction)

    def floats(self) -> Level:
        level = empty_floats(self.config, self.c)
        found = {}
        for name, expected in float_tensors(level).items():
            tensor = self.tensors[f"{self.where}float.{name}"]
            if tensor.dtype != _stored(name) or tensor.shape != expected.shape:
                self._refuse(
                    f"float.{name} is {tensor.dtype} {list(tensor.shape)}, expected {_stored(name)} "
                    f"{list(expected.shape)}"
                )
            self._require(bool(tensor.isfinite().all()), f"float.{name} is not finite")
            found[name] = tensor.detach().float()
        level.to_empty(device="cpu")
        own = float_tensors(level)
        with torch.no_grad():
            for name, tensor in found.items():
                own[name].copy_(tensor)
        return level

    def _array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        found: npt.NDArray[Any] = self.tensors[self.where + name].numpy()
        if found.dtype != dtype or found.shape != shape:
            self._refuse(f"{name} is {found.dtype} {list(found.shape)}, expected {np.dtype(dtype)} {list(shape)}")
        return found

    def _table(self, name: str, channels: int) -> npt.NDArray[np.uint32]:
        """uint32 [channels, 257]."""
        counts = self._array(name, np.uint16, (channels, 256)).astype(np.int64)
        cdf = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))
        good = counts.min() >= 1 and (cdf[:, -1] == 1 << SIDE_PRECISION).all()
        self._require(bool(good), f"{name} are no frequencies out of 2^{SIDE_PRECISION}")
        return cdf.astype(np.uint32)

    def _layer(self, name: str, outputs: int, inputs: int, kernel: int) -> IntegerLayer:
        weight = self._array(f"{name}.weight", np.int8, (outputs, inputs, kernel, kernel))
        bias = self._array(f"{name}.bias", np.int32, (outputs,))
        multiplier = self._array(f"{name}.multiplier", np.float32, (outputs,))
        size = np.abs(weight.astype(np.int16)).sum(axis=(1, 2, 3), dtype=np.int64)
        reach = 255 * size + np.abs(bias.astype(np.int64))
        self._require(bool(reach.max() < WIDE_SUM_LIMIT), f"the sums of {name} can exceed 2^31")
        self._require(bool(np.isfinite(multiplier).all()), f"{name}.multiplier is not finite")
        return IntegerLayer(weight, bias, multiplier)

    def _require(self, good: bool, fault: str) -> None:
        if not good:
            self._refuse(fault)

    def _refuse(self, fault: str) -> None:
        raise ModelMismatchError(self.where + fault)
