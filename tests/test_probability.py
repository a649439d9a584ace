"""P in float: it is a proper distribution, causal, and blind to padding."""

import dataclasses

import pytest
import torch

from l2c.config import ModelConfig
from l2c.entropy.multiscale import MultiscaleConfig
from l2c.entropy.multiscale.float_model import ProbabilityModel, compand
from l2c.format.levels import MAX_QUALITY
from l2c.ops.contract import CODING_ORDER, PLANE_ONE, constant_planes, num_planes
from l2c.ops.reference import mixture_likelihood, neighbour_bits
from l2c.transforms import BlockConfig

CONFIG = ModelConfig("p", BlockConfig(8, 7, 8, 1, 1), MultiscaleConfig(3, (2, 5), 3, 12), bits=8)
HEADER = torch.tensor([[300, 2, 8]])


def model(config: ModelConfig = CONFIG, seed: int = 0) -> ProbabilityModel:
    torch.manual_seed(seed)
    p = config.float_model()
    with torch.no_grad():
        for parameter in p.parameters():
            parameter.mul_(2.0)  # far enough from the start that every input matters
    return p


def latents(height: int, width: int, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return (8.0 * torch.randn(1, 7, height, width)).round().clamp(-128, 127)


@pytest.mark.parametrize("b", range(1, 9))
def test_likelihoods_of_all_symbols_sum_to_one(b: int) -> None:
    torch.manual_seed(b)
    params = torch.randn(1, 9, 40, 1) * torch.tensor([1.0] * 3 + [60.0] * 3 + [3.0] * 3).view(1, 9, 1, 1)
    step = 2 ** (8 - b)
    symbols = (torch.arange(1 << b) - (1 << (b - 1))) * float(step)
    total = sum(mixture_likelihood(torch.full((1, 1, 40, 1), float(v)), params, 3, torch.tensor([b])) for v in symbols)
    torch.testing.assert_close(total, torch.ones(1, 1, 40, 1), atol=2e-4, rtol=0)


def test_every_latent_is_coded_once() -> None:
    for height, width in ((1, 1), (2, 3), (9, 16), (13, 5)):
        z = latents(height, width)
        groups = list(model().groups(z, z, HEADER))
        assert sum(int(g.inside.sum()) * g.target.shape[1] for g in groups) == z.numel()
        assert len(groups) == 1 + 3 * len(CODING_ORDER) * 2


def test_groups_say_which_latents_they_cover() -> None:
    for height, width in ((1, 1), (2, 3), (9, 16), (13, 5)):
        z = torch.arange(7.0 * height * width).view(1, 7, height, width)
        canvas = torch.full_like(z, -1.0)
        for group in model().groups(z, z, HEADER):
            part = canvas[(slice(None), *group.place)]
            assert (part == -1).all()
            part.copy_(group.target[:, :, : part.shape[2], : part.shape[3]])
        torch.testing.assert_close(canvas, z)


@pytest.mark.parametrize("b", (8, 4, 1))
def test_bits_of_neighbouring_levels(b: int) -> None:
    """What a latent would cost one level up and down, the ends of the range included."""
    torch.manual_seed(b)
    params = torch.randn(1, 9, 40, 1) * torch.tensor([1.0] * 3 + [60.0] * 3 + [3.0] * 3).view(1, 9, 1, 1)
    level, bits = 2.0 ** (8 - b), torch.tensor([b])

    def cost(x: torch.Tensor) -> torch.Tensor:
        return -mixture_likelihood(x, params, 3, bits).log2()

    for value in {-128.0, -128.0 + level, 0.0, 128.0 - level}:
        x = torch.full((1, 1, 40, 1), value)
        here, rise, fall = neighbour_bits(x, params, 3, bits)
        torch.testing.assert_close(here, cost(x), atol=2e-3, rtol=1e-3)
        if value + level < 128:
            torch.testing.assert_close(here + rise, cost(x + level), atol=2e-3, rtol=1e-3)
        else:
            assert bool((rise == float("inf")).all())
        if value > -128:
            torch.testing.assert_close(here + fall, cost(x - level), atol=2e-3, rtol=1e-3)
        else:
            assert bool((fall == float("inf")).all())


def test_context_is_causal() -> None:
    """Parameters of a group do not change when its own or later latents do (the paper's Eq. 5)."""
    p = model()
    z = latents(8, 8)
    before = [g.params for g in p.groups(z, z, HEADER)]
    changed = z.clone()
    changed[:, 2:, 1, 0] += 5.0  # finest scale, position 2 (odd row, even column), second channel group: coded last
    after = [g.params for g in p.groups(changed, z, HEADER)]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    changed = z.clone()
    changed[:, 0, 1, 1] += 5.0  # finest scale, position 3, first channel group: coded first
    after = [g.params for g in p.groups(changed, z, HEADER)]
    same = [torch.equal(a, b) for a, b in zip(before, after)]
    assert same == [True] * (len(same) - 5) + [False] * 5


def test_padding_does_not_matter() -> None:
    p = model()
    sizes = [(9, 6), (12, 12), (1, 5)]
    batch = torch.zeros(3, 7, 12, 12)
    inside = torch.zeros(3, 1, 12, 12)
    alone = []
    for i, (h, w) in enumerate(sizes):
        z = latents(h, w, seed=i)
        batch[i, :, :h, :w] = z[0]
        inside[i, :, :h, :w] = 1
        alone.append(float(p.num_bits(z, z, HEADER).detach()))
    together = p.num_bits(batch, batch, HEADER.expand(3, 3), inside)
    torch.testing.assert_close(together, torch.tensor(alone), rtol=1e-4, atol=1e-2)


def test_header_integers_matter() -> None:
    p, z = model(), latents(8, 8)
    bits = {h: float(p.num_bits(z, z, torch.tensor([h]))) for h in ((300, 2, 8), (301, 2, 8), (300, 3, 8), (300, 2, 7))}
    assert len(set(bits.values())) == 4


def test_constant_planes() -> None:
    for quality in (0, 1, 249, 250, 251, 999, MAX_QUALITY):
        planes = constant_planes(quality, 4, 8, 1, 3)
        assert len(planes) == num_planes(3)
        assert all(0 <= v <= PLANE_ONE for v in planes)
        assert abs(sum(planes[:5]) - PLANE_ONE) <= 1  # hats add up
    assert constant_planes(0, 0, 8, 3, 3)[-4:] == [0, 0, 0, PLANE_ONE]


def test_compand_is_odd_monotone_and_fits_int8() -> None:
    z = torch.arange(-128.0, 128.0)
    values = compand(z)
    assert bool((values.diff() > 0.45).all())
    assert float(values.abs().max()) < 127.0
    torch.testing.assert_close(compand(-z), -values)


def test_uniform_prior_costs_b_bits_each() -> None:
    config = dataclasses.replace(CONFIG, probability=dataclasses.replace(CONFIG.probability, prior="uniform"))
    z = torch.zeros(1, 7, 1, 1)
    bits = model(config).num_bits(z, z, torch.tensor([[0, 0, 6]]))
    assert float(bits) == 7 * 6


def test_gradients_reach_every_parameter() -> None:
    p, z = model(), latents(8, 8)
    p.num_bits(z, z, HEADER).sum().backward()
    assert all(q.grad is not None and bool(q.grad.abs().sum() > 0) for q in p.parameters())
