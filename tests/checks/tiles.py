"""Do tiles show? Tiled against untiled decoding, and the jump across tile borders against the jumps beside it.

    python tests/checks/tiles.py FOLDER [--model l2c-default] [--bpp 0.25]

First the same latents are decoded in one piece and in chunks of 256 pixels: they may differ by one level. Then every
picture is encoded in tiles of 512 pixels, and the mean absolute step from column 511 to 512 (and row 511 to 512, where
there is one) of the error picture is compared with the steps one and two pixels to either side.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import l2c
from l2c.images.listing import list_pictures

_BORDER = 512


def steps(error: np.ndarray) -> tuple[float, float]:
    """(mean step across the border, mean of the four steps beside it) along axis 1 of an error [H, W, 3]."""
    jumps = np.abs(np.diff(error, axis=1)).mean(axis=(0, 2))
    beside = [jumps[_BORDER - 1 + offset] for offset in (-2, -1, 1, 2)]
    return float(jumps[_BORDER - 1]), float(np.mean(beside))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--bpp", type=float, default=0.25)
    args = parser.parse_args()
    codec = l2c.Codec(args.model)
    largest, different, pixels = 0, 0, 0
    across, beside = [], []
    for path in list_pictures(args.folder):
        picture = np.asarray(Image.open(path).convert("RGB"))
        data = codec.encode(picture, bpp=args.bpp, tile=_BORDER)
        codec.transform_stage.chunk = 1 << 20
        whole = codec.decode(data).astype(np.int16)
        codec.transform_stage.chunk = 256
        chunked = codec.decode(data).astype(np.int16)
        codec.transform_stage.chunk = 2048
        largest = max(largest, int(np.abs(whole - chunked).max()))
        different += int((whole != chunked).sum())
        pixels += whole.size
        error = whole - picture
        for oriented in (error, error.transpose(1, 0, 2)):
            if oriented.shape[1] > _BORDER + 3:
                a, b = steps(oriented)
                across.append(a)
                beside.append(b)
    print(f"chunks of 256 against one piece: at most {largest} level(s), in {different} of {pixels} samples")
    ratio = np.mean(across) / np.mean(beside)
    print(
        f"{len(across)} tile borders: step of the error {np.mean(across):.3f} across, {np.mean(beside):.3f} beside",
        end="",
    )
    print(f", ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
