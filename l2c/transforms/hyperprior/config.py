"""Sizes of the networks of the hyperprior family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from l2c.architectures import ARCHITECTURES, PAIRED, STRIDE, check_qualities, check_rounding, tenths_of
from l2c.errors import ConfigError
from l2c.transforms.base import TransformConfig
from l2c.transforms.quantiser import SIXTEENTHS, WHOLE_NUMBERS, Quantiser

UPSAMPLINGS = 4  # layers of g_s that double the resolution


@dataclass(frozen=True)
class HyperpriorTransformConfig(TransformConfig):
    """g_a and g_s of CompressAI's codecs. s is 16, and c is M.

    Attributes:
        architecture: a name of `architectures.ARCHITECTURES`.
        n: N, channels of the hidden layers.
        qualities: which of the codec's qualities 1..8 the model has, rising; each has a g_a of its own.
        shared_decoder: one g_s for all of them (OML 5.1) instead of one for each (CompressAI).
        modulators: in front of which of the four up-sampling layers of g_s features are modulated, rising.
        hidden: width of a modulator.
        stored: how weights lie in a model file.
        rounding: of y: "whole" numbers, or whole steps from its "mean", which needs an architecture that has one. The
            latter is how CompressAI writes files; the search among latents needs the former.
    """

    architecture: str
    n: int
    qualities: tuple[int, ...]
    shared_decoder: bool = False
    modulators: tuple[int, ...] = (0, 1, 2, 3)
    hidden: int = 64
    stored: str = "float32"
    rounding: str = "whole"

    family: ClassVar[str] = "hyperprior"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s != STRIDE:
            raise ConfigError(f"transform.s is {self.s}: it is {STRIDE} in this family")
        check_qualities("transform", self.architecture, self.n, self.qualities)
        check_rounding("transform", self.architecture, self.rounding)
        if ARCHITECTURES[self.architecture].residual and self.n != self.c:
            raise ConfigError(f"transform.c is {self.c} and n {self.n}: {self.architecture} has N = M")
        places = list(self.modulators)
        if places != sorted(set(places)) or not set(places) <= set(range(UPSAMPLINGS)):
            raise ConfigError(f"transform.modulators is {places}: it must rise within 0..{UPSAMPLINGS - 1}")
        if not 1 <= self.hidden <= 1024:
            raise ConfigError(f"transform.hidden is {self.hidden}: it must be 1..1024")
        if self.stored not in ("float32", "float16"):
            raise ConfigError(f"transform.stored is {self.stored!r}: it must be float32 or float16")

    @property
    def quantiser(self) -> Quantiser:
        """See `TransformConfig`."""
        return SIXTEENTHS if self.rounding == "mean" else WHOLE_NUMBERS

    @property
    def pairing(self) -> Mapping[str, Any]:
        """See `TransformConfig`."""
        return {name: getattr(self, name) for name in PAIRED}

    @property
    def quality_steps(self) -> Mapping[int, int]:
        """See `TransformConfig`: CompressAI's qualities."""
        return {quality: tenths_of(quality) for quality in self.qualities}

    @property
    def stored_dtype(self) -> torch.dtype:
        """See `TransformConfig`."""
        return torch.float32 if self.stored == "float32" else torch.float16

    def networks(self) -> dict[str, Any]:
        """As many qualities, whichever they are: one starts from another (see the base class)."""
        return super().networks() | {"qualities": len(self.qualities), "rounding": None}
