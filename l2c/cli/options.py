"""Options that several commands share. What is legal is the library's to say; here is only how it is spelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from l2c.adapt.effort import MAX_EFFORT
from l2c.cli import lazy
from l2c.codec.options import BEST_QUALITY, DEFAULT_QUALITY, LOSSLESS, METADATA, PICTURE_MODES, PRECISIONS, SCALES
from l2c.errors import UnsupportedError
from l2c.format.bitstream import TILE_SIZES
from l2c.format.levels import METRICS

if TYPE_CHECKING:
    from l2c.codec import options as of_codec

_Number = TypeVar("_Number", int, float)


def flag(name: str) -> str:
    """An option of the library as the command line spells it: max_bytes, --max-bytes."""
    return f"--{name.replace('_', '-')}"


def one_of(names: Sequence[str], **details: Any) -> Any:
    """A typer option that takes one of some names, or is not given.

    Args:
        details: of `typer.Option`.
    """

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, names))}.")
        return value

    return typer.Option(metavar=f"<{'|'.join(names)}>", callback=check, **details)


Device = Annotated[str, typer.Option(help="Where the networks run: cpu, cuda, cuda:1, ...")]
Precision = Annotated[
    str,
    one_of(
        PRECISIONS,
        help="Of the networks. exact: pixels are the same on every machine, and fastest on newer CPUs; auto: that, "
        "where the model has it. bfloat16 is faster than float32 on newer machines; pixels move by about a level.",
    ),
]
Metric = Annotated[
    str,
    one_of(
        list(METRICS),
        help="What bits are spent on: mixed, for eyes (luma and its structure); psnr and msssim, of RGB.",
    ),
]

# Of encoding.
Bpp = Annotated[float | None, typer.Option(help="Target in bits per pixel; never exceeded.")]
MaxBytes = Annotated[int | None, typer.Option(min=1, help="Target in bytes; never exceeded.")]
Psnr = Annotated[float | None, typer.Option(help="Target in dB: the smallest file that reaches it.")]
MsSsim = Annotated[float | None, typer.Option(help="Target 0..1: the smallest file that reaches it.")]
Quality = Annotated[
    float | None,
    typer.Option(min=0, max=BEST_QUALITY, help=f"Quality instead of a target.  [default: {DEFAULT_QUALITY:g}]"),
]
AdaptFor = Annotated[
    str | None,
    typer.Option(
        help="Also fit the decoder to these metrics, of which a receiver may choose (decode --metric).",
        metavar=f"<{','.join(METRICS)}>",
    ),
]
Effort = Annotated[
    int,
    typer.Option(
        min=0,
        max=MAX_EFFORT,
        help=f"Work spent on adapting to the picture; {MAX_EFFORT} tries several qualities for a rate.",
    ),
]
MaxSeconds = Annotated[float | None, typer.Option(help="End the adaptation after this time.")]
Tile = Annotated[int, typer.Option(help=f"Side of a tile in pixels: {TILE_SIZES[0]}, {TILE_SIZES[1]}, ...")]
Metadata = Annotated[
    str,
    one_of(
        METADATA,
        help="What is kept beside the pixels: all, the colour profile alone (no EXIF or XMP), or none.",
    ),
]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="The same as --metadata none.")]
AlphaQuality = Annotated[
    float | None,
    typer.Option(min=0, max=BEST_QUALITY, help="Alpha with loss; areas of 0 and 255 stay so.  [default: without loss]"),
]
Lossless = Annotated[
    str,
    one_of(
        LOSSLESS,
        help="auto: keep tiny and drawn pictures as pixels, without loss or in fewer colours, where that is better.",
    ),
]
PixelsCrc = Annotated[
    bool, typer.Option("--pixels-crc", help="Store a CRC-32 of the decoded pixels, which `l2c verify --pixels` checks.")
]
Importance = Annotated[
    list[str] | None,
    typer.Option(
        help="Where quality matters most: a grey picture of any size, or a box of pixels, in which errors weigh 16 "
        "times as much as elsewhere (or WEIGHT times); boxes may be given several times.",
        metavar="FILE|LEFT,TOP,RIGHT,BOTTOM[,WEIGHT]",
    ),
]
Truncated = Annotated[bool, typer.Option("--truncated", help="Take what there is of pictures that are cut.")]

# Of decoding.
Receiver = Annotated[
    str | None,
    one_of(
        list(METRICS), help="What it is to be best for, of what the file was adapted for.  [default: the file's own]"
    ),
]
PictureMode = Annotated[
    str,
    one_of(PICTURE_MODES, help="original: grey as grey, and with alpha; rgb: three channels."),
]
PictureQuality = Annotated[
    int | None, typer.Option(min=0, max=BEST_QUALITY, help="Of a JPEG, WebP or AVIF file that is written.")
]
Flatten = Annotated[bool, typer.Option("--flatten", help="Lay alpha over white where the format has none.")]

Region = Annotated[
    str | None,
    typer.Option(metavar="LEFT,TOP,RIGHT,BOTTOM", help="Pixels to decode, the last two just outside.  [default: all]"),
]
Scale = Annotated[str, one_of(list(map(str, SCALES)), help="Make the picture so many times smaller.")]
Conceal = Annotated[
    bool, typer.Option("--conceal", help="Fill in damaged tiles, and what a cut file lacks, instead of failing.")
]

# Of both.
Model = Annotated[str | None, typer.Option(help="Name or file of the model.", metavar="NAME|FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing", help="Leave files alone whose output is there and whole: goes on with a stopped job."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", "-f", help="Replace files that exist.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes that share a folder's files, and the cores.")]
Unlimited = Annotated[bool, typer.Option("--unlimited", help="Accept any size that a file names.")]


def check_usage(check: Callable[[], None]) -> None:
    """Ask the library whether options can be. Raises typer.BadParameter in the place of UnsupportedError."""
    try:
        check()
    except UnsupportedError as error:
        raise typer.BadParameter(str(error)) from None


def check_choice(overwrite: bool, skip_existing: bool) -> None:
    """Raises typer.BadParameter: both are given."""
    if overwrite and skip_existing:
        raise typer.BadParameter("give --overwrite or --skip-existing, not both")


def view_of(metric: str | None, region: str | None, scale: str, conceal: bool) -> of_codec.DecodeOptions:
    """The options of `Codec.decode` that these are. Raises UnsupportedError: the region is no list of numbers."""
    return {
        "metric": cast("of_codec.Metric | None", metric),
        "region": None if region is None else cast("of_codec.Region", tuple(numbers(region, int, "--region"))),
        "scale": cast("of_codec.Scale", int(scale)),
        "damaged": "conceal" if conceal else "raise",
    }


def numbers(text: str, kind: type[_Number], what: str) -> list[_Number]:
    """A list such as "0.5,1,2". Raises UnsupportedError, which calls the option `what`."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UnsupportedError(f"{what} is {text!r}: it must be numbers with commas between them") from None


def importance_of(parts: Sequence[str] | None) -> Any:
    """The map or the boxes that are asked for, or None.

    Raises:
        UnsupportedError: more than one map, maps and boxes together, or no box. ImageError, LimitError: no map.
    """
    if not parts:
        return None
    boxes = [[float(value) for value in part.split(",")] for part in parts if _is_box(part)]
    if len(boxes) < len(parts) > 1:
        raise UnsupportedError("--importance: give one picture, or boxes")
    return lazy.importance.portable(boxes if boxes else parts[0])


def _is_box(text: str) -> bool:
    try:
        return len([float(value) for value in text.split(",")]) > 1
    except ValueError:
        return False


def names(text: str) -> list[str]:
    """A list such as "jpeg, webp"."""
    return [part.strip() for part in text.split(",") if part.strip()]
