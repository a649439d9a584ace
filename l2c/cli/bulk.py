"""`l2c bulk`: very many files, from anywhere to anywhere, on one machine or many."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2c.cli import lazy, options, progress
from l2c.cli.encode import asked_of
from l2c.cli.messages import FAILED, message_of, say
from l2c.cli.report import print_json
from l2c.cli.terminal import printable
from l2c.codec.options import DEFAULT_TILE
from l2c.files import summary
from l2c.format.levels import DEFAULT_METRIC

if TYPE_CHECKING:
    from l2c.bulk import Progress, Report, Settings

_HELP = """Compress or restore very many pictures, in several processes or on a Ray cluster.

SOURCE: a folder; a list file (.txt, .lst) with a line for each file; tar shards of WebDataset (train-{0000..0099}.tar),
each of which becomes a shard; or a single file. SOURCE and DEST may be URLs (s3://, gs://, https://, ...) where fsspec
and its package for them are installed. DEST/l2c-manifest.jsonl records what came of each file, and a run that is
started again goes on from it. See `python -c "import l2c.bulk; help(l2c.bulk)"`.
"""
app = typer.Typer(name="bulk", help=_HELP, short_help="Compress or restore very many pictures.", rich_markup_mode=None)

_TERMINAL_SECONDS, _LOG_SECONDS = 0.5, 60.0

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, list, tar shards or URL.")]
Dest = Annotated[str, typer.Argument(metavar="DEST", help="Folder or URL of the outputs.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...; auto: a GPU where a worker has one.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", "-j", min=0, help="Workers; 0: none, all in this process.  [default: one for each GPU, or each core]"
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Work on a Ray cluster: auto, host:6379, ray://host:10001; local starts one here. "
        "Its machines must see the same files.",
    ),
]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Files that a worker works on together.  [default: 16, on a GPU 64]")
]
Attempts = Annotated[int, typer.Option(min=1, help="So many workers may die of a file before it counts as failed.")]
ManifestFile = Annotated[
    str | None, typer.Option("--manifest", metavar="FILE", help="[default: l2c-manifest.jsonl in DEST]")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", "-f", help="Do everything again, and replace files that exist.")
]


@app.command()
def encode(
    source: Source,
    dest: Dest,
    bpp: options.Bpp = None,
    max_bytes: options.MaxBytes = None,
    psnr: options.Psnr = None,
    msssim: options.MsSsim = None,
    quality: options.Quality = None,
    metric: options.Metric = DEFAULT_METRIC,
    adapt_for: options.AdaptFor = None,
    effort: options.Effort = 0,
    max_seconds: options.MaxSeconds = None,
    device: Device = "auto",
    precision: options.Precision = "auto",
    model: options.Model = None,
    tile: options.Tile = DEFAULT_TILE,
    metadata: options.Metadata = "all",
    no_metadata: options.NoMetadata = False,
    alpha_quality: options.AlphaQuality = None,
    lossless: options.Lossless = "auto",
    pixels_crc: options.PixelsCrc = False,
    importance: options.Importance = None,
    truncated: options.Truncated = False,
    jobs: Jobs = None,
    ray: Ray = None,
    batch: Batch = None,
    attempts: Attempts = 3,
    manifest: ManifestFile = None,
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Compress all pictures of SOURCE."""
    asked = asked_of(
        bpp=bpp,
        max_bytes=max_bytes,
        psnr=psnr,
        msssim=msssim,
        quality=quality,
        metric=metric,
        adapt_for=adapt_for,
        effort=effort,
        max_seconds=max_seconds,
        tile=tile,
        metadata="none" if no_metadata else metadata,
        alpha_quality=alpha_quality,
        lossless=lossless,
        pixels_crc=pixels_crc,
        importance=importance,
        truncated=truncated,
    )
    where = {"model": model, "device": device, "precision": precision}
    settings = lazy.bulk.Settings(jobs, ray, batch, attempts, manifest, overwrite)
    return _told(lazy.bulk.encode, source, dest, settings, as_json, where | asked)


@app.command()
def decode(
    source: Source,
    dest: Dest,
    device: Device = "auto",
    precision: options.Precision = "auto",
    model: options.Model = None,
    metric: options.Receiver = None,
    mode: options.PictureMode = "original",
    format_: Annotated[str, typer.Option("--format", help="png, jpeg, ...")] = "png",
    quality: options.PictureQuality = None,
    flatten: options.Flatten = False,
    region: options.Region = None,
    scale: options.Scale = "1",
    conceal: options.Conceal = False,
    unlimited: options.Unlimited = False,
    jobs: Jobs = None,
    ray: Ray = None,
    batch: Batch = None,
    attempts: Attempts = 3,
    manifest: ManifestFile = None,
    overwrite: Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Restore the pictures of all L2C files of SOURCE."""
    view = options.view_of(metric, region, scale, conceal)
    asked = {**view, "mode": mode, "format": format_, "quality": quality, "flatten": flatten}
    where = {"model": model, "device": device, "precision": precision, "unlimited": unlimited}
    settings = lazy.bulk.Settings(jobs, ray, batch, attempts, manifest, overwrite)
    return _told(lazy.bulk.decode, source, dest, settings, as_json, where | asked)


def _told(work: Any, source: str, dest: str, settings: Settings, as_json: bool, given: dict[str, Any]) -> int:
    """Do the work, say what fails and how far it is, and sum it up. Returns the exit code."""
    told_at, last = time.monotonic(), ""

    def told(record: dict[str, Any], error: Exception | None) -> None:
        if error is not None:
            progress.clear()
            say("error", message_of(error, record["input"]), error)
        for message in record.get("warnings", ()):
            progress.clear()
            say("warning", message)

    def shown(state: Progress) -> None:
        nonlocal told_at, last
        last = line_of(state)
        on_terminal, now = sys.stderr.isatty(), time.monotonic()
        if now - told_at < (_TERMINAL_SECONDS if on_terminal else _LOG_SECONDS):
            return
        told_at = now
        if on_terminal:
            progress.tell(last)
        else:
            print(f"l2c: {last}", file=sys.stderr, flush=True)

    try:
        report = work(source, dest, settings=settings, told=told, progress=shown, **given)
    except KeyboardInterrupt:
        progress.clear()
        print(f"{last or 'nothing begun'}; stopped, the same command goes on from here")
        raise
    finally:
        progress.clear()
    for part in report.left_out:
        if part.fails:
            say("error", f"{part.path}: {part.reason}: left out")
    if as_json:
        print_json(_summary(report))
    else:
        print(printable(_last_line(report, source)))
    return 0 if report.is_complete else FAILED


def line_of(state: Progress) -> str:
    """How far a run is: files, rate, time left."""
    left, rate = state.seconds_left, state.rate
    parts = [f"{state.done + state.failed} of {state.total}"]
    if state.under_way:
        parts.append(f"{state.under_way} pictures of shards under way")
    if not state.pictures and not state.under_way:
        parts.append(f"{state.workers} workers ready")
    else:
        mpixel = state.pixels / 1e6 / state.working_seconds if state.working_seconds else 0.0
        parts += [f"{rate:.1f} pictures/s", f"{mpixel:.2f} Mpixel/s"]
    parts += [f"{state.failed} failed"] if state.failed else []
    parts += [f"{state.deaths} workers died"] if state.deaths else []
    parts.append("time left not known yet" if left is None else f"{_clock(left)} left")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _summary(report: Report) -> dict[str, Any]:
    state = report.progress
    return {
        "done": state.done,
        "failed": state.failed,
        "skipped": state.skipped,
        "pictures": state.pictures,
        "pictures_failed": state.pictures_failed,
        "left_out": sum(part.fails for part in report.left_out),
        "pixels": state.pixels,
        "size_bytes": state.size_bytes,
        "bpp": 8 * state.size_bytes / state.pixels if state.pixels else None,
        "seconds": round(state.seconds, 3),
        "pictures_per_second": round(state.rate, 3),
        "worker_deaths": state.deaths,
        "manifest": report.manifest,
    }


def _last_line(report: Report, source: str) -> str:
    state = report.progress
    parts = [f"{state.done} of {state.total} files"]
    parts += [f"{state.skipped} were done before"] if state.skipped else []
    parts += [f"{state.pictures} pictures"] if state.shards_done else []
    parts += [f"{state.pictures_failed} pictures failed"] if state.pictures_failed else []
    rate = f", {8 * state.size_bytes / state.pixels:.4f} bpp" if state.pixels else ""
    parts.append(f"{state.size_bytes} bytes{rate}")
    parts.append(f"{state.seconds:.1f} s" + (f", {state.rate:.1f} pictures/s" if state.pictures else ""))
    parts += [f"{state.deaths} workers died"] if state.deaths else []
    text = ", ".join(parts)
    return text + (f"; {summary(report.left_out, source)}" if report.left_out and "://" not in source else "")
