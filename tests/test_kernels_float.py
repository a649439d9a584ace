"""The float kernels against their plain forms: Triton on a GPU, or interpreted where there is none, and C++."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from l2c import ops, transforms
from l2c.config import ModelConfig
from l2c.errors import BackendError
from l2c.ops import Grid, extension, floating, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = ops.triton_reason(DEVICE)
runs = pytest.mark.skipif(bool(REASON), reason=REASON)

# Largest error against the float64 reference, absolute and relative, by the dtype of what goes in and comes out.
TOLERANCE = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (1e-2, 1.6e-2)}

LAYOUTS = ("contiguous", "channels last", "strided")


@pytest.fixture(autouse=True)
def uninitialised_is_nan() -> Iterator[None]:
    """Memory that nobody wrote holds NaN, or 255 in bytes."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def lay(t: Tensor, layout: str) -> Tensor:
    """The same values as [N, C, h, w] in another order in memory; "strided" is a part of a larger tensor of NaN."""
    if layout == "contiguous":
        return t.contiguous()
    if layout == "channels last":
        return t.contiguous(memory_format=torch.channels_last)
    n, c, h, w = t.shape
    fill = float("nan") if t.is_floating_point() else 77
    larger = torch.full((n, w + 1, c + 3, 2 * h), fill, dtype=t.dtype, device=t.device)
    part = larger[:, 1:, 2 : 2 + c, ::2].permute(0, 2, 3, 1)
    part.copy_(t)
    return part


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32, widen: float = 1.0) -> None:
    atol, rtol = (widen * t for t in TOLERANCE[dtype])
    torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=rtol)


