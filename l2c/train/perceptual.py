"""The perceptual term of L2C Eq. 7, on features of a VGG16 whose weights the user brings.

No weights come with the project: `load_vgg16` reads the file of torchvision's `vgg16`, or one of the same layout.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from l2c.errors import ConfigError

MIN_SIDE = 16
"""Least side of a picture, in pixels: ReLU 4-3 then has 2 x 2 positions."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512)  # channels of each convolution; 0 is a pool
_RELU2_2_END = 9  # number of layers up to and with ReLU 2-2


class VGG16Features(nn.Module):
    """VGG16 up to ReLU 4-3, with the parameter names of torchvision's `vgg16`: features.0.weight .. features.21.bias.

    Parameters are frozen; the new module has random ones, see `load_vgg16`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in _WIDTHS:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        # not persistent: a file of torchvision's layout has no such entries
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of pictures.

        Args:
            x: float32 [N, 3, H, W] in [0, 1]; normalised in here as ImageNet's pictures were.
        Returns:
            ReLU 2-2, float32 [N, 128, H/2, W/2], and ReLU 4-3, float32 [N, 512, H/8, W/8], sizes rounded down.
        """
        relu2_2 = self.features[:_RELU2_2_END]((x - self.mean) / self.std)
        return relu2_2, self.features[_RELU2_2_END:](relu2_2)


def load_vgg16(path: str | os.PathLike[str]) -> VGG16Features:
    """VGG16's features from a file of torchvision's layout.

    Args:
        path: .pth or .pt (a state dict, read without running code from it) or .safetensors. Entries that the
            features do not need (the classifier, the layers after ReLU 4-3) are ignored.
    Returns:
        The frozen module, float32 on the CPU. The state of torch's random generator is the same as before, so that
        a run that resumes with this loss draws the same numbers as one that was never stopped.
    Raises:
        ConfigError: no such file, unreadable, or an entry missing, of another shape, or not finite; names the file
            and the first problem.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ConfigError(f"VGG16 weights {path}: there is no such file")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        module = VGG16Features()
    expected = module.state_dict()
    found = _read(path, set(expected))
    for name, parameter in expected.items():
        if name not in found:
            raise ConfigError(f"VGG16 weights {path}: {name} is missing")
        value = found[name]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ConfigError(f"VGG16 weights {path}: {name} is no floating-point tensor")
        if value.shape != parameter.shape:
            wanted, given = list(parameter.shape), list(value.shape)
            raise ConfigError(f"VGG16 weights {path}: {name} has shape {given}, VGG16's is {wanted}")
        if not value.float().isfinite().all():
            raise ConfigError(f"VGG16 weights {path}: {name} has values that are not finite")
    module.load_state_dict(found)
    return module


def perceptual_distance(features: VGG16Features, x: Tensor, x_hat: Tensor) -> Tensor:
    """L_d3 of L2C Eq. 7 (III-C), with F22, F43 = ReLU 2-2, ReLU 4-3:

        L_d3 = |F22(x) - F22(x_hat)|_1 + |F43(x) - F43(x_hat)|_1

    Each norm is the mean absolute difference of a picture: the paper's l1 norm without the size, so that one weight
    serves all crops.

    Args:
        features: on the device of the pictures, float32.
        x: [N, 3, H, W] in [0, 1], sides of at least 16 pixels; no gradient flows to it.
        x_hat: same shape; differentiable. Not clamped, so that values outside [0, 1] are drawn back too.
    Returns:
        float32 [N], >= 0.
    Raises:
        ValueError: shapes differ, are not [N, 3, H, W], or a side is below 16 pixels.
    Exactness: for training only; in float32 even under autocast, whose rounding is as large as small differences.
    """
    if x.shape != x_hat.shape or x.dim() != 4 or x.shape[1] != 3:
        raise ValueError(f"two batches [N, 3, H, W] of one shape, not {list(x.shape)} and {list(x_hat.shape)}")
    if min(x.shape[2:]) < MIN_SIDE:
        raise ValueError(f"the perceptual loss needs sides of at least {MIN_SIDE} pixels, not {list(x.shape[2:])}")
    with torch.autocast(x.device.type, enabled=False):
        with torch.no_grad():
            wanted = features(x.float())
        given = features(x_hat.float())
        parts = [(a - b).abs().flatten(1).mean(1) for a, b in zip(wanted, given)]
    return parts[0] + parts[1]


def _read(path: Path, names: set[str]) -> dict[str, Any]:
    """The entries called `names` that the file has."""
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise ConfigError(f"VGG16 weights {path}: the name ends in none of .pth, .pt, .safetensors")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in names & set(file.keys())}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load passes on whatever error a damaged pickle happens to cause
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"VGG16 weights {path}: not readable: {first_line}") from error
    if not isinstance(state, dict):
        raise ConfigError(f"VGG16 weights {path}: holds a {type(state).__name__}, not a state dict")
    return {name: state[name] for name in names & set(state)}
