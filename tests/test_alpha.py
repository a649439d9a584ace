"""Colours under transparent pixels cost nothing and leave visible ones alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import l2c
from l2c.images.transparent import fill_transparent


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (8, 8), (33, 70), (131, 97)])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_visible_pixels_stay(shape: tuple[int, int], share: float) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    alpha = (rng.random(shape) < share).astype(np.uint8) * 9
    before = rgb.copy()
    filled = fill_transparent(rgb, alpha)
    assert filled.dtype == np.uint8 and filled.shape == rgb.shape and np.array_equal(rgb, before)
    assert np.array_equal(filled[alpha > 0], rgb[alpha > 0])
    if (alpha > 0).any():
        low, high = rgb[alpha > 0].min(axis=0), rgb[alpha > 0].max(axis=0)
        assert (filled >= low).all() and (filled <= high).all()


def test_what_is_filled_is_smooth() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    alpha = np.zeros((64, 96), np.uint8)
    rgb[:, :8], alpha[:, :8] = (200, 10, 50), 255
    rgb[:, -8:], alpha[:, -8:] = (20, 110, 50), 1
    filled = fill_transparent(rgb, alpha).astype(int)
    assert np.abs(np.diff(filled, axis=1)).max() < 30 and np.abs(np.diff(filled, axis=0)).max() <= 1
    assert (filled[:, 10] == filled[0, 10]).all() and filled[0, 10, 0] > 150 > 60 > filled[0, -10, 0]


@pytest.mark.parametrize("value", [0, 255])
def test_all_or_nothing_visible(value: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert fill_transparent(rgb, np.full((9, 9), value, np.uint8)) is rgb


def test_hidden_noise_costs_nothing(tiny_model_path) -> None:
    """The same visible picture, with noise and with black under what is transparent, gives the same file."""
    y, x = np.mgrid[:96, :128]
    disc = (y - 48) ** 2 + (x - 64) ** 2 < 900
    visible = np.stack((x + y, 2 * y, 255 - x), axis=2).clip(0, 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, visible.shape, dtype=np.uint8)
    codec, sizes, results = l2c.Codec(model=tiny_model_path), [], []
    for hidden in (np.zeros_like(visible), noise):
        rgba = np.dstack((np.where(disc[:, :, None], visible, hidden), 255 * disc)).astype(np.uint8)
        data = codec.encode(Image.fromarray(rgba), quality=50)
        sizes.append(len(data))
        results.append(np.asarray(codec.decode(data, as_="pil", mode="original")))
    assert sizes[0] == sizes[1]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0][..., 3], 255 * disc)