def gradients(out: Tensor, inputs: Sequence[Tensor], seed: int = 3) -> tuple[Tensor, ...]:
    """Of a weighted sum of out with weights that are the same for every dtype and layout."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(out.shape, generator=generator).to(out)
    return torch.autograd.grad((out * weights).sum(), inputs)


def leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_()


# --- the choice of a backend


def test_interpreter_runs_without_a_gpu() -> None:
    """The tests of this file are not skipped by mistake."""
    if importlib.util.find_spec("triton") is None:
        assert "Triton does not load" in REASON
    elif DEVICE.type == "cpu" and os.environ["TRITON_INTERPRET"] == "1":
        assert REASON == ""


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    reason: Callable[[torch.device], str] = ops.triton_reason.__wrapped__
    monkeypatch.setattr(extension, "load_triton", lambda: (False, "no Triton"))
    assert reason(torch.device("cpu")) == "no Triton"
    monkeypatch.setattr(extension, "load_triton", lambda: (True, ""))
    assert reason(torch.device("cpu")) == ""
    monkeypatch.setattr(extension, "load_triton", lambda: (False, ""))
    assert "TRITON_INTERPRET" in reason(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no NVIDIA GPU" in reason(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5" in reason(torch.device("cuda"))


@runs
def test_a_compiler_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from l2c.kernels import common

    def fail(device: torch.device) -> None:
        raise RuntimeError("no C compiler")

    common.probe(DEVICE)
    monkeypatch.setattr(common, "probe", fail)
    monkeypatch.setattr(extension, "load_triton", lambda: (False, ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "no C compiler" in ops.triton_reason.__wrapped__(torch.device("cuda"))


class OnGpu:
    """As much of a tensor on a GPU as the choice of a backend looks at."""

    device, dtype = torch.device("cuda"), torch.float32

    def __init__(self, elements: int = 1) -> None:
        self.elements = elements

    def __getitem__(self, part: slice) -> OnGpu:
        return self

    def numel(self) -> int:
        return self.elements


def test_auto_is_cpp_where_there_is_such_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    assert ops.choose_float_backend("auto", x, cpp=True) == "cpu"
    assert ops.choose_float_backend("auto", x.double(), cpp=True) == "reference"
    on_gpu: Any = OnGpu()
    with pytest.raises(BackendError, match="tensors of the CPU"):
        ops.choose_float_backend("cpu", on_gpu, cpp=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert ops.choose_float_backend("auto", x, cpp=True) == "reference"
    with monkeypatch.context() as patch:
        patch.setattr(extension, "load_cpp", lambda: (None, "not built"))
        assert ops.choose_float_backend("auto", x, cpp=True) == "reference"
        with pytest.raises(BackendError, match="not built"):
            ops.choose_float_backend("cpu", x, cpp=True)
    monkeypatch.setattr(extension, "load_triton", lambda: (False, ""))
    monkeypatch.setattr(extension, "triton_reason", lambda device: "")
    for name in ("torch", "reference"):
        monkeypatch.setenv("L2C_BACKEND", name)
        assert ops.choose_float_backend("auto", x, cpp=True) == "reference"
        assert ops.choose_float_backend("auto", on_gpu) == "reference"


def test_auto_is_triton_on_gpus_that_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    small: Any = OnGpu()
    assert ops.choose_float_backend("auto", torch.zeros(1)) == "reference"
    monkeypatch.setattr(extension, "load_triton", lambda: (False, ""))
    monkeypatch.setattr(extension, "triton_reason", lambda device: "")
    assert ops.choose_float_backend("auto", torch.zeros(1)) == "reference"
    assert ops.choose_float_backend("auto", small) == "triton"
    assert ops.choose_float_backend("reference", small) == "reference"
    large: Any = OnGpu(1 << 31)
    assert ops.choose_float_backend("auto", large) == "reference"
    with pytest.raises(BackendError, match="2\\^31"):
        ops.choose_float_backend("triton", large)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert ops.choose_float_backend("auto", small) == "reference"
    monkeypatch.setattr(extension, "load_triton", lambda: (True, ""))
    assert ops.choose_float_backend("auto", small) == "reference"
    monkeypatch.setattr(extension, "triton_reason", lambda device: "an old GPU")
    assert ops.choose_float_backend("auto", small) == "reference"


def test_backends_asked_for_by_name_run_or_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    x, params, b = torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2), torch.tensor([8])
    calls: list[Callable[[str], object]] = [
        lambda backend: ops.mixture_bits(x, params, 1, b, backend=backend),
        lambda backend: ops.neighbour_bits(x, params, 1, b, backend=backend),
        lambda backend: ops.patch_epilogue(x, slope=0.1, backend=backend),
        lambda backend: ops.quantise(x, 8, backend=backend),
        lambda backend: ops.to_levels(x, 8, backend=backend),
        lambda backend: ops.dequantise(x.to(torch.uint8), 8, backend=backend),
    ]
    monkeypatch.setattr(extension, "triton_reason", lambda device: "it is Sunday")
    for call in calls:
        call("auto")
        call("reference")
        with pytest.raises(BackendError, match="no float backend is called 'cuda'"):
            call("cuda")
        with pytest.raises(BackendError, match="it is Sunday"):
            call("triton")
    for call in calls[:2]:
        call("cpu")
    for call in calls[2:]:
        with pytest.raises(BackendError, match=r"no form in C\+\+"):
            call("cpu")


@runs
def test_float64_is_for_the_reference() -> None:
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64, device=DEVICE)
    assert ops.patch_epilogue(x, slope=0.1).dtype == torch.float64
    with pytest.raises(BackendError, match="float32"):
        ops.patch_epilogue(x, slope=0.1, backend="triton")


def test_wrong_shapes_and_dtypes_are_refused() -> None:
    x, b = torch.zeros(2, 4, 3, 5), torch.tensor([8, 8])
    params, table = torch.zeros(2, 24, 3, 5), torch.zeros(2, 4, 2, 2)
    wrong: list[Callable[[], object]] = [
        lambda: ops.mixture_bits(x, params, 3, b),
        lambda: ops.mixture_bits(x, params[:, :, :2], 2, b),
        lambda: ops.mixture_bits(x.double(), params, 2, b),
        lambda: ops.mixture_bits(x, params, 2, b.float()),
        lambda: ops.neighbour_bits(x, params, 2, torch.tensor([8, 8, 8])),
        lambda: ops.patch_epilogue(x[0]),
        lambda: ops.patch_epilogue(x.to(torch.uint8)),
        lambda: ops.patch_epilogue(x, residual=x.double()),
        lambda: ops.patch_epilogue(x, table),
        lambda: ops.patch_epilogue(x, scale=table[:, :3], scale_grid=Grid(2)),
        lambda: ops.quantise(x, 0),
        lambda: ops.quantise(x.long(), 8),
        lambda: ops.quantise(x[0], b),
        lambda: ops.quantise(x, b, torch.zeros(2, 4, 3, 5)),
        lambda: ops.to_levels(x, 9),
        lambda: ops.to_levels(x[None], 8),
        lambda: ops.dequantise(x, 8),
    ]
    for call in wrong:
        with pytest.raises(ValueError):
            call()


# --- bits of mixtures


@pytest.fixture(params=["triton", "cpu", "cpu, scalar"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that can run here, DEVICE its device."""
    if request.param == "triton":
        if REASON:
            pytest.skip(REASON)
        return "triton"
    monkeypatch.setitem(globals(), "DEVICE", torch.device("cpu"))
    monkeypatch.setenv("L2C_CPU", "scalar" if "scalar" in request.param else "")
    return "cpu"


