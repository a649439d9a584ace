"""Training pictures held in memory as uint8, cropped on the fly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from l2c.errors import ConfigError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".avif", ".webp", ".tif", ".tiff", ".bmp"}


def list_pictures(folder: str | Path) -> list[Path]:
    """Picture files below `folder`, sorted. Raises ConfigError where there are none."""
    root = Path(folder)
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise ConfigError(f"no pictures below {root}")
    return files


class PictureSet:
    """All pictures of a folder, decoded once, each kept at full size and once scaled down.

    The training pictures carry the traces of a lossy codec (about 1.4 bpp AVIF); scaled down they lose them, so
    crops for the highest rates come from the small copies.
    """

    def __init__(self, folder: str | Path, crop: int, seed: int = 0, limit: int | None = None) -> None:
        """Decode every picture below `folder` whose sides are at least `crop` pixels. Raises ConfigError if none is."""
        files = list_pictures(folder)[:limit]
        with ThreadPoolExecutor(2) as pool:
            pairs = list(pool.map(lambda item: _decode(item[1], crop, seed + item[0]), enumerate(files)))
        self.full = [full for full, _ in pairs if full is not None]
        self.small = [small for _, small in pairs if small is not None]
        self.crop = crop
        if not self.full or not self.small:
            raise ConfigError(f"no picture below {folder} has both sides of at least {crop} pixels")

    def batch(self, rng: np.random.Generator, clean: np.ndarray) -> Tensor:
        """Random crops with random flips and quarter turns.

        Args:
            rng: source of randomness.
            clean: bool [N]; True takes the crop from a scaled-down picture.
        Returns:
            uint8 [N, 3, crop, crop].
        """
        crops = []
        for is_clean in clean:
            pictures = self.small if is_clean else self.full
            picture = pictures[rng.integers(len(pictures))]
            top = rng.integers(picture.shape[0] - self.crop + 1)
            left = rng.integers(picture.shape[1] - self.crop + 1)
            crop = np.rot90(picture[top : top + self.crop, left : left + self.crop], int(rng.integers(4)))
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def _decode(path: Path, crop: int, seed: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(full, scaled down by 0.5..0.8) as uint8 [H, W, 3]; None where smaller than the crop."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    factor = float(np.random.default_rng(seed).uniform(0.5, 0.8))
    factor = max(factor, crop / min(picture.size))
    full = np.asarray(picture) if min(picture.size) >= crop else None
    width, height = (max(crop, round(side * factor)) for side in picture.size)
    small = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)) if factor <= 0.9 else None
    return full, small
