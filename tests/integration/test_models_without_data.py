"""Models that are on the meta device when they are offloaded get the values of ordinary ones.

In: modules, models of transformers, and files of their weights. Out: equality to the last bit, the
budget kept while they are filled, and one clear error for whatever has no values or doesn't fit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import teraio
from teraio.engine.testing import stress
from teraio.runtime import resources
from tests.integration.conftest import ROOT
from tests.integration.training import MODELS, digest

KIB = 1 << 10
MIB = 1 << 20
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(*(nn.Linear(96, 96) for _ in range(6))),
    "norms": lambda: nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.GroupNorm(4, 64)),
    "embedding": lambda: nn.Sequential(nn.Embedding(300, 64, padding_idx=0), nn.LayerNorm(64)),
    "recurrent": lambda: nn.LSTM(64, 96, num_layers=2),
    "attention": lambda: nn.MultiheadAttention(64, 4, kdim=32, vdim=48),
    "transformer layer": lambda: nn.TransformerEncoderLayer(64, 4, 128),
    "bf16": lambda: nn.Linear(128, 128, dtype=torch.bfloat16),
}


def tensors_of(model: nn.Module) -> dict[str, str]:
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: digest(tensor) for name, tensor in named}


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def filled(
    model: nn.Module, spill: str, budget: int = MIB, weights: Path | None = None
) -> dict[str, str]:
    """What the model holds after it was offloaded and restored."""
    torch.manual_seed(5)
    teraio.offload(model, memory_budget=budget, ssd=spill, device="cpu", weights=weights)
    teraio.restore(model)
    return tensors_of(model)


def ordinary(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(5)
    return make()


# ------------------------------------------------------------ initialised


@pytest.mark.parametrize("name", PLAIN)
def test_a_module_is_initialised_as_its_constructor_does_it(name: str, spill: str) -> None:
    expected = tensors_of(ordinary(PLAIN[name]))
    assert filled(on_meta(PLAIN[name]), spill) == expected


@pytest.mark.parametrize("name", ["llama", "llama tied", "t5", "mixtral"])
def test_a_model_of_transformers_is_initialised_as_its_constructor_does_it(
    name: str, spill: str
) -> None:
    kind, *features = name.split()
    make = lambda: MODELS[kind](frozenset(features))  # noqa: E731
    model = on_meta(make)
    budget = sum(parameter.nbytes for parameter in model.parameters()) // 2
    assert filled(model, spill, budget) == tensors_of(ordinary(make))


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_a_constructor_that_draws_by_itself_gives_other_numbers_of_the_same_kind(
    name: str, spill: str
) -> None:
    """Their constructors call ``torch.randn`` or ``normal_``, which leaves no way to repeat it."""
    make = lambda: MODELS[name](frozenset())  # noqa: E731
    model, reference = on_meta(make), ordinary(make)
    filled(model, spill)
    for (key, one), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.isfinite(one).all(), key
        assert torch.isclose(one.std(unbiased=False), other.std(unbiased=False), rtol=0.2), key


def test_parameters_stay_the_objects_they_were(spill: str) -> None:
    model = on_meta(lambda: nn.Linear(128, 128))
    weight = model.weight
    weight.is_special = True
    model.bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    teraio.offload(model, memory_budget=MIB, ssd=spill, device="cpu")
    assert model.weight is weight is optimizer.param_groups[0]["params"][0]
    assert weight.is_special
    assert not model.bias.requires_grad
    before = weight.detach().clone()
    model(torch.randn(4, 128)).sum().backward()
    optimizer.step()
    assert not torch.equal(weight, before)
    teraio.restore(model)


class Tied(nn.Module):
    """The second layer has the weight of the first, and a buffer is a window on it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(96, 96)
        self.second = nn.Linear(96, 96)
        self.second.weight = self.first.weight
        self.third = nn.Linear(96, 96)
        self.register_buffer("row", self.third.weight.detach()[0])


