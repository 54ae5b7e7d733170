"""Importing teraio, reading files and planning answer at once: importing torch takes seconds.

In: fresh interpreters. Out: a failure if one of them loaded what it must not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from teraio.files import save
from tests.policy.source import ROOT
from tests.unit.reports_data import HARDWARE, TRACE
from tests.unit.traces import transformer_trace

HEAVY = ("torch", "transformers", "triton")


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def _modules_after_call(*arguments: str) -> set[str]:
    """Of a call of the tool, which leaves the process when it is done."""
    return _modules_after(
        "import sys\n"
        f"sys.argv = {['teraio', *arguments]!r}\n"
        "from teraio.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code"
    )


def test_help_of_the_tool_loads_nothing_heavy() -> None:
    assert _modules_after_call("--help").isdisjoint({*HEAVY, "numpy", "psutil", "matplotlib"})


@pytest.mark.parametrize("command", [("inspect",), ("inspect", "--tree"), ("compare", "FILE")])
def test_reading_commands_work_without_torch(command: tuple[str, ...], tmp_path: Path) -> None:
    save(TRACE, tmp_path / "run.trace")
    file = str(tmp_path / "run.trace")
    arguments = [file if part == "FILE" else part for part in command]
    assert _modules_after_call(*arguments, file).isdisjoint(HEAVY)


def test_inspecting_100_000_ops_takes_less_than_3_seconds(tmp_path: Path) -> None:
    """Of processor time: others may use the machine meanwhile."""
    trace = transformer_trace(layers=820, hidden=64, ffn=128)
    assert len(trace.ops) >= 100_000
    save(trace, tmp_path / "run.trace")
    before = os.times()
    command = [sys.executable, "-m", "teraio", "inspect", str(tmp_path / "run.trace")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    after = os.times()
    assert after.children_user - before.children_user < 3


def test_planning_and_reports_for_a_saved_machine_work_without_torch(tmp_path: Path) -> None:
    save(TRACE, tmp_path / "run.trace")
    save(HARDWARE, tmp_path / "a.hardware")
    trace, machine, plan = (str(tmp_path / name) for name in ("run.trace", "a.hardware", "a.plan"))
    made = _modules_after_call("plan", trace, "--hardware", machine, "--budget", "60%", "-o", plan)
    assert made.isdisjoint(HEAVY)
    pictures = ("--png", str(tmp_path / "a.png"), "--perfetto", str(tmp_path / "a.json"))
    drawn = _modules_after_call("report", plan, "-o", str(tmp_path / "a.html"), *pictures)
    assert drawn.isdisjoint({*HEAVY, "plotly"})


def test_import_teraio_loads_neither_torch_nor_numpy() -> None:
    loaded = _modules_after("import teraio")
    assert loaded.isdisjoint({*HEAVY, "numpy", "rich", "psutil"})


@pytest.mark.parametrize(
    "statement",
    [
        "import teraio.records, teraio.errors",
        "import teraio.files",
        "import teraio.planner",
        "from teraio.whatif import hardware, model_names; hardware('h100-sxm'); model_names()",
        "from teraio import Trace, Plan, Hardware, StepReport, RunReport, BudgetError",
    ],
)
def test_records_files_and_planner_work_without_torch(statement: str) -> None:
    assert _modules_after(statement).isdisjoint(HEAVY)


def test_kernels_load_triton_only_when_they_run() -> None:
    """It is not installed everywhere, and machines without a GPU have no use for it."""
    assert "triton" not in _modules_after("import teraio.kernels")
