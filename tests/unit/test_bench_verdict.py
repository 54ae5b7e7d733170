"""A benchmark result that is wrong is marked so, and its time is shown nowhere."""

from __future__ import annotations

import dataclasses
import math

import pytest

from benchmarks.comparison import Compared, Entry, Result
from benchmarks.rows import contests, rows
from benchmarks.table import markdown
from benchmarks.tables import section
from benchmarks.verdict import judge
from tests.unit.bench_records import IDEAL, LOSSES, compared, figures, missing, outcome, ran

TERAIO = Entry(system="teraio", share=0.5)
PEER = Entry(system="zero3")
# A time that appears nowhere else in a table.
TELLTALE_S = 0.777
ALTERED = (*LOSSES[:-1], LOSSES[-1] * 1.001)


def comparison_text(one: Compared) -> str:
    """All tables of a comparison."""
    return "\n\n".join(map(markdown, section(one).tables))


def line_of(result: Result) -> str:
    text = comparison_text(compared(ran(IDEAL, outcome()), result))
    found = [line for line in text.splitlines() if line.startswith("| " + _title(result))]
    assert len(found) == 1, text
    return found[0]


def _title(result: Result) -> str:
    return {"zero3": "ZeRO-Offload, ZeRO-3", "teraio": "teraio at 50%"}[result.entry.system]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (ran(PEER, outcome(losses=ALTERED, wall_s=TELLTALE_S)), "losses differ"),
        (ran(TERAIO, outcome(losses=ALTERED, wall_s=TELLTALE_S)), "losses differ"),
        (ran(PEER, outcome(peak_bytes=1_001, wall_s=TELLTALE_S), 1_000), "the limit is"),
        (ran(PEER, outcome(losses=LOSSES[:6], wall_s=TELLTALE_S)), "4 timed steps"),
        (ran(PEER, outcome(parameters=99, wall_s=TELLTALE_S)), "99 parameters"),
        (ran(TERAIO, outcome(sha256="b", wall_s=TELLTALE_S)), "parameters differ"),
        (ran(PEER, outcome(losses=(*LOSSES[:-1], math.nan), wall_s=TELLTALE_S)), "losses differ"),
    ],
)
def test_a_wrong_result_is_marked_invalid_and_its_time_is_not_shown(
    result: Result, said: str
) -> None:
    line = line_of(result)
    assert "invalid: " in line
    assert said in line
    assert "0.777" not in line
    text = comparison_text(compared(ran(IDEAL, outcome()), result))
    assert "0.777" not in text


def test_a_right_result_shows_its_time() -> None:
    line = line_of(ran(PEER, outcome(wall_s=TELLTALE_S), 1_000))
    assert "0.777" in line
    assert line.endswith("| yes |")


def test_systems_that_compute_in_another_order_may_differ_a_little_and_teraio_not_at_all() -> None:
    close = (*LOSSES[:-1], LOSSES[-1] * (1 + 1e-6))
    assert judge(ran(PEER, outcome(losses=close)), outcome()).valid
    assert not judge(ran(TERAIO, outcome(losses=close)), outcome()).valid


def test_parameters_are_compared_only_after_as_many_steps() -> None:
    longer = outcome(losses=(*LOSSES, 2.5), sha256="b")
    assert judge(ran(TERAIO, outcome()), longer).valid


def test_what_could_not_run_is_a_row_with_the_reason() -> None:
    text = comparison_text(compared(ran(IDEAL, outcome()), missing(PEER, "no such | package")))
    assert "unavailable: no such \\| package" in text


def test_without_an_ideal_run_nothing_counts() -> None:
    found = rows(compared(missing(IDEAL, "broken"), ran(PEER, outcome())))
    assert [row.speed for row in found] == [None, None]


def test_the_part_of_ideal_speed_compares_steps_of_one_turn() -> None:
    # The machine becomes four times slower for both; the ratio stays what it is.
    ideal = outcome(wall_s=(9.0, 9.0, 1.0, 1.0, 1.0, 4.0, 4.0))
    peer = outcome(wall_s=(9.0, 9.0, 2.0, 2.0, 2.0, 8.0, 8.0))
    speed = rows(compared(ran(IDEAL, ideal), ran(PEER, peer)))[1].speed
    assert speed is not None
    assert (speed.of_ideal.low, speed.of_ideal.middle, speed.of_ideal.high) == (0.5, 0.5, 0.5)


def test_a_peer_is_beaten_only_by_rows_that_take_no_more_memory() -> None:
    ours = [
        ran(Entry(system="teraio", share=0.7), outcome(peak_bytes=700, wall_s=1.0)),
        ran(Entry(system="teraio", share=0.5), outcome(peak_bytes=500, wall_s=2.0)),
    ]
    small = ran(Entry(system="infinity"), outcome(peak_bytes=600, wall_s=8.0))
    tiny = ran(Entry(system="infinity-small"), outcome(peak_bytes=400, wall_s=8.0))
    found = contests(rows(compared(ran(IDEAL, outcome()), *ours, small, tiny)))
    assert [(one.peer.system, one.ours and one.ours.share, one.times_faster) for one in found] == [
        ("infinity", 0.5, 4.0),
        ("infinity-small", None, None),
    ]


def test_a_plan_is_shown_with_what_it_predicted_and_its_bound() -> None:
    run = ran(TERAIO, outcome(wall_s=2.0, teraio=figures(predicted_s=1.5)))
    text = comparison_text(compared(ran(IDEAL, outcome()), run))
    assert "| teraio at 50% | 1.250 | 1.500 | 2.000 | 75% | 0.250 |" in text


def test_times_of_teraio_count_only_under_a_plan() -> None:
    profiled = dataclasses.replace(figures(), planned=(*(True,) * 6, False))
    short = figures(steps=3)
    for own, said in ((profiled, "1 timed steps ran without a plan"), (short, "saw 3 iterations")):
        verdict = judge(ran(TERAIO, outcome(teraio=own)), outcome())
        assert [said in fault for fault in verdict.faults] == [True]
