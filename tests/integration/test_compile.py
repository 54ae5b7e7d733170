"""Models that torch.compile compiled train under a budget with the same bits as without teraio.

In: models of tests.integration.training and small ones, compiled by inductor. Out: equality with
the same compiled program without teraio, plans that are followed, and errors that name the graph.
"""

from __future__ import annotations

import gc
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pytest
import torch
import torch._dynamo
import torch._inductor.cudagraph_trees
from torch import nn

import teraio
from teraio.engine.testing import send_away, stress
from tests.integration.programs import ended
from tests.integration.training import NO_LIMIT, Batch, Case, Outcome, Training, digests, make_batch

STEPS = 7
_DELAY_US = 1000


def forget_compiled() -> None:
    """Compiled code keeps the tensors of its module alive, and there are limits to its number."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()


def ended_with_model(statements: str, spill: str) -> subprocess.CompletedProcess[str]:
    """A program that offloads ``model`` and then runs the statements."""
    return ended(
        "import sys, torch, teraio;"
        "model = torch.nn.Linear(256, 256); original = torch._foreach_add;"
        "teraio.offload(model, memory_budget=1 << 40, ssd=sys.argv[1]);" + statements,
        spill,
    )


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    yield
    forget_compiled()


# ------------------------------------------------------------ models of transformers


@dataclass(frozen=True)
class Program:
    """``part`` of the model is compiled."""

    model: str
    part: Literal["model", "layers"]
    features: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return "-".join((self.model, self.part, *sorted(self.features)))


class CompiledTraining(Training):
    """Small batches, so that what a whole model needs at once is mostly its weights."""

    def __init__(self, program: Program) -> None:
        features = program.features | {"shallow"}
        super().__init__(Case(program.model, features=features, steps=STEPS))
        self.part = program.part

    def compile(self) -> None:
        inner: Any = self.model.model if self.case.model == "llama" else self.model.transformer
        layers = inner.layers if self.case.model == "llama" else inner.h
        for module in layers if self.part == "layers" else [self.model]:
            module.compile()

    def next_batch(self) -> Batch:
        last = "last_batch" in self.case.features and self.done == STEPS - 2
        batch = make_batch(self.case.model, 2 if last else 1, self.data)
        return {name: tokens[:, :32] for name, tokens in batch.items()}


@cache
def compiled(program: Program) -> Outcome:
    """The outcome of the compiled program without teraio."""
    forget_compiled()
    training = CompiledTraining(program)
    training.compile()
    training.run()
    training.take_digests()
    return training.outcome


def offloaded(program: Program, budget: int, spill: str, *, late: bool = False) -> Outcome:
    """The outcome under a budget, with random delays; ``late``: compiled after offload()."""
    forget_compiled()
    training = CompiledTraining(program)
    if not late:
        training.compile()
    teraio.offload(training.model, memory_budget=budget, ssd=[spill])
    if late:
        training.compile()
    stress(_DELAY_US if budget < NO_LIMIT else 0)
    try:
        training.run()
        training.outcome.report = teraio.report(training.model)
    finally:
        stress(0)
        teraio.restore(training.model)
    training.take_digests()
    return training.outcome


@cache
def unlimited_peak(program: Program, spill: str) -> int:
    outcome = offloaded(program, NO_LIMIT, spill)
    assert outcome.numbers() == compiled(program).numbers()
    assert outcome.report is not None
    return max(step.peak_bytes for step in outcome.report.steps)


@pytest.mark.parametrize(
    ("program", "late"),
    [
        (Program("llama", "model"), False),
        (Program("llama", "layers"), False),
        (Program("llama", "layers"), True),
        (Program("gpt2", "layers", frozenset({"dropout", "evaluate", "last_batch"})), False),
        (Program("gpt2", "layers", frozenset({"autocast", "checkpointing", "clip"})), False),
    ],
    ids=str,
)
def test_a_compiled_model_trains_equally_under_a_budget_by_a_plan(
    program: Program, late: bool, spill: str
) -> None:
    budget = unlimited_peak(program, spill) * 60 // 100
    outcome = offloaded(program, budget, spill, late=late)
    assert outcome.numbers() == compiled(program).numbers()
    report = outcome.report
    assert report is not None
    assert report.trace is not None
    assert report.phase == "run"
    assert [step.iteration for step in report.steps if step.peak_bytes > budget] == []
    graphs = [op for op in report.trace.ops if op.name.startswith("compiled::")]
    assert {op.phase for op in graphs} >= {"forward", "backward"}
    layers = {op.module for op in graphs if ".layers." in op.module or ".h." in op.module}
    assert len(layers) == (2 if program.part == "layers" else 0)
    steady = [report.steps[3]] if "last_batch" in program.features else report.steps[3:]
    assert [step.drift_ops for step in steady] == [0] * len(steady)
    assert all(step.read_bytes > 0 and step.written_bytes > 0 for step in steady)


# ------------------------------------------------------------ small models


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class BreakingBlock(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(x))
        torch._dynamo.graph_break()
        return x + self.down(hidden)


class Blocks(nn.Module):
    """Four blocks. (Of an ``nn.Sequential``, dynamo makes a graph for each child.)"""

    def __init__(self, block: type[Block] = Block, width: int = 128) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = width
        self.blocks = nn.ModuleList(block(width) for _ in range(4))
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def train(model: Blocks, call: Callable[[torch.Tensor], torch.Tensor], steps: int) -> list[str]:
    """Losses of ``steps`` steps with the model, by whatever calls it."""
    data = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        loss = call(torch.randn(32, model.width, generator=data)).square().mean()
        loss.backward()
        model.optimizer.step()
        model.optimizer.zero_grad()
        losses.append(float(loss.detach()).hex())
    return losses


def test_parts_between_graph_breaks_are_ops_of_their_own(spill: str) -> None:
    plain = Blocks(BreakingBlock)
    plain.compile()
    expected = train(plain, plain, 6)
    forget_compiled()
    model = Blocks(BreakingBlock)
    model.compile()
    teraio.offload(model, memory_budget=2_400_000, ssd=[spill])
    stress(_DELAY_US)
    assert train(model, model, 6) == expected
    stress(0)
    report = teraio.report(model)
    teraio.restore(model)
    assert digests(model, model.optimizer) == digests(plain, plain.optimizer)
    assert report.trace is not None
    names = {op.name for op in report.trace.ops if op.name.startswith("compiled::forward")}
    assert len(names) >= 4
    assert report.steps[-1].drift_ops == 0
    assert report.steps[-1].read_bytes > 0


class ReadingBlock(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(x))
        hidden.detach().numpy()
        hidden.untyped_storage().data_ptr()
        return x + self.down(hidden)


def test_raw_memory_can_be_read_between_graphs(spill: str) -> None:
    plain = Blocks(ReadingBlock)
    plain.compile()
    expected = train(plain, plain, 5)
    forget_compiled()
    model = Blocks(ReadingBlock)
    model.compile()
    teraio.offload(model, memory_budget=2_400_000, ssd=[spill])
    assert train(model, model, 5) == expected
    report = teraio.report(model)
    teraio.restore(model)
    assert report.steps[-1].read_bytes > 0


def test_a_graph_that_the_budget_is_too_small_for_is_named_with_the_remedy(spill: str) -> None:
    model = Blocks()
    model.compile()
    teraio.offload(model, memory_budget=1_000_000, ssd=[spill])
    with pytest.raises(teraio.BudgetError, match=r"op compiled::backward_\d+ needs") as caught:
        train(model, model, 1)
    assert "memory_budget=" in str(caught.value)
    assert "layer.compile()" in str(caught.value)
    teraio.restore(model)
    assert train(model, model, 1)


def test_nothing_is_compiled_again_while_a_run_profiles_plans_and_goes_on(spill: str) -> None:
    for budget in (NO_LIMIT, 2_400_000):
        forget_compiled()
        model = Blocks()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call = torch.compile(model)
            teraio.offload(model, memory_budget=budget, ssd=[spill])
            train(model, call, 6)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert not torch._dynamo.utils.counters["graph_break"]
        assert teraio.report(model).phase == "run"
        teraio.restore(model)


def test_an_error_within_a_graph_leaves_a_run_that_goes_on(spill: str) -> None:
    fails = [False]

    @torch.library.custom_op("teraio_tests::may_fail", mutates_args=())
    def may_fail(x: torch.Tensor) -> torch.Tensor:
        if fails[0]:
            raise ArithmeticError("on purpose")
        return x.clone()

    may_fail.register_fake(torch.empty_like)
    may_fail.register_autograd(lambda _, gradient: gradient)

    class Failing(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(may_fail(x))

    plain = Blocks(Failing)
    plain.compile()
    expected = train(plain, plain, 5)
    forget_compiled()
    model = Blocks(Failing)
    model.compile()
    teraio.offload(model, memory_budget=2_400_000, ssd=[spill])
    fails[0] = True
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="on purpose"):
            train(model, model, 1)
    fails[0] = False
    assert train(model, model, 5) == expected
    teraio.restore(model)
    assert digests(model, model.optimizer) == digests(plain, plain.optimizer)


class TableBlock(Block):
    """Has a constant, which inductor keeps beside the graph's inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.tensor([float(i % 7) for i in range(6400)])
        return super().forward(x) + table.mean() * table[0]


