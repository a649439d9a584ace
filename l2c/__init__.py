"""L2C: a learned image codec that adapts to each picture and decodes bit for bit on any machine.

data = l2c.encode("photo.png", bpp=0.5)
picture = l2c.decode(data)                  # uint8 [H, W, 3]
"""

import importlib
from typing import TYPE_CHECKING, Any

from l2c.errors import (
    BackendError,
    BitstreamError,
    ConfigError,
    DamagedError,
    ImageError,
    L2CError,
    L2CWarning,
    LimitError,
    ModelMismatchError,
    RateError,
    TrainingError,
    UnsupportedError,
)
from l2c.format.bitstream import Limits, read_header

if TYPE_CHECKING:
    from l2c.adapt.effort import Effort
    from l2c.codec import Codec, Decoded, DecodeOptions, Encoded, EncodeOptions, decode, encode
    from l2c.models import load_model

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BitstreamError",
    "Codec",
    "ConfigError",
    "DamagedError",
    "DecodeOptions",
    "Decoded",
    "Effort",
    "EncodeOptions",
    "Encoded",
    "ImageError",
    "L2CError",
    "L2CWarning",
    "LimitError",
    "Limits",
    "ModelMismatchError",
    "RateError",
    "TrainingError",
    "UnsupportedError",
    "decode",
    "encode",
    "load_model",
    "read_header",
]

_LAZY = dict.fromkeys(
    ("Codec", "Decoded", "DecodeOptions", "EncodeOptions", "Encoded", "decode", "encode"), "l2c.codec"
)
_LAZY |= {"Effort": "l2c.adapt.effort", "load_model": "l2c.models"}


def __getattr__(name: str) -> Any:
    """The codec's names, and with them torch, load on first use (PEP 562): `l2c info` needs neither."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
