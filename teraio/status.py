"""What a run tells other processes about itself: one small file, by which ``teraio top`` finds it.

In: a run's figures. Out: a private file while the run lives, and back. Must not know: torch, how
figures are shown.

The file lies in the user's runtime folder ($XDG_RUNTIME_DIR, else one of the user's own in the
temporary folder), is written at most twice a second, and is removed at the run's end. That of a
run that was killed is known by its process: its number, and when it started, in case the number
belongs to another process by now.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from teraio.records import Reading, StepReport, Telemetry

log = logging.getLogger("teraio")

VERSION = 2
_SECONDS_BETWEEN = 0.5
_MOST_BYTES = 1 << 20
STEPS_TOLD = 30
_STEP = tuple(field.name for field in fields(StepReport) if field.name != "stalls")
_step_values = attrgetter(*_STEP)
_READING = tuple(field.name for field in fields(Reading))
_reading_values = attrgetter(*_READING)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run as it is now. ``steps`` are the last ones; times of the plan are None without one.

    ``process_started`` and ``updated_s`` tell whether the process lives, and how old this is.
    """

    pid: int
    process_started: int
    started_s: float
    updated_s: float
    command: str
    folders: tuple[str, ...]
    phase: str
    budget_bytes: int
    used_bytes: int
    away_bytes: int
    spill_bytes: int
    read_bytes_per_s: float
    write_bytes_per_s: float
    predicted_s: float | None
    ideal_s: float | None
    steps: tuple[StepReport, ...]
    telemetry: Telemetry


_MEMBERS = tuple(field.name for field in fields(RunStatus))
_values_of = attrgetter(*_MEMBERS)


class StatusFile:
    """The file of this process. A file that can't be written is no reason for a run to fail."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._next_s = 0.0
        self._path: Path | None = None
        try:
            self._path = _own_folder() / f"{self._pid}.json"
            atexit.register(self.close)
        except OSError as error:
            log.debug("no status file: %s", error)

    def update(self, status_now: Callable[[], RunStatus]) -> None:
        """Writes what ``status_now`` gives, unless that was done a moment ago."""
        now = time.monotonic()
        if self._path is None or now < self._next_s or os.getpid() != self._pid:
            return
        self._next_s = now + _SECONDS_BETWEEN
        try:
            _write(self._path, _document(status_now()))
        except OSError as error:
            log.debug("no status file: %s", error)
            self._path = None

    def close(self) -> None:
        """Removes the file; in a forked child, which has none, does nothing."""
        if self._path is not None and os.getpid() == self._pid:
            self._path.unlink(missing_ok=True)
            atexit.unregister(self.close)
            self._path = None


def this_process() -> dict[str, Any]:
    """The fields of a RunStatus that are about the process."""
    return {
        "pid": os.getpid(),
        "process_started": process_started(os.getpid()) or 0,
        "command": " ".join(sys.argv)[:400],
    }


def runs() -> list[RunStatus]:
    """The runs of this user that are alive; files of those that died are removed."""
    found = []
    for path in _files():
        status = _read(path)
        if status is None:
            continue
        if process_started(status.pid) == status.process_started:
            found.append(status)
        else:
            path.unlink(missing_ok=True)
    return sorted(found, key=lambda status: status.started_s)


def process_started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name of the process, in parentheses, may hold anything; the 22nd field comes after it.
    return int(text.rpartition(")")[2].split()[19])


def _folders() -> Iterator[Path]:
    """Where status files may lie, the best place first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        yield Path(runtime) / "teraio"
    yield Path(tempfile.gettempdir()) / f"teraio-{os.getuid()}"


def _own_folder() -> Path:
    """The first folder that can be had. Raises OSError where there is none."""
    for folder in _folders():
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            continue
        if _is_ours(folder):
            return folder
    raise PermissionError("no private folder for status files")


def _is_ours(folder: Path) -> bool:
    """No link, owned by this user, and closed to others: nobody else puts files there."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    return private and status.st_uid == os.getuid()


def _files() -> Iterator[Path]:
    for folder in _folders():
        if _is_ours(folder):
            yield from sorted(folder.glob("*.json"))


def _document(status: RunStatus) -> str:
    # By hand, since this costs the run its time: dataclasses.asdict would take ten times as long.
    members = dict(zip(_MEMBERS, _values_of(status), strict=True))
    members["steps"] = [_step_values(step) for step in status.steps[-STEPS_TOLD:]]
    told = status.telemetry
    readings = [_reading_values(reading) for reading in told.readings]
    members["telemetry"] = (told.seconds, told.samples, readings, told.missing)
    return json.dumps({"version": VERSION, **members})


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    with open(draft, "w", encoding="utf-8", opener=_private) as file:
        file.write(text)
    os.replace(draft, path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _read(path: Path) -> RunStatus | None:
    """The status in a file; None for one that is of another version, or broken."""
    try:
        with open(path, encoding="utf-8") as file:
            loaded = json.loads(file.read(_MOST_BYTES))
        if loaded.pop("version") != VERSION:
            return None
        rows = loaded.pop("steps")
        loaded["steps"] = tuple(StepReport(**dict(zip(_STEP, row, strict=True))) for row in rows)
        loaded["folders"] = tuple(loaded["folders"])
        return RunStatus(**{**loaded, "telemetry": _telemetry(*loaded["telemetry"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _telemetry(
    seconds: float, samples: int, readings: list[list[Any]], missing: list[str]
) -> Telemetry:
    return Telemetry(
        seconds=seconds,
        samples=samples,
        readings=tuple(Reading(**dict(zip(_READING, row, strict=True))) for row in readings),
        missing=tuple(missing),
    )
