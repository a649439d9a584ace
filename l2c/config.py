"""Model configurations: frozen dataclasses, one per model, read from and written to JSON.

Nothing else in the project assumes a down-sampling factor, a channel count or a width: they all come from here.
Unknown and missing keys are refused, so a misspelt entry can never be silently ignored.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2c.errors import ConfigError

_MAX_WIDTH, _MAX_BLOCKS = 8192, 256  # far above any use; a damaged file cannot ask for more


@dataclass(frozen=True)
class TransformConfig:
    """Sizes of E, I and D.

    Attributes:
        family: "paper" (the networks of L2C, section IV) or "block" (the default model: one linear block
            transform plus convolutions at H/s, see `transforms/block.py`).
        s: down-sampling factor of E. The paper family requires 4.
        c: latent channels.
        width: channels of the hidden layers (192 in the paper).
        encoder_blocks, decoder_blocks: residual blocks of E and D (block family; the paper's counts are fixed).
        fine_width: channels of D's stage at H/(s/2); 0 leaves the stage out (block family).
        mask: whether I exists and masks channels (L2C III-A). Never at c = 1.
        modulated: whether modulators conditioned on (log lambda, mu) scale the features (OML Eq. 3).
        modulator_width: hidden width of each modulator's two fully connected layers.
        local_gain: whether E divides, and D multiplies, each coefficient by a factor that depends on the picture
            around it (block family).
        companding: whether E and D share one bounded gain and compand large latents, so that nothing clips (block
            family).
    """

    family: str
    s: int
    c: int
    width: int
    encoder_blocks: int = 1
    decoder_blocks: int = 2
    fine_width: int = 0
    mask: bool = True
    modulated: bool = False
    modulator_width: int = 32
    local_gain: bool = False
    companding: bool = False

    def __post_init__(self) -> None:
        if self.family not in ("paper", "block"):
            raise ConfigError(f"transform.family is {self.family!r}: it must be 'paper' or 'block'")
        if self.family == "paper" and self.s != 4:
            raise ConfigError(f"transform.s is {self.s}: the paper's networks down-sample by 4")
        if self.family == "paper" and self.local_gain:
            raise ConfigError("transform.local_gain: the paper's networks have none")
        if self.family == "paper" and self.companding:
            raise ConfigError("transform.companding: the paper's networks have none")
        if self.s not in (2, 4, 8, 16, 32):
            raise ConfigError(f"transform.s is {self.s}: it must be 2, 4, 8, 16 or 32")
        limit = 4096 if self.family == "paper" else 3 * self.s * self.s
        if not 1 <= self.c <= limit:
            raise ConfigError(f"transform.c is {self.c}: it must be 1..{limit}")
        if not (1 <= self.width <= _MAX_WIDTH and 0 <= self.fine_width <= _MAX_WIDTH):
            raise ConfigError(f"transform.width must be 1..{_MAX_WIDTH}, fine_width 0..{_MAX_WIDTH}")
        if not 1 <= self.modulator_width <= _MAX_WIDTH:
            raise ConfigError(f"transform.modulator_width must be 1..{_MAX_WIDTH}")
        if not (0 <= self.encoder_blocks <= _MAX_BLOCKS and 0 <= self.decoder_blocks <= _MAX_BLOCKS):
            raise ConfigError(f"transform.encoder_blocks and decoder_blocks must be 0..{_MAX_BLOCKS}")


@dataclass(frozen=True)
class ProbabilityConfig:
    """Sizes of P, the multi-scale progressive model (L2C III-B).

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

    def __post_init__(self) -> None:
        if self.prior not in ("learned", "uniform"):
            raise ConfigError(f"probability.prior is {self.prior!r}: it must be 'learned' or 'uniform'")
        if not 1 <= self.num_scales <= 6 or not 1 <= self.num_mixtures <= 8:
            raise ConfigError("probability: num_scales must be 1..6, num_mixtures 1..8")
        if not 1 <= self.width <= _MAX_WIDTH:
            raise ConfigError(f"probability.width must be 1..{_MAX_WIDTH}")
        if not self.channel_groups or min(self.channel_groups) < 1:
            raise ConfigError("probability.channel_groups must be positive sizes")


@dataclass(frozen=True)
class ModelConfig:
    """One model: its name, its networks, and the range of trade-offs it was trained for.

    Attributes:
        name: file name of the exported weights.
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
        if sum(self.probability.channel_groups) != self.transform.c:
            raise ConfigError(
                f"probability.channel_groups sum to {sum(self.probability.channel_groups)}, "
                f"transform.c is {self.transform.c}"
            )
        if not 0 < self.lmbda_min <= self.lmbda_max:
            raise ConfigError("lmbda_min and lmbda_max must be positive and in order")

    def lmbda(self, share: float) -> float:
        """The raw trade-off at a share 0..1 of the quality scale."""
        return float(self.lmbda_min * (self.lmbda_max / self.lmbda_min) ** share)

    def to_json(self) -> str:
        """This configuration as JSON that `from_json` reads back to an equal value."""
        return json.dumps(dataclasses.asdict(self), indent=2)

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
        return from_mapping(cls, data, "model")

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a configuration file. Raises ConfigError as `from_json` does, or where it cannot be read."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from None
        return cls.from_json(text)


def from_mapping(cls: Any, data: Any, where: str) -> Any:
    """Fill the dataclass `cls` from the mapping `data`, refusing unknown and missing keys and wrong types.

    Raises:
        ConfigError: names `where` and the key.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a table of settings, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}; known: {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in data:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{where}: missing key {name!r}")
            continue
        values[name] = _convert(hints[name], data[name], f"{where}.{name}")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one entry against its type hint; whole numbers are accepted where a float is expected."""
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], v, where) for v in value)
    if isinstance(hint, types.UnionType):
        if value is None and types.NoneType in typing.get_args(hint):
            return None
        return _convert(next(t for t in typing.get_args(hint) if t is not types.NoneType), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
