"""The stages of a run, in order, and what each starts from.

A run is a folder; every stage has a folder of its own in it (checkpoint.pt, log.csv, validation.csv, curves.png,
run.json) and starts from the checkpoint of the nearest stage before it that is there. Gains move the latents, so they
come before what is fitted to these. Modulators come before bias sets, because the sets are overfitted to the D that
ships; both leave the latents and P alone.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from l2c.config import ModelConfig
from l2c.errors import ConfigError
from l2c.train import bias_sets, gains
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import StageConfig, TrainConfig
from l2c.train.exact import calibrate, check_losses, losses
from l2c.train.interrupts import locked
from l2c.train.loop import Loop
from l2c.train.losses import Networks
from l2c.train.meta import MetaObjective
from l2c.train.modulators import ModulatorsObjective
from l2c.train.objective import Objective
from l2c.train.parallel import Parallel
from l2c.train.perceptual import VGG16Features
from l2c.train.pretrain import PretrainObjective
from l2c.train.quantize import QuantizeObjective, check_rate_loss, rates
from l2c.train.validation import drawn_pictures

_IN_RUN, _NAMED = "run ", "init "  # what `Checkpoint.parent` begins with
STAGES = ("pretrain", "meta", "gains", "modulators", "bias-sets", "quantize")
_ALONE = {"gains": gains.run, "bias-sets": bias_sets.run}  # stages without a loop, in one process


def newest(folder: Path, before: str | None = None) -> Path | None:
    """Checkpoint of the last stage in a run's folder, or of the last one before the stage `before`."""
    names = STAGES if before is None else STAGES[: STAGES.index(before)]
    paths = [folder / name / "checkpoint.pt" for name in reversed(names)]
    return next((path for path in paths if path.exists()), None)


def check_chain(folder: Path, name: str) -> None:
    """Raise ConfigError where a stage of a run, or one that it was made from, has been trained on or replaced since."""
    while (path := folder / name / "checkpoint.pt").exists():
        parent = Checkpoint.load(path).parent
        if not parent.startswith(_IN_RUN):
            return
        source = newest(folder, before=name)
        mark = Checkpoint.load(source).mark() if source is not None else "nothing"
        if source is None or parent != _IN_RUN + mark:
            raise ConfigError(
                f"{path} was made from {parent.removeprefix(_IN_RUN)}, but the stage before it is now {mark}: remove "
                f"{path.parent} to run {name} again"
            )
        name = source.parent.name


def run_stage(
    name: str, recipe: TrainConfig, model: ModelConfig, folder: Path, init: Path | None, device: str | None
) -> bool:
    """Run one stage to its end, resuming it where it was begun.

    Args:
        name: one of STAGES.
        folder: of the run.
        init: checkpoint or exported model that a new stage starts from; None: the stage before. A stage that has
            begun may name it again.
        device: "cpu", "cuda", or None for a GPU where there is one.
    Returns:
        Whether the stage is complete; False where it was interrupted (SIGINT, SIGTERM).
    Raises:
        ConfigError, TrainingError, BackendError, ModelMismatchError: as the stages say.
    """
    if not recipe.data.train or (not recipe.data.val and name != "bias-sets"):
        raise ConfigError("name the pictures: data.train and data.val in the recipe, or --data and --val")
    parallel = Parallel(device)
    try:
        start, parent = parallel.from_first(lambda: _start(name, folder, init))
        if name in _ALONE:
            if parallel.world > 1:
                raise ConfigError(f"{name} runs in one process")
            assert start is not None
            command = shlex.join(["l2c", *sys.argv[1:]])
            (folder / name).mkdir(parents=True, exist_ok=True)
            with locked(folder / name):
                _ALONE[name](recipe, model, folder / name, start, parent, parallel.device, command)
            return True
        stage, objective = _stage(name, recipe)
        loop = Loop(name, recipe, stage, model, objective, folder / name, start, parallel, parent)
        complete = loop.run()
        if complete and name == "quantize" and parallel.rank == 0 and start is not None:
            _report_quantised(loop, start, recipe, model)
        return complete
    finally:
        parallel.close()


