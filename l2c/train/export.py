"""Last stage: a checkpoint becomes a model file that ships (safetensors) with its card.

python -m l2c.train.export runs/default/checkpoint.pt l2c/weights/l2c-default.safetensors --val DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from l2c import integer, networks
from l2c.config import ModelConfig
from l2c.models import load_model, save_model
from l2c.probability import MAX_MU, MAX_QUALITY
from l2c.train.data import PictureSet
from l2c.train.losses import lmbda_of_quality
from l2c.train.pretrain import Networks

_CURVE_QUALITIES = tuple(range(0, MAX_QUALITY + 1, 125))


@torch.no_grad()
def rate_curve(nets: Networks, config: ModelConfig, pictures: list[torch.Tensor]) -> list[tuple[float, float]]:
    """Mean rate (float P) over pictures uint8 [1, 3, H, W] at nine qualities of the mixed metric, made to rise."""
    curve: list[tuple[float, float]] = []
    for quality in _CURVE_QUALITIES:
        q, mu, b = torch.tensor([quality]), torch.tensor([MAX_MU // 2]), torch.tensor([config.bits])
        cond = networks.condition(lmbda_of_quality(q, config), mu / MAX_MU)
        total = 0.0
        for picture in pictures:
            x = picture.float() / 255.0
            y, tau = nets.transform.encoder(networks.pad_to_multiple(x, nets.transform.s), cond)
            if tau is not None:
                y = y * networks.importance_mask(tau, config.transform.c)
            z = networks.dequantise(networks.quantise(y, config.bits), config.bits)
            total += float(nets.probability.num_bits(z, z, torch.stack((q, mu, b), dim=1))) / x[0, 0].numel()
        least = curve[-1][1] * 1.001 if curve else 1e-6
        curve.append((float(quality), max(least, total / len(pictures))))
    return curve


def export(checkpoint: Path, target: Path, val: Path, notes: str) -> None:
    """Quantise P, check it, write the model file and its card. Raises ConfigError as the loaders do."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    config = ModelConfig.from_json(state["config"])
    nets = Networks(config)
    nets.load_state_dict(state["average"])
    nets.eval()
    held_out = PictureSet(val, 256, limit=12)
    rng = np.random.default_rng(2)
    pictures = [held_out.batch(rng, np.array([False])) for _ in range(12)]
    card = {"steps": str(state["step"]), "seconds": f"{state['seconds']:.0f}", "notes": notes}
    curve = rate_curve(nets, config, pictures)
    target.parent.mkdir(parents=True, exist_ok=True)
    probability = integer.from_float(nets.probability, config)
    identity = save_model(target, config, nets.transform, probability, curve, card)
    model = load_model(target)  # reads back what was written, all checks included
    for backend in ("torch", "cpu"):
        integer.check_backend(model.integer, model.known_answer, backend)
    print(json.dumps({"id": identity.hex(), "bytes": target.stat().st_size, "rate_curve": curve, **card}, indent=1))


def main(argv: list[str] | None = None) -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--val", type=Path, required=True, help="folder of validation pictures, for the rate curve")
    parser.add_argument("--notes", default="", help="one line for the model card")
    args = parser.parse_args(argv)
    export(args.checkpoint, args.target, args.val, args.notes)


if __name__ == "__main__":
    main()
