"""What encoding and decoding give back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from l2c import images
from l2c.adapt.encoder import AdaptationReport
from l2c.format.levels import Metric


@dataclass(frozen=True)
class Seconds:
    """Time per stage."""

    def as_dict(self) -> dict[str, float]:
        """By name, in the order of the stages."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class EncodeSeconds(Seconds):
    """Time per stage, of a batch an equal share.

    Attributes:
        load: reading pictures. encoder: E and I. adapt: the search of the adaptation. entropy: P and the coder.
        total: all of the call.
    """

    load: float = 0.0
    encoder: float = 0.0
    adapt: float = 0.0
    entropy: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class DecodeSeconds(Seconds):
    """Time per stage.

    Attributes:
        container: parsing and checks. entropy: P and the coder. decoder: D. total: all of the call.
    """

    container: float = 0.0
    entropy: float = 0.0
    decoder: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Receiver:
    """Whom a file was adapted for (`adapt_for`).

    Attributes:
        metric: that the receiver asks for.
        patches: 512x512 patches with conditions for it; 0: none pay for their bytes, the receiver gets the default.
        size_bytes: of these conditions in the file.
    """

    metric: Metric
    patches: int
    size_bytes: int

    def as_dict(self) -> dict[str, str | int]:
        """By name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Verified:
    """What was found out about a file that is sound.

    Attributes:
        latents_sha256: of all latent symbols, or of the colours of a lossless file.
        pixels_crc32: of its decoded colours, uint8 RGB; None: they were not decoded.
    """

    latents_sha256: str
    pixels_crc32: int | None


@dataclass(frozen=True)
class Encoded:
    """Result of an encode.

    Attributes:
        data: the file.
        bpp: 8 * len(data) / pixels.
        quality: 0..100, the one used: lower than the one asked for where that is no worse (`l2c.guard`). Of a model
            with networks at some qualities alone, the number of one.
        target_reached: False where even the best quality needs less than the target (or does not reach it).
        reason: why the target was not reached, or "".
        probes: how many qualities were encoded to find this one.
        corrections: how many times the latents were changed, after the search, to meet the target.
        seconds: time per stage.
        latents_sha256: SHA-256 of all latent symbols, as `verify` prints it; of a file that keeps pixels, of them.
        adaptation: what the adaptation did; None where the file has none.
        receivers: one for each metric of `adapt_for`, in the order of `levels.METRICS`; none of a lossless file.
        lossless: whether the file keeps the picture's colours as they are, because that takes fewer bytes.
        colours: to how many the file has reduced a drawn picture, instead of latents that would be no better; its
            quality is what theirs would be (99.9 where none were made). None: it has not.
    """

    data: bytes = field(repr=False)
    bpp: float
    quality: float
    target_reached: bool = True
    reason: str = ""
    probes: int = 1
    corrections: int = 0
    seconds: EncodeSeconds = EncodeSeconds()
    latents_sha256: str = ""
    adaptation: AdaptationReport | None = None
    receivers: tuple[Receiver, ...] = ()
    lossless: bool = False
    colours: int | None = None

    def adaptation_as_dict(self) -> dict[str, float | int]:
        """`adaptation` by name, empty where there is none."""
        return {} if self.adaptation is None else self.adaptation.as_dict()


@dataclass(frozen=True)
class Decoded:
    """Result of `Codec.decode_detailed`.

    Attributes:
        picture: pixels uint8 [H, W, 3] with original mode, alpha, ICC profile and EXIF.
        latents_sha256: SHA-256 of all latent symbols, as `Codec.verify` returns it; "" where not all were decoded.
            Of a lossless file, of its pixels.
        seconds: time per stage.
        metric: that the picture was made for: the one asked for where the file has a set for it, else the file's own,
            as `levels.metric_name` calls it.
        damaged_tiles: those of the tiles that were needed that were concealed, all or in part.
        damaged_sections: types of sections (`l2c.format.bitstream`) that were left out.
    """

    picture: images.Picture
    latents_sha256: str
    seconds: DecodeSeconds
    metric: str = ""
    damaged_tiles: tuple[int, ...] = ()
    damaged_sections: tuple[int, ...] = ()
