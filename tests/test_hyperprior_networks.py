"""The hyperprior family in float: g_a, g_s and their modulators, and the models of rate, on small random networks.

That the arithmetic is CompressAI's is checked against CompressAI itself, by checks/compressai.py; here it is checked
against the papers' formulas, and the published numbers of parameters.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from l2c import transforms
from l2c.architectures import ARCHITECTURES, LATENT_MAX, nearest, tenths_of
from l2c.config import ModelConfig
from l2c.entropy.hyperprior.config import HyperpriorConfig
from l2c.entropy.hyperprior.float_model import (
    LIKELIHOOD_MIN,
    PERCENTILE,
    SCALE_MIN,
    EntropyBottleneck,
    HyperpriorModel,
    Level,
    MaskedConv,
    gaussian_likelihood,
)
from l2c.ops import lower_bound
from l2c.train.losses import Conditions
from l2c.transforms import Adaptation, HyperpriorTransformConfig, Transform, check_contract, num_biases, num_modulators
from l2c.transforms.hyperprior.layers import GDN
from l2c.transforms.hyperprior.networks import LambdaModulator, upsampling_places

# OML.md, section 1: parameters at each published pair of sizes.
PUBLISHED = {
    "bmshj2018-factorized": (2_998_147, 7_030_531),
    "bmshj2018-hyperprior": (5_075_843, 11_816_323),
    "mbt2018-mean": (7_028_003, 17_561_699),
    "mbt2018": (14_130_467, 25_504_596),
    "cheng2020-anchor": (11_833_149, 26_598_956),
    "cheng2020-attn": (13_183_293, 29_631_788),
}
QUALITIES = (1, 3, 6)


def sizes(architecture: str) -> tuple[int, int]:
    """Small N and M."""
    return (8, 8) if ARCHITECTURES[architecture].residual else (6, 10)


def make_transform(architecture: str, qualities: tuple[int, ...] = QUALITIES, **changes: object) -> Transform:
    n, m = sizes(architecture)
    torch.manual_seed(0)
    return Transform(HyperpriorTransformConfig(16, m, architecture, n, qualities, **changes)).requires_grad_(False)


def make_model(architecture: str, qualities: tuple[int, ...] = QUALITIES) -> HyperpriorModel:
    n, m = sizes(architecture)
    torch.manual_seed(1)
    return HyperpriorModel(HyperpriorConfig(architecture, n, qualities), m).eval()


def conditions(*qualities: int) -> Tensor:
    """As training makes them, of qualities 0..1000."""
    config = ModelConfig(
        "any",
        HyperpriorTransformConfig(16, 8, "cheng2020-anchor", 8, (1,)),
        HyperpriorConfig("cheng2020-anchor", 8, (1,)),
        lmbda_min=0.0018,
        lmbda_max=0.18,
    )
    several = torch.tensor(qualities)
    return Conditions(several, torch.zeros_like(several), torch.full_like(several, 8)).vector(config)


def headers(*qualities: int) -> Tensor:
    return torch.tensor([[quality, 0, 8] for quality in qualities])


def latents(model: HyperpriorModel, n: int, h: int, w: int) -> Tensor:
    return torch.randint(-9, 10, (n, model.c, h, w), generator=torch.Generator().manual_seed(h)).float()


class TestSizes:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_published_parameter_counts(self, architecture: str) -> None:
        for (_, n, m), published in zip(ARCHITECTURES[architecture].sizes, PUBLISHED[architecture]):
            with torch.device("meta"):
                transform = Transform(HyperpriorTransformConfig(16, m, architecture, n, (1,), modulators=()))
                level = HyperpriorModel(HyperpriorConfig(architecture, n, (1,)), m)
            assert sum(p.numel() for part in (transform, level) for p in part.parameters()) == published

    def test_names(self) -> None:
        """Some of each kind, as CompressAI has them."""
        transform, model = make_transform("cheng2020-attn"), make_model("cheng2020-attn")
        assert {
            "0.conv1.weight", "0.skip.bias", "0.gdn.beta", "0.gdn.gamma", "1.conv2.bias",
            "3.conv_a.0.conv.4.weight", "3.conv_b.3.bias", "7.weight",
        } <= set(transform.encoder.g_a[0].state_dict())  # fmt: skip
        assert {
            "0.conv_b.2.conv.0.bias", "2.subpel_conv.0.weight", "2.conv.bias", "2.igdn.gamma", "2.upsample.0.bias",
            "9.0.weight",
        } <= set(transform.decoder.g_s[0].state_dict())  # fmt: skip
        assert {
            "entropy_bottleneck.matrices.4", "entropy_bottleneck.biases.0", "entropy_bottleneck.factors.3",
            "entropy_bottleneck.quantiles", "h_a.8.weight", "h_s.2.0.weight", "h_s.8.bias",
            "context_prediction.weight", "entropy_parameters.4.weight",
        } <= set(model.level(0).state_dict())  # fmt: skip
        transform = make_transform("mbt2018")
        assert set(transform.decoder.g_s[0].state_dict()) == {
            *(f"{i}.{name}" for i in (0, 2, 4, 6) for name in ("weight", "bias")),
            *(f"{i}.{name}" for i in (1, 3, 5) for name in ("beta", "gamma")),
        }
        assert transform.decoder.g_s[0][0].weight.shape == (10, 6, 5, 5)  # [inputs, outputs, 5, 5]


class TestGDN:
    @pytest.mark.parametrize("inverse", [False, True])
    def test_formula(self, inverse: bool) -> None:
        gdn = GDN(5, inverse)
        assert torch.allclose(gdn.beta, torch.ones(5)) and torch.allclose(gdn.gamma.square(), 0.1 * torch.eye(5))
        with torch.no_grad():
            gdn.beta.copy_(torch.tensor([0.7, 1.3, 0.2, -1.0, 0.0]))  # two below their bound
            gdn.gamma.uniform_(-0.2, 0.5)
        x = 3.0 * torch.randn(2, 5, 4, 3)
        pedestal = 2.0**-36
        beta = gdn.beta.double().clamp_min((1e-6 + pedestal) ** 0.5) ** 2 - pedestal
        gamma = gdn.gamma.double().clamp_min(2.0**-18) ** 2 - pedestal
        assert bool((beta > 0.0).all()) and bool((gamma >= 0.0).all()) and bool((gamma == 0.0).any())
        root = (beta[None, :, None, None] + torch.einsum("ij,njhw->nihw", gamma, x.double() ** 2)).sqrt()
        expected = x.double() * root if inverse else x.double() / root
        assert torch.allclose(gdn(x).double(), expected, rtol=1e-5, atol=1e-6)

    def test_dtypes(self) -> None:
        """Computed in float32 within autocast; the result has the input's dtype."""
        gdn, x = GDN(4), torch.randn(1, 4, 5, 5)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(gdn(x), gdn.float()(x))
            assert gdn(x.bfloat16()).dtype == torch.bfloat16

    def test_lower_bound(self) -> None:
        x = torch.tensor([-1.0, -1.0, 2.0, 2.0, 0.5], requires_grad=True)
        bounded = lower_bound(x, 0.5)
        assert bounded.tolist() == [0.5, 0.5, 2.0, 2.0, 0.5]
        (slope,) = torch.autograd.grad(bounded, x, torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]))
        assert slope.tolist() == [0.0, -1.0, 1.0, -1.0, 1.0]