def mixture(shape: tuple[int, int, int, int], k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Latents on and off the levels of b = 1..8 with the ends of the range among them, parameters of all widths."""
    generator = torch.Generator().manual_seed(seed)
    n, g, h, w = shape
    b = torch.arange(n) % 8 + 1
    step = torch.exp2(8.0 - b)[:, None, None, None]
    x = (torch.randn(shape, generator=generator) * 60 / step).round().clamp(-128 / step, 128 / step - 1) * step
    x.view(n, -1)[:, ::11] = -128.0
    x.view(n, -1)[:, 1::11] = 128.0 - step.view(n, 1)
    x.view(n, -1)[:, 2::11] += 0.3 * step.view(n, 1)
    x.view(n, -1)[:, 3::11] = 128.0 - 1.1 * step.view(n, 1)  # belongs to the last level already
    params = torch.randn(n, 3, k, g, h, w, generator=generator)
    params[:, 1] = params[:, 1] * 4 * step[:, None] + x[:, None]
    params[:, 2] = params[:, 2] * 4 - step[:, None].log2()  # some are cut at either end
    return x.to(DEVICE), params.reshape(n, 3 * k * g, h, w).to(DEVICE), b.to(DEVICE)


@pytest.mark.parametrize(
    "shape, k, layout",
    [
        ((1, 7, 3, 3), 1, "channels last"),
        ((3, 1, 43, 1), 5, "contiguous"),
        ((8, 5, 5, 5), 3, "channels last"),
        ((8, 5, 5, 5), 3, "strided"),
    ],
)
def test_mixture_bits(shape: tuple[int, int, int, int], k: int, layout: str, backend: str) -> None:
    """63, 129 and 1000 latents; all b, the first and the last level."""
    x, params, b = mixture(shape, k)
    exact = leaf(x.double()), leaf(params.double())
    expected = reference.mixture_bits(*exact, k, b)
    ours = lay(x, layout).requires_grad_(), lay(params, layout).requires_grad_()
    bits = ops.mixture_bits(*ours, k, b, backend=backend)
    assert bits.dtype == torch.float32
    close(bits, expected)
    for mine, its in zip(gradients(bits, ours), gradients(expected, exact)):
        close(mine, its)
    if layout == "channels last" and min(shape) > 1:
        assert bits.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "shape, k, layout",
    [
        ((1, 7, 3, 3), 1, "contiguous"),
        ((3, 1, 43, 1), 5, "strided"),
        ((8, 5, 5, 5), 3, "channels last"),
    ],
)
def test_neighbour_bits(shape: tuple[int, int, int, int], k: int, layout: str, backend: str) -> None:
    x, params, b = mixture(shape, k, seed=1)
    exact = leaf(x.double()), leaf(params.double())
    expected = reference.neighbour_bits(*exact, k, b)
    ours = lay(x, layout).requires_grad_(), lay(params, layout).requires_grad_()
    found = ops.neighbour_bits(*ours, k, b, backend=backend)
    for mine, its in zip(found, expected):
        assert torch.equal(mine.isinf(), its.isinf())
        close(mine, its, widen=10.0)  # at a neighbour across the mean sigmoids near 1 are subtracted
    assert found[1].isinf().any() and found[2].isinf().any()
    assert not found[1].requires_grad and not found[2].requires_grad
    plain = ops.neighbour_bits(*ours, k, b, backend="reference")
    assert plain[0].requires_grad and not plain[1].requires_grad and not plain[2].requires_grad
    for mine, its in zip(gradients(found[0], ours), gradients(expected[0], exact)):
        close(mine, its)


@pytest.mark.parametrize("cpu", ["scalar", "avx2"])
def test_cpp_over_many_tasks_and_threads(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of different b, rows shared out between threads, a part of a vector at the end of each."""
    if not ops.cpp_extension().cpu_has(cpu):
        pytest.skip(f"this machine has no {cpu}")
    monkeypatch.setenv("L2C_CPU", cpu)
    monkeypatch.setitem(globals(), "DEVICE", torch.device("cpu"))
    x, params, b = mixture((3, 27, 19, 23), 2, seed=8)  # 35,397 latents, tasks of 4,096
    exact = leaf(x.double()), leaf(params.double())
    expected = reference.mixture_bits(*exact, 2, b)
    slopes, neighbours = gradients(expected, exact), reference.neighbour_bits(x.double(), params.double(), 2, b)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            ours = leaf(x), leaf(params)
            bits = ops.mixture_bits(*ours, 2, b, backend="cpu")
            close(bits, expected)
            for mine, its in zip(gradients(bits, ours), slopes):
                close(mine, its)
            found = ops.neighbour_bits(x, params, 2, b, backend="cpu")
            for mine, its in zip(found, neighbours):
                close(mine, its, widen=30.0)
    finally:
        torch.set_num_threads(threads)


def test_transforms_of_pytorch_see_plain_operations() -> None:
    x, params, b = torch.randn(2, 3, 4, 5), torch.randn(2, 9, 4, 5), torch.tensor([8, 5])

    def bits(x: Tensor) -> Tensor:
        return ops.mixture_bits(x, params, 1, b)

    expected = bits(x)
    batched = torch.func.vmap(bits)(torch.stack((x, 2 * x)))
    torch.testing.assert_close(batched[0], expected)
    traced = make_fx(bits)(torch.zeros_like(x))
    torch.testing.assert_close(traced(x), expected)
    with FlopCounterMode(display=False):  # which training counts its first step with: that is to be like the others
        assert ops.choose_float_backend("auto", x, cpp=True) == "cpu"


def test_mixture_bits_gradient_is_the_slope(backend: str) -> None:
    """The kernel's gradient against differences of the float64 definition, not against autograd."""
    x, params, b = mixture((8, 1, 2, 3), 2, seed=5)
    params[:, 4:] = params[:, 4:].clamp(-6.5, 5.5)  # where it is cut there are two slopes
    ours = leaf(x), leaf(params)
    found = gradients(ops.mixture_bits(*ours, 2, b, backend=backend), ours)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x)

    def value(x: Tensor, params: Tensor) -> Tensor:
        return (reference.mixture_bits(x, params, 2, b) * weights).flatten(1).sum(dim=1)

    h = 1e-4
    inputs = x.double(), params.double()
    for which in (0, 1):
        slopes = torch.zeros_like(inputs[which])
        for index in itertools.product(*map(range, slopes.shape[1:])):
            ends = []
            for sign in (1.0, -1.0):
                moved = [t.clone() for t in inputs]
                moved[which][(slice(None), *index)] += sign * h
                ends.append(value(moved[0], moved[1]))
            slopes[(slice(None), *index)] = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close(found[which].double(), slopes, atol=1e-3, rtol=1e-3)


