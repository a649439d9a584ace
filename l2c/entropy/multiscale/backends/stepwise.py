"""P step by step from Python: one engine in PyTorch, one in int64 numpy, and the walk that both share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.entropy.base import Backend
from l2c.entropy.coder import Int16Array, Job, UInt8Array, batches
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.entropy.multiscale.schedule import Turn, scale_sizes
from l2c.ops import reference
from l2c.ops.arithmetic import carrier, exact_products
from l2c.ops.contract import AVAILABLE, POSITIONS

_BATCH_POSITIONS = 1 << 17  # latent positions that share a pass of the torch engine: some hundreds of MB


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


def walk(weights: IntegerWeights, jobs: Sequence[Job], engine: Engine) -> list[UInt8Array]:
    """Take some jobs to their end together: symbols uint8 [c, height, width] of each."""
    sizes = [scale_sizes(job.height, job.width, weights.config.num_scales) for job in jobs]
    canvases: list[Int16Array] = []  # of the scale at hand, int16 [h, w, c]
    for turn in weights.turns:
        if turn.index == 0:
            known = canvases
            canvases = [np.zeros((*size[turn.scale], weights.c), dtype=np.int16) for size in sizes]
            if not turn.is_last_scale:
                engine.start_scale(turn.scale, known)
                for canvas, coarse in zip(canvases, known):
                    canvas[::2, ::2] = coarse
        if turn.is_last_scale:
            for i, (job, canvas) in enumerate(zip(jobs, canvases)):
                raw = None if weights.prior is None else engine.prior(i)  # the same everywhere
                everywhere = None if raw is None else np.broadcast_to(raw, (*canvas.shape[:2], *raw.shape))
                _code(weights, job, turn, canvas, everywhere)
            continue
        dy, dx = POSITIONS[turn.position]
        parts = [canvas[dy::2, dx::2] for canvas in canvases]  # views: filling them fills the canvas
        for job, part, raw in zip(jobs, parts, engine.step(turn.index)):
            _code(weights, job, turn, part, raw)
        engine.fill(turn.position, turn.group, [part[:, :, turn.channels] for part in parts])
    return [_symbols(canvas, job.point.bits) for canvas, job in zip(canvases, jobs)]


def _code(weights: IntegerWeights, job: Job, turn: Turn, part: Int16Array, raw: Int16Array | None) -> None:
    """Code one turn of one picture and fill it in.

    Args:
        part: int16 [rows, columns, c], the latents at its positions; written in place.
        raw: int16 [>= rows, >= columns, 3, K, used], head output of its cells; None: equally likely symbols.
    """
    used = turn.coded(job.used)
    rows, columns = part.shape[:2]
    if not (used and rows and columns):
        return
    place = turn.place(used)
    if raw is None:
        symbols = job.raw(place, rows * columns * used)
    else:
        symbols = job.mixture(place, *weights.mixture(raw[:rows, :columns]))
    part[:, :, turn.start : turn.start + used] = _latents(symbols, job.point.bits).reshape(rows, columns, used)


def _latents(symbols: UInt8Array, b: int) -> Int16Array:
    return (symbols.astype(np.int16) - (1 << (b - 1))) << (8 - b)


def _symbols(latents: Int16Array, b: int) -> UInt8Array:
    """[h, w, c] latents -> [c, h, w] symbols."""
    return np.ascontiguousarray(((latents >> (8 - b)) + (1 << (b - 1))).astype(np.uint8).transpose(2, 0, 1))


class _PlanarEngine:
    """What the torch and the reference engine share: inputs [N, channels, h, w], literal planes, padded batches."""

    def __init__(self, model: IntegerWeights, jobs: Sequence[Job]) -> None:
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
            u[i, model.maps :, :h, :w] = model.planes_of(self.jobs[i].point)[scale][:, None, None]
        return u, inside

    def _fill_slices(self, position: int, group: int) -> tuple[slice, int]:
        """(value channels, availability channel) of one group."""
        sizes = self.model.config.channel_groups
        start = position * self.model.c + sum(sizes[:group])
        return slice(start, start + sizes[group]), self.model.values + position * len(sizes) + group

    def _split(self, raw: npt.NDArray[np.int16], index: int) -> list[Int16Array]:
        """Head output [N, 3 K size, h, w] -> per picture [h, w, 3, K, used]."""
        turn = self.model.turns[1 + index]  # behind the last scale; all scales have the same ones
        size, k = turn.size, self.model.config.num_mixtures
        parts = raw.transpose(0, 2, 3, 1).reshape(raw.shape[0], raw.shape[2], raw.shape[3], 3, k, size)
        return [part[..., : turn.coded(job.used)] for part, job in zip(parts, self.jobs)]

    def prior(self, index: int) -> Int16Array:
        """See `Engine.prior`."""
        job = self.jobs[index]
        return self.model.prior_output(job.point)[:, :, : job.used]


class TorchEngine(_PlanarEngine):
    """Integers carried by floats in PyTorch convolutions; a padded batch, re-zeroed outside after every layer."""

    def __init__(self, backend: TorchBackend, jobs: Sequence[Job], device: torch.device) -> None:
        super().__init__(backend.weights, jobs)
        self.backend, self.device, self.dtype = backend, device, carrier(device)

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
        w1, w2, w3, w4 = self.backend.layers(index, self.device)
        h1 = self.conv(torch.cat((self.u, self.q), dim=1), w1).clamp(0, 255) * self.inside
        h2 = self.conv(h1, w2).clamp(0, 255) * self.inside
        self.q = (h1 + self.conv(h2, w3)).clamp(0, 255) * self.inside
        raw = self.conv(self.q, w4).clamp(-32768, 32767)
        return self._split(raw.to(torch.int16).cpu().numpy(), index)

    def fill(self, position: int, group: int, latents: list[Int16Array]) -> None:
        channels, available = self._fill_slices(position, group)
        for i, part in enumerate(latents):
            values = self.model.tables.compand[part + 128].transpose(2, 0, 1)
            h, w = part.shape[:2]
            self.u[i, channels, :h, :w] = torch.from_numpy(values).to(self.device, self.dtype)
            self.u[i, available, :h, :w] = AVAILABLE

    @staticmethod
    def conv(x: Tensor, layer: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """round_half_even((conv(x, w) + bias) * multiplier): exact, since every partial sum is below 2^24."""
        weight, bias, multiplier = layer
        total = F.conv2d(x, weight, padding=weight.shape[2] // 2) + bias
        return (total.float() * multiplier).round().to(x.dtype)


class ReferenceEngine(_PlanarEngine):
    """int64 throughout, written for reading; one picture at a time, so padding cannot matter."""

    def __init__(self, model: IntegerWeights, jobs: Sequence[Job]) -> None:
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


class TorchBackend(Backend):
    """Integers carried by floats in PyTorch convolutions, any device, pictures batched."""

    name, spoken, cost = "torch", "PyTorch", 16
    asks = True
    instead, second = ("reference",), ("cpu", "reference")

    def __init__(self, weights: IntegerWeights) -> None:
        self.weights = weights
        self._layers: dict[tuple[int, torch.device], list[tuple[Tensor, Tensor, Tensor]]] = {}

    def layers(self, index: int, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(weight, bias [1, O, 1, 1], multiplier [1, O, 1, 1]) of w1..w4 of a step on a device, made once.

        Weights and biases have the dtype that carries the sums, multipliers are float32.
        """
        key, dtype = (index, device), carrier(device)
        if key not in self._layers:
            step = self.weights.steps[index]
            self._layers[key] = [
                (
                    torch.from_numpy(layer.weight).to(device, dtype),
                    torch.from_numpy(layer.bias).to(device, dtype).view(1, -1, 1, 1),
                    torch.from_numpy(layer.multiplier).to(device).view(1, -1, 1, 1),
                )
                for layer in (step.w1, step.w2, step.w3, step.w4)
            ]
        return self._layers[key]

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[UInt8Array]:
        results = []
        for part in batches(jobs, _BATCH_POSITIONS):
            with exact_products(device):
                results += walk(self.weights, part, TorchEngine(self, part, device))
        return results


class ReferenceBackend(Backend):
    """int64 arithmetic, written for reading (`l2c.ops.reference`): the definition."""

    name, spoken, cost = "reference", "the exact slow path", 200
    asks = True
    is_definition = True

    def __init__(self, weights: IntegerWeights) -> None:
        self.weights = weights

    def suits(self, device: torch.device) -> bool:
        return False

    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[UInt8Array]:
        return [walk(self.weights, [job], ReferenceEngine(self.weights, [job]))[0] for job in jobs]
