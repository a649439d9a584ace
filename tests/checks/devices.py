"""Files encoded on one device and decoded on another: not one latent may differ, pixels by one level.

    python tests/checks/devices.py FOLDER [--device cuda] [--qualities 25 50 75]

Every picture of the folder at every quality, encoded on the CPU and decoded on the device, and the other way round, by
the kernels alone: nothing is decoded again another way. Exits with 1 where a latent differs, or a pixel by more.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import l2c
import l2c.images
from l2c.format.bitstream import read_bitstream
from l2c.images.listing import list_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--qualities", type=float, nargs="+", default=[25.0, 50.0, 75.0])
    args = parser.parse_args()
    codecs = {"cpu": l2c.Codec(), args.device: l2c.Codec(device=args.device)}
    print({device: codec.backend for device, codec in codecs.items()}, torch.__version__)
    warnings.simplefilter("error", l2c.L2CWarning)
    if torch.device(args.device).type == "cuda" and codecs[args.device].backend != "triton":
        sys.exit("the kernels do not run here")
    start, files, wrong, most, moved = time.perf_counter(), 0, 0, 0, 0.0
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in list_pictures(args.folder)]
    for quality in args.qualities:
        for source, target in (("cpu", args.device), (args.device, "cpu")):
            data = codecs[source].encode_batch(pictures, quality=quality, lossless="never")
            streams = [read_bitstream(part) for part in data]
            ours, theirs = (
                codecs[device].latent_stage.read_plainly(streams, codecs[device].backend) for device in (source, target)
            )
            wrong += sum(not np.array_equal(a, b) for a, b in zip(ours, theirs))
            changes = [codecs[target].transform_stage.changes(stream) for stream in streams]
            queued = codecs[args.device].decoder.queued(streams, changes, keep_on_device=False)
            if queued is None and codecs[args.device].backend == "triton":
                sys.exit("the queued decoding gave up")
            pixels = [part.pixels for part in queued] if queued else codecs[args.device].decode_batch(data)
            for a, b in zip(codecs["cpu"].decode_batch(data), pixels):
                difference = np.abs(a.astype(int) - b)
                most, moved = max(most, int(difference.max())), max(moved, float((difference > 0).mean()))
            files += len(data)
    print(
        f"{files} files, {wrong} with differing latents; pixels differ by at most {most} levels, "
        f"at most {100 * moved:.2f} % of a picture; {time.perf_counter() - start:.0f} s"
    )
    sys.exit(1 if wrong or most > 1 else 0)


if __name__ == "__main__":
    main()
