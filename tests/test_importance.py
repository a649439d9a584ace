"""Parts that matter more (`importance`): where bits go, what a map is, its section, networks and searches."""

from __future__ import annotations

import json
import re
import runpy
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from command import Run
from PIL import Image

import l2c
import l2c.pillow
from l2c.codec.importance import MOST_DROP, one_for_each, quality_map_of
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.errors import BitstreamError, ImageError, LimitError, UnsupportedError
from l2c.format import bitstream
from l2c.format.bitstream import QUALITY_MAP, read_bitstream, write_bitstream
from l2c.format.quality_map_section import QualityMap
from l2c.metrics import SimilarityTo
from l2c.models import save_model
from l2c.objective import Blend, DistortionTo, PatchDistortion
from l2c.transforms import Adaptation, BlockConfig, Grid, PaperConfig, Places, Transform, condition, num_modulators

FACE = (168, 56, 280, 200)  # of skimage.data.astronaut()


@pytest.fixture(scope="module")
def shipped() -> l2c.Codec:
    return l2c.Codec()


@pytest.fixture(scope="module")
def tiny(tiny_model_path: Path) -> l2c.Codec:
    return l2c.Codec(tiny_model_path)


@pytest.fixture(scope="module")
def photo() -> npt.NDArray[np.uint8]:
    """uint8 [256, 256, 3], with the face on the right."""
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[24:280, 60:316])


def psnr(x: npt.NDArray[Any], x_hat: npt.NDArray[Any]) -> float:
    return float(-10.0 * np.log10(np.mean((x.astype(float) - x_hat) ** 2) / 255.0**2))


