"""Extents: where copies are kept, and which of them may share a place."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from teraio.planner import plan
from teraio.planner.extents import _Copy, _FreeSpace, _pack
from tests.unit.small import machine, storage, trace

_N = 20


@st.composite
def _copies(draw: st.DrawFn) -> _Copy:
    start = draw(st.integers(-5, _N - 1))
    length = draw(st.integers(1, _N + 2))
    nbytes = draw(st.integers(0, 4)) * 4096
    return _Copy(0, nbytes, start, start + length, length >= _N, (), draw(st.integers(0, _N)))


def _ops(copy: _Copy) -> set[int]:
    return {op % _N for op in range(copy.start, copy.end)} if not copy.always else set(range(_N))


@given(st.lists(_copies(), max_size=25))
@settings(max_examples=300)
def test_no_two_copies_that_are_needed_at_once_share_a_byte(copies: list[_Copy]) -> None:
    offsets = _pack(copies, _N)
    for one, other in combinations(range(len(copies)), 2):
        a, b = (range(offsets[i], offsets[i] + copies[i].nbytes) for i in (one, other))
        apart = a.stop <= b.start or b.stop <= a.start or not a or not b
        assert apart or not _ops(copies[one]) & _ops(copies[other])


def test_space_given_back_grows_together() -> None:
    space = _FreeSpace([(0, float("inf"))])
    parts = [space.take(10, 1) for _ in range(3)]
    for offset in parts:
        space.give_back(offset, 10)
    assert space.take(30, 1) == 0


def test_a_copy_that_lasts_into_the_next_iteration_leaves_its_place_to_others_in_between() -> None:
    lasting = _Copy(0, 8192, 15, _N + 3, always=False, choices=(), back=_N)
    early, late = (_Copy(1, 8192, begin, end, False, (), 0) for begin, end in ((4, 15), (4, 16)))
    assert _pack([lasting, early], _N) == [0, 0]
    assert _pack([lasting, late], _N) == [0, 8192]


def test_copies_needed_at_different_times_share_their_place() -> None:
    early = storage([0, 4], birth=0, death=4, nbytes=100_000, name="early")
    late = storage([5, 9], birth=5, death=9, nbytes=100_000, name="late")
    between = [storage([k], birth=k, death=k, nbytes=100_000, name=f"at{k}") for k in (2, 7)]
    made = plan(trace([200] * 10, early, late, *between), machine(100_000))
    assert len(made.moves) == 2
    assert made.moves[0].extent == made.moves[1].extent
    assert made.spill_bytes == made.moves[0].extent.nbytes == 102_400


def test_a_tier_with_room_for_one_copy_holds_one_after_the_other() -> None:
    on = trace(
        [200] * 20,
        storage([10, 12], birth=10, nbytes=100_000, name="gradient"),
        # The same one in the next iteration, until it is freed.
        storage([], death=2, nbytes=100_000, name="gradient"),
        storage([3, 8], birth=3, death=8, nbytes=100_000, name="activation"),
        *(storage([k], birth=k, death=k, nbytes=100_000, name=f"at{k}") for k in (5, 16)),
    )
    only = machine(100_000)
    room = replace(only.tiers[0], capacity_bytes=150_000)
    made = plan(on, replace(only, tiers=(room,)))
    assert {on.storages[move.storage].name for move in made.moves} == {"gradient", "activation"}
    assert made.spill_bytes == 102_400
