"""Peak memory of encoding and decoding large pictures, each in a process of its own.

    python experiments/memory.py [--model l2c-default] [--megapixels 12 100]

The picture is scikit-image's `coffee()` enlarged with grain, as an uncompressed file; the encoder and the decoder
are the command line. Prints the largest resident set of each process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data


def measure(arguments: list[str]) -> tuple[float, float]:
    """(peak resident GB, seconds) of `python -m l2c ARGUMENTS`, which must succeed."""
    script = (
        "import resource, subprocess, sys;"
        "code = subprocess.run([sys.executable, '-W', 'ignore', '-m', 'l2c', *sys.argv[1:]]).returncode;"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]) * 1024 / 1e9, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[12.0, 100.0])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in args.megapixels:
            width = round((megapixels * 1e6 * 1.5) ** 0.5)
            source, coded, restored = (str(Path(folder) / name) for name in ("in.bmp", "out.l2c", "out.bmp"))
            picture = Image.fromarray(data.coffee()).resize((width, round(width / 1.5)), Image.Resampling.BICUBIC)
            grain = np.random.default_rng(0).integers(-4, 5, (256, 256, 3), dtype=np.int16)
            array = np.asarray(picture)
            for top in range(0, array.shape[0], 256):  # in strips, to keep this process small
                strip = array[top : top + 256].astype(np.int16)
                noise = np.tile(grain, (1, -(-width // 256), 1))[: strip.shape[0], :width]
                picture.paste(Image.fromarray((strip + noise).clip(0, 255).astype(np.uint8)), (0, top))
            picture.save(source)
            del picture, array
            encode = measure(["encode", source, coded, "--quality", "50", "--model", args.model, "-f"])
            decode = measure(["decode", coded, restored, "--model", args.model, "-f"])
            assert Image.open(restored).size == Image.open(source).size
            print(
                f"{megapixels:g} megapixels: encode {encode[0]:.2f} GB, {encode[1]:.0f} s; "
                f"decode {decode[0]:.2f} GB, {decode[1]:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
