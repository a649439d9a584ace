"""A target -> the quality that meets it, and the corrections of an adapted picture that hit it.

`QualitySearch` is a secant search over log(rate) against quality, started from the model's mean curve. Rate is monotone
in quality up to small ripples, so the search keeps a bracket and its best file, and halves the bracket where secants do
not get on: drawn pictures have curves far steeper than photographs. `MetricSearch` does the same for a PSNR or an
MS-SSIM.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from l2c.format.levels import MAX_QUALITY

TOLERANCE = 0.01  # stop as soon as the file is at most this much below the target
MAX_PROBES = 8
MAX_STEERS = 6
MAX_TRIMS = 4
ACCEPTED = 0.02  # share of a target size that a file may leave unused
_PATIENCE = 5  # probes after which a search no longer trusts interpolation alone
_PEAK_WIDTH, _PEAK_PROBES = 20, 4  # how closely the peak of a figure is looked at, with so many more probes
_FALLBACK_CURVE = ((0.0, 0.08), (MAX_QUALITY, 3.0))


@dataclass
class QualitySearch:
    """Search for one picture: ask `next_quality`, encode, tell `report`; repeat until `next_quality` is None.

    Attributes:
        target_bytes: size that the file must not exceed.
        pixels: of the picture, to read the curve.
        curve: (quality, mean bpp) points, rising in both.
        tolerance: share of the target that may stay unused.
        sizes: what is known, by quality.
        most: sizes that it may know before it makes do with a file that leaves ACCEPTED unused; one that leaves more
            is worth twice as many.
        overhead: bytes of the file that quality does not change (metadata, alpha): what is interpolated is the
            logarithm of the rest.
    """

    target_bytes: float
    pixels: int
    curve: Sequence[tuple[float, float]]
    tolerance: float = TOLERANCE
    sizes: dict[int, int] = field(default_factory=dict)
    most: int = MAX_PROBES
    overhead: float = 0.0

    @property
    def best(self) -> int | None:
        """The quality of the largest file that fits, or None; the highest quality where that fits, even if it takes
        fewer bytes than a lower one (of flat pictures it may)."""
        fitting = [q for q, size in self.sizes.items() if size <= self.target_bytes]
        if MAX_QUALITY in fitting:
            return MAX_QUALITY
        return max(fitting, key=lambda q: (self.sizes[q], q), default=None)

    @property
    def next_quality(self) -> int | None:
        """Quality 0..1000 to try next, None when done."""
        low, high = self._bracket()
        if low is not None and high is not None and high - low <= 1:
            return None
        if low == MAX_QUALITY or high == 0:
            return None
        best = self.best
        unused = 1.0 if best is None else 1.0 - self.sizes[best] / self.target_bytes
        count = len(self.sizes)
        if unused <= self.tolerance or (unused <= ACCEPTED and count >= self.most) or count >= 2 * self.most:
            # Out of probes without a file that fits: is there one at all?
            return 0 if best is None and 0 not in self.sizes else None
        lower = 0 if low is None else low + 1
        upper = MAX_QUALITY if high is None else high - 1
        if count >= _PATIENCE and (low is None or high is None or count % 2):
            return (lower + upper) // 2  # the curve is of another shape than was thought
        return min(max(self._guess(low, high), lower), upper)

    def towards(self, target_bytes: float, tolerance: float) -> QualitySearch:
        """A search for another target with what this one knows; what either learns, both know."""
        most = len(self.sizes) + MAX_PROBES
        return QualitySearch(target_bytes, self.pixels, self.curve, tolerance, self.sizes, most, self.overhead)

    def payload(self, size_bytes: float) -> float:
        """What quality changes of a file of this size, at least 1 byte."""
        return max(size_bytes - self.overhead, 1.0)

    def _bracket(self) -> tuple[int | None, int | None]:
        """The largest quality known to fit, and the least one above it known not to."""
        fits = {q for q, size in self.sizes.items() if size <= self.target_bytes}
        low = max(fits, default=None)
        return low, min((q for q in self.sizes if q not in fits and (low is None or q > low)), default=None)

    def report(self, quality: int, size_bytes: int) -> None:
        """Tell the size of the file at a quality."""
        self.sizes[quality] = size_bytes

    def _guess(self, low: int | None, high: int | None) -> int:
        # Aim a little below the target: a file that is too large is of no use.
        aim = math.log(self.payload(self.target_bytes * (1.0 - 0.4 * self.tolerance)))
        if low is not None and high is not None:
            a, b = (math.log(self.payload(self.sizes[q])) for q in (low, high))
            return round(low + (aim - a) / max(b - a, 1e-9) * (high - low))
        points = self.curve if len(self.curve) >= 2 else _FALLBACK_CURVE
        logs = [(q, value + math.log(self.pixels / 8.0)) for q, value in log_curve(points)]
        known = low if low is not None else high
        shift = 0.0
        if known is not None:
            shift = math.log(self.payload(self.sizes[known])) - interpolate(logs, known)
        guess = round(interpolate([(value + shift, q) for q, value in logs], aim))
        # On one side alone so far: each step there is twice the one before, at least.
        stride = 10 << len(self.sizes)
        if low is not None and guess <= low:
            guess = low + stride
        if high is not None and guess >= high:
            guess = high - stride
        return min(max(guess, 0), MAX_QUALITY)


@dataclass
class MetricSearch:
    """The smallest file found that reaches a figure in dB; used as `QualitySearch` is.

    The figure rises with quality, but not for ever: where latents meet their limits it falls again. So a target that
    the highest quality misses is looked for on both sides of the best figure seen.

    Attributes:
        target: dB, higher is better.
        tolerance: dB that the found file may be better than asked.
    """

    target: float
    tolerance: float = 0.02
    values: dict[int, float] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The quality of the smallest file that reaches the target, or of the best figure where none does."""
        good = [q for q, value in self.values.items() if value >= self.target]
        if good:
            return min(good, key=lambda q: (self.sizes[q], q))
        return max(self.values, key=lambda q: (self.values[q], -self.sizes[q]))

    @property
    def next_quality(self) -> int | None:
        """Quality 0..1000 to try next, None when done."""
        if not self.values:
            return MAX_QUALITY // 2
        good = [q for q, value in self.values.items() if value >= self.target]
        high = min(good, default=None)
        low = max((q for q in self.values if self.values[q] < self.target and (high is None or q < high)), default=None)
        if high is not None and (
            self.values[high] <= self.target + self.tolerance or high == 0 or (low is not None and high - low <= 1)
        ):
            return None
        count = len(self.values)
        if count >= MAX_PROBES and high is not None:
            return None
        if high is None:
            return self._beside_the_peak() if MAX_QUALITY in self.values else self._upwards()
        if low is None:
            return max(0, high - 250) if count < 3 else 0
        rise = self.target + 0.3 * self.tolerance - self.values[low]
        share = rise / max(self.values[high] - self.values[low], 1e-6)
        return min(max(round(low + share * (high - low)), low + 1), high - 1)

    def _upwards(self) -> int:
        low = max(self.values)
        return MAX_QUALITY if len(self.values) > 2 else min(MAX_QUALITY, low + 250)

    def _beside_the_peak(self) -> int | None:
        """The middle of the wider gap beside the best figure; None where the gaps are narrow or the probes used up."""
        peak = max(self.values, key=lambda q: self.values[q])
        known = sorted({0, *self.values})
        gaps = [(b - a, (a + b) // 2) for a, b in itertools.pairwise(known) if peak in (a, b)]
        width, middle = max(gaps, default=(0, 0))
        return middle if width > _PEAK_WIDTH and len(self.values) < MAX_PROBES + _PEAK_PROBES else None

    def report(self, quality: int, value: float, size_bytes: int) -> None:
        """Tell the figure and the size of the file at a quality."""
        self.values[quality], self.sizes[quality] = value, size_bytes

    def bits_per_db(self) -> float:
        """Relative growth of the rate for one more dB, around the target."""
        near = sorted(self.values, key=lambda q: abs(self.values[q] - self.target))[:2]
        if len(near) == 2 and abs(self.values[near[0]] - self.values[near[1]]) > 0.05:
            growth = math.log(self.sizes[near[0]] / self.sizes[near[1]])
            return min(max(growth / (self.values[near[0]] - self.values[near[1]]), 0.02), 0.5)
        return 0.15


def dissimilarity_db(similarity: float) -> float:
    """MS-SSIM on the usual logarithmic scale, -10 log10(1 - m)."""
    return -10.0 * math.log10(max(1.0 - similarity, 1e-9))


def log_curve(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(quality, mean bpp) points with the natural logarithm of the rate."""
    return [(quality, math.log(bpp)) for quality, bpp in points]


def interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Piecewise linear through points with rising x, the end pieces prolonged."""
    index = 1
    while index < len(points) - 1 and points[index][0] < x:
        index += 1
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (x - x0) / max(x1 - x0, 1e-12) * (y1 - y0)
