"""``teraio profile``: records what a training script does with memory.

In: a script and its arguments. Out: a trace file and a summary. Must not know: how it is recorded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

_EXAMPLES = """
[bold]Examples[/bold]

  teraio profile train.py --batch-size 8

  teraio profile -o run.trace --budget 8GiB --iterations 3 train.py

  teraio profile -m my_package.train --epochs 1
"""


_OPTIONS = {"-o", "--output", "--budget", "--ssd", "--iterations", "--to-end"}


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    settings = {"ignore_unknown_options": True, "allow_interspersed_args": False}
    app.command("profile", epilog=_EXAMPLES, context_settings=settings)(_profile)


def _profile(
    script: Annotated[str, typer.Argument(help="The training script, which needs no change.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS...", help="Arguments of the script.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The trace file; default: named after the script."),
    ] = None,
    module: Annotated[
        bool, typer.Option("-m", help="SCRIPT names a module, as for python -m.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Keep tensors within this memory meanwhile: 8GiB, or 60% of the machine's. "
            "Default: no limit, nothing moves."
        ),
    ] = None,
    ssd: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Where storages spill to; one folder per drive."),
    ] = None,
    iterations: Annotated[
        int, typer.Option(min=2, help="How many to watch; the last one is recorded.")
    ] = 3,
    to_end: Annotated[
        bool, typer.Option("--to-end", help="Let the script go on after it is recorded.")
    ] = False,
) -> None:
    """Run a training script and record one iteration as a trace.

    The script runs as it is. It ends once an iteration is recorded, or goes on with --to-end. All
    that comes after SCRIPT is for the script.
    """
    from teraio.cli.console import notes, out
    from teraio.cli.inputs import check_folders, check_output
    from teraio.cli.script import Script
    from teraio.engine.folders import spill_folders
    from teraio.errors import BudgetError, ConfigurationError
    from teraio.profiler.hardware import memory_bytes
    from teraio.sizes import parse_size

    target = Script(script, tuple(arguments or ()), module)
    path = output or Path(f"{target.stem}.trace")
    check_output(path, *([] if module else [Path(script)]))
    if ssd and budget is None:
        raise ConfigurationError("--ssd goes with --budget; without one nothing moves.")
    budget_bytes = None
    if budget is not None:
        budget_bytes = parse_size(budget, whole=memory_bytes(), what="--budget")
        if not budget_bytes:
            raise ConfigurationError(f"--budget={budget!r} is nothing; pass what tensors may take.")
    folders = spill_folders(ssd or None, what="--ssd")
    check_folders(folders, allow_tmpfs=budget is None)
    notes().print(f"teraio: loading PyTorch, then running {target.title}", style="dim")

    import teraio
    from teraio.files import save

    code, process = 0, os.getpid()
    try:
        with teraio.profile(
            memory_budget=budget_bytes,
            ssd=folders,
            iterations=iterations,
            stop=not to_end,
        ) as run:
            code = target.run()
    except BudgetError as error:
        raise BudgetError(str(error).replace("memory_budget=", "--budget=")) from None
    if os.getpid() != process:  # forked off by the script, whose end this is
        raise typer.Exit(code)
    if run.trace is None:
        notes().print(_nothing_recorded(len(run.report().steps), iterations, code), markup=False)
        notes().print(_behind(target.arguments), markup=False, end="")
        raise typer.Exit(code or 1)
    save(run.trace, path)

    from teraio.reports.overview import overview
    from teraio.reports.profile_text import profile_text

    out().print(profile_text(overview(run.trace), run.report(), path))
    raise typer.Exit(code)


def _behind(arguments: Sequence[str]) -> str:
    """What to say of options of teraio that the script got."""
    names = {argument.partition("=")[0] for argument in arguments} & _OPTIONS
    if not names:
        return ""
    return (
        f"{', '.join(sorted(names))} came after the script, which got it; options of teraio go "
        "before it.\n"
    )


def _nothing_recorded(iterations: int, wanted: int, code: int) -> str:
    from teraio.cli.script import INTERRUPTED

    if code == INTERRUPTED:
        return f"teraio: interrupted after {iterations} of {wanted} iterations, no trace."
    if code:
        return f"teraio: the script failed after {iterations} iterations, so there is no trace."
    if iterations:
        return (
            f"teraio: the script ended after {iterations} of {wanted} iterations, so there is no "
            "trace; let it train longer."
        )
    return (
        "teraio: the script ended without an iteration. An iteration is a call of a torch module "
        "with parameters, followed by the step of an optimizer of torch.optim."
    )
