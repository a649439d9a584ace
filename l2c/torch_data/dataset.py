"""A map-style dataset of L2C files: the counterpart of torchvision's `ImageFolder`."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, SupportsIndex, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from l2c.bulk import sources
from l2c.bulk.places import absolute
from l2c.codec.options import Precision, Region, Scale
from l2c.errors import UnsupportedError
from l2c.files import Wanted
from l2c.format.bitstream import Limits
from l2c.format.levels import Metric
from l2c.models import DEFAULT_MODEL
from l2c.torch_data.codecs import CodecSettings
from l2c.torch_data.decoding import Coded, Damaged, check_damaged, decode, fetch, path_name, settle, settled
from l2c.torch_data.seeds import Seeds, drawing
from l2c.torch_data.views import RegionChooser, Size, Views

L2C_FILES = Wanted("L2C file", frozenset({".l2c"}))
Form: TypeAlias = Literal["pixels", "bytes"]  # of the samples


class L2CDataset(Dataset[Any]):
    """L2C files as samples: pictures, or (picture, label).

    `DataLoader` asks for a batch at a time, which is decoded together; it works in the main process and in workers,
    forked or spawned. With output="bytes" samples are `Coded`, to be put in batches by `collate` and decoded by
    `DecodingLoader` in the main process; a worker has read the file then, and chosen the region.

    Args:
        source: a folder, a list file or pattern, as `l2c.bulk.sources` has them (no tar shards: `L2CShards`), a single
            file; or a sequence of paths and URLs.
        labels: None: samples are pictures alone. "folder": the number of the class whose name is the first folder below
            `source` (of a sequence of paths: the folder that the file lies in), counted in the order of names. A
            function of the file's name below `source`, with forward slashes. A sequence, one for each file.
        classes: names of the classes for labels="folder", in their order; None: those that are there. Give it where two
            datasets have to agree and one may lack a class.
        transform: of the picture uint8 [3, H, W], or of the `Coded`; target_transform: of the label. With a seed,
            PyTorch's random numbers in `transform` depend on it as well.
        output: "pixels" or "bytes".
        region: (left, top, right, bottom) of every picture, or a function (height, width, generator) that chooses one,
            such as `RandomCrop(256)`; it draws its random numbers from the `torch.Generator` that it is given. Only the
            tiles that are needed are read and decoded.
        scale: 1, 2, 4 or 8, see `Codec.decode`; "auto": the largest that leaves the region as large as `resize`.
        resize: (height, width), or one number for both, that the decoded region is brought to (bilinear, antialiased).
        thumbnail: the size that `Codec.thumbnail` makes of the picture or region, (width, height) or one number.
        metric: see `Codec.decode`.
        damaged: about files that are damaged, missing, too large or not ours: "error" raises; "skip" leaves them out of
            their batch with a warning (of a batch that would be empty, the next file of the dataset that can be read
            takes the place; a single sample is None); "conceal" fills in what is damaged with a warning, and raises
            where nothing can be shown. What is damaged outside of a region is not seen.
        seed: of the random numbers, see `l2c.torch_data.seeds`; with one, call `set_epoch` before each epoch.
        model, device, threads, precision, limits: of the codec, see `CodecSettings`.
    Attributes:
        samples: (place, label) of every file; None is the label where there are none.
        classes: names of the classes, and class_to_idx: their numbers; empty without labels="folder".
    Raises:
        OSError: no such source, or nothing in it. UnsupportedError: an argument that cannot be, a file outside of all
            classes; on access a region that is none of the picture's. BitstreamError, LimitError, OSError on access:
            see `damaged`; messages name the file. BackendError, ModelMismatchError on access: as `Codec`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        labels: Literal["folder"] | Callable[[str], Any] | Sequence[Any] | None = None,
        classes: Collection[str] | None = None,
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
        self.transform, self.target_transform = transform, target_transform
        self._output, self._damaged = output, damaged
        self._views = Views(region, scale, resize, thumbnail, metric)
        self._seeds = Seeds(seed)
        self._settings = CodecSettings(model, device, threads, precision, limits)
        files = _files_of(source)
        self.classes: list[str] = []
        self.class_to_idx: dict[str, int] = {}
        self.samples: list[tuple[str, Any]] = list(
            zip([file.place for file in files], self._labels(files, labels, classes))
        )
        self._labelled = labels is not None

    def _labels(self, files: Sequence[_File], labels: Any, classes: Collection[str] | None) -> Sequence[Any]:
        if classes is not None and labels != "folder":
            raise UnsupportedError('classes are names of folders: give labels="folder", too')
        if labels is None:
            return [None] * len(files)
        if callable(labels):
            return [labels(file.name) for file in files]
        if not isinstance(labels, str):
            if not isinstance(labels, Sequence) or len(labels) != len(files):
                raise UnsupportedError(f"labels must be one for each of {len(files)} files")
            return labels
        if labels != "folder":
            raise UnsupportedError(f"labels is {labels!r}: it must be 'folder', a function or a sequence")
        outside = next((file.place for file in files if not file.folder), None)
        if outside is not None:
            raise UnsupportedError(f"{outside} lies in no folder that could name its class")
        self.classes = sorted({file.folder for file in files}) if classes is None else list(classes)
        self.class_to_idx = {name: number for number, name in enumerate(self.classes)}
        strange = next((file.place for file in files if file.folder not in self.class_to_idx), None)
        if strange is not None:
            raise UnsupportedError(f"{strange} lies in none of the folders {', '.join(self.classes)}")
        return [self.class_to_idx[file.folder] for file in files]

    @property
    def targets(self) -> list[Any]:
        """The label of every file."""
        return [label for _, label in self.samples]

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, a whole number from 0 on: other random numbers, if there is a seed. Workers that are there
        already see it, too; call it between epochs."""
        self._seeds.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: SupportsIndex) -> Any:
        found = self._read([index])
        return found[0] if found else None

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Any]:
        """Samples that are decoded together, what `DataLoader` asks for; see `damaged` about those that fail."""
        indices, tried = list(indices), 0
        while True:
            found = self._read(indices)
            if found or not indices:
                return found
            tried += 1
            if tried > len(self):
                raise OSError(f"none of {len(self)} files can be read")
            indices = [(operator.index(indices[-1]) + 1) % len(self)]

    def _read(self, indices: Sequence[SupportsIndex]) -> list[Any]:
        numbers = [range(len(self))[operator.index(index)] for index in indices]  # IndexError as of a list
        coded: list[tuple[int, Coded]] = []
        for index in numbers:
            place, _ = self.samples[index]
            number = self._seeds.number(index)
            whole = self._output == "bytes"
            one = fetch(place, place, self._views, number, self._settings.limits, self._damaged, whole=whole)
            if isinstance(one, Exception):
                settle(one, self._damaged)
            else:
                coded.append((index, one))
        if self._output == "bytes":
            return [self._sample(index, one) for index, one in coded]
        if not coded:
            return []
        files = [one for _, one in coded]
        pictures = decode(files, self._settings.codec())
        return [self._sample(coded[i][0], own(pictures[i])) for i in settled(files, pictures)]

    def _sample(self, index: int, picture: Tensor | Coded) -> Any:
        shown: Any = picture
        if self.transform is not None:
            with drawing(self._seeds.number(index)):
                shown = self.transform(picture)
        label = self.samples[index][1]
        if self.target_transform is not None and self._labelled:
            label = self.target_transform(label)
        return (shown, label) if self._labelled else shown


def own(picture: Tensor | Exception) -> Tensor:
    """A decoded picture that shares no memory with those of its batch."""
    assert isinstance(picture, Tensor)
    return picture.clone(memory_format=torch.contiguous_format)


def check_output(output: object) -> None:
    """Raises UnsupportedError: no form of samples."""
    if output not in ("pixels", "bytes"):
        raise UnsupportedError(f"output is {output!r}: it must be 'pixels' or 'bytes'")


class _File(NamedTuple):
    """A file's place, which is absolute, since workers may have another working folder; its name below the source, and
    the folder that names its class."""

    place: str
    name: str
    folder: str


def _files_of(source: Any) -> list[_File]:
    if isinstance(source, str | os.PathLike):
        found = sources.find(path_name(source), L2C_FILES).sources
        shard = next((one.place for one in found if one.is_shard), None)
        if shard is not None:
            raise UnsupportedError(f"{shard} is a tar shard, which is read in its order: L2CShards does")
        return [_File(absolute(one.place), one.name, (PurePosixPath(one.name).parts[:-1] or ("",))[0]) for one in found]
    if not isinstance(source, Sequence) or isinstance(source, bytes) or not source:
        raise UnsupportedError("source must be a path, a URL, or a sequence of at least one")
    names = [path_name(one).replace(os.sep, "/") for one in source]
    return [_File(absolute(path_name(one)), name, PurePosixPath(name).parent.name) for one, name in zip(source, names)]
