"""What the parts of the latent search are worth, beside plain gradient methods at equal iterations.

    python experiments/latent_search.py KODAK [--pictures kodim05 kodim20 kodim15] [--iterations 8] [--side 256]

Gain in J = lambda * pixels * D + bits (float P) over the rounded latents of E, in percent of their bits, for each
picture. Gradient methods: straight-through (L2C Eq. 8) and Adam on the latents, each with the best of several step
sizes and with its best iterate. The search: as it ships, and with one part at a time switched off.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import l2c
from l2c import ops
from l2c.adapt.encoder import regions_of
from l2c.adapt.latents import LatentSearch, Regions, Tuning
from l2c.entropy import FloatModel

CASES = ((300, 8), (650, 8), (500, 0))  # quality in tenths, mu
ALPHAS = (3e-4, 1e-3, 3e-3)  # latents per bit
RATES = (0.01, 0.05, 0.15)  # of Adam
VARIANTS = {
    "as it ships": Tuning(),
    "without averaged gradients": Tuning(memory=0.0),
    "without the gradient through P's context": Tuning(context=0.0),
    "without the bound on steep slopes": Tuning(steep=0.0),
    "without curvature per place": Tuning(local_ridge=1e9),
    "bits to be spent counted once": Tuning(spending=(1.0, 1.0, 1.0)),
}


def subject_regions(codec: l2c.Codec, path: Path, side: int | None, level: int, mu: int) -> Regions:
    """One whole picture, or the middle of it, as a region."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    if side is not None:
        top, left = ((size - side) // 2 for size in picture.shape[:2])
        picture = np.ascontiguousarray(picture[top : top + side, left : left + side])
    batch = codec.encoder.batch([picture], mu=mu)
    (subject,) = codec.encoder.subjects(batch, [0], [level])
    return regions_of(codec.transform, [subject], [(0, subject.boxes[0])], codec.device)


def gradient_gain(
    codec: l2c.Codec,
    probability: FloatModel,
    regions: Regions,
    iterations: int,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
) -> float:
    """Straight-through descent on J; b = 8."""
    leaf = regions.y.clone().requires_grad_()
    stepper, first, least, bits_before = optimizer([leaf]), None, float("inf"), 1.0
    for k in range(iterations + 1):
        rounded = leaf.round().clamp(-128.0, 127.0)
        z = leaf + (rounded - leaf).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ops.bf16_pays(torch.device("cpu"))):
            x_hat = regions.decode(codec.transform, z)
            bits = probability.num_bits(z, z, regions.header).sum()
        j = regions.cost(x_hat).sum() + bits
        value = float(j.detach())
        if first is None:
            first, bits_before = value, float(bits.detach())
        least = min(least, value)
        if k < iterations:
            stepper.zero_grad()
            j.backward()
            stepper.step()
    assert first is not None
    return 100.0 * (first - least) / bits_before


def search_gain(codec: l2c.Codec, probability: FloatModel, regions: Regions, iterations: int, tuning: Tuning) -> float:
    """The search itself."""
    search = LatentSearch(codec.transform, probability, regions, tuning=tuning)
    search.run(iterations)
    bits, cost = search.start
    return float(100.0 * (bits + cost - search.bits - search.cost).sum() / bits.sum())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="KODAK")
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--pictures", nargs="+", default=["kodim05", "kodim20", "kodim15"])
    parser.add_argument("--side", type=int, help="search the middle of each picture alone, so many pixels a side")
    parser.add_argument("--iterations", type=int, default=8)
    args = parser.parse_args()
    codec = l2c.Codec(args.model)
    probability = codec.float_probability()
    rows: dict[str, list[str]] = {}
    for level, mu in CASES:
        problems = [subject_regions(codec, args.folder / f"{name}.png", args.side, level, mu) for name in args.pictures]

        def add(name: str, gain: Callable[[Regions], float], problems: list[Regions] = problems) -> None:
            rows.setdefault(name, []).append(", ".join(f"{gain(regions):.1f}" for regions in problems))

        def best_of(
            make: Callable[[list[Tensor], float], torch.optim.Optimizer], sizes: tuple[float, ...]
        ) -> Callable[[Regions], float]:
            return lambda regions: max(
                gradient_gain(codec, probability, regions, args.iterations, lambda p, s=size: make(p, s))
                for size in sizes
            )

        add("straight-through gradient", best_of(lambda p, s: torch.optim.SGD(p, lr=s), ALPHAS))
        add("Adam", best_of(lambda p, s: torch.optim.Adam(p, lr=s), RATES))
        for name, tuning in VARIANTS.items():
            add(name, lambda regions, t=tuning: search_gain(codec, probability, regions, args.iterations, t))
    print(
        f"{codec.model.name} {codec.model.model_id.hex()}: {', '.join(args.pictures)}; {args.iterations} iterations\n"
    )
    print("| method | " + " | ".join(f"quality {level / 10:g}, mu {mu}" for level, mu in CASES) + " |")
    print("|---" * (1 + len(CASES)) + "|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
