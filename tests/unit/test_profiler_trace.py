"""From recordings to traces: which storages are known again in the next iteration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from teraio.engine.places import NO_MODULE, Places
from teraio.planner.memory import carried_twins
from teraio.profiler.trace import Recorded, build_trace, with_blocks
from teraio.records import Kind

N = 6
FLOAT = 6


def recording(
    births: list[tuple[int, int]], uses: list[tuple[int, int]], deaths: list[tuple[int, int]]
) -> dict[str, Any]:
    """``births``, ``uses`` and ``deaths`` are pairs of block and op."""
    return {
        "op_names": ["aten::add"],
        "dtype_names": {FLOAT: "float32"},
        "ops": ([0] * N, [NO_MODULE] * N, [3] * N, [1000] * N, [0] * N),
        "births": ([b for b, _ in births], [4096] * len(births), [op for _, op in births]),
        "uses": (
            [b for b, _ in uses],
            [op for _, op in uses],
            [False] * len(uses),
            [FLOAT] * len(uses),
        ),
        "deaths": ([b for b, _ in deaths], [op for _, op in deaths]),
        "repeatables": ([], []),
        "anchors": ([], [], []),
        "untracked_peak_bytes": 0,
    }


def recorded(
    found: dict[str, Any], at_start: list[int], names: Mapping[int, tuple[Kind, str]]
) -> Recorded:
    live = [(block, 4096, True) for block in at_start]
    return build_trace(found, live, names, Places(), "cpu")


# Blocks 1 and 2 were made in this order, and are listed as it happens; 7 and 8 take their places.
REPLACED = recording(
    [(7, 1), (8, 4)], [(1, 1), (2, 4), (7, 1), (8, 4), (7, 2), (8, 5)], [(1, 1), (2, 4)]
)


def test_results_kept_until_the_next_iteration_are_paired_in_the_order_of_their_births() -> None:
    trace = recorded(REPLACED, [2, 1], {}).trace
    pairs = carried_twins(trace)
    uses = {trace.storages[a].uses: trace.storages[b].uses for a, b in pairs.items()}
    assert uses == {(1, 2): (1,), (4, 5): (4,)}


def test_names_go_before_the_order_of_births() -> None:
    names: dict[int, tuple[Kind, str]] = {
        1: ("optimizer_state", "late"),
        2: ("optimizer_state", "early"),
        7: ("optimizer_state", "early"),
        8: ("optimizer_state", "late"),
    }
    trace = recorded(REPLACED, [2, 1], names).trace
    pairs = carried_twins(trace)
    uses = {trace.storages[a].uses: trace.storages[b].uses for a, b in pairs.items()}
    assert uses == {(1, 2): (4,), (4, 5): (1,)}


def test_one_result_more_than_was_there_leaves_all_of_its_size_alone() -> None:
    more = recording([(7, 1), (8, 4), (9, 5)], [(1, 1), (2, 4), (7, 2), (8, 5)], [(1, 1), (2, 4)])
    assert carried_twins(recorded(more, [1, 2], {}).trace) == {}


def test_blocks_that_outlive_a_later_iteration_take_the_places_of_those_before() -> None:
    first = recorded(REPLACED, [1, 2, 3], {3: ("parameter", "weight")})
    later = recording([(17, 1), (18, 4)], [(7, 1), (8, 4), (17, 2), (18, 5)], [(7, 1), (8, 4)])
    assert sorted(first.blocks.values()) == [7, 8]
    moved = with_blocks(first, later)
    assert {first.blocks[s]: block for s, block in moved.blocks.items()} == {7: 17, 8: 18}
