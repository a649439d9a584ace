"""The command line: round trips, folders, pipes, JSON, exit codes, one-line errors; README and packaging."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import l2c
from l2c.cli import main
from l2c.codec import Codec
from l2c.codec.transform_stage import TransformStage
from l2c.images import readers
from l2c.models import WEIGHTS_FOLDER

ROOT = Path(__file__).parent.parent
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with the tiny model at hand: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("L2C_MODEL_PATH", str(tiny_model_path))
    monkeypatch.delenv("L2C_DEBUG", raising=False)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def png(tmp_path: Path, drawn_picture: npt.NDArray[np.uint8]) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(drawn_picture).save(path)
    return path


@pytest.fixture
def coded(run: Run, png: Path, tmp_path: Path) -> Path:
    """A file of the tiny model."""
    path = tmp_path / "coded.l2c"
    assert run("encode", png, path, "--model", "tiny")[0] == 0
    return path


def _one_error(err: str) -> str:
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("l2c: error: "), err
    return lines[0]


def test_help_names_commands_and_exit_codes(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for word in ("encode", "decode", "info", "verify", "models", "bench", "Exit codes:", "L2C_MODEL_PATH"):
        assert word in out
    for command in ("encode", "decode", "info", "verify", "models", "bench"):
        code, out, _ = run(command, "--help")
        assert code == 0 and "--json" in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"l2c {l2c.__version__}\n", "")


def test_round_trip_json(run: Run, png: Path, tmp_path: Path, drawn_picture: npt.NDArray[np.uint8]) -> None:
    file, back = tmp_path / "a.l2c", tmp_path / "back.png"
    code, out, err = run("encode", png, file, "--model", "tiny", "--quality", 40, "--json")
    assert (code, err) == (0, "")
    encoded = json.loads(out)
    assert encoded["size_bytes"] == file.stat().st_size
    assert encoded["bpp"] == 8 * file.stat().st_size / (70 * 50)
    assert (encoded["width"], encoded["height"], encoded["quality"]) == (70, 50, 40.0)
    assert encoded["target_bpp"] is None and encoded["target_reached"] is True and encoded["reason"] == ""
    assert set(encoded["seconds"]) == {"load", "encoder", "adapt", "entropy", "total"}

    code, out, err = run("decode", file, back, "--json")
    assert (code, err) == (0, "")
    decoded = json.loads(out)
    assert decoded["latents_sha256"] == encoded["latents_sha256"]
    assert set(decoded["seconds"]) == {"container", "entropy", "decoder", "save", "total"}
    expected = l2c.Codec(os.environ["L2C_MODEL_PATH"]).decode(file.read_bytes())
    assert np.array_equal(np.asarray(Image.open(back)), expected)

    code, out, err = run("verify", file, "--json")
    assert (code, err) == (0, "")
    verified = json.loads(out)
    assert verified["latents_sha256"] == encoded["latents_sha256"]

    code, out, err = run("info", file, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert sum(told["parts"].values()) == told["size_bytes"] == file.stat().st_size
    assert told["quality"] == 40.0 and len(told["tiles"]) == 1
    assert len({result["model_id"] for result in (encoded, decoded, verified, told)}) == 1


@pytest.mark.parametrize(
    "options, kept",
    [((), {"exif"}), (("--metadata", "all"), {"exif"}), (("--metadata", "color"), set()), (("--no-metadata",), set())],
)
def test_metadata_is_a_choice(run: Run, tmp_path: Path, options: tuple[str, ...], kept: set[str]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.new("RGB", (40, 30), (9, 99, 199)).save(tmp_path / "a.jpg", exif=exif)
    assert run("encode", tmp_path / "a.jpg", tmp_path / "a.l2c", "--model", "tiny", *options)[0] == 0
    picture = l2c.Codec(os.environ["L2C_MODEL_PATH"]).decode((tmp_path / "a.l2c").read_bytes(), as_="pil")
    assert set(picture.info) & {"exif", "icc_profile", "xmp"} == kept
    code, _, err = run("encode", tmp_path / "a.jpg", tmp_path / "b.l2c", "--metadata", "some")
    assert code == 2 and "--metadata" in err


def test_cut_pictures_are_taken_where_asked(run: Run, tmp_path: Path) -> None:
    Image.effect_noise((96, 96), 60).convert("RGB").save(tmp_path / "whole.jpg", quality=90)
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    assert run("encode", tmp_path / "cut.jpg", tmp_path / "cut.l2c", "--model", "tiny")[0] == 1
    assert not (tmp_path / "cut.l2c").exists()
    assert run("encode", tmp_path / "cut.jpg", tmp_path / "cut.l2c", "--model", "tiny", "--truncated")[0] == 0


def test_plain_output_is_one_line_a_file(run: Run, png: Path, tmp_path: Path) -> None:
    code, out, err = run("encode", png, tmp_path / "a.l2c", "--model", "tiny")
    assert code == 0 and err == "" and out.count("\n") == 1 and " bpp" in out
    code, out, err = run("decode", tmp_path / "a.l2c", tmp_path / "a.png")
    assert code == 0 and err == "" and out.count("\n") == 1 and "70x50" in out
    code, out, err = run("verify", tmp_path / "a.l2c")
    assert code == 0 and err == "" and re.search(r"latents_sha256 [0-9a-f]{64}\n$", out)
    code, out, err = run("info", tmp_path / "a.l2c")
    assert code == 0 and err == "" and "payloads" in out


def test_same_bytes_as_the_python_interface(run: Run, png: Path, coded: Path, tiny_model_path: Path) -> None:
    assert coded.read_bytes() == l2c.Codec(tiny_model_path).encode(png)


def test_rate_target(run: Run, png: Path, tmp_path: Path) -> None:
    _, out, _ = run("encode", png, tmp_path / "a.l2c", "--model", "tiny", "--quality", 60, "--json")
    target = 1.1 * json.loads(out)["bpp"]
    code, out, _ = run("encode", png, tmp_path / "b.l2c", "--model", "tiny", "--bpp", target, "--json")
    assert code == 0 and json.loads(out)["bpp"] <= target and json.loads(out)["target_bpp"] == target

    code, out, err = run("encode", png, tmp_path / "c.l2c", "--model", "tiny", "--bpp", 500, "--json")
    result = json.loads(out)
    assert code == 0 and result["target_reached"] is False and "needs only" in result["reason"]
    assert err.startswith("l2c: warning: ") and err.count("\n") == 1

    code, out, err = run("encode", png, tmp_path / "d.l2c", "--model", "tiny", "--bpp", 0.001, "--json")
    assert code == 5 and "least rate" in _one_error(err)
    assert json.loads(out)["least_bpp"] > 0.001 and json.loads(out)["error_type"] == "RateError"
    assert not (tmp_path / "d.l2c").exists()


def test_info_loads_no_torch_and_verify_of_damage_no_model(coded: Path) -> None:
    script = (
        "import sys; from l2c.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, "info", coded], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "False"), done.stderr
    coded.write_bytes(coded.read_bytes()[:-1])
    done = subprocess.run([sys.executable, "-c", script, "verify", coded], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "False"), done.stderr


def test_info_of_a_damaged_file(run: Run, coded: Path) -> None:
    data = bytearray(coded.read_bytes())
    data[-1] ^= 1
    coded.write_bytes(data)
    code, out, err = run("info", coded, "--json")
    assert code == 3 and json.loads(out)["damaged_tiles"] == [0] and "tile 0" in _one_error(err)
    coded.write_bytes(data[:-4])
    assert run("info", coded)[0] == 3


def test_pipes(png: Path, coded: Path, tiny_model_path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "L2C_MODEL_PATH": str(tiny_model_path)}
    command = [sys.executable, "-m", "l2c"]
    encoded = subprocess.run(
        [*command, "encode", "-", "-", "--model", "tiny"],
        input=png.read_bytes(),
        capture_output=True,
        env=environment,
    )
    assert encoded.returncode == 0 and encoded.stdout == coded.read_bytes()
    assert encoded.stderr.count(b"\n") == 1  # the line on how it went
    decoded = subprocess.run([*command, "decode", "-", "-"], input=encoded.stdout, capture_output=True, env=environment)
    assert decoded.returncode == 0 and decoded.stdout.startswith(b"\x89PNG")
    verified = subprocess.run(
        [*command, "verify", "-", "--json"], input=encoded.stdout, capture_output=True, env=environment
    )
    assert verified.returncode == 0 and len(json.loads(verified.stdout)["latents_sha256"]) == 64
    failed = subprocess.run(
        [*command, "encode", "-", "-", "--model", "tiny"], input=b"x", capture_output=True, env=environment
    )
    assert failed.returncode == 1 and failed.stdout == b""
    assert failed.stderr.startswith(b"l2c: error: ") and failed.stderr.count(b"\n") == 1


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
    assert code == 1 and "broken.png" in _one_error(err)
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
    assert code == 1 and "one.l2c" in _one_error(err) and "3 of 4 files" in out
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
    assert code == 1 and "locked: cannot be opened: Permission denied" in _one_error(err)
    assert "1 of 1 files" in out and "locked" in out


def test_a_folder_without_pictures_says_what_it_holds(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l2c.images.readers.register", lambda name: False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    code, _, err = run("encode", tmp_path / "photos", tmp_path / "o", "--model", "tiny")
    assert code == 1 and "pillow-heif" in _one_error(err) and "a.heic" in err and not (tmp_path / "o").exists()


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
        assert code == 1 and "is L2C by its content" in _one_error(err) and "1 of 1 files" in out


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
        code == 130 and "2 of 5 files" in out and "--skip-existing goes on" in out and "interrupted" in _one_error(err)
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
    assert code == 2 and "not both" in _one_error(err)
    coded.write_bytes(_version_9(before))  # whole, as far as anybody here can tell
    code, _, err = run("encode", png, coded, "--model", "tiny", "--skip-existing")
    assert code == 1 and "version" in _one_error(err) and coded.read_bytes() == _version_9(before)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:surrogateescape", "utf-8"])
def test_names_that_the_terminal_lacks(
    run: Run, png: Path, tmp_path: Path, encoding: str, tiny_model_path: Path
) -> None:
    """Printed with escapes after the work, in every command; the exit code is that of the work.

    One process for all commands, since starting one takes longer than they do; form feeds keep them apart.
    """
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in (os.fsdecode("caf\u00e9 \u65e5\u672c.png".encode()), os.fsdecode(b"\xff\xfe.png")):
        shutil.copy(png, photos / name)
    commands: list[tuple[str | Path, ...]] = [
        ("encode", photos, tmp_path / "o", "--model", "tiny"),
        ("verify", tmp_path / "o"),
        ("decode", tmp_path / "o", tmp_path / "back"),
        *(("info", tmp_path / "o" / f"{path.stem}.l2c") for path in sorted(photos.iterdir())),
        ("info", tmp_path / "\u65e5\u672c.l2c"),
    ]
    script = (
        "import json, sys; from l2c.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    code = main(command)\n"
        "    print(code, end='\\f', flush=True); print(end='\\f', file=sys.stderr, flush=True)\n"
        "sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    lines = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", script, lines], capture_output=True, env=environment)
    assert done.returncode == 1, done.stderr
    *outs, out_at_exit = done.stdout.split(b"\f")
    *errs, err_at_exit = done.stderr.split(b"\f")
    assert out_at_exit == err_at_exit == b"" and len(outs) == len(errs) == len(commands) == 6
    for out, err in zip(outs[:-1], errs[:-1]):
        assert out.endswith(b"\n0") and err == b""
    assert len(os.listdir(tmp_path / "o")) == len(os.listdir(tmp_path / "back")) == 2
    assert outs[-1] == b"1" and errs[-1].count(b"\n") == 1
    assert b"internal" not in errs[-1] and b"no such file" in errs[-1].lower()


def test_the_c_locale_prints_names_as_the_bytes_they_are(png: Path, tiny_model_path: Path, tmp_path: Path) -> None:
    name = "caf\u00e9.png".encode()
    source = os.fsencode(tmp_path) + b"/" + name
    shutil.copy(png, source)
    variables = {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment = {**os.environ, **variables, "L2C_MODEL_PATH": str(tiny_model_path)}
    environment.pop("PYTHONIOENCODING", None)
    command = [sys.executable, "-m", "l2c", "encode", source, source + b".l2c", "--model", "tiny"]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0 and name in done.stdout, done.stderr


def test_a_page_of_files_whose_names_no_text_can_hold(run: Run, png: Path, coded: Path, tmp_path: Path) -> None:
    """A name that is no UTF-8: the page stands at the end of the work, and shows something in its place."""
    odd = tmp_path / os.fsdecode(b"\xff.png")
    shutil.copy(png, odd)
    code, _, err = run("compare", odd, coded, "-o", tmp_path / "page.html", "--model", "tiny")
    assert (code, err) == (0, "") and (tmp_path / "page.html").read_text(encoding="utf-8")


def test_names_do_not_steer_the_terminal(run: Run, png: Path, tmp_path: Path) -> None:
    source = tmp_path / "a\x1b[31m\nl2c: error: made up.png"
    shutil.copy(png, source)
    code, out, err = run("encode", source, tmp_path / "a.l2c", "--model", "tiny")
    assert code == 0 and out.count("\n") == 1 and "\x1b" not in out and "\\x1b[31m\\nl2c" in out
    code, _, err = run("encode", source, tmp_path / "a.l2c", "--model", "tiny", "--tile", 700)
    assert code == 2 and "\x1b" not in err
    (tmp_path / "b\x1b[31m.png").write_text("no picture")
    code, _, err = run("encode", tmp_path / "b\x1b[31m.png", tmp_path / "b.l2c", "--model", "tiny")
    assert code == 1 and "\x1b" not in _one_error(err)


@pytest.mark.parametrize("stem", ["\u9577" * 78, "\u9577" * 83, "x" * 251])
def test_names_as_long_as_a_file_system_takes(run: Run, png: Path, tmp_path: Path, stem: str) -> None:
    """NAME_MAX counts bytes: 78 Chinese characters are 234 of 255."""
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(png, photos / f"{stem}.png")
    assert run("encode", photos, tmp_path / "packed", "--model", "tiny")[0] == 0
    assert os.listdir(tmp_path / "packed") == [f"{stem}.l2c"]
    assert run("decode", tmp_path / "packed", tmp_path / "back")[0] == 0
    assert os.listdir(tmp_path / "back") == [f"{stem}.png"]
    # One that is too long is an error of ours before any work, and leaves nothing.
    code, _, err = run("encode", png, tmp_path / f"{stem}{stem}.l2c", "--model", "tiny")
    assert code == 1 and "File name too long" in _one_error(err) and "internal" not in err


def test_out_that_ends_in_a_slash_is_a_folder(run: Run, png: Path, coded: Path, tmp_path: Path) -> None:
    code, out, _ = run("encode", png, f"{tmp_path}/new/deep/", "--model", "tiny", "--json")
    assert code == 0 and json.loads(out)["output"] == str(tmp_path / "new" / "deep" / "in.l2c")
    assert (tmp_path / "new" / "deep" / "in.l2c").read_bytes() == coded.read_bytes()
    code, _, err = run("encode", png, f"{tmp_path}/new/deep/", "--model", "tiny")
    assert code == 1 and "--overwrite" in _one_error(err)
    assert run("encode", png, f"{tmp_path}/new/.", "--model", "tiny")[0] == 0
    assert (tmp_path / "new" / "in.l2c").exists()
    assert run("decode", coded, f"{tmp_path}/back/")[0] == 0
    assert run("decode", coded, f"{tmp_path}/back/", "--format", "webp")[0] == 0
    assert sorted(os.listdir(tmp_path / "back")) == ["coded.png", "coded.webp"]
    code, _, err = run("encode", png, tmp_path / "new", "--model", "tiny")
    assert code == 1 and "is a folder" in _one_error(err)
    code, _, err = run("encode", "-", f"{tmp_path}/new/", "--model", "tiny")
    assert code == 2 and "standard input" in _one_error(err)


def test_a_file_where_a_folder_is_needed_costs_no_work(
    run: Run, png: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Codec, "encode_detailed", None)
    monkeypatch.setattr(Codec, "decode_detailed", None)
    for command in (("encode", png, f"{coded}/", "--model", "tiny"), ("decode", coded, f"{png}/deep/a.png")):
        code, _, err = run(*command)
        assert code == 1 and "is a file, not a folder" in _one_error(err)


def test_existing_files_are_kept(run: Run, png: Path, coded: Path) -> None:
    before = coded.read_bytes()
    code, _, err = run("encode", png, coded, "--model", "tiny", "--quality", 90)
    assert code == 1 and "--overwrite" in _one_error(err) and coded.read_bytes() == before
    assert run("encode", png, coded, "--model", "tiny", "--quality", 90, "--overwrite")[0] == 0
    assert coded.read_bytes() != before


def test_files_that_come_in_between_are_kept(
    run: Run, png: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check before the work and the end of it."""
    arguments = {
        "encode": (png, tmp_path / "new.l2c", "--model", "tiny"),
        "decode": (coded, tmp_path / "new.png"),
    }
    for command, (source, target, *options) in arguments.items():
        work = getattr(Codec, f"{command}_detailed")

        def slow(self: Codec, *args: Any, work: Any = work, target: Any = target, **kwargs: Any) -> Any:
            target.write_bytes(b"somebody else's")
            return work(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Codec, f"{command}_detailed", slow)
            code, _, err = run(command, source, target, *options)
            assert code == 1 and "--overwrite" in _one_error(err)
            assert target.read_bytes() == b"somebody else's"
            assert run(command, source, target, *options, "--overwrite")[0] == 0
        assert target.read_bytes() != b"somebody else's"


