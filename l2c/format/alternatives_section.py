"""The ALTERNATIVES section of a file: modulator conditions for receivers who want another metric than the file's.

One set of latents may come with several sets of conditions, each made for another metric, and the receiver chooses
(OML, section 4). The set for the file's own metric is that of ADAPT; this section holds the others, as what they change
in it. It is ancillary, so a reader that does not know it shows what ADAPT says.

All numbers are unsigned bytes unless stated; patches are those of ADAPT's conditions, 512x512 pixels in rows from the
picture's top left; bits fill bytes from the lowest bit on, and unused bits of a last byte are 0.

    1 byte                 n, the number of alternatives, 1..8
    n bytes                the metric of each, as metric_mix in the file's head: 0..8, strictly increasing, not the
                           file's own
    for each alternative, in their order
        ceil(patches / 8) bytes   one bit a patch: whether its conditions are other ones than ADAPT's; one bit is set
    for each alternative, in their order
        K bytes for each patch with a bit   signed: its conditions in the form that ADAPT has them

An alternative keeps ADAPT's bias sets everywhere, and ADAPT's conditions (or none) where it has no bit. A section
without alternatives is not written. K is the model's; a reader without the model finds it in the number of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from l2c.format.adapt_section import CONDITION_PATCH, MOST_MODULATORS, PatchChanges, grid_shape
from l2c.format.levels import MAX_MU
from l2c.format.packed import PackedReader, pack_bits


@dataclass(frozen=True)
class Alternative:
    """Conditions for one metric, where they differ from the file's default.

    Attributes:
        mix: 0..8, the metric.
        patches: bool [rows, columns] of 512-pixel patches, which have conditions of their own; at least one.
        values: int8 [number of those, K], in the order of the patches, in CONDITION_UNIT.
    """

    mix: int
    patches: npt.NDArray[np.bool_]
    values: npt.NDArray[np.int8]

    @classmethod
    def between(cls, mix: int, default: PatchChanges, conditions: npt.NDArray[np.int8]) -> Alternative | None:
        """What `conditions`, int8 [K, rows, columns], change in a file's default; None: nothing."""
        before = np.zeros_like(conditions) if default.conditions is None else default.conditions
        patches = (conditions != before).any(axis=0)
        return cls(mix, patches, conditions[:, patches].T.copy()) if patches.any() else None

    def applied(self, default: PatchChanges) -> PatchChanges:
        """What a receiver who wants this metric changes in D, given what the file does by default."""
        shape = (self.values.shape[1], *self.patches.shape)
        conditions = np.zeros(shape, np.int8) if default.conditions is None else default.conditions.copy()
        conditions[:, self.patches] = self.values.T
        return replace(default, conditions=conditions)

    @property
    def size(self) -> int:
        """Bytes in the section."""
        return 1 + -(-self.patches.size // 8) + self.values.size


def pack_alternatives(alternatives: Sequence[Alternative]) -> bytes:
    """The section's bytes, of alternatives for different metrics of one picture; empty where there are none."""
    if not alternatives:
        return b""
    ordered = sorted(alternatives, key=lambda part: part.mix)
    head = bytes([len(ordered), *(part.mix for part in ordered)])
    bits = [pack_bits(part.patches.reshape(-1).astype(np.uint8)) for part in ordered]
    return b"".join([head, *bits, *(part.values.tobytes() for part in ordered)])


def unpack_alternatives(
    body: bytes, width: int, height: int, own_mix: int, num_modulators: int | None
) -> tuple[Alternative, ...]:
    """Read a section; the memory that it takes is at most some times its own size.

    Args:
        width, height: of the picture in pixels. own_mix: the file's metric.
        num_modulators: K, that the model has; None: as the section has bytes for.
    Raises:
        BitstreamError: the section cannot be of such a picture and model.
    """
    reader = PackedReader(body, "ALTERNATIVES")
    (count,) = reader.take(1)
    if not 1 <= count <= MAX_MU:
        raise reader.error(f"{count} alternatives, it must be 1..{MAX_MU}")
    mixes = reader.take(int(count)).tolist()
    if mixes != sorted(set(mixes)) or mixes[-1] > MAX_MU or own_mix in mixes:
        raise reader.error("the list of metrics is not valid")
    shape = grid_shape(width, height, CONDITION_PATCH)
    patches = [reader.bits(shape[0] * shape[1], 1).astype(bool).reshape(shape) for _ in mixes]
    counts = [int(part.sum()) for part in patches]
    if 0 in counts:
        raise reader.error("an alternative for no patch")
    if num_modulators is None:
        num_modulators = reader.rest() // sum(counts)
    if not 1 <= num_modulators <= MOST_MODULATORS:
        raise reader.error(f"conditions of {num_modulators} modulators, no model has so many")
    values = [reader.take(part * num_modulators).view(np.int8).reshape(part, num_modulators) for part in counts]
    reader.finish()
    return tuple(map(Alternative, mixes, patches, values))


def most_alternatives_bytes(width: int, height: int, count: int, num_modulators: int) -> int:
    """Bytes of a section of `count` alternatives in all patches; 0 without any."""
    rows, columns = grid_shape(width, height, CONDITION_PATCH)
    patches = rows * columns
    return 1 + count * (1 + -(-patches // 8) + patches * num_modulators) if count else 0
