"""g_a and g_s of CompressAI's codecs (Minnen2018, Cheng2020 and their cousins), with OML's modulators in g_s.

config        sizes
layers        GDN, residual blocks, attention
networks      g_a and g_s as E and D
"""

from __future__ import annotations

from l2c.transforms.hyperprior.config import HyperpriorTransformConfig
from l2c.transforms.hyperprior.networks import HyperpriorDecoder, HyperpriorEncoder, hyperprior_networks

__all__ = ["HyperpriorDecoder", "HyperpriorEncoder", "HyperpriorTransformConfig", "hyperprior_networks"]
