"""The paper's own networks: L2C III, III-A, IV, for the four-codec set (c8b8, c6b8, c3b4, c1b4).

Parameter counts with 192 channels and c = 8: E 1.61 M, I 1.60 M, D 2.69 M, as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.transforms.adaptation import Adaptation, Adapter
from l2c.transforms.base import MAX_WIDTH, Decoder, Encoder, TransformConfig
from l2c.transforms.modulators import Modulator


@dataclass(frozen=True)
class PaperConfig(TransformConfig):
    """Sizes of the family; the counts of its layers and s = 4 are the paper's.

    Attributes:
        width: N, channels of the hidden layers (192 in the paper).
        mask: whether I exists and masks channels (L2C III-A). Never at c = 1.
        modulated: whether modulators conditioned on (log lambda, mu) scale the features (OML Eq. 3).
        modulator_width: hidden width of each modulator's two fully connected layers.
    """

    width: int
    mask: bool = True
    modulated: bool = False
    modulator_width: int = 32

    family: ClassVar[str] = "paper"
    former: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "encoder_blocks": (1,),
        "decoder_blocks": (2,),
        "fine_width": (0,),
        "local_gain": (False,),
        "companding": (False,),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.s != 4:
            raise ConfigError(f"transform.s is {self.s}: the paper's networks down-sample by 4")
        if not 1 <= self.width <= MAX_WIDTH:
            raise ConfigError(f"transform.width must be 1..{MAX_WIDTH}")
        if not 1 <= self.modulator_width <= MAX_WIDTH:
            raise ConfigError(f"transform.modulator_width must be 1..{MAX_WIDTH}")


class ResidualBlock(nn.Module):
    """x + conv3x3(ReLU(conv3x3(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, adapter: Adapter | None = None, modulator: Modulator | None = None) -> Tensor:
        """[N, C, h, w] -> the same shape; in D `adapter` changes both biases, and a modulator can follow."""
        if adapter is None:
            return x + self.conv2(F.relu(self.conv1(x)))
        inner = adapter.finish(self.conv1(x), slope=0.0)
        return adapter.finish(self.conv2(inner), residual=x, modulator=modulator)


class PaperEncoder(Encoder):
    """E and I (L2C IV): 5x5/2 3->N, 5x5/2 N->N, residual block, 3x3 -> c. I has its own trunk and one output."""

    receptive_halo_px = 32

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.trunk = self._trunk(config.width)
        self.head = nn.Conv2d(config.width, config.c, 3, padding=1)
        self.mod = Modulator(config.width, config.modulator_width) if config.modulated else None
        self.importance: nn.Sequential | None = None
        if config.mask and config.c > 1:
            self.importance = nn.Sequential(self._trunk(config.width), nn.Conv2d(config.width, 1, 3, padding=1))

    @staticmethod
    def _trunk(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 5, stride=2, padding=2),
            nn.ReLU(),
            ResidualBlock(width),
        )

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents and importance map.

        Args:
            x: [N, 3, H, W] in [0, 1], H and W multiples of 4.
            cond: float32 [N, 2] from `modulators.condition`.
        Returns:
            y: float [N, c, H/4, W/4]; tau: [N, 1, H/4, W/4] in (0, 1), or None without a mask.
        """
        features = self.trunk(x - 0.5)
        if self.mod is not None:
            features = self.mod(features, cond)
        # The latents are in quantiser steps, so that +-1 of the convolution's usual range spans the 8-bit levels.
        y = 64.0 * self.head(features).float()
        tau = self.importance(x - 0.5).float().sigmoid() if self.importance is not None else None
        return y, tau


class PaperDecoder(Decoder):
    """D (L2C IV): 3x3 c->N, two residual blocks, 3x3 N->4N + PixelShuffle, 3x3 N->12 + PixelShuffle."""

    receptive_halo_px = 48

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        width = config.width
        self.head = nn.Conv2d(config.c, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(2))
        self.up = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.last = nn.Conv2d(width, 12, 3, padding=1)
        mods = [Modulator(width, config.modulator_width) for _ in range(4)] if config.modulated else []
        self.mods = nn.ModuleList(mods)

    def forward(self, y_hat: Tensor, cond: Tensor, adaptation: Adaptation | None = None) -> Tensor:
        """Latents [N, c, h, w] in quantiser steps, cond [N, 2] -> pictures float32 [N, 3, 4h, 4w], about [0, 1].

        `adaptation` changes the biases and the modulators' conditions.
        """
        adapter = Adapter(adaptation, cond, y_hat.shape[2])
        mods: list[Modulator | None] = list(self.mods) if len(self.mods) else [None] * 4  # type: ignore[arg-type]
        x = adapter.finish(self.head(y_hat / 64.0), slope=0.0, modulator=mods[0])
        for block, mod in zip(self.blocks, mods[1:3]):
            x = block(x, adapter, mod)
        x = F.pixel_shuffle(adapter.finish(self.up(x), slope=0.0), 2)
        if mods[3] is not None:
            x = adapter.modulate(x, mods[3])
        return F.pixel_shuffle(adapter.finish(self.last(x)), 2).float() + 0.5


def paper_networks(config: PaperConfig) -> tuple[PaperEncoder, PaperDecoder]:
    """E and D of a configuration."""
    return PaperEncoder(config), PaperDecoder(config)
