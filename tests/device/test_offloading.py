"""Training under a budget of an accelerator's memory gives the same bits as without teraio.

In: cases of tests.integration.training on the simulated device, and on CUDA where there is one.
Out: equal losses, parameters and optimizer states, and the allocator's peak within the budget,
while transfers are delayed at random and freed memory is filled with NaN.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch

import teraio
from teraio.engine.testing import stress
from teraio.runtime.revision import Revision
from tests.cuda import double
from tests.device.sim import load
from tests.drives import pass_for_slow
from tests.integration.programs import ended
from tests.integration.test_equal_results import assert_equal
from tests.integration.training import Case, Outcome, Training

DELAY_US = 1000
CASES = [
    Case("llama"),
    Case("gpt2", "adamw_foreach", frozenset({"dropout", "clip", "scheduler"})),
    Case("t5", "sgd", frozenset({"accumulate", "tied", "evaluate"}), steps=6),
    Case("mixtral", features=frozenset({"last_batch", "evaluate"})),
    Case("vit", "adafactor", frozenset({"frozen", "dropout"})),
    Case("llama", features=frozenset({"checkpointing", "generate"})),
    Case("llama", "adamw_fused", frozenset({"autocast"})),
]
SHARES = (60, 40, 25)
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_share = pytest.mark.parametrize("share", SHARES)


def placed(case: Case, device: str) -> Case:
    """The case on the device, of a size that its allocator can divide."""
    return replace(case, device=device, scale=1 if device == "sim" else 4)


def module_of(device: str) -> Any:
    return load() if device == "sim" else torch.cuda


def peak_bytes(device: str) -> int:
    return load().peak() if device == "sim" else torch.cuda.max_memory_allocated()


_plain: dict[Case, tuple[Outcome, int]] = {}


def plain(case: Case) -> tuple[Outcome, int]:
    """The outcome without teraio, and the most memory it took."""
    if case not in _plain:
        start_anew(case.device)
        training = Training(case)
        training.run()
        peak = peak_bytes(case.device)
        training.take_digests()
        _plain[case] = training.outcome, peak
    return _plain[case]


def delay_kernels(device: str, max_us: int) -> None:
    if device == "sim":
        load().set_delay(max_us)
    elif double.is_here():
        double.set_delay(max_us)


def start_anew(device: str) -> None:
    gc.collect()
    module_of(device).empty_cache()
    if device == "sim":
        load().reset_peak()
    else:
        torch.cuda.reset_peak_memory_stats()


@each_share
@each_case
def test_training_from_ssd_is_equal_and_keeps_the_budget(
    case: Case, share: int, accelerator: str, spill: str
) -> None:
    report = train(placed(case, accelerator), share, spill)
    assert report.phase == "run"
    assert [step for step in report.steps if step.peak_bytes > report.budget_bytes] == []
    assert sum(step.read_bytes for step in report.steps) > 0


@each_case
def test_training_from_host_memory_and_ssd_is_equal(
    case: Case, accelerator: str, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_for_slow(monkeypatch)  # a quick drive leaves host memory nothing to do
    report = train(placed(case, accelerator), 40, spill, host_share=30)
    assert report.plan is not None
    written = {tier.tier: tier.written_bytes for tier in report.plan.tiers}
    assert written["host"] > 0
    assert sum(step.read_bytes for step in report.steps) > 0


@each_case
def test_training_that_makes_results_again_is_equal(
    case: Case, accelerator: str, spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_for_slow(monkeypatch)
    monkeypatch.setattr(Revision, "quicker", lambda *_: False)  # the plan stays the first
    report = train(placed(case, accelerator), 50, spill)
    assert report.plan is not None
    again = sum(step.recomputed_bytes for step in report.steps)
    assert (again > 0) == bool(report.plan.recomputations)
    assert again > 0 or "checkpointing" in case.features


def test_a_stall_is_the_time_in_which_the_device_stands_still(accelerator: str, spill: str) -> None:
    """The host waits for almost all of the step, as the device is slow and the host runs ahead."""
    case = placed(Case("llama", steps=6), accelerator)
    _, peak = plain(case)
    start_anew(accelerator)
    training = Training(case)
    teraio.offload(training.model, memory_budget=peak * 40 // 100, ssd=spill)
    delay_kernels(accelerator, 1000)
    try:
        training.run()
        report = teraio.report(training.model)
    finally:
        delay_kernels(accelerator, 0)
        teraio.restore(training.model)
    assert report.ideal_s is not None
    for step in report.steps[-3:]:
        assert step.read_bytes > 0
        # Both are measured with the same delays; they may be longer in one step than in another.
        assert step.stall_s < step.duration_s - 0.5 * report.ideal_s
        assert 0 < sum(stall.seconds for stall in step.stalls) <= step.stall_s + 1e-9


def test_a_run_that_fits_leaves_the_allocators_peak_alone(accelerator: str, spill: str) -> None:
    """Programs read it, too; the report has the same."""
    case = placed(Case("llama", steps=6), accelerator)
    _, peak = plain(case)
    start_anew(accelerator)
    training = Training(case)
    teraio.offload(training.model, memory_budget=2 * peak, ssd=spill)
    try:
        training.run()
        step = teraio.report(training.model).steps[-1]
        assert step.written_bytes == 0
        assert step.peak_bytes == peak_bytes(accelerator)
        assert step.peak_bytes == pytest.approx(peak, rel=0.05)
    finally:
        teraio.restore(training.model)


def train(case: Case, share: int, spill: str, host_share: int = 0) -> teraio.RunReport:
    """Under a budget of ``share`` % of the peak, and under stress; equal to what it is without."""
    expected, peak = plain(case)
    budget = peak * share // 100
    start_anew(case.device)
    training = Training(case)
    host_memory = peak * host_share // 100
    if case.device != "sim" and peak_bytes(case.device) > budget:
        pytest.skip("the model alone takes more than this budget")
    assert peak_bytes(case.device) <= budget
    teraio.offload(training.model, memory_budget=budget, ssd=spill, host_memory=host_memory)
    stress(DELAY_US)
    delay_kernels(case.device, DELAY_US // 10)
    try:
        training.run()
        report = teraio.report(training.model)
        assert peak_bytes(case.device) <= budget
    finally:
        stress(0)
        delay_kernels(case.device, 0)
        teraio.restore(training.model)
    training.take_digests()
    assert_equal(training.outcome, expected)
    return report


def test_a_run_ends_while_another_thread_looks_at_storages(spill: str) -> None:
    """Storages that only Python's objects own are given their memory back."""
    end = ended(
        "import sys, threading, torch, teraio, tests.device.sim\n"
        "from teraio import _C\n"
        "tests.device.sim.load().reset()\n"
        "model = torch.nn.Linear(64, 64)\n"
        "model.weight = torch.nn.Parameter(torch.ones(64, 64, device='sim'))\n"
        "model.bias = None\n"
        "for _ in range(12):\n"
        "    teraio.offload(model, memory_budget='64MiB', ssd=sys.argv[1])\n"
        "    tensors = [torch.ones(1 << 13, device='sim') for _ in range(100)]\n"
        "    storages = [(t + 1, t.untyped_storage())[1] for t in tensors]\n"
        "    del tensors\n"
        "    done = threading.Event()\n"
        "    def look():\n"
        "        while not done.is_set(): _C.totals(), _C.live_blocks()\n"
        "    thread = threading.Thread(target=look)\n"
        "    thread.start()\n"
        "    teraio.restore(model)\n"
        "    done.set()\n"
        "    thread.join()\n"
        "print('ended')\n",
        spill,
    )
    assert "ended" in end.stdout, end.stderr
