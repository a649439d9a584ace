"""SOAP against a plain form of it, steps that do not count, states that resume."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from l2c.errors import TrainingError
from l2c.train.optimizers import Adam, Optimizer, Soap, make_optimizer

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)
RATE = torch.tensor(0.01)


def parameters(seed: int = 0) -> list[nn.Parameter]:
    """Convolutions of two kernel sizes, two of one shape, one in channels-last memory, a matrix and vectors."""
    source = torch.Generator().manual_seed(seed)
    shapes = [(6, 4, 3, 3), (6, 4, 3, 3), (5, 7, 1, 1), (3, 9), (6,), (1, 1, 3, 3), (1,)]
    made = [nn.Parameter(torch.randn(shape, generator=source)) for shape in shapes]
    made[1].data = made[1].data.contiguous(memory_format=torch.channels_last)
    return made


def set_gradients(params: list[nn.Parameter], seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source) * 10.0 ** torch.randn((), generator=source)


class PlainSoap:
    """SOAP of one tensor, as the paper's Algorithm 3 goes, in float64 and without any batching."""

    def __init__(self, weight: Tensor, betas: tuple[float, float], every: int, max_side: int) -> None:
        self.weight = self.as_seen(weight.detach()).double()
        self.betas, self.every = betas, every
        self.sides = [d if 1 < d <= max_side else 0 for d in self.weight.shape]
        self.statistics = [torch.zeros(d, d, dtype=torch.float64) for d in self.sides]
        self.bases: list[Tensor] = []
        self.mean = self.square = torch.zeros_like(self.weight)
        self.steps = 0

    @staticmethod
    def as_seen(t: Tensor) -> Tensor:
        return t.permute(0, 2, 3, 1).reshape(t.shape[0], -1, t.shape[1]) if t.dim() == 4 else t

    def project(self, x: Tensor, back: bool = False) -> Tensor:
        for i, (side, basis) in enumerate(zip(self.sides, self.bases)):
            if side:
                moved = torch.tensordot(basis if back else basis.mT, x, dims=([1], [i]))
                x = moved.movedim(0, i)
        return x

    def step(self, grad: Tensor, rate: float) -> None:
        grad = self.as_seen(grad).double()
        b1, b2 = self.betas
        unfolded = [grad.movedim(i, 0).flatten(1) if side else grad for i, side in enumerate(self.sides)]
        if not self.bases:
            self.statistics = [u @ u.mT if d else s for u, d, s in zip(unfolded, self.sides, self.statistics)]
            self.bases = [torch.linalg.eigh(s).eigenvectors.flip(-1) if len(s) else s for s in self.statistics]
            self.count = 1
            return
        self.count += 1
        self.steps += 1
        rotated = self.project(grad)
        self.mean = b1 * self.mean + (1 - b1) * rotated
        self.square = b2 * self.square + (1 - b2) * rotated**2
        corrected = (self.square / (1 - b2**self.steps)).sqrt() + 1e-8
        self.weight = self.weight - rate / (1 - b1**self.steps) * self.project(self.mean / corrected, back=True)
        for i, (u, side) in enumerate(zip(unfolded, self.sides)):
            if side:
                self.statistics[i] = b2 * self.statistics[i] + (1 - b2) * u @ u.mT
        if self.count % self.every == 0:
            mean = self.project(self.mean, back=True)
            for i, side in enumerate(self.sides):
                if side:
                    values = (self.bases[i].mT @ self.statistics[i] @ self.bases[i]).diagonal()
                    order = values.argsort(descending=True)
                    self.square = self.square.index_select(i, order)
                    self.bases[i] = torch.linalg.qr(self.statistics[i] @ self.bases[i][:, order]).Q
            self.mean = self.project(mean)


@pytest.mark.parametrize("max_side", [800, 5])
def test_soap_equals_the_plain_form(max_side: int) -> None:
    params = parameters()[:4]
    # A step from one gradient has repeated eigenvalues, whose eigenvectors are anybody's choice: full-rank gradients.
    full = [p for p in params if len(PlainSoap.as_seen(p.detach()).shape) == 3][:2]
    soap = Soap(full, (0.9, 0.95), refresh_every=3, max_side=max_side)
    plain = [PlainSoap(p, (0.9, 0.95), 3, max_side) for p in full]
    for step in range(1, 10):
        set_gradients(full, step)
        for p, other in zip(full, plain):
            assert p.grad is not None
            other.step(p.grad, 0.01)
        soap.step(RATE, ONE)
        soap.after_step(step)
        for p, other in zip(full, plain):
            torch.testing.assert_close(PlainSoap.as_seen(p.detach()).double(), other.weight, rtol=1e-4, atol=1e-5)


