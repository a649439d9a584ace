"""Where files are: paths of this machine, and URLs of whatever fsspec knows (s3://, gs://, https://, memory://, ...).

A place is a text, so that it can be written in a manifest and sent to other machines. Writing is all or nothing on
both: local files through a temporary file, URLs through the transaction of their file system.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from l2c.errors import BackendError, UnsupportedError
from l2c.files import write_atomically

_CHANGED = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")  # stores differ
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")  # two letters at least: C: is a drive


def is_url(place: str) -> bool:
    """Whether a place is a URL and not a path."""
    return _URL.match(place) is not None


def local_path(place: str) -> str:
    """The same place, with file:// taken away."""
    return place.removeprefix("file://") if place.startswith("file:///") else place


def absolute(place: str) -> str:
    """The same place whatever the working folder is; patterns keep their wildcards."""
    place = local_path(place)
    return place if is_url(place) else os.path.abspath(place)


def optional(package: str, why: str, extra: str) -> Any:
    """A module of a package that only some uses need. Raises BackendError: it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise BackendError(f'{why} needs the package {package} (pip install -e ".[{extra}]"): {error}') from None


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it.

    Raises:
        BackendError: fsspec, or the package of this protocol, is not installed. UnsupportedError: no such protocol.
    """
    core = optional("fsspec.core", f"{_protocol(url)}://", "bulk")
    try:
        system, path = core.url_to_fs(url)
    except ImportError as error:
        raise BackendError(f"{_protocol(url)}:// cannot be opened: {error}") from None
    except ValueError as error:
        raise UnsupportedError(f"{url}: {error}") from None
    return system, path


def _protocol(url: str) -> str:
    return re.split("://|::", url, maxsplit=1)[0]


def join(folder: str, name: str) -> str:
    """The place of a name, which has forward slashes, below a folder."""
    return posixpath.join(folder, name) if is_url(folder) else os.path.join(folder, *name.split("/"))


def read(place: str) -> bytes:
    """All of a file. Raises OSError; of a URL also what its file system raises."""
    if not is_url(place):
        return Path(place).read_bytes()
    system, path = file_system(place)
    data: bytes = system.cat_file(path)
    return data


def read_all(places: Sequence[str]) -> list[bytes | Exception]:
    """Several files, or why one cannot be read; those of one remote file system are fetched together."""
    found: dict[str, bytes | Exception] = {}
    remote: dict[int, tuple[Any, dict[str, str]]] = {}
    for place in places:
        try:
            if is_url(place):
                system, path = file_system(place)
                remote.setdefault(id(system), (system, {}))[1][path] = place
            else:
                found[place] = read(place)
        except Exception as error:
            found[place] = error
    for system, paths in remote.values():
        try:
            fetched = system.cat(list(paths), on_error="return")
        except Exception as error:
            fetched = dict.fromkeys(paths, error)
        found |= {place: fetched.get(path, FileNotFoundError(place)) for path, place in paths.items()}
    return [found[place] for place in places]


@contextlib.contextmanager
def opened(place: str) -> Iterator[IO[bytes]]:
    """A file to read from its beginning to its end."""
    if is_url(place):
        system, path = file_system(place)
        with system.open(path, "rb") as file:
            yield file
    else:
        with open(place, "rb") as file:
            yield file


def write(place: str, data: bytes | memoryview, *, replace: bool) -> None:
    """A whole file or nothing; the folders above it are made.

    Raises:
        FileExistsError: there is a file, and replace is False. OSError, and what a URL's file system raises.
    """
    if not is_url(place):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, data, overwrite=replace)
        return
    with written(place, replace=replace) as file:
        file.write(data)


def write_all(files: Sequence[tuple[str, bytes, bool]]) -> list[None]:
    """Files as `write` has them: place, data, replace; those of one object store are sent together.

    Raises as `write`, and may have written some of them then.
    """
    sent: dict[int, tuple[Any, dict[str, bytes]]] = {}
    for place, data, replace in files:
        system, path = file_system(place) if is_url(place) else (None, "")
        if replace and getattr(system, "async_impl", False):  # one request writes one object, whole
            sent.setdefault(id(system), (system, {}))[1][path] = data
        else:
            write(place, data, replace=replace)
    for system, objects in sent.values():
        system.pipe(objects)
    return [None] * len(files)


@contextlib.contextmanager
def written(place: str, *, replace: bool) -> Iterator[IO[bytes]]:
    """A file to write, which takes its place when the block is left without an error; else nothing is left of it.

    A local one lies beside its place until then, under a name that is always the same: what a process leaves that is
    killed goes when the file is written again.
    """
    if is_url(place):
        system, path = file_system(place)
        if not replace and system.exists(path):
            raise FileExistsError(errno.EEXIST, "exists already; --overwrite replaces it", place)
        with contextlib.suppress(NotImplementedError, FileExistsError):  # object stores have no folders
            system.makedirs(posixpath.dirname(path), exist_ok=True)
        with system.transaction, system.open(path, "wb") as file:
            yield file
        return
    final = Path(os.path.realpath(place))
    final.parent.mkdir(parents=True, exist_ok=True)
    if not replace and final.exists():
        raise FileExistsError(errno.EEXIST, "exists already; --overwrite replaces it", place)
    temporary = final.with_name(f".l2c.{hashlib.sha256(os.fsencode(final.name)).hexdigest()[:16]}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sizes_below(folder: str) -> Callable[[str], int | None]:
    """Looks up how large the file at a place below a folder is; None: there is none. A URL is listed once."""
    if not is_url(folder):
        return _local_size
    system, path = file_system(folder)
    try:
        listed = system.find(path, detail=True)
    except FileNotFoundError:
        listed = {}
    sizes = {name: int(details.get("size") or 0) for name, details in listed.items()}
    return lambda place: sizes.get(file_system(place)[1])


def _local_size(place: str) -> int | None:
    try:
        return os.stat(place).st_size if os.path.isfile(place) else None
    except OSError:
        return None


def stamp(place: str) -> str:
    """Size and time of the last change of a local file; "" of a URL, or where there is none."""
    try:
        facts = None if is_url(place) else os.stat(place)
    except OSError:
        facts = None
    return "" if facts is None else f"{facts.st_size}:{facts.st_mtime_ns}"


def remote_stamp(facts: Mapping[str, Any]) -> str:
    """The same of fsspec's details of a file; "" where they tell no time and no tag of its content."""
    changed = next((facts[name] for name in _CHANGED if facts.get(name) is not None), None)
    return "" if changed is None else f"{facts.get('size')}:{changed}"


def is_same(source: str, target: str) -> bool:
    """Whether an output would take the place of its own input."""
    if is_url(source) or is_url(target):
        return source == target
    return os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target)
