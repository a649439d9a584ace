"""What adapting D gains: the best bias set of each 256x256 patch, SGD on the modulators of each 512x512 patch.

    python experiments/adaptation.py bias-sets KODAK [--model FILE] [--qualities 30 50 70] [--short-lists 1 2 4 8 16]
        [--most 255] [--mu 8] [--price 0] [--every 1]
    python experiments/adaptation.py modulators KODAK [--model FILE] [--qualities 30 50 70] [--steps 5 99] [--every 4]

Bias sets: whole pictures, one map of sets each, as the encoder does it; a set costs 9 bits, and with --price 9 only
sets that pay are taken. Modulators: patches coded alone, as OML does. Gains are of the rounded 8-bit pixels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from l2c import transforms
from l2c.adapt.bias_sets import DEFAULT_INDEX, search_sets, set_maps
from l2c.adapt.latents import Regions
from l2c.adapt.modulators import adapt_conditions
from l2c.format.levels import MAX_MU, MAX_QUALITY
from l2c.metrics import msssim, psnr
from l2c.models import Model, load_model
from l2c.train.losses import lmbda_of_quality
from l2c.transforms import Adaptation, Grid


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
    cond = transforms.condition(lmbda, torch.full((len(x),), mu / MAX_MU))
    y, tau = model.transform.encoder(x, cond)
    if tau is not None:
        y = y * transforms.importance_mask(tau, model.config.transform.c)
    bits = model.config.bits
    return transforms.dequantise(transforms.quantise(y, bits), bits), cond


def shown(model: Model, z: Tensor, cond: Tensor, adaptation: Adaptation | None) -> Tensor:
    """Decoded patches, rounded to 8 bits."""
    return (model.transform.decoder(z, cond, adaptation).clamp(0, 1) * 255).round() / 255


def bias_sets(model: Model, files: list[Path], args: argparse.Namespace) -> None:
    """What the search of bias sets gains on whole pictures, for short lists of several lengths and for all sets."""
    sets = model.bias_sets
    assert sets is not None, "this model has no bias sets"
    counts = [*args.short_lists, min(args.most, sets.values.shape[1])]
    used: set[int] = set()
    for quality in args.qualities:
        level = quality * MAX_QUALITY // 100
        band = sets.band(level, MAX_QUALITY)
        saved = dict.fromkeys(counts, 0.0)
        gains, chosen, rates, seconds = [], [], [], dict.fromkeys(counts, 0.0)
        for path in files:
            with Image.open(path) as opened:
                pixels = torch.from_numpy(np.asarray(opened.convert("RGB")).copy())
            x = (pixels.permute(2, 0, 1)[None].float() / 255.0).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                z, cond = encode(model, x, level, args.mu)
            lmbda = lmbda_of_quality(torch.tensor([level]), model.config)
            regions = Regions(x, z, None, cond, torch.tensor([[level, args.mu, model.config.bits]]), lmbda)
            for count in counts:
                start = time.perf_counter()
                found = search_sets(model.transform, regions, z, sets, [band], count, price=args.price)
                seconds[count] += time.perf_counter() - start
                assert found is not None
                saved[count] += float(found[1])
            index = found[0]
            maps = set_maps(sets, [band], index)
            with torch.no_grad():
                before = shown(model, z, cond, None)
                after = shown(model, z, cond, Adaptation(biases=maps, bias_grid=Grid(256 // model.transform.s)))
                plain = float(regions.cost(before))
            gains.append(float(msssim(x, after) - msssim(x, before)))
            rates.append(100 * float(found[1]) / plain)
            chosen += index.flatten().tolist()
            print(
                f"{path.stem}, quality {quality}: MS-SSIM {gains[-1]:+.6f}, distortion {-rates[-1]:+.3f} %", flush=True
            )
        now = set(chosen) - {DEFAULT_INDEX}
        used |= now
        lists = ", ".join(
            f"{count}: {100 * saved[count] / max(saved[counts[-1]], 1e-9):.0f} % ({seconds[count] / len(files):.2f} s)"
            for count in counts
        )
        print(
            f"quality {quality}: {len(files)} pictures, mean MS-SSIM gain {statistics.mean(gains):+.6f} "
            f"(largest {max(gains):+.6f}), mean change of the distortion {-statistics.mean(rates):+.3f} %; "
            f"{len(now)} of {sets.values.shape[1]} sets used, default kept by {chosen.count(DEFAULT_INDEX)} of "
            f"{len(chosen)} patches; short lists keep of the gain of the last (seconds a picture): {lists}",
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
    parser.add_argument("--short-lists", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--most", type=int, default=255, help="length of the last list, which the others are compared with"
    )
    parser.add_argument("--mu", type=int, default=MAX_MU, help="metric mix of the bias sets' part, 0..8")
    parser.add_argument("--price", type=float, default=0.0, help="bits that a set must save")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 99])
    parser.add_argument("--every", type=int, default=1, help="take every so many-th picture")
    args = parser.parse_args()
    model = load_model(args.model)
    files = sorted(args.pictures.glob("*.png"))[:: args.every]
    print(f"{model.name} {model.model_id.hex()}, {len(files)} pictures")
    (bias_sets if args.part == "bias-sets" else modulators)(model, files, args)


if __name__ == "__main__":
    main()
