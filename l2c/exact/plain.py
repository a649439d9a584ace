"""An integer D in PyTorch: the definition that C++ and the kernels are tested against, and what runs without them.

Sums are int64 (`convolve_integers`, slow: for tests), or floats of integers that these hold exactly in any order:
float64 below 2^53, on GPUs float32 for layers whose sums stay below 2^24.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.exact.constants import Constants
from l2c.exact.weights import (
    CLAMP,
    COEFFICIENT_BITS,
    DETAIL_BITS,
    FACTOR_STEP_BITS,
    LEVEL_BITS,
    LOW_BITS,
    PIXEL_BITS,
    REST_BITS,
    REST_ZERO,
    SPLIT,
    STREAM_BITS,
    TRANSFORM_BITS,
    ExactConv,
    ExactWeights,
    split_transform,
)
from l2c.ops import arithmetic
from l2c.ops.contract import SUM_LIMIT as NARROW_SUM_LIMIT

SLOPE = 0.1  # of every LeakyReLU: below zero a multiplier is float32(0.1) times what it is above, in one product
Convolve = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What D is told of a picture. Maps are int64 [h, w]: which value holds at each latent; None: the first everywhere.

    Attributes:
        constants: values of the trade-off's tables. constants_map: theirs.
        scales: float32 [values, channels] of each modulator. scale_map: theirs.
        biases: int32 [values, B], changes in units of the sums, layers in the order in which they run; or None.
        bias_map: theirs.
    """

    constants: Sequence[Constants]
    scales: Sequence[npt.NDArray[np.float32]]
    biases: npt.NDArray[np.int32] | None = None
    constants_map: npt.NDArray[np.int64] | None = None
    scale_map: npt.NDArray[np.int64] | None = None
    bias_map: npt.NDArray[np.int64] | None = None


def convolve_exactly(x: Tensor, weight: Tensor) -> Tensor:
    """Floats of integers, [N, I, h, w] and [O, I, k, k] -> [N, O, h - k + 1, w - k + 1] in the same type.

    On GPUs inside `ops.arithmetic.exact_products`, so that nothing there chooses a form that rounds.
    """
    return F.conv2d(x, weight)


def convolve_integers(x: Tensor, weight: Tensor) -> Tensor:
    """The same in int64."""
    n, kernel = len(x), weight.shape[2]
    height, width = x.shape[2] - kernel + 1, x.shape[3] - kernel + 1
    windows = x.long().unfold(2, kernel, 1).unfold(3, kernel, 1)  # [N, I, h, w, k, k]
    columns = windows.permute(0, 2, 3, 1, 4, 5).reshape(n * height * width, -1)
    sums = columns @ weight.long().flatten(1).T
    return sums.view(n, height, width, -1).permute(0, 3, 1, 2)


