"""Checkpoints of CompressAI become models of ours.

names         what their keys and files are called, in all generations
load          read one, put several together
"""

from __future__ import annotations

from l2c.compressai.load import Checkpoint, Metric, assemble, read

__all__ = ["Checkpoint", "Metric", "assemble", "read"]
