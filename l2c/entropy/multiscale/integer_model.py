"""P as exact integers: what the coder reads (DESIGN 3).

The graph is that of `float_model`; here every number that decides a probability is an integer, and every backend gives
the same ones (`l2c.entropy.multiscale.backends`).

Formats
    inputs        int8, real value / INPUT_SCALE: companded latents (a table of 256 entries), availability, planes
    activations   uint8, 32 times the real value, zero-point 0
    weights       int8, one scale per output channel
    sums          int32; checked at export: sum|w| max|a| + |bias| < 2^24, so float32 sums are exact in any order
    requantise    round_half_even(float32(sum) * multiplier): one float32 multiplication, nothing fused after it
    head          int16 per symbol and component: logit (Q4 nats), mean (Q6 half steps, 1/128 latent), index of the
                  log inverse scale (19.6 per octave); `mixture_params` turns them into uint16 weights that sum to
                  65536 - 16, int16 means and uint16 Q10 inverse scales. The CDF over them is csrc/core/mixture_cdf.h.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from l2c.config import ModelConfig
from l2c.entropy.base import Backend
from l2c.entropy.coder import Int16Array, Job, ObservingJob, UInt8Array, UInt16Array
from l2c.entropy.multiscale.backends import choose, make
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.errors import BackendError
from l2c.ops.contract import IntegerLayer, IntegerStep, IntegerTables


class IntegerModel(IntegerWeights):
    """P in integers, loaded from tensors that `l2c.train.quantize` made, with everything that can compute it."""

    def __init__(
        self,
        config: ModelConfig,
        steps: Sequence[IntegerStep],
        prior: tuple[IntegerLayer, IntegerLayer] | None,
        tables: IntegerTables,
    ) -> None:
        super().__init__(config, steps, prior, tables)
        self._backends = make(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: everything but the packed forms, which are made again when they are needed."""
        return {name: value for name, value in self.__dict__.items() if name != "_backends"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backends = make(self)

    def backends(self) -> Mapping[str, Backend]:
        """All ways of computing this model, by name."""
        return self._backends

    def code(
        self, jobs: Sequence[Job], backend: str = "auto", device: torch.device | None = None, threads: int = 1
    ) -> list[UInt8Array]:
        """Take jobs to their end, coarsest scale first.

        Args:
            jobs: pictures, of any sizes and kinds.
            backend: "auto" or a name, see `backends.choose`.
            device: where backends compute that can choose; None for the CPU.
            threads: pictures at a time (several jobs) or threads per convolution (one job), cpu backend.
        Returns:
            symbols uint8 [c, height, width] per job.
        Raises:
            BackendError: the backend cannot run here. BitstreamError: a stream is not valid.
        """
        place = device if device is not None else torch.device("cpu")
        chosen = self._backends[choose(backend, place)]
        if not chosen.takes(jobs):
            chosen = self._backends[chosen.spare]
        # Where no channel is used, nothing is coded: P need not run to find that out.
        results = iter(chosen.code([job for job in jobs if job.used], place, threads))
        return [
            next(results)
            if job.used
            else np.full((self.c, job.height, job.width), 1 << (job.header[2] - 1), dtype=np.uint8)
            for job in jobs
        ]

    def known_answer(self, backend: str, device: torch.device | None = None) -> int:
        """CRC32 over all mixture parameters of a fixed set of latents of two sizes: equal on every exact backend."""
        recorders = []
        jobs = []
        for height, width, quality, mu in ((21, 30, 333, 2), (9, 6, 910, 8)):
            n = np.arange(self.c * height * width, dtype=np.uint32).reshape(self.c, height, width)
            noise = (n * np.uint32(2654435761)) >> np.uint32(24)  # Knuth's multiplicative hash: any fixed pattern does
            spread = np.maximum(1, 64 >> np.minimum(6, np.arange(self.c) // 4))[:, None, None]
            symbols = (128 + (noise.astype(np.int64) % (2 * spread + 1)) - spread).astype(np.uint8)
            recorders.append(_Recorder())
            jobs.append(ObservingJob(height, width, (quality, mu, 8), self.c, symbols, recorders[-1]))
        self.code(jobs, backend, device)
        return zlib.crc32(b"".join(r.crc.to_bytes(4, "little") for r in recorders))


class _Recorder:
    """Keeps a running CRC32 of the parameters that it is shown."""

    def __init__(self) -> None:
        self.crc = 0

    def mixture(self, symbols: UInt8Array, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array) -> None:
        for array in (weights, means, inv_scales):
            self.crc = zlib.crc32(np.ascontiguousarray(array), self.crc)

    def raw(self, symbols: UInt8Array) -> None:
        pass


def check_backend(model: IntegerModel, answer: int, backend: str, device: torch.device | None = None) -> None:
    """Compare a backend's known answer with the stored one. Raises BackendError on a mismatch or where it fails."""
    chosen = model.backends()[choose(backend, device)]
    try:
        got = model.known_answer(chosen.name, device)
        chosen.prove(device if device is not None else torch.device("cpu"))
    except Exception as error:
        explained = chosen.explain(error)
        if explained is error:
            raise
        raise explained from error
    if got != answer:
        raise BackendError(
            f"the {backend} backend computes other integers here than the model was exported with "
            f"(known answer {got:08x}, expected {answer:08x})"
        )
