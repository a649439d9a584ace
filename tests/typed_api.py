"""The public API as a typed program uses it: mypy checks this file, and test_api_types.py runs it.

Every `type: ignore` here is a call that mypy has to refuse; one that it accepts is an error, too.
"""

from __future__ import annotations

import contextlib
import io
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image
from torch import Tensor
from typing_extensions import Unpack, assert_type

import l2c
from l2c.codec import (
    AdaptationReport,
    DecodeSeconds,
    EffortLevel,
    EncodeSeconds,
    Metric,
    Mode,
    Output,
    Precision,
    Receiver,
)
from l2c.images import Picture

Pixels: TypeAlias = npt.NDArray[np.uint8]


def outputs(codec: l2c.Codec, data: bytes) -> None:
    """What `as_` says is what comes back."""
    assert_type(codec.decode(data), Pixels)
    assert_type(codec.decode(data, as_="numpy", mode="original"), Pixels)
    assert_type(codec.decode(data, as_="pil"), PIL.Image.Image)
    assert_type(codec.decode(bytearray(data), as_="torch"), Tensor)
    assert_type(codec.decode_batch([data]), list[Pixels])
    assert_type(codec.decode_batch(iter([memoryview(data)]), as_="pil", mode="rgb"), list[PIL.Image.Image])
    assert_type(codec.decode_batch([data], as_="torch"), list[Tensor])
    assert_type(codec.decode(data, metric="psnr"), Pixels)
    assert_type(codec.decode(data, as_="pil", metric=None), PIL.Image.Image)
    assert_type(codec.decode_batch([data], as_="torch", metric="msssim"), list[Tensor])
    assert_type(codec.decode(io.BytesIO(data), region=(0, 0, 2, 2), scale=2, damaged="conceal"), Pixels)
    assert_type(codec.decode_regions(data, [(0, 0, 2, 2)], as_="torch"), list[Tensor])
    assert_type(codec.thumbnail(data, (8, 8)), PIL.Image.Image)
    as_: Output = "torch"
    mode: Mode = "rgb"
    assert_type(any_output(codec, data, as_, mode), Pixels | PIL.Image.Image | Tensor)


def any_output(codec: l2c.Codec, data: bytes, as_: Output, mode: Mode | None) -> Pixels | PIL.Image.Image | Tensor:
    return codec.decode(data, as_=as_, mode=mode)


def shared(data: bytes) -> None:
    """The module's own functions; never run, since they load the shipped model."""
    assert_type(l2c.encode("picture.png", bpp=0.5, model="l2c-default"), bytes)
    assert_type(l2c.decode(data), Pixels)
    assert_type(l2c.decode(data, as_="pil", device="cpu"), PIL.Image.Image)
    assert_type(l2c.decode(data, as_="torch", mode="original", metric="mixed"), Tensor)


def options(codec: l2c.Codec, picture: Pixels) -> bytes:
    """Every option by its name."""
    metric: Metric = "psnr"
    effort: EffortLevel = 1
    assert_type(codec.encode(picture, quality=50.0, metric=metric, effort=effort), bytes)
    assert_type(codec.encode_batch([picture], max_bytes=4000, effort=l2c.Effort(iterations=1)), list[bytes])
    assert_type(codec.encode_batch_detailed([picture], metadata="color", tile=512), list[l2c.Encoded])
    assert_type(codec.encode(picture, adapt_for=("psnr", "msssim")), bytes)
    kept: l2c.EncodeOptions = {"quality": 40.0, "metric": "mixed", "adapt_for": {"mixed"}}
    return passed_on(codec, picture, **kept)


def passed_on(codec: l2c.Codec, picture: Pixels, **given: Unpack[l2c.EncodeOptions]) -> bytes:
    return codec.encode(picture, **given)


def results(codec: l2c.Codec, picture: Pixels) -> None:
    """What an encode and a decode say of themselves."""
    encoded = codec.encode_detailed(picture, quality=60.0, effort=1)
    assert_type(encoded.seconds, EncodeSeconds)
    assert_type(encoded.seconds.adapt, float)
    assert_type(encoded.adaptation, AdaptationReport | None)
    assert encoded.adaptation is not None
    assert_type(encoded.adaptation.iterations, int)
    assert_type(encoded.adaptation.objective_gain_percent, float | None)
    assert_type(encoded.adaptation_as_dict(), dict[str, float | int])
    served = codec.encode_detailed(picture, quality=60.0, adapt_for=["psnr"])
    assert_type(served.receivers, tuple[Receiver, ...])
    assert_type(served.receivers[0].metric, Metric)
    assert_type(served.receivers[0].patches, int)
    assert_type(codec.decode_batch_detailed([encoded.data], metric="psnr"), list[l2c.Decoded])
    decoded = codec.decode_detailed(encoded.data, metric="psnr")
    assert_type(decoded, l2c.Decoded)
    assert_type(decoded.metric, str)
    assert_type(decoded.picture, Picture)
    assert_type(decoded.seconds, DecodeSeconds)
    assert_type(decoded.seconds.as_dict(), dict[str, float])
    assert_type(codec.precision, Precision)
    assert_type(codec.verify(encoded.data), str)


def refused(codec: l2c.Codec, picture: Pixels, data: bytes) -> int:
    """Calls that mypy refuses; returns how many of them raise `UnsupportedError`."""
    count = 0
    with counted():
        codec.encode(picture, metric="vmaf")  # type: ignore[arg-type]
        count -= 1
    with counted():
        codec.encode(picture, effort=10)  # type: ignore[arg-type]
        count -= 1
    with counted():
        codec.decode(data, scale=3)  # type: ignore[call-overload]
        count -= 1
    with counted():
        codec.decode(data, damaged="ignore")  # type: ignore[call-overload]
        count -= 1
    with counted():
        codec.decode(data, as_="jpeg")  # type: ignore[call-overload]
        count -= 1
    with counted():
        codec.decode_batch([data], mode="grey")  # type: ignore[call-overload]
        count -= 1
    with counted():
        l2c.Codec(codec.model, precision="float16")  # type: ignore[arg-type]
        count -= 1
    with counted():
        codec.encode(picture, adapt_for=("vmaf",))  # type: ignore[arg-type]
        count -= 1
    with counted():
        codec.decode(data, metric="vmaf")  # type: ignore[call-overload]
        count -= 1
    return 9 + count


def counted() -> contextlib.AbstractContextManager[None]:
    return contextlib.suppress(l2c.UnsupportedError)