class TestNetworks:
    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_contract(self, architecture: str, shared: bool) -> None:
        """Types, shapes, halos; that all biases reach D in the order in which they run."""
        transform = make_transform(architecture, shared_decoder=shared)
        check_contract(transform)
        assert len(transform.decoder.g_s) == (1 if shared else 3) and num_modulators(transform) == 4

    @pytest.mark.parametrize("architecture, e, d", [("mbt2018", 30, 30), ("cheng2020-anchor", 57, 104)])
    def test_halo(self, architecture: str, e: int, d: int) -> None:
        """What a latent and a pixel are seen to depend on lies within the halo, and the halo is not much larger."""
        transform, s = make_transform(architecture, (1,)), 16
        with torch.no_grad():  # so that nothing is hidden by a ReLU
            for name, parameter in transform.named_parameters():
                if name.endswith("weight"):
                    parameter.abs_()
        assert transform.encoder.receptive_halo_px == e and transform.decoder.receptive_halo_px == d
        reach = -(-d // s)
        middle = reach + 1
        x = torch.rand(1, 3, 16 * (2 * middle + 1), 16, requires_grad=True)
        y, _ = transform.encoder(x, conditions(0))
        (slope,) = torch.autograd.grad(y[0, :, middle].sum(), x)
        rows = slope.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0]
        before, after = s * middle - int(rows.min()), int(rows.max()) - (s * middle + s - 1)
        assert max(before, after) == e
        y_hat = torch.rand(1, transform.config.c, 2 * middle + 1, 1, requires_grad=True)
        seen = []
        for pixel in range(s):
            x_hat = transform.decoder(y_hat, conditions(0))
            (slope,) = torch.autograd.grad(x_hat[0, :, s * middle + pixel].sum(), y_hat)
            rows = slope.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0] - middle
            first, last = int(rows.min()) * s + s - 1, int(rows.max()) * s  # the nearest pixels of the cells seen
            seen.append(max(pixel - first if first < 0 else 0, last - pixel if last > pixel else 0))
        assert d - s < max(seen) <= d

    @pytest.mark.parametrize("architecture", ["mbt2018", "cheng2020-attn"])
    def test_mixed_qualities(self, architecture: str) -> None:
        """Each picture of a batch goes through its own quality's networks, adapted as it is alone."""
        transform = make_transform(architecture)
        for mod in transform.decoder.mods:
            nn.init.normal_(mod.fc2.weight, std=0.1)
        cond = conditions(900, 10, 280, 20)
        x = torch.rand(4, 3, 32, 48).contiguous(memory_format=torch.channels_last)
        y, tau = transform.encoder(x, cond)
        y_hat = y.mul(20.0).round()
        change = Adaptation(0.3 * torch.randn(4, 4, 2), 0.1 * torch.randn(4, num_biases(transform.decoder)))
        x_hat = transform.decoder(y_hat, cond, change)
        assert tau is None and not torch.allclose(x_hat, transform.decoder(y_hat, cond), atol=1e-3)
        for i, index in enumerate((2, 0, 1, 0)):
            part = slice(i, i + 1)
            alone = Adaptation(change.conditions[part], change.biases[part])
            if architecture == "mbt2018":  # whose layers need no adapter
                assert torch.allclose(y[part], transform.encoder.g_a[index](x[part]), atol=1e-6)
            assert torch.allclose(y[part], transform.encoder(x[part], cond[part])[0], atol=1e-6)
            assert torch.allclose(x_hat[part], transform.decoder(y_hat[part], cond[part], alone), atol=1e-4)

    @pytest.mark.parametrize("architecture", ["mbt2018", "cheng2020-attn"])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_batches_change_nothing(self, architecture: str, channels_last: bool) -> None:
        """Bit for bit, where nothing is differentiated."""
        transform, cond = make_transform(architecture), conditions(0, 0, 300, 0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        transform.to(memory_format=layout)
        x = torch.rand(4, 3, 48, 64).contiguous(memory_format=layout)
        with torch.no_grad():
            y, _ = transform.encoder(x, cond)
            y_hat = y.mul(30.0).round().contiguous(memory_format=layout)
            x_hat = transform.decoder(y_hat, cond)
            for i in range(4):
                part = slice(i, i + 1)
                assert torch.equal(transform.encoder(x[part], cond[part])[0], y[part])
                assert torch.equal(transform.decoder(y_hat[part], cond[part]), x_hat[part])

    @pytest.mark.parametrize("quality", [0, 71, 72, 143, 144, 500, 571, 572, 1000])
    def test_nearest_quality(self, quality: int) -> None:
        """E, D and P choose alike, at ties as well: what the header says is found again in the condition."""
        chosen = nearest(quality, QUALITIES)
        transform, model = make_transform("mbt2018"), make_model("mbt2018")
        x, cond = torch.rand(1, 3, 32, 32), conditions(quality)
        assert torch.equal(transform.encoder(x, cond)[0], transform.encoder.g_a[chosen](x))
        y = latents(model, 1, 3, 4)
        assert torch.equal(transform.decoder(y, cond), transform.decoder.g_s[chosen](y))
        alone = HyperpriorModel(HyperpriorConfig("mbt2018", 6, (1,)), 10).eval()
        alone.levels[0] = model.levels[chosen]
        assert torch.equal(model.num_bits(y, y, headers(quality)), alone.num_bits(y, y, headers(quality)))

    def test_published_places(self) -> None:
        assert [tenths_of(quality) for quality in (1, 2, 8)] == [0, 143, 1000]

    @pytest.mark.parametrize("architecture", ["mbt2018", "cheng2020-attn"])
    def test_biases(self, architecture: str) -> None:
        """A change of biases is what a change of the parameters is."""
        transform = make_transform(architecture, (4,))
        decoder, cond = transform.decoder, conditions(400)
        y_hat = torch.randint(-3, 4, (1, transform.config.c, 2, 3)).float()
        change = 0.1 * torch.randn(num_biases(decoder))
        adapted = decoder(y_hat, cond, Adaptation(biases=change[None]))
        assert not torch.allclose(adapted, decoder(y_hat, cond), atol=1e-3)
        layers = decoder.biased_layers()
        for layer, part in zip(layers, change.split([layer.out_channels for layer in layers])):
            layer.bias.add_(part)
        assert torch.allclose(adapted, decoder(y_hat, cond), atol=1e-5)

    @pytest.mark.parametrize("architecture", ["mbt2018", "cheng2020-attn"])
    def test_autocast(self, architecture: str) -> None:
        """bfloat16 is near to float32; latents keep their fractions, and both results are float32."""
        transform, cond = make_transform(architecture, (8,)), conditions(1000)
        last = transform.encoder.g_a[0][-1]
        x = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            if isinstance(last, nn.Conv2d):
                last.weight.mul_(300.0)
            y, _ = transform.encoder(x, cond)
            with torch.autocast("cpu", torch.bfloat16):
                low, _ = transform.encoder(x, cond)
                low_x_hat = transform.decoder(y.round(), cond)
            x_hat = transform.decoder(y.round(), cond)
        assert low.dtype == low_x_hat.dtype == torch.float32
        assert not torch.equal(low, y) and not torch.equal(low, low.bfloat16().float())
        assert float((low - y).norm() / y.norm()) < 0.02
        assert float((low_x_hat - x_hat).norm() / x_hat.norm()) < 0.05

    def test_trains(self) -> None:
        """Gradients reach every parameter, modulators' included, and pass twice, as OML's meta-training needs."""
        transform = make_transform("cheng2020-attn", (3,)).requires_grad_()
        cond = conditions(300).requires_grad_()
        y, _ = transform.encoder(torch.rand(1, 3, 32, 32), cond)
        transform.decoder(y, cond).square().mean().backward()
        for name, parameter in transform.named_parameters():
            assert parameter.grad is not None, name
            if ".mods." in name and ".fc1." in name:
                continue  # behind weights that are zero
            assert bool((parameter.grad != 0).any()), name
        with torch.no_grad():
            for mod in transform.decoder.mods:
                mod.fc2.weight.normal_()
        conds = conditions(300)[:, None].repeat(1, 4, 1).requires_grad_()
        value = transform.decoder(y.detach(), cond, Adaptation(conds)).square().mean()
        (slope,) = torch.autograd.grad(value, conds, create_graph=True)
        assert bool((slope[..., 0] != 0).all()) and not bool((slope[..., 1] != 0).any())
        (second,) = torch.autograd.grad(slope.square().sum(), transform.decoder.g_s[0][2].igdn.beta)
        assert bool(second.isfinite().all()) and bool((second != 0).any())


class TestModulators:
    @pytest.mark.parametrize("channels", [1, 3, 7, 8, 9, 31, 192, 320])
    def test_starts_at_one(self, channels: int) -> None:
        modulator = LambdaModulator(channels, 64)
        cond = transforms.condition(torch.logspace(-6, 4, 41), torch.linspace(0, 1, 41))
        assert torch.equal(modulator.scales(cond), torch.ones(41, channels, 1, 1))
        stored = {name: tensor.half().float() for name, tensor in modulator.state_dict().items()}
        modulator.load_state_dict(stored)
        assert torch.equal(modulator.scales(cond), torch.ones(41, channels, 1, 1))

    def test_sees_lambda_alone(self) -> None:
        modulator = LambdaModulator(5, 8)
        nn.init.normal_(modulator.fc2.weight)
        lmbda = torch.tensor([0.01, 0.01, 0.02])
        scales = modulator.scales(transforms.condition(lmbda, torch.tensor([0.0, 1.0, 0.0])))
        assert torch.equal(scales[0], scales[1]) and not torch.allclose(scales[0], scales[2])
        assert bool((scales > 0.0).all())

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_unmodulated_at_the_start(self, architecture: str) -> None:
        """OML 3.1's first test: at s = 1 the output equals that of g_s alone, bit for bit."""
        transform, plain = make_transform(architecture, (2,)), make_transform(architecture, (2,), modulators=())
        assert not len(plain.decoder.mods)
        plain.decoder.load_state_dict(transform.decoder.state_dict(), strict=False)
        y_hat = torch.randint(-20, 20, (2, transform.config.c, 3, 2)).float()
        cond = conditions(100, 900)
        assert torch.equal(transform.decoder(y_hat, cond), plain.decoder(y_hat, cond))

    @pytest.mark.parametrize("architecture", ["mbt2018", "cheng2020-anchor", "cheng2020-attn"])
    @pytest.mark.parametrize("place", [0, 1, 2, 3])
    def test_places(self, architecture: str, place: int) -> None:
        """Each scales what goes into its up-sampling layer, and nothing before."""
        plain = make_transform(architecture, (2,), modulators=())
        transform = make_transform(architecture, (2,), modulators=(place,))
        transform.decoder.load_state_dict(plain.decoder.state_dict(), strict=False)
        (modulator,) = transform.decoder.mods
        nn.init.normal_(modulator.fc2.weight)
        n, m = sizes(architecture)
        assert modulator.fc2.out_features == (m if place == 0 and architecture == "mbt2018" else n)
        g_s = plain.decoder.g_s[0]
        places = upsampling_places(g_s)
        assert len(places) == 4 and places == {"mbt2018": [0, 2, 4, 6], "cheng2020-anchor": [1, 3, 5, 7]}.get(
            architecture, [2, 4, 7, 9]
        )
        cond = conditions(300)
        scales = modulator.scales(cond)
        g_s[places[place]].register_forward_pre_hook(lambda _, inputs: (inputs[0] * scales, *inputs[1:]))
        if isinstance(g_s[places[place]], nn.Sequential):  # a sub-pixel convolution, which runs layer by layer
            g_s[places[place]][0].register_forward_pre_hook(lambda _, inputs: (inputs[0] * scales,))
        y_hat = torch.randint(-9, 9, (1, m, 3, 2)).float()
        found = transform.decoder(y_hat, cond)
        assert torch.allclose(found, plain.decoder(y_hat, cond), atol=1e-6)
        assert not torch.allclose(found, make_transform(architecture, (2,)).decoder(y_hat, cond), atol=1e-4)


class TestLikelihoods:
    def test_gaussian(self) -> None:
        values = torch.tensor([-3.0, 0.0, 2.0, 50.0, 0.0])
        means, scales = torch.tensor([-1.2, 0.3, 2.0, 0.0, 0.4]), torch.tensor([1.5, 0.8, 30.0, 1.0, 0.01])

        def phi(t: float) -> float:
            return 0.5 * math.erfc(-t / math.sqrt(2.0))

        for v, mean, scale, found in zip(*(t.tolist() for t in (values, means, scales)),
                                         gaussian_likelihood(values, means, scales).tolist()):  # fmt: skip
            sigma = max(scale, SCALE_MIN)
            exact = phi((v - mean + 0.5) / sigma) - phi((v - mean - 0.5) / sigma)
            assert found == pytest.approx(max(exact, LIKELIHOOD_MIN), rel=1e-4)

    def test_gaussian_gradients_at_the_bounds(self) -> None:
        """A scale below its bound can grow again, and a latent that is as good as impossible is drawn to its mean."""
        scale, mean = torch.tensor([0.01, 0.01, 1.0]).requires_grad_(), torch.zeros(3, requires_grad=True)
        bits = -gaussian_likelihood(torch.tensor([1.0, 0.0, 5.0]), mean, scale).log2()
        (slope, drawn) = torch.autograd.grad(bits.sum(), (scale, mean))
        assert slope[0] < 0.0 and slope[1] == 0.0 and drawn[2] < 0.0

    def test_bottleneck(self) -> None:
        torch.manual_seed(3)
        bottleneck = EntropyBottleneck(4).requires_grad_(False)
        for i, (matrix, factor) in enumerate(zip(bottleneck.matrices, bottleneck.factors)):
            matrix.add_(0.5 * torch.randn_like(matrix))
            factor.add_((i + 1) * 0.3 * torch.randn_like(factor))
        edges = torch.arange(-300, 302).double() - 0.5
        shares = bottleneck.cdf(edges)
        assert shares.dtype == torch.float64 and shares.shape == (4, 602)
        assert (
            float(shares.diff().min()) >= 0.0
            and float(shares[:, 0].max()) < 1e-6 < 1 - float(shares[:, -1].min()) + 2e-6
        )
        z = torch.arange(-300, 301).float()[None, None, None].repeat(1, 4, 1, 1)
        likelihood = bottleneck.likelihood(z)[0, :, 0]
        assert torch.allclose(likelihood.double(), shares.diff().clamp_min(LIKELIHOOD_MIN), rtol=1e-3, atol=1e-7)
        assert torch.allclose(likelihood.sum(dim=1), torch.ones(4), atol=1e-5)

    def test_bottleneck_in_the_upper_tail(self) -> None:
        """As many digits as in the lower one."""
        bottleneck = EntropyBottleneck(1).requires_grad_(False)
        for bias in bottleneck.biases:
            bias.zero_()
        z = torch.tensor([-60.0, 60.0, 0.0])[None, None, None]
        low, high, middle = bottleneck.likelihood(z).flatten().tolist()
        assert LIKELIHOOD_MIN < low < 1e-2 and low == pytest.approx(high, rel=1e-5) and middle > low

    def test_masked_convolution(self) -> None:
        layer = MaskedConv(3, 4).requires_grad_(False)
        y = torch.randn(1, 3, 7, 8, requires_grad=True)
        (slope,) = torch.autograd.grad(layer(y)[0, :, 3, 4].sum(), y)
        seen = {(r - 3, c - 4) for _, r, c in slope[0].nonzero().tolist()}
        assert seen == {(r, c) for r in (-2, -1) for c in range(-2, 3)} | {(0, -2), (0, -1)}
        assert int((layer.masked_weight() != 0).sum()) == 12 * 3 * 4 and "mask" not in layer.state_dict()


class TestModel:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_each_picture_alone(self, architecture: str) -> None:
        """Mixed qualities and sizes, padded to one batch, cost what each costs alone; no size need divide by four."""
        model = make_model(architecture)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        parts = [(900, 7, 6), (0, 4, 5), (290, 1, 9), (20, 6, 3)]
        batch, inside = torch.full((4, model.c, 7, 9), 3.0), torch.zeros(4, 1, 7, 9)
        alone = []
        for i, (quality, h, w) in enumerate(parts):
            y = latents(model, 1, h, w)
            batch[i, :, :h, :w], inside[i, :, :h, :w] = y[0], 1.0
            alone.append(model.num_bits(y, y, headers(quality)))
        together = model.num_bits(batch, batch, headers(*(quality for quality, _, _ in parts)), inside)
        assert torch.allclose(together, torch.cat(alone), rtol=1e-5)
        assert not torch.allclose(together, model.num_bits(batch, batch, headers(0, 0, 0, 0), inside), rtol=1e-3)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_bits_by_the_parts(self, architecture: str) -> None:
        """`num_bits` of one picture, written out with the parts that a coder uses."""
        model = make_model(architecture).requires_grad_(False)
        level = model.level(1)
        y = latents(model, 1, 6, 5)
        total = 0.0
        if level.kind == "factorized":
            total -= float(level.entropy_bottleneck.likelihood(y).log2().sum())
        else:
            z = level.hyper_latents(y).round()
            assert z.shape == (1, level.n, 2, 2)
            hyper = level.hyper(z, 6, 5)
            assert hyper.shape == (1, level.m if level.kind == "scale" else 2 * level.m, 6, 5)
            scales, means = level.parameters_of(hyper, level.context(y) if level.kind == "context" else None)
            if level.kind == "scale":
                assert not bool(means.any()) and float(scales.min()) >= 0.0
                assert torch.equal(level.hyper_latents(y), level.hyper_latents(-y))
            total -= float(level.entropy_bottleneck.likelihood(z).log2().sum())
            total -= float(gaussian_likelihood(y, means, scales).log2().sum())
        assert float(model.num_bits(y, y, headers(286))) == pytest.approx(total, rel=1e-5)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_terms(self, architecture: str) -> None:
        model = make_model(architecture)
        y, header = latents(model, 2, 5, 6), headers(900, 10)
        y[0, 0, 0, 0], y[1, 1, 2, 3] = LATENT_MAX, -LATENT_MAX
        terms = model.terms(y, header)
        assert torch.allclose(terms.bits, model.num_bits(y, y, header), rtol=1e-6)
        for change, sign in ((terms.rise, 1.0), (terms.fall, -1.0)):
            place = (1, 2, 3, 4)
            moved = y.clone()
            moved[place] += sign
            expected = model.num_bits(y, moved, header)[1] - model.num_bits(y, y, header)[1]
            assert float(change[place]) == pytest.approx(float(expected), abs=0.02)
        assert torch.isinf(terms.rise).nonzero().tolist() == [[0, 0, 0, 0]]
        assert torch.isinf(terms.fall).nonzero().tolist() == [[1, 1, 2, 3]]
        if architecture == "bmshj2018-factorized":
            assert not bool(terms.slope.any())
            return
        leaf = y.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model.num_bits(leaf, y, header).sum(), leaf)
        assert torch.allclose(terms.slope, slope, atol=1e-5) and bool(slope.any())

    def test_slope_through_the_context(self) -> None:
        """With hyper-latents that do not move, it is the finite difference of what later latents cost."""
        model = make_model("mbt2018", (1,))
        level = model.level(0).requires_grad_(False)
        for parameter in level.h_a.parameters():
            nn.init.zeros_(parameter)
        level.entropy_parameters[4].bias[:10] = 2.0  # sigma
        level.context_prediction.weight.mul_(5.0)
        y, header = (latents(model, 1, 4, 5) / 4.0).round(), headers(0)
        slope = model.terms(y, header).slope
        level.double()
        for place in ((0, 3, 1, 1), (0, 0, 0, 0), (0, 7, 2, 2)):
            step = torch.zeros_like(y).double()
            step[place] = 1e-4
            up, down = (level.bits_of(y, level.distributions(y + sign * step)[0]).sum() for sign in (1.0, -1.0))
            assert abs(float(slope[place])) > 0.03
            assert float(slope[place]) == pytest.approx(float(up - down) / 2e-4, rel=1e-3)
        assert not bool(slope[..., -1, -1].any())  # nothing comes after the last place

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_bit_map(self, architecture: str) -> None:
        model = make_model(architecture)
        y, header = latents(model, 2, 5, 7), headers(900, 10)
        bits = model.bit_map(y, header)
        assert bits.shape == (2, 5, 7) and bits.dtype == torch.float64 and float(bits.min()) > 0.0
        assert torch.allclose(bits.sum(dim=(1, 2)).float(), model.num_bits(y, y, header), rtol=1e-5)

    def test_training(self) -> None:
        """Hyper-latents have noise while training and are rounded else; every parameter but the quantiles learns."""
        model = make_model("mbt2018", (4,))
        y = latents(model, 2, 8, 8)
        header, target = headers(400, 420), y + torch.rand_like(y) - 0.5
        assert torch.equal(model.num_bits(y, y, header), model.num_bits(y, y, header))
        model.train()
        assert not torch.equal(model.num_bits(y, y, header), model.num_bits(y, y, header))
        context = y.clone().requires_grad_()
        model.num_bits(context, target, header).sum().backward()
        assert bool((context.grad != 0).any())
        for name, parameter in model.named_parameters():
            if not name.endswith("quantiles"):
                assert parameter.grad is not None and bool((parameter.grad != 0).any()), name

    def test_autocast_changes_nothing(self) -> None:
        model = make_model("cheng2020-anchor")
        y, header = 30.0 * latents(model, 1, 4, 4), headers(0)
        before = model.num_bits(y, y, header), model.terms(y, header).rise
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.num_bits(y, y, header), before[0])
            assert torch.equal(model.terms(y, header).rise, before[1])


