"""One training run and what came of it, as records that travel between processes.

In: nothing. Out: Job, Step, Outcome. Must not know: torch, teraio, any system.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """``system`` is a name of ``benchmarks.systems`` or ``module:function``.

    ``limit_bytes`` is the memory that the run may take of its device beyond what the process held
    before the model was built; the run is judged by it. ``budget_bytes`` is what teraio is told:
    less, as it counts tensors only. ``confined``: the limit is to be kept by a control group with
    swap space behind it. ``in_backward``: teraio's ``optimizer_in_backward``. ``report``: the file
    for teraio's report of the run, if one is to be kept.
    """

    name: str
    system: str
    shape: str
    dtype: str
    threads: int
    device: str = "cpu"
    limit_bytes: int | None = None
    budget_bytes: int | None = None
    host_bytes: int = 0
    in_backward: bool = False
    confined: bool = False
    ssd: tuple[str, ...] = ()
    report: str | None = None


UNTIMED = -1  # in place of a turn's number


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One training step: wall and CPU seconds of the whole process, and what it held and moved.

    ``host_peak_bytes`` is resident memory beyond what the process held before the model was built,
    ``device_peak_bytes`` memory that torch reserved on a GPU (None on the CPU). Bytes read and
    written are those that this process sent to drives; ``drive_*`` those of the whole drive.
    ``turn`` counts the turns of the parent, so steps of one turn ran right after each other.
    """

    turn: int
    loss: float
    wall_s: float
    cpu_s: float
    host_peak_bytes: int
    device_peak_bytes: int | None
    read_bytes: int
    written_bytes: int
    drive_read_bytes: int | None
    drive_written_bytes: int | None
    energy_j: float | None

    @property
    def timed(self) -> bool:
        return self.turn != UNTIMED


@dataclass(frozen=True, slots=True, kw_only=True)
class TeraioFigures:
    """What only teraio knows of its run; tuples have one entry per step."""

    planned: tuple[bool, ...]
    peak_bytes: tuple[int, ...]
    read_bytes: tuple[int, ...]
    written_bytes: tuple[int, ...]
    stall_s: tuple[float, ...]
    drift_ops: tuple[int, ...]
    ops: tuple[int, ...]
    predicted_s: float | None
    ideal_s: float | None
    bound_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run gave. ``build_peak_bytes``: host memory while the model and its system were made.

    ``parameters_sha256`` is None where a system has no cheap way to its parameters.
    """

    parameters: int
    parameters_sha256: str | None
    base_bytes: int
    build_peak_bytes: int
    steps: tuple[Step, ...]
    teraio: TeraioFigures | None

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(step.loss for step in self.steps)

    @property
    def host_peak_bytes(self) -> int:
        steps = max(step.host_peak_bytes for step in self.steps)
        # For a GPU, models are made in host memory, whatever the system needs.
        return max(self.build_peak_bytes, steps) if self.device_peak_bytes is None else steps

    @property
    def device_peak_bytes(self) -> int | None:
        peaks = [step.device_peak_bytes for step in self.steps]
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def peak_bytes(self) -> int:
        """Peak of the memory that is limited: the GPU's if there is one, else the host's."""
        return self.host_peak_bytes if self.device_peak_bytes is None else self.device_peak_bytes
