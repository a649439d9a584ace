"""Between the two forms of P: float weights -> integers (after training), and back (to go on training)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.entropy.multiscale.float_model import ProbabilityModel, weight_step
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.ops.contract import (
    ACTIVATION_SCALE,
    COMPAND,
    INPUT_SCALE,
    INV_SCALE_MAX,
    INV_SCALE_OCTAVE,
    LOG2_INV_SCALE_MOST,
    LOGIT_UNIT,
    MEAN_UNIT,
    SUM_LIMIT,
    IntegerLayer,
    IntegerStep,
    IntegerTables,
)


def make_tables() -> IntegerTables:
    """The tables of a new model. A loaded model uses the ones in its file, not these."""
    z = np.arange(-128, 128, dtype=np.float64)
    compand = np.round(COMPAND * z / np.sqrt(1.0 + np.abs(z))).astype(np.int8)
    exp = np.round(32768.0 * np.exp(-LOGIT_UNIT * np.arange(256))).astype(np.uint16)
    inv = np.round(INV_SCALE_MAX * np.exp2((np.arange(256) - 255) / INV_SCALE_OCTAVE)).clip(1, INV_SCALE_MAX)
    return IntegerTables(compand, exp, inv.astype(np.uint16))


def from_float(
    model: ProbabilityModel,
) -> tuple[list[IntegerStep], tuple[IntegerLayer, IntegerLayer] | None, IntegerTables]:
    """Steps, prior and tables of a trained P, see `IntegerModel.from_float`."""
    ratio = ACTIVATION_SCALE / INPUT_SCALE
    steps = []
    for step in model.steps:
        w1: Any = step.w1
        split = model.inputs
        first = torch.cat((w1.weight[:, :split] * ratio, w1.weight[:, split:]), dim=1)
        steps.append(
            IntegerStep(
                _layer(first, w1.bias),
                _layer(step.w2.weight, step.w2.bias),  # type: ignore[union-attr, arg-type]
                _layer(step.w3.weight, step.w3.bias),  # type: ignore[union-attr, arg-type]
                _layer(step.w4.weight, step.w4.bias, is_head=True),  # type: ignore[union-attr, arg-type]
            )
        )
    prior = None
    if model.prior is not None:
        first = model.prior.w1.weight * ratio
        prior = (
            _layer(first, model.prior.w1.bias),
            _layer(model.prior.w2.weight, model.prior.w2.bias, is_head=True),
        )
    return steps, prior, make_tables()


def to_float(model: IntegerWeights) -> ProbabilityModel:
    """The float P of an integer one, see `IntegerModel.to_float`."""
    ratio = ACTIVATION_SCALE / INPUT_SCALE
    with torch.no_grad(), torch.device("cpu"):  # where the integers are, whatever the default device is
        result = ProbabilityModel(model.config, model.c)
        for name, layer in model.layers():
            conv = result.get_submodule(name)
            assert isinstance(conv, torch.nn.Conv2d) and conv.bias is not None
            outputs = layer.weight.shape[0]
            is_head = name in ("prior.w2", *(f"steps.{i}.w4" for i in range(len(model.steps))))
            unit, shift = _units(outputs, is_head)
            multiplier = torch.from_numpy(layer.multiplier).double()
            step = multiplier * ACTIVATION_SCALE / unit
            weight = torch.from_numpy(layer.weight).double() * step[:, None, None, None]
            if name.endswith("w1"):  # the columns that see inputs on the coarser grid
                weight[:, : model.maps + model.planes if name.startswith("steps") else model.planes] /= ratio
            conv.weight.copy_(weight)
            conv.bias.copy_((torch.from_numpy(layer.bias).double() * multiplier - shift) / unit)
    return result


def _units(outputs: int, is_head: bool) -> tuple[Tensor, Tensor]:
    """(integers per real unit, integer offset) of a layer's outputs, float64 [outputs] each."""
    unit = torch.full((outputs,), ACTIVATION_SCALE, dtype=torch.float64, device="cpu")
    shift = torch.zeros(outputs, dtype=torch.float64, device="cpu")
    if is_head:
        units = (1.0 / LOGIT_UNIT, 1.0 / MEAN_UNIT, INV_SCALE_OCTAVE)
        unit = torch.tensor(units, dtype=torch.float64, device="cpu").repeat_interleave(outputs // 3)
        shift[-(outputs // 3) :] = 255.0 - INV_SCALE_OCTAVE * LOG2_INV_SCALE_MOST
    return unit, shift


def _layer(weight: Tensor, bias: Tensor | None, is_head: bool = False) -> IntegerLayer:
    """One layer. Hidden layers map sums to activations; heads map them to the int16 units of each parameter."""
    assert bias is not None
    w, offset = weight.detach().double(), bias.detach().double()
    unit, shift = _units(w.shape[0], is_head)
    step = weight_step(weight.detach()).double().view(-1)
    while True:
        integers = (w / step[:, None, None, None]).round()
        multiplier = step * unit / ACTIVATION_SCALE
        biases = ((offset * unit + shift) / multiplier).round()
        too_large = integers.abs().sum(dim=(1, 2, 3)) * 255.0 + biases.abs() >= SUM_LIMIT
        if not bool(too_large.any()):
            break
        step = torch.where(too_large, step * 1.1, step)
    return IntegerLayer(
        integers.to(torch.int8).numpy(), biases.to(torch.int32).numpy(), multiplier.to(torch.float32).numpy()
    )
