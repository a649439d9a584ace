"""Feeds mutated and random inputs to everything that reads bytes from outside.

    python tests/fuzz/fuzz_decode.py --inputs 200000 --seed 1

Only `L2CError` may come out, within `--seconds` and without more than `--memory` MiB beyond what the process holds at
the start. Input N of seed S is the same in every run: `--only N` repeats it. A finding is saved in `--out`, and the
exit code is then 1; after a crash the number of the input stands in `--out`/current.

Targets
    header   read_header, read_bitstream: random and mutated bytes, half of them with every CRC repaired afterwards,
             so that the checks behind the CRCs are reached. A mutated file must be refused if no CRC was repaired.
    codec    Codec.verify and Codec.decode of a tiny model: mutated files with repaired CRCs, files that are built
             from a random header, random payloads and sections, and whole files with random latents and metadata
    rans     SymbolDecoder and RangeDecoder with random parameters on valid, mutated and random streams
    alpha    unpack_alpha, lossy_alpha_section.unpack
    model    load_model on mutated safetensors, half of them with a valid header and configuration
    picture  load_picture on mutated PNG (CRCs repaired in half), JPEG, WebP, GIF, TIFF and BMP files
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from l2c import images, ops
from l2c.codec import Codec
from l2c.codec.latent_stage import Latents
from l2c.config import ModelConfig
from l2c.entropy import multiscale
from l2c.entropy.coder import SymbolDecoder
from l2c.entropy.multiscale import MultiscaleConfig
from l2c.errors import L2CError
from l2c.format import bitstream
from l2c.format import lossy_alpha_section as lossy_alpha
from l2c.format.adapt_section import CONDITION_PATCH, PatchChanges, grid_shape
from l2c.format.alpha_section import pack_alpha, unpack_alpha
from l2c.format.alternatives_section import Alternative, pack_alternatives
from l2c.format.bitstream import (
    ADAPT,
    ALPHA,
    ALTERNATIVES,
    EXIF,
    ICC,
    LOSSY_ALPHA,
    QUALITY_MAP,
    Header,
    Limits,
    read_bitstream,
    read_header,
    write_bitstream,
)
from l2c.format.levels import METRICS
from l2c.format.quality_map_section import QualityMap
from l2c.format.tiles import latent_tiles
from l2c.models import load_model, save_model
from l2c.transforms import BlockConfig, Transform, num_modulators

TARGETS = {"header": 50, "codec": 8, "rans": 22, "alpha": 10, "model": 4, "picture": 6}  # shares of the inputs


class Finding(Exception):
    """Something was accepted that must be refused."""


class TimeIsUp(BaseException):
    """An input took longer than allowed. Not an Exception, so that nothing on the way catches it."""


def make_tiny_model(path: Path) -> None:
    """An untrained model whose every layer is a few channels wide."""
    config = ModelConfig(
        name="tiny",
        transform=BlockConfig(s=8, c=6, width=8, encoder_blocks=1, decoder_blocks=1, modulator_width=4),
        probability=MultiscaleConfig(num_scales=2, channel_groups=(2, 4), num_mixtures=2, width=8),
    )
    torch.manual_seed(1)
    save_model(
        path,
        config,
        Transform(config.transform),
        multiscale.IntegerModel.from_float(config.float_model()),
        [],
    )


# --- mutations ----------------------------------------------------------------------------------------------------

EDGES = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(data: bytes, rng: random.Random, others: list[bytes], start: int = 0) -> bytes:
    """1..6 changes at random places from byte `start` on."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if len(out) <= start:
            return bytes(out) + rng.randbytes(rng.randrange(8))
        at = rng.randrange(start, len(out))
        length = min(len(out) - at, rng.choice((1, 2, 4, 10, 100)))
        kind = rng.randrange(9)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = rng.randbytes(length)
        elif kind == 5:  # splice with another file
            other = rng.choice(others)
            cut = rng.randrange(len(other) + 1)
            out[at:] = other[cut:]
        elif kind == 6:  # swap two chunks
            to = rng.randrange(start, len(out) - length + 1)
            out[at : at + length], out[to : to + length] = out[to : to + length], out[at : at + length]
        elif kind == 7:
            width, value = rng.choice((1, 2, 4)), rng.choice(EDGES)
            order = rng.choice(("little", "big"))
            out[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, order)  # type: ignore[arg-type]
        else:
            out += rng.randbytes(length)
    return bytes(out)


