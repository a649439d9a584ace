"""A model on a device: the object that encodes and decodes."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import PIL.Image
import torch
from torch import Tensor

from l2c import images
from l2c.adapt.effort import EFFORTS, Effort, EffortLevel
from l2c.arrays import Symbols, UInt8Array
from l2c.codec.batch import Batch
from l2c.codec.decoder import Decoder, present
from l2c.codec.encoder import Encoder
from l2c.codec.importance import Importance
from l2c.codec.latent_stage import LatentStage
from l2c.codec.opened import File, Opened, Wanted
from l2c.codec.options import (
    DEFAULT_QUALITY,
    DEFAULT_TILE,
    LOSSLESS,
    OUTPUTS,
    PICTURE_MODES,
    SCALES,
    Damage,
    DecodeOptions,
    EncodeOptions,
    Lossless,
    Mode,
    Output,
    Precision,
    Region,
    Scale,
    ViewOptions,
    check_bits,
    check_decode_options,
    check_number,
    check_options,
    check_step,
)
from l2c.codec.pixels import Aim, AsPixels
from l2c.codec.results import Decoded, Encoded, EncodeSeconds, Verified
from l2c.codec.support import checked_threads, names_of, naming, of_device
from l2c.codec.transform_stage import TransformStage
from l2c.codec.views import View
from l2c.devices import checked_device
from l2c.entropy import FloatModel
from l2c.errors import L2CWarning, ModelMismatchError, RateError, UnsupportedError
from l2c.format.bitstream import Bitstream, Limits, section_name
from l2c.format.levels import DEFAULT_METRIC, MAX_QUALITY, METRICS, Metric
from l2c.models import DEFAULT_MODEL, Model, find_model, load_model
from l2c.rate_control import dissimilarity_db
from l2c.search import AtQualities, Figure, StepsAt, StepsToFigures, StepsToSizes, Strategy, ToFigures, ToSizes
from l2c.transforms import Transform

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on


class Codec:
    """A model on a device.

    Args:
        model: name of a shipped model or path of a model file.
        device: "cpu", "cuda" (the GPU that is current now), "cuda:1", ...
        backend: how P's integers are computed: "auto", "cpu", "triton", "torch" or "reference"; see
            `EntropyModel.choose`. All give the same files. "auto" goes on to a slower one, with a warning, where the
            fast one computes other integers here than it should; one asked for by name raises.
        precision: of E and D. "exact": D computes in integers (`l2c.exact`), so that pixels are the same on every
            machine and device; E on CPUs too, where the model has its ranges, else in float32: its latents
            are the same but for a noise that costs no rate (docs/PERFORMANCE.md). "auto": that where the model carries
            an integer D, else "float32".
            "float32": pixels of any two devices differ by one level at most. "bfloat16": the convolutions run in it
            (the block transforms and all that P does never do), about twice as fast as float32 on CPUs with
            AVX512-BF16 or AMX and on GPUs. A file's latents stay exact; decoded pixels were seen to differ from float32
            by one level on photographs, by up to three on drawn textures. A picture may be encoded to other latents.
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
        precision: Precision = "auto",
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
        self._asked_backend, self._asked_precision = backend, precision
        self._others: dict[bytes, Codec] = {}

    @property
    def backend(self) -> str:
        """How P's integers are computed, after what was found out about this device."""
        return self.latent_stage.backend

    @property
    def precision(self) -> Precision:
        """Of E and D, "auto" resolved."""
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
                default, for eyes: squared error of luma and a little of chroma, MS-SSIM of luma, and coarse blue-yellow
                structure (`l2c.objective`).
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
            pixels_crc: whether the file gets a CRC-32 of its decoded colours (14 bytes), which `verified` checks on any
                machine; with precision "exact".
            lossless: "auto": a picture that is tiny, has few colours, or is drawn (half of its pixels equal their
                neighbour: text, screenshots, diagrams), is kept without any loss of colour where that takes no more
                bytes than its target, or than its file would have otherwise (`Encoded.lossless`); else, unless parts of
                it are important, in as many colours as fit, at most 256, where that is no worse than latents are in the
                metric, and for "mixed" shows no bands (`Encoded.colours`); for a figure, in the fewest that reach it.
                Nothing is adapted then. "never": it is coded as photographs are.
            truncated: read what there is of a picture file that is cut off or damaged, with a warning.
            max_seconds: the adaptation ends at this time after the call began and the best file so far is returned;
                what comes before and after it (the search for a quality, writing) takes its own time.
            progress: called with the share done (0..1) and the name of the stage while pictures are adapted, in the
                calling thread; never at effort 0 without adapt_for.
            importance: which parts of the picture matter more: a map, or boxes. Bits move there, at every effort; rates
                and targets stay what was asked for, and figures are of the whole picture, every pixel alike. The most
                important parts have the quality that the file says (and that `quality=` asks for), the rest is coded
                coarser. A map is all that `load_picture` takes as one grey channel (a path, an array [H, W] uint8 or
                floating in [0, 1], ...) or booleans, of any size: it is laid over the whole picture as it is shown, and
                a patch of 16 pixels, of larger ones if that costs too many bytes, counts as its most important part.
                Its values are what errors weigh, as shares of the greatest; less than 1/64 counts as that. Boxes are
                (left, top, right, bottom) or (left, top, right, bottom, weight) in pixels, one or a list: in them
                errors weigh 16 times what they do outside, or `weight` times, 1/64..64. What is equally important
                everywhere changes nothing, and nor does importance where a picture is kept without loss. Readers from
                before this do not know such files, and say so.
        Raises:
            ImageError: the picture cannot be read. LimitError: it has more pixels than the limits allow.
            RateError: the target lies below what this picture can reach; names the least rate.
            UnsupportedError: an option that does not exist, adapt_for with a model that has no modulators, or
                importance with one that cannot have several qualities in a picture (those of CompressAI).
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
        pixels_crc: bool = False,
        lossless: Lossless = "auto",
        truncated: bool = False,
        max_seconds: float | None = None,
        progress: Callable[[float, str], None] | None = None,
        importance: Importance | Sequence[Importance | None] | None = None,
    ) -> list[Encoded]:
        """As `encode_detailed`, for several pictures; times are the batch's, shared equally.

        `importance` is one for all of them, or a list with one for each, None where there is none.
        """
        start = time.perf_counter()
        bits = self.model.config.bits if b is None else b
        goals = {"bpp": bpp, "max_bytes": max_bytes, "psnr": psnr, "msssim": msssim, "quality": quality}
        others = {"max_seconds": max_seconds, "alpha_quality": alpha_quality}
        check_options(goals, metric=metric, effort=effort, tile=tile, others=others, adapt_for=adapt_for)
        networks = self.model.config.transform
        check_bits(bits, networks.quantiser.least_bits, self.model.config.bits)
        check_step(quality, networks.quality_steps)
        if lossless not in LOSSLESS:
            raise UnsupportedError(f"lossless is {lossless!r}: it must be {' or '.join(map(repr, LOSSLESS))}")
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
            importance=importance,
            pixels_crc=pixels_crc,
        )
        most = [_most_bytes(bpp, max_bytes, picture) for picture in batch.pictures]
        members = range(len(batch.pictures))
        aim = Aim(most, *_figure(psnr, msssim))
        as_pixels = AsPixels(self.encoder, batch, aim, members if lossless == "auto" else ())

        def coded(some: Collection[int]) -> list[Encoded]:
            part = batch.without(set(members).difference(some))
            return self._encoded(part, lambda left: self._strategy(left, bpp, max_bytes, psnr, msssim, quality))

        results = as_pixels.files(coded, self.decode)
        batch.clock["total"] = time.perf_counter() - start
        seconds = EncodeSeconds(**{stage: value / max(1, len(results)) for stage, value in batch.clock.items()})
        return [replace(result, seconds=seconds) for result in results]

    def _encoded(self, batch: Batch, strategy: Callable[[Batch], Strategy]) -> list[Encoded]:
        """The files of a batch; where the best quality in the most important parts is not enough for a target, the
        others come nearer to it."""
        results = self.encoder.encode(batch, strategy(batch))
        for steps in _NEARER:
            mapped = [here is not None for here in batch.quality_maps]
            short = [i for i, result in enumerate(results) if mapped[i] and not result.target_reached]
            if not short or batch.late():
                break
            nearer = batch.without(set(range(len(results))).difference(short)).with_nearer(steps)
            try:
                found = self.encoder.encode(nearer, strategy(nearer))
            except RateError:  # a tiny size that no quality meets: with more in the picture it is out of reach
                break
            for i, result, quality_map in zip(short, found, nearer.quality_maps):
                results[i], batch.quality_maps[i] = result, quality_map
        return results

    def _strategy(
        self,
        batch: Batch,
        bpp: float | None,
        max_bytes: int | None,
        psnr: float | None,
        msssim: float | None,
        quality: float | None,
    ) -> Strategy:
        """What looks for the target of a call, at most one of which is given."""
        known, adapts, steps = self.encoder.known(batch), batch.effort.adapts, self.model.config.transform.quality_steps
        places = list(steps.values())
        if bpp is not None or max_bytes is not None:
            sizes = [_most_bytes(bpp, max_bytes, picture) or 0.0 for picture in batch.pictures]
            if steps:
                return StepsToSizes(known, places, sizes, adapts, batch.late)
            return ToSizes(known, sizes, batch.effort, batch.mu, batch.late)
        if psnr is not None or msssim is not None:
            figure, target = _figure(psnr, msssim)
            assert figure is not None
            if steps:
                return StepsToFigures(known, places, target, figure, adapts, batch.late)
            return ToFigures(known, target, figure, adapts, batch.late)
        if steps:
            return StepsAt(known, places[len(places) // 2] if quality is None else steps[int(quality)], adapts)
        level = round((DEFAULT_QUALITY if quality is None else quality) * MAX_QUALITY / 100)
        return AtQualities(known, [level] * len(known), adapts)

    @overload
    def decode(
        self, data: File, *, as_: Literal["numpy"] = "numpy", mode: Mode | None = None, **options: Unpack[DecodeOptions]
    ) -> UInt8Array: ...

    @overload
    def decode(
        self, data: File, *, as_: Literal["pil"], mode: Mode | None = None, **options: Unpack[DecodeOptions]
    ) -> PIL.Image.Image: ...

    @overload
    def decode(
        self, data: File, *, as_: Literal["torch"], mode: Mode | None = None, **options: Unpack[DecodeOptions]
    ) -> Tensor: ...

    @overload
    def decode(
        self, data: File, *, as_: Output, mode: Mode | None = None, **options: Unpack[DecodeOptions]
    ) -> UInt8Array | PIL.Image.Image | Tensor: ...

    def decode(
        self, data: File, *, as_: Output = "numpy", mode: Mode | None = None, **options: Unpack[DecodeOptions]
    ) -> UInt8Array | PIL.Image.Image | Tensor:
        """Decode one file.

        Args:
            data: a file: its bytes, its path, a binary file object that can seek (from where it stands to its end), or
                what `Container.open` or `read_bitstream` made of one.
            as_: "numpy" (an array uint8 [H, W, C]), "pil" (an image with what was kept in `info`) or "torch" (a tensor
                uint8 [C, H, W] on this codec's device).
            mode: "rgb": three channels; "original": as the picture was, that is grey as [H, W] (Pillow's L; a tensor
                [1, H, W]), and with alpha two channels (LA) or four (RGBA). None: "original" for "pil", "rgb" for
                "numpy" and "torch".
            metric: what the picture is to be best for: "psnr", "mixed" or "msssim", of those that the file was adapted
                for (`adapt_for`); for another one, and for None, it is shown as by default.
            region: (left, top, right, bottom) in pixels, the last two just outside: these pixels of the whole picture,
                from the tiles that they need; of a path or file object, nothing else is read.
            scale: 1, 2, 4 or 8: squares of so many pixels a side become one, of a region all that it touches; the size
                is rounded up. At 2 they are averages; at 4 and 8 models of our own make them of the block transform
                alone, much faster and nearly as good.
            damaged: "raise", or "conceal": tiles that are cut short, altered or missing are filled in, with a warning:
                what did not arrive of a tile that the end of the file cuts is predicted from what did (coarse to fine,
                so it is a blurred tile), other tiles from their neighbours. Latents elsewhere are exact, and so are
                pixels out of D's reach. Sections that are damaged are left out. The head of a file must be whole.
        Raises:
            BitstreamError: not one of our files, or damaged. LimitError: larger than the limits allow.
            ModelMismatchError: made with a model that is not at hand. OSError: a file cannot be read.
            UnsupportedError: an option that does not exist, or a region that is none of the picture's.
        """
        return self.decode_batch([data], as_=as_, mode=mode, **options)[0]

    @overload
    def decode_batch(
        self,
        files: Iterable[File],
        *,
        as_: Literal["numpy"] = "numpy",
        mode: Mode | None = None,
        **options: Unpack[DecodeOptions],
    ) -> list[UInt8Array]: ...

    @overload
    def decode_batch(
        self, files: Iterable[File], *, as_: Literal["pil"], mode: Mode | None = None, **options: Unpack[DecodeOptions]
    ) -> list[PIL.Image.Image]: ...

    @overload
    def decode_batch(
        self,
        files: Iterable[File],
        *,
        as_: Literal["torch"],
        mode: Mode | None = None,
        **options: Unpack[DecodeOptions],
    ) -> list[Tensor]: ...

    @overload
    def decode_batch(
        self, files: Iterable[File], *, as_: Output, mode: Mode | None = None, **options: Unpack[DecodeOptions]
    ) -> list[UInt8Array | PIL.Image.Image | Tensor]: ...

    @of_device
    def decode_batch(
        self,
        files: Iterable[File],
        *,
        as_: Output = "numpy",
        mode: Mode | None = None,
        metric: Metric | None = None,
        region: Region | None = None,
        scale: Scale = 1,
        damaged: Damage = "raise",
    ) -> list[Any]:
        """Decode files of any sizes together; arguments and errors as `decode`, which name the file, counted from 1.

        Equal sizes share passes of D; on a CPU the pixels are those of files decoded alone. A region is that of every
        file; `decode_regions` gives many of one.
        """
        mode = _checked_mode(as_, mode)
        check_decode_options(metric, scale, damaged)
        opened = self._opened(files)
        results: list[Any] = [None] * len(opened)
        for codec, members in self._by_model(opened):
            wanted = [codec._wanted(opened[i], region, scale, damaged) for i in members]
            for i, result in zip(members, codec._presented(wanted, as_, mode, metric, damaged)):
                results[i] = result
        return results

    @overload
    def decode_regions(
        self,
        data: File,
        regions: Iterable[Region],
        *,
        as_: Literal["numpy"] = "numpy",
        mode: Mode | None = None,
        **options: Unpack[ViewOptions],
    ) -> list[UInt8Array]: ...

    @overload
    def decode_regions(
        self,
        data: File,
        regions: Iterable[Region],
        *,
        as_: Literal["pil"],
        mode: Mode | None = None,
        **options: Unpack[ViewOptions],
    ) -> list[PIL.Image.Image]: ...

    @overload
    def decode_regions(
        self,
        data: File,
        regions: Iterable[Region],
        *,
        as_: Literal["torch"],
        mode: Mode | None = None,
        **options: Unpack[ViewOptions],
    ) -> list[Tensor]: ...

    @of_device
    def decode_regions(
        self,
        data: File,
        regions: Iterable[Region],
        *,
        as_: Output = "numpy",
        mode: Mode | None = None,
        metric: Metric | None = None,
        scale: Scale = 1,
        damaged: Damage = "raise",
    ) -> list[Any]:
        """Regions of one file, each as `decode(region=)` gives it; tiles that several need are decoded once."""
        mode = _checked_mode(as_, mode)
        check_decode_options(metric, scale, damaged)
        (opened,) = self._opened([data])
        ((codec, _),) = self._by_model([opened])
        views = [View.asked(opened.header, region, scale) for region in regions]
        if not views:
            return []
        tiles = {number for view in views for number in codec.decoder.tiles(opened.header, view)}
        stream = opened.read(tiles, damaged)
        return codec._presented([Wanted("", stream, view) for view in views], as_, mode, metric, damaged)

    def thumbnail(self, data: File, size: int | tuple[int, int], **options: Unpack[DecodeOptions]) -> PIL.Image.Image:
        """The picture made small, as fast as it can be, with its alpha, grey and metadata.

        Args:
            data: as for `decode`.
            size: (width, height) that it has to fit into, or one number for both, in pixels; its proportions are kept,
                and it is never made larger.
            options: as for `decode`, all but `scale`.
        Raises:
            UnsupportedError: no such size. Others as `decode`.
        """
        if "scale" in options:
            raise UnsupportedError("thumbnail chooses its scale: give size alone")
        width, height = _checked_size(size)
        (opened,) = self._opened([data])
        header = opened.header
        area = View.asked(header, options.get("region"), 1).snapped(header.height, header.width)
        share = max(1.0, area.width / width, area.height / height)
        options["scale"] = max(scale for scale in SCALES if scale <= share)  # never below what is asked for
        picture = self.decode(opened.file, as_="pil", **options)
        fitted = max(1, round(area.width / share)), max(1, round(area.height / share))
        return picture if picture.size == fitted else picture.resize(fitted, PIL.Image.Resampling.LANCZOS)

    @of_device
    def decode_detailed(self, data: File, **options: Unpack[DecodeOptions]) -> Decoded:
        """Decode one file with everything that was kept beside the pixels, and say how it went.

        Options and errors as of `decode`; whether the file had something for a metric, the result says.

        P and D run one after the other, also where `decode` queues them together, so that each has its own time.
        """
        return self._detailed([data], queue=False, **options)[0]

    @of_device
    def decode_batch_detailed(self, files: Iterable[File], **options: Unpack[DecodeOptions]) -> list[Decoded]:
        """As `decode_detailed`, for files of any sizes, decoded and named in errors as by `decode_batch`.

        Times are the batch's, shared by pixels; where P and D are queued together, "decoder" is the time of both.
        """
        return self._detailed(files, queue=True, **options)

    def _detailed(
        self,
        files: Iterable[File],
        *,
        queue: bool,
        metric: Metric | None = None,
        region: Region | None = None,
        scale: Scale = 1,
        damaged: Damage = "raise",
    ) -> list[Decoded]:
        check_decode_options(metric, scale, damaged)
        opened = self._opened(files)
        results: dict[int, Decoded] = {}
        for codec, members in self._by_model(opened):
            wanted = [codec._wanted(opened[i], region, scale, damaged) for i in members]
            decoded = codec.decoder.detailed(
                [part.stream for part in wanted],
                [part.name for part in wanted],
                [part.view for part in wanted],
                [part.seconds for part in wanted],
                metric=metric,
                conceal=damaged == "conceal",
                queue=queue,
            )
            for part, result in zip(wanted, decoded):
                _warn_concealed(part, result.damaged_tiles)
            results |= zip(members, decoded)
        return [results[i] for i in range(len(opened))]

    def verify(self, data: File) -> str:
        """Check every section, decode the latents, unpack alpha; return the SHA-256 of all latent symbols.

        Raises as `decode`; `DamagedError` names all sections and tiles that are damaged.
        """
        return self.verify_batch([data])[0]

    @of_device
    def verify_batch(self, files: Iterable[File]) -> list[str]:
        """As `verify`, for several files together; errors name the file, counted from 1."""
        return [part.latents_sha256 for part in self.verified(files)]

    @of_device
    def verified(self, files: Iterable[File], *, pixels: bool = False) -> list[Verified]:
        """As `verify_batch`, and with `pixels` decode the colours, whose CRC-32 a file may state (`pixels_crc`).

        Raises as `verify`, and with `pixels`:
            BitstreamError: the CRC is another one. UnsupportedError: the file states one, and D computes in floats.
        """
        opened = self._opened(files)
        results: dict[int, Verified] = {}
        for codec, members in self._by_model(opened):
            streams = [opened[i].read(None, "conceal") for i in members]
            for i, stream in zip(members, streams):
                with naming(opened[i].name):
                    stream.check_damage()
            results |= zip(members, codec.decoder.verify(streams, [opened[i].name for i in members], pixels))
        return [results[i] for i in range(len(opened))]

    @of_device
    def read_latents(self, streams: Sequence[Bitstream], names: Sequence[str] | None = None) -> list[Symbols]:
        """Entropy-decode files of this codec's model: symbols [c, h, w] each; see `LatentStage.read`."""
        return self.latent_stage.read(streams, names)

    def float_probability(self) -> FloatModel:
        """The float form of P on this codec's device, made on first use: what gradients come from."""
        return self.latent_stage.float_probability()

    def _opened(self, files: Iterable[File]) -> list[Opened]:
        """Files whose heads were checked."""
        files = list(files)
        return [Opened(data, self.limits, name) for name, data in zip(names_of(len(files)), files)]

    def _by_model(self, files: Sequence[Opened]) -> list[tuple[Codec, list[int]]]:
        """Indices of the files by the codec that reads them."""
        groups: dict[bytes, list[int]] = {}
        for i, file in enumerate(files):
            # Of a file that keeps pixels any codec makes the picture.
            model_id = self.model.model_id if file.index.keeps_pixels else file.header.model_id
            groups.setdefault(model_id, []).append(i)
        found = []
        for wanted, members in groups.items():
            with naming(files[members[0]].name):
                found.append((self.codec_for(wanted), members))
        return found

    def _wanted(self, file: Opened, region: Region | None, scale: Scale, damaged: Damage) -> Wanted:
        """A file of this codec's model, read as far as it is needed."""
        with naming(file.name):
            view = View.asked(file.header, region, scale)
        stream = file.read(None if region is None else self.decoder.tiles(file.header, view), damaged)
        return Wanted(file.name, stream, view, file.seconds)

    def _presented(
        self, wanted: Sequence[Wanted], as_: Output, mode: Mode, metric: Metric | None, damaged: Damage
    ) -> list[Any]:
        """Views of files of this codec's model in the form that was asked for."""
        names, streams, views, _ = zip(*wanted)
        restored, _ = self.decoder.restore(
            streams, names, views, metric=metric, conceal=damaged == "conceal", keep_on_device=as_ == "torch"
        )
        results = []
        for part, picture in zip(wanted, restored):
            _warn_concealed(part, picture.damaged)
            with naming(part.name):
                results.append(present(picture.pixels, part.stream, part.view, as_, mode))
        return results

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
                precision=self._asked_precision,
                threads=self.threads,
                limits=self.limits,
                strict=True,
            )
        return self._others[wanted]


_NEARER = (2, 2, 4, 4)  # by how much drops of quality maps are made less in turn: in the end there are none
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
    **options: Unpack[DecodeOptions],
) -> UInt8Array: ...


