"""Training recipes: one JSON file says what is trained on what, for how long, in every stage.

Unknown and missing keys are refused, as in `l2c.config`. Any entry can be overridden on the command line:
`--set pretrain.lr=3e-4 --set data.crop=256`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2c.config import ModelConfig
from l2c.errors import ConfigError
from l2c.format.levels import MAX_MU, MAX_QUALITY
from l2c.objective import MSSSIM_LMBDA_RATIO
from l2c.settings import from_mapping

VAL_LMBDAS = (7.72e-5, 4.40e-4, 2.51e-3, 1.43e-2, 8.13e-2, 4.63e-1)  # quality 5, 25 ... of model 1, and one beyond


@dataclass(frozen=True)
class DataConfig:
    """Where pictures come from and how crops are cut.

    Attributes:
        train, val: folders, single pictures, list files (.txt, .lst), or WebDataset tar shards (`{000..099}.tar`).
        crop: side of training crops in pixels.
        scale_min, scale_max: range of the factor by which some crops are scaled down.
        scaled_share: share of crops that are scaled down at any quality (scale jitter).
        clean_above: above this quality (0..1000) every crop is scaled down, which takes the traces of the training
            pictures' own compression away.
        memory_gb: decoded pictures kept in memory, at most; the others are decoded again on each use.
        pool_shards, pool_steps: tar shards read at a time by each process, and the steps they serve for.
        workers: threads that cut crops ahead of time; 0 cuts them in the training loop.
        limit: use only the first so many pictures.
        on_device: keep all pictures on the training device and make batches there, see `train.device_data`; not for
            tar shards.
        drawn_share: share of crops that are drawn by code instead (`l2c.train.drawn`).
        drawn_bank: drawn pictures kept on the device, where batches are made there. drawn_side: their side, at least.
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    crop: int = 192
    scale_min: float = 0.5
    scale_max: float = 0.8
    scaled_share: float = 0.3
    clean_above: int = 650
    memory_gb: float = 4.0
    pool_shards: int = 2
    pool_steps: int = 500
    workers: int = 2
    limit: int | None = None
    on_device: bool = False
    drawn_share: float = 0.1
    drawn_bank: int = 1024
    drawn_side: int = 512

    def __post_init__(self) -> None:
        _check(16 <= self.crop <= 4096 and self.crop % 16 == 0, "data.crop must be a multiple of 16 in 16..4096")
        _check(0.05 <= self.scale_min <= self.scale_max <= 1.0, "data.scale_min..scale_max must lie in 0.05..1")
        _check(0.0 <= self.scaled_share <= 1.0, "data.scaled_share must be 0..1")
        _check(self.memory_gb >= 0.0, "data.memory_gb must not be negative")
        _check(self.pool_shards >= 1 and self.pool_steps >= 1, "data.pool_shards and pool_steps must be positive")
        _check(0 <= self.workers <= 256, "data.workers must be 0..256")
        _check(self.drawn_bank >= 1, "data.drawn_bank must be positive")
        _check(self.drawn_side >= 16, "data.drawn_side must be 16 or more")
        _check(self.limit is None or self.limit >= 1, "data.limit must be positive")
        _check(0.0 <= self.drawn_share <= 1.0, "data.drawn_share must be 0..1")


@dataclass(frozen=True)
class LossConfig:
    """Weights of L2C Eq. 7. The distortion is that of mu (`l2c.objective`), multiplied by the picture's lambda; search
    and reports have it with the default weights.

    Attributes:
        msssim: lambda_d1, for all of 1 - MS-SSIM, of luma or RGB (see `objective.MSSSIM_LMBDA_RATIO`).
        mse: lambda_d2, for all squared errors of pictures in 0..255.
        perceptual: lambda_d3, for the VGG16 term; needs `vgg16`. 0 turns it off.
        rate: lambda_r, for bits per pixel.
        mask: lambda_m, for |mean tau - zeta| of Eq. 3.
        zeta_min, zeta_max: zeta, the share of channels to keep, at quality 0 and at quality 100.
        vgg16: file with VGG16 weights in torchvision's layout; none ship with L2C.
        rounded: D and P's context see rounded latents, straight through; False: latents with the noise that the rate
            is taken at, as CompressAI trains (Balle et al. 2018).
    """

    msssim: float = MSSSIM_LMBDA_RATIO
    mse: float = 1.0
    perceptual: float = 0.0
    rate: float = 1.0
    mask: float = 1.0
    zeta_min: float = 0.25
    zeta_max: float = 1.0
    vgg16: str | None = None
    rounded: bool = True

    def __post_init__(self) -> None:
        weights = (self.msssim, self.mse, self.perceptual, self.rate, self.mask)
        _check(all(0.0 <= w < math.inf for w in weights), "loss: weights must be finite and not negative")
        _check(self.rate > 0.0, "loss.rate must be positive")
        _check(0.0 <= self.zeta_min <= self.zeta_max <= 1.0, "loss.zeta_min..zeta_max must lie in 0..1")
        _check(self.perceptual == 0.0 or self.vgg16 is not None, "loss.perceptual needs loss.vgg16, a weights file")