def in_and_out(x: npt.NDArray[np.uint8], x_hat: npt.NDArray[np.uint8], box: tuple[int, ...]) -> tuple[float, float]:
    """PSNR inside and outside of a box."""
    inside = np.zeros(x.shape[:2], bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    return psnr(x[inside], x_hat[inside]), psnr(x[~inside], x_hat[~inside])


PSNRS = (r"face ([\d.]+) dB", r"rest ([\d.]+) dB")  # in the example's lines
BOX = (FACE[0] - 60, FACE[1] - 24, FACE[2] - 60, FACE[3] - 24)  # of `photo`


def test_bits_move(shipped: l2c.Codec, photo: npt.NDArray[np.uint8]) -> None:
    """At one rate the face gains several dB, the rest loses less, and the more it is asked for, the more it is so."""
    files = [
        shipped.encode_detailed(photo, bpp=0.6, metric="psnr", importance=[(*BOX, weight)]) for weight in (1, 3, 12)
    ]
    assert all(0.98 * 0.6 <= file.bpp <= 0.6 and file.target_reached for file in files)
    (face, rest), (some, _), (most, lost) = (in_and_out(photo, shipped.decode(file.data), BOX) for file in files)
    assert some > face + 1.0 and most > some + 1.0 and rest - 1.7 * (most - face) < lost < rest


def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "examples" / "importance.py"
    monkeypatch.setattr("sys.argv", [str(script), "--weights", "1,16", "--out", str(tmp_path / "out")])
    runpy.run_path(str(script), run_name="__main__")
    plain, wanted = capsys.readouterr().out.splitlines()
    faces, rests = ([float(re.findall(pattern, line)[0]) for line in (plain, wanted)] for pattern in PSNRS)
    assert faces[1] > faces[0] + 4.0 and rests[1] > rests[0] - 2.5
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["face_1.png", "face_16.png"]


def test_the_search_goes_for_it_too(shipped: l2c.Codec) -> None:
    """With adaptation and the metric for eyes, as well: half of a picture is kept as it was, the rest takes less."""
    from skimage.data import coffee

    small, box = np.ascontiguousarray(coffee()[120:248, 120:312]), (0, 0, 96, 128)
    files = [shipped.encode_detailed(small, quality=60, effort=2, importance=part) for part in (None, [(*box, 16)])]
    (kept, rest), (same, lost) = (in_and_out(small, shipped.decode(file.data), box) for file in files)
    assert len(files[1].data) < 0.85 * len(files[0].data) and lost < rest - 1.0 and abs(same - kept) < 0.5
    for file in files:
        assert file.adaptation is not None and (file.adaptation.objective_gain_percent or 0.0) > 2.0


@pytest.mark.parametrize(
    "importance",
    [np.ones((1, 1)), np.full((9, 7), 0.25, np.float32), np.zeros((4, 4), np.uint8), np.ones((3, 3), bool), [],
     [(0, 0, 70, 50)], [(-9, -9, 900, 900, 64)], [(10, 10, 40, 40, 1)], (5, 5, 20, 20, 1)],
)  # fmt: skip
def test_all_alike_is_none(tiny: l2c.Codec, drawn_picture: npt.NDArray[np.uint8], importance: Any) -> None:
    plain, file = (tiny.encode(drawn_picture, quality=60, importance=part) for part in (None, importance))
    assert file == plain


def test_maps_of_any_size(tmp_path: Path) -> None:
    """The same part of a picture, said in every way; a patch is as important as its most important part."""
    wide = np.zeros((96, 160), np.uint8)
    wide[32:64, 64:128] = 200
    tiny, huge = wide[::32, ::32], wide.repeat(7, 0).repeat(5, 1)
    path = tmp_path / "mask.png"
    Image.fromarray(wide).save(path)
    boxes = [(64, 32, 128, 64, 64)]
    ways = [wide, tiny, huge, wide / 255.0, wide > 0, torch.from_numpy(wide), str(path), path, path.read_bytes(),
            Image.fromarray(wide), boxes, boxes[0], [(67, 35, 125.5, 61, 64)]]  # fmt: skip
    maps = [quality_map_of(one_for_each([way] if isinstance(way, str) else way, 1)[0], 96, 160) for way in ways]
    expected = np.full((6, 10), MOST_DROP)
    expected[2:4, 4:8] = 0
    for found in maps:
        assert found is not None and found.side == 16 and np.array_equal(found.drops, expected)


def test_values_are_weights() -> None:
    """Halves are drops of 2; boxes lie over each other; maps that cost too much get larger patches."""
    values = np.array([[1.0, 0.5, 0.25, 0.0]]).repeat(8, axis=1)
    found = quality_map_of(one_for_each(values, 1)[0], 16, 512)
    assert found is not None and found.drops[0, ::8].tolist() == [0, 2, 4, MOST_DROP]
    found = quality_map_of(one_for_each([(0, 0, 16, 16, 4), (0, 0, 32, 16, 2), (40, 0, 70, 16, 0.25)], 1)[0], 16, 80)
    assert found is not None and found.drops.tolist() == [[0, 2, 4, 8, 4]]  # of what is less important, whole patches
    dot = np.zeros((60, 60), np.uint8)
    dot[20, 37] = 1
    found = quality_map_of(one_for_each(dot, 1)[0], 60, 60)
    assert found is not None and found.drops[1, 2] == 0 and (found.drops == MOST_DROP).sum() == 15
    noise = np.random.default_rng(0).random((64, 64))
    coarse = quality_map_of(one_for_each(noise, 1)[0], 1024, 1024)
    assert coarse is not None and coarse.side > 16 and len(coarse.pack()) <= 0.0005 * 1024 * 1024
    least = quality_map_of(one_for_each(np.eye(4), 1)[0], 64, 64, least_side=32)
    assert least is None or least.side >= 32


@pytest.mark.parametrize(
    ("importance", "error", "match"),
    [
        (np.full((4, 4), np.nan), ImageError, "NaN"),
        (np.full((4, 4), -1.0), ImageError, "0..1"),
        (np.full((4, 4), 2.0), ImageError, "0..1"),
        (np.zeros((0, 4)), ImageError, "at least one"),
        (np.zeros((4, 4), np.int64), ImageError, "int64"),
        (np.zeros((4, 4, 3), np.uint8), UnsupportedError, r"\[H, W\]"),
        (np.broadcast_to(np.zeros((1, 1), np.uint8), (1 << 15, 1 << 15)), LimitError, "max_pixels"),
        ("no/such/file.png", ImageError, "No such file"),
        (b"no picture", ImageError, "importance: bytes"),
        (3, ImageError, "int is no picture"),
        ([(1, 2, 3)], UnsupportedError, "no box"),
        ([(1, 2, 3, 4, 5, 6)], UnsupportedError, "no box"),
        ([(0, 0, float("nan"), 3)], UnsupportedError, "not finite"),
        ([(0, 0, 10**400, 3)], UnsupportedError, "too large"),
        ([(5, 5, 5, 9)], UnsupportedError, "empty"),
        ([(500, 0, 600, 9)], UnsupportedError, "does not touch"),
        ([(0, 0, 9, 9, 0)], UnsupportedError, "weight"),
        ([(0, 0, 9, 9, 100)], UnsupportedError, "weight"),
        ([np.ones((2, 2)), None], UnsupportedError, "one for each"),
    ],
)
def test_refused(
    tiny: l2c.Codec, drawn_picture: npt.NDArray[np.uint8], importance: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        tiny.encode(drawn_picture, importance=importance)


def test_batches_regions_scales(tiny: l2c.Codec) -> None:
    """Each picture has its own map; parts of a file of several tiles are those of the whole; search and tiles agree."""
    rng = np.random.default_rng(3)
    slope = np.add.outer(np.arange(540), np.arange(560))[..., None] / 5
    large = np.clip(slope + rng.normal(0, 9, (540, 560, 3)), 0, 255)
    pictures = [large.astype(np.uint8), large[:64, :96].astype(np.uint8), large[:64, 9:105].astype(np.uint8)]
    maps = [[(100, 100, 300, 530)], None, np.eye(4)]
    asked: dict[str, Any] = {"quality": 60, "tile": 512}
    together = tiny.encode_batch(pictures, importance=maps, **asked)
    for picture, here, file in zip(pictures, maps, together):
        assert file == tiny.encode(picture, importance=here, **asked)
        assert (QUALITY_MAP in read_bitstream(file).metadata) == (here is not None)
    assert together[2] != tiny.encode(pictures[2], **asked)
    whole = tiny.decode(together[0])
    assert [np.array_equal(a, tiny.decode(b)) for a, b in zip(tiny.decode_batch(together), together)] == [True] * 3
    for box in ((90, 80, 130, 120), (500, 500, 560, 540)):
        part = tiny.decode(together[0], region=box)
        assert np.abs(part.astype(int) - whole[box[1] : box[3], box[0] : box[2]]).max() <= 1
    for scale in (2, 4, 8):
        small, shape = tiny.decode(together[0], scale=scale), (-(-540 // scale), -(-560 // scale), 3)
        means = np.asarray(Image.fromarray(whole).reduce(scale))
        assert small.shape == shape and np.abs(small.astype(float) - means).mean() < 12.0
    assert tiny.verify(together[0])


def test_adaptation_and_receivers(tiny: l2c.Codec, drawn_picture: npt.NDArray[np.uint8]) -> None:
    """The search, conditions of modulators, receivers and targets go with maps."""
    asked: dict[str, Any] = {"importance": [(0, 0, 20, 20)], "lossless": "never"}
    file = tiny.encode_detailed(
        drawn_picture, quality=50, effort=l2c.Effort(2, 0, 2), adapt_for=("psnr", "msssim"), **asked
    )
    assert file.adaptation is not None and file.adaptation.iterations
    assert QUALITY_MAP in read_bitstream(file.data).metadata
    assert tiny.decode(file.data, metric="psnr").shape == drawn_picture.shape
    target = tiny.encode_detailed(drawn_picture, max_bytes=700, effort=l2c.Effort(3, 0, 0, 2), **asked)
    assert len(target.data) <= 700


def test_rest_comes_nearer(shipped: l2c.Codec, photo: npt.NDArray[np.uint8]) -> None:
    """Where the best quality in the box leaves room, the rest gets it."""
    small = np.ascontiguousarray(photo[100:164, 100:164])
    file = shipped.encode_detailed(small, bpp=2.5, metric="psnr", importance=[(0, 0, 16, 16, 64)])
    section = QualityMap.unpack(bytes(read_bitstream(file.data).metadata[QUALITY_MAP]), 64, 64)
    assert file.target_reached and file.bpp <= 2.5 and 0 < section.drops.max() < MOST_DROP


def test_kept_without_loss(tiny: l2c.Codec, drawn_picture: npt.NDArray[np.uint8]) -> None:
    """What is kept exactly has no use for a map; the others of a batch keep theirs."""
    flat, boxes = np.full((70, 90, 3), 9, np.uint8), [(0, 0, 9, 9)]
    first, second = tiny.encode_batch_detailed([flat, drawn_picture], importance=[boxes, [(20, 20, 60, 40)]], bpp=0.9)
    assert first.lossless and QUALITY_MAP not in read_bitstream(first.data).metadata
    assert second.data == tiny.encode(drawn_picture, importance=[(20, 20, 60, 40)], bpp=0.9)
    assert QUALITY_MAP in read_bitstream(second.data).metadata


def test_models_without(tmp_path: Path, tiny_config: ModelConfig, drawn_picture: npt.NDArray[np.uint8]) -> None:
    """A model whose steps are the same everywhere cannot; nor can it read such a file."""
    config = ModelConfig("plain", PaperConfig(s=4, c=12, width=8), tiny_config.probability)
    path = tmp_path / "plain.safetensors"
    model = multiscale.IntegerModel.from_float(config.float_model())
    save_model(path, config, Transform(config.transform), model, rate_curve=[])
    codec = l2c.Codec(path)
    with pytest.raises(UnsupportedError, match="importance: model plain"):
        codec.encode(drawn_picture, importance=[(0, 0, 9, 9)])
    file = with_section(codec.encode(drawn_picture), QualityMap(16, np.eye(4, 5, dtype=np.uint8)).pack())
    with pytest.raises(BitstreamError, match="not made for this model"):
        codec.decode(file)


def with_section(data: bytes, body: bytes) -> bytes:
    stream = read_bitstream(data)
    sections = {**stream.metadata, QUALITY_MAP: body}
    return write_bitstream(stream.header, stream.payloads, [tile.channels for tile in stream.tiles], sections)


def deflated(values: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(values) + deflate.flush()


def test_section(tiny: l2c.Codec, drawn_picture: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    """Round trips; every way to be wrong; who does not know it refuses the file."""
    rng = np.random.default_rng(1)
    for side, width, height in ((16, 1, 1), (16, 70, 50), (512, 1500, 513), (64, 640, 65)):
        drops = rng.integers(1, 25, (-(-height // side), -(-width // side))).astype(np.uint8)
        found = QualityMap.unpack(QualityMap(side, drops).pack(), width, height)
        assert found.side == side and np.array_equal(found.drops, drops)
    good = bytes([4]) + deflated(bytes([0] * 19 + [3]))
    values = [b"\1" * 19, b"\1" * 21, b"\1" * 10**7, b"\x19" * 20, b"\0" * 20]
    wrong = [b"", b"\3" + good[1:], b"\12" + good[1:], good[:1], good[:-1], good + b"\0", b"\4\xff\xff\xff"]
    wrong += [b"\4" + deflated(part) for part in values]
    QualityMap.unpack(good, 70, 50)
    for body in wrong:
        with pytest.raises(BitstreamError, match="section QUALITY_MAP"):
            QualityMap.unpack(body, 70, 50)
    plain = tiny.encode(drawn_picture, quality=60)
    changed = with_section(plain, good)
    assert not np.array_equal(tiny.decode(changed)[-2:, -6:], tiny.decode(plain)[-2:, -6:])
    with pytest.raises(BitstreamError, match="section QUALITY_MAP"):
        tiny.decode(with_section(plain, b"\4\xff\xff\xff"))
    monkeypatch.setattr(bitstream, "UNDERSTOOD", bitstream.UNDERSTOOD - {QUALITY_MAP})
    with pytest.raises(UnsupportedError, match="critical section"):
        read_bitstream(changed)


@pytest.mark.parametrize("companding", [False, True])
def test_networks_in_places(tiny_config: ModelConfig, companding: bool) -> None:
    """Where one condition holds everywhere, E and D do what they are told by it; elsewhere each place by its own."""
    torch.manual_seed(0)
    sizes = tiny_config.transform
    assert isinstance(sizes, BlockConfig)
    config = BlockConfig(s=8, c=12, width=16, fine_width=8, modulator_width=8, local_gain=True, companding=companding)
    transform = Transform(config)
    with torch.no_grad():
        for part in (*transform.encoder.mods, *transform.decoder.mods):
            part.fc2.weight.mul_(40.0)
        for part in (transform.encoder.local_gain, transform.decoder.local_gain):
            part.weight.normal_(0.0, 0.1)
    rows = condition(torch.tensor([0.05, 0.002, 0.01]), torch.tensor([0.5, 0.5, 0.5]))
    x, z = torch.rand(2, 3, 32, 48), torch.randint(-5, 6, (2, 12, 4, 6)).float()
    for k in range(3):
        places = Places(rows.expand(2, -1, -1), torch.full((2, 4, 6), k, dtype=torch.uint8))
        own, cond = rows[k].expand(2, -1), rows[0].expand(2, -1)
        torch.testing.assert_close(transform.encoder(x, cond, places)[0], transform.encoder(x, own)[0])
        for scale in (1, 2, 4, 8):
            seen = transform.decoder.scaled(z, cond, Adaptation(places=places), scale)
            torch.testing.assert_close(seen, transform.decoder.scaled(z, own, None, scale))
        # Conditions of patches move with the places.
        moves = 0.3 * torch.randn(2, num_modulators(transform), 1, 1, 2)
        patches = own[:, None, :, None, None] + torch.cat((moves, 0.0 * moves), dim=2)
        told = patches - own[:, None, :, None, None] + cond[:, None, :, None, None]
        seen = transform.decoder(z, cond, Adaptation(told, condition_grid=Grid(4), places=places))
        torch.testing.assert_close(seen, transform.decoder(z, own, Adaptation(patches, condition_grid=Grid(4))))
    wide = torch.rand(1, 3, 32, 1024)
    index = torch.zeros(1, 4, 128, dtype=torch.uint8)
    index[:, :, 64:] = 1
    y = transform.encoder(wide, rows[:1], Places(rows[None], index))[0]
    for k, here in ((0, slice(0, 50)), (1, slice(78, 128))):
        torch.testing.assert_close(y[..., here], transform.encoder(wide, rows[k : k + 1])[0][..., here])


@pytest.mark.parametrize("mu", [0, 4, 8])
def test_weighted_distortion(mu: int) -> None:
    """Weights of 1 change nothing; a weight says what an error counts; gradients and shares of patches follow."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 96, 112)
    noise = 0.05 * torch.randn_like(x)
    blend = Blend.of(torch.tensor([mu, mu]), torch.tensor([0.01, 0.02]))
    plain, same = DistortionTo(x, blend), DistortionTo(x, blend, torch.ones(2, 1, 96, 112))
    torch.testing.assert_close(same(x + noise), plain(x + noise))
    half = torch.ones(2, 1, 96, 112)
    half[..., 56:] = 0.25
    weighted = DistortionTo(x, blend, half)
    left, right = noise.clone(), noise.clone()
    left[..., 40:], right[..., :72] = 0.0, 0.0
    torch.testing.assert_close(weighted(x + left), plain(x + left), rtol=0.05, atol=0.0)
    assert bool((weighted(x + right) < 0.3 * plain(x + right)).all())
    x_hat = (0.1 + 0.8 * x).requires_grad_()
    (slope,) = torch.autograd.grad(weighted(x_hat).sum(), x_hat)
    step = 1e-3 * slope.sign()
    change = weighted(x_hat.detach() + step).double() - weighted(x_hat.detach() - step).double()
    torch.testing.assert_close(change.sum(), 2.0 * (slope * step).double().sum(), rtol=0.05, atol=1e-4)
    patches = PatchDistortion(x, blend, 32, half)
    shares = patches(x_hat) - patches(x_hat + step)
    expected = weighted(x_hat) - weighted(x_hat + step)
    torch.testing.assert_close(shares.sum(dim=(1, 2)), expected.detach(), rtol=0.05, atol=2e-3)


def test_weighted_similarity_is_a_mean_of_places() -> None:
    """Of one scale: the mean of 1 - weight (1 - similarity)."""
    x, x_hat, places = torch.rand(1, 1, 11, 40), torch.rand(1, 1, 11, 40), torch.rand(1, 1, 11, 40)
    (similarity,) = SimilarityTo(x).maps(x_hat)
    expected = (1.0 - places[:, :, 5:6, 5:35] * (1.0 - similarity)).mean()
    torch.testing.assert_close(SimilarityTo(x, places)(x_hat)[0], expected)


def test_shell_and_pillow(run: Run, png: Path, tmp_path: Path, tiny: l2c.Codec) -> None:
    """`l2c encode --importance` and `save(importance=)` write what the library does; so does `l2c bulk`."""
    mask = tmp_path / "mask.png"
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(mask)
    expected = tiny.encode(png, quality=60, importance=mask)
    target = tmp_path / "out.l2c"
    assert run("encode", png, target, "--model", "tiny", "--quality", 60, "--importance", mask)[0] == 0
    assert target.read_bytes() == expected
    code, out, _ = run("info", target, "--json")
    assert code == 0 and json.loads(out)["quality_map"]["greatest_drop"] == MOST_DROP
    assert "quality map" in run("info", target)[1]
    boxes = ("--importance", "0,0,20,20,8", "--importance", "40,10,60,30")
    assert run("encode", png, target, "-f", "--model", "tiny", "--quality", 60, *boxes)[0] == 0
    assert target.read_bytes() == tiny.encode(png, quality=60, importance=[(0, 0, 20, 20, 8), (40, 10, 60, 30)])
    l2c.pillow.use(tiny)
    try:
        Image.open(png).save(target, quality=60, importance=str(mask))
    finally:
        l2c.pillow.use(None)
    assert np.array_equal(tiny.decode(target), tiny.decode(expected))
    for wrong in (("--importance", tmp_path / "none.png"), ("--importance", "1,2,3"), (*boxes, "--importance", mask)):
        target.unlink(missing_ok=True)
        code, _, err = run("encode", png, target, "--model", "tiny", *wrong)
        assert code != 0 and err.count("\n") >= 1 and "internal error" not in err and not target.exists()
    folder = tmp_path / "in"
    folder.mkdir()
    Image.open(png).save(folder / "a.png")
    assert run("bulk", "encode", folder, tmp_path / "bulk", "--jobs", 0, "--model", "tiny", "--quality", 60,
               "--importance", mask)[0] == 0  # fmt: skip
    assert (tmp_path / "bulk" / "a.l2c").read_bytes() == tiny.encode(folder / "a.png", quality=60, importance=mask)
