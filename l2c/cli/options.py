"""Options that several commands share. What is legal is the library's to say; here is only how it is spelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer

from l2c.codec.options import PRECISIONS
from l2c.errors import UnsupportedError
from l2c.format.levels import METRICS

_Number = TypeVar("_Number", int, float)


def flag(name: str) -> str:
    """An option of the library as the command line spells it: max_bytes, --max-bytes."""
    return f"--{name.replace('_', '-')}"


def one_of(names: Sequence[str], **details: Any) -> Any:
    """A typer option that takes one of some names, or is not given.

    Args:
        details: of `typer.Option`.
    """

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, names))}.")
        return value

    return typer.Option(metavar=f"<{'|'.join(names)}>", callback=check, **details)


Device = Annotated[str, typer.Option(help="Where the networks run: cpu, cuda, cuda:1, ...")]
Precision = Annotated[
    str,
    one_of(PRECISIONS, help="Of the networks. bfloat16 is faster on newer machines; pixels move by about a level."),
]
Metric = Annotated[
    str,
    one_of(
        list(METRICS),
        help="What bits are spent on: mixed, for eyes (luma and its structure); psnr and msssim, of RGB.",
    ),
]
Model = Annotated[str | None, typer.Option(help="Name or file of the model.", metavar="NAME|FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SkipExisting = Annotated[
    bool,
    typer.Option(
        "--skip-existing", help="Leave files alone whose output is there and whole: goes on with a stopped job."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", "-f", help="Replace files that exist.")]
Unlimited = Annotated[bool, typer.Option("--unlimited", help="Accept any size that a file names.")]


def check_usage(check: Callable[[], None]) -> None:
    """Ask the library whether options can be. Raises typer.BadParameter in the place of UnsupportedError."""
    try:
        check()
    except UnsupportedError as error:
        raise typer.BadParameter(str(error)) from None


def check_choice(overwrite: bool, skip_existing: bool) -> None:
    """Raises typer.BadParameter: both are given."""
    if overwrite and skip_existing:
        raise typer.BadParameter("give --overwrite or --skip-existing, not both")


def numbers(text: str, kind: type[_Number], what: str) -> list[_Number]:
    """A list such as "0.5,1,2". Raises UnsupportedError, which calls the option `what`."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UnsupportedError(f"{what} is {text!r}: it must be numbers with commas between them") from None


def names(text: str) -> list[str]:
    """A list such as "jpeg, webp"."""
    return [part.strip() for part in text.split(",") if part.strip()]
