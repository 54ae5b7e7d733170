"""What is wrong with a file, while it is not yet known which file it is.

In: a reason. Out: an exception. Must not know: paths, records.
"""

from __future__ import annotations

from typing import NoReturn


class Fault(Exception):
    """What is wrong with a file; becomes a FileFormatError that names the path."""


def fail(reason: str) -> NoReturn:
    """Raises a Fault."""
    raise Fault(reason)
