"""Spill I/O through kvikio: host memory takes its way here, so no GPU is needed.

In: kvikio and a CUDA driver library (libcuda.so.1, which works without a GPU). Skipped where either
is missing; with TERAIO_REQUIRE=kvikio that is a failure. Out: equal results, errors with kvikio's
text, nothing left behind. docs/gpu-status.md says how to install both beside a CPU build.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import teraio
from teraio.engine import kvikio_path
from teraio.engine.kvikio_path import KvikioPath, Settings
from teraio.engine.testing import send_away
from teraio.profiler import kvikio_trials
from teraio.profiler.spill import ENVIRONMENT
from tests.integration.programs import ended, forked
from tests.integration.test_faults import open_spill_files, truncate_spill_files
from tests.integration.training import Case, Training, digests, plain, unlimited_peak
from tests.required import lacking

PAGE = 4096
MIB = 1 << 20


@pytest.fixture(scope="module")
def kvikio() -> Any:
    try:
        module = kvikio_path.load()
        with tempfile.TemporaryFile() as file:
            kvikio_path.try_out(file.fileno())
    except teraio.ConfigurationError as error:
        lacking("kvikio", str(error))
    return module


@pytest.fixture(autouse=True)
def _by_kvikio(kvikio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs of this module spill through kvikio, with threads and tasks that cut requests up."""
    monkeypatch.setenv(ENVIRONMENT, "kvikio")
    settings = Settings(threads=3, task_bytes=1 * MIB)
    monkeypatch.setattr(kvikio_trials.KvikioTrials, "_tuned", lambda self: settings)


@pytest.fixture
def file(spill: str) -> Iterator[int]:
    """A file without a name, as spill files are."""
    with tempfile.TemporaryFile(dir=spill) as made:
        os.posix_fallocate(made.fileno(), 0, 64 * MIB)
        yield made.fileno()


def pages(nbytes: int) -> torch.Tensor:
    memory = torch.empty(nbytes + PAGE, dtype=torch.uint8).random_()
    start = -memory.data_ptr() % PAGE
    return memory[start : start + nbytes]


# ------------------------------------------------------------ runs


