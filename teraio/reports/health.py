"""The doctor's findings as a table.

In: Checks. Out: renderables of rich. Must not know: how they are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from teraio.doctor.check import Check
from teraio.reports.table import spaced

_STYLES = {"ok": "green", "missing": "dim", "warn": "yellow", "fail": "bold red"}
_VERDICTS = {
    "ok": "Everything is there.",
    "missing": "Ready. What is missing is optional.",
    "warn": "Works, but not as well as it could: see what says warn.",
    "fail": "Does not work yet: see what says fail.",
}


def health_text(checks: Sequence[Check], worst: str) -> RenderableType:
    """One line for each check, by group, and a verdict."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column("")
    made.add_column("", no_wrap=True)
    made.add_column("found", overflow="fold")
    made.add_column("remedy", overflow="fold")
    for group, members in groupby(checks, key=lambda check: check.group):
        made.add_row("", Text(group, style="bold"), "", "")
        for check in members:
            made.add_row(
                Text(check.status, style=_STYLES[check.status]),
                Text(f"  {check.name}"),
                Text(check.found),
                Text(check.remedy, style="yellow" if check.status in ("warn", "fail") else "dim"),
            )
    return spaced(made, Text(_VERDICTS[worst], style=_STYLES[worst]))
