"""Table II of L2C: how much more a meta-trained model gains from overfitting its latents than a fine-tuned one.

    python bench/meta_table.py META.pt CONTROL.pt PICTURE... [--qualities 30 50 70] [--iterations 4 10 100]

For each model, picture, rate and number of iterations the best of the paper's learning rates is taken, rescaled to our
unit (and, where meta
learnt its alpha for just so many iterations, that one); the loss drop is that of the objective of Eq. 7 in bits per
pixel at rounded latents, before minus after. The figure is the relative difference of the mean drops. Gradients are
taken under bfloat16 autocast, the losses before and after in float32. Pictures are cropped to their centre (--size), or
100 iterations would take hours.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from l2c.probability import MAX_QUALITY
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import PAPER_ALPHA, LossConfig
from l2c.train.losses import Conditions, Networks, analyse, latent_loss

LEARNING_RATES = {4: (0.1, 0.15, 0.2), 10: (0.01, 0.02, 0.05), 100: (0.001, 0.005, 0.01)}  # Table II


def objective(nets: Networks, x: Tensor, y: Tensor, cond: Conditions) -> Tensor:
    """Eq. 7 in bits per pixel at rounded latents, float32 [N]."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.is_grad_enabled()):
        return latent_loss(nets, x, y, None, cond, LossConfig(), None).objective


def drops(nets: Networks, x: Tensor, cond: Conditions, alphas: Sequence[float | Tensor]) -> Tensor:
    """Loss before minus after overfitting with Eq. 8, float32 [N]; the last iterate counts, as in the paper.

    Args:
        alphas: one for each iteration, a number or [1 or c, 1, 1].
    """
    with torch.no_grad():
        y, _ = analyse(nets, x, cond)
        before = objective(nets, x, y, cond)
    for alpha in alphas:
        leaf = y.detach().requires_grad_()
        loss = objective(nets, x, leaf, cond).sum() * (x.shape[2] * x.shape[3])
        y = leaf.detach() - alpha * torch.autograd.grad(loss, leaf)[0]
    with torch.no_grad():
        return before - objective(nets, x, y, cond)


def centre(path: Path, size: int) -> Tensor:
    """Centre of a picture, float32 [3, size, size]."""
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return torch.from_numpy(pixels[top : top + size, left : left + size].copy()).permute(2, 0, 1).float() / 255.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meta", type=Path, help="checkpoint of the stage meta")
    parser.add_argument("control", type=Path, help="checkpoint of the same length with --set meta.order=0")
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--qualities", type=int, nargs="+", default=[30, 50, 70])
    parser.add_argument("--iterations", type=int, nargs="+", default=[4, 10, 100])
    parser.add_argument("--mu", type=int, default=8, help="metric mix in eighths")
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    x = torch.stack([centre(path, args.size) for path in args.pictures]).contiguous(memory_format=torch.channels_last)
    models, learnt = {}, {}
    for name, path in (("meta", args.meta), ("control", args.control)):
        checkpoint = Checkpoint.load(path)
        nets = checkpoint.networks(checkpoint.config)[1].eval().requires_grad_(False)
        models[name] = nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        learnt[name] = [a.exp() for a in checkpoint.objective.get("0", torch.empty(0))]
    names = ", ".join(path.stem for path in args.pictures)
    print(f"{len(x)} pictures ({names}), {args.size}x{args.size}, mu {args.mu}")
    for iterations in args.iterations:
        means = {}
        for name, nets in models.items():
            best = []
            for quality in args.qualities:
                header = (quality * MAX_QUALITY // 100, args.mu, nets.config.bits)
                cond = Conditions(*(torch.full((len(x),), v) for v in header))
                choices: list[list[float | Tensor]] = [
                    [PAPER_ALPHA * rate] * iterations for rate in LEARNING_RATES.get(iterations, LEARNING_RATES[10])
                ]
                if len(learnt[name]) == iterations:
                    choices.append(learnt[name])
                best.append(torch.stack([drops(nets, x, cond, alphas) for alphas in choices]).amax(dim=0))
            means[name] = float(torch.cat(best).mean())
        print(
            f"{iterations} iterations: mean loss drop {means['meta']:.5f} meta, {means['control']:.5f} control bpp; "
            f"{100 * (means['meta'] / means['control'] - 1):+.2f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
