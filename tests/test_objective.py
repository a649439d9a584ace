"""The distortion on the axis of metrics against its definition written out picture by picture."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import l2c
from l2c import metrics, objective, transforms
from l2c.adapt.latents import Regions
from l2c.cli.bench import bench
from l2c.cli.encode import encode
from l2c.cli.evaluate import evaluate_folder, papers_tables
from l2c.config import ModelConfig
from l2c.evaluate.measures import measure, to_ycbcr
from l2c.format import bitstream
from l2c.format.levels import DEFAULT_METRIC, MAX_MU, MAX_QUALITY, METRICS, metric_name
from l2c.objective import Blend, DistortionTo, MixedWeights, Needs, distortion, term_weights, terms
from l2c.train import losses
from l2c.train.config import LossConfig
from l2c.train.losses import Conditions, Networks, latent_loss

RATIO = objective.MSSSIM_LMBDA_RATIO
LMBDAS = (1e-4, 0.004, 0.02, 0.3)
# BT.709, full range, as ITU-R BT.709-6 gives it by its luma coefficients; rows Y, Cb, Cr of columns R, G, B.
BT709 = np.array([[0.2126, 0.7152, 0.0722], [-0.1146, -0.3854, 0.5], [0.5, -0.4542, -0.0458]])


def pictures(n: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Smooth pictures and noisy ones that go beyond [0, 1]."""
    generator = torch.Generator().manual_seed(height)
    small = torch.rand(n, 3, -(-height // 8), -(-width // 8), generator=generator)
    x = torch.nn.functional.interpolate(small, (height, width), mode="bilinear").clamp(0, 1)
    noise = torch.randn(x.shape, generator=generator) * torch.linspace(0.02, 0.15, n)[:, None, None, None]
    return x, x + noise * torch.tensor([0.5, 1.0, 2.0])[:, None, None]


def plain(x: Tensor, x_hat: Tensor, mu: int, lmbda: float) -> float:
    """The module's formula for one picture [3, H, W], in double precision but for MS-SSIM."""
    a, b = (np.einsum("kc,chw->khw", BT709_EXACT, t.double().numpy()) for t in (x, x_hat))
    inside = np.einsum("kc,chw->khw", BT709_EXACT, x_hat.clamp(0, 1).double().numpy())
    y, y_hat = (torch.from_numpy(t[:1]).float()[None] for t in (a, inside))
    squared = 255.0**2 * ((a - b) ** 2).mean(axis=(1, 2))
    low, high = objective.MIXED.lmbdas
    t = min(max((np.log(lmbda) - np.log(low)) / (np.log(high) - np.log(low)), 0.0), 1.0)
    share, f, g = (
        pair[0] + (pair[1] - pair[0]) * (3 * t**2 - 2 * t**3)
        for pair in (objective.MIXED.structure, objective.MIXED.luma, objective.MIXED.gain)
    )
    mixed = (1 - share) * (f * squared[0] + (1 - f) * squared[1:].mean())
    mixed += share * RATIO * (1.0 - float(metrics.msssim(y, y_hat)))
    blue = objective.MIXED.blue * (1.0 - blue_similarity(x.numpy(), x_hat.clamp(0, 1).numpy()))
    of = {
        "psnr": 255.0**2 * float((x - x_hat).double().square().mean()),
        "mixed": g * mixed + blue,
        "msssim": RATIO * (1.0 - float(metrics.msssim(x[None], x_hat[None].clamp(0, 1)))),
    }
    return sum(max(0.0, 1.0 - abs(mu - METRICS[name]) / 4) * value for name, value in of.items())


def blue_similarity(x: np.ndarray, x_hat: np.ndarray) -> float:
    """Of coarse blue-yellow structure, [3, H, W] each, written out in double precision."""
    total = 0.0
    for stride, share in ((8, 0.14), (16, 0.86)):
        a, b = (blue_plane(picture.astype(np.float64), stride) for picture in (x, x_hat))
        mean_a, mean_b, aa, bb, ab = (
            ndimage.gaussian_filter(part, 1.5, mode="nearest", truncate=3.4) for part in (a, b, a * a, b * b, a * b)
        )
        contrast = (2 * (ab - mean_a * mean_b) + 9e-4) / (aa - mean_a**2 + bb - mean_b**2 + 9e-4)
        total += share * float(((1 - (mean_a - mean_b) ** 2) * contrast).mean())
    return total


def blue_plane(rgb: np.ndarray, stride: int) -> np.ndarray:
    """B - Y of XYB of linear light, averaged over squares of so many pixels: [3, H, W] -> [h, w]."""
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    rows, columns = (range(0, length, stride) for length in light.shape[1:])
    means = np.array(
        [[light[:, top : top + stride, left : left + stride].mean(axis=(1, 2)) for left in columns] for top in rows]
    )
    r, g, b = np.moveaxis(means, 2, 0)
    bias = 0.0037930732552754493
    long = np.cbrt(0.3 * r + 0.622 * g + 0.078 * b + bias)
    middle = np.cbrt(0.23 * r + 0.692 * g + 0.078 * b + bias)
    short = np.cbrt(0.24342268924547819 * r + 0.20476744424496821 * g + 0.55180986650955360 * b + bias)
    return short - (long + middle) / 2


BT709_EXACT = np.array(
    [
        [0.2126, 0.7152, 0.0722],
        [-0.2126 / 1.8556, -0.7152 / 1.8556, (1 - 0.0722) / 1.8556],
        [(1 - 0.2126) / 1.5748, -0.7152 / 1.5748, -0.0722 / 1.5748],
    ]
)


class TestAxis:
    def test_the_names_are_the_ends_and_the_middle(self) -> None:
        assert METRICS == {"psnr": 0, "mixed": MAX_MU // 2, "msssim": MAX_MU}
        assert [metric_name(mu) for mu in (0, 4, 8)] == ["psnr", "mixed", "msssim"]
        assert metric_name(1) == "3/4 psnr + 1/4 mixed" and metric_name(6) == "2/4 mixed + 2/4 msssim"

    def test_hats(self) -> None:
        """At mu = 0, 4 and 8 one metric alone counts; between, both neighbours by their distance."""
        lmbda = torch.full((9,), 0.01)
        weights = term_weights(torch.arange(9), lmbda)
        assert weights.shape == (9, 6) and weights.dtype == torch.float32 and bool((weights >= 0).all())
        ends = {name: weights[mu] for name, mu in METRICS.items()}
        assert ends["psnr"].tolist() == [1, 0, 0, 0, 0, 0]
        assert ends["msssim"].tolist() == [0, 0, 0, 0, RATIO, 0]
        assert ends["mixed"][0] == 0 and ends["mixed"][4] == 0 and bool((ends["mixed"][[1, 2, 3, 5]] > 0).all())
        for mu in range(9):
            low, high = (ends["psnr"], ends["mixed"]) if mu < 4 else (ends["mixed"], ends["msssim"])
            share = (mu % 4) / 4 if mu < 8 else 1.0
            torch.testing.assert_close(weights[mu], (1 - share) * low + share * high)

    def test_weights_go_over_smoothly_in_log_lambda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = MixedWeights((0.5, 0.3), (0.8, 0.7), (2.0, 1.0), (0.001, 0.1), 90.0)
        monkeypatch.setattr(objective, "MIXED", made)
        a, f, g = made.at(torch.tensor([1e-5, 0.001, 0.01, 0.1, 1.0]))
        torch.testing.assert_close(a, torch.tensor([0.5, 0.5, 0.4, 0.3, 0.3]))
        torch.testing.assert_close(f, torch.tensor([0.8, 0.8, 0.75, 0.7, 0.7]))
        torch.testing.assert_close(g, torch.tensor([2.0, 2.0, 1.5, 1.0, 1.0]))
        weights = term_weights(torch.tensor([4]), torch.tensor([0.01]))
        expected = [0, 1.5 * 0.6 * 0.75, 1.5 * 0.6 * 0.25, 1.5 * 0.4 * RATIO, 0, 90]
        torch.testing.assert_close(weights, torch.tensor([expected]))

    def test_the_shipped_weights_are_possible(self) -> None:
        made = objective.MIXED
        assert all(0 < value < 1 for value in (*made.structure, *made.luma)) and min(made.gain) > 0
        assert 0 < made.lmbdas[0] < made.lmbdas[1]
        lmbda = torch.logspace(-5, 0, 200)
        for values in made.at(lmbda):  # no jump: a step of quality hardly changes what is sought
            assert float(values.diff().abs().max() / values.max()) < 0.05


class TestColour:
    def test_matrix(self) -> None:
        unit = torch.eye(3)[:, :, None, None]
        found = torch.cat((metrics.luma(unit), metrics.chroma(unit)), dim=1)[:, :, 0, 0].T  # columns R, G, B
        np.testing.assert_allclose(found.numpy(), BT709, atol=1e-4)

    def test_the_reports_convert_alike(self) -> None:
        x = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(1))
        expected = to_ycbcr(x[0].permute(1, 2, 0).numpy())
        found = torch.cat((metrics.luma(x), metrics.chroma(x) + 0.5), dim=1)[0]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


class TestDistortion:
    @pytest.mark.parametrize("size", [(180, 171), (40, 25), (9, 5)])
    def test_every_mu_in_one_batch(self, size: tuple[int, int]) -> None:
        x, x_hat = pictures(9, *size)
        lmbda = torch.tensor((LMBDAS * 3)[:9])
        value = distortion(x, x_hat, Blend.of(torch.arange(9), lmbda))
        expected = [plain(x[i], x_hat[i], i, float(lmbda[i])) for i in range(9)]
        np.testing.assert_allclose(value.numpy(), expected, rtol=2e-4)

    @pytest.mark.parametrize("mu", [[0, 0, 4, 4, 8], [8, 4, 0, 5, 3], [0] * 5, [8] * 5, [4] * 5])
    def test_static_form(self, mu: list[int]) -> None:
        """What the host names gives what is read from mu, and more than needed changes nothing."""
        x, x_hat = pictures(5, 48, 40)
        lmbda = torch.tensor([0.001, 0.003, 0.01, 0.03, 0.1])
        read = Blend.of(torch.tensor(mu), lmbda)
        value = distortion(x, x_hat, read)
        everything = Blend.of(torch.tensor(mu), lmbda, Needs(range(5), range(5)))
        torch.testing.assert_close(distortion(x, x_hat, everything), value)
        if mu == sorted(mu):
            first, last = sum(m == 0 for m in mu), sum(m < 8 for m in mu)
            static = Blend.of(torch.tensor(mu), lmbda, Needs(range(first, last), range(last, 5)))
            assert torch.equal(distortion(x, x_hat, static), value)

    def test_what_needs_leave_out_does_not_count(self) -> None:
        """`needs` is taken at its word: a picture outside keeps its squared error of RGB alone."""
        x, x_hat = pictures(3, 24, 24)
        mu, lmbda = torch.tensor([2, 4, 8]), torch.full((3,), 0.01)
        value = distortion(x, x_hat, Blend.of(mu, lmbda, Needs()))
        torch.testing.assert_close(value, torch.tensor([0.5, 0.0, 0.0]) * 255**2 * metrics.mse(x, x_hat))

    def test_only_what_is_needed_is_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[int, ...]] = []

        def watched(x: Tensor, x_hat: Tensor) -> Tensor:
            seen.append(tuple(x.shape[:2]))
            return metrics.msssim(x, x_hat)

        monkeypatch.setattr(objective, "msssim", watched)
        x, x_hat = pictures(4, 24, 24)
        for mu, shapes in (([0] * 4, []), ([4] * 4, [(4, 1)]), ([8, 0, 4, 8], [(1, 1), (2, 3)])):
            seen.clear()
            distortion(x, x_hat, Blend.of(torch.tensor(mu), torch.full((4,), 0.01)))
            assert seen == shapes

    def test_terms_that_are_not_needed_are_nan(self) -> None:
        x, x_hat = pictures(3, 24, 24)
        known = ~terms(x, x_hat, Needs(luma=(1,), rgb=(0, 2))).isnan()
        assert known.tolist() == [
            [True, False, False, False, True, False],
            [True, True, True, True, False, True],
            [True, False, False, False, True, False],
        ]

    def test_float32_under_autocast(self) -> None:
        x, x_hat = pictures(3, 180, 170)
        blend = Blend.of(torch.tensor([0, 4, 8]), torch.full((3,), 0.01))
        expected = distortion(x, x_hat, blend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(distortion(x, x_hat, blend), expected)

    @pytest.mark.parametrize("mu", [1, 4, 6, 8])
    @pytest.mark.parametrize("size", [(176, 180), (30, 41), (1, 1), (7, 64)])
    def test_gradients_are_finite(self, mu: int, size: tuple[int, int]) -> None:
        """Flat, black, white, equal, opposite, saturated pictures."""
        noise = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        flat = torch.full((3, *size), 0.4)
        zero, one = torch.zeros_like(flat), torch.ones_like(flat)
        pairs = [(flat, flat), (zero, zero), (one, one), (zero, one), (flat, noise), (noise, noise), (noise, 1 - noise),
                 (noise, flat), (one, noise + 0.2), (zero, noise - 0.2)]  # fmt: skip
        x = torch.stack([a for a, _ in pairs])
        blend = Blend.of(torch.full((len(x),), mu), torch.full((len(x),), 0.02))
        for form in (lambda y: distortion(x, y, blend), DistortionTo(x, blend)):
            y = torch.stack([b for _, b in pairs]).requires_grad_()
            value = form(y)
            (gradient,) = torch.autograd.grad(value.sum(), y)
            assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())
            equal = value.detach()[[0, 1, 2, 5]]
            assert bool((equal.abs() < 2e-2).all()), equal  # 1 - MS-SSIM of float32, times 1280
            assert bool((value.detach()[[3, 4, 6, 7]] > 1.0).all())

    def test_search_form(self) -> None:
        x, x_hat = pictures(9, 170, 165)
        for mu in (torch.arange(9), torch.zeros(9), torch.full((9,), 4), torch.full((9,), 8), torch.arange(9).flip(0)):
            blend = Blend.of(mu, torch.logspace(-4, -0.5, 9))
            first, second = (x_hat.clone().requires_grad_() for _ in range(2))
            expected, value = distortion(x, first.clamp(0, 1), blend), DistortionTo(x, blend)(second)
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-2)
            slopes = [torch.autograd.grad(v.sum(), at)[0] for v, at in ((expected, first), (value, second))]
            torch.testing.assert_close(*slopes, rtol=2e-3, atol=2e-4 * float(slopes[0].abs().max()))

    def test_luma_counts_most(self) -> None:
        """The same energy in RGB costs mixed more where it is grey than where it is opposite in red and blue."""
        x = torch.full((1, 3, 64, 64), 0.5)
        noise = 0.05 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(2))
        values = {}
        for name, mu in METRICS.items():
            blend = Blend.of(torch.tensor([mu]), torch.tensor([0.01]))
            grey = distortion(x, x + noise * torch.tensor([1.0, 1.0, 1.0])[:, None, None], blend)
            colour = distortion(x, x + noise * torch.tensor([1.5**0.5, 0.0, -(1.5**0.5)])[:, None, None], blend)
            values[name] = float(grey / colour)
        assert values["psnr"] == pytest.approx(1.0, abs=1e-3)
        assert values["mixed"] > 3.0


