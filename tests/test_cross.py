"""The C++ core on ARM64, cross-compiled and run under emulation: NEON against the portable paths, bit by bit.

Skipped where aarch64-linux-gnu-g++ or qemu-aarch64 is not installed (docs/BUILDING.md). L2C_CROSS=full asks for the
long runs, 10,000 random streams among them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import l2c
from l2c.entropy.coder import DecodingJob
from l2c.entropy.multiscale.backends.cpu import CpuBackend
from l2c.exact import Changes, ExactDecoder, ExactWeights
from l2c.exact.weights import split_transform
from l2c.models import load_model
from l2c.ops import Grid

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
FULL = os.environ.get("L2C_CROSS") == "full"

# Emulated machines and what their integer convolutions run: the first has all extensions, the second none.
MACHINES = {"max": "neondot", "cortex-a53": "neon"}
PROGRAMS = (
    "cross/neon.cpp", "cross/dense.cpp", "cross/golden.cpp", "cross/exact.cpp", "fuzz/fuzz_rans.cpp",
    "fuzz/fuzz_tile.cpp",
)  # fmt: skip

needs_tools = pytest.mark.skipif(
    COMPILER is None or EMULATOR is None, reason="needs aarch64-linux-gnu-g++ and qemu-aarch64"
)


@pytest.fixture(scope="module")
def setup_module() -> Any:
    """setup.py, imported."""
    spec = importlib.util.spec_from_file_location("l2c_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def programs(setup_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs for ARM64, built with the flags of setup.py; a warning is an error."""
    folder = tmp_path_factory.mktemp("cross")
    flags = [*setup_module.CFLAGS, "-Werror", f"-I{ROOT / 'csrc'}"]
    objects = []
    for name in ("core", "simd", "exact", "multiscale"):
        for source in sorted((ROOT / "csrc" / name).glob("*.cpp")):
            if setup_module.builds_on(source, "aarch64"):
                objects.append(str(folder / f"{name}_{source.stem}.o"))
                compile_by([*flags, *setup_module.file_flags(source), "-c", str(source), "-o", objects[-1]])
    for name in PROGRAMS:
        source = ROOT / "tests" / name
        # Half the time of -O3; what both define inline is linked as the core was compiled, which comes first.
        compile_by([*flags, "-O1", "-static", *objects, str(source), "-o", str(folder / source.stem)])
    return folder


