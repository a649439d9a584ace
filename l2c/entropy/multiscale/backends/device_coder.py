"""P and the coder on a GPU: from payloads to symbols and back without the host between groups.

The same graph and the same streams as every backend's; here a padded batch of tiles runs through the kernels of
`l2c.kernels` (`geometry`). Runs on the CPU, too, under Triton's interpreter; that is for tests.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from l2c import ops
from l2c.entropy.coder import DecodingJob, EncodingJob, ObservingJob, Tile
from l2c.entropy.device import load_streams, padded_positions
from l2c.entropy.multiscale.backends.cpu import CpuBackend
from l2c.entropy.multiscale.backends.device_model import DeviceModel
from l2c.entropy.multiscale.backends.geometry import Geometry
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.errors import BackendError, L2CWarning
from l2c.format.levels import OperatingPoint
from l2c.ops.contract import BAD_SYMBOL, MAX_LANES, STATE_LOW, WINDOW

MOST_POSITIONS = 1 << 19  # latent positions of a batch: about 3 kB each on the device


class DeviceCoder(DeviceModel):
    """Codes batches of tiles on one device.

    Args:
        model, device, coder: see `DeviceModel`.
        cpu: the same model in C++, for `prove`; made where it is not given.
        kept_positions, kept_geometries: latent positions of all geometries that are kept, with their buffers and
            graphs, and how many of them.
    Attributes:
        proved: whether `prove` has found nothing wrong here.
    Raises:
        BackendError: the kernels cannot run there.
    """

    def __init__(
        self,
        model: IntegerWeights,
        device: torch.device,
        coder: str = "auto",
        cpu: CpuBackend | None = None,
        *,
        kept_positions: int = 2 * MOST_POSITIONS,
        kept_geometries: int = 32,
    ) -> None:
        super().__init__(model, device, coder)
        self.kept_positions, self.kept_geometries = kept_positions, kept_geometries
        self._cpu = cpu if cpu is not None else CpuBackend(model)
        self._coder, self.proved = coder, False
        self._geometries: OrderedDict[tuple[tuple[int, int], ...], Geometry] = OrderedDict()
        with self.queue.alone():
            self.load()

    @property
    def kept(self) -> list[tuple[tuple[int, int], ...]]:
        """Sizes of the tiles of each geometry that is kept, the least recently used first."""
        return list(self._geometries)

    def geometry(self, jobs: Sequence[Tile]) -> Geometry:
        """The buffers for these jobs' sizes, made on first use; the least recently used ones are dropped."""
        sizes = tuple((job.height, job.width) for job in jobs)
        if sizes in self._geometries:
            self._geometries.move_to_end(sizes)
        else:
            kept = sum(map(padded_positions, self._geometries)) + padded_positions(sizes)
            while self._geometries and (kept > self.kept_positions or len(self._geometries) >= self.kept_geometries):
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
        with self.queue.alone() as caller:
            geometry = self.geometry(jobs)
            geometry.load(jobs)
            most_lanes = load_streams(geometry, [job.payload for job in jobs])
            self.reserve_windows(geometry)

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

    def reserve_windows(self, geometry: Geometry) -> None:
        """Room for what decoding the largest group of a geometry needs."""
        size = geometry.count * max(group.capacity for group in geometry.groups)
        if geometry.first.numel() < size:
            geometry.first = torch.empty(size, dtype=torch.int16, device=self.device)
            geometry.window = torch.empty(size * WINDOW, dtype=torch.int32, device=self.device)

    # --- encoding -------------------------------------------------------------------------------------------------

    def encode(self, jobs: Sequence[EncodingJob]) -> list[bytes]:
        """Encode the known symbols of each job: the streams that `RangeEncoder` writes, byte for byte.

        Raises:
            ValueError: a symbol is not below 2^b.
        """
        order = _by_size(jobs)
        with self.queue.alone():
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
        with self.queue.alone():
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
        if self.proved:
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
        self.proved = True

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
            with self.queue.lock:
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
