"""Other codecs at equal rates: each searches its own quality setting for the largest file that a target allows (or one
at most 0.5 % below it).

All of them are given the same 8-bit RGB pixels, and decoded to 8-bit RGB. The still-picture formats convert colours
themselves. The video coders (HEVC, AV1, VVC intra) get full-range BT.709 planes from `measures.to_planes` at 10 bits,
4:4:4 where the coder has it, and their size is that of the bare stream, without a container.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, features

from l2c.arrays import UInt8Array
from l2c.errors import BackendError, L2CError, UnsupportedError
from l2c.evaluate import ffmpeg
from l2c.evaluate.measures import from_planes, package_version, to_planes

_VIDEO_BITS = 10
_CLOSE = 0.005  # share of a target that a file may leave unused
# Names what the planes are without converting them, which ffmpeg's options of the same names would do.
_TAGS = "setparams=range=pc:colorspace=bt709:color_primaries=bt709:color_trc=bt709"


@dataclass(frozen=True)
class Peer:
    """One codec.

    Attributes:
        title: for tables and plots.
        low, high: its quality setting as integers: a higher one gives a larger file (nothing checks that).
        encode: (uint8 [H, W, 3], quality) -> file.
        decode: (file, height, width) -> uint8 [H, W, 3].
        describe: settings and versions. Raises BackendError where the codec is not at hand.
    """

    title: str
    low: int
    high: int
    encode: Callable[[UInt8Array, int], bytes]
    decode: Callable[[bytes, int, int], UInt8Array]
    describe: Callable[[], str]

    def __post_init__(self) -> None:
        if not (isinstance(self.low, int) and isinstance(self.high, int) and self.low <= self.high):
            raise UnsupportedError(f"peer {self.title}: its settings go from {self.low!r} to {self.high!r}")

    def file(self, pixels: UInt8Array, quality: int) -> bytes:
        """`encode`. Raises BackendError, which names the peer, where it fails or gives something else than bytes."""
        with self._naming():
            data = self.encode(pixels, quality)
            if not isinstance(data, (bytes, bytearray)):
                raise TypeError(f"encode gives {type(data).__name__}, not bytes")
        return bytes(data)

    def picture(self, data: bytes, height: int, width: int) -> UInt8Array:
        """`decode`. Raises BackendError, which names the peer: it fails, or gives no such picture."""
        with self._naming():
            pixels = self.decode(data, height, width)
            if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (height, width, 3):
                got = (
                    f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
                )
                raise TypeError(f"decode gives {got}, not uint8 [{height}, {width}, 3]")
        return pixels

    def described(self) -> str:
        """`describe`. Raises BackendError where the codec is not at hand, or where it fails."""
        with self._naming():
            return self.describe()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except L2CError:
            raise
        except Exception as error:  # whatever somebody else's codec raises
            raise BackendError(f"peer {self.title}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Coded:
    """A peer's file: its quality setting, the bytes, seconds to encode it once."""

    quality: int
    data: bytes
    seconds: float


