"""Exactness (DESIGN 3.7): every way of encoding gives the same bytes, every way of decoding the same latents.

    python tests/checks/exactness.py FOLDER [--pictures 4] [--model l2c-default]

Ways: L2C_CPU scalar, avx2, avx512, neon (as far as this machine has them) x 1 and 2 threads x alone and in a batch of 8
x the integer implementations. The first `--pictures` pictures go through all of them, all pictures through the fast
ones, and crops of 96x80 pixels through the int64 reference. Exits with 1 on the first difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import l2c
from l2c import ops
from l2c.codec import DEFAULT_TILE
from l2c.codec.latent_stage import Latents
from l2c.format.bitstream import read_bitstream
from l2c.format.levels import OperatingPoint
from l2c.images.listing import list_pictures

QUALITIES = (25, 50, 75)  # of a model that has networks at some alone: its own


def digest(parts: list[bytes]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in parts)).hexdigest()


def worker(args: argparse.Namespace) -> None:
    """One process with one L2C_CPU setting: encode the given latents and decode the given files in every way."""
    latents = np.load(args.latents, allow_pickle=False)
    files = [bytes(latents[k]) for k in latents.files if k.startswith("file")]
    symbols = [latents[k] for k in latents.files if k.startswith("symbols")]
    sizes = [tuple(int(v) for v in latents[k]) for k in latents.files if k.startswith("size")]
    levels = [int(latents[k]) for k in latents.files if k.startswith("level")]
    result = {}
    for backend in args.backends:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            codec = l2c.Codec(args.model, backend=backend, threads=threads)
            for batch in (1, 8):
                payloads, decoded = [], []
                for start in range(0, len(files), batch):
                    part = slice(start, start + batch)
                    parts = [Latents(s, OperatingPoint(q, 4, 8)) for s, q in zip(symbols[part], levels[part])]
                    payloads += [
                        p for w in codec.latent_stage.write(sizes[part], parts, DEFAULT_TILE) for p in w.payloads
                    ]
                    # `read_latents` would decode again, another way, what this way gets wrong.
                    decoded += [
                        s.tobytes()
                        for s in codec.latent_stage.read_plainly([read_bitstream(f) for f in files[part]], backend)
                    ]
                assert codec.backend == backend
                result[f"{backend} threads={threads} batch={batch}"] = (digest(payloads), digest(decoded))
    print(json.dumps(result))


def compare(codec: l2c.Codec, name: str, pictures: list[np.ndarray], cpus: list[str], backends: list[str]) -> int:
    """Run all ways over `pictures`; returns the number of encodes and decodes compared."""
    stored: dict[str, np.ndarray] = {}
    payloads, decoded = [], []
    qualities = list(codec.model.config.transform.quality_steps) or QUALITIES
    for quality in qualities:
        for pixels in pictures:
            file = codec.encode(pixels, quality=quality, lossless="never")
            stream = read_bitstream(file)
            symbols = codec.read_latents([stream])[0]
            n = f"{len(payloads):04d}"
            stored[f"symbols{n}"] = symbols
            stored[f"size{n}"] = np.array(pixels.shape[:2])
            stored[f"level{n}"] = np.array(stream.header.quality)  # lower where the guard settled
            stored[f"file{n}"] = np.frombuffer(file, np.uint8)
            payloads.append(b"".join(stream.payloads))
            decoded.append(symbols.tobytes())
    expected = (digest(payloads), digest(decoded))
    ways = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latents.npz"
        np.savez(path, **stored)
        command = [sys.executable, __file__, "--worker", "--latents", str(path), "--model", str(codec.model.path)]
        for cpu in cpus:
            environment = {**os.environ, "L2C_CPU": cpu}
            done = subprocess.run(
                [*command, "--backends", *backends], env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            for way, digests in json.loads(done.stdout).items():
                ways += 1
                if tuple(digests) != expected:
                    sys.exit(f"DIFFERENT: {name}, L2C_CPU={cpu}, {way}")
    print(f"{name}: {ways} ways x {len(payloads)} files ({len(pictures)} pictures x {len(qualities)} qualities): "
          f"{ways * len(payloads)} encodes and as many decodes, all equal", flush=True)  # fmt: skip
    return 2 * ways * len(payloads)


def transform_differences(codec: l2c.Codec, pictures: list[np.ndarray]) -> None:
    """How many latents E's float arithmetic rounds another way with other threads or in a batch."""
    total = different_threads = different_batch = 0
    for pixels in pictures:
        torch.set_num_threads(2)
        base = codec.transform_stage.analyse([pixels], [500], 4, 8)[0].symbols
        batch = codec.transform_stage.analyse([pixels] * 4, [500] * 4, 4, 8)[3].symbols
        torch.set_num_threads(1)
        single = codec.transform_stage.analyse([pixels], [500], 4, 8)[0].symbols
        total += base.size
        different_threads += int((base != single).sum())
        different_batch += int((base != batch).sum())
    torch.set_num_threads(2)
    print(f"E: of {total} latents {different_threads} differ between 1 and 2 threads, {different_batch} between alone "
          f"and a batch of 4 (the file of each is still exact)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--latents", help=argparse.SUPPRESS)
    parser.add_argument("--backends", nargs="+", default=["cpu", "torch"])
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    start = time.perf_counter()
    codec = l2c.Codec(args.model)
    pictures = [np.asarray(Image.open(p).convert("RGB")) for p in list_pictures(args.folder)]
    cpus = [name for name in ("scalar", "avx2", "avx512", "neon") if ops.cpp_extension().cpu_has(name)]
    count = compare(codec, "all combinations", pictures[: args.pictures], cpus, ["cpu", "torch"])
    count += compare(codec, "fast path, every picture", pictures, cpus[-1:], ["cpu"])
    crops = [p[100:180, 200:296] for p in pictures]
    count += compare(codec, "int64 reference, crops of 96x80", crops, cpus[-1:], ["cpu", "reference"])
    transform_differences(codec, pictures[: args.pictures])
    print(f"{count} comparisons in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
