"""Rate and quality on a folder of pictures, from real files, beside JPEG at the same rates.

    python bench/kodak.py FOLDER --out docs/kodak.json [--rates 0.25 0.5 0.75 1.0] [--metrics psnr msssim]
        [--effort 0]

JPEG is Pillow's, optimised Huffman tables, 4:2:0, at the largest quality whose file fits the rate.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import l2c
from l2c.metrics import msssim, psnr
from l2c.train.data import list_pictures


def quality_of(picture: np.ndarray, decoded: np.ndarray) -> tuple[float, float]:
    """(PSNR in dB over RGB, MS-SSIM) of uint8 [H, W, 3] arrays."""
    x, y = (torch.from_numpy(a.copy()).permute(2, 0, 1)[None].float() / 255.0 for a in (picture, decoded))
    return float(psnr(x, y)), float(msssim(x, y))


def jpeg_at(picture: Image.Image, bpp: float) -> tuple[float, np.ndarray]:
    """The largest JPEG file within `bpp`, or the smallest there is where none fits: its rate and its pixels."""

    def encode(quality: int) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True, subsampling=2)
        return buffer.getvalue()

    low, high, best = 2, 95, encode(1)
    while low <= high:
        middle = (low + high) // 2
        data = encode(middle)
        if 8 * len(data) <= bpp * picture.width * picture.height:
            best, low = data, middle + 1
        else:
            high = middle - 1
    return 8 * len(best) / (picture.width * picture.height), np.asarray(Image.open(io.BytesIO(best)).convert("RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--metrics", nargs="+", default=["psnr", "msssim"])
    parser.add_argument("--effort", type=int, default=0)
    args = parser.parse_args()
    codec = l2c.Codec(args.model)
    rows: list[dict[str, Any]] = []
    for path in list_pictures(args.folder):
        opened = Image.open(path).convert("RGB")
        picture = np.asarray(opened)
        for rate in args.rates:
            bpp, decoded = jpeg_at(opened, rate)
            p, m = quality_of(picture, decoded)
            rows.append({"picture": path.stem, "codec": "jpeg", "target": rate, "bpp": bpp, "psnr": p, "msssim": m})
            for metric in args.metrics:
                start = time.perf_counter()
                try:
                    encoded = codec.encode_detailed(picture, bpp=rate, metric=metric, effort=args.effort)
                except l2c.RateError as error:
                    print(f"{path.stem}, {metric}: {error}", flush=True)
                    continue
                middle = time.perf_counter()
                decoded = codec.decode(encoded.data)
                end = time.perf_counter()
                p, m = quality_of(picture, decoded)
                rows.append(
                    {"picture": path.stem, "codec": f"l2c-{metric}", "target": rate, "bpp": encoded.bpp, "psnr": p,
                     "msssim": m, "quality": encoded.quality, "probes": encoded.probes,
                     "corrections": encoded.corrections, "adaptation": encoded.adaptation,
                     "target_reached": encoded.target_reached, "encode_seconds": middle - start,
                     "decode_seconds": end - middle}
                )  # fmt: skip
        print(path.stem, flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "model": codec.model.name, "model_id": codec.model.model_id.hex(), "effort": args.effort,
        "torch": torch.__version__, "machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "rows": rows,
    }  # fmt: skip
    args.out.write_text(json.dumps(record, indent=1))
    print("| codec | target bpp | bpp | PSNR dB | MS-SSIM | pictures |\n|---|---|---|---|---|---|")
    for name in sorted({row["codec"] for row in rows}):
        for rate in args.rates:
            part = [row for row in rows if row["codec"] == name and row["target"] == rate]
            if part:
                b, p, m = (float(np.mean([row[key] for row in part])) for key in ("bpp", "psnr", "msssim"))
                print(f"| {name} | {rate} | {b:.4f} | {p:.2f} | {m:.4f} | {len(part)} |")


if __name__ == "__main__":
    main()
