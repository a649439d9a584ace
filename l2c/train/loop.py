"""The loop that every stage with networks runs in: steps, running average, records, checkpoints, roll-back.

Read me first
- Pictures, conditions and noise of a step are pure functions of (seed, salt, step, position in the global batch). So a
  run that is killed resumes on the same curve from its last checkpoint, and several processes see the batch that one
  process would see.
- A step whose gradient is not finite changes nothing (the optimiser's `found_inf`, so no device is waited for). After
  _MAX_BAD such steps in a row the networks go back to the last good checkpoint, with other pictures (`salt`) and half
  the learning rate; after _MAX_ROLLBACKS roll-backs without a good checkpoint in between the run stops.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import math
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from l2c import transforms
from l2c.config import ModelConfig
from l2c.errors import ConfigError, ImageError, L2CWarning, TrainingError
from l2c.format.levels import MAX_MU, METRICS
from l2c.metrics import msssim, psnr
from l2c.objective import Needs
from l2c.objective import distortion as distortion_of
from l2c.ops import bf16_pays
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import LossConfig, StageConfig, TrainConfig, recipe_json
from l2c.train.data import Prefetcher, Sampler, centre_crops, describe, shared_pictures
from l2c.train.device_data import MU_SHARES, Bank, DeviceBatches
from l2c.train.drawn import draw_batch
from l2c.train.graph import Step, captured, cuda_capture
from l2c.train.losses import Conditions, LossParts, Networks, quality_of_lmbda, quantised_latents
from l2c.train.optimizers import make_optimizer
from l2c.train.parallel import Parallel
from l2c.train.perceptual import VGG16Features, load_vgg16
from l2c.train.records import Records, machine, write_json
from l2c.train.speed import convolution_peak
from l2c.train.validation import validation_set

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

_MAX_BAD = 3
AGREE_STEPS = 10  # several processes compare clocks and signals this often
_MAX_ROLLBACKS = 3
VAL_SIZE = 256
_SEEN = "seen"  # kind of the validation pictures that are trained on: the gap to the others shows overfitting
DRAWN_SIDE = 512  # of the pictures in a bank of drawn ones
VAL_LMBDAS = (7.72e-5, 4.40e-4, 2.51e-3, 1.43e-2, 8.13e-2, 4.63e-1)  # quality 5, 25 ... of model 1, and one beyond
_COMMANDS = "; "  # between the commands of one stage in its entry
FIGURES = ("loss", "bpp", "psnr", "mse", "dissimilarity", "mask", "perceptual")


@dataclass
class Batch:
    """One process's share of a global batch.

    Attributes:
        x: uint8 [N, 3, crop, crop]. cond: what each picture is coded for. noise: float32 [N, c, h, w] in [-1/2, 1/2).
    """

    x: Tensor
    cond: Conditions
    noise: Tensor


class Objective(nn.Module, abc.ABC):
    """What a stage minimises, and which parameters it trains. Subclasses implement `loss`.

    Attributes:
        compiles: False where the loss differentiates inside itself, which `torch.compile` cannot.
    """

    compiles = True

    def __init__(self, nets: Networks, weights: LossConfig, features: VGG16Features | None) -> None:
        super().__init__()
        self.nets = nets
        self.weights = weights
        self.features = features

    @abc.abstractmethod
    def loss(self, x: Tensor, cond: Conditions, noise: Tensor) -> LossParts:
        """Figures of pictures float32 [N, 3, H, W] in [0, 1]; the mean of `total` is minimised."""

    def own_parameters(self) -> list[nn.Parameter]:
        """What the stage learns beside the networks (saved with its checkpoints)."""
        return []

    def facts(self) -> dict[str, str]:
        """For the model card, beside what every stage has."""
        return {}

    def forward(
        self,
        x: Tensor,
        quality: Tensor,
        mu: Tensor,
        b: Tensor,
        noise: Tensor,
        autocast: bool,
        needs: Needs | None = None,
    ) -> LossParts:
        """`loss` under bfloat16 autocast where asked for; plain tensors, so that DDP and the compiler see them."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=autocast):
            return self.loss(x, Conditions(quality, mu, b, needs=needs), noise)


