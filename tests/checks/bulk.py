"""Very many pictures: does every one come out once, though a worker is killed in the middle, and how fast?

    python tests/checks/bulk.py FOLDER [--count 2000] [--side 64] [--workers 2] [--ray local] [--rounds 3]

FOLDER is made, with so many drawn pictures, and gets the outputs. They are encoded by processes of this machine and,
where `--ray` names a cluster ("local" starts one), by Ray; each time one worker is killed when a third is done. Checked
after each: every output is there and is the one of the other engine, byte for byte; the manifest has one line for every
picture and no error; a second run does nothing. Told: pictures a second, since the first worker was ready and over all.

On a machine that others use, too, Linux gives Ray's workers a larger share, since each is in a session of its own
(sched_autogroup): compare the two on an idle one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from l2c import bulk


def draw(folder: Path, count: int, side: int) -> None:
    """Pictures with slopes, an edge and noise, in ten folders."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    for number in range(count):
        rng = np.random.default_rng(number)
        slopes = rng.uniform(-2, 2, (2, 3))
        planes = 128 + slopes[0] * (x[..., None] - side / 2) + slopes[1] * (y[..., None] - side / 2)
        top, left = rng.integers(0, side // 2, 2)
        planes[top : top + side // 3, left : left + side // 3] = rng.uniform(0, 255, 3)
        pixels = (planes + rng.normal(0, 6, planes.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{number % 10}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def workers_of_this_run() -> list[int]:
    """Processes of workers that descend from this one: spawned ones, and Ray's actors."""
    parents, names = {}, {}
    listed = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True).stdout
    for line in listed.splitlines()[1:]:
        pid, parent, name = line.split(None, 2)
        parents[int(pid)], names[int(pid)] = int(parent), name
    found = []
    for pid, name in names.items():
        if "spawn_main" not in name and "ray::Actor" not in name:
            continue
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid():
            found.append(pid)
    return found


def run(photos: Path, packed: Path, count: int, model: str, settings: bulk.Settings) -> float:
    """Encode all, kill a worker on the way, check everything. Returns pictures a second."""
    killed: list[int] = []

    def kill(state: bulk.Progress) -> None:
        if not killed and state.done >= count // 3 and state.workers == settings.jobs:
            killed.append(workers_of_this_run()[0])
            os.kill(killed[0], signal.SIGKILL)

    started = time.perf_counter()
    report = bulk.encode(photos, str(packed), model=model, device="cpu", settings=settings, progress=kill)
    seconds = time.perf_counter() - started
    state = report.progress
    lines = [json.loads(line) for line in Path(report.manifest).read_text().splitlines()]
    times = Counter(line["input"] for line in lines)
    wanted = {str(path) for path in photos.rglob("*.png")}
    assert killed and state.deaths == 1, f"{state.deaths} workers died"
    assert report.is_complete and state.done == state.pictures == count
    assert set(times) == wanted and set(times.values()) == {1}, "the manifest names each picture once"
    assert all(line["error"] is None and Path(line["output"]).stat().st_size == line["bytes"] for line in lines)
    left = [path for path in packed.rglob("*") if path.is_file() and path.suffix != ".l2c"]
    assert left == [packed / "l2c-manifest.jsonl"], left
    again = bulk.encode(photos, str(packed), model=model, device="cpu", settings=settings)
    assert again.progress.skipped == count and again.progress.total == 0
    engine = "local processes" if settings.ray is None else f"Ray ({settings.ray})"
    told = f"{engine}: {state.done} of {count} done, worker {killed[0]} killed, {len(lines)} lines, none twice, "
    print(f"{told}{state.rate:.1f} pictures/s of work, {count / seconds:.1f} over all {seconds:.1f} s", flush=True)
    return state.rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="l2c-default")
    parser.add_argument("--ray")
    parser.add_argument("--rounds", type=int, default=1, help="of both engines, in turn")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    photos, local, cluster = (args.folder / name for name in ("photos", "local", "ray"))
    draw(photos, args.count, args.side)
    rates: dict[Path, list[float]] = {local: [], cluster: []}
    for _ in range(args.rounds):
        for packed, address in ((local, None), (cluster, args.ray)):
            if packed == local or address is not None:
                shutil.rmtree(packed, ignore_errors=True)
                settings = bulk.Settings(jobs=args.workers, ray=address)
                rates[packed].append(run(photos, packed, args.count, args.model, settings))
    if args.ray is not None:
        for path in local.rglob("*.l2c"):
            assert path.read_bytes() == (cluster / path.relative_to(local)).read_bytes(), path
        by_ray, alone = statistics.median(rates[cluster]), statistics.median(rates[local])
        print(f"the same {args.count} files from both; medians {by_ray:.1f} by Ray, {alone:.1f} by local processes")


if __name__ == "__main__":
    main()
