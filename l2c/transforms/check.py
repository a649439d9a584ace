"""Whether networks keep the contract of `base`: tried on random pictures, before a run of training and at export."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from l2c.errors import ConfigError
from l2c.transforms.adaptation import Adaptation
from l2c.transforms.base import Decoder, Encoder, Transform, num_biases
from l2c.transforms.modulators import condition

_TOLERANCE = 1e-3  # of the largest output: convolutions of other sizes add up in another order


@torch.no_grad()
def check_contract(transform: Transform) -> None:
    """Raises ConfigError, naming the family and the part, where E or D does not do what `base` says.

    Checked are types, shapes, dtypes, finite values, both halos, that changes of all biases reach D, and that there are
    as many modulators as D asks for. Networks are in training or evaluation mode as they come; on the CPU, in float32.
    """
    config, family = transform.config, f"networks {transform.config.family!r}"
    parts: tuple[tuple[str, nn.Module, type[nn.Module], tuple[str, ...]], ...] = (
        ("encoder", transform.encoder, Encoder, ("receptive_halo_px", "importance")),
        ("decoder", transform.decoder, Decoder, ("receptive_halo_px", "mods")),
    )
    for name, part, kind, attributes in parts:
        if not isinstance(part, kind):
            raise ConfigError(f"{family}: the {name} is a {type(part).__name__}, no {kind.__name__}")
        for attribute in attributes:
            if not hasattr(part, attribute):
                raise ConfigError(f"{family}: the {name} has no attribute {attribute!r}")
    s, c = config.s, config.c
    generator = torch.Generator().manual_seed(0)
    cond = condition(torch.tensor([0.002, 0.05]), torch.tensor([0.0, 1.0]))
    z = torch.randint(-9, 10, (2, c, 3, 5), generator=generator).float()
    with _naming(f"{family}: the encoder"):
        _check_encoder(transform, torch.rand(2, 3, 3 * s, 5 * s, generator=generator), cond)
    with _naming(f"{family}: the decoder"):
        _check(transform.decoder(z, cond), (2, 3, 3 * s, 5 * s), "pictures")
        _check_adaptation(transform, z, cond)
    with _naming(f"{family}: the encoder"):
        _check_halo(transform.encoder.receptive_halo_px, s, lambda x: transform.encoder(x, cond[:1])[0], 3, s, 1)
    with _naming(f"{family}: the decoder"):
        _check_halo(
            transform.decoder.receptive_halo_px, s, lambda x: transform.decoder(18.0 * x - 9.0, cond[:1]), c, 1, s
        )


@contextlib.contextmanager
def _naming(part: str) -> Iterator[None]:
    """Puts the name of a part before what is wrong with it, its own errors included."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{part} {error}") from None
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise ConfigError(f"{part} fails ({type(error).__name__}: {error})") from error


def _check_encoder(transform: Transform, x: Tensor, cond: Tensor) -> None:
    result = transform.encoder(x, cond)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ConfigError(f"returns {type(result).__name__}; expected (latents, importance map)")
    y, tau = result
    n, (rows, columns) = len(x), (side // transform.s for side in x.shape[2:])
    _check(y, (n, transform.config.c, rows, columns), "latents")
    if (tau is None) != (transform.encoder.importance is None):
        raise ConfigError("gives an importance map where `importance` is None, or the reverse")
    if tau is not None:
        _check(tau, (n, 1, rows, columns), "importance maps")
        if float(tau.min()) < 0.0 or float(tau.max()) > 1.0:
            raise ConfigError("gives importance maps beyond 0..1")


def _check(found: Tensor, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape) != shape or found.dtype != torch.float32:
        got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"gives {what} of {got}; expected torch.float32 {list(shape)}")
    if not bool(found.isfinite().all()):
        raise ConfigError(f"gives {what} that are not finite")


def _check_adaptation(transform: Transform, z: Tensor, cond: Tensor) -> None:
    decoder = transform.decoder
    biases = torch.zeros(len(z), num_biases(decoder))
    if not _equal(
        decoder(z, cond, Adaptation(cond[:, None].repeat(1, len(decoder.mods), 1), biases)), decoder(z, cond)
    ):
        raise ConfigError("gives other pictures under changes by nothing")
    if not biases.shape[1]:
        return
    with torch.enable_grad():
        changes = biases.requires_grad_()
        (slope,) = torch.autograd.grad(decoder(z, cond, Adaptation(biases=changes)).square().sum(), changes)
    asked = int(slope.abs().sum(dim=0).nonzero().max()) + 1 if bool((slope != 0).any()) else 0
    if asked < biases.shape[1]:
        raise ConfigError(
            f"has convolutions with {biases.shape[1]} biases, but changes of {asked} of them have an effect: the "
            "output of each goes through the adapter, in the order in which they run, or it has bias=False"
        )


def _check_halo(halo: int, s: int, network: Callable[[Tensor], Tensor], channels: int, places: int, gives: int) -> None:
    """What lies further from the middle than the halo must not matter there.

    Args:
        network: [1, channels, h, w] in [0, 1] -> [1, ..., h', w'], with `places` inputs and `gives` outputs a side for
            each latent.
    """
    generator = torch.Generator().manual_seed(1)
    reach = -(-halo // s)
    middle, side = reach + 3, 2 * reach + 7  # in latents: three more than is seen on each side
    x, other = (torch.rand(1, channels, side * places, side * places, generator=generator) for _ in range(2))
    seen = slice((middle - reach) * places, (middle + 1 + reach) * places)
    other[:, :, seen, seen] = x[:, :, seen, seen]
    here = slice(middle * gives, (middle + 1) * gives)
    if not _equal(*(network(part)[:, :, here, here] for part in (x, other))):
        raise ConfigError(f"sees further than its receptive_halo_px of {halo}: seams would show in large pictures")


def _equal(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() <= _TOLERANCE * first.abs().max().clamp_min(1e-6))
