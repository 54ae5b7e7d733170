"""Copies between the device and the host: asynchronous where the host's memory is pinned."""

from __future__ import annotations

import torch

from tests.device.sim import SimModule


def test_a_copy_from_pinned_memory_reads_it_later(sim: SimModule) -> None:
    source = torch.ones(1024).pin_memory()
    assert source.is_pinned()
    with sim.paused():
        target = source.to("sim", non_blocking=True)
        source.fill_(2.0)
    assert target.cpu().eq(2.0).all()


def test_a_copy_from_other_memory_reads_it_at_once(sim: SimModule) -> None:
    source = torch.ones(1024)
    assert not source.is_pinned()
    with sim.paused():
        target = source.to("sim", non_blocking=True)
        source.fill_(2.0)
    assert target.eq(1.0).all()


def test_a_copy_into_pinned_memory_writes_it_later(sim: SimModule) -> None:
    source = torch.ones(1024, device="sim")
    target = torch.zeros(1024).pin_memory()
    sim.synchronize()
    with sim.paused():
        target.copy_(source, non_blocking=True)
        assert target.eq(0.0).all()
    sim.synchronize()
    assert target.eq(1.0).all()


def test_memory_of_others_may_be_registered_as_pinned(sim: SimModule) -> None:
    source = torch.ones(1024)
    sim.host_register(source.data_ptr(), source.nbytes)
    assert source.is_pinned()
    assert source[512:].is_pinned()
    with sim.paused():
        target = source.to("sim", non_blocking=True)
        source.fill_(2.0)
    sim.host_unregister(source.data_ptr())
    assert not source.is_pinned()
    assert target.cpu().eq(2.0).all()


def test_other_copies_wait(sim: SimModule) -> None:
    sim.set_delay(2000)
    x = torch.ones(1024, device="sim")
    x.add_(1)
    assert x.cpu().eq(2.0).all()
    target = torch.zeros(1024)
    target.copy_(x.add_(1), non_blocking=True)
    assert target.eq(3.0).all()


def test_copies_convert_and_broadcast(sim: SimModule) -> None:
    row = torch.arange(3)
    x = torch.zeros(2, 3, device="sim", dtype=torch.bfloat16)
    x.copy_(row)
    assert x.tolist() == [[0.0, 1.0, 2.0]] * 2
    y = torch.zeros(3, 2, dtype=torch.float64)
    y.copy_(x.t())
    assert y.tolist() == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
