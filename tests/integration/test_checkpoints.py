"""Checkpoints are those of a run without teraio, at any moment between steps and under the budget.

In: one training under half of its unlimited peak, one without teraio. Out: equality of everything
that saving, loading and copying give.
"""

from __future__ import annotations

import copy
import functools
import gc
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from torch import nn
from torch.distributed import checkpoint

import teraio
import teraio._C as _C
from teraio.engine.testing import send_away, state
from tests.integration.programs import ended
from tests.integration.training import NO_LIMIT, Case, Training, digest, plain, unlimited_peak

# Before the first step, while profiling, under the plan.
MOMENTS = (0, 1, 5)
LLAMA = Case("llama", features=frozenset({"clip"}))
GPT2 = Case("gpt2")


@dataclass
class Reference:
    """What a run without teraio gives: its state at a moment, and the losses of four more steps.

    Made before the run under a budget begins, so that none of its memory counts there.
    """

    weights: dict[str, torch.Tensor]
    states: dict[str, Any]
    pickled: bytes
    losses: list[str]


@functools.cache
def reference(case: Case, moment: int) -> Reference:
    training = Training(case)
    training.run(moment)
    made = Reference(
        weights=copy.deepcopy(dict(training.model.state_dict())),
        states=copy.deepcopy(training.optimizer.state_dict()),
        pickled=safetensors.torch.save(contiguous(training.model)) if case == LLAMA else b"",
        losses=[],
    )
    made.losses = training.run(4).losses
    return made


def contiguous(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in model.state_dict().items()}


@dataclass
class Pair:
    """A training under a budget, and what the same training gives without teraio."""

    budget: int
    ours: Training
    theirs: Reference

    def go_on(self) -> None:
        """Four more steps: equal to those without teraio, and under the budget."""
        self.ours.run(4)
        assert self.ours.outcome.losses == self.theirs.losses
        report = teraio.report(self.ours.model)
        assert [s.iteration for s in report.steps if s.peak_bytes > self.budget] == []


def make_pair(case: Case, moment: int, spill: str) -> Pair:
    budget = unlimited_peak(case, spill) // 2
    theirs = reference(case, moment)
    ours = Training(case)
    teraio.offload(ours.model, memory_budget=budget, ssd=[spill])
    ours.run(moment)
    return Pair(budget, ours, theirs)


