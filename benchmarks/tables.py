"""Results as Markdown tables.

In: Results. Out: text. Must not know: files, where figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.comparison import Compared, Results
from benchmarks.rows import Row, Speed, contests, rows
from benchmarks.shapes import SHAPES

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


def document(results: Results) -> str:
    """All comparisons of one results file."""
    parts = [f"# Suite {results.suite}, {results.date}", _origin(results)]
    for compared in results.compared:
        parts.append(comparison_text(compared))
    return "\n\n".join(parts) + "\n"


def comparison_text(compared: Compared) -> str:
    comparison, found = compared.comparison, rows(compared)
    shape = SHAPES[comparison.shape]
    ideal = compared.results[0].outcome
    count = f"{ideal.parameters / 1e6:.1f} million parameters, " if ideal else ""
    about = (
        f"{count}{shape.layers} layers of {shape.hidden}, {shape.batch} x {shape.sequence} tokens "
        f"a step, {shape.flops_per_token / 1e6:,.1f} MFLOP a token, {comparison.timed} timed "
        f"steps after {comparison.warm_up}."
    )
    parts = [f"## {comparison.name}", about, markdown(_HEADS, [_cells(row) for row in found])]
    parts += [text for text in (_gpu_text(found), _contest_text(found), _plan_text(found)) if text]
    return "\n\n".join(parts)


def _origin(results: Results) -> str:
    lines = (
        f"machine: {results.machine}; device: {results.device}",
        f"commit: {results.commit}",
        f"versions: {', '.join(results.versions)}",
        f"settings: {'; '.join(results.settings)}",
    )
    return "\n".join(f"- {line}" for line in lines)


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
    reason = "; ".join(row.faults).replace("|", "/").replace("\n", " ")
    shown = reason if len(reason) <= 240 else f"{reason[:80]} ... {reason[-150:]}"
    return f"**invalid**: {shown}" if row.ran else shown


def _gpu_text(found: Sequence[Row]) -> str:
    """Host memory and energy, where the limited memory is a GPU's."""
    gpu = [row for row in found if row.speed and row.host_peak_bytes != row.peak_bytes]
    lines = [
        (
            row.name,
            megabytes(row.host_peak_bytes),
            "" if row.speed.energy_j is None else f"{row.speed.energy_j:,.0f}",
        )
        for row in gpu
        if row.speed
    ]
    return markdown(("system", "host memory, MB", "energy a step, J"), lines) if lines else ""


def _contest_text(found: Sequence[Row]) -> str:
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
    return markdown(heads, lines) if lines else ""


def _plan_text(found: Sequence[Row]) -> str:
    """Predicted against measured, and where the time goes."""
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
    return markdown(heads, lines) if lines else ""


def megabytes(nbytes: float | None) -> str:
    return "" if nbytes is None else f"{nbytes / 1e6:,.0f}"


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; the first column is words, the others are figures."""
    rule = ("---", *("---:" for _ in heads[1:]))
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))
