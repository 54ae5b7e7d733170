"""``teraio plan``: a plan for a trace, or for a model that is nowhere in memory.

In: the command line. Out: tables or JSON on standard output, and a plan file. Must not know: how
plans are found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from teraio.planner import Explanation, Variant
    from teraio.records import Hardware, Plan, Trace
    from teraio.reports.subject import Subject

_EXAMPLES = """
[bold]Examples[/bold]

  teraio plan run.trace --budget 50%

  teraio plan run.trace --budget 24GiB --ssd /mnt/nvme0 --ssd /mnt/nvme1 -o run.plan --explain

  teraio plan run.trace --hardware h100-nvl --ssd 4 --host 64GiB

  teraio plan --model llama3-8b --batch 8 --sequence 2048 --hardware h100-nvl --ssd 4
"""
_OF_MODEL = "Options of --model"
_JOB = ("batch", "sequence", "precision", "optimizer", "checkpointing", "optimizer_in_backward")


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command("plan", epilog=_EXAMPLES)(_plan)


def _plan(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="A trace, or a plan or report with a trace.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Instead of a trace: a model's config.json, or the name of a known one (an "
            "unknown name lists all); nothing of it is loaded.",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", rich_help_panel=_OF_MODEL, help="Sequences per iteration."
        ),
    ] = 8,
    sequence: Annotated[
        int,
        typer.Option(min=1, metavar="N", rich_help_panel=_OF_MODEL, help="Tokens per sequence."),
    ] = 2048,
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=_OF_MODEL, help="fp32, tf32, bf16 or bf16-mixed."
        ),
    ] = "bf16-mixed",
    optimizer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_OF_MODEL,
            help="adamw-fused, adamw-foreach, adamw or sgd.",
        ),
    ] = "adamw-fused",
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing", rich_help_panel=_OF_MODEL, help="Recompute layers in backward."
        ),
    ] = False,
    optimizer_in_backward: Annotated[
        bool,
        typer.Option(
            "--optimizer-in-backward",
            rich_help_panel=_OF_MODEL,
            help="Step each parameter in the backward pass.",
        ),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for tensors: 24GiB, or 50% of what the iteration takes without a limit. "
            "Default: what the machine has.",
        ),
    ] = None,
    hardware: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="This machine, measured now; another one by name, such as h100-nvl (an unknown "
            "name lists all); or a file saved by doctor.",
        ),
    ] = "this",
    ssd: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER|COUNT", help="A folder per drive of this machine; else how many drives."
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Host memory as a tier, for a GPU.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Save the plan, with what it is for.")
    ] = None,
    no_recompute: Annotated[
        bool,
        typer.Option("--no-recompute", help="Only move: make no results again."),
    ] = False,
    explain_it: Annotated[
        bool, typer.Option("--explain", help="What binds, what costs most, what would help.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON for programs.")] = False,
) -> None:
    """Plan what leaves memory when, and predict what that gives."""
    from rich.text import Text

    from teraio.cli.console import out, write
    from teraio.cli.inputs import check_output, load_trace
    from teraio.errors import ConfigurationError

    if output is not None:
        check_output(output, *(Path(path) for path in (file, model, hardware) if path))
    if (file is None) == (model is None):
        raise ConfigurationError("pass either the file of a trace, or --model.")
    if file is not None:
        _check_no_job(context)
        trace, title = load_trace(file), file.name
    else:
        title = Path(str(model)).stem
        job = {
            "batch": batch,
            "sequence": sequence,
            "precision": precision,
            "optimizer": optimizer,
            "checkpointing": checkpointing,
            "optimizer_in_backward": optimizer_in_backward,
        }
        trace = _what_if(str(model), job, hardware)
    machine = _machine(trace, budget, hardware, ssd or [], host)
    make_plan = partial(_make_plan, recompute=not no_recompute)
    subject = _planned(trace, machine, title, make_plan)

    from teraio.reports.as_json import as_json
    from teraio.reports.planning import planning
    from teraio.reports.planning_text import explanation_text, planning_text

    facts = planning(subject)
    others = _alternatives(subject, hardware, ssd or [], host, make_plan) if explain_it else []
    if output is not None:
        _save(subject, output)
    if json:
        told = {"plan": facts, "alternatives": others, "why": _why(subject)}
        write(as_json(told if explain_it else facts))
        return
    out().print(planning_text(facts, f"Plan for {title}"))
    if explain_it:
        out().print()
        out().print(explanation_text(facts, _why(subject), others))
    if output is not None:
        out().print(f"\nsaved: {output}", markup=False)
    if _can_run(subject, hardware):
        out().print(Text(""), _next(subject, ssd or [], recompute=not no_recompute), sep="\n")


def _check_no_job(context: typer.Context) -> None:
    from teraio.cli.inputs import is_given
    from teraio.errors import ConfigurationError

    given = [f"--{name.replace('_', '-')}" for name in _JOB if is_given(context, name)]
    if given:
        raise ConfigurationError(
            f"{', '.join(given)}: only for --model; a trace is of the iteration that was recorded."
        )


def _can_run(subject: Subject, hardware: str) -> bool:
    """Whether a run on the machine that is planned for could follow this plan, and needs one."""
    from teraio.cli.machines import THIS

    named = hardware != THIS and not Path(hardware).is_file()
    return bool(subject.moves) and not named and "(simulated)" not in subject.trace.device


def _next(subject: Subject, ssd: list[str], *, recompute: bool) -> RenderableType:
    """The call that trains under this plan's budget."""
    from teraio.planner.feasibility import run_budget
    from teraio.reports.table import labelled

    budget_bytes = subject.plan.budget_bytes if subject.plan else 0
    arguments = [f"memory_budget={run_budget(budget_bytes)}"]
    arguments += [f"ssd={ssd}"] if ssd else []
    arguments += [] if recompute else ["recompute=False"]
    return labelled(("next", f"teraio.offload(model, {', '.join(arguments)})"))


