"""Whether what we measure agrees with what was published: JPEG and WebP at the quality settings of CompressAI's curves.

    python experiments/published.py KODAK --out records/kodak/agreement.json

Pillow's own settings at qualities 5, 10, ..., 95, as the published curves were made; means over the pictures of each
quality, beside the published point. `l2c eval` measures the same codecs at equal rates and with their best settings
(optimised JPEG, WebP's slowest method), which is why its curves lie better than the published ones.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from l2c.evaluate.measures import measure
from l2c.evaluate.records import load_published
from l2c.images.listing import list_pictures

PUBLISHED = Path(__file__).parent.parent / "records" / "published" / "kodak.json"
QUALITIES = range(5, 100, 5)
FIGURES = ("psnr-rgb", "ms-ssim-rgb")


def mean_point(pictures: list[Image.Image], codec: str, quality: int) -> dict[str, float]:
    """Means of bpp and figures over the pictures."""
    rows = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, codec.upper(), quality=quality)
        decoded = np.asarray(Image.open(buffer).convert("RGB"))
        bpp = 8.0 * len(buffer.getvalue()) / (picture.width * picture.height)
        rows.append({"bpp": bpp} | measure(np.asarray(picture), decoded, FIGURES))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="KODAK")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pictures = [Image.open(path).convert("RGB") for path in list_pictures(args.folder)]
    record = {}
    for codec, curve in zip(("jpeg", "webp"), load_published(PUBLISHED, ("jpeg", "webp"))):
        assert len(curve.targets) == len(QUALITIES)
        points = []
        for k, quality in enumerate(QUALITIES):
            ours = mean_point(pictures, codec, quality)
            points.append({"quality": quality} | ours | {f"published-{n}": curve.values[n][k] for n in ours})
        record[codec] = points
        rate = max(abs(p["bpp"] / p["published-bpp"] - 1.0) for p in points)
        db, similarity = (max(abs(p[n] - p[f"published-{n}"]) for p in points) for n in FIGURES)
        print(f"{codec}: rate within {100 * rate:.2f} %, PSNR within {db:.3f} dB, MS-SSIM within {similarity:.5f}")
    args.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
