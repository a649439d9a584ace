"""Files for several receivers (`adapt_for`): who gets what, what it costs, and what old readers see."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import Run
from PIL import Image

import l2c
from l2c.adapt.bias_sets import BiasSets
from l2c.adapt.effort import RECEIVER_STEPS
from l2c.codec import Receiver
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.errors import BitstreamError, UnsupportedError
from l2c.evaluate.measures import measure
from l2c.format import bitstream
from l2c.format.adapt_section import NO_SET, PatchChanges
from l2c.format.alternatives_section import Alternative, pack_alternatives, unpack_alternatives
from l2c.format.bitstream import ADAPT, ALTERNATIVES, SECTION_OVERHEAD, read_bitstream, write_bitstream
from l2c.format.levels import METRICS
from l2c.models import save_model
from l2c.objective import Blend, distortion
from l2c.transforms import Transform, num_biases, num_modulators

BOTH = ("psnr", "msssim")
TABLE = SECTION_OVERHEAD + 1


@pytest.fixture(scope="module")
def tiny(tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> l2c.Codec:
    """A tiny model with bias sets whose two modulators do a lot."""
    path: Path = tmp_path_factory.mktemp("models") / "tiny-moved.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        transform = Transform(tiny_config.transform)
        probability = multiscale.IntegerModel.from_float(tiny_config.float_model())
        with torch.no_grad():
            for modulator in transform.decoder.mods:
                modulator.fc2.weight.mul_(40.0)
        values = 0.05 * torch.randn(2, 5, num_biases(transform.decoder))
    sets = BiasSets(values, torch.zeros(2, 5, 2))
    save_model(path, tiny_config, transform, probability, rate_curve=[], bias_sets=sets)
    return l2c.Codec(path)


@pytest.fixture(scope="module")
def wide(tiny: l2c.Codec) -> np.ndarray:
    """uint8 [300, 560, 3] that the tiny model makes in two patches with conditions of their own."""
    from skimage.data import coffee

    photo = np.ascontiguousarray(coffee()[50:350, 20:580])
    moved = np.zeros((2, 1, 2), np.int8)
    moved[:, 0] = (45, 60), (-50, 30)
    return tiny.decode(changed(tiny.encode(photo, quality=60), {ADAPT: PatchChanges(conditions=moved).pack()}))


@pytest.fixture(scope="module")
def shipped() -> l2c.Codec:
    """The shipped model."""
    return l2c.Codec()


def changed(data: bytes, sections: dict[int, bytes]) -> bytes:
    """The file with other sections; empty ones are left out."""
    stream = read_bitstream(data)
    bodies = {kind: body for kind, body in (dict(stream.metadata) | sections).items() if len(body)}
    return write_bitstream(stream.header, stream.payloads, [tile.channels for tile in stream.tiles], bodies)


def section(data: bytes, codec: l2c.Codec) -> tuple[Alternative, ...]:
    return codec.transform_stage.alternatives(read_bitstream(data))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def cost(codec: l2c.Codec, x: np.ndarray, x_hat: np.ndarray, quality: int, metric: str) -> float:
    """lambda * pixels * D in bits."""
    lmbda = codec.model.config.lmbda(quality / 100)
    blend = Blend.of(torch.tensor([METRICS[metric]]), torch.tensor([lmbda]))
    pair = (torch.from_numpy(part.astype(np.float32)).permute(2, 0, 1)[None] / 255 for part in (x, x_hat))
    return lmbda * float(distortion(*pair, blend)) * x.shape[0] * x.shape[1]


def test_each_receiver_gets_the_better_picture(shipped: l2c.Codec) -> None:
    """With the shipped model, latents and the default picture as they were, in a few bytes."""
    from skimage.data import chelsea

    photo = np.ascontiguousarray(chelsea())
    plain = shipped.encode_detailed(photo, quality=50, metric="msssim")
    file = shipped.encode_detailed(photo, quality=50, metric="msssim", adapt_for=("psnr", "mixed"))
    assert file.latents_sha256 == plain.latents_sha256 and file.adaptation is None
    size = 1 + 1 + 4
    assert file.receivers == (Receiver("psnr", 1, size), Receiver("mixed", 1, size))
    assert len(file.data) == len(plain.data) + TABLE + 2 * size and file.bpp > plain.bpp
    default, wanted = (shipped.decode_detailed(file.data, metric=metric) for metric in (None, "psnr"))
    assert (default.metric, wanted.metric) == ("msssim", "psnr")
    assert np.array_equal(default.picture.rgb, shipped.decode(plain.data))
    assert psnr(wanted.picture.rgb, photo) > psnr(default.picture.rgb, photo) + 0.01
    assert wanted.latents_sha256 == default.latents_sha256 == shipped.verify(file.data)


def test_a_receiver_of_structure(shipped: l2c.Codec) -> None:
    from skimage.data import chelsea

    photo = np.ascontiguousarray(chelsea())
    file = shipped.encode(photo, quality=50, metric="psnr", adapt_for=("msssim", "mixed"))
    name = "ms-ssim-rgb"
    default, wanted = (measure(photo, shipped.decode(file, metric=m), (name,))[name] for m in (None, "msssim"))
    assert wanted > default + 1e-4


def test_sets_that_do_not_pay_are_left_out(shipped: l2c.Codec) -> None:
    from skimage.data import coffee

    photo = np.ascontiguousarray(coffee()[100:230, 150:290])
    plain = shipped.encode(photo, quality=5, metric="psnr")
    file = shipped.encode_detailed(photo, quality=5, metric="psnr", adapt_for=("psnr", "mixed", "msssim"))
    assert file.data == plain
    assert file.receivers == (Receiver("psnr", 0, 0), Receiver("mixed", 0, 0), Receiver("msssim", 0, 0))
    assert shipped.decode_detailed(plain, metric="msssim").metric == "psnr"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Bits that the searches of one picture report, by metric."""
    bits: dict[int, float] = {}
    search = l2c.codec.receivers.conditions_for

    def noting(*arguments: Any) -> Any:
        results = search(*arguments)
        bits[arguments[3]] = results[0][1]
        return results

    monkeypatch.setattr("l2c.codec.receivers.conditions_for", noting)
    return bits