def test_mixture_bits_of_extreme_parameters(backend: str) -> None:
    values = (-1e30, -3e4, -200.0, -1.0, 0.0, 1.0, 200.0, 3e4, 1e30)
    triples = torch.tensor(list(itertools.product(values, repeat=3)))  # 729
    levels = torch.tensor([-128.0, 0.0, 127.0])
    x = levels.repeat_interleave(729).view(1, 1, 27, 81).to(DEVICE)
    other = torch.tensor([0.5, -2.0, 1.0]).repeat(2187, 1)
    params = torch.stack((triples.repeat(3, 1), other), dim=2)  # [2187, 3, 2]
    params = params.permute(1, 2, 0).reshape(1, 6, 27, 81).contiguous().to(DEVICE)
    b = torch.tensor([8], device=DEVICE)
    plain, ours = (leaf(x), leaf(params)), (leaf(x), leaf(params))
    expected, bits = reference.mixture_bits(*plain, 2, b), ops.mixture_bits(*ours, 2, b, backend=backend)
    assert bits.isfinite().all() and float(bits.detach().max()) <= 20.0
    close(bits, expected.detach(), widen=10.0)  # float32 on both sides, edges up to 1e30 from the means
    for mine, its in zip(gradients(bits, ours), gradients(expected, plain)):
        assert mine.isfinite().all()
        close(mine, its, widen=10.0)
    for mine, its in zip(
        ops.neighbour_bits(x, params, 2, b, backend=backend), reference.neighbour_bits(x, params, 2, b)
    ):
        close(mine, its, widen=10.0)