def _start(name: str, folder: Path, init: Path | None) -> tuple[Checkpoint | None, str]:
    """What a stage starts from, or started from if it has begun, and its mark (`Checkpoint.parent`)."""
    own = folder / name / "checkpoint.pt"
    source = init or newest(folder, before=name)
    if source is not None and not source.exists():
        raise ConfigError(f"there is no checkpoint {source}")
    if source is None and name != "pretrain" and (name in _ALONE or not own.exists()):
        raise ConfigError(f"{name} starts from trained networks: run pretrain first, or name a checkpoint with --init")
    start = Checkpoint.load(source) if source is not None else None
    parent = f"{_IN_RUN if init is None else _NAMED}{start.mark()}" if start is not None else ""
    if own.exists() and name not in _ALONE:
        begun = Checkpoint.load(own).parent
        if init is not None and begun and begun.split(" ", 1)[1] != parent.split(" ", 1)[1]:
            raise ConfigError(
                f"{own} started from {begun.split(' ', 1)[1]}, and --init names {parent.split(' ', 1)[1]}: leave "
                f"--init out to go on, or remove {own.parent} or choose another --out to start again"
            )
        if init is None:
            check_chain(folder, name)
    return start, parent


def _stage(name: str, recipe: TrainConfig) -> tuple[StageConfig, Callable[[Networks, VGG16Features | None], Objective]]:
    weights = recipe.loss
    if name == "meta":
        return recipe.meta, lambda nets, features: MetaObjective(nets, weights, features, recipe.meta)
    if name == "modulators":
        return recipe.modulators, lambda nets, features: ModulatorsObjective(nets, weights, features, recipe.modulators)
    if name == "quantize":
        scope, search = recipe.quantize.scope, recipe.quantize.search
        return recipe.quantize, lambda nets, features: QuantizeObjective(nets, weights, features, scope, search)
    fixed = recipe.pretrain.fixed_gains
    return recipe.pretrain, lambda nets, features: PretrainObjective(nets, weights, features, fixed)


def _report_quantised(loop: Loop, start: Checkpoint, recipe: TrainConfig, model: ModelConfig) -> None:
    """Rate of the integer P against the float P that the stage started from (but for scope "all" of the same latents).

    With scope "both" what the integer D loses, too, against the float D that the stage started from.
    """
    finished = loop.engine.average.cpu()
    family = model.entropy.integer_model
    exact = family.from_float(finished.probability)
    before = start.networks(model)[1] if recipe.quantize.scope != "all" else finished
    plain = family.from_float(before.probability)
    pictures = next(iter(loop.val_pictures.values()))
    in_float, rounded = rates(before, plain, pictures)
    _, in_integers = rates(finished, exact, pictures)
    loop.say(
        f"rate of the integer P against the float P before this stage: {100 * (in_integers / in_float - 1):+.3f} % "
        f"(rounded without this stage: {100 * (rounded / in_float - 1):+.3f} %)"
    )
    checked = exact.check_all(exact.known_answer(exact.definition))
    loop.say(f"the integer P gives the same integers on these paths: {', '.join(checked)}")
    if recipe.quantize.scope == "both":
        shown = [*pictures, *drawn_pictures(len(pictures) // 2, pictures[0].shape[2], pictures)]
        for what, nets in (("before this stage", before), ("now", finished)):
            integers, _ = calibrate(nets.transform, model, shown)
            found = losses(nets.transform, model, integers, pictures)
            text = ", ".join(
                f"{loss.in_integers:.3f} ({loss.in_float - loss.in_integers:+.3f}) at {loss.quality / 10:g}"
                for loss in found
            )
            loop.say(f"PSNR of the integer D {what}, and what the float D has more: {text}")
        check_losses(found)
    check_rate_loss(in_float, in_integers, recipe.quantize.max_loss)
