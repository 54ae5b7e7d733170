"""Extents: where copies are kept, and which of them may share a place."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from teraio.planner import plan
from teraio.planner.extents import _FreeSpace
from tests.unit.small import machine, storage, trace


@given(st.lists(st.integers(0, 9), max_size=60))
def test_free_space_never_gives_the_same_byte_twice(steps: list[int]) -> None:
    space = _FreeSpace(100)
    held: list[tuple[int, int]] = []
    for step in steps:
        if step < 6:
            nbytes = (step + 1) * 10
            held.append((space.take(nbytes), nbytes))
        elif held:
            space.give_back(*held.pop((step * 7) % len(held)))
        taken = sorted(held)
        assert all(a + size <= b for (a, size), (b, _) in pairwise(taken))
        assert all(offset >= 100 for offset, _ in held)


def test_space_given_back_grows_together() -> None:
    space = _FreeSpace(0)
    parts = [space.take(10) for _ in range(3)]
    for offset in parts:
        space.give_back(offset, 10)
    assert space.take(30) == 0


def test_copies_needed_at_different_times_share_their_place() -> None:
    early = storage([0, 4], birth=0, death=4, nbytes=100_000, name="early")
    late = storage([5, 9], birth=5, death=9, nbytes=100_000, name="late")
    between = [storage([k], birth=k, death=k, nbytes=100_000, name=f"at{k}") for k in (2, 7)]
    made = plan(trace([200] * 10, early, late, *between), machine(100_000))
    assert len(made.moves) == 2
    assert made.moves[0].extent == made.moves[1].extent
    assert made.spill_bytes == made.moves[0].extent.nbytes == 102_400
