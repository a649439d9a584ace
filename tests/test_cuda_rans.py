"""The CUDA range coder against the C++ one: the same kernels run in an emulation, and on a GPU where there is one.

`tests/cuda/emulation.h` makes plain C++ of csrc/cuda/rans.cu. The module that comes out has the real bindings, so that
here a numpy array is device memory.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from test_rans import Mixture, make_mixture, sample_symbols, xxh64

from l2c import ops
from l2c.errors import BackendError
from l2c.ops import extension

core = ops.cpp_extension()

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
FUNCTIONS = ("mixture_window", "rans_decode_mixture", "mixture_intervals", "rans_encode")
OK, BAD_SYMBOL, TRUNCATED, BAD_LAYOUT, NO_ROOM = 0, 1, 4, 5, 6
LANES = (1, 2, 4, 8, 16, 32, 64)
ONE = 1 << 20
Array = npt.NDArray[Any]


# ---- builds ------------------------------------------------------------------------------------------------


def compiler() -> list[str]:
    words = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(words[0]) is None:
        pytest.skip(f"no C++ compiler: {words[0]} is not on PATH")
    return words


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Output of a command that must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def load_module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def setup_module() -> Any:
    """setup.py, imported."""
    return load_module("l2c_setup", ROOT / "setup.py")


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """csrc/cuda/bindings.cpp, compiled once for all modules."""
    import pybind11

    target = tmp_path_factory.mktemp("bindings") / "bindings.o"
    includes = [f"-I{path}" for path in (CSRC, pybind11.get_include(), sysconfig.get_path("include"))]
    flags = ("-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
    run(*compiler(), *flags, *includes, "-c", CSRC / "cuda" / "bindings.cpp", "-o", target)
    return target


def build_emulation(bindings: Path, folder: Path, *flags: str) -> Path:
    """An emulated l2c._cuda. Raises AssertionError where the compiler does not like it."""
    header, target = ROOT / "tests" / "cuda" / "emulation.h", folder / "_cuda.so"
    common = ("-std=c++17", "-fPIC", "-g1", "-DL2C_CUDA_EMULATION", f"-I{CSRC}", "-include", header)
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
    source = ("-x", "c++", CSRC / "cuda" / "rans.cu", "-x", "none")
    run(*compiler(), *common, *warnings, *flags, "-shared", *source, bindings, "-o", target)
    return target


# ---- devices -----------------------------------------------------------------------------------------------


@dataclass
class Device:
    """Where the kernels run: `module` is l2c._cuda, or its emulation in the memory of this process."""

    module: Any
    emulated: bool

    def put(self, array: Array) -> Any:
        """A copy on the device."""
        if self.emulated:
            copy = array.copy()  # ends where its memory ends, so that AddressSanitizer sees every access beyond
            assert copy.ctypes.data % 16 == 0  # as malloc has it
            return copy
        # uint16 and uint32 tensors can do little: bytes, one at least so that there is an address.
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return torch.from_numpy(np.concatenate((flat, np.zeros(1, np.uint8)))).cuda(), array.dtype, array.shape

    def get(self, array: Any) -> Array:
        """Its present value."""
        if self.emulated:
            return array.copy()
        tensor, dtype, shape = array
        return tensor.cpu().numpy()[:-1].view(dtype).reshape(shape)

    def address(self, array: Any) -> int:
        return array.ctypes.data if self.emulated else array[0].data_ptr()

    def call(self, name: str, **arguments: Any) -> None:
        """One function of the module; arrays are given as put() returned them."""
        values = {key: value if isinstance(value, int) else self.address(value) for key, value in arguments.items()}
        getattr(self.module, name)(**values, device=0, stream=0)


@pytest.fixture(scope="session")
def emulation(bindings: Path, tmp_path_factory: pytest.TempPathFactory) -> Device:
    return Device(load_module("_cuda", build_emulation(bindings, tmp_path_factory.mktemp("emulation"), "-O1")), True)


@pytest.fixture(scope="session", params=["emulation", "gpu"])
def device(request: pytest.FixtureRequest) -> Device:
    if request.param == "emulation":
        return request.getfixturevalue("emulation")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    try:
        return Device(ops.cuda_extension(), False)
    except BackendError as error:
        pytest.skip(str(error))


# ---- streams -----------------------------------------------------------------------------------------------


@dataclass
class Part:
    """What one stream has in one group: a mixture (None: uniform) and symbols of `bits`."""

    mixture: Mixture | None
    symbols: Array
    bits: int

    @property
    def size(self) -> int:
        return len(self.symbols)


def mixture_part(n: int, K: int, bits: int, seed: int, *, extreme: bool = False, improbable: bool = False) -> Part:
    """n symbols of random mixtures; `improbable` ones are drawn without regard to them."""
    if n == 0:
        empty = np.zeros((K, 0), np.uint16)
        return Part(Mixture(empty, empty.astype(np.int16), empty, bits), np.zeros(0, np.uint8), bits)
    p = make_mixture(n, K, bits, seed, extreme=extreme)
    if improbable:
        return Part(p, np.random.default_rng(seed).integers(0, 1 << bits, n).astype(np.uint8), bits)
    return Part(p, sample_symbols(p, seed), bits)


def uniform_part(n: int, bits: int, seed: int) -> Part:
    return Part(None, np.random.default_rng(seed).integers(0, 1 << bits, n).astype(np.uint8), bits)


def encode(parts: Sequence[Part], lanes: int) -> bytes:
    """One stream by the C++ encoder."""
    encoder = core.RangeEncoder()
    for part in parts:
        if part.mixture is None:
            encoder.push_raw(part.symbols.astype(np.uint32), part.bits)
        else:
            encoder.push_mixture(part.symbols, *part.mixture.args())
    return encoder.finish(lanes)


def hash_of(parts: Sequence[Part]) -> int:
    """What the encoder adds to lane 0's start value: uniform symbols are hashed as four bytes each."""
    hashed = [part.symbols if part.mixture is not None else part.symbols.astype("<u4") for part in parts]
    return xxh64(b"".join(array.tobytes() for array in hashed)) % (1 << 32)