def test_mixture_bits_of_nan(backend: str) -> None:
    """A search or a training run that diverges shows it."""
    x, params, b = mixture((2, 3, 2, 3), 2)
    spoilt = x.clone()
    spoilt[0, 1, 0, 2] = float("nan")
    arguments = spoilt, params, 2, b
    for found in (
        ops.mixture_bits(*arguments, backend=backend),
        *ops.neighbour_bits(*arguments, backend=backend),
    ):
        found = found.masked_fill(found.isinf(), 0.0)
        assert torch.equal(found.isnan(), spoilt.isnan())
    for row in (1, 7, 13):  # a logit, a mean and a scale
        ours = leaf(x), params.clone()
        ours[1][1, row, 1, 1] = float("nan")
        found = ops.mixture_bits(*ours, 2, b, backend=backend)
        assert int(found.isnan().sum()) == 1
        assert gradients(found, ours[:1])[0].isnan().any()


def test_mixture_bits_spreads_parameters_and_b(backend: str) -> None:
    """The prior's parameters are one set for all places; gradients come back in that shape."""
    x, params, _ = mixture((3, 4, 3, 5), 2)
    params, b = params[:1, :, :1, :1], torch.tensor([5], device=DEVICE)
    exact = leaf(x.double()), leaf(params.double())
    ours = leaf(x), leaf(params)
    bits = ops.mixture_bits(*ours, 2, b, backend=backend)
    expected = reference.mixture_bits(*exact, 2, b)
    close(bits, expected)
    for mine, its in zip(gradients(bits, ours), gradients(expected, exact)):
        close(mine, its)


def test_mixture_bits_of_bfloat16(backend: str) -> None:
    """Short parameters, float32 arithmetic: as exact as the parameters are."""
    x, params, b = mixture((8, 3, 3, 3), 3)
    short = params.to(torch.bfloat16)
    exact = leaf(x.double()), leaf(short.double())
    ours = leaf(x), leaf(short)
    bits = ops.mixture_bits(*ours, 3, b, backend=backend)
    expected = reference.mixture_bits(*exact, 3, b)
    close(bits, expected)
    dx, dparams = gradients(bits, ours)
    assert dparams.dtype == torch.bfloat16
    for mine, its, dtype in zip((dx, dparams), gradients(expected, exact), (torch.float32, torch.bfloat16)):
        close(mine, its, dtype)
    close(ops.mixture_bits(x, short, 3, b, backend="reference"), expected.detach())


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_mixture_bits_gradient_of_one_input(wanted: tuple[bool, bool], backend: str) -> None:
    x, params, b = mixture((2, 3, 3, 3), 2)
    ours = [t.detach().requires_grad_(need) for t, need in zip((x, params), wanted)]
    exact = [t.detach().double().requires_grad_(need) for t, need in zip((x, params), wanted)]
    (mine,) = gradients(ops.mixture_bits(*ours, 2, b, backend=backend), [t for t in ours if t.requires_grad])
    (its,) = gradients(reference.mixture_bits(*exact, 2, b), [t for t in exact if t.requires_grad])
    close(mine, its)


def test_mixture_bits_second_order(backend: str) -> None:
    """A gradient of a gradient, as MAML takes it, with parameters that depend on the latents."""
    x, params, b = mixture((2, 2, 3, 3), 2, seed=4)
    params[:, 8:] = params[:, 8:].clamp(-6.5, 5.5)

    def curvature(x: Tensor, call: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        z = leaf(x)
        bits = call(z, params.to(x) + 0.1 * z.repeat(1, 6, 1, 1).sin())
        (first,) = torch.autograd.grad(bits.sum(), z, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), z)[0]

    expected = curvature(x.double(), lambda z, p: reference.mixture_bits(z, p, 2, b))
    for op in (ops.mixture_bits, lambda *args, **kw: ops.neighbour_bits(*args, **kw)[0]):
        found = curvature(x, lambda z, p, op=op: op(z, p, 2, b, backend=backend))
        for mine, its in zip(found, expected):
            torch.testing.assert_close(mine.double(), its, atol=1e-3, rtol=1e-3)


# --- what follows a convolution


def epilogue_inputs(
    shape: tuple[int, int, int, int], bias: Sequence[int], scale: Sequence[int], residual: bool
) -> list[Tensor | None]:
    """x, bias, scale, residual: tables of these rows and columns, none where there are none."""
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(*shape[:2], *sides, generator=generator) if sides else None for sides in (bias, scale)]
    x, other = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return [None if t is None else t.to(DEVICE) for t in (x, *tables, other if residual else None)]


