"""Models from CompressAI's checkpoints at work in the codec: small seeded networks, real files, every target."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Run, one_error
from PIL import Image
from test_compressai import weights

import l2c
from l2c import compressai
from l2c.architectures import ARCHITECTURES, tenths_of
from l2c.compressai.calibrate import pictures
from l2c.errors import BitstreamError, ConfigError, ImageError, RateError, UnsupportedError
from l2c.evaluate.curves import quality_table
from l2c.evaluate.run import Plan, evaluate
from l2c.evaluate.tables import Tables
from l2c.format.bitstream import read_bitstream, write_bitstream
from l2c.models import Model, load_model

QUALITIES = (2, 4, 5)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", l2c.L2CWarning)
        yield


@pytest.fixture(scope="module")
def picture_256() -> np.ndarray:
    """uint8 [256, 256, 3] with noise, shapes and stripes."""
    return pictures(8)[7]


def louder(state: dict[str, torch.Tensor], gain: float) -> dict[str, torch.Tensor]:
    """The same networks with larger latents, so that there is something to code."""
    last = "g_a.7." if "g_a.8.conv_b.0.conv.0.weight" in state else "g_a.6."  # its last convolution
    return {key: tensor * gain if key.startswith(last) else tensor for key, tensor in state.items()}


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of three qualities, of which the higher ones have larger latents."""
    target = tmp_path_factory.mktemp("models") / f"{request.param}.safetensors"
    sources = {q: louder(weights(request.param, 1), 20.0 * q) for q in QUALITIES}
    compressai.convert(sources, target, metric="mse")
    return target


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return load_model(path)


@pytest.fixture(scope="module")
def context_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "context.safetensors"
    sources = {q: louder(weights("mbt2018", 1), 30.0 * q) for q in QUALITIES}
    compressai.convert(sources, target, metric="mse", rounding="mean")
    return target


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "whole.safetensors"
    sources = {q: louder(weights("mbt2018", 1), 30.0 * q) for q in QUALITIES}
    compressai.convert(sources, target, metric="mse")
    return target


def test_every_quality_and_size(model: Model, picture_256: np.ndarray) -> None:
    """Files decode to the latents that were encoded, in every backend, at sizes that are no multiples of anything."""
    codec = l2c.Codec(model)
    for height, width in ((1, 1), (17, 3), (97, 131)):
        picture = picture_256[:height, :width]
        sizes = []
        for quality in QUALITIES:
            encoded = codec.encode_detailed(picture, quality=quality)
            assert encoded.quality == quality and read_bitstream(encoded.data).header.quality == tenths_of(quality)
            decoded = codec.decode_detailed(encoded.data)
            assert decoded.latents_sha256 == encoded.latents_sha256
            assert decoded.picture.rgb.shape == (height, width, 3)
            sizes.append(len(encoded.data))
            for name in model.integer.backends():
                if name in ("torch", "reference"):
                    other = l2c.Codec(model, backend=name)
                    assert other.encode(picture, quality=quality) == encoded.data
                    assert other.verify(encoded.data) == encoded.latents_sha256
        assert sizes == sorted(sizes)


def test_latents_are_those_of_the_networks(model: Model, picture_256: np.ndarray) -> None:
    """y is rounded, to whole numbers or from its mean, and nothing else happens to it."""
    codec, picture = l2c.Codec(model), picture_256[:64, :96]
    data = codec.encode(picture, quality=5)
    (symbols,) = codec.read_latents([read_bitstream(data)])
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255.0
    with torch.no_grad():
        y = model.transform.encoder(x, codec.transform_stage.condition(tenths_of(5), 0))[0]
    y_hat = codec.transform.quantiser.dequantise(torch.from_numpy(symbols), 8)
    assert symbols.dtype == np.int16 and y_hat.abs().max() > 1
    if model.config.transform.pairing["rounding"] == "whole":
        torch.testing.assert_close(y_hat, y[0].round(), rtol=0, atol=0)
    else:
        assert (y_hat - y[0]).abs().max() <= 0.5 + 1 / 32 and bool((y_hat != y_hat.round()).any())


