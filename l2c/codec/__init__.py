"""Pictures to bytes and back: where networks, probability model, coder and container meet.

A picture is cut in tiles (1024 pixels by default). P and the coder stop at tile borders, so tiles can be coded in
parallel and on their own; E and D do not. Values go down this list, and come up:

    session             a model on a device, `encode` and `decode`: what the public API and the command line use
    options, results    what a call may ask for, and what it gives back
    encoder, decoder    pictures -> coded latents -> files, and back; what to try next a strategy says (`l2c.search`)
    transform_stage     pictures <-> latents: E, Q, D
    latent_stage        latents <-> payloads: P and the coder, and help where they fail
"""

from l2c.codec.decoder import Output
from l2c.codec.options import DEFAULT_QUALITY, DEFAULT_TILE, EncodeOptions
from l2c.codec.results import Decoded, Encoded
from l2c.codec.session import Codec, decode, encode, shared_codec
from l2c.codec.transform_stage import PRECISIONS

__all__ = [
    "DEFAULT_QUALITY",
    "DEFAULT_TILE",
    "PRECISIONS",
    "Codec",
    "Decoded",
    "EncodeOptions",
    "Encoded",
    "Output",
    "decode",
    "encode",
    "shared_codec",
]
