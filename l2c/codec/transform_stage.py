"""Pixels <-> latents: E, I, Q and D of a model on a device.

E and D do not stop at tile borders: they run over chunks with a halo at least as wide as their receptive field, so
where a tile or chunk ends cannot be seen in the pixels, and memory is bounded for any picture.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c import guard, transforms
from l2c.adapt.bias_sets import set_maps
from l2c.adapt.modulators import condition_maps
from l2c.arrays import Symbols, UInt8Array
from l2c.codec.options import PRECISIONS, Precision
from l2c.codec.views import View
from l2c.errors import BackendError, BitstreamError, L2CWarning, UnsupportedError
from l2c.exact import Changes, ExactDecoder, IntegerEncoder
from l2c.exact.encoder import is_faster
from l2c.format.adapt_section import BIAS_PATCH, CONDITION_PATCH, NO_SET, PatchChanges
from l2c.format.alternatives_section import Alternative, unpack_alternatives
from l2c.format.bitstream import ADAPT, ALTERNATIVES, QUALITY_MAP, Bitstream
from l2c.format.levels import MAX_MU, MAX_QUALITY, METRICS, Metric, OperatingPoint
from l2c.format.quality_map_section import DROPS_PER_OCTAVE, QualityMap
from l2c.format.tiles import Box, grid
from l2c.models import Model
from l2c.objective import Blend, distortion
from l2c.ops import arithmetic
from l2c.transforms import Adaptation, Grid, Places, Quantiser

CHUNK = 2048  # pixels a side that E and D see at a time; a matter of memory only
_GPU_PASS = 1 << 22  # pictures of one size share a pass of E or D up to this many pixels
_CPU_PASS = 1 << 18  # likewise; more would only take more memory


@dataclass(frozen=True)
class Analysed:
    """What E, I and Q made of a picture.

    Attributes:
        symbols: [c, h, w] of the quantiser's dtype.
        clipped: what latents lose at their limits, see `guard.Look`.
        y: the latents before Q, float32 [c, h, w], and mask: bool [c, h, w] (None without I), where they were kept.
    """

    symbols: Symbols
    clipped: float
    y: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    mask: npt.NDArray[np.bool_] | None = None


class TransformStage:
    """E, I, Q and D of a model on a device.

    Args:
        precision: "exact", "float32" or "bfloat16", or "auto"; see `Codec`.
        chunk: side in pixels of what E and D see at a time, a multiple of the largest patch of ADAPT.
    Raises:
        UnsupportedError: an unknown precision, or "exact" with a model that has no integer D.
        BackendError: the integer D gives other pixels here than it should; with "auto" a warning, and float32.
    """

    def __init__(self, model: Model, device: torch.device, precision: Precision = "auto", chunk: int = CHUNK) -> None:
        if precision not in PRECISIONS:
            raise UnsupportedError(f"precision is {precision!r}: it must be one of {', '.join(PRECISIONS)}")
        if precision == "exact" and model.exact is None:
            raise UnsupportedError(f"the model {model.name} has no integer D: precision cannot be 'exact'")
        asked, self.exact = precision, None
        if precision == "auto":
            precision = "float32" if model.exact is None else "exact"
        if precision == "exact":
            try:
                self.exact = _exact_decoder(model, device)
            except BackendError as error:
                if asked == "exact":
                    raise
                warnings.warn(f"{error}; pixels are computed in float32", L2CWarning, stacklevel=4)
                precision = "float32"
        self.device, self.precision, self.chunk = device, precision, chunk
        self._config, self._bias_sets, self._encoder_ranges = model.config, model.bias_sets, model.encoder_ranges
        self._pass_pixels = _CPU_PASS if device.type == "cpu" else _GPU_PASS
        # A model stays on the CPU, where other codecs may share it.
        self.transform = model.transform
        if device.type != "cpu":
            with torch.inference_mode(False):
                self.transform = copy.deepcopy(model.transform).to(device)

    @property
    def s(self) -> int:
        """Pixels a side that a latent stands for."""
        return self.transform.s

    @property
    def quantiser(self) -> Quantiser:
        """Q."""
        return self.transform.quantiser

    def condition(self, level: int, mu: int) -> Tensor:
        """What E and D are told: float32 [1, 2] on the device, of a quality 0..1000 and a metric mix 0..8."""
        pair = torch.tensor(
            [[self._config.lmbda(level / MAX_QUALITY)], [mu / MAX_MU]], dtype=torch.float32, device="cpu"
        )
        return transforms.condition(*pair).to(self.device)

    def places(self, level: int, mu: int, quality_map: QualityMap | None, size: tuple[int, int]) -> Places | None:
        """What E and D are told at each latent of a picture of a height and width: N = 1, on the device; or None.

        Raises:
            BitstreamError: the model cannot be told so much, or not in such patches.
        """
        if quality_map is None:
            return None
        if not self._config.transform.takes_places or quality_map.side % self.s:
            raise BitstreamError("section QUALITY_MAP: it is not made for this model")
        drops, index = np.unique(quality_map.on_latents(*size, self.s), return_inverse=True)
        lmbda, least = self._config.lmbda(level / MAX_QUALITY), self._config.lmbda(0.0)
        lmbdas = [max(lmbda * 2.0 ** (-int(drop) / DROPS_PER_OCTAVE), least) for drop in drops]
        lower = torch.tensor(lmbdas, dtype=torch.float32, device="cpu")
        cond = transforms.condition(lower, torch.full_like(lower, mu / MAX_MU))
        shape = tuple(-(-length // self.s) for length in size)
        return Places(
            cond[None].to(self.device), torch.from_numpy(index.astype(np.uint8).reshape(1, *shape)).to(self.device)
        )

    @contextlib.contextmanager
    def float_mode(self) -> Iterator[None]:
        """E and D in this codec's precision, whatever a caller has set. On a GPU float32 means no TF32."""
        low = self.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low), contextlib.ExitStack() as stack:
            if self.device.type == "cuda":
                stack.enter_context(arithmetic.ieee_float32())
            yield

    @torch.inference_mode()
    def analyse(
        self,
        pixels: list[UInt8Array],
        levels: list[int],
        mu: int,
        bits: int,
        quality_maps: Sequence[QualityMap | None] = (),
        *,
        keep: bool = False,
    ) -> list[Analysed]:
        """E, I and Q: uint8 [H, W, 3] -> symbols [c, ceil(H/s), ceil(W/s)]. Equal sizes share a pass.

        Args:
            quality_maps: one for each picture, None where there is none; or none at all.
            keep: whether the latents before Q and the mask of every picture come as well.
        """
        s, c, quantiser = self.s, self._config.transform.c, self.quantiser
        halo = -(-self.transform.encoder.receptive_halo_px // s) * s
        results: dict[int, Analysed] = {}
        maps = list(quality_maps) or [None] * len(pixels)
        shapes = [(*part.shape[:2], here is None) for part, here in zip(pixels, maps)]
        for members in same_shape(shapes, self._pass_pixels):
            height, width = pixels[members[0]].shape[:2]
            cond = torch.cat([self.condition(levels[i], mu) for i in members])
            places = Places.joined([self.places(levels[i], mu, maps[i], (height, width)) for i in members])
            canvas = np.empty((len(members), c, -(-height // s), -(-width // s)), dtype=quantiser.dtype)
            before = np.empty(canvas.shape if keep else 0, dtype=np.float32)
            masks = np.ones(canvas.shape if keep else 0, dtype=np.bool_)
            clipped = torch.zeros(len(members), device=self.device)
            for box in grid(height, width, self.chunk):
                seen = box.widened(halo, height, width)
                stacked = np.stack([pixels[i][seen.slices] for i in members])
                x = torch.from_numpy(stacked).to(self.device).permute(0, 3, 1, 2).float() / 255.0
                x = transforms.pad_to_multiple(x, s).contiguous(memory_format=torch.channels_last)
                with self.float_mode():
                    here = None if places is None else places.part(*seen.covering(s).slices)
                    y, tau = self._latents(x, cond, here)
                    z = quantiser.quantise(y, bits, tau)
                to, part = (..., *box.covering(s).slices), (..., *box.within(seen).covering(s).slices)
                canvas[to] = z[part].cpu().numpy()
                clipped += quantiser.clipping(y, bits, tau)[part].sum(dim=(1, 2))
                if keep and tau is not None:
                    mask = transforms.importance_mask(tau, c)
                    y = y * mask
                    masks[to] = (mask[part] > 0).cpu().numpy()
                if keep:
                    before[to] = y[part].cpu().numpy()
            masked = self.transform.encoder.importance is not None
            shares = (clipped / canvas[0, 0].size).tolist()
            for k, i in enumerate(members):
                results[i] = Analysed(canvas[k], shares[k])
                if keep:
                    results[i] = replace(results[i], y=before[k], mask=masks[k] if masked else None)
        return [results[i] for i in range(len(pixels))]

    def _latents(self, x: Tensor, cond: Tensor, places: Places | None = None) -> tuple[Tensor, Tensor | None]:
        """E and I as `Encoder.forward` has them, E in integers where that is possible."""
        if self._integer_encoder is not None:
            return self._integer_encoder(x, cond, places), None
        return self.transform.encoder(x, cond) if places is None else self.transform.encoder(x, cond, places)

    @functools.cached_property
    def _integer_encoder(self) -> IntegerEncoder | None:
        """Made when first needed: most codecs decode."""
        encoder: Any = self.transform.encoder
        ranges, in_cpp = self._encoder_ranges, self.exact is not None and self.exact.backend == "cpu"
        if ranges is None or not in_cpp or not is_faster(encoder):
            return None
        return IntegerEncoder(encoder, ranges)

    @torch.inference_mode()
    def look(self, pixels: UInt8Array, mu: int, bits: int, level: int) -> guard.Look:
        """What E, Q and D make of a picture, or of a sample of it, at a quality 0..1000."""
        crops = torch.from_numpy(np.array(guard.sample(pixels))).to(self.device)
        x = crops.permute(0, 3, 1, 2).float() / 255.0
        cond = self.condition(level, mu).expand(len(x), -1)
        padded = transforms.pad_to_multiple(x, self.s).contiguous(memory_format=torch.channels_last)
        with self.float_mode():
            y, tau = self._latents(padded, cond)
            symbols = list(self.quantiser.quantise(y, bits, tau))
        count, size, point = len(x), (x.shape[2], x.shape[3]), OperatingPoint(level, mu, bits)
        shown = self.synthesise([size] * count, [point] * count, symbols, [PatchChanges()] * count, keep_on_device=True)
        x_hat = torch.stack(shown).float() / 255.0
        blend = Blend.of(
            torch.full((len(x),), mu, device="cpu"), torch.full((len(x),), self._config.lmbda(1.0), device="cpu")
        )
        cost = distortion(x.cpu(), x_hat.cpu(), blend).mean()
        return guard.Look(float(cost), float(self.quantiser.clipping(y, bits, tau).mean()))

    def changes(self, stream: Bitstream, metric: Metric | None = None) -> PatchChanges:
        """What a file changes in D, by default (None) or for receivers of a metric.

        Raises:
            BitstreamError: ADAPT or QUALITY_MAP, or ALTERNATIVES where a metric needs it, does not fit the picture or
                the model.
        """
        default, header, sets = PatchChanges(), stream.header, self._bias_sets
        if ADAPT in stream.metadata:
            count = 0 if sets is None else sets.values.shape[1]
            mods = transforms.num_modulators(self.transform)
            default = PatchChanges.unpack(bytes(stream.metadata[ADAPT]), header.width, header.height, count, mods)
        if QUALITY_MAP in stream.metadata:
            quality_map = QualityMap.unpack(bytes(stream.metadata[QUALITY_MAP]), header.width, header.height)
            default = replace(default, quality_map=quality_map)
        alternative = self.alternative(stream, metric)
        return default if alternative is None else alternative.applied(default)

    def alternative(self, stream: Bitstream, metric: Metric | None) -> Alternative | None:
        """A file's conditions for a metric; None: the default holds for it.

        Raises:
            BitstreamError: the section does not fit the picture or the model.
        """
        header = stream.header
        if metric is None or METRICS[metric] == header.metric_mix:
            return None
        return next((part for part in self.alternatives(stream) if part.mix == METRICS[metric]), None)

    def alternatives(self, stream: Bitstream) -> tuple[Alternative, ...]:
        """All of a file's; raises as `alternative`."""
        if ALTERNATIVES not in stream.metadata:
            return ()
        header, mods = stream.header, transforms.num_modulators(self.transform)
        body = bytes(stream.metadata[ALTERNATIVES])
        return unpack_alternatives(body, header.width, header.height, header.metric_mix, mods)

    def _adaptation(
        self, qualities: list[int], cond: Tensor, changes: list[PatchChanges], places: Places | None, box: Box
    ) -> Adaptation | None:
        """Changes to D for pictures of one shape, as D sees them in a box of latents."""
        result, s = Adaptation(), self.s
        if places is not None:
            result.places = places.part(*box.slices)
        if any(part.sets is not None for part in changes):
            index, result.bias_grid = _patches([part.sets for part in changes], NO_SET, BIAS_PATCH // s, box)
            assert self._bias_sets is not None
            bands = [self._bias_sets.band(quality, MAX_QUALITY) for quality in qualities]
            result.biases = set_maps(self._bias_sets, bands, torch.from_numpy(index).long().to(self.device))
        if any(part.conditions is not None for part in changes):
            moved, patches = _patches([part.conditions for part in changes], 0, CONDITION_PATCH // s, box)
            result.conditions = condition_maps(cond, torch.from_numpy(moved).to(self.device))
            result.condition_grid = patches
        parts = (result.biases, result.conditions, result.places)
        return None if all(part is None for part in parts) else result

    def reach(self, size: tuple[int, int], view: View) -> Box:
        """The latents that D sees for what is wanted of a picture of a height and width."""
        return self._seen(size, view.snapped(*size), view.scale)

    def _seen(self, size: tuple[int, int], box: Box, scale: int) -> Box:
        """The latents that D sees for a box of pixels, which begins at a multiple of `scale`."""
        s, unit = self.s, max(self.s, scale)  # what D makes has to begin at a multiple of both
        halo = -(-self.transform.decoder.halo_px(scale) // unit) * (unit // s)
        return box.covering(unit).times(unit // s).widened(halo, -(-size[0] // s), -(-size[1] // s))

    @torch.inference_mode()
    def synthesise(
        self,
        sizes: Sequence[tuple[int, int]],
        points: Sequence[OperatingPoint],
        symbols: Sequence[Symbols] | Sequence[Tensor],
        changes: Sequence[PatchChanges],
        views: Sequence[View] | None = None,
        *,
        keep_on_device: bool = False,
    ) -> list[Any]:
        """D: symbols (here or on the device) -> uint8 [H, W, 3] arrays, or uint8 [3, H, W] tensors on the device.

        Equal views of pictures of equal sizes share a pass.

        Args:
            sizes: height and width of each picture. points: what each was coded at.
            symbols: of the whole picture, or of a view's `reach`.
            views: what is wanted of each picture; None: all of it.
        """
        results: dict[int, Any] = {}
        views = [View()] * len(sizes) if views is None else views
        wanted = [view.snapped(*size) for view, size in zip(views, sizes)]
        told = [change.quality_map is None for change in changes]
        shapes = [(b.height, b.width, b, size, v.scale, here) for b, size, v, here in zip(wanted, sizes, views, told)]
        for members in same_shape(shapes, self._pass_pixels):
            size, area, scale = sizes[members[0]], wanted[members[0]], views[members[0]].scale
            small = area.covering(scale)
            shape = (len(members), small.height, small.width, 3)
            out: Any = (
                torch.empty(shape, dtype=torch.uint8, device=self.device)
                if keep_on_device
                else np.empty(shape, np.uint8)
            )
            mine = [points[i] for i in members]
            cond = torch.cat([self.condition(point.quality_tenths, point.mix) for point in mine])
            places = Places.joined(
                [self.places(points[i].quality_tenths, points[i].mix, changes[i].quality_map, size) for i in members]
            )
            origin = Box(0, 0, 0, 0) if views[members[0]].area is None else self._seen(size, area, scale)
            for part in grid(area.height, area.width, self.chunk):
                box = part.moved(area.top, area.left)
                seen = self._seen(size, box, scale)
                latents = [symbols[i][(slice(None), *seen.within(origin).slices)] for i in members]
                mine_changes = [changes[i] for i in members]
                pixels = self._decode_chunk(latents, size, mine, cond, mine_changes, places, seen, box, scale)
                to = box.covering(scale).within(small)
                out[(slice(None), *to.slices)] = pixels if keep_on_device else pixels.cpu().numpy()
            for k, i in enumerate(members):
                results[i] = out[k].permute(2, 0, 1) if keep_on_device else out[k]
        return [results[i] for i in range(len(sizes))]

    def _decode_chunk(
        self,
        symbols: list[Symbols | Tensor],
        size: tuple[int, int],
        points: list[OperatingPoint],
        cond: Tensor,
        changes: list[PatchChanges],
        places: Places | None,
        seen: Box,
        box: Box,
        scale: int,
    ) -> Tensor:
        """Pixels of one box, uint8 [N, height, width, 3], or scaled down, from the latents that D sees for them."""
        s = self.s
        stacked = torch.stack([torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in symbols])
        stacked = stacked.to(self.device)
        if self.exact is not None:
            return self._decode_exactly(stacked, size, points, changes, seen, box, scale)
        b = torch.tensor([point.bits for point in points], device=self.device)
        y_hat = self.quantiser.dequantise(stacked.contiguous(memory_format=torch.channels_last), b)
        qualities = [point.quality_tenths for point in points]
        with self.float_mode():
            adaptation = self._adaptation(qualities, cond, changes, places, seen)
            x_hat = self.transform.decoder.scaled(y_hat, cond, adaptation, scale)
        x_hat = x_hat[(..., *box.covering(scale).within(seen.times(s).covering(scale)).slices)]
        return x_hat.mul(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)

    def _decode_exactly(
        self,
        symbols: Tensor,
        size: tuple[int, int],
        points: list[OperatingPoint],
        changes: list[PatchChanges],
        seen: Box,
        box: Box,
        scale: int,
    ) -> Tensor:
        """The same with the integer D; symbols uint8 [N, c, h, w]."""
        assert self.exact is not None
        wanted = box.covering(scale).within(seen.times(self.s).covering(scale))
        pictures = []
        for one, point, change in zip(symbols, points, changes):
            levels = one << (8 - point.bits)
            quality, mu = point.quality_tenths, point.mix
            mine = self._exact_changes(quality, change, size, seen)
            if transforms.LINEAR_FROM <= scale <= self.s:
                pictures.append(self.exact.scaled(levels, quality, mu, scale, mine))
                continue
            pixels = self.exact.decode(levels, quality, mu, mine)
            pictures.append(pixels if scale == 1 else _averages(pixels, scale))
        return torch.stack([part[wanted.slices] for part in pictures])

    def _exact_changes(self, quality: int, changes: PatchChanges, size: tuple[int, int], box: Box) -> Changes:
        """Changes to D as the integer D sees them in a box of latents, for a picture of a height and width."""
        sets, set_grid, band, conditions, condition_grid, octaves = None, None, 0, None, None, None
        if changes.sets is not None:
            assert self._bias_sets is not None
            found, set_grid = _patches([changes.sets], NO_SET, BIAS_PATCH // self.s, box)
            sets, band = found[0], self._bias_sets.band(quality, MAX_QUALITY)
        if changes.conditions is not None:
            found, condition_grid = _patches([changes.conditions], 0, CONDITION_PATCH // self.s, box)
            conditions = found[0]
        if changes.quality_map is not None:
            octaves = changes.quality_map.on_latents(*size, self.s)[box.slices] / DROPS_PER_OCTAVE
        return Changes(sets, band, set_grid, conditions, condition_grid, octaves)


def _patches(
    maps: Sequence[npt.NDArray[Any] | None], default: int, side: int, box: Box
) -> tuple[npt.NDArray[Any], Grid]:
    """The patches [N, ..., rows, columns] that a box of latents touches, and their grid; None: all `default`."""
    top, left, bottom, right = box
    rows, columns = slice(top // side, -(-bottom // side)), slice(left // side, -(-right // side))
    known = next(part for part in maps if part is not None)[..., rows, columns]
    stacked = [np.full_like(known, default) if part is None else part[..., rows, columns] for part in maps]
    return np.stack(stacked), Grid(side, top - rows.start * side, left - columns.start * side)


def _exact_decoder(model: Model, device: torch.device) -> ExactDecoder:
    """The model's integer D; PyTorch's, with a warning, where kernels fail. Raises BackendError where pixels differ."""
    assert model.exact is not None
    sets = None if model.bias_sets is None else model.bias_sets.values
    decoder = ExactDecoder(model.exact, sets, device)
    try:
        decoder.check(model.exact_answer)
    except BackendError as error:
        if decoder.backend != "triton":
            raise
        warnings.warn(f"{error}; PyTorch decodes instead, slower", L2CWarning, stacklevel=5)
        decoder = ExactDecoder(model.exact, sets, device, "torch")
        decoder.check(model.exact_answer)
    return decoder


def _averages(pixels: Tensor, scale: int) -> Tensor:
    """uint8 [H, W, 3] -> [ceil(H / scale), ceil(W / scale), 3]: averages of whole pixels in integers, halves up."""
    height, width = pixels.shape[:2]
    padded = F.pad(pixels.int(), (0, 0, 0, -width % scale, 0, -height % scale))
    sums = padded.unflatten(1, (-1, scale)).unflatten(0, (-1, scale)).sum(dim=(1, 3), dtype=torch.int32)
    rows, columns = (_counts(length, scale, pixels.device) for length in (height, width))
    count = (rows[:, None] * columns)[..., None]
    return torch.div(2 * sums + count, 2 * count, rounding_mode="floor").to(torch.uint8)


def _counts(length: int, scale: int, device: torch.device) -> Tensor:
    """How many of so many pixels each square has along an axis, int32."""
    begins = torch.arange(0, length, scale, dtype=torch.int32, device=device)
    return (length - begins).clamp_max(scale)


def same_shape(shapes: Sequence[tuple[Any, ...]], most_pixels: int) -> list[list[int]]:
    """Indices grouped by equal shape (height, width and what else has to be equal), each group at most so many pixels
    in all, or one picture."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    parts = []
    for (height, width, *_), members in groups.items():
        most = max(1, most_pixels // max(1, height * width))
        parts += [members[k : k + most] for k in range(0, len(members), most)]
    return parts
