"""The simulated device as a fixture, and CUDA where there is one.

In: a C++ compiler. Out: ``sim``, built and clean for each test; ``accelerator``, the name of one or
the other. Must not know: single tests.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from teraio.engine.testing import stress
from tests.device.sim import SimModule, load
from tests.integration.conftest import _no_run_left_over, spill
from tests.required import lacking, promised

__all__ = ["_no_run_left_over", "sim", "spill"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Autograd learns which devices there are at the first backward pass of the process.

    It takes one accelerator for that of the process, so the simulated device can't be beside a GPU.
    """
    if not promised("gpu") and any(HERE in item.path.parents for item in items):
        with contextlib.suppress(RuntimeError):  # the tests that need the device will say it
            load()


@pytest.fixture
def sim() -> Iterator[SimModule]:
    """The device as after loading: nothing in its memory, no delay, limit or callback, seed 0."""
    if promised("gpu"):
        pytest.skip("this process tests with a GPU")
    device = load()
    # The traceback of a test that failed keeps its tensors, which would count in this one's budget.
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)
    gc.collect()
    threads = torch.get_num_threads()
    swapping = torch.__future__.get_swap_module_params_on_conversion()
    torch.set_num_threads(1)
    # Module.to("sim") keeps its parameters, so that tied ones stay tied, as Module.to("cuda") does.
    torch.__future__.set_swap_module_params_on_conversion(True)
    device.reset()
    yield device
    gc.collect()
    device.reset()
    torch.__future__.set_swap_module_params_on_conversion(swapping)
    torch.set_num_threads(threads)


@pytest.fixture(params=["sim", pytest.param("cuda", marks=pytest.mark.gpu)])
def accelerator(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device with deterministic kernels and an empty allocator."""
    if request.param == "cuda" and not torch.cuda.is_available():
        lacking("gpu", "no CUDA device")
    if request.param == "sim":
        request.getfixturevalue("sim")
    else:
        torch.use_deterministic_algorithms(True)
    yield request.param
    stress(0)
    torch.use_deterministic_algorithms(False)
