"""PSNR and MS-SSIM against an independent implementation and on small pictures."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from l2c import metrics


def pair(height: int, width: int, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    x = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    x = torch.nn.functional.interpolate(x, size=(height, width), mode="bilinear")
    return x, (x + noise * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def test_psnr_equals_scikit_image() -> None:
    x, y = pair(40, 50)
    expected = peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=1.0)
    assert float(metrics.psnr(x, y)) == pytest.approx(expected, abs=1e-4)


def test_one_scale_equals_scikit_image() -> None:
    """Below 22 pixels a single scale is left: plain SSIM with a Gaussian window, without scikit-image's border."""
    x, y = pair(20, 40)
    planes = [
        structural_similarity(
            x[0, c].double().numpy(), y[0, c].double().numpy(), data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )[1][5:-5, 5:-5].mean()
        for c in range(3)
    ]  # fmt: skip
    assert float(metrics.msssim(x, y)) == pytest.approx(float(np.mean(planes)), abs=1e-5)


def test_five_scales_equal_the_plain_definition() -> None:
    """Wang 2003 written out with scikit-image's SSIM maps and exact 2x2 means."""
    x, y = pair(176, 192)
    expected = []
    for c in range(3):
        a, b = x[0, c].double().numpy(), y[0, c].double().numpy()
        value = 1.0
        for scale, weight in enumerate(metrics.MSSSIM_WEIGHTS):
            ssim = structural_similarity(
                a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
            )[1][5:-5, 5:-5]
            if scale < 4:
                mean_a, mean_b = (_blur(v) for v in (a, b))
                luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
                ssim = ssim / luminance
                a, b = (v.reshape(v.shape[0] // 2, 2, v.shape[1] // 2, 2).mean(axis=(1, 3)) for v in (a, b))
            value *= ssim.mean() ** weight
        expected.append(value)
    assert float(metrics.msssim(x, y)) == pytest.approx(float(np.mean(expected)), abs=1e-4)


def _blur(a: np.ndarray) -> np.ndarray:
    taps = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    taps /= taps.sum()
    rows = sum(t * a[i : a.shape[0] - 10 + i] for i, t in enumerate(taps))
    return sum(t * rows[:, i : rows.shape[1] - 10 + i] for i, t in enumerate(taps))


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (11, 11), (100, 21), (161, 161)])
def test_any_size(size) -> None:
    x, y = pair(*size)
    value = metrics.msssim(x, y)
    assert value.shape == (1,)
    assert 0.0 <= float(value) <= 1.0
    assert float(metrics.msssim(x, x)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("piece", [7, 64, 1000])
def test_the_filter_works_in_pieces(monkeypatch, piece: int) -> None:
    x, y = pair(200, 190)
    expected = metrics.msssim(x, y)
    monkeypatch.setattr(metrics, "PIECE", piece)
    torch.testing.assert_close(metrics.msssim(x, y), expected, atol=1e-6, rtol=0)


def test_gradient_points_to_the_original() -> None:
    x, y = pair(48, 48)
    y = y.clone().requires_grad_()
    metrics.msssim(x, y).sum().backward()
    assert y.grad is not None
    improved = metrics.msssim(x, y.detach() + 10.0 * y.grad)
    assert float(improved) > float(metrics.msssim(x, y.detach()))


def test_negative_picture_has_a_finite_gradient() -> None:
    """A mean contrast below zero counts as 0, where the gradient of x^w is infinite."""
    x, _ = pair(192, 192)
    y = (1.0 - x).requires_grad_()
    value = metrics.msssim(x, y)
    value.sum().backward()
    assert float(value.detach()) == 0.0
    assert y.grad is not None and bool(torch.isfinite(y.grad).all())


def test_float32_under_autocast() -> None:
    """Variances are small differences of large means: with bfloat16 products values and gradients would be noise."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(2, 3, 176, 176, generator=generator) * 0.2 + 0.6
    y = (x + 0.02 * torch.randn(x.shape, generator=generator)).requires_grad_()
    results = []
    for on in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            value = metrics.msssim(x, y)
        results.append((value, *torch.autograd.grad(value.sum(), y)))
    (plain, plain_gradient), (half, half_gradient) = results
    assert half.dtype == torch.float32 and torch.equal(plain, half) and torch.equal(plain_gradient, half_gradient)
    low = metrics.msssim(x.bfloat16(), y.detach().bfloat16())
    assert low.dtype == metrics.mse(x.bfloat16(), y.detach().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("size", [(9, 30), (24, 16), (63, 70), (161, 177), (200, 330)])
def test_the_search_form_equals_the_plain_one(size) -> None:
    """One scale to five, odd sides, and the hand-written derivative against autograd's."""
    x, y = pair(*size)
    x, y = torch.cat((x, x.flip(3))), torch.cat((y, y.flip(2)))
    plain, fast = (y.clone().requires_grad_() for _ in range(2))
    weights = torch.tensor([1.0, -0.3])
    expected, value = metrics.msssim(x, plain), metrics.SimilarityTo(x)(fast)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    (expected * weights).sum().backward()
    (value * weights).sum().backward()
    assert plain.grad is not None and fast.grad is not None
    torch.testing.assert_close(fast.grad, plain.grad, rtol=1e-3, atol=1e-4 * float(plain.grad.abs().max()))


def test_the_search_form_refuses_other_shapes() -> None:
    x, y = pair(40, 40)
    with pytest.raises(ValueError, match="compared with"):
        metrics.SimilarityTo(x)(y[:, :, :20])


class TestBlueSimilarity:
    @pytest.mark.parametrize("size", [(40, 70), (9, 3), (1, 1)])
    def test_tints(self, size: tuple[int, int]) -> None:
        """Flat pictures have no structure: what is left is the distance of their tints, squared."""
        white, grey, blue, yellow = (
            torch.tensor(c, dtype=torch.float32)[None, :, None, None].expand(1, 3, *size)
            for c in ((1.0, 1.0, 1.0), (0.3, 0.3, 0.3), (0.2, 0.3, 0.9), (0.9, 0.9, 0.1))
        )
        for flat in (white, grey, blue, yellow):
            assert float(metrics.BlueSimilarity(flat)(flat)) == pytest.approx(1.0, abs=1e-6)
        assert float(metrics.BlueSimilarity(white)(grey)) == pytest.approx(1.0, abs=1e-6)  # B - Y of all greys is 0
        # B - Y of blue is 0.27660, of yellow -0.18780
        assert float(metrics.BlueSimilarity(grey)(blue)) == pytest.approx(1.0 - 0.27660**2, abs=1e-4)
        assert float(metrics.BlueSimilarity(yellow)(blue)) == pytest.approx(1.0 - (0.27660 + 0.18780) ** 2, abs=1e-4)

    def test_places(self) -> None:
        """What weighs nothing does not count; weights scale what there is."""
        x, y = pair(64, 96, 0.1)
        whole = 1.0 - metrics.BlueSimilarity(x)(y)
        half = 1.0 - metrics.BlueSimilarity(x, torch.full((1, 1, 64, 96), 0.5))(y)
        torch.testing.assert_close(half, 0.5 * whole)
        assert float(metrics.BlueSimilarity(x, torch.zeros(1, 1, 64, 96))(y)) == 1.0

    def test_fine_noise_does_not_count(self) -> None:
        """Coarse structure alone does: noise of single pixels is averaged away, a tint of 32x32 pixels is not."""
        x = torch.full((1, 3, 128, 128), 0.5)
        generator = torch.Generator().manual_seed(3)
        fine = 0.05 * torch.randn(1, 1, 128, 128, generator=generator)
        coarse = 0.05 * torch.randn(1, 1, 4, 4, generator=generator).repeat_interleave(32, 2).repeat_interleave(32, 3)
        tint = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None]
        similarity = metrics.BlueSimilarity(x)
        assert float(1.0 - similarity(x + fine * tint)) < 0.05 * float(1.0 - similarity(x + coarse * tint))

    def test_float32_under_autocast(self) -> None:
        x, y = pair(64, 96, 0.02)
        similarity = metrics.BlueSimilarity(x)
        expected = similarity(y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(similarity(y), expected)
            torch.testing.assert_close(metrics.BlueSimilarity(x)(y), expected)
