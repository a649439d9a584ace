"""P as exact integers: what the coder reads (DESIGN 3).

The graph is that of `l2c.probability`; here every number that decides a probability is an integer, and every
implementation gives the same ones:

- "reference": int64 arithmetic, written for reading (`l2c.ops.reference`);
- "torch": integers carried by floats in PyTorch convolutions, any device, pictures batched;
- "triton": the kernels of `kernels/` on a GPU, with the coder (`l2c.device_coder`), tiles batched;
- "cpu": C++ (`csrc/tile_coder.h`), whole pictures without Python in between, several in parallel.

Formats
    inputs        int8, real value / INPUT_SCALE: companded latents (a table of 256 entries), availability, planes
    activations   uint8, 32 times the real value, zero-point 0
    weights       int8, one scale per output channel
    sums          int32; checked at export: sum|w| max|a| + |bias| < 2^24, so float32 sums are exact in any order
    requantise    round_half_even(float32(sum) * multiplier): one float32 multiplication, nothing fused after it
    head          int16 per symbol and component: logit (Q4 nats), mean (Q6 half steps, 1/128 latent), index of the
                  log inverse scale (19.6 per octave); `mixture_params` turns them into uint16 weights that sum to
                  65536 - 16, int16 means and uint16 Q10 inverse scales. The CDF over them is csrc/mixture_cdf.h.
"""

from __future__ import annotations

import contextlib
import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c import ops
from l2c.config import ModelConfig, ProbabilityConfig
from l2c.errors import BackendError, ModelMismatchError
from l2c.format.levels import MAX_MU
from l2c.ops import reference
from l2c.ops.contract import (
    ACTIVATION_SCALE,
    AVAILABLE,
    CODING_ORDER,
    COMPAND,
    INPUT_SCALE,
    INV_SCALE_MAX,
    INV_SCALE_OCTAVE,
    LOG2_INV_SCALE_MOST,
    LOGIT_UNIT,
    MEAN_UNIT,
    POSITIONS,
    SUM_LIMIT,
    IntegerLayer,
    IntegerStep,
    IntegerTables,
    constant_planes,
    num_planes,
)
from l2c.probability import ProbabilityModel, weight_step

if TYPE_CHECKING:
    from l2c.device_coder import DeviceCoder

_EXACT_LOCK = threading.RLock()
_CACHE_LOCK = threading.Lock()
_SAMPLE_QUALITIES = (300, 500, 700)  # where the C++ form learns which hidden channels are seldom active
_BATCH_POSITIONS = 1 << 17  # latent positions that share a pass of the torch engine: some hundreds of MB

UInt8Array = npt.NDArray[np.uint8]
Int16Array = npt.NDArray[np.int16]


def make_tables() -> IntegerTables:
    """The tables of a new model. A loaded model uses the ones in its file, not these."""
    z = np.arange(-128, 128, dtype=np.float64)
    compand = np.round(COMPAND * z / np.sqrt(1.0 + np.abs(z))).astype(np.int8)
    exp = np.round(32768.0 * np.exp(-LOGIT_UNIT * np.arange(256))).astype(np.uint16)
    inv = np.round(INV_SCALE_MAX * np.exp2((np.arange(256) - 255) / INV_SCALE_OCTAVE)).clip(1, INV_SCALE_MAX)
    return IntegerTables(compand, exp, inv.astype(np.uint16))


class Symbols(Protocol):
    """Where symbols come from: an encoder that knows them, or a decoder that reads them."""

    def mixture(
        self, weights: npt.NDArray[np.uint16], means: Int16Array, inv_scales: npt.NDArray[np.uint16], latents: Any
    ) -> UInt8Array:
        """Code one group: parameters [K, n]; `latents` uint8 [n] symbols when encoding, else None. Returns symbols."""

    def uniform(self, count: int, latents: Any) -> UInt8Array:
        """Code `count` equally likely symbols; otherwise as `mixture`."""


class SymbolWriter:
    """Pushes known symbols into a `RangeEncoder` (csrc/rans.h), or holds the stream that a device coder made."""

    def __init__(self, b: int) -> None:
        self.encoder = ops.range_encoder()
        self.payload: bytes | None = None
        self.b = b

    def mixture(self, weights: Any, means: Any, inv_scales: Any, latents: Any) -> UInt8Array:
        symbols = np.ascontiguousarray(latents)
        self.encoder.push_mixture(symbols, weights, means, inv_scales, self.b)
        return symbols

    def uniform(self, count: int, latents: Any) -> UInt8Array:
        symbols = np.ascontiguousarray(latents)
        self.encoder.push_raw(symbols.astype(np.uint32), self.b)
        return symbols

    def finish(self) -> bytes:
        """The stream of all symbols, once they are coded."""
        return self.payload if self.payload is not None else self.encoder.finish()


