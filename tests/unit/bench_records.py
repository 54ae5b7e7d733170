"""Results of made-up runs, for tests of what is said about them.

In: the figures that a test is about. Out: records. Must not know: torch, processes.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.comparison import Compared, Comparison, Entry, Result, Results
from benchmarks.job import Job, Outcome, Step, TeraioFigures

WARM_UP = 2
LOSSES = (5.0, 4.5, 4.25, 4.0, 3.5, 3.25, 3.0)
IDEAL = Entry(system="ideal")


def outcome(
    *,
    losses: Sequence[float] = LOSSES,
    wall_s: Sequence[float] | float = 1.0,
    peak_bytes: Sequence[int] | int = 1_000,
    parameters: int = 100,
    sha256: str | None = "a",
    teraio: TeraioFigures | None = None,
) -> Outcome:
    """``wall_s`` and ``peak_bytes`` for all steps alike, or one by one."""
    peaks = [peak_bytes] * len(losses) if isinstance(peak_bytes, int) else list(peak_bytes)
    times = [wall_s] * len(losses) if isinstance(wall_s, float) else list(wall_s)
    return Outcome(
        parameters=parameters,
        parameters_sha256=sha256,
        base_bytes=0,
        build_peak_bytes=0,
        steps=tuple(
            Step(
                turn=max(-1, number - WARM_UP),
                loss=loss,
                wall_s=seconds,
                cpu_s=seconds,
                host_peak_bytes=peak,
                device_peak_bytes=None,
                read_bytes=3,
                written_bytes=4,
                drive_read_bytes=None,
                drive_written_bytes=None,
                energy_j=None,
            )
            for number, (loss, seconds, peak) in enumerate(zip(losses, times, peaks, strict=True))
        ),
        teraio=teraio,
    )


def figures(steps: int = len(LOSSES), predicted_s: float = 1.5) -> TeraioFigures:
    return TeraioFigures(
        planned=(True,) * steps,
        peak_bytes=(500,) * steps,
        read_bytes=(3,) * steps,
        written_bytes=(4,) * steps,
        stall_s=(0.25,) * steps,
        drift_ops=(0,) * steps,
        ops=(10,) * steps,
        predicted_s=predicted_s,
        ideal_s=1.0,
        bound_s=1.25,
    )


def ran(entry: Entry, what: Outcome, limit_bytes: int | None = None) -> Result:
    job = Job(
        name=entry.name,
        system=entry.system,
        shape="llama-3m",
        dtype="fp32",
        threads=1,
        limit_bytes=limit_bytes,
    )
    return Result(entry=entry, job=job, status="ran", reason="", outcome=what)


def missing(entry: Entry, reason: str) -> Result:
    job = Job(name=entry.name, system=entry.system, shape="llama-3m", dtype="fp32", threads=1)
    return Result(entry=entry, job=job, status="unavailable", reason=reason, outcome=None)


def compared(*results: Result) -> Compared:
    """The first is the ideal run."""
    entries = tuple(result.entry for result in results[1:])
    comparison = Comparison(shape="llama-3m", dtype="fp32", entries=entries, warm_up=WARM_UP)
    return Compared(comparison=comparison, results=results)


def results_of(*parts: Compared) -> Results:
    return Results(
        format=1,
        suite="quick",
        date="2026-01-01 00:00 UTC",
        machine="a machine",
        device="cpu",
        commit="0123456789ab",
        versions=("torch 2.13.0",),
        settings=("1 threads",),
        compared=parts,
    )
