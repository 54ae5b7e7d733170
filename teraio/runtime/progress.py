"""A line on a terminal that says how far profiling and planning are.

In: counts of iterations and ops. Out: the line, and nothing where stderr is no terminal. Must not
know: what is profiled and planned.
"""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """The line; it is there from ``profiling`` or ``planning`` to ``stop``."""

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self._status: Any = None

    def profiling(self, left: int) -> None:
        """So many iterations are left, the one that begins included."""
        now = self._iterations - left + 1
        self._show(f"teraio: profiling, iteration {now} of {self._iterations}")

    def planning(self, ops: int) -> None:
        """A plan is made for an iteration of so many ops."""
        self._show(f"teraio: planning for {ops:,} ops")

    def _show(self, text: str) -> None:
        if not sys.stderr.isatty():
            return
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True).status("")
            self._status.start()
        self._status.update(text)

    def stop(self) -> None:
        """Take it away."""
        if self._status is not None:
            self._status.stop()
            self._status = None
