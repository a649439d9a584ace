"""Decoding batches of tiles on a device: from payloads to latents without the host between groups.

A batch has one level. What differs between two batches of the same tile sizes (streams, used channels) is data, so on
a GPU the sequence of launches is recorded once and replayed (`entropy.device.Queue`). Runs on the CPU, too, under
Triton's interpreter; that is for tests. Known latents are coded by `walk` with a `DeviceEngine`: heads on the device,
symbols on the host.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c import ops
from l2c.architectures import tenths_of
from l2c.entropy.coder import DecodingJob, EncodingJob, Job
from l2c.entropy.device import Queue, load_streams, padded_positions
from l2c.entropy.hyperprior.backends.cpu import CpuBackend
from l2c.entropy.hyperprior.backends.device_level import DeviceEngine, DeviceLevel
from l2c.entropy.hyperprior.backends.walk import walk
from l2c.entropy.hyperprior.integer_weights import (
    HyperpriorWeights,
    IntegerLevel,
    num_wavefronts,
    side_shape,
    wavefront,
)
from l2c.errors import BackendError, BitstreamError
from l2c.format.levels import OperatingPoint
from l2c.ops import extension, reference
from l2c.ops.contract import BAD_LATENT, DIGIT_INV_SCALE, DIGIT_MEAN, DIGIT_WEIGHT, MAX_LANES, WINDOW

MOST_POSITIONS = 1 << 16  # latent positions of a batch: some kilobytes each on the device
_PIECE_SYMBOLS = 1 << 14  # that one launch decodes where there is no context
_KEPT = 8  # geometries, with their buffers and graphs

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Piece:
    """What is decoded in one go.

    Attributes:
        first: of its positions in `Geometry.places`. most: how many a tile has at most.
        positions: int32 [N], how many each tile has.
        ends_group: whether escapes follow; of the group that began with piece `group`.
    """

    first: int
    most: int
    positions: npt.NDArray[np.int32]
    ends_group: bool
    group: int


class Geometry:
    """Buffers and launch order for tiles of given sizes at one level."""

    def __init__(self, level: DeviceLevel, sizes: Sizes) -> None:
        self.level, self.sizes, self.count = level, sizes, len(sizes)
        device, m, n = level.device, level.level.c, level.level.n
        self.height, self.width = max(h for h, _ in sizes), max(w for _, w in sizes)
        N = self.count

        def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        pieces, places = _plan(level.level, sizes)
        self.pieces = pieces
        self.places = torch.from_numpy(places).to(device)
        self.positions = [torch.from_numpy(piece.positions).to(device) for piece in pieces]
        self.row_sizes = [torch.stack((torch.ones_like(part), part), dim=1) for part in self.positions]
        self.total = places.shape[1] * m
        most = max(piece.most for piece in pieces)
        self.latents = zeros((N, m, self.height, self.width), torch.int16)
        self.taps = self.heads = None
        if level.level.kind == "context":
            self.taps = zeros((N, self.height + 2, self.width + 4, m), torch.int8)
            self.heads = level.head_buffers(N, most)
        side = [side_shape(n, h, w) for h, w in sizes]
        self.side_sizes = [(rows, columns) for _, rows, columns in side]
        self.z = zeros((N, max(rows * columns * n for _, rows, columns in side)), torch.uint8)
        self.side_counts = torch.tensor([c * h * w for c, h, w in side], dtype=torch.int32, device=device)
        self.side_channels = torch.full((N,), n, dtype=torch.int32, device=device)
        self.hyper: list[Tensor] = []
        if n:
            rows, columns = (max(size[axis] for size in self.side_sizes) for axis in (0, 1))
            self.hyper = level.hyper_buffers(N, rows, columns)
            base = torch.tensor(self.side_sizes, dtype=torch.int32, device=device)
            self.hyper_sizes = [base << scale for scale in range(3)]
        k = 0 if level.level.kind == "factorized" else 3
        self.weights, self.means, self.inv_scales = (zeros((k * N * most * m,), torch.int16) for _ in range(3))
        self.window = zeros((N * most * m * WINDOW if k else 0,), torch.int32)
        self.first = zeros((N * most * m,), torch.int16)
        self.symbols = zeros((N * most * m,), torch.uint8)
        self.kept = zeros((N, self.total), torch.uint8)
        self.start, self.excess = (zeros((N, self.total), torch.int16) for _ in range(2))
        self.digits = zeros((N, 0), torch.uint8)
        self.told = zeros((N,), torch.int64)
        self.group_told = zeros((len(pieces), N), torch.int32)
        self.digit_cdf = torch.tensor(_digit_cdf(), dtype=torch.int32, device=device)
        # What differs between batches of this geometry.
        self.bits = torch.full((N,), 8, dtype=torch.int32, device=device)
        self.used = zeros((N,), torch.int32)
        self.counts, self.group_counts = (zeros((len(pieces), N), torch.int32) for _ in range(2))
        self.begins = zeros((len(pieces), N), torch.int64)
        self.lanes, self.status = (zeros((N,), torch.int32) for _ in range(2))
        self.states = zeros((N, MAX_LANES), torch.int64)
        self.position, self.next_word, self.end = (zeros((N,), torch.int64) for _ in range(3))
        self.words = zeros((0,), torch.int16)
        self.graphs: dict[Any, Any] = {}

    def load(self, jobs: Sequence[DecodingJob]) -> int:
        """Copy what these jobs need to the device. Returns the most lanes of a stream."""
        used = np.array([job.used for job in jobs], dtype=np.int32)
        counts = np.stack([piece.positions * used for piece in self.pieces])
        self.host_begins = np.cumsum(counts.astype(np.int64), axis=0) - counts
        groups = np.array([piece.group for piece in self.pieces])
        of_groups = np.zeros_like(counts)
        np.add.at(of_groups, groups, counts)
        self.host_groups = of_groups
        self.used.copy_(torch.from_numpy(used))
        self.counts.copy_(torch.from_numpy(counts.astype(np.int32)))
        self.group_counts.copy_(torch.from_numpy(of_groups.astype(np.int32)))
        self.begins.copy_(torch.from_numpy(self.host_begins))
        # A digit of 255 costs more than 8 bits, every escape has one other digit.
        room = self.total + max(len(job.payload) for job in jobs)
        if self.digits.shape[1] < room:
            self.digits = torch.zeros((self.count, room + room // 4), dtype=torch.uint8, device=self.digits.device)
            self.graphs.clear()
        for part in (self.status, self.told, self.latents):
            part.zero_()
        if self.taps is not None:
            self.taps.zero_()
        if self.level.level.kind == "factorized":
            self.excess.zero_()
        return load_streams(self, [job.payload for job in jobs])

    def run(self, most_lanes: int) -> None:
        """Decode everything that is loaded."""
        kernels, level = self.level.kernels, self.level.level
        stream = (self.words, self.next_word, self.end, self.states, self.position, self.lanes, self.status)
        hyper = None
        if level.n:
            kernels.rans_table_fwd(*stream, self.side_counts, self.side_channels, self.level.z_cdf, self.z, most_lanes)
            for i, (rows, columns) in enumerate(self.side_sizes):
                z = self.z[i, : rows * columns * level.n].view(rows, columns, level.n)
                self.level.load_side(self.hyper, i, z)
            hyper = self.level.run_hyper(self.hyper, self.hyper_sizes)
        for number, piece in enumerate(self.pieces):
            count, begin = self.counts[number], self.begins[number]
            capacity = piece.most * level.c
            symbols = self.symbols[: self.count * capacity].view(self.count, capacity)
            if hyper is None:
                kernels.rans_table_fwd(*stream, count, self.used, self.level.y_cdf, symbols, most_lanes)
            else:
                mixtures = self._mixtures(number, piece, hyper, capacity)
                window = self.window[: self.count * capacity * WINDOW].view(self.count, capacity, WINDOW)
                first = self.first[: self.count * capacity].view(self.count, capacity)
                kernels.mixture_window_fwd(count, self.bits, *mixtures, window, first)
                kernels.rans_decode_fwd(*stream, count, self.bits, *mixtures, window, first, symbols, most_lanes)
            kernels.append_fwd(symbols, count, begin, self.kept)
            if piece.ends_group:
                self._end_group(piece, stream, most_lanes)

    def _mixtures(self, number: int, piece: _Piece, hyper: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and inverse scales int16 [3, N, S] of a piece."""
        level, kernels = self.level.level, self.level.kernels
        size = 3 * self.count * capacity
        weights, means, inv_scales = (
            part[:size].view(3, self.count, capacity) for part in (self.weights, self.means, self.inv_scales)
        )
        raw, places = hyper, self.places if self.heads is None else None
        if self.heads is not None:
            assert self.taps is not None
            gathered, joint, hidden, raw = self.heads
            gathered, joint, raw = (_first(part, piece.most) for part in (gathered, joint, raw))
            kernels.context_inputs_fwd(
                self.taps, hyper, self.places, self.positions[number], gathered, joint, piece.first
            )
            hidden = [_first(part, piece.most) for part in hidden]
            self.level.run_heads(gathered, joint, hidden, raw, self.row_sizes[number])
        kernels.gaussian_params_fwd(
            raw, places, self.counts[number], self.used, self.begins[number], weights, means, inv_scales, self.start,
            self.excess, level.c, level.fraction, piece.first,
        )  # fmt: skip
        return weights, means, inv_scales

    def _end_group(self, piece: _Piece, stream: tuple[Tensor, ...], most_lanes: int) -> None:
        kernels, level, number = self.level.kernels, self.level.level, piece.group
        group = self.pieces[number]
        count, begin = self.group_counts[number], self.begins[number]
        kernels.escapes_fwd(
            *stream, count, begin, self.digit_cdf, self.kept, self.excess, self.digits, self.told,
            self.group_told[number], most_lanes,
        )  # fmt: skip
        capacity = (piece.first + piece.most - group.first) * level.c
        kernels.place_fwd(
            self.kept, self.start if level.kind != "factorized" else self.level.offset, self.excess, self.places,
            count, self.used, begin, self.level.shift, self.latents, self.taps, self.status, capacity, level.fraction,
            group.first,
        )  # fmt: skip

    def hashed(
        self,
        z: npt.NDArray[np.uint8],
        kept: npt.NDArray[np.uint8],
        digits: npt.NDArray[np.uint8],
        told: npt.NDArray[np.int32],
        begins: npt.NDArray[np.int64],
        groups: npt.NDArray[np.int32],
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of each stream's symbols as csrc/core/rans.h hashes them: four for each of a table.

        Args:
            z, kept, digits, told: of a run. begins, groups: `host_begins` and `host_groups` of its batch.
        """
        side = self.side_counts.tolist()
        for i in range(self.count):
            parts, at = [_as_words(z[i, : side[i]])], 0
            for group in (piece.group for piece in self.pieces if piece.ends_group):
                symbols = kept[i, begins[group, i] : begins[group, i] + groups[group, i]]
                parts.append(_as_words(symbols) if self.level.level.kind == "factorized" else symbols)
                parts.append(digits[i, at : at + told[group, i]])
                at += told[group, i]
            yield np.concatenate(parts)


def _first(buffer: Tensor, positions: int) -> Tensor:
    """A packed [N, 1, positions, channels] in the memory of one with more positions."""
    count, channels = buffer.shape[0], buffer.shape[3]
    return buffer.view(-1)[: count * positions * channels].view(count, 1, positions, channels)


def _as_words(symbols: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return symbols.astype("<u4").view(np.uint8)


def _digit_cdf() -> list[int]:
    parameters = [DIGIT_WEIGHT], [DIGIT_MEAN], [DIGIT_INV_SCALE]
    return [reference.mixture_cdf(i, *parameters, 8) for i in range(256)]


def _plan(level: IntegerLevel, sizes: Sizes) -> tuple[list[_Piece], npt.NDArray[np.int32]]:
    """The pieces, and the (row, column) of all positions in coding order, int32 [N, T, 2]."""
    pieces: list[_Piece] = []
    places: list[npt.NDArray[np.int32]] = []

    def add(found: list[tuple[Any, Any]], ends_group: bool, group: int) -> None:
        positions = np.array([len(rows) for rows, _ in found], dtype=np.int32)
        most = int(positions.max())
        part = np.zeros((len(sizes), most, 2), dtype=np.int32)
        for i, (rows, columns) in enumerate(found):
            part[i, : len(rows), 0], part[i, : len(rows), 1] = rows, columns
        pieces.append(_Piece(sum(piece.most for piece in pieces), most, positions, ends_group, group))
        places.append(part)

    if level.kind == "context":
        for t in range(max(num_wavefronts(*size) for size in sizes)):
            found = [wavefront(t, *size) for size in sizes]
            if any(len(rows) for rows, _ in found):
                add(found, True, len(pieces))
    else:
        step, last = max(1, _PIECE_SYMBOLS // level.c), max(height * width for height, width in sizes)
        for first in range(0, last, step):
            numbers = [np.arange(first, max(first, min(first + step, h * w))) for h, w in sizes]
            found = [np.divmod(part, width) for part, (_, width) in zip(numbers, sizes)]
            add(found, first + step >= last, 0)
    return pieces, np.concatenate(places, axis=1)


class DeviceCoder:
    """Codes tiles on one device.

    Args:
        weights: the model. device: a CUDA device with its index, or the CPU under Triton's interpreter.
        cpu: the same model in C++, for `prove`.
        coder: whose range coder, see `ops.integer_kernels`.
    Attributes:
        proved: whether `prove` has found nothing wrong here.
    Raises:
        BackendError: the kernels cannot run there.
    """

    def __init__(self, weights: HyperpriorWeights, device: torch.device, cpu: CpuBackend, coder: str = "auto") -> None:
        reason = extension.triton_reason(device)
        if reason:
            raise BackendError(reason)
        self.weights, self.device, self.proved = weights, device, False
        self.kernels = ops.integer_kernels(device, coder)
        self.queue = Queue(device)
        self._cpu = cpu
        self._levels: dict[int, DeviceLevel] = {}
        self._geometries: OrderedDict[tuple[int, Sizes], Geometry] = OrderedDict()

    def level(self, index: int) -> DeviceLevel:
        """A level, brought to the device on first use. Where work is queued, see `Queue.alone`."""
        if index not in self._levels:
            self._levels[index] = DeviceLevel(self.weights.levels[index], self.device, self.kernels)
        return self._levels[index]

    def geometry(self, index: int, sizes: Sizes) -> Geometry:
        """The buffers for tiles of these sizes, made on first use; the least recently used ones are dropped."""
        key = index, sizes
        if key in self._geometries:
            self._geometries.move_to_end(key)
        else:
            kept = padded_positions(sizes) + sum(padded_positions(other) for _, other in self._geometries)
            while self._geometries and (kept > 2 * MOST_POSITIONS or len(self._geometries) >= _KEPT):
                kept -= padded_positions(self._geometries.popitem(last=False)[0][1])
            self._geometries[key] = Geometry(self.level(index), sizes)
        return self._geometries[key]

    def decode(self, jobs: Sequence[DecodingJob]) -> tuple[list[Tensor], Callable[[], None]]:
        """Decode streams of one level.

        Returns:
            latents: int16 [M, height, width] on the device for each job.
            check: waits for the device and raises BitstreamError where a stream is not what the headers promise. Work
                on the latents can be queued before; nothing made of them may be handed out before.
        Raises:
            BitstreamError: the head of a stream is not valid.
        """
        order = sorted(range(len(jobs)), key=lambda i: (jobs[i].height, jobs[i].width))
        place = {number: i for i, number in enumerate(order)}
        jobs = [jobs[i] for i in order]
        index = self.weights.index_of(jobs[0].point)
        with self.queue.alone() as caller:
            geometry = self.geometry(index, tuple((job.height, job.width) for job in jobs))
            most_lanes = geometry.load(jobs)
            self.queue.replay(geometry.graphs, most_lanes, lambda: geometry.run(most_lanes))
            # Copies: another call may use the geometry before these are read.
            latents = [geometry.latents[i, :, : job.height, : job.width].clone() for i, job in enumerate(jobs)]
            ends = geometry.status.clone(), geometry.end - geometry.next_word, geometry.states.clone()
            logs = geometry.z.clone(), geometry.kept.clone(), geometry.digits.clone(), geometry.group_told.clone()
            lanes = geometry.lanes.clone()
            begins, groups = geometry.host_begins, geometry.host_groups
            if caller is not None:  # their memory is not free before that stream has read them
                for made in (*latents, *ends, *logs, lanes):
                    made.record_stream(caller)

        def check() -> None:
            status, left, states = (part.cpu().numpy() for part in ends)
            if ((status == BAD_LATENT) & (left >= 0)).any():
                raise BitstreamError("range coder: a latent is out of range or has too many digits")
            z, kept, digits, told = (part.cpu().numpy() for part in logs)
            for i, hashed in enumerate(geometry.hashed(z, kept, digits, told, begins, groups)):
                ops.check_stream_end(int(status[i]), int(left[i]), states[i, : int(lanes[i])], hashed)

        return [latents[place[i]] for i in range(len(jobs))], check

    def code_known(self, job: Job) -> npt.NDArray[np.int16]:
        """Code known latents, heads on the device and symbols on the host; what comes out int16 [M, height, width]."""
        with self.queue.alone():
            index = self.weights.index_of(job.point)
            return walk(self.weights.levels[index], job, DeviceEngine(self.level(index)))

    def prove(self, height: int = 24, width: int = 40) -> None:
        """Code a tile with escapes and compare with the C++ coder, byte for byte, and the way back, also replayed.

        Once is enough: later calls return at once.

        Raises:
            BackendError: the kernels compute something else, or fail.
        """
        if self.proved:
            return
        reason = self._difference(height, width)
        if reason:
            raise BackendError(f"the triton backend on {self.device}: {reason}")
        self.proved = True

    def _difference(self, height: int, width: int) -> str:
        """What is wrong with the kernels; "" where nothing is."""
        rng, c = np.random.default_rng(0), self.weights.c
        level, point = self.weights.levels[0], OperatingPoint(tenths_of(self.weights.config.qualities[0]), 0, 8)
        latents = (rng.laplace(0, 2, (c, height, width)).round() * (1 << level.fraction)).astype(np.int16)
        latents[:, ::7, ::5] = rng.integers(-level.most, level.most + 1, latents[:, ::7, ::5].shape)
        latents[:, 0, 0] = level.most  # as many digits as there can be
        side = rng.integers(120, 137, side_shape(level.n, height, width)).astype(np.uint8)
        jobs = [EncodingJob(height, width, point, c, latents, side=side) for _ in range(2)]
        (expected,) = self._cpu.code(jobs[:1], self.device, 1)
        stream = jobs[0].encoder.finish()
        try:
            if not np.array_equal(self.code_known(jobs[1]), expected) or jobs[1].encoder.finish() != stream:
                return "its streams are not those of the C++ coder"
            for _ in range(3):
                (found,), check = self.decode([DecodingJob(height, width, point, c, stream)])
                check()
                if not np.array_equal(found.cpu().numpy(), expected):
                    return "it decodes other latents than were encoded"
        except Exception as error:  # whatever a compiler, a driver or a check has to say
            return f"it fails ({type(error).__name__}: {error})"
        finally:
            with self.queue.lock:
                self._geometries.clear()
        return ""
