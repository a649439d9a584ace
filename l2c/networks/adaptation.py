"""What an encoder may change in D for a picture or patch: biases (L2C III-D), modulators' conditions (OML 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Adaptation:
    """Changes to D, one per picture of a batch.

    Attributes:
        conditions: float32 [N, K, 2], what each of D's K modulators sees instead of the picture's own condition
            (OML Eq. 5), or None.
        biases: float32 [N, B], added to D's biases, B = `num_biases(decoder)`, layers in the order in which they run,
            or None.
    """

    conditions: Tensor | None = None
    biases: Tensor | None = None


class BiasReader:
    """Hands out an adaptation's bias changes layer by layer, in the order in which D's layers run."""

    def __init__(self, biases: Tensor | None) -> None:
        self._biases = biases
        self._next = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The output [N, C, h, w] of the next convolution, with its C bias changes added."""
        if self._biases is None:
            return x
        part = self._biases[:, self._next : self._next + x.shape[1], None, None]
        self._next += x.shape[1]
        return x + part.to(x.dtype)


def num_biases(decoder: nn.Module) -> int:
    """B: how many biases D's convolutions have."""
    biases = (m.bias for m in decoder.modules() if isinstance(m, nn.Conv2d))
    return sum(bias.numel() for bias in biases if bias is not None)


def layer_condition(cond: Tensor, adaptation: Adaptation | None, layer: int) -> Tensor:
    """Condition [N, 2] of D's modulator number `layer`: the adaptation's where there is one, else the picture's."""
    if adaptation is None or adaptation.conditions is None:
        return cond
    return adaptation.conditions[:, layer]
