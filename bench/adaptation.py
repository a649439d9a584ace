"""What adapting D gains: the best bias set of each 256x256 patch, SGD on the modulators of each 512x512 patch.

    python bench/adaptation.py bias-sets KODAK [--model FILE] [--qualities 30 50 70] [--short-list 8] [--every 1]
    python bench/adaptation.py modulators KODAK [--model FILE] [--qualities 30 50 70] [--steps 5 99] [--every 4]

Patches are coded alone, as both papers do. Gains are of the rounded 8-bit pixels; the rate does not change but for the
side information, which is stated.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from l2c import networks
from l2c.adapt.bias_sets import DEFAULT_INDEX, distortion_gradient, predicted_change, try_sets
from l2c.adapt.modulators import adapt_conditions
from l2c.metrics import MSSSIM_LMBDA_RATIO, msssim, psnr
from l2c.models import Model, load_model
from l2c.networks import Adaptation
from l2c.probability import MAX_MU, MAX_QUALITY
from l2c.train.losses import lmbda_of_quality


def patches_of(path: Path, side: int) -> Tensor:
    """Whole side x side patches of a picture, float32 [N, 3, side, side] in [0, 1]."""
    with Image.open(path) as opened:
        pixels = torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).permute(2, 0, 1).float() / 255.0
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    return torch.stack(
        [pixels[:, r * side :, c * side :][:, :side, :side] for r in range(rows) for c in range(columns)]
    ).contiguous(memory_format=torch.channels_last)


def encode(model: Model, x: Tensor, quality: int, mu: int) -> tuple[Tensor, Tensor]:
    """Quantised latents of patches, and their conditions."""
    lmbda = lmbda_of_quality(torch.full((len(x),), quality), model.config)
    cond = networks.condition(lmbda, torch.full((len(x),), mu / MAX_MU))
    y, tau = model.transform.encoder(x, cond)
    if tau is not None:
        y = y * networks.importance_mask(tau, model.config.transform.c)
    bits = model.config.bits
    return networks.dequantise(networks.quantise(y, bits), bits), cond


def shown(model: Model, z: Tensor, cond: Tensor, adaptation: Adaptation | None) -> Tensor:
    """Decoded patches, rounded to 8 bits."""
    return (model.transform.decoder(z, cond, adaptation).clamp(0, 1) * 255).round() / 255


@torch.no_grad()
def bias_sets(model: Model, files: list[Path], args: argparse.Namespace) -> None:
    """Best of all sets against the default biases, and what a short list keeps of it."""
    sets = model.bias_sets
    assert sets is not None, "this model has no bias sets"
    used: set[int] = set()
    for quality in args.qualities:
        level = quality * MAX_QUALITY // 100
        gains, chosen, kept, whole = [], [], 0.0, 0.0
        band = sets.band(level, MAX_QUALITY)
        for path in files:
            x = patches_of(path, 256)
            z, cond = encode(model, x, level, MAX_MU)
            before, gradient = distortion_gradient(model.transform, x, z, cond)
            ranked = predicted_change(gradient, sets, band, cond[:, 1], MSSSIM_LMBDA_RATIO).argsort(dim=1)
            best, least = try_sets(model.transform, x, z, cond, sets, band, ranked)
            _, short = try_sets(model.transform, x, z, cond, sets, band, ranked[:, : args.short_list])
            values = torch.cat((sets.values[band], torch.zeros(1, sets.values.shape[2])))
            index = torch.where(best == DEFAULT_INDEX, len(values) - 1, best)
            adapted = shown(model, z, cond, Adaptation(biases=values[index]))
            gained = (msssim(x, adapted) - msssim(x, shown(model, z, cond, None))).tolist()
            print(f"{path.stem}, quality {quality}: mean MS-SSIM gain {statistics.mean(gained):+.5f}", flush=True)
            gains += gained
            chosen += best.tolist()
            kept += float((before - short).sum())
            whole += float((before - least).sum())
        used |= set(chosen) - {DEFAULT_INDEX}
        print(
            f"quality {quality}: {len(gains)} patches, mean MS-SSIM gain {statistics.mean(gains):+.5f} "
            f"(median {statistics.median(gains):+.5f}); {len(set(chosen) - {DEFAULT_INDEX})} of {values.shape[0] - 1} "
            f"sets used, default kept by {chosen.count(DEFAULT_INDEX)}; a short list of {args.short_list} keeps "
            f"{100 * kept / max(whole, 1e-12):.0f} % of the gain in distortion; side information {8 / 256**2:.5f} bpp",
            flush=True,
        )
    print(f"all qualities: {len(used)} sets used")


def modulators(model: Model, files: list[Path], args: argparse.Namespace) -> None:
    """PSNR and MS-SSIM before and after SGD on the K conditions, each metric with its own model setting."""
    for mu, name in ((0, "PSNR"), (MAX_MU, "MS-SSIM")):
        for quality in args.qualities:
            level = quality * MAX_QUALITY // 100
            figures: dict[int, list[float]] = {steps: [] for steps in args.steps}
            base: list[float] = []
            for path in files:
                x = patches_of(path, 512)
                with torch.no_grad():
                    z, cond = encode(model, x, level, mu)
                    base += measure(x, shown(model, z, cond, None), mu)
                for steps in args.steps:
                    conditions, _, _ = adapt_conditions(model.transform, x, z, cond, steps)
                    with torch.no_grad():
                        figures[steps] += measure(x, shown(model, z, cond, Adaptation(conditions)), mu)
            for steps, after in figures.items():
                gains = [a - b for a, b in zip(after, base)]
                shares = [100 * (a / b - 1) for a, b in zip(after, base)]
                print(
                    f"{name}, quality {quality}, {steps} steps: {len(gains)} patches, {statistics.mean(base):.4f} "
                    f"{statistics.mean(gains):+.5f} dB ({statistics.mean(shares):+.3f} %, best {max(shares):+.3f} %)",
                    flush=True,
                )


def measure(x: Tensor, x_hat: Tensor, mu: int) -> list[float]:
    """PSNR in dB, or MS-SSIM in dB (-10 log10(1 - m)), of each patch."""
    return psnr(x, x_hat).tolist() if mu == 0 else (-10 * (1 - msssim(x, x_hat)).log10()).tolist()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("bias-sets", "modulators"))
    parser.add_argument("pictures", type=Path, help="folder of PNG pictures")
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--qualities", type=int, nargs="+", default=[30, 50, 70])
    parser.add_argument("--short-list", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 99])
    parser.add_argument("--every", type=int, default=1, help="take every so many-th picture")
    args = parser.parse_args()
    model = load_model(args.model)
    files = sorted(args.pictures.glob("*.png"))[:: args.every]
    print(f"{model.name} {model.model_id.hex()}, {len(files)} pictures")
    (bias_sets if args.part == "bias-sets" else modulators)(model, files, args)


if __name__ == "__main__":
    main()
