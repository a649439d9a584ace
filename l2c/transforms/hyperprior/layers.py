"""What g_a and g_s are built of; modules are named as in CompressAI's newest checkpoints, so that those load by name.

Every convolution's output passes through an `Adapter` (in g_a one that changes nothing), as `Decoder` asks.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2c import ops
from l2c.transforms.adaptation import Adapter

SLOPE = 0.01  # of every LeakyReLU
_PEDESTAL = 2.0**-36
_BETA_BOUND = (1e-6 + _PEDESTAL) ** 0.5
_GAMMA_BOUND = _PEDESTAL**0.5


class Block(nn.Module, abc.ABC):
    """Layers with a path around them."""

    @abc.abstractmethod
    def longest_path(self) -> Iterable[nn.Module]:
        """The layers from the input to the output that see furthest."""

    @abc.abstractmethod
    def forward(self, x: Tensor, adapter: Adapter) -> Tensor:
        """float [N, C, h, w] -> float [N, C', h', w']; `adapter` changes biases."""


def run(layers: Iterable[nn.Module], x: Tensor, adapter: Adapter) -> Tensor:
    """Layers one after the other, each convolution's output through the adapter."""
    for layer in layers:
        if isinstance(layer, Block):
            x = layer(x, adapter)
        elif isinstance(layer, nn.Sequential):
            x = run(layer, x, adapter)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            x = adapter.finish(layer(x))
        else:
            x = layer(x)
    return x


def reach(layers: Iterable[nn.Module], cell_px: int) -> tuple[int, int]:
    """How far layers see beyond the samples that their output stands for, and how large a sample of their output is.

    Args:
        cell_px: side of a sample of their input, in pixels.
    Returns:
        pixels; side of a sample of the output, in pixels.
    """
    total = 0
    for layer in layers:
        if isinstance(layer, Block):
            seen, cell_px = reach(layer.longest_path(), cell_px)
            total += seen
        elif isinstance(layer, nn.Sequential):
            seen, cell_px = reach(layer, cell_px)
            total += seen
        elif isinstance(layer, nn.Conv2d):
            total += layer.kernel_size[0] // 2 * cell_px
            cell_px *= layer.stride[0]
        elif isinstance(layer, nn.ConvTranspose2d):
            total += -(-(layer.kernel_size[0] // 2) // layer.stride[0]) * cell_px
            cell_px //= layer.stride[0]
        elif isinstance(layer, nn.PixelShuffle):
            cell_px //= layer.upscale_factor
    return total, cell_px


def conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    """A convolution that gives ceil(side / stride) samples a side."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def transposed_conv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """5x5, to twice the side; its weight lies [inputs, outputs, 5, 5]."""
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)


def subpixel_conv(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 to four times the channels, then to twice the side."""
    return nn.Sequential(conv(inputs, 4 * outputs, 3, 1), nn.PixelShuffle(2))


class GDN(nn.Module):
    """Generalised divisive normalisation, or its approximate inverse (Balle et al. 2016, arXiv:1511.06281, Eq. 3).

        y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)            inverse: times the root

    The parameters are stored as CompressAI stores them, such that none becomes negative: what is used is
    beta = max(stored, sqrt(1e-6 + 2^-36))^2 - 2^-36 and gamma = max(stored, 2^-18)^2 - 2^-36.
    """

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter((torch.ones(channels) + _PEDESTAL).sqrt())
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + _PEDESTAL).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """float [N, C, h, w] -> the same shape and dtype; computed in float32."""
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            beta = ops.lower_bound(self.beta, _BETA_BOUND).square() - _PEDESTAL
            gamma = ops.lower_bound(self.gamma, _GAMMA_BOUND).square() - _PEDESTAL
            power = F.conv2d(values.square(), gamma[:, :, None, None], beta)
            return (values * (power.sqrt() if self.inverse else power.rsqrt())).to(x.dtype)


class ResidualBlock(Block):
    """x + LeakyReLU(conv3x3(LeakyReLU(conv3x3(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, 3, 1)
        self.conv2 = conv(channels, channels, 3, 1)

    def longest_path(self) -> Iterable[nn.Module]:
        return self.conv1, self.conv2

    def forward(self, x: Tensor, adapter: Adapter) -> Tensor:
        inner = self.conv2(adapter.finish(self.conv1(x), slope=SLOPE))
        return adapter.finish(inner, slope=SLOPE, residual=x.to(inner.dtype))


class ResidualBlockDown(Block):
    """GDN(conv3x3(LeakyReLU(conv3x3/2(x)))) + conv1x1/2(x).

    The 1x1 convolution runs over every second sample: with a stride of its own and three channels-last inputs its
    gradient crashes PyTorch 2.13 on the CPU.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, 2)
        self.conv2 = conv(outputs, outputs, 3, 1)
        self.gdn = GDN(outputs)
        self.skip = conv(inputs, outputs, 1, 1)

    def longest_path(self) -> Iterable[nn.Module]:
        return self.conv1, self.conv2

    def forward(self, x: Tensor, adapter: Adapter) -> Tensor:
        inner = adapter.finish(self.conv1(x), slope=SLOPE)
        normalised = self.gdn(adapter.finish(self.conv2(inner)))
        return adapter.finish(self.skip(x[:, :, ::2, ::2]), residual=normalised)


class ResidualBlockUp(Block):
    """IGDN(conv3x3(LeakyReLU(subpixel conv(x)))) + subpixel conv(x), to twice the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.subpel_conv = subpixel_conv(channels, channels)
        self.conv = conv(channels, channels, 3, 1)
        self.igdn = GDN(channels, inverse=True)
        self.upsample = subpixel_conv(channels, channels)

    def longest_path(self) -> Iterable[nn.Module]:
        return self.subpel_conv, self.conv

    def forward(self, x: Tensor, adapter: Adapter) -> Tensor:
        inner = F.leaky_relu(run(self.subpel_conv, x, adapter), SLOPE)
        normalised = self.igdn(adapter.finish(self.conv(inner)))
        return normalised + run(self.upsample, x, adapter)


class ResidualUnit(Block):
    """ReLU(x + conv1x1(ReLU(conv3x3(ReLU(conv1x1(x)))))), half as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Sequential(
            conv(channels, half, 1, 1), nn.ReLU(), conv(half, half, 3, 1), nn.ReLU(), conv(half, channels, 1, 1)
        )

    def longest_path(self) -> Iterable[nn.Module]:
        return self.conv

    def forward(self, x: Tensor, adapter: Adapter) -> Tensor:
        inner = run(self.conv, x, adapter)
        return F.relu(x.to(inner.dtype) + inner)


class AttentionBlock(Block):
    """x + a(x) sigmoid(b(x)): the simplified attention module of Cheng et al. 2020, Fig. 6 (b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)))
        self.conv_b = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)), conv(channels, channels, 1, 1))

    def longest_path(self) -> Iterable[nn.Module]:
        return self.conv_b

    def forward(self, x: Tensor, adapter: Adapter) -> Tensor:
        features = run(self.conv_a, x, adapter)
        return x + features * run(self.conv_b, x, adapter).sigmoid()
