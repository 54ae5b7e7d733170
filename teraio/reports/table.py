"""Tables, bars and sparklines in plain text.

In: texts and numbers. Out: renderables of rich. Must not know: records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> RenderableType:
    """A table whose first column holds names and whose other columns hold figures.

    Columns without a head hold bars. Texts are shown as they are, without markup.
    """
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        show_header=any(head.strip() for head in heads),
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    body = [[Text(cell) for cell in row] for row in rows]
    for index, head in enumerate(heads):
        left = index == 0 or not head.strip() or not _figures(body, index)
        made.add_column(
            head,
            justify="left" if left else "right",
            style="cyan" if index and not head.strip() else "",
            overflow="fold" if index == 0 else "ellipsis",
            no_wrap=index > 0,
        )
    for row in body:
        made.add_row(*row)
    return Group(Text(title, style="bold"), made)


def spaced(*parts: RenderableType) -> RenderableType:
    """The parts below each other with a blank line between."""
    between: list[RenderableType] = []
    for part in parts:
        between += [part, Text("")]
    return Group(*between[:-1])


def _figures(body: list[list[Text]], column: int) -> bool:
    """Whether a column holds figures: one that starts with a digit, or nothing at all."""
    cells = [row[column].plain.lstrip("+-") for row in body if row[column].plain]
    return bool(cells) and all(cell[:1].isdigit() or not cell for cell in cells)


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
