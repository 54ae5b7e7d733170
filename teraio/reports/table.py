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
    the console is too narrow, bars go first, then long names and heads go on below their own
    beginnings, and at last each row becomes a list. Figures are never cut.
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

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        columns = [
            _Column(head, cells) for head, *cells in zip(self.heads, *self.rows, strict=True)
        ]
        fitted = _fitted(columns, options.max_width)
        yield _listed(columns, options.max_width) if fitted is None else _drawn(fitted)


@dataclass(frozen=True, slots=True)
class _Column:
    head: str
    cells: Row

    @property
    def width(self) -> int:
        return max(cell_len(line) for cell in (self.head, *self.cells) for line in cell.split("\n"))

    @property
    def least_width(self) -> int:
        """Remarks wrap at words; nothing else does when it is drawn."""
        if self.titled or self.bars:
            return self.width
        return max((cell_len(word) for cell in self.cells for word in cell.split()), default=0)

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

    def with_folded_head(self) -> _Column:
        """The column with its head broken into lines no wider than its cells, as far as it can."""
        if not self.titled:
            return self
        return _Column(_folded(self.head, _Column("", self.cells).width), self.cells)


def _folded(name: str, width: int) -> str:
    lines = [""]
    for part in filter(None, _PARTS.findall(name)):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _fitted(columns: Sequence[_Column], width: int) -> list[_Column] | None:
    """The columns side by side; None where they don't fit."""
    if _excess(columns, width) > 0:
        columns = [column for column in columns if not column.bars]
    fitted = columns = list(columns)
    names = [not c.figures and (c.titled or i == 0) for i, c in enumerate(columns)]
    for most in range(max(c.width for c in columns), _SHORTEST_NAME - 1, -1):
        if _excess(fitted, width) <= 0:
            return fitted
        fitted = [c.folded(most) if name else c for c, name in zip(columns, names, strict=True)]
    if _least_excess(fitted, width) > 0:
        fitted = [column.with_folded_head() for column in fitted]
    return fitted if _least_excess(fitted, width) <= 0 else None


def _excess(columns: Sequence[_Column], width: int) -> int:
    return sum(column.width for column in columns) + _GAP * (len(columns) - 1) - width


def _least_excess(columns: Sequence[_Column], width: int) -> int:
    """The excess with remarks wrapped; the first column holds names also without a head."""
    spared = sum(column.width - column.least_width for column in columns[1:])
    return _excess(columns, width) - spared


def _listed(columns: Sequence[_Column], width: int) -> RenderableType:
    """Each row as a list: its name, then figures after their heads; below those that are long."""
    name, *others = columns
    lines: list[str] = []
    for index, cell in enumerate(name.cells):
        lines.append(cell)
        for column in others:
            cell = column.cells[index]
            if not cell or column.bars:
                continue
            line = f"  {column.head.strip()}: {cell}" if column.titled else f"  {cell}"
            fits = cell_len(line) <= width or not column.titled
            lines += [line] if fits else [f"  {column.head.strip()}:", f"    {cell}"]
    return Group(*(Text(line, overflow="fold") for line in lines))


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
