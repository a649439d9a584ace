"""What to try next: from what a call asks for to the trials that meet it, as values alone.

A strategy asks questions and is told what came of them; whoever can encode answers (`l2c.codec.encoder`), and what was
coded passes through here as an opaque handle. So nothing here knows PyTorch or a picture, and every strategy runs on a
curve that a test draws.

    questions    what can be asked, and the answers
    course       several pictures at once: the course of each, and the strategy that they make together
    picture      what a strategy knows of a picture; a trial at a quality, with the looks of `l2c.guard`
    qualities    at given qualities
    sizes        in a number of bytes: `QualitySearch`, then corrections of the adapted picture
    figures      at a PSNR or an MS-SSIM: `MetricSearch`, then corrections likewise
    steps        all of that for a model that has networks at a few qualities alone

The arithmetic of the searches is in `l2c.rate_control`.
"""

from l2c.search.course import Strategy
from l2c.search.figures import ToFigures
from l2c.search.picture import Picture
from l2c.search.qualities import AtQualities
from l2c.search.questions import (
    Adapt,
    Best,
    Figure,
    LookAt,
    Measure,
    Plain,
    Question,
    Steer,
    Trial,
    Trim,
    Weigh,
)
from l2c.search.sizes import ToSizes
from l2c.search.steps import StepsAt, StepsToFigures, StepsToSizes

__all__ = [
    "Adapt",
    "AtQualities",
    "Best",
    "Figure",
    "LookAt",
    "Measure",
    "Picture",
    "Plain",
    "Question",
    "Steer",
    "StepsAt",
    "StepsToFigures",
    "StepsToSizes",
    "Strategy",
    "ToFigures",
    "ToSizes",
    "Trial",
    "Trim",
    "Weigh",
]
