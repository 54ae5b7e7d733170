"""Calls of compiled graphs are ops on a device as well.

Inductor makes no code for the simulated device. So there, its place is taken by graphs that run
their kernels one by one; they are called as inductor's are, and their kernels don't count. On CUDA,
inductor's own code runs. In: a small model. Out: equal bits under a budget, by a plan.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.output_code import CompiledFxGraph

import teraio
from teraio.engine.testing import stress
from tests.cuda import double
from tests.device.test_offloading import peak_bytes
from tests.integration.test_compile import Blocks, forget_compiled, train
from tests.integration.training import NO_LIMIT, digests


class KernelByKernel(CompiledFxGraph):
    """Called as inductor's graphs are."""

    def __init__(self, graph: torch.fx.GraphModule, *, backward: bool) -> None:
        self.current_callable = make_boxed_func(graph.forward)
        self.compiled_fn_runner = None
        self.fx_kwargs = {"is_backward": backward, "is_inference": False}
        self.mutated_input_idxs = set()  # type: ignore[assignment]
        self._boxed_call = True


def backend(device: str) -> Any:
    if device != "sim":
        return "inductor"
    return aot_autograd(
        fw_compiler=lambda graph, _: KernelByKernel(graph, backward=False),
        bw_compiler=lambda graph, _: KernelByKernel(graph, backward=True),
    )


def run(device: str, budget: int, spill: str) -> tuple[Any, int, teraio.RunReport | None]:
    """Losses and digests of six steps, their peak, and the report if there is a budget."""
    forget_compiled()
    # CUDA's allocator takes memory in pieces of 20 MiB; the simulated device is slow.
    model = Blocks(width=128 if device == "sim" else 2048).to(device)
    for block in model.blocks:
        block.compile(backend=backend(device))
    report = None
    if budget:
        teraio.offload(model, memory_budget=budget, ssd=[spill])
        stress(1000 if budget < NO_LIMIT else 0)
    losses = train(model, lambda x: model(x.to(device)), 6)
    peak = peak_bytes(device)
    if budget:
        report = teraio.report(model)
        stress(0)
        teraio.restore(model)
    return (losses, digests(model, model.optimizer)), peak, report


def test_a_compiled_model_trains_equally_on_a_device(accelerator: str, spill: str) -> None:
    if double.is_here():
        pytest.skip("the double of CUDA runs no kernels that inductor makes")
    expected, peak, _ = run(accelerator, 0, spill)
    numbers, _, report = run(accelerator, peak * 6 // 10, spill)
    assert numbers == expected
    assert report is not None
    assert report.trace is not None
    graphs = [op for op in report.trace.ops if op.name.startswith("compiled::")]
    # The backward pass of the first block ends at its last layer's weights.
    blocks = {(op.phase, op.module.removesuffix(".down")) for op in graphs}
    assert blocks == {
        (phase, f"blocks.{number}") for phase in ("forward", "backward") for number in range(4)
    }
    assert [step.drift_ops for step in report.steps[3:]] == [0, 0, 0]
    assert all(step.read_bytes + step.recomputed_bytes > 0 for step in report.steps[3:])
    forget_compiled()
