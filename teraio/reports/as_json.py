"""Facts as JSON, for programs.

In: dataclasses of facts. Out: text. Must not know: what they are about.
"""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any


def as_json(facts: Any) -> str:
    """JSON with the members of dataclasses, ending in a line feed."""
    return json.dumps(facts, indent=2, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
