"""The entropy models of CompressAI's codecs in float, for training and gradients: one `Level` for each quality.

Read me first
- Latents y are whole numbers with step 1, -LATENT_MAX..LATENT_MAX, whatever b says; so are z, and both are rounded as
  they are. CompressAI rounds z relative to its median; y relative to its mean where it writes files and where its
  `forward` asks for likelihoods, but as it is for g_s and the context there.
- Modules have the names of CompressAI's newest models, so a checkpoint of one quality loads into its `Level` by name.
  Buffers that calibration fills are not part of the state.
- All is computed in float32, also under autocast: means of some hundreds would lose their fractions in bfloat16.
- A picture's level is the one whose quality is nearest to its header's. Reading a header on a GPU waits for it; a model
  of one quality reads nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2c import ops
from l2c.architectures import ARCHITECTURES, HYPER_STRIDE, LATENT_MAX, MEAN_UNITS, Kind, split
from l2c.entropy.base import FloatModel, RateTerms
from l2c.entropy.hyperprior.config import HyperpriorConfig

SLOPE = 0.01  # of every LeakyReLU
SCALE_MIN = 0.11  # sigma at least
LIKELIHOOD_MIN = 1e-9  # so a latent costs 30 bits at most
HYPER_LEAST, HYPER_MOST = -128, 127  # z
PERCENTILE = 0.9999  # of activations, what calibration calls their reach

_FILTERS = (1, 3, 3, 3, 3, 1)  # widths of the bottleneck's networks
_INIT_SCALE = 10.0


class EntropyBottleneck(nn.Module):
    """A distribution for each channel, free of form (Balle et al. 2018, arXiv:1802.01436, appendix 6.1).

    Its cumulative is the sigmoid of a monotone network of one number:

        t <- softplus(H_k) t + b_k,  then, but for the last k,  t <- t + tanh(a_k) tanh(t)

    with `matrices` H [C, f', f], `biases` b [C, f', 1] and `factors` a [C, f', 1].

    Attributes:
        quantiles: float32 [C, 1, 3], CompressAI's: the tails and the median, by which it lays out its tables. Kept for
            its checkpoints; ours come from `cdf`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        scale = _INIT_SCALE ** (1.0 / (len(_FILTERS) - 1))
        for i, (width, wider) in enumerate(itertools.pairwise(_FILTERS)):
            start = math.log(math.expm1(1.0 / scale / wider))
            self.matrices.append(nn.Parameter(torch.full((channels, wider, width), start)))
            self.biases.append(nn.Parameter(torch.rand(channels, wider, 1) - 0.5))
            if i < len(_FILTERS) - 2:
                self.factors.append(nn.Parameter(torch.zeros(channels, wider, 1)))
        self.quantiles = nn.Parameter(torch.tensor([-_INIT_SCALE, 0.0, _INIT_SCALE]).repeat(channels, 1, 1))

    def logits(self, t: Tensor) -> Tensor:
        """Logits of the share of each channel's values below t: float [C, n] -> like t, computed in its dtype."""
        x = t[:, None]
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases)):
            x = F.softplus(matrix.to(t.dtype)) @ x + bias.to(t.dtype)
            if i < len(self.factors):
                x = x + self.factors[i].to(t.dtype).tanh() * x.tanh()
        return x[:, 0]

    @torch.no_grad()
    def cdf(self, edges: Tensor) -> Tensor:
        """Share of each channel's values below edges float [n], in their dtype: [C, n]. Tables take half-integers."""
        return self.logits(edges.expand(len(self.quantiles), -1)).sigmoid()

    def likelihood(self, values: Tensor) -> Tensor:
        """P of intervals of length 1 around values: float32 [N, C, h, w] -> float32 like it, >= LIKELIHOOD_MIN."""
        n, c, h, w = values.shape
        t = values.float().transpose(0, 1).reshape(c, -1)
        lower, upper = self.logits(t - 0.5), self.logits(t + 0.5)
        # In the upper tail both sigmoids are near 1: there the other side keeps digits.
        sign = torch.where(lower + upper > 0.0, -1.0, 1.0)
        likelihood = ((sign * upper).sigmoid() - (sign * lower).sigmoid()).abs()
        return ops.lower_bound(likelihood, LIKELIHOOD_MIN).reshape(c, n, h, w).transpose(0, 1)