def final_states(parts: Sequence[Part], lanes: int) -> Array:
    states = np.zeros(64, np.int64)
    states[:lanes] = 1 << 32
    states[0] += hash_of(parts)
    return states


@dataclass
class Group:
    """One call's arrays [.., N, S]: parts of the streams, padded with numbers that must not matter."""

    parts: list[Part]
    capacity: int

    @property
    def num_mixtures(self) -> int:
        return 0 if self.parts[0].mixture is None else len(self.parts[0].mixture.weights)

    def arrays(self) -> dict[str, Array]:
        shape = (self.num_mixtures, len(self.parts), self.capacity)
        rng = np.random.default_rng(99)
        arrays: dict[str, Array] = {
            "weights": rng.integers(0, 65536, shape).astype(np.uint16),
            "means": rng.integers(-32768, 32768, shape).astype(np.int16),
            "inv_scales": rng.integers(0, 65536, shape).astype(np.uint16),
            "bits": np.array([part.bits for part in self.parts], np.int32),
            "count": np.array([part.size for part in self.parts], np.int32),
        }
        for i, part in enumerate(self.parts):
            if part.mixture is not None:
                for name in ("weights", "means", "inv_scales"):
                    arrays[name][:, i, : part.size] = getattr(part.mixture, name)
        return arrays

    def symbols(self, padding: int = 0) -> Array:
        out = np.full((len(self.parts), self.capacity), padding, np.uint8)
        for i, part in enumerate(self.parts):
            out[i, : part.size] = part.symbols
        return out


@dataclass
class Streams:
    """Encoded streams on a device, as the decoder takes them."""

    device: Device
    data: list[bytes]

    def __post_init__(self) -> None:
        self.lanes = np.array([1 << data[0] for data in self.data], np.int32)
        states = np.full((len(self.data), 64), 77, np.int64)  # 77: beyond the lanes
        words = [np.full(3, 0xABCD, np.uint16)]  # the streams' words start anywhere
        self.ends: list[tuple[int, int]] = []
        for i, (data, lanes) in enumerate(zip(self.data, self.lanes.tolist())):
            for lane in range(lanes):
                states[i, lane] = int.from_bytes(data[1 + 6 * lane : 7 + 6 * lane], "little")
            start = sum(map(len, words))
            words.append(np.frombuffer(data[1 + 6 * lanes :], np.uint16))
            self.ends.append((start, start + len(words[-1])))
        self.states = states
        self.words = np.concatenate(words)
        put = self.device.put
        self.arrays = {
            "lanes": put(self.lanes),
            "position": put(np.zeros(len(self.data), np.int64)),
            "states": put(states),
            "words": put(self.words),
            "next": put(np.array([start for start, _ in self.ends], np.int64)),
            "end": put(np.array([end for _, end in self.ends], np.int64)),
            "status": put(np.zeros(len(self.data), np.int32)),
        }

    def get(self, name: str) -> Array:
        return self.device.get(self.arrays[name])

    def decode(self, group: Group, **replaced: Array) -> Array:
        """Symbols uint8 [N, S] of a group; 200 where nothing was written. `replaced`: other arrays than the group's."""
        device, n, s = self.device, len(self.data), group.capacity
        g = {name: device.put(array) for name, array in {**group.arrays(), **replaced}.items()}
        sizes = {"num_streams": n, "capacity": s, "num_mixtures": group.num_mixtures}
        first, window = windows(device, group, g) if group.num_mixtures else (0, 0)
        symbols = device.put(np.full((n, s), 200, np.uint8))
        arrays = {**self.arrays, **g, "first": first, "window": window, "symbols": symbols}
        device.call("rans_decode_mixture", **arrays, **sizes, num_words=len(self.words))
        return device.get(symbols)


