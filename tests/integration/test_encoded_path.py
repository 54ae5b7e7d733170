"""Storages that go to the SSD encoded come back as the codec promises, and fewer bytes move.

In: training of small models, single storages that are sent away, faults. Out: equal bits with
"lossless", errors within the stated bounds with the others; nothing lost, nothing waited for in
vain. All on the CPU, by the plain-torch codecs; tests/device has accelerators.
"""

from __future__ import annotations

import gc
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch

import teraio
import teraio._C as _C
from teraio.engine import coder, encoded_path
from teraio.engine.testing import send_away, stress
from teraio.kernels import pack, unpack
from teraio.planner import replayed
from tests.integration.programs import ended, forked
from tests.integration.test_equal_results import assert_equal
from tests.integration.test_faults import open_spill_files, truncate_spill_files
from tests.integration.training import NO_LIMIT, Case, Training, plain, unlimited_peak

# Two iterations are profiled, the others follow a plan.
LLAMA = Case("llama", steps=5)
CASES = [
    (LLAMA, 60),
    (LLAMA, 40),
    (Case("gpt2", "adamw_foreach", frozenset({"dropout", "clip"}), steps=4), 40),
    (Case("llama", "adamw_fused", frozenset({"autocast", "checkpointing", "tied"}), steps=4), 60),
]
ALL_BF16 = {
    kind: "bf16" for kind in ("parameter", "gradient", "optimizer_state", "activation", "buffer")
}
LOSSY = ("bf16", "fp8", "int8")


@contextmanager
def offloaded(
    case: Case, share: int, spill: str, compress: Any, max_delay_us: int = 0
) -> Iterator[Training]:
    budget = unlimited_peak(case, spill) * share // 100
    training = Training(case)
    teraio.offload(training.model, memory_budget=budget, ssd=spill, compress=compress)
    stress(max_delay_us)
    try:
        yield training
    finally:
        stress(0)
        teraio.restore(training.model)


def train(case: Case, share: int, spill: str, compress: Any, max_delay_us: int = 0) -> Training:
    with offloaded(case, share, spill, compress, max_delay_us) as training:
        training.run()
        training.outcome.report = teraio.report(training.model)
    training.take_digests()
    return training


def report_of(training: Training) -> teraio.RunReport:
    report = training.outcome.report
    if report is None:
        raise RuntimeError("an offloaded run without a report")
    return report


def bytes_that_come_back(report: teraio.RunReport) -> int:
    """In an iteration under the plan, as storages of the model have them."""
    assert report.plan is not None and report.trace is not None
    storages = replayed(report.trace, report.plan.recomputations).storages
    moves = [move for move in report.plan.moves if move.needed_by is not None]
    return sum(storages[move.storage].nbytes for move in moves)


# ------------------------------------------------------------ training


@pytest.mark.parametrize(("case", "share"), CASES, ids=str)
def test_lossless_training_is_equal_keeps_the_budget_and_moves_fewer_bytes(
    case: Case, share: int, spill: str
) -> None:
    training = train(case, share, spill, "lossless", max_delay_us=500)
    assert_equal(training.outcome, plain(case))
    report = report_of(training)
    assert report.phase == "run"
    assert [step for step in report.steps if step.peak_bytes > report.budget_bytes] == []
    last = report.steps[-2:]  # on a busy machine one may have to bring back more than was planned
    assert 0 < min(step.read_bytes for step in last) < bytes_that_come_back(report)
    assert last[-1].drift_ops == 0  # the codec's own ops are nobody's


