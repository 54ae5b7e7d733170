"""Runs that come one after another in one process, and what the program does between them.

In: a model that is offloaded, restored and offloaded again. Out: equality with training without
teraio, within the same budget.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.dlpack import to_dlpack

import teraio
import teraio._C as _C
from teraio import api
from teraio.engine import testing
from teraio.telemetry import Sampler
from tests.integration.programs import ended

WIDTH = 512
MIB = 1 << 20
BUDGET = 14 * MIB  # of 24 MiB with AdamW


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(6)))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model(torch.ones(256, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_states_of_an_earlier_run_move_from_the_beginning_of_the_next(spill: str) -> None:
    ours, theirs = stack(), stack()
    optimizers = [torch.optim.AdamW(model.parameters()) for model in (ours, theirs)]
    for _ in range(2):
        teraio.offload(ours, memory_budget=BUDGET, ssd=spill)
        train(ours, optimizers[0], 4)
        assert max(step.peak_bytes for step in teraio.report(ours).steps) <= BUDGET
        teraio.restore(ours)
        train(theirs, optimizers[1], 4)
    assert all(map(torch.equal, weights(ours), weights(theirs)))


def slice_of_storage(tensor: torch.Tensor) -> np.ndarray:
    begin = tensor.storage_offset() * tensor.element_size()
    return torch.empty(0).set_(tensor.untyped_storage()[begin:], 0, tensor.shape).numpy()


WINDOWS: dict[str, Callable[[torch.Tensor], np.ndarray]] = {
    "numpy": lambda tensor: tensor.numpy(),
    "view": lambda tensor: np.asarray(tensor.view(-1)).reshape(tensor.shape),
    "buffer": lambda tensor: np.asarray(memoryview(tensor.numpy())),
    "slice": slice_of_storage,
    "dlpack": np.from_dlpack,
    "capsule": lambda tensor: torch.from_dlpack(torch.utils.dlpack.to_dlpack(tensor)).numpy(),
    "imported": lambda tensor: torch.from_dlpack(to_dlpack(tensor)).numpy(),
}
each_window = pytest.mark.parametrize("window", WINDOWS)


def check_that_an_array_stays_the_parameter(
    window: str, spill: str, *, runs_before: int, graph: bool = False
) -> None:
    model = stack()
    kept = model(torch.ones(4, WIDTH)) if graph else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(runs_before):
        teraio.offload(model, memory_budget=6 * MIB, ssd=spill)
        train(model, optimizer, 4)
        teraio.restore(model)
    weight = next(model.parameters())
    array = WINDOWS[window](weight.detach())
    before = array.copy()
    teraio.offload(model, memory_budget=6 * MIB, ssd=spill)
    assert np.array_equal(array, before)
    train(model, optimizer, 4)
    assert not np.array_equal(array, before)
    assert np.array_equal(array, weight.detach().clone().numpy())
    teraio.restore(model)
    assert np.array_equal(array, weight.detach().numpy())
    del kept


@each_window
def test_an_array_made_between_runs_stays_the_parameter(window: str, spill: str) -> None:
    check_that_an_array_stays_the_parameter(window, spill, runs_before=1)


@pytest.mark.parametrize(
    ("window", "graph"), [*((window, False) for window in WINDOWS), ("numpy", True)]
)
def test_an_array_made_before_the_first_run_stays_the_parameter(
    window: str, graph: bool, spill: str
) -> None:
    """In a process of its own: arrays are watched from the first run on."""
    end = ended(
        "import sys, torch\n"
        "from tests.integration import test_runs_in_turn as tests\n"
        "torch.set_num_threads(1)\n"
        "tests.check_that_an_array_stays_the_parameter("
        f"{window!r}, sys.argv[1], runs_before=0, graph={graph})\n",
        spill,
    )
    assert end.returncode == 0, end.stderr


def test_a_buffer_and_a_gradient_given_away_before_the_first_run_stay_in_place(spill: str) -> None:
    """DLPack gives away the tensor itself where that needs no gradients."""
    end = ended(
        "import sys, numpy, torch, teraio\n"
        "from teraio.engine.testing import state\n"
        "model = torch.nn.Linear(256, 256)\n"
        "for name in ('given', 'own'): model.register_buffer(name, torch.ones(256, 256))\n"
        "model(torch.ones(4, 256)).sum().backward()\n"
        "given = [model.given, model.weight.grad]\n"
        "arrays = [numpy.from_dlpack(tensor) for tensor in given]\n"
        "teraio.offload(model, memory_budget='64MiB', ssd=sys.argv[1])\n"
        "for tensor in given: tensor.fill_(2.0)\n"
        "assert all((array == 2.0).all() for array in arrays)\n"
        "print(*map(state, (*given, model.own, model.weight)))\n",
        spill,
    )
    assert end.stdout == "foreign foreign resident resident\n", end.stderr


@each_window
def test_a_parameter_moves_again_when_its_last_array_is_gone(window: str, spill: str) -> None:
    model = stack()
    weight = next(model.parameters())
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    array = WINDOWS[window](weight.detach()[1:])
    assert not testing.send_away(weight)
    array[:] = 2.0
    rows = array[3:]
    del array
    assert not testing.send_away(weight)
    del rows
    assert testing.send_away(weight)
    assert torch.equal(weight[1:], torch.full_like(weight[1:], 2.0))
    held = weakref.ref(weight.untyped_storage())
    teraio.restore(model)
    del model, weight
    assert held() is None


@pytest.mark.parametrize("graph", [False, True])
def test_tensors_that_share_a_parameters_memory_hold_nothing_up(graph: bool, spill: str) -> None:
    """They read it by ops."""
    model = stack()
    views = [parameter.detach()[1:] for parameter in model.parameters()]
    for view in views:
        view.numpy()  # an array that is gone
    kept = model(torch.ones(4, 3, WIDTH, requires_grad=True)) if graph else None
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    assert all(
        testing.send_away(parameter) for parameter in model.parameters() if parameter.dim() == 2
    )
    assert all(map(torch.equal, (view.clone() for view in views), (w[1:] for w in weights(model))))
    if kept is not None:
        kept.sum().backward()
    teraio.restore(model)


def test_a_closed_run_is_forgotten_while_its_model_lives(spill: str) -> None:
    model = stack()
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    closed = weakref.ref(api._runtime)
    teraio.restore(model)
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    gc.collect()
    assert closed() is None
    teraio.restore(model)


def test_an_interrupt_while_a_run_is_closed_loses_nothing(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Sampler.stop

    def interrupted(sampler: Sampler) -> None:
        stop(sampler)  # or its thread would go on
        raise KeyboardInterrupt

    ours, theirs = stack(), stack()
    optimizers = [torch.optim.AdamW(model.parameters()) for model in (ours, theirs)]
    teraio.offload(ours, memory_budget=BUDGET, ssd=spill)
    train(ours, optimizers[0], 4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Sampler, "stop", interrupted)
        teraio.restore(ours)
    assert _C.totals()["away"] == 0 and not _C.active()
    teraio.offload(ours, memory_budget=BUDGET, ssd=spill)
    train(ours, optimizers[0], 2)
    teraio.restore(ours)
    train(theirs, optimizers[1], 6)
    assert all(map(torch.equal, weights(ours), weights(theirs)))


def test_a_run_that_ended_within_a_module_leaves_no_trace_in_the_next(spill: str) -> None:
    class Ending(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            teraio.restore(outer)
            return x

    outer = nn.Sequential(nn.Linear(WIDTH, WIDTH), Ending())
    teraio.offload(outer, memory_budget=BUDGET, ssd=spill)
    outer(torch.ones(4, WIDTH))
    model = nn.Linear(WIDTH, WIDTH)
    teraio.offload(model, memory_budget=BUDGET, ssd=spill)
    for _ in range(3):
        with teraio.iteration(model):
            (torch.ones(WIDTH, WIDTH) * 2).sum()
    trace = teraio.report(model).trace
    assert trace is not None and {op.module for op in trace.ops} == {""}
    teraio.restore(model)


def test_what_another_thread_sends_away_during_restore_is_not_lost(spill: str) -> None:
    model = nn.Linear(64, 64)
    done = threading.Event()

    def send(tensor: torch.Tensor) -> None:
        while not done.is_set():
            _C.send_away(tensor)

    for _ in range(5):
        teraio.offload(model, memory_budget="64MiB", ssd=spill)
        tensors = [torch.full((1 << 14,), float(i)) for i in range(12)]
        for tensor in tensors:
            tensor.sum()
        testing.send_away(*tensors)
        testing.stress(3000)
        done.clear()
        thread = threading.Thread(target=send, args=(tensors[0],))
        thread.start()
        teraio.restore(model)
        done.set()
        thread.join()
        assert [tensor[5].item() for tensor in tensors] == list(range(12))


# In a process of its own: what a child may do depends on all that its parent has done before.
_PARENT = """
import os, sys, torch, teraio
torch.set_num_threads(1)  # OpenMP's do not live on in a child
def train():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(6)))
    optimizer = torch.optim.AdamW(model.parameters())
    teraio.offload(model, memory_budget=3400000, ssd=sys.argv[1])
    for _ in range(4):
        loss = model(torch.ones(96, 256)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert max(step.peak_bytes for step in teraio.report(model).steps) <= 3400000
    print(loss.item())
    return model
"""


def test_a_process_forked_off_one_whose_run_has_ended_trains(spill: str) -> None:
    end = ended(
        _PARENT + "teraio.restore(train())\n"
        "child = os.fork()\n"
        "if child:\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "else:\n"
        "    teraio.restore(train())\n",
        spill,
    )
    assert end.returncode == 0, end.stderr
    of_parent, of_child, code = end.stdout.split()
    assert of_parent == of_child and code == "0"


def test_a_process_forked_off_one_with_a_run_is_told_to_be_spawned(spill: str) -> None:
    end = ended(
        _PARENT + "model = train()\n"
        "child = os.fork()\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
        "else:\n"
        "    train()\n",
        spill,
    )
    assert "ConfigurationError" in end.stderr and "spawn" in end.stderr


def test_what_a_library_took_during_a_run_is_given_back_after_it(spill: str) -> None:
    end = ended(
        "import sys, torch, teraio\n"
        "model = torch.nn.Linear(64, 64)\n"
        "teraio.offload(model, memory_budget='100MiB', ssd=sys.argv[1])\n"
        "hidden = torch.ones(512, 512).to_mkldnn()\n"
        "teraio.restore(model)\n"
        "del hidden\n"
        "print(torch.ones(512, 512).to_mkldnn().to_dense().sum().item())\n",
        spill,
    )
    assert end.returncode == 0, end.stderr
    assert end.stdout.split() == ["262144.0"]


def test_a_process_forked_off_can_neither_reach_what_is_away_nor_end_the_run(spill: str) -> None:
    end = ended(
        "from teraio.engine.testing import send_away\n" + _PARENT + "model = train()\n"
        "tensor = torch.ones(1 << 18)\n"
        "send_away(tensor)\n"
        "child = os.fork()\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
        "    print(tensor.numpy().sum())\n"
        "else:\n"
        "    for use in (tensor.numpy, tensor.data_ptr, lambda: teraio.restore(model)):\n"
        "        try:\n"
        "            use()\n"
        "        except Exception as error:\n"
        "            print(type(error).__name__)\n",
        spill,
    )
    assert end.returncode == 0, end.stderr
    assert end.stdout.split()[1:] == ["SpillError", "SpillError", "ConfigurationError", "262144.0"]


def test_a_process_is_forked_while_other_threads_take_memory(spill: str) -> None:
    end = ended(
        _PARENT + "import threading\n"
        "model = train()\n"
        "def churn():\n"
        "    while True: torch.empty(1 << 14)\n"
        "for _ in range(3): threading.Thread(target=churn, daemon=True).start()\n"
        "for _ in range(150):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        torch.empty(1 << 14)\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "print('all ended', flush=True)\n"
        "os._exit(0)\n",
        spill,
    )
    assert "all ended" in end.stdout, end.stderr


def test_a_process_is_forked_by_a_new_thread_while_others_make_their_first_op(spill: str) -> None:
    """For which they take a lock of PyTorch's; of a thousand children some twenty hung in it."""
    end = ended(
        _PARENT + "import signal, sys, threading\n"
        "sys.setswitchinterval(1e-5)\n"
        "model = train()\n"
        "ends = []\n"
        "def fork():\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        signal.alarm(20)\n"
        "        torch.empty(1 << 14)\n"
        "        os._exit(0)\n"
        "    ends.append(os.waitpid(child, 0)[1])\n"
        "for _ in range(300):\n"
        "    first_ops = [threading.Thread(target=torch.empty, args=(8,)) for _ in range(6)]\n"
        "    threads = [*first_ops[:3], threading.Thread(target=fork), *first_ops[3:]]\n"
        "    for thread in threads: thread.start()\n"
        "    for thread in threads: thread.join()\n"
        "print('ended by', set(ends), flush=True)\n"
        "os._exit(0)\n",
        spill,
    )
    assert "ended by {0}" in end.stdout, end.stderr
