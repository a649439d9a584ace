"""The types of the public API: `typed_api.py`, which `make lint` checks, runs; the Literals name what is there."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import typed_api

import l2c
from l2c.adapt.effort import EFFORTS, EffortLevel
from l2c.codec.transform_stage import PRECISIONS, Precision
from l2c.format.levels import DEFAULT_METRIC, METRICS, Metric


def test_the_typed_program_runs(tiny_model_path: Path, drawn_picture: np.ndarray) -> None:
    codec = l2c.Codec(tiny_model_path)
    data = typed_api.options(codec, drawn_picture)
    typed_api.outputs(codec, data)
    typed_api.results(codec, drawn_picture)
    assert typed_api.refused(codec, drawn_picture, data) == 9


def test_literals_name_what_is_there() -> None:
    assert get_args(Metric) == tuple(METRICS) and DEFAULT_METRIC in METRICS
    assert get_args(EffortLevel) == tuple(range(len(EFFORTS)))
    assert get_args(Precision) == PRECISIONS == ("auto", "exact", "float32", "bfloat16")


def test_results_by_name(tiny_model_path: Path, drawn_picture: np.ndarray) -> None:
    """What the command line prints: stages in their order, and of an adaptation what is known."""
    codec = l2c.Codec(tiny_model_path)
    plain, adapted = (codec.encode_detailed(drawn_picture, quality=50, effort=effort) for effort in (0, 1))
    assert list(plain.seconds.as_dict()) == ["load", "encoder", "adapt", "entropy", "total"]
    assert list(codec.decode_detailed(plain.data).seconds.as_dict()) == ["container", "entropy", "decoder", "total"]
    assert plain.adaptation is None and plain.adaptation_as_dict() == {}
    figures = ("bpp_before", "bpp_after", "distortion_before", "distortion_after", "objective_gain_percent")
    patches = ["patches_with_bias_set", "patches_with_conditions"]
    assert list(adapted.adaptation_as_dict()) == ["iterations", "passes", *figures, *patches]
    late = codec.encode_detailed(drawn_picture, quality=50, effort=1, max_seconds=1e-6)
    assert late.adaptation_as_dict() == {"iterations": 0, "passes": 0, **dict.fromkeys(patches, 0)}
