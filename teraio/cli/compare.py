"""``teraio compare``: where two plans, or a plan and a run, differ.

In: two files. Out: tables or JSON on standard output. Must not know: what is compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_EXAMPLES = """
[bold]Examples[/bold]

  teraio compare half.plan third.plan

  teraio compare run.plan run.report
"""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("compare", epilog=_EXAMPLES)(_compare)


def _compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A plan, or the report of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    json: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False,
) -> None:
    """Compare two plans, or a plan with what a run measured."""
    from teraio.cli.console import out, write
    from teraio.cli.inputs import load_subject
    from teraio.reports.as_json import as_json
    from teraio.reports.comparison import compare
    from teraio.reports.comparison_text import comparison_text

    facts = compare(load_subject(a), load_subject(b))
    if json:
        write(as_json(facts))
    else:
        out().print(comparison_text(facts))
