"""Threads that train, read, send away, hold, publish, replace, look and fork, all at once.

In: seconds for each of the runs. Out: an error if a thread saw one, or wrong bits. Must not know:
sanitizers.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import torch
from torch import nn

import teraio
from teraio import _C
from teraio.engine.testing import stress

TENSORS = [torch.randn(1 << 14) for _ in range(12)]
SUMS = [tensor.sum().item() for tensor in TENSORS]


def read() -> None:
    which = random.randrange(len(TENSORS))
    assert TENSORS[which].sum().item() == SUMS[which], "wrong bits"


def send_away() -> None:
    _C.send_away(random.choice(TENSORS))


def hold() -> None:
    tensor = random.choice(TENSORS)
    with teraio.resident(tensor):
        tensor.numpy()[:10].sum()


def publish() -> None:
    tensor = random.choice(TENSORS[:4])  # an address that is out keeps them from moving for a while
    tensor.data_ptr()
    tensor.untyped_storage().data_ptr()


def make() -> None:
    value = random.random()
    tensors = [torch.full((random.randrange(1 << 12, 1 << 15),), value) for _ in range(4)]
    assert all((tensor * 2)[-1] == tensor[0] * 2 for tensor in tensors), "wrong bits"


def differentiate() -> None:
    x = torch.randn(64, 128, requires_grad=True)
    (x.tanh() @ torch.ones(128, 64)).sum().backward()  # type: ignore[no-untyped-call]


def replace() -> None:
    which = random.randrange(len(TENSORS))
    TENSORS[which] = TENSORS[which].clone()  # which several threads then see for the first time


def look() -> None:
    _C.totals()
    _C.live_blocks()
    for tensor in TENSORS:
        _C.state(tensor)
    time.sleep(0.002)


def fork() -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # else one that hangs never ends
        torch.empty(1 << 14)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "a child failed"
    time.sleep(0.05)


ACTIONS = (read, read, send_away, hold, publish, replace, make, differentiate, look, fork)


class Repeated(threading.Thread):
    """Does one thing again and again, until it is told to stop or the thing fails."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(name=action.__name__)
        self.action, self.times, self.going = action, 0, True
        self.error: Exception | None = None

    def run(self) -> None:
        while self.going and self.error is None:
            try:
                self.action()
            except teraio.BudgetError:
                pass  # the threads together may want more than there is
            except Exception as error:
                self.error = error
            self.times += 1


def run(seconds: float, budget: str, compress: str | None) -> None:
    """One run in which the main thread trains; it ends while the other threads go on."""
    layers = [layer for _ in range(6) for layer in (nn.Linear(128, 128), nn.Tanh())]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters())
    threads = [Repeated(action) for action in ACTIONS]
    with tempfile.TemporaryDirectory() as folder:
        teraio.offload(model, memory_budget=budget, ssd=folder, allow_tmpfs=True, compress=compress)
        stress(300)
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        steps = 0
        while time.monotonic() < end:
            steps += 1
            try:
                model(torch.randn(256, 128)).square().mean().backward()
                optimizer.step()
            except teraio.BudgetError:
                pass
            optimizer.zero_grad()
        stress(0)
        teraio.restore(model)
        for thread in threads:
            thread.going = False
        for thread in threads:
            thread.join()
    print(f"compress={compress}: {steps} steps,", *(f"{t.name} {t.times}" for t in threads))
    errors = [(thread.name, thread.error) for thread in threads if thread.error is not None]
    if errors:
        sys.exit(f"failed: {errors}")


if __name__ == "__main__":
    seconds = float(sys.argv[1])
    # A deadlock must not last for ever.
    faulthandler.dump_traceback_later(2 * seconds + 120, exit=True)
    # By default Python leaves a thread alone for 5 ms, in which the others do nothing.
    sys.setswitchinterval(1e-4)
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(1)
    run(seconds, "4MiB", compress=None)
    run(seconds, "8MiB", compress="lossless")  # 2.4 MiB of it are for buffers
