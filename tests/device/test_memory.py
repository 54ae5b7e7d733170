"""Memory is reused in stream order, as CUDA's caching allocator does it; misuse is seen as NaN."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.device.sim import SimModule

KIB = 1024
UNIT = 2048 * KIB  # large enough for a segment of its own
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool)


def block(nbytes: int = UNIT, value: float = 1.0) -> torch.Tensor:
    return torch.full((nbytes // 4,), value, device="sim")


def filled_with(x: torch.Tensor, value: float) -> bool:
    """Compared on the host, so that it takes no memory of the device."""
    expected = torch.full(x.shape, value, dtype=x.dtype)
    return torch.allclose(x.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@contextmanager
def freeing(
    sim: SimModule, callback: Callable[[], bool], *, every_miss: bool = False
) -> Iterator[None]:
    function = CALLBACK(callback)
    address = ctypes.cast(function, ctypes.c_void_p).value
    sim.set_free_memory_callback(address, every_miss=every_miss)
    try:
        yield
    finally:
        sim.set_free_memory_callback(None)


def test_a_freed_block_is_reused_at_once(sim: SimModule) -> None:
    x = block()
    sim.synchronize()
    with sim.paused():
        y = x + 1
        address = x.data_ptr()
        del x
        z = torch.full_like(y, 7.0)
        assert z.data_ptr() == address
    assert filled_with(y, 2.0)
    assert filled_with(z, 7.0)


def test_blocks_are_split_and_joined(sim: SimModule) -> None:
    x = block(4 * UNIT)
    address = x.data_ptr()
    del x
    parts = [block(UNIT) for _ in range(4)]
    assert [part.data_ptr() - address for part in parts] == [i * UNIT for i in range(4)]
    assert sim.reserved() == 4 * UNIT
    for index in (1, 3, 0, 2):
        parts[index] = torch.empty(0)
    assert block(4 * UNIT).data_ptr() == address


def test_fresh_memory_is_nan(sim: SimModule) -> None:
    assert filled_with(torch.empty(UNIT, device="sim"), math.nan)


def test_a_kernel_that_comes_after_the_free_sees_nan(sim: SimModule) -> None:
    other = sim.Stream()
    x = block()
    sim.synchronize()
    with sim.paused(other):
        with other:
            y = x + 1
        del x
        sim.current_stream().synchronize()
    sim.synchronize()
    assert filled_with(y, math.nan)


def test_record_stream_keeps_a_block_until_that_stream_is_done(sim: SimModule) -> None:
    other = sim.Stream()
    x = block()
    sim.synchronize()
    address = x.data_ptr()
    with sim.paused(other):
        with other:
            y = x + 1
        x.record_stream(other)
        del x
        z = block(value=7.0)
        assert z.data_ptr() != address
        sim.current_stream().synchronize()
    sim.synchronize()
    assert filled_with(y, 2.0)
    again = block()
    assert again.data_ptr() == address


def test_another_stream_does_not_reuse_a_block(sim: SimModule) -> None:
    x = block()
    address = x.data_ptr()
    del x
    with sim.Stream():
        assert block().data_ptr() != address


def test_counts_are_of_the_blocks_in_use(sim: SimModule) -> None:
    assert sim.allocated() == 0
    x, y = block(), block()
    assert sim.allocated() == 2 * UNIT
    del x
    assert (sim.allocated(), sim.peak()) == (UNIT, 2 * UNIT)
    sim.reset_peak()
    assert sim.peak() == UNIT
    del y
    assert (sim.allocated(), sim.reserved()) == (0, 2 * UNIT)
    sim.empty_cache()
    assert sim.reserved() == 0


def test_pytorch_reads_the_counts_too(sim: SimModule) -> None:
    kept = block()
    assert torch.accelerator.memory_allocated() == kept.nbytes
    assert torch.accelerator.max_memory_allocated() == kept.nbytes


def test_what_the_device_has_does_not_depend_on_the_limit(sim: SimModule) -> None:
    sim.set_memory_limit(4 * UNIT)
    kept = block()
    free, total = sim.get_memory_info()
    assert (free + kept.nbytes, total) == (4 << 30, 4 << 30)


def test_the_limit_is_kept(sim: SimModule) -> None:
    sim.set_memory_limit(4 * UNIT)
    kept = [block() for _ in range(3)]
    kept.append(block())
    with pytest.raises(torch.OutOfMemoryError, match="the limit is 8388608"):
        block()
    kept.pop()
    kept.append(block())
    assert sim.reserved() == 4 * UNIT


def test_cached_memory_is_given_up_before_the_limit_is_an_error(sim: SimModule) -> None:
    sim.set_memory_limit(4 * UNIT)
    with sim.Stream():
        cached = block(3 * UNIT)
    del cached
    assert filled_with(block(2 * UNIT), 1.0)
    assert sim.reserved() == 2 * UNIT


def test_a_callback_may_free_memory_when_there_is_no_more(sim: SimModule) -> None:
    sim.set_memory_limit(2 * UNIT)
    kept = [block(), block()]
    calls = []

    def free() -> bool:
        calls.append(sim.allocated())
        return bool(kept) and kept.pop() is not None

    with freeing(sim, free):
        x = block(value=3.0)
        assert calls == [2 * UNIT]
        assert filled_with(x, 3.0)
        del x
        block()
        assert len(calls) == 1


def test_a_callback_that_frees_nothing_ends_in_the_error(sim: SimModule) -> None:
    sim.set_memory_limit(UNIT)
    kept = block()
    with freeing(sim, lambda: False), pytest.raises(torch.OutOfMemoryError):
        block()
    assert filled_with(kept, 1.0)


def test_a_callback_may_be_called_at_every_miss(sim: SimModule) -> None:
    calls = []

    def note() -> bool:
        calls.append(sim.reserved())
        return False

    with freeing(sim, note, every_miss=True):
        x = block()
        assert calls == [0]
        del x
        block()
        assert calls == [0]


def test_a_storage_is_resized_in_stream_order(sim: SimModule) -> None:
    x = torch.ones(16 * KIB, device="sim")
    sim.synchronize()
    with sim.paused():
        x.fill_(4.0)
        x.resize_(32 * KIB)
    assert filled_with(x[: 16 * KIB], 4.0)
    x.untyped_storage().resize_(0)
    assert sim.allocated() == 0
    x.untyped_storage().resize_(2 * UNIT)
    assert filled_with(x, math.nan)
