"""Buffers and launch order for a batch of tiles of given sizes: P on a device, turn by turn.

Every launch goes into buffers that a geometry keeps. What differs between two batches of one geometry (qualities, used
channels, streams) is data, so on a GPU the whole sequence, some 150 launches, is recorded once as a CUDA graph and
replayed: no host round trip between scales or groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.entropy.coder import Tile
from l2c.entropy.multiscale.backends.device_model import DeviceModel
from l2c.entropy.multiscale.schedule import Turn, scale_sizes
from l2c.ops.contract import AVAILABLE, MAX_LANES, WINDOW


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

    def __init__(self, coder: DeviceModel, sizes: Sequence[tuple[int, int]]) -> None:
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
        """Run `launch`, see `Queue.replay`."""
        self.coder.queue.replay(self.graphs, key, launch)
