"""Tar shards in WebDataset's form: read from one end to the other, and written likewise."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from l2c.errors import BitstreamError, one_line
from l2c.files import Tail

SHARD_SUFFIX = ".tar"


@dataclass(frozen=True)
class Member:
    """A regular file of a shard."""

    name: str
    data: bytes
    seconds: float  # its time of change


def read_members(stream: IO[bytes]) -> Iterator[Member]:
    """The regular files of a shard, in their order. Raises BitstreamError: it is no tar file, or cut off."""
    tail = Tail(stream)
    try:
        with tarfile.open(fileobj=tail, mode="r|") as tar:  # type: ignore[call-overload]  # it only reads
            for info in tar:
                if info.isfile():
                    file = tar.extractfile(info)
                    assert file is not None
                    yield Member(info.name, file.read(), info.mtime)
                tar.members = []  # type: ignore[attr-defined]  # else all heads stay in memory
        while tail.read(1 << 20):
            pass
        if any(tail.last):
            raise EOFError("it is cut off: no empty block at its end")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BitstreamError(f"cannot read the shard: {one_line(error)}") from error


def grouped(members: Iterator[Member], fits: Callable[[list[Member], Member], bool]) -> Iterator[list[Member]]:
    """Members in groups, in their order; a group that the next one does not fit to ends before it."""
    group: list[Member] = []
    for member in members:
        if group and not fits(group, member):
            yield group
            group = []
        group.append(member)
    if group:
        yield group


class ShardWriter:
    """Writes a shard; what it holds decides its bytes, not when or by whom it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._counted = _Counted(file)
        self._tar = tarfile.open(fileobj=self._counted, mode="w|")  # type: ignore[call-overload]  # noqa: SIM115
        self._names: set[str] = set()

    def free_name(self, name: str, suffix: str) -> str:
        """The name that a member gets with `suffix` in the place of its own; where that is taken, it keeps its own."""
        short = posixpath.splitext(name)[0] + suffix
        return short if short not in self._names else name + suffix

    def add(self, name: str, data: bytes, seconds: float) -> None:
        """One more member."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(data), seconds
        self._names.add(name)
        self._tar.addfile(info, io.BytesIO(data))

    def close(self) -> int:
        """Write the end; the size of it all in bytes."""
        self._tar.close()
        return self._counted.size


class _Counted:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return self._file.write(data)
