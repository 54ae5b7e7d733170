"""``teraio profile`` and ``teraio.profile``: programs that know nothing of teraio, recorded."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import teraio
from teraio.errors import ConfigurationError
from teraio.files import load
from teraio.records import Trace

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(width, 4 * width)
        self.second = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))

assert __name__ == "__main__"
torch.manual_seed(0)
model = Model(int(sys.argv[1]))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(int(sys.argv[2])):
    x = torch.randn(64, int(sys.argv[1]))
    loss = (model(x) - x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(step, loss.item().hex(), flush=True)
print("done")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path / "train.py"


def tool(*arguments: object, cwd: Path, spill: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "teraio", *map(str, arguments)],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "TERAIO_SSD": spill, "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def losses(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[:1].isdigit()]


def plain(script: Path, *arguments: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env={"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return losses(done.stdout)


def test_a_script_is_recorded_as_it_is_and_ends_there(script: Path, spill: str) -> None:
    done = tool("profile", script, 256, 100, cwd=script.parent, spill=spill)
    assert done.returncode == 0, done.stderr
    assert losses(done.stdout) == plain(script, 256, 3)[: len(losses(done.stdout))]
    assert len(losses(done.stdout)) == 2  # the third step ends it before its print
    trace = load(script.parent / "train.trace", Trace)
    by_name = {storage.name: storage for storage in trace.storages}
    weight = by_name["first.weight"]
    assert (weight.kind, weight.nbytes) == ("parameter", 4 * 256 * 256 * 4)
    assert by_name["second.weight:exp_avg"].kind == "optimizer_state"
    assert by_name["second.weight:grad"].kind == "gradient"
    assert {op.phase for op in trace.ops} >= {"forward", "backward", "optimizer"}
    assert {op.module for op in trace.ops} >= {"first", "second", "Model"}
    assert "peak memory" in done.stdout


def test_a_model_larger_than_the_budget_is_recorded_within_it(script: Path, spill: str) -> None:
    output = script.parent / "small.trace"
    arguments = ("profile", "-o", output, "--budget", "20MiB", "--to-end", script, 512, 4)
    done = tool(*arguments, cwd=script.parent, spill=spill)
    assert done.returncode == 0, done.stderr
    assert losses(done.stdout) == plain(script, 512, 4)
    assert "done" in done.stdout
    assert "were kept in memory" in done.stdout
    kept = done.stdout.partition("meanwhile ")[2].split()[0]
    assert float(kept) <= 20.0
    assert sum(storage.nbytes for storage in load(output, Trace).storages) > 20 << 20


@pytest.mark.parametrize(("steps", "recorded"), [(2, False), (4, True)])
def test_ctrl_c_says_what_there_is(steps: int, recorded: bool, script: Path, spill: str) -> None:
    # Whoever runs tests in the background has that signal ignored, in what they start as well.
    script.write_text(
        SCRIPT + "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    done = tool("profile", "--to-end", script, 64, steps, cwd=script.parent, spill=spill)
    assert done.returncode == 130, done.stderr
    told = "interrupted after 2 of 3 iterations, no trace"
    assert (told in done.stderr) is not recorded
    assert (script.parent / "train.trace").exists() is recorded
    assert "Traceback" not in done.stderr


def test_a_module_is_recorded(script: Path, spill: str) -> None:
    (script.parent / "package").mkdir()
    script.rename(script.parent / "package" / "train.py")
    done = tool("profile", "-m", "package.train", 256, 9, cwd=script.parent, spill=spill)
    assert done.returncode == 0, done.stderr
    assert load(script.parent / "train.trace", Trace).ops


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("no.such.module", "No module named 'no'"),
        ("package", "'package' is a package and cannot be directly executed"),
    ],
)
def test_a_module_that_cannot_run_is_an_error_in_one_sentence(
    module: str, reason: str, script: Path, spill: str
) -> None:
    (script.parent / "package").mkdir()
    (script.parent / "package" / "__init__.py").touch()
    done = tool("profile", "-m", module, cwd=script.parent, spill=spill)
    assert done.returncode == 2
    assert f"teraio: -m {module} can't be run: " in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_that_is_no_python_shows_where(script: Path, spill: str) -> None:
    script.write_text("import torch\nfor\n")
    done = tool("profile", script, cwd=script.parent, spill=spill)
    assert done.returncode == 1
    assert "line 2" in done.stderr and "SyntaxError" in done.stderr
    assert "runpy" not in done.stderr


def test_a_script_that_fails_shows_its_own_traceback_and_code(script: Path, spill: str) -> None:
    done = tool("profile", script, "wide", cwd=script.parent, spill=spill)
    assert done.returncode == 1
    assert "ValueError: invalid literal for int()" in done.stderr
    assert "runpy" not in done.stderr
    assert "there is no trace" in done.stderr
    assert not (script.parent / "train.trace").exists()


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ("import sys; sys.exit(3)", 3, "the script failed after 0 iterations"),
        ("print('nothing to train')", 1, "ended without an iteration"),
        (SCRIPT.replace("int(sys.argv[2])", "2").replace("int(sys.argv[1])", "64"), 1, "2 of 3"),
    ],
)
def test_without_a_trace_the_reason_is_told(
    body: str, code: int, reason: str, script: Path, spill: str
) -> None:
    script.write_text(body)
    done = tool("profile", script, cwd=script.parent, spill=spill)
    assert done.returncode == code
    assert reason in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(3)", 3), ("raise ValueError", 1)], ids=["exit", "error"]
)
def test_a_process_that_the_script_forks_off_ends_as_it_says(
    end: str, code: int, script: Path, spill: str
) -> None:
    forking = (
        "    import os\n"
        "    child = os.fork() if step == 1 else 1\n"
        f"    if child == 0: {end}\n"
        "    if step == 1: print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
    )
    script.write_text(SCRIPT.replace("    x = ", forking + "    x = "))
    given = tool("profile", "--to-end", script, 64, 5, cwd=script.parent, spill=spill)
    assert given.returncode == 0, given.stderr
    lines = given.stdout.splitlines()
    assert lines[1:3] == [str(code), lines[2]] and lines[2].startswith("1 ")
    assert "no trace" not in given.stderr
    assert isinstance(load(script.with_suffix(".trace"), Trace), Trace)


def test_options_behind_the_script_are_said_to_be_there(script: Path, spill: str) -> None:
    done = tool(
        "profile", script, 256, 1, "--budget", "4MiB", "-o", "x", cwd=script.parent, spill=spill
    )
    assert done.returncode == 1
    assert "--budget, -o came after the script" in done.stderr
    done = tool("profile", script, 256, 1, cwd=script.parent, spill=spill)
    assert "came after" not in done.stderr


def test_a_budget_that_is_too_small_is_told_as_the_option(script: Path, spill: str) -> None:
    done = tool("profile", "--budget", "1500KiB", script, 256, 5, cwd=script.parent, spill=spill)
    assert done.returncode == 2
    assert "Pass --budget=" in done.stderr
    assert "memory_budget" not in done.stderr


def test_only_whole_lines_of_the_profile_go_to_a_terminal_that_the_script_writes_to(
    script: Path, spill: str
) -> None:
    """The script's own lines go where they would without it."""
    text = script.read_text().replace(
        "\noptimizer =",
        "\nimport teraio; teraio.offload(model, memory_budget='20MiB')\noptimizer =",
    )
    script.write_text(text)
    terminal, stderr = os.openpty()
    with (script.parent / "out").open("w") as out:
        subprocess.run(
            [sys.executable, script, "512", "4"],
            cwd=script.parent,
            env={"PYTHONPATH": f"{ROOT}:{script.parent}", "TERAIO_SSD": spill, "PATH": ""},
            stdout=out,
            stderr=stderr,
            check=True,
        )
    told = os.read(terminal, 10_000).decode()
    os.close(terminal)
    os.close(stderr)
    lines = (script.parent / "out").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3", "done"]
    first, *others = told.split("\r\n")
    assert first == "teraio: profiling the first 2 iterations"
    assert {line.rstrip("0123456789, ops") for line in others} <= {"", "teraio: planning for"}


