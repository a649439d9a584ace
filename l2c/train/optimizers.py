"""Optimisers whose steps never wait for the device: SOAP for training from the start, Adam for what is nearly finished.

Both take the learning rate and whether the step counts (`keep`) as tensors, so a step can lie in a CUDA graph. A step
with keep = 0 changes nothing, whatever the gradients are.

SOAP (Vyas et al. 2024, arXiv:2409.11321) is Adam in the eigenbasis of Shampoo's statistics. For a gradient G with sides
of lengths d_1, d_2, ...:

    L_i  <- b L_i + (1 - b) G_(i) G_(i)^T          G_(i): G unfolded along side i, a matrix with d_i rows
    G'   =  G x_1 Q_1^T x_2 Q_2^T ...              Q_i: eigenvectors of L_i, refreshed in `after_step`
    m'   <- b1 m' + (1 - b1) G',   v' <- b2 v' + (1 - b2) G'^2
    W    <- W - rate (m' / sqrt(v')) x_1 Q_1 x_2 Q_2 ...      with Adam's corrections of m' and v'

A convolution's weight [out, in, k, k] is the 3-tensor [out, k^2, in] (how channels-last memory holds it), sides of
length 1 are dropped, and a side longer than `max_side` keeps the identity as its basis. Vectors are left to Adam.
Parameters of one shape are held as one stacked tensor: few large operations instead of many small ones.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from l2c.errors import TrainingError


class Optimizer(abc.ABC):
    """What the training loop asks of an optimiser.

    Attributes:
        name: as recipes call it.
    """

    name: str

    @abc.abstractmethod
    def step(self, rate: Tensor, keep: Tensor) -> None:
        """Move the parameters along their `.grad`; nothing in it waits for the device.

        Args:
            rate: float32 [], the learning rate. keep: float32 [], 1 or 0; 0 leaves everything as it is.
        """

    def after_step(self, step: int) -> None:  # noqa: B027 (most optimisers have nothing to do)
        """Work that is not due in every step. It may wait for the device.

        Args:
            step: how many steps the run has taken.
        """

    @abc.abstractmethod
    def tensors(self) -> list[Tensor]:
        """Everything that `step` changes beside the parameters."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state. Raises TrainingError where it belongs to other parameters or another optimiser."""


def make_optimizer(
    name: str, parameters: Sequence[nn.Parameter], betas: tuple[float, float], refresh_every: int
) -> Optimizer:
    """The optimiser of a recipe: "adam" or "soap"."""
    if name == "adam":
        return Adam(parameters, betas)
    return Soap(parameters, betas, refresh_every=refresh_every)


def _like_parameter(parameter: Tensor) -> tuple[int, ...]:
    """Sides of the tensor that an optimiser sees: [out, k^2, in] of a convolution, sides of length 1 dropped."""
    shape = list(parameter.shape)
    if len(shape) == 4:
        shape = [shape[0], shape[2] * shape[3], shape[1]]
    return tuple(side for side in shape if side > 1) or (1,)


