"""Graphs that a program captures itself are refused where tensors have moved since.

In: PyTorch's classes of graphs, and one that stands for them. Out: errors that say what to do, and
replays where nothing has moved. Must not know: how graphs are captured.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import teraio
from teraio.engine.captured_graphs import CapturedGraphs
from tests.required import lacking


class Graph:
    def capture_begin(self, pool: object = None) -> None:
        self.pool = pool

    def replay(self) -> object:
        return self.pool


def test_a_graph_is_replayed_between_the_runs_that_it_was_captured_between() -> None:
    class Kind(Graph):
        pass

    graphs = CapturedGraphs(Kind)
    early, late = Kind(), Kind()
    early.capture_begin()
    early.replay()
    graphs.run_begins()
    for call in (early.replay, late.capture_begin):
        with pytest.raises(teraio.ConfigurationError, match=r"after teraio\.restore"):
            call()
    graphs.run_ends()
    with pytest.raises(teraio.ConfigurationError, match="Capture it again"):
        early.replay()
    late.capture_begin(pool="a pool")
    assert late.replay() == "a pool"
    graphs.run_begins()
    graphs.run_ends()
    with pytest.raises(teraio.ConfigurationError, match="Capture it again"):
        late.replay()


@pytest.mark.gpu
def test_a_run_on_cuda_refuses_records_of_its_allocator(spill: str) -> None:
    if not torch.cuda.is_available():
        lacking("gpu", "no CUDA device")
    history = torch.cuda.memory._record_memory_history
    model = nn.Linear(256, 256).cuda()
    history()
    with pytest.raises(teraio.ConfigurationError, match="_record_memory_history"):
        teraio.offload(model, memory_budget="256MiB", ssd=[spill])
    history(None)
    teraio.offload(model, memory_budget="256MiB", ssd=[spill])
    with pytest.raises(teraio.ConfigurationError, match="_record_memory_history"):
        history("all")
    history(None)
    teraio.restore(model)
    history()
    history(None)


def test_a_run_on_a_device_refuses_graphs(accelerator: str, spill: str) -> None:
    model = nn.Linear(256, 256).to(accelerator)
    teraio.offload(model, memory_budget="256MiB", ssd=[spill])
    for kind in (torch.cuda.CUDAGraph, torch.accelerator.Graph):
        for method in (kind.capture_begin, kind.replay):
            with pytest.raises(teraio.ConfigurationError, match=r"after teraio\.restore"):
                method(Graph())
    teraio.restore(model)
    with pytest.raises(teraio.ConfigurationError, match="Capture it again"):
        torch.cuda.CUDAGraph.replay(Graph())
