"""Model configurations: frozen dataclasses, one per model, read from and written to JSON.

Nothing else in the project assumes a down-sampling factor, a channel count or a width: they all come from here. What a
family of networks or of entropy models can be told is its own dataclass, which lies beside it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from l2c.entropy import FAMILIES, EntropyFamily, FloatModel, ProbabilityConfig
from l2c.errors import ConfigError
from l2c.format.levels import MAX_QUALITY
from l2c.settings import from_mapping
from l2c.transforms import TransformConfig


@dataclass(frozen=True)
class ModelConfig:
    """One model: its name, its networks, and the range of trade-offs it was trained for.

    Attributes:
        name: file name of the exported weights.
        transform: E, I and D, of a family of `l2c.transforms`.
        probability: P, of a family of `l2c.entropy`.
        bits: largest number of quantisation bits b, 1..8.
        lmbda_min, lmbda_max: the trade-off lambda at quality 0 and at quality 100 (raw, as OML 5 states them:
            loss = lambda * 255^2 * MSE + bpp); in between log lambda is linear in quality.
    """

    name: str
    transform: TransformConfig
    probability: ProbabilityConfig
    bits: int = 8
    lmbda_min: float = 0.0008
    lmbda_max: float = 0.15

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ConfigError(f"bits is {self.bits}: it must be 1..8")
        self.probability.check(self.transform.c)
        if self.probability.pairing != self.transform.pairing:
            raise ConfigError(
                f"transform and probability do not go together: {dict(self.transform.pairing)} and "
                f"{dict(self.probability.pairing)}"
            )
        if not 0 < self.lmbda_min <= self.lmbda_max:
            raise ConfigError("lmbda_min and lmbda_max must be positive and in order")

    def lmbda(self, share: float) -> float:
        """The raw trade-off at a share 0..1 of the quality scale."""
        return float(self.lmbda_min * (self.lmbda_max / self.lmbda_min) ** share)

    def settled(self, tenths: int) -> int:
        """The place 0..1000 on the header's scale at which a picture is coded that is asked for at this one: this one,
        or the nearest at which there are networks."""
        steps = self.transform.quality_steps.values()
        return min(steps, key=lambda step: abs(step - tenths)) if steps else tenths

    def shown_quality(self, tenths: int) -> float:
        """What users call a place 0..1000 on the header's scale: 0..100, or the quality whose networks are nearest."""
        steps = self.transform.quality_steps
        if not steps:
            return 100.0 * tenths / MAX_QUALITY
        return float(min(steps, key=lambda quality: abs(steps[quality] - tenths)))

    @property
    def log_range(self) -> tuple[float, float]:
        """log lambda at both ends of the quality scale."""
        return math.log(self.lmbda_min), math.log(self.lmbda_max)

    @property
    def entropy(self) -> EntropyFamily:
        """The family of P."""
        return FAMILIES[self.probability.family]

    def float_model(self) -> FloatModel:
        """P in float with random weights, on PyTorch's default device."""
        return self.entropy.float_model(self.probability, self.transform.c)

    def to_json(self) -> str:
        """This configuration as JSON that `from_json` reads back to an equal value."""
        families = {"transform": self.transform.to_mapping(), "probability": self.probability.to_mapping()}
        return json.dumps(dataclasses.asdict(self) | families, indent=2)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read a configuration.

        Raises:
            ConfigError: not JSON, an unknown or missing key, a wrong type, or an impossible value.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"the configuration is not JSON: {error}") from None
        config: ModelConfig = from_mapping(cls, data, "model")
        return config

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a configuration file. Raises ConfigError as `from_json` does, or where it cannot be read."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from None
        return cls.from_json(text)
