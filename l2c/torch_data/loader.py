"""Batches that hold bytes, and their decoding in the main process: on its device, many pictures at a time.

Workers read files and choose regions; what they send is small. `DecodingLoader` decodes what comes, and pictures stay
where they are decoded: on a GPU they never visit the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import collate as collate_with
from torch.utils.data._utils.collate import default_collate_fn_map

from l2c.codec.options import Precision
from l2c.codec.session import Codec
from l2c.errors import UnsupportedError
from l2c.format.bitstream import Limits
from l2c.models import DEFAULT_MODEL
from l2c.torch_data.codecs import CodecSettings
from l2c.torch_data.decoding import Coded, decode, settled


@dataclass(frozen=True)
class CodedBatch:
    """The samples of a batch that are not decoded yet."""

    samples: tuple[Coded, ...]

    def __len__(self) -> int:
        return len(self.samples)


def collate(samples: Sequence[Any]) -> Any:
    """PyTorch's `default_collate`, which also puts `Coded` together, as `CodedBatch`, and pictures of different sizes,
    as a list: the `collate_fn` of a `DataLoader` over any of our datasets."""
    return collate_with(samples, collate_fn_map=_COLLATE)


def _collate_coded(samples: Sequence[Coded], *, collate_fn_map: Any = None) -> CodedBatch:
    return CodedBatch(tuple(samples))


def _collate_tensors(samples: Sequence[Tensor], *, collate_fn_map: Any = None) -> Any:
    if any(sample.shape != samples[0].shape for sample in samples):
        return list(samples)
    return default_collate(list(samples))


_COLLATE: Any = {**default_collate_fn_map, Tensor: _collate_tensors, Coded: _collate_coded}


def decode_batch(batch: CodedBatch, codec: Codec) -> tuple[Tensor | list[Tensor], list[int]]:
    """Decode a batch on a codec's device.

    Returns:
        pictures: uint8 [N, 3, H, W] on the device, channels-last in memory; of different sizes a list of [3, H, W].
        kept: which samples these are; all but those that were skipped.
    Raises:
        BitstreamError, LimitError, UnsupportedError, BackendError, ModelMismatchError: as of `L2CDataset`.
    """
    found = decode(batch.samples, codec)
    kept = settled(batch.samples, found)
    pictures = [one for one in (found[i] for i in kept) if isinstance(one, Tensor)]
    if not pictures or any(picture.shape != pictures[0].shape for picture in pictures):
        return pictures, kept
    return torch.stack(pictures).contiguous(memory_format=torch.channels_last), kept


class DecodingLoader:
    """Batches of a loader, with every `CodedBatch` in them decoded in this process.

    Args:
        loader: a `DataLoader` with `collate_fn=collate`, or anything that gives batches with a `CodedBatch` in them:
            alone, or in a tuple, list or mapping beside labels.
        device: "cuda", "cpu", ...
        codec: one that decodes; None: one is made of the other arguments (see `CodecSettings`) when it is needed.
        transform: of the whole decoded batch, on the device.
    Yields:
        the batch, with pictures as `decode_batch` gives them. Where files are skipped, labels and all else that is as
        long as the batch loses the same samples; a batch with nothing left is left out.
    Raises:
        UnsupportedError: a batch without a `CodedBatch`, or a bad argument. Others as `decode_batch`.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: str | torch.device = "cpu",
        *,
        codec: Codec | None = None,
        transform: Callable[[Any], Any] | None = None,
        model: str = DEFAULT_MODEL,
        threads: int | None = None,
        precision: Precision = "auto",
        limits: Limits = Limits(),
    ) -> None:
        if codec is not None and not isinstance(codec, Codec):
            raise UnsupportedError(f"codec is {codec!r}: it must be l2c.Codec")
        self.loader, self.transform = loader, transform
        self._codec = codec
        self._settings = CodecSettings(model, device, threads, precision, limits)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Of the loader's dataset and of its sampler, as far as they have one."""
        for part in (getattr(self.loader, "dataset", None), getattr(self.loader, "sampler", None)):
            begin = getattr(part, "set_epoch", None)
            if begin is not None:
                begin(epoch)

    def __iter__(self) -> Iterator[Any]:
        codec = self._settings.codec() if self._codec is None else self._codec
        for batch in self.loader:
            decoded = _decoded(batch, codec)
            if decoded is not None:
                yield decoded if self.transform is None else self.transform(decoded)


def _decoded(batch: Any, codec: Codec) -> Any:
    """A batch with pictures; None: all of it was skipped."""
    if isinstance(batch, CodedBatch):
        pictures, kept = decode_batch(batch, codec)
        return pictures if kept else None
    parts: dict[Any, Any]
    if isinstance(batch, Mapping):
        parts = dict(batch)
    elif isinstance(batch, tuple | list):
        parts = dict(enumerate(batch))
    else:
        parts = {}
    coded = {key: part for key, part in parts.items() if isinstance(part, CodedBatch)}
    if len(coded) != 1:
        raise UnsupportedError(
            f"a batch has {len(coded)} CodedBatch and must have one: output='bytes' of the dataset and "
            "collate_fn=collate of the loader make it"
        )
    ((place, mine),) = coded.items()
    pictures, kept = decode_batch(mine, codec)
    if not kept:
        return None
    if len(kept) < len(mine):
        parts = {key: _of_kept(part, kept, len(mine)) for key, part in parts.items()}
    parts[place] = pictures
    if isinstance(batch, Mapping):
        return parts
    values = list(parts.values())
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*values)
    return tuple(values) if isinstance(batch, tuple) else values


def _of_kept(part: Any, kept: Sequence[int], count: int) -> Any:
    if isinstance(part, Tensor) and part.dim() and len(part) == count:
        return part[torch.tensor(kept, device=part.device)]
    if isinstance(part, list | tuple) and len(part) == count:
        return type(part)([part[i] for i in kept])
    return part
