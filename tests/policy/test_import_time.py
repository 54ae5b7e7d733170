"""Importing teraio, reading files and planning answer at once: importing torch takes seconds.

In: fresh interpreters. Out: a failure if one of them loaded what it must not.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.policy.source import ROOT

HEAVY = ("torch", "transformers")


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


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
