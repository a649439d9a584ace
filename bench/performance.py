"""Compares a run of `make bench` with the last record, and writes docs/PERFORMANCE.md from records.

    make bench                                                   run everything, then this on runs/bench.json: compare
                                                                 with the record
    python bench/performance.py runs/bench.json --keep cpu       make this run the record records/bench/cpu.json
    python bench/performance.py --write docs/PERFORMANCE.md      write the page from records/bench/*.json

A record holds medians and what they were measured on; one of a GPU is named gpu. The page has floors beside figures:
operations over the machine's peak, bytes over its bandwidth. GPU rows that nobody has measured yet are predictions by
operation count and say so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent.parent / "records" / "bench"
BEGIN, END = "<!-- written by bench/performance.py: begin -->", "<!-- end -->"
SLOWER = 1.3  # the machines are noisy

# NVIDIA's figures for an H100 SXM, dense, multiply-accumulates and bytes a second; an H200 has 4.8e12 bytes.
H100 = {"int8": 990e12, "float32": 33.5e12, "bfloat16": 495e12, "bytes": 3.35e12}
# Assumptions of the predictions. A launch inside a CUDA graph takes some 2.5 us where its work is small.
LAUNCH_SECONDS = 2.5e-6
SHARE_OF_PEAK = {"int8": 0.15, "float32": 0.4, "bfloat16": 0.4}

Row = dict[str, Any]


def compact(run: dict[str, Any]) -> dict[str, Any]:
    """A record of what pytest-benchmark wrote: rows by name, with the median in seconds and the quartiles' distance."""
    rows = {}
    for test in run["benchmarks"]:
        stats = test["stats"]
        rows[test["name"]] = {
            "median": stats["median"],
            "iqr": stats["iqr"],
            "rounds": stats["rounds"],
            **test["extra_info"],
        }
    return {"date": run["datetime"][:10], "machine": run["machine_info"], "rows": rows}


def compare(new: dict[str, Any], old: dict[str, Any] | None) -> list[str]:
    """One line for each row: its median, and how many times as long as in the record."""
    lines = []
    if old is not None:
        for key in ("cpu", "gpu", "threads", "torch"):
            if new["machine"][key] != old["machine"][key]:
                lines.append(
                    f"the record is of another machine: {key} {old['machine'][key]}, now {new['machine'][key]}"
                )
    for name, row in new["rows"].items():
        before = (old or {"rows": {}})["rows"].get(name)
        ratio = row["median"] / before["median"] if before else None
        mark = "" if ratio is None else f"{ratio:6.2f} of the record" + ("  SLOWER" if ratio > SLOWER else "")
        lines.append(f"{1e3 * row['median']:12.3f} ms  {name:<60} {mark}")
    return lines


class Page:
    """The rows of a record as the page needs them."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.rows: list[Row] = list(record["rows"].values())
        self.peaks: dict[tuple[str, str], float] = {}  # (device, kind) -> multiply-accumulates or bytes a second
        for row in self.rows:
            part = row.get("part", "")
            if part.startswith("machine "):
                key = row["device"], part.removeprefix("machine ").removeprefix("convolution ")
                speed = row.get("macs", row.get("bytes")) / row["median"]
                self.peaks[key] = max(speed, self.peaks.get(key, 0.0))

    def row(self, part: str, device: str = "cpu", **facts: Any) -> Row | None:
        """The row of a part on a device, or None."""
        for row in self.rows:
            same = all(row.get(key) == value for key, value in facts.items())
            if row.get("part") == part and row.get("device") == device and same:
                return row
        return None

    def share(self, row: Row, kind: str) -> str:
        """What share of the machine's peak a row reaches."""
        peak = self.peaks.get((row["device"], kind))
        return "" if peak is None else f"{100 * row['macs'] / row['median'] / peak:.0f} % of the {kind} peak"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def ms(row: Row) -> str:
    return f"{1e3 * row['median']:.3g}"


