"""A trace from the meta device is the trace of the real run, but for its times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

import teraio
from teraio import whatif
from teraio.errors import ConfigurationError
from teraio.planner import live_by_op
from teraio.records import Storage, Trace
from teraio.whatif import Job, trace_config, trace_iteration
from teraio.whatif.training import _build
from tests.integration.training import NO_LIMIT

GPU = whatif.accelerator("a100-40gb")
# From the models' cards: parameters as a count of elements.
PUBLISHED = {
    "llama3-8b": 8.03e9,
    "llama3-70b": 70.6e9,
    "granite-8b": 8.05e9,
    "gpt2-40b": 40.7e9,
    "t5-11b": 11.3e9,
    "qwen3-14b": 14.77e9,
    "mixtral-8x7b": 46.7e9,
}
SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}


class Net(nn.Module):
    """Layers of several kinds; a residual keeps activations alive."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(512, 128)
        self.norm = nn.LayerNorm(128)
        self.up = nn.Linear(128, 512)
        self.down = nn.Linear(512, 128, bias=False)
        self.head = nn.Linear(128, 512)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return self.head(x)


def iteration_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor
) -> Callable[[], None]:
    def iteration() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()

    return iteration


def real_trace(spill: str, optimizer_class: Callable[..., torch.optim.Optimizer]) -> Trace:
    model = teraio.offload(Net(), memory_budget=NO_LIMIT, ssd=spill)
    optimizer = optimizer_class(model.parameters())
    iteration = iteration_of(model, optimizer, torch.randint(512, (8, 128)))
    iteration()
    iteration()
    trace = teraio.report(model).trace
    teraio.restore(model)
    assert trace is not None
    return trace


def simulated_trace(optimizer_class: Callable[..., torch.optim.Optimizer]) -> Trace:
    with torch.device("meta"):
        model = Net()
        tokens = torch.empty(8, 128, dtype=torch.long)
    optimizer = optimizer_class(model.parameters())
    return trace_iteration(
        model, optimizer, iteration_of(model, optimizer, tokens), accelerator=GPU
    )


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=False)  # type: ignore[arg-type]


def adamw(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, foreach=False)  # type: ignore[arg-type]


