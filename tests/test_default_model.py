"""The shipped weights: exact on every backend, small enough, better than JPEG, monotone."""

import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import l2c
from l2c import models
from l2c.config import ModelConfig
from l2c.entropy.coder import EncodingJob
from l2c.format.levels import OperatingPoint
from l2c.metrics import msssim, psnr


@pytest.fixture(scope="module")
def codec() -> l2c.Codec:
    return l2c.Codec()


def scores(picture: np.ndarray, decoded: np.ndarray) -> tuple[float, float]:
    x, y = (torch.from_numpy(np.array(a)).permute(2, 0, 1)[None].float() / 255 for a in (picture, decoded))
    return float(psnr(x, y)), float(msssim(x, y))


def test_weights_are_exact_and_small(codec, configs) -> None:
    for backend in ("cpu", "torch", "reference"):
        codec.model.integer.check(codec.model.known_answer, backend)
    assert codec.model.config == ModelConfig.from_file(configs / "default.json")
    assert sum(f.stat().st_size for f in models.WEIGHTS_FOLDER.glob("*.safetensors")) <= 24e6
    card = (Path(models.WEIGHTS_FOLDER) / "l2c-default.md").read_text()
    assert codec.model.model_id.hex() in card


@pytest.mark.parametrize("bpp", [0.25, 0.5, 1.0])
def test_better_than_jpeg_at_the_same_rate(codec, bpp: float) -> None:
    picture = skimage.data.coffee()
    image = Image.fromarray(picture)
    data = b""
    for quality in range(1, 96):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if 8 * len(buffer.getvalue()) > bpp * picture[..., 0].size:
            break
        data = buffer.getvalue()
    jpeg = scores(picture, np.asarray(Image.open(io.BytesIO(data))))
    for metric, index in (("psnr", 0), ("msssim", 1)):
        encoded = codec.encode_detailed(picture, bpp=bpp, metric=metric)
        assert 0.97 * bpp <= encoded.bpp <= bpp
        assert scores(picture, codec.decode(encoded.data))[index] > jpeg[index]


@pytest.mark.parametrize("metric", ["psnr", "mixed", "msssim"])
def test_quality_is_monotone(codec, metric: str) -> None:
    picture = skimage.data.astronaut()[:256, :256]
    results = [codec.encode_detailed(picture, quality=q, metric=metric) for q in range(0, 101, 10)]
    rates = [r.bpp for r in results]
    assert rates == sorted(rates)
    assert rates[-1] > 10 * rates[0]
    distances = [scores(picture, codec.decode(r.data))[0] for r in (results[0], results[5], results[10])]
    assert distances == sorted(distances)


def test_payload_is_close_to_the_ideal_length(codec) -> None:
    """Within 0.5 % + 6 bytes a lane of -sum log2 p of the integer model."""
    latents = codec.read_latents([l2c.format.bitstream.read_bitstream(codec.encode(skimage.data.coffee(), bpp=0.5))])[0]
    job = EncodingJob(*latents.shape[1:], OperatingPoint(500, 4, 8), len(latents), latents)
    codec.model.integer.code([job])
    ideal = job.encoder.encoder.ideal_bits / 8
    payload = job.encoder.finish()
    assert ideal <= len(payload) <= 1.005 * ideal + 6 * (1 << payload[0])


@pytest.mark.parametrize("quality", [10, 90])
def test_bfloat16_moves_pixels_by_a_level_and_no_latents(quality: float) -> None:
    codec, low = l2c.Codec(precision="float32"), l2c.Codec(precision="bfloat16")
    data = codec.encode(skimage.data.coffee(), quality=quality)
    pixels, other = (c.decode(data).astype(int) for c in (codec, low))
    assert 0 < np.abs(pixels - other).mean() < 0.1
    assert np.abs(pixels - other).max() <= 1
    assert low.verify(data) == codec.verify(data)
    own = low.encode_detailed(skimage.data.coffee(), quality=quality)
    assert codec.verify(own.data) == own.latents_sha256  # what bfloat16 encoded is a file like any other
    assert len(own.data) == pytest.approx(len(data), rel=0.02)
    with pytest.raises(l2c.UnsupportedError, match="precision is 'float16'"):
        l2c.Codec(precision="float16")
