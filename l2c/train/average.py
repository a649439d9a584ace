"""The mean of several checkpoints of one architecture: less of the gradient's noise than any of them has.

Networks that were trained on from one start at different places of the data lie about one valley, each off its floor
by the noise of its last steps, and their mean lies lower (Izmailov et al. 2018, arXiv:1803.05407; Wortsman et al. 2022,
arXiv:2203.05482). It costs no training; what is fitted to the networks (gains, bias sets) is fitted again behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from l2c.errors import ConfigError, TrainingError
from l2c.train.checkpoint import Checkpoint

STAGE = "average"


def average(paths: Sequence[Path], target: Path, weights: Sequence[float] | None = None) -> Checkpoint:
    """Write a checkpoint with the weighted mean of the average networks of others; a new stage starts from it.

    It has neither an optimiser's state nor bias sets, and no run resumes from it: name it with --init.

    Args:
        paths: checkpoints or exported models, two or more, of one model configuration (but for its name: the first's).
        target: file to write; an older one is replaced.
        weights: one for each, positive; they are divided by their sum. None: all equal.
    Returns:
        The checkpoint. Its history is theirs, each stage named once.
    Raises:
        ConfigError: fewer than two, weights that do not fit, or a file named as an exported model.
        TrainingError: one cannot be read or holds no networks, they are of different models, or the file cannot be
            written.
    """
    if len(paths) < 2:
        raise ConfigError("a mean takes two checkpoints or more")
    if target.suffix == ".safetensors":
        raise ConfigError(f"{target.name}: a mean is a checkpoint (.pt); `l2c train export` makes a model file of it")
    shares = [1.0] * len(paths) if weights is None else list(weights)
    total = sum(shares)
    if len(shares) != len(paths) or not all(share > 0.0 for share in shares) or not math.isfinite(total):
        raise ConfigError(f"a mean of {len(paths)} checkpoints takes as many weights, positive numbers")
    mean: dict[str, Tensor] = {}
    history: list[dict[str, str]] = []
    names, config = [], None
    for path, share in zip(paths, shares):
        part = Checkpoint.load(path)
        config = config or part.config
        if replace(part.config, name=config.name) != config:
            raise TrainingError(f"{path} is of another model than {paths[0]}")
        part.networks(config)  # raises TrainingError where there are none, or one is not finite
        for name, value in part.average.items():
            value = value.double() * (share / total) if value.is_floating_point() else value
            mean[name] = mean[name] + value if name in mean and value.is_floating_point() else value
        history += [entry for entry in part.past() if entry not in history]
        names.append(f"{share / total:.3g} {part.mark()}")
    assert config is not None
    state = {name: value.float() if value.is_floating_point() else value for name, value in mean.items()}
    entry = {"stage": STAGE, "of": "; ".join(names)}
    whole = Checkpoint(config, state, {k: v.clone() for k, v in state.items()}, STAGE, entry=entry, history=history)
    whole.save(target)
    return whole
