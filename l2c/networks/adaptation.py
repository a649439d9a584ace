"""What an encoder may change in D for a picture or its patches: biases (L2C III-D), modulators' conditions (OML 3.3).

Changes per patch are piecewise-constant maps over the picture (DESIGN 2): every layer adds, or multiplies with, what
the patch of each position says, so one pass of D decodes the whole picture however many patches differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2c.networks.modulators import Modulator


@dataclass(frozen=True)
class Grid:
    """Where patches lie in what D sees.

    Attributes:
        side: of a patch, in latents.
        top, left: row and column of what D sees first, counted in latents from the first patch. What lies outside the
            patches has the values of the nearest one.
    """

    side: int
    top: int = 0
    left: int = 0

    def spread(self, values: Tensor, shape: torch.Size, fineness: int) -> Tensor:
        """Values [N, C, rows, columns] of patches -> [N, C, h, w] of the positions of a layer of this shape.

        Args:
            fineness: positions of the layer per latent, each way.
        """
        axes = []
        for start, length, most in ((self.top, shape[2], values.shape[2]), (self.left, shape[3], values.shape[3])):
            position = torch.arange(length, device=values.device) + start * fineness
            axes.append((position // (self.side * fineness)).clamp(0, most - 1))
        return values.index_select(2, axes[0]).index_select(3, axes[1])


@dataclass
class Adaptation:
    """Changes to D, for each picture of a batch or for each of its patches.

    Attributes:
        conditions: float32 [N, K, 2], what each of D's K modulators sees instead of the picture's own condition
            (OML Eq. 5), or [N, K, 2, rows, columns] of patches, or None.
        biases: float32 [N, B], added to D's biases, B = `num_biases(decoder)`, layers in the order in which they run,
            or [N, B, rows, columns] of patches, or None.
        condition_grid, bias_grid: where the patches lie; needed with patches.
    """

    conditions: Tensor | None = None
    biases: Tensor | None = None
    condition_grid: Grid | None = None
    bias_grid: Grid | None = None


class Adapter:
    """Applies an adaptation (or none) while D runs over one batch of latents.

    Args:
        adaptation: what to change, or None.
        cond: float32 [N, 2], the pictures' own condition.
        rows: of the latents that D sees, from which the fineness of each layer follows.
    """

    def __init__(self, adaptation: Adaptation | None, cond: Tensor, rows: int) -> None:
        self._adaptation = adaptation if adaptation is not None else Adaptation()
        self._cond, self._rows = cond, rows
        self._next = 0

    def shift(self, x: Tensor) -> Tensor:
        """The output [N, C, h, w] of D's next convolution, with its C bias changes added."""
        biases, grid = self._adaptation.biases, self._adaptation.bias_grid
        if biases is None:
            return x
        part = biases[:, self._next : self._next + x.shape[1]].to(x.dtype)
        self._next += x.shape[1]
        if part.dim() == 2:
            return x + part[:, :, None, None]
        assert grid is not None
        return x + grid.spread(part, x.shape, x.shape[2] // self._rows)

    def modulate(self, modulator: Modulator, x: Tensor, layer: int) -> Tensor:
        """The features [N, C, h, w] scaled by D's modulator number `layer` as its condition says."""
        conditions, grid = self._adaptation.conditions, self._adaptation.condition_grid
        if conditions is None:
            return modulator(x, self._cond)
        mine = conditions[:, layer]
        if mine.dim() == 2:
            return modulator(x, mine)
        assert grid is not None
        n, _, rows, columns = mine.shape
        scales = modulator.scales(mine.permute(0, 2, 3, 1).reshape(-1, mine.shape[1])).to(x.dtype)
        scales = scales.view(n, rows, columns, -1).permute(0, 3, 1, 2)
        return x * grid.spread(scales, x.shape, x.shape[2] // self._rows)


def num_biases(decoder: nn.Module) -> int:
    """B: how many biases D's convolutions have."""
    biases = (m.bias for m in decoder.modules() if isinstance(m, nn.Conv2d))
    return sum(bias.numel() for bias in biases if bias is not None)
