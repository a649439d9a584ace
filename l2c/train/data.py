"""Pictures for training and validation: folders, lists or tar shards in, uint8 crops out, cut ahead of their step.

Nothing here keeps random state. A crop depends on the generator that the caller passes in, and that one is
`numpy.random.default_rng([seed, salt, step, j])` with j the position in the global batch. So pictures from files give
the same batch however many processes share it, and a run resumes at any step with nothing but the step. Shards are
divided over the processes, each reads its own: there the batch also depends on how many there are.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from l2c.errors import ConfigError, ImageError, L2CError, L2CWarning
from l2c.files import Tail
from l2c.images import MAX_PIXELS, load_picture
from l2c.images.listing import list_pictures, pictures
from l2c.train.config import DataConfig
from l2c.train.drawn import UPRIGHT, WITH_PHOTO, draw, random_kind

T = TypeVar("T")

_LATE_STEPS = 64  # a step's pool is kept for so many steps more: worker threads do not finish in order
_starting_worker = threading.Lock()


@dataclass(frozen=True)
class Encoded:
    """A picture not decoded yet: its name in messages, and its file or the bytes of one."""

    name: str
    data: Path | bytes = field(repr=False)


class Kept(NamedTuple):
    """What a `Sampler` keeps in memory: pools of shards, decoded pictures, and the size of these."""

    pools: int
    pictures: int
    size_bytes: int


def describe(sources: Sequence[str]) -> dict[str, Any]:
    """Facts for a model card: number of `pictures` or of `shards`, and `sources` without their folders and hosts.

    Raises:
        ConfigError: as for `Sampler`.
    """
    files, shards = _resolve(sources)
    count = {"shards": len(shards)} if shards else {"pictures": len(files)}
    return {**count, "sources": [_base_name(source) for source in sources]}


def centre_crops(sources: Sequence[str], size: int, count: int, limit: int | None = None) -> list[Tensor]:
    """Centres of the first `count` usable pictures, for validation: the same ones in every run.

    Args:
        sources: as for `Sampler`.
        size: side in pixels; pictures with a shorter side are left out, with a warning.
        limit: look at the first so many pictures only.
    Returns:
        uint8 [1, 3, size, size] each; fewer than `count` where there are no more.
    Raises:
        ConfigError: as for `Sampler`, or no picture is usable.
    """
    crops: list[Tensor] = []
    for encoded in islice(_all_pictures(*_resolve(sources)), limit):
        try:
            picture = decode(encoded, size)
        except ImageError as error:
            _warn_left_out(error)
            continue
        top, left = ((side - size) // 2 for side in picture.shape[1:])
        crops.append(picture[None, :, top : top + size, left : left + size].contiguous())
        if len(crops) == count:
            break
    if not crops:
        raise ConfigError(f"no readable picture with both sides of at least {size} pixels in {_names(sources)}")
    return crops


def shared_pictures(train: Sequence[str], val: Sequence[str]) -> int:
    """How many picture files are in both; tar shards are not looked into."""
    both = [{file.resolve() for file in _resolve(sources)[0]} for sources in (train, val)]
    return len(both[0] & both[1])


class Sampler:
    """Random crops. Any number of threads may call `crop_for` at the same time.

    Beside the decoded pictures (`config.memory_gb`), two pools of shards lie in memory as the bytes they were read as.

    Args:
        config: scaling, memory, pools and limit; its own lists of sources are not looked at.
        sources: folders, list files (.txt, .lst: one path a line, relative to the list's folder; blank lines and lines
            that start with # do not count) and single pictures; or tar shards in WebDataset form, as paths or URLs
            that end in .tar, with brace ranges (`train-{0000..0099}.tar`), http URLs or `pipe:` commands.
        crop: side of the crops in pixels.
        seed: of the order of shards.
        rank, world: this process, and how many share the shards.
    Raises:
        ConfigError: a source does not exist, holds no picture, or shards are mixed with files.
    """

    def __init__(
        self, config: DataConfig, sources: Sequence[str], crop: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self._config, self._sources, self._crop = config, tuple(sources), crop
        self._seed, self._rank, self._world = seed, rank, world
        files, self._shards = _resolve(sources)
        # Files and a limited number of pictures are one pool that lasts for ever; shards come pool by pool.
        self._fixed: list[Encoded] | None = None
        if files or config.limit is not None:
            self._fixed = list(islice(_all_pictures(files, self._shards), config.limit))
        self._lock = threading.Lock()
        self._pools: dict[int, Future[list[Encoded]]] = {}
        self._decoded: dict[tuple[int, int], Tensor] = {}  # by pool and place in it
        self._decoded_bytes = 0
        self._left_out: set[str] = set()

    def crop_for(self, rng: np.random.Generator, step: int, clean: bool) -> Tensor:
        """One crop, mirrored and turned by quarters at random, or drawn by code (a share `config.drawn_share`).

        A picture that is too small or cannot be read is left out with one warning, and the next one takes its place.

        Args:
            rng: six numbers are drawn from it, whatever the picture. Crops that are not drawn are the same ones at any
                `drawn_share`.
            step: chooses the pool of shards.
            clean: scale the picture down by a factor drawn from scale_min..scale_max, or less far where that would
                take more than the picture has; otherwise its own pixels.
        Returns:
            uint8 [3, crop, crop], contiguous, shares no memory.
        Raises:
            ConfigError: a shard cannot be read, none of the pictures is usable, or matplotlib's fonts are missing.
        """
        numbers = rng.random(6)
        turns = 4 * numbers[5]
        if turns % 1 < self._config.drawn_share:  # which says nothing about the whole turns
            return self._drawn(numbers, step, clean)
        region = self._region(numbers, step, clean)
        if numbers[4] < 0.5:
            region = region.flip(2)
        return torch.rot90(region, int(turns), (1, 2)).clone(memory_format=torch.contiguous_format)

    def _drawn(self, numbers: np.ndarray[Any, Any], step: int, clean: bool) -> Tensor:
        """A crop drawn by code, with the ordinary crop of these numbers as its photograph where it shows one.

        What holds text is mirrored and turned in one of sixteen only.
        """
        rng = np.random.default_rng((numbers * 2**53).astype(np.uint64))
        kind, photo = random_kind(rng), None
        if kind in WITH_PHOTO:
            photo = self._region(numbers, step, clean).permute(1, 2, 0).cpu().numpy()
        pixels = torch.from_numpy(draw(kind, self._crop, rng, photo)).permute(2, 0, 1)
        if kind not in UPRIGHT or rng.random() < 1 / 16:
            pixels = torch.rot90(pixels.flip(2) if rng.random() < 0.5 else pixels, int(rng.integers(4)), (1, 2))
        return pixels.clone(memory_format=torch.contiguous_format)

    def _region(self, numbers: np.ndarray[Any, Any], step: int, clean: bool) -> Tensor:
        """Window of a picture, scaled where it is to be clean: uint8 [3, crop, crop], may share memory."""
        at, shrink, down, across = numbers[:4].tolist()
        picture = self._picture(step, at)
        height, width = picture.shape[1:]
        side = self._crop
        if clean:
            factor = self._config.scale_min + (self._config.scale_max - self._config.scale_min) * shrink
            side = min(round(self._crop / factor), height, width)
        top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
        region = picture[:, top : top + side, left : left + side]
        if side != self._crop:
            size = (self._crop, self._crop)
            scaled = F.interpolate(region[None].float(), size, mode="bicubic", align_corners=False, antialias=True)
            region = scaled[0].round().clamp(0, 255).to(torch.uint8)
        return region

    @property
    def kept(self) -> Kept:
        """What lies in memory now."""
        with self._lock:
            sizes = [picture.numel() for picture in self._decoded.values()]
            return Kept(len(self._pools), len(sizes), sum(sizes))

    @property
    def lasting(self) -> bool:
        """Whether the same pictures serve every step; shards come and go."""
        return self._fixed is not None

    def pictures(self) -> Iterator[Tensor]:
        """Every usable picture once, uint8 [3, H, W], decoded in as many threads as there are cores.

        Raises:
            ConfigError: the sources are shards, which may have no end.
        """
        if self._fixed is None:
            raise ConfigError("data.on_device takes pictures from files, not from tar shards")
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for picture in threads.map(self._read, self._fixed):
                if picture is not None:
                    yield picture

    def shards_of(self, pool: int) -> list[str]:
        """This process's shards in one pool, which serves the steps from pool * pool_steps on; sources must be shards.

        The processes walk together through one endless row of shards, a new permutation in each epoch: every shard
        is read once in an epoch, by one of them.
        """
        count, share = len(self._shards), self._config.pool_shards
        places = [(pool * share + i) * self._world + self._rank for i in range(share)]
        # Five words, so that no crop of the same seed gets this generator.
        epochs = {place // count for place in places}
        orders = {e: np.random.default_rng([self._seed, e, 0, 0, 1]).permutation(count) for e in epochs}
        chosen = [self._shards[orders[place // count][place % count]] for place in places]
        return list(dict.fromkeys(chosen))  # an epoch may end with the shard that the next one begins with

    def _picture(self, step: int, at: float) -> Tensor:
        """The usable picture at place `at` (0..1) of the step's pool, or the next one: uint8 [3, H, W]."""
        pool, pictures = self._pool_at(step)
        count = len(pictures)
        for i in range(count):
            index = (int(at * count) + i) % count
            picture = self._load((pool, index), pictures[index])
            if picture is not None:
                return picture
        raise ConfigError(
            f"none of {count} pictures is readable with both sides of at least {self._crop} pixels: "
            f"{_names(self.shards_of(pool) if self._fixed is None else self._sources)}"
        )

    def _load(self, key: tuple[int, int], encoded: Encoded) -> Tensor | None:
        """`_read`, kept if there is room."""
        with self._lock:
            kept = self._decoded.get(key)
        if kept is not None:
            return kept
        picture = self._read(encoded)
        if picture is None:
            return None
        with self._lock:
            room = 1e9 * self._config.memory_gb - self._decoded_bytes
            if key not in self._decoded and picture.numel() <= room:
                self._decoded[key] = picture
                self._decoded_bytes += picture.numel()
        return picture

    def _read(self, encoded: Encoded) -> Tensor | None:
        """Decoded picture, uint8 [3, H, W]; None, with a warning the first time, if it is not usable."""
        with self._lock:
            if encoded.name in self._left_out:
                return None
        try:
            return decode(encoded, self._crop)
        except ImageError as error:
            with self._lock:
                known = encoded.name in self._left_out
                self._left_out.add(encoded.name)
            if not known:
                _warn_left_out(error)
            return None

    def _pool_at(self, step: int) -> tuple[int, list[Encoded]]:
        """Number and pictures of the pool that serves `step`; has the next one read in the background."""
        if self._fixed is not None:
            return 0, self._fixed
        pool = step // self._config.pool_steps
        with self._lock:
            future = self._start_reading(pool)
        pictures = future.result()  # the next pool waits until this one is there, so that they do not share the line
        with self._lock:
            self._start_reading(pool + 1)
            oldest = max(0, step - min(_LATE_STEPS, self._config.pool_steps)) // self._config.pool_steps
            old = {p for p in self._pools if not oldest <= p <= pool + 2}  # + 2: another thread may be a pool ahead
            if old:
                self._pools = {p: f for p, f in self._pools.items() if p not in old}
                self._decoded = {key: t for key, t in self._decoded.items() if key[0] in self._pools}
                self._decoded_bytes = sum(t.numel() for t in self._decoded.values())
        return pool, pictures

    def _start_reading(self, pool: int) -> Future[list[Encoded]]:
        """The pool's pictures to be; a thread begins to read them unless that was asked for before."""
        if pool not in self._pools:
            future = self._pools[pool] = Future()

            def read() -> None:
                try:
                    pictures = list(_all_pictures([], self.shards_of(pool)))
                    future.set_result(pictures)
                except BaseException as error:  # whoever needs the pool shall see it, not this thread's log
                    future.set_exception(error)

            threading.Thread(target=read, name=f"shards-{pool}", daemon=True).start()  # must not hold up the exit
        return self._pools[pool]


class Prefetcher(Generic[T]):
    """Results of `make(step)` for rising steps, made ahead of time by worker threads.

    Args:
        make: called once for each step, in several threads at a time.
        start: the first step.
        workers: threads; 0 calls `make` inside `get`.
        depth: steps that may be ready or in the making beyond the one that `get` returns; by default workers + 2.

    Attributes:
        wait_seconds: time that all calls of `get` took together.
    """

    def __init__(self, make: Callable[[int], T], start: int, workers: int, depth: int | None = None) -> None:
        self.wait_seconds = 0.0
        self._make, self._next, self._ahead = make, start, start
        self._depth = workers + 2 if depth is None else depth
        self._futures: dict[int, Future[T]] = {}
        self._threads = ThreadPoolExecutor(workers, "prefetch", initializer=_be_one_thread) if workers else None
        self._closed = False
        self._submit_until(start + self._depth)

    def get(self, step: int) -> T:
        """What `make(step)` returned; what it raised is raised here.

        Raises:
            ValueError: `step` does not lie beyond the step before, or before `start`.
            RuntimeError: after `close`.
        """
        if self._closed:
            raise RuntimeError("the prefetcher is closed")
        if step < self._next:
            raise ValueError(f"step {step} was asked for after step {self._next - 1}")
        began = time.monotonic()
        try:
            self._next = step + 1
            for passed in [s for s in self._futures if s < step]:
                self._futures.pop(passed).cancel()
            self._ahead = max(self._ahead, step)
            self._submit_until(step + 1 + self._depth)
            return self._futures.pop(step).result() if self._threads else self._make(step)
        finally:
            self.wait_seconds += time.monotonic() - began

    @property
    def pending(self) -> int:
        """How many steps are ready or in the making."""
        return len(self._futures)

    def close(self) -> None:
        """Give up what nobody has asked for, and wait for the calls of `make` that run."""
        self._closed = True
        if self._threads:
            self._threads.shutdown(wait=True, cancel_futures=True)
        self._futures.clear()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _submit_until(self, end: int) -> None:
        if self._threads:
            for step in range(self._ahead, end):
                self._futures[step] = self._threads.submit(self._make, step)
            self._ahead = max(self._ahead, end)


def _be_one_thread() -> None:
    """Let PyTorch use one thread in the calling thread, and leave every other thread's number as it is.

    The number belongs to a thread, but setting it also sets what threads that start later begin with. So that is put
    back, by a thread that ends at once. Asking first matters: a thread takes up the common number at its first
    question or parallel loop, even after it has set its own.
    """
    with _starting_worker:
        common = torch.get_num_threads()
        torch.set_num_threads(1)
        restorer = threading.Thread(target=torch.set_num_threads, args=(common,))
        restorer.start()
        restorer.join()


def _resolve(sources: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Picture files, or addresses of shards: one of the two is empty, the other is not."""
    tars = [source for source in sources if _is_shard(source)]
    if not tars:
        return list_pictures(*sources), []
    if len(tars) < len(sources):
        raise ConfigError(f"shards cannot be mixed with files and folders: {_names(sources)}")
    expand = _webdataset("shardlists").expand_urls
    try:
        shards = [url for source in tars for url in expand(source)]
    except (AssertionError, ValueError) as error:  # an unset variable, unbalanced braces
        raise ConfigError(f"cannot expand the shards {_names(tars)}: {error}") from error
    missing = [url for url in shards if not _is_remote(url) and not Path(url).is_file()]
    if missing:
        raise ConfigError(f"{len(missing)} of {len(shards)} shards do not exist, the first one is {missing[0]}")
    return [], shards


def _is_remote(source: str) -> bool:
    return source.startswith("pipe:") or "://" in source


def _is_shard(source: str) -> bool:
    return _is_remote(source) or source.endswith(".tar")


def _all_pictures(files: Sequence[Path], shards: Sequence[str]) -> Iterator[Encoded]:
    """The pictures in order; a shard is read when its first one is asked for."""
    for file in files:
        yield Encoded(str(file), file)
    for shard in shards:
        yield from read_shard(shard)


def read_shard(url: str) -> list[Encoded]:
    """The picture of each sample of a shard. Members whose names agree up to the first dot are one sample.

    Of several pictures in a sample (`a.png`, `a.mask.png`) the one with the plainest suffix is taken.
    """
    gopen, tar = _webdataset("gopen").gopen, _webdataset("tariterators")
    samples: dict[str, tuple[int, Encoded]] = {}
    try:
        with gopen(url) as opened:
            stream = Tail(opened)
            for member in tar.tar_file_iterator(stream, select_files=pictures().takes):
                key, suffix = tar.base_plus_ext(member["fname"])
                if key is not None and (key not in samples or suffix.count(".") < samples[key][0]):
                    samples[key] = suffix.count("."), Encoded(f"{url}/{member['fname']}", member["data"])
            while stream.read(1 << 20):  # a command that is cut short would count as failed
                pass
            if any(stream.last):
                raise EOFError("it is cut off: no empty block at its end")
    except (OSError, ValueError, EOFError, TarError) as error:
        raise ConfigError(f"cannot read the shard {url}: {error}") from error
    if not samples:
        raise ConfigError(f"no pictures in the shard {url}")
    return [encoded for _, encoded in samples.values()]


def _webdataset(module: str) -> Any:
    """A module of the `webdataset` package, which only those need who train from shards."""
    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise ConfigError(f"tar shards need the `webdataset` package: {error}") from error


def decode(encoded: Encoded, least_side: int) -> Tensor:
    """RGB as uint8 [3, H, W], as the codec reads pictures. Raises ImageError if it cannot be read or a side is shorter
    than `least_side`."""
    try:
        pixels = load_picture(encoded.data, max_pixels=MAX_PIXELS).rgb
    except L2CError as error:
        raise ImageError(f"{encoded.name} cannot be read: {error}") from error
    height, width = pixels.shape[:2]
    if min(height, width) < least_side:
        raise ImageError(f"{encoded.name} is {width}x{height}, a side has less than {least_side} pixels")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _warn_left_out(error: ImageError) -> None:
    warnings.warn(f"picture left out: {error}", L2CWarning, stacklevel=3)


def _base_name(source: str) -> str:
    """Last part of a path or address, without a query or a command around it, which may hold secrets."""
    if not _is_shard(source):
        return Path(source).resolve().name
    name = re.search(r"[^/\s=]+\.tar\b", source)
    return name.group() if name else "shards"


def _names(sources: Sequence[str | Path]) -> str:
    return ", ".join(map(str, sources)) or "an empty list of sources"
