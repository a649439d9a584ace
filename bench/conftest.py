"""What all benchmarks share: pictures, codecs, the peaks of this machine, and what a record says of the machine."""

from __future__ import annotations

import contextlib
import platform
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data
import torch
from PIL import Image

import l2c
from l2c.devices import cpu_name
from l2c.errors import L2CWarning
from l2c.ops import arithmetic

THREADS = 2
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Keep what explains a figure, drop what names a machine."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    machine_info.clear()
    machine_info.update(
        cpu=cpu_name(),
        capabilities=sorted(key for key, on in flags.items() if on is True and key.startswith(("av", "am"))),
        threads=THREADS,
        python=platform.python_version(),
        torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        coder=l2c.ops.cpp_extension().cpu(),
    )


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Two threads; and what the codec had to do another way than it was asked to fails."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", L2CWarning)
        yield
    torch.set_num_threads(before)


def plain_float32(device: str) -> contextlib.AbstractContextManager[None]:
    """float32 that is no TF32, as the codec runs it on a GPU."""
    return arithmetic.ieee_float32() if device == "cuda" else contextlib.nullcontext()


@pytest.fixture(scope="session")
def picture() -> npt.NDArray[np.uint8]:
    """A photograph, uint8 [512, 768, 3]."""
    return np.asarray(Image.fromarray(skimage.data.coffee()).resize((768, 512), Image.Resampling.LANCZOS))


@pytest.fixture(scope="session")
def large_picture() -> npt.NDArray[np.uint8]:
    """The same photograph as large as the picture of L2C's 290 seconds, uint8 [1128, 2000, 3]."""
    return np.asarray(Image.fromarray(skimage.data.coffee()).resize((2000, 1128), Image.Resampling.LANCZOS))


@pytest.fixture(scope="session")
def codec() -> l2c.Codec:
    return l2c.Codec(threads=THREADS)


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., Any]:
    """timed(call, rounds=15, device="cpu", **facts): benchmark `call`, note facts, return what the last call gave.

    On a GPU the call is timed to the end of its work, warm. Facts that `bench/performance.py` reads: macs, bytes,
    symbols, megapixels of one call; part, the row of the page that it belongs to.
    """

    def run(call: Callable[[], Any], rounds: int = 15, device: str = "cpu", **facts: Any) -> Any:
        def synchronised() -> Any:
            result = call()
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        benchmark.extra_info.update(facts, device=device)
        warm = 3 if device == "cuda" else 1 if rounds > 1 else 0
        return benchmark.pedantic(synchronised, rounds=rounds, warmup_rounds=warm)

    return run
