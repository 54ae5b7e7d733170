"""What ``teraio profile`` says at its end.

In: an Overview and the report of the profiled run. Out: text. Must not know: files beyond a path.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from teraio.records import RunReport
from teraio.reports.memory import ROW_TITLES
from teraio.reports.overview import Overview
from teraio.reports.table import labelled
from teraio.reports.units import count, format_least, format_size, seconds, share


def profile_text(facts: Overview, run: RunReport, path: Path) -> RenderableType:
    """A few lines: what was recorded, how much memory it takes, and what to look at next."""
    step = next((step for step in reversed(run.steps) if step.phase == "profile"), run.steps[-1])
    kinds = sorted(facts.peak_by_kind.items(), key=lambda item: -item[1])
    largest = ", ".join(
        f"{ROW_TITLES[kind]} {share(nbytes, facts.peak_bytes)}" for kind, nbytes in kinds[:4]
    )
    head = Text(
        f"{path}: {count(facts.ops)} ops and {count(facts.storages)} storages of one iteration, "
        f"{seconds(facts.seconds)}"
    )
    lines = [
        ("peak memory", f"{format_size(facts.peak_bytes)}: {largest}"),
        (
            "active",
            f"{share(facts.active_share, 1)} of it is in use by the running op, on average",
        ),
        (
            "least budget",
            f"{format_least(facts.least_budget_bytes)}: what the largest op needs at once",
        ),
    ]
    if step.read_bytes or step.written_bytes:
        moved = (
            f"{format_size(step.peak_bytes)} were kept in memory, and each iteration read "
            f"{format_size(step.read_bytes)} and wrote {format_size(step.written_bytes)}"
        )
        lines.append(("meanwhile", moved))
    lines += [
        ("next", f"teraio inspect {path}"),
        ("", f"teraio plan {path} --budget 50%"),
    ]
    return Group(head, labelled(*lines))
