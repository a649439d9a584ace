"""Coding latents: a probability model, and the range coder that it drives.

base          what the codec asks of a family of models: protocols
coder         one stream, and the jobs that read or write it
multiscale    the family of L2C III-B: every scale from the one below it, group by group
"""

from __future__ import annotations
