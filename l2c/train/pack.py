"""Checkpoints packed for a journey: to and from a GPU machine, or to the next session by way of the repository.

    PACK.000, PACK.001 ...   one safetensors file through zlib, cut into parts of a size that may travel

It holds the networks and their average (float16, 16 bits), or the average alone with 8 bits a weight (each output
channel a scale of its own), the stage's counters, its history and its records. The optimiser's state stays behind: a
run that goes on from a pack makes a new one and warms up again.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from l2c.config import ModelConfig
from l2c.errors import ConfigError, TrainingError
from l2c.files import write_atomically
from l2c.train.checkpoint import Checkpoint
from l2c.train.records import JOURNAL

_COUNTERS = ("stage", "step", "seconds", "pixels", "salt", "lr_scale", "entry", "history", "parent")
_SCALE = ".scale"  # behind the name of a tensor of 8 bits


def pack(run: Path, target: Path, stage: str = "pretrain", bits: int = 16, part_bytes: int = 15 << 20) -> list[Path]:
    """Write a stage's checkpoint and records as a pack.

    Args:
        run: folder of the run.
        target: PACK, the parts' common name; older parts of this name are replaced.
        bits: 16 for the networks and their average, 8 for the average alone.
        part_bytes: size of a part, at most.
    Returns:
        The parts.
    Raises:
        ConfigError: bits is neither 8 nor 16. TrainingError: no checkpoint, or one that cannot be read.
    """
    if bits not in (8, 16):
        raise ConfigError(f"a pack has 8 or 16 bits a weight, not {bits}")
    path = run / stage / "checkpoint.pt"
    if not path.exists():
        raise TrainingError(f"there is no checkpoint {path}")
    checkpoint = Checkpoint.load(path)
    tensors: dict[str, Tensor] = {}
    for name, value in checkpoint.average.items():
        tensors |= _short(f"average.{name}", value, bits)
    if bits == 16:
        for name, value in checkpoint.nets.items():
            tensors |= _short(f"nets.{name}", value, bits)
    journal = run / stage / JOURNAL
    facts = {key: getattr(checkpoint, key) for key in _COUNTERS} | {
        "config": checkpoint.config.to_json(),
        "journal": journal.read_text(encoding="utf-8") if journal.exists() else "",
    }
    data = zlib.compress(save(tensors, metadata={"l2c-pack": json.dumps(facts)}))
    for old in _parts(target):
        old.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, start in enumerate(range(0, len(data), part_bytes)):
        parts.append(target.with_name(f"{target.name}.{number:03d}"))
        write_atomically(parts[-1], data[start : start + part_bytes])
    return parts


def unpack(source: Path, run: Path) -> Checkpoint:
    """Write a pack's checkpoint and records into a run that has none of this stage: it then resumes there.

    Args:
        source: PACK, the parts' common name.
    Returns:
        The checkpoint.
    Raises:
        TrainingError: parts are missing or damaged, or the run has a checkpoint of this stage.
    """
    checkpoint, journal = read(source)
    folder = run / checkpoint.stage
    path = folder / "checkpoint.pt"
    if path.exists():
        raise TrainingError(f"{path} exists: remove it, or name another run")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path)
    if journal:
        write_atomically(folder / JOURNAL, journal.encode())
    return checkpoint


def read(source: Path) -> tuple[Checkpoint, str]:
    """A pack's checkpoint and the text of its journal. Raises TrainingError as `unpack` does."""
    parts = _parts(source)
    numbers = [int(part.suffix[1:]) for part in parts]
    if not parts or numbers != list(range(len(parts))):
        raise TrainingError(f"parts of {source} are missing: there are {', '.join(p.name for p in parts) or 'none'}")
    try:
        data = zlib.decompress(b"".join(part.read_bytes() for part in parts))
        tensors = load(data)
        facts = json.loads(_metadata(data)["l2c-pack"])
        config = ModelConfig.from_json(facts.pop("config"))
        journal = facts.pop("journal")
        average = _long(tensors, "average.")
        nets = _long(tensors, "nets.") or average
        checkpoint = Checkpoint(config, nets, average, **facts)
    except (ConfigError, OSError, SafetensorError, LookupError, TypeError, ValueError, zlib.error) as error:
        raise TrainingError(f"{source} is not a pack of this version: {error}") from None
    checkpoint.networks(config)  # raises TrainingError where tensors are missing
    return checkpoint, journal


def _metadata(data: bytes) -> dict[str, Any]:
    """The header's text entries; `data` has been read by safetensors before, so its sizes are right."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata: dict[str, Any] = header["__metadata__"]
    return metadata


def _parts(target: Path) -> list[Path]:
    return sorted(p for p in target.parent.glob(f"{target.name}.*") if p.suffix[1:].isdigit())


def _short(name: str, value: Tensor, bits: int) -> dict[str, Tensor]:
    """A tensor as the pack holds it; vectors are float32 in either form."""
    value = value.detach().float().contiguous()
    if value.dim() < 2:
        return {name: value}
    if bits == 16:
        return {name: value.half()}
    scale = (value.flatten(1).abs().amax(dim=1) / 127.0).clamp_min(1e-30)
    rows = (value.flatten(1) / scale[:, None]).round().to(torch.int8)
    return {name: rows.view(value.shape).contiguous(), name + _SCALE: scale}


def _long(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The state dict that `_short` made the tensors from."""
    state = {}
    for name, value in tensors.items():
        if not name.startswith(prefix) or name.endswith(_SCALE):
            continue
        if value.dtype == torch.int8:
            scale = tensors[name + _SCALE]
            value = value.float() * scale.view(-1, *[1] * (value.dim() - 1))
        state[name.removeprefix(prefix)] = value.float()
    return state


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a pack says of itself, for a line on the screen."""
    return {
        "model": checkpoint.config.name, "stage": checkpoint.stage, "step": checkpoint.step,
        "gpixel": round(checkpoint.pixels / 1e9, 4), "hours": round(checkpoint.seconds / 3600, 2),
    }  # fmt: skip
