"""P as exact integers: what the coder reads (DESIGN 3). `integer_weights` says what is computed and in which order."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.architectures import LATENT_MAX, tenths_of
from l2c.arrays import UInt8Array
from l2c.entropy.base import Backend, EntropyModel, Recorder
from l2c.entropy.coder import DecodingJob, Int16Array, Job, ObservingJob, Symbols
from l2c.entropy.hyperprior import quantise, serialise
from l2c.entropy.hyperprior.backends import make
from l2c.entropy.hyperprior.config import HyperpriorConfig
from l2c.entropy.hyperprior.float_model import HYPER_LEAST, HYPER_MOST, HyperpriorModel, Level
from l2c.entropy.hyperprior.integer_weights import HyperpriorWeights, IntegerLevel, side_shape
from l2c.format.levels import OperatingPoint
from l2c.ops.contract import SIGNED_ZERO

_ANSWER_SIZES = ((7, 13), (2, 3))


class HyperpriorIntegers(HyperpriorWeights, EntropyModel):
    """P in integers with everything that can compute it.

    Attributes:
        floats: of each level what stays float (`quantise.strip`): h_a, which finds the hyper-latents of known latents.
            Nothing that decides a probability.
    """

    symbol_dtype = np.int16

    def __init__(
        self, config: HyperpriorConfig, c: int, levels: Sequence[IntegerLevel], floats: Sequence[Level]
    ) -> None:
        super().__init__(config, c, levels)
        self.floats = list(floats)

    @functools.cached_property
    def _backends(self) -> dict[str, Backend]:
        return make(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: everything but the packed forms, which are made again when they are needed."""
        return {name: value for name, value in self.__dict__.items() if name != "_backends"}

    @classmethod
    def from_float(cls, model: HyperpriorModel) -> HyperpriorIntegers:
        """Quantise a trained P: int8 weights per output channel, units from what calibration saw.

        Calibrate it on latents of pictures before (`HyperpriorModel.calibrate`); a level that was not is calibrated on
        latents that are sampled from itself.
        """
        return cls(model.config, model.c, *quantise.from_float(model))

    def to_float(self) -> HyperpriorModel:
        """The float P, so that training can go on from exported weights; on the CPU, calibrated as it was.

        Up to the rounding of biases `from_float` gives the same integers back.
        """
        return quantise.to_float(self, self.floats)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], config: HyperpriorConfig, c: int) -> HyperpriorIntegers:
        """See `EntropyModel.from_tensors`."""
        return cls(config, c, *serialise.from_tensors(tensors, config, c))

    def to_tensors(self) -> dict[str, Tensor]:
        """See `EntropyModel.to_tensors`."""
        return serialise.to_tensors(self, self.floats)

    def backends(self) -> Mapping[str, Backend]:
        """See `EntropyModel.backends`."""
        return self._backends

    def code(
        self, jobs: Sequence[Job], backend: str = "auto", device: torch.device | None = None, threads: int = 1
    ) -> list[Symbols]:
        """See `EntropyModel.code`; symbols are latents int16, known ones within `IntegerLevel.most`.

        Whole numbers come out as they are; sixteenths as they are rounded from their means, in place of what was known.
        Jobs of known latents without hyper-latents (`side`) get theirs. Raises ValueError: a known latent is too large.
        """
        for job in jobs:
            if not isinstance(job, DecodingJob) and job.side is None and job.used:
                job.side = self.side_of(job.symbols, job.point)
        return super().code(jobs, backend, device, threads)

    @torch.no_grad()
    def side_of(self, latents: Symbols, point: OperatingPoint) -> UInt8Array | None:
        """The hyper-latents z + 128, uint8 [N, ceil(h/4), ceil(w/4)], of latents int16 [M, h, w]; None if factorized.

        By h_a in float on the CPU. Which z they are decides how well latents are coded, and nothing else.
        """
        level = self.floats[self.index_of(point)]
        if level.kind == "factorized":
            return None
        with torch.autocast("cpu", enabled=False):
            y = torch.from_numpy(np.ascontiguousarray(latents)).float() / (1 << self.levels[0].fraction)
            z = level.hyper_latents(y[None])[0].nan_to_num().round().clamp(HYPER_LEAST, HYPER_MOST)
        return (z + SIGNED_ZERO).to(torch.uint8).numpy()

    def known_answer(self, backend: str, device: torch.device | None = None) -> int:
        """CRC32 over all parameters of fixed latents and hyper-latents of two sizes at every quality."""
        recorders = []
        jobs: list[Job] = []
        for tenths in map(tenths_of, self.config.qualities):
            for height, width in _ANSWER_SIZES:
                recorders.append(Recorder())
                latents, side = self._pattern(height, width), _side_pattern(self.config.n, height, width)
                point = OperatingPoint(tenths, 0, 8)
                jobs.append(ObservingJob(height, width, point, self.c, latents, recorders[-1], side=side))
        self.code(jobs, backend, device)
        return zlib.crc32(b"".join(r.crc.to_bytes(4, "little") for r in recorders))

    def _pattern(self, height: int, width: int) -> Int16Array:
        """Latents int16 [M, height, width], most of them small, some beyond any symbol."""
        noise = _hashed(self.c * height * width)
        spread = 1 << (np.arange(len(noise)) // (height * width) % 6)
        small = noise % (2 * spread + 1) - spread
        large = (noise % 8191 - 4095) * (self.levels[0].most // LATENT_MAX)
        return np.where(noise % 61 == 0, large, small).astype(np.int16).reshape(self.c, height, width)


def _hashed(count: int) -> Any:
    """int64 [count] of 0..65535 without a pattern: Knuth's multiplicative hash."""
    n = np.arange(count, dtype=np.uint32)
    return ((n * np.uint32(2654435761)) >> np.uint32(16)).astype(np.int64)


def _side_pattern(channels: int, height: int, width: int) -> UInt8Array:
    """Hyper-latents uint8 [channels, ceil(height / 4), ceil(width / 4)], most of them near zero."""
    shape = side_shape(channels, height, width)
    noise = _hashed(int(np.prod(shape)))
    return np.where(noise % 13 == 0, noise % 256, SIGNED_ZERO - 4 + noise % 9).astype(np.uint8).reshape(shape)
