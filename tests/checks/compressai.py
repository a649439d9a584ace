"""That our hyperprior family computes what CompressAI computes, on random weights of every published size.

    python tests/checks/compressai.py --wheel FOLDER [--only mbt2018] [--height 128] [--width 192]

FOLDER holds CompressAI 1.2.8, unpacked; nothing else of it is needed, and L2C never needs it:

    pip download --no-deps compressai==1.2.8 && python -m zipfile -e compressai-1.2.8-*.whl FOLDER

Its wheel has a compiled part, so the Python has to be the wheel's (3.11 for cp311); numpy, scipy and PyTorch are the
ones at hand (it asks for numpy < 2, but what is called here works with 2 as well). What it imports for its data sets
and plots alone is replaced by stand-ins where it is not installed (STAND_INS).

For every architecture and size, weights are drawn, saved in the names of three generations and read back; CompressAI
itself reads the older ones, too, so that these are names that it knows. Compared are parameters (equal), y of equal
pictures and x_hat of equal latents (to TOLERANCE of the largest), and likelihoods of y and z of equal latents (to
TOLERANCE). Exits with 1 where anything differs by more.

With --speed it times instead: the entropy decoding of one picture (512x768 unless said otherwise) by CompressAI's
`decompress` without its g_s, and by our integers from the file that `l2c.Codec` made with the same weights, both on one
thread in the same run; every instruction set that this machine has. Of CompressAI one run, of ours the median of nine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2c import Codec
from l2c.architectures import ARCHITECTURES
from l2c.compressai import assemble, load, read
from l2c.entropy.hyperprior.float_model import gaussian_likelihood
from l2c.errors import BackendError
from l2c.format.bitstream import read_bitstream
from l2c.ops import lower_bound
from l2c.transforms import condition

TOLERANCE = 1e-5
STAND_INS = ("torchvision", "torch_geometric", "einops", "tqdm", "pandas", "matplotlib", "pytorch_msssim", "requests")


class Nothing:
    """Takes anything, and as a decorator changes nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        return

    def __call__(self, decorated: Any) -> Any:
        return decorated