@dataclass(frozen=True)
class StageConfig:
    """What every stage has.

    Attributes:
        optimizer: "adam" or "soap", see `train.optimizers`.
        lr: its learning rate (beta of L2C Eq. 9 in meta-training).
        hold: Gpixel after which the learning rate falls as 1 / sqrt(pixels seen); none: never. It makes a run without
            an end: a run that ends takes `decay`.
        batch: pictures per step over all processes.
        minutes, steps, gpixel: length; the first that is reached ends the stage. Minutes add up over all resumes, count
            validation and saving; a learning rate that falls by minutes depends on the machine's speed, one that falls
            by steps is the same after any kill.
        decay: last share of the length over which the learning rate falls linearly to zero.
        warmup: steps over which it rises.
        beta1, beta2: the optimiser's; SOAP wants 0.95 and 0.95.
        refresh_every: steps between two refreshes of SOAP's bases.
        clip: largest norm of the gradient.
        ema: decay of the running average of the weights, which is what validation and export see.
        quality_min, quality_max: range that quality is drawn from, uniformly (so lambda is log-uniform); of a model
            that has networks at some qualities alone, those of them within it.
        mu: the metric mix in eighths; none: `device_data.MU_SHARES`.
        random_bits: share of pictures that are quantised with a b drawn from bits_min..bits instead of all bits.
        bits_min: see random_bits.
        quantise: quantisation-aware steps for P.
    """

    optimizer: str = "adam"
    lr: float = 1e-4
    hold: float | None = None
    batch: int = 6
    minutes: float | None = None
    steps: int | None = None
    gpixel: float | None = None
    decay: float = 0.0
    warmup: int = 200
    beta1: float = 0.9
    beta2: float = 0.98
    refresh_every: int = 10
    clip: float = 1.0
    ema: float = 0.9995
    quality_min: int = 0
    quality_max: int = MAX_QUALITY
    mu: int | None = None
    random_bits: float = 0.05
    bits_min: int = 4
    quantise: bool = False

    def __post_init__(self) -> None:
        _check(self.optimizer in ("adam", "soap"), "optimizer must be adam or soap")
        _check(0.0 < self.lr <= 1.0, "lr must lie in 0..1")
        _check(self.hold is None or self.hold > 0.0, "hold must be positive")
        _check(self.refresh_every >= 1, "refresh_every must be positive")
        _check(1 <= self.batch <= 65536, "batch must be 1..65536")
        _check(self.minutes is None or self.minutes > 0, "minutes must be positive")
        _check(self.steps is None or self.steps > 0, "steps must be positive")
        _check(0.0 <= self.decay <= 1.0, "decay must be 0..1")
        _check(self.gpixel is None or self.gpixel > 0, "gpixel must be positive")
        ends = (self.minutes, self.steps, self.gpixel) != (None, None, None)
        _check(self.decay == 0.0 or ends, "decay needs minutes, steps or gpixel")
        _check(self.warmup >= 0 and self.clip > 0 and 0.0 <= self.ema < 1.0, "warmup, clip or ema is out of range")
        _check(0.0 <= self.beta1 < 1.0 and 0.0 <= self.beta2 < 1.0, "beta1 and beta2 must lie in 0..1")
        _check(0 <= self.quality_min <= self.quality_max <= MAX_QUALITY, "quality_min..max must lie in 0..1000")
        _check(self.mu is None or 0 <= self.mu <= MAX_MU, "mu must be 0..8")
        _check(0.0 <= self.random_bits <= 1.0 and 1 <= self.bits_min <= 8, "random_bits or bits_min is out of range")

    def steps_of(self, model: ModelConfig) -> tuple[int, ...]:
        """Qualities that are drawn of a model that has networks at some alone; () for all between the two ends.

        Raises:
            ConfigError: it has none between them.
        """
        steps = tuple(model.transform.quality_steps.values())
        drawn = tuple(step for step in steps if self.quality_min <= step <= self.quality_max)
        _check(bool(drawn) or not steps, "the model has no networks for quality_min..max")
        return drawn


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """First stage (L2C III-C, Eq. 7): E, I, D and P together.

    Attributes:
        fixed_gains: the gains stay as they are, say after the stage `gains`, which noise would make too large again.
    """

    lr: float = 5e-4
    fixed_gains: bool = False


