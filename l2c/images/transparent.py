"""Colours under transparent pixels: nobody sees them, so they should cost nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from l2c.arrays import Alpha, UInt8Array


def fill_transparent(rgb: UInt8Array, alpha: Alpha) -> UInt8Array:
    """The picture with smooth colours where nothing is visible.

    Push and pull over a pyramid (Gortler et al. 1996, The Lumigraph, section 3.5): every level halves the sides and
    averages what is visible; on the way back what is not visible takes the coarser level's colour, between its cells
    linearly. Visible pixels keep their colours exactly.

    Args:
        rgb: uint8 [H, W, 3]. alpha: uint8 or uint16 [H, W]; 0 is invisible, any other value is visible.
    Returns:
        uint8 [H, W, 3]; `rgb` itself where everything or nothing is visible.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return rgb
    filled = _pull(rgb.astype(np.float32), visible.astype(np.float32))
    return np.where(visible[:, :, None], rgb, (filled + 0.5).astype(np.uint8))


def _pull(colours: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Colours [h, w, 3], those of weight 0 taken from coarser levels; at least one weight is positive."""
    if weights.min() > 0.0:
        return colours
    height, width = weights.shape
    odd = ((0, height % 2), (0, width % 2))
    w = np.pad(weights, odd).reshape((height + 1) // 2, 2, (width + 1) // 2, 2)
    weighted = np.pad(colours * weights[:, :, None], (*odd, (0, 0)))
    sums = weighted.reshape(*w.shape, 3).sum(axis=(1, 3))
    total = w.sum(axis=(1, 3))
    coarse = _pull(sums / np.maximum(total, 1e-9)[:, :, None], np.minimum(total, 1.0))
    fine = _doubled(_doubled(coarse, 0), 1)[:height, :width]
    share = weights[:, :, None]
    result: npt.NDArray[np.float32] = share * colours + (1.0 - share) * fine
    return result


def _doubled(x: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """Twice as many samples along an axis, three quarters of the nearer and one of the next coarse one each."""
    x = np.moveaxis(x, axis, 0)
    before, after = np.concatenate((x[:1], x[:-1])), np.concatenate((x[1:], x[-1:]))
    pair = np.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after), axis=1)
    return np.moveaxis(pair.reshape(-1, *x.shape[1:]), 0, axis)
