"""A line on a terminal that says how far profiling is.

In: counts of iterations. Out: the line, and nothing where stderr is no terminal. Must not know:
what is profiled.
"""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """The line; it is there from ``start`` to ``stop``."""

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self._status: Any = None

    def start(self, done: int) -> None:
        """Show it, unless it is shown."""
        if not sys.stderr.isatty() or self._status is not None:
            return
        from rich.console import Console

        self._status = Console(stderr=True).status("")
        self._status.start()
        self.advance(done)

    def advance(self, done: int) -> None:
        """So many iterations are done."""
        if self._status is not None:
            now = min(done + 1, self._iterations)
            self._status.update(f"teraio: profiling, iteration {now} of {self._iterations}")

    def stop(self) -> None:
        """Take it away."""
        if self._status is not None:
            self._status.stop()
            self._status = None
