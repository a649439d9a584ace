"""`l2c train`: one command for each stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2c.cli import lazy
from l2c.cli.messages import INTERRUPTED, USAGE

if TYPE_CHECKING:
    from l2c.config import ModelConfig
    from l2c.train.config import TrainConfig

_HELP = """Train a model, stage by stage.

A recipe (CONFIG, JSON, see configs/train/) says what is trained on what and for how long. Every stage keeps its
checkpoint and records in RUN/<stage>/, starts from the stage before it, and resumes where it was stopped. Several
processes: torchrun --nproc-per-node N -m l2c train STAGE ...
"""
app = typer.Typer(name="train", help=_HELP, rich_markup_mode=None)

Recipe = Annotated[Path, typer.Argument(metavar="CONFIG", help="The recipe, a JSON file.")]
Run = Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Folder of the run.")]
Data = Annotated[
    list[str] | None,
    typer.Option(help="Training pictures: folder, picture, list file (.txt) or tar shards; may be repeated."),
]
Val = Annotated[list[str] | None, typer.Option(help="Validation pictures, likewise.")]
Init = Annotated[
    Path | None, typer.Option(help="Checkpoint or exported model to start from, instead of the stage before.")
]
Minutes = Annotated[float | None, typer.Option(help="Length of the stage in minutes of training.")]
Steps = Annotated[int | None, typer.Option(help="Length of the stage in steps.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override an entry: --set pretrain.lr=3e-4.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one if left out.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of PyTorch.")]

_STAGES = {
    "pretrain": "Train E, I, D and P together (L2C Eq. 7).",
    "meta": "Meta-train for latent overfitting (L2C Eq. 8-10).",
    "gains": "Calibrate gains by the loss of rounded latents.",
    "modulators": "Meta-train D's modulators over lambda tasks (OML Eq. 4).",
    "bias-sets": "Overfit D's biases to patches and cluster them (L2C III-D).",
    "quantize": "Finish P for its integer form, and check it.",
}


_LENGTHS = {"gains": "gains.pictures", "bias-sets": "bias_sets.patches"}


def _recipe(
    config: Path, data: list[str] | None, val: list[str] | None, overrides: list[str]
) -> tuple[TrainConfig, ModelConfig]:
    if data:
        overrides.append(f"data.train={json.dumps(data)}")
    if val:
        overrides.append(f"data.val={json.dumps(val)}")
    return lazy.config.load_recipe(config, overrides)


def _add(name: str, text: str) -> None:
    @app.command(name, help=text, short_help=text)
    def stage(
        config: Recipe,
        out: Run,
        data: Data = None,
        val: Val = None,
        init: Init = None,
        minutes: Minutes = None,
        steps: Steps = None,
        set_: Set = None,
        device: Device = None,
        threads: Threads = None,
    ) -> None:
        if name in _LENGTHS and (minutes is not None or steps is not None):
            raise typer.BadParameter(f"{name} has no --minutes or --steps; --set {_LENGTHS[name]}=N is its length")
        section = name.replace("-", "_")
        overrides = list(set_ or [])
        if minutes is not None:
            overrides.append(f"{section}.minutes={minutes}")
        if steps is not None:
            overrides.append(f"{section}.steps={steps}")
        recipe, model = _recipe(config, data, val, overrides)
        if threads is not None:
            lazy.torch.set_num_threads(threads)
        if not lazy.stages.run_stage(name, recipe, model, out, init, device):
            raise typer.Exit(INTERRUPTED)


@app.callback(invoke_without_command=True)
def _common(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE)  # as `l2c` alone


for _name, _text in _STAGES.items():
    _add(_name, _text)


@app.command("export", short_help="Write the model file that encodes and decodes, and its card.")
def export(
    config: Recipe,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Model file to write (.safetensors).")],
    out: Run,
    data: Data = None,
    val: Val = None,
    init: Init = None,
    set_: Set = None,
    notes: Annotated[str, typer.Option(help="A line for the model card.")] = "",
) -> None:
    """Turn the run's last checkpoint into a model file (safetensors) with a card beside it (.md).

    Prints what is in it as JSON.
    """
    recipe, model = _recipe(config, data, val, list(set_ or []))
    print(json.dumps(lazy.export.export(recipe, model, out, init, target, notes), indent=1))


@app.command("exact", short_help="Give a model a decoder in integers: equal pixels on every machine.")
def exact(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name or file of a model.")],
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Model file to write (.safetensors).")],
    val: Val = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make a decoder in integers again that the model has: other pixels.")
    ] = False,
) -> None:
    """Measure the ranges of D's and E's activations on pictures (and drawn ones), round D, and write the model again.

    Its id stays: files that it made are read as before. `l2c train export` does the same to models that it writes. E
    runs in integers as well then, on CPUs, which is faster. Prints D's loss in PSNR and the errors of E's latents, in
    quantiser steps, at several qualities as JSON.
    """
    print(json.dumps(lazy.exact.add_exact(lazy.models.load_model(model), target, val or [], renew), indent=1))


@app.command("pack", short_help="Pack a stage's checkpoint and records for a journey.")
def pack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    target: Annotated[Path, typer.Argument(metavar="PACK", help="Parts PACK.000, PACK.001 ... are written.")],
    stage: Annotated[str, typer.Option(help="Which stage.")] = "pretrain",
    bits: Annotated[int, typer.Option(help="16: networks and average; 8: the average alone, a quarter as large.")] = 16,
    part_mib: Annotated[int, typer.Option(min=1, help="Largest size of a part in MiB.")] = 15,
) -> None:
    """Write what a run needs to go on elsewhere (without the optimiser's state, which is made anew), in parts."""
    for part in lazy.pack.pack(run, target, stage, bits, part_mib << 20):
        print(f"{part} {part.stat().st_size}")


@app.command("average", short_help="Average the networks of several checkpoints.")
def average(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint to write: stages start from it (--init).")],
    checkpoints: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT...", help="Two or more, of one model.")],
    weight: Annotated[
        list[float] | None, typer.Option(help="One for each checkpoint, in their order; equal ones if left out.")
    ] = None,
) -> None:
    """Write the mean of networks that were trained on from one start: it has less of the noise of their last steps.

    Gains, modulators, bias sets and P's integer form are then fitted to it by their stages.
    """
    print(json.dumps(lazy.average.average(checkpoints, target, weight).entry))


@app.command("unpack", short_help="Make a run from a pack; the stage then resumes in it.")
def unpack(
    source: Annotated[Path, typer.Argument(metavar="PACK", help="Common name of the parts PACK.000, PACK.001 ...")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
) -> None:
    """Write a pack's checkpoint and records into RUN, which must have none of that stage."""
    print(json.dumps(lazy.pack.summary(lazy.pack.unpack(source, run))))
