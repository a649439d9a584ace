"""The contract of a family of networks: E with I, and D, between pictures and latents.

A family is three things: a configuration (a frozen dataclass below `TransformConfig`), an `Encoder` and a `Decoder`.
Everything else asks only what is written here; docs/EXTENDING.md walks through a new one.

    E       pictures [N, 3, H, W] in [0, 1], H and W multiples of s  ->  latents y [N, c, H/s, W/s] and tau (or None)
    Q       y, masked by tau, rounded to whole quantiser steps (`quantiser`, which a family names)
    D       latents [N, c, h, w]  ->  pictures [N, 3, s h, s w], about [0, 1], not clamped

Both are told the trade-off as `condition(lambda, mu)`, float32 [N, 2]. They are convolutional: an output depends on
inputs at most `receptive_halo_px` pixels away, since pictures are coded in chunks that overlap by that much, and they
work in float32 and under autocast to bfloat16.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.registry import Registry, of_family
from l2c.transforms.adaptation import Adaptation
from l2c.transforms.quantiser import LEVELS, Quantiser

Convolution: TypeAlias = nn.Conv2d | nn.ConvTranspose2d

MAX_WIDTH, MAX_BLOCKS = 8192, 256  # far above any use; a damaged file cannot ask for more


@dataclass(frozen=True)
class TransformConfig:
    """Sizes of E, I and D that all families have.

    Attributes:
        s: down-sampling factor of E: 2, 4, 8, 16 or 32.
        c: latent channels, 1..4096.
        family: the name under which the family is registered.
        former: keys that files of before say, with the values that mean what the family does: they are left out.
        takes_places: whether E has a third argument and D regards `Adaptation.places`: conditions that differ within
            a picture (`encode(importance=)`).
    """

    s: int
    c: int

    family: ClassVar[str]
    former: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    takes_places: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.s not in (2, 4, 8, 16, 32):
            raise ConfigError(f"transform.s is {self.s}: it must be 2, 4, 8, 16 or 32")
        if not 1 <= self.c <= 4096:
            raise ConfigError(f"transform.c is {self.c}: it must be 1..4096")

    @property
    def quantiser(self) -> Quantiser:
        """Q."""
        return LEVELS

    @property
    def quality_steps(self) -> Mapping[int, int]:
        """Where networks exist at some qualities alone: their names, whole numbers that rise, and their places on the
        scale 0..1000 of the header. {}: one network for the whole scale, whose name for users is 0..100."""
        return {}

    @property
    def pairing(self) -> Mapping[str, Any]:
        """What P must be told likewise: `ProbabilityConfig.pairing` of a model has to be equal."""
        return {}

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of the weights of E, I and D in a model file."""
        return torch.float16

    def networks(self) -> dict[str, Any]:
        """What a checkpoint has to agree in for its weights to fit: a table that can be compared."""
        return self.to_mapping()

    def to_mapping(self) -> dict[str, Any]:
        """A table for JSON, which `from_mapping` reads back."""
        return {"family": self.family, **dataclasses.asdict(self)}

    @classmethod
    def from_mapping(cls, data: Any, where: str) -> TransformConfig:
        """Fill the configuration of the family that the table names. Raises ConfigError as `settings` does."""
        config: TransformConfig = of_family(FAMILIES, data, where)
        return config


class Encoder(nn.Module, abc.ABC):
    """E, with I where the family masks channels.

    Attributes:
        receptive_halo_px: how far a latent sees, in pixels.
        importance: I, or None where no channels are masked.
    """

    receptive_halo_px: int
    importance: nn.Module | None

    @abc.abstractmethod
    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents and importance map.

        Args:
            x: float32 [N, 3, H, W] in [0, 1], H and W multiples of s, channels last.
            cond: float32 [N, 2] from `modulators.condition`.
        Returns:
            y: float32 [N, c, H/s, W/s] in quantiser steps of b = 8: what lies beyond -128..127 is cut off.
            tau: float32 [N, 1, H/s, W/s] in [0, 1] (L2C Eq. 2), or None without I.
        """


class Decoder(nn.Module, abc.ABC):
    """D.

    What an encoder may change in it for a picture or its patches goes through one `Adapter` that is made in `forward`
    and asked after every convolution, in the order in which they run: then bias sets (L2C III-D) and moved modulators
    (OML 3.3) work in the family without a line more.

    Attributes:
        receptive_halo_px: how far a pixel sees, in pixels.
        mods: the modulators in the order in which they run; empty where the family has none.
    """

    receptive_halo_px: int
    mods: nn.ModuleList

    @abc.abstractmethod
    def forward(self, y_hat: Tensor, cond: Tensor, adaptation: Adaptation | None = None) -> Tensor:
        """Latents -> pictures.

        Args:
            y_hat: float32 [N, c, h, w] in quantiser steps of b = 8, channels last.
            cond: float32 [N, 2] from `modulators.condition`.
            adaptation: changes to biases and modulators, or None.
        Returns:
            float32 [N, 3, s h, s w], about [0, 1], not clamped.
        """

    def scaled(self, y_hat: Tensor, cond: Tensor, adaptation: Adaptation | None, scale: int) -> Tensor:
        """Latents -> pictures scaled down: squares of scale x scale pixels become their averages, or nearly so.

        Args:
            scale: 1, 2, 4 or 8. The others as in `forward`.
        Returns:
            float32 [N, 3, ceil(s h / scale), ceil(s w / scale)]; the last squares may be parts.
        """
        pictures = self(y_hat, cond, adaptation)
        return pictures if scale == 1 else F.avg_pool2d(pictures.float().clamp(0.0, 1.0), scale, ceil_mode=True)

    def halo_px(self, scale: int) -> int:
        """How far a pixel of `scaled` sees, in pixels of the whole size."""
        return self.receptive_halo_px

    def biased_layers(self) -> list[Convolution]:
        """Convolutions whose biases can be changed, in the order in which they run."""
        return convolutions(self)


def convolutions(part: nn.Module) -> list[Convolution]:
    """All convolutions in it that have a bias, plain and transposed, as they were registered."""
    return [m for m in part.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and m.bias is not None]


def num_biases(decoder: Decoder) -> int:
    """B: how many biases of D can be changed."""
    return sum(layer.out_channels for layer in decoder.biased_layers())


@dataclass(frozen=True)
class TransformFamily:
    """A family as it is registered.

    Attributes:
        config: the class of its configurations.
        build: configuration -> E and D with random weights, on PyTorch's default device; E and D may share modules.
        grow: (older configuration, newer one, state dict of the older's `Transform`) -> state dict for the newer, that
            training can go on from; None where it cannot. No function: nothing but equal networks fit.
    """

    config: type[TransformConfig]
    build: Callable[[Any], tuple[Encoder, Decoder]]
    grow: Callable[[Any, Any, Mapping[str, Tensor]], dict[str, Tensor] | None] | None = None


FAMILIES: Registry[TransformFamily] = Registry("family of networks", "l2c.transforms")


class Transform(nn.Module):
    """E, I and D of one model.

    Attributes:
        encoder: pictures -> (latents, importance map).
        decoder: latents -> pictures.
        s: down-sampling factor. quantiser: Q.
    """

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.config = config
        self.s, self.quantiser = config.s, config.quantiser
        self.encoder, self.decoder = FAMILIES[config.family].build(config)
