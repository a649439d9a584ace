"""g_a and g_s of the six architectures, as E and D: one g_a for each quality, one g_s for each or for all.

Read me first
- g_a[i] and g_s[i] have the names and the arithmetic of CompressAI's newest models: a checkpoint of quality
  `config.qualities[i]` loads into them by prefix, and at s = 1, where the modulators start, pictures are equal.
- A picture's quality is the one of the model's that is nearest to its condition's lambda. Reading the lambda of a
  condition on a GPU waits for it; a model of one quality, or D with one g_s, reads nothing.
- Weights start as PyTorch's layers do, and GDN at beta = 1, gamma = 0.1 I: the published ones were trained from there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2c.architectures import ARCHITECTURES, LMBDA_MAX, LMBDA_MIN, split
from l2c.transforms.adaptation import Adaptation, Adapter
from l2c.transforms.base import Convolution, Decoder, Encoder, convolutions
from l2c.transforms.hyperprior.config import HyperpriorTransformConfig
from l2c.transforms.hyperprior.layers import (
    GDN,
    AttentionBlock,
    ResidualBlock,
    ResidualBlockDown,
    ResidualBlockUp,
    conv,
    reach,
    run,
    subpixel_conv,
    transposed_conv,
)
from l2c.transforms.modulators import Modulator, log_lmbda

_SOFTPLUS_ONE = 0.5413249  # softplus of its float32 is 1.0, and of the two next to it


class LambdaModulator(Modulator):
    """s = softplus(FC(ReLU(FC(log lambda)))) per channel, of lambda alone (OML Eq. 3); the condition's mix is ignored.

    Starts at s = 1 for every condition, to the last bit, also after its weights were stored as float16.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(channels, hidden)
        self.fc1 = nn.Linear(1, hidden)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def _scales(self, cond: Tensor) -> Tensor:
        return F.softplus(self.fc2(F.relu(self.fc1(cond[:, :1]))) + _SOFTPLUS_ONE)[:, :, None, None]


def analysis(config: HyperpriorTransformConfig) -> nn.Sequential:
    """g_a: pictures float [N, 3, H, W] in [0, 1] -> latents [N, M, H/16, W/16]."""
    n, m = config.n, config.c
    architecture = ARCHITECTURES[config.architecture]
    if not architecture.residual:
        return nn.Sequential(conv(3, n), GDN(n), conv(n, n), GDN(n), conv(n, n), GDN(n), conv(n, m))
    with_attention = architecture.attention
    layers: list[nn.Module] = [
        ResidualBlockDown(3, n),
        ResidualBlock(n),
        ResidualBlockDown(n, n),
        *([AttentionBlock(n)] if with_attention else []),
        ResidualBlock(n),
        ResidualBlockDown(n, n),
        ResidualBlock(n),
        conv(n, m, 3, 2),
        *([AttentionBlock(m)] if with_attention else []),
    ]
    return nn.Sequential(*layers)


def synthesis(config: HyperpriorTransformConfig) -> nn.Sequential:
    """g_s: latents [N, M, h, w] -> pictures float [N, 3, 16 h, 16 w], about [0, 1]."""
    n, m = config.n, config.c
    architecture = ARCHITECTURES[config.architecture]
    if not architecture.residual:
        widths = (m, n, n, n)
        hidden = [layer for width in widths[:-1] for layer in (transposed_conv(width, n), GDN(n, inverse=True))]
        return nn.Sequential(*hidden, transposed_conv(n, 3))
    with_attention = architecture.attention
    layers: list[nn.Module] = [
        *([AttentionBlock(m)] if with_attention else []),
        ResidualBlock(n),
        ResidualBlockUp(n),
        ResidualBlock(n),
        ResidualBlockUp(n),
        *([AttentionBlock(n)] if with_attention else []),
        ResidualBlock(n),
        ResidualBlockUp(n),
        ResidualBlock(n),
        subpixel_conv(n, 3),
    ]
    return nn.Sequential(*layers)


def upsampling_places(layers: Iterable[nn.Module]) -> list[int]:
    """Numbers of the four layers of g_s that double the resolution."""
    kinds = nn.ConvTranspose2d | ResidualBlockUp | nn.Sequential
    return [place for place, layer in enumerate(layers) if isinstance(layer, kinds)]


def _qualities_of(cond: Tensor, qualities: Sequence[int]) -> dict[int, list[int]]:
    """`architectures.split` of conditions float32 [N, 2]."""
    if len(qualities) == 1:
        return {0: list(range(len(cond)))}
    share = (log_lmbda(cond)[:, 0] - math.log(LMBDA_MIN)) / math.log(LMBDA_MAX / LMBDA_MIN)
    return split([round(1000.0 * place) for place in share.tolist()], qualities)


