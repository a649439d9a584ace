"""The command `l2c`: parses arguments, calls the codec, prints what happened.

Read first: results go to standard output (with `--json` one JSON object, or a list for a folder); errors,
warnings and progress go to standard error, one line each. torch loads inside the commands that need it, so
that `--help`, `--version` and `info` answer at once.
"""

from __future__ import annotations

import codecs
import errno
import functools
import io
import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from l2c.errors import BackendError, BitstreamError, L2CError, ModelMismatchError, RateError
from l2c.evaluate.commands import compare_files, evaluate_folder, papers_tables
from l2c.files import (
    LeftOut,
    Wanted,
    find_files,
    first_bytes,
    names_folder,
    output_file,
    output_names,
    summary,
    write_atomically,
)
from l2c.format.bitstream import (
    ADAPT,
    MAGIC,
    MIN_TILE_SIZE,
    VERSION,
    Bitstream,
    FileIndex,
    Limits,
    read_bitstream,
    read_header,
    section_name,
)
from l2c.format.levels import DEFAULT_METRIC, metric_name
from l2c.train.commands import app as train_app

if TYPE_CHECKING:
    from l2c.codec import Codec
    from l2c.images import Picture
    from l2c.models import Model

Result: TypeAlias = dict[str, Any]

FAILED, USAGE, DAMAGED, NOT_AT_HAND, RATE, INTERRUPTED = 1, 2, 3, 4, 5, 130
_EXIT_CODES = """
\b
Exit codes:
  0    done
  1    failed for any other reason; for a folder: at least one file failed, or was left out
       although it is a picture (for decode and verify: an L2C file)
  2    wrong usage
  3    not an L2C file, or a damaged one
  4    the model, the device or the compiled extension is not at hand
  5    the rate asked for is below what the picture can reach
  130  interrupted

\b
Environment:
  L2C_MODEL_PATH  files and folders with further models, separated like PATH
  L2C_DEBUG=1     show tracebacks, as --debug does
"""
_STANDARD = "-"
_SUFFIX = ".l2c"
_HEAD_BYTES = 1 << 16
# typer carries click inside itself from 0.16 on, so the base class of its errors is only reached this way.
_UsageError: type[Any] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

app = typer.Typer(
    name="l2c",
    help="Compress pictures with the learned codec L2C, and restore them.",
    epilog=_EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="eval", short_help="Measure codecs on your pictures.")(evaluate_folder)
app.command(name="tables", short_help="The papers' tables on your pictures.")(papers_tables)
app.command(name="compare", short_help="Write a page that compares files.")(compare_files)
app.add_typer(train_app)
_debug = False


class Metric(str, Enum):
    """`levels.METRICS`, for the command line."""

    psnr = "psnr"
    mixed = "mixed"
    msssim = "msssim"


class Metadata(str, Enum):
    """What is kept beside the pixels, see `images.keep`."""

    all = "all"
    color = "color"
    none = "none"


class Mode(str, Enum):
    """What a decoded picture looks like."""

    original = "original"
    rgb = "rgb"


class Precision(str, Enum):
    """Floating-point format of E and D."""

    float32 = "float32"
    bfloat16 = "bfloat16"


