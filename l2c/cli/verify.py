"""`l2c verify`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from l2c.cli import options
from l2c.cli.batches import Batched, Opened
from l2c.cli.plan import L2C_FILES, make_plan
from l2c.cli.report import Result
from l2c.cli.run import run
from l2c.cli.session import Reader
from l2c.codec.facts import rounded


def verify(
    source: Annotated[str, typer.Argument(metavar="FILE", help="L2C file or folder; - for standard input.")],
    device: options.Device = "cpu",
    model: options.Model = None,
    unlimited: options.Unlimited = False,
    as_json: options.Json = False,
) -> int:
    """Check every section of a file, decode its latents and print their SHA-256; or say which tiles are damaged."""
    plan = make_plan(source, None, L2C_FILES, "", as_json)
    reader = Reader(model, device, unlimited=unlimited)

    def together(files: Sequence[Opened]) -> list[tuple[str, float, float]]:
        """Digests, with each file's part of the seconds that the model and the latents took."""
        started = time.perf_counter()
        session = reader.session(files[0].stream)
        loaded = time.perf_counter()
        digests = session.verify_batch([file.stream for file in files])
        seconds, pixels = time.perf_counter() - loaded, sum(file.stream.header.pixels for file in files)
        shares = [file.stream.header.pixels / pixels for file in files]
        return [(digest, (loaded - started) * share, seconds * share) for digest, share in zip(digests, shares)]

    def told(file: Opened, verified: tuple[str, float, float]) -> Result:
        digest, load, entropy = verified
        load += file.seconds
        return {
            **reader.facts(file.stream, file.size),
            "parts": file.stream.index.part_sizes(),
            "latents_sha256": digest,
            "seconds": rounded({"load": load, "entropy": entropy, "total": load + entropy}),
        }

    return run(plan, Batched(lambda job: Opened.read(job, reader), together, told), _line, as_json)


def _line(result: Result) -> str:
    return f"latents_sha256 {result['latents_sha256']}"
