"""What benchmarks read from the kernel: memory, traffic, and whether it keeps a limit."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.control_group import ControlGroup, own_group, why_not
from benchmarks.meters import (
    HighWater,
    Sampler,
    process_traffic,
    resident_bytes,
    swap_traffic,
)
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


# What the kernel tells of a process whose memory groups of version 1 limit, or of version 2.
VERSION_1 = "4:memory:/service/run\n0::/\n"
VERSION_2 = "0::/user.slice/run.scope\n"


def described(folder: Path, groups: str, controllers: str | None = None) -> tuple[Path, Path]:
    """A mount and a process's list of groups, for the functions that read them."""
    if controllers is not None:
        (folder / "cgroup.controllers").write_text(controllers)
    (folder / "groups").write_text(groups)
    return folder, folder / "groups"


def listed_swaps(folder: Path, *files: str) -> Path:
    """What the kernel lists as swap space."""
    swaps = folder / "swaps"
    swaps.write_text("\n".join(("Filename Type Size Used Priority", *files)) + "\n")
    return swaps


def test_a_machine_that_keeps_no_limit_says_why(tmp_path: Path) -> None:
    no_swap = listed_swaps(tmp_path)
    assert "memory controller" in str(why_not(*described(tmp_path, VERSION_2)))
    assert "memory controller" in str(why_not(*described(tmp_path, VERSION_2, "cpu io")))
    for groups in (VERSION_1, VERSION_2):
        assert "swap" in str(why_not(*described(tmp_path, groups, "cpu memory"), no_swap))


def test_without_control_groups_nobody_is_confined(tmp_path: Path) -> None:
    mount, groups = described(tmp_path, VERSION_2)
    with pytest.raises(Unavailable, match="control groups"):
        ControlGroup(1, MIB, mount=mount, groups=groups)


@pytest.mark.parametrize(
    ("version", "folder", "limit", "present"),
    [
        (VERSION_1, "memory/service/run", "memory.limit_in_bytes", "memory.limit_in_bytes"),
        (VERSION_2, "user.slice/run.scope", "memory.max", "cgroup.subtree_control"),
    ],
    ids=["version 1", "version 2"],
)
def test_a_confined_process_joins_a_group_of_its_own_with_the_limit(
    version: str, folder: str, limit: str, present: str, tmp_path: Path
) -> None:
    mount, groups = described(tmp_path, version, "cpu memory")
    own = mount / folder
    own.mkdir(parents=True)
    (own / present).write_text("cpu memory\n")
    swaps = listed_swaps(tmp_path, "/swapfile file 1024 0 -2")
    ControlGroup(4321, 7 * MIB, mount=mount, groups=groups, swaps=swaps)
    group = own / "benchmark-4321"
    assert (group / limit).read_text() == str(7 * MIB)
    assert (group / "cgroup.procs").read_text() == "4321"


def test_without_swap_space_nobody_is_confined(tmp_path: Path) -> None:
    mount, groups = described(tmp_path, VERSION_1)
    with pytest.raises(Unavailable, match="swap"):
        ControlGroup(1, MIB, mount=mount, groups=groups, swaps=listed_swaps(tmp_path))


def test_the_group_of_a_process_is_read_from_its_own_list(tmp_path: Path) -> None:
    run = tmp_path / "user.slice" / "run.scope"
    for scope in ("run.scope", "run.scope/benchmark-parent"):
        assert own_group(*described(tmp_path, f"0::/user.slice/{scope}\n", "memory")) == run
    assert own_group(*described(tmp_path, VERSION_1)) == tmp_path / "memory" / "service" / "run"


def test_a_process_over_the_limit_is_swapped_out() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    program = (
        "import sys; sys.stdin.readline(); kept = bytearray(160 << 20)\n"
        "kept[::4096] = b'1' * len(kept[::4096])\n"
        "print(open('/proc/self/status').read())"
    )
    before = swap_traffic()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        group = ControlGroup(process.pid, 64 * MIB)
        status, _ = process.communicate("go\n")
    group.close()
    figures = dict(line.split(":", 1) for line in status.splitlines() if line)
    assert process.returncode == 0
    assert int(figures["VmSwap"].split()[0]) > 80 << 10  # KiB
    assert swap_traffic().since(before).written_bytes > 80 * MIB
