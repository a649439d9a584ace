"""Many pictures: what there is to do, what is recorded, and that every file comes out once, whoever dies."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
from checks.bulk import workers_of_this_run
from command import Run, one_error
from PIL import Image

import l2c
from l2c import bulk
from l2c.bulk import places, sources
from l2c.bulk.drive import Drive, Result
from l2c.bulk.manifest import NAME, Manifest
from l2c.bulk.ray_engine import OnRay
from l2c.bulk.shards import read_members
from l2c.bulk.tasks import Begun, Died, Done, Event, Failed, Idle, Item, Ready, Spec, Task, portable
from l2c.bulk.worker import Interrupted, Worker
from l2c.codec import Codec
from l2c.files import Wanted

HERE = bulk.Settings(jobs=0)
PICTURES = Wanted("picture", frozenset({".png", ".jpg"}))


def picture(number: int, side: int = 16) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(number)
    return (rng.normal(0, 8, (side, side, 3)) + rng.uniform(40, 200, 3)).clip(0, 255).astype(np.uint8)


def png_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, "PNG")
    return buffer.getvalue()


def draw(folder: Path, count: int) -> Path:
    for number in range(count):
        path = folder / f"{number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(number))
    return folder


def lines(report: bulk.Report) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(report.manifest).read_text().splitlines()]


def make_shard(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


# What there is to do.


def test_sources(tmp_path: Path, memory: Any) -> None:
    draw(tmp_path / "photos", 3)
    (tmp_path / "photos" / "notes.txt").write_text("")
    for number in range(3):
        (tmp_path / "photos" / f"t-{number}.tar").touch()
    photos = str(tmp_path / "photos")

    found = sources.find(photos, PICTURES)
    assert [one.name for one in found.sources] == ["0/00.png", "0/02.png", "1/01.png", "t-0.tar", "t-1.tar", "t-2.tar"]
    assert [Path(part.path).name for part in found.left_out] == ["notes.txt"]
    names = [Path(place).name for place in sources.targets(found.sources, "out", ".l2c")]
    assert names == ["00.l2c", "02.l2c", "01.l2c", "t-0.tar", "t-1.tar", "t-2.tar"]
    for pattern in ("t-{0..2}.tar", "t-*.tar"):
        assert [one.name for one in sources.find(f"{photos}/{pattern}", PICTURES).sources] == names[3:]
    assert sources.find(f"{photos}/{{0,1}}/*.png", PICTURES).sources[0].name == "0/00.png"

    listed = tmp_path / "photos" / "all.lst"
    outside = tmp_path / "other.png"
    listed.write_text(f"# mine\n0/00.png\n\n../other.png\n{outside}\n0/00.png\nmemory://a/b.png?x=1\n")
    found = sources.find(str(listed), PICTURES)
    whole = outside.as_posix().lstrip("/")
    assert [one.name for one in found.sources] == ["0/00.png", whole, whole, "a/b.png"]  # one by two ways
    with pytest.raises(l2c.UnsupportedError, match="would both become"):
        sources.targets(found.sources, "out", ".l2c")

    memory.pipe({"/in/a/x.png": b"", "/in/y.jpg": b"", "/in/.hidden/z.png": b"", "/in/read.me": b""})
    found = sources.find("memory://in", PICTURES)
    assert [one[:2] for one in found.sources] == [("memory://in/a/x.png", "a/x.png"), ("memory://in/y.jpg", "y.jpg")]
    assert [part.reason for part in found.left_out] == ["hidden", "no picture"]
    assert sources.find("memory://in/*.jpg", PICTURES).sources[0].name == "y.jpg"
    with pytest.raises(FileNotFoundError, match="nothing in it"):
        sources.find("memory://in/.hidden", Wanted("L2C file", frozenset({".l2c"})))
    with pytest.raises(FileNotFoundError, match="no such"):
        sources.find(str(tmp_path / "nowhere"), PICTURES)


def test_packages_that_lack_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("fsspec.core", "braceexpand", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(l2c.BackendError, match=r"s3:// needs the package fsspec.*\[bulk\]"):
        places.read("s3://bucket/a.png")
    with pytest.raises(l2c.BackendError, match=r"braceexpand.*\[bulk\]"):
        sources.find("t-{0..2}.tar", PICTURES)
    with pytest.raises(l2c.BackendError, match=r"--ray needs the package ray.*\[ray\]"):
        OnRay("auto", Spec("encode"))
    monkeypatch.undo()
    with pytest.raises(l2c.UnsupportedError, match="nosuch"):
        places.read("nosuch://bucket/a.png")


def test_places_are_written_whole_or_not_at_all(tmp_path: Path, memory: Any) -> None:
    for folder in (str(tmp_path), "memory://out"):
        place = places.join(folder, "a/b.tar")
        with places.written(place, replace=False) as file:
            file.write(b"one")
        assert places.read(place) == b"one" and places.sizes_below(folder)(place) == 3
        with pytest.raises(ZeroDivisionError), places.written(place, replace=True) as file:
            file.write(b"two")
            raise ZeroDivisionError
        with pytest.raises(FileExistsError):
            places.write(place, b"three", replace=False)
        assert places.read(place) == b"one"
        read = places.read_all([place, places.join(folder, "none")])
        assert read[0] == b"one" and isinstance(read[1], FileNotFoundError)
    assert os.listdir(tmp_path / "a") == ["b.tar"] and list(memory.store) == ["/out/a/b.tar"]


# What is recorded.


def test_a_half_written_line_is_cut_off(tmp_path: Path) -> None:
    place = tmp_path / NAME
    record = {"input": "a", "output": "b", "bytes": 1, "error": None}
    with Manifest(str(place)) as manifest:
        assert manifest.is_new
        manifest.add([record])
        with pytest.raises(l2c.UnsupportedError, match="another run"):
            Manifest(str(place))
    with open(place, "ab") as file:
        file.write(b'{"input": "c", "outp')
    with Manifest(str(place)) as manifest:
        assert manifest.last == {"a": {"output": "b", "bytes": 1, "error": None}} and not manifest.is_new
        manifest.add([{**record, "input": "\udcff"}])  # a name that is no UTF-8
    assert [json.loads(line)["input"] for line in place.read_text().splitlines()] == ["a", "\udcff"]
    place.write_bytes(b"junk\n" + place.read_bytes())
    with pytest.warns(l2c.L2CWarning, match="1 lines are no records"), Manifest(str(place)) as manifest:
        assert list(manifest.last) == ["a", "\udcff"]


def test_a_manifest_at_a_url_grows_in_parts(memory: Any) -> None:
    for name in "ab":
        with Manifest("memory://out/m") as manifest:
            manifest.add([{"input": name}])
    assert sorted(memory.store) == ["/out/m/000000.jsonl", "/out/m/000001.jsonl"]
    with Manifest("memory://out/m") as manifest:
        assert list(manifest.last) == ["a", "b"]
    assert len(memory.store) == 2


# Runs, in this process.


def test_a_folder_there_and_back(tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, packed = draw(tmp_path / "photos", 5), str(tmp_path / "packed")
    (photos / "bad.png").write_bytes(b"\x89PNG no")
    Image.fromarray(picture(9)[..., 0].astype(np.uint16) * 257).save(photos / "deep.png")
    told: list[tuple[str, bool]] = []

    def encode(**options: Any) -> bulk.Report:
        return bulk.encode(
            photos,
            packed,
            model=str(tiny_model_path),
            **{
                "settings": HERE,
                "told": lambda record, error: told.append((record["input"], error is None)),
                **options,
            },
        )

    report = encode()
    state = report.progress
    assert not report.is_complete and (state.total, state.done, state.failed, state.pictures) == (7, 6, 1, 6)
    records = {Path(one["input"]).name: one for one in lines(report)}
    assert len(records) == len(told) == 7 and [Path(name).name for name, good in told if not good] == ["bad.png"]
    assert records["bad.png"]["error_type"] == "ImageError" and records["bad.png"]["bytes"] is None
    assert "deep.png: 16-bit" in records["deep.png"]["warnings"][0] and "warnings" not in records["00.png"]
    codec = Codec(tiny_model_path)
    for name in ("0/00", "1/01"):
        data = (tmp_path / "packed" / f"{name}.l2c").read_bytes()
        record = records[f"{name[-2:]}.png"]
        assert data == codec.encode(photos / f"{name}.png")
        assert (record["bytes"], record["rate"]) == (len(data), 8 * len(data) / 256) and record["seconds"] > 0

    # Once more: what is done is left alone, what failed is tried again, what has gone is made again.
    (tmp_path / "packed" / "0" / "02.l2c").unlink()
    (tmp_path / "packed" / "0" / "04.l2c").write_bytes(b"other")
    Image.fromarray(picture(7)).save(photos / "bad.png")
    before = (tmp_path / "packed" / "0" / "00.l2c").stat().st_mtime_ns
    told.clear()
    again = encode()
    assert again.is_complete and again.progress.skipped == 4
    assert sorted(Path(name).name for name, _ in told) == ["02.png", "04.png", "bad.png"]
    assert (tmp_path / "packed" / "0" / "00.l2c").stat().st_mtime_ns == before
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "__init__", None)  # no worker is made when there is nothing to do
        assert encode().progress.skipped == 7

    with pytest.raises(l2c.UnsupportedError, match=r"'encode model=tiny'.*quality=70"):
        encode(quality=70)
    report = encode(quality=70, settings=bulk.Settings(jobs=0, overwrite=True, batch=3))
    assert report.progress.done == 7 and encode(quality=70).progress.skipped == 7
    kept = Path(report.manifest).read_text().splitlines(keepends=True)[:-2]
    Path(report.manifest).write_text("".join(kept))  # as if it had been stopped there: goes on without overwriting all
    assert (encode(quality=70).progress.skipped, encode(quality=70).progress.skipped) == (5, 7)

    monkeypatch.setenv("L2C_MODEL_PATH", str(tiny_model_path))
    (tmp_path / "packed" / "1" / "junk.l2c").write_bytes(b"junk")
    back = bulk.decode(packed, str(tmp_path / "back"), settings=HERE)
    assert back.progress.done == 7 and back.progress.failed == 1
    assert {"bad.png", "deep.png", "0", "1", NAME} == set(os.listdir(tmp_path / "back"))
    pixels = np.asarray(Image.open(tmp_path / "back" / "0" / "00.png"))
    assert (pixels == codec.decode((tmp_path / "packed" / "0" / "00.l2c").read_bytes())).all()
    assert bulk.decode(packed, str(tmp_path / "back"), settings=HERE).progress.skipped == 7


def test_files_of_others_are_kept(tmp_path: Path, tiny_model_path: Path) -> None:
    photos, packed = draw(tmp_path / "photos", 2), tmp_path / "packed"
    (packed / "0").mkdir(parents=True)
    (packed / "0" / "00.l2c").write_bytes(b"mine")
    for _ in range(2):  # also when a manifest is there
        report = bulk.encode(photos, str(packed), model=str(tiny_model_path), settings=HERE)
        assert report.progress.failed == 1 and (packed / "0" / "00.l2c").read_bytes() == b"mine"
    # What is there without a record, below a manifest, is what a run left that was killed.
    manifest = packed / NAME
    manifest.write_text("".join(line + "\n" for line in manifest.read_text().splitlines() if "01.png" not in line))
    (packed / "1" / "01.l2c").write_bytes(b"old")
    report = bulk.encode(photos, str(packed), model=str(tiny_model_path), settings=HERE)
    assert report.progress.done == 1 and (packed / "1" / "01.l2c").stat().st_size > 3
    with pytest.raises(l2c.UnsupportedError, match="no such option: qualty"):
        bulk.encode(photos, str(packed), qualty=3)
    with pytest.raises(l2c.UnsupportedError, match="cannot write NOSUCH"):
        bulk.decode(str(packed), str(tmp_path / "back"), format="nosuch")
    with pytest.raises(NotADirectoryError):
        bulk.encode(photos, str(manifest), model=str(tiny_model_path), settings=HERE)


def test_what_changed_and_what_moved(tmp_path: Path, tiny_model_path: Path) -> None:
    """Changed inputs are worked on again, moved folders are not, and other inputs do not take what is there."""

    def encode(photos: Path, packed: Path) -> tuple[int, int, int]:
        progress = bulk.encode(str(photos), str(packed), model=str(tiny_model_path), settings=HERE).progress
        return progress.done, progress.skipped, progress.failed

    photos, packed = draw(tmp_path / "photos", 3), tmp_path / "packed"
    make_shard(photos / "s.tar", [("a.png", png_bytes(3))])
    assert encode(photos, packed) == (4, 0, 0) and encode(photos, packed) == (0, 4, 0)
    (photos / "0" / "00.png").write_bytes(png_bytes(8))
    make_shard(photos / "s.tar", [("a.png", png_bytes(4)), ("b.png", png_bytes(5))])
    assert encode(photos, packed) == (2, 2, 0) and encode(photos, packed) == (0, 4, 0)
    assert (packed / "0" / "00.l2c").read_bytes() == Codec(tiny_model_path).encode(picture(8))
    was = (photos / "1" / "01.png").stat().st_mtime_ns
    os.utime(photos / "1" / "01.png", ns=(was, was + 1))
    assert encode(photos, packed) == (1, 3, 0)

    others = draw(tmp_path / "others", 4)
    kept = {path: path.read_bytes() for path in packed.rglob("*.l2c")}
    assert encode(others, packed) == (1, 0, 3) and encode(others, packed) == (0, 1, 3)
    assert all(path.read_bytes() == data for path, data in kept.items())

    for path in photos.rglob("*.png"):  # of one time and size, as unpacked archives have them
        path.write_bytes((photos / "0" / "00.png").read_bytes())
        os.utime(path, ns=(10**18, 10**18))
    assert encode(photos, packed) == (3, 1, 0)
    photos, packed = photos.rename(tmp_path / "pictures"), packed.rename(tmp_path / "smaller")
    assert encode(photos, packed) == (0, 4, 0)
    (photos / "1" / "01.png").rename(photos / "1" / "04.png")
    assert encode(photos, packed) == (1, 3, 0)  # under another name it is another picture


def test_what_changed_in_a_store(tmp_path: Path, tiny_model_path: Path, memory: Any) -> None:
    def encode() -> int:
        return bulk.encode("memory://in", str(tmp_path), model=str(tiny_model_path), settings=HERE).progress.done

    memory.pipe({"/in/a.png": png_bytes(0), "/in/b.png": png_bytes(1)})
    assert (encode(), encode()) == (2, 0)
    memory.pipe("/in/a.png", png_bytes(2))
    assert (encode(), encode()) == (1, 0)
    assert [places.remote_stamp(facts) for facts in ({"size": 3}, {"size": 3, "ETag": "x"})] == ["", "3:x"]


def test_shards(tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2C_MODEL_PATH", str(tiny_model_path))
    members = [(f"{n:02d}.png", png_bytes(n)) for n in range(5)]
    shard = make_shard(
        tmp_path / "a-0.tar",
        [*members[:3], ("01.json", b"{}"), ("bad.png", b"junk"), ("00.jpg", png_bytes(8)), *members[3:]],
    )
    cut = tmp_path / "a-1.tar"
    cut.write_bytes(shard.read_bytes()[:1500])
    make_shard(tmp_path / "a-2.tar", members[:1])
    source, packed = str(tmp_path / "a-{0..2}.tar"), tmp_path / "packed"
    settings = bulk.Settings(jobs=0, batch=2)
    report = bulk.encode(source, str(packed), model=str(tiny_model_path), settings=settings)
    state = report.progress
    assert (state.done, state.failed, state.pictures, state.pictures_failed) == (2, 1, 7, 1)
    records = {one["input"].removeprefix(f"{tmp_path}/"): one for one in lines(report)}
    assert len(records) == 7 + 1 + 3 and records["a-0.tar::bad.png"]["error_type"] == "ImageError"
    assert (records["a-0.tar"]["pictures"], records["a-0.tar"]["failed"], records["a-0.tar"]["error"]) == (6, 1, None)
    assert records["a-1.tar"]["error_type"] == "BitstreamError" and "a-1.tar::00.png" not in records
    assert sorted(os.listdir(packed)) == ["a-0.tar", "a-2.tar", NAME]

    names = ["00.l2c", "01.l2c", "02.l2c", "01.json", "00.jpg.l2c", "03.l2c", "04.l2c"]
    with open(packed / "a-0.tar", "rb") as file:
        found = list(read_members(file))
    assert [member.name for member in found] == names and found[3].data == b"{}"
    assert found[0].data == Codec(tiny_model_path).encode(picture(0))

    # A shard that is done is left alone; that a member of it failed is not forgotten.
    again = bulk.encode(source, str(packed), model=str(tiny_model_path), settings=settings)
    assert again.progress.skipped == 2 and again.progress.pictures_failed == 1 and not again.is_complete
    make_shard(cut, members[:1])
    again = bulk.encode(source, str(packed), model=str(tiny_model_path), settings=settings)
    assert again.progress.done == 1 and not again.is_complete
    back = bulk.decode(str(packed / "a-*.tar"), str(tmp_path / "back"), settings=settings)
    assert back.is_complete and back.progress.pictures == 8
    with open(tmp_path / "back" / "a-0.tar", "rb") as file:
        assert [member.name for member in read_members(file)][:4] == ["00.png", "01.png", "02.png", "01.json"]


def test_urls(tiny_model_path: Path, memory: Any) -> None:
    memory.pipe(
        {"/in/a/x.png": png_bytes(1), "/in/y.png": png_bytes(2), "/in/bad.png": b"", "/lists/l.txt": b"../in/y.png"}
    )
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        info = tarfile.TarInfo("0.png")
        info.size = len(png_bytes(0))
        tar.addfile(info, io.BytesIO(png_bytes(0)))
    memory.pipe("/in/s.tar", shard.getvalue())
    for skipped in (0, 3):
        report = bulk.encode("memory://in", "memory://out", model=str(tiny_model_path), settings=HERE)
        assert (report.progress.skipped, report.progress.failed) == (skipped, 1)
    made = {name for name in memory.store if name.startswith("/out/") and NAME not in name}
    assert made == {"/out/a/x.l2c", "/out/y.l2c", "/out/s.tar"}
    assert memory.cat("/out/y.l2c") == Codec(tiny_model_path).encode(picture(2))
    report = bulk.encode("memory://lists/l.txt", "memory://more", model=str(tiny_model_path), settings=HERE)
    assert report.is_complete and memory.cat("/more/in/y.l2c") == memory.cat("/out/y.l2c")


def test_a_model_file_that_a_worker_does_not_see(tiny_model_path: Path, tmp_path: Path) -> None:
    spec = Spec("encode", "/elsewhere/tiny.safetensors", model_data=tiny_model_path.read_bytes())
    worker, target = Worker(spec), tmp_path / "o.l2c"
    (tmp_path / "i.png").write_bytes(png_bytes(3))
    events = [event for part in worker.work(Task((Item(str(tmp_path / "i.png"), str(target)),))) for event in part]
    assert [type(event) for event in events] == [Begun, Done] and target.exists()
    worker.stopped.set()
    with pytest.raises(Interrupted):
        list(worker.work(Task((Item(str(tmp_path / "i.png"), str(tmp_path / "more.l2c")),))))
    assert not (tmp_path / "more.l2c").exists()


def test_a_shard_after_a_worker_died_of_it(tiny_model_path: Path, tmp_path: Path) -> None:
    """Members in its hands are worked on alone, those given up are not begun; the others as before."""
    shard = make_shard(tmp_path / "s.tar", [(f"{n}.png", png_bytes(n)) for n in range(7)])
    task = Task(
        (Item(str(shard), str(tmp_path / "o.tar"), shard=True),),
        deaths={"2.png": 2, "3.png": 3},
        given_up={"3.png": l2c.BackendError("given up")},
    )
    events = [event for part in Worker(Spec("encode", str(tiny_model_path), batch=4)).work(task) for event in part]
    begun = [event.keys for event in events if isinstance(event, Begun)]
    assert begun == [("0.png", "1.png"), ("2.png",), ("4.png", "5.png", "6.png")]
    done = {event.key: event.outcome for event in events if isinstance(event, Done)}
    assert [key for key, outcome in done.items() if isinstance(outcome, Exception)] == ["3.png"]
    shard_facts = done[str(shard)]
    assert isinstance(shard_facts, dict) and (shard_facts["pictures"], shard_facts["failed"]) == (6, 1)
    with open(tmp_path / "o.tar", "rb") as file:
        assert [member.name for member in read_members(file)] == [f"{n}.l2c" for n in range(7) if n != 3]


# Who dies of what.


class Scripted:
    """Workers without processes: one dies when it begins a file or member that is called `bad`, or at once."""

    def __init__(self, bad: set[str], members: Sequence[str] = (), born_dead: int = 0) -> None:
        self.bad, self.members, self.born_dead = bad, members, born_dead
        self.waiting: list[tuple[int, Event]] = []
        self.started = 0
        self.work: Counter[str] = Counter()
        self.closed = False

    def start(self) -> int:
        self.started += 1
        dead = self.started <= self.born_dead
        self.waiting.append((self.started, Died("was killed") if dead else Ready()))
        return self.started

    def give(self, worker: int, task: Task) -> None:
        shard = task.items[0].shard
        keys = [key for key in self.members if key not in task.given_up] if shard else [i.source for i in task.items]
        groups = [[key] for key in keys] if shard and task.deaths else [keys[i : i + 3] for i in range(0, len(keys), 3)]
        for key in task.given_up:
            self.waiting.append((worker, Done(key, task.given_up[key])))
        for group in groups:
            self.waiting.append((worker, Begun(tuple(group))))
            for key in group:
                if key in self.bad:
                    self.waiting.append((worker, Died("was killed")))
                    return
                self.work[key] += 1
                self.waiting.append((worker, Done(key, {})))
        if shard:
            self.waiting.append((worker, Done(task.items[0].source, {})))
        self.waiting.append((worker, Idle()))

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        found, self.waiting = self.waiting, []
        return found

    def close(self) -> None:
        self.closed = True


def driven(engine: Any, items: Sequence[Item], **options: Any) -> tuple[list[Result], Drive]:
    drive = Drive(items, engine, **{"workers": 2, "batch": 5, "attempts": 3, **options})
    return [result for results in drive for result in results], drive


def test_a_file_that_kills_workers_is_given_up_alone() -> None:
    engine = Scripted({"7"})
    results, drive = driven(engine, [Item(f"{n}", f"o{n}") for n in range(20)])
    outcomes = {result.item.source: result.outcome for result in results}
    assert len(results) == len(outcomes) == 20 and drive.deaths == 3 and engine.closed
    assert {key for key, outcome in outcomes.items() if isinstance(outcome, Exception)} == {"7"}
    assert isinstance(outcomes["7"], l2c.BackendError) and "3 workers died of it" in str(outcomes["7"])
    assert set(engine.work.values()) == {1}


def test_a_member_that_kills_workers_is_given_up_alone() -> None:
    engine = Scripted({"m4"}, members=[f"m{n}" for n in range(9)])
    results, drive = driven(engine, [Item("s.tar", "o.tar", shard=True)])
    assert len(results) == 1 and results[0].outcome == {} and results[0].item.replace and drive.deaths == 3
    assert sorted(one.key for one in results[0].members) == [f"m{n}" for n in range(9)]
    assert [one.key for one in results[0].members if isinstance(one.outcome, Exception)] == ["m4"]


def test_workers_that_never_begin() -> None:
    with pytest.raises(l2c.BackendError, match="before they begin: the last one was killed"):
        driven(Scripted(set(), born_dead=99), [Item("a", "b")])
    assert len(driven(Scripted(set(), born_dead=2), [Item(f"{n}", "") for n in range(9)])[0]) == 9

    class Refusing(Scripted):
        def start(self) -> int:
            self.waiting.append((0, Failed(l2c.ModelMismatchError("no such model", wanted="ab"))))
            return 0

    engine = Refusing(set())
    with pytest.raises(l2c.ModelMismatchError):
        driven(engine, [Item("a", "b")])
    assert engine.closed


def test_errors_arrive_in_another_process() -> None:
    class Local(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} of {b}")

    assert str(portable(Local(1, 2))) == "Local: 1 of 2" and isinstance(portable(Local(1, 2)), l2c.L2CError)
    error = l2c.RateError("too low", 0.25)
    assert portable(error) is error


# Processes of this machine, and a cluster.


def check_killed(photos: Path, packed: Path, model: Path, settings: bulk.Settings) -> None:
    """Kill one worker while there is work: everything is done all the same, and nothing twice."""
    count = len(list(photos.rglob("*.png")))
    killed: list[int] = []

    def kill(state: bulk.Progress) -> None:
        if not killed and state.workers == settings.jobs and 0 < state.done < count - 20:  # when all are at work
            killed.append(workers_of_this_run()[0])
            os.kill(killed[0], signal.SIGKILL)

    report = bulk.encode(photos, str(packed), model=str(model), device="cpu", settings=settings, progress=kill)
    assert killed and report.progress.deaths == 1 and report.is_complete
    times = Counter(one["input"] for one in lines(report))
    assert set(times) == {str(path) for path in photos.rglob("*.png")} and set(times.values()) == {1}
    made = sorted(path.name for path in packed.rglob("*") if path.is_file())
    assert made == sorted([NAME, *(f"{n:02d}.l2c" for n in range(count))])
    codec = Codec(model)
    for name in ("0/00", f"{(count - 1) % 2}/{count - 1:02d}"):
        assert (packed / f"{name}.l2c").read_bytes() == codec.encode(photos / f"{name}.png")


def test_a_worker_is_killed(tmp_path: Path, tiny_model_path: Path) -> None:
    settings = bulk.Settings(jobs=1, batch=2)
    photos = draw(tmp_path / "photos", 60)
    check_killed(photos, tmp_path / "packed", tiny_model_path, settings)
    assert not multiprocessing.active_children()


def test_a_worker_of_ray_is_killed(tmp_path: Path, tiny_model_path: Path) -> None:
    ray = pytest.importorskip("ray")
    photos = draw(tmp_path / "photos", 400)
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        check_killed(photos, tmp_path / "packed", tiny_model_path, bulk.Settings(jobs=2, batch=2, ray="auto"))
        assert ray.is_initialized()  # it is the caller's
    finally:
        ray.shutdown()


# The command line.


def test_bulk_command(run: Run, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", 3)
    job = ("bulk", "encode", photos, tmp_path / "packed", "--model", "tiny", "--jobs", 0)
    code, out, err = run(*job, "--quality", 30)
    assert (code, err) == (0, "") and out.startswith("3 of 3 files") and "pictures/s" in out
    code, out, err = run(*job, "--quality", 30, "--json")
    assert code == 0 and json.loads(out)["skipped"] == 3 and json.loads(out)["manifest"].endswith(NAME)
    code, _, err = run(*job)
    assert code == 1 and "name another folder, or --overwrite" in one_error(err)
    code, _, err = run(*job, "--bpp", 1, "--psnr", 30)
    assert code == 2 and "--bpp or --psnr" in one_error(err)
    (photos / "bad.png").write_bytes(b"junk")
    code, out, err = run(*job, "--quality", 30)
    assert code == 1 and "bad.png" in one_error(err) and "1 pictures failed" in out
    code, out, err = run("bulk", "decode", tmp_path / "packed", tmp_path / "back", "--jobs", 0, "--format", "webp")
    assert (code, err) == (0, "") and (tmp_path / "back" / "0" / "00.webp").exists()
    code, _, err = run("bulk", "encode", photos, tmp_path / "n", "--model", "nosuch", "--jobs", 0)
    assert code == 4 and "nosuch" in one_error(err)


def test_jobs_of_a_folder(run: Run, tmp_path: Path) -> None:
    photos = draw(tmp_path / "photos", 6)
    (photos / "0" / "bad.png").write_bytes(b"junk")
    made: dict[int, list[dict[str, Any]]] = {}
    for jobs in (1, 2):
        code, out, err = run("encode", photos, tmp_path / f"o{jobs}", "--model", "tiny", "--jobs", jobs, "--json")
        assert code == 1 and "bad.png" in one_error(err)
        made[jobs] = [{k: v for k, v in one.items() if k not in ("seconds", "output")} for one in json.loads(out)]
    assert made[1] == made[2]  # in the same order
    for path in (tmp_path / "o1").rglob("*.l2c"):
        assert path.read_bytes() == (tmp_path / "o2" / path.relative_to(tmp_path / "o1")).read_bytes()
    code, out, _ = run("encode", photos, tmp_path / "o1", "--model", "tiny", "--jobs", 1, "--skip-existing")
    assert code == 1 and out.count("is there already") == 6
    assert run("decode", tmp_path / "o1", tmp_path / "back")[0] == 0
    pixels = (tmp_path / "back" / "1" / "03.png").read_bytes()
    (tmp_path / "back" / "1" / "03.png").unlink()
    code, out, err = run("decode", tmp_path / "o2", tmp_path / "back", "--jobs", 2, "--skip-existing")
    assert (code, err) == (0, "") and "6 of 6 files, 5 of them there already" in out
    assert (tmp_path / "back" / "1" / "03.png").read_bytes() == pixels


def test_parts_and_damaged_files(tmp_path: Path, tiny_model_path: Path) -> None:
    """Regions, scales and concealment, as `Codec.decode` has them; the manifest is of one such job."""
    codec, folder = Codec(tiny_model_path), tmp_path / "packed"
    folder.mkdir()
    files = {f"{number}": codec.encode(picture(number, 40), quality=50) for number in range(3)}
    for name, data in files.items():
        (folder / f"{name}.l2c").write_bytes(data if name != "2" else data[:-9])
    view: dict[str, Any] = {"region": (3, 5, 23, 35), "scale": 2}
    where: dict[str, Any] = {"model": str(tiny_model_path), "settings": HERE}
    report = bulk.decode(folder, str(tmp_path / "out"), **where, **view)
    assert report.progress.done == 2 and report.progress.failed == 1
    for name in ("0", "1"):
        made = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert np.array_equal(made, codec.decode(files[name], **view))
    with pytest.raises(l2c.UnsupportedError, match="is asked for"):
        bulk.decode(folder, str(tmp_path / "out"), **where, region=(0, 0, 9, 9))
    report = bulk.decode(folder, str(tmp_path / "all"), **where, **view, damaged="conceal")
    assert report.is_complete and report.progress.done == 3
    (record,) = (line for line in lines(report) if line["input"].endswith("2.l2c"))
    assert "tile 0 of 1 filled in" in record["warnings"][0]
    for options in ({"scale": 3}, {"damaged": "no"}):
        with pytest.raises(l2c.UnsupportedError):
            bulk.decode(folder, str(tmp_path / "none"), **where, **options)


def test_an_interruption_leaves_nothing_half_done(tmp_path: Path, tiny_model_path: Path) -> None:
    photos, packed = draw(tmp_path / "photos", 60), tmp_path / "packed"
    command = [sys.executable, "-m", "l2c", "bulk", "encode", photos, packed, "--model", tiny_model_path, "--jobs", "1"]
    process = subprocess.Popen(
        [*command, "--batch", "1", "--effort", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    manifest = packed / NAME
    end = time.monotonic() + 120
    while not (manifest.exists() and manifest.stat().st_size) and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes get it
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and one_error(err) == "l2c: error: interrupted"
    assert " of 60, " in out and "the same command goes on from here" in out
    with pytest.raises(ProcessLookupError):  # nobody is left, once multiprocessing's own helper has seen the end
        for _ in range(50):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    done = [json.loads(line) for line in manifest.read_text().splitlines()]
    files = {path for path in packed.rglob("*") if path.is_file()} - {manifest}
    assert 0 < len(done) < 60 and {Path(one["output"]) for one in done} <= files
    assert all(l2c.read_header(path.read_bytes()).file_size == path.stat().st_size for path in files)
