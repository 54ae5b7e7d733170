"""How quickly the commands of ``teraio`` answer.

In: options. Out: wall and user CPU seconds, the best of some calls each. Must not know: how
commands work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.micro.findings import Findings
from benchmarks.table import table
from benchmarks.worker import ROOT


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


def best(calls: int, *arguments: str) -> Took:
    """The least of some calls: what else the machine does only adds to them."""
    took = [call(*arguments) for _ in range(calls)]
    return Took(min(t.wall_s for t in took), min(t.user_s for t in took))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, default=5)


def run(options: argparse.Namespace) -> Findings:
    from teraio.files import save
    from tests.unit.traces import transformer_trace

    with tempfile.TemporaryDirectory() as folder:
        trace = transformer_trace(layers=820, hidden=64, ffn=128)
        path = str(Path(folder) / "large.trace")
        save(trace, path)
        large = f"{len(trace.ops):,} ops"
        commands = (
            ("--help", ("--help",), "0.3"),
            ("--version", ("--version",), "0.3"),
            (f"inspect, {large}", ("inspect", path), "3"),
            (f"inspect --tree, {large}", ("inspect", path, "--tree"), "3"),
            (f"report, {large}", ("report", path, "-o", str(Path(folder) / "page.html")), ""),
        )
        took = [best(options.calls, *arguments) for _, arguments, _ in commands]
    rows = [
        (title, f"{one.wall_s:.2f}", f"{one.user_s:.2f}", wanted)
        for (title, _, wanted), one in zip(commands, took, strict=True)
    ]
    shown = table(
        f"The tool's commands, best of {options.calls} calls",
        ("command", "wall, s", "user CPU, s", "wanted below, s"),
        rows,
    )
    figures = [
        {"command": title, **asdict(one)} for (title, _, _), one in zip(commands, took, strict=True)
    ]
    return Findings(tables=(shown,), figures=figures)
