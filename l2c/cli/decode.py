"""`l2c decode`."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2c.cli import existing, lazy, options, parallel
from l2c.cli.batches import Batched, Opened
from l2c.cli.plan import L2C_FILES, Job, check_target, make_plan
from l2c.cli.report import Result
from l2c.cli.run import run
from l2c.cli.session import Reader
from l2c.cli.terminal import STANDARD, write_output
from l2c.codec.facts import decoded_facts

if TYPE_CHECKING:
    from l2c.codec import Decoded


def decode(
    source: Annotated[str, typer.Argument(metavar="IN", help="L2C file or folder; - for standard input.")],
    target: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Picture or folder (a name that ends in / is one); - for standard output."),
    ],
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    model: options.Model = None,
    metric: options.Receiver = None,
    mode: options.PictureMode = "original",
    format_: Annotated[
        str | None,
        typer.Option("--format", help="png, jpeg, ...  [default: the extension of OUT, else png]"),
    ] = None,
    quality: options.PictureQuality = None,
    flatten: options.Flatten = False,
    region: options.Region = None,
    scale: options.Scale = "1",
    conceal: options.Conceal = False,
    jobs: options.Jobs = 1,
    unlimited: options.Unlimited = False,
    overwrite: options.Overwrite = False,
    skip_existing: options.SkipExisting = False,
    as_json: options.Json = False,
) -> int:
    """Restore a picture, or every L2C file of a folder and those below it; what else it holds is named at the end."""
    options.check_choice(overwrite, skip_existing)
    view = options.view_of(metric, region, scale, conceal)
    plan = make_plan(source, target, L2C_FILES, "." + (format_ or "png").lower(), as_json)

    def there(job: Job) -> Result | None:
        return existing.restored(job, view["region"], view["scale"]) if skip_existing else None

    if jobs > 1 and plan.is_folder:
        asked = {**view, "mode": mode, "format": format_, "quality": quality, "flatten": flatten}
        spec = lazy.bulk_tasks.Spec("decode", model, device, precision, options={**asked, "unlimited": unlimited})
        return run(plan, parallel.in_processes(spec, jobs, there if skip_existing else None, overwrite), _line, as_json)
    reader = Reader(model, device, precision, unlimited=unlimited)

    def open_(job: Job) -> Opened | Result:
        facts = there(job)
        if facts is not None:
            return facts
        replace = overwrite or (skip_existing and existing.is_there(job.target))
        check_target(job, replace)
        if job.target != STANDARD:
            lazy.images.check_output_format(format_, Path(job.target))
        whole = region is None and not conceal
        return Opened.read(job, reader, replace) if whole else Opened.read_head(job, reader, replace)

    def together(files: Sequence[Opened]) -> list[Decoded]:
        return reader.session(files[0].stream).decode_batch_detailed([file.stream for file in files], **view)

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
        facts = decoded_facts(decoded, file.seconds, time.perf_counter() - started)
        return reader.facts(file.stream, file.size) | facts

    return run(plan, Batched(open_, together, save), _line, as_json)


def _line(result: Result) -> str:
    size = f"{result['shown_width']}x{result['shown_height']}"
    return f"{size}, {result['mode']}, {result['seconds']['total']:.2f} s"
