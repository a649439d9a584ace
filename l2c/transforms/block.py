"""The default model's networks: a linear block transform that already works, and convolutions that improve on it.

E is `gain(lambda) * (l A x + f(A x))` and D is `A^-1 (k y + g(y))`, where A is an s x s block transform (trainable,
starting as the orthonormal DCT over an orthonormal colour transform), f, g are residual networks at H/s, and l, k are
local gains that come out of the same networks (`LocalGain`, both 1 where a model has none). Models with
`BlockConfig.companding` have one gain for E and D and a compander behind it (`Companding`): in them nothing can
clip. So the model starts as a JPEG with a learned context model, rather than from noise: with the few hours of two
cores that we had, that start was worth more than any other choice (figures in docs/ABLATION.md). The channels are
ordered by frequency, which is the order that the nested mask (L2C Eq. 2) needs.

All heavy layers work at H/s, so the cost per pixel is small: see `l2c.transforms.kmac_per_pixel`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.transforms.adaptation import Adaptation, Adapter, Places, everywhere
from l2c.transforms.base import MAX_BLOCKS, MAX_WIDTH, Decoder, Encoder, TransformConfig
from l2c.transforms.modulators import Modulator, for_each, log_lmbda

PIXEL_SCALE = 255.0
_SLOPE = 0.1  # of every LeakyReLU
_FEATURE_SCALE = 1.0 / 64.0
_CHROMA_DELAY = 1.9  # a chroma frequency ranks with the luma frequency this many times higher
_LOG_STEP_CONSTANT = math.log(6.0 / math.log(2.0))
_MAX_LOCAL_GAIN = math.log(8.0)  # local gains lie in 1/8..8
_MAX_LEVEL = 127.0  # the largest latent
KNEE = 28  # latents: above it they are logarithmic
_CORRECTION_FROM = math.log(0.01)  # log lambda
_SHARPNESS = 4.0  # of the smooth minimum with the largest gain
LINEAR_FROM = 4  # scale of pictures from which on D is its block transform alone


@dataclass(frozen=True)
class BlockConfig(TransformConfig):
    """Sizes of the family.

    Attributes:
        width: channels of the hidden layers.
        encoder_blocks, decoder_blocks: residual blocks of E and D.
        fine_width: channels of D's stage at H/(s/2); 0 leaves the stage out.
        mask: whether I exists and masks channels (L2C III-A). Never at c = 1.
        modulator_width: hidden width of each modulator's two fully connected layers.
        local_gain: whether E divides, and D multiplies, each coefficient by a factor that depends on the picture
            around it.
        companding: whether E and D share one bounded gain and compand large latents, so that nothing clips.
    """

    width: int
    encoder_blocks: int = 1
    decoder_blocks: int = 2
    fine_width: int = 0
    mask: bool = True
    modulator_width: int = 32
    local_gain: bool = False
    companding: bool = False

    family: ClassVar[str] = "block"
    takes_places: ClassVar[bool] = True
    former: ClassVar[Mapping[str, tuple[Any, ...]]] = {"modulated": (True, False)}  # there always are modulators

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c > 3 * self.s**2:
            raise ConfigError(f"transform.c is {self.c}: it must be 1..{3 * self.s**2}")
        if not (1 <= self.width <= MAX_WIDTH and 0 <= self.fine_width <= MAX_WIDTH):
            raise ConfigError(f"transform.width must be 1..{MAX_WIDTH}, fine_width 0..{MAX_WIDTH}")
        if not 1 <= self.modulator_width <= MAX_WIDTH:
            raise ConfigError(f"transform.modulator_width must be 1..{MAX_WIDTH}")
        if not (0 <= self.encoder_blocks <= MAX_BLOCKS and 0 <= self.decoder_blocks <= MAX_BLOCKS):
            raise ConfigError(f"transform.encoder_blocks and decoder_blocks must be 0..{MAX_BLOCKS}")


class ResidualBlock(nn.Module):
    """x + conv3x3(LeakyReLU(conv3x3(x))), scaled by a modulator; the second convolution starts small."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.3)

    def forward(self, x: Tensor, adapter: Adapter, modulator: Modulator) -> Tensor:
        """[N, C, h, w] -> the same shape, modulated; `adapter` changes both biases."""
        inner = adapter.finish(self.conv1(x), slope=_SLOPE)
        return adapter.finish(self.conv2(inner), residual=x, modulator=modulator)


