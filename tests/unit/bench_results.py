"""Whole results for tests of documents: a suite with all curves, and findings of a part.

In: nothing. Out: Results, MicroResults. Must not know: how they are shown.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.comparison import Compared, Entry, Results
from benchmarks.micro.findings import Findings, MicroResults
from benchmarks.origin import Origin
from benchmarks.table import table
from tests.unit.bench_records import (
    IDEAL,
    LOSSES,
    compared,
    figures,
    missing,
    outcome,
    ran,
    results_of,
)

SPREAD = (1.0, 1.0, 1.25, 1.5, 2.0, 1.25, 1.25)


def _shaped(shape: str, parameters: int) -> Compared:
    found = compared(
        ran(IDEAL, outcome(parameters=parameters, peak_bytes=4_000_000_000)),
        *(
            ran(
                Entry(system="teraio", share=share),
                outcome(
                    wall_s=SPREAD,
                    parameters=parameters,
                    peak_bytes=int(3.8e9 * share),
                    teraio=figures(),
                ),
                limit_bytes=int(4e9 * share),
            )
            for share in (0.5, 0.7, 0.35)
        ),
        *(
            ran(
                Entry(system="teraio", share=0.5, drives=drives),
                outcome(wall_s=2.0 / drives, parameters=parameters, teraio=figures()),
            )
            for drives in (1, 2)
        ),
        ran(
            Entry(system="infinity"),
            outcome(wall_s=2.5, parameters=parameters, peak_bytes=4_200_000_000),
        ),
        ran(
            Entry(system="zero3"),
            outcome(losses=[loss + 1 for loss in LOSSES], parameters=parameters),
        ),
        missing(Entry(system="torchao"), "moves from a GPU to host memory; this run has no GPU"),
    )
    return replace(found, comparison=replace(found.comparison, shape=shape))


def suite_results() -> Results:
    """Two sizes of model, three limits, two numbers of drives; a peer, a wrong one, none."""
    return results_of(_shaped("llama-3m", 3_000_000), _shaped("llama-13m", 13_000_000))


def micro_results() -> MicroResults:
    shown = table(
        "Planning",
        ("ops", "budget", "CPU s"),
        [("10,000", "50%", "0.49"), ("250,000", "50%", "6.5"), ("30,000", "50%", "1.2")],
        words=0,
    )
    return MicroResults(
        format=1,
        micro="planning",
        origin=Origin(
            date="2026-01-02 00:00 UTC",
            machine="another machine",
            commit="fedcba987654",
            versions=("torch 2.13.0",),
        ),
        settings=("ops 10000 30000",),
        findings=Findings(
            tables=(shown,), figures=[{"ops": 10000}], notes=("a note",), failures=("too slow",)
        ),
    )
