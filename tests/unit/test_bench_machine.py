"""What benchmarks read from the kernel: memory, traffic, and whether it keeps a limit."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from benchmarks import control_group
from benchmarks.control_group import ControlGroup, own_group, why_not
from benchmarks.meters import HighWater, Sampler, process_traffic, resident_bytes
from benchmarks.systems import Unavailable
from teraio.engine.folders import file_system

MIB = 1 << 20


def touch(nbytes: int) -> None:
    """Fills fresh memory and gives it back."""
    with mmap.mmap(-1, nbytes) as memory:
        for at in range(0, nbytes, mmap.PAGESIZE):
            memory[at] = 1


def test_the_kernels_mark_sees_memory_that_was_given_back_and_starts_anew() -> None:
    try:
        meter = HighWater()
    except OSError:
        pytest.skip("the mark can't be reset here")
    before = resident_bytes()
    touch(64 * MIB)
    assert meter.take() >= before + 63 * MIB
    assert meter.take() < before + 32 * MIB


def test_looking_often_agrees_with_the_kernels_mark() -> None:
    sampler = Sampler(interval_s=0.001)
    before = resident_bytes()
    with mmap.mmap(-1, 64 * MIB) as memory:
        for at in range(0, 64 * MIB, mmap.PAGESIZE):
            memory[at] = 1
        assert sampler.take() >= before + 63 * MIB
    sampler.close()


def test_bytes_to_a_drive_are_counted(tmp_path: Path) -> None:
    if file_system(tmp_path) == "tmpfs":
        pytest.skip("the folder lies in memory")
    before = process_traffic()
    (tmp_path / "file").write_bytes(b"x" * 8 * MIB)
    moved = process_traffic().since(before)
    assert 8 * MIB <= moved.written_bytes < 9 * MIB


def fake_mount(folder: Path, controllers: str) -> Path:
    (folder / "cgroup.controllers").write_text(controllers)
    return folder


def test_a_machine_that_keeps_no_limit_says_why(tmp_path: Path) -> None:
    no_swap = tmp_path / "swaps"
    no_swap.write_text("Filename Type Size Used Priority\n")
    assert "no cgroup.controllers" in str(why_not(tmp_path / "none"))
    assert "memory controller" in str(why_not(fake_mount(tmp_path, "cpu io")))
    assert "swap" in str(why_not(fake_mount(tmp_path, "cpu memory"), no_swap))


def test_without_control_groups_nobody_is_confined(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="control groups"):
        ControlGroup(1, MIB, mount=tmp_path)


def test_a_confined_process_joins_a_group_of_its_own_with_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "cgroup.subtree_control").write_text("cpu memory\n")
    monkeypatch.setattr(control_group, "why_not", lambda mount: None)
    monkeypatch.setattr(control_group, "own_group", lambda mount: own)
    ControlGroup(4321, 7 * MIB, mount=tmp_path)
    group = own / "benchmark-4321"
    assert (group / "memory.max").read_text() == str(7 * MIB)
    assert (group / "cgroup.procs").read_text() == "4321"


def test_the_group_of_a_process_is_read_from_its_own_list(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    groups.write_text("4:memory:/other\n0::/user.slice/run.scope\n")
    assert own_group(tmp_path, groups) == tmp_path / "user.slice" / "run.scope"
    groups.write_text("0::/user.slice/run.scope/benchmark-parent\n")
    assert own_group(tmp_path, groups) == tmp_path / "user.slice" / "run.scope"
