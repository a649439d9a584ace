"""Data-parallel training on PyTorch's own engine: `torchrun ... -m l2c train ...` starts the processes, DDP averages.

One process is the plain case: every method then does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from l2c.errors import BackendError, L2CError

T = TypeVar("T")


class Parallel:
    """This process's place among the processes of one run.

    Attributes:
        rank, world: this process and how many there are.
        device: where it computes.
    """

    def __init__(self, device: str | None = None) -> None:
        """Join the processes that torchrun started, if it did (environment variables RANK, WORLD_SIZE, LOCAL_RANK).

        Args:
            device: "cpu", "cuda" or None for a GPU where there is one. With several processes on a machine each
                takes the GPU of its local rank.
        Raises:
            BackendError: the device is not there.
        """
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if kind not in ("cpu", "cuda"):
            raise BackendError(f"training runs on cpu or cuda, not on {kind!r}")
        if kind == "cuda" and not torch.cuda.is_available():
            raise BackendError("training on cuda was asked for, but PyTorch finds no CUDA device")
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
        if self.device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise BackendError(
                    f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}"
                )
            torch.cuda.set_device(self.device)
        if self.world > 1:
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes in every backward pass."""
        if self.world == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        # Without device_ids DDP leaves the inputs where they are: the conditions belong on the CPU.
        return nn.parallel.DistributedDataParallel(module)

    def total(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def agree(self, values: Sequence[float]) -> list[float]:
        """What rank 0 passed, on every rank: clocks differ between processes, decisions must not."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return shared.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is set on any rank."""
        if self.world == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every rank, or the L2CError that it raises there: machines may not share
        a disk."""
        if self.world == 1:
            return make()
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = make()
            except L2CError as error:
                box[1] = error
        dist.broadcast_object_list(box, 0, device=self.device)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def close(self) -> None:
        """Leave the process group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