def windows(device: Device, group: Group, arrays: dict[str, Any]) -> tuple[Any, Any]:
    """first and window of a group, on the device."""
    shape = (len(group.parts), group.capacity)
    first, window = device.put(np.full(shape, -1, np.int16)), device.put(np.full((*shape, 16), 7, np.uint32))
    sizes = {"num_streams": shape[0], "capacity": shape[1], "num_mixtures": group.num_mixtures}
    device.call("mixture_window", **arrays, **sizes, first=first, window=window)
    return first, window


def check_decoding(device: Device, groups: Sequence[Group], lanes: Sequence[int]) -> None:
    """Encodes by the C++ coder, decodes on the device group by group."""
    streams = [[group.parts[i] for group in groups] for i in range(len(lanes))]
    coded = Streams(device, [encode(parts, n) for parts, n in zip(streams, lanes)])
    position = np.zeros(len(lanes), np.int64)
    for group in groups:
        np.testing.assert_array_equal(coded.decode(group), group.symbols(padding=200))
        position += [part.size for part in group.parts]
        np.testing.assert_array_equal(coded.get("position"), position)
    assert not coded.get("status").any()
    np.testing.assert_array_equal(coded.get("next"), coded.get("end"))
    for i, parts in enumerate(streams):
        want = final_states(parts, lanes[i])
        want[lanes[i] :] = 77
        np.testing.assert_array_equal(coded.get("states")[i], want)


# ---- windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extreme", [False, True])
def test_windows(device: Device, extreme: bool) -> None:
    """Every edge of a window, and the rule for its start, for all K and b."""
    for K in range(1, 9):
        group = Group([mixture_part(9 + bits, K, bits, 10 * K + bits, extreme=extreme) for bits in range(1, 9)], 20)
        arrays = group.arrays()
        first, window = (device.get(a) for a in windows(device, group, {k: device.put(a) for k, a in arrays.items()}))
        for i, part in enumerate(group.parts):
            assert part.mixture is not None
            p, n, d = part.mixture, part.size, 1 << (8 - part.bits)
            heaviest = p.weights.argmax(axis=0)
            mean = p.means[heaviest, np.arange(n)].astype(np.int64)
            level = (mean + 64 * 256 + 64 * d) // (128 * d)
            np.testing.assert_array_equal(first[i, :n], np.clip(level - 7, 0, max(0, (1 << part.bits) - 15)))
            for edge in range(16):
                at = np.minimum(first[i, :n].astype(np.int32) + edge, 1 << part.bits)
                np.testing.assert_array_equal(window[i, :n, edge], p.cdf(at))
            assert (first[i, n:] == -1).all() and (window[i, n:] == 7).all()


# ---- decoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", LANES)
def test_decode(device: Device, lanes: int) -> None:
    """Groups of every K with all b in one launch; sizes that leave rows incomplete, begin in the middle, or are 0."""
    rng = np.random.default_rng(lanes)
    groups = []
    for K in range(1, 9):
        sizes = rng.integers(0, 90, 8) * (rng.random(8) < 0.9)
        parts = [mixture_part(int(n), K, bits, 100 * K + bits) for bits, n in enumerate(sizes, start=1)]
        groups.append(Group(parts, 90))
    groups.insert(3, Group([uniform_part(bits * 9, bits, bits) for bits in range(1, 9)], 100))
    check_decoding(device, groups, [lanes] * 8)


