"""The integer D and E of a trained model: ranges are measured on pictures, and what they cost is checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c import models, transforms
from l2c.config import ModelConfig
from l2c.errors import ConfigError, TrainingError
from l2c.exact import ExactDecoder, ExactWeights
from l2c.exact.encoder import IntegerEncoder, can_run
from l2c.exact.quantise import Ranges, decoder_inputs, encoder_inputs, from_float, watched
from l2c.format.levels import MAX_QUALITY, METRICS, OperatingPoint
from l2c.models import Model
from l2c.train.data import centre_crops
from l2c.train.validation import drawn_pictures
from l2c.transforms import BlockConfig, Transform

_PASSES = 48  # over which ranges are measured
_CHECKED = (100, 300, 500, 700, 900, 1000)  # qualities at which the loss is measured
_SIZE, _PICTURES, _DRAWN = 256, 24, 12  # crops of photographs, and drawn pictures
_EVERY = 3  # of them are decoded for the check
_MOST_LOSS = 0.1  # dB of PSNR, the mean over pictures at any of them
_MOST_ERROR = 0.1  # quantiser steps, of latents of an integer E at any of them


@dataclass(frozen=True)
class Loss:
    """What an integer D costs at a quality: mean PSNR with the float D and with the integers, in dB."""

    quality: int
    in_float: float
    in_integers: float


def _input(transform: Transform, config: ModelConfig, picture: Tensor, point: OperatingPoint) -> tuple[Tensor, Tensor]:
    """What E gets of a picture uint8 [1, 3, H, W]: pixels and conditions."""
    pair = torch.tensor([[config.lmbda(point.quality_tenths / MAX_QUALITY)], [point.mix / max(METRICS.values())]])
    x = transforms.pad_to_multiple(picture.float() / 255.0, transform.s)
    return x.contiguous(memory_format=torch.channels_last), transforms.condition(*pair)


def _latents(
    transform: Transform, config: ModelConfig, picture: Tensor, point: OperatingPoint
) -> tuple[Tensor, Tensor]:
    """Quantised latents and conditions of a picture uint8 [1, 3, H, W]."""
    x, cond = _input(transform, config, picture, point)
    y, tau = transform.encoder(x, cond)
    return transform.quantiser.to_levels(y, point.bits, tau), cond


def _passes(
    transform: Transform, config: ModelConfig, pictures: list[Tensor], count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """All qualities and metrics in turn, over the pictures."""
    mixes = list(METRICS.values())
    for i in range(count):
        quality = round(MAX_QUALITY * (i + 0.5) / count)
        point = OperatingPoint(quality, mixes[i % len(mixes)], config.bits)
        yield _latents(transform, config, pictures[i % len(pictures)], point)


@torch.no_grad()
def calibrate(
    transform: Transform, config: ModelConfig, pictures: list[Tensor], passes: int = _PASSES
) -> tuple[ExactWeights, Ranges]:
    """The integer D of a trained D, and the ranges of E's layers.

    Args:
        transform: of the block family, on the CPU, its weights as a model file holds them.
        pictures: uint8 [1, 3, H, W], photographs and drawn ones.
    """
    encoder: Any = transform.encoder
    decoder: Any = transform.decoder
    with watched(encoder, encoder_inputs(encoder)) as of_encoder, watched(decoder, decoder_inputs(decoder)) as ranges:
        for z, cond in _passes(transform, config, pictures, passes):
            decoder(z, cond)
    return from_float(decoder, (config.lmbda_min, config.lmbda_max), ranges), of_encoder


@torch.no_grad()
def encoder_errors(
    transform: Transform, config: ModelConfig, ranges: Ranges, pictures: list[Tensor]
) -> dict[int, float]:
    """How far latents of an integer E lie from the float E's: root mean square in quantiser steps, by quality.

    A step's own error is 0.289; errors of the two add as squares.
    """
    encoder: Any = transform.encoder
    integers, found = IntegerEncoder(encoder, ranges), {}
    for quality in _CHECKED:
        squares = 0.0
        for picture in pictures:
            x, cond = _input(transform, config, picture, OperatingPoint(quality, METRICS["psnr"], config.bits))
            errors = (integers(x, cond) - encoder(x, cond)[0]).clamp(-1.0, 1.0)
            squares += float(errors.square().mean()) / len(pictures)
        found[quality] = math.sqrt(squares)
    return found


@torch.no_grad()
def losses(transform: Transform, config: ModelConfig, exact: ExactWeights, pictures: list[Tensor]) -> list[Loss]:
    """PSNR of pictures uint8 [1, 3, H, W], optimised for it, with the float D and with the integer one."""
    decoder, found = ExactDecoder(exact, None, torch.device("cpu")), []
    for quality in _CHECKED:
        sums = [0.0, 0.0]
        for picture in pictures:
            z, cond = _latents(transform, config, picture, OperatingPoint(quality, METRICS["psnr"], config.bits))
            height, width = picture.shape[2:]
            original = picture[0].permute(1, 2, 0).float()
            in_float = transform.decoder(z, cond, None)[0, :, :height, :width].mul(255.0).round_().clamp_(0.0, 255.0)
            pixels = decoder.decode((z[0] + 128).to(torch.uint8), quality, METRICS["psnr"])[:height, :width]
            for k, decoded in enumerate((in_float.permute(1, 2, 0), pixels.float())):
                error = max(float((decoded - original).square().mean()), 1e-3)
                sums[k] += 10.0 * math.log10(255.0**2 / error) / len(pictures)
        found.append(Loss(quality, *sums))
    return found


def check_losses(found: list[Loss]) -> float:
    """The largest mean loss in dB. Raises TrainingError where it is more than an integer D may cost."""
    worst = max(found, key=lambda loss: loss.in_float - loss.in_integers)
    most = worst.in_float - worst.in_integers
    if most > _MOST_LOSS:
        raise TrainingError(
            f"the integer D loses {most:.3f} dB at quality {worst.quality / 10:g}; {_MOST_LOSS:g} are allowed"
        )
    return most


def check_errors(errors: dict[int, float]) -> None:
    """Raises TrainingError where the latents of an integer E are further off than they may be."""
    if max(errors.values()) > _MOST_ERROR:
        raise TrainingError(
            f"latents of the integer E are off by {max(errors.values()):.3f} steps; {_MOST_ERROR:g} are allowed"
        )


def add_exact(model: Model, target: Path, sources: Sequence[str], renew: bool = False) -> dict[str, Any]:
    """Write a model again with an integer D, and ranges of E where that can run in integers; its id stays.

    Args:
        model: of the block family.
        target: .safetensors. sources: pictures, as `data.val` of a recipe; with none, drawn ones alone.
        renew: whether an integer D that the model has is made again: then its files have other pixels than before.
    Returns:
        What was found: id, bytes, losses by quality, and errors of E's latents in quantiser steps.
    Raises:
        ConfigError: another family, or no picture that can be read.
        TrainingError: the integer D loses too much, or the integer E errs too much.
    """
    if not isinstance(model.config.transform, BlockConfig):
        raise ConfigError(f"{model.name} is of the family {model.config.transform.family}: only block has an integer D")
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target.name}: a model file ends in .safetensors")
    photos = centre_crops(sources, _SIZE, _PICTURES) if sources else []
    pictures = [*photos, *drawn_pictures(_DRAWN, _SIZE, photos)]
    made, ranges = calibrate(model.transform, model.config, pictures)
    weights = made if renew or model.exact is None else model.exact
    checked = pictures[::_EVERY]
    found, errors = losses(model.transform, model.config, weights, checked), {}
    check_losses(found)
    has_encoder = can_run(model.transform.encoder)
    if has_encoder:
        errors = encoder_errors(model.transform, model.config, ranges, checked)
        check_errors(errors)
    models.add_exact(model, target, weights, ranges if has_encoder else None)
    return {
        "id": model.model_id.hex(), "bytes": target.stat().st_size, "encoder_errors": errors,
        "losses": [dataclasses.asdict(loss) | {"loss": loss.in_float - loss.in_integers} for loss in found],
    }  # fmt: skip
