"""ICC profiles: made from what a file says in other words (gamma, chromaticities, cICP), and applied.

Pillow's ImageCms applies profiles but makes none from chromaticities, so this writes the least that ICC.1:2010 (version
4.3) asks of a display profile: white point, colorants adapted to D50 by Bradford's transform, one parametric curve.
"""

from __future__ import annotations

import io
import struct
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from l2c.errors import UnsupportedError

# x, y of white, red, green, blue: the order of PNG's cHRM.
Chromaticities: TypeAlias = tuple[float, float, float, float, float, float, float, float]
# Parameters of an ICC parametric curve, 1 (Y = X^g) or 5 (Y = (a X + b)^g from d on, c X below): g, a, b, c, d.
Curve: TypeAlias = tuple[float, ...]

_D65 = (0.3127, 0.3290)
_C = (0.310, 0.316)
SRGB: Chromaticities = (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_BT709_CURVE: Curve = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_SAME_GAMMA, _SAME_POINT = 0.002, 0.003  # differences that the rounding of common writers makes

# Code points of ITU-T H.273, Tables 2 and 3.
_PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
_TRANSFERS: dict[int, Curve] = {
    1: _BT709_CURVE,
    4: (2.2,),
    5: (2.8,),
    6: _BT709_CURVE,
    8: (1.0,),
    13: SRGB_CURVE,
    14: _BT709_CURVE,
    15: _BT709_CURVE,
}
_HDR = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}

# Bradford's cone responses, and the white of ICC's connection space.
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])


def from_gamma(gamma: float | None, chromaticities: Chromaticities | None, grey: bool) -> bytes | None:
    """The profile that PNG's gAMA and cHRM describe; None where it is sRGB as near as writers round it.

    Args:
        gamma: gAMA, the exponent of encoding, such as 0.45455; None: sRGB's curve.
        chromaticities: cHRM; None: sRGB's.
        grey: for a grey picture; chromaticities do not matter then.
    Raises:
        ValueError: no curve or colours that a display could have.
    """
    if gamma is not None and not 0.1 <= gamma <= 10:
        raise ValueError(f"a gamma of {gamma:g}")
    srgb_curve = gamma is None or abs(gamma - 0.45455) <= _SAME_GAMMA
    points = SRGB if chromaticities is None else chromaticities
    srgb_points = grey or max(abs(a - b) for a, b in zip(points, SRGB)) <= _SAME_POINT
    if srgb_curve and srgb_points:
        return None
    curve = SRGB_CURVE if gamma is None else (1 / gamma,)
    return grey_profile(curve) if grey else rgb_profile(curve, points)


def from_code_points(primaries: int, transfer: int, matrix: int, full_range: int, grey: bool) -> bytes | None:
    """The profile that code points of ITU-T H.273 (PNG's cICP) describe; None for sRGB.

    Raises:
        UnsupportedError: PQ or HLG, which 8 bits without tone mapping cannot show, or samples in narrow range.
        ValueError: code points that have no profile here, or are unspecified.
    """
    if transfer in _HDR:
        raise UnsupportedError(
            f"its colours are {_HDR[transfer]}, high dynamic range, which is not read: convert it to SDR (tone mapping)"
        )
    if not full_range:
        raise UnsupportedError("its samples are in narrow (video) range, which is not read: convert it to full range")
    if matrix or primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        raise ValueError(f"code points {primaries}/{transfer}/{matrix}")
    if transfer == 13 and (primaries == 1 or grey):
        return None
    return grey_profile(_TRANSFERS[transfer]) if grey else rgb_profile(_TRANSFERS[transfer], _PRIMARIES[primaries])


