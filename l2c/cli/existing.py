"""What `--skip-existing` leaves alone: outputs that are there and whole, as far as heads and sizes tell."""

from __future__ import annotations

import os
import warnings

from l2c.cli import lazy
from l2c.cli.plan import Job
from l2c.cli.report import Result
from l2c.cli.terminal import STANDARD
from l2c.codec.facts import file_facts
from l2c.codec.options import Region
from l2c.codec.views import View
from l2c.errors import BitstreamError
from l2c.format.bitstream import Limits, read_header
from l2c.format.tiles import Box

_HEAD_BYTES = 1 << 16


def is_there(target: str) -> bool:
    """Whether an output is a file that exists."""
    return target != STANDARD and os.path.isfile(target)


def coded(job: Job) -> Result | None:
    """Facts of an L2C file that is there as the output and whole; else None.

    Raises:
        UnsupportedError: a file of another version of the format, which is not to be replaced unasked.
    """
    facts = _head_of(job.target) if is_there(job.target) else None
    return None if facts is None else {**facts, "skipped": True}


def restored(job: Job, region: Region | None = None, scale: int = 1) -> Result | None:
    """Facts of an L2C file whose picture is there, of the right size as far as its head tells; else None.

    `region` and `scale`: see `Codec.decode`.
    """
    facts = _head_of(job.source) if job.source != STANDARD and is_there(job.target) else None
    if facts is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures; nothing is decoded here
            with lazy.Image.open(job.target) as image:
                size = image.size
    except Exception:  # no picture, or half of one: it is made again
        return None
    height, width = facts["height"], facts["width"]
    view = View.asked(Box(0, 0, height, width), region, scale)
    return {**facts, "skipped": True} if size == view.size(height, width)[::-1] else None


def _head_of(path: str) -> Result | None:
    """`file_facts` of an L2C file that is as long as its head says; None: it is none, or not whole."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(_HEAD_BYTES)
        try:
            try:
                index = read_header(data, Limits.unlimited())
            except BitstreamError:
                if len(data) < _HEAD_BYTES:
                    raise
                index = read_header(data + file.read(), Limits.unlimited())  # very many tiles
        except BitstreamError:
            return None
    return file_facts(size, index) if index.file_size == size else None
