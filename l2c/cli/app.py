"""All commands together, and what is the same for all of them: version, tracebacks, errors, exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import l2c
from l2c.cli import bench, bulk, decode, encode, evaluate, importing, info, models, train, verify
from l2c.cli.messages import (
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    USAGE,
    exit_code,
    message_of,
    say,
    show_tracebacks,
    show_warning,
)
from l2c.cli.terminal import open_streams

# typer carries click inside itself from 0.16 on, so the base class of its errors is only reached this way.
_UsageError: type[Any] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

app = typer.Typer(
    name="l2c",
    help="Compress pictures with the learned codec L2C, and restore them.",
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="eval", short_help="Measure codecs on your pictures.")(evaluate.evaluate_folder)
app.command(name="tables", short_help="The papers' tables on your pictures.")(evaluate.papers_tables)
app.command(name="compare", short_help="Write a page that compares files.")(evaluate.compare_files)
app.command(short_help="Compress a picture, or a folder of them.")(encode.encode)
app.command(short_help="Restore a picture, or a folder of them.")(decode.decode)
app.command(short_help="Show what a file's head says.")(info.info)
app.command(short_help="Check a file, print its latents' SHA-256.")(verify.verify)
app.command(short_help="List the models at hand.")(models.models)
app.command(name="import", short_help="Make a model of CompressAI's checkpoints.")(importing.import_checkpoints)
app.command(short_help="Measure how fast this machine is.")(bench.bench)
app.add_typer(bulk.app)
app.add_typer(train.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (see `l2c --help`) and never raises for bad input.

    Args:
        arguments: without the program's name; None: those of this process.
    """
    open_streams()
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            code = app(args=None if arguments is None else list(arguments), prog_name="l2c", standalone_mode=False)
            sys.stdout.flush()
            if code == INTERRUPTED:  # newer versions of typer return it
                say("error", "interrupted")
            return code if isinstance(code, int) else 0
        except _UsageError as error:
            say("error", error.format_message(), error)
            return USAGE
        except (KeyboardInterrupt, typer.Abort) as error:
            say("error", "interrupted", error)
            return INTERRUPTED
        except BrokenPipeError:
            # The reader has left; Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return FAILED
        except Exception as error:
            say("error", message_of(error), error)
            return exit_code(error)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"l2c {l2c.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="L2C_DEBUG", help="Show tracebacks.")] = False,
) -> None:
    show_tracebacks(debug)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(USAGE)
