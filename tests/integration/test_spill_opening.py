"""A run says for each folder by which path its bytes move and why, and heeds what was asked for.

In: folders, $TERAIO_IO, require_gds. Out: the record of the choice, or one error with the remedy.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import teraio
from teraio.engine import gds
from teraio.engine.gds import Obstacle
from teraio.profiler import spill as opening
from teraio.profiler.hardware import FolderSpeed
from teraio.profiler.kvikio_trials import GPUDIRECT, POSIX, choice, least_near_the_best
from teraio.profiler.spill import open_spill
from teraio.records import SpillFolder


def offloaded(folder: Path, **more: object) -> teraio.RunReport:
    model = torch.nn.Linear(64, 64)
    teraio.offload(model, memory_budget=1 << 40, ssd=folder, **more)  # type: ignore[arg-type]
    report = teraio.report(model)
    teraio.restore(model)
    return report


def test_the_report_and_the_log_name_the_path_of_each_folder_and_why(
    spill: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(opening.ENVIRONMENT, raising=False)
    with caplog.at_level(logging.INFO, logger="teraio"):
        report = offloaded(Path(spill))
    found = report.hardware.tiers[0].folders
    assert found == (
        SpillFolder(folder=spill, path=opening.DIRECT, reason="training runs on the CPU"),
    )
    assert f"by {opening.DIRECT} (training runs on the CPU)" in caplog.text


def test_a_file_system_without_direct_io_is_the_reason_for_buffered_io(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(opening.ENVIRONMENT, raising=False)
    spill = open_spill([Path("/dev/shm")])  # newer kernels have direct I/O even there
    speed = spill.speeds[0]
    spill.close()
    assert speed.path == (opening.DIRECT if speed.direct else opening.BUFFERED)
    assert ("no direct I/O" in speed.reason) == (not speed.direct)


def test_required_gpudirect_storage_that_can_not_be_is_an_error(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Obstacle("the kernel module nvidia-fs is not loaded", "sudo modprobe nvidia-fs.")
    monkeypatch.setattr(gds, "obstacle", lambda _: missing)
    with pytest.raises(teraio.ConfigurationError) as raised:
        offloaded(Path(spill), require_gds=True)
    for part in ("require_gds=True", spill, missing.cause, missing.remedy):
        assert part in str(raised.value)


def test_gpudirect_storage_is_not_for_models_on_the_cpu(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gds, "obstacle", lambda _: None)
    with pytest.raises(teraio.ConfigurationError, match="the model is on cpu"):
        offloaded(Path(spill), require_gds=True)


def test_an_unknown_way_of_io_is_refused(spill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(opening.ENVIRONMENT, "magic")
    with pytest.raises(teraio.ConfigurationError, match="TERAIO_IO is 'magic'"):
        offloaded(Path(spill))


def speed(path: str, mixed: float) -> FolderSpeed:
    return FolderSpeed(
        folder=Path("/mnt/nvme0"),
        path=path,
        reason="",
        direct=True,
        read_bytes_per_s=mixed,
        write_bytes_per_s=mixed,
        mixed_bytes_per_s=mixed,
        latency_s=1e-4,
    )


FAILED = Obstacle("a trial failed: cuFile said no", "See cufile.log.")


@pytest.mark.parametrize(
    ("staged", "posix", "direct", "wanted", "path"),
    [
        (4e9, 3e9, 6e9, "", GPUDIRECT),
        (4e9, 5e9, 3e9, "", POSIX),
        (6e9, 5e9, 3e9, "", opening.STAGED),
        (6e9, 5e9, 3e9, "kvikio", POSIX),
        (6e9, 5e9, 3e9, "gds", GPUDIRECT),
        (4e9, 5e9, None, "", POSIX),
        (6e9, 5e9, None, "kvikio", POSIX),
    ],
)
def test_the_fastest_way_is_taken_of_those_that_are_wanted(
    staged: float, posix: float, direct: float | None, wanted: str, path: str
) -> None:
    by_gds = FAILED if direct is None else speed(GPUDIRECT, direct)
    chosen = choice(speed(opening.STAGED, staged), speed(POSIX, posix), by_gds, wanted)
    assert chosen.path == path
    for rate in filter(None, (staged, posix, direct)):
        assert f"{rate / 1e9:.2f} GB/s" in chosen.reason
    assert (FAILED.cause in chosen.reason) == (direct is None)


def test_gpudirect_storage_that_is_required_and_fails_is_an_error() -> None:
    with pytest.raises(teraio.ConfigurationError, match=r"/mnt/nvme0: a trial failed"):
        choice(speed(opening.STAGED, 6e9), speed(POSIX, 5e9), FAILED, "gds")


def test_the_least_that_is_near_the_best_is_taken() -> None:
    rates = {2: 3.0, 4: 4.8, 8: 5.0, 16: 4.9}
    assert least_near_the_best(list(rates), rates.__getitem__) == 4
