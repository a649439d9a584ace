"""What encoding and decoding give back."""

from __future__ import annotations

from dataclasses import dataclass, field

from l2c import images


@dataclass(frozen=True)
class Encoded:
    """Result of an encode.

    Attributes:
        data: the file.
        bpp: 8 * len(data) / pixels.
        quality: 0..100, the one used: lower than the one asked for where that is no worse (`l2c.guard`).
        target_reached: False where even the best quality needs less than the target (or does not reach it).
        reason: why the target was not reached, or "".
        probes: how many qualities were encoded to find this one.
        corrections: how many times the latents were changed, after the search, to meet the target.
        seconds: time per stage: "load", "encoder" (E and I), "adapt", "entropy" (P and coder), "total".
        latents_sha256: SHA-256 of all latent symbols, as `verify` prints it.
        adaptation: what the adaptation did, empty at effort 0; see `adapt.encoder.Adapted.report`.
    """

    data: bytes = field(repr=False)
    bpp: float
    quality: float
    target_reached: bool = True
    reason: str = ""
    probes: int = 1
    corrections: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    latents_sha256: str = ""
    adaptation: dict[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """Result of `Codec.decode_detailed`.

    Attributes:
        picture: pixels uint8 [H, W, 3] with original mode, alpha, ICC profile and EXIF.
        latents_sha256: SHA-256 of all latent symbols, as `Codec.verify` returns it.
        seconds: time per stage: "container", "entropy" (P and coder), "decoder" (D), "total".
    """

    picture: images.Picture
    latents_sha256: str
    seconds: dict[str, float]
