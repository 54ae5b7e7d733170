"""The lossless codec gives back the same bits, makes ordinary values smaller, and never larger."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from teraio.kernels import Packed, pack, staging_nbytes, unpack
from tests.kernels.lossless_reader import read
from tests.kernels.places import OTHERS, PLACES, TORCH_CPU, Place
from tests.kernels.values import KINDS, SPECIAL, any_bits, as_dtype, normal, same_bits

everywhere = pytest.mark.parametrize("place", PLACES, indirect=True)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
drawn = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CANARY = 0xA5
parts = st.lists(
    st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 1500), st.integers(0, 9)),
    min_size=1,
    max_size=3,
)


def _encoded(storages: list[Tensor], place: Place, fill: int = 0) -> tuple[Packed, Tensor]:
    moved = [place.put(storage) for storage in storages]
    staging = place.staging(staging_nbytes(moved, codecs="lossless") + 2048, fill)
    packed = pack(moved, staging, codecs="lossless", implementation=place.implementation)
    return packed, staging


def _check_round_trip(storages: list[Tensor], place: Place) -> Packed:
    packed, staging = _encoded(storages, place, CANARY)
    untouched = torch.ones(staging.numel(), dtype=torch.bool)
    for piece in packed.pieces:
        untouched[piece.offset : piece.offset + piece.nbytes] = False
    assert staging.cpu()[untouched].eq(CANARY).all()
    targets = [place.put(torch.full_like(storage, 7)) for storage in storages]
    unpack(packed, staging, targets, implementation=place.implementation)
    assert all(same_bits(a, b) for a, b in zip(storages, targets, strict=True))
    assert all(piece.nbytes <= piece.raw_nbytes for piece in packed.pieces)
    return packed


def _ratio(storage: Tensor) -> float:
    piece = _check_round_trip([storage], TORCH_CPU).pieces[0]
    return piece.nbytes / piece.raw_nbytes


@everywhere
@both_dtypes
@drawn
@given(parts=parts)
def test_the_bits_come_back(
    place: Place, dtype: torch.dtype, parts: list[tuple[str, int, int]]
) -> None:
    """Of several storages, and of one whose blocks differ."""
    storages = [as_dtype(KINDS[kind](count, seed), dtype) for kind, count, seed in parts]
    _check_round_trip([*storages, torch.cat(storages)], place)


@everywhere
@both_dtypes
def test_special_values_come_back_in_an_encoded_storage(place: Place, dtype: torch.dtype) -> None:
    values = normal(5000)
    values[torch.arange(len(SPECIAL)) * 90] = SPECIAL
    packed = _check_round_trip([as_dtype(values, dtype)], place)
    assert packed.pieces[0].codec == "lossless"


@everywhere
def test_all_patterns_of_16_bits_come_back(place: Place) -> None:
    """In blocks of their own, so that storages of every width are encoded."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    exponent = (bits.to(torch.int32) >> 7) & 0xFF
    sorted_by_exponent = bits[torch.argsort(exponent, stable=True)].view(torch.bfloat16)
    packed = _check_round_trip([sorted_by_exponent[:20_000]], place)
    assert packed.pieces[0].codec == "lossless"
    _check_round_trip([sorted_by_exponent[20_000:], bits.view(torch.bfloat16)], place)


@pytest.mark.parametrize("place", OTHERS, indirect=True)
@both_dtypes
@drawn
@given(parts=parts)
def test_implementations_write_the_same_bytes(
    place: Place, dtype: torch.dtype, parts: list[tuple[str, int, int]]
) -> None:
    storages = [as_dtype(KINDS[kind](count, seed), dtype) for kind, count, seed in parts]
    (packed, staging), (expected, twin) = (_encoded(storages, p) for p in (place, TORCH_CPU))
    assert packed == expected
    assert same_bits(staging, twin)


@everywhere
@pytest.mark.parametrize("kind", sorted(KINDS))
@both_dtypes
def test_the_bytes_are_as_described(place: Place, kind: str, dtype: torch.dtype) -> None:
    values = as_dtype(KINDS[kind](2500, 3), dtype)
    packed, staging = _encoded([values], place)
    if packed.pieces[0].codec == "raw":
        assert same_bits(staging[: packed.nbytes], values)
        return
    bits = as_dtype(values.float(), torch.float32).view(torch.int32)
    if dtype == torch.bfloat16:
        bits = values.view(torch.int16).to(torch.int32) << 16
    expected = [int(value) & 0xFFFFFFFF for value in bits]
    assert read(bytes(staging.cpu().tolist()), len(values)) == expected


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.bfloat16, 0.72), (torch.float32, 0.86)], ids=["bf16", "fp32"]
)
def test_normal_values_get_smaller(dtype: torch.dtype, most: float) -> None:
    assert _ratio(normal(1 << 17).to(dtype)) < most


def test_fp32_that_holds_bf16_gets_smaller_than_half() -> None:
    assert _ratio(normal(1 << 17).bfloat16().float()) < 0.37


def test_constant_storages_nearly_vanish() -> None:
    assert _ratio(torch.zeros(1 << 17)) < 0.002
    assert _ratio(torch.full((1 << 17,), 2.0, dtype=torch.bfloat16)) < 0.005


@everywhere
def test_what_does_not_get_smaller_stays_raw(place: Place) -> None:
    storages = [
        any_bits(4096), normal(4096), normal(3), torch.arange(4096), normal(4096).half(),
        normal(4096).double(),
    ]  # fmt: skip
    packed = _check_round_trip(storages, place)
    codecs = [piece.codec for piece in packed.pieces]
    assert codecs == ["raw", "lossless", "raw", "raw", "raw", "raw"]
    assert packed.pieces[0].nbytes == packed.pieces[0].raw_nbytes


@everywhere
def test_pieces_follow_each_other_at_aligned_places(place: Place) -> None:
    storages = [place.put(normal(3000 + 7 * index, index)) for index in range(4)]
    staging = place.staging(staging_nbytes(storages, codecs="lossless", alignment=4096))
    packed = pack(
        storages, staging, codecs="lossless", alignment=4096, implementation=place.implementation
    )
    ends = [0]
    for piece in packed.pieces:
        assert piece.offset % 4096 == 0
        assert 0 <= piece.offset - ends[-1] < 4096
        ends.append(piece.offset + piece.nbytes)
    assert packed.nbytes == ends[-1] < staging.numel()


@everywhere
def test_storages_at_odd_addresses_and_longer_than_a_run(place: Place) -> None:
    """The twin works on 512 blocks at a time; vectors need addresses that are multiples of 16."""
    memory = place.put(normal(513 * 1024 + 40).bfloat16())
    if place.implementation == "triton" and place.device == "cpu":
        memory = memory[: 3 * 1024 + 40]
    storages = [memory[1:-39]]
    staging = place.staging(staging_nbytes(storages, codecs="lossless"))
    packed = pack(storages, staging, codecs="lossless", implementation=place.implementation)
    assert packed.pieces[0].codec == "lossless"
    target = torch.zeros_like(memory)
    unpack(packed, staging, [target[1:-39]], implementation=place.implementation)
    assert same_bits(target[1:-39], storages[0])
    assert target[0] == 0
    assert target[-39:].eq(0).all()