class StandIn(types.ModuleType):
    """A module whose every name is a class that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Nothing,), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives stand-ins for what is not installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in STAND_INS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        return


@torch.no_grad()
def randomise(net: Any, x: Tensor, seed: int) -> None:
    """Weights with which every part matters: latents of some units, all of GDN at work, some of it at its bounds."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    for name, parameter in net.named_parameters():
        if name.endswith(".gamma"):
            parameter.add_(0.05 * noise(parameter))  # as many below the bound as above
        elif name.endswith(".beta"):
            parameter.add_(0.3 * noise(parameter))
        elif ".matrices." in name or ".factors." in name:
            parameter.add_(0.4 * noise(parameter))
    y = net.g_a(x)
    last = [m for m in net.g_a.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    for parameter in (last.weight, last.bias):
        parameter.mul_(6.0 / y.std())
    if hasattr(net, "h_a"):
        for parameter in (net.h_a[-1].weight, net.h_a[-1].bias):
            parameter.mul_(4.0 / net.h_a(net.g_a(x).round()).std())
    if hasattr(net, "entropy_parameters"):
        net.entropy_parameters[-1].weight.mul_(3.0)
        net.entropy_parameters[-1].bias.add_(noise(net.entropy_parameters[-1].bias).abs())
    net.update()


def first_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names up to v1.0.5."""
    renamed = {re.sub(r"^entropy_bottleneck\.(mat|bia|fac)", r"entropy_bottleneck._\1", k): t for k, t in state.items()}
    return {key.replace(".skip.", ".downsample."): tensor for key, tensor in renamed.items()}


def second_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names from v1.1 to v1.2.6."""
    for plural, one in (("matrices", "_matrix"), ("biases", "_bias"), ("factors", "_factor")):
        state = {
            key.replace(f"entropy_bottleneck.{plural}.", f"entropy_bottleneck.{one}"): t for key, t in state.items()
        }
    return state


GENERATIONS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "first": first_names,
    "second": second_names,
    "newest": dict,
}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def compare(
    architecture: str, n: int, m: int, quality: int, x: Tensor, load_pretrained: Any, build: Any
) -> list[float]:
    """Differences of parameters, y, x_hat, likelihoods of y and of z, and bits (relative)."""
    torch.manual_seed(quality)
    net = (build(n) if ARCHITECTURES[architecture].residual else build(n, m)).eval()
    randomise(net, x, quality)
    state = net.state_dict()
    parameters = 0.0
    for generation, rename in GENERATIONS.items():
        old = rename(state)
        again = type(net).from_state_dict(load_pretrained(dict(old)))
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in state.items()), (
            "not a name of theirs"
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights.pth.tar"
            torch.save(old, path, _use_new_zipfile_serialization=generation != "first")
            checkpoint = read(path, quality, "mse")
        assert (checkpoint.architecture, checkpoint.n, checkpoint.m) == (architecture, n, m), checkpoint
        own = dict(net.named_parameters())
        assert set(own) == set(checkpoint.state), set(own) ^ set(checkpoint.state)
        parameters = max(parameters, *(float((checkpoint.state[key] - own[key]).abs().max()) for key in own))
    _, transform, probability = assemble([checkpoint], "one")
    level, cond = probability.level(0), condition(torch.tensor([0.01]), torch.zeros(1))

    y = net.g_a(x)
    found = [parameters, difference(transform.encoder(x, cond)[0], y)]
    y_hat = y.round()
    found.append(difference(transform.decoder(y_hat, cond), net.g_s(y_hat)))
    header = torch.tensor([[0, 0, 8]])
    bits = float(probability.num_bits(y_hat, y_hat, header))
    if level.kind == "factorized":
        theirs, _, _ = net.entropy_bottleneck._likelihood(y_hat.transpose(0, 1).reshape(m, 1, -1))
        theirs = lower_bound(theirs, 1e-9).reshape(m, 1, *y_hat.shape[2:]).transpose(0, 1)
        found += [float((level.entropy_bottleneck.likelihood(y_hat) - theirs).abs().max()), 0.0]
        return [*found, abs(bits / float(-theirs.log2().sum()) - 1.0)]
    z = net.h_a(y_hat.abs() if level.kind == "scale" else y_hat)
    z_hat, z_likelihood = net.entropy_bottleneck(z)  # medians are zero, so they round as we do
    features = net.h_s(z_hat)
    if level.kind == "context":
        features = net.entropy_parameters(torch.cat((features, net.context_prediction(y_hat)), dim=1))
    scales, means = (features, None) if level.kind == "scale" else features.chunk(2, 1)
    theirs = lower_bound(net.gaussian_conditional._likelihood(y_hat, scales, means), 1e-9)
    our_z = level.hyper_latents(y_hat).round()
    assert torch.equal(our_z, z_hat) and int((z_hat != 0).sum()) > z_hat.numel() // 3
    hyper = level.hyper(our_z, *y_hat.shape[2:])
    ours = level.parameters_of(hyper, level.context(y_hat) if level.kind == "context" else None)
    found.append(float((gaussian_likelihood(y_hat, ours[1], ours[0]) - theirs).abs().max()))
    found.append(float((level.entropy_bottleneck.likelihood(our_z) - z_likelihood).abs().max()))
    exact = -theirs.double().log2().sum() - z_likelihood.double().log2().sum()
    return [*found, abs(bits / float(exact) - 1.0)]


@torch.no_grad()
def time_decoding(architecture: str, n: int, m: int, quality: int, x: Tensor, build: Any) -> dict[str, float]:
    """Seconds of entropy decoding: "compressai", and ours by instruction set."""
    torch.manual_seed(quality)
    net = (build(n) if ARCHITECTURES[architecture].residual else build(n, m)).eval()
    randomise(net, x, quality)
    theirs = net.compress(x)
    net.g_s, seconds = torch.nn.Identity(), {}
    start = time.perf_counter()
    net.decompress(theirs["strings"], theirs["shape"])
    seconds["compressai"] = time.perf_counter() - start
    model = load(net.state_dict() | g_s_of(build, architecture, n, m), quality, "mse")
    picture = (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    for cpu in ("avx512", "avx2", "neon", "scalar"):
        with instruction_set(cpu):
            try:
                codec = Codec(model, threads=1)
            except BackendError:
                continue  # not on this machine
            stream = read_bitstream(codec.encode(picture))
            times = []
            for _ in range(9):
                start = time.perf_counter()
                codec.read_latents([stream])
                times.append(time.perf_counter() - start)
            seconds[cpu] = statistics.median(times)
    return seconds


def g_s_of(build: Any, architecture: str, n: int, m: int) -> dict[str, Tensor]:
    """Weights of a g_s, which the timing takes away from the other net."""
    net = build(n) if ARCHITECTURES[architecture].residual else build(n, m)
    return {key: tensor for key, tensor in net.state_dict().items() if key.startswith("g_s.")}


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """L2C_CPU for a while."""
    before = os.environ.get("L2C_CPU")
    os.environ["L2C_CPU"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["L2C_CPU"]
        else:
            os.environ["L2C_CPU"] = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="the folder in which the wheel was unpacked")
    parser.add_argument("--only", choices=sorted(ARCHITECTURES), help="one architecture")
    parser.add_argument("--speed", action="store_true", help="time entropy decoding instead")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    args = parser.parse_args()
    height, width = args.height or (512 if args.speed else 128), args.width or (768 if args.speed else 192)
    # This script is called as what it compares with: its own folder must not be searched.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    sys.path.append(str(args.wheel.resolve()))
    sys.meta_path.append(Finder())
    zoo = importlib.import_module("compressai.zoo.image")
    load_pretrained = importlib.import_module("compressai.zoo.pretrained").load_pretrained

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator)
    x = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic")
    x = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0.0, 1.0)

    if args.speed:
        torch.set_num_threads(1)
        for architecture in ("mbt2018", "cheng2020-anchor"):
            for quality, n, m in ARCHITECTURES[architecture].sizes if args.only in (None, architecture) else ():
                seconds = time_decoding(architecture, n, m, quality, x, zoo.model_architectures[architecture])
                theirs = seconds.pop("compressai")
                ours = ", ".join(f"{cpu} {1e3 * s:.1f} ms ({theirs / s:.0f} times)" for cpu, s in seconds.items())
                print(f"{architecture} N {n} M {m}, {width}x{height}: CompressAI {theirs:.2f} s; {ours}", flush=True)
        return
    columns = ("params", "y", "x_hat", "P(y)", "P(z)", "bits", "seconds")
    print(f"{'architecture':<22}{'N':>4}{'M':>4}" + "".join(f"{column:>9}" for column in columns))
    worst = 0.0
    for architecture, facts in ARCHITECTURES.items():
        if args.only in (None, architecture):
            for quality, n, m in facts.sizes:
                start = time.perf_counter()
                build = zoo.model_architectures[architecture]
                found = compare(architecture, n, m, quality, x, load_pretrained, build)
                worst = max(worst, *found) if found[0] == 0.0 else float("inf")
                figures = "".join(f"{value:9.1e}" for value in found)
                print(f"{architecture:<22}{n:>4}{m:>4}{figures}{time.perf_counter() - start:9.1f}", flush=True)
    print(f"largest difference {worst:.1e}, tolerance {TOLERANCE:.0e}")
    if worst > TOLERANCE:
        sys.exit(1)


if __name__ == "__main__":
    main()
