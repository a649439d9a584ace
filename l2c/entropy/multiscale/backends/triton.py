"""P and the coder by the kernels of `kernels/`: tiles batched on a GPU, without the host between groups."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from l2c.entropy.base import Backend, Check
from l2c.entropy.coder import DecodingJob, EncodingJob, Job, ObservingJob, UInt8Array, batches
from l2c.entropy.multiscale.backends import device_coder
from l2c.entropy.multiscale.backends.cpu import CpuBackend
from l2c.entropy.multiscale.backends.device_coder import DeviceCoder
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.errors import BackendError
from l2c.ops import extension


class TritonBackend(Backend):
    """See the module. The CPU codes tiles that would fill a GPU."""

    name, spoken, spare = "triton", "Triton", CpuBackend.name
    instead, second = ("torch", "reference"), (CpuBackend.name, "torch", "reference")

    def __init__(self, weights: IntegerWeights, cpu: CpuBackend) -> None:
        self.weights, self.cpu = weights, cpu
        self._coders: dict[torch.device, DeviceCoder] = {}
        self._lock = threading.Lock()

    def suits(self, device: torch.device) -> bool:
        return device.type != "cpu"

    def unavailable(self, device: torch.device) -> str:
        return extension.triton_reason(device) or extension.load_cpp()[1]  # C++ hashes the streams' symbols

    def takes(self, jobs: Sequence[Job]) -> bool:
        return all(job.height * job.width <= device_coder.MOST_POSITIONS for job in jobs)

    def coder(self, device: torch.device) -> DeviceCoder:
        """The coder of a device, made on first use. Raises BackendError where its kernels cannot run."""
        with self._lock:
            if device not in self._coders:
                self._coders[device] = DeviceCoder(self.weights, device, cpu=self.cpu)
            return self._coders[device]

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[UInt8Array]:
        found: dict[int, UInt8Array] = {}
        readers = [job for job in jobs if isinstance(job, DecodingJob)]
        if readers:
            symbols, check = self._decode(readers, device)
            check()
            found = {id(job): part.cpu().numpy() for job, part in zip(readers, symbols)}
        for part in batches([job for job in jobs if isinstance(job, EncodingJob)], device_coder.MOST_POSITIONS):
            for job, payload in zip(part, self.coder(device).encode(part)):
                job.encoder.payload = payload
        for shown in batches([job for job in jobs if isinstance(job, ObservingJob)], device_coder.MOST_POSITIONS):
            self.coder(device).record(shown)
        return [found[id(job)] if isinstance(job, DecodingJob) else job.symbols for job in jobs]

    def queue(self, jobs: Sequence[DecodingJob], device: torch.device) -> tuple[list[Tensor], Check] | None:
        return self._decode(jobs, device) if self.takes(jobs) else None

    def _decode(self, jobs: Sequence[DecodingJob], device: torch.device) -> tuple[list[Tensor], Check]:
        coder, c = self.coder(device), self.weights.c
        parts = [coder.decode(part) for part in batches([job for job in jobs if job.used], device_coder.MOST_POSITIONS)]
        decoded = iter([symbols for part, _ in parts for symbols in part])
        results = [
            next(decoded)
            if job.used
            else torch.full((c, job.height, job.width), 1 << (job.point.bits - 1), dtype=torch.uint8, device=device)
            for job in jobs
        ]

        def check() -> None:
            for _, part_check in parts:
                part_check()
            for job in jobs:
                job.decoder.is_checked |= job.used > 0
                job.decoder.finish()

        return results, check

    def prove(self, device: torch.device) -> None:
        if device.type == "cuda":
            self.coder(device).prove()

    def explain(self, error: Exception) -> Exception:
        if isinstance(error, BackendError):
            return error
        # Kernels are compiled for this GPU by this version of Triton: what can go wrong there is not ours to list.
        return BackendError(f"the triton backend fails here ({type(error).__name__}: {error})")
