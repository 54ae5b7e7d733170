"""Claims about what records say of themselves."""

from __future__ import annotations

from dataclasses import replace

from teraio.records import Hardware, Plan, Recomputation, RunReport, StepReport
from tests.unit.small import plan_of, storage, trace


def step(duration_s: float, stall_s: float) -> StepReport:
    return StepReport(
        iteration=2,
        phase="run",
        duration_s=duration_s,
        stall_s=stall_s,
        peak_bytes=0,
        read_bytes=0,
        written_bytes=0,
        ops=1,
        drift_ops=0,
    )


def report(plan: Plan | None, *steps: StepReport) -> RunReport:
    hardware = Hardware(name="test", budget_bytes=1, tiers=())
    return RunReport(
        budget_bytes=1, phase="run", hardware=hardware, trace=None, plan=plan, steps=steps
    )


PLAN = replace(plan_of(trace([1000.0]), []), ideal_s=1.0, bound_s=1.0, predicted_s=1.1)


def test_a_report_says_where_the_time_beyond_the_ideal_goes() -> None:
    text = report(PLAN, step(9.0, 0.3), step(1.5, 0.3), step(1.5, 0.3)).where_time_goes()
    assert "1.500 s per iteration: 1.000 s ideal, 0.300 s waiting" in text
    assert "+0.200 s ops" in text


def test_results_made_again_are_no_slow_ops() -> None:
    on = trace([100.0, 0.0, 0.0, 0.0], storage([0, 1, 3], [0], birth=0, repeatable=True))
    again = Recomputation(storage=0, drop_after=1, needed_by=3)
    plan = replace(PLAN, recomputations=(again,))
    text = replace(report(plan, step(1.5, 0.3)), trace=on).where_time_goes()
    assert "1.000 s ideal, 0.100 s making results again, 0.300 s waiting" in text
    assert "+0.100 s ops" in text


def test_a_report_without_a_plan_says_so() -> None:
    assert report(None).where_time_goes() == "no iteration has run under a plan yet"
