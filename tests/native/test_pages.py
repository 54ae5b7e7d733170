"""Claims about the memory of CPU storages: given back, it serves again, whatever its size was."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import teraio

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


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ([(6 * MIB, 6)], [(4 * MIB, 9)]),  # huge pages
        ([(6 * MIB, 6)], [(1152 * KIB, 18)]),  # smaller than a huge page, so one is cut
        ([(6 * MIB, 6)], [(2304 * KIB, 9)]),  # a huge page, and an end from one that is cut
        ([(1152 * KIB, 20)], [(640 * KIB, 20)]),  # the ends of others
        ([(2304 * KIB, 12)], [(6 * MIB, 4), (256 * KIB, 12)]),  # huge pages, and what was cut off
        # What remains of a cut page is an end as well.
        ([(2 * MIB, 10)], [(1152 * KIB, 10), (768 * KIB, 10)]),
    ],
)
def test_pages_given_back_serve_other_sizes(
    given: list[tuple[int, int]], taken: list[tuple[int, int]]
) -> None:
    before = [tensor for size in given for tensor in tensors_of(*size)]
    faults_of_filling(before)
    before.clear()
    after = [tensor for size in taken for tensor in tensors_of(*size)]
    pages = sum(nbytes * count for nbytes, count in taken) // PAGE
    assert faults_of_filling(after) < pages // 20
    assert all(bool((tensor == value).all()) for value, tensor in enumerate(after))
