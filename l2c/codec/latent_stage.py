"""Latents <-> payloads: P and the coder on a device, tile by tile, and what happens where they fail.

A tile is a stream of its own, so tiles are coded in parallel. Every machine decodes the same integers; one that does
not is caught by a known answer when the codec is made, by the hash at the end of a stream, and by the CRC of all
latents, and is helped by a second implementation of P.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from l2c import ops
from l2c.arrays import Symbols
from l2c.codec.support import first_line, naming
from l2c.entropy import FloatModel
from l2c.entropy.coder import BeginningJob, DecodingJob, EncodingJob, Job
from l2c.errors import BackendError, BitstreamError, L2CWarning, LimitError
from l2c.format.bitstream import Bitstream, Header, Limits
from l2c.format.levels import OperatingPoint
from l2c.format.tiles import Box, latent_tiles
from l2c.models import Model

MOST_AGAIN = 1 << 22  # pixels
_float_lock = threading.Lock()
_Job = TypeVar("_Job", bound=DecodingJob)


@dataclass(frozen=True)
class Latents:
    """Symbols of one picture, [c, h, w] of the quantiser's dtype, and what the header must say of them."""

    symbols: Symbols
    point: OperatingPoint


class Written(NamedTuple):
    """A picture's streams, one for each tile, with the channels in use; `latents` are what they decode to."""

    latents: Latents
    payloads: list[bytes]
    used: list[int]


class ReadTiles(NamedTuple):
    """Some tiles of a file.

    Attributes:
        symbols: [c, h, w] of each, by number. lost: numbers of those of which nothing could be read.
        partial: of those that end too early, and are predicted from there on.
    """

    symbols: dict[int, Symbols]
    lost: list[int]
    partial: list[int]


