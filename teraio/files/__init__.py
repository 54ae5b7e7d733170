"""Files of records: traces, plans, hardware and reports, as gzip'd JSON.

In: a record and a path, or a path and the kind that it must hold. Out: a file, or a checked record.
Must not know: torch, or what anyone does with the records.

A file holds ``{"format": "teraio", "kind": ..., "version": 5, "record": ...}``. The long lists
(ops, storages, moves) are stored by column. What is loaded is checked once, here: types, ranges,
order of ops. Files of older versions are read too: members that they lack get the defaults of the
record. A file from elsewhere can't harm: its size is limited, and whatever is wrong with it is a
FileFormatError.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from teraio.errors import ConfigurationError, FileFormatError
from teraio.files.document import is_ours, pack, read_document, replace
from teraio.files.fault import Fault, fail
from teraio.files.hardware import read_hardware, write_hardware
from teraio.files.plan import read_plan, write_plan
from teraio.files.report import read_run, read_step, write_run, write_step
from teraio.files.trace import read_trace, write_trace
from teraio.records import Hardware, Plan, RunReport, StepReport, Trace

__all__ = ["AnyRecord", "is_ours", "load", "load_any", "save"]

Record = TypeVar("Record", Trace, Plan, Hardware, StepReport, RunReport)
AnyRecord = Trace | Plan | Hardware | StepReport | RunReport


class _Form(NamedTuple):
    """What a kind of record is in a file: its name there, and to JSON values and back."""

    name: str
    write: Callable[[Any], dict[str, Any]]
    read: Callable[[object, str], AnyRecord]


_FORMS: dict[type, _Form] = {
    Trace: _Form("trace", write_trace, read_trace),
    Plan: _Form("plan", write_plan, read_plan),
    Hardware: _Form("hardware", write_hardware, read_hardware),
    StepReport: _Form("step report", write_step, read_step),
    RunReport: _Form("run report", write_run, read_run),
}


def save(record: AnyRecord, path: str | os.PathLike[str]) -> None:
    """Write ``record`` to ``path``, which holds either the old file or the whole new one at any
    time.

    Raises FileFormatError for a record that could not be loaded again, ConfigurationError for
    anything but a record, OSError as the file system does.
    """
    form = _form_of(type(record))
    body = form.write(record)
    target = Path(path)
    try:
        form.read(body, form.name)
        packed = pack(form.name, body)
    except (Fault, ValueError) as error:
        raise FileFormatError(f"{target}: this {form.name} can't be saved: {error}") from None
    replace(target, packed)


def load(path: str | os.PathLike[str], kind: type[Record]) -> Record:
    """Read a record of type ``kind`` (such as ``Trace``) from ``path``.

    Raises FileFormatError, with path and reason, for a file that is damaged, of another kind or
    version, or breaks a rule of the record; ConfigurationError where ``kind`` is none; OSError as
    the file system does.
    """
    form = _form_of(kind)
    with _refused(path):
        name, body = read_document(Path(path))
        if name != form.name:
            fail(f"the file holds a {str(name)[:40]!r}, not a {form.name!r}")
        return cast(Record, form.read(body, form.name))


def load_any(path: str | os.PathLike[str]) -> AnyRecord:
    """Read the record that ``path`` holds, whichever it is. Raises as ``load`` does."""
    with _refused(path):
        name, body = read_document(Path(path))
        form = next((form for form in _FORMS.values() if form.name == name), None)
        if form is None:
            fail(f"the file holds a {str(name)[:40]!r}, which this version does not know")
        return form.read(body, form.name)


def _form_of(kind: type) -> _Form:
    form = _FORMS.get(kind)
    if form is None:
        raise ConfigurationError(
            f"{getattr(kind, '__name__', kind)} is no kind of record, which are "
            f"{', '.join(known.__name__ for known in _FORMS)}. teraio.report(model) is a RunReport."
        )
    return form


@contextmanager
def _refused(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is wrong with the file at ``path`` is a FileFormatError."""
    try:
        yield
    except Fault as fault:
        raise FileFormatError(f"{os.fspath(path)}: {fault}") from None
