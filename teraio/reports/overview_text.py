"""An Overview as tables.

In: an Overview. Out: renderables of rich. Must not know: traces.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from teraio.reports.memory import ROW_TITLES, kind_name
from teraio.reports.overview import Overview, PeriodFacts
from teraio.reports.table import bar, labelled, spaced, sparkline, table
from teraio.reports.telemetry import telemetry_text
from teraio.reports.units import count, format_least, format_size, seconds, share

_MODULES_SHOWN = 12


def overview_text(facts: Overview, title: str) -> RenderableType:
    """Everything that ``teraio inspect`` shows without options."""
    parts = [
        _head(facts, title),
        _kinds(facts),
        _modules(facts),
        _phases(facts),
        _periods("Largest inactive periods (bytes times time)", facts.largest_periods),
        _periods("Longest inactive periods", facts.longest_periods),
        _sizes(facts),
    ]
    if facts.telemetry is not None:
        parts.append(telemetry_text(facts.telemetry))
    return spaced(*parts)


def _head(facts: Overview, title: str) -> RenderableType:
    name = facts.peak_op_name.removeprefix("aten::")
    where = f"{name} in {facts.peak_module or 'the program'}, {facts.peak_phase}"
    head = Text(
        f"{title}: {count(facts.ops)} ops and {count(facts.storages)} storages, "
        f"{seconds(facts.seconds)} per iteration on {facts.device}"
    )
    active_at_most = share(max(facts.active_over_time, default=0), 1)
    lines = (
        ("peak memory", f"{format_size(facts.peak_bytes)}, at op {facts.peak_op} ({where})"),
        (
            "least budget",
            f"{format_least(facts.least_budget_bytes)}, "
            f"{share(facts.least_budget_bytes, facts.peak_bytes)} of the peak: what the largest "
            "op needs at once",
        ),
        (
            "active",
            f"{share(facts.active_share, 1)} of the memory held at a time is in use by the "
            "running op, on average",
        ),
        (
            "",
            f"{sparkline(facts.active_over_time)} active share over time, at most {active_at_most}",
        ),
        (
            "inactive",
            f"{share(facts.inactive_byte_seconds, facts.held_byte_seconds)} of memory times time "
            "lies in inactive periods and could be elsewhere",
        ),
    )
    return Group(head, labelled(*lines))


def _kinds(facts: Overview) -> RenderableType:
    kinds = {name: nbytes for name, nbytes in facts.peak_by_kind.items() if nbytes}
    rows = sorted(kinds.items(), key=lambda item: -item[1])
    return table(
        "Memory at the peak by kind",
        ("kind", "size", "share", ""),
        (
            (ROW_TITLES[name], format_size(n), share(n, facts.peak_bytes), bar(n, rows[0][1]))
            for name, n in rows
        ),
    )


def _modules(facts: Overview) -> RenderableType:
    groups = module_groups(facts.peak_by_module)
    rows = sorted(groups.items(), key=lambda item: -item[1])
    shown, rest = rows[:_MODULES_SHOWN], rows[_MODULES_SHOWN:]
    if rest:
        shown.append((f"{len(rest)} more", sum(nbytes for _, nbytes in rest)))
    return table(
        "Memory at the peak by module (layers together)",
        ("module", "size", "share", ""),
        (
            (name, format_size(n), share(n, facts.peak_bytes), bar(n, rows[0][1]))
            for name, n in shown
        ),
    )


def module_groups(by_module: dict[str, int]) -> dict[str, int]:
    """Bytes by module, with the numbers of layers replaced by ``*``; those of a model that is no
    more than a row of layers stay."""
    groups: dict[str, int] = {}
    for module, nbytes in by_module.items():
        first, *others = module.split(".")
        parts = [first, *("*" if part.isdigit() else part for part in others)]
        name = ".".join(parts) or "(no module)"
        groups[name] = groups.get(name, 0) + nbytes
    return groups


def _phases(facts: Overview) -> RenderableType:
    return table(
        "Phases",
        ("phase", "ops", "time", "share", "peak", "active"),
        (
            (
                phase.phase,
                count(phase.ops),
                seconds(phase.seconds),
                share(phase.seconds, facts.seconds),
                format_size(phase.peak_bytes),
                share(phase.active_share, 1),
            )
            for phase in facts.phases
        ),
    )


def _periods(title: str, periods: tuple[PeriodFacts, ...]) -> RenderableType:
    return table(title, ("storage", "kind", "size", "time", "from op", "to op"), _rows(periods))


def _rows(periods: tuple[PeriodFacts, ...]) -> Iterator[tuple[str, ...]]:
    for period in periods:
        yield (
            period.name,
            kind_name(period.kind),
            format_size(period.nbytes),
            seconds(period.seconds),
            str(period.after),
            _until(period),
        )


def _until(period: PeriodFacts) -> str:
    if period.before is None:
        return "its end"
    return f"{period.before}{', next' if period.before <= period.after else ''}"


def _sizes(facts: Overview) -> RenderableType:
    whole = sum(size.nbytes for size in facts.sizes)
    return table(
        "Storages by size",
        ("from", "below", "storages", "size", "share", ""),
        (
            (
                format_size(size.from_bytes),
                format_size(size.below_bytes) if size.below_bytes else "",
                count(size.storages),
                format_size(size.nbytes),
                share(size.nbytes, whole),
                bar(size.nbytes, max(other.nbytes for other in facts.sizes)),
            )
            for size in facts.sizes
        ),
    )
