"""Reports in files: of a step, of the machine's telemetry, of a run with all that it consists of.

In: a StepReport or RunReport, or JSON values. Out: JSON values, or the report. Must not know:
files, what is in a trace, plan or hardware.
"""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from teraio.files.fields import Fields, objects_of
from teraio.files.hardware import read_hardware, write_hardware
from teraio.files.plan import read_plan, write_plan
from teraio.files.stall import STALL, read_measured_stall
from teraio.files.trace import read_trace, write_trace
from teraio.records import Reading, RunReport, StepReport, Telemetry, Unit

_STEP_INTEGERS = (
    "iteration",
    "peak_bytes",
    "read_bytes",
    "written_bytes",
    "ops",
    "drift_ops",
    "recomputed_bytes",
)
_STEP_LATER = {"stalls": [], "recomputed_bytes": 0}
_STEP = ("phase", "duration_s", "stall_s", *_STEP_INTEGERS)
_READING_NUMBERS = ("last", "mean", "least", "most")
_READING = ("of", "what", "unit", *_READING_NUMBERS)
_TELEMETRY = ("seconds", "samples", "readings", "missing")
_RUN_LATER = {"telemetry": None}
_RUN = ("budget_bytes", "phase", "hardware", "trace", "plan", "steps", *_RUN_LATER)


def write_step(step: StepReport) -> dict[str, Any]:
    """The step's report as JSON values."""
    stalls = objects_of(step.stalls, STALL)
    return {"stalls": stalls, **{name: getattr(step, name) for name in _STEP}}


def read_step(value: object, where: str) -> StepReport:
    """The report that ``write_step`` gave; raises Fault for anything else."""
    fields = Fields(value, where, ("stalls", *_STEP), _STEP_LATER)
    return StepReport(
        phase=fields.one_of("phase", ("profile", "run")),
        duration_s=fields.number("duration_s"),
        stall_s=fields.number("stall_s"),
        stalls=fields.items("stalls", read_measured_stall),
        **{name: fields.integer(name) for name in _STEP_INTEGERS},
    )


def write_run(run: RunReport) -> dict[str, Any]:
    """The run's report as JSON values."""
    return {
        "budget_bytes": run.budget_bytes,
        "phase": run.phase,
        "hardware": write_hardware(run.hardware),
        "trace": write_trace(run.trace) if run.trace else None,
        "plan": write_plan(run.plan) if run.plan else None,
        "steps": [write_step(step) for step in run.steps],
        "telemetry": _write_telemetry(run.telemetry) if run.telemetry else None,
    }


def read_run(value: object, where: str) -> RunReport:
    """The report that ``write_run`` gave; raises Fault for anything else."""
    fields = Fields(value, where, _RUN, _RUN_LATER)
    return RunReport(
        budget_bytes=fields.integer("budget_bytes"),
        phase=fields.one_of("phase", ("planned", "profile", "run", "closed")),
        hardware=fields.part("hardware", read_hardware),
        trace=fields.optional("trace", partial(fields.part, read=read_trace)),
        plan=fields.optional("plan", partial(fields.part, read=read_plan)),
        steps=fields.items("steps", read_step),
        telemetry=fields.optional("telemetry", partial(fields.part, read=_read_telemetry)),
    )


def _write_telemetry(telemetry: Telemetry) -> dict[str, Any]:
    return {
        "seconds": telemetry.seconds,
        "samples": telemetry.samples,
        "readings": objects_of(telemetry.readings, _READING),
        "missing": list(telemetry.missing),
    }


def _read_telemetry(value: object, where: str) -> Telemetry:
    fields = Fields(value, where, _TELEMETRY)
    return Telemetry(
        seconds=fields.number("seconds"),
        samples=fields.integer("samples"),
        readings=fields.items("readings", _read_reading),
        missing=tuple(fields.texts("missing")),
    )


def _read_reading(value: object, where: str) -> Reading:
    fields = Fields(value, where, _READING)
    return Reading(
        of=fields.text("of"),
        what=fields.text("what"),
        unit=fields.one_of("unit", get_args(Unit)),
        **{name: fields.number(name) for name in _READING_NUMBERS},
    )
