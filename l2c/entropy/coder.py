"""One stream of symbols, and the jobs that write it, read it or only look on. No family of models is known here.

A backend takes a job to the end in its own way: C++ and GPU kernels walk whole tiles by themselves, other backends
(`Backend.asks`) ask the job for each group by `mixture`, `table` and `raw`; by `mixture_of` and `table_of` where the
symbols of the stream are not those of the picture at a place.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from l2c.errors import BitstreamError
from l2c.format.levels import OperatingPoint
from l2c.ops.contract import MEAN_UNIT, WEIGHT_SUM
from l2c.ops.streams import check_head, range_decoder, range_encoder

UInt8Array = npt.NDArray[np.uint8]
UInt16Array = npt.NDArray[np.uint16]
Int16Array = npt.NDArray[np.int16]
Symbols = npt.NDArray[Any]  # of a picture: uint8, or what its family's `EntropyModel.symbol_dtype` says
Place = tuple[slice, slice, slice]  # channels, rows, columns of a group in its picture's latents

_PIECE = 512  # symbols of which all or none count as arrived


@dataclass(frozen=True)
class Tables:
    """Distributions written out, for what no mixture describes.

    Attributes:
        cdf: uint32 [T, L + 1]: row t rises from 0 to 2^precision in sizes[t] entries, so it has sizes[t] - 1 symbols.
        sizes: int32 [T].
        precision: bits, 1..20.
    """

    cdf: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.int32]
    precision: int


class SymbolEncoder:
    """Writes known symbols into one stream (csrc/core/rans.h), or holds the stream that a device made of them."""

    def __init__(self, b: int) -> None:
        self.b = b
        self.payload: bytes | None = None

    @functools.cached_property
    def encoder(self) -> Any:
        """The `RangeEncoder` in C++, made when it is first asked for: a device has one of its own."""
        return range_encoder()

    def mixture(self, symbols: UInt8Array, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array) -> None:
        """Append symbols uint8 [n] under their mixtures [K, n]."""
        self.encoder.push_mixture(symbols, weights, means, inv_scales, self.b)

    def table(self, symbols: UInt8Array, rows: npt.NDArray[np.int32], tables: Tables) -> None:
        """Append symbols uint8 [n], each under the distribution of its row, int32 [n], in the tables."""
        self.encoder.push_table(symbols.astype(np.int32), tables.cdf, tables.sizes, rows, tables.precision)

    def raw(self, symbols: UInt8Array) -> None:
        """Append symbols uint8 [n] that are all equally likely."""
        self.encoder.push_raw(symbols.astype(np.uint32), self.b)

    def finish(self) -> bytes:
        """The stream of all symbols, once they are coded."""
        return self.payload if self.payload is not None else self.encoder.finish()


class SymbolDecoder:
    """Reads the symbols of one stream.

    Raises:
        BitstreamError: here, the head of the stream is not valid; later, it is not one of these symbols.
    """

    def __init__(self, payload: bytes | memoryview, b: int) -> None:
        check_head(payload)
        self.payload, self.b = payload, b
        self.is_checked = False  # set by who has decoded the payload and found its end as it should be

    @functools.cached_property
    def decoder(self) -> Any:
        """The `RangeDecoder` in C++, made when it is first asked for: a device takes the payload itself."""
        return range_decoder(self.payload)

    def mixture(self, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array) -> UInt8Array:
        """The next n symbols, of mixtures [K, n]."""
        return self.decoder.pop_mixture(weights, means, inv_scales, self.b)

    def table(self, rows: npt.NDArray[np.int32], tables: Tables) -> UInt8Array:
        """The next n symbols, each of its row, int32 [n], in the tables."""
        return self.decoder.pop_table(tables.cdf, tables.sizes, rows, tables.precision).astype(np.uint8)

    def raw(self, count: int) -> UInt8Array:
        """The next `count` symbols, which are all equally likely."""
        return self.decoder.pop_raw(count, self.b).astype(np.uint8)

    def finish(self) -> None:
        """Raises BitstreamError unless the stream ended where and as it should. Once all symbols are read."""
        if not self.is_checked:
            self.decoder.finish()


class BeginningDecoder(SymbolDecoder):
    """Reads a stream of which the end is missing: from there on every symbol is the one to be expected.

    That is the mean of a mixture, rounded, the median of a table, and zero where all are equally likely. What follows
    in the latents is then predicted from what was expected, group by group.

    Attributes:
        arrived: symbols that were read.
    Raises:
        BitstreamError: not even the head is there, or it is not valid.
    """

    def __init__(self, payload: bytes | memoryview, b: int) -> None:
        super().__init__(payload[: len(payload) - self._odd_bytes(payload)], b)
        self.arrived, self._is_over = 0, False

    @staticmethod
    def _odd_bytes(payload: bytes | memoryview) -> int:
        """Bytes at the end that are half a word: a head has an odd number of bytes, a word two."""
        return (len(payload) + 1) % 2

    def mixture(self, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array) -> UInt8Array:
        mean = (weights * means.astype(np.int64)).sum(axis=0) * (MEAN_UNIT / WEIGHT_SUM)
        symbols = ((mean + 128.0) / (1 << (8 - self.b))).round().clip(0, (1 << self.b) - 1).astype(np.uint8)

        def read(part: slice) -> UInt8Array:
            w, m, v = weights[:, part].copy(), means[:, part].copy(), inv_scales[:, part].copy()
            return super(BeginningDecoder, self).mixture(w, m, v)

        return self._read(symbols, read)

    def table(self, rows: npt.NDArray[np.int32], tables: Tables) -> UInt8Array:
        half = 1 << (tables.precision - 1)
        medians = [np.searchsorted(row[:size], half, "right") - 1 for row, size in zip(tables.cdf, tables.sizes)]
        symbols = np.array(medians, dtype=np.uint8)[rows]
        return self._read(symbols, lambda part: super(BeginningDecoder, self).table(rows[part], tables))

    def raw(self, count: int) -> UInt8Array:
        symbols = np.full(count, 1 << (self.b - 1), dtype=np.uint8)
        return self._read(symbols, lambda part: super(BeginningDecoder, self).raw(len(symbols[part])))

    def _read(self, symbols: UInt8Array, read: Callable[[slice], UInt8Array]) -> UInt8Array:
        """The symbols that arrived in the place of the first of those that are expected."""
        for start in range(0, len(symbols), _PIECE):
            if self._is_over:
                break
            part = slice(start, start + _PIECE)
            try:
                symbols[part] = read(part)
                self.arrived += len(symbols[part])
            except BitstreamError:
                self._is_over = True
        return symbols


class Observer(Protocol):
    """Who sees known symbols with the parameters of their distributions, group by group; `SymbolEncoder` is one."""

    def mixture(self, symbols: UInt8Array, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array) -> None:
        """Symbols uint8 [n], parameters [K, n]."""

    def table(self, symbols: UInt8Array, rows: npt.NDArray[np.int32], tables: Tables) -> None:
        """Symbols uint8 [n], rows int32 [n] of the tables."""

    def raw(self, symbols: UInt8Array) -> None:
        """Symbols uint8 [n], all equally likely."""


@dataclass
class Tile:
    """A picture or tile of latents: what all jobs say.

    Attributes:
        height, width: of the latents (ceil(H/s), ceil(W/s)).
        point: quality 0..1000, mu 0..8, b 1..8.
        used: channels coded; the higher ones are zero everywhere.
    """

    height: int
    width: int
    point: OperatingPoint
    used: int


@dataclass
class _Known(Tile, abc.ABC):
    """A tile of known symbols [c, height, width], which an observer is shown.

    Attributes:
        symbols: uint8, or of the family's `EntropyModel.symbol_dtype`.
        side: what else the stream holds where a family has such a thing (uint8 hyper-latents z); None: it finds it.
    """

    symbols: Symbols
    side: UInt8Array | None = field(default=None, kw_only=True)

    def mixture(self, place: Place, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array) -> UInt8Array:
        """Code the group at `place`: parameters [K, n]. Returns its symbols uint8 [n], channel innermost."""
        return self.mixture_of(self._at(place), weights, means, inv_scales)

    def mixture_of(
        self, symbols: UInt8Array | None, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array
    ) -> UInt8Array:
        """Code symbols uint8 [n] that a backend has made of the known ones, and return them; parameters [K, n]."""
        symbols = _given(symbols)
        self._observer().mixture(symbols, weights, means, inv_scales)
        return symbols

    def table(self, place: Place, rows: npt.NDArray[np.int32], tables: Tables) -> UInt8Array:
        """As `mixture`, of symbols whose distributions are rows, int32 [n], of tables."""
        return self.table_of(self._at(place), rows, tables)

    def table_of(self, symbols: UInt8Array | None, rows: npt.NDArray[np.int32], tables: Tables) -> UInt8Array:
        """As `mixture_of`, of symbols whose distributions are rows, int32 [n], of tables."""
        symbols = _given(symbols)
        self._observer().table(symbols, rows, tables)
        return symbols

    def raw(self, place: Place, count: int) -> UInt8Array:
        """As `mixture`, of symbols that are all equally likely."""
        symbols = self._at(place)
        self._observer().raw(symbols)
        return symbols

    def _at(self, place: Place) -> UInt8Array:
        return np.ascontiguousarray(self.symbols[place].transpose(1, 2, 0)).reshape(-1)

    @abc.abstractmethod
    def _observer(self) -> Observer:
        """Who is shown the symbols."""


@dataclass
class EncodingJob(_Known):
    """Known symbols to be written; `encoder.finish()` gives the stream."""

    encoder: SymbolEncoder = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = SymbolEncoder(self.point.bits)

    def _observer(self) -> Observer:
        return self.encoder


@dataclass
class ObservingJob(_Known):
    """Known symbols of which nothing is written: the observer gets what an encoder would."""

    observer: Observer

    def _observer(self) -> Observer:
        return self.observer


@dataclass
class DecodingJob(Tile):
    """A stream to be read; `decoder.finish()` says whether its end is as it should be.

    Raises:
        BitstreamError: the head of the payload is not valid.
    """

    payload: bytes | memoryview
    decoder: SymbolDecoder = field(init=False)

    def __post_init__(self) -> None:
        self.decoder = SymbolDecoder(self.payload, self.point.bits)

    def mixture(self, place: Place, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array) -> UInt8Array:
        """See `EncodingJob.mixture`."""
        return self.decoder.mixture(weights, means, inv_scales)

    def mixture_of(
        self, symbols: UInt8Array | None, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array
    ) -> UInt8Array:
        """See `EncodingJob.mixture_of`; there are no symbols to be given, they are found here."""
        return self.decoder.mixture(weights, means, inv_scales)

    def table(self, place: Place, rows: npt.NDArray[np.int32], tables: Tables) -> UInt8Array:
        """See `EncodingJob.table`."""
        return self.decoder.table(rows, tables)

    def table_of(self, symbols: UInt8Array | None, rows: npt.NDArray[np.int32], tables: Tables) -> UInt8Array:
        """See `mixture_of`."""
        return self.decoder.table(rows, tables)

    def raw(self, place: Place, count: int) -> UInt8Array:
        """See `EncodingJob.raw`."""
        return self.decoder.raw(count)


@dataclass
class BeginningJob(DecodingJob):
    """The beginning of a stream, for backends that ask; what is missing comes out as `BeginningDecoder` says.

    Raises:
        BitstreamError: not even the head of the payload is there, or it is not valid.
    """

    decoder: BeginningDecoder = field(init=False)

    def __post_init__(self) -> None:
        self.decoder = BeginningDecoder(self.payload, self.point.bits)


Job = EncodingJob | DecodingJob | ObservingJob


def _given(symbols: UInt8Array | None) -> UInt8Array:
    if symbols is None:
        raise ValueError("a job of known symbols has to be given them")
    return symbols


_Tile = TypeVar("_Tile", bound=Tile)


def batches(jobs: Sequence[_Tile], most: int) -> Iterator[Sequence[_Tile]]:
    """The jobs in order, in parts of at most `most` positions after padding to the largest, at least one job each."""
    start, height, width = 0, 0, 0
    for i, job in enumerate(jobs):
        height, width = max(height, job.height), max(width, job.width)
        if i > start and (i + 1 - start) * height * width > most:
            yield jobs[start:i]
            start, height, width = i, job.height, job.width
    if jobs:
        yield jobs[start:]
