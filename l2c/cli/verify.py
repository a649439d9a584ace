"""`l2c verify`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from l2c.cli import options
from l2c.cli.batches import Batched, Opened
from l2c.cli.plan import L2C_FILES, make_plan
from l2c.cli.report import Result
from l2c.cli.run import run
from l2c.cli.session import Reader
from l2c.codec.facts import rounded

if TYPE_CHECKING:
    from l2c.codec.results import Verified


def verify(
    source: Annotated[str, typer.Argument(metavar="FILE", help="L2C file or folder; - for standard input.")],
    device: options.Device = "cpu",
    model: options.Model = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Decode the pixels, too: their CRC-32.")] = False,
    unlimited: options.Unlimited = False,
    as_json: options.Json = False,
) -> int:
    """Check every section of a file, decode its latents and print their SHA-256; or say which tiles are damaged.

    With --pixels the CRC-32 of the decoded colours, the same on every machine where the model computes them in
    integers; where the file states it (`l2c encode --pixels-crc`), another one is an error.
    """
    plan = make_plan(source, None, L2C_FILES, "", as_json)
    reader = Reader(model, device, unlimited=unlimited)

    def together(files: Sequence[Opened]) -> list[tuple[Verified, float, float]]:
        """Digests, with each file's part of the seconds that the model and the latents took."""
        started = time.perf_counter()
        session = reader.session(files[0].stream)
        loaded = time.perf_counter()
        streams = [file.stream for file in files]
        found = session.verified(streams, pixels=pixels)
        seconds, size = time.perf_counter() - loaded, sum(stream.header.pixels for stream in streams)
        shares = [stream.header.pixels / size for stream in streams]
        return [(part, (loaded - started) * share, seconds * share) for part, share in zip(found, shares)]

    def told(file: Opened, verified: tuple[Verified, float, float]) -> Result:
        part, load, entropy = verified
        load += file.seconds
        return {
            **reader.facts(file.stream, file.size),
            "parts": file.stream.index.part_sizes(),
            "latents_sha256": part.latents_sha256,
            **({} if part.pixels_crc32 is None else {"pixels_crc32": f"{part.pixels_crc32:08x}"}),
            "seconds": rounded({"load": load, "entropy": entropy, "total": load + entropy}),
        }

    return run(plan, Batched(lambda job: Opened.read(job, reader), together, told), _line, as_json)


def _line(result: Result) -> str:
    pixels = f" pixels_crc32 {result['pixels_crc32']}" if "pixels_crc32" in result else ""
    return f"latents_sha256 {result['latents_sha256']}{pixels}"
