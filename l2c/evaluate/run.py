"""An evaluation: every codec at every rate on every picture, real files, decoded and measured."""

from __future__ import annotations

import itertools
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from l2c import __version__
from l2c.adapt.effort import EFFORTS, MAX_EFFORT, REVISION, Effort, EffortLevel
from l2c.arrays import UInt8Array
from l2c.codec import Codec, EncodeOptions
from l2c.codec.options import LOSSLESS, Lossless
from l2c.errors import BackendError, RateError, UnsupportedError
from l2c.evaluate.curves import plot, plot_time, quality_table, rate_table
from l2c.evaluate.measures import DEFAULT_FIGURES, FIGURES, measure
from l2c.evaluate.peers import PEERS, RateSearch, choose
from l2c.evaluate.records import Curve, Row, RowFile, load_published, mean_curves, to_compressai, to_csv
from l2c.files import write_atomically
from l2c.format.levels import DEFAULT_METRIC, METRICS, Metric
from l2c.images import load_picture
from l2c.objective import MIXED

DEFAULT_RATES = (0.06, 0.12, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # the eight of the JPEG AI challenge


_TITLES = {"psnr": "PSNR", "mixed": "mixed", "msssim": "MS-SSIM"}


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        pictures: files. rates: bpp, positive.
        metrics, efforts, lossless: of our codec; every combination is a codec of its own.
        peers: names of `peers.PEERS`, "all" or "none".
        figures: of `measures.FIGURES`.
    """

    pictures: Sequence[Path]
    rates: Sequence[float] = DEFAULT_RATES
    metrics: Sequence[str] = tuple(METRICS)
    efforts: Sequence[int] = (0,)
    peers: Sequence[str] = ("all",)
    figures: tuple[str, ...] = DEFAULT_FIGURES
    lossless: Sequence[str] = ("never",)  # the curves are of latents

    def __post_init__(self) -> None:
        if not self.rates or not all(0.0 < rate <= 64.0 for rate in self.rates):
            raise UnsupportedError(f"rates are {list(self.rates)}: each must be more than 0 and at most 64 bpp")
        for metric in self.metrics:
            if metric not in METRICS:
                raise UnsupportedError(f"there is no metric {metric!r}: choose from {', '.join(METRICS)}")
        unknown = [name for name in self.figures if name not in FIGURES]
        if unknown or not self.figures:
            raise UnsupportedError(f"figures are {list(self.figures)}: choose from {', '.join(FIGURES)}")
        if not self.lossless or not set(self.lossless) <= set(LOSSLESS):
            raise UnsupportedError(f"lossless is {list(self.lossless)}: choose from {', '.join(LOSSLESS)}")
        if not all(0 <= effort <= MAX_EFFORT for effort in self.efforts):
            raise UnsupportedError(f"efforts are {list(self.efforts)}: each must be 0..{MAX_EFFORT}")
        if len(set(map(float, self.rates))) < len(self.rates):
            raise UnsupportedError(f"rates are {list(self.rates)}: one of them stands there twice")
        names = [path.stem for path in self.pictures]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise UnsupportedError(f"several pictures are called {sorted(twice)[0]}: rows are told apart by that name")


@dataclass
class Outcome:
    """Attributes: curves of all codecs; the rows behind them, how many of them were measured now and how many the
    record had; (what, why) of every failure."""

    curves: list[Curve]
    rows: list[Row] = field(default_factory=list)
    measured: int = 0
    known: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Own:
    """One of our curves: a model, for a metric, with an effort, of latents alone or not.

    Attributes:
        name: in records. title: for people.
        targets: rates in bpp, or the qualities of a model that has networks at some alone.
    """

    codec: Codec
    metric: str
    effort: int
    lossless: str
    name: str
    title: str
    targets: tuple[float, ...]

    @classmethod
    def all_of(cls, codec: Codec, plan: Plan, *, beside: bool) -> list[Own]:
        """The curves of a model; `beside`: it is not the one that the evaluation is about, so it goes by its name."""
        steps = tuple(float(quality) for quality in codec.model.config.transform.quality_steps)
        targets, found = steps or tuple(float(rate) for rate in plan.rates), []
        for effort, metric, lossless in itertools.product(plan.efforts, plan.metrics, plan.lossless):
            name, title = own_name(metric, effort, lossless), own_title(metric, effort, lossless)
            if beside:
                model = codec.model.name
                name, title = name.replace("l2c", model, 1), title.replace("L2C", model, 1)
            found.append(cls(codec, metric, effort, lossless, name, title, targets))
        return found

    @property
    def version(self) -> str:
        """See `own_version`."""
        return own_version(self.codec, self.effort, self.metric)

    @property
    def at_qualities(self) -> bool:
        """Whether the targets are qualities."""
        return bool(self.codec.model.config.transform.quality_steps)


def evaluate(
    codec: Codec,
    plan: Plan,
    folder: Path,
    tell: Callable[[str], None] = lambda what: None,
    *,
    peers_only: bool = False,
    write: bool = True,
    beside: Sequence[Codec] = (),
) -> Outcome:
    """Measure what the record in `folder` does not hold yet, then write its tables; see `records`.

    A rate that our codec cannot reach for a picture, and a peer that fails on one, are reported and the run goes on; a
    peer that cannot reach a rate gives its smallest file.
    Of a file that the record has, only figures that it lacks are measured; it is coded anew for that.

    Args:
        codec: ours. plan: what to measure. folder: of the record, made if need be.
        tell: called with the name of each piece of work before it begins.
        peers_only: leave our codec out.
        write: the tables of the record, too, not only its rows.
        beside: other models of ours; one that has networks at some qualities alone is measured at these.
    Raises:
        UnsupportedError, BackendError: an impossible plan, or a peer asked for by name is not at hand.
    """
    peers = choose(list(plan.peers))
    folder.mkdir(parents=True, exist_ok=True)
    record = RowFile(folder / "rows.jsonl")
    ours = [] if peers_only else Own.all_of(codec, plan, beside=False)
    for other in beside:
        ours += Own.all_of(other, plan, beside=True)
    own = {part.name: part for part in ours}
    if len(own) < len(ours):
        raise UnsupportedError("two models have the same name: rows are told apart by it")
    rates = tuple(float(rate) for rate in plan.rates)
    targets = {name: own[name].targets if name in own else rates for name in (*own, *peers)}
    versions = {part.name: part.version for part in ours}
    versions |= {name: peer.described() for name, peer in peers.items()}
    of_now = [
        row for row in record.rows
        if row.get("version") == versions.get(row["codec"]) and {"bytes", "quality"} <= row.keys()
    ]  # fmt: skip
    same = {(row["picture"], row["codec"], row["target"]): row for row in of_now}  # some figures may be missing
    known = {key: row for key, row in same.items() if not _missing(row, plan)}
    outcome = Outcome([])
    for path in plan.pictures:
        wanted = [(name, target) for name in versions for target in targets[name]]
        due = [(name, target) for name, target in wanted if (path.stem, name, target) not in known]
        outcome.known += len(wanted) - len(due)
        if not due:
            continue
        pixels = load_picture(path).rgb
        searches = {name: RateSearch(peer, pixels) for name, peer in peers.items()}
        for name, rate in due:
            tell(f"{path.stem} {name} {rate:g}")
            try:
                before = same.get((path.stem, name, rate))
                row = _ours(own[name], pixels, rate) if name in own else _peers(searches[name], rate, before)
            except (RateError, BackendError) as error:
                if isinstance(error, BackendError) and name in own:
                    raise
                outcome.failures.append((f"{path.stem}, {name}, {rate:g} bpp", str(error)))
                continue
            decoded = row.pop("decoded")
            row = {"picture": path.stem, "codec": name, "target": rate, "version": versions[name], **row}
            if before is not None and before["bytes"] == row["bytes"]:
                row |= before  # the same file: its seconds and figures stay
            row |= measure(pixels, decoded, _missing(row, plan))
            record.add(row)
            known[row["picture"], name, row["target"]] = row
            outcome.measured += 1
    stems = {path.stem for path in plan.pictures}
    rows = [row for key, row in known.items() if key[0] in stems and key[2] in targets[key[1]]]
    titles = {part.name: (part.title, part.version) for part in ours}
    titles |= {name: (peer.title, versions[name]) for name, peer in peers.items()}
    outcome.rows, outcome.curves = rows, mean_curves(rows, titles)
    if write:
        _write_tables(folder, outcome.curves, plan, codec)
    return outcome


def _missing(row: Row, plan: Plan) -> tuple[str, ...]:
    """The figures of the plan that a row lacks."""
    return tuple(name for name in plan.figures if name not in row)


def own_version(codec: Codec, effort: int | Effort = 0, metric: str = DEFAULT_METRIC) -> str:
    """What rows of ours depend on: where there is a search for `mixed`, on its weights, too."""
    mixture = effort if isinstance(effort, Effort) else EFFORTS[effort]
    version = f"l2c {__version__}, model {codec.model.model_id.hex()}, torch {torch.__version__}"
    if not mixture.adapts:
        return version
    version += f", {mixture}, revision {REVISION}"
    return f"{version}, {MIXED}" if metric == "mixed" else version


def own_name(metric: str, effort: int, lossless: str = "never") -> str:
    """Key of our codec in records."""
    return f"l2c-{metric}" + (f"-effort{effort}" if effort else "") + ("" if lossless == "never" else f"-{lossless}")


def own_title(metric: str, effort: int, lossless: str = "never") -> str:
    """The same for people."""
    return f"L2C for {_TITLES[metric]}, effort {effort}" + ("" if lossless == "never" else ", pixels where better")


def _ours(own: Own, pixels: UInt8Array, target: float) -> dict[str, Any]:
    codec, options = own.codec, EncodeOptions(metric=cast(Metric, own.metric), effort=cast(EffortLevel, own.effort))
    options["quality" if own.at_qualities else "bpp"] = target
    options["lossless"] = cast(Lossless, own.lossless)
    start = time.perf_counter()
    encoded = codec.encode_detailed(pixels, **options)
    middle = time.perf_counter()
    decoded = codec.decode(encoded.data)
    end = time.perf_counter()
    return {
        "bpp": encoded.bpp, "bytes": len(encoded.data), "quality": encoded.quality,
        "within": own.at_qualities or encoded.bpp <= target, "at_quality": own.at_qualities,
        "target_reached": encoded.target_reached, "probes": encoded.probes, "corrections": encoded.corrections,
        "lossless": encoded.lossless, "colours": encoded.colours,
        "adaptation": encoded.adaptation_as_dict(), "device": str(codec.device),
        "encode_seconds": middle - start, "decode_seconds": end - middle, "decoded": decoded,
    }  # fmt: skip


def _peers(search: RateSearch, rate: float, before: Row | None) -> dict[str, Any]:
    coded = search.at(rate) if before is None else search.again(rate, before["quality"], before["bytes"])
    height, width = search.pixels.shape[:2]
    start = time.perf_counter()
    decoded = search.peer.picture(coded.data, height, width)
    seconds = time.perf_counter() - start
    bpp = 8.0 * len(coded.data) / (height * width)
    return {
        "bpp": bpp, "bytes": len(coded.data), "quality": coded.quality, "within": bpp <= rate, "device": "cpu",
        "encode_seconds": coded.seconds, "decode_seconds": seconds, "decoded": decoded,
    }  # fmt: skip


def _write_tables(folder: Path, curves: list[Curve], plan: Plan, codec: Codec) -> None:
    facts = {
        "written": time.strftime("%Y-%m-%d"), "pictures": [path.stem for path in plan.pictures],
        "rates": list(plan.rates), "machine": f"{platform.machine()}, threads: {torch.get_num_threads()}",
        "device": str(codec.device), "torch": torch.__version__, "model": codec.model.name,
        "model_id": codec.model.model_id.hex(), "codecs": {curve.codec: curve.description for curve in curves},
    }  # fmt: skip
    write_atomically(folder / "run.json", json.dumps(facts, indent=1).encode())
    (folder / "results").mkdir(exist_ok=True)
    for curve in curves:
        write_atomically(
            folder / "results" / f"{curve.codec}.json", json.dumps(to_compressai(curve), indent=1).encode()
        )
    write_atomically(folder / "results.csv", to_csv(curves).encode())


def report(
    outcome: Outcome, folder: Path, plan: Plan, anchor: str | None, published: Path | None, names: Sequence[str]
) -> str:
    """The tables as Markdown (also `report.md`) and plots of each figure: against the rate, with published curves, and
    BD-rate against time.

    Args:
        anchor: codec that BD-rates are against, measured or published; None: the first peer, or the first codec.
        published: page of anchors. names: which of its codecs.
    Raises:
        UnsupportedError: an unknown codec. BackendError: `bjontegaard` or matplotlib is not installed.
    """
    curves = list(outcome.curves)
    if names:
        if published is None:
            raise UnsupportedError("published curves are read from a file: name it with --published")
        curves += load_published(published, names)
    if not curves:
        return "No codec was measured on every picture.\n"
    by_name = {curve.codec: curve for curve in curves}
    if anchor is None:
        anchor = next((curve.codec for curve in curves if curve.codec in PEERS), curves[0].codec)
    if anchor not in by_name:
        raise UnsupportedError(f"the anchor {anchor!r} is none of {', '.join(by_name)}")
    text = rate_table(curves, by_name[anchor], plan.figures) + "\n" + quality_table(outcome.curves, plan.figures)
    write_atomically(folder / "report.md", text.encode(errors="replace"))
    for figure in plan.figures:
        if any(figure in curve.values for curve in curves):
            plot(curves, figure, folder / f"{figure}.png")
            if figure in by_name[anchor].values:
                plot_time(curves, by_name[anchor], figure, folder / f"time-{figure}.png")
    return text
