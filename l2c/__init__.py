"""L2C: a learned image codec that adapts to each picture and decodes bit for bit on any machine.

data = l2c.encode("photo.png", bpp=0.5)
picture = l2c.decode(data)                  # uint8 [H, W, 3]
"""

from typing import TYPE_CHECKING, Any

from l2c.errors import (
    BackendError,
    BitstreamError,
    ConfigError,
    ImageError,
    L2CError,
    LimitError,
    ModelMismatchError,
    RateError,
    UnsupportedError,
)
from l2c.format.bitstream import Limits

if TYPE_CHECKING:
    from l2c.adapt.effort import Effort
    from l2c.codec import Codec, Encoded, decode, encode

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BitstreamError",
    "Codec",
    "ConfigError",
    "Effort",
    "Encoded",
    "ImageError",
    "L2CError",
    "LimitError",
    "Limits",
    "ModelMismatchError",
    "RateError",
    "UnsupportedError",
    "decode",
    "encode",
]

_FROM_CODEC = frozenset({"Codec", "Effort", "Encoded", "decode", "encode"})


def __getattr__(name: str) -> Any:
    """The codec's names, and with them torch, load on first use (PEP 562): `l2c info` needs neither."""
    if name in _FROM_CODEC:
        from l2c import codec

        return getattr(codec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
