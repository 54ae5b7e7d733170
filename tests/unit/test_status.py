"""Status files: private, found while the run lives, gone with it, no trust in what they say."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from teraio import status
from teraio.cli.console import out
from teraio.reports.live import live_text
from teraio.status import RunStatus, StatusFile, process_started, runs, this_process
from tests.unit.cli import run
from tests.unit.reports_data import TELEMETRY, step


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(status.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    yield tmp_path / "teraio"


def now(**changes: object) -> RunStatus:
    found = RunStatus(
        **this_process(),
        started_s=1000.0,
        updated_s=1060.0,
        folders=("/mnt/nvme0",),
        phase="run",
        budget_bytes=1 << 30,
        used_bytes=1 << 29,
        away_bytes=3 << 29,
        spill_bytes=2 << 30,
        read_bytes_per_s=2e9,
        write_bytes_per_s=4e9,
        predicted_s=0.1,
        ideal_s=0.09,
        steps=tuple(step(i) for i in range(70, 100)),
        telemetry=TELEMETRY,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_run_is_found_while_it_lives_and_no_longer(folder: Path) -> None:
    file = StatusFile()
    assert runs() == []
    file.update(now)
    assert runs() == [now()]
    file.close()
    assert runs() == []
    assert list(folder.iterdir()) == []


def test_the_file_and_its_folder_are_private(folder: Path) -> None:
    file = StatusFile()
    file.update(now)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())]
    assert modes == [0o700, 0o600]
    file.close()


def test_it_is_written_at_most_twice_a_second() -> None:
    file, asked = StatusFile(), []
    for _ in range(1000):
        file.update(lambda: asked.append(1) or now())  # type: ignore[func-returns-value]
    assert len(asked) == 1
    file.close()


def test_a_folder_that_others_can_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    file = StatusFile()
    file.update(now)
    assert list(folder.iterdir()) == []
    assert runs() == []


def test_a_link_in_the_place_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    StatusFile().update(now)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_a_killed_run_left_is_removed(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_started(child.pid)
    StatusFile().update(lambda: now(pid=child.pid, process_started=started))
    assert [found.pid for found in runs()] == [child.pid]
    child.kill()
    child.communicate()
    assert runs() == []
    assert list(folder.glob("*.json")) == []


def test_another_process_with_the_number_of_a_dead_run_is_not_taken_for_it(folder: Path) -> None:
    StatusFile().update(lambda: now(process_started=1))
    assert runs() == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"version": 2}', '{"version": 3}', '{"version": 2, "steps": [1]}', "1" * 9999],
)
def test_a_broken_file_is_passed_over(text: str, folder: Path) -> None:
    file = StatusFile()
    file.update(now)
    (folder / "7.json").write_text(text)
    assert runs() == [now()]
    file.close()


def test_a_forked_child_leaves_the_file_alone(folder: Path) -> None:
    file = StatusFile()
    file.update(now)
    child = os.fork()
    if child == 0:
        file.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert runs() == [now()]
    file.close()


def test_a_run_works_without_a_place_for_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    file = StatusFile()
    file.update(now)
    file.close()


def test_a_disk_that_is_full_is_no_reason_for_a_run_to_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(status, "_write", full)
    StatusFile().update(now)


# ---------------------------------------------------------------- top


def test_top_shows_the_run_of_a_folder_or_process(capsys: pytest.CaptureFixture[str]) -> None:
    file = StatusFile()
    file.update(now)
    for argument in ((), (os.getpid(),), ("/mnt/nvme0",)):
        ran = run(capsys, "top", "--once", *argument)
        assert ran.code == 0
        assert f"pid {os.getpid()}" in ran.out
    (one,) = json.loads(run(capsys, "top", "--json").out)  # a list also of one run
    assert one["budget_bytes"] == 1 << 30
    file.close()
    assert run(capsys, "top").code == 2


def test_top_says_phase_times_memory_bandwidth_stalls_and_drift(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out().print(live_text(now()))
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "running; 100 iterations done",
        "last iteration 120 ms +20.0% against the prediction",
        "predicted 100 ms ideal 90.0 ms",
        "stall 20.0 ms 16.7 % of the time",
        "drift 0",
        "in memory 512.0 MiB",
        "of a budget of 1.00 GiB",
        "on SSD 1.50 GiB",
        "of 4.00 GB/s measured",
        "The machine, 60 looks over 59.0 s",
        "process CPU 1.50 cores 1.25 cores 1.00 cores 1.75 cores",
        "no figure for PCIe in",
    ):
        assert part in text


def test_top_works_before_there_is_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    first = step(0, phase="profile")
    out().print(live_text(now(predicted_s=None, ideal_s=None, phase="profile", steps=(first,))))
    assert "profiling" in capsys.readouterr().out