def test_constants_of_a_graph_are_there_when_it_runs(spill: str) -> None:
    plain = Blocks(TableBlock)
    plain.compile()
    expected = train(plain, plain, 4)
    forget_compiled()
    model = Blocks(TableBlock)
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=[spill])
    model.compile()
    assert train(model, model, 4) == expected
    teraio.restore(model)


def test_a_compiled_optimizer_step_gives_the_same_bits_and_ends_iterations(spill: str) -> None:
    def compile_step(model: Blocks) -> Blocks:
        model.optimizer.step = torch.compile(model.optimizer.step)  # type: ignore[method-assign]
        return model

    plain = compile_step(Blocks())
    expected = train(plain, plain, 3)
    forget_compiled()
    model = compile_step(Blocks())
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=[spill])
    assert train(model, model, 3) == expected
    sent = send_away(*model.parameters(), *(s["exp_avg"] for s in model.optimizer.state.values()))
    assert sent > 0  # all come back for one op, which writes them
    assert train(model, model, 2) == train(plain, plain, 2)
    report = teraio.report(model)
    teraio.restore(model)
    assert len(report.steps) == 5
    assert report.phase == "run"
    assert digests(model, model.optimizer) == digests(plain, plain.optimizer)


def test_dynamo_meets_the_original_list_ops_however_late_it_is_loaded(spill: str) -> None:
    done = ended_with_model(
        "patched = torch._foreach_add; import torch._dynamo.trace_rules as rules;"
        "known = rules.get_torch_obj_rule_map();"
        "print(original in known, patched in known, torch._foreach_add is patched)",
        spill,
    )
    assert done.stdout.strip() == "True False True", done.stderr