@overload
def decode(
    data: File,
    *,
    device: str | torch.device = "cpu",
    as_: Literal["pil"],
    mode: Mode | None = None,
    **options: Unpack[DecodeOptions],
) -> PIL.Image.Image: ...


@overload
def decode(
    data: File,
    *,
    device: str | torch.device = "cpu",
    as_: Literal["torch"],
    mode: Mode | None = None,
    **options: Unpack[DecodeOptions],
) -> Tensor: ...


@overload
def decode(
    data: File,
    *,
    device: str | torch.device = "cpu",
    as_: Output,
    mode: Mode | None = None,
    **options: Unpack[DecodeOptions],
) -> UInt8Array | PIL.Image.Image | Tensor: ...


def decode(
    data: File,
    *,
    device: str | torch.device = "cpu",
    as_: Output = "numpy",
    mode: Mode | None = None,
    **options: Unpack[DecodeOptions],
) -> UInt8Array | PIL.Image.Image | Tensor:
    """Decode a file to uint8 [H, W, 3]: `l2c.decode(data)`; a PIL image, with alpha and grey: `as_="pil"`.

    See `Codec.decode` for all options.
    """
    return shared_codec(device).decode(data, as_=as_, mode=mode, **options)


def _checked_mode(as_: Any, mode: Any) -> Mode:
    """Raises UnsupportedError: an unknown form of a decoded picture."""
    if as_ not in OUTPUTS:
        raise UnsupportedError(f"as_ is {as_!r}: it must be 'numpy', 'pil' or 'torch'")
    if mode is None:
        return "original" if as_ == "pil" else "rgb"
    if mode not in PICTURE_MODES:
        raise UnsupportedError(f"mode is {mode!r}: it must be 'rgb' or 'original'")
    return cast(Mode, mode)


