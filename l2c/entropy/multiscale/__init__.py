"""The multi-scale progressive model (L2C III-B): every scale from the one below it, group by group.

config            its sizes
schedule          the walk: in which order latents are coded
float_model       P in float, for training and gradients; growth: what its weights go on as
quantise          float -> integers and back
integer_weights   P in integers as data; integer_model: with what can compute it
serialise         its tensors in a model file
backends          C++, Triton, PyTorch, the reference
"""

from __future__ import annotations

from l2c.entropy.base import EntropyFamily
from l2c.entropy.multiscale.config import MultiscaleConfig
from l2c.entropy.multiscale.float_model import ProbabilityModel
from l2c.entropy.multiscale.growth import grow_multiscale
from l2c.entropy.multiscale.integer_model import IntegerModel

__all__ = ["FAMILY", "IntegerModel", "MultiscaleConfig", "ProbabilityModel"]

FAMILY = EntropyFamily(MultiscaleConfig, ProbabilityModel, IntegerModel, grow_multiscale)
