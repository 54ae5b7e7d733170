"""Drives that pass for slow ones, so that plans look for other ways than moving data.

In: pytest's monkeypatch. Out: measured rates replaced; transfers are as quick as ever. Must not
know: plans.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from teraio.engine.revision import Revision
from teraio.records import Hardware
from teraio.runtime import resources

_SLOW_BYTES_PER_S = 5e6


def pass_for_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on runs believe that their SSD tier is slow, whatever it does."""
    measured = resources.hardware
    rates = {f"{what}_bytes_per_s": _SLOW_BYTES_PER_S for what in ("read", "write", "mixed")}

    def slow(*args: Any, **kwargs: Any) -> Hardware:
        found: Hardware = measured(*args, **kwargs)
        tiers = (replace(t, **rates) if t.name == "ssd" else t for t in found.tiers)
        return replace(found, tiers=tuple(tiers))

    monkeypatch.setattr(resources, "hardware", slow)
    monkeypatch.setattr(Revision, "other_speed", lambda *_: False)
