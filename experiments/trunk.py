"""Where a training run stands: score any model on its validation pictures, draw J against pixels.

    python experiments/trunk.py score MODEL RECIPE --val DIR --val DIR >> rows.jsonl
    python experiments/trunk.py plot journal.jsonl [other.jsonl ...] --out trunk.png [--reference rows.jsonl]
    python experiments/trunk.py compare REFERENCE.jsonl [other.jsonl ...]
    python experiments/trunk.py gradients MODEL --val DIR

J is the mean of ln(loss) over the conditions of `l2c.train.validation.validate` (three metrics at the recipe's
`val_lmbdas`): 100 times a difference is about the mean difference of the objective in percent. MODEL is an exported
model or a checkpoint; its row has the form of a journal's (`l2c.train.records`). `plot` also prints, for each journal,
J of every kind of picture at its last row, the slope of ln J's excess against pixels over its second half, and the gap
between validation and pictures that were trained on.

J is taken at given lambdas. A model whose quantiser is finer than its lambda wants has a higher J and may still need
less rate for equal quality, which is what users see: `compare` prints BD-rates against the last row of REFERENCE, at
low, high and all rates (split in the middle of the common range of quality), in MS-SSIM at mu = 8, else in PSNR.
`gradients` prints how hard pictures of each quality and metric pull on E, D and P in training: the root mean square of
the gradient's norm for one picture, under the weights of `l2c.train.losses`.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from l2c.format.levels import MAX_MU, MAX_QUALITY, METRICS
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import LossConfig, load_recipe
from l2c.train.data import centre_crops
from l2c.train.losses import Conditions, analyse, latent_loss
from l2c.train.records import read_journal
from l2c.train.validation import mean_log_loss, validate, validation_set

_SEEN = "seen"
QUALITIES = (50, 200, 350, 500, 650, 800, 900, 980)


def score(arguments: argparse.Namespace) -> None:
    """Print a journal row for a model."""
    recipe, _ = load_recipe(arguments.recipe, [*arguments.set, f"data.val={json.dumps(arguments.val)}"])
    checkpoint = Checkpoint.load(Path(arguments.model))
    nets = checkpoint.networks(checkpoint.config)[1].eval()
    pictures = validation_set(recipe.data.val, 256, recipe.val_pictures, recipe.val_drawn)
    cpu = torch.device("cpu")
    kinds = {kind: validate(nets, part, cpu, recipe.val_lmbdas, arguments.search) for kind, part in pictures.items()}
    row = {
        "step": checkpoint.step,
        "gpixel": checkpoint.pixels / 1e9,
        "name": arguments.name or Path(arguments.model).stem,
    }
    if arguments.search:
        row["search"] = arguments.search
    print(json.dumps(row | {"kinds": kinds}))


def curve(rows: list[dict[str, Any]], kind: str) -> list[tuple[float, float]]:
    """(Gpixel, J) of one kind of picture."""
    return [(row["gpixel"], mean_log_loss(row["kinds"][kind])) for row in rows if kind in row["kinds"]]


def slope(points: list[tuple[float, float]]) -> float:
    """d J / d ln pixels over the second half of the pixels; NaN with fewer than two points there."""
    late = [(math.log(g), j) for g, j in points if g > 0.5 * points[-1][0]]
    if len(late) < 2:
        return math.nan
    mean_x, mean_y = (sum(values) / len(late) for values in zip(*late))
    return sum((x - mean_x) * (y - mean_y) for x, y in late) / sum((x - mean_x) ** 2 for x, _ in late)


def plot(arguments: argparse.Namespace) -> None:
    """Draw, and print where each journal stands."""
    from matplotlib.figure import Figure

    references = read_journal(Path(arguments.reference)) if arguments.reference else []
    journals = {path: [row for row in read_journal(Path(path)) if row["gpixel"] > 0] for path in arguments.journals}
    kinds = sorted({kind for rows in journals.values() for row in rows for kind in row["kinds"]})
    figure = Figure(figsize=(4.2 * len(kinds), 4.0), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for ax, kind in zip(axes, kinds):
        for path, rows in journals.items():
            points = curve(rows, kind)
            if points:
                ax.plot(*zip(*points), marker=".", label=Path(path).parent.parent.name or path)
        for row in references:
            if kind in row["kinds"]:
                ax.axhline(mean_log_loss(row["kinds"][kind]), linestyle="--", color="grey", label=row.get("name"))
        ax.set(title=kind, xlabel="Gpixel", ylabel="J", xscale="log")
        ax.grid(alpha=0.3, which="both")
        ax.legend(fontsize="small")
    figure.savefig(arguments.out, dpi=90)
    for row in references:
        print(row.get("name"), {k: round(mean_log_loss(v), 4) for k, v in row["kinds"].items()})
    for path, rows in journals.items():
        if not rows:
            continue
        last = {kind: mean_log_loss(part) for kind, part in rows[-1]["kinds"].items()}
        slopes = {kind: round(slope(curve(rows, kind)), 4) for kind in last}
        print(f"{path}: {rows[-1]['gpixel']:.3f} Gpixel, J { ({k: round(v, 4) for k, v in last.items()}) }")
        print(f"  dJ / d ln pixels {slopes}")
        for row in references:
            shared = [kind for kind in last if kind in row["kinds"]]
            against = {kind: by_metric(rows[-1]["kinds"][kind], row["kinds"][kind]) for kind in shared}
            print(f"  objective against {row.get('name')}, percent at each mu: {against}")
        photographs = [value for kind, value in last.items() if kind not in (_SEEN, "drawn")]
        if _SEEN in last and photographs:
            print(f"  validation above trained on: {100 * (sum(photographs) / len(photographs) - last[_SEEN]):+.2f} %")


def by_metric(rows: list[dict[str, float]], others: list[dict[str, float]]) -> dict[int, float]:
    """Mean difference of the objective from that of other rows, in percent, at each mu.

    Rows are in the order of lambda. Where either model is at its highest quality, its lambda may end below the wanted
    one: such pairs are left out.
    """
    found = {}
    for mu in sorted({int(row["mu"]) for row in rows}):
        sides = ([row for row in part if row["mu"] == mu] for part in (rows, others))
        pairs = [pair for pair in zip(*sides) if all(row["quality"] < MAX_QUALITY for row in pair)]
        first, second = (mean_log_loss(side) for side in zip(*pairs))
        found[mu] = round(100.0 * (math.exp(first - second) - 1.0), 1)
    return found


def compare(arguments: argparse.Namespace) -> None:
    """Print BD-rates of the last rows of files against that of the first."""
    reference, *others = (read_journal(Path(path))[-1] for path in (arguments.reference, *arguments.others))
    print("BD-rate in percent, all / low / high rates")
    for path, row in zip(arguments.others, others):
        for kind in (kind for kind in row["kinds"] if kind in reference["kinds"]):
            shown = []
            for mu in sorted({int(each["mu"]) for each in row["kinds"][kind]}):
                parts = bd_rates(reference["kinds"][kind], row["kinds"][kind], mu)
                shown.append(f"mu {mu}: " + " / ".join(f"{part:+.1f}" for part in parts))
            print(f"{path}, {kind}: {'; '.join(shown)}")


def bd_rates(anchor: list[dict[str, float]], rows: list[dict[str, float]], mu: int) -> list[float]:
    """BD-rate of rows of `validate` at one mu against others, percent, over all of the common range of quality and its
    lower and upper half; NaN where there is none."""
    curves = []
    for part in (anchor, rows):
        own = [row for row in part if row["mu"] == mu]
        quality = [-10.0 * math.log10(1.0 - row["msssim"]) if mu == MAX_MU else row["psnr"] for row in own]
        curves.append(sorted(zip(quality, (math.log(row["bpp"]) for row in own))))
    low, high = max(part[0][0] for part in curves), min(part[-1][0] for part in curves)
    if low >= high:
        return [math.nan] * 3
    at = np.linspace(low, high, 1001)
    first, second = (PchipInterpolator(*zip(*part))(at) for part in curves)
    apart, half = second - first, len(at) // 2
    return [100.0 * math.expm1(float(part.mean())) for part in (apart, apart[:half], apart[half:])]


def gradients(arguments: argparse.Namespace) -> None:
    """Print norms of the training loss's gradient by quality and metric."""
    checkpoint = Checkpoint.load(Path(arguments.model))
    nets = checkpoint.networks(checkpoint.config)[1].requires_grad_(True)
    parts = {"E": nets.transform.encoder, "D": nets.transform.decoder, "P": nets.probability}
    pictures = centre_crops(tuple(arguments.val), 192, arguments.pictures)
    generator = torch.Generator().manual_seed(0)
    for mu in METRICS.values():
        for quality in QUALITIES:
            cond = Conditions(*(torch.tensor([value]) for value in (quality, mu, nets.config.bits)))
            losses, squares = [], dict.fromkeys(parts, 0.0)
            for picture in pictures:
                x = picture.float() / 255.0
                y, tau = analyse(nets, x, cond)
                noise = torch.rand(y.shape, generator=generator) - 0.5
                loss = latent_loss(nets, x, y, tau, cond, LossConfig(), noise).total.mean()
                nets.zero_grad()
                loss.backward()
                losses.append(float(loss.detach()))
                for name, part in parts.items():
                    own = (p.grad for p in part.parameters() if p.grad is not None)
                    squares[name] += sum(float(grad.square().sum()) for grad in own) / len(pictures)
            norms = "  ".join(f"{name} {math.sqrt(square):.2f}" for name, square in squares.items())
            print(
                f"mu {mu} quality {quality / 10:g}: loss {sum(losses) / len(losses):.3f}  gradient {norms}", flush=True
            )


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    part = commands.add_parser("score")
    part.add_argument("model")
    part.add_argument("recipe")
    part.add_argument("--val", action="append", required=True)
    part.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    part.add_argument("--name", help="of the row, instead of the file's")
    part.add_argument("--search", type=int, default=0, help="iterations of the latent search")
    part.set_defaults(run=score)
    part = commands.add_parser("plot")
    part.add_argument("journals", nargs="+")
    part.add_argument("--out", default="trunk.png")
    part.add_argument("--reference")
    part.set_defaults(run=plot)
    part = commands.add_parser("compare")
    part.add_argument("reference")
    part.add_argument("others", nargs="+")
    part.set_defaults(run=compare)
    part = commands.add_parser("gradients")
    part.add_argument("model")
    part.add_argument("--val", action="append", required=True)
    part.add_argument("--pictures", type=int, default=5)
    part.set_defaults(run=gradients)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
