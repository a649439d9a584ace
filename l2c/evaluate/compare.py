"""`l2c compare`: one HTML page, without network, that shows what files make of a picture and where their bits went."""

from __future__ import annotations

import base64
import colorsys
import functools
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from l2c.arrays import UInt8Array
from l2c.codec import Codec
from l2c.errors import UnsupportedError
from l2c.evaluate.measures import FIGURES, measure
from l2c.format.adapt_section import BIAS_PATCH, CONDITION_PATCH, CONDITION_UNIT, NO_SET, PatchChanges
from l2c.format.bitstream import ADAPT, Bitstream, read_bitstream
from l2c.format.levels import MAX_QUALITY, metric_name
from l2c.format.tiles import latent_tiles
from l2c.images import load_picture

_BITS_PATCH = 64  # pixels a side over which bits are summed
_ERROR_FULL = 32.0  # levels of error that are drawn brightest
_FIGURES = tuple(FIGURES)[:4]


@dataclass(frozen=True)
class Overlay:
    """A map over the picture.

    Attributes:
        name: for the menu. legend: what its colours say.
        image: uint8 [h, w, 3] or [h, w, 4], stretched over the picture without smoothing.
    """

    name: str
    legend: str
    image: UInt8Array


def compare(
    original: Path,
    files: Sequence[Path],
    codec: Codec,
    *,
    lossless_pixels: int = 2_000_000,
    error_pixels: int = 1_000_000,
) -> str:
    """The page.

    Args:
        original: the picture that was encoded. files: L2C files of it, at least one. codec: decodes them.
        lossless_pixels: larger pictures are stored in the page at WebP quality 95.
        error_pixels: the error map is made smaller than this.
    Raises:
        UnsupportedError: no file, or one whose picture has another size.
        ImageError, BitstreamError, ModelMismatchError: as `load_picture` and `Codec.decode`.
    """
    if not files:
        raise UnsupportedError("name at least one L2C file to compare with the original")
    pixels = load_picture(original).rgb
    lossless = pixels.shape[0] * pixels.shape[1] <= lossless_pixels
    embedded = functools.partial(_embedded, lossless=lossless)
    items: list[dict[str, Any]] = []
    items.append({"name": original.name, "title": "original", "image": embedded(pixels), "overlays": [], "facts": []})
    for path in files:
        data = path.read_bytes()
        decoded = codec.decode(data)
        if decoded.shape != pixels.shape:
            raise UnsupportedError(
                f"{path}: the file's picture is {decoded.shape[1]}x{decoded.shape[0]}, "
                f"the original {pixels.shape[1]}x{pixels.shape[0]}"
            )
        overlays = _overlays(codec, data, pixels, decoded, error_pixels)
        items.append(
            {
                "name": path.name,
                "title": f"{path.name}, {8 * len(data) / (pixels.shape[0] * pixels.shape[1]):.3f} bpp",
                "image": embedded(decoded),
                "overlays": [
                    {"name": o.name, "legend": o.legend, "image": _url(o.image, "PNG", optimize=True)} for o in overlays
                ],
                "facts": _facts(data, pixels, decoded),
            }
        )
    page: dict[str, Any] = {"width": pixels.shape[1], "height": pixels.shape[0], "items": items}
    page["lossless"] = lossless
    text = json.dumps(page).replace("<", "\\u003c")
    template = resources.files("l2c.evaluate").joinpath("compare.html").read_text(encoding="utf-8")
    return template.replace("__TITLE__", html.escape(original.name)).replace("__DATA__", text)


def _embedded(pixels: UInt8Array, lossless: bool) -> str:
    if lossless:
        return _url(pixels, "WEBP", lossless=True, quality=50)
    return _url(pixels, "WEBP", quality=95)


