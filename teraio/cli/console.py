"""Where commands write to.

In: the process's streams. Out: consoles of rich. Must not know: what is written.

Colours and the terminal's width only on a terminal; into a pipe goes plain text, one line for each
row.
"""

from __future__ import annotations

import io
import re
import sys
from typing import IO, cast

from rich.console import Console

# Wider than any table: nothing is cut off or wrapped where no terminal ends.
_PIPE_WIDTH = 10_000
_PADDING = re.compile(" +\n")


def out() -> Console:
    """Standard output."""
    console = Console(highlight=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, width=_PIPE_WIDTH, file=cast(IO[str], _Unpadded()))


class _Unpadded(io.TextIOBase):
    """Standard output without the blanks that fill up the cells at the ends of lines."""

    def write(self, text: str) -> int:
        return sys.stdout.write(_PADDING.sub("\n", text))

    def flush(self) -> None:
        sys.stdout.flush()


def notes() -> Console:
    """Standard error: progress, and what is not the result."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        return console
    return Console(stderr=True, highlight=False, width=_PIPE_WIDTH)


def write(text: str) -> None:
    """Text as it is, such as JSON, to standard output."""
    sys.stdout.write(text)
    sys.stdout.flush()
