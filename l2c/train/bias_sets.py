"""Content-specific biases of D (L2C III-D): overfit them to training patches, cluster, measure each set's curvature."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2c.adapt.bias_sets import BiasSets, distortion_gradient, predicted_change, try_sets
from l2c.config import ModelConfig
from l2c.errors import ConfigError
from l2c.format.levels import MAX_QUALITY, METRICS
from l2c.objective import TERMS, Blend, Needs, distortion, terms
from l2c.train.checkpoint import Checkpoint
from l2c.train.config import BiasSetsConfig, TrainConfig
from l2c.train.data import Sampler, describe
from l2c.train.losses import Conditions, Networks, quantised_latents
from l2c.train.records import machine, write_json
from l2c.transforms import Adaptation, Transform, num_biases

_SALT = 1_000_003  # patches of this stage are not the crops of the others
SCALES = (0.0625, 0.125, 0.25, 0.5, 1.0)
_PROBE = 0.25  # scale at which curvature is measured: the second order alone, not what lies above it
_SHORT_LIST = 4
_SAVED = ("biases", "quality", "mu", "before", "after")


@dataclass
class Patches:
    """Overfitted patches, `count` of them so far.

    Attributes:
        biases: float32 [patches, B], changes to D's biases. quality, mu: int64 [patches].
        before, after: float32 [patches], distortion with the default biases and with these.
        seconds: spent so far.
    """

    biases: Tensor
    quality: Tensor
    mu: Tensor
    before: Tensor
    after: Tensor
    count: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, patches: int, num_biases: int) -> Patches:
        """Room for so many patches."""
        whole = torch.zeros(patches, dtype=torch.int64)
        return cls(torch.zeros(patches, num_biases), whole, whole.clone(), torch.zeros(patches), torch.zeros(patches))


def band_of(quality: Tensor | int, bands: int) -> Any:
    """Number of the band that a quality 0..MAX_QUALITY belongs to, as `BiasSets.band` has it."""
    return quality * bands // (MAX_QUALITY + 1)


def make_patches(recipe: TrainConfig, bits: int, sampler: Sampler, numbers: Sequence[int]) -> tuple[Tensor, Conditions]:
    """The patches of these numbers: a pure function of the recipe. Number i lies in band i mod bands.

    Args:
        bits: of the model; all of them are used.
    Returns:
        uint8 [len(numbers), 3, patch, patch], conditions.
    """
    config, crops, conditions = recipe.bias_sets, [], []
    for i in numbers:
        rng = np.random.default_rng([recipe.seed, _SALT, i, 0])
        band, bands = i % config.bands, config.bands
        first, end = (-(-(MAX_QUALITY + 1) * edge // bands) for edge in (band, band + 1))  # up, as band_of goes down
        quality = int(rng.integers(max(first, config.quality_min), min(end, config.quality_max + 1)))
        mu = config.mu if config.mu is not None else int(rng.choice(list(METRICS.values())))
        clean = quality > recipe.data.clean_above or rng.random() < recipe.data.scaled_share
        crops.append(sampler.crop_for(rng, i // config.batch, clean))
        conditions.append((quality, mu))
    quality_, mu_ = torch.tensor(conditions).unbind(dim=1)
    return torch.stack(crops), Conditions(quality_, mu_, torch.full_like(mu_, bits))


def overfit_biases(
    transform: Transform, x: Tensor, z: Tensor, cond: Tensor, config: BiasSetsConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam on each patch's bias changes, all patches in one batch; the best iterate of each patch is kept.

    Args:
        x: float32 [N, 3, H, W] in [0, 1]. z: float32 [N, c, h, w], quantised latents. cond: float32 [N, 2].
    Returns:
        biases float32 [N, B]; distortion (`objective.distortion`) before and after, float32 [N].
    """
    leaf = torch.zeros(len(x), num_biases(transform.decoder), device=x.device, requires_grad=True)
    movable = torch.ones_like(leaf[0])
    if not config.last_layer:
        movable[-transform.decoder.biased_layers()[-1].out_channels :] = 0.0
    optimizer = torch.optim.Adam([leaf], lr=config.lr)
    blend = Blend.of_condition(cond)
    best, before, least = leaf.detach().clone(), torch.empty(0), torch.full((len(x),), float("inf"), device=x.device)
    for k in range(config.iterations + 1):
        last = k == config.iterations
        with torch.set_grad_enabled(not last):
            x_hat = transform.decoder(z, cond, Adaptation(biases=leaf * movable))
            value = distortion(x, x_hat[:, :, : x.shape[2], : x.shape[3]].clamp(0.0, 1.0), blend)
        now = value.detach()
        before = now if k == 0 else before
        better = now < least
        best = torch.where(better[:, None], leaf.detach() * movable, best)
        least = torch.where(better, now, least)
        if not last:
            optimizer.zero_grad(set_to_none=True)
            value.log().sum().backward()  # so that patches of every rate pull alike
            optimizer.step()
    return best, before, least