def compare_epilogue(
    inputs: Sequence[Tensor | None], layout: str, dtype: torch.dtype = torch.float32, **options: Any
) -> None:
    """Result and gradients of the kernels against the float64 reference."""
    x, bias, scale, residual = inputs
    exact = [None if t is None else leaf(t.double()) for t in inputs]
    expected = reference.patch_epilogue(*exact, **options)  # type: ignore[arg-type]
    ours = [None if t is None else lay(t.to(dtype), layout).detach().requires_grad_() for t in (x, residual)]
    tables = [None if t is None else lay(t, layout).detach().requires_grad_() for t in (bias, scale)]
    given = [ours[0], *tables, ours[1]]
    out = ops.patch_epilogue(*given, **options, backend="triton")  # type: ignore[arg-type]
    assert out.dtype == dtype
    close(out, expected, dtype)
    if layout == "channels last" and min(out.shape) > 1:
        assert out.is_contiguous(memory_format=torch.channels_last)
    wanted = [t for t in given if t is not None]
    found = gradients(out, wanted)
    for t, mine, its in zip(wanted, found, gradients(expected, [t for t in exact if t is not None])):
        assert mine.dtype == t.dtype
        sums = mine.shape != out.shape
        # Sums over patches of gradients that were rounded to bfloat16.
        torch.testing.assert_close(
            mine.double(), its, atol=0.2, rtol=0.02
        ) if sums and dtype != torch.float32 else close(mine, its, dtype)


GRIDS = [
    ((), None),
    ((1, 1), None),
    ((2, 3), Grid(4, -3, 2)),  # a margin above, a part of a patch on the left
    ((3, 2), Grid(5, 6, -20)),  # patches that this layer sees nothing of
]


@runs
@pytest.mark.parametrize(
    "slope, residual, layout",
    [
        (1.0, False, "channels last"),
        (1.0, True, "contiguous"),
        (0.0, False, "channels last"),
        (0.1, True, "channels last"),
        (0.1, True, "strided"),
    ],
)
def test_patch_epilogue(slope: float, residual: bool, layout: str) -> None:
    for first, second in ((0, 1), (1, 2), (2, 0), (2, 3), (3, 2)):
        (bias, bias_grid), (scale, scale_grid) = GRIDS[first], GRIDS[second]
        inputs = epilogue_inputs((2, 3, 9, 7), bias, scale, residual)
        compare_epilogue(inputs, layout, slope=slope, bias_grid=bias_grid, scale_grid=scale_grid)


@runs
@pytest.mark.parametrize("shape", [(1, 7, 3, 3), (1, 1, 43, 3), (1, 129, 1, 1), (5, 8, 5, 5), (1, 70, 5, 7)])
def test_patch_epilogue_odd_sizes(shape: tuple[int, int, int, int]) -> None:
    """63, 129 and 1000 elements, and more channels than a tile has."""
    for layout in LAYOUTS[:2]:
        inputs = epilogue_inputs(shape, (2, 2), (1, 1), True)
        compare_epilogue(inputs, layout, slope=0.1, bias_grid=Grid(3))


@runs
def test_patch_epilogue_of_bfloat16() -> None:
    inputs = epilogue_inputs((2, 5, 8, 9), (2, 2), (3, 2), True)
    inputs = [None if t is None else t.bfloat16().float() for t in inputs]
    compare_epilogue(inputs, "channels last", torch.bfloat16, slope=0.1, bias_grid=Grid(4), scale_grid=Grid(4, 2))


