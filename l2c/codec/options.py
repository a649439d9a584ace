"""What the codec may be asked for, and whether it can be; without torch and numpy, since the command line asks, too."""

from __future__ import annotations

from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

from l2c.adapt.effort import MAX_EFFORT, Effort, EffortLevel
from l2c.errors import UnsupportedError
from l2c.format.bitstream import TILE_SIZES
from l2c.format.levels import MAX_QUALITY, METRICS, Metric

if TYPE_CHECKING:
    from l2c import images

Output: TypeAlias = Literal["numpy", "pil", "torch"]  # what decoding gives
Mode: TypeAlias = Literal["original", "rgb"]  # what a decoded picture looks like
Precision: TypeAlias = Literal["auto", "exact", "float32", "bfloat16"]  # of E and D
Scale: TypeAlias = Literal[1, 2, 4, 8]  # of a decoded picture: that many pixels a side become one
Damage: TypeAlias = Literal["raise", "conceal"]  # what to do about damaged tiles
Lossless: TypeAlias = Literal["auto", "never"]  # whether a file may keep pixels instead of latents
Region: TypeAlias = tuple[int, int, int, int]  # (left, top, right, bottom), the last two just outside

DEFAULT_TILE = 1024
DEFAULT_QUALITY = 50.0
BEST_QUALITY = MAX_QUALITY // 10  # of the public scale, which begins at 0
OUTPUTS: tuple[Output, ...] = get_args(Output)
PICTURE_MODES: tuple[Mode, ...] = get_args(Mode)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SCALES: tuple[Scale, ...] = get_args(Scale)
LOSSLESS: tuple[Lossless, ...] = get_args(Lossless)
DAMAGES: tuple[Damage, ...] = get_args(Damage)
METADATA = ("all", "color", "none")  # what is kept beside the pixels, see `images.keep`
_MOST_ADAPTED_TILE = 2048  # gradients need some kilobytes a pixel of the tiles in work


class EncodeOptions(TypedDict, total=False):
    """Keywords of every encoding call; meanings and defaults at `Codec.encode_detailed`."""

    bpp: float | None
    max_bytes: int | None
    psnr: float | None
    msssim: float | None
    quality: float | None
    metric: Metric
    adapt_for: Collection[Metric] | None
    effort: EffortLevel | Effort
    b: int | None
    tile: int
    metadata: images.Metadata
    alpha_quality: float | None
    pixels_crc: bool
    lossless: Lossless
    truncated: bool
    max_seconds: float | None
    progress: Callable[[float, str], None] | None
    importance: Any


class ViewOptions(TypedDict, total=False):
    """Keywords of calls that decode regions; meanings and defaults at `Codec.decode`."""

    metric: Metric | None
    scale: Scale
    damaged: Damage


class DecodeOptions(ViewOptions, total=False):
    """Keywords of every decoding call, likewise."""

    region: Region | None


def check_decode_options(metric: Any, scale: Any, damaged: Any) -> None:
    """Raises UnsupportedError: an option of decoding that does not exist."""
    if metric is not None:
        check_metric(metric)
    if isinstance(scale, bool) or scale not in SCALES:
        raise UnsupportedError(f"scale is {scale!r}: it must be one of {', '.join(map(str, SCALES))}")
    if damaged not in DAMAGES:
        raise UnsupportedError(f"damaged is {damaged!r}: it must be {' or '.join(map(repr, DAMAGES))}")


