"""What computes P's integers: C++, Triton, PyTorch, the reference. Which one "auto" is, they say themselves."""

from __future__ import annotations

from l2c.entropy.base import Backend
from l2c.entropy.multiscale.backends.cpu import CpuBackend
from l2c.entropy.multiscale.backends.stepwise import ReferenceBackend, TorchBackend
from l2c.entropy.multiscale.backends.triton import TritonBackend
from l2c.entropy.multiscale.integer_weights import IntegerWeights


def make(weights: IntegerWeights) -> dict[str, Backend]:
    """All backends of a model by name; none of them packs or loads anything before it is used."""
    cpu = CpuBackend(weights)
    made = (cpu, TritonBackend(weights, cpu), TorchBackend(weights), ReferenceBackend(weights))
    return {backend.name: backend for backend in made}