def test_lossy_training_stays_near_and_moves_far_fewer_bytes(
    spill: str, caplog: pytest.LogCaptureFixture
) -> None:
    compress = {
        "optimizer_state:exp_avg": "int8",
        "optimizer_state:exp_avg_sq": "ufp8",
        "optimizer_state:max_exp_avg_sq": "ufp8",  # of AdamW with other options
        "activation": "bf16",
    }
    case = Case("llama", steps=8)  # enough for what is lost under the plan to be in a loss
    training = train(case, 40, spill, compress)
    (told,) = [line for line in caplog.messages if line.startswith("compress names")]
    assert told == (
        "compress names optimizer_state:max_exp_avg_sq, and no storage of the training is such a "
        "state; there are optimizer_state:exp_avg, optimizer_state:exp_avg_sq."
    )
    report = report_of(training)
    assert report.steps[-1].read_bytes < 0.85 * bytes_that_come_back(report)
    losses = [float.fromhex(loss) for loss in training.outcome.losses]
    expected = [float.fromhex(loss) for loss in plain(case).losses]
    assert losses != expected
    assert losses == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("compress", ["lossless", ALL_BF16], ids=["lossless", "bf16"])
def test_plans_count_the_bytes_that_move_and_the_time_of_codecs(compress: Any, spill: str) -> None:
    training = train(LLAMA, 40, spill, compress)
    report = report_of(training)
    assert report.plan is not None and report.trace is not None
    assert report.hardware.tiers[0].encodes
    (encoding,) = [e for e in report.trace.encodings if e.dtype == "float32"]
    moved = report.plan.read_bytes
    assert moved == pytest.approx(encoding.share * bytes_that_come_back(report), rel=0.02)
    # Some storages leave or stay otherwise than planned.
    assert report.steps[-1].read_bytes == pytest.approx(moved, rel=0.1)
    use = report.plan.tiers[0]
    assert use.read_s >= moved / encoding.share / encoding.decode_bytes_per_s * 0.98


def test_a_checkpoint_of_a_lossless_run_is_equal_while_storages_are_away(spill: str) -> None:
    reference = Training(LLAMA)
    reference.run(3)
    expected = {name: value.clone() for name, value in reference.model.state_dict().items()}
    with offloaded(LLAMA, 40, spill, "lossless") as training:
        training.run(3)
        file = io.BytesIO()
        torch.save(training.model.state_dict(), file)
        training.run(2)
    training.take_digests()
    file.seek(0)
    saved = torch.load(file)
    assert all(torch.equal(saved[name], value) for name, value in expected.items())
    assert_equal(training.outcome, plain(LLAMA))


def test_training_goes_on_equally_after_an_exception_in_the_middle_of_a_step(spill: str) -> None:
    with offloaded(LLAMA, 40, spill, "lossless") as training:
        for moment in range(LLAMA.steps):
            if moment == 3:
                with pytest.raises(KeyboardInterrupt), interrupted(training.model):
                    training.model(input_ids=torch.ones(8, 64, dtype=torch.long))
                gc.collect()
            training.run(1)
    training.take_digests()
    assert_equal(training.outcome, plain(LLAMA))


@contextmanager
def interrupted(model: torch.nn.Module) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = model.get_submodule("model.layers.2").register_forward_hook(interrupt)
    try:
        yield
    finally:
        hook.remove()


# ------------------------------------------------------------ single storages


@contextmanager
def encoding(codec: str, spill: str) -> Iterator[None]:
    """A run in which every storage is sent away by ``codec``."""
    model = torch.nn.Linear(8, 8)
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=spill, compress={"parameter": codec})
    _C.encode_by_default(coder.NAMES.index(codec))
    try:
        yield
    finally:
        teraio.restore(model)


def there_and_back(tensor: torch.Tensor) -> torch.Tensor:
    """What comes back, and how many bytes were written and read on the way."""
    assert send_away(tensor) == 1
    return tensor.clone()


