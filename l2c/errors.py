"""Errors that the codec raises on purpose: every one of them derives from `L2CError`; and what it warns with.

A caller that wants "any bad input" catches `L2CError`; the classes say whose fault it was.
"""

from __future__ import annotations


class L2CError(Exception):
    """Base class of everything that L2C raises on purpose."""


class BitstreamError(L2CError, ValueError):
    """A file or stream is not ours, truncated, altered, or not what its header promises."""


class DamagedError(BitstreamError):
    """A file of ours of which parts are cut off or altered; its head is whole.

    Attributes:
        tiles: numbers of the damaged ones, row by row from 0. sections: names of the damaged ones.
    """

    def __init__(self, message: str, tiles: tuple[int, ...] = (), sections: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.tiles, self.sections = tiles, sections


class LimitError(L2CError, ValueError):
    """A file asks for more than the caller's `Limits` allow (pixels, tiles, metadata bytes)."""


class UnsupportedError(L2CError, ValueError):
    """A request or a file feature that this version does not offer."""


class BackendError(L2CError, RuntimeError):
    """A backend or device asked for by name cannot run here; the message says why."""


class ModelMismatchError(L2CError, ValueError):
    """A file was made with another model than the ones at hand.

    Attributes:
        wanted: hexadecimal id of the model that the file names.
    """

    def __init__(self, message: str, wanted: str = "") -> None:
        super().__init__(message)
        self.wanted = wanted


class ImageError(L2CError, ValueError):
    """An input picture cannot be read, or an array is no picture (shape, dtype, NaN)."""


class RateError(L2CError, ValueError):
    """The rate asked for lies below what this picture can reach.

    Attributes:
        least_bpp: the least rate of this picture, in bits per pixel.
    """

    def __init__(self, message: str, least_bpp: float = 0.0) -> None:  # pickle passes the message alone
        super().__init__(message)
        self.least_bpp = least_bpp


class ConfigError(L2CError, ValueError):
    """A model or training configuration has an unknown, missing or impossible entry."""


class TrainingError(L2CError, RuntimeError):
    """Training cannot go on: a checkpoint that does not fit or cannot be written, or a loss that stays NaN."""


class L2CWarning(UserWarning):
    """Done, but not all as it was asked: what of a picture is not kept, which device or target failed."""


def one_line(error: BaseException) -> str:
    """The error's text in one line, its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
