"""What an encoder may change in D for a picture or its patches: biases (L2C III-D), modulators' conditions (OML 3.3).

Changes per patch are piecewise-constant maps over the picture (DESIGN 2): every layer adds, or multiplies with, what
the patch of each position says, so one pass of D decodes the whole picture however many patches differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from l2c import ops
from l2c.ops.contract import Grid
from l2c.transforms.modulators import Modulator


@dataclass
class Adaptation:
    """Changes to D, for each picture of a batch or for each of its patches.

    Attributes:
        conditions: float32 [N, K, 2], what each of D's K modulators sees instead of the picture's own condition
            (OML Eq. 5), or [N, K, 2, rows, columns] of patches, or None.
        biases: float32 [N, B], added to D's biases, B = `num_biases(decoder)`, layers in the order in which they run,
            or [N, B, rows, columns] of patches, or None.
        condition_grid, bias_grid: where the patches lie in the latents that D sees; needed with patches.
    """

    conditions: Tensor | None = None
    biases: Tensor | None = None
    condition_grid: Grid | None = None
    bias_grid: Grid | None = None


class Adapter:
    """Applies an adaptation (or none) while a network, D or E, runs over one batch.

    Args:
        adaptation: what to change, or None.
        cond: float32 [N, 2], the pictures' own condition.
        rows: of the latents that D sees, from which the fineness of each layer follows.
    """

    def __init__(self, adaptation: Adaptation | None, cond: Tensor, rows: int) -> None:
        self._adaptation = adaptation if adaptation is not None else Adaptation()
        self._cond, self._rows = cond, rows
        self._next_bias = self._next_modulator = 0

    def finish(
        self, x: Tensor, *, slope: float = 1.0, residual: Tensor | None = None, modulator: Modulator | None = None
    ) -> Tensor:
        """What follows the next convolution: (residual + LeakyReLU(x + bias changes)) * scales of the next modulator.

        Args:
            x: [N, C, h, w], the convolution's output.
            slope: of the LeakyReLU: 1 is none, 0 a ReLU.
            residual: like x, or None. modulator: or None, where none follows.
        """
        bias, bias_grid = self._bias(x)
        scale, scale_grid = (None, None) if modulator is None else self._scale(modulator, x)
        return ops.patch_epilogue(x, bias, scale, residual, slope=slope, bias_grid=bias_grid, scale_grid=scale_grid)

    def modulate(self, x: Tensor, modulator: Modulator) -> Tensor:
        """Features [N, C, h, w] scaled by the next modulator, where no convolution comes right before it."""
        scale, scale_grid = self._scale(modulator, x)
        return ops.patch_epilogue(x, scale=scale, scale_grid=scale_grid)

    def _bias(self, x: Tensor) -> tuple[Tensor | None, Grid | None]:
        """The next convolution's changes, [N, C, rows, columns], and where their patches lie on its output x."""
        biases = self._adaptation.biases
        if biases is None:
            return None, None
        part = biases[:, self._next_bias : self._next_bias + x.shape[1]]
        self._next_bias += x.shape[1]
        if part.dim() == 2:
            return part[:, :, None, None], None
        return part, self._on_layer(self._adaptation.bias_grid, x)

    def _scale(self, modulator: Modulator, x: Tensor) -> tuple[Tensor, Grid | None]:
        """The scales that the next modulator's condition gives, [N, C, rows, columns], and where their patches lie."""
        conditions = self._adaptation.conditions
        if conditions is None:
            return modulator.scales(self._cond), None
        mine = conditions[:, self._next_modulator]
        self._next_modulator += 1
        if mine.dim() == 2:
            return modulator.scales(mine), None
        n, _, rows, columns = mine.shape
        scales = modulator.scales(mine.permute(0, 2, 3, 1).reshape(-1, mine.shape[1]))
        return scales.view(n, rows, columns, -1).permute(0, 3, 1, 2), self._on_layer(self._adaptation.condition_grid, x)

    def _on_layer(self, grid: Grid | None, x: Tensor) -> Grid:
        assert grid is not None
        return grid.finer(x.shape[2] // self._rows)
