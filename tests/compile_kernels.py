"""Compiles every Triton kernel for a GPU that is not there: `python tests/compile_kernels.py 90` (compute capability).

A driver that only names the GPU takes the place of CUDA's, and launches stop once the machine code exists. Of variants
that differ in nothing but sizes (channels, blocks, lanes, mixtures) the first is compiled; `--all` compiles each of
them, three times as long, for a change of a kernel. Prints one line for each kernel; run by test_kernels_compile.py in
a process of its own, since nothing may be interpreted in it.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

MOST_SHARED = 227 << 10  # bytes that a block can have on Hopper


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


def stand_in() -> None:
    """A CPU's tensors stand for a GPU's: with its block sizes, and the kernels themselves."""
    import l2c.kernels
    from l2c.ops import extension

    extension.triton_reason = lambda device: ""  # type: ignore[assignment]
    for name in ("int_conv", "mixture", "context", "hyperprior", "exact"):
        __import__(f"l2c.kernels.{name}")
        getattr(l2c.kernels, name).block_size = lambda device, size, needed: size


def integer_kernels() -> None:
    """Everything that `DeviceCoder` launches, at the shipped model's sizes."""
    import numpy as np

    from l2c import models
    from l2c.entropy.coder import EncodingJob
    from l2c.format.levels import OperatingPoint

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


def hyperprior_kernels() -> None:
    """Everything that decoding with a hyperprior launches; weights are zeros."""
    import numpy as np

    from l2c import ops
    from l2c.architectures import ARCHITECTURES
    from l2c.entropy.coder import DecodingJob
    from l2c.entropy.hyperprior.backends.device_coder import Geometry
    from l2c.entropy.hyperprior.backends.device_level import DeviceLevel
    from l2c.entropy.hyperprior.integer_weights import HyperLayer, IntegerLevel, hyper_plan
    from l2c.format.levels import OperatingPoint
    from l2c.ops.contract import IntegerLayer

    kernels = ops.integer_kernels(torch.device("cpu"))

    def layer(outputs: int, inputs: int, kernel: int) -> IntegerLayer:
        weight = np.zeros((outputs, inputs, kernel, kernel), np.int8)
        return IntegerLayer(weight, np.zeros(outputs, np.int32), np.ones(outputs, np.float32))

    def level(name: str, n: int, m: int, fraction: int) -> IntegerLevel:
        facts, hyper, inputs = ARCHITECTURES[name], [], 2 * n
        for outputs, shuffle in hyper_plan(facts, n, m):
            hyper.append(HyperLayer(layer(outputs * (4 if shuffle else 1), inputs, 3), shuffle))
            inputs = outputs
        sizes = (4 * m, 10 * m // 3, 8 * m // 3, 2 * m) if facts.kind == "context" else ()
        return IntegerLevel(
            facts.kind, np.zeros((0 if facts.kind == "factorized" else n, 257), np.uint32), tuple(hyper),
            layer(2 * m, 12 * m, 1) if sizes else None, np.zeros(m, np.uint8),
            tuple(layer(outputs, inputs, 1) for inputs, outputs in itertools.pairwise(sizes)), np.zeros(m, np.int16),
            np.zeros((m if facts.kind == "factorized" else 0, 257), np.uint32), fraction,
        )  # fmt: skip

    stream = ops.range_encoder().finish()
    # One at published sizes, whose layers are the widest; they are most of what there is to compile.
    for name, n, m, fraction in (
        ("bmshj2018-factorized", 16, 32, 0), ("mbt2018-mean", 16, 32, 4), ("mbt2018", 96, 128, 0),
    ):  # fmt: skip
        sizes = ((9, 12), (5, 7))
        geometry = Geometry(DeviceLevel(level(name, n, m, fraction), torch.device("cpu"), kernels), sizes)
        geometry.load([DecodingJob(*size, OperatingPoint(0, 0, 8), m, stream) for size in sizes])
        for lanes in (8, 64):
            geometry.run(lanes)


def exact_kernels() -> None:
    """Everything that decoding with an integer D launches, at the shipped model's sizes."""
    from l2c import models
    from l2c.exact import ExactDecoder

    weights = models.load_model("l2c-default").exact
    assert weights is not None
    levels = torch.zeros((weights.config.c, 9, 13), dtype=torch.uint8)
    ExactDecoder(weights, None, torch.device("cpu"), "triton").decode(levels, 500, 0)


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


def kind_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """What makes another program of a kernel, whatever the sizes: types of tensors, flags, taps, written out or not."""
    types = [arg.dtype if isinstance(arg, torch.Tensor) else arg is None for arg in args]
    flags = [
        (name, value) for name, value in kwargs.items() if isinstance(value, bool | str) or name in ("KERNEL", "PART")
    ]
    unrolled = kwargs.get("KERNEL", 0) ** 2 * kwargs.get("CIN", 0) <= 16 * kwargs.get("BLOCK_K", 0)  # MOST_UNROLLED
    return *types, *flags, unrolled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capability", type=int)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    driver.set_active(NoGpu(options.capability))
    launch, kinds, seen = JITFunction.run, set(), {}

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        kind = self.fn.__name__, kind_of(args, kwargs)
        if kind in kinds and not options.all:
            return None
        kinds.add(kind)
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        seen.setdefault(self.fn.__name__, set()).add(kernel.hash)
        assert kernel.asm["cubin"] and kernel.metadata.shared <= MOST_SHARED, self.fn.__name__
        return kernel

    JITFunction.run = compile_only
    stand_in()
    hyperprior_kernels()
    integer_kernels()
    exact_kernels()
    float_kernels()
    for name, variants in sorted(seen.items()):
        print(f"{name}: {len(variants)} compiled for sm_{options.capability}")


if __name__ == "__main__":
    main()
