"""What there is to do: the files of a folder, of a list, of shards, of URLs, and the places of their outputs.

A source is one of

    a folder            all files of the wanted kind in it and below, and all tar shards
    a list (.txt, .lst) a line for each file, shard or URL, from the list's own folder; empty lines and # do not count
    a tar shard         train.tar; with braces or wildcards several: train-{0000..0099}.tar, train-*.tar
    a single file

each as a path or as a URL that fsspec knows. Outputs keep their place below a folder: that of the source, of the list
(a line that leads out of it keeps its whole path), or what is the same of all shards.
"""

from __future__ import annotations

import dataclasses
import errno
import glob
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from l2c.bulk import places
from l2c.bulk.manifest import NAME as MANIFEST
from l2c.bulk.shards import SHARD_SUFFIX
from l2c.errors import UnsupportedError
from l2c.files import LeftOut, Wanted, find_files, output_names, summary

_LIST_SUFFIXES = (".txt", ".lst")
_SPECIAL = re.compile(r"[{*?\[]")


class Source(NamedTuple):
    """A file or shard to read.

    Attributes:
        name: below the folder of all outputs, with forward slashes.
        stamp: size and time of its last change, or what its store has for that; "" where that is not known.
    """

    place: str
    name: str
    stamp: str = ""

    @property
    def is_shard(self) -> bool:
        """Whether it is a tar shard."""
        return self.name.lower().endswith(SHARD_SUFFIX)


class Found(NamedTuple):
    """What a source holds, and what of it is left out."""

    sources: list[Source]
    left_out: list[LeftOut]


def find(source: str, wanted: Wanted) -> Found:
    """The files and shards of a source, each once.

    Args:
        wanted: files that are taken from folders; what a list or the caller names is taken whatever it is called.
    Raises:
        OSError: no such source, or nothing in it. UnsupportedError, BackendError: as `places.file_system`, and a
            pattern that cannot be.
    """
    wanted = dataclasses.replace(wanted, suffixes=wanted.suffixes | {SHARD_SUFFIX})
    if _SPECIAL.search(source) and not os.path.exists(source):
        found = Found(_pattern(source), [])
    elif source.lower().endswith(_LIST_SUFFIXES):
        found = Found(_listed(source), [])
    elif places.is_url(source):
        found = _remote(source, wanted)
    elif os.path.isdir(source):
        files, left_out = find_files(source, wanted)
        found = Found([Source(os.path.join(source, path), path.as_posix()) for path in files], left_out)
    elif os.path.exists(source):
        found = Found([Source(source, os.path.basename(source))], [])
    else:
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", source)
    if not found.sources:
        why = f"nothing in it is a {wanted.kind} or a tar shard"
        told = summary(found.left_out, source) if found.left_out and not places.is_url(source) else ""
        raise FileNotFoundError(errno.ENOENT, f"{why}; {told}" if told else why, source)
    left_out = [part for part in found.left_out if posixpath.basename(part.path) != MANIFEST]
    return Found(list({one.place: one for one in found.sources}.values()), left_out)


def _pattern(source: str) -> list[Source]:
    """What braces and wildcards stand for; names begin where they do."""
    base = source[: _SPECIAL.search(source).start()].rpartition("/")[0]  # type: ignore[union-attr]
    if "{" in source:
        expand = places.optional("braceexpand", "a range in braces", "bulk")
        try:
            sources = list(expand.braceexpand(source))
        except expand.UnbalancedBracesError as error:
            raise UnsupportedError(f"{source}: {error}") from None
    else:
        sources = [source]
    return [
        found for one in sources for found in (_matches(one, base) if re.search(r"[*?\[]", one) else [_of(one, base)])
    ]


def _of(place: str, base: str) -> Source:
    return Source(place, place[len(base) :].lstrip("/"))


def _matches(pattern: str, base: str) -> list[Source]:
    if not places.is_url(pattern):
        return [_of(path, base) for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
    system, path = places.file_system(pattern)
    root = places.file_system(base)[1].rstrip("/")
    names = [found[len(root) :].lstrip("/") for found in sorted(system.glob(path))]
    return [Source(places.join(base, name), name) for name in names]


def _remote(url: str, wanted: Wanted) -> Found:
    system, path = places.file_system(url)
    plain = url.partition("?")[0]
    if wanted.takes(plain) or not system.isdir(path):
        return Found([Source(url, posixpath.basename(plain))], [])
    found, left_out = [], []
    for place, facts in sorted(system.find(path, detail=True).items()):
        name = place[len(path.rstrip("/")) :].lstrip("/")
        if any(part.startswith(".") for part in name.split("/")):
            left_out.append(LeftOut(system.unstrip_protocol(place), "hidden"))
        elif wanted.takes(name):
            found.append(Source(places.join(url.rstrip("/"), name), name, places.remote_stamp(facts)))
        else:
            left_out.append(LeftOut(system.unstrip_protocol(place), f"no {wanted.kind}"))
    return Found(found, left_out)


def _listed(source: str) -> list[Source]:
    try:
        lines = [line.strip() for line in places.read(source).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UnsupportedError(f"{source}: a list is a text in UTF-8: {error}") from None
    folder = posixpath.dirname(source) if places.is_url(source) else os.path.dirname(source)
    return [_line(places.local_path(line), folder) for line in lines if line and not line.startswith("#")]


def _line(line: str, folder: str) -> Source:
    if places.is_url(line):
        return Source(line, _inside(re.split("://|::", line.partition("?")[0])[-1]))
    name = posixpath.normpath(Path(line).as_posix())
    if posixpath.isabs(name):
        return Source(line, _inside(name))
    place = places.join(folder, name) if folder else name
    if name.split("/")[0] != "..":
        return Source(place, name)
    if places.is_url(place):
        protocol, _, path = place.partition("://")
        path = posixpath.normpath(path)
        return Source(f"{protocol}://{path}", _inside(path))
    return Source(place, _inside(Path(os.path.abspath(place)).as_posix()))


def _inside(path: str) -> str:
    """A whole path as a name below a folder, which it cannot lead out of."""
    parts = PurePosixPath(posixpath.normpath(path)).parts
    return posixpath.join(*[part.replace(":", "") for part in parts if part not in ("/", "//", "..")])


def targets(sources: Iterable[Source], dest: str, suffix: str) -> list[str]:
    """The place of each output: shards keep their names, files get `suffix` as `files.output_names` has it.

    Raises:
        UnsupportedError: two would have the same.
    """
    sources = list(sources)
    names = iter(output_names([Path(one.name) for one in sources if not one.is_shard], suffix))
    found = [one.name if one.is_shard else next(names).as_posix() for one in sources]
    twice = next((name for name, count in Counter(found).items() if count > 1), None)
    if twice is not None:
        first, second = [one.place for one, name in zip(sources, found) if name == twice][:2]
        raise UnsupportedError(f"{first} and {second} would both become {twice}")
    return [places.join(dest, name) for name in found]