def check_options(
    goals: dict[str, Any],
    *,
    metric: str,
    effort: int | Effort,
    tile: int,
    others: dict[str, float | None],
    adapt_for: Collection[str] | None = None,
    shown: Callable[[str], str] = str,
) -> None:
    """Raises UnsupportedError: an option that cannot be, or two that exclude each other.

    Args:
        goals: bpp, max_bytes, psnr, msssim and quality; others: max_seconds and alpha_quality; None: not given.
        shown: how the caller spells the name of an option.
    """
    given = {name: value for name, value in (goals | others).items() if value is not None}
    for name, value in given.items():
        check_number(shown(name), value, whole=name == "max_bytes")
    check_number(shown("tile"), tile, whole=True)
    asked = [shown(name) for name, value in goals.items() if value is not None]
    if len(asked) > 1:
        raise UnsupportedError(f"give {' or '.join(asked)}, not {'both' if len(asked) == 2 else 'all'}")
    for name in ("bpp", "max_bytes", "psnr", "max_seconds"):
        if name in given and not 0 < given[name] < float("inf"):
            raise UnsupportedError(f"{shown(name)} is {given[name]:g}: it must be a positive number")
    if "msssim" in given and not 0 < given["msssim"] < 1:
        raise UnsupportedError(f"{shown('msssim')} is {given['msssim']:g}: it must lie between 0 and 1")
    for name in ("quality", "alpha_quality"):
        if name in given and not 0 <= given[name] <= BEST_QUALITY:
            raise UnsupportedError(f"{shown(name)} is {given[name]:g}: it must be 0..{BEST_QUALITY}")
    check_metric(metric, shown("metric"))
    if adapt_for is not None:
        _check_metrics(adapt_for, shown("adapt_for"))
    if tile not in TILE_SIZES:
        sizes = f"{', '.join(map(str, TILE_SIZES[:3]))}, ... up to {TILE_SIZES[-1]}"
        raise UnsupportedError(f"{shown('tile')} is {tile}: it must be {sizes}")
    _check_effort(effort, tile, adapt_for is not None, shown)


def check_metric(metric: Any, name: str = "metric") -> None:
    """Raises UnsupportedError: none of METRICS. `name`: what the caller calls it."""
    if not isinstance(metric, str) or metric not in METRICS:
        raise UnsupportedError(f"{name} is {metric!r}: it must be one of {', '.join(METRICS)}")


def _check_metrics(metrics: Any, name: str) -> None:
    if isinstance(metrics, str) or not isinstance(metrics, Collection) or not metrics:
        raise UnsupportedError(f"{name} is {metrics!r}: it must be a selection of {', '.join(METRICS)}")
    for metric in metrics:
        check_metric(metric, f"one of {name}")


def _check_effort(effort: int | Effort, tile: int, receivers: bool, shown: Callable[[str], str]) -> None:
    if not isinstance(effort, Effort):
        check_number(shown("effort"), effort, whole=True)
        if not 0 <= effort <= MAX_EFFORT:
            raise UnsupportedError(f"{shown('effort')} is {effort}: it must be 0..{MAX_EFFORT}")
    adapts = effort.adapts if isinstance(effort, Effort) else effort > 0
    if (adapts or receivers) and tile > _MOST_ADAPTED_TILE:
        reason = shown("effort" if adapts else "adapt_for")
        raise UnsupportedError(f"{shown('tile')} is {tile}: with {reason} it must be at most {_MOST_ADAPTED_TILE}")


def check_bits(bits: int, least: int, most: int) -> None:
    """Raises UnsupportedError: no number of bits of a latent for a model that has so many."""
    check_number("b", bits, whole=True)
    if not least <= bits <= most:
        allowed = f"{least}..{most}" if least < most else f"{most}"
        raise UnsupportedError(f"b is {bits}: it must be {allowed} with this model")


def check_step(quality: float | None, steps: Collection[int]) -> None:
    """Raises UnsupportedError: a quality that a model with networks at some qualities alone (`steps`) lacks."""
    if steps and quality is not None and quality not in steps:
        raise UnsupportedError(f"quality is {quality:g}: this model has {', '.join(map(str, steps))}")


def check_number(name: str, value: Any, *, whole: bool) -> None:
    """Raises UnsupportedError: no number, or one that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise UnsupportedError(f"{name} is {value!r}: it must be a {'whole ' if whole else ''}number")
    try:
        float(value)
    except OverflowError:
        raise UnsupportedError(f"{name} is far too large") from None