class TestCalibration:
    def test_ranges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Against all activations at once, gathered by hooks."""
        monkeypatch.setattr("l2c.entropy.hyperprior.float_model.PERCENTILE", 0.98)
        model = make_model("mbt2018", (1,))
        level = model.level(0)
        seen: dict[str, list[Tensor]] = {}
        for name, layer in level.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not name.startswith("h_a"):
                layer.register_forward_hook(
                    lambda _, __, x, name=name: seen.setdefault(name, []).append(x[0].flatten(1))
                )
        samples = [3.3 * latents(model, 1, 7, 6), latents(model, 1, 8, 12)]
        assert not level.is_calibrated
        model.calibrate(samples)
        assert level.is_calibrated
        assert {name.replace(".", "_") for name in seen} | {"y"} == set(level.ranges)
        for name, parts in seen.items():
            values, found = torch.cat(parts, dim=1), level.ranges[name.replace(".", "_")]
            hidden = name in ("h_s.0", "h_s.2", "entropy_parameters.0", "entropy_parameters.2")
            after = values.clamp_min(0.0) if hidden else values.abs()
            falling = after.flatten().sort(descending=True).values
            assert found.reach.tolist() == [falling[int(0.02 * len(falling) + 1e-9)], falling[0]], name
            each = after.sort(dim=1, descending=True).values
            assert torch.equal(found.channel_reach, each[:, [int(0.02 * each.shape[1] + 1e-9), 0]])
            lost = values.clamp_max(0.0).mean(dim=1) if hidden else torch.zeros(len(values))
            assert torch.allclose(found.negative_mean, lost, atol=1e-6)
        assert float(level.ranges["y"].reach[1]) == round(9 * 3.3)

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_all_kinds(self, architecture: str) -> None:
        """One level or all; a layer's channels are those that the next one sees; the state does not grow."""
        model = make_model(architecture)
        names = set(model.state_dict())
        model.calibrate([latents(model, 1, 3, 9)], index=1)
        assert [model.level(i).is_calibrated for i in range(3)] == [False, True, False]
        model.calibrate([latents(model, 1, 3, 9)])
        assert all(model.level(i).is_calibrated for i in range(3))
        assert set(model.state_dict()) == names
        ranges = model.level(0).ranges
        if architecture == "cheng2020-anchor":
            assert ranges["h_s_2"].channel_reach.shape == (8, 2) and ranges["h_s_6"].channel_reach.shape == (12, 2)
            assert bool((ranges["h_s_2"].negative_mean < 0).any()) and not bool(ranges["h_s_8"].negative_mean.any())
        if architecture == "bmshj2018-hyperprior":
            assert not any(bool(found.negative_mean.any()) for found in ranges.values())

    def test_needs_latents(self) -> None:
        with pytest.raises(ValueError, match="needs latents"):
            make_model("mbt2018").calibrate([])
        assert PERCENTILE == 0.9999

    def test_levels_are_separate(self) -> None:
        model = make_model("mbt2018")
        assert isinstance(model.level(0), Level) and len(model.levels) == 3
        assert not torch.equal(model.level(0).h_s[0].weight, model.level(1).h_s[0].weight)
