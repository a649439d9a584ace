"""Sizes of the multi-scale progressive model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from l2c.entropy.base import ProbabilityConfig
from l2c.errors import ConfigError

_MAX_WIDTH = 8192  # far above any use; a damaged file cannot ask for more


@dataclass(frozen=True)
class MultiscaleConfig(ProbabilityConfig):
    """Sizes of P (L2C III-B).

    Attributes:
        num_scales: M, the number of halvings.
        channel_groups: sizes of the channel groups that are coded one after another at each position; they sum to c.
        num_mixtures: K, logistic components per symbol.
        width: channels of the context tensor and of every hidden layer.
        prior: model of the last scale: "learned" (mixtures from the header's integers) or "uniform" (the paper).
    """

    num_scales: int
    channel_groups: tuple[int, ...]
    num_mixtures: int
    width: int
    prior: str = "learned"

    family: ClassVar[str] = "multiscale"

    def __post_init__(self) -> None:
        if self.prior not in ("learned", "uniform"):
            raise ConfigError(f"probability.prior is {self.prior!r}: it must be 'learned' or 'uniform'")
        if not 1 <= self.num_scales <= 6 or not 1 <= self.num_mixtures <= 8:
            raise ConfigError("probability: num_scales must be 1..6, num_mixtures 1..8")
        if not 1 <= self.width <= _MAX_WIDTH:
            raise ConfigError(f"probability.width must be 1..{_MAX_WIDTH}")
        if not self.channel_groups or min(self.channel_groups) < 1:
            raise ConfigError("probability.channel_groups must be positive sizes")

    def check(self, c: int) -> None:
        """See `ProbabilityConfig.check`."""
        if sum(self.channel_groups) != c:
            raise ConfigError(f"probability.channel_groups sum to {sum(self.channel_groups)}, transform.c is {c}")
