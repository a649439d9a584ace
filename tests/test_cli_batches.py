"""The command line decodes and checks folders in batches: as if alone, whatever else is in them, and within bounds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command import Run
from PIL import Image

import l2c
from l2c.cli import batches, lazy
from l2c.codec import Codec
from l2c.format.bitstream import read_bitstream, write_bitstream

SIZES = ((50, 70), (20, 33), (50, 70), (9, 64))


@pytest.fixture
def packed(tiny_model_path: Path, tmp_path: Path, drawn_picture: npt.NDArray[np.uint8]) -> Path:
    """A folder of files: two sizes twice, qualities that differ, grey, alpha and what was 16-bit grey."""
    folder, codec = tmp_path / "packed", Codec(tiny_model_path)
    folder.mkdir()
    for number, (height, width) in enumerate(SIZES):
        data = codec.encode(drawn_picture[:height, :width], quality=30 + 20 * number)
        (folder / f"{number}.l2c").write_bytes(data)
    grey = drawn_picture[..., 0]
    alpha = np.arange(50 * 70, dtype=np.uint8).reshape(50, 70)
    (folder / "grey.l2c").write_bytes(codec.encode(grey))
    (folder / "alpha.l2c").write_bytes(codec.encode(np.dstack([drawn_picture, alpha])))
    with pytest.warns(l2c.L2CWarning, match="16-bit"):
        (folder / "deep.l2c").write_bytes(codec.encode(grey.astype(np.uint16) * 257))
    return folder


def spoilt(data: bytes) -> bytes:
    """A file whose sections are sound and whose latents are not those that its header promises."""
    stream = read_bitstream(data)
    payloads = [bytes(payload) for payload in stream.payloads]
    payloads[0] = payloads[0][:-1] + bytes([payloads[0][-1] ^ 1])
    return write_bitstream(stream.header, payloads, [tile.channels for tile in stream.tiles])


_CALLS = {"decode": "decode_batch_detailed", "verify": "verified"}  # of a codec, with several files at once


def sizes_of_batches(monkeypatch: pytest.MonkeyPatch, call: str) -> list[int]:
    """How many files come to a call of the session at a time, from here on."""
    seen: list[int] = []
    work = getattr(Codec, call)

    def spy(self: Codec, files: Sequence[Any], **options: Any) -> Any:
        seen.append(len(files))
        return work(self, files, **options)

    monkeypatch.setattr(Codec, call, spy)
    return seen


def test_a_folder_is_decoded_together_as_its_files_alone(
    run: Run, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {}
    for path in sorted(packed.iterdir()):
        assert run("decode", path, tmp_path / "alone.png", "-f")[0] == 0
        alone[path.stem] = (tmp_path / "alone.png").read_bytes()
    seen = sizes_of_batches(monkeypatch, "decode_batch_detailed")
    code, out, err = run("decode", packed, tmp_path / "back", "--json")
    assert (code, err, seen) == (0, "", [len(alone)])
    assert {path.stem: path.read_bytes() for path in (tmp_path / "back").iterdir()} == alone
    assert {Image.open(tmp_path / "back" / f"{name}.png").mode for name in ("grey", "alpha", "0")} == {
        "L", "RGBA", "RGB"
    }  # fmt: skip
    for result in json.loads(out):
        data = Path(result["input"]).read_bytes()
        assert result["latents_sha256"] == Codec(result["model"]).verify(data) and result["size_bytes"] == len(data)
        assert set(result["seconds"]) == {"container", "entropy", "decoder", "save", "total"}
        assert result["seconds"]["total"] > result["seconds"]["decoder"] > 0


@pytest.mark.parametrize("command", ["decode", "verify"])
def test_a_damaged_file_spoils_no_other(
    run: Run, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """One is cut off, one decodes to other latents than it promises: each error is that of the file alone."""
    whole = {path.stem for path in packed.iterdir()}
    (packed / "1a.l2c").write_bytes((packed / "1.l2c").read_bytes()[:-1])
    (packed / "2a.l2c").write_bytes(spoilt((packed / "2.l2c").read_bytes()))
    alone = {}
    for name in ("1a", "2a"):
        targets = (tmp_path / "alone.png",) if command == "decode" else ()
        code, _, alone[name] = run(command, packed / f"{name}.l2c", *targets)
        assert code == 3
    seen = sizes_of_batches(monkeypatch, _CALLS[command])
    code, out, err = run(command, packed, *((tmp_path / "back",) if command == "decode" else ()))
    assert code == 1 and err == alone["1a"] + alone["2a"]
    assert seen == [len(whole) + 1] + [1] * (len(whole) + 1)
    assert f"{len(whole)} of {len(whole) + 2} files" in out and out.count("\n") == len(whole) + 1
    if command == "decode":
        assert {path.stem for path in (tmp_path / "back").iterdir()} == whole


@pytest.mark.parametrize("command", ["decode", "verify"])
def test_batches_are_bounded(
    run: Run, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """By pixels, by files and by bytes; a file that alone is larger comes alone. Outputs are written batch by batch."""
    files = sorted(path for path in packed.iterdir() if path.stem.isdigit())
    for path in set(packed.iterdir()) - set(files):
        path.unlink()
    call = _CALLS[command]
    targets = (tmp_path / "back", "-f") if command == "decode" else ()
    for name, most, expected in (
        ("BATCH_PIXELS", 50 * 70 + 20 * 33, [2, 2]),
        ("BATCH_PIXELS", 50 * 70 + 20 * 33 - 1, [1, 1, 2]),
        ("BATCH_PIXELS", 1, [1, 1, 1, 1]),
        ("BATCH_FILES", 3, [3, 1]),
        ("BATCH_BYTES", sum(path.stat().st_size for path in files[:3]), [3, 1]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(batches, name, most)
            seen = sizes_of_batches(patch, call)
            assert run(command, packed, *targets)[0] == 0
            assert seen == expected, name


def test_a_stopped_job_keeps_the_batches_that_are_done(
    run: Run, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, back = Codec.decode_batch_detailed, tmp_path / "back"

    def stopped(self: Codec, files: Sequence[Any], **options: Any) -> Any:
        if back.exists():
            assert len(list(back.iterdir())) == 3
            raise KeyboardInterrupt
        return work(self, files, **options)

    monkeypatch.setattr(batches, "BATCH_FILES", 3)
    monkeypatch.setattr(Codec, "decode_batch_detailed", stopped)
    code, out, _ = run("decode", packed, back)
    assert code == 130 and "3 of 7 files" in out and "--skip-existing goes on" in out


def test_files_of_a_model_that_is_not_at_hand(run: Run, packed: Path, tmp_path: Path) -> None:
    """First in its folder, and no hindrance to the others."""
    stream = read_bitstream((packed / "0.l2c").read_bytes())
    header = dataclasses.replace(stream.header, model_id=b"\xff" * 8)
    payloads = [bytes(payload) for payload in stream.payloads]
    (packed / "0.l2c").write_bytes(write_bitstream(header, payloads, [tile.channels for tile in stream.tiles]))
    code, out, err = run("decode", packed, tmp_path / "back", "--json")
    assert code == 1 and err.count("\n") == 1 and "ff" * 8 in err
    failed = [result for result in json.loads(out) if "error" in result]
    assert [result["model_id"] for result in failed] == ["ff" * 8] and len(list((tmp_path / "back").iterdir())) == 6


def test_what_is_skipped_or_refused_opens_no_batch(run: Run, packed: Path, tmp_path: Path) -> None:
    back = tmp_path / "back"
    assert run("decode", packed, back)[0] == 0
    (back / "2.png").unlink()
    code, out, err = run("decode", packed, back, "--skip-existing")
    assert (code, err) == (0, "") and "7 of 7 files, 6 of them there already" in out
    shutil.copy(packed / "1.l2c", packed / "new.l2c")
    code, out, err = run("decode", packed, back)
    assert code == 1 and err.count("--overwrite") == 7 and "1 of 8 files" in out and (back / "new.png").exists()


def test_a_lazy_module_is_the_module() -> None:
    assert lazy.LazyModule("json").dumps is json.dumps
    with pytest.raises(AttributeError, match="nothing"):
        _ = lazy.LazyModule("json").nothing
