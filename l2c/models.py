"""Exported models: one safetensors file holds the configuration, the networks and the integer P.

Models that ship lie in `l2c/weights/`; others are found by path, or by name or id in the files and folders that the
environment variable L2C_MODEL_PATH lists.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_save
from torch import Tensor

from l2c.adapt.bias_sets import BiasSets
from l2c.config import ModelConfig
from l2c.entropy import EntropyModel
from l2c.errors import ConfigError, ModelMismatchError
from l2c.exact import EXACT_PREFIX, ExactDecoder, ExactWeights, Ranges
from l2c.files import write_atomically
from l2c.transforms import BlockConfig, Transform

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
DEFAULT_MODEL = "l2c-default"
MODEL_PATH_VARIABLE = "L2C_MODEL_PATH"


@dataclass
class Model:
    """One model, loaded on the CPU.

    Attributes:
        name: its name, which is also its file's.
        path: where it was read from.
        model_id: 8 bytes, the head of a SHA-256 over configuration and weights; every file that it encodes names it.
        config: sizes and range of trade-offs.
        transform: E, I and D in float32.
        integer: P.
        known_answer: what `EntropyModel.known_answer` must give on every backend.
        bias_sets: what D's biases can be changed to for a patch, or None.
        rate_curve: (quality 0..1000, mean bpp) points, rising: where the rate search starts.
        card: free facts about the training, for `l2c models`.
        exact: D in integers, or None: then pixels are float32's.
        exact_answer: what `ExactDecoder.known_answer` must give on every backend.
        encoder_ranges: with which E can run in integers, or None.
    """

    name: str
    path: Path
    model_id: bytes
    config: ModelConfig
    transform: Transform
    integer: EntropyModel
    known_answer: int
    rate_curve: list[tuple[float, float]]
    card: dict[str, str] = field(default_factory=dict)
    bias_sets: BiasSets | None = None
    exact: ExactWeights | None = None
    exact_answer: int = 0
    encoder_ranges: Ranges | None = None


def model_id(config_json: str, tensors: dict[str, Tensor]) -> bytes:
    """First 8 bytes of SHA-256 over the configuration and every tensor (name, dtype, shape, little-endian bytes).

    Integer D and E do not count: a model may get them later, and its files still name it.
    """
    digest = hashlib.sha256(config_json.encode())
    for name in sorted(name for name in tensors if not name.startswith(EXACT_PREFIX)):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()[:8]


def save_model(
    path: str | os.PathLike[str],
    config: ModelConfig,
    transform: Transform,
    probability: EntropyModel,
    rate_curve: list[tuple[float, float]],
    card: dict[str, str] | None = None,
    bias_sets: BiasSets | None = None,
    exact: ExactWeights | None = None,
) -> bytes:
    """Write a model file atomically and return its id.

    Networks are stored as their configuration says, bias sets as float16. `rate_curve`, `card` and the integer D do not
    enter the id.
    """
    stored, weights = config.transform.stored_dtype, transform.state_dict()
    tensors = {f"transform.{k}": v.detach().to(stored).contiguous() for k, v in weights.items()}
    tensors |= {k: v.contiguous() for k, v in probability.to_tensors().items()}
    answer = probability.known_answer(probability.definition)
    tensors["probability.known_answer"] = torch.tensor([answer], dtype=torch.int64)
    if bias_sets is not None:
        tensors |= {k: v.contiguous() for k, v in bias_sets.to_tensors().items()}
    if exact is not None:
        tensors |= _exact_tensors(exact, None)
    metadata = {"config": config.to_json(), "rate_curve": json.dumps(rate_curve), "card": json.dumps(card or {})}
    data = safetensors_save(tensors, metadata)
    write_atomically(path, data)
    return model_id(metadata["config"], tensors)


def add_exact(model: Model, target: str | os.PathLike[str], exact: ExactWeights, ranges: Ranges | None) -> None:
    """Write a model's file again, atomically, with an integer D and ranges of E; all else, and its id, stays."""
    tensors, metadata = _read(model.path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(EXACT_PREFIX)}
    write_atomically(target, safetensors_save(kept | _exact_tensors(exact, ranges), metadata))


def _exact_tensors(exact: ExactWeights, ranges: Ranges | None) -> dict[str, Tensor]:
    answer = ExactDecoder(exact, None, torch.device("cpu"), "torch").known_answer()
    tensors = exact.to_tensors() | {EXACT_PREFIX + "known_answer": torch.tensor([answer], dtype=torch.int64)}
    return tensors if ranges is None else tensors | ranges.to_tensors()


