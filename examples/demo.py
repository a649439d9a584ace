"""What `make demo` runs: a photograph to 0.5 bit per pixel and back, the decoder in a process of its own.

    python examples/demo.py [--picture coffee] [--bpp 0.5] [--metric mixed] [--out demo_out]

Writes OUT/NAME.l2c, OUT/NAME.png, and OUT/demo.png with original and restored picture next to each other.
The photographs come with scikit-image; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont

import l2c
from l2c.format.levels import DEFAULT_METRIC, METRICS
from l2c.metrics import msssim, psnr

PICTURES = ("astronaut", "coffee", "chelsea", "rocket")
_MARGIN, _CAPTION = 12, 34


def main() -> int:
    """Run the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compress a photograph, restore it in a second process, compare.")
    parser.add_argument("--picture", choices=PICTURES, default="coffee")
    parser.add_argument("--bpp", type=float, default=0.5)
    parser.add_argument("--metric", choices=tuple(METRICS), default=DEFAULT_METRIC)
    parser.add_argument("--model", default=None, help="name or file of the model (default: the shipped one)")
    parser.add_argument("--out", type=Path, default=Path("demo_out"))
    arguments = parser.parse_args()

    original: npt.NDArray[np.uint8] = np.ascontiguousarray(getattr(skimage.data, arguments.picture)()[..., :3])
    height, width = original.shape[:2]
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{arguments.picture}.l2c"
    restored_file = file.with_suffix(".png")

    try:
        started = time.perf_counter()
        codec = l2c.Codec(arguments.model) if arguments.model else l2c.Codec()
        load_seconds = time.perf_counter() - started
        encoded = codec.encode_detailed(original, bpp=arguments.bpp, metric=arguments.metric)
    except l2c.L2CError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    file.write_bytes(encoded.data)

    # A new process, so nothing but the bytes of the file reaches the decoder.
    command = [sys.executable, "-m", "l2c", "decode", str(file), str(restored_file), "--overwrite", "--json"]
    if arguments.model:
        command += ["--model", arguments.model]
    started = time.perf_counter()
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    process_seconds = time.perf_counter() - started
    if run.returncode:
        return run.returncode
    decoded = json.loads(run.stdout)
    if decoded["latents_sha256"] != encoded.latents_sha256:
        print("demo: error: the second process decoded other latents", file=sys.stderr)
        return 1
    restored = np.asarray(Image.open(restored_file).convert("RGB"))

    x, x_hat = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 255 for p in (original, restored))
    similarity, decibel = float(msssim(x, x_hat)), float(psnr(x, x_hat))
    size, raw = os.path.getsize(file), original.nbytes
    rate = 8 * size / (width * height)
    picture = arguments.out / "demo.png"
    _side_by_side(
        (original, f"original, {raw / 1000:.0f} kB"),
        (restored, f"L2C, {size / 1000:.1f} kB, {rate:.3f} bpp, {decibel:.2f} dB, MS-SSIM {similarity:.4f}"),
    ).save(picture)

    rows = [
        ("picture", f"{arguments.picture}, {width}x{height}, {raw} bytes of pixels"),
        ("file", f"{size} bytes, 1/{raw / size:.0f} of the pixels"),
        ("rate", f"{rate:.4f} bpp (target {arguments.bpp:g}), quality {encoded.quality:.1f}"),
        ("PSNR", f"{decibel:.2f} dB"),
        ("MS-SSIM", f"{similarity:.4f}"),
        ("load model", f"{load_seconds:.2f} s"),
        ("encode", f"{encoded.seconds.total:.2f} s, {encoded.probes} qualities tried"),
        ("decode", f"{_stages(decoded['seconds'])} (second process in all: {process_seconds:.2f} s)"),
        ("latents", f"equal in both processes, SHA-256 {encoded.latents_sha256[:16]}..."),
        ("compare", str(picture)),
    ]
    if not encoded.target_reached:
        rows.insert(3, ("note", encoded.reason))
    for name, value in rows:
        print(f"{name:<11} {value}")
    return 0


def _stages(seconds: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items() if name != "total")
    return f"{seconds['total']:.2f} s: {parts}"


def _side_by_side(*pictures: tuple[npt.NDArray[np.uint8], str]) -> Image.Image:
    """Pictures of one size in a row, each above its caption."""
    height, width = pictures[0][0].shape[:2]
    canvas = Image.new(
        "RGB", (_MARGIN + len(pictures) * (width + _MARGIN), height + _MARGIN + _CAPTION), (250, 250, 250)
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(18)
    for number, (pixels, caption) in enumerate(pictures):
        left = _MARGIN + number * (width + _MARGIN)
        canvas.paste(Image.fromarray(pixels), (left, _MARGIN))
        draw.text((left, _MARGIN + height + 6), caption, fill=(30, 30, 30), font=font)
    return canvas


if __name__ == "__main__":
    sys.exit(main())
