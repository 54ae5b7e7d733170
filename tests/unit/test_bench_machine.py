"""What benchmarks read from the kernel: memory, traffic, and whether it keeps a limit."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from benchmarks.control_group import ControlGroup, why_not
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
