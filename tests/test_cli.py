"""The command line: round trips, folders, pipes, JSON, exit codes, one-line errors; README and packaging."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from command import Run, one_error, version_9
from PIL import Image

import l2c
from l2c.codec import Codec
from l2c.codec.transform_stage import TransformStage
from l2c.models import WEIGHTS_FOLDER

ROOT = Path(__file__).parent.parent


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

    loud = ("--model", "tiny", "--bpp", 500, "--lossless", "never", "--json")
    code, out, err = run("encode", png, tmp_path / "c.l2c", *loud)
    result = json.loads(out)
    assert code == 0 and result["target_reached"] is False and "needs only" in result["reason"]
    assert err.startswith("l2c: warning: ") and err.count("\n") == 1

    code, out, err = run("encode", png, tmp_path / "d.l2c", "--model", "tiny", "--bpp", 0.001, "--json")
    assert code == 5 and "least rate" in one_error(err)
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


@pytest.mark.parametrize("arguments", [["--help"], ["encode", "--help"], ["bulk", "encode", "--help"], ["encode"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from l2c.cli import main; main(sys.argv[1:]); "
        "print('loaded', [name for name in ('torch', 'numpy', 'PIL', 'triton') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded []", done.stderr


def test_info_of_a_damaged_file(run: Run, coded: Path) -> None:
    data = bytearray(coded.read_bytes())
    data[-1] ^= 1
    coded.write_bytes(data)
    code, out, err = run("info", coded, "--json")
    assert code == 3 and json.loads(out)["damaged_tiles"] == [0] and "tile 0" in one_error(err)
    coded.write_bytes(data[:-4])
    assert run("info", coded)[0] == 3


def test_pipes(run: Run, png: Path, coded: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encoded.stdout)))
    code, out, _ = run("verify", "-", "--json")
    assert code == 0 and len(json.loads(out)["latents_sha256"]) == 64
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x")))
    code, out, err = run("encode", "-", "-", "--model", "tiny")
    assert code == 1 and out == "" and one_error(err)


def test_existing_files_are_kept(run: Run, png: Path, coded: Path) -> None:
    before = coded.read_bytes()
    code, _, err = run("encode", png, coded, "--model", "tiny", "--quality", 90)
    assert code == 1 and "--overwrite" in one_error(err) and coded.read_bytes() == before
    assert run("encode", png, coded, "--model", "tiny", "--quality", 90, "--overwrite")[0] == 0
    assert coded.read_bytes() != before


def test_files_that_come_in_between_are_kept(
    run: Run, png: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check before the work and the end of it."""
    arguments = {
        ("encode", "encode_detailed"): (png, tmp_path / "new.l2c", "--model", "tiny"),
        ("decode", "decode_batch_detailed"): (coded, tmp_path / "new.png"),
    }
    for (command, call), (source, target, *options) in arguments.items():
        work = getattr(Codec, call)

        def slow(self: Codec, *args: Any, work: Any = work, target: Any = target, **kwargs: Any) -> Any:
            target.write_bytes(b"somebody else's")
            return work(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Codec, call, slow)
            code, _, err = run(command, source, target, *options)
            assert code == 1 and "--overwrite" in one_error(err)
            assert target.read_bytes() == b"somebody else's"
            assert run(command, source, target, *options, "--overwrite")[0] == 0
        assert target.read_bytes() != b"somebody else's"


def test_a_format_that_nobody_writes_costs_no_decoding(run: Run, coded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codec, "read_latents", None)
    code, _, err = run("decode", coded, coded.with_suffix(".xyz"))
    assert code == 1 and "unknown picture extension" in one_error(err)


def test_alpha_grey_and_formats(run: Run, tmp_path: Path, drawn_picture: npt.NDArray[np.uint8]) -> None:
    alpha = np.arange(50 * 70, dtype=np.uint8).reshape(50, 70, 1)
    Image.fromarray(np.concatenate([drawn_picture, alpha], axis=2)).save(tmp_path / "rgba.png")
    assert run("encode", tmp_path / "rgba.png", tmp_path / "rgba.l2c", "--model", "tiny")[0] == 0
    assert run("decode", tmp_path / "rgba.l2c", tmp_path / "back.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png"))[..., 3:], alpha)
    code, _, err = run("decode", tmp_path / "rgba.l2c", tmp_path / "back.jpg")
    assert code == 1 and "alpha" in one_error(err) and not (tmp_path / "back.jpg").exists()
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


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_truncated, 3),
        (_flipped, 3),
        (lambda data: data + b"0", 3),
        (lambda data: b"", 3),
        (lambda data: b"GIF89a", 3),
        (version_9, 1),
    ],
    ids=["truncated", "flipped", "longer", "empty", "not ours", "version"],
)
@pytest.mark.parametrize("command", ["decode", "verify"])
def test_damaged_files(run: Run, coded: Path, tmp_path: Path, damage: Any, code: int, command: str) -> None:
    coded.write_bytes(damage(coded.read_bytes()))
    before = set(os.listdir(tmp_path))
    arguments = (coded, tmp_path / "out.png") if command == "decode" else (coded,)
    got, out, err = run(command, *arguments)
    assert got == code and out == "" and "coded.l2c" in one_error(err)
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
    assert got == code and out == "" and word in one_error(err)
    assert set(os.listdir(tmp_path)) == before


def test_model_of_the_file_is_missing(
    run: Run, coded: Path, tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = run("info", coded, "--json")
    wanted = json.loads(out)["model_id"]
    monkeypatch.setenv("L2C_MODEL_PATH", "")
    code, _, err = run("decode", coded, tmp_path / "o.png")
    assert code == 4 and wanted in one_error(err) and not (tmp_path / "o.png").exists()
    assert run("decode", coded, tmp_path / "o.png", "--model", tiny_model_path)[0] == 0


def test_no_traceback_but_on_request(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("verify", tmp_path / "none.l2c")
    assert "Traceback" not in run(*arguments)[2]
    assert "Traceback" in run("--debug", *arguments)[2]
    assert "Traceback" not in run(*arguments)[2]
    monkeypatch.setenv("L2C_DEBUG", "1")
    assert "Traceback" in run(*arguments)[2]


def test_an_unforeseen_error_is_one_line(run: Run, coded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("two\nlines")

    monkeypatch.setattr("l2c.cli.batches.read_bitstream", fail)
    code, _, err = run("verify", coded)
    assert code == 1 and "TypeError: two lines" in one_error(err)


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
