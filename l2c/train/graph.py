"""A training step as one launch: captured in a CUDA graph, checked against the eager step, given up where it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WARMUP = 3  # steps before a capture: kernels are chosen and compiled in them, and buffers allocated
_TOLERANCE = 0.02  # of the change that a step makes; sums in another order move bfloat16 gradients by less

Step = Callable[[], None]


def cuda_capture(step: Step) -> Step:
    """Record `step` on the current CUDA device; what comes back replays it. Raises RuntimeError where it cannot."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def warm_up(step: Step, device: torch.device) -> None:
    """Take a few steps on a stream of their own, as a capture demands."""
    if device.type != "cuda":
        step()
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(_WARMUP):
            step()
    torch.cuda.current_stream(device).wait_stream(side)


def captured(
    step: Step, state: Sequence[Tensor], watched: int, capture: Callable[[Step], Step], device: torch.device
) -> tuple[Step, str]:
    """A faster form of `step`, if it can be had and does the same.

    Args:
        step: changes `state` in place, and nothing else that lasts.
        state: every tensor that outlives a step. It is left as it was found.
        watched: so many tensors at the head of `state` are compared after a step of either form.
        capture: makes the faster form, see `cuda_capture`.
        device: of all tensors.
    Returns:
        The step to take from now on, and why that is `step` itself ("" where it is not).
    """
    tensors = [tensor.detach() for tensor in state]
    before = [tensor.clone() for tensor in tensors]

    def after(form: Step) -> list[Tensor]:
        torch._foreach_copy_(tensors, before)
        form()
        return [tensor.clone() for tensor in tensors[:watched]]

    try:
        warm_up(step, device)
        torch._foreach_copy_(tensors, before)
        replay = capture(step)
        fast = after(replay)
        reason = _difference(fast, after(step), before[:watched])
    except RuntimeError as error:  # CUDA's own errors are RuntimeErrors
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    torch._foreach_copy_(tensors, before)
    return (step, reason) if reason else (replay, "")


def _difference(fast: Sequence[Tensor], plain: Sequence[Tensor], before: Sequence[Tensor]) -> str:
    """What is wrong with the change that the fast form made; "" for nothing."""
    moved = sum(float((p - b).double().square().sum()) for p, b in zip(plain, before)) ** 0.5
    apart = sum(float((f - p).double().square().sum()) for f, p in zip(fast, plain)) ** 0.5
    if not apart <= _TOLERANCE * moved:
        return f"its step is {apart:.3g} away from the plain one, which is {moved:.3g} long"
    return ""
