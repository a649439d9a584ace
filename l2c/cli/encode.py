"""`l2c encode`."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l2c.adapt.effort import MAX_EFFORT
from l2c.cli import existing, lazy, options
from l2c.cli.messages import say
from l2c.cli.plan import SUFFIX, Job, check_target, make_plan, write_target
from l2c.cli.progress import share_done
from l2c.cli.report import Result, file_facts, rounded
from l2c.cli.run import attempt, run
from l2c.cli.session import open_codec
from l2c.cli.terminal import STANDARD, shown
from l2c.codec.options import BEST_QUALITY, DEFAULT_QUALITY, DEFAULT_TILE, LOSSLESS, METADATA, check_options
from l2c.format.bitstream import TILE_SIZES, Limits, read_header
from l2c.format.levels import DEFAULT_METRIC, METRICS

if TYPE_CHECKING:
    from l2c.codec import Codec, Encoded


def encode(
    source: Annotated[str, typer.Argument(metavar="IN", help="Picture or folder; - for standard input.")],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="File or folder (a name that ends in / is one); - for standard output.")
    ],
    bpp: Annotated[float | None, typer.Option(help="Target in bits per pixel; never exceeded.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Target in bytes; never exceeded.")] = None,
    psnr: Annotated[float | None, typer.Option(help="Target in dB: the smallest file that reaches it.")] = None,
    msssim: Annotated[float | None, typer.Option(help="Target 0..1: the smallest file that reaches it.")] = None,
    quality: Annotated[
        float | None,
        typer.Option(min=0, max=BEST_QUALITY, help=f"Quality instead of a target.  [default: {DEFAULT_QUALITY:g}]"),
    ] = None,
    metric: options.Metric = DEFAULT_METRIC,
    adapt_for: Annotated[
        str | None,
        typer.Option(
            help="Also fit the decoder to these metrics, of which a receiver may choose (decode --metric).",
            metavar=f"<{','.join(METRICS)}>",
        ),
    ] = None,
    effort: Annotated[
        int,
        typer.Option(
            min=0,
            max=MAX_EFFORT,
            help=f"Work spent on adapting to the picture; {MAX_EFFORT} tries several qualities for a rate.",
        ),
    ] = 0,
    max_seconds: Annotated[float | None, typer.Option(help="End the adaptation after this time.")] = None,
    device: options.Device = "cpu",
    precision: options.Precision = "float32",
    model: options.Model = None,
    tile: Annotated[
        int, typer.Option(help=f"Side of a tile in pixels: {TILE_SIZES[0]}, {TILE_SIZES[1]}, ...")
    ] = DEFAULT_TILE,
    metadata: Annotated[
        str,
        options.one_of(
            METADATA,
            help="What is kept beside the pixels: all, the colour profile alone (no EXIF or XMP), or none.",
        ),
    ] = "all",
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="The same as --metadata none.")] = False,
    alpha_quality: Annotated[
        float | None,
        typer.Option(
            min=0, max=BEST_QUALITY, help="Alpha with loss; areas of 0 and 255 stay so.  [default: without loss]"
        ),
    ] = None,
    lossless: Annotated[
        str,
        options.one_of(LOSSLESS, help="auto: keep tiny and drawn pictures without loss where that is smaller."),
    ] = "auto",
    truncated: Annotated[
        bool, typer.Option("--truncated", help="Take what there is of pictures that are cut.")
    ] = False,
    overwrite: options.Overwrite = False,
    skip_existing: options.SkipExisting = False,
    as_json: options.Json = False,
) -> int:
    """Compress a picture, or every picture of a folder and those below it.

    What a folder holds besides pictures is left out and named at the end. HEIC and JPEG XL are read where the packages
    pillow-heif and pillow-jxl-plugin are installed. Hidden files and linked folders are left out.
    """
    goals = {"bpp": bpp, "max_bytes": max_bytes, "psnr": psnr, "msssim": msssim, "quality": quality}
    numbers = {"max_seconds": max_seconds, "alpha_quality": alpha_quality}
    receivers = None if adapt_for is None else options.names(adapt_for)
    options.check_usage(
        lambda: check_options(
            goals, metric=metric, effort=effort, tile=tile, others=numbers, adapt_for=receivers, shown=options.flag
        )
    )
    options.check_choice(overwrite, skip_existing)
    plan = make_plan(source, target, lazy.listing.readable_pictures(), SUFFIX, as_json)
    session = functools.cache(lambda: open_codec(model, device, precision=precision))
    if not skip_existing or any(_is_due(job) for job in plan.jobs):
        session()  # here, since its errors are not those of a file
    asked: dict[str, Any] = {
        **goals,
        **numbers,
        "metric": metric,
        "adapt_for": receivers,
        "effort": effort,
        "tile": tile,
        "metadata": "none" if no_metadata else metadata,
        "lossless": lossless,
        "truncated": truncated,
    }
    with_bar = (effort > 0 or receivers is not None) and not plan.is_folder

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
        return _facts(codec, encoded, asked)

    # One by one, though files of `encode_batch` are the same: how large a picture is shows when it has been read, what
    # is warned of would name it by its number, a job that is stopped would lose its batch, and what E gains is small.
    return run(plan, lambda jobs: (attempt(work, job) for job in jobs), _line, as_json)


def _is_due(job: Job) -> bool:
    """Whether there is work to do for a job with --skip-existing; errors are told when it is the turn of that file."""
    return not isinstance(attempt(existing.coded, job), dict)


def _facts(codec: Codec, encoded: Encoded, asked: dict[str, Any]) -> Result:
    return {
        **file_facts(len(encoded.data), read_header(encoded.data, Limits.unlimited())),
        "model": codec.model.name,
        "quality": encoded.quality,
        "lossless": encoded.lossless,
        "metric": asked["metric"],
        "effort": asked["effort"],
        **{f"target_{name}": asked[name] for name in ("bpp", "max_bytes", "psnr", "msssim")},
        "target_reached": encoded.target_reached,
        "reason": encoded.reason,
        "probes": encoded.probes,
        "corrections": encoded.corrections,
        "adaptation": {name: round(value, 6) for name, value in encoded.adaptation_as_dict().items()},
        "receivers": [part.as_dict() for part in encoded.receivers],
        "latents_sha256": encoded.latents_sha256,
        "seconds": rounded(encoded.seconds.as_dict()),
    }


def _line(result: Result) -> str:
    gain = result["adaptation"].get("objective_gain_percent")
    quality = "lossless" if result["lossless"] else f"quality {result['quality']:.1f}"
    sets = [part["metric"] for part in result["receivers"] if part["patches"]]
    return (
        f"{result['width']}x{result['height']}, {result['size_bytes']} bytes, {result['bpp']:.4f} bpp, "
        f"{quality}, {result['seconds']['total']:.2f} s"
        + ("" if gain is None else f", adaptation worth {gain:.1f} % of the rate")
        + (f", sets for {', '.join(sets)}" if sets else "")
    )
