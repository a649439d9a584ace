"""Changes to D per patch, as maps: what D makes of them, and the searches that choose them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_adapt import FAMILIES, made
from torch import Tensor

from l2c.adapt.bias_sets import BiasSets, search_sets, set_maps
from l2c.adapt.latents import Regions
from l2c.adapt.modulators import condition_maps, search_conditions
from l2c.format.adapt_section import NO_SET
from l2c.objective import TERMS, Blend, PatchDistortion, distortion
from l2c.transforms import Adaptation, Grid, Transform, TransformConfig, condition, num_biases, num_modulators


def scene(config: TransformConfig, rows: int, columns: int, n: int = 1) -> tuple[Transform, Tensor, Tensor]:
    """Networks, latents [n, c, rows, columns] and conditions."""
    transform = made(config)
    torch.manual_seed(2)
    z = (3 * torch.randn(n, config.c, rows, columns)).round()
    return transform, z, condition(torch.full((n,), 0.01), torch.full((n,), 0.5))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_patch_is_decoded_with_its_own_changes(family: str) -> None:
    """Far enough from borders every patch looks as if the whole picture had its changes."""
    transform, z, cond = scene(FAMILIES[family], 40, 48)
    grid, s = Grid(24), transform.s
    halo = -(-transform.decoder.receptive_halo_px // s)
    biases = 0.05 * torch.randn(1, num_biases(transform.decoder), 2, 2)
    conditions: Any = None
    if num_modulators(transform):
        conditions = condition_maps(cond, torch.randint(-60, 60, (1, num_modulators(transform), 2, 2)))
    with torch.no_grad():
        mapped = transform.decoder(z, cond, Adaptation(conditions, biases, grid, grid))
        for row in range(2):
            for column in range(2):
                own = None if conditions is None else conditions[:, :, :, row, column]
                alone = transform.decoder(z, cond, Adaptation(own, biases[:, :, row, column]))
                rows = slice((24 * row + halo * row) * s, (24 * (row + 1) - halo * (1 - row)) * s)
                columns = slice((24 * column + halo * column) * s, (24 * (column + 1) - halo * (1 - column)) * s)
                torch.testing.assert_close(
                    mapped[:, :, rows, columns], alone[:, :, rows, columns], rtol=1e-4, atol=1e-5
                )


def test_a_part_of_the_picture_sees_the_same_maps() -> None:
    transform, z, cond = scene(FAMILIES["block"], 40, 48)
    biases = 0.05 * torch.randn(1, num_biases(transform.decoder), 2, 2)
    halo = -(-transform.decoder.receptive_halo_px // 8)
    with torch.no_grad():
        whole = transform.decoder(z, cond, Adaptation(biases=biases, bias_grid=Grid(24)))
        part = transform.decoder(z[:, :, 9:, 5:], cond, Adaptation(biases=biases, bias_grid=Grid(24, 9, 5)))
    at = (9 + halo) * 8, (5 + halo) * 8
    torch.testing.assert_close(part[:, :, halo * 8 :, halo * 8 :], whole[:, :, at[0] :, at[1] :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mix", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_patch_distortion_adds_up(mix: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 300, 420)
    first = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    second = first.clone()
    second[:, :, :250, :250] = (second[:, :, :250, :250] + 0.01 * torch.randn(2, 3, 250, 250)).clamp(0, 1)
    blend = Blend.of(torch.full((2,), 8 * mix), torch.full((2,), 0.01))
    measure = PatchDistortion(x, blend, 256)
    base = measure(first)
    change = measure(second) - base
    assert change.shape == (2, 2, 2)
    true = distortion(x, second, blend) - distortion(x, first, blend)
    torch.testing.assert_close(change.sum(dim=(1, 2)), true, rtol=0.01, atol=1e-3)
    assert (change[:, 0, 0] > 0.9 * change.sum(dim=(1, 2))).all()  # the patch that was changed


def planted(rows: int, columns: int, mu: float) -> tuple[Transform, Regions, Tensor, BiasSets, Tensor]:
    """A picture that D decodes exactly if each of its 256-pixel patches has the set that is returned."""
    transform, z, _ = scene(FAMILIES["block"], rows, columns)
    cond = condition(torch.tensor([0.01]), torch.tensor([mu]))
    values = 0.05 * torch.randn(1, 6, num_biases(transform.decoder))
    sets = BiasSets(values, torch.zeros(1, 6, len(TERMS)))
    index = torch.tensor([[3, NO_SET, 5], [0, 3, 1]])[None, : -(-rows // 32), : -(-columns // 32)]
    with torch.no_grad():
        maps = set_maps(sets, [0], index)
        x = transform.decoder(z, cond, Adaptation(biases=maps, bias_grid=Grid(32))).clamp(0, 1)
    header = torch.tensor([[500, round(8 * mu), 8]])
    regions = Regions(x, z, None, cond, header, torch.tensor([0.01]))
    return transform, regions, z, sets, index


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_planted_sets_are_found(mu: float) -> None:
    transform, regions, z, sets, index = planted(50, 80, mu)
    found = search_sets(transform, regions, z, sets, [0], 6)
    assert found is not None
    best, saved = found
    assert torch.equal(best, index)
    with torch.no_grad():
        plain = regions.cost(regions.decode(transform, z))
    assert float(saved) == pytest.approx(float(plain), rel=0.35 if mu else 0.05)  # all the distortion there was


def test_a_short_list_of_one_finds_most() -> None:
    transform, regions, z, sets, index = planted(50, 80, 0.0)
    found = search_sets(transform, regions, z, sets, [0], 1)
    assert found is not None
    assert int((found[0] == index).sum()) >= 4


def test_sets_that_do_not_help_are_not_taken() -> None:
    transform, regions, z, sets, _ = planted(32, 32, 0.0)
    with torch.no_grad():
        regions.x = regions.decode(transform, z).clamp(0, 1)
    found = search_sets(transform, regions, z, sets, [0], 6)
    assert found is not None
    assert bool((found[0] == NO_SET).all())
    assert float(found[1]) == 0.0


def test_no_time_for_sets() -> None:
    transform, regions, z, sets, _ = planted(32, 32, 0.0)
    assert search_sets(transform, regions, z, sets, [0], 6, lambda: False) is None
    assert search_conditions(transform, regions, z, 3, None, lambda: False) is None


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_conditions_are_improved(mu: float) -> None:
    """A picture made with other conditions in one of two patches: the search saves cost there, as measured anew."""
    transform, z, _ = scene(FAMILIES["block"], 40, 110)
    cond = condition(torch.tensor([0.3]), torch.tensor([mu]))
    k = num_modulators(transform)
    changes = torch.zeros(1, k, 1, 2)
    changes[:, :, :, 0] = 40.0
    grid = Grid(64)
    with torch.no_grad():
        x = transform.decoder(z, cond, Adaptation(condition_maps(cond, changes), condition_grid=grid)).clamp(0, 1)
    regions = Regions(x, z, None, cond, torch.tensor([[500, round(8 * mu), 8]]), torch.tensor([0.3]))
    found = search_conditions(transform, regions, z, 8)
    assert found is not None
    best, saved = found
    assert best.dtype == torch.int8
    assert bool(best[0, :, 0, 0].any())
    with torch.no_grad():
        before = regions.cost(regions.decode(transform, z))
        adapted = Adaptation(condition_maps(cond, best), condition_grid=grid)
        after = regions.cost(regions.decode(transform, z, adapted))
    assert float(before - after) > 0.3 * float(before)
    assert float(saved) == pytest.approx(float(before - after), rel=0.35 if mu else 0.02)


def test_set_maps_of_bands() -> None:
    values = torch.randn(2, 3, 7)
    index = torch.tensor([[[0, NO_SET]], [[2, 1]]])
    maps = set_maps(BiasSets(values, torch.zeros(2, 3, len(TERMS))), [0, 1], index)
    assert maps.shape == (2, 7, 1, 2)
    np.testing.assert_array_equal(maps[0, :, 0, 0], values[0, 0])
    np.testing.assert_array_equal(maps[0, :, 0, 1], np.zeros(7))
    np.testing.assert_array_equal(maps[1, :, 0, 0], values[1, 2])
    np.testing.assert_array_equal(maps[1, :, 0, 1], values[1, 1])
