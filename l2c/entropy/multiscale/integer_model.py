"""P as exact integers: what the coder reads (DESIGN 3).

The graph is that of `float_model`; here every number that decides a probability is an integer, and every backend gives
the same ones (`l2c.entropy.multiscale.backends`).

Formats
    inputs        int8, real value / INPUT_SCALE: companded latents (a table of 256 entries), availability, planes
    activations   uint8, 32 times the real value, zero-point 0
    weights       int8, one scale per output channel
    sums          int32; checked at export: sum|w| max|a| + |bias| < 2^24, so float32 sums are exact in any order
    requantise    round_half_even(float32(sum) * multiplier): one float32 multiplication, nothing fused after it
    head          int16 per symbol and component: logit (Q4 nats), mean (Q6 half steps, 1/128 latent), index of the
                  log inverse scale (19.6 per octave); `mixture_params` turns them into uint16 weights that sum to
                  65536 - 16, int16 means and uint16 Q10 inverse scales. The CDF over them is csrc/core/mixture_cdf.h.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from l2c.entropy.base import Backend, EntropyModel
from l2c.entropy.multiscale import quantise, serialise
from l2c.entropy.multiscale.backends import make
from l2c.entropy.multiscale.config import MultiscaleConfig
from l2c.entropy.multiscale.float_model import ProbabilityModel
from l2c.entropy.multiscale.integer_weights import IntegerWeights


class IntegerModel(IntegerWeights, EntropyModel):
    """P in integers with everything that can compute it."""

    @functools.cached_property
    def _backends(self) -> dict[str, Backend]:
        return make(self)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: everything but the packed forms, which are made again when they are needed."""
        return {name: value for name, value in self.__dict__.items() if name != "_backends"}

    @classmethod
    def from_float(cls, model: ProbabilityModel) -> IntegerModel:
        """Quantise a trained P: int8 weights per output channel, integer biases, float32 multipliers.

        Every output channel is checked for sum|w| * 255 + |bias| < 2^24; its scale is lowered where that fails.
        """
        return cls(model.config, model.c, *quantise.from_float(model))

    def to_float(self) -> ProbabilityModel:
        """The float P, so that training can go on from exported weights; on the CPU.

        Up to the rounding of biases `from_float` gives the same integers back.
        """
        return quantise.to_float(self)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], config: MultiscaleConfig, c: int) -> IntegerModel:
        """See `EntropyModel.from_tensors`."""
        return cls(config, c, *serialise.from_tensors(tensors, config, c))

    def to_tensors(self) -> dict[str, Tensor]:
        """See `EntropyModel.to_tensors`."""
        return serialise.to_tensors(self)

    def backends(self) -> Mapping[str, Backend]:
        """See `EntropyModel.backends`."""
        return self._backends
