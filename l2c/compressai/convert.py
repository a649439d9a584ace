"""Checkpoints become a model: in memory (`load`) or as a model file (`convert`)."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from l2c.compressai.calibrate import calibrate as calibrate_levels
from l2c.compressai.calibrate import pictures
from l2c.compressai.checkpoints import Checkpoint, Source, assemble, read
from l2c.entropy.hyperprior import HyperpriorIntegers
from l2c.errors import ConfigError
from l2c.images import load_picture
from l2c.models import Model, load_model, save_model

Sources: TypeAlias = Mapping[int, Source] | Iterable[Source]


def load(
    source: Source,
    quality: int | None = None,
    metric: str | None = None,
    *,
    calibrate: Iterable[Any] | None = None,
    rounding: str | None = None,
) -> Model:
    """A model of one quality from a checkpoint; arguments and errors as of `read` and `convert`.

    `l2c.Codec(l2c.compressai.load("mbt2018-3-22901978.pth.tar"))` encodes and decodes with it. A file that is made with
    it names the model by its id: whoever decodes it needs the same model, so `convert` is the way to hand it on.
    """
    checkpoint = read(source, quality, metric)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{checkpoint.architecture}-{checkpoint.quality}.safetensors"
        model = _convert([checkpoint], path, calibrate, rounding)
    where = Path(source) if isinstance(source, (str, os.PathLike)) else Path(checkpoint.source)
    return dataclasses.replace(model, path=where)


def convert(
    sources: Sources,
    target: str | os.PathLike[str],
    *,
    quality: int | None = None,
    metric: str | None = None,
    calibrate: Iterable[Any] | None = None,
    shared_decoder: bool = False,
    stored: str = "float32",
    rounding: str | None = None,
) -> Model:
    """Checkpoints of one codec become one model file.

    Args:
        sources: as `read` takes them, by quality {1: path, 2: path, ...} or by themselves, whose names then say it.
        target: a file that ends in .safetensors; its name is the model's.
        quality: of a single source. metric: of all, where their names do not say it.
        calibrate: pictures (as `l2c.encode` takes them) that show the entropy model what its layers give; None: some
            that are drawn by code.
        shared_decoder: one g_s for all qualities, which has to be trained (OML 5.1), see `assemble`.
        stored: weights as "float32", equal to the checkpoint's, or "float16", in half the size.
        rounding: of y, "mean" or "whole", see `HyperpriorTransformConfig`; None: as `assemble` says.
    Returns:
        The model as it was written.
    Raises:
        ConfigError: checkpoints that do not go together, or none; a target of another ending.
        Others: as `read`. ImageError: a picture that cannot be read.
    """
    path = Path(target)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path.name}: a model file ends in .safetensors")
    if isinstance(sources, Mapping):
        checkpoints = [read(source, number, metric) for number, source in sources.items()]
    else:
        found = list(sources)
        if quality is not None and len(found) != 1:
            raise ConfigError(f"one quality for {len(found)} checkpoints")
        checkpoints = [read(source, quality, metric) for source in found]
    return _convert(checkpoints, path, calibrate, rounding, shared_decoder=shared_decoder, stored=stored)


def _convert(
    checkpoints: list[Checkpoint],
    path: Path,
    calibrate: Iterable[Any] | None,
    rounding: str | None,
    **options: Any,
) -> Model:
    config, transform, probability = assemble(checkpoints, path.stem, rounding=rounding, **options)
    shown = pictures() if calibrate is None else [load_picture(picture).rgb for picture in calibrate]
    if not shown:
        raise ConfigError("there are no pictures to calibrate with")
    calibrate_levels(config, transform, probability, shown)
    integers = HyperpriorIntegers.from_float(probability)
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.quality)
    card = {
        "from": "; ".join(f"{part.quality}: {part.source} {part.sha256[:8]}".strip() for part in ordered),
        "metric": ordered[0].metric,
        "calibrated on": f"{len(shown)} pictures{' drawn by code' if calibrate is None else ''}",
    }
    save_model(path, config, transform, integers, [], card)
    return load_model(path)
