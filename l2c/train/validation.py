"""Validation: the fixed pictures (centres of photographs, and pictures drawn by code), and the figures of networks on
them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from l2c import transforms
from l2c.format.levels import METRICS
from l2c.metrics import msssim, psnr
from l2c.objective import distortion as distortion_of
from l2c.train.config import VAL_LMBDAS, LossConfig
from l2c.train.data import centre_crops, describe
from l2c.train.drawn import KINDS, WITH_PHOTO, draw
from l2c.train.losses import Conditions, Networks, quality_of_lmbda, quantised_latents

_SALT = 0xFA1  # no training picture gets such a generator: theirs are seeded otherwise


def validation_set(
    sources: Sequence[str], size: int = 256, photos: int | None = None, drawn: int = 24
) -> dict[str, list[Tensor]]:
    """The same pictures in every run, whatever the recipe's seed.

    Args:
        sources: as for `Sampler`, one kind each, under its last name (a folder's, a list's); those that share a name
            are one kind.
        size: side in pixels.
        photos: at most so many of each source; all of them by default.
        drawn: how many are drawn by code, kind "drawn"; every one of `KINDS` in turn, those that show a photograph
            with one of the first source.
    Returns:
        For each kind in order of the sources, "drawn" last (left out where it would be empty): uint8
        [1, 3, size, size] each.
    Raises:
        ConfigError: as for `centre_crops`.
    """
    pictures: dict[str, list[Tensor]] = {}
    for source in sources:
        name = describe([source])["sources"][0]
        pictures.setdefault(name, []).extend(centre_crops([source], size, photos or sys.maxsize))
    made = drawn_pictures(drawn, size, next(iter(pictures.values()), []))
    return pictures | ({"drawn": made} if made else {})


def drawn_pictures(count: int, size: int, photos: Sequence[Tensor] = (), salt: int = 0) -> list[Tensor]:
    """Pictures drawn by code: picture i depends on i, size, salt and its photograph alone.

    Args:
        photos: uint8 [1, 3, h, w] each, shown by kinds that show one, in turn; without any, smooth colours are.
    Returns:
        uint8 [1, 3, size, size] each.
    """
    made = []
    for i in range(count):
        kind, photo = KINDS[i % len(KINDS)], None
        if kind in WITH_PHOTO and photos:
            photo = photos[i % len(photos)][0].permute(1, 2, 0).numpy()
        pixels = draw(kind, size, np.random.default_rng([_SALT + salt, i]), photo)
        made.append(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())
    return made


@torch.no_grad()
def validate(
    nets: Networks,
    pictures: list[Tensor],
    device: torch.device,
    lmbdas: Sequence[float] = VAL_LMBDAS,
    search: int = 0,
) -> list[dict[str, float]]:
    """Estimated rate (float P) and quality for each of the three metrics, at the qualities nearest to fixed lambdas.

    Args:
        pictures: uint8 [1, 3, H, W] each, all of one size.
        lmbdas: raw.
        search: iterations of the encoder's latent search.
    Returns:
        One row per (mu, quality): bpp, psnr in dB, msssim, and `loss`, the objective in bits per pixel with the
        default weights.
    """
    x = torch.cat(pictures).to(device).float() / 255.0
    rows = []
    for mu in METRICS.values():
        for quality in {quality_of_lmbda(lmbda, nets.config): None for lmbda in lmbdas}:
            x_hat, bpp, losses = coded(nets, x, quality, mu, search)
            figures = {"bpp": bpp, "psnr": psnr(x, x_hat), "msssim": msssim(x, x_hat), "loss": losses}
            rows.append({"mu": mu, "quality": quality} | {name: float(each.mean()) for name, each in figures.items()})
    return rows


@torch.no_grad()
def coded(nets: Networks, x: Tensor, quality: int, mu: int, search: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures float32 [N, 3, H, W] in [0, 1] after coding under one condition, latents and pixels rounded.

    Returns:
        x_hat like x; bits per pixel under the float P, and the objective in bits per pixel with the default weights,
        float32 [N] each.
    """
    cond = Conditions(*(torch.full((len(x),), v) for v in (quality, mu, nets.config.bits)))
    z, bits = latents_and_bits(nets, x, cond, search)
    x_hat = nets.transform.decoder(z, cond.vector(nets.config).to(x.device)).clamp(0, 1)
    x_hat = (x_hat[:, :, : x.shape[2], : x.shape[3]] * 255).round() / 255
    bpp = bits / (x.shape[2] * x.shape[3])
    distortion = distortion_of(x, x_hat, cond.blend(nets.config, LossConfig(), x.device))
    return x_hat, bpp, bpp + cond.lmbda(nets.config).to(x.device) * distortion


def mean_log_loss(rows: Sequence[Mapping[str, float]]) -> float:
    """Mean of ln(loss) over rows of `validate`: 100 times a difference is about the mean difference in percent."""
    return sum(math.log(row["loss"]) for row in rows) / len(rows)


@torch.no_grad()
def latents_and_bits(nets: Networks, x: Tensor, cond: Conditions, search: int = 0) -> tuple[Tensor, Tensor]:
    """Quantised latents float32 [N, c, h, w] of pictures [N, 3, H, W] in [0, 1], and their bits [N] under float P;
    after so many iterations of the encoder's latent search."""
    z = quantised_latents(nets, transforms.pad_to_multiple(x, nets.transform.s), cond, search)
    return z, nets.probability.num_bits(z, z, cond.header())
