"""How fast a plan wears out the drives it writes to.

In: a Plan and the Hardware it was made for. Out: a Wear per tier. Must not know: traces, how plans
are made.
"""

from __future__ import annotations

from dataclasses import dataclass

from teraio.records import Hardware, Plan

DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wear:
    """What a tier's drives have to take while training runs all day.

    ``days_to_rated`` is how long until they have been written as much as their maker rates them
    for: None where that is unknown or never comes.
    """

    tier: str
    bytes_per_iteration: int
    bytes_per_day: float
    days_to_rated: float | None


def wear(plan: Plan, hardware: Hardware) -> tuple[Wear, ...]:
    """The wear of each tier of ``hardware``, in its order, at the predicted time per iteration."""
    written = {use.tier: use.written_bytes for use in plan.tiers}
    found = []
    for tier in hardware.tiers:
        nbytes = written.get(tier.name, 0)
        per_day = nbytes * DAY_S / plan.predicted_s if plan.predicted_s else 0.0
        rated = tier.rated_write_bytes
        found.append(
            Wear(
                tier=tier.name,
                bytes_per_iteration=nbytes,
                bytes_per_day=per_day,
                days_to_rated=rated / per_day if rated is not None and per_day else None,
            )
        )
    return tuple(found)