def sample_conditions(config: StageConfig, bits: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """(quality, mu, b) of one picture; see `StageConfig`."""
    quality = int(rng.integers(config.quality_min, config.quality_max + 1))
    draw, other = rng.random(), int(rng.integers(0, MAX_MU + 1))
    edges = np.cumsum([share for _, share in MU_SHARES])
    mu = next((mu for (mu, _), edge in zip(MU_SHARES, edges) if draw < edge), other)
    b = int(rng.integers(min(config.bits_min, bits), bits + 1)) if rng.random() < config.random_bits else bits
    return quality, config.mu if config.mu is not None else mu, b


def make_batch(
    step: int,
    *,
    recipe: TrainConfig,
    stage: StageConfig,
    model: ModelConfig,
    sampler: Sampler,
    salt: int,
    parallel: Parallel,
) -> Batch:
    """This process's share of step `step`: positions rank, rank + world, ... of the global batch."""
    crops, conditions, noises = [], [], []
    side = recipe.data.crop // model.transform.s
    for j in range(parallel.rank, stage.batch, parallel.world):
        rng = np.random.default_rng([recipe.seed, salt, step, j])
        quality, mu, b = sample_conditions(stage, model.bits, rng)
        clean = quality > recipe.data.clean_above or rng.random() < recipe.data.scaled_share
        crops.append(sampler.crop_for(rng, step, clean))
        conditions.append((quality, mu, b))
        source = torch.Generator(parallel.device).manual_seed(int(rng.integers(2**62)))
        noises.append(torch.rand(model.transform.c, side, side, generator=source, device=parallel.device) - 0.5)
    columns = torch.tensor(conditions).unbind(dim=1)
    return Batch(torch.stack(crops), Conditions(*columns), torch.stack(noises))


@torch.no_grad()
def validate(nets: Networks, pictures: list[Tensor], device: torch.device) -> list[dict[str, float]]:
    """Estimated rate (float P) and quality for each of the three metrics, at the qualities nearest to fixed lambdas.

    Args:
        pictures: uint8 [1, 3, H, W] each, all of one size.
    Returns:
        One row per (mu, quality): bpp, psnr in dB, msssim, and `loss`, the objective in bits per pixel with the
        default weights.
    """
    x = torch.cat(pictures).to(device).float() / 255.0
    rows = []
    for mu in METRICS.values():
        for quality in {quality_of_lmbda(lmbda, nets.config): None for lmbda in VAL_LMBDAS}:
            count = len(x)
            cond = Conditions(*(torch.full((count,), v) for v in (quality, mu, nets.config.bits)))
            z, bits = latents_and_bits(nets, x, cond)
            x_hat = nets.transform.decoder(z, cond.vector(nets.config).to(device)).clamp(0, 1)
            x_hat = (x_hat[:, :, : x.shape[2], : x.shape[3]] * 255).round() / 255
            bpp = float(bits.mean()) / (x.shape[2] * x.shape[3])
            mean_psnr, mean_msssim = float(psnr(x, x_hat).mean()), float(msssim(x, x_hat).mean())
            distortion = float(distortion_of(x, x_hat, cond.blend(nets.config, LossConfig(), device)).mean())
            loss = bpp + float(cond.lmbda(nets.config)[0]) * distortion
            figures = {"bpp": bpp, "psnr": mean_psnr, "msssim": mean_msssim, "loss": loss}
            rows.append({"mu": mu, "quality": quality, **figures})
    return rows


def mean_log_loss(rows: Sequence[Mapping[str, float]]) -> float:
    """Mean of ln(loss) over rows of `validate`: 100 times a difference is about the mean difference in percent."""
    return sum(math.log(row["loss"]) for row in rows) / len(rows)


@torch.no_grad()
def latents_and_bits(nets: Networks, x: Tensor, cond: Conditions) -> tuple[Tensor, Tensor]:
    """Quantised latents float32 [N, c, h, w] of pictures [N, 3, H, W] in [0, 1], and their bits [N] under float P."""
    z = quantised_latents(nets, transforms.pad_to_multiple(x, nets.transform.s), cond)
    return z, nets.probability.num_bits(z, z, cond.header())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a stage's folder (on POSIX), and clear away what a kill during a save left there.

    Raises:
        TrainingError: another process has it.
    """
    with (folder / "lock").open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise TrainingError(f"another process trains in {folder}") from None
        for stale in folder.glob("*.tmp"):
            stale.unlink(missing_ok=True)
        yield


def commands_of(checkpoint: Checkpoint | None) -> list[str]:
    """The commands that a stage was run with so far, from its entry."""
    text = checkpoint.entry.get("command", "") if checkpoint is not None else ""
    return text.split(_COMMANDS) if text else []


def _text(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


class Loop:
    """One stage of a run.

    Attributes:
        device_batches: makes batches on the device; None where they come from the host.
        sums: float64 [2 len(FIGURES) + 3] on the device, since the last `log`: of the figures, of how many pictures had
            each, of the gradient's norm, of bad steps and of steps.
    """

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
            ConfigError: no usable pictures, a batch that the processes cannot share, or a stage that cannot be
                compiled. TrainingError: a checkpoint that does not fit.
        """
        if stage.batch % parallel.world:
            raise ConfigError(f"a batch of {stage.batch} cannot be shared by {parallel.world} processes")
        if recipe.data.crop % model.transform.s:
            raise ConfigError(f"data.crop is {recipe.data.crop}: it must be a multiple of s = {model.transform.s}")
        self.name, self.recipe, self.stage, self.model, self.parallel = name, recipe, stage, model, parallel
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
        self.banks = self._read_banks() if recipe.data.on_device else None
        self.val_pictures = validation_set(recipe.data.val, VAL_SIZE, recipe.val_pictures, recipe.val_drawn)
        if self.sampler.lasting:
            limit = 4 * recipe.val_pictures
            self.val_pictures[_SEEN] = centre_crops(recipe.data.train, VAL_SIZE, recipe.val_pictures, limit)
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
        self.records = Records(folder, self.step, active=parallel.rank == 0)
        self._data = describe(recipe.data.train)
        self._check_steps = 1 if parallel.device.type == "cpu" else 50  # reading the counter waits for a GPU
        self._stop = False
        self._rollbacks = 0

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
        self.nets, self.average = nets, average.requires_grad_(False)
        self.objective = self._objective(self.nets, self.features).to(device)
        trained = [p for p in self.nets.parameters() if p.requires_grad]
        own = self.objective.own_parameters()
        self.parameters = trained + own
        if mine:
            self._check_same_parameters(checkpoint, own)
            with torch.no_grad():
                for k, parameter in enumerate(own):
                    parameter.copy_(checkpoint.objective[str(k)])
        stage = self.stage
        betas = (stage.beta1, stage.beta2)
        self.optimizer = make_optimizer(stage.optimizer, self.parameters, betas, stage.refresh_every)
        if mine and checkpoint.optimizer:
            self.optimizer.load_state_dict(checkpoint.optimizer)
        pairs = zip(self.nets.parameters(), self.average.parameters())
        moving = [(p, a) for p, a in pairs if p.requires_grad]
        self._fresh: list[Tensor] = [p for p, _ in moving]
        self._averaged: list[Tensor] = [a for _, a in moving]
        self.wrapped = self.parallel.wrap(self.objective)
        if self.recipe.compile:
            if not self.objective.compiles:
                raise ConfigError(f"{self.name} differentiates inside a step, which torch.compile cannot do")
            self.wrapped = torch.compile(self.wrapped)  # type: ignore[assignment]
        self.step, self.seconds = (checkpoint.step, checkpoint.seconds) if mine else (0, 0.0)
        self.pixels = checkpoint.pixels if mine else 0
        self._warm_from = checkpoint.warm_from if mine else 0
        if mine and not checkpoint.optimizer:  # a pack has none
            self._warm_from = self.step
        self.salt, self.lr_scale = (checkpoint.salt, checkpoint.lr_scale) if mine else (0, 1.0)
        self._restored = self.step
        self._validated_pixels = self.pixels
        self.history = checkpoint.history if mine else checkpoint.past()
        # Sets belong to the D that they were overfitted to.
        moves_d = any(p.requires_grad for p in self.nets.transform.decoder.parameters())
        self.bias_sets = {} if moves_d else checkpoint.bias_sets
        if moves_d and checkpoint.bias_sets:
            self.say("this stage moves D: the bias sets, which were made for the old one, are dropped")
        self._rate, self._average_weight = torch.zeros((), device=device), torch.zeros((), device=device)
        self._at = torch.tensor(self.step, device=device)  # `step`, where batches are made on the device
        self.device_batches = self._make_device_batches() if self.banks is not None else None
        self._device_step: Step = self._eager_device_step
        self._bad = torch.zeros((), device=device)
        self.sums = torch.zeros(2 * len(FIGURES) + 3, device=device, dtype=torch.float64)

    def _check_same_parameters(self, checkpoint: Checkpoint, own: list[nn.Parameter]) -> None:
        """Raise TrainingError where a resumed checkpoint was made while other parameters were trained."""
        shapes = [checkpoint.objective[str(k)].shape for k in range(len(checkpoint.objective))]
        groups = checkpoint.optimizer.get("param_groups", [])
        count = sum(len(group["params"]) for group in groups)
        if shapes != [p.shape for p in own] or (groups and count != len(self.parameters)):
            raise TrainingError(
                f"{self.path} was made while other parameters were trained than the recipe and the model now ask for: "
                "start a new run from it with --init"
            )

    def checkpoint(self) -> Checkpoint:
        """This moment."""
        own = {str(k): p.detach() for k, p in enumerate(self.objective.own_parameters())}
        return Checkpoint(
            self.model, self.nets.state_dict(), self.average.state_dict(), self.name, self.step, self.seconds,
            self.optimizer.state_dict(), own, self.salt, self.lr_scale, self._entry(), self.history, self.bias_sets,
            self.parent, self.pixels, self._warm_from,
        )  # fmt: skip

    def progress(self) -> float:
        """Share of the stage's length that is behind, 0..1; 0 where it has no end."""
        shares = [0.0]
        if self.stage.steps is not None:
            shares.append(self.step / self.stage.steps)
        if self.stage.minutes is not None:
            shares.append(self.seconds / (60.0 * self.stage.minutes))
        if self.stage.gpixel is not None:
            shares.append(self.pixels / (1e9 * self.stage.gpixel))
        return min(1.0, max(shares))

    def learning_rate(self) -> float:
        """Rises over `warmup` steps, stays (or falls from `hold` on), and falls linearly to zero over the last `decay`
        share of the length."""
        stage = self.stage
        rate = stage.lr * self.lr_scale * min(1.0, (self.step - self._warm_from + 1) / max(1, stage.warmup))
        if stage.hold is not None:
            rate *= min(1.0, math.sqrt(1e9 * stage.hold / max(1, self.pixels)))
        left = 1.0 - self.progress()
        return rate * min(1.0, left / stage.decay) if stage.decay > 0 else rate

    def train_step(self, batch: Batch | None) -> None:
        """One optimiser step, on a batch made on the host or, None, on one made on the device; figures are added up
        there."""
        device = self.parallel.device
        self._begin_step()
        if batch is None:
            self._device_step()
        else:
            self._compute(batch.x.to(device, non_blocking=True), batch.cond, batch.noise.to(device))
        self.step += 1
        self.pixels += self.stage.batch * self.recipe.data.crop**2
        self.optimizer.after_step(self.step)

    def _begin_step(self) -> None:
        self._rate.fill_(self.learning_rate())
        self._average_weight.fill_(1.0 - min(self.stage.ema, (self.step + 1) / (10.0 + self.step)))

    def _eager_device_step(self) -> None:
        """A step that neither reads from the host nor waits for the device: all that it needs are tensors there."""
        assert self.device_batches is not None
        header = self.device_batches.conditions(self._at)
        x = self.device_batches.pictures(self._at, header[:, 0])
        cond = Conditions(*header.unbind(dim=1), needs=self.device_batches.needs)
        self._compute(x, cond, self.device_batches.noise(self._at))
        self._at += 1

    def _compute(self, x: Tensor, cond: Conditions, noise: Tensor) -> None:
        """Loss, gradients, optimiser, average and figures of a batch: x uint8 [N, 3, crop, crop], noise as in `Batch`.

        Everything here happens on the device, in tensors that stay: see `lasting`.
        """
        x = (x.float() / 255.0).contiguous(memory_format=torch.channels_last)
        parts = self.wrapped(x, cond.quality, cond.mu, cond.b, noise, self.autocast, cond.needs)
        for parameter in self.parameters:
            parameter.grad = None
        parts.total.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.stage.clip)
        bad = (~torch.isfinite(norm)).float()
        self.optimizer.step(self._rate, 1.0 - bad)
        with torch.no_grad():
            self._bad.add_(1.0).mul_(bad)
            apart = torch._foreach_sub(self._fresh, self._averaged)
            torch._foreach_mul_(apart, self._average_weight)
            torch._foreach_add_(self._averaged, apart)
            good = 1.0 - bad
            psnr_each = -10.0 * (parts.mse.detach().clamp_min(1e-4) / 255.0**2).log10()
            figures = [parts.total, parts.bpp, psnr_each, parts.mse, parts.dissimilarity, parts.mask, parts.perceptual]
            table = torch.stack([f.detach().float() for f in figures])  # [figures, N]; NaN: not computed
            known = table.isfinite() & (good > 0)
            sums = torch.where(known, table, 0.0).sum(dim=1)
            rest = torch.stack((norm.nan_to_num(0.0, 0.0, 0.0), bad, torch.ones_like(bad)))
            self.sums += torch.cat((sums, known.sum(dim=1), rest)).double()

    def lasting(self) -> list[Tensor]:
        """Every tensor that a step changes and that outlives it."""
        mine = [self._bad, self.sums, self._at]
        return [*self.parameters, *self._averaged, *self.optimizer.tensors(), *mine]

    def capture(self, record: Callable[[Step], Step]) -> str:
        """Take the form that `record` makes of a step on the device, if it does the same; else the reason why not."""
        self._begin_step()
        self._device_step, reason = captured(
            self._eager_device_step, self.lasting(), len(self.parameters), record, self.parallel.device
        )
        return reason

    def _capture_graph(self) -> None:
        """Put the step on the device into a CUDA graph, if that works there."""
        device = self.parallel.device
        if device.type != "cuda" or not self.recipe.graph or self.parallel.world > 1 or not self.objective.compiles:
            return
        began = time.monotonic()
        reason = self.capture(cuda_capture)
        how = f"is not captured: {reason}" if reason else "is one CUDA graph"
        self.say(f"the step {how} ({time.monotonic() - began:.1f} s)")

    def _read_banks(self) -> tuple[Bank, Bank | None]:
        """Photographs and drawn pictures for batches made on the device. Raises ConfigError as `Sampler` does."""
        began = time.monotonic()
        data, device = self.recipe.data, self.parallel.device
        pictures = list(self.sampler.pictures())
        photographs = Bank(pictures, device)
        drawn = None
        if data.drawn_share > 0.0:
            photos = [picture.permute(1, 2, 0).numpy() for picture in pictures[:: max(1, len(pictures) // 64)]]
            side = max(data.crop, DRAWN_SIDE)
            drawn = Bank(list(draw_batch(data.drawn_bank, side, self.recipe.seed, photos)), device)
        total = photographs.pixels.shape[0] + (drawn.pixels.shape[0] if drawn is not None else 0)
        self.say(
            f"{len(photographs)} photographs, {len(drawn) if drawn is not None else 0} drawn pictures, "
            f"{total / 1e6:.0f} Mpixel in memory after {time.monotonic() - began:.1f} s"
        )
        return photographs, drawn

    def _make_device_batches(self) -> DeviceBatches:
        assert self.banks is not None
        side = self.recipe.data.crop // self.model.transform.s
        return DeviceBatches(
            *self.banks, self.recipe.data, self.stage, self.model.bits, (self.model.transform.c, side, side),
            self.recipe.seed, self.salt, self.parallel.rank, self.parallel.world,
        )  # fmt: skip

    def run(self) -> bool:
        """Train to the end of the stage, then write its checkpoint, validate, and plot.

        Returns:
            Whether the stage is complete; False after SIGINT or SIGTERM.
        Raises:
            TrainingError: the loss stays NaN, the last checkpoint cannot be written, or another process trains in this
                folder.
        """
        if self.progress() >= 1.0:
            self.say(f"{self.name} is complete at step {self.step}: raise its minutes or steps to go on")
            return True
        with locked(self.folder) if self.parallel.rank == 0 else contextlib.nullcontext():
            return self._run()

    def _run(self) -> bool:
        if self.parallel.rank == 0:
            write_json(self.folder / "run.json", self._facts())
        command = shlex.join(["l2c", *sys.argv[1:]])
        if not self._commands or not self._commands[-1].endswith(command):
            self._commands.append(f"from step {self.step}: {command}" if self._commands else command)
        if self.is_new:
            self._save(last=True)  # what a roll-back in the first minutes goes back to; a full disk shows at once
            self.is_new = False
        else:
            self.say(f"resumed at step {self.step}, {self.seconds:.0f} s")
        try:
            with self._signals():
                self._train()
        except (ConfigError, ImageError):  # a shard that cannot be read, say: what was learnt so far is kept
            if self.parallel.world == 1:
                self._save(last=True)
            raise
        self._save(last=True)
        self._validate()
        complete = self.progress() >= 1.0
        self.say(f"{self.name} {'is complete' if complete else 'was interrupted'} at step {self.step}: {self.path}")
        return complete

    def _train(self) -> None:
        prefetcher = self._prefetcher()
        begin, base, first_step = time.monotonic(), self.seconds, self.step
        logged, saved, waited = begin, begin, 0.0
        operations = peak = 0.0
        try:
            while True:
                if self.parallel.world == 1 or (self.step - first_step) % AGREE_STEPS == 0:
                    now = time.monotonic()
                    due = (now - logged >= self.recipe.log_seconds, now - saved >= 60.0 * self.recipe.save_minutes)
                    self.seconds, log, save = self.parallel.agree([base + now - begin, *due])
                    stop = self.parallel.any(self._stop)
                    if (log or save) and self.step > first_step:
                        share = (prefetcher.wait_seconds - waited) / max(now - logged, 1e-9)
                        self.log(now - logged, share, operations, peak, first_step, now - begin)
                        logged, waited = now, prefetcher.wait_seconds
                    if save:
                        self._save()
                        if self._validation_is_due():
                            self._validate()
                        saved = logged = time.monotonic()
                        waited = prefetcher.wait_seconds
                    if stop:
                        break
                if self.progress() >= 1.0:
                    break
                batch = prefetcher.get(self.step)
                if operations == 0.0:
                    operations, peak = self._counted_step(batch)
                    self._capture_graph()
                else:
                    self.train_step(batch)
                if self.step % self._check_steps == 0 and float(self._bad) >= _MAX_BAD:
                    prefetcher.close()
                    self.roll_back()
                    prefetcher, waited = self._prefetcher(), 0.0
                    base, begin, first_step = self.seconds, time.monotonic(), self.step
                    logged = saved = begin
                    operations = 0.0
            now = time.monotonic()
            if self.step > first_step:
                share = (prefetcher.wait_seconds - waited) / max(now - logged, 1e-9)
                self.log(now - logged, share, operations, peak, first_step, now - begin)
        finally:
            prefetcher.close()

    def _prefetcher(self) -> Prefetcher[Batch | None]:
        """Batches made on the host, or None in each step where they are made on the device."""
        salt = self.salt

        def make(step: int) -> Batch | None:
            if self.device_batches is not None:
                return None
            return make_batch(
                step, recipe=self.recipe, stage=self.stage, model=self.model, sampler=self.sampler, salt=salt,
                parallel=self.parallel,
            )  # fmt: skip

        workers = 0 if self.device_batches is not None else self.recipe.data.workers
        return Prefetcher(make, self.step, workers)

    def _counted_step(self, batch: Batch | None) -> tuple[float, float]:
        """The first step, its floating-point operations counted on the way, and the convolution peak."""
        if self.recipe.compile:  # the compiler hides the operations from the counter
            self.train_step(batch)
            return -1.0, 1.0
        with FlopCounterMode(display=False) as counter:
            self.train_step(batch)
        peak = convolution_peak(self.parallel.device, torch.bfloat16 if self.autocast else torch.float32)
        return float(counter.get_total_flops()), peak

    def log(
        self, seconds: float, waiting: float, operations: float, peak: float, first_step: int, elapsed: float
    ) -> None:
        """Write, and say, the means of `sums` over the steps since the last time; nothing where there were none.

        Args:
            seconds: that these steps took. waiting: share of them that went by until batches were there.
            operations: floating-point operations of a step, 0 or less where nobody counted. peak: that the machine can
                do in a second.
            first_step, elapsed: where this process began, and the seconds since.
        """
        sums = self.parallel.total(self.sums.clone())
        self.sums.zero_()
        count = float(sums[-1])
        if count == 0:
            return
        skipped = float(sums[-2])
        kinds = len(FIGURES)
        values = (sums[:kinds] / sums[kinds : 2 * kinds]).tolist()  # NaN where no picture had this figure
        norm = float(sums[-3]) / (count - skipped) if count > skipped else math.nan
        steps = round(count / self.parallel.world)
        row: dict[str, float | int] = {"step": self.step, "seconds": round(self.seconds, 1), "lr": self.learning_rate()}
        row |= {key: round(value, 5) for key, value in zip(FIGURES, values)}
        row |= {"grad": round(norm, 4), "skipped": round(skipped / count, 4)}
        pixels = steps * self.stage.batch * self.recipe.data.crop**2
        row |= {
            "gpixel": round(self.pixels / 1e9, 4),
            "mpixels_per_second": round(pixels / seconds / 1e6, 3),
            "pictures_per_second": round(steps * self.stage.batch / seconds, 2),
            "waiting": round(waiting, 4),
            "peak_share": round(operations * steps / seconds / peak, 3) if operations > 0 else 0.0,
        }
        self.records.log(row)
        self.say(
            f"step {self.step}  {self.seconds / 60:.1f} min  loss {row['loss']:.4f}  {_text(row['bpp'], 3)} bpp  "
            f"{_text(row['psnr'], 2)} dB  {seconds / steps:.3f} s/step  {row['pictures_per_second']:.1f} pictures/s  "
            f"{row['mpixels_per_second']:.2f} Mpixel/s  {1e-12 * operations * steps / seconds:.2f} TFLOP/s  "
            f"waiting {100 * waiting:.1f} %  conv peak {100 * float(row['peak_share']):.0f} %  "
            f"left {self._time_left(first_step, elapsed)}"
        )

    def _time_left(self, first_step: int, elapsed: float) -> str:
        times = []
        if self.stage.minutes is not None:
            times.append(60.0 * self.stage.minutes - self.seconds)
        done = self.step - first_step
        if self.stage.steps is not None and done:
            times.append((self.stage.steps - self.step) * elapsed / done)
        if self.stage.gpixel is not None and done:
            each = self.stage.batch * self.recipe.data.crop**2
            times.append((1e9 * self.stage.gpixel - self.pixels) / each * elapsed / done)
        return f"{max(0.0, min(times)) / 60:.1f} min" if times else "no end set"

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    def _save(self, last: bool = False) -> None:
        if not self._finite():
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
        if self.parallel.agree([written])[0] and self.step > self._restored and float(self._bad) == 0.0:
            self._rollbacks = 0

    def _validation_is_due(self) -> bool:
        every = self.recipe.val_gpixel
        return every is None or self.pixels // (1e9 * every) > self._validated_pixels // (1e9 * every)

    def _validate(self) -> None:
        """Figures of every kind of validation picture into the journal, those of the first kind into the curves."""
        if self.parallel.rank:
            return
        self._validated_pixels = self.pixels
        device = self.parallel.device
        kinds = {kind: validate(self.average, part, device) for kind, part in self.val_pictures.items()}
        stamp = {"step": self.step, "seconds": round(self.seconds, 1), "gpixel": round(self.pixels / 1e9, 4)}
        figures = {
            kind: [{key: round(value, 6) for key, value in row.items()} for row in rows] for kind, rows in kinds.items()
        }
        facts = {"device": machine()["device"], "lr": self.learning_rate(), "batch": self.stage.batch}
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
        """Go back to the last good checkpoint, with other pictures and half the rate. Raises TrainingError after too
        many such."""
        self._rollbacks += 1
        if self._rollbacks > _MAX_ROLLBACKS:
            raise TrainingError(
                f"the gradient was not finite at step {self.step} after {_MAX_ROLLBACKS} roll-backs; "
                f"the last good checkpoint is {self.path}"
            )
        failed, scale, salt = self.step, self.lr_scale, self.salt
        self._restore(self.parallel.from_first(lambda: Checkpoint.load(self.path)))
        self.salt, self.lr_scale = salt + 1, scale / 2
        self.records = Records(self.folder, self.step, active=self.parallel.rank == 0)
        self.say(
            f"{_MAX_BAD} steps up to {failed} were not finite: back to step {self.step}, other pictures, "
            f"learning rate times {self.lr_scale:g}"
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the step at hand, with a checkpoint; a second one ends it at once."""

        def stop(number: int, _frame: FrameType | None) -> None:
            if self._stop:  # the step at hand may wait for pictures that never come
                self.say(f"ended by a second signal; the last checkpoint is {self.path}")
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self._stop = True

        try:
            old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: the caller keeps its own handlers
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

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
            "steps": str(self.step),
            "seconds": f"{self.seconds:.0f}",
            "data": ", ".join(f"{key} {value}" for key, value in self._data.items()),
            "batch": str(self.stage.batch),
            "crop": str(self.recipe.data.crop),
            "lr": f"{self.stage.lr:g}, decay {self.stage.decay:g}{quantised}",
            "processes": str(self.parallel.world),
            "device": facts.get("device", ""),
            "torch": str(facts.get("torch", "")),
            "command": _COMMANDS.join(self._commands),
            **self.objective.facts(),
        }

    def say(self, text: str) -> None:
        """One line of progress, from rank 0 only."""
        if self.parallel.rank == 0:
            print(text, file=sys.stderr, flush=True)
