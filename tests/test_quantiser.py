"""Q of every kind: what symbols stand for, and where latents end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from l2c import transforms
from l2c.architectures import LATENT_MAX, MEAN_LATENT_MAX, MEAN_UNITS
from l2c.transforms import LEVELS, WHOLE_NUMBERS, Quantiser
from l2c.transforms.quantiser import SIXTEENTHS

ALL: list[Quantiser] = [LEVELS, WHOLE_NUMBERS, SIXTEENTHS]


@pytest.fixture
def y() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 30.0 * torch.randn(2, 5, 6, 7, generator=generator)


@pytest.mark.parametrize("quantiser", ALL)
def test_there_and_back(quantiser: Quantiser, y: torch.Tensor) -> None:
    symbols = quantiser.quantise(y, 8)
    assert torch.from_numpy(np.empty(0, quantiser.dtype)).dtype == symbols.dtype
    levels = quantiser.dequantise(symbols, 8)
    assert torch.equal(levels, quantiser.to_levels(y, 8)) and levels.dtype == torch.float32
    assert torch.equal(quantiser.quantise(levels, 8), symbols)  # levels stay
    step = 1.0 / MEAN_UNITS if quantiser is SIXTEENTHS else 1.0
    assert float((levels - y).abs().max()) <= step / 2
    assert bool((quantiser.clipping(y, 8) == 0).all())
    zero = torch.full((1, 1, 1, 1), quantiser.zero(8))
    assert float(quantiser.dequantise(zero.to(symbols.dtype), 8)) == 0.0


@pytest.mark.parametrize(
    ("quantiser", "most"), [(LEVELS, 127.0), (WHOLE_NUMBERS, LATENT_MAX), (SIXTEENTHS, MEAN_LATENT_MAX)]
)
def test_limits(quantiser: Quantiser, most: float) -> None:
    """Symbols end where the coder's do, and what is lost there is told."""
    y = torch.tensor([1e9, -1e9, most, 0.0]).view(1, 1, 2, 2)
    levels = quantiser.to_levels(y, 8)
    assert float(levels.max()) == most and float(levels.min()) == quantiser.lowest and quantiser.end == most + 1.0
    clipped = quantiser.clipping(y, 8)[0]
    assert bool((clipped[0] > 1e6).all()) and bool((clipped[1] == 0).all())


@pytest.mark.parametrize("quantiser", ALL)
def test_mask_and_used_channels(quantiser: Quantiser, y: torch.Tensor) -> None:
    tau = torch.full((2, 1, 6, 7), 0.4)
    kept = 2  # of five channels
    symbols = quantiser.quantise(100.0 + y.abs(), 8, tau)
    assert bool((symbols[:, kept:] == quantiser.zero(8)).all()) and bool((symbols[:, :kept] != quantiser.zero(8)).any())
    assert quantiser.used_channels(symbols[0], 8) == kept
    assert quantiser.used_channels(torch.full_like(symbols[0], quantiser.zero(8)), 8) == 0


def test_which_is_final() -> None:
    """Only where the coder rounds are symbols not what is coded."""
    assert [quantiser.is_final for quantiser in ALL] == [True, True, False]
    assert [quantiser.least_bits for quantiser in ALL] == [1, 8, 8]


def test_families_name_theirs() -> None:
    def of(rounding: str) -> Quantiser:
        return transforms.HyperpriorTransformConfig(16, 6, "mbt2018", 4, (1,), rounding=rounding).quantiser

    assert of("whole") is WHOLE_NUMBERS and of("mean") is SIXTEENTHS
    assert transforms.PaperConfig(4, 3, 8, 1).quantiser is LEVELS