class MaskedConv(nn.Conv2d):
    """5x5, of which the 12 taps before the middle in raster order count (Minnen et al. 2018), and no other."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 5, padding=2)
        mask = (torch.arange(25) < 12).float().reshape(5, 5)
        self.register_buffer("mask", mask, persistent=False)

    def masked_weight(self) -> Tensor:
        """float32 [outputs, inputs, 5, 5], zero from the middle on."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """y float32 [N, M, h, w] -> float32 [N, 2M, h, w]."""
        return F.conv2d(x, self.masked_weight(), self.bias, padding=2)


def gaussian_likelihood(values: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Probability of intervals of length 1 around values, each under its own Gaussian.

    Minnen et al. 2018, arXiv:1809.02736, with mu = `means`, sigma = max(`scales`, SCALE_MIN):

        P(y) = Phi((y - mu + 1/2) / sigma) - Phi((y - mu - 1/2) / sigma)

    evaluated in |y - mu|, which is equal by symmetry and keeps precision in the upper tail.

    Args:
        values, means, scales: float32 [N, M, h, w].
    Returns:
        float32 like them, >= LIKELIHOOD_MIN. Both bounds pass gradients that lead back over them.
    """
    sigma = ops.lower_bound(scales, SCALE_MIN)
    distance = (values - means).abs()
    upper, lower = (torch.erfc((distance - half) / sigma * math.sqrt(0.5)) for half in (0.5, -0.5))
    return ops.lower_bound(0.5 * (upper - lower), LIKELIHOOD_MIN)


class Range(nn.Module):
    """What calibration saw of one layer's output; NaN before. No part of the state.

    Hidden layers: after the LeakyReLU, of the positive part. Others: of absolute values.

    Attributes:
        reach: float32 [2]: the percentile PERCENTILE, and the largest, of all channels.
        channel_reach: float32 [C, 2], those of each channel.
        negative_mean: float32 [C], mean of min(x, 0) before the LeakyReLU: SLOPE times it is what a ReLU loses on
            average. Zero where no LeakyReLU follows.
    """

    reach: Tensor
    channel_reach: Tensor
    negative_mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, shape in (("reach", (2,)), ("channel_reach", (channels, 2)), ("negative_mean", (channels,))):
            self.register_buffer(name, torch.full(shape, math.nan), persistent=False)


class _Stage(NamedTuple):
    """One layer of a network at work.

    Attributes:
        name: "h_s.2", of the layer with weights.
        before, after: float32 [N, C, h, w], its output without and with the activation that follows, if one does.
        activation: that, or None.
    """

    name: str
    before: Tensor
    after: Tensor
    activation: nn.Module | None


