"""Storages of the simulated device spill by a path written in Python, as those of a GPU may.

In: storages and training on the simulated device, kernels and transfers that are delayed. Out:
equal bits, for storages that end within a page too.
"""

from __future__ import annotations

import threading

import pytest
import torch

import teraio
from teraio import _C
from teraio.engine.testing import send_away
from teraio.profiler import spill as opening
from tests.device.sim import SimModule
from tests.device.test_offloading import train as train_under_stress
from tests.integration.training import Case
from tests.native.python_path import PAGE, PythonPath, Request

MIB = 1 << 20


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[PythonPath]:
    """The paths that runs were given for the device's memory."""
    given: list[PythonPath] = []
    choose = opening._choose_for_accelerator

    def choose_python(spill: opening.Spill, device: str, wanted: str, budget: int | None) -> None:
        choose(spill, device, wanted, budget)
        given.append(PythonPath(spill.fds))
        spill.space.set_device_path(given[-1], [True] * len(spill.fds))

    monkeypatch.setattr(opening, "_choose_for_accelerator", choose_python)
    return given


def offloaded(spill: str, *folders: str) -> torch.nn.Module:
    model = torch.nn.Linear(512, 512).to("sim")
    teraio.offload(model, memory_budget=256 * MIB, ssd=[spill, *folders])
    return model


@pytest.mark.parametrize("elements", [MIB // 4, MIB // 4 + 1, 9 * MIB + 1023, 3 * MIB + 512])
def test_a_storage_comes_back_equal_wherever_it_ends(
    elements: int, sim: SimModule, spill: str, paths: list[PythonPath]
) -> None:
    model = offloaded(spill)
    values = torch.randn(elements)
    tensor = values.to("sim")
    paths[0].requests.clear()
    assert send_away(tensor) == 1
    assert torch.equal(tensor.cpu(), values)
    asked = [request for request in paths[0].requests if request.device == 0]
    assert sum(request.nbytes for request in asked) == 2 * (values.nbytes // PAGE * PAGE)
    assert {request.write for request in asked} == {True, False}
    teraio.restore(model)


def test_small_storages_never_need_python(
    sim: SimModule, spill: str, paths: list[PythonPath]
) -> None:
    model = offloaded(spill)
    values = torch.randn(64 << 10)
    tensor = values.to("sim")
    paths[0].requests.clear()
    assert send_away(tensor) == 1
    assert torch.equal(tensor.cpu(), values)
    assert paths[0].requests == []
    teraio.restore(model)


def test_training_is_equal_with_device_memory_moved_by_python(
    sim: SimModule, spill: str, paths: list[PythonPath], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights above 1 MiB go by the path, smaller ones are staged, under the stress of both."""
    monkeypatch.setattr("tests.integration.training.VOCABULARY", 4096)
    monkeypatch.setattr("tests.device.test_offloading._plain", {})
    report = train_under_stress(Case("llama", device="sim"), 60, spill)
    assert report.phase == "run"
    assert {request.device for request in paths[-1].requests} == {0}
    assert {request.write for request in paths[-1].requests} == {True, False}


def test_what_must_not_need_python_moves_while_all_paths_wait_for_it(
    sim: SimModule, spill: str
) -> None:
    """The allocator's callback waits for such writes, and its thread may hold the GIL."""
    space = _C.SpillSpace()
    path = PythonPath([space.add_folder(spill)["fd"]])
    space.set_device_path(path, [True])
    space.start_alone([1], 64 * MIB, "sim:0")
    entered, released = threading.Semaphore(0), threading.Event()

    def wait(request: Request) -> None:
        entered.release()
        assert released.wait(60)

    path.hook = wait
    tensor = torch.arange(MIB, dtype=torch.float32).to("sim")

    def move(write: bool, into: torch.Tensor, number: int, natively: bool = False) -> int:
        offset = number * 4 * MIB
        done = space.move(write, into.data_ptr(), into.nbytes, offset, "sim:0", natively)
        return int(done["error"])

    sim.synchronize()
    waiting = [threading.Thread(target=move, args=(True, tensor, number)) for number in (1, 2)]
    for thread in waiting:
        thread.start()
        assert entered.acquire(timeout=60)
    assert move(True, tensor, 0, natively=True) == 0
    released.set()
    for thread in waiting:
        thread.join(60)
    back = torch.zeros_like(tensor)
    sim.synchronize()
    assert move(False, back, 0) == 0
    assert torch.equal(back.cpu(), tensor.cpu())
    space.close()
