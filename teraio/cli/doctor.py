"""``teraio doctor``: what this machine can do, and what is missing.

In: folders. Out: a table or JSON; exit code 1 where something can't work. Must not know: how
anything is checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from teraio.records import Hardware

_EXAMPLES = """
[bold]Examples[/bold]

  teraio doctor

  teraio doctor /mnt/nvme0 /mnt/nvme1 -o this.hardware

  teraio doctor --json | jq '.checks[] | select(.status != "ok")'
"""
_FOUND_SOMETHING = 1


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("doctor", epilog=_EXAMPLES)(_doctor)


def _doctor(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="One per drive; default: $TERAIO_SSD, else the user's cache."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Save the measured machine, for plan --hardware."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 for warn and missing, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False,
) -> None:
    """Check this machine: software, memory, drives and GPUs, with remedies.

    The exit code is 1 where something can't work.
    """
    from teraio.cli.console import notes, out, write
    from teraio.cli.inputs import check_output
    from teraio.doctor import diagnose
    from teraio.engine.folders import spill_folders
    from teraio.reports.as_json import as_json
    from teraio.reports.health import health_text

    if output is not None:
        check_output(output)
    with notes().status("teraio: looking at this machine"):
        examined = spill_folders(folders or None, what="FOLDERS")
        found = diagnose(examined)
    saved = "" if output is None else _saved(found.hardware, examined, output)
    worst = found.worst()
    if json:
        write(as_json(found))
        if saved:
            notes().print(saved, markup=False)
    else:
        out().print(health_text(found.checks, worst))
        if saved:
            out().print(f"\n{saved}", markup=False)
    if worst == "fail" or (strict and worst != "ok"):
        raise typer.Exit(_FOUND_SOMETHING)


def _saved(hardware: Hardware | None, folders: list[Path], output: Path) -> str:
    """Saves the machine, and says which of the folders it lacks."""
    from teraio.files import save

    if hardware is None:
        return f"not saved: {output}, as no folder could be measured"
    save(hardware, output)
    measured = {folder.folder for tier in hardware.tiers for folder in tier.folders}
    missing = ", ".join(str(folder) for folder in folders if str(folder) not in measured)
    return f"saved: {output}{f' (without {missing})' if missing else ''}"