@runs
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_patches_are_summed_in_parts(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums that the search of bias sets reads: several programs for one patch, and the same in every run."""
    from l2c.kernels import patch_epilogue

    monkeypatch.setattr(patch_epilogue, "SUM_POSITIONS", 32)
    monkeypatch.setattr(patch_epilogue, "SUM_STEPS", 4)
    x, bias, scale, _ = epilogue_inputs((1, 2, 23, 18), (2, 1), (1, 1), False)
    assert x is not None and bias is not None and scale is not None
    grid = Grid(16)  # the larger patch has 16 x 18 positions: two programs of 128 and one of 32
    compare_epilogue([x, bias, scale, None], layout, slope=0.1, bias_grid=grid)
    given = leaf(lay(x, layout)), leaf(bias), leaf(scale)
    runs = [gradients(ops.patch_epilogue(*given, slope=0.1, bias_grid=grid, backend="triton"), given) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs))


@runs
def test_patch_epilogue_one_table_for_all_pictures() -> None:
    x, bias, scale, _ = epilogue_inputs((3, 4, 5, 5), (2, 2), (1, 1), False)
    assert x is not None and bias is not None and scale is not None
    compare_epilogue([x, bias[:1], scale[:1], None], "contiguous", slope=0.1, bias_grid=Grid(3))


@runs
def test_patch_epilogue_with_nothing_to_do() -> None:
    x = torch.randn(1, 2, 3, 3, device=DEVICE)
    for backend in ("triton", "reference"):
        assert ops.patch_epilogue(x, backend=backend) is x


@runs
def test_patch_epilogue_second_order() -> None:
    """Meta-training of the modulators differentiates a gradient; scales depend on the features here."""
    x, bias, _, residual = epilogue_inputs((2, 3, 4, 4), (2, 2), (), True)
    assert x is not None and bias is not None and residual is not None

    def curvature(x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        z = leaf(x)
        scale = z.mean(dim=(2, 3), keepdim=True).exp()
        out = ops.patch_epilogue(z, bias.to(x), scale, residual.to(x), slope=0.1, bias_grid=Grid(2), backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), z, create_graph=True)
        return first, torch.autograd.grad(first.square().sum(), z)[0]

    for mine, its in zip(curvature(x, "triton"), curvature(x.double(), "reference")):
        torch.testing.assert_close(mine.double(), its, atol=1e-3, rtol=1e-4)


# --- Q


def quantised(y: float, b: int) -> int:
    """Q in Python's exact numbers, whose round() goes to even."""
    half = 1 << (b - 1)
    return min(max(round(y / (1 << (8 - b))) + half, 0), 2 * half - 1)


@runs
@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantise(layout: str) -> None:
    """All b in one batch: ties, their neighbours in float32, both ends and beyond, and what the mask takes away."""
    c, h, w = 10, 5, 20
    generator = torch.Generator().manual_seed(0)
    b = torch.arange(1, 9)
    step = torch.exp2(8.0 - b)[:, None, None, None]
    y = torch.randn(8, c, h, w, generator=generator) * 50
    ties = ((torch.randn(8, c, h, w, generator=generator) * 40 / step).round() + 0.5) * step
    kinds = torch.randint(0, 5, y.shape, generator=generator)
    y = torch.where(kinds == 0, ties, y)
    y = torch.where(kinds == 1, ties.nextafter(torch.tensor(1e9)), y)
    y = torch.where(kinds == 2, ties.nextafter(torch.tensor(-1e9)), y)
    y[:, :, 0, 0], y[:, :, 0, 1], y[:, :, 0, 2] = 1e9, -1e9, -128.0
    # c tau on ties and beside them, so that one rounding more or less would keep another channel.
    counts = (torch.randint(0, c, (8, 1, h, w), generator=generator) + 0.5) / c
    tau = torch.where(kinds[:, :1] == 0, counts, torch.rand(8, 1, h, w, generator=generator))
    tau = torch.where(kinds[:, :1] == 1, counts.nextafter(torch.tensor(1.0)), tau)
    tau[:, :, 0, :2], tau[:, :, 1, :2] = 0.0, 1.0

    expected = np.empty(y.shape, dtype=np.uint8)
    for i in np.ndindex(*y.shape):
        n, k, row, column = i
        kept = k < round(float(np.float32(c) * np.float32(tau[n, 0, row, column])))
        expected[i] = quantised(float(y[i]) if kept else 0.0, int(b[n]))
    there = [lay(t.to(DEVICE), layout) for t in (y, tau)]
    for backend in ("reference", "triton"):
        symbols = ops.quantise(there[0], b.to(DEVICE), there[1], backend=backend)
        assert symbols.dtype == torch.uint8
        assert np.array_equal(symbols.cpu().numpy(), expected)
        latents = ops.to_levels(there[0], b.to(DEVICE), there[1], backend=backend)
        assert latents.dtype == torch.float32
        assert torch.equal(
            latents.cpu(), (torch.from_numpy(expected) - step / step * 2.0 ** (b.view(8, 1, 1, 1) - 1)) * step
        )
    unmasked = ops.quantise(there[0], b.to(DEVICE), backend="triton")
    assert torch.equal(unmasked, ops.quantise(there[0], b.to(DEVICE), backend="reference"))
    assert not np.array_equal(unmasked.cpu().numpy(), expected)


@runs
def test_mask_of_every_float_near_a_tie() -> None:
    """n = round(c tau) is one float32 product, rounded once: fused with what follows, some of these would differ."""
    for c in (3, 10, 48):
        centres = (np.arange(c, dtype=np.float64) + 0.5) / c
        near = np.concatenate([np.arange(-3, 4) + np.float32(v).view(np.int32) for v in centres.astype(np.float32)])
        tau = torch.from_numpy(near.astype(np.int32).view(np.float32)).view(1, 1, 1, -1)
        y = torch.full((1, c, 1, tau.numel()), 5.0, device=DEVICE)
        kept = (ops.quantise(y, 8, tau.to(DEVICE), backend="triton") != 128).sum(dim=1).flatten().tolist()
        assert kept == [round(float(np.float32(c) * np.float32(t))) for t in tau.flatten().tolist()]


@runs
@pytest.mark.parametrize("shape", [(63,), (3, 43), (10, 5, 20), (2, 5, 10, 10)])
def test_quantise_any_dimensions(shape: tuple[int, ...]) -> None:
    y = torch.linspace(-140, 140, math.prod(shape), device=DEVICE).view(shape)
    for b in range(1, 9):
        symbols = ops.quantise(y, b, backend="triton")
        assert symbols.shape == y.shape
        assert symbols.flatten().tolist() == [quantised(v, b) for v in y.flatten().tolist()]
        assert torch.equal(
            ops.to_levels(y.transpose(0, -1), b, backend="triton"), ops.dequantise(symbols, b).transpose(0, -1)
        )


@runs
def test_dequantise_every_symbol() -> None:
    symbols = torch.arange(256, dtype=torch.uint8).view(1, 4, 8, 8).repeat(8, 1, 1, 1)
    b = torch.arange(1, 9)
    for layout in LAYOUTS:
        latents = ops.dequantise(lay(symbols.to(DEVICE), layout), b.to(DEVICE), backend="triton")
        assert latents.dtype == torch.float32
        for n in range(8):
            expected = [(i - (1 << n)) * (1 << (7 - n)) for i in range(256)]
            assert latents[n].flatten().tolist() == expected
            one = ops.dequantise(symbols[n].flatten().to(DEVICE), n + 1, backend="triton")
            assert one.tolist() == expected


# --- where the codec uses them


@pytest.fixture
def triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every operator with backend "auto" runs its kernels; the list fills with a word for each call."""
    calls: list[str] = []

    def choose(backend: str, x: Tensor, cpp: bool = False) -> str:
        calls.append(backend)
        return "triton"

    monkeypatch.setattr(floating, "choose_float_backend", choose)
    return calls


@runs
def test_decoder_by_patches(tiny_config: ModelConfig, triton_everywhere: list[str], monkeypatch: Any) -> None:
    """D with maps of biases and conditions, and the gradients that the searches read."""
    torch.manual_seed(0)
    decoder = transforms.Transform(tiny_config.transform).decoder.to(DEVICE)
    cond = transforms.condition(torch.tensor([0.001, 0.1]), torch.tensor([0.0, 1.0])).to(DEVICE)
    z = torch.randint(-9, 9, (2, 12, 5, 6), device=DEVICE).float()
    biases = leaf(0.3 * torch.randn(2, transforms.num_biases(decoder), 2, 2, device=DEVICE))
    conditions = leaf(cond[:, None, :, None, None] + 0.3 * torch.randn(2, len(decoder.mods), 2, 1, 2, device=DEVICE))
    change = transforms.Adaptation(conditions, biases, Grid(4), Grid(3, -1, 1))
    z = z.contiguous(memory_format=torch.channels_last)

    def run() -> tuple[Tensor, ...]:
        picture = decoder(z, cond, change)
        return picture.detach(), *gradients(picture, (conditions, biases))

    fast = run()
    assert len(triton_everywhere) == 4 + 2 * 2  # first, head, up, last and two blocks of two convolutions: all of D
    monkeypatch.undo()
    for mine, its in zip(fast, run()):
        torch.testing.assert_close(mine, its, atol=1e-3, rtol=1e-3)


@runs
def test_probability_model(tiny_config: ModelConfig, triton_everywhere: list[str], monkeypatch: Any) -> None:
    """Bits of pictures under P and the gradient that reaches its parameters and the latents."""
    torch.manual_seed(0)
    model = tiny_config.float_model().to(DEVICE)
    z = (8 * torch.randn(1, 12, 5, 6, device=DEVICE)).round().requires_grad_()
    header = torch.tensor([[300, 2, 8]])

    def run() -> tuple[Tensor, ...]:
        bits = model.num_bits(z, z, header)
        return bits.detach(), *torch.autograd.grad(bits.sum(), (z, *model.parameters()))

    fast = run()
    assert len(triton_everywhere) == 1 + 3 * 3 * 2  # the prior, and every group of three scales
    monkeypatch.undo()
    for mine, its in zip(fast, run()):
        torch.testing.assert_close(mine, its, atol=2e-3, rtol=1e-3)
