"""P in float: the multi-scale progressive probability model (L2C III-B, Fig. 2), for training and gradients.

Read me first
- z^(i) is z^(i-1) at its even rows and columns (nearest-neighbour down-sampling), i = 1..M; M = 3 halvings. The upper
  limit M - 1 in the paper's Eq. 4 is a misprint: with it one scale would never be coded.
- All work at scale i happens on *cells*: the 2x2 positions of z^(i) around one position of z^(i+1), moved to
  channels. A cell's position 0 (even row, even column) is known from the coarser scale; positions 3 (odd, odd),
  1 (even, odd) and 2 (odd, even) follow, each split in channel groups: these are the paper's groups g_j (Eq. 5).
- A step sees the representation with the truth filled in and the cell's known position repeated elsewhere
  (the paper's up-sampled representation), where truth is available, and the context tensor q of the step before.
  It returns mixture parameters for its group and the next q, which is handed on through groups and scales.
- Steps have weights of their own per group, shared by all scales; the scale is one of the constant planes.
- Positions outside the picture are zero, unavailable, and set to zero again after every layer, so a picture gives
  the same numbers alone and in a padded batch.
- Everything that P knows about quality are small integers of the file's header (`constant_planes`), never floats:
  `integer_model` computes the very same graph in exact integers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2c import ops
from l2c.entropy.base import FloatModel, RateTerms
from l2c.entropy.multiscale.config import MultiscaleConfig
from l2c.entropy.multiscale.schedule import schedule
from l2c.format.levels import MAX_MU, MAX_QUALITY
from l2c.ops.contract import (
    ACTIVATION_MAX,
    ACTIVATION_SCALE,
    AVAILABLE,
    CODING_ORDER,
    COMPAND,
    INPUT_SCALE,
    PLANE_ONE,
    POSITIONS,
    QUALITY_KNOTS,
    num_planes,
)


def plane_tensor(header: Tensor, num_scales: int) -> Tensor:
    """`constant_planes` of every scale, where the header is a tensor: nothing is read back from its device.

    Args:
        header: int64 [N, 3]: quality, mu and b of each picture.
    Returns:
        int64 [num_scales + 1, N, planes], on the header's device.
    """
    quality, mu, b = (column[:, None] for column in header.unbind(dim=1))
    spacing = MAX_QUALITY // (QUALITY_KNOTS - 1)
    knots = spacing * torch.arange(QUALITY_KNOTS, device=header.device)
    hats = (PLANE_ONE - (quality - knots).abs() * PLANE_ONE // spacing).clamp_min(0)
    same = torch.cat((hats, mu * PLANE_ONE // MAX_MU, (8 - b) * PLANE_ONE // 8), dim=1)
    one_hot = PLANE_ONE * torch.eye(num_scales + 1, device=header.device, dtype=header.dtype)
    scales = one_hot[:, None].expand(-1, len(header), -1)
    return torch.cat((same.expand(num_scales + 1, -1, -1), scales), dim=2)


def compand(z: Tensor) -> Tensor:
    """Latents in -128..127 -> about +-126: steep near zero, where most latents are; the integer model rounds it."""
    return COMPAND * z * torch.rsqrt(1.0 + z.abs())


def to_cells(x: Tensor) -> list[Tensor]:
    """[N, C, 2h, 2w] -> four [N, C, h, w], channels last: the positions of each 2x2 cell, in the order of POSITIONS."""
    return [x[:, :, dy::2, dx::2].contiguous(memory_format=torch.channels_last) for dy, dx in POSITIONS]


def pad_even(x: Tensor) -> Tensor:
    """Append a zero row and column where a side of [N, C, h, w] is odd."""
    return F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)) if x.shape[2] % 2 or x.shape[3] % 2 else x


def upsample_context(q: Tensor, height: int, width: int) -> Tensor:
    """Nearest-neighbour up-sampling by two, cropped: [N, C, h, w] -> [N, C, height, width], 2h >= height."""
    return q.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[:, :, :height, :width]


def activation(x: Tensor, fake_quantise: bool) -> Tensor:
    """ReLU clipped at ACTIVATION_MAX; with `fake_quantise` rounded to the integer model's grid, straight through."""
    x = x.clamp(0.0, ACTIVATION_MAX)
    if fake_quantise:
        x = x + ((x.detach() * ACTIVATION_SCALE).round() / ACTIVATION_SCALE - x.detach())
    return x


