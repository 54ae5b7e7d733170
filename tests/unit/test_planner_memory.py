"""Memory by op, and the profile that answers range questions."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from teraio.planner.memory import Profile, carried_twins, live_by_op, memory_by_op, pieces
from teraio.records import Trace
from tests.unit import strategies
from tests.unit.traces import transformer_trace


@given(strategies.traces())
@settings(max_examples=100, deadline=None)
def test_live_bytes_follow_the_definition_in_the_records(trace: Trace) -> None:
    for k, op in enumerate(trace.ops):
        live = [
            s.nbytes
            for s in trace.storages
            if (s.birth is None or s.birth <= k) and (s.death is None or k <= s.death)
        ]
        assert live_by_op(trace)[k] == trace.base_bytes + op.workspace_bytes + sum(live)


@given(st.integers(1, 9), st.integers(0, 30), st.data())
def test_pieces_cover_a_cyclic_range_once(n: int, first: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, n))
    ops = [op for low, high in pieces(first, length, n) for op in range(low, high)]
    assert sorted(ops) == sorted((first + i) % n for i in range(length))


@given(st.integers(0, 2**32), st.sampled_from([1, 7, 511, 512, 513, 2000]))
@settings(max_examples=60, deadline=None)
def test_the_profile_agrees_with_plain_numpy(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    plain = random.integers(0, 100, n)
    profile = Profile(plain)
    for _ in range(20):
        first, length = int(random.integers(0, 2 * n)), int(random.integers(1, n + 1))
        ops = (np.arange(length) + first) % n
        added = int(random.integers(-50, 50))
        plain[ops] += added
        profile.add(first, length, added)
        first, length = int(random.integers(0, 2 * n)), int(random.integers(1, n + 1))
        found = plain[(np.arange(length) + first) % n]
        most = int(random.integers(-50, 250))
        above = np.flatnonzero(found > most)
        assert profile.top(first, length) == found.max()
        assert profile.room_ahead(first, length, most) == (above[0] if len(above) else length)
        assert profile.room_behind(first, length, most) == (
            length - 1 - above[-1] if len(above) else length
        )
    assert np.array_equal(profile.values(), plain)


def test_gradients_are_known_again_in_the_next_iteration() -> None:
    trace = transformer_trace(layers=1)
    twins = carried_twins(trace)
    gradients = [i for i, s in enumerate(trace.storages) if s.kind == "gradient" and s.birth]
    assert sorted(twins) == gradients
    assert all(trace.storages[a].name == trace.storages[b].name for a, b in twins.items())
    assert np.array_equal(memory_by_op(trace, ()), live_by_op(trace))
