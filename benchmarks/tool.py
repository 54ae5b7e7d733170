"""How quickly the tool answers: ``python -m benchmarks.tool``.

In: nothing. Out: a table of wall and user CPU seconds, the best of some calls each. Must not know:
how commands work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from teraio.files import save
from tests.unit.traces import transformer_trace

ROOT = Path(__file__).resolve().parents[1]
CALLS = 5


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of one call."""

    wall_s: float
    user_s: float


def call(*arguments: str) -> Took:
    """One call of the tool, with its output thrown away. Raises CalledProcessError if it fails."""
    before = os.times()
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "teraio", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = os.times()
    return Took(time.perf_counter() - start, after.children_user - before.children_user)


def best(*arguments: str) -> Took:
    """The least of some calls: what else the machine does only adds to them."""
    took = [call(*arguments) for _ in range(CALLS)]
    return Took(min(t.wall_s for t in took), min(t.user_s for t in took))


def main() -> None:
    """Prints the table."""
    table = Table(title=f"The tool's commands, best of {CALLS} calls")
    for head in ("command", "wall, s", "user CPU, s", "wanted below, s"):
        table.add_column(head, justify="left" if head == "command" else "right")
    with tempfile.TemporaryDirectory() as folder:
        trace = transformer_trace(layers=820, hidden=64, ffn=128)
        path = str(Path(folder) / "large.trace")
        save(trace, path)
        large = f"{len(trace.ops):,} ops"
        for title, arguments, wanted in (
            ("--help", ("--help",), "0.3"),
            ("--version", ("--version",), "0.3"),
            (f"inspect, {large}", ("inspect", path), "3"),
            (f"inspect --tree, {large}", ("inspect", path, "--tree"), "3"),
            (f"report, {large}", ("report", path, "-o", str(Path(folder) / "page.html")), ""),
        ):
            took = best(*arguments)
            table.add_row(title, f"{took.wall_s:.2f}", f"{took.user_s:.2f}", wanted)
    Console().print(table)


if __name__ == "__main__":
    main()
