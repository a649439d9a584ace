"""A level on a device: layers, tables and shifts in the forms that the kernels of `l2c.kernels` take, and h_s.

Activations lie as int8 with 128 subtracted (`kernels.int_conv`): bytes that stand for 0 at 128 are their values there,
and those that stand for 0 at 0 are -128.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.entropy.coder import Int16Array, UInt8Array
from l2c.entropy.hyperprior.integer_weights import IntegerLevel
from l2c.ops.contract import SIGNED_ZERO, IntegerLayer
from l2c.ops.integers import PackedLayer, pack_layer, round_up

_ALL, _NONE = slice(None), slice(0, 0)  # input channels that are stored with 128 subtracted


class DeviceLevel:
    """One level on one device.

    Attributes:
        level: its integers. kernels: the launchers, see `ops.integer_kernels`.
        context, parameters: 1x1 layers, of kind "context".
        shift: int32 [M]. offset: int16 [M]. z_cdf, y_cdf: int32 [rows, 257].
    """

    def __init__(self, level: IntegerLevel, device: torch.device, kernels: Any) -> None:
        self.level, self.device, self.kernels = level, device, kernels
        self._hyper = [(self._packed(part.layer, _ALL), part.shuffle) for part in level.hyper]
        self.context = None if level.context is None else self._packed(level.context, _NONE)
        self.parameters = [self._packed(layer, _NONE if i == 0 else _ALL) for i, layer in enumerate(level.parameters)]
        self.shift = torch.from_numpy(level.shift.astype(np.int32)).to(device)
        self.offset = torch.from_numpy(level.offset).to(device)
        self.z_cdf, self.y_cdf = (
            torch.from_numpy(table.astype(np.int32)).to(device) for table in (level.z_cdf, level.y_cdf)
        )

    def _packed(self, layer: IntegerLayer, unsigned: slice) -> PackedLayer:
        return pack_layer(layer.weight, layer.bias, layer.multiplier, unsigned, self.device)

    @property
    def hidden(self) -> list[int]:
        """Channels of the hidden parameter layers, padded."""
        return [round_up(layer.multiplier.shape[0]) for layer in self.parameters[:-1]]

    def hyper_buffers(self, count: int, rows: int, columns: int) -> list[Tensor]:
        """What h_s over `count` tiles of z [rows, columns] needs: its inputs, each layer's outputs; the last is out.

        Input channels that no layer writes meet weights of zero.
        """
        shape, scale = self._hyper[0][0].weight.shape, 1
        buffers = [torch.full((count, rows, columns, shape[2]), -SIGNED_ZERO, dtype=torch.int8, device=self.device)]
        for i, (layer, shuffle) in enumerate(self._hyper):
            outputs = layer.multiplier.shape[0]
            size = (count, rows * scale, columns * scale)
            if i == len(self._hyper) - 1:
                dtype = torch.int8 if self.level.kind == "context" else torch.int16
                buffers.append(torch.empty((*size, outputs), dtype=dtype, device=self.device))
                break
            if shuffle:
                buffers.append(torch.empty((*size, outputs), dtype=torch.int8, device=self.device))
                scale *= 2
            size = (count, rows * scale, columns * scale)
            inputs = self._hyper[i + 1][0].weight.shape[2]
            buffers.append(torch.zeros((*size, inputs), dtype=torch.int8, device=self.device))
        return buffers

    def load_side(self, buffers: list[Tensor], number: int, z: Tensor) -> None:
        """Make z, symbols uint8 [h', w', N] on the device, the input of tile `number`."""
        n, values = self.level.n, z.to(torch.int16) - SIGNED_ZERO
        to = buffers[0][number, : z.shape[0], : z.shape[1]]
        to[:, :, :n] = values.clamp_min(0) - SIGNED_ZERO
        to[:, :, n : 2 * n] = (-values).clamp_min(0) - SIGNED_ZERO

    def run_hyper(self, buffers: list[Tensor], sizes: list[Tensor]) -> Tensor:
        """h_s over loaded tiles; sizes: int32 [N, 2], rows and columns of each tile's z, then twice, four times these.

        Returns:
            int8 [N, R, C, 2 M], values, of a context; int16 [N, R, C, M or 2 M], heads, of the others.
        """
        at, scale = 0, 0
        for i, (layer, shuffle) in enumerate(self._hyper):
            x, out = buffers[at], buffers[at + 1]
            self.kernels.int_conv_fwd(x, layer.weight, layer.bias, layer.multiplier, sizes[scale], out)
            at += 1
            if shuffle and i < len(self._hyper) - 1:
                scale, at = scale + 1, at + 1
                count, rows, columns, outputs = out.shape
                parts = out.view(count, rows, columns, outputs // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
                to = buffers[at].view(count, rows, 2, columns, 2, -1)
                to[..., : outputs // 4].copy_(parts)
        return buffers[at]

    def run_heads(self, gathered: Tensor, joint: Tensor, hidden: list[Tensor], raw: Tensor, sizes: Tensor) -> None:
        """Context and parameters at positions side by side.

        Args:
            gathered: int8 [N, 1, P, >= 12 M], taps. joint: int8 [N, 1, P, >= 4 M]: the first 2 M channels are known.
            hidden: int8 [N, 1, P, channels of `hidden`]. raw: int16 [N, 1, P, 2 M] gets the heads.
            sizes: int32 [N, 2], (1, positions of each).
        """
        conv, m = self.kernels.int_conv_fwd, self.level.c
        assert self.context is not None
        for x, layer, out in (
            (gathered, self.context, joint[..., 2 * m : 4 * m]),
            (joint, self.parameters[0], hidden[0]),
            (hidden[0], self.parameters[1], hidden[1]),
            (hidden[1], self.parameters[2], raw),
        ):
            conv(x, layer.weight, layer.bias, layer.multiplier, sizes, out)

    def head_buffers(self, count: int, positions: int) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """gathered, joint, hidden and raw of `run_heads`."""

        def zeros(channels: int, dtype: torch.dtype = torch.int8) -> Tensor:
            return torch.zeros((count, 1, positions, channels), dtype=dtype, device=self.device)

        m = self.level.c
        hidden = [zeros(channels) for channels in self.hidden]
        return zeros(round_up(12 * m)), zeros(round_up(4 * m)), hidden, zeros(2 * m, torch.int16)


class DeviceEngine:
    """See `walk.Engine`: the layers of a level on a device, for latents that are known."""

    def __init__(self, level: DeviceLevel) -> None:
        self.level = level

    def hyper(self, z: Int16Array) -> Any:
        device, (rows, columns) = self.level.device, z.shape[1:]
        buffers = self.level.hyper_buffers(1, rows, columns)
        symbols = torch.from_numpy((z + SIGNED_ZERO).astype(np.uint8).transpose(1, 2, 0).copy()).to(device)
        self.level.load_side(buffers, 0, symbols)
        size = torch.tensor([[rows, columns]], dtype=torch.int32, device=device)
        out = self.level.run_hyper(buffers, [size << scale for scale in range(3)])[0]
        if self.level.level.kind == "context":
            out = (out.to(torch.int16) + SIGNED_ZERO).to(torch.uint8)
        return out.cpu().numpy()

    def heads(self, hyper: UInt8Array, taps: UInt8Array) -> Int16Array:
        device, count = self.level.device, len(hyper)
        gathered, joint, hidden, raw = self.level.head_buffers(1, count)
        for to, values in ((gathered, taps), (joint, hyper)):
            known = torch.from_numpy(values.astype(np.int16) - SIGNED_ZERO).to(device, torch.int8)
            to[0, 0, :, : values.shape[1]] = known
        self.level.run_heads(gathered, joint, hidden, raw, torch.tensor([[1, count]], dtype=torch.int32, device=device))
        return raw[0, 0].cpu().numpy()