def weight_step(weight: Tensor) -> Tensor:
    """Quantisation step of int8 weights per output channel: [O, I, k, k] -> [O, 1, 1, 1], positive."""
    return weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12) / 127.0


def quantised_weight(weight: Tensor) -> Tensor:
    """Weights rounded to their int8 grid, straight through."""
    with torch.no_grad():
        step = weight_step(weight)
        rounded = (weight / step).round() * step
    return weight + (rounded - weight).detach()


class Step(nn.Module):
    """The progressive component for one group (right side of Fig. 2): two 3x3 convolutions on cells.

        h1 = A(W1 [compand(z_filled), availability, planes, q])      1x1
        h2 = A(W2 * h1)                                              3x3
        q' = A(h1 + W3 * h2)                                         3x3
        parameters = W4 q'                                           1x1

    with A(x) = clamp(x, 0, ACTIVATION_MAX). With `fake_quantise` set, weights and activations are rounded to the
    grids of the integer model (quantisation-aware finishing).
    """

    fake_quantise = False

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.w1 = nn.Conv2d(inputs + width, width, 1)
        self.w2 = nn.Conv2d(width, width, 3, padding=1)
        self.w3 = nn.Conv2d(width, width, 3, padding=1)
        self.w4 = nn.Conv2d(width, outputs, 1)

    def forward(self, u: Tensor, q: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """u [N, inputs, h, w], q [N, width, h, w], inside [N, 1, h, w] -> (parameters, q')."""
        # Inputs are integers / INPUT_SCALE, q is integers / ACTIVATION_SCALE: one common grid for both.
        ratio = ACTIVATION_SCALE / INPUT_SCALE
        fake = self.fake_quantise
        w1, w2, w3, w4 = self.w1.weight, self.w2.weight, self.w3.weight, self.w4.weight
        if fake:
            split = u.shape[1]
            w1 = quantised_weight(torch.cat((w1[:, :split] * ratio, w1[:, split:]), dim=1))
            w1 = torch.cat((w1[:, :split] / ratio, w1[:, split:]), dim=1)
            w2, w3, w4 = quantised_weight(w2), quantised_weight(w3), quantised_weight(w4)
        h1 = activation(F.conv2d(torch.cat((u, q), dim=1), w1, self.w1.bias), fake) * inside
        h2 = activation(F.conv2d(h1, w2, self.w2.bias, padding=1), fake) * inside
        q = activation(h1 + F.conv2d(h2, w3, self.w3.bias, padding=1), fake) * inside
        return F.conv2d(q, w4, self.w4.bias), q


class Prior(nn.Module):
    """Model of the last scale: mixture parameters per channel from the header's integers alone."""

    def __init__(self, planes: int, width: int, outputs: int) -> None:
        super().__init__()
        self.w1 = nn.Conv2d(planes, width, 1)
        self.w2 = nn.Conv2d(width, outputs, 1)

    def forward(self, planes: Tensor) -> Tensor:
        """planes [N, planes, 1, 1] -> parameters [N, outputs, 1, 1]."""
        return self.w2(activation(self.w1(planes), False))


def initial_bias(channels: int, num_mixtures: int) -> Tensor:
    """Head bias to start from: components of different width around zero, so none is dead at the first step."""
    bias = torch.zeros(3, num_mixtures, channels)
    for k in range(num_mixtures):
        bias[2, k] = 1.0 - 2.0 * k  # log2 of the inverse scale per latent
    return bias.reshape(-1)


@dataclass
class Group:
    """One coded group: which step made it and what it predicts.

    Attributes:
        scale: 0 is the finest; num_scales the prior's.
        target: float [N, g, h, w], the latents of this group.
        params: float32 [N, 3 K g, h, w] (or h = w = 1 for the prior): logits in nats, means in latents,
            log2 inverse scales per latent, each [K][g].
        inside: [N, 1, h, w], 1 where the position lies in the picture.
        place: (channels, rows, columns) of the latents that the group covers; h and w can be one larger than that.
    """

    scale: int
    target: Tensor
    params: Tensor
    inside: Tensor
    place: tuple[slice, slice, slice]


class ProbabilityModel(FloatModel):
    """P: yields the distribution of every latent, scale by scale and group by group."""

    def __init__(self, config: MultiscaleConfig, c: int) -> None:
        super().__init__()
        p = config
        self.config = p
        self.c = c
        self.planes = num_planes(p.num_scales)
        self.inputs = 4 * self.c + 4 * len(p.channel_groups) + self.planes
        self.steps = nn.ModuleList()
        for _ in CODING_ORDER:
            for size in p.channel_groups:
                step = Step(self.inputs, p.width, 3 * p.num_mixtures * size)
                _start_head(step.w4, size, p.num_mixtures)
                self.steps.append(step)
        self.prior: Prior | None = None
        if p.prior == "learned":
            self.prior = Prior(self.planes, p.width, 3 * p.num_mixtures * self.c)
            _start_head(self.prior.w2, self.c, p.num_mixtures)

    def set_fake_quantise(self, on: bool) -> None:
        """See `FloatModel.set_fake_quantise`."""
        super().set_fake_quantise(on)
        for step in self.steps:
            assert isinstance(step, Step)
            step.fake_quantise = on

    def groups(self, context: Tensor, target: Tensor, header: Tensor, inside: Tensor | None = None) -> Iterator[Group]:
        """Run P over known latents (training, rate estimates).

        Args:
            context: float [N, c, h, w], the latents that later groups see (quantised, straight-through).
            target: float [N, c, h, w], the latents whose probability is asked (quantised, or with uniform noise).
            header: int64 [N, 3]: quality 0..1000, mu 0..8, b 1..8 per picture.
            inside: [N, 1, h, w] of 0/1 for pictures of different sizes in one batch; None: all inside.
        Yields:
            Groups from the coarsest scale to the finest; the uniform prior yields none for the last scale.
        """
        num_scales, groups = self.config.num_scales, self.config.channel_groups
        if inside is None:
            inside = torch.ones_like(context[:, :1])
        pyramid = [(context, target, inside)]
        for _ in range(num_scales):
            pyramid.append(tuple(t[:, :, ::2, ::2] for t in pyramid[-1]))  # type: ignore[arg-type]
        integers = plane_tensor(header.to(context.device), num_scales)
        # Integer inputs up to 127 / 16 are exact in bfloat16.
        autocast = torch.is_autocast_enabled(context.device.type)
        dtype = torch.get_autocast_dtype(context.device.type) if autocast else context.dtype
        planes = integers.to(dtype)[..., None, None] / INPUT_SCALE  # [scales, N, planes, 1, 1]

        coarse = pyramid[-1][0]
        q = context.new_zeros(context.shape[0], self.config.width, *coarse.shape[2:], dtype=dtype)
        q = q.contiguous(memory_format=torch.channels_last)
        for turn in schedule(num_scales, groups):
            if turn.is_last_scale:
                if self.prior is not None:
                    params = self.prior(planes[-1]).float()
                    yield Group(num_scales, pyramid[-1][1], params, pyramid[-1][2], turn.place())
                continue
            if turn.index == 0:
                z, t, valid = (pad_even(part) for part in pyramid[turn.scale])
                z_cells, t_cells, valid_cells = to_cells(z), to_cells(t), to_cells(valid)
                valid_maps = [part.to(dtype) for part in valid_cells]
                cell_inside = valid_maps[0]
                q = upsample_context(q, *cell_inside.shape[2:])
                values = [self._input(cells).to(dtype).split(groups, dim=1) for cells in z_cells]
                known = values[0]
                filled = [[part * valid_p for part in known] for valid_p in valid_maps]
                available = [[torch.zeros_like(cell_inside) for _ in groups] for _ in POSITIONS]
                available[0] = [cell_inside * (AVAILABLE / INPUT_SCALE) for _ in groups]
                plane_maps = planes[turn.scale] * cell_inside
            p, g = turn.position, turn.group
            u = torch.cat([*itertools.chain(*filled), *itertools.chain(*available), plane_maps], dim=1)
            params, q = self.steps[turn.index](u, q, cell_inside)
            yield Group(turn.scale, t_cells[p][:, turn.channels], params.float(), valid_maps[p], turn.place())
            filled[p][g] = values[p][g] * valid_maps[p]
            available[p][g] = valid_maps[p] * (AVAILABLE / INPUT_SCALE)

    def _input(self, latents: Tensor) -> Tensor:
        """Latents as w1 sees them: companded, on the integer grid in quantisation-aware steps."""
        values = compand(latents)
        if self.fake_quantise:
            values = values + (values.detach().round() - values.detach())
        return values / INPUT_SCALE

    def num_bits(self, context: Tensor, target: Tensor, header: Tensor, inside: Tensor | None = None) -> Tensor:
        """See `FloatModel.num_bits`."""
        b = header[:, 2].to(context.device)
        bits = torch.zeros(context.shape[0], device=context.device)
        for group in self.groups(context, target, header, inside):
            cost = ops.mixture_bits(group.target.float(), group.params, self.config.num_mixtures, b)
            bits = bits + (cost * group.inside).flatten(1).sum(dim=1)
        if self.prior is None:
            last = torch.ones_like(context[:, :1]) if inside is None else inside
            for _ in range(self.config.num_scales):
                last = last[:, :, ::2, ::2]
            bits = bits + b * self.c * last.flatten(1).sum(dim=1)
        return bits

    def terms(self, z: Tensor, header: Tensor) -> RateTerms:
        """See `FloatModel.terms`; rise and fall are exact, the slope goes through P's context."""
        b = header[:, 2].to(z.device)
        level = torch.exp2(8.0 - b.float())[:, None, None, None]
        rise, fall = (torch.zeros(z.shape, dtype=z.dtype, device=z.device) for _ in range(2))
        with torch.enable_grad():
            leaf = z.detach().clone().requires_grad_()
            bits = z.new_zeros(len(z))
            for group in self.groups(leaf, z, header):
                own, up, down = ops.neighbour_bits(group.target.float(), group.params, self.config.num_mixtures, b)
                bits = bits + (own * group.inside).flatten(1).sum(dim=1)
                for canvas, value in ((rise, up), (fall, down)):
                    part = canvas[(slice(None), *group.place)]
                    part.copy_(value[:, :, : part.shape[2], : part.shape[3]])
            (slope,) = torch.autograd.grad(bits.sum(), leaf)
        rise.masked_fill_(z >= 128.0 - 1.25 * level, float("inf"))  # a uniform prior names no change at all
        fall.masked_fill_(z <= -128.0 + 0.25 * level, float("inf"))
        if self.prior is None:
            stride = 1 << self.config.num_scales
            bits = bits + b * z[:, :, ::stride, ::stride][0].numel()
        return RateTerms(bits.detach(), rise, fall, slope * level)

    @torch.no_grad()
    def bit_map(self, z: Tensor, header: Tensor) -> Tensor:
        """See `FloatModel.bit_map`."""
        b = header[:, 2].to(z.device)
        bits = torch.zeros(z[:, 0].shape, dtype=torch.float64, device=z.device)
        for group in self.groups(z, z, header):
            cost = ops.mixture_bits(group.target.float(), group.params, self.config.num_mixtures, b)
            part = bits[(slice(None), *group.place[1:])]
            part += cost.sum(dim=1).double()[:, : part.shape[1], : part.shape[2]]
        if self.prior is None:
            stride = 1 << self.config.num_scales
            bits[:, ::stride, ::stride] += b[:, None, None] * self.c
        return bits

    @torch.no_grad()
    def move_range(self, old: tuple[float, float], new: tuple[float, float]) -> None:
        """Interpolate the weights of the quality planes to the knots of another range (outside: extrapolate)."""
        if old == new or old[0] == old[1]:
            return
        spacing = (old[1] - old[0]) / (QUALITY_KNOTS - 1)
        shares = [k / (QUALITY_KNOTS - 1) for k in range(QUALITY_KNOTS)]
        places = [(new[0] + share * (new[1] - new[0]) - old[0]) / spacing for share in shares]
        first = self.inputs - self.planes
        layers = [(step.w1.weight, first) for step in self.steps if isinstance(step, Step)]
        if self.prior is not None:
            layers.append((self.prior.w1.weight, 0))
        for weight, first in layers:
            columns = weight[:, first : first + QUALITY_KNOTS].clone()
            for k, place in enumerate(places):
                left = min(max(math.floor(place), 0), QUALITY_KNOTS - 2)
                share = place - left
                weight[:, first + k] = (1.0 - share) * columns[:, left] + share * columns[:, left + 1]


def _start_head(head: nn.Conv2d, channels: int, num_mixtures: int) -> None:
    with torch.no_grad():
        head.weight.mul_(0.1)
        assert head.bias is not None
        head.bias.copy_(initial_bias(channels, num_mixtures))
