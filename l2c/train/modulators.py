"""Meta-training of D's conditional modulators over lambda tasks (OML 3.2, Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from l2c.errors import ConfigError
from l2c.objective import terms, weighted
from l2c.train.config import LossConfig, ModulatorsConfig
from l2c.train.losses import Conditions, LossParts, Networks, pull, quantised_latents, shown_dissimilarity
from l2c.train.objective import Objective, thaw_decoder
from l2c.train.perceptual import VGG16Features
from l2c.transforms import Adaptation, num_modulators


class ModulatorsObjective(Objective):
    """Distortion after a few SGD steps on a lambda task, plus that without any (Eq. 4).

    A task is one picture with its own lambda and metric. E and P stay as they are, so the rate does not change; of D
    the modulators (Psi) are trained, alone or with the rest of it (`scope`). The inner loop adapts either

    - "lambdas": the K conditions log lambda^k of the picture, as the encoder does online (Eq. 5), so that Psi learns
      to make those steps pay; or
    - "parameters": Psi itself, for each task on its own, as Eq. 4 is printed.
    """

    compiles = False

    def __init__(
        self, nets: Networks, weights: LossConfig, features: VGG16Features | None, config: ModulatorsConfig
    ) -> None:
        super().__init__(nets, weights, features)
        if num_modulators(nets.transform) == 0:
            raise ConfigError("the model has no modulators (transform.modulated): there is nothing to train")
        self.config = config
        nets.requires_grad_(False)
        if config.scope == "decoder":
            thaw_decoder(nets.transform)
        nets.transform.decoder.mods.requires_grad_(True)

    def loss(self, x: Tensor, cond: Conditions, noise: Tensor) -> LossParts:
        """See `Objective.loss`; bpp is NaN, not computed: the latents do not change."""
        z = quantised_latents(self.nets, x, cond)
        adapted = self._by_lambdas(x, z, cond) if self.config.inner == "lambdas" else self._by_parameters(x, z, cond)
        squared, dissimilarity, distortion = adapted
        objective = distortion
        if self.config.plain > 0:
            _, _, plain = self._distortions(x, z, cond)
            objective = (distortion + self.config.plain * plain) / (1.0 + self.config.plain)
        lmbda = cond.lmbda(self.nets.config).to(x.device)
        zero = torch.zeros_like(squared)
        objective = lmbda * objective
        unknown = torch.full_like(squared, float("nan"))
        return LossParts(unknown, squared, dissimilarity, zero, zero, objective, objective * pull(cond, lmbda))

    def _distortions(
        self,
        x: Tensor,
        z: Tensor,
        cond: Conditions,
        adaptation: Adaptation | None = None,
        psi: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """255^2 MSE, 1 - MS-SSIM (see `LossParts`) and distortion of the decoder's output, float32 [N] each, with other
        conditions or other modulators where they are given."""
        decoder = self.nets.transform.decoder
        others = {f"mods.{name}": p for name, p in (psi or {}).items()}
        x_hat = functional_call(decoder, others, (z, cond.vector(self.nets.config).to(x.device), adaptation))
        blend = cond.blend(self.nets.config, self.weights, x.device)
        values = terms(x, x_hat.clamp(-0.2, 1.2), blend.needs)
        return values[:, 0], shown_dissimilarity(values), weighted(values, blend.weights)

    def _by_lambdas(self, x: Tensor, z: Tensor, cond: Conditions) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 5 on each picture's K conditions. The gradient is that of log D, so one alpha serves all rates."""
        start = cond.vector(self.nets.config).to(x.device)
        moved = start[:, None, :1].repeat(1, num_modulators(self.nets.transform), 1).requires_grad_()
        mix = start[:, None, 1:].expand(-1, moved.shape[1], -1)
        for _ in range(self.config.inner_steps):
            distortion = self._distortions(x, z, cond, Adaptation(torch.cat((moved, mix), dim=2)))[2]
            gradient = torch.autograd.grad(distortion.log().sum(), moved, create_graph=self.config.order == 2)[0]
            moved = moved - self.config.alpha * gradient
        return self._distortions(x, z, cond, Adaptation(torch.cat((moved, mix), dim=2)))

    def _by_parameters(self, x: Tensor, z: Tensor, cond: Conditions) -> tuple[Tensor, Tensor, Tensor]:
        """For each task Psi - alpha grad_Psi of its log D, then its distortion under that."""
        results = []
        for j in range(len(x)):
            one = Conditions(cond.quality[j : j + 1], cond.mu[j : j + 1], cond.b[j : j + 1])
            task = x[j : j + 1], z[j : j + 1], one
            psi: dict[str, Tensor] = dict(self.nets.transform.decoder.mods.named_parameters())
            for _ in range(self.config.inner_steps):
                distortion = self._distortions(*task, psi=psi)[2]
                gradients = torch.autograd.grad(
                    distortion.log().sum(), list(psi.values()), create_graph=self.config.order == 2
                )
                psi = {name: p - self.config.alpha * g for (name, p), g in zip(psi.items(), gradients)}
            results.append(self._distortions(*task, psi=psi))
        squared, dissimilarity, distortions = (torch.cat(parts) for parts in zip(*results))
        return squared, dissimilarity, distortions
