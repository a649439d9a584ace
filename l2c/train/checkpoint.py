"""Checkpoints: everything that a stage needs to go on exactly, or the next stage to start from."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c.config import ModelConfig
from l2c.errors import ConfigError, TrainingError
from l2c.models import load_model
from l2c.train.losses import Networks
from l2c.transforms import FAMILIES as TRANSFORMS


@dataclass
class Checkpoint:
    """One moment of a run.

    Attributes:
        config: of the model.
        nets, average: state dicts of `Networks`: as trained, and their running average.
        stage: name of the stage that wrote it; "" for an exported model.
        step, seconds: how far the stage is, in steps and in seconds of training.
        optimizer: its state dict.
        objective: tensors that the stage itself learns (alpha of meta-training).
        salt: how often training was rolled back; enters the choice of pictures, so the same step is not repeated.
        lr_scale: factor on the learning rate, halved at every roll-back.
        entry: facts about this stage for the model card. history: the entries of the stages before it.
        bias_sets: tensors of the bias-sets stage, empty before it.
        parent: what the stage started from, `mark` of that checkpoint, behind "run " where it lay in the same run and
            behind "init " where the user named it; "" for random networks.
        pixels: how far the stage is, in pixels seen.
        warm_from: step at which the optimiser began without a state: the learning rate rises from there.
    """

    config: ModelConfig
    nets: dict[str, Tensor]
    average: dict[str, Tensor]
    stage: str = ""
    step: int = 0
    seconds: float = 0.0
    optimizer: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Tensor] = field(default_factory=dict)
    salt: int = 0
    lr_scale: float = 1.0
    entry: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, str]] = field(default_factory=list)
    bias_sets: dict[str, Tensor] = field(default_factory=dict)
    parent: str = ""
    pixels: int = 0
    warm_from: int = 0

    def mark(self) -> str:
        """Stage, step and the head of a SHA-256 over the average networks and bias sets."""
        digest = hashlib.sha256()
        for _, tensor in sorted((self.average | self.bias_sets).items()):
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return f"{self.stage or 'model'} at step {self.step} ({digest.hexdigest()[:12]})"

    def save(self, path: Path) -> None:
        """Write atomically and through to the disk: after a crash or on a full disk the last file is intact.

        Raises:
            TrainingError: it cannot be written.
        """
        state = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"config": self.config.to_json()}
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # PyTorch's writer turns a short write into a RuntimeError
            temporary.unlink(missing_ok=True)
            intact = f"; the last good one, {path}, is intact" if path.exists() else ""
            raise TrainingError(f"cannot write the checkpoint {path}: {_first_line(error)}{intact}") from error

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint, or an exported model (.safetensors: its float16 networks, and P made float again).

        Raises:
            TrainingError: it cannot be read, or is no checkpoint. ModelMismatchError: not a model file.
        """
        if path.suffix == ".safetensors":
            return cls._of_model(path)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            known = {f.name for f in dataclasses.fields(cls)}
            values = {k: v for k, v in state.items() if k in known}
            return cls(**{**values, "config": ModelConfig.from_json(state["config"])})
        except (ConfigError, OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(f"{path} is not a checkpoint of this version: {_first_line(error)}") from None
        except Exception as error:  # the unpickler raises its own class for anything that is not plain data
            raise TrainingError(f"{path} is not a readable checkpoint: {_first_line(error)}") from None

    @classmethod
    def _of_model(cls, path: Path) -> Checkpoint:
        model = load_model(path)
        state = {f"transform.{k}": v for k, v in model.transform.state_dict().items()}
        probability = model.integer.to_float().state_dict()
        state |= {f"probability.{k}": v for k, v in probability.items()}
        entry = {"stage": "exported model", "id": model.model_id.hex(), **model.card}
        sets = model.bias_sets.to_tensors() if model.bias_sets is not None else {}
        return cls(model.config, state, copy.deepcopy(state), entry=entry, bias_sets=sets)

    def past(self) -> list[dict[str, str]]:
        """History of a stage that starts from here."""
        return [*self.history, self.entry] if self.entry else self.history

    def networks(self, config: ModelConfig) -> tuple[Networks, Networks]:
        """(networks as trained, their average), float32 on the CPU, fitted to `config`.

        A range of lambda other than the checkpoint's is allowed: P's weights for the quality planes are interpolated
        to the new knots, since log lambda is linear in quality; so are fewer bits. Networks that the families can make
        of older ones (`TransformFamily.grow`, `EntropyFamily.grow`) are made.

        Raises:
            TrainingError: another architecture, no networks in it, or a parameter that is not finite.
        """
        if not self.average:
            raise TrainingError(f"this checkpoint holds no networks (stage {self.stage!r})")
        pair = []
        for state in (self.nets, self.average):
            nets = Networks(config)
            fitted = _fitted(state, self.config, config)
            try:
                nets.load_state_dict(fitted)
            except RuntimeError as error:
                raise TrainingError(f"the checkpoint does not fit the networks: {_first_line(error)}") from None
            bad = next((key for key, p in nets.named_parameters() if not bool(torch.isfinite(p).all())), None)
            if bad is not None:
                raise TrainingError(f"{bad} of the checkpoint is not finite")
            nets.probability.move_range(self.config.log_range, config.log_range)
            pair.append(nets)
        return pair[0], pair[1]


def _fitted(state: Mapping[str, Tensor], older: ModelConfig, newer: ModelConfig) -> dict[str, Tensor]:
    """A state dict of `Networks` for another configuration. Raises TrainingError: another architecture."""
    parts: tuple[tuple[str, Any, Any, Any], ...] = (
        ("transform", older.transform, newer.transform, TRANSFORMS[newer.transform.family].grow),
        ("probability", older.probability, newer.probability, newer.entropy.grow),
    )
    fitted = dict(state)
    for part, theirs, mine, grow in parts:
        if theirs.networks() == mine.networks():
            continue
        prefix = f"{part}."
        own = {name.removeprefix(prefix): fitted.pop(name) for name in state if name.startswith(prefix)}
        try:
            grown = grow(theirs, mine, own) if grow is not None and theirs.family == mine.family else None
        except (LookupError, RuntimeError) as error:
            raise TrainingError(f"the checkpoint does not fit its networks: {_first_line(error)}") from None
        if grown is None:
            raise _another(part, theirs.networks(), mine.networks())
        fitted |= {prefix + name: value for name, value in grown.items()}
    if older.bits < newer.bits:  # fewer are among those that P knows
        raise _another("bits", older.bits, newer.bits)
    return fitted


def _another(where: str, theirs: Any, mine: Any) -> TrainingError:
    return TrainingError(f"the checkpoint is of another architecture: {_difference(where, theirs, mine)}")


def _difference(where: str, theirs: Any, mine: Any) -> str:
    if isinstance(theirs, dict):
        for key, value in theirs.items():
            if value != mine.get(key):
                return _difference(f"{where}.{key}", value, mine.get(key))
    return f"{where} is {theirs} there and {mine} in the configuration"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
