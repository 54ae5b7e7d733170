"""The lossy codecs keep to the bounds that ``CODECS`` states, and every implementation to the same
bytes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from teraio.kernels import CODECS, pack, staging_nbytes, unpack
from tests.kernels.places import OTHERS, PLACES, TORCH_CPU, Place
from tests.kernels.values import KINDS, SPECIAL, any_bits, normal, same_bits

# The interpreter computes with numpy, which warns of what is masked afterwards.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
LOSSY = [name for name, codec in CODECS.items() if not codec.exact]
GROUP = 128
everywhere = pytest.mark.parametrize("place", PLACES, indirect=True)
elsewhere = pytest.mark.parametrize("place", OTHERS, indirect=True)
each_codec = pytest.mark.parametrize("codec", LOSSY)
drawn = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
kinds = st.sampled_from(sorted(KINDS))


def _dtypes(codec: str) -> list[torch.dtype]:
    return [getattr(torch, name) for name in CODECS[codec].dtypes]


def _encoded(values: Tensor, codec: str, place: Place) -> Tensor:
    storage = place.put(values)
    staging = place.staging(staging_nbytes([storage], codecs=codec))
    pack([storage], staging, codecs=codec, implementation=place.implementation)
    return staging.cpu()


def _back(values: Tensor, codec: str, place: Place) -> Tensor:
    storage = place.put(values)
    staging = place.staging(staging_nbytes([storage], codecs=codec))
    packed = pack([storage], staging, codecs=codec, implementation=place.implementation)
    target = torch.full_like(storage, 7)
    unpack(packed, staging, [target], implementation=place.implementation)
    return target.cpu()


def _largest(values: Tensor) -> Tensor:
    """For each value, the largest finite magnitude of its group."""
    padded = torch.nn.functional.pad(values.double(), (0, -len(values) % GROUP))
    finite = torch.where(padded.isfinite(), padded.abs(), 0.0).view(-1, GROUP)
    return finite.amax(1, keepdim=True).expand(-1, GROUP).flatten()[: len(values)]


def _bounds(codec: str, values: Tensor) -> Tensor:
    """The stated bound on the error of each finite value."""
    exact, largest = values.double().abs(), _largest(values)
    two = torch.tensor(2.0, dtype=torch.float64)
    if codec == "bf16":
        return torch.where(exact >= 2.0**-126, exact * 2.0**-8, 2.0**-134)
    if codec == "int8":
        return torch.where(largest >= 2.0**-100, largest / 253, largest)
    top = torch.frexp(largest)[1].double().sub(1).clamp(min=-95)
    reach, least = (13, 17) if codec == "fp8" else (29, 32)
    return torch.where(exact >= two ** (top - reach), exact * 2.0**-4, two ** (top - least))


def _rounding(values: Tensor) -> Tensor:
    """Of a value to its dtype, which comes on top."""
    if values.dtype == torch.float32:
        return torch.zeros(len(values), dtype=torch.float64)
    smallest = torch.finfo(values.dtype).smallest_normal * torch.finfo(values.dtype).eps
    return values.double().abs() * torch.finfo(values.dtype).eps * 1.1 + smallest


def _storable(values: Tensor, codec: str) -> Tensor:
    return values.abs() if codec == "ufp8" else values


@everywhere
@each_codec
@drawn
@given(kind=kinds, count=st.integers(1, 1500), seed=st.integers(0, 99), half=st.integers(0, 2))
def test_errors_keep_to_the_stated_bound(
    place: Place, codec: str, kind: str, count: int, seed: int, half: int
) -> None:
    dtype = _dtypes(codec)[half % len(_dtypes(codec))]
    values = _storable(KINDS[kind](count, seed).to(dtype), codec)
    finite = values.isfinite() & (values.double().abs() < 3.3895e38)
    error = (_back(values, codec, place).double() - values.double()).abs()
    allowed = _bounds(codec, values) + _rounding(values)
    assert (error <= allowed)[finite].all()


@elsewhere
@each_codec
@drawn
@given(kind=kinds, count=st.integers(1, 1500), seed=st.integers(0, 99), half=st.integers(0, 2))
def test_implementations_write_the_same_bytes(
    place: Place, codec: str, kind: str, count: int, seed: int, half: int
) -> None:
    dtype = _dtypes(codec)[half % len(_dtypes(codec))]
    values = KINDS[kind](count, seed).to(dtype)
    if codec == "bf16":
        values = values.nan_to_num(1.0)  # Which NaN a NaN becomes is not specified.
    assert torch.equal(_encoded(values, codec, place), _encoded(values, codec, TORCH_CPU))
    ours, twins = _back(values, codec, place), _back(values, codec, TORCH_CPU)
    assert torch.equal(ours.isnan(), twins.isnan())
    assert same_bits(ours.nan_to_num(1.0), twins.nan_to_num(1.0))


@everywhere
@each_codec
def test_nan_and_infinities(place: Place, codec: str) -> None:
    values = torch.cat([normal(200).abs(), SPECIAL, any_bits(3000)])
    back = _back(values, codec, place)
    assert back[values.isnan()].isnan().all()
    negative = values < 0
    for sign, infinite in ((1, values == torch.inf), (-1, values == -torch.inf)):
        if codec == "int8" or (codec == "ufp8" and sign < 0):
            assert back[infinite].isnan().all()
        else:
            assert back[infinite].eq(sign * torch.inf).all()
    if codec == "ufp8":
        assert back[negative].isnan().all()


@everywhere
def test_second_moments_never_become_zero(place: Place) -> None:
    """Adam divides by their root: zero in the place of a small value makes a large step."""
    values = torch.logspace(-38, 0, 128 * 8)[torch.randperm(128 * 8)]
    back = _back(values, "ufp8", place)
    assert back.gt(0).all()
    assert _back(torch.zeros(300), "ufp8", place).eq(0).all()


@everywhere
def test_signs_of_zeros_and_largest_values(place: Place) -> None:
    extreme = torch.tensor([-0.0, 0.0, torch.finfo(torch.float32).max])
    back = _back(torch.cat([extreme, -extreme]), "fp8", place)
    assert back.signbit().tolist() == [True, False, False, False, True, True]
    assert back.isfinite().all()
    half = torch.tensor([torch.finfo(torch.float16).max, -1.0, 0.0]).half()
    assert _back(half, "fp8", place).isfinite().all()


@everywhere
@each_codec
def test_values_that_have_a_code_come_back(place: Place, codec: str) -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 4.0, 96.0, 127.0])
    if codec in ("fp8", "ufp8"):
        values[-1] = 120.0
    assert torch.equal(_back(values.repeat(50), codec, place), values.repeat(50))


@everywhere
def test_codecs_are_chosen_for_each_storage(place: Place) -> None:
    storages = [place.put(normal(2000, seed).abs()) for seed in range(6)]
    names = ["raw", "fp8", "lossless", "int8", "ufp8", "bf16"]
    staging = place.staging(staging_nbytes(storages, codecs=names, alignment=64))
    packed = pack(
        storages, staging, codecs=names, alignment=64, implementation=place.implementation
    )
    assert [piece.codec for piece in packed.pieces] == names
    targets = [torch.zeros_like(storage) for storage in storages]
    unpack(packed, staging, targets, implementation=place.implementation)
    exact = [torch.equal(a, b) for a, b in zip(storages, targets, strict=True)]
    assert exact == [CODECS[name].exact for name in names]


def test_sizes_are_those_of_the_rate() -> None:
    storage = torch.zeros(128 * 1000)
    sizes = {name: staging_nbytes([storage], codecs=name) for name in LOSSY}
    assert sizes == {"bf16": 256_000, "fp8": 129_008, "ufp8": 129_008, "int8": 132_000}
