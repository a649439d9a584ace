"""A hyperprior model and the coder in C++ (csrc/hyperprior/coder.h): whole tiles without Python in between."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from l2c import ops
from l2c.entropy.base import Backend
from l2c.entropy.coder import (
    EncodingJob,
    Int16Array,
    Job,
    Observer,
    ObservingJob,
    Tables,
    UInt8Array,
    UInt16Array,
)
from l2c.entropy.hyperprior.integer_weights import HyperpriorWeights, IntegerLevel
from l2c.ops import extension


class CpuBackend(Backend):
    """See the module; on the host whatever the device."""

    name, spoken = "cpu", "the CPU"
    instead, second = ("reference",), ("torch", "reference")

    def __init__(self, weights: HyperpriorWeights) -> None:
        self.weights = weights
        self._coder: Any = None
        self._lock = threading.Lock()

    def suits(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def unavailable(self, device: torch.device) -> str:
        return extension.load_cpp()[1]

    def coder(self) -> Any:
        """The C++ form of the model, made once; its levels are packed when they are first used."""
        with self._lock:
            if self._coder is None:
                self._coder = ops.hyperprior_coder([_level(level) for level in self.weights.levels])
            return self._coder

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[Int16Array]:
        return self.coder().code([self._arguments(job) for job in jobs], max(1, threads)) if jobs else []

    def _arguments(self, job: Job) -> tuple[Any, ...]:
        """A job as `HyperpriorCoder.code` takes it."""
        tile = job.height, job.width, self.weights.index_of(job.point), job.used
        if not isinstance(job, (EncodingJob, ObservingJob)):
            return *tile, job.decoder.decoder, None, None
        coder = job.encoder.encoder if isinstance(job, EncodingJob) else _Shown(job.observer)
        side = None if job.side is None else np.ascontiguousarray(job.side)
        return *tile, coder, np.ascontiguousarray(job.symbols), side


def _level(level: IntegerLevel) -> tuple[Any, ...]:
    """A level as `HyperpriorCoder` takes it."""
    return (
        level.kind, level.z_cdf, [(part.layer, part.shuffle) for part in level.hyper], level.context, level.shift,
        level.parameters, level.offset, level.y_cdf, level.fraction,
    )  # fmt: skip


class _Shown:
    """An observer as the C++ calls it: with the known symbols last, and it wants them back."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def mixture(
        self, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array, symbols: UInt8Array
    ) -> UInt8Array:
        self.observer.mixture(symbols, weights, means, inv_scales)
        return symbols

    def table(
        self,
        cdf: npt.NDArray[np.uint32],
        sizes: npt.NDArray[np.int32],
        precision: int,
        rows: npt.NDArray[np.int32],
        symbols: UInt8Array,
    ) -> UInt8Array:
        self.observer.table(symbols, rows, Tables(cdf, sizes, precision))
        return symbols
