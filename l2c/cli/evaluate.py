"""`l2c eval`, `l2c tables`, `l2c compare`."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from l2c.adapt.effort import MAX_EFFORT
from l2c.cli import lazy, options
from l2c.cli.messages import FAILED
from l2c.cli.progress import clear, tell
from l2c.cli.session import open_codec
from l2c.files import output_file, write_atomically
from l2c.format.levels import DEFAULT_METRIC, METRICS


def evaluate_folder(
    sources: Annotated[list[Path], typer.Argument(metavar="PICTURES...", help="Folders or picture files.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RECORD", help="Folder of the record.")],
    rates: Annotated[str, typer.Option(help="Target rates in bits per pixel.")] = "0.06,0.12,0.25,0.5,0.75,1,1.5,2",
    metrics: Annotated[str, typer.Option(help=f"What our files are optimised for: {', '.join(METRICS)}.")] = ",".join(
        METRICS
    ),
    efforts: Annotated[str, typer.Option(help=f"Effort levels of ours, 0..{MAX_EFFORT}.")] = "0",
    lossless: Annotated[
        str,
        typer.Option(help="Of ours: never (latents alone), auto (pixels where better), or both as two curves."),
    ] = "never",
    peers: Annotated[str, typer.Option(help="Other codecs, 'all' at hand or 'none'; see below.")] = "all",
    figures: Annotated[
        str, typer.Option(help="What is measured; see below.")
    ] = "psnr-rgb,psnr-y,ms-ssim-rgb,ms-ssim-y,vmaf",
    anchor: Annotated[
        str | None, typer.Option(help="Codec that BD-rates are against.  [default: the first peer]")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(help="Published curves: records/published/kodak.json, or a folder in CompressAI's layout."),
    ] = None,
    curves: Annotated[str, typer.Option(help="Published curves to show, by their names in that file.")] = "",
    peers_only: Annotated[bool, typer.Option("--peers-only", help="Leave our codec out.")] = False,
    every: Annotated[int, typer.Option(min=1, help="Take every so many-th picture.")] = 1,
    device: Annotated[str, typer.Option(help="Where our networks run: cpu, cuda, ...")] = "cpu",
    model: options.Model = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Another model of ours, by name or file; may be repeated."),
    ] = None,
) -> int:
    """Measure our codec and others on your own pictures at equal rates: real files, decoded again.

    RECORD gets rows.jsonl (a line for each file), results/CODEC.json (mean curves in CompressAI's layout), results.csv,
    report.md with BD-rates, and plots of each figure against the rate and of BD-rates against time. A stopped run goes
    on where it was.

    \b
    Peers:   jpeg, mozjpeg, jpeg2000, webp, avif, jxl, hevc (x265), av1 (libaom), vvc (vvenc, 4:2:0); all intra
    Figures: psnr-rgb, psnr-y, ms-ssim-rgb, ms-ssim-y, vmaf, vmaf-neg, ssimulacra2, butteraugli (3-norm; needs libjxl's
             butteraugli_main); Y is BT.709 with full range
    """
    plan = lazy.run.Plan(
        pictures=lazy.listing.list_pictures(*sources)[::every],
        rates=options.numbers(rates, float, "--rates"),
        metrics=options.names(metrics),
        efforts=options.numbers(efforts, int, "--efforts"),
        peers=options.names(peers),
        figures=tuple(options.names(figures)),
        lossless=options.names(lossless),
    )
    codec = open_codec(model, device)
    others = [open_codec(other, device) for other in beside or ()]
    outcome = lazy.run.evaluate(codec, plan, out, tell, peers_only=peers_only, beside=others)
    clear()
    for what, why in outcome.failures:
        print(f"warning: {what}: {why}", file=sys.stderr)
    text = lazy.run.report(outcome, out, plan, anchor, published, options.names(curves))
    print(text, end="")
    print(f"\n{outcome.measured} files measured now, {outcome.known} known from before; record in {out}")
    return FAILED if outcome.failures else 0


def papers_tables(
    sources: Annotated[list[Path], typer.Argument(metavar="PICTURES...", help="Folders or picture files.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RECORD", help="Folder of the record.")],
    parts: Annotated[str, typer.Option(help="Which: I, II, III (L2C), fig4, fig5 (OML).")] = "I,III,fig4,fig5",
    rates: Annotated[str, typer.Option(help="Target rates in bits per pixel.")] = "0.06,0.12,0.25,0.5,0.75,1,1.5,2",
    examples: Annotated[int, typer.Option(min=1, help="Pictures shown in Table I and measured for fig5.")] = 4,
    effort: Annotated[int, typer.Option(min=0, max=MAX_EFFORT, help="Effort level of Table I.")] = 4,
    metric: Annotated[
        str, typer.Option(help=f"What Tables I and II are optimised for: {', '.join(METRICS)}.")
    ] = DEFAULT_METRIC,
    meta: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table II: checkpoint of the training stage meta.")
    ] = None,
    control: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table II: the same with --set meta.order=0.")
    ] = None,
    crop: Annotated[
        int, typer.Option(min=64, metavar="PIXELS", help="Table II: side of the pictures' centres, a multiple of 64.")
    ] = 256,
    every: Annotated[int, typer.Option(min=1, help="Take every so many-th picture.")] = 1,
    device: Annotated[str, typer.Option(help="Where our networks run: cpu, cuda, ...")] = "cpu",
    model: options.Model = None,
    own: Annotated[
        str | None, typer.Option(metavar="MODEL", help="fig4: the same encoders, with decoders of their own.")
    ] = None,
) -> int:
    """The tables of L2C and figures 4 and 5 of OML on your own pictures: the papers' numbers beside ours.

    RECORD gets tables.md, the figures and a line for each file; a stopped run goes on where it was. It may be that of
    `l2c eval`: files of the same metric and effort then count in Table I. Table II needs --meta and --control.
    """
    tables = lazy.tables.Tables(
        open_codec(model, device),
        lazy.listing.list_pictures(*sources)[::every],
        out,
        options.numbers(rates, float, "--rates"),
        examples,
        effort,
        metric,
        tell,
        crop=crop,
        own=None if own is None else open_codec(own, device),
    )
    text = lazy.tables.write_tables(tables, options.names(parts), meta, control)
    clear()
    print(text, end="")
    return FAILED if tables.failures else 0


def compare_files(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL", help="The picture that was encoded.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="L2C files of it.")],
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="PAGE", help="The page, or a folder (a name that ends in / is one)."),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", "-f", help="Replace a page that exists.")] = False,
    device: Annotated[str, typer.Option(help="Where the networks run: cpu, cuda, ...")] = "cpu",
    model: options.Model = None,
) -> int:
    """Write one HTML page that compares files with their original: a border to drag, zoom, maps of the error, of the
    bits and of what was adapted, and the figures. It needs no network and nothing beside it.
    """
    target = Path(output_file(out, str(original), ".html"))
    if target.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already; --overwrite replaces it", str(target))
    page = lazy.compare.compare(original, files, open_codec(model, device))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page.encode(errors="replace"))
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return 0
