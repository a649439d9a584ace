"""One stream of the range coder (csrc/core/rans.h) as seen from Python: its head, its end, its coders in C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from l2c.errors import BitstreamError
from l2c.ops.contract import MAX_LANES, STATE_LOW
from l2c.ops.extension import cpp_extension


def xxh64(data: npt.NDArray[np.uint8]) -> int:
    """XXH64, seed 0, of contiguous bytes uint8 [n]."""
    return cpp_extension().xxh64(data)


def check_head(payload: bytes | memoryview) -> None:
    """Raises BitstreamError where the head of a stream of csrc/core/rans.h is not valid, or it ends within a word."""
    _head(np.frombuffer(payload, dtype=np.uint8))


def parse_stream(payload: bytes | memoryview) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
    """A stream of csrc/core/rans.h taken apart: lanes, their states int64 [lanes], words uint16 [n].

    Raises:
        BitstreamError: its head is not valid, or it ends within a state or a word.
    """
    data = np.frombuffer(payload, dtype=np.uint8)
    lanes, states = _head(data)
    return lanes, states, np.frombuffer(data[1 + 6 * lanes :].tobytes(), dtype="<u2").astype(np.uint16)


def _head(data: npt.NDArray[np.uint8]) -> tuple[int, npt.NDArray[np.int64]]:
    """Lanes, and their states int64 [lanes]; errors as in `parse_stream`."""
    if not len(data):
        raise BitstreamError("range coder: the stream is empty")
    if data[0] > MAX_LANES.bit_length() - 1:
        raise BitstreamError("range coder: the lane count is illegal")
    lanes = 1 << int(data[0])
    head = 1 + 6 * lanes
    if len(data) < head:
        raise BitstreamError("range coder: the stream ends within its lane states")
    if (len(data) - head) % 2:
        raise BitstreamError("range coder: the stream ends within a word")
    states = np.zeros((lanes, 8), dtype=np.uint8)
    states[:, :6] = data[1:head].reshape(lanes, 6)
    values = states.view("<i8").reshape(lanes).astype(np.int64)
    if values.min() < STATE_LOW:
        raise BitstreamError("range coder: a lane state is illegal")
    return lanes, values


def write_stream(lanes: int, states: npt.NDArray[np.int64], words: npt.NDArray[Any]) -> bytes:
    """The other way: lanes, their states int64 [lanes] and words (16 bits each, in stream order) -> a stream."""
    head = states.astype("<i8").view(np.uint8).reshape(lanes, 8)[:, :6]
    return bytes([lanes.bit_length() - 1]) + head.tobytes() + words.astype("<i2").tobytes()


def range_encoder() -> Any:
    """A new interleaved rANS encoder, see csrc/core/rans.h."""
    return cpp_extension().RangeEncoder()


def range_decoder(payload: bytes | memoryview) -> Any:
    """A decoder over one payload, see csrc/core/rans.h. Raises BitstreamError where its header is not valid."""
    return cpp_extension().RangeDecoder(payload)


def check_stream_end(
    status: int, words_left: int, states: npt.NDArray[np.int64], hashed: npt.NDArray[np.uint8]
) -> None:
    """What `RangeDecoder.finish` checks once all symbols are decoded.

    Args:
        status: of the decoder, see csrc/core/mixture_cdf.h.
        words_left: words that nobody took.
        states: int64 [lanes], at the end.
        hashed: the bytes of all symbols as csrc/core/rans.h hashes them.
    Raises:
        BitstreamError: the stream ends too early or too late, or is damaged.
    """
    if status:
        raise BitstreamError("range coder: the stream ends too early")
    if words_left:
        raise BitstreamError("range coder: bytes are left after the last symbol")
    expected = np.full(len(states), STATE_LOW, dtype=np.int64)
    expected[0] += xxh64(hashed) & 0xFFFFFFFF
    if not np.array_equal(states, expected):
        raise BitstreamError("range coder: the end state is wrong, the stream is damaged")
