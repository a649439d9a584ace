"""The fixed validation pictures: centres of photographs, and pictures drawn by code, each kind under its name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from l2c.train.data import centre_crops, describe
from l2c.train.drawn import KINDS, WITH_PHOTO, draw

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


def drawn_pictures(count: int, size: int, photos: Sequence[Tensor] = ()) -> list[Tensor]:
    """Pictures drawn by code: picture i depends on i, size and its photograph alone.

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
        pixels = draw(kind, size, np.random.default_rng([_SALT, i]), photo)
        made.append(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())
    return made
