"""A hyperprior model and the coder by the kernels of `kernels/`: tiles batched on a GPU, the host not in between."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from l2c.entropy.base import Backend, Check
from l2c.entropy.coder import DecodingJob, Int16Array, Job, batches
from l2c.entropy.hyperprior.backends.cpu import CpuBackend
from l2c.entropy.hyperprior.backends.device_coder import MOST_POSITIONS, DeviceCoder
from l2c.entropy.hyperprior.integer_weights import HyperpriorWeights
from l2c.errors import BackendError
from l2c.ops import extension


class TritonBackend(Backend):
    """See the module. The CPU codes tiles that would fill a GPU."""

    name, spoken, spare = "triton", "Triton", CpuBackend.name
    instead, second = ("torch", "reference"), (CpuBackend.name, "torch", "reference")

    def __init__(self, weights: HyperpriorWeights, cpu: CpuBackend, most_positions: int = MOST_POSITIONS) -> None:
        self.weights, self.cpu, self.most_positions = weights, cpu, most_positions
        self._coders: dict[torch.device, DeviceCoder] = {}
        self._lock = threading.Lock()

    def suits(self, device: torch.device) -> bool:
        return device.type != "cpu"

    def unavailable(self, device: torch.device) -> str:
        return extension.triton_reason(device) or extension.load_cpp()[1]  # C++ hashes the streams' symbols

    def takes(self, jobs: Sequence[Job]) -> bool:
        return all(job.height * job.width <= self.most_positions for job in jobs)

    def coder(self, device: torch.device) -> DeviceCoder:
        """The coder of a device, made on first use. Raises BackendError where its kernels cannot run."""
        with self._lock:
            if device not in self._coders:
                self._coders[device] = DeviceCoder(self.weights, device, self.cpu)
            return self._coders[device]

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[Int16Array]:
        found: dict[int, Int16Array] = {}
        readers = [job for job in jobs if isinstance(job, DecodingJob)]
        if readers:
            latents, check = self._decode(readers, device)
            check()
            found = {id(job): part.cpu().numpy() for job, part in zip(readers, latents)}
        known = [job for job in jobs if not isinstance(job, DecodingJob)]
        waiting = [job for job in known if self._waits(job)]
        found |= {id(job): part for job, part in zip(waiting, self.cpu.code(waiting, device, threads))}
        found |= {id(job): self.coder(device).code_known(job) for job in known if id(job) not in found}
        return [found[id(job)] for job in jobs]

    def _waits(self, job: Job) -> bool:
        """Whether known latents are rounded group by group: the host would wait for each, so the CPU takes them."""
        level = self.weights.level_of(job.point)
        return level.kind == "context" and level.fraction > 0

    def queue(self, jobs: Sequence[DecodingJob], device: torch.device) -> tuple[list[Tensor], Check] | None:
        return self._decode(jobs, device) if self.takes(jobs) else None

    def _decode(self, jobs: Sequence[DecodingJob], device: torch.device) -> tuple[list[Tensor], Check]:
        coder, c = self.coder(device), self.weights.c
        parts = [(part, *coder.decode(part)) for part in self._batches([job for job in jobs if job.used])]
        decoded = {id(job): latents for part, found, _ in parts for job, latents in zip(part, found)}
        results = [
            decoded[id(job)] if job.used else torch.zeros((c, job.height, job.width), dtype=torch.int16, device=device)
            for job in jobs
        ]

        def check() -> None:
            for _, _, part_check in parts:
                part_check()
            for job in jobs:
                job.decoder.is_checked |= job.used > 0
                job.decoder.finish()

        return results, check

    def _batches(self, jobs: Sequence[DecodingJob]) -> Iterator[Sequence[DecodingJob]]:
        """The jobs by level, in parts that a device takes at a time."""
        levels = [self.weights.index_of(job.point) for job in jobs]
        for index in sorted(set(levels)):
            mine = [job for job, level in zip(jobs, levels) if level == index]
            yield from batches(mine, self.most_positions)

    def prove(self, device: torch.device) -> None:
        if device.type == "cuda":
            self.coder(device).prove()

    def explain(self, error: Exception) -> Exception:
        if isinstance(error, BackendError):
            return error
        # Kernels are compiled for this GPU by this version of Triton: what can go wrong there is not ours to list.
        return BackendError(f"the triton backend fails here ({type(error).__name__}: {error})")
