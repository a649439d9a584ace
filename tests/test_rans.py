"""The C++ range coder and its probability model, against plain Python integers; every instruction set, both ways."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from l2c import ops
from l2c.errors import BackendError, BitstreamError
from l2c.ops import reference

core = ops.cpp_extension()

CPUS = [name for name in ("scalar", "avx2", "avx512", "neon") if core.cpu_has(name)]
LANES = (1, 2, 4, 8, 16, 32, 64)
WEIGHT_SUM = 65520
U8, U16, I16 = npt.NDArray[np.uint8], npt.NDArray[np.uint16], npt.NDArray[np.int16]
U32, I32 = npt.NDArray[np.uint32], npt.NDArray[np.int32]


@pytest.fixture(autouse=True)
def _detected_cpu() -> Iterator[None]:
    yield
    core.set_cpu("")


# ---- the definition in plain Python integers ---------------------------------------------------------------


def params_reference(
    raw: I16, K: int, cg: int, exp_table: U16, inv_table: U16, valid: U8 | None
) -> tuple[U16, I16, U16]:
    """`mixture_params` of the extension, which can leave out cells, in numpy integers."""
    return reference.mixture_params(raw if valid is None else raw[valid != 0], K, cg, exp_table, inv_table)


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0, after github.com/Cyan4973/xxHash/doc/xxhash_spec.md."""
    p1, p2, p3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
    p4, p5, wrap = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5, (1 << 64) - 1

    def rotl(x: int, n: int) -> int:
        return (x << n | x >> (64 - n)) & wrap

    def step(acc: int, word: int) -> int:
        return rotl((acc + word * p2) & wrap, 31) * p1 & wrap

    h, at = p5, 0
    if len(data) >= 32:
        acc = [(p1 + p2) & wrap, p2, 0, -p1 & wrap]
        for at in range(0, len(data) - 31, 32):
            acc = [step(a, int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little")) for i, a in enumerate(acc)]
        at += 32
        h = sum(rotl(a, n) for a, n in zip(acc, (1, 7, 12, 18))) & wrap
        for a in acc:
            h = ((h ^ step(0, a)) * p1 + p4) & wrap
    h = (h + len(data)) & wrap
    for i in range(at, len(data) - 7, 8):
        h = (rotl(h ^ step(0, int.from_bytes(data[i : i + 8], "little")), 27) * p1 + p4) & wrap
    at = len(data) // 8 * 8
    if len(data) - at >= 4:
        h = (rotl(h ^ (int.from_bytes(data[at : at + 4], "little") * p1 & wrap), 23) * p2 + p3) & wrap
        at += 4
    for byte in data[at:]:
        h = rotl(h ^ (byte * p5 & wrap), 11) * p1 & wrap
    h = (h ^ h >> 33) * p2 & wrap
    h = (h ^ h >> 29) * p3 & wrap
    return h ^ h >> 32


class PlainDecoder:
    """A second decoder, written from the format at the head of csrc/core/rans.h alone."""

    def __init__(self, data: bytes) -> None:
        self.lanes = 1 << data[0]
        at = 1 + 6 * self.lanes
        self.states = [int.from_bytes(data[i : i + 6], "little") for i in range(1, at, 6)]
        self.words = [int.from_bytes(data[i : i + 2], "little") for i in range(at, len(data), 2)]
        self.lane, self.hashed = 0, b""

    def symbol(self, start: Callable[[int], int], size: int) -> int:
        """The s < size with start(s) <= slot < start(s + 1)."""
        x = self.states[self.lane]
        slot = x % (1 << 20)
        s = next(s for s in range(size) if start(s) <= slot < start(s + 1))
        x = (start(s + 1) - start(s)) * (x >> 20) + slot - start(s)
        while x < 1 << 32:
            x = x << 16 | self.words.pop(0)
        self.states[self.lane] = x
        self.lane = (self.lane + 1) % self.lanes
        return s

    def pop_mixture(self, weights: U16, means: I16, inv_scales: U16, bits: int) -> U8:
        columns = [[column.tolist() for column in part.T] for part in (weights, means, inv_scales)]
        out = bytes(
            self.symbol(lambda i, w=w, m=m, v=v: reference.mixture_cdf(i, w, m, v, bits), 1 << bits)  # type: ignore[misc]
            for w, m, v in zip(*columns)
        )
        self.hashed += out
        return np.frombuffer(out, np.uint8)

    def pop_table(self, cdf: U32, cdf_sizes: I32, indexes: I32, precision: int) -> I32:
        rows = [[value << (20 - precision) for value in row] for row in cdf.tolist()]
        out = [self.symbol(rows[t].__getitem__, int(cdf_sizes[t]) - 1) for t in indexes]
        self.hashed += np.array(out, "<i4").tobytes()
        return np.array(out, np.int32)

    def uniform(self, n: int) -> int:
        if n <= 1024:
            return self.symbol(lambda s: (s << 20) // n, n)
        if n & (n - 1) == 0:  # the symbol is the slot's upper bits: found at once
            shift = 21 - n.bit_length()
            top = self.states[self.lane] % (1 << 20) >> shift
            return top + self.symbol(lambda s: (s + top) << shift, 1)
        r = max(0, (n - 1).bit_length() - 10)
        q = self.symbol(lambda q: (min(q << r, n) << 20) // n, -(-n >> r))
        return q << r | self.uniform(min(1 << r, n - (q << r)))

    def pop_uniform(self, count: int, n: int) -> U32:
        out = np.array([self.uniform(n) for _ in range(count)], "<u4")
        self.hashed += out.tobytes()
        return out

    def pop_raw(self, count: int, num_bits: int) -> U32:
        values = []
        for _ in range(count):
            high = self.uniform(1 << (num_bits - 16)) if num_bits > 16 else 0
            values.append(high << 16 | self.uniform(1 << min(num_bits, 16)))
        self.hashed += np.array(values, "<u4").tobytes()
        return np.array(values, np.uint32)

    def finish(self) -> None:
        assert not self.words
        assert self.states == [(1 << 32) + xxh64(self.hashed) % (1 << 32)] + [1 << 32] * (self.lanes - 1)


# ---- inputs ------------------------------------------------------------------------------------------------


@dataclass
class Mixture:
    """Parameters [K, n] as the coder takes them."""

    weights: U16
    means: I16
    inv_scales: U16
    bits: int

    def args(self, start: int = 0, stop: int | None = None) -> tuple[U16, I16, U16, int]:
        parts = (self.weights, self.means, self.inv_scales)
        w, m, v = (np.ascontiguousarray(part[:, start:stop]) for part in parts)
        return w, m, v, self.bits

    def cdf(self, edges: npt.ArrayLike) -> U32:
        return core.mixture_cdf(np.asarray(edges, np.int32), *self.args())


def make_mixture(n: int, K: int, bits: int, seed: int, *, extreme: bool = False) -> Mixture:
    """Random parameters; `extreme` ones reach every corner of their formats."""
    rng = np.random.default_rng(seed)
    if extreme:
        shares = rng.random((K, n)) ** rng.choice([1.0, 8.0, 100.0], (1, n))
        means = rng.choice([-32768, 32767, 0, -64], (K, n))
        means = np.where(rng.random((K, n)) < 0.7, rng.integers(-32768, 32768, (K, n)), means)
        inv_scales = np.floor(2.0 ** rng.uniform(0, 15, (K, n)))
    else:
        shares = rng.gamma(1.0, 1.0, (K, n))
        means = 128 * (rng.normal(0, 25, (1, n)) + rng.normal(0, 1.5, (K, n)))
        inv_scales = 1024 / (2.4 * 2.0 ** rng.uniform(-1, 1, (K, n)))
    weights = np.floor(shares / np.maximum(shares.sum(axis=0), 1e-300) * WEIGHT_SUM).astype(np.int64)
    weights[0] += WEIGHT_SUM - weights.sum(axis=0)
    return Mixture(
        weights.astype(np.uint16),
        np.clip(means, -32768, 32767).astype(np.int16),
        np.clip(inv_scales, 1, 32767).astype(np.uint16),
        bits,
    )


def sample_symbols(p: Mixture, seed: int) -> U8:
    """Symbols drawn from the mixture itself, by bisection in C."""
    n = p.weights.shape[1]
    slots = np.random.default_rng(seed).integers(0, 1 << 20, n)
    low = np.zeros(n, np.int32)
    for bit in reversed(range(p.bits)):
        low += np.where(p.cdf(low + (1 << bit)) <= slots, 1 << bit, 0).astype(np.int32)
    return low.astype(np.uint8)


def push_of(symbols: U8, p: Mixture) -> Callable[[Any], None]:
    """A push for `encode`."""
    return lambda encoder: encoder.push_mixture(symbols, *p.args())


def lcg(n: int, modulus: int, seed: int) -> npt.NDArray[np.int64]:
    """The same numbers below `modulus` in every numpy version."""
    state, out = seed, []
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        out.append((state >> 33) % modulus)
    return np.array(out, np.int64)


class MixedStream:
    """Pushes of all four kinds, in an order that leaves rows of lanes incomplete, and the pops that undo them."""

    def __init__(self, n: int = 300, seed: int = 1) -> None:
        def numbers(count: int, modulus: int, salt: int) -> npt.NDArray[np.int64]:
            return lcg(count, modulus, 100 * seed + salt)

        K = 3
        self.mixtures, self.symbols = [], []
        for part, bits in enumerate((8, 5, 1)):
            w = numbers(K * n, 20000, 10 + part).reshape(K, n)
            w[0] = WEIGHT_SUM - w[1:].sum(axis=0)
            m = (numbers(K * n, 4000, 20 + part) - 2000).reshape(K, n)
            v = (numbers(K * n, 900, 30 + part) + 50).reshape(K, n)
            self.mixtures.append(Mixture(w.astype(np.uint16), m.astype(np.int16), v.astype(np.uint16), bits))
            spread = numbers(n, 1 << bits, 40 + part) // 8 + (1 << bits) * 7 // 16
            self.symbols.append(np.minimum(spread, (1 << bits) - 1).astype(np.uint8))
        self.cdf = np.zeros((3, 6), np.uint32)
        self.cdf[0] = (0, 1, 2, 1000, 60000, 65536)
        self.cdf[1, :3] = (0, 65000, 65536)
        self.cdf[2, :5] = (0, 0, 30000, 30000, 65536)  # symbols 0 and 2 never happen
        self.cdf_sizes = np.array([6, 3, 5], np.int32)
        self.indexes = numbers(n, 3, 50).astype(np.int32)
        table_symbols = np.array([[4, 3, 2], [0, 0, 1], [1, 3, 3]])
        self.table_symbols = table_symbols[self.indexes, numbers(n, 3, 51)].astype(np.int32)
        self.uniforms = [
            (size, numbers(n // 4, size, 60 + i).astype(np.uint32))
            for i, size in enumerate((1, 2, 3, 255, 256, 1000, 1024, 1025, 65536, 1000003, 1 << 20))
        ]
        self.raws = [
            (b, (numbers(n // 4, 1 << 31, 80 + b) * 2 % (1 << b)).astype(np.uint32)) for b in (0, 1, 8, 16, 17, 32)
        ]

    def push(self, encoder: Any) -> None:
        encoder.push_mixture(self.symbols[0], *self.mixtures[0].args())
        encoder.push_raw(self.raws[1][1][:7], 1)
        encoder.push_mixture(self.symbols[1], *self.mixtures[1].args())
        encoder.push_table(self.table_symbols, self.cdf, self.cdf_sizes, self.indexes, 16)
        for size, values in self.uniforms:
            encoder.push_uniform(values, size)
        for num_bits, values in self.raws:
            encoder.push_raw(values, num_bits)
        encoder.push_mixture(self.symbols[2], *self.mixtures[2].args())

    def pop(self, decoder: Any) -> None:
        """Raises AssertionError where a symbol differs; does not call finish."""
        # Other pieces than those pushed: states and lanes go on across calls.
        for start, stop in ((0, 1), (1, 130), (130, None)):
            got = decoder.pop_mixture(*self.mixtures[0].args(start, stop))
            np.testing.assert_array_equal(got, self.symbols[0][start:stop])
        np.testing.assert_array_equal(decoder.pop_raw(7, 1), self.raws[1][1][:7])
        np.testing.assert_array_equal(decoder.pop_mixture(*self.mixtures[1].args()), self.symbols[1])
        got = decoder.pop_table(self.cdf, self.cdf_sizes, self.indexes, 16)
        np.testing.assert_array_equal(got, self.table_symbols)
        for size, values in self.uniforms:
            np.testing.assert_array_equal(decoder.pop_uniform(len(values), size), values)
        for num_bits, values in self.raws:
            np.testing.assert_array_equal(decoder.pop_raw(len(values), num_bits), values)
        np.testing.assert_array_equal(decoder.pop_mixture(*self.mixtures[2].args()), self.symbols[2])

    def pop_all(self, data: bytes) -> None:
        """Decodes without comparing, as a caller with a damaged stream would."""
        decoder = core.RangeDecoder(data)
        decoder.pop_mixture(*self.mixtures[0].args())
        decoder.pop_raw(7, 1)
        decoder.pop_mixture(*self.mixtures[1].args())
        decoder.pop_table(self.cdf, self.cdf_sizes, self.indexes, 16)
        for size, values in self.uniforms:
            decoder.pop_uniform(len(values), size)
        for num_bits, values in self.raws:
            decoder.pop_raw(len(values), num_bits)
        decoder.pop_mixture(*self.mixtures[2].args())
        decoder.finish()


def encode(push: Callable[[Any], None], lanes: int = 0) -> bytes:
    encoder = core.RangeEncoder()
    push(encoder)
    return encoder.finish(lanes)


# ---- sigma and C -------------------------------------------------------------------------------------------


def test_sigma_all_inputs() -> None:
    table = core.sigma_table().astype(np.int64)
    z = np.arange(-32768, 32768)
    assert table.shape == (65536,)
    assert (np.diff(table) >= 0).all()
    assert (table + table[::-1] == 65536).all()
    assert table.tolist() == [reference.sigma(int(value)) for value in z]
    # z is rounded down to an integer, so it stands for z + 1/2.
    assert np.abs(table - 65536 / (1 + np.exp(-(z + 0.5) / 2048))).max() < 7.4
    assert np.abs(table - 65536 / (1 + np.exp(-z / 2048))).max() < 11.4


@pytest.mark.parametrize("cpu", CPUS)
def test_sigma_all_inputs_in_each_path(cpu: str) -> None:
    """One component with v = 32 has z = d, so moving the mean tries every z within reach of int16 means."""
    core.set_cpu(cpu)
    means = np.arange(-32768, 32768).astype(np.int16)
    n = len(means)
    table = core.sigma_table().astype(np.int64)
    for edge in (128, 1, 255):
        ones = np.ones((1, n), np.uint16)
        p = Mixture(ones * np.uint16(WEIGHT_SUM), means[None], ones * np.uint16(32), 8)
        z = np.clip(64 * (2 * edge - 257) - means.astype(np.int64), -32768, 32767)
        want = ((WEIGHT_SUM * table[z + 32768]) >> 16 << 4) + edge
        np.testing.assert_array_equal(p.cdf(np.full(n, edge)), want)


@pytest.mark.parametrize("bits", range(1, 9))
def test_cdf_is_the_reference_and_increases(bits: int) -> None:
    count, edges = 24, np.arange((1 << bits) + 1)
    for K in (1, 3, 5, 8):
        for extreme in (False, True):
            few = make_mixture(count, K, bits, 10 * bits + K, extreme=extreme)
            each = [np.repeat(part, len(edges), axis=1) for part in (few.weights, few.means, few.inv_scales)]
            p = Mixture(each[0], each[1], each[2], bits)
            want = [
                reference.mixture_cdf(
                    int(i), few.weights[:, j].tolist(), few.means[:, j].tolist(), few.inv_scales[:, j].tolist(), bits
                )
                for j in range(0, count, 3)
                for i in edges
            ]
            for cpu in CPUS:
                core.set_cpu(cpu)
                got = p.cdf(np.tile(edges, count)).reshape(count, -1).astype(np.int64)
                assert got[::3].ravel().tolist() == want
                assert (got[:, 0] == 0).all() and (got[:, -1] == 1 << 20).all()
                assert (np.diff(got, axis=1) > 0).all()


# ---- round trips -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", LANES)
def test_mixed_stream_every_path_both_ways(lanes: int) -> None:
    stream = MixedStream()
    encoded = {}
    for cpu in CPUS:
        core.set_cpu(cpu)
        encoded[cpu] = encode(stream.push, lanes)
    assert len(set(encoded.values())) == 1
    for cpu in CPUS:
        core.set_cpu(cpu)
        decoder = core.RangeDecoder(encoded[cpu])
        assert decoder.lanes == lanes
        stream.pop(decoder)
        decoder.finish()


def test_format_by_a_second_decoder() -> None:
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"abc") == 0x44BC2CF5AD770999
    assert xxh64(b"Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1
    stream = MixedStream(48)
    for lanes in (1, 8, 64):
        decoder = PlainDecoder(encode(stream.push, lanes))
        stream.pop(decoder)
        decoder.finish()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("extreme", [False, True])
def test_mixture_round_trip_every_path(bits: int, extreme: bool) -> None:
    """Also symbols of the least probability, which take two words."""
    for K in (1, 2, 3, 4, 5, 8):
        n = 1500 + K
        p = make_mixture(n, K, bits, 100 * bits + K, extreme=extreme)
        symbols = sample_symbols(p, K)
        symbols[::5] = np.random.default_rng(K).integers(0, 1 << bits, len(symbols[::5]))
        for lanes in LANES:
            streams = []
            for cpu in CPUS:
                core.set_cpu(cpu)
                streams.append(encode(push_of(symbols, p), lanes))
            assert len(set(streams)) == 1
            for cpu in CPUS:
                core.set_cpu(cpu)
                decoder = core.RangeDecoder(streams[0])
                np.testing.assert_array_equal(decoder.pop_mixture(*p.args()), symbols)
                decoder.finish()


def test_small_and_empty_pushes() -> None:
    empty = core.RangeDecoder(encode(lambda encoder: None))
    empty.finish()
    p = make_mixture(200, 4, 8, 5)
    symbols = sample_symbols(p, 5)
    for lanes in LANES:
        encoder = core.RangeEncoder()
        for j in range(200):
            encoder.push_mixture(symbols[j : j + 1], *p.args(j, j + 1))
            encoder.push_mixture(symbols[:0], *p.args(0, 0))
            encoder.push_raw(np.zeros(0, np.uint32), 8)
        decoder = core.RangeDecoder(encoder.finish(lanes))
        assert decoder.pop_raw(0, 8).shape == (0,)
        np.testing.assert_array_equal(decoder.pop_mixture(*p.args()), symbols)
        decoder.finish()


GOLDEN_SMALL = (
    "017afe3f374a09e6ad318d3f0360b0d6b27ba10a3c12eaab84da004d3f7efc30be16bee070ce335b3def6addcd454a0d40398b42ff"
)
GOLDEN_MIXED = {1: "43958e84a24c480c", 8: "2244b4ba899c30b8", 64: "6437afb5351accee"}  # lanes: SHA-256, first half


@pytest.mark.parametrize("cpu", CPUS)
def test_golden_bytes(cpu: str) -> None:
    """Streams of one version must decode for ever: a change here is a change of the format."""
    core.set_cpu(cpu)
    stream = MixedStream(40, seed=9)
    p, symbols = stream.mixtures[0], stream.symbols[0]
    assert encode(push_of(symbols, p), 2).hex() == GOLDEN_SMALL
    decoder = core.RangeDecoder(bytes.fromhex(GOLDEN_SMALL))
    np.testing.assert_array_equal(decoder.pop_mixture(*p.args()), symbols)
    decoder.finish()
    for lanes, digest in GOLDEN_MIXED.items():
        assert hashlib.sha256(encode(MixedStream().push, lanes)).hexdigest().startswith(digest)


def test_decoding_takes_the_data_as_any_buffer() -> None:
    stream = MixedStream(30)
    data = encode(stream.push)
    for form in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        stream.pop_all(form)
    with pytest.raises(ValueError, match="buffer of bytes"):
        core.RangeDecoder(np.zeros(40, np.uint16))


# ---- rate --------------------------------------------------------------------------------------------------


def test_overhead_on_a_large_stream() -> None:
    n = 1_000_000
    p = make_mixture(n, 2, 8, 3)
    symbols = sample_symbols(p, 3)
    encoder = core.RangeEncoder()
    encoder.push_mixture(symbols, *p.args())
    start = p.cdf(symbols.astype(np.int32)).astype(np.float64)
    freq = p.cdf(symbols.astype(np.int32) + 1) - start
    ideal = float(np.sum(20 - np.log2(freq)))
    assert encoder.ideal_bits == pytest.approx(ideal, rel=1e-12)
    for lanes in LANES:
        bits = 8 * len(encoder.finish(lanes))
        assert bits <= 1.0005 * ideal + 8 + 48 * lanes
    decoder = core.RangeDecoder(encoder.finish())
    np.testing.assert_array_equal(decoder.pop_mixture(*p.args()), symbols)
    decoder.finish()


@pytest.mark.parametrize("size", [1, 3, 1000, 1025, 5000, 1000003, 1 << 20])
def test_uniform_costs_log2_of_its_size(size: int) -> None:
    symbols = (np.arange(20000, dtype=np.uint64) * 2654435761 % size).astype(np.uint32)
    encoder = core.RangeEncoder()
    encoder.push_uniform(symbols, size)
    assert encoder.ideal_bits == pytest.approx(20000 * math.log2(size), rel=1e-4)


@pytest.mark.parametrize("n", [0, 10, 3000, 5000, 10000, 20000, 60000, 200000])
def test_lane_rule(n: int) -> None:
    """The largest power of two whose flush is at most 0.3 % of the stream, within the estimate's 1 %."""
    p = make_mixture(n, 1, 8, n)
    symbols = sample_symbols(p, n)
    encoder = core.RangeEncoder()
    encoder.push_mixture(symbols, *p.args())
    data = encoder.finish()
    lanes = 1 << data[0]
    allowed = 0.003 * encoder.ideal_bits / 48
    assert lanes == 1 or lanes <= 1.01 * allowed
    assert lanes == 64 or 2 * lanes > 0.99 * allowed


# ---- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("lanes", [1, 8, 64])
def test_every_prefix_is_refused(cpu: str, lanes: int) -> None:
    core.set_cpu(cpu)
    stream = MixedStream(70)
    data = encode(stream.push, lanes)
    for size in range(len(data)):
        with pytest.raises(BitstreamError):
            stream.pop_all(data[:size])
    for tail in (b"\0", b"\0\0", b"\1\2\3\4", bytes(1000)):
        with pytest.raises(BitstreamError):
            stream.pop_all(data + tail)
    stream.pop_all(data)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("lanes", [1, 4, 32])
def test_every_flipped_bit_is_refused(cpu: str, lanes: int) -> None:
    """Raw bits, uniform and equally likely symbols too, whose change the lane states alone would miss."""
    core.set_cpu(cpu)
    stream = MixedStream(60)
    data = encode(stream.push, lanes)
    assert len(data) > 300
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            stream.pop_all(bytes(damaged))


@pytest.mark.parametrize("cpu", CPUS)
def test_flipped_bits_of_a_large_mixture_stream(cpu: str) -> None:
    core.set_cpu(cpu)
    n = 8000
    flat = Mixture(np.full((1, n), WEIGHT_SUM, np.uint16), np.zeros((1, n), np.int16), np.ones((1, n), np.uint16), 8)
    rng = np.random.default_rng(8)
    for p in (make_mixture(n, 3, 8, 8), flat):  # flat: 256 symbols of nearly the same frequency
        symbols = sample_symbols(p, 8)
        data = encode(push_of(symbols, p))
        for bit in rng.integers(0, 8 * len(data), 200).tolist():
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BitstreamError):
                decoder = core.RangeDecoder(bytes(damaged))
                decoder.pop_mixture(*p.args())
                decoder.finish()


def test_random_bytes_are_refused() -> None:
    rng = np.random.default_rng(4)
    stream = MixedStream(20)
    for _ in range(300):
        data = rng.integers(0, 256, rng.integers(0, 300), np.uint8)
        if len(data):
            data[0] %= 7
        with pytest.raises(BitstreamError):
            stream.pop_all(data.tobytes())


def test_finish_too_early_and_after_an_error() -> None:
    p = make_mixture(100, 2, 8, 6)
    symbols = sample_symbols(p, 6)
    data = encode(push_of(symbols, p))
    decoder = core.RangeDecoder(data)
    decoder.pop_mixture(*p.args(0, 50))
    with pytest.raises(BitstreamError):
        decoder.finish()
    with pytest.raises(BitstreamError, match="has failed before"):
        decoder.pop_mixture(*p.args(50, 100))
    # Other parameters than the encoder's: garbage, but an error at the end.
    decoder = core.RangeDecoder(data)
    with pytest.raises(BitstreamError):
        decoder.pop_mixture(*make_mixture(100, 2, 8, 7).args())
        decoder.finish()


# ---- arguments ---------------------------------------------------------------------------------------------


def test_arguments_of_mixtures() -> None:
    p = make_mixture(100, 3, 5, 2)
    w, m, v, bits = p.args()
    symbols = np.zeros(100, np.uint8)
    encoder = core.RangeEncoder()

    def refused(match: str, *args: Any) -> None:
        with pytest.raises(ValueError, match=match):
            encoder.push_mixture(*args)
        if args[1] is not w or args[2] is not m or args[3] is not v or args[4] != bits:
            with pytest.raises(ValueError, match=match):
                core.RangeDecoder(data).pop_mixture(*args[1:])

    data = encode(push_of(symbols, p))
    refused("symbols must", symbols.astype(np.int32), w, m, v, bits)
    refused("symbols must", symbols.tolist(), w, m, v, bits)
    refused("symbols must", np.zeros(200, np.uint8)[::2], w, m, v, bits)
    refused("symbols must have 100 entries", symbols[:99], w, m, v, bits)
    refused("2\\^bits", symbols + np.uint8(32), w, m, v, bits)
    refused("weights must", symbols, w.astype(np.int16), m, v, bits)
    refused("weights must", symbols, np.asfortranarray(w), m, v, bits)
    refused("weights must", symbols, w.astype(">u2"), m, v, bits)
    refused("weights must", symbols, w[0], m, v, bits)
    refused("means must", symbols, w, m.astype(np.float32), v, bits)
    refused("one shape", symbols, w, m[:2], v, bits)
    refused("one shape", symbols, w, m, np.ascontiguousarray(v[:, 1:]), bits)
    for bad in (0, 9, -1):
        refused("bits must be 1..8", symbols, w, m, v, bad)
    refused("1..8", symbols, *(np.repeat(part, 3, axis=0) for part in (w, m, v)), bits)
    refused("1..8", symbols, w[:0], m[:0], v[:0], bits)
    for at in (0, 50, 99):
        for cpu in CPUS:
            core.set_cpu(cpu)
            wrong = w.copy()
            wrong[1, at] += 1
            refused("sum to 65520", symbols, wrong, m, v, bits)
            for value in (0, 32768):
                wrong = v.copy()
                wrong[2, at] = value
                refused("1..32767", symbols, w, m, wrong, bits)
    encoder.push_mixture(symbols, *p.args())
    assert encoder.finish() == data  # what was refused left no trace
    with pytest.raises(ValueError, match="lanes"):
        encoder.finish(3)
    with pytest.raises(ValueError, match="lanes"):
        encoder.finish(128)
    with pytest.raises(ValueError, match=r"0\.\.2\^bits"):
        core.mixture_cdf(np.full(100, 33, np.int32), w, m, v, bits)


def test_arguments_of_the_other_kinds() -> None:
    encoder = core.RangeEncoder()
    cdf = np.array([[0, 10, 16], [0, 16, 0]], np.uint32)
    sizes, indexes = np.array([3, 2], np.int32), np.array([0, 1], np.int32)
    good = np.array([1, 0], np.int32)

    def refused(match: str, symbols: Any, *args: Any) -> None:
        with pytest.raises(ValueError, match=match):
            encoder.push_table(symbols, *args)

    refused("outside its table", np.array([2, 0], np.int32), cdf, sizes, indexes, 4)
    refused("outside its table", np.array([-1, 0], np.int32), cdf, sizes, indexes, 4)
    refused("frequency 0", good, np.array([[0, 16, 16], [0, 16, 0]], np.uint32), sizes, indexes, 4)
    refused("does not rise", good, cdf, sizes, indexes, 5)
    refused("does not rise", good, np.array([[0, 17, 16], [0, 16, 0]], np.uint32), sizes, indexes, 4)
    refused("does not rise", good, np.array([[1, 10, 16], [0, 16, 0]], np.uint32), sizes, indexes, 4)
    refused("size is not", good, cdf, np.array([4, 2], np.int32), indexes, 4)
    refused("size is not", good, cdf, np.array([3, 1], np.int32), indexes, 4)
    refused("index is out of range", good, cdf, sizes, np.array([0, 2], np.int32), 4)
    refused("precision", good, cdf, sizes, indexes, 21)
    refused("cdf must", good, cdf.astype(np.int32), sizes, indexes, 4)
    refused("one entry for each row", good, cdf, sizes[:1], indexes, 4)
    with pytest.raises(ValueError, match="index is out of range"):
        core.RangeDecoder(encoder.finish()).pop_table(cdf, sizes, np.array([-1], np.int32), 4)

    values = np.array([5], np.uint32)
    for size in (0, (1 << 20) + 1):
        with pytest.raises(ValueError, match="size of a uniform"):
            encoder.push_uniform(values, size)
        with pytest.raises(ValueError, match="size of a uniform"):
            core.RangeDecoder(encoder.finish()).pop_uniform(1, size)
    with pytest.raises(ValueError, match="not below size"):
        encoder.push_uniform(values, 5)
    with pytest.raises(ValueError, match="values must"):
        encoder.push_raw(values.astype(np.int64), 3)
    with pytest.raises(ValueError, match="does not fit"):
        encoder.push_raw(values, 2)
    with pytest.raises(ValueError, match=r"0\.\.32"):
        encoder.push_raw(values, 33)
    with pytest.raises(ValueError, match="negative"):
        core.RangeDecoder(encoder.finish()).pop_raw(-1, 3)
    assert encoder.ideal_bits == 0  # nothing was pushed


def test_cpu_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in CPUS:
        monkeypatch.setenv("L2C_CPU", cpu)
        assert core.cpu() == cpu
    monkeypatch.setenv("L2C_CPU", "mmx")
    with pytest.raises(BackendError, match="unknown CPU path 'mmx'"):
        core.cpu()
    with pytest.raises(BackendError):
        encode(push_of(np.zeros(1, np.uint8), make_mixture(1, 1, 8, 1)))
    core.set_cpu("scalar")  # goes before the variable
    assert core.cpu() == "scalar"
    with pytest.raises(BackendError):
        core.set_cpu("neon9")


def test_threads_code_at_the_same_time() -> None:
    """The GIL is released: threads with coders of their own do not disturb each other."""
    failures: list[str] = []

    def work(seed: int) -> None:
        p = make_mixture(30000, 3, 8, seed)
        symbols = sample_symbols(p, seed)
        for _ in range(3):
            decoder = core.RangeDecoder(encode(push_of(symbols, p)))
            if not np.array_equal(decoder.pop_mixture(*p.args()), symbols):
                failures.append(f"seed {seed}")
            decoder.finish()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---- network output -> parameters --------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("K", range(1, 9))
def test_mixture_params(cpu: str, K: int) -> None:
    core.set_cpu(cpu)
    rng = np.random.default_rng(K)
    falling = np.maximum(np.round(32768 * np.exp(-np.arange(256) / 20)), 0).astype(np.uint16)
    any_table = rng.integers(0, 65536, 256).astype(np.uint16)
    any_table[0] = 32768
    for cg in (1, 2, 3, 8, 17, 96):
        for n_cells in (0, 1, 2, 7, 130):
            for limit in (20, 300, 32768):
                raw = rng.integers(-limit, limit, (n_cells, 3 * K * cg)).astype(np.int16)
                exp_table = falling if limit == 20 else any_table
                inv_table = rng.integers(1, 32768, 256).astype(np.uint16)
                masks = (
                    None,
                    np.ones(n_cells, np.uint8),
                    (rng.random(n_cells) < 0.6).astype(np.uint8) * 255,
                    np.zeros(n_cells, np.uint8),
                )
                for valid in masks:
                    got = core.mixture_params(raw, K, cg, exp_table, inv_table, valid)
                    want = params_reference(raw, K, cg, exp_table, inv_table, valid)
                    for a, b in zip(got, want):
                        assert a.dtype == b.dtype and a.shape == b.shape
                        np.testing.assert_array_equal(a, b)
                    assert (got[0].sum(axis=0, dtype=np.int64) == WEIGHT_SUM).all()


@pytest.mark.parametrize("cpu", CPUS)
def test_mixture_params_quotients(cpu: str) -> None:
    """Divisions with and without remainder: 65520 e / sum for many sums, three components of any size."""
    core.set_cpu(cpu)
    rng = np.random.default_rng(1)
    inv_table = np.ones(256, np.uint16)
    for _ in range(40):
        exp_table = rng.integers(0, 65536, 256).astype(np.uint16)
        exp_table[0] = rng.choice([1, 2, 3, 4095, 21840, 32760, 32768, 65520, 65535])
        exp_table[128:] = exp_table[:128] // 2
        raw = rng.integers(-128, 128, (500, 9 * 4)).astype(np.int16)
        got = core.mixture_params(raw, 3, 4, exp_table, inv_table, None)
        want = params_reference(raw, 3, 4, exp_table, inv_table, None)
        np.testing.assert_array_equal(got[0], want[0])


def test_mixture_params_arguments() -> None:
    raw, table = np.zeros((5, 24), np.int16), np.full(256, 9, np.uint16)
    core.mixture_params(raw, 2, 4, table, table)
    cases = [
        (raw.astype(np.int32), 2, 4, table, table, None),
        (raw, 3, 4, table, table, None),
        (raw, 0, 4, table, table, None),
        (raw, 9, 4, table, table, None),
        (raw, 2, 0, table, table, None),
        (raw, 2, 4, table[:255], table, None),
        (raw, 2, 4, table, table.astype(np.int16), None),
        (raw, 2, 4, table * 0, table, None),
        (raw, 2, 4, table, table, np.ones(4, np.uint8)),
        (raw, 2, 4, table, table, np.ones(5, bool)),
    ]
    for case in cases:
        with pytest.raises(ValueError):
            core.mixture_params(*case)
