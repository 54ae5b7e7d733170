"""Bad input and faults end in a clear error, lose nothing, and leave nothing behind.

In: folders that won't do, broken files, exceptions and signals in the middle of a step. Out: typed
errors that name the path and the remedy; training that goes on with the right numbers.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import teraio
from teraio import api
from teraio.engine import testing
from teraio.runtime import planning
from teraio.runtime.revision import Revision
from tests.integration.training import (
    NO_LIMIT,
    Case,
    Training,
    digest,
    digests,
    make_batch,
    plain,
    unlimited_peak,
)

ROOT = Path(__file__).resolve().parents[2]
LLAMA = Case("llama")


def half(spill: str, case: Case = LLAMA) -> int:
    return unlimited_peak(case, spill) // 2


def open_spill_files(spill: str) -> list[int]:
    """Descriptors of this process on files below the spill folder, unlinked ones included."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith(spill):
            found.append(int(entry.name))
    return found


@contextmanager
def read_only_spill_files(spill: str) -> Iterator[None]:
    """Writes to them fail meanwhile."""
    kept = {fd: os.dup(fd) for fd in open_spill_files(spill)}
    assert kept
    for fd in kept:
        read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT)
        os.dup2(read_only, fd)
        os.close(read_only)
    try:
        yield
    finally:
        for fd, copy in kept.items():
            os.dup2(copy, fd)
            os.close(copy)


@contextmanager
def offloaded(training: Training, budget: int, spill: str) -> Iterator[Training]:
    teraio.offload(training.model, memory_budget=budget, ssd=[spill])
    try:
        yield training
    finally:
        teraio.restore(training.model)


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A mount for the time of a test; skips where this process may not mount."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs the right to mount file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# ------------------------------------------------------------ arguments and folders


def test_a_full_folder_is_used_to_its_last_part(tmp_path: Path) -> None:
    size, count = 8 << 20, 64
    options = ("-t", "tmpfs", "-o", f"size={count * size}", "tmpfs")
    with mounted(tmp_path / "small", *options) as folder:
        model = torch.nn.Linear(64, 64)
        teraio.offload(model, memory_budget="1GiB", ssd=[folder], allow_tmpfs=True)
        try:
            tensors = []
            with pytest.raises(teraio.SpillError, match="Free space there"):
                while True:
                    tensors.append(torch.ones(size // 4))
                    testing.send_away(tensors[-1])
            assert len(tensors) >= count
        finally:
            tensors.clear()
            teraio.restore(model)


def refused(error: type[Exception], match: str, **arguments: object) -> None:
    model = torch.nn.Linear(64, 64)
    with pytest.raises(error, match=match):
        teraio.offload(model, **arguments)  # type: ignore[arg-type]
    # Nothing is left over: the next call works.
    model(torch.ones(1, 64))


def test_a_missing_folder_is_named(spill: str) -> None:
    refused(teraio.SpillError, "nowhere", memory_budget=NO_LIMIT, ssd=[f"{spill}/nowhere"])


def test_a_file_where_a_folder_is_due_is_named(tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    refused(teraio.SpillError, "a_file", memory_budget=NO_LIMIT, ssd=[tmp_path / "a_file"])


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o500)
        refused(teraio.SpillError, "read_only", memory_budget=NO_LIMIT, ssd=[folder])
        return
    # Root may write to any folder but one on a read-only mount.
    with mounted(folder, "--bind", "-o", "ro", str(folder)):
        refused(teraio.SpillError, "read_only", memory_budget=NO_LIMIT, ssd=[folder])


def test_a_folder_in_memory_needs_consent(spill: str) -> None:
    refused(teraio.SpillError, "allow_tmpfs", memory_budget=NO_LIMIT, ssd=["/dev/shm"])


def test_a_folder_in_memory_works_with_consent(spill: str) -> None:
    budget = half(spill)
    training = Training(LLAMA)
    teraio.offload(training.model, memory_budget=budget, ssd=["/dev/shm"], allow_tmpfs=True)
    try:
        training.run(5)
    finally:
        teraio.restore(training.model)
    assert training.outcome.losses == plain(LLAMA).losses[:5]


def test_a_drive_that_is_too_small_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4)))
    options = ("-t", "tmpfs", "-o", "size=4m", "tmpfs")
    with (
        mounted(tmp_path / "small", *options) as folder,
        pytest.raises(teraio.SpillError, match="small"),
    ):
        teraio.offload(model, memory_budget=20 << 20, ssd=[folder], allow_tmpfs=True)