def stages(page: Page, device: str) -> list[str]:
    """One picture, stage by stage."""
    own = "cpu" if device == "cpu" else "triton"
    rows = []

    def add(part: str, title: str, note: str) -> None:
        row = page.row(part, device)
        if row is not None:
            rows.append([title, ms(row), note])

    entropy, plain = page.row(f"entropy decoding, {own}", device), page.row("entropy decoding, torch", device)
    decoder = page.row("D, float32", device)
    for precision in ("float32", "bfloat16"):
        for network in ("D", "E"):
            row = page.row(f"{network}, {precision}", device)
            if row is not None:
                kmac = row["macs"] / row["megapixels"] / 1e9
                add(
                    f"{network}, {precision}",
                    f"{network}, {precision}",
                    f"{kmac:.1f} kMAC a pixel, {page.share(row, precision)}",
                )
    row = page.row("D, float32, torch.compile", device)
    if row is not None and decoder is not None:
        ratio, seconds = row["median"] / decoder["median"], row["compile_seconds"]
        add(row["part"], row["part"], f"{ratio:.2f} of D's time, {seconds:.0f} s to compile: not used")
    if entropy and plain and decoder:
        note = f"{entropy['median'] / decoder['median']:.2f} of D's time in float32"
        add(f"entropy decoding, {own}", "entropy decoding: all of P, and the coder", note)
        add(
            "entropy decoding, torch",
            "the same in the PyTorch form" + (", carried by float64" if device == "cpu" else ""),
            f"{plain['median'] / entropy['median']:.1f} times as long",
        )
    row = page.row("P with its parameters", device)
    if row is not None:
        note = f"as dense layers {row['macs'] / row['median'] / 1e9:.0f} GMAC/s, {page.share(row, 'int8')}"
        add("P with its parameters", "P alone with its parameters; zeros are left out", note)
    for size in ("768x512", "2000x1128"):
        for precision in ("exact", "float32", "bfloat16"):
            row = page.row(f"decode {size}, {precision}", device)
            if row is not None:
                add(row["part"], row["part"], f"{row['megapixels'] / row['median']:.1f} megapixels/s")
        for form in ("exact, triton", "exact, torch", "float32", "bfloat16"):
            row = page.row(f"D alone {size}, {form}", device)
            if row is not None:
                add(row["part"], row["part"], f"{row['megapixels'] / row['median']:.1f} megapixels/s")
    for row in page.rows:
        if row.get("device") == device and row.get("part", "").startswith("decode a batch"):
            add(row["part"], row["part"], f"{row['pictures'] / row['median']:.1f} pictures/s")
    return table(["stage", "ms", "note"], rows)


def efforts(page: Page, device: str) -> list[str]:
    rows = []
    for row in page.rows:
        if row.get("device") == device and "effort" in row:
            rows.append([str(row["effort"]), f"{row['median']:.3g}", f"{row['median'] / row['megapixels']:.3g}"])
    return table(["effort", "seconds", "seconds per megapixel"], rows)


def operators(page: Page, device: str) -> list[str]:
    """Operators: ours against the PyTorch or plain form, and the floor."""
    own = "cpu" if device == "cpu" else "triton"
    rows = []
    for part, kind, other in (
        ("layer w1", "int8", "torch"), ("layer w2", "int8", "torch"), ("layer w4", "int8", "torch"),
        ("mixture parameters", "memory", "reference"), ("bits of mixtures", "memory", "reference"),
        ("bits of neighbours", "memory", "reference"), ("patch epilogue", "memory", "reference"),
    ):  # fmt: skip
        row, plain = page.row(part, device, backend=own), page.row(part, device, backend=other)
        if row is None or plain is None:
            continue
        work = row["macs"] if kind == "int8" else row["bytes"]
        peak = page.peaks.get((device, kind))
        floor = "" if peak is None else f"{1e3 * work / peak:.3g} ({kind})"
        rows.append([part, ms(row), floor, f"{plain['median'] / row['median']:.1f}x the {other} form"])
    for row in page.rows:  # of the coder, on a GPU alone
        if row.get("device") == device and row.get("part", "").startswith("GPU "):
            title = f"{row['part'].removeprefix('GPU ')}, {row['streams']} streams of {row['lanes']} lanes"
            peak = page.peaks.get((device, "memory"))
            floor = "" if peak is None else f"{1e3 * row['bytes'] / peak:.3g} (memory)"
            rows.append([title, ms(row), floor, f"{row['symbols'] / row['median'] / 1e6:.0f} Msym/s"])
    return table(["operator", "ms", "floor, ms", "against, or speed"], rows)


