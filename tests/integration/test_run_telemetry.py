"""A run tells what the machine did meanwhile, from its first iteration to its files."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import teraio
from teraio.files import load, save
from teraio.records import RunReport, Telemetry
from tests.cuda import double
from tests.required import lacking


def trained(device: str, spill: str, iterations: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model: nn.Module = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8))).to(device)
    teraio.offload(model, memory_budget="3MiB" if device == "cpu" else "64MiB", ssd=spill)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(iterations):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    device = next(model.parameters()).device
    model(torch.randn(32, 256, device=device)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def telemetry_once(model: nn.Module, samples: int) -> Telemetry:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = teraio.report(model).telemetry
        if found is not None and found.samples >= samples:
            return found
        time.sleep(0.01)
    raise TimeoutError(f"fewer than {samples} samples in a minute")


def test_a_report_tells_what_the_machine_did_and_its_file_too(spill: str, tmp_path: Path) -> None:
    model, _ = trained("cpu", spill, 4)
    found = {(r.of, r.what): r for r in telemetry_once(model, 3).readings}
    resident = found["process", "resident memory"]
    assert 50e6 < resident.least <= resident.mean <= resident.most < 1e12
    assert found["process", "CPU"].unit == "cores"
    assert found["machine", "memory available"].least > 0
    report = teraio.report(model)
    assert report.telemetry is not None
    assert report.telemetry.missing[0] == "GPU: none is used, the run is on cpu"
    save(report, tmp_path / "run.report")
    assert load(tmp_path / "run.report", RunReport) == report
    teraio.restore(model)


def test_the_figures_are_of_the_iterations_under_the_plan(spill: str) -> None:
    model, optimizer = trained("cpu", spill, 1)
    assert teraio.report(model).phase == "profile"
    while_profiling = telemetry_once(model, 2)
    step(model, optimizer)
    assert teraio.report(model).plan is not None
    telemetry = telemetry_once(model, 1)
    assert telemetry.samples < while_profiling.samples
    assert telemetry.seconds < while_profiling.seconds
    teraio.restore(model)


def test_a_restored_model_leaves_no_thread(spill: str) -> None:
    model, _ = trained("cpu", spill, 3)
    assert any(thread.name == "teraio-telemetry" for thread in threading.enumerate())
    teraio.restore(model)
    end = time.monotonic() + 30
    while any(thread.name == "teraio-telemetry" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.gpu
def test_a_run_on_a_gpu_tells_what_the_gpu_did(spill: str) -> None:
    if not torch.cuda.is_available():
        lacking("gpu", "no CUDA device")
    if double.is_here():
        pytest.skip("the double of CUDA has no figures to tell")
    pytest.importorskip("pynvml")
    model, _ = trained("cuda", spill, 4)
    found = {r.what: r for r in telemetry_once(model, 3).readings if r.of == "GPU"}
    memory = found["memory in use"]
    assert torch.cuda.memory_reserved() <= memory.most <= torch.cuda.mem_get_info()[1]
    assert 0 <= found["busy"].most <= 1
    assert teraio.report(model).telemetry is not None
    teraio.restore(model)
