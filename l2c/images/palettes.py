"""Pictures in fewer colours: what drawn ones become so that they fit where latents would blur them.

A palette comes from splitting: the colours of a picture are one set at first, and again and again the set with the
largest squared error is cut in two, across its principal axis, where that lowers the error most (Wu 1991 cuts so along
the axes of RGB). Steps of Lloyd's algorithm follow. A set of which one colour makes up more than half stands for
exactly that colour: white stays white. Nothing is dithered: areas stay even, which is what takes few bytes.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from l2c.arrays import UInt8Array

COUNTS = (
    2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256,
)  # fmt: skip
MOST_COLOURS = 1 << 16  # of a picture: one with more is no drawing
_STRIP = 1 << 20  # pixels that are sorted at a time
_REFINEMENTS = 4  # steps of Lloyd's algorithm

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


class Palettes:
    """One picture in fewer colours, as many as is asked for.

    Attributes:
        counts: numbers of colours that it can be reduced to, rising: those of `COUNTS` that are less than it has.
    """

    def __init__(self, colours: npt.NDArray[np.uint32], weights: Floats, places: npt.NDArray[np.uint16]) -> None:
        """See `of`. Arguments: the colours as 0xRRGGBB, how many pixels have each, and which one each pixel has."""
        self._colours = np.stack((colours >> 16, colours >> 8 & 255, colours & 255), axis=1).astype(np.float64)
        self._weights, self._places = weights, places
        self.counts = tuple(count for count in COUNTS if count < len(colours))
        self._sets: dict[int, npt.NDArray[np.uint8]] = {}

    @classmethod
    def of(cls, rgb: UInt8Array) -> Palettes | None:
        """Of a picture uint8 [H, W, 3]; None: there is nothing to reduce, or it has more than `MOST_COLOURS`."""
        height, width = rgb.shape[:2]
        rows = max(1, _STRIP // width)
        strips = [rgb[top : top + rows] for top in range(0, height, rows)]
        colours = np.empty(0, np.uint32)
        for strip in strips:
            colours = np.union1d(colours, _packed(strip))
            if len(colours) > MOST_COLOURS:
                return None
        if len(colours) <= COUNTS[0]:
            return None
        places = np.concatenate([np.searchsorted(colours, _packed(strip)).astype(np.uint16) for strip in strips])
        weights = np.bincount(places.ravel(), minlength=len(colours)).astype(np.float64)
        return cls(colours, weights, places)

    def picture(self, count: int) -> UInt8Array:
        """The picture in one of `counts` colours: uint8 [H, W, 3]."""
        if not self._sets:
            self._split()
        sets = self._sets[count].astype(np.intp)
        centres = np.zeros((count, 3))
        for _ in range(_REFINEMENTS):
            centres = self._means(sets, centres)
            sets = self._nearest(centres)
        palette = self._settled(sets, self._means(sets, centres))
        return palette.astype(np.uint8)[self._nearest(palette)][self._places]

    def _split(self) -> None:
        """The sets of each count, by colour."""
        sets = np.zeros(len(self._colours), np.uint8)
        everything = np.arange(len(self._colours))
        heap = [(-self._error(everything), 0, everything)]
        while True:
            if len(heap) in self.counts:
                self._sets[len(heap)] = sets.copy()
            if len(heap) == self.counts[-1]:
                return
            _, number, members = heapq.heappop(heap)
            low, high = self._cut(members)
            sets[high] = len(heap) + 1
            heapq.heappush(heap, (-self._error(low), number, low))
            heapq.heappush(heap, (-self._error(high), len(heap), high))

    def _error(self, members: Places) -> float:
        """Sum of squared distances to the mean."""
        colours, weights = self._colours[members], self._weights[members]
        mean = weights @ colours / weights.sum()
        return float(weights @ np.square(colours - mean).sum(axis=1))

    def _cut(self, members: Places) -> tuple[Places, Places]:
        """Two sets, neither empty, of one with two colours or more."""
        colours, weights = self._colours[members], self._weights[members]
        away = colours - weights @ colours / weights.sum()
        axis = np.linalg.eigh((weights[:, None] * away).T @ away)[1][:, -1]
        order = np.argsort(away @ axis, kind="stable")
        count = np.cumsum(weights[order])
        total = np.cumsum(weights[order, None] * away[order], axis=0)
        # The error falls by what the squares of the two means weigh.
        low = np.square(total[:-1]).sum(axis=1) / count[:-1]
        high = np.square(total[-1] - total[:-1]).sum(axis=1) / (count[-1] - count[:-1])
        at = int(np.argmax(low + high)) + 1
        return members[order[:at]], members[order[at:]]

    def _means(self, sets: Places, former: Floats) -> Floats:
        """The mean colour of each set; of an empty one what it was."""
        weights = np.bincount(sets, self._weights, len(former))
        sums = [np.bincount(sets, self._weights * self._colours[:, k], len(former)) for k in range(3)]
        return np.where(weights[:, None] > 0.0, np.stack(sums, axis=1) / np.maximum(weights, 1.0)[:, None], former)

    def _nearest(self, centres: Floats) -> Places:
        """The centre next to each colour."""
        distances = np.square(centres).sum(axis=1) - 2.0 * self._colours @ centres.T
        return distances.argmin(axis=1)

    def _settled(self, sets: Places, means: Floats) -> Floats:
        """Means as whole numbers; a colour that more than half of a set's pixels have stands for it."""
        order = np.argsort(self._weights, kind="stable")
        commonest = np.zeros(len(means), np.intp)
        commonest[sets[order]] = order
        rules = self._weights[commonest] > 0.5 * np.bincount(sets, self._weights, len(means))
        return np.where(rules[:, None], self._colours[commonest], np.rint(means))


def _packed(rgb: UInt8Array) -> npt.NDArray[np.uint32]:
    """Colours as 0xRRGGBB: [H, W, 3] -> [H, W]."""
    red, green, blue = (rgb[:, :, k].astype(np.uint32) for k in range(3))
    return np.asarray(red << 16 | green << 8 | blue, np.uint32)
