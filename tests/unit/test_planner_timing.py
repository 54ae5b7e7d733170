"""How moves share out the room that the budget leaves: nothing is asked twice in vain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teraio.planner import live_by_op
from teraio.planner.columns import columns
from teraio.planner.memory import Profile
from teraio.planner.timing import Choice, Timing, Tuning, timed
from teraio.records import Hardware, Trace
from tests.unit.test_planner_plan import cases
from tests.unit.traces import hardware, transformer_trace

SLACK = (0.0, 0.01, 0.05, 0.2, 1.0)


class Persistent(Timing):
    """Asks every move in every round."""

    def _come_back_at(self, index: int, op: int) -> bool:
        return super()._come_back_at(index, op) or True

    def _be_gone_at(self, index: int, op: int) -> bool:
        return super()._be_gone_at(index, op) or True


def shared_out(kind: type[Timing], trace: Trace, machine: Hardware) -> tuple[Choice, ...]:
    on = columns(trace)
    used = np.arange(len(on.periods))
    timing = kind(on, machine, used, np.zeros(len(used), np.int64), on.duration_s, True)
    timing.share_out_room(SLACK)
    return timing.choices(1.0)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_what_met_no_room_once_finds_none_later(case: tuple[Trace, Hardware]) -> None:
    trace, machine = case
    assert shared_out(Timing, trace, machine) == shared_out(Persistent, trace, machine)


def test_a_move_asks_for_room_until_it_meets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = transformer_trace(layers=4)
    machine = hardware(int(live_by_op(trace).max()) // 3)
    asked: list[bool] = []
    behind = Profile.room_behind

    def counted(profile: Profile, first: int, length: int, most: int) -> int:
        room = behind(profile, first, length, most)
        asked.append(room < length)
        return room

    monkeypatch.setattr(Profile, "room_behind", counted)
    choices = shared_out(Timing, trace, machine)
    assert 0 < sum(asked) <= len(choices)


@given(st.floats(0.01, 100.0))
@settings(max_examples=20, deadline=None)
def test_pace_changes_nothing_but_when_writes_begin(pace: float) -> None:
    trace = transformer_trace(layers=2)
    on = columns(trace)
    machine = hardware(int(on.live.max()) // 2)
    tiers = np.zeros(len(on.periods), np.int64)
    timing = timed(
        on, machine, tiers, on.duration_s, Tuning(slack=SLACK), machine.budget_bytes, True
    )
    for early, late in zip(timing.choices(None), timing.choices(pace), strict=True):
        assert replace(late, leave=early.leave) == early
        assert early.leave <= late.leave <= late.first
