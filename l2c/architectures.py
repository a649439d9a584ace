"""The codecs of CompressAI that the hyperprior family rebuilds: facts about them, without PyTorch.

Names are the papers': N channels of the hidden layers, M of the latents y; g_a and g_s between pictures and y, h_a and
h_s between y and the hyper-latents z. A checkpoint holds one quality; a model file of ours may hold several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from l2c.errors import ConfigError

Kind: TypeAlias = Literal["factorized", "scale", "mean", "context"]

STRIDE = 16  # pixels a side that a latent y stands for
HYPER_STRIDE = 4  # latents y a side that a hyper-latent z stands for
LATENT_MAX = 4095  # |y| at most; 421 was the largest seen
MEAN_UNITS = 16  # to which the mean is rounded from which y is rounded, in one
MEAN_LATENT_MAX = 1535  # |y| at most then: with the mean, and a step, 16 bits hold it
ROUNDINGS = ("mean", "whole")  # of y: in whole steps from its mean, or to whole numbers
WITH_MEAN: tuple[Kind, ...] = ("mean", "context")
PAIRED = ("architecture", "qualities", "rounding")  # settings that both parts of a model have
QUALITIES = 8
LMBDA_MIN, LMBDA_MAX = 0.0018, 0.18  # of qualities 1 and 8, for lambda 255^2 MSE + bpp; log-linear between, to 0.4 %
_TOP = 1000  # of the header's quality


@dataclass(frozen=True)
class Architecture:
    """One of them.

    Attributes:
        kind: what says how likely y is: "factorized" (a table per channel), "scale" (h_s gives sigma), "mean" (h_s
            gives sigma and mu), "context" (both, with the y before in raster order).
        residual: g_a and g_s of residual blocks (Cheng2020) instead of convolutions with GDN.
        attention: with attention modules in g_a and g_s.
        sizes: (quality, N, M) of the published checkpoints, from that quality on.
        last: the highest published quality.
        source: the paper.
    """

    kind: Kind
    residual: bool
    attention: bool
    sizes: tuple[tuple[int, int, int], ...]
    last: int
    source: str


_BALLE = "Balle et al., Variational image compression with a scale hyperprior, ICLR 2018"
_MINNEN = "Minnen et al., Joint autoregressive and hierarchical priors for learned image compression, NeurIPS 2018"
_CHENG = "Cheng et al., Learned image compression with discretized Gaussian mixture likelihoods, CVPR 2020"
ARCHITECTURES = {
    "bmshj2018-factorized": Architecture("factorized", False, False, ((1, 128, 192), (6, 192, 320)), 8, _BALLE),
    "bmshj2018-hyperprior": Architecture("scale", False, False, ((1, 128, 192), (6, 192, 320)), 8, _BALLE),
    "mbt2018-mean": Architecture("mean", False, False, ((1, 128, 192), (5, 192, 320)), 8, _MINNEN),
    "mbt2018": Architecture("context", False, False, ((1, 192, 192), (5, 192, 320)), 8, _MINNEN),
    "cheng2020-anchor": Architecture("context", True, False, ((1, 128, 128), (4, 192, 192)), 6, _CHENG),
    "cheng2020-attn": Architecture("context", True, True, ((1, 128, 128), (4, 192, 192)), 6, _CHENG),
}


def tenths_of(quality: int) -> int:
    """Where quality 1..8 lies on the header's scale 0..1000, at whose ends lambda is LMBDA_MIN and LMBDA_MAX."""
    return round((quality - 1) * _TOP / (QUALITIES - 1))


def nearest(tenths: float, qualities: Sequence[int]) -> int:
    """Index of the quality that is nearest to a place on the header's scale, the lower one of two."""
    return min(range(len(qualities)), key=lambda i: abs(tenths_of(qualities[i]) - tenths))


def split(tenths: Sequence[float], qualities: Sequence[int]) -> dict[int, list[int]]:
    """Which of the pictures at these places on the header's scale each quality takes: its index -> their numbers."""
    found: dict[int, list[int]] = {}
    for number, place in enumerate(tenths):
        found.setdefault(nearest(place, qualities), []).append(number)
    return found


def check_qualities(where: str, architecture: str, n: int, qualities: tuple[int, ...]) -> None:
    """Raises ConfigError: what no model of the family can have."""
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"{where}.architecture is {architecture!r}: it must be one of {', '.join(ARCHITECTURES)}")
    if not 1 <= n <= 1024:
        raise ConfigError(f"{where}.n is {n}: it must be 1..1024")
    known = set(range(1, QUALITIES + 1))
    if not qualities or list(qualities) != sorted(set(qualities)) or not set(qualities) <= known:
        raise ConfigError(f"{where}.qualities is {list(qualities)}: it must be some of 1..{QUALITIES}, rising")


def check_rounding(where: str, architecture: str, rounding: str) -> None:
    """Raises ConfigError: a way of rounding y that there is not, or not in this architecture."""
    if rounding not in ROUNDINGS:
        raise ConfigError(f"{where}.rounding is {rounding!r}: it must be one of {', '.join(ROUNDINGS)}")
    if rounding == "mean" and ARCHITECTURES[architecture].kind not in WITH_MEAN:
        raise ConfigError(f"{where}.rounding is {rounding!r}: {architecture} has no means")
