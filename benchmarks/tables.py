"""Results as tables and Markdown.

In: Results. Out: Sections, text. Must not know: files, where figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.comparison import Compared, Results
from benchmarks.micro import MICRO
from benchmarks.micro.findings import MicroResults
from benchmarks.rows import Row, Speed, contests, rows
from benchmarks.shapes import SHAPES
from benchmarks.table import Table, markdown, megabytes, table

_SPEED_HEADS = (
    "s per step (least to largest)",
    "tokens/s",
    "of ideal",
    "of bound",
    "TFLOP/s",
    "CPU s",
    "read, MB",
    "written, MB",
)
_HEADS = ("system", "limit, MB", "peak, MB", *_SPEED_HEADS, "losses", "counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One comparison in words and tables; the first table has a row for each run."""

    title: str
    about: str
    tables: tuple[Table, ...]


def document(results: Results | MicroResults) -> str:
    """All of one results file."""
    parts = [f"# {title(results)}", "\n".join(f"- {line}" for line in facts(results))]
    for section in sections(results):
        parts += [f"## {section.title}", section.about]
        for number, shown in enumerate(section.tables):
            parts += [f"### {shown.title}"] if number else []
            parts.append(markdown(shown))
    return "\n\n".join(part for part in parts if part) + "\n"


def title(results: Results | MicroResults) -> str:
    if isinstance(results, MicroResults):
        return f"{results.micro}, {results.origin.date}"
    return f"Suite {results.suite}, {results.date}"


def facts(results: Results | MicroResults) -> tuple[str, ...]:
    """Where the figures come from, a line each."""
    origin = results if isinstance(results, Results) else results.origin
    device = f"; device: {results.device}" if isinstance(results, Results) else ""
    return (
        f"machine: {origin.machine}{device}",
        f"commit: {origin.commit}",
        f"versions: {', '.join(origin.versions)}",
        f"settings: {'; '.join(results.settings)}",
    )


def sections(results: Results | MicroResults) -> tuple[Section, ...]:
    if isinstance(results, Results):
        return tuple(map(section, results.compared))
    found = results.findings
    about = "\n\n".join((*found.notes, *(f"FAILED: {line}" for line in found.failures)))
    line = MICRO[results.micro].line if results.micro in MICRO else results.micro
    return (Section(title=line[:1].upper() + line[1:], about=about, tables=found.tables),)


def section(compared: Compared) -> Section:
    comparison, found = compared.comparison, rows(compared)
    shape = SHAPES[comparison.shape]
    ideal = compared.results[0].outcome
    count = f"{ideal.parameters / 1e6:.1f} million parameters, " if ideal else ""
    about = (
        f"{count}{shape.layers} layers of {shape.hidden}, {shape.batch} x {shape.sequence} tokens "
        f"a step, {shape.flops_per_token / 1e6:,.1f} MFLOP a token, {comparison.timed} timed "
        f"steps after {comparison.warm_up}."
    )
    tables = (
        table(comparison.name, _HEADS, [_cells(row) for row in found]),
        _gpu_table(found),
        _contest_table(found),
        _plan_table(found),
    )
    return Section(
        title=comparison.name,
        about=about,
        tables=tuple(shown for shown in tables if shown.rows),
    )


def _cells(row: Row) -> tuple[str, ...]:
    speed = _speed_cells(row.speed) if row.speed else ("",) * len(_SPEED_HEADS)
    return (
        row.name,
        megabytes(row.limit_bytes),
        megabytes(row.peak_bytes),
        *speed,
        _losses(row),
        _counts(row),
    )


def _speed_cells(speed: Speed) -> tuple[str, ...]:
    seconds = speed.seconds
    return (
        f"{seconds.middle:.3f} ({seconds.low:.3f} to {seconds.high:.3f})",
        f"{speed.tokens_per_s:,.0f}",
        f"{speed.of_ideal.middle:.0%}",
        "" if speed.of_bound is None else f"{speed.of_bound:.0%}",
        f"{speed.tflops:.3g}",
        f"{speed.cpu_s:.2f}",
        megabytes(speed.read_bytes),
        megabytes(speed.written_bytes),
    )


def _losses(row: Row) -> str:
    if row.loss_difference is None:
        return ""
    return "equal" if row.loss_difference == 0 else f"differ by {row.loss_difference:.0e}"


def _counts(row: Row) -> str:
    if not row.faults:
        return "yes"
    reason = "; ".join(row.faults).replace("\n", " ")
    shown = reason if len(reason) <= 240 else f"{reason[:80]} ... {reason[-150:]}"
    return f"invalid: {shown}" if row.ran else shown


def _gpu_table(found: Sequence[Row]) -> Table:
    """Host memory and energy, where the limited memory is a GPU's."""
    lines = [
        (
            row.name,
            megabytes(row.host_peak_bytes),
            "" if row.speed.energy_j is None else f"{row.speed.energy_j:,.0f}",
        )
        for row in found
        if row.speed and row.host_peak_bytes != row.peak_bytes
    ]
    return table("Host and energy", ("system", "host memory, MB", "energy a step, J"), lines)


def _contest_table(found: Sequence[Row]) -> Table:
    lines = [
        (
            contest.peer.name,
            megabytes(contest.peer.peak_bytes),
            contest.ours.name if contest.ours else "none takes that little",
            megabytes(contest.ours.peak_bytes if contest.ours else None),
            "" if contest.times_faster is None else f"{contest.times_faster:.2f}",
        )
        for contest in contests(found)
    ]
    heads = ("peer", "its peak, MB", "teraio's fastest within that", "peak, MB", "times as fast")
    return table("Times as fast", heads, lines)


def _plan_table(found: Sequence[Row]) -> Table:
    lines = []
    for row in found:
        speed = row.speed
        if speed is None or speed.predicted_s is None or speed.bound_s is None:
            continue
        lines.append(
            (
                row.name,
                f"{speed.bound_s:.3f}",
                f"{speed.predicted_s:.3f}",
                f"{speed.seconds.middle:.3f}",
                f"{speed.predicted_s / speed.seconds.middle:.0%}",
                f"{speed.stall_s or 0.0:.3f}",
            )
        )
    heads = ("run", "bound, s", "predicted, s", "measured, s", "predicted/measured", "stall, s")
    return table("Predicted against measured", heads, lines)
