"""Integers carried by float64 in PyTorch's convolutions and matrix products, on any device.

Sums reach 2^31, which float64 holds exactly in whatever order; they become float32 before the one product that rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.entropy.base import Backend
from l2c.entropy.coder import Int16Array, Job, UInt8Array
from l2c.entropy.hyperprior.backends.walk import walk
from l2c.entropy.hyperprior.integer_weights import HyperpriorWeights, IntegerLevel
from l2c.ops.arithmetic import exact_products
from l2c.ops.contract import SIGNED_ZERO, IntegerLayer


class TorchBackend(Backend):
    """See the module."""

    name, spoken, cost = "torch", "PyTorch", 16
    asks = True
    instead, second = ("reference",), ("cpu", "reference")

    def __init__(self, weights: HyperpriorWeights) -> None:
        self.weights = weights
        self._engines: dict[tuple[int, torch.device], _Engine] = {}

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[Int16Array]:
        with exact_products(device):
            return [walk(self.weights.level_of(job.point), job, self._engine(job, device)) for job in jobs]

    def _engine(self, job: Job, device: torch.device) -> _Engine:
        """That of the job's level on a device, made once."""
        key = self.weights.index_of(job.point), device
        if key not in self._engines:
            self._engines[key] = _Engine(self.weights.levels[key[0]], device)
        return self._engines[key]


@dataclass(frozen=True)
class _Layer:
    """weight float64 [O, I, k, k], bias float64 and multiplier float32 [O, 1, 1]."""

    weight: Tensor
    bias: Tensor
    multiplier: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Integers [I, h, w] -> [O, h, w] before the clamp, both float64."""
        if self.weight.shape[2] == 1:
            total = (self.weight[:, :, 0, 0] @ x.flatten(1)).view(-1, *x.shape[1:])
        else:
            total = F.conv2d(x[None], self.weight, padding=1)[0]
        return ((total + self.bias).float() * self.multiplier).round().double()


class _Engine:
    """See `walk.Engine`."""

    def __init__(self, level: IntegerLevel, device: torch.device) -> None:
        self.kind, self.device = level.kind, device
        self.hyper_layers = [(self._layer(part.layer), part.shuffle) for part in level.hyper]
        self.context = None if level.context is None else self._layer(level.context)
        self.parameters = [self._layer(layer) for layer in level.parameters]

    def _layer(self, layer: IntegerLayer) -> _Layer:
        weight, bias, multiplier = (
            torch.from_numpy(part).to(self.device) for part in (layer.weight, layer.bias, layer.multiplier)
        )
        return _Layer(weight.double(), bias.double()[:, None, None], multiplier[:, None, None])

    def hyper(self, z: Int16Array) -> npt.NDArray[Any]:
        values = torch.from_numpy(np.ascontiguousarray(z)).to(self.device).double()
        x = torch.cat((values.clamp_min(0), (-values).clamp_min(0)))
        for i, (layer, shuffle) in enumerate(self.hyper_layers):
            x = layer(x)
            if i == len(self.hyper_layers) - 1 and self.kind != "context":
                return x.clamp(-32768, 32767).to(torch.int16).permute(1, 2, 0).cpu().numpy()
            x = x.clamp(0, 255)
            if shuffle:
                x = F.pixel_shuffle(x[None], 2)[0]
        return x.to(torch.uint8).permute(1, 2, 0).cpu().numpy()

    def heads(self, hyper: UInt8Array, taps: UInt8Array) -> Int16Array:
        assert self.context is not None
        first, second, third = self.parameters
        context = self.context(self._columns(taps)).clamp(0, 255) - SIGNED_ZERO
        x = first(torch.cat((self._columns(hyper), context))).clamp(0, 255)
        raw = third(second(x).clamp(0, 255)).clamp(-32768, 32767)
        return raw[:, :, 0].T.to(torch.int16).cpu().numpy()

    def _columns(self, values: UInt8Array) -> Tensor:
        """Bytes [n, I] that hold 128 more -> float64 [I, n, 1]."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device).double().T[:, :, None] - SIGNED_ZERO
