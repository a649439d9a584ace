"""The system of the first paper as it is published: its four codecs and its rate control (L2C III-E), its Table I.

    python experiments/four_codecs.py KODAK c8b8.safetensors c6b8.safetensors c3b4.safetensors c1b4.safetensors \
        --out rows.jsonl [--every 6] [--crop 256] [--effort 4] [--no-default]

For each picture and target the codec whose own target is closest runs first, with all its bits b; b falls as long as
the file is above the target's margin. If no b of that codec lands within the margin, the next closest codec tries; the
closest file of all says which codec and b it is. Then the latents are overfitted, ten iterations, with bits weighed so
that the file comes to its target or at least within the margin, and every patch gets the best of all bias sets that
the codec has. Iterations are those of our search, which keeps what lowers the loss of every tile
(docs/ADAPTATION.md has it against the paper's straight-through steps). Beside it the default model encodes the same
pictures to the same rates at one effort. The networks of the four work on half and a quarter of the picture's sides, so
its centre (--crop) is what a CPU can be asked for. One row a file, so that a run goes on where it was stopped; then the
tables.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

import l2c
from l2c.adapt.effort import EFFORTS
from l2c.evaluate.measures import measure
from l2c.evaluate.records import RowFile
from l2c.format.levels import METRICS
from l2c.images.listing import list_pictures
from l2c.search.course import Course, Rounds, Staged, ask, together
from l2c.search.questions import Adapt, Best, Plain, Trial, Trim

TARGETS = (2.0, 1.5, 1.0, 0.75, 0.5, 0.25, 0.12, 0.06)
TRAINED_FOR = (2.0, 0.75, 0.12, 0.06)  # bpp of C_0..C_3
QUALITIES = (100.0, 61.5, 21.8, 4.3)  # where configs/train/c*.json train them
MARGIN = 0.15  # of a target, either way
OVERFITTING = l2c.Effort(iterations=10, sets=255)  # as the paper has it; a codec with fewer sets tries them all
METRIC: Final = "mixed"  # squared errors and MS-SSIM, the first terms of L2C Eq. 7
FIGURES = ("psnr-rgb", "ms-ssim-y", "vmaf")
MAX_TRIMS = 3


@dataclass(frozen=True)
class Choice:
    """A codec of the four, its bits b, and the rate of its file without overfitting."""

    codec: int
    b: int
    bpp: float

    def error(self, target: float) -> float:
        """|rate - target| / target."""
        return abs(self.bpp / target - 1.0)


def choose(rate: Callable[[int, int], float], bits: Sequence[int], target: float) -> Choice:
    """The paper's choice for one picture.

    Args:
        rate: bpp of codec i with b bits. bits: all that each codec has.
    """
    order = sorted(range(len(bits)), key=lambda i: abs(np.log(TRAINED_FOR[i] / target)))
    best: Choice | None = None
    for i in order:
        for b in range(bits[i], 0, -1):
            choice = Choice(i, b, rate(i, b))
            if best is None or choice.error(target) < best.error(target):
                best = choice
            if choice.bpp <= target * (1.0 + MARGIN):
                break
        assert best is not None
        if best.error(target) <= MARGIN:
            break
    assert best is not None
    return best


class Overfitted(Staged):
    """A picture at one quality, its latents overfitted towards a rate no further off than the margin.

    Where that leads out of the margin and further off, the file stays as it was.

    Args:
        level: quality 0..1000. size: bytes of the target.
    """

    def __init__(self, level: int, size: float) -> None:
        super().__init__()
        self.level, self.size = level, size
        self.trial: Trial | None = None

    def rounds(self) -> Rounds:
        """Once plainly, to know what there is to change, then once with all iterations."""
        yield from together([self._course()])

    def _course(self) -> Course[None]:
        plain = yield from ask(Plain(0, self.level))
        aim = min(max(self.size / plain.size, 1.0 - MARGIN), 1.0 + MARGIN)
        trial = yield from ask(Adapt(0, self.level, aim))
        for _ in range(MAX_TRIMS):
            over = trial.size - self.size
            if not 0.0 < over <= MARGIN * self.size:
                break
            trial = yield from ask(Trim(0, 8.0 * over))
            if trial.change == 0.0:
                break
        missed = abs(trial.size / self.size - 1.0)
        self.trial = plain if missed > max(MARGIN, abs(plain.size / self.size - 1.0)) else trial

    def best(self, i: int) -> Best:
        """See `l2c.search.Strategy`."""
        assert self.trial is not None
        return Best(self.trial)


@dataclass(frozen=True)
class Coded:
    """A file, who decodes it, and what is kept of how it came about."""

    data: bytes
    codec: l2c.Codec
    facts: dict[str, Any]


def as_published(
    codecs: list[l2c.Codec], pixels: np.ndarray, plain: dict[tuple[int, int], tuple[float, float]], target: float
) -> Coded:
    """One picture to one rate as the paper does it.

    Args:
        plain: bpp of files of this picture before overfitting, and the seconds of each, by codec and b; more are added.
    """
    tried: set[tuple[int, int]] = set()

    def rate(i: int, b: int) -> float:
        tried.add((i, b))
        if (i, b) not in plain:
            start = time.perf_counter()
            encoded = codecs[i].encode_detailed(pixels, quality=QUALITIES[i], metric=METRIC, b=b, lossless="never")
            plain[i, b] = encoded.bpp, time.perf_counter() - start
        return plain[i, b][0]

    choice = choose(rate, [codec.model.config.bits for codec in codecs], target)
    codec, start = codecs[choice.codec], time.perf_counter()
    batch = codec.encoder.batch([pixels], mu=METRICS[METRIC], bits=choice.b, effort=OVERFITTING)
    size = target * pixels.shape[0] * pixels.shape[1] / 8.0
    (encoded,) = codec.encoder.encode(batch, Overfitted(round(10 * QUALITIES[choice.codec]), size))
    seconds = time.perf_counter() - start + sum(plain[each][1] for each in tried)
    chosen = f"C{choice.codec}, b = {choice.b}"
    facts = {"chosen": chosen, "before": choice.bpp, "tried": len(tried), "encode_seconds": seconds}
    return Coded(encoded.data, codec, facts)


def by_default(codec: l2c.Codec, pixels: np.ndarray, effort: l2c.Effort, target: float) -> Coded:
    """The same by the default model; where its smallest file is too large, that one."""
    start = time.perf_counter()
    try:
        data = codec.encode(pixels, bpp=target, metric=METRIC, effort=effort, lossless="never")
    except l2c.RateError:
        data = codec.encode(pixels, quality=0, metric=METRIC, effort=effort, lossless="never")
    return Coded(data, codec, {"encode_seconds": time.perf_counter() - start})


def row_of(coded: Coded, pixels: np.ndarray) -> dict[str, Any]:
    """What is kept of a file: rate, figures of what a decoder makes of it, seconds."""
    start = time.perf_counter()
    decoded = coded.codec.decode(coded.data)
    seconds = time.perf_counter() - start
    bpp = 8.0 * len(coded.data) / (pixels.shape[0] * pixels.shape[1])
    return {"bpp": bpp, **measure(pixels, decoded, FIGURES), "decode_seconds": seconds, **coded.facts}


def table(rows: list[dict[str, Any]], title: str) -> str:
    """Means by target."""
    lines = [
        f"\n{title}\n",
        "| target | files within 15 % | bpp | PSNR | MS-SSIM of Y | VMAF | encode s | decode s | mostly |",
        "|" + "---|" * 9,
    ]
    for target in TARGETS:
        part = [row for row in rows if row["target"] == target]
        if not part:
            continue
        met = sum(abs(row["bpp"] / target - 1.0) <= MARGIN for row in part)
        bpp, quality, structure, fused, encode, decode = (
            statistics.mean(row[key] for row in part) for key in ("bpp", *FIGURES, "encode_seconds", "decode_seconds")
        )
        mostly = statistics.mode(row.get("chosen", "") for row in part)
        lines.append(
            f"| {target:g} | {met} of {len(part)} | {bpp:.3f} | {quality:.2f} | {structure:.4f} | {fused:.2f} "
            f"| {encode:.1f} | {decode:.2f} | {mostly} |"
        )
    return "\n".join(lines)


def centre(pixels: np.ndarray, side: int | None) -> np.ndarray:
    """uint8 [side, side, 3] of [H, W, 3], or less where the picture has less; all of it without a side."""
    if side is None:
        return pixels
    top, left = (max(0, (length - side) // 2) for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of pictures")
    parser.add_argument("models", type=Path, nargs=4, help="model files of C_0..C_3")
    parser.add_argument("--out", type=Path, required=True, help="rows, one a file")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th picture")
    parser.add_argument("--crop", type=int, default=None, help="side of the centre that is coded; all without it")
    parser.add_argument("--effort", type=int, default=4, choices=range(len(EFFORTS)), help="of the default model")
    parser.add_argument("--no-default", action="store_true", help="without the default model")
    args = parser.parse_args()
    codecs = [l2c.Codec(path) for path in args.models]
    default = l2c.Codec()
    rows = RowFile(args.out)
    done = {(row["codec"], row["picture"], row["target"]) for row in rows.rows}
    for path in list_pictures(args.pictures)[:: args.every]:
        with Image.open(path) as opened:
            pixels = centre(np.asarray(opened.convert("RGB")), args.crop)
        plain: dict[tuple[int, int], tuple[float, float]] = {}
        ways = {"paper": functools.partial(as_published, codecs, pixels, plain)}
        if not args.no_default:
            ways[f"default, effort {args.effort}"] = functools.partial(
                by_default, default, pixels, EFFORTS[args.effort]
            )
        for target in TARGETS:
            for name, encode in ways.items():
                key = {"codec": name, "picture": path.stem, "target": target}
                if tuple(key.values()) not in done:
                    rows.add(key | row_of(encode(target), pixels))
    for name in dict.fromkeys(row["codec"] for row in rows.rows):
        print(table([row for row in rows.rows if row["codec"] == name], name))


if __name__ == "__main__":
    main()
