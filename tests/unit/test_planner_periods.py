"""Inactive periods: which gaps there are, and which moves have to write."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from teraio.planner import Period, inactive_periods
from teraio.planner.columns import columns
from teraio.planner.memory import carried_twins
from teraio.planner.timing import writing
from teraio.records import Storage, Trace
from tests.unit import strategies
from tests.unit.small import storage, trace


def periods_of(n: int, *storages: Storage) -> list[tuple[int, int | None, int]]:
    found = inactive_periods(trace([1] * n, *storages))
    return [(period.after, period.before, period.length) for period in found]


def test_a_persistent_storage_has_a_period_around_the_end_of_the_iteration() -> None:
    assert periods_of(10, storage([2, 5])) == [(2, 5, 2), (5, 2, 6)]


def test_a_storage_used_once_is_free_for_all_other_ops() -> None:
    assert periods_of(10, storage([4])) == [(4, 4, 9)]


def test_a_persistent_storage_never_used_is_free_always() -> None:
    assert periods_of(10, storage([])) == [(9, None, 10)]


def test_uses_next_to_each_other_leave_no_period() -> None:
    assert periods_of(3, storage([0, 1, 2])) == []


def test_an_activation_has_no_period_around_the_end() -> None:
    assert periods_of(10, storage([2, 5], birth=2, death=5)) == [(2, 5, 2)]


def test_memory_between_birth_and_first_use_is_free() -> None:
    assert periods_of(10, storage([5], birth=2, death=5)) == [(2, 5, 2)]


def test_a_storage_that_dies_late_has_a_tail_without_a_read() -> None:
    assert periods_of(10, storage([2], birth=2, death=6)) == [(2, None, 4)]


def test_the_tail_of_a_carried_storage_reaches_to_its_death_in_the_next_iteration() -> None:
    pair = storage([6], birth=6), storage([], death=2)
    assert periods_of(10, *pair) == [(6, None, 6)]


def test_a_carried_storage_is_free_until_its_twin_is_used() -> None:
    pair = storage([6, 7], birth=6), storage([1], death=2)
    assert periods_of(10, *pair) == [(7, 1, 3), (1, None, 1)]
    pair = storage([6], birth=6), storage([2, 6], death=6)
    assert periods_of(10, *pair) == [(6, 2, 5), (2, 6, 3)]


def test_a_carried_storage_whose_successor_is_made_before_the_use_stays() -> None:
    pair = storage([6], birth=6), storage([7], death=7)
    assert periods_of(10, *pair) == []


def test_data_from_before_the_iteration_stays_until_its_first_use() -> None:
    assert periods_of(10, storage([4, 8], death=8)) == [(4, 8, 3)]


def test_data_that_has_come_from_the_iteration_before_is_written_from_its_first_use_on() -> None:
    found = inactive_periods(trace([1] * 10, storage([6], birth=6), storage([2, 5], death=5)))
    assert [period.written_at for period in found] == [6, 2]


def writers(n: int, item: Storage, *afters: int) -> list[int]:
    """After which ops the chosen periods begin that have to write; without ``afters`` of all."""
    on = columns(trace([1] * n, item))
    chosen = np.flatnonzero(np.isin(on.periods.after, afters) if afters else on.periods.after >= 0)
    return sorted(on.periods.after[chosen[writing(on, chosen, reuse_copies=True)]].tolist())


WEIGHT = storage([1, 4, 8], [8])


def test_one_copy_serves_all_periods_until_the_next_write() -> None:
    assert writers(10, WEIGHT) == [8]


def test_the_first_chosen_period_after_the_write_carries_it() -> None:
    assert writers(10, WEIGHT, 1, 4) == [1]
    assert writers(10, WEIGHT, 4) == [4]


def test_what_is_never_written_needs_no_write() -> None:
    assert writers(10, storage([1, 4, 8])) == []


def test_every_write_makes_the_copy_stale() -> None:
    assert writers(10, storage([1, 4, 8], [1, 4, 8])) == [1, 4, 8]


def test_what_an_op_makes_has_no_copy_yet() -> None:
    assert writers(10, storage([1, 4, 8], birth=1, death=8)) == [1]


@given(strategies.traces())
@settings(max_examples=100, deadline=None)
def test_no_period_holds_a_use(trace: Trace) -> None:
    n = len(trace.ops)
    for period in inactive_periods(trace):
        item = trace.storages[period.storage]
        free = {(period.after + 1 + i) % n for i in range(period.length)}
        assert len(free) == period.length
        if period.before is None and item.birth is not None:
            # A tail may reach into the next iteration, but not to the end of this one twice.
            free = {op for op in free if op > period.after}
        assert not free & {*item.uses, item.birth}
        if period.before is not None:
            carried = item.birth is not None and period.before <= period.after
            user = trace.storages[carried_twins(trace)[period.storage]] if carried else item
            assert period.before in user.uses


@given(strategies.traces())
@settings(max_examples=100, deadline=None)
def test_periods_of_a_copy_hold_no_write_between_them(trace: Trace) -> None:
    n = len(trace.ops)
    by_copy: dict[tuple[int, int], list[Period]] = {}
    for period in inactive_periods(trace):
        if period.written_at is not None:
            by_copy.setdefault((period.storage, period.written_at), []).append(period)
    for (index, written_at), periods in by_copy.items():
        writes = set(trace.storages[index].writes)
        for period in periods:
            if written_at >= 0:
                passed = {(written_at + 1 + i) % n for i in range((period.after - written_at) % n)}
                assert not passed & writes
