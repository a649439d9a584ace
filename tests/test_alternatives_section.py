"""The ALTERNATIVES section: its bytes, round trips, and every way in which it can be wrong."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2c.errors import BitstreamError
from l2c.format.adapt_section import CONDITION_PATCH, NO_SET, PatchChanges, grid_shape
from l2c.format.alternatives_section import (
    Alternative,
    most_alternatives_bytes,
    pack_alternatives,
    unpack_alternatives,
)

WIDTH, HEIGHT, OWN = 1100, 1500, 4
SHAPE = grid_shape(WIDTH, HEIGHT, CONDITION_PATCH)  # 3 x 3: nine patches, two bytes


def made(seed: int, mix: int, default: PatchChanges, share: float = 0.5) -> Alternative:
    rng = np.random.default_rng(seed)
    conditions = np.zeros((4, *SHAPE), np.int8) if default.conditions is None else default.conditions.copy()
    others = rng.random(SHAPE) < share
    others[1, 2] = True
    conditions[:, others] += rng.integers(1, 100, (4, int(others.sum()))).astype(np.int8)
    found = Alternative.between(mix, default, conditions)
    assert found is not None and np.array_equal(found.patches, others)
    return found


def same(a: Alternative, b: Alternative) -> bool:
    return a.mix == b.mix and np.array_equal(a.patches, b.patches) and np.array_equal(a.values, b.values)


@pytest.mark.parametrize("mods", [4, None])
@pytest.mark.parametrize("mixes", [(0,), (8,), (0, 8), (0, 1, 2, 3, 5, 6, 7, 8)])
def test_round_trip(mixes: tuple[int, ...], mods: int | None) -> None:
    for seed in range(5):
        parts = [made(seed + mix, mix, PatchChanges()) for mix in mixes]
        body = pack_alternatives(parts[::-1])
        again = unpack_alternatives(body, WIDTH, HEIGHT, OWN, mods)
        assert len(again) == len(parts) and all(map(same, again, parts))
        assert pack_alternatives(again) == body
        assert len(body) == 1 + sum(part.size for part in parts)
    full = [made(0, mix, PatchChanges(), 1.0) for mix in mixes]
    assert len(pack_alternatives(full)) == most_alternatives_bytes(WIDTH, HEIGHT, len(mixes), 4)


def test_no_alternative_is_no_section() -> None:
    assert pack_alternatives([]) == b"" and most_alternatives_bytes(WIDTH, HEIGHT, 0, 4) == 0
    assert Alternative.between(0, PatchChanges(), np.zeros((4, *SHAPE), np.int8)) is None
    moved = np.full((4, *SHAPE), 3, np.int8)
    assert Alternative.between(0, PatchChanges(conditions=moved), moved.copy()) is None


def test_the_bytes_that_are_written() -> None:
    """Frozen: two alternatives of a picture of two patches and two modulators."""
    first = Alternative(0, np.array([[False, True]]), np.array([[5, -1]], np.int8))
    second = Alternative(8, np.array([[True, True]]), np.array([[0, 0], [127, -128]], np.int8))
    body = bytes.fromhex("02 00 08  02 03  05 ff  00 00 7f 80")
    assert pack_alternatives([second, first]) == body
    again = unpack_alternatives(body, 513, 512, 4, 2)
    assert same(again[0], first) and same(again[1], second)


def test_what_a_receiver_applies() -> None:
    """The default's bias sets everywhere, and its conditions where the alternative has none, zeros among them."""
    sets = np.full(grid_shape(WIDTH, HEIGHT, 256), NO_SET, np.uint8)
    sets[2, 1] = 9
    moved = np.zeros((4, *SHAPE), np.int8)
    moved[:, 0] = 7
    default = PatchChanges(sets, moved)
    wanted = moved.copy()
    wanted[:, 0, 0] = 0  # D's own again
    wanted[1, 2, 2] = -4
    found = Alternative.between(8, default, wanted)
    assert found is not None and found.patches.sum() == 2
    (read,) = unpack_alternatives(pack_alternatives([found]), WIDTH, HEIGHT, OWN, 4)
    applied = read.applied(default)
    assert applied.conditions is not None and np.array_equal(applied.conditions, wanted)
    assert applied.sets is sets and np.array_equal(moved[:, 0], np.full((4, 3), 7))
    alone = read.applied(PatchChanges()).conditions
    assert alone is not None and np.count_nonzero(alone) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "too early"),
        ("00", "0 alternatives"),
        ("09" + "00" * 9, "9 alternatives"),
        ("02 00", "too early"),
        ("02 08 00", "list of metrics"),  # not increasing
        ("02 00 00", "list of metrics"),
        ("01 04", "list of metrics"),  # the file's own
        ("01 09", "list of metrics"),
        ("01 00", "too early"),
        ("01 00 04", "unused bit"),
        ("01 00 00", "no patch"),
        ("02 00 08 01 00 01 02", "no patch"),
        ("01 00 01 05", "too early"),
        ("01 00 01 05 06 07", "1 bytes too many"),
    ],
)
def test_bad_sections(body: str, message: str) -> None:
    with pytest.raises(BitstreamError, match=f"section ALTERNATIVES: .*{message}"):
        unpack_alternatives(bytes.fromhex(body), 513, 512, OWN, 2)


