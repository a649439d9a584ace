"""The entropy models of CompressAI's codecs: a hyperprior, and for some a context in raster order, as integers.

config            which of them, and its sizes
float_model       P in float, for training and gradients
quantise          float -> integers and back
integer_weights   P in integers as data, and what they mean; integer_model: with what can compute it
serialise         its tensors in a model file
backends          C++, Triton, PyTorch, the reference
"""

from __future__ import annotations

from l2c.entropy.base import EntropyFamily
from l2c.entropy.hyperprior.config import HyperpriorConfig
from l2c.entropy.hyperprior.float_model import HyperpriorModel
from l2c.entropy.hyperprior.integer_model import HyperpriorIntegers

__all__ = ["FAMILY", "HyperpriorConfig", "HyperpriorIntegers", "HyperpriorModel"]

FAMILY = EntropyFamily(HyperpriorConfig, HyperpriorModel, HyperpriorIntegers)
