"""Which files of a folder are pictures: one answer for every command and the training."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from l2c.errors import ConfigError
from l2c.files import Wanted, find_files, output_names
from l2c.images import readers
from l2c.images.listing import list_pictures, picture_suffixes, pictures, readable_pictures

PICTURES = ["a.png", "b.JP2", "c.gif", "d.heic", "deep/e.jxl", "deep/er/f.avif", "deep/er/g.webp", "h.tif", "i.jpeg"]
OTHERS = [".hidden.png", ".folder/x.png", "notes.txt", "figure.eps", "table.h5", "file.l2c", "png", "deep/README"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in PICTURES + OTHERS:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "behind.png").write_bytes(b"")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    return tmp_path / "in"


@pytest.mark.parametrize("installed", [True, False])
def test_encode_and_eval_and_training_see_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr(readers, "register", lambda name: installed)
    known = Image.registered_extensions()  # other tests may have loaded plugins
    monkeypatch.setattr(Image, "EXTENSION", {s: name for s, name in known.items() if s not in (".heic", ".jxl")})
    assert list_pictures(folder) == sorted(folder / name for name in PICTURES)
    files, left_out = find_files(str(folder), readable_pictures())
    unreadable = [] if installed else ["d.heic", "deep/e.jxl"]
    assert [folder / file for file in files] == sorted(folder / name for name in PICTURES if name not in unreadable)
    failing = {os.path.relpath(part.path, folder) for part in left_out if part.fails}
    assert failing == {*unreadable, "pipe.png"}


def test_suffixes() -> None:
    suffixes = picture_suffixes()
    assert suffixes >= {".png", ".jpg", ".jpeg", ".avif", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".jxl", ".gif"}
    assert not suffixes & {".eps", ".h5", ".mpg", ".pdf", ".txt", ".l2c", ""}
    assert pictures().takes("A.PNG") and not pictures().takes("png") and not pictures().takes(".png")


def test_a_folder_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"cannot open the folder .*: Permission denied"):
        list_pictures(tmp_path)


def test_names_of_outputs() -> None:
    names = [Path(name) for name in ("a.png", "a.jpg", "deep/a.png", "b.png")]
    assert [str(name) for name in output_names(names, ".l2c")] == ["a.png.l2c", "a.jpg.l2c", "deep/a.l2c", "b.l2c"]
    names.append(Path("a.png.bmp"))
    assert [str(name) for name in output_names(names, ".l2c")][-2:] == ["b.png.l2c", "a.png.bmp.l2c"]


def test_a_kind_without_a_further_look(tmp_path: Path) -> None:
    (tmp_path / "a.l2c").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"")
    files, left_out = find_files(str(tmp_path), Wanted("L2C file", frozenset({".l2c"})))
    assert files == [Path("a.l2c")] and [(part.reason, part.fails) for part in left_out] == [("no L2C file", False)]
