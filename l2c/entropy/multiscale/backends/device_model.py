"""P on a device: weights and tables in the forms that the kernels of `l2c.kernels` take, and the kernels themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from l2c import ops
from l2c.entropy.device import Queue
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.errors import BackendError
from l2c.format.levels import OperatingPoint
from l2c.ops import extension
from l2c.ops.contract import IntegerLayer
from l2c.ops.integers import PackedLayer, pack_layer, round_up


class DeviceModel:
    """One model on one device.

    Args:
        model: P in integers.
        device: a CUDA device with its index, or the CPU under Triton's interpreter.
        coder: whose range coder, see `ops.integer_kernels`.
    Attributes:
        queue: where all work is queued.
    Raises:
        BackendError: the kernels cannot run there.
    """

    def __init__(self, model: IntegerWeights, device: torch.device, coder: str = "auto") -> None:
        reason = extension.triton_reason(device)
        if reason:
            raise BackendError(reason)
        self.kernels = ops.integer_kernels(device, coder)
        self.model, self.device = model, device
        self.queue = Queue(device)
        self.width = round_up(model.config.width)
        # w4 reads whole blocks from q's first channel on, beyond q itself.
        self.channels = round_up(model.maps + self.width)
        self._constants: dict[OperatingPoint, tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]] = {}

    def load(self) -> None:
        """Bring weights and tables to the device: where all other work is queued, not in inference mode."""
        tables, device = self.model.tables, self.device
        self.compand = torch.from_numpy(tables.compand).to(device)
        self.exp = torch.from_numpy(tables.exp.view(np.int16)).to(device)
        self.inv_scale = torch.from_numpy(tables.inv_scale.view(np.int16)).to(device)
        self.steps = [tuple(self._packed(step)) for step in self.model.steps]

    def _packed(self, step: Any) -> list[PackedLayer]:
        model = self.model
        maps, planes = model.maps, model.planes
        w1: IntegerLayer = step.w1
        kept = np.concatenate((w1.weight[:, :maps], w1.weight[:, maps + planes :]), axis=1)
        first = pack_layer(kept, w1.bias, w1.multiplier, slice(maps, None), self.device)
        rest = [
            pack_layer(layer.weight, layer.bias, layer.multiplier, slice(None), self.device)
            for layer in (step.w2, step.w3, step.w4)
        ]
        return [first, *rest]

    def constants(self, point: OperatingPoint) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]:
        """What the operating point decides, kept for the next tile that has it.

        Returns:
            w1's bias int32 [M, steps, width] of each scale and step: the header's planes, being constant, lie there.
            The head's output int16 [3 K c] of the last scale; of no length with a uniform prior.
        """
        if point not in self._constants:
            model = self.model
            maps, planes, M = model.maps, model.planes, model.config.num_scales
            constant = model.planes_of(point)[:M].astype(np.int64)
            rows = []
            for step in model.steps:
                weight = step.w1.weight[:, :, 0, 0].astype(np.int64)
                offset = 128 * weight[:, maps + planes :].sum(axis=1)
                rows.append(step.w1.bias + offset + constant @ weight[:, maps : maps + planes].T)
            prior = np.zeros(0, np.int16) if model.prior is None else model.prior_output(point).reshape(-1)
            if len(self._constants) >= 1024:  # points of other pictures: a few kilobytes each
                self._constants.clear()
            self._constants[point] = np.stack(rows, axis=1).astype(np.int32), prior
        return self._constants[point]