def test_what_is_searched_is_what_receivers_see(tiny: l2c.Codec, wide: np.ndarray, found: dict[int, float]) -> None:
    """The own set comes first and is the default; the others improve on it, by more than they cost."""
    file = tiny.encode_detailed(wide, quality=60, metric="mixed", adapt_for=("mixed", *BOTH))
    assert [part.metric for part in file.receivers] == ["psnr", "mixed", "msssim"]
    assert all(part.patches for part in file.receivers)
    plain = tiny.encode_detailed(wide, quality=60, metric="mixed")
    assert file.latents_sha256 == plain.latents_sha256
    own = file.receivers[1]
    assert file.adaptation is not None and file.adaptation.patches_with_conditions == own.patches
    stream = read_bitstream(file.data)
    assert own.size_bytes == SECTION_OVERHEAD + len(stream.metadata[ADAPT])
    assert len(file.data) == len(plain.data) + own.size_bytes + TABLE + sum(
        part.size_bytes for part in file.receivers if part is not own
    )
    without, default = tiny.decode(plain.data), tiny.decode(file.data)
    saved = cost(tiny, wide, without, 60, "mixed") - cost(tiny, wide, default, 60, "mixed")
    assert saved > 8 * own.size_bytes and found[4] == pytest.approx(saved, rel=0.03)
    for part in file.receivers:
        seen = tiny.decode(file.data, metric=part.metric)
        if part is own:
            assert np.array_equal(seen, default)
            continue
        saved = cost(tiny, wide, default, 60, part.metric) - cost(tiny, wide, seen, 60, part.metric)
        assert saved > 8 * part.size_bytes
        assert found[METRICS[part.metric]] == pytest.approx(saved, rel=0.08)  # against the default; to second order