def moved_bytes() -> tuple[int, int]:
    stats = _C.end_iteration()
    return stats["written_bytes"], stats["read_bytes"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("codec", LOSSY)
def test_a_lossy_codec_gives_what_it_gives_by_itself(
    codec: str, dtype: torch.dtype, spill: str
) -> None:
    """So the bounds that tests/kernels check hold, and the same values give the same ones again.

    A piece is encoded by itself; its values are whole groups.
    """
    values = torch.randn(300_001).mul(3).to(dtype)
    expected = values.clone()
    if dtype == torch.float32 or codec != "bf16":
        buffer = torch.empty(values.nbytes + 4096, dtype=torch.uint8)
        unpack(pack([values], buffer, codecs=codec), buffer, [expected])
    moving = values.clone()
    with encoding(codec, spill):
        first = there_and_back(moving)
        moving.copy_(values)
        again = there_and_back(moving)
    assert torch.equal(first, again)
    assert torch.equal(first, expected)


def test_written_and_read_bytes_are_what_moved(spill: str) -> None:
    tensor = torch.randn(1 << 18)
    with encoding("int8", spill):
        moved_bytes()
        there_and_back(tensor)
        written, read = moved_bytes()
    assert written == read
    assert 0.25 * tensor.nbytes < written < 0.3 * tensor.nbytes


@pytest.mark.parametrize("codec", ["lossless", "int8"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randint(-100, 100, (50_000,)),
        lambda: torch.randn(50_000, dtype=torch.float64),
        lambda: torch.randn(50_000, dtype=torch.complex64),
    ],
    ids=["int64", "float64", "complex64"],
)
def test_what_no_codec_is_for_goes_as_it_is(
    make: Callable[[], torch.Tensor], codec: str, spill: str
) -> None:
    tensor = make()
    expected = tensor.clone()
    with encoding(codec, spill):
        moved_bytes()
        back = there_and_back(tensor)
        written, _ = moved_bytes()
    assert torch.equal(back, expected)
    assert written >= tensor.nbytes


def test_a_storage_seen_with_two_dtypes_goes_as_it_is(spill: str) -> None:
    with encoding("int8", spill):
        tensor = torch.randn(1 << 16)
        expected = tensor.clone()
        tensor.view(torch.int32).add_(0)
        assert torch.equal(there_and_back(tensor), expected)


def test_values_that_do_not_get_smaller_go_as_they_are(spill: str) -> None:
    # All 32 bits at random, so that exponents are as random as the rest.
    bits = torch.randint(-(2**31), 2**31 - 1, (1 << 18,), dtype=torch.int32)
    with encoding("lossless", spill):
        tensor = bits.clone().view(torch.float32).clone()
        moved_bytes()
        back = there_and_back(tensor)
        written, _ = moved_bytes()
    assert torch.equal(back.view(torch.int32), bits)
    assert written >= tensor.nbytes


def test_values_that_change_while_they_are_encoded_do_the_encoder_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An op may want a leaving storage back and write to it. Then its copy is thrown away, but an
    encoder that finds more than it made room for would write where others keep theirs."""
    values = torch.ones(1 << 14)
    buffer = torch.empty(2 * values.nbytes, dtype=torch.uint8)
    number = coder.NAMES.index("lossless")

    def pack_late(*args: Any, **kwargs: Any) -> Any:
        values.normal_()
        return pack(*args, **kwargs)

    monkeypatch.setattr(coder, "pack", pack_late)
    works = coder.Coder()
    encoded = works.encode(values, buffer, number)
    works.decode(values, buffer, number, encoded)
    assert torch.equal(values, torch.ones(1 << 14))


# ------------------------------------------------------------ memory, faults, ends


def test_encoding_takes_no_more_memory_than_is_set_aside(spill: str) -> None:
    """Measured where the engine counts: the same calls on a thread of the program."""
    piece = 128 << 10
    buffer = torch.empty(2 * piece, dtype=torch.uint8)
    most = encoded_path.workspace_nbytes("torch", torch.device("cpu"), piece, 4)
    values = [torch.randn(piece // d.itemsize).to(d) for d in (torch.float32, torch.bfloat16)]
    works = coder.Coder()
    with encoding("lossless", spill):
        for name in coder.NAMES[1:]:
            for part in values:
                gc.collect()
                _C.end_iteration()
                before = _C.totals()["used"]
                number = coder.NAMES.index(name)
                encoded = works.encode(part, buffer, number)
                if encoded:
                    works.decode(part, buffer, number, encoded)
                peak = _C.end_iteration()["peak_bytes"]
                assert peak - before <= most, name


def test_an_error_of_the_codec_is_a_spill_error_and_loses_nothing(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("this codec is broken")

    tensor = torch.randn(1 << 16)
    expected = tensor.clone()
    with encoding("lossless", spill):
        with monkeypatch.context() as patch:
            patch.setattr(coder, "pack", broken)
            with pytest.raises(teraio.SpillError, match="ValueError: this codec is broken"):
                send_away(tensor)
        assert torch.equal(tensor, expected)
        assert torch.equal(there_and_back(tensor), expected)


def test_out_of_memory_in_the_codec_sends_storages_as_they_are(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    tensor = torch.randn(1 << 16)
    expected = tensor.clone()
    with encoding("lossless", spill):
        monkeypatch.setattr(coder, "pack", full)
        moved_bytes()
        assert torch.equal(there_and_back(tensor), expected)
        assert moved_bytes() == (tensor.nbytes, tensor.nbytes)


def test_a_spill_file_truncated_under_us_is_an_error_that_names_it(spill: str) -> None:
    model = torch.nn.Linear(256, 256)
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=spill, compress="lossless")
    assert send_away(model.weight) == 1
    truncate_spill_files(spill)
    with pytest.raises(RuntimeError, match=re.escape(spill)):
        model.weight.sum()
    with suppress(teraio.SpillError):
        teraio.restore(model)


def test_bytes_that_changed_in_the_file_are_never_decoded(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders trust what they get: a place within a block comes from the bytes themselves."""
    model = torch.nn.Linear(256, 256)
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=spill, compress="lossless")
    assert send_away(model.weight) == 1
    for fd in open_spill_files(spill):
        nbytes = os.fstat(fd).st_size
        with open(f"/proc/self/fd/{fd}", "r+b", buffering=0) as file:
            file.write(b"\xa5" * nbytes)
    called = []
    monkeypatch.setattr(coder, "unpack", lambda *_: called.append(1))
    with pytest.raises(RuntimeError, match="holds other bytes than were written"):
        model.weight.sum()
    assert called == []
    with suppress(teraio.SpillError):
        teraio.restore(model)