# What a learning rate of the paper's (for a loss whose unit it does not state) is multiplied by to become ours, in
# latents per bit. In the trained default model the gradient of a latent is 2.5-5 bits (root mean square) and up to 120,
# most of it from rounding: at 0.1 it carries latents back and forth over the next threshold and the loss grows tenfold,
# at 0.005 the loss falls for one step and grows after that, at 0.001 it falls by 1-2 % in four steps.
PAPER_ALPHA = 0.01


@dataclass(frozen=True)
class MetaConfig(StageConfig):
    """Second stage (L2C Eq. 8-10): MAML over latent overfitting.

    Attributes:
        inner_steps: n, overfitting iterations in the inner loop.
        alpha: their learning rate, in latents per bit of gradient (the inner loss is in bits per picture). It stands
            for the paper's 0.1, see `PAPER_ALPHA`.
        learn_alpha: "no", "step" (one per iteration) or "channel" (one per iteration and latent channel).
        order: 2 differentiates through the inner loop (Eq. 10), 1 does not, 0 has no inner loop: plain fine-tuning,
            the control.
    """

    inner_steps: int = 4
    alpha: float = 0.1 * PAPER_ALPHA
    learn_alpha: str = "no"
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(1 <= self.inner_steps <= 100 and self.alpha > 0, "meta.inner_steps must be 1..100, alpha positive")
        _check(self.learn_alpha in ("no", "step", "channel"), "meta.learn_alpha must be no, step or channel")
        _check(self.order in (0, 1, 2), "meta.order must be 0, 1 or 2")


@dataclass(frozen=True)
class ModulatorsConfig(StageConfig):
    """Meta-training of D's conditional modulators over lambda tasks (OML Eq. 4).

    Attributes:
        scope: "modulators" trains them alone; "decoder" the rest of D as well, as OML retrains one decoder for several
            frozen encoders (OML 5.1).
        inner: what the inner loop adapts for each picture: "lambdas", its K conditions as the encoder will (OML
            Eq. 5), or "parameters", the modulators' weights as Eq. 4 is printed.
        inner_steps: SGD steps in the inner loop.
        alpha: their step size.
        order: 2 differentiates through the inner loop, 1 does not.
        plain: weight of the loss without adaptation beside the loss after it, so that effort 0 keeps its quality.
    """

    scope: str = "modulators"
    inner: str = "lambdas"
    inner_steps: int = 2
    alpha: float = 0.1
    order: int = 2
    plain: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.scope in ("modulators", "decoder"), "modulators.scope must be modulators or decoder")
        _check(self.inner in ("lambdas", "parameters"), "modulators.inner must be lambdas or parameters")
        _check(1 <= self.inner_steps <= 100, "modulators.inner_steps must be 1..100")
        _check(self.alpha > 0, "modulators.alpha must be positive")
        _check(self.order in (1, 2), "modulators.order must be 1 or 2")
        _check(self.plain >= 0.0, "modulators.plain must not be negative")