DeviceOption = Annotated[str, typer.Option(help="Where the networks run: cpu, cuda, cuda:1, ...")]
PrecisionOption = Annotated[
    Precision,
    typer.Option(help="Of the networks. bfloat16 is faster on newer machines; pixels move by about a level."),
]
MetricOption = Annotated[
    Metric,
    typer.Option(help="What bits are spent on: mixed, for eyes (luma and its structure); psnr and msssim, of RGB."),
]
ModelOption = Annotated[str | None, typer.Option(help="Name or file of the model.", metavar="NAME|FILE")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-existing", help="Leave files alone whose output is there and whole: goes on with a stopped job."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", "-f", help="Replace files that exist.")]
UnlimitedOption = Annotated[bool, typer.Option("--unlimited", help="Accept any size that a file names.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (see `l2c --help`) and never raises for bad input.

    Args:
        arguments: without the program's name; None: those of this process.
    """
    given = None if arguments is None else list(arguments)
    # Python sets a stream to None that was closed when the process started (`>&-`). Writing results must fail then,
    # so standard output becomes a file that can only be read.
    sys.stdin, sys.stdout, sys.stderr = (
        open(os.devnull, mode) if stream is None else stream  # noqa: SIM115 (open as long as the process is)
        for stream, mode in ((sys.stdin, "r"), (sys.stdout, "r"), (sys.stderr, "w"))
    )
    for stream in (sys.stdout, sys.stderr):
        _print_anything(stream)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = app(args=given, prog_name="l2c", standalone_mode=False)
            sys.stdout.flush()
            if code == INTERRUPTED:  # newer versions of typer return it
                _say("error", "interrupted")
            return code if isinstance(code, int) else 0
        except _UsageError as error:
            _say("error", error.format_message())
            return USAGE
        except (KeyboardInterrupt, typer.Abort):
            _say("error", "interrupted")
            return INTERRUPTED
        except BrokenPipeError:
            # The reader has left; Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return FAILED
        except Exception as error:
            _say("error", _message(error))
            return _exit_code(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        from l2c import __version__

        print(f"l2c {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="L2C_DEBUG", help="Show tracebacks.")] = False,
) -> None:
    global _debug
    _debug = debug
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE)


@app.command(short_help="Compress a picture, or a folder of them.")
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
        float | None, typer.Option(min=0, max=100, help="Quality instead of a target.  [default: 50]")
    ] = None,
    metric: MetricOption = Metric(DEFAULT_METRIC),
    effort: Annotated[
        int,
        typer.Option(min=0, max=9, help="Work spent on adapting to the picture; 9 tries several qualities for a rate."),
    ] = 0,
    max_seconds: Annotated[float | None, typer.Option(help="End the adaptation after this time.")] = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = Precision.float32,
    model: ModelOption = None,
    tile: Annotated[int, typer.Option(help="Side of a tile in pixels: 512, 1024, ...")] = 1024,
    metadata: Annotated[
        Metadata,
        typer.Option(help="What is kept beside the pixels: all, the colour profile alone (no EXIF or XMP), or none."),
    ] = Metadata.all,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="The same as --metadata none.")] = False,
    alpha_quality: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Alpha with loss; areas of 0 and 255 stay so.  [default: without loss]"),
    ] = None,
    truncated: Annotated[
        bool, typer.Option("--truncated", help="Take what there is of pictures that are cut.")
    ] = False,
    overwrite: OverwriteOption = False,
    skip_existing: SkipOption = False,
    as_json: JsonOption = False,
) -> int:
    """Compress a picture, or every picture of a folder and those below it.

    What a folder holds besides pictures is left out and named at the end. HEIC and JPEG XL are read where the packages
    pillow-heif and pillow-jxl-plugin are installed. Hidden files and linked folders are left out.
    """
    from l2c.images.listing import readable_pictures

    goals = {"bpp": bpp, "max-bytes": max_bytes, "psnr": psnr, "msssim": msssim, "quality": quality}
    given = {name: value for name, value in goals.items() if value is not None}
    if len(given) > 1:
        raise typer.BadParameter(f"give --{' or --'.join(given)}, not both")
    for name, value in (*given.items(), *(() if max_seconds is None else (("max-seconds", max_seconds),))):
        if name != "quality" and not 0 < value < float("inf"):
            raise typer.BadParameter(f"--{name} is {value:g}: it must be a positive number")
    if msssim is not None and msssim >= 1:
        raise typer.BadParameter(f"--msssim is {msssim:g}: it must lie between 0 and 1")
    if tile not in {MIN_TILE_SIZE << k for k in range(16)}:
        raise typer.BadParameter(f"--tile is {tile}: it must be 512, 1024, 2048, ... up to {MIN_TILE_SIZE << 15}")
    _check_choice(overwrite, skip_existing)
    plan = _plan(source, target, readable_pictures(), _SUFFIX, as_json)
    whole = source

    @functools.cache
    def loaded() -> Codec:
        from l2c.codec import Codec
        from l2c.models import DEFAULT_MODEL

        return Codec(model or DEFAULT_MODEL, device, precision=precision.value)

    due = not skip_existing
    for _, output in plan.jobs if skip_existing else ():
        try:
            due = due or _is_coded(output) is None
        except (L2CError, OSError):  # told when it is the turn of that file
            due = True
    if due:
        loaded()  # here, since its errors are not those of a file

    def work(source: str, target: str) -> Result:
        replace = overwrite
        if skip_existing and _is_there(target):
            facts = _is_coded(target)
            if facts is not None:
                return facts
            replace = True
        _check_target(source, target, replace)
        codec = loaded()
        with _share_done(not _is_folder(whole) and effort > 0) as progress:
            encoded = codec.encode_detailed(
                sys.stdin.buffer if source == _STANDARD else source,
                bpp=bpp,
                max_bytes=max_bytes,
                psnr=psnr,
                msssim=msssim,
                quality=quality,
                metric=metric.value,
                effort=effort,
                tile=tile,
                metadata="none" if no_metadata else metadata.value,
                alpha_quality=alpha_quality,
                truncated=truncated,
                max_seconds=max_seconds,
                progress=progress,
            )
        _write(target, encoded.data, replace)
        if not encoded.target_reached:
            _say("warning", f"{_shown(source)}: {encoded.reason}")
        return {
            **_file_facts(len(encoded.data), read_header(encoded.data, Limits.unlimited())),
            "model": codec.model.name,
            "quality": encoded.quality,
            "metric": metric.value,
            "effort": effort,
            "target_bpp": bpp,
            **{f"target_{name.replace('-', '_')}": goals[name] for name in ("max-bytes", "psnr", "msssim")},
            "target_reached": encoded.target_reached,
            "reason": encoded.reason,
            "probes": encoded.probes,
            "corrections": encoded.corrections,
            "adaptation": {name: round(value, 6) for name, value in encoded.adaptation.items()},
            "latents_sha256": encoded.latents_sha256,
            "seconds": _rounded(encoded.seconds),
        }

    def line(result: Result) -> str:
        gain = result["adaptation"].get("objective_gain_percent")
        return (
            f"{result['width']}x{result['height']}, {result['size_bytes']} bytes, {result['bpp']:.4f} bpp, "
            f"quality {result['quality']:.1f}, {result['seconds']['total']:.2f} s"
            + ("" if gain is None else f", adaptation worth {gain:.1f} % of the rate")
        )

    return _run(plan, work, line, as_json, folder=_is_folder(source))


@app.command(short_help="Restore a picture, or a folder of them.")
def decode(
    source: Annotated[str, typer.Argument(metavar="IN", help="L2C file or folder; - for standard input.")],
    target: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Picture or folder (a name that ends in / is one); - for standard output."),
    ],
    device: DeviceOption = "cpu",
    precision: PrecisionOption = Precision.float32,
    model: ModelOption = None,
    mode: Annotated[
        Mode, typer.Option(help="original: grey as grey, and with alpha; rgb: three channels.")
    ] = Mode.original,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="png, jpeg, ...  [default: the extension of OUT, else png]"),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=0, max=100, help="Of a JPEG, WebP or AVIF file that is written.")
    ] = None,
    flatten: Annotated[bool, typer.Option("--flatten", help="Lay alpha over white where the format has none.")] = False,
    unlimited: UnlimitedOption = False,
    overwrite: OverwriteOption = False,
    skip_existing: SkipOption = False,
    as_json: JsonOption = False,
) -> int:
    """Restore a picture, or every L2C file of a folder and those below it; what else it holds is named at the end."""
    _check_choice(overwrite, skip_existing)
    plan = _plan(source, target, _L2C_FILES, "." + (format_ or "png").lower(), as_json)
    decoders = _Decoders(device, model, Limits.unlimited() if unlimited else Limits(), precision.value)

    def work(source: str, target: str) -> Result:
        from l2c.images import check_output_format, save_picture

        replace = overwrite
        if skip_existing and _is_there(target):
            facts = _is_restored(source, target)
            if facts is not None:
                return facts
            replace = True
        _check_target(source, target, replace)
        if target != _STANDARD:
            check_output_format(format_, Path(target))
        data = _read(source)
        picture, facts = decoders.decode(data)
        started = time.perf_counter()
        buffer = io.BytesIO()
        original = mode is Mode.original
        if target != _STANDARD:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        save_picture(
            buffer if target == _STANDARD else target,
            picture.rgb,
            alpha=picture.alpha if original else None,
            icc=picture.icc,
            exif=picture.exif,
            xmp=picture.xmp,
            dpi=picture.dpi,
            mode=picture.mode if original else "RGB",
            format=format_ or ("png" if target == _STANDARD else None),
            quality=quality,
            flatten=flatten,
            overwrite=replace,
        )
        if target == _STANDARD:
            _write(target, buffer.getbuffer(), replace)
        seconds = facts["seconds"]
        seconds["save"] = time.perf_counter() - started
        seconds["total"] += seconds["save"]
        return {**facts, "seconds": _rounded(seconds)}

    def line(result: Result) -> str:
        return f"{result['width']}x{result['height']}, {result['mode']}, {result['seconds']['total']:.2f} s"

    return _run(plan, work, line, as_json, folder=_is_folder(source))


@app.command(short_help="Show what a file's head says.")
def info(
    source: Annotated[str, typer.Argument(metavar="FILE", help="L2C file; - for standard input.")],
    as_json: JsonOption = False,
) -> int:
    """Show what a file's head says and the size of each part; needs no model."""
    with _errors_of(source):
        data = _read(source)
        stream = read_bitstream(data, Limits.unlimited(), damaged="report")
    index = stream.index
    header = index.header
    result = {
        "input": source,
        **_file_facts(len(data), index),
        "format_version": VERSION,
        "bit_depth": header.bit_depth,
        "quality": header.quality / 10,
        "metric_mix": header.metric_mix,
        "latent_bits": header.latent_bits,
        "latents_crc32": f"{header.latents_crc32:08x}",
        "tile_size": header.tile_size,
        "tile_rows": header.tile_rows,
        "tile_columns": header.tile_columns,
        "parts": index.part_sizes(),
        "sections": [
            {
                "type": part.type,
                "name": part.name,
                "offset": part.offset,
                "size": part.size,
                "crc32": f"{part.crc32:08x}",
            }
            for part in index.sections
        ],
        "tiles": [
            {
                "top": box.top,
                "left": box.left,
                "height": box.height,
                "width": box.width,
                "offset": tile.offset,
                "size": tile.size,
                "channels": tile.channels,
                "crc32": f"{tile.crc32:08x}",
            }
            for tile, box in zip(index.tiles, map(header.tile_box, range(header.tile_count)))
        ],
        "adaptation": _adaptation_facts(stream),
        "damaged_sections": [section_name(type_) for type_ in stream.damaged_sections],
        "damaged_tiles": list(stream.damaged_tiles),
    }
    if as_json:
        _print_json(result)
    else:
        _print_info(result)
    damaged = result["damaged_sections"] + [f"tile {number}" for number in stream.damaged_tiles]
    if damaged:
        _say("error", f"{_shown(source)}: damaged or cut off: {', '.join(damaged)}")
        return DAMAGED
    return 0


@app.command(short_help="Check a file, print its latents' SHA-256.")
def verify(
    source: Annotated[str, typer.Argument(metavar="FILE", help="L2C file or folder; - for standard input.")],
    device: DeviceOption = "cpu",
    model: ModelOption = None,
    unlimited: UnlimitedOption = False,
    as_json: JsonOption = False,
) -> int:
    """Check every section of a file, decode its latents and print their SHA-256."""
    plan = _plan(source, None, _L2C_FILES, "", as_json)
    decoders = _Decoders(device, model, Limits.unlimited() if unlimited else Limits())
    return _run(
        plan,
        lambda source, _: decoders.verify(_read(source)),
        lambda result: f"latents_sha256 {result['latents_sha256']}",
        as_json,
        folder=_is_folder(source),
    )


@app.command(short_help="List the models at hand.")
def models(as_json: JsonOption = False) -> int:
    """List the models at hand: those that ship with L2C, then those of L2C_MODEL_PATH."""
    from l2c.models import DEFAULT_MODEL, load_model, model_files

    results: list[Result] = []
    code = 0
    for path in model_files():
        try:
            results.append(_model_facts(load_model(path)))
        except L2CError as error:
            _say("error", _message(error))
            code = FAILED
    if not results:
        _say("warning", "no model is at hand; name a file with --model or add its folder to L2C_MODEL_PATH")
    if as_json:
        _print_json(results)
        return code
    rows = [("NAME", "ID", "MB", "PARAMETERS", "E+I kMAC/px", "D kMAC/px", "PATH")]
    for facts in results:
        rows.append(
            (
                facts["name"] + (" (default)" if facts["name"] == DEFAULT_MODEL else ""),
                facts["model_id"],
                f"{facts['size_bytes'] / 1e6:.1f}",
                f"{sum(facts['parameters'].values()) / 1e6:.2f} M",
                f"{facts['kmac_per_pixel']['encoder']:.1f}",
                f"{facts['kmac_per_pixel']['decoder']:.1f}",
                facts["path"],
            )
        )
    if results:
        _print_rows(rows)
    return code


@app.command(short_help="Measure how fast this machine is.")
def bench(
    source: Annotated[
        str | None, typer.Argument(metavar="[IN]", help="Picture.  [default: a drawn one, 768x512]")
    ] = None,
    quality: Annotated[float, typer.Option(min=0, max=100, help="Quality to encode at.")] = 50,
    metric: MetricOption = Metric(DEFAULT_METRIC),
    repeats: Annotated[int, typer.Option(min=1, help="Runs of which the median is shown.")] = 5,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = Precision.float32,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> int:
    """Measure how fast this machine encodes and decodes one picture: medians per stage."""
    import torch

    from l2c.codec import Codec
    from l2c.devices import cpu_name
    from l2c.images import load_picture
    from l2c.models import DEFAULT_MODEL

    codec = Codec(model or DEFAULT_MODEL, device, precision=precision.value)
    if source is None:
        pixels = _drawn_picture(768, 512)
    else:
        with _errors_of(source):
            pixels = load_picture(sys.stdin.buffer if source == _STANDARD else source).rgb
    codec.decode(codec.encode(pixels, quality=quality, metric=metric.value))  # loads, packs and warms everything up
    encode_runs, decode_runs = [], []
    for _ in range(repeats):
        encoded = codec.encode_detailed(pixels, quality=quality, metric=metric.value)
        encode_runs.append(encoded.seconds)
        decoded = codec.decode_detailed(encoded.data)
        decode_runs.append(decoded.seconds)
        if decoded.latents_sha256 != encoded.latents_sha256:
            raise BitstreamError("the decoded latents are not the ones that were encoded")
    megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
    result = {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "bpp": encoded.bpp,
        "quality": quality,
        "metric": metric.value,
        "repeats": repeats,
        "model": codec.model.name,
        "model_id": codec.model.model_id.hex(),
        "device": str(codec.device),
        "backend": codec.backend,
        "precision": codec.precision,
        "machine": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "encode_seconds": _medians(encode_runs),
        "decode_seconds": _medians(decode_runs),
    }
    if as_json:
        _print_json(result)
        return 0
    print(
        f"{result['width']}x{result['height']}, {encoded.bpp:.3f} bpp, model {codec.model.name}, "
        f"{codec.device}, {result['threads']} threads, {result['machine']}"
    )
    rows = [("", "STAGE", "SECONDS", "MPIXEL/S")]
    for name in ("encode", "decode"):
        stages: dict[str, float] = result[f"{name}_seconds"]
        ran = {stage: seconds for stage, seconds in stages.items() if seconds > 0}
        rows += [(name, stage, f"{seconds:.4f}", f"{megapixels / seconds:.2f}") for stage, seconds in ran.items()]
    _print_rows(rows)
    return 0


class _Decoders:
    """Codecs by the model that a file names, each loaded once.

    Files are checked before any model is loaded, so a damaged one costs no time.
    """

    def __init__(self, device: str, model: str | None, limits: Limits, precision: str = "float32") -> None:
        self.device = device
        self.precision = precision
        self.model = model
        self.limits = limits
        self.codecs: dict[bytes, Codec] = {}

    def decode(self, data: bytes) -> tuple[Picture, Result]:
        """The picture of a file with its facts; raises as `Codec.decode`."""
        index = read_bitstream(data, self.limits).index
        codec = self._codec(index.header.model_id)
        decoded = codec.decode_detailed(data)
        facts = {
            **_file_facts(len(data), index),
            "model": codec.model.name,
            "quality": index.header.quality / 10,
            "latents_sha256": decoded.latents_sha256,
            "seconds": _rounded(decoded.seconds),
        }
        return decoded.picture, facts

    def verify(self, data: bytes) -> Result:
        """Facts of a file whose every part was decoded but for D; raises as `Codec.decode`."""
        started = time.perf_counter()
        index = read_bitstream(data, self.limits).index
        codec = self._codec(index.header.model_id)
        loaded = time.perf_counter()
        digest = codec.verify(data)
        ended = time.perf_counter()
        return {
            **_file_facts(len(data), index),
            "model": codec.model.name,
            "quality": index.header.quality / 10,
            "parts": index.part_sizes(),
            "latents_sha256": digest,
            "seconds": _rounded({"load": loaded - started, "entropy": ended - loaded, "total": ended - started}),
        }

    def _codec(self, wanted: bytes) -> Codec:
        from l2c.codec import Codec
        from l2c.models import find_model, load_model

        if self.model is not None and not self.codecs:
            named = load_model(self.model)
            self.codecs[named.model_id] = Codec(named, self.device, precision=self.precision, limits=self.limits)
        if wanted not in self.codecs:
            self.codecs[wanted] = Codec(find_model(wanted), self.device, precision=self.precision, limits=self.limits)
        return self.codecs[wanted]


class _L2CFiles(Wanted):
    def disguised(self, path: str) -> str:
        return "L2C" if first_bytes(path, len(MAGIC)) == MAGIC else ""


_L2C_FILES = _L2CFiles("L2C file", frozenset({_SUFFIX}))


@dataclass
class _Plan:
    """(input, output) of every file to work on, and what is left out of a folder."""

    jobs: list[tuple[str, str]]
    left_out: list[LeftOut] = field(default_factory=list)
    root: str = ""


def _plan(source: str, target: str | None, wanted: Wanted, suffix: str, as_json: bool) -> _Plan:
    """What there is to do.

    A folder's files keep their place below OUT and get `suffix` instead of their own extension; where two
    would meet (a.png, a.jpg), each keeps its own as well (a.png.l2c, a.jpg.l2c). An OUT that ends in / is a folder,
    where a single file gets its own name with `suffix`.

    Raises:
        OSError: the input does not exist, the folder holds nothing to work on, or OUT is a file where a
            folder is needed (or the reverse).
    """
    if target == _STANDARD and as_json:
        raise typer.BadParameter("--json needs standard output for itself: name a file as OUT")
    if not _is_folder(source):
        if source != _STANDARD and not os.path.lexists(source):
            raise FileNotFoundError(errno.ENOENT, "no such file or folder", source)
        if source != _STANDARD and not os.path.exists(source):
            raise FileNotFoundError(errno.ENOENT, "is a link that leads nowhere", source)
        if target is not None and target != _STANDARD:
            if source == _STANDARD and names_folder(target):
                raise typer.BadParameter(f"{target} is a folder: name the file that standard input becomes")
            target = output_file(target, source, suffix)
        return _Plan([(source, target or "")])
    if target == _STANDARD:
        raise typer.BadParameter("a folder cannot be written to standard output")
    files, left_out = find_files(source, wanted)
    if not files:
        why = f"no file in it ends in {_listing(wanted.suffixes)}"
        raise FileNotFoundError(errno.ENOENT, why + (f"; {summary(left_out, source)}" if left_out else ""), source)
    root = Path(source)
    if target is None:
        return _Plan([(str(root / path), "") for path in files], left_out, source)
    if os.path.exists(target) and not os.path.isdir(target):
        raise NotADirectoryError(errno.ENOTDIR, "is a file, and the input is a folder", target)
    names = output_names(files, suffix)
    jobs = [(str(root / path), str(Path(target) / name)) for path, name in zip(files, names)]
    return _Plan(jobs, left_out, source)


def _run(
    plan: _Plan,
    work: Callable[[str, str], Result],
    line: Callable[[Result], str],
    as_json: bool,
    *,
    folder: bool,
) -> int:
    """Work on every file; one that fails is reported and does not stop the others. Returns the exit code.

    An interruption passes through after what was done until then is told.
    """
    results: list[Result] = []
    codes: list[int] = []
    started = time.perf_counter()
    stopped = False
    for part in plan.left_out:
        if part.fails:
            _say("error", f"{part.path}: {part.reason}: left out")
            codes.append(FAILED)
    try:
        with _progress(len(plan.jobs), folder) as advance:
            for source, target in plan.jobs:
                results.append(_worked(source, target, work, codes))
                advance()
    except KeyboardInterrupt:
        if not folder:
            raise
        stopped = True
    if as_json:
        named = [
            {"input": part.path, "left_out": part.reason}
            | ({"error": f"{part.path}: {part.reason}", "error_type": "LeftOut"} if part.fails else {})
            for part in plan.left_out
        ]
        _print_json(results + named if folder else results[0])
    else:
        # Standard output may be where the file went.
        out = sys.stderr if any(target == _STANDARD for _, target in plan.jobs) else sys.stdout
        for result in results:
            if "error" not in result:
                places = _shown(result["input"])
                if "output" in result:
                    places += f" -> {_shown(result['output'], '<stdout>')}"
                how = "is there already" if result.get("skipped") else line(result)
                print(_printable(f"{places}: {how}"), file=out)
        if folder:
            print(_printable(_total(results, plan, time.perf_counter() - started, stopped)), file=out)
    if stopped:
        raise KeyboardInterrupt
    if folder:
        return FAILED if codes else 0
    return codes[0] if codes else 0


def _worked(source: str, target: str, work: Callable[[str, str], Result], codes: list[int]) -> Result:
    """The result of one file; where it fails, the error in words, and its exit code added to `codes`."""
    result: Result = {"input": source}
    if target:
        result["output"] = target
    try:
        result |= work(source, target)
    except Exception as error:
        message = _message(error, _shown(source))
        _say("error", message)
        codes.append(_exit_code(error))
        result |= {"error": message, "error_type": type(error).__name__}
        if isinstance(error, RateError):
            result["least_bpp"] = error.least_bpp
        if isinstance(error, ModelMismatchError):
            result["model_id"] = error.wanted
    return result


def _total(results: list[Result], plan: _Plan, seconds: float, stopped: bool) -> str:
    """The last line of a folder's run."""
    done = [result for result in results if "error" not in result]
    skipped = sum(bool(result.get("skipped")) for result in done)
    size = sum(result["size_bytes"] for result in done)
    pixels = sum(result["width"] * result["height"] for result in done)
    parts = [f"{len(done)} of {len(plan.jobs)} files"]
    if skipped:
        parts.append(f"{skipped} of them there already")
    parts.append(f"{size} bytes" + (f", {8 * size / pixels:.4f} bpp" if pixels else ""))
    parts.append(f"{seconds:.1f} s")
    text = ", ".join(parts)
    if plan.left_out:
        text += f"; {summary(plan.left_out, plan.root)}"
    if stopped:
        text += "; stopped, --skip-existing goes on from here"
    return text


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error if that is a terminal; yields what to call after every file."""
    if not (shown and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


@contextmanager
def _share_done(shown: bool) -> Iterator[Callable[[float, str], None] | None]:
    """A bar for one long encode on standard error if that is a terminal; yields what the codec calls."""
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda share, stage: progress.update(task, completed=share, description=stage)


@contextmanager
def _errors_of(source: str) -> Iterator[None]:
    """Report what fails inside as an error of this file, and leave with its exit code."""
    try:
        yield
    except Exception as error:
        _say("error", _message(error, _shown(source)))
        raise typer.Exit(_exit_code(error)) from None


def _is_folder(source: str) -> bool:
    return source != _STANDARD and os.path.isdir(source)


def _listing(suffixes: frozenset[str]) -> str:
    return f"{', '.join(sorted(suffixes)[:4])}{', ...' if len(suffixes) > 4 else ''}"


def _shown(place: str, standard: str = "<stdin>") -> str:
    return place if place != _STANDARD else standard


def _read(source: str) -> bytes:
    return sys.stdin.buffer.read() if source == _STANDARD else Path(source).read_bytes()


def _check_choice(overwrite: bool, skip_existing: bool) -> None:
    if overwrite and skip_existing:
        raise typer.BadParameter("give --overwrite or --skip-existing, not both")


def _is_there(target: str) -> bool:
    return target != _STANDARD and os.path.isfile(target)


def _is_coded(target: str) -> Result | None:
    """Facts of an output that is there and whole, as far as its head and its size tell; else None.

    Raises:
        UnsupportedError: a file of another version of the format, which is not to be replaced unasked.
    """
    found = _head_of(target) if _is_there(target) else None
    return None if found is None else {**found, "skipped": True}


def _is_restored(source: str, target: str) -> Result | None:
    """Facts of an L2C file whose picture is there, of the right size as far as its head tells; else None."""
    from PIL import Image

    facts = _head_of(source) if source != _STANDARD else None
    if facts is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures; nothing is decoded here
            with Image.open(target) as image:
                size = image.size
    except Exception:  # no picture, or half of one: it is made again
        return None
    return {**facts, "skipped": True} if size == (facts["width"], facts["height"]) else None


def _head_of(path: str) -> Result | None:
    """`_file_facts` of an L2C file that is as long as its head says; None: it is none, or not whole."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(_HEAD_BYTES)
        try:
            try:
                index = read_header(data, Limits.unlimited())
            except BitstreamError:
                if len(data) < _HEAD_BYTES:
                    raise
                index = read_header(data + file.read(), Limits.unlimited())  # very many tiles
        except BitstreamError:
            return None
    return _file_facts(size, index) if index.file_size == size else None


def _check_target(source: str, target: str, overwrite: bool) -> None:
    """Refuse an output that would fail or destroy a file, before any work."""
    path = Path(target)
    if _STANDARD not in (source, target) and path.is_file() and os.path.samefile(source, target):
        raise FileExistsError(errno.EEXIST, "is the input as well", target)
    if target != _STANDARD and path.is_file() and not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already; --overwrite replaces it", target)
    if target != _STANDARD:
        there = next((parent for parent in path.parents if parent.exists()), None)
        if there is not None and not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder to write into", str(there))


def _write(target: str, data: bytes | memoryview, overwrite: bool) -> None:
    """All of the data to a file or to standard output, or nothing."""
    if target == _STANDARD:
        if not sys.stdout.writable():
            raise OSError(errno.EBADF, "is closed", "standard output")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, data, overwrite=overwrite)


def _file_facts(size: int, index: FileIndex) -> Result:
    """What every command says of a file of so many bytes; bpp counts all of them."""
    header = index.header
    return {
        "width": header.width,
        "height": header.height,
        "mode": header.mode,
        "model_id": header.model_id.hex(),
        "size_bytes": size,
        "bpp": 8 * size / header.pixels,
    }


def _model_facts(model: Model) -> Result:
    """One entry of `l2c models`."""
    from l2c.transforms import transform_costs

    encoder_kmac, decoder_kmac = transform_costs(model.config.transform)
    config = model.config
    return {
        "name": model.name,
        "model_id": model.model_id.hex(),
        "path": str(model.path),
        "size_bytes": model.path.stat().st_size,
        "parameters": {
            "encoder": sum(p.numel() for p in model.transform.encoder.parameters()),
            "decoder": sum(p.numel() for p in model.transform.decoder.parameters()),
            "probability": model.integer.num_parameters(),
        },
        "kmac_per_pixel": {"encoder": encoder_kmac, "decoder": decoder_kmac},
        "s": config.transform.s,
        "c": config.transform.c,
        "bits": config.bits,
        "mean_bpp": {f"{quality / 10:g}": bpp for quality, bpp in model.rate_curve},
        "card": model.card,
    }


def _drawn_picture(width: int, height: int) -> Any:
    """A picture with slopes, edges and texture, the same on every machine: uint8 [height, width, 3]."""
    import numpy as np

    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = np.stack([x / width, y / height, (x + y) / (width + height)], axis=2)
    generator = np.random.default_rng(0)
    for _ in range(40):
        cx, cy, radius = generator.random(3) * (width, height, min(width, height) / 5)
        planes[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = generator.random(3)
    planes += 0.06 * np.sin(0.35 * x + 0.2 * y)[..., None] * (x > width / 2)[..., None]
    planes += generator.normal(0.0, 0.01, planes.shape)
    return (planes * 255).round().clip(0, 255).astype(np.uint8)


def _adaptation_facts(stream: Bitstream) -> Result:
    """What the ADAPT section of a file changes in D; empty without one that can be read."""
    from l2c.format.adapt_section import NO_SET, PatchChanges

    body, header = stream.metadata.get(ADAPT), stream.header
    if body is None:
        return {}
    try:
        changes = PatchChanges.unpack(bytes(body), header.width, header.height, NO_SET, None)
    except BitstreamError:
        return {}
    facts: Result = {}
    if changes.sets is not None:
        used = changes.sets[changes.sets != NO_SET]
        facts |= {"patches_with_bias_set": len(used), "bias_sets_in_use": sorted(set(used.tolist()))}
    if changes.conditions is not None:
        facts["patches_with_conditions"] = int(changes.conditions.any(axis=0).sum())
    return facts


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return _rounded({stage: statistics.median(run[stage] for run in runs) for stage in runs[0]})


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    """To microseconds."""
    return {stage: round(value, 6) for stage, value in seconds.items()}


def _print_anything(stream: Any) -> None:
    """Let a stream print names that its encoding lacks, with escapes in their place."""
    replacement = {"strict": "backslashreplace", "surrogateescape": _NAMES_AS_BYTES}.get(getattr(stream, "errors", ""))
    if replacement is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=replacement)


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """As "surrogateescape", which gives the bytes of a name back; as "backslashreplace" for what it cannot do."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


_NAMES_AS_BYTES = "l2c.names"
codecs.register_error(_NAMES_AS_BYTES, _escaped)


def _printable(text: str) -> str:
    """The text in one line: what steers a terminal, in a file's name say, is escaped."""
    safe = (c if c.isprintable() or "\ud800" <= c <= "\udfff" else c.encode("unicode_escape").decode() for c in text)
    return "".join(safe)


def _print_json(result: Any) -> None:
    print(json.dumps(result, indent=2, allow_nan=False))


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns; numbers to the right, by what stands below the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(row[i][:1].isdigit() for row in rows[1:]) and i > 1 for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right)]
        print(_printable("  ".join(cells).rstrip()))


