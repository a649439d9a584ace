"""What is told of a file that was made or read: dictionaries as JSON has them; without torch, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from l2c.format.bitstream import Bitstream, Container, FileIndex, Limits, read_header, section_name

if TYPE_CHECKING:
    from l2c.codec.results import Decoded, Encoded
    from l2c.codec.session import Codec

Facts: TypeAlias = dict[str, Any]


def file_facts(size: int, index: FileIndex) -> Facts:
    """What every command says of a file of so many bytes; bpp counts all of them."""
    header = index.header
    return {
        "width": header.width,
        "height": header.height,
        "mode": header.mode,
        "model_id": header.model_id.hex(),
        "size_bytes": size,
        "bpp": 8 * size / header.pixels,
    }


def read_facts(stream: Bitstream | Container, size: int, codec: Codec) -> Facts:
    """Of a file of so many bytes that a codec reads; kept pixels need no model. Raises as `Codec.codec_for`."""
    header = stream.header
    return {
        **file_facts(size, stream.index),
        "model": None if stream.index.keeps_pixels else codec.codec_for(header.model_id).model.name,
        "quality": header.quality / 10,
        "lossless": stream.index.is_lossless,
    }


def encoded_facts(encoded: Encoded, model: str, asked: Mapping[str, Any]) -> Facts:
    """Of a file that was made.

    Args:
        model: name of the codec's model.
        asked: the options of the call, by name; those not given count as None.
    """
    return {
        **file_facts(len(encoded.data), read_header(encoded.data, Limits.unlimited())),
        "model": model,
        "quality": encoded.quality,
        "lossless": encoded.lossless,
        "colours": encoded.colours,
        "metric": asked["metric"],
        "effort": asked["effort"],
        **{f"target_{name}": asked.get(name) for name in ("bpp", "max_bytes", "psnr", "msssim")},
        "target_reached": encoded.target_reached,
        "reason": encoded.reason,
        "probes": encoded.probes,
        "corrections": encoded.corrections,
        "adaptation": {name: round(value, 6) for name, value in encoded.adaptation_as_dict().items()},
        "receivers": [part.as_dict() for part in encoded.receivers],
        "latents_sha256": encoded.latents_sha256,
        "seconds": rounded(encoded.seconds.as_dict()),
    }


def decoded_facts(decoded: Decoded, container: float, save: float) -> Facts:
    """Of a picture that was restored, beside `read_facts` of its file.

    Args:
        container, save: seconds that reading and checking the file, and writing the picture took.
    """
    seconds = {**decoded.seconds.as_dict(), "container": container, "save": save}
    seconds["total"] = seconds.pop("total") + container + save
    facts: Facts = {
        "metric": decoded.metric,
        "latents_sha256": decoded.latents_sha256,
        "shown_width": decoded.picture.width,
        "shown_height": decoded.picture.height,
        "seconds": rounded(seconds),
    }
    if decoded.damaged_tiles or decoded.damaged_sections:
        facts["damaged_tiles"] = list(decoded.damaged_tiles)
        facts["damaged_sections"] = [section_name(kind) for kind in decoded.damaged_sections]
    return facts


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """To microseconds."""
    return {stage: round(value, 6) for stage, value in seconds.items()}
