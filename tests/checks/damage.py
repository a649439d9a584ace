"""What is left of damaged files: every tile in turn, cuts, flips, and very many of them.

    python tests/checks/damage.py PICTURE [--cuts 200] [--flips 2000] [--whole 20] [--fuzz 0]

PICTURE becomes two files of 12 tiles: joined with itself, 3 x 4 tiles of 512 pixels, those at the right and at the
bottom smaller, for every tile in turn; cut in bands that are joined to a strip, 1 x 12 flat tiles, for the many cuts
and flips. Payloads and latents of all tiles but the damaged ones must be those of the whole file, and pixels as far as
D does not see the damage; exits with 1 where they are not. Prints the PSNR of what was filled in, against the original,
beside that of grey; of cut tiles by the share of them that was left.

A tile is decoded from its own payload alone, so not every file is decoded in whole: of one that is cut, the
surroundings of the tile in which it ends (every `--whole`th in whole), and of flips one for each set of parts that they
damage.

Then a small file is flipped, cut or both at random, so many times, and decoded with concealment: a picture of the right
size, or an error of ours.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import l2c
from l2c.errors import L2CError
from l2c.format.bitstream import Bitstream, Container, read_header
from l2c.format.source import Memory
from l2c.format.tiles import Box
from l2c.images import load_picture

Pixels = npt.NDArray[np.uint8]


def psnr(a: Pixels, b: Pixels, box: Box) -> float:
    error = np.square(a[box.slices].astype(float) - b[box.slices]).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


class Check:
    """A whole file, what it decodes to, and how many damaged ones were not as they should be."""

    def __init__(self, codec: l2c.Codec, original: Pixels) -> None:
        self.codec, self.original, self.grey = codec, original, np.full_like(original, 128)
        self.data = codec.encode(original, quality=50, tile=512)
        self.index, self.whole, self.wrong = read_header(self.data), codec.decode(self.data), 0
        self.stream = Container.open(Memory(self.data)).read()
        self.latents = codec.latent_stage.read_tiles(self.stream, range(len(self.index.tiles))).symbols
        self.halo = codec.transform.decoder.receptive_halo_px
        assert len(self.latents) == 12

    def read(self, data: bytes) -> Bitstream:
        """What a damaged file holds; the payloads of all tiles but the damaged ones are those of the whole file."""
        stream = Container.open(Memory(data)).read(damaged="report")
        good = set(self.latents) - set(stream.damaged_tiles)
        self.wrong += any(stream.payloads[number] != self.stream.payloads[number] for number in good)
        return stream

    def near(self, stream: Bitstream, number: int) -> Pixels:
        """Pixels of a damaged file, those of one tile and of its surroundings; zeros elsewhere."""
        area = self.index.header.tile_box(number).widened(2 * self.halo, *self.whole.shape[:2])
        pixels = np.zeros_like(self.whole)
        region = (area.left, area.top, area.right, area.bottom)
        pixels[area.slices] = conceal(self.codec, stream, region=region).picture.rgb
        inside = np.zeros(pixels.shape[:2], bool)
        inside[area.slices] = True
        self.wrong += self._differs(pixels, stream.damaged_tiles, inside)
        return pixels

    def __call__(self, stream: Bitstream) -> Pixels:
        """All pixels of a damaged file, with all latents compared."""
        decoded = conceal(self.codec, stream)
        pixels, damaged = decoded.picture.rgb, list(decoded.damaged_tiles)
        found = self.codec.latent_stage.read_tiles(stream, range(len(self.index.tiles)), conceal=True).symbols
        good = set(self.latents) - set(damaged)
        exact = all(np.array_equal(found[number], self.latents[number]) for number in good)
        self.wrong += not exact or damaged != list(stream.damaged_tiles)
        self.wrong += self._differs(pixels, damaged, np.ones(pixels.shape[:2], bool))
        return pixels

    def _differs(self, pixels: Pixels, damaged: Iterable[int], far: npt.NDArray[np.bool_]) -> bool:
        """Whether pixels of a mask, which is used up, differ where D does not see damaged tiles."""
        for number in damaged:
            far[self.index.header.tile_box(number).widened(self.halo, *far.shape).slices] = False
        return bool((pixels[far] != self.whole[far]).any())


def conceal(codec: l2c.Codec, stream: Bitstream, **options: Any) -> l2c.Decoded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return codec.decode_detailed(stream, damaged="conceal", **options)


def bands(pixels: Pixels, width: int) -> Pixels:
    """As wide a strip of all of a picture, its rows side by side."""
    count = -(-width // pixels.shape[1])
    height = pixels.shape[0] // count
    return np.concatenate([pixels[k * height : (k + 1) * height] for k in range(count)], axis=1)[:, :width]


def tiles(check: Check) -> None:
    filled, flat = [], []
    for number, tile in enumerate(check.index.tiles):
        data, box = bytearray(check.data), check.index.header.tile_box(number)
        data[tile.offset + tile.size // 3] ^= 4
        stream = check.read(bytes(data))
        check.wrong += stream.damaged_tiles != (number,)
        filled.append(psnr(check(stream), check.original, box))
        flat.append(psnr(check.grey, check.original, box))
    print(f"tiles in turn: filled in {statistics.mean(filled):.2f} dB, grey {statistics.mean(flat):.2f} dB", flush=True)


def cuts(check: Check, count: int, every: int, rng: np.random.Generator) -> None:
    by_share, start, wrong = collections.defaultdict(list), time.perf_counter(), check.wrong
    for i, end in enumerate(rng.integers(check.index.head_size, len(check.data), count).tolist()):
        stream = check.read(check.data[:end])
        lost = [n for n, tile in enumerate(check.index.tiles) if tile.offset + tile.size > end]
        check.wrong += list(stream.damaged_tiles) != lost
        pixels = check(stream) if i % every == 0 else check.near(stream, lost[0])
        tile, box = check.index.tiles[lost[0]], check.index.header.tile_box(lost[0])
        share = (end - tile.offset) / tile.size
        pictures = (pixels, check.grey, check.whole)
        by_share[int(5 * share)].append([psnr(picture, check.original, box) for picture in pictures])
    print(f"{count} cuts, {check.wrong - wrong} wrong, {time.perf_counter() - start:.0f} s:")
    for fifth, values in sorted(by_share.items()):
        mine, flat, full = (statistics.mean(column) for column in zip(*values))
        name = f"{20 * fifth}..{20 * fifth + 20} % of a tile"
        print(f"  {name}: {mine:.2f} dB, grey {flat:.2f} dB, whole {full:.2f} dB ({len(values)})", flush=True)


def flips(check: Check, count: int, rng: np.random.Generator) -> None:
    kinds: collections.Counter[str] = collections.Counter()
    seen, start, wrong = set(), time.perf_counter(), check.wrong
    for _ in range(count):
        data = bytearray(check.data)
        data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
        try:
            stream = check.read(bytes(data))
        except L2CError as error:
            kinds[type(error).__name__] += 1
            continue
        kinds[f"{len(stream.damaged_tiles)} tiles, {len(stream.damaged_sections)} sections"] += 1
        difference = (stream.damaged_tiles, stream.damaged_sections)
        if difference not in seen:
            check(stream)
        seen.add(difference)
    print(f"{count} flips, {check.wrong - wrong} wrong, {time.perf_counter() - start:.0f} s: {dict(kinds)},", end=" ")
    print(f"in {len(seen)} ways", flush=True)


def fuzz(codec: l2c.Codec, picture: Pixels, count: int, rng: np.random.Generator) -> int:
    """How many inputs gave neither a picture nor an error of ours; a crash ends the process."""
    data, kinds, wrong, start = codec.encode(picture, quality=40), collections.Counter[str](), 0, time.perf_counter()
    for _ in range(count):
        spoilt = bytearray(data[: rng.integers(0, len(data) + 1)] if rng.random() < 0.4 else data)
        for _ in range(rng.integers(0, 5) if spoilt else 0):
            spoilt[rng.integers(0, len(spoilt))] = rng.integers(0, 256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shape = codec.decode(bytes(spoilt), damaged="conceal").shape
                kinds["picture"] += 1
                wrong += shape != picture.shape
            except L2CError as error:
                kinds[type(error).__name__] += 1
            except Exception as error:
                kinds[f"NOT OURS: {type(error).__name__}"] += 1
                wrong += 1
    print(f"{count} inputs: {dict(kinds)}, {time.perf_counter() - start:.0f} s")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--whole", type=int, default=20)
    parser.add_argument("--fuzz", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec, rng = l2c.Codec(), np.random.default_rng(0)
    pixels = load_picture(args.picture).rgb
    check = Check(codec, np.tile(pixels, (4, 4, 1))[:1100, :1700])
    tiles(check)
    strip = Check(codec, bands(pixels, 12 * 512))
    cuts(strip, args.cuts, args.whole, rng)
    flips(strip, args.flips, rng)
    wrong = check.wrong + strip.wrong + fuzz(codec, pixels[:24, :32].copy(), args.fuzz, rng)
    print(f"{wrong} of all are not as they should be")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
