"""Tables, bars and sparklines in plain text.

In: texts and numbers. Out: renderables of rich. Must not know: records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

_BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_GAP = 3
_SHORTEST_NAME = 12
_PARTS = re.compile(r"[^./: ]*[./: ]*")

Row = Sequence[str]


def table(title: str, heads: Row, rows: Iterable[Row]) -> RenderableType:
    """A table whose first column holds names and whose other columns hold figures.

    Columns without a head hold bars or remarks. Texts are shown as they are, without markup. Where
    the console is too narrow, bars go first, then long names go on below their own beginnings.
    """
    return Group(Text(title, style="bold"), _Fitting(tuple(heads), tuple(map(tuple, rows))))


def labelled(*lines: tuple[str, str]) -> RenderableType:
    """Sentences with a label before each; a long one goes on below its own beginning."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for label, sentence in lines:
        made.add_row(Text(label), Text(sentence))
    return made


def spaced(*parts: RenderableType) -> RenderableType:
    """The parts below each other with a blank line between."""
    between: list[RenderableType] = []
    for part in parts:
        between += [part, Text("")]
    return Group(*between[:-1])


@dataclass(frozen=True, slots=True)
class _Fitting:
    """A table that is laid out once the width of its console is known."""

    heads: Row
    rows: Sequence[Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Table]:
        columns = [
            _Column(head, cells) for head, *cells in zip(self.heads, *self.rows, strict=True)
        ]
        yield _drawn(_fitted(columns, options.max_width))


@dataclass(frozen=True, slots=True)
class _Column:
    head: str
    cells: Row

    @property
    def width(self) -> int:
        return max(cell_len(line) for cell in (self.head, *self.cells) for line in cell.split("\n"))

    @property
    def titled(self) -> bool:
        return bool(self.head.strip())

    @property
    def bars(self) -> bool:
        return not self.titled and set("".join(self.cells)) <= set(_EIGHTHS)

    @property
    def figures(self) -> bool:
        """Whether cells begin with a digit, or are empty."""
        cells = [cell.lstrip("+-") for cell in self.cells if cell]
        return bool(cells) and all(cell[:1].isdigit() or not cell for cell in cells)

    def folded(self, width: int) -> _Column:
        """The column with names broken into lines of about ``width`` at their separators."""
        return _Column(self.head, [_folded(cell, width) for cell in self.cells])


def _folded(name: str, width: int) -> str:
    lines = [""]
    for part in _PARTS.findall(name):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _fitted(columns: Sequence[_Column], width: int) -> list[_Column]:
    """The columns as far as they fit side by side."""
    if _excess(columns, width) > 0:
        columns = [column for column in columns if not column.bars]
    fitted = columns = list(columns)
    names = [not c.figures and (c.titled or i == 0) for i, c in enumerate(columns)]
    for most in range(max(c.width for c in columns), _SHORTEST_NAME - 1, -1):
        if _excess(fitted, width) <= 0:
            break
        fitted = [c.folded(most) if name else c for c, name in zip(columns, names, strict=True)]
    return fitted


def _excess(columns: Sequence[_Column], width: int) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1) - width


def _drawn(columns: Sequence[_Column]) -> Table:
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        show_header=any(column.titled for column in columns),
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
    )
    for index, column in enumerate(columns):
        remark = index > 0 and not column.titled
        left = index == 0 or remark or not column.figures
        made.add_column(
            column.head,
            justify="left" if left else "right",
            style="cyan" if remark else "",
            no_wrap=not remark or column.bars,
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*map(Text, row))
    return made


def bar(value: float, largest: float, width: int = _BAR_WIDTH) -> str:
    """A bar of at most ``width`` characters, full where the value is beyond the largest."""
    share = min(1.0, max(0.0, value / largest)) if largest else 0.0
    eighths = round(8 * width * share)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def sparkline(values: Sequence[float]) -> str:
    """One character for each value, from the lowest line for 0 to the highest for the largest."""
    top = max(values, default=0.0)
    if not top:
        return _LEVELS[0] * len(values)
    return "".join(_LEVELS[min(7, int(8 * max(0.0, value) / top))] for value in values)
