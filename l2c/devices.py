"""Where things run: the device that a caller names, and the name of the processor."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

import torch

from l2c.errors import BackendError


def checked_device(device: str | torch.device) -> torch.device:
    """The device of that name, one that works; "cuda" becomes the GPU that is current now.

    Raises:
        BackendError: it cannot be used here; one line that says why.
    """
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()  # "meta" fails here
        if str(chosen) == "cuda":  # which one is current is a matter of each thread
            chosen = torch.device("cuda", torch.cuda.current_device())
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise BackendError(f"device {str(device)!r} cannot be used here: {reason}") from None
    return chosen


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the processor, as far as the system tells.

    Args:
        cpuinfo: where Linux tells it.
    """
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"
