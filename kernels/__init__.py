"""Triton kernels, one operator per file; installed as `l2c.kernels`, imported lazily by `l2c.ops`.

Read me first
- They are written for NVIDIA GPUs from Ampere on and run on the CPU under Triton's interpreter (TRITON_INTERPRET=1
  before triton is imported), which is how they are tested where there is no GPU.
- Integers that decide a probability are computed in integers, or in the one float32 product of the contract
  (DESIGN 3.1), whose bits are read as integers so that no compiler can fuse anything after it.
- `do_not_specialize`: sizes that differ from picture to picture are not worth a compilation each.
- Unsigned 16-bit values (weights, inverse scales, words of a stream) lie in int16 tensors: PyTorch's uint16 has
  hardly any operators. Kernels mask with 65535.
"""

from __future__ import annotations

import torch


def block_size(device: torch.device, size: int) -> int:
    """`size` on a GPU; more under the interpreter on the CPU, whose cost is by operation, not by element."""
    return size if device.type == "cuda" else 16 * size
