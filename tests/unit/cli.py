"""Runs the tool in this process.

In: arguments. Out: exit code and what was written. Must not know: commands.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from teraio.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What a call of the tool left behind."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """``teraio ARGUMENTS`` into a pipe."""
    before = sys.argv
    sys.argv = ["teraio", *map(str, arguments)]
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return Ran(code, out, err)
