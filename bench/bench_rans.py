"""Range coder against torchac and constriction on the same symbols: one thread, medians, every decode checked.

    python bench/bench_rans.py [--symbols 4194304] [--peer-symbols 131072]
    python bench/bench_rans.py --picture FILE [--bpp 0.25 0.5 1.0 2.0] [--model l2c-default]
    pytest bench/bench_rans.py -o python_files='bench_*.py' --benchmark-enable

Our coder evaluates the mixtures itself. The peers get finished tables of the same probabilities (torchac: 16-bit CDFs,
constriction: float32 probabilities), whose making is not timed. The peers code fewer symbols, since a table takes 257
entries a symbol; "ours" on just those symbols is in the table too. The default is a synthetic mixture of four
components at about 3 bit per symbol; with --picture the real symbols of a picture at some rates, with the lanes that
the coder chooses for so short a stream.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from l2c import ops
from l2c.entropy.coder import ObservingJob

core = ops.cpp_extension()

CPUS = [name for name in ("avx512", "avx2", "neon", "scalar") if core.cpu_has(name)]
LANES = (64, 32, 16, 8, 4, 2, 1)


@dataclass
class Stream:
    """Symbols uint8 [n] and their mixtures [K, n], as the coder takes them."""

    symbols: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.uint16]
    means: npt.NDArray[np.int16]
    inv_scales: npt.NDArray[np.uint16]
    bits: int

    @property
    def args(self) -> tuple[Any, ...]:
        return self.weights, self.means, self.inv_scales, self.bits

    def head(self, n: int) -> Stream:
        parts = (self.weights, self.means, self.inv_scales)
        w, m, v = (np.ascontiguousarray(part[:, :n]) for part in parts)
        return Stream(self.symbols[:n].copy(), w, m, v, self.bits)

    def cdf(self) -> npt.NDArray[np.uint32]:
        """C(i) of every symbol, uint32 [n, 2^bits + 1]."""
        edges = np.arange((1 << self.bits) + 1, dtype=np.int32)
        out = np.empty((len(self.symbols), len(edges)), np.uint32)
        for start in range(0, len(out), 4096):
            stop = min(start + 4096, len(out))
            parts = (self.weights, self.means, self.inv_scales)
            w, m, v = (np.repeat(part[:, start:stop], len(edges), axis=1) for part in parts)
            out[start:stop] = core.mixture_cdf(np.tile(edges, stop - start), w, m, v, self.bits).reshape(-1, len(edges))
        return out


def synthetic_stream(n: int, K: int = 4, seed: int = 0) -> Stream:
    """Symbols drawn from random mixtures of K logistics, about 3 bit each, own parameters for every symbol."""
    rng = np.random.default_rng(seed)
    shares = rng.gamma(1.0, 1.0, (K, n))
    weights = np.floor(shares / shares.sum(axis=0) * 65520).astype(np.int64)
    weights[0] += 65520 - weights.sum(axis=0)
    means = np.clip(128 * (rng.normal(0, 25, (1, n)) + rng.normal(0, 1.2, (K, n))), -32768, 32767)
    inv_scales = np.clip(1024 / (1.8 * 2.0 ** rng.uniform(-1, 1, (K, n))), 1, 32767)
    stream = Stream(
        np.zeros(n, np.uint8),
        weights.astype(np.uint16),
        means.astype(np.int16),
        inv_scales.astype(np.uint16),
        bits=8,
    )
    slots = rng.integers(0, 1 << 20, n)
    low = np.zeros(n, np.int32)
    for bit in reversed(range(8)):
        low += np.where(core.mixture_cdf(low + (1 << bit), *stream.args) <= slots, 1 << bit, 0).astype(np.int32)
    stream.symbols = low.astype(np.uint8)
    return stream


def picture_stream(path: Path, bpp: float, model: str) -> tuple[Stream, int]:
    """The symbols and mixtures of a picture of one tile at a rate, and the lanes that its file uses."""
    import l2c
    from l2c.format import bitstream

    pushed: list[tuple[npt.NDArray[Any], ...]] = []

    class Recorder:
        def mixture(self, symbols: Any, weights: Any, means: Any, inv_scales: Any) -> None:
            pushed.append((symbols, weights, means, inv_scales))

    codec = l2c.Codec(model)
    file = bitstream.read_bitstream(codec.encode(path, bpp=bpp))
    symbols = codec.read_latents([file])[0]
    job = ObservingJob(*symbols.shape[1:], file.header.point, file.tiles[0].channels, symbols, Recorder())
    codec.model.integer.code([job])
    arrays = [np.ascontiguousarray(np.concatenate([part[i] for part in pushed], axis=-1)) for i in range(4)]
    return Stream(*arrays, file.header.latent_bits), 1 << file.payloads[0][0]


# (encode, decode, size of a code in bits)
Coder = tuple[Callable[[], Any], Callable[[Any], npt.NDArray[Any]], Callable[[Any], int]]


def ours(stream: Stream, cpu: str, lanes: int = 0) -> Coder:
    def encode() -> bytes:
        core.set_cpu(cpu)
        encoder = core.RangeEncoder()
        encoder.push_mixture(stream.symbols, *stream.args)
        return encoder.finish(lanes)

    def decode(data: bytes) -> npt.NDArray[np.uint8]:
        core.set_cpu(cpu)
        decoder = core.RangeDecoder(data)
        symbols = decoder.pop_mixture(*stream.args)
        decoder.finish()
        return symbols

    return encode, decode, lambda data: 8 * len(data)


def torchac_coder(stream: Stream, cdf: npt.NDArray[np.uint32]) -> Coder:
    torchac = pytest.importorskip("torchac")
    torch.set_num_threads(1)
    num_symbols = cdf.shape[1] - 1
    # 16 bits, strictly increasing; the last entry, 2^16, wraps to 0 as torchac wants it.
    cdf16 = (cdf.astype(np.uint64) * (65536 - num_symbols) >> 20) + np.arange(num_symbols + 1, dtype=np.uint64)
    table = torch.from_numpy((cdf16 & 0xFFFF).astype(np.uint16).view(np.int16))
    symbols = torch.from_numpy(stream.symbols.astype(np.int16))
    return (
        lambda: torchac.encode_int16_normalized_cdf(table, symbols),
        lambda data: torchac.decode_int16_normalized_cdf(table, data).numpy(),
        lambda data: 8 * len(data),
    )


def constriction_coder(stream: Stream, cdf: npt.NDArray[np.uint32]) -> Coder:
    constriction = pytest.importorskip("constriction")
    probabilities = (np.diff(cdf.astype(np.int64), axis=1) / 2.0**20).astype(np.float32)
    family = constriction.stream.model.Categorical(perfect=False)
    symbols = stream.symbols.astype(np.int32)

    def encode() -> npt.NDArray[np.uint32]:
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(symbols, family, probabilities)
        return encoder.get_compressed()

    def decode(data: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        return constriction.stream.queue.RangeDecoder(data).decode(family, probabilities)

    return encode, decode, lambda data: 32 * len(data)


def peers(stream: Stream) -> dict[str, Coder]:
    cdf = stream.cdf()
    return {"torchac": torchac_coder(stream, cdf), "constriction": constriction_coder(stream, cdf)}


# ---- as a script -------------------------------------------------------------------------------------------


def median_seconds(call: Callable[[], Any], repeats: int, seconds: float = 1.0) -> float:
    """Median over `repeats` calls, fewer if they would take longer than `seconds`, but at least 3."""
    times: list[float] = []
    while len(times) < 3 or (len(times) < repeats and sum(times) < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(name: str, coder: Coder, stream: Stream, ideal_bits: float) -> tuple[float, float]:
    """Prints one line; returns encode and decode speed in Msym/s."""
    encode, decode, num_bits = coder
    data = encode()
    np.testing.assert_array_equal(decode(data), stream.symbols)
    n = len(stream.symbols)
    speeds = n / median_seconds(encode, 25) / 1e6, n / median_seconds(lambda: decode(data), 25) / 1e6
    over = 100 * (num_bits(data) / ideal_bits - 1)
    print(f"{name:<28} {n:>9} {speeds[0]:>9.1f} {speeds[1]:>9.1f} {num_bits(data) / n:>9.3f} {over:>+9.3f} %")
    return speeds


def ideal_bits(stream: Stream) -> float:
    encoder = core.RangeEncoder()
    encoder.push_mixture(stream.symbols, *stream.args)
    return float(encoder.ideal_bits)


def head() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, one thread, medians")
    print(f"{'':<28} {'symbols':>9} {'encode':>9} {'decode':>9} {'bit/sym':>9} {'over ideal':>11}")
    print(f"{'':<28} {'':>9} {'Msym/s':>9} {'Msym/s':>9}")


def against_peers(stream: Stream) -> None:
    """One line for every path of ours with the lanes it chooses, one for every peer, and the ratios."""
    ideal = ideal_bits(stream)
    best = {cpu: measure(f"ours {cpu}, lanes chosen", ours(stream, cpu), stream, ideal) for cpu in CPUS}
    others = [measure(name, coder, stream, ideal) for name, coder in peers(stream).items()]
    for cpu, speeds in best.items():
        ratios = [speed / max(other[i] for other in others) for i, speed in enumerate(speeds)]
        print(f"{cpu} against the faster peer, same symbols: encode {ratios[0]:.0f}x, decode {ratios[1]:.0f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=1 << 22)
    parser.add_argument("--peer-symbols", type=int, default=1 << 17)
    parser.add_argument("--picture", type=Path, help="time the real streams of this picture instead")
    parser.add_argument("--bpp", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--model", default="l2c-default")
    args = parser.parse_args()
    head()
    if args.picture:
        for bpp in args.bpp:
            stream, lanes = picture_stream(args.picture, bpp, args.model)
            print(f"{args.picture.name} at {bpp} bpp, K = {len(stream.weights)}, {lanes} lanes chosen")
            for cpu in CPUS:
                measure(f"ours {cpu}, whole stream", ours(stream, cpu), stream, ideal_bits(stream))
            against_peers(stream.head(args.peer_symbols))
        return
    stream = synthetic_stream(args.symbols)
    for cpu in CPUS:
        for lanes in LANES:
            measure(f"ours {cpu}, {lanes} lanes", ours(stream, cpu, lanes), stream, ideal_bits(stream))
    against_peers(stream.head(args.peer_symbols))


# ---- as pytest benchmarks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stream() -> Stream:
    return synthetic_stream(1 << 20)


@pytest.fixture(scope="module")
def few(stream: Stream) -> Stream:
    return stream.head(1 << 16)


@pytest.fixture(scope="module")
def peer_coders(few: Stream) -> dict[str, Coder]:
    return peers(few)


def run(benchmark: Any, what: str, coder: Coder, stream: Stream) -> None:
    torch.set_num_threads(1)  # torchac must not use more threads than we do
    encode, decode, num_bits = coder
    try:
        data = encode()
        symbols = decode(benchmark(encode)) if what == "encode" else benchmark(decode, data)
    finally:
        core.set_cpu("")
    np.testing.assert_array_equal(symbols, stream.symbols)
    benchmark.extra_info["bits_per_symbol"] = num_bits(data) / len(stream.symbols)
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_symbol"] = 1e9 * benchmark.stats["median"] / len(stream.symbols)


@pytest.mark.parametrize("what", ["encode", "decode"])
@pytest.mark.parametrize("lanes", [64, 8])
@pytest.mark.parametrize("cpu", CPUS)
def test_ours(benchmark: Any, stream: Stream, cpu: str, lanes: int, what: str) -> None:
    run(benchmark, what, ours(stream, cpu, lanes), stream)


@pytest.mark.parametrize("what", ["encode", "decode"])
@pytest.mark.parametrize("name", ["torchac", "constriction"])
def test_peers(benchmark: Any, few: Stream, peer_coders: dict[str, Coder], name: str, what: str) -> None:
    run(benchmark, what, peer_coders[name], few)


if __name__ == "__main__":
    main()
