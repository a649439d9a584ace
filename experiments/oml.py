"""OML on our own small bases (configs/oml): trained qualities become checkpoints, and the paper's way of adapting
against ours.

    python experiments/oml.py checkpoint RUN FILE.pth.tar
    python experiments/oml.py shared RUN MODEL.safetensors TARGET.safetensors
    python experiments/oml.py adapt PICTURES --model SHARED --own OWN --out records/oml.jsonl [--steps 1 5 20 99]
        [--every 1] [--literal-every 1]
    python experiments/oml.py table records/oml.jsonl

`checkpoint` writes the quality that a run of `l2c train pretrain` has trained in the layout of CompressAI's
checkpoints, which `l2c import` reads; `shared` the model whose one decoder `l2c train modulators` has meta-trained,
starting from `l2c import --shared-decoder`. `adapt` measures, for every picture,
quality and metric, the picture decoded by the checkpoint's own g_s (OWN), by the decoder that all qualities share
(SHARED), and with its conditions adapted in n steps: literally as OML does it (512x512 patches alone, raw lambdas in 16
bits), and as `l2c.encode(..., effort=Effort(steps=n))` does it. Figures are of whole pictures, 8-bit pixels: PSNR over
RGB, MS-SSIM of RGB in dB. Seconds are of the adaptation alone, one picture at a time. A stopped run goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import l2c
from l2c.adapt.literal import adapt_literally
from l2c.evaluate.measures import in_db, measure
from l2c.evaluate.records import RowFile
from l2c.format.levels import MAX_QUALITY, METRICS
from l2c.images import load_picture
from l2c.images.listing import list_pictures
from l2c.models import load_model, save_model
from l2c.text_tables import heading, row
from l2c.train.checkpoint import Checkpoint
from l2c.transforms import condition
from l2c.transforms.hyperprior.layers import ResidualBlockUp
from l2c.transforms.hyperprior.networks import upsampling_places

FIGURES = {"psnr": "psnr-rgb", "msssim": "ms-ssim-rgb"}
PARTS = {"transform.encoder.g_a.0.": "g_a.", "transform.decoder.g_s.0.": "g_s.", "probability.levels.0.": ""}


def checkpoint(run: Path, target: Path) -> None:
    """The running average of a run's networks under CompressAI's names.

    A model of one quality has one lambda, so its modulators' scales are constants: they go into the weights behind.
    """
    found = Checkpoint.load(run / "pretrain" / "checkpoint.pt")
    nets = found.networks(found.config)[1]
    decoder, config = nets.transform.decoder, found.config
    (level,) = config.transform.quality_steps.values()
    cond = condition(torch.tensor([config.lmbda(level / MAX_QUALITY)]), torch.zeros(1))
    layers = list(decoder.g_s[0])
    places = [layers[place] for place in upsampling_places(layers)]
    with torch.no_grad():
        for number, place in enumerate(config.transform.modulators):
            scales = decoder.mods[number].scales(cond).flatten()
            for part in behind(places[place]):
                part.weight.mul_(scales.view((-1, 1, 1, 1) if isinstance(part, nn.ConvTranspose2d) else (1, -1, 1, 1)))
    state = {f"transform.{k}": v for k, v in nets.transform.state_dict().items()}
    state |= {f"probability.{k}": v for k, v in nets.probability.state_dict().items()}
    renamed = {
        new + name.removeprefix(old): tensor
        for name, tensor in state.items()
        for old, new in PARTS.items()
        if name.startswith(old)
    }
    torch.save(renamed, target)
    print(f"{len(renamed)} tensors, {sum(t.numel() for t in renamed.values()) / 1e6:.2f} M parameters in {target}")


def shared(run: Path, model: Path, target: Path) -> None:
    """A model with the decoder that a run of `l2c train modulators` has trained; encoders and P stay as they are."""
    before = load_model(model)
    nets = Checkpoint.load(run / "modulators" / "checkpoint.pt").networks(before.config)[1]
    card = before.card | {"decoder": "meta-trained for all qualities (OML Eq. 4)"}
    save_model(target, before.config, nets.transform, before.integer, before.rate_curve, card)


def behind(layer: nn.Module) -> list[Any]:
    """The convolutions that what goes into an up-sampling layer of g_s meets first."""
    if isinstance(layer, ResidualBlockUp):
        return [layer.subpel_conv[0], layer.upsample[0]]
    return [layer] if isinstance(layer, nn.ConvTranspose2d) else [layer[0]]  # type: ignore[index]


def adapt(args: argparse.Namespace) -> None:
    """Rows of all pictures, qualities and metrics that the record does not have."""
    shared, own = l2c.Codec(str(args.model)), l2c.Codec(str(args.own))
    record = RowFile(args.out)
    known = {(r["model"], r["picture"], r["quality"], r["metric"], r["method"], r["steps"]) for r in record.rows}
    for number, path in enumerate(list_pictures(*args.pictures)[:: args.every]):
        pixels = load_picture(path).rgb
        for quality, level in shared.model.config.transform.quality_steps.items():
            for metric in FIGURES:
                work: list[tuple[str, int]] = [("own", 0), ("shared", 0), *(("ours", n) for n in args.steps)]
                if number % args.literal_every == 0:
                    work += [("literal", n) for n in args.steps]
                for method, steps in work:
                    key = shared.model.name, path.stem, quality, metric, method, steps
                    if key in known:
                        continue
                    facts = one(shared, own, pixels, quality, level, metric, method, steps)
                    named = dict(zip(("model", "picture", "quality", "metric", "method", "steps"), key))
                    named |= {"codec": f"{shared.model.name} {metric} {method} {steps}", "target": quality}
                    record.add(named | facts)
                    print(" ".join(map(str, key)), " ".join(f"{k} {v:.4f}" for k, v in facts.items()), flush=True)


def one(
    shared: l2c.Codec,
    own: l2c.Codec,
    pixels: np.ndarray,
    quality: int,
    level: int,
    metric: str,
    method: str,
    steps: int,
) -> dict[str, float]:
    """Figures (dB), bits that the adaptation costs, and its seconds, of one picture."""
    name = FIGURES[metric]

    def figure(decoded: np.ndarray) -> float:
        return in_db(name, measure(pixels, decoded, (name,))[name])

    if method == "literal":
        found = adapt_literally(shared.model, pixels, level, METRICS[metric], steps)
        return {
            "before": figure(found.before), "after": figure(found.after), "bpp": float("nan"),  # no file is made
            "bits": float(found.bits), "seconds": found.seconds,
        }  # fmt: skip
    codec = own if method == "own" else shared
    effort = l2c.Effort(steps=steps)
    start = time.perf_counter()
    plain = codec.encode_detailed(pixels, quality=quality, metric=metric)
    middle = time.perf_counter()
    encoded = codec.encode_detailed(pixels, quality=quality, metric=metric, effort=effort) if steps else plain
    end = time.perf_counter()
    before = figure(codec.decode(plain.data))
    return {
        "before": before, "after": figure(codec.decode(encoded.data)) if steps else before, "bpp": plain.bpp,
        "bits": 8.0 * (len(encoded.data) - len(plain.data)),
        "seconds": (end - middle) - (middle - start) if steps else 0.0,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Means over pictures: gain over the shared decoder (for the literal way: decoded patch by patch, too)."""
    lines: list[str] = []
    for model in sorted({r["model"] for r in rows}):
        lines += ["", f"### {model}", ""]
        lines += heading("metric", "quality", "bpp", "own g_s, dB", "shared, dB", "method", "steps", "pictures",
                         "gain, dB", "gain, %", "bits", "seconds")  # fmt: skip
        mine = [r for r in rows if r["model"] == model]
        for metric in FIGURES:
            for quality in sorted({r["quality"] for r in mine}):
                part = [r for r in mine if r["metric"] == metric and r["quality"] == quality]

                def mean(method: str, key: str, part: list[dict[str, Any]] = part) -> float:
                    return statistics.mean([r[key] for r in part if r["method"] == method])

                head = f"{mean('shared', 'bpp'):.3f}", f"{mean('own', 'after'):.3f}", f"{mean('shared', 'after'):.3f}"
                for method in ("literal", "ours"):
                    for steps in sorted({r["steps"] for r in part if r["method"] == method}):
                        found = [r for r in part if r["method"] == method and r["steps"] == steps]
                        gain = statistics.mean(r["after"] - r["before"] for r in found)
                        share = statistics.mean(100 * (r["after"] / r["before"] - 1) for r in found)
                        bits, seconds = (statistics.median(r[key] for r in found) for key in ("bits", "seconds"))
                        cells = f"{gain:+.4f}", f"{share:+.3f}", f"{bits:.0f}", f"{seconds:.2f}"
                        lines.append(row(metric, quality, *head, method, steps, len(found), *cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    part = commands.add_parser("checkpoint")
    part.add_argument("run", type=Path)
    part.add_argument("target", type=Path)
    part = commands.add_parser("shared")
    part.add_argument("run", type=Path)
    part.add_argument("model", type=Path)
    part.add_argument("target", type=Path)
    part = commands.add_parser("adapt")
    part.add_argument("pictures", type=Path, nargs="+")
    part.add_argument("--model", type=Path, required=True)
    part.add_argument("--own", type=Path, required=True)
    part.add_argument("--out", type=Path, required=True)
    part.add_argument("--steps", type=int, nargs="+", default=[1, 5, 20, 99])
    part.add_argument("--every", type=int, default=1)
    part.add_argument("--literal-every", type=int, default=1)
    part = commands.add_parser("table")
    part.add_argument("record", type=Path)
    args = parser.parse_args()
    if args.command == "checkpoint":
        checkpoint(args.run, args.target)
    elif args.command == "shared":
        shared(args.run, args.model, args.target)
    elif args.command == "adapt":
        adapt(args)
    else:
        print(table(RowFile(args.record).rows))


if __name__ == "__main__":
    main()
