"""Samples -> pixels, some at a time, and what is done about files that are damaged, missing or not ours."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c.bulk import places
from l2c.bulk.batching import attempt, together
from l2c.codec.options import Damage
from l2c.codec.session import Codec
from l2c.errors import BackendError, BitstreamError, L2CError, L2CWarning, LimitError, UnsupportedError, one_line
from l2c.format.bitstream import Container, Limits
from l2c.format.source import Memory, OnDisk
from l2c.torch_data.seeds import generator_of
from l2c.torch_data.views import Chosen, Views

Damaged: TypeAlias = Literal["error", "skip", "conceal"]
DAMAGED: tuple[Damaged, ...] = get_args(Damaged)


@dataclass(frozen=True)
class Coded:
    """A sample that is not decoded yet, as it is sent from a worker.

    Attributes:
        name: what messages call it. data: the file; inside a worker also its path.
        chosen: what is decoded of it. damaged: what is done where that fails.
    """

    name: str
    data: bytes | str = field(repr=False)
    chosen: Chosen
    damaged: Damaged = "error"


def check_damaged(damaged: object) -> None:
    """Raises UnsupportedError: none of DAMAGED."""
    if damaged not in DAMAGED:
        raise UnsupportedError(f"damaged is {damaged!r}: it must be one of {', '.join(map(repr, DAMAGED))}")


def is_of_file(error: BaseException) -> bool:
    """Whether it is the file's fault: damaged, not ours, larger than the limits allow, or not to be read."""
    return isinstance(error, BitstreamError | LimitError | OSError)


def fetch(
    name: str, place: str | bytes, views: Views, number: int | None, limits: Limits, damaged: Damaged, *, whole: bool
) -> Coded | Exception:
    """What is wanted of a file, whose head is read for it; or why it cannot be read.

    Args:
        place: the file's path or URL, or its bytes. number: of the sample's seed.
        whole: its bytes have to be there; else a local path will do, of which a region is read in part.
    Raises:
        UnsupportedError: a region that is none of the picture's. BackendError: as `places.file_system`.
    """
    try:
        data: str | bytes = places.local_path(place) if isinstance(place, str) else place
        if isinstance(data, str) and places.is_url(data):
            data = _fetched(data)
        container = Container.open(Memory(data) if isinstance(data, bytes) else OnDisk(data), limits)
        if isinstance(data, str) and whole:  # no more than is a file of ours, and a byte that tells if there is more
            data = bytes(container.source.read(0, min(container.source.size, container.index.file_size + 1)))
    except BackendError:
        raise
    except (L2CError, OSError) as error:
        return named(error, name)
    try:
        return Coded(name, data, views.of(container.header, generator_of(number)), damaged)
    except L2CError as error:
        raise named(error, name) from error


def _fetched(place: str) -> bytes:
    """All of a URL's file."""
    try:
        return places.read(place)
    except (OSError, L2CError):
        raise
    except Exception as error:  # a URL's file system has errors of its own
        raise OSError(f"{place}: {one_line(error)}") from error


def named(error: Exception, name: str) -> Exception:
    """The same error with the file's name before its message, if it is one of ours: others name it."""
    if isinstance(error, L2CError) and name and not str(error).startswith(f"{name}: "):
        error.args = (f"{name}: {error}", *error.args[1:])
    return error


def decode(samples: Sequence[Coded], codec: Codec) -> list[Tensor | Exception]:
    """Pictures uint8 [3, H, W] on the codec's device, or why there is none: the file's own fault, see `is_of_file`.

    What is wanted of several in the same way is decoded together.

    Raises:
        BackendError, ModelMismatchError, UnsupportedError, ...: all that is no fault of one file.
    """
    groups: dict[Chosen, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.chosen, []).append(i)
    results: dict[int, Tensor | Exception] = {}
    for chosen, members in groups.items():
        part = [samples[i] for i in members]
        results |= zip(members, together(partial(_decode, chosen=chosen, codec=codec, damaged="raise"), part))
    for i, sample in enumerate(samples):
        found = results[i]
        if isinstance(found, BitstreamError) and sample.damaged == "conceal":
            found = results[i] = attempt(partial(_conceal, codec=codec), sample)
        if isinstance(found, Exception) and not is_of_file(named(found, sample.name)):
            raise found
    return [results[i] for i in range(len(samples))]


def _conceal(sample: Coded, codec: Codec) -> Tensor:
    """One damaged file, as far as it goes, with a warning that names it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (picture,) = _decode([sample], sample.chosen, codec, "conceal")
    for one in caught:
        warnings.warn(f"{sample.name}: {one.message}", one.category, stacklevel=2)
    return picture


def _decode(samples: Sequence[Coded], chosen: Chosen, codec: Codec, damaged: Damage) -> list[Tensor]:
    files = [sample.data for sample in samples]
    if chosen.thumbnail is not None:
        return [_thumbnail(file, chosen, codec, damaged) for file in files]
    pictures = codec.decode_batch(
        files, as_="torch", region=chosen.region, scale=chosen.scale, metric=chosen.metric, damaged=damaged
    )
    return pictures if chosen.resize is None else _resized(pictures, chosen.resize)


def _thumbnail(file: bytes | str, chosen: Chosen, codec: Codec, damaged: Damage) -> Tensor:
    """`Codec.thumbnail` as a tensor."""
    assert chosen.thumbnail is not None
    image = codec.thumbnail(file, chosen.thumbnail, region=chosen.region, metric=chosen.metric, damaged=damaged)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).to(codec.device)


def _resized(pictures: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
    """uint8 [3, H, W] each -> uint8 [3, *size]: bilinear, with an antialiasing filter where they become smaller."""
    resized = []
    for picture in pictures:
        if tuple(picture.shape[1:]) != size:
            x = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
            picture = x[0].round_().clamp_(0.0, 255.0).to(torch.uint8)
        resized.append(picture)
    return resized


def settled(samples: Sequence[Coded], found: Sequence[Tensor | Exception]) -> list[int]:
    """Which samples there are, after what each says is done about the others: an error, or a warning each.

    Raises:
        BitstreamError, LimitError, OSError: of the first sample that is not to be skipped.
    """
    for sample, one in zip(samples, found):
        if isinstance(one, Exception):
            settle(one, sample.damaged)
    return [i for i, one in enumerate(found) if not isinstance(one, Exception)]


def settle(error: Exception, damaged: Damaged) -> None:
    """A file that is not to be had: raises its error, or warns that it is skipped."""
    if damaged != "skip":
        raise error
    warnings.warn(f"skipped: {one_line(error)}", L2CWarning, stacklevel=3)


def path_name(place: object) -> str:
    """A path or URL as a text. Raises UnsupportedError: it is neither."""
    if not isinstance(place, str | os.PathLike):
        raise UnsupportedError(f"{place!r} is neither a path nor a URL")
    name = os.fsdecode(place)
    if "\0" in name:
        raise UnsupportedError(f"{name!r} is no path: it has a zero byte")
    return name
