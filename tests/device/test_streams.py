"""Kernels run later than their ops, in the order of their stream; events order two streams."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.device.sim import SimModule
from tests.integration.programs import ended


def test_an_op_returns_before_its_kernel_ran(sim: SimModule) -> None:
    x = torch.ones(8, device="sim")
    sim.synchronize()
    with sim.paused():
        y = x + 1
        assert y.shape == (8,)
        assert not sim.idle()
    assert y.tolist() == [2.0] * 8
    assert sim.idle()


def test_kernels_of_a_stream_run_in_the_order_of_their_ops(sim: SimModule) -> None:
    sim.set_delay(300)
    x = torch.zeros(4, device="sim", dtype=torch.int64)
    for digit in (1, 2, 3, 4, 5):
        x.mul_(10).add_(digit)
    assert x.tolist() == [12345] * 4


def test_another_stream_that_waits_for_an_event_sees_the_result(sim: SimModule) -> None:
    x = torch.ones(8, device="sim")
    sim.synchronize()
    producer, consumer, event = sim.Stream(), sim.Stream(), sim.Event()
    with sim.paused(producer):
        with producer:
            x.fill_(5)
            event.record()
        with consumer:
            event.wait()
            y = x + 1
        assert not event.query()
        assert not sim.idle(consumer)
    consumer.synchronize()
    assert event.query()
    assert y.tolist() == [6.0] * 8


def test_another_stream_that_does_not_wait_sees_the_old_data(sim: SimModule) -> None:
    x = torch.ones(8, device="sim")
    sim.synchronize()
    producer, consumer = sim.Stream(), sim.Stream()
    with sim.paused(producer):
        with producer:
            x.fill_(5)
        with consumer:
            y = x + 1
        consumer.synchronize()
    sim.synchronize()
    assert y.tolist() == [2.0] * 8
    assert x.tolist() == [5.0] * 8


def test_delays_show_a_missing_wait(sim: SimModule) -> None:
    wrong = 0
    sim.set_delay(2000)
    producer, consumer = sim.Stream(), sim.Stream()
    for _ in range(50):
        x = torch.zeros(8, device="sim")
        sim.synchronize()
        with producer:
            x.fill_(1)
        with consumer:
            y = x + 1
        sim.synchronize()
        wrong += y.tolist() != [2.0] * 8
    assert wrong > 0


def test_a_wait_is_for_the_event_as_it_was_recorded_then(sim: SimModule) -> None:
    x = torch.zeros(1, device="sim")
    sim.synchronize()
    producer, consumer, event = sim.Stream(), sim.Stream(), sim.Event()
    with producer:
        x.fill_(1)
        event.record()
    event.synchronize()
    with consumer:
        event.wait()
        y = x + 1
    with sim.paused(producer):
        with producer:
            x.fill_(7)
            event.record()
        consumer.synchronize()
        assert not event.query()
    assert y.item() == 2.0
    event.synchronize()
    assert x.item() == 7.0


def test_an_event_never_recorded_holds_nothing_up(sim: SimModule) -> None:
    event = sim.Event()
    event.wait()
    event.synchronize()
    assert event.query()


def test_events_tell_the_time_between_them(sim: SimModule) -> None:
    first, second = sim.Event(enable_timing=True), sim.Event(enable_timing=True)
    x = torch.ones(8, device="sim")
    first.record()
    with sim.paused():
        x.add_(1)
        second.record()
        with pytest.raises(RuntimeError, match="must be completed"):
            first.elapsed_time(second)
    second.synchronize()
    assert first.elapsed_time(second) >= 0.0


def test_item_waits_for_its_stream(sim: SimModule) -> None:
    sim.set_delay(3000)
    x = torch.ones((), device="sim")
    x.add_(1)
    assert x.item() == 2.0


def test_ops_whose_shape_depends_on_data_wait_for_it(sim: SimModule) -> None:
    sim.set_delay(1000)
    x = torch.tensor([0.0, 3.0, 0.0, 4.0], device="sim")
    x.mul_(2)
    assert x.nonzero().flatten().tolist() == [1, 3]
    assert x[x > 0].tolist() == [6.0, 8.0]
    x[x > 6] = 1.0
    assert x.tolist() == [0.0, 6.0, 0.0, 1.0]
    assert torch.equal(x, x.clone())


def test_a_kernel_that_fails_is_reported_when_its_stream_is_waited_for(sim: SimModule) -> None:
    table = torch.ones(4, 2, device="sim")
    rows = torch.nn.functional.embedding(torch.tensor([9], device="sim"), table)
    assert rows.shape == (1, 2)
    with pytest.raises(IndexError, match="out of range"):
        sim.synchronize()
    assert (table + 1).tolist() == [[2.0, 2.0]] * 4


def test_wrong_shapes_are_reported_by_the_op(sim: SimModule) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.ones(2, 3, device="sim") @ torch.ones(2, 3, device="sim")


def test_tensors_of_two_devices_do_not_mix(sim: SimModule) -> None:
    x, on_cpu = torch.ones(3, device="sim"), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="at least two devices, sim:0 and cpu"):
        x + on_cpu
    with pytest.raises(RuntimeError, match="'index' is on cpu, but others are on sim:0"):
        x.index_select(0, on_cpu)
    assert (x * torch.tensor(2.0)).tolist() == [2.0] * 3


def test_each_thread_has_a_current_stream_of_its_own(sim: SimModule) -> None:
    default = sim.current_stream().stream_id
    seen: list[int] = []
    with sim.Stream() as stream:
        thread = threading.Thread(target=lambda: seen.append(sim.current_stream().stream_id))
        thread.start()
        thread.join()
        assert sim.current_stream().stream_id == stream.stream_id
    assert seen == [default]
    assert sim.current_stream().stream_id == default


def test_backward_runs_on_the_stream_of_its_forward(sim: SimModule) -> None:
    x = torch.ones(4, device="sim", requires_grad=True)
    sim.synchronize()
    stream = sim.Stream()
    with stream:
        loss = (x * x).sum()
    with sim.paused(stream):
        loss.backward()
        assert not sim.idle(stream)
    sim.synchronize()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0] * 4


def test_observers_see_ops_but_no_kernels(sim: SimModule) -> None:
    with torch.autograd.profiler.profile() as seen:
        x = torch.ones(8, device="sim")
        x.add_(1)
        sim.synchronize()
    names = [event.name for event in seen.function_events]
    assert names.count("aten::add_") == 1
    assert len({event.thread for event in seen.function_events}) == 1


NEEDS_PYTHON = """
import sys, torch, teraio
from tests.device.sim import load

sim = load()
torch.set_num_threads(1)
pinned = torch.ones(1 << 16)
sim.host_register(pinned.data_ptr(), pinned.nbytes)
there = torch.zeros(1 << 16, device="sim")
model = torch.nn.ParameterList(torch.full((1 << 20,), 1.0, device="sim") for _ in range(6))
sim.set_delay(50_000)


def copies():
    # When each is done, the stream lets go of the tensor, which is an object of Python's.
    for _ in range(8):
        there.copy_(pinned, non_blocking=True)


copies()
teraio.offload(model, memory_budget=16 << 20, ssd=sys.argv[1], host_memory=8 << 20)
for _ in range(4):
    with teraio.iteration(model), torch.no_grad():
        for weight in model:
            weight.add_(1)
        copies()
copies()
teraio.restore(model)
print([weight.sum().item() / (1 << 20) for weight in model])
"""


def test_what_waits_for_the_device_does_not_keep_it_from_python(spill: str) -> None:
    """What runs there may call the host, which may run Python."""
    done = ended(NEEDS_PYTHON, spill, timeout_s=200)
    assert done.stdout.splitlines()[-1:] == [str([5.0] * 6)], done.stderr
