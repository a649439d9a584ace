"""Batches made on the training device: pictures in its memory, and crops, conditions and noise by vectorised code.

Nothing here waits for the device or copies from the host, so a whole step can lie in a CUDA graph: all that changes
from step to step is an int64 tensor that counts them. Every random number is a hash of (seed, salt, step, what for,
position in the global batch), computed in integers: the same on every device, and whatever the number of processes.

A batch has a fixed composition (`Composition`): which metric a place has, and whether its picture is drawn, depends on
the place alone; qualities are stratified within each metric. So every step holds all metrics and the whole range of
rates, and which pictures need which term of the loss is known on the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l2c.errors import ConfigError
from l2c.format.levels import MAX_MU, METRICS
from l2c.objective import Needs
from l2c.train.config import DataConfig, StageConfig

_MASK = 0xFFFFFFFF
_TAPS = 3  # a crop that is scaled down averages 3x3 samples a pixel: enough down to a third
# (mu, share of a batch); the rest has any mu.
MU_SHARES = ((METRICS["psnr"], 0.25), (METRICS["mixed"], 0.375), (METRICS["msssim"], 0.25))


def hashed(counters: Tensor, *keys: int | Tensor) -> Tensor:
    """Random integers 0..2^32 - 1, a pure function of `counters` and `keys`.

    PCG's RXS-M-XS permutation (O'Neill 2014), once for every key.

    Args:
        counters: int64, any shape, 0..2^32 - 1; the result has this shape.
        keys: integers or int64 tensors [].
    """
    x = counters & _MASK
    for key in (*keys, 0):
        x = ((x ^ (key & _MASK)) * 747796405 + 2891336453) & _MASK
        x = (((x >> ((x >> 28) + 4)) ^ x) * 277803737) & _MASK
        x = (x >> 22) ^ x
    return x


def uniform(counters: Tensor, *keys: int | Tensor) -> Tensor:
    """Random float32 in [0, 1), 24 bits each; see `hashed`."""
    return (hashed(counters, *keys) >> 8).float() * 2.0**-24


def _span(places: Iterable[int]) -> range:
    """Places that follow each other, as a range."""
    found = list(places)
    return range(found[0], found[-1] + 1) if found else range(0)


@dataclass(frozen=True)
class Composition:
    """What each place of a global batch holds: pictures of one metric stand together, in the order of their mu.

    Attributes:
        mu: metric mix of each place, int 0..8.
        strata: (first, count) of the group of places with one metric in which this place's quality is stratified.
        drawn: whether the picture is a drawn one, in step 0; which places these are moves on from step to step.
    """

    mu: tuple[int, ...]
    strata: tuple[tuple[int, int], ...]
    drawn: tuple[bool, ...]

    @classmethod
    def of(cls, stage: StageConfig, drawn_share: float) -> Composition:
        """The composition for a stage's batch."""
        batch = stage.batch
        if stage.mu is not None:
            groups = [(stage.mu, batch)]
        else:
            counts = [round(share * batch) for _, share in MU_SHARES]
            groups = [(mu, count) for (mu, _), count in zip(MU_SHARES, counts)]
            others = [mu for mu in range(MAX_MU + 1) if mu not in dict(MU_SHARES)]
            rest = max(0, batch - sum(counts))
            groups += [(others[(k * len(others)) // rest], 1) for k in range(rest)]
            groups.sort()
        mus = [mu for mu, count in groups for _ in range(count)][:batch]
        firsts = {mu: mus.index(mu) for mu in set(mus)}
        strata = tuple((firsts[mu], mus.count(mu)) for mu in mus)
        marks = [int((j + 1) * drawn_share + 0.5) > int(j * drawn_share + 0.5) for j in range(batch)]
        return cls(tuple(mus), strata, tuple(marks))


class Bank:
    """Pictures in a device's memory, one behind the other.

    Attributes:
        photographs: how many photographs there are; behind them come drawn pictures.
        pixels: uint8 [total, 3], the pixels of all pictures, row by row.
        starts, heights, widths: int64 [P], where each picture lies in `pixels`, and its size.
    """

    def __init__(self, photographs: Sequence[Tensor], device: torch.device, drawn: Sequence[Tensor] = ()) -> None:
        """Take over pictures uint8 [3, H, W]. Raises ConfigError where there is no photograph."""
        if not photographs:
            raise ConfigError("there are no pictures to train on")
        self.photographs = len(photographs)
        pictures = [*photographs, *drawn]
        sizes = torch.tensor([picture.shape[1:] for picture in pictures])
        areas = sizes.prod(dim=1)
        self.pixels = torch.empty(int(areas.sum()), 3, dtype=torch.uint8, device=device)
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), areas.cumsum(0)[:-1]))
        for picture, start, area in zip(pictures, starts.tolist(), areas.tolist()):
            self.pixels[start : start + area] = picture.permute(1, 2, 0).reshape(-1, 3).to(device)
        self.starts, self.heights, self.widths = starts.to(device), sizes[:, 0].to(device), sizes[:, 1].to(device)

    def __len__(self) -> int:
        return len(self.starts)

    def crops(self, index: Tensor, side: int, span: Tensor, down: Tensor, across: Tensor, turn: Tensor) -> Tensor:
        """Square crops, scaled down by averaging, mirrored and turned.

        Args:
            index: int64 [N], which picture. side: of the crops that come out, in pixels.
            span: float32 [N], side of the square that a crop is made of, in the picture's pixels; `side` takes the
                pixels as they are, up to three times that many are averaged; cut to what the picture has.
            down, across: float32 [N] in [0, 1), where the square lies.
            turn: int64 [N], 0..7: bit 0 mirrors, bits 1 and 2 count quarter turns.
        Returns:
            uint8 [N, 3, side, side], channels-last.
        """
        height, width, start = self.heights[index], self.widths[index], self.starts[index]
        span = torch.minimum(span, torch.minimum(height, width).float())
        top = (down * (height - span + 1.0).floor()).floor()[:, None, None]
        left = (across * (width - span + 1.0).floor()).floor()[:, None, None]
        step = (span / side)[:, None, None]
        i, j = self._turned(side, turn)
        total = torch.zeros(len(index), side, side, 3, device=self.pixels.device)
        limit_y, limit_x = (height - 1)[:, None, None], (width - 1)[:, None, None]
        for a in range(_TAPS):
            y = torch.minimum((top + (i + (a + 0.5) / _TAPS) * step).long(), limit_y)
            row = start[:, None, None] + y * width[:, None, None]
            for b in range(_TAPS):
                x = torch.minimum((left + (j + (b + 0.5) / _TAPS) * step).long(), limit_x)
                total += self.pixels[row + x]
        return (total / _TAPS**2 + 0.5).to(torch.uint8).permute(0, 3, 1, 2)

    @staticmethod
    def _turned(side: int, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column that each pixel of a turned crop comes from: float32 [N, side, side] each."""
        places = torch.arange(side, device=turn.device, dtype=torch.float32)
        i, j = places[None, :, None], places[None, None, :]
        turn = turn[:, None, None]
        j = torch.where(turn & 1 > 0, side - 1 - j, j)
        swap, flip = turn & 2 > 0, turn & 4 > 0
        i, j = torch.where(swap, j, i), torch.where(swap, i, j)
        return torch.where(flip, side - 1 - i, i), torch.where(flip, side - 1 - j, j)


class DeviceBatches:
    """Makes this process's share of every batch on the device.

    Attributes:
        composition: of the global batch.
        needs: which of this process's pictures need which MS-SSIM.

    Args:
        bank: photographs, which are cut, scaled and turned, and drawn pictures, which are cut only.
        data, stage: see `DataConfig`, `StageConfig`.
        bits: of the model. latent: (channels, rows, columns) of a crop's latents, for the noise.
        seed, salt: of everything random. rank, world: this process.
        steps: the qualities that the model has; () for all.
    """

    def __init__(
        self,
        bank: Bank,
        data: DataConfig,
        stage: StageConfig,
        bits: int,
        latent: tuple[int, int, int],
        seed: int,
        salt: int,
        rank: int = 0,
        world: int = 1,
        steps: Sequence[int] = (),
    ) -> None:
        device = bank.pixels.device
        drawn = len(bank) - bank.photographs
        self.composition = Composition.of(stage, data.drawn_share if drawn else 0.0)
        self._bank = bank
        self._data, self._stage, self._bits, self._seed, self._salt = data, stage, bits, seed, salt
        mine = range(rank, stage.batch, world)

        def column(values: Sequence[int]) -> Tensor:
            return torch.tensor([values[j] for j in mine], device=device)

        self._steps = torch.tensor(list(steps), device=device, dtype=torch.int64)
        self._places = torch.tensor(list(mine), device=device)
        self._mu = column(self.composition.mu)
        self._first = column([first for first, _ in self.composition.strata])
        self._count = column([count for _, count in self.composition.strata])
        self._drawn = torch.tensor(self.composition.drawn, device=device)
        mus = [self.composition.mu[j] for j in mine]
        middle, last = METRICS["mixed"], METRICS["msssim"]
        self.needs = Needs(
            luma=_span(k for k, mu in enumerate(mus) if 0 < mu < last),
            rgb=_span(k for k, mu in enumerate(mus) if mu > middle),
        )
        size = latent[0] * latent[1] * latent[2]
        self._latent = latent
        counters = self._places[:, None] * size + torch.arange(size, device=device)[None]
        self._noise_counters = counters.view(-1, *latent)

    def conditions(self, step: Tensor) -> Tensor:
        """quality, mu and b of each picture: int64 [N, 3]. step: int64 []."""
        stage = self._stage
        # A group's places take its strata in turn, another shift in each step.
        shift = hashed(self._first, self._seed, self._salt, step, 1)
        stratum = (self._places - self._first + shift) % self._count
        share = (stratum + self._random(step, 2)) / self._count
        if len(self._steps):
            quality = self._steps[(share * len(self._steps)).long().clamp_max(len(self._steps) - 1)]
        else:
            quality = stage.quality_min + (share * (stage.quality_max - stage.quality_min + 1)).long()
        low = min(stage.bits_min, self._bits)
        fewer = low + (self._random(step, 3) * (self._bits - low + 1)).long()
        b = torch.where(self._random(step, 4) < stage.random_bits, fewer, self._bits)
        return torch.stack((quality.clamp_max(stage.quality_max), self._mu, b), dim=1)

    def pictures(self, step: Tensor, quality: Tensor) -> Tensor:
        """Crops uint8 [N, 3, crop, crop], channels-last, for pictures of quality int64 [N]."""
        data, side = self._data, self._data.crop
        factor = data.scale_min + (data.scale_max - data.scale_min) * self._random(step, 5)
        scaled = (quality > data.clean_above) | (self._random(step, 6) < data.scaled_share)
        span = torch.where(scaled, (side / factor).round(), float(side))
        place, down, across = (self._random(step, k) for k in (7, 8, 9))
        turn = (8.0 * self._random(step, 10)).long()
        photographs = self._bank.photographs
        drawn = self.drawn(step)
        chosen = photographs + (place * (len(self._bank) - photographs)).long()
        index = torch.where(drawn, chosen, (place * photographs).long())
        span, turn = torch.where(drawn, float(side), span), torch.where(drawn, 0, turn)
        return self._bank.crops(index, side, span, down, across, turn)

    def drawn(self, step: Tensor) -> Tensor:
        """Which pictures are drawn: bool [N]. A picture's metric depends on its place, so the drawn places move."""
        shift = hashed(step, self._seed, self._salt, 12)
        return self._drawn[(self._places + shift) % len(self._drawn)]

    def noise(self, step: Tensor) -> Tensor:
        """float32 [N, c, h, w] in [-1/2, 1/2)."""
        return uniform(self._noise_counters, self._seed, self._salt, step, 11) - 0.5

    def _random(self, step: Tensor, purpose: int) -> Tensor:
        """float32 [N] in [0, 1)."""
        return uniform(self._places, self._seed, self._salt, step, purpose)
