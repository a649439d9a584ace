"""Second stage: meta-training for latent overfitting (L2C III-C, Eq. 8-10): MAML, the latents its inner variable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l2c.train.config import LossConfig, MetaConfig
from l2c.train.losses import Conditions, LossParts, Networks, analyse, latent_loss
from l2c.train.objective import Objective
from l2c.train.perceptual import VGG16Features


class MetaObjective(Objective):
    """The loss after n overfitting iterations of the latents (Eq. 9).

        y~^(k+1) = y~^(k) - alpha grad_y~ L(y~^(k))      (Eq. 8)

    L of the inner loop is in bits per picture: the gradient of one latent then does not depend on the size of the
    picture, and since the gains of E and D scale latents to quantiser steps, its curvature (about 2 * 6 / (3 ln 2) =
    5.8 for the MSE) hardly depends on lambda. So one alpha serves all rates; the paper's is rescaled to this unit, see
    `config.PAPER_ALPHA`. The inner loop minimises the rate of the rounded latents, as the encoder does; the outer loss
    sees the noise that pretraining sees.
    """

    def __init__(self, nets: Networks, weights: LossConfig, features: VGG16Features | None, config: MetaConfig) -> None:
        super().__init__(nets, weights, features)
        self.inner_steps, self.order = config.inner_steps, config.order
        shape = (config.inner_steps, nets.config.transform.c if config.learn_alpha == "channel" else 1, 1, 1)
        log_alpha = torch.full(shape, config.alpha).log()
        learnt = config.learn_alpha != "no" and config.order > 0
        self.log_alpha = nn.Parameter(log_alpha, requires_grad=learnt)

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """See `Objective`."""
        return self.order < 2

    def facts(self) -> dict[str, str]:
        """Where alpha is learnt: its mean over the channels in each inner step."""
        if not self.log_alpha.requires_grad:
            return {}
        return {"alpha": " ".join(f"{a:.4f}" for a in self.log_alpha.detach().exp().flatten(1).mean(dim=1).tolist())}

    def own_parameters(self) -> list[nn.Parameter]:
        """log alpha, where it is learnt."""
        return [self.log_alpha] if self.log_alpha.requires_grad else []

    def loss(self, x: Tensor, cond: Conditions, noise: Tensor) -> LossParts:
        """See `Objective.loss`."""
        y, tau = analyse(self.nets, x, cond)
        if self.order > 0:
            for k in range(self.inner_steps):
                y = y - self.log_alpha[k].exp() * self._gradient(x, y, cond)
        return latent_loss(self.nets, x, y, tau, cond, self.weights, noise, self.features)

    def _gradient(self, x: Tensor, y: Tensor, cond: Conditions) -> Tensor:
        """grad_y~ of the loss in bits; part of the graph for second order."""
        second = self.order == 2
        inner = y if second else y.detach().requires_grad_()
        parts = latent_loss(self.nets, x, inner, None, cond, self.weights, None, self.features)
        bits = parts.objective.sum() * (x.shape[2] * x.shape[3])
        return torch.autograd.grad(bits, inner, create_graph=second)[0]
