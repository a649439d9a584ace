"""The command line and names: what an encoding lacks, what steers a terminal, what is long, what is a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import Run, one_error

from l2c.codec import Codec


def test_names_that_the_terminal_lacks(run: Run, png: Path, tmp_path: Path, tiny_model_path: Path) -> None:
    """Printed with escapes after the work, in every command; the exit code is that of the work.

    One process for all commands on terminals of all encodings, since starting one takes longer than they do; form feeds
    keep them apart.
    """
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in (os.fsdecode("caf\u00e9 \u65e5\u672c.png".encode()), os.fsdecode(b"\xff\xfe.png")):
        shutil.copy(png, photos / name)
    encodings, commands = ["ascii", "latin-1", "ascii:surrogateescape", "utf-8"], []
    for k in range(len(encodings)):
        coded, back = tmp_path / f"o{k}", tmp_path / f"back{k}"
        commands += [
            ("encode", photos, coded, "--model", "tiny"), ("verify", coded), ("decode", coded, back),
            *(("info", coded / f"{path.stem}.l2c") for path in sorted(photos.iterdir())),
            ("info", tmp_path / "\u65e5\u672c.l2c"),
        ]  # fmt: skip
    script = (
        "import json, sys; from l2c.cli import main\n"
        "commands, encodings = json.loads(sys.argv[1]), sys.argv[2:]\n"
        "for i, command in enumerate(commands):\n"
        "    encoding, _, errors = encodings[i // 6].partition(':')\n"
        "    sys.stdout.reconfigure(encoding=encoding, errors=errors or 'strict')\n"
        "    sys.stderr.reconfigure(encoding=encoding, errors='backslashreplace')\n"
        "    code = main(command)\n"
        "    print(code, end='\\f', flush=True); print(end='\\f', file=sys.stderr, flush=True)\n"
        "sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    lines = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", script, lines, *encodings], capture_output=True, env=environment)
    assert done.returncode == 1, done.stderr
    *outs, out_at_exit = done.stdout.split(b"\f")
    *errs, err_at_exit = done.stderr.split(b"\f")
    assert out_at_exit == err_at_exit == b"" and len(outs) == len(errs) == len(commands) == 24
    for k in range(len(encodings)):
        *good, (out, err) = zip(outs[6 * k : 6 * k + 6], errs[6 * k : 6 * k + 6])
        assert all(said.endswith(b"\n0") and errors == b"" for said, errors in good), encodings[k]
        assert len(os.listdir(tmp_path / f"o{k}")) == len(os.listdir(tmp_path / f"back{k}")) == 2
        assert out == b"1" and err.count(b"\n") == 1
        assert b"internal" not in err and b"no such file" in err.lower()


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
    assert code == 1 and "\x1b" not in one_error(err)


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
    assert code == 1 and "File name too long" in one_error(err) and "internal" not in err


def test_out_that_ends_in_a_slash_is_a_folder(run: Run, png: Path, coded: Path, tmp_path: Path) -> None:
    code, out, _ = run("encode", png, f"{tmp_path}/new/deep/", "--model", "tiny", "--json")
    assert code == 0 and json.loads(out)["output"] == str(tmp_path / "new" / "deep" / "in.l2c")
    assert (tmp_path / "new" / "deep" / "in.l2c").read_bytes() == coded.read_bytes()
    code, _, err = run("encode", png, f"{tmp_path}/new/deep/", "--model", "tiny")
    assert code == 1 and "--overwrite" in one_error(err)
    assert run("encode", png, f"{tmp_path}/new/.", "--model", "tiny")[0] == 0
    assert (tmp_path / "new" / "in.l2c").exists()
    assert run("decode", coded, f"{tmp_path}/back/")[0] == 0
    assert run("decode", coded, f"{tmp_path}/back/", "--format", "webp")[0] == 0
    assert sorted(os.listdir(tmp_path / "back")) == ["coded.png", "coded.webp"]
    code, _, err = run("encode", png, tmp_path / "new", "--model", "tiny")
    assert code == 1 and "is a folder" in one_error(err)
    code, _, err = run("encode", "-", f"{tmp_path}/new/", "--model", "tiny")
    assert code == 2 and "standard input" in one_error(err)


def test_a_file_where_a_folder_is_needed_costs_no_work(
    run: Run, png: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Codec, "encode_detailed", None)
    monkeypatch.setattr(Codec, "decode_batch_detailed", None)
    for command in (("encode", png, f"{coded}/", "--model", "tiny"), ("decode", coded, f"{png}/deep/a.png")):
        code, _, err = run(*command)
        assert code == 1 and "is a file, not a folder" in one_error(err)
