"""A plan as text: what it is predicted to give, and why.

In: Planning, and alternatives. Out: renderables of rich. Must not know: plans, traces.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from teraio.planner import Explanation, Variant
from teraio.planner.explanation import CostlyMove, Stretch
from teraio.reports.memory import ROW_TITLES, kind_name
from teraio.reports.planning import Planning, StallFacts
from teraio.reports.table import bar, labelled, spaced, table
from teraio.reports.units import NOTHING_S, count, format_size, rate, seconds, share

_STRETCHES_SHOWN = 8


def planning_text(facts: Planning, title: str) -> RenderableType:
    """What the plan gives: times, memory, what moves and where to."""
    parts: list[RenderableType] = [_head(facts, title)]
    if facts.moves:
        parts += [_times(facts), _kinds(facts), _tiers(facts)]
        if facts.encodings:
            parts.append(_encodings(facts))
        if facts.folders:
            parts.append(_folders(facts))
    return spaced(*parts)


def explanation_text(
    facts: Planning, why: Explanation, alternatives: Sequence[Variant]
) -> RenderableType:
    """Why it takes the time it takes, and what would change that."""
    parts: list[RenderableType] = [_verdict(why)]
    if why.stretches:
        parts.append(_stretches(why.stretches))
    if len(facts.bounds) > 1 and not _ideal(why):
        parts.append(_bounds(facts))
    if facts.stalls:
        parts.append(_stalls(facts.stalls))
    waited_for = [move for move in why.costly if move.stall_s > NOTHING_S]
    if waited_for:
        parts.append(_waited_for(waited_for))
    elif facts.costliest:
        parts.append(_costliest(facts))
    if any(wear.bytes_per_day for wear in facts.wears):
        parts.append(_wear(facts))
    if alternatives:
        parts.append(_alternatives(facts, alternatives))
    return spaced(*parts)


def _head(facts: Planning, title: str) -> RenderableType:
    lines = [
        (
            "budget",
            f"{format_size(facts.budget_bytes)}, "
            f"{share(facts.budget_bytes, facts.unlimited_peak_bytes)} of the "
            f"{format_size(facts.unlimited_peak_bytes)} that the iteration takes without a limit; "
            f"the plan holds at most {format_size(facts.peak_bytes)}",
        ),
        (
            "ops",
            f"take as long as in the trace, on {facts.device}",
        ),
        (
            "moves",
            f"{count(facts.moves)}: {format_size(facts.written_bytes)} written and "
            f"{format_size(facts.read_bytes)} read per iteration, "
            f"{format_size(facts.spill_bytes)} of spill space",
        ),
    ]
    if facts.recomputed:
        again = (
            f"{count(facts.recomputed)}: {format_size(facts.recomputed_bytes)} of results are "
            "given up and made again by running their ops once more"
        )
        lines.append(("again", again))
    return Group(Text(f"{title} on {facts.hardware}"), labelled(*lines), Text(facts.binds))


def _times(facts: Planning) -> RenderableType:
    rows = (
        ("ideal", facts.ideal_s, "no limit on memory"),
        (
            "bound",
            facts.bound_s,
            "no plan that makes the same again can be faster"
            if facts.recomputed
            else "no plan can be faster",
        ),
        ("predicted", facts.predicted_s, "this plan"),
    )
    return table(
        "Time per iteration",
        ("", "time", "of ideal speed", " ", "  "),
        (
            (name, seconds(value), share(facts.ideal_s, value), bar(value, facts.predicted_s), what)
            for name, value, what in rows
        ),
    )


def _kinds(facts: Planning) -> RenderableType:
    most = max(kind.away_byte_seconds for kind in facts.kinds)
    return table(
        "What moves",
        ("kind", "moves", "written", "read", "memory freed, on average", ""),
        (
            (
                ROW_TITLES[kind.kind],
                count(kind.moves),
                format_size(kind.written_bytes),
                format_size(kind.read_bytes),
                format_size(kind.away_byte_seconds / facts.ideal_s) if facts.ideal_s else "",
                bar(kind.away_byte_seconds, most),
            )
            for kind in facts.kinds
        ),
    )


def _tiers(facts: Planning) -> RenderableType:
    return table(
        "Channels",
        ("tier", "speed", "per iteration", "busy", "of the iteration", ""),
        (
            (
                f"{tier.tier} {name}",
                rate(speed),
                format_size(nbytes),
                seconds(busy_s),
                share(busy_s, facts.predicted_s),
                bar(busy_s, facts.predicted_s),
            )
            for tier in facts.tiers
            for name, speed, nbytes, busy_s in (
                ("write", tier.write_bytes_per_s, tier.written_bytes, tier.write_s),
                ("read", tier.read_bytes_per_s, tier.read_bytes, tier.read_s),
            )
        ),
    )


def _encodings(facts: Planning) -> RenderableType:
    return table(
        "Copies are encoded",
        ("codec", "of", "bytes left", "encoded at", "decoded at"),
        (
            (
                encoding.codec,
                encoding.dtype,
                share(encoding.share, 1.0),
                _codec_rate(encoding.encode_bytes_per_s),
                _codec_rate(encoding.decode_bytes_per_s),
            )
            for encoding in facts.encodings
        ),
    )


def _codec_rate(bytes_per_s: float) -> str:
    # A GPU is ten thousand times as fast as plain torch on a CPU.
    return rate(bytes_per_s) if bytes_per_s >= 1e8 else f"{bytes_per_s / 1e6:.1f} MB/s"


def _folders(facts: Planning) -> RenderableType:
    # Reasons are sentences: in a table they would be cut off.
    lines = [f"{folder.folder}: {folder.path} ({folder.reason})" for folder in facts.folders]
    return Group(Text("Ways to the drives", style="bold"), *map(Text, lines))


def _ideal(why: Explanation) -> bool:
    return why.predicted_s - why.ideal_s < NOTHING_S


def _verdict(why: Explanation) -> Text:
    if _ideal(why):
        return Text("It runs at ideal speed: no other plan and no more memory makes it faster.")
    by = f", by the bound of {why.bound_by}" if why.bound_by else ""
    return Text(
        f"Of {seconds(why.predicted_s - why.ideal_s)} above the ideal, "
        f"{seconds(why.unavoidable_s)} can't be avoided{by}; a better plan could save at most "
        f"{seconds(why.avoidable_s)}."
    )


def _stretches(stretches: Sequence[Stretch]) -> RenderableType:
    return table(
        "Where it waits",
        ("ops", "phase", "module", "time", "for memory", "for data", "binds"),
        (
            (
                f"{stretch.first}-{stretch.last}",
                stretch.phase,
                stretch.module,
                seconds(stretch.seconds),
                seconds(stretch.waits_for_memory_s),
                seconds(stretch.waits_for_data_s),
                _binding(stretch),
            )
            for stretch in stretches[:_STRETCHES_SHOWN]
        ),
    )


def _binding(stretch: Stretch) -> str:
    """What limits the stretch: memory, the ops, or the channel that is busiest."""
    name, part = max(stretch.busy, key=lambda busy: busy[1], default=("", 0.0))
    return f"{name} {part:.0%}" if stretch.binds == "channel" else stretch.binds


def _waited_for(costly: Sequence[CostlyMove]) -> RenderableType:
    return table(
        "Storages whose moves ops wait for",
        ("storage", "size", "waits", "moved"),
        (
            (
                move.name,
                format_size(move.nbytes),
                seconds(move.stall_s),
                format_size(move.moved_bytes),
            )
            for move in costly
        ),
    )


def _bounds(facts: Planning) -> RenderableType:
    return table(
        "Lower bounds: no plan can be faster than",
        ("reason", "time", ""),
        (
            (name, seconds(value), bar(value, facts.predicted_s))
            for name, value in sorted(facts.bounds.items(), key=lambda item: -item[1])
        ),
    )


def _stalls(stalls: Sequence[StallFacts]) -> RenderableType:
    return table(
        "Longest stalls predicted",
        ("op", "name", "phase", "waits", "for", "of storage"),
        (
            (
                str(stall.op),
                f"{stall.module}/{stall.op_name}".removeprefix("/"),
                stall.phase,
                seconds(stall.seconds),
                "room in memory" if stall.waits_for == "memory" else "data",
                stall.storage,
            )
            for stall in stalls
        ),
    )


def _costliest(facts: Planning) -> RenderableType:
    return table(
        "Moves that cost the most time on the channels",
        ("storage", "kind", "size", "to", "channel time", "memory free for", "from op", "to op"),
        (
            (
                move.storage,
                kind_name(move.kind),
                format_size(move.nbytes),
                move.tier,
                seconds(move.channel_s),
                seconds(move.away_s),
                str(move.leaves_after),
                "its end" if move.needed_by is None else str(move.needed_by),
            )
            for move in facts.costliest
        ),
    )


def _wear(facts: Planning) -> RenderableType:
    return table(
        "Wear of the drives, training all day",
        ("tier", "written per day", "days to the rated endurance"),
        (
            (
                wear.tier,
                f"{wear.bytes_per_day / 1e12:.2f} TB",
                "unknown" if wear.days_to_rated is None else count(round(wear.days_to_rated)),
            )
            for wear in facts.wears
            if wear.bytes_per_day
        ),
    )


def _alternatives(facts: Planning, alternatives: Sequence[Variant]) -> RenderableType:
    return table(
        "What would help",
        ("change", "predicted", "saved", "of ideal speed"),
        (
            (
                other.change,
                seconds(predicted_s),
                seconds(facts.predicted_s - predicted_s),
                share(facts.ideal_s, predicted_s),
            )
            for other in alternatives
            # With more of anything the plan at hand would do, too.
            for predicted_s in (min(other.predicted_s, facts.predicted_s),)
        ),
    )
