"""Many pictures: whole folders, lists, tar shards and URLs, by processes of this machine or by a Ray cluster.

    from l2c import bulk
    report = bulk.encode("photos", "packed", bpp=0.5)
    report = bulk.decode("s3://bucket/packed", "back", settings=bulk.Settings(ray="auto"))

Values go down this list:

    run                     source -> what is due -> results -> manifest, and the numbers of it all
    sources, places         what a source holds; paths and URLs, read and written whole
    manifest                what came of every file; who starts a run again goes on from it
    drive                   hands tasks to workers, and gives them to others where one dies
    engines, ray_engine     processes of this machine, this process, actors of a cluster: all run the same worker
    tasks                   what is said between the two sides
    worker, convert         a codec, files in batches; shards member by member (`shards`)

The process that hands out the work loads no PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2c.bulk.manifest import Manifest
    from l2c.bulk.run import Progress, Report, Settings, decode, encode

__all__ = ["Manifest", "Progress", "Report", "Settings", "decode", "encode"]

_LAZY = dict.fromkeys(("Progress", "Report", "Settings", "decode", "encode"), "l2c.bulk.run")
_LAZY["Manifest"] = "l2c.bulk.manifest"


def __getattr__(name: str) -> Any:
    """PEP 562, as in `l2c` itself: the command line asks for `batching` without Pillow."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
