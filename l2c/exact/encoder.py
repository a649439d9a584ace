"""E with its convolutions in integers: three to four times as fast on a CPU, the same latents but for a small noise.

Nothing depends on E giving the same latents everywhere, so this is no part of the contract of `l2c.exact`; its layers
are, all the same, those of D: bytes, int16 residual streams, one product after each convolution. The block transform
before them and the gains behind them are floats, by the code of `transforms.block`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.exact.quantise import Ranges, encoder_from_float
from l2c.ops import extension
from l2c.transforms import Places
from l2c.transforms.block import PIXEL_SCALE, BlockEncoder, LocalGain


def can_run(encoder: torch.nn.Module, device: torch.device) -> bool:
    """Whether an E can run in integers here: of the block family, without I, on a CPU with our C++."""
    if not isinstance(encoder, BlockEncoder) or encoder.importance is not None:
        return False
    return device.type == "cpu" and extension.load_cpp()[0] is not None


class IntegerEncoder:
    """`BlockEncoder.forward` with convolutions in integers.

    Args:
        encoder: a trained E for which `can_run` holds.
        ranges: of the inputs of its layers.
    Raises:
        ConfigError: the ranges do not fit the layers, or with them sums could pass int32.
    """

    def __init__(self, encoder: BlockEncoder, ranges: Ranges) -> None:
        self._encoder, self._layers = encoder, encoder_from_float(encoder, ranges)
        parts = {
            name: tuple(np.ascontiguousarray(part) for part in (layer.weight, layer.bias, layer.multiplier, layer.zero))
            for name, layer in self._layers.convolutions.items()
        }
        try:
            self._cpp = extension.cpp_extension().IntegerEncoder(len(encoder.blocks), parts)
        except ValueError as error:
            raise ConfigError(f"the integer E: {error}") from None
        matrix = encoder.matrix()[:, :, 0, 0].detach().T * PIXEL_SCALE
        self._matrix, self._offset = matrix, -0.5 * matrix.sum(dim=0)
        self._multipliers = {
            name: torch.from_numpy(self._layers.convolutions[name].multiplier)[None, :, None, None]
            for name in parts.keys() & {"head", "local_gain"}
        }

    @torch.no_grad()
    def __call__(self, x: Tensor, cond: Tensor, places: Places | None = None, threads: int | None = None) -> Tensor:
        """Latents in quantiser steps, float32 [N, c, H/s, W/s].

        Args:
            x: float32 [N, 3, H, W] in [0, 1], H and W multiples of s. cond: float32 [N, 2].
            places: conditions that differ within the pictures, or None.
            threads: None: as many as torch uses.
        """
        layers = self._layers
        coefficients = torch.cat([self._coefficients(picture) for picture in x])
        scale, zero = (torch.from_numpy(part)[:, None, None] for part in (layers.input_scale, layers.input_zero))
        inputs = (
            torch.addcmul(zero, coefficients, scale).round_().clamp_(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)
        )
        outputs = []
        for n, picture in enumerate(inputs):
            told, where = (cond[n : n + 1], None) if places is None else (places.conditions[n], places.index[n])
            scales = [
                mod.scales(told)[:, :, 0, 0].numpy() * ratio  # type: ignore[operator]
                for mod, ratio in zip(self._encoder.mods, layers.ratios)
            ]
            outputs.append(
                self._cpp.run(
                    np.ascontiguousarray(picture.numpy()), None if where is None else where.int().numpy(), scales,
                    torch.get_num_threads() if threads is None else threads,
                )
            )  # fmt: skip

        def floats(name: str, sums: tuple[np.ndarray, ...]) -> Tensor:
            stacked = torch.from_numpy(np.stack(sums)).permute(0, 3, 1, 2)
            return stacked.float() * self._multipliers[name]

        head, local = zip(*outputs)
        logarithm = None
        if "local_gain" in self._multipliers:
            logarithm = LocalGain.bounded(floats("local_gain", local))
        return self._encoder.latents(coefficients, floats("head", head), logarithm, cond, places)

    def _coefficients(self, x: Tensor) -> Tensor:
        """`BlockEncoder.coefficients` of one picture [3, H, W] as a product: [1, 3 s^2, H/s, W/s], channels last.

        Each picture has its own, see `modulators.for_each`.
        """
        s = self._encoder.s
        blocks = x.unflatten(2, (-1, s)).unflatten(1, (-1, s)).permute(1, 3, 0, 2, 4)  # [h, w, 3, s, s]
        product = torch.addmm(self._offset, blocks.reshape(-1, len(self._matrix)), self._matrix)
        return product.view(1, *blocks.shape[:2], -1).permute(0, 3, 1, 2)