def rgb_profile(curve: Curve, chromaticities: Chromaticities) -> bytes:
    """A matrix profile, about 500 bytes.

    Args:
        curve: of all three channels, from the samples to light.
        chromaticities: x, y of white, red, green, blue.
    Raises:
        ValueError: points that are no three colours around a white.
    """
    points = np.asarray(chromaticities, np.float64).reshape(4, 2)
    if not (np.isfinite(points).all() and (points[:, 1] > 0.001).all() and (np.abs(points) <= 2).all()):
        raise ValueError("chromaticities that no colours have")
    xyz = np.stack([points[:, 0] / points[:, 1], np.ones(4), (1 - points.sum(axis=1)) / points[:, 1]])
    white, colours = xyz[:, 0], xyz[:, 1:]
    if abs(np.linalg.det(colours / np.linalg.norm(colours, axis=0))) < 1e-4:
        raise ValueError("chromaticities of one line")
    weights = np.linalg.solve(colours, white)
    cones = _BRADFORD @ white
    if (weights <= 0).any() or (cones <= 0).any():
        raise ValueError("a white outside its colours")
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / cones) @ _BRADFORD
    colorants = adapted @ (colours * weights)
    trc = _curve(curve)
    tags = {b"wtpt": _xyz(_D50), b"chad": _fixed(b"sf32", adapted.ravel())}
    tags |= {name: _xyz(colorants[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return _profile(b"RGB ", tags | {b"rTRC": trc, b"gTRC": trc, b"bTRC": trc})


def grey_profile(curve: Curve) -> bytes:
    """A grey profile with this curve from the samples to light, about 300 bytes."""
    return _profile(b"GRAY", {b"wtpt": _xyz(_D50), b"kTRC": _curve(curve)})


def colour_space(icc: bytes) -> str:
    """What samples a profile is for: "RGB", "GRAY", "CMYK", ..."""
    return icc[16:20].decode("latin-1").strip()


def to_srgb(image: Image.Image, icc: bytes) -> npt.NDArray[np.uint8] | None:
    """The picture's colours in sRGB, perceptual intent; None where the profile is sRGB but for rounding.

    Args:
        image: mode RGB, or L with a grey profile.
    Returns:
        uint8 [H, W, 3].
    Raises:
        ValueError: the profile is broken or for other samples.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        transform: Any = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        chart = _chart().convert(image.mode)
        shown = np.asarray(ImageCms.applyTransform(chart, transform), np.int16)
        if np.abs(shown - np.asarray(chart.convert("RGB"), np.int16)).max() <= 2:
            return None
        return np.array(ImageCms.applyTransform(image, transform))
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _chart() -> Image.Image:
    """Colours all over the cube and every grey."""
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return Image.fromarray(np.concatenate([cube, greys])[None])


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A display profile with these tags, a name and a notice; tags of equal data share it."""
    tags = {b"desc": _text("gamma, chromaticities"), b"cprt": _text("CC0"), **tags}
    table, bodies, places = b"", b"", dict[bytes, int]()
    start = 128 + 4 + 12 * len(tags)
    for tag, body in tags.items():
        if body not in places:
            places[body] = start + len(bodies)
            bodies += body + bytes(-len(body) % 4)
        table += struct.pack(">4sII", tag, places[body], len(body))
    header = struct.pack(
        ">I4sI4s4s4s6H4s4sI4sI8sI3i",
        start + len(bodies),
        b"\0" * 4,
        0x04300000,
        b"mntr",
        space,
        b"XYZ ",
        *(2026, 1, 1, 0, 0, 0),  # always the same, so that the same picture gives the same file
        b"acsp",
        b"\0" * 4,
        0,
        b"\0" * 4,
        0,
        b"\0" * 8,
        0,
        *(round(float(value) * 65536) for value in _D50),
    )
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, len(encoded), 28) + encoded


def _xyz(values: npt.NDArray[np.float64]) -> bytes:
    return _fixed(b"XYZ ", values)


def _curve(curve: Curve) -> bytes:
    kind = {1: 0, 5: 3}[len(curve)]
    return b"para" + struct.pack(">IHH", 0, kind, 0) + _fixed(b"", np.asarray(curve))[4:]


def _fixed(type_: bytes, values: npt.NDArray[np.float64]) -> bytes:
    """Signed 16.16 numbers after their type and four zeros."""
    return type_ + bytes(4) + b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)