@pytest.fixture(params=MOMENTS, ids=lambda moment: f"after {moment} steps")
def moment(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pair(moment: int, spill: str) -> Pair:
    return make_pair(LLAMA, moment, spill)


@pytest.fixture
def tied_pair(moment: int, spill: str) -> Pair:
    return make_pair(GPT2, moment, spill)


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
    assert_same(dict(pair.ours.model.state_dict()), pair.theirs.weights)
    pair.go_on()


def test_the_optimizers_state_dict_is_the_same(pair: Pair) -> None:
    assert_same(pair.ours.optimizer.state_dict(), pair.theirs.states)
    pair.go_on()


def test_torch_save_writes_what_torch_load_gives_back(pair: Pair) -> None:
    assert_same(torch.load(saved(dict(pair.ours.model.state_dict()))), pair.theirs.weights)
    assert_same(torch.load(saved(pair.ours.optimizer.state_dict())), pair.theirs.states)
    pair.go_on()


def test_the_format_before_zip_files_can_be_written_too(pair: Pair) -> None:
    file = io.BytesIO()
    torch.save(pair.ours.model.state_dict(), file, _use_new_zipfile_serialization=False)
    file.seek(0)
    assert_same(dict(torch.load(file)), pair.theirs.weights)
    pair.go_on()


def test_a_whole_model_can_be_pickled(pair: Pair) -> None:
    model = torch.load(saved(pair.ours.model), weights_only=False)
    assert_same(dict(model.state_dict()), pair.theirs.weights)
    del model
    gc.collect()
    pair.go_on()


def test_safetensors_writes_the_same_file(pair: Pair, tmp_path: Path) -> None:
    safetensors.torch.save_file(contiguous(pair.ours.model), tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == pair.theirs.pickled
    pair.go_on()


def test_safetensors_writes_files_that_are_more_than_the_budget(spill: str, tmp_path: Path) -> None:
    layers = nn.ModuleList(nn.Linear(512, 512) for _ in range(8))  # of 1 MiB each
    teraio.offload(layers, memory_budget="4MiB", ssd=spill)
    with pytest.raises(teraio.BudgetError, match="all tensors in memory at once here"):
        safetensors.torch.save(layers.state_dict())
    safetensors.torch.save_file(layers.state_dict(), tmp_path / "ours", {"format": "pt"})
    assert teraio.report(layers).phase == "profile"
    teraio.restore(layers)
    safetensors.torch.save_file(layers.state_dict(), tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_safetensors_has_every_dtype_and_shape_and_refuses_what_it_always_refuses(
    spill: str, tmp_path: Path
) -> None:
    dtypes = safetensors.torch._TYPES.values()
    tensors = {f"{dtype}, ä\n": torch.rand(3, 5).to(dtype) for dtype in dtypes}
    tensors |= {
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 7),
        "part": torch.rand(1 << 16)[7:99],
        "large": nn.Parameter(torch.rand(1 << 16)),
    }
    shared = torch.zeros(1 << 16)
    halves = torch.rand(2, 1 << 16)
    refused: list[tuple[Any, Any]] = [
        ({"a": shared, "b": shared}, None),
        ({"a": torch.zeros(4, 4).t()}, None),
        ({"a": torch.zeros(4).to_sparse()}, None),
        ({"a": 3}, None),
        ([shared], None),
        ({"a": shared}, {"a": 3}),
    ]
    model = nn.Linear(256, 256)
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=spill)
    ours = []
    for given, metadata in refused:
        with pytest.raises(Exception) as raised:
            safetensors.torch.save_file(given, tmp_path / "no", metadata)
        ours.append((raised.type, str(raised.value)))
    safetensors.torch.save_file(tensors, tmp_path / "all")
    safetensors.torch.save_file({"a": halves[0], "b": halves[1]}, tmp_path / "halves")
    teraio.restore(model)
    for (given, metadata), error in zip(refused, ours, strict=True):
        with pytest.raises(error[0]) as raised:
            safetensors.torch.save_file(given, tmp_path / "no", metadata)
        assert str(raised.value) == error[1]
    read = safetensors.torch.load_file(tmp_path / "all")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert read[name].view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8))
    read = safetensors.torch.load_file(tmp_path / "halves")
    assert read["a"].equal(halves[0]) and read["b"].equal(halves[1])


def test_safetensors_may_be_loaded_in_mid_run(spill: str) -> None:
    ran = ended(
        "import sys, tempfile, torch, teraio;"
        "layers = torch.nn.ModuleList(torch.nn.Linear(512, 512) for _ in range(8));"
        "teraio.offload(layers, memory_budget='4MiB', ssd=sys.argv[1]);"
        "assert 'safetensors.torch' not in sys.modules;"
        "from safetensors.torch import load_file, save_file;"
        "names = [f'{sys.argv[1]}/{i}' for i in range(8)];"
        "[save_file(layer.state_dict(), name) for layer, name in zip(layers, names)];"
        "teraio.restore(layers);"
        "print(all(torch.equal(load_file(n)['weight'], l.weight) for l, n in zip(layers, names)))",
        spill,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "True\n", "")