def _checked_size(size: Any) -> tuple[int, int]:
    """Width and height. Raises UnsupportedError: they are not."""
    pair = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size, size]
    if len(pair) != 2:
        raise UnsupportedError(f"size is {size!r}: it must be a whole number of pixels, or (width, height)")
    for number in pair:
        check_number("size", number, whole=True)
        if number < 1:
            raise UnsupportedError(f"size is {size!r}: it must be at least 1")
    return int(pair[0]), int(pair[1])


def _warn_concealed(part: Wanted, damaged_tiles: Sequence[int]) -> None:
    """One warning for a file of which something had to be filled in or left out."""
    lost = [section_name(kind) for kind in part.stream.damaged_sections]
    told = []
    if damaged_tiles:
        numbers = ", ".join(map(str, damaged_tiles))
        tiles = "tiles" if len(damaged_tiles) > 1 else "tile"
        told.append(f"{tiles} {numbers} of {part.stream.header.tile_count} filled in")
    if lost:
        told.append(f"{', '.join(lost)} left out")
    if told:
        warnings.warn(f"{part.name}the file is damaged: {'; '.join(told)}", L2CWarning, stacklevel=4)


def _most_bytes(bpp: float | None, max_bytes: int | None, picture: images.Picture) -> float | None:
    """Of a picture's file; None: there is no such target."""
    if bpp is not None:
        return min(float(bpp), 1e12) * picture.height * picture.width / 8.0  # finite, and its square too
    return None if max_bytes is None else min(float(max_bytes), 1e15)


def _figure(psnr: float | None, msssim: float | None) -> tuple[Figure | None, float]:
    """The figure that a call asks for and its least value in dB; None: it asks for something else."""
    if psnr is not None:
        return "PSNR", float(psnr)
    return (None, 0.0) if msssim is None else ("MS-SSIM", dissimilarity_db(float(msssim)))


def _warn_unreached(batch: Sequence[Encoded]) -> None:
    """One warning for each picture whose target was not reached."""
    for name, encoded in zip(names_of(len(batch)), batch):
        if not encoded.target_reached:
            warnings.warn(f"{name}the target was not reached: {encoded.reason}", L2CWarning, stacklevel=3)
