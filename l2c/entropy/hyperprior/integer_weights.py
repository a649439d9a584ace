"""The integers of a hyperprior model as data: layers, tables and what follows from them. Backends compute with it.

One `IntegerLevel` for each of the model's qualities. What it computes, in the order of the stream of a tile:

    z           uint8 [N, ceil(h/4), ceil(w/4)], the hyper-latent + 128, under the table of its channel
    h_s         3x3 layers over max(z, 0) and max(-z, 0), some followed by a pixel shuffle; zeros outside the tile.
                Hidden activations are uint8, zero at 0. The last output, cropped to [h, w], is by kind
                  context: uint8 [2M], value + 128;  mean: a head int16 [2M];  scale: a head int16 [M], sigma alone
    context     a 1x1 layer over the 12 live taps of a masked 5x5 convolution, gathered in raster order (input
                tap * M + channel), each tap(y) + 128, and 128 outside the tile -> uint8 [2M], value + 128
                  tap(y) = clamp((y + half) >> shift, -128, 127) with half = (1 << shift) >> 1 of its channel
    parameters  1x1 layers over (h_s, context), 4M inputs that hold 128 more -> uint8 -> uint8 -> a head int16 [2M]
    head        the first M outputs are sigma in 1/128, the last M the mean in 1/64 (`reference.gaussian_mixture`)
    y           clamp(d, -128, 127) + 128 under that mixture; kind factorized has no z: its k is `offset`, and each
                channel has a table

    latents     y are whole numbers, d = y - k; or, rounded from their means, sixteenths (`fraction` = 4): what is coded
                of a latent y is d = (y - k + 8) >> 4, what comes out k + 16 d, k being its mean in sixteenths

    layers      sums int32, 255 sum|w| + |bias| < 2^31;  r = round_half_even(float32(sum) * multiplier), clamped to the
                type of the output (csrc/simd/int_conv.h)

Groups of y: of a context model the wavefronts t = x + 3 y, positions by rising row; of the others all positions in
raster order at once. Channels are innermost, and only those below the tile's `used` are coded; the others are zero.

Escapes: symbol 0 stands for d <= -128, symbol 255 for d >= 127, and what is beyond follows after the symbols of the
group: min(rest, 255) for every escape in order, then the same of what remains of those whose digit was 255, and so on,
at most 32 times, under one logistic around 0. What comes out must fit in int16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l2c.architectures import HYPER_STRIDE, LATENT_MAX, MEAN_LATENT_MAX, MEAN_UNITS, Architecture, Kind, nearest
from l2c.entropy.coder import Int16Array, Tables, UInt8Array
from l2c.entropy.hyperprior.config import HyperpriorConfig
from l2c.format.levels import OperatingPoint
from l2c.ops.contract import SIDE_PRECISION, IntegerLayer


@dataclass(frozen=True)
class HyperLayer:
    """A layer of h_s; `shuffle`: its 4 C outputs become C at twice the height and width (torch's PixelShuffle)."""

    layer: IntegerLayer
    shuffle: bool


@dataclass(frozen=True)
class IntegerLevel:
    """The integers of one quality; see the module for what they are for.

    Attributes:
        kind: of the architecture.
        z_cdf: uint32 [N, 257], a row for each channel of z, rising by at least 1 from 0 to 2^16; N = 0 if factorized.
        hyper: h_s; () if factorized.
        context: [2M, 12M, 1, 1] of kind "context", else None.
        shift: uint8 [M], 0..8, of the taps' inputs.
        parameters: three layers of kind "context", else ().
        offset: int16 [M], k of kind "factorized"; zeros of the others.
        y_cdf: uint32 [M, 257] of kind "factorized", as z_cdf; else none, [0, 257].
        fraction: bits of a latent behind the point: 0, whole numbers, or 4, rounded from their means.
    """

    kind: Kind
    z_cdf: npt.NDArray[np.uint32]
    hyper: tuple[HyperLayer, ...]
    context: IntegerLayer | None
    shift: UInt8Array
    parameters: tuple[IntegerLayer, ...]
    offset: Int16Array
    y_cdf: npt.NDArray[np.uint32]
    fraction: int = 0

    @property
    def most(self) -> int:
        """The largest size of a known latent."""
        return MEAN_LATENT_MAX << self.fraction if self.fraction else LATENT_MAX

    @property
    def c(self) -> int:
        """M, channels of y."""
        return len(self.shift)

    @property
    def n(self) -> int:
        """N, channels of z; 0 if factorized."""
        return len(self.z_cdf)

    def layers(self) -> Iterator[tuple[str, IntegerLayer]]:
        """All layers by name."""
        for i, part in enumerate(self.hyper):
            yield f"hyper.{i}", part.layer
        if self.context is not None:
            yield "context", self.context
        for i, layer in enumerate(self.parameters):
            yield f"parameters.{i}", layer


class HyperpriorWeights:
    """One model's integers.

    Attributes:
        config: of the model. c: M, channels of y.
        levels: one for each of the config's qualities.
    """

    def __init__(self, config: HyperpriorConfig, c: int, levels: Sequence[IntegerLevel]) -> None:
        self.config = config
        self.c = c
        self.levels = tuple(levels)

    def index_of(self, point: OperatingPoint) -> int:
        """Which level codes latents of an operating point."""
        return nearest(point.quality_tenths, self.config.qualities)

    def level_of(self, point: OperatingPoint) -> IntegerLevel:
        """The level that codes latents of an operating point."""
        return self.levels[self.index_of(point)]


def fraction_of(config: HyperpriorConfig) -> int:
    """Bits of a latent behind the point."""
    return MEAN_UNITS.bit_length() - 1 if config.rounding == "mean" else 0


def hyper_plan(facts: Architecture, n: int, c: int) -> list[tuple[int, bool]]:
    """(channels after the shuffle, whether there is one) of each layer of h_s; none if factorized."""
    last = {"factorized": 0, "scale": c, "mean": 2 * c, "context": 2 * c}[facts.kind]
    if not last:
        return []
    if facts.residual:
        return [(n, False), (n, True), (3 * n // 2, False), (3 * n // 2, True), (last, False)]
    first, second = (n, n) if facts.kind == "scale" else (c, 3 * c // 2)
    return [(first, True), (second, True), (last, False)]


def side_shape(n: int, height: int, width: int) -> tuple[int, int, int]:
    """[N, ceil(h/4), ceil(w/4)] of z for latents [h, w]."""
    return n, -(-height // HYPER_STRIDE), -(-width // HYPER_STRIDE)


def tables_of(cdf: npt.NDArray[np.uint32]) -> Tables:
    """Rows uint32 [T, 257] as the coder takes them."""
    return Tables(cdf, np.full(len(cdf), cdf.shape[1], dtype=np.int32), SIDE_PRECISION)


def groups(kind: Kind, height: int, width: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(rows, columns), int64 [n] each, of the positions of every group, in coding order."""
    if kind != "context":
        rows, columns = np.divmod(np.arange(height * width), width)
        yield rows, columns
        return
    for t in range(num_wavefronts(height, width)):
        rows, columns = wavefront(t, height, width)
        if len(rows):  # a narrow tile has steps without a position
            yield rows, columns


def num_wavefronts(height: int, width: int) -> int:
    return width + 3 * (height - 1)


def wavefront(t: int, height: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(rows, columns) of the positions at x + 3 y = t."""
    rows = np.arange(max(0, -((width - 1 - t) // 3)), min(height - 1, t // 3) + 1)
    return rows, t - 3 * rows
