"""Where the time goes: decode and encode of one picture by stage, beside the machine's own convolution peak.

    python bench/bench_codec.py [--picture FILE] [--bpp 0.5] [--model l2c-default]

D is compared with the fastest of some plain 3x3 float32 convolutions timed in the same run, so the share says how
much of the reachable speed the network uses whatever machine this is. Every timed decode is checked.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import l2c
from l2c import integer, networks
from l2c.bitstream import read_bitstream


def median_seconds(call: Callable[[], Any], repeats: int = 15) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.inference_mode()
def convolution_peak() -> float:
    """Highest float32 multiply-accumulates per second of plain channels-last 3x3 convolutions (best of shapes)."""
    best = 0.0
    for channels, side in ((128, 96), (192, 64), (192, 96), (256, 64)):
        x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        seconds = median_seconds(lambda x=x, w=w: F.conv2d(x, w, padding=1), 9)
        best = max(best, channels * channels * 9 * side * side / seconds)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--bpp", type=float, default=0.5)
    parser.add_argument("--model", default="l2c-default")
    args = parser.parse_args()
    if args.picture:
        pixels = np.asarray(Image.open(args.picture).convert("RGB"))
    else:
        from skimage import data

        pixels = np.asarray(Image.fromarray(data.coffee()).resize((768, 512), Image.Resampling.LANCZOS))
    codec = l2c.Codec(args.model)
    megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
    encoded = codec.encode_detailed(pixels, bpp=args.bpp, metric="mixed")
    stream = read_bitstream(encoded.data)
    level = stream.header.quality
    symbols = codec.read_latents([stream])[0]
    picture = codec.decode(encoded.data)
    assert codec.verify(encoded.data) == encoded.latents_sha256

    cond = codec._condition(level, stream.header.metric_mix)
    y_hat = networks.dequantise(torch.from_numpy(symbols)[None], 8).contiguous(memory_format=torch.channels_last)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255.0
    x = networks.pad_to_multiple(x, codec.transform.s).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        decoder = median_seconds(lambda: codec.transform.decoder(y_hat, cond))
        encoder = median_seconds(lambda: codec.transform.encoder(x, cond))
        d_kmac = networks.kmac_per_pixel(
            lambda: codec.transform.decoder(y_hat, cond), pixels.shape[0] * pixels.shape[1]
        )
        e_kmac = networks.kmac_per_pixel(lambda: codec.transform.encoder(x, cond), pixels.shape[0] * pixels.shape[1])
    entropy_decode = median_seconds(lambda: codec.read_latents([stream]))
    recorder_jobs = lambda: [  # noqa: E731
        integer.Job(*symbols.shape[1:], (level, stream.header.metric_mix, 8), stream.tiles[0].channels,
                    integer._Recorder(), symbols)
    ]  # fmt: skip
    probability = median_seconds(lambda: codec.model.integer.code(recorder_jobs(), "cpu", threads=2))
    entropy_torch = median_seconds(lambda: codec._read([stream], "torch"), 3)
    whole_decode = median_seconds(lambda: codec.decode(encoded.data))
    whole_encode = median_seconds(lambda: codec.encode(pixels, quality=level / 10))
    assert np.array_equal(codec.decode(encoded.data), picture)
    peak = convolution_peak()

    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{pixels.shape[1]}x{pixels.shape[0]}, {encoded.bpp:.3f} bpp, medians of 15")
    print(f"convolution peak of this run: {peak / 1e9:.0f} GMAC/s")
    rate = d_kmac * 1e9 * megapixels / decoder
    print("| stage | ms | ms per megapixel | note |\n|---|---|---|---|")
    for name, seconds, note in (
        ("D", decoder, f"{d_kmac:.1f} kMAC/pixel, {rate / 1e9:.0f} GMAC/s, {100 * rate / peak:.0f} % of the peak"),
        ("entropy decoding (P and coder)", entropy_decode, f"{entropy_decode / decoder:.2f} of D's time"),
        ("  of it P with parameters (coder replaced)", probability, ""),
        ("  the same in the PyTorch form", entropy_torch, f"{entropy_torch / entropy_decode:.1f} times as long"),
        ("whole decode", whole_decode, f"{megapixels / whole_decode:.2f} megapixels/s"),
        ("E", encoder, f"{e_kmac:.1f} kMAC/pixel"),
        ("whole encode at a given quality", whole_encode, f"{megapixels / whole_encode:.2f} megapixels/s"),
    ):
        print(f"| {name} | {1e3 * seconds:.1f} | {1e3 * seconds / megapixels:.1f} | {note} |")


if __name__ == "__main__":
    main()
