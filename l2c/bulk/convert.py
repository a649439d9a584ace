"""Files to files, in memory: pictures to L2C files and back, several at a time, with what is said of each."""

from __future__ import annotations

import io
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from l2c import images
from l2c.bulk.batching import BATCH_PIXELS, attempt, together
from l2c.bulk.tasks import Spec
from l2c.codec.facts import Facts, decoded_facts, encoded_facts, read_facts
from l2c.codec.options import DecodeOptions
from l2c.codec.results import Decoded
from l2c.codec.session import Codec
from l2c.errors import L2CWarning
from l2c.files import Wanted
from l2c.format.bitstream import Container, Limits
from l2c.format.source import Memory
from l2c.images import listing, readers
from l2c.models import DEFAULT_MODEL, find_model

L2C_SUFFIX = ".l2c"
_SEARCH_PIXELS = BATCH_PIXELS >> 3  # gradients and figures take up to some kilobytes a pixel


class File(NamedTuple):
    """A file in memory.

    Attributes:
        name: what messages call it. format: that is wanted of a picture which is restored: "png", ...
    """

    name: str
    data: bytes
    format: str = ""


@dataclass(frozen=True)
class Converted:
    """What a file became, and what there is to say of it."""

    data: bytes
    facts: Facts
    warnings: tuple[str, ...] = ()