def test_cuda_graphs_are_refused_with_the_modes_that_work(spill: str) -> None:
    manager = torch._inductor.cudagraph_trees.CUDAGraphTreeManager
    original = manager._run
    model = Blocks()
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=[spill])
    with pytest.raises(teraio.ConfigurationError, match="max-autotune-no-cudagraphs"):
        manager._run(None, [], None)  # type: ignore[arg-type]
    teraio.restore(model)
    assert manager._run is original


def test_graphs_are_seen_where_somebody_has_looked_the_compiler_up_before(spill: str) -> None:
    done = ended_with_model(
        "import importlib.util;"
        "importlib.util.find_spec('torch._inductor.output_code');"
        "import torch._inductor.output_code as code;"
        "print(code.CompiledFxGraph.__call__.__code__.co_filename.endswith('compiled_graphs.py'))",
        spill,
    )
    assert done.stdout.strip() == "True", done.stderr


def test_a_program_that_never_compiles_loads_no_compiler(spill: str) -> None:
    done = ended_with_model(
        "model(torch.ones(2, 256)).sum().backward();"
        "teraio.restore(model);"
        "print([m for m in sys.modules if m.startswith(('torch._dynamo.', 'torch._inductor.'))],"
        "[finder for finder in sys.meta_path if 'teraio' in type(finder).__module__])",
        spill,
    )
    assert done.stdout.strip() == "[] []", done.stderr
