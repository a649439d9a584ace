"""Training pictures drawn by code, and the fixed validation set (l2c/train/drawn.py, canvas.py, layouts.py)."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from l2c.errors import ConfigError
from l2c.train import canvas, data, drawn, validation
from l2c.train.canvas import Array, Canvas, font_of, ink_on, luma, random_style, random_words
from l2c.train.config import DataConfig, load_recipe
from l2c.train.data import Sampler
from l2c.train.drawn import KINDS, UPRIGHT, WITH_PHOTO, draw, draw_batch, random_kind
from l2c.train.layouts import photo_part
from l2c.train.validation import drawn_pictures, validation_set

CROP = 32
ROOT = Path(__file__).parent.parent


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def pictures(kind: str, count: int, size: int = 96) -> list[Array]:
    return [draw(kind, size, rng(7, i)) for i in range(count)]


def lumas(picture: Array) -> Array:
    return picture @ np.array([0.2126, 0.7152, 0.0722])


def colours(picture: Array) -> int:
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def photo(height: int = 60, width: int = 80) -> Array:
    """Noise between 100 and 110 in red, 200 and 210 in blue, no green: no other part of a picture looks so."""
    low = np.array([100, 0, 200], np.uint8)
    return low + rng(1).integers(0, 11, (height, width, 3), np.uint8) * np.array([1, 0, 1], np.uint8)


def photo_share(picture: Array) -> float:
    red, green, blue = (picture[..., c].astype(int) for c in range(3))
    return float(np.mean((red >= 100) & (red <= 110) & (green == 0) & (blue >= 200) & (blue <= 210)))


# Pictures


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 16, 64, 192, 512, (33, 129), (129, 33), (5, 200)])
def test_every_kind_at_every_size(kind: str, size: int | tuple[int, int]) -> None:
    shape = (size, size, 3) if isinstance(size, int) else (*size, 3)
    count = 2 if size == 512 else 8
    for i in range(count):
        picture = draw(kind, size, rng(i), photo() if i % 2 else None)
        assert picture.shape == shape and picture.dtype == np.uint8 and picture.flags.owndata
        assert kind == "flat" or min(shape[:2]) < 16 or picture.std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_picture(kind: str) -> None:
    first = pictures(kind, 12)
    canvas.kept_font.cache_clear()
    canvas.vocabulary.cache_clear()
    draw("text", 64, rng(3))
    with ThreadPoolExecutor(3) as threads:
        again = list(threads.map(lambda i: draw(kind, 96, rng(7, i)), reversed(range(12))))[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert len({picture.tobytes() for picture in first}) == 12


def test_a_picture_does_not_change_its_photograph() -> None:
    for kind in WITH_PHOTO:
        for i in range(20):
            shown = photo()
            draw(kind, 60, rng(i), shown)[:] = 0
            assert np.array_equal(shown, photo())


@pytest.mark.parametrize("kind", KINDS)
def test_only_some_kinds_show_the_photograph(kind: str) -> None:
    shares = [photo_share(draw(kind, 96, rng(2, i), photo(96, 96))) for i in range(40)]
    assert (np.mean(shares) > 0.1) == (kind in WITH_PHOTO), np.mean(shares)


def test_without_a_photograph_smooth_colours_are_shown() -> None:
    for kind in WITH_PHOTO:
        assert np.median([colours(picture) for picture in pictures(kind, 30)]) > 800


def test_parts_of_photographs_keep_their_pixels_or_show_more() -> None:
    shown = photo(40, 50)
    windows = {shown[y : y + 20, x : x + 30].tobytes() for y in range(21) for x in range(21)}
    parts = [photo_part(rng(i), shown, 20, 30) for i in range(60)]
    own = sum(part.tobytes() in windows for part in parts)
    assert 20 < own < 50 and all(part.shape == (20, 30, 3) for part in parts)
    assert photo_part(rng(0), shown, 90, 70).shape == (90, 70, 3)  # larger than the photograph


@pytest.mark.parametrize(("kind", "size"), [("paper", 32), ("text", 0), ("text", (5, -1))])
def test_what_cannot_be_drawn(kind: str, size: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot draw"):
        draw(kind, size, rng(0))


def test_text_can_be_read() -> None:
    """Almost every page has some ink that differs from its most frequent colour; dark and light pages occur."""
    grounds, inked = [], 0
    for picture in pictures("text", 80, 128):
        values = lumas(picture)
        ground = float(np.median(values))
        grounds.append(ground)
        inked += np.mean(np.abs(values - ground) > 80) > 0.01
    assert inked >= 72
    assert sum(g < 64 for g in grounds) >= 12 and sum(g > 192 for g in grounds) >= 25


def test_styles_have_contrast() -> None:
    styles = [random_style(rng(i), canvas.FACES, 8, 40) for i in range(400)]
    for style in styles:
        assert min(abs(luma(style.ink) - luma(c)) for c in (style.page, style.panel)) >= 90
        assert 8 <= style.unit <= 40 and (style.face[1] or style.language == "plain")
    assert {style.language for style in styles} == {"plain", "accents", "greek", "cyrillic"}
    assert len({style.face for style in styles}) == len(set(canvas.FACES))
    assert ink_on((0, 0, 255)) == (255, 255, 255) and ink_on((255, 255, 0)) == (0, 0, 0)


def test_flat_pictures() -> None:
    flat = pictures("flat", 300, 64)
    counts = [colours(picture) for picture in flat]
    single = {tuple(int(v) for v in p[0, 0]) for p, count in zip(flat, counts) if count == 1}
    assert 15 <= sum(count == 1 for count in counts) <= 60
    assert {(0, 0, 0), (255, 255, 255)} <= single and len(single) > 8
    assert sum(count <= 8 for count in counts) > 130 and sum(count > 20 for count in counts) > 60
    assert max(counts) > 1000  # with dither
    steps = Counter()  # length of the first run of equal pixels of pictures of two colours
    for picture, count in zip(flat, counts):
        row = np.flatnonzero((picture[0] != picture[0, 0]).any(axis=1))
        if count == 2 and row.size:
            steps[int(row[0])] += 1
    assert {1, 2, 3} <= set(steps) and any(8 <= step <= 16 for step in steps)


def test_noise_has_every_strength() -> None:
    spread = [float((p.astype(float) - p.mean(axis=(0, 1))).std()) for p in pictures("noise", 80)]
    assert min(spread) < 4 and max(spread) > 40


def test_products_lie_on_a_flat_ground() -> None:
    white = sum(np.mean((p == 255).all(axis=2)) > 0.2 for p in pictures("product", 60))
    assert 25 <= white <= 55


# What they are made of


def test_glyphs_exist_in_every_face() -> None:
    for face in set(canvas.FACES):
        font = font_of(face[0], 20, True)
        missing = font["\ufffe"][0].tobytes()
        languages = list(canvas.WORDS) if face[1] else ["plain"]
        for char in {c for language in languages for word in canvas.vocabulary(language) for c in word}:
            assert font[char][0].any() and font[char][0].tobytes() != missing, (face, char)


def test_text_is_what_pillow_draws() -> None:
    """A word without kerning, glyph by glyph, is the same as in one piece."""
    font = font_of("DejaVuSans", 16, True)
    paper = Canvas(40, 120, (255, 255, 255), 1)
    paper.text(10, 5, "hello miss", font, (0, 0, 0))
    image = Image.new("RGB", (120, 40), "white")
    pen = canvas.ImageDraw.Draw(image)
    pen.text((10, 5), "hello miss", (0, 0, 0), font.pillow)
    assert np.abs(paper.finish().astype(int) - np.array(image)).max() <= 1 and font.length("hello miss") > 50


@pytest.mark.parametrize("left", [-300, -20, 0, 40, 70, 500])
def test_text_at_the_edge_is_cut(left: int) -> None:
    font = font_of("DejaVuSans", 20, True)
    wide, narrow = Canvas(40, 1200, (0, 0, 0), 1), Canvas(40, 80, (0, 0, 0), 1)
    for paper, shift in ((wide, 600), (narrow, 0)):
        paper.text(left + shift, 5, "a few words", font, (255, 255, 255))
    assert np.array_equal(narrow.finish(), wide.finish()[:, 600:680])


def test_words_have_the_length_asked_for() -> None:
    for language in canvas.WORDS:
        for chars in range(1, 60):
            text = random_words(rng(chars), language, chars)
            assert 1 <= len(text) <= chars and text.strip() == text
    assert len({random_words(rng(i), "plain", 30) for i in range(50)}) == 50


def test_shapes_cover_settled_text() -> None:
    paper, font = Canvas(40, 120, (255, 255, 255), 2), font_of("DejaVuSans", 16, True)
    paper.text(10, 5, "covered", font, (0, 0, 0))
    assert colours(paper.finish()) > 2
    paper.settle()
    paper.box((0, 0, 60, 40), (255, 0, 0))
    picture = paper.finish()
    assert (picture[:, :60] == (255, 0, 0)).all() and colours(picture[:, 60:]) > 2


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_shapes_and_pictures_lie_on_the_pixels_asked_for(scale: int) -> None:
    paper, shown = Canvas(20, 30, (9, 9, 9), scale), photo(6, 7)
    paper.box((3, 4, 10, 12), (200, 0, 0))
    paper.paste(shown, 15, 8)
    paper.settle()
    paper.box((40, 4, 50, 12), (1, 2, 3))  # outside
    expected = np.full((20, 30, 3), 9, np.uint8)
    expected[4:12, 3:10] = 200, 0, 0
    expected[8:14, 15:22] = shown
    assert np.array_equal(paper.finish(), expected)


@pytest.mark.parametrize("radius", [0, 0.4, 1, 3, 8, 99])
def test_round_boxes_of_any_size(radius: float) -> None:
    for scale in (1, 2):
        for wide in range(1, 14):
            for high in range(1, 14):
                paper = Canvas(20, 20, (0, 0, 0), scale)
                paper.box((2, 2, 2 + wide, 2 + high), (255, 0, 0), (0, 255, 0), 1, radius)
                ink = paper.finish().any(axis=2)
                assert ink[2 : 2 + high, 2 : 2 + wide].any() and ink.sum() == ink[2 : 2 + high, 2 : 2 + wide].sum()


# Banks


def test_kinds_come_in_their_shares() -> None:
    generator = rng(0)
    seen = Counter(random_kind(generator) for _ in range(20000))
    assert sum(drawn.SHARES) == pytest.approx(1) and len(drawn.SHARES) == len(KINDS)
    for kind, share in zip(KINDS, drawn.SHARES):
        assert seen[kind] / 20000 == pytest.approx(share, abs=0.012)


def test_a_batch() -> None:
    batch = draw_batch(24, 48, seed=5)
    assert batch.shape == (24, 3, 48, 48) and batch.dtype == torch.uint8 and batch.is_contiguous()
    assert torch.equal(draw_batch(9, 48, seed=5), batch[:9])
    assert not torch.equal(draw_batch(9, 48, seed=6), batch[:9])
    assert len({picture.numpy().tobytes() for picture in batch}) == 24
    with_photo = draw_batch(60, 48, 5, [photo(), photo(20, 20)])
    assert any(photo_share(picture.permute(1, 2, 0).numpy()) > 0.2 for picture in with_photo)


# Crops


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of just a crop's size, of the colours that `photo_share` knows."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        Image.fromarray(np.roll(photo(CROP, CROP), i, axis=0)).save(root / f"{i}.png")
    return root


def crops(folder: Path, share: float, count: int = 600, clean: bool = False) -> list[torch.Tensor]:
    sampler = Sampler(DataConfig(drawn_share=share), [str(folder)], CROP, seed=0)
    return [sampler.crop_for(rng(0, 0, 3, j), 3, clean) for j in range(count)]


def test_the_share_is_honoured_and_other_crops_stay(folder: Path) -> None:
    plain = crops(folder, 0.0)
    assert all(photo_share(crop.permute(1, 2, 0).numpy()) == 1 for crop in plain)
    tenth = crops(folder, 0.1)
    differ = [not torch.equal(a, b) for a, b in zip(plain, tenth)]
    assert 0.07 < np.mean(differ) < 0.14
    half = crops(folder, 0.5)
    for a, b, c, differs in zip(plain, tenth, half, differ):
        assert torch.equal(b, c) if differs else (torch.equal(a, c) or photo_share(c.permute(1, 2, 0).numpy()) < 1)
    assert 0.4 < np.mean([not torch.equal(a, c) for a, c in zip(plain, half)]) < 0.6
    assert all(not torch.equal(a, b) for a, b in zip(plain[:100], crops(folder, 1.0, 100)))


def test_drawn_crops_have_the_contracted_form(folder: Path) -> None:
    shown = []
    for clean in (False, True):
        made = crops(folder, 1.0, 100, clean)
        for crop in made:
            assert crop.shape == (3, CROP, CROP) and crop.dtype == torch.uint8 and crop.is_contiguous()
        assert all(torch.equal(a, b) for a, b in zip(made, crops(folder, 1.0, 100, clean)))
        shown += [photo_share(crop.permute(1, 2, 0).numpy()) for crop in made]
    assert 10 < sum(share > 0.02 for share in shown) < 60  # those of `WITH_PHOTO`


def test_a_drawn_crop_draws_six_numbers_too(folder: Path) -> None:
    generator, expected = rng(5), rng(5)
    Sampler(DataConfig(drawn_share=1.0), [str(folder)], CROP, seed=0).crop_for(generator, 0, False)
    expected.random(6)
    assert generator.random() == expected.random()


def test_positions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text stands upright, but for one in sixteen; everything else takes all eight positions, photographs too."""
    marker = torch.zeros(CROP, CROP, 3, dtype=torch.uint8)
    marker[0, 1:5] = 255
    upright = marker.permute(2, 0, 1)
    positions = [torch.rot90(p, t, (1, 2)) for p in (upright, upright.flip(2)) for t in range(4)]
    monkeypatch.setattr(data, "draw", lambda *_: marker.numpy())
    for kind in KINDS:
        monkeypatch.setattr(data, "random_kind", lambda _, kind=kind: kind)
        seen = Counter(next(i for i, p in enumerate(positions) if torch.equal(p, c)) for c in crops(folder, 1.0, 300))
        if kind in UPRIGHT:
            assert 270 <= seen[0] < 300 and len(seen) > 3
        else:
            assert len(seen) == 8 and max(seen.values()) < 80
    ordinary = [c for c in crops(folder, 0.5, 200) if not any(torch.equal(c, p) for p in positions)]
    assert 70 < len(ordinary) < 130 and len({crop.numpy().tobytes() for crop in ordinary}) == 24  # 3 pictures


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_impossible_shares(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.drawn_share must be 0\.\.1"):
        DataConfig(drawn_share=share)


def test_recipes() -> None:
    """The paper's and the ablation's recipes have no drawn pictures, all others have a tenth."""
    shares = {p.stem: load_recipe(p)[0].data.drawn_share for p in sorted((ROOT / "configs" / "train").glob("*.json"))}
    without = {name for name, share in shares.items() if share == 0.0}
    assert without == {"ablation", "c8b8", "c6b8", "c3b4", "c1b4"}
    assert {share for name, share in shares.items() if name not in without} == {0.1}


# Validation


def test_validation_set(tmp_path: Path) -> None:
    for name, count in (("val", 3), ("val2", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(np.roll(photo(70, 80), i, axis=0)).save(tmp_path / name / f"{i}.png")
    sources = [str(tmp_path / "val"), str(tmp_path / "val2")]
    made = validation_set(sources, size=64)
    assert {kind: len(found) for kind, found in made.items()} == {"val": 3, "val2": 2, "drawn": 24}
    for found in made.values():
        assert all(p.shape == (1, 3, 64, 64) and p.dtype == torch.uint8 and p.is_contiguous() for p in found)
    assert torch.equal(made["val"][0][0].permute(1, 2, 0), torch.from_numpy(photo(70, 80)[3:67, 8:72]))
    again = validation_set(sources, size=64)
    assert all(torch.equal(a, b) for kind in made for a, b in zip(made[kind], again[kind]))
    assert any(photo_share(p[0].permute(1, 2, 0).numpy()) > 0.1 for p in made["drawn"])
    few = validation_set([sources[1], sources[0] + "/"], size=64, photos=1, drawn=0)
    assert {kind: len(found) for kind, found in few.items()} == {"val2": 1, "val": 1}
    (tmp_path / "other").mkdir()
    (tmp_path / "val").rename(tmp_path / "other" / "val2")
    assert {k: len(v) for k, v in validation_set([sources[1], str(tmp_path / "other" / "val2")], 64).items()} == {
        "val2": 5,
        "drawn": 24,
    }
    with pytest.raises(ConfigError, match="nowhere"):
        validation_set(["nowhere"])


def test_drawn_validation_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn_pictures(24, 128)
    assert len({p.numpy().tobytes() for p in made}) == 24
    assert all(torch.equal(a, b) for a, b in zip(drawn_pictures(5, 128), made))
    trained = {p.numpy().tobytes() for seed in range(4) for p in draw_batch(40, 128, seed)}
    assert not trained & {p[0].numpy().tobytes() for p in made}
    kinds = Counter[str]()

    def recorded(kind: str, *arguments: object) -> Array:
        kinds[kind] += 1
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(validation, "draw", recorded)
    drawn_pictures(24, 8)
    assert set(kinds) == set(KINDS) and min(kinds.values()) >= 2
