"""The validator refuses a plan for every rule that it breaks, and names move, storage and op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from teraio.errors import PlanError
from teraio.planner import live_by_op, plan, validate
from teraio.records import Extent, Hardware, Move, Plan, Trace
from tests.unit.small import machine, move, plan_of, storage, trace
from tests.unit.traces import hardware, transformer_trace

BIG = machine(1 << 30)
# Ops 0..9; 0: a weight, 1 and 2: activations, 3: freed late, 4 and 5: a carried gradient,
# 6: frozen, 7: never used, 8: changed once it is there, 9 and 10: a state that is replaced.
ON = trace(
    [1] * 10,
    storage([1, 4, 8], [8], name="weight"),
    storage([0, 5], [0], birth=0, death=5, name="one"),
    storage([2, 7], [2], birth=2, death=9, name="two"),
    storage([3], [3], birth=3, death=7, name="tail"),
    storage([6], [6], birth=6, name="grad"),
    storage([], death=2, name="grad"),
    storage([2, 7], name="frozen"),
    storage([], name="idle"),
    storage([1, 5], [1, 5], birth=1, death=7, name="summed"),
    storage([6, 7], [6], birth=6, name="state"),
    storage([3, 5], death=6, name="state"),
)

SOUND: dict[str, list[Move]] = {
    "no moves": [],
    "an activation": [move(1, 0, 1, 4, 5)],
    "later than it could": [move(1, 2, 3, 3, 5)],
    "around the end": [move(0, 8, 9, 0, 1)],
    "around the end, gone in the next iteration": [move(0, 8, 0, 0, 1)],
    "a copy used again": [move(0, 8, 9, 0, 1), move(0, 1, 2, 3, 4, write=False)],
    "a copy of the iteration before": [move(0, 1, 2, 3, 4), move(0, 4, 5, 7, 8, write=False)],
    "written while it is read": [move(2, 3, 8, None, None)],
    "written while it is read, in the iteration before": [move(0, 8, 2, 3, 4)],
    "a tail": [move(3, 3, 4, None, None)],
    "a carried tail": [move(4, 6, 7, None, None)],
    "a carried tail, gone in the next iteration": [move(4, 6, 1, None, None)],
    "carried to its use": [move(9, 7, 8, 2, 3)],
    "carried to its use, gone in the next iteration": [move(9, 6, 1, 2, 3)],
    "carried to its use, leaving in the next iteration": [move(9, 0, 1, 2, 3)],
    "carried to its use, and gone again": [move(9, 7, 8, 2, 3), move(10, 3, 4, 4, 5, offset=4096)],
    "never written": [move(6, 2, 3, 6, 7, write=False), move(6, 7, 8, 1, 2, write=False)],
    "never used": [move(7, 9, 0, None, None, write=False)],
    "one extent in turn": [move(1, 0, 1, 4, 5), move(4, 6, 7, None, None, offset=4096),
                           move(0, 8, 9, 0, 1, offset=8192)],
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_plan_passes(name: str) -> None:
    validate(ON, BIG, plan_of(ON, SOUND[name]))


BROKEN: dict[str, tuple[list[Move], str]] = {
    "no such storage": ([replace(move(1, 0, 1, 4, 5), storage=-1)], "no such storage"),
    "a storage past the last": ([replace(move(1, 0, 1, 4, 5), storage=99)], "no such storage"),
    "no such tier": ([replace(move(1, 0, 1, 4, 5), tier="tape")], "no tier named 'tape'"),
    "position outside": ([move(1, 0, 1, 4, 50)], "not one of the 10 ops"),
    "negative position": ([move(1, 0, -1, 4, 5)], "not one of the 10 ops"),
    "fetched but not needed": ([move(1, 0, 1, 4, None)], "both"),
    "needed but not fetched": ([move(1, 0, 1, None, 5)], "both"),
    "used while away": ([move(0, 1, 2, 7, 8)], "used while away"),
    "changed while it is written": ([move(0, 4, 9, 0, 1)], "changed after its write has begun"),
    "changed while it is written, a tail": (
        [move(8, 1, 6, None, None)],
        "changed after its write has begun",
    ),
    "used while away around the end": ([move(0, 8, 9, 3, 4)], "used while away"),
    "needed by an op that does not use it": ([move(1, 0, 1, 2, 3)], "does not use it"),
    "fetched after the need": ([move(1, 0, 1, 5, 5)], "cyclic order"),
    "gone before it leaves": ([move(1, 2, 1, 4, 5)], "cyclic order"),
    "fetched before gone": ([move(1, 0, 4, 2, 5)], "cyclic order"),
    "an activation around the end": ([move(1, 6, 7, 8, 0)], "outside of the storage's life"),
    "before its birth": ([move(2, 1, 3, 6, 7)], "allocated|outside|used while away"),
    "never back": ([move(1, 0, 1, None, None)], "used again but never comes back"),
    "a weight never back": ([move(0, 8, 9, None, None)], "used again but never comes back"),
    "tail after death": ([move(3, 3, 8, None, None)], "outside of the storage's life"),
    "carried tail after death": ([move(4, 6, 3, None, None)], "outside of the storage's life"),
    "carried past its use": ([move(9, 7, 8, 4, 5)], "used while away"),
    "carried to no use": ([move(9, 7, 8, 1, 2)], "does not use it"),
    "carried and never back": ([move(9, 7, 8, None, None)], "used in the next iteration"),
    "gone again before it is back": (
        [move(9, 7, 8, 2, 3), move(10, 0, 4, 4, 5, offset=4096)],
        "before move 0 of the same data ends",
    ),
    "no copy": ([move(1, 0, 1, 4, 5, write=False)], "no move before it left a copy"),
    "a stale copy": (
        [move(0, 4, 5, 7, 8), move(0, 8, 9, 0, 1, write=False)],
        "out of date",
    ),
    "a stale copy of its own": ([move(0, 4, 5, 7, 8, write=False)], "out of date"),
    "the copy is elsewhere": (
        [move(0, 8, 9, 0, 1), move(0, 1, 2, 3, 4, write=False, offset=4096)],
        "not where the copy is",
    ),
    "twice at once": ([move(1, 0, 1, 4, 5), move(1, 1, 2, 3, 5)], "before move 0"),
    "unaligned": (
        [replace(move(1, 0, 1, 4, 5), extent=Extent(offset=512, nbytes=4096))],
        "not aligned",
    ),
    "too small": (
        [replace(move(1, 0, 1, 4, 5), extent=Extent(offset=0, nbytes=0))],
        "smaller than the storage",
    ),
    "outside the spill space": ([move(1, 0, 1, 4, 5, offset=1 << 20)], "outside the 1048576 bytes"),
    "before the spill space": ([move(1, 0, 1, 4, 5, offset=-4096)], "outside the 1048576 bytes"),
    "one extent for two": ([move(1, 0, 1, 4, 5), move(2, 2, 3, 6, 7)], "holds the copy of move"),
    "a copy kept for later": (
        [move(0, 8, 9, 0, 1), move(0, 4, 5, 7, 8, write=False), move(2, 2, 3, 6, 7)],
        "holds the copy of move",
    ),
    "a copy kept for ever": (
        [move(6, 2, 3, 6, 7, write=False), move(3, 3, 4, None, None)],
        "holds the copy of move",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plan_is_refused(name: str) -> None:
    moves, reason = BROKEN[name]
    with pytest.raises(PlanError, match=reason) as caught:
        validate(ON, BIG, replace(plan_of(ON, []), moves=tuple(moves)))
    assert "move" in str(caught.value)
    assert "storage" in str(caught.value)
    assert "op" in str(caught.value)


def test_a_carried_gradient_that_is_used_later_may_not_stay_away() -> None:
    on = trace([1] * 5, storage([3], birth=3, name="g"), storage([1], death=1, name="g"))
    with pytest.raises(PlanError, match="used in the next iteration"):
        validate(on, BIG, plan_of(on, [move(0, 3, 4, None, None)]))


def test_what_is_carried_may_not_stay_away_until_its_successor_is_there() -> None:
    on = trace([1] * 6, storage([3, 4], birth=3, name="g"), storage([4], death=4, name="g"))
    with pytest.raises(PlanError, match="its successor is made while it is away"):
        validate(on, BIG, plan_of(on, [move(0, 4, 5, 3, 4)]))


def test_an_extent_past_the_tier_is_refused() -> None:
    plan_on_end = plan_of(ON, [move(1, 0, 1, 4, 5, offset=1 << 30)], spill_bytes=1 << 31)
    with pytest.raises(PlanError, match="past the capacity of ssd"):
        validate(ON, BIG, plan_on_end)


def test_memory_above_the_budget_is_refused_by_op() -> None:
    made = plan_of(ON, [move(1, 0, 1, 4, 5)])
    with pytest.raises(PlanError, match=r"op 6 \(op6\) holds 9000 bytes"):
        validate(ON, machine(8999), made)


CHANGES: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "peak": lambda p: {"peak_bytes": p.peak_bytes - 1},
    "unlimited peak": lambda p: {"unlimited_peak_bytes": p.unlimited_peak_bytes + 1},
    "read": lambda p: {"read_bytes": p.read_bytes - 1},
    "written": lambda p: {"written_bytes": p.written_bytes + 1},
    "spill": lambda p: {"spill_bytes": p.spill_bytes - 4096},
    "budget": lambda p: {"budget_bytes": p.peak_bytes - 1},
    "a move less": lambda p: {"moves": p.moves[1:]},
    "a move twice": lambda p: {"moves": (*p.moves, p.moves[0])},
}


@pytest.fixture(scope="module")
def real() -> tuple[Trace, Hardware, Plan]:
    on = transformer_trace(layers=4)
    machine = hardware(int(live_by_op(on).max() * 0.5))
    return on, machine, plan(on, machine)


@pytest.mark.parametrize("name", CHANGES)
def test_a_real_plan_with_one_thing_changed_is_refused(
    real: tuple[Trace, Hardware, Plan], name: str
) -> None:
    on, machine, made = real
    with pytest.raises(PlanError):
        validate(on, machine, replace(made, **CHANGES[name](made)))


def test_a_real_plan_is_refused_on_another_trace(real: tuple[Trace, Hardware, Plan]) -> None:
    _, machine, made = real
    with pytest.raises(PlanError):
        validate(transformer_trace(layers=3), machine, made)
