"""Devices: those that a caller names, and what the processor is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from l2c.devices import checked_device, cpu_name
from l2c.errors import BackendError


def test_checked_device() -> None:
    assert checked_device("cpu") == checked_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("meta", "abacus", "cuda:99"):
        with pytest.raises(BackendError, match=f"device '{name}' cannot be used here: ") as caught:
            checked_device(name)
        assert "\n" not in str(caught.value)


def test_cpu_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2: fast\n\nmodel name\t: Other\n")
    assert cpu_name(cpuinfo) == "Some CPU @ 2: fast"
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "some64")
    cpuinfo.write_text("processor\t: 0\n")
    assert cpu_name(cpuinfo) == "some64"
    assert cpu_name(tmp_path / "none") == "some64"
