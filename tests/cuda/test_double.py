"""The double of CUDA is as late and as strict as a GPU: what is a race there is one here.

In: a process that has the double (``make test-cuda``). Out: late copies and kernels, dead programs,
errors that name what is missing. Must not know: teraio.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from tests.cuda import double

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not double.is_here(), reason="this process has no double of CUDA"),
]

DELAY_US = 50_000
COUNT = 1 << 16


@pytest.fixture
def late() -> Iterator[None]:
    torch.cuda.synchronize()
    double.set_delay(DELAY_US)
    yield
    double.set_delay(0)
    torch.cuda.synchronize()


def ends(program: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", "import torch\n" + program], timeout=120
    ).returncode


def test_ops_are_the_cpus_to_the_bit() -> None:
    x = torch.randn(64, 64)
    y = x.cuda()
    assert torch.equal((y @ y.t()).softmax(1).cpu(), (x @ x.t()).softmax(1))


def test_the_host_that_reads_device_memory_dies() -> None:
    read = "import ctypes\nx = torch.ones(8, device='cuda')\ntorch.cuda.synchronize()\n"
    assert ends(read) == 0
    assert ends(read + "ctypes.string_at(x.data_ptr(), 4)\n") < 0


def test_work_is_late_and_its_events_with_it(late: None) -> None:
    ones = torch.ones(COUNT, device="cuda")
    events = [torch.cuda.Event() for _ in range(20)]
    for event in events:
        ones.add_(1)
        event.record()
    assert not events[-1].query()
    events[-1].synchronize()
    assert float(ones[0]) == 21.0


def test_page_locked_memory_is_read_when_the_copys_turn_comes(late: None) -> None:
    torch.zeros(1, device="cuda").add_(1)  # the copies come after it
    locked, other = torch.ones(COUNT).pin_memory(), torch.ones(COUNT)
    copies = [source.to("cuda", non_blocking=True) for source in (locked, other)]
    locked.fill_(2.0)
    other.fill_(2.0)
    assert [float(copy[-1]) for copy in copies] == [2.0, 1.0]


def test_streams_wait_for_each_other_only_by_events(late: None) -> None:
    source = torch.ones(COUNT, device="cuda")
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(20):
        source.add_(1)
    with torch.cuda.stream(side):
        early = source.clone()
        side.wait_stream(torch.cuda.default_stream())
        whole = source.clone()
    torch.cuda.synchronize()
    assert float(early[0]) < float(whole[0]) == 21.0


def test_the_limit_of_the_device_is_kept() -> None:
    free, total = torch.cuda.mem_get_info()
    assert 0 < free <= total
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(total + 1, dtype=torch.uint8, device="cuda")


def test_a_kernel_of_the_gpu_is_an_error_that_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    program = "x = torch.ones(8, device='cuda')\ntorch.cuda._sleep(10)\ntorch.cuda.synchronize()\n"
    assert ends(program) != 0
    assert "a kernel of the GPU was launched: " in capfd.readouterr().err


def test_with_a_pace_kernels_and_copies_take_a_multiple_of_a_gpus_time() -> None:
    """Clocks of streams say so, however late threads wake; nothing is computed."""
    program = """
def took(work):
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    events[0].record()
    work()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1])

a = torch.zeros(8192, 8192, dtype=torch.bfloat16, device="cuda")
host = torch.zeros(1 << 26, dtype=torch.uint8, pin_memory=True)
there = torch.zeros(1 << 26, dtype=torch.uint8, device="cuda")
a @ a  # finds out what it looks like
product = took(lambda: a @ a)
copy = took(lambda: there.copy_(host, non_blocking=True))
print(product, copy, torch.cuda.memory_allocated() > 1 << 27)
"""
    done = subprocess.run(
        [sys.executable, "-c", "import torch\n" + program],
        env={**os.environ, double.PACE: "40"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    product, copy, counted = done.stdout.split()
    # In ms: at 600 TFLOP/s, and at 54 GB/s. The host is late by a little.
    assert float(product) == pytest.approx(40 * 2 * 8192**3 / 600e12 * 1e3, rel=0.1)
    assert float(copy) == pytest.approx(40 * (1 << 26) / 54e9 * 1e3, rel=0.1)
    assert counted == "True"