class _NoSynchronisation(TorchDispatchMode):
    """Refuses what would make a host wait for a device, or has a shape that depends on data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "item")
        if any(part in name for part in waits):
            raise AssertionError(f"{name} waits for the device")
        if "index.Tensor" in name and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise AssertionError("a mask as an index has a shape that depends on data")
        if "_to_copy" in name and (kwargs or {}).get("device") not in (None, args[0].device):
            raise AssertionError(f"a copy from {args[0].device} to {kwargs['device']}")
        return func(*args, **(kwargs or {}))


class TestWithoutWaiting:
    @staticmethod
    def _loss(mu: Tensor, quality: Tensor, x: Tensor, x_hat: Tensor, config: ModelConfig) -> Tensor:
        cond = Conditions(quality, mu, torch.full_like(mu, 8), needs=Needs(range(2, 5), range(4, 6)))
        blend = cond.blend(config, LossConfig(msssim=900.0), x.device)
        return (cond.lmbda(config) * distortion(x, x_hat, blend)).sum()

    def test_nothing_is_read_back(self, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        """On the meta device nothing can be read; the mode sees what a GPU would have to wait for."""
        x, x_hat = (t.to("meta") for t in pictures(6, 180, 170))
        mu = torch.tensor([0, 0, 4, 4, 5, 8]).to("meta")
        monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())  # knows no meta
        metrics.band_matrix.cache_clear()
        self._loss(mu, mu * 100, x, x_hat, tiny_config)  # the filters are made on the host, once
        with _NoSynchronisation():
            y = x_hat.clone().requires_grad_()
            self._loss(mu, mu * 100, x, y, tiny_config).backward()
        assert y.grad is not None and y.grad.device.type == "meta"
        metrics.band_matrix.cache_clear()

    def test_the_mode_sees_what_it_should(self) -> None:
        x = pictures(3, 24, 24)[0]
        for waiting in (lambda: float(x.sum()), lambda: x[:, 0, 0, 0].nonzero()):
            with _NoSynchronisation(), pytest.raises(AssertionError, match="waits"):
                waiting()
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            Blend.of(torch.tensor([0, 4, 8]).to("meta"), torch.ones(3))  # read from mu where `needs` is missing
        with _NoSynchronisation(), pytest.raises(AssertionError, match="mask"):
            x[torch.tensor([True, False, True])]

    def test_the_same_as_on_the_host(self, tiny_config: ModelConfig) -> None:
        x, x_hat = pictures(6, 180, 170)
        mu = torch.tensor([0, 0, 4, 4, 5, 8])
        static = self._loss(mu, mu * 100, x, x_hat, tiny_config)
        cond = Conditions(mu * 100, mu, torch.full_like(mu, 8))
        blend = cond.blend(tiny_config, LossConfig(msssim=900.0), x.device)
        torch.testing.assert_close(static, (cond.lmbda(tiny_config) * distortion(x, x_hat, blend)).sum())


class TestOneDefinition:
    """Training's loss, the search's objective and the codec's comparison of files have the same distortion."""

    @pytest.fixture
    def nets(self, tiny_config: ModelConfig) -> Iterator[Networks]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            yield Networks(tiny_config).eval().requires_grad_(False)

    @pytest.mark.parametrize("mu", [0, 2, 4, 7, 8])
    def test_training_is_search_is_report(
        self, nets: Networks, drawn_picture: np.ndarray, mu: int, tiny_config: ModelConfig
    ) -> None:
        x = torch.from_numpy(drawn_picture[:48, :64].copy()).permute(2, 0, 1)[None].float() / 255
        quality = 640
        cond = Conditions(torch.tensor([quality]), torch.tensor([mu]), torch.tensor([8]))
        y = 3 * losses.analyse(nets, x, cond)[0]
        # the training's D may leave [0, 1] a little, decoded pixels do not
        parts = latent_loss(_Clamped(nets), x, y, None, cond, LossConfig(), None)  # type: ignore[arg-type]
        lmbda = tiny_config.lmbda(quality / MAX_QUALITY)
        z = losses.through_quantiser(y, losses.quantiser_step(cond.b, x.device))
        regions = Regions(
            x, y, None, transforms.condition(torch.tensor([lmbda]), torch.tensor([mu / MAX_MU])), cond.header(),
            torch.tensor([lmbda]),
        )  # fmt: skip
        x_hat = regions.decode(nets.transform, z).clamp(0, 1)
        search = regions.cost(x_hat) / regions.pixels  # lambda D
        torch.testing.assert_close(parts.objective - parts.bpp, search, rtol=1e-4, atol=1e-5)
        report = lmbda * plain(x[0], x_hat[0], mu, lmbda)
        assert float(search) == pytest.approx(report, rel=3e-4)

    def test_reports_agree_with_the_terms(self, drawn_picture: np.ndarray) -> None:
        noise = np.random.default_rng(1).integers(-9, 10, drawn_picture.shape)
        pair = drawn_picture, (drawn_picture + noise).clip(0, 255).astype(np.uint8)
        found = measure(*pair, ("psnr-rgb", "psnr-y", "ms-ssim-rgb", "ms-ssim-y"))
        x, x_hat = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 255 for p in pair)
        values = terms(x, x_hat, Needs(range(1), range(1)))[0].tolist()
        assert 10 * np.log10(255**2 / values[0]) == pytest.approx(found["psnr-rgb"], abs=1e-3)
        assert 10 * np.log10(255**2 / values[1]) == pytest.approx(found["psnr-y"], abs=1e-3)
        assert 1 - values[3] == pytest.approx(found["ms-ssim-y"], abs=1e-5)
        assert 1 - values[4] == pytest.approx(found["ms-ssim-rgb"], abs=1e-5)
        assert 1 - values[5] == pytest.approx(blue_similarity(x[0].numpy(), x_hat[0].numpy()), abs=1e-5)