class Converter(ABC):
    """Holds a codec, and converts files with it.

    Attributes:
        wanted: files that can be converted, by their names. suffix: of what they become.
        most_pixels: of files that are converted together.
    """

    wanted: Wanted
    suffix: str
    most_pixels = BATCH_PIXELS

    @abstractmethod
    def pixels(self, file: File) -> int:
        """Of the file's picture, as its head tells; 0: it does not."""

    def __call__(self, files: Sequence[File]) -> list[Converted | Exception]:
        """What each becomes, or why it becomes nothing; the same for every file as if it were alone."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = self._convert(files)
        names = [file.name for file in files]
        said = [_of_file(str(one.message), names) for one in caught if issubclass(one.category, L2CWarning)]
        return [
            one if isinstance(one, Exception) else Converted(*one, tuple(dict.fromkeys(t for j, t in said if j == i)))
            for i, one in enumerate(found)
        ]

    @abstractmethod
    def _convert(self, files: Sequence[File]) -> list[tuple[bytes, Facts] | Exception]: ...


class Encoding(Converter):
    """Pictures to L2C files."""

    suffix = L2C_SUFFIX

    def __init__(self, spec: Spec, model: str | None, device: str) -> None:
        self.wanted = listing.pictures()
        self._codec = Codec(DEFAULT_MODEL if model is None else model, device, precision=spec.precision)
        self._options = {"metric": "mixed", "effort": 0, **spec.options}
        if any(self._options.get(name) for name in ("effort", "adapt_for", "psnr", "msssim")):
            self.most_pixels = _SEARCH_PIXELS

    def pixels(self, file: File) -> int:
        try:
            readers.prepare(file.data, None)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(file.data)) as image:
                    return image.width * image.height
        except Exception:  # told when the file is read
            return 0

    def _convert(self, files: Sequence[File]) -> list[tuple[bytes, Facts] | Exception]:
        def encode(part: Sequence[File]) -> list[tuple[bytes, Facts]]:
            encoded = self._codec.encode_batch_detailed([_Named(file) for file in part], **self._options)
            return [(one.data, encoded_facts(one, self._codec.model.name, self._options)) for one in encoded]

        return together(encode, files)


class _Named(io.BytesIO):
    """Bytes with the name that errors and warnings of the readers call them."""

    def __init__(self, file: File) -> None:
        super().__init__(file.data)
        self.name = file.name


@dataclass(frozen=True)
class _Opened:
    file: File
    stream: Container
    seconds: float


class Decoding(Converter):
    """L2C files to pictures. The codec is made for the first file, of its model where no other is named."""

    def __init__(self, spec: Spec, model: str | None, device: str) -> None:
        options = dict(spec.options)
        self.wanted = Wanted("L2C file", frozenset({L2C_SUFFIX}))
        self.suffix = f".{(options.get('format') or 'png').lower()}"
        self._limits = Limits.unlimited() if options.get("unlimited") else Limits()
        self._model, self._device, self._precision = model, device, spec.precision
        self._mode = options.get("mode") or "original"
        self._view: Any = {name: options[name] for name in DecodeOptions.__annotations__ if name in options}
        self._saved: dict[str, Any] = {name: options.get(name) for name in ("format", "quality")}
        self._saved["flatten"] = bool(options.get("flatten"))
        self._codec = None if model is None else self._open(model)

    def pixels(self, file: File) -> int:
        opened = attempt(self._opened, file)
        return 0 if isinstance(opened, Exception) else opened.stream.header.pixels

    def _open(self, model: Any) -> Codec:
        return Codec(model, self._device, precision=self._precision, limits=self._limits)

    def _opened(self, file: File) -> _Opened:
        started = time.perf_counter()
        stream = Container.open(Memory(file.data), self._limits)
        return _Opened(file, stream, time.perf_counter() - started)

    def _convert(self, files: Sequence[File]) -> list[tuple[bytes, Facts] | Exception]:
        opened = [attempt(self._opened, file) for file in files]
        whole = [one for one in opened if isinstance(one, _Opened)]
        decoded = iter(together(self._decode, whole))
        found: list[tuple[bytes, Facts] | Exception] = []
        for one in opened:
            picture = one if isinstance(one, Exception) else next(decoded)
            if isinstance(one, Exception) or isinstance(picture, Exception):
                found.append(picture)  # type: ignore[arg-type]
            else:
                found.append(attempt(lambda pair: self._save(*pair), (one, picture)))
        return found

    def _decode(self, files: Sequence[_Opened]) -> list[Decoded]:
        if self._codec is None:
            first = files[0].stream
            self._codec = self._open(DEFAULT_MODEL if first.index.keeps_pixels else find_model(first.header.model_id))
        return self._codec.decode_batch_detailed([file.stream for file in files], **self._view)

    def _save(self, opened: _Opened, decoded: Decoded) -> tuple[bytes, Facts]:
        assert self._codec is not None
        started, picture, original = time.perf_counter(), decoded.picture, self._mode == "original"
        buffer = io.BytesIO()
        images.save_picture(
            buffer,
            picture.rgb,
            alpha=picture.alpha if original else None,
            icc=picture.icc,
            exif=picture.exif,
            xmp=picture.xmp,
            dpi=picture.dpi,
            mode=picture.mode if original else "RGB",
            **{**self._saved, "format": self._saved["format"] or opened.file.format or "png"},
        )
        data = buffer.getvalue()
        facts = read_facts(opened.stream, len(opened.file.data), self._codec) | {"output_bytes": len(data)}
        return data, facts | decoded_facts(decoded, opened.seconds, time.perf_counter() - started)


def _of_file(message: str, names: Sequence[str]) -> tuple[int, str]:
    """Which file of a batch a message is about, that calls it by name or number; and the message with its name."""
    numbered = re.match(r"file (\d+) of \d+: ", message)
    if numbered is not None:
        number = int(numbered[1]) - 1
        return number, f"{names[number]}: {message[numbered.end() :]}"
    number = next((i for i, name in enumerate(names) if message.startswith(name)), -1)
    return (number, message) if number >= 0 else (0, f"{names[0]}: {message}" if len(names) == 1 else message)


def make_converter(spec: Spec, model: str | None, device: str) -> Converter:
    """Of the command that a spec names.

    Args:
        model, device: instead of the spec's.
    Raises:
        BackendError, ModelMismatchError, UnsupportedError: as `Codec`.
    """
    return (Encoding if spec.command == "encode" else Decoding)(spec, model, device)
