"""Tar shards in WebDataset's form: a dataset that reads them on its own, and a decoder for the package `webdataset`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from l2c.bulk import places, sources
from l2c.bulk.shards import Member, read_members
from l2c.codec.options import Precision, Region, Scale, check_number
from l2c.errors import BackendError, BitstreamError, L2CError, UnsupportedError, one_line
from l2c.files import Wanted
from l2c.format.bitstream import Limits
from l2c.format.levels import Metric
from l2c.models import DEFAULT_MODEL
from l2c.torch_data.codecs import CodecSettings
from l2c.torch_data.dataset import Form, check_output, own
from l2c.torch_data.decoding import (
    Damaged,
    check_damaged,
    decode,
    fetch,
    is_of_file,
    named,
    path_name,
    settle,
    settled,
)
from l2c.torch_data.seeds import Seeds, drawing, generator_of
from l2c.torch_data.views import RegionChooser, Size, Views

_SUFFIX = ".l2c"
_SHARDS = Wanted("tar shard", frozenset())


class _Sample(NamedTuple):
    """A picture of a shard, and the text of its label."""

    key: str
    data: bytes
    label: bytes | None


class L2CShards(IterableDataset[Any]):
    """The L2C files of tar shards, in their order: pictures, or (picture, label). Needs no other package.

    Members whose names agree up to the first dot are one sample (`a/0001.l2c`, `a/0001.cls`) and lie side by side. The
    shards are divided over the processes of a distributed run and their workers; each shard is read by one of them, so
    there should be at least as many.

    Args:
        source: a tar shard, several with braces or wildcards (`train-{0000..0099}.tar`), a folder or list of them, as
            paths or URLs; or a sequence of paths and URLs.
        labels: the extension of the member that holds a sample's label, a whole number as text ("cls"). None: none.
        shuffle: how many samples lie in memory, undecoded, of which the next one is drawn; the shards come in random
            order then, too. 0: all in their order.
        rank, world: of this process among those that share the shards; None: as `torch.distributed` says, where it is
            in use.
        transform, target_transform, output, region, scale, resize, thumbnail, metric, seed: as of `L2CDataset`; the
            random numbers of a sample depend on its key.
        damaged: as of `L2CDataset`; "skip" goes on with the next sample, where a shard is cut off or missing with the
            next shard.
        model, device, threads, precision, limits: of the codec, see `CodecSettings`.
    Raises:
        OSError: no such source, or nothing in it. UnsupportedError: an argument that cannot be, a source that is no
            shard. On iteration as `L2CDataset` on access; BitstreamError, too: a shard is cut off, or a label is no
            whole number or missing.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        labels: str | None = None,
        shuffle: int = 0,
        rank: int | None = None,
        world: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        output: Form = "pixels",
        region: Region | RegionChooser | None = None,
        scale: Scale | Literal["auto"] = 1,
        resize: Size | None = None,
        thumbnail: Size | None = None,
        metric: Metric | None = None,
        damaged: Damaged = "error",
        seed: int | None = None,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        precision: Precision = "auto",
        limits: Limits = Limits(),
    ) -> None:
        check_output(output)
        check_damaged(damaged)
        check_number("shuffle", shuffle, whole=True)
        if shuffle < 0:
            raise UnsupportedError(f"shuffle is {shuffle}: it must be at least 0")
        if labels is not None and (not isinstance(labels, str) or not labels.strip(".")):
            raise UnsupportedError(f"labels is {labels!r}: it must be the extension of a member, such as 'cls'")
        self.rank, self.world = _share(rank, world)
        self.transform, self.target_transform = transform, target_transform
        self._suffix = None if labels is None else "." + labels.strip(".").lower()
        self._shuffle, self._output, self._damaged = int(shuffle), output, damaged
        self._views = Views(region, scale, resize, thumbnail, metric)
        self._seeds = Seeds(seed)
        self._settings = CodecSettings(model, device, threads, precision, limits)
        self.shards = _shards_of(source)

    def set_epoch(self, epoch: int) -> None:
        """As of `L2CDataset`; the order of shards and samples changes with it."""
        self._seeds.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        shards = self.shards
        if self._shuffle:
            # The same order in every process, or they would not share the shards.
            common = self._seeds.number("shards")
            order = torch.randperm(len(shards), generator=generator_of(_common(worker) if common is None else common))
            shards = [shards[i] for i in order.tolist()]
        place, share = self.rank * count + number, self.world * count
        samples = (sample for shard in shards[place::share] for sample in self._samples(shard))
        for sample in self._shuffled(samples, place) if self._shuffle else samples:
            yield from self._shown(sample)

    def _shuffled(self, samples: Iterator[_Sample], place: int) -> Iterator[_Sample]:
        generator = generator_of(self._seeds.number(f"order {place}"))
        kept: list[_Sample] = []
        for sample in samples:
            kept.append(sample)
            if len(kept) >= self._shuffle:
                yield kept.pop(int(torch.randint(len(kept), (), generator=generator)))
        for i in torch.randperm(len(kept), generator=generator).tolist():
            yield kept[i]

    def _samples(self, shard: str) -> Iterator[_Sample]:
        """Those of one shard that have a picture."""
        try:
            members: list[Member] = []
            with places.opened(shard) as stream:
                for member in read_members(stream):
                    if members and _key(member.name) != _key(members[0].name):
                        yield from self._sample(members)
                        members = []
                    if member.name.lower().endswith((_SUFFIX, self._suffix or _SUFFIX)):
                        members.append(member)
            if members:
                yield from self._sample(members)
        except (BitstreamError, OSError) as error:
            settle(named(error, shard), self._damaged)
        except L2CError as error:
            raise named(error, shard) from error

    def _sample(self, members: Sequence[Member]) -> Iterator[_Sample]:
        key = _key(members[0].name)
        files = {os.path.splitext(member.name)[1].lower(): member.data for member in reversed(members)}
        if _SUFFIX in files:
            yield _Sample(key, files[_SUFFIX], None if self._suffix is None else files.get(self._suffix))

    def _shown(self, sample: _Sample) -> Iterator[Any]:
        """The sample; nothing where it is skipped."""
        number = self._seeds.number(sample.key)
        try:
            label = self._label(sample)
        except BitstreamError as error:
            settle(error, self._damaged)
            return
        limits = self._settings.limits
        one = fetch(sample.key, sample.data, self._views, number, limits, self._damaged, whole=True)
        if isinstance(one, Exception):
            settle(one, self._damaged)
            return
        shown: Any = one
        if self._output == "pixels":
            pictures = decode([one], self._settings.codec())
            if not settled([one], pictures):
                return
            shown = own(pictures[0])
        if self.transform is not None:
            with drawing(number):
                shown = self.transform(shown)
        if self._suffix is None:
            yield shown
        else:
            yield shown, label if self.target_transform is None else self.target_transform(label)

    def _label(self, sample: _Sample) -> int | None:
        if self._suffix is None:
            return None
        try:
            return int((sample.label or b"").decode())
        except ValueError:
            found = "no label" if sample.label is None else f"a label that is no whole number: {sample.label[:20]!r}"
            raise BitstreamError(f"{sample.key}{self._suffix}: {found}") from None


