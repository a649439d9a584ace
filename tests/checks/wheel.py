"""Whether an installed wheel works as it is: the extension, the default model, a round trip and the command line.

    python tests/checks/wheel.py

Run it with the Python of an environment that has the wheel, this source tree not on its path. It needs no compiler;
cibuildwheel runs it after each build. Says what it found, and exits with 1 where something is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

import l2c
from l2c import ops

SOURCE = Path(__file__).resolve().parents[2]


def picture() -> npt.NDArray[np.uint8]:
    """A picture with smooth parts, edges and noise: uint8 [93, 140, 3]."""
    y, x = np.mgrid[:93, :140].astype(np.float64)
    planes = [128 + 90 * np.sin(x / 17 + k) * np.cos(y / 23) + 40 * ((x // 20 + y // 15 + k) % 2) for k in range(3)]
    noise = np.random.default_rng(1).normal(0, 3, (93, 140, 3))
    return (np.stack(planes, -1) + noise).clip(0, 255).astype(np.uint8)


def paths() -> list[str]:
    """The CPU paths of this machine."""
    return [name for name in ("scalar", "avx2", "avx512", "neon") if ops.cpp_extension().cpu_has(name)]


def check() -> str:
    """Returns what was found. Raises AssertionError for what is wrong."""
    installed = Path(l2c.__file__).resolve()
    assert SOURCE not in installed.parents, f"this is the source tree: {installed}"
    x = picture()
    codec = l2c.Codec(backend="cpu")
    data = codec.encode(x, bpp=1.0)
    assert 8 * len(data) <= 93 * 140, f"{len(data)} bytes are more than 1 bit per pixel"
    x_hat = codec.decode(data)
    mean_square = float(np.mean((x_hat.astype(np.float64) - x) ** 2))
    assert x_hat.shape == x.shape and mean_square < 400, f"a bad picture: mean squared error {mean_square:.0f}"
    written = set()
    for name in paths():
        ops.cpp_extension().set_cpu(name)
        assert codec.verify(data), f"{name} reads other latents"
        written.add(codec.encode(x, quality=60))
    assert len(written) == 1, f"the paths {paths()} write {len(written)} different files"
    ops.cpp_extension().set_cpu("")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.l2c"
        path.write_bytes(data)
        told = subprocess.run(
            [sys.executable, "-m", "l2c", "info", str(path)],
            capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        assert told.returncode == 0 and "140" in told.stdout, told.stdout + told.stderr
    return f"{installed.parent}: {len(data)} bytes, mean squared error {mean_square:.1f}, paths {', '.join(paths())}"


if __name__ == "__main__":
    print(check())
