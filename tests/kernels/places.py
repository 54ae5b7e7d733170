"""Where the kernels are tested: devices, and implementations on them.

In: the environment. Out: parameters for tests. Must not know: what is tested.

Triton decides when a kernel is defined whether it is compiled or interpreted, so one process does
one of both: ``pytest tests/kernels`` interprets on the CPU; ``TERAIO_REQUIRE=gpu pytest -m gpu
tests/kernels`` compiles, and fails where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.cuda import double
from tests.required import lacking


@dataclass(frozen=True, slots=True)
class Place:
    device: str
    implementation: str

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def staging(self, nbytes: int, fill: int = 0) -> Tensor:
        return torch.full((nbytes,), fill, dtype=torch.uint8, device=self.device)


TORCH_CPU = Place("cpu", "torch")
INTERPRETED = Place("cpu", "triton")
COMPILED = Place("cuda", "triton")
TORCH_GPU = Place("cuda", "torch")
PLACES = [
    pytest.param(TORCH_CPU, id="torch-cpu"),
    pytest.param(INTERPRETED, id="triton-interpreted"),
    pytest.param(COMPILED, id="triton-gpu", marks=pytest.mark.gpu),
    pytest.param(TORCH_GPU, id="torch-gpu", marks=pytest.mark.gpu),
]
# Places whose results are compared with those of TORCH_CPU.
OTHERS = PLACES[1:]


def require(place: Place) -> None:
    """Skip a test that can't run here; fail where TERAIO_REQUIRE promises that it can."""
    if place == COMPILED and double.is_here():
        pytest.skip("the double of CUDA has no kernels of a GPU")
    missing = _missing(place)
    if missing and place.device == "cuda":
        lacking("gpu", missing)
    if missing:
        pytest.skip(missing)


def _missing(place: Place) -> str:
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    if place.device == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device"
    if place.implementation == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if place == INTERPRETED and not interpreting:
        return "kernels are compiled in this process"
    if place == COMPILED and interpreting:
        return "kernels are interpreted in this process; set TERAIO_REQUIRE=gpu"
    return ""
