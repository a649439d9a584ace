"""`l2c bench`."""

from __future__ import annotations

import statistics
import sys
from typing import Annotated, Any

import typer

from l2c.cli import lazy, options
from l2c.cli.messages import errors_of
from l2c.cli.report import print_json, print_rows
from l2c.cli.session import open_codec
from l2c.cli.terminal import STANDARD
from l2c.codec.facts import rounded
from l2c.codec.options import BEST_QUALITY
from l2c.errors import BitstreamError
from l2c.format.levels import DEFAULT_METRIC


def bench(
    source: Annotated[
        str | None, typer.Argument(metavar="[IN]", help="Picture.  [default: a drawn one, 768x512]")
    ] = None,
    quality: Annotated[
        float | None,
        typer.Option(min=0, max=BEST_QUALITY, help="Quality to encode at.  [default: that of `l2c encode`]"),
    ] = None,
    metric: options.Metric = DEFAULT_METRIC,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of which the median is shown.")] = 5,
    device: options.Device = "cpu",
    precision: options.Precision = "auto",
    model: options.Model = None,
    as_json: options.Json = False,
) -> int:
    """Measure how fast this machine encodes and decodes one picture: medians per stage."""
    codec = open_codec(model, device, precision=precision)
    if source is None:
        pixels = _drawn_picture(768, 512)
    else:
        with errors_of(source):
            pixels = lazy.images.load_picture(sys.stdin.buffer if source == STANDARD else source).rgb
    asked: dict[str, Any] = {"quality": quality, "metric": metric}
    codec.decode(codec.encode(pixels, **asked))  # loads, packs and warms everything up
    encode_runs, decode_runs = [], []
    for _ in range(repeats):
        encoded = codec.encode_detailed(pixels, **asked)
        encode_runs.append(encoded.seconds.as_dict())
        decoded = codec.decode_detailed(encoded.data)
        decode_runs.append(decoded.seconds.as_dict())
        if decoded.latents_sha256 != encoded.latents_sha256:
            raise BitstreamError("the decoded latents are not the ones that were encoded")
    megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
    result = {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "bpp": encoded.bpp,
        "quality": encoded.quality,
        "metric": metric,
        "repeats": repeats,
        "model": codec.model.name,
        "model_id": codec.model.model_id.hex(),
        "device": str(codec.device),
        "backend": codec.backend,
        "precision": codec.precision,
        "machine": lazy.devices.cpu_name(),
        "threads": lazy.torch.get_num_threads(),
        "torch": lazy.torch.__version__,
        "encode_seconds": _medians(encode_runs),
        "decode_seconds": _medians(decode_runs),
    }
    if as_json:
        print_json(result)
        return 0
    print(
        f"{result['width']}x{result['height']}, {encoded.bpp:.3f} bpp, model {codec.model.name}, "
        f"{codec.device}, {result['threads']} threads, {result['machine']}"
    )
    rows = [("", "STAGE", "SECONDS", "MPIXEL/S")]
    for name in ("encode", "decode"):
        stages: dict[str, float] = result[f"{name}_seconds"]
        ran = {stage: seconds for stage, seconds in stages.items() if seconds > 0}
        rows += [(name, stage, f"{seconds:.4f}", f"{megapixels / seconds:.2f}") for stage, seconds in ran.items()]
    print_rows(rows)
    return 0


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return rounded({stage: statistics.median(run[stage] for run in runs) for stage in runs[0]})


def _drawn_picture(width: int, height: int) -> Any:
    """A picture with slopes, edges and texture, the same on every machine: uint8 [height, width, 3]."""
    np = lazy.np
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = np.stack([x / width, y / height, (x + y) / (width + height)], axis=2)
    generator = np.random.default_rng(0)
    for _ in range(40):
        cx, cy, radius = generator.random(3) * (width, height, min(width, height) / 5)
        planes[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = generator.random(3)
    planes += 0.06 * np.sin(0.35 * x + 0.2 * y)[..., None] * (x > width / 2)[..., None]
    planes += generator.normal(0.0, 0.01, planes.shape)
    return (planes * 255).round().clip(0, 255).astype(np.uint8)
