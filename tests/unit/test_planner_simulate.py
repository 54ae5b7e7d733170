"""The simulator, on cases that can be worked out by hand."""

from __future__ import annotations

import pytest

from teraio.planner import simulate
from teraio.records import Stall
from tests.unit.small import machine, move, storage, trace

ACTIVATION = storage([0, 4], [0], birth=0, death=4)


def test_without_moves_an_iteration_takes_as_long_as_its_ops() -> None:
    done = simulate(trace([1, 2, 3], storage([0])), machine(), ())
    assert done.iteration_s == pytest.approx(0.006)
    assert done.stalls == ()
    assert done.peak_bytes == 1000


def test_transfers_that_fit_between_the_uses_cost_nothing() -> None:
    done = simulate(trace([1] * 6, ACTIVATION), machine(), [move(0, 0, 2, 2, 4)])
    assert done.stall_s == 0
    assert (done.written_bytes, done.read_bytes) == (1000, 1000)


def test_an_op_waits_for_memory_that_is_still_leaving() -> None:
    done = simulate(trace([1, 0, 1, 1, 1], ACTIVATION), machine(), [move(0, 0, 2, 2, 4)])
    assert done.stalls == (
        Stall(op=2, storage=0, waits_for="memory", seconds=pytest.approx(0.001)),
    )
    assert done.iteration_s == pytest.approx(0.005)


def test_an_op_waits_for_data_that_is_still_coming() -> None:
    done = simulate(trace([1] * 5, ACTIVATION), machine(), [move(0, 0, 2, 3, 4)])
    assert done.stalls == (Stall(op=4, storage=0, waits_for="data", seconds=pytest.approx(0.001)),)


def test_a_clean_move_leaves_at_once() -> None:
    done = simulate(
        trace([1, 0, 1, 1, 1], storage([0, 4])), machine(), [move(0, 0, 1, 2, 4, write=False)]
    )
    assert done.stall_s == 0
    assert done.written_bytes == 0


def test_writes_are_served_in_the_order_in_which_they_come() -> None:
    two = [storage([0, 4], [0], birth=0, death=4, name=name) for name in "ab"]
    moves = [move(0, 0, 3, 3, 4), move(1, 0, 2, 2, 4, offset=4096)]
    done = simulate(trace([1] * 5, *two), machine(), moves)
    assert done.stalls[0] == Stall(
        op=2, storage=1, waits_for="memory", seconds=pytest.approx(0.001)
    )


def test_a_read_that_an_op_waits_for_goes_before_the_others() -> None:
    late = storage([0, 8], [0], birth=0, death=8, nbytes=3000)
    soon = storage([0, 5], [0], birth=0, death=5)
    other = storage([0, 8], [0], birth=0, death=8)
    moves = [move(i, 0, 3, 3, 8, offset=4096 * i) for i in (0, 2)]
    moves.append(move(1, 0, 3, 4, 5, offset=4096))
    done = simulate(trace([6] + [1] * 8, late, soon, other), machine(), moves)
    # The read under way (3 ms, begun 1 ms before) ends first; then it is the urgent one's turn.
    assert Stall(op=5, storage=1, waits_for="data", seconds=pytest.approx(0.003)) in done.stalls


def test_channels_that_share_a_queue_slow_each_other_down() -> None:
    first = storage([0, 9], [0], birth=0, death=9)
    second = storage([0, 4], [0], birth=0, death=4)
    ops = [1] * 10
    moves = [move(1, 0, 2, 2, 4), move(0, 2, 4, 7, 9, offset=4096)]
    apart = simulate(trace(ops, first, second), machine(both=2e6), moves)
    shared = simulate(trace(ops, first, second), machine(both=1e6), moves)
    assert apart.stall_s == 0
    assert shared.stall_s == pytest.approx(0.001)


def test_latency_is_part_of_every_transfer() -> None:
    done = simulate(trace([1] * 6, ACTIVATION), machine(latency_s=0.0005), [move(0, 0, 2, 2, 4)])
    assert [stall.op for stall in done.stalls] == [2, 4]
    assert done.stall_s == pytest.approx(0.001)


def test_a_period_around_the_end_is_carried_over_to_the_next_iteration() -> None:
    weight = storage([1, 3], [3])
    done = simulate(trace([1] * 5, weight), machine(), [move(0, 3, 0, 0, 1)])
    assert done.stalls == (Stall(op=1, storage=0, waits_for="data", seconds=pytest.approx(0.001)),)
    done = simulate(trace([1] * 5, weight), machine(), [move(0, 3, 4, 4, 1)])
    assert done.stalls == (
        Stall(op=4, storage=0, waits_for="memory", seconds=pytest.approx(0.001)),
    )
