"""What computes the integers: C++, Triton, PyTorch, the reference. Which one "auto" is, they say themselves."""

from __future__ import annotations

from l2c.entropy.base import Backend
from l2c.entropy.hyperprior.backends.cpu import CpuBackend
from l2c.entropy.hyperprior.backends.reference import ReferenceBackend
from l2c.entropy.hyperprior.backends.torch import TorchBackend
from l2c.entropy.hyperprior.backends.triton import TritonBackend
from l2c.entropy.hyperprior.integer_weights import HyperpriorWeights


def make(weights: HyperpriorWeights) -> dict[str, Backend]:
    """All backends of a model by name; none of them packs or loads anything before it is used."""
    cpu = CpuBackend(weights)
    made: tuple[Backend, ...] = (cpu, TritonBackend(weights, cpu), TorchBackend(weights), ReferenceBackend(weights))
    return {backend.name: backend for backend in made}