def coder(page: Page) -> list[str]:
    rows = []
    for name, row in page.record["rows"].items():
        if "ns_per_symbol" in row:
            rows.append(
                [name.removeprefix("test_"), f"{1e3 / row['ns_per_symbol']:.0f}", f"{row['bits_per_symbol']:.3f}"]
            )
    return table(["coder", "Msym/s", "bits per symbol"], rows)


def peers(page: Page) -> list[str]:
    rows = []
    for name in ("JPEG", "WEBP", "AVIF"):
        parts = [page.row(f"{name} {what}") for what in ("encode", "decode")]
        if all(parts):
            rows.append([name, *(ms(row) for row in parts if row)])
    return table(["codec", "encode, ms", "decode, ms"], rows)


def predictions(gpu: Page | None) -> list[str]:
    """The GPU's targets by operation count, beside what was measured where a GPU was at hand."""
    from predictions import predicted_rows

    rows = []
    for title, part, floor, guess in predicted_rows(H100, SHARE_OF_PEAK, LAUNCH_SECONDS):
        row = gpu.row(part, "cuda") if gpu is not None and part else None
        measured = ms(row) if row is not None else "not measured"
        rows.append([title, f"{1e3 * floor:.3g}", f"{1e3 * guess:.3g} (prediction)", measured])
    return table(["on an H100", "floor, ms", "predicted, ms", "measured, ms"], rows)


def write(page_path: Path) -> None:
    cpu = Page(json.loads((RECORDS / "cpu.json").read_text()))
    gpu = Page(json.loads((RECORDS / "gpu.json").read_text())) if (RECORDS / "gpu.json").exists() else None
    machine = cpu.record["machine"]
    lines = [
        BEGIN,
        "",
        f"{cpu.record['date']}, {machine['threads']} cores of {machine['cpu']} ({', '.join(machine['capabilities'])}), "
        f"torch {machine['torch']}, Python {machine['python']}; `make bench`, medians. Peaks of the same run: "
        + ", ".join(
            f"{kind} {speed / 1e9:.0f} " + ("GB/s" if kind == "memory" else "GMAC/s")
            for (device, kind), speed in cpu.peaks.items()
            if device == "cpu"
        )
        + ". The machines are noisy: read ratios rather than milliseconds.",
        "",
        "## One picture, stage by stage",
        "",
        "A photograph of 768x512 pixels at 0.5 bpp (and of 2000x1128), files checked.",
        "",
        *stages(cpu, "cpu"),
        "Encoding to a target rate:",
        "",
        *efforts(cpu, "cpu"),
        "Other codecs on the same picture at our file's size (Pillow):",
        "",
        *peers(cpu),
        "## Operators",
        "",
        "At the finest scale of that picture (48x32 cells), C++ against the PyTorch or plain form. Bits are those of",
        "the float mixtures, with their gradients: training and the search over latents ask for them.",
        "",
        *operators(cpu, "cpu"),
        "## Range coder",
        "",
        "One thread; `ours` by instruction set and lanes, on a synthetic mixture of four components; peers get",
        "finished tables.",
        "",
        *coder(cpu),
        "## GPU",
        "",
        (
            f"Measured {gpu.record['date']} on {gpu.record['machine']['gpu']}."
            if gpu is not None
            else "No GPU was at hand: every figure of this table is a prediction by operation count "
            "(`bench/predictions.py`), to be measured by `experiments/gpu_all.sh`."
        ),
        "",
        *predictions(gpu),
    ]
    if gpu is not None:
        lines += ["Stage by stage:", "", *stages(gpu, "cuda"), "Encoding to a target rate:", "", *efforts(gpu, "cuda")]
        lines += ["Kernels:", "", *operators(gpu, "cuda")]
    text = page_path.read_text()
    before, rest = text.split(BEGIN)
    page_path.write_text(before + "\n".join(lines) + END + rest.split(END)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="JSON that pytest-benchmark wrote")
    parser.add_argument("--keep", choices=["cpu", "gpu"], help="make the run this record")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_args()
    if args.run is not None:
        new = compact(json.loads(args.run.read_text()))
        place = RECORDS / f"{args.keep or ('gpu' if new['machine']['gpu'] else 'cpu')}.json"
        print("\n".join(compare(new, json.loads(place.read_text()) if place.exists() else None)))
        if args.keep:
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(new, indent=1) + "\n")
    if args.write is not None:
        sys.path.insert(0, str(Path(__file__).parent))
        write(args.write)


if __name__ == "__main__":
    main()
