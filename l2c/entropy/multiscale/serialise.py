"""P in integers as tensors of a model file, and back, with every check that a file from anywhere needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.entropy.multiscale.config import MultiscaleConfig
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.errors import ModelMismatchError
from l2c.ops.contract import (
    CODING_ORDER,
    INV_SCALE_MAX,
    SUM_LIMIT,
    IntegerLayer,
    IntegerStep,
    IntegerTables,
    num_planes,
)


def to_tensors(model: IntegerWeights) -> dict[str, Tensor]:
    """All integers of the model as tensors for safetensors."""
    tensors = {}
    for name, layer in model.layers():
        tensors[f"probability.{name}.weight"] = torch.from_numpy(layer.weight)
        tensors[f"probability.{name}.bias"] = torch.from_numpy(layer.bias)
        tensors[f"probability.{name}.multiplier"] = torch.from_numpy(layer.multiplier)
    tensors["probability.compand"] = torch.from_numpy(model.tables.compand)
    tensors["probability.exp"] = torch.from_numpy(model.tables.exp)
    tensors["probability.inv_scale"] = torch.from_numpy(model.tables.inv_scale)
    return tensors


def from_tensors(
    tensors: Mapping[str, Tensor], p: MultiscaleConfig, c: int
) -> tuple[list[IntegerStep], tuple[IntegerLayer, IntegerLayer] | None, IntegerTables]:
    """Steps, prior and tables from `to_tensors`. Raises ModelMismatchError: something is missing or does not fit."""
    planes = num_planes(p.num_scales)
    inputs = 4 * c + 4 * len(p.channel_groups) + planes

    def array(name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        found: npt.NDArray[Any] = tensors[f"probability.{name}"].numpy()
        if found.dtype != dtype or found.shape != shape:
            raise ModelMismatchError(
                f"probability.{name} is {found.dtype} {list(found.shape)}, expected {np.dtype(dtype)} {list(shape)}"
            )
        return found

    def layer(name: str, outputs: int, channels: int, kernel: int) -> IntegerLayer:
        weight = array(f"{name}.weight", np.int8, (outputs, channels, kernel, kernel))
        bias = array(f"{name}.bias", np.int32, (outputs,))
        multiplier = array(f"{name}.multiplier", np.float32, (outputs,))
        magnitude = np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)) * 255 + np.abs(bias.astype(np.int64))
        if magnitude.max() >= SUM_LIMIT:
            raise ModelMismatchError(f"the sums of probability.{name} can exceed 2^24")
        if not np.isfinite(multiplier).all():
            raise ModelMismatchError(f"probability.{name}.multiplier is not finite")
        return IntegerLayer(weight, bias, multiplier)

    try:
        steps = [
            IntegerStep(
                layer(f"steps.{i}.w1", p.width, inputs + p.width, 1),
                layer(f"steps.{i}.w2", p.width, p.width, 3),
                layer(f"steps.{i}.w3", p.width, p.width, 3),
                layer(f"steps.{i}.w4", 3 * p.num_mixtures * p.channel_groups[i % len(p.channel_groups)], p.width, 1),
            )
            for i in range(len(CODING_ORDER) * len(p.channel_groups))
        ]
        prior = None
        if p.prior == "learned":
            prior = layer("prior.w1", p.width, planes, 1), layer("prior.w2", 3 * p.num_mixtures * c, p.width, 1)
        tables = IntegerTables(
            array("compand", np.int8, (256,)), array("exp", np.uint16, (256,)), array("inv_scale", np.uint16, (256,))
        )
    except KeyError as error:
        raise ModelMismatchError(f"the weights lack {error}") from None
    if tables.exp[0] == 0 or tables.inv_scale.min() < 1 or tables.inv_scale.max() > INV_SCALE_MAX:
        raise ModelMismatchError("the tables of the probability model hold values that cannot be")
    return steps, prior, tables
