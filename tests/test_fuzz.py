"""A short run of the fuzzer; `python tests/fuzz/fuzz_decode.py --inputs 200000` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZER = Path(__file__).parent / "fuzz" / "fuzz_decode.py"


def test_no_input_gets_past_the_errors(tmp_path) -> None:
    """In a process of its own: a crash is a failure of this test, and the memory limit binds nobody else."""
    command = [
        sys.executable,
        str(FUZZER),
        "--inputs",
        "2000",
        "--seed",
        "7",
        "--seconds",
        "20",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2000 inputs" in done.stdout and done.stdout.rstrip().endswith("0 findings")
