"""Programs that run in a process of their own, because it is their end that matters.

In: their text. Out: how they ended. Must not know: what is being proven.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def ended(program: str, spill: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs a program, which finds the spill folder as its argument, until its end."""
    return subprocess.run(
        [sys.executable, "-c", program, spill],
        cwd=_ROOT,
        timeout=timeout_s,
        capture_output=True,
        text=True,
        check=False,
    )


def forked(spill: str, options: str = "") -> subprocess.CompletedProcess[str]:
    """Offloads a model with ``options``, forks a child that ends with 5 while a weight is away, and
    goes on to use it. Without pytest around it: the child must run Python's whole end.
    """
    return ended(
        "import os, sys, torch, teraio; from teraio.engine.testing import send_away;"
        "model = torch.nn.Linear(256, 256);"
        f"teraio.offload(model, memory_budget=1 << 30, ssd=sys.argv[1], {options});"
        "send_away(model.weight); child = os.fork();"
        "child or (print('child'), sys.exit(5));"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]));"
        "model.weight.sum(); teraio.restore(model)",
        spill,
        timeout_s=60,
    )