def cluster(patches: Patches, config: BiasSetsConfig, seed: int) -> Tensor:
    """k-means of the biases, one table for each band of quality: float32 [bands, sets, B].

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    kmeans = _kmeans()
    tables = []
    band = band_of(patches.quality, config.bands)
    for number in range(config.bands):
        rows = patches.biases[band == number].numpy()
        tables.append(torch.from_numpy(kmeans(config.sets, n_init=1, random_state=seed).fit(rows).cluster_centers_))
    return torch.stack(tables).float()


def _kmeans() -> Any:
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise ConfigError("bias-sets needs scikit-learn: pip install 'l2c[train]'") from None
    return KMeans


@torch.no_grad()
def measure_curvature(transform: Transform, values: Tensor, batches: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Mean over patches of D(set) - D(default) - gradient . set for each term of the distortion (`objective.TERMS`) as
    D: float32 [sets, len(TERMS)].

    Args:
        values: float32 [sets, B], of one band.
        batches: (x, z, cond) as in `overfit_biases`; cond's metric mix is not used.
    """
    sums, count = torch.zeros(len(values), len(TERMS)), 0
    for x, z, cond in batches:
        leaf = torch.zeros(len(x), values.shape[1], device=x.device, requires_grad=True)
        with torch.enable_grad():
            start = _all_terms(transform, x, z, cond, leaf)
            slopes = [torch.autograd.grad(d.sum(), leaf, retain_graph=True)[0] for d in start]
        count += len(x)
        for number, row in enumerate(values):
            biases = row.to(x.device)
            moved = _all_terms(transform, x, z, cond, biases.expand(len(x), -1))
            for term in range(len(TERMS)):
                change = moved[term] - start[term].detach() - slopes[term] @ biases
                sums[number, term] += float(change.sum())
    return sums / count


