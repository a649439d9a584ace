"""Latent overfitting (L2C III-C): change the quantised latents of a picture until rate and distortion are least.

The paper follows the straight-through gradient of Eq. 8 for ten steps. We use the same gradient differently, because
latents are integers: a latent can only rise or fall by one level, and what that changes is known well. Its own bits
change by what the mixture says at the neighbouring level (exact, `ops.neighbour_bits`); the distortion changes
by the gradient through D times the move plus half the curvature; the bits of the latents that are coded after it
change by the gradient through P's context. So every iteration

1. decodes and takes both gradients, averaged with those of the iterations before;
2. predicts the change of J = lambda * pixels * D + beta * bits for each latent's rise and fall;
3. makes the best of the moves that lower J, a share of them only, for they act on each other;
4. keeps or takes back: a region (picture or tile) whose J rose returns to its best latents with more damping on its
   curvature, and one whose J fell as predicted goes on with less (Levenberg and Marquardt's rule).

What a move does to the bits is known far better than what it does to the picture, and moves that spend bits, most of
them zeros of high frequency that become +-1, are where the predictions fail, for MS-SSIM far more than for squared
errors: bits to be spent are counted several times (`Tuning.spending`).

At equal iterations this gains more than the straight-through gradient does (docs/ADAPTATION.md).
The curvature of a channel needs no second derivative: rounding has just moved every latent off the encoder's float
value by a known amount, so the regression of the gradient on that amount measures it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2c import ops
from l2c.entropy import FloatModel
from l2c.format.levels import METRICS
from l2c.objective import Blend, DistortionTo
from l2c.transforms import Adaptation, Places, Transform

_SHARE = 0.3  # of the moves that promise a gain, how many an iteration makes
_DAMPING = 1.5  # on the curvature, at the start
_MORE, _LESS = 2.0, 0.75  # its change after an iteration that failed, or came out as predicted
_MOST_DAMPING = 60.0
_LEAST_GAIN = 2e-4  # of J: a region that gains less than this ...
_PATIENCE = 3  # ... this many times in a row has converged
_STEERED = 4  # of the last iterations steer for aims, half of all at most
_SPENDING_LATE = 2.0  # what bits count there at most that a move adds
_BETAS = (0.25, 4.0)  # what bits weigh there, at least and at most
_HALVINGS = 8  # of that range, in logarithms, to find a weight
_LEAST_SAVING = 0.05  # bits that a trimming move must promise
_HIGHEST_PRICE = 16.0  # cost that trimming pays for a bit less
_RIDGE = 1.0  # squared levels of rounding at the mean curvature that are mixed into each channel's regression
_NEARBY = 5  # latents a side over which a place's sensitivity is measured


@dataclass
class Regions:
    """Pictures or tiles of one shape that are searched together.

    Attributes:
        x: float32 [N, 3, H, W] in [0, 1], the pixels.
        y: float32 [N, c, h, w], E's latents before Q, masked; h = ceil(H / s), w = ceil(W / s).
        kept: bool [N, c, h, w], the mask of L2C Eq. 2: where it is off the latent stays zero; None: on everywhere.
        cond: float32 [N, 2] from `transforms.condition`.
        header: int64 [N, 3], quality, mu and b, on the CPU.
        lmbda: float32 [N], the raw trade-off.
        surround: float32 [N, c, h', w'], latents around and including the region, which D sees as well; None: the
            region is the whole picture.
        corner: row and column of the region in `surround`.
        places: conditions that differ within what D sees, in the place of `cond`; None: there are none.
        weights: what errors weigh then, float32 [N, 1, H, W]; None: 1 everywhere.
    """

    x: Tensor
    y: Tensor
    kept: Tensor | None
    cond: Tensor
    header: Tensor
    lmbda: Tensor
    surround: Tensor | None = None
    corner: tuple[int, int] = (0, 0)
    places: Places | None = None
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def pick(self, members: Tensor) -> Regions:
        """Some of the regions: members int64 [n]."""
        if len(members) == len(self):
            return self
        kept = None if self.kept is None else self.kept[members]
        surround = None if self.surround is None else self.surround[members]
        there = members.to(self.header.device)
        return Regions(
            self.x[members], self.y[members], kept, self.cond[members], self.header[there], self.lmbda[members],
            surround, self.corner, None if self.places is None else self.places.pick(members),
            None if self.weights is None else self.weights[members],
        )  # fmt: skip

    @property
    def pixels(self) -> int:
        """Of each region."""
        return self.x.shape[2] * self.x.shape[3]

    def decode(self, transform: Transform, z: Tensor, adaptation: Adaptation | None = None) -> Tensor:
        """D on latents z [N, c, h, w] of the regions, in what surrounds them: float32 [N, 3, H, W], not clamped."""
        top, left = self.corner
        seen = z
        if self.surround is not None:
            seen = self.surround.clone()
            seen[:, :, top : top + z.shape[2], left : left + z.shape[3]] = z
        if self.places is not None:
            adaptation = replace(adaptation or Adaptation(), places=self.places)
        x_hat = transform.decoder(seen.contiguous(memory_format=torch.channels_last), self.cond, adaptation)
        s, (height, width) = transform.s, self.x.shape[2:]
        return x_hat[:, :, top * s : top * s + height, left * s : left * s + width].float()

    def cost(self, x_hat: Tensor) -> Tensor:
        """lambda * pixels * D (`objective.distortion`), in bits: float32 [N], differentiable in x_hat."""
        return self.lmbda * self.pixels * self._distortion(x_hat)

    @functools.cached_property
    def _distortion(self) -> DistortionTo:
        return DistortionTo(self.x, self.blend, self.weights)

    @functools.cached_property
    def blend(self) -> Blend:
        """What the distortion is made of."""
        return Blend.of(self.header[:, 1], self.lmbda)


@dataclass
class _Terms:
    """What one pass tells: bits and cost float32 [N]; slopes of cost and of the bits that follow in context, changes of
    a latent's own bits where it rises and falls, float32 [N, c, h, w], all per level."""

    bits: Tensor
    cost: Tensor
    cost_slope: Tensor
    bits_slope: Tensor
    rise: Tensor
    fall: Tensor

    def put(self, members: Tensor, new: _Terms, chosen: Tensor, memory: float) -> None:
        """Take over the rows of `new` (of `members`) that are chosen, and average the slopes of all of them."""
        to = members[chosen]
        self.bits[to], self.cost[to] = new.bits[chosen], new.cost[chosen]
        self.rise[to], self.fall[to] = new.rise[chosen], new.fall[chosen]
        for mine, its in ((self.cost_slope, new.cost_slope), (self.bits_slope, new.bits_slope)):
            mine[members] = memory * mine[members] + (1.0 - memory) * its


