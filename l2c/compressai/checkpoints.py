"""Checkpoints of CompressAI become parts of a model of ours: `read` one, `assemble` several.

Files come from anywhere. Nothing in them is run: pickles are read with `weights_only=True`, which also reads those of
2020, and what they hold is compared, name by name and shape by shape, with what the architecture has.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from torch import Tensor, nn

from l2c.architectures import ARCHITECTURES, LMBDA_MAX, LMBDA_MIN, QUALITIES, STRIDE
from l2c.compressai import names
from l2c.config import ModelConfig
from l2c.entropy.hyperprior.config import HyperpriorConfig
from l2c.entropy.hyperprior.float_model import HyperpriorModel
from l2c.errors import ConfigError, L2CWarning, ModelMismatchError, one_line
from l2c.transforms import HyperpriorTransformConfig, Transform
from l2c.transforms.hyperprior import HyperpriorDecoder, HyperpriorEncoder

Metric: TypeAlias = Literal["mse", "ms-ssim"]
Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]

METRICS: tuple[Metric, ...] = ("mse", "ms-ssim")
MAX_FILE_BYTES = 2 << 30  # the largest published file has 121 MiB; optimizers' state and float64 make six of one
MAX_CHANNELS = 1024  # the largest published M is 320
_MAX_DEPTH = 4  # of wrappers around the weights
_G_A, _G_S, _REST = "g_a.", "g_s.", ""
_REFUSED = re.compile(r"(?:GLOBAL|class) ([\w.]+)")  # in what PyTorch says of a pickle that holds more than weights


@dataclass(frozen=True)
class Checkpoint:
    """One quality of one codec of CompressAI.

    Attributes:
        architecture: a name of `architectures.ARCHITECTURES`.
        n, m: channels of the hidden layers and of the latents.
        quality: 1..8.
        metric: what it was trained for.
        state: float32 on the CPU, under the newest names, all parameters and nothing else.
        source: name of the file, or "a state dict".
        sha256: of the file, in hexadecimal; "" where there is none.
    """

    architecture: str
    n: int
    m: int
    quality: int
    metric: Metric
    state: Mapping[str, Tensor]
    source: str
    sha256: str = ""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Parameters of g_a ("g_a.") or g_s ("g_s."), without the prefix, or ("") all others: those of P."""
        rest = prefix == _REST
        keys = [key for key in self.state if key.startswith((_G_A, _G_S) if rest else prefix) != rest]
        return {key.removeprefix(prefix): self.state[key] for key in keys}


def read(source: Source, quality: int | None = None, metric: str | None = None) -> Checkpoint:
    """Read a checkpoint of CompressAI, of any generation.

    Args:
        source: path of a file (.pth, .pth.tar as PyTorch writes it, or safetensors), or a state dict; its weights may
            lie under "network", "state_dict" or "model_state_dict", and may have been trained with DataParallel.
        quality: 1..8; metric: "mse" or "ms-ssim". None: as the name of the file says, which then is like CompressAI's
            own, "mbt2018-3-22901978.pth.tar".
    Raises:
        ModelMismatchError: the file cannot be read, holds more than weights, is of none of the architectures, or names,
            shapes, dtypes or values of its tensors are not that architecture's; all that is wrong with them is named.
        ConfigError: the quality or the metric is neither given nor in the file's name, or is none.
    Warns:
        L2CWarning: the file's name ends in digits as CompressAI's do, and they do not start its SHA-256.
    """
    published, digest = None, ""
    if isinstance(source, Mapping):
        where, weights = "a state dict", _unwrapped(source, "the state dict")
    else:
        path = Path(source)
        where, published = path.name, names.of_file(path.name)
        data = _bytes_of(path)
        digest = hashlib.sha256(data).hexdigest()
        if published is not None and not digest.startswith(published.digits):
            warnings.warn(
                f"{where}: its SHA-256 starts with {digest[:8]}, not as its name says; it was altered after it was "
                "published, or not loaded to its end",
                L2CWarning,
                stacklevel=2,
            )
        weights = _unwrapped(_load(data, where), where)
    architecture, n, m, state = _checked(weights, where)
    if published is not None and published.architecture != architecture:
        raise ModelMismatchError(f"{where} holds weights of {architecture}, not of what its name says")
    if quality is None and published is not None:
        quality = published.quality
    if metric is None and published is not None:
        metric = "ms-ssim" if published.metric == "ms-ssim" else "mse"
    return Checkpoint(architecture, n, m, *_known(quality, metric, where), state, where, digest)


