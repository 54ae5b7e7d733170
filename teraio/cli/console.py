"""Where commands write to.

In: the process's streams. Out: consoles of rich. Must not know: what is written.

Colours and the terminal's width only on a terminal; into a pipe goes plain text, one line for each
row.
"""

from __future__ import annotations

import sys

from rich.console import Console

# Wider than any table: nothing is cut off or wrapped where no terminal ends.
_PIPE_WIDTH = 10_000


def out() -> Console:
    """Standard output."""
    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def notes() -> Console:
    """Standard error: progress, and what is not the result."""
    return Console(stderr=True, highlight=False)


def write(text: str) -> None:
    """Text as it is, such as JSON, to standard output."""
    sys.stdout.write(text)
    sys.stdout.flush()
