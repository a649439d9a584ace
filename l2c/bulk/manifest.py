"""The manifest: what came of every file, one JSON object a line, so that a run that is started again goes on.

    {"input": "a/b.png", "output": "out/a/b.l2c", "bytes": 5120, "seconds": 0.12, "rate": 0.43, "error": null,
     "width": 320, "height": 240, "job": "encode bpp=0.5", "input_stamp": "90211:1764512345123456789"}

`rate` is in bits per pixel; `bytes` are those of the L2C file, also where it is decoded, of a shard those of the
output. `error` is null or one line, with `error_type` beside it. A member of a shard is called "train.tar::0001.png";
the line of its shard follows those of its members, with "pictures" and "failed" in the place of width and height. The
last line of an input holds. `job` says what was asked for: what was made for another one is not done, and a run that
asks for another one than the last line is refused, unless it overwrites. `input_stamp` has the input's size and the
time of its last change (nanoseconds since 1970), where they are known: an input that has changed since is not done, and
one that was moved together with its folder, or whose output was, is.

Lines are only added, by one process at a time, which holds a lock. What a process that was killed left of a line is cut
off. An object store has no files that grow: there the manifest is a folder of such files, a new one every half minute.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import posixpath
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from l2c.bulk import places
from l2c.bulk.shards import SHARD_SUFFIX
from l2c.errors import L2CWarning, UnsupportedError

NAME = "l2c-manifest.jsonl"
_PART_SECONDS = 30.0
_KEPT = ("output", "bytes", "output_bytes", "failed", "error", "error_type", "job", "input_stamp")
Record: TypeAlias = dict[str, Any]


class Manifest:
    """A manifest that is read and then grows. Close it, or use it in a `with` block.

    Args:
        place: a file, or, as a URL, a folder of them.
    Attributes:
        last: of the last record of every input what decides whether it is done; without members of shards.
        job: of the last record of all, "" where there is none.
        is_new: nothing was in it.
    Raises:
        UnsupportedError: another run writes it. OSError.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.last: dict[str, Record] = {}
        self.job = ""
        self._file: IO[bytes] | None = None
        self._waiting: list[bytes] = []
        self._by_stamp: dict[tuple[str, str], Record] | None = None  # made where they are asked for
        self._by_output: dict[str, str] | None = None
        self._parts = 0
        self._written = time.monotonic()
        for data in self._parts_read() if places.is_url(place) else [self._opened()]:
            self._take(data)
        self.is_new = not self.last

    def _opened(self) -> bytes:
        path = Path(self.place)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by `close`)
        _lock(self._file, self.place)
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        return data[:whole]

    def _parts_read(self) -> list[bytes]:
        system, path = places.file_system(self.place)
        names = sorted(system.find(path)) if system.exists(path) else []
        self._parts = len(names)
        return [system.cat_file(name) for name in names]

    def _take(self, data: bytes) -> None:
        bad = 0
        for line in data.splitlines():
            try:
                self._keep(json.loads(line))
            except (ValueError, TypeError, KeyError):
                bad += 1
        if bad:
            warnings.warn(f"{self.place}: {bad} lines are no records, and are passed over", L2CWarning, stacklevel=3)

    def _keep(self, record: Record) -> None:
        if not _is_member(record["input"]):  # there may be very many
            self.last[record["input"]] = {name: record[name] for name in _KEPT if name in record}
        self.job = record.get("job", "")

    def moved(self, name: str, stamp: str) -> Record | None:
        """The last record of an input of this stamp and file name, wherever it was; or None.

        Args:
            name, stamp: see `sources.Source`.
        """
        if self._by_stamp is None:
            self._by_stamp = {
                (record["input_stamp"], posixpath.basename(source)): record
                for source, record in self.last.items()
                if "input_stamp" in record
            }
        return self._by_stamp.get((stamp, posixpath.basename(name)))

    def made_of(self, output: str) -> str | None:
        """The input that an output was made of, as far as the runs before this one know."""
        if self._by_output is None:
            made = {source: record for source, record in self.last.items() if record.get("error") is None}
            self._by_output = {record.get("output", ""): source for source, record in made.items()}
        return self._by_output.get(output)

    def add(self, records: Sequence[Record]) -> None:
        """Add records. They are on their way to the disk when this returns, those of a URL half a minute later."""
        for record in records:
            self._keep(record)
        lines = b"".join(json.dumps(record, ensure_ascii=True, allow_nan=False).encode() + b"\n" for record in records)
        if self._file is not None:
            self._file.write(lines)
            self._file.flush()
            return
        self._waiting.append(lines)
        if time.monotonic() - self._written > _PART_SECONDS:
            self._write_part()

    def _write_part(self) -> None:
        if any(self._waiting):
            name = places.join(self.place, f"{self._parts:06d}.jsonl")
            places.write(name, b"".join(self._waiting), replace=True)
            self._parts += 1
        self._waiting, self._written = [], time.monotonic()

    def close(self) -> None:
        """All lines are on the disk when this returns."""
        if self._file is None:
            self._write_part()
            return
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_member(name: str) -> bool:
    return f"{SHARD_SUFFIX}::" in name.lower()


def _lock(file: IO[bytes], place: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UnsupportedError(f"{place}: another run writes it now") from None
    except OSError:  # a file system without locks
        pass