def test_decode_different_lanes_together(device: Device) -> None:
    """One launch; long enough for every ring of the kernel (2048 words, 512 windows) to go round."""
    many_words = [mixture_part(2600 + 37 * i, 1, 8, i, improbable=True) for i in range(len(LANES))]
    assert min(len(encode([part], 1)) for part in many_words) > 2 * 2048
    few_words = [mixture_part(1500 - 37 * i, 3, 8, i) for i in range(len(LANES))]
    check_decoding(device, [Group(many_words, 2900), Group(few_words, 1500)], LANES)


@pytest.mark.parametrize("lanes", [1, 8, 32, 64])
def test_decode_outside_the_windows(device: Device, lanes: int) -> None:
    """Wide and two-humped mixtures: most slots lie outside, of many lanes at once."""
    parts = [mixture_part(300, 4, bits, bits, extreme=True) for bits in (8, 6, 5)]
    weights = np.zeros((4, 300), np.uint16)
    weights[2] = 65520
    flat = Mixture(weights, np.zeros((4, 300), np.int16), np.ones((4, 300), np.uint16), 8)
    parts.append(Part(flat, sample_symbols(flat, 1), 8))
    group = Group(parts, 300)
    first = device.get(windows(device, group, {name: device.put(a) for name, a in group.arrays().items()})[0])
    below, above = group.symbols() < first, group.symbols() >= first + 15
    assert below[3].mean() > 0.3 and above[3].mean() > 0.3 and (below | above)[0].mean() > 0.1
    check_decoding(device, [group], [lanes] * 4)


@pytest.mark.parametrize("lanes", [1, 16, 64])
def test_decode_two_words_a_symbol(device: Device, lanes: int) -> None:
    """Symbols of frequency 1..15: lanes that take no, one and two words in one row, 128 words in some rows."""
    group = Group([mixture_part(400, 2, bits, bits, improbable=True) for bits in (8, 7)], 400)
    p, symbols = group.parts[0].mixture, group.parts[0].symbols.astype(np.int32)
    assert p is not None
    freq = p.cdf(symbols + 1) - p.cdf(symbols)
    assert 0.2 < (freq < 16).mean() < 0.95
    sharp = make_mixture(600, 1, 8, 1)
    sharp.inv_scales[:] = 32767
    worst = Part(sharp, np.where(sharp.means[0] > 0, 0, 255).astype(np.uint8), 8)  # 17 to 20 bits every time
    assert len(encode([worst], 1)) > 600 * 17 // 8
    check_decoding(device, [group, Group([worst, worst], 600)], [lanes] * 2)


def test_threads_and_copies_in_any_order(emulation: Device) -> None:
    """Other orders of the threads, other times of the asynchronous copies than in the tests above."""
    set_seed = ctypes.CDLL(emulation.module.__file__).set_emulation_seed
    for seed in range(2, 6):
        set_seed(ctypes.c_uint64(seed))
        check_both_ways(emulation)


