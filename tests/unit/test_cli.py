"""The tool's commands: whole outputs, JSON, errors in one sentence with exit code 2."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from teraio.cli.machines import with_one_more_drive
from teraio.files import load, save
from teraio.planner.feasibility import run_budget
from teraio.records import (
    Bound,
    Hardware,
    Op,
    RunReport,
    SpillFolder,
    Stall,
    Storage,
    TierUse,
    Trace,
)
from tests.unit.cli import run
from tests.unit.reports_data import HARDWARE, PLAN, TRACE, run_report
from tests.unit.small import machine, move, plan_of

EXPECTED = Path(__file__).parent / "expected"
COMMANDS = ("profile", "inspect", "plan", "compare", "report", "doctor", "top")


def small_trace() -> Trace:
    """Three layers' worth of memory in six ops of 10 ms."""
    names = ("aten::linear", "aten::gelu", "aten::gelu_backward", "aten::mm", "aten::addcdiv_")
    phases = ("forward", "forward", "backward", "backward", "optimizer")
    ops = tuple(
        Op(
            name=name,
            module="" if phase == "optimizer" else "layers.0",
            phase=phase,
            duration_ns=10_000_000,
        )
        for name, phase in zip(names, phases, strict=True)
    )
    mib = 1 << 20

    def held(nbytes, kind, name, uses, writes=(), birth=None, death=None):  # type: ignore[no-untyped-def]
        return Storage(
            nbytes=nbytes, kind=kind, name=name, birth=birth, death=death, uses=uses, writes=writes
        )

    return Trace(
        device="cpu",
        ops=ops,
        storages=(
            held(4 * mib, "parameter", "layers.0.weight", (0, 3, 4), (4,)),
            held(8 * mib, "optimizer_state", "layers.0.weight:exp_avg", (4,), (4,)),
            held(2 * mib, "activation", "layers.0/linear#0.0", (0, 1, 2), (0,), 0, 2),
            held(4 * mib, "gradient", "layers.0.weight:grad", (3, 4), (3,), 3, 4),
        ),
        anchors=(),
        base_bytes=1024,
    )


def planned() -> RunReport:
    """The small trace with a plan that sends the optimizer's state away."""
    trace = small_trace()
    away = move(1, 4, 0, 3, 4)
    plan = replace(
        plan_of(trace, (replace(away, extent=replace(away.extent, nbytes=8 << 20)),)),
        ideal_s=0.05,
        bound_s=0.05,
        predicted_s=0.06,
        budget_bytes=17 << 20,
        spill_bytes=8 << 20,
        tiers=(
            TierUse(
                tier="ssd",
                space_bytes=8 << 20,
                read_bytes=8 << 20,
                written_bytes=8 << 20,
                read_s=0.01,
                write_s=0.01,
            ),
        ),
        bounds=(Bound(name="ops", seconds=0.05), Bound(name="bytes", seconds=0.02)),
        stalls=(Stall(op=4, storage=1, waits_for="data", seconds=0.01),),
    )
    tier = replace(
        machine().tiers[0], read_bytes_per_s=1e9, write_bytes_per_s=1e9, mixed_bytes_per_s=2e9
    )
    hardware = Hardware(name="small machine", budget_bytes=17 << 20, tiers=(tier,))
    return RunReport(
        budget_bytes=17 << 20, phase="planned", hardware=hardware, trace=trace, plan=plan, steps=()
    )


def same_as(name: str, text: str) -> None:
    """The text equals the one kept in expected/; with TERAIO_ACCEPT=1 it becomes that."""
    path = EXPECTED / f"{name}.txt"
    if os.environ.get("TERAIO_ACCEPT") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    save(small_trace(), tmp_path / "run.trace")
    return tmp_path / "run.trace"


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    save(planned(), tmp_path / "run.plan")
    return tmp_path / "run.plan"


@pytest.fixture
def report_file(tmp_path: Path) -> Path:
    save(run_report(), tmp_path / "run.report")
    return tmp_path / "run.report"


