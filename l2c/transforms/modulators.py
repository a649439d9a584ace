"""Conditional feature modulators: one scale per channel as a function of the trade-off (OML 3.1, Fig. 1 and 2b)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CONDITIONS = 2  # (normalised log lambda, mu)

_LOG_LMBDA_CENTRE = math.log(0.01)
_LOG_LMBDA_SCALE = 2.5


def condition(lmbda: Tensor, mu: Tensor) -> Tensor:
    """The vector that every modulator sees.

    OML feeds the raw lambda; we feed its logarithm (DESIGN 2), centred and scaled to about [-1, 1] over
    0.0008..0.15, so that OML's list of step sizes {0.01 ... 1000} has to be rescaled likewise.

    Args:
        lmbda: float32 [N], the raw trade-off, > 0.
        mu: float32 [N], the metric mix in [0, 1]: 0 optimises MSE, 1 MS-SSIM.
    Returns:
        float32 [N, 2].
    """
    return torch.stack(((lmbda.log() - _LOG_LMBDA_CENTRE) / _LOG_LMBDA_SCALE, mu), dim=1)


def log_lmbda(cond: Tensor) -> Tensor:
    """log lambda [N, 1] back from conditions [N, 2]."""
    return cond[:, :1] * _LOG_LMBDA_SCALE + _LOG_LMBDA_CENTRE


def for_each(function: Callable[[Tensor], Tensor], cond: Tensor) -> Tensor:
    """`function` of conditions [N, 2], of pictures or patches, each in a product of its own.

    A matrix product rounds otherwise with another number of rows, and latents and pixels must not depend on what else
    is in a batch, or on how much of a picture is decoded. On a GPU, whose convolutions differ as well, all share one.
    """
    if len(cond) == 1 or cond.device.type != "cpu":
        return function(cond)
    return torch.cat([function(part) for part in cond.split(1)])


class Modulator(nn.Module):
    """s = softplus(FC(ReLU(FC(lambda)))), Y' = s * Y (OML Eq. 3 and the unnumbered equation after it).

    Starts at s = 1 for every condition.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(NUM_CONDITIONS, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        with torch.no_grad():
            self.fc2.weight.mul_(0.1)
        nn.init.constant_(self.fc2.bias, math.log(math.e - 1.0))  # softplus of this is 1

    def scales(self, cond: Tensor) -> Tensor:
        """Scales for conditions [N, 2], of pictures or patches -> float32 [N, channels, 1, 1], positive."""
        with torch.autocast(cond.device.type, enabled=False):
            return for_each(self._scales, cond)

    def _scales(self, cond: Tensor) -> Tensor:
        return F.softplus(self.fc2(F.relu(self.fc1(cond))))[:, :, None, None]

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """x: [N, channels, h, w]; cond: float32 [N, 2]. Returns x scaled per picture and channel, in x's dtype."""
        return x * self.scales(cond).to(x.dtype)