class _Bucket:
    """Parameters of one shape as one stacked tensor [n, *sides].

    Attributes:
        parameters: the n parameters. sides: what `_like_parameter` says of each.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.sides = _like_parameter(parameters[0])

    def gradients(self) -> Tensor:
        """float32 [n, *sides], a copy; zero where a parameter has no gradient."""
        return torch.stack([self._view(torch.zeros_like(p) if p.grad is None else p.grad) for p in self.parameters])

    @torch.no_grad()
    def subtract(self, change: Tensor) -> None:
        """parameters -= change, [n, *sides]."""
        torch._foreach_sub_([self._permuted(p) for p in self.parameters], self._parts(change))

    def _permuted(self, tensor: Tensor) -> Tensor:
        return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor

    def _view(self, tensor: Tensor) -> Tensor:
        return self._permuted(tensor).reshape(self.sides)

    def _parts(self, stacked: Tensor) -> list[Tensor]:
        shape = self._permuted(self.parameters[0]).shape
        return [part.view(shape) for part in stacked.unbind()]


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980), PyTorch's fused form."""

    name = "adam"

    def __init__(self, parameters: Sequence[nn.Parameter], betas: tuple[float, float] = (0.9, 0.98)) -> None:
        device = parameters[0].device
        self._rate = torch.zeros((), device=device)
        # On a GPU the rate is read on the device, so that a captured step follows it.
        rate: Any = self._rate if device.type == "cuda" else 0.0
        self._adam = torch.optim.Adam(parameters, lr=rate, betas=betas, fused=True, capturable=device.type == "cuda")

    def step(self, rate: Tensor, keep: Tensor) -> None:
        """See `Optimizer.step`."""
        group = self._adam.param_groups[0]
        if isinstance(group["lr"], Tensor):
            self._rate.copy_(rate)
        else:
            group["lr"] = float(rate)
        self._adam.grad_scale = None  # type: ignore[attr-defined]
        self._adam.found_inf = 1.0 - keep  # type: ignore[attr-defined]
        self._adam.step()

    def tensors(self) -> list[Tensor]:
        """See `Optimizer.tensors`."""
        return [tensor for state in self._adam.state.values() for tensor in state.values()]

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer.state_dict`."""
        return {"name": self.name, "adam": self._adam.state_dict()["state"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Optimizer.load_state_dict`."""
        _check_name(self, state)
        mine = self._adam.state_dict()
        parameters = self._adam.param_groups[0]["params"]
        fits = all(
            0 <= k < len(parameters) and s["exp_avg"].shape == parameters[k].shape for k, s in state["adam"].items()
        )
        if not fits or (state["adam"] and len(state["adam"]) != len(parameters)):
            raise TrainingError("the optimiser's state was made while other parameters were trained")
        self._adam.load_state_dict({**mine, "state": state["adam"]})


class _Rotated(_Bucket):
    """Tensors with at least one side that has an eigenbasis, and their SOAP state.

    Attributes:
        statistics, bases: L_i and Q_i, float32 [n, d_i, d_i], or None for a side that keeps the identity.
        mean, square: m' and v', float32 [n, *sides], in the eigenbasis.
    """

    def __init__(self, parameters: list[nn.Parameter], max_side: int) -> None:
        super().__init__(parameters)
        n, device = len(parameters), parameters[0].device
        self.mean = torch.zeros(n, *self.sides, device=device)
        self.square = torch.zeros_like(self.mean)
        self.statistics: list[Tensor | None] = []
        self.bases: list[Tensor | None] = []
        for side in self.sides:
            kept = side <= max_side
            self.statistics.append(torch.zeros(n, side, side, device=device) if kept else None)
            self.bases.append(torch.eye(side, device=device).repeat(n, 1, 1) if kept else None)

    def rotate(self, x: Tensor) -> Tensor:
        """Into the eigenbasis: x [n, *sides] times Q_i^T along every side."""
        for i, basis in enumerate(self.bases):
            if basis is not None:
                x = _along(x, basis.mT, i)
        return x

    def rotate_back(self, x: Tensor) -> Tensor:
        """Out of the eigenbasis."""
        for i, basis in enumerate(self.bases):
            if basis is not None:
                x = _along(x, basis, i)
        return x

    def observe(self, gradients: Tensor, weight: Tensor | float) -> None:
        """L_i += weight (G_(i) G_(i)^T - L_i)."""
        for i, statistics in enumerate(self.statistics):
            if statistics is not None:
                statistics.lerp_(_outer(gradients, i), weight)

    @torch.no_grad()
    def turn(self, exact: bool) -> None:
        """New bases from the statistics: one step of orthogonal iteration, or all eigenvectors where `exact`.

        m' moves with the bases. v' only follows the order of the eigenvectors, as in the paper's own code.
        """
        mean = self.rotate_back(self.mean)
        for i, (statistics, basis) in enumerate(zip(self.statistics, self.bases)):
            if statistics is None or basis is None:
                continue
            if exact:
                basis.copy_(torch.linalg.eigh(statistics).eigenvectors.flip(-1))
                continue
            image = statistics @ basis
            order = (basis * image).sum(dim=1).argsort(dim=-1, descending=True)  # [n, d], Rayleigh quotients
            columns = order[:, None, :].expand_as(image)
            basis.copy_(torch.linalg.qr(image.gather(2, columns)).Q)
            places = order.view(len(order), *(-1 if j == i else 1 for j in range(len(self.sides))))
            self.square.copy_(self.square.gather(i + 1, places.expand_as(self.square)))
        self.mean.copy_(self.rotate(mean))


class Soap(Optimizer):
    """SOAP, see the head of this file. Its first step only makes the bases.

    Args:
        parameters: float32 tensors on one device.
        betas: b1 and b2; b of the statistics is b2.
        refresh_every: steps between two refreshes of the bases.
        max_side: longest side with a basis of its own.
        epsilon: added to sqrt(v').
    """

    name = "soap"

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        betas: tuple[float, float] = (0.95, 0.95),
        refresh_every: int = 10,
        max_side: int = 800,
        epsilon: float = 1e-8,
    ) -> None:
        self._betas, self._refresh_every, self._epsilon = betas, refresh_every, epsilon
        device = parameters[0].device
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        vectors: list[nn.Parameter] = []
        for parameter in parameters:
            sides = _like_parameter(parameter)
            if len(sides) == 1 or min(sides) > max_side:
                vectors.append(parameter)
            else:
                by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        self._rotated = [_Rotated(group, max_side) for group in by_shape.values()]
        self._vectors = vectors
        sizes = sum(p.numel() for p in vectors)
        self._mean, self._square = torch.zeros(sizes, device=device), torch.zeros(sizes, device=device)
        self._steps = torch.zeros((), device=device)  # counted steps after the first
        self._started = torch.zeros((), device=device)  # 0 until the first step that counts
        self._fresh = True  # the bases are still the identity

    @torch.no_grad()
    def step(self, rate: Tensor, keep: Tensor) -> None:
        """See `Optimizer.step`."""
        b1, b2 = self._betas
        moves = keep * self._started  # the first counted step moves nothing
        self._steps += moves
        # The maximum keeps 0 / 0 out of the first step.
        correction1 = (1.0 - b1**self._steps).clamp_min(1e-3)
        correction2 = (1.0 - b2**self._steps).clamp_min(1e-3)
        size = rate * moves / correction1
        for bucket in self._rotated:
            gradients = torch.where(keep > 0, bucket.gradients(), 0.0)
            bucket.observe(gradients, torch.where(self._started > 0, (1.0 - b2) * keep, keep))
            rotated = bucket.rotate(gradients)
            bucket.mean.lerp_(rotated, (1.0 - b1) * moves)
            bucket.square.lerp_(rotated.square_(), (1.0 - b2) * moves)
            scale = (bucket.square / correction2).sqrt_().add_(self._epsilon)
            bucket.subtract(bucket.rotate_back(bucket.mean / scale).mul_(size))
        if self._vectors:
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in self._vectors])
            flat = torch.where(keep > 0, flat, 0.0)
            self._mean.lerp_(flat, (1.0 - b1) * moves)
            self._square.lerp_(flat.square_(), (1.0 - b2) * moves)
            scale = (self._square / correction2).sqrt_().add_(self._epsilon)
            change = (self._mean / scale).mul_(size).split([p.numel() for p in self._vectors])
            torch._foreach_sub_(
                list[Tensor](self._vectors), [part.view_as(p) for part, p in zip(change, self._vectors)]
            )
        self._started.copy_(torch.maximum(self._started, keep))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """See `Optimizer.after_step`: new bases, from all eigenvectors as soon as a step has counted."""
        if self._fresh and float(self._started):
            for bucket in self._rotated:
                bucket.turn(exact=True)
            self._fresh = False
        elif not self._fresh and step % self._refresh_every == 0:
            for bucket in self._rotated:
                bucket.turn(exact=False)

    def tensors(self) -> list[Tensor]:
        """See `Optimizer.tensors`."""
        return _tensors(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer.state_dict`."""
        buckets = [
            {"statistics": b.statistics, "bases": b.bases, "mean": b.mean, "square": b.square} for b in self._rotated
        ]
        return {
            "name": self.name, "buckets": buckets, "mean": self._mean, "square": self._square,
            "steps": self._steps, "started": self._started, "fresh": self._fresh,
        }  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Optimizer.load_state_dict`."""
        _check_name(self, state)
        mine = self.state_dict()
        try:
            pairs = list(zip(_tensors(mine), _tensors(state), strict=True))
            if any(a.shape != b.shape for a, b in pairs):
                raise ValueError
        except (LookupError, TypeError, ValueError):
            raise TrainingError("the optimiser's state was made while other parameters were trained") from None
        for a, b in pairs:
            a.copy_(b)
        self._fresh = bool(state["fresh"])


def _tensors(state: dict[str, Any]) -> list[Tensor]:
    """All tensors of a SOAP state in a fixed order."""
    found = [state[key] for key in ("mean", "square", "steps", "started")]
    for bucket in state["buckets"]:
        sides = [*bucket["statistics"], *bucket["bases"]]
        found += [bucket["mean"], bucket["square"], *(tensor for tensor in sides if tensor is not None)]
    return found


def _check_name(optimizer: Optimizer, state: dict[str, Any]) -> None:
    if state.get("name") != optimizer.name:
        raise TrainingError(
            f"the checkpoint's optimiser is {state.get('name', 'of an older version')!r}, the recipe asks for "
            f"{optimizer.name!r}: start a new run from it with --init"
        )


def _along(x: Tensor, matrix: Tensor, i: int) -> Tensor:
    """x [n, d_0, ..., d_k] times matrix [n, d_i, d_i] along side i."""
    n, shape = x.shape[0], x.shape
    before, after = math.prod(shape[1 : i + 1]), math.prod(shape[i + 2 :])
    side = shape[i + 1]
    if after == 1:
        return (x.reshape(n, before, side) @ matrix.mT).view(shape)
    if before == 1:
        return (matrix @ x.reshape(n, side, after)).view(shape)
    return torch.matmul(matrix[:, None], x.reshape(n, before, side, after)).view(shape)


def _outer(x: Tensor, i: int) -> Tensor:
    """G_(i) G_(i)^T of x [n, *sides] for its side i: [n, d_i, d_i]."""
    unfolded = x.movedim(i + 1, 1).flatten(2)
    return unfolded @ unfolded.mT
