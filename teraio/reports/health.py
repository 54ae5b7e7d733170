"""The doctor's findings as a table.

In: Checks. Out: renderables of rich. Must not know: how they are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
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
    name_width = max((len(check.name) for check in checks), default=0)
    parts: list[RenderableType] = []
    for group, members in groupby(checks, key=lambda check: check.group):
        # A heading may be a long path, so it is no cell: it would widen its column.
        parts += [Text(group, style="bold", overflow="fold"), _lines(members, name_width)]
    return spaced(Group(*parts), Text(_VERDICTS[worst], style=_STYLES[worst]))


def _lines(checks: Iterable[Check], name_width: int) -> Table:
    """One line for each, the remedy below what was found."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(width=max(map(len, _STYLES)), no_wrap=True)
    made.add_column(width=name_width, no_wrap=True)
    made.add_column(overflow="fold")
    for check in checks:
        made.add_row(Text(check.status, style=_STYLES[check.status]), check.name, Text(check.found))
        if check.remedy:
            urgent = check.status in ("warn", "fail")
            made.add_row("", "", Text(f"→ {check.remedy}", style="yellow" if urgent else "dim"))
    return made
