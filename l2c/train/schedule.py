"""How far a stage is, and what follows from it: its learning rate, its end, the time that is left."""

from __future__ import annotations

import math
from dataclasses import dataclass

from l2c.train.config import StageConfig


@dataclass
class Position:
    """How far a stage is, which its checkpoints keep.

    Attributes:
        step: optimiser steps. seconds: of training, over all resumes. pixels: seen.
        warm_from: the step that the learning rate rises from: not 0 in a run from a pack, which has no optimiser.
        salt: of the pictures, other ones after each roll-back. lr_scale: of the learning rate, half after each.
    """

    step: int = 0
    seconds: float = 0.0
    pixels: int = 0
    warm_from: int = 0
    salt: int = 0
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a stage.

    Attributes:
        pixels: seen in each step.
    """

    stage: StageConfig
    pixels: int

    def progress(self, at: Position) -> float:
        """Share of the stage's length that is behind, 0..1; 0 where it has no end."""
        shares = [0.0]
        if self.stage.steps is not None:
            shares.append(at.step / self.stage.steps)
        if self.stage.minutes is not None:
            shares.append(at.seconds / (60.0 * self.stage.minutes))
        if self.stage.gpixel is not None:
            shares.append(at.pixels / (1e9 * self.stage.gpixel))
        return min(1.0, max(shares))

    def learning_rate(self, at: Position) -> float:
        """Rises over `warmup` steps, stays (or falls from `hold` on), and falls linearly to zero over the last `decay`
        share of the length."""
        stage = self.stage
        rate = stage.lr * at.lr_scale * min(1.0, (at.step - at.warm_from + 1) / max(1, stage.warmup))
        if stage.hold is not None:
            rate *= min(1.0, math.sqrt(1e9 * stage.hold / max(1, at.pixels)))
        left = 1.0 - self.progress(at)
        return rate * min(1.0, left / stage.decay) if stage.decay > 0 else rate

    def seconds_left(self, at: Position, steps: int, seconds: float) -> float | None:
        """Until the end, at the speed of so many steps in so many seconds; None: no end is set."""
        times = []
        if self.stage.minutes is not None:
            times.append(60.0 * self.stage.minutes - at.seconds)
        if self.stage.steps is not None and steps:
            times.append((self.stage.steps - at.step) * seconds / steps)
        if self.stage.gpixel is not None and steps:
            times.append((1e9 * self.stage.gpixel - at.pixels) / self.pixels * seconds / steps)
        return max(0.0, min(times)) if times else None


def passed(gpixel: float, before: int, now: int) -> bool:
    """Whether a multiple of so many Gpixel lies behind `before` and not behind `now`, both in pixels."""
    return now // (1e9 * gpixel) > before // (1e9 * gpixel)