def _url(pixels: UInt8Array, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _facts(data: bytes, original: UInt8Array, decoded: UInt8Array) -> list[tuple[str, str]]:
    stream = read_bitstream(data)
    header = stream.header
    kept = ("quality", f"{100 * header.quality / MAX_QUALITY:g}, for {metric_name(header.metric_mix)}")
    if stream.index.keeps_pixels:
        kept = ("kept as", "pixels without loss" if stream.index.is_lossless else "pixels in fewer colours")
    figures = measure(original, decoded, _FIGURES)
    return [
        ("size", f"{len(data):,} bytes"),
        ("bits per pixel", f"{8 * len(data) / (header.width * header.height):.4f}"),
        kept,
        ("PSNR RGB", f"{figures['psnr-rgb']:.2f} dB"),
        ("PSNR Y", f"{figures['psnr-y']:.2f} dB"),
        ("MS-SSIM RGB", f"{figures['ms-ssim-rgb']:.5f}"),
        ("MS-SSIM Y", f"{figures['ms-ssim-y']:.5f}"),
    ]


def _overlays(codec: Codec, data: bytes, original: UInt8Array, decoded: UInt8Array, error_pixels: int) -> list[Overlay]:
    stream = read_bitstream(data, codec.limits)
    error = Overlay(
        "error", f"black: none; white: {_ERROR_FULL:g} levels or more", _error_map(original, decoded, error_pixels)
    )
    if stream.index.keeps_pixels:
        return [] if stream.index.is_lossless else [error]
    bits, used = latent_maps(codec, stream)
    s = codec.transform.s
    height, width = decoded.shape[:2]
    cell = _BITS_PATCH // s
    pixels_of = _sums(np.ones((height, width)), _BITS_PATCH)
    rate = _sums(bits, cell) / pixels_of
    overlays = [
        error,
        Overlay(
            "bits per patch",
            f"{_BITS_PATCH}x{_BITS_PATCH} pixels, by the model's estimate; dark {rate.min():.2f} bpp, "
            f"bright {rate.max():.2f} bpp",
            _coloured(rate, rate.min(), rate.max()),
        ),
        Overlay(
            "latents in use",
            f"channels that are not zero at each place; dark none, bright {int(used.max())}",
            _coloured(used.astype(np.float64), 0.0, max(1.0, float(used.max()))),
        ),
    ]
    if ADAPT in stream.metadata:
        overlays += _changes(stream, height, width)
    return overlays


@torch.no_grad()
def latent_maps(codec: Codec, stream: Bitstream) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Where a file's bits went.

    Returns:
        bits of all channels at each place by the float form of P, and how many of the channels are not zero there:
        [h, w], h = ceil(H / s), w = ceil(W / s).
    """
    header = stream.header
    (symbols,) = codec.read_latents([stream])
    z = codec.transform.quantiser.dequantise(torch.from_numpy(symbols), header.latent_bits)
    model, s = codec.float_probability(), codec.transform.s
    integers = torch.tensor([[header.quality, header.metric_mix, header.latent_bits]])
    bits = np.zeros(symbols.shape[1:])
    for top, left, bottom, right in latent_tiles(header.height, header.width, header.tile_size, s):
        part = z[None, :, top:bottom, left:right].to(codec.device)
        bits[top:bottom, left:right] = model.bit_map(part, integers)[0].cpu().numpy()
    return bits, (z != 0).sum(dim=0).numpy()


def _sums(values: npt.NDArray[Any], side: int) -> npt.NDArray[np.float64]:
    """Sums over side x side blocks from the top left, the last ones smaller."""
    rows = np.add.reduceat(values.astype(np.float64), np.arange(0, values.shape[0], side), axis=0)
    return np.asarray(np.add.reduceat(rows, np.arange(0, values.shape[1], side), axis=1))


def _error_map(original: UInt8Array, decoded: UInt8Array, most: int) -> UInt8Array:
    error = np.abs(original.astype(np.int16) - decoded).max(axis=2)
    step = 1
    while error.size > most * step * step:
        step += 1
    if step > 1:
        error = (_sums(error, step) / _sums(np.ones(error.shape), step)).astype(np.int16)
    grey = np.clip(error * (255.0 / _ERROR_FULL), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _coloured(values: npt.NDArray[np.float64], low: float, high: float) -> UInt8Array:
    """Dark blue over violet and orange to light yellow, evenly rising in lightness."""
    stops = np.array([[13, 8, 60], [84, 18, 120], [176, 48, 110], [238, 104, 66], [252, 186, 60], [252, 253, 191]])
    share = np.clip((values - low) / max(high - low, 1e-9), 0.0, 1.0) * (len(stops) - 1)
    lower = np.minimum(share.astype(int), len(stops) - 2)
    part = (share - lower)[:, :, None]
    return np.asarray(np.rint(stops[lower] * (1.0 - part) + stops[lower + 1] * part)).astype(np.uint8)


def _changes(stream: Bitstream, height: int, width: int) -> list[Overlay]:
    """Maps of the bias sets and of the mean change of lambda, where the file has them."""
    changes = PatchChanges.unpack(bytes(stream.metadata[ADAPT]), width, height, NO_SET, None)
    overlays = []
    if changes.sets is not None:
        used = sorted(set(changes.sets[changes.sets != NO_SET].tolist()))
        colours = {number: _hue(k, len(used)) for k, number in enumerate(used)}
        image = np.zeros((*changes.sets.shape, 4), np.uint8)
        for number, colour in colours.items():
            image[changes.sets == number] = (*colour, 255)
        legend = f"one colour for each of {len(used)} sets: {', '.join(map(str, used))}; clear: D's own biases"
        overlays.append(Overlay("bias sets", legend, _repeat(image, BIAS_PATCH, height, width)))
    if changes.conditions is not None:
        mean = changes.conditions.astype(np.float64).mean(axis=0) * CONDITION_UNIT
        most = max(float(np.abs(mean).max()), 1e-9)
        legend = f"mean change of the modulators' log lambda, dark {-most:+.3f}, bright {most:+.3f}"
        image = _coloured(mean, -most, most)
        overlays.append(Overlay("modulators", legend, _repeat(image, CONDITION_PATCH, height, width)))
    return overlays


def _repeat(image: UInt8Array, patch: int, height: int, width: int) -> UInt8Array:
    """Patches at 1/8 of the picture's size, so that those cut at its edge keep their shape."""
    small = (-(-height // 8), -(-width // 8))
    return np.ascontiguousarray(image.repeat(patch // 8, 0).repeat(patch // 8, 1)[: small[0], : small[1]])


def _hue(k: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hls_to_rgb(k / max(1, count), 0.55, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
