"""Storages of an accelerator that go to the SSD encoded come back as the codec promises.

In: training and single storages on the simulated device, and on CUDA where there is one. Out: equal
bits with "lossless" under random delays, memory within the budget, bytes as the codec makes them.

The simulated device has no Triton: plain torch encodes there, as a hundred kernels a piece. So only
transfers are delayed, and runs are short: two iterations are profiled, one follows the plan.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import teraio
import teraio._C as _C
from teraio.engine import coder, encoded_path
from teraio.engine.compression import compression
from teraio.engine.testing import send_away, state, stress
from teraio.kernels import implementation, pack, unpack
from tests.device.sim import SimModule
from tests.device.test_offloading import (
    module_of,
    peak_bytes,
    placed,
    plain,
    start_anew,
)
from tests.integration.test_equal_results import assert_equal
from tests.integration.training import Case, Training

MIB = 1 << 20
CASES = [
    (Case("llama", features=frozenset({"shallow"}), steps=3), 60),
    (Case("gpt2", "sgd", frozenset({"clip", "shallow"}), steps=3), 40),
]


@pytest.mark.parametrize(("case", "share"), CASES, ids=str)
def test_lossless_training_is_equal_and_keeps_the_budget(
    case: Case, share: int, accelerator: str, spill: str
) -> None:
    case = placed(case, accelerator)
    expected, peak = plain(case)
    start_anew(accelerator)
    training = Training(case)
    budget = peak * share // 100
    teraio.offload(training.model, memory_budget=budget, ssd=spill, compress="lossless")
    stress(200)
    try:
        training.run()
        report = teraio.report(training.model)
        assert peak_bytes(accelerator) <= budget
    finally:
        stress(0)
        teraio.restore(training.model)
    training.take_digests()
    assert_equal(training.outcome, expected)
    assert report.phase == "run"
    assert report.steps[-1].read_bytes > 0


@contextmanager
def encoding(codec: str, device: str, spill: str) -> Iterator[None]:
    """A run in which every storage is sent away by ``codec``."""
    model = torch.nn.Linear(8, 8).to(device)
    teraio.offload(model, memory_budget=64 * MIB, ssd=spill, compress={"parameter": codec})
    _C.encode_by_default(coder.NAMES.index(codec))
    try:
        yield
    finally:
        teraio.restore(model)


@pytest.mark.parametrize("codec", ["lossless", "bf16", "fp8", "int8"])
def test_a_codec_gives_what_it_gives_by_itself(codec: str, accelerator: str, spill: str) -> None:
    """Whole pieces and parts of one, again and again beside work of the program."""
    values = torch.randn(150_001).mul(3)
    buffer = torch.empty(values.nbytes + 4096, dtype=torch.uint8)
    expected = values.clone()
    unpack(pack([values], buffer, codecs=codec), buffer, [expected])
    with encoding(codec, accelerator, spill):
        stress(200)
        moving = values.to(accelerator)
        _C.end_iteration()
        for _ in range(3):
            assert send_away(moving) == 1
            back = moving.clone()
            moving.copy_(values)
            assert torch.equal(back.cpu(), expected)
        stats = _C.end_iteration()
        stress(0)
    rate = {"lossless": 0.93, "bf16": 0.55}.get(codec, 0.35)
    assert stats["written_bytes"] == stats["read_bytes"] < rate * 3 * values.nbytes


class Registrations:
    """Stands where cuFile would be told of memory."""

    def __init__(self) -> None:
        self.memory: list[tuple[int, int, int]] = []

    def register(self, address: int, nbytes: int, device: int) -> None:
        self.memory.append((address, nbytes, device))


def test_all_buffers_are_registered_with_cufile_at_once(accelerator: str, spill: str) -> None:
    space = _C.SpillSpace()
    space.add_folder(spill)
    wanted = compression("lossless")
    assert wanted is not None
    told: Any = Registrations()
    device = str(torch.empty(0, device=accelerator).device)
    encoded = encoded_path.EncodedPath(
        wanted, space, device=device, budget_bytes=256 * MIB, kvikio=told
    )
    ((address, nbytes, index),) = told.memory
    assert index == 0
    assert nbytes >= 2 * space.encoding_threads() * encoded_path.piece_nbytes(
        implementation(torch.device(device)), 256 * MIB, space.encoding_threads()
    )
    assert address == encoded._memory.data_ptr()
    space.close()
    encoded.close()


def test_buffers_are_device_memory_that_goes_back(accelerator: str, spill: str) -> None:
    module_of(accelerator).empty_cache()
    device = str(torch.empty(0, device=accelerator).device)
    before = _C.allocated(device)
    model = torch.nn.Linear(8, 8).to(accelerator)
    teraio.offload(model, memory_budget=256 * MIB, ssd=spill, compress="lossless")
    how = implementation(torch.device(accelerator))
    threads = 4
    buffers = threads * 2 * encoded_path.piece_nbytes(how, 256 * MIB, threads)
    assert buffers <= _C.allocated(device) - before < buffers + MIB
    teraio.restore(model)
    del model
    assert _C.allocated(device) == before


def test_memory_is_found_where_all_that_leaves_waits_for_the_codec(
    sim: SimModule, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator's callback can't wait for Python, so what has not begun goes as it is."""
    held, goes_on = threading.Semaphore(0), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        held.release()
        goes_on.wait()
        return pack(*args, **kwargs)

    with encoding("lossless", "sim", spill):
        torch.empty(20 * MIB, dtype=torch.uint8, device="sim")  # the most that an op has needed
        # Each has a segment of its own, and few have begun to leave when the codec is held up.
        values = [torch.full((3 * MIB // 8,), float(i)) for i in range(20)]
        tensors = [value.to("sim") for value in values]
        monkeypatch.setattr(coder, "pack", slow)
        senders = [threading.Thread(target=send_away, args=(tensor,)) for tensor in tensors]
        for sender in senders:
            sender.start()
        try:
            assert held.acquire(timeout=60)
            until(lambda: all(state(tensor) == "leaving" for tensor in tensors))
            # No op takes it, which would wait for the codec before it begins.
            storages = [torch.UntypedStorage(16 * MIB, device="sim") for _ in range(2)]
            gone = sum(state(tensor) == "away" for tensor in tensors)
        finally:
            goes_on.set()
        for sender in senders:
            sender.join()
        del storages
        assert 0 < gone < len(tensors)
        for tensor, value in zip(tensors, values, strict=True):
            assert torch.equal(tensor.cpu(), value)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.001)
