"""The definition: every layer in int64 numpy, written for reading (`l2c.ops.reference`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from l2c.entropy.base import Backend
from l2c.entropy.coder import Int16Array, Job, UInt8Array
from l2c.entropy.hyperprior.backends.walk import Int64Array, walk
from l2c.entropy.hyperprior.integer_weights import HyperpriorWeights, IntegerLevel
from l2c.ops import reference
from l2c.ops.contract import SIGNED_ZERO, IntegerLayer


class ReferenceBackend(Backend):
    """See the module."""

    name, spoken, cost = "reference", "the exact slow path", 200
    asks = True
    is_definition = True

    def __init__(self, weights: HyperpriorWeights) -> None:
        self.weights = weights

    def suits(self, device: torch.device) -> bool:
        return False

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[Int16Array]:
        levels = [self.weights.level_of(job.point) for job in jobs]
        return [walk(level, job, _Engine(level)) for level, job in zip(levels, jobs)]


class _Engine:
    """See `walk.Engine`."""

    def __init__(self, level: IntegerLevel) -> None:
        self.level = level

    def hyper(self, z: Int16Array) -> npt.NDArray[Any]:
        x = np.concatenate((np.maximum(z, 0), np.maximum(-z, 0))).astype(np.int64)
        for i, part in enumerate(self.level.hyper):
            x = reference.integer_conv(x, part.layer)
            if i == len(self.level.hyper) - 1 and self.level.kind != "context":
                return x.clip(-32768, 32767).astype(np.int16).transpose(1, 2, 0)
            x = x.clip(0, 255)
            if part.shuffle:
                x = pixel_shuffle(x)
        return x.astype(np.uint8).transpose(1, 2, 0)

    def heads(self, hyper: UInt8Array, taps: UInt8Array) -> Int16Array:
        assert self.level.context is not None
        context = self._at_positions(taps.astype(np.int64) - SIGNED_ZERO, self.level.context).clip(0, 255)
        x = np.concatenate((hyper.astype(np.int64), context), axis=1) - SIGNED_ZERO
        first, second, third = self.level.parameters
        x = self._at_positions(x, first).clip(0, 255)
        x = self._at_positions(x, second).clip(0, 255)
        return self._at_positions(x, third).clip(-32768, 32767).astype(np.int16)

    @staticmethod
    def _at_positions(x: Int64Array, layer: IntegerLayer) -> Int64Array:
        """A 1x1 layer: [n, I] -> [n, O]."""
        return reference.integer_conv(x.T[:, :, None], layer)[:, :, 0].T


def pixel_shuffle(x: Int64Array) -> Int64Array:
    """[4 C, h, w] -> [C, 2 h, 2 w]: output 4 c + 2 dy + dx of a position goes to channel c at (2 y + dy, 2 x + dx)."""
    channels, height, width = x.shape[0] // 4, *x.shape[1:]
    return x.reshape(channels, 2, 2, height, width).transpose(0, 3, 1, 4, 2).reshape(channels, 2 * height, 2 * width)