def compile_by(arguments: Sequence[str]) -> None:
    assert COMPILER is not None
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(machine: str, program: Path, *arguments: object) -> str:
    """What a program says; fails where it does not end well."""
    assert EMULATOR is not None
    command = [EMULATOR, "-cpu", machine, str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@needs_tools
@pytest.mark.parametrize("machine", MACHINES)
def test_kernels(programs: Path, machine: str) -> None:
    runs = 3000 if FULL else 300
    assert run(machine, programs / "neon", "coder", runs) == f"coder: {runs} runs, equal\n"
    runs = 20000 if FULL else 1500
    assert run(machine, programs / "neon", "conv", runs) == f"conv: {runs} runs of {MACHINES[machine]}, equal\n"
    runs = 10000 if FULL else 500
    assert run(machine, programs / "dense", runs) == f"dense: {runs} runs of {MACHINES[machine]}, equal\n"


@needs_tools
def test_streams(programs: Path) -> None:
    runs = 10000 if FULL else 1000
    assert run("max", programs / "neon", "streams", runs).startswith(f"streams: {runs} of ")


@needs_tools
@pytest.mark.parametrize("machine", MACHINES)
def test_fuzzers(programs: Path, machine: str) -> None:
    """The fuzzers compare every path that a machine has, with damaged streams and several threads too."""
    runs = 20000 if FULL else 1000
    assert run(machine, programs / "fuzz_rans", runs, 3) == f"fuzz_rans: {runs} runs, nothing found\n"
    runs = 40 if FULL else 5
    assert run(machine, programs / "fuzz_tile", runs, 3) == f"fuzz_tile: {runs} runs, nothing found\n"


def write_numbers(file: Any, *numbers: int) -> None:
    file.write(np.array(numbers, np.int32).tobytes())


def write_layer(file: Any, layer: Any) -> None:
    outputs, inputs, kernel, _ = layer.weight.shape
    write_numbers(file, outputs, inputs, kernel)
    for array, kind in ((layer.weight, np.int8), (layer.bias, np.int32), (layer.multiplier, np.float32)):
        file.write(np.asarray(array).astype(kind).tobytes())


def write_cases(path: Path, weights: Any, cases: Sequence[tuple[DecodingJob, Any]]) -> None:
    """A model's P and what was decoded with it, in the format of tests/cross/golden.cpp."""
    config, tables = weights.config, weights.tables
    with path.open("wb") as file:
        groups = list(config.channel_groups)
        write_numbers(
            file, len(groups), *groups, config.num_scales, config.num_mixtures, int(weights.prior is not None)
        )
        for step in weights.steps:
            for layer in (step.w1, step.w2, step.w3, step.w4):
                write_layer(file, layer)
        for layer in weights.prior or ():
            write_layer(file, layer)
        for table, kind in ((tables.compand, np.int8), (tables.exp, np.uint16), (tables.inv_scale, np.uint16)):
            file.write(np.asarray(table).astype(kind).tobytes())
        write_numbers(file, len(cases))
        for job, symbols in cases:
            write_numbers(file, job.height, job.width, job.point.bits, job.used, len(job.payload))
            file.write(np.ascontiguousarray(weights.planes_of(job.point)).tobytes())
            file.write(bytes(job.payload))
            file.write(np.ascontiguousarray(symbols).tobytes())


@needs_tools
def test_golden_files(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tile of the frozen files, both ways. `verify` compares the latents with the CRC in the header first."""
    cases: list[tuple[DecodingJob, Any]] = []
    weights: list[Any] = []
    plain = CpuBackend.code

    def noting(self: CpuBackend, jobs: Any, *arguments: Any) -> Any:
        found = plain(self, jobs, *arguments)
        for job, symbols in zip(jobs, found):
            if isinstance(job, DecodingJob):
                cases.append((job, symbols))
                weights.append(self.weights)
        return found

    codec = l2c.Codec(GOLDEN / "golden.safetensors", backend="cpu")
    monkeypatch.setattr(CpuBackend, "code", noting)
    for name, expected in EXPECTED.items():
        assert codec.verify((GOLDEN / f"{name}.l2c").read_bytes()) == expected["latents_sha256"]
    assert len(cases) > len(EXPECTED)  # one of them has several tiles
    assert all(its is weights[0] for its in weights)
    write_cases(tmp_path / "cases", weights[0], cases)
    for machine, conv in MACHINES.items():
        answer = run(machine, programs / "golden", tmp_path / "cases")
        assert answer == f"golden: {len(cases)} tiles by scalar (scalar) neon ({conv}), equal\n"


class Noting:
    """A C++ ExactDecoder that keeps what it was given and what it made of it."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.cases: list[tuple[Any, ...]] = []

    def run(self, *arguments: Any) -> Any:
        pixels = self._decoder.run(*arguments)
        self.cases.append((*arguments[:-1], pixels))
        return pixels


def write_pictures(path: Path, weights: ExactWeights, cases: Sequence[tuple[Any, ...]]) -> None:
    """A model's integer D and what was decoded with it, in the format of tests/cross/exact.cpp."""
    config = weights.config
    with path.open("wb") as file:
        local_gain, fine = int(config.local_gain), int(config.fine_width > 0)
        write_numbers(file, config.s, config.c, config.decoder_blocks, local_gain, fine)
        for layer in weights.convolutions.values():
            write_layer(file, layer)
            file.write(layer.zero.tobytes())
        for part in split_transform(weights.transform):
            file.write(part.tobytes())
        write_numbers(file, len(cases))
        for case in cases:
            levels, level, constants_map, inputs, factor, *others = case
            factor_unit, head, last, scale_map, scales, bias_map, biases, pixels = others
            write_numbers(file, *levels.shape[1:], len(inputs), factor.shape[2], len(scales[0]))
            write_numbers(file, 0 if biases is None else len(biases))
            maps = (constants_map, scale_map, bias_map)
            for array in (levels, level, inputs, factor, factor_unit, head, last, *scales, biases, *maps, pixels):
                if array is not None:
                    file.write(array.tobytes())


@needs_tools
def test_pixels(programs: Path, tmp_path: Path) -> None:
    """The default model's integer D: its known answer, and a picture with bias sets."""
    model = load_model()
    assert model.exact is not None and model.bias_sets is not None
    decoder = ExactDecoder(model.exact, model.bias_sets.values, torch.device("cpu"), "cpu")
    noting = decoder._cpp = Noting(decoder._cpp)
    assert decoder.known_answer() == model.exact_answer
    rng = np.random.default_rng(0)
    levels = torch.from_numpy(rng.integers(0, 256, (model.exact.config.c, 2, 5)).astype(np.uint8))
    decoder.decode(levels, 500, 0, Changes(sets=np.array([[0, 1, 255]], np.uint8), set_grid=Grid(2, 0, 0)))
    write_pictures(tmp_path / "pictures", model.exact, noting.cases)
    for machine, name in MACHINES.items():
        answer = run(machine, programs / "exact", tmp_path / "pictures")
        assert answer == f"exact: {len(noting.cases)} pictures by scalar {name}, equal\n"


def test_each_machine_has_its_own_sources(setup_module: Any) -> None:
    """Neither kind of machine compiles the other's kernels; those of dot products have flags of their own."""
    sources = sorted((ROOT / "csrc" / "simd").glob("*.cpp"))
    x86, arm = ({s.name for s in sources if setup_module.builds_on(s, machine)} for machine in ("x86_64", "arm64"))
    assert x86 - arm == {
        "dense_conv_avx2.cpp", "dense_conv_avx512.cpp", "int_conv_avx2.cpp", "int_conv_avx512.cpp",
        "mixture_bits_avx2.cpp", "rans_avx2.cpp", "rans_avx512.cpp",
    }  # fmt: skip
    assert arm - x86 == {
        "dense_conv_neon.cpp", "dense_conv_neondot.cpp", "int_conv_neon.cpp", "int_conv_neondot.cpp", "rans_neon.cpp",
    }  # fmt: skip
    for kind in ("dense", "int"):
        assert setup_module.file_flags(Path(f"{kind}_conv_neondot.cpp")) == ["-march=armv8.2-a+dotprod"]
        assert setup_module.file_flags(Path(f"{kind}_conv_neon.cpp")) == []
