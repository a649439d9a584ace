"""What an encoding call may be asked for, and whether it can be."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypedDict

from l2c import images
from l2c.adapt.effort import MAX_EFFORT, Effort, EffortLevel
from l2c.errors import UnsupportedError
from l2c.format.levels import METRICS, Metric

DEFAULT_TILE = 1024
DEFAULT_QUALITY = 50.0
_MOST_ADAPTED_TILE = 2048  # gradients need some kilobytes a pixel of the tiles in work


class EncodeOptions(TypedDict, total=False):
    """Keywords of every encoding call; meanings and defaults at `Codec.encode_detailed`."""

    bpp: float | None
    max_bytes: int | None
    psnr: float | None
    msssim: float | None
    quality: float | None
    metric: Metric
    effort: EffortLevel | Effort
    b: int | None
    tile: int
    metadata: images.Metadata
    alpha_quality: float | None
    truncated: bool
    max_seconds: float | None
    progress: Callable[[float, str], None] | None


def check_options(
    goals: dict[str, Any],
    metric: str,
    effort: int | Effort,
    bits: int,
    most_bits: int,
    tile: int,
    others: dict[str, float | None],
) -> None:
    """Raises UnsupportedError: an option that cannot be, or two that exclude each other.

    Args:
        goals: bpp, max_bytes, psnr, msssim and quality; others: further numbers; None: not given.
        bits: of a latent; most_bits: those of the model.
    """
    whole: dict[str, Any] = {"b": bits, "tile": tile}
    if not isinstance(effort, Effort):
        whole["effort"] = effort
    given = {name: value for name, value in (goals | others).items() if value is not None}
    for name, value in (given | whole).items():
        if isinstance(value, bool) or not isinstance(value, Integral if name in whole or name == "max_bytes" else Real):
            kind = "whole " if name in whole or name == "max_bytes" else ""
            raise UnsupportedError(f"{name} is {value!r}: it must be a {kind}number")
        try:
            float(value)
        except OverflowError:
            raise UnsupportedError(f"{name} is far too large") from None
    asked = [name for name, value in goals.items() if value is not None]
    if len(asked) > 1:
        raise UnsupportedError(f"give {' or '.join(asked)}, not both" if len(asked) == 2 else f"{asked}: give one")
    for name in ("bpp", "max_bytes", "psnr", "max_seconds"):
        if name in given and not 0 < given[name] < float("inf"):
            raise UnsupportedError(f"{name} is {given[name]}: it must be a positive number")
    if "msssim" in given and not 0 < given["msssim"] < 1:
        raise UnsupportedError(f"msssim is {given['msssim']}: it must lie between 0 and 1")
    for name in ("quality", "alpha_quality"):
        if name in given and not 0 <= given[name] <= 100:
            raise UnsupportedError(f"{name} is {given[name]}: it must be 0..100")
    if not isinstance(metric, str) or metric not in METRICS:
        raise UnsupportedError(f"metric is {metric!r}: it must be one of {', '.join(METRICS)}")
    if not isinstance(effort, Effort) and not 0 <= effort <= MAX_EFFORT:
        raise UnsupportedError(f"effort is {effort}: it must be 0..{MAX_EFFORT}")
    if not 1 <= bits <= most_bits:
        raise UnsupportedError(f"b is {bits}: it must be 1..{most_bits} with this model")
    if tile < 512 or tile > 1 << 24 or tile & (tile - 1):
        raise UnsupportedError(f"tile is {tile}: it must be 512, 1024, 2048, ... up to {1 << 24}")
    adapts = effort.adapts if isinstance(effort, Effort) else effort > 0
    if adapts and tile > _MOST_ADAPTED_TILE:
        raise UnsupportedError(f"tile is {tile}: with effort it must be at most {_MOST_ADAPTED_TILE}")
