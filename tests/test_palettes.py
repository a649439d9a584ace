"""Pictures in fewer colours."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
from PIL import Image

from l2c.images.palettes import COUNTS, MOST_COLOURS, Palettes
from l2c.train.drawn import draw

Pixels = npt.NDArray[np.uint8]


def colours(picture: Pixels) -> int:
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def error(picture: Pixels, reduced: Pixels) -> float:
    return float(np.square(picture - reduced.astype(np.float32)).mean())


@pytest.mark.parametrize("kind", ["text", "ui", "cartoon", "product"])
def test_more_colours_are_nearer_and_nearer_than_pillows(kind: str) -> None:
    picture = draw(kind, 144, np.random.default_rng(5))
    palettes = Palettes.of(picture)
    assert palettes is not None and palettes.counts == tuple(c for c in COUNTS if c < colours(picture))
    errors, ratios = [], []
    for count in palettes.counts:
        reduced = palettes.picture(count)
        assert reduced.dtype == np.uint8 and reduced.shape == picture.shape and colours(reduced) <= count
        errors.append(error(picture, reduced))
        if count in (4, 16, 64):
            peer = Image.fromarray(picture).quantize(count, Image.Quantize.MEDIANCUT, kmeans=4, dither=0)
            ratios.append(errors[-1] / error(picture, np.asarray(peer.convert("RGB"))))
    assert max(ratios) < 1.1 and np.prod(ratios) < 0.97
    assert all(after <= 1.02 * before for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.2 * errors[len(errors) // 2] < 0.04 * errors[0]


def test_what_most_of_a_set_has_stays_exact() -> None:
    """White paper under a soft grey: the mean of both would not be white."""
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[10:20, :, 0] = np.arange(64) + 170
    picture[40:50, 5:60] = (20, 30, 40)
    picture[40:50, 5:9] = (23, 30, 41)
    palettes = Palettes.of(picture)
    assert palettes is not None
    for count in palettes.counts:
        reduced = palettes.picture(count)
        assert (reduced[55:] == 255).all() and (reduced[:10] == 255).all()
        assert (reduced[42, 20] == (20, 30, 40)).all() or count == 2


def test_grey_stays_grey_and_all_but_one_colour_is_possible() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2).repeat(8, 0)
    palettes = Palettes.of(ramp)
    assert palettes is not None and palettes.counts[-1] == 224
    for count in palettes.counts:
        reduced = palettes.picture(count)
        assert (reduced == reduced[:, :, :1]).all() and colours(reduced) == count
    few = np.array([[[0, 0, 0], [9, 0, 0], [255, 255, 255]]], np.uint8)
    palettes = Palettes.of(few)
    assert palettes is not None and palettes.counts == (2,)
    assert error(few, palettes.picture(2)) == pytest.approx((4.0**2 + 5.0**2) / 9.0)  # 4.5 is rounded to 4


def test_what_is_not_reduced() -> None:
    assert Palettes.of(np.full((9, 9, 3), 7, np.uint8)) is None
    assert Palettes.of(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)) is None  # two colours: nothing to gain
    many = np.arange(MOST_COLOURS + 1)
    picture = np.stack((many >> 16, many >> 8 & 255, many & 255), 1).astype(np.uint8)[None]
    assert Palettes.of(picture) is None
    assert Palettes.of(picture[:, 1:]) is not None
    assert Palettes.of(np.ascontiguousarray(skimage.data.astronaut())) is None
