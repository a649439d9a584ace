"""What is left of damaged files: every tile in turn, cuts, flips, and very many of them.

    python tests/checks/damage.py PICTURE [--cuts 200] [--flips 2000] [--fuzz 0]

PICTURE becomes a file of 12 tiles (512 pixels a side, joined with itself). Latents of all tiles but the damaged ones
must be those of the whole file, and pixels as far as D does not see the damage; exits with 1 where they are not.
Prints the PSNR of what was filled in, against the original, beside that of grey; of cut tiles by the share of them that
was left. Then a small file is flipped, cut or both at random, so many times, and decoded with concealment: a picture of
the right size, or an error of ours.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import l2c
from l2c.errors import L2CError
from l2c.format.bitstream import Container, read_header
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
        self.codec, self.original = codec, original
        self.data = codec.encode(original, quality=50, tile=512)
        self.index, self.whole, self.wrong = read_header(self.data), codec.decode(self.data), 0
        stream = Container.open(Memory(self.data)).read()
        self.latents = codec.latent_stage.read_tiles(stream, range(len(self.index.tiles))).symbols

    def __call__(self, data: bytes) -> tuple[Pixels, list[int]]:
        """Pixels of a damaged file, and the tiles that are not whole."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoded = self.codec.decode_detailed(data, damaged="conceal")
        pixels, damaged = decoded.picture.rgb, list(decoded.damaged_tiles)
        stream = Container.open(Memory(data)).read(damaged="report")
        found = self.codec.latent_stage.read_tiles(stream, range(len(self.index.tiles)), conceal=True).symbols
        far = np.ones(pixels.shape[:2], bool)
        for number in damaged:
            halo = self.codec.transform.decoder.receptive_halo_px
            far[self.index.header.tile_box(number).widened(halo, *far.shape).slices] = False
        good = set(self.latents) - set(damaged)
        exact = all(np.array_equal(found[number], self.latents[number]) for number in good)
        self.wrong += not exact or bool((pixels[far] != self.whole[far]).any())
        return pixels, damaged


def tiles(check: Check) -> None:
    grey, filled, flat = np.full_like(check.original, 128), [], []
    for number, tile in enumerate(check.index.tiles):
        data, box = bytearray(check.data), check.index.header.tile_box(number)
        data[tile.offset + tile.size // 3] ^= 4
        pixels, damaged = check(bytes(data))
        check.wrong += damaged != [number]
        filled.append(psnr(pixels, check.original, box))
        flat.append(psnr(grey, check.original, box))
    print(f"tiles in turn: filled in {statistics.mean(filled):.2f} dB, grey {statistics.mean(flat):.2f} dB")


def cuts(check: Check, count: int, rng: np.random.Generator) -> None:
    by_share = collections.defaultdict(list)
    for end in rng.integers(check.index.head_size, len(check.data), count).tolist():
        pixels, damaged = check(check.data[:end])
        for number in damaged:
            tile, box = check.index.tiles[number], check.index.header.tile_box(number)
            share = min(1.0, max(0.0, (end - tile.offset) / tile.size))
            if share:
                full = psnr(check.whole, check.original, box)
                by_share[int(5 * share)].append((psnr(pixels, check.original, box), full))
    print(f"{count} cuts:")
    for fifth, values in sorted(by_share.items()):
        means = [statistics.mean(column) for column in zip(*values)]
        print(
            f"  {20 * fifth}..{20 * fifth + 20} % of a tile: {means[0]:.2f} dB, whole {means[1]:.2f} dB ({len(values)})"
        )


def flips(check: Check, count: int, rng: np.random.Generator) -> None:
    kinds: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        data = bytearray(check.data)
        data[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
        try:
            _, damaged = check(bytes(data))
            kinds[f"{len(damaged)} tiles"] += 1
        except L2CError as error:
            kinds[type(error).__name__] += 1
    print(f"{count} flips: {dict(kinds)}")


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
    parser.add_argument("--fuzz", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codec, rng = l2c.Codec(), np.random.default_rng(0)
    pixels = load_picture(args.picture).rgb
    check = Check(codec, np.tile(pixels, (3, 3, 1))[:1500, :2040])
    assert len(check.index.tiles) == 12
    tiles(check)
    cuts(check, args.cuts, rng)
    flips(check, args.flips, rng)
    wrong = check.wrong + fuzz(codec, pixels[:24, :32].copy(), args.fuzz, rng)
    print(f"{wrong} of all are not as they should be")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
