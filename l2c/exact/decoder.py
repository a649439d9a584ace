"""Decoding with an integer D: what a trade-off and an encoder's changes mean for it, and which backend computes it."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.errors import BackendError, ConfigError
from l2c.exact.constants import condition, constants, lowered, moved, scales
from l2c.exact.device import DeviceDecoder
from l2c.exact.plain import PlainDecoder, Settings, convolve_integers, scaled_pixels
from l2c.exact.weights import SUM_LIMIT, ExactWeights, split_transform
from l2c.ops import Grid, extension

BACKENDS = ("cpu", "triton", "torch", "reference")
_ANSWER_SIDE = 4  # latents a side of the known answer
_CACHED = 48  # trade-offs, a third of a megabyte each
_TABLES = ("input", "factor", "factor_unit", "head")  # as C++ takes them


@dataclass(frozen=True)
class Changes:
    """What an encoder changed in D for the latents at hand, [h, w].

    Attributes:
        sets: uint8 [rows, columns] of patches, numbers of bias sets, any number beyond them: none; or None.
        band: of these sets. set_grid: where these patches lie in the latents.
        conditions: int8 [K, rows, columns] of patches in 1/64, or None. condition_grid: likewise.
        octaves: float [h, w], by how many octaves lambda is lower at each latent; or None.
    """

    sets: npt.NDArray[np.uint8] | None = None
    band: int = 0
    set_grid: Grid | None = None
    conditions: npt.NDArray[np.int8] | None = None
    condition_grid: Grid | None = None
    octaves: npt.NDArray[np.float64] | None = None


class ExactDecoder:
    """An integer D on a device.

    Args:
        weights: of a model.
        sets: float [bands, k, B], the model's bias sets, or None.
        backend: "auto": C++ on the CPU, Triton on a GPU where they load, else PyTorch; or one of `BACKENDS`.
    Raises:
        BackendError: the backend cannot run here. ConfigError: sets that could make sums wrap.
    """

    def __init__(self, weights: ExactWeights, sets: Tensor | None, device: torch.device, backend: str = "auto") -> None:
        if backend == "auto":
            backend = _fastest(device)
        if backend not in BACKENDS or (backend == "cpu" and device.type != "cpu"):
            raise BackendError(f"an integer D has no backend {backend!r} on {device}")
        reason = extension.triton_reason(device) if backend == "triton" else ""
        if reason:
            raise BackendError(reason)
        self.weights, self.device, self.backend = weights, device, backend
        self._sets = None if sets is None else _integer_sets(weights, sets.double().cpu().numpy())
        self._cpp = _cpp_decoder(weights) if backend == "cpu" else None
        self._kernels = DeviceDecoder(weights, device) if backend == "triton" else None
        convolve = {"convolve": convolve_integers} if backend == "reference" else {}
        self._plain = PlainDecoder(weights, device=device, **convolve) if backend in ("torch", "reference") else None
        native = extension.load_cpp()[0] if backend in ("cpu", "triton") else None
        self._constants = functools.lru_cache(maxsize=_CACHED)(
            lambda first, second: constants(weights, np.array([first, second], np.int64), native)
        )
        count = len(weights.modulators)
        self._scales = functools.lru_cache(maxsize=_CACHED)(
            lambda *conds: [scales(weights, k, np.array(conds)) for k in range(count)]
        )

    def decode(
        self, levels: Tensor, quality: int, mu: int, changes: Changes = Changes(), threads: int | None = None
    ) -> Tensor:
        """Latents + 128, uint8 [c, h, w] on the device -> pixels uint8 [s h, s w, 3] there.

        Args:
            quality: 0..1000. mu: 0..8.
            threads: of C++; None: as many as torch uses.
        """
        settings = self._settings(quality, mu, changes, levels.shape[1:])
        if self._kernels is not None:
            return self._kernels(levels, settings)
        if self._cpp is None:
            assert self._plain is not None
            return self._plain(levels, settings).permute(1, 2, 0)
        told = settings.constants
        tables = (np.stack([getattr(one, name) for one in told]) for name in _TABLES)
        last = np.stack([one.last for one in told if one.last is not None]) if self.weights.config.fine_width else None
        maps = (settings.constants_map, settings.scale_map, settings.bias_map)
        constants_map, scale_map, bias_map = (None if part is None else part.astype(np.int32) for part in maps)
        return torch.from_numpy(
            self._cpp.run(
                np.ascontiguousarray(levels.numpy()), told[0].level, constants_map, *tables, last, scale_map,
                settings.scales, bias_map, settings.biases, torch.get_num_threads() if threads is None else threads,
            )
        )  # fmt: skip

    def scaled(self, levels: Tensor, quality: int, mu: int, scale: int, changes: Changes = Changes()) -> Tensor:
        """The block transform alone, averaged over squares of scale x scale pixels; see `BlockDecoder.scaled`.

        Args:
            scale: 4 or 8, at most s. The others as in `decode`.
        Returns:
            uint8 [s h / scale, s w / scale, 3].
        """
        return scaled_pixels(self.weights, self._settings(quality, mu, changes, levels.shape[1:]), levels, scale)

    def known_answer(self) -> int:
        """CRC-32 of what D makes of fixed latents with moved and lowered conditions: equal everywhere."""
        c, side = self.weights.config.c, _ANSWER_SIDE
        place = np.arange(c * side * side, dtype=np.int64)
        noise = (place * 2654435761 >> 7) % 256
        small = 128 + (noise % 9 - 4) * (place % 3 == 0)
        result = 0
        for levels, quality, mu in ((small, 350, 0), (noise, 900, 5)):
            tensor = torch.from_numpy(levels.astype(np.uint8).reshape(c, side, side)).to(self.device)
            moves = np.arange(len(self.weights.modulators), dtype=np.int8)[:, None, None] + np.int8(mu)
            changes = Changes(
                conditions=np.concatenate([moves, -moves], 2), condition_grid=Grid(3, 1, 2),
                octaves=np.arange(side * side).reshape(side, side) % 3 / 2.0,
            )  # fmt: skip
            pixels = self.decode(tensor, quality, mu, changes).cpu().numpy()
            result = zlib.crc32(np.ascontiguousarray(pixels).tobytes(), result)
        return result

    def check(self, answer: int) -> None:
        """Raises BackendError where the known answer is another one: this machine computes other pixels."""
        try:
            got = self.known_answer()
        except Exception as error:
            # Kernels are compiled for this GPU by this version of Triton: what can go wrong there is not ours to list.
            if self._kernels is None:
                raise
            what = f"the integer D's backend triton fails here ({type(error).__name__}: {error})"
            raise BackendError(what) from error
        if got != answer:
            raise BackendError(
                f"the integer D gives other pixels here than it should ({got:08x}, not {answer:08x}) with the backend "
                f"{self.backend}"
            )

    def _settings(self, quality: int, mu: int, changes: Changes, size: Sequence[int]) -> Settings:
        """What D is told of latents of a height and width."""
        cond = condition(self.weights, quality, mu)
        conds, places = [cond], None
        if changes.octaves is not None:
            octaves, index = np.unique(changes.octaves, return_inverse=True)
            conds = [lowered(self.weights, cond, float(value)) for value in octaves]
            places = index.reshape(changes.octaves.shape).astype(np.int64)
        known = [self._constants(*map(int, one)) for one in conds]
        biases, bias_map = None, None
        if changes.sets is not None:
            if self._sets is None:
                raise ConfigError("the model has no bias sets")
            known_sets = self._sets[changes.band]
            assert changes.set_grid is not None
            numbers = np.minimum(changes.sets.astype(np.int64), len(known_sets) - 1)  # the last one changes nothing
            used, index = np.unique(numbers, return_inverse=True)
            biases = known_sets[used]
            bias_map = _spread(index.reshape(numbers.shape).astype(np.int64), changes.set_grid, size)
        count = len(self.weights.modulators)
        if changes.conditions is None:
            mine = self._scales(*(tuple(one.tolist()) for one in conds))
            return Settings(known, mine, biases, places, places, bias_map)
        assert changes.condition_grid is not None
        rows, columns = changes.conditions.shape[1:]
        moves = changes.conditions.reshape(count, rows * columns)
        numbers = np.arange(rows * columns).reshape(rows, columns)
        patches = _spread(numbers, changes.condition_grid, size)
        both = patches if places is None else patches * len(conds) + places
        used, index = np.unique(both, return_inverse=True)
        pairs = [divmod(int(one), 1 if places is None else len(conds)) for one in used]
        told = [
            scales(self.weights, k, np.stack([moved(conds[at], int(moves[k, patch])) for patch, at in pairs]))
            for k in range(count)
        ]
        return Settings(known, told, biases, places, index.reshape(both.shape).astype(np.int64), bias_map)


def _fastest(device: torch.device) -> str:
    """The backend that "auto" stands for."""
    if os.environ.get("L2C_BACKEND") not in ("torch", "reference"):
        if device.type == "cpu" and extension.load_cpp()[0] is not None:
            return "cpu"
        if device.type == "cuda" and not extension.triton_reason(device):
            return "triton"
    return "torch"


def _spread(values: npt.NDArray[np.int64], grid: Grid, size: Sequence[int]) -> npt.NDArray[np.int64]:
    """Values of patches at every latent."""
    rows, columns = (
        ((np.arange(length) + start) // grid.side).clip(0, count - 1)
        for length, start, count in zip(size, (grid.top, grid.left), values.shape)
    )
    return values[rows[:, None], columns[None]]


def _cpp_decoder(weights: ExactWeights) -> Any:
    """See csrc/exact/decoder.h."""
    config = weights.config
    layers = {
        name: tuple(np.ascontiguousarray(part) for part in (layer.weight, layer.bias, layer.multiplier, layer.zero))
        for name, layer in weights.convolutions.items()
    }
    high, low = split_transform(weights.transform)
    return extension.cpp_extension().ExactDecoder(config.s, config.c, config.decoder_blocks, layers, high, low)


def _integer_sets(weights: ExactWeights, values: npt.NDArray[np.float64]) -> list[npt.NDArray[np.int32]]:
    """Bias sets [bands, k, B] in units of the sums, and a last one that changes nothing: int32 [k + 1, B] of each band.

    Raises:
        ConfigError: a set is not of D's biases, or with it a sum could wrap.
    """
    layers = [layer for name, layer in weights.convolutions.items() if name != "local_gain"]
    unit = np.concatenate([layer.bias_unit for layer in layers]).astype(np.float64)
    if values.shape[2] != len(unit):
        raise ConfigError(f"bias sets of {values.shape[2]} biases do not fit the integer D, which has {len(unit)}")
    changes = np.rint(values * unit)
    size = [layer.most + np.abs(layer.bias.astype(np.int64)) for layer in layers]
    if (np.abs(changes) + np.concatenate(size) >= SUM_LIMIT).any():
        raise ConfigError("with the bias sets, sums of the integer D could pass int32")
    nothing = np.zeros((1, len(unit)), np.int32)
    return [np.concatenate((band.astype(np.int32), nothing)) for band in changes]
