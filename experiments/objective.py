"""Which weights of `mixed` (l2c/objective.py) give the figures that stand for eyes most at equal rate.

    python experiments/objective.py PICTURES... --out RECORD.jsonl [--rates 0.15 0.4 1] [--crop 384] [--iterations 8]
        [--objectives rgb half msssim a=0.2 a=0.35 a=0.5,f=0.8 shipped c=0] [--metrics]

Each picture's centre is encoded at each rate for every objective by a latent search of so many iterations, decoded and
measured. All objectives use the model's networks at mu = 4, so only what the search moves latents towards differs:

    none     no search
    rgb      squared error of RGB, as psnr
    half     half of that and half of MS-SSIM of RGB: what model 1 was trained for at mu = 4
    msssim   MS-SSIM of RGB
    shipped  `mixed` as it is
    a=A,f=F,c=C  as it is but for the weights that are named: of MS-SSIM, of luma in the squared error, of blue-yellow
             structure; a and f may be pairs LOW/HIGH, as in `MixedWeights`

Gains of all are such that a lambda gives about the rate that it gives with psnr. `--metrics` adds the three metrics of
the axis as users have them: networks and search at mu = 0, 4 and 8. A stopped run goes on where it was. The table has
differences from the first objective, means over pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import l2c
from l2c import objective
from l2c.evaluate.measures import FIGURES, measure
from l2c.format.levels import METRICS
from l2c.images import load_picture
from l2c.images.listing import list_pictures

# Measured along model 1's rate-distortion curves on validation pictures, medians over 0.07..2 bpp: how much 255^2 MSE
# of Y, that of chroma, and 1280 (1 - MS-SSIM_Y) change where 255^2 MSE of RGB changes by one.
SLOPES = (0.86, 0.14, 0.35)
_RGB_SLOPE = 0.38  # likewise 1280 (1 - MS-SSIM_RGB)
_FIXED = {"rgb": 0.0, "half": 0.5, "msssim": 1.0}  # share of MS-SSIM of RGB


def gain_for(structure: float, luma: float) -> float:
    """g with which a lambda gives about the rate that it gives with psnr."""
    squared = luma * SLOPES[0] + (1.0 - luma) * SLOPES[1]
    return 1.0 / ((1.0 - structure) * squared + structure * SLOPES[2])


@contextmanager
def searching_for(name: str) -> Iterator[None]:
    """The objective of this name in place of the shipped one."""
    kept = {key: getattr(objective, key) for key in ("term_weights", "MIXED", "Needs")}
    try:
        if name in _FIXED:
            objective.term_weights = _of_rgb(_FIXED[name])
            objective.Needs = _EverythingRGB  # type: ignore[misc]
        elif name not in ("none", "shipped"):
            objective.MIXED = _named(name)
        yield
    finally:
        for key, value in kept.items():
            setattr(objective, key, value)


def _named(name: str) -> objective.MixedWeights:
    values = {key: _ends(text) for key, text in (part.split("=") for part in name.split(","))}
    if not values.keys() <= {"a", "f", "c"}:
        raise SystemExit(f"{name} names no objective: weights are a, f and c")
    made = objective.MIXED
    if "c" in values:
        made = replace(made, blue=values["c"][0])
    if "a" in values or "f" in values:
        a, f = values.get("a", made.structure), values.get("f", made.luma)
        made = replace(made, structure=a, luma=f, gain=(gain_for(a[0], f[0]), gain_for(a[1], f[1])))
    return made


def _ends(text: str) -> tuple[float, float]:
    """ "0.3" or "0.3/0.2": at small and at large lambdas."""
    low, _, high = text.partition("/")
    return float(low), float(high or low)


def _of_rgb(share: float) -> Callable[[Tensor, Tensor], Tensor]:
    """`objective.term_weights` of so much MS-SSIM of RGB and squared error of RGB for the rest."""
    gain = 1.0 / (1.0 - share + share * _RGB_SLOPE)
    weights = torch.zeros(len(objective.TERMS))
    weights[objective.TERMS.index("rgb-squared")] = gain * (1.0 - share)
    weights[objective.TERMS.index("rgb-dissimilarity")] = gain * share * objective.MSSSIM_LMBDA_RATIO
    return lambda mu, lmbda: weights.to(lmbda.device).repeat(len(lmbda), 1)


class _EverythingRGB(objective.Needs):
    @classmethod
    def of(cls, mu: Tensor) -> objective.Needs:
        return objective.Needs(rgb=range(len(mu)))


def _weights(name: str) -> str | None:
    """What rows of `mixed` depend on beside their names."""
    others = (*_FIXED, "none", "metric psnr", "metric msssim")
    return None if name in others else str(objective.MIXED)


def centre(path: Path, side: int) -> np.ndarray:
    """uint8 [side, side, 3], or less where the picture has less."""
    pixels = load_picture(path).rgb
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.15, 0.4, 1.0])
    parser.add_argument("--crop", type=int, default=384)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--objectives", nargs="+", default=["rgb", "half", "msssim", "shipped"])
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--figures", nargs="+", default=list(FIGURES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec = l2c.Codec(args.model) if args.model else l2c.Codec()
    names = [*args.objectives, *(f"metric {name}" for name in METRICS if args.metrics)]
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    rows = [row for row in rows if row.get("weights") == _weights(row["objective"])]  # of other weights: made anew
    known = {(row["picture"], row["rate"], row["objective"]) for row in rows}
    paths = list_pictures(*args.pictures)
    for path in paths:
        pixels = centre(path, args.crop)
        for rate in args.rates:
            for name in names:
                if (path.stem, rate, name) in known:
                    continue
                metric = name.removeprefix("metric ") if name.startswith("metric ") else "mixed"
                effort = l2c.Effort(0 if name == "none" else args.iterations)
                with searching_for("shipped" if name.startswith("metric ") else name):
                    encoded = codec.encode_detailed(pixels, bpp=rate, metric=metric, effort=effort)
                row: dict[str, Any] = {"picture": path.stem, "rate": rate, "objective": name, "bpp": encoded.bpp}
                row |= {"quality": encoded.quality, "model": codec.model.name, "iterations": args.iterations}
                row |= {"weights": _weights(name)}
                row |= measure(pixels, codec.decode(encoded.data), tuple(args.figures))
                rows.append(row)
                with args.out.open("a") as record:
                    record.write(json.dumps(row) + "\n")
                print(path.stem, rate, name, f"{encoded.bpp:.4f}", flush=True)
    shown = {path.stem for path in paths}
    print(table([row for row in rows if row["picture"] in shown], names, args.rates, args.figures))


def table(rows: list[dict[str, Any]], names: list[str], rates: list[float], figures: list[str]) -> str:
    """Markdown: for each rate the first objective's means, and differences from them.

    Files lie up to 2 % below their rate, so figures are moved to the rate of the first objective's file, along the line
    through that objective's files of the picture at the nearest other rate.
    """
    found = {(row["objective"], row["rate"], row["picture"]): row for row in rows}
    lines = ["| bpp | objective | bpp, % | " + " | ".join(figures) + " |", "|---" * (3 + len(figures)) + "|"]
    for rate in rates:
        pictures = sorted({row["picture"] for row in rows if all((n, rate, row["picture"]) in found for n in names)})
        for name in names:
            cells = []
            for figure in ("bpp", *figures):
                pairs = np.array([[found[n, rate, p][figure] for p in pictures] for n in (names[0], name)])
                if figure != "bpp":
                    pairs[1] -= [_by_rate(found, names[0], name, rate, rates, p, figure) for p in pictures]
                mean, change = pairs[0].mean(), (pairs[1] - pairs[0]).mean()
                if figure == "bpp":
                    cells.append(f"{100 * change / mean:+.1f}")
                else:
                    digits = 4 if figure.startswith("ms-ssim") else 3 if figure == "butteraugli" else 2
                    cells.append(f"{mean:.{digits}f}" if name == names[0] else f"{change:+.{digits}f}")
            lines.append(f"| {rate:g} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _by_rate(
    found: dict[tuple[str, float, str], dict[str, Any]],
    first: str,
    name: str,
    rate: float,
    rates: list[float],
    picture: str,
    figure: str,
) -> float:
    """What a figure owes to its file's being larger than the first objective's."""
    here, mine = found[first, rate, picture], found[name, rate, picture]
    others = [found[first, r, picture] for r in rates if r != rate and (first, r, picture) in found]
    if not others:
        return 0.0
    other = min(others, key=lambda row: abs(np.log(row["bpp"] / here["bpp"])))
    slope = (other[figure] - here[figure]) / np.log(other["bpp"] / here["bpp"])
    return float(slope * np.log(mine["bpp"] / here["bpp"]))


if __name__ == "__main__":
    main()