def assemble(
    checkpoints: Sequence[Checkpoint],
    name: str,
    *,
    shared_decoder: bool = False,
    modulators: tuple[int, ...] = (0, 1, 2, 3),
    hidden: int = 64,
    stored: str = "float32",
    rounding: str | None = None,
) -> tuple[ModelConfig, Transform, HyperpriorModel]:
    """One model of ours that holds several qualities of one codec.

    Modulators start at s = 1: until they are trained, pictures are CompressAI's.

    Args:
        checkpoints: of one architecture, equal sizes and one metric, each quality once; in any order.
        name: of the model.
        shared_decoder: one g_s for all, which starts as the highest quality's and has to be trained (OML 5.1).
        modulators, hidden, stored, rounding: see `HyperpriorTransformConfig`. None: as CompressAI's `forward` rounds y,
            from the mean for "mbt2018-mean", to whole numbers for the others.
    Returns:
        configuration; E and D; P in float, in evaluation mode.
    Raises:
        ConfigError: the checkpoints do not go together, or there are none.
    """
    if not checkpoints:
        raise ConfigError("a model needs at least one checkpoint")
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.quality)
    _check_together(ordered)
    first, qualities = ordered[0], tuple(checkpoint.quality for checkpoint in ordered)
    if rounding is None:
        rounding = "mean" if ARCHITECTURES[first.architecture].kind == "mean" else "whole"
    transform_config = HyperpriorTransformConfig(
        STRIDE, first.m, first.architecture, first.n, qualities, shared_decoder, modulators, hidden, stored, rounding
    )
    probability_config = HyperpriorConfig(first.architecture, first.n, qualities, rounding)
    config = ModelConfig(name, transform_config, probability_config, lmbda_min=LMBDA_MIN, lmbda_max=LMBDA_MAX)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the modulators' first layers: equal checkpoints give equal models
        transform = Transform(transform_config).float()
        probability = HyperpriorModel(probability_config, first.m).float()
    for index, checkpoint in enumerate(ordered):
        for prefix, module in _modules(transform, probability, index).items():
            module.load_state_dict(checkpoint.part(prefix))
    return config, transform.eval(), probability.eval()


def _check_together(ordered: Sequence[Checkpoint]) -> None:
    """Raises ConfigError: checkpoints, by rising quality, of different kinds or of one quality twice."""
    first = ordered[0]
    for other in ordered[1:]:
        for what, mine, its in (
            ("architecture", first.architecture, other.architecture),
            ("metric", first.metric, other.metric),
            ("(N, M)", (first.n, first.m), (other.n, other.m)),
        ):
            if mine != its:
                raise ConfigError(
                    f"one model holds checkpoints of one {what}: quality {first.quality} ({first.source}) has {mine}, "
                    f"quality {other.quality} ({other.source}) has {its}"
                )
    for one, other in itertools.pairwise(ordered):
        if one.quality == other.quality:
            raise ConfigError(f"quality {one.quality} is there twice: {one.source} and {other.source}")


def _known(quality: int | None, metric: str | None, where: str) -> tuple[int, Metric]:
    """Both, which are needed. Raises ConfigError."""
    if quality is None or metric is None:
        lacking = " and ".join(
            what for what, value in (("quality (1..8)", quality), ("metric (mse or ms-ssim)", metric)) if value is None
        )
        raise ConfigError(
            f"{where}: say of which {lacking} it is; files that are named as CompressAI names its own, "
            '"mbt2018-3-22901978.pth.tar", need not be told'
        )
    if not isinstance(quality, int) or not 1 <= quality <= QUALITIES:
        raise ConfigError(f"{where}: the quality is {quality!r}; it must be 1..{QUALITIES}")
    if metric not in METRICS:
        raise ConfigError(f"{where}: the metric is {metric!r}; it must be {' or '.join(METRICS)}")
    return quality, metric


