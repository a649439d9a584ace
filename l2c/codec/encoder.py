"""Pictures -> coded latents -> files: does what a strategy asks for (`l2c.search`), and writes what it ends with."""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from l2c import guard, images, search
from l2c.adapt.effort import EFFORTS, Effort
from l2c.adapt.encoder import AdaptationReport, Adapted, Subject, adapt
from l2c.arrays import UInt8Array
from l2c.codec.batch import Batch, Settings, read_batch, silent
from l2c.codec.importance import Importance
from l2c.codec.latent_stage import Latents, LatentStage
from l2c.codec.options import DEFAULT_TILE
from l2c.codec.receivers import Receivers, Serving
from l2c.codec.results import Encoded, Receiver
from l2c.codec.support import naming
from l2c.codec.transform_stage import TransformStage
from l2c.errors import UnsupportedError
from l2c.format.adapt_section import PatchChanges
from l2c.format.bitstream import (
    LOSSLESS,
    PIXELS,
    Header,
    Limits,
    file_size,
    write_bitstream,
)
from l2c.format.levels import MAX_QUALITY, OperatingPoint
from l2c.format.quality_map_section import DROPS_PER_OCTAVE, QualityMap
from l2c.format.tiles import grid, latent_tiles
from l2c.metrics import msssim as msssim_of
from l2c.metrics import psnr as psnr_of
from l2c.models import Model
from l2c.objective import Blend, DistortionTo, distortion
from l2c.rate_control import dissimilarity_db, interpolate, log_curve
from l2c.search import (
    Adapt,
    Best,
    Figure,
    LookAt,
    Measure,
    Plain,
    Question,
    Steer,
    Strategy,
    Trial,
    Trim,
    Weigh,
)

ADAPT_PIXELS = 1 << 23
_LEAST_FILE = file_size([0], [])  # bytes of a file whose only tile is empty


