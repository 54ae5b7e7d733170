"""Claims about when a plan is still the right one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from teraio.records import Plan, StepReport
from teraio.runtime.revision import Revision

MIB = 1 << 20


def revision() -> Revision:
    """Of a plan for an iteration that held 100 MiB and computed for a second."""
    made = Revision()
    made.record_first()
    made.planned(100 * MIB, 1.0, 100, moves=True)
    return made


def step(*, ops: int = 100, drift_ops: int = 0, written_bytes: int = 0) -> StepReport:
    return StepReport(
        iteration=0,
        phase="run",
        duration_s=1.0,
        stall_s=0.0,
        peak_bytes=0,
        read_bytes=0,
        written_bytes=written_bytes,
        ops=ops,
        drift_ops=drift_ops,
    )


def records(made: Revision) -> int:
    """How many iterations in a row are recorded."""
    count = 0
    while made.records:
        made.recorded()
        count += 1
    return count


def test_the_first_iterations_under_a_plan_are_recorded_and_more_after_a_larger_one() -> None:
    made = revision()
    first = records(made)
    assert 0 < first < 10
    made.record_larger()
    assert records(made) > 2 * first


def test_iterations_that_lack_many_of_the_planned_ops_are_of_another_kind() -> None:
    made = revision()
    assert not any(made.drifted(step(ops=90), moves=True) for _ in range(20))
    assert [made.drifted(step(ops=70), moves=True) for _ in range(3)] == [False, False, True]


def test_nothing_is_recorded_where_nothing_moves() -> None:
    made = revision()
    made.planned(100 * MIB, 1.0, 100, moves=False)
    assert not made.records


def test_a_little_more_is_not_larger() -> None:
    made = revision()
    assert not made.larger(step(), 104 * MIB)
    assert made.larger(step(), 106 * MIB)


def test_an_iteration_that_holds_more_for_other_ops_is_not_larger() -> None:
    """Such as one with an evaluation: those around it have none."""
    made = revision()
    assert not made.larger(step(drift_ops=30), 200 * MIB)
    assert not made.larger(step(ops=150), 200 * MIB)
    assert made.larger(step(ops=0), 200 * MIB)  # not counted


def test_what_no_plan_can_be_made_for_is_not_tried_again() -> None:
    made = revision()
    made.refused(200 * MIB)
    assert not made.records
    assert not made.larger(step(), 205 * MIB)
    assert made.larger(step(), 220 * MIB)


def test_larger_ones_that_have_no_plan_are_waited_for_ever_more_rarely() -> None:
    """Evaluations, say, where nothing moves in training."""
    made = revision()
    records(made)
    recorded = []
    for _ in range(15):
        made.record_larger()
        recorded.append(records(made) > 0)
    assert recorded == [n in (1, 3, 7, 15) for n in range(1, 16)]


def test_what_computes_quicker_because_it_is_smaller_is_not_planned_for() -> None:
    made = revision()
    assert made.quicker(100 * MIB, 0.9)
    assert not made.quicker(100 * MIB, 0.97)
    assert not made.quicker(90 * MIB, 0.5)


def test_another_speed_of_the_ssds_counts_where_something_waits_for_them() -> None:
    made, waits = revision(), replace(step(), stall_s=0.02)
    fits, cautious = plan(predicted_s=1.0), plan(predicted_s=1.02)
    assert made.other_speed(waits, 100 * MIB, fits, 0.8)
    assert not made.other_speed(waits, 90 * MIB, fits, 0.8)
    assert not made.other_speed(waits, 100 * MIB, fits, 0.95)
    assert not made.other_speed(step(), 100 * MIB, fits, 0.8)
    assert made.other_speed(step(), 100 * MIB, cautious, 1.2)


def plan(*, predicted_s: float) -> Plan:
    """For an iteration that computes for a second."""
    return Plan(
        budget_bytes=50 * MIB,
        moves=(),
        unlimited_peak_bytes=100 * MIB,
        peak_bytes=50 * MIB,
        ideal_s=1.0,
        bound_s=1.0,
        predicted_s=predicted_s,
        spill_bytes=0,
        read_bytes=0,
        written_bytes=0,
    )


def test_a_profile_is_due_after_some_iterations_in_a_row_that_differ() -> None:
    made = revision()
    ops = [3, 3, 0, 3, 3, 3]
    assert [made.drifted(step(drift_ops=n), moves=True) for n in ops] == [False] * 5 + [True]


def test_where_nothing_was_to_move_a_write_is_what_differs() -> None:
    made = revision()
    written = [made.drifted(step(written_bytes=1), moves=False) for _ in range(3)]
    assert written == [False, False, True]


def test_a_program_that_never_repeats_itself_is_profiled_ever_more_rarely() -> None:
    made = revision()
    due = [n for n in range(100) if made.drifted(step(drift_ops=50), moves=True)]
    gaps = [later - earlier for earlier, later in pairwise(due)]
    assert gaps == sorted(gaps) and gaps[-1] >= 24
