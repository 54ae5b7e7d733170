"""What a terminal is told of the first iterations, which are slower than those that follow.

In: counts of iterations and ops. Out: lines on stderr, none where it is no terminal. Must not know:
what is profiled and planned.

The terminal is the program's, with its own lines and progress bars, so nothing but whole lines goes
there, and nothing is taken away again.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# What is over sooner needs no explanation.
_LONG_S = 1.0


class Progress:
    """Of one run."""

    def __init__(self) -> None:
        self._told = False

    def profiling(self, iterations: int) -> None:
        """So many are profiled. It is said once."""
        if not self._told:
            self._told = True
            _tell(f"profiling the first {iterations} iterations")

    @contextmanager
    def planning(self, ops: int) -> Iterator[None]:
        """A plan is made for an iteration of so many ops. It is said where that takes long."""
        late = threading.Timer(_LONG_S, _tell, [f"planning for {ops:,} ops"])
        late.daemon = True
        late.start()
        try:
            yield
        finally:
            late.cancel()


def _tell(text: str) -> None:
    try:
        if sys.stderr.isatty():
            sys.stderr.write(f"teraio: {text}\n")
            sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed: nobody looks
        pass
