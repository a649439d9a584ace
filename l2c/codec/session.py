"""A model on a device: the object that encodes and decodes."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import PIL.Image
import torch
from torch import Tensor

from l2c import images
from l2c.adapt.effort import EFFORTS, Effort, EffortLevel
from l2c.arrays import Symbols, UInt8Array
from l2c.codec.decoder import Decoder, present
from l2c.codec.encoder import Encoder
from l2c.codec.latent_stage import LatentStage
from l2c.codec.options import (
    DEFAULT_QUALITY,
    DEFAULT_TILE,
    OUTPUTS,
    PICTURE_MODES,
    EncodeOptions,
    Mode,
    Output,
    Precision,
    check_bits,
    check_metric,
    check_options,
    check_step,
)
from l2c.codec.results import Decoded, Encoded, EncodeSeconds
from l2c.codec.support import checked_threads, names_of, naming, of_device
from l2c.codec.transform_stage import TransformStage
from l2c.devices import checked_device
from l2c.entropy import FloatModel
from l2c.errors import L2CWarning, ModelMismatchError, UnsupportedError
from l2c.format.bitstream import Bitstream, BytesLike, Limits, read_bitstream
from l2c.format.levels import DEFAULT_METRIC, MAX_QUALITY, METRICS, Metric
from l2c.models import DEFAULT_MODEL, Model, find_model, load_model
from l2c.rate_control import dissimilarity_db
from l2c.search import AtQualities, Figure, StepsAt, StepsToFigures, StepsToSizes, Strategy, ToFigures, ToSizes
from l2c.transforms import Transform

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

File: TypeAlias = BytesLike | Bitstream


class Codec:
    """A model on a device.

    Args:
        model: name of a shipped model or path of a model file.
        device: "cpu", "cuda" (the GPU that is current now), "cuda:1", ...
        backend: how P's integers are computed: "auto", "cpu", "triton", "torch" or "reference"; see
            `EntropyModel.choose`. All give the same files. "auto" goes on to a slower one, with a warning, where the
            fast one computes other integers here than it should; one asked for by name raises.
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

    @of_device
    def __init__(
        self,
        model: str | Any = DEFAULT_MODEL,
        device: str | torch.device = "cpu",
        *,
        backend: str = "auto",
        precision: Precision = "float32",
        threads: int | None = None,
        limits: Limits | None = None,
        strict: bool = False,
    ) -> None:
        if not isinstance(model, (str, os.PathLike, Model)):
            raise UnsupportedError(f"model is {model!r}: it must be a name, a path or a loaded model")
        if limits is not None and not isinstance(limits, Limits):
            raise UnsupportedError(f"limits is {limits!r}: it must be l2c.Limits")
        self.model = model if isinstance(model, Model) else load_model(model)
        self.device = checked_device(device)
        self.limits = limits if limits is not None else Limits()
        self.strict = strict
        self.threads = checked_threads(threads)
        self.transform_stage = TransformStage(self.model, self.device, precision)
        self.latent_stage = LatentStage(self.model, self.device, backend, self.threads, self.limits)
        self.encoder = Encoder(self.model, self.transform_stage, self.latent_stage, self.limits)
        self.decoder = Decoder(self.transform_stage, self.latent_stage)
        self._asked_backend = backend
        self._others: dict[bytes, Codec] = {}

    @property
    def backend(self) -> str:
        """How P's integers are computed, after what was found out about this device."""
        return self.latent_stage.backend

    @property
    def precision(self) -> Precision:
        """Of E and D."""
        return self.transform_stage.precision

    @property
    def transform(self) -> Transform:
        """E and D, on the device."""
        return self.transform_stage.transform

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
                the model cannot make better at this quality than at a lower one is coded at the lower one. A model
                with networks at a few qualities alone (those of CompressAI) takes their numbers, 1 to 8, and without
                any of these the middle one; there `bpp` and `max_bytes` give the best of them that is not above,
                `psnr` and `msssim` the least that is not below.
            metric: what the bits are spent on: "psnr" (squared error of RGB), "msssim" (MS-SSIM of RGB) or "mixed", the
                default, for eyes: squared error of luma and a little of chroma, and MS-SSIM of luma (`l2c.objective`).
            adapt_for: metrics of receivers who may choose (`decode(metric=)`), such as ("psnr", "msssim"): once the
                latents are chosen, D's conditions are searched for each, in the effort's steps or else in OML's five.
                The set for `metric` is what the file shows by default (with psnr= or msssim= it takes an effort with
                steps, since the default is what was measured); those for others lie beside it. Sets that save less than
                their bytes are left out; a target holds for the file with those that it has. Tiles are at most 2048.
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
                masks; `l2c.format.lossy_alpha_section` says what a decoded plane depends on.
            truncated: read what there is of a picture file that is cut off or damaged, with a warning.
            max_seconds: the adaptation ends at this time after the call began and the best file so far is returned;
                what comes before and after it (the search for a quality, writing) takes its own time.
            progress: called with the share done (0..1) and the name of the stage while pictures are adapted, in the
                calling thread; never at effort 0 without adapt_for.
        Raises:
            ImageError: the picture cannot be read. LimitError: it has more pixels than the limits allow.
            RateError: the target lies below what this picture can reach; names the least rate.
            UnsupportedError: an option that does not exist, or adapt_for with a model that has no modulators.
        """
        return self.encode_batch_detailed([image], **options)[0]

    def encode_batch(self, images_: Iterable[Any], **options: Unpack[EncodeOptions]) -> list[bytes]:
        """Encode pictures of any sizes together; arguments, errors and warnings as `encode`."""
        batch = self.encode_batch_detailed(images_, **options)
        _warn_unreached(batch)
        return [encoded.data for encoded in batch]

    @of_device
    def encode_batch_detailed(
        self,
        images_: Iterable[Any],
        *,
        bpp: float | None = None,
        max_bytes: int | None = None,
        psnr: float | None = None,
        msssim: float | None = None,
        quality: float | None = None,
        metric: Metric = DEFAULT_METRIC,
        adapt_for: Collection[Metric] | None = None,
        effort: EffortLevel | Effort = 0,
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
        check_options(goals, metric=metric, effort=effort, tile=tile, others=others, adapt_for=adapt_for)
        networks = self.model.config.transform
        check_bits(bits, networks.quantiser.least_bits, self.model.config.bits)
        steps = networks.quality_steps
        check_step(quality, steps)
        if progress is not None and not callable(progress):
            raise UnsupportedError(f"progress is {progress!r}: it must be callable")
        batch = self.encoder.batch(
            images_,
            mu=METRICS[metric],
            bits=bits,
            tile=tile,
            effort=effort if isinstance(effort, Effort) else EFFORTS[effort],
            receivers=[METRICS[name] for name in adapt_for or ()],
            metadata=metadata,
            alpha_quality=alpha_quality,
            truncated=truncated,
            max_seconds=max_seconds,
            progress=progress,
        )
        known, adapts = self.encoder.known(batch), batch.effort.adapts
        places = list(steps.values())
        strategy: Strategy
        if bpp is not None or max_bytes is not None:
            rate = min(float(bpp), 1e12) if bpp is not None else 0.0  # more than any file has, its square is finite
            most = min(float(max_bytes), 1e15) if max_bytes is not None else 0.0
            sizes = [rate * p.height * p.width / 8.0 if bpp is not None else most for p in batch.pictures]
            if steps:
                strategy = StepsToSizes(known, places, sizes, adapts, batch.late)
            else:
                strategy = ToSizes(known, sizes, batch.effort, batch.mu, batch.late)
        elif psnr is not None or msssim is not None:
            figure: Figure = "PSNR" if psnr is not None else "MS-SSIM"
            target = float(psnr) if psnr is not None else dissimilarity_db(float(msssim or 0.0))
            if steps:
                strategy = StepsToFigures(known, places, target, figure, adapts, batch.late)
            else:
                strategy = ToFigures(known, target, figure, adapts, batch.late)
        elif steps:
            strategy = StepsAt(known, places[len(places) // 2] if quality is None else steps[int(quality)], adapts)
        else:
            level = round((DEFAULT_QUALITY if quality is None else quality) * MAX_QUALITY / 100)
            strategy = AtQualities(known, [level] * len(known), adapts)
        results = self.encoder.encode(batch, strategy)
        batch.clock["total"] = time.perf_counter() - start
        seconds = EncodeSeconds(**{stage: value / max(1, len(results)) for stage, value in batch.clock.items()})
        return [replace(result, seconds=seconds) for result in results]

    @overload
    def decode(
        self, data: File, *, as_: Literal["numpy"] = "numpy", mode: Mode | None = None, metric: Metric | None = None
    ) -> UInt8Array: ...

    @overload
    def decode(
        self, data: File, *, as_: Literal["pil"], mode: Mode | None = None, metric: Metric | None = None
    ) -> PIL.Image.Image: ...

    @overload
    def decode(
        self, data: File, *, as_: Literal["torch"], mode: Mode | None = None, metric: Metric | None = None
    ) -> Tensor: ...

    @overload
    def decode(
        self, data: File, *, as_: Output, mode: Mode | None = None, metric: Metric | None = None
    ) -> UInt8Array | PIL.Image.Image | Tensor: ...

    def decode(
        self, data: File, *, as_: Output = "numpy", mode: Mode | None = None, metric: Metric | None = None
    ) -> UInt8Array | PIL.Image.Image | Tensor:
        """Decode one file.

        Args:
            data: the bytes of a file, or what `read_bitstream` made of them.
            as_: "numpy" (an array uint8 [H, W, C]), "pil" (an image with what was kept in `info`) or "torch" (a tensor
                uint8 [C, H, W] on this codec's device).
            mode: "rgb": three channels; "original": as the picture was, that is grey as [H, W] (Pillow's L; a tensor
                [1, H, W]), and with alpha two channels (LA) or four (RGBA). None: "original" for "pil", "rgb" for
                "numpy" and "torch".
            metric: what the picture is to be best for: "psnr", "mixed" or "msssim", of those that the file was adapted
                for (`adapt_for`); for another one, and for None, it is shown as by default.
        Raises:
            BitstreamError: not one of our files, or damaged. LimitError: larger than the limits allow.
            ModelMismatchError: made with a model that is not at hand. UnsupportedError: unknown `as_`, `mode` or
                `metric`.
        """
        return self.decode_batch([data], as_=as_, mode=mode, metric=metric)[0]

    @overload
    def decode_batch(
        self,
        files: Iterable[File],
        *,
        as_: Literal["numpy"] = "numpy",
        mode: Mode | None = None,
        metric: Metric | None = None,
    ) -> list[UInt8Array]: ...

    @overload
    def decode_batch(
        self, files: Iterable[File], *, as_: Literal["pil"], mode: Mode | None = None, metric: Metric | None = None
    ) -> list[PIL.Image.Image]: ...

    @overload
    def decode_batch(
        self, files: Iterable[File], *, as_: Literal["torch"], mode: Mode | None = None, metric: Metric | None = None
    ) -> list[Tensor]: ...

    @overload
    def decode_batch(
        self, files: Iterable[File], *, as_: Output, mode: Mode | None = None, metric: Metric | None = None
    ) -> list[UInt8Array | PIL.Image.Image | Tensor]: ...

    @of_device
    def decode_batch(
        self, files: Iterable[File], *, as_: Output = "numpy", mode: Mode | None = None, metric: Metric | None = None
    ) -> list[Any]:
        """Decode files of any sizes together; arguments and errors as `decode`, which name the file, counted from 1.

        Equal sizes share passes of D; on a CPU the pixels are those of files decoded alone.
        """
        if as_ not in OUTPUTS:
            raise UnsupportedError(f"as_ is {as_!r}: it must be 'numpy', 'pil' or 'torch'")
        if mode is None:
            mode = "original" if as_ == "pil" else "rgb"
        if mode not in PICTURE_MODES:
            raise UnsupportedError(f"mode is {mode!r}: it must be 'rgb' or 'original'")
        if metric is not None:
            check_metric(metric)
        streams, names, _ = self._opened(files)
        results: list[Any] = [None] * len(streams)
        for codec, members in self._by_model(streams, names):
            chosen = [streams[i] for i in members]
            restored, _ = codec.decoder.restore(
                chosen, [names[i] for i in members], metric=metric, keep_on_device=as_ == "torch"
            )
            for i, stream, picture in zip(members, chosen, restored):
                with naming(names[i]):
                    results[i] = present(picture.pixels, stream, as_, mode)
        return results

    @of_device
    def decode_detailed(self, data: File, *, metric: Metric | None = None) -> Decoded:
        """Decode one file with everything that was kept beside the pixels, and say how it went.

        `metric` and errors as of `decode`; whether the file had something for that metric, the result says.

        P and D run one after the other, also where `decode` queues them together, so that each has its own time.
        """
        return self._detailed([data], metric, queue=False)[0]

    @of_device
    def decode_batch_detailed(self, files: Iterable[File], *, metric: Metric | None = None) -> list[Decoded]:
        """As `decode_detailed`, for files of any sizes, decoded and named in errors as by `decode_batch`.

        Times are the batch's, shared by pixels; where P and D are queued together, "decoder" is the time of both.
        """
        return self._detailed(files, metric, queue=True)

    def _detailed(self, files: Iterable[File], metric: Metric | None, *, queue: bool) -> list[Decoded]:
        if metric is not None:
            check_metric(metric)
        streams, names, seconds = self._opened(files)
        results: dict[int, Decoded] = {}
        for codec, members in self._by_model(streams, names):
            chosen, opened = [streams[i] for i in members], [seconds[i] for i in members]
            decoded = codec.decoder.detailed(chosen, [names[i] for i in members], opened, metric=metric, queue=queue)
            results |= zip(members, decoded)
        return [results[i] for i in range(len(streams))]

    def verify(self, data: File) -> str:
        """Check every section, decode the latents, unpack alpha; return the SHA-256 of all latent symbols.

        Raises as `decode`.
        """
        return self.verify_batch([data])[0]

    @of_device
    def verify_batch(self, files: Iterable[File]) -> list[str]:
        """As `verify`, for several files together; errors name the file, counted from 1."""
        streams, names, _ = self._opened(files)
        results: dict[int, str] = {}
        for codec, members in self._by_model(streams, names):
            digests = codec.decoder.verify([streams[i] for i in members], [names[i] for i in members])
            results |= zip(members, digests)
        return [results[i] for i in range(len(streams))]

    @of_device
    def read_latents(self, streams: Sequence[Bitstream], names: Sequence[str] | None = None) -> list[Symbols]:
        """Entropy-decode files of this codec's model: symbols [c, h, w] each; see `LatentStage.read`."""
        return self.latent_stage.read(streams, names)

    def float_probability(self) -> FloatModel:
        """The float form of P on this codec's device, made on first use: what gradients come from."""
        return self.latent_stage.float_probability()

    def _opened(self, files: Iterable[File]) -> tuple[list[Bitstream], list[str], list[float]]:
        """Containers, all of them checked; what errors call each, and the seconds that each took."""
        files = list(files)
        names = names_of(len(files))
        streams, seconds = [], []
        for name, data in zip(names, files):
            if not isinstance(data, (bytes, bytearray, memoryview, Bitstream)):
                raise UnsupportedError(f"{name}a file is given as its bytes, not as {type(data).__name__}")
            start = time.perf_counter()
            with naming(name):
                streams.append(data if isinstance(data, Bitstream) else read_bitstream(data, self.limits))
            seconds.append(time.perf_counter() - start)
        return streams, names, seconds

    def _by_model(self, streams: Sequence[Bitstream], names: Sequence[str]) -> list[tuple[Codec, list[int]]]:
        """Indices of the streams by the codec that reads them."""
        groups: dict[bytes, list[int]] = {}
        for i, stream in enumerate(streams):
            groups.setdefault(stream.header.model_id, []).append(i)
        found = []
        for wanted, members in groups.items():
            with naming(names[members[0]]):
                found.append((self.codec_for(wanted), members))
        return found

    def codec_for(self, wanted: bytes) -> Codec:
        """The codec that reads files of the model with this id: this one, or one that is made for it and kept.

        Raises:
            ModelMismatchError: no such model is at hand, or this codec is strict.
        """
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


_codecs: dict[tuple[str, str], Codec] = {}
_codecs_lock = threading.Lock()


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


@overload
def decode(
    data: File,
    *,
    device: str | torch.device = "cpu",
    as_: Literal["numpy"] = "numpy",
    mode: Mode | None = None,
    metric: Metric | None = None,
) -> UInt8Array: ...


@overload
def decode(
    data: File,
    *,
    device: str | torch.device = "cpu",
    as_: Literal["pil"],
    mode: Mode | None = None,
    metric: Metric | None = None,
) -> PIL.Image.Image: ...


@overload
def decode(
    data: File,
    *,
    device: str | torch.device = "cpu",
    as_: Literal["torch"],
    mode: Mode | None = None,
    metric: Metric | None = None,
) -> Tensor: ...


@overload
def decode(
    data: File,
    *,
    device: str | torch.device = "cpu",
    as_: Output,
    mode: Mode | None = None,
    metric: Metric | None = None,
) -> UInt8Array | PIL.Image.Image | Tensor: ...


def decode(
    data: File,
    *,
    device: str | torch.device = "cpu",
    as_: Output = "numpy",
    mode: Mode | None = None,
    metric: Metric | None = None,
) -> UInt8Array | PIL.Image.Image | Tensor:
    """Decode bytes to uint8 [H, W, 3]: `l2c.decode(data)`; a PIL image, with alpha and grey: `as_="pil"`.

    See `Codec.decode` for all options.
    """
    return shared_codec(device).decode(data, as_=as_, mode=mode, metric=metric)


def _warn_unreached(batch: Sequence[Encoded]) -> None:
    """One warning for each picture whose target was not reached."""
    for name, encoded in zip(names_of(len(batch)), batch):
        if not encoded.target_reached:
            warnings.warn(f"{name}the target was not reached: {encoded.reason}", L2CWarning, stacklevel=3)
