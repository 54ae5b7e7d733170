"""A timeline for Perfetto and chrome://tracing, in the format of torch.profiler's own traces.

In: a Subject, and the trace of torch.profiler to lie beside. Out: a document for JSON. Must not
know: files.

Times are microseconds (the format's unit). Tracks have a process of their own, so that they stay
apart from those of a trace of torch.profiler that is opened, or merged, beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from teraio.errors import ConfigurationError
from teraio.reports.memory import KINDS, ROW_TITLES, ROWS, memory_by_kind, storage_name
from teraio.reports.subject import Subject
from teraio.reports.timeline import Timeline, timeline

Event = dict[str, Any]

# Above any process id of Linux (at most 2**22), so above those in traces of torch.profiler.
_PROCESS = 1 << 23
_OPS, _MODULES, _STALLS, _FIRST_CHANNEL = 1, 2, 3, 10


def timeline_document(subject: Subject, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The document, with the events of a trace of torch.profiler if one is passed as ``beside``.

    Then the iteration begins with that trace's first profiler step, else with its first event.
    Raises ConfigurationError for a document that is no such trace.
    """
    if beside is None:
        return {
            "schemaVersion": 1,
            "displayTimeUnit": "ms",
            "traceEvents": list(_events(subject, 0.0)),
        }
    others = beside.get("traceEvents")
    if not isinstance(others, list):
        raise ConfigurationError("the trace to lie beside has no list traceEvents.")
    return {**beside, "traceEvents": [*others, *_events(subject, _begin_us(others))]}


def _begin_us(events: list[Any]) -> float:
    timed = [e for e in events if isinstance(e, dict) and isinstance(e.get("ts"), int | float)]
    steps = [e for e in timed if str(e.get("name", "")).startswith("ProfilerStep#")]
    return min((float(event["ts"]) for event in steps or timed), default=0.0)


def _events(subject: Subject, begin_us: float) -> Iterator[Event]:
    times = timeline(subject)
    yield from _names(subject, times)
    for event in (
        *_ops(subject, times),
        *_modules(subject, times),
        *_stalls(subject, times),
        *_transfers(subject, times),
        *_memory(subject, times),
    ):
        event["ts"] += begin_us
        yield event


def _channels(times: Timeline) -> dict[tuple[str, bool], int]:
    """A track for each channel that is used."""
    used = sorted({(busy.tier, busy.write) for busy in times.transfers})
    return {channel: _FIRST_CHANNEL + index for index, channel in enumerate(used)}


def _names(subject: Subject, times: Timeline) -> Iterator[Event]:
    what = "plan, simulated" if subject.moves else "trace"
    yield _meta("process_name", 0, f"teraio: {subject.name} ({what})")
    yield _meta("thread_name", _OPS, "ops")
    yield _meta("thread_name", _MODULES, "modules")
    if times.stalls:
        yield _meta("thread_name", _STALLS, "stalls")
    for (tier, write), track in _channels(times).items():
        yield _meta("thread_name", track, f"{tier} {'write' if write else 'read'}")


def _meta(name: str, track: int, value: str) -> Event:
    return {"ph": "M", "pid": _PROCESS, "tid": track, "name": name, "args": {"name": value}}


def _span(name: str, category: str, track: int, start_s: float, end_s: float, **args: Any) -> Event:
    return {
        "ph": "X",
        "pid": _PROCESS,
        "tid": track,
        "name": name,
        "cat": category,
        "ts": start_s * 1e6,
        "dur": (end_s - start_s) * 1e6,
        "args": args,
    }


def _ops(subject: Subject, times: Timeline) -> Iterator[Event]:
    starts, ends = times.start_s.tolist(), times.end_s.tolist()
    for index, (op, start, end) in enumerate(zip(subject.trace.ops, starts, ends, strict=True)):
        yield _span(op.name, op.phase, _OPS, start, end, op=index, module=op.module)


def _modules(subject: Subject, times: Timeline) -> Iterator[Event]:
    """One span for each run of ops of one module and phase."""
    ops = subject.trace.ops
    first = 0
    for index in range(1, len(ops) + 1):
        here = ops[first]
        if index < len(ops) and (ops[index].module, ops[index].phase) == (here.module, here.phase):
            continue
        start, end = float(times.start_s[first]), float(times.end_s[index - 1])
        yield _span(here.module or here.phase, here.phase, _MODULES, start, end)
        first = index


def _stalls(subject: Subject, times: Timeline) -> Iterator[Event]:
    for stall in times.stalls:
        name = storage_name(subject.trace, stall.storage)
        end_s = stall.start_s + stall.seconds
        yield _span(
            f"stall: {name}", "stall", _STALLS, stall.start_s, end_s, waits_for=stall.waits_for
        )


def _transfers(subject: Subject, times: Timeline) -> Iterator[Event]:
    tracks = _channels(times)
    for busy in times.transfers:
        storage = subject.trace.storages[busy.storage]
        direction = "offload" if busy.write else "prefetch"
        yield _span(
            storage.name,
            direction,
            tracks[busy.tier, busy.write],
            *busy.span,
            bytes=round(busy.nbytes),
            kind=storage.kind,
        )


def _memory(subject: Subject, times: Timeline) -> Iterator[Event]:
    """A counter track of memory by kind, at the ops where it changes."""
    rows = memory_by_kind(subject.trace, subject.moves)
    last = None
    for op, start in enumerate(times.start_s.tolist()):
        values = {ROW_TITLES[ROWS[i]]: int(rows[i, op]) for i in range(len(KINDS))}
        if values != last:
            yield {
                "ph": "C",
                "pid": _PROCESS,
                "tid": 0,
                "name": "memory (bytes)",
                "ts": start * 1e6,
                "args": values,
            }
            last = values
