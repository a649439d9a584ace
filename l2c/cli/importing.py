"""`l2c import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2c.cli import lazy, options
from l2c.cli.report import print_json


def import_checkpoints(
    sources: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Checkpoints of CompressAI, one for each quality.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="MODEL", help="Model file, .safetensors.")],
    quality: Annotated[
        int | None, typer.Option(min=1, max=8, help="Of a single checkpoint whose name does not say it.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What they were trained for, mse or ms-ssim, where their names do not say it.")
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(metavar="PICTURES", help="Show the entropy model these instead of pictures drawn by code."),
    ] = None,
    shared_decoder: Annotated[
        bool, typer.Option("--shared-decoder", help="One decoder for all qualities, to be trained (OML).")
    ] = False,
    rounding: Annotated[
        str | None,
        typer.Option(
            help="Of latents: from their mean, as CompressAI writes files, or whole, which --effort can search "
            "(mean, whole).  [default: mean for mbt2018-mean, else whole]"
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the networks in 16 bits.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> int:
    """Make a model of checkpoints that CompressAI trained: Minnen2018, Cheng2020 and their cousins.

    Qualities of one codec and of equal sizes go into one model, of which `--quality` then takes their numbers. Files of
    all versions of CompressAI are read; nothing in them is run.
    """
    if out.exists() and not overwrite:
        raise typer.BadParameter(f"{out} exists; --overwrite replaces it.", param_hint="--out")
    pictures = lazy.listing.list_pictures(*calibrate) if calibrate else None
    model = lazy.compressai.convert(
        sources, out, quality=quality, metric=metric, calibrate=pictures, shared_decoder=shared_decoder,
        stored="float16" if half else "float32", rounding=rounding,
    )  # fmt: skip
    transform = model.config.transform.to_mapping()
    result = {
        "model": model.name,
        "model_id": model.model_id.hex(),
        "path": str(out),
        "architecture": transform["architecture"],
        "qualities": list(transform["qualities"]),
        "size_bytes": out.stat().st_size,
    }
    if as_json:
        print_json(result)
    else:
        qualities = ", ".join(map(str, result["qualities"]))
        print(f"{out}: {result['architecture']}, qualities {qualities}, model {model.model_id.hex()}")
    return 0