class PlainDecoder:
    """Decodes latents with integers.

    Args:
        weights: of a model. convolve: see the module. device: where.
    """

    def __init__(
        self, weights: ExactWeights, convolve: Convolve = convolve_exactly, device: torch.device | None = None
    ) -> None:
        self.weights, self._convolve = weights, convolve
        self._device = torch.device("cpu") if device is None else device
        self._layers = {
            name: self._on_device(layer.weight).to(_carrier(layer, self._device))
            for name, layer in weights.convolutions.items()
        }
        self._transform = [self._on_device(p).double()[:, :, None, None] for p in split_transform(weights.transform)]

    @torch.no_grad()
    def __call__(self, levels: Tensor, settings: Settings) -> Tensor:
        """Latents + 128, uint8 [c, h, w] -> uint8 [3, s h, s w]."""
        with arithmetic.exact_products(self._device):
            return _Run(self, levels, settings).pixels()

    def _on_device(self, values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def sums(self, name: str, x: Tensor) -> Tensor:
        """Of a convolution, without biases: x float64 [1, I, h, w] of bytes -> float64 [1, O, h, w]."""
        layer, weight = self.weights.convolutions[name], self._layers[name]
        if weight.shape[2] > 1:
            zero = self._on_device(layer.zero).double()[None, :, None, None]
            x = F.pad(x - zero, (1, 1, 1, 1)) + zero
        return self._convolve(x.to(weight.dtype), weight)


def _carrier(layer: ExactConv, device: torch.device) -> torch.dtype:
    """The float type that carries a layer's sums exactly, in any order: the device's own for integers where it can."""
    return arithmetic.carrier(device) if layer.most.max() < NARROW_SUM_LIMIT else torch.float64


class _Run:
    """One picture."""

    def __init__(self, decoder: PlainDecoder, levels: Tensor, settings: Settings) -> None:
        self._decoder, self._settings = decoder, settings
        self._weights, self._device = decoder.weights, levels.device
        self._levels, self._rows = levels, levels.shape[1]
        self._next_bias = 0

    def pixels(self) -> Tensor:
        weights, config, index = self._weights, self._weights.config, self._levels.long()
        x = self._told(lambda known: self._pick(known.input, torch.cat((index, index))).double()[None])
        stream = self._leaky("first", self._sums("first", x), 32767.0)
        for i in range(config.decoder_blocks):
            stream = self._block(f"blocks.{i}", f"blocks.{i}.conv1", stream, i)
        x = self._bytes(stream, "head")
        sums = self._sums("head", x)
        coefficients = self._told(lambda known: self._scaled(sums, known.head)).clamp(-32768.0, 32767.0)
        local = torch.zeros_like(self._levels, dtype=torch.int64)
        if config.local_gain:
            multiplier = weights.convolutions["local_gain"].multiplier
            local = self._scaled(self._sums("local_gain", x), multiplier)[0].clamp(-32768.0, 32767.0).long() + 32768
        latents = self._told(lambda known: self._dequantised(known, index, local)[None])[0]
        coefficients[:, : config.c] = (coefficients[:, : config.c] + latents).clamp(-32768.0, 32767.0)
        high, low = (self._decoder._convolve(coefficients, part).long() for part in self._decoder._transform)
        out = F.pixel_shuffle(high + ((low + (1 << (LOW_BITS - 1))) >> LOW_BITS), config.s)
        if config.fine_width:
            fine = F.pixel_shuffle(self._leaky("up", self._sums("up", x), 32767.0), 2)
            fine = self._block("fine_block", "fine_block.conv1", fine, config.decoder_blocks)
            fine_sums = self._sums("last", self._bytes(fine, "last"))
            detail = self._told(lambda known: self._scaled(fine_sums, known.last))  # type: ignore[arg-type]
            detail = detail.clamp(-32768.0, 32767.0).long()
            out = out + (F.pixel_shuffle(detail, config.s // 2) << (PIXEL_BITS - DETAIL_BITS))
        middle = (255 << (PIXEL_BITS - 1)) + (1 << (PIXEL_BITS - 1))  # 127.5, and half a level for the rounding
        return ((out + middle) >> PIXEL_BITS).clamp(0, 255).to(torch.uint8)[0]

    def _block(self, name: str, first: str, stream: Tensor, k: int) -> Tensor:
        """(stream + conv2(LeakyReLU(conv1(stream)))) times the scales of modulator k."""
        inner = self._sums(first, self._bytes(stream, first))
        second = f"{name}.conv2"
        zero = self._column(self._weights.convolutions[second].zero.astype(np.float64))
        inner = (self._leaky(first, inner, CLAMP) + zero).clamp(0.0, 255.0)
        added = self._scaled(self._sums(second, inner), self._weights.convolutions[second].multiplier)
        total = (stream + added).float()  # |.| < 2^24
        scale = self._spread(self._settings.scales[k], self._settings.scale_map, total)
        return (total * scale).round().clamp(-32768.0, 32767.0).double()

    def _sums(self, name: str, x: Tensor) -> Tensor:
        """A convolution's sums with its biases and their changes: float64 [1, O, h, w], below 2^31."""
        layer = self._weights.convolutions[name]
        sums = self._decoder.sums(name, x).double() + self._column(layer.bias.astype(np.float64))
        if self._settings.biases is not None and name != "local_gain":
            part = self._settings.biases[:, self._next_bias : self._next_bias + len(layer.bias)]
            self._next_bias += len(layer.bias)
            sums = sums + self._spread(part.astype(np.float64), self._settings.bias_map, sums)
        return sums

    def _scaled(self, sums: Tensor, multiplier: npt.NDArray[np.float32]) -> Tensor:
        """round(float32(sum) * multiplier), ties to even, clamped."""
        product = sums.float() * self._column(multiplier)
        return product.clamp(-CLAMP, CLAMP).round().double()

    def _leaky(self, name: str, sums: Tensor, most: float) -> Tensor:
        """The same with a tenth of the multiplier below zero."""
        multiplier = self._weights.convolutions[name].multiplier
        below = self._column(multiplier * np.float32(SLOPE))
        product = sums.float() * torch.where(sums < 0, below, self._column(multiplier))
        return product.clamp(-most, most).round().double()

    def _bytes(self, stream: Tensor, name: str) -> Tensor:
        """A residual stream as the inputs of a layer."""
        zero = self._column(self._weights.convolutions[name].zero.astype(np.int64))
        first = (((stream.long() + (1 << (STREAM_BITS - 1))) >> STREAM_BITS) + zero[:, : stream.shape[1]]).clamp(0, 255)
        if name not in SPLIT:
            return first.double()
        rest = stream.long() - ((first - zero[:, : stream.shape[1]]) << STREAM_BITS)
        shift = STREAM_BITS - REST_BITS
        second = (((rest + (1 << (shift - 1))) >> shift) + REST_ZERO).clamp(0, 255)
        return torch.cat((first, second), dim=1).double()

    def _dequantised(self, constants: Constants, index: Tensor, local: Tensor) -> Tensor:
        """Coefficients of the latents, float64 of integers [c, h, w]."""
        level = self._pick(constants.level, index).float()
        whole, rest = local >> FACTOR_STEP_BITS, local & ((1 << FACTOR_STEP_BITS) - 1)
        low, high = (self._pick(constants.factor, whole + i).long() for i in range(2))
        factor = low + (((high - low) * rest) >> FACTOR_STEP_BITS)
        product = level * (factor.float() * self._column(constants.factor_unit)[0])
        return product.clamp(-CLAMP, CLAMP).round().double()

    def _pick(self, table: npt.NDArray[np.generic], index: Tensor) -> Tensor:
        """Entries of a table [c, n] for index int64 [c, h, w]."""
        rows = torch.from_numpy(np.ascontiguousarray(table)).to(self._device)
        return rows.gather(1, index.flatten(1)).view(index.shape)

    def _column(self, values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self._device)[None, :, None, None]

    def _told(self, function: Callable[[Constants], Tensor]) -> Tensor:
        """`function` of the constants that hold at each place: [1, C, height, width]."""
        result = function(self._settings.constants[0])
        for which, known in enumerate(self._settings.constants[1:], 1):
            here = self._finer(self._settings.constants_map, result.shape[2:]) == which
            result = torch.where(here, function(known), result)
        return result

    def _spread(self, values: npt.NDArray[np.generic], where: npt.NDArray[np.int64] | None, like: Tensor) -> Tensor:
        """Values [n, C] at every position of a layer's output: [1, C, height, width]."""
        table = torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
        if where is None:
            return table[0][None, :, None, None]
        return table[self._finer(where, like.shape[2:])].permute(2, 0, 1)[None]

    def _finer(self, where: npt.NDArray[np.int64] | None, size: Sequence[int]) -> Tensor:
        """A map on a layer of a height and width."""
        assert where is not None
        fineness = size[0] // self._rows
        index = torch.from_numpy(np.ascontiguousarray(where)).to(self._device)
        return index.repeat_interleave(fineness, 0).repeat_interleave(fineness, 1)


@torch.no_grad()
def scaled_pixels(weights: ExactWeights, settings: Settings, levels: Tensor, scale: int) -> Tensor:
    """Averages over squares of the block transform of latents, without networks and local gains.

    Args:
        levels: latents + 128, uint8 [c, h, w]. scale: at most s.
    Returns:
        uint8 [s h / scale, s w / scale, 3].
    """
    config, device, index = weights.config, levels.device, levels.long().flatten(1)
    side, c = config.s // scale, config.c
    blocks = weights.transform[:, :c].astype(np.int64).reshape(3, side, scale, side, scale, c).sum(axis=(2, 4))
    matrix = torch.from_numpy(blocks.reshape(3 * side * side, c).astype(np.float64)).to(device)
    coefficients = torch.zeros(index.shape, dtype=torch.float64, device=device)
    for which, known in enumerate(settings.constants):
        level = np.ldexp(known.level.astype(np.float64), COEFFICIENT_BITS - LEVEL_BITS)
        table = torch.from_numpy(np.rint(level * known.plain[:, None]).clip(-32768.0, 32767.0)).to(device)
        found = table.gather(1, index)  # integers below 2^15
        if settings.constants_map is not None:
            here = torch.from_numpy(settings.constants_map.reshape(1, -1) == which).to(device)
            found = torch.where(here, found, coefficients)
        coefficients = found
    sums = (matrix @ coefficients).long()  # of integers below 2^53, in any order
    bits = TRANSFORM_BITS + COEFFICIENT_BITS + 2 * (scale.bit_length() - 1)
    middle = (255 << (bits - 1)) + (1 << (bits - 1))
    pixels = ((sums + middle) >> bits).clamp(0, 255).to(torch.uint8).view(1, -1, *levels.shape[1:])
    return F.pixel_shuffle(pixels, side)[0].permute(1, 2, 0)
