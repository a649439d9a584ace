"""The page of `bench/performance.py` from a made-up record: shares, ratios, and what was not measured said so."""

import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def performance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(BENCH))
    import performance

    monkeypatch.setattr(performance, "RECORDS", tmp_path)
    yield performance
    sys.modules.pop("performance")
    sys.modules.pop("predictions", None)


def benchmark(name: str, median: float, **facts: object) -> dict[str, object]:
    return {
        "name": name,
        "stats": {"median": median, "iqr": 0.0, "rounds": 3},
        "extra_info": {"device": "cpu", **facts},
    }


def run_of(entropy: float) -> dict[str, object]:
    machine = {"cpu": "a CPU", "capabilities": ["avx2"], "threads": 2, "torch": "2", "python": "3", "gpu": ""}
    rows = [
        benchmark("peak", 0.5, part="machine convolution float32", macs=1e9),
        benchmark("slower shape", 1.0, part="machine convolution float32", macs=1e9),
        benchmark("d", 0.1, part="D, float32", macs=1e8, megapixels=0.5),
        benchmark("entropy", entropy, part="entropy decoding, cpu", megapixels=0.5),
        benchmark("plain", 0.2, part="entropy decoding, torch", megapixels=0.5),
        benchmark("effort", 3.0, part="encode, effort 4", effort=4, megapixels=0.5),
    ]
    return {"datetime": "2026-01-02T03:04:05", "machine_info": machine, "benchmarks": rows}


def test_compare_names_what_got_slower(performance) -> None:
    old, new = (performance.compact(run_of(seconds)) for seconds in (0.02, 0.04))
    lines = {line.split()[2]: line for line in performance.compare(new, old)}
    assert "2.00 of the record  SLOWER" in lines["entropy"]
    assert "1.00 of the record" in lines["plain"]
    assert "SLOWER" not in lines["plain"]
    assert all("record" not in line for line in performance.compare(new, None))


def test_page(performance, tmp_path: Path) -> None:
    (tmp_path / "cpu.json").write_text(json.dumps(performance.compact(run_of(0.02))))
    page = tmp_path / "page.md"
    page.write_text(f"# Kept\n{performance.BEGIN}\nold\n{performance.END}\nkept as well\n")
    performance.write(page)
    text = page.read_text()
    assert text.startswith("# Kept\n")
    assert text.endswith("kept as well\n")
    assert "old" not in text
    assert "50 % of the float32 peak" in text  # 1e9 a second of the best 2e9
    assert "0.20 of D's time" in text
    assert "10.0 times as long" in text
    assert "| 4 | 3 | 6 |" in text
    assert "(prediction)" in text
    assert "not measured" in text
    performance.write(page)
    assert page.read_text() == text