def repair(data: bytes) -> bytes:
    """The file with every CRC made to hold again, as far as its head can be followed."""
    out = bytearray(data)
    if len(out) < 54:
        return data
    (head_size,) = struct.unpack_from("<I", out, 6)
    width, height = struct.unpack_from("<II", out, 14)
    side = bitstream.MIN_TILE_SIZE << min(out[39], 15)
    tiles = -(-width // side) * -(-height // side)
    table = 40 + 10 * tiles
    if table <= head_size <= len(out):
        at = head_size
        for entry in range(table, head_size - 9, 10):
            (size,) = struct.unpack_from("<I", out, entry + 2)
            struct.pack_into("<I", out, entry + 6, zlib.crc32(out[at : at + size]))
            at += size
        for entry in range(40, table, 10):
            (size,) = struct.unpack_from("<I", out, entry)
            struct.pack_into("<I", out, entry + 4, zlib.crc32(out[at : at + size]))
            at += size
    struct.pack_into("<I", out, 10, zlib.crc32(out[14:head_size], zlib.crc32(out[:10])))
    return bytes(out)


def repair_png(data: bytes) -> bytes:
    """A PNG file with the CRC of every chunk made to hold again."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (size,) = struct.unpack_from(">I", out, at)
        if at + 12 + size > len(out):
            break
        struct.pack_into(">I", out, at + 8 + size, zlib.crc32(out[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(out)


class Fuzzer:
    """The seeds that inputs are made from, and one method per target: makes input, keeps it in `input`, runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.input = b""
        rng = np.random.default_rng(0)
        make_tiny_model(folder / "tiny.safetensors")
        self.model_file = (folder / "tiny.safetensors").read_bytes()
        limits = Limits(max_pixels=1 << 20, max_tiles=64, max_metadata_bytes=1 << 20)
        self.codec = Codec(folder / "tiny.safetensors", threads=1, limits=limits, strict=True)
        noise = rng.integers(0, 256, (40, 30, 4), dtype=np.uint8)
        self.pictures = [noise[:1, :1, :3], noise[:9, :7], noise[:, :, 0], np.repeat(noise[:2, :, :3], 20, axis=1)]
        self.pictures.append((noise[:20, :20].astype(np.uint16) * 257)[..., :2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.files = [self.codec.encode(p, quality=20 * i, tile=512) for i, p in enumerate(self.pictures)]
            image = Image.fromarray(noise[:12, :12, :3])
            image.info["icc_profile"] = rng.bytes(200)
            self.files.append(self.codec.encode(image, b=3))
        self.streams = [bytes(p) for file in self.files for p in read_bitstream(file).payloads]
        self.alphas = [pack_alpha(noise[..., 3]), pack_alpha(noise[..., 3].astype(np.uint16) * 200)]
        self.alphas += [pack_alpha(np.tril(noise[:, :, 0] | 255)), pack_alpha(noise[:1, :1, 0])]
        slope = np.add.outer(np.arange(70), 2 * np.arange(80)).clip(0, 255).astype(np.uint8)
        self.lossy_alphas = [lossy_alpha.pack(plane, 40)[1] for plane in (slope, slope[:33, :17], noise[..., 3])]
        self.encoded_pictures = []
        for format_ in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
            for mode in ("RGB", "P", "L", "RGBA", "1", "CMYK", "I;16"):
                buffer = io.BytesIO()
                try:
                    plain = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else None
                    exif = Image.Exif()
                    exif[0x0112] = 6
                    (plain or Image.fromarray(noise[..., :3]).convert(mode)).save(buffer, format_, exif=exif)
                except (OSError, ValueError):
                    continue  # a mode that the format does not have
                self.encoded_pictures.append(buffer.getvalue())

    # Every target raises L2CError for what is refused and returns for what is accepted.

    def header(self, rng: random.Random) -> None:
        kind = rng.random()
        original = rng.choice(self.files)
        if kind < 0.1:
            self.input = rng.choice((b"", bitstream.MAGIC, original[:14])) + rng.randbytes(rng.randrange(200))
        elif kind < 0.5:
            self.input = mutate(original, rng, self.files)
        else:
            self.input = repair(mutate(original, rng, self.files, start=rng.choice((0, 4, 14, 30, 40))))
        damaged = rng.choice(("raise", "raise", "report"))
        limits = rng.choice((Limits(), Limits.unlimited(), self.codec.limits))
        if rng.random() < 0.3:
            read_header(self.input, limits).part_sizes()
            return
        read_bitstream(self.input, limits, damaged)  # type: ignore[arg-type]
        if 0.1 <= kind < 0.5 and damaged == "raise" and self.input not in self.files:
            raise Finding("a file that was altered passes every CRC")

    def codec_(self, rng: random.Random) -> None:
        kind = rng.random()
        if kind < 0.4:
            self.input = repair(mutate(rng.choice(self.files), rng, self.files, start=rng.choice((14, 34, 40, 50))))
        elif kind < 0.7:
            self.input = self._built(rng)
        else:
            self.input = self._whole(rng)
        if rng.random() < 0.5:
            self.codec.verify(self.input)
            return
        header, metric = read_bitstream(self.input, self.codec.limits).header, rng.choice((None, *METRICS))
        if header.pixels > 1 << 14:
            self.codec.verify(self.input)
        elif rng.random() < 0.5:
            as_, mode = rng.choice(("numpy", "pil", "torch")), rng.choice(("rgb", "original"))
            self.codec.decode(self.input, as_=as_, mode=mode, metric=metric)
        else:
            picture = self.codec.decode_detailed(self.input, metric=metric).picture
            images.save_picture(
                io.BytesIO(),
                picture.rgb,
                alpha=picture.alpha,
                icc=picture.icc,
                exif=picture.exif,
                mode=picture.mode,
                format=rng.choice(("PNG", "JPEG", "WEBP", "TIFF")),
            )

    def rans(self, rng: random.Random) -> None:
        b = rng.randrange(1, 9)
        kind = rng.random()
        generator = np.random.default_rng(rng.randrange(1 << 32))
        if kind < 0.3:
            self.input = rng.randbytes(rng.randrange(500))
        elif kind < 0.6:  # a legal header, then noise
            lanes = rng.randrange(7)
            states = b"".join((rng.randrange(1 << 32, 1 << 48)).to_bytes(6, "little") for _ in range(1 << lanes))
            words = rng.choice((bytes(rng.randrange(300) * 2), rng.randbytes(2 * rng.randrange(300))))
            self.input = bytes([lanes]) + states + words
        elif kind < 0.9:
            self.input = mutate(rng.choice(self.streams), rng, self.streams)
        else:
            encoder = ops.range_encoder()
            pushed = generator.integers(0, 2, rng.randrange(300)).astype(np.uint32)
            encoder.push_raw(pushed, 1)
            self.input = encoder.finish(1 << rng.randrange(7))
            if rng.random() < 0.5:  # nothing is wrong with this one
                decoder = ops.range_decoder(self.input)
                if not np.array_equal(decoder.pop_raw(len(pushed), 1), pushed):
                    raise Finding("other symbols than those pushed")
                decoder.finish()
                return
        reader = SymbolDecoder(self.input, b)
        for _ in range(rng.randrange(1, 8)):
            n, what = rng.choice((0, 1, 3, 64, 500, 5000)), rng.randrange(5)
            if what == 0:
                reader.raw(n)
            elif what == 1:
                reader.decoder.pop_raw(n, rng.randrange(33))
            elif what == 2:
                reader.decoder.pop_uniform(n, rng.choice((1, 2, 3, 1000, 1025, (1 << 20) - 1, 1 << 20)))
            else:
                k = rng.randrange(1, 9)
                raw = generator.integers(-32768, 32768, (n, 3 * k), dtype=np.int16)
                if rng.random() < 0.5:
                    raw >>= rng.randrange(16)
                tables = multiscale.quantise.make_tables()
                reader.mixture(*ops.mixture_params(raw, k, 1, tables.exp, tables.inv_scale))
        # What no caller passes, but a damaged model could: refused as a wrong argument, never read past.
        if rng.random() < 0.2:
            shape = (rng.randrange(1, 12), rng.randrange(100))
            weights, scales = (generator.integers(0, 65536, shape, dtype=np.uint16) for _ in range(2))
            means = generator.integers(-32768, 32768, shape, dtype=np.int16)
            try:
                reader.decoder.pop_mixture(weights, means, scales, rng.randrange(-1, 11))
            except ValueError as error:
                if isinstance(error, L2CError):
                    raise
        reader.decoder.finish()

    def alpha(self, rng: random.Random) -> None:
        height, width = rng.choice(((40, 30), (1, 1), (30, 40), (1000, 1000), (1, 1 << 20)))
        kind = rng.random()
        if rng.random() < 0.3:  # of any size: a constant map fits them all
            height, width = rng.choice(((70, 80), (33, 17), (height, width)))
            self.input = mutate(rng.choice(self.lossy_alphas), rng, self.lossy_alphas, start=rng.choice((0, 10, 10)))
            plane = lossy_alpha.unpack(self.input, height, width)
            if plane.shape != (height, width):
                raise Finding(f"a lossy alpha plane of shape {plane.shape}")
            return
        if kind < 0.2:
            self.input = rng.randbytes(rng.randrange(60))
        elif kind < 0.6:
            self.input = mutate(rng.choice(self.alphas), rng, self.alphas)
        elif kind < 0.62:  # a bomb: 10 MB of zeros in 10 kB
            self.input = bytes([rng.randrange(1, 5), 1]) + zlib.compress(bytes(10 << 20), 9)
        else:
            body = rng.randbytes(rng.choice((height * width, 1200, 2400)) % 5000)
            self.input = bytes([rng.randrange(6), rng.randrange(4)]) + zlib.compress(body, 1)
        plane = unpack_alpha(self.input, height, width)
        if plane.shape != (height, width):
            raise Finding(f"an alpha plane of shape {plane.shape}")

    def model(self, rng: random.Random) -> None:
        data = self.model_file
        (size,) = struct.unpack_from("<Q", data)
        kind = rng.random()
        if kind < 0.5:
            self.input = mutate(data, rng, [data, b""], start=rng.choice((0, 0, 8, size)))
        elif kind < 0.6:
            self.input = rng.randbytes(rng.randrange(100))
        else:
            table = json.loads(data[8 : 8 + size])
            name = rng.choice([key for key in table if key != "__metadata__"])
            what = rng.randrange(5)
            if what == 0:
                table[name]["dtype"] = rng.choice(("F32", "F16", "I8", "U8", "I16", "U16", "I32", "BOOL", "F64"))
            elif what == 1:
                rng.shuffle(table[name]["shape"])
            elif what == 2:
                del table[name]
            elif what == 3:
                other = rng.choice([key for key in table if key != "__metadata__"])
                table[name], table[other] = table[other], table[name]
            else:
                metadata = table["__metadata__"]
                key = rng.choice(list(metadata))
                text = metadata[key]
                number = rng.choice(("0", "-1", "1e400", "NaN", "[]", "{}", "null", "4096", "99999999999", "true"))
                digits = [i for i, c in enumerate(text) if c.isdigit()] or [0]
                at = rng.choice(digits)
                metadata[key] = text[:at] + number + text[at + 1 :]
            head = json.dumps(table).encode()
            head += b" " * (-len(head) % 8)
            self.input = struct.pack("<Q", len(head)) + head + data[8 + size :]
        path = self.folder / "mutated.safetensors"
        path.write_bytes(self.input)
        model = load_model(path)
        codec = Codec(model, threads=1, strict=True)
        codec.decode(codec.encode(self.pictures[1]))

    def picture(self, rng: random.Random) -> None:
        self.input = mutate(rng.choice(self.encoded_pictures), rng, self.encoded_pictures, start=rng.choice((0, 8, 30)))
        if self.input[:4] == b"\x89PNG" and rng.random() < 0.5:
            self.input = repair_png(self.input)
        source = rng.choice((self.input, memoryview(self.input), io.BytesIO(self.input)))
        picture = images.load_picture(source, max_pixels=1 << 22)
        if picture.rgb.dtype != np.uint8 or picture.rgb.shape != (picture.height, picture.width, 3):
            raise Finding(f"a picture of {picture.rgb.dtype} {picture.rgb.shape}")

    # --- files that are right in form ---

    def _random_header(self, rng: random.Random, width: int, height: int) -> Header:
        return Header(
            width=width,
            height=height,
            model_id=self.codec.model.model_id,
            latents_crc32=rng.choice((0, rng.randrange(1 << 32))),
            quality=rng.randrange(1001),
            latent_bits=rng.randrange(1, 9),
            metric_mix=rng.randrange(9),
            mode=rng.choice(bitstream.MODES),
            bit_depth=rng.randrange(1, 65),
            tile_size=512 << rng.choice((0, 0, 1, 5, 15)),
        )

    def _sections(self, rng: random.Random, height: int, width: int) -> dict[int, bytes]:
        sections: dict[int, bytes] = {}
        generator = np.random.default_rng(rng.randrange(1 << 32))
        if rng.random() < 0.4:
            dtype = rng.choice((np.uint8, np.uint16))
            plane = generator.integers(0, rng.choice((1, 2, 256)), (height, width)).astype(dtype)
            packed = pack_alpha(plane)
            sections[ALPHA] = packed if rng.random() < 0.7 else mutate(packed, rng, self.alphas) or b"\0"
        elif rng.random() < 0.3:
            sections[LOSSY_ALPHA] = mutate(rng.choice(self.lossy_alphas), rng, self.lossy_alphas) or b"\0"
        if rng.random() < 0.3:
            sections[ICC] = rng.randbytes(rng.choice((1, 16, 20, 128, 600)))
        if rng.random() < 0.3:
            tiff = rng.choice((b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b""))
            sections[EXIF] = tiff + rng.randbytes(rng.randrange(1, 80))
        if rng.random() < 0.1:
            sections[rng.randrange(0x8003, 0x10000)] = rng.randbytes(3)
        k = num_modulators(self.codec.transform)
        moved = generator.integers(-128, 128, (k, *grid_shape(width, height, CONDITION_PATCH))).astype(np.int8)
        if rng.random() < 0.3:
            packed = PatchChanges(conditions=moved).pack()
            sections[ADAPT] = packed if rng.random() < 0.7 else mutate(packed, rng, [packed]) or b"\0"
        if rng.random() < 0.5:
            patches, mixes = np.ones(moved.shape[1:], np.bool_), sorted(rng.sample(range(9), rng.randrange(1, 5)))
            packed = pack_alternatives([Alternative(mix, patches, moved.reshape(k, -1).T) for mix in mixes])
            sections[ALTERNATIVES] = packed if rng.random() < 0.7 else mutate(packed, rng, [packed]) or b"\0"
        if rng.random() < 0.3:
            side = 1 << rng.randrange(4, 10)
            drops = generator.integers(0, 25, grid_shape(width, height, side)).astype(np.uint8)
            packed = QualityMap(side, drops).pack()
            sections[QUALITY_MAP] = packed if rng.random() < 0.7 else mutate(packed, rng, [packed]) or b"\0"
        return sections

    def _built(self, rng: random.Random) -> bytes:
        """A legal head over payloads that are not what it promises."""
        width, height = rng.choice(((1, 1), (9, 7), (40, 40), (1, 70000), (600, 2), (1024, 1024), (513, 513)))
        header = self._random_header(rng, width, height)
        payloads = []
        for _ in range(header.tile_count % 5000):
            kind = rng.randrange(4)
            valid = rng.choice(self.streams)
            noise = b"\0" + rng.randrange(1 << 32, 1 << 48).to_bytes(6, "little") + rng.randbytes(2 * rng.randrange(50))
            empty = b"\0" + (1 << 32).to_bytes(6, "little")
            payloads.append((valid, mutate(valid, rng, self.streams), noise, empty)[kind])
        channels = [rng.choice((0, 1, 2, 6, 6, 6, 7, 65535)) for _ in payloads]
        return write_bitstream(header, payloads, channels, self._sections(rng, min(height, 50), min(width, 50)))

    def _whole(self, rng: random.Random) -> bytes:
        """A file that decodes: random latents and metadata, and every CRC right."""
        height, width = rng.randrange(1, 40), rng.randrange(1, 40)
        header = self._random_header(rng, width, height)
        s, c = self.codec.transform.s, self.codec.model.config.transform.c
        shape = (c, -(-height // s), -(-width // s))
        generator = np.random.default_rng(rng.randrange(1 << 32))
        symbols = generator.integers(0, 1 << header.latent_bits, shape).astype(np.uint8)
        symbols[rng.randrange(c + 1) :] = 1 << (header.latent_bits - 1)
        part = Latents(symbols, header.point)
        assert len(latent_tiles(height, width, header.tile_size, s)) == header.tile_count
        ((_, payloads, used),) = self.codec.latent_stage.write([(height, width)], [part], header.tile_size)
        header = replace(header, latents_crc32=zlib.crc32(symbols))
        return write_bitstream(header, payloads, used, self._sections(rng, height, width))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run this input alone and show what it raises")
    parser.add_argument("--target", choices=TARGETS, help="run this target alone")
    parser.add_argument("--seconds", type=float, default=4.0, help="limit for one input")
    parser.add_argument("--memory", type=int, default=1024, help="limit in MiB above the start")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "l2c-fuzz")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        return run(Fuzzer(Path(folder)), arguments)


def run(fuzzer: Fuzzer, arguments: Any) -> int:
    def time_is_up(*_: Any) -> None:
        raise TimeIsUp(f"took longer than {arguments.seconds:g} s")

    signal.signal(signal.SIGALRM, time_is_up)
    methods: dict[str, Callable[[random.Random], None]] = {
        name: getattr(fuzzer, "codec_" if name == "codec" else name) for name in TARGETS
    }
    for method in methods.values():  # warm up, so that loading libraries counts neither as time nor as memory
        for n in range(30):
            with contextlib.suppress(L2CError):
                method(random.Random(n))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = held + (arguments.memory << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    current = os.open(arguments.out / "current", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    counts: Counter[tuple[str, str]] = Counter()
    slowest: dict[str, float] = dict.fromkeys(TARGETS, 0.0)
    spent: dict[str, float] = dict.fromkeys(TARGETS, 0.0)
    findings = 0
    started = time.perf_counter()
    numbers = range(arguments.inputs) if arguments.only is None else [arguments.only]
    for number in numbers:
        rng = random.Random(f"{arguments.seed}/{number}")
        (target,) = rng.choices(list(TARGETS), list(TARGETS.values()))
        target = arguments.target or target
        os.pwrite(current, f"{arguments.seed}/{number:<12}\n".encode(), 0)
        faulthandler.dump_traceback_later(10 * arguments.seconds, exit=True)  # a hang inside C++
        fuzzer.input = b""
        begin = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, arguments.seconds)
        try:
            methods[target](rng)
            outcome = "accepted"
        except L2CError as error:
            outcome = type(error).__name__
            if arguments.only is not None:
                traceback.print_exc()
            if "\n" in str(error) or not str(error):
                outcome = "FINDING: message is not one line"
        except (Exception, TimeIsUp) as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            outcome = f"FINDING: {type(error).__name__}"
            if counts[target, outcome] < 3:
                traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.perf_counter() - begin
        slowest[target] = max(slowest[target], seconds)
        spent[target] += seconds
        counts[target, outcome] += 1
        if outcome.startswith("FINDING"):
            findings += 1
            if counts[target, outcome] <= 3:
                place = arguments.out / f"{target}-{arguments.seed}-{number}.bin"
                place.write_bytes(fuzzer.input)
                print(f"{outcome} in {target}, input {number} of seed {arguments.seed}, saved as {place}", flush=True)
    faulthandler.cancel_dump_traceback_later()

    seconds = time.perf_counter() - started
    for target in TARGETS:
        rows = sorted((name, n) for (t, name), n in counts.items() if t == target)
        total = sum(n for _, n in rows)
        if total:
            print(
                f"{target:8} {total:7}  {1000 * spent[target] / total:7.2f} ms each, "
                f"slowest {slowest[target]:.2f} s  " + ", ".join(f"{name} {n}" for name, n in rows)
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    total = sum(counts.values())
    print(f"{total} inputs, {total / seconds:.0f} a second, peak memory {peak} MiB, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
