"""A Comparison as tables.

In: a Comparison. Out: renderables of rich. Must not know: plans, runs.
"""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from teraio.reports.comparison import Comparison, Figure, Unit
from teraio.reports.memory import kind_name
from teraio.reports.table import spaced, table
from teraio.reports.units import count, format_size, seconds


def comparison_text(facts: Comparison) -> RenderableType:
    """Figures side by side, and the storages whose moves differ most."""
    parts: list[RenderableType] = []
    if not facts.same_trace:
        parts.append(Text("The two are about different traces; storages are compared by name."))
    parts.append(
        table(
            "Figures",
            ("", f"A: {facts.a}", f"B: {facts.b}", "B - A", "B / A"),
            (_row(figure) for figure in facts.figures),
        )
    )
    if facts.moved:
        parts.append(_moved(facts))
    elif facts.same_trace and facts.both_planned:
        parts.append(Text("Both move the same storages."))
    return spaced(*parts)


def _row(figure: Figure) -> tuple[str, ...]:
    a, b = figure.a, figure.b
    both = a is not None and b is not None
    difference = b - a if a is not None and b is not None else 0.0
    return (
        figure.name,
        "-" if a is None else _value(a, figure.unit),
        "-" if b is None else _value(b, figure.unit),
        f"{'+' if difference > 0 else ''}{_value(difference, figure.unit)}" if both else "",
        _ratio(figure),
    )


def _ratio(figure: Figure) -> str:
    a, b = figure.a, figure.b
    if a is None or b is None or _value(a, figure.unit) == _value(0, figure.unit):
        return ""
    return f"{b / a:.3f}"


def _value(value: float, unit: Unit) -> str:
    if unit == "bytes":
        return format_size(value)
    return seconds(value) if unit == "seconds" else count(round(value))


def _moved(facts: Comparison) -> RenderableType:
    more = facts.differing - len(facts.moved)
    title = "Moved per iteration, where it differs most"
    return table(
        f"{title} ({more} more storages differ)" if more else title,
        ("storage", "kind", "A", "B"),
        (
            (
                moved.storage,
                kind_name(moved.kind),
                format_size(moved.a_bytes),
                format_size(moved.b_bytes),
            )
            for moved in facts.moved
        ),
    )
