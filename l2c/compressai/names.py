"""The names in CompressAI's checkpoints, of all generations, as the newest ones.

                  up to 1.0.x                            1.1 to 1.2.6                   newest
    bottleneck    entropy_bottleneck._matrices.0         entropy_bottleneck._matrix0    entropy_bottleneck.matrices.0
    Cheng2020     g_a.0.downsample.weight (to 1.0.5)     g_a.0.skip.weight              g_a.0.skip.weight

Facts are of CompressAI 1.2.8 and of its tags v1.0.0, v1.0.9, v1.1.0 and v1.2.6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.entropy.hyperprior.float_model import LIKELIHOOD_MIN, SCALE_MIN

WRAPPERS = ("network", "state_dict", "model_state_dict")  # under which training scripts keep the weights
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_PLURALS = {"matrix": "matrices", "bias": "biases", "factor": "factors"}

# Buffers that follow from the rest, or are constants of the code: of no use to us.
_TABLES = re.compile(
    r"entropy_bottleneck\.(_offset|_quantized_cdf|_cdf_length|target)$"
    r"|gaussian_conditional\.(_offset|_quantized_cdf|_cdf_length|scale_table)$"
)
_PEDESTAL = 2.0**-36
# Constants that change what the weights mean; all published checkpoints have these.
_CONSTANTS = (
    (re.compile(r".*\.(beta|gamma)_reparam\.pedestal$"), _PEDESTAL),
    (re.compile(r".*\.beta_reparam\.lower_bound\.bound$"), math.sqrt(1e-6 + _PEDESTAL)),
    (re.compile(r".*\.gamma_reparam\.lower_bound\.bound$"), math.sqrt(_PEDESTAL)),
    (re.compile(r"(entropy_bottleneck|gaussian_conditional)\.likelihood_lower_bound\.bound$"), LIKELIHOOD_MIN),
    (re.compile(r"gaussian_conditional\.(scale_bound|lower_bound_scale\.bound)$"), SCALE_MIN),
)
_MASK = "context_prediction.mask"

_FILE = re.compile(
    r"(?P<architecture>bmshj2018-factorized|bmshj2018-hyperprior|mbt2018-mean|mbt2018|cheng2020[-_](?:anchor|attn))"
    r"(?:-prior)?(?:-(?P<metric>mse|ms-ssim))?-(?P<quality>[1-8])(?:-(?P<digits>[0-9a-f]{8}))?"
    r"\.(?:pth|pth\.tar|pt|safetensors)"
)


@dataclass(frozen=True)
class Published:
    """What the name of a file says, as CompressAI names its own.

    Attributes:
        digits: the first eight of the file's SHA-256, in hexadecimal, or "".
    """

    architecture: str
    metric: str
    quality: int
    digits: str


def of_file(name: str) -> Published | None:
    """Read "mbt2018-ms-ssim-3-d0dd64e8.pth.tar" and the like; None for other names. Names without a metric mean MSE."""
    found = _FILE.fullmatch(name)
    if found is None:
        return None
    architecture = found["architecture"].replace("_", "-")
    return Published(architecture, found["metric"] or "mse", int(found["quality"]), found["digits"] or "")


def newest(key: str) -> str:
    """One key of a state dict of any generation, as the newest names it."""
    while key.startswith(_PREFIXES):
        key = key[key.index(".") + 1 :]
    key = key.replace(".downsample.", ".skip.")
    old = re.fullmatch(r"(entropy_bottleneck)\._(matrix|bias|factor)(\d+)", key)
    if old is not None:
        return f"{old[1]}.{_PLURALS[old[2]]}.{old[3]}"
    return re.sub(r"^entropy_bottleneck\._(matrices|biases|factors)\.", r"entropy_bottleneck.\1.", key)


def is_table(key: str) -> bool:
    """Whether what a key (newest) names follows from the rest of the checkpoint."""
    return _TABLES.match(key) is not None


def is_constant(key: str) -> bool:
    """Whether a key (newest) names something that `has_known_value` knows."""
    return key == _MASK or any(pattern.match(key) for pattern, _ in _CONSTANTS)


def has_known_value(key: str, tensor: Tensor) -> bool:
    """Whether a constant is what our networks, like all published ones, are built with."""
    if key == _MASK:
        if tensor.dim() != 4 or tensor.shape[2:] != (5, 5):
            return False
        flat = tensor.flatten(2)
        return bool((flat[..., :12] == 1).all()) and bool((flat[..., 12:] == 0).all())
    expected = next(value for pattern, value in _CONSTANTS if pattern.match(key))
    least = torch.finfo(tensor.dtype).smallest_normal if tensor.is_floating_point() else 0.0  # float16 has it as 0
    return tensor.numel() == 1 and math.isclose(float(tensor), expected, rel_tol=1e-2, abs_tol=least)


def architecture_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int, int] | None:
    """(architecture, N, M) that keys (newest) and shapes are of, as well as can be told; None where no g_a is found."""

    def outputs(key: str) -> int:
        shape = shapes.get(key, ())
        return shape[0] if len(shape) == 4 else 0

    def has(*starts: str) -> bool:
        return any(key.startswith(starts) for key in shapes)

    n = outputs("g_a.0.conv1.weight")
    if n:
        attention = any(".conv_a." in key or ".conv_b." in key for key in shapes)
        return ("cheng2020-attn" if attention else "cheng2020-anchor"), n, n
    n, m = outputs("g_a.0.weight"), outputs("g_a.6.weight")
    if not n or not m:
        return None
    if has("context_prediction.", "entropy_parameters."):
        return "mbt2018", n, m
    if not has("h_a.", "h_s."):
        return "bmshj2018-factorized", n, m
    return ("bmshj2018-hyperprior" if outputs("h_s.4.weight") == m else "mbt2018-mean"), n, m