def test_what_the_run_has_reserved_is_room_for_its_plan(tmp_path: Path) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4)))
    whole = 256 << 20
    options = ("-t", "tmpfs", "-o", f"size={whole}", "tmpfs")
    with mounted(tmp_path / "small", *options) as folder:
        teraio.offload(model, memory_budget=30 << 20, ssd=[folder], allow_tmpfs=True)
        try:
            (tier,) = teraio.report(model).hardware.tiers
            assert tier.capacity_bytes == pytest.approx(whole, rel=0.01)
        finally:
            teraio.restore(model)


@pytest.mark.parametrize("budget", ["much", "-1GiB", 0, -5, "10 parsecs", 1.5, 1 << 70])
def test_a_budget_that_is_no_size_is_refused(budget: object, spill: str) -> None:
    refused(teraio.ConfigurationError, "memory_budget", memory_budget=budget, ssd=[spill])


def test_something_that_is_no_module_is_refused(spill: str) -> None:
    with pytest.raises(teraio.ConfigurationError, match="Module"):
        teraio.offload([1, 2], ssd=[spill])  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"ssd": 5}, "ssd=5 names no folders"),
        ({"ssd": ""}, "ssd is empty"),
        ({"ssd": []}, "ssd is empty"),
        ({"ssd": "a\0b"}, r"ssd='a\\x00b' can't be a folder: (\w+: )?embedded null"),
        ({"ssd": "~nobody-at-all/x"}, "ssd='~nobody-at-all/x' can't be a folder: Could not"),
        ({"ssd": ["x" * 5000]}, r"ssd='x+\.\.\.x+' can't be a folder: File name too long; pass"),
        ({"weights": 5}, "weights=5 is no path; pass a safetensors file"),
        ({"weights": b"x"}, "weights=b'x' is no path"),
        ({"weights": ""}, "weights='' is no path"),
        ({"weights": "x" * 5000}, "is neither a file nor a folder"),
        ({"profile_iterations": "2"}, "profile_iterations='2'"),
        ({"profile_iterations": 2.5}, "profile_iterations=2.5"),
        ({"recompute": "yes"}, "recompute='yes'"),
        ({"require_gds": 1}, "require_gds=1"),
    ],
)
def test_an_argument_of_another_type_is_named(arguments: dict[str, object], match: str) -> None:
    refused(teraio.ConfigurationError, match, memory_budget=NO_LIMIT, **arguments)


def test_a_folder_named_twice_is_refused(spill: str) -> None:
    same = f"{spill}/../{Path(spill).name}"
    refused(teraio.ConfigurationError, "more than once", memory_budget=NO_LIMIT, ssd=[spill, same])


def test_a_home_folder_is_found(spill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(spill).parent))
    monkeypatch.setenv("TERAIO_SSD", f"~/{Path(spill).name}:")
    model = teraio.offload(torch.nn.Linear(64, 64), memory_budget=NO_LIMIT)
    try:
        (folder,) = teraio.report(model).hardware.tiers[0].folders
        assert folder.folder == spill
    finally:
        teraio.restore(model)


def test_a_default_folder_that_can_not_be_made_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TERAIO_SSD", raising=False)
    (tmp_path / "cache").touch()  # root may write to any folder, but not below a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refused(
        teraio.SpillError,
        rf"{tmp_path}/cache/teraio can't be made: .*; pass ssd=, or set \$TERAIO_SSD",
        memory_budget=NO_LIMIT,
    )


def test_an_integer_of_numpy_is_a_number_of_iterations(spill: str) -> None:
    model = teraio.offload(
        torch.nn.Linear(64, 64),
        memory_budget=NO_LIMIT,
        ssd=spill,
        profile_iterations=np.int64(3),  # type: ignore[arg-type]
    )
    teraio.restore(model)


def test_folders_on_one_drive_share_its_speed_and_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / name for name in ("one", "two", "three", "four")]
    for folder in folders:
        folder.mkdir()
    model = teraio.offload(torch.nn.Linear(64, 64), memory_budget=NO_LIMIT, ssd=folders)
    try:
        (tier,) = teraio.report(model).hardware.tiers
        assert tier.capacity_bytes < 1.1 * shutil.disk_usage(tmp_path).free
        assert "share its speed and room" in caplog.text
    finally:
        teraio.restore(model)


