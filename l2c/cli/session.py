"""The session of a command: an `l2c.codec.Codec`, made when a file needs it, so that a damaged one costs no model."""

from __future__ import annotations

from typing import Any

from l2c import codec
from l2c.cli import lazy
from l2c.cli.report import Result
from l2c.codec.facts import read_facts
from l2c.format.bitstream import Bitstream, Container, Limits


def open_codec(model: str | None, device: str, **options: Any) -> codec.Codec:
    """The codec of a model by name or file, None: the default one; options and errors as of `Codec`."""
    return codec.Codec(lazy.models.DEFAULT_MODEL if model is None else model, device, **options)


class Reader:
    """Reads files of any models.

    Args:
        model: name or file of the model that is tried first; None: the first file's own.
        unlimited: see `Limits.unlimited`.
    """

    def __init__(self, model: str | None, device: str, precision: Any = "auto", *, unlimited: bool = False) -> None:
        self.limits = Limits.unlimited() if unlimited else Limits()
        self._model, self._device, self._precision = model, device, precision
        self._codec: codec.Codec | None = None

    def session(self, stream: Bitstream | Container) -> codec.Codec:
        """The codec that reads this file and any other; the first call makes it. Raises as `Codec`."""
        if self._codec is None:
            model: Any = self._model
            if model is None and stream.index.keeps_pixels:  # any does
                model = lazy.models.DEFAULT_MODEL
            elif model is None:
                model = lazy.models.find_model(stream.header.model_id)
            self._codec = codec.Codec(model, self._device, precision=self._precision, limits=self.limits)
        return self._codec

    def facts(self, stream: Bitstream | Container, size: int) -> Result:
        """What is said of a file of so many bytes that was read. Raises as `Codec.codec_for`."""
        return read_facts(stream, size, self.session(stream))