def _what_if(model: str, job: dict[str, Any], hardware: str) -> Trace:
    from teraio.cli.console import notes
    from teraio.cli.machines import THIS
    from teraio.errors import ConfigurationError

    if hardware == THIS:
        from teraio.whatif import accelerators

        raise ConfigurationError(
            "--model needs the machine that trains it: --hardware with one of "
            f"{', '.join(sorted(accelerators()))}."
        )
    with notes().status(f"teraio: tracing {model} on {hardware}, without either"):
        from teraio.whatif import Job, trace_config

        return trace_config(model, Job(**job), accelerator=hardware)


def _machine(
    trace: Trace, budget: str | None, hardware: str, ssd: list[str], host: str | None
) -> Hardware:
    from teraio.cli.console import notes
    from teraio.cli.machines import THIS, machine
    from teraio.planner import live_by_op
    from teraio.sizes import parse_size

    budget_bytes = None
    if budget is not None:
        peak = int(live_by_op(trace).max())
        budget_bytes = parse_size(budget, whole=peak, what="--budget")
    if hardware != THIS:
        return machine(hardware, ssd, host, budget_bytes)
    with notes().status("teraio: measuring the drives of this machine"):
        return machine(hardware, ssd, host, budget_bytes)


def _planned(
    trace: Trace, hardware: Hardware, name: str, make_plan: Callable[[Trace, Hardware], Plan]
) -> Subject:
    from teraio.reports.subject import Subject, as_planned

    plan = make_plan(trace, hardware)
    return as_planned(Subject(name=name, trace=trace, hardware=hardware, plan=plan))


def _make_plan(trace: Trace, hardware: Hardware, *, recompute: bool) -> Plan:
    from teraio.cli.console import notes
    from teraio.errors import BudgetError
    from teraio.planner import least_budget, plan
    from teraio.records import PlanOptions
    from teraio.sizes import format_least

    try:
        with notes().status("teraio: planning"):
            return plan(trace, hardware, PlanOptions(recompute=recompute))
    except BudgetError as error:
        least = least_budget(trace)
        if least <= hardware.budget_bytes:
            raise
        raise BudgetError(
            f"{error}. Pass --budget={format_least(least).replace(' ', '')} or more, or make that "
            "op smaller, with a smaller batch for example."
        ) from None


def _save(subject: Subject, path: Path) -> None:
    from teraio.files import save
    from teraio.records import RunReport

    if subject.hardware is None:
        return
    save(
        RunReport(
            budget_bytes=subject.hardware.budget_bytes,
            phase="planned",
            hardware=subject.hardware,
            trace=subject.unlimited,
            plan=subject.plan,
            steps=(),
        ),
        path,
    )


def _why(subject: Subject) -> Explanation:
    from teraio.errors import PlanError
    from teraio.planner import explain

    if subject.hardware is None or subject.plan is None:
        raise PlanError(f"{subject.name} has no plan to explain.")
    return explain(subject.trace, subject.hardware, subject.plan)


def _alternatives(
    subject: Subject,
    name: str,
    ssd: list[str],
    host: str | None,
    make_plan: Callable[[Trace, Hardware], Plan],
) -> list[Variant]:
    """The same trace planned for a little more of each thing; none where nothing would help."""
    from teraio.cli.machines import with_one_more_drive
    from teraio.planner import replanned
    from teraio.reports.units import NOTHING_S

    hardware, plan = subject.hardware, subject.plan
    if hardware is None or plan is None or plan.predicted_s - plan.ideal_s < NOTHING_S:
        return []
    more_memory = replace(hardware, budget_bytes=int(hardware.budget_bytes * 1.1))
    changes = {
        "10 % more memory": more_memory,
        "one more SSD": with_one_more_drive(hardware, name, ssd, host),
    }
    return list(replanned(subject.unlimited, plan, make_plan, changes.items()))
