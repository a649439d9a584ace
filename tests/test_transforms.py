"""E, I, D: published sizes, cost per pixel, quantiser and mask, forward shapes for any s and c."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from l2c import transforms
from l2c.config import ModelConfig
from l2c.errors import ConfigError
from l2c.transforms import BlockConfig, TransformConfig
from l2c.transforms.block import BlockDecoder, BlockEncoder, block_basis
from l2c.transforms.paper import PaperEncoder

CODECS = ("c8b8", "c6b8", "c3b4", "c1b4")


def count(module: torch.nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


@pytest.mark.parametrize("name", CODECS)
def test_paper_parameter_counts(name: str, configs) -> None:
    """L2C IV: E 1.6 M, I 1.6 M, P 1.9 M, D 2.7 M; within 5 %."""
    config = ModelConfig.from_file(configs / f"{name}.json")
    transform = transforms.Transform(config.transform)
    encoder = transform.encoder
    assert isinstance(encoder, PaperEncoder)
    importance = count(encoder.importance)
    assert count(encoder) - importance == pytest.approx(1.6e6, rel=0.05)
    if config.transform.c > 1:
        assert importance == pytest.approx(1.6e6, rel=0.05)
    else:
        assert importance == 0
    assert count(transform.decoder) == pytest.approx(2.7e6, rel=0.05)
    assert count(config.float_model()) == pytest.approx(1.9e6, rel=0.05)
    assert sum(p.numel() for n, p in transform.decoder.named_parameters() if n.endswith("bias")) == 1740


def test_default_cost_per_pixel(configs) -> None:
    """DESIGN 2: D <= 60, E with I <= 60, P <= 30 kMAC per pixel."""
    config = ModelConfig.from_file(configs / "default.json")
    encoder, decoder = transforms.transform_costs(config.transform)
    assert 5 < encoder <= 60
    assert 5 < decoder <= 60
    p = config.float_model()
    z = torch.zeros(1, config.transform.c, 32, 32)
    header = torch.tensor([[500, 0, 8]])
    pixels = (32 * config.transform.s) ** 2
    assert 1 < transforms.kmac_per_pixel(lambda: p.num_bits(z, z, header), pixels) <= 30


@pytest.mark.parametrize("s, c", [(2, 5), (4, 8), (8, 64), (16, 192), (32, 20)])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("local_gain", [False, True])
def test_block_family_shapes(s: int, c: int, mask: bool, local_gain: bool) -> None:
    config = BlockConfig(s, c, 8, 1, 1, 4, mask=mask, local_gain=local_gain)
    transform = transforms.Transform(config)
    cond = transforms.condition(torch.tensor([0.001, 0.1]), torch.tensor([0.0, 1.0]))
    y, tau = transform.encoder(torch.rand(2, 3, 2 * s, 3 * s), cond)
    assert y.shape == (2, c, 2, 3)
    assert (tau is not None) == mask
    assert transform.decoder(y.round(), cond).shape == (2, 3, 2 * s, 3 * s)


@pytest.mark.parametrize("companding", [False, True])
@pytest.mark.parametrize("local_gain", [False, True])
def test_block_family_under_autocast(companding: bool, local_gain: bool) -> None:
    """bfloat16 in E and D, forwards and backwards: about what float32 gives."""
    torch.manual_seed(0)
    transform = transforms.Transform(BlockConfig(8, 24, 16, 1, 1, 8, local_gain=local_gain, companding=companding))
    cond = transforms.condition(torch.tensor([0.001, 0.1]), torch.tensor([0.0, 1.0]))
    x = torch.rand(2, 3, 16, 24)
    y = transform.encoder(x, cond)[0]
    x_hat = transform.decoder(y.round(), cond)
    with torch.autocast("cpu", torch.bfloat16):
        low = transform.encoder(x, cond)[0]
        low_hat = transform.decoder(y.round(), cond)
    low_hat.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in transform.parameters())
    assert transform.decoder.first.weight.grad.abs().sum() > 0
    torch.testing.assert_close(low.float(), y, rtol=0.02, atol=0.05)
    torch.testing.assert_close(low_hat.float(), x_hat, rtol=0.0, atol=0.02)
    assert not torch.equal(low_hat.float(), x_hat)


def test_local_gain() -> None:
    """Starts at 1 and stays within 1/8..8; E scales its coefficients with it, D the latents, each by its own."""
    transform = transforms.Transform(BlockConfig(8, 12, 16, 1, 1, 0, mask=False, local_gain=True))
    plain = transforms.Transform(BlockConfig(8, 12, 16, 1, 1, 0, mask=False))
    missing, unexpected = plain.load_state_dict(transform.state_dict(), strict=False)
    assert not missing and unexpected == ["encoder.local_gain.weight", "decoder.local_gain.weight"]
    x, cond = torch.rand(2, 3, 32, 40), transforms.condition(torch.tensor([0.001, 0.1]), torch.tensor([0.0, 1.0]))
    y = torch.randint(-9, 9, (2, 12, 4, 5)).float()
    for ours, theirs, data in (
        (transform.encoder, plain.encoder, x),
        (transform.decoder, plain.decoder, y),
    ):
        assert isinstance(ours, BlockEncoder | BlockDecoder) and ours.local_gain is not None
        with torch.no_grad():
            before, same = theirs(data, cond), ours(data, cond)
            ours.local_gain.weight.normal_(0.0, 9.0)
            moved = ours(data, cond)
            gains = ours.local_gain(torch.randn(2, 16, 9, 9))
        if ours is transform.encoder:
            before, same, moved = before[0], same[0], moved[0]
        assert torch.equal(same, before) and not torch.allclose(moved, before)
        assert 1 / 8.001 <= float(gains.min()) < 1 / 7 and 7 < float(gains.max()) <= 8.001
    assert transforms.num_biases(transform.decoder) == transforms.num_biases(plain.decoder)


def companding_transform(**changes: object) -> transforms.Transform:
    torch.manual_seed(0)
    config = BlockConfig(8, 96, 16, 1, 1, 8, mask=False, local_gain=True, companding=True)
    return transforms.Transform(dataclasses.replace(config, **changes))


class TestCompanding:
    LMBDAS = torch.logspace(-5, 3, 33)

    def conditions(self) -> torch.Tensor:
        return transforms.condition(self.LMBDAS, torch.linspace(0, 1, 33))

    def without_residuals(self, transform: transforms.Transform) -> transforms.Transform:
        for layer in (transform.encoder.head, transform.decoder.head, transform.decoder.last):
            for parameter in layer.parameters():
                torch.nn.init.zeros_(parameter)
        return transform

    @pytest.mark.parametrize("trained", [False, True])
    def test_no_picture_can_clip(self, trained: bool) -> None:
        """Each coefficient's worst picture, at gains and local gains beyond any that training would ask for."""
        transform = self.without_residuals(companding_transform())
        if trained:  # as if training had blown everything up
            with torch.no_grad():
                transform.encoder.transform.weight.mul_(3.0).add_(0.3 * torch.randn(192, 192, 1, 1))
                transform.encoder.local_gain.weight.normal_(0.0, 9.0)
                transform.decoder.companding.gain.fc2.weight.normal_(0.0, 9.0)
        weight = transform.encoder.transform.weight[:96, :, 0, 0]
        worst = F.pixel_shuffle((weight.sign() / 2 + 0.5)[:, :, None, None].detach(), 8)  # [96, 3, 8, 8]
        x = torch.cat((worst, 1.0 - worst, torch.rand(8, 3, 8, 8).round()))
        for cond in self.conditions():
            with torch.no_grad():
                y, _ = transform.encoder(x, cond[None].expand(len(x), -1))
            assert float(y.abs().max()) <= 127.01
        if not trained:
            assert float(y[:96].diagonal(dim1=0, dim2=1).abs().min()) > 125.0  # the range is used

    def test_inverse(self) -> None:
        companding = companding_transform().decoder.companding
        cond = self.conditions()
        bound = companding.bound.expand(33, -1, -1, -1)
        local = torch.randn(33, 96, 1, 1)
        for gains in (companding.log_gain(cond), companding.log_gain(cond, local)):
            for share in (-1.0, -0.3, -1e-3, 0.0, 1e-4, 0.5, 1.0):
                y = companding.to_latents(share * bound, gains)
                torch.testing.assert_close(companding.to_coefficients(y, gains), share * bound, rtol=1e-4, atol=1e-3)

    def test_steps_shrink_as_the_gain_grows(self) -> None:
        """At every coefficient, so no level of contrast gets worse as quality rises."""
        companding = companding_transform().decoder.companding
        gains = companding.log_gain(self.conditions())
        shares = torch.linspace(0.0, 1.0, 40)[:, None, None, None, None]
        u = (shares * companding.bound).expand(-1, 33, -1, -1, -1).clone().requires_grad_()
        companding.to_latents(u, gains).sum().backward()
        step = 1.0 / u.grad[..., 0, 0]  # [shares, lambdas, c]: coefficients a latent
        plain = ~companding.is_mean[0, :, 0, 0]
        rises = step[:, 1:] / step[:, :-1] - 1.0
        assert float(rises[:, :, plain].max()) <= 1e-4
        assert float(step[0, -1, plain].max()) < 1.9 and float(step[0, -1, ~plain].max()) < 14.1

    def test_uniform_up_to_the_knee(self) -> None:
        """And smooth there: one slope on both sides."""
        companding = companding_transform().decoder.companding
        gain = companding.log_gain(self.conditions()[16:17])
        v = torch.tensor([-60.0, -28.0, -27.9, 0.3, 20.0, 28.0, 60.0])[:, None, None, None].expand(-1, 96, -1, -1)
        u = (v * (-gain).exp()).detach().requires_grad_()
        y = companding.to_latents(u, gain)
        y.sum().backward()
        plain = ~companding.is_mean[0, :, 0, 0]
        beyond = 28.0 * (1.0 + math.log(60.0 / 28.0))
        expected = torch.tensor([-beyond, -28.0, -27.9, 0.3, 20.0, 28.0, beyond])[:, None].expand(-1, int(plain.sum()))
        torch.testing.assert_close(y[:, plain, 0, 0], expected, rtol=1e-5, atol=1e-5)
        slopes = torch.tensor([28.0 / 60.0, 1.0, 1.0, 1.0, 1.0, 1.0, 28.0 / 60.0])[:, None] * gain[:, plain, 0, 0].exp()
        torch.testing.assert_close(u.grad[:, plain, 0, 0], slopes, rtol=1e-4, atol=0.0)

    def test_slope_at_zero(self) -> None:
        """Most latents are exactly 0: the gradient that E learns from must pass there."""
        companding = companding_transform().decoder.companding
        gains = companding.log_gain(self.conditions())
        y = torch.zeros(33, 96, 1, 1, requires_grad=True)
        companding.to_coefficients(y, gains).sum().backward()
        torch.testing.assert_close(y.grad, (-gains).exp())

    def test_corrections_shrink_with_the_step(self) -> None:
        """Above lambda 0.01 local gains and residuals of either network weigh as the square root of 1 / lambda."""
        transform = companding_transform()
        companding = transform.decoder.companding
        cond = transforms.condition(torch.tensor([1e-4, 0.01, 0.04, 1.0]), torch.zeros(4))
        factors = companding.correction(cond).flatten()
        torch.testing.assert_close(factors, torch.tensor([1.0, 1.0, 0.5, 0.1]))
        torch.nn.init.zeros_(companding.gain.fc2.weight)
        local = torch.full((4, 96, 1, 1), -1.0)  # far below the bound, so it is what it says
        changed = (companding.log_gain(cond, local) - companding.log_gain(cond))[:, -1].flatten()
        torch.testing.assert_close(changed[:3], -factors[:3], rtol=0.02, atol=0.0)
        torch.testing.assert_close(companding.log_gain(cond, local)[:, 0], companding.log_gain(cond)[:, 0])
        y = torch.zeros(4, 96, 2, 2)
        with torch.no_grad():
            for layer in (transform.decoder.head, transform.decoder.last):
                layer.weight.zero_()
                layer.bias.fill_(0.01)
            moved = (transform.decoder(y, cond) - 0.5).flatten(1).norm(dim=1)
        torch.testing.assert_close(moved / moved[0], factors)

    def test_extreme_colours_are_exact(self) -> None:
        """Black and white at every rate; all corners of RGB once the steps are fine enough."""
        transform = self.without_residuals(companding_transform())
        corners = torch.tensor([[(k >> c) & 1 for c in range(3)] for k in range(8)]).float()
        x = corners[:, :, None, None].expand(-1, -1, 16, 16)
        for lmbda, cond in zip(self.LMBDAS, self.conditions()):
            conds = cond[None].expand(8, -1)
            with torch.no_grad():
                y, _ = transform.encoder(x, conds)
                x_hat = transform.decoder(y.round().clamp(-128, 127), conds)
            error = 255.0 * (x_hat - x).abs().amax(dim=(1, 2, 3))
            assert float(error[[0, 7]].max()) < 0.01, lmbda
            if lmbda > 0.02:
                assert float(error.max()) < 0.01, lmbda
        transform.decoder.companding.snapped = lambda wanted: wanted  # type: ignore[method-assign]
        with torch.no_grad():
            y, _ = transform.encoder(x, transforms.condition(torch.full((8,), 0.01), torch.zeros(8)))
        assert float((y - y.round()).abs().max()) > 0.1  # without the snapping they would not be

    def test_one_gain_with_one_name(self) -> None:
        transform = companding_transform()
        names = [name for name, _ in transform.named_parameters() if ".gain." in name]
        assert names and all(name.startswith("decoder.companding.gain.") for name in names)
        x, cond = torch.rand(1, 3, 16, 16), transforms.condition(torch.tensor([0.01]), torch.zeros(1))
        twin = copy.deepcopy(transform)
        with torch.no_grad():
            before = transform.encoder(x, cond)[0]
            transform.decoder.companding.gain.fc2.bias.add_(0.5)
            assert not torch.equal(transform.encoder(x, cond)[0], before)
            assert torch.equal(twin.encoder(x, cond)[0], before)
            twin.decoder.companding.gain.fc2.bias.add_(0.5)
            assert torch.equal(twin.encoder(x, cond)[0], transform.encoder(x, cond)[0])

    def test_gradients_are_finite(self) -> None:
        transform = companding_transform()
        for x in (torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16), torch.full((2, 3, 16, 16), 127.5 / 255)):
            cond = transforms.condition(torch.tensor([5e-5, 2.0]), torch.tensor([0.0, 1.0]))
            y, _ = transform.encoder(x, cond)
            transform.decoder(y + (y.round() - y).detach(), cond).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in transform.parameters() if p.grad is not None)

    def test_the_paper_family_has_none(self) -> None:
        with pytest.raises(ConfigError, match="companding"):
            TransformConfig.from_mapping({"family": "paper", "s": 4, "c": 8, "width": 192, "companding": True}, "model")


