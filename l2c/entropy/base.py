"""The contract of a family of entropy models: P, which says how likely every latent is.

A family has two forms of one model: floats, for gradients and estimates (`FloatModel`), and integers, for coding
(`EntropyModel`). Everything that decides a probability in the second is an integer, so that every machine decodes the
same latents; it can be computed by several backends, which all give the same integers. With the class of its
configurations (`ProbabilityConfig`) that is a family; docs/EXTENDING.md walks through a new one.
"""

from __future__ import annotations

import abc
import dataclasses
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from l2c.entropy.coder import (
    DecodingJob,
    Int16Array,
    Job,
    ObservingJob,
    Symbols,
    Tables,
    UInt8Array,
    UInt16Array,
)
from l2c.errors import BackendError
from l2c.format.levels import OperatingPoint
from l2c.registry import Registry, of_family

Check = Callable[[], None]  # waits for a device; raises BitstreamError where a stream was not valid


@dataclass(frozen=True)
class ProbabilityConfig:
    """What all families can be told.

    Attributes:
        family: the name under which the family is registered.
        former: keys that files of before say, with the values that mean what the family does: they are left out.
    """

    family: ClassVar[str]
    former: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def check(self, c: int) -> None:
        """Raises ConfigError where latents of c channels do not suit."""
        return

    @property
    def pairing(self) -> Mapping[str, Any]:
        """What E and D must be told likewise: `TransformConfig.pairing` of a model has to be equal."""
        return {}

    def networks(self) -> dict[str, Any]:
        """What a checkpoint has to agree in for its weights to fit: a table that can be compared."""
        return self.to_mapping()

    def to_mapping(self) -> dict[str, Any]:
        """A table for JSON, which `from_mapping` reads back."""
        return {"family": self.family, **dataclasses.asdict(self)}

    @classmethod
    def from_mapping(cls, data: Any, where: str) -> ProbabilityConfig:
        """Fill the configuration of the family that the table names. Raises ConfigError as `settings` does.

        A table that names none, as in files of before there were families, is the multi-scale model's.
        """
        if isinstance(data, dict) and "family" not in data:
            data = {"family": "multiscale", **data}
        config: ProbabilityConfig = of_family(FAMILIES, data, where)
        return config


@dataclass
class RateTerms:
    """The rate of latents, and all that a search among latents asks about it, per level (`2^(8-b)` of the latents).

    Attributes:
        bits: float32 [N], of each picture.
        rise, fall: float32 [N, c, h, w], change of a latent's own bits where it rises or falls by one level; infinite
            where there is no such level.
        slope: float32 [N, c, h, w], derivative of the bits of the latents that are coded after one, through what P
            makes of it; zero where nothing depends on it.
    """

    bits: Tensor
    rise: Tensor
    fall: Tensor
    slope: Tensor


class FloatModel(nn.Module, abc.ABC):
    """The float form: what the training, the adaptation and the rate estimates differentiate.

    Args:
        config: of the family. c: latent channels.
    """

    fake_quantise = False

    @abc.abstractmethod
    def num_bits(self, context: Tensor, target: Tensor, header: Tensor, inside: Tensor | None = None) -> Tensor:
        """Bits of each picture: float32 [N], differentiable in `context` and `target`.

        Args:
            context: float [N, c, h, w], the latents that distributions depend on (quantised, straight-through).
            target: float [N, c, h, w], the latents whose probability is asked (quantised, or with uniform noise).
            header: int64 [N, 3]: quality 0..1000, mu 0..8, b 1..8 per picture (`OperatingPoint`).
            inside: [N, 1, h, w] of 0/1 for pictures of different sizes in one batch; None: all inside.
        """

    @abc.abstractmethod
    def terms(self, z: Tensor, header: Tensor) -> RateTerms:
        """What a search asks at quantised latents z, float32 [N, c, h, w]; header as in `num_bits`."""

    @abc.abstractmethod
    def bit_map(self, z: Tensor, header: Tensor) -> Tensor:
        """Bits of all channels at each place, float64 [N, h, w], on z's device; arguments as in `terms`."""

    def rounded(self, y: Tensor, header: Tensor) -> Tensor:
        """Latents as the coder rounds them where Q leaves it to it (`Quantiser.is_final`), as nearly as floats tell.

        Args:
            y: float32 [N, c, h, w], before Q; header as in `num_bits`.
        """
        return y.round()

    def set_fake_quantise(self, on: bool) -> None:
        """Switch the integers' rounding of weights and activations on or off (quantisation-aware finishing).

        A family that overrides this sees to `fake_quantise` as well; others train without.
        """
        self.fake_quantise = on

    def move_range(self, old: tuple[float, float], new: tuple[float, float]) -> None:
        """The scale of qualities means another range of log lambda: adapt the weights to it, as well as they can be.

        Args:
            old, new: log lambda at quality 0 and at quality 1000.
        """
        return