def _bytes_of(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelMismatchError(f"{path.name} has {size >> 20} MiB; no checkpoint has more than 2048")
        return path.read_bytes()
    except OSError as error:
        raise ModelMismatchError(f"{path.name} cannot be read: {error.strerror or one_line(error)}") from None


def _load(data: bytes, where: str) -> Any:
    """What a file holds, by its content: safetensors, or a pickle of weights alone."""
    if len(data) > 9 and data[8:9] == b"{" and struct.unpack("<Q", data[:8])[0] <= len(data) - 8:
        try:
            return safetensors_load(data)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ModelMismatchError(f"{where} is a damaged safetensors file: {one_line(error)}") from None
    unpacked = _unpacked_size(data)
    if unpacked > MAX_FILE_BYTES:
        raise ModelMismatchError(f"{where} unpacks to {unpacked >> 20} MiB; no checkpoint has more than 2048")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler that is fed anything raises anything
        refused = _REFUSED.search(str(error))
        if refused is not None:
            raise ModelMismatchError(
                f"{where} holds objects ({refused[1]}) besides weights, which may run code and are not loaded; save "
                "`model.state_dict()` alone"
            ) from None
        raise ModelMismatchError(f"{where} is damaged or no checkpoint of PyTorch ({type(error).__name__})") from None


def _unpacked_size(data: bytes) -> int:
    """Bytes of all members of a zip archive, as new pickles of PyTorch are; 0 where it is none, or a damaged one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, ValueError, OSError):
        return 0


def _unwrapped(found: Any, where: str) -> Mapping[str, Any]:
    """The state dict in what training scripts wrap around it."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(found, Mapping):
            break
        inner = next((found[key] for key in names.WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            return found
        found = inner
    raise ModelMismatchError(f"{where} holds a {type(found).__name__}, no state dict of names and tensors")


def _checked(weights: Mapping[str, Any], where: str) -> tuple[str, int, int, dict[str, Tensor]]:
    """Architecture, N, M, and its parameters in float32 under the newest names; all that is wrong is named at once."""
    wrong = _Wrong()
    state: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            wrong.add("no tensor", f"{key} ({type(value).__name__})")
            continue
        name = names.newest(key)
        if name in state:
            wrong.add("there twice", name)
        state[name] = value.detach()
    facts = names.architecture_of({key: tuple(tensor.shape) for key, tensor in state.items()})
    if facts is None:
        some = ", ".join(list(state)[:3]) or "no tensors"
        raise ModelMismatchError(
            f"{where} is of none of {', '.join(ARCHITECTURES)}: it holds {some}, but no g_a of theirs"
        )
    architecture, n, m = facts
    try:
        expected = _shapes(architecture, n, m)
    except ConfigError as error:
        raise ModelMismatchError(f"{where}: {architecture} with N = {n} and M = {m}: {error}") from None
    for name in expected:
        if name not in state:
            wrong.add("missing", name)
    result = {}
    for name, tensor in state.items():
        if names.is_table(name):
            continue
        if names.is_constant(name):
            if not names.has_known_value(name, tensor):
                wrong.add("a constant of another value", name)
            continue
        if name not in expected:
            wrong.add("unexpected", name)
        elif tensor.shape != expected[name]:
            wrong.add("of another shape", f"{name} ({list(tensor.shape)} instead of {list(expected[name])})")
        elif not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            wrong.add("no floating numbers", f"{name} ({tensor.dtype})")
        else:
            values = tensor.to("cpu", torch.float32, copy=True).contiguous()
            if not bool(values.isfinite().all()):
                wrong.add("not finite", name)
            result[name] = values
    wrong.raise_for(f"{where} is no {architecture} with N = {n} and M = {m}")
    return architecture, n, m, {name: result[name] for name in expected}


class _Wrong:
    """What is wrong with a state dict, by kind."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, what: str) -> None:
        self._found.setdefault(kind, []).append(what)

    def raise_for(self, what: str) -> None:
        """Raises ModelMismatchError, which names all, where there is anything."""
        if self._found:
            raise ModelMismatchError(f"{what}; " + "; ".join(f"{k}: {', '.join(v)}" for k, v in self._found.items()))


def _shapes(architecture: str, n: int, m: int) -> dict[str, torch.Size]:
    """Names (newest) and shapes of all parameters. Raises ConfigError: sizes that no codec has."""
    if m > MAX_CHANNELS:
        raise ConfigError(f"there are at most {MAX_CHANNELS} channels")
    config = HyperpriorTransformConfig(STRIDE, m, architecture, n, (1,))
    with torch.device("meta"):
        transform = Transform(config)
        probability = HyperpriorModel(HyperpriorConfig(architecture, n, (1,)), m)
    modules = _modules(transform, probability, 0)
    return {prefix + key: tensor.shape for prefix, part in modules.items() for key, tensor in part.state_dict().items()}


def _modules(transform: Transform, probability: HyperpriorModel, index: int) -> dict[str, nn.Module]:
    """What a checkpoint's parts load into, by the prefix of their names; index: of the quality."""
    encoder, decoder = transform.encoder, transform.decoder
    assert isinstance(encoder, HyperpriorEncoder) and isinstance(decoder, HyperpriorDecoder)
    g_s = decoder.g_s[index if len(decoder.g_s) > 1 else 0]
    return {_G_A: encoder.g_a[index], _G_S: g_s, _REST: probability.level(index)}
