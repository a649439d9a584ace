"""The operating point of a file: how good it is, what it is good at, and how finely its latents are quantised.

quality   0..1000, tenths of the public scale 0..100; a model maps it to lambda (`ModelConfig.lmbda`)
mix       0..8, eighths of the way from squared error to MS-SSIM (`l2c.objective`); three places have names
bits      1..8, of a latent
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, TypeAlias

MAX_QUALITY = 1000  # tenths of the public 0..100 scale
MAX_MU = 8  # the metric mix in eighths
Metric: TypeAlias = Literal["psnr", "mixed", "msssim"]
METRICS = {"psnr": 0, "mixed": 4, "msssim": 8}  # the metrics that have a name, by their mix
DEFAULT_METRIC: Metric = "mixed"


class OperatingPoint(NamedTuple):
    """What P is conditioned on, in the order in which every coder takes it."""

    quality_tenths: int
    mix: int
    bits: int


def metric_name(metric_mix: int) -> str:
    """What 0..8 is called: a metric, or its place between two of them, such as "3/4 psnr + 1/4 mixed"."""
    names = sorted(METRICS, key=lambda name: METRICS[name])
    for low, high in itertools.pairwise(names):
        first, last = METRICS[low], METRICS[high]
        if first < metric_mix < last:
            whole = last - first
            return f"{last - metric_mix}/{whole} {low} + {metric_mix - first}/{whole} {high}"
    return next(name for name in names if METRICS[name] == metric_mix)
