"""What there is to do: inputs and their outputs, name clashes, folders, and what is left out of them."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import typer

from l2c.cli.terminal import STANDARD, write_output
from l2c.files import (
    LeftOut,
    Wanted,
    find_files,
    first_bytes,
    names_folder,
    output_file,
    output_names,
    summary,
    write_atomically,
)
from l2c.format.bitstream import MAGIC

SUFFIX = ".l2c"


class Job(NamedTuple):
    """A file to work on; `target` is "" for a command that writes none, and either may be "-"."""

    source: str
    target: str


@dataclass
class Plan:
    """Every file to work on, and what is left out of a folder; `root`: that folder, "" for a single file."""

    jobs: list[Job]
    left_out: list[LeftOut] = field(default_factory=list)
    root: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether the input is a folder."""
        return bool(self.root)


class _L2CFiles(Wanted):
    def disguised(self, path: str) -> str:
        return "L2C" if first_bytes(path, len(MAGIC)) == MAGIC else ""


L2C_FILES = _L2CFiles("L2C file", frozenset({SUFFIX}))


def make_plan(source: str, target: str | None, wanted: Wanted, suffix: str, as_json: bool) -> Plan:
    """What there is to do.

    A folder's files keep their place below OUT and get `suffix` instead of their own extension; where two
    would meet (a.png, a.jpg), each keeps its own as well (a.png.l2c, a.jpg.l2c). An OUT that ends in / is a folder,
    where a single file gets its own name with `suffix`.

    Raises:
        OSError: the input does not exist, the folder holds nothing to work on, or OUT is a file where a
            folder is needed (or the reverse).
        typer.BadParameter: standard output cannot take what is asked for.
    """
    if target == STANDARD and as_json:
        raise typer.BadParameter("--json needs standard output for itself: name a file as OUT")
    if source == STANDARD or not os.path.isdir(source):
        return Plan([_single(source, target, suffix)])
    if target == STANDARD:
        raise typer.BadParameter("a folder cannot be written to standard output")
    files, left_out = find_files(source, wanted)
    if not files:
        why = f"no file in it ends in {_listing(wanted.suffixes)}"
        raise FileNotFoundError(errno.ENOENT, why + (f"; {summary(left_out, source)}" if left_out else ""), source)
    root = Path(source)
    if target is None:
        return Plan([Job(str(root / path), "") for path in files], left_out, source)
    if os.path.exists(target) and not os.path.isdir(target):
        raise NotADirectoryError(errno.ENOTDIR, "is a file, and the input is a folder", target)
    jobs = [Job(str(root / a), str(Path(target) / b)) for a, b in zip(files, output_names(files, suffix))]
    return Plan(jobs, left_out, source)


def _single(source: str, target: str | None, suffix: str) -> Job:
    if source != STANDARD and not os.path.lexists(source):
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", source)
    if source != STANDARD and not os.path.exists(source):
        raise FileNotFoundError(errno.ENOENT, "is a link that leads nowhere", source)
    if target is not None and target != STANDARD:
        if source == STANDARD and names_folder(target):
            raise typer.BadParameter(f"{target} is a folder: name the file that standard input becomes")
        target = output_file(target, source, suffix)
    return Job(source, target or "")


def _listing(suffixes: frozenset[str]) -> str:
    return f"{', '.join(sorted(suffixes)[:4])}{', ...' if len(suffixes) > 4 else ''}"


def check_target(job: Job, overwrite: bool) -> None:
    """Refuse an output that would fail or destroy a file, before any work. Raises OSError."""
    source, target = job
    if target == STANDARD:
        return
    path = Path(target)
    if source != STANDARD and path.is_file() and os.path.samefile(source, target):
        raise FileExistsError(errno.EEXIST, "is the input as well", target)
    if path.is_file() and not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already; --overwrite replaces it", target)
    there = next((parent for parent in path.parents if parent.exists()), None)
    if there is not None and not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder to write into", str(there))


def write_target(target: str, data: bytes, overwrite: bool) -> None:
    """All of the data to a file, whose folder is made where it lacks, or to standard output; or nothing."""
    if target == STANDARD:
        write_output(data)
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, data, overwrite=overwrite)