# ---- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 8, 64])
def test_truncated_streams(device: Device, lanes: int) -> None:
    """Their symbols are all 0 and they stay as they are; the stream beside them is decoded."""
    groups = [Group([mixture_part(700, 2, 8, 1)] * 5, 700), Group([mixture_part(500, 3, 8, 2)] * 5, 700)]
    data = encode([group.parts[0] for group in groups], lanes)
    num_words = (len(data) - 1 - 6 * lanes) // 2
    cuts = (0, 1, 40, num_words // 2 + 9, num_words)
    coded = Streams(device, [data[: len(data) - 2 * cut] for cut in cuts])
    before = {name: coded.get(name) for name in ("states", "next", "position")}
    failed = np.zeros(5, bool)
    for group in groups:
        got, status = coded.decode(group), coded.get("status")
        assert set(status.tolist()) <= {OK, TRUNCATED} and (status[failed] == TRUNCATED).all()
        failed = status == TRUNCATED
        n = group.parts[0].size
        np.testing.assert_array_equal(got[~failed], group.symbols(padding=200)[~failed])
        assert (got[failed, :n] == 0).all() and (got[failed, n:] == 200).all()
        for name, value in before.items():
            now = coded.get(name)
            np.testing.assert_array_equal(now[failed], value[failed])
            assert (now[~failed] != value[~failed]).any(axis=-1).all() if now.ndim > 1 else True
            before[name] = now
    np.testing.assert_array_equal(failed, [False, True, True, True, True])


def test_streams_in_error_and_impossible_layouts(device: Device) -> None:
    group = Group([mixture_part(60, 2, 8, i) for i in range(12)], 60)
    coded = Streams(device, [encode([part], 4) for part in group.parts])
    values = {name: coded.get(name) for name in ("lanes", "position", "next", "end", "status")}
    bits, count = group.arrays()["bits"], group.arrays()["count"]
    values["status"][1] = 3  # an error of any kind stays
    values["lanes"][2], values["lanes"][3] = 3, 128
    values["position"][4] = -1
    values["next"][5] = values["end"][5] + 1
    values["next"][6] = -1
    values["end"][7] = len(coded.words) + 1
    bits[8], bits[9] = 0, 9
    count[10], count[11] = -1, 61
    coded.arrays.update({name: device.put(value) for name, value in values.items()})
    got = coded.decode(group, bits=bits, count=count)
    np.testing.assert_array_equal(coded.get("status"), [0, 3] + [BAD_LAYOUT] * 10)
    np.testing.assert_array_equal(got[0], group.symbols()[0])
    assert (got[1:10] == 0).all() and (got[10] == 200).all() and (got[11] == 0).all()
    np.testing.assert_array_equal(coded.get("states")[1:], coded.states[1:])


def check_garbage(device: Device, rounds: int) -> None:
    """Random words, states, windows and parameters. No check of what comes out, but it comes out."""
    rng = np.random.default_rng(5)
    for n in range(rounds):
        K = int(rng.integers(0, 9))
        part = mixture_part(200, K, 8, n, extreme=True) if K else uniform_part(200, 1 + n % 8, n)
        group = Group([part] * len(LANES), 211)
        data = []
        for shift in range(7):
            body = rng.integers(0, 256, 6 << shift, np.uint8)
            words = rng.integers(0, 256, 2 * int(rng.integers(0, 400)), np.uint8)
            data.append(bytes([shift]) + body.tobytes() + words.tobytes())
        coded = Streams(device, data)
        if n % 3 == 1:  # states that no stream can have
            coded.arrays["states"] = device.put(rng.integers(0, 1 << 62, coded.states.shape).astype(np.int64))
        replaced = {}
        if K and n % 3 == 2:  # parameters that no mixture can have
            shape = (K, len(LANES), 211)
            replaced = {
                "weights": rng.integers(0, 65536, shape).astype(np.uint16),
                "inv_scales": rng.integers(0, 65536, shape).astype(np.uint16),
            }
        got, status = coded.decode(group, **replaced), coded.get("status")
        assert set(status.tolist()) <= {OK, TRUNCATED}
        assert (got[status == TRUNCATED, :200] == 0).all() and (got[:, 200:] == 200).all()
        assert (coded.get("next") <= coded.get("end")).all()


def test_garbage(device: Device) -> None:
    check_garbage(device, 12)


# ---- encoder -----------------------------------------------------------------------------------------------


def encode_on(device: Device, streams: Sequence[Sequence[Part]], lanes: Sequence[int], room: int) -> tuple[Any, ...]:
    """(streams as bytes, status, first word of each) by the device's encoder, group by group."""
    n, total = len(streams), np.array([sum(part.size for part in parts) for parts in streams], np.int64)
    most = int(total.max(initial=1))
    start, freq = device.put(np.zeros((n, most), np.uint32)), device.put(np.zeros((n, most), np.uint32))
    status, position = device.put(np.zeros(n, np.int32)), np.zeros(n, np.int64)
    for parts in zip(*streams):
        group = Group(list(parts), max(1, *(part.size for part in parts)))
        arrays = {name: device.put(array) for name, array in group.arrays().items()}
        sizes = {"num_streams": n, "capacity": group.capacity, "num_mixtures": group.num_mixtures}
        here = {"symbols": device.put(group.symbols()), "position": device.put(position), "status": status}
        device.call("mixture_intervals", **arrays, **here, **sizes, start=start, freq=freq, total_capacity=most)
        position = position + [part.size for part in parts]
    initial = np.stack([final_states(parts, count) for parts, count in zip(streams, lanes)])
    states, buffer = device.put(initial), device.put(np.full((n, room), 0xEEEE, np.uint16))
    first = device.put(np.zeros(n, np.int64))
    device.call(
        "rans_encode",
        lanes=device.put(np.array(lanes, np.int32)),
        total=device.put(total),
        start=start,
        freq=freq,
        states=states,
        buffer=buffer,
        first_word=first,
        status=status,
        num_streams=n,
        total_capacity=most,
        buffer_capacity=room,
    )
    out, words, begins = [], device.get(buffer), device.get(first)
    for i, count in enumerate(lanes):
        head = bytes([count.bit_length() - 1])
        head += b"".join(int(x).to_bytes(6, "little") for x in device.get(states)[i, :count])
        out.append(head + words[i, begins[i] :].tobytes())
        assert device.get(status)[i] != OK or (words[i, : begins[i]] == 0xEEEE).all()
    return out, device.get(status), begins, device.get(states), initial


@pytest.mark.parametrize("lanes", LANES)
def test_encode(device: Device, lanes: int) -> None:
    """Bytes equal to RangeEncoder's: every K and b, uniform symbols, symbols of two words, an empty stream."""
    streams = [
        [mixture_part(70 + K, K, 9 - K, K) for K in range(1, 3)],
        [mixture_part(200, 1, 8, 3), mixture_part(131, 2, 5, 4)],
        [mixture_part(100, 1, 8, 5, improbable=True), mixture_part(77, 2, 7, 6, improbable=True)],
        [mixture_part(50, 1, 6, 7, extreme=True), mixture_part(0, 2, 8, 8)],
        [mixture_part(0, 1, 8, 9), mixture_part(0, 2, 8, 10)],
    ]
    got, status, *_ = encode_on(device, streams, [lanes] * 5, 800)
    assert not status.any()
    assert got == [encode(parts, lanes) for parts in streams]


def test_encode_different_lanes_together(device: Device) -> None:
    streams = [[mixture_part(400 + 31 * i, 3, 8, i), uniform_part(10 * i, 3, i)] for i in range(len(LANES))]
    got, status, *_ = encode_on(device, streams, LANES, 2000)
    assert not status.any()
    assert got == [encode(parts, lanes) for parts, lanes in zip(streams, LANES)]


@pytest.mark.parametrize("lanes", [2, 64])
def test_encode_room(device: Device, lanes: int) -> None:
    """Just enough room, one word less, none: nothing is written elsewhere."""
    parts = [mixture_part(400, 2, 8, 1)]
    want = encode(parts, lanes)
    num_words = (len(want) - 1 - 6 * lanes) // 2
    assert encode_on(device, [parts], [lanes], num_words)[0] == [want]
    for room in (num_words - 1, 1, 0):
        _, status, first, states, initial = encode_on(device, [parts], [lanes], room)
        assert status.tolist() == [NO_ROOM] and first.tolist() == [room]
        np.testing.assert_array_equal(states, initial)


def test_encode_refuses(device: Device) -> None:
    """A symbol that is not below 2^b, a layout that cannot be; the streams beside are encoded."""
    good = [mixture_part(40, 2, 5, 1)]
    bad = [Part(good[0].mixture, np.where(np.arange(40) == 33, 32, good[0].symbols).astype(np.uint8), 5)]
    got, status, first, *_ = encode_on(device, [good, bad, good, good], [4, 4, 3, 128], 100)
    assert status.tolist() == [OK, BAD_SYMBOL, BAD_LAYOUT, BAD_LAYOUT] and first[1:].tolist() == [100] * 3
    assert got[0] == encode(good, 4)
    uniform = Part(None, np.array([3, 4], np.uint8), 2)
    assert encode_on(device, [[uniform]], [1], 10)[1].tolist() == [BAD_SYMBOL]


def test_encode_quotients(device: Device) -> None:
    """Any interval on any state, many at the edge of the next quotient: against Python integers."""
    rng = np.random.default_rng(2)
    lanes, rows, streams = 64, 12, 8
    freq = np.floor(2.0 ** rng.uniform(0, 20, (streams, rows * lanes))).astype(np.uint32)
    freq[:, ::7] = rng.choice(np.array([1, 2, 3, 15, 16, 17, (1 << 19) + 1, ONE - 1, ONE], np.uint32))
    freq[0, :lanes] = np.arange(1, lanes + 1)
    start = (rng.random(freq.shape) * (ONE - freq + 1)).astype(np.uint32)
    states = rng.integers(1 << 32, 1 << 48, (streams, 64)).astype(np.int64)
    last = freq[:, -lanes:].astype(np.int64)
    states -= np.where(rng.random(states.shape) < 0.8, states % last + rng.integers(0, 2, states.shape), 0)
    want_states, want_words = states.copy(), []
    for i in range(streams):
        words: list[int] = []
        for p in reversed(range(rows * lanes)):
            x, f = int(want_states[i, p % lanes]), int(freq[i, p])
            while x >= f << 28:
                words.append(x & 0xFFFF)
                x >>= 16
            want_states[i, p % lanes] = (x // f << 20) + x % f + int(start[i, p])
        want_words.append(words[::-1])
    room = 2 * rows * lanes
    arrays = {
        "lanes": np.full(streams, lanes, np.int32),
        "total": np.full(streams, rows * lanes, np.int64),
        "start": start,
        "freq": freq,
        "states": states,
        "buffer": np.zeros((streams, room), np.uint16),
        "first_word": np.zeros(streams, np.int64),
        "status": np.zeros(streams, np.int32),
    }
    put = {name: device.put(array) for name, array in arrays.items()}
    device.call("rans_encode", **put, num_streams=streams, total_capacity=rows * lanes, buffer_capacity=room)
    np.testing.assert_array_equal(device.get(put["states"]), want_states)
    for i, words in enumerate(want_words):
        assert device.get(put["buffer"])[i, device.get(put["first_word"])[i] :].tolist() == words


def check_both_ways(device: Device) -> None:
    """Streams of all lane counts, decoded and encoded."""
    parts = [mixture_part(300, 3, 8, i) for i in range(len(LANES))]
    extreme = [mixture_part(100 + i, 2, 1 + i, i, extreme=True) for i in range(len(LANES))]
    check_decoding(device, [Group(parts, 300), Group(extreme, 107)], LANES)
    streams = [list(pair) for pair in zip(parts, extreme)]
    assert encode_on(device, streams, LANES, 1500)[0] == [encode(s, lanes) for s, lanes in zip(streams, LANES)]


# ---- sanitizers --------------------------------------------------------------------------------------------


def test_no_access_out_of_bounds(bindings: Path, tmp_path: Path) -> None:
    """Garbage and good streams under AddressSanitizer and UndefinedBehaviorSanitizer."""
    probe = subprocess.run(
        [*compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not Path(probe).is_absolute():
        pytest.skip("the compiler has no AddressSanitizer that could be preloaded")
    flags = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
    module = build_emulation(bindings, tmp_path, *flags)
    # Python itself leaks; numpy's arrays are malloc's, with its red zones, and small ones must not come from a pool.
    env = {"LD_PRELOAD": probe, "ASAN_OPTIONS": "detect_leaks=0:use_sigaltstack=0", "PYTHONMALLOC": "malloc"}
    run(sys.executable, __file__, module, env=env)


# ---- module --------------------------------------------------------------------------------------------------


def test_arguments(device: Device) -> None:
    group = Group([mixture_part(10, 2, 8, 1)], 10)
    coded = Streams(device, [encode(group.parts, 1)])
    arrays = {name: device.put(array) for name, array in group.arrays().items()}
    first, window = windows(device, group, arrays)
    good = {**coded.arrays, **arrays, "first": first, "window": window, "symbols": device.put(group.symbols())}
    sizes = {"num_streams": 1, "capacity": 10, "num_mixtures": 2, "num_words": len(coded.words)}
    before = coded.get("states")

    def refused(match: str, **changed: int) -> None:
        with pytest.raises(ValueError, match=match):
            device.call("rans_decode_mixture", **{**good, **sizes, **changed})

    for name in (*coded.arrays, *arrays, "first", "window", "symbols"):
        refused(f"{name} must not be null", **{name: 0})
    refused("window must be aligned to 16", window=device.address(window) + 8)
    refused("words must be aligned to 16", words=device.address(coded.arrays["words"]) + 2)
    refused("states must be aligned to 8", states=device.address(coded.arrays["states"]) + 4)
    refused("num_mixtures must be 0..8, not 9", num_mixtures=9)
    refused("capacity", capacity=1 << 29)
    refused("capacity", capacity=-1)
    refused("num_streams", num_streams=-1)
    refused("num_words", num_words=-1)
    with pytest.raises(ValueError, match=r"num_mixtures must be 1\.\.8"):
        device.call("mixture_window", **arrays, first=first, window=window, num_streams=1, capacity=10, num_mixtures=0)
    with pytest.raises(TypeError):
        device.module.mixture_window(0)
    with pytest.raises(BackendError, match="device"):
        values = {name: device.address(array) for name, array in good.items()}
        device.module.rans_decode_mixture(**values, **sizes, device=99, stream=0)
    np.testing.assert_array_equal(coded.get("states"), before)
    device.call("rans_decode_mixture", **good, **{**sizes, "num_streams": 0})
    np.testing.assert_array_equal(coded.get("states"), before)


def test_constants(emulation: Device) -> None:
    module = emulation.module
    codes = (module.STATUS_BAD_SYMBOL, module.STATUS_TRUNCATED, module.STATUS_BAD_LAYOUT, module.STATUS_NO_ROOM)
    assert codes == (BAD_SYMBOL, TRUNCATED, BAD_LAYOUT, NO_ROOM) and module.WINDOW == 16
    for name in FUNCTIONS:
        assert getattr(module, name).__doc__


def test_extension_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """BackendError with the reason; the failure is remembered."""
    tries = []

    def refuse(name: str) -> Any:
        tries.append(name)
        raise ImportError("not built")

    extension.load_cuda.cache_clear()
    monkeypatch.setattr(importlib, "import_module", refuse)
    try:
        for _ in range(2):
            with pytest.raises(BackendError, match=r"l2c\._cuda does not load \(not built\).*L2C_CUDA=1"):
                ops.cuda_extension()
    finally:
        extension.load_cuda.cache_clear()
    assert tries == ["l2c._cuda"]


# ---- the build -----------------------------------------------------------------------------------------------


def test_cuda_variables(setup_module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value, wanted in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv("L2C_CUDA", value)
        assert setup_module.cuda_wanted() is wanted
    monkeypatch.setenv("L2C_CUDA", "yes")
    with pytest.raises(SystemExit, match="L2C_CUDA must be 0 or 1, not 'yes'"):
        setup_module.cuda_wanted()

    flags = setup_module.cuda_arch_flags("90; 80")
    codes = [flag.split("=", 2)[2] for flag in flags]
    assert codes == ["compute_90,code=sm_90", "compute_80,code=sm_80", "compute_90,code=compute_90"]
    assert len(setup_module.cuda_arch_flags(setup_module.CUDA_ARCHS)) == 5
    for bad in ("", "sm_90", "80,90"):
        with pytest.raises(SystemExit, match="L2C_CUDA_ARCH"):
            setup_module.cuda_arch_flags(bad)

    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no nvcc in CUDA_HOME"):
        setup_module.nvcc_path()
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no nvcc on PATH, and CUDA_HOME is not set"):
        setup_module.nvcc_path()
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    assert setup_module.nvcc_path() == str(nvcc)


def test_build(setup_module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    """setup.py's own build, for one kind of GPU: no spills, and a module that loads without a GPU."""
    from setuptools import Distribution

    try:
        setup_module.nvcc_path()
    except SystemExit as error:
        pytest.skip(str(error))
    monkeypatch.setenv("L2C_CUDA_ARCH", "90")
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-Xptxas -v")
    monkeypatch.setenv("CXXFLAGS", "-O0")  # of the bindings
    command = setup_module.NinjaBuild(Distribution({"ext_modules": [setup_module.cuda_extension()]}))
    command.build_lib, command.build_temp = str(tmp_path / "lib"), str(tmp_path / "temp")
    command.ensure_finalized()
    command.run()
    lines = capfd.readouterr().out.splitlines()
    frames = [line for line in lines if "spill stores" in line]
    assert len(frames) >= 6  # kernels, the two decoders and the encoder among them
    assert all("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in line for line in frames), frames
    (target,) = (tmp_path / "lib" / "l2c").iterdir()
    # In a process of its own: this one may hold an emulation under the same name.
    code = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('_cuda', sys.argv[1]);"
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(sorted(n for n in dir(m) if n[0].islower()))"
    )
    assert run(sys.executable, "-c", code, target).strip() == str(sorted(FUNCTIONS))


def _main() -> None:
    """What test_no_access_out_of_bounds runs in a process of its own: `test_cuda_rans.py MODULE`."""
    device = Device(load_module("_cuda", Path(sys.argv[1])), True)
    check_both_ways(device)
    check_garbage(device, 4)
    streams = [[mixture_part(400, 3, 8, 1)]] * len(LANES)
    for room in (0, 5):
        assert encode_on(device, streams, LANES, room)[1].tolist() == [NO_ROOM] * len(LANES)


if __name__ == "__main__":
    _main()
