"""Which files are pictures: the one answer of `l2c encode DIR`, `l2c eval DIR` and the training."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from l2c.errors import ConfigError
from l2c.files import Wanted, find_files, first_bytes
from l2c.images import readers

# Formats that Pillow opens but cannot (or, Ghostscript, should not) turn into pixels; and what is coded already
# (`l2c.pillow`).
_NO_PICTURES = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF", "L2C"})
_NOT_IN_EVERY_PILLOW = frozenset({".avif", ".webp"})  # taken all the same, so that their error is told
_LIST_SUFFIXES = frozenset({".txt", ".lst"})


def picture_suffixes() -> frozenset[str]:
    """How the names of pictures end: of what Pillow reads, and of what `readers.PLUGINS` read, installed or not."""
    known = Image.registered_extensions()  # also loads Pillow's own plugins
    of_pillow = (suffix for suffix, name in known.items() if name in Image.OPEN and name not in _NO_PICTURES)
    return _NOT_IN_EVERY_PILLOW.union(of_pillow, *(plugin.suffixes for plugin in readers.PLUGINS.values()))


def pictures() -> Wanted:
    """Pictures by their names alone."""
    return Wanted("picture", picture_suffixes())


class _ReadablePictures(Wanted):
    """Pictures whose reader is installed; one without the right name is noticed."""

    def hindrance(self, path: str) -> str:
        suffix = os.path.splitext(path)[1].lower()
        name = next((name for name, plugin in readers.PLUGINS.items() if suffix in plugin.suffixes), None)
        if name is None or suffix in Image.registered_extensions() or readers.register(name):
            return ""
        return readers.missing(name)

    def disguised(self, path: str) -> str:
        format_ = readers.format_of(first_bytes(path, readers.HEAD_BYTES))
        return "" if format_ in (None, "L2C") else format_


def readable_pictures() -> Wanted:
    """Pictures, with a look at what is installed and at the first bytes of all other files."""
    return _ReadablePictures("picture", picture_suffixes())


def list_pictures(*sources: str | Path) -> list[Path]:
    """Picture files of folders (with all folders below, sorted), list files and single files, in the order given.

    Of a folder the same ones as `l2c encode` takes: no hidden files, no linked folders. Whether they can be read shows
    when they are.

    Raises:
        ConfigError: a folder, a list or a file does not exist, or there is no picture.
    """
    wanted = pictures()
    files = [file for source in sources for file in _files_of(Path(source), wanted)]
    if not files:
        raise ConfigError(f"no pictures in {', '.join(map(str, sources)) or 'an empty list of sources'}")
    return files


def _files_of(path: Path, wanted: Wanted) -> list[Path]:
    if path.is_dir():
        try:
            files, _ = find_files(str(path), wanted)
        except OSError as error:
            raise ConfigError(f"cannot open the folder {path}: {error.strerror}") from error
        return [path / file for file in files]
    if not path.is_file():
        raise ConfigError(f"no such folder, list or picture: {path}")
    if wanted.takes(path):
        return [path]
    if path.suffix.lower() not in _LIST_SUFFIXES:
        raise ConfigError(f"neither a picture, a list (.txt, .lst) nor a tar shard: {path}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the list {path}: {error}") from error
    files = [path.parent / line for line in lines if line and not line.startswith("#")]
    folder = next((file for file in files if file.is_dir()), None)
    if folder is not None:
        raise ConfigError(f"{path} lists the folder {folder}: a list names pictures")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{len(missing)} of {len(files)} files in {path} do not exist, the first one is {missing[0]}")
    return files
