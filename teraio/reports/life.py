"""The life of one storage: where it is made, used, idle, and freed.

In: a Subject and a name. Out: a Life and its rendering. Must not know: files.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from rich.console import RenderableType
from rich.text import Text

from teraio.errors import ConfigurationError
from teraio.records import Storage
from teraio.reports.memory import Seconds, kind_name, module_of, op_starts
from teraio.reports.subject import Subject
from teraio.reports.table import spaced, table
from teraio.reports.units import format_size, seconds

_NAMES_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One op that touches the storage, and how long it is idle after it."""

    op: int
    op_name: str
    module: str
    phase: str
    at_s: float
    writes: bool
    idle_after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """One move of a plan: when the storage leaves and comes back (None: it doesn't)."""

    tier: str
    writes: bool
    offload_after: int
    leaves_at_s: float
    needed_by: int | None
    back_at_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One storage. ``birth`` and ``death`` are ops; None where it outlives the iteration."""

    index: int
    name: str
    kind: str
    module: str
    nbytes: int
    birth: int | None
    death: int | None
    uses: tuple[Use, ...]
    moves: tuple[Absence, ...]


def find_storage(subject: Subject, name: str) -> int:
    """The storage called ``name``, or the only one whose name contains it.

    Raises ConfigurationError that lists the candidates where there is none or more than one.
    """
    names = [storage.name for storage in subject.trace.storages]
    if name in names:
        return names.index(name)
    found = [index for index, other in enumerate(names) if name.lower() in other.lower()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigurationError(f"no storage of {subject.name} has a name that contains {name!r}.")
    largest = sorted(found, key=lambda index: -subject.trace.storages[index].nbytes)
    listed = ", ".join(names[index] for index in largest[:_NAMES_SHOWN])
    more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
    raise ConfigurationError(
        f"{len(found)} storages of {subject.name} have names that contain {name!r}: "
        f"{listed}{more}. Pass one of them."
    )


def life(subject: Subject, index: int) -> Life:
    """The life of storage ``index``."""
    trace, starts = subject.trace, op_starts(subject.trace)
    storage = trace.storages[index]
    idle = _idle_after(storage, starts)
    return Life(
        index=index,
        name=storage.name,
        kind=storage.kind,
        module=module_of(storage),
        nbytes=storage.nbytes,
        birth=storage.birth,
        death=storage.death,
        uses=tuple(
            Use(
                op=op,
                op_name=trace.ops[op].name,
                module=trace.ops[op].module,
                phase=trace.ops[op].phase,
                at_s=float(starts[op]),
                writes=op in storage.writes,
                idle_after_s=idle_s,
            )
            for op, idle_s in zip(storage.uses, idle, strict=True)
        ),
        moves=tuple(
            Absence(
                tier=move.tier,
                writes=move.write,
                offload_after=move.offload_after,
                leaves_at_s=float(starts[move.offload_after + 1]),
                needed_by=move.needed_by,
                back_at_s=None if move.needed_by is None else float(starts[move.needed_by]),
            )
            for move in subject.moves
            if move.storage == index
        ),
    )


def _idle_after(storage: Storage, starts: Seconds) -> list[float]:
    if not storage.uses:
        return []
    idle = [float(starts[after] - starts[op + 1]) for op, after in pairwise(storage.uses)]
    last, whole = storage.uses[-1], float(starts[-1])
    if storage.persistent:
        idle.append(whole - float(starts[last + 1]) + float(starts[storage.uses[0]]))
    else:
        end = whole if storage.death is None else float(starts[storage.death + 1])
        idle.append(end - float(starts[last + 1]))
    return idle


def life_text(facts: Life) -> RenderableType:
    """The life as tables."""
    born = "there at the start" if facts.birth is None else f"made by op {facts.birth}"
    dies = "stays" if facts.death is None else f"freed after op {facts.death}"
    head = Text(
        f"{facts.name}: {kind_name(facts.kind)}, {format_size(facts.nbytes)}, "
        f"{facts.module or 'no module'}; {born}, {dies}"
    )
    uses = table(
        "Uses",
        ("op", "at", "name", "module", "phase", "access", "idle after"),
        (
            (
                str(use.op),
                seconds(use.at_s),
                use.op_name.removeprefix("aten::"),
                use.module,
                use.phase,
                "write" if use.writes else "read",
                seconds(use.idle_after_s),
            )
            for use in facts.uses
        ),
    )
    return spaced(head, uses, *([_moves(facts)] if facts.moves else []))


def _moves(facts: Life) -> RenderableType:
    return table(
        "Moves of the plan",
        ("to", "leaves after op", "at", "back before op", "at ", "copy"),
        (
            (
                move.tier,
                str(move.offload_after),
                seconds(move.leaves_at_s),
                "never" if move.needed_by is None else str(move.needed_by),
                "" if move.back_at_s is None else seconds(move.back_at_s),
                "written" if move.writes else "still valid",
            )
            for move in facts.moves
        ),
    )
