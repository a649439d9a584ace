"""Sizes of the entropy models of the hyperprior family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from l2c.architectures import PAIRED, check_qualities, check_rounding
from l2c.entropy.base import ProbabilityConfig


@dataclass(frozen=True)
class HyperpriorConfig(ProbabilityConfig):
    """What says how likely the latents of CompressAI's codecs are.

    Attributes:
        architecture: a name of `architectures.ARCHITECTURES`.
        n: N, channels of the hyper-latents z.
        qualities: which of the codec's qualities 1..8 the model has, rising; each has networks of its own.
        rounding: of y, see `HyperpriorTransformConfig`.
    """

    architecture: str
    n: int
    qualities: tuple[int, ...]
    rounding: str = "whole"

    family: ClassVar[str] = "hyperprior"

    def __post_init__(self) -> None:
        check_qualities("probability", self.architecture, self.n, self.qualities)
        check_rounding("probability", self.architecture, self.rounding)

    def networks(self) -> dict[str, Any]:
        """As many qualities, whichever they are: one starts from another (see the base class)."""
        return super().networks() | {"qualities": len(self.qualities), "rounding": None}

    @property
    def pairing(self) -> Mapping[str, Any]:
        """See the base class."""
        return {name: getattr(self, name) for name in PAIRED}