@dataclass(frozen=True)
class Coded:
    """A picture's coded latents: all of its file but the head.

    Attributes:
        latents: what was coded.
        payloads, used: of each tile, with the channels in use.
        sections: what lies beside them in the file, ADAPT included.
        changes: what D changes for them.
        receivers: whom it was adapted for.
    """

    latents: Latents
    payloads: list[bytes]
    used: list[int]
    sections: dict[int, bytes]
    changes: PatchChanges
    receivers: tuple[Receiver, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return file_size([len(payload) for payload in self.payloads], [len(body) for body in self.sections.values()])


@dataclass
class Bench:
    """What lies on the encoder's bench while a strategy asks.

    Attributes:
        adapted: the adaptations of the last group, by picture: what corrections act on.
        fixed: what was coded of those pictures, where adaptation leaves the latents alone.
        turn, done: which adaptation of every picture goes on, and how many pixels it has done.
    """

    adapted: dict[int, Adapted] = field(default_factory=dict)
    fixed: dict[int, Coded] = field(default_factory=dict)
    turn: int = 0
    done: int = 0


class Encoder:
    """Encodes batches as strategies ask, for a model on a device.

    Args:
        adapt_pixels: of what is adapted together, at about 80 bytes each; a larger picture is taken alone.
    """

    def __init__(
        self,
        model: Model,
        transform_stage: TransformStage,
        latent_stage: LatentStage,
        limits: Limits,
        adapt_pixels: int = ADAPT_PIXELS,
    ) -> None:
        self.model, self.limits, self.adapt_pixels = model, limits, adapt_pixels
        self.transform_stage, self.latent_stage = transform_stage, latent_stage
        self.receivers = Receivers(model, transform_stage, adapt_pixels)

    def batch(
        self,
        sources: Iterable[Any],
        *,
        mu: int,
        bits: int | None = None,
        tile: int = DEFAULT_TILE,
        effort: Effort = EFFORTS[0],
        receivers: Collection[int] = (),
        metadata: images.Metadata = True,
        alpha_quality: float | None = None,
        truncated: bool = False,
        max_seconds: float | None = None,
        progress: Callable[[float, str], None] | None = None,
        importance: Importance | Sequence[Importance | None] | None = None,
        pixels_crc: bool = False,
    ) -> Batch:
        """Read the pictures and what is kept beside them; refuse what this codec would not decode.

        Args:
            sources: as `images.load_picture` takes them.
            mu: the metric mix 0..8. receivers: those of `adapt_for`. Others: as for `Codec.encode_detailed`.
        Raises:
            UnsupportedError: there are receivers, and the model has no modulators; or importance, and E and D of the
                model have the same steps everywhere; or a CRC of pixels, and D does not compute in integers.
        """
        if pixels_crc and self.transform_stage.exact is None:
            raise UnsupportedError("pixels_crc: pixels are the same everywhere with precision 'exact' alone")
        if receivers:
            self.receivers.check()
        if importance is not None and not self.model.config.transform.takes_places:
            raise UnsupportedError(f"importance: model {self.model.name} has the same quality everywhere in a picture")
        bits = self.model.config.bits if bits is None else bits
        return read_batch(
            sources, self.limits, self.latent_stage.check_limits,
            Settings(mu, bits, tile, effort, tuple(sorted(set(receivers)))),
            metadata=metadata, alpha_quality=alpha_quality, truncated=truncated, max_seconds=max_seconds,
            progress=progress, importance=importance, least_side=max(16, self.transform_stage.s),
            pixels_crc=pixels_crc,
        )  # fmt: skip

    def known(self, batch: Batch) -> list[search.Picture]:
        """What a strategy has to know of the pictures."""
        return [
            search.Picture(
                i,
                picture.width,
                picture.height,
                batch.overhead(i),
                guard.is_flat(picture.rgb),
                self._curve(batch.quality_maps[i]),
                reserve=self.receivers.reserve(batch, i),
                drawn=guard.is_drawn(picture.rgb),
            )
            for i, picture in enumerate(batch.pictures)
        ]

    def _curve(self, quality_map: QualityMap | None) -> Sequence[tuple[float, float]]:
        """(quality, mean bpp) points of the model for pictures with such a map, rising in both."""
        curve = self.model.rate_curve
        if quality_map is None or len(curve) < 2:
            return curve
        lmbda, logs = self.model.config.lmbda, log_curve(curve)
        step = math.log(2.0) / DROPS_PER_OCTAVE / math.log(lmbda(1.0) / lmbda(0.0)) * MAX_QUALITY
        drops, counts = np.unique(quality_map.drops, return_counts=True)
        return [
            (
                quality,
                sum(
                    int(count) * math.exp(interpolate(logs, max(0.0, quality - step * int(drop))))
                    for drop, count in zip(drops, counts)
                )
                / quality_map.drops.size,
            )
            for quality, _ in curve
        ]

    def encode(self, batch: Batch, strategy: Strategy) -> list[Encoded]:
        """Do what a strategy asks for until it asks no more, then write the files that it ends with.

        Raises:
            RateError: a target that a picture cannot reach.
        """
        bench = Bench()
        while questions := strategy.ask():
            strategy.tell(self._answers(batch, questions, bench))
        best = []
        for i, name in enumerate(batch.names):
            with naming(name):
                best.append(strategy.best(i))
        adapted = bool(bench.adapted or batch.settings.receivers)
        bench.adapted.clear()
        if batch.settings.receivers:
            best = self._served(batch, best)
        if adapted:
            batch.progress(1.0, "adapted")
        files = []
        for i, name in enumerate(batch.names):
            with naming(name):
                files.append(self.write(batch, i, best[i]))
        return files

    def _served(self, batch: Batch, best: list[Best]) -> list[Best]:
        """The same trials with conditions for the receivers that were asked for."""
        start, share = time.perf_counter(), batch.settings.share_for_receivers
        served = [
            Serving(i, part.trial.coded.latents, part.trial.coded.changes, part.room, part.measured)
            for i, part in enumerate(best)
        ]
        self.receivers.serve(batch, served, lambda done, stage: batch.progress(1.0 - share + share * done, stage))
        results = []
        for part, mine in zip(best, served):
            old: Coded = part.trial.coded
            sections = old.sections | mine.sections()
            coded = replace(old, changes=mine.changes, sections=sections, receivers=mine.report(batch))
            report = part.trial.report
            if mine.changes is not old.changes and mine.changes.conditions is not None:
                count = int(mine.changes.conditions.any(axis=0).sum())
                report = replace(report or AdaptationReport(), patches_with_conditions=count)
            results.append(replace(part, trial=replace(part.trial, size=coded.size, coded=coded, report=report)))
        batch.clock["adapt"] += time.perf_counter() - start
        return results

    def _answers(self, batch: Batch, questions: list[Question[Any]], bench: Bench) -> dict[int, Any]:
        """Answers to some of the questions.

        What is about one picture alone comes first, so that what it leads to can join the others; unadapted encodes
        share passes of E; adaptations come last, as many as go together.
        """
        alone = next((question for question in questions if not isinstance(question, Plain | Adapt)), None)
        if alone is not None:
            return {alone.i: self._answer(batch, alone, bench)}
        plain = [question for question in questions if isinstance(question, Plain)]
        if plain:
            return dict(zip([question.i for question in plain], self.encode_at(batch, plain)))
        return self._adapt(batch, [question for question in questions if isinstance(question, Adapt)], bench)

    def _answer(self, batch: Batch, question: Question[Any], bench: Bench) -> Any:
        """The answer to a question about one picture alone."""
        match question:
            case LookAt(i, quality):
                start = time.perf_counter()
                look = self.transform_stage.look(batch.pictures[i].rgb, batch.mu, batch.bits, quality)
                batch.clock["encoder"] += time.perf_counter() - start
                return look
            case Measure(i, trial, figure):
                return self.measured(batch, i, trial.coded, figure)
            case Weigh(i, trial, quality):
                return self.cost(batch, i, trial.coded, quality)
            case Steer(i, bits):
                bench.adapted[i].steer(bits)
                return self.adapted_trial(batch, i, bench.adapted[i])
            case Trim(i, bits):
                return self.adapted_trial(batch, i, bench.adapted[i], -bench.adapted[i].trim(bits))
        raise TypeError(f"{question} is no question about a picture")

    def encode_at(self, batch: Batch, asked: Sequence[Plain]) -> list[Trial]:
        """Some pictures, unadapted, each at the quality that is asked for."""
        start = time.perf_counter()
        members, levels = [question.i for question in asked], [question.quality for question in asked]
        pixels = [batch.pictures[i].rgb for i in members]
        maps = [batch.quality_maps[i] for i in members]
        analysed = self.transform_stage.analyse(pixels, levels, batch.mu, batch.bits, maps)
        batch.clock["encoder"] += time.perf_counter() - start
        latents = [
            Latents(part.symbols, OperatingPoint(level, batch.mu, batch.bits)) for part, level in zip(analysed, levels)
        ]
        coded = self._code(batch, members, latents, [batch.unchanged(i) for i in members])
        return [Trial(mine.size, level, mine, part.clipped) for mine, level, part in zip(coded, levels, analysed)]

    def adapted_trial(
        self, batch: Batch, i: int, adapted: Adapted, change: float = 0.0, fixed: Coded | None = None
    ) -> Trial:
        """An adapted picture as it is now; `change` as in `Trial`. fixed: what was coded of it, if that stays."""
        if fixed is not None:
            coded = replace(fixed, changes=adapted.changes, sections=batch.sections_with(i, adapted.changes))
        else:
            latents = Latents(adapted.symbols(), adapted.subject.point)
            (coded,) = self._code(batch, [i], [latents], [adapted.changes])
        return Trial(
            coded.size,
            coded.latents.point.quality_tenths,
            coded,
            searched=adapted.searched,
            change=change,
            report=adapted.report(),
        )

    def _code(
        self, batch: Batch, members: Sequence[int], latents: list[Latents], changes: list[PatchChanges]
    ) -> list[Coded]:
        start = time.perf_counter()
        pictures = [batch.pictures[i] for i in members]
        written = self.latent_stage.write([(p.height, p.width) for p in pictures], latents, batch.tile)
        results = [
            Coded(*part, batch.sections_with(i, change), change) for i, part, change in zip(members, written, changes)
        ]
        batch.clock["entropy"] += time.perf_counter() - start
        return results

    def write_pixels(
        self, batch: Batch, i: int, rgb: UInt8Array, body: bytes, level: int, colours: int | None = None
    ) -> Encoded:
        """The file that keeps a picture as pixels.

        Args:
            rgb: the pixels, uint8 [H, W, 3]. body: the same packed (`lossless_section`).
            level: quality in the head; `MAX_QUALITY`: nothing is lost. colours: how many they were reduced to.
        """
        header = self._header(batch, i, OperatingPoint(level, batch.mu, batch.bits), 0)
        tiles = header.tile_count
        crc = {PIXELS: _crc(rgb)} if PIXELS in batch.sections[i] else {}
        data = write_bitstream(header, [b""] * tiles, [0] * tiles, batch.sections[i] | {LOSSLESS: body} | crc)
        return Encoded(
            data,
            8.0 * len(data) / header.pixels,
            100.0 if level == MAX_QUALITY else self.model.config.shown_quality(level),
            probes=0,
            latents_sha256=hashlib.sha256(np.ascontiguousarray(rgb)).hexdigest(),
            lossless=level == MAX_QUALITY,
            colours=colours,
        )

    def _header(self, batch: Batch, i: int, point: OperatingPoint, crc: int) -> Header:
        picture = batch.pictures[i]
        return Header(
            width=picture.width,
            height=picture.height,
            model_id=self.model.model_id,
            latents_crc32=crc,
            quality=point.quality_tenths,
            latent_bits=point.bits,
            metric_mix=point.mix,
            mode=picture.mode,
            bit_depth=picture.bit_depth,
            tile_size=batch.tile,
        )

    def write(self, batch: Batch, i: int, best: Best) -> Encoded:
        """The file of a picture, and what `Encoded` says of it."""
        start = time.perf_counter()
        picture, coded = batch.pictures[i], best.trial.coded
        symbols, point = coded.latents.symbols, coded.latents.point
        header = self._header(batch, i, point, zlib.crc32(symbols))
        crc = {PIXELS: _crc(self.decoded(batch, i, coded))} if PIXELS in coded.sections else {}
        data = write_bitstream(header, coded.payloads, coded.used, coded.sections | crc)
        digest = hashlib.sha256(symbols).hexdigest()
        batch.clock["entropy"] += time.perf_counter() - start
        return Encoded(
            data,
            8.0 * len(data) / (picture.height * picture.width),
            self.model.config.shown_quality(point.quality_tenths),
            target_reached=not best.reason,
            reason=best.reason,
            probes=best.probes,
            corrections=best.trial.corrections,
            latents_sha256=digest,
            adaptation=best.trial.report,
            receivers=coded.receivers,
        )

    def decoded(self, batch: Batch, i: int, coded: Coded) -> UInt8Array:
        """What a decoder makes of a picture's latents in hand: uint8 [H, W, 3]."""
        size = batch.pictures[i].height, batch.pictures[i].width
        latents = coded.latents
        return self.transform_stage.synthesise([size], [latents.point], [latents.symbols], [coded.changes])[0]

    def measured(self, batch: Batch, i: int, coded: Coded, figure: Figure) -> float:
        """PSNR, or MS-SSIM, in dB of what a decoder makes of a picture."""
        return self.figure(batch, i, self.decoded(batch, i, coded), figure)

    def figure(self, batch: Batch, i: int, pixels: UInt8Array, figure: Figure) -> float:
        """PSNR, or MS-SSIM, in dB of what is shown of a picture, uint8 [H, W, 3]."""
        # Not from_numpy of the pictures themselves: a caller's array may be read-only, which PyTorch warns about.
        pair = (part.astype(np.float32) for part in (batch.pictures[i].rgb, pixels))
        x, x_hat = (torch.from_numpy(part).permute(2, 0, 1)[None] / 255.0 for part in pair)
        return float(psnr_of(x, x_hat)) if figure == "PSNR" else dissimilarity_db(float(msssim_of(x, x_hat)))

    def cost(self, batch: Batch, i: int, coded: Coded, level: int) -> float:
        """J of a picture in bits, its distortion weighed as at a quality 0..1000: what the encoder keeps low."""
        lmbda = self.model.config.lmbda(level / MAX_QUALITY)
        return lmbda * self.distortion(batch, i, self.decoded(batch, i, coded), level) + 8.0 * coded.size

    def distortion(self, batch: Batch, i: int, pixels: UInt8Array, level: int) -> float:
        """D of what is shown of a picture, uint8 [H, W, 3], as at a quality 0..1000, times the number of its pixels."""
        total, lmbda = 0.0, self.model.config.lmbda(level / MAX_QUALITY)
        blend = Blend.of(torch.tensor([batch.mu], device="cpu"), torch.tensor([lmbda], device="cpu"))
        weights = self._weights(batch, i, level)
        for box in grid(pixels.shape[0], pixels.shape[1], batch.tile):
            pair = (part[box.slices].astype(np.float32) for part in (batch.pictures[i].rgb, pixels))
            x, x_hat = (torch.from_numpy(part).permute(2, 0, 1)[None] / 255.0 for part in pair)
            if weights is None:
                error = distortion(x, x_hat, blend)
            else:
                error = DistortionTo(x, blend, weights[(..., *box.slices)])(x_hat)
            total += float(error) * box.height * box.width
        return total

    def _weights(self, batch: Batch, i: int, level: int) -> torch.Tensor | None:
        """What errors weigh in a picture, float32 [1, 1, H, W] on the CPU; None: all the same."""
        picture, stage = batch.pictures[i], self.transform_stage
        size = (picture.height, picture.width)
        places = stage.places(level, batch.mu, batch.quality_maps[i], size)
        return None if places is None else places.weights(stage.condition(level, batch.mu), stage.s, size).cpu()

    def _adapt(self, batch: Batch, asked: Sequence[Adapt], bench: Bench) -> dict[int, Trial]:
        """Answers to the first questions, as many as go together."""
        weights = [batch.pictures[question.i].height * batch.pictures[question.i].width for question in asked]
        count = 1
        while count < len(asked) and sum(weights[: count + 1]) <= self.adapt_pixels:
            count += 1
        if bench.turn != asked[0].turn:
            bench.turn, bench.done = asked[0].turn, 0
        before, mine, total = bench.done, sum(weights[:count]), bench.done + sum(weights)

        def tell(share: float, stage: str) -> None:
            done = (asked[0].turn + (before + share * mine) / total) / asked[0].turns
            batch.progress(done * (1.0 - batch.settings.share_for_receivers), stage)

        bench.adapted.clear()  # before the next ones need the memory
        bench.fixed.clear()
        if not self.transform_stage.quantiser.is_final:
            trials = self.encode_at(batch, [Plain(question.i, question.quality) for question in asked[:count]])
            bench.fixed |= {question.i: trial.coded for question, trial in zip(asked, trials)}
        bench.adapted |= self.adapt(batch, asked[:count], tell, bench.fixed)
        bench.done += mine
        return {
            i: self.adapted_trial(batch, i, adapted, fixed=bench.fixed.get(i)) for i, adapted in bench.adapted.items()
        }

    def adapt(
        self,
        batch: Batch,
        asked: Sequence[Adapt],
        tell: Callable[[float, str], None] = silent,
        fixed: Mapping[int, Coded] | None = None,
    ) -> dict[int, Adapted]:
        """Search latents and decoder changes of some pictures together.

        Args:
            fixed: what was coded of them, where the latents stay as they are: the coder rounds them from means that
                depend on all that it coded before, so no latent can be moved alone.
        """
        start, effort = time.perf_counter(), batch.effort
        with torch.inference_mode(False):  # gradients are needed, whatever the caller has set
            subjects = self.subjects(batch, [q.i for q in asked], [q.quality for q in asked])
            if fixed:
                effort = replace(effort, iterations=0)
            for question, subject in zip(asked, subjects):
                subject.aim = question.aim
                if fixed:
                    latents = fixed[question.i].latents
                    symbols = torch.from_numpy(latents.symbols)
                    subject.y = self.transform_stage.quantiser.dequantise(symbols, latents.point.bits)
            middle = time.perf_counter()
            results = adapt(
                self.transform_stage.transform, self.latent_stage.float_probability(), self.model.bias_sets,
                subjects, effort, self.transform_stage.device, tell, batch.late,
            )  # fmt: skip
        batch.clock["encoder"] += middle - start
        batch.clock["adapt"] += time.perf_counter() - middle
        return {question.i: result for question, result in zip(asked, results)}

    def subjects(self, batch: Batch, members: Sequence[int], levels: Sequence[int]) -> list[Subject]:
        """Some of the pictures as the adaptation takes them at qualities 0..1000, E's latents included."""
        pictures = [batch.pictures[i] for i in members]
        maps = [batch.quality_maps[i] for i in members]
        analysed = self.transform_stage.analyse(
            [p.rgb for p in pictures], list(levels), batch.mu, batch.bits, maps, keep=True
        )
        return [
            Subject(
                picture.rgb,
                torch.from_numpy(part.y),
                None if part.mask is None else torch.from_numpy(part.mask),
                latent_tiles(picture.height, picture.width, batch.tile, self.transform_stage.s),
                self.transform_stage.condition(level, batch.mu),
                self.model.config.lmbda(level / MAX_QUALITY),
                OperatingPoint(level, batch.mu, batch.bits),
                quality_map=here,
                places=self.transform_stage.places(level, batch.mu, here, (picture.height, picture.width)),
            )
            for picture, part, level, here in zip(pictures, analysed, levels, maps)
        ]


def _crc(pixels: UInt8Array) -> bytes:
    """The body of PIXELS."""
    return zlib.crc32(np.ascontiguousarray(pixels)).to_bytes(4, "little")
