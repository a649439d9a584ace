"""What a model does at the extremes: `python tests/checks/extremes.py [MODEL] [--step 5] [--metrics psnr,msssim]`.

Flat colours (the corners of RGB, greys), half black half white, checkers of 1 to 16 pixels, gradients and noise, coded
at every quality. Prints a table and fails (exit 1) where

  clip       a latent before rounding lies more than half a step outside its range: it then costs an error
  worse      a picture loses more than 0.1 dB of PSNR from one quality to a higher one (`--metrics psnr`)
  flat       a flat picture of 256x256 needs 0.02 bpp or more

`--structure` looks at the linear part alone (the residual networks' last layers at zero), which must hold from the
first step of training, and at clipping only.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import l2c
from l2c.format.levels import MAX_MU, MAX_QUALITY
from l2c.models import load_model
from l2c.transforms import Transform, condition

_SIZE = 256
_WORSE_DB, _FLAT_BPP = 0.1, 0.02
_BEST_DB = 60.0  # above it nothing is seen to get worse
_MUS = {"psnr": 0, "mixed": MAX_MU // 2, "msssim": MAX_MU}


def pictures() -> dict[str, npt.NDArray[np.uint8]]:
    """Name -> uint8 [256, 256, 3]."""
    made = {}
    for k in range(8):
        corner = [255 * ((k >> c) & 1) for c in (2, 1, 0)]
        made[f"flat {corner[0]:02x}{corner[1]:02x}{corner[2]:02x}"] = np.full((_SIZE, _SIZE, 3), corner)
    for grey in (1, 64, 127, 192, 254):
        made[f"flat grey {grey}"] = np.full((_SIZE, _SIZE, 3), grey)
    y, x = np.mgrid[:_SIZE, :_SIZE]
    made["half"] = np.repeat((255 * (x >= _SIZE // 2))[:, :, None], 3, axis=2)
    for side in (1, 2, 3, 4, 8, 16):
        made[f"checkers {side}"] = np.repeat((255 * ((x // side + y // side) % 2))[:, :, None], 3, axis=2)
    made["gradient"] = np.repeat(x[:, :, None], 3, axis=2)
    made["colours"] = np.stack((x, y, 255 - x), axis=2)
    made["noise"] = np.random.default_rng(0).integers(0, 256, (_SIZE, _SIZE, 3))
    return {name: picture.astype(np.uint8) for name, picture in made.items()}


def structural(transform: Transform) -> None:
    """Put the residual networks out of action."""
    encoder, decoder = transform.encoder, transform.decoder
    with torch.no_grad():
        for layer in (encoder.head, decoder.head, getattr(decoder, "last", None)):
            if layer is not None:
                for parameter in layer.parameters():
                    parameter.zero_()


def outside(transform: Transform, x: Tensor, cond: Tensor) -> float:
    """How far latents lie beyond -128..127 before rounding, at most."""
    with torch.no_grad():
        y, _ = transform.encoder(x, cond)
    return float((y.abs() - 127.0).clamp_min(0.0).max())


def main() -> int:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="l2c-default")
    parser.add_argument("--step", type=int, default=5)
    parser.add_argument("--metrics", default="psnr,mixed,msssim")
    parser.add_argument("--structure", action="store_true")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    config = model.config
    if arguments.structure:
        structural(model.transform)
    codec = l2c.Codec(model=arguments.model)
    qualities = list(range(0, 101, arguments.step))
    failed = 0
    print(f"{'picture':14} {'metric':7} {'clip':>6} {'worst step dB':>13} {'bpp at 100':>10} {'PSNR':>6}")
    for name, picture in pictures().items():
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255.0
        for metric in arguments.metrics.split(","):
            clip, curve, rates = 0.0, [], []
            for quality in qualities:
                lmbda = config.lmbda(10 * quality / MAX_QUALITY)
                cond = condition(torch.tensor([lmbda]), torch.tensor([_MUS[metric] / MAX_MU]))
                clip = max(clip, outside(model.transform, x, cond))
                if arguments.structure:
                    continue
                data = codec.encode(picture, quality=quality, metric=metric, lossless="never")
                error = np.square(codec.decode(data).astype(float) - picture).mean()
                curve.append(min(_BEST_DB, 10.0 * np.log10(255.0**2 / max(error, 1e-9))))
                rates.append(8.0 * len(data) / _SIZE**2)
            best = np.maximum.accumulate(curve) if curve else np.zeros(1)
            worse = float(np.max(best - curve)) if curve else 0.0
            marks = ["clip"] * (clip > 0.5)
            marks += ["worse"] * (worse > _WORSE_DB and metric == "psnr")
            marks += ["flat"] * (name.startswith("flat") and bool(rates) and max(rates) >= _FLAT_BPP)
            failed += bool(marks)
            end = f"{rates[-1]:10.4f} {curve[-1]:6.2f}" if rates else ""
            print(f"{name:14} {metric:7} {clip:6.2f} {worse:13.2f} {end}  {' '.join(marks)}", flush=True)
    print(f"{failed} rows fail")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
