"""Q: what lies between E's latents, the symbols that are coded, and the latents that D gets. A family names its own.

Levels          256 levels in a byte and coarser steps of b < 8 bits (L2C III): the default
WholeNumbers    y rounded, in 16 bits
Sixteenths      y in 16 bits, 1/16 each: rounded to whole steps from a mean that only the coder knows, as the codecs of
                CompressAI round it
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.architectures import LATENT_MAX, MEAN_LATENT_MAX, MEAN_UNITS
from l2c.ops import dequantise, quantise, to_levels
from l2c.transforms.masking import clipping, importance_mask


class Quantiser(abc.ABC):
    """One way from latents to symbols and back.

    Attributes:
        dtype: of the symbols.
        least_bits: the fewest bits b that it knows.
        lowest, end: latents lie from `lowest` to one step below `end`.
        is_final: whether symbols are what is coded; else the coder rounds them (`EntropyModel.code`).
    """

    dtype: np.dtype[Any]
    least_bits: int
    lowest: float
    end: float
    is_final = True

    @abc.abstractmethod
    def zero(self, b: int) -> int:
        """The symbol of a latent 0."""

    @abc.abstractmethod
    def quantise(self, y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
        """Symbols of latents, floating [N, c, h, w], after the mask of L2C Eq. 2 where tau is given.

        Args:
            y: in quantiser steps of b = 8, finite. b: bits, or those of each picture, int64 [N].
            tau: float32 [N, 1, h, w] in [0, 1], or None.
        """

    @abc.abstractmethod
    def dequantise(self, symbols: Tensor, b: int | Tensor) -> Tensor:
        """Latents of symbols, float32 of the same shape."""

    @abc.abstractmethod
    def to_levels(self, y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
        """`quantise` and `dequantise` in one, without a gradient."""

    @abc.abstractmethod
    def clipping(self, y: Tensor, b: int, tau: Tensor | None = None) -> Tensor:
        """What latents lose at the ends of their range, as a share of what rounding costs: float32 [N, h, w]."""

    def used_channels(self, symbols: Tensor, b: int) -> int:
        """Highest used channel count of one picture or tile: symbols [c, h, w]; 0 if all of it is zero."""
        used = (symbols != self.zero(b)).flatten(1).any(dim=1).nonzero()
        return int(used[-1]) + 1 if len(used) else 0


class Levels(Quantiser):
    """2^b levels, uint8, in steps of 2^(8-b) around the middle one; see `ops.quantise`."""

    dtype, least_bits, lowest, end = np.dtype(np.uint8), 1, -128.0, 128.0

    def zero(self, b: int) -> int:
        return 1 << (b - 1)

    def quantise(self, y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
        return quantise(y, b, tau)

    def dequantise(self, symbols: Tensor, b: int | Tensor) -> Tensor:
        return dequantise(symbols, b)

    def to_levels(self, y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
        return to_levels(y, b, tau)

    def clipping(self, y: Tensor, b: int, tau: Tensor | None = None) -> Tensor:
        return clipping(y, b, tau)


class WholeNumbers(Quantiser):
    """round(y), int16 within +-LATENT_MAX; b is always 8."""

    dtype, least_bits, lowest, end = np.dtype(np.int16), 8, -float(LATENT_MAX), LATENT_MAX + 1.0

    def zero(self, b: int) -> int:
        return 0

    def quantise(self, y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
        return self.to_levels(y, b, tau).to(torch.int16)

    def dequantise(self, symbols: Tensor, b: int | Tensor) -> Tensor:
        return symbols.float()

    def to_levels(self, y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            if tau is not None:
                y = y * importance_mask(tau, y.shape[1])
            return y.float().round().clamp(-LATENT_MAX, LATENT_MAX)

    def clipping(self, y: Tensor, b: int, tau: Tensor | None = None) -> Tensor:
        excess = (y.float().abs() - LATENT_MAX).clamp_min(0.0)
        return 12.0 * excess.square().mean(dim=1)


class Sixteenths(Quantiser):
    """y in 1/16, int16 within +-`MEAN_LATENT_MAX`; b is always 8.

    The coder gives what D gets: mu + round(y - mu), with mu in 1/16 as P computes it from what is coded before.
    """

    dtype, least_bits, is_final = np.dtype(np.int16), 8, False
    lowest, end = -float(MEAN_LATENT_MAX), MEAN_LATENT_MAX + 1.0

    def zero(self, b: int) -> int:
        return 0

    def quantise(self, y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
        return (self.to_levels(y, b, tau) * MEAN_UNITS).to(torch.int16)

    def dequantise(self, symbols: Tensor, b: int | Tensor) -> Tensor:
        return symbols.float() / MEAN_UNITS

    def to_levels(self, y: Tensor, b: int | Tensor, tau: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            if tau is not None:
                y = y * importance_mask(tau, y.shape[1])
            return (y.float().clamp(-MEAN_LATENT_MAX, MEAN_LATENT_MAX) * MEAN_UNITS).round() / MEAN_UNITS

    def clipping(self, y: Tensor, b: int, tau: Tensor | None = None) -> Tensor:
        excess = (y.float().abs() - MEAN_LATENT_MAX).clamp_min(0.0)
        return 12.0 * excess.square().mean(dim=1)


LEVELS, WHOLE_NUMBERS, SIXTEENTHS = Levels(), WholeNumbers(), Sixteenths()