@pytest.mark.parametrize("case", [Case("llama"), Case("gpt2", "adamw_foreach")], ids=str)
def test_training_is_equal_with_all_spill_io_through_kvikio(
    case: Case, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = unlimited_peak(case, spill) // 2
    moved: list[int] = []

    class Counted(KvikioPath):
        def _move(self, file: Any, write: bool, memory: object, nbytes: int, offset: int) -> int:
            moved.append(super()._move(file, write, memory, nbytes, offset))
            return moved[-1]

    monkeypatch.setattr(kvikio_trials, "KvikioPath", Counted)
    training = Training(case)
    both = [Path(spill) / "one", Path(spill) / "two"]
    for folder in both:
        folder.mkdir()
    teraio.offload(training.model, memory_budget=budget, ssd=both)
    moved.clear()
    training.run()
    report = teraio.report(training.model)
    teraio.restore(training.model)
    assert training.outcome.losses == plain(case).losses
    assert digests(training.model, training.optimizer) == plain(case).digests
    asked = sum(step.read_bytes + step.written_bytes for step in report.steps)
    assert sum(moved) >= asked > 0
    folders = report.hardware.tiers[0].folders
    assert {folder.path for folder in folders} == {kvikio_trials.HOST}
    assert {folder.reason for folder in folders} == {"TERAIO_IO=kvikio"}


def test_a_file_that_lost_its_end_is_an_error_that_names_it(spill: str) -> None:
    model = torch.nn.Linear(256, 256)
    teraio.offload(model, memory_budget=1 << 40, ssd=[spill])
    assert send_away(model.weight) == 1
    truncate_spill_files(spill)
    with pytest.raises(RuntimeError, match=rf"{re.escape(spill)}.*errno {errno.ENODATA}"):
        model.weight.sum()
    with suppress(teraio.SpillError):
        teraio.restore(model)


def test_closing_gives_back_files_and_settings(kvikio: Any, spill: str) -> None:
    names = ("num_threads", "task_size", "bounce_buffer_size", "auto_direct_io_read", "compat_mode")
    before = [kvikio.defaults.get(name) for name in names]
    model = torch.nn.Linear(64, 64)
    teraio.offload(model, memory_budget=1 << 40, ssd=[spill])
    assert kvikio.defaults.get("num_threads") == 3
    assert len(open_spill_files(spill)) > 1
    teraio.restore(model)
    assert [kvikio.defaults.get(name) for name in names] == before
    assert open_spill_files(spill) == []


def test_a_drive_that_can_not_be_used_leaves_nothing_open(
    kvikio: Any, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = kvikio.defaults.get("num_threads")

    def fails(self: object, *args: object) -> int:
        raise OSError(errno.EIO, "a bad block")

    monkeypatch.setattr(KvikioPath, "_move", fails)
    with pytest.raises(teraio.SpillError, match=r"a bad block \(errno 5\)"):
        teraio.offload(torch.nn.Linear(64, 64), memory_budget=1 << 40, ssd=[spill])
    assert open_spill_files(spill) == []
    assert kvikio.defaults.get("num_threads") == threads


def test_workers_of_a_data_loader_work_beside_a_run(spill: str) -> None:
    model = torch.nn.Linear(256, 256)
    teraio.offload(model, memory_budget=1 << 40, ssd=[spill])
    assert send_away(model.weight) == 1
    data = torch.utils.data.TensorDataset(torch.arange(32))
    loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=1)  # type: ignore[var-annotated]
    assert sum(int(batch.sum()) for (batch,) in loader) == sum(range(32))
    assert torch.isfinite(model.weight.sum())
    teraio.restore(model)


def test_a_program_that_never_restores_ends_as_usual(spill: str) -> None:
    program = (
        "import sys, torch, teraio; from teraio.engine.testing import send_away;"
        "model = torch.nn.Linear(2048, 2048);"
        "teraio.offload(model, memory_budget=1 << 40, ssd=sys.argv[1]);"
        "send_away(model.weight); model(torch.ones(1, 2048)); sys.exit(7)"
    )
    end = ended(program, spill)
    assert (end.returncode, end.stderr) == (7, "")


def test_a_process_forked_off_ends_as_usual(spill: str) -> None:
    end = forked(spill)
    assert (end.returncode, end.stderr) == (0, "")
    assert sorted(end.stdout.split()) == ["5", "child"]


# ------------------------------------------------------------ the path alone


def test_bytes_come_back_equal_at_any_page(file: int) -> None:
    memory, back = pages(5 * MIB), pages(5 * MIB).zero_()
    with closing(KvikioPath([file], [False])) as path:
        assert path(0, True, memory.data_ptr(), -1, memory.nbytes, 3 * PAGE) == memory.nbytes
        assert path(0, False, back.data_ptr(), -1, back.nbytes, 3 * PAGE) == back.nbytes
    assert torch.equal(memory, back)


def failure(path: KvikioPath, write: bool, memory: torch.Tensor, offset: int) -> OSError:
    with pytest.raises(OSError) as raised:
        path(0, write, memory.data_ptr(), -1, memory.nbytes, offset)
    return raised.value


def test_the_end_of_the_file_is_a_short_file(file: int) -> None:
    with closing(KvikioPath([file], [False])) as path:
        error = failure(path, False, pages(MIB), 64 * MIB)
    assert error.errno == errno.ENODATA
    assert "kvikio: " in str(error)
    assert "shorter than what was written" in str(error)


def test_a_full_drive_keeps_its_errno_and_kvikios_text() -> None:
    full = os.open("/dev/full", os.O_RDWR)
    try:
        with closing(KvikioPath([full], [False])) as path:
            error = failure(path, True, pages(MIB), 0)
    finally:
        os.close(full)
    assert error.errno == errno.ENOSPC
    assert "POSIX error" in str(error)


def test_after_an_error_no_task_touches_the_memory_any_more(file: int) -> None:
    """The last tasks fail at once, behind the end of the file; the first ones are still reading."""
    memory = pages(64 * MIB)
    os.truncate(f"/proc/self/fd/{file}", 0)
    os.pwrite(file, bytes(48 * MIB), 0)
    os.fsync(file)
    ends = [number * 16 * MIB - 1 for number in (1, 2, 3)]
    with (
        kvikio_path.configure(Settings(threads=4, task_bytes=16 * MIB)),
        closing(KvikioPath([file], [False])) as path,
    ):
        for _ in range(10):
            failure(path, False, memory, 0)
            for end in ends:  # what each task reads last; the file holds zeros
                memory[end] = 0xA5
            time.sleep(0.05)
            assert memory[ends].tolist() == [0xA5] * 3


def test_a_closed_path_refuses_requests(file: int) -> None:
    path = KvikioPath([file], [False])
    path.close()
    path.close()
    assert failure(path, True, pages(PAGE), 0).errno == errno.ESHUTDOWN


def test_staging_buffers_need_no_registration_without_gpudirect_storage(file: int) -> None:
    with closing(KvikioPath([file], [False])) as path:
        path.register(pages(PAGE).data_ptr(), PAGE, 0)


def test_threads_and_tasks_are_measured(spill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(ENVIRONMENT, "kvikio")
    monkeypatch.setattr(kvikio_trials, "_settings", {})
    model = torch.nn.Linear(64, 64)
    teraio.offload(model, memory_budget=1 << 40, ssd=[spill])
    teraio.restore(model)
    (settings,) = kvikio_trials._settings.values()
    assert settings.threads in kvikio_trials._THREADS
    assert settings.task_bytes in kvikio_trials._TASK_BYTES