def test_a_budget_above_all_memory_is_warned_of(
    spill: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = teraio.offload(torch.nn.Linear(64, 64), memory_budget="110%", ssd=spill)
    teraio.restore(model)
    assert "of memory in all" in caplog.text


def test_what_is_no_tensor_is_not_held(spill: str) -> None:
    with (
        pytest.raises(teraio.ConfigurationError, match="takes tensors, not int"),
        teraio.resident(3),  # type: ignore[arg-type]
    ):
        pass


def test_offloading_a_model_twice_is_refused(spill: str) -> None:
    with (
        offloaded(Training(LLAMA), NO_LIMIT, spill) as training,
        pytest.raises(teraio.ConfigurationError, match="restore"),
    ):
        teraio.offload(training.model, memory_budget=NO_LIMIT, ssd=[spill])


@pytest.mark.parametrize("function", [teraio.report, teraio.restore])
def test_a_model_that_is_not_offloaded_is_named_as_such(
    function: Callable[[torch.nn.Module], object],
) -> None:
    with pytest.raises(teraio.ConfigurationError, match="offload"):
        function(torch.nn.Linear(2, 2))


def test_a_budget_is_too_small_for_iterations_that_never_end(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(1024, 1024)
    weights = digest(model.weight)

    def train() -> None:
        teraio.offload(model, memory_budget=5 << 20, ssd=[spill])
        for _ in range(3):
            model(torch.ones(8, 1024)).sum().backward()

    # An op in place allocates nothing, so it can only fail with the text of the error.
    monkeypatch.setattr(planning, "_LOOK_ON_S", 0.0)
    with pytest.raises(RuntimeError, match=r"memory_budget=\d+") as raised:
        train()
    assert raised.type is teraio.BudgetError or "teraio.BudgetError: " in str(raised.value)
    teraio.restore(model)
    assert digest(model.weight) == weights


def test_the_error_of_a_small_budget_names_one_that_works(spill: str) -> None:
    def named_by_error(budget: int) -> int | None:
        training = Training(LLAMA)
        try:
            with offloaded(training, budget, spill):
                training.run(4)
        except teraio.BudgetError as error:
            assert len(training.outcome.losses) == 0  # the iteration has been made, and not counted
            return int(re.findall(r"memory_budget=(\d+)", str(error))[0])
        assert training.outcome.losses == plain(LLAMA).losses[:4]
        return None

    named = named_by_error(1 << 20)
    assert named is not None
    gc.collect()
    assert named_by_error(named // 2) == pytest.approx(named, rel=0.05)
    gc.collect()
    assert named_by_error(named) is None


def test_numbers_that_become_tensors_don_t_end_an_iteration_that_is_looked_on(spill: str) -> None:
    torch.manual_seed(0)
    steps = 4

    def named_by_error(budget: int) -> int | None:
        model = torch.nn.Linear(256, 256)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        teraio.offload(model, memory_budget=budget, ssd=[spill])
        kept: list[torch.Tensor] = []
        try:
            for _ in range(steps):
                model(torch.ones(8, 256)).sum().backward()
                kept.clear()
                with torch.no_grad():  # results that no op uses can't leave
                    kept.extend(model.weight * factor for factor in range(8))
                optimizer.step()
                optimizer.zero_grad()
        except teraio.BudgetError as error:
            assert len(kept) == 8
            return int(re.findall(r"memory_budget=(\d+)", str(error))[0])
        finally:
            teraio.restore(model)
        return None

    named = named_by_error(1 << 20)
    assert named is not None
    assert named_by_error(named) is None


def test_a_budget_that_not_even_one_parameter_fits_is_refused_at_once(spill: str) -> None:
    model = torch.nn.Linear(1024, 1024)
    with pytest.raises(teraio.BudgetError, match=r"^weight takes 4.0 MiB, .*=4194304:"):
        teraio.offload(model, memory_budget=2 << 20, ssd=[spill])
    model(torch.ones(1, 1024))


# ------------------------------------------------------------ exceptions in the middle of a step


class Trouble:
    """Raises ``make_trouble`` once, in the middle of the forward of a given step."""

    def __init__(self, training: Training, at_step: int, make_trouble: Callable[[], None]) -> None:
        self.training = training
        layer = training.model.get_submodule("model.layers.2")
        self.hook = layer.register_forward_hook(self._trouble)
        self.at_step = at_step
        self.make_trouble = make_trouble

    def _trouble(self, *_: object) -> None:
        if self.training.done == self.at_step:
            self.hook.remove()
            self.make_trouble()


def raise_value_error() -> None:
    raise ValueError("in the middle")


def interrupt() -> None:
    # A process that a shell started in the background ignores Ctrl-C; this one must not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def run_with_trouble(training: Training, at_step: int, make_trouble: Callable[[], None]) -> None:
    Trouble(training, at_step, make_trouble)
    with pytest.raises((ValueError, KeyboardInterrupt)):
        training.run()
    training.optimizer.zero_grad()
    training.run(10 - training.done)


@pytest.mark.parametrize("make_trouble", [raise_value_error, interrupt])
@pytest.mark.parametrize("at_step", [1, 4], ids=["profiling", "planned"])
def test_training_goes_on_after_an_exception_in_the_middle_of_a_forward(
    at_step: int, make_trouble: Callable[[], None], spill: str
) -> None:
    theirs = Training(LLAMA)
    run_with_trouble(theirs, at_step, make_trouble)
    budget = half(spill)
    with offloaded(Training(LLAMA), budget, spill) as ours:
        run_with_trouble(ours, at_step, make_trouble)
        report = teraio.report(ours.model)
    assert ours.outcome.losses == theirs.outcome.losses
    assert digests(ours.model, ours.optimizer) == digests(theirs.model, theirs.optimizer)
    assert max(step.peak_bytes for step in report.steps) <= budget


def test_training_goes_on_after_an_exception_in_the_middle_of_a_backward(spill: str) -> None:
    def run(training: Training) -> None:
        training.run(4)
        parameter = next(iter(training.model.get_submodule("model.layers.1").parameters()))
        hook = parameter.register_hook(lambda gradient: raise_value_error())
        with pytest.raises(ValueError, match="in the middle"):
            training.step()
        hook.remove()
        training.optimizer.zero_grad()
        training.run(4)

    theirs = Training(LLAMA)
    run(theirs)
    with offloaded(Training(LLAMA), half(spill), spill) as ours:
        run(ours)
    assert ours.outcome.losses == theirs.outcome.losses
    assert digests(ours.model, ours.optimizer) == digests(theirs.model, theirs.optimizer)


@pytest.mark.parametrize("make_trouble", [raise_value_error, interrupt])
@pytest.mark.parametrize("at_step", [1, 4], ids=["profiling", "planned"])
def test_training_goes_on_after_an_exception_in_the_middle_of_the_optimizers_step(
    at_step: int, make_trouble: Callable[[], None], spill: str
) -> None:
    def run(training: Training) -> None:
        training.run(at_step)
        group = training.optimizer.param_groups[0]
        parameters = group["params"]
        group["params"] = TroubledList(parameters, make_trouble)
        with pytest.raises((ValueError, KeyboardInterrupt)):
            training.step()
        group["params"] = parameters
        training.optimizer.zero_grad()
        training.run(6)

    theirs = Training(LLAMA)
    run(theirs)
    with offloaded(Training(LLAMA), half(spill), spill) as ours:
        run(ours)
        report = teraio.report(ours.model)
    assert ours.outcome.losses == theirs.outcome.losses
    assert digests(ours.model, ours.optimizer) == digests(theirs.model, theirs.optimizer)
    assert report.steps[-1].drift_ops == 0


class TroubledList(list[torch.Tensor]):
    """Parameters that an optimizer doesn't get to the end of."""

    def __init__(self, items: list[torch.Tensor], make_trouble: Callable[[], None]) -> None:
        super().__init__(items)
        self.make_trouble = make_trouble

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from list.__getitem__(self, slice(0, 3))
        self.make_trouble()


# ------------------------------------------------------------ faults of files


def test_a_failed_write_is_an_error_and_loses_nothing(spill: str, tmp_path: Path) -> None:
    """The spill files turn read-only in mid-run, then they can be written again."""
    theirs = Training(LLAMA)
    theirs.run(4)
    with offloaded(Training(LLAMA), unlimited_peak(LLAMA, spill) * 35 // 100, spill) as ours:
        ours.run(4)
        with (
            read_only_spill_files(spill),
            pytest.raises(teraio.SpillError, match=r"(?i)bad file descriptor|errno 9"),
        ):
            ours.forward_and_backward()
        ours.optimizer.zero_grad()
        theirs.forward_and_backward()
        theirs.optimizer.zero_grad()
        ours.run(3)
        theirs.run(3)
    assert ours.outcome.losses == theirs.outcome.losses
    assert digests(ours.model, ours.optimizer) == digests(theirs.model, theirs.optimizer)


def test_a_drive_that_is_full_in_mid_run_is_an_error_and_loses_nothing(
    spill: str, tmp_path: Path
) -> None:
    """Another program takes all that the spill files have not reserved; then a batch is larger."""

    def larger_batch(training: Training) -> None:
        # Twice, as copies of what is in memory may have doubled what was reserved.
        batch = make_batch(LLAMA.model, 48, torch.Generator().manual_seed(5))
        losses = [training.model(**batch).loss for _ in range(2)]
        torch.stack(losses).sum().backward()

    theirs = Training(LLAMA)
    theirs.run(4)
    budget = half(spill)
    options = ("-t", "tmpfs", "-o", "size=640m", "tmpfs")
    with mounted(tmp_path / "drive", *options) as drive:
        ours = Training(LLAMA)
        teraio.offload(ours.model, memory_budget=budget, ssd=drive, allow_tmpfs=True)
        ours.run(4)
        other = drive / "other"
        other.write_bytes(bytes(shutil.disk_usage(drive).free))
        with pytest.raises((teraio.SpillError, RuntimeError), match=r"(?i)drive: no space left"):
            larger_batch(ours)
        other.unlink()
        for training in (ours, theirs):
            training.optimizer.zero_grad()
            larger_batch(training)
            training.optimizer.zero_grad()
            training.run(3)
        teraio.restore(ours.model)
    assert ours.outcome.losses == theirs.outcome.losses
    assert digests(ours.model, ours.optimizer) == digests(theirs.model, theirs.optimizer)


def truncate_spill_files(spill: str) -> None:
    files = open_spill_files(spill)
    assert files
    for fd in files:
        os.truncate(f"/proc/self/fd/{fd}", 0)


def test_a_spill_file_truncated_under_us_is_an_error_that_names_it(spill: str) -> None:
    model = torch.nn.Linear(256, 256)
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=[spill])
    assert testing.send_away(model.weight) == 1
    truncate_spill_files(spill)
    with pytest.raises(RuntimeError, match=re.escape(spill)):
        model.weight.sum()
    # What was in the file is gone, so closing may say so; it must not crash or hang.
    with suppress(teraio.SpillError):
        teraio.restore(model)


def test_a_truncated_spill_file_that_grew_again_never_gives_wrong_data(spill: str) -> None:
    """Later writes make the file long enough again; what lies before them reads as zeros."""
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(3)))
    teraio.offload(model, memory_budget=NO_LIMIT, ssd=[spill])
    first, second, third = (layer.weight for layer in model)  # type: ignore[union-attr]
    assert testing.send_away(first, second) == 2
    truncate_spill_files(spill)
    assert testing.send_away(third) == 1
    with pytest.raises(RuntimeError, match=re.escape(spill)):
        first.sum()
    with suppress(teraio.SpillError):
        teraio.restore(model)


# ------------------------------------------------------------ lives of models and processes


def test_a_deleted_model_closes_what_it_held(spill: str) -> None:
    before = open_spill_files(spill)
    training = Training(LLAMA)
    teraio.offload(training.model, memory_budget=half(spill), ssd=[spill])
    training.run(4)
    assert len(open_spill_files(spill)) > len(before)
    del training
    gc.collect()
    assert open_spill_files(spill) == before
    with offloaded(Training(LLAMA), NO_LIMIT, spill) as again:
        again.run(2)
    assert again.outcome.losses == plain(LLAMA).losses[:2]


def test_restore_closes_the_spill_files(spill: str) -> None:
    before = open_spill_files(spill)
    with offloaded(Training(LLAMA), half(spill), spill) as training:
        training.run(3)
    assert open_spill_files(spill) == before
    assert list(Path(spill).rglob("*")) == []


def test_spill_files_are_private_and_have_no_name(spill: str) -> None:
    with offloaded(Training(LLAMA), half(spill), spill) as training:
        training.run(4)
        assert [path for path in Path(spill).rglob("*") if path.is_file()] == []
        modes = {os.fstat(fd).st_mode & 0o777 for fd in open_spill_files(spill)}
        assert modes == {0o600}


KILLED = """
import sys
import teraio
from teraio.engine import testing
from tests.integration.training import Case, Training
training = Training(Case("llama"))
teraio.offload(training.model, memory_budget=int(sys.argv[1]), ssd=[sys.argv[2]])
while True:
    training.step()
    print(teraio.report(training.model).phase, flush=True)
"""


def test_kill_9_leaves_no_spill_file(spill: str, tmp_path: Path) -> None:
    folder = Path(spill) / "killed"
    folder.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(half(spill)), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if line.strip() == "run":
                break
        else:
            pytest.fail("the run never got to its plan")
        time.sleep(0.5)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    shutil.rmtree(folder)


ENDS = """
import sys
import teraio
from teraio.engine import testing
from tests.integration.training import Case, Training
training = Training(Case("llama"))
teraio.offload(training.model, memory_budget=int(sys.argv[1]), ssd=[sys.argv[2]])
training.run(4)
print("done", flush=True)
"""


def test_a_process_that_ends_without_restore_ends_cleanly(spill: str) -> None:
    folder = Path(spill) / "ended"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(half(spill)), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr[-2000:]
    assert "Error" not in done.stderr
    assert list(folder.rglob("*")) == []
    folder.rmdir()


class Numbers(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Batches that worker processes make with ops of torch."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        batch = make_batch("llama", 8, torch.Generator().manual_seed(index))
        return {name: value + 0 for name, value in batch.items()}


def train_with_workers(training: Training, workers: int) -> list[float]:
    loader = torch.utils.data.DataLoader(
        Numbers(), batch_size=None, num_workers=workers, timeout=60 if workers else 0
    )
    losses = []
    for batch in loader:
        loss = training.model(**batch).loss
        loss.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_forked_data_workers_work_and_their_batches_train_equally(spill: str) -> None:
    theirs = train_with_workers(Training(LLAMA), 0)
    with offloaded(Training(LLAMA), half(spill), spill) as ours:
        first = train_with_workers(ours, 2)
        assert first == theirs
        # Forked once more, now that a plan runs and storages are away.
        train_with_workers(ours, 2)


def rows_from_a_worker(remedy: str, spill: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A dataset that ops made and that would leave memory, and what a worker gives of it."""

    def made() -> torch.Tensor:
        return torch.arange(64 * 1024.0).view(64, 1024) / 3

    data = made()
    model = teraio.offload(torch.nn.Linear(64, 64), memory_budget=NO_LIMIT, ssd=spill)
    try:
        if remedy != "made before":
            data = made()
        if remedy == "shared":
            data.share_memory_()
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(data),
            batch_size=16,
            num_workers=1,
            multiprocessing_context="spawn" if remedy == "spawn" else "fork",
            timeout=60,
        )
        with teraio.resident(data) if remedy == "resident" else nullcontext():
            if testing.state(data) != "foreign":
                testing.send_away(data)
            return data, torch.cat([rows for (rows,) in loader])
    finally:
        teraio.restore(model)


@pytest.mark.parametrize("remedy", ["made before", "shared", "resident", "spawn"])
def test_data_workers_read_a_dataset_that_cannot_leave_or_is_handed_over(
    remedy: str, spill: str
) -> None:
    assert torch.equal(*rows_from_a_worker(remedy, spill))


def test_a_forked_data_worker_says_that_its_dataset_is_on_ssd(spill: str) -> None:
    with pytest.raises(RuntimeError, match=r"is on SSD.*teraio\.resident before the fork"):
        rows_from_a_worker("none", spill)


def test_a_second_model_shares_the_budget(spill: str) -> None:
    cases = (LLAMA, Case("gpt2"))
    budget = sum(unlimited_peak(case, spill) for case in cases) // 2

    def alternate(one: Training, other: Training) -> None:
        for _ in range(8):
            one.step()
            other.step()

    theirs = Training(cases[0]), Training(cases[1])
    alternate(*theirs)
    ours = Training(cases[0]), Training(cases[1])
    for training in ours:
        teraio.offload(training.model, memory_budget=budget, ssd=[spill])
    try:
        alternate(*ours)
        steps = [step for training in ours for step in teraio.report(training.model).steps]
    finally:
        for training in ours:
            teraio.restore(training.model)
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.outcome.losses == reference.outcome.losses
        assert digests(mine.model, mine.optimizer) == digests(reference.model, reference.optimizer)
    assert max(step.peak_bytes for step in steps) <= budget


@pytest.mark.parametrize(
    "other",
    [
        {"memory_budget": "1GiB"},
        {"ssd": "elsewhere"},
        {"profile_iterations": 9},
        {"require_gds": True},
        {"compress": "lossless"},
        {"recompute": False},
    ],
)
def test_a_second_model_shares_all_settings(spill: str, other: dict[str, object]) -> None:
    first = teraio.offload(torch.nn.Linear(64, 64), memory_budget="64MiB", ssd=spill)
    (name,) = other
    try:
        with pytest.raises(teraio.ConfigurationError, match=f"another {name}, and models of one"):
            teraio.offload(torch.nn.Linear(64, 64), **other)  # type: ignore[arg-type]
        second = torch.nn.Linear(64, 64)
        teraio.offload(second, memory_budget=64 << 20, ssd=[Path(spill)], profile_iterations=2)
        teraio.restore(second)
    finally:
        teraio.restore(first)


def test_other_threads_read_the_right_values_while_training_goes_on(spill: str) -> None:
    case = Case("llama", features=frozenset({"frozen"}))
    reference = Training(case)
    frozen = {
        name: digest(parameter)
        for name, parameter in reference.model.named_parameters()
        if not parameter.requires_grad
    }
    wrong: list[str] = []
    stop = threading.Event()

    def read(model: torch.nn.Module) -> None:
        while not stop.is_set():
            for name, parameter in model.named_parameters():
                if name in frozen and digest(parameter.detach().clone()) != frozen[name]:
                    wrong.append(name)

    with offloaded(Training(case), half(spill, case), spill) as ours:
        reader = threading.Thread(target=read, args=(ours.model,))
        reader.start()
        try:
            ours.run(6)
        finally:
            stop.set()
            reader.join(timeout=60)
        assert not reader.is_alive()
    assert wrong == []
    assert ours.outcome.losses == plain(case).losses[:6]


def test_an_iteration_can_be_marked_by_hand(spill: str) -> None:
    budget = half(spill)
    with offloaded(Training(LLAMA), budget, spill) as training:
        for _ in range(5):
            with teraio.iteration(training.model):
                training.step()
        report = teraio.report(training.model)
    assert len(report.steps) == 5
    assert training.outcome.losses == plain(LLAMA).losses[:5]


def test_a_further_model_that_does_not_fit_leaves_no_names_behind(spill: str) -> None:
    first, second = torch.nn.Linear(64, 64), torch.nn.Linear(1024, 1024)
    settings = {"memory_budget": 1 << 20, "ssd": spill}
    teraio.offload(first, **settings)
    with pytest.raises(teraio.BudgetError):
        teraio.offload(second, **settings)  # 4 MiB
    assert api._runtime is not None
    assert api._runtime.knows_module(first)
    assert not api._runtime.knows_module(second)
    teraio.restore(first)


def test_a_plan_that_is_refused_changes_nothing_of_what_the_present_one_counts_on(
    spill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.nn.ParameterList(torch.ones(1 << 18) for _ in range(12))  # 1 MiB each

    def step() -> None:
        with teraio.iteration(weights), torch.no_grad():
            for weight in weights:
                weight.add_(1)

    teraio.offload(weights, memory_budget=6 << 20, ssd=spill)
    for _ in range(2):
        step()
    planned = teraio.report(weights)
    assert planned.plan is not None and planned.plan.moves
    refused = []

    def refuse(*_: object) -> None:
        refused.append(True)
        raise teraio.BudgetError("no plan")

    monkeypatch.setattr(Revision, "other_speed", lambda *_: True)
    monkeypatch.setattr(planning, "share_of_speed", lambda *_: 0.5)
    monkeypatch.setattr(planning, "make_plan", refuse)
    step()
    report = teraio.report(weights)
    assert refused and report.plan is planned.plan
    assert report.hardware == planned.hardware
    teraio.restore(weights)
