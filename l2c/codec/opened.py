"""Files as they are handed over to be decoded, and what is wanted of them."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, cast

from l2c.codec.support import naming
from l2c.codec.views import View
from l2c.errors import UnsupportedError
from l2c.format.bitstream import Bitstream, BytesLike, Container, Header, Limits
from l2c.format.source import source_of

if TYPE_CHECKING:
    import os

    from l2c.codec.options import Damage

File: TypeAlias = "BytesLike | str | os.PathLike[str] | BinaryIO | Container | Bitstream"


class Opened:
    """A file whose head was read.

    Args:
        data: what `Codec.decode` takes. limits: what it may ask for.
        name: what errors call it.
    Attributes:
        index: what the head says. seconds: that reading the file took so far.
    Raises:
        BitstreamError, LimitError, UnsupportedError: as `read_header`, or `data` is no file. OSError.
    """

    def __init__(self, data: Any, limits: Limits, name: str = "") -> None:
        start = time.perf_counter()
        self.name = name
        self._stream = data if isinstance(data, Bitstream) else None
        if isinstance(data, Bitstream | Container):
            self._container = data if isinstance(data, Container) else None
            self.index = data.index
        else:
            source = source_of(data)
            if source is None:
                kind = type(data).__name__
                raise UnsupportedError(f"{name}a file is given as its bytes, its path or a file object, not as {kind}")
            with naming(name):
                self._container = Container.open(source, limits)
            self.index = self._container.index
        self.seconds = time.perf_counter() - start

    @property
    def header(self) -> Header:
        """The fixed fields."""
        return self.index.header

    @property
    def file(self) -> Container | Bitstream:
        """What can be handed over instead of the file, without its head being read again."""
        return self._container if self._container is not None else cast(Bitstream, self._stream)

    def read(self, tiles: Collection[int] | None, damaged: Damage) -> Bitstream:
        """The file with these tiles, None: with all; of what was read before, that as it is.

        Raises:
            BitstreamError: it is damaged, in what is read. OSError.
        """
        if self._container is not None:
            start = time.perf_counter()
            with naming(self.name):
                self._stream = self._container.read(tiles, "raise" if damaged == "raise" else "report")
            self.seconds += time.perf_counter() - start
        assert self._stream is not None
        return self._stream


class Wanted(NamedTuple):
    """A file that was read, as far as it is needed for a view."""

    name: str
    stream: Bitstream
    view: View
    seconds: float = 0.0
