"""Compiles every Triton kernel for a GPU that is not there: `python tests/compile_kernels.py 90` (compute capability).

A driver that only names the GPU takes the place of CUDA's, and launches stop once the machine code exists. Prints one
line for each kernel; run by test_kernels_compile.py in a process of its own, since nothing may be interpreted in it.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.runtime import driver


class NoGpu:
    """What Triton asks of a driver before it launches."""

    launcher_cls = staticmethod(lambda *args, **kwargs: None)

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 160_000, "multiprocessor_count": 100, "warpSize": 32, "max_num_regs": 65536}

    def unload_module(self, module: Any) -> None:
        pass

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    @staticmethod
    def is_active() -> bool:
        return True


def integer_kernels() -> None:
    """Everything that `DeviceCoder` launches, at the shipped model's sizes."""
    import numpy as np

    import l2c.kernels
    from l2c import models
    from l2c.entropy.coder import EncodingJob
    from l2c.format.levels import OperatingPoint
    from l2c.ops import extension

    # A CPU's tensors stand for a GPU's: its block sizes, and the kernels themselves.
    extension.triton_reason = lambda device: ""  # type: ignore[assignment]
    for name in ("int_conv", "mixture", "context"):
        __import__(f"l2c.kernels.{name}")
        getattr(l2c.kernels, name).block_size = lambda device, size, needed: size
    model = models.load_model("l2c-default").integer

    def jobs_of(*sizes: tuple[int, int]) -> list[EncodingJob]:
        return [EncodingJob(h, w, OperatingPoint(500, 8, 8), 96, np.full((96, h, w), 128, np.uint8)) for h, w in sizes]

    coder = model.backends()["triton"].coder(torch.device("cpu"))
    # Large tiles for P's largest blocks, as `DeviceCoder.prove` asks for, and small ones for its smallest. Four of
    # each, because rows of int32 [., 4] all start at multiples of 16 bytes: where some do not, Triton compiles once
    # more, to the same instructions.
    coder.geometry(jobs_of(*4 * [(33, 17)])).run(lambda number: None)
    jobs = jobs_of((256, 256), (33, 17), (96, 64), (200, 256))
    geometry = coder.geometry(jobs)
    geometry.load(jobs)
    coder.reserve_windows(geometry)
    geometry.start = geometry.freq = torch.zeros((4, geometry.total), dtype=torch.int32)
    geometry.words = torch.zeros(16, dtype=torch.int16)
    geometry.run(geometry.encode_group)
    words = torch.zeros((4, 9), dtype=torch.int16)
    for lanes in (8, 64):
        geometry.run(lambda number, lanes=lanes: geometry.decode_group(number, lanes))
        coder.kernels.rans_encode_fwd(
            geometry.start, geometry.freq, geometry.position, geometry.lanes, geometry.states, words, geometry.end,
            geometry.status, lanes,
        )  # fmt: skip


def float_kernels() -> None:
    """Everything that `ops` launches on float tensors: forward and backward, float32 and bfloat16."""
    from l2c.kernels import mixture_bits, patch_epilogue, quantise
    from l2c.ops import Grid
    from l2c.ops.contract import NEIGHBOUR_MARGIN

    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 24, 16, 16).contiguous(memory_format=torch.channels_last)
        params = torch.randn(2, 3 * 3 * 24, 16, 16).to(dtype).contiguous(memory_format=torch.channels_last)
        b = torch.tensor([8, 3])
        mixture_bits.mixture_bits_fwd(x, params, 3, b)
        mixture_bits.neighbour_bits_fwd(x, params, 3, b)
        mixture_bits.mixture_bits_bwd(x, x, params, 3, b)
        mixture_bits.mixture_bits_bwd(x, x, params, 3, b, NEIGHBOUR_MARGIN)
        y = x.to(dtype)
        for patches, residual in itertools.product((None, 3), (None, y)):
            table = torch.randn(2, 24, patches or 1, patches or 1)
            grid = None if patches is None else Grid(8)
            patch_epilogue.patch_epilogue_fwd(y, table, table, residual, 0.1, grid, grid)
            patch_epilogue.patch_epilogue_bwd(y, y, table, table, 0.1, grid, grid)
            patch_epilogue.patch_sums(y, y, table, grid)
        tau = torch.rand(2, 1, 16, 16)
        for mask, back in itertools.product((None, tau), (False, True)):
            quantise.quantise_fwd(y, b, mask, back)
        quantise.dequantise_fwd(torch.zeros(2, 24, 16, 16, dtype=torch.uint8), b)


def main() -> None:
    driver.set_active(NoGpu(int(sys.argv[1])))
    launch, seen = JITFunction.run, {}

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        seen.setdefault(self.fn.__name__, set()).add(kernel.hash)
        assert kernel.asm["cubin"]
        return kernel

    JITFunction.run = compile_only
    integer_kernels()
    float_kernels()
    for name, variants in sorted(seen.items()):
        print(f"{name}: {len(variants)} compiled for sm_{sys.argv[1]}")


if __name__ == "__main__":
    main()