@dataclass(frozen=True)
class BiasSetsConfig:
    """Content-specific biases of D (L2C III-D).

    Attributes:
        patch: side of the patches in pixels.
        patches: how many training patches are overfitted.
        iterations, lr: Adam steps on each patch's biases, and their learning rate.
        batch: patches overfitted at once.
        sets: k of k-means, at most 255; index 255 stands for the default biases.
        bands: tables, one for each equal range of quality.
        mu: the metric mix in eighths; none draws one of the three metrics for each patch.
        quality_min, quality_max: range that quality is drawn from, uniformly within each patch's band; of a model of
            one rate, where that was trained.
        last_layer: whether the last layer's biases are part of a set.
        curvature_patches: patches on which each set's second-order term is measured.
    """

    patch: int = 256
    patches: int = 2000
    iterations: int = 6
    lr: float = 0.005
    batch: int = 8
    sets: int = 255
    bands: int = 1
    mu: int | None = 8
    quality_min: int = 0
    quality_max: int = MAX_QUALITY
    last_layer: bool = True
    curvature_patches: int = 16

    def __post_init__(self) -> None:
        _check(
            64 <= self.patch <= 4096 and self.patch % 64 == 0, "bias_sets.patch must be a multiple of 64 in 64..4096"
        )
        _check(self.patches >= 1 and self.batch >= 1, "bias_sets.patches and batch must be positive")
        _check(self.iterations >= 1 and self.lr > 0, "bias_sets.iterations and lr must be positive")
        _check(1 <= self.sets <= 255, "bias_sets.sets must be 1..255")
        _check(1 <= self.bands <= 16, "bias_sets.bands must be 1..16")
        _check(self.patches >= self.sets * self.bands, "bias_sets.patches must be at least sets * bands")
        _check(self.mu is None or 0 <= self.mu <= MAX_MU, "bias_sets.mu must be 0..8")
        low, high = self.quality_min, self.quality_max
        _check(0 <= low <= high <= MAX_QUALITY, "bias_sets.quality_min..max must lie in 0..1000")
        whole = (low, high) == (0, MAX_QUALITY)
        _check(whole or self.bands == 1, "bias_sets.bands share all qualities: with quality_min..max there is one")
        _check(self.curvature_patches >= 1, "bias_sets.curvature_patches must be positive")


@dataclass(frozen=True)
class GainsConfig:
    """Calibration of the gain that E and D share, by the loss of rounded latents (`l2c.train.gains`).

    Attributes:
        pictures: crops of training pictures that it is measured on, and half as many that are drawn.
        side: of the crops in pixels.
        step: first change tried, in the logarithm of a gain; every sweep halves it.
        sweeps: how often each group of channels is tried at each condition.
        lmbdas: raw, rising: where it is measured, for each of the three metrics; the ends hold beyond them.
    """

    pictures: int = 16
    side: int = 192
    step: float = 0.16
    sweeps: int = 2
    lmbdas: tuple[float, ...] = (0.00005, 0.0003, 0.002, 0.012, 0.07, 0.4)

    def __post_init__(self) -> None:
        _check(1 <= self.pictures <= 4096 and 1 <= self.side <= 4096, "gains.pictures and side must lie in 1..4096")
        _check(0.0 < self.step <= 1.0 and 1 <= self.sweeps <= 16, "gains.step must lie in 0..1, sweeps in 1..16")
        rising = all(a < b for a, b in zip(self.lmbdas, self.lmbdas[1:]))
        _check(len(self.lmbdas) >= 2 and self.lmbdas[0] > 0.0 and rising, "gains.lmbdas must be two or more, rising")


@dataclass(frozen=True)
class QuantizeConfig(StageConfig):
    """Quantisation-aware finishing of P, and of D.

    Attributes:
        scope: "probability" trains P alone (E and D stay as they are, bit for bit), "both" P and D, each as its integer
            form rounds it (E stays; of the block family), "all" everything, with D in floats.
        search: iterations of the encoder's latent search before each step of the scopes "probability" and "both", so
            that P and D learn from the latents of adapted files (arXiv:2506.08662); 0: E's own.
        max_loss: largest relative growth of the rate against the float model that is accepted (0.003: 0.3 %).
    """

    scope: str = "probability"
    search: int = 0
    max_loss: float = 0.003
    quantise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.scope in ("probability", "both", "all"), "quantize.scope must be probability, both or all")
        _check(0 <= self.search <= 100, "quantize.search must be 0..100")
        _check(self.max_loss > 0, "quantize.max_loss must be positive")


