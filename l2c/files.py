"""Files and folders: the name that an output gets, and files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path


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
