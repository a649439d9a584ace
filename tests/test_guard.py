"""No quality gives a worse picture than a lower one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import skimage.data
import torch

import l2c
from l2c import guard, transforms
from l2c.evaluate.measures import measure
from l2c.guard import Look, QualityGuard
from l2c.objective import MSSSIM_LMBDA_RATIO
from l2c.train.drawn import draw


@pytest.fixture(scope="module")
def codec() -> l2c.Codec:
    return l2c.Codec()


class Walk:
    """A guard over stated costs, linear in between, and the qualities that it looked at."""

    def __init__(self, costs: dict[int, float], clipped: dict[int, float] | None = None) -> None:
        self.guard, self.seen = QualityGuard(), []
        self._costs, self._clipped = costs, clipped or {}

    def settle(self, quality: int, simple: bool) -> int:
        while (level := self.guard.next_look(quality, simple)) is not None:
            self.seen.append(level)
            known = sorted(self._costs)
            cost = float(np.interp(level, known, [self._costs[q] for q in known]))
            self.guard.report(level, Look(cost, self._clipped.get(level, 0.0)))
        return self.guard.settled[quality]


def test_falling_costs_keep_the_quality() -> None:
    walk = Walk({0: 10.0, 1000: 1.0})
    assert walk.settle(930, simple=False) == 930
    assert sorted(walk.seen) == [850, 900, 930]  # two looks without gain end the walk
    assert walk.guard.settled == {930: 930}


def test_the_best_lower_quality_is_found_through_all_that_clips() -> None:
    costs = {0: 9.0, 600: 1.0, 650: 5.0, 1000: 20.0}
    assert Walk(costs, dict.fromkeys(range(650, 1001), 1.0)).settle(1000, simple=False) == 600


def test_a_walk_crosses_humps_while_latents_clip_and_for_simple_pictures() -> None:
    costs = {0: 9.0, 500: 1.0, 550: 8.0, 700: 7.0, 800: 4.0, 1000: 3.0}
    for simple, clips, expected in ((False, {}, 1000), (True, {}, 500)):
        assert Walk(costs, clips).settle(1000, simple) == expected
    assert Walk(costs, dict.fromkeys(range(550, 1001), 1.0)).settle(1000, simple=False) == 500


def test_settled_qualities_never_cost_more_than_lower_ones() -> None:
    rng = np.random.default_rng(0)
    costs = dict(zip(range(0, 1001, 50), rng.random(21)))
    walk = Walk(costs)
    settled = [costs[walk.settle(quality, simple=True)] for quality in range(0, 1001, 50)]
    assert settled == sorted(settled, reverse=True)
    assert len(walk.seen) == len(set(walk.seen))  # each quality is looked at once


def test_of_equal_costs_the_lowest_quality_counts() -> None:
    walk = Walk({0: 5.0, 100: 0.0, 1000: 0.0})
    assert walk.settle(770, simple=True) == 100
    assert walk.settle(0, simple=True) == 0


def test_what_is_looked_at_of_a_picture() -> None:
    small = np.zeros((512, 1024, 3), np.uint8)
    assert guard.sample(small).shape == (1, 512, 1024, 3)
    for shape in ((2000, 3000), (1, 1 << 20), (1 << 20, 3), (4000, 130)):
        height, width = shape
        pixels = np.arange(height * width, dtype=np.int64).reshape(height, width, 1)
        crops = guard.sample(np.repeat(pixels, 3, axis=2))  # type: ignore[arg-type]
        assert 1 << 17 <= crops[..., 0].size <= 1 << 19
        assert len(np.unique(crops)) == crops[..., 0].size  # no pixel twice
        first = crops[:, 0, 0, 0]
        assert not (first // width % 64).any()
        assert not (first % width % 64).any()
        assert crops.max() > 0.8 * pixels.max() or shape == (1 << 20, 3)


def test_flat_and_small() -> None:
    flat = np.full((64, 64, 3), 7, np.uint8)
    flat[10:20, 10:20] = 200
    assert guard.is_flat(flat)
    assert guard.is_flat(np.zeros((1, 1, 3), np.uint8))
    assert not guard.is_flat(skimage.data.coffee())
    assert not guard.is_flat(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2))
    curve = [(0.0, 0.1), (1000.0, 10.0)]
    assert guard.is_small(0.3, 500, curve)  # of 1 bpp
    assert not guard.is_small(0.4, 500, curve)
    assert not guard.is_small(0.0, 500, curve[:1])


def test_clipping_is_what_lies_beyond_rounding() -> None:
    y = torch.tensor([127.5, 129.5, -128.5, -130.5]).view(1, 4, 1, 1)
    expected = 12.0 * (0.0 + 4.0 + 0.0 + 4.0) / 4.0
    assert transforms.clipping(y, 8).item() == pytest.approx(expected)
    beyond = 12.0 * (7.5**2 + 9.5**2) / 16.0**2 / 4.0  # symbols end at 112 there, which rounds up to 120
    assert transforms.clipping(y, 4).item() == pytest.approx(beyond)
    half = torch.full((1, 1, 1, 1), 0.25)  # of the channels one is kept
    assert transforms.clipping(y, 8, half).item() == 0.0


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10.0 * np.log10(255.0**2 / max(np.square(a.astype(float) - b).mean(), 1e-2)))


def on_white() -> np.ndarray:
    """A thing on white, as shops show it."""
    picture = np.full((128, 128, 3), 255, np.uint8)
    picture[32:96, 32:96] = skimage.data.astronaut()[:64, 160:224]
    return picture


@pytest.mark.parametrize("name", ["green", "half", "product"])
def test_quality_never_makes_a_picture_worse(codec, name: str) -> None:
    green, half = (np.full((96, 96, 3), colour, np.uint8) for colour in ((0, 255, 0), 0))
    half[:, 48:] = 255
    picture = {"green": green, "half": half, "product": on_white()}[name]
    lossless = "never" if name == "product" else "auto"
    results = [
        codec.encode_detailed(picture, quality=q, metric="psnr", lossless=lossless) for q in (20, 50, 80, 90, 100)
    ]
    values = [psnr(picture, codec.decode(result.data)) for result in results]
    assert all(later > value - 0.1 for value, later in itertools.pairwise(values))
    assert values[-1] > {"green": 50.0, "half": 33.0, "product": 37.0}[name]
    assert all(result.quality == codec_quality(result.data) for result in results)


def test_coarse_qualities_of_a_drawn_picture(codec) -> None:
    picture = draw("ui", 256, np.random.default_rng(7))

    files = [codec.encode(picture, quality=q, metric="msssim", lossless="never") for q in (0, 2, 5, 8)]
    values = [measure(picture, codec.decode(file), ("ms-ssim-rgb",))["ms-ssim-rgb"] for file in files]
    assert values == sorted(values)


def test_a_look_sees_what_a_decoder_shows(codec) -> None:
    half = np.zeros((256, 256, 3), np.uint8)
    half[:, 128:] = 255
    for quality in (10, 20, 60):
        encoded = codec.encode_detailed(half, quality=quality, metric="msssim", lossless="never")
        shown = measure(half, codec.decode(encoded.data), ("ms-ssim-rgb",))["ms-ssim-rgb"]
        look = codec.transform_stage.look(half, 8, 8, round(10 * encoded.quality))
        assert look.cost == pytest.approx(MSSSIM_LMBDA_RATIO * (1.0 - shown), rel=1e-3)


def codec_quality(data: bytes) -> float:
    return l2c.format.bitstream.read_bitstream(data).header.quality / 10.0


def test_more_bytes_never_make_a_picture_worse(codec) -> None:
    picture, best = on_white(), 0.0
    for bpp in (0.5, 1.0, 4.0):
        result = codec.encode_detailed(picture, bpp=bpp, metric="psnr", lossless="never")
        value = psnr(picture, codec.decode(result.data))
        assert value > best - 0.1
        best = max(best, value)
    assert not result.target_reached
    assert result.reason == f"the best quality of this model needs only {result.bpp:.4f} bpp"
    assert value > 45.0


def test_a_rate_above_what_is_needed_where_a_lower_quality_is_best(codec) -> None:
    result = codec.encode_detailed(np.full((64, 64, 3), 255, np.uint8), bpp=4.0, metric="psnr", lossless="never")
    assert not result.target_reached
    assert result.quality < 100.0
    assert result.reason == f"this picture is best at quality {result.quality:g}, which needs only {result.bpp:.4f} bpp"


def test_adaptation_starts_from_the_settled_quality(codec) -> None:
    """Of the corners of RGB some are best at a lower quality, whatever the weights; which ones depends on them."""
    kept, settled = l2c.EncodeOptions(quality=100, metric="psnr", lossless="never"), 0
    for colour in itertools.product((0, 255), repeat=3):
        picture = np.full((64, 64, 3), colour, np.uint8)
        plain, adapted = (codec.encode_detailed(picture, **kept, effort=effort) for effort in (0, 1))
        assert adapted.quality == plain.quality == codec_quality(adapted.data)
        assert psnr(picture, codec.decode(adapted.data)) > 40.0
        settled += plain.quality < 100.0
    assert settled


def test_photographs_cost_no_look(codec, monkeypatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(codec.transform_stage, "look", lambda pixels, mu, bits, level: looks.append(level))
    picture = skimage.data.coffee()[:256, :256]
    for quality in (0, 50, 100):
        assert codec.encode_detailed(picture, quality=quality).quality == quality
    assert not looks