def _for_each_quality(cond: Tensor, qualities: Sequence[int], call: Callable[[int, list[int]], Tensor]) -> Tensor:
    """What `call(index of a quality, numbers of its pictures)` gives for all pictures, in their order.

    Without gradients on a CPU every picture has a call of its own: convolutions of other batches round otherwise, and a
    picture's latents and pixels must not depend on what else is in its batch.
    """
    parts = list(_qualities_of(cond, qualities).items())
    if cond.device.type == "cpu" and not torch.is_grad_enabled():
        parts = [(index, [row]) for index, rows in parts for row in rows]
    results = [call(index, rows) for index, rows in parts]
    if len(results) == 1:
        return results[0]
    order = [row for _, rows in parts for row in rows]
    return torch.cat(results)[sorted(range(len(order)), key=order.__getitem__)]


def _pick(x: Tensor, rows: list[int]) -> Tensor:
    """Some pictures of x [N, C, h, w], in its memory format."""
    if len(rows) == len(x):
        return x
    last = x.is_contiguous(memory_format=torch.channels_last)
    return x[rows].contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class HyperpriorEncoder(Encoder):
    """E: one g_a for each quality; channels are not masked.

    Latents that leave g_a are rounded to whole numbers, and some are in the hundreds: under autocast to bfloat16, which
    has eight bits, the layers from the last down-sampling on stay in float32.
    """

    importance = None

    def __init__(self, config: HyperpriorTransformConfig) -> None:
        super().__init__()
        self.qualities = config.qualities
        self.g_a = nn.ModuleList(analysis(config) for _ in config.qualities)
        layers = list(self.g_a[0].children())
        self._last = max(place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
        self.receptive_halo_px, _ = reach(layers, 1)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, None]:
        """Pictures float32 [N, 3, H, W] in [0, 1], sides multiples of 16; cond float32 [N, 2]: of which lambda chooses.

        Returns:
            y: float32 [N, M, H/16, W/16]; None.
        """

        def latents(index: int, rows: list[int]) -> Tensor:
            adapter = Adapter(None, cond, 1)
            layers = list(self.g_a[index].children())
            features = run(layers[: self._last], _pick(x, rows), adapter)
            with torch.autocast(x.device.type, enabled=False):
                return run(layers[self._last :], features.float(), adapter)

        return _for_each_quality(cond, self.qualities, latents), None


class HyperpriorDecoder(Decoder):
    """D: one g_s for each quality or one for all, and the modulators, which all of them share.

    A modulator scales what goes into an up-sampling layer: y_hat itself (M channels) or features of N channels.
    Changes of biases (L2C III-D) are changes to one g_s, whichever it is: B counts the convolutions of one.
    """

    def __init__(self, config: HyperpriorTransformConfig) -> None:
        super().__init__()
        self.qualities = config.qualities[:1] if config.shared_decoder else config.qualities
        self.g_s = nn.ModuleList(synthesis(config) for _ in self.qualities)
        layers = list(self.g_s[0].children())
        places = upsampling_places(layers)
        self._modulator_at = {places[k]: number for number, k in enumerate(config.modulators)}
        self.mods = nn.ModuleList(
            LambdaModulator(config.c if place == 0 else config.n, config.hidden) for place in self._modulator_at
        )
        self.receptive_halo_px, _ = reach(layers, config.s)

    def biased_layers(self) -> list[Convolution]:
        """See `Decoder.biased_layers`: those of one g_s."""
        return convolutions(self.g_s[0])

    def forward(self, y_hat: Tensor, cond: Tensor, adaptation: Adaptation | None = None) -> Tensor:
        """Latents [N, M, h, w], whole numbers; cond [N, 2] -> pictures float32 [N, 3, 16 h, 16 w], about [0, 1].

        `adaptation` changes the biases and the modulators' conditions.
        """

        def pictures(index: int, rows: list[int]) -> Tensor:
            if len(rows) == len(y_hat):
                return self._decode(index, y_hat, cond, adaptation)
            return self._decode(index, _pick(y_hat, rows), cond[rows], _rows(adaptation, rows))

        return _for_each_quality(cond, self.qualities, pictures)

    def _decode(self, index: int, x: Tensor, cond: Tensor, adaptation: Adaptation | None) -> Tensor:
        adapter = Adapter(adaptation, cond, x.shape[2])
        for place, layer in enumerate(self.g_s[index].children()):
            number = self._modulator_at.get(place)
            if number is not None:
                modulator = self.mods[number]
                assert isinstance(modulator, LambdaModulator)
                x = adapter.modulate(x, modulator)
            x = run((layer,), x, adapter)
        return x.float()


def _rows(adaptation: Adaptation | None, rows: list[int]) -> Adaptation | None:
    """The part of an adaptation that is of these pictures."""
    if adaptation is None:
        return None
    conditions, biases = (t if t is None else t[rows] for t in (adaptation.conditions, adaptation.biases))
    return dataclasses.replace(adaptation, conditions=conditions, biases=biases)


def hyperprior_networks(config: HyperpriorTransformConfig) -> tuple[HyperpriorEncoder, HyperpriorDecoder]:
    """E and D of a configuration."""
    return HyperpriorEncoder(config), HyperpriorDecoder(config)