def _print_info(result: Result) -> None:
    tiles, sizes = result["tiles"], [tile["size"] for tile in result["tiles"]]
    channels = [tile["channels"] for tile in tiles]
    rows = [
        ("file", _shown(result["input"])),
        ("format version", str(result["format_version"])),
        ("picture", f"{result['width']}x{result['height']}, {result['mode']}, {result['bit_depth']} bits"),
        ("size", f"{result['size_bytes']} bytes, {result['bpp']:.4f} bpp"),
        ("model", result["model_id"]),
        ("quality", f"{result['quality']:g} of 100, metric {metric_name(result['metric_mix'])}"),
        ("latents", f"{result['latent_bits']} bits, CRC-32 {result['latents_crc32']}"),
        (
            "tiles",
            f"{result['tile_columns']}x{result['tile_rows']} of {result['tile_size']} pixels, "
            f"{min(sizes)}..{max(sizes)} bytes, {min(channels)}..{max(channels)} channels",
        ),
    ]
    facts = result["adaptation"]
    if facts:
        rows.append(
            (
                "adaptation",
                f"{facts.get('patches_with_bias_set', 0)} patches with one of "
                f"{len(facts.get('bias_sets_in_use', []))} bias sets, "
                f"{facts.get('patches_with_conditions', 0)} with modulator conditions",
            )
        )
    rows += [(f"  {name}", f"{size} bytes") for name, size in result["parts"].items()]
    _print_rows(rows)


def _say(kind: str, message: str) -> None:
    """One line on standard error; with --debug, the traceback of the error being handled before it."""
    if _debug and kind == "error" and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"l2c: {kind}: {_printable(' '.join(message.split()))}", file=sys.stderr)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """What L2C warns of, in one line; what libraries warn of is shown with --debug only."""
    if _debug or category.__module__.startswith("l2c."):
        _say("warning", str(message))


def _message(error: BaseException, name: str = "") -> str:
    """What to say of an error, headed by the name of the file where the text does not name it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        name, text = str(error.filename), error.strerror
    elif isinstance(error, (L2CError, OSError)):
        text = getattr(error, "strerror", None) or str(error)
    elif isinstance(error, MemoryError):
        text = "not enough memory"
    else:
        text = f"internal error, {type(error).__name__}: {error} (--debug shows where)"
    return text if not name or text.startswith(name) else f"{name}: {text}"


def _exit_code(error: BaseException) -> int:
    for kinds, code in _CODES:
        if isinstance(error, kinds):
            return code
    return FAILED


_CODES = (
    ((BitstreamError,), DAMAGED),
    ((BackendError, ModelMismatchError), NOT_AT_HAND),
    ((RateError,), RATE),
)
