"""Claims about the memory of CPU storages: given back, it serves again, whatever its size was."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import teraio
from teraio import _C

KIB = 1 << 10
MIB = 1 << 20
PAGE = resource.getpagesize()


@pytest.fixture(autouse=True)
def offloading(tmp_path: Path) -> Iterator[nn.Module]:
    module = teraio.offload(nn.Linear(128, 128), memory_budget=48 * MIB, ssd=tmp_path)
    yield module
    teraio.restore(module)


def faults_of_filling(tensors: list[torch.Tensor]) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for value, tensor in enumerate(tensors):
        tensor.fill_(value)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def tensors_of(nbytes: int, count: int) -> list[torch.Tensor]:
    return [torch.empty(nbytes, dtype=torch.uint8) for _ in range(count)]


def fill_budget(but: int) -> list[torch.Tensor]:
    """Tensors that leave ``but`` bytes of the budget, and less than the pool makes pieces of."""
    totals = _C.totals()
    return tensors_of(totals["budget"] - totals["used"] - but - 64 * KIB, 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([(6 * MIB, 6)], [(4 * MIB, 9)]),  # huge pages
        ([(6 * MIB, 6)], [(1152 * KIB, 18)]),  # smaller than a huge page, so one is cut
        ([(6 * MIB, 6)], [(2304 * KIB, 9)]),  # a huge page, and an end from one that is cut
        ([(1152 * KIB, 20)], [(640 * KIB, 20)]),  # the ends of others
        ([(2304 * KIB, 12)], [(6 * MIB, 4), (256 * KIB, 12)]),  # huge pages, and what was cut off
        ([(1 * MIB, 24)], [(1536 * KIB, 16)]),  # all of them smaller than a huge page
        # What remains of a cut page is an end as well.
        ([(2 * MIB, 10)], [(1152 * KIB, 10), (768 * KIB, 10)]),
    ],
)
def test_pages_given_back_serve_other_sizes(
    before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    # Where the budget has room, new pages may serve in their place.
    others = fill_budget(max(sum(nbytes * count for nbytes, count in s) for s in (before, after)))
    tensors = [tensor for size in before for tensor in tensors_of(*size)]
    faults_of_filling(tensors)
    tensors.clear()
    tensors = [tensor for size in after for tensor in tensors_of(*size)]
    pages = sum(nbytes * count for nbytes, count in after) // PAGE
    assert faults_of_filling(tensors) < pages // 20
    assert all(bool((tensor == value).all()) for value, tensor in enumerate(tensors))
    del others


def addresses_of_turns(sizes: list[tuple[int, int]]) -> list[set[int]]:
    """Where tensors of these sizes are, of each size in its turn."""
    return [{tensor.data_ptr() for tensor in tensors_of(*size)} for size in sizes]


def test_where_the_budget_has_room_each_size_keeps_pages_of_its_own() -> None:
    sizes = [(2304 * KIB, 6), (1152 * KIB, 2), (768 * KIB, 1)]
    addresses_of_turns(sizes)
    settled = addresses_of_turns(sizes)
    for _ in range(3):
        assert addresses_of_turns(sizes) == settled


def test_what_is_held_is_at_most_a_quarter_more_than_was_ever_in_use_at_once() -> None:
    kept = tensors_of(2 * MIB, 1)
    most = 0
    for mib in (4, 6, 8, 14, 10, 2, 12):
        for count in (1, 2):
            tensors = tensors_of(mib * MIB, count)
            most = max(most, _C.totals()["used"])
            tensors.clear()
            totals = _C.totals()
            assert totals["used"] + totals["cached"] <= 1.25 * most
    del kept


def test_pages_given_back_last_serve_first() -> None:
    first, last = tensors_of(1 * MIB, 2)
    where = last.data_ptr()
    del first
    del last
    assert tensors_of(1 * MIB, 1)[0].data_ptr() == where


# How many pages a tensor takes, and how many tensors go after it.
TURNS = st.lists(st.tuples(st.integers(16, 1500), st.integers(0, 3)), min_size=1, max_size=40)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(turns=TURNS)
def test_memory_put_together_from_freed_pieces_belongs_to_one_tensor_alone(
    turns: list[tuple[int, int]],
) -> None:
    held: list[tuple[int, torch.Tensor]] = []
    for number, (pages, going) in enumerate(turns):
        tensor = torch.empty(pages * PAGE // 4, dtype=torch.float32)
        held.append((number, tensor.fill_(number)))
        # Which one goes changes from turn to turn, so that pieces of many sizes lie free.
        for _ in range(min(going, len(held))):
            held.pop(number % len(held))
    for value, tensor in held:
        assert bool((tensor == value).all())
