"""The loop that every stage with networks runs in: steps, running average, records, checkpoints, roll-back.

Read me first
- Pictures, conditions and noise of a step are pure functions of (seed, salt, step, position in the global batch). So a
  run that is killed resumes on the same curve from its last checkpoint, and several processes see the batch that one
  process would see.
- A step whose gradient is not finite changes nothing (`engine`). After _MAX_BAD such steps in a row networks go back
  to the last good checkpoint, with other pictures (`salt`) and half the learning rate; after _MAX_ROLLBACKS roll-backs
  without a good checkpoint in between the run stops.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2c.config import ModelConfig
from l2c.errors import ConfigError, ImageError, L2CWarning, TrainingError
from l2c.format.levels import METRICS
from l2c.ops import bf16_pays
from l2c.train.batches import Batch, make_batch
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import StageConfig, TrainConfig, recipe_json
from l2c.train.data import Prefetcher, Sampler, centre_crops, describe, shared_pictures
from l2c.train.device_data import Bank, DeviceBatches
from l2c.train.drawn import draw_batch
from l2c.train.engine import Engine, Figures
from l2c.train.interrupts import locked, signals
from l2c.train.losses import Networks
from l2c.train.objective import Objective
from l2c.train.parallel import Parallel
from l2c.train.perceptual import VGG16Features, load_vgg16
from l2c.train.records import Records, log_line, machine, write_json
from l2c.train.schedule import Position, Schedule, passed
from l2c.train.speed import convolution_peak
from l2c.train.validation import mean_log_loss, validate, validation_set
from l2c.transforms import Transform, check_contract

_MAX_BAD = 3
_MAX_ROLLBACKS = 3
_SEEN = "seen"  # kind of the validation pictures that are trained on: the gap to the others shows overfitting
_COMMANDS = "; "  # between the commands of one stage in its entry


def commands_of(checkpoint: Checkpoint | None) -> list[str]:
    """The commands that a stage was run with so far, from its entry."""
    text = checkpoint.entry.get("command", "") if checkpoint is not None else ""
    return text.split(_COMMANDS) if text else []


class Loop:
    """One stage of a run."""

    def __init__(
        self,
        name: str,
        recipe: TrainConfig,
        stage: StageConfig,
        model: ModelConfig,
        objective: Callable[[Networks, VGG16Features | None], Objective],
        folder: Path,
        start: Checkpoint | None,
        parallel: Parallel,
        parent: str = "",
    ) -> None:
        """Set up, resuming from `folder` where a checkpoint of this stage lies in it.

        Args:
            objective: makes the stage's objective; it sets `requires_grad` of what it does not train to False.
            start: where a new stage starts; None: random networks.
            parent: for a new stage, see `Checkpoint.parent`.
        Raises:
            ConfigError: no usable pictures, a batch that the processes cannot share, a stage that cannot be compiled,
                or networks that do not keep their contract (`check_contract`).
            TrainingError: a checkpoint that does not fit.
        """
        if stage.batch % parallel.world:
            raise ConfigError(f"a batch of {stage.batch} cannot be shared by {parallel.world} processes")
        if recipe.data.crop % model.transform.s:
            raise ConfigError(f"data.crop is {recipe.data.crop}: it must be a multiple of s = {model.transform.s}")
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            check_contract(Transform(model.transform))
        self.name, self.recipe, self.stage, self.model, self.parallel = name, recipe, stage, model, parallel
        self.schedule = Schedule(stage, stage.batch * recipe.data.crop**2)
        self.folder, self.path = folder, folder / "checkpoint.pt"
        folder.mkdir(parents=True, exist_ok=True)
        resumed = parallel.from_first(lambda: Checkpoint.load(self.path) if self.path.exists() else None)
        if resumed is not None and resumed.stage != name:
            raise TrainingError(f"{self.path} belongs to the stage {resumed.stage!r}, not to {name!r}")
        self._objective = objective
        self.parent = resumed.parent if resumed is not None else parent
        self._commands = commands_of(resumed)
        data = recipe.data
        self.sampler = Sampler(data, data.train, data.crop, recipe.seed, parallel.rank, parallel.world)
        self.bank = self._read_bank() if recipe.data.on_device else None
        self.val_pictures = validation_set(recipe.data.val, recipe.val_size, recipe.val_pictures, recipe.val_drawn)
        if self.sampler.lasting:
            limit = 4 * recipe.val_pictures
            self.val_pictures[_SEEN] = centre_crops(recipe.data.train, recipe.val_size, recipe.val_pictures, limit)
        features = load_vgg16(Path(recipe.loss.vgg16)) if recipe.loss.perceptual and recipe.loss.vgg16 else None
        self.features = features.to(parallel.device) if features is not None else None
        if features is None:
            missing = "no VGG16 weights were named (loss.vgg16)" if recipe.loss.perceptual else "loss.perceptual is 0"
            self.say(f"the perceptual term of Eq. 7 is off: {missing}")
        shared = shared_pictures(recipe.data.train, recipe.data.val)
        if shared and parallel.rank == 0:
            warnings.warn(f"{shared} pictures are in training and validation", L2CWarning, stacklevel=2)
        if parallel.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # the shapes of a run are few
        choice = recipe.autocast
        self.autocast = choice == "on" or (choice == "auto" and bf16_pays(parallel.device))
        self.is_new = resumed is None
        self._restore(resumed or start or self._random())
        self.records = self._open_records()
        self._data = describe(recipe.data.train)
        self._check_steps = 1 if parallel.device.type == "cpu" else 50  # reading the counter waits for a GPU
        self._stop = False
        self._rollbacks = 0

    def _open_records(self) -> Records:
        return Records(self.folder, self.at.step, active=self.parallel.rank == 0, plots=self.recipe.plots)

    def _random(self) -> Checkpoint:
        torch.manual_seed(self.recipe.seed)
        state = Networks(self.model).state_dict()
        return Checkpoint(self.model, state, copy.deepcopy(state))

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Networks, average, optimiser and counters as the checkpoint has them.

        A new stage takes the average alone, as its networks too: what it leaves untrained is then what ships.
        """
        mine = not self.is_new
        device = self.parallel.device
        nets, average = checkpoint.networks(self.model)
        if not mine:
            nets.load_state_dict(average.state_dict())
        for part in (nets, average):
            part.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            part.probability.set_fake_quantise(self.stage.quantise)
        self.at = Position(
            checkpoint.step, checkpoint.seconds, checkpoint.pixels, checkpoint.warm_from, checkpoint.salt,
            checkpoint.lr_scale,
        ) if mine else Position()  # fmt: skip
        if mine and not checkpoint.optimizer:  # a pack has none
            self.at.warm_from = self.at.step
        objective = self._objective(nets, self.features).to(device)
        self.engine = Engine(
            nets, average.requires_grad_(False), objective, self.stage, wrap=self._wrap, autocast=self.autocast,
            batches=self._make_device_batches() if self.bank is not None else None, step=self.at.step,
        )  # fmt: skip
        if mine:
            self._check_same_parameters(checkpoint)
            with torch.no_grad():
                for k, parameter in enumerate(self.engine.own):
                    parameter.copy_(checkpoint.objective[str(k)])
            if checkpoint.optimizer:
                self.engine.optimizer.load_state_dict(checkpoint.optimizer)
        self._restored = self.at.step
        self._validated_pixels = self._kept_pixels = self.at.pixels
        self.history = checkpoint.history if mine else checkpoint.past()
        # Sets belong to the D that they were overfitted to.
        moves_d = any(p.requires_grad for p in nets.transform.decoder.parameters())
        self.bias_sets = {} if moves_d else checkpoint.bias_sets
        if moves_d and checkpoint.bias_sets:
            self.say("this stage moves D: the bias sets, which were made for the old one, are dropped")

    def _wrap(self, objective: nn.Module) -> nn.Module:
        wrapped = self.parallel.wrap(objective)
        if self.recipe.compile:
            if isinstance(objective, Objective) and not objective.compiles:
                raise ConfigError(f"{self.name} differentiates inside a step, which torch.compile cannot do")
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        return wrapped

    def _check_same_parameters(self, checkpoint: Checkpoint) -> None:
        """Raise TrainingError where a resumed checkpoint was made while other parameters were trained."""
        shapes = [checkpoint.objective[str(k)].shape for k in range(len(checkpoint.objective))]
        groups = checkpoint.optimizer.get("param_groups", [])
        count = sum(len(group["params"]) for group in groups)
        if shapes != [p.shape for p in self.engine.own] or (groups and count != len(self.engine.parameters)):
            raise TrainingError(
                f"{self.path} was made while other parameters were trained than the recipe and the model now ask for: "
                "start a new run from it with --init"
            )

    def checkpoint(self) -> Checkpoint:
        """This moment."""
        engine, at = self.engine, self.at
        own = {str(k): p.detach() for k, p in enumerate(engine.own)}
        return Checkpoint(
            self.model, engine.nets.state_dict(), engine.average.state_dict(), self.name, at.step, at.seconds,
            engine.optimizer.state_dict(), own, at.salt, at.lr_scale, self._entry(), self.history, self.bias_sets,
            self.parent, at.pixels, at.warm_from,
        )  # fmt: skip

    def train_step(self, batch: Batch | None) -> None:
        """One optimiser step, on a batch made on the host or, None, on one made on the device."""
        self._begin_step()
        self.engine.take(batch)
        self.at.step += 1
        self.at.pixels += self.schedule.pixels
        self.engine.optimizer.after_step(self.at.step)

    def _begin_step(self) -> None:
        self.engine.begin(self.at.step, self.schedule.learning_rate(self.at))

    def _capture(self) -> None:
        """Put the step on the device into a CUDA graph, if that works there."""
        on_gpu = self.parallel.device.type == "cuda"
        if not on_gpu or not self.recipe.graph or self.parallel.world > 1 or not self.engine.objective.compiles:
            return
        self._begin_step()
        reason, seconds = self.engine.capture()
        how = f"is not captured: {reason}" if reason else "is one CUDA graph"
        self.say(f"the step {how} ({seconds:.1f} s)")

    def _read_bank(self) -> Bank:
        """Photographs and drawn pictures for batches made on the device. Raises ConfigError as `Sampler` does."""
        began = time.monotonic()
        data, device = self.recipe.data, self.parallel.device
        pictures = list(self.sampler.pictures())
        drawn: list[torch.Tensor] = []
        if data.drawn_share > 0.0:
            photos = [picture.permute(1, 2, 0).numpy() for picture in pictures[:: max(1, len(pictures) // 64)]]
            side = max(data.crop, data.drawn_side)
            drawn = list(draw_batch(data.drawn_bank, side, self.recipe.seed, photos))
        bank = Bank(pictures, device, drawn)
        self.say(
            f"{len(pictures)} photographs, {len(drawn)} drawn pictures, {bank.pixels.shape[0] / 1e6:.0f} Mpixel in "
            f"memory after {time.monotonic() - began:.1f} s"
        )
        return bank

    def _make_device_batches(self) -> DeviceBatches:
        assert self.bank is not None
        side = self.recipe.data.crop // self.model.transform.s
        return DeviceBatches(
            self.bank, self.recipe.data, self.stage, self.model.bits, (self.model.transform.c, side, side),
            self.recipe.seed, self.at.salt, self.parallel.rank, self.parallel.world, self.stage.steps_of(self.model),
        )  # fmt: skip

    def run(self) -> bool:
        """Train to the end of the stage, then write its checkpoint, validate, and plot.

        Returns:
            Whether the stage is complete; False after SIGINT or SIGTERM.
        Raises:
            TrainingError: the loss stays NaN, the last checkpoint cannot be written, or another process trains in this
                folder.
        """
        if self._is_complete():
            self.say(f"{self.name} is complete at step {self.at.step}: raise its minutes or steps to go on")
            return True
        with locked(self.folder) if self.parallel.rank == 0 else contextlib.nullcontext():
            return self._run()

    def _is_complete(self) -> bool:
        return self.schedule.progress(self.at) >= 1.0

    def _run(self) -> bool:
        if self.parallel.rank == 0:
            write_json(self.folder / "run.json", self._facts())
        command = shlex.join(["l2c", *sys.argv[1:]])
        if not self._commands or not self._commands[-1].endswith(command):
            self._commands.append(f"from step {self.at.step}: {command}" if self._commands else command)
        if self.is_new:
            self.save(last=True)  # what a roll-back in the first minutes goes back to; a full disk shows at once
            self.is_new = False
        else:
            self.say(f"resumed at step {self.at.step}, {self.at.seconds:.0f} s")
        try:
            with signals(self._ask_to_stop, self._say_ended):
                self._train()
        except (ConfigError, ImageError):  # a shard that cannot be read, say: what was learnt so far is kept
            if self.parallel.world == 1:
                self.save(last=True)
            raise
        self.save(last=True)
        self._validate()
        complete = self._is_complete()
        self.say(f"{self.name} {'is complete' if complete else 'was interrupted'} at step {self.at.step}: {self.path}")
        return complete

    def _train(self) -> None:
        prefetcher = self._prefetcher()
        begin, base, first_step = time.monotonic(), self.at.seconds, self.at.step
        logged, saved, waited = begin, begin, 0.0
        operations = peak = 0.0
        try:
            while True:
                if self.parallel.world == 1 or (self.at.step - first_step) % self.recipe.agree_steps == 0:
                    now = time.monotonic()
                    due = (now - logged >= self.recipe.log_seconds, now - saved >= 60.0 * self.recipe.save_minutes)
                    self.at.seconds, log, save = self.parallel.agree([base + now - begin, *due])
                    stop = self.parallel.any(self._stop)
                    if (log or save) and self.at.step > first_step:
                        share = (prefetcher.wait_seconds - waited) / max(now - logged, 1e-9)
                        self.log(now - logged, share, operations, peak, first_step, now - begin)
                        logged, waited = now, prefetcher.wait_seconds
                    if save:
                        self.save()
                        self._keep()
                        every = self.recipe.val_gpixel
                        if every is None or passed(every, self._validated_pixels, self.at.pixels):
                            self._validate()
                        saved = logged = time.monotonic()
                        waited = prefetcher.wait_seconds
                    if stop:
                        break
                if self._is_complete():
                    break
                batch = prefetcher.get(self.at.step)
                if operations == 0.0:
                    operations, peak = self._counted_step(batch)
                    self._capture()
                else:
                    self.train_step(batch)
                if self.at.step % self._check_steps == 0 and float(self.engine.bad) >= _MAX_BAD:
                    prefetcher.close()
                    self.roll_back()
                    prefetcher, waited = self._prefetcher(), 0.0
                    base, begin, first_step = self.at.seconds, time.monotonic(), self.at.step
                    logged = saved = begin
                    operations = 0.0
            now = time.monotonic()
            if self.at.step > first_step:
                share = (prefetcher.wait_seconds - waited) / max(now - logged, 1e-9)
                self.log(now - logged, share, operations, peak, first_step, now - begin)
        finally:
            prefetcher.close()

    def _prefetcher(self) -> Prefetcher[Batch | None]:
        """Batches made on the host, or None in each step where they are made on the device."""
        salt = self.at.salt

        def make(step: int) -> Batch | None:
            if self.bank is not None:
                return None
            return make_batch(
                step, recipe=self.recipe, stage=self.stage, model=self.model, sampler=self.sampler, salt=salt,
                parallel=self.parallel,
            )  # fmt: skip

        workers = 0 if self.bank is not None else self.recipe.data.workers
        return Prefetcher(make, self.at.step, workers)

    def _counted_step(self, batch: Batch | None) -> tuple[float, float]:
        """The first step, its floating-point operations counted on the way, and the convolution peak.

        -1 operations where they are not counted: not wanted, or hidden from the counter by the compiler.
        """
        if self.recipe.compile or self.recipe.peak_seconds == 0.0:
            self.train_step(batch)
            return -1.0, 1.0
        operations = self.engine.operations(lambda: self.train_step(batch))
        dtype = torch.bfloat16 if self.autocast else torch.float32
        return operations, convolution_peak(self.parallel.device, dtype, self.recipe.peak_seconds)

    def log(
        self, seconds: float, waiting: float, operations: float, peak: float, first_step: int, elapsed: float
    ) -> None:
        """A row of the steps since the last one, and a line for people.

        Args:
            seconds: since then. waiting: share of them that was spent on waiting for pictures.
            operations: of a step; <= 0: not counted. peak: operations per second of the machine's convolutions.
            first_step, elapsed: of this run, and its seconds so far.
        """
        figures = Figures.of(self.parallel.total(self.engine.take_sums()), self.parallel.world)
        if figures is None:
            return
        rate = figures.steps / seconds
        row: dict[str, float | int] = {
            "step": self.at.step, "seconds": round(self.at.seconds, 1), "lr": self.schedule.learning_rate(self.at),
            **{key: round(value, 5) for key, value in figures.means.items()},
            "grad": round(figures.gradient, 4), "skipped": round(figures.skipped, 4),
            "gpixel": round(self.at.pixels / 1e9, 4),
            "mpixels_per_second": round(rate * self.schedule.pixels / 1e6, 3),
            "pictures_per_second": round(rate * self.stage.batch, 2),
            "waiting": round(waiting, 4),
            "peak_share": round(operations * rate / peak, 3) if operations > 0 else 0.0,
        }  # fmt: skip
        self.records.log(row)
        left = self.schedule.seconds_left(self.at, self.at.step - first_step, elapsed)
        self.say(log_line(row, 1.0 / rate, operations * rate, left))

    def save(self, last: bool = False) -> None:
        if not self.engine.finite():
            raise TrainingError("a parameter is not finite: not saved")  # cannot happen while bad steps are skipped
        written = False
        if self.parallel.rank == 0:
            try:
                self.checkpoint().save(self.path)
                written = True
            except TrainingError as error:
                if last:
                    raise
                warnings.warn(f"{error}; training goes on and tries again", L2CWarning, stacklevel=2)
        if last:
            return
        # A checkpoint counts as good if steps since the last one lead to it, the latest of them finite.
        if self.parallel.agree([written])[0] and self.at.step > self._restored and float(self.engine.bad) == 0.0:
            self._rollbacks = 0

    def _keep(self) -> None:
        """A copy of the average beside the checkpoint, where one is due."""
        every = self.recipe.keep_gpixel
        if self.parallel.rank or every is None or not passed(every, self._kept_pixels, self.at.pixels):
            return
        now = self.checkpoint()
        copied = dataclasses.replace(now, nets=now.average, optimizer={}, objective={})
        try:
            copied.save(self.folder / f"average-{self.at.step:06d}.pt")
        except TrainingError as error:
            warnings.warn(f"{error}; training goes on and tries again", L2CWarning, stacklevel=2)
            return
        self._kept_pixels = self.at.pixels

    def _validate(self) -> None:
        """Figures of every kind of validation picture into the journal, those of the first kind into the curves."""
        if self.parallel.rank:
            return
        self._validated_pixels = self.at.pixels
        device = self.parallel.device
        kinds = {
            kind: validate(self.engine.average, part, device, self.recipe.val_lmbdas)
            for kind, part in self.val_pictures.items()
        }
        stamp = {"step": self.at.step, "seconds": round(self.at.seconds, 1), "gpixel": round(self.at.pixels / 1e9, 4)}
        figures = {
            kind: [{key: round(value, 6) for key, value in row.items()} for row in rows] for kind, rows in kinds.items()
        }
        facts = {"device": machine()["device"], "lr": self.schedule.learning_rate(self.at), "batch": self.stage.batch}
        self.records.journal({**stamp, **facts, "crop": self.recipe.data.crop, "kinds": figures})
        shown, rows = next(iter(kinds.items()))
        self.records.validation([{**stamp, **row} for row in rows])
        self.records.plot()
        for mu in METRICS.values():
            part = [r for r in rows if r["mu"] == mu]
            curve = "  ".join(f"{r['bpp']:.3f}/{r['psnr']:.2f}/{r['msssim']:.4f}" for r in part)
            self.say(f"{shown} mu={mu}  {curve}  loss {' '.join(format(r['loss'], '.4f') for r in part)}")
        means = (f"{kind} {mean_log_loss(rows):+.4f}" for kind, rows in kinds.items())
        self.say(f"mean ln loss: {', '.join(means)}")

    def roll_back(self) -> None:
        self._rollbacks += 1
        if self._rollbacks > _MAX_ROLLBACKS:
            raise TrainingError(
                f"the gradient was not finite at step {self.at.step} after {_MAX_ROLLBACKS} roll-backs; "
                f"the last good checkpoint is {self.path}"
            )
        failed, scale, salt = self.at.step, self.at.lr_scale, self.at.salt
        good = self.parallel.from_first(lambda: Checkpoint.load(self.path))
        self._restore(dataclasses.replace(good, salt=salt + 1, lr_scale=scale / 2))
        self.records = self._open_records()
        self.say(
            f"{_MAX_BAD} steps up to {failed} were not finite: back to step {self.at.step}, other pictures, "
            f"learning rate times {self.at.lr_scale:g}"
        )

    def _ask_to_stop(self) -> None:
        """SIGINT and SIGTERM end the run after the step at hand, with a checkpoint."""
        self._stop = True

    def _say_ended(self) -> None:
        """A second signal ends it at once: the step at hand may wait for pictures that never come."""
        self.say(f"ended by a second signal; the last checkpoint is {self.path}")

    def _facts(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "command": shlex.join(sys.argv),
            "recipe": recipe_json(self.recipe),
            "model": self.model.to_json(),
            "data": self._data,
            "processes": self.parallel.world,
            "machine": machine(),
        }

    def _entry(self) -> dict[str, str]:
        facts = machine()
        quantised = ", quantisation-aware P" if self.stage.quantise else ""
        return {
            "stage": self.name,
            "steps": str(self.at.step),
            "seconds": f"{self.at.seconds:.0f}",
            "data": ", ".join(f"{key} {value}" for key, value in self._data.items()),
            "batch": str(self.stage.batch),
            "crop": str(self.recipe.data.crop),
            "lr": f"{self.stage.lr:g}, decay {self.stage.decay:g}{quantised}",
            "processes": str(self.parallel.world),
            "device": facts.get("device", ""),
            "torch": str(facts.get("torch", "")),
            "command": _COMMANDS.join(self._commands),
            **self.engine.objective.facts(),
        }

    def say(self, text: str) -> None:
        """One line of progress, from rank 0 only."""
        if self.parallel.rank == 0:
            print(text, file=sys.stderr, flush=True)
