"""Short training runs of several model configurations at equal training time, and their validation losses.

    python experiments/ablation.py --data DIR --val DIR --out runs/ablation [--minutes 4] [--init FILE] [CONFIG ...]

Every run is one process with one thread, and its clock is its own CPU time, so that other work on the machine does not
shorten it. All start from random networks (a block DCT where the family has one), or from the checkpoint or model
that `--init` names, and see the same pictures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from l2c.config import ModelConfig
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import load_recipe
from l2c.transforms import transform_costs

RECIPE = Path("configs/train/ablation.json")


def train(config: Path, args: argparse.Namespace) -> None:
    """One run, in this process."""
    import torch

    import l2c.train.loop as loop
    from l2c.train.stages import run_stage

    class ProcessClock:
        """`time` as the loop uses it, in CPU seconds of this process."""

        monotonic = staticmethod(time.process_time)

    loop.time = ProcessClock  # type: ignore[assignment]
    torch.set_num_threads(1)
    entries = [
        f"data.train={json.dumps(args.data)}", f"data.val={json.dumps(args.val)}", f"pretrain.minutes={args.minutes}",
        f"model={config.resolve()}", *args.set,
    ]  # fmt: skip
    recipe, model = load_recipe(RECIPE, entries)
    run_stage("pretrain", recipe, model, args.out / config.stem, args.init, "cpu")


def report(configs: list[Path], out: Path) -> None:
    """Table of validation losses."""
    print("| run | E kMAC/px | D kMAC/px | steps | loss, MSE | loss, MS-SSIM |\n|---|---|---|---|---|---|")
    for config in configs:
        checkpoint = Checkpoint.load(out / config.stem / "pretrain" / "checkpoint.pt")
        lines = (out / config.stem / "pretrain" / "validation.csv").read_text().splitlines()
        header, rows = lines[0].split(","), [line.split(",") for line in lines[-10:]]
        losses = [f"{float(row[header.index('loss')]):.3f}" for row in rows]
        encoder, decoder = transform_costs(ModelConfig.from_file(config).transform)
        cost = f"{encoder:.1f} | {decoder:.1f}"
        print(f"| {config.stem} | {cost} | {checkpoint.step} | {' '.join(losses[:5])} | {' '.join(losses[5:])} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="*", default=sorted(Path("configs/ablation").glob("*.json")))
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--val", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--init", type=Path, help="checkpoint or model that all runs start from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the recipe")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        train(args.one, args)
        return
    for config in args.configs:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", str(config)], check=True)
    report(args.configs, args.out)


if __name__ == "__main__":
    main()
