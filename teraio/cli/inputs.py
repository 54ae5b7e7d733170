"""Files that commands read.

In: paths. Out: records and Subjects. Must not know: rendering, torch.
"""

from __future__ import annotations

from pathlib import Path

from teraio.errors import ConfigurationError
from teraio.files import load_any
from teraio.records import Trace
from teraio.reports.subject import Subject, subject_of


def load_subject(path: Path) -> Subject:
    """The trace in the file, with all that the file holds beyond it."""
    return subject_of(load_any(path), path.name)


def load_trace(path: Path) -> Trace:
    """The trace in the file of a trace, plan or run, as it was recorded."""
    return load_subject(path).unlimited


def check_folder_of(output: Path) -> None:
    """Before long work: raises ConfigurationError where ``output`` can't be written at its end."""
    folder = output.absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"{output}: the folder {folder} does not exist; create it first.")
    if output.is_dir():
        raise ConfigurationError(f"{output} is a folder; pass the name of a file.")
