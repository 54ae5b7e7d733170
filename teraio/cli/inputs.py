"""Files that commands read.

In: paths. Out: records and Subjects. Must not know: rendering, torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import typer

from teraio.errors import ConfigurationError, SpillError
from teraio.files import is_ours, load_any
from teraio.records import Trace
from teraio.reports.subject import Subject, subject_of


def load_subject(path: Path) -> Subject:
    """The trace in the file, with all that the file holds beyond it."""
    return subject_of(load_any(path), path.name)


def load_trace(path: Path) -> Trace:
    """The trace in the file of a trace, plan or run, as it was recorded."""
    return load_subject(path).unlimited


def check_output(output: Path, *inputs: Path, endings: Sequence[str] = ()) -> None:
    """Before long work: raises ConfigurationError where ``output`` can't be written at its end, or
    would take the place of one of ``inputs`` or of something that is not of its kind.

    What is there already must have one of ``endings``; without any it must be a file of teraio.
    """
    folder = output.absolute().parent
    if not folder.is_dir():
        raise ConfigurationError(f"{output}: the folder {folder} does not exist; create it first.")
    if output.is_dir():
        raise ConfigurationError(f"{output} is a folder; pass the name of a file.")
    if output.exists():
        if any(path.exists() and path.samefile(output) for path in inputs):
            raise ConfigurationError(f"{output} is what is read; pass another name for the result.")
        if endings:
            if output.is_file() and output.suffix.lower() not in endings:
                raise ConfigurationError(
                    f"{output} is there and no {endings[0]} file; pass another name for the result."
                )
            return  # it is written in place, be it a pipe
        if not (output.is_file() and is_ours(output)):
            raise ConfigurationError(
                f"{output} is there and no file of teraio; pass another name for the result."
            )
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{output}: nothing can be written to the folder {folder} "
            f"({(error.strerror or str(error)).lower()}); pass another one."
        ) from None


def check_folders(folders: Sequence[Path], *, allow_tmpfs: bool) -> None:
    """Raises ConfigurationError for a folder that can't hold spill files."""
    from teraio.engine.folders import check_folder

    for folder in folders:
        try:
            check_folder(folder, allow_tmpfs=allow_tmpfs)
        except SpillError as error:
            raise ConfigurationError(f"--ssd: {error}") from None


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the parameter ``name`` of a command is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
