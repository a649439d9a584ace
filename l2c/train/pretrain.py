"""First stage: train E, I, D and P together (L2C III-C, Eq. 7)."""

from __future__ import annotations

from torch import Tensor

from l2c.train.config import LossConfig
from l2c.train.losses import Conditions, LossParts, Networks, analyse, latent_loss
from l2c.train.objective import Objective
from l2c.train.perceptual import VGG16Features
from l2c.transforms.block import gains_of


class PretrainObjective(Objective):
    """L2C Eq. 7 with uniform noise in the rate term; with `fixed_gains` all but the gains is trained.

    Raises:
        ConfigError: `fixed_gains`, and the networks have none.
    """

    def __init__(
        self, nets: Networks, weights: LossConfig, features: VGG16Features | None, fixed_gains: bool = False
    ) -> None:
        super().__init__(nets, weights, features)
        if fixed_gains:
            for gain in gains_of(nets.transform.encoder, nets.transform.decoder):
                gain.requires_grad_(False)

    def loss(self, x: Tensor, cond: Conditions, noise: Tensor) -> LossParts:
        """See `Objective.loss`."""
        y, tau = analyse(self.nets, x, cond)
        return latent_loss(self.nets, x, y, tau, cond, self.weights, noise, self.features)