def test_save_model_of_safetensors_writes_the_same_weights(tied_pair: Pair, tmp_path: Path) -> None:
    safetensors.torch.save_model(tied_pair.ours.model, str(tmp_path / "model.safetensors"))
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for key, value in loaded.items():
        assert torch.equal(value, tied_pair.theirs.weights[key]), key
    del loaded
    safetensors.torch.load_model(tied_pair.ours.model, tmp_path / "model.safetensors")
    tied_pair.go_on()


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed.*")
def test_a_distributed_checkpoint_can_be_written_and_read(pair: Pair, tmp_path: Path) -> None:
    model, optimizer = pair.ours.model, pair.ours.optimizer
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint.save(states, checkpoint_id=tmp_path, no_dist=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    checkpoint.load(states, checkpoint_id=tmp_path, no_dist=True)  # into the tensors themselves
    optimizer.load_state_dict(states["optimizer"])
    assert_same(dict(model.state_dict()), pair.theirs.weights)
    assert_same(optimizer.state_dict(), pair.theirs.states)
    del states
    pair.go_on()


@pytest.mark.filterwarnings("ignore::UserWarning:torch.distributed.*")
def test_a_distributed_checkpoint_can_be_written_while_training_goes_on(
    spill: str, tmp_path: Path
) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        pair = make_pair(LLAMA, 5, spill)
        states = {"model": pair.ours.model.state_dict()}
        written = checkpoint.async_save(states, checkpoint_id=tmp_path / "saved")
        pair.go_on()
        written.result()
        assert all(movable for _, _, movable in _C.live_blocks())
    finally:
        torch.distributed.destroy_process_group()


def test_what_is_loaded_in_mid_run_moves_like_the_rest(pair: Pair) -> None:
    weights = saved(dict(pair.ours.model.state_dict()))
    loaded = torch.load(weights)
    large = [value for value in loaded.values() if value.untyped_storage().nbytes() >= 1 << 16]
    assert send_away(*large) == len(large) > 0


def test_save_pretrained_writes_the_same_weights(tied_pair: Pair, tmp_path: Path) -> None:
    tied_pair.ours.model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same(dict(loaded.state_dict()), tied_pair.theirs.weights)
    del loaded
    gc.collect()
    tied_pair.go_on()


def test_a_deep_copy_is_equal_and_stands_alone(pair: Pair) -> None:
    twin = copy.deepcopy(pair.ours.model)
    assert_same(dict(twin.state_dict()), pair.theirs.weights)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(dict(pair.ours.model.state_dict()), pair.theirs.weights)
    del twin
    gc.collect()
    pair.go_on()


def test_a_deep_copy_of_the_optimizer_states_is_equal(pair: Pair) -> None:
    assert_same(copy.deepcopy(pair.ours.optimizer.state_dict()), pair.theirs.states)
    pair.go_on()


def test_load_state_dict_replaces_the_values_of_a_running_model(pair: Pair) -> None:
    """Back to the moment at which the run was, after two steps more."""
    weights = saved(dict(pair.ours.model.state_dict()))
    states = saved(pair.ours.optimizer.state_dict())
    data = pair.ours.data.get_state()
    losses = list(pair.ours.outcome.losses)
    pair.ours.run(2)
    pair.ours.outcome.losses = losses
    pair.ours.model.load_state_dict(torch.load(weights))
    pair.ours.optimizer.load_state_dict(torch.load(states))
    pair.ours.data.set_state(data)
    gc.collect()
    assert_same(dict(pair.ours.model.state_dict()), pair.theirs.weights)
    pair.go_on()


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
    for name, parameter in pair.ours.model.named_parameters():
        with teraio.resident(parameter):
            assert parameter.data_ptr() != 0
            assert digest(parameter) == digest(pair.theirs.weights[name])
    pair.go_on()


def test_restore_gives_an_ordinary_model_back(pair: Pair) -> None:
    teraio.restore(pair.ours.model)
    assert_same(dict(pair.ours.model.state_dict()), pair.theirs.weights)
    pair.ours.run(4)
    assert pair.ours.outcome.losses == pair.theirs.losses


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_weights_mapped_from_a_checkpoint_move_like_any_others(
    form: str, tmp_path: Path, spill: str
) -> None:
    torch.manual_seed(0)
    plain_model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256))
    plain_model[2].weight = plain_model[0].weight  # tied weights stay tied
    states = plain_model.state_dict()
    if form == "torch":
        torch.save(states, tmp_path / "model.pt")
        states = torch.load(tmp_path / "model.pt", mmap=True)
    else:
        clones = {name: tensor.clone() for name, tensor in states.items()}
        safetensors.torch.save_file(clones, tmp_path / "model.safetensors")
        states = safetensors.torch.load_file(tmp_path / "model.safetensors")
        states["2.weight"] = states["0.weight"]
    mapped = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256))
    mapped.load_state_dict(states, assign=True)
    teraio.offload(mapped, memory_budget="64MiB", ssd=[spill])
    assert state(mapped[0].weight) == "resident"
    assert send_away(mapped[0].weight) == 1
    assert state(mapped[2].weight) == "away"
    assert_same(dict(mapped.state_dict()), dict(plain_model.state_dict()))
    teraio.restore(mapped)