class Backend(abc.ABC):
    """One way of computing the integers of a model.

    Attributes:
        name: as users ask for it.
        spoken: as a warning calls it that says what is used instead of another.
        cost: time per latent, the fastest on any CPU being 1: what a small file may ask for a second time is bounded.
        spare: the backend that codes what this one cannot, for its size or where its device fails; "" for none.
        instead: what "auto" goes on with, in turn, where this one computes something else than the definition.
        second: whom a failure to decode is shown to, in turn; nobody checks the definition.
        is_definition: the others are compared with it.
        asks: whether it asks jobs for each group, see `l2c.entropy.coder`; then it also reads `BeginningJob`s.
    """

    name: str
    spoken: str
    cost: int = 1
    spare: str = ""
    instead: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    is_definition = False
    asks = False

    def suits(self, device: torch.device) -> bool:
        """Whether "auto" may be this backend for such a device."""
        return True

    def unavailable(self, device: torch.device) -> str:
        """Why it does not run with tensors of a device; "" where it does."""
        return ""

    def takes(self, jobs: Sequence[Job]) -> bool:
        """Whether none of the jobs is too large for it."""
        return True

    @abc.abstractmethod
    def code(self, jobs: Sequence[Job], device: torch.device, threads: int) -> list[Symbols]:
        """Take jobs that use at least one channel to their end: symbols [c, height, width] of each.

        Raises:
            BackendError: it cannot run here. BitstreamError: a stream is not valid.
        """

    def queue(self, jobs: Sequence[DecodingJob], device: torch.device) -> tuple[list[Tensor], Check] | None:
        """Symbols [c, height, width] on the device, before any check; None where it cannot or the jobs are large.

        Work on them can be queued at once; nothing made of them may be handed out before the check has been called.
        """
        return None

    def prove(self, device: torch.device) -> None:
        """What the known answer does not cover, once per device. Raises BackendError where it is wrong."""
        return

    def explain(self, error: Exception) -> Exception:
        """The error to raise for one that `code` or `prove` ended with."""
        return error


