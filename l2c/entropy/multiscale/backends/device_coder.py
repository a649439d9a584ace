"""P and the coder on a GPU: from payloads to symbols and back without the host between groups.

The same graph and the same streams as every backend's; here a padded batch of tiles runs through the kernels of
`l2c.kernels`, every launch into buffers that a geometry (the sizes of its tiles) keeps. What differs between two
batches of one geometry (qualities, used channels, streams) is data, so on a GPU the whole sequence, some 150 launches,
is recorded once as a CUDA graph and replayed: no host round trip between scales or groups.

Runs on the CPU, too, under Triton's interpreter; that is for tests.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c import ops
from l2c.entropy.coder import DecodingJob, EncodingJob, ObservingJob, Tile
from l2c.entropy.multiscale.backends.cpu import CpuBackend
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.entropy.multiscale.schedule import Turn, scale_sizes
from l2c.errors import BackendError, L2CWarning
from l2c.format.levels import OperatingPoint
from l2c.ops import extension
from l2c.ops.contract import (
    AVAILABLE,
    BAD_SYMBOL,
    MAX_LANES,
    STATE_LOW,
    WINDOW,
    IntegerLayer,
)
from l2c.ops.integers import PackedLayer, pack_layer, round_up

MOST_POSITIONS = 1 << 19  # latent positions of a batch: about 3 kB each on the device
_KEPT_POSITIONS = 2 * MOST_POSITIONS  # of all geometries that are kept, with their buffers and graphs
_KEPT_GEOMETRIES = 32
_CAPTURE_LOCK = threading.Lock()  # CUDA records one graph of a process at a time


def padded_positions(sizes: Sequence[tuple[int, int]]) -> int:
    """Latent positions of a batch of tiles, each padded to the largest height and width."""
    return len(sizes) * max(height for height, _ in sizes) * max(width for _, width in sizes)


@dataclass(frozen=True)
class _Group:
    """One turn of a geometry.

    Attributes:
        turn: of the walk.
        sizes: int32 [N, 2], rows and columns of the positions that are coded.
        capacity: S, symbols that a stream can have here, coded or not.
        shape: rows and columns that the batch has here.
    """

    turn: Turn
    sizes: npt.NDArray[np.int32]
    capacity: int
    shape: tuple[int, int]


class Geometry:
    """Buffers and launch order for tiles of given sizes."""

    def __init__(self, coder: DeviceCoder, sizes: Sequence[tuple[int, int]]) -> None:
        model, device = coder.model, coder.device
        p = model.config
        self.coder, self.sizes, self.count = coder, tuple(sizes), len(sizes)
        N, scales = self.count, p.num_scales
        per_scale = np.array([scale_sizes(h, w, scales) for h, w in sizes], dtype=np.int32)  # [N, M + 1, 2]
        largest = per_scale.max(axis=0)
        self.groups = self._plan(per_scale, largest)
        self.total = sum(group.capacity for group in self.groups)
        most = max(group.capacity for group in self.groups)
        K, head = p.num_mixtures, 3 * p.num_mixtures * max(p.channel_groups)

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.canvas = empty((N, model.c, *largest[0]), torch.uint8)
        self.extents = torch.from_numpy(np.ascontiguousarray(per_scale.transpose(1, 0, 2))).to(device)
        self.part_sizes = [torch.from_numpy(group.sizes).to(device) for group in self.groups]
        self.buffers = [empty((N, *largest[i + 1], coder.channels), torch.int8) for i in range(scales)]
        self.h1, self.h2 = (empty((N, *largest[1], coder.width), torch.int8) for _ in range(2))
        # Channels that no layer writes meet weights of zero.
        self.h1.zero_(), self.h2.zero_()
        self.raw = empty((N, *largest[1], head), torch.int16)
        self.weights, self.means, self.inv_scales = (empty((K * N * most,), torch.int16) for _ in range(3))
        self.window = empty((0,), torch.int32)
        self.first = empty((0,), torch.int16)
        self.coded = empty((self.total * N,), torch.uint8)
        # What differs between batches of this geometry.
        self.bits = empty((N,), torch.int32)
        self.used = empty((len(p.channel_groups) + 1, N), torch.int32)
        self.counts = empty((len(self.groups), N), torch.int32)
        self.prior = empty((N, 3 * K * model.c), torch.int16)
        self.first_bias = empty((scales, len(model.steps), N, p.width), torch.int32)
        self.lanes = empty((N,), torch.int32)
        self.status = empty((N,), torch.int32)
        self.states = empty((N, MAX_LANES), torch.int64)
        self.position, self.next_word, self.end = (empty((N,), torch.int64) for _ in range(3))
        self.words = empty((0,), torch.int16)
        self.start = self.freq = empty((N, 0), torch.int32)
        self.appended = empty((len(self.groups), N), torch.int64)
        self.graphs: dict[tuple[Any, ...], Any] = {}

    def _plan(self, per_scale: npt.NDArray[np.int32], largest: npt.NDArray[np.int32]) -> list[_Group]:
        plan = []
        for turn in self.coder.model.turns:
            sizes = np.array([turn.shape(*size) for size in per_scale[:, turn.scale].tolist()], dtype=np.int32)
            # A position is computed for every cell, also where it lies outside the picture.
            rows, columns = map(int, largest[turn.scale + (not turn.is_last_scale)])
            plan.append(_Group(turn, sizes, rows * columns * turn.size, (rows, columns)))
        return plan

    def load(self, jobs: Sequence[Tile]) -> None:
        """Copy what these jobs need to the device: everything that is no picture and no stream."""
        model = self.coder.model
        p = model.config
        groups = [*model.turns[1 : 1 + len(p.channel_groups)], model.turns[0]]  # the last scale has them all
        used = np.array([[turn.coded(job.used) for job in jobs] for turn in groups], dtype=np.int32)
        counts = np.stack([group.sizes.prod(axis=1) * used[self._used_row(group)] for group in self.groups]).astype(
            np.int32
        )
        self.host_counts = counts.astype(np.int64)
        self.bits.copy_(torch.tensor([job.point.bits for job in jobs], dtype=torch.int32, device="cpu"))
        self.used.copy_(torch.from_numpy(used))
        self.counts.copy_(torch.from_numpy(counts))
        self.appended.copy_(torch.from_numpy(np.cumsum(self.host_counts, axis=0) - self.host_counts))
        biases, priors = zip(*(self.coder.constants(job.point) for job in jobs))
        self.first_bias.copy_(torch.from_numpy(np.stack(biases, axis=2)))
        if model.prior is not None:
            self.prior.copy_(torch.from_numpy(np.stack(priors)))
        self.status.zero_()

    @staticmethod
    def _used_row(group: _Group) -> int:
        """Where `used` has the channels that are coded of this group."""
        return -1 if group.turn.is_last_scale else group.turn.group

    def coded_of(self, number: int) -> Tensor:
        """uint8 [N, S], the symbols of group `number` in coding order."""
        group = self.groups[number]
        begin = sum(part.capacity for part in self.groups[:number]) * self.count
        return self.coded[begin : begin + group.capacity * self.count].view(self.count, group.capacity)

    def parameters(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and inverse scales int16 [K, N, S] of the group that is at hand; K = 0 for a uniform prior."""
        group, N = self.groups[number], self.count
        model = self.coder.model
        K = 0 if group.turn.is_last_scale and model.prior is None else model.config.num_mixtures
        size = K * N * group.capacity
        w, m, v = (
            part[:size].view(K, N, group.capacity) if K else part[:0].view(0, N, group.capacity)
            for part in (self.weights, self.means, self.inv_scales)
        )
        return w, m, v

    def run(self, code: Callable[[int], None]) -> None:
        """All scales and groups: `code(number)` codes group `number`, whose parameters are at hand then."""
        kernels, model, coder = self.coder.kernels, self.coder.model, self.coder
        groups = len(model.config.channel_groups)
        before: Tensor | None = None
        for number, group in enumerate(self.groups):
            turn = group.turn
            used = self.used[self._used_row(group)]
            buffer = None if turn.is_last_scale else self.buffers[turn.scale]
            raw: Tensor | None = None
            if buffer is not None:
                if turn.index == 0:
                    kernels.start_scale_fwd(
                        self.canvas, self.extents[turn.scale], self.bits, coder.compand, before, buffer,
                        turn.scale, groups, model.config.width, AVAILABLE,
                    )  # fmt: skip
                    before = buffer
                self._step(group, buffer)
                raw = self.raw_of(group)
            elif model.prior is not None:
                raw = self.prior[:, None, None, :].expand(-1, *group.shape, -1)
            if raw is not None:
                kernels.mixture_params_fwd(
                    raw, turn.size, coder.exp, coder.inv_scale, self.part_sizes[number], used,
                    *self.parameters(number),
                )  # fmt: skip
            code(number)
            kernels.fill_fwd(
                self.coded_of(number), self.part_sizes[number], used, self.bits, coder.compand, self.canvas, buffer,
                turn.start, turn.size, turn.stride, turn.offset,
                turn.position * model.c + turn.start, model.values + turn.position * groups + turn.group,
                AVAILABLE,
            )  # fmt: skip

    def raw_of(self, group: _Group) -> Tensor:
        """int16 [N, R, C, 3 K g], the head's output of a group, in the memory that all groups share."""
        channels = 3 * self.coder.model.config.num_mixtures * group.turn.size
        cells = self.count * math.prod(group.shape)
        return self.raw.view(-1)[: cells * channels].view(self.count, *group.shape, channels)

    def _step(self, group: _Group, buffer: Tensor) -> None:
        conv, coder = self.coder.kernels.int_conv_fwd, self.coder
        w1, w2, w3, w4 = coder.steps[group.turn.index]
        cells = self.extents[group.turn.scale + 1]
        size = self.count * math.prod(group.shape) * coder.width
        h1, h2 = (part.view(-1)[:size].view(self.count, *group.shape, coder.width) for part in (self.h1, self.h2))
        q = buffer[..., coder.model.maps :]
        conv(buffer, w1.weight, self.first_bias[group.turn.scale, group.turn.index], w1.multiplier, cells, h1)
        conv(h1, w2.weight, w2.bias, w2.multiplier, cells, h2)
        conv(h2, w3.weight, w3.bias, w3.multiplier, cells, q, residual=h1)
        conv(q, w4.weight, w4.bias, w4.multiplier, cells, self.raw_of(group))

    def hashed(self, coded: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of each stream's symbols as csrc/core/rans.h hashes them, from `coded` and `host_counts`."""
        for i in range(self.count):
            parts, begin = [], 0
            for number, group in enumerate(self.groups):
                at = begin + i * group.capacity
                symbols = coded[at : at + counts[number, i]]
                if group.turn.is_last_scale and self.coder.model.prior is None:
                    symbols = symbols.astype("<u4").view(np.uint8)  # equally likely symbols are hashed as 32-bit values
                parts.append(symbols)
                begin += group.capacity * self.count
            yield np.concatenate(parts)

    # --- what `run` is called with ---------------------------------------------------------------------------------

    def decode_group(self, number: int, most_lanes: int) -> None:
        """Decode group `number` of all streams."""
        kernels = self.coder.kernels
        w, m, v = self.parameters(number)
        N, capacity = self.count, self.groups[number].capacity
        window = self.window[: N * capacity * WINDOW].view(N, capacity, WINDOW)
        first = self.first[: N * capacity].view(N, capacity)
        count = self.counts[number]
        if w.shape[0]:
            kernels.mixture_window_fwd(count, self.bits, w, m, v, window, first)
        kernels.rans_decode_fwd(
            self.words, self.next_word, self.end, self.states, self.position, self.lanes, self.status, count,
            self.bits, w, m, v, window, first, self.coded_of(number), most_lanes,
        )  # fmt: skip

    def gather_group(self, number: int) -> None:
        """Put the known symbols of group `number` in coding order."""
        group = self.groups[number]
        turn, used = group.turn, self.used[self._used_row(group)]
        self.coder.kernels.gather_fwd(
            self.canvas, self.part_sizes[number], used, self.coded_of(number), turn.start, turn.stride, turn.offset
        )

    def encode_group(self, number: int) -> None:
        """Append the intervals of group `number` to those of all streams."""
        self.gather_group(number)
        self.coder.kernels.mixture_intervals_fwd(
            self.coded_of(number), self.counts[number], self.bits, *self.parameters(number), self.start, self.freq,
            self.appended[number], self.status,
        )  # fmt: skip

    def replay(self, key: tuple[Any, ...], launch: Callable[[], None]) -> None:
        """Run `launch`; on a GPU the second time as a CUDA graph that is recorded then, and from there on.

        A launch that cannot be recorded stays as it is: the graph saves time and nothing else.
        """
        if self.coder.device.type != "cuda":
            launch()
        elif key not in self.graphs:
            launch()  # compiles every kernel, which a recording cannot
            self.graphs[key] = None
        else:
            if self.graphs[key] is None:
                graph = torch.cuda.CUDAGraph()
                try:
                    # On the stream that is current already: where recording fails, PyTorch leaves it so.
                    recording = torch.cuda.graph(graph, stream=self.coder.stream, capture_error_mode="thread_local")
                    with _CAPTURE_LOCK, recording:
                        launch()
                    self.graphs[key] = graph.replay
                except RuntimeError:
                    self.graphs[key] = launch
            self.graphs[key]()


class DeviceCoder:
    """Codes batches of tiles on one device.

    Args:
        model: P in integers.
        device: a CUDA device with its index, or the CPU under Triton's interpreter.
        coder: whose range coder, see `ops.integer_kernels`.
        cpu: the same model in C++, for `prove`; made where it is not given.
    Attributes:
        stream: where all work is queued, graphs included, on a GPU; else None. Calls from several threads or streams
            share buffers: one stream of its own keeps them in order.
    Raises:
        BackendError: the kernels cannot run there.
    """

    def __init__(
        self, model: IntegerWeights, device: torch.device, coder: str = "auto", cpu: CpuBackend | None = None
    ) -> None:
        reason = extension.triton_reason(device)
        if reason:
            raise BackendError(reason)
        self.kernels = ops.integer_kernels(device, coder)
        self.model, self.device = model, device
        self._cpu = cpu if cpu is not None else CpuBackend(model)
        self._coder, self._proved = coder, False
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        p = model.config
        self.width = round_up(p.width)
        # w4 reads whole blocks from q's first channel on, beyond q itself.
        self.channels = round_up(model.maps + self.width)
        self._geometries: OrderedDict[tuple[tuple[int, int], ...], Geometry] = OrderedDict()
        self._lock = threading.Lock()
        with self._alone():
            self.compand = torch.from_numpy(model.tables.compand).to(device)
            self.exp = torch.from_numpy(model.tables.exp.view(np.int16)).to(device)
            self.inv_scale = torch.from_numpy(model.tables.inv_scale.view(np.int16)).to(device)
            self.steps = [tuple(self._packed(step)) for step in model.steps]
        self._constants: dict[tuple[int, int, int], tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]] = {}

    def _packed(self, step: Any) -> list[PackedLayer]:
        model = self.model
        maps, planes = model.maps, model.planes
        w1: IntegerLayer = step.w1
        kept = np.concatenate((w1.weight[:, :maps], w1.weight[:, maps + planes :]), axis=1)
        first = pack_layer(kept, w1.bias, w1.multiplier, slice(maps, None), self.device)
        rest = [
            pack_layer(layer.weight, layer.bias, layer.multiplier, slice(None), self.device)
            for layer in (step.w2, step.w3, step.w4)
        ]
        return [first, *rest]

    def constants(self, point: OperatingPoint) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]:
        """What the operating point decides, kept for the next tile that has it.

        Returns:
            w1's bias int32 [M, steps, width] of each scale and step: the header's planes, being constant, lie there.
            The head's output int16 [3 K c] of the last scale; of no length with a uniform prior.
        """
        if point not in self._constants:
            model = self.model
            maps, planes, M = model.maps, model.planes, model.config.num_scales
            constant = model.planes_of(point)[:M].astype(np.int64)
            rows = []
            for step in model.steps:
                weight = step.w1.weight[:, :, 0, 0].astype(np.int64)
                offset = 128 * weight[:, maps + planes :].sum(axis=1)
                rows.append(step.w1.bias + offset + constant @ weight[:, maps : maps + planes].T)
            prior = np.zeros(0, np.int16) if model.prior is None else model.prior_output(point).reshape(-1)
            if len(self._constants) >= 1024:  # points of other pictures: a few kilobytes each
                self._constants.clear()
            self._constants[point] = np.stack(rows, axis=1).astype(np.int32), prior
        return self._constants[point]

    def geometry(self, jobs: Sequence[Tile]) -> Geometry:
        """The buffers for these jobs' sizes, made on first use; the least recently used ones are dropped."""
        sizes = tuple((job.height, job.width) for job in jobs)
        if sizes in self._geometries:
            self._geometries.move_to_end(sizes)
        else:
            kept = sum(map(padded_positions, self._geometries)) + padded_positions(sizes)
            while self._geometries and (kept > _KEPT_POSITIONS or len(self._geometries) >= _KEPT_GEOMETRIES):
                kept -= padded_positions(self._geometries.popitem(last=False)[0])
            self._geometries[sizes] = Geometry(self, sizes)
        return self._geometries[sizes]

    # --- decoding -------------------------------------------------------------------------------------------------

    def decode(self, jobs: Sequence[DecodingJob]) -> tuple[list[Tensor], Callable[[], None]]:
        """Decode the stream of each job.

        Returns:
            symbols: uint8 [c, height, width] on the device for each job.
            check: waits for the device and raises BitstreamError where a stream is not what the headers promise. Work
                on the symbols can be queued before, so that the host checks while the device goes on; nothing that
                was made of them may be handed out before.
        Raises:
            BitstreamError: the head of a stream is not valid.
        """
        order = _by_size(jobs)
        place = {number: i for i, number in enumerate(order)}
        jobs = [jobs[i] for i in order]
        with self._alone() as caller:
            geometry = self.geometry(jobs)
            geometry.load(jobs)
            most_lanes = self._load_streams(geometry, [job.payload for job in jobs])
            self._reserve_windows(geometry)

            def launch() -> None:
                geometry.run(lambda number: geometry.decode_group(number, most_lanes))

            geometry.replay(("decode", most_lanes), launch)
            # Copies: another call may use the geometry before these are read.
            symbols = [geometry.canvas[i, :, : job.height, : job.width].clone() for i, job in enumerate(jobs)]
            ends = geometry.status.clone(), geometry.end - geometry.next_word, geometry.states.clone()
            coded, counts, lanes = geometry.coded.clone(), geometry.host_counts, geometry.lanes.clone()
            if caller is not None:  # their memory is not free before that stream has read them
                for made in (*symbols, *ends, coded, lanes):
                    made.record_stream(caller)

        def check() -> None:
            status, left, states = (part.cpu().numpy() for part in ends)
            for i, hashed in enumerate(geometry.hashed(coded.cpu().numpy(), counts)):
                ops.check_stream_end(int(status[i]), int(left[i]), states[i, : int(lanes[i])], hashed)

        return [symbols[place[i]] for i in range(len(jobs))], check

    @contextlib.contextmanager
    def _alone(self) -> Iterator[torch.cuda.Stream | None]:
        """One thread at a time queues work on `stream`, between what its own stream, which comes out, has and gets.

        Tensors made in inference mode could not be filled by later calls.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self.stream is None:
                yield None
                return
            with torch.cuda.device(self.device):
                caller = torch.cuda.current_stream()
                self.stream.wait_stream(caller)
                try:
                    with torch.cuda.stream(self.stream):
                        yield caller
                finally:
                    caller.wait_stream(self.stream)

    def _reserve_windows(self, geometry: Geometry) -> None:
        size = geometry.count * max(group.capacity for group in geometry.groups)
        if geometry.first.numel() < size:
            geometry.first = torch.empty(size, dtype=torch.int16, device=self.device)
            geometry.window = torch.empty(size * WINDOW, dtype=torch.int32, device=self.device)

    def _load_streams(self, geometry: Geometry, payloads: Sequence[bytes | memoryview]) -> int:
        """Parse the streams' heads, copy states and words to the device. Returns the most lanes that a stream has."""
        lanes, states, words = [], np.full((len(payloads), MAX_LANES), STATE_LOW, dtype=np.int64), []
        for i, payload in enumerate(payloads):
            count, states_i, words_i = ops.parse_stream(payload)
            lanes.append(count)
            states[i, :count] = states_i
            words.append(words_i)
        ends = np.cumsum([len(part) for part in words])
        total = int(ends[-1])
        if geometry.words.numel() < total:
            # A power of two: graphs that read the old buffer are of no use, so it should seldom be replaced.
            geometry.words = torch.empty(1 << max(12, (total - 1).bit_length()), dtype=torch.int16, device=self.device)
            geometry.graphs.clear()
        geometry.words[:total].copy_(torch.from_numpy(np.concatenate(words).view(np.int16)))
        geometry.states.copy_(torch.from_numpy(states))
        geometry.lanes.copy_(torch.tensor(lanes, dtype=torch.int32, device="cpu"))
        geometry.end.copy_(torch.from_numpy(ends))
        geometry.next_word.copy_(torch.from_numpy(ends - np.array([len(part) for part in words])))
        geometry.position.zero_()
        return max(lanes)

    # --- encoding -------------------------------------------------------------------------------------------------

    def encode(self, jobs: Sequence[EncodingJob]) -> list[bytes]:
        """Encode the known symbols of each job: the streams that `RangeEncoder` writes, byte for byte.

        Raises:
            ValueError: a symbol is not below 2^b.
        """
        order = _by_size(jobs)
        with self._alone():
            streams = dict(zip(order, self._encode([jobs[i] for i in order])))
        return [streams[i] for i in range(len(jobs))]

    def _encode(self, jobs: Sequence[EncodingJob]) -> list[bytes]:
        geometry = self._load_known(jobs)
        N, total = geometry.count, geometry.total
        if geometry.start.shape[1] < total:
            geometry.start, geometry.freq = (
                torch.empty((N, total), dtype=torch.int32, device=self.device) for _ in range(2)
            )
        geometry.replay(("encode",), lambda: geometry.run(geometry.encode_group))
        counts = torch.from_numpy(geometry.host_counts.sum(axis=0)).to(self.device)
        lanes = [choose_lanes(bits) for bits in estimate_bits(geometry.freq, counts).tolist()]
        states = np.full((N, MAX_LANES), STATE_LOW, dtype=np.int64)
        states[:, 0] += [
            ops.xxh64(part) & 0xFFFFFFFF for part in geometry.hashed(geometry.coded.cpu().numpy(), geometry.host_counts)
        ]
        state_tensor = torch.from_numpy(states).to(self.device)
        lane_tensor = torch.tensor(lanes, dtype=torch.int32, device=self.device)
        words = torch.empty((N, 2 * total), dtype=torch.int16, device=self.device)  # no symbol takes more than two
        begin = torch.empty(N, dtype=torch.int64, device=self.device)
        self.kernels.rans_encode_fwd(
            geometry.start, geometry.freq, counts, lane_tensor, state_tensor, words, begin, geometry.status, max(lanes)
        )
        if bool((geometry.status == BAD_SYMBOL).any()):
            raise ValueError("a symbol is not below 2^bits")
        firsts = begin.tolist()
        flat = torch.cat([words[i, first:] for i, first in enumerate(firsts)]).cpu().numpy()
        ends = np.cumsum([words.shape[1] - first for first in firsts])
        final = state_tensor.cpu().numpy()
        return [
            ops.write_stream(lanes[i], final[i, : lanes[i]], part) for i, part in enumerate(np.split(flat, ends[:-1]))
        ]

    def record(self, jobs: Sequence[ObservingJob]) -> None:
        """Run P over known symbols and show every group's parameters to the jobs' observers, on the host."""
        with self._alone():
            self._record([jobs[i] for i in _by_size(jobs)])

    # --- proof ----------------------------------------------------------------------------------------------------

    def prove(self, height: int = 256, width: int = 256) -> None:
        """Code a tile of so many latents and compare with the C++ coder, byte for byte, and the way back.

        Its sides make the kernels use every block size that they have, and the way back is run, recorded as a graph
        and replayed. A coder in CUDA C++ that fails is replaced by the Triton one, with a warning.

        Once is enough: later calls return at once.

        Raises:
            BackendError: the kernels compute something else, or fail.
        """
        if self._proved:
            return
        reason = self._difference(height, width)
        if reason and self.device.type == "cuda" and self._coder == "auto" and ops.has_cuda_extension():
            self._coder = "triton"
            self.kernels = ops.integer_kernels(self.device, self._coder)
            second = self._difference(height, width)
            if not second:
                warnings.warn(f"the coder of l2c._cuda: {reason}; using the Triton one", L2CWarning, stacklevel=2)
            reason = second
        if reason:
            raise BackendError(f"the triton backend on {self.device}: {reason}")
        self._proved = True

    def _difference(self, height: int, width: int) -> str:
        """What is wrong with the kernels; "" where nothing is."""
        rng, used, point = np.random.default_rng(0), max(1, self.model.c // 4), OperatingPoint(500, 4, 8)
        symbols = np.full((self.model.c, height, width), 128, dtype=np.uint8)
        symbols[:used] = rng.normal(128, 3, (used, height, width)).round()
        symbols[:used, ::7] = rng.integers(0, 256, symbols[:used, ::7].shape)  # outside every window
        job = EncodingJob(height, width, point, used, symbols)
        self._cpu.code([job], self.device, 1)
        stream = job.encoder.finish()
        try:
            if self.encode([job]) != [stream]:
                return "its streams are not those of the C++ coder"
            for _ in range(3):
                (found,), check = self.decode([DecodingJob(height, width, point, used, stream)])
                check()
                if not np.array_equal(found.cpu().numpy(), symbols):
                    return "it decodes other symbols than were encoded"
        except Exception as error:  # whatever a compiler, a driver or a check has to say
            return f"it fails ({type(error).__name__}: {error})"
        finally:
            with self._lock:
                self._geometries.clear()
        return ""

    # --- known symbols --------------------------------------------------------------------------------------------

    def _record(self, jobs: Sequence[ObservingJob]) -> None:
        geometry = self._load_known(jobs)

        def code(number: int) -> None:
            geometry.gather_group(number)
            w, m, v = (part.cpu().numpy() for part in geometry.parameters(number))
            coded = geometry.coded_of(number).cpu().numpy()
            for i, job in enumerate(jobs):
                count = int(geometry.host_counts[number, i])
                if not count:
                    continue
                symbols = coded[i, :count]
                if not w.shape[0]:
                    job.observer.raw(symbols)
                    continue
                mine = (np.ascontiguousarray(part[:, i, :count]) for part in (w, m, v))
                weights, means, inv_scales = mine
                job.observer.mixture(symbols, weights.view(np.uint16), means, inv_scales.view(np.uint16))

        geometry.run(code)

    def _load_known(self, jobs: Sequence[EncodingJob | ObservingJob]) -> Geometry:
        geometry = self.geometry(jobs)
        geometry.load(jobs)
        for i, job in enumerate(jobs):
            geometry.canvas[i, :, : job.height, : job.width].copy_(torch.as_tensor(job.symbols))
        return geometry


def _by_size(jobs: Sequence[Tile]) -> list[int]:
    """Order in which jobs are coded: batches of the same sizes share a geometry, whatever order they come in."""
    return sorted(range(len(jobs)), key=lambda i: (jobs[i].height, jobs[i].width))


def estimate_bits(freq: Tensor, counts: Tensor) -> Tensor:
    """What the coder expects of each stream in 1/256 bit, in integers: RangeEncoder.estimate_bits of csrc/core/rans.h.

    Args:
        freq: int32 [N, T], frequencies of symbols out of 2^20, each exact as a float32.
        counts: int64 [N], symbols that each stream has.
    Returns:
        int64 [N].
    """
    pattern = freq.to(torch.float32).view(torch.int32)
    m = (pattern >> 15) & 255
    log2 = (pattern >> 15) - (127 << 8) + ((m * (256 - m) * 88) >> 16)
    known = torch.arange(freq.shape[1], device=freq.device)[None, :] < counts[:, None]
    return torch.where(known, (20 << 8) - log2, 0).sum(dim=1, dtype=torch.int64)


def choose_lanes(bits: int) -> int:
    """The lanes of a stream of so many 1/256 bits: RangeEncoder.choose_lanes of csrc/core/rans.h."""
    lanes = 1
    while lanes < MAX_LANES and 48 * 2 * lanes * 1000 * 256 // 3 <= bits:
        lanes *= 2
    return lanes
