"""Decodes pictures in every way there is with the integer D and compares all pixels; what it costs, and its speed.

    python tests/checks/pixels.py PICTURES [--every N] [--qualities 20 50 80] [--efforts 0 6] [--crop N]
    python tests/checks/pixels.py PICTURES --speed
    python tests/checks/pixels.py PICTURES --rates [--every N]

The first form prints how many pixels were compared and how many differ: instruction sets, threads, PyTorch, chunks of
512, regions, batches. The second times decodes and encodes against float32 and bfloat16, with the share of what the
machine's byte products could do, known answers, and the memory that a decode takes. The third prints the BD-rate of the
integer D against the float one, from one set of files, and of the integer E against the float one, in PSNR and in dB
of MS-SSIM.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import bjontegaard
import numpy as np
import torch
from PIL import Image

import l2c
from l2c.errors import BackendError
from l2c.exact.decoder import ExactDecoder
from l2c.exact.weights import ExactWeights
from l2c.metrics import msssim, psnr
from l2c.ops import extension

_QUALITIES = (6, 12, 20, 30, 40, 50, 60, 70, 80, 90)  # of the curves


def pictures(folder: str, every: int, most: int = 1 << 20) -> Iterator[tuple[str, np.ndarray]]:
    """Names and pixels uint8 [H, W, 3], of the middle where a side has more than `most`."""
    for path in sorted(Path(folder).iterdir())[::every]:
        if path.suffix.lower() in (".png", ".jpg", ".avif", ".webp"):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            top, left = (max(0, (side - most) // 2) for side in pixels.shape[:2])
            yield path.name, np.ascontiguousarray(pixels[top : top + most, left : left + most])


def instruction_sets() -> list[str]:
    """Those of this machine."""
    found = []
    for name in ("avx512", "avx2", "neon", "scalar"):
        try:
            extension.cpp_extension().set_cpu(name)
        except BackendError:
            continue
        found.append(name)
    extension.cpp_extension().set_cpu("")
    return found


def ways(
    codec: l2c.Codec, plain: l2c.Codec | None, data: bytes, reference: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Other decodes of a file: (how, whole pictures or parts of the reference put back into it).

    With no `plain`, a codec in PyTorch, the two slow ways are left out: that, and plain C++.
    """
    before = torch.get_num_threads()
    fast = [name for name in instruction_sets() if plain is not None or name != "scalar"]
    for name, threads in itertools.product(fast, (1, 2)):
        extension.cpp_extension().set_cpu(name)
        torch.set_num_threads(threads)
        yield f"{name}, {threads} threads", codec.decode(data)
    extension.cpp_extension().set_cpu("")
    torch.set_num_threads(before)
    if plain is not None:
        yield "PyTorch", plain.decode(data)
    yield "batch of 3", codec.decode_batch([data] * 3)[2]
    height, width = reference.shape[:2]
    left, top, right, bottom = width // 5, height // 7, width - width // 3, height - height // 4
    pasted = reference.copy()
    pasted[top:bottom, left:right] = codec.decode(data, region=(left, top, right, bottom))
    yield "region", pasted
    chunk, codec.transform_stage.chunk = codec.transform_stage.chunk, 512
    yield "chunks of 512", codec.decode(data)
    codec.transform_stage.chunk = chunk


