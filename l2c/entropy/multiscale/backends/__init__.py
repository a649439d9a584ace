"""The registry of what computes P's integers: which there are, which one "auto" is, and what stands in for which.

Backends are compared by name nowhere else.
"""

from __future__ import annotations

import os

import torch

from l2c.entropy.base import Backend
from l2c.entropy.multiscale.backends.cpu import CpuBackend
from l2c.entropy.multiscale.backends.stepwise import ReferenceBackend, TorchBackend
from l2c.entropy.multiscale.backends.triton import TritonBackend
from l2c.entropy.multiscale.integer_weights import IntegerWeights
from l2c.errors import BackendError

_KINDS = {kind.name: kind for kind in (CpuBackend, TritonBackend, TorchBackend, ReferenceBackend)}
NAMES = ("auto", *_KINDS)

# "auto" is the first that runs on such a device; a GPU and everything like it is the second line.
_FIRST = {True: (CpuBackend.name, TorchBackend.name), False: (TritonBackend.name, TorchBackend.name)}
# Where one computes something else than the definition, "auto" goes on with these.
_AFTER = {
    CpuBackend.name: (ReferenceBackend.name,),
    TritonBackend.name: (TorchBackend.name, ReferenceBackend.name),
    TorchBackend.name: (ReferenceBackend.name,),
    ReferenceBackend.name: (),
}
# Whom a failure to decode is shown to; nobody checks the definition.
_SECOND = {
    CpuBackend.name: (TorchBackend.name, ReferenceBackend.name),
    TritonBackend.name: (CpuBackend.name, TorchBackend.name, ReferenceBackend.name),
    TorchBackend.name: (CpuBackend.name, ReferenceBackend.name),
    ReferenceBackend.name: (),
}
DEFINITION = ReferenceBackend.name


def make(weights: IntegerWeights) -> dict[str, Backend]:
    """All backends of a model by name; none of them packs or loads anything before it is used."""
    cpu = CpuBackend(weights)
    made = (cpu, TritonBackend(weights, cpu), TorchBackend(weights), ReferenceBackend(weights))
    return {backend.name: backend for backend in made}


def choose(name: str, device: torch.device | None) -> str:
    """Resolve "auto", and check that a backend asked for by name runs.

    On a GPU "auto" is "triton" where its kernels run, else "torch"; on the CPU "cpu" where the extension loads, else
    "torch". The environment variable L2C_BACKEND names another choice for "auto".

    Raises:
        BackendError: an unknown name, or a backend asked for by name that cannot run.
    """
    place = device if device is not None else torch.device("cpu")
    if name == "auto":
        name = os.environ.get("L2C_BACKEND") or "auto"
    if name == "auto":
        return next(first for first in _FIRST[place.type == "cpu"] if not _KINDS[first].unavailable(place))
    if name not in _KINDS:
        raise BackendError(f"no integer backend is called {name!r}; there are {', '.join(NAMES)}")
    reason = _KINDS[name].unavailable(place)
    if reason:
        raise BackendError(reason)
    return name


def chain(name: str, device: torch.device | None) -> tuple[str, ...]:
    """What to try for a name in turn until one gives the known answer; but for "auto" it is one. Errors: `choose`."""
    first = choose(name, device)
    return (first, *(_AFTER[first] if name == "auto" else ()))


def second_opinions(name: str, most_cost: int | None = None) -> tuple[str, ...]:
    """Whom to ask in turn where a backend fails to decode, those of at most such a cost."""
    return tuple(other for other in _SECOND[name] if most_cost is None or _KINDS[other].cost <= most_cost)
