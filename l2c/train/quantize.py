"""Quantisation-aware finishing of P and D, and the check that P's integer form loses next to nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from l2c.entropy import EntropyModel
from l2c.entropy.coder import EncodingJob
from l2c.errors import ConfigError, TrainingError
from l2c.exact.fake import fake_integers
from l2c.format.levels import METRICS, OperatingPoint
from l2c.train.config import LossConfig
from l2c.train.losses import Conditions, LossParts, Networks, analyse, latent_loss, pull, quantised_latents
from l2c.train.objective import Objective, thaw_decoder
from l2c.train.perceptual import VGG16Features
from l2c.train.validation import latents_and_bits
from l2c.transforms.block import BlockDecoder

_QUALITIES = (100, 300, 500, 700, 900)


class QuantizeObjective(Objective):
    """The loss under P as its integer form rounds it.

    With scope "probability" E and D are frozen: the loss is the rate of the rounded latents that P will code, and D
    does not run, so that a step costs a third. With "both" E alone is frozen, and D runs as its integer form rounds it.
    With `search` the latents of these two are those that so many iterations of the encoder's search leave.

    Raises:
        ConfigError: scope "both" with a D that has no integer form; `search` with scope "all", or with latents that
            the coder rounds.
    """

    def __init__(
        self, nets: Networks, weights: LossConfig, features: VGG16Features | None, scope: str, search: int = 0
    ) -> None:
        super().__init__(nets, weights, features)
        self.scope, self.search = scope, search
        if search and (scope == "all" or not nets.transform.quantiser.is_final):
            raise ConfigError("quantize.search: it needs a fixed E, and latents that E's quantiser rounds")
        if search:
            self.compiles = False  # the search differentiates inside itself
        nets.transform.requires_grad_(scope == "all")
        if scope == "both":
            if not isinstance(nets.transform.decoder, BlockDecoder):
                raise ConfigError("quantize.scope both: only the family block has an integer D")
            thaw_decoder(nets.transform)
            self.compiles = False  # convolutions are replaced while D runs

    def loss(self, x: Tensor, cond: Conditions, noise: Tensor) -> LossParts:
        """See `Objective.loss`."""
        if self.scope == "all":
            y, tau = analyse(self.nets, x, cond)
            return latent_loss(self.nets, x, y, tau, cond, self.weights, noise, self.features)
        y_hat = quantised_latents(self.nets, x, cond, self.search)
        if self.scope == "both":
            decoder: Any = self.nets.transform.decoder
            with fake_integers(decoder):
                return latent_loss(self.nets, x, y_hat, None, cond, self.weights, None, self.features)
        bpp = self.nets.probability.num_bits(y_hat, y_hat, cond.header()) / (x.shape[2] * x.shape[3])
        unknown, lmbda = torch.full_like(bpp, float("nan")), cond.lmbda(self.nets.config).to(x.device)
        return LossParts(bpp, unknown, unknown, unknown, unknown, bpp, bpp * pull(cond, lmbda))


@torch.no_grad()
def rates(nets: Networks, exact: EntropyModel, pictures: list[Tensor]) -> tuple[float, float]:
    """(bits under the float P, bits under the integer P) of the same latents, over all pictures, qualities and metrics.

    Args:
        nets: E, and P in float on the CPU; P's fake quantisation is off meanwhile.
        exact: an integer P.
        pictures: uint8 [1, 3, H, W].
    """
    fake = nets.probability.fake_quantise
    nets.probability.set_fake_quantise(False)
    in_float = in_integers = 0.0
    for picture in pictures:
        x = picture.float() / 255.0
        for quality in _QUALITIES:
            for mu in METRICS.values():
                point = OperatingPoint(quality, mu, nets.config.bits)
                z, bits = latents_and_bits(nets, x, Conditions(*(torch.tensor([v]) for v in point)))
                in_float += float(bits)
                in_integers += integer_bits(exact, nets.transform.quantiser.quantise(z[0], nets.config.bits), point)
    nets.probability.set_fake_quantise(fake)
    return in_float, in_integers


def integer_bits(exact: EntropyModel, symbols: Tensor, point: OperatingPoint) -> float:
    """-sum log2 of the integer probabilities of symbols [c, h, w], all channels, without the stream's flush."""
    channels, height, width = symbols.shape
    job = EncodingJob(height, width, point, channels, symbols.numpy())
    exact.code([job])
    return float(job.encoder.encoder.ideal_bits)


def check_rate_loss(in_float: float, in_integers: float, most: float) -> float:
    """Relative growth of the rate through quantisation. Raises TrainingError where it is more than `most`."""
    growth = in_integers / in_float - 1.0
    if growth > most:
        raise TrainingError(
            f"the integer P needs {100 * growth:.2f} % more bits than the float P; {100 * most:.2f} % are allowed"
        )
    return growth