def test_batches_and_threads(context_model: Path, picture_256: np.ndarray) -> None:
    pictures = [picture_256[: 40 + 9 * k, : 70 - 8 * k] for k in range(4)]
    alone = [l2c.Codec(str(context_model), threads=1).encode(picture, quality=4) for picture in pictures]
    codec = l2c.Codec(str(context_model), threads=2)
    assert codec.encode_batch(pictures, quality=4) == alone
    for picture, mine in zip(codec.decode_batch(alone), alone):
        np.testing.assert_array_equal(picture, codec.decode(mine))


def test_tiles(context_model: Path, whole_model: Path, picture_256: np.ndarray) -> None:
    """Several tiles: streams of their own, and pixels without a seam that D could make."""
    picture = np.tile(picture_256, (3, 3, 1))[:530, :600]
    for path in (context_model, whole_model):
        codec = l2c.Codec(str(path))
        cut, one = codec.encode_detailed(picture, quality=4, tile=512), codec.encode_detailed(picture, quality=4)
        assert len(read_bitstream(cut.data).tiles) == 4 and codec.verify(cut.data) == cut.latents_sha256
        if path == whole_model:
            assert cut.latents_sha256 == one.latents_sha256
            np.testing.assert_array_equal(codec.decode(cut.data), codec.decode(one.data))


def test_targets(context_model: Path, picture_256: np.ndarray) -> None:
    codec, picture = l2c.Codec(str(context_model)), picture_256[:96, :128]
    at = {quality: len(codec.encode(picture, quality=quality)) for quality in QUALITIES}
    assert len(set(at.values())) == 3
    for quality in QUALITIES:
        assert codec.encode_detailed(picture, max_bytes=at[quality] + 1).quality == quality
        bpp = 8 * at[quality] / picture[..., 0].size
        assert codec.encode_detailed(picture, bpp=bpp * 1.0001).quality == quality
    with pytest.raises(RateError):
        codec.encode(picture, max_bytes=at[2] - 1)
    assert codec.encode_detailed(picture).quality == 4  # nothing asked: the middle one
    for wrong in (1, 3, 50, 2.5, 0):
        with pytest.raises(UnsupportedError, match="this model has 2, 4, 5"):
            codec.encode(picture, quality=wrong)
    with pytest.raises(UnsupportedError, match="it must be 8 with this model"):
        codec.encode(picture, quality=4, b=6)


def test_latents_rounded_from_means_stay(context_model: Path, picture_256: np.ndarray) -> None:
    """No effort moves them; what modulators gain is seen where they are trained: `test_modulators`."""
    codec, picture = l2c.Codec(str(context_model)), picture_256[:96, :128]
    plain = codec.encode(picture, quality=4)
    for effort in (l2c.Effort(steps=2), l2c.Effort(3, steps=2), 1):
        assert codec.encode(picture, quality=4, effort=effort) == plain


@pytest.mark.parametrize("rounding", ["mean", "whole"])
def test_modulators(rounding: str, tmp_path: Path, picture_256: np.ndarray) -> None:
    """Modulators that do something are adapted, and the latents are those of the plain file."""
    torch.manual_seed(2)
    sources = {q: louder(weights("mbt2018", 1), 30.0 * q) for q in QUALITIES}
    model = compressai.convert(sources, tmp_path / "a.safetensors", metric="mse", rounding=rounding)
    with torch.no_grad():
        for modulator in model.transform.decoder.mods:
            modulator.fc2.weight.normal_(0.0, 0.3)  # type: ignore[union-attr, operator]
    codec, picture = l2c.Codec(model), picture_256[:128, :96]
    plain = codec.encode_detailed(picture, quality=4, metric="psnr")
    adapted = codec.encode_detailed(picture, quality=4, metric="psnr", effort=l2c.Effort(steps=4))
    assert adapted.adaptation is not None and adapted.adaptation.patches_with_conditions == 1
    assert adapted.latents_sha256 == plain.latents_sha256 == codec.verify(adapted.data)
    errors = [np.square(codec.decode(part.data).astype(float) - picture).mean() for part in (plain, adapted)]
    assert errors[1] < 0.999 * errors[0]
    for size in (len(plain.data), len(adapted.data)):
        sized = codec.encode_detailed(picture, max_bytes=size, metric="psnr", effort=l2c.Effort(steps=4))
        assert len(sized.data) <= size and codec.verify(sized.data) == sized.latents_sha256


