"""The facts behind reports agree with the planner's own figures, and hold for any trace."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from rich.console import Console, RenderableType

from teraio.cli.inputs import load_subject, load_trace
from teraio.errors import ConfigurationError, PlanError
from teraio.files import save
from teraio.planner import Explanation, Variant, live_by_op, memory_by_op, plan, simulate
from teraio.planner.explanation import CostlyMove
from teraio.records import RunReport, SpillFolder, Trace
from teraio.reports.comparison import Comparison, Figure, compare
from teraio.reports.comparison_text import comparison_text
from teraio.reports.curves import channel_use, telling_ops
from teraio.reports.life import find_storage, life
from teraio.reports.memory import active_by_op, by_module, memory_by_kind
from teraio.reports.module_tree import module_tree
from teraio.reports.overview import overview
from teraio.reports.perfetto import timeline_document
from teraio.reports.planning import planning
from teraio.reports.planning_text import explanation_text, planning_text
from teraio.reports.subject import Subject, subject_of
from teraio.reports.timeline import timeline
from teraio.reports.units import seconds
from tests.unit import reports_data
from tests.unit.cli import run
from tests.unit.reports_data import PLAN, TRACE, run_report, subjects
from tests.unit.small import storage, trace
from tests.unit.test_planner_recomputation import SLOW, pointwise
from tests.unit.traces import SSD, encoded, hardware, transformer_trace

AT_IDEAL = Explanation(
    predicted_s=8.27 + 1e-14,
    ideal_s=8.27,
    bound_s=8.27,
    bound_by="ops",
    unavoidable_s=0.0,
    avoidable_s=1e-14,
    stretches=(),
    costly=(CostlyMove(storage=0, name="a", nbytes=1, stall_s=0.0, moved_bytes=2),),
)


def shown(what: RenderableType) -> str:
    """The text on a console of 120 columns."""
    console = Console(width=120, record=True, file=StringIO())
    console.print(what)
    return console.export_text()


patient = settings(deadline=None, max_examples=60)


@given(subjects())
@patient
def test_memory_by_kind_adds_up_to_what_the_planner_counts(subject: Subject) -> None:
    without = memory_by_kind(subject.trace).sum(axis=0)
    planned = memory_by_kind(subject.trace, subject.moves).sum(axis=0)
    assert np.array_equal(without, live_by_op(subject.trace))
    assert np.array_equal(planned, memory_by_op(subject.trace, subject.moves))


@given(subjects())
@patient
def test_every_report_can_be_made_of_any_plan(subject: Subject) -> None:
    facts = [
        overview(subject.trace),
        planning(subject),
        compare(subject, subject),
        module_tree(subject.trace),
        *(life(subject, index) for index in range(len(subject.trace.storages))),
    ]
    for fact in facts:
        json.dumps(asdict(fact), allow_nan=False)
    json.dumps(timeline_document(subject), allow_nan=False)


@given(subjects())
@patient
def test_a_timeline_lies_within_the_iteration_that_the_simulation_predicts(
    subject: Subject,
) -> None:
    times = timeline(subject)
    whole = times.iteration_s
    assert subject.hardware is not None
    simulation = simulate(subject.trace, subject.hardware, subject.moves)
    assert whole == pytest.approx(simulation.iteration_s)
    assert np.all(np.diff(times.start_s) >= -1e-12)
    spans = [busy.span for busy in times.transfers]
    for where in times.whereabouts:
        spans += [where.life, *where.writing, *where.away, *where.reading]
    assert all(-1e-12 <= start <= end <= whole * (1 + 1e-9) for start, end in spans)


@given(subjects())
@patient
def test_channels_carry_the_bytes_of_the_plan(subject: Subject) -> None:
    times = timeline(subject)
    moved = sum(busy.nbytes for busy in times.transfers)
    assert moved == pytest.approx(subject.plan.read_bytes + subject.plan.written_bytes)
    drawn = sum(
        float(use.bytes_per_s.sum()) * times.iteration_s / len(use.bytes_per_s)
        for use in channel_use(times.transfers, times.iteration_s)
    )
    assert drawn == pytest.approx(moved)


def test_a_storage_is_away_between_leaving_and_coming_back() -> None:
    times = timeline(reports_data.subject())
    fetched = {move.storage for move in PLAN.moves if move.needed_by is not None}
    for index in fetched:
        where = times.whereabouts[index]
        assert where.away
        for start, end in where.away:
            before = {0.0, *(s for _, s in where.writing), *times.end_s.tolist()}
            after = {times.iteration_s, *(s for s, _ in where.reading), where.life[1]}
            assert min(abs(start - t) for t in before) < 1e-9
            assert min(abs(end - t) for t in after) < 1e-9


def test_active_bytes_are_those_of_the_ops_own_storages() -> None:
    small = trace([1, 1, 1], storage([0, 2], nbytes=100), storage([1], nbytes=7))
    assert active_by_op(small).tolist() == [100, 7, 100]


def test_the_active_share_is_weighed_by_time() -> None:
    small = trace([3, 1], storage([0], nbytes=100), storage([1], nbytes=300))
    facts = overview(small)
    assert facts.active_share == pytest.approx((3 * 0.25 + 1 * 0.75) / 4)
    assert facts.active_over_time[0] == pytest.approx(0.25)
    assert facts.active_over_time[-1] == pytest.approx(0.75)


def test_the_longest_inactive_period_wraps_into_the_next_iteration() -> None:
    small = trace([1, 2, 4], storage([1], nbytes=100, name="weight"))
    period = overview(small).longest_periods[0]
    assert (period.name, period.after, period.before) == ("weight", 1, 1)
    assert period.seconds == pytest.approx(0.005)


def test_modules_at_the_peak_add_up_to_the_storages_alive() -> None:
    facts = overview(TRACE)
    alive = facts.peak_bytes - facts.peak_by_kind["workspace"] - facts.peak_by_kind["small"]
    assert sum(facts.peak_by_module.values()) == alive
    assert sum(by_module(TRACE.storages, facts.peak_op).values()) == alive
    assert module_tree(TRACE).nbytes == alive


def test_drawn_curves_keep_the_peak() -> None:
    values = np.zeros(50_000, dtype=np.int64)
    values[31_337] = 9
    ops = telling_ops(values, np.arange(50_000) * 1e-6, points=100)
    assert len(ops) <= 100
    assert 31_337 in ops


def test_a_storage_is_found_by_part_of_its_name_if_that_is_clear() -> None:
    subject = Subject(
        name="t", trace=trace([1], storage([0], name="a.weight"), storage([0], name="b.weight"))
    )
    assert find_storage(subject, "B.W") == 1
    with pytest.raises(ConfigurationError, match=r"2 storages .* a\.weight, b\.weight"):
        find_storage(subject, "weight")
    with pytest.raises(ConfigurationError, match="no storage of t"):
        find_storage(subject, "c")


def test_a_plan_for_a_measured_machine_says_by_which_way_its_bytes_move_and_why() -> None:
    folder = SpillFolder(folder="/mnt/[b]nvme0", path="GPUDirect Storage", reason="the faster one")
    run = run_report()
    tiers = tuple(replace(tier, folders=(folder,)) for tier in run.hardware.tiers)
    measured = replace(run, hardware=replace(run.hardware, tiers=tiers))
    facts = planning(subject_of(measured, "run.report"))
    assert facts.folders == (folder,)
    text = shown(planning_text(facts, "run"))
    assert "/mnt/[b]nvme0: GPUDirect Storage (the faster one)" in text


def test_a_plan_with_codecs_counts_encoded_bytes_everywhere() -> None:
    plain = transformer_trace(layers=2)
    on = encoded(plain, share=0.5)
    drive = replace(SSD, encodes=True)
    target = hardware(int(live_by_op(plain).max() * 0.6), drive)
    made = plan(on, target)
    run = replace(run_report(), phase="planned", trace=on, plan=made, hardware=target, steps=())
    subject = subject_of(run, "run")
    facts = planning(subject)
    moved = made.read_bytes, made.written_bytes
    (use,) = facts.tiers
    assert (use.read_bytes, use.written_bytes) == moved
    assert sum(kind.read_bytes for kind in facts.kinds) == made.read_bytes
    assert sum(kind.written_bytes for kind in facts.kinds) == made.written_bytes
    assert sum(busy.nbytes for busy in timeline(subject).transfers) == pytest.approx(sum(moved))
    text = shown(planning_text(facts, "run"))
    assert re.search(r"lossless +float32 +50\.0 % ", text)
    assert not planning(reports_data.subject()).encodings


def test_at_ideal_speed_nothing_is_explained_away() -> None:
    text = shown(explanation_text(planning(reports_data.subject()), AT_IDEAL, ()))
    assert text.startswith("It runs at ideal speed")
    assert "wait for" not in text and "Lower bounds" not in text
    assert "Moves that cost the most time on the channels" in text


def test_more_of_anything_is_never_a_loss() -> None:
    facts = planning(reports_data.subject())
    why = replace(AT_IDEAL, predicted_s=facts.predicted_s, ideal_s=facts.ideal_s)
    worse = Variant(change="more", predicted_s=facts.predicted_s + 0.01, saved_s=-0.01)
    (line,) = (
        line
        for line in shown(explanation_text(facts, why, (worse,))).splitlines()
        if line.startswith("more ")
    )
    assert line.split()[1:5] == [*seconds(facts.predicted_s).split(), "0", "s"]


def test_a_channel_is_busy_for_no_more_than_the_iteration() -> None:
    of = reports_data.subject()
    assert of.hardware is not None
    (tier,) = of.hardware.tiers
    slow = replace(of, hardware=replace(of.hardware, tiers=(replace(tier, latency_s=1.0),)))
    (use,) = planning(slow).tiers
    assert use.read_s == use.write_s == PLAN.predicted_s


def test_nothing_is_compared_by_no_ratio() -> None:
    same = Comparison(
        a="a",
        b="b",
        same_trace=True,
        both_planned=True,
        figures=(
            Figure(name="stall", unit="seconds", a=1e-14, b=2.6e-3),
            Figure(name="moves", unit="count", a=2, b=3),
        ),
        moved=(),
        differing=0,
    )
    lines = shown(comparison_text(same)).splitlines()
    assert lines[3].split() == ["stall", "0", "s", "2.60", "ms", "+2.60", "ms"]
    assert lines[4].split() == ["moves", "2", "3", "+1", "1.500"]


def test_what_a_plan_makes_again_is_no_part_of_the_iteration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = pointwise(transformer_trace(layers=6, tokens=6144))
    slow = hardware(int(live_by_op(recorded).max()) // 2, SLOW)
    made = plan(recorded, slow)
    assert made.recomputations
    file = tmp_path / "run.plan"
    kept = RunReport(
        budget_bytes=slow.budget_bytes,
        phase="planned",
        hardware=slow,
        trace=recorded,
        plan=made,
        steps=(),
    )
    save(kept, file)
    assert load_trace(file) == recorded
    inspected = json.loads(run(capsys, "inspect", file, "--json").out)
    assert inspected["peak_bytes"] == int(live_by_op(recorded).max())
    facts = compare(load_subject(file), Subject(name="trace", trace=recorded))
    assert facts.same_trace
    figures = {figure.name: (figure.a, figure.b) for figure in facts.figures}
    for name in ("ops", "storages", "peak without a limit"):
        assert figures[name][0] == figures[name][1]
    assert figures["results made again"] == (len(made.recomputations), None)


def test_a_plan_for_another_trace_is_refused() -> None:
    other: Trace = trace([1, 1], storage([0]))
    report = run_report()
    with pytest.raises(PlanError, match=r"x\.report holds a plan (that breaks|with)"):
        subject_of(
            type(report)(
                budget_bytes=report.budget_bytes,
                phase=report.phase,
                hardware=report.hardware,
                trace=other,
                plan=PLAN,
                steps=(),
            ),
            "x.report",
        )


def test_a_bare_plan_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="p holds a Plan and no trace"):
        subject_of(PLAN, "p")


def test_perfetto_events_have_what_the_format_asks_for() -> None:
    document = timeline_document(reports_data.subject())
    events = document["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    for event in events:
        assert {"name", "pid", "tid", "ph"} <= event.keys()
        assert event["ph"] != "X" or (event["dur"] >= 0 and event["ts"] >= 0)
    written = [e for e in events if e.get("cat") == "offload"]
    assert {e["name"] for e in written} == {
        TRACE.storages[move.storage].name for move in PLAN.moves if move.write
    }


def test_beside_a_profile_of_torch_the_iteration_begins_with_its_first_step() -> None:
    theirs = [
        {"ph": "X", "name": "aten::mm", "pid": 7, "tid": 7, "ts": 100.0, "dur": 1},
        {"ph": "X", "name": "ProfilerStep#3", "pid": 7, "tid": 7, "ts": 500.0, "dur": 9},
    ]
    merged = timeline_document(
        reports_data.subject(), {"traceEvents": theirs, "deviceProperties": []}
    )
    assert merged["traceEvents"][:2] == theirs
    assert merged["deviceProperties"] == []
    ours = [event for event in merged["traceEvents"][2:] if event["ph"] == "X"]
    assert min(event["ts"] for event in ours) == pytest.approx(500.0)
    assert 7 not in {event["pid"] for event in ours}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 s"),
        (1e-12, "0 s"),
        (4.5e-5, "45.0 us"),
        (0.00999999, "10.0 ms"),
        (0.9999, "1.00 s"),
        (-0.25, "-250 ms"),
        (1234.5, "1,234 s"),
    ],
)
def test_times_are_short(value: float, text: str) -> None:
    assert seconds(value) == text
