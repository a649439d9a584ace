"""Encoding with effort: targets, exactness, batches, time limits, and files that name changes to D."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import l2c
from l2c.adapt.bias_sets import BiasSets
from l2c.adapt.effort import EFFORTS
from l2c.adapt.savings import saving
from l2c.codec.batch import Batch
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.errors import BitstreamError, RateError
from l2c.evaluate.measures import measure
from l2c.format.adapt_section import NO_SET, PatchChanges
from l2c.format.bitstream import ADAPT, read_bitstream, write_bitstream
from l2c.models import save_model
from l2c.search import Adapt, Best, Plain
from l2c.transforms import Transform, num_biases


@pytest.fixture(scope="module")
def codec() -> l2c.Codec:
    """The shipped model."""
    return l2c.Codec()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """uint8 [200, 280, 3] of a free photograph."""
    from skimage.data import coffee

    return np.ascontiguousarray(coffee()[100:300, 150:430])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("rate", [0.25, 0.6, 1.37])
@pytest.mark.parametrize("metric", ["psnr", "msssim"])
def test_rate_is_met_and_quality_rises(codec: l2c.Codec, photo: np.ndarray, rate: float, metric: str) -> None:
    plain = codec.encode_detailed(photo, bpp=rate, metric=metric)
    adapted = codec.encode_detailed(photo, bpp=rate, metric=metric, effort=3)
    for result in (plain, adapted):
        assert result.target_reached
        assert 0.98 * rate <= result.bpp <= rate
    decoded = codec.decode(adapted.data)
    assert codec.verify(adapted.data) == adapted.latents_sha256
    assert adapted.adaptation.iterations >= 1
    assert adapted.adaptation.objective_gain_percent > 1.0
    if metric == "psnr":
        assert psnr(decoded, photo) > psnr(codec.decode(plain.data), photo)


def test_every_backend_decodes_adapted_files(codec: l2c.Codec, photo: np.ndarray) -> None:
    encoded = codec.encode_detailed(photo[:64, :72], quality=40, effort=2)
    digests = {l2c.Codec(backend=name).verify(encoded.data) for name in ("cpu", "torch", "reference")}
    assert digests == {encoded.latents_sha256}


def test_same_file_again(codec: l2c.Codec, photo: np.ndarray) -> None:
    assert codec.encode(photo, bpp=0.4, effort=2) == codec.encode(photo, bpp=0.4, effort=2)


def test_bytes_psnr_and_msssim_as_targets(codec: l2c.Codec, photo: np.ndarray) -> None:
    from l2c.metrics import msssim as msssim_of

    photo = photo[40:180, 60:240]
    for effort in (0, 2):
        sized = codec.encode_detailed(photo, max_bytes=2000, effort=effort)
        assert 0.98 * 2000 <= len(sized.data) <= 2000
        good = codec.encode_detailed(photo, psnr=31.0, metric="psnr", effort=effort)
        assert good.target_reached
        assert 31.0 <= psnr(codec.decode(good.data), photo) < 31.25
        similar = codec.encode_detailed(photo, msssim=0.97, metric="msssim", effort=effort)
        x, x_hat = (
            torch.from_numpy(a.copy()).permute(2, 0, 1)[None] / 255 for a in (photo, codec.decode(similar.data))
        )
        assert 0.97 <= float(msssim_of(x, x_hat)) < 0.973
    assert len(good.data) < len(codec.encode(photo, psnr=31.0, metric="psnr"))


def test_targets_that_cannot_be_reached(codec: l2c.Codec, photo: np.ndarray) -> None:
    with pytest.raises(RateError, match="least rate is"):
        codec.encode(photo[:16, :16], bpp=0.01, effort=2)
    flat = codec.encode_detailed(np.full((64, 64, 3), 90, np.uint8), bpp=2.0, effort=2, lossless="never")
    assert not flat.target_reached
    assert "needs only" in flat.reason
    best = codec.encode_detailed(photo[:64, :64], psnr=90.0, effort=1, lossless="never")
    assert not best.target_reached
    assert "PSNR" in best.reason


def test_a_batch_of_different_sizes(codec: l2c.Codec, photo: np.ndarray) -> None:
    pictures = [photo[:96, :120], photo[40:136, 100:220], photo[:70, :50]]
    together = codec.encode_batch_detailed(pictures, bpp=0.6, effort=2)
    for picture, result in zip(pictures, together):
        alone = codec.encode_detailed(picture, bpp=0.6, effort=2)
        assert 0.98 * 0.6 <= result.bpp <= 0.6
        assert codec.decode(result.data).shape == picture.shape
        assert result.quality == alone.quality
        assert abs(psnr(codec.decode(result.data), picture) - psnr(codec.decode(alone.data), picture)) < 0.15


def test_tiles_are_searched_with_their_neighbours(photo: np.ndarray) -> None:
    codec = l2c.Codec()
    wide = np.concatenate([photo, photo[:, ::-1], photo], axis=1)[:, :600]
    plain = codec.encode_detailed(wide, quality=40, tile=512, metric="psnr")
    adapted = codec.encode_detailed(wide, quality=40, tile=512, metric="psnr", effort=2)
    for file, name in ((plain, "distortion_before"), (adapted, "distortion_after")):  # the search saw what D decodes
        error = np.mean((codec.decode(file.data).astype(float) - wide) ** 2)
        assert getattr(adapted.adaptation, name) == pytest.approx(error, rel=0.03)
    assert len(adapted.data) < len(plain.data)
    assert codec.verify(adapted.data) == adapted.latents_sha256
    assert psnr(codec.decode(adapted.data), wide) > psnr(codec.decode(plain.data), wide) - 0.15


def test_progress_and_time_limit(codec: l2c.Codec, photo: np.ndarray) -> None:
    told: list[tuple[float, str]] = []
    codec.encode(photo[:64, :64], quality=50, effort=4, progress=lambda share, stage: told.append((share, stage)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert {stage for _, stage in told} >= {"latents"}
    start = time.perf_counter()
    late = codec.encode_detailed(photo, quality=50, effort=9, max_seconds=1e-3)
    assert late.adaptation.iterations == 0
    assert late.data == codec.encode(photo, quality=50)
    hurried = codec.encode_detailed(photo, bpp=0.5, effort=9, max_seconds=1e-3)
    assert time.perf_counter() - start < 20
    assert hurried.adaptation is None
    assert 0.98 * 0.5 <= hurried.bpp <= 0.5


def test_inside_other_modes(codec: l2c.Codec, photo: np.ndarray) -> None:
    small = photo[:64, :64]
    wanted = codec.encode(small, quality=50, effort=1)
    with torch.inference_mode():
        assert codec.encode(small, quality=50, effort=1) == wanted
    with torch.no_grad():
        assert codec.encode(small, quality=50, effort=1) == wanted
    torch.set_default_dtype(torch.float64)
    try:
        assert codec.encode(small, quality=50, effort=1) == wanted
    finally:
        torch.set_default_dtype(torch.float32)


def test_levels_are_in_order() -> None:
    assert EFFORTS[0].iterations == 0
    for low, high in itertools.pairwise(EFFORTS):
        assert high.iterations * high.tries >= low.iterations * low.tries and high != low
        assert high.sets >= low.sets
        assert high.steps >= low.steps
        for mu in (0, 4, 8):
            for bpp in (0.001, 0.3, 5.0):
                assert saving(high, mu, bpp) < 0.15 and (
                    high.iterations == low.iterations or saving(high, mu, bpp) > saving(low, mu, bpp)
                )


@pytest.mark.parametrize(
    "numbers", [{"iterations": -1}, {"iterations": 1.5}, {"sets": 256}, {"steps": True}, {"tries": 0}, {"tries": 6}]
)
def test_impossible_efforts(numbers: dict[str, int]) -> None:
    with pytest.raises(l2c.UnsupportedError, match="of an effort is"):
        l2c.Effort(**numbers)


def test_own_mixture_of_tools(codec: l2c.Codec, photo: np.ndarray) -> None:
    assert codec.encode(photo, quality=50, effort=l2c.Effort()) == codec.encode(photo, quality=50)
    mixture = codec.encode_detailed(photo, quality=50, effort=l2c.Effort(3))
    assert mixture.adaptation.iterations == 3
    level = next(k for k, effort in enumerate(EFFORTS) if effort == l2c.Effort(4))
    assert codec.encode(photo, quality=50, effort=l2c.Effort(4)) == codec.encode(photo, quality=50, effort=level)
    with pytest.raises(l2c.UnsupportedError, match="with effort it must be at most"):
        codec.encode(photo, tile=4096, effort=l2c.Effort(steps=1))


@pytest.mark.parametrize("metric", ["psnr", "msssim"])
def test_tries_start_at_other_qualities_and_keep_the_best(
    codec: l2c.Codec, photo: np.ndarray, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = photo[40:168, 60:236]
    levels: list[int] = []
    adapt = codec.encoder.adapt

    def noting(batch: Batch, asked: list[Adapt], *rest: object) -> object:
        levels.extend(question.quality for question in asked)
        return adapt(batch, asked, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(codec.encoder, "adapt", noting)
    told: list[float] = []
    best = codec.encode_detailed(
        photo, bpp=0.5, metric=metric, effort=l2c.Effort(2, tries=3), progress=lambda share, stage: told.append(share)
    )
    assert best.target_reached and 0.49 <= best.bpp <= 0.5
    assert len(levels) == 3 and levels[2] < levels[0] < levels[1] and round(10 * best.quality) in levels
    assert told == sorted(told) and told[-1] == 1.0
    files = [codec.encode_detailed(photo, bpp=0.5, metric=metric, effort=l2c.Effort(2, tries=n)) for n in (1, 2)]

    def figure(result: l2c.Encoded) -> float:
        name = "psnr-rgb" if metric == "psnr" else "ms-ssim-rgb"
        return measure(photo, codec.decode(result.data), (name,))[name] / result.bpp**1e-3

    told.clear()
    flat = np.full((64, 64, 3), 90, np.uint8)  # has no other quality to try
    kept = l2c.EncodeOptions(bpp=0.5, lossless="never")
    codec.encode(flat, **kept, effort=l2c.Effort(1, tries=3), progress=lambda share, stage: told.append(share))
    assert told == sorted(told) and told[-1] == 1.0
    levels.clear()
    both = codec.encode_batch_detailed([photo, flat], **kept, effort=l2c.Effort(2, tries=2))
    assert both[0].target_reached and not both[1].target_reached
    assert len(levels) == 3
    assert figure(best) >= max(map(figure, files)) - 1e-3 * figure(best)


@pytest.fixture(scope="module")
def with_sets(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> l2c.Codec:
    """A tiny model with a mask and five bias sets."""
    path: Path = tmp_path_factory.mktemp("models") / "tiny-sets.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        transform = Transform(tiny_config.transform)
        probability = multiscale.IntegerModel.from_float(tiny_config.float_model())
        values = 0.05 * torch.randn(2, 5, num_biases(transform.decoder))
    sets = BiasSets(values, torch.zeros(2, 5, 2))
    save_model(path, tiny_config, transform, probability, rate_curve=[], bias_sets=sets)
    return l2c.Codec(path)


def changed(data: bytes, body: bytes) -> bytes:
    """The file with another ADAPT section."""
    stream = read_bitstream(data)
    channels = [tile.channels for tile in stream.tiles]
    return write_bitstream(stream.header, stream.payloads, channels, dict(stream.metadata) | {ADAPT: body})


def test_files_that_change_the_decoder(with_sets: l2c.Codec, photo: np.ndarray) -> None:
    """Sets and conditions act on their patches alone; in a batch with a file that has none, as alone."""
    wide = np.concatenate([photo, photo], axis=1)  # 560 pixels: three columns of 256, two of 512
    plain = with_sets.encode(wide, quality=60)
    base = with_sets.decode(plain).astype(int)
    moved = np.zeros((2, 1, 2), np.int8)
    moved[:, 0, 1] = 60
    for changes in (
        PatchChanges(np.array([[2, NO_SET, NO_SET]], np.uint8)),
        PatchChanges(conditions=moved),
        PatchChanges(np.array([[NO_SET, NO_SET, 4]], np.uint8), moved),
    ):
        data = changed(plain, changes.pack())
        difference = np.abs(with_sets.decode(data) - base).max(axis=(0, 2))
        first = changes.sets is not None and changes.sets[0, 0] != NO_SET
        assert difference[:100].any() == first
        assert not difference[300:400].any()
        assert difference[520:].any() == (not first)
        assert with_sets.verify(data) == with_sets.verify(plain)
        both = with_sets.decode_batch([plain, data])
        assert np.array_equal(both[0], base)
        assert np.array_equal(both[1], with_sets.decode(data))


def test_sections_that_do_not_fit(with_sets: l2c.Codec, photo: np.ndarray, tiny_model_path: Path) -> None:
    plain = with_sets.encode(photo, quality=60)
    for body in (b"\x07", b"\x01\x01\x00\x05", b"\x01\x01\x00\x04\x00"):
        for call in (with_sets.decode, with_sets.verify, with_sets.decode_detailed):
            with pytest.raises(BitstreamError, match="section ADAPT"):
                call(changed(plain, body))
    without = l2c.Codec(tiny_model_path)
    data = changed(without.encode(photo, quality=60), b"\x01\x01\x00\x00")
    with pytest.raises(BitstreamError, match="bias set 0, the model has 0"):
        without.decode(data)


def test_the_encoder_uses_sets_that_help(with_sets: l2c.Codec) -> None:
    """A picture that this decoder makes with a set: an encoder that tries sets names it."""
    rng = np.random.default_rng(0)
    rough = rng.integers(60, 190, (300, 530, 3)).astype(np.uint8)
    plain = with_sets.encode(rough, quality=70)
    index = np.array([[1, 3, NO_SET], [0, 3, 1]], np.uint8)
    target = with_sets.decode(changed(plain, PatchChanges(index).pack()))
    result = with_sets.encode_detailed(target, quality=70, effort=6, metric="psnr")
    assert result.adaptation.patches_with_bias_set >= 2
    found = PatchChanges.unpack(bytes(read_bitstream(result.data).metadata[ADAPT]), 530, 300, 5, 2).sets
    assert found is not None
    assert (found == index).sum() >= 3


def test_report_is_plain_numbers(codec: l2c.Codec, photo: np.ndarray) -> None:
    result = codec.encode_detailed(photo[:64, :64], quality=50, effort=1)
    assert all(isinstance(value, (int, float)) for value in result.adaptation_as_dict().values())
    assert dataclasses.asdict(result)["adaptation"] == result.adaptation_as_dict()
    assert codec.encode_detailed(photo[:64, :64], quality=50).adaptation is None


def test_first_used_inside_other_modes(photo: np.ndarray) -> None:
    """What a process keeps must not be bound to the mode of its first caller."""
    small = photo[:47, :63]
    wanted = l2c.Codec().encode(small, quality=50, effort=1)
    with torch.inference_mode():
        codec = l2c.Codec()
        assert codec.encode(small, quality=50, effort=1) == wanted
        codec.encode(small[:44], msssim=0.9, effort=1)
        codec.encode(small, psnr=25.0, effort=2, max_seconds=1e-6)
    assert codec.encode(small, quality=50, effort=1) == wanted
    codec.encode(small[:44], quality=50, metric="msssim", effort=1)
    torch.set_default_dtype(torch.float64)
    try:
        codec = l2c.Codec()
        assert codec.encode(small, quality=50, effort=1) == wanted
        codec.encode(small[:43], msssim=0.9)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("effort", [0, 2, 5])
def test_small_sizes_are_met_or_explained(codec: l2c.Codec, photo: np.ndarray, effort: int) -> None:
    """Where no quality hits the size the file says so; a size that no adaptation reaches is reached without it."""
    board = (np.indices((64, 64)).sum(axis=0) // 4 % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    for picture, size in ((photo[:16, :16], 80), (photo[:32, :32], 90), (photo[:64, :96], 120), (board, 300)):
        result = codec.encode_detailed(picture, max_bytes=size, effort=effort, lossless="never")
        assert len(result.data) <= size
        assert result.target_reached == (len(result.data) >= 0.98 * size)
        assert result.target_reached or result.reason
        assert codec.verify(result.data) == result.latents_sha256


@pytest.mark.parametrize("b", [1, 3, 8])
def test_uniform_prior_and_few_bits(b: int, photo: np.ndarray, configs: Path, tmp_path: Path) -> None:
    """Latents that the uniform prior prices equally must not leave the range of levels."""
    config = dataclasses.replace(ModelConfig.from_json((configs / "c3b4.json").read_text()), bits=8)
    transform = dataclasses.replace(config.transform, width=8)
    probability = dataclasses.replace(config.probability, width=16)
    config = dataclasses.replace(config, transform=transform, probability=probability)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        path = tmp_path / "p.safetensors"
        save_model(
            path,
            config,
            Transform(transform),
            multiscale.IntegerModel.from_float(config.float_model()),
            [],
        )
    codec = l2c.Codec(path)
    result = codec.encode_detailed(photo[:60, :50], quality=90, b=b, effort=4)
    assert codec.verify(result.data) == result.latents_sha256


def test_a_file_that_claims_very_many_modulators() -> None:
    body = b"\x02\x01" + bytes(1 << 20)
    with pytest.raises(BitstreamError, match="no model has so many"):
        PatchChanges.unpack(body, 512, 512, 255, None)


def test_what_the_codec_would_refuse_is_not_written(photo: np.ndarray) -> None:
    from l2c.errors import LimitError
    from l2c.format.bitstream import Limits

    codec = l2c.Codec(limits=Limits(max_tiles=1))
    with pytest.raises(LimitError, match="max_tiles"):
        codec.encode(np.concatenate([photo] * 3, axis=1), tile=512)


def test_what_is_searched_is_what_the_decoder_shows(codec: l2c.Codec, photo: np.ndarray) -> None:
    """D of latents in hand, by which files are compared, gives the pixels of the written file; sizes are exact."""
    batch = codec.encoder.batch([photo], mu=4, effort=EFFORTS[2])
    (plain,) = codec.encoder.encode_at(batch, [Plain(0, 400)])
    adapted = codec.encoder.adapt(batch, [Adapt(0, 400)])[0]
    for trial in (plain, codec.encoder.adapted_trial(batch, 0, adapted)):
        file = codec.encoder.write(batch, 0, Best(trial))
        assert len(file.data) == trial.size
        assert np.array_equal(codec.encoder.decoded(batch, 0, trial.coded), codec.decode(file.data))


def test_pictures_share_passes_and_no_file_is_decoded(
    codec: l2c.Codec, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E runs once for each round of the slowest search, and only the winners are written."""
    passes, written = [], []
    analyse, write = codec.transform_stage.analyse, codec.encoder.write
    monkeypatch.setattr(
        codec.transform_stage, "analyse", lambda p, *a, **k: passes.append(len(p)) or analyse(p, *a, **k)
    )
    monkeypatch.setattr(codec.encoder, "write", lambda batch, i, best: written.append(i) or write(batch, i, best))
    monkeypatch.setattr(codec.latent_stage, "read", None)
    pictures = [photo[:96, :120], photo[40:136, 100:220], photo[90:186, 20:140]]
    for options in ({"bpp": 0.6}, {"psnr": 30.0}, {"bpp": 0.6, "effort": 1}):
        passes.clear(), written.clear()
        files = codec.encode_batch_detailed(pictures, **options)  # type: ignore[arg-type]
        adaptations = 3 if "effort" in options else 0
        assert passes[0] == 3 and len(passes) <= max(file.probes for file in files) + adaptations
        assert written == [0, 1, 2]