class _Clamped:
    """Networks whose D stays in [0, 1], as decoded pixels do."""

    def __init__(self, nets: Networks) -> None:
        self.config, self.probability, self.transform = nets.config, nets.probability, self
        self._decoder, self.quantiser = nets.transform.decoder, nets.transform.quantiser

    def decoder(self, *arguments: Any) -> Tensor:
        return self._decoder(*arguments).clamp(0, 1)


class TestDefault:
    def test_of_the_api(self, tiny_model_path: Any, drawn_picture: np.ndarray) -> None:
        assert DEFAULT_METRIC == "mixed"
        codec = l2c.Codec(str(tiny_model_path))
        made = {name: codec.encode(drawn_picture, quality=60, metric=name) for name in METRICS}
        for name, data in made.items():
            assert bitstream.read_header(data).header.metric_mix == METRICS[name]
        assert codec.encode(drawn_picture, quality=60) == made["mixed"]
        assert codec.encode_batch([drawn_picture], quality=60) == [made["mixed"]]
        assert l2c.encode(drawn_picture, quality=60, model=str(tiny_model_path)) == made["mixed"]

    def test_of_the_command_line(self) -> None:
        for command in (encode, bench, papers_tables):
            assert inspect.signature(command).parameters["metric"].default == "mixed"
        assert inspect.signature(evaluate_folder).parameters["metrics"].default == "psnr,mixed,msssim"


