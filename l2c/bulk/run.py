"""A whole run: what there is to do, what is done already, the work, and the record of it."""

from __future__ import annotations

import errno
import os
import posixpath
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from l2c import images
from l2c.bulk import places, sources
from l2c.bulk.drive import Drive, Result
from l2c.bulk.engines import Engine, Here, Local, cores, gpus
from l2c.bulk.manifest import NAME, Manifest, Record
from l2c.bulk.ray_engine import OnRay
from l2c.bulk.tasks import Item, Outcome, Spec
from l2c.codec.importance import portable
from l2c.codec.options import DEFAULT_TILE, DecodeOptions, EncodeOptions, check_decode_options, check_options
from l2c.errors import UnsupportedError, one_line
from l2c.files import LeftOut, Wanted
from l2c.format.levels import DEFAULT_METRIC
from l2c.images import listing

ATTEMPTS = 3
_BATCH, _GPU_BATCH = 16, 64  # more gains nothing on a CPU
_DEFAULTS: dict[str, Any] = {
    "metric": DEFAULT_METRIC,
    "effort": 0,
    "tile": DEFAULT_TILE,
    "metadata": "all",
    "lossless": "auto",
    "pixels_crc": False,
    "truncated": False,
    "format": "png",
    "mode": "original",
    "flatten": False,
    "unlimited": False,
    "scale": 1,
    "damaged": "raise",
}


@dataclass(frozen=True)
class Settings:
    """How a run goes, whatever it does.

    Attributes:
        jobs: workers at a time; None: one for each GPU, or else one for each core (or what a cluster has). More than
            there are GPUs share them, so that one reads pictures while another computes. 0: no other process, all work
            is done in this one.
        ray: address of a Ray cluster, see `ray_engine.OnRay`; None: processes of this machine.
        batch: the most files that a worker works on together; None: 16, on a GPU 64.
        attempts: so many workers may die of a file before it counts as failed.
        manifest: its place; None: "l2c-manifest.jsonl" in the folder of the outputs.
        overwrite: do everything again, and replace files that are there.
    """

    jobs: int | None = None
    ray: str | None = None
    batch: int | None = None
    attempts: int = ATTEMPTS
    manifest: str | None = None
    overwrite: bool = False


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        total: files and shards to do, without those that were done before. done, failed: of these.
        skipped: done by an earlier run.
        pictures, pixels: that this run has worked on, those of shards included. size_bytes: of their L2C files.
        pictures_failed: of pictures alone, not of shards.
        deaths: of workers. workers: that are at work or could be.
        seconds: since the run began. working_seconds: since the first worker was ready.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    pictures: int = 0
    pictures_failed: int = 0
    pixels: int = 0
    size_bytes: int = 0
    deaths: int = 0
    workers: int = 0
    seconds: float = 0.0
    working_seconds: float = 0.0
    shards_left: int = 0
    shards_done: int = 0
    in_shards: int = 0  # pictures of finished shards
    under_way: int = 0  # pictures of shards that are not finished

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return (self.pictures + self.under_way) / self.working_seconds if self.working_seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Of the work, as far as it can be told: shards are taken to hold what the finished ones held."""
        files = self.total - self.done - self.failed - self.shards_left
        if self.rate <= 0 or (self.shards_left and not self.shards_done):
            return None
        in_each = self.in_shards / self.shards_done if self.shards_done else 0.0
        return max(0.0, files + self.shards_left * in_each - self.under_way) / self.rate


@dataclass(frozen=True)
class Report:
    """What a run came to.

    Attributes:
        progress: its end. left_out: of the source. manifest: its place.
    """

    progress: Progress
    left_out: list[LeftOut] = field(default_factory=list)
    manifest: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every file of the source is done, now or before."""
        progress = self.progress
        return not (progress.failed or progress.pictures_failed or any(part.fails for part in self.left_out))


Told: TypeAlias = Callable[[Record, Exception | None], None]
Shown: TypeAlias = Callable[[Progress], None]