@pytest.mark.parametrize("alias", ["tensor", "view", "array"])
def test_what_shares_mapped_weights_goes_on_sharing_them(
    alias: str, tmp_path: Path, spill: str
) -> None:
    torch.save(nn.Linear(256, 256).state_dict(), tmp_path / "model.pt")
    states = torch.load(tmp_path / "model.pt", mmap=True)
    model = nn.Linear(256, 256)
    model.load_state_dict(states, assign=True)
    weight = model.weight.detach()
    kept = [{"tensor": weight, "view": weight[1:], "array": weight.numpy()}[alias]]
    del weight
    teraio.offload(model, memory_budget="64MiB", ssd=[spill])
    assert send_away(model.weight) == (alias != "array")  # whose address can't be changed
    with torch.no_grad():
        model.weight.fill_(2.0)
    teraio.restore(model)
    assert (kept[0] == 2.0).all()
    assert (states["weight"] == 2.0).all()


def layers_and_adam() -> tuple[nn.Sequential, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(6)))
    return model, torch.optim.AdamW(model.parameters())


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        model(torch.ones(4, 256)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("loaded", ["before", "after", "in mid-run"])
def test_what_a_checkpoint_brings_counts_and_moves(
    loaded: str, mmap: bool, assign: bool, tmp_path: Path, spill: str
) -> None:
    model, optimizer = layers_and_adam()
    steps(model, optimizer, 1)
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(states, tmp_path / "checkpoint.pt")
    steps(model, optimizer, 8)

    ours, our_optimizer = layers_and_adam()
    if loaded != "before":
        teraio.offload(ours, memory_budget="2MiB", ssd=[spill])
    if loaded == "in mid-run":
        steps(ours, our_optimizer, 4)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", mmap=mmap)
    ours.load_state_dict(checkpoint["model"], assign=assign)
    if assign:
        our_optimizer = torch.optim.AdamW(ours.parameters())
    our_optimizer.load_state_dict(checkpoint["optimizer"])
    del checkpoint
    if loaded == "before":
        teraio.offload(ours, memory_budget="2MiB", ssd=[spill])
    steps(ours, our_optimizer, 8)

    report = teraio.report(ours)
    assert report.trace is not None and report.plan is not None
    counted = {"parameter": 0, "optimizer_state": 0}
    for storage in report.trace.storages:
        if storage.kind in counted:
            counted[storage.kind] += storage.nbytes
    weights = 6 * 256 * 256 * 4
    assert counted == {"parameter": weights, "optimizer_state": 2 * weights}
    assert_same(dict(ours.state_dict()), dict(model.state_dict()))
    teraio.restore(ours)


def test_memory_shared_with_numpy_stays_shared_and_is_named(
    spill: str, caplog: pytest.LogCaptureFixture
) -> None:
    array = np.ones((128, 128), dtype=np.float32)
    model = nn.Linear(128, 128)
    model.weight = nn.Parameter(torch.from_numpy(array))
    with caplog.at_level("WARNING", logger="teraio"):
        teraio.offload(model, memory_budget="64MiB", ssd=[spill])
    assert "64.0 KiB of the training can't move" in caplog.text
    assert "weight" in caplog.text
    array[0, 0] = 7
    assert model.weight[0, 0].item() == 7
    teraio.restore(model)
