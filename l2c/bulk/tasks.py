"""What workers are given, and what they say: plain values, which go to other processes and machines."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from l2c.codec.facts import Facts
from l2c.errors import L2CError, one_line

Command: TypeAlias = Literal["encode", "decode"]
Outcome: TypeAlias = Facts | Exception


@dataclass(frozen=True)
class Spec:
    """How all files of a run are worked on.

    Attributes:
        model: name or file of a model; None: the default one, or for decoding that of the first file.
        model_data: the model file's bytes, for workers that may not see the file.
        device: "cpu", "cuda", "cuda:1", ...; "auto": a GPU where the worker has one. Of several GPUs workers of "cuda"
            take turns.
        threads: of one worker; None: what PyTorch takes.
        options: of `Codec.encode_batch_detailed`; for decoding: those of `Codec.decode`, and mode, format,
            quality, flatten, unlimited.
        batch: the most files that are worked on together.
    """

    command: Command
    model: str | None = None
    device: str = "cpu"
    precision: Any = "auto"
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 16
    model_data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Item:
    """A file to work on, or a tar shard of files, and where the result goes; both are places (`places`).

    Attributes:
        replace: whether it may take the place of a file that is there.
        stamp: see `sources.Source`.
    """

    source: str
    target: str
    replace: bool = False
    shard: bool = False
    stamp: str = ""


@dataclass(frozen=True)
class Task:
    """What a worker is given at a time: some files, or one shard.

    Attributes:
        deaths: of a shard's members: how many workers died while they worked on each.
        given_up: members that are not tried any more, and why.
    """

    items: tuple[Item, ...]
    deaths: Mapping[str, int] = field(default_factory=dict)
    given_up: Mapping[str, Exception] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """A worker has its model, and waits."""


@dataclass(frozen=True)
class Failed:
    """A worker cannot begin: no worker of this run could."""

    error: Exception


@dataclass(frozen=True)
class Begun:
    """Work on these has begun: sources of items, or members of a shard."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """What came of an item, by its source; or of a member of the shard in work, by its name."""

    key: str
    outcome: Outcome
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Idle:
    """A task is finished."""


@dataclass(frozen=True)
class Died:
    """A worker is no more; the reason in words."""

    reason: str


Event: TypeAlias = Ready | Failed | Begun | Done | Idle | Died


def portable(error: Exception) -> Exception:
    """The error, or where it would not arrive in another process, one of ours that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return L2CError(f"{type(error).__name__}: {one_line(error)}")
    return error