def test_a_format_that_nobody_writes_costs_no_decoding(run: Run, coded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codec, "read_latents", None)
    code, _, err = run("decode", coded, coded.with_suffix(".xyz"))
    assert code == 1 and "unknown picture extension" in _one_error(err)


def test_alpha_grey_and_formats(run: Run, tmp_path: Path, drawn_picture: npt.NDArray[np.uint8]) -> None:
    alpha = np.arange(50 * 70, dtype=np.uint8).reshape(50, 70, 1)
    Image.fromarray(np.concatenate([drawn_picture, alpha], axis=2)).save(tmp_path / "rgba.png")
    assert run("encode", tmp_path / "rgba.png", tmp_path / "rgba.l2c", "--model", "tiny")[0] == 0
    assert run("decode", tmp_path / "rgba.l2c", tmp_path / "back.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png"))[..., 3:], alpha)
    code, _, err = run("decode", tmp_path / "rgba.l2c", tmp_path / "back.jpg")
    assert code == 1 and "alpha" in _one_error(err) and not (tmp_path / "back.jpg").exists()
    assert run("decode", tmp_path / "rgba.l2c", tmp_path / "back.jpg", "--flatten", "--quality", 80)[0] == 0
    assert run("decode", tmp_path / "rgba.l2c", tmp_path / "rgb.jpg", "--mode", "rgb")[0] == 0

    Image.fromarray(drawn_picture).convert("L").save(tmp_path / "grey.png")
    assert run("encode", tmp_path / "grey.png", tmp_path / "grey.l2c", "--model", "tiny")[0] == 0
    for mode, expected in (("original", "L"), ("rgb", "RGB")):
        assert run("decode", tmp_path / "grey.l2c", tmp_path / f"{mode}.png", "--mode", mode)[0] == 0
        assert Image.open(tmp_path / f"{mode}.png").mode == expected


