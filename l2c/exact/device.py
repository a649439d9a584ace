"""An integer D by the kernels of `kernels/exact.py`: latents to pixels on a device, without the host in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.exact.plain import SLOPE, Settings
from l2c.exact.weights import LOW_BITS, SPLIT, ExactConv, ExactWeights
from l2c.ops import extension

Array = npt.NDArray[Any]
_ALIGNMENT = 16  # bytes, of tables that go to the device together


@dataclass(frozen=True)
class _Layer:
    """A convolution as the kernels read it: outputs in an order of their own, in padded groups.

    Attributes:
        weight: int8 [k^2, O, I]. above, below: float32 [O], multipliers.
        zero: int32 [inputs], not padded.
        start: outputs of the layers before it. order: [O], the model's outputs, -1 where there is none.
        channels: outputs of a group. part: the same padded where there are several, else 0.
    """

    weight: Tensor
    above: Tensor
    below: Tensor
    zero: Tensor
    start: int
    order: npt.NDArray[np.int64]
    channels: int
    part: int


class DeviceDecoder:
    """Decodes latents on a device. Calls may come from several threads and streams: buffers are made for each call.

    Args:
        device: a GPU, or the CPU under Triton's interpreter.
    Raises:
        BackendError: Triton is not here.
    """

    def __init__(self, weights: ExactWeights, device: torch.device) -> None:
        self.kernels, self.config, self._device = extension.kernels("exact"), weights.config, device
        self._on_device_of = extension.kernels("common").on_device_of
        fine, half, layers = self.config.fine_width, self.config.s // 2, dict(weights.convolutions)
        self._local_multiplier = np.empty(0, np.float32)
        if self.config.local_gain:  # one layer with the head, whose inputs it has
            local = layers.pop("local_gain")
            layers["head"], self._local_multiplier = _joined(layers["head"], local), local.multiplier
        self.layers: dict[str, _Layer] = {}
        biases, changes, start, first = [], [], 0, 0
        for name, layer in layers.items():
            order = np.arange(len(layer.bias))[None]
            if name == "up":  # a group of channels for each of four places
                order = order.reshape(fine, 4).T
            elif name == "last":  # like pixels
                order = order.reshape(3, half, half).transpose(1, 2, 0).reshape(1, -1)
            packed, bias = self._packed(layer, order, start)
            self.layers[name] = packed
            own = len(weights.convolutions[name].bias)  # local gains' biases do not change
            biases.append(bias)
            changes.append(np.where((packed.order >= 0) & (packed.order < own), packed.order + first, -1))
            start, first = start + len(bias), first + own
        self._bias, self._changes = np.concatenate(biases), np.concatenate(changes)
        self.bias, self.nowhere = self._to_device(self._bias[None]), self._to_device(np.zeros(1, np.int32))
        self.level = self._to_device(weights.level_table)
        self.transform = [self._to_device(part) for part in self._digits(weights.transform)]

    def _packed(self, layer: ExactConv, order: npt.NDArray[np.int64], start: int) -> tuple[_Layer, Array]:
        """A layer whose outputs lie in such groups [groups, channels], and its biases int32 [O]."""
        groups, channels = order.shape
        part = self.kernels.padded(channels)
        order = np.pad(order, ((0, 0), (0, part - channels)), constant_values=-1).reshape(-1)
        _, inputs, kernel = layer.weight.shape[:3]
        weight = np.zeros((kernel * kernel, len(order), self.kernels.padded(inputs)), np.int8)
        weight[:, :, :inputs] = _taken(layer.weight, order).transpose(2, 3, 0, 1).reshape(kernel * kernel, -1, inputs)
        # Inputs are stored as int8 with 128 subtracted.
        bias = _taken(layer.bias, order) + 128 * weight.sum(axis=(0, 2), dtype=np.int64)
        multiplier = _taken(layer.multiplier, order)
        below, zero = multiplier * np.float32(SLOPE), layer.zero.astype(np.int32)
        parts, part = [self._to_device(values) for values in (weight, multiplier, below, zero)], part * (groups > 1)
        return _Layer(parts[0], parts[1], parts[2], parts[3], start, order, channels, part), bias.astype(np.int32)

    def _digits(self, transform: npt.NDArray[np.int32]) -> tuple[Array, Array, Array]:
        """int8 [3, O, I] of the inverse block transform, rows like pixels, and int32 [O] twice, see the kernel."""
        size, more = len(transform), self.kernels.padded(len(transform)) - len(transform)
        rows = transform.reshape(3, size // 3, size).transpose(1, 0, 2).reshape(size, size)
        rest = np.pad(rows.astype(np.int64), (0, more))
        constant, digits = 128 * rest.sum(axis=1) + (1 << (LOW_BITS - 1)), []
        for _ in range(3):
            digits.append(((rest + 128) & 255) - 128)
            rest = (rest - digits[-1]) >> 8
        assert not rest.any()  # `ExactWeights.check`
        return np.stack(digits).astype(np.int8), (constant >> 8).astype(np.int32), (constant & 255).astype(np.int32)

    def _to_device(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    @torch.no_grad()
    def __call__(self, levels: Tensor, settings: Settings) -> Tensor:
        """Latents + 128, uint8 [c, h, w] on the device -> uint8 [s h, s w, 3]."""
        with self._on_device_of(levels):
            return _Run(self, levels.contiguous(), self._tables(settings)).pixels()

    def _tables(self, settings: Settings) -> dict[str, Tensor]:
        """What a picture is told, in one transfer: [values, ...] of each table in the kernels' order, and the maps."""
        known, found = settings.constants, {}
        found["input"] = (np.stack([one.input for one in known]) ^ np.uint8(128)).view(np.int8)  # 128 less
        found["factor"] = np.stack([one.factor for one in known])
        found["unit"] = np.stack([one.factor_unit for one in known])
        head = np.stack([np.concatenate((one.head, self._local_multiplier)) for one in known])
        found["head"] = _taken(head.T, self.layers["head"].order).T
        if self.config.fine_width:
            last = np.stack([one.last for one in known if one.last is not None])
            found["last"] = _taken(last.T, self.layers["last"].order).T
        for k, scale in enumerate(settings.scales):
            found[f"scale.{k}"] = np.pad(scale, ((0, 0), (0, self.kernels.padded(scale.shape[1]) - scale.shape[1])))
        if settings.biases is not None:
            found["bias"] = _taken(settings.biases.T, self._changes).T + self._bias
        for name in ("constants_map", "scale_map", "bias_map"):
            places = getattr(settings, name)
            if places is not None:
                found[name] = places.astype(np.int32)
        return _uploaded(found, self._device)


