"""Coding on a GPU, whatever the family: who queues work when, launches that are recorded, and streams that are read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from l2c import ops
from l2c.ops.contract import MAX_LANES, STATE_LOW

_CAPTURE_LOCK = threading.Lock()  # CUDA records one graph of a process at a time


class Queue:
    """Work on one device, one caller's after another's.

    Args:
        device: a CUDA device with its index, or the CPU under Triton's interpreter.
    Attributes:
        stream: where all work is queued, graphs included, on a GPU; else None. Calls from several threads or streams
            share buffers: one stream of its own keeps them in order.
        lock: held by who queues.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def alone(self) -> Iterator[torch.cuda.Stream | None]:
        """One thread at a time queues work on `stream`, between what its own stream, which comes out, has and gets.

        Tensors made in inference mode could not be filled by later calls.
        """
        with self.lock, torch.inference_mode(False), torch.no_grad():
            if self.stream is None:
                yield None
                return
            with torch.cuda.device(self.device):
                caller = torch.cuda.current_stream()
                self.stream.wait_stream(caller)
                try:
                    with torch.cuda.stream(self.stream):
                        yield caller
                finally:
                    caller.wait_stream(self.stream)

    def replay(self, graphs: dict[Any, Any], key: Any, launch: Callable[[], None]) -> None:
        """Run `launch`; on a GPU the second time as a CUDA graph that is recorded then, and from there on.

        A launch that cannot be recorded stays as it is: the graph saves time and nothing else.

        Args:
            graphs: those that are kept, by key; of buffers that stay where they are.
        """
        if self.device.type != "cuda":
            launch()
        elif key not in graphs:
            launch()  # compiles every kernel, which a recording cannot
            graphs[key] = None
        else:
            if graphs[key] is None:
                graph = torch.cuda.CUDAGraph()
                try:
                    # On the stream that is current already: where recording fails, PyTorch leaves it so.
                    recording = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
                    with _CAPTURE_LOCK, recording:
                        launch()
                    graphs[key] = graph.replay
                except RuntimeError:
                    graphs[key] = launch
            graphs[key]()


def padded_positions(sizes: Sequence[tuple[int, int]]) -> int:
    """Latent positions of a batch of tiles, each padded to the largest height and width."""
    return len(sizes) * max(height for height, _ in sizes) * max(width for _, width in sizes)


class Readers(Protocol):
    """N streams on a device as `kernels.rans` reads them.

    Attributes:
        words: int16, of all streams one after another; replaced where there is no room, with all graphs.
        next_word, end: int64 [N], places in it. states: int64 [N, MAX_LANES]; lanes: int32 [N].
        position: int64 [N], symbols decoded so far.
        graphs: recorded launches that read all that.
    """

    words: Tensor
    next_word: Tensor
    end: Tensor
    states: Tensor
    lanes: Tensor
    position: Tensor
    graphs: dict[Any, Any]


def load_streams(readers: Readers, payloads: Sequence[bytes | memoryview]) -> int:
    """Parse the streams' heads, copy states and words to the device. Returns the most lanes that a stream has.

    Raises:
        BitstreamError: the head of a stream is not valid.
    """
    lanes, states, words = [], np.full((len(payloads), MAX_LANES), STATE_LOW, dtype=np.int64), []
    for i, payload in enumerate(payloads):
        count, states_i, words_i = ops.parse_stream(payload)
        lanes.append(count)
        states[i, :count] = states_i
        words.append(words_i)
    ends = np.cumsum([len(part) for part in words])
    total = int(ends[-1])
    if readers.words.numel() < total:
        # A power of two: graphs that read the old buffer are of no use, so it should seldom be replaced.
        size = 1 << max(12, (total - 1).bit_length())
        readers.words = torch.empty(size, dtype=torch.int16, device=readers.states.device)
        readers.graphs.clear()
    readers.words[:total].copy_(torch.from_numpy(np.concatenate(words).view(np.int16)))
    readers.states.copy_(torch.from_numpy(states))
    readers.lanes.copy_(torch.tensor(lanes, dtype=torch.int32, device="cpu"))
    readers.end.copy_(torch.from_numpy(ends))
    readers.next_word.copy_(torch.from_numpy(ends - np.array([len(part) for part in words])))
    readers.position.zero_()
    return max(lanes)