class EntropyModel(abc.ABC):
    """The integer form: what codes a file.

    Attributes:
        c: latent channels.
        symbol_dtype: of the symbols of jobs: uint8 stands for (symbol - 2^(b-1)) 2^(8-b), int16 for itself.
    """

    symbol_dtype: ClassVar[type[np.uint8] | type[np.int16]] = np.uint8
    c: int

    @classmethod
    @abc.abstractmethod
    def from_float(cls, model: Any) -> EntropyModel:
        """The integers of the family's trained float form."""

    @abc.abstractmethod
    def to_float(self) -> FloatModel:
        """The float form, on the CPU, for gradients and for training on."""

    def num_parameters(self) -> int:
        """Weights and biases of P."""
        return sum(p.numel() for p in self.to_float().parameters())

    @classmethod
    @abc.abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], config: Any, c: int) -> EntropyModel:
        """Read what `to_tensors` gave, from a file that may come from anywhere.

        Raises:
            ModelMismatchError: something is missing, of another shape or type, or could overflow.
        """

    @abc.abstractmethod
    def to_tensors(self) -> dict[str, Tensor]:
        """All integers, for a model file."""

    @abc.abstractmethod
    def backends(self) -> Mapping[str, Backend]:
        """All ways of computing it, by name, in the order in which "auto" considers them."""

    @property
    def definition(self) -> str:
        """Name of the backend that the others are compared with."""
        return next(name for name, backend in self.backends().items() if backend.is_definition)

    def choose(self, name: str, device: torch.device | None = None) -> str:
        """Resolve "auto", and check that a backend asked for by name runs.

        "auto" is the first backend that suits the device (None: the CPU) and runs there. The environment variable
        L2C_BACKEND names another choice for "auto".

        Raises:
            BackendError: an unknown name, or a backend asked for by name that cannot run.
        """
        place, backends = _place(device), self.backends()
        if name == "auto":
            name = os.environ.get("L2C_BACKEND") or "auto"
        if name == "auto":
            suiting = (backend for backend in backends.values() if backend.suits(place))
            return next(backend.name for backend in suiting if not backend.unavailable(place))
        if name not in backends:
            raise BackendError(f"no integer backend is called {name!r}; there are {', '.join(('auto', *backends))}")
        reason = backends[name].unavailable(place)
        if reason:
            raise BackendError(reason)
        return name

    def chain(self, name: str, device: torch.device | None = None) -> tuple[str, ...]:
        """What to try for a name in turn until one gives the known answer; but for "auto" it is one.

        Errors: `choose`.
        """
        first = self.choose(name, device)
        return (first, *(self.backends()[first].instead if name == "auto" else ()))

    def second_opinions(self, name: str, most_cost: int | None = None) -> tuple[str, ...]:
        """Whom to ask in turn where a backend fails to decode, those of at most such a cost."""
        backends = self.backends()
        seconds = backends[name].second
        return tuple(other for other in seconds if most_cost is None or backends[other].cost <= most_cost)

    def code(
        self, jobs: Sequence[Job], backend: str = "auto", device: torch.device | None = None, threads: int = 1
    ) -> list[Symbols]:
        """Take jobs to their end.

        Args:
            jobs: pictures or tiles, of any sizes and kinds.
            backend: "auto" or a name, see `choose`.
            device: where backends compute that can choose; None for the CPU.
            threads: jobs at a time (several jobs) or threads per convolution (one job), on the CPU.
        Returns:
            symbols [c, height, width] of `symbol_dtype` per job; those of channels that are not coded stand for zero.
        Raises:
            BackendError: the backend cannot run here. BitstreamError: a stream is not valid.
        """
        place, backends = _place(device), self.backends()
        chosen = backends[self.choose(backend, place)]
        if not chosen.takes(jobs):
            chosen = backends[chosen.spare]
        # Where no channel is used, nothing is coded: P need not run to find that out.
        results = iter(chosen.code([job for job in jobs if job.used], place, threads))
        return [
            next(results)
            if job.used
            else np.full((self.c, job.height, job.width), self._zero(job.point), dtype=self.symbol_dtype)
            for job in jobs
        ]

    def _zero(self, point: OperatingPoint) -> int:
        """The symbol of the latent 0."""
        return 1 << (point.bits - 1) if self.symbol_dtype is np.uint8 else 0

    def known_answer(self, backend: str, device: torch.device | None = None) -> int:
        """CRC32 over all parameters of a fixed set of latents of two sizes: equal on every exact backend."""
        recorders = []
        jobs = []
        for height, width, quality, mu in ((21, 30, 333, 2), (9, 6, 910, 8)):
            n = np.arange(self.c * height * width, dtype=np.uint32).reshape(self.c, height, width)
            noise = (n * np.uint32(2654435761)) >> np.uint32(24)  # Knuth's multiplicative hash: any fixed pattern does
            spread = np.maximum(1, 64 >> np.minimum(6, np.arange(self.c) // 4))[:, None, None]
            symbols = (128 + (noise.astype(np.int64) % (2 * spread + 1)) - spread).astype(np.uint8)
            recorders.append(Recorder())
            jobs.append(ObservingJob(height, width, OperatingPoint(quality, mu, 8), self.c, symbols, recorders[-1]))
        self.code(jobs, backend, device)
        return zlib.crc32(b"".join(r.crc.to_bytes(4, "little") for r in recorders))

    def check(self, answer: int, backend: str, device: torch.device | None = None) -> None:
        """Compare a backend's known answer with the stored one. Raises BackendError: a mismatch, or it fails."""
        chosen = self.backends()[self.choose(backend, device)]
        try:
            got = self.known_answer(chosen.name, device)
            chosen.prove(_place(device))
        except Exception as error:
            explained = chosen.explain(error)
            if explained is error:
                raise
            raise explained from error
        if got != answer:
            raise BackendError(
                f"the {backend} backend computes other integers here than the model was exported with "
                f"(known answer {got:08x}, expected {answer:08x})"
            )

    def check_all(self, answer: int) -> list[str]:
        """Names of the backends that run on the CPU, all of which give the answer. Raises BackendError as `check`."""
        place = torch.device("cpu")
        running = [backend for backend in self.backends().values() if backend.is_definition or backend.suits(place)]
        names = [backend.name for backend in running if not backend.unavailable(place)]
        for name in names:
            self.check(answer, name)
        return names


def _place(device: torch.device | None) -> torch.device:
    return device if device is not None else torch.device("cpu")


class Recorder:
    """Keeps a running CRC32 of the parameters that it is shown."""

    def __init__(self) -> None:
        self.crc = 0

    def mixture(self, symbols: UInt8Array, weights: UInt16Array, means: Int16Array, inv_scales: UInt16Array) -> None:
        for array in (weights, means, inv_scales):
            self.crc = zlib.crc32(np.ascontiguousarray(array), self.crc)

    def table(self, symbols: UInt8Array, rows: npt.NDArray[np.int32], tables: Tables) -> None:
        for array in (tables.cdf, rows):
            self.crc = zlib.crc32(np.ascontiguousarray(array), self.crc)

    def raw(self, symbols: UInt8Array) -> None:
        pass


@dataclass(frozen=True)
class EntropyFamily:
    """A family as it is registered: the classes of its configurations and of its two forms.

    Attributes:
        grow: (older configuration, newer one, state dict of the float form for the older) -> state dict for the newer,
            that training can go on from; None where it cannot. No function: nothing but equal networks fit.
    """

    config: type[ProbabilityConfig]
    float_model: Callable[[Any, int], FloatModel]
    integer_model: type[EntropyModel]
    grow: Callable[[Any, Any, Mapping[str, Tensor]], dict[str, Tensor] | None] | None = None


FAMILIES: Registry[EntropyFamily] = Registry("family of entropy models", "l2c.entropy")
