"""What the machine did, as the lines of a table.

In: Telemetry. Out: texts, a renderable of rich. Must not know: how it was measured.
"""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from teraio.records import Reading, Telemetry
from teraio.reports.table import spaced, table
from teraio.reports.units import amount, count, seconds

HEADS = ("of", "figure", "last", "mean", "least", "most")


def looks(telemetry: Telemetry) -> str:
    """Text such as ``60 looks over 59.0 s``."""
    word = "look" if telemetry.samples == 1 else "looks"
    return f"{count(telemetry.samples)} {word} over {seconds(telemetry.seconds)}"


def telemetry_rows(telemetry: Telemetry) -> list[tuple[str, ...]]:
    """One line for each reading, by HEADS."""
    return [_row(reading) for reading in telemetry.readings]


def telemetry_text(telemetry: Telemetry) -> RenderableType:
    """The table, and below it what is not known and why."""
    parts: list[RenderableType] = []
    if telemetry.readings:
        title = f"The machine, {looks(telemetry)}"
        parts.append(table(title, HEADS, telemetry_rows(telemetry)))
    if telemetry.missing:
        parts.append(Text("\n".join(telemetry.missing)))
    return spaced(*parts)


def _row(reading: Reading) -> tuple[str, ...]:
    values = (reading.last, reading.mean, reading.least, reading.most)
    return (reading.of, reading.what, *(amount(value, reading.unit) for value in values))
