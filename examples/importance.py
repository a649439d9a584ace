"""A face at full quality on a cheap background: one photograph at one rate, with and without `importance`.

    python examples/importance.py [--bpp 0.5] [--weights 1,4,16,64] [--effort 0] [--metric mixed] [--out importance_out]

Prints a line for each weight of the box around the face: the rate, PSNR inside and outside of it, MS-SSIM, seconds.
With --out, the pictures are written as well. The photograph comes with scikit-image; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from PIL import Image

import l2c
from l2c.format.levels import DEFAULT_METRIC, METRICS
from l2c.metrics import msssim

FACE = (168, 56, 280, 200)  # left, top, right, bottom


def main() -> None:
    """Parse the arguments, encode and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bpp", type=float, default=0.5)
    parser.add_argument("--weights", default="1,4,16,64", help="of errors in the face, as against 1 elsewhere; 1..64")
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--metric", choices=list(METRICS), default=DEFAULT_METRIC)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    photo: npt.NDArray[np.uint8] = skimage.data.astronaut()
    asked: Any = {"bpp": options.bpp, "effort": options.effort, "metric": options.metric}
    codec = l2c.Codec()
    for weight in map(float, options.weights.split(",")):
        start = time.perf_counter()
        file = codec.encode_detailed(photo, importance=[(*FACE, weight)], **asked)
        seconds = time.perf_counter() - start
        decoded = codec.decode(file.data)
        face, rest = inside_and_outside(photo, decoded, FACE)
        similarity = msssim_of(cut(photo, FACE), cut(decoded, FACE)), msssim_of(photo, decoded)
        print(
            f"weight {weight:4g}: {file.bpp:.4f} bpp, quality {file.quality:4.1f}, PSNR face {face:.2f} dB, "
            f"rest {rest:.2f} dB, MS-SSIM face {similarity[0]:.4f}, picture {similarity[1]:.4f}, {seconds:.1f} s",
            flush=True,
        )
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(decoded).save(options.out / f"face_{weight:g}.png")


def cut(picture: npt.NDArray[np.uint8], box: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """The pixels of a box, [H, W, 3]."""
    return picture[box[1] : box[3], box[0] : box[2]]


def inside_and_outside(
    photo: npt.NDArray[np.uint8], decoded: npt.NDArray[np.uint8], box: tuple[int, int, int, int]
) -> tuple[float, float]:
    """PSNR in dB over RGB of the pixels inside a box, and of all others; both pictures uint8 [H, W, 3]."""
    squares = (photo.astype(np.float64) - decoded) ** 2
    inside = np.zeros(photo.shape[:2], bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    face, rest = (float(-10.0 * np.log10(squares[part].mean() / 255.0**2)) for part in (inside, ~inside))
    return face, rest


def msssim_of(photo: npt.NDArray[np.uint8], decoded: npt.NDArray[np.uint8]) -> float:
    """MS-SSIM over RGB, of as many scales as fit."""
    pair = (torch.from_numpy(part.astype(np.float32)).permute(2, 0, 1)[None] / 255.0 for part in (photo, decoded))
    return float(msssim(*pair))


if __name__ == "__main__":
    main()
