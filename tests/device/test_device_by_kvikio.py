"""kvikio takes addresses of a device, is measured beside the native way, and moves equal bytes.

In: kvikio and a CUDA driver library; the simulated device, whose memory is the host's, as kvikio
finds out on its own. Out: what is chosen and why, equal bits.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

import teraio
import teraio.engine.testing
from teraio.engine import gds
from teraio.engine.gds import Obstacle
from teraio.engine.kvikio_path import KvikioPath
from teraio.profiler import kvikio_trials
from teraio.profiler import spill as opening
from tests.device.sim import SimModule
from tests.integration.test_kvikio import kvikio

__all__ = ["kvikio"]

MIB = 1 << 20
NO_MODULE = Obstacle("the kernel module nvidia-fs is not loaded", "sudo modprobe nvidia-fs.")


@pytest.fixture
def _as_on_cuda(kvikio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated device is tried with kvikio, as CUDA's are; GPUDirect Storage is not there."""
    choose = opening._choose_for_accelerator

    def choose_and_try(
        spill: opening.Spill, device: str, wanted: str, budget_bytes: int | None
    ) -> None:
        choose(spill, device, wanted, budget_bytes)
        with opening.device_memory(device, budget_bytes) as memory:
            opening._try_kvikio(spill, memory, wanted)

    monkeypatch.setattr(opening, "_choose_for_accelerator", choose_and_try)
    monkeypatch.setattr(gds, "obstacle", lambda _: NO_MODULE)


@pytest.mark.usefixtures("_as_on_cuda")
@pytest.mark.parametrize("wanted", ["", "kvikio"])
def test_storages_come_back_equal_by_the_way_that_was_chosen(
    wanted: str, sim: SimModule, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(opening.ENVIRONMENT, wanted)
    model = torch.nn.Linear(64, 64).to("sim")
    teraio.offload(model, memory_budget=512 * MIB, ssd=spill)
    (folder,) = teraio.report(model).hardware.tiers[0].folders
    assert folder.path in (
        (kvikio_trials.POSIX,) if wanted else (kvikio_trials.POSIX, opening.STAGED)
    )
    assert NO_MODULE.cause in folder.reason
    for elements in (MIB, 5 * MIB + 77):
        values = torch.randn(elements)
        tensor = values.to("sim")
        assert teraio.engine.testing.send_away(tensor) == 1
        assert torch.equal(tensor.cpu(), values)
    teraio.restore(model)


@pytest.mark.usefixtures("_as_on_cuda")
def test_gpudirect_storage_that_is_required_is_an_error_that_names_the_folder(
    sim: SimModule, spill: str
) -> None:
    model = torch.nn.Linear(64, 64).to("sim")
    with pytest.raises(teraio.ConfigurationError, match="nvidia-fs is not loaded"):
        teraio.offload(model, memory_budget=512 * MIB, ssd=spill, require_gds=True)


@pytest.mark.usefixtures("_as_on_cuda")
def test_a_budget_without_room_for_trials_takes_the_native_way(sim: SimModule, spill: str) -> None:
    spill_space = opening.open_spill([Path(spill)], device="sim:0", budget_bytes=1 * MIB)
    (speed,) = spill_space.speeds
    spill_space.close()
    assert speed.path == opening.STAGED
    assert "no memory of the device to try kvikio with" in speed.reason


@pytest.mark.usefixtures("_as_on_cuda")
def test_where_kvikio_fails_the_native_way_is_taken(
    sim: SimModule, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: object, *args: object) -> int:
        raise OSError(errno.EIO, "cuFile said no")

    monkeypatch.setattr(KvikioPath, "_move", fails)
    model = torch.nn.Linear(64, 64).to("sim")
    teraio.offload(model, memory_budget=512 * MIB, ssd=spill)
    (folder,) = teraio.report(model).hardware.tiers[0].folders
    values = torch.randn(5 * MIB)
    tensor = values.to("sim")
    assert teraio.engine.testing.send_away(tensor) == 1
    assert torch.equal(tensor.cpu(), values)
    teraio.restore(model)
    assert folder.path == opening.STAGED
    assert "cuFile said no" in folder.reason
