"""Writes begin as late as they can, and all are done in time where that can be."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from teraio.planner.latest import latest_begins

LAP = 12


@st.composite
def pieces(draw: Any) -> list[tuple[int, int, int]]:
    """(ready, due, work) of each piece, in units of the channel's time."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        due = draw(st.integers(0, LAP))
        found.append((due - draw(st.integers(1, LAP)), due, draw(st.integers(1, 4))))
    return found


def begins(found: list[tuple[int, int, int]]) -> list[float]:
    columns = (np.array(column, np.float64) for column in zip(*found, strict=True))
    return latest_begins(*columns, float(LAP)).tolist()


def unit_by_unit(found: list[tuple[int, int, int]]) -> list[int]:
    """The same, a unit of time after the other, for three laps from behind."""
    left = {(index, lap): work for index, (_, _, work) in enumerate(found) for lap in range(3)}
    begun = {}
    for unit in range(4 * LAP, -40 * LAP, -1):  # from unit to unit + 1
        open_ = [
            (found[index][0] + lap * LAP, -lap, -index)
            for (index, lap), work in left.items()
            if work > 0 and found[index][1] + lap * LAP >= unit + 1
        ]
        if not open_:
            continue
        _, lap, index = max(open_)
        left[-index, -lap] -= 1
        begun[-index, -lap] = unit
    return [max(ready, begun[index, 0]) for index, (ready, _, _) in enumerate(found)]


@given(pieces())
@settings(max_examples=300, deadline=None)
def test_they_begin_when_a_slow_count_says(found: list[tuple[int, int, int]]) -> None:
    assert begins(found) == unit_by_unit(found)


def test_a_piece_alone_begins_when_it_must() -> None:
    assert begins([(-3, 9, 2)]) == [7.0]


def test_what_is_ready_early_makes_way_for_what_is_ready_late() -> None:
    # All three are due at once: the first two have to be done before the last one is ready.
    assert begins([(0, 10, 2), (1, 10, 2), (8, 10, 2)]) == [4.0, 6.0, 8.0]


def test_what_cannot_be_done_in_time_begins_when_it_is_ready() -> None:
    assert begins([(9, 10, 4)]) == [9.0]
