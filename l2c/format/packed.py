"""Packed bits and bytes of a section, taken from the front; what is missing or padded with ones is an error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from l2c.errors import BitstreamError


def pack_bits(bits: npt.NDArray[np.uint8]) -> bytes:
    """uint8 [n] of 0 and 1 -> ceil(n / 8) bytes, filled from the lowest bit on."""
    return np.packbits(bits, bitorder="little").tobytes()


class PackedReader:
    """Takes bytes and packed bits from the front.

    Args:
        body: of the section. name: of the section, in errors.
    Raises:
        BitstreamError: from every method, where the body does not hold what is asked for.
    """

    def __init__(self, body: bytes, name: str) -> None:
        self._body = np.frombuffer(body, dtype=np.uint8)
        self._name = name
        self._at = 0

    def take(self, count: int) -> npt.NDArray[np.uint8]:
        """The next bytes, uint8 [count], a view."""
        if self._at + count > len(self._body):
            raise self.error("it ends too early")
        self._at += count
        return self._body[self._at - count : self._at]

    def bits(self, count: int, width: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.int64]:
        """The next numbers of `width` bits each, [count], in whole bytes."""
        total = count * width
        raw = np.unpackbits(self.take(-(-total // 8)), bitorder="little")
        if raw[total:].any():
            raise self.error("an unused bit is set")
        if width == 1:
            return raw[:total]
        return raw[:total].reshape(count, width).astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))

    def rest(self) -> int:
        """Bytes that are left."""
        return len(self._body) - self._at

    def finish(self) -> None:
        """Nothing may be left."""
        if self.rest():
            raise self.error(f"{self.rest()} bytes too many")

    def error(self, what: str) -> BitstreamError:
        """To raise, with the name of the section."""
        return BitstreamError(f"section {self._name}: {what}")