def test_a_program_that_never_restores_ends_as_usual(spill: str) -> None:
    """With moves under way, whose threads wait for Python."""
    program = (
        "import sys, torch, teraio; from teraio.engine.testing import send_away;"
        "model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(8)));"
        "teraio.offload(model, memory_budget='6MiB', ssd=sys.argv[1], compress='lossless');"
        "opt = torch.optim.Adam(model.parameters());"
        "[(model(torch.ones(64, 512)).sum().backward(), opt.step(), opt.zero_grad())"
        " for _ in range(3)]; model(torch.ones(64, 512)); sys.exit(7)"
    )
    end = ended(program, spill)
    assert (end.returncode, end.stderr) == (7, "")


def test_a_process_forked_off_ends_as_usual(spill: str) -> None:
    end = forked(spill, "compress='lossless'")
    assert (end.returncode, end.stderr) == (0, "")
    assert sorted(end.stdout.split()) == ["5", "child"]


def test_a_budget_that_encoding_would_take_most_of_is_an_error_and_leaves_nothing(
    spill: str,
) -> None:
    model = torch.nn.Linear(256, 256)
    with pytest.raises(teraio.ConfigurationError, match=r"more than half of a budget of 2\.0 MiB"):
        teraio.offload(model, memory_budget="2MiB", ssd=spill, compress="lossless")
    assert not _C.active()
    assert open_spill_files(spill) == []


def test_models_of_one_process_share_it(spill: str) -> None:
    first, second, third = (torch.nn.Linear(8, 8) for _ in range(3))
    teraio.offload(first, memory_budget=NO_LIMIT, ssd=spill, compress="lossless")
    teraio.offload(second)
    with pytest.raises(teraio.ConfigurationError, match="another compress"):
        teraio.offload(third, compress={"activation": "bf16"})
    teraio.restore(first)
    teraio.restore(second)
