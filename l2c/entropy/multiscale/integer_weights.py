"""P in integers as data: layers, tables and what follows from them alone. Backends compute with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from l2c import ops
from l2c.entropy.coder import Int16Array, UInt8Array
from l2c.entropy.multiscale.config import MultiscaleConfig
from l2c.entropy.multiscale.schedule import Turn, schedule
from l2c.format.levels import OperatingPoint
from l2c.ops import reference
from l2c.ops.contract import IntegerLayer, IntegerStep, IntegerTables, constant_planes, num_planes


class IntegerWeights:
    """One model's P.

    Attributes:
        config: sizes of P. c: latent channels.
        steps: one for each turn of a scale. prior: (w1, w2) of the last scale, or None for the uniform one.
        tables: of the model.
        turns: the whole walk.
        values, maps, planes: input channels of a step that hold values; values and availability; the header.
    """

    def __init__(
        self,
        config: MultiscaleConfig,
        c: int,
        steps: Sequence[IntegerStep],
        prior: tuple[IntegerLayer, IntegerLayer] | None,
        tables: IntegerTables,
    ) -> None:
        self.config = config
        self.c = c
        self.steps = tuple(steps)
        self.prior = prior
        self.tables = tables
        self.turns: tuple[Turn, ...] = tuple(schedule(self.config.num_scales, self.config.channel_groups))
        self.values = 4 * self.c
        self.maps = self.values + 4 * len(self.config.channel_groups)
        self.planes = num_planes(self.config.num_scales)

    def planes_of(self, point: OperatingPoint) -> UInt8Array:
        """Constant planes of every scale and of the prior, [num_scales + 1, planes]."""
        num_scales = self.config.num_scales
        planes = [constant_planes(*point, scale, num_scales) for scale in range(num_scales + 1)]
        return np.array(planes, dtype=np.uint8)

    def layers(self) -> Iterator[tuple[str, IntegerLayer]]:
        """All layers by name."""
        for i, step in enumerate(self.steps):
            for name in ("w1", "w2", "w3", "w4"):
                yield f"steps.{i}.{name}", getattr(step, name)
        if self.prior is not None:
            yield "prior.w1", self.prior[0]
            yield "prior.w2", self.prior[1]

    def mixture(self, raw: Int16Array) -> tuple[Any, Any, Any]:
        """Raw head output int16 [..., 3, K, g] -> weights, means, inverse scales, each [K, n] in coding order."""
        k, g = raw.shape[-2:]
        flat = np.ascontiguousarray(raw).reshape(-1, 3 * k * g)
        return ops.mixture_params(flat, k, g, self.tables.exp, self.tables.inv_scale)

    def prior_output(self, point: OperatingPoint) -> Int16Array:
        """The prior's head at a point, int16 [3, K, c], in int64: it is tiny, so all but the C++ take it from here.

        Raises:
            ValueError: the prior is the uniform one.
        """
        if self.prior is None:
            raise ValueError("a uniform prior has no parameters")
        planes = self.planes_of(point)[-1].astype(np.int64)
        h = reference.integer_conv(planes[:, None, None], self.prior[0]).clip(0, 255)
        raw = reference.integer_conv(h, self.prior[1]).clip(-32768, 32767).astype(np.int16)
        return raw.reshape(3, self.config.num_mixtures, self.c)