def block_basis(s: int) -> tuple[Tensor, Tensor]:
    """Orthonormal block transform over three colour channels, sorted from low to high frequency.

    Colour: (R+G+B)/sqrt(3), (R-B)/sqrt(2), (R-2G+B)/sqrt(6); space: two-dimensional DCT-II of size s x s.

    Returns:
        basis: float32 [3 s^2, 3 s^2], row k is basis function k laid out as `F.pixel_unshuffle` lays out a block
            (colour, row, column); basis @ basis.T is the identity.
        frequency: float32 [3 s^2], the radial frequency u + v of each row, in half-periods per 8 pixels.
    """
    n = np.arange(s)
    dct = np.cos(np.pi * (n[None, :] + 0.5) * n[:, None] / s) * np.sqrt(2.0 / s)
    dct[0] /= np.sqrt(2.0)
    colour = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colour /= np.linalg.norm(colour, axis=1, keepdims=True)
    basis = np.einsum("ac,um,vn->auvcmn", colour, dct, dct).reshape(3 * s * s, 3 * s * s)
    frequency = np.broadcast_to((n[:, None] + n[None, :]) * (8.0 / s), (3, s, s))
    delay = np.array([1.0, _CHROMA_DELAY, _CHROMA_DELAY])[:, None, None]
    order = ((frequency + 0.5) * delay).reshape(-1).argsort(kind="stable")
    rows, frequencies = basis[order].astype(np.float32), frequency.reshape(-1)[order].astype(np.float32)
    return torch.from_numpy(rows), torch.from_numpy(frequencies)


class Gain(nn.Module):
    """Quantiser gain per channel as a function of (log lambda, mu): 1 / step size.

    Starts at the step that is optimal at high rate for a uniform quantiser under lambda * 255^2 * MSE + bpp:
    lambda = 6 / (ln 2 * step^2).
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        with torch.no_grad():
            self.fc2.weight.mul_(0.1)
        nn.init.zeros_(self.fc2.bias)

    def logarithm(self, cond: Tensor) -> Tensor:
        """Conditions [N, 2] -> log of the gains, float32 [N, channels, 1, 1]."""
        with torch.autocast(cond.device.type, enabled=False):
            return for_each(self._logarithm, cond)

    def _logarithm(self, cond: Tensor) -> Tensor:
        log_gain = 0.5 * (log_lmbda(cond) - _LOG_STEP_CONSTANT) + self.fc2(F.relu(self.fc1(cond)))
        return log_gain[:, :, None, None]

    def forward(self, cond: Tensor) -> Tensor:
        """Conditions [N, 2] -> gains float32 [N, channels, 1, 1], positive."""
        return self.logarithm(cond).exp()


class LocalGain(nn.Conv2d):
    """Factors exp(tanh(W f) log 8) of the coefficients at one position, from the features f there; starts at 1.

    Divisive normalisation in E and its inverse in D, as GDN gives them to other codecs (Balle et al. 2016,
    arXiv:1511.06281): MS-SSIM wants coarser steps where the contrast is high, and adding `delta` alone cannot scale.
    Without biases, so that D's bias sets do not contain it.
    """

    def __init__(self, width: int, c: int) -> None:
        super().__init__(width, c, 1, bias=False)
        nn.init.zeros_(self.weight)

    def logarithm(self, features: Tensor) -> Tensor:
        """[N, width, h, w] -> the factors' logarithms, float32 [N, c, h, w] in -log 8..log 8."""
        return self.bounded(super().forward(features).float())

    @staticmethod
    def bounded(x: Tensor) -> Tensor:
        """The convolution's output -> the factors' logarithms."""
        return x.tanh() * _MAX_LOCAL_GAIN

    def forward(self, features: Tensor) -> Tensor:
        """[N, width, h, w] -> float32 [N, c, h, w] in 1/8..8."""
        return self.logarithm(features).exp()


