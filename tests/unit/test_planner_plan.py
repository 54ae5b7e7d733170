"""Plans as a whole: what any plan promises, on random and on realistic traces."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teraio.errors import BudgetError
from teraio.planner import (
    inactive_periods,
    least_budget,
    live_by_op,
    lower_bound_s,
    memory_by_op,
    plan,
    replayed,
    simulate,
    validate,
)
from teraio.planner.arrays import Floats, Ints
from teraio.planner.columns import Columns, columns
from teraio.planner.extents import moves_with_extents
from teraio.planner.relaxation import FINE, Detail, Relaxation, coarse, relaxation
from teraio.planner.rounding import NOWHERE
from teraio.planner.selection import Selection
from teraio.planner.timing import Timing, Tuning, timed
from teraio.records import (
    Extent,
    Hardware,
    Move,
    PlanOptions,
    Storage,
    Tier,
    TierUse,
    Trace,
)
from teraio.sizes import format_least
from tests.unit import strategies
from tests.unit.small import machine as small_machine
from tests.unit.small import plan_of, storage
from tests.unit.small import trace as small_trace
from tests.unit.traces import HOST, MIB, SSD, hardware, transformer_trace


def peak(trace: Trace) -> int:
    return int(live_by_op(trace).max())


@st.composite
def cases(draw: Any) -> tuple[Trace, Hardware]:
    trace = draw(strategies.traces())
    least, most = least_budget(trace), peak(trace)
    return trace, draw(strategies.hardware(draw(st.integers(least, most))))


@given(cases())
@settings(max_examples=400, deadline=None)
def test_any_budget_from_the_least_on_gives_a_valid_plan_within_it(
    case: tuple[Trace, Hardware],
) -> None:
    trace, machine = case
    made = plan(trace, machine)
    validate(trace, machine, made)
    memory = memory_by_op(replayed(trace, made.recomputations), made.moves)
    assert made.peak_bytes == memory.max() <= machine.budget_bytes


TUNINGS = [
    Tuning(pace=0.2, queue=30.0),
    Tuning(pace=1.0, headroom=0.2, slack=(0.1, 1.0)),
    Tuning(slack=()),
]


@given(cases(), st.sampled_from(TUNINGS), st.floats(0.0, 1e-3), st.data())
@settings(max_examples=300, deadline=None)
def test_every_way_of_planning_keeps_the_rules(
    case: tuple[Trace, Hardware], tuning: Tuning, stalled_s: float, data: st.DataObject
) -> None:
    trace, machine = case
    on = columns(trace)
    op_s = on.duration_s + stalled_s
    reuse = data.draw(st.booleans())
    every = np.ones(len(on.periods), np.bool_)
    selection = Selection(
        on,
        machine,
        (every,),
        op_s,
        reuse_copies=reuse,
        shared_room=data.draw(st.sampled_from([None, 0.5, 1.0])),
    )
    # Whatever is thought to be good to begin with.
    tiers = st.integers(NOWHERE, len(machine.tiers) - 1)
    count = len(on.periods)
    seed = data.draw(st.lists(tiers, min_size=count, max_size=count))
    selection.seed(np.array(seed, np.int64))
    selection.cover(machine.budget_bytes)
    timing = timed(on, machine, selection.tier_of, op_s, tuning, machine.budget_bytes, reuse)
    moves, spill_bytes = moves_with_extents(trace, machine, timing.choices(tuning.pace))
    made = plan_of(trace, moves, spill_bytes, machine)
    if all(use.space_bytes <= tier.capacity_bytes for use, tier in uses(trace, machine, moves)):
        validate(trace, machine, made)
    assert made.peak_bytes <= machine.budget_bytes


def uses(trace: Trace, machine: Hardware, moves: Sequence[Move]) -> list[tuple[TierUse, Tier]]:
    return list(zip(simulate(trace, machine, moves).tiers, machine.tiers, strict=True))


OPTIONS = [
    PlanOptions(bound="simple"),
    PlanOptions(improve=False),
    PlanOptions(reuse_copies=False),
    PlanOptions(capacity_by_time=False),
    PlanOptions(recompute=False),
]


@given(cases(), st.sampled_from(OPTIONS))
@settings(max_examples=200, deadline=None)
def test_every_option_gives_valid_plans(case: tuple[Trace, Hardware], options: PlanOptions) -> None:
    made = plan(*case, options)
    assert made.options == options
    if not options.reuse_copies:
        assert all(move.write for move in made.moves)
    if not options.recompute:
        assert made.recomputations == ()


@given(cases())
@settings(max_examples=150, deadline=None)
def test_no_plan_is_predicted_to_beat_the_bound_or_the_ideal(case: tuple[Trace, Hardware]) -> None:
    trace, machine = case
    made = plan(trace, machine)
    trace = replayed(trace, made.recomputations)
    assert made.predicted_s >= lower_bound_s(trace, machine) * (1 - 1e-9) - 1e-12
    assert made.bound_s >= made.ideal_s * (1 - 1e-9)
    assert made.predicted_s >= made.bound_s


@given(cases())
@settings(max_examples=50, deadline=None)
def test_planning_is_deterministic(case: tuple[Trace, Hardware]) -> None:
    assert plan(*case) == plan(*case)


@given(strategies.traces(), st.data())
@settings(max_examples=50, deadline=None)
def test_what_fits_is_left_alone(trace: Trace, data: st.DataObject) -> None:
    machine = data.draw(strategies.hardware(peak(trace)))
    made = plan(trace, machine)
    assert made.moves == ()
    assert made.predicted_s == pytest.approx(made.ideal_s)
    assert made.spill_bytes == made.read_bytes == made.written_bytes == 0


@given(strategies.traces(), st.data())
@settings(max_examples=50, deadline=None)
def test_a_budget_below_the_least_is_refused_by_name(trace: Trace, data: st.DataObject) -> None:
    least = least_budget(trace)
    if least == 0:
        return
    machine = data.draw(strategies.hardware(least - 1))
    named = re.escape(format_least(least))
    with pytest.raises(BudgetError, match=rf"op \d+ \(op\d+ in m\).* {named}"):
        plan(trace, machine)


def ops_in_use(storage: Storage, n: int) -> set[int]:
    """Ops at which a storage must be in memory, written down as plainly as can be."""
    if storage.birth is None and storage.death is not None and not storage.uses:
        return set(range(storage.death + 1))
    needed = set(storage.uses) | ({storage.birth} if storage.birth is not None else set())
    if not storage.persistent and needed:
        needed |= set(range(min(needed))) if storage.birth is None else set()
    return needed


@given(strategies.traces())
@settings(max_examples=100, deadline=None)
def test_the_least_budget_is_what_every_op_needs_at_once(trace: Trace) -> None:
    n = len(trace.ops)
    needed = [ops_in_use(s, n) for s in trace.storages]
    # The two halves of what is carried into the next iteration have one name.
    halves = {s.name: i for i, s in enumerate(trace.storages) if s.birth is not None}
    for second, twin in enumerate(trace.storages):
        first = halves.get(twin.name, second)
        if first == second:
            continue
        made = trace.storages[first]
        last = max(needed[first])
        if twin.uses and twin.uses[0] <= (made.birth or 0):
            needed[second] -= set(range(twin.uses[0]))
        elif not twin.uses and (twin.death or 0) <= last:
            needed[second] = set()
        else:
            needed[first] |= set(range(last, n))
    least = 0
    for k, op in enumerate(trace.ops):
        stays = sum(s.nbytes for s, ops in zip(trace.storages, needed, strict=True) if k in ops)
        least = max(least, trace.base_bytes + op.workspace_bytes + stays)
    assert least_budget(trace) == least


def replaced_states(count: int) -> Trace:
    """An optimizer that makes each state anew from the one of the iteration before."""
    states = []
    for i in range(count):
        name, made = f"state{i}", 3 * i + 1
        states.append(storage([made - 1, made], death=made, nbytes=MIB, name=name))
        states.append(storage([made, made + 1], [made], birth=made, nbytes=MIB, name=name))
    return small_trace([1.0] * (3 * count), *states)


def test_states_that_are_replaced_are_away_from_one_iteration_to_the_next() -> None:
    trace = replaced_states(8)
    assert peak(trace) == 9 * MIB
    assert least_budget(trace) == 2 * MIB
    machine = hardware(3 * MIB)
    made = plan(trace, machine)
    validate(trace, machine, made)
    assert made.peak_bytes <= 3 * MIB
    assert simulate(trace, machine, made.moves).iteration_s == made.predicted_s
    carried = [move for move in made.moves if trace.storages[move.storage].birth is not None]
    assert len(carried) >= 6
    assert made.read_bytes == made.written_bytes == MIB * len(made.moves)


def test_tiers_without_room_are_named() -> None:
    small = Tier(
        name="tiny",
        capacity_bytes=4096,
        read_bytes_per_s=1e9,
        write_bytes_per_s=1e9,
        mixed_bytes_per_s=2e9,
        latency_s=0.0,
    )
    trace = transformer_trace(layers=2)
    with pytest.raises(BudgetError, match=r"tiny 4\.0 KiB"):
        plan(trace, hardware(peak(trace) // 2, small))


def test_a_copy_goes_where_there_is_room_for_as_long_as_it_is_needed() -> None:
    """The small tier has no room for it any more when it is to be kept for a further period."""
    durations = [1.0] * 8
    weight = storage([0, 3, 6], [0], nbytes=MIB)
    result = storage([4, 7], [4], nbytes=MIB, birth=4, death=7)
    on = columns(small_trace(durations, weight, result))
    large = small_machine().tiers[0]
    small = replace(large, name="host", capacity_bytes=MIB + MIB // 50)
    machine = Hardware(name="two", budget_bytes=MIB, tiers=(large, small))
    every = np.ones(len(on.periods), np.bool_)
    selection = Selection(on, machine, (every,), on.duration_s, reuse_copies=True, shared_room=0.99)
    first_of_weight = (on.periods.storage == 0) & (on.periods.after == 0)
    selection.seed(np.where(first_of_weight | (on.periods.storage == 1), 1, NOWHERE))
    assert selection.tier_of.tolist() == [1, NOWHERE, NOWHERE, 1]
    selection.cover(machine.budget_bytes)
    assert selection.tier_of.tolist() == [0, 0, 0, 1]


def naive_moves(trace: Trace) -> list[Move]:
    """Everything away all the time, at the last moment."""
    n = len(trace.ops)
    moves = []
    for period in inactive_periods(trace):
        nbytes = trace.storages[period.storage].nbytes
        last = (period.after + period.length) % n
        moves.append(
            Move(
                storage=period.storage,
                tier="ssd0",
                extent=Extent(offset=0, nbytes=-(-nbytes // 4096) * 4096),
                write=period.written_at is not None,
                offload_after=period.after,
                gone_before=(period.after + 1) % n,
                fetch_after=last if period.before is not None else None,
                needed_by=period.before,
            )
        )
    return moves


@pytest.fixture(scope="module")
def transformer() -> Trace:
    return transformer_trace()


@pytest.mark.parametrize(
    ("part", "quality"), [(0.8, 0.995), (0.7, 0.995), (0.5, 0.95), (0.35, 0.89)]
)
def test_a_transformer_keeps_most_of_its_speed(
    transformer: Trace, part: float, quality: float
) -> None:
    made = plan(transformer, hardware(int(peak(transformer) * part)))
    assert made.ideal_s / made.predicted_s >= quality
    naive = simulate(transformer, hardware(0), naive_moves(transformer))
    assert made.predicted_s < 0.6 * naive.iteration_s


def test_gradients_that_live_through_the_next_forward_pass_can_be_away_there() -> None:
    trace = transformer_trace(layers=4, zero_grad="backward")
    made = plan(trace, hardware(int(peak(trace) * 0.4)))
    gone = [m for m in made.moves if trace.storages[m.storage].kind == "gradient"]
    assert any(move.needed_by is None for move in gone)


def test_frozen_weights_are_never_written() -> None:
    trace = transformer_trace(layers=6, frozen=True)
    made = plan(trace, hardware(int(peak(trace) * 0.4)))
    frozen = {i for i, s in enumerate(trace.storages) if s.kind == "parameter" and not s.writes}
    moves = [move for move in made.moves if move.storage in frozen]
    assert moves
    assert not any(move.write for move in moves)


def test_host_memory_takes_load_off_the_ssd(transformer: Trace) -> None:
    budget = int(peak(transformer) * 0.35)
    alone = plan(transformer, hardware(budget, SSD))
    both = plan(transformer, hardware(budget, HOST, SSD))
    assert {move.tier for move in both.moves} == {"host", "ssd0"}
    assert both.predicted_s < alone.predicted_s


@pytest.mark.parametrize(("share_of_host", "used"), [(1 / 10, set()), (1 / 5, {"ssd0"})])
def test_a_drive_that_adds_little_to_roomy_host_memory_is_left_out(
    transformer: Trace, share_of_host: float, used: set[str]
) -> None:
    rates = {"read_bytes_per_s": 2e9, "write_bytes_per_s": 2e9, "mixed_bytes_per_s": 2e9}
    host = replace(HOST, capacity_bytes=2 * peak(transformer), **rates)
    drive = replace(SSD, **{name: share_of_host * rate for name, rate in rates.items()})
    machine = hardware(int(peak(transformer) * 0.35), host, drive)
    made = plan(transformer, machine)
    assert {move.tier for move in made.moves} == {"host"} | used
    assert [use.tier for use in made.tiers] == ["host", "ssd0"]
    validate(transformer, machine, made)
    alone = plan(transformer, hardware(machine.budget_bytes, host))
    assert made.bound_s < alone.bound_s  # the drive counts for what no plan can beat
    assert made.bound_s <= made.predicted_s


def test_small_storages_stay_unless_they_must_go(transformer: Trace) -> None:
    made = plan(transformer, hardware(int(peak(transformer) * 0.7)))
    assert min(transformer.storages[move.storage].nbytes for move in made.moves) >= MIB // 16
    assert len(made.moves) < 200


def test_tries_that_differ_in_pace_share_what_else_they_are_made_of(
    transformer: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[bytes, Tuning, int]] = []

    def counted(on: Columns, machine: Hardware, tiers: Ints, op_s: Floats, *rest: Any) -> Timing:
        made.append((op_s.tobytes(), rest[0], rest[1]))
        return timed(on, machine, tiers, op_s, *rest)

    monkeypatch.setattr("teraio.planner.search.timed", counted)
    plan(transformer, hardware(int(peak(transformer) * 0.35)))
    assert len(set(made)) == len(made) > 1


def test_where_a_quick_plan_is_at_the_bound_no_fine_relaxation_is_solved(
    transformer: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[Detail] = []

    def counted(on: Columns, machine: Hardware, detail: Detail) -> Relaxation:
        solved.append(detail)
        return relaxation(on, machine, detail)

    monkeypatch.setattr("teraio.planner.relaxation", counted)
    made = plan(transformer, hardware(int(peak(transformer) * 0.95)))
    assert made.moves and made.predicted_s <= 1.002 * made.bound_s
    assert solved == [coarse(len(transformer.ops))]
    plan(transformer, hardware(int(peak(transformer) * 0.35)))
    assert FINE in solved


def test_a_plan_takes_seconds_at_most() -> None:
    trace = transformer_trace(layers=200, hidden=256, ffn=512, tokens=4096, ideal_s=60.0)
    assert len(trace.ops) > 20_000
    started = time.process_time()
    plan(trace, hardware(peak(trace) // 2))
    assert time.process_time() - started < 20


def test_where_the_drive_is_the_limit_long_traces_are_planned_as_well_as_short_ones() -> None:
    trace = transformer_trace(layers=246, hidden=256, ffn=512, tokens=4096, ideal_s=4.92)
    made = plan(trace, hardware(peak(trace) // 2))
    assert made.bound_s > 1.2 * made.ideal_s
    assert made.predicted_s < 1.003 * made.bound_s


def test_an_iteration_without_ops_or_storages_is_planned() -> None:
    trace = Trace(device="cpu", ops=(), storages=(), anchors=(), base_bytes=5)
    made = plan(trace, hardware(10))
    assert (made.moves, made.peak_bytes, made.unlimited_peak_bytes) == ((), 5, 5)
    assert made.ideal_s == made.bound_s == made.predicted_s == 0.0
    assert made.spill_bytes == made.read_bytes == made.written_bytes == 0
    assert not np.any(live_by_op(trace))
