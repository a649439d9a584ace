"""E, I and D: the networks that turn pictures into latents and back, in families.

base          what a family is: the contract, and the registry
block         the default model: one linear block transform plus convolutions at H/s; growth: what its weights go on as
hyperprior    the networks of CompressAI's codecs: Minnen2018, Cheng2020 and their cousins
paper         the networks of L2C, section IV
adaptation    what an encoder may change in D for a picture or its patches; modulators: OML's, conditioned on lambda
masking       which channels are kept (L2C Eq. 2)
quantiser     Q: what lies between latents and the symbols that are coded
check         whether networks keep the contract
costs         multiply-accumulates per pixel
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from l2c.ops import Grid, dequantise, quantise, to_levels
from l2c.transforms.adaptation import Adaptation, Places
from l2c.transforms.base import FAMILIES, Decoder, Encoder, Transform, TransformConfig, TransformFamily, num_biases
from l2c.transforms.block import LINEAR_FROM, BlockConfig, block_networks
from l2c.transforms.check import check_contract
from l2c.transforms.costs import kmac_per_pixel, transform_costs
from l2c.transforms.growth import grow_block, grow_paper
from l2c.transforms.hyperprior import HyperpriorTransformConfig, hyperprior_networks
from l2c.transforms.masking import clipping, importance_mask
from l2c.transforms.modulators import condition
from l2c.transforms.paper import PaperConfig, paper_networks
from l2c.transforms.quantiser import LEVELS, WHOLE_NUMBERS, Quantiser

__all__ = [
    "FAMILIES",
    "LEVELS",
    "LINEAR_FROM",
    "WHOLE_NUMBERS",
    "Adaptation",
    "BlockConfig",
    "Decoder",
    "Encoder",
    "Grid",
    "HyperpriorTransformConfig",
    "PaperConfig",
    "Places",
    "Quantiser",
    "Transform",
    "TransformConfig",
    "TransformFamily",
    "check_contract",
    "clipping",
    "condition",
    "dequantise",
    "importance_mask",
    "kmac_per_pixel",
    "num_biases",
    "num_modulators",
    "pad_to_multiple",
    "quantise",
    "to_levels",
    "transform_costs",
]

FAMILIES.register(BlockConfig.family, TransformFamily(BlockConfig, block_networks, grow_block))
FAMILIES.register(HyperpriorTransformConfig.family, TransformFamily(HyperpriorTransformConfig, hyperprior_networks))
FAMILIES.register(PaperConfig.family, TransformFamily(PaperConfig, paper_networks, grow_paper))


def num_modulators(transform: Transform) -> int:
    """K: how many modulators D has, the first length of `Adaptation.conditions`."""
    return len(transform.decoder.mods)


def pad_to_multiple(x: Tensor, s: int) -> Tensor:
    """Repeat the last row and column until both sides of [N, 3, H, W] are multiples of s."""
    right, bottom = -x.shape[3] % s, -x.shape[2] % s
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if right or bottom else x