class SymbolReader:
    """Pops symbols from a `RangeDecoder`; all its errors are `BitstreamError`. A device coder takes the payload."""

    def __init__(self, payload: bytes | memoryview, b: int) -> None:
        self.decoder = ops.range_decoder(payload)
        self.payload = payload
        self.b = b
        self.finished = False

    def mixture(self, weights: Any, means: Any, inv_scales: Any, latents: Any) -> UInt8Array:
        return self.decoder.pop_mixture(weights, means, inv_scales, self.b)

    def uniform(self, count: int, latents: Any) -> UInt8Array:
        return self.decoder.pop_raw(count, self.b).astype(np.uint8)

    def finish(self) -> None:
        """Raises BitstreamError unless the stream ended where and as it should. Once all symbols are read."""
        if not self.finished:
            self.decoder.finish()


@dataclass
class Job:
    """One picture or tile to code.

    Attributes:
        height, width: of the latents (ceil(H/s), ceil(W/s)).
        header: quality 0..1000, mu 0..8, b 1..8.
        used: channels coded; the higher ones are zero everywhere.
        coder: where symbols come from.
        symbols: uint8 [c, height, width], known when encoding; None when decoding.
    """

    height: int
    width: int
    header: tuple[int, int, int]
    used: int
    coder: Symbols
    symbols: UInt8Array | None = None


class Engine(Protocol):
    """One way of computing the steps, over a fixed batch of pictures that share no state but the weights."""

    def start_scale(self, scale: int, latents: list[Int16Array]) -> None:
        """Begin a scale: `latents` int16 [ceil(h/2), ceil(w/2), c] per picture are the known position of each cell."""

    def step(self, index: int) -> list[Int16Array]:
        """Run step `index`: raw head output int16 [cell rows, cell columns, 3, K, used of this group] per picture."""

    def fill(self, position: int, group: int, latents: list[Int16Array]) -> None:
        """Fill in the truth of one group: int16 [rows, columns, size of the group] per picture."""

    def prior(self, index: int) -> Int16Array:
        """Raw head output of the prior for one picture: int16 [3, K, used]."""