@dataclass
class RateSearch:
    """A peer's files of one picture; qualities that were tried for one target are known for the next.

    Attributes:
        peer: the codec. pixels: uint8 [H, W, 3].
    """

    peer: Peer
    pixels: UInt8Array
    _files: dict[int, Coded] = field(default_factory=dict)

    def at(self, bpp: float) -> Coded:
        """The largest file of at most `bpp` bits per pixel, or one at most 0.5 % below; or the smallest that there is.

        The size is taken to grow with the quality setting; where it does not, the result still fits.
        """
        most = bpp * self.pixels.shape[0] * self.pixels.shape[1] / 8.0
        below: Coded | None = None  # the best that fits, and the least that does not
        above: Coded | None = None
        for coded in self._files.values():  # what is known narrows the search
            if len(coded.data) > most:
                above = coded if above is None or coded.quality < above.quality else above
        for coded in self._files.values():
            if len(coded.data) <= most and (above is None or coded.quality < above.quality):
                below = coded if below is None or coded.quality > below.quality else below
        halve = False
        while True:
            low = self.peer.low if below is None else below.quality + 1
            high = self.peer.high if above is None else above.quality - 1
            if low > high or (below is not None and len(below.data) >= (1.0 - _CLOSE) * most):
                break
            coded = self._encode((low + high) // 2 if halve else self._guess(below, above, most, low, high))
            fits = len(coded.data) <= most
            below, above = (coded, above) if fits else (below, coded)
            left = high - coded.quality if fits else coded.quality - low
            halve = not halve and left > (high - low) // 2  # a guess that helped little is followed by a halving
        return below if below is not None else self._encode(self.peer.low)

    def again(self, bpp: float, quality: int, size: int) -> Coded:
        """What a search for `bpp` gave before, a file of `size` bytes at a quality; a new search where it is not so."""
        coded = self._encode(quality)
        return coded if len(coded.data) == size else self.at(bpp)

    def _guess(self, below: Coded | None, above: Coded | None, most: float, low: int, high: int) -> int:
        """Where the size would be reached if its logarithm were linear in the quality between two known files."""
        if below is None or above is None:
            return (low + high) // 2
        a, b = math.log(len(below.data)), math.log(len(above.data))
        share = (math.log((1.0 - 0.5 * _CLOSE) * most) - a) / max(b - a, 1e-9)
        return min(max(below.quality + round(share * (above.quality - below.quality)), low), high)

    def _encode(self, quality: int) -> Coded:
        if quality not in self._files:
            start = time.perf_counter()
            data = self.peer.file(self.pixels, quality)
            self._files[quality] = Coded(quality, data, time.perf_counter() - start)
        return self._files[quality]


def _save(pixels: UInt8Array, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, **options)
    return buffer.getvalue()


def _open(data: bytes, height: int, width: int) -> UInt8Array:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def _pillow(feature: str, what: str) -> Callable[[], str]:
    """Describes a codec inside Pillow."""

    def describe() -> str:
        if not features.check(feature):
            raise BackendError(f"this Pillow has no {feature}")
        library = features.version(feature)
        return f"{what}; Pillow {package_version('pillow')}" + (f", {feature} {library}" if library else "")

    return describe


def _jpeg(pixels: UInt8Array, quality: int) -> bytes:
    return _save(pixels, "JPEG", quality=quality, optimize=True, progressive=True, subsampling="4:2:0")


def _mozjpeg(pixels: UInt8Array, quality: int) -> bytes:
    from mozjpeg_lossless_optimization import optimize

    return bytes(optimize(_jpeg(pixels, quality)))


def _describe_mozjpeg() -> str:
    version = package_version("mozjpeg-lossless-optimization")
    if version == "not installed":
        raise BackendError("mozjpeg needs the package mozjpeg-lossless-optimization: pip install 'l2c[eval]'")
    return f"JPEG 4:2:0 with scans and tables optimised by mozjpeg (mozjpeg-lossless-optimization {version})"


def _jpeg2000(pixels: UInt8Array, quality: int) -> bytes:
    """`quality` is the target rate in 1/200 bpp."""
    ratio = 24.0 / (quality / 200.0)
    return _save(pixels, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True, no_jp2=True)


def _avif(pixels: UInt8Array, quality: int) -> bytes:
    # libaom's bytes are the same for any number of threads but one, so that by default they depend on the machine.
    return _save(pixels, "AVIF", quality=quality, speed=4, subsampling="4:2:0", max_threads=2)


def _jxl(pixels: UInt8Array, quality: int) -> bytes:
    import pillow_jxl  # noqa: F401 (registers the format)

    return _save(pixels, "JXL", quality=quality, effort=7)


def _describe_jxl() -> str:
    version = package_version("pillow-jxl-plugin")
    if version == "not installed":
        raise BackendError("jxl needs the package pillow-jxl-plugin: pip install 'l2c[eval]'")
    return f"effort 7; pillow-jxl-plugin {version}"


@dataclass(frozen=True)
class _Video:
    """An intra coder inside ffmpeg.

    Attributes:
        encoder: its name there. stream: the bare format that is written and read.
        layout: pixel layout. top: largest quantiser; quality q stands for the quantiser (top - q) / steps.
        steps: settings per quantiser.
        options: (quantiser as text) -> arguments.
    """

    encoder: str
    stream: str
    layout: str
    top: int
    steps: int
    options: Callable[[str], list[str]]

    def encode(self, pixels: UInt8Array, quality: int) -> bytes:
        planes = to_planes(pixels, _VIDEO_BITS)
        height, width = pixels.shape[:2]
        if "420" in self.layout:
            planes = _even(planes)
            height, width = planes.shape[1:]
            data = planes[0].tobytes() + b"".join(_halved(part).tobytes() for part in planes[1:])
        else:
            data = planes.tobytes()
        quantiser = f"{(self.top - quality) / self.steps:g}"
        source = ["-f", "rawvideo", "-pix_fmt", self.layout, "-s", f"{width}x{height}"]
        target = [
            "-vf",
            _TAGS,
            "-c:v",
            self.encoder,
            *self.options(quantiser),
            "-frames:v",
            "1",
            "-f",
            self.stream,
            "-",
        ]
        return ffmpeg.run_ffmpeg([*source, "-i", "-", *target], data)

    def decode(self, data: bytes, height: int, width: int) -> UInt8Array:
        raw = ffmpeg.run_ffmpeg(
            ["-f", self.stream, "-i", "-", "-f", "rawvideo", "-pix_fmt", self.layout, "-frames:v", "1", "-"], data
        )
        values = np.frombuffer(raw, np.uint16)
        if "420" in self.layout:
            rows, columns = height + height % 2, width + width % 2
            luma = rows * columns
            if len(values) != luma * 3 // 2:
                raise BackendError(f"{self.encoder}: the decoded picture has another size")
            chroma = values[luma:].reshape(2, rows // 2, columns // 2)
            planes = np.stack((values[:luma].reshape(rows, columns), *(_doubled(part) for part in chroma)))
        else:
            if len(values) != 3 * height * width:
                raise BackendError(f"{self.encoder}: the decoded picture has another size")
            planes = values.reshape(3, height, width)
        return from_planes(planes[:, :height, :width], _VIDEO_BITS)

    def describe(self) -> str:
        ffmpeg.require(self.encoder)
        options = " ".join(self.options("Q"))
        return f"{self.encoder} {options}, {self.layout}, BT.709 full range; ffmpeg {ffmpeg.version()}"

    def peer(self, title: str) -> Peer:
        return Peer(title, 0, self.top, self.encode, self.decode, self.describe)


def _even(planes: np.ndarray) -> np.ndarray:
    """Planes [C, H, W] with the last row and column repeated where a side is odd."""
    return np.pad(planes, ((0, 0), (0, planes.shape[1] % 2), (0, planes.shape[2] % 2)), mode="edge")


def _halved(plane: np.ndarray) -> np.ndarray:
    """2x2 means, uint16 [H, W] -> [H/2, W/2]."""
    blocks = plane.astype(np.uint32).reshape(plane.shape[0] // 2, 2, plane.shape[1] // 2, 2)
    return ((blocks.sum(axis=(1, 3)) + 2) // 4).astype(np.uint16)


def _doubled(plane: np.ndarray) -> np.ndarray:
    """Bilinear interpolation between the centres of 2x2 blocks: uint16 [h, w] -> [2h, 2w]."""
    values = plane.astype(np.float64)
    for axis in (0, 1):
        width = [(1, 1) if k == axis else (0, 0) for k in (0, 1)]
        padded = np.pad(values, width, mode="edge")
        before, here, after = (padded.take(range(k, k + values.shape[axis]), axis) for k in range(3))
        pair = np.stack((0.75 * here + 0.25 * before, 0.75 * here + 0.25 * after), axis + 1)
        shape = list(values.shape)
        shape[axis] *= 2
        values = pair.reshape(shape)
    return np.rint(values).astype(np.uint16)


_X265 = _Video(
    "libx265", "hevc", "yuv444p10le", 510, 10,
    lambda q: ["-preset", "slow", "-tune", "psnr", "-x265-params", f"crf={q}:keyint=1:info=0:log-level=error"],
)  # fmt: skip
_AOM = _Video(
    "libaom-av1", "obu", "yuv444p10le", 63, 1,
    lambda q: ["-usage", "allintra", "-cpu-used", "3", "-crf", q, "-b:v", "0", "-threads", "1"],
)  # fmt: skip
_VVENC = _Video("libvvenc", "vvc", "yuv420p10le", 63, 1, lambda q: ["-preset", "fast", "-qp", q, "-period", "1"])

PEERS = {
    "jpeg": Peer("JPEG", 1, 100, _jpeg, _open, _pillow("jpg", "4:2:0, progressive, optimised")),
    "mozjpeg": Peer("JPEG (mozjpeg)", 1, 100, _mozjpeg, _open, _describe_mozjpeg),
    "jpeg2000": Peer("JPEG 2000", 4, 2400, _jpeg2000, _open, _pillow("jpg_2000", "irreversible, one layer by rate")),
    "webp": Peer(
        "WebP", 0, 100, lambda pixels, q: _save(pixels, "WEBP", quality=q, method=6), _open, _pillow("webp", "method 6")
    ),
    "avif": Peer(
        "AVIF", 0, 100, _avif, _open, _pillow("avif", "4:2:0, speed 4, threads 2"),
    ),
    "jxl": Peer("JPEG XL", 1, 99, _jxl, _open, _describe_jxl),  # the plugin fails at 100
    "hevc": _X265.peer("HEVC intra (x265)"),
    "av1": _AOM.peer("AV1 intra (libaom)"),
    "vvc": _VVENC.peer("VVC intra (vvenc, 4:2:0)"),
}  # fmt: skip


def choose(names: list[str]) -> dict[str, Peer]:
    """Peers by name; "all" stands for those at hand, "none" for none of them.

    Raises:
        UnsupportedError: an unknown name. BackendError: a peer asked for by name is not at hand.
    """
    if names == ["none"]:
        return {}
    chosen: dict[str, Peer] = {}
    for name in names:
        if name == "all":
            for key, peer in PEERS.items():
                try:
                    peer.described()
                except BackendError:
                    continue
                chosen[key] = peer
        elif name in PEERS:
            PEERS[name].described()
            chosen[name] = PEERS[name]
        else:
            raise UnsupportedError(f"there is no peer {name!r}: choose from all, none, {', '.join(PEERS)}")
    return chosen