def test_first_step_of_soap_makes_the_bases_alone() -> None:
    params = parameters()
    before = [p.detach().clone() for p in params]
    soap = Soap(params)
    set_gradients(params, 1)
    soap.step(RATE, ONE)
    assert all(torch.equal(p, old) for p, old in zip(params, before))
    soap.after_step(1)
    for bucket in soap.state_dict()["buckets"]:
        for basis in bucket["bases"]:
            assert basis is not None
            torch.testing.assert_close(basis @ basis.mT, torch.eye(basis.shape[-1]).expand_as(basis), atol=1e-5, rtol=0)
    set_gradients(params, 2)
    soap.step(RATE, ONE)
    assert not any(torch.equal(p, old) for p, old in zip(params, before))


def test_vectors_are_left_to_adam() -> None:
    ours, theirs = parameters(3)[4:5], parameters(3)[4:5]
    soap, adam = Soap(ours, (0.9, 0.95)), torch.optim.Adam(theirs, lr=0.01, betas=(0.9, 0.95))
    set_gradients(ours, 0)
    soap.step(RATE, ONE)  # moves nothing
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        soap.step(RATE, ONE)
        adam.step()
    torch.testing.assert_close(ours[0], theirs[0])


def test_soap_beats_adam_on_a_turned_valley() -> None:
    """A quadratic whose long axes lie oblique to both sides of a matrix: what SOAP is for."""
    source = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=source)).Q
    scales = torch.logspace(0, -1.5, 16)
    goal = torch.randn(16, 16, generator=source)

    def loss(w: Tensor) -> Tensor:
        return (scales[:, None] * (turn @ (w - goal) @ turn.mT) * scales[None]).square().sum()

    ends = {}
    for name, betas in (("adam", (0.9, 0.98)), ("soap", (0.95, 0.95))):
        for rate in (0.01, 0.03, 0.1):
            w = nn.Parameter(torch.zeros(16, 16))
            optimizer = make_optimizer(name, [w], betas, 10)
            for step in range(1, 301):
                w.grad = None
                loss(w).backward()
                optimizer.step(torch.tensor(rate * (1 - step / 301)), ONE)
                optimizer.after_step(step)
            ends[name] = min(ends.get(name, 9.0), float(loss(w.detach())))
    assert ends["soap"] < 0.01 * ends["adam"], ends


MAKERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "adam": lambda params: Adam(params),
    "soap": lambda params: Soap(params, refresh_every=2),
}


@pytest.mark.parametrize("name", MAKERS)
class TestEveryOptimizer:
    @staticmethod
    def walk(optimizer: Optimizer, params: list[nn.Parameter], steps: range) -> None:
        for step in steps:
            set_gradients(params, step)
            optimizer.step(RATE, ONE)
            optimizer.after_step(step + 1)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    @pytest.mark.parametrize("at", [0, 3])
    def test_a_step_that_does_not_count(self, name: str, bad: float, at: int) -> None:
        params = parameters()
        optimizer = MAKERS[name](params)
        self.walk(optimizer, params, range(at))
        before = [t.clone() for t in (*params, *optimizer.tensors())]
        for p in params:
            p.grad = torch.full_like(p, bad)
        optimizer.step(RATE, ZERO)
        after = [*params, *optimizer.tensors()]
        if at:  # before that Adam has no state yet
            assert len(before) == len(after)
        assert all(torch.equal(a, b) for a, b in zip(before, after))
        self.walk(optimizer, params, range(at, at + 3))
        straight = parameters()
        self.walk(MAKERS[name](straight), straight, range(at + 3))
        for p, q in zip(params, straight):
            torch.testing.assert_close(p, q, rtol=0, atol=0 if name == "adam" else 1e-5)

    def test_resumes_exactly(self, name: str) -> None:
        straight = parameters()
        optimizer = MAKERS[name](straight)
        self.walk(optimizer, straight, range(5))
        state = copy.deepcopy(optimizer.state_dict())
        resumed = [nn.Parameter(p.detach().clone(memory_format=torch.preserve_format)) for p in straight]
        other = MAKERS[name](resumed)
        other.load_state_dict(state)
        self.walk(optimizer, straight, range(5, 12))
        self.walk(other, resumed, range(5, 12))
        assert all(torch.equal(p, q) for p, q in zip(straight, resumed))

    def test_refuses_the_state_of_other_parameters(self, name: str) -> None:
        params = parameters()
        optimizer = MAKERS[name](params)
        self.walk(optimizer, params, range(2))
        other = [nn.Parameter(torch.zeros(6, 5, 3, 3)), *parameters()[1:]]
        with pytest.raises(TrainingError, match="other parameters"):
            MAKERS[name](other).load_state_dict(optimizer.state_dict())
        with pytest.raises(TrainingError, match="optimiser is"):
            MAKERS["soap" if name == "adam" else "adam"](parameters()).load_state_dict(optimizer.state_dict())

    def test_missing_gradients_are_zero(self, name: str) -> None:
        params = parameters()
        optimizer = MAKERS[name](params)
        for step in range(3):
            set_gradients(params, step)
            params[0].grad = None
            optimizer.step(RATE, ONE)
            optimizer.after_step(step + 1)
        assert torch.equal(params[0], parameters()[0]) and not torch.equal(params[1], parameters()[1])
