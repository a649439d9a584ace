"""The ADAPT section: round trips, and every way in which it can be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2c.errors import BitstreamError
from l2c.format.adapt_section import BIAS_PATCH, CONDITION_PATCH, NO_SET, PatchChanges, grid_shape

WIDTH, HEIGHT = 1000, 700


def made(seed: int, share: float, sets: bool = True, conditions: bool = True) -> PatchChanges:
    rng = np.random.default_rng(seed)
    index = rng.integers(0, 200, grid_shape(WIDTH, HEIGHT, BIAS_PATCH)).astype(np.uint8)
    index[rng.random(index.shape) > share] = NO_SET
    index[0, 0] = 17
    moved = rng.integers(-128, 128, (4, *grid_shape(WIDTH, HEIGHT, CONDITION_PATCH))).astype(np.int8)
    moved[:, rng.random(moved.shape[1:]) > share] = 0
    moved[:, 0, 0] = (1, -2, 0, 3)
    return PatchChanges(index if sets else None, moved if conditions else None)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("sets", "conditions"), [(True, True), (True, False), (False, True)])
def test_round_trip(share: float, sets: bool, conditions: bool) -> None:
    for seed in range(5):
        changes = made(seed, share, sets, conditions)
        body = changes.pack()
        for mods in (4, None):
            again = PatchChanges.unpack(body, WIDTH, HEIGHT, 200, mods)
            for mine, its in ((changes.sets, again.sets), (changes.conditions, again.conditions)):
                assert (mine is None) == (its is None)
                assert mine is None or np.array_equal(mine, its)
        assert again.pack() == body


def test_nothing_changed_is_no_section() -> None:
    assert PatchChanges().pack() == b""
    nothing = PatchChanges(np.full((2, 3), NO_SET, np.uint8), np.zeros((4, 1, 2), np.int8))
    assert nothing.pack() == b""


def test_few_sets_cost_few_bits() -> None:
    one = np.full((16, 16), 7, np.uint8)
    assert len(PatchChanges(one).pack()) == 1 + 32 + 2  # parts, bits, the list of one set; no bits for places
    two = one.copy()
    two[::2] = 200
    assert len(PatchChanges(two).pack()) == 1 + 32 + 3 + 32


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "too early"),
        (b"\x00", "parts is 0"),
        (b"\x04", "parts is 4"),
        (b"\x01", "too early"),
        (b"\x01\x01\x00", "too early"),
        (b"\x01\x00\x00\x05", "not valid"),  # a list, but no patch
        (b"\x01\x01\x01\x05\x06\x00", "not valid"),  # more sets than patches
        (b"\x01\x03\x01\x06\x05\x02", "not valid"),  # not increasing
        (b"\x01\x01\x00\xc8", "bias set 200, the model has 200"),
        (b"\x01\x01\x00\x05\x00", "1 bytes too many"),
        (b"\x01\x41\x00\x05", "unused bit"),  # 6 patches of 700x400
        (b"\x01\x07\x02\x01\x02\x03\x3f", "not in the list"),
        (b"\x02\x00", "no patch"),
        (b"\x02\x01\x01\x01\x01", "too early"),
    ],
)
def test_bad_sections(body: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        PatchChanges.unpack(body, 700, 400, 200, 4)


def test_conditions_without_modulators() -> None:
    with pytest.raises(BitstreamError, match="no modulator"):
        PatchChanges.unpack(b"\x02\x01", 700, 400, 200, 0)


def test_a_huge_picture_allocates_nothing() -> None:
    with pytest.raises(BitstreamError, match="too early"):
        PatchChanges.unpack(b"\x01" + bytes(100), 2**31 - 1, 2**31 - 1, 200, 4)


def test_a_file_alone_cannot_ask_for_much() -> None:
    """Without a model the section says how many modulators there are: 200 for one of 2^22 patches."""
    body = b"\x02\x01" + bytes((1 << 19) - 1) + bytes([1] * 200)
    side = 512 << 11
    with pytest.raises(BitstreamError, match="200 modulators"):
        PatchChanges.unpack(body, side, side, 200, None)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_raise_our_errors_only(body: bytes) -> None:
    try:
        changes = PatchChanges.unpack(body, WIDTH, HEIGHT, 200, 4)
    except BitstreamError:
        return
    again = PatchChanges.unpack(changes.pack(), WIDTH, HEIGHT, 200, 4) if changes.pack() else PatchChanges()
    if changes.sets is not None:
        assert again.sets is not None
        assert np.array_equal(changes.sets, again.sets)