def equality(options: argparse.Namespace) -> None:
    """Pixels that differ, over all ways."""
    codec = l2c.Codec()
    os.environ["L2C_BACKEND"] = "torch"
    plain = l2c.Codec()
    del os.environ["L2C_BACKEND"]
    compared: dict[str, list[int]] = {}
    for number, (name, pixels) in enumerate(pictures(options.folder, options.every, options.crop)):
        for quality, effort in itertools.product(options.qualities, options.efforts):
            for tile in (512, 1024)[: 2 if effort == 0 else 1]:
                data = codec.encode(pixels, quality=quality, effort=effort, tile=tile)
                reference = codec.decode(data)
                for way, decoded in ways(codec, None if number % options.slow_every else plain, data, reference):
                    counts = compared.setdefault(way, [0, 0])
                    counts[0] += reference.shape[0] * reference.shape[1]
                    counts[1] += int((decoded != reference).any(axis=2).sum())
        print(name, "differing:", sum(counts[1] for counts in compared.values()), flush=True)
    for way, (count, wrong) in compared.items():
        print(f"{way:24s} {count:12d} pixels, {wrong} differ")


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int = 7) -> dict[str, float]:
    """Seconds of each, in turns, after a first round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def with_avx2(call: Callable[[], Any]) -> None:
    """The same call on AVX2."""
    extension.cpp_extension().set_cpu("avx2")
    try:
        call()
    finally:
        extension.cpp_extension().set_cpu("")


def byte_peak(folder: str) -> ctypes.CDLL | None:
    """The library of byte_peak.cpp, or None without AVX-512 VNNI or a compiler."""
    compiler = shutil.which("g++")
    if compiler is None or "avx512" not in instruction_sets():
        return None
    library, source = Path(folder) / "peak.so", Path(__file__).with_name("byte_peak.cpp")
    flags = ["-O3", "-std=c++17", "-mavx512f", "-mavx512vnni", "-pthread", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    peak = ctypes.CDLL(str(library))
    peak.byte_peak_products.restype = ctypes.c_double
    return peak


def products_per_latent(codec: l2c.Codec) -> float:
    """Byte products of the integer D; the block transform's of words count twice, as they take twice the time."""
    exact = codec.transform_stage.exact
    assert exact is not None
    fine = {"fine_block.conv1", "fine_block.conv2", "last"}
    layers = sum(
        layer.weight.size * (4 if name in fine else 1) for name, layer in exact.weights.convolutions.items()
    )  # fmt: skip
    return layers + 4 * exact.weights.transform.size


def known_answers(weights: ExactWeights, times: int = 7) -> tuple[float, float]:
    """Seconds of the first known answer of a decoder and of the next one, medians of so many decoders."""
    taken: list[list[float]] = [[], []]
    for _ in range(times):
        decoder = ExactDecoder(weights, None, torch.device("cpu"))
        for values in taken:
            started = time.perf_counter()
            decoder.known_answer()
            values.append(time.perf_counter() - started)
    return statistics.median(taken[0]), statistics.median(taken[1])