def test_search_among_latents(whole_model: Path, picture_256: np.ndarray) -> None:
    """Where latents are whole numbers they can be searched, and the file is as exact as any."""
    codec, picture = l2c.Codec(str(whole_model)), picture_256[:96, :128]
    plain = codec.encode(picture, quality=4)
    searched = codec.encode_detailed(picture, quality=4, effort=2, metric="psnr")
    assert searched.adaptation is not None and searched.adaptation.objective_gain_percent > 0.5
    assert codec.verify(searched.data) == searched.latents_sha256
    sized = codec.encode_detailed(picture, max_bytes=len(plain), effort=2)
    assert len(sized.data) <= len(plain)


def test_damaged_files(context_model: Path, picture_256: np.ndarray) -> None:
    """Payloads that were altered and resealed are refused, not shown."""
    codec = l2c.Codec(str(context_model))
    data = codec.encode(picture_256[:64, :64], quality=5)
    for cut in (1, 7, len(data) // 2):
        with pytest.raises(BitstreamError):
            codec.decode(data[:-cut])
    other = l2c.Codec(str(context_model)).encode(picture_256[32:, 16:], quality=5)
    stream, foreign = read_bitstream(data), read_bitstream(other)
    swapped = write_bitstream(stream.header, foreign.payloads, [tile.channels for tile in stream.tiles])
    with pytest.raises(BitstreamError):
        codec.decode(swapped)


class TestConvert:
    def test_load_is_convert(self, tmp_path: Path, picture_256: np.ndarray) -> None:
        state = louder(weights("cheng2020-anchor", 3), 20.0)
        loaded = compressai.load(state, 4, "mse")
        written = compressai.convert({4: state}, tmp_path / "one.safetensors", metric="mse")
        picture = picture_256[:48, :80]
        first, second = (l2c.Codec(model).encode_detailed(picture) for model in (loaded, written))
        assert first.latents_sha256 == second.latents_sha256
        assert written.card["metric"] == "mse" and "drawn by code" in written.card["calibrated on"]

    def test_weights_are_the_checkpoints(self, tmp_path: Path) -> None:
        state = weights("mbt2018", 5)
        for stored, tolerance in (("float32", 0.0), ("float16", 1e-3)):
            model = compressai.convert({1: state}, tmp_path / f"{stored}.safetensors", metric="mse", stored=stored)
            for key, tensor in model.transform.encoder.g_a[0].state_dict().items():
                torch.testing.assert_close(tensor, state[f"g_a.{key}"], rtol=tolerance, atol=tolerance)

    def test_calibration_is_used(self, tmp_path: Path, picture_256: np.ndarray) -> None:
        state = louder(weights("mbt2018-mean", 5), 50.0)
        state |= {key: 100.0 * state[key] for key in ("h_a.4.weight", "h_a.4.bias")}
        drawn = compressai.convert({1: state}, tmp_path / "a.safetensors", metric="mse")
        mine = compressai.convert({1: state}, tmp_path / "b.safetensors", metric="mse", calibrate=[picture_256])
        assert drawn.known_answer != mine.known_answer
        with pytest.raises(ConfigError, match="no pictures"):
            compressai.convert({1: state}, tmp_path / "c.safetensors", metric="mse", calibrate=[])
        with pytest.raises(ImageError):
            compressai.convert({1: state}, tmp_path / "c.safetensors", metric="mse", calibrate=[b"nothing"])
        assert not (tmp_path / "c.safetensors").exists()

    def test_refused(self, tmp_path: Path) -> None:
        state = weights("mbt2018", 5)
        with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
            compressai.convert({1: state}, tmp_path / "a.pth", metric="mse")
        with pytest.raises(ConfigError, match="at least one checkpoint"):
            compressai.convert({}, tmp_path / "a.safetensors")
        with pytest.raises(ConfigError, match="one quality for 2 checkpoints"):
            compressai.convert([state, state], tmp_path / "a.safetensors", quality=1, metric="mse")
        assert not list(tmp_path.iterdir())


class TestEvaluation:
    """Such models beside ours, and the figures of OML at their own qualities."""

    @pytest.fixture
    def crops(self, tmp_path: Path) -> list[Path]:
        folder = tmp_path / "crops"
        folder.mkdir()
        for number, picture in enumerate(pictures(2)):
            Image.fromarray(picture[:176, :192]).save(folder / f"{number}.png")
        return sorted(folder.iterdir())

    def test_beside_ours(self, whole_model: Path, crops: list[Path], tmp_path: Path) -> None:
        plan = Plan(crops[:1], (0.5,), ("psnr",), (0,), ("none",), ("psnr-rgb",))
        other = l2c.Codec(str(whole_model))
        outcome = evaluate(l2c.Codec(), plan, tmp_path / "record", beside=[other])
        assert {(row["codec"], row["target"]) for row in outcome.rows} == {
            ("l2c-psnr", 0.5), ("whole-psnr", 2.0), ("whole-psnr", 4.0), ("whole-psnr", 5.0),
        }  # fmt: skip
        curve = next(curve for curve in outcome.curves if curve.codec == "whole-psnr")
        assert curve.targets == [2.0, 4.0, 5.0] and "whole" in curve.title and "in_window" not in curve.values
        assert "| quality 4 |" in quality_table(outcome.curves, ("psnr-rgb",))
        again = evaluate(l2c.Codec(), plan, tmp_path / "record", beside=[other])
        assert (again.measured, again.known) == (0, 4)
        with pytest.raises(UnsupportedError, match="same name"):
            evaluate(l2c.Codec(), plan, tmp_path / "record", beside=[other, other])

    def test_figures_of_oml(self, tmp_path: Path, crops: list[Path]) -> None:
        sources = {q: louder(weights("mbt2018", q), 20.0 * q) for q in (2, 4)}
        own = compressai.convert(sources, tmp_path / "own.safetensors", metric="mse")
        shared = compressai.convert(sources, tmp_path / "shared.safetensors", metric="mse", shared_decoder=True)
        tables = Tables(l2c.Codec(shared), crops, tmp_path / "r", examples=1, steps=(1,), own=l2c.Codec(own))
        lines = [line.split("|")[1:-1] for line in tables.figure_four(1).splitlines() if line.startswith("| PSNR")]
        assert len(lines) == 2 and float(lines[0][1]) != float(lines[1][1])  # two qualities
        assert float(lines[1][6]) == pytest.approx(0.0, abs=1e-6)  # the shared decoder started as this quality's own
        assert abs(float(lines[0][6])) > 1e-6
        assert "quality 2" in tables.figure_five()
        third = compressai.convert({2: weights("mbt2018", 9)}, tmp_path / "third.safetensors", metric="mse")
        other = Tables(l2c.Codec(shared), crops, tmp_path / "s", examples=1, own=l2c.Codec(third))
        with pytest.raises(UnsupportedError, match="other latents"):
            other.figure_four(1)


class TestCommand:
    def test_import_and_use(self, run: Run, tmp_path: Path, picture_256: np.ndarray) -> None:
        torch.save(louder(weights("mbt2018", 1), 40.0), tmp_path / "any.pth")
        Image.fromarray(picture_256[:64, :64]).save(tmp_path / "in.png")
        target = tmp_path / "mine.safetensors"
        asked = ("import", tmp_path / "any.pth", "-o", target, "--quality", "3", "--metric", "mse")
        code, out, _ = run(*asked, "--json")
        assert code == 0 and json.loads(out)["qualities"] == [3]
        code, _, err = run(*asked)
        assert code == 2 and "--overwrite" in err
        assert run("encode", tmp_path / "in.png", tmp_path / "a.l2c", "--model", target, "--quality", "3")[0] == 0
        assert run("decode", tmp_path / "a.l2c", tmp_path / "out.png", "--model", target)[0] == 0
        shown = l2c.Codec(str(target)).decode((tmp_path / "a.l2c").read_bytes())
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out.png")), shown)
        code, _, err = run("encode", tmp_path / "in.png", tmp_path / "b.l2c", "--model", target, "--quality", "4")
        assert code != 0 and "this model has 3" in one_error(err)

    def test_what_is_no_checkpoint(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "mbt2018-1-00000000.pth.tar").write_bytes(b"nothing")
        code, _, err = run("import", tmp_path / "mbt2018-1-00000000.pth.tar", "-o", tmp_path / "a.safetensors")
        assert code not in (0, 2) and "Traceback" not in err
        assert not (tmp_path / "a.safetensors").exists()