class IntegerModel:
    """P in integers, loaded from tensors that `l2c.train.quantize` made."""

    def __init__(
        self,
        config: ModelConfig,
        steps: Sequence[IntegerStep],
        prior: tuple[IntegerLayer, IntegerLayer] | None,
        tables: IntegerTables,
    ) -> None:
        self.config: ProbabilityConfig = config.probability
        self.c = config.transform.c
        self.steps = tuple(steps)
        self.prior = prior
        self.tables = tables
        self.values = 4 * self.c
        self.maps = self.values + 4 * len(self.config.channel_groups)  # channels before the planes
        self.planes = num_planes(self.config.num_scales)
        self._tile_coder: Any = None
        self._torch: dict[tuple[int, torch.device], list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._device_coders: dict[torch.device, DeviceCoder] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: everything but the packed forms, which are made again when they are needed."""
        return {**self.__dict__, "_tile_coder": None, "_torch": {}, "_device_coders": {}}

    def tile_coder(self) -> Any:
        """The C++ form of this model (csrc/tile_coder.h), made once."""
        with _CACHE_LOCK:
            if self._tile_coder is None:
                steps = [(step.w1, step.w2, step.w3, step.w4) for step in self.steps]
                samples = [self._planes((quality, MAX_MU // 2, 8)) for quality in _SAMPLE_QUALITIES]
                self._tile_coder = ops.tile_coder(
                    self.config.channel_groups, self.config.num_scales, self.config.num_mixtures,
                    steps, self.prior, self.tables, samples,
                )  # fmt: skip
            return self._tile_coder

    def _planes(self, header: tuple[int, int, int]) -> UInt8Array:
        """Constant planes of every scale and of the prior, [num_scales + 1, planes]."""
        num_scales = self.config.num_scales
        planes = [constant_planes(*header, scale, num_scales) for scale in range(num_scales + 1)]
        return np.array(planes, dtype=np.uint8)

    def torch_layers(self, index: int, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(weight, bias [1, O, 1, 1], multiplier [1, O, 1, 1]) of w1..w4 of a step on a device, made once.

        Weights and biases have the dtype that carries the sums, multipliers are float32.
        """
        key, dtype = (index, device), carrier(device)
        if key not in self._torch:
            step = self.steps[index]
            self._torch[key] = [
                (
                    torch.from_numpy(layer.weight).to(device, dtype),
                    torch.from_numpy(layer.bias).to(device, dtype).view(1, -1, 1, 1),
                    torch.from_numpy(layer.multiplier).to(device).view(1, -1, 1, 1),
                )
                for layer in (step.w1, step.w2, step.w3, step.w4)
            ]
        return self._torch[key]

    def layers(self) -> Iterator[tuple[str, IntegerLayer]]:
        """All layers by name."""
        for i, step in enumerate(self.steps):
            for name in ("w1", "w2", "w3", "w4"):
                yield f"steps.{i}.{name}", getattr(step, name)
        if self.prior is not None:
            yield "prior.w1", self.prior[0]
            yield "prior.w2", self.prior[1]

    def group_used(self, group: int, used: int) -> int:
        """How many channels of `group` are coded when `used` channels of the picture are."""
        start = sum(self.config.channel_groups[:group])
        return max(0, min(used - start, self.config.channel_groups[group]))

    def head(self, layer: IntegerLayer, size: int, used: int) -> IntegerLayer:
        """The rows of a head [3 K size] that belong to its first `used` channels."""
        if used == size:
            return layer
        shape = (3, self.config.num_mixtures, size)
        rows = np.arange(math.prod(shape)).reshape(shape)[:, :, :used].reshape(-1)
        return IntegerLayer(layer.weight[rows], layer.bias[rows], layer.multiplier[rows])

    def mixture(self, raw: Int16Array) -> tuple[Any, Any, Any]:
        """Raw head output int16 [..., 3, K, g] -> weights, means, inverse scales, each [K, n] in coding order."""
        k, g = raw.shape[-2:]
        flat = np.ascontiguousarray(raw).reshape(-1, 3 * k * g)
        return ops.mixture_params(flat, k, g, self.tables.exp, self.tables.inv_scale)

    def code(
        self, jobs: Sequence[Job], backend: str = "auto", device: torch.device | None = None, threads: int = 1
    ) -> list[UInt8Array]:
        """Code all latents of some pictures through their `coder`s, coarsest scale first.

        Args:
            jobs: pictures, of any sizes.
            backend: "auto" (see `ops.choose_integer_backend`), "cpu", "triton", "torch" or "reference".
            device: where the torch and triton backends compute.
            threads: pictures at a time (several jobs) or threads per convolution (one job), cpu backend.
        Returns:
            symbols uint8 [c, height, width] per job.
        Raises:
            BackendError: the backend cannot run here. BitstreamError: a reader's stream is not valid.
        """
        name = ops.choose_integer_backend(backend, device)
        if name == "triton" and not self.fits_device(jobs):
            name = "cpu"
        # Where no channel is used, nothing is coded: P need not run to find that out.
        results = iter(self._code_used([job for job in jobs if job.used], name, device, threads))
        return [
            next(results)
            if job.used
            else np.full((self.c, job.height, job.width), 1 << (job.header[2] - 1), dtype=np.uint8)
            for job in jobs
        ]

    def _code_used(self, jobs: Sequence[Job], name: str, device: torch.device | None, threads: int) -> list[UInt8Array]:
        """`code` for jobs that use at least one channel, on a backend that is chosen."""
        if name == "cpu":
            return self._code_cpu(jobs, threads) if jobs else []
        if name == "triton":
            return self._code_on_device(jobs, device)
        results = []
        for part in _batches(jobs, _BATCH_POSITIONS if name == "torch" else 0):
            if name == "torch":
                with exact_products(device or torch.device("cpu")):
                    results += self._code(part, TorchEngine(self, part, device or torch.device("cpu")))
            else:
                results += self._code(part, ReferenceEngine(self, part))
        return results

    @staticmethod
    def fits_device(jobs: Sequence[Job]) -> bool:
        """Whether no tile is so large that its buffers would fill a GPU; the CPU codes such tiles."""
        from l2c.device_coder import MOST_POSITIONS

        return all(job.height * job.width <= MOST_POSITIONS for job in jobs)

    def device_coder(self, device: torch.device | None) -> DeviceCoder:
        """The coder of a device, made on first use. Raises BackendError where its kernels cannot run."""
        from l2c.device_coder import DeviceCoder

        place = device if device is not None else torch.device("cpu")
        with _CACHE_LOCK:
            if place not in self._device_coders:
                self._device_coders[place] = DeviceCoder(self, place)
            return self._device_coders[place]

    def decode_on_device(self, jobs: Sequence[Job], device: torch.device) -> tuple[list[Tensor], Callable[[], None]]:
        """Decode jobs with `SymbolReader`s by the kernels: symbols uint8 [c, h, w] on the device, before any check.

        The second result waits for the device and raises BitstreamError where a stream is not valid; see
        `DeviceCoder.decode`.
        """
        from l2c.device_coder import MOST_POSITIONS

        coder = self.device_coder(device)
        parts = [
            coder.decode(part, [job.coder.payload for job in part])  # type: ignore[attr-defined]
            for part in _batches([job for job in jobs if job.used], MOST_POSITIONS)
        ]
        decoded = iter([symbols for part, _ in parts for symbols in part])
        results = [
            next(decoded)
            if job.used
            else torch.full((self.c, job.height, job.width), 1 << (job.header[2] - 1), dtype=torch.uint8, device=device)
            for job in jobs
        ]

        def check() -> None:
            for _, part_check in parts:
                part_check()
            for job in jobs:
                if job.used:
                    job.coder.finished = True  # type: ignore[attr-defined]
                job.coder.finish()  # type: ignore[attr-defined]

        return results, check

    def _code_on_device(self, jobs: Sequence[Job], device: torch.device | None) -> list[UInt8Array]:
        """`code` by the kernels."""
        from l2c.device_coder import MOST_POSITIONS

        place = device if device is not None else torch.device("cpu")
        if jobs and all(isinstance(job.coder, SymbolReader) for job in jobs):
            symbols, check = self.decode_on_device(jobs, place)
            check()
            return [part.cpu().numpy() for part in symbols]
        for part in _batches(jobs, MOST_POSITIONS):
            if all(isinstance(job.coder, SymbolWriter) for job in part):
                for job, payload in zip(part, self.device_coder(device).encode(part)):
                    job.coder.payload = payload  # type: ignore[attr-defined]
            else:
                self.device_coder(device).record(part)
        return [job.symbols for job in jobs]  # type: ignore[misc]

    def _code_cpu(self, jobs: Sequence[Job], threads: int) -> list[UInt8Array]:
        """`code` for at least one job in C++, each through its range coder or, if it has none, through Python calls."""
        arguments = []
        for job in jobs:
            coder: Any = job.coder
            if isinstance(coder, (SymbolWriter, SymbolReader)):
                if coder.b != job.header[2]:
                    raise ValueError(f"the coder's b is {coder.b}, the job's {job.header[2]}")
                coder = coder.encoder if isinstance(coder, SymbolWriter) else coder.decoder
            symbols = None if job.symbols is None else np.ascontiguousarray(job.symbols)
            place = (job.height, job.width, job.header[2], job.used)
            arguments.append((*place, self._planes(job.header), coder, symbols))
        return self.tile_coder().code(arguments, max(1, threads))

    def _code(self, jobs: Sequence[Job], engine: Engine) -> list[UInt8Array]:
        num_scales, groups = self.config.num_scales, self.config.channel_groups
        sizes = [scale_sizes(job.height, job.width, num_scales) for job in jobs]
        known = [self._code_last(job, sizes[i][-1], engine, i) for i, job in enumerate(jobs)]
        for scale in range(num_scales - 1, -1, -1):
            engine.start_scale(scale, known)
            canvases = []
            for i, (height, width) in enumerate(size[scale] for size in sizes):
                canvas = np.zeros((height, width, self.c), dtype=np.int16)
                canvas[::2, ::2] = known[i]
                canvases.append(canvas)
            index = 0
            for p in CODING_ORDER:
                dy, dx = POSITIONS[p]
                parts = [canvas[dy::2, dx::2] for canvas in canvases]  # views: filling them fills the canvas
                for g, size in enumerate(groups):
                    for job, part, raw in zip(jobs, parts, engine.step(index)):
                        self._code_group(job, part, raw, scale, p, g)
                    start = sum(groups[:g])
                    engine.fill(p, g, [part[:, :, start : start + size] for part in parts])
                    index += 1
            known = canvases
        return [_symbols(canvas, job.header[2]) for canvas, job in zip(known, jobs)]

    def _code_group(self, job: Job, part: Int16Array, raw: Int16Array, scale: int, position: int, group: int) -> None:
        """Code one group of one picture and fill it in.

        Args:
            part: int16 [rows, columns, c], the latents at this position of all cells; written in place.
            raw: int16 [>= rows, >= columns, 3, K, used], head output of the cells.
        """
        start, used = sum(self.config.channel_groups[:group]), self.group_used(group, job.used)
        rows, columns = part.shape[:2]
        if not (used and rows and columns):
            return
        true = None
        if job.symbols is not None:
            dy, dx = (offset << scale for offset in POSITIONS[position])
            plane = job.symbols[start : start + used, dy :: 2 << scale, dx :: 2 << scale]
            true = plane.transpose(1, 2, 0).reshape(-1)
        symbols = job.coder.mixture(*self.mixture(raw[:rows, :columns]), true)
        part[:, :, start : start + used] = _latents(symbols, job.header[2]).reshape(rows, columns, used)

    def _code_last(self, job: Job, size: tuple[int, int], engine: Engine, index: int) -> Int16Array:
        """The last scale: latents int16 [h, w, c]."""
        stride = 1 << self.config.num_scales
        canvas = np.zeros((*size, self.c), dtype=np.int16)
        count = size[0] * size[1] * job.used
        if not count:
            return canvas
        true = None
        if job.symbols is not None:
            true = job.symbols[: job.used, ::stride, ::stride].transpose(1, 2, 0).reshape(-1)
        if self.prior is None:
            symbols = job.coder.uniform(count, true)
        else:
            raw = engine.prior(index)
            repeated = np.broadcast_to(raw, (size[0] * size[1], *raw.shape))
            symbols = job.coder.mixture(*self.mixture(repeated), true)
        canvas[:, :, : job.used] = _latents(symbols, job.header[2]).reshape(*size, job.used)
        return canvas

    def known_answer(self, backend: str, device: torch.device | None = None) -> int:
        """CRC32 over all mixture parameters of a fixed set of latents of two sizes: equal on every exact backend."""
        recorders = []
        jobs = []
        for height, width, quality, mu in ((21, 30, 333, 2), (9, 6, 910, 8)):
            n = np.arange(self.c * height * width, dtype=np.uint32).reshape(self.c, height, width)
            noise = (n * np.uint32(2654435761)) >> np.uint32(24)  # Knuth's multiplicative hash: any fixed pattern does
            spread = np.maximum(1, 64 >> np.minimum(6, np.arange(self.c) // 4))[:, None, None]
            symbols = (128 + (noise.astype(np.int64) % (2 * spread + 1)) - spread).astype(np.uint8)
            recorder = _Recorder()
            recorders.append(recorder)
            jobs.append(Job(height, width, (quality, mu, 8), self.c, recorder, symbols))
        self.code(jobs, backend, device)
        return zlib.crc32(b"".join(r.crc.to_bytes(4, "little") for r in recorders))


def _batches(jobs: Sequence[Job], most: int) -> Iterator[Sequence[Job]]:
    """The jobs in order, in parts of at most `most` positions after padding to the largest, at least one job each."""
    start, height, width = 0, 0, 0
    for i, job in enumerate(jobs):
        height, width = max(height, job.height), max(width, job.width)
        if i > start and (i + 1 - start) * height * width > most:
            yield jobs[start:i]
            start, height, width = i, job.height, job.width
    if jobs:
        yield jobs[start:]


class _Recorder:
    """Pretends to encode, and keeps a running CRC32 of the parameters that it is given."""

    def __init__(self) -> None:
        self.crc = 0

    def mixture(self, weights: Any, means: Any, inv_scales: Any, latents: Any) -> UInt8Array:
        for array in (weights, means, inv_scales):
            self.crc = zlib.crc32(np.ascontiguousarray(array), self.crc)
        return latents

    def uniform(self, count: int, latents: Any) -> UInt8Array:
        return latents


def _latents(symbols: UInt8Array, b: int) -> Int16Array:
    return (symbols.astype(np.int16) - (1 << (b - 1))) << (8 - b)


def _symbols(latents: Int16Array, b: int) -> UInt8Array:
    """[h, w, c] latents -> [c, h, w] symbols."""
    return np.ascontiguousarray(((latents >> (8 - b)) + (1 << (b - 1))).astype(np.uint8).transpose(2, 0, 1))


def scale_sizes(height: int, width: int, num_scales: int) -> list[tuple[int, int]]:
    """(height, width) of z^(0) .. z^(M); each is the ceil of half the one before."""
    sizes = [(height, width)]
    for _ in range(num_scales):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def prior_reference(model: IntegerModel, header: tuple[int, int, int]) -> Int16Array:
    """The prior under a header in int64, int16 [3 K c]: it is tiny, so all but the C++ take it from here."""
    assert model.prior is not None
    planes = np.array(constant_planes(*header, model.config.num_scales, model.config.num_scales))
    h = reference.integer_conv(planes[:, None, None], model.prior[0]).clip(0, 255)
    return reference.integer_conv(h, model.prior[1]).clip(-32768, 32767).astype(np.int16).reshape(-1)


def _prior_of(model: IntegerModel, job: Job) -> Int16Array:
    """The prior of one picture: int16 [3, K, used]."""
    return prior_reference(model, job.header).reshape(3, model.config.num_mixtures, model.c)[:, :, : job.used]


class _PlanarEngine:
    """What the torch and the reference engine share: inputs [N, channels, h, w], literal planes, padded batches."""

    def __init__(self, model: IntegerModel, jobs: Sequence[Job]) -> None:
        self.model, self.jobs = model, jobs
        self.sizes = [scale_sizes(job.height, job.width, model.config.num_scales) for job in jobs]
        self.q: Any = None

    def _inputs(self, scale: int, latents: list[Int16Array]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
        """(u int16 [N, inputs, h, w], inside int16 [N, 1, h, w]) at the start of a scale."""
        model, groups = self.model, len(self.model.config.channel_groups)
        rows = max(part.shape[0] for part in latents)
        columns = max(part.shape[1] for part in latents)
        u = np.zeros((len(latents), model.maps + model.planes, rows, columns), dtype=np.int16)
        inside = np.zeros((len(latents), 1, rows, columns), dtype=np.int16)
        for i, known in enumerate(latents):
            height, width = self.sizes[i][scale]
            h, w = known.shape[:2]
            inside[i, :, :h, :w] = 1
            companded = model.tables.compand[known + 128].transpose(2, 0, 1)
            for p, (dy, dx) in enumerate(POSITIONS):
                ph, pw = (height - dy + 1) // 2, (width - dx + 1) // 2
                u[i, p * model.c : (p + 1) * model.c, :ph, :pw] = companded[:, :ph, :pw]
            u[i, model.values : model.values + groups, :h, :w] = AVAILABLE
            planes = constant_planes(*self.jobs[i].header, scale, model.config.num_scales)
            u[i, model.maps :, :h, :w] = np.array(planes)[:, None, None]
        return u, inside

    def _fill_slices(self, position: int, group: int) -> tuple[slice, int]:
        """(value channels, availability channel) of one group."""
        sizes = self.model.config.channel_groups
        start = position * self.model.c + sum(sizes[:group])
        return slice(start, start + sizes[group]), self.model.values + position * len(sizes) + group

    def _split(self, raw: npt.NDArray[np.int16], index: int) -> list[Int16Array]:
        """Head output [N, 3 K size, h, w] -> per picture [h, w, 3, K, used]."""
        group = index % len(self.model.config.channel_groups)
        size, k = self.model.config.channel_groups[group], self.model.config.num_mixtures
        parts = raw.transpose(0, 2, 3, 1).reshape(raw.shape[0], raw.shape[2], raw.shape[3], 3, k, size)
        return [part[..., : self.model.group_used(group, job.used)] for part, job in zip(parts, self.jobs)]

    def prior(self, index: int) -> Int16Array:
        """See `Engine.prior`."""
        return _prior_of(self.model, self.jobs[index])


class TorchEngine(_PlanarEngine):
    """Integers carried by floats in PyTorch convolutions; a padded batch, re-zeroed outside after every layer."""

    def __init__(self, model: IntegerModel, jobs: Sequence[Job], device: torch.device) -> None:
        super().__init__(model, jobs)
        self.device, self.dtype = device, carrier(device)

    def start_scale(self, scale: int, latents: list[Int16Array]) -> None:
        u, inside = self._inputs(scale, latents)
        self.u = torch.from_numpy(u).to(self.device, self.dtype)
        self.inside = torch.from_numpy(inside).to(self.device, self.dtype)
        if self.q is None:
            self.q = self.u.new_zeros(self.u.shape[0], self.model.config.width, *self.u.shape[2:])
        else:
            up = self.q.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            self.q = up[:, :, : self.u.shape[2], : self.u.shape[3]] * self.inside

    def step(self, index: int) -> list[Int16Array]:
        w1, w2, w3, w4 = self.model.torch_layers(index, self.device)
        h1 = self._conv(torch.cat((self.u, self.q), dim=1), w1).clamp(0, 255) * self.inside
        h2 = self._conv(h1, w2).clamp(0, 255) * self.inside
        self.q = (h1 + self._conv(h2, w3)).clamp(0, 255) * self.inside
        raw = self._conv(self.q, w4).clamp(-32768, 32767)
        return self._split(raw.to(torch.int16).cpu().numpy(), index)

    def fill(self, position: int, group: int, latents: list[Int16Array]) -> None:
        channels, available = self._fill_slices(position, group)
        for i, part in enumerate(latents):
            values = self.model.tables.compand[part + 128].transpose(2, 0, 1)
            h, w = part.shape[:2]
            self.u[i, channels, :h, :w] = torch.from_numpy(values).to(self.device, self.dtype)
            self.u[i, available, :h, :w] = AVAILABLE

    @staticmethod
    def _conv(x: Tensor, layer: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """round_half_even((conv(x, w) + bias) * multiplier): exact, since every partial sum is below 2^24."""
        weight, bias, multiplier = layer
        total = F.conv2d(x, weight, padding=weight.shape[2] // 2) + bias
        return (total.float() * multiplier).round().to(x.dtype)


class ReferenceEngine(_PlanarEngine):
    """int64 throughout, written for reading; one picture at a time, so padding cannot matter."""

    def __init__(self, model: IntegerModel, jobs: Sequence[Job]) -> None:
        super().__init__(model, jobs)
        self.parts = [_PlanarEngine(model, [job]) for job in jobs]

    def start_scale(self, scale: int, latents: list[Int16Array]) -> None:
        self.inputs = [part._inputs(scale, [known])[0][0].astype(np.int64) for part, known in zip(self.parts, latents)]
        for part, u in zip(self.parts, self.inputs):
            if part.q is None:
                part.q = np.zeros((self.model.config.width, *u.shape[1:]), dtype=np.int64)
            else:
                part.q = part.q.repeat(2, axis=1).repeat(2, axis=2)[:, : u.shape[1], : u.shape[2]]

    def step(self, index: int) -> list[Int16Array]:
        raws = []
        for part, u in zip(self.parts, self.inputs):
            raw, part.q = reference.integer_step(u, part.q, self.model.steps[index])
            raws += part._split(raw[None].astype(np.int16), index)
        return raws

    def fill(self, position: int, group: int, latents: list[Int16Array]) -> None:
        channels, available = self._fill_slices(position, group)
        for u, part in zip(self.inputs, latents):
            h, w = part.shape[:2]
            u[channels, :h, :w] = self.model.tables.compand[part + 128].transpose(2, 0, 1)
            u[available, :h, :w] = AVAILABLE


def carrier(device: torch.device) -> torch.dtype:
    """The float type that carries integers through PyTorch's convolutions.

    On the CPU float64, in which PyTorch has the plain matrix product alone: no setting reaches it and none has to be
    changed, which other threads would see. On GPUs float32, inside `exact_products`.
    """
    return torch.float64 if device.type == "cpu" else torch.float32


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Everything that could round inside a convolution of `carrier(device)` is off in here.

    Those are autocast and, on a GPU, TF32, reduced precision and cuDNN, which chooses Winograd or FFT forms. These
    settings are PyTorch's global ones, so one thread at a time is inside. The known-answer check at load and the CRC of
    the latents guard what settings cannot reach.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type != "cpu":
            stack.enter_context(ieee_float32())
            # The public `flags()` also touches TF32 settings, which fails where a caller set them through PyTorch's
            # other interface.
            stack.callback(torch._C._set_cudnn_enabled, torch._C._get_cudnn_enabled())
            torch._C._set_cudnn_enabled(False)
        yield


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """Plain float32 in matrix products and convolutions, whichever of PyTorch's two interfaces the caller has used.

    The settings are PyTorch's global ones, so one thread at a time is inside.
    """
    modules = [
        getattr(torch.backends.mkldnn, "matmul", None),
        torch.backends.cuda.matmul,
        getattr(torch.backends.cudnn, "conv", None),
    ]
    places: list[Any] = [module for module in modules if hasattr(module, "fp32_precision")]
    with _EXACT_LOCK:
        saved = [place.fp32_precision for place in places]
        legacy = None if places else (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        try:
            for place in places:
                place.fp32_precision = "ieee"
            if legacy is not None:
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False
            yield
        finally:
            for place, value in zip(places, saved):
                place.fp32_precision = value
            if legacy is not None:
                torch.set_float32_matmul_precision(legacy[0])
                torch.backends.cudnn.allow_tf32 = legacy[1]


def from_float(model: ProbabilityModel, config: ModelConfig) -> IntegerModel:
    """Quantise a trained P: int8 weights per output channel, integer biases, float32 multipliers.

    Every output channel is checked for sum|w| * 255 + |bias| < 2^24; its scale is lowered where that fails.
    """
    ratio = ACTIVATION_SCALE / INPUT_SCALE
    steps = []
    for step in model.steps:
        w1: Any = step.w1
        split = model.inputs
        first = torch.cat((w1.weight[:, :split] * ratio, w1.weight[:, split:]), dim=1)
        steps.append(
            IntegerStep(
                _layer(first, w1.bias),
                _layer(step.w2.weight, step.w2.bias),  # type: ignore[union-attr, arg-type]
                _layer(step.w3.weight, step.w3.bias),  # type: ignore[union-attr, arg-type]
                _layer(step.w4.weight, step.w4.bias, is_head=True),  # type: ignore[union-attr, arg-type]
            )
        )
    prior = None
    if model.prior is not None:
        first = model.prior.w1.weight * ratio
        prior = (
            _layer(first, model.prior.w1.bias),
            _layer(model.prior.w2.weight, model.prior.w2.bias, is_head=True),
        )
    return IntegerModel(config, steps, prior, make_tables())


def to_float(model: IntegerModel, config: ModelConfig) -> ProbabilityModel:
    """The float P of an integer one, so that training can go on from exported weights; on the CPU.

    Up to the rounding of biases `from_float` gives the same integers back.
    """
    ratio = ACTIVATION_SCALE / INPUT_SCALE
    with torch.no_grad(), torch.device("cpu"):  # where the integers are, whatever the default device is
        result = ProbabilityModel(config)
        for name, layer in model.layers():
            conv = result.get_submodule(name)
            assert isinstance(conv, torch.nn.Conv2d) and conv.bias is not None
            outputs = layer.weight.shape[0]
            is_head = name in ("prior.w2", *(f"steps.{i}.w4" for i in range(len(model.steps))))
            unit, shift = _units(outputs, is_head)
            multiplier = torch.from_numpy(layer.multiplier).double()
            step = multiplier * ACTIVATION_SCALE / unit
            weight = torch.from_numpy(layer.weight).double() * step[:, None, None, None]
            if name.endswith("w1"):  # the columns that see inputs on the coarser grid
                weight[:, : model.maps + model.planes if name.startswith("steps") else model.planes] /= ratio
            conv.weight.copy_(weight)
            conv.bias.copy_((torch.from_numpy(layer.bias).double() * multiplier - shift) / unit)
    return result


def _units(outputs: int, is_head: bool) -> tuple[Tensor, Tensor]:
    """(integers per real unit, integer offset) of a layer's outputs, float64 [outputs] each."""
    unit = torch.full((outputs,), ACTIVATION_SCALE, dtype=torch.float64, device="cpu")
    shift = torch.zeros(outputs, dtype=torch.float64, device="cpu")
    if is_head:
        units = (1.0 / LOGIT_UNIT, 1.0 / MEAN_UNIT, INV_SCALE_OCTAVE)
        unit = torch.tensor(units, dtype=torch.float64, device="cpu").repeat_interleave(outputs // 3)
        shift[-(outputs // 3) :] = 255.0 - INV_SCALE_OCTAVE * LOG2_INV_SCALE_MOST
    return unit, shift


def _layer(weight: Tensor, bias: Tensor | None, is_head: bool = False) -> IntegerLayer:
    """One layer. Hidden layers map sums to activations; heads map them to the int16 units of each parameter."""
    assert bias is not None
    w, offset = weight.detach().double(), bias.detach().double()
    unit, shift = _units(w.shape[0], is_head)
    step = weight_step(weight.detach()).double().view(-1)
    while True:
        integers = (w / step[:, None, None, None]).round()
        multiplier = step * unit / ACTIVATION_SCALE
        biases = ((offset * unit + shift) / multiplier).round()
        too_large = integers.abs().sum(dim=(1, 2, 3)) * 255.0 + biases.abs() >= SUM_LIMIT
        if not bool(too_large.any()):
            break
        step = torch.where(too_large, step * 1.1, step)
    return IntegerLayer(
        integers.to(torch.int8).numpy(), biases.to(torch.int32).numpy(), multiplier.to(torch.float32).numpy()
    )


def to_tensors(model: IntegerModel) -> dict[str, Tensor]:
    """All integers of the model as tensors for safetensors, with the known answer."""
    tensors = {}
    for name, layer in model.layers():
        tensors[f"probability.{name}.weight"] = torch.from_numpy(layer.weight)
        tensors[f"probability.{name}.bias"] = torch.from_numpy(layer.bias)
        tensors[f"probability.{name}.multiplier"] = torch.from_numpy(layer.multiplier)
    tensors["probability.compand"] = torch.from_numpy(model.tables.compand)
    tensors["probability.exp"] = torch.from_numpy(model.tables.exp)
    tensors["probability.inv_scale"] = torch.from_numpy(model.tables.inv_scale)
    tensors["probability.known_answer"] = torch.tensor([model.known_answer("reference")], dtype=torch.int64)
    return tensors


def from_tensors(tensors: dict[str, Tensor], config: ModelConfig) -> IntegerModel:
    """Rebuild a model from `to_tensors`. Raises ModelMismatchError where something is missing or does not fit."""
    p, c = config.probability, config.transform.c
    planes = num_planes(p.num_scales)
    inputs = 4 * c + 4 * len(p.channel_groups) + planes

    def array(name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        found: npt.NDArray[Any] = tensors[f"probability.{name}"].numpy()
        if found.dtype != dtype or found.shape != shape:
            raise ModelMismatchError(
                f"probability.{name} is {found.dtype} {list(found.shape)}, expected {np.dtype(dtype)} {list(shape)}"
            )
        return found

    def layer(name: str, outputs: int, channels: int, kernel: int) -> IntegerLayer:
        weight = array(f"{name}.weight", np.int8, (outputs, channels, kernel, kernel))
        bias = array(f"{name}.bias", np.int32, (outputs,))
        multiplier = array(f"{name}.multiplier", np.float32, (outputs,))
        magnitude = np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)) * 255 + np.abs(bias.astype(np.int64))
        if magnitude.max() >= SUM_LIMIT:
            raise ModelMismatchError(f"the sums of probability.{name} can exceed 2^24")
        if not np.isfinite(multiplier).all():
            raise ModelMismatchError(f"probability.{name}.multiplier is not finite")
        return IntegerLayer(weight, bias, multiplier)

    try:
        steps = [
            IntegerStep(
                layer(f"steps.{i}.w1", p.width, inputs + p.width, 1),
                layer(f"steps.{i}.w2", p.width, p.width, 3),
                layer(f"steps.{i}.w3", p.width, p.width, 3),
                layer(f"steps.{i}.w4", 3 * p.num_mixtures * p.channel_groups[i % len(p.channel_groups)], p.width, 1),
            )
            for i in range(len(CODING_ORDER) * len(p.channel_groups))
        ]
        prior = None
        if p.prior == "learned":
            prior = layer("prior.w1", p.width, planes, 1), layer("prior.w2", 3 * p.num_mixtures * c, p.width, 1)
        tables = IntegerTables(
            array("compand", np.int8, (256,)), array("exp", np.uint16, (256,)), array("inv_scale", np.uint16, (256,))
        )
    except KeyError as error:
        raise ModelMismatchError(f"the weights lack {error}") from None
    if tables.exp[0] == 0 or tables.inv_scale.min() < 1 or tables.inv_scale.max() > INV_SCALE_MAX:
        raise ModelMismatchError("the tables of the probability model hold values that cannot be")
    return IntegerModel(config, steps, prior, tables)


def check_backend(model: IntegerModel, answer: int, backend: str, device: torch.device | None = None) -> None:
    """Compare a backend's known answer with the stored one. Raises BackendError on a mismatch or where it fails."""
    try:
        got = model.known_answer(backend, device)
        if backend == "triton" and device is not None and device.type == "cuda":
            model.device_coder(device).prove()
    except Exception as error:
        if backend != "triton" or isinstance(error, BackendError):
            raise
        # Kernels are compiled for this GPU by this version of Triton: what can go wrong there is not ours to list.
        raise BackendError(f"the triton backend fails here ({type(error).__name__}: {error})") from error
    if got != answer:
        raise BackendError(
            f"the {backend} backend computes other integers here than the model was exported with "
            f"(known answer {got:08x}, expected {answer:08x})"
        )
