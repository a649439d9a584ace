"""Pictures to bytes and back: where networks, probability model, coder and container meet.

A picture is cut in tiles (1024 pixels by default). P and the coder stop at tile borders, so tiles can be coded in
parallel and on their own. E and D do not: they run over chunks with a halo at least as wide as their receptive
field, so where a tile or chunk ends cannot be seen in the pixels, and memory is bounded for any picture.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import math
import os
import re
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from l2c import guard, images, lossy_alpha, networks, ops
from l2c.adapt.bias_sets import set_maps
from l2c.adapt.effort import EFFORTS, MAX_EFFORT, MAX_TRIES, Effort
from l2c.adapt.encoder import Adapted, Subject, adapt
from l2c.adapt.modulators import condition_maps
from l2c.alpha import fill_transparent
from l2c.entropy import multiscale
from l2c.entropy.coder import DecodingJob, EncodingJob, Job
from l2c.entropy.multiscale import ProbabilityModel, backends
from l2c.errors import (
    BackendError,
    BitstreamError,
    L2CError,
    LimitError,
    ModelMismatchError,
    RateError,
    UnsupportedError,
)
from l2c.format.adapt_section import BIAS_PATCH, CONDITION_PATCH, NO_SET, PatchChanges
from l2c.format.bitstream import (
    ADAPT,
    ALPHA,
    ALPHA_TYPES,
    DPI,
    EXIF,
    ICC,
    LOSSY_ALPHA,
    XMP,
    Bitstream,
    Header,
    Limits,
    read_bitstream,
    write_bitstream,
)
from l2c.format.levels import DEFAULT_METRIC, MAX_MU, MAX_QUALITY, METRICS
from l2c.metrics import msssim as msssim_of
from l2c.metrics import psnr as psnr_of
from l2c.models import DEFAULT_MODEL, Model, find_model, load_model
from l2c.networks import Adaptation, Grid
from l2c.objective import Blend, distortion
from l2c.ops import arithmetic
from l2c.rate_control import (
    ACCEPTED,
    MAX_STEERS,
    MAX_TRIMS,
    TOLERANCE,
    MetricSearch,
    QualitySearch,
    Steering,
    dissimilarity_db,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

_P = ParamSpec("_P")
_T = TypeVar("_T")
UInt8Array = npt.NDArray[np.uint8]
Output = Literal["numpy", "pil", "torch"]
PRECISIONS = ("float32", "bfloat16")
DEFAULT_TILE = 1024
DEFAULT_QUALITY = 50.0
_CHUNK = 2048  # pixels a side that E and D see at a time; a matter of memory only
_BATCH_PIXELS = 1 << 22  # pictures of one size share a pass of E or D up to this many pixels
_ADAPT_PIXELS = 1 << 23  # pictures are adapted together up to this many pixels, at about 80 bytes each
_MOST_ADAPTED_TILE = 2048  # gradients need some kilobytes a pixel of the tiles in work
_ADAPTED_TOLERANCE = 0.03  # of the size that a quality is searched for, where adaptation follows
_WORTH_ADAPTING = 0.93  # an adapted file that much smaller is as good as a plain one
_METRIC_TOLERANCE = 0.02  # dB that a file may exceed a target in PSNR or MS-SSIM
_TRIES = (1.0, 1.5, 0.5, 1.25, 0.75)[:MAX_TRIES]  # times the mean saving, where several qualities are tried
_MOST_AGAIN = 1 << 22  # pixels of what PyTorch decodes again
_MOST_THREADS = 64  # csrc/thread_pool.h
_QUEUED_PIXELS = 1 << 26  # of the pictures that lie on a GPU at the same time
_LEAST_FILE, _SECTION_ENTRY = 50, 10  # bytes: the head with one tile, and what a section adds to it (bitstream.py)
_TRIMMED = 1.01  # files up to this many times the target are trimmed, larger ones steered


class EncodeOptions(TypedDict, total=False):
    """Keywords of every encoding call; meanings and defaults at `Codec.encode_detailed`."""

    bpp: float | None
    max_bytes: int | None
    psnr: float | None
    msssim: float | None
    quality: float | None
    metric: str
    effort: int | Effort
    b: int | None
    tile: int
    metadata: images.Metadata
    alpha_quality: float | None
    truncated: bool
    max_seconds: float | None
    progress: Callable[[float, str], None] | None


@dataclass(frozen=True)
class Encoded:
    """Result of an encode.

    Attributes:
        data: the file.
        bpp: 8 * len(data) / pixels.
        quality: 0..100, the one used: lower than the one asked for where that is no worse (`l2c.guard`).
        target_reached: False where even the best quality needs less than the target (or does not reach it).
        reason: why the target was not reached, or "".
        probes: how many qualities were encoded to find this one.
        corrections: how many times the latents were changed, after the search, to meet the target.
        seconds: time per stage: "load", "encoder" (E and I), "adapt", "entropy" (P and coder), "total".
        latents_sha256: SHA-256 of all latent symbols, as `verify` prints it.
        adaptation: what the adaptation did, empty at effort 0; see `adapt.encoder.Adapted.report`.
    """

    data: bytes = field(repr=False)
    bpp: float
    quality: float
    target_reached: bool = True
    reason: str = ""
    probes: int = 1
    corrections: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    latents_sha256: str = ""
    adaptation: dict[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """Result of `Codec.decode_detailed`.

    Attributes:
        picture: pixels uint8 [H, W, 3] with original mode, alpha, ICC profile and EXIF.
        latents_sha256: SHA-256 of all latent symbols, as `Codec.verify` returns it.
        seconds: time per stage: "container", "entropy" (P and coder), "decoder" (D), "total".
    """

    picture: images.Picture
    latents_sha256: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class _File:
    """An encoded picture: its bytes, the SHA-256 of its latent symbols, and its quality 0..1000."""

    data: bytes
    digest: str
    level: int


@dataclass(frozen=True)
class _Analysed:
    """What E, I and Q made of a picture.

    Attributes:
        symbols: uint8 [c, h, w].
        clipped: what latents lose at their limits, see `guard.Look`.
        y: the latents before Q, float32 [c, h, w], and mask: bool [c, h, w] (None without I), where they were kept.
    """

    symbols: UInt8Array
    clipped: float
    y: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    mask: npt.NDArray[np.bool_] | None = None


@dataclass
class _Latents:
    """Symbols of one picture and what the header must say of them: uint8 [c, h, w]."""

    symbols: UInt8Array
    quality: int
    mu: int
    b: int


@dataclass
class _Batch:
    """What one call encodes, and how; `clock` collects seconds per stage, `deadline` is of `time.perf_counter`."""

    pictures: list[images.Picture]
    sections: list[dict[int, bytes]]
    mu: int
    bits: int
    tile: int
    effort: Effort
    clock: dict[str, float]
    deadline: float
    progress: Callable[[float, str], None]
    guards: list[guard.QualityGuard]

    def only(self, *members: int) -> _Batch:
        """The same for one of the pictures alone, or for some of them."""
        pictures, sections = [self.pictures[i] for i in members], [self.sections[i] for i in members]
        return replace(self, pictures=pictures, sections=sections, guards=[self.guards[i] for i in members])

    def settled(self, i: int, level: int) -> int:
        """The quality at which a picture is encoded where this one (0..1000) is asked for, as far as is known."""
        return self.guards[i].settled.get(level, level)

    def overhead(self, i: int) -> float:
        """Bytes of a picture's file that no quality changes, about: metadata and alpha, the header, a coder's flush."""
        return _LEAST_FILE + sum(len(body) + _SECTION_ENTRY for body in self.sections[i].values())


def _of_device(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same call, whatever PyTorch's default device is; a GPU that fails or is full named by an error of ours."""

    @functools.wraps(call)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            with _on_cpu_by_default():
                return call(*args, **kwargs)
        except RuntimeError as error:
            # CUDA's and cuDNN's errors have no class of their own in every version of PyTorch.
            known = isinstance(error, torch.OutOfMemoryError) or re.search("CUDA|cuDNN|CUDNN|CUBLAS", str(error))
            if isinstance(error, L2CError) or not known:
                raise
            raise BackendError(f"the device failed: {_first_line(error)}") from error

    return guarded