# ---------------------------------------------------------------- inspect


def test_inspect_shows_where_memory_goes(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, "inspect", trace_file)
    assert ran.code == 0
    same_as("inspect", ran.out)


def test_inspect_draws_the_tree_of_modules(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same_as("inspect_tree", run(capsys, "inspect", trace_file, "--tree").out)


def test_inspect_tells_the_life_of_a_tensor_and_its_moves(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same_as("inspect_tensor", run(capsys, "inspect", plan_file, "--tensor", "exp_avg").out)


@pytest.mark.parametrize("options", [(), ("--tree",), ("--tensor", "exp_avg")])
def test_inspect_gives_json(
    options: tuple[str, ...], trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads(run(capsys, "inspect", trace_file, "--json", *options).out)
    assert {"peak_bytes", "by_kind", "uses"} & facts.keys()


def test_inspect_tells_what_the_machine_did_in_a_run(
    report_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(run(capsys, "inspect", report_file).out.split())
    for part in (
        "The machine, 60 looks over 59.0 s of figure last mean least most",
        "GPU busy 50.0 % 87.5 % 25.0 % 100 %",
        "process resident memory 3.00 GiB 2.50 GiB 2.00 GiB 4.00 GiB",
        "drive of /mnt/nvme0 written 1.00 GB/s 2.00 GB/s 0.00 GB/s 3.00 GB/s",
        "GPU power 300 W 310 W 70 W 702 W",
        "GPU: no figure for PCIe in (Not Supported)",
    ):
        assert part in text
    facts = json.loads(run(capsys, "inspect", report_file, "--json").out)
    told = {(reading["of"], reading["what"]): reading for reading in facts["telemetry"]["readings"]}
    assert told["GPU", "power"]["most"] == 702.0


# ---------------------------------------------------------------- plan


def test_a_plan_says_what_it_gives_and_why(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from teraio.cli.console import out
    from teraio.planner import Variant, explain
    from teraio.reports.planning import planning
    from teraio.reports.planning_text import explanation_text, planning_text
    from teraio.reports.subject import subject_of

    subject = subject_of(planned(), "run.plan")
    facts = planning(subject)
    why = explain(subject.trace, planned().hardware, subject.plan)
    other = Variant(change="10 % more memory", predicted_s=0.05, saved_s=0.01)
    out().print(planning_text(facts, "Plan"))
    out().print(explanation_text(facts, why, [other]))
    text = "\n".join(line.rstrip() for line in capsys.readouterr().out.split("\n"))
    same_as("plan_explained", text)


def test_plan_saves_what_report_compare_and_inspect_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(TRACE, tmp_path / "run.trace")
    save(HARDWARE, tmp_path / "this.hardware")
    machine = ("--hardware", tmp_path / "this.hardware")
    trace, made = tmp_path / "run.trace", tmp_path / "a.plan"
    ran = run(capsys, "plan", trace, *machine, "--budget", "50%", "-o", made)
    assert (ran.code, ran.err) == (0, "")
    assert f"saved: {made}" in ran.out
    saved = load(tmp_path / "a.plan", RunReport)
    assert saved.phase == "planned"
    assert saved.trace == TRACE
    assert saved.plan is not None
    assert saved.plan.peak_bytes <= saved.plan.budget_bytes <= PLAN.unlimited_peak_bytes // 2
    next_call = f"next  teraio.offload(model, memory_budget={run_budget(saved.plan.budget_bytes)})"
    assert ran.out.endswith(f"{next_call}\n")
    for command in (("inspect",), ("compare", tmp_path / "a.plan")):
        assert run(capsys, *command, tmp_path / "a.plan").code == 0


@pytest.mark.parametrize(
    ("device", "machine"), [("h100-nvl (simulated)", "a.hardware"), ("cuda:0", "h100-nvl")]
)
def test_a_plan_of_another_machine_says_nothing_of_a_run_on_this_one(
    device: str, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save(replace(TRACE, device=device), tmp_path / "run.trace")
    save(HARDWARE, tmp_path / "a.hardware")
    ran = run(capsys, "plan", "run.trace", "--hardware", machine, "--budget", "50%")
    assert ran.code == 0
    assert "teraio.offload" not in ran.out


def test_a_plan_for_a_budget_that_reads_like_the_least_one_says_both_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(small_trace(), tmp_path / "run.trace")
    save(HARDWARE, tmp_path / "a.hardware")
    arguments = ("plan", tmp_path / "run.trace", "--hardware", tmp_path / "a.hardware")
    told = run(capsys, *arguments, "--budget", "16MiB")
    assert "needs 16.1 MiB (16778240 bytes) of memory at once" in told.err
    assert "the budget of 16.0 MiB (16777216 bytes)" in told.err
    assert run(capsys, *arguments, "--budget", "16.1MiB").code == 0


def test_plan_gives_json_with_an_explanation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(TRACE, tmp_path / "run.trace")
    save(HARDWARE, tmp_path / "this.hardware")
    ran = run(
        capsys, "plan", tmp_path / "run.trace", "--hardware", tmp_path / "this.hardware",
        "--budget", "40%", "--explain", "--json",
    )  # fmt: skip
    found = json.loads(ran.out)
    assert found["plan"]["peak_bytes"] <= found["plan"]["budget_bytes"]
    assert {other["change"] for other in found["alternatives"]} >= {"10 % more memory"}


def test_one_more_drive_is_one_beside_those_of_the_hardware_file(tmp_path: Path) -> None:
    folders = tuple(SpillFolder(folder=f"/mnt/{i}", path="direct I/O", reason="") for i in range(2))
    tier = replace(HARDWARE.tiers[0], name="ssd", folders=folders)
    save(replace(HARDWARE, tiers=(tier,)), tmp_path / "this.hardware")
    of_file = load(tmp_path / "this.hardware", Hardware)
    more = with_one_more_drive(of_file, str(tmp_path / "this.hardware"), (), None)
    assert more.tiers[0].read_bytes_per_s == 1.5 * tier.read_bytes_per_s


# ---------------------------------------------------------------- compare


def test_compare_shows_where_two_plans_differ(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = planned()
    assert report.plan is not None
    nothing = replace(
        report.plan, moves=(), peak_bytes=report.plan.unlimited_peak_bytes, predicted_s=0.05,
        read_bytes=0, written_bytes=0, spill_bytes=0, budget_bytes=64 << 20,
    )  # fmt: skip
    hardware = replace(report.hardware, budget_bytes=64 << 20)
    save(replace(report, plan=nothing, hardware=hardware), tmp_path / "other.plan")
    same_as("compare", run(capsys, "compare", plan_file, tmp_path / "other.plan").out)


def test_compare_sets_a_run_against_its_plan(
    report_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads(run(capsys, "compare", report_file, report_file, "--json").out)
    figures = {figure["name"]: figure for figure in facts["figures"]}
    assert figures["iteration, measured"]["b"] == pytest.approx(0.12)
    assert figures["iteration, predicted"]["a"] == pytest.approx(PLAN.predicted_s)
    assert facts["same_trace"] is True


def test_a_run_has_the_budget_that_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = PLAN.budget_bytes + 1234
    save(replace(run_report(), budget_bytes=given), tmp_path / "run.report")
    both = (tmp_path / "run.report", tmp_path / "run.report")
    facts = json.loads(run(capsys, "compare", *both, "--json").out)
    figures = {figure["name"]: figure["a"] for figure in facts["figures"]}
    assert figures["budget"] == given
    assert figures["budget, planned for"] == PLAN.budget_bytes


def test_only_plans_are_said_to_move_the_same(
    report_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(TRACE, tmp_path / "run.trace")
    same = "Both move the same storages."
    assert same in run(capsys, "compare", report_file, report_file).out
    for one in (report_file, tmp_path / "run.trace"):
        assert same not in run(capsys, "compare", one, tmp_path / "run.trace").out


# ---------------------------------------------------------------- report


def test_report_writes_everything_that_is_asked_for(
    report_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"made.{ending}" for ending in ("html", "png", "svg", "json")]
    html, png, svg, perfetto = paths
    pictures = ("--png", png, "--svg", svg)
    ran = run(capsys, "report", report_file, "-o", html, *pictures, "--perfetto", perfetto)
    assert ran.code == 0, ran.err
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    drawing = svg.read_text(encoding="utf-8")
    assert "<svg" in drawing
    assert all(f">{word}<" in drawing for word in ("leaving", "away", "coming back"))
    assert "traceEvents" in json.loads(perfetto.read_text(encoding="utf-8"))


def test_the_same_record_gives_the_same_drawing(
    report_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one.svg", "two.svg"):
        run(capsys, "report", report_file, "--svg", tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_timeline_merges_with_a_packed_profile_of_torch(
    report_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {"traceEvents": [{"ph": "X", "name": "ProfilerStep#1", "ts": 5.0, "dur": 1.0}]}
    (tmp_path / "torch.json.gz").write_bytes(gzip.compress(json.dumps(theirs).encode()))
    made = tmp_path / "both.json"
    run(capsys, "report", report_file, "--perfetto", made, "--beside", tmp_path / "torch.json.gz")
    events = json.loads(made.read_text())["traceEvents"]
    assert events[0] == theirs["traceEvents"][0]
    assert len(events) > len(TRACE.ops)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("inspect none.trace", "none.trace: No such file or directory"),
        ("inspect text", "text: this is not a gzip file, so not a file of teraio"),
        ("inspect run.trace --tensor nobody", "no storage of run.trace has a name"),
        ("inspect run.trace --depth 2", "--depth goes with --tree"),
        ("inspect run.trace --tensor exp_avg --tree", "pass one of them"),
        ("plan run.trace --hardware a.hardware --budget much", "--budget='much' is no size"),
        ("plan run.trace --hardware a.hardware --budget 50", 'did you mean "50%" or "50GiB"?'),
        ("plan run.trace --hardware a.hardware --budget 1%", "the least budget for this"),
        ("plan run.trace --hardware a.hardware --budget 1%", "Pass --budget=16.1MiB or more"),
        ("plan", "pass either the file of a trace, or --model"),
        ("plan run.trace --hardware h1000", "there is no accelerator called 'h1000'"),
        ("plan run.trace --ssd 4", "counts the drives of another machine"),
        ("plan run.trace --ssd nowhere", "the spill folder nowhere does not exist"),
        ("plan run.trace --hardware a.hardware --ssd 4", "leave --ssd and --host out"),
        ("plan run.trace --ssd . --ssd .", "--ssd names the folder"),
        ("plan run.trace --ssd text", "--ssd: the spill folder text is not a folder"),
        ("plan run.trace --host 1GiB", "--host: on this machine models are on the CPU"),
        ("plan run.trace --hardware h100-nvl --host 50%", "--host='50%' is a share"),
        ("plan run.trace --batch 4 --checkpointing", "--batch, --checkpointing: only for --model"),
        ("plan --model binary --hardware h100-nvl", "binary is no text"),
        ("plan --model text --hardware h100-nvl", "text is not JSON"),
        ("plan --model c.json --hardware h100-nvl", "it has no `architectures`"),
        ("plan --model llama3-8b", "--model needs the machine that trains it"),
        ("plan run.trace -o nowhere/run.plan", "does not exist; create it first"),
        ("plan run.trace -o /proc/run.plan", "nothing can be written to the folder /proc"),
        ("plan run.trace -o run.trace", "run.trace is what is read"),
        ("plan run.trace --hardware a.hardware -o a.hardware", "a.hardware is what is read"),
        ("plan run.trace -o text", "text is there and no file of teraio"),
        ("plan run.trace --hardware thi.hardware", "there is no file thi.hardware; `teraio doctor"),
        ("plan run.trace --ssd ²", "the spill folder ² does not exist"),
        ("compare run.trace a.hardware", "a.hardware holds a Hardware and no trace"),
        ("report run.trace --png a.svg", "a.svg: its name must end in .png"),
        ("report run.trace --beside x.json", "--beside goes with --perfetto"),
        ("plan run.trace -o binary.gz", "binary.gz is there and no file of teraio"),
        ("plan run.trace -o /dev/null", "/dev/null is there and no file of teraio"),
        ("report run.trace -o run.trace", "run.trace is what is read"),
        ("report run.trace -o text", "text is there and no .html file"),
        ("report run.trace --perfetto c.json --beside c.json", "c.json is what is read"),
        ("report run.trace --perfetto o.json --beside text", "no trace of torch.profiler"),
        ("report run.trace --perfetto o.json --beside deep", "no trace of torch.profiler"),
        ("report run.trace --perfetto o.json --beside broken.gz", "no trace of torch.profiler"),
        ("profile none.py", "there is no script none.py"),
        ("profile -o . text", ". is a folder"),
        ("profile -o text text", "text is what is read"),
        ("profile --budget banana text", "--budget='banana' is no size"),
        ("profile --budget 0 text", "--budget='0' is nothing"),
        (
            "profile --budget 1GiB --ssd nowhere text",
            "--ssd: the spill folder nowhere does not exist",
        ),
        ("profile --ssd nowhere text", "--ssd goes with --budget"),
        ("top 1", "no run of this user belongs to 1"),
    ],
)
def test_an_error_is_one_sentence_with_exit_code_2(
    arguments: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(small_trace(), tmp_path / "run.trace")
    save(HARDWARE, tmp_path / "a.hardware")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "binary.gz").write_bytes(gzip.compress(b"x" * 1000))
    (tmp_path / "broken.gz").write_bytes(gzip.compress(bytes(100))[:10] + bytes(30))
    (tmp_path / "c.json").write_text('{"model_type": "llama"}')
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff")
    ran = run(capsys, *arguments.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("teraio: ")
    assert sentence in ran.err
    assert ran.err.count("\n") == 1


def test_nothing_but_the_result_goes_to_standard_output(tmp_path: Path) -> None:
    """In a process of its own: native libraries write past Python's streams, and only once."""
    save(TRACE, tmp_path / "run.trace")
    save(HARDWARE, tmp_path / "a.hardware")
    call = "plan run.trace --hardware a.hardware --budget 60% --json"
    done = subprocess.run(
        [sys.executable, "-m", "teraio", *call.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["moves"] > 0


@pytest.mark.parametrize("arguments", [("nonsense",), ("inspect",), ("inspect", "--nonsense", "x")])
def test_a_wrong_call_shows_how_to_call(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, *arguments)
    assert ran.code == 2
    assert "Usage: teraio" in ran.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, command, "--help")
    assert ran.code == 0
    assert "Examples" in ran.out
    assert f"  teraio {command}" in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_cuts_nothing_off_at_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "…" not in run(capsys, command, "--help").out


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--help").out
    assert all(f" {command} " in out for command in COMMANDS)


def test_output_into_a_pipe_has_no_colours(
    trace_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "\x1b" not in run(capsys, "inspect", trace_file).out


def test_notes_into_a_pipe_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from teraio.cli.console import notes

    notes().print("teraio: " + "much to say " * 20)
    assert capsys.readouterr().err.count("\n") == 1


def test_names_with_markup_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = small_trace()
    odd = replace(trace.storages[0], name="[red]layers[/red].weight")
    save(replace(trace, storages=(odd, *trace.storages[1:])), tmp_path / "run.trace")
    assert "[red]layers[/red].weight" in run(capsys, "inspect", tmp_path / "run.trace").out
