"""The command line on folders: what is taken and left out, and jobs that go on."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command import Run, one_error, version_9
from PIL import Image

from l2c.codec import Codec
from l2c.images import readers


def test_folders(run: Run, tmp_path: Path, drawn_picture: npt.NDArray[np.uint8]) -> None:
    photos = tmp_path / "photos"
    (photos / "deep" / "er").mkdir(parents=True)
    image = Image.fromarray(drawn_picture[:20, :30])
    for name in ("one.png", "deep/two.jpg", "deep/er/same.png", "deep/er/same.bmp", ".hidden.png"):
        image.save(photos / name)
    (photos / "notes.txt").write_text("no picture")
    (photos / "broken.png").write_bytes(b"\x89PNG broken")

    packed = tmp_path / "packed"
    code, out, err = run("encode", photos, packed, "--model", "tiny", "--json")
    assert code == 1 and "broken.png" in one_error(err)
    results = json.loads(out)
    assert [result["error_type"] for result in results if "error" in result] == ["ImageError"]
    names = {"one.l2c", "deep/two.l2c", "deep/er/same.png.l2c", "deep/er/same.bmp.l2c"}
    assert {str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()} == names
    done = [result for result in results if "error" not in result and "left_out" not in result]
    assert {os.path.relpath(result["output"], packed) for result in done} == names

    code, out, err = run("verify", packed)
    assert code == 0 and err == "" and "4 of 4 files" in out
    (packed / "one.l2c").write_bytes(b"junk")
    code, out, err = run("decode", packed, tmp_path / "back", "--format", "webp")
    assert code == 1 and "one.l2c" in one_error(err) and "3 of 4 files" in out
    found = {str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*") if path.is_file()}
    assert found == {"deep/two.webp", "deep/er/same.png.webp", "deep/er/same.bmp.webp"}


def _left_out(out: str, root: Path) -> dict[str, tuple[str, bool]]:
    """What --json says was left out below a folder: path -> (reason, whether it counts as an error)."""
    entries = [entry for entry in json.loads(out) if "left_out" in entry]
    return {os.path.relpath(entry["input"], root): (entry["left_out"], "error" in entry) for entry in entries}


def test_a_folder_run_says_what_it_left_out(
    run: Run, tmp_path: Path, drawn_picture: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l2c.images.readers.register", lambda name: False)  # no plugin is installed
    loaded = {suffix for plugin in readers.PLUGINS.values() for suffix in plugin.suffixes}  # by other tests, perhaps
    known = {suffix: name for suffix, name in Image.registered_extensions().items() if suffix not in loaded}
    monkeypatch.setattr(Image, "EXTENSION", known)
    photos, other = tmp_path / "photos", tmp_path / "other"
    (photos / "deep").mkdir(parents=True)
    other.mkdir()
    image = Image.fromarray(drawn_picture[:20, :30])
    image.save(photos / "one.png")
    image.save(other / "behind.png")
    (photos / "old").symlink_to(other)
    for name in ("notes.txt", "deep/more.txt", "empty"):
        (photos / name).write_text("")

    code, out, err = run("encode", photos, tmp_path / "packed", "--model", "tiny", "--json")
    harmless = {
        "notes.txt": ("no picture", False),
        "deep/more.txt": ("no picture", False),
        "empty": ("no picture", False),
        "old": ("linked folder", False),
    }
    assert (code, err) == (0, "") and _left_out(out, photos) == harmless
    code, out, err = run("encode", photos, tmp_path / "again", "--model", "tiny")
    assert (code, err) == (0, "") and out.count("\n") == 2
    assert "1 of 1 files" in out and "left out: deep/more.txt and 2 more (no picture), old (linked folder)" in out

    # What is, or would be, a picture is an error, so that 0 means that every picture is done.
    image.save(photos / "without", "JPEG")
    image.save(photos / "deep" / "photo.jpg_large", "JPEG")
    (photos / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "b.jxl").write_bytes(b"\xff\x0a")
    (photos / "c.bin").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (photos / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(photos / "pipe.png")
    code, out, err = run("encode", photos, tmp_path / "third", "--model", "tiny", "--json")
    assert code == 1
    assert _left_out(out, photos) == harmless | {
        "without": ("is JPEG by its content, and its name does not end so", True),
        "deep/photo.jpg_large": ("is JPEG by its content, and its name does not end so", True),
        "a.HEIC": ("is HEIC, which is read with the package pillow-heif", True),
        "b.jxl": ("is JPEG XL, which is read with the package pillow-jxl-plugin", True),
        "c.bin": ("is HEIC by its content, and its name does not end so", True),
        "gone.png": ("link that leads nowhere", True),
        "gone.txt": ("link that leads nowhere", False),
        "pipe.png": ("no regular file", True),
    }
    lines = err.splitlines()
    assert len(lines) == 7 and all(line.startswith("l2c: error: ") for line in lines)
    assert any("a.HEIC" in line and "pillow-heif" in line for line in lines)
    assert (tmp_path / "third" / "one.l2c").exists()  # the others are done all the same


def test_a_folder_that_cannot_be_opened_is_named(
    run: Run, tmp_path: Path, png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "locked").mkdir(parents=True)
    shutil.copy(png, tmp_path / "photos")
    scan = os.scandir

    def refuse(path: Any) -> Any:  # as root, no folder is locked
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, out, err = run("encode", tmp_path / "photos", tmp_path / "o", "--model", "tiny")
    assert code == 1 and "locked: cannot be opened: Permission denied" in one_error(err)
    assert "1 of 1 files" in out and "locked" in out


def test_a_folder_without_pictures_says_what_it_holds(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l2c.images.readers.register", lambda name: False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    code, _, err = run("encode", tmp_path / "photos", tmp_path / "o", "--model", "tiny")
    assert code == 1 and "pillow-heif" in one_error(err) and "a.heic" in err and not (tmp_path / "o").exists()


def test_folders_of_coded_files_say_what_they_left_out(run: Run, coded: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    shutil.copy(coded, packed / "a.l2c")
    (packed / "list.txt").write_text("a.l2c")
    for command in (("verify", packed), ("decode", packed, tmp_path / "back")):
        code, out, _ = run(*command)
        assert code == 0 and "1 of 1 files" in out and "left out: list.txt (no L2C file)" in out
    shutil.copy(coded, packed / "b")
    for command in (("verify", packed), ("decode", packed, tmp_path / "more")):
        code, out, err = run(*command)
        assert code == 1 and "is L2C by its content" in one_error(err) and "1 of 1 files" in out


def test_heic_and_jpeg_xl_where_their_readers_are(run: Run, tmp_path: Path) -> None:
    """In a process of its own, in which nothing has loaded the plugins yet."""
    script = (
        "import sys; from l2c.cli import main; code = main(sys.argv[1:]); "
        "loaded = {'pillow_heif', 'pillow_jxl'} & set(sys.modules); print(sorted(loaded), file=sys.stderr); "
        "sys.exit(code)"
    )
    ran = 0
    for package, register, format_, suffix in (
        ("pillow_heif", "register_heif_opener", "HEIF", ".heic"),
        ("pillow_jxl", "", "JXL", ".jxl"),
    ):
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        if register:
            getattr(module, register)()
        folder = tmp_path / package
        folder.mkdir()
        Image.new("RGB", (33, 21), (90, 120, 30)).save(folder / f"a{suffix}", format_)
        for source, target in (
            (folder, tmp_path / f"{package}_o"),
            (folder / f"a{suffix}", tmp_path / f"{package}.l2c"),
        ):
            command = [sys.executable, "-c", script, "encode", source, target, "--model", "tiny"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, f"['{package}']\n") and "33x21" in done.stdout
        ran += 1
    if not ran:
        pytest.skip("neither pillow-heif nor pillow-jxl-plugin is installed")


def test_skip_existing_goes_on_with_a_stopped_job(
    run: Run, tmp_path: Path, drawn_picture: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, packed = tmp_path / "photos", tmp_path / "packed"
    photos.mkdir()
    for number in range(5):
        Image.fromarray(drawn_picture[: 20 + number, :30]).save(photos / f"{number}.png")
    job = ("encode", photos, packed, "--model", "tiny", "--skip-existing")
    work, calls = Codec.encode_detailed, []

    def stopped(self: Codec, source: Any, **options: Any) -> Any:
        calls.append(Path(source).name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return work(self, source, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Codec, "encode_detailed", stopped)
        code, out, err = run(*job)
    assert (
        code == 130 and "2 of 5 files" in out and "--skip-existing goes on" in out and "interrupted" in one_error(err)
    )
    assert sorted(os.listdir(packed)) == ["0.l2c", "1.l2c"]

    kept = (packed / "0.l2c").read_bytes()
    (packed / "1.l2c").write_bytes((packed / "1.l2c").read_bytes()[:-1])  # cut off
    (packed / "2.l2c").write_bytes(b"")
    (packed / "3.l2c").write_bytes(b"no L2C file at all")
    before = (packed / "0.l2c").stat().st_mtime_ns
    code, out, err = run(*job, "--json")
    results = json.loads(out)
    assert (code, err) == (0, "")
    assert [bool(result.get("skipped")) for result in results] == [True, False, False, False, False]
    assert all(result["size_bytes"] == Path(result["output"]).stat().st_size for result in results)
    assert (packed / "0.l2c").read_bytes() == kept and (packed / "0.l2c").stat().st_mtime_ns == before
    assert run("verify", packed)[0] == 0

    # A job that is finished is done again at no cost: no model is loaded.
    monkeypatch.setattr("l2c.codec.Codec.__init__", None)
    code, out, err = run(*job)
    assert (code, err) == (0, "") and "5 of 5 files, 5 of them there already" in out
    assert out.count("is there already") == 5


def test_skip_existing_of_decode(run: Run, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, back = tmp_path / "packed", tmp_path / "back"
    packed.mkdir()
    back.mkdir()
    for name in ("a", "b", "c", "d"):
        shutil.copy(coded, packed / f"{name}.l2c")
    assert run("decode", packed / "a.l2c", back / "a.png")[0] == 0
    (back / "b.png").write_bytes((back / "a.png").read_bytes()[:10])  # half a picture
    Image.new("RGB", (3, 3)).save(back / "c.png")  # another one
    before = (back / "a.png").stat().st_mtime_ns
    job = ("decode", packed, back, "--skip-existing")
    code, out, err = run(*job)
    assert (code, err) == (0, "") and "4 of 4 files, 1 of them there already" in out
    assert (back / "a.png").stat().st_mtime_ns == before
    assert len({(back / f"{name}.png").read_bytes() for name in ("a", "b", "c", "d")}) == 1
    monkeypatch.setattr("l2c.codec.Codec.__init__", None)
    code, out, err = run(*job)
    assert (code, err) == (0, "") and "4 of 4 files, 4 of them there already" in out


def test_skip_existing_of_one_file(run: Run, png: Path, coded: Path, tmp_path: Path) -> None:
    before = coded.read_bytes()
    code, out, err = run("encode", png, coded, "--model", "tiny", "--quality", 90, "--skip-existing")
    assert (code, err) == (0, "") and "is there already" in out and coded.read_bytes() == before
    code, _, err = run("encode", png, coded, "--model", "tiny", "--skip-existing", "--overwrite")
    assert code == 2 and "not both" in one_error(err)
    coded.write_bytes(version_9(before))  # whole, as far as anybody here can tell
    code, _, err = run("encode", png, coded, "--model", "tiny", "--skip-existing")
    assert code == 1 and "version" in one_error(err) and coded.read_bytes() == version_9(before)
