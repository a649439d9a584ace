"""What an encoder may change in D for a picture or its patches: biases (L2C III-D), modulators' conditions (OML 3.3).

Changes per patch are piecewise-constant maps over the picture (DESIGN 2): every layer adds, or multiplies with, what
the patch of each position says, so one pass of D decodes the whole picture however many patches differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c import ops
from l2c.ops.contract import Grid
from l2c.transforms.modulators import Modulator, log_lmbda

_EACH = Grid(1)  # a patch for each latent


@dataclass
class Places:
    """Conditions that differ from place to place within pictures: what E and D are told in the place of one for all.

    Attributes:
        conditions: float32 [N, L, 2] from `transforms.condition`, those that occur in each picture.
        index: uint8 [N, h, w], which of them holds at each of the latents that E gives or D sees.
    """

    conditions: Tensor
    index: Tensor

    def spread(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of conditions, [n, 2] -> [n, C, 1, 1], at every latent: [N, C, h, w]."""
        n, count = self.conditions.shape[:2]
        values = function(self.conditions.flatten(0, 1)).view(n, count, -1)
        return torch.stack([part[at.long()] for part, at in zip(values, self.index)]).permute(0, 3, 1, 2)

    def part(self, rows: slice, columns: slice) -> Places:
        """The same in a box of latents."""
        return Places(self.conditions, self.index[:, rows, columns])

    def pick(self, members: Tensor) -> Places:
        """Those of some pictures: members int64 [n]."""
        return Places(self.conditions[members], self.index[members])

    @classmethod
    def joined(cls, pictures: Sequence[Places | None]) -> Places | None:
        """Of batches of one shape together; None: none of them has any."""
        given = [part for part in pictures if part is not None]
        if not given:
            return None
        if len(given) < len(pictures):
            raise ValueError("pictures with and without places cannot share a pass")
        most = max(part.conditions.shape[1] for part in given)
        padded = [
            torch.cat((part.conditions, part.conditions[:, -1:].expand(-1, most - part.conditions.shape[1], -1)), dim=1)
            for part in given
        ]
        return cls(torch.cat(padded), torch.cat([part.index for part in given]))

    def weights(self, cond: Tensor, s: int, size: tuple[int, int]) -> Tensor:
        """What an error weighs at each pixel: its lambda as a share of that of `cond`.

        Args:
            cond: float32 [N, 2], what `lambda` of the pictures goes with. s: pixels a side of a latent.
            size: height and width in pixels; the latents' last ones may cover less than s.
        Returns:
            float32 [N, 1, H, W].
        """
        shares = (log_lmbda(self.conditions.flatten(0, 1)).view(self.conditions.shape[:2]) - log_lmbda(cond)).exp()
        spread = torch.stack([part[at.long()] for part, at in zip(shares, self.index)])[:, None]
        return spread.repeat_interleave(s, dim=2).repeat_interleave(s, dim=3)[:, :, : size[0], : size[1]]


def everywhere(function: Callable[[Tensor], Tensor], cond: Tensor, places: Places | None) -> Tensor:
    """`function` of conditions, [n, 2] -> [n, C, 1, 1]: of `cond`, or at every latent of `places`."""
    return function(cond) if places is None else places.spread(function)


@dataclass
class Adaptation:
    """Changes to D, for each picture of a batch or for each of its patches.

    Attributes:
        conditions: float32 [N, K, 2], what each of D's K modulators sees instead of the picture's own condition
            (OML Eq. 5), or [N, K, 2, rows, columns] of patches, or None.
        biases: float32 [N, B], added to D's biases, B = `num_biases(decoder)`, layers in the order in which they run,
            or [N, B, rows, columns] of patches, or None.
        condition_grid, bias_grid: where the patches lie in the latents that D sees; needed with patches.
        places: conditions that differ within the pictures, in the place of the one that is said beside; what
            `conditions` change counts from them. None: there are none.
    """

    conditions: Tensor | None = None
    biases: Tensor | None = None
    condition_grid: Grid | None = None
    bias_grid: Grid | None = None
    places: Places | None = None


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
        conditions, places = self._adaptation.conditions, self._adaptation.places
        if conditions is None:
            scales = everywhere(modulator.scales, self._cond, places)
            return scales, None if places is None else self._on_layer(_EACH, x)
        mine = conditions[:, self._next_modulator]
        self._next_modulator += 1
        if places is not None:
            return self._scale_in_places(modulator, mine, places), self._on_layer(_EACH, x)
        if mine.dim() == 2:
            return modulator.scales(mine), None
        n, _, rows, columns = mine.shape
        scales = modulator.scales(mine.permute(0, 2, 3, 1).reshape(-1, mine.shape[1]))
        return scales.view(n, rows, columns, -1).permute(0, 3, 1, 2), self._on_layer(self._adaptation.condition_grid, x)

    def _scale_in_places(self, modulator: Modulator, mine: Tensor, places: Places) -> Tensor:
        """The scales at every latent, [N, C, h, w], where both the patch, of conditions [N, 2] or [N, 2, rows,
        columns], and the place count."""
        patches = mine[:, :, None, None] if mine.dim() == 2 else mine
        lower = places.conditions - self._cond[:, None]
        told = patches.permute(0, 2, 3, 1)[:, :, :, None] + lower[:, None, None]  # [N, rows, columns, L, 2]
        scales = modulator.scales(told.flatten(0, 3)).view(*told.shape[:4], -1)
        grid = self._adaptation.condition_grid if mine.dim() == 4 else None
        rows, columns = (
            torch.zeros(length, dtype=torch.int64, device=mine.device)
            if grid is None
            else ((torch.arange(length, device=mine.device) + start) // grid.side).clamp(0, count - 1)
            for length, start, count in zip(
                places.index.shape[1:], (0, 0) if grid is None else (grid.top, grid.left), told.shape[1:3]
            )
        )
        spread = [part[rows[:, None], columns[None], at.long()] for part, at in zip(scales, places.index)]
        return torch.stack(spread).permute(0, 3, 1, 2)

    def _on_layer(self, grid: Grid | None, x: Tensor) -> Grid:
        assert grid is not None
        return grid.finer(x.shape[2] // self._rows)
