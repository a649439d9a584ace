"""Who may include whom in csrc/: the arrows between its folders, and the libraries that each may use.

Every #include is read, none is compiled. Headers are named from the one include root, csrc/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)

# Folder -> the folders that its files may include besides itself.
ARROWS = {
    "core": set(),
    "simd": {"core"},
    "multiscale": {"core", "simd"},
    "hyperprior": {"core", "simd"},
    "exact": {"core", "simd"},
    "bindings": {"core", "simd", "exact", "multiscale", "hyperprior"},
    "cuda": {"core"},
}

# Beyond the C++ standard library, which has no folders and whose headers have no extension.
LIBRARIES = {
    "core": {"immintrin.h", "pthread.h", "sys/auxv.h", "sys/sysctl.h"},
    "simd": {"arm_neon.h", "immintrin.h"},
    "multiscale": set(),
    "hyperprior": set(),
    "exact": set(),
    "bindings": {"pybind11/numpy.h", "pybind11/pybind11.h", "pybind11/stl.h"},
    "cuda": {"pybind11/pybind11.h", "cuda_pipeline_primitives.h", "cuda_runtime.h"},
}


def faults(folder: str, text: str) -> Iterator[str]:
    """What a file of a folder includes although it may not."""
    for own, library in INCLUDE.findall(text):
        if own:
            room = own.split("/")[0]
            if not (CSRC / own).is_file():
                yield f'"{own}" is no file of csrc/'
            elif room != folder and room not in ARROWS[folder]:
                yield f'{folder} may not include "{own}"'
        elif not library.isidentifier() and library not in LIBRARIES[folder]:
            yield f"{folder} may not include <{library}>"


@pytest.mark.parametrize("folder", ARROWS)
def test_arrows(folder: str) -> None:
    files = sorted((CSRC / folder).iterdir())
    assert files
    wrong = [f"{path.relative_to(CSRC)}: {fault}" for path in files for fault in faults(folder, path.read_text())]
    assert not wrong, "\n".join(wrong)


def test_every_file_is_in_a_folder() -> None:
    assert {path.name for path in CSRC.iterdir()} == set(ARROWS)


def test_a_wrong_arrow_is_found() -> None:
    assert list(faults("core", '#include "multiscale/tile_coder.h"')) == [
        'core may not include "multiscale/tile_coder.h"'
    ]
    assert list(faults("core", "#include <Python.h>\n#include <torch/extension.h>\n# include <cstdint>")) == [
        "core may not include <Python.h>",
        "core may not include <torch/extension.h>",
    ]
    assert list(faults("simd", '#include "rans.h"')) == ['"rans.h" is no file of csrc/']
    assert not list(faults("bindings", '#include "multiscale/tile_coder.h"\n#include <pybind11/stl.h>'))