def encode(
    source: str | os.PathLike[str],
    dest: str,
    *,
    model: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    settings: Settings = Settings(),
    told: Told | None = None,
    progress: Shown | None = None,
    **options: Any,
) -> Report:
    """Compress all pictures of a source.

    In a script, call it below `if __name__ == "__main__":`, since its processes import the script.

    Args:
        source: see `sources`. dest: folder of the outputs, a path or a URL.
        device: "auto": a GPU where a worker has one; else as of `Codec`.
        told: called with each new record of the manifest, and the error where there is one.
        progress: called about twice a second.
        options: of `Codec.encode`, e.g. bpp=0.5, effort=4. With max_seconds, pictures are worked on one by one. One
            importance holds for all of them.
    Raises:
        OSError: no such source, or nothing in it. UnsupportedError: an option or place that cannot be; the manifest
            is that of another job, or in use. BackendError: a package or device that is asked for is not at hand.
        ModelMismatchError: no such model.
    """
    _check_names(options, EncodeOptions.__annotations__)
    goals = {name: options.get(name) for name in ("bpp", "max_bytes", "psnr", "msssim", "quality")}
    shaped = {name: options.get(name, _DEFAULTS[name]) for name in ("metric", "effort", "tile")}
    others = {name: options.get(name) for name in ("max_seconds", "alpha_quality")}
    check_options(goals, **shaped, others=others, adapt_for=options.get("adapt_for"))
    if options.get("progress") is not None:
        raise UnsupportedError("progress of a single picture goes with Codec.encode")
    if options.get("importance") is not None:
        options["importance"] = portable(options["importance"])
    spec = Spec("encode", model, device, precision, options=options)
    return _run(spec, os.fspath(source), dest, listing.readable_pictures(), ".l2c", settings, told, progress)


def decode(
    source: str | os.PathLike[str],
    dest: str,
    *,
    model: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    settings: Settings = Settings(),
    told: Told | None = None,
    progress: Shown | None = None,
    **options: Any,
) -> Report:
    """Restore the pictures of all L2C files of a source; arguments and errors as `encode`.

    Args:
        options: of `Codec.decode` (metric, region, scale, damaged), and mode, format ("png" if left out), quality,
            flatten, unlimited, as of `l2c decode`.
    """
    _check_names(options, {*DecodeOptions.__annotations__, "mode", "format", "quality", "flatten", "unlimited"})
    check_decode_options(*(options.get(name, _DEFAULTS.get(name)) for name in ("metric", "scale", "damaged")))
    suffix = "." + (options.get("format") or "png").lower()
    images.check_output_format(options.get("format"), Path(f"a{suffix}"))
    spec = Spec("decode", model, device, precision, options=options)
    wanted = Wanted("L2C file", frozenset({".l2c"}))
    return _run(spec, os.fspath(source), dest, wanted, suffix, settings, told, progress)


