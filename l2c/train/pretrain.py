"""First stage: train E, I, D and P together (L2C III-C, Eq. 7). Resumes exactly where a run stopped.

python -m l2c.train.pretrain configs/default.json --data DIR --val DIR --out runs/default --minutes 60
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l2c import integer, networks
from l2c.config import ModelConfig
from l2c.metrics import msssim, psnr
from l2c.models import load_model
from l2c.probability import ProbabilityModel
from l2c.train.data import PictureSet
from l2c.train.losses import lmbda_of_quality, rate_distortion


class Networks(nn.Module):
    """Everything that is trained: `transform` (E, I, D) and `probability` (P)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transform = networks.Transform(config.transform)
        self.probability = ProbabilityModel(config)


class Trainer:
    """State of one run: networks, their running average (EMA), optimiser, counters; saved and restored as a whole."""

    def __init__(self, config: ModelConfig, lr: float, seed: int = 0, ema_decay: float = 0.9995) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.nets = Networks(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.nets).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.nets.parameters(), lr=lr, betas=(0.9, 0.98), fused=True)
        self.lr, self.ema_decay = lr, ema_decay
        self.step, self.seconds = 0, 0.0
        self.rng = np.random.default_rng(seed)

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically: a crash or a full disk leaves the last one intact."""
        state = {
            "config": self.config.to_json(),
            "nets": self.nets.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "rng": json.dumps(self.rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path, weights_only: bool = False) -> None:
        """Restore a checkpoint. `weights_only` takes the networks and leaves optimiser and counters fresh."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.nets.load_state_dict(state["nets"])
        self.average.load_state_dict(state["average"])
        if weights_only:
            return
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.rng.bit_generator.state = json.loads(state["rng"])
        torch.set_rng_state(state["torch_rng"])

    def load_model(self, path: Path) -> None:
        """Start from an exported model: its float16 networks, and P made float again."""
        model = load_model(path)
        for nets in (self.nets, self.average):
            nets.transform.load_state_dict(model.transform.state_dict())
            nets.probability.load_state_dict(integer.to_float(model.integer, model.config).state_dict())

    def train_step(self, x: Tensor, quality: Tensor, mu: Tensor, b: Tensor, lr: float) -> dict[str, float]:
        """One optimiser step on pictures uint8 [N, 3, H, W]; returns mean figures for the log.

        A step whose loss or gradient is not finite changes nothing and is counted in the result as "skipped".
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        pictures = (x.float() / 255.0).contiguous(memory_format=torch.channels_last)
        parts = rate_distortion(
            self.nets.transform, self.nets.probability, self.config, pictures, quality, mu, b, autocast=True
        )
        loss = parts.total.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.nets.parameters(), 1.0)
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))
        if finite:
            self.optimizer.step()
            self._update_average()
        self.step += 1
        return {
            "loss": float(loss.detach()),
            "bpp": float(parts.bpp.detach().mean()),
            "mse": float(parts.mse.detach().mean()),
            "grad": float(norm),
            "skipped": float(not finite),
        }

    def _update_average(self) -> None:
        decay = min(self.ema_decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.nets.parameters()), 1.0 - decay)

    def sample_conditions(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """quality uniform in 0..1000 (so lambda is log-uniform); mu 0 and 8 in two of five each, else any; b."""
        quality = torch.from_numpy(self.rng.integers(0, 1001, count))
        draw = self.rng.random(count)
        mu = np.where(draw < 0.4, 0, np.where(draw < 0.8, 8, self.rng.integers(0, 9, count)))
        b = np.full(count, self.config.bits)
        return quality, torch.from_numpy(mu), torch.from_numpy(b)


@torch.no_grad()
def validate(nets: Networks, config: ModelConfig, pictures: list[Tensor]) -> list[dict[str, float]]:
    """Estimated rate (float P) and quality at five qualities, for MSE and MS-SSIM.

    Args:
        pictures: uint8 [1, 3, H, W] each.
    Returns:
        One row per (mu, quality): bpp, psnr in dB, msssim, and `loss`, the objective in bits per pixel.
    """
    rows = []
    for mu in (0, 8):
        for quality in (50, 250, 450, 650, 850):
            q, m, b = torch.tensor([quality]), torch.tensor([mu]), torch.tensor([config.bits])
            lmbda = lmbda_of_quality(q, config)
            cond = networks.condition(lmbda, m / 8.0)
            sums = np.zeros(3)
            for picture in pictures:
                x = picture.float() / 255.0
                y, tau = nets.transform.encoder(networks.pad_to_multiple(x, nets.transform.s), cond)
                if tau is not None:
                    y = y * networks.importance_mask(tau, config.transform.c)
                z = y.round().clamp(-128, 127)
                bits = nets.probability.num_bits(z, z, torch.stack((q, m, b), dim=1))
                x_hat = nets.transform.decoder(z, cond).clamp(0, 1)[:, :, : x.shape[2], : x.shape[3]]
                x_hat = (x_hat * 255).round() / 255
                sums += [float(bits) / x[0, 0].numel(), float(psnr(x, x_hat)), float(msssim(x, x_hat))]
            bpp, mean_psnr, mean_msssim = sums / len(pictures)
            distortion = 255.0**2 * 10 ** (-mean_psnr / 10) if mu == 0 else 1280.0 * (1.0 - mean_msssim)
            rows.append(
                {"mu": mu, "quality": quality, "bpp": bpp, "psnr": mean_psnr, "msssim": mean_msssim,
                 "loss": bpp + float(lmbda) * distortion}
            )  # fmt: skip
    return rows


def run(args: argparse.Namespace) -> None:
    """Train until the minutes are over; checkpoint and validate on the way."""
    torch.set_num_threads(args.threads)
    config = ModelConfig.from_file(args.config)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, args.lr)
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
        print(f"resumed at step {trainer.step}, {trainer.seconds:.0f} s", flush=True)
    elif args.init and args.init.endswith(".safetensors"):
        trainer.load_model(Path(args.init))
    elif args.init:
        trainer.load(Path(args.init), weights_only=True)
    for nets in (trainer.nets, trainer.average):
        nets.probability.set_fake_quantise(args.quantise)
    data = PictureSet(args.data, args.crop, limit=args.limit)
    held_out = PictureSet(args.val, 256, limit=8)
    val_rng = np.random.default_rng(1)
    val_pictures = [held_out.batch(val_rng, np.array([False])).contiguous() for _ in range(8)]
    start, last_log, last_save = time.monotonic(), time.monotonic(), time.monotonic()
    base_seconds = trainer.seconds
    totals: dict[str, float] = {}
    count = 0
    end = start + 60.0 * args.minutes
    while time.monotonic() < end:
        lr = args.lr * min(1.0, (trainer.step + 1) / 200.0)
        if args.decay:  # linear to zero over this run, for the branch before an export
            lr *= max(0.0, (end - time.monotonic()) / (60.0 * args.minutes))
        quality, mu, b = trainer.sample_conditions(args.batch)
        x = data.batch(trainer.rng, (quality.numpy() > 650) | (trainer.rng.random(args.batch) < 0.3))
        figures = trainer.train_step(x, quality, mu, b, lr)
        trainer.seconds = base_seconds + time.monotonic() - start
        for key, value in figures.items():
            totals[key] = totals.get(key, 0.0) + (value if math.isfinite(value) else 0.0)
        count += 1
        now = time.monotonic()
        if now - last_log > args.log_seconds:
            row: dict[str, Any] = {k: round(v / count, 5) for k, v in totals.items()}
            _append(out / "log.csv", {"step": trainer.step, "seconds": round(trainer.seconds, 1), "lr": lr, **row})
            print(trainer.step, f"{trainer.seconds:.0f}s", row, f"{(now - last_log) / count:.3f} s/step", flush=True)
            totals, count, last_log = {}, 0, now
        if now - last_save > 60.0 * args.save_minutes:
            _checkpoint(trainer, out, val_pictures)
            last_save = time.monotonic()
    _checkpoint(trainer, out, val_pictures)


def _checkpoint(trainer: Trainer, out: Path, val_pictures: list[Tensor]) -> None:
    trainer.save(out / "checkpoint.pt")
    rows = validate(trainer.average, trainer.config, val_pictures)
    for row in rows:
        _append(out / "validation.csv", {"step": trainer.step, "seconds": round(trainer.seconds, 1), **row})
    print("validation", trainer.step, f"{trainer.seconds:.0f}s")
    for mu in (0, 8):
        part = [r for r in rows if r["mu"] == mu]
        print(f"  mu={mu}", " ".join(f"{r['bpp']:.3f}/{r['psnr']:.2f}/{r['msssim']:.4f}" for r in part),
              "loss", " ".join(f"{r['loss']:.4f}" for r in part), flush=True)  # fmt: skip


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def main(argv: list[str] | None = None) -> None:
    """Command line of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--data", required=True, help="folder of training pictures")
    parser.add_argument("--val", required=True, help="folder of validation pictures")
    parser.add_argument("--out", required=True, help="folder for checkpoints and logs")
    parser.add_argument("--init", help="checkpoint or exported model (.safetensors) whose networks the run starts from")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--decay", action="store_true", help="learning rate falls to zero over this run")
    parser.add_argument("--quantise", action="store_true", help="quantisation-aware steps for P")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="use only the first pictures")
    parser.add_argument("--log-seconds", type=float, default=30.0)
    parser.add_argument("--save-minutes", type=float, default=5.0)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