@contextlib.contextmanager
def _on_cpu_by_default() -> Iterator[None]:
    """Tensors made without a device are made on the CPU, whatever `torch.set_default_device` says in this thread.

    Every call of the codec names the devices it needs; this is for what PyTorch's own modules make inside it.
    """
    with contextlib.ExitStack() as stack:
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class Codec:
    """A model on a device.

    Args:
        model: name of a shipped model or path of a model file.
        device: "cpu", "cuda" (the GPU that is current now), "cuda:1", ...
        backend: how P's integers are computed: "auto", "cpu", "triton", "torch" or "reference"; see
            `backends.choose`. All give the same files. "auto" goes on to a slower one, with a warning, where the fast
            one computes other integers here than it should; one asked for by name raises.
        precision: of E and D. "float32": pixels of any two devices differ by one level at most. "bfloat16": the
            convolutions run in it (the block transforms and all that P does never do), about twice as fast on CPUs
            with AVX512-BF16 or AMX and on GPUs. A file's latents stay exact; decoded pixels were seen to differ from
            float32 by one level on photographs, by up to three on drawn textures. A picture may be encoded to other
            latents.
        threads: threads of P and the coder, at most 64; None: as many as torch uses.
        limits: what a file may ask for when decoding.
        strict: a file of another model raises ModelMismatchError; otherwise the model is looked for by its id.
    Raises:
        BackendError: the device or backend cannot run here. Every call raises it, too, where a GPU fails or has too
            little memory and the CPU cannot take over.
        ModelMismatchError: no such model. UnsupportedError: an argument that is none of these.
    """

    @_of_device
    def __init__(
        self,
        model: str | Any = DEFAULT_MODEL,
        device: str | torch.device = "cpu",
        *,
        backend: str = "auto",
        precision: str = "float32",
        threads: int | None = None,
        limits: Limits | None = None,
        strict: bool = False,
    ) -> None:
        if not isinstance(model, (str, os.PathLike, Model)):
            raise UnsupportedError(f"model is {model!r}: it must be a name, a path or a loaded model")
        if limits is not None and not isinstance(limits, Limits):
            raise UnsupportedError(f"limits is {limits!r}: it must be l2c.Limits")
        self.model = model if isinstance(model, Model) else load_model(model)
        self.device = _device(device)
        ops.cpp_extension().cpu()  # that L2C_CPU says what cannot be is no reason to take another backend
        self._asked_backend = backend
        self.backend, *others = backends.chain(backend, self.device)
        _check_threads(threads)
        if precision not in PRECISIONS:
            raise UnsupportedError(f"precision is {precision!r}: it must be one of {', '.join(PRECISIONS)}")
        self.precision = precision
        self.threads = None if threads is None else min(int(threads), _MOST_THREADS)
        self.limits = limits if limits is not None else Limits()
        self.strict = strict
        self._others: dict[bytes, Codec] = {}
        self._trusted = {backends.DEFINITION: True}
        self._float_probability: ProbabilityModel | None = None
        # A model stays on the CPU, where other codecs may share it.
        self.transform = self.model.transform
        if self.device.type != "cpu":
            with torch.inference_mode(False):
                self.transform = copy.deepcopy(self.transform).to(self.device)
        # A wrong integer ruins a picture, so every device proves itself once (DESIGN 3.5).
        for name, following in itertools.zip_longest([self.backend, *others], others):
            try:
                multiscale.check_backend(self.model.integer, self.model.known_answer, name, self.device)
                self.backend = name
                break
            except BackendError as error:
                if following is None:
                    raise
                instead = self.model.integer.backends()[following].spoken
                warnings.warn(f"{error}; using {instead}", images.L2CWarning, stacklevel=2)

    # --- encoding -----------------------------------------------------------------------------------------------

    def encode(self, image: Any, **options: Unpack[EncodeOptions]) -> bytes:
        """Encode one picture; arguments and errors as `encode_detailed`. Returns the file.

        Warns (`L2CWarning`) where a target was not reached.
        """
        encoded = self.encode_detailed(image, **options)
        _warn_unreached([encoded])
        return encoded.data

    def encode_detailed(self, image: Any, **options: Unpack[EncodeOptions]) -> Encoded:
        """Encode one picture and say how it went.

        Args:
            image: a path, the bytes of a picture file, a PIL image, a numpy array or a torch tensor; what is
                accepted exactly is stated at `l2c.images.load_picture`.
            bpp: target in bits per pixel for the whole file; the file is never larger.
            max_bytes: target in bytes for the whole file, likewise.
            psnr: target in dB over RGB: the file of the least quality found that is no worse.
            msssim: target 0..1, likewise. Both measure whole pictures: some hundred bytes of memory a pixel.
            quality: 0..100 instead of a target; more is better and larger. Without any of these: 50. A picture that
                the model cannot make better at this quality than at a lower one is coded at the lower one.
            metric: what the bits are spent on: "psnr" (squared error of RGB), "msssim" (MS-SSIM of RGB) or "mixed", the
                default, for eyes: squared error of luma and a little of chroma, and MS-SSIM of luma (`l2c.objective`).
            effort: 0 (default, no adaptation) to 9: how much work goes into adapting the latents and the decoder to
                the picture; or a mixture of your own, an `l2c.Effort`. Level 9 does its work at three
                qualities where a rate is asked for. Decoding stays one pass at every level.
            b: quantisation bits 1..8 (default: the model's).
            tile: side of a tile in pixels: 512, 1024, ...; with effort at most 2048.
            metadata: what is kept beside the pixels: "all" (True, the default): ICC profile, EXIF, XMP and dots per
                inch; "color": the profile alone; "none" (False): nothing, with colours converted to sRGB. Alpha is
                always kept.
            alpha_quality: None (the default): alpha is kept without loss. 0..100: with loss where that is smaller, at a
                PSNR of about 25 + alpha_quality / 4 dB over what is neither opaque nor transparent; areas of 0 and of
                255 stay exactly that. 16-bit alpha then comes back with 8 bits, with a warning. For soft and noisy
                masks; `l2c.lossy_alpha` says what a decoded plane depends on.
            truncated: read what there is of a picture file that is cut off or damaged, with a warning.
            max_seconds: the adaptation ends at this time after the call began and the best file so far is returned;
                what comes before and after it (the search for a quality, writing) takes its own time.
            progress: called with the share done (0..1) and the name of the stage while pictures are adapted, in the
                calling thread; never at effort 0.
        Raises:
            ImageError: the picture cannot be read. LimitError: it has more pixels than the limits allow.
            RateError: the target lies below what this picture can reach; names the least rate.
            UnsupportedError: an option that does not exist.
        """
        return self.encode_batch_detailed([image], **options)[0]

    def encode_batch(self, images_: Iterable[Any], **options: Unpack[EncodeOptions]) -> list[bytes]:
        """Encode pictures of any sizes together; arguments, errors and warnings as `encode`."""
        batch = self.encode_batch_detailed(images_, **options)
        _warn_unreached(batch)
        return [encoded.data for encoded in batch]

    @_of_device
    def encode_batch_detailed(
        self,
        images_: Iterable[Any],
        *,
        bpp: float | None = None,
        max_bytes: int | None = None,
        psnr: float | None = None,
        msssim: float | None = None,
        quality: float | None = None,
        metric: str = DEFAULT_METRIC,
        effort: int | Effort = 0,
        b: int | None = None,
        tile: int = DEFAULT_TILE,
        metadata: images.Metadata = True,
        alpha_quality: float | None = None,
        truncated: bool = False,
        max_seconds: float | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> list[Encoded]:
        """As `encode_detailed`, for several pictures; times are the batch's, shared equally."""
        start = time.perf_counter()
        bits = self.model.config.bits if b is None else b
        goals = {"bpp": bpp, "max_bytes": max_bytes, "psnr": psnr, "msssim": msssim, "quality": quality}
        others = {"max_seconds": max_seconds, "alpha_quality": alpha_quality}
        _check_options(goals, metric, effort, bits, self.model.config.bits, tile, others)
        if progress is not None and not callable(progress):
            raise UnsupportedError(f"progress is {progress!r}: it must be callable")
        images_ = list(images_)
        names, pictures, sections = _names(len(images_)), [], []
        for name, image in zip(names, images_):
            with _naming(name):
                picture = images.load_picture(image, max_pixels=self.limits.max_pixels, truncated=truncated)
                alpha: dict[int, bytes] = {}
                if picture.alpha is not None:
                    kind, body, seen = lossy_alpha.pack(picture.alpha, alpha_quality)
                    alpha[kind] = body
                    if picture.alpha.dtype != seen.dtype:
                        what = f"{name}16-bit alpha is reduced to 8 bits (alpha_quality)"
                        warnings.warn(what, images.L2CWarning, stacklevel=4)
                    # From here on also what distortion and targets are measured against.
                    picture = replace(picture, rgb=fill_transparent(picture.rgb, seen))
                pictures.append(images.keep(picture, metadata))
                sections.append(_sections(pictures[-1]) | alpha)
        for name, picture, kept in zip(names, pictures, sections):  # no file that this codec would refuse to decode
            with _naming(name):
                self._check_latent_limits(picture.width, picture.height, tile)
                largest = min(picture.width, tile) * min(picture.height, tile)
                if self.limits.max_tile_pixels is not None and largest > self.limits.max_tile_pixels:
                    raise LimitError(f"tile is {tile}: more pixels than {self.limits.max_tile_pixels} in a tile")
                self._check_parts(picture, kept, tile)
        batch = _Batch(
            pictures,
            sections,
            METRICS[metric],
            bits,
            tile,
            effort if isinstance(effort, Effort) else EFFORTS[effort],
            {"load": time.perf_counter() - start, "encoder": 0.0, "adapt": 0.0, "entropy": 0.0},
            float("inf") if max_seconds is None else start + max_seconds,
            _rising(progress) if progress is not None else _silent,
            [self._guard(picture.rgb, METRICS[metric], bits) for picture in pictures],
        )
        if bpp is not None or max_bytes is not None:
            rate = min(float(bpp), 1e12) if bpp is not None else 0.0  # more than any file has, its square is finite
            most = min(float(max_bytes), 1e15) if max_bytes is not None else 0.0
            size = [rate * p.height * p.width / 8.0 if bpp is not None else most for p in pictures]
            results = self._search_rate(batch, size)
        elif psnr is not None or msssim is not None:
            value = float(psnr) if psnr is not None else dissimilarity_db(float(msssim or 0.0))
            results = self._search_metric(batch, value, "PSNR" if psnr is not None else "MS-SSIM")
        else:
            level = round((DEFAULT_QUALITY if quality is None else quality) * MAX_QUALITY / 100)
            results = self._encode_levels(batch, [level] * len(pictures))
        batch.clock["total"] = time.perf_counter() - start
        seconds = {stage: value / max(1, len(pictures)) for stage, value in batch.clock.items()}
        return [replace(result, seconds=seconds) for result in results]

    def _check_parts(self, picture: images.Picture, sections: dict[int, bytes], tile: int) -> None:
        """Raises LimitError: more metadata or tiles than this codec would decode."""
        size = sum(len(body) for kind, body in sections.items() if kind not in ALPHA_TYPES)
        tiles = -(-picture.height // tile) * -(-picture.width // tile)
        for name, value in (("max_metadata_bytes", size), ("max_tiles", tiles)):
            limit = getattr(self.limits, name)
            if limit is not None and value > limit:
                raise LimitError(f"the file would have {value} of what Limits.{name} allows {limit} of")

    def _encode_levels(self, batch: _Batch, levels: list[int]) -> list[Encoded]:
        """Files at given qualities 0..1000, adapted as the effort says."""
        files = self._encode_at(batch, range(len(levels)), levels)  # of which an effort needs the guards' word alone
        if not batch.effort.adapts:
            return list(map(_result, batch.pictures, files))
        results = []
        for i, adapted in self._adapt(batch, levels):
            file = self._write_adapted(batch, i, adapted)
            results.append(replace(_result(batch.pictures[i], file), adaptation=adapted.report()))
        return results

    def _search_rate(self, batch: _Batch, sizes: list[float]) -> list[Encoded]:
        """Encode every picture at the best quality whose file fits its size; all open pictures share each pass.

        With adaptation the quality is searched for a file that is larger by what the adaptation saves on average, and
        the rest of the difference is made up in the latents, without E. Several tries start at different qualities, and
        the least distortion counts. A picture that this does not bring to its size is adapted once more at a quality
        chosen by what its adaptation saved, and in the end coded without.
        """
        searches = [
            QualitySearch(
                self._unadapted(batch, i, sizes[i]),
                p.height * p.width,
                self.model.rate_curve,
                _ADAPTED_TOLERANCE if batch.effort.adapts else TOLERANCE,
                overhead=batch.overhead(i),
            )
            for i, p in enumerate(batch.pictures)
        ]
        results: list[Encoded | None]
        if not batch.effort.adapts:
            results = self._at_size(batch, searches)
        else:
            self._find(batch, searches)
            results = [None] * len(sizes)
            if time.perf_counter() < batch.deadline:
                self._adapt_to_sizes(batch, sizes, searches, results)
            # The pictures that are not there yet, without adaptation; what was probed already is known.
            for i, size in enumerate(sizes):
                if not _near(results[i], size):
                    search = searches[i].towards(size, TOLERANCE)
                    (plain,) = self._at_size(batch.only(i), [search])
                    adapted = results[i]
                    if adapted is None or (plain and len(adapted.data) < _WORTH_ADAPTING * len(plain.data)):
                        results[i] = plain
        rated = []
        for i, (name, result) in enumerate(zip(_names(len(results)), results)):
            with _naming(name):
                rated.append(self._rated(batch, i, sizes[i], searches[i], result))
        return rated

    @staticmethod
    def _unadapted(batch: _Batch, i: int, size: float, factor: float = 1.0) -> float:
        """Size of the unadapted file of a picture at whose quality the search for `size` bytes should begin.

        Args:
            factor: of what the effort is known to save.
        """
        picture, overhead = batch.pictures[i], batch.overhead(i)
        if size <= overhead:
            return size
        payload = size - overhead
        saving = batch.effort.saving(batch.mu, 8.0 * payload / (picture.height * picture.width))
        return overhead + payload / (1.0 - factor * saving)

    def _find(self, batch: _Batch, searches: list[QualitySearch]) -> dict[int, _File]:
        """Run the searches of all pictures; returns the file of each one's best, where it was encoded here."""
        best: dict[int, tuple[int, _File]] = {}
        while True:
            asked = {i: search.next_quality for i, search in enumerate(searches)}
            due = {i: level for i, level in asked.items() if level is not None}
            if not due:
                return {i: file for i, (level, file) in best.items() if level == searches[i].best}
            for (i, level), file in zip(due.items(), self._encode_at(batch, list(due), list(due.values()))):
                searches[i].report(level, len(file.data))
                if searches[i].best == level:
                    best[i] = (level, file)

    def _at_size(self, batch: _Batch, searches: list[QualitySearch]) -> list[Encoded | None]:
        """The best unadapted file of each picture within its search's size; None where there is none."""
        found = self._find(batch, searches)
        results: list[Encoded | None] = []
        for i, search in enumerate(searches):
            if search.best is None:
                results.append(None)
                continue
            file = found[i] if i in found else self._encode_at(batch, [i], [search.best])[0]
            results.append(_result(batch.pictures[i], file))
        return results

    def _adapt_to_sizes(
        self, batch: _Batch, sizes: list[float], searches: list[QualitySearch], results: list[Encoded | None]
    ) -> None:
        """Adapt all pictures and bring them to their sizes; fills in `results` where that works."""
        levels = [0 if search.best is None else search.best for search in searches]
        tries = batch.effort.tries if batch.effort.iterations else 1
        firsts = self._try(batch, sizes, searches, levels, results, (0, tries))
        done = [{level} for level in levels]
        for k in range(1, tries):
            if time.perf_counter() > batch.deadline:
                return
            factor = _TRIES[k]
            others = [
                search.towards(self._unadapted(batch, i, size, factor), _ADAPTED_TOLERANCE)
                for i, (search, size) in enumerate(zip(searches, sizes))
            ]
            self._find(batch, others)
            more = [0 if search.best is None else search.best for search in others]
            members = [i for i, level in enumerate(more) if level not in done[i]]
            if not members:
                batch.progress((k + 1) / tries, "adapted")
                continue
            tried: list[Encoded | None] = [None] * len(members)
            targets, known = [sizes[i] for i in members], [searches[i] for i in members]
            self._try(batch.only(*members), targets, known, [more[i] for i in members], tried, (k, tries))
            for i, new in zip(members, tried):
                results[i] = self._better(batch, i, levels[i], results[i], new, sizes[i])
                done[i].add(more[i])
        for i, (level, first) in enumerate(zip(levels, firsts)):
            if _near(results[i], sizes[i]) or time.perf_counter() > batch.deadline:
                continue
            only, search = batch.only(i), searches[i]
            grown = search.payload(search.sizes[level]) / search.payload(first)
            again = search.towards(search.overhead + search.payload(_aim(sizes[i])) * grown, TOLERANCE)
            self._find(only, [again])
            other = 0 if again.best is None else again.best
            if other != level:
                for _, adapted in self._adapt(only, [other]):
                    second, _ = self._fit(only, 0, adapted, sizes[i])
                    results[i] = max((r for r in (results[i], second) if r), key=lambda r: len(r.data), default=None)

    def _try(
        self,
        batch: _Batch,
        sizes: list[float],
        searches: list[QualitySearch],
        levels: list[int],
        results: list[Encoded | None],
        turn: tuple[int, int],
    ) -> list[int]:
        """Adapt all pictures at given qualities, aiming at their sizes; returns the sizes before corrections.

        `turn`: number of this try, and of how many.
        """
        (number, count), progress = turn, batch.progress
        batch = replace(batch, progress=lambda share, stage: progress((number + share) / count, stage))
        aims = [
            search.payload(_aim(size)) / search.payload(search.sizes[level])
            for size, search, level in zip(sizes, searches, levels)
        ]
        firsts = [0] * len(levels)
        for i, adapted in self._adapt(batch, levels, aims):
            results[i], firsts[i] = self._fit(batch, i, adapted, sizes[i])
        return firsts

    def _better(
        self, batch: _Batch, i: int, level: int, old: Encoded | None, new: Encoded | None, size: float
    ) -> Encoded | None:
        """Of two files for one size the one that is near it, or if both are, the one with less J at a quality."""
        if not _near(new, size) or not _near(old, size):
            return old if _near(old, size) else new if _near(new, size) else old or new
        assert old is not None and new is not None
        objectives, lmbda = [], self.model.config.lmbda(level / MAX_QUALITY)
        blend = Blend.of(torch.tensor([batch.mu], device="cpu"), torch.tensor([lmbda], device="cpu"))
        for result in (old, new):
            (pixels,) = self.decode_batch([result.data])
            cost = 0.0
            for top, left, bottom, right in tile_boxes(pixels.shape[0], pixels.shape[1], batch.tile, 1):
                pair = (part[top:bottom, left:right] for part in (batch.pictures[i].rgb, pixels))
                x, x_hat = (torch.from_numpy(a.astype(np.float32)).permute(2, 0, 1)[None] / 255.0 for a in pair)
                cost += float(distortion(x, x_hat, blend)) * (bottom - top) * (right - left)
            objectives.append(lmbda * cost + 8.0 * len(result.data))
        return old if objectives[0] <= objectives[1] else new

    def _rated(self, batch: _Batch, i: int, size: float, search: QualitySearch, result: Encoded | None) -> Encoded:
        """The result with what the search for its rate has to say. Raises RateError where there is none."""
        picture, guarded = batch.pictures[i], batch.guards[i]
        if result is None:
            pixels, least = picture.height * picture.width, min(search.sizes.values())
            raise RateError(
                f"{8.0 * size / pixels:g} bpp ({size:.0f} bytes) is below what this {picture.width}x{picture.height} "
                f"picture can reach: its least rate is {8.0 * least / pixels:.4f} bpp ({least} bytes)",
                8.0 * least / pixels,
            )
        result = replace(result, probes=len(search.sizes))
        if not _near(result, size):
            reason = f"no quality found gives a file between {len(result.data)} and {size:.0f} bytes"
            if result.quality == 100.0:
                reason = f"the best quality of this model needs only {result.bpp:.4f} bpp"
            elif guarded.settled.get(MAX_QUALITY) == round(result.quality * MAX_QUALITY / 100):
                reason = f"this picture is best at quality {result.quality:g}, which needs only {result.bpp:.4f} bpp"
            result = replace(result, target_reached=False, reason=reason)
        return result

    def _fit(self, batch: _Batch, i: int, adapted: Adapted, size: float) -> tuple[Encoded | None, int]:
        """The adapted picture in at most `size` bytes and hardly less; None: it cannot be done.

        While the file is much too large the search goes on with bits that weigh more; what is left over is trimmed, and
        where too much was saved some of the last moves are taken back, all without E. Returns also the size before any
        of it.
        """
        best: _File | None = None
        first = steers = trims = restores = 0
        goal, trust, change, before = (1.0 - 0.1 * ACCEPTED) * size, 1.0, 0.0, 0
        overhead = batch.overhead(i)
        steering = Steering(max(_aim(size) - overhead, 1.0), beta=adapted.beta)
        while True:
            file = self._write_adapted(batch, i, adapted)
            now = len(file.data)
            first = first or now
            if now <= size and (best is None or now > len(best.data)):
                best = file
            late = time.perf_counter() > batch.deadline
            if (1.0 - 0.5 * ACCEPTED) * size <= now <= size or (late and not adapted.searched):
                break
            if not (trims or restores or late) and now > _TRIMMED * size and steers < MAX_STEERS:
                adapted.steer(steering.next_beta(max(now - overhead, 1.0)))
                steers += 1
                continue
            if change:
                trust = min(max(8.0 * (now - before) / change, 0.3), 3.0)
            before = now
            if now > size and trims < MAX_TRIMS:
                trims += 1
                change = -adapted.trim(8.0 * (now - goal) / trust)
            elif now <= size and not trims and restores < MAX_TRIMS:
                restores += 1
                change = adapted.restore(8.0 * (goal - now) / trust)
            else:
                break
            if change == 0.0:
                break
        if best is None:
            return None, first
        result = replace(_result(batch.pictures[i], best), adaptation=adapted.report())
        return replace(result, corrections=steers + trims + restores), first

    def _search_metric(self, batch: _Batch, value: float, name: str) -> list[Encoded]:
        """Encode every picture at the least quality whose PSNR or MS-SSIM (both in dB) reaches `value`."""
        searches = [MetricSearch(value) for _ in batch.pictures]
        files: list[dict[int, _File]] = [{} for _ in batch.pictures]
        while True:
            asked = {i: search.next_quality for i, search in enumerate(searches)}
            due = {i: level for i, level in asked.items() if level is not None}
            if not due:
                break
            for (i, level), file in zip(due.items(), self._encode_at(batch, list(due), list(due.values()))):
                files[i][level] = file
                searches[i].report(level, self._measured(batch.pictures[i], file.data, name), len(file.data))
        levels = [search.best for search in searches]
        results = [_result(p, mine[level]) for p, mine, level in zip(batch.pictures, files, levels)]
        if batch.effort.adapts and time.perf_counter() < batch.deadline:
            for i, adapted in self._adapt(batch, levels):
                results[i] = self._fit_metric(batch, i, adapted, searches[i], results[i], name)
        for i, search in enumerate(searches):
            results[i] = replace(results[i], probes=len(search.values))
            reached = self._measured(batch.pictures[i], results[i].data, name)
            if reached < value:
                shown = f"{reached:.2f} dB" if name == "PSNR" else f"{1.0 - 10.0 ** (-reached / 10.0):.5f}"
                reason = f"the best that this model was seen to do here is {name} {shown}"
                results[i] = replace(results[i], target_reached=False, reason=reason)
        return results

    def _fit_metric(
        self, batch: _Batch, i: int, adapted: Adapted, search: MetricSearch, plain: Encoded, name: str
    ) -> Encoded:
        """The smallest file found that reaches the target: the plain one, or an adapted one, steered there."""
        best, growth = plain, search.bits_per_db()
        steering = Steering(math.exp(growth * (search.target + 0.2 * _METRIC_TOLERANCE)), beta=adapted.beta)
        for count in range(MAX_STEERS + 1):
            file = self._write_adapted(batch, i, adapted)
            reached = self._measured(batch.pictures[i], file.data, name)
            if reached >= search.target and len(file.data) < len(best.data):
                result = replace(_result(batch.pictures[i], file), adaptation=adapted.report())
                best = replace(result, corrections=count)
            good = search.target <= reached <= search.target + _METRIC_TOLERANCE
            if good or count == MAX_STEERS or time.perf_counter() > batch.deadline:
                break
            adapted.steer(steering.next_beta(math.exp(growth * reached)))
        return best

    def _measured(self, picture: images.Picture, data: bytes, name: str) -> float:
        """PSNR, or MS-SSIM in dB, of a file's pixels."""
        (pixels,) = self.decode_batch([data])
        # Not from_numpy of the pictures themselves: a caller's array may be read-only, which PyTorch warns about.
        pair = (torch.from_numpy(part.astype(np.float32)) for part in (picture.rgb, pixels))
        x, x_hat = (part.permute(2, 0, 1)[None] / 255.0 for part in pair)
        return float(psnr_of(x, x_hat)) if name == "PSNR" else dissimilarity_db(float(msssim_of(x, x_hat)))

    def _encode_at(self, batch: _Batch, members: Sequence[int], levels: list[int]) -> list[_File]:
        """Unadapted files of some pictures at given qualities (0..1000), or at lower ones that serve them better."""
        files, clipped = self._encode_exactly(batch, members, [batch.settled(i, q) for i, q in zip(members, levels)])
        for place, (i, level, loss) in enumerate(zip(members, levels, clipped)):
            if level in batch.guards[i].settled:
                continue
            payload = len(files[place].data) - batch.overhead(i)
            pixels = batch.pictures[i].height * batch.pictures[i].width
            simple = guard.is_small(8.0 * payload / pixels, level, self.model.rate_curve)
            simple = simple or guard.is_flat(batch.pictures[i].rgb)
            if simple or loss > guard.CLIPPED:
                start = time.perf_counter()
                settled = batch.guards[i].settle(level, simple)
                batch.clock["encoder"] += time.perf_counter() - start
                if settled != level:
                    ((files[place],), _) = self._encode_exactly(batch, [i], [settled])
        return files

    def _encode_exactly(
        self, batch: _Batch, members: Sequence[int], levels: list[int]
    ) -> tuple[list[_File], list[float]]:
        """Unadapted files of some pictures at these very qualities, and how much their latents clip."""
        start = time.perf_counter()
        analysed = self._analyse([batch.pictures[i].rgb for i in members], levels, batch.mu, batch.bits)
        batch.clock["encoder"] += time.perf_counter() - start
        latents = [_Latents(part.symbols, level, batch.mu, batch.bits) for part, level in zip(analysed, levels)]
        return self._write(batch, members, latents, [b""] * len(latents)), [part.clipped for part in analysed]

    def _guard(self, pixels: UInt8Array, mu: int, bits: int) -> guard.QualityGuard:
        """What decides whether a quality serves a picture, uint8 [H, W, 3]."""
        return guard.QualityGuard(functools.partial(self._look, pixels, mu, bits))

    @torch.inference_mode()
    def _look(self, pixels: UInt8Array, mu: int, bits: int, level: int) -> guard.Look:
        """What E, Q and D make of a picture, or of a sample of it, at a quality 0..1000."""
        crops = torch.from_numpy(np.array(guard.sample(pixels))).to(self.device)
        x = crops.permute(0, 3, 1, 2).float() / 255.0
        cond = self._condition(level, mu).expand(len(x), -1)
        padded = networks.pad_to_multiple(x, self.transform.s).contiguous(memory_format=torch.channels_last)
        with self._float_mode():
            y, tau = self.transform.encoder(padded, cond)
            y_hat = networks.to_levels(y, bits, tau)
            x_hat = self.transform.decoder(y_hat, cond, None)[:, :, : x.shape[2], : x.shape[3]]
        x_hat = x_hat.float().mul(255.0).round_().clamp_(0.0, 255.0).div_(255.0)
        blend = Blend.of(
            torch.full((len(x),), mu, device="cpu"), torch.full((len(x),), self.model.config.lmbda(1.0), device="cpu")
        )
        cost = distortion(x.cpu(), x_hat.cpu(), blend).mean()
        return guard.Look(float(cost), float(networks.clipping(y, bits, tau).mean()))

    def _write_adapted(self, batch: _Batch, i: int, adapted: Adapted) -> _File:
        latents = _Latents(adapted.symbols(), adapted.subject.header[0], batch.mu, batch.bits)
        return self._write(batch, [i], [latents], [adapted.changes.pack()])[0]

    def _write(
        self, batch: _Batch, members: Sequence[int], latents: list[_Latents], changes: list[bytes]
    ) -> list[_File]:
        """Files of pictures' latents and changes to D."""
        start = time.perf_counter()
        pictures = [batch.pictures[i] for i in members]
        coded = self._write_latents([(p.height, p.width) for p in pictures], latents, batch.tile)
        files = []
        for i, part, (payloads, used), adaptation in zip(members, latents, coded, changes):
            picture = batch.pictures[i]
            header = Header(
                width=picture.width,
                height=picture.height,
                model_id=self.model.model_id,
                latents_crc32=zlib.crc32(part.symbols),
                quality=part.quality,
                latent_bits=part.b,
                metric_mix=part.mu,
                mode=picture.mode,
                bit_depth=picture.bit_depth,
                tile_size=batch.tile,
            )
            sections = batch.sections[i] | ({ADAPT: adaptation} if adaptation else {})
            digest = hashlib.sha256(part.symbols).hexdigest()
            files.append(_File(write_bitstream(header, payloads, used, sections), digest, part.quality))
        batch.clock["entropy"] += time.perf_counter() - start
        return files

    def _adapt(
        self, batch: _Batch, levels: list[int], aims: list[float] | None = None
    ) -> Iterator[tuple[int, Adapted]]:
        """Search latents and decoder changes of all pictures at given qualities; yields each picture when it is done.

        `aims` are shares of their unadapted sizes that the pictures should come to; None: what J says.
        Pictures are taken together up to _ADAPT_PIXELS; a larger one is taken alone, about 80 bytes a pixel.
        """
        groups: list[list[int]] = []
        weights = [p.height * p.width for p in batch.pictures]
        for i, weight in enumerate(weights):
            if not groups or sum(weights[k] for k in groups[-1]) + weight > _ADAPT_PIXELS:
                groups.append([])
            groups[-1].append(i)
        done = 0
        for members in groups:
            mine = sum(weights[i] for i in members)

            def tell(share: float, stage: str, before: int = done, mine: int = mine) -> None:
                batch.progress((before + share * mine) / sum(weights), stage)

            start = time.perf_counter()
            with torch.inference_mode(False):  # gradients are needed, whatever the caller has set
                subjects = self._subjects(batch, members, levels)
                for i, subject in zip(members, subjects):
                    subject.aim = aims[i] if aims is not None else None
                middle = time.perf_counter()
                results = adapt(
                    self.transform, self.float_probability(), self.model.bias_sets, subjects, batch.effort, self.device,
                    tell, lambda: time.perf_counter() > batch.deadline,
                )  # fmt: skip
            batch.clock["encoder"] += middle - start
            batch.clock["adapt"] += time.perf_counter() - middle
            done += mine
            yield from zip(members, results)

    def _subjects(self, batch: _Batch, members: Sequence[int], levels: list[int]) -> list[Subject]:
        """Some of the pictures as the adaptation takes them, E's latents included; levels are of all pictures."""
        pictures = [batch.pictures[i] for i in members]
        chosen = [batch.settled(i, levels[i]) for i in members]
        analysed = self._analyse([p.rgb for p in pictures], chosen, batch.mu, batch.bits, keep=True)
        return [
            Subject(
                picture.rgb,
                torch.from_numpy(part.y),
                None if part.mask is None else torch.from_numpy(part.mask),
                tile_boxes(picture.height, picture.width, batch.tile, self.transform.s),
                self._condition(level, batch.mu),
                self.model.config.lmbda(level / MAX_QUALITY),
                (level, batch.mu, batch.bits),
            )
            for picture, part, level in zip(pictures, analysed, chosen)
        ]

    def float_probability(self) -> ProbabilityModel:
        """The float form of P on this codec's device, made on first use: what gradients come from."""
        with _float_lock:
            if self._float_probability is None:
                with torch.inference_mode(False), torch.device("cpu"):
                    made = multiscale.to_float(self.model.integer, self.model.config).float()
                    made = made.eval().requires_grad_(False)
                    made = made.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                self._float_probability = made
            return self._float_probability

    def _condition(self, level: int, mu: int) -> Tensor:
        pair = torch.tensor(
            [[self.model.config.lmbda(level / MAX_QUALITY)], [mu / MAX_MU]], dtype=torch.float32, device="cpu"
        )
        return networks.condition(*pair).to(self.device)

    @contextlib.contextmanager
    def _float_mode(self) -> Iterator[None]:
        """E and D in this codec's precision, whatever a caller has set. On a GPU float32 means no TF32."""
        low = self.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low), contextlib.ExitStack() as stack:
            if self.device.type == "cuda":
                stack.enter_context(arithmetic.ieee_float32())
            yield

    @torch.inference_mode()
    def _analyse(
        self, pixels: list[UInt8Array], levels: list[int], mu: int, bits: int, *, keep: bool = False
    ) -> list[_Analysed]:
        """E, I and Q: uint8 [H, W, 3] -> symbols uint8 [c, ceil(H/s), ceil(W/s)]. Equal sizes share a pass.

        With `keep` the latents before Q and the mask of every picture come as well.
        """
        s, c = self.transform.s, self.model.config.transform.c
        halo = _round_up(self.transform.encoder.receptive_halo_px, s)
        results: dict[int, _Analysed] = {}
        for members in _same_shape([p.shape[:2] for p in pixels]):
            height, width = pixels[members[0]].shape[:2]
            cond = torch.cat([self._condition(levels[i], mu) for i in members])
            canvas = np.empty((len(members), c, -(-height // s), -(-width // s)), dtype=np.uint8)
            before = np.empty(canvas.shape if keep else 0, dtype=np.float32)
            masks = np.ones(canvas.shape if keep else 0, dtype=np.bool_)
            clipped = torch.zeros(len(members), device=self.device)
            for top, left, bottom, right in _chunks(height, width):
                t, l = max(0, top - halo), max(0, left - halo)
                lower, r = min(height, bottom + halo), min(width, right + halo)
                stacked = np.stack([pixels[i][t:lower, l:r] for i in members])
                x = torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2).float() / 255.0
                x = networks.pad_to_multiple(x, s).contiguous(memory_format=torch.channels_last)
                with self._float_mode():
                    y, tau = self.transform.encoder(x, cond)
                    z = networks.quantise(y, bits, tau)
                rows, columns = -(-(bottom - top) // s), -(-(right - left) // s)
                y0, x0 = (top - t) // s, (left - l) // s
                to = (..., slice(top // s, top // s + rows), slice(left // s, left // s + columns))
                part = (..., slice(y0, y0 + rows), slice(x0, x0 + columns))
                canvas[to] = z[part].cpu().numpy()
                clipped += networks.clipping(y, bits, tau)[part[:1] + part[2:]].sum(dim=(1, 2))
                if keep and tau is not None:
                    mask = networks.importance_mask(tau, c)
                    y = y * mask
                    masks[to] = (mask[part] > 0).cpu().numpy()
                if keep:
                    before[to] = y[part].cpu().numpy()
            masked = self.transform.encoder.importance is not None
            shares = (clipped / canvas[0, 0].size).tolist()
            for k, i in enumerate(members):
                results[i] = _Analysed(canvas[k], shares[k])
                if keep:
                    results[i] = replace(results[i], y=before[k], mask=masks[k] if masked else None)
        return [results[i] for i in range(len(pixels))]

    def _write_latents(
        self, sizes: list[tuple[int, int]], latents: list[_Latents], tile: int
    ) -> list[tuple[list[bytes], list[int]]]:
        """(payloads, used channels) of every picture, all tiles coded in one call."""
        jobs, counts = [], []
        for (height, width), part in zip(sizes, latents):
            boxes = tile_boxes(height, width, tile, self.transform.s)
            counts.append(len(boxes))
            for top, left, bottom, right in boxes:
                symbols = np.ascontiguousarray(part.symbols[:, top:bottom, left:right])
                used = networks.used_channels(torch.from_numpy(symbols), part.b)
                header = (part.quality, part.mu, part.b)
                jobs.append(EncodingJob(bottom - top, right - left, header, used, symbols))
        self._code(jobs, self.backend)
        results, start = [], 0
        for count in counts:
            mine = jobs[start : start + count]
            start += count
            results.append(([job.encoder.finish() for job in mine], [job.used for job in mine]))
        return results

    def _code(self, jobs: Sequence[Job], backend: str) -> list[UInt8Array]:
        """P and the coder. What the kernels fail at, for want of memory say, the CPU does."""
        threads = self.threads if self.threads is not None else torch.get_num_threads()
        try:
            return self.model.integer.code(jobs, backend, self.device, threads)
        except RuntimeError as error:
            spare = self.model.integer.backends()[backend].spare
            if not spare:
                raise
            self._warn_of_device(error, f"using {self.model.integer.backends()[spare].spoken}")
            return self.model.integer.code(jobs, spare, self.device, threads)

    # --- decoding -----------------------------------------------------------------------------------------------

    def decode(self, data: bytes | bytearray | memoryview, *, as_: Output = "numpy", mode: str | None = None) -> Any:
        """Decode one file.

        Args:
            data: the bytes of a file.
            as_: "numpy" (an array uint8 [H, W, C]), "pil" (an image with what was kept in `info`) or "torch" (a tensor
                uint8 [C, H, W] on this codec's device).
            mode: "rgb": three channels; "original": as the picture was, that is grey as [H, W] (Pillow's L; a tensor
                [1, H, W]), and with alpha two channels (LA) or four (RGBA). None: "original" for "pil", "rgb" for
                "numpy" and "torch".
        Raises:
            BitstreamError: not one of our files, or damaged. LimitError: larger than the limits allow.
            ModelMismatchError: made with a model that is not at hand. UnsupportedError: unknown `as_` or `mode`.
        """
        return self.decode_batch([data], as_=as_, mode=mode)[0]

    @_of_device
    def decode_batch(
        self, files: Iterable[bytes | bytearray | memoryview], *, as_: Output = "numpy", mode: str | None = None
    ) -> list[Any]:
        """Decode files of any sizes together; arguments and errors as `decode`, which name the file, counted from 1."""
        if as_ not in ("numpy", "pil", "torch"):
            raise UnsupportedError(f"as_ is {as_!r}: it must be 'numpy', 'pil' or 'torch'")
        if mode is None:
            mode = "original" if as_ == "pil" else "rgb"
        if mode not in ("rgb", "original"):
            raise UnsupportedError(f"mode is {mode!r}: it must be 'rgb' or 'original'")
        files = list(files)
        names = _names(len(files))
        streams = []
        for name, data in zip(names, files):
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise UnsupportedError(f"{name}a file is given as its bytes, not as {type(data).__name__}")
            with _naming(name):
                streams.append(read_bitstream(data, self.limits))
        results: list[Any] = [None] * len(streams)
        for codec, members in self._by_model(streams, names):
            chosen, chosen_names, changes = [streams[i] for i in members], [names[i] for i in members], []
            for name, stream in zip(chosen_names, chosen):
                with _naming(name):
                    codec._check_latent_limits(stream.header.width, stream.header.height, stream.header.tile_size)
                    changes.append(codec._changes(stream))
            pixels = codec._decode_queued(chosen, changes, keep_on_device=as_ == "torch")
            if pixels is None:
                symbols = codec.read_latents(chosen, chosen_names)
                pixels = codec._synthesise(chosen, symbols, changes, keep_on_device=as_ == "torch")
            for i, stream, picture in zip(members, chosen, pixels):
                with _naming(names[i]):
                    results[i] = _present(picture, stream, as_, mode)
        return results

    @_of_device
    def decode_detailed(self, data: bytes | bytearray | memoryview) -> Decoded:
        """Decode one file with everything that was kept beside the pixels, and say how it went; errors as `decode`."""
        start = time.perf_counter()
        stream = read_bitstream(data, self.limits)
        ((codec, _),) = self._by_model([stream], [""])
        changes = codec._changes(stream)
        parsed = time.perf_counter()
        (symbols,) = codec.read_latents([stream])
        middle = time.perf_counter()
        (rgb,) = codec._synthesise([stream], [symbols], [changes], keep_on_device=False)
        end = time.perf_counter()
        header, sections = stream.header, stream.metadata
        picture = images.Picture(
            rgb=rgb,
            mode=header.mode,
            bit_depth=header.bit_depth,
            alpha=_alpha(stream),
            icc=bytes(sections[ICC]) if ICC in sections else None,
            exif=bytes(sections[EXIF]) if EXIF in sections else None,
            xmp=images.unpack_xmp(sections[XMP]) if XMP in sections else None,
            dpi=images.unpack_dpi(sections[DPI]) if DPI in sections else None,
        )
        seconds = {"container": parsed - start, "entropy": middle - parsed, "decoder": end - middle}
        seconds["total"] = time.perf_counter() - start
        return Decoded(picture, hashlib.sha256(symbols).hexdigest(), seconds)

    @_of_device
    def verify(self, data: bytes | bytearray | memoryview) -> str:
        """Check every section, decode the latents, unpack alpha; return the SHA-256 of all latent symbols.

        Raises as `decode`.
        """
        stream = read_bitstream(data, self.limits)
        ((codec, _),) = self._by_model([stream], [""])
        codec._changes(stream)
        (symbols,) = codec.read_latents([stream])
        _alpha(stream)
        return hashlib.sha256(symbols).hexdigest()

    def _by_model(self, streams: Sequence[Bitstream], names: Sequence[str]) -> list[tuple[Codec, list[int]]]:
        """Indices of the streams by the codec that reads them."""
        groups: dict[bytes, list[int]] = {}
        for i, stream in enumerate(streams):
            groups.setdefault(stream.header.model_id, []).append(i)
        found = []
        for wanted, members in groups.items():
            with _naming(names[members[0]]):
                found.append((self._codec_for(wanted), members))
        return found

    def _codec_for(self, wanted: bytes) -> Codec:
        if wanted == self.model.model_id:
            return self
        if self.strict:
            raise ModelMismatchError(
                f"the file was made with model {wanted.hex()}, this codec holds {self.model.model_id.hex()}",
                wanted=wanted.hex(),
            )
        if wanted not in self._others:
            self._others[wanted] = Codec(
                find_model(wanted),
                self.device,
                backend=self._asked_backend,
                precision=self.precision,
                threads=self.threads,
                limits=self.limits,
                strict=True,
            )
        return self._others[wanted]

    def _decode_queued(
        self, streams: Sequence[Bitstream], changes: Sequence[PatchChanges], *, keep_on_device: bool
    ) -> list[Any] | None:
        """Pixels as `_synthesise` gives them, latents and all on the device; the host checks while D runs there.

        None: another backend, a tile too large, a check that failed or a device that did: `read_latents` finds out
        what is wrong.
        """
        pixels: list[Any] = []
        for members in _parts([stream.header.width * stream.header.height for stream in streams], _QUEUED_PIXELS):
            try:
                part = self._decode_queued_part(streams[members], changes[members], keep_on_device)
            except BitstreamError:
                return None
            except RuntimeError as error:
                self._warn_of_device(error, "decoding in smaller steps")
                return None
            if part is None:
                return None
            pixels += part
        return pixels

    def _decode_queued_part(
        self, streams: Sequence[Bitstream], changes: Sequence[PatchChanges], keep_on_device: bool
    ) -> list[Any] | None:
        """`_decode_queued` of streams that the device holds at the same time."""
        jobs, places = self._reading_jobs(streams)
        queued = self.model.integer.backends()[self.backend].queue(jobs, self.device)
        if queued is None:
            return None
        tiles, check = queued
        symbols = [
            torch.empty(_latent_shape(stream.header, self.model), dtype=torch.uint8, device=self.device)
            for stream in streams
        ]
        for (number, (top, left, bottom, right)), tile in zip(places, tiles):
            symbols[number][:, top:bottom, left:right] = tile
        pixels = self._synthesise(streams, symbols, changes, keep_on_device=True)
        check()
        if not all(_crc_holds(stream, part.cpu().numpy()) for stream, part in zip(streams, symbols)):
            return None
        if keep_on_device:
            return pixels
        return [np.ascontiguousarray(part.permute(1, 2, 0).cpu().numpy()) for part in pixels]

    def _warn_of_device(self, error: RuntimeError, instead: str) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        warnings.warn(f"{self.device} failed ({_first_line(error)}); {instead}", images.L2CWarning, stacklevel=4)

    @_of_device
    def read_latents(self, streams: Sequence[Bitstream], names: Sequence[str] | None = None) -> list[UInt8Array]:
        """Entropy-decode files of this codec's model, all tiles together: symbols uint8 [c, h, w] each.

        Section CRCs hold at this point, so a failing end-of-stream check or latent CRC means that this machine
        computed other integers than the encoder's, or that the file was made to be wrong. See `_read_tile` and
        `_read_again`.

        Args:
            names: what errors call each stream, none by default.
        Raises:
            BitstreamError: the payload is not what the header promises, whichever way it is decoded.
            LimitError: a thin picture whose latents would cover far more pixels than the limits allow.
        """
        names = names or [""] * len(streams)
        for name, stream in zip(names, streams):
            with _naming(name):
                self._check_latent_limits(stream.header.width, stream.header.height, stream.header.tile_size)
        try:
            results = self._read(streams, self.backend)
        except BitstreamError:
            results = []
            for name, stream in zip(names, streams):
                with _naming(name):
                    results.append(self._read_tiles(stream))
        for i, (name, stream) in enumerate(zip(names, streams)):
            if not _crc_holds(stream, results[i]):
                with _naming(name):
                    results[i] = self._read_again(stream)
        return results

    def _read_tiles(self, stream: Bitstream) -> UInt8Array:
        """As `_read`, tile by tile."""
        canvas = np.empty(_latent_shape(stream.header, self.model), dtype=np.uint8)
        jobs, places = self._reading_jobs([stream])
        for job, (_, (top, left, bottom, right)) in zip(jobs, places):
            canvas[:, top:bottom, left:right] = self._read_tile(job)
        return canvas

    def _read_tile(self, job: DecodingJob) -> UInt8Array:
        """Decode a tile; where that fails, once more with another implementation of P.

        Where that fails as well, the file is at fault.
        """
        try:
            return self._read_one(job, self.backend)
        except BitstreamError as error:
            failure = error
        backend = self._checking_backend(job.height * job.width)
        if backend is not None:
            with contextlib.suppress(BitstreamError, RuntimeError, MemoryError):  # whatever it is, the first one counts
                symbols = self._read_one(job, backend)
                self._warn_of_latents(backend, str(failure))
                return symbols
        raise BitstreamError(f"the latents cannot be decoded: {failure}") from None

    def _read_one(self, job: DecodingJob, backend: str) -> UInt8Array:
        again = replace(job)  # reads from the beginning
        (symbols,) = self._code([again], backend)
        again.decoder.finish()
        return symbols

    def _read_again(self, stream: Bitstream) -> UInt8Array:
        """Decode a file whose tiles all end as they should, but whose latents have another CRC than the header says.

        The end of a stream holds a hash of its symbols, but what becomes of them afterwards is the CRC's to see.
        """
        header = stream.header
        backend = self._checking_backend(header.width * header.height // self.transform.s**2)
        if backend is not None:
            with contextlib.suppress(BitstreamError, RuntimeError, MemoryError):
                (symbols,) = self._read([stream], backend)
                if _crc_holds(stream, symbols):
                    self._warn_of_latents(backend, "other latents than the CRC of the header says")
                    return symbols
        raise BitstreamError("the decoded latents do not match the CRC of the header")

    def _checking_backend(self, positions: int) -> str | None:
        """What a failure to decode so many latent positions is checked with: a backend that computes rightly here.

        PyTorch takes 16 times as long and the reference 200 times, which a file of 60 bytes could otherwise ask for: so
        they are for small pictures and tiles, and the reference for machines where nothing else computes rightly.
        """
        small = positions * self.transform.s**2 <= _MOST_AGAIN
        others = backends.second_opinions(self.backend, None if small else 1)
        return next(filter(self._is_trusted, others), None)

    def _is_trusted(self, backend: str) -> bool:
        """Whether a backend gives the known answer here; remembered."""
        if backend not in self._trusted:
            try:
                multiscale.check_backend(self.model.integer, self.model.known_answer, backend, self.device)
                self._trusted[backend] = True
            except (RuntimeError, MemoryError):  # BackendError is one; a device may have more to say
                self._trusted[backend] = False
        return self._trusted[backend]

    def _warn_of_latents(self, backend: str, reason: str) -> None:
        warnings.warn(
            f"the {self.backend} backend decoded wrongly on this machine ({reason}); the {backend} backend was used",
            images.L2CWarning,
            stacklevel=5,
        )

    def _check_latent_limits(self, width: int, height: int, tile: int) -> None:
        """A picture one pixel wide has latents s pixels wide: bound what they cover, before anything is allocated."""
        s = self.transform.s
        for what, (w, h), limit, name in (
            ("picture", (width, height), self.limits.max_pixels, "max_pixels"),
            ("tile", (min(width, tile), min(height, tile)), self.limits.max_tile_pixels, "max_tile_pixels"),
        ):
            covered = _round_up(w, s) * _round_up(h, s)
            if limit is not None and covered > 2 * limit:
                raise LimitError(
                    f"a {what} of {w}x{h} pixels has latents for {covered} pixels, "
                    f"the limit is {2 * limit} (twice Limits.{name})"
                )

    def _read(self, streams: Sequence[Bitstream], backend: str) -> list[UInt8Array]:
        canvases = [np.empty(_latent_shape(stream.header, self.model), dtype=np.uint8) for stream in streams]
        jobs, places = self._reading_jobs(streams)
        for (number, (top, left, bottom, right)), job, symbols in zip(places, jobs, self._code(jobs, backend)):
            job.decoder.finish()
            canvases[number][:, top:bottom, left:right] = symbols
        return canvases

    def _reading_jobs(
        self, streams: Sequence[Bitstream]
    ) -> tuple[list[DecodingJob], list[tuple[int, tuple[int, int, int, int]]]]:
        """A job for every tile, and where it belongs: (number of the stream, box in latents)."""
        s, c = self.transform.s, self.model.config.transform.c
        jobs, places = [], []
        for number, stream in enumerate(streams):
            header = stream.header
            if header.latent_bits > self.model.config.bits:
                raise BitstreamError(f"b is {header.latent_bits}, the model has at most {self.model.config.bits} bits")
            conditions = (header.quality, header.metric_mix, header.latent_bits)
            boxes = tile_boxes(header.height, header.width, header.tile_size, s)
            for box, tile, payload in zip(boxes, stream.tiles, stream.payloads):
                if tile.channels > c:
                    raise BitstreamError(f"a tile uses {tile.channels} channels, the model has {c}")
                jobs.append(DecodingJob(box[2] - box[0], box[3] - box[1], conditions, tile.channels, payload))
                places.append((number, box))
        return jobs, places

    def _changes(self, stream: Bitstream) -> PatchChanges:
        """What a file's ADAPT section says. Raises BitstreamError: it does not fit the picture or the model."""
        if ADAPT not in stream.metadata:
            return PatchChanges()
        header, sets = stream.header, self.model.bias_sets
        count = 0 if sets is None else sets.values.shape[1]
        mods = networks.num_modulators(self.transform)
        return PatchChanges.unpack(bytes(stream.metadata[ADAPT]), header.width, header.height, count, mods)

    def _adaptation(
        self, headers: list[Header], cond: Tensor, changes: list[PatchChanges], box: tuple[int, int, int, int]
    ) -> Adaptation | None:
        """Changes to D for pictures of one shape, as D sees them in a box (top, left, bottom, right) of latents."""
        result, s = Adaptation(), self.transform.s
        if any(part.sets is not None for part in changes):
            index, result.bias_grid = _patches([part.sets for part in changes], NO_SET, BIAS_PATCH // s, box)
            assert self.model.bias_sets is not None
            bands = [self.model.bias_sets.band(h.quality, MAX_QUALITY) for h in headers]
            result.biases = set_maps(self.model.bias_sets, bands, torch.from_numpy(index).long().to(self.device))
        if any(part.conditions is not None for part in changes):
            moved, grid = _patches([part.conditions for part in changes], 0, CONDITION_PATCH // s, box)
            result.conditions = condition_maps(cond, torch.from_numpy(moved).to(self.device))
            result.condition_grid = grid
        return result if result.biases is not None or result.conditions is not None else None

    @torch.inference_mode()
    def _synthesise(
        self,
        streams: Sequence[Bitstream],
        symbols: Sequence[UInt8Array] | Sequence[Tensor],
        changes: Sequence[PatchChanges],
        *,
        keep_on_device: bool,
    ) -> list[Any]:
        """D: symbols (here or on the device) -> uint8 [H, W, 3] arrays, or uint8 [3, H, W] tensors on the device.

        Pictures of equal sizes share a pass.
        """
        results: dict[int, Any] = {}
        for members in _same_shape([(st.header.height, st.header.width) for st in streams]):
            first = streams[members[0]].header
            shape = (len(members), first.height, first.width, 3)
            out: Any = (
                torch.empty(shape, dtype=torch.uint8, device=self.device)
                if keep_on_device
                else np.empty(shape, np.uint8)
            )
            headers = [streams[i].header for i in members]
            cond = torch.cat([self._condition(h.quality, h.metric_mix) for h in headers])
            for top, left, bottom, right in _chunks(first.height, first.width):
                latents = [symbols[i] for i in members]
                mine = [changes[i] for i in members]
                pixels = self._decode_chunk(latents, headers, cond, mine, (top, left, bottom, right))
                out[:, top:bottom, left:right] = pixels if keep_on_device else pixels.cpu().numpy()
            for k, i in enumerate(members):
                results[i] = out[k].permute(2, 0, 1) if keep_on_device else out[k]
        return [results[i] for i in range(len(streams))]

    def _decode_chunk(
        self,
        symbols: list[UInt8Array | Tensor],
        headers: list[Header],
        cond: Tensor,
        changes: list[PatchChanges],
        box: tuple[int, int, int, int],
    ) -> Tensor:
        """Pixels of one box, uint8 [N, height, width, 3], computed with a halo of latents around it."""
        s = self.transform.s
        halo = -(-self.transform.decoder.receptive_halo_px // s)
        top, left, bottom, right = box
        h, w = symbols[0].shape[1:]
        t, l = max(0, top // s - halo), max(0, left // s - halo)
        lower, r = min(h, -(-bottom // s) + halo), min(w, -(-right // s) + halo)
        crops = [part[:, t:lower, l:r] for part in symbols]
        stacked = torch.stack([torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in crops])
        stacked = stacked.to(self.device)
        b = torch.tensor([header.latent_bits for header in headers], device=self.device)
        y_hat = networks.dequantise(stacked.contiguous(memory_format=torch.channels_last), b)
        with self._float_mode():
            x_hat = self.transform.decoder(y_hat, cond, self._adaptation(headers, cond, changes, (t, l, lower, r)))
        x_hat = x_hat[:, :, top - t * s : bottom - t * s, left - l * s : right - l * s]
        return x_hat.mul(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)


_codecs: dict[tuple[str, str], Codec] = {}
_codecs_lock = threading.Lock()
_float_lock = threading.Lock()


def shared_codec(device: str | torch.device = "cpu", model: str = DEFAULT_MODEL) -> Codec:
    """The codec that `encode` and `decode` use; made on first use and kept."""
    # Which GPU is current is a matter of each thread.
    place = f"cuda:{torch.cuda.current_device()}" if str(device) == "cuda" and torch.cuda.is_available() else device
    key = (str(model), str(place))
    with _codecs_lock:
        if key not in _codecs:
            _codecs[key] = Codec(model, place)
        return _codecs[key]


def encode(
    image: Any, *, device: str | torch.device = "cpu", model: str = DEFAULT_MODEL, **options: Unpack[EncodeOptions]
) -> bytes:
    """Encode one picture to bytes: `l2c.encode(image, bpp=0.5)`. See `Codec.encode_detailed` for all options."""
    return shared_codec(device, model).encode(image, **options)


def decode(
    data: bytes | bytearray | memoryview,
    *,
    device: str | torch.device = "cpu",
    as_: Output = "numpy",
    mode: str | None = None,
) -> Any:
    """Decode bytes to uint8 [H, W, 3]: `l2c.decode(data)`; a PIL image, with alpha and grey: `as_="pil"`.

    See `Codec.decode` for all options.
    """
    return shared_codec(device).decode(data, as_=as_, mode=mode)


def _device(device: str | torch.device) -> torch.device:
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()  # "meta" fails here
        if str(chosen) == "cuda":  # which one is current is a matter of each thread
            chosen = torch.device("cuda", torch.cuda.current_device())
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise BackendError(f"device {str(device)!r} cannot be used here: {reason}") from None
    return chosen


def _check_threads(threads: Any) -> None:
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, Integral) or threads < 1:  # type: ignore[operator]
        raise UnsupportedError(f"threads is {threads!r}: it must be a whole number, at least 1")


def _check_options(
    goals: dict[str, Any],
    metric: str,
    effort: int | Effort,
    bits: int,
    most_bits: int,
    tile: int,
    others: dict[str, float | None],
) -> None:
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


def _silent(share: float, stage: str) -> None:
    """Progress that nobody asked for."""


def _rising(progress: Callable[[float, str], None]) -> Callable[[float, str], None]:
    """The same progress, never falling: what is adapted once more was not in the plan."""
    most = 0.0

    def tell(share: float, stage: str) -> None:
        nonlocal most
        most = max(most, share)
        progress(most, stage)

    return tell


def _warn_unreached(batch: Sequence[Encoded]) -> None:
    """One warning for each picture whose target was not reached."""
    for name, encoded in zip(_names(len(batch)), batch):
        if not encoded.target_reached:
            warnings.warn(f"{name}the target was not reached: {encoded.reason}", images.L2CWarning, stacklevel=3)


def _aim(size: float) -> float:
    """What the search aims at where a file may have so many bytes: a little more, since trimming is exact."""
    return 1.003 * size


def _near(result: Encoded | None, size: float) -> bool:
    """Whether a file has the size that was asked for: at most that, and at most 2 % less."""
    return result is not None and (1.0 - ACCEPTED) * size <= len(result.data) <= size


def _result(picture: images.Picture, file: _File) -> Encoded:
    bpp = 8.0 * len(file.data) / (picture.height * picture.width)
    return Encoded(file.data, bpp, 100.0 * file.level / MAX_QUALITY, latents_sha256=file.digest)


def _sections(picture: images.Picture) -> dict[int, bytes]:
    """What is kept beside the pixels, alpha excepted."""
    sections: dict[int, bytes] = {}
    if picture.icc:
        sections[ICC] = picture.icc
    if picture.exif:
        sections[EXIF] = picture.exif
    if picture.xmp:
        sections[XMP] = images.pack_xmp(picture.xmp)
    if picture.dpi:
        sections[DPI] = images.pack_dpi(picture.dpi)
    return sections


def _patches(
    maps: Sequence[npt.NDArray[Any] | None], default: int, side: int, box: tuple[int, int, int, int]
) -> tuple[npt.NDArray[Any], Grid]:
    """The patches [N, ..., rows, columns] that a box of latents touches, and their grid; None: all `default`."""
    top, left, bottom, right = box
    rows, columns = slice(top // side, -(-bottom // side)), slice(left // side, -(-right // side))
    known = next(part for part in maps if part is not None)[..., rows, columns]
    stacked = [np.full_like(known, default) if part is None else part[..., rows, columns] for part in maps]
    return np.stack(stacked), Grid(side, top - rows.start * side, left - columns.start * side)


def _alpha(stream: Bitstream) -> npt.NDArray[Any] | None:
    """The alpha plane of a file, or None. Raises BitstreamError."""
    for kind, unpack in ((ALPHA, images.unpack_alpha), (LOSSY_ALPHA, lossy_alpha.unpack)):
        if kind in stream.metadata:
            return unpack(stream.metadata[kind], stream.header.height, stream.header.width)
    return None


def _present(pixels: Any, stream: Bitstream, as_: Output, mode: str) -> Any:
    """Bring decoded pixels into the form that was asked for."""
    header = stream.header
    original = mode == "original"
    if as_ == "torch":
        if not original:
            return pixels
        array = images.to_original(pixels.permute(1, 2, 0).contiguous().cpu().numpy(), _alpha(stream), header.mode)
        array = array[:, :, None] if array.ndim == 2 else array
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).to(pixels.device)
    if as_ == "numpy":
        return images.to_original(pixels, _alpha(stream), header.mode) if original else pixels
    picture = images.to_pil(pixels, _alpha(stream) if original else None, header.mode if original else "RGB")
    kept = stream.metadata
    return images.with_metadata(
        picture,
        icc=bytes(kept[ICC]) if ICC in kept else None,
        exif=bytes(kept[EXIF]) if EXIF in kept else None,
        xmp=images.unpack_xmp(kept[XMP]) if XMP in kept else None,
        dpi=images.unpack_dpi(kept[DPI]) if DPI in kept else None,
    )


def _latent_shape(header: Header, model: Model) -> tuple[int, int, int]:
    """c, and rows and columns of a picture's latents."""
    s = model.config.transform.s
    return model.config.transform.c, -(-header.height // s), -(-header.width // s)


def _crc_holds(stream: Bitstream, symbols: UInt8Array) -> bool:
    return zlib.crc32(symbols) == stream.header.latents_crc32


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts the name of a file before the message of an error of ours."""
    try:
        yield
    except L2CError as error:
        error.args = (f"{name}{error}",)
        raise


def _names(count: int) -> list[str]:
    """What errors call the files of a batch: nothing where there is one."""
    return [f"file {i + 1} of {count}: " if count > 1 else "" for i in range(count)]


def tile_boxes(height: int, width: int, tile: int, s: int) -> list[tuple[int, int, int, int]]:
    """Row-major (top, left, bottom, right) of the tiles in latents; a tile's last latents may cover no full block."""
    rows, columns = -(-height // s), -(-width // s)
    step = tile // s
    return [
        (top, left, min(rows, top + step), min(columns, left + step))
        for top in range(0, rows, step)
        for left in range(0, columns, step)
    ]


def _chunks(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(top, left, bottom, right) in pixels of the parts that E and D see at a time."""
    return [
        (top, left, min(height, top + _CHUNK), min(width, left + _CHUNK))
        for top in range(0, height, _CHUNK)
        for left in range(0, width, _CHUNK)
    ]


def _parts(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Runs of at most `most` in all, or of one."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > most:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))


def _same_shape(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Indices grouped by equal shape, each group at most _BATCH_PIXELS in all."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    parts = []
    for (height, width, *_), members in groups.items():
        most = max(1, _BATCH_PIXELS // max(1, height * width))
        parts += [members[k : k + most] for k in range(0, len(members), most)]
    return parts


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
