"""E with its convolutions in integers: three times as fast on a CPU, the same latents but for a small noise.

Nothing depends on E giving the same latents everywhere, so this is no part of the contract of `l2c.exact`; its layers
are, all the same, those of D: bytes, int16 residual streams, one product after each convolution. The block transform
before them and the gains behind them are floats, by the code of `transforms.block`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.exact.quantise import Ranges, encoder_from_float
from l2c.ops import extension
from l2c.transforms import Places
from l2c.transforms.block import PIXEL_SCALE, BlockEncoder, LocalGain


def can_run(encoder: torch.nn.Module) -> bool:
    """Whether an E has a form in integers, and our C++ loads: of the block family, without I."""
    fits = isinstance(encoder, BlockEncoder) and encoder.importance is None
    return fits and extension.load_cpp()[0] is not None


def is_faster(encoder: torch.nn.Module) -> bool:
    """Whether it pays on this CPU: with vector instructions. Plain C++ is slower than PyTorch's floats."""
    return can_run(encoder) and extension.cpp_extension().cpu() != "scalar"


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

    @torch.no_grad()
    def __call__(self, x: Tensor, cond: Tensor, places: Places | None = None) -> Tensor:
        """Latents in quantiser steps, float32 [N, c, H/s, W/s].

        Args:
            x: float32 [N, 3, H, W] in [0, 1], H and W multiples of s. cond: float32 [N, 2].
            places: conditions that differ within the pictures, or None.
        """
        pictures = []
        for n in range(len(x)):  # one by one: what a vector of floats rounds to depends on where it begins
            here = None if places is None else places.pick(torch.tensor([n]))
            pictures.append(self._picture(x[n : n + 1], cond[n : n + 1], here))
        return torch.cat(pictures)

    def _picture(self, x: Tensor, cond: Tensor, places: Places | None) -> Tensor:
        """The same for N = 1."""
        layers, coefficients = self._layers, self._coefficients(x)
        scale, zero = (torch.from_numpy(part)[:, None, None] for part in (layers.input_scale, layers.input_zero))
        inputs = torch.addcmul(zero, coefficients, scale).round_().clamp_(0.0, 255.0).to(torch.uint8)
        told = cond if places is None else places.conditions[0]
        scales = [
            mod.scales(told)[:, :, 0, 0].numpy() * ratio  # type: ignore[operator]
            for mod, ratio in zip(self._encoder.mods, layers.ratios)
        ]
        where = None if places is None else places.index[0].int().numpy()
        bytes_ = np.ascontiguousarray(inputs[0].permute(1, 2, 0).numpy())
        head, local = self._cpp.run(bytes_, where, scales, torch.get_num_threads())
        logarithm = None if local is None else LocalGain.bounded(self._floats("local_gain", local))
        return self._encoder.latents(coefficients, self._floats("head", head), logarithm, cond, places)

    def _floats(self, name: str, sums: npt.NDArray[np.int32]) -> Tensor:
        """A layer's outputs [1, c, h, w] of its sums [h, w, c]."""
        multiplier = torch.from_numpy(self._layers.convolutions[name].multiplier)
        return torch.from_numpy(sums).float().mul_(multiplier).permute(2, 0, 1)[None]

    def _coefficients(self, x: Tensor) -> Tensor:
        """`BlockEncoder.coefficients` of one picture as a matrix product, channels last: a third of its time."""
        s = self._encoder.s
        blocks = x[0].unflatten(2, (-1, s)).unflatten(1, (-1, s)).permute(1, 3, 0, 2, 4)  # [h, w, 3, s, s]
        product = torch.addmm(self._offset, blocks.reshape(-1, len(self._matrix)), self._matrix)
        return product.view(1, *blocks.shape[:2], -1).permute(0, 3, 1, 2)
