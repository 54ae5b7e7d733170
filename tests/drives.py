"""Tiers that pass for others than they are, whatever a busy machine measures of them.

In: pytest's monkeypatch. Out: measured rates replaced; transfers are as quick as ever. Must not
know: plans.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from teraio.records import Hardware, Tier
from teraio.runtime import resources
from teraio.runtime.revision import Revision

_SLOW_BYTES_PER_S = 5e6


def pass_for_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on runs believe that their SSD tier is slow, so they look for other ways."""
    pass_for(monkeypatch, ssd=_SLOW_BYTES_PER_S)


def pass_for(monkeypatch: pytest.MonkeyPatch, **bytes_per_s: float) -> None:
    """From now on runs believe that tiers read, write and do both at these rates."""
    measured = resources.hardware

    def believed(tier: Tier) -> Tier:
        rate = bytes_per_s.get(tier.name)
        if rate is None:
            return tier
        return replace(tier, read_bytes_per_s=rate, write_bytes_per_s=rate, mixed_bytes_per_s=rate)

    def hardware(*args: Any, **kwargs: Any) -> Hardware:
        found: Hardware = measured(*args, **kwargs)
        return replace(found, tiers=tuple(map(believed, found.tiers)))

    monkeypatch.setattr(resources, "hardware", hardware)
    monkeypatch.setattr(Revision, "other_speed", lambda *_: False)
