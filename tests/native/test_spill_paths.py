"""Claims about the ways in which bytes get to spill files and back.

The path under test is written in Python and moves bytes by ctypes and os.preadv. So it stands for
one that moves memory of a device: the spill space itself can't tell.
"""

from __future__ import annotations

import errno
import gc
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import teraio
from teraio import _C
from teraio.engine.testing import send_away
from teraio.profiler import spill as opening
from tests.integration.training import Case, Training, digests, plain, unlimited_peak
from tests.native.python_path import LARGEST, PAGE, PythonPath, Request

MIB = 1 << 20
STRIPE_UNIT = 16 * MIB


class Alone:
    """A spill space without an engine, with a Python path for memory of devices."""

    def __init__(self, folders: Sequence[Path], weights: Sequence[int], nbytes: int) -> None:
        self.space = _C.SpillSpace()
        self.fds = [self.space.add_folder(str(folder))["fd"] for folder in folders]
        self.path = PythonPath(self.fds)
        self.space.set_device_path(self.path, [True] * len(folders))
        self.space.start_alone(weights, nbytes)

    def move(
        self, write: bool, memory: torch.Tensor, offset: int = 0, device: str = "cuda:0"
    ) -> dict[str, Any]:
        self.path.requests.clear()
        return self.space.move(write, memory.data_ptr(), memory.nbytes, offset, device)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    found = Alone([tmp_path], [1], LARGEST * 2)
    yield found
    found.space.close()


def pages(nbytes: int) -> torch.Tensor:
    """Page-aligned bytes, as all memory that moves is."""
    memory = torch.empty(nbytes + PAGE, dtype=torch.uint8).random_()
    start = -memory.data_ptr() % PAGE
    return memory[start : start + nbytes]


def test_device_memory_takes_the_path_that_was_set_and_comes_back_equal(alone: Alone) -> None:
    memory = pages(3 * MIB)
    done = alone.move(True, memory, 8 * MIB, device="cuda:3")
    assert done["error"] == 0
    assert alone.path.requests == [Request(0, True, memory.data_ptr(), 3, memory.nbytes, 8 * MIB)]
    back = pages(3 * MIB).zero_()
    assert alone.move(False, back, 8 * MIB, device="cuda:3")["error"] == 0
    assert torch.equal(memory, back)


def test_host_memory_does_not_take_the_path_for_devices(alone: Alone) -> None:
    assert alone.move(True, pages(MIB), device="cpu")["error"] == 0
    assert alone.path.requests == []


def test_only_host_memory_has_a_checksum(alone: Alone) -> None:
    memory = pages(MIB)
    assert alone.move(True, memory, device="cpu")["checksum"] != 0
    assert alone.move(True, memory, device="cuda:0")["checksum"] == 0


def test_requests_are_as_large_as_a_run_of_the_file_up_to_64_mib(alone: Alone) -> None:
    memory = pages(LARGEST + 4 * PAGE)
    assert alone.move(True, memory)["error"] == 0
    sizes = sorted(request.nbytes for request in alone.path.requests)
    assert sizes == [4 * PAGE, LARGEST]


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    weights=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    first=st.integers(0, 9 * 1024),
    count=st.integers(1, 9 * 1024),
)
def test_requests_cover_a_striped_transfer_once_and_each_file_range_is_its_own(
    tmp_path: Path, weights: list[int], first: int, count: int
) -> None:
    striped = Alone([tmp_path] * len(weights), weights, 0)
    striped.path.hook = lambda request: request.nbytes  # where the bytes go is what counts here
    address = 1 << 40
    done = striped.space.move(True, address, count * PAGE, first * PAGE, "cuda:0")
    striped.space.close()
    assert done["error"] == 0
    requests = sorted(striped.path.requests, key=lambda request: request.address)
    at = address
    for request in requests:
        assert request.address == at
        assert request.nbytes % PAGE == request.offset % PAGE == 0
        at += request.nbytes
    assert at == address + count * PAGE
    for folder in range(len(weights)):
        ranges = sorted((r.offset, r.offset + r.nbytes) for r in requests if r.folder == folder)
        assert all(one[1] <= other[0] for one, other in pairwise(ranges))
        if len(ranges) > 2:  # but for the ends, nothing is cut finer than the stripe
            assert min(end - begin for begin, end in ranges[1:-1]) >= STRIPE_UNIT


