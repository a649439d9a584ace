"""The numbers on which the float model, the integer model, its plain form, the kernels and csrc/ agree.

Every implementation of P computes the same integers, so what they are built on is said once, here. csrc/ has its own
copies (`kAvailable`, the tables of csrc/core/mixture_cdf.h, the statuses); the tests compare what comes out. It imports
numpy and the levels of the format alone, so that kernels and models alike can read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l2c.format.levels import MAX_MU, MAX_QUALITY

# --- the graph ------------------------------------------------------------------------------------------------------

# Cell position p -> (row, column) offset; the order in which the unknown ones are coded.
POSITIONS = ((0, 0), (0, 1), (1, 0), (1, 1))
CODING_ORDER = (3, 1, 2)

# --- inputs of P ----------------------------------------------------------------------------------------------------

INPUT_SCALE = 16.0  # integers at P's input are 16 times the float values
AVAILABLE = 16  # integer value of the availability planes
PLANE_ONE = 64  # full scale of the constant planes
QUALITY_KNOTS = 5
COMPAND = 11.2  # 127 * sqrt(129) / 128, rounded down so that 128 stays below 127

# --- layers ---------------------------------------------------------------------------------------------------------

ACTIVATION_SCALE = 32.0  # hidden activations are uint8, 32 times the float values
ACTIVATION_MAX = 255.0 / ACTIVATION_SCALE
SUM_LIMIT = 1 << 24  # sum|w| max|a| + |bias| stays below it, so float32 sums are exact in any order

# --- mixtures -------------------------------------------------------------------------------------------------------

MEAN_UNIT = 1.0 / 128.0  # one integer step of a mean, in latents (Q6 half steps)
LOGIT_UNIT = 1.0 / 16.0  # one integer step of a mixture logit
INV_SCALE_OCTAVE = 19.6  # integer steps of the log inverse scale per octave
INV_SCALE_MAX = 32767  # Q10 per half step, at index 255
LOG2_INV_SCALE_MOST = math.log2(INV_SCALE_MAX / 1024.0 * 2.0)  # per latent, at index 255
LOG2_INV_SCALE_LEAST = LOG2_INV_SCALE_MOST - 255.0 / INV_SCALE_OCTAVE
WEIGHT_SUM = 65536 - 16  # of the integer weights of one mixture
CDF_ONE = 1 << 20  # C(2^b): where every CDF ends

# Per 1024 steps of z (half a unit of the logistic's argument): value, slope and curvature of its upper tail.
TAIL_A = (32764, 24740, 17622, 11952, 7809, 4969, 3106, 1920, 1178, 719, 438, 266, 161, 98, 59, 36, 21, 13, 8, 5, 3, 2)
# fmt: off
TAIL_B = (
    33080, 31014, 25804, 19471, 13646, 9082, 5836, 3678, 2283, 1397, 861, 506, 306, 191, 113, 73, 32, 24, 16, 12, 8, 8
)
# fmt: on
TAIL_C = (3868, 10140, 12504, 11636, 9192, 6564, 4392, 2856, 1808, 1100, 704, 356, 208, 140, 80, 60)

# Latents between two levels, which training asks for, belong to an end of the range up to so many steps from it.
MARGIN = 0.25  # in `reference.mixture_likelihood`
NEIGHBOUR_MARGIN = 0.5  # in `reference.neighbour_bits`, whose latents are levels: from 128 - S/2 on there is none

# --- the hyperprior family --------------------------------------------------------------------------------------------

WIDE_SUM_LIMIT = 1 << 31  # of its layers: 255 sum|w| + |bias| stays below it; sums are int32, rounded to float32
SIGNED_ZERO = 128  # the byte that stands for 0 among inputs of both signs
CONTEXT_TAPS = tuple((dy, dx) for dy in (-2, -1, 0) for dx in range(-2, 3) if (dy, dx) < (0, 0))  # masked 5x5, raster
MOST_SHIFT = 8  # of a latent before it becomes such an input
SCALE_UNIT = 1.0 / 128.0  # one integer step of a head's sigma, in latents
HEAD_MEAN_BITS = 6
HEAD_MEAN_UNIT = 1.0 / (1 << HEAD_MEAN_BITS)  # and of its mean
SIGMA_LEAST, SIGMA_MOST = 14, 32000  # 0.11, the papers' bound, and 250 latents
# A Gaussian as three logistics: weights; inverse scales times sigma; distance of the outer ones from the mean, in
# 1/1024 sigma.
GAUSSIAN_WEIGHTS = (37346, 14087, 14087)
GAUSSIAN_INV_SCALES = (153552, 163391)  # of the one in the middle, of the outer ones
GAUSSIAN_DISTANCE = 1033
ESCAPES = (0, 255)  # symbols that stand for all latents from there on
ESCAPE_DIGIT = 255  # the digit after which another one follows
MOST_DIGITS = 32
DIGIT_WEIGHT, DIGIT_MEAN, DIGIT_INV_SCALE = 65520, -16384, 16  # one logistic around the digit 0
SIDE_PRECISION = 16  # bits of the tables

# --- the range coder ------------------------------------------------------------------------------------------------

MAX_LANES = 64
STATE_LOW = 1 << 32  # of a lane: where it starts, its least value between symbols
WINDOW = 16  # edges of the CDF that a decoder on a GPU looks at first
# Statuses of a stream, csrc/core/mixture_cdf.h and csrc/cuda/rans.h.
BAD_SYMBOL = 1
TRUNCATED = 4
NO_ROOM = 6
BAD_LATENT = 7  # an escaped latent has too many digits, or does not fit in int16


def constant_planes(quality: int, mu: int, b: int, scale: int, num_scales: int) -> list[int]:
    """What a step knows from the header, as integers in 0..PLANE_ONE (one constant input plane each).

    Args:
        quality: 0..1000; enters as QUALITY_KNOTS hat functions.
        mu: metric mix in eighths, 0..8.
        b: quantisation bits 1..8.
        scale: 0..num_scales (num_scales stands for the prior), enters one-hot.
    Returns:
        QUALITY_KNOTS + 2 + num_scales + 1 integers.
    """
    spacing = MAX_QUALITY // (QUALITY_KNOTS - 1)
    hats = [max(0, PLANE_ONE - abs(quality - spacing * k) * PLANE_ONE // spacing) for k in range(QUALITY_KNOTS)]
    one_hot = [PLANE_ONE if i == scale else 0 for i in range(num_scales + 1)]
    return [*hats, mu * PLANE_ONE // MAX_MU, (8 - b) * PLANE_ONE // 8, *one_hot]


def num_planes(num_scales: int) -> int:
    """Length of `constant_planes`."""
    return QUALITY_KNOTS + 2 + num_scales + 1


@dataclass(frozen=True)
class IntegerLayer:
    """One convolution: weight int8 [O, I, k, k], bias int32 [O], multiplier float32 [O]."""

    weight: npt.NDArray[np.int8]
    bias: npt.NDArray[np.int32]
    multiplier: npt.NDArray[np.float32]


@dataclass(frozen=True)
class IntegerStep:
    """A step of P in integers. The input channels of w1 are [4 c values | 4 G availability | planes | q]."""

    w1: IntegerLayer
    w2: IntegerLayer
    w3: IntegerLayer
    w4: IntegerLayer


@dataclass(frozen=True)
class IntegerTables:
    """Constant tables, stored with the weights.

    Attributes:
        compand: int8 [256], indexed by latent + 128.
        exp: uint16 [256], 32768 * exp(-d / 16), indexed by the distance d to the largest logit.
        inv_scale: uint16 [256], Q10 per half step, non-decreasing.
    """

    compand: npt.NDArray[np.int8]
    exp: npt.NDArray[np.uint16]
    inv_scale: npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Grid:
    """Where patches lie on a layer, or on the latents that D sees.

    Attributes:
        side: of a patch, in positions.
        top, left: row and column of the layer's first position, counted from the first patch. What lies outside the
            patches has the values of the nearest one.
    """

    side: int
    top: int = 0
    left: int = 0

    def finer(self, fineness: int) -> Grid:
        """The same patches on a layer with so many positions per position, each way."""
        return Grid(self.side * fineness, self.top * fineness, self.left * fineness)
