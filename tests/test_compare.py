"""The comparison page: its maps against the file, and its behaviour in a real browser where one is installed."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

import l2c
from l2c import cli
from l2c.evaluate.compare import compare, latent_maps
from l2c.format.adapt_section import NO_SET, PatchChanges
from l2c.format.bitstream import ADAPT, read_bitstream, write_bitstream
from l2c.train.drawn import draw
from l2c.transforms import num_modulators

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A photograph of 330x600 pixels and two files of it, the second with bias sets and conditions."""
    folder = tmp_path_factory.mktemp("compare")
    pixels = np.ascontiguousarray(skimage.data.coffee()[40:370, :600])
    Image.fromarray(pixels).save(folder / "coffee <1>.png")
    plain = l2c.encode(pixels, bpp=0.3)
    (folder / "small.l2c").write_bytes(plain)
    stream = read_bitstream(l2c.encode(pixels, bpp=1.0))
    sets = np.full((2, 3), NO_SET, np.uint8)
    sets[0, 0], sets[1, 2] = 3, 7
    count = num_modulators(l2c.Codec().transform)
    assert count
    conditions = np.zeros((count, 1, 2), np.int8)
    conditions[0, 0, 1] = 4
    changed = {**stream.metadata, ADAPT: PatchChanges(sets, conditions).pack()}
    data = write_bitstream(stream.header, stream.payloads, [tile.channels for tile in stream.tiles], changed)
    (folder / "large.l2c").write_bytes(data)
    return folder / "coffee <1>.png", [folder / "small.l2c", folder / "large.l2c"]


def page_data(text: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r"^const page = (.*);$", text, re.MULTILINE)
    assert found
    return json.loads(found.group(1))


def test_bits_add_up_to_the_file(files: tuple[Path, list[Path]]) -> None:
    codec = l2c.Codec()
    for path in files[1]:
        stream = read_bitstream(path.read_bytes())
        bits, used = latent_maps(codec, stream)
        assert bits.shape == used.shape == (42, 75)
        payload = 8 * sum(tile.size for tile in stream.tiles)
        assert bits.sum() == pytest.approx(payload, rel=0.03)
        (symbols,) = codec.read_latents([stream])
        assert used.sum() == int((symbols != 128).sum())
        assert np.corrcoef(bits.ravel(), used.ravel())[0, 1] > 0.7


def test_bits_of_tiles() -> None:
    """A tile is a stream of its own, so its bits are those of P on it alone."""
    pixels = np.ascontiguousarray(np.tile(skimage.data.chelsea(), (2, 2, 1))[:520, :600])
    codec = l2c.Codec()
    stream = read_bitstream(codec.encode(pixels, quality=40, tile=512))
    bits, _ = latent_maps(codec, stream)
    sizes = [8 * tile.size for tile in stream.tiles]
    parts = [bits[:64, :64].sum(), bits[:64, 64:].sum(), bits[64:, :64].sum(), bits[64:, 64:].sum()]
    assert len(sizes) == 4 and parts[0] == pytest.approx(sizes[0], rel=0.03)
    assert sum(parts) == pytest.approx(sum(sizes), rel=0.05)


def test_page_holds_everything(files: tuple[Path, list[Path]]) -> None:
    text = compare(*files, l2c.Codec())
    assert "coffee &lt;1&gt;.png" in text and "<1>" not in text
    assert not re.search(r"https?://", text)
    page = page_data(text)
    assert (page["width"], page["height"], page["lossless"]) == (600, 330, True)
    first, small, large = page["items"]
    assert first["title"] == "original" and re.fullmatch(r"small.l2c, 0.(29|30)\d bpp", small["title"])
    assert [o["name"] for o in small["overlays"]] == ["error", "bits per patch", "latents in use"]
    assert [o["name"] for o in large["overlays"]][3:] == ["bias sets", "modulators"]
    assert "2 sets: 3, 7" in large["overlays"][3]["legend"]
    facts = [dict(item["facts"]) for item in (small, large)]
    assert float(facts[0]["PSNR RGB"].split()[0]) < float(facts[1]["PSNR RGB"].split()[0]) - 1.0
    for item, path in zip((small, large), files[1]):
        stored = base64.b64decode(item["image"].split(",")[1])
        decoded = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))
        assert np.array_equal(decoded, l2c.decode(path.read_bytes()))


def test_pictures_kept_as_pixels(tmp_path: Path) -> None:
    pixels = draw("text", 160, np.random.default_rng(3))
    Image.fromarray(pixels).save(tmp_path / "page.png")
    codec = l2c.Codec()
    files = {"exact": codec.encode_detailed(pixels, bpp=8.0), "fewer": codec.encode_detailed(pixels)}
    assert files["exact"].lossless and files["fewer"].colours is not None
    for name, encoded in files.items():
        (tmp_path / name).write_bytes(encoded.data)
    _, exact, fewer = page_data(compare(tmp_path / "page.png", [tmp_path / name for name in files], codec))["items"]
    assert (dict(exact["facts"])["kept as"], exact["overlays"]) == ("pixels without loss", [])
    assert dict(fewer["facts"])["kept as"] == "pixels in fewer colours"
    assert [overlay["name"] for overlay in fewer["overlays"]] == ["error"]