def test_a_script_that_offloads_by_itself_is_recorded(script: Path, spill: str) -> None:
    text = SCRIPT.replace(
        "optimizer =", "import teraio; teraio.offload(model, memory_budget='1GiB')\noptimizer ="
    )
    script.write_text(text)
    done = tool("profile", script, 256, 9, cwd=script.parent, spill=spill)
    assert done.returncode == 0, done.stderr
    assert load(script.parent / "train.trace", Trace).ops


# ---------------------------------------------------------------- teraio.profile


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_block_of_code_is_recorded(spill: str) -> None:
    with teraio.profile(ssd=spill) as run:
        model = nn.Sequential(nn.Linear(128, 256), nn.Linear(256, 128))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            assert run.trace is None
            step_of(model, optimizer, torch.randn(8, 128))
    trace = run.trace
    assert trace is not None
    assert {s.name for s in trace.storages} >= {"0.weight", "1.weight"}
    assert all(step.read_bytes == step.written_bytes == 0 for step in run.report().steps)


def test_what_was_recorded_is_kept_while_the_block_goes_on(spill: str) -> None:
    with teraio.profile(ssd=spill, iterations=2) as run:
        model = nn.Sequential(nn.Linear(128, 256), nn.Linear(256, 128))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        traces = []
        for _ in range(10):
            step_of(model, optimizer, torch.randn(8, 128))
            traces.append(run.trace)
    assert traces[1] is not None
    assert all(trace is traces[1] for trace in traces[2:])
    assert [step.phase for step in run.report().steps] == ["profile"] * 2 + ["run"] * 8