def test_groups_of_pictures_that_do_not_fit_together(
    codec: l2c.Codec, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is adapted and corrected before the next one takes its memory; every try of all before the next try."""
    asked: list[list[tuple[int, int]]] = []
    adapt = codec.encoder.adapt

    def noting(batch: Batch, questions: list[Adapt], *rest: object) -> object:
        asked.append([(question.turn, question.i) for question in questions])
        return adapt(batch, questions, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(codec.encoder, "adapt", noting)
    monkeypatch.setattr(codec.encoder, "adapt_pixels", 64 * 160)
    told: list[float] = []
    pictures = [photo[:64, :80], photo[64:128, :80], photo[64:128, 80:200]]
    files = codec.encode_batch_detailed(
        pictures, bpp=0.8, effort=l2c.Effort(1, tries=5), progress=lambda share, stage: told.append(share)
    )
    assert asked[:2] == [[(0, 0), (0, 1)], [(0, 2)]]
    again = [question for group in asked[2:] for question in group]  # at qualities that were not tried before
    assert again and again == sorted(again) and {turn for turn, _ in again} <= {1, 2, 3, 4}
    assert all(len(group) == 1 for group in asked if any(i == 2 for _, i in group))
    assert all(file.target_reached and 0.98 * 0.8 <= file.bpp <= 0.8 for file in files)
    assert told == sorted(told) and told[-1] == 1.0 and {0.0, 0.4} < set(told)


def test_what_was_saved_too_much_is_spent_again(
    codec: l2c.Codec, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A level that expects less than the search saves comes to the rate all the same, without another search."""
    adapted = []
    adapt = codec.encoder.adapt
    monkeypatch.setattr(codec.encoder, "adapt", lambda *a: adapted.append(1) or adapt(*a))
    monkeypatch.setattr("l2c.search.sizes.saving", lambda effort, mu, bpp: 0.02)
    result = codec.encode_detailed(photo, bpp=0.6, metric="psnr", effort=3)
    assert result.target_reached and 0.98 <= result.bpp / 0.6 <= 1.0
    assert len(adapted) == 1 and result.corrections >= 1
