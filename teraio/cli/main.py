"""The tool's commands, and what becomes of errors.

In: the command line. Out: an exit code: 0, 1 where a check found something, 2 for bad input. Must
not know: what the commands do. Everything heavy is imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from teraio import __version__
from teraio.cli import compare, doctor, inspect, plan, profile, report, top
from teraio.cli.script import INTERRUPTED
from teraio.errors import TeraioError

BAD_INPUT = 2

app = typer.Typer(
    name="teraio",
    help="Train PyTorch models under a memory budget: see where memory goes, plan, explain.",
    epilog="Start with: [bold]teraio profile train.py[/bold], then "
    "[bold]teraio inspect train.trace[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
profile.add_to(app)
inspect.add_to(app)
plan.add_to(app)
compare.add_to(app)
report.add_to(app)
top.add_to(app)
doctor.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"teraio {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command of ``sys.argv`` and leaves the process with its exit code."""
    try:
        app(prog_name="teraio")
    except TeraioError as error:
        _leave(f"teraio: {error}")
    except BrokenPipeError:  # such as ``teraio inspect run.trace | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        _leave(f"teraio: {where}{error.strerror or error}.")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _leave(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.exit(BAD_INPUT)
