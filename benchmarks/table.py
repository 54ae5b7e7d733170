"""A table of texts, and the same for Markdown and for a terminal.

In: texts. Out: a Table; Markdown, a renderable of rich. Must not know: what the figures are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows are as long as ``heads``. The first ``words`` columns hold words, the others figures."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> Table:
    return Table(title=title, heads=tuple(heads), rows=tuple(map(tuple, rows)), words=words)


def markdown(shown: Table) -> str:
    """Without the title."""
    rule = ("---" if column < shown.words else "---:" for column, _ in enumerate(shown.heads))
    lines = (shown.heads, tuple(rule), *shown.rows)
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def on_terminal(shown: Table) -> RichTable:
    made = RichTable(title=shown.title)
    for column, head in enumerate(shown.heads):
        words = column < shown.words
        made.add_column(head, justify="left" if words else "right", no_wrap=not column)
    for row in shown.rows:
        made.add_row(*map(Text, row))
    return made


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def megabytes(nbytes: float | None) -> str:
    return "" if nbytes is None else f"{nbytes / 1e6:,.0f}"
