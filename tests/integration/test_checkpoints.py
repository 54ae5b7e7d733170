"""Checkpoints are those of a run without teraio, at any moment between steps and under the budget.

In: one training under half of its unlimited peak, one without teraio. Out: equality of everything
that saving, loading and copying give.
"""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

import teraio
from tests.integration.training import Case, Training, digest, plain, unlimited_peak

# Before the first step, while profiling, under the plan.
MOMENTS = (0, 1, 5)
LLAMA = Case("llama", features=frozenset({"clip"}))
GPT2 = Case("gpt2")


@dataclass
class Pair:
    """The same training twice, after the same number of steps."""

    budget: int
    ours: Training
    theirs: Training

    def go_on(self, steps: int = 4) -> None:
        """Both train on; they must stay equal, and ours under the budget."""
        self.ours.run(steps)
        self.theirs.run(steps)
        assert self.ours.outcome.losses == self.theirs.outcome.losses
        report = teraio.report(self.ours.model)
        assert [s.iteration for s in report.steps if s.peak_bytes > self.budget] == []


def make_pair(case: Case, moment: int, spill: str) -> Pair:
    budget = unlimited_peak(case, spill) // 2
    theirs = Training(case)
    theirs.run(moment)
    # The state of torch's own generator is shared, so the second must start where the first did.
    ours = Training(case)
    teraio.offload(ours.model, memory_budget=budget, ssd=[spill])
    ours.run(moment)
    return Pair(budget, ours, theirs)


@pytest.fixture(params=MOMENTS, ids=lambda moment: f"after {moment} steps")
def moment(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pair(moment: int, spill: str) -> Iterator[Pair]:
    made = make_pair(LLAMA, moment, spill)
    yield made
    teraio.restore(made.ours.model)


@pytest.fixture
def tied_pair(moment: int, spill: str) -> Iterator[Pair]:
    made = make_pair(GPT2, moment, spill)
    yield made
    teraio.restore(made.ours.model)


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Same keys in the same order, same values, dtypes and shapes, bit for bit."""
    assert type(ours) is type(theirs), path
    if isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype, path
        assert ours.requires_grad == theirs.requires_grad, path
        assert torch.equal(ours, theirs), path
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), path
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{path}/{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), path
        for index, value in enumerate(theirs):
            assert_same(ours[index], value, f"{path}/{index}")
    else:
        assert ours == theirs, path


def saved(value: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def test_the_models_state_dict_is_the_same(pair: Pair) -> None:
    assert_same(dict(pair.ours.model.state_dict()), dict(pair.theirs.model.state_dict()))
    pair.go_on()


def test_the_optimizers_state_dict_is_the_same(pair: Pair) -> None:
    assert_same(pair.ours.optimizer.state_dict(), pair.theirs.optimizer.state_dict())
    pair.go_on()


def test_torch_save_writes_what_torch_load_gives_back(pair: Pair) -> None:
    for ours, theirs in (
        (pair.ours.model.state_dict(), pair.theirs.model.state_dict()),
        (pair.ours.optimizer.state_dict(), pair.theirs.optimizer.state_dict()),
    ):
        assert_same(torch.load(saved(ours)), torch.load(saved(theirs)))
    pair.go_on()


def test_a_whole_model_can_be_pickled(pair: Pair) -> None:
    model = torch.load(saved(pair.ours.model), weights_only=False)
    assert_same(dict(model.state_dict()), dict(pair.theirs.model.state_dict()))
    del model
    pair.go_on()


def test_safetensors_writes_the_same_file(pair: Pair, tmp_path: Path) -> None:
    for name, training in (("ours", pair.ours), ("theirs", pair.theirs)):
        state = {key: value.contiguous() for key, value in training.model.state_dict().items()}
        safetensors.torch.save_file(state, tmp_path / name)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    pair.go_on()


def test_save_pretrained_writes_the_same_weights(tied_pair: Pair, tmp_path: Path) -> None:
    for name, training in (("ours", tied_pair.ours), ("theirs", tied_pair.theirs)):
        training.model.save_pretrained(tmp_path / name)
    weights = [path.name for path in (tmp_path / "theirs").glob("*.safetensors")]
    assert weights
    for name in weights:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert_same(dict(loaded.state_dict()), dict(tied_pair.theirs.model.state_dict()))
    del loaded
    tied_pair.go_on()


def test_a_deep_copy_is_equal_and_stands_alone(pair: Pair) -> None:
    twin = copy.deepcopy(pair.ours.model)
    assert_same(dict(twin.state_dict()), dict(pair.theirs.model.state_dict()))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(dict(pair.ours.model.state_dict()), dict(pair.theirs.model.state_dict()))
    del twin
    gc.collect()
    pair.go_on()


def test_load_state_dict_replaces_the_values_of_a_running_model(pair: Pair, spill: str) -> None:
    other = Training(LLAMA)
    other.run(3)
    weights, states = saved(other.model.state_dict()), saved(other.optimizer.state_dict())
    del other
    for training in (pair.ours, pair.theirs):
        weights.seek(0)
        states.seek(0)
        training.model.load_state_dict(torch.load(weights))
        training.optimizer.load_state_dict(torch.load(states))
    gc.collect()
    pair.go_on()
    assert_same(dict(pair.ours.model.state_dict()), dict(pair.theirs.model.state_dict()))


def test_a_resumed_run_ends_where_an_unbroken_one_does(spill: str) -> None:
    budget = unlimited_peak(GPT2, spill) // 2
    first = Training(GPT2)
    teraio.offload(first.model, memory_budget=budget, ssd=[spill])
    first.run(5)
    files = saved(first.model.state_dict()), saved(first.optimizer.state_dict())
    data = first.data.get_state()
    teraio.restore(first.model)
    losses = first.outcome.losses
    del first
    gc.collect()

    second = Training(GPT2)
    teraio.offload(second.model, memory_budget=budget, ssd=[spill])
    second.model.load_state_dict(torch.load(files[0]))
    second.optimizer.load_state_dict(torch.load(files[1]))
    second.data.set_state(data)
    second.done = 5
    second.run(5)
    report = teraio.report(second.model)
    teraio.restore(second.model)
    second.take_digests()
    assert losses + second.outcome.losses == plain(GPT2).losses
    assert second.outcome.digests == plain(GPT2).digests
    assert max(step.peak_bytes for step in report.steps) <= budget


def test_resident_gives_raw_memory_to_foreign_code(pair: Pair) -> None:
    theirs = dict(pair.theirs.model.named_parameters())
    for name, parameter in pair.ours.model.named_parameters():
        with teraio.resident(parameter):
            assert parameter.data_ptr() != 0
            assert digest(parameter) == digest(theirs[name])
    pair.go_on()


def test_restore_gives_an_ordinary_model_back(pair: Pair) -> None:
    before = dict(pair.theirs.model.named_parameters())
    teraio.restore(pair.ours.model)
    for name, parameter in pair.ours.model.named_parameters():
        assert digest(parameter) == digest(before[name])
    pair.ours.run(3)
    pair.theirs.run(3)
    assert pair.ours.outcome.losses == pair.theirs.outcome.losses
