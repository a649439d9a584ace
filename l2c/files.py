"""Files and folders: what is taken from a folder, the names that outputs get, and files that are there whole or not."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Wanted:
    """What is taken from a folder: files whose names end in one of `suffixes`; others look further than the name.

    Attributes:
        kind: what one is called: "picture", "L2C file".
        suffixes: in lower case, with the dot.
    """

    kind: str
    suffixes: frozenset[str]

    def takes(self, name: str | os.PathLike[str]) -> bool:
        """Whether a file of this name is wanted."""
        return os.path.splitext(name)[1].lower() in self.suffixes

    def hindrance(self, path: str) -> str:
        """Why a wanted file cannot be read here, whatever it holds; "": it may be."""
        return ""

    def disguised(self, path: str) -> str:
        """The format of a file that is of this kind by its content and not by its name; "": it is none."""
        return ""


@dataclass(frozen=True)
class LeftOut:
    """A file or folder below the input that is not worked on, and why; `fails`: it would be, if it could."""

    path: str
    reason: str
    fails: bool = False


def find_files(root: str, wanted: Wanted) -> tuple[list[Path], list[LeftOut]]:
    """The wanted files of a folder and those below it, sorted and relative to it, and everything else.

    Hidden files, hidden folders and linked folders are left out.

    Raises:
        OSError: the folder itself cannot be opened.
    """
    files: list[Path] = []
    left_out: list[LeftOut] = []

    def closed(error: OSError) -> None:
        if error.filename == root:
            raise error
        left_out.append(LeftOut(str(error.filename), f"cannot be opened: {error.strerror}", fails=True))

    for folder, subfolders, names in os.walk(root, onerror=closed):
        for name in subfolders:
            path = os.path.join(folder, name)
            if name.startswith("."):
                left_out.append(LeftOut(path, "hidden"))
            elif os.path.islink(path):
                left_out.append(LeftOut(path, "linked folder"))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))  # os.walk follows no links
        for name in names:
            path = os.path.join(folder, name)
            reason, fails = _why_not(path, name, wanted)
            if reason:
                left_out.append(LeftOut(path, reason, fails))
            else:
                files.append(Path(path).relative_to(root))
    return sorted(files), sorted(left_out, key=lambda part: part.path)


def _why_not(path: str, name: str, wanted: Wanted) -> tuple[str, bool]:
    """Why a file is left out, and whether that is a failure; "": it is not."""
    taken = wanted.takes(name)
    if name.startswith("."):
        return "hidden", False
    if not os.path.isfile(path):
        return ("no regular file" if os.path.exists(path) else "link that leads nowhere"), taken
    if taken:
        return wanted.hindrance(path), True
    format_ = wanted.disguised(path)
    if format_:
        return f"is {format_} by its content, and its name does not end so", True
    return f"no {wanted.kind}", False


def summary(left_out: Sequence[LeftOut], root: str) -> str:
    """What was left out of a folder, in a line: for every reason an example and how many more."""
    reasons: dict[str, list[str]] = {}
    for part in left_out:
        reasons.setdefault(part.reason, []).append(os.path.relpath(part.path, root))
    told = [f"{n[0]}{f' and {len(n) - 1} more' if len(n) > 1 else ''} ({reason})" for reason, n in reasons.items()]
    return f"left out: {', '.join(told)}"


def first_bytes(path: str, count: int) -> bytes:
    """How a file begins; nothing where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""


def output_names(files: Sequence[Path], suffix: str) -> list[Path]:
    """The names with `suffix` in the place of their own; where two would meet (a.png, a.jpg), each keeps its own."""
    full = [path.with_name(path.name + suffix) for path in files]
    short = [path.with_suffix(suffix) for path in files]
    count = Counter(short)
    names = [a if count[a] == 1 else b for a, b in zip(short, full)]
    return names if len(set(names)) == len(names) else full  # a.png, a.jpg and a.png.bmp


def names_folder(target: str) -> bool:
    """Whether a name can only be that of a folder, there or not."""
    separators = tuple(part for part in (os.sep, os.altsep) if part)
    return target.endswith(separators) or os.path.basename(target) in (os.curdir, os.pardir)


def output_file(target: str, source: str, suffix: str) -> str:
    """The file that a command writes for one input: OUT, or below an OUT that can only be a folder.

    Args:
        target: OUT as it was given; one that ends in / is a folder, there or not. Not as a Path, which drops the /.
        source: the input, whose name with `suffix` in the place of its own the file gets in a folder.
    Raises:
        IsADirectoryError: a folder is there, and OUT does not say that it means one.
    """
    if names_folder(target):
        target = os.path.join(target, Path(source).with_suffix(suffix).name)
    if os.path.isdir(target):
        raise IsADirectoryError(
            errno.EISDIR, f"is a folder, and the input is a file (end it in {os.sep} to write into it)", target
        )
    return target


class Tail:
    """A stream that remembers its last 512 bytes: an archive ends with empty blocks, one that was cut off does not."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """As the stream's own."""
        data: bytes = self._stream.read(size)
        self.last = (self.last + data)[-512:] if len(data) < 512 else data[-512:]
        return data


def write_atomically(
    path: str | os.PathLike[str], data: bytes | bytearray | memoryview, *, overwrite: bool = True
) -> None:
    """Writes a file in one step: readers see the old file or the whole new one, and a failure leaves nothing.

    The data goes to a temporary file in the same folder, which then takes the place of `path` and the permissions of
    the file that was there. A link is followed; a device or pipe is written directly.

    Args:
        overwrite: False: a file that is there by now stays.
    Raises:
        FileExistsError: there is a file, and overwrite is False. OSError: the file cannot be written.
    """
    given = Path(path)
    if given.exists() and not stat.S_ISREG(given.stat().st_mode):  # /dev/stdout leads to no path when it is a pipe
        given.write_bytes(data)
        return
    final = Path(os.path.realpath(given))
    # Without the file's own name: file systems count bytes and not characters, some as few as 143.
    temporary = final.with_name(f".l2c.{secrets.token_hex(8)}.tmp")
    # Not tempfile: its files have mode 0600, and the picture should get what the user's umask gives.
    try:
        with open(temporary, "xb") as file:
            if final.exists():  # before there is anything to read
                _take_permissions(temporary, final.stat())
            file.write(data)
        if overwrite:
            os.replace(temporary, final)
        else:
            _move_to_new(temporary, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # nobody knows the temporary file's name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _take_permissions(path: Path, of: os.stat_result) -> None:
    """Owner, group and access of the file that is replaced, as far as this user may give them."""
    try:
        if hasattr(os, "chown") and (of.st_uid, of.st_gid) != (path.stat().st_uid, path.stat().st_gid):
            os.chown(path, of.st_uid, of.st_gid)
        access = 0o777
    except OSError:
        access = 0o707  # another group
    with contextlib.suppress(OSError):
        os.chmod(path, of.st_mode & access)


def _move_to_new(temporary: Path, final: Path) -> None:
    """As os.rename, but never over a file. Raises FileExistsError."""
    try:
        try:
            os.link(temporary, final)
        except FileExistsError:
            raise
        except (OSError, AttributeError):  # no hard links here
            open(final, "xb").close()  # takes the name
            os.replace(temporary, final)
        else:
            temporary.unlink()
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "exists by now; --overwrite replaces it") from None
