"""What a stage minimises."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from l2c.objective import Needs
from l2c.train.config import LossConfig
from l2c.train.losses import Conditions, LossParts, Networks
from l2c.train.perceptual import VGG16Features
from l2c.transforms import Transform
from l2c.transforms.block import BlockDecoder


def thaw_decoder(transform: Transform) -> None:
    """Let D learn beside a fixed E: all of it but the gains that it shares with E, which make the latents."""
    transform.decoder.requires_grad_(True)
    if isinstance(transform.decoder, BlockDecoder) and transform.decoder.companding is not None:
        transform.decoder.companding.requires_grad_(False)


class Objective(nn.Module, abc.ABC):
    """What a stage minimises, and which parameters it trains. Subclasses implement `loss`.

    Attributes:
        compiles: False where the loss differentiates inside itself, which `torch.compile` cannot.
    """

    compiles = True

    def __init__(self, nets: Networks, weights: LossConfig, features: VGG16Features | None) -> None:
        super().__init__()
        self.nets = nets
        self.weights = weights
        self.features = features

    @abc.abstractmethod
    def loss(self, x: Tensor, cond: Conditions, noise: Tensor) -> LossParts:
        """Figures of pictures float32 [N, 3, H, W] in [0, 1]; the mean of `total` is minimised."""

    def own_parameters(self) -> list[nn.Parameter]:
        """What the stage learns beside the networks (saved with its checkpoints)."""
        return []

    def facts(self) -> dict[str, str]:
        """For the model card, beside what every stage has."""
        return {}

    def forward(
        self,
        x: Tensor,
        quality: Tensor,
        mu: Tensor,
        b: Tensor,
        noise: Tensor,
        autocast: bool,
        needs: Needs | None = None,
    ) -> LossParts:
        """`loss` under bfloat16 autocast where asked for; plain tensors, so that DDP and the compiler see them."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
            return self.loss(x, Conditions(quality, mu, b, needs=needs), noise)