def load_model(model: str | os.PathLike[str] = DEFAULT_MODEL) -> Model:
    """Load a model by name or by path.

    Raises:
        ModelMismatchError: there is no such model, or its file is damaged or not a model.
    """
    return _load(_resolve(model))


def find_model(wanted: bytes) -> Model:
    """Load the model with this id from the places that are searched. Raises ModelMismatchError naming the id."""
    for path in model_files():
        if _identify(path, _stamp(path)) == wanted:
            return _load(path)
    raise ModelMismatchError(
        f"the file was made with model {wanted.hex()}, which is not at hand; name its file with --model "
        f"or add its folder to {MODEL_PATH_VARIABLE}",
        wanted=wanted.hex(),
    )


def model_files() -> list[Path]:
    """Every model file that is searched: the shipped ones, then those of L2C_MODEL_PATH."""
    files = sorted(WEIGHTS_FOLDER.glob("*.safetensors"))
    for entry in os.environ.get(MODEL_PATH_VARIABLE, "").split(os.pathsep):
        place = Path(entry)
        if entry and place.is_file():
            files.append(place)
        elif entry and place.is_dir():
            files += sorted(place.glob("*.safetensors"))
    return files


def _resolve(model: str | os.PathLike[str]) -> Path:
    path = Path(model)
    if path.is_file():
        return path
    named = [file for file in model_files() if file.stem == str(model)]
    if not named:
        known = ", ".join(file.stem for file in model_files()) or "none"
        raise ModelMismatchError(f"no model is called {str(model)!r} and no such file exists; known: {known}")
    return named[0]


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ModelMismatchError(f"{path.name} is not a readable model file: {error}") from None
    if "config" not in metadata:
        raise ModelMismatchError(f"{path.name} is a safetensors file, but not an L2C model: it has no configuration")
    return tensors, metadata


@functools.lru_cache(maxsize=64)
def _identify(path: Path, stamp: tuple[int, int]) -> bytes:
    """Id of a model file; `stamp` makes the cached answer expire when the file changes."""
    try:
        tensors, metadata = _read(path)
    except ModelMismatchError:
        return b""
    return model_id(metadata["config"], tensors)


@torch.inference_mode(False)  # weights that gradients can pass, whatever mode the caller is in
def _load(path: Path) -> Model:
    tensors, metadata = _read(path)
    try:
        config = ModelConfig.from_json(metadata["config"])
        prefix = "transform."
        state = {k[len(prefix) :]: v.float() for k, v in tensors.items() if k.startswith(prefix)}
        with torch.device("meta"):  # sizes only, so that a configuration cannot ask for more memory than the file has
            expected = {k: v.shape for k, v in Transform(config.transform).state_dict().items()}
        if {k: v.shape for k, v in state.items()} != expected:
            raise ModelMismatchError(f"{path.name}: the networks do not have the shapes of the configuration")
        with torch.device("cpu"):  # whatever the default device and dtype are
            transform = Transform(config.transform).float()
        transform.load_state_dict(state)
        family = config.entropy.integer_model
        probability = family.from_tensors(tensors, config.probability, config.transform.c)
        sets = BiasSets.from_tensors(tensors, transform)
        answer = int(tensors["probability.known_answer"][0])
        exact = ranges = None
        if isinstance(config.transform, BlockConfig):
            exact = ExactWeights.from_tensors(tensors, config.transform)
            ranges = Ranges.from_tensors(tensors, transform.encoder)
        exact_answer = 0 if exact is None else int(tensors[EXACT_PREFIX + "known_answer"][0])
        curve = [(float(q), float(bpp)) for q, bpp in json.loads(metadata.get("rate_curve", "[]"))]
        card = {str(k): str(v) for k, v in json.loads(metadata.get("card", "{}")).items()}
    except (ConfigError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, ModelMismatchError):
            raise
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelMismatchError(f"{path.name} is not a model of this version: {first_line}") from None
    transform.eval().requires_grad_(False)
    transform.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    identity = model_id(metadata["config"], tensors)
    return Model(
        path.stem,
        path,
        identity,
        config,
        transform,
        probability,
        answer,
        curve,
        card,
        sets,
        exact,
        exact_answer,
        ranges,
    )
