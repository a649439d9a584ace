"""How good decoded pixels are: PSNR and MS-SSIM over RGB and over Y, VMAF and VMAF-NEG, SSIMULACRA2, Butteraugli.

Colour: BT.709 with full range, see `l2c.metrics`. Y is not rounded for PSNR and MS-SSIM; VMAF reads 8-bit 4:4:4 planes.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import operator
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from l2c.arrays import UInt8Array
from l2c.errors import BackendError, L2CError, UnsupportedError
from l2c.evaluate.ffmpeg import run_ffmpeg
from l2c.metrics import CB_RANGE as _CB
from l2c.metrics import CR_RANGE as _CR
from l2c.metrics import LUMA as _LUMA
from l2c.metrics import msssim, psnr

_VMAF_MODELS = {"vmaf": "vmaf_v0.6.1", "vmaf-neg": "vmaf_v0.6.1neg"}
_BUTTERAUGLI = "butteraugli_main"


def to_ycbcr(rgb: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """RGB [H, W, 3] in [0, 1] -> Y, Cb, Cr, float64 [3, H, W] in [0, 1]; see the module."""
    red, green, blue = np.moveaxis(rgb.astype(np.float64), 2, 0)
    y = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return np.stack((y, (blue - y) / _CB + 0.5, (red - y) / _CR + 0.5))


def to_rgb(ycbcr: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The inverse: [3, H, W] -> float64 [H, W, 3], not clamped."""
    y, cb, cr = ycbcr.astype(np.float64)
    red, blue = y + _CR * (cr - 0.5), y + _CB * (cb - 0.5)
    return np.stack((red, (y - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1], blue), axis=2)


def to_planes(rgb: UInt8Array, bits: int = 8) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """uint8 [H, W, 3] -> full-range Y, Cb, Cr of so many bits: [3, H, W], uint8 up to 8 bits and uint16 above.

    Chroma has its zero at 2^(bits-1), as video coders have it.
    """
    most = (1 << bits) - 1
    planes = to_ycbcr(rgb / 255.0) * most
    planes[1:] += 0.5 * (1 << bits) - 0.5 * most
    rounded = np.clip(np.rint(planes), 0, most)
    return rounded.astype(np.uint8) if bits <= 8 else rounded.astype(np.uint16)


def from_planes(planes: npt.NDArray[np.unsignedinteger], bits: int = 8) -> UInt8Array:
    """The inverse of `to_planes`: uint8 [H, W, 3]."""
    most = (1 << bits) - 1
    values = planes.astype(np.float64)
    values[1:] -= 0.5 * (1 << bits) - 0.5 * most
    return np.clip(np.rint(to_rgb(values / most) * 255.0), 0, 255).astype(np.uint8)


def vmaf(original: UInt8Array, decoded: UInt8Array, names: Sequence[str] = ("vmaf",)) -> dict[str, float]:
    """VMAF (model v0.6.1, libvmaf through ffmpeg) of 8-bit 4:4:4 planes: 0..100.

    Args:
        original, decoded: uint8 [H, W, 3].
        names: "vmaf", "vmaf-neg" (the model that gives nothing for enhancement, such as more contrast), or both at
            the cost of one.
    Raises:
        BackendError: no ffmpeg with libvmaf is at hand.
    """
    height, width = original.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        inputs = []
        for name, pixels in (("decoded", decoded), ("original", original)):
            path = Path(folder, f"{name}.yuv")
            path.write_bytes(to_planes(pixels).tobytes())
            inputs += ["-f", "rawvideo", "-pix_fmt", "yuv444p", "-s", f"{width}x{height}", "-i", str(path)]
        log = Path(folder, "log.json")
        models = "|".join(f"version={_VMAF_MODELS[name]}\\:name={name}" for name in names)
        run_ffmpeg([*inputs, "-lavfi", f"libvmaf=log_fmt=json:log_path={log}:model='{models}'", "-f", "null", "-"])
        pooled = json.loads(log.read_text())["pooled_metrics"]
        return {name: float(pooled[name]["mean"]) for name in names}


def ssimulacra2(original: UInt8Array, decoded: UInt8Array) -> float:
    """SSIMULACRA 2.1 by the package `ssimulacra2`: at most 100. Raises BackendError: it is not installed."""
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ImportError:
        raise BackendError("the figure ssimulacra2 needs the package ssimulacra2: pip install 'l2c[eval]'") from None
    with tempfile.TemporaryDirectory() as folder:  # the package reads files
        return float(compute_ssimulacra2(*_saved(folder, original, decoded)))


