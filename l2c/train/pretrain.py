"""First stage: train E, I, D and P together (L2C III-C, Eq. 7)."""

from __future__ import annotations

from torch import Tensor

from l2c.train.losses import Conditions, LossParts, analyse, latent_loss
from l2c.train.objective import Objective


class PretrainObjective(Objective):
    """L2C Eq. 7 with uniform noise in the rate term."""

    def loss(self, x: Tensor, cond: Conditions, noise: Tensor) -> LossParts:
        """See `Objective.loss`."""
        y, tau = analyse(self.nets, x, cond)
        return latent_loss(self.nets, x, y, tau, cond, self.weights, noise, self.features)
