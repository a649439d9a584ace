"""Checkpoints of CompressAI become models of ours.

names         what their keys and files are called, in all generations
checkpoints   read one, put several together
calibrate     what an entropy model is shown before it becomes integers
convert       the model, in memory or as a file
"""

from __future__ import annotations

from l2c.compressai.checkpoints import Checkpoint, Metric, assemble, read
from l2c.compressai.convert import convert, load

__all__ = ["Checkpoint", "Metric", "assemble", "convert", "load", "read"]
