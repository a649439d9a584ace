"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from l2c.files import write_atomically
from l2c.images import save_picture


def test_write_atomically_follows_links_and_umask(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    long_name = tmp_path / ("n" * 255)
    write_atomically(long_name, b"x")
    assert long_name.read_bytes() == b"x"
    write_atomically("/dev/null", b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_replacing_keeps_permissions(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.write_bytes(b"old")
    path.chmod(0o600)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o4755)
    write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755  # not what a program of another content ran with


@pytest.mark.parametrize("links", ["there", "refused", "unknown"])
def test_a_file_that_came_in_between_is_kept(links: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("this file system has none")

    if links == "refused":
        monkeypatch.setattr(os, "link", no_links)
    if links == "unknown":
        monkeypatch.delattr(os, "link")
    path = tmp_path / "out.png"
    write_atomically(path, b"first", overwrite=False)
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_atomically(path, b"second", overwrite=False)
    with pytest.raises(FileExistsError, match="--overwrite"):
        save_picture(path, np.zeros((3, 4, 3), np.uint8), overwrite=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
