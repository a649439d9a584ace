"""`l2c decode`."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from l2c.cli import existing, lazy, options
from l2c.cli.batches import Batched, Opened
from l2c.cli.plan import L2C_FILES, Job, check_target, make_plan
from l2c.cli.report import Result, rounded
from l2c.cli.run import run
from l2c.cli.session import Reader
from l2c.cli.terminal import STANDARD, write_output
from l2c.codec.options import BEST_QUALITY, PICTURE_MODES, SCALES
from l2c.format.bitstream import section_name
from l2c.format.levels import METRICS

if TYPE_CHECKING:
    from l2c.codec import Decoded, Metric
    from l2c.codec.options import DecodeOptions, Region, Scale


def decode(
    source: Annotated[str, typer.Argument(metavar="IN", help="L2C file or folder; - for standard input.")],
    target: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Picture or folder (a name that ends in / is one); - for standard output."),
    ],
    device: options.Device = "cpu",
    precision: options.Precision = "float32",
    model: options.Model = None,
    metric: Annotated[
        str | None,
        options.one_of(
            list(METRICS),
            help="What it is to be best for, of what the file was adapted for.  [default: the file's own]",
        ),
    ] = None,
    mode: Annotated[
        str,
        options.one_of(PICTURE_MODES, help="original: grey as grey, and with alpha; rgb: three channels."),
    ] = "original",
    format_: Annotated[
        str | None,
        typer.Option("--format", help="png, jpeg, ...  [default: the extension of OUT, else png]"),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=0, max=BEST_QUALITY, help="Of a JPEG, WebP or AVIF file that is written.")
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(metavar="LEFT,TOP,RIGHT,BOTTOM", help="Pixels to decode, the last two just outside."),
    ] = None,
    scale: Annotated[str, options.one_of(list(map(str, SCALES)), help="Make the picture so many times smaller.")] = "1",
    conceal: Annotated[
        bool, typer.Option("--conceal", help="Fill in damaged tiles, and what a cut file lacks, instead of failing.")
    ] = False,
    flatten: Annotated[bool, typer.Option("--flatten", help="Lay alpha over white where the format has none.")] = False,
    unlimited: options.Unlimited = False,
    overwrite: options.Overwrite = False,
    skip_existing: options.SkipExisting = False,
    as_json: options.Json = False,
) -> int:
    """Restore a picture, or every L2C file of a folder and those below it; what else it holds is named at the end."""
    options.check_choice(overwrite, skip_existing)
    plan = make_plan(source, target, L2C_FILES, "." + (format_ or "png").lower(), as_json)
    reader = Reader(model, device, precision, unlimited=unlimited)
    area = options.numbers(region, int, "--region") if region is not None else None
    seen: DecodeOptions = {
        "metric": cast("Metric | None", metric),
        "region": cast("Region | None", area),
        "scale": cast("Scale", int(scale)),
        "damaged": "conceal" if conceal else "raise",
    }

    def open_(job: Job) -> Opened | Result:
        facts = existing.restored(job, area, int(scale)) if skip_existing else None
        if facts is not None:
            return facts
        replace = overwrite or (skip_existing and existing.is_there(job.target))
        check_target(job, replace)
        if job.target != STANDARD:
            lazy.images.check_output_format(format_, Path(job.target))
        part = area is not None or conceal
        return Opened.read_head(job, reader, replace) if part else Opened.read(job, reader, replace)

    def together(files: Sequence[Opened]) -> list[Decoded]:
        return reader.session(files[0].stream).decode_batch_detailed([file.stream for file in files], **seen)

    def save(file: Opened, decoded: Decoded) -> Result:
        started, target, picture = time.perf_counter(), file.job.target, decoded.picture
        buffer, original = io.BytesIO(), mode == "original"
        if target != STANDARD:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        lazy.images.save_picture(
            buffer if target == STANDARD else target,
            picture.rgb,
            alpha=picture.alpha if original else None,
            icc=picture.icc,
            exif=picture.exif,
            xmp=picture.xmp,
            dpi=picture.dpi,
            mode=picture.mode if original else "RGB",
            format=format_ or ("png" if target == STANDARD else None),
            quality=quality,
            flatten=flatten,
            overwrite=file.overwrite,
        )
        if target == STANDARD:
            write_output(buffer.getbuffer())
        seconds = {**decoded.seconds.as_dict(), "container": file.seconds, "save": time.perf_counter() - started}
        seconds["total"] = seconds.pop("total") + seconds["container"] + seconds["save"]
        result: Result = {
            "metric": decoded.metric,
            "latents_sha256": decoded.latents_sha256,
            "seconds": rounded(seconds),
        }
        if conceal:
            result["damaged_tiles"] = list(decoded.damaged_tiles)
            result["damaged_sections"] = [section_name(kind) for kind in decoded.damaged_sections]
        if area is not None or scale != "1":
            result["seen"] = {"width": picture.width, "height": picture.height}
        return reader.facts(file.stream, file.size) | result

    return run(plan, Batched(open_, together, save), _line, as_json)


def _line(result: Result) -> str:
    size = result.get("seen", result)
    return f"{size['width']}x{size['height']}, {result['mode']}, {result['seconds']['total']:.2f} s"
