"""A target rate -> the quality that meets it.

In this version the quality is the only knob: a secant search over log(rate) against quality, started from the
model's mean curve. Rate is monotone in quality up to small ripples, so the search keeps a bracket and its best file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from l2c.probability import MAX_QUALITY

TOLERANCE = 0.01  # stop as soon as the file is at most this much below the target
MAX_PROBES = 8
_FALLBACK_CURVE = ((0.0, 0.08), (MAX_QUALITY, 3.0))


@dataclass
class QualitySearch:
    """Search for one picture: ask `next_quality`, encode, tell `report`; repeat until `next_quality` is None.

    Attributes:
        target_bytes: size that the file must not exceed.
        pixels: of the picture, to read the curve.
        curve: (quality, mean bpp) points, rising in both.
        tolerance: share of the target that may stay unused.
    """

    target_bytes: float
    pixels: int
    curve: Sequence[tuple[float, float]]
    tolerance: float = TOLERANCE
    sizes: dict[int, int] = field(default_factory=dict)

    @property
    def best(self) -> int | None:
        """The quality of the largest file that fits, or None."""
        fitting = [q for q, size in self.sizes.items() if size <= self.target_bytes]
        return max(fitting, key=lambda q: (self.sizes[q], q), default=None)

    @property
    def next_quality(self) -> int | None:
        """Quality 0..1000 to try next, None when done."""
        fits = {q for q, size in self.sizes.items() if size <= self.target_bytes}
        low = max(fits, default=None)
        high = min((q for q in self.sizes if q not in fits and (low is None or q > low)), default=None)
        if low is not None and (
            low == MAX_QUALITY
            or self.sizes[low] >= (1.0 - self.tolerance) * self.target_bytes
            or (high is not None and high - low <= 1)
        ):
            return None
        if high == 0 or (low is not None and len(self.sizes) >= MAX_PROBES):
            return None
        guess = self._guess(low, high)
        # Stay inside the bracket; without a lower end keep going down, to the very lowest quality if need be.
        lower = 0 if low is None else low + 1
        upper = MAX_QUALITY if high is None else high - 1
        if low is None and len(self.sizes) >= MAX_PROBES - 2:
            return 0
        return min(max(guess, lower), upper)

    def report(self, quality: int, size_bytes: int) -> None:
        """Tell the size of the file at a quality."""
        self.sizes[quality] = size_bytes

    def _guess(self, low: int | None, high: int | None) -> int:
        # Aim a little below the target: a file that is too large is of no use.
        aim = math.log(max(self.target_bytes * (1.0 - 0.4 * self.tolerance), 1.0))
        if low is not None and high is not None:
            a, b = math.log(self.sizes[low]), math.log(self.sizes[high])
            return round(low + (aim - a) / max(b - a, 1e-9) * (high - low))
        points = self.curve if len(self.curve) >= 2 else _FALLBACK_CURVE
        logs = [(q, math.log(bpp * self.pixels / 8.0)) for q, bpp in points]
        known = low if low is not None else high
        shift = 0.0 if known is None else math.log(self.sizes[known]) - _interpolate(logs, known)
        guess = round(_interpolate([(value + shift, q) for q, value in logs], aim))
        if low is not None and guess <= low:
            guess = low + 10
        if high is not None and guess >= high:
            guess = high - 10
        return min(max(guess, 0), MAX_QUALITY)


def _interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Piecewise linear through points with rising x, the end pieces prolonged."""
    index = 1
    while index < len(points) - 1 and points[index][0] < x:
        index += 1
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (x - x0) / max(x1 - x0, 1e-12) * (y1 - y0)