def test_steps_of_an_effort_are_those_of_the_receivers(
    tiny: l2c.Codec, wide: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An effort that has steps has made the own set already, with its own latents; one without gets OML's five."""
    asked: list[tuple[int, int]] = []
    search = l2c.codec.receivers.conditions_for

    def noting(transform: Any, sets: Any, pictures: Any, mix: int, steps: int, *rest: Any) -> Any:
        asked.append((mix, steps))
        return search(transform, sets, pictures, mix, steps, *rest)

    monkeypatch.setattr("l2c.codec.receivers.conditions_for", noting)
    effort = l2c.Effort(iterations=1, steps=2)
    alone = tiny.encode_detailed(wide, quality=60, metric="psnr", effort=effort)
    file = tiny.encode_detailed(wide, quality=60, metric="psnr", effort=effort, adapt_for=BOTH)
    assert asked == [(8, 2)]
    assert alone.adaptation is not None and file.adaptation == alone.adaptation
    assert read_bitstream(file.data).metadata[ADAPT] == read_bitstream(alone.data).metadata[ADAPT]
    assert file.receivers[0].patches == alone.adaptation.patches_with_conditions > 0
    assert np.array_equal(tiny.decode(file.data), tiny.decode(alone.data))
    asked.clear()
    tiny.encode(wide, quality=60, metric="psnr", effort=1, adapt_for=("psnr", "mixed"))
    assert asked == [(0, RECEIVER_STEPS), (4, RECEIVER_STEPS)] and RECEIVER_STEPS == 5


def test_bias_sets_stay_and_tiles_are_searched_in_their_surround(
    tiny: l2c.Codec, wide: np.ndarray, found: dict[int, float]
) -> None:
    """The saving that the search reports is the one that receivers see, with sets in force and across tiles."""
    plain = tiny.encode(wide, quality=60, metric="msssim")
    sets = PatchChanges(np.array([[2, NO_SET, 4], [NO_SET, 1, 1]], np.uint8))
    target = tiny.decode(changed(plain, {ADAPT: sets.pack()}))
    effort = l2c.Effort(sets=4)
    file = tiny.encode_detailed(target, quality=60, metric="msssim", effort=effort, tile=512, adapt_for=("psnr",))
    assert file.adaptation is not None and file.adaptation.patches_with_bias_set > 0
    assert file.receivers[0].patches == 2
    default, seen = tiny.decode(file.data), tiny.decode(file.data, metric="psnr")
    saved = cost(tiny, target, default, 60, "psnr") - cost(tiny, target, seen, 60, "psnr")
    assert found[0] == pytest.approx(saved, rel=0.03)
    (part,) = section(file.data, tiny)
    body = read_bitstream(file.data).metadata[ADAPT]
    both = PatchChanges(PatchChanges.unpack(bytes(body), 560, 300, 5, 2).sets, part.applied(PatchChanges()).conditions)
    assert np.array_equal(seen, tiny.decode(changed(file.data, {ADAPT: both.pack(), ALTERNATIVES: b""})))


def generous(monkeypatch: pytest.MonkeyPatch, *saved: float) -> None:
    """Every search finds conditions in every patch, worth a fortune, or what is given (for psnr, mixed, msssim)."""

    def found(transform: Any, sets: Any, pictures: Any, mix: int, *rest: Any) -> Any:
        k = num_modulators(transform)
        shapes = [(k, -(-p.subject.pixels.shape[0] // 512), -(-p.subject.pixels.shape[1] // 512)) for p in pictures]
        worth = saved[mix // 4 % len(saved)] if saved else 1e9
        return [(np.full(shape, mix + 1, np.int8), worth) for shape in shapes]

    monkeypatch.setattr("l2c.codec.receivers.conditions_for", found)


@pytest.mark.parametrize("effort", [0, 2])
@pytest.mark.parametrize("size", [450, 2400, 9000])
def test_targets_hold_with_all_that_is_added(
    shipped: l2c.Codec, monkeypatch: pytest.MonkeyPatch, effort: int, size: int
) -> None:
    """No file is larger than its target or much smaller; what it has no room for is left out."""
    from skimage.data import coffee

    generous(monkeypatch)
    photo = np.ascontiguousarray(coffee()[100:228, 150:310])
    wide = np.concatenate([photo] * 4, axis=1)  # 640 pixels: two patches
    picture = photo if size < 1000 else wide
    goal = {"bpp": 8 * size / picture[:, :, 0].size} if effort else {"max_bytes": size}
    file = shipped.encode_detailed(picture, effort=effort, adapt_for=("psnr", "mixed", "msssim"), **goal)  # type: ignore[arg-type]
    assert 0.98 * size <= len(file.data) <= size and file.target_reached
    patches = [part.patches for part in file.receivers]
    # In 1 % of 450 bytes nothing fits, in 24 bytes one set, in 90 all three.
    assert patches == {450: [0, 0, 0], 9000: [2, 2, 2]}.get(size, patches)
    assert any(patches) == (size > 450)
    assert shipped.verify(file.data) == file.latents_sha256


def test_nothing_is_reserved_where_there_is_no_target(
    tiny: l2c.Codec, wide: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    generous(monkeypatch)
    small = wide[:64, :64]
    for goal in ({"quality": 50}, {"psnr": 12.0}):
        plain = tiny.encode_detailed(small, metric="psnr", **goal)  # type: ignore[arg-type]
        file = tiny.encode_detailed(small, metric="psnr", adapt_for=BOTH, **goal)  # type: ignore[arg-type]
        assert file.latents_sha256 == plain.latents_sha256
        assert file.receivers[1] == Receiver("msssim", 1, 4)
        # What was measured stays as it is; a quality has no such promise.
        assert file.receivers[0].patches == int("quality" in goal)
        assert np.array_equal(tiny.decode(file.data), tiny.decode(plain.data)) == ("psnr" in goal)


def test_a_size_that_only_fits_without_the_reserve(
    tiny: l2c.Codec, wide: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least file of a picture is made where it is asked for."""
    generous(monkeypatch)
    least = len(tiny.encode(wide, quality=0))
    file = tiny.encode_detailed(wide, max_bytes=least, adapt_for=BOTH)
    assert len(file.data) == least and file.target_reached and not any(part.patches for part in file.receivers)
    with pytest.raises(l2c.RateError, match=f"least rate .*{least} bytes"):
        tiny.encode(wide, max_bytes=least - 1, adapt_for=BOTH)


def test_savings_that_do_not_pay_for_the_section(
    tiny: l2c.Codec, wide: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each set pays for its own bytes, all together for the section's entry in the table."""
    plain = tiny.encode(wide, quality=50, metric="mixed")
    size = 1 + 1 + 4
    generous(monkeypatch, 8.0 * size)
    assert tiny.encode(wide, quality=50, metric="mixed", adapt_for=BOTH) == plain
    generous(monkeypatch, 8.0 * (size + TABLE / 2))
    assert tiny.encode(wide, quality=50, metric="mixed", adapt_for=BOTH) == plain
    generous(monkeypatch, 8.0 * (size + TABLE / 2) + 1)
    assert tiny.encode(wide, quality=50, metric="mixed", adapt_for=("psnr",)) == plain
    assert len(tiny.encode(wide, quality=50, metric="mixed", adapt_for=BOTH)) == len(plain) + TABLE + 2 * size
    generous(monkeypatch, 1e9, 0.0, 8.0 * size)  # the other one does not live on it
    file = tiny.encode_detailed(wide, quality=50, metric="mixed", adapt_for=BOTH)
    assert [part.patches for part in file.receivers] == [2, 0] and len(file.data) == len(plain) + TABLE + size
    generous(monkeypatch, 8.0 * (SECTION_OVERHEAD + 1 + 1 + 4))
    assert tiny.encode(wide, quality=50, metric="mixed", adapt_for=("mixed",)) == plain


def test_old_readers_show_the_default(tiny: l2c.Codec, wide: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny.encode(wide, quality=60, metric="msssim")
    file = tiny.encode(wide, quality=60, metric="msssim", adapt_for=("psnr",))
    wanted = tiny.decode(file, metric="psnr")
    assert ALTERNATIVES >= bitstream.FIRST_ANCILLARY and len(file) > len(plain)
    assert not np.array_equal(wanted, tiny.decode(plain))
    monkeypatch.setattr(bitstream, "UNDERSTOOD", bitstream.UNDERSTOOD - {ALTERNATIVES})
    monkeypatch.setattr(bitstream, "SECTION_NAMES", {ADAPT: "ADAPT"})
    assert np.array_equal(tiny.decode(file), tiny.decode(plain))
    body = bytes(read_bitstream(file).metadata[ALTERNATIVES])
    unknown = changed(file, {ALTERNATIVES: b"", 0x8077: body})
    for metric in (None, "psnr"):  # to this reader the other type is what ALTERNATIVES is to an old one
        assert np.array_equal(tiny.decode(unknown, metric=metric), tiny.decode(plain))


def test_pictures_of_a_batch_share_passes(tiny: l2c.Codec, wide: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    search = l2c.adapt.receivers.search_conditions
    monkeypatch.setattr(
        "l2c.adapt.receivers.search_conditions",
        lambda t, regions, *a: sizes.append(len(regions)) or search(t, regions, *a),
    )
    pictures = [wide[:150], wide[150:], wide[:80, :90]]
    together = tiny.encode_batch_detailed(pictures, quality=60, metric="msssim", adapt_for=BOTH)
    assert sizes == [2, 1, 2, 1]
    for picture, file in zip(pictures, together):
        alone = tiny.encode_detailed(picture, quality=60, metric="msssim", adapt_for=BOTH)
        assert [part.patches for part in file.receivers] == [part.patches for part in alone.receivers]
        assert file.latents_sha256 == alone.latents_sha256
    monkeypatch.setattr(tiny.encoder.receivers, "adapt_pixels", 1)
    apart = tiny.encode_batch_detailed(pictures, quality=60, metric="msssim", adapt_for=BOTH)
    assert [len(file.data) for file in apart] == [len(file.data) for file in together]
    files = [file.data for file in together] + [tiny.encode(wide, quality=60, metric="mixed")]
    for metric in (None, "msssim", "psnr"):
        for file, pixels in zip(files, tiny.decode_batch(files, metric=metric)):
            assert np.array_equal(pixels, tiny.decode(file, metric=metric))
    applied = [part.metric for part in tiny.decode_batch_detailed(files, metric="psnr")]
    assert applied[0] == "psnr" and applied[-1] == "mixed"
    wanted = tiny.decode(files[0], metric="psnr")
    assert not np.array_equal(wanted, tiny.decode(files[0]))
    tensor = tiny.decode(files[0], as_="torch", metric="psnr")
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), wanted)
    assert np.array_equal(np.asarray(tiny.decode(files[0], as_="pil", metric="psnr")), wanted)


def test_progress_time_limit_and_modes(tiny: l2c.Codec, wide: np.ndarray) -> None:
    wide = wide[:100]
    told: list[tuple[float, str]] = []
    for effort in (0, 2):
        told.clear()
        wanted = tiny.encode(
            wide, quality=60, effort=effort, adapt_for=BOTH, progress=lambda share, stage: told.append((share, stage))
        )
        shares = [share for share, _ in told]
        assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] == 1.0
        stages = [stage for _, stage in told]
        assert "receivers" in stages and ("latents" in stages) == bool(effort)
        assert max(share for share, stage in told if stage == "receivers") < 1.0
        with torch.inference_mode():
            assert tiny.encode(wide, quality=60, effort=effort, adapt_for=BOTH) == wanted
        with torch.no_grad():
            assert tiny.encode(wide, quality=60, effort=effort, adapt_for=BOTH) == wanted
        late = tiny.encode_detailed(wide, quality=60, adapt_for=BOTH, max_seconds=1e-6)
        assert late.data == tiny.encode(wide, quality=60)
        assert late.receivers == (Receiver("psnr", 0, 0), Receiver("msssim", 0, 0))


@pytest.mark.parametrize(
    ("adapt_for", "message"),
    [
        ((), "adapt_for is .*: it must be a selection of psnr, mixed, msssim"),
        ("psnr", "adapt_for is 'psnr': it must be a selection"),
        (3, "adapt_for is 3"),
        (("psnr", "vmaf"), "one of adapt_for is 'vmaf': it must be one of psnr, mixed, msssim"),
        ((8,), "one of adapt_for is 8"),
    ],
)
def test_impossible_receivers(tiny: l2c.Codec, adapt_for: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        tiny.encode(np.zeros((8, 8, 3), np.uint8), adapt_for=adapt_for)


def test_impossible_metrics(tiny: l2c.Codec, wide: np.ndarray) -> None:
    with pytest.raises(UnsupportedError, match="tile is 4096: with adapt_for it must be at most 2048"):
        tiny.encode(wide, tile=4096, adapt_for=BOTH)
    data = tiny.encode(wide[:16, :16])
    calls: list[Callable[..., Any]] = [tiny.decode, tiny.decode_detailed]
    for call in calls:
        with pytest.raises(UnsupportedError, match="metric is 'vmaf': it must be one of"):
            call(data, metric="vmaf")
    for call in (tiny.decode_batch, tiny.decode_batch_detailed):
        with pytest.raises(UnsupportedError, match="metric is 4: it must be one of"):
            call([data], metric=4)


def test_any_selection(tiny: l2c.Codec, wide: np.ndarray) -> None:
    """Sets, lists, in any order and more than once."""
    selections: list[Collection[Any]] = [("msssim", "psnr"), {"psnr", "msssim"}, ["psnr", "msssim", "psnr"]]
    assert len({tiny.encode(wide[:100, :100], quality=60, adapt_for=selection) for selection in selections}) == 1


def test_a_model_without_modulators(configs: Path, tmp_path: Path) -> None:
    config = ModelConfig.from_json((configs / "c3b4.json").read_text())
    transform = dataclasses.replace(config.transform, width=8)
    config = dataclasses.replace(config, transform=transform)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = Transform(transform)
        probability = multiscale.IntegerModel.from_float(config.float_model())
    if len(networks.decoder.mods):
        pytest.fail("another configuration is needed: this one has modulators")
    save_model(tmp_path / "p.safetensors", config, networks, probability, [])
    codec = l2c.Codec(tmp_path / "p.safetensors")
    picture = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(UnsupportedError, match=r"adapt_for: model .* has no modulators"):
        codec.encode(picture, adapt_for=BOTH)
    data = codec.encode(picture, metric="mixed")
    assert np.array_equal(codec.decode(data, metric="psnr"), codec.decode(data))
    part = Alternative(0, np.array([[True]]), np.array([[1]], np.int8))
    with pytest.raises(BitstreamError, match="section ALTERNATIVES"):
        codec.decode(changed(data, {ALTERNATIVES: pack_alternatives([part])}), metric="psnr")


def test_a_section_that_does_not_fit(tiny: l2c.Codec, wide: np.ndarray) -> None:
    """Whoever asks for a metric, and verify, refuse the file; the default needs nothing of it."""
    plain = tiny.encode(wide, quality=60, metric="psnr")
    (part,) = [Alternative(8, np.array([[True, False]]), np.array([[1, 2]], np.int8))]
    body = pack_alternatives([part])
    good = changed(plain, {ALTERNATIVES: body})
    assert not np.array_equal(tiny.decode(good, metric="msssim"), tiny.decode(good))
    assert np.array_equal(tiny.decode(good, metric="mixed"), tiny.decode(good))
    assert tiny.verify(good) == tiny.verify(plain)
    own = pack_alternatives([dataclasses.replace(part, mix=0)])
    for wrong in (body[:-1], body + b"\x00", own, b"\x00", b"\x01\x08"):
        data = changed(plain, {ALTERNATIVES: wrong})
        for call in (
            lambda data: tiny.decode(data, metric="msssim"),
            lambda data: tiny.decode_detailed(data, metric="msssim"),
            tiny.verify,
        ):
            with pytest.raises(BitstreamError, match="section ALTERNATIVES"):
                call(data)
        assert np.array_equal(tiny.decode(data), tiny.decode(plain))
        assert tiny.decode_detailed(data).metric == "psnr"


def test_damage_of_a_whole_file(tiny: l2c.Codec, wide: np.ndarray) -> None:
    """Cut at every byte or with a byte altered in head or section, CRCs right or wrong: our errors, or a picture."""
    small = np.ascontiguousarray(wide[:40, :56])
    data = changed(
        tiny.encode(small, quality=60, metric="psnr"),
        {
            ALTERNATIVES: pack_alternatives(
                [Alternative(mix, np.array([[True]]), np.array([[mix, 7]], np.int8)) for mix in (4, 8)]
            )
        },
    )
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            tiny.decode(data[:length], metric="msssim")
    (entry,) = read_bitstream(data).index.sections
    decoded = 0
    for at in range(entry.offset, entry.offset + entry.size):
        altered = bytearray(data)
        altered[at] ^= 0x55
        with pytest.raises(BitstreamError, match=r"section ALTERNATIVES: CRC-32"):
            tiny.decode(bytes(altered), metric="msssim")
        for bit in range(8):
            altered = bytearray(data)
            altered[at] ^= 1 << bit
            body = bytes(altered[entry.offset : entry.offset + entry.size])
            head = len(data) - entry.size - sum(tile.size for tile in read_bitstream(data).tiles)
            struct.pack_into("<I", altered, head - 4, zlib.crc32(body))
            struct.pack_into("<I", altered, 10, zlib.crc32(altered[14:head], zlib.crc32(altered[:10])))
            try:
                assert tiny.decode(bytes(altered), metric="msssim").shape == small.shape
                decoded += 1
            except BitstreamError as error:
                assert "section ALTERNATIVES" in str(error)
    assert decoded >= 4 * 8  # the values are free


def test_files_are_the_same_from_all_that_is_known(tiny: l2c.Codec, wide: np.ndarray) -> None:
    """What is reported stands in the section, as `l2c info` reads it without a model."""
    file = tiny.encode_detailed(wide, quality=60, metric="mixed", adapt_for=BOTH)
    assert file.data == tiny.encode(wide, quality=60, metric="mixed", adapt_for=BOTH)
    stream = read_bitstream(file.data)
    found = unpack_alternatives(bytes(stream.metadata[ALTERNATIVES]), 560, 300, 4, None)
    assert [part.mix for part in found] == [0, 8]
    assert [(len(part.values), part.size) for part in found] == [(r.patches, r.size_bytes) for r in file.receivers]
    assert [part.as_dict()["metric"] for part in file.receivers] == ["psnr", "msssim"]


def test_on_the_command_line(
    run: Run, png: Path, tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generous(monkeypatch)
    file, back = tmp_path / "a.l2c", tmp_path / "back.png"
    options = ("--model", "tiny", "--quality", "60", "--metric", "mixed")
    code, out, err = run("encode", png, file, *options, "--adapt-for", "msssim, psnr", "--json")
    assert (code, err) == (0, "")
    encoded = json.loads(out)
    sets = [{"metric": name, "patches": 1, "size_bytes": 4} for name in BOTH]
    assert encoded["receivers"] == sets and encoded["size_bytes"] == file.stat().st_size
    told = json.loads(run("info", file, "--json")[1])
    assert told["alternatives"] == [{"metric": name, "patches_with_conditions": 1, "size": 4} for name in BOTH]
    assert told["parts"]["ALTERNATIVES"] == 1 + 2 * 4 and told["adaptation"] == {}
    text = run("info", file)[1]
    assert "for psnr" in text and "for msssim" in text and "1 patches with others, 4 bytes" in text
    codec = l2c.Codec(tiny_model_path)
    for metric in (*BOTH, "mixed"):
        code, out, err = run("decode", file, back, "-f", "--metric", metric, "--json")
        assert (code, err, json.loads(out)["metric"]) == (0, "", metric)
        assert np.array_equal(np.asarray(Image.open(back)), codec.decode(file.read_bytes(), metric=metric))  # type: ignore[call-overload]
    assert json.loads(run("decode", file, back, "-f", "--json")[1])["metric"] == "mixed"
    code, out, err = run("encode", png, file, "-f", *options, "--adapt-for", "psnr,mixed")
    assert code == 0 and out.rstrip().endswith("sets for psnr, mixed")
    assert run("verify", file)[0] == 0
    plain = tmp_path / "plain.l2c"
    assert "sets for" not in run("encode", png, plain, *options)[1]
    assert json.loads(run("info", plain, "--json")[1])["alternatives"] == []
    foreign = tmp_path / "foreign.l2c"
    foreign.write_bytes(changed(plain.read_bytes(), {ALTERNATIVES: b"\x01\x04"}))
    assert json.loads(run("info", foreign, "--json")[1])["alternatives"] == []
    assert run("decode", foreign, back, "-f")[0] == 0
    code, _, err = run("decode", foreign, back, "-f", "--metric", "psnr")
    assert code == 3 and "section ALTERNATIVES" in err


@pytest.mark.parametrize("value", ["", ",", "vmaf", "psnr,ssim"])
def test_wrong_usage(run: Run, png: Path, coded: Path, tmp_path: Path, value: str) -> None:
    code, _, err = run("encode", png, tmp_path / "o.l2c", "--adapt-for", value)
    assert code == 2 and "--adapt-for" in err and not (tmp_path / "o.l2c").exists()
    code, _, err = run("decode", coded, tmp_path / "o.png", "--metric", value)
    assert code == 2 and "--metric" in err
