"""One finding about this machine.

In: nothing. Out: the record Check. Must not know: anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "missing", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """``status``: "ok"; "missing" what is optional; "warn" works badly; "fail" can't work.

    ``remedy`` is empty where there is nothing to do.
    """

    group: str
    name: str
    status: Status
    found: str
    remedy: str = ""