@dataclass(frozen=True)
class Tuning:
    """What was found to gain (experiments/latent_search.py leaves them out one by one).

    Attributes:
        memory: weight of the gradients before.
        context: trust in the gradient through P's context, which is far from linear over a whole level.
        steep: share of a slope that the curvature takes back over a level at least: no latent is wrong by more.
        local_ridge: squared levels of rounding at the mean curvature that are mixed into each place's regression.
        spending: what bits count that a move adds, at mu = 0, 4 and 8, linear between.
    """

    memory: float = 0.5
    context: float = 0.5
    steep: float = 0.5
    local_ridge: float = 0.5
    spending: tuple[float, float, float] = (1.0, 2.0, 5.0)


class LatentSearch:
    """The search of some regions; see the module. The best latents so far are always at hand.

    Args:
        transform, probability: networks without gradients of their own.
        regions: what to code.
        aims: share of its first bits that each region should come to, or None: the least J is sought, with bits that
            weigh 1.
        autocast: bfloat16 in the networks; None: where the device is fast at it.
        tuning: see there.
    """

    def __init__(
        self,
        transform: Transform,
        probability: FloatModel,
        regions: Regions,
        *,
        aims: Sequence[float | None] = (),
        autocast: bool | None = None,
        tuning: Tuning = Tuning(),
    ) -> None:
        self.tuning = tuning
        self.transform, self.probability, self.regions = transform, probability, regions
        device = regions.x.device
        self.autocast = ops.bf16_pays(device) if autocast is None else autocast
        b = regions.header[:, 2].to(device)
        self._b = b
        self._level = torch.exp2(8.0 - b.float())[:, None, None, None]
        self.quantiser = transform.quantiser
        self.z = self.quantiser.to_levels(regions.y, b).contiguous()
        self.beta = regions.x.new_ones(len(regions))
        self._aims = {i: aim for i, aim in enumerate(aims) if aim is not None}
        self._weighed: set[int] = set()
        price = np.interp(regions.header[:, 1].tolist(), list(METRICS.values()), tuning.spending)
        self._spending = torch.from_numpy(price).to(device, torch.float32)[:, None, None, None]
        self._excess: Tensor | None = None  # bits that iterations add beyond what is predicted, float32 [N]
        self.passes = 0
        self.iterations = 0
        self._first: tuple[Tensor, Tensor] | None = None
        self.damping = regions.x.new_full((len(regions),), _DAMPING)
        self._idle = torch.zeros(len(regions), dtype=torch.int64, device=device)

    @functools.cached_property
    def _terms(self) -> _Terms:
        """Of the best latents; the first pass runs when they are first asked for."""
        terms = self._measure(self.regions, self.z, self._b)
        self._first = terms.bits.clone(), terms.cost.clone()
        return terms

    @property
    def start(self) -> tuple[Tensor, Tensor]:
        """(bits, cost) where the search began, float32 [N] each."""
        assert self._terms is not None and self._first is not None
        return self._first

    @property
    def bits(self) -> Tensor:
        """Of the best latents, under the float P: float32 [N]."""
        return self._terms.bits

    @property
    def cost(self) -> Tensor:
        """lambda * pixels * D of the best latents, in bits: float32 [N]."""
        return self._terms.cost

    def symbols(self) -> Tensor:
        """The best latents as the coder takes them: [N, c, h, w] of the quantiser's dtype."""
        return self.quantiser.quantise(self.z, self._b)

    def run(self, iterations: int, go_on: Callable[[], bool] = lambda: True) -> None:
        """Search on; the last iterations steer for the aims.

        Args:
            iterations: how many at most.
            go_on: asked before every iteration, for time limits and progress.
        """
        for left in range(iterations, 0, -1):
            if left <= min(iterations // 2, _STEERED):
                for i, aim in self._aims.items():
                    self._spending[i] = self._spending[i].clamp_max(_SPENDING_LATE)  # for the weight says it, too
                    self._weigh(i, 2.0 / (left + 1.0) * (aim * float(self.start[0][i]) - float(self.bits[i])))
            members = ((self._idle < _PATIENCE) & (self.damping < _MOST_DAMPING)).nonzero().flatten()
            if not len(members) or not go_on():
                break
            self._iterate(members)

    def _weigh(self, i: int, change: float) -> None:
        """Let bits of region i weigh as much as makes the next iteration add `change` bits, by its predictions: those
        are known for every weight before any network runs. So the region has not converged."""
        if i not in self._weighed:  # afterwards the damping is what failed and successful iterations made it
            self.damping[i] = self.damping[i].clamp_max(_DAMPING)
            self._weighed.add(i)
        self._idle[i] = 0
        member = torch.tensor([i], device=self.z.device)
        excess = 0.0 if self._excess is None else float(self._excess[i])
        low, high = (math.log(beta) for beta in _BETAS)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            self.beta[i] = math.exp(middle)
            gain, rises = self._gains(member)
            moved, _ = _best_share(gain, self._share(member))
            too_few = float(self._bits_of(member, moved, rises)) + excess < change
            low, high = (low, middle) if too_few else (middle, high)

    @torch.inference_mode(False)
    def steer(self, i: int, change: float) -> None:
        """One iteration of region i that adds about `change` bits, at least cost: how a rate is approached."""
        self._weigh(i, change)
        self._iterate(torch.tensor([i], device=self.z.device))

    def _share(self, members: Tensor) -> Tensor:
        """Of the moves that promise a gain, how many the next iteration makes: float32 [n]."""
        return _SHARE * (_DAMPING / self.damping[members]).clamp_max(1.0)

    def _bits_of(self, members: Tensor, moved: Tensor, rises: Tensor) -> Tensor:
        """Bits that moves [n, c, h, w] are predicted to add, float32 [n]."""
        t = self._terms
        context = self.tuning.context * t.bits_slope[members]
        bits = torch.where(rises, t.rise[members] + context, t.fall[members] - context)
        return torch.where(moved, bits, 0.0).sum(dim=(1, 2, 3))

    def _iterate(self, members: Tensor) -> None:
        self.iterations += 1
        gain, rises = self._gains(members)
        moved, predicted = _best_share(gain, self._share(members))
        nothing = ~moved.flatten(1).any(dim=1)  # so much damping that no move promises anything
        if bool(nothing.all()):
            self.damping[members] *= 0.5
            self._idle[members] += 1
            return
        z = self._moved(members, moved, rises)
        new = self._measure(self.regions.pick(members), z, self._b[members])
        old = self.beta[members] * self._terms.bits[members] + self._terms.cost[members]
        change = self.beta[members] * new.bits + new.cost - old
        better = change < 0
        ratio = change / predicted.clamp_max(-1e-6)
        # Tensors, since `where` of two numbers has PyTorch's default dtype, which is the caller's to choose.
        factor = torch.where(ratio > 0.2, torch.ones_like(ratio), math.sqrt(_MORE))
        factor = torch.where(ratio > 0.5, _LESS, factor)
        factor = torch.where(better, factor, _MORE)
        self.damping[members] *= torch.where(nothing, 0.5, factor)
        idle = nothing | (better & (change > -_LEAST_GAIN * old.abs()))
        self._idle[members] += idle.long()
        self._idle[members[better & ~idle]] = 0
        self.z[members[better]] = z[better]
        excess = new.bits - self._terms.bits[members] - self._bits_of(members, moved, rises)
        if self._excess is None:
            self._excess = torch.zeros_like(self.beta)
            self._excess[members] = excess
        else:
            self._excess[members] = 0.5 * (self._excess[members] + excess)
        self._terms.put(members, new, better, self.tuning.memory)

    def offers(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """What each latent of region i could do to save bits.

        Returns:
            price of the better of its two moves, cost per bit saved, infinite where neither is to be had; bits saved;
            whether it is the rise. All [c, h, w].
        """
        t = self._terms
        slope, context = t.cost_slope[i], self.tuning.context * t.bits_slope[i]
        bend = self._bend(slope, self.curvature[i], self.damping[i])
        prices, amounts = [], []
        for own, direction in ((t.rise[i], 1.0), (t.fall[i], -1.0)):
            saved, cost = -own - direction * context, direction * slope + bend
            price = torch.where(saved > _LEAST_SAVING, cost / saved, float("inf"))
            prices.append(price.masked_fill(price > _HIGHEST_PRICE, float("inf")))
            amounts.append(saved)
        rises = prices[0] < prices[1]
        price = torch.minimum(prices[0], prices[1])
        if self.regions.kept is not None:
            price = price.masked_fill(~self.regions.kept[i], float("inf"))
        return price, torch.where(rises, amounts[0], amounts[1]), rises

    def force(self, i: int, moved: Tensor, rises: Tensor) -> None:
        """Make these moves of region i, whatever they do to J; what was moved is not offered again."""
        level = self._level[i]
        self.z[i] = torch.where(moved, self.z[i] + torch.where(rises, level, -level), self.z[i])
        for change in (self._terms.rise, self._terms.fall):
            change[i].masked_fill_(moved, float("inf"))

    def _gains(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted change of J of each latent's better move [n, c, h, w], and whether it is the rise."""
        t = self._terms
        beta = self.beta[members][:, None, None, None]
        slope = t.cost_slope[members]
        bend = self._bend(slope, self.curvature[members], self.damping[members][:, None, None, None])
        context = self.tuning.context * t.bits_slope[members]
        spending = self._spending[members]
        rise, fall = (
            beta * torch.where(bits > 0.0, spending * bits, bits) + direction * slope + bend
            for bits, direction in ((t.rise[members] + context, 1.0), (t.fall[members] - context, -1.0))
        )
        gain = torch.minimum(rise, fall)
        kept = self.regions.kept
        if kept is not None:
            gain = gain.masked_fill(~kept[members], float("inf"))
        return gain, rise < fall

    def _bend(self, slope: Tensor, curvature: Tensor, damping: Tensor) -> Tensor:
        """What curvature adds to the cost of a move by one level; never so much that a slope alone cannot pay."""
        share = self.tuning.steep
        steep = torch.where(damping <= _DAMPING, share * damping, 1.0 - (1.0 - share * _DAMPING) * _DAMPING / damping)
        return torch.maximum(0.5 * damping * curvature, steep * slope.abs())

    def _moved(self, members: Tensor, moved: Tensor, rises: Tensor) -> Tensor:
        level = self._level[members]
        step = torch.where(rises, level, -level)
        return torch.where(moved, self.z[members] + step, self.z[members])

    def _measure(self, regions: Regions, z: Tensor, b: Tensor) -> _Terms:
        """Rate, distortion and their derivatives at latents z [n, c, h, w]."""
        self.passes += 1
        level = torch.exp2(8.0 - b.float())[:, None, None, None]
        leaf = z.detach().clone().requires_grad_()
        with torch.enable_grad():
            with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                x_hat = regions.decode(self.transform, leaf)
            cost = regions.cost(x_hat)
            (cost_slope,) = torch.autograd.grad(cost.sum(), leaf)
            del x_hat
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            rate = self.probability.terms(z, regions.header)
        return _Terms(rate.bits, cost.detach(), cost_slope * level, rate.slope, rate.rise, rate.fall)

    @functools.cached_property
    def curvature(self) -> Tensor:
        """Second derivative of the cost per level, [N, c, h, w]: the regression of the slope on the rounding error.

        One factor per channel times one per place: MS-SSIM is many times more sensitive in flat parts of a picture.
        """
        error = (self.z - self.regions.y) / self._level
        error = torch.where(error.abs() <= 0.5, error, 0.0)  # not where the range of levels cut a latent
        product, square = self._terms.cost_slope * error, error.square()
        mean = product.sum(dim=(1, 2, 3)) / square.sum(dim=(1, 2, 3)).clamp_min(1e-6)
        mean = mean.clamp_min(1e-3)[:, None, None, None]
        channel = _regression(product.sum(dim=(2, 3), keepdim=True), square.sum(dim=(2, 3), keepdim=True), mean)
        local = (product.sum(dim=1, keepdim=True), (channel * square).sum(dim=1, keepdim=True))
        slope, weight = (F.avg_pool2d(part, _NEARBY, 1, _NEARBY // 2, count_include_pad=False) for part in local)
        return channel * _regression(slope, weight, torch.ones_like(mean), self.tuning.local_ridge * mean)


def _regression(product: Tensor, square: Tensor, prior: Tensor, ridge: Tensor | float = _RIDGE) -> Tensor:
    """product / square, drawn towards the prior and not below a third of it."""
    return ((product + ridge * prior) / (square + ridge)).maximum(0.3 * prior)


def _best_share(gain: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The best of each region's negative entries, a share of them: bool like gain, and the sum of what is taken."""
    moved, predicted = torch.zeros_like(gain, dtype=torch.bool), gain.new_zeros(len(gain))
    for i, (row, share) in enumerate(zip(gain, shares.tolist())):
        candidates = row[row < 0]
        if len(candidates):
            limit = candidates.kthvalue(max(1, int(share * len(candidates)))).values
            moved[i] = row <= limit
            predicted[i] = candidates[candidates <= limit].sum()
    return moved, predicted


@torch.inference_mode(False)
def trim_rate(searches: Sequence[tuple[LatentSearch, int]], saving: float) -> float:
    """Move latents of one picture so that about so many bits are saved, those first that cost least per bit.

    No network runs: the moves are chosen by the predictions of the search, so a few per cent of the rate are the most
    that this is good for (`LatentSearch.steer` goes further). `bits` and `cost` of the searches stay those of the
    latents before.

    Args:
        searches: (search, number of the region in it) of every tile of the picture.
        saving: bits, positive.
    Returns:
        The saving that is predicted; 0 where no move can do it. The searches hold the new latents.
    """
    offers = [search.offers(i) for search, i in searches]
    price = torch.cat([price[price.isfinite()] for price, _, _ in offers])
    amount = torch.cat([amount[price.isfinite()] for price, amount, _ in offers]).double()
    if not len(price):
        return 0.0
    order = price.sort(stable=True).indices
    total = amount[order].cumsum(dim=0)
    count = min(int((total < saving).sum()) + 1, len(order))
    chosen = torch.zeros_like(price, dtype=torch.bool)
    chosen[order[:count]] = True
    parts = chosen.split([int(price.isfinite().sum()) for price, _, _ in offers])
    for (search, i), (prices, _, rises), mine in zip(searches, offers, parts):
        moved = torch.zeros_like(rises)
        moved[prices.isfinite()] = mine
        search.force(i, moved, rises)
    return float(total[count - 1])
