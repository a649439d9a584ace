"""`l2c encode`."""

from __future__ import annotations

import functools
import sys
from typing import Annotated, Any

import typer

from l2c.bulk.batching import attempt
from l2c.cli import existing, lazy, options, parallel
from l2c.cli.messages import errors_of, say
from l2c.cli.plan import SUFFIX, Job, check_target, make_plan, write_target
from l2c.cli.progress import share_done
from l2c.cli.report import Result
from l2c.cli.run import run
from l2c.cli.session import open_codec
from l2c.cli.terminal import STANDARD, shown
from l2c.codec.facts import encoded_facts
from l2c.codec.options import DEFAULT_TILE, check_options
from l2c.format.levels import DEFAULT_METRIC


def encode(
    source: Annotated[str, typer.Argument(metavar="IN", help="Picture or folder; - for standard input.")],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="File or folder (a name that ends in / is one); - for standard output.")
    ],
    bpp: options.Bpp = None,
    max_bytes: options.MaxBytes = None,
    psnr: options.Psnr = None,
    msssim: options.MsSsim = None,
    quality: options.Quality = None,
    metric: options.Metric = DEFAULT_METRIC,
    adapt_for: options.AdaptFor = None,
    effort: options.Effort = 0,
    max_seconds: options.MaxSeconds = None,
    device: options.Device = "cpu",
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
    jobs: options.Jobs = 1,
    overwrite: options.Overwrite = False,
    skip_existing: options.SkipExisting = False,
    as_json: options.Json = False,
) -> int:
    """Compress a picture, or every picture of a folder and those below it.

    What a folder holds besides pictures is left out and named at the end. HEIC and JPEG XL are read where the packages
    pillow-heif and pillow-jxl-plugin are installed. Hidden files and linked folders are left out.
    """
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
    options.check_choice(overwrite, skip_existing)
    plan = make_plan(source, target, lazy.listing.readable_pictures(), SUFFIX, as_json)
    if jobs > 1 and plan.is_folder:
        spec = lazy.bulk_tasks.Spec("encode", model, device, precision, options=asked)
        there = existing.coded if skip_existing else None
        return run(plan, parallel.in_processes(spec, jobs, there, overwrite), _line, as_json)
    session = functools.cache(lambda: open_codec(model, device, precision=precision))
    if not skip_existing or any(_is_due(job) for job in plan.jobs):
        session()  # here, since its errors are not those of a file
    with_bar = (effort > 0 or adapt_for is not None) and not plan.is_folder

    def work(job: Job) -> Result:
        facts = existing.coded(job) if skip_existing else None
        if facts is not None:
            return facts
        replace = overwrite or (skip_existing and existing.is_there(job.target))
        check_target(job, replace)
        codec = session()
        with share_done(with_bar) as progress:
            picture = sys.stdin.buffer if job.source == STANDARD else job.source
            encoded = codec.encode_detailed(picture, **asked, progress=progress)
        write_target(job.target, encoded.data, replace)
        if not encoded.target_reached:
            say("warning", f"{shown(job.source)}: {encoded.reason}")
        return encoded_facts(encoded, codec.model.name, asked)

    # One by one, though files of `encode_batch` are the same: how large a picture is shows when it has been read, what
    # is warned of would name it by its number, a job that is stopped would lose its batch, and what E gains is small.
    return run(plan, lambda jobs: (attempt(work, job) for job in jobs), _line, as_json)


def asked_of(*, adapt_for: str | None, importance: list[str] | None, **given: Any) -> dict[str, Any]:
    """Options as `Codec.encode_detailed` has them. Raises typer.BadParameter: they cannot be."""
    receivers = None if adapt_for is None else options.names(adapt_for)
    options.check_usage(
        lambda: check_options(
            {name: given[name] for name in ("bpp", "max_bytes", "psnr", "msssim", "quality")},
            **{name: given[name] for name in ("metric", "effort", "tile")},
            others={name: given[name] for name in ("max_seconds", "alpha_quality")},
            adapt_for=receivers,
            shown=options.flag,
        )
    )
    with errors_of(", ".join(importance or ())):
        found = options.importance_of(importance)
    return {**given, "adapt_for": receivers, "importance": found}


def _is_due(job: Job) -> bool:
    """Whether there is work to do for a job with --skip-existing; errors are told when it is the turn of that file."""
    return not isinstance(attempt(existing.coded, job), dict)


def _line(result: Result) -> str:
    gain = result["adaptation"].get("objective_gain_percent")
    quality = "lossless" if result["lossless"] else f"quality {result['quality']:.1f}"
    if result["colours"] is not None:
        quality = f"{result['colours']} colours"
    sets = [part["metric"] for part in result["receivers"] if part["patches"]]
    return (
        f"{result['width']}x{result['height']}, {result['size_bytes']} bytes, {result['bpp']:.4f} bpp, "
        f"{quality}, {result['seconds']['total']:.2f} s"
        + ("" if gain is None else f", adaptation worth {gain:.1f} % of the rate")
        + (f", sets for {', '.join(sets)}" if sets else "")
    )