def test_large_pictures_are_kept_small(files: tuple[Path, list[Path]]) -> None:
    whole = compare(files[0], files[1][:1], l2c.Codec())
    small = compare(files[0], files[1][:1], l2c.Codec(), lossless_pixels=1000, error_pixels=20_000)
    assert len(small) < 0.6 * len(whole) and not page_data(small)["lossless"]


def test_command(files: tuple[Path, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "page.html"
    arguments = ["compare", str(files[0]), *map(str, files[1]), "-o", str(out)]
    assert cli.main(arguments) == 0 and out.stat().st_size > 100_000
    assert cli.main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*arguments, "-f"]) == 0
    folder = tmp_path / "pages"
    assert (
        cli.main([*arguments[:-1], f"{folder}/"]) == 0 and (folder / "coffee <1>.html").read_bytes() == out.read_bytes()
    )
    assert cli.main([*arguments[:-1], f"{folder}/"]) == 1 and "exists already" in capsys.readouterr().err
    assert cli.main([*arguments[:-1], str(folder), "-f"]) == 1 and "end it in /" in capsys.readouterr().err
    other = tmp_path / "other.png"
    Image.fromarray(skimage.data.coffee()).save(other)
    assert cli.main(["compare", str(other), str(files[1][0]), "-o", str(tmp_path / "x.html")]) == 1
    assert "the file's picture is 600x330, the original 600x400" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")])
def test_in_a_browser(
    files: tuple[Path, list[Path]], tmp_path: Path, browser: Any, width: int, height: int, scheme: str
) -> None:
    """Drag the border, zoom, pan, choose a map, with mouse and keys; nothing is logged, nothing overflows."""
    target = tmp_path / "page.html"
    target.write_text(compare(*files, l2c.Codec()), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else problems.append(request.url)
    )
    page.goto(target.as_uri())
    page.wait_for_function("[...document.images].every(i => i.hidden || i.complete && i.naturalWidth)")

    def split() -> int:
        return int(page.get_attribute("#handle", "aria-valuenow"))

    assert split() == 50
    stage = page.locator("#stage").bounding_box()
    middle = stage["y"] + stage["height"] / 2
    page.mouse.move(stage["x"] + stage["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.25, middle, steps=5)
    page.mouse.up()
    assert abs(split() - 25) <= 1
    page.focus("#handle")
    page.keyboard.press("ArrowRight")
    assert abs(split() - 27) <= 1
    page.keyboard.press("End")
    assert split() == 100
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowRight")
    assert split() == 10

    def scale() -> float:
        return float(page.evaluate("view.scale"))

    fitted = scale()
    assert fitted == pytest.approx(min((stage["width"] - 2) / 600, (stage["height"] - 2) / 330), rel=0.01)
    page.mouse.move(stage["x"] + stage["width"] * 0.7, middle)
    page.mouse.wheel(0, -900)
    page.wait_for_function(f"view.scale > {fitted * 2}")
    before = page.evaluate("view.x")
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.6, middle, steps=3)
    page.mouse.up()
    assert page.evaluate("view.x") < before - 5 and split() == 10
    page.click("#one")
    assert scale() == pytest.approx(1.0)
    page.click("#fit")
    assert scale() == pytest.approx(fitted)
    page.select_option("#pick-right", "2")
    page.select_option("#pick-map", label="bits per patch")
    assert page.is_visible("#right .map") and "bpp" in page.inner_text("#legend")
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("m")
    assert page.input_value("#pick-map") == "2"
    page.select_option("#pick-map", "-1")
    assert page.is_hidden("#right .map")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # What is seen left and right of the border is what the page says.
    page.select_option("#pick-left", "0")
    page.select_option("#pick-right", "1")
    page.click("#one")
    page.evaluate("split(0.5)")
    shot = tmp_path / "shot.png"
    page.locator("#stage").screenshot(path=str(shot))
    seen = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    at = page.evaluate("[view.x, view.y, stage.clientWidth, stage.clientHeight]")
    original = np.asarray(Image.open(files[0]).convert("RGB")).astype(int)
    decoded = l2c.decode(files[1][0].read_bytes()).astype(int)
    at = [round(value) for value in at]
    left, border, right = max(0, at[0]), at[2] // 2, min(at[2], at[0] + 600)
    sides = (
        (original, decoded, range(left + 5, border - 30, 7)),
        (decoded, original, range(border + 30, right - 5, 7)),
    )
    for source, other, columns in sides:
        assert len(columns) > 15
        rows = range(int(at[3] / 2 - 60), int(at[3] / 2 - 30), 3)
        places = [(y, x) for y in rows for x in columns]

        def error(picture: np.ndarray, places: list[tuple[int, int]] = places) -> float:
            """Mean difference from what is seen; where the page's layout falls between pixels, the shot is one off."""
            shifts = [(dy, dx) for dy in (0, 1, 2) for dx in (0, 1, 2)]
            return min(
                float(np.mean([np.abs(seen[y + dy, x + dx] - picture[y - at[1], x - at[0]]) for y, x in places]))
                for dy, dx in shifts
            )

        assert error(source) < min(3.0, 0.6 * error(other))
    assert problems == []
    page.close()
