"""Random hyperprior models in integers, with activations and rates like those of trained ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from l2c.architectures import ARCHITECTURES, Kind
from l2c.entropy.hyperprior.integer_weights import HyperLayer, IntegerLevel, side_shape
from l2c.ops.contract import IntegerLayer

TOTAL = 1 << 16


def random_table(rng: np.random.Generator, rows: int, centre: float = 128.0) -> npt.NDArray[np.uint32]:
    """uint32 [rows, 257], bells around a symbol, every symbol at least 1."""
    x = np.arange(256)[None] - centre - rng.normal(0, 2, (rows, 1))
    pmf = np.exp(-np.abs(x) / rng.uniform(0.3, 4, (rows, 1)))
    pmf = np.floor(pmf / pmf.sum(axis=1, keepdims=True) * (TOTAL - 256)).astype(np.int64) + 1
    pmf[np.arange(rows), pmf.argmax(axis=1)] += TOTAL - pmf.sum(axis=1)
    return np.concatenate((np.zeros((rows, 1), np.int64), pmf.cumsum(axis=1)), axis=1).astype(np.uint32)


class LevelMaker:
    """Makes layers one after another, each scaled by what comes out of the ones before over a random input."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def layer(
        self, x: torch.Tensor, outputs: int, kernel: int, unit: Any, shift: Any = 0.0
    ) -> tuple[IntegerLayer, torch.Tensor]:
        """A layer over x [1, I, h, w] (real zeros at 0) whose outputs have a deviation of `unit` around `shift`."""
        rng, inputs = self.rng, x.shape[1]
        weight = rng.laplace(0, 16, (outputs, inputs, kernel, kernel)).round().clip(-127, 127).astype(np.int8)
        total = F.conv2d(x, torch.from_numpy(weight).float(), padding=kernel // 2)[0]
        mean, deviation = total.mean(dim=(1, 2)).numpy(), total.std(dim=(1, 2), correction=0).numpy()
        multiplier = (np.broadcast_to(unit, (outputs,)) / np.maximum(deviation, 1.0)).astype(np.float32)
        bias = (np.broadcast_to(shift, (outputs,)) / multiplier - mean).round().clip(-(2**22), 2**22).astype(np.int32)
        out = (total + torch.from_numpy(bias)[:, None, None]) * torch.from_numpy(multiplier)[:, None, None]
        return IntegerLayer(weight, bias, multiplier), out.round()[None]

    def level(self, kind: Kind, n: int, m: int, *, residual: bool = False, spread: float = 1.0) -> IntegerLevel:
        """`residual`: h_s as in Cheng2020; `spread`: of sigma and mean, 1 for a rate like that of a low quality."""
        rng = self.rng
        none = np.zeros((0, 257), np.uint32)
        shift = (rng.random(m) < 0.05).astype(np.uint8) * rng.integers(1, 6, m).astype(np.uint8)
        if kind == "factorized":
            offset = rng.integers(-40, 40, m).astype(np.int16)
            return IntegerLevel(kind, none, (), None, shift * 0, (), offset, random_table(rng, m))
        z = torch.from_numpy(rng.laplace(0, 1.5, (1, n, 8, 8)).round().clip(-128, 127)).float()
        x = torch.cat((z.clamp_min(0), (-z).clamp_min(0)), dim=1)
        wide = m * 3 // 2 if kind != "scale" else n
        plan = (
            [(n, False), (n, True), (n * 3 // 2, False), (n * 3 // 2, True)] if residual else [(m, True), (wide, True)]
        )
        hyper = []
        for outputs, shuffle in plan:
            layer, out = self.layer(x, outputs * (4 if shuffle else 1), 3, 50.0, 5.0)
            x = out.clamp(0, 255)
            x = F.pixel_shuffle(x, 2) if shuffle else x
            hyper.append(HyperLayer(layer, shuffle))
        sigma = 128 * spread * np.exp(rng.normal(-1.2, 1.2, m))
        head = np.concatenate((sigma / 2, 64 * rng.exponential(spread, m) + 4))
        middle = np.concatenate((sigma, 64 * rng.normal(0, 0.3 * spread, m)))
        if kind == "context":
            layer, out = self.layer(x, 2 * m, 3, 40.0, 128.0)
            hyper.append(HyperLayer(layer, False))
            y = torch.from_numpy(rng.laplace(0, 1.0, (1, 12 * m, 16, 16)).round().clip(-128, 127)).float()
            context, predicted = self.layer(y, 2 * m, 1, 40.0, 128.0)
            crop = out[:, :, :16, :16].clamp(0, 255)
            x = torch.cat((crop, predicted[:, :, : crop.shape[2], : crop.shape[3]].clamp(0, 255)), dim=1) - 128
            first, out = self.layer(x, 10 * m // 3, 1, 50.0, 0.0)
            second, out = self.layer(out.clamp(0, 255), 8 * m // 3, 1, 50.0, 0.0)
            third, _ = self.layer(out.clamp(0, 255), 2 * m, 1, head, middle)
            parameters: tuple[IntegerLayer, ...] = (first, second, third)
        else:
            outputs = m if kind == "scale" else 2 * m
            layer, _ = self.layer(x, outputs, 3, head[:outputs], middle[:outputs])
            hyper.append(HyperLayer(layer, False))
            context, parameters = None, ()
        offset = np.zeros(m, np.int16)
        return IntegerLevel(kind, random_table(rng, n), tuple(hyper), context, shift, parameters, offset, none)


def random_level(
    architecture: str, n: int, m: int, seed: int = 0, spread: float = 1.0, rounding: str = "whole"
) -> IntegerLevel:
    """A level of one of the architectures, at any size."""
    facts = ARCHITECTURES[architecture]
    level = LevelMaker(seed).level(facts.kind, n, m, residual=facts.residual, spread=spread)
    return dataclasses.replace(level, fraction=4 if rounding == "mean" else 0)


def some_latents(level: IntegerLevel, height: int, width: int, seed: int = 0) -> npt.NDArray[np.int16]:
    """Latents int16 [M, height, width], most of them small, every eleventh anywhere within the limits."""
    rng = np.random.default_rng(seed)
    y = rng.laplace(0, 3 << level.fraction, (level.c, height, width)).round().clip(-level.most, level.most)
    y.reshape(-1)[::11] = rng.integers(-level.most, level.most + 1, len(y.reshape(-1)[::11]))
    return y.astype(np.int16)


def some_side(level: IntegerLevel, height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Hyper-latents uint8 [N, ceil(height / 4), ceil(width / 4)]."""
    rng = np.random.default_rng(seed)
    z = rng.laplace(128, 4, side_shape(level.n, height, width))
    z.reshape(-1)[::7] = rng.integers(0, 256, len(z.reshape(-1)[::7]))
    return z.round().clip(0, 255).astype(np.uint8)