class Companding(nn.Module):
    """Coefficients u <-> latents y with one gain g for E and D, such that no coefficient of A x can clip.

        y = g u                                 where |g u| <= T = KNEE, and for the three means (DC) everywhere
        y = sign(u) T (1 + ln(g |u| / T))       beyond

    A coefficient of a picture in [0, 1] is at most B_k = 127.5 sum_j |A_kj| (E keeps the sums of its A at or below the
    DCT's, `bounded_transform`), so g_k <= T exp(127 / T - 1) / B_k, or 127 / B_k for the means, keeps y in -127..127.
    The step at u, the larger one of 1/g and |u|/T, never grows as g does. A smaller T lets the gain be larger and makes
    large coefficients coarser. A g of the means is such that g B is an integer, at high rates a multiple of 6: then
    black and white, and all eight corners of RGB, lie on latents that are integers.

    g is a function of (log lambda, mu) and starts where a uniform quantiser is optimal at high rate, see `Gain`.
    """

    limit: Tensor
    bound: Tensor
    is_mean: Tensor

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.gain = Gain(config.c, config.modulator_width)
        basis, frequency = block_basis(config.s)
        bound = (PIXEL_SCALE / 2.0 * basis.abs().sum(dim=1))[: config.c]
        is_mean = frequency[: config.c] == 0
        # Not `where` of two numbers: it has PyTorch's default dtype, and both ends must have the same limits.
        levels = torch.full_like(bound, KNEE * math.exp(_MAX_LEVEL / KNEE - 1.0))
        limit = levels.masked_fill(is_mean, _MAX_LEVEL) / bound
        self.register_buffer("bound", bound[None, :, None, None], persistent=False)
        self.register_buffer("is_mean", is_mean[None, :, None, None], persistent=False)
        self.register_buffer("limit", limit.log()[None, :, None, None], persistent=False)

    def log_gain(self, cond: Tensor, local: Tensor | None = None, places: Places | None = None) -> Tensor:
        """log g for conditions [N, 2], changed by `local`, log factors [N, c, h, w] (the means have none), or None.

        Returns:
            float32 [N, c, 1, 1], or [N, c, h, w] with `local` or `places`; at most log of the largest g.
        """
        with torch.autocast(cond.device.type, enabled=False):
            wanted = everywhere(self.gain.logarithm, cond, places)
            snapped = self.snapped(wanted)
            if local is not None:
                wanted = wanted + local.float() * everywhere(self.correction, cond, places)
            # A smooth minimum: at most ln 2 / _SHARPNESS below the smaller one.
            bounded = self.limit - F.softplus(_SHARPNESS * (self.limit - wanted)) / _SHARPNESS
            return torch.where(self.is_mean, snapped, bounded)

    @staticmethod
    def correction(cond: Tensor) -> Tensor:
        """How much the learned parts of E and D may change, for conditions [N, 2]: float32 [N, 1, 1, 1] in (0, 1].

        Above lambda = 0.01 in proportion to the quantiser's step at high rate, lambda^-1/2. What the residual networks
        correct is about as large as the step. And local gains err in proportion to the coefficients, since D has to
        guess E's: with full gains at every rate this error, not the quantiser's, is what is left at high quality
        (after 6 Mpixel of training: 32 dB at 4.5 bpp without this factor, docs/TRAINING.md).
        """
        with torch.autocast(cond.device.type, enabled=False):
            return (0.5 * (_CORRECTION_FROM - log_lmbda(cond))).clamp_max(0.0).exp()[:, :, None, None]

    def snapped(self, wanted: Tensor) -> Tensor:
        """log g of the means, moved so that g B is an integer (a multiple of 6 from 48 on); straight-through."""
        extreme = (wanted + self.bound.log()).clamp_max(6.0).exp()  # far above the largest level is far enough
        whole = extreme.round().clamp_min(1.0)
        sixths = ((extreme / 6.0).round() * 6.0).clamp_max(_MAX_LEVEL // 6 * 6)
        snapped = torch.where(extreme < 48.0, whole, sixths).log() - self.bound.log()
        return wanted + (snapped - wanted).detach()

    def to_latents(self, u: Tensor, log_gain: Tensor) -> Tensor:
        """Coefficients [N, c, h, w] -> latents, both float32."""
        scaled = u * log_gain.exp()
        inner, above, below = _parts(scaled)
        return torch.where(self.is_mean, scaled, inner + KNEE * (above.log1p() - below.log1p()))

    def to_coefficients(self, y: Tensor, log_gain: Tensor) -> Tensor:
        """Latents [N, c, h, w] -> coefficients, both float32: the inverse of `to_latents`."""
        inner, above, below = _parts(y)
        return torch.where(self.is_mean, y, inner + KNEE * (above.expm1() - below.expm1())) * (-log_gain).exp()


def _parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x within the knee, and how far it lies above and below it, in knees."""
    return x.clamp(-KNEE, KNEE), F.relu(x / KNEE - 1.0), F.relu(-x / KNEE - 1.0)


def bounded_transform(weight: Tensor, sums: Tensor) -> Tensor:
    """A [K, K, 1, 1] with each row scaled down where its sum of magnitudes exceeds `sums` [K, 1, 1, 1]."""
    return weight * (sums / weight.abs().sum(dim=1, keepdim=True)).clamp_max(1.0)


class BlockEncoder(Encoder):
    """E with I as a head on its trunk. Layers at H/s only.

    Args:
        companding: D's, where the model has one.
    """

    whitening: Tensor
    sums: Tensor

    def __init__(self, config: BlockConfig, companding: Companding | None = None) -> None:
        super().__init__()
        self.s, self.c = config.s, config.c
        dims = 3 * config.s**2
        basis, frequency = block_basis(config.s)
        self.transform = nn.Conv2d(dims, dims, 1, bias=False)
        with torch.no_grad():
            self.transform.weight.copy_(basis[:, :, None, None])
        # Natural pictures have a spectrum that falls with frequency: this levels it for the convolutions.
        self.register_buffer("whitening", (_FEATURE_SCALE * (1.0 + frequency))[None, :, None, None], persistent=False)
        self.register_buffer("sums", basis.abs().sum(dim=1)[:, None, None, None], persistent=False)
        # D owns the companding: here it is no submodule, so that its parameters have one name.
        self._companding = (companding,)
        self.gain = Gain(config.c, config.modulator_width) if companding is None else None
        self.first = nn.Conv2d(dims, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(config.width) for _ in range(config.encoder_blocks))
        self.mods = nn.ModuleList(Modulator(config.width, config.modulator_width) for _ in range(config.encoder_blocks))
        self.head = nn.Conv2d(config.width, config.c, 3, padding=1)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
        self.local_gain = LocalGain(config.width, config.c) if config.local_gain else None
        self.importance = nn.Conv2d(config.width, 1, 3, padding=1) if config.mask and config.c > 1 else None
        if self.importance is not None:
            assert self.importance.bias is not None
            nn.init.constant_(self.importance.bias, 2.0)
        # One 3x3 layer each for first, head and two per block, at H/s.
        self.receptive_halo_px = config.s * (2 + 2 * config.encoder_blocks)

    def forward(self, x: Tensor, cond: Tensor, places: Places | None = None) -> tuple[Tensor, Tensor | None]:
        """Latents and importance map.

        Args:
            x: float32 [N, 3, H, W] in [0, 1], H and W multiples of s.
            cond: float32 [N, 2] from `modulators.condition`.
            places: conditions that differ within the pictures, in the place of `cond`, or None.
        Returns:
            y: float32 [N, c, H/s, W/s] in quantiser steps; tau: float32 [N, 1, H/s, W/s] in (0, 1), or None.
        """
        coefficients = self.coefficients(x)
        adapter = Adapter(Adaptation(places=places), cond, coefficients.shape[2])
        features = adapter.finish(self.first(coefficients * self.whitening), slope=_SLOPE)
        for block, mod in zip(self.blocks, self.mods):
            features = block(features, adapter, mod)
        delta = self.head(features).float()
        local = None if self.local_gain is None else self.local_gain.logarithm(features)
        tau = self.importance(features).float().sigmoid() if self.importance is not None else None
        return self.latents(coefficients, delta, local, cond, places), tau

    def coefficients(self, x: Tensor) -> Tensor:
        """The block transform of a picture float32 [N, 3, H, W] in [0, 1]: float32 [N, 3 s^2, H/s, W/s]."""
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(F.pixel_unshuffle((x - 0.5) * PIXEL_SCALE, self.s), self.matrix())

    def matrix(self) -> Tensor:
        """A as it is used, float32 [3 s^2, 3 s^2, 1, 1]."""
        weight = self.transform.weight
        return bounded_transform(weight, self.sums) if self.gain is None else weight

    def latents(
        self, coefficients: Tensor, delta: Tensor, local: Tensor | None, cond: Tensor, places: Places | None
    ) -> Tensor:
        """What the convolutions said of the coefficients, and the gains, make latents of them.

        Args:
            coefficients: from `coefficients`. cond, places: as in `forward`.
            delta: float32 [N, c, H/s, W/s], the head's output.
            local: logarithms of the local gains, of the same shape; None without them.
        """
        delta = delta / self.whitening[:, : self.c]
        kept = coefficients[:, : self.c]
        (companding,) = self._companding
        if companding is not None:
            with torch.autocast(coefficients.device.type, enabled=False):
                u = kept + delta * everywhere(companding.correction, cond, places)
                return companding.to_latents(u, companding.log_gain(cond, local, places))
        if local is not None:
            kept = kept * local.exp()
        assert self.gain is not None
        return (kept + delta) * everywhere(self.gain, cond, places)


class BlockDecoder(Decoder):
    """D: residual blocks at H/s, one residual block at H/(s/2), an inverse block transform.

    Args:
        companding: E's, where the model has one; D owns it.
    """

    whitening: Tensor

    def __init__(self, config: BlockConfig, companding: Companding | None = None) -> None:
        super().__init__()
        self.s = config.s
        dims, width, fine = 3 * config.s**2, config.width, config.fine_width
        basis, frequency = block_basis(config.s)
        self.transform = nn.Conv2d(dims, dims, 1, bias=False)
        with torch.no_grad():
            self.transform.weight.copy_(basis.T[:, :, None, None])
        self.register_buffer("whitening", (_FEATURE_SCALE * (1.0 + frequency))[None, :, None, None], persistent=False)
        self.c = config.c
        self.companding = companding
        self.gain = Gain(config.c, config.modulator_width) if self.companding is None else None
        self.first = nn.Conv2d(config.c, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.decoder_blocks))
        # OML puts the K modulators after decoding blocks; here K = decoder_blocks + (1 for the fine stage).
        stages = config.decoder_blocks + (1 if fine else 0)
        widths = [width] * config.decoder_blocks + ([fine] if fine else [])
        self.mods = nn.ModuleList(Modulator(widths[i], config.modulator_width) for i in range(stages))
        self.head = nn.Conv2d(width, dims, 1)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
        self.local_gain = LocalGain(width, config.c) if config.local_gain else None
        self.up: nn.Conv2d | None = None
        if fine:
            self.up = nn.Conv2d(width, 4 * fine, 3, padding=1)
            self.fine_block = ResidualBlock(fine)
            self.last = nn.Conv2d(fine, 3 * (config.s // 2) ** 2, 3, padding=1)
            with torch.no_grad():
                self.last.weight.mul_(0.1)
        coarse_layers = 1 + 2 * config.decoder_blocks + (1 if fine else 0)
        self.receptive_halo_px = config.s * coarse_layers + (config.s // 2 * 3 if fine else 0)

    def forward(self, y_hat: Tensor, cond: Tensor, adaptation: Adaptation | None = None) -> Tensor:
        """Latents -> picture.

        Args:
            y_hat: float32 [N, c, h, w] in quantiser steps.
            cond: float32 [N, 2] from `modulators.condition`.
            adaptation: changes to biases and modulators, or None.
        Returns:
            float32 [N, 3, s h, s w], about [0, 1] (not clamped).
        """
        adapter = Adapter(adaptation, cond, y_hat.shape[2])
        places = adaptation.places if adaptation is not None else None
        scaled = self._dequantised(y_hat, cond, places)
        x = adapter.finish(self.first(scaled * self.whitening[:, : self.c]), slope=_SLOPE)
        for block, mod in zip(self.blocks, self.mods):
            x = block(x, adapter, mod)
        delta = adapter.finish(self.head(x)).float() / self.whitening
        correction = everywhere(self.companding.correction, cond, places) if self.companding is not None else None
        if correction is not None:
            delta = delta * correction
        if self.local_gain is not None and self.companding is not None:
            local = self.local_gain.logarithm(x)
            with torch.autocast(y_hat.device.type, enabled=False):
                changed = self.companding.log_gain(cond, -local, places)
                scaled = self.companding.to_coefficients(y_hat.float(), changed)
        elif self.local_gain is not None:
            scaled = scaled * self.local_gain(x)
        with torch.autocast(y_hat.device.type, enabled=False):
            coefficients = torch.cat((delta[:, : self.c] + scaled, delta[:, self.c :]), dim=1)
            out = F.pixel_shuffle(self.transform(coefficients), self.s) * (1.0 / PIXEL_SCALE) + 0.5
        if self.up is not None:
            fine = F.pixel_shuffle(adapter.finish(self.up(x), slope=_SLOPE), 2)
            fine = self.fine_block(fine, adapter, self.mods[-1])
            detail = F.pixel_shuffle(adapter.finish(self.last(fine)), self.s // 2).float()
            if correction is not None:
                detail = detail * _finer(correction, detail)
            out = out + detail
        return out

    def _dequantised(self, y_hat: Tensor, cond: Tensor, places: Places | None) -> Tensor:
        """Latents -> coefficients of the block transform, without local gains; both [N, c, h, w]."""
        if self.companding is None:
            assert self.gain is not None
            return y_hat / everywhere(self.gain, cond, places)
        with torch.autocast(y_hat.device.type, enabled=False):
            return self.companding.to_coefficients(y_hat.float(), self.companding.log_gain(cond, places=places))

    def scaled(self, y_hat: Tensor, cond: Tensor, adaptation: Adaptation | None, scale: int) -> Tensor:
        """See `Decoder.scaled`. At a quarter and an eighth the block transform alone, whose averages are a product.

        What the networks add there (and local gains, which come out of them) is left out: that costs 1 to 2 dB against
        the original scaled down, and saves nearly all of the time (`tests/checks/views.py`).
        """
        if not LINEAR_FROM <= scale <= self.s:
            return super().scaled(y_hat, cond, adaptation, scale)
        with torch.autocast(y_hat.device.type, enabled=False):
            basis = self.transform.weight[:, : self.c, 0, 0].T.reshape(self.c, 3, self.s, self.s)
            averages = F.avg_pool2d(basis, scale).reshape(self.c, -1).T[:, :, None, None]
            places = adaptation.places if adaptation is not None else None
            blocks = F.conv2d(self._dequantised(y_hat.float(), cond, places), averages)
            return F.pixel_shuffle(blocks, self.s // scale) * (1.0 / PIXEL_SCALE) + 0.5

    def halo_px(self, scale: int) -> int:
        """See `Decoder.halo_px`: blocks that are transformed alone see nothing but themselves."""
        return 0 if LINEAR_FROM <= scale <= self.s else self.receptive_halo_px


def _finer(values: Tensor, x: Tensor) -> Tensor:
    """Values [N, 1, h, w] repeated for the pixels x [N, C, k h, k w]; [N, 1, 1, 1] stay."""
    return F.interpolate(values, size=x.shape[2:], mode="nearest") if values.shape[2:] != (1, 1) else values


def gains_of(encoder: nn.Module, decoder: nn.Module) -> list[Gain]:
    """The gains of E and D, or the one that they share. Raises ConfigError: the family has none."""
    if not isinstance(encoder, BlockEncoder) or not isinstance(decoder, BlockDecoder):
        raise ConfigError("only networks of the family block have gains")
    shared = decoder.companding
    found = [encoder.gain, decoder.gain] if shared is None else [shared.gain]
    return [gain for gain in found if gain is not None]


def block_networks(config: BlockConfig) -> tuple[BlockEncoder, BlockDecoder]:
    """E and D of a configuration."""
    companding = Companding(config) if config.companding else None
    return BlockEncoder(config, companding), BlockDecoder(config, companding)