class LatentStage:
    """P and the coder of a model on a device.

    Args:
        backend: see `Codec`.
        threads: None: as many as torch uses.
        limits: what a file may ask for.
        most_again: pixels of what PyTorch decodes again where the backend fails.
    Raises:
        BackendError: the backend cannot run here, or computes other integers than it should.
    """

    def __init__(
        self,
        model: Model,
        device: torch.device,
        backend: str,
        threads: int | None,
        limits: Limits,
        most_again: int = MOST_AGAIN,
    ) -> None:
        ops.cpp_extension().cpu()  # that L2C_CPU says what cannot be is no reason to take another backend
        self.device, self.threads, self.most_again = device, threads, most_again
        self.backend, *others = model.integer.chain(backend, device)
        self._model, self._s, self._limits = model, model.transform.s, limits
        self._quantiser = model.config.transform.quantiser
        self._trusted = {model.integer.definition: True}
        self._float: FloatModel | None = None
        # A wrong integer ruins a picture, so every device proves itself once (DESIGN 3.5).
        for name, following in itertools.zip_longest([self.backend, *others], others):
            try:
                model.integer.check(model.known_answer, name, device)
                self.backend = name
                break
            except BackendError as error:
                if following is None:
                    raise
                instead = model.integer.backends()[following].spoken
                warnings.warn(f"{error}; using {instead}", L2CWarning, stacklevel=3)

    def shape(self, header: Header) -> tuple[int, int, int]:
        """c, and rows and columns of a picture's latents."""
        return self._model.config.transform.c, -(-header.height // self._s), -(-header.width // self._s)

    def canvas(self, box: Box, bits: int) -> Symbols:
        """Room for the symbols of a box, [c, height, width]: those of latents that are zero."""
        shape = self._model.config.transform.c, box.height, box.width
        return np.full(shape, self._quantiser.zero(bits), dtype=self._quantiser.dtype)

    def write(self, sizes: list[tuple[int, int]], latents: list[Latents], tile: int) -> list[Written]:
        """The streams of every picture, all tiles coded in one call."""
        jobs, boxes = [], [latent_tiles(height, width, tile, self._s) for height, width in sizes]
        for part, mine in zip(latents, boxes):
            for box in mine:
                symbols = np.ascontiguousarray(part.symbols[(slice(None), *box.slices)])
                used = self._quantiser.used_channels(torch.from_numpy(symbols), part.point.bits)
                jobs.append(EncodingJob(box.height, box.width, part.point, used, symbols))
        coded = zip(jobs, self.code(jobs, self.backend))
        results = []
        for part, places in zip(latents, boxes):
            tiles = list(itertools.islice(coded, len(places)))
            if not self._quantiser.is_final:
                canvas = np.empty_like(part.symbols)
                for (_, symbols), box in zip(tiles, places):
                    canvas[(slice(None), *box.slices)] = symbols
                part = replace(part, symbols=canvas)
            results.append(Written(part, [job.encoder.finish() for job, _ in tiles], [job.used for job, _ in tiles]))
        return results

    def code(self, jobs: Sequence[Job], backend: str) -> list[Symbols]:
        """P and the coder. What the kernels fail at, for want of memory say, the CPU does."""
        threads = self.threads if self.threads is not None else torch.get_num_threads()
        try:
            return self._model.integer.code(jobs, backend, self.device, threads)
        except RuntimeError as error:
            spare = self._model.integer.backends()[backend].spare
            if not spare:
                raise
            self.warn_of_device(error, f"using {self._model.integer.backends()[spare].spoken}")
            return self._model.integer.code(jobs, spare, self.device, threads)

    def read(self, streams: Sequence[Bitstream], names: Sequence[str] | None = None) -> list[Symbols]:
        """Entropy-decode files of this codec's model, all tiles together: symbols [c, h, w] each.

        Section CRCs hold at this point, so a failing end-of-stream check or latent CRC means that this machine
        computed other integers than the encoder's, or that the file was made to be wrong. See `_read_tile` and
        `_read_again`.

        Args:
            names: what errors call each stream, none by default.
        Raises:
            BitstreamError: the payload is not what the header promises, whichever way it is decoded.
            LimitError: a thin picture whose latents would cover far more pixels than the limits allow.
        """
        names = names or [""] * len(streams)
        for name, stream in zip(names, streams):
            with naming(name):
                self.check_limits(stream.header.width, stream.header.height, stream.header.tile_size)
        try:
            results = self.read_plainly(streams, self.backend)
        except BitstreamError:
            results = []
            for name, stream in zip(names, streams):
                with naming(name):
                    results.append(self._read_tiles(stream))
        for i, (name, stream) in enumerate(zip(names, streams)):
            if not crc_holds(stream, results[i]):
                with naming(name):
                    results[i] = self._read_again(stream)
        return results

    def read_tiles(self, stream: Bitstream, numbers: Sequence[int], *, conceal: bool = False) -> ReadTiles:
        """Entropy-decode some tiles of a file. Every tile is checked by its own stream, not by the CRC of all latents.

        Args:
            numbers: of the tiles, all of which were read from the file (`Bitstream.skipped`).
            conceal: what cannot be decoded is reported instead of raised.
        Raises:
            BitstreamError: as `read`. LimitError: likewise.
        """
        header = stream.header
        self.check_limits(header.width, header.height, header.tile_size)
        self._check_head(stream)
        if not stream.skipped.isdisjoint(numbers):
            raise BitstreamError("tiles that are needed were not read from the file")
        damaged = set(stream.damaged_tiles)
        jobs: dict[int, DecodingJob] = {}
        lost, partial, symbols = [n for n in numbers if n in damaged], [], {}
        for number in numbers:
            try:
                if number not in damaged:
                    jobs[number] = self._job(stream, number, DecodingJob)
            except BitstreamError:
                if not conceal:
                    raise
                lost.append(number)
        try:
            symbols = dict(zip(jobs, self.code(list(jobs.values()), self.backend)))
            for job in jobs.values():
                job.decoder.finish()
        except BitstreamError:
            symbols = {}
            for number, job in jobs.items():
                try:
                    symbols[number] = self._read_tile(job)
                except BitstreamError:
                    if not conceal:
                        raise
                    lost.append(number)
        for number in [n for n in lost if n in stream.beginnings]:
            found = self._read_beginning(stream, number)
            if found is not None:
                symbols[number] = found
                lost.remove(number)
                partial.append(number)
        if lost and not conceal:
            raise BitstreamError(f"tiles {', '.join(map(str, sorted(lost)))} are damaged")
        return ReadTiles(symbols, sorted(lost), sorted(partial))

    def _read_beginning(self, stream: Bitstream, number: int) -> Symbols | None:
        """Symbols of a tile that the end of the file cuts short, predicted from there on; None: nothing can be said.

        Backends that ask are slow, so this is for tiles of a size that they are worth.
        """
        box = stream.header.tile_box(number)
        backends = self._model.integer.backends()
        asked = (name for name, part in backends.items() if part.asks and not part.unavailable(self.device))
        backend = next((name for name in asked if self._is_trusted(name)), None)
        if backend is None or box.height * box.width > self.most_again:
            return None
        try:
            job = self._job(stream, number, BeginningJob)
            (symbols,) = self.code([job], backend)
        except BitstreamError:
            return None
        return symbols if job.decoder.arrived else None

    def read_queued(self, streams: Sequence[Bitstream]) -> tuple[list[Tensor], Callable[[], bool]] | None:
        """As `read`, queued on the device: symbols that it will hold, and what waits for it and says if they are right.

        None: another backend, or a tile too large. A device that fails raises its RuntimeError.

        The check raises BitstreamError where a stream does not end as it should, and returns whether all CRCs hold.
        """
        jobs, places = self.reading_jobs(streams)
        queued = self._model.integer.backends()[self.backend].queue(jobs, self.device)
        if queued is None:
            return None
        tiles, check = queued
        kind = torch.from_numpy(np.empty(0, self._quantiser.dtype)).dtype
        symbols = [torch.empty(self.shape(stream.header), dtype=kind, device=self.device) for stream in streams]
        for (number, box), tile in zip(places, tiles):
            symbols[number][(slice(None), *box.slices)] = tile

        def holds() -> bool:
            check()
            return all(crc_holds(stream, part.cpu().numpy()) for stream, part in zip(streams, symbols))

        return symbols, holds

    def _read_tiles(self, stream: Bitstream) -> Symbols:
        """As `read_plainly`, tile by tile, each with help where it fails."""
        canvas = np.empty(self.shape(stream.header), dtype=self._quantiser.dtype)
        jobs, places = self.reading_jobs([stream])
        for job, (_, box) in zip(jobs, places):
            canvas[(slice(None), *box.slices)] = self._read_tile(job)
        return canvas

    def _read_tile(self, job: DecodingJob) -> Symbols:
        """Decode a tile; where that fails, once more with another implementation of P.

        Where that fails as well, the file is at fault.
        """
        try:
            return self._read_one(job, self.backend)
        except BitstreamError as error:
            failure = error
        backend = self._checking_backend(job.height * job.width)
        if backend is not None:
            with contextlib.suppress(BitstreamError, RuntimeError, MemoryError):  # whatever it is, the first one counts
                symbols = self._read_one(job, backend)
                self._warn_of_latents(backend, str(failure))
                return symbols
        raise BitstreamError(f"the latents cannot be decoded: {failure}") from None

    def _read_one(self, job: DecodingJob, backend: str) -> Symbols:
        again = replace(job)  # reads from the beginning
        (symbols,) = self.code([again], backend)
        again.decoder.finish()
        return symbols

    def _read_again(self, stream: Bitstream) -> Symbols:
        """Decode a file whose tiles all end as they should, but whose latents have another CRC than the header says.

        The end of a stream holds a hash of its symbols, but what becomes of them afterwards is the CRC's to see.
        """
        header = stream.header
        backend = self._checking_backend(header.width * header.height // self._s**2)
        if backend is not None:
            with contextlib.suppress(BitstreamError, RuntimeError, MemoryError):
                (symbols,) = self.read_plainly([stream], backend)
                if crc_holds(stream, symbols):
                    self._warn_of_latents(backend, "other latents than the CRC of the header says")
                    return symbols
        raise BitstreamError("the decoded latents do not match the CRC of the header")

    def _checking_backend(self, positions: int) -> str | None:
        """What a failure to decode so many latent positions is checked with: a backend that computes rightly here.

        PyTorch takes 16 times as long and the reference 200 times, which a file of 60 bytes could otherwise ask for: so
        they are for small pictures and tiles, and the reference for machines where nothing else computes rightly.
        """
        small = positions * self._s**2 <= self.most_again
        others = self._model.integer.second_opinions(self.backend, None if small else 1)
        return next(filter(self._is_trusted, others), None)

    def _is_trusted(self, backend: str) -> bool:
        """Whether a backend gives the known answer here; remembered."""
        if backend not in self._trusted:
            try:
                self._model.integer.check(self._model.known_answer, backend, self.device)
                self._trusted[backend] = True
            except (RuntimeError, MemoryError):  # BackendError is one; a device may have more to say
                self._trusted[backend] = False
        return self._trusted[backend]

    def _warn_of_latents(self, backend: str, reason: str) -> None:
        warnings.warn(
            f"the {self.backend} backend decoded wrongly on this machine ({reason}); the {backend} backend was used",
            L2CWarning,
            stacklevel=5,
        )

    def warn_of_device(self, error: RuntimeError, instead: str) -> None:
        """Say that the device failed and what is done instead; what it had in its cache is given back."""
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        warnings.warn(f"{self.device} failed ({first_line(error)}); {instead}", L2CWarning, stacklevel=4)

    def check_limits(self, width: int, height: int, tile: int) -> None:
        """A picture one pixel wide has latents s pixels wide: bound what they cover, before anything is allocated."""
        s = self._s
        for what, (w, h), limit, name in (
            ("picture", (width, height), self._limits.max_pixels, "max_pixels"),
            ("tile", (min(width, tile), min(height, tile)), self._limits.max_tile_pixels, "max_tile_pixels"),
        ):
            covered = (-(-w // s) * s) * (-(-h // s) * s)
            if limit is not None and covered > 2 * limit:
                raise LimitError(
                    f"a {what} of {w}x{h} pixels has latents for {covered} pixels, "
                    f"the limit is {2 * limit} (twice Limits.{name})"
                )

    def read_plainly(self, streams: Sequence[Bitstream], backend: str) -> list[Symbols]:
        """As `read` with one backend, which nothing helps and no CRC of the latents checks."""
        canvases = [np.empty(self.shape(stream.header), dtype=self._quantiser.dtype) for stream in streams]
        jobs, places = self.reading_jobs(streams)
        for (number, box), job, symbols in zip(places, jobs, self.code(jobs, backend)):
            job.decoder.finish()
            canvases[number][(slice(None), *box.slices)] = symbols
        return canvases

    def reading_jobs(self, streams: Sequence[Bitstream]) -> tuple[list[DecodingJob], list[tuple[int, Box]]]:
        """A job for every tile, and where it belongs: (number of the stream, box in latents)."""
        jobs: list[DecodingJob] = []
        places = []
        for number, stream in enumerate(streams):
            self._check_head(stream)
            for tile, box in enumerate(self.tile_boxes(stream.header)):
                jobs.append(self._job(stream, tile, DecodingJob))
                places.append((number, box))
        return jobs, places

    def tile_boxes(self, header: Header) -> list[Box]:
        """The tiles of a file, in latents."""
        return latent_tiles(header.height, header.width, header.tile_size, self._s)

    def _job(self, stream: Bitstream, number: int, kind: type[_Job]) -> _Job:
        """What reads a tile of a file whose head was checked. Raises BitstreamError where the payload's cannot be."""
        box = stream.header.tile_box(number).covering(self._s)
        payload = stream.beginnings.get(number, stream.payloads[number])
        return kind(box.height, box.width, stream.header.point, stream.tiles[number].channels, payload)

    def _check_head(self, stream: Bitstream) -> None:
        """Raises BitstreamError: what the head says does not fit the model."""
        bits, c = stream.header.latent_bits, self._model.config.transform.c
        least, most = self._quantiser.least_bits, self._model.config.bits
        if not least <= bits <= most:
            raise BitstreamError(f"b is {bits}, the model has {least}..{most} bits")
        used = max(tile.channels for tile in stream.tiles)
        if used > c:
            raise BitstreamError(f"a tile uses {used} channels, the model has {c}")

    def float_probability(self) -> FloatModel:
        """The float form of P on this codec's device, made on first use: what gradients come from."""
        with _float_lock:
            if self._float is None:
                with torch.inference_mode(False), torch.device("cpu"):
                    made = self._model.integer.to_float().float()
                    made = made.eval().requires_grad_(False)
                    made = made.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                self._float = made
            return self._float


def crc_holds(stream: Bitstream, symbols: Symbols) -> bool:
    """Whether latents, [c, h, w], are those that the header's CRC-32 is of."""
    return zlib.crc32(symbols) == stream.header.latents_crc32
