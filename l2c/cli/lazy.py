"""What the commands use of PyTorch, NumPy, Pillow and rich: modules that load when a name of theirs is first asked for.

Nothing else in this package loads late, and nothing in it imports inside a function; so `--help`, `--version`, `info`
and a wrong usage answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class LazyModule:
    """A module by its name; an attribute of it is the module's own, and the first one loads it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from rich import console, progress

    from l2c import bulk, compressai, devices, images, models, transforms
    from l2c.bulk import run as bulk_run
    from l2c.bulk import tasks as bulk_tasks
    from l2c.codec import importance
    from l2c.evaluate import compare, run, tables
    from l2c.format import adapt_section, alternatives_section, quality_map_section
    from l2c.images import listing
    from l2c.train import average, config, exact, export, pack, stages
else:
    np = LazyModule("numpy")
    torch = LazyModule("torch")
    Image = LazyModule("PIL.Image")
    console = LazyModule("rich.console")
    progress = LazyModule("rich.progress")
    bulk = LazyModule("l2c.bulk")
    bulk_run = LazyModule("l2c.bulk.run")
    bulk_tasks = LazyModule("l2c.bulk.tasks")
    compressai = LazyModule("l2c.compressai")
    devices = LazyModule("l2c.devices")
    images = LazyModule("l2c.images")
    models = LazyModule("l2c.models")
    transforms = LazyModule("l2c.transforms")
    importance = LazyModule("l2c.codec.importance")
    compare = LazyModule("l2c.evaluate.compare")
    run = LazyModule("l2c.evaluate.run")
    tables = LazyModule("l2c.evaluate.tables")
    adapt_section = LazyModule("l2c.format.adapt_section")
    alternatives_section = LazyModule("l2c.format.alternatives_section")
    quality_map_section = LazyModule("l2c.format.quality_map_section")
    listing = LazyModule("l2c.images.listing")
    average = LazyModule("l2c.train.average")
    config = LazyModule("l2c.train.config")
    exact = LazyModule("l2c.train.exact")
    export = LazyModule("l2c.train.export")
    pack = LazyModule("l2c.train.pack")
    stages = LazyModule("l2c.train.stages")
