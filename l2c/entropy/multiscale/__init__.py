"""The multi-scale progressive model (L2C III-B): every scale from the one below it, group by group.

schedule          the walk: in which order latents are coded
float_model       P in float, for training and gradients
quantise          float -> integers and back
integer_weights   P in integers as data; integer_model: with what can compute it
serialise         its tensors in a model file
backends          C++, Triton, PyTorch, the reference
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2c.entropy.base import EntropyModel, FloatModel
from l2c.entropy.multiscale.float_model import ProbabilityModel
from l2c.entropy.multiscale.integer_model import IntegerModel, check_backend
from l2c.entropy.multiscale.quantise import from_float, make_tables, to_float
from l2c.entropy.multiscale.serialise import from_tensors, to_tensors

__all__ = [
    "IntegerModel",
    "ProbabilityModel",
    "check_backend",
    "from_float",
    "from_tensors",
    "make_tables",
    "to_float",
    "to_tensors",
]

if TYPE_CHECKING:  # mypy holds the family to what the codec and the training ask of one
    _FLOAT_FORM: type[FloatModel] = ProbabilityModel
    _INTEGER_FORM: type[EntropyModel] = IntegerModel