def butteraugli(original: UInt8Array, decoded: UInt8Array) -> float:
    """Butteraugli's distance (libjxl's `butteraugli_main`, 80 nits), its 3-norm: 0 is equal, 1 just noticeable.

    The greatest value over the picture, which the program says, too, depends on one place and is not used.

    Raises:
        BackendError: the program is not at hand, or failed.
    """
    program = shutil.which(_BUTTERAUGLI)
    if program is None:
        raise BackendError(f"the figure butteraugli needs libjxl's {_BUTTERAUGLI} (Debian: libjxl-devtools)")
    with tempfile.TemporaryDirectory() as folder:
        command = [program, *_saved(folder, original, decoded), "--pnorm", "3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"^3-norm: ([0-9.]+(?:e[-+]?[0-9]+)?)$", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise BackendError(f"{_BUTTERAUGLI} failed: {(done.stderr or done.stdout).strip()[-200:] or 'no message'}")
    return float(found[1])


def _saved(folder: str, original: UInt8Array, decoded: UInt8Array) -> list[str]:
    """Paths of PNG files of both."""
    paths = []
    for name, pixels in (("original", original), ("decoded", decoded)):
        paths.append(str(Path(folder, f"{name}.png")))
        Image.fromarray(pixels).save(paths[-1], compress_level=1)
    return paths


class Pair:
    """A picture and what was decoded of it, with what several figures share.

    Args:
        original, decoded: uint8 [H, W, 3] of one shape.
        wanted: names of the figures that will be asked for.
    Raises:
        UnsupportedError: other shapes.
    """

    def __init__(self, original: UInt8Array, decoded: UInt8Array, wanted: Sequence[str] = ()) -> None:
        if original.shape != decoded.shape or original.ndim != 3 or original.shape[2] != 3:
            raise UnsupportedError(f"pictures of shapes {original.shape} and {decoded.shape} cannot be compared")
        self.original, self.decoded = original, decoded
        self._vmaf_models = [name for name in wanted if name in _VMAF_MODELS]

    @functools.cached_property
    def rgb(self) -> tuple[Tensor, Tensor]:
        """float32 [1, 3, H, W] in [0, 1], both."""
        first, second = (
            torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 255.0
            for pixels in (self.original, self.decoded)
        )
        return first, second

    @functools.cached_property
    def luma(self) -> tuple[Tensor, Tensor]:
        """float32 [1, 1, H, W] in [0, 1], both."""
        first, second = (
            torch.from_numpy(to_ycbcr(pixels / 255.0)[0].astype(np.float32))[None, None]
            for pixels in (self.original, self.decoded)
        )
        return first, second

    @functools.cached_property
    def vmaf(self) -> dict[str, float]:
        """Of the VMAF models that are wanted, in one pass."""
        return vmaf(self.original, self.decoded, self._vmaf_models)


def _same(value: float) -> float:
    return value


def _similarity_db(value: float) -> float:
    return -10.0 * float(np.log10(max(1.0 - value, 1e-9)))


@dataclass(frozen=True)
class Figure:
    """A figure of quality.

    Attributes:
        label: for axes and table heads; what stands before " (" is its short form.
        of: measures a pair. Raises BackendError where what it needs is not installed.
        compared: a value as it is drawn and compared, more being better.
        digits: behind the point, in tables.
    """

    label: str
    of: Callable[[Pair], float]
    compared: Callable[[float], float] = _same
    digits: int = 2


FIGURES = {
    "psnr-rgb": Figure("PSNR, RGB (dB)", lambda pair: float(psnr(*pair.rgb))),
    "psnr-y": Figure("PSNR, Y (dB)", lambda pair: float(psnr(*pair.luma))),
    "ms-ssim-rgb": Figure("MS-SSIM, RGB (dB)", lambda pair: float(msssim(*pair.rgb)), _similarity_db, 4),
    "ms-ssim-y": Figure("MS-SSIM, Y (dB)", lambda pair: float(msssim(*pair.luma)), _similarity_db, 4),
    "vmaf": Figure("VMAF", lambda pair: pair.vmaf["vmaf"]),
    "vmaf-neg": Figure("VMAF-NEG", lambda pair: pair.vmaf["vmaf-neg"]),
    "ssimulacra2": Figure("SSIMULACRA 2", lambda pair: ssimulacra2(pair.original, pair.decoded)),
    "butteraugli": Figure(
        "Butteraugli (3-norm, negative)", lambda pair: butteraugli(pair.original, pair.decoded), operator.neg
    ),
}
DEFAULT_FIGURES = tuple(FIGURES)[:5]


def measure(original: UInt8Array, decoded: UInt8Array, figures: tuple[str, ...]) -> dict[str, float]:
    """The figures asked for, by name.

    Args:
        original, decoded: uint8 [H, W, 3] of one shape.
        figures: of `FIGURES`: psnr-rgb, psnr-y (dB), ms-ssim-rgb, ms-ssim-y (0..1), vmaf, vmaf-neg, ssimulacra2,
            butteraugli (the less the better).
    Raises:
        UnsupportedError: an unknown figure, or other shapes. BackendError: what a figure needs is not installed.
    """
    for name in figures:
        if name not in FIGURES:
            raise UnsupportedError(f"there is no figure {name!r}: choose from {', '.join(FIGURES)}")
    pair, results = Pair(original, decoded, figures), {}
    for name in figures:
        try:
            results[name] = float(FIGURES[name].of(pair))
        except L2CError:
            raise
        except Exception as error:  # a figure may be anybody's
            raise BackendError(f"the figure {name} fails: {type(error).__name__}: {error}") from error
    return results


def in_db(name: str, value: float) -> float:
    """A figure as it is drawn and compared, more being better: MS-SSIM m as -10 log10(1 - m), Butteraugli's distance
    as its negative, everything else as it is."""
    return FIGURES[name].compared(value)


def package_version(name: str) -> str:
    """Version of an installed package, or "not installed"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
