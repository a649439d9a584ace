"""P and the coder in C++ (csrc/multiscale/tile_coder.h): whole tiles without Python in between, several in parallel."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from l2c import ops
from l2c.entropy.base import Backend
from l2c.entropy.coder import EncodingJob, Int16Array, Job, Observer, ObservingJob, UInt8Array, UInt16Array
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.format.levels import MAX_MU, OperatingPoint
from l2c.ops import extension

_SAMPLES = tuple(OperatingPoint(quality, MAX_MU // 2, 8) for quality in (300, 500, 700))


class CpuBackend(Backend):
    """See the module; on the host whatever the device."""

    name, spoken = "cpu", "the CPU"
    instead, second = ("reference",), ("torch", "reference")

    def __init__(self, weights: IntegerWeights, samples: Sequence[OperatingPoint] | None = None) -> None:
        """`samples`: where the C++ form learns which hidden channels are seldom active; None: at three qualities."""
        self.weights = weights
        self.samples = _SAMPLES if samples is None else samples
        self._tile_coder: Any = None
        self._lock = threading.Lock()

    def suits(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def unavailable(self, device: torch.device) -> str:
        return extension.load_cpp()[1]

    def tile_coder(self) -> Any:
        """The C++ form of the model, made once."""
        with self._lock:
            if self._tile_coder is None:
                weights, config = self.weights, self.weights.config
                steps = [(step.w1, step.w2, step.w3, step.w4) for step in weights.steps]
                samples = [weights.planes_of(point) for point in self.samples]
                self._tile_coder = ops.tile_coder(
                    config.channel_groups, config.num_scales, config.num_mixtures, steps, weights.prior, weights.tables,
                    samples,
                )  # fmt: skip
            return self._tile_coder

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[UInt8Array]:
        return self.tile_coder().code([self._arguments(job) for job in jobs], max(1, threads)) if jobs else []

    def _arguments(self, job: Job) -> tuple[Any, ...]:
        """A job as `TileCoder.code` takes it."""
        tile = job.height, job.width, job.point.bits, job.used, self.weights.planes_of(job.point)
        if isinstance(job, EncodingJob):
            return *tile, job.encoder.encoder, np.ascontiguousarray(job.symbols)
        if isinstance(job, ObservingJob):
            return *tile, _Shown(job.observer), np.ascontiguousarray(job.symbols)
        return *tile, job.decoder.decoder, None


class _Shown:
    """An observer as the C++ calls it: with the known symbols last, and it wants them back."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def mixture(
        self, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array, symbols: UInt8Array
    ) -> UInt8Array:
        self.observer.mixture(symbols, weights, means, inv_scales)
        return symbols

    def uniform(self, count: int, symbols: UInt8Array) -> UInt8Array:
        self.observer.raw(symbols)
        return symbols
