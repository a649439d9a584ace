"""Builds the C++ extension `l2c._C`, and nothing else; metadata and settings are in pyproject.toml.

Every csrc/*.cpp is compiled by ninja with the flags of its instruction set, which the file's name tells: only the
dispatched kernels may use AVX, the rest runs on any machine. Needs setuptools, pybind11 and ninja; no torch.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
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
ISA_FLAGS = {
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
FILE_FLAGS = {"int_conv_avx512.cpp": ["-mavx512vnni"]}


def file_flags(source: Path) -> list[str]:
    """Flags of one file beyond CFLAGS; none off x86-64, where the SIMD files compile to nothing."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
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


class NinjaBuild(build_ext):
    """Writes a build.ninja for the one extension and runs it."""

    def build_extension(self, ext: Extension) -> None:
        build_dir = Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # A variable: CXX may hold a compiler with arguments. Python's own choice can be a compiler that is not here.
        compiler = os.environ.get("CXX", "c++")
        includes = [sysconfig.get_paths()["include"], sysconfig.get_paths()["platinclude"], pybind11.get_include()]
        cflags = CFLAGS + [f"-I{path}" for path in dict.fromkeys(includes)]
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
        objects = []
        for source in sorted(ROOT / name for name in ext.sources):
            objects.append(ninja_escape(str(build_dir / f"{source.stem}.o")))
            lines.append(f"build {objects[-1]}: compile {ninja_escape(str(source))}")
            lines.append(f"  flags = {shlex.join(file_flags(source))}")
        lines.append(f"build {ninja_escape(str(target))}: link {' '.join(objects)}")
        (build_dir / "build.ninja").write_text("\n".join(lines) + "\n")
        subprocess.run([ninja_path(), "-C", str(build_dir)], check=True)


setup(
    ext_modules=[Extension("l2c._C", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob("*.cpp")))],
    cmdclass={"build_ext": NinjaBuild},
)
