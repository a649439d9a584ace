"""Is this GPU fit to train on? Half a minute: `python experiments/gpu_selftest.py [cuda|cpu]`; exit 1 if not.

Checks that random numbers are those of the CPU, that the training kernels agree with their references, and that a step
of a small model moves it as on the CPU. Prints one line for each, and the speed of a matrix product.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from l2c import ops
from l2c.config import ModelConfig
from l2c.entropy.multiscale import MultiscaleConfig
from l2c.train.config import DataConfig, LossConfig, StageConfig
from l2c.train.device_data import Bank, DeviceBatches, hashed
from l2c.train.losses import Conditions, Networks
from l2c.train.optimizers import Soap
from l2c.train.pretrain import PretrainObjective
from l2c.transforms import BlockConfig

_TRANSFORM = BlockConfig(8, 12, 32, 1, 1, 16, mask=False, local_gain=True, companding=True
)  # fmt: skip
_MODEL = ModelConfig("selftest", _TRANSFORM, MultiscaleConfig(2, (4, 8), 3, 32), lmbda_min=5e-5, lmbda_max=2.0)


def random_numbers(device: torch.device) -> str:
    """Hashes of a million counters."""
    counters = torch.arange(1_000_000)
    same = torch.equal(hashed(counters.to(device), 1, 2).cpu(), hashed(counters, 1, 2))
    return "" if same else "hashes differ from the CPU's"


def mixture(device: torch.device) -> str:
    """Bits of a mixture and their gradients, the kernel that training uses against the reference."""
    source = torch.Generator().manual_seed(0)
    x = (4.0 * torch.randn(2, 8, 9, 11, generator=source)).to(device)
    params = torch.randn(2, 72, 9, 11, generator=source).to(device)
    b = torch.tensor([8, 6], device=device)
    results = []
    for backend in ("auto", "reference"):
        leaves = [t.detach().requires_grad_() for t in (x, params)]
        bits = ops.mixture_bits(*leaves, 3, b, backend=backend)
        bits.sum().backward()
        results.append([bits.detach(), *(leaf.grad for leaf in leaves)])
    worst = max(float((a - b).abs().max()) for a, b in zip(*results))
    return "" if worst < 1e-2 else f"bits or gradients are {worst:.3g} off"


def step(device: torch.device) -> str:
    """Three steps of a small model from the same pictures, in float32."""
    ends = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(0)
        nets = Networks(_MODEL).to(where, memory_format=torch.channels_last)
        source = torch.Generator().manual_seed(0)
        bank = Bank([torch.randint(0, 256, (3, 80, 96), dtype=torch.uint8, generator=source) for _ in range(3)], where)
        data = DataConfig(crop=64)
        made = DeviceBatches(bank, data, StageConfig(batch=6), 8, (12, 8, 8), 0, 0)
        objective = PretrainObjective(nets, LossConfig(), None)
        optimizer = Soap(list(nets.parameters()))
        losses = []
        for number in range(3):
            at = torch.tensor(number, device=where)
            header = made.conditions(at)
            x = made.pictures(at, header[:, 0]).float() / 255.0
            loss = objective.loss(x, Conditions(*header.unbind(dim=1)), made.noise(at)).total.mean()
            for parameter in nets.parameters():
                parameter.grad = None
            loss.backward()
            optimizer.step(torch.tensor(1e-3, device=where), torch.ones((), device=where))
            optimizer.after_step(number + 1)
            losses.append(float(loss.detach()))
        ends.append(losses)
    apart = max(abs(a - b) / abs(a) for a, b in zip(*ends))
    return "" if apart < 0.02 else f"losses {ends[1]} instead of {ends[0]}"


def main() -> int:
    """See the head of this file."""
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda")
    checks: list[Callable[[torch.device], str]] = [random_numbers, mixture, step]
    failed = 0
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else device}")
    for check in checks:
        began = time.monotonic()
        try:
            reason = check(device)
        except Exception as error:  # whatever it is, it speaks against the GPU
            reason = f"{type(error).__name__}: {error}"
        failed += bool(reason)
        print(f"{check.__name__}: {reason or 'good'} ({time.monotonic() - began:.1f} s)", flush=True)
    size = 4096 if device.type == "cuda" else 256
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    began = time.monotonic()
    for _ in range(20):
        c = a @ a
    float(c[0, 0])  # waits
    print(f"bfloat16 products: {20 * 2 * size**3 / (time.monotonic() - began) / 1e12:.1f} TFLOP/s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
