"""What sanitizers wrote, and which of it is about the native core.

In: log files of AddressSanitizer, UndefinedBehaviorSanitizer or ThreadSanitizer. Out: reports as
text. Must not know: how they came about.
"""

from __future__ import annotations

import re
from pathlib import Path

_OURS = "/csrc/"
_LOST = "[failed to restore the stack]"


def reports(logs: Path) -> list[str]:
    """Those of all processes that logged into the folder, without what others are to blame for."""
    texts = [path.read_text(errors="replace") for path in sorted(logs.iterdir())]
    parts = [part for text in texts for part in re.split(r"^={10,}\n", text, flags=re.MULTILINE)]
    return [part for part in parts if part.strip() and _is_ours(part)]


def _is_ours(report: str) -> bool:
    """Only instrumented code can offend the other two sanitizers, and only ours is instrumented.

    ThreadSanitizer does not see the locks of Python and PyTorch. What it says of memory that they
    share with us is a guess, so both of the first stacks, those that collide, must be ours.
    """
    if "WARNING: ThreadSanitizer" not in report:
        return True
    stacks = [part for part in report.split("\n\n") if "#0 " in part or _LOST in part]
    return all(_OURS in stack or _LOST in stack for stack in stacks[:2])
