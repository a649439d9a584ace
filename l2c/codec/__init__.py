"""Pictures to bytes and back: where networks, probability model, coder and container meet.

A picture is cut in tiles (1024 pixels by default). P and the coder stop at tile borders, so tiles can be coded in
parallel and on their own; E and D do not. Values go down this list, and come up:

    session             a model on a device, `encode` and `decode`: what the public API and the command line use
    options, results    what a call may ask for, and what it gives back
    opened, views       files as they are handed over, and what is wanted of them: a region, a smaller picture
    importance          parts of a picture that matter more -> the map of qualities that its file gets
    receivers           what a file gets for those who want another metric than its own, once its latents are chosen
    encoder, decoder    pictures -> coded latents -> files, and back; what to try next a strategy says (`l2c.search`)
    transform_stage     pictures <-> latents: E, Q, D
    latent_stage        latents <-> payloads: P and the coder, and help where they fail
    conceal             latents that did not arrive

What needs torch loads on first use, so that options can be checked without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from l2c.adapt.effort import EffortLevel
from l2c.codec.options import (
    DEFAULT_QUALITY,
    DEFAULT_TILE,
    PRECISIONS,
    Damage,
    DecodeOptions,
    EncodeOptions,
    Mode,
    Output,
    Precision,
    Region,
    Scale,
)
from l2c.format.levels import Metric

if TYPE_CHECKING:
    from l2c.adapt.encoder import AdaptationReport
    from l2c.codec.results import Decoded, DecodeSeconds, Encoded, EncodeSeconds, Receiver, Verified
    from l2c.codec.session import Codec, decode, encode, shared_codec

__all__ = [
    "DEFAULT_QUALITY",
    "DEFAULT_TILE",
    "PRECISIONS",
    "AdaptationReport",
    "Codec",
    "Damage",
    "DecodeOptions",
    "DecodeSeconds",
    "Decoded",
    "EffortLevel",
    "EncodeOptions",
    "EncodeSeconds",
    "Encoded",
    "Metric",
    "Mode",
    "Output",
    "Precision",
    "Receiver",
    "Region",
    "Scale",
    "Verified",
    "decode",
    "encode",
    "shared_codec",
]

_LAZY = dict.fromkeys(("Codec", "decode", "encode", "shared_codec"), "l2c.codec.session")
_LAZY |= dict.fromkeys(
    ("Decoded", "DecodeSeconds", "Encoded", "EncodeSeconds", "Receiver", "Verified"), "l2c.codec.results"
)
_LAZY["AdaptationReport"] = "l2c.adapt.encoder"


def __getattr__(name: str) -> Any:
    """PEP 562, as in `l2c` itself."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
