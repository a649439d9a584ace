"""The ADAPT section of a file: what the encoder changed in D for patches of the picture.

Patches are numbered in rows from the picture's top left; those at the right and at the bottom end at its edge. All
numbers are unsigned bytes unless stated; bits fill bytes from the lowest bit on, and unused bits of a last byte are 0.

    1 byte    parts: 1 bias sets, 2 conditions, 3 both
    bias sets (patches of 256x256 pixels)
        ceil(patches / 8) bytes   one bit a patch: whether it has a set; the others keep D's own biases
        1 byte                    n - 1, sets in use, 1..255 of them
        n bytes                   their numbers, strictly increasing, each below the model's count of sets
        rest of whole bytes       for each patch that has a set, its place 0..n-1 in that list, in ceil(log2 n) bits
    conditions (patches of 512x512 pixels)
        ceil(patches / 8) bytes   one bit a patch: whether it has conditions of its own
        K bytes for each of them  signed: change of the normalised log lambda (`transforms.condition`) of each of D's K
                                  modulators, in 1/64

A part with no patch in use is not written, and a section with no part neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from l2c.format.packed import PackedReader, pack_bits
from l2c.format.quality_map_section import QualityMap

BIAS_PATCH = 256
CONDITION_PATCH = 512
NO_SET = 255
CONDITION_UNIT = 1.0 / 64.0

_SETS, _CONDITIONS = 1, 2
MOST_MODULATORS = 257  # that `TransformConfig` allows
_MOST_CONDITIONS = 1 << 26  # of all patches, where no model says how many modulators there are


@dataclass(frozen=True)
class PatchChanges:
    """Changes to D, patch by patch.

    Attributes:
        sets: uint8 [rows, columns] of 256-pixel patches, number of the bias set, NO_SET: none; or None.
        conditions: int8 [K, rows, columns] of 512-pixel patches, in CONDITION_UNIT; or None.
        quality_map: what a section of its own says, QUALITY_MAP; or None.
    """

    sets: npt.NDArray[np.uint8] | None = None
    conditions: npt.NDArray[np.int8] | None = None
    quality_map: QualityMap | None = None

    def pack(self) -> bytes:
        """The bytes of ADAPT; empty where nothing is changed."""
        sets = self.sets if self.sets is not None and bool((self.sets != NO_SET).any()) else None
        conditions = self.conditions if self.conditions is not None and bool(self.conditions.any()) else None
        body = bytearray()
        if sets is not None:
            flat = sets.reshape(-1)
            has = flat != NO_SET
            used, places = np.unique(flat[has], return_inverse=True)
            body += pack_bits(np.asarray(has, dtype=np.uint8))
            body.append(len(used) - 1)
            body += used.astype(np.uint8).tobytes()
            width = _bits_of(len(used))
            bits = np.asarray(places[:, None] >> np.arange(width) & 1, dtype=np.uint8)
            body += pack_bits(bits.reshape(-1))
        if conditions is not None:
            columns = conditions.reshape(len(conditions), -1)
            has = columns.any(axis=0)
            body += pack_bits(np.asarray(has, dtype=np.uint8))
            body += np.ascontiguousarray(columns[:, has].T).tobytes()
        parts = (_SETS if sets is not None else 0) | (_CONDITIONS if conditions is not None else 0)
        return bytes([parts]) + bytes(body) if parts else b""

    @classmethod
    def unpack(cls, body: bytes, width: int, height: int, num_sets: int, num_modulators: int | None) -> PatchChanges:
        """Read a section.

        Args:
            width, height: of the picture in pixels.
            num_sets, num_modulators: that the model has; without the latter, as many as the section has bytes for.
        Raises:
            BitstreamError: the section cannot be of such a picture and model.
        """
        reader = PackedReader(body, "ADAPT")
        (parts,) = reader.take(1)
        if not 1 <= parts <= 3:
            raise reader.error(f"parts is {parts}, it must be 1..3")
        sets = conditions = None
        if parts & _SETS:
            shape = grid_shape(width, height, BIAS_PATCH)
            has = reader.bits(shape[0] * shape[1], 1).astype(bool)
            count = int(reader.take(1)[0]) + 1
            used = reader.take(count)
            if not has.any() or count > has.sum() or bool((np.diff(used.astype(int)) <= 0).any()):
                raise reader.error("the list of bias sets in use is not valid")
            if used[-1] >= num_sets:
                raise reader.error(f"bias set {used[-1]}, the model has {num_sets}")
            places = reader.bits(int(has.sum()), _bits_of(count))
            if bool((places >= count).any()):
                raise reader.error("a patch names a bias set that is not in the list")
            flat = np.full(len(has), NO_SET, dtype=np.uint8)
            flat[has] = used[places]
            sets = flat.reshape(shape)
        if parts & _CONDITIONS:
            shape = grid_shape(width, height, CONDITION_PATCH)
            has = reader.bits(shape[0] * shape[1], 1).astype(bool)
            if num_modulators is None:
                num_modulators = reader.rest() // max(1, int(has.sum()))
                if num_modulators > MOST_MODULATORS or num_modulators * len(has) > _MOST_CONDITIONS:
                    raise reader.error(f"{num_modulators} modulators, no model has so many")
            if not has.any() or not num_modulators:
                raise reader.error("conditions for no patch or no modulator")
            values = reader.take(int(has.sum()) * num_modulators).view(np.int8).reshape(-1, num_modulators)
            flat_values = np.zeros((num_modulators, len(has)), dtype=np.int8)
            flat_values[:, has] = values.T
            conditions = flat_values.reshape(num_modulators, *shape)
        reader.finish()
        return cls(sets, conditions)


def grid_shape(width: int, height: int, side: int) -> tuple[int, int]:
    """(rows, columns) of patches of a picture."""
    return -(-height // side), -(-width // side)


def _bits_of(count: int) -> int:
    return (count - 1).bit_length()
