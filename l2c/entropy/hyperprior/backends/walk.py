"""A tile from its first symbol to its last, from Python: what the reference and the PyTorch backend share.

They differ in the engine, which runs the layers; tables, groups, taps, mixtures and escapes are here, in plain numpy.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from l2c.entropy.coder import DecodingJob, Int16Array, Job, UInt8Array
from l2c.entropy.hyperprior.integer_weights import IntegerLevel, groups, side_shape, tables_of
from l2c.errors import BitstreamError
from l2c.ops import reference
from l2c.ops.contract import (
    CONTEXT_TAPS,
    DIGIT_INV_SCALE,
    DIGIT_MEAN,
    DIGIT_WEIGHT,
    ESCAPE_DIGIT,
    ESCAPES,
    MOST_DIGITS,
    SIGNED_ZERO,
)

_BATCH = 2048  # positions whose heads are computed in one go where all latents are known
Int64Array = npt.NDArray[np.int64]


class Engine(Protocol):
    """One way of computing the layers of a level."""

    def hyper(self, z: Int16Array) -> npt.NDArray[Any]:
        """h_s over z int16 [N, h', w'], -128..127: what its last layer gives, [4h', 4w', outputs], uint8 or int16."""

    def heads(self, hyper: UInt8Array, taps: UInt8Array) -> Int16Array:
        """Context and parameters of n positions: uint8 [n, 2M] of h_s and uint8 [n, 12M] -> int16 [n, 2M]."""


def walk(level: IntegerLevel, job: Job, engine: Engine) -> Int16Array:
    """Take a job that uses at least one channel to its end: latents int16 [M, height, width].

    Raises:
        BitstreamError: a stream is not valid. ValueError: a known latent is too large, or `side` is not of its shape.
    """
    tile = _Tile(level, job)
    hyper = None if level.kind == "factorized" else engine.hyper(tile.code_side())[: job.height, : job.width]
    heads = _all_heads(tile, hyper, engine) if tile.is_final and level.kind == "context" else None
    done = 0
    for rows, columns in groups(level.kind, job.height, job.width):
        head: npt.NDArray[Any] | None = None
        if heads is not None:
            head = heads[done : done + len(rows)]
            done += len(rows)
        elif level.kind == "context":
            assert hyper is not None
            head = engine.heads(hyper[rows, columns], tile.taps(rows, columns))
        elif hyper is not None:
            head = hyper.reshape(-1, hyper.shape[2])
        tile.code_group(rows, columns, head)
    return np.ascontiguousarray(tile.latents.transpose(2, 0, 1)).astype(np.int16)


def _all_heads(tile: _Tile, hyper: npt.NDArray[Any] | None, engine: Engine) -> Int16Array:
    """The heads of all positions in coding order, where nothing has to be waited for."""
    assert hyper is not None
    order = list(groups(tile.level.kind, tile.job.height, tile.job.width))
    rows, columns = (np.concatenate(part) for part in zip(*order))
    parts = [slice(first, first + _BATCH) for first in range(0, len(rows), _BATCH)]
    return np.concatenate(
        [engine.heads(hyper[rows[part], columns[part]], tile.taps(rows[part], columns[part])) for part in parts]
    )


class _Tile:
    """A job's latents, and how they are coded.

    Attributes:
        known: int64 [h, w, M], or None where they are decoded.
        is_final: whether the known ones are what comes out.
        latents: int64 [h, w, M], what comes out, zero where nothing is coded (yet).
    """

    def __init__(self, level: IntegerLevel, job: Job) -> None:
        self.level, self.job = level, job
        self.known = None
        self.latents = np.zeros((job.height, job.width, level.c), dtype=np.int64)
        if not isinstance(job, DecodingJob):
            self.known = job.symbols.transpose(1, 2, 0).astype(np.int64)
            if np.abs(self.known[:, :, : job.used]).max() > level.most:
                raise ValueError(f"a latent is beyond +-{level.most}")
        self.is_final = self.known is not None and not level.fraction
        if self.known is not None and self.is_final:
            self.latents[:, :, : job.used] = self.known[:, :, : job.used]

    def code_side(self) -> Int16Array:
        """The hyper-latents, int16 [N, h', w']."""
        level, job = self.level, self.job
        shape = side_shape(level.n, job.height, job.width)
        symbols = None
        if not isinstance(job, DecodingJob):
            if job.side is None or job.side.shape != shape:
                raise ValueError(f"the job's side must be uint8 {list(shape)}")
            symbols = np.ascontiguousarray(job.side.transpose(1, 2, 0)).reshape(-1)
        rows = np.tile(np.arange(level.n, dtype=np.int32), shape[1] * shape[2])
        found = job.table_of(symbols, rows, tables_of(level.z_cdf))
        return found.reshape(*shape[1:], level.n).transpose(2, 0, 1).astype(np.int16) - SIGNED_ZERO

    def taps(self, rows: Int64Array, columns: Int64Array) -> UInt8Array:
        """The context's inputs at n positions: uint8 [n, 12 M]."""
        shift = self.level.shift.astype(np.int64)
        padded = np.pad(self.latents, ((2, 0), (2, 2), (0, 0)))
        y = np.stack([padded[rows + 2 + dy, columns + 2 + dx] for dy, dx in CONTEXT_TAPS], axis=1)
        values = ((y + ((1 << shift) >> 1)) >> shift).clip(-128, 127) + SIGNED_ZERO
        return values.astype(np.uint8).reshape(len(rows), -1)

    def code_group(self, rows: Int64Array, columns: Int64Array, head: npt.NDArray[Any] | None) -> None:
        """Code the latents at n positions, whose head is int16 [n, M or 2M]; None: by the tables of y."""
        level, job, used = self.level, self.job, self.job.used
        known = None if self.known is None else self.known[rows, columns, :used].reshape(-1)
        if head is None:
            channels = np.tile(np.arange(used, dtype=np.int32), len(rows))
            k = level.offset.astype(np.int64)[channels]
            d = self._differences(known, k)
            found = job.table_of(_symbols(d), channels, tables_of(level.y_cdf))
        else:
            scale = head[:, :used].astype(np.int64).reshape(-1)
            mean = head[:, level.c : level.c + used].astype(np.int64).reshape(-1)
            mean = mean if len(mean) else 0 * scale
            weights, means, inv_scales, k = reference.gaussian_mixture(scale, mean, level.fraction)
            d = self._differences(known, k)
            found = job.mixture_of(_symbols(d), weights, means, inv_scales)
        result = found.astype(np.int64) - SIGNED_ZERO
        at = np.flatnonzero(np.isin(found, ESCAPES))
        if len(at):
            sign = np.where(found[at] == ESCAPES[0], -1, 1)
            result[at] += sign * self._code_rest(len(at), None if d is None else sign * (d - result)[at])
        y = k + (result << level.fraction)
        if not -32768 <= y.min() <= y.max() <= 32767:
            raise BitstreamError("a latent is out of range")
        self.latents[rows, columns, :used] = y.reshape(len(rows), used)

    def _differences(self, known: Int64Array | None, k: Int64Array) -> Int64Array | None:
        """What is coded of known latents: int64, like them."""
        return None if known is None else (known - k + ((1 << self.level.fraction) >> 1)) >> self.level.fraction

    def _code_rest(self, n: int, rest: Int64Array | None) -> Int64Array:
        """Digits of n escapes: what lies beyond, int64 [n], known or not."""
        total, running = np.zeros(n, dtype=np.int64), np.arange(n)
        for _ in range(MOST_DIGITS):
            digits = None if rest is None else (rest - total)[running].clip(0, ESCAPE_DIGIT).astype(np.uint8)
            one = np.ones((1, len(running)))
            parameters = (
                (one * DIGIT_WEIGHT).astype(np.uint16),
                (one * DIGIT_MEAN).astype(np.int16),
                (one * DIGIT_INV_SCALE).astype(np.uint16),
            )
            found = self.job.mixture_of(digits, *parameters)
            total[running] += found
            running = running[found == ESCAPE_DIGIT]
            if not len(running):
                return total
        raise BitstreamError("an escaped latent has more digits than any encoder writes")


def _symbols(d: Int64Array | None) -> UInt8Array | None:
    return None if d is None else (d.clip(-128, 127) + SIGNED_ZERO).astype(np.uint8)
