"""Facts as JSON, for programs.

In: dataclasses of facts. Out: text. Must not know: what they are about.
"""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any


def as_json(facts: Any) -> str:
    """JSON with the members of the dataclass, ending in a line feed."""
    plain = asdict(facts) if is_dataclass(facts) and not isinstance(facts, type) else facts
    return json.dumps(plain, indent=2, ensure_ascii=False, default=str) + "\n"