def test_warnings_are_one_line(run: Run, tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    code, _, err = run("encode", tmp_path / "deep.png", tmp_path / "deep.l2c", "--model", "tiny")
    assert code == 0 and err.startswith("l2c: warning: ") and err.count("\n") == 1 and "16-bit" in err


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 16]) + data[-2:]


def _version_9(data: bytes) -> bytes:
    return data[:4] + b"\x09" + data[5:]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_truncated, 3),
        (_flipped, 3),
        (lambda data: data + b"0", 3),
        (lambda data: b"", 3),
        (lambda data: b"GIF89a", 3),
        (_version_9, 1),
    ],
    ids=["truncated", "flipped", "longer", "empty", "not ours", "version"],
)
@pytest.mark.parametrize("command", ["decode", "verify"])
def test_damaged_files(run: Run, coded: Path, tmp_path: Path, damage: Any, code: int, command: str) -> None:
    coded.write_bytes(damage(coded.read_bytes()))
    before = set(os.listdir(tmp_path))
    arguments = (coded, tmp_path / "out.png") if command == "decode" else (coded,)
    got, out, err = run(command, *arguments)
    assert got == code and out == "" and "coded.l2c" in _one_error(err)
    assert set(os.listdir(tmp_path)) == before


def test_precision_reaches_the_networks(run: Run, png: Path, coded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--precision of encode, decode and bench: what E's and D's autocast is when they run."""
    seen = []
    mode = TransformStage.float_mode

    @contextlib.contextmanager
    def spy(stage: TransformStage) -> Iterator[None]:
        with mode(stage):
            seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16)
            yield

    monkeypatch.setattr(TransformStage, "float_mode", spy)
    for arguments in (
        ("encode", png, png.with_suffix(".l2c")),
        ("decode", coded, png.with_name("o.png")),
        ("bench", png),
    ):
        for precision in ("float32", "bfloat16"):
            seen.clear()
            options = ["--model", "tiny", "--precision", precision, *(["-f"] if arguments[0] != "bench" else [])]
            assert run(*arguments, *options)[0] == 0
            assert seen and set(seen) == {precision == "bfloat16"}


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("encode", "{dir}/none.png", "{dir}/o.l2c", "--model", "tiny"), 1, "none.png"),
        (("encode", "{dir}/text.png", "{dir}/o.l2c", "--model", "tiny"), 1, "text.png"),
        (("encode", "{png}", "{dir}/o.l2c", "--model", "nobody"), 4, "nobody"),
        (("encode", "{png}", "{dir}/o.l2c", "--model", "{dir}/text.png"), 4, "text.png"),
        (("encode", "{png}", "{dir}/o.l2c", "--model", "tiny", "--device", "toaster"), 4, "toaster"),
        (("encode", "{png}", "{dir}", "--model", "tiny"), 1, "is a folder"),
        (("encode", "{png}", "{dir}/o.l2c", "--bpp", "1", "--quality", "3"), 2, "not both"),
        (("encode", "{png}", "{dir}/o.l2c", "--bpp", "nan"), 2, "--bpp"),
        (("encode", "{png}", "{dir}/o.l2c", "--bpp", "-1"), 2, "--bpp"),
        (("encode", "{png}", "{dir}/o.l2c", "--quality", "101"), 2, "--quality"),
        (("encode", "{png}", "{dir}/o.l2c", "--effort", "10"), 2, "--effort"),
        (("encode", "{png}", "{dir}/o.l2c", "--tile", "700"), 2, "--tile"),
        (("encode", "{png}", "{dir}/o.l2c", "--psnr", "30", "--msssim", "0.9"), 2, "not both"),
        (("encode", "{png}", "{dir}/o.l2c", "--max-bytes", "0"), 2, "--max-bytes"),
        (("encode", "{png}", "{dir}/o.l2c", "--psnr", "-3"), 2, "--psnr"),
        (("encode", "{png}", "{dir}/o.l2c", "--msssim", "1"), 2, "--msssim"),
        (("encode", "{png}", "{dir}/o.l2c", "--max-seconds", "0"), 2, "--max-seconds"),
        (("encode", "{png}", "{dir}/o.l2c", "--metric", "ssim"), 2, "--metric"),
        (("encode", "{png}", "-", "--json"), 2, "--json"),
        (("encode", "{dir}/empty", "{dir}/o"), 1, "empty"),
        (("encode", "{dir}", "-"), 2, "folder"),
        (("encode", "{png}"), 2, "OUT"),
        (("decode", "{coded}", "{dir}/o.unknown"), 1, "unknown"),
        (("decode", "{coded}", "{dir}/o.png", "--frobnicate"), 2, "--frobnicate"),
        (("info", "{png}"), 3, "in.png"),
        (("info", "{dir}/none.l2c"), 1, "none.l2c"),
        (("nothing",), 2, "nothing"),
    ],
)
def test_errors(
    run: Run, png: Path, coded: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, word: str
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    before = set(os.listdir(tmp_path))
    places = {"dir": tmp_path, "png": png, "coded": coded}
    got, out, err = run(*(argument.format(**places) for argument in arguments))
    assert got == code and out == "" and word in _one_error(err)
    assert set(os.listdir(tmp_path)) == before


def test_model_of_the_file_is_missing(
    run: Run, coded: Path, tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = run("info", coded, "--json")
    wanted = json.loads(out)["model_id"]
    monkeypatch.setenv("L2C_MODEL_PATH", "")
    code, _, err = run("decode", coded, tmp_path / "o.png")
    assert code == 4 and wanted in _one_error(err) and not (tmp_path / "o.png").exists()
    assert run("decode", coded, tmp_path / "o.png", "--model", tiny_model_path)[0] == 0


def test_no_traceback_but_on_request(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("verify", tmp_path / "none.l2c")
    assert "Traceback" not in run(*arguments)[2]
    assert "Traceback" in run("--debug", *arguments)[2]
    assert "Traceback" not in run(*arguments)[2]
    monkeypatch.setenv("L2C_DEBUG", "1")
    assert "Traceback" in run(*arguments)[2]


def test_an_unforeseen_error_is_one_line(run: Run, coded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise TypeError("two\nlines")

    monkeypatch.setattr("l2c.cli.read_bitstream", fail)
    code, _, err = run("verify", coded)
    assert code == 1 and "TypeError: two lines" in _one_error(err)


def test_models(run: Run, tiny_model_path: Path) -> None:
    code, out, err = run("models", "--json")
    assert (code, err) == (0, "")
    (tiny,) = [facts for facts in json.loads(out) if facts["name"] == "tiny"]
    assert tiny["path"] == str(tiny_model_path) and tiny["size_bytes"] == tiny_model_path.stat().st_size
    assert len(tiny["model_id"]) == 16 and tiny["card"] == {"training": "none"} and tiny["c"] == 12
    assert min(*tiny["parameters"].values(), *tiny["kmac_per_pixel"].values()) > 0
    code, out, err = run("models")
    assert code == 0 and tiny["model_id"] in out


def test_bench(run: Run, png: Path) -> None:
    code, out, err = run("bench", png, "--model", "tiny", "--repeats", 1, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert set(result["encode_seconds"]) == {"load", "encoder", "adapt", "entropy", "total"}
    assert set(result["decode_seconds"]) == {"container", "entropy", "decoder", "total"}
    assert (result["width"], result["height"]) == (70, 50)
    code, out, err = run("bench", "--model", "tiny", "--repeats", 1)
    assert code == 0 and err == "" and "768x512" in out


def test_readme_round_trip(tiny_model_path: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    environment = dict(os.environ)
    if not (WEIGHTS_FOLDER / "l2c-default.safetensors").exists():
        shutil.copy(tiny_model_path, tmp_path / "l2c-default.safetensors")
        environment["L2C_MODEL_PATH"] = str(tmp_path)
        code = code.replace("bpp=0.5", "quality=0").replace("<= 0.5 *", "> 0 *")  # untrained: no such rate
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr


def test_readme_names_real_options(run: Run) -> None:
    block = (ROOT / "README.md").read_text().split("## On the command line")[1].split("```")[1]
    used = {(line.split()[1], option) for line in block.strip().splitlines() for option in re.findall(r"--\w+", line)}
    assert used
    for command, option in used:
        assert option in run(command, "--help")[1]


def test_every_package_is_installed() -> None:
    listed = re.search(r"^packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert listed is not None
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "l2c").rglob("__init__.py")]
    expected = {".".join(folder.parts) for folder in folders} | {"l2c.kernels"}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == expected


def test_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("l2c")
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"l2c {l2c.__version__}\n")
