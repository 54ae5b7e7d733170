"""Which random programs the tests run, and what their reports have in common.

In: seeds, reports of runs. Out: a range of seeds, assertions. Must not know: devices.
"""

from __future__ import annotations

import os

import teraio


def seeds(usual: range) -> range:
    """``TERAIO_SEEDS=0-1000`` asks for others."""
    asked = os.environ.get("TERAIO_SEEDS")
    if asked is None:
        return usual
    first, last = asked.split("-")
    return range(int(first), int(last))


def has_slow_drive(seed: int) -> bool:
    """Of each four seeds two have one; one of these two programs calls its model."""
    return seed // 2 % 2 == 1


def assert_kept_busy(report: teraio.RunReport) -> None:
    """The budget is too little for the program to be left alone."""
    assert sum(step.written_bytes + step.recomputed_bytes for step in report.steps) > 0


def made_again(report: teraio.RunReport) -> bool:
    return sum(step.recomputed_bytes for step in report.steps) > 0


def moves_at_last(report: teraio.RunReport) -> bool:
    last = report.steps[-1]
    return last.read_bytes + last.recomputed_bytes > 0
