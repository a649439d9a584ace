"""Builds the extension `l2c._C` and, if asked to, `l2c._cuda`; metadata and settings are in pyproject.toml.

Every csrc/*/*.cpp is compiled by ninja with csrc/ as the one include root and the flags of its instruction set, which
the file's name tells: only the kernels in csrc/simd may use AVX or dot products, the rest runs on any machine of its
kind. Kernels of another kind of machine are left out. Needs setuptools, pybind11 and ninja; no torch.

    L2C_CUDA=1          build csrc/cuda as well, with the nvcc of CUDA_HOME or PATH; no GPU and no torch needed
    L2C_CUDA_ARCH=...   for which GPUs, as "80;90": machine code for each and PTX of the newest (default CUDA_ARCHS)
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
FOLDERS = ("core", "simd", "exact", "multiscale", "hyperprior", "bindings")  # of l2c._C; csrc/cuda is l2c._cuda
CFLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fPIC",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-DNDEBUG",
]
# By how the names of files end: the machines that they are built for, and their flags beyond CFLAGS.
X86 = ("x86_64", "amd64")
ARM = ("aarch64", "arm64")
MACHINES = {"_avx2.cpp": X86, "_avx512.cpp": X86, "_neon.cpp": ARM, "_neondot.cpp": ARM}
ISA_FLAGS = {
    "_neondot.cpp": ["-march=armv8.2-a+dotprod"],
    "_avx2.cpp": ["-mavx2", "-mno-fma"],
    "_avx512.cpp": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mno-fma",
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
    ],  # GCC 12 sees them inside its own intrinsics (GCC bug 105593)
}
FILE_FLAGS = {name: ["-mavx512vnni"] for name in ("dense_conv_avx512.cpp", "int_conv_avx512.cpp")}
CUDA_ARCHS = "80;86;89;90"
# The CUDA runtime is linked in, so that the module loads next to any PyTorch and where there is no CUDA at all.
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "-DNDEBUG"]


def builds_on(source: Path, machine: str) -> bool:
    """Whether a file is for machines of this kind (as `platform.machine()` says)."""
    return all(machine.lower() in kinds for suffix, kinds in MACHINES.items() if source.name.endswith(suffix))


def file_flags(source: Path) -> list[str]:
    """Flags of one file beyond CFLAGS."""
    flags = [flag for suffix, isa in ISA_FLAGS.items() if source.name.endswith(suffix) for flag in isa]
    return flags + FILE_FLAGS.get(source.name, [])


def ninja_path() -> str:
    """The ninja of the build environment, or the one on PATH."""
    try:
        import ninja
    except ImportError:
        return "ninja"
    return str(Path(ninja.BIN_DIR) / "ninja")


def ninja_escape(text: str) -> str:
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def cuda_wanted() -> bool:
    """Whether L2C_CUDA asks for l2c._cuda. Raises SystemExit for a value that says neither."""
    value = os.environ.get("L2C_CUDA", "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"L2C_CUDA must be 0 or 1, not {value!r}")
    return value == "1"


def nvcc_path() -> str:
    """The nvcc of CUDA_HOME, or the one on PATH. Raises SystemExit where there is none."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    if found is None:
        place = f"in CUDA_HOME ({home})" if home else "on PATH, and CUDA_HOME is not set"
        raise SystemExit(f"L2C_CUDA=1 needs the CUDA compiler: there is no nvcc {place}")
    return found


def cuda_arch_flags(archs: str) -> list[str]:
    """nvcc flags for "80;90": code for each, PTX of the newest. Raises SystemExit for anything else."""
    numbers = [arch.strip() for arch in archs.split(";") if arch.strip()]
    if not numbers or not all(number.isdecimal() for number in numbers):
        raise SystemExit(f'L2C_CUDA_ARCH must be like "80;90", not {archs!r}')
    newest = max(numbers, key=int)
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


class NinjaBuild(build_ext):
    """Writes a build.ninja for each extension and runs it."""

    def build_extension(self, ext: Extension) -> None:
        build_dir = Path(self.build_temp).resolve() / ext.name
        build_dir.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # A variable: CXX may hold a compiler with arguments. Python's own choice can be a compiler that is not here.
        compiler = os.environ.get("CXX", "c++")
        python = sysconfig.get_paths()
        includes = dict.fromkeys([str(CSRC), python["include"], python["platinclude"], pybind11.get_include()])
        cflags = CFLAGS + [f"-I{path}" for path in includes]
        cflags += shlex.split(os.environ.get("CXXFLAGS", ""))
        ldflags = ["-shared", "-pthread"] if sys.platform != "darwin" else ["-bundle", "-undefined", "dynamic_lookup"]
        ldflags += shlex.split(os.environ.get("LDFLAGS", ""))
        lines = [
            "ninja_required_version = 1.5",
            f"cxx = {compiler}",
            f"cflags = {shlex.join(cflags)}",
            f"ldflags = {shlex.join(ldflags)}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $cflags $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $cxx $in -o $out $ldflags",
        ]
        sources = sorted(ROOT / name for name in ext.sources)
        link = "link"
        if any(source.suffix == ".cu" for source in sources):
            # A compiler with arguments nvcc cannot take: it finds one itself then.
            words = shlex.split(os.environ.get("CXX", ""))
            host_compiler = f" -ccbin {shlex.quote(words[0])}" if len(words) == 1 else ""
            arch_flags = cuda_arch_flags(os.environ.get("L2C_CUDA_ARCH", CUDA_ARCHS))
            nvcc_flags = [*NVCC_FLAGS, f"-I{CSRC}", *arch_flags]
            lines += [
                f"nvcc = {ninja_escape(shlex.quote(nvcc_path()))}{host_compiler}",
                f"nvccflags = {shlex.join(nvcc_flags)}",
                "rule nvcc",
                "  command = $nvcc -MMD -MF $out.d $nvccflags -c $in -o $out",
                "  depfile = $out.d",
                "  deps = gcc",
                "rule nvcc_link",
                "  command = $nvcc -shared -cudart=static $in -o $out",
            ]
            link = "nvcc_link"
        objects = []
        for source in sources:
            objects.append(ninja_escape(str(build_dir / source.parent.name / f"{source.name}.o")))
            rule = "nvcc" if source.suffix == ".cu" else "compile"
            lines.append(f"build {objects[-1]}: {rule} {ninja_escape(str(source))}")
            if rule == "compile":
                lines.append(f"  flags = {shlex.join(file_flags(source))}")
        lines.append(f"build {ninja_escape(str(target))}: {link} {' '.join(objects)}")
        (build_dir / "build.ninja").write_text("\n".join(lines) + "\n")
        subprocess.run([ninja_path(), "-C", str(build_dir)], check=True)


def extension(name: str, *patterns: str) -> Extension:
    """An extension of the sources in csrc that match and are for this kind of machine."""
    machine = platform.machine()
    found = [path for pattern in patterns for path in CSRC.glob(pattern) if builds_on(path, machine)]
    return Extension(name, sorted(str(path.relative_to(ROOT)) for path in found))


def cuda_extension() -> Extension:
    return extension("l2c._cuda", "cuda/*.cpp", "cuda/*.cu")


if __name__ == "__main__":  # as build backends run it; tests import it
    extensions = [extension("l2c._C", *(f"{folder}/*.cpp" for folder in FOLDERS))]
    if cuda_wanted():
        nvcc_path()  # before anything is built
        extensions.append(cuda_extension())
    setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuild})
