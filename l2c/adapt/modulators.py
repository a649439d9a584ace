"""Online adaptation of D's conditions, one per modulator and patch (OML 3.3, 5.2).

`search_conditions` is what the encoder runs: all patches of a picture in every pass, as maps, in the steps of the file
(1/64 in a byte; OML stores float16). `adapt_conditions` takes patches alone, as OML does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from l2c.adapt.latents import Regions
from l2c.format.adapt_section import CONDITION_PATCH, CONDITION_UNIT
from l2c.objective import Blend, PatchDistortion, distortion
from l2c.transforms import Adaptation, Grid, Transform, num_modulators

# OML 5.2 tries these on the raw lambda and the distortion itself. Ours move the normalised log lambda down the gradient
# of log D: the same decades then cover moves from nothing to the whole range, at any rate and for both metrics.
STEP_SIZES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def adapt_conditions(
    transform: Transform, x: Tensor, z: Tensor, cond: Tensor, num_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """SGD on the K conditions of every patch; latents, and so the rate, stay as they are (OML Eq. 5).

    The first step tries STEP_SIZES and keeps each patch's best; whenever the distortion of a patch does not improve,
    its step size is halved and it goes on from its best conditions. These are returned, in float16 precision, as the
    file stores them; a patch that no step improves keeps the picture's own, not rounded.

    Args:
        transform: networks, D's parameters without gradients.
        x: float32 [N, 3, H, W] in [0, 1].
        z: float32 [N, c, h, w], quantised latents.
        cond: float32 [N, 2], the pictures' own conditions; the metric mix in it chooses the distortion.
        num_steps: n, SGD steps, at least 1.
    Returns:
        conditions float32 [N, K, 2]; distortion (`objective.distortion`) before and after, float32 [N].
    """
    k = num_modulators(transform)
    mix = cond[:, None, 1:].expand(-1, k, -1)
    blend = Blend.of_condition(cond)

    def distortion_at(moved: Tensor) -> Tensor:
        x_hat = transform.decoder(z, cond, Adaptation(torch.cat((moved, mix), dim=2)))
        return distortion(x, x_hat[:, :, : x.shape[2], : x.shape[3]].clamp(0.0, 1.0), blend)

    def gradient(at: Tensor) -> tuple[Tensor, Tensor]:
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            value = distortion_at(leaf)
            (slope,) = torch.autograd.grad(value.log().sum(), leaf)
        return value.detach(), slope

    start = cond[:, None, :1].repeat(1, k, 1)
    before, slope = gradient(start)
    best, least = start.clone(), before.clone()
    gamma = torch.full_like(before, STEP_SIZES[0])
    trial = torch.full_like(before, float("inf"))
    with torch.no_grad():
        for size in STEP_SIZES:
            value = distortion_at(_float16(start - size * slope))
            better = value < trial
            trial, gamma = torch.where(better, value, trial), torch.where(better, size, gamma)
    for step in range(num_steps):
        at = _float16(best - gamma[:, None, None] * slope)
        if step == num_steps - 1:
            with torch.no_grad():
                value, fresh = distortion_at(at), slope
        else:
            value, fresh = gradient(at)
        improved = value < least
        best, slope = (torch.where(improved[:, None, None], new, old) for new, old in ((at, best), (fresh, slope)))
        least, gamma = torch.where(improved, value, least), torch.where(improved, gamma, gamma / 2)
    return torch.cat((best, mix), dim=2), before, least


def condition_maps(cond: Tensor, changes: Tensor) -> Tensor:
    """Conditions of patches: cond float32 [N, 2], changes int8 [N, K, rows, columns] -> [N, K, 2, rows, columns]."""
    own = cond[:, None, :, None, None].expand(-1, changes.shape[1], -1, *changes.shape[2:])
    moved = own[:, :, 0] + changes.to(cond) * CONDITION_UNIT
    return torch.stack((moved, own[:, :, 1]), dim=2)


def search_conditions(
    transform: Transform,
    regions: Regions,
    z: Tensor,
    num_steps: int,
    biases: Adaptation | None = None,
    go_on: Callable[[], bool] = lambda: True,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """SGD on the K conditions of each 512x512 patch with OML's step sizes and halving (its 5.2), in whole units.

    The metric that is improved is the regions' own, that of their `header`; what D is told of it, in their `cond`, may
    be another one and stays.

    Args:
        regions: pictures or tiles. z: float32 [N, c, h, w], their latents.
        num_steps: SGD steps, at least 1.
        biases: changes to D's biases that are in force.
        go_on: asked before each pass but the last.
        start: int8 [N, K, rows, columns], the changes that are in force, from which others have to be an improvement;
            None: 0 everywhere.
    Returns:
        changes int8 [N, K, rows, columns] in CONDITION_UNIT, those of the start where no others pay; bits of
        lambda * pixels * D saved, float32 [N]. None where there was no time for a step.
    """
    k = num_modulators(transform)
    grid = Grid(CONDITION_PATCH // transform.s, -regions.corner[0], -regions.corner[1])
    measure = PatchDistortion(regions.x, regions.blend, CONDITION_PATCH, regions.weights)
    weight = (regions.lmbda * regions.pixels)[:, None, None]
    shape = (len(regions), k, measure.rows, measure.columns)
    force = biases if biases is not None else Adaptation()

    def decoded(changes: Tensor) -> Tensor:
        maps = condition_maps(regions.cond, changes)
        return regions.decode(transform, z, Adaptation(maps, force.biases, grid, force.bias_grid))

    def slope_at(changes: Tensor) -> tuple[Tensor, Tensor]:
        """Cost of each patch; gradient of the pictures' log cost, times what turns it into units of the file."""
        leaf = changes.clone().requires_grad_()
        with torch.enable_grad():
            x_hat = decoded(leaf)
            cost = regions.cost(x_hat)
            (slope,) = torch.autograd.grad(cost.log().sum(), leaf)
        return measure(x_hat.detach()) * weight, slope / CONDITION_UNIT**2

    if not go_on():
        return None
    first = z.new_zeros(shape) if start is None else start.to(z)
    base, slope = slope_at(first)
    best, least = first, base
    gamma, trial = torch.full_like(base, STEP_SIZES[0]), torch.full_like(base, float("inf"))
    for size in STEP_SIZES:
        if not go_on():
            return None
        with torch.no_grad():
            value = measure(decoded(_units(first - size * slope))) * weight
        better = value < trial
        trial, gamma = torch.where(better, value, trial), torch.where(better, size, gamma)
    for _ in range(num_steps):
        if not go_on():
            break
        at = _units(best - gamma[:, None] * slope)
        value, fresh = slope_at(at)
        improved = value < least
        best, slope = (torch.where(improved[:, None], new, old) for new, old in ((at, best), (fresh, slope)))
        least, gamma = torch.where(improved, value, least), torch.where(improved, gamma, gamma / 2)
    price = 8.0 * k + 1.0
    best = torch.where((base - least > price)[:, None], best, first)
    if torch.equal(best, first):
        return best.to(torch.int8), z.new_zeros(len(regions))
    with torch.no_grad():  # neighbours have changed since each patch's best was found
        saved = base - measure(decoded(best)) * weight
    pays = saved > price
    return torch.where(pays[:, None], best, first).to(torch.int8), (saved * pays).sum(dim=(1, 2))


def _units(changes: Tensor) -> Tensor:
    return changes.round().clamp(-127.0, 127.0)


def _float16(values: Tensor) -> Tensor:
    """Rounded to what the file stores, kept within a range in which the modulators are finite."""
    return values.clamp(-100.0, 100.0).half().float()
