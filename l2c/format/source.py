"""Where the bytes of a file lie: in memory, on a disk, or in an open file. Only what is asked for is read."""

from __future__ import annotations

import abc
import os
from typing import Any, BinaryIO, TypeAlias

BytesLike: TypeAlias = bytes | bytearray | memoryview


class Source(abc.ABC):
    """The bytes of a file.

    Attributes:
        size: how many there are.
    """

    size: int

    @abc.abstractmethod
    def read(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset` on; fewer where the file ends. Raises OSError as files do."""


class Memory(Source):
    """Bytes that are at hand, of which views are given; they are copied only where they do not lie in one piece."""

    def __init__(self, data: BytesLike) -> None:
        view = memoryview(data)
        if not view.c_contiguous:
            view = memoryview(view.tobytes())
        self._view = view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")
        self.size = len(self._view)

    def read(self, offset: int, size: int) -> memoryview:
        return self._view[offset : offset + size]


class OpenFile(Source):
    """A binary file object that can seek, from where it stands to its end. It is left where reading ended."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._start = file, file.tell()
        self.size = max(0, file.seek(0, os.SEEK_END) - self._start)
        file.seek(self._start)

    def read(self, offset: int, size: int) -> memoryview:
        self._file.seek(self._start + offset)
        return memoryview(self._file.read(max(0, min(size, self.size - offset))))


class OnDisk(Source):
    """A file by its path, open only while it is read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        with open(path, "rb") as file:
            self.size = OpenFile(file).size

    def read(self, offset: int, size: int) -> memoryview:
        with open(self._path, "rb") as file:
            return OpenFile(file).read(offset, size)


def source_of(data: Any) -> Source | None:
    """What reads bytes, a path or a binary file object that can seek; None: it is none of these. Raises OSError."""
    if isinstance(data, Source):
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return Memory(data)
    if isinstance(data, (str, os.PathLike)):
        return OnDisk(data)
    if all(callable(getattr(data, name, None)) for name in ("read", "seek", "tell")):
        return OpenFile(data)
    return None
