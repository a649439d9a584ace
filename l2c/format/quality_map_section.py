"""The QUALITY_MAP section of a file: parts of the picture that are coded coarser than its header says.

E and D of a model are told a trade-off lambda that follows from the header's quality; it sets the quantiser's steps.
In a patch whose drop is n they are told lambda * 2^(-n/2) instead, or the least lambda of the model where that is more:
a squared error counts half where the drop is 2. P and the coder are told the header's quality everywhere.

Patches are squares in rows from the picture's top left; those at the right and at the bottom end at its edge.

    1 byte    side_log2, 4..9: patches have sides of 1 << side_log2 pixels, a multiple of the model's s
    rest      raw DEFLATE data (RFC 1951) and nothing more. It holds ceil(height / side) * ceil(width / side) bytes, the
              drops of the patches, each 0..24, row by row

A map of zeros changes nothing, and is not written.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l2c.errors import BitstreamError

SIDES_LOG2 = range(4, 10)
MAX_DROP = 24  # lambda / 4096
DROPS_PER_OCTAVE = 2  # of lambda
_NAME = "section QUALITY_MAP"


@dataclass(frozen=True)
class QualityMap:
    """How much lower lambda is in each patch of a picture.

    Attributes:
        side: of a patch in pixels, 16, 32, ... 512.
        drops: uint8 [rows, columns], 0..MAX_DROP halves of an octave; not all zero.
    """

    side: int
    drops: npt.NDArray[np.uint8]

    def pack(self) -> bytes:
        """The section's bytes."""
        return self._packed

    @functools.cached_property
    def _packed(self) -> bytes:
        deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        return bytes([self.side.bit_length() - 1]) + deflate.compress(self.drops.tobytes()) + deflate.flush()

    @classmethod
    def unpack(cls, body: bytes, width: int, height: int) -> QualityMap:
        """Read a section; never expands more than the map's own size.

        Args:
            width, height: of the picture in pixels.
        Raises:
            BitstreamError: the section cannot be of such a picture.
        """
        if not body or body[0] not in SIDES_LOG2:
            raise BitstreamError(f"{_NAME}: side_log2 is not {SIDES_LOG2[0]}..{SIDES_LOG2[-1]}")
        side = 1 << body[0]
        shape = -(-height // side), -(-width // side)
        size, inflate = shape[0] * shape[1], zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        try:
            raw = inflate.decompress(body[1:], size + 1)
        except zlib.error as error:
            raise BitstreamError(f"{_NAME}: {error}") from error
        if len(raw) != size or not inflate.eof or inflate.unused_data:
            raise BitstreamError(f"{_NAME}: it does not hold the {size} bytes of its {shape[1]}x{shape[0]} patches")
        drops = np.frombuffer(raw, np.uint8).reshape(shape)
        if drops.max() > MAX_DROP:
            raise BitstreamError(f"{_NAME}: a drop of {drops.max()}, at most {MAX_DROP} is legal")
        if not drops.any():
            raise BitstreamError(f"{_NAME}: it changes nothing")
        return cls(side, drops)

    def on_latents(self, height: int, width: int, s: int) -> npt.NDArray[np.uint8]:
        """The drop of each latent of a picture of so many pixels: uint8 [ceil(height / s), ceil(width / s)]."""
        rows, columns = (np.arange(-(-length // s)) * s // self.side for length in (height, width))
        return self.drops[rows[:, None], columns[None]]

    def raised(self, steps: int) -> QualityMap | None:
        """Every drop less by so many, 0 at least; None: nothing is left of it."""
        drops = np.where(self.drops > steps, self.drops - np.uint8(min(steps, MAX_DROP)), np.uint8(0))
        return QualityMap(self.side, drops) if drops.any() else None
