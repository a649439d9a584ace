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


def block_size(device: torch.device, size: int, needed: int) -> int:
    """`size` on a GPU; under the interpreter on the CPU, whose cost is by operation first, up to 16 times as much.

    There it is the power of two that holds `needed` elements, if less: operations on elements that are not there cost
    most of the time of a tiny batch. 16 is the least of a matrix product.
    """
    return size if device.type == "cuda" else min(16 * size, 1 << max(4, (needed - 1).bit_length()))