def test_short_moves_are_continued(alone: Alone) -> None:
    alone.path.most = 5 * PAGE
    memory, back = pages(64 * PAGE), pages(64 * PAGE).zero_()
    assert alone.move(True, memory)["error"] == 0
    assert len(alone.path.requests) == 13
    assert alone.move(False, back)["error"] == 0
    assert torch.equal(memory, back)


@pytest.mark.parametrize(("write", "number"), [(True, errno.ENOSPC), (False, errno.ENODATA)])
def test_a_move_of_nothing_is_a_full_drive_or_a_short_file(
    write: bool, number: int, alone: Alone, tmp_path: Path
) -> None:
    alone.path.hook = lambda request: 0
    done = alone.move(write, pages(PAGE))
    assert (done["error"], done["path"]) == (number, str(tmp_path))


@pytest.mark.parametrize("answer", [PAGE + 1, -1])
def test_a_path_that_claims_what_can_not_be_is_not_believed(answer: int, alone: Alone) -> None:
    alone.path.hook = lambda request: answer
    done = alone.move(True, pages(PAGE))
    assert done["error"] == errno.EIO
    assert f"says that it moved {answer} of {PAGE} bytes" in done["text"]


def test_an_answer_that_is_no_number_is_an_error(alone: Alone) -> None:
    alone.path.hook = lambda request: "all"  # type: ignore[assignment, return-value]
    done = alone.move(True, pages(PAGE))
    assert done["error"] == errno.EIO
    assert "no number of bytes" in done["text"]


class Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("raised", "number", "words"),
    [
        (OSError(errno.ENOSPC, "kvikio: no room"), errno.ENOSPC, "kvikio: no room"),
        (FileNotFoundError(errno.ENOENT, "gone", "/a/file"), errno.ENOENT, "gone"),
        (OSError("without a number"), errno.EIO, "OSError: without a number"),
        (OSError(-5, "odd"), errno.EIO, "odd"),
        (RuntimeError("cuFile said no"), errno.EIO, "RuntimeError: cuFile said no"),
        (Silent(), errno.EIO, "can't be put into words"),
        (KeyboardInterrupt(), errno.EIO, "KeyboardInterrupt"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_an_exception_keeps_its_errno_and_text(
    raised: BaseException, number: int, words: str, alone: Alone
) -> None:
    def fail(request: Request) -> None:
        raise raised

    alone.path.hook = fail
    done = alone.move(True, pages(PAGE), 2 * PAGE)
    assert (done["error"], done["offset"]) == (number, 2 * PAGE)
    assert words in done["text"]
    alone.path.hook = lambda _: None
    assert alone.move(True, pages(PAGE))["error"] == 0


def test_an_error_says_how_far_the_request_came(alone: Alone) -> None:
    def fail_later(request: Request) -> int | None:
        if request.offset >= 3 * PAGE:
            raise OSError(errno.EIO, "a bad block")
        return None

    alone.path.most = PAGE
    alone.path.hook = fail_later
    done = alone.move(False, pages(8 * PAGE))
    assert (done["error"], done["offset"]) == (errno.EIO, 3 * PAGE)


def test_memory_of_a_device_without_a_path_is_an_error(tmp_path: Path) -> None:
    space = _C.SpillSpace()
    space.add_folder(str(tmp_path))
    space.start_alone([1], MIB)
    done = space.move(True, pages(PAGE).data_ptr(), PAGE, 0, "cuda:0")
    assert done["error"] == errno.ENOTSUP
    assert "memory of cuda:0" in done["text"]


def test_the_gil_is_free_while_a_transfer_is_waited_for(alone: Alone) -> None:
    """The main thread computes while the path waits for it: with the GIL held neither would end."""
    entered, released = threading.Event(), threading.Event()

    def wait(request: Request) -> None:
        entered.set()
        assert released.wait(30)

    alone.path.hook = wait
    memory = pages(PAGE)
    moving = threading.Thread(target=alone.move, args=(True, memory))
    moving.start()
    assert entered.wait(30)
    released.set()
    moving.join(30)
    assert not moving.is_alive()


def test_pieces_of_a_transfer_are_in_the_path_at_the_same_time(alone: Alone) -> None:
    together = threading.Barrier(2, timeout=30)
    alone.path.hook = lambda request: together.wait() * 0 + request.nbytes
    assert alone.move(False, pages(2 * LARGEST))["error"] == 0


def test_a_speed_test_uses_the_path_and_the_memory_given(tmp_path: Path) -> None:
    space = _C.SpillSpace()
    path = PythonPath([space.add_folder(str(tmp_path))["fd"]])
    space.set_device_path(path, [True])
    memory = pages(2 * MIB)
    speed = space.measure(0, MIB, "cuda:1", memory.data_ptr(), memory.nbytes)
    assert all(rate > 0 for rate in speed.values())
    begin, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
    assert path.requests
    assert all(begin <= r.address and r.address + r.nbytes <= end for r in path.requests)
    assert {r.device for r in path.requests} == {1}


def test_a_failed_speed_test_says_why(tmp_path: Path) -> None:
    space = _C.SpillSpace()
    path = PythonPath([space.add_folder(str(tmp_path))["fd"]])
    path.hook = lambda request: 0
    space.set_host_path(path)
    with pytest.raises(RuntimeError, match=r"speed test failed in .*errno"):
        space.measure(0, MIB)


# ------------------------------------------------------------ under the engine


@pytest.fixture
def by_python(monkeypatch: pytest.MonkeyPatch) -> list[PythonPath]:
    """Runs send host memory through a path written in Python."""
    paths: list[PythonPath] = []

    choose = opening._choose_for_host

    def choose_python(spill: opening.Spill, wanted: str) -> None:
        paths.append(PythonPath(spill.fds))
        spill.space.set_host_path(paths[-1])
        choose(spill, wanted)

    monkeypatch.setattr(opening, "_choose_for_host", choose_python)
    return paths


def test_training_through_a_python_path_is_equal(
    by_python: list[PythonPath], tmp_path: Path
) -> None:
    case = Case("llama")
    budget = unlimited_peak(case, str(tmp_path)) // 2
    by_python.clear()
    training = Training(case)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    teraio.offload(training.model, memory_budget=budget, ssd=folders)
    before = len(by_python[0].requests)
    training.run()
    report = teraio.report(training.model)
    teraio.restore(training.model)
    assert training.outcome.losses == plain(case).losses
    assert digests(training.model, training.optimizer) == plain(case).digests
    moved = sum(step.read_bytes + step.written_bytes for step in report.steps)
    asked = sum(request.nbytes for request in by_python[0].requests[before:])
    assert asked >= moved > 0


def test_a_model_that_dies_on_an_io_thread_closes_its_run(
    by_python: list[PythonPath], tmp_path: Path
) -> None:
    """Python's collector runs wherever Python runs; closing there would wait for itself."""
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(2)))
    teraio.offload(model, memory_budget=1 << 40, ssd=tmp_path)
    path = by_python[0]
    other = torch.ones(64 << 10)
    send_away(other)
    died_on: list[bool] = []

    def collect(request: Request) -> None:
        path.hook = lambda _: None
        gc.collect()
        died_on.append(_C.on_io_thread())

    path.hook = collect
    model.itself = model  # type: ignore[assignment]  # only the collector can free it
    del model
    assert other.sum().item() == 64 << 10
    assert died_on == [True]
    deadline = time.monotonic() + 60
    while _C.active() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _C.active()