def test_block_basis_is_orthonormal() -> None:
    for s in (2, 4, 8, 16):
        basis, frequency = block_basis(s)
        torch.testing.assert_close(basis @ basis.T, torch.eye(3 * s * s), atol=1e-5, rtol=0)
        assert float(frequency[0]) == 0.0
        # The first function is the mean of all three colours.
        torch.testing.assert_close(basis[0], torch.full((3 * s * s,), 1 / (3 * s * s) ** 0.5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("b", range(1, 9))
def test_quantise_round_trip(b: int) -> None:
    symbols = torch.arange(1 << b, dtype=torch.uint8)
    latents = transforms.dequantise(symbols, b)
    assert torch.equal(transforms.quantise(latents, b), symbols)
    assert float(latents.min()) == -128.0
    assert float(latents.max()) == 128.0 - (1 << (8 - b))
    assert int(transforms.quantise(torch.zeros(1), b)) == 1 << (b - 1)  # a masked latent is exactly a level
    extremes = transforms.quantise(torch.tensor([-1e9, 1e9]), b)
    assert extremes.tolist() == [0, (1 << b) - 1]


def test_importance_mask() -> None:
    tau = torch.tensor([0.0, 0.24, 0.26, 0.5, 1.0]).view(5, 1, 1, 1).requires_grad_()
    mask = transforms.importance_mask(tau, 4)
    assert mask.flatten(1).sum(dim=1).tolist() == [0, 1, 1, 2, 4]  # round(c tau)
    assert mask[3].flatten().tolist() == [1, 1, 0, 0]  # the first channels are kept
    mask.sum().backward()
    # d/dtau of sum_k clamp(c tau - k, 0, 1) is c where 0 < c tau - k < 1 for some k.
    assert tau.grad is not None
    assert tau.grad.flatten().tolist() == [0, 4, 4, 0, 0]


def test_modulators_start_at_one_and_depend_on_the_condition() -> None:
    modulator = transforms.modulators.Modulator(6, 8)
    cond = transforms.condition(torch.tensor([0.001, 0.1]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(modulator.scales(cond), torch.ones(2, 6, 1, 1), atol=0.2, rtol=0)
    assert not torch.equal(modulator.scales(cond)[0], modulator.scales(cond)[1])


def test_used_channels() -> None:
    symbols = torch.full((5, 3, 3), 128, dtype=torch.uint8)
    assert transforms.LEVELS.used_channels(symbols, 8) == 0
    symbols[3, 1, 1] = 127
    assert transforms.LEVELS.used_channels(symbols, 8) == 4
