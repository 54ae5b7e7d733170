"""Storages of any size and alignment go into staging and back; nothing else is touched."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from teraio.kernels import pack, staging_nbytes, unpack
from tests.kernels.places import PLACES, Place
from tests.kernels.values import same_bits

everywhere = pytest.mark.parametrize("place", PLACES, indirect=True)
CANARY = 0xA5
TILE = 16 * 1024


def _bytes(count: int, seed: int = 0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=made)


def _storages(spans: list[tuple[int, int]], place: Place) -> list[Tensor]:
    """Views of one memory: ``shift`` bytes behind a multiple of 64, ``nbytes`` long."""
    rooms = [(shift + nbytes + 127) // 64 * 64 for shift, nbytes in spans]
    memory = place.put(_bytes(sum(rooms) + 64))
    base, views = -memory.data_ptr() % 64, []
    for (shift, nbytes), room in zip(spans, rooms, strict=True):
        views.append(memory[base + shift : base + shift + nbytes])
        base += room
    return views


def _check_round_trip(storages: list[Tensor], alignment: int, place: Place) -> None:
    staging = place.staging(staging_nbytes(storages, alignment=alignment) + 64, CANARY)
    packed = pack(storages, staging, alignment=alignment, implementation=place.implementation)
    expected = bytearray([CANARY]) * staging.numel()
    for piece, storage in zip(packed.pieces, storages, strict=True):
        assert piece.offset % alignment == 0
        content = bytes(storage.cpu().tolist())
        expected[piece.offset : piece.offset + piece.nbytes] = content
    assert bytes(staging.cpu().tolist()) == bytes(expected)
    memory = place.staging(sum(s.numel() + 64 for s in storages) + 64, CANARY)
    targets, untouched, at = [], torch.ones(memory.numel(), dtype=torch.bool), 0
    for storage in storages:
        at += (storage.data_ptr() - memory.data_ptr() - at) % 64
        targets.append(memory[at : at + storage.numel()])
        untouched[at : at + storage.numel()] = False
        at += storage.numel()
    unpack(packed, staging.clone(), targets, implementation=place.implementation)
    assert all(same_bits(a, b) for a, b in zip(storages, targets, strict=True))
    assert memory.cpu()[untouched].eq(CANARY).all()


@everywhere
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    spans=st.lists(
        st.tuples(st.integers(0, 63), st.one_of(st.integers(0, 70), st.integers(0, 40_000))),
        max_size=6,
    ),
    alignment=st.sampled_from([16, 64, 4096]),
)
def test_any_sizes_and_alignments(
    place: Place, spans: list[tuple[int, int]], alignment: int
) -> None:
    _check_round_trip(_storages(spans, place), alignment, place)


@everywhere
@pytest.mark.parametrize("shift", [0, 16, 8, 4, 2, 1])
def test_sizes_around_a_tile(place: Place, shift: int) -> None:
    sizes = [TILE - 17, TILE - 1, TILE, TILE + 1, TILE + 15, 2 * TILE + 16, 3 * TILE - 3]
    _check_round_trip(_storages([(shift, nbytes) for nbytes in sizes], place), 16, place)


@everywhere
def test_many_small_storages(place: Place) -> None:
    spans = [(16 * (number % 4), 1 + 37 * number % 500) for number in range(300)]
    _check_round_trip(_storages(spans, place), 16, place)


@everywhere
def test_every_dtype(place: Place) -> None:
    dtypes = (
        torch.bool, torch.int8, torch.int16, torch.int64, torch.float16, torch.bfloat16,
        torch.float64, torch.complex64, torch.float8_e4m3fn,
    )  # fmt: skip
    storages = [place.put(_bytes(64 * 7, index)).view(d) for index, d in enumerate(dtypes[1:])]
    storages.append(place.put(torch.tensor([True, False, True])))
    staging = place.staging(staging_nbytes(storages))
    packed = pack(storages, staging, implementation=place.implementation)
    targets = [torch.zeros_like(storage) for storage in storages]
    unpack(packed, staging, targets, implementation=place.implementation)
    assert all(same_bits(a, b) for a, b in zip(storages, targets, strict=True))


@everywhere
def test_autograd_sees_no_change(place: Place) -> None:
    weight = torch.nn.Parameter(place.put(torch.ones(100)))
    loss = weight.square().sum()
    staging = place.staging(400)
    packed = pack([weight], staging, implementation=place.implementation)
    unpack(packed, staging, [weight], implementation=place.implementation)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.eq(2).all()


@everywhere
def test_a_storage_may_be_packed_twice(place: Place) -> None:
    storage = place.put(_bytes(1000))
    staging = place.staging(staging_nbytes([storage, storage]))
    packed = pack([storage, storage], staging, implementation=place.implementation)
    first, second = packed.pieces
    assert same_bits(staging[first.offset :][:1000], staging[second.offset :][:1000])


@everywhere
def test_nothing_to_pack(place: Place) -> None:
    staging = place.staging(0)
    packed = pack([], staging, implementation=place.implementation)
    assert (packed.pieces, packed.nbytes) == ((), 0)
    unpack(packed, staging, [], implementation=place.implementation)
    empty = place.put(torch.empty(0))
    packed = pack([empty], staging, codecs="lossless", implementation=place.implementation)
    assert packed.pieces[0].nbytes == 0
    unpack(packed, staging, [empty], implementation=place.implementation)
