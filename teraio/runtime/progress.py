"""What a terminal is told of the first iterations, which are slower than those that follow.

In: counts of iterations and ops. Out: lines on stderr, none where it is no terminal. Must not know:
what is profiled and planned.

While the program runs the terminal is the program's, with its own lines and progress bars: a line
that stays goes out whole. What is there only while teraio works, and the program waits, is taken
away again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TAKE_AWAY = "\r\x1b[K"


class Progress:
    """Of one run."""

    def __init__(self) -> None:
        self._told = False

    def profiling(self, iterations: int) -> None:
        """So many are profiled. It is said once."""
        if not self._told:
            self._told = True
            _write(f"teraio: profiling the first {iterations} iterations\n")

    @contextmanager
    def planning(self, ops: int) -> Iterator[None]:
        """A plan is made for an iteration of so many ops."""
        _write(f"{_TAKE_AWAY}teraio: planning for {ops:,} ops")
        try:
            yield
        finally:
            _write(_TAKE_AWAY)


def _write(text: str) -> None:
    try:
        if sys.stderr.isatty():
            sys.stderr.write(text)
            sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed: nobody looks
        pass
