"""One optimiser step: loss, gradients, optimiser, running average and figures, all in tensors that stay on the device.

A step whose gradient is not finite changes nothing (the optimiser's `found_inf`, so no device is waited for).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from l2c.train.batches import Batch
from l2c.train.config import StageConfig
from l2c.train.device_data import DeviceBatches
from l2c.train.graph import captured, cuda_capture
from l2c.train.losses import Conditions, Networks
from l2c.train.objective import Objective
from l2c.train.optimizers import make_optimizer

FIGURES = ("loss", "bpp", "psnr", "mse", "dissimilarity", "mask", "perceptual")


@dataclass(frozen=True)
class Figures:
    """What some steps came to, over all processes.

    Attributes:
        means: of `FIGURES`, NaN where no picture had one.
        gradient: mean norm of the steps that were taken, NaN where none was.
        steps: how many, skipped ones included. skipped: share of them.
    """

    means: dict[str, float]
    gradient: float
    steps: int
    skipped: float

    @classmethod
    def of(cls, sums: Tensor, processes: int) -> Figures | None:
        """From `Engine.sums` added up over so many processes; None where no step was taken."""
        count, skipped = float(sums[-1]), float(sums[-2])
        if count == 0:
            return None
        kinds = len(FIGURES)
        means = (sums[:kinds] / sums[kinds : 2 * kinds]).tolist()
        gradient = float(sums[-3]) / (count - skipped) if count > skipped else math.nan
        return cls(dict(zip(FIGURES, means)), gradient, round(count / processes), skipped / count)


class Engine:
    """Networks and what moves them.

    Args:
        nets, average: on their device; `average` follows what of `nets` is trained.
        objective: of `nets`. stage: optimiser, clipping, average.
        wrap: what DDP and the compiler make of the objective.
        autocast: bfloat16 in the networks.
        batches: where batches are made on the device.
        step: how many were taken before.

    Attributes:
        parameters: what is trained.
        sums: float64: of each figure, of pictures that had it, and of gradient norms, skipped steps and steps.
        bad: steps in a row, up to the last one, whose gradient was not finite.
        at: the step's number, where batches are made on the device.
    """

    def __init__(
        self,
        nets: Networks,
        average: Networks,
        objective: Objective,
        stage: StageConfig,
        *,
        wrap: Callable[[nn.Module], nn.Module],
        autocast: bool,
        batches: DeviceBatches | None = None,
        step: int = 0,
    ) -> None:
        self.nets, self.average, self.objective, self.batches = nets, average, objective, batches
        self.own = objective.own_parameters()
        self.parameters = [p for p in nets.parameters() if p.requires_grad] + self.own
        self.device = self.parameters[0].device if self.parameters else next(nets.parameters()).device
        self.optimizer = make_optimizer(
            stage.optimizer, self.parameters, (stage.beta1, stage.beta2), stage.refresh_every
        )
        moving = [(p, a) for p, a in zip(nets.parameters(), average.parameters()) if p.requires_grad]
        self._fresh: list[Tensor] = [p for p, _ in moving]
        self._averaged: list[Tensor] = [a for _, a in moving]
        self._wrapped, self._autocast, self._stage = wrap(objective), autocast, stage
        self._rate, self._average_weight = (torch.zeros((), device=self.device) for _ in range(2))
        self.at = torch.tensor(step, device=self.device)
        self.bad = torch.zeros((), device=self.device)
        self.sums = torch.zeros(2 * len(FIGURES) + 3, device=self.device, dtype=torch.float64)
        self.device_step: Callable[[], None] = self.eager_device_step

    def begin(self, step: int, rate: float) -> None:
        """The learning rate of step `step`, counted from 0, and how far the average moves in it."""
        self._rate.fill_(rate)
        self._average_weight.fill_(1.0 - min(self._stage.ema, (step + 1) / (10.0 + step)))

    def take(self, batch: Batch | None) -> None:
        """The step, on a batch made on the host or, None, on one made on the device; figures are added up there."""
        if batch is None:
            self.device_step()
        else:
            self._compute(batch.x.to(self.device, non_blocking=True), batch.cond, batch.noise.to(self.device))

    def eager_device_step(self) -> None:
        """A step that neither reads from the host nor waits for the device: all that it needs are tensors there."""
        assert self.batches is not None
        header = self.batches.conditions(self.at)
        x = self.batches.pictures(self.at, header[:, 0])
        cond = Conditions(*header.unbind(dim=1), needs=self.batches.needs)
        self._compute(x, cond, self.batches.noise(self.at))
        self.at += 1

    def _compute(self, x: Tensor, cond: Conditions, noise: Tensor) -> None:
        """x uint8 [N, 3, crop, crop], noise as in `Batch`."""
        x = (x.float() / 255.0).contiguous(memory_format=torch.channels_last)
        parts = self._wrapped(x, cond.quality, cond.mu, cond.b, noise, self._autocast, cond.needs)
        for parameter in self.parameters:
            parameter.grad = None
        parts.total.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._stage.clip)
        bad = (~torch.isfinite(norm)).float()
        self.optimizer.step(self._rate, 1.0 - bad)
        with torch.no_grad():
            self.bad.add_(1.0).mul_(bad)
            apart = torch._foreach_sub(self._fresh, self._averaged)
            torch._foreach_mul_(apart, self._average_weight)
            torch._foreach_add_(self._averaged, apart)
            good = 1.0 - bad
            psnr_each = -10.0 * (parts.mse.detach().clamp_min(1e-4) / 255.0**2).log10()
            figures = [parts.total, parts.bpp, psnr_each, parts.mse, parts.dissimilarity, parts.mask, parts.perceptual]
            table = torch.stack([f.detach().float() for f in figures])  # [figures, N]; NaN: not computed
            known = table.isfinite() & (good > 0)
            sums = torch.where(known, table, 0.0).sum(dim=1)
            rest = torch.stack((norm.nan_to_num(0.0, 0.0, 0.0), bad, torch.ones_like(bad)))
            self.sums += torch.cat((sums, known.sum(dim=1), rest)).double()

    def operations(self, step: Callable[[], None]) -> float:
        """Floating-point operations of the networks while `step` runs."""
        with FlopCounterMode(display=False) as counter:
            step()
        return float(counter.get_total_flops())

    def take_sums(self) -> Tensor:
        """`sums` since they were taken last."""
        sums = self.sums.clone()
        self.sums.zero_()
        return sums

    def finite(self) -> bool:
        """Whether every parameter is."""
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    def lasting(self) -> list[Tensor]:
        """Every tensor that a step changes and that outlives it."""
        return [*self.parameters, *self._averaged, *self.optimizer.tensors(), self.bad, self.sums, self.at]

    def capture(self) -> tuple[str, float]:
        """Put the step on the device into a CUDA graph, if that works there: why it does not, and the seconds."""
        began = time.monotonic()
        self.device_step, reason = captured(
            self.eager_device_step, self.lasting(), len(self.parameters), cuda_capture, self.device
        )
        return reason, time.monotonic() - began