def test_sections_of_no_model() -> None:
    for body, mods in (("01 00 01", 0), ("01 00 01", None), ("01 00 01" + "01" * 258, None)):
        with pytest.raises(BitstreamError, match="no model has so many"):
            unpack_alternatives(bytes.fromhex(body), 513, 512, OWN, mods)
    with pytest.raises(BitstreamError, match="1 bytes too many"):  # not a whole number of modulators
        unpack_alternatives(bytes.fromhex("01 00 03 01 02 03"), 513, 512, OWN, None)


def test_every_prefix_and_every_flip() -> None:
    """A section that is cut is refused; one that is altered is refused, or another valid one."""
    parts = [made(mix, mix, PatchChanges()) for mix in (0, 8)]
    body = pack_alternatives(parts)
    for length in range(len(body)):
        with pytest.raises(BitstreamError, match="section ALTERNATIVES"):
            unpack_alternatives(body[:length], WIDTH, HEIGHT, OWN, 4)
    refused = 0
    for at in range(len(body)):
        for bit in range(8):
            altered = bytearray(body)
            altered[at] ^= 1 << bit
            try:
                again = unpack_alternatives(bytes(altered), WIDTH, HEIGHT, OWN, 4)
            except BitstreamError:
                refused += 1
                continue
            assert pack_alternatives(again) == bytes(altered)
    # Counts and bits change the length; metrics may become other ones, and values are free.
    assert refused >= 8 + 4 * 8 + 8


def test_a_huge_picture_allocates_nothing() -> None:
    body = b"\x08" + bytes([0, 1, 2, 3, 5, 6, 7, 8]) + b"\xff" * 1000
    tracemalloc.start()
    try:
        with pytest.raises(BitstreamError, match="too early"):
            unpack_alternatives(body, 2**31 - 1, 2**31 - 1, OWN, 4)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_memory_is_some_times_the_section() -> None:
    """Few conditions in very many patches stay few."""
    side = 512 << 10
    body = b"\x01\x00\x01" + bytes((1 << 17) - 1) + bytes([1] * 200)
    tracemalloc.start()
    try:
        (found,) = unpack_alternatives(body, side, side, OWN, None)
        assert tracemalloc.get_traced_memory()[1] < 40 * len(body)
    finally:
        tracemalloc.stop()
    assert found.patches.size == 1 << 20 and found.values.shape == (1, 200)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_raise_our_errors_only(body: bytes) -> None:
    for mods in (4, None):
        try:
            found = unpack_alternatives(body, WIDTH, HEIGHT, OWN, mods)
        except BitstreamError:
            continue
        assert pack_alternatives(found) == body