def test_the_page_has_the_weights() -> None:
    rows = {}
    text = (Path(__file__).parent.parent / "docs" / "OBJECTIVE.md").read_text()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0][:2] in ("", "a,", "f,", "g,"):
            rows[cells[0][:1]] = tuple(float(cell.split("= ")[-1]) for cell in cells[1:3])
    blue = re.search(r"c = (\d+) at every lambda", text)
    assert blue is not None
    assert MixedWeights(rows["a"], rows["f"], rows["g"], rows[""], float(blue[1])) == objective.MIXED


@pytest.fixture(scope="module")
def experiment() -> Any:
    path = Path(__file__).parent.parent / "experiments" / "objective.py"
    spec = importlib.util.spec_from_file_location("objective_experiment", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestTheExperiment:
    """experiments/objective.py puts others in the place of the shipped objective."""

    @pytest.mark.parametrize("name, share", [("rgb", 0.0), ("half", 0.5), ("msssim", 1.0)])
    def test_of_rgb(self, experiment: Any, name: str, share: float) -> None:
        x, x_hat = pictures(2, 40, 48)
        mu, lmbda = torch.full((2,), METRICS["mixed"]), torch.full((2,), 0.01)
        with experiment.searching_for(name):
            found = distortion(x, x_hat, Blend.of(mu, lmbda)), DistortionTo(x, Blend.of(mu, lmbda))(x_hat.clamp(0, 1))
        gain = 1.0 / (1.0 - share + share * 0.38)
        for picture, value in zip((x_hat, x_hat.clamp(0, 1)), found):
            squared = 255.0**2 * metrics.mse(x, picture)
            structure = RATIO * (1.0 - metrics.msssim(x, picture.clamp(0, 1)))
            torch.testing.assert_close(value, gain * ((1.0 - share) * squared + share * structure))
        assert Blend.of(mu, lmbda).needs == Needs(luma=(0, 1))  # all as it was

    def test_named_weights(self, experiment: Any) -> None:
        shipped = objective.MIXED
        with experiment.searching_for("shipped"):
            assert shipped == objective.MIXED
        with experiment.searching_for(f"c={shipped.blue / 2:g}"):
            assert dataclasses.replace(shipped, blue=shipped.blue / 2) == objective.MIXED
        with experiment.searching_for("a=0.5/0.25,f=0.6"):
            made = objective.MIXED
        assert (made.structure, made.luma, made.blue) == ((0.5, 0.25), (0.6, 0.6), shipped.blue)
        assert made.gain == (experiment.gain_for(0.5, 0.6), experiment.gain_for(0.25, 0.6))
        assert shipped == objective.MIXED