def _check_names(options: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UnsupportedError(f"no such option: {', '.join(unknown)}")


def prepared(spec: Spec, settings: Settings) -> tuple[Engine, Spec, int]:
    """The engine of a run, the spec with what was left open, and how many workers at a time.

    Raises:
        UnsupportedError: numbers that cannot be. BackendError: as `OnRay`.
    """
    for name in ("jobs", "batch", "attempts"):
        value, least = getattr(settings, name), 0 if name == "jobs" else 1
        if value is not None and value < least:
            raise UnsupportedError(f"{name} is {value}: it must be at least {least}")
    cluster = None if settings.ray is None else OnRay(settings.ray, spec, settings.jobs)
    if spec.device in ("auto", "cuda"):
        found = gpus() if cluster is None else cluster.gpus
    else:
        found = int(spec.device.startswith("cuda"))
    batch = settings.batch or (_GPU_BATCH if found else _BATCH)
    if spec.options.get("max_seconds") is not None:
        batch = 1  # it is a time for each picture
    spec = replace(spec, batch=batch, model_data=_model_data(spec.model))
    if cluster is not None:
        cluster.spec = spec
        return cluster, spec, cluster.workers
    if settings.jobs == 0:
        return Here(spec), spec, 1
    jobs = settings.jobs or found or cores()
    spec = replace(spec, threads=spec.threads or max(1, cores() // jobs))
    return Local(spec), spec, jobs


def work_on(items: Sequence[Item], spec: Spec, settings: Settings) -> Iterator[Result]:
    """What comes of each item, as it comes; without a manifest."""
    engine, spec, workers = prepared(spec, settings)
    for results in Drive(items, engine, workers=workers, batch=spec.batch, attempts=settings.attempts):
        yield from results


def _run(
    spec: Spec,
    source: str,
    dest: str,
    wanted: Wanted,
    suffix: str,
    settings: Settings,
    told: Told | None,
    progress: Shown | None,
) -> Report:
    started = time.monotonic()
    source, dest = places.absolute(source), places.absolute(dest)
    found = sources.find(source, wanted)
    targets = sources.targets(found.sources, dest, suffix)
    if not places.is_url(dest) and os.path.exists(dest) and not os.path.isdir(dest):
        raise NotADirectoryError(errno.ENOTDIR, "is a file, and a folder is needed", dest)
    place = settings.manifest or places.join(dest, NAME)
    with Manifest(place) as manifest:
        book = _Book(manifest, _job(spec), told or (lambda record, error: None))
        if not settings.overwrite:
            book.check_job()
        book.left_out(found.left_out)
        items = list(_due(found.sources, targets, book, places.sizes_below(dest), settings.overwrite))
        state = book.progress
        state.total = state.failed + len(items)
        state.shards_left = sum(item.shard for item in items)
        if items:
            engine, spec, workers = prepared(spec, settings)
            drive = Drive(items, engine, workers=workers, batch=spec.batch, attempts=settings.attempts)
            first_ready = None
            for results in drive:
                now = time.monotonic()
                if first_ready is None and drive.workers_ready:
                    first_ready = now
                book.add(results)
                state.deaths, state.workers, state.under_way = drive.deaths, drive.workers_ready, drive.members_done
                state.seconds, state.working_seconds = now - started, now - (first_ready or now)
                if progress is not None:
                    progress(state)
        state.seconds = time.monotonic() - started
        return Report(state, found.left_out, place)


class _Book:
    """Keeps the manifest and the numbers of a run together."""

    def __init__(self, manifest: Manifest, job: str, told: Told) -> None:
        self._manifest, self._job, self._told = manifest, job, told
        self.progress = Progress()

    def check_job(self) -> None:
        """Raises UnsupportedError: what was made last was made in another way than it is asked for now."""
        if not self.is_new and self._manifest.job != self._job:
            raise UnsupportedError(
                f"{self._manifest.place} is that of {self._manifest.job!r}, and {self._job!r} is asked for: "
                "name another folder, or --overwrite"
            )

    def done(self, source: sources.Source, target: str, size: int | None) -> Record | None:
        """The record of an input as it is now and for this job, whose output of so many bytes is there; or None.

        Args:
            source: with its stamp. size: of what is at `target`, in bytes; None: nothing is.
        """
        record = self.last(source.place)
        if record is None and source.stamp and size is not None:
            record = self._manifest.moved(source.name, source.stamp)
        if record is None or record.get("error") is not None or record.get("job") != self._job:
            return None
        if "" not in (source.stamp, was := record.get("input_stamp", "")) and was != source.stamp:
            return None
        name = posixpath.join(posixpath.dirname(source.name), posixpath.basename(Path(target).as_posix()))
        is_its = record["output"] == target or record["output"].endswith(f"/{name}")
        return record if is_its and size == record.get("output_bytes", record["bytes"]) else None

    def last(self, source: str) -> Record | None:
        """What is known of an input."""
        return self._manifest.last.get(source)

    @property
    def is_new(self) -> bool:
        """Whether no run has been here before."""
        return self._manifest.is_new

    def left_out(self, parts: Iterable[LeftOut]) -> None:
        """Record what should be worked on and cannot be, once."""
        failed = [part for part in parts if part.fails]
        records = [self._failure(part.path, "", part.reason, "LeftOut") for part in failed]
        self._manifest.add([one for one in records if (self.last(one["input"]) or {}).get("error") != one["error"]])

    def is_of_another(self, target: str, source: str) -> bool:
        """Whether an output was made of another input."""
        return self._manifest.made_of(target) not in (None, source)

    def skip(self, record: Record) -> None:
        """An input was done before."""
        self.progress.skipped += 1
        self.progress.pictures_failed += record.get("failed") or 0

    def add(self, results: Sequence[Result]) -> None:
        """Record results, and tell them."""
        for result in results:
            told = [self._record(one.key, one.outcome, one.warnings, result.item) for one in result.members]
            told.append(self._record(result.item.source, result.outcome, result.warnings, result.item))
            self._manifest.add([record for record, _ in told])
            for record, error in told:
                self._told(record, error)

    def _record(
        self, key: str, outcome: Outcome, warnings: Sequence[str], item: Item
    ) -> tuple[Record, Exception | None]:
        """A record of an item or of a member of it, which counts."""
        state, is_member = self.progress, key != item.source
        source = f"{item.source}::{key}" if is_member else key
        if not is_member:
            state.shards_left -= item.shard
            state.failed += isinstance(outcome, Exception)
            state.done += not isinstance(outcome, Exception)
            state.shards_done += item.shard
        if isinstance(outcome, Exception):
            state.pictures_failed += is_member or not item.shard
            target = "" if is_member else item.target
            return self._failure(source, target, one_line(outcome), type(outcome).__name__), outcome
        if not item.shard or is_member:
            state.pictures += 1
            state.in_shards += is_member
            state.pixels += outcome["width"] * outcome["height"]
            state.size_bytes += outcome["size_bytes"]
        target = f"{item.target}::{outcome['output']}" if is_member else item.target
        record = {"input": source, "output": target} | _facts_of(outcome) | {"job": self._job}
        if item.stamp and not is_member:
            record["input_stamp"] = item.stamp
        return record | ({"warnings": list(warnings)} if warnings else {}), None

    def _failure(self, source: str, target: str, reason: str, kind: str) -> Record:
        record: Record = {"input": source, "output": target, **dict.fromkeys(("bytes", "seconds", "rate"))}
        return record | {"error": reason, "error_type": kind, "job": self._job}


def _facts_of(outcome: Mapping[str, Any]) -> Record:
    rate = outcome.get("bpp")
    record: Record = {
        "bytes": outcome["size_bytes"],
        "seconds": round(outcome["seconds"]["total"], 6),
        "rate": None if rate is None else round(rate, 6),
        "error": None,
    }
    more = ("width", "height", "quality", "model", "target_reached", "pictures", "failed", "output_bytes")
    return record | {name: outcome[name] for name in more if name in outcome}


def _due(
    found: Sequence[sources.Source],
    targets: Sequence[str],
    book: _Book,
    size_of: Callable[[str], int | None],
    overwrite: bool,
) -> Iterator[Item]:
    """What is to be done now. What is done already is counted; what must not be done is recorded as failed."""
    refused: list[Result] = []
    for one, target in zip(found, targets):
        one = one._replace(stamp=one.stamp or places.stamp(one.place))
        size, last = size_of(target), book.last(one.place)
        done = None if overwrite else book.done(one, target, size)
        if done is not None:
            book.skip(done)
            continue
        item = Item(one.place, target, size is not None, one.is_shard, one.stamp)
        was_refused = last is not None and last.get("error_type") == FileExistsError.__name__
        if places.is_same(one.place, target):
            refused.append(Result(item, FileExistsError(errno.EEXIST, "is the input as well", target)))
        elif (
            size is not None and not overwrite and (book.is_new or was_refused or book.is_of_another(target, one.place))
        ):
            # What a later run finds without a record is what a run left that was killed before it could write one.
            reason = "exists already; --overwrite replaces it"
            refused.append(Result(item, FileExistsError(errno.EEXIST, reason, target)))
        else:
            yield item
    book.add(refused)


def _job(spec: Spec) -> str:
    """What is asked for, in one line: what decides the outputs and is not as by default."""
    options = {"model": spec.model and Path(spec.model).stem, **spec.options}
    if spec.precision != "auto":
        options["precision"] = spec.precision
    # A decoder's metric has no default: it is the file's own.
    defaults = _DEFAULTS | ({"metric": None} if spec.command == "decode" else {})
    if isinstance(options.get("importance"), np.ndarray):
        options["importance"] = f"map-{zlib.crc32(np.ascontiguousarray(options['importance'])):08x}"
    told = [
        f"{name}={'+'.join(map(str, value)) if isinstance(value, (tuple, list)) else value}"
        for name, value in sorted(options.items())
        if value is not None and value != defaults.get(name)
    ]
    return " ".join([spec.command, *told])


def _model_data(model: str | None) -> bytes | None:
    """The bytes of a model file."""
    return Path(model).read_bytes() if model is not None and os.path.isfile(model) else None