def test_what_shares_memory_goes_on_to_share_it(spill: str, tmp_path: Path) -> None:
    reference = ordinary(Tied)
    expected = tensors_of(reference)
    model = on_meta(Tied)
    assert filled(model, spill) == expected
    assert model.second.weight is model.first.weight
    assert model.row.data_ptr() == model.third.weight.data_ptr()

    state = reference.state_dict()
    for leave_out in ("first.weight", "second.weight"):
        kept = {name: state[name].clone() for name in state if name != leave_out}
        save_file(kept, tmp_path / "kept.safetensors")
        model = on_meta(Tied)
        assert filled(model, spill, weights=tmp_path / "kept.safetensors") == expected
        assert model.second.weight is model.first.weight


class Lacking(nn.Module):
    """Has tensors that nothing but its constructor gives values."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.fine = nn.Linear(96, 96)
        self.scale = nn.Module()
        values = torch.ones(96)
        if how == "parameter":
            self.scale.weight = nn.Parameter(values)
        elif how == "buffer":
            self.scale.register_buffer("steps", values, persistent=False)
        elif how == "attribute":
            self.scale.table = values
        elif how == "forgotten":
            self.scale = nn.Linear(96, 96)
            self.scale.register_buffer("table", values, persistent=False)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("parameter", r"scale \(Module: weight\)"),
        ("buffer", r"scale \(Module: steps\)"),
        ("attribute", r"scale \(Module: table\)"),
        ("forgotten", r"scale \(Linear: table\)"),
    ],
)
def test_what_nothing_fills_is_named_and_the_model_stays_as_it_was(
    how: str, named: str, spill: str
) -> None:
    model = on_meta(lambda: Lacking(how))
    weight = model.fine.weight
    with pytest.raises(teraio.ConfigurationError, match=named + r".*reset_parameters"):
        teraio.offload(model, memory_budget=MIB, ssd=spill, device="cpu")
    assert model.fine.weight is weight
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    with pytest.raises(teraio.ConfigurationError, match="not offloaded"):
        teraio.report(model)


def test_an_initialiser_that_fails_leaves_the_model_as_it_was(spill: str) -> None:
    class Failing(nn.Linear):
        broken = False

        def reset_parameters(self) -> None:
            if self.broken:
                raise ZeroDivisionError
            super().reset_parameters()

    model = on_meta(lambda: nn.Sequential(Tied(), Failing(96, 96)))
    model[1].broken = True
    with pytest.raises(ZeroDivisionError):
        teraio.offload(model, memory_budget=MIB, ssd=spill, device="cpu")
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert model[0].second.weight is model[0].first.weight
    model[1].broken = False
    reference = ordinary(lambda: nn.Sequential(Tied(), Failing(96, 96)))
    assert filled(model, spill) == tensors_of(reference)


def test_what_has_data_already_keeps_it(spill: str) -> None:
    def make() -> nn.Sequential:
        norm = nn.BatchNorm1d(96)
        norm.running_mean += 3
        return nn.Sequential(nn.Linear(96, 96), nn.Linear(96, 96), norm)

    model, reference = make(), ordinary(make)
    expected = tensors_of(model) | {
        name: value for name, value in tensors_of(reference).items() if name.startswith("1.")
    }
    with torch.device("meta"):
        model[1] = nn.Linear(96, 96)
        model[2].weight = nn.Parameter(torch.empty(96))
    torch.manual_seed(5)
    nn.Linear(96, 96)  # what came first in the reference
    teraio.offload(model, memory_budget=MIB, ssd=spill, device="cpu")
    teraio.restore(model)
    assert tensors_of(model) == expected


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("place", ["meta", "cpu"])
def test_parameters_without_a_shape_are_named(place: str, device: str | None, spill: str) -> None:
    with torch.device(place):
        model = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8), nn.LazyBatchNorm1d(affine=False))
    names = r"1\.weight, 1\.bias, 2\.running_mean, 2\.running_var"
    with pytest.raises(teraio.ConfigurationError, match=rf"no shape yet \({names}\)"):
        teraio.offload(model, memory_budget=MIB, ssd=spill, device=device)
    model[1] = nn.Linear(8, 8)
    del model[2]
    teraio.offload(model, memory_budget=MIB, ssd=spill, device="cpu")
    teraio.restore(model)


# ------------------------------------------------------------ read from files


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2", "t5", "mixtral", "vit"])
def test_weights_give_the_model_that_from_pretrained_gives(
    name: str, spill: str, tmp_path: Path
) -> None:
    """Mixtral's experts are one by one in the files and together in the model."""
    kind, *features = name.split()
    make = lambda: MODELS[kind](frozenset(features))  # noqa: E731
    ordinary(make).save_pretrained(tmp_path, max_shard_size="1MB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    expected = type(ordinary(make)).from_pretrained(tmp_path)
    model = on_meta(make)
    budget = sum(parameter.nbytes for parameter in model.parameters()) // 2
    assert filled(model, spill, budget, tmp_path) == tensors_of(expected)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad


def test_all_dtypes_shapes_and_layouts_are_read_as_safetensors_reads_them(
    spill: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tensors = {
        "f32": torch.randn(70, 80),
        "bf16": torch.randn(70, 300).bfloat16(),
        "f16": torch.randn(3, 4, 5).half(),
        "f64": torch.randn(7).double(),
        "f8": torch.randn(64).to(torch.float8_e4m3fn),
        "i64": torch.arange(-5, 5),
        "u8": torch.arange(200, dtype=torch.uint8),
        "bool": torch.rand(33) > 0.5,
        "c64": torch.randn(6, dtype=torch.complex64),
        "scalar": torch.tensor(3.25),
        "empty": torch.empty(0, 5),
        "channels_last": torch.randn(8, 8, 16, 16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, torch.empty_like(tensor, device="meta"))
    model.channels_last = model.channels_last.to(memory_format=torch.channels_last)
    filled(model, spill, weights=tmp_path)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert digest(model.get_buffer(name)) == digest(tensor)
    assert model.channels_last.is_contiguous(memory_format=torch.channels_last)


def test_a_model_that_has_data_gets_that_of_the_files(spill: str, tmp_path: Path) -> None:
    reference = ordinary(PLAIN["norms"])
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    assert filled(PLAIN["norms"](), spill, weights=tmp_path) == tensors_of(reference)


def test_what_does_not_fit_is_named_all_at_once(spill: str, tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.LayerNorm(64)).state_dict()
    state["0.weight"] = torch.zeros(64, 63)
    state["1.weight"] = state["1.weight"].half()
    state["3.extra"] = torch.zeros(2)
    del state["2.bias"]
    save_file(state, tmp_path / "model.safetensors")
    model = on_meta(lambda: nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.LayerNorm(64)))
    with pytest.raises(teraio.ConfigurationError) as caught:
        teraio.offload(model, memory_budget=MIB, ssd=spill, device="cpu", weights=tmp_path)
    message = str(caught.value)
    assert "not in the files: 2.bias;" in message
    assert "not in the model: 3.extra;" in message
    assert "0.weight (float32[64, 63] in the file, float32[64, 64] in the model)" in message
    assert "1.weight (float16[64, 64] in the file, float32[64, 64] in the model)" in message
    assert all(parameter.is_meta for parameter in model.parameters())


def test_tied_tensors_that_differ_in_the_files_are_named(spill: str, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in ordinary(Tied).state_dict().items()}
    state["second.weight"] += 1
    save_file(state, tmp_path / "model.safetensors")
    model = on_meta(Tied)
    with pytest.raises(
        teraio.ConfigurationError, match=r"second\.weight and first\.weight are one"
    ):
        teraio.offload(model, memory_budget=MIB, ssd=spill, device="cpu", weights=tmp_path)
    assert all(parameter.is_meta for parameter in model.parameters())


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file"),
        (b"\xff" * 64, "no safetensors file"),
        ((5).to_bytes(8, "little") + b"[1,2]" + bytes(8), "no JSON object"),
        (header({"w": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}}) + bytes(8), "read"),
        (header({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}), "damaged"),
        (header({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}), "damaged"),
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), "damaged"),
        (header({"w": {"dtype": "F32", "shape": 2, "data_offsets": [0]}}) + bytes(8), "read"),
        (header({"w": [1]}) + bytes(8), "read"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(
    content: bytes, message: str, spill: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(teraio.FileFormatError, match=message):
        teraio.offload(nn.Linear(4, 4), memory_budget=MIB, ssd=spill, device="cpu", weights=file)


def test_folders_that_do_not_say_what_to_read_are_refused(spill: str, tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            teraio.offload(
                nn.Linear(4, 4), memory_budget=MIB, ssd=spill, device="cpu", weights=tmp_path
            )

    refused(teraio.ConfigurationError, r"no \*\.safetensors in")
    index = tmp_path / "model.safetensors.index.json"
    for name in ("../outside.safetensors", "/etc/passwd", "missing.safetensors", 7):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        refused(teraio.FileFormatError, "no file of its folder")
    index.unlink()
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "b.safetensors")
    refused(teraio.ConfigurationError, "both .*a.safetensors and .*b.safetensors have a tensor w")
    with pytest.raises(teraio.ConfigurationError, match="neither a file nor a folder"):
        teraio.offload(
            nn.Linear(4, 4), memory_budget=MIB, ssd=spill, device="cpu", weights=tmp_path / "no"
        )


# ------------------------------------------------------------ larger than the budget


@pytest.mark.parametrize("read", [False, True], ids=["initialised", "read"])
def test_a_model_larger_than_the_budget_is_filled_and_trained_within_it(
    read: bool, spill: str, tmp_path: Path
) -> None:
    """16 MiB of parameters, with gradients and states 64 MiB, under 4 MiB; one layer is 1 MiB."""
    make = lambda: nn.Sequential(*(nn.Linear(512, 512) for _ in range(16)))  # noqa: E731
    budget = 4 * MIB

    def losses(model: nn.Module) -> list[str]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(1)
        found = []
        for _ in range(4):
            loss = model(torch.randn(4, 512)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item().hex())
        return found

    reference = ordinary(make)
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    model = on_meta(make)
    torch.manual_seed(5)
    stress(500)
    teraio.offload(
        model, memory_budget=budget, ssd=spill, device="cpu", weights=tmp_path if read else None
    )
    assert losses(model) == losses(reference)
    stress(0)
    report = teraio.report(model)
    assert max(step.peak_bytes for step in report.steps) <= budget
    teraio.restore(model)
    assert tensors_of(model) == tensors_of(reference)


MEASURED = """
import resource, sys
import torch
from torch import nn
import teraio

torch.set_num_threads(1)
layers, budget, spill, weights = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(layers)))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the high-water mark of the resident set starts anew
def resident(which):
    for line in open("/proc/self/status"):
        if line.startswith(which):
            return int(line.split()[1]) << 10
before = resident("VmRSS")
where = {"ssd": spill, "device": "cpu", "weights": weights[0] if weights else None}
teraio.offload(model, memory_budget=budget, **where)
print(resident("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
import os; sys.stdout.flush(); os._exit(0)  # without bringing anything back
"""


@pytest.mark.parametrize("read", [False, True], ids=["initialised", "read"])
def test_the_process_never_holds_a_model_that_is_larger_than_the_budget(
    read: bool, spill: str, tmp_path: Path
) -> None:
    """256 MiB of parameters under 32 MiB, beside one layer, with the same buffers and code."""

    def growth(layers: int) -> int:
        weights: list[str] = []
        if read:
            file = tmp_path / f"{layers}.safetensors"
            save_file({f"{i}.weight": torch.zeros(1024, 1024) for i in range(layers)}, file)
            weights = [str(file)]
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(layers), str(32 * MIB), spill, *weights],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        grown, nbytes = map(int, done.stdout.split())
        assert nbytes == layers * 4 * MIB
        return grown

    assert growth(64) - growth(1) < 64 * MIB


def test_a_device_that_is_not_there_is_refused(spill: str) -> None:
    model = on_meta(lambda: nn.Linear(128, 128))
    for device in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(teraio.ConfigurationError, match=device):
            teraio.offload(model, memory_budget=MIB, ssd=spill, device=device)
    assert model.weight.is_meta


def test_what_does_not_fit_into_memory_is_not_brought_back(
    spill: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_meta(lambda: nn.Sequential(*(nn.Linear(512, 512) for _ in range(8))))
    teraio.offload(model, memory_budget=3 * MIB, ssd=spill, device="cpu")
    monkeypatch.setattr(resources, "free_memory_bytes", lambda: 4 * MIB)
    with pytest.raises(teraio.BudgetError, match=r"bring 6\.0 MiB back to cpu, .* 4\.0 MiB left"):
        teraio.restore(model)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    monkeypatch.undo()
    teraio.restore(model)
    saved = torch.load(tmp_path / "model.pt")
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
