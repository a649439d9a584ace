"""Pictures to bytes and back: where networks, probability model, coder and container meet.

A picture is cut in tiles (1024 pixels by default). P and the coder stop at tile borders, so tiles can be coded in
parallel and on their own; E and D do not. Values go down this list, and come up:

    session             a model on a device, `encode` and `decode`: what the public API and the command line use
    options, results    what a call may ask for, and what it gives back
    encoder, decoder    pictures -> coded latents -> files, and back; what to try next a strategy says (`l2c.search`)
    transform_stage     pictures <-> latents: E, Q, D
    latent_stage        latents <-> payloads: P and the coder, and help where they fail
"""

from l2c.adapt.effort import EffortLevel
from l2c.adapt.encoder import AdaptationReport
from l2c.codec.decoder import Mode, Output
from l2c.codec.options import DEFAULT_QUALITY, DEFAULT_TILE, EncodeOptions
from l2c.codec.results import Decoded, DecodeSeconds, Encoded, EncodeSeconds
from l2c.codec.session import Codec, decode, encode, shared_codec
from l2c.codec.transform_stage import PRECISIONS, Precision
from l2c.format.levels import Metric

__all__ = [
    "DEFAULT_QUALITY",
    "DEFAULT_TILE",
    "PRECISIONS",
    "AdaptationReport",
    "Codec",
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
    "decode",
    "encode",
    "shared_codec",
]
