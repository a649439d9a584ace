"""The kinds of arrays that modules hand to each other, by name."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Alpha: TypeAlias = UInt8Array | npt.NDArray[np.uint16]  # [H, W]; 0 is transparent, the greatest value opaque