def fused_adamw(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer_class", [sgd, adamw, fused_adamw])
def test_ops_and_storages_are_those_of_a_real_run(spill, optimizer_class) -> None:
    real, simulated = real_trace(spill, optimizer_class), simulated_trace(optimizer_class)
    assert [(op.name, op.module, op.phase) for op in simulated.ops] == [
        (op.name, op.module, op.phase) for op in real.ops
    ]
    assert simulated.anchors == real.anchors

    def lives(trace: Trace) -> Counter[tuple[object, ...]]:
        return Counter(
            (s.nbytes, s.kind, s.birth, s.death, s.uses, s.writes, repeatable(trace, s))
            for s in trace.storages
        )

    def repeatable(trace: Trace, storage: Storage) -> bool:
        """In the backward pass it depends on the device's kernels, which no two devices share."""
        forward = storage.birth is not None and trace.ops[storage.birth].phase == "forward"
        return forward and storage.repeatable

    assert lives(simulated) == lives(real)
    assert any(repeatable(real, storage) for storage in real.storages)
    named = {"parameter", "gradient", "optimizer_state"}
    assert sorted(s.name for s in simulated.storages if s.kind in named) == sorted(
        s.name for s in real.storages if s.kind in named
    )


def test_nothing_is_left_behind() -> None:
    simulated_trace(adamw)
    again = simulated_trace(adamw)
    assert again == simulated_trace(adamw)
    assert torch.nn.functional.scaled_dot_product_attention(
        *(torch.ones(1, 1, 4, 8) for _ in range(3))
    ).shape == (1, 1, 4, 8)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models_trace_whole(name: str) -> None:
    trace = trace_config(name, Job(batch=1, sequence=256), accelerator="h200")
    held = Counter[str]()
    for storage in trace.storages:
        held[storage.kind] += storage.nbytes
    assert held["parameter"] / 2 == pytest.approx(PUBLISHED[name], rel=0.01)
    assert held["optimizer_state"] == pytest.approx(6 * held["parameter"], rel=0.01)
    assert held["gradient"] == pytest.approx(held["parameter"], rel=0.01)
    assert {op.phase for op in trace.ops} >= {"forward", "backward", "optimizer"}
    assert all(op.duration_ns >= 0 for op in trace.ops)


def peak(trace: Trace) -> int:
    return int(live_by_op(trace).max())


def parameters(trace: Trace) -> int:
    return sum(s.nbytes for s in trace.storages if s.kind == "parameter")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-mixed"])
def test_stages_of_a_pipeline_add_up_to_the_whole(precision) -> None:
    def traced(stage: tuple[int, int]) -> Trace:
        job = Job(batch=8, sequence=512, precision=precision, stage=stage)
        return trace_config(SMALL, job, accelerator="h100-nvl")

    whole = traced((0, 1))
    first, last = traced((0, 2)), traced((1, 2))
    assert parameters(first) + parameters(last) == pytest.approx(parameters(whole), rel=0.01)
    names = {s.name for s in first.storages if s.kind == "parameter"}
    assert any("embed_tokens" in name for name in names)
    assert not any("lm_head" in name for name in names)
    assert not any("embed_tokens" in s.name for s in last.storages if s.kind == "parameter")


def test_microbatches_take_time_but_no_memory_for_activations() -> None:
    def traced(microbatches: int, stage: tuple[int, int] = (0, 1)) -> Trace:
        job = Job(batch=8, sequence=512, microbatches=microbatches, stage=stage)
        return trace_config(SMALL, job, accelerator="h100-sxm")

    def passes(trace: Trace) -> int:
        return sum(op.name == "aten::embedding" for op in trace.ops)

    one, four = traced(1), traced(4)
    assert (passes(one), passes(four)) == (1, 4)
    assert peak(four) == pytest.approx(peak(one), rel=0.05)
    # The first of two stages has two micro-batches in flight, the last one has one.
    assert peak(traced(4, (0, 2))) > 1.2 * peak(traced(1, (0, 2)))
    assert peak(traced(4, (1, 2))) == pytest.approx(peak(traced(1, (1, 2))), rel=0.05)


def test_shards_hold_their_part() -> None:
    whole = trace_config(SMALL, Job(batch=4, sequence=256), accelerator="h100-nvl")
    half = trace_config(SMALL, Job(batch=4, sequence=256, shards=2), accelerator="h100-nvl")
    assert parameters(half) == pytest.approx(parameters(whole) / 2, rel=0.02)


def test_recomputation_trades_memory_for_time() -> None:
    def traced(checkpointing: bool) -> Trace:
        job = Job(batch=8, sequence=512, checkpointing=checkpointing)
        return trace_config(SMALL, job, accelerator="h100-sxm")

    kept, again = traced(False), traced(True)
    assert peak(again) < peak(kept)
    assert len(again.ops) > len(kept.ops)


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp32"])
def test_steps_in_the_backward_pass_leave_no_gradient_alive(precision) -> None:
    def traced(in_backward: bool) -> Trace:
        job = Job(batch=8, sequence=64, precision=precision, optimizer_in_backward=in_backward)
        return trace_config(SMALL, job, accelerator=GPU)

    ordinary, trace = traced(False), traced(True)
    gradients = [storage for storage in trace.storages if storage.kind == "gradient"]
    assert len(gradients) == len([s for s in ordinary.storages if s.kind == "gradient"]) > 0
    assert all(s.birth is not None and s.death is not None for s in gradients)
    assert max(s.death - s.birth for s in gradients) < 60  # of some 600 ops
    count = Counter(op.name for op in trace.ops if op.phase == "optimizer")
    parameters = sum(storage.kind == "parameter" for storage in trace.storages)
    assert count["aten::_fused_adamw_"] == parameters


def test_flops_are_those_that_pytorch_counts() -> None:
    """Each product and attention of a step, counted by torch's own formulas on the same calls."""
    from torch.utils.flop_counter import FlopCounterMode

    import teraio._C as _C
    from teraio.whatif.costs import flops
    from teraio.whatif.tracing import _kernel, _observed

    build = _build(SMALL, Job(batch=2, sequence=128, precision="fp32"))
    with _observed(1 << 40):
        build.iteration()
        _C.mark_training_thread()
        _C.record(True)
        _C.log_calls()
        with FlopCounterMode(display=False) as counter:
            build.iteration()
        recording = _C.take_recording()
        signatures, patterns = _C.take_calls()
    ours = [flops(_kernel(signature)) for signature in signatures]
    counted = sum(ours[call] for pattern in recording["calls"] for call in patterns[pattern])
    attention = sum(
        flops(_kernel(signatures[call]))
        for pattern in recording["calls"]
        for call in patterns[pattern]
        if "attention" in signatures[call][0]
    )
    # torch counts causal attention in full, we count the half that is computed.
    assert counted + attention == counter.get_total_flops()


# ---------------------------------------------------------------- what can't be traced


class Asks(nn.Module):
    """Its course depends on data."""

    def __init__(self, number: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 128)
        self.number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.number:
            return self.linear(x)[: int(x.sum().item())]
        return self.linear(x) if (x > 0).all() else x


@pytest.mark.parametrize("number", [False, True])
def test_truth_values_are_true_and_numbers_are_refused(number: bool) -> None:
    with torch.device("meta"):
        model, x = Asks(number), torch.empty(64, 128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def iteration() -> None:
        model(x).sum().backward()
        optimizer.step()

    if number:
        with pytest.raises(ConfigurationError, match="depends on data"):
            trace_iteration(model, optimizer, iteration, accelerator=GPU)
    else:
        trace = trace_iteration(model, optimizer, iteration, accelerator=GPU)
        assert any(op.name == "aten::linear" for op in trace.ops)


def test_a_model_with_data_is_refused() -> None:
    model = nn.Linear(8, 8)
    with pytest.raises(ConfigurationError, match="weight is on cpu"):
        trace_iteration(model, sgd(model.parameters()), lambda: None, accelerator=GPU)


def test_an_offloaded_process_is_refused(spill) -> None:
    model = teraio.offload(Net(), memory_budget=NO_LIMIT, ssd=spill)
    with pytest.raises(ConfigurationError, match="in a process of their own"):
        trace_config(SMALL, Job(batch=1, sequence=64), accelerator="h200")
    teraio.restore(model)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(batch=0, sequence=8), "batch=0; pass 1 or more"),
        (Job(batch=1, sequence=8, stage=(2, 2)), "counted from 0"),
        (Job(batch=1, sequence=8, stage=(0, 3)), "3 equal stages"),
        (Job(batch=1, sequence=8, shards=5), "5 GPUs"),
        (Job(batch=1, sequence=8, precision="fp8"), "precision='fp8'"),  # type: ignore[arg-type]
        (Job(batch=1, sequence=8, optimizer="sgd"), "master weights"),
    ],
)
def test_impossible_jobs_are_refused(job: Job, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        trace_config(SMALL, job, accelerator="h200")


def test_a_configuration_that_is_none_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}', encoding="utf-8")
    with pytest.raises(ConfigurationError, match="model_type"):
        trace_config(tmp_path, Job(batch=1, sequence=8), accelerator="h200")