@dataclass(frozen=True)
class TrainConfig:
    """A whole recipe.

    Attributes:
        model: path of the model configuration, relative to the recipe.
        seed: of everything random; batch and noise of a step depend on it and on the step alone.
        val_pictures: validation crops of 256x256 pixels from each source, at most.
        val_gpixel: validate at the first checkpoint after every so many Gpixel, and at the end; none: with every one.
        keep_gpixel: a copy of the average networks stays at the first checkpoint after every so many Gpixel, as
            average-STEP.pt, for `l2c train average`; none: no copies.
        val_drawn: how many validation pictures are drawn by code.
        val_size: side of the validation crops. val_lmbdas: the trade-offs at which they are looked at, raw.
        plots: curves.png and TensorBoard beside the tables of figures.
        peak_seconds: how long the device's speed at a convolution is measured when a run starts; 0: neither that nor
            the operations of a step are, and the log tells no share of it.
        agree_steps: several processes compare clocks and signals this often.
        log_seconds, save_minutes: how often figures are logged, and a checkpoint written and validated.
        autocast: "auto" (bfloat16 where the device is fast at it), "on" or "off".
        compile: run the objective through `torch.compile`.
        graph: capture steps in a CUDA graph, where batches are made on the device.
    """

    model: str
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    modulators: ModulatorsConfig = field(default_factory=ModulatorsConfig)
    gains: GainsConfig = field(default_factory=GainsConfig)
    bias_sets: BiasSetsConfig = field(default_factory=BiasSetsConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    val_pictures: int = 12
    val_gpixel: float | None = None
    keep_gpixel: float | None = None
    val_drawn: int = 12
    val_size: int = 256
    val_lmbdas: tuple[float, ...] = VAL_LMBDAS
    plots: bool = True
    peak_seconds: float = 0.4
    agree_steps: int = 10
    log_seconds: float = 30.0
    save_minutes: float = 10.0
    autocast: str = "auto"
    compile: bool = False
    graph: bool = True

    def __post_init__(self) -> None:
        _check(self.autocast in ("auto", "on", "off"), "autocast must be auto, on or off")
        _check(self.val_pictures >= 1, "val_pictures must be positive")
        _check(self.val_gpixel is None or self.val_gpixel > 0, "val_gpixel must be positive")
        _check(self.keep_gpixel is None or self.keep_gpixel > 0, "keep_gpixel must be positive")
        _check(self.val_drawn >= 0, "val_drawn must not be negative")
        _check(self.val_size >= 16, "val_size must be 16 or more")
        _check(bool(self.val_lmbdas) and min(self.val_lmbdas) > 0, "val_lmbdas must be positive")
        _check(self.peak_seconds >= 0, "peak_seconds must not be negative")
        _check(self.agree_steps >= 1, "agree_steps must be positive")
        _check(self.seed >= 0, "seed must not be negative")
        _check(self.log_seconds >= 0 and self.save_minutes >= 0, "log_seconds and save_minutes must not be negative")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[TrainConfig, ModelConfig]:
    """Read a recipe and the model configuration that it names.

    Args:
        path: the recipe, JSON.
        overrides: entries `key.key=value`; the value is JSON, or a plain string where it is not.
    Raises:
        ConfigError: a file that cannot be read, not JSON, an unknown or missing key, a wrong type, an impossible value.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from None
    for entry in overrides:
        _override(data, entry)
    recipe: TrainConfig = from_mapping(TrainConfig, data, "recipe")
    return recipe, ModelConfig.from_file(path.parent / recipe.model)


def recipe_json(recipe: TrainConfig) -> str:
    """The recipe with all its defaults, as JSON: what a checkpoint keeps."""
    return json.dumps(dataclasses.asdict(recipe))


def _override(data: Any, entry: str) -> None:
    key, equals, text = entry.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {entry!r}: expected key=value")
    *parents, last = key.split(".")
    for name in parents:
        data = data.setdefault(name, {}) if isinstance(data, dict) else None
    if not isinstance(data, dict):
        raise ConfigError(f"--set {entry!r}: {key} is no entry of a recipe")
    try:
        data[last] = json.loads(text)
    except ValueError:
        data[last] = text


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