def choose_scale(
    transform: Transform, values: Tensor, curvature: Tensor, batches: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> tuple[float, float]:
    """The factor on all sets of a band with which the best set of a new patch gains most.

    Means of biases overfitted to single patches go too far for any other patch: with the full length every one of 255
    sets was seen to raise the distortion by 10-29 %, with a tenth of it many lowered it.

    Args:
        values: float32 [sets, B]. curvature: float32 [sets, len(TERMS)] at scale 1, from `measure_curvature`.
        batches: as there; here the metric mix counts.
    Returns:
        The factor, one of SCALES; mean relative fall of the distortion where each patch takes the best of the
        _SHORT_LIST sets that the quadratic model likes best, or none.
    """
    gains = dict.fromkeys(SCALES, 0.0)
    count = sum(len(x) for x, _, _ in batches)
    for x, z, cond in batches:
        before, gradient = distortion_gradient(transform, x, z, cond)
        for scale in SCALES:
            sets = BiasSets((values * scale)[None], (curvature * scale**2)[None])
            ranked = predicted_change(gradient, sets, 0, Blend.of_condition(cond)).argsort(dim=1)
            _, after = try_sets(transform, x, z, cond, sets, 0, ranked[:, :_SHORT_LIST])
            gains[scale] += float(((before - after) / before.clamp_min(1e-12)).sum()) / count
    best = max(gains, key=lambda scale: gains[scale])
    return best, gains[best]


def _all_terms(transform: Transform, x: Tensor, z: Tensor, cond: Tensor, biases: Tensor) -> tuple[Tensor, ...]:
    """`objective.terms` of the patches: one float32 [N] for each term."""
    x_hat = transform.decoder(z, cond, Adaptation(biases=biases))[:, :, : x.shape[2], : x.shape[3]].clamp(0.0, 1.0)
    return terms(x, x_hat, Needs(range(len(x)), range(len(x)))).unbind(dim=1)


def run(
    recipe: TrainConfig,
    model: ModelConfig,
    folder: Path,
    start: Checkpoint,
    parent: str,
    device: torch.device,
    command: str,
) -> None:
    """The whole stage; goes on after a kill from the patches that were saved last.

    Args:
        folder: of the stage; it exists.
        parent: see `Checkpoint.parent`.
    Raises:
        ConfigError: as `cluster`, or no usable pictures. TrainingError: a checkpoint that does not fit, a file that
            cannot be read or written.
    """
    config = recipe.bias_sets
    _kmeans()  # a missing package shows before the work
    nets = start.networks(model)[1].to(device).requires_grad_(False)
    nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampler = Sampler(recipe.data, recipe.data.train, config.patch, recipe.seed)
    patches, seconds = _all_patches(recipe, model, folder, nets, sampler, device)
    gain = 1.0 - (patches.after / patches.before).log().mean().exp()
    _say(f"distortion of the patches: {100 * gain:.2f} % less on (geometric) average with their own biases")
    values = cluster(patches, config, recipe.seed)

    def held_out(band: int, skipped: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        start = (-(-config.patches // config.bands) + skipped) * config.bands + band
        numbers = [start + k * config.bands for k in range(config.curvature_patches)]
        for first in range(0, len(numbers), config.batch):
            batch = make_patches(recipe, model.bits, sampler, numbers[first : first + config.batch])
            yield _encoded(nets, *batch, device)

    begin = time.monotonic()
    _say(f"measuring the curvature of {values.shape[0]} x {values.shape[1]} sets on {config.curvature_patches} patches")
    tables = []
    for band in range(config.bands):
        curvature = measure_curvature(nets.transform, values[band] * _PROBE, held_out(band))
        fresh = list(held_out(band, config.curvature_patches))
        scale, saved = choose_scale(nets.transform, values[band], curvature / _PROBE**2, fresh)
        _say(f"band {band}: sets scaled by {scale:g}; distortion of new patches {-100 * saved:+.3f} %")
        row = (values[band] * scale).half().float()  # as the model file stores them
        tables.append((row, curvature * (scale / _PROBE) ** 2, scale, saved))
    sets = BiasSets(torch.stack([t[0] for t in tables]), torch.stack([t[1] for t in tables]))
    facts = machine()
    entry = {
        "stage": "bias-sets",
        "patches": str(config.patches),
        "iterations": str(config.iterations),
        "gain on its patches": f"{100 * gain:.2f} %",
        "scale": ", ".join(f"{t[2]:g}" for t in tables),
        "gain on new patches": ", ".join(f"{100 * t[3]:.3f} %" for t in tables),
        "seconds": f"{seconds + time.monotonic() - begin:.0f}",
        "data": ", ".join(f"{key} {value}" for key, value in describe(recipe.data.train).items()),
        "device": facts.get("device", ""),
        "torch": str(facts.get("torch", "")),
        "command": command,
    }
    average = {key: value.cpu() for key, value in nets.state_dict().items()}  # fitted to the recipe's model
    Checkpoint(
        model, average, average, "bias-sets", config.patches, seconds,
        entry=entry, history=start.past(), bias_sets=sets.to_tensors(), parent=parent,
    ).save(folder / "checkpoint.pt")  # fmt: skip
    write_json(folder / "run.json", entry)
    _say(f"bias-sets is complete: {folder / 'checkpoint.pt'}")


def _all_patches(
    recipe: TrainConfig, model: ModelConfig, folder: Path, nets: Networks, sampler: Sampler, device: torch.device
) -> tuple[Patches, float]:
    """Overfit what is not overfitted yet; saved about once a minute. Returns the patches and the seconds spent."""
    config, path = recipe.bias_sets, folder / "patches.pt"
    patches = Patches.empty(config.patches, num_biases(nets.transform.decoder))
    holder = Checkpoint(model, {}, {}, "bias-sets patches", entry={"digest": _digest(nets, recipe, model)})
    if path.exists():
        stored = Checkpoint.load(path)
        if stored.entry == holder.entry:
            patches.count, patches.seconds = min(stored.step, config.patches), stored.seconds
            for name in _SAVED:
                getattr(patches, name)[: patches.count] = stored.objective[name][: patches.count]
            _say(f"resumed at patch {patches.count}")
        else:
            _say(f"{path} was made from other networks or settings: starting again")
    begin, base, saved = time.monotonic(), patches.seconds, time.monotonic()
    first = patches.count
    while patches.count < config.patches:
        here = slice(patches.count, min(config.patches, patches.count + config.batch))
        x8, cond = make_patches(recipe, model.bits, sampler, range(here.start, here.stop))
        x, z, vector = _encoded(nets, x8, cond, device)
        biases, before, after = overfit_biases(nets.transform, x, z, vector, config)
        patches.biases[here], patches.before[here], patches.after[here] = biases.cpu(), before.cpu(), after.cpu()
        patches.quality[here], patches.mu[here] = cond.quality, cond.mu
        patches.count, now = here.stop, time.monotonic()
        patches.seconds = base + now - begin
        if now - saved >= 60.0 * recipe.save_minutes or patches.count == config.patches:
            holder.step, holder.seconds = patches.count, patches.seconds
            holder.objective = {name: getattr(patches, name) for name in _SAVED}
            holder.save(path)
            saved = now
            speed = (patches.count - first) / (now - begin)
            left = (config.patches - patches.count) / speed / 60
            part = slice(0, patches.count)
            gain = 1.0 - float((patches.after[part] / patches.before[part]).log().mean().exp())
            _say(
                f"patch {patches.count}/{config.patches}  distortion {-100 * gain:+.2f} %  {speed:.2f} patches/s  "
                f"left {left:.1f} min"
            )
    return patches, patches.seconds


def _encoded(nets: Networks, x8: Tensor, cond: Conditions, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    x = (x8.to(device).float() / 255.0).contiguous(memory_format=torch.channels_last)
    z = quantised_latents(nets, x, cond)
    return x, z.contiguous(memory_format=torch.channels_last), cond.vector(nets.config).to(device)


def _digest(nets: Networks, recipe: TrainConfig, model: ModelConfig) -> str:
    """SHA-256 of all that a patch depends on: the networks, and the settings that choose and overfit it."""
    b, d = recipe.bias_sets, recipe.data
    conditions = (b.bands, b.quality_min, b.quality_max, b.mu)
    settings = (b.patch, conditions, b.batch, b.iterations, b.lr, b.last_layer, recipe.seed, model.to_json())
    pictures = (d.train, d.limit, d.scale_min, d.scale_max, d.scaled_share, d.clean_above, d.pool_shards)
    digest = hashlib.sha256(repr((settings, pictures)).encode())
    for parameter in nets.transform.parameters():
        digest.update(parameter.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
