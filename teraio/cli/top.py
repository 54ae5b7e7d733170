"""``teraio top``: a running job, live.

In: a PID or a folder. Out: a screen that follows the run; one text into a pipe. Must not know: what
is shown.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from teraio.status import RunStatus

_EXAMPLES = """
[bold]Examples[/bold]

  teraio top

  teraio top 12345

  teraio top /mnt/nvme0 --json | jq '.[0].steps[-1].stall_s'
"""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("top", epilog=_EXAMPLES)(_top)


def _top(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="PID|FOLDER", help="The process of the run, or a folder that it spills to."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and leave.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    json: Annotated[
        bool, typer.Option("--json", help="JSON for programs, once: a list of runs.")
    ] = False,
) -> None:
    """Watch a running job: phase, step time, memory, bandwidth, stalls, drift."""
    from teraio.cli.console import out, write
    from teraio.reports.as_json import as_json
    from teraio.reports.live import live_text, runs_text
    from teraio.status import runs

    found = [status for status in runs() if run is None or _is_meant(status, run)]
    if not found:
        from teraio.errors import ConfigurationError

        raise ConfigurationError(
            f"no run of this user {'is alive' if run is None else f'belongs to {run}'}; a run "
            "shows up after its first iteration."
        )
    if json:
        write(as_json(found))
    elif len(found) > 1:
        out().print(runs_text(found))
    elif once or not out().is_terminal:
        out().print(live_text(found[0]))
    else:
        _follow(found[0], interval)


def _is_meant(status: RunStatus, run: str) -> bool:
    if run.isdigit() and not Path(run).is_dir():
        return status.pid == int(run)
    folder = Path(run).resolve()
    return folder in {Path(other).resolve() for other in status.folders}


def _follow(status: RunStatus, interval: float) -> None:
    from rich.live import Live

    from teraio.cli.console import out
    from teraio.reports.live import live_text
    from teraio.status import runs

    with Live(live_text(status), console=out(), auto_refresh=False) as screen:
        while True:
            time.sleep(interval)
            now = next((other for other in runs() if other.pid == status.pid), None)
            if now is None:
                break
            screen.update(live_text(now), refresh=True)
    out().print("the run has ended")