class Level(nn.Module):
    """What says how likely the latents of one quality are. Which of its parts there are depends on `kind`.

    Args:
        kind: of `architectures.Architecture`. residual: of Cheng2020: all layers of h_a and h_s are 3x3.
        n, m: channels of z and of y.
    Attributes:
        entropy_bottleneck: distributions of z; of y itself for "factorized", which has nothing else.
        h_a: y (its absolute value for "scale") -> z, a quarter of the side, rounded up.
        h_s: z -> four times the side: M channels (sigma) for "scale", else 2M: sigma and mu for "mean", features for
            "context".
        context_prediction: y -> 2M features of the latents before, in raster order.
        entropy_parameters: both features -> sigma and mu.
        ranges: what calibration saw, under the layers' names with "_" for ".", and "y" for the latents.
    """

    def __init__(self, kind: Kind, residual: bool, n: int, m: int) -> None:
        super().__init__()
        self.kind, self.n, self.m = kind, n, m
        self.entropy_bottleneck = EntropyBottleneck(m if kind == "factorized" else n)
        self.h_a, self.h_s = (_hyper_cheng if residual else _hyper_minnen)(kind, n, m)
        self.context_prediction: MaskedConv | None = None
        self.entropy_parameters: nn.Sequential | None = None
        if kind == "context":
            self.context_prediction = MaskedConv(m, 2 * m)
            self.entropy_parameters = nn.Sequential(
                nn.Conv2d(4 * m, 10 * m // 3, 1),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(10 * m // 3, 8 * m // 3, 1),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(8 * m // 3, 2 * m, 1),
            )
        channels = {"y": m, **self._output_channels()}
        self.ranges = nn.ModuleDict({_key(name): Range(count) for name, count in channels.items()})

    # --- what coders and estimates ask, step by step ------------------------------------------------------------------

    def hyper_latents(self, y: Tensor, inside: Tensor | None = None) -> Tensor:
        """h_a: float32 [N, M, h, w] -> z before rounding, float32 [N, N', ceil(h/4), ceil(w/4)]."""
        assert self.h_a is not None
        return _run(self.h_a, y.abs() if self.kind == "scale" else y, inside)

    def hyper(self, z: Tensor, height: int, width: int, inside: Tensor | None = None) -> Tensor:
        """h_s: z [N, N', ceil(height/4), ceil(width/4)] -> its output, cropped: [N, M or 2M, height, width]."""
        assert self.h_s is not None
        return _run(self.h_s, z, inside)[:, :, :height, :width]

    def context(self, y: Tensor) -> Tensor:
        """Features of the latents before each: float32 [N, M, h, w] -> [N, 2M, h, w]."""
        assert self.context_prediction is not None
        return self.context_prediction(y)

    def parameters_of(self, hyper: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """sigma (may lie below SCALE_MIN) and mu, float32 [N, M, h, w], of what `hyper` and `context` gave."""
        if self.kind == "scale":
            return hyper, torch.zeros_like(hyper)
        if self.entropy_parameters is not None:
            assert context is not None
            hyper = self.entropy_parameters(torch.cat((hyper, context), dim=1))
        scales, means = hyper.chunk(2, dim=1)
        return scales, means

    # --- rates --------------------------------------------------------------------------------------------------------

    def distributions(
        self, context: Tensor, inside: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """How y is distributed given what is known of it, and what the hyper-latents cost.

        Args:
            context: float32 [N, M, h, w], latents, zero outside. inside: [N, 1, h, w] of 0/1, or None: all inside.
        Returns:
            (sigma, mu) as of `parameters_of`, or None for "factorized";
            bits of z, float32 [N, N', ceil(h/4), ceil(w/4)], zero outside, or None for "factorized".
        """
        if self.kind == "factorized":
            return None, None
        z = self.hyper_latents(context, inside)
        if self.training:
            z = z + (torch.rand_like(z) - 0.5)
        else:
            z = z + (z.round().clamp(HYPER_LEAST, HYPER_MOST) - z).detach()
        z_bits = -self.entropy_bottleneck.likelihood(z).log2()
        known = None
        if inside is not None:
            known = inside[:, :, ::HYPER_STRIDE, ::HYPER_STRIDE]
            z, z_bits = z * known, z_bits * known
        features = self.hyper(z, context.shape[2], context.shape[3], known)
        before = self.context(context) if self.kind == "context" else None
        return self.parameters_of(features, before), z_bits

    def bits_of(self, y: Tensor, distributions: tuple[Tensor, Tensor] | None) -> Tensor:
        """Bits of latents float32 [N, M, h, w] under `distributions`, like y."""
        if distributions is None:
            return -self.entropy_bottleneck.likelihood(y).log2()
        scales, means = distributions
        return -gaussian_likelihood(y, means, scales).log2()

    # --- calibration --------------------------------------------------------------------------------------------------

    @property
    def is_calibrated(self) -> bool:
        """Whether `calibrate` has run since the level was made."""
        return not any(bool(buffer.isnan().any()) for buffer in self.ranges.buffers())

    @torch.no_grad()
    def calibrate(self, latents: Sequence[Tensor]) -> None:
        """Keep in `ranges` what the layers of h_s, context and entropy parameters give on these latents.

        Args:
            latents: float32 [1, M, h, w] each, of any sizes; they are rounded.
        Raises:
            ValueError: there are none.
        """
        if not latents:
            raise ValueError("calibration needs latents")
        places = sum(math.prod(_rounded_up(side) for side in y.shape[2:]) for y in latents)
        seen = {name: _Statistics(places) for name in self.ranges}
        for y in latents:
            y = y.to(self.entropy_bottleneck.quantiles).round().clamp(-LATENT_MAX, LATENT_MAX)
            seen["y"].add(y.abs(), None)
            for stage in self._stages(y):
                after = stage.after.abs() if stage.activation is None else stage.after.clamp_min(0.0)
                leaky = isinstance(stage.activation, nn.LeakyReLU)
                seen[_key(stage.name)].add(after, stage.before if leaky else None)
        for name, statistics in seen.items():
            found = self.ranges[name]
            assert isinstance(found, Range)
            statistics.store(found)

    def _stages(self, y: Tensor) -> Iterator[_Stage]:
        """Every layer from z on, at work on whole latents y [1, M, h, w]; nothing for "factorized"."""
        if self.h_s is None:
            return
        x = self.hyper_latents(y).round().clamp(HYPER_LEAST, HYPER_MOST)
        for stage in _stages("h_s", self.h_s, x):
            yield stage
            x = stage.after
        if self.context_prediction is None or self.entropy_parameters is None:
            return
        before = self.context_prediction(y)
        yield _Stage("context_prediction", before, before, None)
        x = torch.cat((x[:, :, : y.shape[2], : y.shape[3]], before), dim=1)
        yield from _stages("entropy_parameters", self.entropy_parameters, x)

    def _output_channels(self) -> dict[str, int]:
        """Channels that every layer which `_stages` names gives on."""
        found: dict[str, int] = {}
        for name, layers in (("h_s", self.h_s), ("entropy_parameters", self.entropy_parameters)):
            if layers is not None:
                found |= {f"{name}.{key}": _outputs(layer) for key, layer, _ in _with_activations(layers)}
        if self.context_prediction is not None:
            found["context_prediction"] = self.context_prediction.out_channels
        return found


class HyperpriorModel(FloatModel):
    """P: the level of each quality.

    Attributes:
        levels: a `Level` for each of `config.qualities`.
    """

    def __init__(self, config: HyperpriorConfig, c: int) -> None:
        super().__init__()
        self.config, self.c = config, c
        facts = ARCHITECTURES[config.architecture]
        self.levels = nn.ModuleList(Level(facts.kind, facts.residual, config.n, c) for _ in config.qualities)

    def level(self, index: int) -> Level:
        """The level of quality `config.qualities[index]`."""
        found = self.levels[index]
        assert isinstance(found, Level)
        return found

    def calibrate(self, latents: Sequence[Tensor], index: int | None = None) -> None:
        """`Level.calibrate` of one level, whose latents these are, or of all. Raises ValueError: there are none."""
        for number in range(len(self.levels)) if index is None else (index,):
            self.level(number).calibrate(latents)

    def num_bits(self, context: Tensor, target: Tensor, header: Tensor, inside: Tensor | None = None) -> Tensor:
        """See `FloatModel.num_bits`. While training, z has uniform noise, as `target` has; else it is rounded."""
        with torch.autocast(context.device.type, enabled=False):
            if inside is not None:
                inside = inside.float()
                context = context * inside
            parts, order = [], []
            for level, rows in self._parts(header):
                known = None if inside is None else inside[rows]
                distributions, z_bits = level.distributions(context[rows].float(), known)
                own = level.bits_of(target[rows].float(), distributions)
                bits = (own if known is None else own * known).flatten(1).sum(dim=1)
                if z_bits is not None:
                    bits = bits + z_bits.flatten(1).sum(dim=1)
                if isinstance(rows, slice):
                    return bits
                parts.append(bits)
                order += rows
            return torch.cat(parts)[sorted(range(len(order)), key=order.__getitem__)]

    @torch.no_grad()
    def rounded(self, y: Tensor, header: Tensor) -> Tensor:
        """See `FloatModel.rounded`; means as they are where the latents before each are whole numbers."""
        if self.config.rounding == "whole":
            return y.round()
        found = torch.empty_like(y)
        for level, rows in self._parts(header):
            with torch.autocast(y.device.type, enabled=False):
                distributions, _ = level.distributions(y[rows].float().round())
                assert distributions is not None
                means = (distributions[1] * MEAN_UNITS).round() / MEAN_UNITS
                found[rows] = (y[rows] - means).round() + means
        return found

    def terms(self, z: Tensor, header: Tensor) -> RateTerms:
        """See `FloatModel.terms`: a level is 1; the slope passes the rounding of the hyper-latents unchanged."""
        bits, (rise, fall, slope) = z.new_zeros(len(z)), (torch.zeros_like(z) for _ in range(3))
        for level, rows in self._parts(header):
            with torch.enable_grad(), torch.autocast(z.device.type, enabled=False):
                y = z[rows].detach()
                leaf = y.clone().requires_grad_()
                distributions, z_bits = level.distributions(leaf)
                own = level.bits_of(y, distributions)
                if z_bits is not None:
                    total = own.flatten(1).sum(dim=1) + z_bits.flatten(1).sum(dim=1)
                    (slope[rows],) = torch.autograd.grad(total.sum(), leaf)
                else:
                    total = own.flatten(1).sum(dim=1)
            with torch.no_grad():
                bits[rows] = total
                rise[rows] = (level.bits_of(y + 1.0, distributions) - own).masked_fill(y >= LATENT_MAX, math.inf)
                fall[rows] = (level.bits_of(y - 1.0, distributions) - own).masked_fill(y <= -LATENT_MAX, math.inf)
        return RateTerms(bits, rise, fall, slope)

    @torch.no_grad()
    def bit_map(self, z: Tensor, header: Tensor) -> Tensor:
        """See `FloatModel.bit_map`. Bits of a hyper-latent are shared by the latents that it stands for."""
        found = z.new_zeros(z[:, 0].shape, dtype=torch.float64)
        for level, rows in self._parts(header):
            with torch.autocast(z.device.type, enabled=False):
                distributions, z_bits = level.distributions(z[rows])
                bits = level.bits_of(z[rows], distributions).double().sum(dim=1)
            if z_bits is not None:
                bits += _shared(z_bits.double().sum(dim=1), *bits.shape[1:])
            found[rows] = bits
        return found

    def _parts(self, header: Tensor) -> Iterator[tuple[Level, slice | list[int]]]:
        """Levels, and which pictures of header int64 [N, 3] are theirs: a slice of all of them, or their numbers."""
        if len(self.levels) == 1:
            yield self.level(0), slice(None)
            return
        found = split(header[:, 0].tolist(), self.config.qualities)
        for index, rows in found.items():
            yield self.level(index), rows if len(found) > 1 else slice(None)


def _hyper_minnen(kind: Kind, n: int, m: int) -> tuple[nn.Sequential | None, nn.Sequential | None]:
    """h_a and h_s of Balle et al. 2018 ("scale": ReLU) and Minnen et al. 2018 (the others: LeakyReLU)."""
    if kind == "factorized":
        return None, None
    scale = kind == "scale"
    h_a = nn.Sequential(_conv(m, n, 3, 1), _act(scale), _conv(n, n, 5, 2), _act(scale), _conv(n, n, 5, 2))
    if scale:
        return h_a, nn.Sequential(_up(n, n), _act(scale), _up(n, n), _act(scale), _conv(n, m, 3, 1), _act(scale))
    wider = 3 * m // 2
    return h_a, nn.Sequential(_up(n, m), _act(scale), _up(m, wider), _act(scale), _conv(wider, 2 * m, 3, 1))


def _hyper_cheng(kind: Kind, n: int, m: int) -> tuple[nn.Sequential | None, nn.Sequential | None]:
    """h_a and h_s of Cheng et al. 2020, 3x3 throughout; here N = M, and `kind` is "context"."""
    strides, wider = (1, 1, 2, 1, 2), 3 * n // 2
    h_a = [layer for stride in strides for layer in (_conv(n, n, 3, stride), _act(False))]
    h_s = (
        _conv(n, n, 3, 1),
        _subpixel(n, n),
        _conv(n, wider, 3, 1),
        _subpixel(wider, wider),
        _conv(wider, 2 * m, 3, 1),
    )
    h_s_layers = [layer for part in h_s for layer in (part, _act(False))]
    return nn.Sequential(*h_a[:-1]), nn.Sequential(*h_s_layers[:-1])


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def _up(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)


def _subpixel(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(_conv(inputs, 4 * outputs, 3, 1), nn.PixelShuffle(2))


def _act(relu: bool) -> nn.Module:
    return nn.ReLU() if relu else nn.LeakyReLU(SLOPE)


def _run(layers: nn.Sequential, x: Tensor, inside: Tensor | None) -> Tensor:
    """Layers one after the other; with `inside` [N, 1, h, w] of the input, zero outside after each of them."""
    if inside is None:
        return layers(x)
    for layer in _flat(layers):
        x = layer(x)
        if isinstance(layer, nn.Conv2d) and layer.stride[0] == 2:
            inside = inside[:, :, ::2, ::2]
        elif isinstance(layer, nn.ConvTranspose2d | nn.PixelShuffle):
            inside = inside.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = x * inside
    return x


def _flat(layers: nn.Sequential) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        else:
            yield layer


def _with_activations(layers: nn.Sequential) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """(key, layer with weights, activation that follows or None) for each of them."""
    children = [*layers.named_children(), ("", nn.Identity())]
    for (key, layer), (_, following) in itertools.pairwise(children):
        if not isinstance(layer, nn.ReLU | nn.LeakyReLU):
            yield key, layer, following if isinstance(following, nn.ReLU | nn.LeakyReLU) else None


def _stages(name: str, layers: nn.Sequential, x: Tensor) -> Iterator[_Stage]:
    for key, layer, activation in _with_activations(layers):
        before = layer(x)
        x = before if activation is None else activation(before)
        yield _Stage(f"{name}.{key}", before, x, activation)


def _outputs(layer: nn.Module) -> int:
    """Channels that a layer gives on, which for a sub-pixel convolution are those after the shuffle."""
    if isinstance(layer, nn.Sequential):
        return _outputs(layer[0]) // 4
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    return layer.out_channels


def _key(name: str) -> str:
    return name.replace(".", "_")


def _rounded_up(side: int) -> int:
    return -(-side // HYPER_STRIDE) * HYPER_STRIDE


def _shared(values: Tensor, height: int, width: int) -> Tensor:
    """Each value [N, ceil(h/4), ceil(w/4)] in equal parts over the places of its cell: [N, h, w], with the same sum."""

    def spread(x: Tensor) -> Tensor:
        x = x.repeat_interleave(HYPER_STRIDE, dim=1).repeat_interleave(HYPER_STRIDE, dim=2)
        return x[:, :height, :width]

    rows, columns = (
        torch.tensor([min(HYPER_STRIDE, side - at) for at in range(0, side, HYPER_STRIDE)], device=values.device)
        for side in (height, width)
    )
    return spread(values / (rows[:, None] * columns))


class _Statistics:
    """The largest of many values, of all channels together and of each, and means.

    Args:
        places: how many positions there will be at most.
    """

    def __init__(self, places: int) -> None:
        self._share = 1.0 - PERCENTILE
        self._places, self._count = places, 0
        self._largest = torch.empty(0)
        self._of_channels: Tensor | None = None
        self._negative: Tensor | float = 0.0

    def add(self, values: Tensor, before: Tensor | None) -> None:
        """values float32 [1, C, h, w], not negative; before: those whose negative part counts, or None."""
        rows = values[0].flatten(1).cpu()
        self._count += rows.shape[1]
        self._largest = _top(torch.cat((self._largest, rows.flatten())), self._rank(self._places * len(rows)))
        known = rows if self._of_channels is None else torch.cat((self._of_channels, rows), dim=1)
        self._of_channels = _top(known, self._rank(self._places))
        if before is not None:
            self._negative = self._negative + before[0].flatten(1).clamp_max(0.0).double().sum(dim=1).cpu()

    def store(self, found: Range) -> None:
        """Write what was seen to buffers."""
        assert self._of_channels is not None
        channels = len(self._of_channels)
        whole = self._largest[[self._rank(self._count * channels) - 1, 0]]
        each = self._of_channels[:, [self._rank(self._count) - 1, 0]]
        found.reach.copy_(whole)
        found.channel_reach.copy_(each)
        found.negative_mean.copy_(torch.as_tensor(self._negative / self._count))

    def _rank(self, count: int) -> int:
        """Which of `count` values, counted from the largest, the percentile is."""
        return int(self._share * count) + 1


def _top(values: Tensor, count: int) -> Tensor:
    """The largest `count` values of each row, falling."""
    return values.topk(min(count, values.shape[-1]), dim=-1).values