def peak_memory(data: bytes, precision: str) -> float:
    """MiB that a decode in a process of its own has taken beyond what the model had."""
    program = (
        "import sys, l2c\n"
        "def kib(name):\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith(name))\n"
        "codec = l2c.Codec(precision=sys.argv[1])\n"
        "codec.decode(open(sys.argv[3], 'rb').read())\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak so far is forgotten
        "before = kib('VmRSS')\n"
        "codec.decode(open(sys.argv[2], 'rb').read())\n"
        "print((kib('VmHWM') - before) / 1024)"
    )
    small = l2c.encode(np.zeros((64, 64, 3), np.uint8), quality=50, lossless="never")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("large", "small")]
        for path, content in zip(paths, (data, small)):
            path.write_bytes(content)
        command = [sys.executable, "-c", program, precision, *map(str, paths)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def speed(folder: str, peak: ctypes.CDLL | None) -> None:
    """Decodes and encodes at 0.5 bpp in turns, medians and ratios; shares of the peak; memory."""
    _, first = next(pictures(folder, 1))
    tall = np.tile(first, (3, 3, 1))
    codecs = {name: l2c.Codec(precision=name) for name in ("exact", "float32", "bfloat16")}
    exact = codecs["exact"].transform_stage.exact
    assert exact is not None
    first_answer, answer = known_answers(exact.weights)
    print(f"known answer: {1e3 * first_answer:.1f} ms the first time, {1e3 * answer:.1f} ms after it", flush=True)
    for label, pixels in (("768x512", first[:512, :768]), ("2000x1128", tall[:1128, :2000])):
        pixels = np.ascontiguousarray(pixels)
        data = codecs["exact"].encode(pixels, bpp=0.5)
        megapixels = pixels.shape[0] * pixels.shape[1] / 1e6
        levels = (
            torch.zeros(
                (exact.weights.config.c, *(side // codecs["exact"].transform_stage.s for side in pixels.shape[:2])),
                dtype=torch.uint8,
            )
            + 128
        )
        calls: dict[str, Callable[[], Any]] = {name: partial(codec.decode, data) for name, codec in codecs.items()}
        calls["D alone"] = partial(exact.decode, levels, 500, 0)
        if "avx512" in instruction_sets():
            calls["exact, AVX2"] = partial(with_avx2, calls["exact"])
        for threads in (1, 2):
            torch.set_num_threads(threads)
            if peak is not None:
                calls["byte peak"] = partial(peak.byte_peak, threads)
            seconds = medians(calls)
            if peak is not None:
                most = peak.byte_peak_products() * threads / seconds.pop("byte peak") / 1e9
                rate = products_per_latent(codecs["exact"]) * levels[0].numel() / seconds["D alone"] / 1e9
                print(f"  D alone: {rate:.0f} GMAC/s, {rate / most:.2f} of the {most:.0f} that this machine can do")
            for name, value in seconds.items():
                print(
                    f"{label} {threads} threads {name:12s} {1e3 * value:7.1f} ms {megapixels / value:6.2f} Mpixel/s, "
                    f"{seconds['float32'] / value:.2f} of float32's speed",
                    flush=True,
                )
        torch.set_num_threads(1)
        for precision in ("exact", "float32"):
            print(f"{label} {precision}: a decode takes {peak_memory(data, precision):.0f} MiB", flush=True)
        if label != "768x512":
            continue
        for options in ({"quality": 50}, {"bpp": 0.5}, {"bpp": 0.5, "effort": 4}):
            rounds = 7 if "effort" not in options else 1
            encodes = {name: partial(codecs[name].encode, pixels, **options) for name in ("exact", "float32")}
            seconds = medians(encodes, rounds)
            print(
                f"encode {options}:", *(f"{name} {1e3 * value:.0f} ms" for name, value in seconds.items()), flush=True
            )


def rates(options: argparse.Namespace) -> None:
    """BD-rates of the integer D against the float one, from one set of files, and of the integer E, decoded alike."""
    exact, floats = l2c.Codec(), l2c.Codec(precision="float32")
    found: dict[str, list[float]] = {}
    for name, pixels in pictures(options.folder, options.every):
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255.0
        for metric in ("psnr", "msssim"):
            # Encoder and decoder of each curve.
            curves: dict[str, list[tuple[float, float]]] = {"both": [], "float D": [], "float E": []}
            for quality in _QUALITIES:
                mine, its = (codec.encode(pixels, quality=quality, metric=metric) for codec in (exact, floats))
                for curve, codec, data in (("both", exact, mine), ("float D", floats, mine), ("float E", exact, its)):
                    y = torch.from_numpy(codec.decode(data).copy()).permute(2, 0, 1)[None].float() / 255.0
                    figure = float(psnr(x, y)) if metric == "psnr" else -10.0 * float(torch.log10(1.0 - msssim(x, y)))
                    curves[curve].append((8.0 * len(data) / pixels[..., 0].size, figure))
            for part in ("float D", "float E"):
                columns = [list(column) for curve in (curves[part], curves["both"]) for column in zip(*curve)]
                value = bjontegaard.bd_rate(*columns, method="pchip", require_matching_points=False, min_overlap=0)
                found.setdefault(f"against the {part}, {metric}", []).append(float(value))
        print(name, *(f"{kind} {values[-1]:+.3f} %;" for kind, values in found.items()), flush=True)
    for kind, values in found.items():
        mean, worst = statistics.mean(values), max(values)
        print(f"{kind}: BD-rate {mean:+.3f} % in the mean, {worst:+.3f} % at worst, {len(values)} pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--every", type=int, default=1, help="take every N-th picture")
    parser.add_argument(
        "--crop", type=int, default=1 << 20, help="compare the middle, of at most so many pixels a side"
    )
    parser.add_argument("--slow-every", type=int, default=1, help="plain C++ and PyTorch on every N-th of them alone")
    parser.add_argument("--qualities", type=float, nargs="+", default=[20, 50, 80])
    parser.add_argument("--efforts", type=int, nargs="+", default=[0, 6])
    parser.add_argument("--speed", action="store_true", help="time decoding instead")
    parser.add_argument("--rates", action="store_true", help="measure BD-rates instead")
    options = parser.parse_args()
    if options.speed:
        with tempfile.TemporaryDirectory() as folder:
            speed(options.folder, byte_peak(folder))
    elif options.rates:
        rates(options)
    else:
        equality(options)


if __name__ == "__main__":
    main()
