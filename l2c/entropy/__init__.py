"""Coding latents: a probability model, and the range coder that it drives.

base          what a family of entropy models is: the contract, and the registry
coder         one stream, and the jobs that read or write it
multiscale    the family of L2C III-B: every scale from the one below it, group by group
hyperprior    the family of CompressAI's codecs: from hyper-latents, and some from the latents before
"""

from __future__ import annotations

from l2c.entropy.base import (
    FAMILIES,
    Backend,
    EntropyFamily,
    EntropyModel,
    FloatModel,
    ProbabilityConfig,
    RateTerms,
)
from l2c.entropy.hyperprior import FAMILY as HYPERPRIOR
from l2c.entropy.hyperprior import HyperpriorConfig
from l2c.entropy.multiscale import FAMILY, MultiscaleConfig

__all__ = [
    "FAMILIES",
    "Backend",
    "EntropyFamily",
    "EntropyModel",
    "FloatModel",
    "HyperpriorConfig",
    "MultiscaleConfig",
    "ProbabilityConfig",
    "RateTerms",
]

FAMILIES.register(MultiscaleConfig.family, FAMILY)
FAMILIES.register(HyperpriorConfig.family, HYPERPRIOR)
