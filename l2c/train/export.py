"""A checkpoint becomes a model file that ships (safetensors), with a card that says how it was made."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c import transforms
from l2c.adapt.bias_sets import BiasSets
from l2c.config import ModelConfig
from l2c.errors import ConfigError
from l2c.files import write_atomically
from l2c.format.levels import MAX_QUALITY, METRICS, metric_name
from l2c.models import Model, load_model, save_model
from l2c.text_tables import heading, row
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import TrainConfig
from l2c.train.data import centre_crops
from l2c.train.exact import add_exact
from l2c.train.losses import Conditions, Networks
from l2c.train.quantize import check_rate_loss, rates
from l2c.train.stages import check_chain, newest
from l2c.train.validation import latents_and_bits, validate

_CURVE_QUALITIES = tuple(range(0, MAX_QUALITY + 1, 125))
_SIZE = 256


@torch.no_grad()
def rate_curve(nets: Networks, pictures: list[Tensor]) -> list[tuple[float, float]]:
    """Mean rate (float P) over pictures uint8 [1, 3, H, W] at nine qualities of the mixed metric, made to rise.

    Of a model that has networks at some qualities alone: at these.
    """
    curve: list[tuple[float, float]] = []
    for quality in nets.config.transform.quality_steps.values() or _CURVE_QUALITIES:
        total = 0.0
        for picture in pictures:
            cond = Conditions(*(torch.tensor([v]) for v in (quality, METRICS["mixed"], nets.config.bits)))
            _, bits = latents_and_bits(nets, picture.float() / 255.0, cond)
            total += float(bits) / picture[0, 0].numel()
        least = curve[-1][1] * 1.001 if curve else 1e-6
        curve.append((float(quality), max(least, total / len(pictures))))
    return curve


def export(
    recipe: TrainConfig, config: ModelConfig, folder: Path, init: Path | None, target: Path, notes: str
) -> dict[str, Any]:
    """Quantise P and D, check them, write the model file and its card (same name, .md).

    Args:
        recipe, config: of the run; the recipe names the validation pictures and the rate loss that is accepted.
        folder: of the run, whose last checkpoint is exported unless `init` names one.
        target: .safetensors.
        notes: a line for the card.
    Returns:
        What is in it: id, bytes, rate curve, rate loss of the integer P, losses of the integer D (of the block family),
        history.
    Raises:
        ConfigError: no checkpoint, one that is older than the stage it was made from, no validation pictures, networks
            that do not keep their contract or give what is not finite.
        TrainingError: the checkpoint does not fit, or the integer P loses too much rate.
    """
    source = init or newest(folder)
    if source is None or not source.exists():
        raise ConfigError(f"there is no checkpoint {source or f'below {folder}'}")
    if init is None:
        check_chain(folder, source.parent.name)
    if not recipe.data.val:
        raise ConfigError("name validation pictures: data.val in the recipe, or --val")
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target.name}: a model file ends in .safetensors")
    checkpoint = Checkpoint.load(source)
    nets = checkpoint.networks(config)[1].eval()
    transforms.check_contract(nets.transform)
    pictures = centre_crops(recipe.data.val, _SIZE, recipe.val_pictures)
    probability = config.entropy.integer_model.from_float(nets.probability)
    growth = check_rate_loss(*rates(nets, probability, pictures), recipe.quantize.max_loss)
    history = checkpoint.past()
    facts = {
        "steps": "; ".join(f"{entry.get('stage', '?')} {entry.get('steps', '')}".strip() for entry in history),
        "notes": notes,
    }
    curve = rate_curve(nets, pictures)
    sets = BiasSets.from_tensors(checkpoint.bias_sets, nets.transform)
    rows = validate(nets, pictures, torch.device("cpu"))
    target.parent.mkdir(parents=True, exist_ok=True)
    in_integers: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:  # nothing is replaced before all checks have passed
        written = Path(scratch) / target.name
        identity = save_model(written, config, nets.transform, probability, curve, facts, sets)
        model = load_model(written)  # reads back what was written, all checks included
        model.integer.check_all(model.known_answer)
        if isinstance(config.transform, transforms.BlockConfig):
            in_integers = add_exact(model, written, recipe.data.val)["losses"]
            model = load_model(written)
        text = card(model, history, len(pictures), growth, rows, notes, in_integers)
        os.replace(written, target)
    write_atomically(target.with_suffix(".md"), text.encode())
    return {
        "id": identity.hex(), "bytes": target.stat().st_size, "rate_curve": curve,
        "integer_rate_growth": growth, "integer_decoder": in_integers, "history": history,
    }  # fmt: skip


def card(
    model: Model,
    history: list[dict[str, str]],
    count: int,
    growth: float,
    rows: list[dict[str, float]],
    notes: str,
    in_integers: list[dict[str, Any]],
) -> str:
    """The model card, Markdown."""
    config = model.config
    encoder, decoder = transforms.transform_costs(config.transform)
    t = config.transform
    lines = [
        f"# {model.name}",
        "",
        f"Model id `{model.model_id.hex()}`, {model.path.stat().st_size / 1e6:.1f} MB: E and D in float16, P in int8"
        f"{', D in int8 as well' if model.exact is not None else ''}{_sets_text(model)}.",
        "",
        f"Networks: {', '.join(f'{key} {value}' for key, value in t.to_mapping().items())}; "
        f"E {encoder:.1f}, D {decoder:.1f} kMAC per pixel. lambda {config.lmbda_min:g}..{config.lmbda_max:g}, "
        f"b <= {config.bits}.",
        f"Integer P against float P: {100 * growth:+.2f} % of the rate.",
        *([f"Integer D against float D: {_losses_text(in_integers)}."] if in_integers else []),
        notes,
        "",
        "## Training",
        "",
    ]
    for number, entry in enumerate(history, 1):
        lines.append(f"{number}. " + "; ".join(f"{key}: {value}" for key, value in entry.items() if value))
    lines += [
        "",
        f"## Validation ({count} centre crops of {_SIZE}x{_SIZE}, rate estimated by the float P)",
        "",
        *heading("metric", "quality", "bpp", "PSNR dB", "MS-SSIM", "loss"),
    ]
    for part in rows:
        figures = f"{part['bpp']:.4f}", f"{part['psnr']:.2f}", f"{part['msssim']:.4f}", f"{part['loss']:.4f}"
        lines.append(row(metric_name(int(part["mu"])), f"{part['quality'] / 10:g}", *figures))
    return "\n".join(lines) + "\n"


def _losses_text(found: list[dict[str, Any]]) -> str:
    parts = [f"{-loss['loss']:+.3f} dB at quality {loss['quality'] / 10:g}" for loss in found]
    return ", ".join(parts)


def _sets_text(model: Model) -> str:
    if model.bias_sets is None:
        return ""
    bands, count, _ = model.bias_sets.values.shape
    return f", {bands} x {count} bias sets"