def _joined(a: ExactConv, b: ExactConv) -> ExactConv:
    """Two layers of one input as one."""
    weight, bias = np.concatenate((a.weight, b.weight)), np.concatenate((a.bias, b.bias))
    multiplier, unit = np.concatenate((a.multiplier, b.multiplier)), np.concatenate((a.bias_unit, b.bias_unit))
    return ExactConv(weight, bias, multiplier, unit, a.zero)


def _taken(values: Array, order: npt.NDArray[np.int64]) -> Array:
    """values[order] along the first axis, 0 where the order is -1."""
    found = values[order]
    found[order < 0] = 0
    return found


def _uploaded(arrays: Mapping[str, Array], device: torch.device) -> dict[str, Tensor]:
    """Arrays on a device, in one transfer."""
    offsets, size = {}, 0
    for name, array in arrays.items():
        offsets[name] = size
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    buffer = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
    whole = buffer.numpy()
    for name, array in arrays.items():
        whole[offsets[name] : offsets[name] + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
    there = buffer.to(device, non_blocking=True)
    return {
        name: there[offsets[name] : offsets[name] + array.nbytes]
        .view(torch.from_numpy(array[:0]).dtype)
        .view(array.shape)
        for name, array in arrays.items()
    }


class _Run:
    """One picture."""

    def __init__(self, decoder: DeviceDecoder, levels: Tensor, tables: dict[str, Tensor]) -> None:
        self._decoder, self._kernels, self._layers = decoder, decoder.kernels, decoder.layers
        self._levels, self._tables = levels, tables
        self._height, self._width = levels.shape[1:]

    def pixels(self) -> Tensor:
        kernels, decoder, config, tables = self._kernels, self._decoder, self._decoder.config, self._tables
        x = self._cells(kernels.padded(2 * config.c))
        kernels.exact_input_fwd(self._levels, self._told("input", "constants_map"), self._layers["first"].zero, x)
        readers = [*(f"blocks.{i}.conv1" for i in range(config.decoder_blocks)), "head"]
        stream, x = self._begin("first", x, readers[0])
        for i, reader in enumerate(readers[1:]):
            x = self._block(f"blocks.{i}", stream, x, reader, i)
        words, detail = self._words("head", x), None
        if config.fine_width:
            stream, x = self._begin("up", x, "fine_block.conv1", fineness=2)
            x = self._block("fine_block", stream, x, "last", config.decoder_blocks, fineness=2)
            detail = self._words("last", x, fineness=2)
        dims = 3 * config.s**2
        coefficients = self._cells(2 * kernels.padded(dims))
        factor = self._told("factor", "constants_map")
        kernels.exact_coefficients_fwd(words, dims, self._levels, decoder.level, factor, tables["unit"], coefficients)
        size = (config.s * self._height, config.s * self._width, 3)
        out = torch.empty(size, dtype=torch.uint8, device=self._levels.device)
        kernels.exact_pixels_fwd(coefficients, *decoder.transform, detail, out, config.s)
        return out

    def _begin(self, name: str, x: Tensor, reader: str, fineness: int = 1) -> tuple[Tensor, Tensor]:
        """A residual stream and the bytes of it that `reader` reads, at so many cells per latent each way."""
        stream = self._integers(self._layers[name].channels, fineness)
        out = self._input_of(reader, fineness)
        self._layer(name, "stream", x, 1, below=self._layers[name].below, zero=self._layers[reader].zero,
                    stream=stream, out=out)  # fmt: skip
        return stream, out

    def _block(self, name: str, stream: Tensor, x: Tensor, reader: str, k: int, fineness: int = 1) -> Tensor:
        """(stream + conv2(LeakyReLU(conv1(x)))) times the scales of modulator k -> stream, and bytes of it."""
        first, second = f"{name}.conv1", f"{name}.conv2"
        inner, out = self._input_of(second, fineness), self._input_of(reader, fineness)
        self._layer(first, "bytes", x, fineness, below=self._layers[first].below, zero=self._layers[second].zero,
                    out=inner)  # fmt: skip
        self._layer(second, "residual", inner, fineness, told=self._told(f"scale.{k}", "scale_map"),
                    zero=self._layers[reader].zero, stream=stream, out=out, split=reader in SPLIT)  # fmt: skip
        return out

    def _words(self, name: str, x: Tensor, fineness: int = 1) -> Tensor:
        """int16 [cells, outputs]."""
        words = self._integers(self._layers[name].channels, fineness)
        self._layer(name, "words", x, fineness, told=self._told(name, "constants_map"), stream=words)
        return words

    def _layer(self, name: str, epilogue: str, x: Tensor, fineness: int, **what: Any) -> None:
        layer = self._layers[name]
        bias = self._told("bias", "bias_map")
        mine = bias._replace(table=bias.table[:, layer.start : layer.start + len(layer.order)])
        size = (fineness * self._height, fineness * self._width)
        self._kernels.exact_conv_fwd(
            epilogue, x, layer.weight, size, fineness, mine, layer.above, channels=layer.channels, part=layer.part,
            **what,
        )  # fmt: skip

    def _told(self, name: str, where: str) -> Any:
        table = self._tables.get(name, self._decoder.bias)  # biases may be as they were
        if where in self._tables:
            return self._kernels.Told(table, self._tables[where], table.stride(0))
        return self._kernels.Told(table, self._decoder.nowhere, 0)

    def _cells(self, channels: int, fineness: int = 1) -> Tensor:
        size = (fineness * self._height, fineness * self._width)
        return self._kernels.cells(*size, channels, self._levels.device)  # type: ignore[no-any-return]

    def _input_of(self, reader: str, fineness: int) -> Tensor:
        return self._cells(self._layers[reader].weight.shape[2], fineness)

    def _integers(self, channels: int, fineness: int) -> Tensor:
        cells = (fineness * self._height + 2) * (fineness * self._width + 2)
        return torch.empty((cells, channels), dtype=torch.int16, device=self._levels.device)