def test_parts_that_are_called_by_themselves_belong_to_the_whole_model(spill: str) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(128, 128)
            self.decoder = nn.Linear(128, 128)

    with teraio.profile(ssd=spill) as run:
        pair = Pair()
        optimizer = torch.optim.SGD(pair.parameters(), lr=0.1)
        for _ in range(3):
            pair.decoder(pair.encoder(torch.randn(8, 128))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert run.trace is not None
    names = {storage.name for storage in run.trace.storages}
    assert names >= {"encoder.weight", "decoder.weight"}


def test_lazy_modules_are_recorded_once_a_call_gave_them_their_shape(spill: str) -> None:
    with teraio.profile(ssd=spill) as run:
        model = nn.Sequential(nn.LazyLinear(256), nn.LazyLinear(128))
        model(torch.randn(8, 128))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            step_of(model, optimizer, torch.randn(8, 128))
    assert run.trace is not None
    assert {storage.name for storage in run.trace.storages} >= {"0.weight", "1.weight"}


def test_a_model_that_is_tried_and_dropped_leaves_the_next_one_to_be_recorded(spill: str) -> None:
    with teraio.profile(ssd=spill) as run:
        nn.Linear(128, 256)(torch.randn(8, 128))
        gc.collect()
        model = nn.Linear(128, 128)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            step_of(model, optimizer, torch.randn(8, 128))
    assert run.trace is not None
    assert "weight" in {storage.name.rpartition(".")[-1] for storage in run.trace.storages}


def test_a_model_that_a_watched_program_restores_is_as_before(spill: str) -> None:
    with teraio.profile(ssd=spill, memory_budget="400KiB") as run:
        layers = nn.Sequential(*(nn.Linear(128, 128) for _ in range(8)))  # of 512 KiB
        model = teraio.offload(layers, optimizer_in_backward=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            step_of(model, optimizer, torch.randn(8, 128))
        teraio.restore(model)
        assert all(layer.weight.detach().numpy().any() for layer in layers)
        model(torch.randn(8, 128)).sum().backward()
        gradient = layers[-1].bias.grad
        assert gradient is not None
        assert gradient.tolist() == [8.0] * 128
    assert run.trace is not None


def test_modules_without_parameters_start_no_profile(spill: str) -> None:
    with teraio.profile(ssd=spill) as run:
        model = nn.Linear(128, 128)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            nn.MSELoss()(nn.Dropout()(model(torch.randn(8, 128))), torch.zeros(8, 128)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert run.trace is not None


def test_stopping_ends_the_block_and_is_no_error_to_the_code_in_it(spill: str) -> None:
    steps = 0
    with teraio.profile(ssd=spill, stop=True) as run:
        model = nn.Linear(128, 128)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        while True:
            try:
                step_of(model, optimizer, torch.randn(8, 128))
            except Exception:
                pytest.fail("the end of the profile looked like an error")
            steps += 1
    assert steps == 2
    assert run.trace is not None


def test_an_error_in_the_block_leaves_it_and_everything_is_taken_down(spill: str) -> None:
    hooks = nn.modules.module._global_forward_pre_hooks
    before = dict(hooks)
    with pytest.raises(ZeroDivisionError), teraio.profile(ssd=spill):
        raise ZeroDivisionError
    assert dict(hooks) == before
    with teraio.profile(ssd=spill):  # another one can start
        pass


def test_bad_arguments_are_refused(spill: str) -> None:
    for arguments in ({"iterations": 1}, {"memory_budget": 0}, {"memory_budget": "much"}):
        with pytest.raises(ConfigurationError), teraio.profile(ssd=spill, **arguments):
            pass
    model = teraio.offload(nn.Linear(64, 64), ssd=spill)
    with pytest.raises(ConfigurationError, match="restore it first"), teraio.profile(ssd=spill):
        pass
    teraio.restore(model)
