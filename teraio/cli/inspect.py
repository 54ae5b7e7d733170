"""``teraio inspect``: where memory goes.

In: the command line. Out: tables or JSON on standard output. Must not know: how figures are found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_EXAMPLES = """
[bold]Examples[/bold]

  teraio inspect run.trace

  teraio inspect run.trace --tree --depth 3

  teraio inspect run.trace --tensor layers.0.mlp.up_proj.weight

  teraio inspect run.trace --json | jq .active_share
"""


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("inspect", epilog=_EXAMPLES)(_inspect)


def _inspect(
    file: Annotated[Path, typer.Argument(help="A trace, or a plan or report with a trace.")],
    tree: Annotated[bool, typer.Option("--tree", help="Memory at the peak by module.")] = False,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Levels of the tree; default: all.")
    ] = None,
    tensor: Annotated[
        str | None, typer.Option(metavar="NAME", help="The life of one tensor; part of its name.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False,
) -> None:
    """Show where memory goes and what could move."""
    from teraio.cli.console import out, write
    from teraio.cli.inputs import load_subject
    from teraio.errors import ConfigurationError
    from teraio.reports.as_json import as_json

    if tree and tensor is not None:
        raise ConfigurationError("--tree and --tensor show different things; pass one of them.")
    if depth is not None and not tree:
        raise ConfigurationError("--depth goes with --tree, whose levels it limits.")
    subject = load_subject(file)
    facts: Any
    if tensor is not None:
        from teraio.reports.life import find_storage, life, life_text

        facts = life(subject, find_storage(subject, tensor))
        render = life_text
    elif tree:
        from teraio.reports.module_tree import module_tree, tree_text

        facts = module_tree(subject.unlimited)

        def render(facts: Any) -> Any:
            return tree_text(facts, depth)
    else:
        from dataclasses import replace

        from teraio.reports.overview import overview
        from teraio.reports.overview_text import overview_text

        facts = replace(overview(subject.unlimited), telemetry=subject.telemetry)

        def render(facts: Any) -> Any:
            return overview_text(facts, subject.name)

    if json:
        write(as_json(facts))
    else:
        out().print(render(facts))