def _key(name: str) -> str:
    """What the members of a sample have in common: the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _common(worker: Any) -> int:
    """A number that the workers of a process share, and that changes with every epoch that makes new ones."""
    return int(torch.initial_seed() if worker is None else worker.seed - worker.id) & ((1 << 63) - 1)


def _share(rank: int | None, world: int | None) -> tuple[int, int]:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if (rank is None) != (world is None):
        raise UnsupportedError("give rank and world, or neither")
    if rank is None or world is None:
        return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    check_number("rank", rank, whole=True)
    check_number("world", world, whole=True)
    if not 0 <= rank < world:
        raise UnsupportedError(f"rank is {rank} of {world}: it must be 0..{world - 1}")
    return rank, world


def _shards_of(source: Any) -> list[str]:
    if isinstance(source, str | os.PathLike):
        found = sources.find(path_name(source), _SHARDS).sources
        strange = next((one.place for one in found if not one.is_shard), None)
        if strange is not None:
            raise UnsupportedError(f"{strange} is no tar shard (.tar)")
        return [places.absolute(one.place) for one in found]
    if not isinstance(source, Sequence) or isinstance(source, bytes) or not source:
        raise UnsupportedError("source must be a path, a URL, or a sequence of at least one")
    return [places.absolute(path_name(one)) for one in source]


class WebDatasetDecoder:
    """See `webdataset_decoder`, which makes it."""

    def __init__(self, views: Views, settings: CodecSettings, seeds: Seeds, damaged: Damaged, output: Form) -> None:
        self._views, self._settings, self._seeds = views, settings, seeds
        self._damaged, self._output = damaged, output

    def set_epoch(self, epoch: int) -> None:
        """As of `L2CDataset`."""
        self._seeds.set_epoch(epoch)

    def __call__(self, key: str, data: bytes) -> Any:
        """A member of a sample: its extension with the dot, and its bytes -> the picture uint8 [3, H, W], or `Coded`;
        None: it is no L2C file by its extension."""
        if not key.lower().endswith(_SUFFIX):
            return None
        # A decoder is not told the sample's name: the bytes stand for it.
        number = self._seeds.number(hashlib.sha256(data).hexdigest()) if self._seeds.seed is not None else None
        one = fetch("", data, self._views, number, self._settings.limits, self._damaged, whole=True)
        if isinstance(one, Exception):
            raise one
        if self._output == "bytes":
            return one
        (picture,) = decode([one], self._settings.codec())
        if isinstance(picture, Exception):
            raise picture
        return own(picture)


def webdataset_decoder(
    *,
    output: Form = "pixels",
    region: Region | RegionChooser | None = None,
    scale: Scale | Literal["auto"] = 1,
    resize: Size | None = None,
    thumbnail: Size | None = None,
    metric: Metric | None = None,
    damaged: Damaged = "error",
    seed: int | None = None,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    precision: Precision = "auto",
    limits: Limits = Limits(),
) -> WebDatasetDecoder:
    """What `webdataset.WebDataset(...).decode(...)` takes for members that end in .l2c; all others are left to the
    decoders beside it. Arguments as of `L2CDataset`; the random numbers of a sample depend on its bytes. `webdataset`'s
    handler says what to skip; damaged="skip" says it of output="bytes" to `DecodingLoader`.

        wds.WebDataset(shards).decode(webdataset_decoder(scale=2), handler=skip_damaged).to_tuple("l2c", "cls")

    Raises:
        UnsupportedError: an argument that cannot be. When it decodes: BitstreamError, LimitError as `L2CDataset`, which
            `webdataset` wraps in a DecodingError that names key and shard.
    """
    check_output(output)
    if damaged == "skip" and output == "pixels":
        raise UnsupportedError("webdataset skips what its handler says: give decode(..., handler=skip_damaged)")
    check_damaged(damaged)
    settings = CodecSettings(model, device, threads, precision, limits)
    return WebDatasetDecoder(Views(region, scale, resize, thumbnail, metric), settings, Seeds(seed), damaged, output)


def skip_damaged(error: Exception) -> bool:
    """A handler for `webdataset`: goes on, with a warning, where a file is damaged or not ours; raises all else."""
    cause = error.__cause__ if error.__cause__ is not None else error
    unreadable = is_of_file(cause) or (isinstance(cause, UnsupportedError) and not isinstance(cause, BackendError))
    if not unreadable or not isinstance(cause, Exception):
        raise error
    settle(BitstreamError(f"{getattr(error, 'key', None) or 'a sample'}: {one_line(cause)}"), "skip")
    return True
